"""Initial values of parameters: constants, random numbers, and the schemes of Glorot, He, LeCun, Saxe and Martens.

Each function fills one buffer in place and returns it::

    weight = adaptk.init.he_normal(np.empty((256, 784), np.float32), seed=0)
    adaptk.init.zeros(bias)

A buffer is a NumPy array or any other object with DLPack support, such as a PyTorch tensor, of dtype float32, float64,
bfloat16, float16, float8_e4m3fn or float8_e5m2, on the CPU or on a CUDA device. It must be writable and dense in
memory, as for :mod:`adaptk.ops`. On a CUDA device, random numbers and constants are computed on the device, in stream
order with the other work of the buffer's library. :func:`orthogonal`, :func:`identity` and :func:`sparse` are computed
on the CPU and copied; the copy cannot be captured in a CUDA graph.

**The numbers depend only on the seed and the position.** They come from the counter-based generator Philox4x32-10
(Salmon et al. 2011), and all operations on its output are rounded in the same way everywhere. So the bits are the same
for every number of threads, instruction set, machine and CUDA device. Elements are numbered in the order of memory, so
a transposed array gets the transpose of the numbers that its base would get. Numbers for narrow dtypes are those for
float32, rounded to nearest; float64 gets different numbers, with more bits. A number beyond the range of the dtype
becomes infinity, or NaN in float8_e4m3fn, which has no infinity. ``offset`` of :func:`uniform`, :func:`normal` and
:func:`truncated_normal` is for filling one part of an array that is divided among processes.

**One seed for each buffer.** A seed is an integer in [0, 2**64). Two buffers with the same seed get the same numbers.
Different seeds give independent numbers, even if they are consecutive::

    for i, p in enumerate(params):
        adaptk.init.normal(p, seed=1000 * run + i, std=0.02)

**Fans.** The schemes of Glorot, He and LeCun scale by the number of inputs and outputs of a unit (fan-in and fan-out),
which :func:`fans` reads from the shape. ``convention="torch"``, the default, is for weights of shape
``(out, in, *kernel)`` and draws from the normal distribution without truncation, like ``torch.nn.init``.
``convention="keras"`` is for weights of shape ``(*kernel, in, out)``, as in ``x @ weight``. Like Keras and JAX it draws
from the normal distribution truncated at two standard deviations, scaled to the same variance.

Arguments of the wrong type raise ``TypeError``, and arguments out of range ``ValueError``, before anything is written.
The message names the argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, SupportsIndex, TypeAlias, TypeVar

import numpy as np

from adaptk import _core
from adaptk._names import face, known_names_only
from adaptk._numbers import count, number
from adaptk._typing import Buffer

__all__ = [
    "calculate_gain",
    "constant",
    "fans",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "identity",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "orthogonal",
    "sparse",
    "truncated_normal",
    "uniform",
    "zeros",
]

X = TypeVar("X", bound=Buffer)
Mode: TypeAlias = Literal["fan_in", "fan_out", "fan_avg"]
Convention: TypeAlias = Literal["torch", "keras"]

_LARGEST = {
    "float8_e4m3fn": 448.0,
    "float8_e5m2": 57344.0,
    "float16": 65504.0,
    "bfloat16": float.fromhex("0x1.fep127"),
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}
# The standard deviation of a standard normal distribution truncated at two standard deviations.
_TRUNCATED_STD = 0.87962566103423978
# Further out, probabilities are too small for accurate quantiles.
_FURTHEST = 36.0


def _seed(seed: Any) -> int:
    n = count("seed", seed, 0)
    if n >= 2**64:
        raise ValueError(f"seed must be < 2**64, got {n}")
    return n


def _offset(offset: Any) -> int:
    n = count("offset", offset, 0)
    if n >= 2**62:
        raise ValueError(f"offset must be < 2**62, got {n}")
    return n


def _number(name: str, value: Any, low: float = -math.inf) -> float:
    return number(name, value, low=low)


def _in_range(name: str, value: float, dtype: str) -> float:
    if math.isfinite(value) and abs(value) > _LARGEST[dtype]:
        raise ValueError(f"{name}: {value:g} is beyond {dtype}, whose largest number is {_LARGEST[dtype]:g}")
    return value


def _one_of(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")


def _gain(gain: object) -> float:
    return calculate_gain(gain) if isinstance(gain, str) else _number("gain", gain)


def _matrix(x: Any) -> tuple[int, int]:
    shape, _ = _core.random_target(x)
    if len(shape) != 2:
        raise ValueError(f"x: shape {shape}, expected a matrix")
    return shape[0], shape[1]


def zeros(x: X, *, seed: int | None = None) -> X:
    """Fill a buffer with zeros.

    Parameters
    ----------
    x
        The buffer, of any shape.
    seed
        Not used; accepted so that all initializers can be called alike.

    Returns
    -------
    buffer
        ``x``.

    Raises
    ------
    TypeError, ValueError
        ``x`` is not a buffer of a supported dtype, is read-only, or is not dense in memory.

    Notes
    -----
    Source: ``torch.nn.init.zeros_``, ``keras.initializers.Zeros``.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> init.zeros(np.empty(3))
    array([0., 0., 0.])
    """
    return constant(x, 0.0, seed=seed)


def constant(x: X, value: SupportsFloat = 0.0, *, seed: int | None = None) -> X:
    """Fill a buffer with one number.

    Parameters
    ----------
    x
        The buffer, of any shape.
    value
        The number, within the range of the buffer's dtype; infinities and NaN are allowed.
    seed
        Not used; accepted so that all initializers can be called alike.

    Returns
    -------
    buffer
        ``x``.

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), or ``value`` is not a number in the range of its dtype.

    Notes
    -----
    Source: ``torch.nn.init.constant_``, ``keras.initializers.Constant``.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> init.constant(np.empty(3), 0.5)
    array([0.5, 0.5, 0.5])
    """
    if seed is not None:
        _seed(seed)
    _, dtype = _core.random_target(x)
    special = isinstance(value, (float, np.floating)) and not math.isfinite(value)
    _core.random_constant(x, float(value) if special else _in_range("value", _number("value", value), dtype))
    return x


def uniform(
    x: X, *, seed: SupportsIndex, low: SupportsFloat = 0.0, high: SupportsFloat = 1.0, offset: SupportsIndex = 0
) -> X:
    """Fill a buffer from a uniform distribution.

    Parameters
    ----------
    x
        The buffer, of any shape.
    seed
        An integer in [0, 2**64).
    low, high
        The bounds of the interval, ``low <= high``, within the range of the buffer's dtype.
    offset
        If ``x`` is a part of a larger array: the number of elements before this part.

    Returns
    -------
    buffer
        ``x``, with ``low + (high - low) * u`` for ``u`` in [0, 1). ``u`` has 52 random bits for float64, else 24.
        Rounding may give ``high`` itself.

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), or an argument is of the wrong type or out of range.

    Notes
    -----
    Source: ``torch.nn.init.uniform_``, ``keras.initializers.RandomUniform``.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> x = init.uniform(np.empty((2, 1000)), seed=0, low=-1.0)
    >>> bool(abs(x.mean()) < 0.05 and -1 <= x.min() and x.max() < 1)
    True

    The second half of an array on its own:

    >>> half = init.uniform(np.empty(1000), seed=0, low=-1.0, offset=1000)
    >>> np.array_equal(half, x[1])
    True
    """
    start = _offset(offset)
    _, dtype = _core.random_target(x)
    a, b = (_in_range(name, _number(name, value), dtype) for name, value in (("low", low), ("high", high)))
    if a > b:
        raise ValueError(f"low must be <= high, got low={a:g} and high={b:g}")
    if b - a > _LARGEST["float64" if dtype == "float64" else "float32"]:
        raise ValueError(f"high - low is beyond {dtype}, got low={a:g} and high={b:g}")
    _core.random_fill(x, "uniform", _seed(seed), start, a, b - a)
    return x


def normal(
    x: X, *, seed: SupportsIndex, mean: SupportsFloat = 0.0, std: SupportsFloat = 1.0, offset: SupportsIndex = 0
) -> X:
    """Fill a buffer from a normal distribution.

    Parameters
    ----------
    x
        The buffer, of any shape.
    seed
        An integer in [0, 2**64).
    mean
        The mean, finite.
    std
        The standard deviation, finite, >= 0.
    offset
        If ``x`` is a part of a larger array: the number of elements before this part.

    Returns
    -------
    buffer
        ``x``, with ``mean + std * z`` for normally distributed ``z``. The largest possible ``|z|`` is 6.66 (a true
        normal variable exceeds it with probability 1 in 4e10), and 8.57 for float64.

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), or an argument is of the wrong type or out of range.

    Notes
    -----
    Source: ``torch.nn.init.normal_``, ``keras.initializers.RandomNormal``; Box and Muller 1958.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> x = init.normal(np.empty(100_000, np.float32), seed=0, std=0.02)
    >>> round(float(x.std()), 4)
    0.02
    """
    start = _offset(offset)
    _, dtype = _core.random_target(x)
    shift, scale = _in_range("mean", _number("mean", mean), dtype), _in_range("std", _number("std", std, 0.0), dtype)
    _core.random_fill(x, "normal", _seed(seed), start, shift, scale)
    return x


def truncated_normal(
    x: X,
    *,
    seed: SupportsIndex,
    mean: SupportsFloat = 0.0,
    std: SupportsFloat = 1.0,
    low: SupportsFloat = -2.0,
    high: SupportsFloat = 2.0,
    offset: SupportsIndex = 0,
) -> X:
    """Fill a buffer from a truncated normal distribution.

    Parameters
    ----------
    x
        The buffer, of any shape.
    seed
        An integer in [0, 2**64).
    mean, std
        Mean and standard deviation before truncation, finite, ``std >= 0``.
    low, high
        The bounds in standard deviations from the mean, ``low < high``, ``low <= 36`` and ``high >= -36``; infinities
        are allowed.
    offset
        If ``x`` is a part of a larger array: the number of elements before this part.

    Returns
    -------
    buffer
        ``x``, with numbers in ``[mean + low * std, mean + high * std]``, computed in float64 and rounded to the
        buffer's dtype.

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), or an argument is of the wrong type or out of range.

    Notes
    -----
    Source: ``keras.initializers.TruncatedNormal``; ``torch.nn.init.trunc_normal_``, whose bounds are values instead of
    numbers of standard deviations: ``a = mean + low * std``. Computed with the inverse distribution function of Wichura
    1988.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> x = init.truncated_normal(np.empty(10_000), seed=0, std=0.1)
    >>> bool(abs(x).max() <= 0.2)
    True
    """
    start = _offset(offset)
    _, dtype = _core.random_target(x)
    shift, scale = _in_range("mean", _number("mean", mean), dtype), _in_range("std", _number("std", std, 0.0), dtype)
    ends = []
    for name, value in (("low", low), ("high", high)):
        infinite = isinstance(value, (float, np.floating)) and math.isinf(value)
        ends.append(float(value) if infinite else _number(name, value))
    a, b = ends
    if not a < b:
        raise ValueError(f"low must be < high, got low={a:g} and high={b:g}")
    if a > _FURTHEST or b < -_FURTHEST:
        name, end = ("low", a) if a > _FURTHEST else ("high", b)
        raise ValueError(
            f"{name}: {end:g} standard deviations; low must be <= {_FURTHEST:g} and high >= {-_FURTHEST:g}: beyond, "
            "the normal distribution is too small for float64"
        )
    _core.random_fill(x, "truncated", _seed(seed), start, shift, scale, a, b)
    return x


def calculate_gain(nonlinearity: str, param: SupportsFloat | None = None) -> float:
    """The recommended gain for an activation function: a factor that makes up for its change of scale.

    Parameters
    ----------
    nonlinearity
        ``"linear"``, ``"conv"``, ``"sigmoid"``, ``"tanh"``, ``"relu"``, ``"leaky_relu"`` or ``"selu"``.
    param
        The negative slope of ``"leaky_relu"``, 0.01 if ``None``.

    Returns
    -------
    float
        1, 1, 1, 5/3, sqrt(2), sqrt(2 / (1 + slope**2)) or 3/4.

    Raises
    ------
    TypeError, ValueError
        The name is unknown, the slope is not a finite number, or a slope is given for another activation function.

    Notes
    -----
    Source: ``torch.nn.init.calculate_gain``.

    Examples
    --------
    >>> from adaptk import init
    >>> init.calculate_gain("tanh")
    1.6666666666666667
    """
    known = {
        **dict.fromkeys(("linear", "conv", "sigmoid"), 1.0),
        "tanh": 5.0 / 3.0,
        "relu": math.sqrt(2.0),
        "leaky_relu": math.sqrt(2.0 / (1.0 + 0.01**2)),
        "selu": 0.75,
    }
    _one_of("nonlinearity", nonlinearity, list(known))
    if param is None:
        return known[nonlinearity]
    if nonlinearity != "leaky_relu":
        raise ValueError(f"param: {nonlinearity!r} has no slope; only 'leaky_relu' has")
    return math.sqrt(2.0 / (1.0 + _number("param", param) ** 2))


def fans(shape: Sequence[SupportsIndex], convention: Convention = "torch") -> tuple[int, int]:
    """The number of inputs and outputs of a unit whose weights have this shape (fan-in and fan-out).

    Parameters
    ----------
    shape
        The shape of the weights: ``(out, in, *kernel)``, or for ``"keras"`` ``(*kernel, in, out)``.
    convention
        ``"torch"`` or ``"keras"``. Shapes with fewer than two axes raise an error for ``"torch"``. For ``"keras"``,
        ``(n,)`` has the fans ``(n, n)`` and ``()`` has ``(1, 1)``.

    Returns
    -------
    tuple of int
        ``(fan_in, fan_out)``: inputs and outputs times the size of the kernel.

    Raises
    ------
    TypeError, ValueError
        ``shape`` is not a valid shape, or the convention is unknown.

    Notes
    -----
    Source: ``torch.nn.init._calculate_fan_in_and_fan_out``, ``keras.initializers.VarianceScaling``.

    Examples
    --------
    >>> from adaptk import init
    >>> init.fans((64, 3, 5, 5))
    (75, 1600)
    >>> init.fans((5, 5, 3, 64), "keras")
    (75, 1600)
    """
    _one_of("convention", convention, ("torch", "keras"))
    if not isinstance(shape, Sequence) or isinstance(shape, (str, bytes)):
        raise TypeError(f"shape must be a tuple of integers, got {shape!r} ({type(shape).__name__})")
    axes = [count(f"shape[{i}]", n, 0) for i, n in enumerate(shape)]
    if convention == "keras":
        if len(axes) < 2:
            return (axes[0], axes[0]) if axes else (1, 1)
        kernel = math.prod(axes[:-2])
        return axes[-2] * kernel, axes[-1] * kernel
    if len(axes) < 2:
        raise ValueError(
            f"x: shape {tuple(axes)} has no fan-in and fan-out, which need two axes; for a bias use zeros, or "
            "convention='keras'"
        )
    kernel = math.prod(axes[2:])
    return axes[1] * kernel, axes[0] * kernel


def _scaled(x: Any, seed: Any, mode: str, gain: object, convention: Convention, distribution: str) -> Any:
    """Fill `x` with numbers of variance gain**2 / fan."""
    _one_of("mode", mode, ("fan_in", "fan_out", "fan_avg"))
    shape, _ = _core.random_target(x)
    fan_in, fan_out = fans(shape, convention)
    fan = {"fan_in": float(fan_in), "fan_out": float(fan_out), "fan_avg": (fan_in + fan_out) / 2}[mode]
    factor = _gain(gain)
    if factor < 0:
        raise ValueError(f"gain must be >= 0, got {factor:g}")
    # The fan of an empty array may be 0.
    std = factor / math.sqrt(max(fan, 1.0))
    if distribution == "uniform":
        bound = math.sqrt(3.0) * std
        return uniform(x, seed=seed, low=-bound, high=bound)
    if convention == "keras":
        return truncated_normal(x, seed=seed, std=std / _TRUNCATED_STD)
    return normal(x, seed=seed, std=std)


def glorot_uniform(
    x: X, *, seed: SupportsIndex, gain: SupportsFloat | str = 1.0, convention: Convention = "torch"
) -> X:
    """Glorot (Xavier) initialization from a uniform distribution, with variance ``2 / (fan_in + fan_out)``.

    Parameters
    ----------
    x
        The weights, see :func:`fans`.
    seed
        An integer in [0, 2**64).
    gain
        A factor >= 0, or the name of an activation function for :func:`calculate_gain`.
    convention
        ``"torch"`` or ``"keras"``: which axes of the shape are inputs and outputs.

    Returns
    -------
    buffer
        ``x``, uniform in [-b, b] with ``b = gain * sqrt(6 / (fan_in + fan_out))``.

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), its shape has no fans (see :func:`fans`), or an argument is of the
        wrong type or out of range.

    Notes
    -----
    Source: Glorot and Bengio 2010; ``torch.nn.init.xavier_uniform_``, ``keras.initializers.GlorotUniform``.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> x = init.glorot_uniform(np.empty((100, 50)), seed=0)
    >>> bool(abs(x).max() <= 0.2)
    True
    """
    filled: X = _scaled(x, seed, "fan_avg", gain, convention, "uniform")
    return filled


def glorot_normal(x: X, *, seed: SupportsIndex, gain: SupportsFloat | str = 1.0, convention: Convention = "torch") -> X:
    """Glorot (Xavier) initialization from a normal distribution, with variance ``2 / (fan_in + fan_out)``.

    Parameters
    ----------
    x
        The weights, see :func:`fans`.
    seed
        An integer in [0, 2**64).
    gain
        A factor >= 0, or the name of an activation function for :func:`calculate_gain`.
    convention
        ``"torch"`` or ``"keras"``: which axes of the shape are inputs and outputs; ``"keras"`` also truncates the
        distribution.

    Returns
    -------
    buffer
        ``x``, of mean 0 and standard deviation ``gain * sqrt(2 / (fan_in + fan_out))``.

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), its shape has no fans (see :func:`fans`), or an argument is of the
        wrong type or out of range.

    Notes
    -----
    Source: Glorot and Bengio 2010; ``torch.nn.init.xavier_normal_``, ``keras.initializers.GlorotNormal``.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> x = init.glorot_normal(np.empty((300, 500)), seed=0)
    >>> float(x.std().round(3))
    0.05
    """
    filled: X = _scaled(x, seed, "fan_avg", gain, convention, "normal")
    return filled


def he_uniform(
    x: X,
    *,
    seed: SupportsIndex,
    mode: Mode = "fan_in",
    gain: SupportsFloat | str = "relu",
    convention: Convention = "torch",
) -> X:
    """He (Kaiming) initialization from a uniform distribution, for layers followed by a ReLU.

    Parameters
    ----------
    x
        The weights, see :func:`fans`.
    seed
        An integer in [0, 2**64).
    mode
        ``"fan_in"`` preserves the variance of activations, ``"fan_out"`` the variance of gradients; ``"fan_avg"`` is
        their mean.
    gain
        A factor >= 0, or the name of an activation function for :func:`calculate_gain`.
    convention
        ``"torch"`` or ``"keras"``: which axes of the shape are inputs and outputs.

    Returns
    -------
    buffer
        ``x``, uniform in [-b, b] with ``b = gain * sqrt(3 / fan)``.

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), its shape has no fans (see :func:`fans`), or an argument is of the
        wrong type or out of range.

    Notes
    -----
    Source: He et al. 2015; ``torch.nn.init.kaiming_uniform_``, ``keras.initializers.HeUniform``.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> x = init.he_uniform(np.empty((100, 24)), seed=0)
    >>> bool(abs(x).max() <= 0.5)
    True
    """
    filled: X = _scaled(x, seed, mode, gain, convention, "uniform")
    return filled


def he_normal(
    x: X,
    *,
    seed: SupportsIndex,
    mode: Mode = "fan_in",
    gain: SupportsFloat | str = "relu",
    convention: Convention = "torch",
) -> X:
    """He (Kaiming) initialization from a normal distribution, for layers followed by a ReLU.

    Parameters
    ----------
    x
        The weights, see :func:`fans`.
    seed
        An integer in [0, 2**64).
    mode
        ``"fan_in"`` preserves the variance of activations, ``"fan_out"`` the variance of gradients; ``"fan_avg"`` is
        their mean.
    gain
        A factor >= 0, or the name of an activation function for :func:`calculate_gain`.
    convention
        ``"torch"`` or ``"keras"``: which axes of the shape are inputs and outputs; ``"keras"`` also truncates the
        distribution.

    Returns
    -------
    buffer
        ``x``, of mean 0 and standard deviation ``gain / sqrt(fan)``.

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), its shape has no fans (see :func:`fans`), or an argument is of the
        wrong type or out of range.

    Notes
    -----
    Source: He et al. 2015; ``torch.nn.init.kaiming_normal_``, ``keras.initializers.HeNormal``.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> x = init.he_normal(np.empty((1000, 200)), seed=0)
    >>> float(x.std().round(3))
    0.1
    """
    filled: X = _scaled(x, seed, mode, gain, convention, "normal")
    return filled


def lecun_uniform(
    x: X,
    *,
    seed: SupportsIndex,
    mode: Mode = "fan_in",
    gain: SupportsFloat | str = 1.0,
    convention: Convention = "torch",
) -> X:
    """LeCun initialization from a uniform distribution: outputs have the variance of the inputs.

    Parameters
    ----------
    x
        The weights, see :func:`fans`.
    seed
        An integer in [0, 2**64).
    mode
        ``"fan_in"``, ``"fan_out"`` or ``"fan_avg"``.
    gain
        A factor >= 0, or the name of an activation function for :func:`calculate_gain`.
    convention
        ``"torch"`` or ``"keras"``: which axes of the shape are inputs and outputs.

    Returns
    -------
    buffer
        ``x``, uniform in [-b, b] with ``b = gain * sqrt(3 / fan)``.

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), its shape has no fans (see :func:`fans`), or an argument is of the
        wrong type or out of range.

    Notes
    -----
    Source: LeCun et al. 1998; ``keras.initializers.LecunUniform``.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> x = init.lecun_uniform(np.empty((100, 12)), seed=0)
    >>> bool(abs(x).max() <= 0.5)
    True
    """
    filled: X = _scaled(x, seed, mode, gain, convention, "uniform")
    return filled


def lecun_normal(
    x: X,
    *,
    seed: SupportsIndex,
    mode: Mode = "fan_in",
    gain: SupportsFloat | str = 1.0,
    convention: Convention = "torch",
) -> X:
    """LeCun initialization from a normal distribution: outputs have the variance of the inputs, as SELU needs.

    Parameters
    ----------
    x
        The weights, see :func:`fans`.
    seed
        An integer in [0, 2**64).
    mode
        ``"fan_in"``, ``"fan_out"`` or ``"fan_avg"``.
    gain
        A factor >= 0, or the name of an activation function for :func:`calculate_gain`.
    convention
        ``"torch"`` or ``"keras"``: which axes of the shape are inputs and outputs; ``"keras"`` also truncates the
        distribution.

    Returns
    -------
    buffer
        ``x``, of mean 0 and standard deviation ``gain / sqrt(fan)``.

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), its shape has no fans (see :func:`fans`), or an argument is of the
        wrong type or out of range.

    Notes
    -----
    Source: LeCun et al. 1998; Klambauer et al. 2017; ``keras.initializers.LecunNormal``.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> x = init.lecun_normal(np.empty((1000, 400)), seed=0)
    >>> float(x.std().round(3))
    0.05
    """
    filled: X = _scaled(x, seed, mode, gain, convention, "normal")
    return filled


def orthogonal(x: X, *, seed: SupportsIndex, gain: SupportsFloat | str = 1.0, convention: Convention = "torch") -> X:
    """Fill a buffer with a random matrix whose rows or columns are orthonormal.

    Parameters
    ----------
    x
        The weights, with two or more axes. They are treated as a matrix, with the other axes flattened: for ``"torch"``
        with ``shape[0]`` rows, for ``"keras"`` with ``shape[-1]`` columns.
    seed
        An integer in [0, 2**64).
    gain
        A factor, or the name of an activation function for :func:`calculate_gain`.
    convention
        ``"torch"`` or ``"keras"``.

    Returns
    -------
    buffer
        ``x``: ``gain`` times a random matrix with orthonormal columns, or with orthonormal rows if there are more
        columns than rows. Its distribution is uniform over these matrices (Haar measure).

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), has fewer than two axes, or an argument is of the wrong type or out
        of range.
    MemoryError
        Not enough memory for the float64 copies of the matrix that the computation needs.

    Notes
    -----
    Source: Saxe, McClelland and Ganguli 2014; ``torch.nn.init.orthogonal_``, ``keras.initializers.Orthogonal``.
    Computed with the reflections of Stewart 1980.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> q = init.orthogonal(np.empty((3, 5)), seed=0)
    >>> np.allclose(q @ q.T, np.eye(3))
    True
    """
    _one_of("convention", convention, ("torch", "keras"))
    number_of_seed, factor = _seed(seed), _gain(gain)
    shape, dtype = _core.random_target(x)
    if len(shape) < 2:
        raise ValueError(f"x: shape {shape}, expected two axes or more")
    _in_range("gain", factor, dtype)
    rows = shape[0] if convention == "torch" else math.prod(shape[:-1])
    columns = math.prod(shape[1:]) if convention == "torch" else shape[-1]
    q = _core.random_orthogonal(number_of_seed, max(rows, columns), min(rows, columns))
    q *= factor
    _core.random_store(x, np.ascontiguousarray(q if rows >= columns else q.T).reshape(shape))
    return x


def identity(x: X, *, seed: int | None = None, gain: SupportsFloat = 1.0) -> X:
    """Fill a matrix with the identity: ones on the diagonal, zeros elsewhere.

    Parameters
    ----------
    x
        The matrix, square or not.
    seed
        Not used; accepted so that all initializers can be called alike.
    gain
        The number on the diagonal, finite.

    Returns
    -------
    buffer
        ``x``.

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), is not a matrix, or ``gain`` is not a number in the range of its
        dtype.

    Notes
    -----
    Source: ``torch.nn.init.eye_``, ``keras.initializers.Identity``.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> init.identity(np.empty((2, 3)))
    array([[1., 0., 0.],
           [0., 1., 0.]])
    """
    if seed is not None:
        _seed(seed)
    rows, columns = _matrix(x)
    value = _in_range("gain", _number("gain", gain), _core.random_target(x)[1])
    matrix = np.zeros((rows, columns))
    np.fill_diagonal(matrix, value)
    _core.random_store(x, matrix)
    return x


def sparse(x: X, *, seed: SupportsIndex, sparsity: SupportsFloat = 0.9, std: SupportsFloat = 0.01) -> X:
    """Fill a matrix with normally distributed numbers, and a fraction of each column with zeros.

    Parameters
    ----------
    x
        The matrix.
    seed
        An integer in [0, 2**64).
    sparsity
        The fraction of zeros, in [0, 1]: each column has ``ceil(sparsity * rows)`` zeros, in randomly chosen rows.
    std
        The standard deviation of the other elements, finite, >= 0.

    Returns
    -------
    buffer
        ``x``.

    Raises
    ------
    TypeError, ValueError
        ``x`` cannot be filled (see :func:`zeros`), is not a matrix, or an argument is of the wrong type or out of
        range.

    Notes
    -----
    Source: Martens 2010; ``torch.nn.init.sparse_``.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk import init
    >>> x = init.sparse(np.empty((10, 4)), seed=0, sparsity=0.7)
    >>> (x == 0).sum(axis=0)
    array([7, 7, 7, 7])
    """
    number_of_seed, share = _seed(seed), number("sparsity", sparsity, high=1.0)
    rows, columns = _matrix(x)
    scale = _in_range("std", _number("std", std, 0.0), _core.random_target(x)[1])
    values = normal(np.empty((rows, columns)), seed=number_of_seed, std=scale)
    # In each column, set the rows with the smallest random words (of another stream) to 0.
    words = _core.random_words(number_of_seed, 1, 0, -(-rows * columns // 4)).ravel()[: rows * columns]
    order = np.argsort(words.reshape(rows, columns), axis=0, kind="stable")
    np.put_along_axis(values, order[: math.ceil(share * rows)], 0.0, axis=0)
    _core.random_store(x, values)
    return x


if not TYPE_CHECKING:
    for _name in __all__:
        globals()[_name] = known_names_only(globals()[_name], {})
    __getattr__, __dir__ = face(
        __name__,
        __all__,
        {
            "xavier_uniform": "glorot_uniform",
            "xavier_normal": "glorot_normal",
            "kaiming_uniform": "he_uniform",
            "kaiming_normal": "he_normal",
            "trunc_normal": "truncated_normal",
            "eye": "identity",
            "ones": "constant(x, 1.0)",
        },
    )
