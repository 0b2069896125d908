"""References for the tests of Muon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from adaptk._muon import COEFFICIENTS


def newton_schulz(x: np.ndarray[Any, Any], coefficients: Any = COEFFICIENTS, steps: int = 5) -> np.ndarray[Any, Any]:
    """The iteration applied to the singular values, by a decomposition."""
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    a, b, c = coefficients
    s = s / max(float(np.sqrt((s**2).sum())), 1e-7)
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return np.asarray((u * s) @ vt)


def oracle(start: Any, grads: list[Any], options: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Muon in float64, from the descriptions of Jordan and of Moonlight."""
    w = np.asarray(start, np.float64)
    m = np.zeros_like(w)
    lr, mu = options.get("lr", 1e-3), options.get("momentum", 0.95)
    rows, columns = w.shape[0], w[0].size
    ratio = np.sqrt(max(1, rows / columns))
    if options.get("adjust_lr_fn") == "match_rms_adamw":
        ratio = 0.2 * np.sqrt(max(rows, columns))
    for g in (np.asarray(x, np.float64) for x in grads):
        m = mu * m + (1 - mu) * g
        u = (1 - mu) * g + mu * m if options.get("nesterov", True) else m
        o = newton_schulz(
            u.reshape(rows, columns), options.get("ns_coefficients", COEFFICIENTS), options.get("ns_steps", 5)
        )
        w = w - lr * options.get("weight_decay", 0.1) * w - lr * ratio * o.reshape(w.shape)
    return w


OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr": 0.1, "nesterov": False, "momentum": 0.5, "weight_decay": 0.0},
    {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.5},
    {"lr": 0.1, "adjust_lr_fn": "original", "ns_steps": 8, "ns_coefficients": (2.0, -1.5, 0.5), "momentum": 0.0},
]
