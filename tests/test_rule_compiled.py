"""Rules compiled at run time: the bits of interpreted rules, and the cache of libraries."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import _cache, _compile
from adaptk.catalogue import find
from helpers import FLOATS, RULES, make, same_bits
from test_rule_bits import OPTIONS, compare, special
from traced_rules import traced

if os.name != "posix":
    pytest.skip("rules are compiled on Linux and macOS", allow_module_level=True)
try:
    _compile.compiler()
except RuntimeError:
    compilerless = True
else:
    compilerless = False
needs_compiler = pytest.mark.skipif(compilerless, reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache folder for the test."""
    monkeypatch.setenv("ADAPTK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def plain() -> Iterator[adaptk.TracedRule]:
    made = adaptk.rule(name="plain_step", lr=0.5)(lambda p, g, h, t: p - h.lr * g)
    yield made
    made.unregister()


def program(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def from_the_param(name: str, **options: Any) -> adaptk.TracedRule:
    """A rule that reads the param before decay and starts a state as a copy of it."""

    def drifting(p: Any, g: Any, a: Any, h: Any, t: Any) -> Any:
        return p - h.lr * g / (1 + h.rate * t), h.rate * a + (1 - h.rate) * p

    return adaptk.rule(states={"a": "param"}, name=name, lr=0.1, rate=0.75, **options)(drifting)


@needs_compiler
def test_a_compiled_rule_has_the_bits_of_the_interpreter(restored: None, cache: Path) -> None:
    interpreted = from_the_param("drifting_1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = from_the_param("drifting_2", compile=True)
    assert compiled.compiled_for == (adaptk.get_isa(),)
    assert interpreted.compiled_for == ()
    try:
        for isa in adaptk.available_isas():  # on the others it is interpreted
            adaptk.set_isa(isa)
            for dtype in FLOATS:
                for options in OPTIONS:
                    rng = np.random.default_rng(7)
                    a = [rng.normal(size=5003).astype(dtype) for _ in range(2)] + [np.zeros(5003, dtype)]
                    b = [x.copy() for x in a]
                    for step in (1, 2, 3):
                        interpreted(*a, step=step, **options)
                        compiled(*b, step=step, **options)
                    assert all(map(same_bits, a, b)), (isa, dtype, options)
        (library,) = cache.iterdir()
        assert stat.S_IMODE(library.stat().st_mode) == 0o500
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    finally:
        interpreted.unregister()
        compiled.unregister()


@needs_compiler
@pytest.mark.full
def test_every_rule(isa: str) -> None:
    """Each rule of the library, made at run time and compiled, against the built-in rule; and some of the catalogue."""
    with ExitStack() as stack:
        made = {rule: stack.enter_context(traced(rule)) for rule in RULES}
        others = [r for name in ("schedule_free_adamw", "adopt", "adabound", "kate") if (r := find(name)) is not None]
        before = {r.name: run_catalogue(r) for r in others}
        _compile.compile_rules([r.rule for r in (*made.values(), *others)])
        for r in (*made.values(), *others):
            assert isa in r.compiled_for
        for rule, r in made.items():
            for dtype in FLOATS:
                for size in (0, 1, 33, 129, 5003):
                    compare(rule, r, make(rule, size, dtype, seed=size))
                for options in OPTIONS:
                    compare(rule, r, special(make(rule, 333, dtype)), (1, 2, 1000), **options)
            compare(rule, r, make(rule, 150_001))
            for convention in RULES[rule].conventions:
                compare(rule, r, make(rule, 37), range(1, 20), **RULES[rule].defaults(convention))
            if RULES[rule].states:
                compare_8bit(rule, r)
        for r in others:
            assert all(map(same_bits, before[r.name], run_catalogue(r))), r.name


def run_catalogue(rule: adaptk.TracedRule) -> list[Any]:
    rng = np.random.default_rng(1)
    w = rng.normal(size=3001).astype(np.float32)
    opt = rule.Optimizer([w], weight_decay=0.01)
    for _ in range(4):
        opt.step([rng.normal(size=w.size).astype(np.float32)])
    return [w, *opt.state[0].values()]


def compare_8bit(rule: str, made: adaptk.TracedRule) -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=5003).astype(np.float32)
    a, b = w.copy(), w.copy()
    options: dict[str, Any] = {"state_dtype": "8bit", "seed": 3}
    one, two = adaptk.optimizer_for(rule, [a], **options), made.Optimizer([b], **options)
    for _ in range(3):
        g = rng.normal(size=w.size).astype(np.float32)
        one.step([g], clip_norm=1.0)
        two.step([g], clip_norm=1.0)
    assert same_bits(a, b), rule


@needs_compiler
def test_the_compiled_library_is_cached(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another process uses it without compiling; a rule loaded from bytes is only compiled on request."""
    script = (
        "import sys, adaptk\n"
        "made = adaptk.load_rule(bytes.fromhex(sys.argv[1]))\n"
        "assert made.compiled_for == ()\n"
        "made.compile()\n"
        "assert made.compiled_for == (adaptk.get_isa(),)\n"
        "import numpy as np; p = np.ones(3); made(p, np.ones(3), step=1); print(p.tolist())\n"
    )
    plain = adaptk.rule(name="plain_step", lr=0.5)(lambda p, g, h, t: p - h.lr * g)
    plain.unregister()
    real = _compile.compiler()
    log = tmp_path / "log"
    monkeypatch.setenv("CXX", program(tmp_path / "cxx", f'echo "$@" >> {log}\nexec {" ".join(real)} "$@"\n'))
    command = [sys.executable, "-c", script, plain.to_bytes().hex()]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate()[0] for p in processes] == ["[0.5, 0.5, 0.5]\n"] * 2
    assert all(p.returncode == 0 for p in processes)
    compiled = sum("--version" not in line for line in log.read_text().splitlines())
    assert 1 <= compiled <= 2
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[0.5, 0.5, 0.5]\n"
    assert sum("--version" not in line for line in log.read_text().splitlines()) == compiled
    assert len(list(cache.iterdir())) == 1


def test_concurrent_compilation(cache: Path) -> None:
    made, found = [], []

    def write(path: Path) -> None:
        made.append(path)
        path.write_bytes(b"x" * 100_000)

    def ask() -> None:
        found.append(_cache.file_of("thing", write).read_bytes())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [b"x" * 100_000] * 8
    assert len(set(made)) == len(made)
    assert [p.name for p in cache.iterdir()] == ["thing"]


def test_failed_compilation_leaves_no_file(cache: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        _cache.file_of("thing", fail)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_writable_by_others_is_refused(cache: Path, mode: int, plain: adaptk.TracedRule) -> None:
    cache.mkdir()
    cache.chmod(mode)
    if not compilerless:
        with pytest.raises(PermissionError, match=r"ADAPTK_CACHE: .*cache is not this user's alone"):
            plain.compile()
    with pytest.raises(PermissionError, match="ADAPTK_CACHE"):
        _cache.folder()
    assert plain.compiled_for == ()


def test_a_parent_folder_writable_by_others_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    cache.chmod(0o707)
    monkeypatch.setenv("ADAPTK_CACHE", str(cache / "own"))
    with pytest.raises(PermissionError, match=f"ADAPTK_CACHE: {cache} is not this user's alone"):
        _cache.folder()


def test_a_file_writable_by_others_is_refused(cache: Path) -> None:
    file = _cache.file_of("thing", lambda path: path.write_bytes(b"x") and None)
    file.chmod(0o720)
    with pytest.raises(PermissionError, match="thing: not a file of this user's alone"):
        _cache.file_of("thing", lambda path: None)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, plain: adaptk.TracedRule) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(RuntimeError, match="compile: needs GCC or Clang: CXX names 'no-such-compiler'"):
        plain.compile()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeError, match=r"compile: needs GCC or Clang: no c\+\+"):
        plain.compile()
    with pytest.warns(RuntimeWarning, match="fallen_back is interpreted: compile: needs GCC or Clang"):
        made = adaptk.rule(name="fallen_back", lr=0.5, compile=True)(lambda p, g, h, t: p - h.lr * g)
    p = np.ones(3)
    made(p, np.ones(3), step=1)
    made.unregister()
    assert p.tolist() == [0.5] * 3


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plain: adaptk.TracedRule) -> None:
    monkeypatch.setenv("CXX", program(tmp_path / "cxx", "echo sorry >&2; [ $1 = --version ]\n"))
    with pytest.raises(RuntimeError, match=r"cxx could not compile plain_step:\n(.*\n)*sorry"):
        plain.compile()
    assert plain.compiled_for == ()


def test_not_a_bool() -> None:
    with pytest.raises(TypeError, match="compile: expected a bool, got int"):
        adaptk.rule(lr=0.1, compile=1)  # type: ignore[call-overload]


def test_unknown_rule_or_instruction_set(plain: adaptk.TracedRule) -> None:
    for key, isa in (("adam", adaptk.get_isa()), (plain.rule.key, "made up")):
        with pytest.raises(ValueError, match="isa: unknown, or not a rule that was made at run time"):
            adaptk._core.use_compiled(key, isa, [1, 1, 1, 1])
