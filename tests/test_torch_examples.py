"""The examples that train in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import adaptk
import pytest
from torch_processes import (
    LIMIT,
)

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("torch_*.py"))


def run_example(path: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Runs a program, original or modified."""
    where = os.pathsep.join([str(Path(adaptk.__file__).parent.parent), str(path.parent)])
    environment = {**os.environ, "PYTHONPATH": where, "PYTHONWARNINGS": "error::UserWarning,error::FutureWarning"}
    return subprocess.run(
        [sys.executable, source], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def test_examples_exist() -> None:
    names = {p.stem.removeprefix("torch_") for p in EXAMPLES}
    assert names >= {"ddp", "zero", "fsdp", "local_sgd", "hogwild"}


@pytest.mark.full
@pytest.mark.parametrize("path", EXAMPLES, ids=[p.stem for p in EXAMPLES])
def test_example(path: Path) -> None:
    done = run_example(path, str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("loss") > 3
    assert "WRONG" not in done.stdout


@pytest.mark.full
def test_a_wrong_example_fails(tmp_path: Path) -> None:
    path = next(p for p in EXAMPLES if p.stem == "torch_ddp")
    right = "adaptk.torch.AdamW(model.parameters(), lr=3e-3"
    source = path.read_text()
    assert right in source
    changed = tmp_path / "changed.py"
    changed.write_text(source.replace(right, "adaptk.torch.AdamW(model.parameters(), lr=2.9e-3"))
    done = run_example(path, str(changed))
    assert done.returncode != 0
    assert "WRONG" in done.stdout
