"""Suggestions for misspelt names and names of other libraries, and the attributes that modules show."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from types import MappingProxyType
from typing import Any

# Names in PyTorch, Keras, optax and other libraries.
_FOREIGN: dict[str, tuple[str, ...]] = {
    "alpha": ("rho",),
    "b1": ("beta1",),
    "b2": ("beta2",),
    "b3": ("beta3",),
    "betas": ("beta1", "beta2", "beta3"),
    "clipnorm": ("clip_norm",),
    "decay": ("rho",),
    "decay_rate": ("gamma", "decay"),
    "decay_steps": ("total", "every"),
    "end_value": ("end",),
    "eta_min": ("end",),
    "eps": ("eps_in", "eps_out"),
    "epsilon": ("eps",),
    "etas": ("eta_minus", "eta_plus"),
    "generator": ("seed",),
    "global_clipnorm": ("clip_norm",),
    "init_value": ("lr",),
    "learning_rate": ("lr", "max_lr"),
    "lr": ("learning_rate",),
    "max_grad_norm": ("clip_norm",),
    "maxval": ("high",),
    "max_norm": ("clip_norm",),
    "minval": ("low",),
    "nonlinearity": ("gain",),
    "rng": ("seed",),
    "stddev": ("std",),
    "step_size": ("every",),
    "step_sizes": ("step_min", "step_max"),
    "T_max": ("total",),
    "total_iters": ("total", "steps"),
    "total_steps": ("total",),
    "val": ("value",),
    "warmup_steps": ("warmup", "steps"),
    "wd": ("weight_decay",),
}


def unexpected(function: str, name: str, known: Iterable[str]) -> TypeError:
    """The error for an argument that a function does not have."""
    return TypeError(
        f"{function}() got an unexpected keyword argument {name!r}{hint(name, known)}; it takes {', '.join(known)}"
    )


def known_names_only(
    function: Callable[..., Any],
    remedies: Mapping[str, str],
    then: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any] = lambda result, args, kwargs: result,
    shorter: Callable[[tuple[Any, ...], dict[str, Any]], Any] = lambda args, kwargs: None,
    instead: Callable[[Exception, tuple[Any, ...], dict[str, Any]], dict[str, Any] | None] = lambda *_: None,
) -> Callable[..., Any]:
    """The function, with the error of :func:`unexpected` for other names; `remedies` has advice for some.

    `then` is called with the result and the arguments, and returns the result. `shorter` is called first, with the
    arguments, and returns what `then` would, or None if it cannot. `instead` is called with an exception and the
    arguments, and returns the keyword arguments for another call, or None to let the exception pass.
    """
    known = list(inspect.signature(function).parameters)
    are_known = frozenset(known).issuperset

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            result = shorter(args, kwargs)
            if result is not None:
                return result
            if not are_known(kwargs):
                name = next(n for n in kwargs if n not in known)
                if name in remedies:
                    raise TypeError(
                        f"{function.__name__}() got an unexpected keyword argument {name!r}: {remedies[name]}"
                    )
                raise unexpected(function.__name__, name, known)
            return then(function(*args, **kwargs), args, kwargs)
        except Exception as error:
            changed = instead(error, args, kwargs)
            if changed is None:
                raise
            kwargs = changed
        return then(function(*args, **kwargs), args, kwargs)

    return checked


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


def misspelt(name: str, known: Iterable[str]) -> str | None:
    """The known name that this one is almost certainly meant to be; None if it may well be a name of its own."""
    by_plain = {_plain(n): n for n in known}
    found = get_close_matches(_plain(name), by_plain, n=1, cutoff=0.85)
    return by_plain[found[0]] if found else None


def no_attribute(module: str, name: str, known: Iterable[str]) -> AttributeError:
    """The error for a name that a module does not have."""
    # Python and other programs look up names with underscores that need not exist.
    found = "" if name.startswith("_") else hint(name, known)
    return AttributeError(f"module {module!r} has no attribute {name!r}{found}")


def face(
    module: str,
    names: Iterable[str],
    foreign: Mapping[str, str] = MappingProxyType({}),
    more: Iterable[str] = (),
    find: Callable[[str], Any] = lambda name: None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a module with these public names.

    `foreign` maps names of other libraries to the ones to use here. A list of names may change later. The names in
    `more` are made by `find` on first use.
    """
    public = names if isinstance(names, list) else list(names)
    later = tuple(more)

    def __getattr__(name: str) -> Any:
        if name in foreign:
            raise AttributeError(f"module {module!r} has no attribute {name!r}; use {foreign[name]}")
        if name in later:
            return find(name)
        raise no_attribute(module, name, [*public, *later])

    def __dir__() -> list[str]:
        return sorted({*public, *later})

    return __getattr__, __dir__


def is_installed(name: str) -> bool:
    """Whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # None in sys.modules
        return False


def not_installed(module: str, project: str, package: str) -> ModuleNotFoundError:
    """The error of a module that needs a missing package."""
    return ModuleNotFoundError(f"{module} needs {project}, which is not installed: pip install {package}", name=package)
