"""The C interface: it matches its header and the oracles, and errors change nothing."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from ctypes import byref, c_double, c_int, c_int64, c_size_t
from pathlib import Path
from typing import Any

import adaptk
import c_abi
import numpy as np
import oracles
import pytest
from c_abi import INVALID_ARGUMENT, INVALID_TYPE, OK, UNKNOWN_NAME, UNSUPPORTED, CError, Plan, lib, tensor
from helpers import FLOATS, PAIRS, RULES, Array, call, copies, make, make_list, mentions, same_bits

# The interface


def declared() -> set[str]:
    return set(re.findall(r"^ADAPTK_API .*?\b(adaptk_\w+)\(", c_abi.HEADER.read_text(), re.M))


def internal() -> set[str]:
    """The functions of the library's C++ that the Python extensions call."""
    text = "".join(path.read_text() for path in (c_abi.ROOT / "cpp" / "src").glob("*.hpp"))
    return set(re.findall(r"^\s*ADAPTK_INTERNAL_API [^;{]*?(~?\b\w+)\(", text, re.M))


def test_exported_symbols() -> None:
    nm, demangle = shutil.which("nm"), shutil.which("c++filt")
    if not nm or not demangle or not sys.platform.startswith("linux"):
        pytest.skip("needs nm and c++filt for ELF files")
    symbols = subprocess.run([nm, "-D", "--defined-only", c_abi.LIBRARY], capture_output=True, text=True, check=True)
    kinds = {line.split()[2].split("@")[0]: line.split()[1] for line in symbols.stdout.splitlines()}
    assert {name for name in kinds if name.startswith("adaptk_")} == declared()
    assert len(declared()) > 20
    others = [name for name in kinds if not name.startswith("adaptk_")]
    plain = subprocess.run([demangle, *others], capture_output=True, text=True, check=True).stdout.splitlines()
    assert all("adaptk::detail::" in name for name in plain)
    functions = [p for p, name in zip(plain, others, strict=True) if kinds[name] == "T"]
    names = {re.search(r"(~?\w+)(?:\[abi:\w+\])?\(", name)[1] for name in functions}
    assert names == internal()
    # The exceptions that the extensions catch, and the table of formats.
    data = {re.sub(r"^typeinfo (name )?for ", "", name) for name in set(plain) - set(functions)}
    assert data == {f"adaptk::detail::{n}" for n in ("CudaFailure", "NoCuda", "NoReportSlot", "format_table")}


def test_the_extension_uses_the_same_library(restored: None) -> None:
    adaptk.set_isa("portable")
    assert lib.adaptk_get_isa() == b"portable"
    assert lib.adaptk_set_num_threads(3) == OK
    assert adaptk.get_num_threads() == 3


def test_versions() -> None:
    text = c_abi.HEADER.read_text()
    number = [re.search(rf"#define ADAPTK_VERSION_{part} (\d+)", text)[1] for part in ("MAJOR", "MINOR", "PATCH")]
    assert lib.adaptk_version().decode() == adaptk.__version__ == ".".join(number)
    assert lib.adaptk_abi_version() == int(re.search(r"#define ADAPTK_ABI_VERSION (\d+)", text)[1])
    assert lib.adaptk_openmp() == (adaptk._core.openmp or 0)


def test_status_names() -> None:
    text = re.search(r"typedef enum adaptk_status \{(.*?)\}", c_abi.HEADER.read_text(), re.S)[1]
    found = {int(number): name for name, number in re.findall(r"(ADAPTK_\w+) = (\d+)", text)}
    assert list(found) == list(range(9))
    for number, name in found.items():
        assert lib.adaptk_status_name(number).decode() == name
    assert b"unknown" in lib.adaptk_status_name(99)


HEADERS = {
    "C99": ("c", ["-std=c99"], ""),
    "C99 after dlpack.h": ("c", ["-std=c99"], '#include "dlpack.h"\n'),
    "C11": ("c", ["-std=c11"], ""),
    "C++11": ("cpp", ["-std=c++11"], ""),
    "C++20 after dlpack.h": ("cpp", ["-std=c++20"], '#include "dlpack.h"\n'),
}

DLPACK = """
#ifndef DLPACK_DLPACK_H_
#define DLPACK_DLPACK_H_
#include <stdint.h>
#define DLPACK_MAJOR_VERSION 1
#ifdef __cplusplus
typedef enum : int32_t {
#else
typedef enum {
#endif
    kDLCPU = 1, kDLCUDA = 2 } DLDeviceType;
typedef struct { DLDeviceType device_type; int32_t device_id; } DLDevice;
typedef struct { uint8_t code; uint8_t bits; uint16_t lanes; } DLDataType;
typedef struct {
    void* data; DLDevice device; int32_t ndim; DLDataType dtype; int64_t* shape; int64_t* strides; uint64_t byte_offset;
} DLTensor;
#endif
"""

USER = """
#include "adaptk/adaptk.h"
#include "dlpack.h"
#define SAME(member) typedef char same_##member[offsetof(adaptk_tensor, member) == offsetof(DLTensor, member) ? 1 : -1]
SAME(device); SAME(ndim); SAME(dtype); SAME(shape); SAME(strides); SAME(byte_offset);
typedef char same_size[sizeof(adaptk_tensor) == sizeof(DLTensor) ? 1 : -1];
int main(void) {
    float w[2] = {1, 2};
    int64_t shape[1] = {2};
    same_size unused = {0};
    adaptk_step_options options = ADAPTK_STEP_OPTIONS;
    adaptk_step_report report = ADAPTK_STEP_REPORT;
    adaptk_tensor t = adaptk_make_tensor(w, ADAPTK_FLOAT32, 1, shape);
    const adaptk_tensor* all[1];
    all[0] = &t;
    (void)unused;
    return adaptk_step("sgd", NULL, 0, 1, 1, all, all, NULL, &options, &report) == ADAPTK_OK ? 0 : 1;
}
"""


@pytest.mark.parametrize("how", HEADERS)
def test_header_compiles(how: str, tmp_path: Path) -> None:
    language, flags, before = HEADERS[how]
    names = ("cc", "gcc", "clang") if language == "c" else ("c++", "g++", "clang++")
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        pytest.skip(f"needs a compiler: {' or '.join(names)}")
    (tmp_path / "dlpack.h").write_text(DLPACK)
    source = tmp_path / f"user.{language}"
    source.write_text(before + USER)
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wstrict-prototypes"[: 99 * (language == "c")]]
    include = ["-I", str(c_abi.HEADER.parent.parent), "-I", str(tmp_path)]
    command = [compiler, *flags, *filter(None, warnings), "-Werror", *include, "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The rules


def test_registry() -> None:
    assert lib.adaptk_rule_count() == len(RULES)
    for i, (name, rule) in enumerate(RULES.items()):
        found = lib.adaptk_rule_at(c_size_t(i))
        assert ctypes.addressof(found.contents) == ctypes.addressof(lib.adaptk_find_rule(name.encode()).contents)
        c = found.contents
        assert (c.name.decode(), c.source.decode()) == (name, rule.source)
        assert (c.hyper_count, c.state_count) == (len(rule.hyperparameters), len(rule.states))
        assert c.summary
        assert c.formula
        for j, h in enumerate(rule.hyperparameters):
            info = lib.adaptk_rule_hyper(found, c_size_t(j)).contents
            assert (info.name.decode(), info.value, info.range.decode()) == (h.name, float(h.default), h.range)
            assert info.meaning.decode() == h.meaning
        for j, s in enumerate(rule.states):
            state = lib.adaptk_rule_state(found, c_size_t(j)).contents
            assert (state.name.decode(), state.initial) == (s.name, s.initial)
            assert (state.initial_from.decode() if state.initial_from else None) == s.initial_from
        for j in range(lib.adaptk_rule_preset_count(found)):
            preset = lib.adaptk_rule_preset(found, c_size_t(j)).contents
            assert preset.convention.decode() in adaptk.CONVENTIONS
        for get in (lib.adaptk_rule_hyper, lib.adaptk_rule_state, lib.adaptk_rule_preset):
            assert not get(found, c_size_t(99))
            assert c_abi.error().startswith("index: 99, expected less than ")
    assert not lib.adaptk_rule_at(c_size_t(len(RULES)))
    assert not lib.adaptk_find_rule(b"adamm")
    listed = ", ".join(rule.name for rule in RULES.values())
    assert c_abi.error() == f"name: unknown rule 'adamm'; the rules are {listed}"
    assert not lib.adaptk_find_rule(None)
    assert c_abi.error() == "name: NULL"
    assert not lib.adaptk_rule_hyper(None, c_size_t(0))
    assert not lib.adaptk_rule_hyper(byref(c_abi.Rule()), c_size_t(0))


# Steps


def run_both(rule: str, param: str, grad: str, number: int, **hyper: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same buffers, stepped by C and by the function for Python."""
    ours = make_list(rule, (1, 1000, 0, 7), param, grad)
    theirs = copies(ours)
    c_abi.step(rule, ours["param"], ours["grad"], c_abi.state_arrays(rule, states_of(rule, ours)), number, hyper)
    call(rule, theirs, step=number, **hyper)
    return ours, theirs


def states_of(rule: str, buffers: dict[str, Any]) -> dict[str, list[Array]]:
    return {s.name: buffers[s.name] for s in RULES[rule].states}


@pytest.mark.parametrize("rule", RULES)
def test_steps_of_every_type(rule: str) -> None:
    for param, grad in PAIRS:
        ours, theirs = run_both(rule, param, grad, 3, weight_decay=0.01)
        for name, arrays in ours.items():
            assert all(same_bits(a, b) for a, b in zip(arrays, theirs[name], strict=True)), (name, param, grad)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_plans_match_the_oracle(rule: str, dtype: str) -> None:
    rng = np.random.default_rng(5)
    params = [rng.normal(size=n).astype(dtype) for n in (3, 500)]
    states = c_abi.new_states(rule, params)
    want = [p.copy() for p in params]
    plan = Plan(rule, params, states)
    plan.init_states()
    count = len(RULES[rule].states)
    want_states: list[tuple[Array, ...]] = [
        tuple(s.copy() for s in states[i * count : (i + 1) * count]) for i in range(len(params))
    ]
    defaults = {h.name: h.default for h in RULES[rule].hyperparameters}
    for values in want_states:
        for info, value in zip(RULES[rule].states, values, strict=True):
            initial = info.initial if info.initial_from is None else defaults[info.initial_from]
            assert (value == value.dtype.type(initial)).all()
    own = {k: v for k, v in defaults.items() if k not in ("weight_decay", "decoupled", "maximize", "grad_scale")}
    common = {k: v for k, v in defaults.items() if k not in own}
    for t in range(1, 5):
        grads = [rng.normal(size=p.size).astype(dtype) for p in params]
        plan.step(grads)
        for i, g in enumerate(grads):
            want[i], want_states[i] = oracles.step(rule, want[i], g, want_states[i], step=t, hyper=own, **common)
    assert plan.steps == [4, 4]
    for p, w in zip(params, want, strict=True):
        assert same_bits(p, w)
    for s, w in zip(states, [s for values in want_states for s in values], strict=True):
        assert same_bits(s, w)


def test_layouts() -> None:
    """Axes in any order, no strides, a byte offset, no axes."""
    rng = np.random.default_rng(1)
    fortran = np.asfortranarray(rng.normal(size=(3, 4)))
    grad = np.asfortranarray(rng.normal(size=(3, 4)))
    want = fortran - 0.5 * grad
    c_abi.step("sgd", [fortran], [grad], [], 1, {"lr": 0.5})
    assert same_bits(fortran, want)
    scalar, plain = np.array(2.0), np.arange(6.0).reshape(2, 3)
    late = np.zeros(10)
    ones = [np.ones(()), np.ones((2, 3)), np.ones(2)]
    given = [tensor(scalar, shape=None, strides=None), tensor(plain, strides=None), tensor(late[:2], byte_offset=16)]
    c_abi.step("sgd", given, ones, [], 1, {"lr": 1.0})
    assert scalar == 1.0
    assert (plain == np.arange(6.0).reshape(2, 3) - 1).all()
    assert late.tolist() == [0, 0, -1, -1, 0, 0, 0, 0, 0, 0]


def test_options_and_reports() -> None:
    """Clipping, scaling and skipping as in the optimizer objects."""
    rng = np.random.default_rng(2)
    params = [rng.normal(size=n).astype(np.float32) for n in (40_000, 3)]
    mine, theirs = copies({"p": params})["p"], copies({"p": params})["p"]
    states = c_abi.new_states("adamw", mine)
    plan = Plan("adamw", mine, states, lr=0.1)
    plan.init_states()
    optimizer = adaptk.AdamW(theirs, lr=0.1)
    for given in ({}, {"clip_norm": 0.5}, {"grad_scale": 0.25, "clip_norm": 1e9}, {"skip_nonfinite": True}):
        grads = [rng.normal(size=p.size).astype(np.float32) for p in params]
        plan.step(grads, c_abi.options(**given))
        info = optimizer.step(grads, **given)
        got = plan.report()
        assert (got.has_norm, got.skipped) == (bool(given), False)
        assert got.grad_norm == (info.grad_norm if given else 0.0)
    bad = [np.full(40_000, np.inf, np.float32), np.ones(3, np.float32)]
    before = [p.tobytes() for p in mine]
    plan.step(bad, c_abi.options(skip_nonfinite=1))
    assert plan.report().skipped == 1
    assert [p.tobytes() for p in mine] == before == [p.tobytes() for p in theirs]
    assert plan.steps == [4, 4]
    out = c_abi.report()
    c_abi.step("sgd", mine, grads, [], 1, {}, c_abi.options(want_norm=1), out)
    assert out.has_norm == 1
    assert out.grad_norm == oracles.global_norm(grads)
    c_abi.step("sgd", mine, grads, [], 1, {}, None, out)
    assert (out.has_norm, out.grad_norm) == (0, 0.0)


def test_groups_and_missing_gradients() -> None:
    a, b, c = (np.linspace(-1, 1, n).astype(np.float32) for n in (5, 600, 7))
    mine, theirs = copies({"p": [a, b, c]})["p"], copies({"p": [a, b, c]})["p"]
    states = [c_abi.new_states("adam", mine[:2]), c_abi.new_states("adam", mine[2:])]
    plan = Plan("adam", mine[:2], states[0], lr=0.1)
    plan.add_group("adam", mine[2:], states[1], lr=0.01, beta1=0.5)
    plan.init_states()
    optimizer = adaptk.Adam([{"params": theirs[:2], "lr": 0.1}, {"params": theirs[2:], "lr": 0.01, "beta1": 0.5}])
    for t in range(4):
        grads: list[Any] = [p * np.float32(0.5) for p in mine]
        if t == 1:
            grads[0] = None
        if t == 2:
            plan.set(group=1, lr=0.5, eps=1e-3)
            optimizer.param_groups[1]["lr"], optimizer.param_groups[1]["eps"] = 0.5, 1e-3
        plan.step(grads, c_abi.options(clip_norm=0.3))
        optimizer.step(grads, clip_norm=0.3)
    assert plan.get("lr", 1) == 0.5
    assert (plan.get("lr"), plan.get("beta1", 1)) == (0.1, 0.5)
    assert plan.steps == [3, 4, 4]
    assert all(same_bits(p, q) for p, q in zip(mine, theirs, strict=True))
    size = c_size_t()
    assert lib.adaptk_plan_size(plan.handle, byref(size)) == OK
    assert size.value == 3


def test_a_run_continues() -> None:
    """A run resumes exactly from saved states and step counts."""
    p = np.linspace(-1, 1, 50)
    whole, cut = p.copy(), p.copy()
    states, halves = c_abi.new_states("nadam", [whole]), c_abi.new_states("nadam", [cut])
    one = Plan("nadam", [whole], states)
    one.init_states()
    for _ in range(6):
        one.step([whole * 0.5])
    first = Plan("nadam", [cut], halves)
    first.init_states()
    for _ in range(3):
        first.step([cut * 0.5])
    second = Plan("nadam", [cut], halves)
    second.steps = first.steps
    for _ in range(3):
        second.step([cut * 0.5])
    assert same_bits(whole, cut)
    assert second.steps == [6]


def test_no_gradients_at_all() -> None:
    p = np.ones(3)
    plan = Plan("sgd", [p], [])
    plan.step([None], c_abi.options(clip_norm=1.0))
    assert (p == 1).all()
    assert plan.steps == [0]
    assert plan.report().grad_norm == 0.0


@pytest.mark.parametrize("name", FLOATS)
def test_global_norm(name: str) -> None:
    rng = np.random.default_rng(3)
    arrays = [rng.normal(size=n).astype(FLOATS[name]) for n in (20_000, 3, 0)]
    out = c_double()
    assert lib.adaptk_global_norm(c_size_t(3), c_abi.tensors(arrays), c_double(0.5), None, byref(out)) == OK
    assert out.value == adaptk.global_norm(arrays, 0.5)
    wide = [a.astype(np.float64) for a in arrays]
    assert out.value == pytest.approx(0.5 * np.sqrt(sum((a * a).sum() for a in wide)))


# Errors


BAD_TENSORS: dict[str, tuple[int, str, Callable[[Array], Any]]] = {
    "NULL": (INVALID_ARGUMENT, "NULL", lambda a: None),
    "data NULL": (INVALID_ARGUMENT, "no memory", lambda a: tensor(a, data=None)),
    "an integer": (INVALID_TYPE, "int32", lambda a: tensor(a, code=0)),
    "a complex number": (INVALID_TYPE, "complex32", lambda a: tensor(a, code=5)),
    "8 bits": (INVALID_TYPE, "float8", lambda a: tensor(a, bits=8)),
    "two lanes": (INVALID_TYPE, "x2", lambda a: tensor(a, lanes=2)),
    "no lanes": (INVALID_TYPE, "x0", lambda a: tensor(a, lanes=0)),
    "ndim -1": (INVALID_ARGUMENT, "ndim is -1", lambda a: tensor(a, ndim=-1)),
    "shape NULL": (INVALID_ARGUMENT, "shape is NULL", lambda a: tensor(a, shape=None)),
    "a negative extent": (INVALID_ARGUMENT, "impossible shape (-1, 4)", lambda a: tensor(a, shape=(-1, 4))),
    "2**64 elements": (INVALID_ARGUMENT, "impossible shape", lambda a: tensor(a, shape=(1 << 32, 1 << 32))),
    "2**62 elements": (INVALID_ARGUMENT, "impossible shape", lambda a: tensor(a, shape=(1 << 31, 1 << 31))),
    "a gap": (INVALID_ARGUMENT, "strides", lambda a: tensor(a, strides=(8, 1))),
    "a stride of 0": (INVALID_ARGUMENT, "strides", lambda a: tensor(a, strides=(0, 1))),
    "a negative stride": (INVALID_ARGUMENT, "strides", lambda a: tensor(a, strides=(4, -1))),
    "a huge stride": (INVALID_ARGUMENT, "impossible stride", lambda a: tensor(a, strides=(1 << 62, 1))),
    "beside its elements": (INVALID_ARGUMENT, "multiple of 4", lambda a: tensor(a, byte_offset=2)),
    "a huge offset": (INVALID_ARGUMENT, "byte_offset", lambda a: tensor(a, byte_offset=(1 << 64) - 4)),
    "the end of memory": (
        *(INVALID_ARGUMENT, "end of memory"),
        lambda a: tensor(a, data=(1 << 64) - 16),
    ),
    "an unknown device": (INVALID_ARGUMENT, "DLPack type 7", lambda a: tensor(a, device_type=7)),
}
WHERE = {
    "param": r"params\[0\]",
    "grad": r"grads\[0\]",
    "exp_avg": r"states\[0\] \(exp_avg of params\[0\]\)",
    "exp_avg_sq": r"states\[1\] \(exp_avg_sq of params\[0\]\)",
}


def refused(status: int, text: str, run: Callable[[], Any], *arrays: Array) -> str:
    """The message of a call that must fail with this status and change nothing."""
    before = [a.tobytes() for a in arrays]
    with pytest.raises(CError) as e:
        run()
    assert e.value.status == status, e.value
    assert text in str(e.value), e.value
    assert [a.tobytes() for a in arrays] == before
    return str(e.value)


@pytest.mark.parametrize("argument", WHERE)
@pytest.mark.parametrize("what", BAD_TENSORS)
def test_bad_tensors(what: str, argument: str) -> None:
    status, text, bad = BAD_TENSORS[what]
    good = make("adam", (3, 4))
    if what in ("a gap", "a stride of 0", "a negative stride") and argument == "param":
        text = "not contiguous"
    given = {**good, argument: bad(good[argument])}
    states = [given["exp_avg"], given["exp_avg_sq"]]

    def one_call() -> None:
        c_abi.step("adam", [given["param"]], [given["grad"]], states, 1)

    def with_a_plan() -> None:
        plan = Plan("adam", [given["param"]], states)
        plan.step([given["grad"]])

    message = refused(status, text, one_call, *good.values())
    assert re.match(WHERE[argument] + ": ", message), message
    # A plan skips params without a gradient.
    if not (argument == "grad" and what == "NULL"):
        assert refused(status, text, with_a_plan, *good.values()) == message


def test_mismatched_tensors() -> None:
    f = {name: make("adam", (3, 4), name) for name in ("float32", "float64", "float16")}

    def run(**changed: Any) -> Callable[[], None]:
        b = {**f["float32"], **changed}
        return lambda: c_abi.step("adam", [b["param"]], [b["grad"]], [b["exp_avg"], b["exp_avg_sq"]], 1)

    arrays = list(f["float32"].values())
    refused(INVALID_TYPE, "dtype float32, expected float64 beside", run(param=f["float64"]["param"]), *arrays)
    refused(INVALID_TYPE, "dtype float64, expected float32", run(exp_avg=f["float64"]["exp_avg"]), *arrays)
    # 16-bit types are allowed instead of float32.
    run(exp_avg=np.zeros((3, 4), np.float16))()
    refused(INVALID_ARGUMENT, "shape (4, 3), expected (3, 4)", run(grad=np.ones((4, 3), np.float32)), *arrays)
    refused(INVALID_ARGUMENT, "shape (12,)", run(exp_avg=np.ones(12, np.float32)), *arrays)
    other = np.asfortranarray(np.ones((3, 4), np.float32))
    refused(INVALID_ARGUMENT, "strides (4, 12) in bytes", run(grad=other), *arrays)


def test_overlap() -> None:
    block = np.zeros(20, np.float32)
    one = np.ones(8, np.float32)
    adam = [np.ones(8, np.float32) for _ in range(2)]
    for grad in (block[:8], block[7:15]):
        message = refused(
            INVALID_ARGUMENT, "overlap", lambda g=grad: c_abi.step("adam", [block[:8]], [g], adam, 1), block
        )
        assert mentions(message, "grads[0]")
        assert mentions(message, "params[0]")
        plan = Plan("adam", [block[:8]], adam)
        refused(INVALID_ARGUMENT, "overlap", lambda g=grad, plan=plan: plan.step([g]), block)
    states = [block[4:12], adam[0]]
    message = refused(INVALID_ARGUMENT, "overlap", lambda: c_abi.step("adam", [block[:8]], [one], states, 1), block)
    assert "params[0] and states[0] (exp_avg of params[0])" in message
    refused(INVALID_ARGUMENT, "overlap", lambda: c_abi.step("sgd", [block[:8], block[2:10]], [one, one], [], 1), block)
    plan = Plan("adam", [block[:8]], adam)
    message = refused(INVALID_ARGUMENT, "overlap", lambda: plan.add_group("sgd", [block[7:9]], []), block)
    assert "of an earlier group" in message
    refused(INVALID_ARGUMENT, "exp_avg of params[0]", lambda: plan.add_group("sgd", [adam[0]], []), block)
    # Adjacent tensors do not overlap, and a rejected group does not change the plan.
    plan.add_group("sgd", [block[8:16]], [])
    plan.step([one, one])
    # Gradients may share memory with each other.
    c_abi.step("sgd", [block[:8], block[8:16]], [one, one], [], 1)


BAD_HYPERS: dict[str, tuple[int, str, str, dict[str, float]]] = {
    "NaN": (INVALID_ARGUMENT, "hypers[0]: lr: nan is not in [0, inf)", "adam", {"lr": np.nan}),
    "infinite": (INVALID_ARGUMENT, "hypers[1]: eps: inf", "adam", {"lr": 1.0, "eps": np.inf}),
    "negative": (INVALID_ARGUMENT, "weight_decay: -1", "adam", {"weight_decay": -1.0}),
    "too large": (INVALID_ARGUMENT, "beta1: 1 is not in [0, 1)", "adam", {"beta1": 1.0}),
    "no flag": (INVALID_ARGUMENT, "maximize: 0.5 is not 0 or 1", "adam", {"maximize": 0.5}),
    "unknown": (
        UNKNOWN_NAME,
        "hypers[0].name: adam has no hyperparameter 'momentum'; it has lr,",
        "adam",
        {"momentum": 1},
    ),
    "against each other": (INVALID_ARGUMENT, "eta_min must not be", "delta_bar_delta", {"eta_min": 2, "eta_max": 1}),
}


@pytest.mark.parametrize("what", BAD_HYPERS)
def test_bad_hyperparameters(what: str) -> None:
    status, text, rule, values = BAD_HYPERS[what]
    b = make(rule, 4)
    states = [b[s.name] for s in RULES[rule].states]
    refused(status, text, lambda: c_abi.step(rule, [b["param"]], [b["grad"]], states, 1, values), *b.values())
    refused(status, text, lambda: Plan(rule, [b["param"]], states, **values), *b.values())
    plan = Plan(rule, [b["param"]], states)
    before = {h.name: plan.get(h.name) for h in RULES[rule].hyperparameters}
    refused(status, text, lambda: plan.set(**values), *b.values())
    assert {h.name: plan.get(h.name) for h in RULES[rule].hyperparameters} == before


def raw_step(*arguments: Any) -> Callable[[], None]:
    return lambda: c_abi.check(lib.adaptk_step(*arguments))


def test_bad_arguments_of_steps() -> None:
    b = make("sgd", 4)
    p, g = c_abi.tensors([b["param"]]), c_abi.tensors([b["grad"]])
    none, one, first = c_size_t(0), c_size_t(1), c_int64(1)
    arrays = list(b.values())
    cases: list[tuple[int, str, tuple[Any, ...]]] = [
        (INVALID_ARGUMENT, "rule: NULL", (None, None, none, first, one, p, g, None, None, None)),
        (UNKNOWN_NAME, "rule: unknown rule 'sdg'", (b"sdg", None, none, first, one, p, g, None, None, None)),
        (INVALID_ARGUMENT, "hypers: NULL", (b"sgd", None, one, first, one, p, g, None, None, None)),
        (INVALID_ARGUMENT, "params: NULL", (b"sgd", None, none, first, one, None, g, None, None, None)),
        (INVALID_ARGUMENT, "grads: NULL", (b"sgd", None, none, first, one, p, None, None, None, None)),
        (INVALID_ARGUMENT, "states: NULL", (b"momentum", None, none, first, one, p, g, None, None, None)),
        (INVALID_ARGUMENT, "count: 0", (b"sgd", None, none, first, none, p, g, None, None, None)),
        (INVALID_ARGUMENT, "count: more", (b"sgd", None, none, first, c_size_t(1 << 29), p, g, None, None, None)),
    ]
    for number in (0, -1, -(2**63)):
        text = f"step: steps are counted from 1, got {number}"
        cases.append((INVALID_ARGUMENT, text, (b"sgd", None, none, c_int64(number), one, p, g, None, None, None)))
    for text, given in {
        "options: size is 0": c_abi.options(size=0),
        "options: size is 4096": c_abi.options(size=4096),
        "options: grad_scale: nan": c_abi.options(grad_scale=np.nan),
        "options: clip_norm: -1": c_abi.options(clip_norm=-1.0),
        "options: clip_norm: nan": c_abi.options(clip_norm=np.nan),
    }.items():
        cases.append((INVALID_ARGUMENT, text, (b"sgd", None, none, first, one, p, g, None, given, None)))
    cases.append(
        (INVALID_ARGUMENT, "report: size", (b"sgd", None, none, first, one, p, g, None, None, byref(c_abi.Report())))
    )
    unnamed = (c_abi.Hyper * 1)(c_abi.Hyper(None, 1.0))
    cases.append((INVALID_ARGUMENT, "hypers[0].name", (b"sgd", unnamed, one, first, one, p, g, None, None, None)))
    twice = (c_abi.Hyper * 2)(c_abi.Hyper(b"lr", 1.0), c_abi.Hyper(b"lr", 2.0))
    cases.append(
        (INVALID_ARGUMENT, "hypers[1]: lr is given twice", (b"sgd", twice, c_size_t(2), first, one, p, g, *[None] * 3))
    )
    for status, text, arguments in cases:
        refused(status, text, raw_step(*arguments), *arrays)
    assert lib.adaptk_step(b"sgd", None, none, first, one, p, g, None, None, None) == OK
    assert c_abi.error() == ""


def test_bad_arguments_of_plans() -> None:
    a = np.ones(4)
    plan = Plan("sgd", [a], [])
    one, out = c_size_t(1), c_double()
    g = c_abi.tensors([np.ones(4)])
    calls: list[tuple[int, str, Callable[[], int]]] = [
        (INVALID_ARGUMENT, "plan: NULL", lambda: lib.adaptk_plan_step(None, one, g, None)),
        (INVALID_ARGUMENT, "plan: NULL", lambda: lib.adaptk_plan_init_states(None)),
        (INVALID_ARGUMENT, "plan: NULL", lambda: lib.adaptk_plan_add_group(None, b"sgd", None, 0, one, g, None)),
        (INVALID_ARGUMENT, "plan: NULL", lambda: lib.adaptk_plan_create(b"sgd", None, 0, one, g, None, None)),
        (INVALID_ARGUMENT, "plan: NULL", lambda: lib.adaptk_plan_report(None, byref(c_abi.report()))),
        (INVALID_ARGUMENT, "report: NULL", lambda: lib.adaptk_plan_report(plan.handle, None)),
        (INVALID_ARGUMENT, "report: size", lambda: lib.adaptk_plan_report(plan.handle, byref(c_abi.Report()))),
        (INVALID_ARGUMENT, "grads: NULL", lambda: lib.adaptk_plan_step(plan.handle, one, None, None)),
        (INVALID_ARGUMENT, "count: 2, expected 1", lambda: lib.adaptk_plan_step(plan.handle, c_size_t(2), g, None)),
        (INVALID_ARGUMENT, "size: NULL", lambda: lib.adaptk_plan_size(plan.handle, None)),
        (INVALID_ARGUMENT, "steps: NULL", lambda: lib.adaptk_plan_get_steps(plan.handle, one, None)),
        (INVALID_ARGUMENT, "value: NULL", lambda: lib.adaptk_plan_get_hyper(plan.handle, c_size_t(0), b"lr", None)),
        (INVALID_ARGUMENT, "name: NULL", lambda: lib.adaptk_plan_get_hyper(plan.handle, c_size_t(0), None, byref(out))),
        (UNKNOWN_NAME, "name: sgd", lambda: lib.adaptk_plan_get_hyper(plan.handle, c_size_t(0), b"mu", byref(out))),
        (INVALID_ARGUMENT, "group: 1", lambda: lib.adaptk_plan_get_hyper(plan.handle, one, b"lr", byref(out))),
        (INVALID_ARGUMENT, "group: 1", lambda: lib.adaptk_plan_set_hypers(plan.handle, one, None, c_size_t(0))),
        (INVALID_ARGUMENT, "norm: NULL", lambda: lib.adaptk_global_norm(one, g, c_double(1), None, None)),
        (
            *(INVALID_ARGUMENT, "grad_scale: nan"),
            lambda: lib.adaptk_global_norm(one, g, c_double(np.nan), None, byref(out)),
        ),
    ]
    for status, text, run in calls:
        refused(status, text, lambda run=run: c_abi.check(run()), a)
    refused(INVALID_ARGUMENT, "steps[0]: -1", lambda: setattr(plan, "steps", [-1]))
    plan.steps = [2**63 - 1]
    refused(INVALID_ARGUMENT, "more than 2**63 - 1 steps", lambda: plan.step([np.ones(4)]), a)
    assert lib.adaptk_plan_destroy(None) == OK
    gap = np.ones((4, 4))[:, :2]
    refused(
        INVALID_ARGUMENT,
        "grads[0]: not contiguous",
        lambda: c_abi.check(lib.adaptk_global_norm(one, c_abi.tensors([gap]), c_double(1), None, byref(out))),
    )


# Threads


def test_errors_belong_to_their_thread() -> None:
    assert not lib.adaptk_find_rule(b"mine")
    theirs: list[str] = []

    def other() -> None:
        theirs.append(c_abi.error())
        lib.adaptk_find_rule(b"theirs")
        theirs.append(c_abi.error())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert theirs[0] == ""
    assert theirs[1].startswith("name: unknown rule 'theirs'")
    assert c_abi.error().startswith("name: unknown rule 'mine'")


def test_a_message_outlives_a_plan() -> None:
    """For example if a plan is garbage-collected between a failed call and the query of its message."""
    plan = Plan("sgd", [np.zeros(3)], [])
    assert not lib.adaptk_find_rule(b"mine")
    del plan
    gc.collect()
    assert lib.adaptk_plan_destroy(None) == OK
    assert c_abi.error().startswith("name: unknown rule 'mine'")


def test_a_plan_in_use_is_an_error() -> None:
    """Concurrent steps of two threads: each is applied completely or refused."""
    p = np.zeros(1_000_000, np.float16)
    g = np.full_like(p, -1.0)
    plan = Plan("sgd", [p], [], lr=1 / 64)
    taken, busy = [0, 0], [0, 0]
    together = threading.Barrier(2)
    statuses: set[int] = set()

    def work(k: int) -> None:
        given = c_abi.tensors([g])
        together.wait()
        for _ in range(60):
            status = lib.adaptk_plan_step(plan.handle, c_size_t(1), given, None)
            statuses.add(status)
            taken[k] += status == OK
            busy[k] += status == c_abi.BUSY
            if status == c_abi.BUSY:
                assert c_abi.error() == "plan: it is being used by another thread"

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert statuses <= {OK, c_abi.BUSY}
    assert sum(busy) > 0
    assert plan.steps == [sum(taken)]
    assert (p == sum(taken) / 64).all()


def test_one_plan_per_thread() -> None:
    def run() -> bytes:
        p = np.linspace(-1, 1, 5000).astype(np.float32)
        states = c_abi.new_states("adam", [p])
        plan = Plan("adam", [p], states, lr=0.1)
        plan.init_states()
        for _ in range(20):
            plan.step([p * np.float32(0.5)], c_abi.options(clip_norm=1.0))
        return p.tobytes()

    want = run()
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(run())) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == [want] * 4


# The machine


def test_threads_and_instruction_sets(restored: None) -> None:
    names = [lib.adaptk_isa_at(c_size_t(i)).decode() for i in range(lib.adaptk_isa_count())]
    assert names == adaptk.available_isas()
    assert lib.adaptk_isa_at(c_size_t(99)) is None
    for name in names:
        assert lib.adaptk_set_isa(name.encode()) == OK
        assert lib.adaptk_get_isa().decode() == name
    assert lib.adaptk_set_isa(b"avx9") == UNKNOWN_NAME
    assert "name: unknown instruction set 'avx9'" in c_abi.error()
    assert lib.adaptk_set_isa(None) == INVALID_ARGUMENT
    lacking = [name for name in adaptk._core.built_isas() if name not in names]
    for name in lacking:
        assert lib.adaptk_set_isa(name.encode()) == UNSUPPORTED
    assert lib.adaptk_get_isa().decode() == names[-1]
    for n in (0, -1, 1025):
        assert lib.adaptk_set_num_threads(c_int(n)) == INVALID_ARGUMENT
        assert f"got {n}" in c_abi.error()
    assert lib.adaptk_set_num_threads(1) == OK
    assert lib.adaptk_get_num_threads() == 1


LOAD = f"""
import ctypes
lib = ctypes.CDLL({str(c_abi.LIBRARY)!r})
for name in ("adaptk_last_error", "adaptk_get_isa"):
    getattr(lib, name).restype = ctypes.c_char_p
"""


def alone(code: str, **environment: str) -> str:
    """Runs in a process that has loaded only the library."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ADAPTK_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", LOAD + code], env={**kept, **environment}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_environment() -> None:
    show = "print(lib.adaptk_initialize(), lib.adaptk_last_error().decode(), sep='|')"
    assert alone(show) == "0|"
    assert alone("print(lib.adaptk_get_isa().decode())", ADAPTK_ISA="portable") == "portable"
    assert alone("print(lib.adaptk_get_num_threads())", ADAPTK_NUM_THREADS="3") == "3"
    # The environment does not override a setting made by a call.
    code = "lib.adaptk_set_num_threads(2); lib.adaptk_initialize(); print(lib.adaptk_get_num_threads())"
    assert alone(code, ADAPTK_NUM_THREADS="3") == "2"
    text = alone(show, ADAPTK_ISA="avx9")
    assert text.startswith(f"{INVALID_ARGUMENT}|ADAPTK_ISA: unknown instruction set 'avx9'; this machine has")
    assert alone(show, ADAPTK_NUM_THREADS="many") == f"{INVALID_ARGUMENT}|ADAPTK_NUM_THREADS: not a number: 'many'"
    # Everything else works, with the default.
    show = "print(lib.adaptk_get_isa().decode(), lib.adaptk_set_num_threads(1), lib.adaptk_initialize())"
    assert alone(show, ADAPTK_ISA="avx9") == f"{adaptk.available_isas()[-1]} {OK} {INVALID_ARGUMENT}"


def test_missing_cuda_library() -> None:
    """A tensor on a device, in a process whose CUDA part cannot be loaded."""
    missing = "/nowhere/libadaptk_cuda.so"
    show = "print(lib.adaptk_cuda_available(), lib.adaptk_cuda_device_count(ctypes.byref(ctypes.c_int())), "
    show += "lib.adaptk_last_error().decode())"
    text = alone(show, ADAPTK_CUDA_LIBRARY=missing)
    assert text.startswith(f"0 {UNSUPPORTED} no CUDA kernels: ")
    assert missing in text
    other = str(c_abi.LIBRARY)
    assert "is of another build" in alone(show, ADAPTK_CUDA_LIBRARY=other)


def test_structs_of_an_older_header() -> None:
    """They end after an earlier member: missing members have their defaults, and nothing is written beyond the end."""
    fields = c_abi.Options._fields_
    for k in range(2, len(fields) + 1):
        size = getattr(c_abi.Options, fields[k][0]).offset if k < len(fields) else ctypes.sizeof(c_abi.Options)
        param, grad = np.ones(4, np.float32), np.full(4, 2.0, np.float32)
        given = c_abi.Options(size=size, grad_scale=0.5, clip_norm=-1.0, skip_nonfinite=77, want_norm=1, grad_norm=-1.0)
        if k > 2:
            given.clip_norm = 0.5
        outcome = c_abi.Report(size=c_abi.Report.skipped.offset, skipped=-5)
        c_abi.step("sgd", [param], [grad], [], 1, None, byref(given), outcome)
        assert outcome.skipped == -5
        clip = 0.5 / 2.0 if k > 2 else 1.0
        assert np.allclose(param, 1 - 0.01 * 0.5 * 2 * clip)
        assert outcome.has_norm == (k > 2)
