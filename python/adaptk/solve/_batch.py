"""Many small nonlinear least-squares problems in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptk import _solve
from adaptk._names import known_names_only
from adaptk.solve import _arguments as arguments
from adaptk.solve import _batch_device, _expression, _starts
from adaptk.solve._least_squares import LOSSES
from adaptk.solve._parameters import index
from adaptk.solve._result import Batch
from adaptk.solve._rows import POLICIES

__all__ = ["BATCH_MODELS", "levenberg_marquardt_batch"]

MOST_PARAMETERS = 10
_LOSSES = LOSSES | {"poisson": LOSSES["linear"]}


@dataclass(frozen=True)
class _Model:
    """A built-in model; `parameters` is empty if a degree decides."""

    number: int
    inputs: int
    parameters: tuple[str, ...]


BATCH_MODELS = {
    "gaussian": _Model(0, 1, ("amplitude", "center", "sigma", "offset")),
    "gaussian_2d": _Model(1, 2, ("amplitude", "x", "y", "sigma", "offset")),
    "gaussian_2d_elliptic": _Model(2, 2, ("amplitude", "x", "y", "sigma_x", "sigma_y", "offset")),
    "gaussian_2d_rotated": _Model(3, 2, ("amplitude", "x", "y", "sigma_u", "sigma_v", "offset", "angle")),
    "lorentz": _Model(4, 1, ("amplitude", "center", "width", "offset")),
    "exponential": _Model(5, 1, ("amplitude", "rate", "offset")),
    "double_exponential": _Model(6, 1, ("amplitude_1", "rate_1", "amplitude_2", "rate_2", "offset")),
    "triple_exponential": _Model(
        7, 1, ("amplitude_1", "rate_1", "amplitude_2", "rate_2", "amplitude_3", "rate_3", "offset")
    ),
    "polynomial": _Model(8, 1, ()),
    "rational": _Model(9, 1, ()),
}


# (number, size, inputs, degree of the numerator, program), as the extension has them.
Choice = tuple[int, int, int, int, tuple[Any, ...] | None]
_PROGRAM = len(BATCH_MODELS)


def choose(model: Any, degree: Any, x0: Any) -> Choice:
    if not isinstance(model, str) or model not in BATCH_MODELS:
        names = ", ".join(map(repr, BATCH_MODELS))
        raise ValueError(f"model: expected a function, or one of {names}, got {model!r}")
    known = BATCH_MODELS[model]
    if known.parameters:
        if degree is not None:
            raise ValueError(f"degree: the model {model!r} has none")
        return known.number, len(known.parameters), known.inputs, 0, None
    if model == "polynomial":
        if degree is None:
            shape = np.shape(x0)
            degree = shape[-1] - 1 if shape and shape[-1] > 0 else 0
        above, below = arguments.whole(degree, "degree"), 0
    else:
        if not isinstance(degree, (tuple, list)) or len(degree) != 2:
            raise ValueError(f"degree: a rational function needs (numerator, denominator), got {degree!r}")
        above, below = arguments.whole(degree[0], "degree"), arguments.whole(degree[1], "degree", low=1)
    size = above + below + 1
    if size > MOST_PARAMETERS:
        raise ValueError(f"degree: at most {MOST_PARAMETERS} parameters, got {size}")
    return known.number, size, known.inputs, above, None


def _trace(
    model: Callable[..., Any], degree: Any, x0: Any, coordinates: Any, data: Any
) -> tuple[Choice, tuple[str, ...]]:
    """The choice, and the names of the parameters, for a model that is a function."""
    if degree is not None:
        raise ValueError("degree: a model that is a function has none")
    shape = np.shape(x0)
    if not shape or not 1 <= shape[-1] <= MOST_PARAMETERS:
        raise ValueError(f"x0: expected 1 to {MOST_PARAMETERS} parameters in the last dimension, got shape {shape}")
    n = shape[-1]
    whole = np.shape(data)
    if len(whole) < 2:
        raise ValueError(f"data: expected shape (k, m), got {whole}; one set of m data has shape (1, m)")
    image = whole[1:]
    if coordinates is None:
        inputs = max(len(image), 1)
    else:
        given = np.shape(coordinates)
        m = math.prod(image)
        one = given in ((m,), (*whole[:1], m))
        inputs = 1 if one or not given else given[-1]
        if not 1 <= inputs <= _expression.MOST_INPUTS:
            raise ValueError(
                f"coordinates: expected shape {(m,)}, or ({m}, q) with q of 1 to {_expression.MOST_INPUTS}, got {given}"
            )
    program = _expression.trace_model(model, n, inputs)
    return (_PROGRAM, n, inputs, 0, program.packed()), _expression.names_of(model, n)


def _real(value: Any, name: str, dtype: np.dtype[Any] | None = None) -> arguments.Array:
    """A C-ordered array of float32 or float64: in its own dtype, or in `dtype`."""
    arguments.no_mask(value, name, "fill it")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    if dtype is None:
        dtype = np.dtype(np.float32 if array.dtype == np.float32 else np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(array, dtype=dtype, order="C")


def _like(value: Any, name: str, dtype: np.dtype[Any], row: tuple[int, ...], k: int) -> arguments.Array:
    """One row for all problems, or one for each."""
    array = _real(value, name, dtype)
    if array.shape not in (row, (k, *row)):
        raise ValueError(f"{name}: expected shape {row} or {(k, *row)}, got {array.shape}")
    return array


def _grid(shape: tuple[int, ...], dtype: np.dtype[Any], inputs: int) -> arguments.Array:
    if inputs == 1:
        return np.arange(math.prod(shape), dtype=dtype)
    if len(shape) == 1:
        side = math.isqrt(shape[0])
        if side * side != shape[0]:
            raise ValueError(
                f"coordinates: {shape[0]} points are no square of pixels; give them, or data as (k, rows, columns)"
            )
        shape = (side, side)
    rows, columns = np.indices(shape, dtype=dtype)
    return np.stack([columns.ravel(), rows.ravel()], axis=1)


def _weights(
    weights: Any, sigma: Any, dtype: np.dtype[Any], image: tuple[int, ...], m: int, k: int
) -> arguments.Array | None:
    if weights is not None and sigma is not None:
        raise ValueError("weights: give these or sigma, not both")
    if weights is None and sigma is None:
        return None
    name = "weights" if sigma is None else "sigma"
    array = _real(weights if sigma is None else sigma, name, dtype)
    if array.shape in (image, (k, *image)):
        array = array.reshape(*array.shape[: array.ndim - len(image)], m)
    array = _like(array, name, dtype, (m,), k)
    if name == "weights":
        if not ((array >= 0) & (array < math.inf)).all():
            raise ValueError("weights: must be finite and >= 0")
        return array
    if not (array > 0).all():
        raise ValueError("sigma: must be positive")
    with np.errstate(over="ignore"):
        result: arguments.Array = dtype.type(1) / array / array
    if not np.isfinite(result).all():
        raise ValueError(f"sigma: its inverse square is beyond {dtype}")
    return result


def _left_out(
    data: Any, mask: Any, policy: str | None, y: arguments.Array, image: tuple[int, ...]
) -> arguments.Array | None:
    """The points that do not count, shape (k, m), or None."""
    if policy not in POLICIES:
        raise ValueError(f"nan_policy: expected None, 'raise' or 'omit', got {policy!r}")
    k, m = y.shape
    out = np.zeros((k, m), dtype=bool)
    if mask is not None:
        array = np.asarray(mask)
        if array.dtype != np.bool_:
            raise TypeError(f"mask: expected booleans, True for what is left out, got dtype {array.dtype}")
        if array.shape not in ((m,), (k, m), image, (k, *image)):
            raise ValueError(f"mask: expected shape {(m,)} or {(k, m)}, got {array.shape}")
        out |= array.reshape(-1, m)
    if isinstance(data, np.ma.MaskedArray):
        out |= np.ma.getmaskarray(data).reshape(k, m)
    if policy is not None:
        missing = np.isnan(y) & ~out
        if policy == "raise" and missing.any():
            at = np.unravel_index(int(np.argmax(missing)), missing.shape)
            raise ValueError(f"data: NaN at {tuple(map(int, at))}, and nan_policy is 'raise'")
        out |= missing
    return out if out.any() else None


def _kept(
    fixed: Any, x: arguments.Array, names: Sequence[str], n: int, k: int
) -> tuple[arguments.Array, arguments.Array | None]:
    """The start with the values of fixed parameters, and a mask of these parameters."""
    if fixed is None:
        return x, None
    if not isinstance(fixed, Mapping):
        keep = np.ascontiguousarray(fixed)
        if keep.dtype != np.bool_ or keep.shape not in ((n,), (k, n)):
            raise ValueError(
                f"fixed: expected booleans of shape {(n,)} or {(k, n)}, or a dict, got shape {keep.shape} of "
                f"{keep.dtype}"
            )
        return x, keep
    keep = np.zeros(n, dtype=bool)
    x = x.copy()
    for key, value in fixed.items():
        j = index(key, n, names, "fixed")
        values = _real(value, f"fixed[{key!r}]", x.dtype)
        if values.shape not in ((), (k,)):
            raise ValueError(f"fixed[{key!r}]: expected a number or shape {(k,)}, got {values.shape}")
        if values.ndim and x.ndim == 1:
            x = np.array(np.broadcast_to(x, (k, n)), order="C")
        x[..., j], keep[j] = values, True
    return x, keep


def _scale(loss: Any, f_scale: Any, dtype: np.dtype[Any], k: int) -> arguments.Array | None:
    scale = _real(f_scale, "f_scale", dtype)
    if scale.shape not in ((), (k,)):
        raise ValueError(f"f_scale: expected a number or shape {(k,)}, got {scale.shape}")
    if not ((scale > 0) & (scale < math.inf)).all():
        raise ValueError("f_scale: must be positive and finite")
    if loss in ("linear", "poisson"):
        return None
    return scale


def _bounds(
    bounds: Any, x0: arguments.Array, n: int, k: int
) -> tuple[arguments.Array, arguments.Array] | tuple[None, None]:
    if bounds is None:
        return None, None
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        bounds = (bounds.lb, bounds.ub)
    wanted = f"bounds: expected a pair (lower, upper) of numbers or of shape {(n,)} or {(k, n)}"
    try:
        low, high = (_real(b, "bounds", x0.dtype) for b in bounds)
    except (TypeError, ValueError):
        raise ValueError(wanted + arguments.transposed(bounds, n)) from None
    shape = (k, n) if (k, n) in (low.shape, high.shape) and low.ndim + high.ndim > 2 else (n,)
    try:
        low, high = (np.ascontiguousarray(np.broadcast_to(b, shape)) for b in (low, high))
    except ValueError:
        raise ValueError(wanted + arguments.transposed(bounds, n)) from None
    if np.isnan(low).any() or np.isnan(high).any():
        raise ValueError("bounds: hold NaN")
    if not (low < high).all():
        at = np.unravel_index(int(np.argmin(low < high)), shape)
        raise ValueError(
            f"bounds: lower must be less than upper, got {low[at]} and {high[at]} at {tuple(map(int, at))}"
            + arguments.transposed(bounds, n)
        )
    outside = (x0 < low) | (x0 > high)
    if outside.any():
        place = tuple(int(i) for i in np.unravel_index(int(np.argmax(outside)), outside.shape))
        value, least, most = (np.broadcast_to(a, outside.shape)[place] for a in (x0, low, high))
        raise ValueError(f"x0: {value} at {place} is outside its bounds [{least}, {most}]")
    return low, high


def _options(
    ftol: Any, xtol: Any, gtol: Any, max_iterations: Any, polish: Any, absolute_sigma: Any, loss: Any
) -> tuple[Any, ...]:
    """The options in the form that the extensions take."""
    options = (
        arguments.tolerance(ftol, "ftol"),
        arguments.tolerance(xtol, "xtol"),
        arguments.tolerance(gtol, "gtol"),
        arguments.whole(max_iterations, "max_iterations"),
        bool(polish),
        bool(absolute_sigma),
        arguments.choice(loss, "loss", _LOSSES),
        loss == "poisson",
    )
    if options[3] > 1_000_000:
        raise ValueError(f"max_iterations: must be <= 1000000, got {options[3]}")
    return options


def levenberg_marquardt_batch(
    model: str | Callable[..., Any],
    x0: Any,
    data: Any,
    *,
    coordinates: Any = None,
    degree: int | tuple[int, int] | None = None,
    weights: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    mask: Any = None,
    nan_policy: str | None = None,
    bounds: Any = None,
    fixed: Any = None,
    loss: str = "linear",
    f_scale: Any = 1.0,
    ftol: float | None = None,
    xtol: float | None = None,
    gtol: float | None = None,
    max_iterations: int = 100,
    polish: bool = True,
    covariance: bool = False,
    starts: Any = None,
    seed: int = 0,
) -> Batch:
    """Fit one model to k sets of data: half the sum of ``w (model - data)**2`` of each is minimised.

    The solver is vectorised across problems, one per SIMD lane. The result of a problem is bitwise identical for any
    other problems, number of threads and instruction set.

    Parameters
    ----------
    model : str or callable
        A function ``model(x, p_0, p_1, ...)`` as for :func:`curve_fit`, or one of these, with its parameters in order:

        ========================== ==================================================================================
        ``"gaussian"``             ``a*exp(-(x - c)**2/(2*s**2)) + o``, parameters `a, c, s, o`
        ``"gaussian_2d"``          ``a*exp(-((x - cx)**2 + (y - cy)**2)/(2*s**2)) + o``: `a, cx, cy, s, o`
        ``"gaussian_2d_elliptic"`` ``a*exp(-(x - cx)**2/(2*sx**2) - (y - cy)**2/(2*sy**2)) + o``: `a, cx, cy, sx, sy,
                                   o`
        ``"gaussian_2d_rotated"``  the same, rotated by the angle `t` (radians, from x to y): `a, cx,
                                   cy, su, sv, o, t`
        ``"lorentz"``              ``a/(1 + ((x - c)/w)**2) + o``: `a, c, w, o`
        ``"exponential"``          ``a*exp(-b*x) + o``: `a, b, o`; ``"double_exponential"`` and
                                   ``"triple_exponential"``: more pairs `a, b` before `o`
        ``"polynomial"``           ``p[0] + p[1]*x + ...``
        ``"rational"``             ``(p[0] + p[1]*x + ... + p[d]*x**d)/(1 + p[d + 1]*x + ...)``
        ========================== ==================================================================================

        A function is called once, with values that record the operations on them; the recorded program and its exact
        derivatives then run on the SIMD lanes. The function may use operators, powers, comparisons, numbers and NumPy's
        ``exp, expm1, exp2, log, log1p, log2, log10, logaddexp, sqrt, square, power, sin, cos, tan, sinc, arcsin,
        arccos, arctan, deg2rad, rad2deg, sinh, cosh, tanh, arcsinh, arctanh, hypot, abs, sign, maximum, minimum, clip,
        where``. Loops and branches may depend only on Python's own values. If there are several coordinates, `x` is a
        tuple of them. A power whose exponent is not a multiple of 1/2 is computed as ``exp(c*log(x))``; if its base is
        0, its derivatives are taken as 0.
    x0 : array_like, shape (n,) or (k, n)
        The start, one for all problems or one for each. A problem whose start is not finite ends with status -3.
    data : array_like, shape (k, m), or (k, rows, columns) for 2-D models
        float32, or anything real that converts to float64; all other arrays are converted to that dtype. On a CUDA
        device, all arrays must be float32 and on that device; arrays that all problems share may also be given as
        numbers or lists of numbers. Results are on the device too, as arrays of the same library as `data`, and are
        bitwise identical to those of the CPU. `model` must then be a named model without a `degree`, and `fixed` a dict
        of numbers or a list of booleans; `sigma`, `mask`, `nan_policy` and `starts` are not supported.
    coordinates : array_like, optional
        Shape (m,) or (k, m); for 2-D models (m, 2) or (k, m, 2), `x` first; for functions (m, q) or (k, m, q) with up
        to four coordinates. Default: 0, 1, ..., m - 1; for 2-D models the pixels of `data`, where `x` is the column (m
        must be a square number if `data` has shape (k, m)).
    degree : int or (int, int), optional
        The degree of a polynomial, by default the number of its parameters in `x0` minus 1; or the degrees of the
        numerator and denominator of a rational function. At most 10 parameters.
    weights, sigma : array_like, shape (m,) or (k, m), optional
        ``w``, or standard deviations: ``w = 1/sigma**2``. Data of weight 0 are left out and may be NaN.
    absolute_sigma : bool
        Whether `cov` is not scaled by ``2*cost/(m - n)``.
    mask : array_like of bool, shape (m,) or (k, m), optional
        True for data to leave out, as in :mod:`numpy.ma`. Data that are masked in `data` are left out too.
    nan_policy : {None, "raise", "omit"}
        If `data` has NaN: None ends that problem with status -3; ``"raise"`` raises ValueError; ``"omit"`` leaves these
        data out.
    bounds : (lower, upper), optional
        Numbers, or shape (n,) or (k, n). A step that leaves the bounds is cut at them and recomputed in the other
        parameters. A parameter leaves its bound as soon as the gradient allows.
    fixed : dict or array_like of bool, shape (n,) or (k, n), optional
        Parameters to keep fixed: ``{name or index: value}``, with a number or shape (k,) as the value; or booleans,
        True for parameters that keep their values in `x0`.
    loss : {"linear", "huber", "soft_l1", "cauchy", "arctan", "tukey", "poisson"}
        The robust losses of :func:`levenberg_marquardt`, or ``"poisson"`` for counts: `cost` is then
        ``sum(w*(model - data + data*log(data/model)))``, half the deviance, which is least for the maximum-likelihood
        model; `cov` is the inverse of the Fisher information. A trial point where the model is <= 0 is rejected.
    f_scale : float or array_like, shape (k,)
        The scale C of a robust loss.
    ftol, xtol, gtol : float, optional
        Tolerances: see `status`. Defaults: 1e-10, 1e-10 and 1e-12; for float32 1e-5, 1e-5 and 1e-6.
    max_iterations : int
        The most trial points for each problem, not counting the start.
    polish : bool
        Whether to finish with undamped steps as long as they shrink. This gives all digits, for about two more trial
        points.
    covariance : bool
        Whether to compute `cov` and `x_std`; with robust losses by the sandwich estimate.
    starts : int or array_like, shape (s, n) or (s, k, n), optional
        More starts besides `x0`, run in the same batch; each problem gets the best of its fits. A number draws this
        many starts from a Latin hypercube, as in :func:`levenberg_marquardt`. `data` are copied for each start.
    seed : int
        The seed of these starts, in [0, 2**64).

    Returns
    -------
    Batch
        Arrays with a row for each problem: `x` (k, n), `cost` (k,), `nit` (k,) the trial points, `success` (k,),
        `status` (k,), with ``covariance=True`` also `cov` (k, n, n) and `x_std` (k, n); and `message`. With `starts`
        these are the results of the fit with the lowest cost, among those that have converged if there are any;
        `local_results` has all fits, along a new first axis of length s + 1. With r the weighted residuals, J their
        Jacobian and D the largest norms of its columns so far, `status` is

        == =======================================================================
        1  ``|J_j.r| <= gtol |J_j| |r|`` for all columns j that no bound holds
        2  actual and predicted relative reductions of ``|r|**2`` ``<= ftol``
        3  ``|D p| <= xtol |D x|`` for the step p
        4  2 and 3
        5  no step changes x
        0  `max_iterations` trial points
        -3 residuals or Jacobian at the start are not finite; `x` is then `x0`
        -4 the loss is "tukey", and every residual is beyond `f_scale` at the start
        == =======================================================================

        `cov` and `x_std` are infinite if the Jacobian does not have full rank or, without `absolute_sigma`, there are
        no degrees of freedom. They are zero for fixed parameters, and ignore bounds.

    Raises
    ------
    NotImplementedError
        If `data` are on a CUDA device, and an argument is only supported on the CPU.
    TypeError, ValueError
        If an argument has a wrong type, shape or range or is on another device, or there are fewer points than free
        parameters, or the model does something that cannot be recorded: the message then names the line. Non-finite
        data are not an error: that problem ends with status -3.

    References
    ----------
    D. W. Marquardt, J. SIAM 11, 1963. J. J. More, The Levenberg-Marquardt algorithm: implementation and theory, 1978.
    H. B. Nielsen, Damping parameter in Marquardt's method, 1999. T. A. Laurence, B. A. Chromy, Nature Methods 7, 2010
    (counts).

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> t = np.linspace(0, 2, 21)
    >>> rates = np.array([1.0, 2.0, 3.0])
    >>> data = 5 * np.exp(-rates[:, None] * t) + 1
    >>> r = adaptk.solve.levenberg_marquardt_batch("exponential", [4.0, 1.5, 0.0], data, coordinates=t)
    >>> r.success, r.x.round(6)
    (array([ True,  True,  True]), array([[5., 1., 1.],
           [5., 2., 1.],
           [5., 3., 1.]]))

    A custom model:

    >>> def stretched(x, a, tau, beta):
    ...     return a * np.exp(-((x / tau) ** beta))
    >>> data = np.array([stretched(t, 2.0, 0.8, beta) for beta in (0.7, 1.0, 1.5)])
    >>> r = adaptk.solve.levenberg_marquardt_batch(stretched, [1.0, 1.0, 1.0], data, coordinates=t)
    >>> r.x.round(6)
    array([[2. , 0.8, 0.7],
           [2. , 0.8, 1. ],
           [2. , 0.8, 1.5]])
    """
    if _batch_device.is_on_device(data):
        # Functions run only on the CPU, and these arguments are processed on the host, in NumPy.
        if callable(model):
            raise NotImplementedError("model: a function is for data on the CPU, not on a CUDA device")
        for name, value in (("sigma", sigma), ("mask", mask), ("nan_policy", nan_policy), ("starts", starts)):
            if value is not None:
                raise NotImplementedError(f"{name}: for data on the CPU, not on a CUDA device")
        return _batch_device.fit(
            choose(model, degree, x0),
            model,
            BATCH_MODELS[model].parameters,
            data,
            x0=x0,
            coordinates=coordinates,
            grid=_grid,
            weights=weights,
            bounds=bounds,
            fixed=fixed,
            f_scale=f_scale,
            options=_options(ftol, xtol, gtol, max_iterations, polish, absolute_sigma, loss),
            covariance=bool(covariance),
        )
    _batch_device.refuse(
        x0=x0, coordinates=coordinates, weights=weights, sigma=sigma, mask=mask, bounds=bounds, fixed=fixed,
        f_scale=f_scale, starts=starts,
    )  # fmt: skip
    if callable(model):
        choice, names = _trace(model, degree, x0, coordinates, data)
    else:
        choice = choose(model, degree, x0)
        names = BATCH_MODELS[model].parameters
    _, n, inputs, _, _ = choice
    y = _real(np.ma.getdata(data) if isinstance(data, np.ma.MaskedArray) else data, "data")
    if y.ndim != 2 and not (inputs == 2 and y.ndim == 3):
        wanted = "(k, m)" if inputs == 1 else "(k, m) or (k, rows, columns)"
        one = "; one set of m data has shape (1, m)" if y.ndim == 1 else ""
        raise ValueError(f"data: expected shape {wanted}, got {y.shape}{one}")
    k, *image = y.shape
    m = math.prod(image)
    y = y.reshape(k, m)
    dtype = y.dtype
    x = _real(x0, "x0", dtype)
    if x.shape not in ((n,), (k, n)):
        who, listed = "the model" if callable(model) else repr(model), ", ".join(names)
        raise ValueError(
            f"x0: {who} has {n} parameters{f' ({listed})' if names else ''}: expected shape {(n,)} or {(k, n)}, "
            f"got {x.shape}"
        )
    x, keep = _kept(fixed, x, names, n, k)
    free = n if keep is None else n - (int(keep.sum(axis=-1).min()) if keep.size else 0)
    if m < max(free, 1):
        raise ValueError(f"data: {m} points cannot determine {free} parameters")
    if coordinates is None:
        points = _grid(tuple(image), dtype, inputs)
    else:
        points = _like(coordinates, "coordinates", dtype, (m,) if inputs == 1 else (m, inputs), k)
    if inputs == 1:
        points = points[..., None]
    w = _weights(weights, sigma, dtype, tuple(image), m, k)
    out = _left_out(data, mask, nan_policy, y, tuple(image))
    if out is not None:
        w = np.where(out, dtype.type(0), dtype.type(1) if w is None else w)
    low, high = _bounds(bounds, x, n, k)
    options = _options(ftol, xtol, gtol, max_iterations, polish, absolute_sigma, loss)
    scale = _scale(loss, f_scale, dtype, k)
    if loss == "poisson" and ((y < 0) if w is None else (y < 0) & (w > 0)).any():
        raise ValueError("data: counts of loss='poisson' must be >= 0")
    every = None
    if starts is not None:
        wide = np.broadcast_to(x, (k, n))
        least, most = (-np.inf, np.inf) if low is None or high is None else (low, high)
        more = _starts.points(
            starts,
            seed,
            wide,
            np.broadcast_to(least, (k, n)).astype(dtype),
            np.broadcast_to(most, (k, n)).astype(dtype),
        )
        if keep is not None:
            more = np.where(keep, wide, more)
        every = np.concatenate([wide[None], more])

    def for_each(array: arguments.Array | None, dimensions: int) -> arguments.Array | None:
        """Repeats the array for each start, if it has a row for each problem."""
        if every is None or array is None or array.ndim < dimensions:
            return array
        return np.ascontiguousarray(np.tile(array, (len(every), *[1] * (dimensions - 1))))

    raw = _solve.levenberg_marquardt_batch(
        choice,
        x if every is None else every.reshape(-1, n),
        *(for_each(y, 2), for_each(points, 3), for_each(w, 2), for_each(low, 2), for_each(high, 2)),
        *(for_each(keep, 2), for_each(scale, 1), options, bool(covariance)),
    )
    if every is None:
        result = Batch(raw)
    else:
        local = Batch({name: v.reshape(len(every), k, *v.shape[1:]) for name, v in raw.items()})
        which = _starts.best_of(local.cost, local.status > 0)
        result = Batch({name: v[which, np.arange(k)] for name, v in local.items()})
        local["success"] = local.status > 0
        result["local_results"] = local
    result["success"] = result["status"] > 0
    result["message"] = f"{int(result['success'].sum())} of {k} problems have converged."
    return result


if not TYPE_CHECKING:
    levenberg_marquardt_batch = known_names_only(
        levenberg_marquardt_batch,
        {
            "p0": "the start is x0",
            "xdata": "the points are coordinates",
            "ydata": "it is data",
            "jac": "the model is differentiated exactly",
            "max_nfev": "the limit is max_iterations",
            "method": "the method is always Levenberg and Marquardt's",
        },
    )
