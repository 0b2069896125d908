"""``bench/rules_at_run_time.py`` on small sizes. No measured value is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_script(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    script = ROOT / "bench" / "rules_at_run_time.py"
    options = ["--sizes", "1000,2000", "--repeats", "1", "--threads", "1", "--json", str(file)]
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=True)
    found = json.loads(file.read_text())
    assert found["threads"] == 1
    assert found["making_ms"] > 0
    assert all(value > 0 for value in found["relative"].values())
    lines = 1 + len(found["relative"])
    if found["compiled"]:
        assert found["compiled"].keys() == found["relative"].keys()
        assert all(value > 0 for value in found["compiled"].values())
        assert found["compiling_ms"] > 0
    assert len(done.stdout.splitlines()) == lines + 1  # compiled, or the reason why not
