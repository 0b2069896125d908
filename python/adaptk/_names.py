"""Suggestions for names that are misspelt or another library's, and what modules show of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

# What PyTorch, Keras, optax and others call things.
_FOREIGN: dict[str, tuple[str, ...]] = {
    "alpha": ("rho",),
    "b1": ("beta1",),
    "b2": ("beta2",),
    "b3": ("beta3",),
    "betas": ("beta1", "beta2", "beta3"),
    "clipnorm": ("clip_norm",),
    "decay": ("rho",),
    "eps": ("eps_in", "eps_out"),
    "epsilon": ("eps",),
    "etas": ("eta_minus", "eta_plus"),
    "global_clipnorm": ("clip_norm",),
    "learning_rate": ("lr",),
    "lr": ("learning_rate",),
    "max_grad_norm": ("clip_norm",),
    "max_norm": ("clip_norm",),
    "step_sizes": ("step_min", "step_max"),
    "wd": ("weight_decay",),
}


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


def hint(name: object, known: Iterable[str]) -> str:
    """`` (did you mean 'beta1'?)``, or nothing if no known name is like this one."""
    if not isinstance(name, str):
        return ""
    names = list(known)
    found = [n for n in _FOREIGN.get(name, ()) if n in names]
    if not found:
        found = [n for n in names if _plain(n) == _plain(name)][:1]
    if not found:
        by_plain = {_plain(n): n for n in names}
        found = [by_plain[m] for m in get_close_matches(_plain(name), by_plain, n=1, cutoff=0.7)]
    return f" (did you mean {', '.join(map(repr, found))}?)" if found else ""


def no_attribute(module: str, name: str, known: Iterable[str]) -> AttributeError:
    """The error of a module that does not have a name."""
    # Python and others look for names with underscores that need not be there.
    found = "" if name.startswith("_") else hint(name, known)
    return AttributeError(f"module {module!r} has no attribute {name!r}{found}")


def face(module: str, names: Iterable[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a module whose users may call these names."""
    public = sorted(names)

    def __getattr__(name: str) -> Any:
        raise no_attribute(module, name, public)

    def __dir__() -> list[str]:
        return list(public)

    return __getattr__, __dir__


def not_installed(module: str, project: str, package: str) -> ModuleNotFoundError:
    """The error of a module that needs a package which is missing."""
    return ModuleNotFoundError(f"{module} needs {project}, which is not installed: pip install {package}", name=package)
