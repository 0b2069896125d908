"""Initial values: known answers of the generator, bits, distributions, formulas of other systems."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from adaptk import _core, init
from helpers import FLOATS, Array, Producer, aligned_to, first_tier, margins, same_bits

# Every function that draws random numbers, with its required arguments.
DRAWN: dict[str, Callable[..., Any]] = {
    "uniform": lambda x, seed: init.uniform(x, seed=seed, low=-0.3, high=1.7),
    "normal": lambda x, seed: init.normal(x, seed=seed, mean=0.5, std=0.02),
    "truncated_normal": lambda x, seed: init.truncated_normal(x, seed=seed, mean=-1.0, std=3.0, low=-1.0, high=4.0),
    "glorot_uniform": lambda x, seed: init.glorot_uniform(x, seed=seed),
    "glorot_normal": lambda x, seed: init.glorot_normal(x, seed=seed, convention="keras"),
    "he_uniform": lambda x, seed: init.he_uniform(x, seed=seed, mode="fan_out"),
    "he_normal": lambda x, seed: init.he_normal(x, seed=seed),
    "lecun_uniform": lambda x, seed: init.lecun_uniform(x, seed=seed),
    "lecun_normal": lambda x, seed: init.lecun_normal(x, seed=seed, convention="keras"),
    "orthogonal": lambda x, seed: init.orthogonal(x, seed=seed, gain="tanh"),
    "sparse": lambda x, seed: init.sparse(x, seed=seed, sparsity=0.3, std=2.0),
}
FIXED: dict[str, Callable[..., Any]] = {
    "zeros": lambda x, seed: init.zeros(x, seed=seed),
    "constant": lambda x, seed: init.constant(x, 1.1, seed=seed),
    "identity": lambda x, seed: init.identity(x, seed=seed, gain=3.0),
}
ALL = {**DRAWN, **FIXED}


def new(shape: Any, dtype: str = "float32") -> Array:
    """A new array of NaN, which shows elements that are not filled."""
    return np.full(shape, np.nan).astype(FLOATS[dtype])


def test_every_function_is_tested() -> None:
    assert {*ALL, "calculate_gain", "fans"} == set(init.__all__)


# The generator


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    """The known answers of philox4x32 with 10 rounds in Random123 (kat_vectors)."""
    block, stream = (counter[i] | counter[i + 1] << 32 for i in (0, 2))
    assert tuple(_core.random_words(key[0] | key[1] << 32, stream, block, 1)[0]) == words


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("first", [0, 1, 255, 256, 2**32 - 300, 2**63])
def test_words_of_many_blocks(first: int) -> None:
    many = _core.random_words(7, 3, first, 700)
    assert np.array_equal(many, np.concatenate([_core.random_words(7, 3, first + i, 1) for i in range(700)]))


def philox(seed: int, stream: int, block: int) -> list[int]:
    """From the paper: a round multiplies two words and exchanges halves."""
    c = [block & 0xFFFFFFFF, block >> 32, stream & 0xFFFFFFFF, stream >> 32]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_from_the_formulas(dtype: str) -> None:
    """The Box-Muller transform with the math library, on the words of a generator in Python."""
    seed, count = 2**40 + 11, 2048
    x = init.normal(new(count, dtype), seed=seed)
    u = init.uniform(new(count, dtype), seed=seed)
    for element in (0, 1, 255, 256, 511, 600, 1000, 1024, 1500, 2047):
        each = 4 if dtype == "float32" else 2
        tile, place = divmod(element, 256 * each)
        number, block = divmod(place, 256)
        w = philox(seed, 0, tile * 256 + block)
        if dtype == "float32":
            radius, angle = w[2 * (number // 2)], w[2 * (number // 2) + 1]
            r = math.sqrt(-2 * math.log(((radius >> 1) + 0.5) / 2**31))
            turn = 2 * math.pi * (angle / 2**32)
            assert u[element] == np.float32((w[number] >> 8) / 2**24)
        else:
            radius, angle = w[0] << 32 | w[1], w[2] << 32 | w[3]
            r = math.sqrt(-2 * math.log(((radius >> 12) + 0.5) / 2**52))
            turn = 2 * math.pi * (angle / 2**64)
            assert u[element] == ((w[2 * number] << 32 | w[2 * number + 1]) >> 12) / 2**52
        want = r * (math.cos(turn) if number % 2 == 0 else math.sin(turn))
        assert abs(x[element] - want) <= (1e-6 if dtype == "float32" else 4e-15), element


# The same bits

HASH = "51d49dcefb074a3fba2b36da84bd3c6887ccedccff6470095cff36f0ee313532"


def digest() -> str:
    h = hashlib.sha256()
    for name in ALL:
        for dtype in FLOATS:
            if dtype != "bfloat16":  # which may not be installed
                h.update(ALL[name](new((67, 53), dtype), 12345).tobytes())
    h.update(init.normal(new(300_001), seed=1).tobytes())
    h.update(init.truncated_normal(new(100_001, "float64"), seed=1, low=3.0, high=math.inf).tobytes())
    h.update(init.orthogonal(new((130, 90), "float64"), seed=1).tobytes())
    return h.hexdigest()


def test_the_bits_of_every_machine(isa: str, threads: int) -> None:
    """The bits that every machine must give, with any instruction set and number of threads."""
    assert digest() == HASH


def test_subnormal_numbers() -> None:
    x = init.normal(new(1000), seed=0, std=1e-39)
    assert (x != 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["uniform", "normal", "truncated_normal"])
def test_parts_of_an_array(name: str, dtype: str) -> None:
    """Any partition gives the bits of the whole."""
    fill = getattr(init, name)
    whole = fill(new(5000, dtype), seed=9)
    for cuts in ([0, 1, 5000], [0, 255, 256, 257, 1024, 1025, 4999, 5000], [0, 3000, 3000, 5000]):
        parts = [fill(new(b - a, dtype), seed=9, offset=a) for a, b in pairwise(cuts)]
        assert same_bits(np.concatenate(parts), whole), cuts
    far = fill(new(10, dtype), seed=9, offset=2**62 - 1)
    assert np.isfinite(far.astype(float)).all()
    assert not same_bits(far, whole[:10])


@pytest.mark.parametrize("name", ["uniform", "normal", "truncated_normal"])
def test_16_bits_are_float32_rounded(name: str) -> None:
    fill = getattr(init, name)
    single = fill(new(3000), seed=4)
    for dtype in {*FLOATS} & {"float16", "bfloat16"}:
        assert same_bits(fill(new(3000, dtype), seed=4), single.astype(FLOATS[dtype]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ALL)
def test_layouts(name: str, dtype: str) -> None:
    """Odd sizes, no elements, other orders of axes, unaligned memory, and margins that do not change."""
    fill = ALL[name]
    for shape in ((1, 1), (3, 5), (1, 1031), (0, 4), (4, 0)):
        x = new(shape, dtype)
        assert fill(x, 3) is x
        assert not np.isnan(x.astype(float)).any()
        for offset in (1, 2, 3):
            odd = aligned_to(offset, shape, FLOATS[dtype])
            before = margins(odd)
            assert fill(odd, 3) is odd
            assert margins(odd) == before
            assert same_bits(odd, x)
    # By the order in memory, or by the position in the matrix.
    across = new((5, 3), dtype).T
    fill(across, 3)
    c_order = fill(new((3, 5), dtype), 3)
    if name in ("orthogonal", "identity", "sparse", "zeros", "constant"):
        assert same_bits(np.ascontiguousarray(across), c_order)
    elif name in ("uniform", "normal", "truncated_normal"):
        assert same_bits(across.T.ravel(), c_order.ravel())


def test_three_axes_in_any_order() -> None:
    want = init.orthogonal(new((4, 3, 5)), seed=2)
    for axes in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        x = new(tuple(np.array((4, 3, 5))[list(axes)])).transpose(np.argsort(axes))
        assert same_bits(np.ascontiguousarray(init.orthogonal(x, seed=2)), want)


@pytest.mark.parametrize("name", ALL)
def test_dlpack(name: str) -> None:
    array = new((6, 7))
    producer = Producer(array)
    assert ALL[name](producer, 5) is producer
    assert same_bits(array, ALL[name](new((6, 7)), 5))


@pytest.mark.parametrize("name", ALL)
def test_tensors(name: str, torch: Any) -> None:
    for dtype in FLOATS:
        t = torch.nn.Parameter(torch.full((6, 7), torch.nan, dtype=getattr(torch, dtype)))
        assert ALL[name](t, 5) is t
        assert np.array_equal(t.detach().double().numpy(), ALL[name](new((6, 7), dtype), 5).astype(float))


# Distributions, with fixed seeds

SEEDS = (0, 1, 2**32, 2**64 - 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", SEEDS)
def test_moments(dtype: str, seed: int) -> None:
    """The first four moments, within five standard errors."""
    n = 400_000
    x = init.normal(new(n, dtype), seed=seed).astype(float)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 5 * math.sqrt(variance / n), power
    u = init.uniform(new(n, dtype), seed=seed).astype(float)
    assert u.min() >= 0
    assert u.max() < 1
    for power in (1, 2, 3, 4):
        variance = 1 / (2 * power + 1) - 1 / (power + 1) ** 2
        assert abs((u**power).mean() - 1 / (power + 1)) < 5 * math.sqrt(variance / n), power


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", first_tier(SEEDS, 0))
def test_distribution_functions(dtype: str, seed: int) -> None:
    """The Kolmogorov-Smirnov test of 100,000 numbers of each distribution."""
    stats = pytest.importorskip("scipy.stats")
    n = 100_000
    drawn = [
        (init.uniform(new(n, dtype), seed=seed), stats.uniform),
        (init.normal(new(n, dtype), seed=seed), stats.norm),
        (init.truncated_normal(new(n, dtype), seed=seed), stats.truncnorm(-2, 2)),
        (init.truncated_normal(new(n, dtype), seed=seed, low=4.0, high=math.inf), stats.truncnorm(4, np.inf)),
        (init.truncated_normal(new(n, dtype), seed=seed, low=-30.0, high=-20.0), stats.truncnorm(-30, -20)),
        (init.truncated_normal(new(n, dtype), seed=seed, low=-0.1, high=5.0), stats.truncnorm(-0.1, 5)),
    ]
    for x, distribution in drawn:
        assert stats.kstest(x.astype(float), distribution.cdf).pvalue > 1e-3


def test_tails() -> None:
    """The number of values beyond 4 and 5 is as expected, within five standard errors."""
    stats = pytest.importorskip("scipy.stats")
    n = 4_000_000
    for dtype in ("float32", "float64"):
        x = abs(init.normal(new(n, dtype), seed=6))
        for end in (3.0, 4.0, 4.5, 5.0):
            expected = n * 2 * stats.norm.sf(end)
            assert abs((x > end).sum() - expected) < 5 * math.sqrt(expected), end


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_neighbours_are_independent(dtype: str) -> None:
    """Numbers, and their squares, at the distances that the generator's blocks and tiles have."""
    n = 262_144
    x = init.normal(new(n, dtype), seed=8).astype(float)
    for values in (x, (x**2 - 1) / math.sqrt(2)):
        for lag in (1, 2, 3, 4, 64, 255, 256, 257, 512, 768, 1024):
            assert abs((values[lag:] * values[:-lag]).mean()) < 5 / math.sqrt(n - lag), lag


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_seeds_are_independent(dtype: str) -> None:
    """Also seeds that differ in one bit."""
    n = 65_536
    drawn = {s: init.normal(new(n, dtype), seed=s).astype(float) for s in (0, 1, 2, 3, 2**31, 2**32, 2**63, 2**64 - 1)}
    for a, x in drawn.items():
        for b, y in drawn.items():
            if a < b:
                assert abs((x * y).mean()) < 5 / math.sqrt(n), (a, b)
                assert abs((x**2 * y**2).mean() - 1) < 5 * math.sqrt(8 / n), (a, b)


def test_normal_probability() -> None:
    special = pytest.importorskip("scipy.special")
    x = np.concatenate([np.linspace(-37, 8, 4501), [-2.5, np.nextafter(-2.5, 0), 0.0]])
    got = np.array([_core.normal_probability(v) for v in x])
    # SciPy's own error is 2e-13 at the far end.
    assert np.allclose(got, special.ndtr(x), rtol=1e-12, atol=0)
    assert _core.normal_probability(-math.inf) == 0
    assert _core.normal_probability(math.inf) == 1


def test_quantiles() -> None:
    """A truncated normal number is the quantile of a uniform one; with wide ends, of the same bits as uniform()."""
    special = pytest.importorskip("scipy.special")
    u = init.uniform(new(50_000, "float64"), seed=3) + 2.0**-53
    x = init.truncated_normal(new(50_000, "float64"), seed=3, low=-math.inf, high=math.inf)
    assert np.allclose(x, special.ndtri(u), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", FLOATS)
def test_ends_of_truncation(dtype: str) -> None:
    for low, high in ((-2.0, 2.0), (1.0, 1.0 + 1e-12), (-36.0, -35.9), (36.0, math.inf), (-math.inf, -36.0)):
        x = init.truncated_normal(new(3000, dtype), seed=0, low=low, high=high).astype(float)
        assert np.isfinite(x).all()
        rounded = [np.array(end).astype(FLOATS[dtype]).astype(float) for end in (low, high)]
        assert rounded[0] <= x.min()
        assert x.max() <= rounded[1]
    assert (init.truncated_normal(new(10, dtype), seed=0, mean=2.0, std=0.0, low=-math.inf) == 2).all()


# Formulas of other systems

SHAPES = ((40, 30), (16, 8, 3), (12, 6, 3, 5))


def test_gains_of_torch(torch: Any) -> None:
    for name in ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"):
        assert init.calculate_gain(name) == torch.nn.init.calculate_gain(name)
    assert init.calculate_gain("conv") == torch.nn.init.calculate_gain("conv2d")
    assert init.calculate_gain("leaky_relu", 0.2) == torch.nn.init.calculate_gain("leaky_relu", 0.2)


@pytest.mark.parametrize("shape", SHAPES)
def test_scales_of_torch(shape: tuple[int, ...], torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters that torch passes to its distributions."""
    asked: list[tuple[float, ...]] = []
    modules = torch.nn.init
    monkeypatch.setattr(modules, "_no_grad_uniform_", lambda t, a, b, generator=None: asked.append((a, b)))
    monkeypatch.setattr(modules, "_no_grad_normal_", lambda t, m, s, generator=None: asked.append((m, s)))
    weight = torch.empty(shape)
    modules.xavier_uniform_(weight, gain=2.0)
    modules.xavier_normal_(weight, gain=2.0)
    fans = modules._calculate_fan_in_and_fan_out(weight)
    assert init.fans(shape) == fans
    x = new(shape, "float64")
    assert same_bits(
        init.glorot_uniform(new(shape, "float64"), seed=1, gain=2.0),
        init.uniform(x, seed=1, low=asked[0][0], high=asked[0][1]),
    )
    assert np.allclose(
        init.glorot_normal(new(shape, "float64"), seed=1, gain=2.0),
        init.normal(x, seed=1, std=asked[1][1]),
        rtol=1e-14,
        atol=0,
    )
    monkeypatch.undo()
    for mode in ("fan_in", "fan_out"):
        gain = modules.calculate_gain("leaky_relu", 0.3)
        std = gain / math.sqrt(modules._calculate_correct_fan(weight, mode))
        ours = init.he_normal(new(shape, "float64"), seed=1, mode=mode, gain=gain)
        assert np.allclose(ours, init.normal(x, seed=1, std=std), rtol=1e-14, atol=0)
        # The bound of kaiming_uniform_ is not accessible: use the largest of many numbers.
        drawn = modules.kaiming_uniform_(torch.empty(200, 100), a=0.3, mode=mode).abs().max().item()
        bound = np.abs(init.he_uniform(new((200, 100), "float64"), seed=1, mode=mode, gain=gain)).max()
        assert bound == pytest.approx(drawn, rel=2e-3)


@pytest.mark.full
@pytest.mark.parametrize("shape", SHAPES)
def test_scales_of_keras(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    asked: dict[str, Any] = {}
    random = keras.src.initializers.random_initializers.random
    monkeypatch.setattr(random, "uniform", lambda shape, minval, maxval, **_: asked.update(low=minval, high=maxval))
    monkeypatch.setattr(
        random, "truncated_normal", lambda shape, mean, stddev, **_: asked.update(mean=mean, std=stddev)
    )
    for name in ("Glorot", "He", "Lecun"):
        for kind, draw in (("Uniform", init.uniform), ("Normal", init.truncated_normal)):
            asked.clear()
            getattr(keras.initializers, name + kind)(seed=0)(shape)
            ours = getattr(init, f"{name.lower()}_{kind.lower()}")
            x = ours(new(shape, "float64"), seed=1, convention="keras")
            assert np.allclose(x, draw(new(shape, "float64"), seed=1, **asked), rtol=1e-13, atol=0), name + kind


@pytest.mark.parametrize("convention", ["torch", "keras"])
def test_both_conventions_have_the_same_variance(convention: Any) -> None:
    for name, variance in (("glorot", 2 / 1000), ("he", 2 / 400), ("lecun", 1 / 400)):
        shape = (600, 400) if convention == "torch" else (400, 600)
        for kind in ("uniform", "normal"):
            x = getattr(init, f"{name}_{kind}")(new(shape), seed=0, convention=convention)
            assert x.var() == pytest.approx(variance, rel=0.02)


def test_fans() -> None:
    assert init.fans((3, 4), "keras") == (3, 4)
    assert init.fans((7,), "keras") == (7, 7)
    assert init.fans((), "keras") == (1, 1)
    assert init.he_normal(new(100), seed=0, convention="keras").std() == pytest.approx(math.sqrt(2 / 100), rel=0.3)
    assert init.he_normal(new((3, 0)), seed=0).shape == (3, 0)


# Matrices


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (70, 33), (33, 70), (128, 128), (8, 3, 5), (3, 2, 2)])
@pytest.mark.parametrize("convention", ["torch", "keras"])
def test_orthogonal(shape: tuple[int, ...], convention: Any) -> None:
    q = init.orthogonal(new(shape, "float64"), seed=3, gain=2.0, convention=convention)
    matrix = q.reshape(shape[0], -1) if convention == "torch" else q.reshape(-1, shape[-1])
    rows, columns = matrix.shape
    gram = matrix.T @ matrix if rows >= columns else matrix @ matrix.T
    assert np.allclose(gram, 4 * np.eye(min(rows, columns)), atol=1e-13)


@pytest.mark.parametrize("shape", [(6, 4), (5, 5), (40, 37)])
def test_orthogonal_from_the_formula(shape: tuple[int, int]) -> None:
    """Stewart's product of Householder reflections, as matrices."""
    rows, columns = shape
    vectors = init.normal(new((columns, rows), "float64"), seed=5)
    q = np.eye(rows)
    for k, vector in enumerate(vectors):
        v = np.where(np.arange(rows) < k, 0.0, vector)
        sign = -1.0 if v[k] < 0 else 1.0
        v[k] += sign * np.linalg.norm(v)
        q = q @ (np.eye(rows) - 2 * np.outer(v, v) / (v @ v))
        q[:, k] *= -sign
    assert np.allclose(init.orthogonal(new(shape, "float64"), seed=5), q[:, :columns], atol=1e-13)


def test_orthogonal_is_uniform() -> None:
    """Haar measure: in two dimensions angles are uniform and half of the matrices are reflections; larger matrices have
    entries of variance 1/n and traces of mean 0 and variance 1."""
    stats = pytest.importorskip("scipy.stats")
    matrices = np.array([init.orthogonal(new((2, 2), "float64"), seed=s) for s in range(4000)])
    angles = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
    assert stats.kstest(angles, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
    assert abs((np.linalg.det(matrices) > 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(4000)
    larger = np.array([init.orthogonal(new((5, 5), "float64"), seed=s) for s in range(2000)])
    assert np.allclose((larger**2).mean(axis=0), 1 / 5, atol=5 * math.sqrt(2 / 35 / 2000))
    traces = np.array([np.trace(m) for m in larger])
    assert abs(traces.mean()) < 5 / math.sqrt(2000)
    assert abs(traces.var() - 1) < 0.2


def test_identity(torch: Any) -> None:
    for shape in ((3, 3), (2, 4), (4, 2)):
        assert np.array_equal(init.identity(new(shape)), torch.nn.init.eye_(torch.empty(shape)).numpy())


def test_sparse() -> None:
    x = init.sparse(new((1000, 50), "float64"), seed=2, sparsity=0.25, std=0.1)
    zeros = x == 0
    assert (zeros.sum(axis=0) == 250).all()
    # The rows differ between columns, and all rows are equally likely.
    assert len({column.tobytes() for column in zeros.T}) == 50
    assert abs(zeros.mean(axis=1) - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / 50)
    assert x[~zeros].std() == pytest.approx(0.1, rel=0.02)
    assert (init.sparse(new((3, 4)), seed=0, sparsity=1.0) == 0).all()
    assert (init.sparse(new((3, 4)), seed=0, sparsity=0.0) != 0).all()
    assert (init.sparse(new((3, 4)), seed=0, sparsity=0.1) == 0).sum(axis=0).tolist() == [1] * 4  # rounded up


def test_constants() -> None:
    for dtype in FLOATS:
        for n in (0, 1, 1023, 1024, 1025, 70_000):
            assert (init.constant(new(n, dtype), 0.3) == np.array(0.3).astype(FLOATS[dtype])).all()
            assert (init.zeros(new(n, dtype)) == 0).all()
    assert np.isnan(init.constant(np.zeros(3), math.nan)).all()
    assert (init.constant(np.zeros(3), -math.inf) == -math.inf).all()
    assert init.zeros(new(())) == 0
    assert np.isfinite(init.normal(new(()), seed=0))
