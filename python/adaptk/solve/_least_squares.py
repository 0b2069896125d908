"""Nonlinear least squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from adaptk import _solve
from adaptk._names import known_names_only
from adaptk.solve import _arguments as arguments
from adaptk.solve import _check, _covariance, _losses, _matrix_free, _parameters, _rows, _sparsity, _starts
from adaptk.solve._operators import is_product, is_sparse
from adaptk.solve._result import MESSAGES, Fit, finish

LOSSES = {"linear": 0, "huber": 1, "soft_l1": 2, "cauchy": 3, "arctan": 4, "tukey": 5}
_ACCELERATE = {None: -1, "auto": -1, False: 0, True: 1}


def levenberg_marquardt(
    fun: Any,
    x0: Any,
    args: Any = (),
    *,
    jac: Any = None,
    bounds: Any = None,
    loss: str | Callable[..., Any] = "linear",
    f_scale: float | str = 1.0,
    ftol: float | None = None,
    xtol: float | None = None,
    gtol: float | None = None,
    max_nfev: int | None = None,
    factor: float | None = None,
    x_scale: Any = "jac",
    geodesic: bool | str = "auto",
    polish: bool = True,
    absolute_sigma: bool = False,
    covariance: str | None = None,
    fixed: Any = None,
    ties: Any = None,
    mask: Any = None,
    nan_policy: str | None = None,
    complex_residuals: bool = False,
    starts: Any = None,
    seed: int = 0,
    jac_sparsity: Any = None,
    linear_solver: str | None = None,
    vectorized: bool = False,
    rel_step: Any = None,
    typical: Any = None,
    m: int | None = None,
    check_derivatives: bool = False,
    callback: Callable[..., Any] | None = None,
    disp: bool = False,
    history: bool = False,
    max_seconds: float | None = None,
) -> Fit:
    """Minimise half the sum of squares of residuals.

    The Levenberg-Marquardt method in Moré's form: columns scaled by their norms, one QR factorisation with column
    pivoting per Jacobian, damping chosen by a trust region, geodesic acceleration if it pays off, and Gauss-Newton
    steps at the end as long as they shrink.

    Parameters
    ----------
    fun : callable or compiled function
        ``fun(x, *args)`` returns the residuals, shape (m,). `x` is a new array at each call. Compiled:
        ``void (int m, int n, const double *x, double *r, void *user)``, with `m` given.
    x0 : array_like, shape (n,)
        The start; float32, or anything real that converts to float64.
    args : tuple
        Additional arguments of `fun` and `jac`.
    jac : callable, compiled function or {"2-point", "3-point", "cs"}, optional
        The Jacobian, shape (m, n), or how to compute it by differences: one-sided (the default; polishing ends with
        central ones), central, or by complex steps, for which `fun` must take and return complex numbers. Compiled:
        ``void (int m, int n, const double *x, double *j, void *user)``, row-major.
    bounds : (lower, upper), optional
        Numbers or shape (n,) each, or an object with ``lb`` and ``ub``.
    loss : {"linear", "huber", "soft_l1", "cauchy", "arctan", "tukey"} or callable
        rho in ``cost = 0.5 * sum(C**2 * rho((r / C)**2))``. ``loss(z)`` returns rho >= 0 and its first two derivatives
        for ``z >= 0``, shape (3, m).
    f_scale : float or "mad"
        C: residuals well below it count as squares. ``"mad"`` sets C to the multiple of the standard deviation that
        gives 95% of the efficiency of squares for normal errors (for a function, to one standard deviation). The
        standard deviation is estimated as ``median(|r|) / 0.6745`` from the residuals of the fit itself; the result has
        C as `f_scale`.
    ftol, xtol, gtol : float, optional
        Tolerances: see `status`. Defaults: 1e-10, 1e-10 and 1e-12; for float32 1e-5, 1e-5 and 1e-6.
    max_nfev : int, optional
        The most evaluations, not counting those for differences. Default ``200 * (n + 1)``.
    factor : float, optional
        The first step has at most ``|D p| <= factor |D x0|``. Default 1.
    x_scale : "jac" or array_like
        The size of each variable; ``"jac"`` derives it from the largest norm so far of its column of the Jacobian.
    geodesic : bool or "auto"
        Second-order correction of each step (one more evaluation or two); ``"auto"`` tries it after some iterations
        and continues if residuals then fall clearly further.
    polish : bool
        Whether to finish with Gauss-Newton steps.
    absolute_sigma : bool
        Whether the residuals are in units of their standard deviation; then `cov` is not scaled by their size.
    covariance : {None, "sandwich"}
        How `cov` is estimated. By default as ``s**2 (J'J)**-1``, for residuals of equal variances, and with a robust
        loss as the sandwich estimate. ``"sandwich"``: White's estimate with ``loss="linear"`` too, for residuals with
        different variances.
    fixed : dict or array_like of bool, optional
        Parameters to keep fixed: ``{index: value}``, or shape (n,), True for those that keep their value in `x0`.
    ties : dict, optional
        Parameters that are computed from others: ``{index: function}``, called with all parameters, shape (n,), in the
        order of the dict. A tie may use ties before it.
    mask : array_like of bool, shape (m,), optional
        True for residuals to leave out, as in :mod:`numpy.ma`.
    nan_policy : {None, "raise", "omit"}
        If residuals are NaN at `x0`: None ends the run with status -3; ``"raise"`` raises ValueError; ``"omit"`` leaves
        them out, and masked elements of a masked array too.
    complex_residuals : bool
        Whether `fun` may return complex numbers. The residuals are then their real parts, followed by their imaginary
        parts.
    starts : int or array_like, shape (s, n), optional
        More starts besides `x0`; the best fit is returned. A number draws this many starts from a Latin hypercube, the
        same ones for the same `seed`. They are spread evenly between two bounds, otherwise over all magnitudes up to
        ten times the larger of ``|x0|`` and 1, from the bound if there is one and else to both sides of 0.
    seed : int
        The seed of `starts`, in [0, 2**64).
    jac_sparsity : array_like or scipy.sparse matrix, shape (m, n), optional
        Where the Jacobian may be nonzero. Columns without a common row are then differenced together, by central
        differences unless `jac` is ``"2-point"``.
    linear_solver : {None, "qr", "cg"}
        How steps are computed: None means ``"cg"`` if `jac` returns a matrix of :mod:`scipy.sparse` or an operator with
        ``matvec`` and ``rmatvec``, and else ``"qr"``. ``"cg"``: by conjugate gradients, for many parameters. `jac` then
        returns an array, a sparse matrix or an operator, and is never factored. So steps are not polished, and `cov`
        and `x_std` are computed from ``J'J``, with half of the digits. The result does not have them if there are more
        than 2048 parameters, or more than 256 and `jac` returns an operator, of which each column is a product.
    vectorized : bool
        Whether `fun` takes a stack of points, shape (k, n), and returns (k, m); differences are then one call.
    rel_step, typical : float or array_like, optional
        Differences step by ``rel_step * max(|x|, typical)``. `rel_step` is by default eps**(1/2) or eps**(1/3), with
        the eps of the dtype that `fun` returns (which may be float32 for a float64 `x`), and `typical` is ``|x0|`` (1
        where that is 0). By default a step is shortened if `fun` curves too much over it, and lengthened if `fun` does
        not change.
    m : int, optional
        The number of residuals, for a compiled `fun`.
    check_derivatives : bool
        Whether to compare `jac` with central differences at `x0` first, and raise ValueError with the worst element if
        one is wrong.
    callback : callable, optional
        ``callback(x)`` or ``callback(intermediate_result=...)`` after each iteration; StopIteration or a returned
        ``True`` ends the run.
    disp, history : bool
        Show progress on one line of standard error; record each iteration in ``result.history``.
    max_seconds : float, optional
        Time limit: the run ends with the iteration that reaches it.

    Returns
    -------
    Fit
        `x`, `cost`, `fun` (residuals), `jac`, `grad`, `optimality` (the largest element of the gradient that no bound
        holds), `cov` (n, n), `x_std` (n,), `active_mask`, `nit`, `nfev`, `njev`, `success`, `message` and `status`:

        == =======================================================================
        1  ``|J_j.r| <= gtol |J_j| |r|`` for all columns j that no bound holds
        2  actual and predicted relative reductions of ``|r|^2`` ``<= ftol``
        3  ``|D p| <= xtol |D x|``
        4  2 and 3
        5  no step changes x
        0  `max_nfev` evaluations
        -1 the callback stopped it
        -2 time limit reached
        -3 residuals at the start, or a Jacobian, are not finite
        -4 the loss is "tukey", and every residual is beyond `f_scale`, where it has weight 0
        -9 steps shrink to nothing although `jac` predicts a reduction, and differences of the cost contradict it
        == =======================================================================

        With a robust loss `loss` is its name, and `f_scale` is C. `dof` is the number of degrees of freedom, and the
        method ``confidence_intervals(level)`` gives intervals of the parameters. `cov` and `x_std` are infinite if the
        Jacobian does not have full rank, or (without `absolute_sigma`) there are no degrees of freedom. With a robust
        loss they are the sandwich estimate, which is valid for any distribution of the residuals. With status -3 they
        and `grad` are NaN, and `jac` is None. They are 0 for fixed parameters; for tied ones they are computed from
        those of the others, to first order. `jac` and `grad` are derivatives by the free parameters, ties included, and
        0 for the others; `fixed` and `tied` mark the others. With `mask` or `nan_policy`, `fun` and `jac` have only the
        residuals that are not left out; `mask`, shape (m,), of the result is True for those left out. With `starts` the
        result is the fit with the lowest cost, among those that have converged if there are any. `local_results` is
        then the list of all fits, in the order of the result's `starts`, shape (s + 1, n), which begins with `x0`.

    Raises
    ------
    TypeError, ValueError
        If an argument or a returned value has a wrong type, shape or range. Exceptions of `fun`, `jac` and `callback`
        propagate.

    References
    ----------
    J. J. More, The Levenberg-Marquardt algorithm: implementation and theory, 1978. M. K. Transtrum and J. P. Sethna,
    Improvements to the Levenberg-Marquardt algorithm, arXiv:1201.5885.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> t = np.linspace(0, 1, 20)
    >>> y = 2 * np.exp(-3 * t)
    >>> r = adaptk.solve.levenberg_marquardt(lambda p: p[0] * np.exp(-p[1] * t) - y, [1.0, 1.0])
    >>> r.success, r.x.round(6)
    (True, array([2., 3.]))
    """
    if covariance is not None and covariance != "sandwich":
        raise ValueError(f"covariance: expected None or 'sandwich', got {covariance!r}")
    if not (
        (starts is None and fixed is None and ties is None)
        and (mask is None and nan_policy is None and complex_residuals is False)
        and not (callable(loss) or isinstance(f_scale, str))
        and (jac_sparsity is None and (linear_solver is None or linear_solver == "qr"))
    ):
        return _in_layers(dict(locals()))
    x = arguments.start(x0)
    size = x.dtype.itemsize
    f = arguments.function(fun, "fun", size, "residuals")
    is_compiled = isinstance(f, tuple)
    differences = 0
    if jac is None:
        differences = 1
    elif isinstance(jac, str):
        differences = arguments.method(jac, "jac")
    j = None if differences else arguments.function(jac, "jac", size, "jacobian")
    if is_compiled:
        if m is None:
            raise TypeError("m: a compiled fun needs the number of residuals")
        if differences == 3:
            raise TypeError("jac: 'cs' calls fun with complex numbers, which a compiled function does not take")
        residuals = arguments.whole(m, "m", low=1)
    else:
        residuals = 0
    if vectorized and (is_compiled or differences not in (1, 2)):
        raise ValueError("vectorized: is for 2-point and 3-point differences of a Python function")
    lower, upper = arguments.bounds(bounds, x)
    scale = None
    if not (isinstance(x_scale, str) and x_scale == "jac"):
        scale = arguments.per_variable(x_scale, "x_scale", x)
    options = (
        arguments.tolerance(ftol, "ftol"),
        arguments.tolerance(xtol, "xtol"),
        arguments.tolerance(gtol, "gtol"),
        200 * (x.size + 1) if max_nfev is None else arguments.whole(max_nfev, "max_nfev", low=1),
        None if factor is None else arguments.real(factor, "factor", open_low=True),
        arguments.choice(loss, "loss", LOSSES),
        arguments.real(f_scale, "f_scale", open_low=True),
        arguments.choice(geodesic, "geodesic", _ACCELERATE),
        bool(polish),
        scale,
        bool(absolute_sigma),
    )
    if check_derivatives:
        _check.verify(f, x, arguments.tuple_of(args), j, False, residuals=residuals, bounds=(lower, upper))
    derivatives = arguments.derivatives(differences, 0, bool(vectorized), False, rel_step, typical, x)
    common, progress = arguments.common("levenberg_marquardt", callback, disp, history, max_seconds)
    raw = _solve.levenberg_marquardt(
        f, x, arguments.tuple_of(args), j, derivatives, residuals, lower, upper, options, common
    )
    if loss == "tukey" and raw["status"] > 0 and (np.abs(raw["fun"]) >= options[6]).all():
        raw["status"] = -4
    result = finish(raw, "least_squares", progress)
    result["dof"] = float("inf") if absolute_sigma else float(result.fun.size - x.size)
    if covariance is not None and loss == "linear" and result.jac is not None:
        _covariance.sandwich(cast(Fit, result), bool(absolute_sigma))
    return cast(Fit, result)


def _in_layers(given: dict[str, Any]) -> Fit:
    """A fit of the problem as the outermost option changes it, which calls the solver with the other options."""
    fun, x0, args = given.pop("fun"), given.pop("x0"), given.pop("args")
    if given["linear_solver"] not in (None, "qr", "cg"):
        raise ValueError(f"linear_solver: expected None, 'qr' or 'cg', got {given['linear_solver']!r}")
    if given["starts"] is not None:
        return _starts.fit(levenberg_marquardt, fun, x0, args, given, arguments.bounds)
    if given["jac_sparsity"] is not None:
        return _sparsity.fit(levenberg_marquardt, fun, x0, args, given, arguments.bounds)
    if given["fixed"] is not None or given["ties"] is not None:
        return _parameters.fit(levenberg_marquardt, fun, x0, args, given, arguments.bounds)
    if given["mask"] is not None or given["nan_policy"] is not None or given["complex_residuals"] is not False:
        return _rows.fit(levenberg_marquardt, fun, x0, args, given)
    if isinstance(given["f_scale"], str):
        return _losses.fit_with_scale(levenberg_marquardt, fun, x0, args, given)
    if given["linear_solver"] == "cg":
        return _matrix_free.fit(fun, x0, args, given, arguments.bounds)
    return _losses.fit_with_function(levenberg_marquardt, fun, x0, args, given)


_REMEDIES = {
    "sigma": "divide the residuals by sigma, with absolute_sigma=True if it is known and not only its ratios",
    "method": "the solver is chosen by its function, such as levenberg_marquardt or newton",
    "p0": "the start is x0",
    "maxfev": "it is max_nfev",
    "diff_step": "it is rel_step",
    "verbose": "disp=True shows the progress",
    "tr_solver": "linear_solver='cg' is for large sparse Jacobians",
    "tr_options": "there are no options of a trust-region solver",
    "workers": "differences are one call with vectorized=True",
    "kwargs": "functools.partial gives fun keyword arguments",
}


def _remember(result: Fit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fit:
    """Store the call, for more fits of the same problem, as an attribute and not as an item of the dict.

    A robust loss is an item, by its name: what the fit's numbers mean depends on it, also in a copy.
    """
    loss = kwargs.get("loss", "linear")
    if not isinstance(loss, str) or loss != "linear":
        result["loss"] = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        if "f_scale" not in result:
            result["f_scale"] = float(kwargs.get("f_scale", 1.0))
    object.__setattr__(result, "_call", (args, kwargs))
    return result


def _by_products(error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments with ``linear_solver="cg"`` if `jac` returns a sparse matrix or an operator.

    Only an error is the reason to look at what `jac` returns, so that a call with an array costs no time.
    """
    if not (isinstance(error, TypeError) and str(error).startswith("jac must return real numbers")):
        return None
    x0 = args[1] if len(args) > 1 else kwargs["x0"]
    more = args[2] if len(args) > 2 else kwargs.get("args", ())
    found = kwargs["jac"](arguments.start(x0), *arguments.tuple_of(more))
    if not is_sparse(found) and not is_product(found):
        return None
    if kwargs.get("linear_solver") is not None:
        raise TypeError(
            f"linear_solver: jac returns {type(found).__name__}, for which it must be 'cg', or left out"
        ) from error
    return {**kwargs, "linear_solver": "cg"}


if not TYPE_CHECKING:
    _solve.set_result_type(Fit, MESSAGES["least_squares"], finish)
    levenberg_marquardt = known_names_only(levenberg_marquardt, _REMEDIES, _remember, _solve.plain_fit, _by_products)
