"""The handlers of adaptk._jax alone: errors for operands that adaptk.jax never passes."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import Array, same_bits

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax")
pytest.importorskip("adaptk._jax", reason="this build was made without jaxlib's headers", exc_type=ImportError)

import adaptk.jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jax_handler  # noqa: E402
from jax_handler import HandlerError, Memory  # noqa: E402


@pytest.fixture
def host() -> Memory:
    kept = []

    def put(data: bytes) -> int:
        kept.append(ctypes.create_string_buffer(len(data) + 64))
        address = -(-ctypes.addressof(kept[-1]) // 64) * 64
        ctypes.memmove(address, data, len(data))
        return address

    return Memory(put, ctypes.string_at)


def arguments(**changes: Any) -> tuple[list[Array], dict[str, Any]]:
    """A step of Adam over one tensor of 300 elements with states in 8 bits; None leaves an operand out."""
    rng = np.random.default_rng(0)
    operands: dict[str, Any] = {
        "param": rng.standard_normal(300, dtype=np.float32),
        "exp_avg": np.zeros(300, np.int8),
        "exp_avg_sq": np.zeros(300, np.uint8),
        "exp_avg_scales": np.zeros(3, np.float32),
        "exp_avg_sq_scales": np.zeros(3, np.float32),
        "grad": rng.standard_normal(300, dtype=np.float32),
        "count": np.array(1, np.int32),
    }
    values = [float(v) for v in adaptk.rules()["adam"].defaults().values()]
    attributes: dict[str, Any] = {
        "rule": "adam",
        "packed": np.array(False),
        "values": np.array(values),
        "traced": np.zeros(len(values), np.int32),
        "numbers": np.zeros(1, np.int32),
        "decayed": np.ones(1, np.int32),
        "formats": "int8,uint8",
        "param_format": "",
        "seed": np.int64(3),
    }
    for name, value in changes.items():
        (operands if name in operands else attributes)[name] = value
    return [x for x in operands.values() if x is not None], attributes


@pytest.mark.parametrize("in_place", [True, False])
def test_a_step(host: Memory, in_place: bool) -> None:
    operands, attributes = arguments()
    got = jax_handler.call("cpu", host, operands, 5, attributes, in_place=in_place)
    p, m, v, sm, sv, g, _ = (x.copy() for x in operands)
    adaptk.ops.adam(p, g, (m, sm), adaptk.formats.Stored(v, sv, "uint8"), step=1, seed=3)
    assert all(same_bits(a, b) for a, b in zip(got, (p, m, v, sm, sv), strict=True))


CODES, FLOATS = np.zeros(300, np.int8), np.zeros(300, np.float32)
WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"rule": "adm"}, 5, "rule: unknown rule 'adm'"),
    ({"values": np.zeros(2)}, 5, "adam: called with other hyperparameters than this version has"),
    ({"numbers": np.zeros(2, np.int32)}, 5, "adam: called with another number of arrays than it takes"),
    ({"decayed": np.ones(2, np.int32)}, 5, "decayed: expected one number for each tensor"),
    ({"formats": "int8"}, 5, "adam: called with another number of arrays than it takes"),
    ({}, 4, "adam: called with another number of arrays than it takes"),
    ({"grad": None}, 5, "adam: called with another number of arrays than it takes"),
    ({"formats": "int8,uint9"}, 5, "formats: unknown format 'uint9'"),
    ({"formats": "int8,uint8,int8"}, 5, "formats: more than there are states"),
    ({"formats": "int8,uint8", "exp_avg": FLOATS}, 5, "exp_avg: another dtype than int8 has"),
    ({"exp_avg_sq": CODES}, 5, "exp_avg_sq: another dtype than uint8 has"),
    ({"exp_avg": CODES[:299]}, 5, "exp_avg: expected the shapes of their params"),
    ({"exp_avg_scales": np.zeros(2, np.float32)}, 5, "exp_avg: expected 3 scales of float32 beside 300 elements"),
    ({"exp_avg_sq_scales": np.zeros(3)}, 5, "exp_avg_sq: expected 3 scales of float32 beside 300 elements"),
    ({"param": np.zeros(300)}, 5, "exp_avg: expected float64 beside a float64 param"),
    ({"param": CODES}, 5, "params: expected float32, float64, bfloat16, float16, float8_e4m3fn or float8_e5m2"),
    ({"grad": FLOATS[:299]}, 5, "grads: expected the shapes of their params"),
    ({"formats": ",", "exp_avg_scales": None, "exp_avg_sq_scales": None}, 3, "exp_avg: expected float32, float64, bf"),
    ({"packed": np.array(True)}, 5, "packed: no states with scales"),
    ({"count": np.array(1.0, np.float32)}, 5, "step: expected int32"),
    ({"count": np.array(0, np.int32)}, 5, "step: steps are counted from 1, got 0"),
]


@pytest.mark.parametrize(("changes", "kept", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_errors(host: Memory, changes: dict[str, Any], kept: int, message: str) -> None:
    operands, attributes = arguments(**changes)
    with pytest.raises(HandlerError) as e:
        jax_handler.call("cpu", host, operands, kept, attributes)
    assert str(e.value).startswith(message)


def test_calls_match_adaptk_jax(host: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the tests on a device call them: by a callback instead of XLA."""
    opt = adaptk.jax.adam(0.1, state_dtype="8bit", min_8bit_size=200, seed=4)
    params, grads = ({"a": jnp.arange(n) / n, "b": jnp.ones(150), "c": jnp.ones((3, 100))} for n in (300, 301))
    grads["a"] = grads["a"][:300]
    state = opt.init(params)
    want = jax.jit(opt.apply)(params, grads, state)
    jax_handler.route(monkeypatch, lambda *call: jax_handler.call("cpu", host, *call))
    got = jax.jit(lambda *x: opt.apply(*x))(params, grads, state)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert same_bits(a, b)
