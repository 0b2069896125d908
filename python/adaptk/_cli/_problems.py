"""Small problems to compare rules on: surfaces, linear models and networks, with gradients in plain NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from adaptk import _demo
from adaptk._cli import _rare_words, _texts

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Task:
    """A function to minimise. `gradient` is called with the params and the step, counted from 0, for the minibatch.

    A gradient may be sparse: a pair of row indices and values.
    """

    start: list[Array]
    loss: Callable[[Sequence[Array]], float]
    gradient: Callable[[Sequence[Array], int], list[Any]]


@dataclass(frozen=True)
class Problem:
    """One column: its title, the number of steps of each run, and how to make it from a seed and that number.

    `make` returns None if the data are missing: some are the sources of Python's standard library. `points` is the
    number of losses on a curve after the initial one. Rules that need full-batch gradients are not run on problems with
    `minibatches`.
    """

    title: str
    steps: int
    make: Callable[[int, int], Task | None]
    points: int = 50
    minibatches: bool = False


def surface(
    start: tuple[float, float],
    value: Callable[[float, float], float],
    slope: Callable[[float, float], tuple[float, float]],
) -> Callable[[int, int], Task]:
    """A function of two variables with the minimum 0."""

    def make(seed: int, steps: int) -> Task:
        def loss(params: Sequence[Array]) -> float:
            return value(*params[0].tolist())

        def gradient(params: Sequence[Array], step: int) -> list[Array]:
            return [np.array(slope(*params[0].tolist()))]

        return Task([np.array(start)], loss, gradient)

    return make


def _rosenbrock(x: float, y: float) -> float:
    return (1 - x) * (1 - x) + 100 * (y - x * x) * (y - x * x)


def _rosenbrock_slope(x: float, y: float) -> tuple[float, float]:
    u = y - x * x
    return -2 * (1 - x) - 400 * x * u, 200 * u


def _beale(x: float, y: float) -> float:
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * y * y, 2.625 - x + x * y * y * y
    return a * a + b * b + c * c


def _beale_slope(x: float, y: float) -> tuple[float, float]:
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * y * y, 2.625 - x + x * y * y * y
    dx = 2 * (a * (y - 1) + b * (y * y - 1) + c * (y * y * y - 1))
    return dx, 2 * x * (a + 2 * b * y + 3 * c * y * y)


def _batches(count: int, size: int, steps: int, seed: int) -> list[Array]:
    """The minibatches, as indices: epochs in random order, without an incomplete last minibatch."""
    rng = np.random.default_rng(seed)
    found: list[Array] = []
    while len(found) < steps:
        order = rng.permutation(count)
        found += [order[i : i + size] for i in range(0, count - size + 1, size)]
    return found[:steps]


def _digits(seed: int, steps: int) -> Task:
    data = _demo.load_digits(seed)
    batches = _batches(len(data.train_y), 32, steps, seed)

    def gradient(params: Sequence[Array], step: int) -> list[Array]:
        batch = batches[step]
        return _demo.gradients(params, data.train_x[batch], data.train_y[batch])

    start = _demo.initial_parameters((64, 32, 10), seed)
    return Task(start, lambda params: _demo.mean_loss(params, data.train_x, data.train_y), gradient)


def _logistic(seed: int, steps: int) -> Task:
    """Few features occur in most rows and most in few rows, like words in texts."""
    rows, features, decay = 500, 100, 1e-3
    rng = np.random.default_rng(seed)
    often = 0.6 / (1 + np.arange(features)) ** 0.7
    x = (rng.random((rows, features)) < often).astype(np.float64)
    weights = rng.standard_normal(features) * 2
    y = (rng.random(rows) < 1 / (1 + np.exp(-(x @ weights)))).astype(np.float64)

    def value(w: Array) -> float:
        z = x @ w
        return float(np.mean(np.logaddexp(0, z) - y * z) + 0.5 * decay * (w @ w))

    def slope(w: Array) -> tuple[Array, Array]:
        p = 1 / (1 + np.exp(-(x @ w)))
        gradient: Array = (p - y) @ x / rows + decay * w
        return gradient, p

    # The minimum, by Newton's method: the loss is measured from it.
    least = np.zeros(features)
    for _ in range(20):
        gradient, p = slope(least)
        hessian = (x.T * (p * (1 - p))) @ x / rows + decay * np.eye(features)
        least -= np.linalg.solve(hessian, gradient)
    minimum = value(least)
    return Task(
        [np.zeros(features)],
        lambda params: max(value(params[0]) - minimum, 0.0),
        lambda params, step: [slope(params[0])[0]],
    )


def _text(seed: int, steps: int) -> Task | None:
    """Classify passages of text. Gradients are sparse: rows of the words that occur."""
    text = _rare_words.read_passages(seed)
    if text is None:
        return None
    batches = _batches(text.train, _rare_words.BATCH, steps, seed)
    everything = np.arange(text.train)
    return Task(
        [np.zeros((len(text.words), len(text.packages)), np.float32)],
        lambda params: _rare_words.loss(params[0], text, everything),
        lambda params, step: [_rare_words.gradient(params[0], text, batches[step])],
    )


def _patches(images: Array) -> Array:
    """For each pixel of 8 x 8 images its 3 x 3 neighbourhood, with zeros beyond the edges."""
    padded = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    around = [padded[:, i : i + 8, j : j + 8] for i, j in itertools.product(range(3), repeat=2)]
    result: Array = np.stack(around, axis=-1).reshape(-1, 64, 9)
    return result


def cnn_logits(params: Sequence[Array], patches: Array) -> tuple[Array, Array, Array]:
    """A convolution, tanh, 2 x 2 mean pooling and a dense layer: the activations, the pooled ones, and the logits."""
    filters, shift, weights, bias = params
    active = np.tanh(patches @ filters + shift)
    means = active.reshape(-1, 4, 2, 4, 2, filters.shape[1]).mean(axis=(2, 4)).reshape(len(patches), -1)
    return active, means, means @ weights + bias


def cnn_gradient(params: Sequence[Array], patches: Array, labels: Array) -> list[Array]:
    """The gradient of the mean cross-entropy."""
    filters, _, weights, _ = params
    active, means, logits = cnn_logits(params, patches)
    delta = np.exp(_demo.log_softmax(logits))
    delta[np.arange(len(labels)), labels] -= 1
    delta /= len(labels)
    of_means = (delta @ weights.T / 4).reshape(-1, 4, 1, 4, 1, filters.shape[1])
    shape = (len(patches), 4, 2, 4, 2, filters.shape[1])
    behind = np.broadcast_to(of_means, shape).reshape(active.shape) * (1 - active * active)
    flat = behind.reshape(-1, filters.shape[1])
    return [patches.reshape(-1, 9).T @ flat, flat.sum(axis=0), means.T @ delta, delta.sum(axis=0)]


def cross_entropy(logits: Array, labels: Array) -> float:
    """The mean cross-entropy."""
    return -float(np.mean(_demo.log_softmax(logits)[np.arange(len(labels)), labels], dtype=np.float64))


def _cnn(seed: int, steps: int) -> Task:
    data = _demo.load_digits(seed)
    patches, labels = _patches(data.train_x), data.train_y
    batches = _batches(len(labels), 32, steps, seed)
    rng = np.random.default_rng(seed)
    start = [rng.standard_normal((9, 8)) / 3, np.zeros(8), rng.standard_normal((128, 10)) / 128**0.5, np.zeros(10)]
    return Task(
        [p.astype(np.float32) for p in start],
        lambda params: cross_entropy(cnn_logits(params, patches)[2], labels),
        lambda params, step: cnn_gradient(params, patches[batches[step]], labels[batches[step]]),
    )


# The transformer's vocabulary (characters), sequence length, embedding size, number of heads, and hidden size.
CHARACTERS, LENGTH, WIDTH, HEADS, INNER = 64, 32, 32, 2, 64


def _normalised(x: Array) -> tuple[Array, Array]:
    """Rows normalised to mean 0 and variance 1, and the standard deviations that they were divided by."""
    centred = x - x.mean(axis=-1, keepdims=True)
    root = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5)
    return centred / root, root


def _norm_backward(delta: Array, normal: Array, root: Array) -> Array:
    """The gradient with respect to the input of _normalised(), from that with respect to its output."""
    result: Array = (
        delta - delta.mean(axis=-1, keepdims=True) - normal * (delta * normal).mean(axis=-1, keepdims=True)
    ) / root
    return result


def _heads(x: Array) -> Array:
    """Split into heads: (sequences, heads, characters, head size)."""
    return x.reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)


def _joined(x: Array) -> Array:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def transformer_start(rng: np.random.Generator) -> list[Array]:
    """Its params: token and position embeddings, attention input and output, two dense layers, output projection."""

    def normal(rows: int, columns: int, scale: float) -> Array:
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    d = WIDTH**-0.5
    return [
        normal(CHARACTERS, WIDTH, 0.1), normal(LENGTH, WIDTH, 0.1), normal(WIDTH, 3 * WIDTH, d),
        normal(WIDTH, WIDTH, d), normal(WIDTH, INNER, d), np.zeros(INNER, np.float32),
        normal(INNER, WIDTH, INNER**-0.5), np.zeros(WIDTH, np.float32), normal(WIDTH, CHARACTERS, d),
    ]  # fmt: skip


def transformer(
    params: Sequence[Array], given: Array, wanted: Array, with_gradient: bool = True
) -> tuple[float, list[Array]]:
    """One block of a transformer that predicts the next character: the mean cross-entropy, and its gradient.

    Parameters
    ----------
    params : see transformer_start
    given, wanted : integer arrays of shape (sequences, characters)
    """
    characters, places, into, out, first, shift1, second, shift2, last = params
    x = characters[given] + places[: given.shape[1]]
    a, root_a = _normalised(x)
    q, k, v = (_heads(part) for part in np.split(a @ into, 3, axis=-1))
    scale = q.shape[-1] ** -0.5
    hidden = np.triu(np.ones((given.shape[1],) * 2, bool), 1)
    strength = np.where(hidden, -np.inf, (q @ k.swapaxes(2, 3)) * scale)
    strength = np.exp(strength - strength.max(axis=-1, keepdims=True))
    strength /= strength.sum(axis=-1, keepdims=True)
    seen = _joined(strength @ v)
    y = x + seen @ out
    b, root_b = _normalised(y)
    inner = np.tanh(b @ first + shift1)
    z = y + inner @ second + shift2
    c, root_c = _normalised(z)
    logs = _demo.log_softmax((c @ last).reshape(-1, last.shape[1]))
    rows = np.arange(wanted.size)
    value = -float(np.mean(logs[rows, wanted.reshape(-1)], dtype=np.float64))
    if not with_gradient:
        return value, []

    def product(left: Array, right: Array) -> Array:
        return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])

    delta = np.exp(logs)
    delta[rows, wanted.reshape(-1)] -= 1
    delta = (delta / wanted.size).reshape(*wanted.shape, -1)
    d_last = product(c, delta)
    dz = _norm_backward(delta @ last.T, c, root_c)
    d_inner = (dz @ second.T) * (1 - inner * inner)
    dy = dz + _norm_backward(d_inner @ first.T, b, root_b)
    d_attended = _heads(dy @ out.T)
    dv = strength.swapaxes(2, 3) @ d_attended
    d_strength = d_attended @ v.swapaxes(2, 3)
    d_scores = strength * (d_strength - (d_strength * strength).sum(axis=-1, keepdims=True)) * scale
    joined = np.concatenate([_joined(d) for d in (d_scores @ k, d_scores.swapaxes(2, 3) @ q, dv)], axis=-1)
    dx = dy + _norm_backward(joined @ into.T, a, root_a)
    d_characters = np.zeros_like(characters)
    np.add.at(d_characters, given, dx)
    d_places = np.zeros_like(places)
    d_places[: given.shape[1]] = dx.sum(axis=0)
    return value, [
        d_characters, d_places, product(a, joined), product(seen, dy),
        product(b, d_inner), d_inner.sum(axis=(0, 1)), product(inner, dz), dz.sum(axis=(0, 1)), d_last,
    ]  # fmt: skip


def characters_of(text: str) -> Array:
    """The text as integers: the most frequent characters from 0 on, and one number for all others."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    values, counts = np.unique(codes, return_counts=True)
    frequent = values[np.argsort(-counts, kind="stable")][: CHARACTERS - 1]
    number = np.full(int(values.max()) + 1, CHARACTERS - 1)
    number[frequent] = np.arange(len(frequent))
    result: Array = number[codes]
    return result


def _transformer(seed: int, steps: int) -> Task | None:
    text = _texts.sources("email")
    if len(text) < 10_000:
        return None
    codes = characters_of(text)
    rng = np.random.default_rng(seed)

    def sequences(count: int) -> Array:
        begin = rng.integers(0, len(codes) - LENGTH - 1, count)
        result: Array = codes[begin[:, None] + np.arange(LENGTH + 1)]
        return result

    measured = sequences(32)
    batches = [sequences(8) for _ in range(steps)]
    return Task(
        transformer_start(rng),
        lambda params: transformer(params, measured[:, :-1], measured[:, 1:], False)[0],
        lambda params, step: transformer(params, batches[step][:, :-1], batches[step][:, 1:])[1],
    )


# No start is a round number: rules whose steps are multiples of the learning rate could hit the minimum by chance.
PROBLEMS: dict[str, Problem] = {
    "ravine": Problem(
        "ravine, x^2 + 100 y^2",
        500,
        surface((9.7137, 1.0713), lambda x, y: x * x + 100 * y * y, lambda x, y: (2 * x, 200 * y)),
    ),
    "saddle": Problem(
        "saddle between two minima, x^2 + (y^2/2 - 1)^2",
        500,
        surface(
            (1.0713, 1.37e-3),
            lambda x, y: x * x + (y * y / 2 - 1) * (y * y / 2 - 1),
            lambda x, y: (2 * x, 2 * y * (y * y / 2 - 1)),
        ),
    ),
    "rosenbrock": Problem("Rosenbrock's valley", 500, surface((-1.2137, 1.0171), _rosenbrock, _rosenbrock_slope)),
    "beale": Problem("Beale's function", 500, surface((1.0171, 1.0313), _beale, _beale_slope)),
    "logistic": Problem("logistic regression, 100 features most of which are rare", 300, _logistic),
    "digits": Problem("network 64-32-10 on handwritten digits, minibatches of 32", 300, _digits, 20, minibatches=True),
    "text": Problem(
        "logistic regression on words of Python's standard library, sparse gradients, minibatches of 4",
        400, _text, 10, minibatches=True,
    ),
    "cnn": Problem(
        "convolution 8 x 3 x 3, means of 2 x 2 and a dense layer on handwritten digits, minibatches of 32",
        150, _cnn, 10, minibatches=True,
    ),
    "transformer": Problem(
        "one block of width 32 that foretells characters of Python's sources, minibatches of 8 x 32",
        150, _transformer, 10, minibatches=True,
    ),
}  # fmt: skip
