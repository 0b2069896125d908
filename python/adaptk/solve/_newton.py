"""Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptk import _solve
from adaptk.solve import _arguments as arguments
from adaptk.solve import _check
from adaptk.solve._quasi_newton import UPDATES, QuasiNewton
from adaptk.solve._result import Result, finish

DAMPINGS = {"trust-region": 0, "levenberg": 1, None: 2}


def newton(
    fun: Any,
    x0: Any,
    args: Any = (),
    *,
    jac: Any = None,
    hess: Any = None,
    hessp: Any = None,
    damping: str | None = "trust-region",
    gtol: float | None = None,
    xtol: float | None = None,
    tol: float | None = None,
    initial_trust_radius: float | None = None,
    maxiter: int | None = None,
    vectorized: bool = False,
    rel_step: Any = None,
    typical: Any = None,
    check_derivatives: bool = False,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    disp: bool = False,
    history: bool = False,
    max_seconds: float | None = None,
) -> Result:
    """Minimise a function by Newton's method, with a Hessian or its products with vectors.

    If the Hessian has negative eigenvalues, steps follow their directions, so that the method leaves saddles and
    maxima.

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
    hess : callable, compiled function or {"2-point", "3-point", "cs", "bfgs", "sr1"}, optional
        The Hessian, shape (n, n), of which the symmetric part is used. Compiled:
        ``void (int n, const double *x, double *h, void *user)``. By default, one-sided differences of the gradient, or
        second differences of `fun` if the gradient is computed by differences too. ``"bfgs"`` and ``"sr1"`` build a
        matrix from the changes of the gradient, without more evaluations; what `status` states about curvature then
        refers to that matrix, and BFGS's is always positive definite.
    hessp : callable or compiled function, optional
        ``hessp(x, v, *args)`` returns the Hessian times v, shape (n,), instead of `hess`. Steps are then computed by
        conjugate gradients inside the trust region (Steihaug), with bounds among the free variables (Lin and More).
        Compiled: ``void (int n, const double *x, const double *v, double *hv, void *user)``.
    damping : {"trust-region", "levenberg", None}
        More and Sorensen's trust region; ``H + alpha I`` with alpha adapted; or the plain method with full steps
        (Algorithm 8.8 of the Deep Learning book), which ends if H is not positive definite.
    gtol, xtol : float, optional
        Tolerances: see `status`. Both are 1e-12 by default, for float32 1e-6; with differences the default of `gtol` is
        not below their error. `tol` sets both.
    initial_trust_radius : float, optional
        By default, derived from the first step.
    maxiter : int, optional
        Default 1000.
    vectorized : bool
        Whether `fun` takes a stack of points, shape (k, n), and returns (k,); differences are then one call.
    rel_step, typical : float or array_like, optional
        Differences step by ``rel_step * max(|x|, typical)``. `typical` is by default ``|x0|``, or 1 where that is 0.
        Without `rel_step`, steps become longer if rounding hides the change of `fun`, up to those for a `typical` of 1.
    check_derivatives : bool
        Whether to compare `jac` and `hess` with central differences at `x0` first, and raise ValueError with the worst
        element if one is wrong.
    bounds : (lower, upper), optional
        Numbers or shape (n,) each, or an object with ``lb`` and ``ub``. Equal ones hold a variable. No function is
        called with a point outside.
    constraints
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
        `x`, `fun`, `jac`, `hess`, `lambda_min` (the smallest eigenvalue of the last Hessian), `nit`, `nfev`, `njev`,
        `nhev`, `success`, `message` and `status`, with G the largest ``|g|`` of the run and 2-norms. With bounds also
        `active_mask` (-1 and 1 at a lower and an upper bound); g, H and `lambda_min` are then those of the variables
        that no bound holds, `lambda_min` infinite if each is held.

        == =======================================================================
        1  a minimum: ``lambda_min >= -16 n eps |H|``, and ``|g| <= gtol G`` with a full step of at most a thousandth
           of the path so far, or ``|g_i| <= eps (|H| |x|)_i`` for each i
        3  the full step has ``|p| <= xtol |x|``, and H is positive definite
        5  limit of precision: the predicted reduction is ``<= 4 eps |f|``, and neither f nor ``|g|`` falls
        0  `maxiter` iterations
        -1 the callback stopped it
        -2 time limit reached
        -3 a value is not finite: at the start, however short the step, or of a derivative
        -4 ``damping=None``: H has no Cholesky factor
        -5 a saddle or maximum: as 1 but ``lambda_min < -16 n eps |H|``, and no lower point was found along its
           eigenvector, or ``damping=None``, which only looks for one if ``lambda_min`` is 0
        -6 no minimum: f is -inf, or still falls where squares of x overflow
        -9 as 5, but the gradient is not small and differences of `fun` contradict it
        == =======================================================================

        In the bounds of ``lambda_min``, eps is the error of the finite differences if the Hessian is computed by them.

    Raises
    ------
    TypeError, ValueError
        If an argument or a returned value has a wrong type, shape or range. Exceptions of the functions propagate.

    References
    ----------
    Goodfellow, Bengio and Courville, Deep Learning, section 8.6.1. J. J. More and D. C. Sorensen, Computing a trust
    region step, 1983. T. Steihaug, SIAM J. Numer. Anal. 20, 1983. Bounds: D. P. Bertsekas, SIAM J. Control Optim. 20,
    1982; C. J. Lin and J. J. More, SIAM J. Optim. 9, 1999.

    Examples
    --------
    >>> import adaptk
    >>> f = lambda x: (x[0]**2 - 1)**2 + x[1]**2
    >>> g = lambda x: [4 * x[0] * (x[0]**2 - 1), 2 * x[1]]
    >>> h = lambda x: [[12 * x[0]**2 - 4, 0], [0, 2]]
    >>> r = adaptk.solve.newton(f, [0.0, 1.0], jac=g, hess=h)  # on the ridge that leads to the saddle at 0
    >>> r.status, abs(r.x).round(6), round(float(r.lambda_min), 6)
    (1, array([1., 0.]), 2.0)
    >>> adaptk.solve.newton(f, [0.1, 1.0], jac=g, hess=h, bounds=([-0.25, 0.25], [0.5, 2])).x
    array([0.5 , 0.25])
    """
    arguments.unconstrained(constraints)
    x = arguments.start(x0)
    lower, upper = arguments.bounds(bounds, x, fixed=True)
    size = x.dtype.itemsize
    f, g, differences, pair = arguments.gradient_options(fun, jac, x, vectorized)
    if hess is not None and hessp is not None:
        raise ValueError("hessp: give either hess or hessp")
    second = 0
    h = hp = None
    if hessp is not None:
        if damping != "trust-region":
            raise ValueError("damping: with hessp the steps need the trust region")
        hp = arguments.function(hessp, "hessp", size, "hessp")
    elif hess is None:
        second = 1
    elif isinstance(hess, str) and hess in UPDATES:
        if differences or isinstance(f, tuple) or isinstance(g, tuple):
            raise ValueError(f"hess: {hess!r} needs a gradient written in Python; give jac")
        if check_derivatives:
            _check.verify(f, x, arguments.tuple_of(args), g, pair, bounds=(lower, upper))
            check_derivatives = False
        model = QuasiNewton(f, g, pair, hess, x.dtype)
        f, g, h = (model.fun if pair else f), (None if pair else model.jac), model.hess
    elif isinstance(hess, str):
        second = arguments.method(hess, "hess")
        if second == 3 and (pair or differences or isinstance(g, tuple)):
            raise ValueError("hess: 'cs' needs a gradient written in Python")
    else:
        h = arguments.function(hess, "hess", size, "hess")
    gtol = tol if gtol is None else gtol
    xtol = tol if xtol is None else xtol
    options = (
        arguments.tolerance(gtol, "gtol"),
        arguments.tolerance(xtol, "xtol"),
        None
        if initial_trust_radius is None
        else arguments.real(initial_trust_radius, "initial_trust_radius", open_low=True),
        1000 if maxiter is None else arguments.whole(maxiter, "maxiter"),
    )
    if check_derivatives:
        _check.verify(f, x, arguments.tuple_of(args), g, pair, h, bounds=(lower, upper))
    derivatives = arguments.derivatives(differences, second, bool(vectorized), pair, rel_step, typical, x)
    common, progress = arguments.common("newton", callback, disp, history, max_seconds)
    chosen = arguments.choice(damping, "damping", DAMPINGS)
    raw = _solve.newton(f, x, arguments.tuple_of(args), g, h, hp, derivatives, chosen, lower, upper, options, common)
    return finish(raw, "newton", progress)
