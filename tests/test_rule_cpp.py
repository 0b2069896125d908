"""The C++ source of rules made at run time: compiled, it has the bits of the library's rules."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk.catalogue import find
from helpers import RULES, same_bits
from traced_rules import traced

COMPILER = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
SIZE = 50
STEPS = 4
MAIN = """
#include <cstdio>
#include <vector>

template <class R, class T, int States> void run() {
    std::vector<T> x[2 + States];
    for (int b = 0; b < 2 + States; ++b)
        for (int i = 0; i < %(size)d; ++i)
            x[b].push_back(b < 2 ? T(i %% (7 - b)) * T(0.5) - T(1.25) : T(0.5) + T(i %% (2 + b)) * T(0.25));
    for (int t = 1; t <= %(steps)d; ++t) {
        const auto c = adaptk::coefficients<R, T>(typename R::Hyper{}, t, {0.125, 0.0, 0.0, 1.0});
        for (int i = 0; i < %(size)d; ++i) {
            if constexpr (States == 0) adaptk::update<R>(c, x[0][i], x[1][i]);
            if constexpr (States == 1) adaptk::update<R>(c, x[0][i], x[1][i], x[2][i]);
            if constexpr (States == 2) adaptk::update<R>(c, x[0][i], x[1][i], x[2][i], x[3][i]);
            if constexpr (States == 3) adaptk::update<R>(c, x[0][i], x[1][i], x[2][i], x[3][i], x[4][i]);
            if constexpr (States == 4) adaptk::update<R>(c, x[0][i], x[1][i], x[2][i], x[3][i], x[4][i], x[5][i]);
        }
    }
    for (const auto& b : x) std::fwrite(b.data(), sizeof(T), b.size(), stdout);
}

int main() {
%(calls)s
}
"""


def start(states: int, dtype: Any) -> list[Any]:
    i = np.arange(SIZE)
    arrays = [(i % (7 - b)) * 0.5 - 1.25 for b in range(2)]
    arrays += [0.5 + (i % (2 + b)) * 0.25 for b in range(2, 2 + states)]
    return [a.astype(dtype) for a in arrays]


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_the_bits_of_the_compiled_rule(tmp_path: Path) -> None:
    calls, headers, states_of = [], [], {}
    logs = adaptk.rule(name="logs", lr=0.1)(lambda p, g, h, t: p - h.lr * adaptk.log(1 + t) * adaptk.floor(t / 2) * g)
    logs.unregister()
    copy = adaptk.rule(states={"a": "param"}, name="copy", lr=0.1)(lambda p, g, a, h, t: (p - h.lr * g, 0.5 * a + p))
    copy.unregister()
    own = {"logs": logs, "copy": copy}
    found = {rule: traced(rule) for rule in RULES} | {name: nullcontext(r) for name, r in own.items()}
    found["pnm"] = nullcontext(find("pnm"))
    for rule, context in found.items():
        with context as made:
            (tmp_path / f"{rule}.hpp").write_text(made.to_cpp())
            headers.append(f'#include "{rule}.hpp"')
            name, states = made.rule.class_names[0], len(made.rule.states)
            states_of[rule] = states
            calls += [f"    run<{name}, {t}, {states}>();" for t in ("float", "double")]
    source = tmp_path / "main.cpp"
    source.write_text("\n".join(headers) + MAIN % {"size": SIZE, "steps": STEPS, "calls": "\n".join(calls)})
    command = [COMPILER, "-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{adaptk.get_include()}", str(source), "-o", str(tmp_path / "main")]
    subprocess.run(command, check=True)
    data = subprocess.run([tmp_path / "main"], check=True, capture_output=True).stdout
    at = 0
    for rule in found:
        of = own.get(rule) or getattr(adaptk.ops, rule)
        for dtype in (np.float32, np.float64):
            want = start(states_of[rule], dtype)
            for step in range(1, STEPS + 1):
                hyper = {"weight_decay": 0.125, "decoupled": False}
                of(*want, step=step, **hyper)
            for a in want:
                got = np.frombuffer(data, dtype, SIZE, at)
                at += got.nbytes
                assert same_bits(got, a), rule
    assert at == len(data)


def test_rules_without_a_struct() -> None:
    made = find("focus")
    assert made is not None
    with pytest.raises(ValueError, match="focus: it reads weight_decay"):
        made.to_cpp()


def test_names_of_cpp() -> None:
    made = adaptk.rule(states={"new": "grad"}, name="register", lr=0.1, default=float("inf"))(
        lambda p, g, new, h, t: (adaptk.minimum(p, h.default) * -0.0 + new, new)
    )
    try:
        text = made.to_cpp()
    finally:
        made.unregister()
    assert "double default_ = HUGE_VAL;" in text
    assert "T& new_" in text
    assert re.search(r"const double s\d = -0x0p0;", text)
