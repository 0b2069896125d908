"""Buffers of PyTorch and JAX."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest
from buffer_cases import (
    no_exports,  # noqa: F401
    tensors_of,
)
from helpers import (
    PAIRS,
    RULES,
    arguments,
    assert_same,
    call,
    copies,
    make,
    refused,
    same_bits,
)


@pytest.mark.parametrize("rule", RULES)
def test_torch(torch: Any, rule: str) -> None:
    for param, grad in PAIRS:
        for shape in (5, (2, 3), (), 0):
            arrays, wanted = make(rule, shape, param, grad), make(rule, shape, param, grad)
            tensors = tensors_of(torch, arrays)
            call(rule, tensors)
            call(rule, wanted)
            assert_same(arrays, wanted)
            call(rule, {name: [t] for name, t in tensors.items()}, step=4)
            call(rule, wanted, step=4)
            assert_same(arrays, wanted)


def test_torch_parameters(torch: Any) -> None:
    p = torch.nn.Parameter(torch.ones(4))
    (p * torch.arange(4.0)).sum().backward()
    adaptk.ops.sgd(p, p.grad, step=1, lr=0.5)
    assert p.tolist() == [1.0, 0.5, 0.0, -0.5]
    adaptk.ops.sgd([p], [torch.ones(4, requires_grad=True)], step=1, lr=1.0)
    assert p.tolist() == [0.0, -0.5, -1.0, -1.5]
    assert p.requires_grad
    with torch.inference_mode():
        q = torch.ones(4)
        adaptk.ops.sgd(q, p.grad, step=1, lr=1.0)
    assert q.tolist() == [1.0, 0.0, -1.0, -2.0]

    class Named(torch.Tensor):
        pass

    r = torch.ones(4).as_subclass(Named)
    adaptk.ops.sgd(r, p.grad, step=1, lr=1.0)
    assert r.tolist() == q.tolist()


def test_torch_layouts(torch: Any) -> None:
    views: list[Callable[[Any], Any]] = [
        lambda t: t.t(),
        lambda t: t[1:],
        lambda t: t[1],
        lambda t: t.reshape(2, 1, 2, 3).permute(3, 1, 0, 2),
        lambda t: t.reshape(1, 2, 2, 3).contiguous(memory_format=torch.channels_last),
        lambda t: t.reshape(1, 12).expand(1, 12),
    ]
    for view in views:
        with_torch, with_numpy = make("adam", (4, 3)), make("adam", (4, 3))
        tensors = {name: view(torch.from_numpy(a)) for name, a in with_torch.items()}
        call("adam", tensors)
        same = {name: view(torch.from_numpy(a)).numpy() for name, a in with_numpy.items()}
        call("adam", same)
        assert_same({name: t.numpy() for name, t in tensors.items()}, same)
    p, g = torch.ones(4, 3), torch.ones(4, 3)
    for bad in (lambda t: t[:, :2], lambda t: t[::2], lambda t: t[0, 0].expand(4, 3), lambda t: t[:, 1]):
        with refused(ValueError, "param", unchanged=[p.numpy(), g.numpy()]):
            adaptk.ops.sgd(bad(p), bad(g), step=1)
        with refused(ValueError, "grad[0]", unchanged=[p.numpy(), g.numpy()]):
            adaptk.ops.sgd([bad(p).clone(memory_format=torch.contiguous_format)], [bad(g)], step=1)
    with refused(ValueError, "grad", unchanged=[p.numpy(), g.numpy()]):
        adaptk.ops.sgd(p, torch.ones(3, 4).t(), step=1)


def test_torch_and_numpy_in_one_call(torch: Any) -> None:
    for names in itertools.chain.from_iterable(itertools.combinations(arguments("adam"), k) for k in range(5)):
        for order in ("C", "F"):
            arrays = {name: np.array(b, order=order) for name, b in make("adam", (3, 4), "float64", "float32").items()}
            wanted = copies(arrays)
            call("adam", {name: torch.from_numpy(a) if name in names else a for name, a in arrays.items()})
            call("adam", wanted)
            assert_same(arrays, wanted)
    a = np.ones(6, np.float32)
    with refused(ValueError, "param", "grad", unchanged=[a]):
        adaptk.ops.sgd(torch.from_numpy(a)[:4], a[2:], step=1)


def unsuitable(torch: Any) -> dict[str, Any]:
    return {
        "int": torch.ones(4, dtype=torch.int32),
        "bool": torch.ones(4, dtype=torch.bool),
        "complex": torch.ones(4, dtype=torch.complex64),
        "float8": torch.ones(4).to(torch.float8_e4m3fnuz),
        "meta": torch.ones(4, device="meta"),
        "sparse": torch.ones(4).to_sparse(),
        "mkldnn": torch.ones(4).to_mkldnn() if torch.backends.mkldnn.is_available() else None,
    }


@pytest.mark.parametrize("kind", ["int", "bool", "complex", "float8", "meta", "sparse", "mkldnn"])
def test_torch_refused(torch: Any, kind: str) -> None:
    exceptions = (ValueError, BufferError, TypeError) if kind in ("meta", "sparse", "mkldnn") else TypeError
    for argument in arguments("adam"):
        buffers = make("adam", 4)
        wrong = {**buffers, argument: unsuitable(torch)[kind]}
        with refused(exceptions, argument, unchanged=list(buffers.values())):
            call("adam", wrong)
        with refused(exceptions, f"{argument}[0]", unchanged=list(buffers.values())):
            call("adam", {name: [b] for name, b in wrong.items()})


# jax


@pytest.fixture
def jax() -> Any:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return pytest.importorskip("jax")


@pytest.mark.parametrize("rule", RULES)
def test_jax_grads(jax: Any, rule: str) -> None:
    for shape in (5, (2, 3), (), 0):
        buffers, wanted = make(rule, shape), make(rule, shape)
        grad = jax.numpy.asarray(buffers["grad"])
        call(rule, {**buffers, "grad": grad})
        call(rule, wanted)
        assert_same(buffers, wanted)
        half = grad.astype(jax.numpy.bfloat16)
        call(rule, {**{name: [b] for name, b in buffers.items()}, "grad": (half,)})
        call(rule, {**wanted, "grad": np.asarray(half)})
        assert_same(buffers, wanted)


@pytest.mark.parametrize("rule", RULES)
def test_jax_arrays_are_values(jax: Any, rule: str) -> None:
    for argument in arguments(rule):
        if argument != "grad":
            buffers = make(rule)
            value = jax.numpy.asarray(buffers[argument])
            seen = np.array(value)
            with refused(ValueError, argument, unchanged=list(buffers.values())):
                call(rule, {**buffers, argument: value})
            with refused(ValueError, f"{argument}[0]", unchanged=list(buffers.values())):
                call(rule, {**{name: [b] for name, b in buffers.items()}, argument: [value]})
            assert same_bits(value, seen)


def test_jax_refused(jax: Any) -> None:
    p = np.ones(3, np.float32)
    with refused(TypeError, "grad", unchanged=[p]):
        adaptk.ops.sgd(p, jax.numpy.ones(3, int), step=1)
    with refused(ValueError, "grad", unchanged=[p]):
        adaptk.ops.sgd(p, jax.numpy.ones(4), step=1)
    with pytest.raises(TypeError):
        jax.jit(lambda g: adaptk.ops.sgd(p, g, step=1))(jax.numpy.ones(3))
    assert p.tolist() == [1.0] * 3
