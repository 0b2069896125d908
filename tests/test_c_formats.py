"""States with storage formats in C: the bits of adaptk.ops and of optimizer objects, and errors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_int64, c_size_t, c_uint64
from typing import Any

import adaptk
import c_abi
import numpy as np
import pytest
from adaptk import formats
from c_abi import INVALID_ARGUMENT, INVALID_TYPE, UNKNOWN_NAME, CError, StoredPlan, lib, stored
from helpers import FLOATS, RULES, Array

SIZES = [(1,), (127,), (5, 26), (0,), (33, 31), (4099,)]
KINDS = [
    "int8",
    "uint8",
    "uint8_nearest",
    "fp8_e4m3",
    "dynamic_signed",
    "dynamic_unsigned",
    "4bit_signed",
    "4bit_unsigned",
]
KINDS += ["bfloat16_sr"] if "bfloat16" in FLOATS else []
SOME_RULES = ("adam", "momentum", "amsgrad", "adadelta", "delta_bar_delta", "nadam")


def parts(state: Any) -> list[Array]:
    return [x for x in state[:2] if x is not None] if isinstance(state, tuple) else [state]


def bits(states: Any) -> list[bytes]:
    return [x.tobytes() for s in states for x in parts(s)]


def twin(state: Any) -> Any:
    return (
        formats.Stored(*(None if x is None else x.copy() for x in state[:2]), state[2])
        if isinstance(state, tuple)
        else state.copy()
    )


def start(rule: str, kinds: list[str]) -> tuple[list[Array], list[list[Any]]]:
    """Params, and states for each, whose formats cycle through the list."""
    rng = np.random.default_rng(len(kinds))
    params = [rng.standard_normal(s).astype(np.float32) for s in SIZES]
    states = [
        [
            formats.full_like(p, 0.5, kinds[(i + k) % len(kinds)] if s.nonnegative else kinds[0])
            for k, s in enumerate(RULES[rule].states)
        ]
        for i, p in enumerate(params)
    ]
    return params, states


def gradients(seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    grads = [rng.standard_normal(s).astype(np.float32) for s in SIZES]
    grads[4][3, 3] = np.inf
    return grads


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kinds", [[k] for k in KINDS] + [["int8", "uint8", "float32", "float16"]], ids="-".join)
@pytest.mark.parametrize("rule", SOME_RULES)
def test_steps_have_the_bits_of_ops(rule: str, kinds: list[str], threads: int, restored: None) -> None:
    assert lib.adaptk_set_num_threads(threads) == c_abi.OK
    params, states = start(rule, kinds)
    twins, twin_states = [p.copy() for p in params], [[twin(s) for s in of] for of in states]
    for step in (1, 2, 7):
        grads = gradients(step)
        c_abi.step_stored(rule, params, grads, [s for of in states for s in of], step, seed=11, lr=0.01)
        listed = [list(x) for x in zip(*twin_states, strict=True)]
        getattr(adaptk.ops, rule)(twins, grads, *listed, step=step, lr=0.01, seed=11)
        assert bits(params) == bits(twins)
        assert bits(s for of in states for s in of) == bits(s for of in twin_states for s in of)
    assert not np.array_equal(params[4], start(rule, kinds)[0][4])


def test_the_seed_matters() -> None:
    results = []
    for seed in (1, 1, 2, 2**64 - 1):
        params, states = start("adam", ["int8", "uint8"])
        c_abi.step_stored("adam", params, gradients(0), [s for of in states for s in of], 3, seed)
        results.append(bits(s for of in states for s in of))
    assert results[0] == results[1]
    assert len({tuple(r) for r in results}) == 3


@pytest.mark.parametrize(
    "state_dtype",
    ["8bit", "8bit_nearest", "4bit", *(["bfloat16_sr", "bfloat16"] if "bfloat16" in FLOATS else []), "float16"],
)
@pytest.mark.parametrize("rule", ["adam", "delta_bar_delta", "momentum"])
def test_plans_have_the_bits_of_objects(rule: str, state_dtype: str) -> None:
    """Initial values, two groups, a missing gradient, and a plan that resumes with saved counts and seed."""
    opt_class = {"adam": adaptk.Adam, "delta_bar_delta": adaptk.DeltaBarDelta, "momentum": adaptk.SGD}[rule]
    params, _ = start(rule, ["int8"])
    twins = [p.copy() for p in params]
    # 0.1 is not a 16-bit number.
    options = {"lr": 0.1, **({"momentum": 0.9} if rule == "momentum" else {})}
    opt = opt_class(
        [{"params": twins[:3]}, {"params": twins[3:]}], state_dtype=state_dtype, seed=9, min_8bit_size=100, **options
    )
    info = lib.adaptk_find_rule(rule.encode())

    def state_like(p: Array, k: int) -> Any:
        """Garbage in the format of this name."""
        f = lib.adaptk_state_format(info, c_size_t(k), state_dtype.encode()).contents
        if f.block > 1 and p.size < 100:
            return np.full(p.shape, np.nan, np.float32)
        name = f.name.decode()
        if formats.is_plain(name):
            return np.full(p.shape, np.nan, FLOATS[name])
        made = formats.full_like(p, 3.0, name)
        if made.scales is not None:
            assert lib.adaptk_scale_count(byref(f), c_size_t(p.size)) == made.scales.size
        return made

    states = [state_like(p, k) for p in params for k in range(info.contents.state_count)]
    n = info.contents.state_count
    plan = StoredPlan(rule, params[:3], states[: 3 * n], **options)
    plan.add_group(rule, params[3:], states[3 * n :], **options)
    plan.init_states()
    for group in (0, 1):
        c_abi.check(lib.adaptk_plan_set_seed(plan.handle, c_size_t(group), c_uint64(9)))
    names = [s.name for s in RULES[rule].states]
    assert bits(states) == bits(opt.state[i][name] for i in range(len(params)) for name in names)
    for step in range(4):
        if step == 2:  # saved and resumed
            steps, seed = plan.steps, plan.seed
            plan = StoredPlan(rule, params, states, **options)
            plan.steps, plan.seed = steps, seed
        grads: list[Any] = list(gradients(step))
        if step == 1:
            grads[4] = None
        opt.step(grads)
        plan.step(grads)
        assert bits(params) == bits(twins)
        assert bits(states) == bits(opt.state[i][name] for i in range(len(params)) for name in names)


def test_formats_match_the_list() -> None:
    facts = adaptk._core.formats()
    assert lib.adaptk_format_count() == len(facts) > 5
    for i, want in enumerate(facts):
        f = lib.adaptk_format_at(c_size_t(i)).contents
        got = {"name": f.name.decode(), "bytes": f.bytes, "block": f.block, "stochastic": bool(f.stochastic)}
        assert got == {k: want[k] for k in got}
        assert f.dtype.bits == 8 * f.bytes
        assert f.dtype.lanes == 1
        found = lib.adaptk_find_format(f.name)
        assert ctypes.addressof(found.contents) == ctypes.addressof(f)
        counts = [lib.adaptk_scale_count(found, c_size_t(n)) for n in (0, 1, 128, 129, 2**63)]
        want = {1: [0] * 5, 128: [0, 1, 1, 2, 2**56], 256: [0, 1, 1, 1, 2**55]}
        assert counts == want[f.block]
    for rule, r in RULES.items():
        info = lib.adaptk_find_rule(rule.encode())
        for k, s in enumerate(r.states):
            for name in ("8bit", "8bit_nearest", "float16"):
                f = lib.adaptk_state_format(info, c_size_t(k), name.encode()).contents
                assert f.name.decode() == formats.format_of(name, s, 1, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 129, 5000])
def test_conversions(kind: str, size: int) -> None:
    x = np.abs(np.random.default_rng(size).standard_normal(size).astype(np.float32))
    want = formats.quantize(x, kind, seed=4, step=6)
    got = formats.full_like(x, 0.0, kind)
    values = c_abi.tensor(x)
    c_abi.check(lib.adaptk_quantize(byref(values), byref(stored(got)), c_uint64(4), c_int64(6)))
    assert bits([got]) == bits([want])
    back = np.full_like(x, np.nan)
    c_abi.check(lib.adaptk_dequantize(byref(stored(got)), byref(c_abi.tensor(back))))
    assert bits([back]) == bits([formats.dequantize(want, x.shape)])


# Refusals


def refused(status: int, text: str, run: Callable[[], Any], *arrays: Array) -> None:
    before = [a.tobytes() for a in arrays]
    with pytest.raises(CError) as e:
        run()
    assert e.value.status == status, e.value
    assert text in str(e.value), e.value
    assert [a.tobytes() for a in arrays] == before


def tensor(*shape: int, dtype: Any = np.float32) -> c_abi.Tensor:
    return c_abi.tensor(np.zeros(shape, dtype))


BAD: dict[str, tuple[int, str, Callable[[formats.Stored], Any]]] = {
    "NULL": (INVALID_ARGUMENT, ": NULL", lambda s: None),
    "data NULL": (INVALID_ARGUMENT, ", data: NULL", lambda s: stored(s, data=None)),
    "no size": (
        INVALID_ARGUMENT,
        ": size is 0, expected 32; start from adaptk_make_stored()",
        lambda s: stored(s, size=0),
    ),
    "unknown": (
        *(UNKNOWN_NAME, ": unknown format '8bit'; there are float32, float64,"),
        lambda s: stored(s, format=b"8bit"),
    ),
    "another dtype": (
        *(INVALID_TYPE, ": dtype int8, which is not that of the format uint8_nearest"),
        lambda s: stored(s, format=b"uint8_nearest"),
    ),
    "another shape": (
        *(INVALID_ARGUMENT, ": shape (300,), expected (20, 15) like its param"),
        lambda s: stored(s, data=tensor(300, dtype=np.int8)),
    ),
    "an unknown dtype": (
        *(INVALID_TYPE, ", data: dtype int32, expected float32"),
        lambda s: stored(s, data=c_abi.tensor(s.data, code=0, bits=32)),
    ),
    "float64": (INVALID_TYPE, ": dtype float64, expected float32", lambda s: stored(np.zeros((20, 15)))),
    "no scales": (INVALID_ARGUMENT, ", scales: NULL", lambda s: stored(s, scales=None)),
    "few scales": (
        *(INVALID_ARGUMENT, ", scales: shape (2,), expected (3,): one for each 128 of the state's 300 elements"),
        lambda s: stored(s, scales=tensor(2)),
    ),
    "scales of float64": (
        *(INVALID_TYPE, ", scales: dtype float64, expected float32"),
        lambda s: stored(s, scales=tensor(3, dtype=np.float64)),
    ),
    "scales with a gap": (
        *(INVALID_ARGUMENT, ", scales: strides (8,) in bytes, expected a row"),
        lambda s: stored(s, scales=c_abi.tensor(np.zeros(6, np.float32)[::2])),
    ),
    "scales too many": (
        *(INVALID_TYPE, ", scales: beside float32, which has none"),
        lambda s: stored(np.zeros((20, 15), np.float32), scales=tensor(3)),
    ),
    "scales that are data": (
        *(INVALID_ARGUMENT, "overlap in memory"),
        lambda s: stored(s, scales=c_abi.tensor(s.data.reshape(-1)[:12].view(np.float32))),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_states(what: str) -> None:
    status, text, bad = BAD[what]
    p, g = np.ones((2, 20, 15), np.float32)
    m, v = (formats.full_like(p, 0.5, kind) for kind in ("int8", "uint8"))
    arrays = [p, g, *parts(m), *parts(v)]
    where = "states[0] (exp_avg of params[0])"
    runs = {
        "step": lambda: c_abi.step_stored("adam", [p], [g], [bad(m), v], 1),
        "plan": lambda: StoredPlan("adam", [p], [bad(m), v]),
        "group": lambda: StoredPlan("sgd", [np.ones(3, np.float32)], []).add_group("adam", [p], [bad(m), v]),
    }
    for run in runs.values():
        refused(status, text, run, *arrays)
        if "overlap" not in text:
            with pytest.raises(CError) as e:
                run()
            assert str(e.value).startswith(where + text)


def test_codes_need_their_formats() -> None:
    p, g = np.ones((2, 300), np.float32)
    m = formats.full_like(p, 0.0, "int8")
    refused(
        INVALID_TYPE,
        "states[0] (momentum_buffer of params[0]): dtype int8, expected float32",
        lambda: c_abi.step("momentum", [p], [g], [m.data], 1),
        p,
        m.data,
    )
    refused(INVALID_TYPE, "params[0]: dtype int8", lambda: c_abi.step("sgd", [m.data], [m.data], [], 1), m.data)
    # Only the codes, with their dtype.
    c_abi.step_stored("momentum", [p], [g], [stored((m.data, m.scales, None))], 1)
    assert m.scales.all()
    wide = np.ones(300)
    refused(
        INVALID_TYPE,
        "dtype int8, expected float64 beside a float64 param",
        lambda: c_abi.step_stored("momentum", [wide], [wide.copy()], [m], 1),
        wide,
        m.data,
    )


def test_bad_arguments() -> None:
    x = np.ones(300, np.float32)
    s = formats.full_like(x, 0.0, "int8")
    rule = lib.adaptk_find_rule(b"adam")

    def quantize(values: Any, state: Any, step: int = 1) -> Callable[[], None]:
        return lambda: c_abi.check(lib.adaptk_quantize(values, state, c_uint64(0), c_int64(step)))

    def pointers(values: Any, state: Any) -> tuple[Any, Any]:
        return byref(values), byref(state)

    cases: list[tuple[int, str, Callable[[], None]]] = [
        (INVALID_ARGUMENT, "values: NULL", quantize(None, byref(stored(s)))),
        (INVALID_ARGUMENT, "stored: NULL", quantize(byref(c_abi.tensor(x)), None)),
        (INVALID_ARGUMENT, "step: steps are counted from 1, got 0", quantize(*pointers(c_abi.tensor(x), stored(s)), 0)),
        (
            INVALID_TYPE,
            "values: dtype float64, expected float32",
            quantize(*pointers(tensor(300, dtype=float), stored(s))),
        ),
        (
            *(INVALID_ARGUMENT, "values: strides (8,) in bytes, expected C order"),
            quantize(*pointers(c_abi.tensor(np.ones(600, np.float32)[::2]), stored(s))),
        ),
        (
            *(INVALID_ARGUMENT, "stored: shape (300,) with strides (1,) in bytes on cpu, expected shape (20, 15) in C"),
            quantize(*pointers(c_abi.tensor(x.reshape(20, 15)), stored(s))),
        ),
        (INVALID_TYPE, "stored: dtype float64", quantize(*pointers(c_abi.tensor(x), stored(np.ones(300))))),
        (INVALID_ARGUMENT, "stored, scales: NULL", quantize(*pointers(c_abi.tensor(x), stored(s, scales=None)))),
        (
            *(INVALID_ARGUMENT, "values and stored, scales overlap in memory"),
            quantize(*pointers(c_abi.tensor(x), stored(s, scales=c_abi.tensor(x[:3])))),
        ),
        (INVALID_ARGUMENT, "values: NULL", lambda: c_abi.check(lib.adaptk_dequantize(byref(stored(s)), None))),
    ]
    for status, text, run in cases:
        refused(status, text, run, x, *parts(s))

    plan = StoredPlan("momentum", [x], [s])
    seed = c_uint64()
    for call, text in (
        (lambda: lib.adaptk_plan_set_seed(None, c_size_t(0), seed), "plan: NULL"),
        (lambda: lib.adaptk_plan_set_seed(plan.handle, c_size_t(1), seed), "group: 1, expected less than 1"),
        (lambda: lib.adaptk_plan_get_seed(plan.handle, c_size_t(0), None), "seed: NULL"),
        (lambda: lib.adaptk_plan_get_seed(plan.handle, c_size_t(1), byref(seed)), "group: 1"),
        (lambda: lib.adaptk_plan_create_stored(b"sgd", None, 0, c_size_t(1), None, None, None), "plan: NULL"),
    ):
        refused(INVALID_ARGUMENT, text, lambda call=call: c_abi.check(call()))
    for pointer, text in (
        (lambda: lib.adaptk_find_format(b"int4"), "name: unknown format 'int4'; there are float32"),
        (lambda: lib.adaptk_find_format(None), "name: NULL"),
        (lambda: lib.adaptk_format_at(c_size_t(99)), "index: 99, expected less than"),
        (lambda: lib.adaptk_state_format(rule, c_size_t(2), b"8bit"), "state: 2, expected less than 2"),
        (lambda: lib.adaptk_state_format(rule, c_size_t(0), b"5bit"), "name: unknown format '5bit'"),
        (lambda: lib.adaptk_state_format(rule, c_size_t(0), None), "name: NULL"),
        (lambda: lib.adaptk_state_format(None, c_size_t(0), b"8bit"), "rule: NULL"),
        (lambda: lib.adaptk_state_format(byref(c_abi.Rule()), c_size_t(0), b"8bit"), "rule: not one of the library's"),
    ):
        assert not pointer()
        assert text in c_abi.error()
    assert lib.adaptk_scale_count(None, c_size_t(5)) == 0
    assert c_abi.error() == "format: NULL"
