"""Steps of adaptk.torch with a PyTorch unknown to the native step: through DLPack and attributes."""

from __future__ import annotations

import adaptk
import pytest
from test_torch_failures import test_params_without_memory  # noqa: F401
from test_torch_loop import test_clipping_matches_torch, test_closures, test_grad_scaler_with_clipping  # noqa: F401
from test_torch_rules import (  # noqa: F401
    test_lookahead,
    test_switching_momentum_off_and_on,
    test_trajectory_matches_torch,
)
from test_torch_tensors import (  # noqa: F401
    test_another_dtype,
    test_expanded_gradients,
    test_many_dtypes_in_one_optimizer,
    test_nothing_to_do,
    test_states_of_another_layout,
    test_thousands_of_params,
)
from test_torch_threads import test_two_optimizers_in_two_threads  # noqa: F401


@pytest.fixture(autouse=True)
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptk.torch._private, "face", dict)
