"""Decoding only reads: states may be read-only, such as arrays of JAX and memory maps."""

from __future__ import annotations

import os

import numpy as np
import pytest
from adaptk import formats


@pytest.mark.parametrize("name", ["int8", "uint8"])
def test_read_only_states_are_decoded(name: str) -> None:
    stored = formats.quantize(np.linspace(0.0, 1.0, 300, dtype=np.float32), name)
    want = formats.dequantize(stored)
    for x in stored[:2]:
        x.setflags(write=False)
    np.testing.assert_array_equal(formats.dequantize(stored), want)
    with pytest.raises(ValueError, match="state: read-only, but it is updated in place"):
        formats._core.encode(want, stored, 0, 1, 0, 0)


def test_arrays_of_jax_are_decoded() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax = pytest.importorskip("jax")
    stored = formats.quantize(np.linspace(-1.0, 1.0, 300, dtype=np.float32), "int8")
    on_device = formats.Stored(*map(jax.numpy.asarray, stored[:2]), stored.format)
    np.testing.assert_array_equal(np.asarray(formats.dequantize(on_device)), formats.dequantize(stored))
