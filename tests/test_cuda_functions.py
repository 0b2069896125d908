"""The functions of adaptk.ops and the norm on a CUDA device have the bits of the same calls on the CPU.

All NaNs are equal; everything else must match exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import adaptk
import numpy as np
import pytest
from device_arrays import Library, assert_equal
from helpers import FLOATS, PAIRS, RULES, SOME_PAIRS, THREE_RULES, Array, arguments, call, copies, dtype_of

pytestmark = pytest.mark.cuda

every_rule = pytest.mark.parametrize("rule", RULES)
# A warp, a tile, the tiles of a block, a leaf of the norm, and their neighbours.
SIZES = [0, 1, 7, 31, 32, 33, 255, 256, 257, 511, 1000, 1025, 8191, 8193, 20011]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-40, -1e-42, 1e-310, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan, 1e-20, 65504.0, 6e-8]
SIGNED = ("param", "grad", "momentum_buffer", "velocity", "bar", "exp_avg", "exp_avg_diff", "grad_avg", "prev")


def values(argument: str, shape: int | Sequence[int], dtype: np.dtype[Any], seed: int, special: bool = True) -> Array:
    """Numbers of many magnitudes, with special values."""
    rng = np.random.default_rng([seed, *argument.encode()])
    n = int(np.prod(shape))
    x = rng.normal(size=n) * 10.0 ** rng.uniform(-6, 2, size=n)
    if not argument.startswith(SIGNED):
        x = np.abs(x)
    if special:
        at = rng.random(n) < 0.15
        x[at] = rng.choice(SPECIAL, size=int(at.sum()))
    with np.errstate(all="ignore"):
        return x.astype(dtype).reshape(shape)


def buffers(
    rule: str, shapes: Sequence[Any], types: Sequence[tuple[str, str]], seed: int = 0, special: bool = True
) -> dict[str, Any]:
    """Lists of arrays for every buffer of a rule, with cycling types of params and gradients."""
    made: dict[str, Any] = {name: [] for name in arguments(rule)}
    for i, shape in enumerate(shapes):
        for name in made:
            dtype = dtype_of(name, *types[i % len(types)])
            made[name].append(values(name, shape, dtype, seed + i, special))
    return made


def first(several: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x[0] for name, x in several.items()}


def changed(rule: str) -> dict[str, Any]:
    """Every hyperparameter with a value that is not its default."""
    found: dict[str, Any] = {}
    for h in RULES[rule].hyperparameters:
        if h.range == "bool":
            found[h.name] = not h.default
        elif h.name == "grad_scale":
            found[h.name] = -1.75
        elif h.range in ("[0, 1)", "(0, 1)", "[0, 1]"):
            found[h.name] = 0.3 + 0.5 * h.default
        elif h.default in (0.0, np.inf):
            found[h.name] = 0.03
        else:
            found[h.name] = 1.25 * h.default
    if rule == "delta_bar_delta":
        found["eta_max"] = 0.5
    return found


def assert_equals_cpu(library: Library, rule: str, host: Mapping[str, Any], offset: Any = None, **hyper: Any) -> None:
    """A call on the device writes the same as on the CPU, and nothing else."""
    on_device = library.put_all(host, offset) if offset else library.put_all(host)
    want = copies(host)
    call(rule, on_device, **hyper)
    call(rule, want, **hyper)
    assert_equal(library.get_all(on_device), want)


# Types, sizes and options


def pairs_of(rule: str) -> list[tuple[str, str]]:
    """Every pair for three rules, as loads and stores do not depend on the rule. For the others, one pair per compute
    type, which varies. `test_every_option` has equal types, which have their own kernels."""
    if rule in THREE_RULES:
        return PAIRS
    wide = [pair for pair in SOME_PAIRS if pair[0] == "float64"]
    narrow = [pair for pair in SOME_PAIRS if pair[0] != "float64"]
    return [*wide, narrow[list(RULES).index(rule) % len(narrow)]]


@pytest.mark.parametrize(("rule", "param", "grad"), [(rule, *pair) for rule in RULES for pair in pairs_of(rule)])
def test_every_type(device: Library, rule: str, param: str, grad: str) -> None:
    host = buffers(rule, SIZES if rule in THREE_RULES else SIZES[1:12:2], [(param, grad)])
    assert_equals_cpu(device, rule, host, **changed(rule))


@pytest.mark.parametrize("rule", THREE_RULES)
def test_every_size_by_itself(device: Library, rule: str) -> None:
    for i, n in enumerate(SIZES):
        host = first(buffers(rule, [n], [PAIRS[i % len(PAIRS)]], seed=i))
        assert_equals_cpu(device, rule, host)


OPTIONS: list[dict[str, Any]] = [
    {"step": 1},
    {"step": 10_000_019},
    {"weight_decay": 0.03},
    {"weight_decay": 0.03, "decoupled": True},
    {"maximize": True},
    {"maximize": True, "weight_decay": 0.2, "grad_scale": 1 / 3},
    {"grad_scale": -2.5, "decoupled": True, "weight_decay": 1e-4},
    {"grad_scale": 0.0},
]


@every_rule
def test_every_option(device: Library, rule: str) -> None:
    types = [("float32", "float32"), ("float64", "float64"), *[(t, t) for t in FLOATS if "16" in t]]
    flags = [{h.name: not h.default} for h in RULES[rule].hyperparameters if h.range == "bool"]
    conventions = [RULES[rule].defaults(c) for c in RULES[rule].conventions[1:]]
    # All rules share one function for this: three rules are enough.
    common = OPTIONS if rule in THREE_RULES else [OPTIONS[1], OPTIONS[5], OPTIONS[6]]
    for seed, options in enumerate([*common, *flags, *conventions]):
        assert_equals_cpu(device, rule, buffers(rule, [5, 300, 33, 129], types, seed), **options)


@every_rule
def test_several_steps(device: Library, rule: str) -> None:
    host = buffers(rule, [3, 700], [("float32", "float32"), ("bfloat16" if "bfloat16" in FLOATS else "float16",) * 2])
    on_device = device.put_all(host)
    for t in range(1, 4):
        call(rule, on_device, step=t, **changed(rule))
        call(rule, host, step=t, **changed(rule))
    assert_equal(device.get_all(on_device), host)


@pytest.mark.parametrize("rule", THREE_RULES)
def test_every_schedule(device: Library, rule: str, schedule: int) -> None:
    assert_equals_cpu(device, rule, buffers(rule, [257, 0, 1, 600, 33], PAIRS, seed=schedule), **changed(rule))


@pytest.mark.parametrize("rule", ["sgd", "adam", "adan"])
def test_every_library(library: Library, rule: str) -> None:
    pairs = [p for p in PAIRS if library.has(p[0]) and library.has(p[1])]
    assert_equals_cpu(library, rule, buffers(rule, [257, 1000, 1, 4, 0, 31] * 2, pairs))
    for pair in pairs:
        assert_equals_cpu(library, rule, first(buffers(rule, [100], [pair])))


@pytest.mark.parametrize("rule", ["sgd", "adamw", "nadam"])
def test_a_large_tensor(device: Library, rule: str) -> None:
    # Then every block of a real device has several tiles.
    host = buffers(rule, [400_009, 3], [("float32", "bfloat16" if "bfloat16" in FLOATS else "float16")])
    assert_equals_cpu(device, rule, host)


# Layouts


@pytest.mark.parametrize("rule", ["sgd", "adam", "amsgrad", "adan"])
def test_memory_that_is_not_aligned(device: Library, rule: str) -> None:
    sizes = [1, 31, 257, 1000]
    for offset in range(1, 8):
        pair = PAIRS[offset % len(PAIRS)]
        assert_equals_cpu(device, rule, buffers(rule, sizes, [pair]), lambda name, n=offset: n)
        # Only one of them: the others could be read by vectors.
        one = arguments(rule)[offset % len(arguments(rule))]
        assert_equals_cpu(
            device, rule, buffers(rule, sizes, [pair]), lambda name, n=offset, one=one: n if name == one else 0
        )


def test_aligned_and_unaligned_in_one_call(device: Library) -> None:
    host = buffers("adam", [257] * 6, PAIRS)
    on_device = {name: [device.put(a, i % 3) for i, a in enumerate(x)] for name, x in host.items()}
    call("adam", on_device)
    call("adam", host)
    assert_equal(device.get_all(on_device), host)


LAYOUTS = [
    ((), ()),
    ((1,), (0,)),
    ((1, 1, 1), (2, 0, 1)),
    ((6, 11), (1, 0)),
    ((3, 5, 7), (2, 0, 1)),
    ((4, 1, 9), (1, 2, 0)),
]


@pytest.mark.parametrize("rule", ["sgd", "adam", "lion"])
def test_layouts_that_fill_one_piece_of_memory(library: Library, rule: str) -> None:
    host = buffers(rule, [shape for shape, _ in LAYOUTS], [("float32", "float32"), ("float64", "float64")])
    host = {name: [a.transpose(axes) for a, (_, axes) in zip(x, LAYOUTS, strict=True)] for name, x in host.items()}
    on_device = library.put_all(host)
    want = {name: [a.copy(order="K") for a in x] for name, x in host.items()}
    assert [a.strides for a in want["param"]][3:] != [np.ascontiguousarray(a).strides for a in want["param"]][3:]
    call(rule, on_device)
    call(rule, want)
    assert_equal(library.get_all(on_device), want)


def test_grads_in_one_piece_of_memory(device: Library) -> None:
    host = first(buffers("sgd", [1000], [("float32", "float32")]))
    grad = device.put(host["grad"])
    params = [device.put(host["param"][at : at + 100].copy()) for at in range(0, 1000, 100)]
    adaptk.ops.sgd(params, [device.part(grad, at, (100,)) for at in range(0, 1000, 100)], step=1)
    adaptk.ops.sgd(host["param"], host["grad"], step=1)
    assert_equal(np.concatenate([device.get(p) for p in params]), host["param"])


# Lists


@pytest.mark.parametrize("count", [1, 3, 34, 48, 49, 50, 51, 400])
@pytest.mark.parametrize("rule", ["sgd", "adam", "adan"])
def test_lists_whose_tables_fit_into_a_launch_or_not(device: Library, rule: str, count: int) -> None:
    sizes = [(1, 0, 33, 7, 256)[i % 5] for i in range(count)]
    assert_equals_cpu(device, rule, buffers(rule, sizes, [("float32", "float32")]))


def test_many_tensors(device: Library) -> None:
    sizes = [(5, 300, 1)[i % 3] for i in range(1500)]
    assert_equals_cpu(device, "adam", buffers("adam", sizes, [("float32", "float32"), ("float64", "float32")]))


@pytest.mark.parametrize("types", [PAIRS, PAIRS[::-1]], ids=["wide first", "narrow first"])
def test_lists_of_all_types(device: Library, types: list[tuple[str, str]]) -> None:
    for rule in ("momentum", "adamw", "adabelief"):
        assert_equals_cpu(device, rule, buffers(rule, [100 + i for i in range(2 * len(types))], types))


def test_empty_tensors_alone(device: Library) -> None:
    assert_equals_cpu(device, "adam", buffers("adam", [0, (3, 0), 0], PAIRS))
    assert_equals_cpu(device, "adam", first(buffers("adam", [0], PAIRS)))


# Numbers on the device


NUMBERS = {"float32": np.float32, "float64": np.float64, "int32": np.int32, "int64": np.int64}


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_a_step_on_the_device(library: Library, dtype: str) -> None:
    for shape in ((), (1,), (1, 1)):
        for t in (1, 2, 1000):
            host = buffers("adam", [33, 0, 300], [("float32", "float32"), ("float64", "float64")])
            on_device = library.put_all(host)
            number = library.put(np.full(shape, t, NUMBERS[dtype]))
            call("adam", on_device, step=number)
            call("adam", host, step=t)
            assert_equal(library.get_all(on_device), host)
            assert library.get(number) == t


@every_rule
def test_every_number_on_the_device(device: Library, rule: str) -> None:
    host = buffers(rule, [33, 300, 1], [("float32", "float32"), ("float64", "float64")])
    given = changed(rule)
    numbers = {k: v for k, v in given.items() if not isinstance(v, bool) and k != "grad_scale"}
    for dtype in (np.float64, np.float32) if rule in THREE_RULES else (np.float64,):
        rounded = {k: dtype(v) for k, v in numbers.items()}
        want = copies(host)
        on_device = device.put_all(host)
        there = {k: device.put(np.array(v)) for k, v in rounded.items()}
        call(rule, on_device, **{**given, **there}, step=device.put(np.array(7)))
        call(rule, want, **{**given, **{k: float(v) for k, v in rounded.items()}}, step=7)
        assert_equal(device.get_all(on_device), want)


def test_one_number_on_the_device_and_the_others_not(device: Library) -> None:
    host = buffers("adamw", [33, 300], [("float32", "float32")])
    lr = device.put(np.array([0.125]))
    on_device, want = device.put_all(host), copies(host)
    for t, rate in enumerate((0.125, 0.5, 0.0), 1):
        lr = device.put(np.array([rate]))
        call("adamw", on_device, step=t, lr=lr, beta1=0.5, weight_decay=0.1, decoupled=True)
        call("adamw", want, step=t, lr=rate, beta1=0.5, weight_decay=0.1, decoupled=True)
    assert_equal(device.get_all(on_device), want)


@pytest.mark.parametrize("rule", ["adam", "nadam", "radam"])
def test_many_tensors_with_numbers_on_the_device(device: Library, rule: str) -> None:
    host = buffers(rule, [(1, 0, 40)[i % 3] for i in range(130)], [("float32", "float32"), ("float64", "float64")])
    on_device, want = device.put_all(host), copies(host)
    call(rule, on_device, step=device.put(np.array(11)), lr=device.put(np.array(0.5)))
    call(rule, want, step=11, lr=0.5)
    assert_equal(device.get_all(on_device), want)


def test_a_number_in_the_middle_of_an_array(device: Library) -> None:
    host = first(buffers("sgd", [33], [("float32", "float32")]))
    on_device = device.put_all(host)
    rates = device.put(np.array([0.1, 0.2, 0.4]))
    call("sgd", on_device, lr=device.part(rates, 2, ()))
    call("sgd", host, lr=0.4)
    assert_equal(device.get_all(on_device), host)


# The norm


def norms(library: Library, grads: Sequence[Array], grad_scale: float = 1.0, offset: int = 0) -> tuple[float, float]:
    on_device = [library.put(g, offset) for g in grads]
    return adaptk.global_norm(on_device, grad_scale), adaptk.global_norm([*grads], grad_scale)


def same_number(a: float, b: float) -> bool:
    return a == b or (np.isnan(a) and np.isnan(b))


@pytest.mark.parametrize("dtype", FLOATS)
def test_norm_of_every_type(device: Library, dtype: str) -> None:
    for i, sizes in enumerate(([], [0], [1], [31, 8192, 0, 5, 8191], [8193], [20011, 3], [8192 * 33 + 5])):
        grads = [values("grad", n, np.dtype(FLOATS[dtype]), i, special=False) for n in sizes]
        got, want = norms(device, grads, grad_scale=0.3 if i % 2 else 1.0)
        assert got == want
        assert sum(sizes) < 2 or want > 0.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_norm_does_not_depend_on_the_partition(device: Library, dtype: str) -> None:
    grads = values("grad", 20011, np.dtype(FLOATS[dtype]), 5, special=False)
    want = adaptk.global_norm(grads)
    whole = device.put(grads)
    assert adaptk.global_norm(whole) == want
    cuts_and_offsets = (
        ([1], 1),
        ([8000, 8192, 16000], 0),
        ([3, 8, 16, 8200, 8201], 1),
        ([*range(640, 20011, 1311)], 0),
    )
    for cuts, offset in cuts_and_offsets:
        parts = [device.put(part, i * offset % 4) for i, part in enumerate(np.split(grads, cuts))]
        assert adaptk.global_norm(parts) == want


def test_norm_of_many_tensors_of_all_types(device: Library, schedule: int) -> None:
    for count in (1, 126, 127):
        grads = [
            values("grad", 1 + 90 * (i % 5), dtype_of("grad", *PAIRS[i % len(PAIRS)]), i, False) for i in range(count)
        ]
        got, want = norms(device, grads, offset=count % 3)
        assert got == want > 0.0


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_norm_that_is_not_finite(device: Library, dtype: str, special: float) -> None:
    grads = [np.ones(300, FLOATS[dtype]), np.ones(9000, FLOATS[dtype])]
    grads[1][8999] = special
    got, want = norms(device, grads)
    assert not np.isfinite(got)
    assert same_number(got, want)


@pytest.mark.parametrize("size", [1e-320, 5e-324, 1e-200, 1e-160, 1e-140, 1e-130, 1e140, 1e153, 1e155, 1e300, 1e307])
def test_norm_of_values_whose_squares_are_out_of_range(device: Library, size: float) -> None:
    rng = np.random.default_rng(3)
    with np.errstate(under="ignore"):
        grads = [size * rng.uniform(-1, 1, n) for n in (5, 8192, 100, 3000)]
        got, want = norms(device, grads)
        assert got == want
        assert got > 0.0 or size == 5e-324
        got, want = norms(device, [grads[0], np.ones(3, np.float32), grads[1]], -1e-3)
        assert got == want > 0.0


def test_norm_beyond_the_range(device: Library) -> None:
    assert norms(device, [np.full(9000, 1.7e308)]) == (np.inf, np.inf)
    assert norms(device, [np.zeros(9000)]) == (0.0, 0.0)


def test_norm_of_one_buffer_of_every_library(library: Library) -> None:
    grads = np.asarray([[3.0, 0.0], [0.0, 4.0]], np.float32)
    assert adaptk.global_norm(library.put(grads)) == 5.0
    assert adaptk.global_norm([library.put(grads), library.put(grads.T)], grad_scale=2.0) == 200.0**0.5


# The memory traffic without the arithmetic, which benchmarks compare rules with


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("states", range(5))
def test_ceiling(device: Library, states: int, dtype: str) -> None:
    host = [values("grad", 3001, np.dtype(dtype), i) for i in range(2 + states)]
    on_device = [device.put(a) for a in host]
    adaptk._core.bandwidth_probe(on_device, 2)
    adaptk._core.bandwidth_probe(host, 2)
    assert_equal([device.get(a) for a in on_device], host)
