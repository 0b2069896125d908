"""Gradients of rows on a CUDA device: the bits of the same steps on the CPU, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import adaptk
import numpy as np
import pytest
from device_arrays import Library, Machine, assert_equal
from helpers import FLOATS, RULES, THREE_RULES, Array, call, copies, make
from row_wise_oracles import RULES as ROW_WISE
from row_wise_oracles import STATES, new_states
from sparse_cases import gradient
from test_cuda_functions import changed

pytestmark = pytest.mark.cuda

# Rows of less than a warp, of a tile, and of more; a vector; several axes.
ROWS = [(), (1,), (3,), (16,), (64,), (4, 75)]
MODES = ["lazy", "dense"]


def assert_equals_cpu(
    device: Library, rule: str, host: dict[str, Any], indices: Array, grad: Array, on_host: bool = False, **more: Any
) -> None:
    there = {name: device.put(x) for name, x in host.items()}
    there["grad"] = (indices if on_host else device.put(indices), device.put(grad))
    here = copies(host) | {"grad": (indices, grad)}
    call(rule, there, **more)
    call(rule, here, **more)
    for name in host:
        if name != "grad":
            assert_equal(device.get(there[name]), here[name], (rule, name, more))


# Both modes with every shape and with every rule.
@pytest.mark.parametrize(
    ("rule", "shape", "mode"),
    [(rule, shape, MODES[(i + j) % 2]) for i, rule in enumerate(THREE_RULES) for j, shape in enumerate(ROWS)],
)
def test_rows_of_all_lengths(rule: str, shape: tuple[int, ...], mode: str, device: Library) -> None:
    """Rows with no value, one, and more than a leaf of them; indices of both types, on the device and on the host."""
    for count, index in ((0, np.int64), (1, np.int32), (700, np.int64), (5, np.int64)):
        host = make(rule, (40, *shape))
        indices, values = gradient(40, shape, count, count + len(shape))
        if count > 100:
            assert np.bincount(indices).max() > 2 * 32 + 8
        assert_equals_cpu(device, rule, host, indices.astype(index), values, on_host=count == 5, sparse=mode)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: str, device: Library) -> None:
    for mode, hyper in (("lazy", changed(rule)), ("dense", {})):
        indices, values = gradient(30, (9,), 80, 1)
        assert_equals_cpu(device, rule, make(rule, (30, 9)), indices, values, sparse=mode, **hyper)


@pytest.mark.parametrize("param", FLOATS)
@pytest.mark.parametrize("grad", FLOATS)
def test_every_type(param: str, grad: str, device: Library) -> None:
    if not device.has(param) or not device.has(grad):
        pytest.skip(f"{device.name} lacks one of the two dtypes")
    mode = MODES[(list(FLOATS).index(param) + list(FLOATS).index(grad)) % 2]
    indices, values = gradient(30, (9,), 80, 1, FLOATS[grad])
    assert_equals_cpu(device, "adam", make("adam", (30, 9), param), indices, values, sparse=mode)


def steps(library: Library | None, sparse: str, options: Sequence[dict[str, Any]], **made: Any) -> list[Any]:
    """Steps of an optimizer whose params have sparse gradients, dense ones and none."""
    rng = np.random.default_rng(3)
    put = library.put if library is not None else (lambda x: x)
    params = [put(rng.standard_normal((50, 16)).astype(np.float32)), put(np.ones((30, 4))), put(np.ones(9, np.float32))]
    beside = [put(np.zeros((50, 16), np.float32)), None, None]
    opt = adaptk.Adam(params, lr=0.1, sparse=sparse, **made)
    norms = []
    for t, given in enumerate(options):
        indices, values = gradient(50, (16,), 200, t)
        if given.get("skip_nonfinite") and t % 2 == 1:
            values[7, 3] = np.inf
        more = gradient(30, (4,), 5, t, np.float64)
        grads = [(put(indices), put(values)), (put(more[0]), put(more[1])), None if t == 1 else put(np.ones(9))]
        info = opt.step(grads, copy_out=beside if t == 0 else None, **given)
        norms.append((info.grad_norm, bool(info.skipped)))
    get = library.get if library is not None else np.asarray
    states = [{n: get(x) for n, x in s.items()} for s in opt.state.values()]
    return [[get(p) for p in [*params, beside[0]]], states, norms, opt.step_count]


PLAIN: list[dict[str, Any]] = [{}, {}, {}]
CLIPPED: list[dict[str, Any]] = [{"clip_norm": 0.5}, {"clip_norm": 1e6}, {}]
SKIPPING: list[dict[str, Any]] = [
    {"skip_nonfinite": True},
    {"skip_nonfinite": True},
    {"skip_nonfinite": True, "clip_norm": 1.0},
]


# Each pair of the three occurs.
@pytest.mark.parametrize(
    ("options", "sparse", "capturable"),
    [
        *((PLAIN, "lazy", False), (CLIPPED, "lazy", True), (SKIPPING, "lazy", False)),
        *((PLAIN, "dense", True), (CLIPPED, "dense", False), (SKIPPING, "dense", True)),
    ],
    ids=["plain-lazy", "clipped-lazy", "skipping-lazy", "plain-dense", "clipped-dense", "skipping-dense"],
)
def test_objects(options: list[dict[str, Any]], sparse: str, capturable: bool, device: Library) -> None:
    given = {"capturable": True} if capturable else {}
    got, want = steps(device, sparse, options, **given), steps(None, sparse, options)
    assert_equal(got[0], want[0])
    assert_equal(got[1], want[1])
    assert got[3] == want[3]
    for (norm, skipped), (other, also) in zip(got[2], want[2], strict=True):
        assert skipped == also
        assert norm == other or (norm is None and other is None) or (np.isinf(norm) and np.isinf(other))


@pytest.mark.parametrize("kind", ["8bit_nearest", "8bit_dynamic", "4bit", "bfloat16", "float16"])
def test_states_in_other_formats(kind: str, device: Library) -> None:
    """Rows of whole blocks: scales belong to rows."""
    results = []
    for library in (device, None):
        put = library.put if library is not None else np.copy
        param = put(np.ones((9, 256), np.float32))
        opt = adaptk.Adam([param], lr=0.1, state_dtype=kind, min_8bit_size=0)
        for t in range(3):
            indices, values = gradient(9, (256,), 40, t)
            opt.step([(put(indices), put(values))])
        results.append((library.get(param) if library is not None else param, opt.state_dict()))
    assert_equal(results[0][0], results[1][0])


@pytest.mark.parametrize("kind", ["kahan", "remainder16", "remainder8"])
def test_split_params(kind: str, device: Library) -> None:
    if "bfloat16" not in FLOATS or not device.has("bfloat16"):
        pytest.skip(f"{device.name} has no bfloat16")
    results = []
    for library in (device, None):
        put = library.put if library is not None else np.copy
        get = library.get if library is not None else np.asarray
        param = put(np.ones((12, 33)).astype(FLOATS["bfloat16"]))
        opt = adaptk.Adam([param], lr=0.01, param_format=kind)
        for t in range(3):
            indices, values = gradient(12, (33,), 40, t)
            opt.step([(put(indices), put(values))])
        results.append([get(param), *(get(x) for x in opt.state[0].values() if hasattr(x, "dtype"))])
    assert_equal(results[0], results[1])


def test_other_streams(device: Library) -> None:
    host = make("adam", (40, 8))
    indices, values = gradient(40, (8,), 30, 1)
    with adaptk.cuda.stream(0):
        assert_equals_cpu(device, "adam", host, indices, values)


def refused(device: Library, error: type[Exception], text: str, grad: Any, dtype: str = "float32", **more: Any) -> None:
    param = device.put(np.ones((5, 3)).astype(FLOATS[dtype]))
    with pytest.raises(error, match=text):
        adaptk.ops.sgd(param, grad, step=1, **more)
    assert (device.get(param) == 1).all()
    opt = adaptk.SGD([param])
    if not more:
        with pytest.raises(error):
            opt.step([grad])
        assert opt.step_count == 0
        assert (device.get(param) == 1).all()


def test_refused_before_anything_is_written(device: Library) -> None:
    values = device.put(np.ones((2, 3), np.float32))
    for indices, text in (
        (np.array([0, 5]), r"grad, indices: number 1 is 5, expected in \[0, 5\), the rows of the param"),
        (np.array([-1, 0]), "grad, indices: number 0 is -1"),
    ):
        refused(device, ValueError, text, (indices, values))
        refused(device, ValueError, text, (device.put(indices), values))
    refused(device, ValueError, r"grad, values: shape \(2, 3\), expected \(3, 3\)", (np.arange(3), values))
    refused(device, TypeError, "grad, indices: dtype float32", (device.put(np.zeros(2, np.float32)), values))
    refused(device, ValueError, "grad, indices: 2 axes", (device.put(np.zeros((2, 1), np.int64)), values))
    refused(device, ValueError, "one call works on the buffers of one device", (np.arange(2), np.ones((2, 3))))
    late = {"sparse": "catch_up", "last_step": np.zeros(5, np.int64)}
    text = "last_step: on a CUDA device, expected memory of the CPU"
    refused(device, ValueError, text, (np.arange(2), values), **late | {"last_step": device.put(late["last_step"])})
    assert not late["last_step"].any()


def test_catch_up_needs_counts_on_the_host(device: Library) -> None:
    param = device.put(np.ones((5, 3), np.float32))
    grad = (np.array([0, 4]), device.put(np.ones((2, 3), np.float32)))
    opt = adaptk.Adam([param], sparse="catch_up")
    with pytest.raises(RuntimeError, match="sparse='catch_up' is without skip_nonfinite"):
        opt.step([grad], skip_nonfinite=True)
    assert opt.step_count == 0
    assert (device.get(param) == 1).all()
    opt.step([grad])
    assert opt.state[0]["last_step"].tolist() == [1, 0, 0, 0, 1]
    counting = adaptk.Adam([param], sparse="catch_up", capturable=True)
    with pytest.raises(RuntimeError, match="sparse='catch_up' is without skip_nonfinite, capturable"):
        counting.step([grad])


RULES_THAT_CATCH_UP = [name for name, rule in RULES.items() if rule.catch_up]


@pytest.mark.parametrize("rule", RULES_THAT_CATCH_UP)
def test_catching_up(rule: str, device: Library) -> None:
    """Sparse steps, dense steps, and both at once."""
    cases: list[tuple[str, dict[str, Any]]] = [("float32", {}), ("float64", {"weight_decay": 0.1, "decoupled": True})]
    # Both ways to load a row for three rules, and one of them for the formula of each of the others.
    at = RULES_THAT_CATCH_UP.index(rule) % 2
    for dtype, hyper in cases if rule in THREE_RULES else cases[at : at + 1]:
        results = []
        start = make(rule, (30, 9), dtype)
        for library in (device, None):
            put = library.put if library is not None else np.copy
            b = {name: put(x) for name, x in start.items() if name != "grad"}
            last = np.zeros(30, np.int64)
            for t in range(1, 6):
                indices, values = gradient(30, (9,), 6, t, FLOATS[dtype])
                rows = (put(indices), put(values))
                given = put(np.resize(values, (30, 9))) if t == 3 else rows
                call(rule, b | {"grad": given}, step=t, sparse="catch_up", last_step=last, **hyper)
            results.append([library.get(x) if library is not None else x for x in b.values()] + [last])
        assert_equal(results[0], results[1], (rule, dtype))


def test_objects_that_catch_up(device: Library) -> None:
    results = []
    for library in (device, None):
        put = library.put if library is not None else np.copy
        get = library.get if library is not None else np.asarray
        params = [put(np.ones((30, 5), np.float32)), put(np.ones((4, 3)))]
        opt = adaptk.SGD(params, lr=0.1, momentum=0.9, sparse="catch_up")
        for t in range(5):
            indices, values = gradient(30, (5,), 6, t)
            opt.step([(put(indices), put(values)), put(np.full((4, 3), 0.5))], clip_norm=2.0 if t == 3 else None)
        opt.catch_up()
        saved = opt.state_dict()
        opt.load_state_dict(saved)
        opt.step([(np.array([3, 7]), put(np.ones((2, 5), np.float32))), None])
        opt.catch_up()
        results.append([get(x) for x in params] + [get(x) if library and n != "last_step" else np.asarray(x)
                        for s in opt.state.values() for n, x in s.items()])  # fmt: skip
    assert_equal(results[0], results[1])


@pytest.mark.parametrize(
    ("made", "dtype", "row"),
    [
        ({}, "float16", 3),
        ({"state_dtype": "8bit", "min_8bit_size": 0}, "float32", 256),
        ({"state_dtype": "bfloat16_sr"}, "float64", 5),
        ({"param_format": "remainder8"}, "bfloat16", 33),
        ({"param_format": "sr", "state_dtype": "bfloat16"}, "bfloat16", 300),
    ],
    ids=str,
)
@pytest.mark.parametrize("rule", ["adam", "rowwise_adam"])
def test_stored_rows_catch_up(rule: str, made: dict[str, Any], dtype: str, row: int, device: Library) -> None:
    """A row is rounded once per step, however many steps it has missed; if all rows catch up, also before the step."""
    if dtype not in FLOATS or not device.has(dtype):
        pytest.skip(f"{device.name} has no {dtype}")
    results = []
    for library in (device, None):
        put = library.put if library is not None else np.copy
        get = library.get if library is not None else np.asarray
        params = [put(np.ones((7, row)).astype(FLOATS[dtype])), put(np.ones((5, row), np.float32))]
        opt = adaptk.optimizer_for(
            rule, params, lr=0.1, weight_decay=0.3, decoupled=True, sparse="catch_up", seed=3, **made
        )
        for t in range(4):
            grads: list[Any] = []
            for n, put_as in ((7, FLOATS[dtype]), (5, np.float32)):
                indices, values = gradient(n, (row,), 4, t + n, put_as)
                grads.append(put(np.resize(values, (n, row))) if t == 2 else (put(indices), put(values)))
            opt.step(grads, clip_norm=0.5 if t == 1 else None)
        after = [np.copy(get(p)) for p in params]
        opt.catch_up()
        states = [get(x) for s in opt.state.values() for n, x in s.items() if n in ("m", "v") and hasattr(x, "dtype")]
        results.append([*after, *(get(p) for p in params), *states])
    assert_equal(results[0], results[1])
    assert not np.array_equal(results[1][0], results[1][2])


@pytest.mark.parametrize(("kind", "row"), [("8bit", 256), ("bfloat16_sr", 64), ("bfloat16_sr", 33), ("bfloat16_sr", 2)])
def test_rows_that_are_rounded_stochastically(kind: str, row: int, device: Library) -> None:
    """Random bits depend on an element's position in its tensor, which may be in the middle of a draw."""
    for mode in ("lazy", "dense"):
        results = []
        for library in (device, None):
            put = library.put if library is not None else np.copy
            get = library.get if library is not None else np.asarray
            params = [put(np.ones((9, row), np.float32)), put(np.ones((2, row), np.float32))]
            opt = adaptk.Adam(params, lr=0.1, state_dtype=kind, min_8bit_size=0, seed=3, sparse=mode)
            for t in range(2):
                indices, values = gradient(9, (row,), 6, t)
                opt.step([(put(indices), put(values)), put(np.resize(values, (2, row)))])
            results.append([get(p) for p in params])
        assert_equal(results[0], results[1], (kind, mode))


@pytest.mark.parametrize("row", [3, 64])
def test_params_that_are_rounded_stochastically(row: int, device: Library) -> None:
    if "bfloat16" not in FLOATS or not device.has("bfloat16"):
        pytest.skip(f"{device.name} has no bfloat16")
    results = []
    for library in (device, None):
        put = library.put if library is not None else np.copy
        param = put(np.ones((12, row)).astype(FLOATS["bfloat16"]))
        opt = adaptk.Adam([param], lr=0.01, param_format="sr", seed=5)
        for t in range(3):
            indices, values = gradient(12, (row,), 9, t)
            opt.step([(put(indices), put(values))])
        results.append(library.get(param) if library is not None else param)
    assert_equal(results[0], results[1])


# Rules with one number for each row


def assert_row_wise_equals_cpu(
    device: Library, rule: str, shape: tuple[int, ...], grad: Any, dtype: Any, **more: Any
) -> None:
    start = {"param": np.resize(np.linspace(-1.0, 1.0, 97), shape).astype(dtype)}
    start |= new_states(rule, shape, np.float64 if dtype == np.float64 else np.float32)
    there, here = {n: device.put(x) for n, x in start.items()}, copies(start)
    on_device = tuple(map(device.put, grad)) if isinstance(grad, tuple) else device.put(grad)
    for buffers, given in ((there, on_device), (here, grad)):
        param, *states = buffers.values()
        getattr(adaptk.ops, rule)(param, given, *states, **{"step": 3, "weight_decay": 0.1, **more})
    for name, x in here.items():
        assert_equal(device.get(there[name]), x, (rule, name, shape, more))


@pytest.mark.parametrize("shape", [(30,), (30, 1), (30, 9), (30, 64), (6, 300), (5, 2, 270)], ids=str)
@pytest.mark.parametrize("rule", ROW_WISE)
def test_rules_with_a_number_for_each_row(rule: str, shape: tuple[int, ...], device: Library) -> None:
    some: dict[str, Any] = {"decoupled": True, "maximize": True, "grad_scale": 0.5}
    for count, given in ((0, {}), (70, {"sparse": "dense"}), (70, some)):
        rows = gradient(shape[0], shape[1:], count, 1)
        assert_row_wise_equals_cpu(device, rule, shape, rows, np.float32, **given)
    whole = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    assert_row_wise_equals_cpu(device, rule, shape, whole, np.float32)
    assert_row_wise_equals_cpu(device, rule, (0, *shape[1:]), whole[:0], np.float32)


@pytest.mark.parametrize("param", FLOATS)
@pytest.mark.parametrize("grad", FLOATS)
def test_types_of_rules_with_a_number_for_each_row(param: str, grad: str, device: Library) -> None:
    if not device.has(param) or not device.has(grad):
        pytest.skip(f"{device.name} lacks one of the two dtypes")
    """Each pair of types for rows and for whole gradients, each by another rule, and each type by both rules."""
    rows = gradient(20, (17,), 40, 1, FLOATS[grad])
    at = (list(FLOATS).index(param) + list(FLOATS).index(grad)) % 2
    for i, given in enumerate((rows, np.resize(rows[1], (20, 17)))):
        assert_row_wise_equals_cpu(device, list(ROW_WISE)[(at + i) % 2], (20, 17), given, FLOATS[param])


def row_wise_steps(library: Library | None, rule: str, options: Sequence[dict[str, Any]], **made: Any) -> list[Any]:
    put = library.put if library is not None else np.copy
    get = library.get if library is not None else np.asarray
    params = [put(np.ones((7, 256), np.float32)), put(np.ones((4, 3))), put(np.ones((7, 2), np.float32))]
    opt = adaptk.optimizer_for(rule, params, lr=0.1, **made)
    norms = []
    for t, given in enumerate(options):
        indices, values = gradient(7, (256,), 9, t)
        if given.get("skip_nonfinite") and t % 2 == 1:
            values[7, 3] = np.inf
        more = None if t == 1 else (put(indices), put(values[:, :2].copy()))
        info = opt.step([(put(indices), put(values)), put(np.full((4, 3), 0.5)), more], **given)
        norms.append((info.grad_norm, bool(info.skipped)))
    if made.get("sparse") == "catch_up":
        opt.catch_up()
    counts = [s.pop("last_step").tolist() for s in map(dict, opt.state.values()) if "last_step" in s]
    states = [
        {n: get(x) for n, x in s.items() if n in STATES[rule] and hasattr(x, "dtype")} for s in opt.state.values()
    ]
    return [[get(p) for p in params], states, [counts, norms, opt.step_count]]


@pytest.mark.parametrize("rule", ROW_WISE)
def test_objects_with_a_number_for_each_row(rule: str, device: Library) -> None:
    cases: list[tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = [
        (PLAIN, {}, {"capturable": True}),
        (CLIPPED, {"sparse": "dense"}, {}),
        (CLIPPED[:2], {"weight_decay": 0.1}, {"capturable": True}),
        (SKIPPING, {}, {}),
        (PLAIN, {"sparse": "catch_up", "weight_decay": 0.1, "decoupled": True}, {}),
        (PLAIN[:2], {"state_dtype": "8bit", "min_8bit_size": 64, "seed": 3}, {}),
        (PLAIN[:2], {"state_dtype": "bfloat16_sr", "seed": 3}, {"capturable": True}),
    ]
    # AdaGrad has no states in other formats, and one kind of gradient has the same code in both rules.
    for options, made, there in cases if rule == "rowwise_adam" else cases[::4]:
        got, want = row_wise_steps(device, rule, options, **made, **there), row_wise_steps(None, rule, options, **made)
        assert_equal(got[0], want[0], made)
        assert_equal(got[1], want[1], made)
        assert got[2][0] == want[2][0]
        assert got[2][2] == want[2][2]
        for (norm, skipped), (other, also) in zip(got[2][1], want[2][1], strict=True):
            assert skipped == also
            assert norm == other or (norm is None and other is None) or (np.isinf(norm) and np.isinf(other))


@pytest.mark.parametrize("kind", ["kahan", "remainder8", "sr"])
def test_split_params_with_a_number_for_each_row(kind: str, device: Library) -> None:
    if "bfloat16" not in FLOATS or not device.has("bfloat16"):
        pytest.skip(f"{device.name} has no bfloat16")
    results = []
    for library in (device, None):
        put = library.put if library is not None else np.copy
        param = put(np.ones((5, 33)).astype(FLOATS["bfloat16"]))
        opt = adaptk.RowWiseAdam([param], lr=0.01, param_format=kind, weight_decay=0.1, seed=2)
        for t in range(2):
            indices, values = gradient(5, (33,), 9, t)
            opt.step([(put(indices), put(values))])
            opt.step([put(np.resize(values, (5, 33)))])
        results.append(library.get(param) if library is not None else param)
    assert_equal(results[0], results[1])


def test_a_param_on_the_cpu(device: Library) -> None:
    param, values = np.ones((5, 3), np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="on cuda:0"):
        adaptk.ops.sgd(param, (np.array([0, 4]), device.put(values)), step=1)
    with pytest.raises(ValueError, match="grad, indices: on a CUDA device, expected memory of the CPU"):
        adaptk.ops.sgd(param, (device.put(np.array([0, 4])), values), step=1)
    assert (param == 1).all()


def test_failures(device: Library, machine: Machine) -> None:
    param = device.put(np.ones((5, 3), np.float32))
    grad = (device.put(np.array([0, 4])), device.put(np.ones((2, 3), np.float32)))
    opt = adaptk.SGD([param])
    for name in ("read", "step"):
        with machine.calls.failing(name), pytest.raises(RuntimeError, match=f"{name}: unspecified launch failure"):
            opt.step([grad])
        assert opt.step_count == 0
    assert (device.get(param) == 1).all()
    opt.step([grad])
    assert opt.step_count == 1


def test_rows_must_be_whole_blocks(device: Library) -> None:
    """As on the CPU, rows have to begin where blocks do."""
    param = device.put(np.ones((4, 100), np.float32))
    opt = adaptk.Adam([param], state_dtype="8bit_nearest", min_8bit_size=0)
    with pytest.raises(ValueError, match="its elements share a scale in blocks"):
        opt.step([(np.array([1]), device.put(np.ones((1, 100), np.float32)))])
