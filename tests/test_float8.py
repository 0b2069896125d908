"""Params and gradients in float8: the codes of ml_dtypes and PyTorch, and stochastic rounding by arithmetic."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import init
from test_formats import bits, key_of, random_bits

ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy's float8 dtypes are in ml_dtypes")
DTYPES = {"float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn), "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2)}
# Bits of significand, the least exponent of a normal number, the largest number, and what is halfway to the next.
FACTS = {"float8_e4m3fn": (3, -6, 448.0, 464.0), "float8_e5m2": (2, -14, 57344.0, 61440.0)}
RULES = adaptk.rules()

pytestmark = pytest.mark.parametrize("name", DTYPES)


def codes(x: Any) -> np.ndarray:
    """The codes, with one code for all NaNs, whose sign and payload differ between conversions."""
    return np.where(np.isnan(x.astype(np.float32)), 0xFF, x.view(np.uint8))


def stored(x: np.ndarray, name: str, **options: Any) -> np.ndarray:
    """The param after a step from zero to x."""
    param = np.zeros(x.size, DTYPES[name])
    adaptk.ops.sgd(param, -x, lr=1.0, step=1, **options)
    return param


def numbers_of_every_kind() -> np.ndarray:
    """Each upper half of a float32 and its neighbours; without -0, as sums do not preserve its sign."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    every = np.concatenate([upper, upper + 1, upper + 0xFFFF, upper + 0x8000]).view(np.float32)
    return every[(every != 0) & ~np.isnan(every)]


def stochastic(x: np.ndarray, name: str, random: np.ndarray) -> np.ndarray:
    digits, least, largest, halfway = FACTS[name]
    a = np.abs(x.astype(np.float64))
    _, exponent = np.frexp(a)
    unit = np.ldexp(1.0, np.maximum(exponent - 1, least) - digits)
    lost = 23 - digits
    with np.errstate(invalid="ignore"):
        places = np.rint(a / unit * 2**lost)
        up = np.floor((places + random.astype(np.float64) * 2.0 ** (lost - 16)) / 2**lost) * unit
    beyond = a > halfway if name == "float8_e4m3fn" else a >= halfway
    over = np.nan if name == "float8_e4m3fn" else np.inf
    return np.copysign(np.where(beyond, over, np.minimum(up, largest)), x).astype(DTYPES[name])


def test_every_code_as_a_gradient(name: str, isa: str) -> None:
    grad = np.arange(256, dtype=np.uint8).view(DTYPES[name])
    param = np.zeros(256, np.float32)
    adaptk.ops.sgd(param, grad, lr=1.0, step=1)
    np.testing.assert_array_equal(param, -grad.astype(np.float32))
    wide = np.zeros(256)
    adaptk.ops.sgd(wide, grad, lr=1.0, step=1)
    np.testing.assert_array_equal(wide, -grad.astype(np.float64))


def test_every_code_round_trips(name: str, isa: str) -> None:
    param = np.arange(256, dtype=np.uint8).view(DTYPES[name]).copy()
    before = param.copy()
    adaptk.ops.sgd(param, np.zeros(256, np.float32), lr=1.0, step=1)
    np.testing.assert_array_equal(codes(param), codes(before))
    adaptk.ops.sgd(param, np.zeros(256, np.float32), lr=1.0, step=1, param_format="sr")
    np.testing.assert_array_equal(codes(param), codes(before))


def test_nearest(name: str, isa: str) -> None:
    x = numbers_of_every_kind()
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(DTYPES[name])
    np.testing.assert_array_equal(codes(stored(x, name)), codes(want))


def test_nearest_against_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    # New releases of PyTorch saturate in the conversion to float8_e4m3fn; ml_dtypes converts to NaN.
    x = numbers_of_every_kind()
    x = x[np.abs(x) <= 464.0] if name == "float8_e4m3fn" else x
    want = torch.from_numpy(x).to(getattr(torch, name)).view(torch.uint8).numpy().view(DTYPES[name])
    np.testing.assert_array_equal(codes(stored(x, name)), codes(want))


def test_stochastic(name: str, isa: str) -> None:
    # 65,537: more than one tile, and a group that is not full.
    some = np.random.default_rng(0).permutation(numbers_of_every_kind())[:65_537]
    got = stored(some, name, seed=5, param_format="sr")
    want = stochastic(some, name, random_bits(key_of(5, 1, 0, 0), some.size, 16))
    np.testing.assert_array_equal(codes(got), codes(want))


def test_rounding_is_unbiased(name: str) -> None:
    x = np.full(1 << 18, 1.03, np.float32)
    mean = stored(x, name, param_format="sr").astype(np.float64).mean()
    assert abs(mean - np.float32(1.03)) < 2e-3
    assert len(np.unique(stored(x, name, param_format="sr").view(np.uint8))) == 2


@pytest.mark.parametrize(
    "rule", [r if r in ("adam", "rprop", "adan") else pytest.param(r, marks=pytest.mark.full) for r in RULES]
)
def test_every_rule(rule: str, name: str, isa: str) -> None:
    """Decode, the rule's own step in float32, encode: bit for bit."""
    update = getattr(adaptk.ops, rule)
    size = 2 * 256 + 77
    rng = np.random.default_rng(1)
    for param_format in (None, "sr"):
        param = rng.standard_normal(size).astype(DTYPES[name])
        states = [np.full(size, v, np.float32) for v in RULES[rule].initial_states().values()]
        for step in range(1, 4):
            wide = rng.standard_normal(size).astype(np.float32)
            grad = wide if step == 1 else wide.astype(DTYPES[name]) if step == 2 else wide.astype(ml_dtypes.bfloat16)
            want, beside = param.astype(np.float32), [s.copy() for s in states]
            update(param, grad, *states, step=step, seed=9, param_format=param_format)
            update(want, grad, *beside, step=step)
            if param_format is None:
                np.testing.assert_array_equal(codes(param), codes(want.astype(DTYPES[name])))
            else:
                random = random_bits(key_of(9, step, 0, 0), size, 16)
                np.testing.assert_array_equal(codes(param), codes(stochastic(want, name, random)))
            for state, same in zip(states, beside, strict=True):
                np.testing.assert_array_equal(bits(state), bits(same))


@pytest.mark.parametrize("param_format", [None, "sr"])
def test_threads_and_lists(name: str, param_format: str | None) -> None:
    rng = np.random.default_rng(2)
    sizes = [1, 255, 70_001, 0, 4096]
    before = adaptk.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            adaptk.set_num_threads(threads)
            rng = np.random.default_rng(2)
            params = [rng.standard_normal(n).astype(DTYPES[name]) for n in sizes]
            opt = adaptk.AdamW(params, lr=0.1, param_format=param_format, seed=4)
            for _ in range(3):
                info = opt.step([rng.standard_normal(n).astype(np.float32) for n in sizes], clip_norm=1.0)
            results.append((info.grad_norm, [p.view(np.uint8) for p in params]))
    finally:
        adaptk.set_num_threads(before)
    (norm, first), (again, second) = results
    assert norm == again
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_small_changes_add_up(name: str) -> None:
    """A param of 1 decreases by 0.01 fifty times: rounded to nearest it stays at 1."""
    params = {f: np.ones(4096, DTYPES[name]) for f in (None, "sr")}
    for step in range(1, 51):
        for param_format, param in params.items():
            adaptk.ops.sgd(param, np.ones(4096, np.float32), lr=0.01, step=step, param_format=param_format)
    assert (params[None].astype(np.float32) == 1).all()
    assert abs(float(params["sr"].astype(np.float32).mean()) - 0.5) < 0.02


def test_accumulation_and_norms(name: str) -> None:
    total = np.zeros(1000, np.float32)
    grad = np.random.default_rng(3).standard_normal(1000).astype(DTYPES[name])
    norm = adaptk.accumulate(total, grad, norm=True)
    np.testing.assert_array_equal(total, grad.astype(np.float32))
    assert norm == pytest.approx(np.linalg.norm(grad.astype(np.float64)), rel=1e-6)


def test_resuming_is_bit_exact(name: str) -> None:
    rng = np.random.default_rng(5)
    params = [rng.standard_normal(100).astype(DTYPES[name])]
    grads = [[rng.standard_normal(100).astype(np.float32)] for _ in range(4)]
    opt = adaptk.Adam(params, lr=0.1, param_format="sr", seed=1)
    for g in grads[:2]:
        opt.step(g)
    others = [params[0].copy()]
    other = adaptk.Adam(others, lr=0.1, param_format="sr", seed=1)
    other.load_state_dict(opt.state_dict())
    for g in grads[2:]:
        opt.step(g)
        other.step(g)
    np.testing.assert_array_equal(params[0].view(np.uint8), others[0].view(np.uint8))


def test_errors(name: str) -> None:
    param = np.ones(8, DTYPES[name])
    grad = np.ones(8, np.float32)
    with pytest.raises(TypeError, match=f"momentum_buf.*dtype {name}, expected float32"):
        adaptk.ops.momentum(param, grad, np.zeros(8, DTYPES[name]), step=1)
    for param_format in ("kahan", "remainder16", "remainder8"):
        with pytest.raises(TypeError, match=f"dtype {name} cannot be stored as '{param_format}'"):
            adaptk.ops.sgd(param, grad, step=1, param_format=param_format)
        with pytest.raises(TypeError, match=f"dtype {name} cannot be stored as '{param_format}'"):
            adaptk.SGD([param], param_format=param_format)
    with pytest.raises(ValueError, match="state_dtype"):
        adaptk.Adam([param], state_dtype=name)
    assert (param.astype(np.float32) == 1).all()


def test_initial_values_are_float32_rounded(name: str, isa: str, threads: int) -> None:
    dtype = DTYPES[name]

    def check(fill: Any, shape: Any, **options: Any) -> None:
        narrow, single = (fill(np.empty(shape, of), seed=4, **options) for of in (dtype, np.float32))
        assert (codes(narrow) == codes(single.astype(dtype))).all()

    for fill in (init.uniform, init.normal, init.truncated_normal):
        for size in (0, 1, 3000, 70_001):
            check(fill, size)
        check(fill, 2000, offset=777)
    for spread in (1e-7, 1e-3, 400.0):  # subnormal numbers, and numbers beyond the largest
        check(init.normal, 3000, std=spread)
    for fill in (init.glorot_uniform, init.he_normal, init.orthogonal):
        check(fill, (40, 30))
    for value in (0.0, -0.0, 1.0, 300.0, float("inf"), float("nan")):
        x = init.constant(np.empty(5, dtype), value)
        assert (codes(x) == codes(np.full(5, value, dtype))).all()
    with pytest.raises(ValueError, match=f"value: 1e[+]06 is beyond {name}, whose largest number is"):
        init.constant(x, 1e6)


def test_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    import adaptk.torch

    rng = np.random.default_rng(6)
    start = rng.standard_normal(300).astype(DTYPES[name])
    grads = [rng.standard_normal(300).astype(np.float32) for _ in range(3)]
    for param_format in (None, "sr"):
        param = start.copy()
        ours = adaptk.AdamW([param], lr=0.1, weight_decay=0.01, param_format=param_format, seed=3)
        theirs = torch.from_numpy(start.view(np.uint8)).clone().view(getattr(torch, name))
        theirs = torch.nn.Parameter(theirs, requires_grad=False)
        opt = adaptk.torch.AdamW([theirs], lr=0.1, weight_decay=0.01, param_format=param_format, seed=3)
        for g in grads:
            ours.step([g])
            theirs.grad_dtype = None  # of any dtype
            theirs.grad = torch.from_numpy(g)
            opt.step()
        np.testing.assert_array_equal(theirs.view(torch.uint8).numpy(), param.view(np.uint8))


def test_jax(name: str) -> None:
    jax = pytest.importorskip("jax")
    adaptk_jax = pytest.importorskip("adaptk.jax", exc_type=ImportError)
    rng = np.random.default_rng(7)
    start = rng.standard_normal(300).astype(DTYPES[name])
    for param_format in (None, "sr"):
        param = start.copy()
        ours = adaptk.Adam([param], lr=0.1, param_format=param_format, seed=3)
        transformation = adaptk_jax.adam(0.1, param_format=param_format, seed=3)
        params = {"w": jax.numpy.asarray(start)}
        state = transformation.init(params)
        for _ in range(3):
            g = rng.standard_normal(300).astype(np.float32)
            ours.step([g])
            params, state = jax.jit(transformation.apply)(params, {"w": jax.numpy.asarray(g)}, state)
        np.testing.assert_array_equal(np.asarray(params["w"]).view(np.uint8), param.view(np.uint8))


def test_c(name: str) -> None:
    import c_abi

    rng = np.random.default_rng(8)
    start = [rng.standard_normal(n).astype(DTYPES[name]) for n in (1, 300)]
    grads = [rng.standard_normal(n).astype(DTYPES[name]) for n in (1, 300)]
    for stochastic_params, param_format in ((0, None), (1, "sr")):
        got, want = ([p.copy() for p in start] for _ in range(2))
        options = c_abi.options(stochastic_params=stochastic_params)
        c_abi.step_stored("sgd", got, grads, [], 1, 7, options, lr=0.1)
        adaptk.ops.sgd(want, grads, step=1, lr=0.1, seed=7, param_format=param_format)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))
    moments = [np.zeros_like(p) for p in start for _ in range(2)]
    with pytest.raises(c_abi.CError, match=f"dtype {name}, expected float32"):
        c_abi.step("adam", start, grads, moments, 1, {}, c_abi.options())
