"""Methods that only use gradients: nonlinear conjugate gradients and steepest descent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptk import _solve
from adaptk.solve import _arguments as arguments
from adaptk.solve import _check
from adaptk.solve._result import Result, finish

BETAS = {"hz": 0, "pr+": 1, "fr": 2, "hs": 3, "dy": 4}
STEPS = {"wolfe": 0, "exact": 1, "bb": 2}


def _descend(
    name: str,
    fun: Any,
    x0: Any,
    args: Any,
    jac: Any,
    rule: int,
    gtol: Any,
    maxiter: Any,
    vectorized: Any,
    rel_step: Any,
    typical: Any,
    check_derivatives: bool,
    bounds: Any,
    constraints: Any,
    callback: Any,
    disp: bool,
    history: bool,
    max_seconds: Any,
) -> Result:
    arguments.unconstrained(constraints)
    x = arguments.start(x0)
    lower, upper = arguments.bounds(bounds, x, fixed=True)
    f, g, differences, pair = arguments.gradient_options(fun, jac, x, vectorized)
    if check_derivatives:
        _check.verify(f, x, arguments.tuple_of(args), g, pair, bounds=(lower, upper))
    most = max(10000, 200 * x.size) if maxiter is None else arguments.whole(maxiter, "maxiter")
    derivatives = arguments.derivatives(differences, 0, bool(vectorized), pair, rel_step, typical, x)
    common, progress = arguments.common(name, callback, disp, history, max_seconds)
    kind = 0 if name == "conjugate_gradient" else 1
    options = (arguments.tolerance(gtol, "gtol"), most)
    raw = _solve.descend(f, x, arguments.tuple_of(args), g, derivatives, kind, rule, lower, upper, options, common)
    return finish(raw, "gradient", progress)


def conjugate_gradient(
    fun: Any,
    x0: Any,
    args: Any = (),
    *,
    jac: Any = None,
    beta: str = "hz",
    gtol: float | None = None,
    tol: float | None = None,
    maxiter: int | None = None,
    vectorized: bool = False,
    rel_step: Any = None,
    typical: Any = None,
    check_derivatives: bool = False,
    hess: None = None,
    hessp: None = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    disp: bool = False,
    history: bool = False,
    max_seconds: float | None = None,
) -> Result:
    """Minimise a function by nonlinear conjugate gradients.

    Parameters
    ----------
    fun : callable or compiled function
        ``fun(x, *args)`` returns a number. `x` is a new array, shape (n,), at each call. Compiled:
        ``double (int n, const double *x, void *user)``.
    x0 : array_like, shape (n,)
        The start; float32, or anything real that converts to float64.
    args : tuple
        Additional arguments of the functions.
    jac : callable, compiled function, True or {"2-point", "3-point", "cs"}, optional
        The gradient, shape (n,). ``True``: `fun` returns the pair (value, gradient). Compiled:
        ``void (int n, const double *x, double *g, void *user)``. By default, one-sided differences.
    beta : {"hz", "pr+", "fr", "hs", "dy"}
        Hager and Zhang's CG_DESCENT with its approximate Wolfe search; or, with a strong Wolfe search, the formula of
        Polak, Ribiere and Polyak, kept >= 0, of Fletcher and Reeves, of Hestenes and Stiefel, or of Dai and Yuan.
    gtol : float, optional
        Tolerance: see `status`. Default 1e-10 (steepest descent: 1e-8), for float32 1e-6, and with differences not
        below their error. `tol` is another name for it.
    maxiter : int, optional
        ``max(10000, 200 n)``.
    vectorized : bool
        Whether `fun` takes a stack of points, shape (k, n), and returns (k,); differences are then one call.
    rel_step, typical : float or array_like, optional
        Differences step by ``rel_step * max(|x|, typical)``. `typical` is by default ``|x0|``, or 1 where that is 0.
        Without `rel_step`, steps become longer if rounding hides the change of `fun`, up to those for a `typical` of 1.
    check_derivatives : bool
        Whether to compare `jac` with central differences at `x0` first, and raise ValueError with the worst element if
        one is wrong.
    bounds : (lower, upper), optional
        Numbers or shape (n,) each, or an object with ``lb`` and ``ub``. Equal ones hold a variable. No function is
        called with a point outside.
    hess, hessp, constraints
        Passed by ``scipy.optimize.minimize``; not supported by this method.
    callback : callable, optional
        ``callback(x)`` or ``callback(intermediate_result=...)`` after each iteration; StopIteration or a returned
        ``True`` ends the run.
    disp, history : bool
        Show progress on one line of standard error; record each iteration in ``result.history``.
    max_seconds : float, optional
        Time limit: the run ends with the iteration that reaches it.

    Returns
    -------
    Result
        `x`, `fun`, `jac`, `nit`, `nfev`, `njev`, `success`, `message` and `status`, with G the largest ``|g|_inf`` of
        the run. With bounds also `active_mask` (-1 and 1 at a lower and an upper bound); g is then the gradient of the
        variables that no bound holds:

        == =======================================================================
        1  ``|g|_inf <= gtol G``, and the remaining distance is at most a thousandth of the path so far, as estimated
           from the last two steps and from the curvature in up to ten directions, which is nowhere negative
        5  no step along -g lowers f by more than its rounding
        0  `maxiter` iterations
        -1 the callback stopped it
        -2 time limit reached
        -3 the value or the gradient is not finite at the start, or however short the step
        -6 no minimum: f is -inf, or still falls where squares of x overflow
        -9 as 5, but the gradient is not small and differences of `fun` contradict it
        == =======================================================================

    Raises
    ------
    TypeError, ValueError
        If an argument or a returned value has a wrong type, shape or range. Exceptions of the functions propagate.

    References
    ----------
    W. W. Hager and H. Zhang, SIAM J. Optim. 16, 2005, and 23, 2013. J. C. Gilbert and J. Nocedal, SIAM J. Optim. 2,
    1992. J. Nocedal and S. J. Wright, Numerical Optimization, chapter 5.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> f = lambda x: float(np.sum((x - np.arange(4)) ** 4 + (x - np.arange(4)) ** 2))
    >>> g = lambda x: 4 * (x - np.arange(4)) ** 3 + 2 * (x - np.arange(4))
    >>> adaptk.solve.conjugate_gradient(f, np.full(4, 5.0), jac=g).x.round(4)
    array([0., 1., 2., 3.])
    """
    arguments.warn_unused(hess=hess, hessp=hessp)
    rule = arguments.choice(beta, "beta", BETAS)
    return _descend(
        "conjugate_gradient",
        *(fun, x0, args, jac, rule, tol if gtol is None else gtol, maxiter, vectorized, rel_step, typical),
        *(check_derivatives, bounds, constraints, callback, disp, history, max_seconds),
    )


def steepest_descent(
    fun: Any,
    x0: Any,
    args: Any = (),
    *,
    jac: Any = None,
    line_search: str = "wolfe",
    gtol: float | None = None,
    tol: float | None = None,
    maxiter: int | None = None,
    vectorized: bool = False,
    rel_step: Any = None,
    typical: Any = None,
    check_derivatives: bool = False,
    hess: None = None,
    hessp: None = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    disp: bool = False,
    history: bool = False,
    max_seconds: float | None = None,
) -> Result:
    """Minimise a function by steepest descent, the baseline of the Deep Learning book's figure 8.6.

    Parameters
    ----------
    fun, x0, args, jac
        As in :func:`conjugate_gradient`.
    line_search : {"wolfe", "exact", "bb"}
        Strong Wolfe conditions; the exact minimiser along the gradient if `fun` is quadratic, at the cost of one more
        gradient (otherwise a Wolfe search starts from it); or Barzilai and Borwein's steps, with values below the
        largest of the last ten.
    gtol, tol, maxiter, vectorized, rel_step, typical, check_derivatives, hess, hessp, bounds, constraints
        As in :func:`conjugate_gradient`.
    callback, disp, history, max_seconds
        As in :func:`conjugate_gradient`.

    Returns
    -------
    Result
        As :func:`conjugate_gradient`, with the same values of `status`.

    Raises
    ------
    TypeError, ValueError
        As :func:`conjugate_gradient`.

    References
    ----------
    Goodfellow, Bengio and Courville, Deep Learning, section 8.6. J. Barzilai and J. M. Borwein, IMA J. Numer. Anal. 8,
    1988. M. Raydan, SIAM J. Optim. 7, 1997.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> scale = np.array([1.0, 10.0])
    >>> f, g = lambda x: 0.5 * float(x @ (scale * x)), lambda x: scale * x
    >>> r = adaptk.solve.steepest_descent(f, [10.0, 1.0], jac=g, line_search="exact", gtol=1e-6)
    >>> r.success, r.nit > 50
    (True, True)
    """
    arguments.warn_unused(hess=hess, hessp=hessp)
    rule = arguments.choice(line_search, "line_search", STEPS)
    return _descend(
        "steepest_descent",
        *(fun, x0, args, jac, rule, tol if gtol is None else gtol, maxiter, vectorized, rel_step, typical),
        *(check_derivatives, bounds, constraints, callback, disp, history, max_seconds),
    )
