"""Rules made at run time on a CUDA device, compiled by NVRTC: the same bits as on the CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adaptk
import c_abi
import numpy as np
import pytest
from adaptk.catalogue import all_rules, find
from device_arrays import Exchange, Library, Machine, assert_equal, cudart
from helpers import RULES, THREE_RULES, make_list, same_bits
from run_time_compiler import cache as cache
from run_time_compiler import needs_nvrtc
from test_cuda_c_abi import Device
from test_cuda_errors import refused
from test_cuda_functions import values
from traced_rules import traced

pytestmark = pytest.mark.cuda

SIZES = (1, 33, 256, 300, 1025)


@pytest.fixture
def c_device(machine: Machine) -> Iterator[Device]:
    """For the C interface, which takes addresses."""
    d = Device(cudart())
    yield d
    d.runtime.synchronize()
    for address in d.memory:
        d.runtime.free(address)


def check(device: Library, made: adaptk.TracedRule, dtype: str = "float32", steps: int = 2, **hyper: Any) -> None:
    """Steps of tensors of several sizes, on the device and on the CPU."""
    names = ("param", "grad", *(s.name for s in made.rule.states))
    host = {
        name: [values("bar" if name not in ("param", "grad") else name, n, np.dtype(dtype), n) for n in SIZES]
        for name in names
    }
    for s in made.rule.states:
        if s.nonnegative:
            host[s.name] = [abs(x) for x in host[s.name]]
    there = device.put_all(host)
    for step in range(1, steps + 1):
        made(*there.values(), step=step, **hyper)
        made(*host.values(), step=step, **hyper)
    assert_equal(device.get_all(there), host)


@needs_nvrtc
@pytest.mark.parametrize(
    ("rule", "dtype"), [*((rule, "float32") for rule in RULES), *((rule, "float64") for rule in THREE_RULES)]
)
def test_every_rule_of_the_library(device: Library, rule: str, dtype: str) -> None:
    with traced(rule) as made:
        check(device, made, dtype)
        check(device, made, dtype, weight_decay=0.03, decoupled=False, maximize=True)
        check(device, made, dtype, weight_decay=0.2, decoupled=True, grad_scale=1 / 3, lr=0.05)


def has_reductions(rule: adaptk.TracedRule) -> bool:
    return rule.to_bytes()[7] >= 2  # the version of its program


# A third of the others: the same code generates the C++ of all.
@needs_nvrtc
@pytest.mark.parametrize("rule", [r.name for r in all_rules() if not has_reductions(r)][::3])
def test_the_catalogue(device: Library, rule: str) -> None:
    made = find(rule)
    assert made is not None
    check(device, made, weight_decay=0.1)


OF_TENSORS = ["lamb", "lars", "stable_adamw", "fromage", "novograd"]
OF_ALL = ["prodigy", "dadapt_sgd", "dog"]


@needs_nvrtc
@pytest.mark.parametrize(
    ("rule", "dtype"), [(r, "float32") for r in OF_TENSORS] + [("lamb", "float64"), ("novograd", "float64")]
)
def test_reductions_over_tensors(device: Library, rule: str, dtype: str) -> None:
    made = find(rule)
    assert made is not None
    assert has_reductions(made)
    rng = np.random.default_rng(5)
    # Leaves of 8192, the last one of each tensor shorter.
    host = [rng.normal(size=n).astype(dtype) for n in (1, 300, 0, 513)]
    there = [device.put(p) for p in host]
    one, two = made.Optimizer(host, weight_decay=0.1), made.Optimizer(there, weight_decay=0.1)
    for clip in (None, 0.5):
        grads = [rng.normal(size=p.size).astype(dtype) for p in host]
        one.step(grads, clip_norm=clip)
        two.step([device.put(g) for g in grads], clip_norm=clip)
    assert_equal([device.get(p) for p in there], host)


def test_functions_keep_no_numbers(device: Library) -> None:
    """On the CPU the function is refused in the same way."""
    made = find("dog")
    assert made is not None
    param, grad, start = (device.put(np.ones(3, np.float32)) for _ in range(3))
    with pytest.raises(TypeError, match="a function keeps none; use its optimizer class"):
        made(param, grad, start, step=1)
    assert_equal(device.get(param), np.ones(3, np.float32))


@needs_nvrtc
@pytest.mark.parametrize("rule", OF_ALL)
def test_reductions_over_all_params(device: Library, rule: str) -> None:
    """Tensors begin anywhere in a leaf; the host updates carried numbers from the device's sums."""
    made = find(rule)
    assert made is not None
    rng = np.random.default_rng(6)
    host = [rng.normal(size=n).astype(np.float32) for n in (301, 0, 77, 300)]
    there = [device.put(p) for p in host]
    one, two = made.Optimizer(host), made.Optimizer(there)
    for _ in range(3):
        grads = [rng.normal(size=p.size).astype(np.float32) for p in host]
        one.step(grads)
        two.step([device.put(g) for g in grads])
    assert_equal([device.get(p) for p in there], host)


@needs_nvrtc
@pytest.mark.parametrize("rule", ["fromage", "dog"])
def test_reductions_over_several_leaves(device: Library, rule: str) -> None:
    """Leaves of 8192 elements, each added up by a separate warp: the second one spans two params with `dog`."""
    made = find(rule)
    assert made is not None
    rng = np.random.default_rng(6)
    host = [rng.normal(size=n).astype(np.float32) for n in (8192 + 261, 77)]
    there = [device.put(p) for p in host]
    one, two = made.Optimizer(host), made.Optimizer(there)
    grads = [rng.normal(size=p.size).astype(np.float32) for p in host]
    one.step(grads)
    two.step([device.put(g) for g in grads])
    assert_equal([device.get(p) for p in there], host)


@needs_nvrtc
@pytest.mark.parametrize("rule", ["lamb", "prodigy"])
def test_reductions_of_any_format(device: Library, rule: str) -> None:
    pytest.importorskip("ml_dtypes")
    made = find(rule)
    assert made is not None
    steps_of_optimizers(device, made, {"clip_norm": 1.0}, state_dtype="8bit", seed=5)


@needs_nvrtc
@pytest.mark.parametrize("rule", ["novograd", "adafactor"])
def test_reductions_if_the_device_counts(device: Library, rule: str) -> None:
    """A skipped step changes neither the states of tensors, rows and columns nor the count."""
    made = find(rule)
    assert made is not None
    rng = np.random.default_rng(8)
    host = [rng.normal(size=n).astype(np.float32) for n in ((3, 100), (0,), (5,))]
    there = [device.put(p) for p in host]
    one, two = made.Optimizer(host), made.Optimizer(there)
    for bad in (False, True, False):
        grads = [rng.normal(size=p.shape).astype(np.float32) for p in host]
        grads[2][0] = np.inf if bad else 1.0
        one.step(grads, skip_nonfinite=True)
        two.step([device.put(g) for g in grads], skip_nonfinite=True)
    assert_equal([device.get(p) for p in there], host)


@needs_nvrtc
def test_params_of_two_types(device: Library) -> None:
    """Reductions over all params are of one kernel."""
    made = find("dog")
    assert made is not None
    there = [device.put(np.ones(5, t)) for t in (np.float32, np.float64)]
    opt = made.Optimizer(there)
    grads = [device.put(np.ones(5, t)) for t in (np.float32, np.float64)]
    with pytest.raises(RuntimeError, match="dog has reductions over all params, and some of them are computed in fl"):
        opt.step(grads)
    assert_equal([device.get(p) for p in there], [np.ones(5, np.float32), np.ones(5)])


def step_on_both(device: Library, made: adaptk.TracedRule, host: dict[str, list[np.ndarray]], step: int) -> None:
    there = device.put_all(host)
    made(*there.values(), step=step)
    made(*host.values(), step=step)
    assert_equal(device.get_all(there), host)


@needs_nvrtc
def test_squares_beyond_float64(device: Library) -> None:
    """They are computed again from scaled values, as on the CPU, but not if a value is not finite."""
    made = find("lamb")
    assert made is not None
    for scale in (1e200, 1e-200, np.inf, np.nan):
        host = {"param": [np.array([3.0, 4.0, scale]), np.array([scale / 3, scale / 7])]}
        host |= {name: [np.full(p.size, 0.25) for p in host["param"]] for name in ("grad", "exp_avg", "exp_avg_sq")}
        step_on_both(device, made, host, 1)


@needs_nvrtc
def test_all_kinds_of_reductions(device: Library) -> None:
    """Maxima, also of NaN and zeros, sums and means in sequence, the shape, and a number per tensor."""

    def measured(p: Any, g: Any, m: Any, seen: Any, h: Any, t: Any) -> Any:
        most = adaptk.max(abs(g))
        of_all = adaptk.sum(g, over="all")
        inner = adaptk.mean(p * g - most)
        m = h.beta * m + g * (inner + of_all)
        length = adaptk.norm(m)
        return p - h.lr * m / (1 + length), m, seen + most * inner

    made = adaptk.rule(states={"m": 0.0, "seen": 1.0}, per={"seen": "tensor"}, name="measured_here", lr=0.1, beta=0.5)(
        measured
    )
    try:
        rng = np.random.default_rng(7)
        sizes = (5, 8192 + 3, 256)
        host = {k: [rng.normal(size=n).astype(np.float32) for n in sizes] for k in ("param", "grad", "m")}
        host["seen"] = [np.array(x, np.float32) for x in (1.0, 2.0, 3.0)]
        for special in (None, np.nan, 0.0):
            if special is not None:
                host["grad"][0][:] = special
            step_on_both(device, made, host, 2)
    finally:
        made.unregister()


# A number, vectors, matrices and rows of them, of odd sizes: rows begin anywhere in a tile.
SHAPES = [(3, 5), (2, 300), (300,), (2, 3, 70), (0, 4), ()]


def steps_of_matrices(device: Library, rule: str, dtype: str, shapes: list[tuple[int, ...]], **options: Any) -> None:
    """Steps of a rule with its states; the last one clips."""
    made = find(rule)
    assert made is not None
    rng = np.random.default_rng(5)
    host = [rng.normal(size=n).astype(dtype) for n in shapes]
    there = [device.put(p) for p in host]
    one = made.Optimizer(host, weight_decay=0.1, **options)
    two = made.Optimizer(there, weight_decay=0.1, **options)
    for clip in (None, 0.5):
        grads = [rng.normal(size=p.shape).astype(dtype) for p in host]
        one.step(grads, clip_norm=clip)
        two.step([device.put(g) for g in grads], clip_norm=clip)
    assert_equal([device.get(p) for p in there], host)
    if options:
        return
    for i in range(len(host)):
        for s in made.rule.states:
            assert_equal(device.get(two.state[i][s.name]), one.state[i][s.name], s.name)


@needs_nvrtc
@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        *[("adafactor", "float32"), ("sm3", "float64"), ("came", "float32"), ("adam_mini", "float64")],
        *[("sm3", "float16"), ("adafactor", "bfloat16"), ("adam_mini", "bfloat16")],
    ],
)
def test_rows_and_columns(device: Library, rule: str, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    steps_of_matrices(device, rule, dtype, SHAPES)


@needs_nvrtc
@pytest.mark.parametrize("rule", ["sm3_momentum", "came"])
def test_rows_and_columns_of_any_format(device: Library, rule: str) -> None:
    pytest.importorskip("ml_dtypes")
    steps_of_matrices(device, rule, "float32", SHAPES[:3], state_dtype="8bit", seed=5)


@needs_nvrtc
@pytest.mark.parametrize("rule", ["adafactor", "adam_mini"])
def test_one_row_or_column(device: Library, rule: str) -> None:
    """They are matrices, not vectors."""
    steps_of_matrices(device, rule, "float32", [(1, 300), (300, 1), (3, 1, 4), (3, 4, 1), (1, 1)])


@needs_nvrtc
def test_long_rows_and_columns(device: Library) -> None:
    """Rows of several leaves of 8192 elements, and columns that are added up in two blocks."""
    made = adaptk.rule(states={"row": 0.0, "col": 0.0}, per={"row": "row", "col": "column"}, name="long_here", lr=0.5)(
        lambda p, g, row, col, h, t: (
            p - h.lr * g,
            row + adaptk.norm(g, over="rows"),
            col + adaptk.sum(g, over="columns"),
        )
    )
    try:
        rng = np.random.default_rng(9)
        rows, columns = 5, 65536
        host = {"param": [np.zeros((rows, columns), np.float32)]}
        host |= {"grad": [rng.normal(size=(rows, columns)).astype(np.float32)]}
        host |= {"row": [np.ones((rows, 1), np.float32)], "col": [np.ones((1, columns), np.float32)]}
        step_on_both(device, made, host, 1)
    finally:
        made.unregister()


@needs_nvrtc
def test_all_kinds_of_rows_and_columns(device: Library) -> None:
    """Each reduction over each of the scopes; of NaN and of zeros too, and of one row."""

    def measured(p: Any, g: Any, row: Any, col: Any, h: Any, t: Any) -> Any:
        of_rows = adaptk.max(g, over="rows") + adaptk.sum(p, over="rows") * adaptk.norm(p * g, over="rows")
        of_columns = adaptk.mean(g - of_rows, over="columns") - adaptk.max(g, over="columns")
        level = adaptk.norm(of_rows, over="matrix")
        of_columns = of_columns / (1 + abs(adaptk.max(of_columns, over="matrix")))
        size = adaptk.norm(g * of_columns)
        return p - h.lr * (g + of_rows * of_columns) / (1 + size), row + level * of_rows, of_columns - col

    made = adaptk.rule(
        states={"row": 0.0, "col": 0.0}, per={"row": "row", "col": "column"}, name="all_kinds_here", lr=0.1
    )(measured)
    try:
        rng = np.random.default_rng(7)
        shapes = [(2, 3, 5), (1, 300), (7, 1)]
        host = {k: [rng.normal(size=n).astype(np.float32) for n in shapes] for k in ("param", "grad")}
        host["row"] = [rng.normal(size=(*n[:-1], 1)).astype(np.float32) for n in shapes]
        host["col"] = [rng.normal(size=(*n[:-2], 1, n[-1])).astype(np.float32) for n in shapes]
        for special in (None, np.nan, -0.0):
            if special is not None:
                for g in host["grad"]:
                    g.ravel()[:4] = special
            step_on_both(device, made, host, 2)
    finally:
        made.unregister()


def from_the_param(name: str) -> adaptk.TracedRule:
    """A rule that reads the param before decay and starts a state as a copy of it."""

    def drifting(p: Any, g: Any, a: Any, h: Any, t: Any) -> Any:
        return p - h.lr * g / (1 + h.rate * t), h.rate * a + (1 - h.rate) * p

    return adaptk.rule(states={"a": "param"}, name=name, lr=0.1, rate=0.75)(drifting)


@needs_nvrtc
def test_states_that_start_as_the_param(device: Library) -> None:
    made = from_the_param("drifting_on_device")
    try:
        check(device, made, weight_decay=0.5, decoupled=True)
    finally:
        made.unregister()


def steps_of_optimizers(device: Library, made: adaptk.TracedRule, step: dict[str, Any], **options: Any) -> None:
    rng = np.random.default_rng(3)
    host = [rng.normal(size=n).astype(np.float32) for n in (300, 5, 0, 257)]
    there = [device.put(p) for p in host]
    one, two = made.Optimizer(host, **options), made.Optimizer(there, **options)
    for _ in range(3):
        grads = [rng.normal(size=p.size).astype(np.float32) for p in host]
        one.step(grads, **step)
        two.step([device.put(g) for g in grads], **step)
    assert_equal([device.get(p) for p in there], host)


@needs_nvrtc
@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_formats_of_states(device: Library, state_dtype: str) -> None:
    pytest.importorskip("ml_dtypes")
    with traced("adam") as made:
        steps_of_optimizers(device, made, {"clip_norm": 1.0}, state_dtype=state_dtype, seed=5)


@needs_nvrtc
@pytest.mark.parametrize("rule", ["nadam", "focus"])
def test_the_device_counts_the_steps(device: Library, rule: str) -> None:
    """Then it also computes the coefficients: powers, products over the steps, and the weight decay that rules read."""
    if rule in RULES:
        with traced(rule) as made:
            steps_of_optimizers(device, made, {"skip_nonfinite": True}, weight_decay=0.1)
    else:
        found = find(rule)
        assert found is not None
        steps_of_optimizers(device, found, {"skip_nonfinite": True}, weight_decay=0.1)


@needs_nvrtc
def test_the_c_interface(c_device: Device) -> None:
    with traced("adam") as made:
        b = make_list("adam", (3, 0, 300))
        states = c_abi.state_arrays("adam", {s.name: b[s.name] for s in RULES["adam"].states})
        p, g, s = ([c_device.put(a) for a in arrays] for arrays in (b["param"], b["grad"], states))
        for step in (1, 2):
            c_abi.step(made.rule.key, p, g, s, step, {"weight_decay": 0.01})
            c_abi.step("adam", b["param"], b["grad"], states, step, {"weight_decay": 0.01})
        for t, a in zip([*p, *s], [*b["param"], *states], strict=True):
            assert same_bits(c_device.get(t, a), a)


@needs_nvrtc
@pytest.mark.parametrize("rule", ["lamb", "sm3_momentum"])
def test_reductions_by_the_c_interface(c_device: Device, rule: str) -> None:
    made = find(rule)
    assert made is not None
    rng = np.random.default_rng(8)
    params, grads = ([rng.normal(size=n).astype(np.float32) for n in ((3, 1), (0, 2), (2, 150))] for _ in range(2))
    states = [
        np.zeros((len(p), 1) if s.per == "row" else (1, p.shape[1]) if s.per == "column" else p.shape, np.float32)
        for p in params
        for s in made.rule.states
    ]
    p, g, s = ([c_device.put(a) for a in arrays] for arrays in (params, grads, states))
    for step in (1, 2):
        c_abi.step(made.rule.key, p, g, s, step, {"weight_decay": 0.01})
        c_abi.step(made.rule.key, params, grads, states, step, {"weight_decay": 0.01})
    for t, x in zip([*p, *s], [*params, *states], strict=True):
        assert same_bits(c_device.get(t, x), x)


@needs_nvrtc
def test_carried_numbers(device: Library) -> None:
    made = find("schedule_free_adamw")
    assert made is not None
    steps_of_optimizers(device, made, {"clip_norm": 0.5})
    p = device.put(np.ones(5, np.float32))
    opt = made.Optimizer([p])
    message = "schedule_free_adamw hands numbers on from step to step, which the host computes"
    with pytest.raises(RuntimeError, match=message):
        opt.step([device.put(np.ones(5, np.float32))], skip_nonfinite=True)
    assert_equal(device.get(p), np.ones(5, np.float32))


@needs_nvrtc
def test_compiled_code(device: Library, machine: Machine, cache: Path) -> None:
    """Vectors of 16 bytes, no contraction, no local memory; and cached files from which it is loaded again."""
    hypers = {"lr": 0.1, "beta": 0.9}

    def averaging(p: Any, g: Any, m: Any, h: Any, t: Any) -> Any:
        m = h.beta * m + (1 - h.beta) * g * 1.25
        return p - h.lr * m / adaptk.sqrt(1 + m * m), m

    before = set(cache.iterdir())
    made = adaptk.rule(states={"m": 0.0}, name="averaging_1", **hypers)(averaging)
    check(device, made)
    made.unregister()
    (file,) = set(cache.iterdir()) - before
    if machine.simulated:
        ptx = machine.loaded[-1]
        assert len(re.findall(r"ld\.global\.cg\.v4", ptx)) == 3 * 2
        assert len(re.findall(r"st\.global\.cg\.v4", ptx)) == 2 * 2
        assert re.search(r"\bfma\.|\bmad\.f|\.local|\.approx|\.ftz", ptx) is None
        assert "sqrt.rn.f32" in ptx
        assert "div.rn.f32" in ptx
    # The same formula under another name is the same code.
    made = adaptk.rule(states={"m": 0.0}, name="averaging_2", **hypers)(averaging)
    check(device, made)
    made.unregister()
    assert set(cache.iterdir()) - before == {file}
    # It is loaded from the file: a corrupt file fails.
    data = file.read_bytes()
    end = data.index(b"namespace adaptk::cuda\n") + len(b"namespace adaptk::cuda\n")
    file.write_bytes(data[:end] + b"0\nno code")
    made = adaptk.rule(states={"m": 0.0}, name="averaging_3", **hypers)(averaging)
    param, grad, m = (Exchange.put(np.ones(5, np.float32)) for _ in range(3))
    with pytest.raises(RuntimeError):
        made(param, grad, m, step=1)
    if machine.simulated:
        machine.forgive()
    # Unless others can write it.
    file.chmod(0o666)
    check(device, made)
    made.unregister()


def test_without_a_compiler(machine: Machine) -> None:
    with traced("lion") as made:
        param, grad, state = (Exchange.put(np.ones(5, np.float32)) for _ in range(3))
        what = ("params: on a CUDA device", "traced_lion: no compiler")
        with machine.calls.failing("can_run", "no compiler"):
            with refused(RuntimeError, *what, unchanged=[param, grad, state], machine=machine):
                made(param, grad, state, step=1)
            with refused(RuntimeError, *what, unchanged=[param, grad, state], machine=machine):
                made([param], [grad], [state], step=1)
            with refused(RuntimeError, *what, unchanged=[param]):
                made.Optimizer([param])
            adaptk.ops.lion(param, grad, state, step=1)


def test_missing_nvrtc(machine: Machine) -> None:
    if not machine.simulated:
        pytest.skip("by the simulated device, in a process of its own")
    script = (
        "import device_arrays; assert device_arrays.start(True) is None\n"
        "import adaptk, numpy as np\n"
        "made = adaptk.rule(name='plain_step', lr=0.5)(lambda p, g, h, t: p - h.lr * g)\n"
        "p = device_arrays.Exchange.put(np.ones(3, np.float32))\n"
        "try: made.Optimizer([p])\n"
        "except RuntimeError as error: print(error)\n"
    )
    environment = os.environ | {"ADAPTK_NVRTC": "/nowhere/libnvrtc.so.13"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent, check=True
    )
    assert done.stdout.startswith("params: on a CUDA device, and plain_step: ADAPTK_NVRTC: /nowhere/libnvrtc.so.13")
