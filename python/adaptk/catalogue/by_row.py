"""Rules that keep one number for each row or column of a tensor."""

from __future__ import annotations

from typing import Any

from adaptk._trace import max as largest
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
        "beta2_decay": "power of the step number that is the weight of new squares",
        "eps1": "added to squares; with floor, their lower bound",
        "eps2": "lower bound of a tensor's root mean square",
        "clip_threshold": "upper bound of an update's root mean square",
        "scale_parameter": "multiply the step by the tensor's root mean square",
        "relative_step": "use min(lr, 1/sqrt(t)) instead of lr",
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


def averages(row: Any, col: Any, new: Any, beta: Any, t: Any) -> tuple[Any, Any]:
    """The averages of the means of rows and columns. In a vector each element is a column."""
    of_rows = average(row, mean(new, over="rows"), beta)
    return where(shape_of(t, "is_vector"), row, of_rows), average(col, mean(new, over="columns"), beta)


def inverse_root(row: Any, col: Any, t: Any, least: Any = 0.0) -> Any:
    """1/sqrt(row*col/mean(row)); for a vector 1/sqrt(col)."""
    share = where(shape_of(t, "is_vector"), 1.0, row / maximum(mean(row, over="matrix"), least))
    return 1 / sqrt(share) * (1 / sqrt(col))


def adafactor_step(p: Any, g: Any, row: Any, col: Any, h: Any, t: Any) -> tuple[Any, Any, Any]:
    """The step of the param, and the new averages."""
    floor = h.floor != 0
    square = g * g + where(floor, 0.0, h.eps1)
    row, col = averages(row, col, square, 1 - t**h.beta2_decay, t)
    root = minimum(inverse_root(row, col, t, where(floor, h.eps1, 0.0)), where(floor, 1 / h.eps1, float("inf")))
    u = root * g
    u = 1 / maximum(1.0, rms(u) / h.clip_threshold) * u
    # Relative to the size of the tensor, from the param before weight decay.
    size = where(h.relative_step != 0, minimum(h.lr, 1 / sqrt(t)), h.lr)
    return where(h.scale_parameter != 0, maximum(h.eps2, rms(stored(p))), 1.0) * size * u, row, col


@entry("Adafactor", formula=_FORMULA + "p -= max(eps2, rms(p))*min(lr, 1/sqrt(t))*u",
       states=_FACTORS, **_ADAFACTOR)  # fmt: skip
def adafactor(p: Any, g: Any, exp_avg_sq_row: Any, exp_avg_sq_col: Any, h: Any, t: Any) -> Any:
    """Second moments from the means of rows and columns, and steps relative to the tensor."""
    step, row, col = adafactor_step(p, g, exp_avg_sq_row, exp_avg_sq_col, h, t)
    return p - step, row, col


@entry("AdafactorMomentum",
       formula=_FORMULA + "m = beta1*m + (1 - beta1)*max(eps2, rms(p))*min(lr, 1/sqrt(t))*u\np -= m",
       states={"exp_avg": 0.0, **_FACTORS}, beta1=0.9, **_ADAFACTOR)  # fmt: skip
def adafactor_momentum(p: Any, g: Any, exp_avg: Any, exp_avg_sq_row: Any, exp_avg_sq_col: Any, h: Any, t: Any) -> Any:
    """Adafactor with a moving average of its steps."""
    step, row, col = adafactor_step(p, g, exp_avg_sq_row, exp_avg_sq_col, h, t)
    m = average(exp_avg, step, h.beta1)
    return p - m, m, row, col


@entry("CAME",
       formula="v = beta2*v + (1 - beta2)*(g^2 + eps1) of matrices row means r and column means c, v = r*c/mean(r)\n"
       "u = g/sqrt(v);  u /= max(1, rms(u)/clip_threshold);  m = beta1*m + (1 - beta1)*u\n"
       "s = beta3*s + (1 - beta3)*((u - m)^2 + eps2) in the same way;  p -= lr*m/sqrt(s)\n"
       "vectors: v as it is;  p -= lr*m",
       source="Luo et al. 2023",
       states={"exp_avg": 0.0, **_FACTORS, "exp_avg_res_row": 0.0, "exp_avg_res_col": 0.0},
       per={**_PER, "exp_avg_res_row": "row", "exp_avg_res_col": "column"},
       nonnegative=[*_FACTORS, "exp_avg_res_row", "exp_avg_res_col"], decoupled=True,
       lr=2e-4, beta1=0.9, beta2=0.999, beta3=0.9999, eps1=1e-30, eps2=1e-16, clip_threshold=1.0,
       ranges={"eps1": "[0, inf)", "eps2": "[0, inf)", "clip_threshold": "(0, inf)"},
       meanings={"beta3": "decay of the residuals' average", "eps1": "added to squares",
                 "eps2": "added to squared residuals",
                 "clip_threshold": "upper bound of an update's root mean square"})  # fmt: skip
def came(
    p: Any, g: Any, exp_avg: Any, exp_avg_sq_row: Any, exp_avg_sq_col: Any, exp_avg_res_row: Any,
    exp_avg_res_col: Any, h: Any, t: Any,
) -> Any:  # fmt: skip
    """Averaged updates of Adafactor, divided by the root of their mean squared deviation from the average."""
    vector = shape_of(t, "is_vector")
    row, col = averages(exp_avg_sq_row, exp_avg_sq_col, g * g + h.eps1, h.beta2, t)
    u = inverse_root(row, col, t) * g
    u = 1 / maximum(1.0, rms(u) / h.clip_threshold) * u
    m = average(exp_avg, u, h.beta1)
    away = u - m
    res_row, res_col = averages(exp_avg_res_row, exp_avg_res_col, away * away + h.eps2, h.beta3, t)
    # Vectors do not use these averages.
    res_col = where(vector, exp_avg_res_col, res_col)
    trusted = where(vector, 1.0, inverse_root(res_row, res_col, t))
    return p - h.lr * trusted * m, m, row, col, res_row, res_col


_COVER: dict[str, float | str] = {"largest_row": 0.0, "largest_col": 0.0}
_SM3: dict[str, Any] = {
    "source": "Anil et al. 2019, SM3-II",
    "nonnegative": list(_COVER),
    "per": {"largest_row": "row", "largest_col": "column"},
    "lr": 0.1,
    "eps": 1e-30,
    "meanings": {"eps": "small constant under the root"},
}
_COVERED = "v = min(r, c) + g^2;  r = max(v) of the row, c = max(v) of the column;  u = g/sqrt(v + eps)\n"


def sm3_update(g: Any, row: Any, col: Any, h: Any) -> tuple[Any, Any, Any]:
    v = minimum(row, col) + g * g
    return 1 / sqrt(v + h.eps) * g, largest(v, over="rows"), largest(v, over="columns")


@entry("SM3", formula=_COVERED + "p -= lr*u", states=_COVER, **_SM3)
def sm3(p: Any, g: Any, largest_row: Any, largest_col: Any, h: Any, t: Any) -> Any:
    """AdaGrad that stores only the largest sum of each row and column."""
    u, row, col = sm3_update(g, largest_row, largest_col, h)
    return p - h.lr * u, row, col


@entry("SM3Momentum", formula=_COVERED + "m = momentum*m + (1 - momentum)*u;  p -= lr*m",
       states={"exp_avg": 0.0, **_COVER}, momentum=0.9, **_SM3)  # fmt: skip
def sm3_momentum(p: Any, g: Any, exp_avg: Any, largest_row: Any, largest_col: Any, h: Any, t: Any) -> Any:
    """SM3 with a moving average of its updates."""
    u, row, col = sm3_update(g, largest_row, largest_col, h)
    m = average(exp_avg, u, h.momentum)
    return p - h.lr * m, m, row, col


_MINI: dict[str, Any] = {
    "source": "Zhang et al. 2024",
    "states": {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    "nonnegative": ["exp_avg_sq"],
    "decoupled": True,
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
}
_MEANS = (
    "m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*mean(g^2), the mean over the {}\n"
    "p -= lr/(1 - beta1^t)*m/(sqrt(v/(1 - beta2^t)) + eps)"
)


def mini(p: Any, g: Any, m: Any, v: Any, square: Any, h: Any, t: Any) -> tuple[Any, Any, Any]:
    m = average(m, g, h.beta1)
    v = average(v, square, h.beta2)
    return p - h.lr / (1 - h.beta1**t) / (sqrt(v) * (1 / sqrt(1 - h.beta2**t)) + h.eps) * m, m, v


@entry("AdamMini", formula=_MEANS.format("row"), per={"exp_avg_sq": "row"}, **_MINI)
def adam_mini(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Adam with one second moment for each row: each output of a layer, and each vector."""
    return mini(p, g, exp_avg, exp_avg_sq, mean(g * g, over="rows"), h, t)


@entry("AdamMiniTensor", formula=_MEANS.format("tensor"), per={"exp_avg_sq": "tensor"}, **_MINI)
def adam_mini_tensor(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Adam with one second moment for each tensor."""
    return mini(p, g, exp_avg, exp_avg_sq, mean(g * g), h, t)
