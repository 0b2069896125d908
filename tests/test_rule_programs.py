"""The bytes of a rule: other processes load them, and invalid ones are refused."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import same_bits
from traced_rules import traced

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

HEADER = 12


def with_checksum(body: bytes) -> bytes:
    checksum = 0x811C9DC5
    for byte in body:
        checksum = ((checksum ^ byte) * 0x01000193) & 0xFFFFFFFF
    return b"ADKRULE\1" + struct.pack("<I", checksum) + body


def program(name: str = "adam") -> bytes:
    with traced(name) as made:
        return made.to_bytes()


ADAM = program()


def test_the_checksum_of_this_file_is_right() -> None:
    assert with_checksum(ADAM[HEADER:]) == ADAM


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not those of a rule"),
        (b"ADKRULE", "not those of a rule"),
        (b"x" * 100, "not those of a rule"),
        (ADAM[:7] + b"\4" + ADAM[8:], "version 4, and this library reads versions 1 to 3"),
        (ADAM[:7] + b"\2" + ADAM[8:], "more than 8 reductions"),
        (ADAM[:-1], "checksum"),
        (ADAM + b"\0", "checksum"),
        (with_checksum(ADAM[HEADER:-1]), "end too early"),
        (with_checksum(ADAM[HEADER:] + b"\0"), "something follows"),
    ],
)
def test_invalid_programs(data: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        adaptk.load_rule(data)


@pytest.mark.parametrize("data", [None, "text", bytearray(ADAM)])
def test_wrong_types(data: Any) -> None:
    with pytest.raises(TypeError, match="program: expected bytes"):
        adaptk.load_rule(data)


@settings(max_examples=400)
@given(st.data())
def test_changed_bytes_are_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(ADAM) - 1))
    changed = bytearray(ADAM)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="bytes:"):
        adaptk.load_rule(bytes(changed))


def run_if_it_loads(data: bytes) -> None:
    """A program that loads must run, on few and many elements, whatever it computes."""
    before = set(adaptk.rules())
    try:
        made = adaptk.load_rule(data)
    except ValueError:
        return
    try:
        for size in (1, 200):
            buffers = [np.full(size, 0.5, np.float32) for _ in range(2 + len(made.rule.states))]
            for decay in (0.0, 0.1):
                made(*buffers, step=2, weight_decay=decay)
    finally:
        made.unregister()
    assert set(adaptk.rules()) == before


@settings(max_examples=600)
@given(st.data())
def test_changed_bytes_with_a_valid_checksum_are_harmless(data: st.DataObject) -> None:
    body = bytearray(ADAM[HEADER:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    run_if_it_loads(with_checksum(bytes(body)))


def text(s: str) -> bytes:
    return struct.pack("<H", len(s)) + s.encode()


def packed(scalars: list[Any], elements: list[Any], results: list[int]) -> bytes:
    states = len(results) - 1
    body = struct.pack("<5H", 1, states, len(scalars), len(elements), 0)
    body += b"".join(map(text, ("random_rule", "", "", "", "", ""))) + struct.pack("<2d", 0, 0)
    body += text("lr") + struct.pack("<dB", 0.5, 1) + text("")
    for i in range(states):
        body += text(f"s{i}") + struct.pack("<dBB", 0, 255, 0)
    body += b"".join(struct.pack("<BHHHd", *n) for n in scalars)
    body += b"".join(struct.pack("<BHHH", *n) for n in elements)
    return with_checksum(body + struct.pack(f"<{len(results)}H", *results))


def chain(count: int) -> bytes:
    """Many values, then a sum of all of them."""
    nodes = [(1, 0, 0, 0), (2, 0, 0, 0), (5, 0, 1, 0), *((5 + i % 4, i, 1, 0) for i in range(2, count + 1))]
    total = len(nodes) - 1
    for i in range(2, count + 1):
        nodes.append((5, total, i, 0))
        total = len(nodes) - 1
    return packed([], nodes, [total])


NUMBERS = [(0, 0, 0, 0, float(i)) for i in range(95)]


def test_programs_at_their_limits() -> None:
    adaptk.load_rule(chain(25)).unregister()
    for data, match in [
        (chain(60), "more than 32 values are needed at the same time"),
        (packed([], [(1, 0, 0, 0)] * 513, [0]), "more than 512 operations on elements"),
        (packed([(0, 0, 0, 0, 1.0)] * 257, [(1, 0, 0, 0)], [0]), "more than 256 operations on hyper"),
        (packed(NUMBERS, [(0, i, 0, 0) for i in range(95)], [0]), "more than 94 numbers"),
    ]:
        with pytest.raises(ValueError, match=match):
            adaptk.load_rule(data)
    adaptk.load_rule(packed(NUMBERS, [(0, i, 0, 0) for i in range(94)], [0])).unregister()


@pytest.mark.parametrize(
    ("scalars", "elements", "results", "match"),
    [
        ([(25, 0, 0, 0, 0.0)], [(1, 0, 0, 0)], [0], "unknown operation"),
        ([(23, 0, 0, 0, 0.0)], [(1, 0, 0, 0)], [0], "a state per tensor that is not there"),
        ([(24, 3, 0, 0, 0.0)], [(1, 0, 0, 0)], [0], "an unknown number of a shape"),
        ([(24, 0, 0, 0, 0.0)], [(1, 0, 0, 0)], [0], "of version 1, and not what that is for"),
        ([(22, 0, 0, 0, 0.0)], [(1, 0, 0, 0)], [0], "a reduction that is not there"),
        ([], [(21, 0, 0, 0)], [0], "unknown operation"),
        ([], [(20, 0, 0, 0)], [0], "a reduction that is not there"),
        ([(3, 0, 0, 0, 0.0)], [(1, 0, 0, 0)], [0], "an operand that is not there"),
        ([(1, 3, 0, 0, 0.0)], [(1, 0, 0, 0)], [0], "a hyperparameter that is not there"),
        ([], [(0, 0, 0, 0)], [0], "an operand that is not there"),
        ([], [(3, 0, 0, 0)], [0], "a state that is not there"),
        ([], [(1, 0, 0, 0), (5, 0, 1, 0)], [0], "an operand that is not there"),
        ([], [(1, 0, 0, 0), (15, 0, 0, 9)], [1], "an operand that is not used"),
        ([], [(1, 0, 0, 0)], [1], "an operand that is not there"),
        ([(2, 0, 0, 0, 0.0), (21, 0, 0, 0, 0.0), (21, 1, 0, 0, 0.0)], [(1, 0, 0, 0)], [0], "within another"),
    ],
)
def test_invalid_nodes(scalars: list[Any], elements: list[Any], results: list[int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        adaptk.load_rule(packed(scalars, elements, results))


@settings(max_examples=300)
@given(st.data())
def test_random_programs_are_harmless(data: st.DataObject) -> None:
    small = st.integers(0, 300)
    scalars = data.draw(st.lists(st.tuples(st.integers(0, 23), small, small, small, st.floats()), max_size=6))
    elements = data.draw(st.lists(st.tuples(st.integers(0, 21), small, small, small), max_size=12))
    results = data.draw(st.lists(st.integers(0, 14), min_size=1, max_size=6))
    run_if_it_loads(packed(scalars, elements, results))


def test_the_same_bytes_give_the_same_rule() -> None:
    with traced("adam") as made:
        assert adaptk.load_rule(made.to_bytes()) is made
        assert pickle.loads(pickle.dumps(made)) is made
        assert pickle.loads(pickle.dumps(made.rule)) is made.rule


def test_another_process_has_the_same_bits() -> None:
    with traced("adam") as made:
        w = np.linspace(-1, 1, 100, dtype=np.float32)
        opt = made.Optimizer([w], lr=0.1)
        opt.step([w.copy()])
        data = pickle.dumps(opt)
        script = (
            "import sys, pickle, adaptk\n"
            "opt = pickle.loads(sys.stdin.buffer.read())\n"
            "opt.step([opt.param_groups[0]['params'][0] * 0 + 1])\n"
            "sys.stdout.buffer.write(pickle.dumps(opt.param_groups[0]['params'][0]))\n"
        )
        done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True)
        opt.step([np.ones_like(w)])
        assert same_bits(pickle.loads(done.stdout), w)
