"""Rules that step by a sign."""

from __future__ import annotations

from typing import Any

from adaptk._trace import maximum, minimum, sign, where
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


@entry("RPropDelayed",
       formula="s *= eta_plus if g*u > 0;  s *= eta_minus if g*u < 0, then clip(s, step_min, step_max)\n"
       "p -= u where g*u >= 0;  u = sign(g)*s where g*u >= 0, else 0",
       source="optax.rprop, after Riedmiller and Braun 1993", states={"prev_update": 0.0, "step_size": "lr"},
       nonnegative=["step_size"], lr=1e-2, eta_minus=0.5, eta_plus=1.2, step_min=1e-6, step_max=50.0,
       ranges={"eta_minus": "(0, 1)", "eta_plus": "(1, inf)", "step_min": "[0, inf)", "step_max": "[0, inf)"},
       meanings={"lr": "initial step size of every parameter",
                 "eta_minus": "factor of the step if the gradient is against the last step",
                 "eta_plus": "factor of the step otherwise", "step_min": "smallest step size",
                 "step_max": "largest step size"})  # fmt: skip
def rprop_delayed(p: Any, g: Any, prev_update: Any, step_size: Any, h: Any, t: Any) -> Any:
    """Resilient propagation with steps one iteration later, unless the next gradient opposes them, as in optax."""
    same = g * prev_update
    size = step_size * where(same < 0, h.eta_minus, h.eta_plus)
    size = where(same == 0, step_size, minimum(maximum(size, h.step_min), h.step_max))
    against = same < 0
    return p - where(against, 0.0, prev_update), where(against, 0.0, sign(g) * size), size
