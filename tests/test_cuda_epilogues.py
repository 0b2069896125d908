"""Epilogues of a step and sums of gradients on a CUDA device: the same bits as on the CPU."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from device_arrays import Library, assert_equal
from helpers import FLOATS, THREE_RULES, arguments, make

pytestmark = pytest.mark.cuda

SIZES = (1, 0, 100, 256, 300, 600)


def numbers(n: int, seed: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng([seed, n]).standard_normal(n).astype(dtype)


def compare(library: Library, there: Any, here: Any, what: str) -> None:
    for x, y in zip(there, here, strict=True):
        assert_equal(library.get(x), y, what)


CASES = [(rule, param, 0.99) for rule in THREE_RULES for param in FLOATS] + [("sgd", param, 0.25) for param in FLOATS]


@pytest.mark.parametrize(("rule", "param", "decay"), CASES)
def test_functions(device: Library, rule: str, param: str, decay: float) -> None:
    others = ["float64"] if param == "float64" else [name for name in FLOATS if name != "float64"]
    tensors = [make(rule, n, param, "float32", seed=i) for i, n in enumerate(SIZES)]
    here = [[t[name] for t in tensors] for name in arguments(rule)]
    copies = [np.zeros(n, FLOATS[others[i % len(others)]]) for i, n in enumerate(SIZES)]
    means = [numbers(n, 5, FLOATS[others[(i + 1) % len(others)]]) for i, n in enumerate(SIZES)]
    there = [[device.put(x, i % 2) for i, x in enumerate(of)] for of in here]
    copies_there, means_there = ([device.put(x) for x in of] for of in (copies, means))
    update = getattr(adaptk.ops, rule)
    update(*there, step=3, zero_grad=True, copy_out=copies_there, ema=(means_there, decay))
    update(*here, step=3, zero_grad=True, copy_out=copies, ema=(means, decay))
    for name, x, y in zip(arguments(rule), there, here, strict=True):
        compare(device, x, y, name)
    compare(device, copies_there, copies, "copy")
    compare(device, means_there, means, "average")
    assert not any(device.get(g).any() for g in there[1])


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_objects(device: Library, clip: float | None, known: bool) -> None:
    """One param has no gradient; the second step is skipped, which only the device knows if it computes the norm."""
    here = [numbers(n, 0) for n in SIZES]
    there = [device.put(p) for p in here]
    options: dict[str, Any] = {"lr": 0.1, "clip_norm": clip, "skip_nonfinite": True, "grad_scale": 0.75}
    opt, other = adaptk.AdamW(there, **options), adaptk.AdamW(here, **options)
    halves, means = [np.zeros(n, np.float16) for n in SIZES], [numbers(n, 2) for n in SIZES]
    halves_there, means_there = ([device.put(x) for x in of] for of in (halves, means))
    for k in range(3):
        grads: list[Any] = [numbers(n, 3 + k) for n in SIZES]
        if k == 1:
            grads[-1][7] = np.inf
        grads[2] = None
        grads_there = [None if g is None else device.put(g) for g in grads]
        norm = adaptk.global_norm([g for g in grads if g is not None]) if known else None
        infos = [
            o.step(g, zero_grad=True, copy_out=h, ema=(m, 0.75), grad_norm=norm)
            for o, g, h, m in ((opt, grads_there, halves_there, means_there), (other, grads, halves, means))
        ]
        assert infos[0] == infos[1]
        assert infos[0].skipped == (k == 1)
        assert not any(device.get(g).any() for g in grads_there if g is not None)
        for x, y, what in ((there, here, "param"), (halves_there, halves, "copy"), (means_there, means, "average")):
            compare(device, x, y, what)
    assert opt.step_count == other.step_count == 2


@pytest.mark.parametrize("into", [np.float32, np.float64])
@pytest.mark.parametrize("grad", FLOATS)
def test_sums_of_gradients(device: Library, into: Any, grad: str) -> None:
    sums, grads = [numbers(n, 0, into) for n in SIZES], [numbers(n, 1, FLOATS[grad]) for n in SIZES]
    there = [device.put(x) for x in sums]
    given = [device.put(g) for g in grads]
    assert adaptk.accumulate(there, given, 0.3, norm=True) == adaptk.accumulate(sums, grads, 0.3, norm=True)
    compare(device, there, sums, "sum")
    assert adaptk.accumulate(there, given) is None
    adaptk.accumulate(sums, grads)
    compare(device, there, sums, "sum")


def test_overlap(device: Library) -> None:
    w = [device.put(np.ones(4, np.float32)) for _ in range(2)]
    grad = device.put(np.ones(4, np.float32))
    with pytest.raises(ValueError, match=r"grad\[[01]\] and grad\[[01]\] overlap"):
        adaptk.ops.sgd(w, [grad, grad], step=1, zero_grad=True)
    with pytest.raises(ValueError, match="overlap"):
        adaptk.ops.sgd(w[0], grad, step=1, ema=(w[0], 0.5))
    with pytest.raises(ValueError, match=r"copy_out: on the CPU|copy_out: on "):
        adaptk.ops.sgd(w[0], grad, step=1, copy_out=np.zeros(4, np.float16))
    assert (device.get(w[0]) == 1).all()
    assert (device.get(grad) == 1).all()


@pytest.mark.skipif("bfloat16" not in FLOATS, reason="NumPy's bfloat16 is in ml_dtypes")
@pytest.mark.parametrize("param_format", formats.SIDES)
@pytest.mark.parametrize("into", [np.float32, np.float16])
def test_split_params(device: Library, param_format: str, into: Any) -> None:
    """Copies and averages use the whole value, not its upper half; remainders may have any alignment."""
    here = [formats.split_param(numbers(n, 7), param_format) for n in SIZES]
    there = [(device.put(p), device.put(s, 1 if i % 2 else 0)) for i, (p, s) in enumerate(here)]
    copies, means = ([numbers(n, k, into) for n in SIZES] for k in (2, 3))
    copies_there, means_there = [device.put(x) for x in copies], [device.put(x) for x in means]
    for step in (1, 2):
        grads = [numbers(n, 3 + step) for n in SIZES]
        grads_there = [device.put(g) for g in grads]
        options: dict[str, Any] = {"step": step, "lr": 1e-3, "param_format": param_format, "zero_grad": True}
        adaptk.ops.sgd(here, grads, copy_out=copies, ema=(means, 0.25), **options)
        adaptk.ops.sgd(there, grads_there, copy_out=copies_there, ema=(means_there, 0.25), **options)
        assert not any(device.get(g).any() for g in grads_there)
    compare(device, [p for p, _ in there], [p for p, _ in here], "param")
    compare(device, [s for _, s in there], [s for _, s in here], "what lies beside it")
    compare(device, copies_there, copies, "copy")
    compare(device, means_there, means, "average")
    whole = [formats.join_param(*pair, param_format) for pair in here]
    assert all((c == w.astype(into)).all() for c, w in zip(copies, whole, strict=True))


@pytest.mark.skipif("bfloat16" not in FLOATS, reason="NumPy's bfloat16 is in ml_dtypes")
def test_objects_with_split_params(device: Library) -> None:
    here = [numbers(n, 1, FLOATS["bfloat16"]) for n in SIZES]
    there = [device.put(p) for p in here]
    copies, means = ([numbers(n, k) for n in SIZES] for k in (2, 3))
    copies_there, means_there = [device.put(x) for x in copies], [device.put(x) for x in means]
    opt, other = (adaptk.Adam(p, lr=1e-3, param_format="remainder16") for p in (here, there))
    for step in (1, 2):
        grads = [numbers(n, 3 + step) for n in SIZES]
        opt.step(grads, copy_out=copies, ema=(means, 0.25))
        other.step([device.put(g) for g in grads], copy_out=copies_there, ema=(means_there, 0.25))
    compare(device, there, here, "param")
    compare(device, copies_there, copies, "copy")
    compare(device, means_there, means, "average")
