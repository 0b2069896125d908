"""Scales that were replaced since the last call are checked again, even if the codes are the same."""

from __future__ import annotations

import adaptk
import numpy as np
import pytest
from adaptk import formats


def test_replaced_scales_that_overlap() -> None:
    w, g = np.ones((2, 300), np.float32)
    m = formats.full_like(w, 0.0, "int8")
    adaptk.ops.momentum([w], [g], [m], step=1)
    before = w.copy()
    with pytest.raises(ValueError, match=r"param\[0\] and momentum_buffer\[0\] overlap"):
        adaptk.ops.momentum([w], [g], [(m.data, w[:3])], step=1)
    np.testing.assert_array_equal(w, before)
