"""All of test_torch.py with a PyTorch that the native step does not know: by way of DLPack and attributes."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

import adaptk.torch
from test_torch import *  # noqa: F403


@pytest.fixture(autouse=True)
def _unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptk.torch, "_face", dict)
