"""Problems of the tests of the solvers."""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from adaptk import solve

Array = np.ndarray[Any, Any]


# Problems: value, gradient, Hessian, start, minimum, minimiser (None: many)


def rosenbrock(x: Array) -> float:
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def rosenbrock_gradient(x: Array) -> Array:
    g = np.zeros_like(x)
    t = x[1:] - x[:-1] ** 2
    g[:-1] = -400 * x[:-1] * t - 2 * (1 - x[:-1])
    g[1:] += 200 * t
    return g


def rosenbrock_hessian(x: Array) -> Array:
    h = np.zeros((len(x), len(x)), x.dtype)
    for i in range(len(x) - 1):
        h[i, i] += 1200 * x[i] ** 2 - 400 * x[i + 1] + 2
        h[i, i + 1] = h[i + 1, i] = -400 * x[i]
        h[i + 1, i + 1] += 200
    return h


MATRIX = np.array([[4.0, 1.0, 0.5], [1.0, 3.0, 0.25], [0.5, 0.25, 2.0]])


RIGHT = np.array([1.0, -2.0, 0.5])


def wood(x: Array) -> float:
    a, b, c, d = x
    return float(
        100 * (b - a * a) ** 2
        + (1 - a) ** 2
        + 90 * (d - c * c) ** 2
        + (1 - c) ** 2
        + 10.1 * ((b - 1) ** 2 + (d - 1) ** 2)
        + 19.8 * (b - 1) * (d - 1)
    )


def wood_gradient(x: Array) -> Array:
    a, b, c, d = x
    return np.array(
        [
            -400 * a * (b - a * a) - 2 * (1 - a),
            200 * (b - a * a) + 20.2 * (b - 1) + 19.8 * (d - 1),
            -360 * c * (d - c * c) - 2 * (1 - c),
            180 * (d - c * c) + 20.2 * (d - 1) + 19.8 * (b - 1),
        ]
    )


def wood_hessian(x: Array) -> Array:
    a, b, c, d = x
    return np.array(
        [
            [1200 * a * a - 400 * b + 2, -400 * a, 0, 0],
            [-400 * a, 220.2, 0, 19.8],
            [0, 0, 1080 * c * c - 360 * d + 2, -360 * c],
            [0, 19.8, -360 * c, 200.2],
        ]
    )


PROBLEMS: dict[str, tuple[Any, ...]] = {
    "quadratic": (
        lambda x: float(x @ MATRIX @ x / 2 - RIGHT @ x),
        lambda x: MATRIX @ x - RIGHT,
        lambda x: MATRIX,
        [5.0, 5.0, 5.0],
        -RIGHT @ np.linalg.solve(MATRIX, RIGHT) / 2,
        np.linalg.solve(MATRIX, RIGHT),
    ),
    "rosenbrock": (rosenbrock, rosenbrock_gradient, rosenbrock_hessian, [-1.2, 1.0], 0.0, [1.0, 1.0]),
    "wood": (wood, wood_gradient, wood_hessian, [-3.0, -1.0, -3.0, -1.0], 0.0, [1.0] * 4),
    "logarithm": (
        lambda x: float(np.sum(x - np.log(x))) if (x > 0).all() else math.nan,
        lambda x: 1 - 1 / x,
        lambda x: np.diag(1 / x**2),
        [5.0, 0.01],
        2.0,
        [1.0, 1.0],
    ),
    "exponentials": (
        lambda x: float(np.exp(x[0] + 3 * x[1] - 0.1) + np.exp(x[0] - 3 * x[1] - 0.1) + np.exp(-x[0] - 0.1)),
        lambda x: np.array(
            [
                np.exp(x[0] + 3 * x[1] - 0.1) + np.exp(x[0] - 3 * x[1] - 0.1) - np.exp(-x[0] - 0.1),
                3 * np.exp(x[0] + 3 * x[1] - 0.1) - 3 * np.exp(x[0] - 3 * x[1] - 0.1),
            ]
        ),
        lambda x: np.array(
            [
                [
                    np.exp(x[0] + 3 * x[1] - 0.1) + np.exp(x[0] - 3 * x[1] - 0.1) + np.exp(-x[0] - 0.1),
                    3 * np.exp(x[0] + 3 * x[1] - 0.1) - 3 * np.exp(x[0] - 3 * x[1] - 0.1),
                ],
                [
                    3 * np.exp(x[0] + 3 * x[1] - 0.1) - 3 * np.exp(x[0] - 3 * x[1] - 0.1),
                    9 * np.exp(x[0] + 3 * x[1] - 0.1) + 9 * np.exp(x[0] - 3 * x[1] - 0.1),
                ],
            ]
        ),
        [-1.0, 1.0],
        2 * math.sqrt(2) * math.exp(-0.1),
        [-math.log(2) / 2, 0.0],
    ),
    "one variable": (
        lambda x: float(np.cosh(x[0] - 2)),
        lambda x: np.sinh(x - 2),
        lambda x: np.cosh(x - 2)[:, None],
        [6.0],
        1.0,
        [2.0],
    ),
}


NEWTONS: dict[str, Callable[..., solve.Result]] = {
    "trust-region": lambda f, x, g, h, **o: solve.newton(f, x, jac=g, hess=h, **o),
    "levenberg": lambda f, x, g, h, **o: solve.newton(f, x, jac=g, hess=h, damping="levenberg", **o),
    "hessp": lambda f, x, g, h, **o: solve.newton(f, x, jac=g, hessp=lambda p, v: h(p) @ v, **o),
    "hess by differences": lambda f, x, g, h, **o: solve.newton(f, x, jac=g, **o),
}


GRADIENTS: dict[str, Callable[..., solve.Result]] = {
    **{
        f"cg {beta}": lambda f, x, g, h, beta=beta, **o: solve.conjugate_gradient(f, x, jac=g, beta=beta, **o)
        for beta in ("hz", "pr+", "fr", "hs", "dy")
    },
    "sd bb": lambda f, x, g, h, **o: solve.steepest_descent(f, x, jac=g, line_search="bb", **o),
}


SLOW = {
    "sd wolfe": lambda f, x, g, h, **o: solve.steepest_descent(f, x, jac=g, **o),
    "sd exact": lambda f, x, g, h, **o: solve.steepest_descent(f, x, jac=g, line_search="exact", **o),
}


SOLVERS = NEWTONS | GRADIENTS | SLOW


# Least squares


T = np.linspace(0, 4, 40)


def decay(p: Array) -> Array:
    return p[0] * np.exp(-p[1] * T) + p[2]


def decay_jacobian(p: Array) -> Array:
    e = np.exp(-p[1] * T)
    return np.stack([e, -p[0] * T * e, np.ones_like(T)], axis=1)


TRUTH = np.array([2.5, 1.3, 0.5])


NOISY = decay(TRUTH) + 0.05 * np.random.default_rng(7).normal(size=40)


def gradient(x: Array) -> Array:
    return 2 * x


def hessian(x: Array) -> Array:
    return 2 * np.eye(len(x))


class Refused(Exception):
    pass


SOURCE = """
#include <math.h>
#define REAL %s
REAL value(int n, const REAL *x, void *user) {
    REAL s = user ? *(REAL *)user : 0;
    for (int i = 0; i + 1 < n; ++i) s += 100 * (x[i+1]-x[i]*x[i]) * (x[i+1]-x[i]*x[i]) + (1-x[i]) * (1-x[i]);
    return s;
}
void gradient(int n, const REAL *x, REAL *g, void *user) {
    for (int i = 0; i < n; ++i) g[i] = 0;
    for (int i = 0; i + 1 < n; ++i) {
        REAL t = x[i+1] - x[i]*x[i];
        g[i] += -400 * x[i] * t - 2 * (1 - x[i]);
        g[i+1] += 200 * t;
    }
}
void hessian(int n, const REAL *x, REAL *h, void *user) {
    for (int i = 0; i < n * n; ++i) h[i] = 0;
    for (int i = 0; i + 1 < n; ++i) {
        h[i*n+i] += 1200 * x[i]*x[i] - 400 * x[i+1] + 2;
        h[i*n+i+1] = h[(i+1)*n+i] = -400 * x[i];
        h[(i+1)*n+i+1] += 200;
    }
}
void product(int n, const REAL *x, const REAL *v, REAL *hv, void *user) {
    for (int i = 0; i < n; ++i) hv[i] = 0;
    for (int i = 0; i + 1 < n; ++i) {
        hv[i] += (1200 * x[i]*x[i] - 400 * x[i+1] + 2) * v[i] - 400 * x[i] * v[i+1];
        hv[i+1] += -400 * x[i] * v[i] + 200 * v[i+1];
    }
}
void residuals(int m, int n, const REAL *x, REAL *r, void *user) {
    for (int i = 0; i < m; ++i) r[i] = x[0] * exp(-x[1] * i / 10.0) - 2 * exp(-i * 0.13);
}
void jacobian(int m, int n, const REAL *x, REAL *j, void *user) {
    for (int i = 0; i < m; ++i) {
        j[i*n] = exp(-x[1] * i / 10.0);
        j[i*n+1] = -x[0] * i / 10.0 * j[i*n];
    }
}
"""


@pytest.fixture(scope="module", params=["double", "float"], name="library")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import shutil

    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "f.c").write_text(SOURCE % request.param)
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "f.c", "-o", "f.so", "-lm"], cwd=folder, check=True)
    loaded = ctypes.CDLL(str(folder / "f.so"))
    real = ctypes.c_double if request.param == "double" else ctypes.c_float
    p, i, v = ctypes.POINTER(real), ctypes.c_int, ctypes.c_void_p
    for name, arguments in {
        "value": [i, p, v],
        "gradient": [i, p, p, v],
        "hessian": [i, p, p, v],
        "product": [i, p, p, p, v],
        "residuals": [i, i, p, p, v],
        "jacobian": [i, i, p, p, v],
    }.items():
        getattr(loaded, name).argtypes = arguments
        getattr(loaded, name).restype = real if name == "value" else None
    loaded.dtype = np.float64 if request.param == "double" else np.float32
    return loaded
