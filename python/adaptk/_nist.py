"""NIST's nonlinear regression sets: data, models with exact Jacobians, and how many certified digits a fit reaches.

The files are NIST/ITL's Statistical Reference Datasets as published (``data/nist.zip``), each with two starts and
certified parameters and standard deviations to 11 digits.
"""

from __future__ import annotations

import importlib.resources
import io
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Model: TypeAlias = Callable[[Array, Array], tuple[Array, list[Array]]]

DIGITS = 11  # certified digits


@dataclass(frozen=True)
class Problem:
    """One data set."""

    name: str
    level: str  # of difficulty: "Lower", "Average", "Higher"
    starts: tuple[Array, Array]
    certified: Array
    deviations: Array
    sum_of_squares: float
    y: Array
    x: Array  # (m,), or (predictors, m)

    def residuals(self, b: Array) -> Array:
        return MODELS[self.name](b, self.x)[0] - self.y

    def jacobian(self, b: Array) -> Array:
        return np.stack(MODELS[self.name](b, self.x)[1], axis=1)


def digits(got: Any, certified: Array) -> float:
    """The log relative error: correct digits of the worst element, at most 11; 0 for NaN."""
    got = np.asarray(got, dtype=np.float64)
    if not np.isfinite(got).all():
        return 0.0
    error = float(np.max(np.abs(got - certified) / np.abs(certified)))
    return float(DIGITS) if error == 0 else max(0.0, min(float(DIGITS), -math.log10(error)))


# Each model returns its values and their derivatives with respect to b1, b2, ...


def _exponential_rise(b: Array, x: Array) -> tuple[Array, list[Array]]:
    e = np.exp(-b[1] * x)
    return b[0] * (1 - e), [1 - e, b[0] * x * e]


def _misra1b(b: Array, x: Array) -> tuple[Array, list[Array]]:
    u = 1 + b[1] * x / 2
    return b[0] * (1 - u**-2), [1 - u**-2, b[0] * x * u**-3]


def _misra1c(b: Array, x: Array) -> tuple[Array, list[Array]]:
    u = 1 + 2 * b[1] * x
    return b[0] * (1 - u**-0.5), [1 - u**-0.5, b[0] * x * u**-1.5]


def _misra1d(b: Array, x: Array) -> tuple[Array, list[Array]]:
    u = 1 + b[1] * x
    return b[0] * b[1] * x / u, [b[1] * x / u, b[0] * x / u**2]


def _bennett5(b: Array, x: Array) -> tuple[Array, list[Array]]:
    u = b[1] + x
    p = u ** (-1 / b[2])
    return b[0] * p, [p, -b[0] / b[2] * p / u, b[0] * p * np.log(u) / b[2] ** 2]


def _chwirut(b: Array, x: Array) -> tuple[Array, list[Array]]:
    u = b[1] + b[2] * x
    f = np.exp(-b[0] * x) / u
    return f, [-x * f, -f / u, -x * f / u]


def _danwood(b: Array, x: Array) -> tuple[Array, list[Array]]:
    p = x ** b[1]
    return b[0] * p, [p, b[0] * p * np.log(x)]


def _enso(b: Array, x: Array) -> tuple[Array, list[Array]]:
    f = b[0] + np.zeros_like(x)
    derivatives = [np.ones_like(x)]
    year = 2 * np.pi * x / 12
    f = f + b[1] * np.cos(year) + b[2] * np.sin(year)
    derivatives += [np.cos(year), np.sin(year)]
    for period, cosine, sine in ((3, 4, 5), (6, 7, 8)):
        a = 2 * np.pi * x / b[period]
        c, s = np.cos(a), np.sin(a)
        f = f + b[cosine] * c + b[sine] * s
        derivatives += [(b[cosine] * s - b[sine] * c) * a / b[period], c, s]
    return f, derivatives


def _eckerle4(b: Array, x: Array) -> tuple[Array, list[Array]]:
    z = (x - b[2]) / b[1]
    e = np.exp(-0.5 * z * z)
    f = b[0] / b[1] * e
    return f, [e / b[1], f / b[1] * (z * z - 1), f * z / b[1]]


def _gauss(b: Array, x: Array) -> tuple[Array, list[Array]]:
    e = np.exp(-b[1] * x)
    f = b[0] * e
    derivatives = [e, -x * f]
    for k in (2, 5):
        z = (x - b[k + 1]) / b[k + 2]
        g = np.exp(-z * z)
        h = b[k] * g
        f = f + h
        derivatives += [g, h * 2 * z / b[k + 2], h * 2 * z * z / b[k + 2]]
    return f, derivatives


def _rational(above: int, below: int) -> Model:
    def model(b: Array, x: Array) -> tuple[Array, list[Array]]:
        powers = [x**k for k in range(max(above, below) + 1)]
        p = sum(b[k] * powers[k] for k in range(above + 1))
        q = 1 + sum(b[above + k] * powers[k] for k in range(1, below + 1))
        f = p / q
        return f, [powers[k] / q for k in range(above + 1)] + [-f * powers[k] / q for k in range(1, below + 1)]

    return model


def _lanczos(b: Array, x: Array) -> tuple[Array, list[Array]]:
    f = np.zeros_like(x)
    derivatives = []
    for k in (0, 2, 4):
        e = np.exp(-b[k + 1] * x)
        f = f + b[k] * e
        derivatives += [e, -b[k] * x * e]
    return f, derivatives


def _mgh09(b: Array, x: Array) -> tuple[Array, list[Array]]:
    p, q = x * x + x * b[1], x * x + x * b[2] + b[3]
    f = b[0] * p / q
    return f, [p / q, b[0] * x / q, -f * x / q, -f / q]


def _mgh10(b: Array, x: Array) -> tuple[Array, list[Array]]:
    u = x + b[2]
    e = np.exp(b[1] / u)
    f = b[0] * e
    return f, [e, f / u, -f * b[1] / u**2]


def _mgh17(b: Array, x: Array) -> tuple[Array, list[Array]]:
    u, v = np.exp(-x * b[3]), np.exp(-x * b[4])
    return b[0] + b[1] * u + b[2] * v, [np.ones_like(x), u, v, -b[1] * x * u, -b[2] * x * v]


def _nelson(b: Array, x: Array) -> tuple[Array, list[Array]]:
    e = np.exp(-b[2] * x[1])
    return b[0] - b[1] * x[0] * e, [np.ones_like(e), -x[0] * e, b[1] * x[0] * x[1] * e]


def _rat42(b: Array, x: Array) -> tuple[Array, list[Array]]:
    e = np.exp(b[1] - b[2] * x)
    u = 1 + e
    return b[0] / u, [1 / u, -b[0] * e / u**2, b[0] * x * e / u**2]


def _rat43(b: Array, x: Array) -> tuple[Array, list[Array]]:
    e = np.exp(b[1] - b[2] * x)
    u = 1 + e
    p = u ** (-1 / b[3])
    slope = -b[0] / b[3] * p / u * e
    return b[0] * p, [p, slope, -slope * x, b[0] * p * np.log(u) / b[3] ** 2]


def _roszman1(b: Array, x: Array) -> tuple[Array, list[Array]]:
    u = x - b[3]
    d = np.pi * (u * u + b[2] * b[2])
    return b[0] - b[1] * x - np.arctan(b[2] / u) / np.pi, [np.ones_like(x), -x, -u / d, -b[2] / d]


MODELS: dict[str, Model] = {
    "Bennett5": _bennett5,
    "BoxBOD": _exponential_rise,
    "Chwirut1": _chwirut,
    "Chwirut2": _chwirut,
    "DanWood": _danwood,
    "ENSO": _enso,
    "Eckerle4": _eckerle4,
    "Gauss1": _gauss,
    "Gauss2": _gauss,
    "Gauss3": _gauss,
    "Hahn1": _rational(3, 3),
    "Kirby2": _rational(2, 2),
    "Lanczos1": _lanczos,
    "Lanczos2": _lanczos,
    "Lanczos3": _lanczos,
    "MGH09": _mgh09,
    "MGH10": _mgh10,
    "MGH17": _mgh17,
    "Misra1a": _exponential_rise,
    "Misra1b": _misra1b,
    "Misra1c": _misra1c,
    "Misra1d": _misra1d,
    "Nelson": _nelson,
    "Rat42": _rat42,
    "Rat43": _rat43,
    "Roszman1": _roszman1,
    "Thurber": _rational(3, 3),
}


def parse(text: str) -> Problem:
    """A file as NIST publishes it."""
    lines = text.splitlines()
    name = re.search(r"Dataset Name:\s+(\w+)", text)
    level = re.search(r"(Lower|Average|Higher) Level of Difficulty", text)
    square = re.search(r"Residual Sum of Squares:\s+(\S+)", text)
    assert name
    assert level
    assert square
    rows = [[float(v) for v in line.split("=")[1].split()] for line in lines if re.match(r"\s+b\d+ =\s", line)]
    parameters = np.array([row for row in rows if len(row) == 4]).T
    # The same word is also the heading of the description.
    begin = max(i for i, line in enumerate(lines) if line.startswith("Data:")) + 1
    table = np.array([[float(v) for v in line.split()] for line in lines[begin:] if line.strip()]).T
    y, x = table[0], table[1:]
    return Problem(
        name=name[1],
        level=level[1],
        starts=(parameters[0], parameters[1]),
        certified=parameters[2],
        deviations=parameters[3],
        sum_of_squares=float(square[1]),
        y=np.log(y) if name[1] == "Nelson" else y,
        x=x[0] if len(x) == 1 else x,
    )


@lru_cache
def problems() -> dict[str, Problem]:
    """All 27 sets by name."""
    packed = importlib.resources.files("adaptk") / "data" / "nist.zip"
    with packed.open("rb") as file, zipfile.ZipFile(io.BytesIO(file.read())) as archive:
        found = [parse(archive.read(name).decode("ascii")) for name in sorted(archive.namelist())]
    return {p.name: p for p in found}


def _ours(p: Problem, start: Array) -> tuple[float, float, int]:
    from adaptk import solve

    with np.errstate(all="ignore"):
        r = solve.levenberg_marquardt(p.residuals, start, jac=p.jacobian)
    return (digits(r.x, p.certified) if r.success else 0.0), digits(r.x_std, p.deviations), r.nfev


def _scipy(p: Problem, start: Array) -> float:
    from scipy.optimize import least_squares

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            r = least_squares(p.residuals, start, jac=p.jacobian, method="lm")
        except ValueError:  # a Jacobian that is not finite
            return 0.0
    return digits(r.x, p.certified) if r.success else 0.0


@dataclass(frozen=True)
class Fit:
    """The result of the two runs of one set: correct digits of the parameters and of their standard deviations."""

    problem: Problem
    digits: tuple[float, float]
    deviations: float
    evaluations: tuple[int, int]
    scipy: tuple[float, float] | None  # digits of SciPy's runs, if it is installed


def fits(peer: bool = False) -> list[Fit]:
    """Fit all 27 sets from both starts; with `peer` also by SciPy, if it is installed."""
    try:
        import scipy
    except ImportError:
        scipy = None
    found = []
    for p in problems().values():
        (d1, s1, n1), (d2, s2, n2) = (_ours(p, start) for start in p.starts)
        theirs = (_scipy(p, p.starts[0]), _scipy(p, p.starts[1])) if peer and scipy is not None else None
        found.append(Fit(p, (d1, d2), min(s1, s2), (n1, n2), theirs))
    return found


def summary(found: Sequence[Fit]) -> str:
    """One sentence on all fits."""
    mine = [d for fit in found for d in fit.digits]
    text = (
        f"{sum(d >= 10 for d in mine)} of {len(mine)} least-squares fits of NIST's reference sets reach 10 or more of "
        f"the {DIGITS} certified digits"
    )
    theirs = [d for fit in found for d in fit.scipy or ()]
    if theirs:
        text += f"; SciPy's least_squares(method='lm') with the same Jacobians: {sum(d >= 10 for d in theirs)}"
    return text + "."


def rows(found: Sequence[Fit]) -> tuple[list[str], list[list[str]]]:
    """A table with its header: the correct digits of each fit."""
    head = ["set", "difficulty", "b", "start 1", "start 2", "deviations", "evaluations"]
    peer = any(fit.scipy is not None for fit in found)
    lines = []
    for fit in found:
        row = [fit.problem.name, fit.problem.level.lower(), str(len(fit.problem.certified))]
        row += [*(f"{d:.1f}" for d in fit.digits), f"{fit.deviations:.1f}", "+".join(map(str, fit.evaluations))]
        lines.append([*row, *(f"{d:.1f}" for d in fit.scipy or ())])
    return [*head, "SciPy 1", "SciPy 2"] if peer else head, lines
