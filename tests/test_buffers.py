"""Every kind of buffer that the functions take: layouts, offsets, libraries, and DLPack down to its structures."""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import (
    CUDA,
    CUDA_HOST,
    INT,
    IS_COPIED,
    PAIRS,
    READ_ONLY,
    RULES,
    DeviceUnknown,
    Exchanged,
    ExchangedByExport,
    ExchangedLater,
    ExchangedUnknown,
    Export,
    OldProducer,
    Producer,
    aligned_to,
    arguments,
    assert_same,
    available_bytes,
    call,
    copies,
    dtype_of,
    exchange_capsule,
    growth,
    make,
    make_list,
    margins,
    mentions,
    refused,
    same_bits,
)
from numpy.lib.stride_tricks import as_strided

LARGE_NEEDS = 12 << 30


def check(rule: str, buffers: Mapping[str, Any], **hyper: Any) -> None:
    """Arrays are updated to the bits that C-ordered copies of them are."""
    wanted = copies(buffers)
    call(rule, buffers, **hyper)
    call(rule, wanted, **hyper)
    assert_same(buffers, wanted)


def check_wrapped(rule: str, wrap: Callable[[Any], Any], argument: str | None = None, **options: Any) -> list[Any]:
    """Objects around arrays are updated as the arrays alone are. All of them, or one argument; one and in a list."""
    wrapped: list[Any] = []

    def around(name: str, a: Any) -> Any:
        if argument not in (None, name):
            return a
        wrapped.append(wrap(a))
        return wrapped[-1]

    arrays, wanted = make(rule, **options), make(rule, **options)
    call(rule, {name: around(name, a) for name, a in arrays.items()})
    call(rule, wanted)
    assert_same(arrays, wanted)
    call(rule, {name: [around(name, a)] for name, a in arrays.items()}, step=4)
    call(rule, wanted, step=4)
    assert_same(arrays, wanted)
    return wrapped


# Shapes


@pytest.mark.parametrize("rule", RULES)
def test_no_axes(rule: str) -> None:
    for param, grad in PAIRS:
        check(rule, make(rule, (), param, grad))
        buffers = make_list(rule, [3, 2], param, grad)
        for name, b in make(rule, (), param, grad).items():
            buffers[name].insert(1, b)
        check(rule, buffers)


@pytest.mark.parametrize("rule", RULES)
def test_no_elements(rule: str) -> None:
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 4)):
        for param, grad in PAIRS:
            check(rule, make(rule, shape, param, grad))
    for sizes in ([0], [0, 0, 0], [0, 4, 0, 0, 3, 0], [5, 0], [0, 5]):
        for param, grad in PAIRS:
            check(rule, make_list(rule, sizes, param, grad))


def test_no_elements_of_one_array() -> None:
    room = np.ones((4, 3), np.float32)
    empty = room[2:2]
    adaptk.ops.adam(empty, empty, empty, empty, step=1)
    adaptk.ops.adam([empty] * 2, [empty] * 2, [empty] * 2, [empty] * 2, step=1)
    assert same_bits(room, np.ones((4, 3), np.float32))


def permuted(a: Any, axes: Sequence[int]) -> Any:
    """The same array with another order of its axes in memory."""
    return np.ascontiguousarray(a.transpose(axes)).transpose(np.argsort(axes))


@pytest.mark.parametrize("rule", RULES)
def test_orders_of_axes(rule: str) -> None:
    for shape in ((3, 4), (2, 3, 4), (2, 1, 3, 2)):
        for axes in itertools.permutations(range(len(shape))):
            for param, grad in (("float32", "float32"), ("float32", "float16"), ("float64", "float32")):
                buffers = {name: permuted(b, axes) for name, b in make(rule, shape, param, grad).items()}
                check(rule, buffers)


def test_orders_of_axes_may_differ_within_a_list() -> None:
    shape = (2, 3, 4)
    orders = list(itertools.permutations(range(3)))
    buffers: dict[str, list[Any]] = {name: [] for name in arguments("adam")}
    for i, axes in enumerate(orders):
        for name, b in make("adam", shape, seed=i).items():
            buffers[name].append(permuted(b, axes))
    check("adam", buffers)


def test_slices_that_are_dense() -> None:
    for cut in (np.s_[1:3], np.s_[2:], np.s_[1:2, :, :], np.s_[3], np.s_[2, 1:]):
        check("adam", {name: b[cut] for name, b in make("adam", (4, 3, 5)).items()})


def test_axes_of_extent_one_may_have_any_stride() -> None:
    odd = [4, 0, -4, 12345, 1 << 40]
    for i, (name, _) in itertools.product(range(len(odd)), make("adam").items()):
        buffers = make("adam", (1, 5))
        buffers[name] = as_strided(buffers[name], (1, 5), (odd[i], 4))
        check("adam", buffers)
    turned = {name: as_strided(b, (3, 1, 4), (4, 77 * i, 12)) for i, (name, b) in enumerate(make("adam", 12).items())}
    check("adam", turned)
    producers = {
        name: Producer(b, shape=(3, 1, 4, 1), strides=(1, 77 * i, 3, -i))
        for i, (name, b) in enumerate(make("adam", 12).items())
    }
    arrays, wanted = {name: p.array for name, p in producers.items()}, make("adam", 12)
    call("adam", producers)
    call("adam", wanted)
    assert_same(arrays, wanted)


# Where the bytes are


@pytest.mark.parametrize(("param", "grad"), PAIRS)
def test_every_offset(param: str, grad: str, isa: str) -> None:
    for offset in range(1, 64):
        for rule, n in (("sgd", 1), ("sgd", 37), ("adam", 37), ("adam", 1100)):
            wanted = make(rule, n, param, grad)
            buffers = {}
            for i, (name, b) in enumerate(wanted.items()):
                buffers[name] = aligned_to((offset + 5 * i) % 64 or 1, n, b.dtype)
                buffers[name][...] = b
            around = [margins(b) for b in buffers.values()]
            call(rule, buffers)
            call(rule, wanted)
            assert_same(buffers, wanted)
            assert [margins(b) for b in buffers.values()] == around


@pytest.mark.parametrize("rule", RULES)
def test_rules_at_odd_addresses(rule: str) -> None:
    for offset, (param, grad) in itertools.product((1, 2, 4), PAIRS):
        wanted = make(rule, (3, 19), param, grad)
        buffers = {name: aligned_to(offset, b.shape, b.dtype) for name, b in wanted.items()}
        for name, b in buffers.items():
            b[...] = wanted[name]
        lists = {name: [b] for name, b in buffers.items()}
        for t in (1, 2, 3):
            call(rule, buffers if t % 2 else lists, step=t)
            call(rule, wanted, step=t)
        assert_same(buffers, wanted)


@pytest.mark.parametrize("param", ["float32", "float64", "float16"])
def test_odd_addresses_on_several_threads(param: str, threads: int) -> None:
    wanted = make_list("adam", [70_001, 3, 4096], param)
    buffers: dict[str, list[Any]] = {name: [] for name in wanted}
    for i, (name, arrays) in enumerate(wanted.items()):
        for a in arrays:
            buffers[name].append(aligned_to(2 * i + 1, a.shape, a.dtype))
            buffers[name][-1][...] = a
    call("adam", buffers)
    call("adam", wanted)
    assert_same(buffers, wanted)


def test_one_odd_address_among_aligned_ones() -> None:
    for odd in arguments("adam"):
        wanted = make("adam", 2100)
        buffers = copies(wanted)
        buffers[odd] = aligned_to(3, 2100, np.float32)
        buffers[odd][...] = wanted[odd]
        call("adam", buffers)
        call("adam", wanted)
        assert_same(buffers, wanted)


# What owns the bytes


@pytest.mark.parametrize("mode", ["r+", "w+", "c"])
def test_memmap(tmp_path: Path, mode: str) -> None:
    wanted = make("adam", (3, 7))
    buffers = {}
    for name, b in wanted.items():
        b.tofile(tmp_path / name)
        buffers[name] = np.memmap(tmp_path / name, b.dtype, mode, shape=b.shape)
        buffers[name][...] = b
    before = (tmp_path / "param").read_bytes()
    call("adam", buffers)
    call("adam", wanted)
    assert_same(buffers, wanted)
    for m in buffers.values():
        m.flush()
    after = (tmp_path / "param").read_bytes()
    assert after == (before if mode == "c" else wanted["param"].tobytes())
    buffers["param"] = np.memmap(tmp_path / "param", np.float32, "r", shape=(3, 7))
    with refused(ValueError, "param", unchanged=list(buffers.values())):
        call("adam", buffers)


def test_memory_of_other_objects() -> None:
    wanted = make("adam", 8)
    room = mmap.mmap(-1, 4096)
    buffers = {
        "param": np.frombuffer(bytearray(32), np.float32),
        "grad": np.frombuffer(bytes(wanted["grad"].tobytes()), np.float32),
        "exp_avg": np.frombuffer(array("f", wanted["exp_avg"]), np.float32),
        "exp_avg_sq": np.frombuffer(room, np.float32, 8, 64),
    }
    buffers["param"][:] = wanted["param"]
    buffers["exp_avg_sq"][:] = wanted["exp_avg_sq"]
    call("adam", buffers)
    call("adam", wanted)
    assert_same(buffers, wanted)


class Labelled(np.ndarray):
    """A subclass with an attribute and with slicing of its own, which are nothing to an update."""

    label: str

    def __array_finalize__(self, other: Any) -> None:
        self.label = getattr(other, "label", "none")

    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("nobody should look")


def test_subclasses() -> None:
    for rule in RULES:
        check_wrapped(rule, lambda a: a.view(Labelled))
    r = np.recarray(4, dtype=[("x", "f4"), ("y", "f4")]).view(np.ndarray)
    with refused(ValueError, "param", unchanged=[r]):
        adaptk.ops.sgd(r["x"], np.ones(4, np.float32), step=1)


def test_native_byte_order_spelled_out() -> None:
    order = "<" if sys.byteorder == "little" else ">"
    for dtype in ("f2", "f4", "f8"):
        p, q = np.ones(3, order + dtype), np.ones(3, dtype)
        adaptk.ops.sgd(p, p.copy(), step=1)
        adaptk.ops.sgd(q, q.copy(), step=1)
        assert same_bits(p, q)


def test_dtype_with_metadata() -> None:
    p = np.ones(3, np.dtype("f4", metadata={"unit": "m"}))
    adaptk.ops.sgd(p, np.ones(3, np.float32), step=1, lr=0.5)
    assert p.tolist() == [0.5] * 3


def test_bfloat16_of_ml_dtypes() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    p = np.ones(3, bfloat16)
    adaptk.ops.sgd(p, np.array([0.5, 1.0, 2.0], bfloat16), step=1, lr=0.5)
    assert p.tolist() == [0.75, 0.5, 0.0]
    with refused(TypeError, "grad", unchanged=[p]):
        adaptk.ops.sgd(p, np.ones(3, np.float16), step=1)
    half = np.ones(3, np.float16)
    adaptk.ops.sgd(half, np.array([0.5, 1.0, 2.0], bfloat16), step=1, lr=0.5)
    assert half.tolist() == [0.75, 0.5, 0.0]


# Lists


@pytest.mark.parametrize("rule", RULES)
def test_dtypes_may_differ_within_a_list(rule: str) -> None:
    buffers: dict[str, list[Any]] = {name: [] for name in arguments(rule)}
    for i, (param, grad) in enumerate(PAIRS * 2):
        for name, b in make(rule, i % 4 * 9, param, grad, seed=i).items():
            buffers[name].append(b)
    one_by_one = copies(buffers)
    check(rule, buffers)
    for i in range(len(buffers["param"])):
        call(rule, {name: b[i] for name, b in one_by_one.items()})
    assert_same(buffers, one_by_one)


def test_lists_and_tuples() -> None:
    class Several(list[Any]):
        pass

    wanted = make_list("adam", [3, 4])
    call("adam", wanted)
    for kinds in itertools.product([list, tuple, Several], repeat=4):
        buffers = make_list("adam", [3, 4])
        call("adam", {name: kind(b) for kind, (name, b) in zip(kinds, buffers.items(), strict=True)})
        assert_same(buffers, wanted)


@pytest.mark.parametrize("rule", RULES)
def test_many_small_tensors(rule: str, threads: int) -> None:
    sizes = [i * 37 % 211 for i in range(400)]
    buffers = make_list(rule, sizes)
    flat = {name: np.concatenate(b) for name, b in buffers.items()}
    call(rule, buffers)
    call(rule, flat)
    for name, b in buffers.items():
        assert same_bits(np.concatenate(b), flat[name])


# NumPy's array interface


class Interface:
    """An object with nothing but __array_interface__."""

    def __init__(self, a: Any, **changes: Any) -> None:
        self.kept = a
        self.interface = {**a.__array_interface__, **changes}

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.interface


class InterfaceWithDtype(Interface):
    """An array of some library: it also says its dtype and shape."""

    @property
    def dtype(self) -> Any:
        return self.kept.dtype

    @property
    def shape(self) -> Any:
        return self.kept.shape


@pytest.mark.parametrize("kind", [Interface, InterfaceWithDtype])
def test_array_interface(kind: type[Interface]) -> None:
    for argument in [None, *arguments("adam")]:
        check_wrapped("adam", kind, argument)
        check_wrapped("adam", kind, argument, shape=(3, 4))
        check_wrapped("adam", kind, argument, shape=())
    buffers = {name: np.asfortranarray(b) for name, b in make("adam", (3, 4)).items()}
    wanted = copies(buffers)
    call("adam", {name: kind(b) for name, b in buffers.items()})
    call("adam", wanted)
    assert_same(buffers, wanted)


def test_array_interface_refused() -> None:
    p, g = np.ones(4, np.float32), np.ones(4, np.float32)
    pointer = p.__array_interface__["data"][0]
    with refused(ValueError, "param", unchanged=[p, g]):
        adaptk.ops.sgd(Interface(p, data=(pointer, True)), g, step=1)
    with refused(TypeError, "param", unchanged=[p, g]):
        adaptk.ops.sgd(Interface(p, typestr="<i4"), g, step=1)
    with refused(TypeError, "param", unchanged=[p, g]):
        adaptk.ops.sgd(Interface(p, typestr=">f4"), g, step=1)
    with refused(ValueError, "grad[0]", unchanged=[p, g]):
        adaptk.ops.sgd([p], [Interface(g, strides=(8,), shape=(2,))], step=1)
    with refused(ValueError, "param", "grad", unchanged=[p, g]):
        adaptk.ops.sgd(Interface(p), p, step=1)
    readable = Interface(g, data=(g.__array_interface__["data"][0], True))
    adaptk.ops.sgd(p, readable, step=1, lr=0.5)
    assert p.tolist() == [0.5] * 4


# torch


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def tensors_of(torch: Any, buffers: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors over the memory of arrays."""

    def wrap(a: Any) -> Any:
        if a.dtype.name == "bfloat16":
            return torch.from_numpy(a.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(a)

    return {name: wrap(b) for name, b in buffers.items()}


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


def test_torch_beside_numpy(torch: Any) -> None:
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
        "float8": torch.ones(4).to(torch.float8_e4m3fn),
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


# DLPack

PRODUCERS: dict[str, Callable[..., Any]] = {
    "versioned": Producer,
    "unversioned": lambda a, **fields: Producer(a, versioned=False, **fields),
    "without max_version": OldProducer,
    "without a device": DeviceUnknown,
    "described": Exchanged,
    "exported": ExchangedByExport,
    "described, later table": ExchangedLater,
    "later table only": ExchangedUnknown,
}
VERSIONED = ["versioned", "without a device", "exported", "later table only"]


@pytest.fixture(autouse=True)
def no_exports() -> None:
    """What a failed test has left does not make others fail."""
    Export.live.clear()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack(rule: str, kind: str) -> None:
    for argument in [None, *arguments(rule)]:
        for param, grad in PAIRS if argument is None else PAIRS[:1]:
            producers = check_wrapped(rule, PRODUCERS[kind], argument, param=param, grad=grad)
            assert producers
            assert all(p.closed() for p in producers)
    assert not Export.live


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_shapes(kind: str) -> None:
    make_producer = PRODUCERS[kind]
    for shape in ((), 0, (3, 4), (2, 0), (2, 3, 4)):
        assert all(p.closed() for p in check_wrapped("adam", make_producer, shape=shape))
        no_strides = check_wrapped("adam", lambda a: make_producer(a, strides=None), shape=shape)
        assert all(p.closed() for p in no_strides)
    arrays = {name: np.asfortranarray(b) for name, b in make("adam", (3, 4), "float64", "float16").items()}
    wanted = copies(arrays)
    call("adam", {name: make_producer(a) for name, a in arrays.items()})
    call("adam", wanted)
    assert_same(arrays, wanted)
    assert not Export.live


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_byte_offset(kind: str) -> None:
    for offset in (4, 8, 1, 3, 62):
        arrays, wanted = make("adam", 9), make("adam", 9)
        rooms = {name: np.zeros(128, np.uint8) for name in arrays}
        producers = {}
        for name, room in rooms.items():
            room[offset : offset + 36] = arrays[name].view(np.uint8)
            fields = {"data": room.__array_interface__["data"][0], "byte_offset": offset}
            producers[name] = PRODUCERS[kind](arrays[name], **fields)
        call("adam", producers)
        call("adam", wanted)
        for name, room in rooms.items():
            assert room[offset : offset + 36].tobytes() == wanted[name].tobytes()
            assert not room[:offset].any()
            assert not room[offset + 36 :].any()


def test_dlpack_version_that_is_asked_for() -> None:
    p = Producer(np.ones(3, np.float32))
    adaptk.ops.sgd(p, np.ones(3, np.float32), step=1)
    ((major, minor),) = p.max_versions
    assert major == 1
    assert minor >= 0


def test_dlpack_later_minor_version() -> None:
    p = Producer(np.ones(3, np.float32), minor=99, flags=1 << 40)
    adaptk.ops.sgd(p, np.ones(3, np.float32), step=1, lr=0.5)
    assert p.array.tolist() == [0.5] * 3


def test_dlpack_memory_pinned_for_a_device() -> None:
    check_wrapped("adam", lambda a: Producer(a, device_type=CUDA_HOST))


def test_dlpack_without_a_deleter() -> None:
    for kind in (Producer, OldProducer):
        producers = check_wrapped("adam", lambda a, kind=kind: kind(a, deleter=None))
        for p in producers:
            for e in p.exports:
                assert e.deletions == 0
                del Export.live[e.address]


def refused_export(
    exception: type[Exception] | tuple[type[Exception], ...],
    kind: str,
    *labels: str,
    arguments_: Sequence[str] = ("param", "grad", "exp_avg", "exp_avg_sq"),
    array_: Any = None,
    **fields: Any,
) -> None:
    """A bad export in each place: refused, named, everything untouched, and every export deleted once."""
    for argument in arguments_:
        buffers = make("adam", 4)
        if array_ is not None:
            buffers[argument] = array_
        for several in (False, True):
            good = {name: Producer(b) for name, b in buffers.items()}
            producers = {**good, argument: PRODUCERS[kind](buffers[argument], **fields)}
            given = {name: [p] for name, p in producers.items()} if several else producers
            with refused(exception, argument + "[0]" * several, *labels, unchanged=list(buffers.values())):
                call("adam", given)
            assert all(p.closed() for p in producers.values())
    assert not Export.live


@pytest.mark.parametrize("kind", VERSIONED)
def test_dlpack_read_only(kind: str) -> None:
    refused_export(ValueError, kind, arguments_=("param", "exp_avg", "exp_avg_sq"), flags=READ_ONLY)
    check_wrapped("adam", lambda a: PRODUCERS[kind](a, flags=READ_ONLY), "grad")


@pytest.mark.parametrize("kind", VERSIONED)
def test_dlpack_copies(kind: str) -> None:
    refused_export(BufferError, kind, flags=IS_COPIED)
    refused_export(BufferError, kind, flags=IS_COPIED | READ_ONLY)


@pytest.mark.parametrize("kind", VERSIONED)
def test_dlpack_other_major_version(kind: str) -> None:
    for major in (0, 2, 1 << 31):
        refused_export(BufferError, kind, major=major)


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_on_a_gpu(kind: str) -> None:
    for device in (CUDA, 4, 7, 10, 14):
        refused_export(ValueError, kind, "device", device_type=device)


def test_dlpack_on_a_gpu_is_never_exported() -> None:
    p = Producer(np.ones(3, np.float32), device_type=CUDA)
    with refused(ValueError, "param", unchanged=[p.array]):
        adaptk.ops.sgd(p, np.ones(3, np.float32), step=1)
    assert p.exports == []


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_dtypes(kind: str) -> None:
    for fields in (
        {"lanes": 2},
        {"lanes": 0},
        {"code": INT},
        {"code": 200},
        {"code": 6, "bits": 8},
        {"bits": 8},
        {"bits": 128},
        {"bits": 0},
        {"code": 4, "bits": 32},
        {"code": 5, "bits": 64},
    ):
        refused_export(TypeError, kind, **fields)
    with refused(TypeError, "param"):
        adaptk.ops.sgd(PRODUCERS[kind](np.ones(2, np.complex64)), np.ones(2, np.float32), step=1)


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_impossible_shapes(kind: str) -> None:
    refused_export(ValueError, kind, data=None)
    for shape in ((-1,), (-4,), (2, -2), (-2, -2), (1 << 62,), (1 << 32, 1 << 32), (1 << 62, 1 << 62), (-(1 << 63),)):
        refused_export(ValueError, kind, shape=shape, strides=None)
        refused_export(ValueError, kind, shape=shape, strides=(1,) * len(shape))
    refused_export((ValueError, BufferError), kind, ndim=-1)
    refused_export((ValueError, BufferError), kind, shape=None, ndim=1)


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_no_memory_for_no_elements(kind: str) -> None:
    check_wrapped("adam", lambda a: PRODUCERS[kind](a, data=None), shape=0)
    check_wrapped("adam", lambda a: PRODUCERS[kind](a, data=None, strides=None), shape=(3, 0))


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_strides(kind: str) -> None:
    for strides in ((2,), (0,), (-1,), (1 << 61,), (-(1 << 63),), ((1 << 62) + 1,)):
        refused_export(ValueError, kind, strides=strides)
    for shape, strides in (((2, 2), (4, 1)), ((2, 2), (1, 1)), ((2, 2), (0, 1)), ((2, 2), (2, -1))):
        with refused(ValueError, "param"):
            room = np.ones(16, np.float32)
            adaptk.ops.sgd(
                PRODUCERS[kind](room, shape=shape, strides=strides),
                PRODUCERS[kind](room, shape=shape, strides=strides),
                step=1,
            )
    assert not Export.live


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_other_errors_delete_too(kind: str) -> None:
    def exports(buffers: Mapping[str, Any]) -> dict[str, Any]:
        return {name: PRODUCERS[kind](b) for name, b in buffers.items()}

    good = make("adam", 4)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"exp_avg_sq": np.ones(3, np.float32)}, ValueError, "exp_avg_sq"),
        ({"exp_avg_sq": np.ones(4, np.float64)}, TypeError, "exp_avg_sq"),
        ({"exp_avg_sq": good["param"]}, ValueError, "exp_avg_sq"),
        ({"grad": good["exp_avg"]}, ValueError, "grad"),
    ]
    for changes, exception, label in wrong:
        given = exports({**good, **changes})
        with refused(exception, label, unchanged=list(good.values())):
            call("adam", given)
        assert all(p.closed() for p in given.values())
        lists = [exports(make("adam", 4, seed=1)), exports({**good, **changes}), exports(make("adam", 4, seed=2))]
        with refused(exception, f"{label}[1]", unchanged=list(good.values())):
            call("adam", {name: [x[name] for x in lists] for name in good})
        assert all(p.closed() for x in lists for p in x.values())
    given = {**exports(good), "exp_avg_sq": None}
    with refused(TypeError, "exp_avg_sq", unchanged=list(good.values())):
        call("adam", given)
    assert not Export.live


class Raises:
    """An object that cannot be exported, or that does not even say where it is."""

    def __init__(self, error: type[BaseException], device: Any = (1, 0)) -> None:
        self.error, self.device = error, device

    def __dlpack__(self, **_: Any) -> Any:
        raise self.error("not today")

    def __dlpack_device__(self) -> Any:
        if self.device == "raises":
            raise self.error("not today")
        return self.device


def whole_message(error: BaseException | None) -> str:
    return "" if error is None else f"{error} {whole_message(error.__cause__)}"


@pytest.mark.parametrize("error", [BufferError, ZeroDivisionError, TypeError, KeyboardInterrupt])
def test_dlpack_exceptions_of_the_producer(error: type[BaseException]) -> None:
    for argument in arguments("adam"):
        buffers = make("adam", 4)
        before = copies(buffers)
        good = {name: Producer(b) for name, b in buffers.items()}
        for raises in (Raises(error), Raises(error, "raises")):
            with pytest.raises(error) as info:
                call("adam", {**good, argument: raises})
            assert "not today" in whole_message(info.value)
            assert_same(buffers, before)
            assert all(p.closed() for p in good.values())


class Returns:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __dlpack__(self, *, max_version: Any = None) -> Any:
        return self.value


def test_dlpack_returns_something_else() -> None:
    p = np.ones(4, np.float32)
    used = Producer(p).__dlpack__()
    adaptk.ops.sgd(Returns(used), np.ones(4, np.float32), step=1)
    for value in (None, 5, "dltensor", p, [], exchange_capsule(describe=True), used):
        with refused(BufferError, "param", unchanged=[p]):
            adaptk.ops.sgd(Returns(value), np.ones(4, np.float32), step=1)
    assert not Export.live


def test_dlpack_devices_that_make_no_sense() -> None:
    p = np.ones(4, np.float32)
    for device in (None, 5, (), ("cpu", 0), (1 << 40, 0), (1.5, 0), object()):
        with refused((TypeError, ValueError, BufferError), "grad", unchanged=[p]):
            adaptk.ops.sgd(p, Raises(BufferError, device), step=1)


def test_dlpack_capsule_that_nobody_takes() -> None:
    p = Producer(np.ones(3, np.float32))
    capsule = p.__dlpack__()
    del capsule
    assert p.closed()


def test_dlpack_overlap() -> None:
    room = np.ones(8, np.float32)
    for first, second in itertools.product(PRODUCERS.values(), repeat=2):
        with refused(ValueError, "param", "grad", unchanged=[room]):
            adaptk.ops.sgd(first(room[:5]), second(room[3:]), step=1)
        with refused(ValueError, "param[1]", "grad[0]", unchanged=[room]):
            p = np.ones(5, np.float32)
            adaptk.ops.sgd([p, first(room[:5])], [second(room[3:]), np.ones(5, np.float32)], step=1)
    assert not Export.live


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_in_an_optimizer(kind: str) -> None:
    params, alone = [np.ones(4, np.float32), np.ones((2, 3))], [np.ones(4, np.float32), np.ones((2, 3))]
    producers = [PRODUCERS[kind](p) for p in params]
    opt, reference = adaptk.Adam(producers), adaptk.Adam(alone)
    for _ in range(3):
        grads = [PRODUCERS[kind](np.full_like(p, 0.5)) for p in params]
        opt.step(grads)
        reference.step([np.full_like(p, 0.5) for p in params])
        assert all(g.closed() for g in grads)
        late = [PRODUCERS[kind](np.full_like(p, 0.5)) for p in params]
        with refused(ValueError, "grads[1]", unchanged=params):
            opt.step([late[0], PRODUCERS[kind](np.ones((3, 2)))])
        assert late[0].closed(), "an export outlives a failed step"
    for p, q in zip(params, alone, strict=True):
        assert same_bits(p, q)
    del opt
    gc.collect()
    assert all(p.closed() for p in producers)
    assert not Export.live


# References and leaks


@pytest.fixture
def frozen() -> Iterator[None]:
    """What there is now is out of the sight of the collector of cycles, which makes it fast."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def references(objects: Sequence[Any]) -> list[int]:
    gc.collect()
    return [sys.getrefcount(x) for x in objects]


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("kind", ["numpy", "torch", "interface", *PRODUCERS])
def test_references(kind: str) -> None:
    arrays = make("adam", 4)
    if kind == "torch":
        buffers = tensors_of(pytest.importorskip("torch"), arrays)
    else:
        wrap = {"numpy": lambda a: a, "interface": Interface, **PRODUCERS}[kind]
        buffers = {name: wrap(a) for name, a in arrays.items()}
    lists = {name: [b] for name, b in buffers.items()}
    step, lr, beta1 = 10**15 + 1, 0.0123, np.float64(0.8)
    hyper = {"step": step, "lr": lr, "beta1": beta1}
    objects = [*arrays.values(), *buffers.values(), *lists.values(), step, lr, beta1, adaptk.ops.adam]
    calls: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
        (buffers, {}, True),
        (lists, {}, True),
        (buffers, {"lr": -1.0}, False),
        (buffers, {"nonsense": lr}, False),
        ({**buffers, "exp_avg": buffers["param"]}, {}, False),
        ({**lists, "exp_avg": lists["param"]}, {}, False),
        ({**buffers, "exp_avg_sq": arrays["exp_avg"]}, {}, False),
        ({**buffers, "exp_avg_sq": None}, {}, False),
        ({**lists, "exp_avg_sq": [lr]}, {}, False),
        ({**lists, "grad": []}, {}, False),
    ]
    for given, changes, fine in calls:
        arguments_ = {**hyper, **changes}
        call("adam", buffers, **hyper)
        before = references(objects)
        for _ in range(5):
            if fine:
                call("adam", given, **arguments_)
            else:
                with pytest.raises((TypeError, ValueError)):
                    call("adam", given, **arguments_)
        assert references(objects) == before


def no_leak(work: Callable[[int], None], times: int) -> None:
    """Neither blocks of Python's allocator nor memory of the process stay behind."""
    work(times // 50)
    blocks = sys.getallocatedblocks()
    grown = growth(lambda: work(times), lambda: work(times // 50))
    assert sys.getallocatedblocks() - blocks < 500
    assert grown is None or grown < 4 << 20


@pytest.mark.usefixtures("frozen")
def test_a_million_calls_leak_nothing() -> None:
    b = make("adam", 3)
    p, g, m, v = b.values()
    lists = [[x] for x in b.values()]
    adam = adaptk.ops.adam

    def one(n: int) -> None:
        for t in range(1, n + 1):
            adam(p, g, m, v, step=t, lr=1e-9)

    def several(n: int) -> None:
        for t in range(1, n + 1):
            adam(*lists, step=t, lr=1e-9)

    no_leak(one, 700_000)
    no_leak(several, 300_000)


@pytest.mark.usefixtures("frozen")
def test_calls_by_dlpack_leak_nothing() -> None:
    class Wrapped:
        def __init__(self, a: Any) -> None:
            self.a = a

        def __dlpack__(self, **options: Any) -> Any:
            return self.a.__dlpack__(**options)

    class Plain:
        def __init__(self, a: Any) -> None:
            self.a = a

        def __dlpack__(self) -> Any:
            return self.a.__dlpack__()

    for kind in (Wrapped, Plain, Interface):
        b = [kind(x) for x in make("sgd", 3).values()]

        def work(n: int, b: list[Any] = b) -> None:
            for _ in range(n):
                adaptk.ops.sgd(*b, step=1)

        no_leak(work, 20_000)


@pytest.mark.usefixtures("frozen")
def test_calls_with_torch_leak_nothing(torch: Any) -> None:
    p, g = torch.ones(3), torch.ones(3)

    def work(n: int) -> None:
        for _ in range(n):
            adaptk.ops.sgd(p, g, step=1)

    no_leak(work, 200_000)


@pytest.mark.usefixtures("frozen")
def test_steps_of_an_optimizer_leak_nothing() -> None:
    opt, grads = adaptk.Adam([np.ones(3), np.ones(2)]), [np.ones(3), np.ones(2)]

    def work(n: int) -> None:
        for _ in range(n):
            opt.step(grads)

    no_leak(work, 100_000)


@pytest.mark.usefixtures("frozen")
def test_a_hundred_thousand_errors_leak_nothing() -> None:
    b = make("adam", 3)
    p, g, m, v = b.values()
    adam = adaptk.ops.adam
    no_export = Raises(BufferError)
    not_now = Returns(None)
    bad: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((p, g, m, None), {"step": 1}),
        ((p, g, m, m), {"step": 1}),
        ((p, g, m, v), {"step": 0}),
        ((p, g, m, v), {"step": 1, "lr": -1.0}),
        ((p, g, m, v), {"step": 1, "lr": "x"}),
        ((p, g, m, v), {"step": 1, "nonsense": 1}),
        ((p, g, m), {"step": 1}),
        ((p, g[:2], m, v), {"step": 1}),
        (([p, p], [g, g], [m, m], [v, v]), {"step": 1}),
        (([p], [g], [m], [no_export]), {"step": 1}),
        ((p, g, m, not_now), {"step": 1}),
        ((p, g, m, Interface(v, typestr="<i4")), {"step": 1}),
    ]

    def work(n: int) -> None:
        for i in range(n):
            args, options = bad[i % len(bad)]
            try:
                adam(*args, **options)
            except (TypeError, ValueError, BufferError):
                continue
            raise AssertionError(f"call {i % len(bad)} succeeded")

    no_leak(work, 100_000)


@pytest.mark.usefixtures("frozen")
def test_exports_with_errors_leak_nothing() -> None:
    def work(n: int) -> None:
        for i in range(n):
            p = Producer(np.ones(4, np.float32), flags=IS_COPIED * (i % 2))
            with pytest.raises((ValueError, BufferError)) as info:
                adaptk.ops.sgd(p, np.ones(3, np.float32), step=1)
            del info
            assert p.closed()

    no_leak(work, 2_000)
    assert not Export.live


# More elements than an int can count


@pytest.mark.large
def test_more_elements_than_an_int_can_count() -> None:
    room = available_bytes()
    if room is None or room < LARGE_NEEDS:
        pytest.skip(f"needs {LARGE_NEEDS >> 30} GiB of memory that is free")
    n = (1 << 31) + 5_000
    # Memory of np.zeros that is only read takes no room.
    param, grad = np.zeros(n, np.float16), np.zeros(n, np.float16)
    at = np.r_[0:3, (1 << 30) - 2 : (1 << 30) + 3, (1 << 31) - 3 : (1 << 31) + 4, n - 4 : n]
    values = np.arange(1, len(at) + 1, dtype=np.float16)
    param[at], grad[at] = values, -2 * values
    adaptk.ops.sgd(param, grad, step=1, lr=0.5)
    assert same_bits(param[at], 2 * values)
    assert np.count_nonzero(param) == len(at)
    adaptk.ops.sgd([param[: 1 << 20], param[1 << 20 :]], [grad[: 1 << 20], grad[1 << 20 :]], step=1, lr=0.5)
    assert same_bits(param[at], 3 * values)
    assert np.count_nonzero(param) == len(at)


def test_helpers_tell_apart() -> None:
    assert mentions("exp_avg: x", "exp_avg")
    assert not mentions("exp_avg_sq: x", "exp_avg")
    assert not mentions("grad[10]: x", "grad[1]")
    assert not mentions("grad[1]: x", "grad")
    assert dtype_of("exp_avg", "float16") == np.float32
    assert not same_bits(np.float32(0.0), np.float32(-0.0))
    a = np.zeros(8, np.float32)

    def change_and_fail() -> None:
        a[7] = -0.0
        raise ValueError

    with pytest.raises(AssertionError, match="changed"), refused(ValueError, unchanged=[a[2:4]]):
        change_and_fail()
