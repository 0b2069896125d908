"""The norm of gradients, clipping, and steps that are skipped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import adaptk
import numpy as np
import pytest
from optim_cases import (
    DTYPES,
    Array,
    Case,
    Functions,
    all_bits,
    arrays,
    copies,
    every_case,
    every_dtype,
    like,
    snapshot,
)


def norm_of(grads: Sequence[Array]) -> float:
    return math.sqrt(math.fsum(float(x) * float(x) for g in grads for x in g.astype(np.float64).ravel()))


@every_dtype
@pytest.mark.parametrize("grad_scale", [1.0, 0.25, -2.0])
def test_clipping_matches_the_formula(dtype: str, grad_scale: float) -> None:
    start = arrays(dtype)
    grads = like(start, 0)
    norm = abs(grad_scale) * norm_of(grads)
    for clip in (norm / 3, norm * 3):
        params = copies(start)
        info = adaptk.SGD(params, lr=0.5).step(grads, clip_norm=clip, grad_scale=grad_scale)
        assert info.grad_norm == pytest.approx(norm, rel=1e-14)
        assert info.skipped is False
        factor = grad_scale * min(1.0, clip / info.grad_norm)
        kind = np.float64 if dtype == "float64" else np.float32
        scaled = [kind(factor) * g.astype(kind) for g in grads]
        want = [(p.astype(kind) - kind(0.5) * g).astype(p.dtype) for p, g in zip(start, scaled, strict=True)]
        assert all_bits(params) == all_bits(want)


@every_case
def test_clipping_equals_scaled_gradients(case: Case) -> None:
    start = arrays()
    reference = Functions(case.rule, start, case.hyper)
    params = copies(start)
    optimizer = case(params, clip_norm=0.5)
    for t in range(10):
        grads = like(params, t)
        norm = adaptk.global_norm(grads)
        assert optimizer.step(grads) == (norm, False)
        reference.step(grads, grad_scale=0.5 / norm)
    assert all_bits(params) == all_bits(reference.params)


def test_the_clip_norm_of_a_step_takes_precedence() -> None:
    w = np.zeros(2)
    optimizer = adaptk.SGD([w], lr=1.0, clip_norm=1.0)
    grad = np.array([3.0, 4.0])
    optimizer.step([grad], clip_norm=math.inf)
    assert w.tolist() == [-3.0, -4.0]
    optimizer.step([grad], clip_norm=2.5)
    assert w.tolist() == [-4.5, -6.0]
    optimizer.clip_norm = None
    assert optimizer.step([grad]).grad_norm is None
    optimizer.clip_norm = -1.0
    with pytest.raises(ValueError, match="clip_norm"):
        optimizer.step([grad])


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan])
def test_a_clip_out_of_range(clip_norm: float) -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        adaptk.SGD([np.zeros(2)], clip_norm=clip_norm)


def test_the_norm_is_of_gradients_scaled_by_their_group() -> None:
    grads = [np.array([6.0]), np.array([8.0])]
    params = [np.zeros(1), np.zeros(1)]
    assert adaptk.SGD(params, lr=1.0, grad_scale=0.5).step(grads, clip_norm=1.0).grad_norm == 5.0
    assert [float(p[0]) for p in params] == [-3.0 * 0.2, -4.0 * 0.2]
    groups = [{"params": params[0], "grad_scale": 0.5}, {"params": params[1], "grad_scale": -0.5}]
    assert adaptk.SGD(groups).step(grads, clip_norm=1.0, grad_scale=2.0).grad_norm == 10.0
    groups[1]["grad_scale"] = 0.0
    assert adaptk.SGD(groups).step(grads, clip_norm=1.0).grad_norm == 3.0


@pytest.fixture(scope="module")
def long_gradients() -> dict[str, Array]:
    rng = np.random.default_rng(3)
    flat = rng.normal(size=100_003) * 10.0 ** rng.integers(-3, 3, 100_003)
    return {dtype: flat.astype(kind) for dtype, kind in DTYPES.items()}


@every_dtype
@pytest.mark.usefixtures("restored")
def test_the_norm_has_the_same_bits_everywhere(long_gradients: dict[str, Array], dtype: str) -> None:
    grad = long_gradients[dtype]
    rng = np.random.default_rng(4)
    cuts = [
        [],
        [1],
        [50_000],
        sorted(rng.integers(0, grad.size, 40)),
        sorted({*range(0, 3000, 7)}),
        [1024 * i for i in range(1, 97)],
    ]
    results = set()
    for isa, n, cut in itertools.product(adaptk.available_isas(), [1, 2, 3, 8], cuts):
        adaptk.set_isa(isa)
        adaptk.set_num_threads(n)
        pieces = np.split(grad, cut)
        params = [np.zeros_like(g) for g in pieces]
        info = adaptk.SGD(params).step(pieces, clip_norm=10.0)
        assert adaptk.global_norm(pieces) == info.grad_norm
        results.add((info.grad_norm, np.concatenate(params).tobytes()))
    assert len(results) == 1
    assert next(iter(results))[0] == pytest.approx(norm_of([grad]), rel=1e-13)


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1e200, 4e307])
def test_the_norm_of_values_whose_squares_are_out_of_range(size: float) -> None:
    grads = [np.full(3, 2 * size), np.full(4, size), np.zeros(2, np.float32)]
    assert adaptk.global_norm(grads) == 4 * size
    params = [np.zeros_like(g) for g in grads]
    assert adaptk.SGD(params).step(grads, clip_norm=math.inf, grad_scale=-1.0).grad_norm == 4 * size


# Gradients that are not finite


@every_dtype
@every_case
def test_a_step_that_is_skipped_changes_nothing(case: Case, dtype: str) -> None:
    params = arrays(dtype)
    optimizer = case(params, skip_nonfinite=True)
    optimizer.step(like(params, 0))
    before = snapshot(optimizer, params)
    for value in (math.inf, -math.inf, math.nan):
        grads = like(params, 1)
        grads[-1][-1] = value
        info = optimizer.step(grads)
        assert info.skipped is True
        assert info.grad_norm is not None
        assert not math.isfinite(info.grad_norm)
        assert snapshot(optimizer, params) == before
    info = optimizer.step(like(params, 1))
    assert info.skipped is False
    assert optimizer.step_count == 2


def test_skipping_can_be_chosen_for_each_step() -> None:
    w = np.zeros(2)
    bad = [np.array([1.0, np.nan])]
    optimizer = adaptk.SGD([w], lr=1.0)
    assert optimizer.step(bad, skip_nonfinite=True).skipped
    assert w.tolist() == [0.0, 0.0]
    assert not optimizer.step(bad).skipped
    assert w[0] == -1.0
    assert np.isnan(w[1])
    optimizer.skip_nonfinite = True
    assert optimizer.step(bad).skipped
    assert not optimizer.step(bad, skip_nonfinite=False).skipped


def test_a_gradient_without_one_is_not_skipped() -> None:
    for dtype, kind in DTYPES.items():
        largest = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38, "float64": 1.7e308}[dtype]
        params = [np.zeros(64, kind)]
        info = adaptk.SGD(params, lr=0.0).step([np.full(64, largest).astype(kind)], skip_nonfinite=True)
        assert not info.skipped, dtype
    info = adaptk.SGD([np.zeros(2)]).step([np.array([np.inf, 0.0])], skip_nonfinite=True, grad_scale=0.0)
    assert info.skipped


@every_case
def test_grad_scale_of_a_step(case: Case) -> None:
    start = arrays()
    reference = Functions(case.rule, start, case.hyper)
    params = copies(start)
    optimizer = case(params)
    for t in range(5):
        grads = [g * np.float32(1024) for g in like(params, t)]
        assert optimizer.step(grads, grad_scale=1 / 1024).grad_norm is None
        reference.step(grads, grad_scale=1 / 1024)
    assert all_bits(params) == all_bits(reference.params)
    both, product = arrays(), arrays()
    case(both, grad_scale=0.5).step(like(both, 0), grad_scale=3.0)
    case(product).step(like(product, 0), grad_scale=1.5)
    assert all_bits(both) == all_bits(product)
