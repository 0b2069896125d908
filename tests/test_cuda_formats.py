"""States in formats with codes on a CUDA device: the same bits as on the CPU."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from device_arrays import Library, assert_equal
from helpers import FLOATS, RULES, Array

pytestmark = pytest.mark.cuda

# The last tile of a tensor is full, or ends in its first or second block.
SIZES = (1, 100, 129, 256, 700, 4096)
SEVERAL = ("adam", "momentum", "amsgrad", "adadelta", "nadam")
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


def put(library: Library, state: Any, offset: int = 0) -> Any:
    if not isinstance(state, formats.Stored):
        return library.put(state, offset)
    scales = None if state.scales is None else library.put(state.scales)
    return formats.Stored(library.put(state.data, offset), scales, state.format)


def parts(library: Library | None, state: Any) -> list[Array]:
    """The arrays that a state consists of, on the CPU."""
    arrays = [x for x in state[:2] if x is not None] if isinstance(state, formats.Stored) else [state]
    return [np.asarray(x) if library is None else library.get(x) for x in arrays]


def assert_same(library: Library, got: Any, want: Any, what: str) -> None:
    for x, y in zip(parts(library, got), parts(None, want), strict=True):
        assert_equal(x, y.copy(order="C"), what)


def start(rule: str, size: int, kinds: list[str], rng: np.random.Generator) -> list[Any]:
    """States whose formats cycle through the list."""
    made = []
    for i, s in enumerate(RULES[rule].states):
        x = rng.normal(size=size).astype(np.float32) * np.float32(10.0) ** rng.integers(-6, 2, size).astype(np.float32)
        kind = kinds[i % len(kinds)]
        nonnegative = s.nonnegative or kind.startswith(("uint8", "dynamic_u", "4bit_u"))
        made.append(formats.quantize(np.abs(x) if nonnegative else x, kind, seed=i))
    return made


def step_both(device: Library, rule: str, on_host: list[Any], there: list[Any], grads: list[Array], step: int) -> None:
    """The same step of [params, states] on the CPU and on the device."""
    options = {"step": step, "seed": 5}
    getattr(adaptk.ops, rule)(there[0], [device.put(g) for g in grads], *there[1], **options)
    getattr(adaptk.ops, rule)(on_host[0], grads, *on_host[1], **options)


def assert_all_same(device: Library, on_host: list[Any], there: list[Any]) -> None:
    for i, p in enumerate(on_host[0]):
        assert_equal(device.get(there[0][i]), p, f"param {i}")
        for k, of_all in enumerate(on_host[1]):
            assert_same(device, there[1][k][i], of_all[i], f"state {k} of {i}")


# Each kind is aligned with one rule and unaligned with the next.
CASES = [(rule, kind, (r + k) % 2) for r, rule in enumerate(SEVERAL) for k, kind in enumerate(KINDS)]


@pytest.mark.parametrize(("rule", "kind", "offset"), CASES)
def test_functions(device: Library, rule: str, kind: str, offset: int) -> None:
    rng = np.random.default_rng(7)
    kinds = [kind, KINDS[(KINDS.index(kind) + 1) % len(KINDS)]]
    params = [rng.normal(size=n).astype(np.float32) for n in SIZES]
    states = [list(x) for x in zip(*(start(rule, n, kinds, rng) for n in SIZES), strict=True)]
    params_there = [device.put(p, offset) for p in params]
    states_there = [[put(device, s, offset) for s in of_all] for of_all in states]
    before = [(s.data.copy(), None if s.scales is None else s.scales.copy()) for s in states[0]]
    for step in (1, 2):
        grads = [rng.normal(size=n).astype(np.float32) for n in SIZES]
        grads[4][3] = np.inf  # spoils no other element
        step_both(device, rule, [params, states], [params_there, states_there], grads, step)
    assert_all_same(device, [params, states], [params_there, states_there])
    # In 4 bits the codes of elements far below the largest stay the same, and the scales change.
    assert any(
        not (np.array_equal(data, s.data) and np.array_equal(scales, s.scales))
        for (data, scales), s in zip(before, states[0], strict=True)
    )


COMBINATIONS = [(p, g) for p in ("float32", "bfloat16") for g in ("float32", "bfloat16")]


def awkward_blocks(size: int, rng: np.random.Generator) -> Array:
    """Gradients with finite, zero, tiny, huge and infinite blocks of 128, and some with NaN: neighbors differ."""
    scales = np.array([1.0, 0.0, 1e-33, 1e19, np.inf, 1.0, np.nan, 1e-20], np.float32)
    blocks = [rng.normal(size=128).astype(np.float32) for _ in range(-(-size // 128))]
    for i, block in enumerate(blocks):
        scale = scales[i % len(scales)]
        if np.isfinite(scale):
            block *= scale
        else:
            block[i % 128] = scale
    return np.concatenate(blocks)[:size]


@pytest.mark.skipif("bfloat16" not in FLOATS, reason="NumPy's bfloat16 is in ml_dtypes")
@pytest.mark.parametrize("rule", ["adam", "amsgrad", "adan", "adagrad", "yogi"])
@pytest.mark.parametrize(("param", "grad"), COMBINATIONS)
def test_states_in_8_bits(device: Library, rule: str, param: str, grad: str) -> None:
    """With these formats, kernels know those of the states when they are compiled. Blocks with codes or values that are
    not finite, that are zero, or are too small to be divided by, stand beside others in one warp; the launch has
    tensors in other formats too, which the same warps step."""
    rng = np.random.default_rng(11)
    sizes, kinds = (4096 + 77, 256, 2048, 300), [["8bit"] * 3 + ["float32"], ["8bit"] * 4]
    for of_tensors in kinds:
        params = [rng.normal(size=n).astype(FLOATS[param]) for n in sizes]
        states: list[list[Any]] = [[] for _ in RULES[rule].states]
        for n, kind in zip(sizes, of_tensors, strict=True):
            for made, s in zip(states, RULES[rule].states, strict=True):
                x = rng.normal(size=n).astype(np.float32)
                if kind == "float32":
                    made.append(np.abs(x) if s.nonnegative else x)
                    continue
                of = formats.quantize(np.abs(x) if s.nonnegative else x, "uint8" if s.nonnegative else "int8", seed=1)
                of.data[rng.integers(0, n, n // 200)] = 255 if s.nonnegative else -128
                made.append(of)
        params_there = [device.put(p) for p in params]
        states_there = [[put(device, s) for s in of_all] for of_all in states]
        for step in (3, 4):
            grads = [awkward_blocks(n, rng).astype(FLOATS[grad]) for n in sizes]
            step_both(device, rule, [params, states], [params_there, states_there], grads, step)
            assert_all_same(device, [params, states], [params_there, states_there])


CHOICES: list[Any] = ["8bit", "8bit_nearest", "8bit_dynamic", "fp8_e4m3", "4bit"]
CHOICES += [{"exp_avg": "8bit", "exp_avg_sq": "float16"}]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("state_dtype", CHOICES, ids=str)
def test_objects(device: Library, state_dtype: Any, skip: bool) -> None:
    """With `skip` the device counts the steps, and random bits depend on that count."""
    rng = np.random.default_rng(3)
    params = [rng.normal(size=n).astype(np.float32) for n in SIZES]
    there = [device.put(p) for p in params]
    options = {"lr": 0.01, "state_dtype": state_dtype, "min_8bit_size": 200, "seed": 11, "skip_nonfinite": skip}
    on_device, on_host = adaptk.Adam(there, **options), adaptk.Adam(params, **options)
    for t in range(4):
        grads = [rng.normal(size=n).astype(np.float32) for n in SIZES]
        if skip and t == 1:
            grads[3][9] = np.inf
        got = on_device.step([device.put(g) for g in grads], clip_norm=1.0 if t == 2 else None)
        want = on_host.step(grads, clip_norm=1.0 if t == 2 else None)
        assert got == want
    assert on_device.step_count == on_host.step_count == (3 if skip else 4)
    for key, states in on_host.state.items():
        assert_equal(device.get(there[int(key)]), params[int(key)], key)
        for name, state in states.items():
            assert_same(device, on_device.state[key][name], state, f"{name} of {key}")


@pytest.mark.parametrize(
    ("of", "to"),
    [
        ("8bit", "8bit"),
        ("8bit", None),
        (None, "8bit"),
        ("8bit", "8bit_nearest"),
        ("8bit_dynamic", "fp8_e4m3"),
        ("8bit", "4bit"),
    ],
)
def test_saved_on_one_and_loaded_on_the_other(device: Library, of: str | None, to: str | None) -> None:
    rng = np.random.default_rng(4)
    params = [rng.normal(size=n).astype(np.float32) for n in SIZES]
    grads = [[rng.normal(size=n).astype(np.float32) for n in SIZES] for _ in range(4)]
    there = [device.put(p) for p in params]
    first = adaptk.Adam(there, state_dtype=of, seed=2)
    for g in grads[:2]:
        first.step([device.put(x) for x in g])
    saved = {name: device.get(x) if hasattr(x, "host") else x for name, x in first.state_dict().items()}
    copies = [device.get(p) for p in there]
    again = [device.put(p) for p in copies]
    on_device, on_host = adaptk.Adam(again, state_dtype=to), adaptk.Adam(copies, state_dtype=to)
    for optimizer in (on_device, on_host):
        optimizer.load_state_dict(saved)
    for g in grads[2:]:
        on_device.step([device.put(x) for x in g])
        on_host.step(g)
    for p, q in zip(again, copies, strict=True):
        assert_equal(device.get(p), q)


def test_lookahead(device: Library) -> None:
    rng = np.random.default_rng(5)
    params = [rng.normal(size=n).astype(np.float32) for n in SIZES]
    there = [device.put(p) for p in params]
    options: dict[str, Any] = {"lr": 0.01, "nesterov": True, "state_dtype": "8bit", "min_8bit_size": 0}
    on_device, on_host = adaptk.RMSProp(there, **options), adaptk.RMSProp(params, **options)
    for _ in range(2):
        grads = [rng.normal(size=n).astype(np.float32) for n in SIZES]
        with on_device.lookahead(), on_host.lookahead():
            for p, q in zip(there, params, strict=True):
                assert_equal(device.get(p), q)
        on_device.step([device.put(g) for g in grads])
        on_host.step(grads)


def test_scales_on_another_device(device: Library) -> None:
    """Scales must be on the device of their codes."""
    p = np.zeros(300, np.float32)
    made = formats.full_like(p, 0.0, "int8")
    for wrong in (
        formats.Stored(device.put(made.data), made.scales, "int8"),
        formats.Stored(made.data, device.put(made.scales), "int8"),
    ):
        with pytest.raises(ValueError, match="momentum_buffer"):
            adaptk.ops.momentum(device.put(p), device.put(p), wrong, step=1)


@pytest.mark.skipif("bfloat16" not in FLOATS, reason="NumPy's bfloat16 is in ml_dtypes")
@pytest.mark.parametrize("param_format", [None, "sr"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_params_in_float8(device: Library, dtype: str, param_format: str | None) -> None:
    narrow = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype))
    rng = np.random.default_rng(6)
    options = {"lr": 0.1, "seed": 3, "param_format": param_format}
    params = [rng.normal(size=n).astype(narrow) for n in SIZES]
    there = [device.put(p) for p in params]
    here, on_device = adaptk.Adam(params, **options), adaptk.Adam(there, **options)
    for of in (np.float32, narrow):
        grads = [rng.normal(size=n).astype(of) for n in SIZES]
        assert here.step(grads, clip_norm=1.0) == on_device.step([device.put(g) for g in grads], clip_norm=1.0)
    for i, p in enumerate(params):
        assert_equal(device.get(there[i]), p, f"param {i}")


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("state_dtype", ["float32", "8bit"])
def test_params_that_are_rounded_stochastically(device: Library, state_dtype: str, capturable: bool) -> None:
    """Several tensors, one of them float32 and stored as usual; the device's own count gives the same bits."""
    rng = np.random.default_rng(5)
    options = {"lr": 1e-3, "state_dtype": state_dtype, "min_8bit_size": 200, "seed": 3, "param_format": "sr"}
    params = [rng.normal(size=n).astype(np.float32 if n == 129 else FLOATS["bfloat16"]) for n in SIZES]
    start = [p.copy() for p in params]
    there = [device.put(p) for p in params]
    here, on_device = adaptk.Adam(params, **options), adaptk.Adam(there, capturable=capturable, **options)
    nearest = adaptk.Adam(start, **{**options, "param_format": None})
    for _ in range(2):
        grads = [rng.normal(size=n).astype(np.float32) for n in SIZES]
        here.step(grads)
        nearest.step(grads)
        on_device.step([device.put(g) for g in grads])
    for i, p in enumerate(params):
        assert_equal(device.get(there[i]), p, f"param {i}")
    assert not np.array_equal(params[-1], start[-1])
