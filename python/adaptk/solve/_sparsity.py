"""Differences of many columns at once, for a Jacobian that is known to be sparse.

A. R. Curtis, M. J. D. Powell and J. K. Reid, On the estimation of sparse Jacobian matrices, IMA J. Appl. Math. 13,
1974: columns that have no row in common need only one evaluation together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from adaptk._names import is_installed
from adaptk.solve import _arguments as arguments
from adaptk.solve import _check
from adaptk.solve._result import Fit

__all__ = ["fit", "groups_of"]

Array = arguments.Array


def pattern_of(sparsity: Any, n: int) -> tuple[int, Array, Array]:
    """The number of rows, and the rows and columns of the elements that may be nonzero, by columns."""
    if hasattr(sparsity, "tocoo"):
        coo = sparsity.tocoo()
        shape, rows, columns = coo.shape, coo.row[coo.data != 0], coo.col[coo.data != 0]
    else:
        array = np.asarray(sparsity)
        if array.ndim != 2 or array.dtype.kind not in "biuf":
            raise TypeError(f"jac_sparsity: expected a matrix, got {array.dtype} of shape {array.shape}")
        shape, (rows, columns) = array.shape, np.nonzero(array)
    if shape[1] != n:
        raise ValueError(f"jac_sparsity: expected shape (m, {n}), got {shape}")
    pairs = np.unique(np.stack([columns, rows]), axis=1)
    return int(shape[0]), pairs[1], pairs[0]


def groups_of(m: int, n: int, rows: Array, columns: Array) -> Array:
    """A group for each column, so that no two columns of a group have a row in common.

    The columns with most rows come first, each in the first group that has room.
    """
    ends = np.searchsorted(columns, np.arange(n + 1))
    taken: list[set[int]] = [set() for _ in range(m)]
    groups = np.zeros(n, dtype=np.int64)
    for k in np.argsort(-(ends[1:] - ends[:-1]), kind="stable"):
        mine = rows[ends[k] : ends[k + 1]]
        full = set().union(*(taken[i] for i in mine)) if mine.size else set()
        group = next(g for g in range(len(full) + 1) if g not in full)
        groups[k] = group
        for i in mine:
            taken[i].add(group)
    return groups


def fit(
    solve: Callable[..., Fit], fun: Any, x0: Any, args: Any, options: dict[str, Any], bounds: Callable[..., Any]
) -> Fit:
    """The fit with a Jacobian by differences of groups of columns."""
    sparsity = options.pop("jac_sparsity")
    x = arguments.start(x0)
    n, size, extra = x.size, x.dtype.itemsize, arguments.tuple_of(args)
    method = options["jac"]
    if method not in (None, "2-point", "3-point"):
        raise ValueError("jac_sparsity: is for differences; leave out jac, or give '2-point' or '3-point'")
    if options["vectorized"]:
        raise ValueError("vectorized: does not go with jac_sparsity")
    m, rows, columns = pattern_of(sparsity, n)
    groups = groups_of(m, n, rows, columns)
    f = arguments.function(fun, "fun", size, "residuals")
    if isinstance(f, tuple):
        f, extra, options["m"] = _check._bind(f, "residuals", x, extra, m), (), None
    lower, upper = bounds(options["bounds"], x)
    low = np.full(n, -np.inf) if lower is None else lower.astype(np.float64)
    high = np.full(n, np.inf) if upper is None else upper.astype(np.float64)
    one_sided = method == "2-point"
    eps = float(np.finfo(x.dtype).eps)
    relative = arguments.per_variable(options["rel_step"], "rel_step", x)
    share = np.float64(np.sqrt(eps) if one_sided else np.cbrt(eps)) if relative is None else relative.astype(np.float64)
    typical = arguments.per_variable(options["typical"], "typical", x)
    least = np.where(x != 0, np.abs(x), 1.0) if typical is None else typical
    calls = 0

    def values(at: Array, *more: Any) -> Array:
        nonlocal calls
        calls += 1
        value = np.asarray(f(at.astype(x.dtype), *more))
        if value.shape != (m,):
            raise ValueError(f"fun must return {m} residuals, as jac_sparsity has rows; got shape {value.shape}")
        return value

    def jacobian(at: Array, *more: Any) -> Any:
        at = at.astype(np.float64)
        step = share * np.maximum(np.abs(at), least)
        up, down = np.minimum(at + step, high), np.maximum(at - step, low)
        if one_sided:
            forward = up - at >= at - down
            up, down = np.where(forward, up, at), np.where(forward, at, down)
        # The steps that are taken, in the type of x.
        up, down = up.astype(x.dtype).astype(np.float64), down.astype(x.dtype).astype(np.float64)
        base = values(at, *more) if one_sided else None
        entries: Array | None = None
        for g in range(int(groups.max()) + 1):
            mine = groups == g
            sides = []
            for side in (up, down):
                moved = np.where(mine, side, at)
                sides.append(base if base is not None and (moved == at).all() else values(moved, *more))
            change = sides[0] - sides[1]
            if entries is None:
                entries = np.empty(rows.size, dtype=change.dtype)
            here = mine[columns]
            entries[here] = change[rows[here]]
        assert entries is not None
        entries = entries / (up - down)[columns]
        if options["linear_solver"] == "cg" and is_installed("scipy"):
            from scipy.sparse import csr_array

            return csr_array((entries, (rows, columns)), shape=(m, n))
        dense = np.zeros((m, n), dtype=entries.dtype)
        dense[rows, columns] = entries
        return dense

    options["jac"], options["rel_step"], options["typical"] = jacobian, None, None
    result = solve(f, x, extra, **options)
    result["nfev"] += calls
    return result
