"""``adaptk.keras`` under each backend: Keras's classes, the library's bits, Keras's loop around them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Not imported here: the import needs the backend that Keras is configured for, which may not be installed.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs Keras")

PROGRAM = Path(__file__).parent / "keras_program.py"
CASES = (
    *("keras_classes", "library_bits", "numbers_that_are_carried", "loop_of_keras", "stateless", "errors"),
    "estimates",
    "every_rule_of_the_catalogue",
)


def run(backend: str, *cases: str) -> subprocess.CompletedProcess[str]:
    package = {"torch": "torch", "jax": "jax", "tensorflow": "keras", "numpy": "numpy"}[backend]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, str(PROGRAM), *cases], env=environment, capture_output=True, text=True)


def test_in_numpy() -> None:
    done = run("numpy", "errors")
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.full
@pytest.mark.parametrize("backend", ["torch", "jax", "numpy"])
def test_each_backend(backend: str) -> None:
    done = run(backend, *CASES)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.full
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_models_are_trained_and_saved(backend: str) -> None:
    done = run(backend, "fit_and_save")
    assert done.returncode == 0, done.stderr[-4000:]
