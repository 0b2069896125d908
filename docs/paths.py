"""What the interactive page needs of the registry, written beside its scripts when the pages are built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import adaptk

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


def write(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        path = Path(app.outdir) / "_static" / "paths" / "registry.js"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(registry_script(), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", write)
    return {"version": adaptk.__version__, "parallel_read_safe": True}
