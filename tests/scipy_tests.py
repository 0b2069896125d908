"""SciPy's own tests of its solvers, loaded so that they call this library's solvers.

Each test module is loaded a second time, separately from SciPy's copy, with `least_squares`, `leastsq` and `minimize`
replaced by the adapters below. They translate SciPy's options and methods and call :mod:`adaptk.solve`. Everything else
goes to SciPy's functions.
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import sys
import types
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from adaptk import solve

# The number of calls of this library's solvers: a test that makes none does not test them.
calls = 0


def _dense(function: Any) -> Any:
    """The same function with sparse matrices converted to dense ones, to test the solver that factors them."""
    if not callable(function):
        return function

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        return value.toarray() if hasattr(value, "toarray") else value

    return wrapped


def least_squares(
    fun: Any,
    x0: Any,
    jac: Any = "2-point",
    bounds: Any = (-np.inf, np.inf),
    method: str = "trf",
    ftol: Any = 1e-8,
    xtol: Any = 1e-8,
    gtol: Any = 1e-8,
    x_scale: Any = "jac",
    loss: Any = "linear",
    f_scale: float = 1.0,
    diff_step: Any = None,
    tr_solver: Any = None,
    tr_options: Any = None,
    jac_sparsity: Any = None,
    max_nfev: Any = None,
    verbose: int = 0,
    args: Any = (),
    kwargs: Any = None,
    callback: Any = None,
) -> Any:
    """`method`, `tr_solver`, `tr_options` and `jac_sparsity` choose among SciPy's algorithms; they are ignored."""
    global calls
    calls += 1
    if kwargs:
        fun = functools.partial(fun, **kwargs)
        jac = functools.partial(jac, **kwargs) if callable(jac) else jac
    # None disables a test of convergence.
    off = {"ftol": ftol, "xtol": xtol, "gtol": gtol}
    tolerances = {name: 0.0 if value is None else value for name, value in off.items()}
    scaling = {"x_scale": x_scale, "loss": loss, "f_scale": f_scale, "rel_step": diff_step}
    more = {"jac": _dense(jac), "bounds": bounds, "max_nfev": max_nfev, "callback": callback}
    r = solve.levenberg_marquardt(fun, x0, args, **tolerances, **scaling, **more)
    r.status = -2 if r.status == -1 else r.status  # SciPy's status for a stop by the callback
    return r


# This library's statuses mapped to MINPACK's.
_INFO = {1: 4, 2: 1, 3: 2, 4: 3, 5: 2, 0: 5}


def leastsq(
    func: Any,
    x0: Any,
    args: Any = (),
    Dfun: Any = None,
    full_output: bool = False,
    ftol: float = 1.49012e-8,
    xtol: float = 1.49012e-8,
    gtol: float = 0.0,
    maxfev: int = 0,
) -> Any:
    global calls
    calls += 1
    tolerances = {"ftol": ftol, "xtol": xtol, "gtol": gtol, "max_nfev": maxfev or None}
    r = solve.levenberg_marquardt(func, np.ravel(x0), args, jac=Dfun, absolute_sigma=True, **tolerances)
    info = _INFO[r.status]
    if not full_output:
        return r.x, info
    # Like SciPy: None if there is no covariance.
    covariance = r.cov if np.isfinite(r.cov).all() else None
    return r.x, covariance, {"fvec": r.fun, "nfev": r.nfev}, r.message, info


# The beginnings of this library's errors, and SciPy's words for them.
_WORDS = {
    "nan_policy: expected None, 'raise' or 'omit', got 'propagate'": (
        "`nan_policy='propagate'` is not supported by this function."
    ),
    "nan_policy: expected": "nan_policy must be one of {None, 'raise', 'omit'}",
    "ydata: has NaN": "The input contains nan values",
    "xdata: has NaN": "The input contains nan values",
    "ydata: 4 points cannot determine": "The number of func parameters=",
    "p0: variable": "Initial guess is outside of provided bounds",
}


def curve_fit(*args: Any, **kwargs: Any) -> Any:
    """This library's curve_fit, with SciPy's words and warnings."""
    global calls
    calls += 1
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = solve.curve_fit(*args, **kwargs)
    except (TypeError, ValueError) as error:
        words = next((theirs for ours, theirs in _WORDS.items() if str(error).startswith(ours)), str(error))
        raise type(error)(words) from error
    for w in caught:
        text = str(w.message)
        unknown = text == "Covariance of the parameters could not be estimated"
        warnings.warn(text, scipy.optimize.OptimizeWarning if unknown else w.category, stacklevel=2)
    return result


def lbfgsb(fun: Any, x0: Any, args: Any = (), *, bounds: Any = None, **options: Any) -> Any:
    """`lbfgs` with the options of SciPy's L-BFGS-B, whose start may be outside of the bounds.

    There is no counterpart of its absolute tolerances of f and of the gradient, its limits of evaluations, and the
    absolute step of its differences.
    """
    for name in ("ftol", "maxfun", "maxls", "eps", "iprint", "finite_diff_rel_step"):
        options.pop(name, None)
    if "maxcor" in options:
        options["memory"] = options.pop("maxcor")
    if bounds is not None:
        if not hasattr(bounds, "lb"):
            pairs = [(-np.inf if low is None else low, np.inf if high is None else high) for low, high in bounds]
            bounds = scipy.optimize.Bounds(*np.transpose(pairs))
        x0 = np.clip(x0, bounds.lb, bounds.ub)
    return solve.lbfgs(fun, x0, args, bounds=bounds, **options)


# The counterparts of SciPy's methods. Methods that only use products with the Hessian get products.
COUNTERPARTS: dict[str, Callable[..., Any]] = {
    "cg": solve.conjugate_gradient,
    "newton-cg": functools.partial(solve.newton, damping="levenberg"),
    "dogleg": solve.newton,
    "trust-exact": solve.newton,
    "trust-ncg": solve.newton,
    "trust-krylov": solve.newton,
}
_BY_PRODUCTS = ("trust-ncg", "trust-krylov")


def minimize(methods: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """scipy.optimize.minimize with some methods replaced by functions, which it calls as custom methods."""

    def exchanged(fun: Any, x0: Any, args: Any = (), method: Any = None, **given: Any) -> Any:
        global calls
        own = methods.get(method.lower()) if isinstance(method, str) else None
        if own is None:
            return scipy.optimize.minimize(fun, x0, args, method=method, **given)
        calls += 1
        hess = _dense(given.pop("hess", None))
        products = given.pop("hessp", None)
        if method.lower() in ("cg", "l-bfgs-b"):
            hess = products = None
        elif callable(hess) and method.lower() in _BY_PRODUCTS:
            products, hess = (lambda x, v, *more, h=hess: np.asarray(h(x, *more)) @ v), None
        elif hess is not None:
            products = None
        elif products is not None:
            own = solve.newton
        options = dict(given.pop("options", None) or {})
        options.pop("subproblem_maxiter", None)  # an option of another algorithm
        points = [np.array(x0, dtype=float)]
        callback = given.pop("callback", None)
        if options.pop("return_all", False):

            def recorded(x: Any, then: Any = callback) -> Any:
                points.append(x.copy())
                return None if then is None else then(x)

            callback = recorded
        own_options = {**given, "hess": hess, "hessp": products, "options": options, "callback": callback}
        r = scipy.optimize.minimize(fun, x0, args, method=own, **own_options)
        # SciPy's statuses: 0 for success, 1 for the limit of iterations, 99 for a stop by the callback.
        if r.status == -1:
            r.message = "`callback` raised `StopIteration`."
        r.status = 0 if r.success else {0: 1, -1: 99}.get(r.status, 2)
        r.allvecs = points
        return r

    return exchanged


class _Optimize(types.ModuleType):
    """scipy.optimize with some names replaced."""

    def __getattr__(self, name: str) -> Any:
        return getattr(scipy.optimize, name)


def load(name: str, **exchanged: Any) -> types.ModuleType:
    """A copy of scipy.optimize.tests.<name> in which these names, global or from `optimize`, are replaced."""
    tests = importlib.util.find_spec("scipy.optimize.tests")
    if tests is None or not tests.submodule_search_locations:
        pytest.skip("SciPy's tests are not installed", allow_module_level=True)
    file = pathlib.Path(next(iter(tests.submodule_search_locations))) / f"{name}.py"
    if not file.exists():
        pytest.skip("SciPy's tests are not installed", allow_module_level=True)
    spec = importlib.util.spec_from_file_location(f"_exchanged_{name}_{len(sys.modules)}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    optimize = _Optimize("optimize")
    for key, value in exchanged.items():
        if hasattr(module, key):
            setattr(module, key, value)
        if hasattr(scipy.optimize, key):
            setattr(optimize, key, value)
    if hasattr(module, "optimize"):
        module.optimize = optimize  # type: ignore[attr-defined]
    return module


def _keep(function: Any, methods: Collection[str]) -> None:
    """The cases of a parametrised test whose `method` is one of these."""
    marks = []
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize" and mark.args[0] == "method":
            values = [v for v in mark.args[1] if v.lower() in methods]
            mark = pytest.mark.parametrize("method", values).mark
        marks.append(mark)
    function.pytestmark = marks


def take(
    module: types.ModuleType, names: Collection[str], methods: Collection[str], but: Collection[str] = ()
) -> Iterator[tuple[str, Any]]:
    """Select tests ("test_x"), classes of tests ("TestX") or tests of a class ("TestX.test_y"), with exceptions."""
    classes: dict[str, dict[str, Any]] = {}
    for name in names:
        first, _, second = name.partition(".")
        item = getattr(module, first)
        if not isinstance(item, type):
            _keep(item, methods)
            yield first, item
        elif second:
            test = getattr(item, second)
            _keep(test, methods)
            classes.setdefault(first, {})[second] = test
        else:
            omitted = {n.partition(".")[2]: None for n in but if n.startswith(f"{first}.")}
            yield first, type(first, (item,), omitted)
    for first, tests in classes.items():
        whole = getattr(module, first)
        hidden = {n: None for n in dir(whole) if n.startswith("test") and n not in tests}
        yield first, type(first, (whole,), {**hidden, "__doc__": whole.__doc__})
