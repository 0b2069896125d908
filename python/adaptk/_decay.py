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
    """Param groups for an optimizer: params that are decayed, and those that are not.

    For the classes of :mod:`adaptk.torch`, those of ``torch.optim``, and the optimizer objects of :mod:`adaptk.optim`.

    Parameters
    ----------
    params : torch.nn.Module, dict of params by name, or iterable of pairs (name, param)
        Of a module those that require gradients.
    weight_decay : float
        Of the first group; the other one has 0.
    exclude : str, iterable of str, or callable
        Patterns of whole names, as :mod:`fnmatch` has them (``"*.bias"``), or a function of name and param. By default
        params of fewer than two dimensions: biases, and the weights of norms.
    **options
        More options of both groups.

    Returns
    -------
    list of dict
        One or two groups, for none is empty. The params of a dict stay dicts, and others are pairs (name, param), in
        the order in which they were given.

    Raises
    ------
    TypeError
        If `params` have no names, or `exclude` is nothing of the above.
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
