"""More elements than an int can count."""

from __future__ import annotations

import adaptk
import numpy as np
import pytest
from buffer_cases import (
    no_exports,  # noqa: F401
)
from helpers import (
    available_bytes,
    same_bits,
)

LARGE_NEEDS = 12 << 30


# More elements than an int can count


@pytest.mark.large
def test_more_elements_than_an_int_can_count() -> None:
    room = available_bytes()
    if room is None or room < LARGE_NEEDS:
        pytest.skip(f"needs {LARGE_NEEDS >> 30} GiB of memory that is free")
    n = (1 << 31) + 5_000
    # np.zeros allocates no pages that are only read.
    param, grad = np.zeros(n, np.float16), np.zeros(n, np.float16)
    at = np.r_[0:3, (1 << 30) - 2 : (1 << 30) + 3, (1 << 31) - 3 : (1 << 31) + 4, n - 4 : n]
    values = np.arange(1, len(at) + 1, dtype=np.float16)
    param[at], grad[at] = values, -2 * values
    adaptk.ops.sgd(param, grad, step=1, lr=0.5)
    assert same_bits(param[at], 2 * values)
    assert np.count_nonzero(param) == len(at)
    adaptk.ops.sgd([param[: 1 << 20], param[1 << 20 :]], [grad[: 1 << 20], grad[1 << 20 :]], step=1, lr=0.5)
    assert same_bits(param[at], 3 * values)
    assert np.count_nonzero(param) == len(at)
