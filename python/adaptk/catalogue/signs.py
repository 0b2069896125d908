"""Rules that step by a sign."""

from __future__ import annotations

from typing import Any

from adaptk._trace import sign
from adaptk.catalogue._entry import average, entry


@entry("SignSGD", formula="p -= lr*sign(g)", source="Bernstein et al. 2018", lr=1e-3, decoupled=True)
def signsgd(p: Any, g: Any, h: Any, t: Any) -> Any:
    """Steps by the sign of the gradient."""
    return p - h.lr * sign(g)


@entry("Tiger", formula="m = beta*m + (1 - beta)*g;  p -= lr*sign(m)", source="Su 2023", name="tiger",
       states={"exp_avg": 0.0}, lr=1e-3, beta=0.965, weight_decay=0.01, decoupled=True, ranges={"beta": "[0, 1)"},
       meanings={"beta": "decay of the momentum"})  # fmt: skip
@entry("Signum", formula="m = beta*m + (1 - beta)*g;  p -= lr*sign(m)", source="Bernstein et al. 2018",
       states={"exp_avg": 0.0}, lr=1e-3, beta=0.9, decoupled=True, ranges={"beta": "[0, 1)"},
       meanings={"beta": "decay of the momentum"})  # fmt: skip
def signum(p: Any, g: Any, exp_avg: Any, h: Any, t: Any) -> Any:
    """Steps by the sign of a momentum."""
    m = average(exp_avg, g, h.beta)
    return p - h.lr * sign(m), m
