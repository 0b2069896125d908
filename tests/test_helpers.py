"""What the tests compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import FLOATS, same_bits


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
def test_same_bits(dtype: Any) -> None:
    """One NaN is as good as another; nothing else is excused."""

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
