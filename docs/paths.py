"""What the pages of paths need of the library, written beside their scripts when the pages are built."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import adaptk
import numpy as np
from adaptk._cli._compare import known_rules, rule_named, train
from adaptk._cli._problems import Task, surface

if TYPE_CHECKING:
    # The tests use registry_script() without Sphinx.
    from sphinx.application import Sphinx


def registry_script() -> str:
    """JavaScript that sets ``window.adaptkRegistry``: defaults, initial states and a summary for each rule."""
    table = {}
    for name, rule in adaptk.rules().items():
        initial = rule.initial_states()
        table[name] = {
            "summary": rule.summary,
            "hyperparameters": {h.name: h.default for h in rule.hyperparameters if h.name not in ("lr", "grad_scale")},
            "lr": rule.defaults("book")["lr"],
            # A state that starts as a hyperparameter has its name here; the page only knows lr.
            "states": [s.initial_from or initial[s.name] for s in rule.states],
            "lookahead": name == "rmsprop_nesterov",
        }
    # Infinity is JavaScript's name for it too.
    return f"(typeof window === 'undefined' ? globalThis : window).adaptkRegistry = {json.dumps(table)};\n"


def _beale(x: float, y: float) -> tuple[float, tuple[float, float]]:
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * y * y, 2.625 - x + x * y * y * y
    dx = 2 * (a * (y - 1) + b * (y * y - 1) + c * (y * y * y - 1))
    return a * a + b * b + c * c, (dx, 2 * x * (a + 2 * b * y + 3 * c * y * y))


def _rosenbrock(x: float, y: float) -> tuple[float, tuple[float, float]]:
    u = y - x * x
    return (1 - x) * (1 - x) + 100 * u * u, (-2 * (1 - x) - 400 * x * u, 200 * u)


def _himmelblau(x: float, y: float) -> tuple[float, tuple[float, float]]:
    a, b = x * x + y - 11, x + y * y - 7
    return a * a + b * b, (4 * x * a + 2 * b, 2 * a + 4 * y * b)


# The surfaces of rules.js: a start, and the value with its gradient. Values below 0 are of the saddle's minima.
SURFACES: dict[str, tuple[tuple[float, float], Callable[[float, float], tuple[float, tuple[float, float]]]]] = {
    "ravine": ((-4.0, 1.2), lambda x, y: ((x * x + 50 * y * y) / 2, (x, 50 * y))),
    "rosenbrock": ((-1.2, 1.0), _rosenbrock),
    "beale": ((1.0, 1.4), _beale),
    "saddle": ((1.8, 0.001), lambda x, y: (x * x / 2 + y * y * (y * y / 4 - 0.5), (x, y * y * y - y))),
    "himmelblau": ((-0.5, -0.8), _himmelblau),
}
STEPS, EVERY = 160, 2
RATES = tuple(10 ** (k / 3) for k in range(-12, 4))


def points_of(rule: adaptk.Rule, task: Task, rate: float) -> list[list[float]]:
    """Where a rule is after every few steps, until it is lost."""
    seen: list[Any] = []

    def loss(params: Any) -> float:
        seen.append(params[0].tolist())
        return task.loss(params)

    train(rule, Task(task.start, loss, task.gradient), STEPS, rate, STEPS // EVERY)
    return [[round(x, 4) for x in p] for p in seen if all(math.isfinite(x) and abs(x) < 1e4 for x in p)]


def runs_script(rules: list[str] | None = None, surfaces: list[str] | None = None) -> str:
    """JavaScript that sets ``window.adaptkRuns``: the path of each rule on each surface, at its best rate."""
    runs: dict[str, Any] = {}
    for name in surfaces or SURFACES:
        start, both = SURFACES[name]
        # Not 0 at the minimum, where a run would end.
        made = surface(start, lambda x, y, both=both: both(x, y)[0] + 1.0, lambda x, y, both=both: both(x, y)[1])
        task = made(0, STEPS)
        assert task is not None
        runs[name] = {}
        for rule in rules or known_rules():
            ends = [train(rule_named(rule), task, STEPS, rate, 1).final for rate in RATES]
            rate = RATES[int(np.argmin(ends))]
            runs[name][rule] = {"lr": float(f"{rate:.2g}"), "points": points_of(rule_named(rule), task, rate)}
    data = {"every": EVERY, "frames": STEPS // EVERY + 1, "runs": runs}
    return f"(typeof window === 'undefined' ? globalThis : window).adaptkRuns = {json.dumps(data)};\n"


def write(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir) / "_static" / "paths"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "registry.js").write_text(registry_script(), encoding="utf-8")
        (folder / "runs.js").write_text(runs_script(), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", write)
    return {"version": adaptk.__version__, "parallel_read_safe": True}
