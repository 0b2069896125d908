"""Rules that keep one number for each row or column of a tensor."""

from __future__ import annotations

from typing import Any

from adaptk._trace import maximum, mean, minimum, shape_of, sqrt, stored, where
from adaptk.catalogue._entry import average, entry

_FACTORS: dict[str, float | str] = {"exp_avg_sq_row": 0.0, "exp_avg_sq_col": 0.0}
_PER = {"exp_avg_sq_row": "row", "exp_avg_sq_col": "column"}
_ADAFACTOR: dict[str, Any] = {
    "source": "Shazeer, Stern 2018",
    "nonnegative": list(_FACTORS),
    "decoupled": True,
    "per": _PER,
    "lr": 0.01,
    "beta2_decay": -0.8,
    "eps1": 1e-30,
    "eps2": 1e-3,
    "clip_threshold": 1.0,
    "scale_parameter": True,
    "relative_step": True,
    "floor": False,
    "ranges": {"eps1": "[0, inf)", "eps2": "[0, inf)", "clip_threshold": "(0, inf)"},
    "meanings": {
        "lr": "the largest relative step; without relative_step the step itself",
        "beta2_decay": "power of the step's number that is the weight of new squares",
        "eps1": "what is added to squares; with floor their lower bound",
        "eps2": "lower bound of a tensor's root mean square",
        "clip_threshold": "upper bound of an update's root mean square",
        "scale_parameter": "multiply the step by the tensor's root mean square",
        "relative_step": "take min(lr, 1/sqrt(t)) in the place of lr",
        "floor": "bound second moments from below, as torch.optim.Adafactor does, and add nothing to squares",
    },
}
_FORMULA = (
    "v = beta*v + (1 - beta)*(g^2 + eps1), beta = 1 - t^beta2_decay; of matrices row means r and column means c,\n"
    "v = r*c/mean(r);  u = g/sqrt(v);  u /= max(1, rms(u)/clip_threshold)\n"
)


def rms(x: Any) -> Any:
    """The root mean square of a tensor."""
    return sqrt(mean(x * x))


def adafactor_update(g: Any, row: Any, col: Any, h: Any, t: Any) -> tuple[Any, Any, Any]:
    """The clipped update, and the new averages."""
    vector, floor = shape_of(t, "is_vector"), h.floor != 0
    beta = 1 - t**h.beta2_decay
    square = g * g + where(floor, 0.0, h.eps1)
    row = average(row, mean(square, over="rows"), beta)
    col = average(col, mean(square, over="columns"), beta)
    # A vector is one row: what stands in its columns is the whole second moment.
    least = where(floor, h.eps1, 0.0)
    share = where(vector, 1.0, row / maximum(mean(row, over="matrix"), least))
    root = minimum(1 / sqrt(share) * (1 / sqrt(col)), where(floor, 1 / h.eps1, float("inf")))
    u = root * g
    return 1 / maximum(1.0, rms(u) / h.clip_threshold) * u, row, col


def step_size(h: Any, t: Any) -> Any:
    """Relative to the tensor, by its param before any decay."""
    step = where(h.relative_step != 0, minimum(h.lr, 1 / sqrt(t)), h.lr)
    return where(h.scale_parameter != 0, maximum(h.eps2, rms(stored(t))), 1.0) * step


@entry("Adafactor", formula=_FORMULA + "p -= max(eps2, rms(p))*min(lr, 1/sqrt(t))*u",
       states=_FACTORS, **_ADAFACTOR)  # fmt: skip
def adafactor(p: Any, g: Any, exp_avg_sq_row: Any, exp_avg_sq_col: Any, h: Any, t: Any) -> Any:
    """Second moments from the means of rows and columns, and steps relative to the tensor."""
    u, row, col = adafactor_update(g, exp_avg_sq_row, exp_avg_sq_col, h, t)
    return p - step_size(h, t) * u, row, col
