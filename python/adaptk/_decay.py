"""Param groups with and without weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any


def _pairs(params: Any) -> list[tuple[str, Any]]:
    if callable(getattr(params, "named_parameters", None)):
        return [(name, p) for name, p in params.named_parameters() if p.requires_grad]
    if isinstance(params, Mapping):
        return list(params.items())
    pairs = list(params) if isinstance(params, Iterable) else None
    if pairs is None or not all(isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) for x in pairs):
        raise TypeError(
            f"params: expected a module, a dict of params by name or pairs (name, param), got {type(params).__name__}"
        )
    return pairs


def _has_few_dimensions(name: str, param: Any) -> bool:
    return len(param.shape) < 2


def decay_groups(
    params: Any,
    weight_decay: float,
    *,
    exclude: str | Iterable[str] | Callable[[str, Any], bool] = _has_few_dimensions,
    **options: Any,
) -> list[dict[str, Any]]:
    """Split params into two groups for an optimizer: with and without weight decay.

    For the classes of :mod:`adaptk.torch`, ``torch.optim`` and :mod:`adaptk.optim`.

    Parameters
    ----------
    params : torch.nn.Module, dict of params by name, or iterable of pairs (name, param)
        The params. Of a module, those that require gradients.
    weight_decay : float
        The weight decay of the first group; the second group has 0.
    exclude : str, iterable of str, or callable
        Which params have no weight decay: patterns of :mod:`fnmatch` for whole names (``"*.bias"``), or a function of
        name and param. By default params with fewer than two dimensions: biases, and the weights of normalization
        layers.
    **options
        Further options for both groups.

    Returns
    -------
    list of dict
        One or two groups; empty groups are left out. If `params` is a dict, the params of each group are a dict, else
        pairs (name, param), in the given order.

    Raises
    ------
    TypeError
        If the params have no names, or `exclude` is of another type.
    ValueError
        If there are no params, or a pattern matches no name.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> params = {"dense.weight": np.zeros((3, 2)), "dense.bias": np.zeros(3)}
    >>> groups = adaptk.decay_groups(params, 0.1)
    >>> [(list(g["params"]), g["weight_decay"]) for g in groups]
    [(['dense.weight'], 0.1), (['dense.bias'], 0.0)]
    >>> opt = adaptk.AdamW(groups, lr=1e-3)
    """
    pairs = _pairs(params)
    if not pairs:
        raise ValueError("params: none")
    without: Callable[[str, Any], bool]
    if callable(exclude):
        without = exclude
    else:
        patterns = [exclude] if isinstance(exclude, str) else list(exclude)
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise TypeError(f"exclude: expected patterns of names, got {type(pattern).__name__}")
            if not any(fnmatchcase(name, pattern) for name, _ in pairs):
                raise ValueError(f"exclude: {pattern!r} matches no name; there are {', '.join(n for n, _ in pairs)}")

        def without(name: str, param: Any) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in patterns)

    of: dict[bool, list[tuple[str, Any]]] = {False: [], True: []}
    for name, param in pairs:
        of[bool(without(name, param))].append((name, param))
    made = dict if isinstance(params, Mapping) else list
    return [
        {"params": made(chosen), "weight_decay": 0.0 if excluded else weight_decay, **options}
        for excluded, chosen in of.items()
        if chosen
    ]
