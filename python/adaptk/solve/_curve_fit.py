"""Fits of a model to data, with the signature of SciPy's curve_fit."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptk import _solve
from adaptk.solve import _arguments as arguments
from adaptk.solve import _batch, _profile, _rows
from adaptk.solve._least_squares import levenberg_marquardt
from adaptk.solve._losses import MEDIAN
from adaptk.solve._operators import Product, is_product, is_sparse
from adaptk.solve._parameters import Parameters, by_name, index
from adaptk.solve._result import Fit, Result, level_of, student_t

__all__ = ["CurveFit", "curve_fit"]

Array = npt.NDArray[Any]


class CurveFit(tuple[Any, ...]):
    """The result of :func:`curve_fit`: the tuple that SciPy's returns, with the fit as an attribute.

    It unpacks as ``popt, pcov`` (with ``full_output=True`` as ``popt, pcov, infodict, mesg, ier``), and is printed as a
    table of the parameters.

    Attributes
    ----------
    popt : ndarray, shape (n,)
        The parameters.
    pcov : ndarray, shape (n, n)
        Their covariance.
    fit : Fit
        The result of :func:`levenberg_marquardt`.
    names : tuple of str
        The names of the parameters in the signature of the model, or p0, p1, ...
    """

    fit: Fit
    names: tuple[str, ...]
    _model: Callable[..., Any]
    _xdata: Any
    _ydata: Array
    _sigma: Array | None
    _absolute: bool

    @property
    def popt(self) -> Array:
        return np.asarray(self[0])

    @property
    def pcov(self) -> Array:
        return np.asarray(self[1])

    @property
    def x_std(self) -> Array:
        """The standard deviations of the parameters, shape (n,)."""
        return np.asarray(self.fit.x_std)

    @property
    def correlation(self) -> Array:
        """The correlations of the parameters, shape (n, n); NaN where a standard deviation is 0 or infinite."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.pcov / np.outer(self.x_std, self.x_std))

    def confidence_intervals(self, level: float = 0.95) -> Array:
        """Lower and upper ends for each parameter, shape (n, 2): see :meth:`Fit.confidence_intervals`."""
        return self.fit.confidence_intervals(level)

    def conf_interval(self, level: float = 0.95, parameters: Any = None) -> Array:
        """Intervals by profile likelihood, for parameters by name or index: see :meth:`Fit.conf_interval`."""
        return _profile.conf_interval(self.fit, level, parameters, self.names)

    def profile(self, parameter: str | int, level: float = 0.99, points: int = 21) -> Result:
        """The profile of a parameter, by name or index: see :meth:`Fit.profile`."""
        return _profile.profile(self.fit, parameter, level, points, self.names)

    def summary(self, level: float = 0.95) -> str:
        """A table of values, standard deviations and confidence intervals, and the larger correlations.

        Parameters
        ----------
        level : float
            The level of the intervals, in (0, 1).

        Returns
        -------
        str
        """
        rows = [("parameter", "value", "std", f"{100 * level:g}% interval")]
        for name, value, std, (low, high) in zip(
            self.names, self.popt, self.x_std, self.confidence_intervals(level), strict=True
        ):
            rows.append((name, f"{value:.8g}", f"{std:.3g}", f"[{low:.6g}, {high:.6g}]"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        for i, note in enumerate(self.fit._notes()):
            lines[i + 1] += note
        correlation = self.correlation
        pairs = [(abs(correlation[i, k]), i, k) for i in range(len(self.names)) for k in range(i)]
        for size, i, k in sorted(pairs, reverse=True)[:5]:
            if size >= 0.5:
                lines.append(f"correlation of {self.names[k]} and {self.names[i]}: {correlation[i, k]:.3f}")
        freedom = "known variance" if math.isinf(self.fit.dof) else f"{self.fit.dof:g} degrees of freedom"
        lines.append(f"{self.fit._cost_in_words()}, {self.fit.fun.size} points, {freedom}; {self.fit.message}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()

    def predict(self, x: Any, level: float | None = None, *, new: bool = False, sigma: Any = None) -> Any:
        """The model at `x`, and confidence bands around it.

        Parameters
        ----------
        x : array_like
            Points in the form of `xdata`.
        level : float, optional
            The level of the bands, in (0, 1).
        new : bool
            Whether the bands are for a new measurement, and include the scatter of the data, or for the curve. With a
            robust loss the scatter is that of good data, estimated as ``median(|r|) / 0.6745``.
        sigma : array_like, optional
            The standard deviations of new measurements, like `sigma` of :func:`curve_fit`. Required with ``new=True``
            if the fit was given a `sigma`.

        Returns
        -------
        ndarray, or (ndarray, ndarray, ndarray)
            The values; with `level` also the lower and the upper band. The bands are those of the model linearised in
            its parameters. For a complex model, real and imaginary parts have separate bands.

        Raises
        ------
        ValueError
            If `level` is not in (0, 1), or `sigma` is missing.
        """
        if not callable(getattr(x, "keys", None)):
            x = np.asarray(x, dtype=np.float64) if isinstance(x, (list, tuple, np.ndarray)) else x
        value = _values(self._model(x, *self.popt))
        if value.size == 1 and isinstance(x, np.ndarray):  # a model that does not depend on x
            value = np.full(x.shape[-1:], value.reshape(()))
        if level is None:
            return value
        level = level_of(level)
        # Central differences, with steps that are small relative to the standard deviations.
        slope = np.zeros((value.size, self.popt.size), dtype=value.dtype)
        for k in np.flatnonzero(self.x_std):
            std = self.x_std[k] if np.isfinite(self.x_std[k]) else 0.0
            step = max(1e-3 * std, np.cbrt(np.finfo(np.float64).eps) * abs(self.popt[k])) or 1e-6
            up, down = self.popt.copy(), self.popt.copy()
            up[k] += step
            down[k] -= step
            change = np.asarray(self._model(x, *up)) - np.asarray(self._model(x, *down))
            slope[:, k] = change.ravel() / (up[k] - down[k])

        def variance_of(part: Array) -> Array:
            with np.errstate(invalid="ignore"):
                total: Array = np.einsum("ik,kl,il->i", part, self.pcov, part)
            return total.reshape(value.shape)

        added: Any = 0.0
        if new:
            if sigma is None and self._sigma is not None:
                raise ValueError("sigma: give the standard deviations of the new measurements, as for the data")
            scale = 1.0 if self._absolute else self._scatter()
            spread = np.ones_like(value) if sigma is None else np.asarray(sigma, dtype=np.float64)
            added = scale * spread**2
        quantile = student_t(level, self.fit.dof)
        half = quantile * np.sqrt(variance_of(slope.real) + added)
        if value.dtype.kind == "c":
            half = half + 1j * quantile * np.sqrt(variance_of(slope.imag) + added)
        return value, value - half, value + half

    def _scatter(self) -> float:
        """The variance of the weighted residuals."""
        if "loss" in self.fit:  # whose cost depends on f_scale, and whose squares may be those of outliers
            return float(np.median(np.abs(self.fit.fun)) / MEDIAN) ** 2
        return float(2 * self.fit.cost / max(self.fit.dof, 1))

    def plot(self, ax: Any = None, *, level: float = 0.95, points: int = 400) -> Any:
        """Draw the data, the curve, and its band.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. A new figure of pyplot by default, which `matplotlib.pyplot.show` and `savefig` know.
        level : float
            The level of the band, in (0, 1).
        points : int
            The number of points of the curve.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `xdata` is not 1-D.
        """
        try:
            from matplotlib import pyplot
        except ImportError:
            raise ImportError("plot needs matplotlib, which is not installed: pip install matplotlib") from None
        x = np.asarray(self._xdata)
        if x.ndim != 1 or x.shape != self._ydata.shape:
            raise ValueError(f"xdata: a plot needs one number for each point, got shape {x.shape}")
        if self._ydata.dtype.kind == "c" or x.dtype.kind == "c":
            raise ValueError("ydata: a plot needs real data")
        if ax is None:
            _, ax = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
        fine = np.linspace(x.min(), x.max(), points)
        value, low, high = self.predict(fine, level)
        error = self._sigma if self._sigma is not None and self._sigma.ndim == 1 else None
        ax.errorbar(x, self._ydata, yerr=error, fmt=".", color="0.35", label="data")
        ax.plot(fine, value, label="fit")
        ax.fill_between(fine, low, high, alpha=0.25, label=f"{100 * level:g}% band")
        ax.legend(frameon=False)
        return ax.figure


def _parameters(f: Callable[..., Any], count: int | None) -> tuple[str, ...]:
    """Names from the signature, or `count` names p0, p1, ..., if it has none."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][1:]
    plain = [p.name for p in positional]
    if not plain or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        if count is None:
            raise ValueError("p0: must be given, for the signature of f does not say how many parameters it has")
        return tuple(plain) if len(plain) == count else tuple(f"p{k}" for k in range(count))
    if count is None:
        return tuple(plain)
    if not sum(p.default is p.empty for p in positional) <= count <= len(plain):
        raise ValueError(f"p0: has {count} values, but f takes {len(plain)} parameters: {', '.join(plain)}")
    return tuple(plain[:count])


def _start(f: Callable[..., Any], p0: Any, bounds: Any) -> tuple[Array, tuple[str, ...]]:
    """The start, and the names of the parameters."""
    if p0 is None or isinstance(p0, Mapping):
        names = _parameters(f, None)
        start = _default_start(bounds, len(names))
        for key, value in (p0 or {}).items():
            k = index(key, len(names), names, "p0")
            start[k] = arguments.real(value, f"p0: {names[k]}", low=-np.inf)
    else:
        start = arguments.start(np.ravel(p0), "p0").astype(np.float64)
        names = _parameters(f, start.size)
    return start, names


def _default_start(bounds: Any, n: int) -> Array:
    """SciPy's default: 1, or the middle of the bounds, or 1 inside the bound if there is only one."""
    if bounds is None:
        return np.ones(n)
    if hasattr(bounds, "lb"):
        bounds = (bounds.lb, bounds.ub)
    try:
        low, high = (np.broadcast_to(np.asarray(b, dtype=np.float64), (n,)) for b in bounds)
    except (TypeError, ValueError):
        return np.ones(n)  # the bounds are refused later
    start = np.ones(n)
    both, only_low, only_high = (
        np.isfinite(low) & np.isfinite(high),
        np.isfinite(low) & ~np.isfinite(high),
        ~np.isfinite(low) & np.isfinite(high),
    )
    start[both] = 0.5 * (low[both] + high[both])
    start[only_low] = low[only_low] + 1
    start[only_high] = high[only_high] - 1
    return start


def _values(value: Any) -> Array:
    """float64, or complex128."""
    array = np.asarray(value)
    return np.asarray(array, dtype=np.complex128 if array.dtype.kind == "c" else np.float64)


def _plain(x: Any) -> Any:
    """Without a mask."""
    return np.ma.getdata(x) if isinstance(x, np.ma.MaskedArray) else x


def _values_of_model(value: Any, shape: tuple[int, ...]) -> Array:
    """What the model returns, for data of this shape, as one row; NaN where it is masked."""
    if isinstance(value, np.ma.MaskedArray):
        value = np.ma.filled(value.astype(np.result_type(value, np.float64)), np.nan)
    array = np.asarray(value)
    if value is None or array.dtype.kind not in "biufcO":
        raise TypeError(f"f must return numbers, got {type(value).__name__} of dtype {array.dtype}")
    if array.dtype.kind == "O":
        array = array.astype(np.float64)
    m = math.prod(shape)
    if array.size == 1:  # a model that does not depend on xdata
        return np.full(m, array.reshape(()))
    if array.size != m or (array.shape != shape and sum(k != 1 for k in array.shape) > 1):
        raise ValueError(f"f must return an array of shape {shape} as ydata has it, got one of shape {array.shape}")
    return array.ravel()


def _data(value: Any, name: str) -> Array:
    """An array of numbers, with its mask if it has one."""
    array = value if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
    if array.dtype.kind not in "biufcO":
        raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
    try:  # objects may be numbers, such as those of decimal
        return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected numbers, got objects such as {array.flat[0]!r}") from None


def _is_table(x: Any) -> bool:
    """A Series or DataFrame of pandas, which models may use by its columns."""
    return hasattr(x, "iloc") and hasattr(x, "isna")


def _check_values(value: Any, name: str, finite: bool, no_nan: bool) -> None:
    """Refuse infinity and NaN in arrays, and NaN in a Series; the columns of a DataFrame may be for other uses."""
    if isinstance(value, np.ndarray):
        known, missing = np.isfinite(value), np.isnan(value)
    elif _is_table(value) and value.ndim == 1:
        missing = np.asarray(value.isna())
        known = ~missing
    else:
        return
    if finite and not known.all():
        raise ValueError(f'{name}: has values that are not finite; leave them out, or give nan_policy="omit"')
    if no_nan and missing.any():
        raise ValueError(f"{name}: has NaN, and nan_policy is 'raise'")


def _left_out(x: Any, y: Array, sigma: Array | None, mask: Any, omit: bool) -> Array:
    """The points to leave out: those in `mask`, those masked in the data, and with `omit` those with NaN."""
    m = y.size
    out = np.zeros(m, dtype=bool) if mask is None else _rows.mask_of(mask, np.shape(y)).ravel().copy()
    out |= np.ma.getmaskarray(y).ravel()
    if omit:
        out |= np.isnan(np.ma.getdata(y)).ravel()
    if isinstance(x, np.ndarray):
        bad = np.ma.getmaskarray(x)
        if omit:
            bad = bad | np.isnan(np.ma.getdata(x))
        if x.shape[-1:] == (m,):
            out |= bad.reshape(-1, m).any(axis=0)
        elif bad.any() or out.any():
            raise ValueError(f"xdata: to leave points out its last axis must have {m}, got shape {x.shape}")
    elif _is_table(x):
        if len(x) == m:
            out |= np.asarray(x.isna()).reshape(m, -1).any(axis=1) if omit else False
        elif out.any():
            raise ValueError(f"xdata: to leave points out it must have {m} rows, got {len(x)}")
    elif out.any():
        raise ValueError("xdata: to leave points out it must be an array, or a table of pandas")
    if isinstance(sigma, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(sigma)
        if sigma.shape != (m,) and hidden.any():
            raise ValueError("sigma: a covariance must have no masked elements")
        out |= hidden.ravel() if sigma.shape == (m,) else False
    return out


class _Whitened:
    """Division by the standard deviations `sigma`, or by the Cholesky factor of the covariance `sigma`."""

    def __init__(self, sigma: Array | None) -> None:
        self.sigma, self.inverse = sigma, None
        if sigma is None:
            return
        if sigma.ndim == 1:
            if not (np.isfinite(sigma).all() and (sigma > 0).all()):
                raise ValueError("sigma: must be finite and positive; mask leaves points out")
            return
        if not np.isfinite(sigma).all():
            raise ValueError("sigma: must be finite")
        wrong = "sigma: as a covariance it must be symmetric and positive definite"
        if not np.allclose(sigma, sigma.T, rtol=1e-6, atol=1e-6 * float(np.abs(sigma.diagonal()).min())):
            raise ValueError(wrong)
        try:
            self.inverse = np.linalg.inv(np.linalg.cholesky(sigma))
        except np.linalg.LinAlgError:
            raise ValueError(wrong) from None

    def __call__(self, values: Any) -> Any:
        """Of m rows: an array, a sparse matrix or an operator."""
        sigma, inverse = self.sigma, self.inverse
        if sigma is None:
            return values
        if is_product(values):

            def rmatvec(u: Array) -> Any:
                return values.rmatvec(u / sigma if inverse is None else inverse.T @ u)

            return Product(values.shape, lambda v: self(np.asarray(values.matvec(v)).ravel()), rmatvec)
        if inverse is not None:
            return inverse @ values
        if is_sparse(values):
            return values.multiply(1.0 / sigma[:, None]).tocsr()
        return values * (1.0 / (sigma if values.ndim == 1 else sigma[:, None]))


def _named(name: str, p0: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A built-in model of `levenberg_marquardt_batch`, and its derivatives, as functions of points and parameters."""
    known = [model for model in _batch.BATCH_MODELS if model != "rational"]
    if name not in known:
        raise ValueError(f"f: expected a callable, or one of {', '.join(map(repr, known))}, got {name!r}")
    if p0 is None and name == "polynomial":
        raise ValueError("p0: must be given, for it says how many coefficients the polynomial has")
    choice = _batch.choose(name, None, p0)
    _, n, inputs, _, _ = choice

    def evaluate(x: Any, p: tuple[Any, ...]) -> tuple[Array, Array]:
        points = np.asarray(x, dtype=np.float64)
        if points.ndim != inputs or (inputs > 1 and len(points) != inputs):
            shape = "(m,)" if inputs == 1 else f"({inputs}, m)"
            raise ValueError(f"xdata: {name!r} needs shape {shape}, got {points.shape}")
        rows = np.ascontiguousarray(points[:, None] if inputs == 1 else points.T)
        return _solve.batch_model(choice, np.array(p, dtype=np.float64), rows)

    def model(x: Any, *p: Any) -> Array:
        return evaluate(x, p)[0]

    kind = inspect.Parameter.POSITIONAL_ONLY
    names = _batch.BATCH_MODELS[name].parameters or tuple(f"c{i}" for i in range(n))
    vars(model)["__signature__"] = inspect.Signature([inspect.Parameter(v, kind) for v in ("xdata", *names)])
    return model, lambda x, *p: evaluate(x, p)[1]


# Options of levenberg_marquardt that curve_fit decides by itself.
_NOT_FOR_CURVES = {
    "args": "f takes xdata and parameters only; functools.partial gives it more",
    "m": "is for compiled residuals",
    "complex_residuals": "is decided by ydata",
    "vectorized": "is for residuals; f takes one set of parameters",
}


def _translate(options: dict[str, Any]) -> None:
    """Options of SciPy's leastsq and least_squares in their other names here."""
    for theirs, ours, changed in (
        ("maxfev", "max_nfev", lambda v: v or None),  # 0 is the default of leastsq
        ("diff_step", "rel_step", lambda v: v),
        ("epsfcn", "rel_step", lambda v: None if v is None else np.sqrt(v)),
        ("diag", "x_scale", lambda v: "jac" if v is None else 1.0 / np.asarray(v, dtype=np.float64)),
        ("verbose", "disp", bool),
    ):
        if theirs in options:
            if ours in options:
                raise TypeError(f"{theirs}: is the same as {ours}; give only one of them")
            options[ours] = changed(options.pop(theirs))


def _as_call(names: tuple[str, ...], values: Array) -> str:
    return ", ".join(f"{name}={value:.6g}" for name, value in zip(names, values, strict=True))


def _minpack(fit: Fit) -> dict[str, Any]:
    """The `infodict` of leastsq: R and the reflections of a QR factorisation of the Jacobian, here without pivoting."""
    information = {"nfev": fit.nfev, "fvec": fit.fun}
    if isinstance(fit.jac, np.ndarray):
        n = fit.x.size
        factored, _ = np.linalg.qr(fit.jac, mode="raw")
        q, _ = np.linalg.qr(fit.jac)
        information |= {"fjac": factored, "ipvt": np.arange(1, n + 1), "qtf": q.T @ fit.fun}
    return information


def curve_fit(
    f: str | Callable[..., Any],
    xdata: Any,
    ydata: Any,
    p0: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    check_finite: bool | None = None,
    bounds: Any = None,
    method: str | None = None,
    jac: Any = None,
    *,
    full_output: bool = False,
    nan_policy: str | None = None,
    fixed: Any = None,
    ties: Any = None,
    mask: Any = None,
    **options: Any,
) -> CurveFit:
    """Fit a model to data by nonlinear least squares, as ``scipy.optimize.curve_fit`` does.

    Parameters
    ----------
    f : callable or str
        ``f(xdata, p0, p1, ...)`` returns the model at the points, shape (m,). Or the name of a model of
        :func:`levenberg_marquardt_batch`, such as ``"gaussian"``, which has exact derivatives. For a model with two
        coordinates `xdata` has shape (2, m); a ``"polynomial"`` has as many coefficients as `p0`.
    xdata : array_like or object
        The points, passed to `f`: lists, tuples and NumPy arrays as float64, anything else, such as a DataFrame of
        pandas, unchanged.
    ydata : array_like, shape (m,)
        The data. If they are complex, the real and imaginary parts of the differences are fitted. Points that are
        masked in `ydata`, `xdata` or `sigma`, if these are masked arrays, are left out. A single number is compared
        with all values of the model.
    p0 : array_like, shape (n,), or dict, optional
        The start, or ``{name: value}`` for some parameters. By default 1 for each parameter in the signature of `f`, or
        the middle of its bounds.
    sigma : float or array_like, shape (m,) or (m, m), optional
        Standard deviations of the data, or their covariance.
    absolute_sigma : bool
        Whether `sigma` is in the units of the data; then `pcov` is not scaled. Otherwise only the ratios of `sigma`
        matter.
    check_finite : bool, optional
        Whether NaN and infinity in the data raise ValueError. Default True, unless `nan_policy` is given.
    bounds : (lower, upper), optional
        Numbers or shape (n,) each, or an object with ``lb`` and ``ub``.
    method : {"lm", "trf", "dogbox"}, optional
        Accepted for compatibility with SciPy; the method is always :func:`levenberg_marquardt`.
    jac : callable or {"2-point", "3-point", "cs"}, optional
        ``jac(xdata, p0, p1, ...)`` returns the derivatives of `f` by its parameters, shape (m, n): an array, a matrix
        of :mod:`scipy.sparse`, or an operator with ``matvec`` and ``rmatvec``.
    full_output : bool
        Whether the result unpacks as five values: also ``infodict``, ``mesg`` and ``ier``, as those of SciPy's
        ``leastsq``. `fjac` and `ipvt` are of a factorisation without pivoting.
    nan_policy : {"raise", "omit"}, optional
        What to do with NaN in the data: raise ValueError, or leave those points out.
    fixed : dict or array_like of bool, optional
        Parameters to keep fixed: ``{name or index: value}``, or shape (n,), True for those that keep their value in
        `p0`.
    ties : dict, optional
        Parameters that are computed from others: ``{name or index: function}``. A function whose arguments have names
        of parameters gets these, such as ``{"width_2": lambda width_1: 2 * width_1}``; any other gets all parameters,
        shape (n,). A tie may use ties before it.
    mask : array_like of bool, shape (m,), optional
        True for points that are left out, as in :mod:`numpy.ma`.
    **options
        Additional arguments of :func:`levenberg_marquardt`, such as `loss`, `f_scale`, `ftol`, `xtol`, `gtol` and
        `max_nfev`. SciPy's names ``maxfev``, ``diff_step``, ``epsfcn``, ``diag``, ``col_deriv`` and ``verbose`` work
        too.

    Returns
    -------
    CurveFit
        Unpacks as ``popt, pcov``. It is printed as a table, and has ``summary()``, ``confidence_intervals(level)``,
        ``predict(x, level)``, ``plot()``, `correlation`, `x_std` and `fit`. `pcov` is infinite, with a RuntimeWarning,
        if it cannot be estimated.

    Raises
    ------
    RuntimeError
        If the fit does not converge.
    TypeError, ValueError
        If an argument or a returned value has a wrong type, shape or range.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> def decay(t, amplitude, rate):
    ...     return amplitude * np.exp(-rate * t)
    >>> t = np.linspace(0, 2, 21)
    >>> y = decay(t, 5, 1.5) + 0.1 * np.cos(40 * t)
    >>> fit = adaptk.solve.curve_fit(decay, t, y, p0=[1, 1])
    >>> popt, pcov = fit
    >>> fit.names, popt.round(1)
    (('amplitude', 'rate'), array([5. , 1.5]))
    >>> adaptk.solve.curve_fit("exponential", t, y, p0=[1, 1, 0]).names
    ('amplitude', 'rate', 'offset')
    """
    if isinstance(f, str):
        if jac is not None:
            raise ValueError(f"jac: the model {f!r} has its own derivatives")
        f, jac = _named(f, p0)
    if not callable(f):
        raise TypeError(f"f: expected a callable, or the name of a model, got {type(f).__name__}")
    if nan_policy not in _rows.POLICIES:
        raise ValueError(f"nan_policy: expected None, 'raise' or 'omit', got {nan_policy!r}")
    if method not in (None, "lm", "trf", "dogbox"):
        raise ValueError(f"method: expected 'lm', 'trf' or 'dogbox', got {method!r}")
    for name, instead in _NOT_FOR_CURVES.items():
        if name in options:
            raise ValueError(f"{name}: {instead}")
    _translate(options)
    by_columns = bool(options.pop("col_deriv", False))
    y = _data(ydata, "ydata")
    if y.size == 0:
        raise ValueError("ydata: is empty")
    x = _data(xdata, "xdata") if isinstance(xdata, (list, tuple, np.ndarray)) else xdata
    start, names = _start(f, p0, bounds)
    free = start.size
    if fixed is not None or ties is not None:
        if isinstance(ties, Mapping):
            ties = {key: by_name(tie, names) for key, tie in ties.items()}
        reduced = Parameters(start, fixed, ties, names)
        start, free = reduced.x0, reduced.free.size
        options["fixed"], options["ties"] = reduced.fixed, dict(reduced.ties)
    lower, _ = arguments.bounds(bounds, start, "p0")
    if y.size == 1 and not np.ma.getmaskarray(y).any():  # the model then says how many points there are, as in SciPy
        y = np.broadcast_to(y.reshape(()), np.shape(f(_plain(x), *start)) or (1,))
    shape = y.shape
    errors = None
    if sigma is not None:
        errors = np.ma.asarray(_data(sigma, "sigma"))
        if errors.dtype.kind == "c":
            raise TypeError("sigma: expected real numbers, got complex ones")
        if errors.size == 1:
            errors = np.ma.asarray(np.full(y.size, errors.reshape(())))
        elif errors.shape == shape:
            errors = errors.ravel()
        elif errors.shape not in ((y.size,), (y.size, y.size)):
            raise ValueError(f"sigma: expected a number, or shape {(y.size,)} or {(y.size,) * 2}, got {errors.shape}")
    out = _left_out(x, y, errors, mask, nan_policy == "omit")
    y, x = np.ma.getdata(y).ravel(), _plain(x)
    kept_sigma: Array | None = None if errors is None else np.ma.getdata(errors)
    if out.any():
        keep = ~out
        y, shape = y[keep], (int(keep.sum()),)
        x = x.iloc[keep] if _is_table(x) else x[..., keep]
        if kept_sigma is not None:
            kept_sigma = kept_sigma[np.ix_(keep, keep)] if kept_sigma.ndim == 2 else kept_sigma[keep]
        if y.size == 0:
            raise ValueError("ydata: no point is left")
    finite = nan_policy != "omit" if check_finite is None else bool(check_finite)
    for value, name in ((y, "ydata"), (x, "xdata")):
        _check_values(value, name, finite, nan_policy == "raise")
    white = _Whitened(kept_sigma)
    is_complex = y.dtype.kind == "c"
    points = 2 * y.size if is_complex else y.size
    # As in SciPy, whose other methods fit more parameters than points too.
    if free > points and lower is None and method in (None, "lm"):
        raise TypeError(f"ydata: {y.size} points cannot determine {free} parameters")
    if is_complex and jac == "cs":
        raise ValueError("jac: 'cs' takes the imaginary part for the derivative, so the model must be real")

    def residuals(p: Array) -> Array:
        value = _values_of_model(f(x, *p), shape)
        if value.dtype.kind == "c" and not is_complex and jac != "cs":
            raise TypeError("f returns complex numbers, and ydata are real")
        value = white(value - y)
        return _rows.stacked(value) if is_complex else value

    slopes: Any = jac
    if callable(jac):
        every = np.ones(y.size, dtype=bool)

        def slopes(p: Array) -> Any:
            value = jac(x, *p)
            if by_columns:
                value = np.asarray(value).T
            value = white(value if is_sparse(value) or is_product(value) else np.asarray(value))
            if not is_complex:
                return value
            return _rows.stacked(value) if isinstance(value, np.ndarray) else _rows.of_rows(value, every, True)

    fit = levenberg_marquardt(residuals, start, jac=slopes, bounds=bounds, absolute_sigma=absolute_sigma, **options)
    if not fit.success:
        where = f" At the start, {_as_call(names, start)}: check f there." if fit.status == -3 and fit.nit == 0 else ""
        raise RuntimeError(f"Optimal parameters not found: {fit.message}{where}")
    if "cov" not in fit:
        fit["cov"], fit["x_std"] = np.full((start.size,) * 2, np.inf), np.full(start.size, np.inf)
    if not np.isfinite(fit.cov).all():
        # The words of SciPy's warning, so that filters for it work.
        warnings.warn("Covariance of the parameters could not be estimated", RuntimeWarning, stacklevel=2)
    values: tuple[Any, ...] = (fit.x, fit.cov)
    if full_output:
        values = (*values, _minpack(fit), fit.message, {1: 4, 2: 1, 3: 2, 4: 3}.get(fit.status, 1))
    result = CurveFit(values)
    result.fit, result.names = fit, names
    result._model, result._xdata, result._ydata = f, x, y
    result._sigma, result._absolute = kept_sigma, bool(absolute_sigma)
    return result
