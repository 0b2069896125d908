"""The look-ahead of Algorithm 8.6."""

from __future__ import annotations

import math

import adaptk
import numpy as np
import pytest
from optim_cases import (
    CASES,
    DTYPES,
    Array,
    Case,
    all_bits,
    arrays,
    bits,
    every_dtype,
    in_another_process,
    like,
    snapshot,
)


@every_dtype
def test_the_interim_point_is_exact(dtype: str) -> None:
    params = arrays(dtype)
    optimizer = adaptk.RMSProp(params, lr=0.1, nesterov=True, momentum=0.7)
    kind = np.float64 if dtype == "float64" else np.float32
    for t in range(4):
        before = snapshot(optimizer, params)
        velocity = [s["velocity"] for s in optimizer.state.values()]
        want = [(p.astype(kind) + kind(0.7) * v).astype(p.dtype) for p, v in zip(params, velocity, strict=True)]
        with optimizer.lookahead():
            assert all_bits(params) == all_bits(want)
        assert snapshot(optimizer, params) == before
        optimizer.step(like(params, t))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_algorithm_8_6(dtype: str) -> None:
    kind = DTYPES[dtype]
    lr, rho, rest, eps, alpha = map(kind, (0.01, 0.9, 1 - 0.9, 1e-6, 0.9))
    (w,) = arrays(dtype, shapes=[(6,)])
    p, r, v = w.copy(), np.zeros_like(w), np.zeros_like(w)
    optimizer = adaptk.RMSProp(w, lr=0.01, nesterov=True)
    for _ in range(100):
        with optimizer.lookahead():
            grad = kind(2) * w
        optimizer.step([grad])
        g = kind(2) * (p + alpha * v)
        r = rho * r + rest * (g * g)
        v = alpha * v - lr * g / np.sqrt(r + eps)
        p = p + v
    assert bits(w) == bits(p)
    assert np.abs(w).max() < np.abs(arrays(dtype, shapes=[(6,)])[0]).max()


def moving(dtype: str = "float32") -> tuple[list[Array], adaptk.Optimizer]:
    params = arrays(dtype)
    optimizer = adaptk.RMSProp(params, nesterov=True)
    for t in range(2):
        optimizer.step(like(params, t))
    return params, optimizer


@every_dtype
def test_params_are_restored_after_any_block(dtype: str) -> None:
    params, optimizer = moving(dtype)
    before = snapshot(optimizer, params)
    with optimizer.lookahead():
        assert all_bits(params) != before["params"]
    assert snapshot(optimizer, params) == before
    with pytest.raises(LookupError), optimizer.lookahead():
        raise LookupError
    assert snapshot(optimizer, params) == before
    with pytest.raises(RuntimeError, match=r"step\(\) inside lookahead"), optimizer.lookahead():
        optimizer.step(like(params, 5))
    assert snapshot(optimizer, params) == before
    with pytest.raises(RuntimeError, match=r"lookahead\(\) inside lookahead"), optimizer.lookahead():  # noqa: SIM117
        with optimizer.lookahead():
            pass
    assert snapshot(optimizer, params) == before
    with optimizer.lookahead():
        params[0][:] = math.nan
    assert snapshot(optimizer, params) == before
    optimizer.step(like(params, 2))
    assert optimizer.step_count == 3


def test_a_param_made_read_only_in_the_block_is_restored() -> None:
    params, optimizer = moving()
    want = all_bits(params)
    with optimizer.lookahead():
        params[1].setflags(write=False)
    assert all_bits(params) == want


def test_a_param_that_is_resized_in_the_block() -> None:
    code = """
import numpy as np, adaptk
w, v = np.arange(4.0), np.arange(5.0)
optimizer = adaptk.RMSProp([w, v], nesterov=True)
optimizer.step([w + 1, v + 1])
want = v.copy()
try:
    with optimizer.lookahead():
        assert (v != want).all()
        w.resize(100_000, refcheck=False)
except RuntimeError as error:
    assert "params[0]: its shape, layout or dtype changed inside lookahead()" in str(error), error
else:
    raise AssertionError("no error")
assert (v == want).all()
"""
    in_another_process(code)


def test_no_group_is_added_inside_the_block() -> None:
    code = """
import numpy as np, adaptk
w = np.ones(4)
optimizer = adaptk.RMSProp([w], nesterov=True)
try:
    with optimizer.lookahead():
        optimizer.add_param_group({"params": [np.zeros(100_000)]})
except RuntimeError as error:
    assert "inside lookahead" in str(error), error
else:
    raise AssertionError
assert len(optimizer.param_groups) == 1
optimizer.step([w + 1])
"""
    in_another_process(code)


def test_the_momentum_of_each_group() -> None:
    params = [np.zeros(1), np.zeros(1)]
    groups = [{"params": p, "momentum": m} for p, m in zip(params, (0.5, 0.25), strict=True)]
    optimizer = adaptk.RMSProp(groups, nesterov=True)
    for s in optimizer.state.values():
        s["velocity"][:] = 1.0
    with optimizer.lookahead():
        assert [p[0] for p in params] == [0.5, 0.25]
    optimizer.param_groups[0]["momentum"] = 2.0
    with optimizer.lookahead():
        assert [p[0] for p in params] == [2.0, 0.25]
    optimizer.param_groups[1]["momentum"] = math.nan
    with pytest.raises(ValueError, match="momentum"), optimizer.lookahead():
        pass
    assert [p[0] for p in params] == [0.0, 0.0]


@pytest.mark.parametrize("case", [c for c in CASES if c.rule != "rmsprop_nesterov"], ids=lambda c: c.rule)
def test_other_rules_have_no_interim_point(case: Case) -> None:
    params = arrays()
    optimizer = case(params)
    with pytest.raises(ValueError, match=f"a group here runs {case.rule}"), optimizer.lookahead():
        raise AssertionError("the block ran")
    assert all_bits(params) == all_bits(arrays())


def test_no_interim_point_if_one_group_has_none() -> None:
    params = arrays()
    groups = [{"params": params[0]}, {"params": params[1], "nesterov": False}]
    optimizer = adaptk.RMSProp(groups, nesterov=True)
    with pytest.raises(ValueError, match="a group here runs rmsprop"), optimizer.lookahead():
        pass
    assert all_bits(params) == all_bits(arrays())
