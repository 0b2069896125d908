"""The comparisons of the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import FLOATS, same_bits


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
def test_same_bits(dtype: Any) -> None:
    """All NaNs are equal; everything else must match exactly."""

    def array(*values: float) -> np.ndarray:
        return np.array(values).astype(dtype)

    nan = float("nan")
    assert same_bits(array(1, nan), -array(-1, nan))
    assert array(nan).tobytes() != (-array(nan)).tobytes()
    assert not same_bits(array(0.0), array(-0.0))
    assert not same_bits(array(nan, 0.0), array(nan, -0.0))
    assert not same_bits(array(nan, 1), array(1, nan))
    assert not same_bits(array(nan), array(np.inf))
    assert not same_bits(array(1), array(1, 1))
