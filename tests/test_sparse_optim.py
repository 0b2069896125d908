"""Gradients of rows in optimizer objects."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import Array
from sparse_cases import dense, equal, gradient, touched

SHAPE = (30, 5)


def table(seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(dtype)


def test_pairs_and_dense_gradients() -> None:
    params, want = [table(), np.ones(4, np.float32)], [table(), np.ones(4, np.float32)]
    opt, ref = adaptk.Adam(params, lr=0.1, sparse="dense"), adaptk.Adam(want, lr=0.1)
    for t in range(3):
        indices, values = gradient(30, (5,), 40, t)
        opt.step([(indices, values), np.full(4, t, np.float32)])
        ref.step([dense(indices, values, SHAPE), np.full(4, t, np.float32)])
    for p, q in zip(params, want, strict=True):
        equal(p, q)
    assert opt.step_count == 3


def test_lazy_is_the_default() -> None:
    p, q = table(), table()
    opt, ref = adaptk.Adam([p], lr=0.1), adaptk.Adam([q], lr=0.1)
    indices, values = gradient(30, (5,), 20, 1)
    opt.step((indices, values))  # one param alone
    ref.step([dense(indices, values, SHAPE)])
    inside = touched(indices, 30)
    assert not inside.all()
    equal(p[inside], q[inside])
    opt.step([(np.array([0]), np.ones((1, 5), np.float32))])
    equal(p[~inside & (np.arange(30) > 0)], table()[~inside & (np.arange(30) > 0)])


def test_named_params_and_groups() -> None:
    p, q = table(), table(1)
    opt = adaptk.SGD([{"params": {"a": p}, "sparse": "dense"}, {"params": {"b": q}}], lr=1.0, momentum=0.9)
    for _ in range(2):
        opt.step({"a": (np.array([1]), np.ones((1, 5))), "b": (np.array([1]), np.ones((1, 5)))})
    opt.step({"a": (np.array([2]), np.ones((1, 5))), "b": (np.array([2]), np.ones((1, 5)))})
    np.testing.assert_allclose((table() - p)[1], 1 + 1.9 + 0.9 * 1.9, rtol=1e-6)
    np.testing.assert_allclose((table(1) - q)[1], 1 + 1.9, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"clip_norm": 0.5}, {"clip_norm": 1e9}, {"grad_scale": 0.25}, {"skip_nonfinite": True}]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms_and_factors_match_the_dense_gradient(options: dict[str, Any], dtype: str) -> None:
    shape = (2000, 16)
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(s).astype(dtype) for s in (shape, (700,), shape)]
    p, q = [x.copy() for x in start], [x.copy() for x in start]
    opt, ref = adaptk.AdaGrad(p, sparse="dense"), adaptk.AdaGrad(q)
    (i, v), (j, w) = gradient(2000, (16,), 90, 1, dtype), gradient(2000, (16,), 3000, 2, dtype)
    middle = rng.standard_normal(700).astype(dtype)
    for _ in range(2):
        got = opt.step([(i, v), middle, (j, w)], **options)
        want = ref.step([dense(i, v, shape, dtype), middle, dense(j, w, shape, dtype)], **options)
        assert got == want
    for x, y in zip(p, q, strict=True):
        equal(x, y)


@pytest.mark.parametrize("values", [1e200, 1e-200])
def test_norms_beyond_float64(values: float) -> None:
    p = np.zeros((9000, 2))
    opt = adaptk.SGD([p], lr=1.0)
    info = opt.step([(np.array([0, 8000]), np.full((2, 2), values))], clip_norm=1e300)
    assert info.grad_norm == pytest.approx(2 * values, rel=1e-14)


def test_steps_with_nonfinite_values_are_skipped() -> None:
    p = table()
    opt = adaptk.Adam([p], skip_nonfinite=True, sparse="catch_up")
    assert opt.step([(np.array([3, 3]), np.array([[np.inf] * 5, [1.0] * 5]))]).skipped
    assert opt.step_count == 0
    assert not opt.state[0]["last_step"].any()
    equal(p, table())


def test_maximize() -> None:
    p, q = table(), table()
    adaptk.SGD([p], lr=1.0, maximize=True).step([(np.array([2]), np.ones((1, 5)))])
    adaptk.SGD([q], lr=-0.0 + 1.0).step([(np.array([2]), -np.ones((1, 5)))])
    equal(p, q)


def test_copies_and_averages() -> None:
    p, q = table(), table()
    out, average, want = np.zeros(SHAPE, np.float16), table(3), table(3)
    grad = (np.array([2]), np.ones((1, 5), np.float32))
    adaptk.SGD([p], lr=1.0).step([grad], copy_out=[out], ema=([average], 0.5))
    adaptk.SGD([q], lr=1.0).step([dense(*grad, SHAPE)], ema=([want], 0.5))
    equal(average, want)
    equal(out, p.astype(np.float16))


def test_zero_grad_is_refused() -> None:
    p = table()
    with pytest.raises(ValueError, match=r"zero_grad: grads\[0\] has values for some rows alone"):
        adaptk.SGD([p]).step([(np.array([2]), np.ones((1, 5)))], zero_grad=True)
    equal(p, table())


def test_an_error_changes_nothing() -> None:
    p, q = table(), table(1)
    opt = adaptk.Adam([p, q])
    with pytest.raises(ValueError, match=r"grads\[1\], indices: number 0 is 30"):
        opt.step([(np.array([2]), np.ones((1, 5))), (np.array([30]), np.ones((1, 5)))])
    with pytest.raises(ValueError, match=r"grads\[1\] and params\[0\] overlap"):
        opt.step([None, (np.array([1]), p[:1])])
    assert opt.step_count == 0
    equal(p, table())
    equal(q, table(1))


# catch_up


def test_catch_up_follows_dense_and_is_saved() -> None:
    p, q = table(dtype=np.float64), table(dtype=np.float64)
    opt = adaptk.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.2, decoupled=True, sparse="catch_up")
    ref = adaptk.SGD([q], lr=0.1, momentum=0.9, weight_decay=0.2, decoupled=True)
    for t in range(12):
        indices, values = gradient(30, (5,), 6, t, np.float64)
        opt.step([(indices, values)])
        ref.step([dense(indices, values, SHAPE, np.float64)])
        if t == 5:
            opt = pickle.loads(pickle.dumps(copy.deepcopy(opt)))
            (p,) = opt.param_groups[0]["params"]
        if t == 8:
            later = adaptk.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.2, decoupled=True, sparse="catch_up")
            later.load_state_dict(opt.state_dict())
            opt = later
    assert np.abs(p - q).max() > 1e-6
    assert opt.state[0]["last_step"].dtype == np.int64
    opt.catch_up()
    np.testing.assert_allclose(p, q, rtol=1e-11)
    np.testing.assert_allclose(opt.state[0]["momentum_buffer"], ref.state[0]["momentum_buffer"], rtol=1e-11)
    assert (opt.state[0]["last_step"] == 12).all()
    opt.step([np.ones(SHAPE)])
    ref.step([np.ones(SHAPE)])
    np.testing.assert_allclose(p, q, rtol=1e-11)


def test_catch_up_of_params_without_rows() -> None:
    p, fortran, number = table(), np.ones((4, 3), np.float32, order="F"), np.ones((), np.float32)
    opt = adaptk.Adam([p, fortran, number], sparse="catch_up")
    opt.step([(np.array([1]), np.ones((1, 5))), np.ones((4, 3), np.float32, order="F"), np.ones((), np.float32)])
    assert [("last_step" in s) for s in opt.state.values()] == [True, False, False]


def test_refused_options() -> None:
    for options, error, message in [
        ({"sparse": "lasy"}, ValueError, "did you mean 'lazy'"),
        ({"sparse": None}, TypeError, "sparse: expected a string, got NoneType"),
    ]:
        with pytest.raises(error, match=message):
            adaptk.Adam([table()], **options)
    with pytest.raises(ValueError, match="'catch_up': asgd has no closed form"):
        adaptk.ASGD([table()], sparse="catch_up")
    with pytest.raises(ValueError, match=r"coupled weight decay: use decoupled=True"):
        adaptk.SGD([table()], weight_decay=0.1, sparse="catch_up").step([(np.array([1]), np.ones((1, 5)))])


# SciPy


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
@pytest.mark.parametrize("array", [False, True])
def test_matrices_of_scipy(kind: str, array: bool) -> None:
    sp = pytest.importorskip("scipy.sparse")
    make = getattr(sp, f"{kind}_{'array' if array else 'matrix'}")
    full = np.where(np.random.default_rng(0).random(SHAPE) < 0.1, table(4), 0).astype(np.float32)
    rows = np.flatnonzero(full.any(1))
    assert 0 < len(rows) < 30
    for mode in ("lazy", "dense"):
        p, q = table(), table()
        adaptk.Adam([p], sparse=mode).step([make(full)])
        adaptk.Adam([q], sparse=mode).step([(rows, full[rows])])
        equal(p, q)
    p = table()
    adaptk.ops.sgd(p, make(full), step=1, lr=1.0)
    equal(p, table() - full)


def test_duplicates_in_a_matrix_are_summed() -> None:
    sp = pytest.importorskip("scipy.sparse")
    p = np.zeros((3, 2))
    matrix = sp.coo_matrix(([1.0, 2.0, 4.0], ([1, 1, 1], [0, 0, 1])), shape=(3, 2))
    adaptk.SGD([p], lr=1.0).step([matrix])
    assert p.tolist() == [[0, 0], [-3, -4], [0, 0]]


def test_vectors_of_scipy() -> None:
    sp = pytest.importorskip("scipy.sparse")
    full = np.array([[0, 1.5, 0, 0, -2.0]])
    for matrix in (sp.csr_matrix(full), sp.csc_matrix(full.T), sp.coo_array(full), sp.csr_array(full.T)):
        p = np.zeros(5)
        adaptk.SGD([p], lr=1.0).step([matrix])
        equal(p, -full[0] + 0.0)


def test_mismatched_matrices() -> None:
    sp = pytest.importorskip("scipy.sparse")
    for p in (np.zeros((3, 2)), np.zeros(3), np.zeros((3, 4, 1))):
        with pytest.raises(ValueError, match=r"grads\[0\]: a sparse matrix of shape \(3, 4\), expected"):
            adaptk.SGD([p]).step([sp.csr_matrix((3, 4))])
    with pytest.raises(TypeError, match=r"grads\[0\], values: dtype int64"):
        adaptk.SGD([np.zeros((3, 4))]).step([sp.csr_matrix(np.eye(3, 4, dtype=np.int64))])


def test_indices_of_other_libraries() -> None:
    torch = pytest.importorskip("torch")
    p, q = table(), table()
    opt = adaptk.SGD([p], lr=1.0)
    opt.step([(torch.tensor([1, 1]), torch.ones(2, 5))])
    opt.step([(torch.tensor([2], dtype=torch.int32), np.ones((1, 5)))])
    q[1] -= 2
    q[2] -= 1
    equal(p, q)
    t = torch.ones(3, 2)
    tensors = adaptk.Adam([t], sparse="catch_up")
    tensors.step([(torch.tensor([0]), torch.ones(1, 2))])
    assert tensors.state[0]["last_step"].tolist() == [1, 0, 0]
    assert tensors.state_dict()["state.0.last_step"].dtype == torch.int64
