"""The results of the solvers, and what their status means."""

from __future__ import annotations

import math
from numbers import Real
from statistics import NormalDist
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Batch", "Fit", "Result", "finish"]

Array: TypeAlias = npt.NDArray[Any]


class Result(dict[str, Any]):
    """What a solver returns: a dict whose items are attributes too, like ``scipy.optimize.OptimizeResult``.

    Attributes
    ----------
    x : ndarray, shape (n,)
        The best point that was seen.
    success : bool
        Whether the solver converged: ``status > 0``.
    status : int
        How the run ended; the docstring of each solver lists the values.
    message : str
        The status in words.
    fun : float or ndarray, shape (m,)
        The value at `x`; for least squares the residuals.
    jac : ndarray
        The gradient at `x`, shape (n,); for least squares the Jacobian, shape (m, n).
    nit, nfev, njev, nhev : int
        Iterations, and calls of the function, of its gradient or Jacobian, and of its Hessian (or products with it).
        Calls for differences are included.
    history : dict of ndarray
        With ``history=True``: ``"fun"``, ``"step"`` and ``"gradient"``, one value for each iteration and one for the
        start.

    Examples
    --------
    >>> import adaptk
    >>> r = adaptk.solve.newton(lambda x: (x[0] - 1) ** 2, [3.0], jac=lambda x: 2 * (x - 1), hess=lambda x: [[2.0]])
    >>> r.success, float(r.x[0]), r["nit"]
    (True, 1.0, 1)
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __repr__(self) -> str:
        if not self:
            return f"{type(self).__name__}()"
        width = max(map(len, self))
        lines = []
        for name in sorted(self, key=_order):
            text = _brief(self[name]).replace("\n", "\n" + " " * (width + 3))
            lines.append(f"{name.rjust(width)}: {text}")
        return "\n".join(lines)


def _brief(value: Any) -> str:
    """A value without most elements of a large array."""
    if isinstance(value, dict):
        return ", ".join(f"{k} ({np.size(v)})" for k, v in value.items())
    if not isinstance(value, np.ndarray):
        return str(value)
    if value.ndim > 1 and value.size > 36:
        return f"array of shape {value.shape}"
    return np.array2string(value, threshold=10, edgeitems=3, precision=8)


class Fit(Result):
    """What a least-squares solver returns: a :class:`Result` that is printed as a table of its parameters.

    Attributes
    ----------
    x, x_std : ndarray, shape (n,)
        The parameters and their standard deviations.
    cov : ndarray, shape (n, n)
        Their covariance.
    cost : float
        Half the sum of the (robust) squares of the residuals.
    dof : float
        Degrees of freedom of the estimate of the residuals' variance, ``m - n``; infinite with ``absolute_sigma=True``,
        since the variance is then known.
    loss, f_scale : str, float
        Only with a robust loss: its name, and its scale C.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> t = np.arange(6.0)
    >>> y = 2 * t + 1 + np.array([0.1, -0.1, 0.0, 0.1, -0.1, 0.0])
    >>> fit = adaptk.solve.levenberg_marquardt(lambda p: p[0] * t + p[1] - y, [1.0, 0.0])
    >>> fit.confidence_intervals(0.95).round(2)
    array([[1.92, 2.05],
           [0.83, 1.22]])
    """

    def confidence_intervals(self, level: float = 0.95) -> Array:
        """Intervals that contain each parameter with this probability, by Student's t distribution.

        They are those of the linearised model: the parameters' values plus and minus their standard deviations times
        the quantile of the t distribution with `dof` degrees of freedom. They ignore bounds.

        Parameters
        ----------
        level : float
            In (0, 1).

        Returns
        -------
        ndarray, shape (n, 2)
            Lower and upper ends, float64.

        Raises
        ------
        TypeError, ValueError
            If `level` is not a number in (0, 1), or the fit has no standard deviations.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> fit = adaptk.solve.levenberg_marquardt(lambda p: p[0] - np.array([1.0, 2.0, 3.0]), [0.0])
        >>> fit.confidence_intervals(0.9).round(2)
        array([[0.31, 3.69]])
        """
        level = level_of(level)
        if "x_std" not in self:
            raise ValueError(
                "the fit has no standard deviations: there are more than 2048 parameters, or more than 256 and jac "
                "returned an operator; conf_interval does without them"
            )
        x = np.asarray(self["x"], dtype=np.float64)
        half = np.asarray(self["x_std"], dtype=np.float64)
        if self["dof"] <= 0:  # the residuals' variance cannot be estimated, and x_std is infinite
            return np.stack([x - half, x + half], axis=1)
        half = half * student_t(level, self["dof"])
        return np.stack([x - half, x + half], axis=1)

    def conf_interval(self, level: float = 0.95, parameters: Any = None) -> Array:
        """Intervals by profile likelihood: ends where a fit of the others is as much worse as the level allows.

        A parameter's interval ends where the sum of squares, at the best values of the other parameters, exceeds that
        of the fit by the residuals' variance times the square of the quantile of Student's t distribution. So it does
        not assume a linear model: it may be longer on one side, and does not depend on which function of the parameter
        the model is written in. It costs about ten fits for each parameter; :meth:`confidence_intervals` needs no more
        fits.

        Parameters
        ----------
        level : float
            In (0, 1).
        parameters : int or sequence of int, optional
            The parameters, by index; all by default.

        Returns
        -------
        ndarray, shape (number of parameters, 2)
            Lower and upper ends, float64. An end is a bound if the bound comes first, and infinite if no value is bad
            enough. Both ends are the value itself for a fixed parameter, and NaN for a tied one.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong, or the fit has not converged, has a robust loss without ``absolute_sigma=True``,
            has no degrees of freedom, or is a copy, which does not have its functions.
        RuntimeError
            If a cost lower than that of the fit is found.

        References
        ----------
        D. M. Bates and D. G. Watts, Nonlinear regression analysis and its applications, 1988, chapter 6.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> t = np.arange(1.0, 8.0)
        >>> y = np.array([5.5, 3.9, 3.4, 2.5, 1.6, 1.4, 1.2])
        >>> fit = adaptk.solve.levenberg_marquardt(lambda p: p[0] * np.exp(-p[1] * t) - y, [5.0, 0.2])
        >>> fit.conf_interval(0.95).round(2)
        array([[6.33, 7.94],
               [0.23, 0.31]])
        """
        from adaptk.solve._profile import conf_interval

        return conf_interval(self, level, parameters)

    def profile(self, parameter: int, level: float = 0.99, points: int = 21) -> Result:
        """The profile of a parameter, over its interval of :meth:`conf_interval`.

        Parameters
        ----------
        parameter : int
            The index of the parameter.
        level : float
            The level of the interval, in (0, 1).
        points : int
            The number of values.

        Returns
        -------
        Result
            `value`, shape (points,); `tau`, the signed root of the increase of the sum of squares above that of the
            fit, divided by the residuals' standard deviation, which is a straight line for a linear model; `cost`; and
            `x`, shape (points, n), the best values of all parameters.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As :meth:`conf_interval`.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> t = np.arange(1.0, 8.0)
        >>> y = np.array([5.5, 3.9, 3.4, 2.5, 1.6, 1.4, 1.2])
        >>> fit = adaptk.solve.levenberg_marquardt(lambda p: p[0] * np.exp(-p[1] * t) - y, [5.0, 0.2])
        >>> fit.profile(1, level=0.95, points=5).tau.round(2)
        array([-2.57, -1.26,  0.  ,  1.31,  2.57])
        """
        from adaptk.solve._profile import profile

        return profile(self, parameter, level, points)

    def __getstate__(self) -> None:
        """Only the items of the dict, without the functions of the fit."""

    def _cost_in_words(self) -> str:
        loss = f" by loss {self.loss!r} with f_scale {self.f_scale:.6g}" if "loss" in self else ""
        return f"cost {self.cost:.8g}{loss}"

    def _notes(self) -> list[str]:
        """The notes on each parameter at the end of its line in the table."""
        notes = [""] * len(self.x)
        for i, side in enumerate(self.get("active_mask", ())):
            if side:
                notes[i] = "  at its lower bound" if side < 0 else "  at its upper bound"
        for name in ("fixed", "tied"):
            for k in np.flatnonzero(self.get(name, ())):
                notes[k] = f"  {name}"
        return notes

    def __repr__(self) -> str:
        if "x_std" not in self or "dof" not in self:
            return super().__repr__()
        ends = self.confidence_intervals(0.95)
        rows = [("parameter", "value", "std", "95% interval")]
        for i, (v, s, (low, high)) in enumerate(zip(self.x, self.x_std, ends, strict=True)):
            rows.append((f"x[{i}]", f"{v:.8g}", f"{s:.3g}", f"[{low:.6g}, {high:.6g}]"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        for i, note in enumerate(self._notes()):
            lines[i + 1] += note
        known = "known variance" if np.isinf(self.dof) else f"{self.dof:g} degrees of freedom"
        lines += [
            f"{self._cost_in_words()}, {len(self.fun)} residuals, {known}",
            f"status {self.status}: {self.message} ({self.nit} iterations, {self.nfev} evaluations)",
        ]
        if "local_results" in self:
            costs = [float(r.cost) for r in self.local_results if r.success]
            same = sum(c <= self.cost * (1 + 1e-6) + np.finfo(float).tiny for c in costs)
            lines.append(f"the best of {len(self.local_results)} starts, of which {same} reached this cost")
        return "\n".join(lines)


def level_of(level: Any) -> float:
    """A probability in (0, 1)."""
    if isinstance(level, bool) or not isinstance(level, Real):
        raise TypeError(f"level: expected a number in (0, 1), got {type(level).__name__}")
    if not 0.0 < float(level) < 1.0:
        raise ValueError(f"level: expected a number in (0, 1), such as 0.95, got {level!r}")
    return float(level)


class Batch(Result):
    """What a solver of many problems returns: a :class:`Result` with a row for each of them."""

    def __repr__(self) -> str:
        if "x" not in self:
            return super().__repr__()
        others = [f"{name} {np.shape(v)}" for name, v in self.items() if isinstance(v, np.ndarray)]
        failed = np.flatnonzero(~self.success)
        lines = [self.message]
        if len(failed):
            shown = ", ".join(f"{i} (status {self.status[i]})" for i in failed[:10])
            lines.append(f"not converged: {shown}{', ...' if len(failed) > 10 else ''}")
        return "\n".join([*lines, f"arrays: {', '.join(others)}"])


def _central_probability(angle: float, dof: int) -> float:
    """P(|T| <= t) of Student's t, with ``angle = atan(t / sqrt(dof))``: Abramowitz and Stegun 26.7.3 and 26.7.4.

    The terms are positive, so there is no cancellation.
    """
    sine, square = math.sin(angle), math.cos(angle) ** 2
    term = total = math.cos(angle) if dof % 2 else 1.0
    for k in range(3 if dof % 2 else 2, dof, 2):
        term *= square * ((k - 1) / k)
        total += term
    if dof % 2 == 0:
        return sine * total
    return 2.0 / math.pi * (angle + (sine * total if dof > 1 else 0.0))


def student_t(level: float, dof: float) -> float:
    """The t for which ``P(|T| <= t) = level``."""
    z = -NormalDist().inv_cdf((1.0 - level) / 2.0)
    if math.isinf(dof):
        return z
    if dof > 400:
        # The expansion of Abramowitz and Stegun 26.7.5.
        x = z * z
        g1 = (x + 1.0) / 4.0
        g2 = ((5.0 * x + 16.0) * x + 3.0) / 96.0
        g3 = (((3.0 * x + 19.0) * x + 17.0) * x - 15.0) / 384.0
        g4 = ((((79.0 * x + 776.0) * x + 1482.0) * x - 1920.0) * x - 945.0) / 92160.0
        return z * (1.0 + (g1 + (g2 + (g3 + g4 / dof) / dof) / dof) / dof)
    low, high = 0.0, math.pi / 2.0
    while low < (middle := (low + high) / 2.0) < high:
        if _central_probability(middle, int(dof)) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(dof) * math.tan(high)


_FIRST = ("message", "success", "status", "cost", "fun", "x")


def _order(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


_COMMON = {
    0: "The limit of iterations or evaluations is reached.",
    1: "The gradient is small: |g| <= gtol times the largest gradient of the run, and so is what is left of the way.",
    5: "No step changes the function by more than its rounding.",
    -1: "The callback stopped it.",
    -2: "Time limit reached (max_seconds).",
    -3: "The function or a derivative is not finite where it must be.",
    -6: "The function has no minimum: it fell to minus infinity, or still falls where squares of x overflow.",
}
MESSAGES: dict[str, dict[int, str]] = {
    "newton": _COMMON
    | {
        1: "A minimum: the gradient is small, and the Hessian has no negative eigenvalue.",
        3: "The last full step is small: |p| <= xtol |x|, and the Hessian is positive definite.",
        -4: "The Hessian is not positive definite, which the plain method cannot use.",
        -5: "A saddle or a maximum: the gradient is small, but the function falls along an eigenvector.",
    },
    "least_squares": _COMMON
    | {
        1: "Converged: the residuals are orthogonal to the columns of the Jacobian, cosine <= gtol.",
        2: "Converged: the last reduction of the cost is small, actual and predicted <= ftol.",
        3: "Converged: the last step is small, |D p| <= xtol |D x|.",
        4: "Converged: the last step and the last reduction of the cost are small.",
        -4: "Every residual has weight 0: raise f_scale or start closer.",
    },
    "gradient": _COMMON,
    "cg": _COMMON
    | {
        1: "The residual is small: |b - A x| <= max(rtol |b|, atol).",
        5: "Rounding keeps the residual from falling any further.",
        -7: "A is not positive definite, or is singular within rounding: a direction p has p'Ap <= n eps |A| |p|**2.",
    },
}


def _disagreement(kind: str, variable: int, claimed: float, found: float, given: bool) -> str:
    """A message: which derivative does not belong to its function, and what to do."""
    what = "cost" if kind == "least_squares" else "function"
    where = f"x[{variable}]" if variable >= 0 else "the last step" if what == "cost" else "the gradient"
    if given:
        return (
            f"The derivative does not agree with the function along {where}: the slope of the {what} is {claimed:.6g} "
            f"by jac, and {found:.6g} by differences. Check jac: check_derivatives=True shows its worst element."
        )
    return (
        f"The differences that are taken as derivatives do not agree with the function along {where}: the slope of the "
        f"{what} is {claimed:.6g} by them, and {found:.6g} by longer steps. Give jac or a larger rel_step."
    )


class Progress(Protocol):
    def close(self, status: str) -> None: ...


def finish(raw: dict[str, Any], kind: str, progress: Progress | None) -> Result:
    """The solver's result, with its status in words, which also ends the line of progress."""
    status: int = raw["status"]
    disagreement = raw.pop("disagreement", None)
    result = raw if isinstance(raw, Result) else Fit(raw) if kind == "least_squares" else Result(raw)
    result["success"] = status > 0
    result["message"] = MESSAGES[kind][status] if disagreement is None else _disagreement(kind, *disagreement)
    if progress is not None:
        progress.close(result.message)
    return result
