"""Checks of numbers as arguments: errors name the argument and say what was expected."""

from __future__ import annotations

import math
import operator
from typing import SupportsFloat, SupportsIndex


def number(
    name: str,
    value: SupportsFloat,
    *,
    low: float = 0.0,
    high: float = math.inf,
    open_low: bool = False,
) -> float:
    """``value`` as a finite float in [low, high], or in (low, high] with ``open_low``."""
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    try:
        x = float(value)
    except TypeError as error:  # an array of several elements
        raise TypeError(f"{name} must be a number: {error}") from None
    if not (math.isfinite(x) and (x > low if open_low else x >= low) and x <= high):
        bounds = f" {'>' if open_low else '>='} {low:g}" if low > -math.inf else ""
        bounds += f" and <= {high:g}" if high < math.inf else ""
        raise ValueError(f"{name} must be a finite number{bounds}, got {value!r}")
    return x


def count(name: str, value: SupportsIndex, low: int) -> int:
    """``value`` as an int >= low."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    n = operator.index(value)
    if n < low:
        raise ValueError(f"{name} must be >= {low}, got {n}")
    return n
