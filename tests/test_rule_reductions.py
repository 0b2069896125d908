"""Rules with reductions: values, bits, carried numbers, and errors."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import catalogue
from helpers import same_bits

SIZES = (1, 2, 255, 256, 257, 8191, 8192, 8193, 100_003)


@contextmanager
def registered(make: Any, **options: Any) -> Iterator[adaptk.TracedRule]:
    made = adaptk.rule(**options)(make)
    try:
        yield made
    finally:
        made.unregister()


def tree(terms: np.ndarray) -> float:
    """The sum in the library's order: leaves of 8192, 256 accumulators each, then pairs of neighbours."""
    leaves = []
    for at in range(0, terms.size, 8192):
        sums = np.zeros(256)
        leaf = terms[at : at + 8192].astype(np.float64)
        for row in range(0, leaf.size, 256):
            part = leaf[row : row + 256]
            sums[: part.size] += part
        while sums.size > 1:
            sums = sums[: sums.size // 2] + sums[sums.size // 2 :]
        leaves.append(float(sums[0]))
    while len(leaves) > 1:
        leaves = [sum(leaves[i : i + 2]) for i in range(0, len(leaves), 2)]
    return leaves[0] if leaves else 0.0


def values(p: Any, g: Any, h: Any, t: Any) -> Any:
    """The value of each reduction, written to the params."""
    x = p * g
    found = h.which
    value = adaptk.where(found == 0, adaptk.norm(x), 0.0)
    for k, of in enumerate((adaptk.sum(x), adaptk.mean(x), adaptk.norm(x, "all"), adaptk.sum(x, "all"))):
        value = value + adaptk.where(found == k + 1, of, 0.0)
    value = value + adaptk.where(found == 5, adaptk.mean(x, over="all"), 0.0)
    value = value + adaptk.where(found == 6, adaptk.max(x), 0.0)
    return value + adaptk.where(found == 7, adaptk.max(-x, over="all"), 0.0) + 0 * p


def numbers(size: int, dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(size + seed).normal(size=size).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_match_the_summation_tree(dtype: str) -> None:
    with registered(values, lr=1.0, which=0.0) as made:
        tensors = [numbers(n, dtype) for n in SIZES]
        products = [p * (2 * p) for p in tensors]
        one = np.concatenate(products)
        sums = {
            0: [math.sqrt(tree(x.astype(np.float64) ** 2)) for x in products],
            1: [tree(x) for x in products],
            2: [tree(x) / x.size for x in products],
            3: [math.sqrt(tree(one.astype(np.float64) ** 2))] * len(SIZES),
            4: [tree(one)] * len(SIZES),
            5: [tree(one) / one.size] * len(SIZES),
            6: [x.max() for x in products],
            7: [(-one).max()] * len(SIZES),
        }
        for which, want in sums.items():
            got = [p.copy() for p in tensors]
            made(got, [2 * p for p in tensors], step=1, which=float(which))
            for p, x in zip(got, want, strict=True):
                assert (p == np.dtype(dtype).type(x)).all(), (which, p.size)


def buffers(name: str, sizes: Any, dtype: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [numbers(n, dtype) for n in sizes], [numbers(n, dtype, 7) for n in sizes]


def run(name: str, params: list[np.ndarray], grads: list[np.ndarray], **options: Any) -> Any:
    opt = adaptk.optimizer_for(name, params, lr=0.1, **options)
    for k in range(3):
        opt.step([g * g.dtype.type(1 + k) for g in grads], clip_norm=2.0)
    return opt


NAMES = ("lamb", "lars", "stable_adamw", "prodigy", "dadapt_adam", "dadapt_sgd", "dog", "dowg", "fromage")


@pytest.mark.parametrize("name", NAMES)
def test_threads_and_instruction_sets_have_the_same_bits(name: str) -> None:
    before = adaptk.get_num_threads(), adaptk.get_isa()
    try:
        for dtype in ("float32", "float64"):
            want = None
            for isa in adaptk.available_isas():
                adaptk.set_isa(isa)
                for threads in (1, 2, 5):
                    adaptk.set_num_threads(threads)
                    params, grads = buffers(name, (200_003, 3, 70_000), dtype)
                    run(name, params, grads)
                    if want is None:
                        want = params
                    for p, q in zip(params, want, strict=True):
                        assert same_bits(p, q), (dtype, isa, threads)
    finally:
        adaptk.set_num_threads(before[0])
        adaptk.set_isa(before[1])


@pytest.mark.parametrize("name", NAMES)
def test_storage_has_the_same_bits(name: str) -> None:
    """Misaligned and encoded buffers have other code paths."""
    params, grads = buffers(name, (30_001, 5), np.float32)
    odd = []
    for p in params:
        memory = np.zeros(p.nbytes + 1, np.uint8)[1:]
        memory[:] = p.view(np.uint8)
        odd.append(memory.view(np.float32))
    a, b = run(name, params, grads), run(name, odd, grads)
    for p, q, one, two in zip(params, odd, a.state.values(), b.state.values(), strict=True):
        assert same_bits(p, q)
        assert all(same_bits(one[k], two[k]) for k in one)
    halves = [g.astype(np.float16) for g in grads]
    one, two = ([p.copy() for p in params] for _ in range(2))
    a, b = (adaptk.optimizer_for(name, x, lr=0.1) for x in (one, two))
    a.step(halves)
    b.step([g.astype(np.float32) for g in halves])
    for p, q in zip(one, two, strict=True):
        assert same_bits(p, q)


def keeps_old(p: Any, g: Any, a: Any, b: Any, h: Any, t: Any) -> Any:
    new = 0.5 * a + g
    return p - adaptk.max(new) * new, new, a


def uses_old(p: Any, g: Any, a: Any, b: Any, h: Any, t: Any) -> Any:
    new = 0.5 * a + g
    return p - adaptk.max(new) * (new - a), new, b + new


def exchanges(p: Any, g: Any, a: Any, b: Any, h: Any, t: Any) -> Any:
    new = a + g
    return p - adaptk.max(new + b) * new, b, new


def follows(p: Any, g: Any, a: Any, b: Any, h: Any, t: Any) -> Any:
    new = 0.5 * a + g
    largest = adaptk.max(new)
    return p - largest * new, new, b + largest * new


@pytest.mark.parametrize("make", [keeps_old, uses_old, exchanges, follows])
def test_states_that_a_pass_may_write(make: Any) -> None:
    """A step reads old states wherever the formula says so. A maximum does not depend on the order of elements."""
    half = np.float32(0.5)
    with registered(make, states={"a": 1.0, "b": 2.0}, lr=1.0) as made:
        params = [numbers(n, np.float32) for n in (1, 130, 9_001, 300_007)]
        want = [(p.copy(), np.full_like(p, 1), np.full_like(p, 2)) for p in params]
        opt = made.Optimizer(params)
        for k in range(3):
            grads = [numbers(p.size, np.float32, k) for p in params]
            opt.step(grads)
            for i, (g, (p, a, b)) in enumerate(zip(grads, want, strict=True)):
                new = a + g if make is exchanges else half * a + g
                if make is keeps_old:
                    want[i] = p - new.max() * new, new, a
                elif make is uses_old:
                    want[i] = p - new.max() * (new - a), new, b + new
                elif make is exchanges:
                    want[i] = p - (new + b).max() * new, b, new
                else:
                    want[i] = p - new.max() * new, new, b + new.max() * new
        for p, state, (q, a, b) in zip(params, opt.state.values(), want, strict=True):
            assert same_bits(p, q)
            assert same_bits(state["a"], a)
            assert same_bits(state["b"], b)


@pytest.mark.parametrize("name", ["lamb", "lars", "stable_adamw", "fromage"])
def test_float32_beside_float64(name: str) -> None:
    """Passes over float64 may be repeated with other scales; float32 beside it has the same values as alone."""
    (p,), (g,) = buffers(name, (70_001,), np.float32)
    q, (tiny,) = p.copy(), buffers(name, (999,), np.float64)[0]
    alone = adaptk.optimizer_for(name, [p], lr=0.1)
    both = adaptk.optimizer_for(name, [q, tiny * 1e-200], lr=0.1)
    for _ in range(3):
        alone.step([g])
        both.step([g, tiny * 1e-220])
    assert same_bits(p, q)
    assert all(same_bits(alone.state[0][k], both.state[0][k]) for k in alone.state[0])


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adam", "dadapt_sgd", "dog", "dowg"])
def test_partition_of_params_does_not_matter(name: str) -> None:
    whole, grads = buffers(name, (40_000,), np.float32)
    cut = (1, 9_000, 9_001, 25_000)
    parts = [p.copy() for p in np.split(whole[0], cut)]
    run(name, whole, grads)
    run(name, parts, np.split(grads[0], cut))
    assert same_bits(whole[0], np.concatenate(parts))


def test_groups_share_global_reductions() -> None:
    params, grads = buffers("prodigy", (500, 300), np.float32)
    apart = [p.copy() for p in params]
    one = adaptk.Prodigy(params, d0=0.1)
    two = adaptk.Prodigy([{"params": [p]} for p in apart], d0=0.1)
    for _ in range(3):
        one.step(grads)
        two.step(grads)
    for p, q in zip(params, apart, strict=True):
        assert same_bits(p, q)
    d = {g["d"] for g in two.param_groups} | {one.param_groups[0]["d"]}
    assert len(d) == 1
    assert d.pop() > 0.1


def test_only_global_reductions_depend_on_other_tensors() -> None:
    params, grads = buffers("lamb", (500, 300), np.float32)
    alone = [p.copy() for p in params]
    adaptk.LAMB(params, lr=0.1).step(grads)
    for p, g in zip(alone, grads, strict=True):
        adaptk.LAMB([p], lr=0.1).step([g])
    for p, q in zip(params, alone, strict=True):
        assert same_bits(p, q)


@pytest.mark.parametrize("scale", [1e-250, 1e-170, 1.0, 1e170, 1e250])
def test_norms_of_float64_beyond_the_range_of_squares(scale: float) -> None:
    def normalized(p: Any, g: Any, h: Any, t: Any) -> Any:
        return g / adaptk.norm(g)

    with registered(normalized, lr=1.0) as made:
        p, small = np.zeros(2), np.ones(3)
        made([p, small], [np.array([3.0, -4.0]) * scale, np.array([0.0, 0.0, 2.0])], step=1)
        np.testing.assert_allclose(p, [0.6, -0.8], rtol=1e-15)
        assert small.tolist() == [0.0, 0.0, 1.0]


def test_zeros_and_tensors_without_elements() -> None:
    for name in NAMES:
        empty, zero, other = np.zeros(0), np.zeros(4), np.ones(3)
        opt = adaptk.optimizer_for(name, [empty, zero, other], lr=0.1)
        for _ in range(2):
            opt.step([np.zeros(0), np.zeros(4), np.zeros(3)])
        assert np.isfinite(other).all()
        assert (zero == 0).all()
        opt.step([np.zeros(0), np.ones(4), np.ones(3)])
        assert np.isfinite(zero).all()


def test_the_gradient_is_scaled_and_decayed_first() -> None:
    def by_norm(p: Any, g: Any, h: Any, t: Any) -> Any:
        return adaptk.norm(g) + 0 * p

    with registered(by_norm, lr=1.0) as made:
        p, g = np.array([1.0, 2.0]), np.array([3.0, -1.0])
        made(p.copy(), g, step=1)
        for options, want in [
            ({"grad_scale": -2.0}, -2 * g),
            ({"maximize": True}, g),
            ({"weight_decay": 0.5}, g + 0.5 * p),
            ({"weight_decay": 0.5, "decoupled": True}, g),
        ]:
            q = p.copy()
            made(q, g, step=1, **options)
            assert q[0] == math.sqrt(tree(want**2))


def test_dependent_reductions() -> None:
    """Values that depend on a reduction are reduced again."""

    def chain(p: Any, g: Any, h: Any, t: Any) -> Any:
        unit = g / adaptk.norm(g)
        rest = p - adaptk.sum(p * unit) * unit
        return rest / adaptk.norm(rest, "all")

    with registered(chain, lr=1.0) as made:
        for size in (3, 20_000):
            p, g = numbers(size, np.float64), numbers(size, np.float64, 3)
            unit = g / np.linalg.norm(g)
            rest = p - (p @ unit) * unit
            made(p, g, step=1)
            np.testing.assert_allclose(p, rest / np.linalg.norm(rest), rtol=1e-9)


def test_carried_numbers_are_saved_and_kept_if_skipped() -> None:
    p, q = numbers(50, np.float32), numbers(50, np.float32)
    opt = adaptk.Prodigy([p], d0=0.1)
    opt.step([q.copy()])
    opt.step([p.copy()])
    d = opt.param_groups[0]["d"]
    assert d > 0.1
    info = opt.step([np.full(50, np.nan, np.float32)], skip_nonfinite=True)
    assert info.skipped
    assert opt.param_groups[0]["d"] == d
    with pytest.warns(UserWarning, match="None"):
        opt.step([None])
    assert opt.param_groups[0]["d"] == d
    other = adaptk.Prodigy([q])
    other.load_state_dict(opt.state_dict())
    held, again = pickle.loads(pickle.dumps((p, opt)))
    q[:] = p
    for of, x in ((opt, p), (other, q), (again, held)):
        of.step([np.ones(50, np.float32)])
        assert of.param_groups[0]["d"] == opt.param_groups[0]["d"]
        assert same_bits(x, p)


def test_options_of_rules_with_reductions() -> None:
    careful = adaptk.modify("lamb", cautious=True)
    assert careful.rule.reduces == "tensor"
    p, q = np.array([1.0, 2.0, -1.0]), np.array([1.0, 2.0, -1.0])
    g = np.array([1.0, -2.0, 0.5])
    a, b = (of([x], lr=0.1, weight_decay=0.0) for of, x in ((adaptk.LAMB, p), (careful.Optimizer, q)))
    for k in (1, 1, 1, -0.1):
        before = q.copy()
        a.step([k * g])
        b.step([k * g])
    # The momentum still points against the last gradient.
    assert same_bits(q, before)
    assert not same_bits(p, q)
    # No element moves against the gradient in the first step: it equals the rule's own.
    p, q = np.array([1.0, 2.0]), np.array([1.0, 2.0])
    for of, x in ((adaptk.LAMB, p), (careful.Optimizer, q)):
        of([x], lr=0.1, weight_decay=0.0).step([np.array([1.0, -2.0])])
    assert same_bits(p, q)


def made_of(source: str, **options: Any) -> None:
    scope: dict[str, Any] = {"adaptk": adaptk, "np": np}
    exec(f"def f(p, g, h, t):\n    return {source}", scope)
    adaptk.rule(lr=0.1, **options)(scope["f"]).unregister()


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        ("p - adaptk.norm(h.lr) * g", TypeError, "norm: expected elements, got what is the same for all of them"),
        ("p - adaptk.sum(adaptk.norm(g)) * g", TypeError, "sum: expected elements"),
        ("p - adaptk.mean(1.0) * g", TypeError, "adaptk.mean: expected a value inside a function of adaptk.rule"),
        ("p - adaptk.norm(g, 'tensors') * g", ValueError, r"adaptk.norm: over: 'tensors' is not one of tensor, all"),
        ("p - adaptk.cumprod(adaptk.norm(g)) * g", TypeError, "alone, got one of a reduction"),
        ("p - np.sum(g) * g", TypeError, r"np.sum on a traced value; use adaptk.sum"),
        ("p - g.mean() * g", TypeError, "a value has no shape"),
        ("g if adaptk.norm(g) > 1 else p", TypeError, "a branch on a hyperparameter, the step or a reduction"),
        ("(p - h.lr * g, adaptk.norm(g))", TypeError, "a reduction over one tensor as c; what is carried is the same"),
        ("p - (" + " + ".join(f"adaptk.sum(g * {k})" for k in range(9)) + ")", TypeError, "more than 8 reductions"),
    ],
)
def test_invalid_reductions(source: str, error: type[Exception], match: str) -> None:
    carried = {"carried": {"c": 0.0}} if "norm(g))" in source and source.startswith("(") else {}
    with pytest.raises(error, match=match):
        made_of(source, **carried)


def test_unsupported_features() -> None:
    table = np.ones((4, 3))
    with pytest.raises(ValueError, match="a gradient of rows, and lamb reduces tensors to numbers"):
        adaptk.LAMB([table]).step([(np.array([1]), np.ones((1, 3)))])
    assert (table == 1).all()
    for mode in ("dense", "catch_up"):
        with pytest.raises(ValueError, match="lamb"):
            adaptk.LAMB([table], sparse=mode).step([(np.array([1]), np.ones((1, 3)))])
    assert adaptk.rules()["lamb"].reduces == "tensor"
    lamb = catalogue.find("lamb")
    assert lamb is not None
    with pytest.raises(ValueError, match="lamb: it has reductions"):
        lamb.to_cpp()
    with pytest.raises(TypeError, match=r"it carries numbers on .* use its optimizer class"):
        adaptk.ops.dadapt_sgd(*(np.ones(2) for _ in range(4)), step=1)


def test_changed_bytes_are_harmless() -> None:
    prodigy = catalogue.find("prodigy")
    assert prodigy is not None
    data = prodigy.to_bytes()
    assert data[7] == 2
    rng = np.random.default_rng(0)
    ran = 0
    for _ in range(300):
        body = bytearray(data[12:])
        for at in rng.integers(0, len(body), rng.integers(1, 4)):
            body[at] = rng.integers(0, 256)
        checksum = 0x811C9DC5
        for byte in body:
            checksum = ((checksum ^ byte) * 0x01000193) & 0xFFFFFFFF
        try:
            made = adaptk.load_rule(b"ADKRULE\2" + checksum.to_bytes(4, "little") + bytes(body))
        except ValueError:
            continue
        ran += 1
        for size in (1, 9000):
            made.Optimizer([np.full(size, 0.5, np.float32)]).step([np.full(size, 0.5, np.float32)])
        made.unregister()
    assert ran > 10


@pytest.mark.parametrize("name", ["lamb", "prodigy"])
def test_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    import adaptk.torch

    cls = getattr(adaptk.torch, catalogue.CLASSES[name])
    params, grads = buffers(name, (300, 40), np.float32)
    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    ours, theirs = adaptk.optimizer_for(name, params, lr=0.5), cls(tensors, lr=0.5)
    for k in range(4):
        if k == 2:
            saved, theirs = theirs.state_dict(), cls(tensors)
            theirs.load_state_dict(saved)
        ours.step(grads)
        for w, g in zip(tensors, grads, strict=True):
            w.grad = torch.from_numpy(g)
        theirs.step()
    for w, p in zip(tensors, params, strict=True):
        assert same_bits(p, w.detach().numpy())
    if name == "prodigy":
        with pytest.raises(RuntimeError, match="hands numbers on from step to step"):
            theirs.step_param(tensors[0])


def test_jax_refuses_sharded_and_complex_params() -> None:
    jax = pytest.importorskip("jax")
    import adaptk.jax

    jnp = jax.numpy
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    cut = jax.device_put(jnp.ones(4), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    made = adaptk.jax.lamb(0.1)
    state = made.init([jnp.ones(4)])
    with pytest.raises(ValueError, match="cut into parts over several devices, and lamb reduces whole tensors"):
        made.apply([cut], [jnp.ones(4)], state)
    whole = [jnp.ones(4, jnp.complex64)]
    with pytest.raises(TypeError, match="complex, whose real and imaginary parts are tensors of their own"):
        made.apply(whole, whole, made.init(whole))


@pytest.mark.full
def test_torch_refuses_sharded_params() -> None:
    torch = pytest.importorskip("torch")
    import adaptk.torch

    distributed = pytest.importorskip("torch.distributed")
    tensor = pytest.importorskip("torch.distributed.tensor")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        for placement, cut in ((tensor.Shard(0), True), (tensor.Replicate(), False)):
            whole = tensor.distribute_tensor(torch.ones(4), mesh, [placement])
            w = torch.nn.Parameter(whole)
            w.grad = tensor.distribute_tensor(torch.ones(4), mesh, [placement])
            opt = adaptk.torch.LAMB([w], lr=0.5, weight_decay=0.0)
            if cut:
                with pytest.raises(TypeError, match="a DTensor that is cut into parts, and lamb reduces whole tensors"):
                    opt.step()
                assert (w.to_local() == 1).all()
            else:
                opt.step()
                np.testing.assert_allclose(w.detach().to_local().numpy(), 0.5, rtol=1e-6)
    finally:
        distributed.destroy_process_group()


def test_c_plans() -> None:
    from ctypes import c_size_t

    import c_abi
    from c_abi import lib

    params, grads = buffers("prodigy", (300, 40), np.float32)
    want = [p.copy() for p in params]
    prodigy = catalogue.find("prodigy")
    assert prodigy is not None
    data = prodigy.to_bytes()
    found = lib.adaptk_rule_load(data, c_size_t(len(data)))
    name = found.contents.name.decode()
    states = [a for p in params for a in (np.zeros_like(p), np.zeros_like(p), np.zeros_like(p), p.copy())]
    plan = c_abi.Plan(name, params, states)
    opt = adaptk.Prodigy(want)
    for _ in range(3):
        plan.step(grads)
        opt.step(grads)
    for p, q in zip(params, want, strict=True):
        assert same_bits(p, q)
    status = lib.adaptk_step(
        found.contents.name, None, c_size_t(0), c_abi.c_int64(1), c_size_t(1), None, None, None, None, None
    )
    assert status == c_abi.UNSUPPORTED
    assert "carries numbers on from step to step" in c_abi.error()
    assert c_abi.error().endswith("use a plan")
