"""The core's reduction through Python: every scope against NumPy, and the global norm computed from it."""

from __future__ import annotations

import adaptk
import numpy as np
import pytest
from adaptk import _core


def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(30, 700), (5,), (2, 8192), (0,), (3, 4)]
    return [rng.normal(size=s).astype(t) for s, t in zip(shapes, "ffdfe", strict=True)]


TERMS = {"square": np.square, "value": lambda x: x}


@pytest.mark.parametrize("term", TERMS)
def test_scopes(term: str) -> None:
    buffers, scale = arrays(), -0.5
    terms = [TERMS[term](scale * b.astype(np.float64)) for b in buffers]
    want = {
        "all": [sum(t.sum() for t in terms)],
        "group": [terms[0].sum() + terms[1].sum(), 0.0, terms[2].sum() + terms[3].sum() + terms[4].sum()],
        "tensor": [t.sum() for t in terms],
        "row": [x for t in terms for x in np.atleast_2d(t).sum(axis=1) if t.size],
    }
    rows = [b.shape[-1] for b in buffers]
    for scope, sums in want.items():
        got = _core.reduce(buffers, term, scope, scale, groups=[2, 0, 3], row_sizes=rows)
        assert np.allclose(got, sums, rtol=1e-12, atol=1e-12), scope


def test_the_global_norm_from_leaf_sums() -> None:
    buffers = arrays()
    (total,) = _core.reduce(buffers, "square", "all")
    assert adaptk.global_norm(buffers) == np.sqrt(total)
    assert _core.reduce([], "square", "all") == [0.0]
