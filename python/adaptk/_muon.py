"""The parts of Muon that do not depend on a framework: orthogonalization, step scale, checks of options.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
Scalable for LLM Training" (Moonlight).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

COEFFICIENTS = (3.4445, -4.775, 2.0315)
DTYPES = ("bfloat16", "float16", "float32", "float64")
ADJUSTMENTS = ("original", "match_rms_adamw")
#: Options other than the learning rate, with the defaults of ``torch.optim.Muon``.
DEFAULTS: Mapping[str, Any] = {
    "weight_decay": 0.1,
    "momentum": 0.95,
    "nesterov": True,
    "ns_coefficients": COEFFICIENTS,
    "eps": 1e-7,
    "ns_steps": 5,
    "adjust_lr_fn": None,
}


def _multiply_add(beta: float, x: Any, alpha: float, a: Any, b: Any) -> Any:
    return beta * x + alpha * (a @ b)


def _norm(x: Any) -> Any:
    # Scaled to at most 1, because squares of elements may overflow or underflow.
    largest = abs(x).max()
    unit = largest + (largest == 0)
    return unit * ((x / unit) ** 2).sum() ** 0.5


def orthogonalize(
    x: Any,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    steps: int = 5,
    eps: float = 1e-7,
    norm: Callable[[Any], Any] = _norm,
    multiply_add: Callable[[float, Any, float, Any, Any], Any] = _multiply_add,
) -> Any:
    """Bring the singular values of a matrix close to 1, by Newton-Schulz iteration in its own dtype.

    With ``x = U S V^T`` each step makes ``S`` to ``a S + b S^3 + c S^5``. The default coefficients have a steep slope
    at 0, so that few steps suffice, and do not converge: singular values end between about 0.7 and 1.2.

    Parameters
    ----------
    x : array of shape (m, n)
        Of NumPy, PyTorch or JAX.
    coefficients, steps, eps
        a, b and c; the number of iterations; a lower bound of the norm that `x` is divided by.
    norm, multiply_add : callable
        The Frobenius norm, and ``beta * x + alpha * (a @ b)``, for frameworks that have them as functions.
    """
    if 0 in x.shape:
        return x
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    y = x.T if tall else x
    length = norm(y)  # at least the largest singular value
    y = y / (length + (eps - length) * (length < eps))
    for _ in range(steps):
        gram = y @ y.T
        y = multiply_add(a, y, 1.0, multiply_add(b, gram, c, gram, gram), y)
    return y.T if tall else y


def adjustment(how: str | None, rows: int, columns: int) -> float:
    """The factor of the learning rate of a matrix."""
    if how == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns)) if columns else 1.0


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options that the kernels do not check."""
    if not isinstance(options["nesterov"], bool):
        raise TypeError(f"nesterov: expected a bool, got {type(options['nesterov']).__name__}")
    coefficients = options["ns_coefficients"]
    if isinstance(coefficients, str) or not hasattr(coefficients, "__len__"):
        raise TypeError(f"ns_coefficients: expected three numbers, got {type(coefficients).__name__}")
    if len(coefficients) != 3:
        raise ValueError(f"ns_coefficients: expected three numbers, got {len(coefficients)}")
    for i, x in enumerate(coefficients):
        if not isinstance(x, Real) or isinstance(x, bool):
            raise TypeError(f"ns_coefficients[{i}]: expected a number, got {type(x).__name__}")
        if not math.isfinite(x):
            raise ValueError(f"ns_coefficients[{i}]: {x!r} is not finite")
    for name, end in (("momentum", 1.0), ("eps", math.inf)):
        value = options[name]
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
        if not 0.0 <= float(value) < end:
            raise ValueError(f"{name}: {value!r} is not in [0, {end:g})")
    steps = options["ns_steps"]
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"ns_steps: expected an int, got {type(steps).__name__}")
    if not 0 <= steps < 100:
        raise ValueError(f"ns_steps: {steps} is not in [0, 100)")
    if options["adjust_lr_fn"] is not None and options["adjust_lr_fn"] not in ADJUSTMENTS:
        raise ValueError(f"adjust_lr_fn: {options['adjust_lr_fn']!r} is not one of {', '.join(ADJUSTMENTS)}, None")
    if options["ns_dtype"] not in DTYPES:
        raise ValueError(f"ns_dtype: {options['ns_dtype']!r} is not one of {', '.join(DTYPES)}")
