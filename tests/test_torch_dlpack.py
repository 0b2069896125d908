"""The tests of adaptk.torch with a PyTorch that the native step does not know: by way of DLPack and attributes."""

from __future__ import annotations

import adaptk
import pytest
from test_torch_autograd import *  # noqa: F403
from test_torch_failures import *  # noqa: F403
from test_torch_loop import *  # noqa: F403
from test_torch_options import *  # noqa: F403
from test_torch_rules import *  # noqa: F403
from test_torch_saving import *  # noqa: F403
from test_torch_tensors import *  # noqa: F403
from test_torch_threads import *  # noqa: F403


@pytest.fixture(autouse=True)
def _unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptk.torch, "_face", dict)
