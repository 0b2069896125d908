"""The parameter server on Ray's actors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import adaptk
import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "ray_parameter_server.py"


@pytest.mark.full
def test_parameter_server() -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    environment = {**os.environ, "PYTHONPATH": str(Path(adaptk.__file__).parent.parent), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("loss on all digits") == 4
