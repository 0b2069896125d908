"""Invalid input of the solvers, and the functions and return values that they accept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from adaptk import solve
from solve_problems import (
    GRADIENTS,
    NEWTONS,
    NOISY,
    SOLVERS,
    Array,
    Refused,
    decay,
    decay_jacobian,
    gradient,
    hessian,
    rosenbrock,
    rosenbrock_gradient,
    rosenbrock_hessian,
)


def quadratic(x: Array) -> float:
    return float(x @ x)


ALL: dict[str, Callable[..., solve.Result]] = {
    "newton": lambda x0, f=quadratic, **o: solve.newton(f, x0, **{"jac": gradient, "hess": hessian, **o}),
    "levenberg_marquardt": lambda x0, f=lambda x: x, **o: solve.levenberg_marquardt(f, x0, **o),
    "conjugate_gradient": lambda x0, f=quadratic, **o: solve.conjugate_gradient(f, x0, **{"jac": gradient, **o}),
    "steepest_descent": lambda x0, f=quadratic, **o: solve.steepest_descent(f, x0, **{"jac": gradient, **o}),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("x0", "error", "text"),
    [
        ([math.nan, 1.0], ValueError, "x0: must be finite, got nan at index 0"),
        ([1.0, math.inf], ValueError, "x0: must be finite, got inf at index 1"),
        ([], ValueError, "x0: is empty"),
        ([[1.0, 2.0], [3.0, 4.0]], ValueError, r"x0: expected a 1-D array, got shape \(2, 2\)"),
        ([1j], TypeError, "x0: expected real numbers .*, got dtype complex128"),
        (["a"], TypeError, "x0: expected real numbers"),
        (None, TypeError, "x0: expected real numbers"),
        ([None, 1.0], TypeError, "x0: expected real numbers"),
        (np.ones(2, np.float16), TypeError, "x0: expected real numbers .*float16"),
    ],
    ids=str,
)
def test_invalid_starts(name: str, x0: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ALL[name](x0)


@pytest.mark.parametrize("name", ALL)
def test_starts_of_other_kinds(name: str) -> None:
    for x0 in (3, 3.0, [3], (3,), np.int8(3), np.array(3.0), np.array([3], ">f8"), np.arange(3, 9)[::6], [True]):
        assert ALL[name](x0).success
    frozen = np.array([3.0, 4.0])
    frozen.flags.writeable = False
    assert ALL[name](frozen).success
    assert frozen.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("name", ["newton", "conjugate_gradient", "steepest_descent"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, TypeError, "fun must return real numbers, got None"),
        (1j, TypeError, "fun must return real numbers, got dtype complex"),
        (np.complex64(1), TypeError, "fun must return real numbers, got dtype complex64"),
        ("1.0", TypeError, "fun must return real numbers, got dtype"),
        (object(), TypeError, r"fun must return real numbers, got dtype object \(object\)"),
        (np.ones(2), ValueError, r"fun must return one number, got an array of shape \(2,\)"),
        ([], ValueError, r"fun must return one number, got an array of shape \(0,\)"),
    ],
    ids=range(7),
)
def test_wrong_types_of_function_values(name: str, value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ALL[name]([1.0, 2.0], lambda x: value)


@pytest.mark.parametrize(
    "value", [1, True, np.float32(1), np.array(1.0), np.array([1.0]), [[1.0]], np.int64(1)], ids=repr
)
def test_types_of_function_values(value: Any) -> None:
    assert solve.conjugate_gradient(lambda x: value, [1.0], jac=lambda x: [0.0]).fun == 1


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, TypeError, "jac must return real numbers, got None"),
        ([1.0], ValueError, r"jac must return an array of shape \(2,\), got one of shape \(1,\)"),
        (np.ones((2, 1)), ValueError, r"jac must return an array of shape \(2,\), got one of shape \(2, 1\)"),
        (np.ones((2, 2)), ValueError, r"jac must return an array of shape \(2,\), got one of shape \(2, 2\)"),
        ([1j, 1], TypeError, "jac must return real numbers, got dtype complex128"),
        (np.array([None, 1.0]), TypeError, "jac must return real numbers, got dtype object"),
    ],
    ids=str,
)
def test_invalid_gradients(value: Any, error: type[Exception], text: str) -> None:
    for name in ("newton", "conjugate_gradient", "steepest_descent"):
        with pytest.raises(error, match=text):
            ALL[name]([1.0, 2.0], jac=lambda x: value)


def test_wrong_results_of_other_functions() -> None:
    with pytest.raises(ValueError, match=r"hess must return an array of shape \(2, 2\), got one of shape \(3, 3\)"):
        solve.newton(quadratic, [1.0, 2.0], jac=gradient, hess=lambda x: np.eye(3))
    with pytest.raises(ValueError, match=r"hessp must return an array of shape \(2,\), got one of shape \(1,\)"):
        solve.newton(quadratic, [1.0, 2.0], jac=gradient, hessp=lambda x, v: [1.0])
    with pytest.raises(TypeError, match=r"fun must return a pair \(value, gradient\) with jac=True, got float"):
        solve.newton(quadratic, [1.0, 2.0], jac=True)
    with pytest.raises(ValueError, match=r"the gradient of fun must return an array of shape \(2,\)"):
        solve.newton(lambda x: (1.0, [1.0]), [1.0, 2.0], jac=True)
    with pytest.raises(ValueError, match=r"fun must return at least one residual"):
        solve.levenberg_marquardt(lambda x: [], [1.0])
    with pytest.raises(TypeError, match="fun must return real numbers, got None"):
        solve.levenberg_marquardt(lambda x: None, [1.0])
    with pytest.raises(TypeError, match="fun must return real numbers, got dtype complex128"):
        solve.levenberg_marquardt(lambda x: x * 1j, [1.0])
    with pytest.raises(ValueError, match=r"fun must return a 1-D array of residuals, got one of shape \(1, 1\)"):
        solve.levenberg_marquardt(lambda x: x[None], [1.0])
    with pytest.raises(ValueError, match=r"jac must return an array of shape \(3, 1\), got one of shape \(1, 3\)"):
        solve.levenberg_marquardt(lambda x: np.ones(3) * x, [1.0], jac=lambda x: np.ones((1, 3)))
    lengths = iter([3, 4])
    with pytest.raises(ValueError, match=r"fun must return an array of shape \(3,\), got one of shape \(4,\)"):
        solve.levenberg_marquardt(lambda x: np.ones(next(lengths)) * x, [1.0])
    with pytest.raises(ValueError, match=r"fun, called on a stack of points, must return an array of shape \(2, 3\)"):
        solve.levenberg_marquardt(lambda x: np.ones(3), [1.0, 2.0], vectorized=True)
    with pytest.raises(ValueError, match=r"A must return an array of shape \(2,\)"):
        solve.cg(lambda v: [1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: solve.newton(3, [1.0]), TypeError, "fun: expected a callable or a compiled function, got int"),
        (lambda: solve.newton(None, [1.0]), TypeError, "fun: expected a callable"),
        (lambda: solve.newton(quadratic, [1.0], jac=3), TypeError, "jac: expected a callable"),
        (lambda: solve.newton(quadratic, [1.0], jac="4-point"), ValueError, "jac: expected one of '2-point'"),
        (lambda: solve.newton(quadratic, [1.0], hess=3), TypeError, "hess: expected a callable"),
        (lambda: solve.newton(quadratic, [1.0], hess=hessian, hessp=gradient), ValueError, "hessp: give either"),
        (lambda: solve.newton(quadratic, [1.0], damping="lm"), ValueError, "damping: expected one of 'trust-region'"),
        (lambda: solve.newton(quadratic, [1.0], gtol=-1), ValueError, "gtol: must be >= 0, got -1"),
        (lambda: solve.newton(quadratic, [1.0], gtol="a"), TypeError, "gtol: expected a number, got str"),
        (lambda: solve.newton(quadratic, [1.0], xtol=math.nan), ValueError, "xtol: must be >= 0, got nan"),
        (lambda: solve.newton(quadratic, [1.0], maxiter=1.5), TypeError, "maxiter: expected a whole number"),
        (lambda: solve.newton(quadratic, [1.0], maxiter=-1), ValueError, "maxiter: must be >= 0, got -1"),
        (lambda: solve.newton(quadratic, [1.0], callback=3), TypeError, "callback: expected a callable, got int"),
        (lambda: solve.newton(quadratic, [1.0], bounds=[(0, 1)]), ValueError, "bounds: expected a pair"),
        (lambda: solve.newton(quadratic, [1.0], constraints={"type": "eq"}), ValueError, "constraints: this method"),
        (
            lambda: solve.newton(quadratic, [1.0], initial_trust_radius=0),
            ValueError,
            "initial_trust_radius: must be > 0",
        ),
        (lambda: solve.newton(quadratic, [1.0], max_seconds=-1), ValueError, "max_seconds: must be >= 0"),
        (lambda: solve.newton(quadratic, [1.0], typical=[1.0, 2.0]), ValueError, r"typical: .*shape \(1,\), got shape"),
        (lambda: solve.newton(quadratic, [1.0], rel_step=-1.0), ValueError, "rel_step: must be finite and positive"),
        (lambda: solve.newton(quadratic, [1.0], jac=gradient, vectorized=True), ValueError, "vectorized: is for"),
        (lambda: solve.conjugate_gradient(quadratic, [1.0], beta="x"), ValueError, "beta: expected one of 'hz'"),
        (lambda: solve.steepest_descent(quadratic, [1.0], line_search=1), ValueError, "line_search: expected one of"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], loss="l1"), ValueError, "loss: expected one of 'linear'"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], f_scale=0), ValueError, "f_scale: must be > 0, got 0"),
        (
            lambda: solve.levenberg_marquardt(gradient, [1.0], bounds=(2, 3)),
            ValueError,
            "x0: variable 0 is 1.0, outside",
        ),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], bounds=(3, 2)), ValueError, "bounds: lower must be less"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], bounds=3), ValueError, "bounds: expected a pair"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], bounds=([0, 0], 2)), ValueError, "bounds: expected a pair"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], bounds=(math.nan, 2)), ValueError, "bounds: hold NaN"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], max_nfev=0), ValueError, "max_nfev: must be >= 1"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], x_scale=-1), ValueError, "x_scale: must be finite and pos"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], geodesic=3), ValueError, "geodesic: expected one of"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], factor=0), ValueError, "factor: must be > 0"),
        (lambda: solve.cg(np.eye(3), [1.0]), ValueError, r"A: expected shape \(1, 1\) to go with b, got \(3, 3\)"),
        (lambda: solve.cg([[1.0, 2.0], [0.0, 1.0]], [1.0, 1.0]), ValueError, "A: must be symmetric"),
        (lambda: solve.cg([[1j]], [1.0]), TypeError, "A: expected real numbers, got dtype complex128"),
        (lambda: solve.cg(None, [1.0]), TypeError, "A: expected an array, a function"),
        (lambda: solve.cg(3, [1.0]), TypeError, "A: expected an array, a function"),
        (lambda: solve.cg([[1.0]], [math.nan]), ValueError, "b: must be finite"),
        (lambda: solve.cg([[1.0]], [1.0], x0=[1.0, 2.0]), ValueError, r"x0: expected shape \(1,\)"),
        (lambda: solve.cg([[1.0]], [1.0], rtol=-1), ValueError, "rtol: must be >= 0"),
        (lambda: solve.cg([[1.0]], [1.0], M=[[1.0, 0.0]]), ValueError, r"M: expected shape \(1, 1\)"),
    ],
)
def test_invalid_arguments(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("after", range(6))
def test_exceptions_propagate(solver: str, after: int) -> None:
    """The same object, whichever function raises it and when."""
    for which in ("f", "g", "h", "callback"):
        error = Refused(which)
        count = 0

        def failing(name: str, function: Callable[..., Any], which: str = which, error: Exception = error) -> Any:
            def call(*x: Any) -> Any:
                nonlocal count
                count += name == which
                if count > after:
                    raise error
                return function(*x)

            return call

        try:
            SOLVERS[solver](
                failing("f", rosenbrock),
                [-1.2, 1.0],
                failing("g", rosenbrock_gradient),
                failing("h", rosenbrock_hessian),
                callback=failing("callback", lambda x: None),
                maxiter=20,
            )
        except Refused as got:
            assert got is error  # noqa: PT017  (whether it is raised depends on the solver)
        else:
            assert count <= after


def test_exceptions_of_residuals_propagate() -> None:
    for after in range(8):
        for which in ("f", "j"):
            count = 0

            def f(p: Array, which: str = which, after: int = after) -> Array:
                nonlocal count
                count += which == "f"
                if count > after:
                    raise Refused
                return decay(p) - NOISY

            def j(p: Array, which: str = which, after: int = after) -> Array:
                nonlocal count
                count += which == "j"
                if count > after:
                    raise Refused
                return decay_jacobian(p)

            if which == "f":
                with pytest.raises(Refused):
                    solve.levenberg_marquardt(f, [1.0, 1.0, 0.0])
            count = 0
            try:
                solve.levenberg_marquardt(f, [1.0, 1.0, 0.0], jac=j)
            except Refused:
                continue
            assert count <= after


@pytest.mark.parametrize("solver", [*NEWTONS, *GRADIENTS])
def test_functions_own_their_arguments(solver: str) -> None:
    """A function may keep its argument, and it may change it."""
    plain = SOLVERS[solver](rosenbrock, [-1.2, 1.0], rosenbrock_gradient, rosenbrock_hessian)
    kept: list[tuple[Array, Array]] = []

    def keeping(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
        def call(x: Array) -> Any:
            assert x.flags.writeable
            assert x.flags.owndata
            value = function(x)
            kept.append((x, x.copy()))
            return value

        return call

    SOLVERS[solver](
        keeping(rosenbrock),
        [-1.2, 1.0],
        keeping(rosenbrock_gradient),
        keeping(rosenbrock_hessian),
        callback=keeping(len),
    ) if solver != "hessp" else None
    for x, copy in kept:
        np.testing.assert_array_equal(x, copy)
    assert len({id(x) for x, _ in kept}) == len(kept)

    def spoiling(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
        def call(x: Array) -> Any:
            value = function(x.copy())
            x[:] = math.nan
            return value

        return call

    start = np.array([-1.2, 1.0])
    r = SOLVERS[solver](
        spoiling(rosenbrock),
        start,
        spoiling(rosenbrock_gradient),
        spoiling(rosenbrock_hessian),
        callback=spoiling(lambda x: None),
    )
    np.testing.assert_array_equal(start, [-1.2, 1.0])
    if solver != "hessp":  # whose products come from a function of two arguments
        np.testing.assert_array_equal(r.x, plain.x)


def test_a_reused_result_buffer() -> None:
    out, slope = np.empty(40), np.empty((40, 3), order="F")

    def f(p: Array) -> Array:
        out[:] = decay(p) - NOISY
        return out

    def j(p: Array) -> Array:
        slope[:] = decay_jacobian(p)
        return slope

    r = solve.levenberg_marquardt(f, [1.0, 1.0, 0.0], jac=j)
    want = solve.levenberg_marquardt(lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0], jac=decay_jacobian)
    np.testing.assert_array_equal(r.x, want.x)
    out[:] = 0
    slope[:] = 0
    np.testing.assert_array_equal(r.fun, want.fun)
    np.testing.assert_array_equal(r.jac, want.jac)


def test_results_in_other_layouts() -> None:
    want = solve.levenberg_marquardt(lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0], jac=decay_jacobian)
    wide = np.zeros((80, 6))

    def j(p: Array) -> Array:
        wide[::2, ::2] = decay_jacobian(p)
        return wide[::2, ::2]

    for f, jac in (
        (lambda p: (decay(p) - NOISY).tolist(), lambda p: decay_jacobian(p).tolist()),
        (lambda p: np.repeat(decay(p) - NOISY, 2)[::2], j),
        (lambda p: (decay(p) - NOISY).astype(">f8"), lambda p: decay_jacobian(p).astype(">f8")),
        (lambda p: (decay(p) - NOISY).astype(np.longdouble), lambda p: np.asfortranarray(decay_jacobian(p))),
    ):
        np.testing.assert_array_equal(solve.levenberg_marquardt(f, [1.0, 1.0, 0.0], jac=jac).x, want.x)


def test_args() -> None:
    def f(x: Array, a: float, b: float) -> float:
        return float((x[0] - a) ** 2 + b)

    r = solve.newton(f, [0.0], (3.0, 4.0), jac=lambda x, a, b: 2 * (x - a), hess=lambda x, a, b: [[2.0]])
    assert (r.x[0], r.fun) == (3.0, 4.0)
    r = solve.newton(f, [0.0], (3.0, 4.0), jac=lambda x, a, b: 2 * (x - a), hessp=lambda x, v, a, b: 2 * v)
    assert r.x[0] == 3.0
    assert solve.levenberg_marquardt(lambda x, a: x - a, [0.0], 5.0).x[0] == 5.0
