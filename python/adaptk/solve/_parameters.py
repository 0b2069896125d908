"""Parameters that are fixed or tied to others: a fit of only the free ones."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adaptk._names import hint
from adaptk.solve import _arguments as arguments
from adaptk.solve import _check
from adaptk.solve._operators import Product, is_product, is_sparse
from adaptk.solve._result import Fit

__all__ = ["Parameters", "by_name", "fit", "index"]

Array = arguments.Array
Solver = Callable[..., Fit]


def index(key: Any, n: int, names: Sequence[str], argument: str) -> int:
    if isinstance(key, str):
        if key in names:
            return names.index(key)
        known = ", ".join(names) if names else f"0 to {n - 1}"
        raise ValueError(f"{argument}: there is no parameter {key!r}{hint(key, names)}; they are {known}")
    k = arguments.whole(key, argument)
    if k >= n:
        raise ValueError(f"{argument}: there is no parameter {k}; there are {n}")
    return k


def _label(k: int, names: Sequence[str]) -> str:
    return names[k] if names else f"x[{k}]"


def by_name(tie: Any, names: Sequence[str]) -> Any:
    """`tie` as a function of the array of all parameters, if its own parameters have names of some of them.

    Parameters with other names keep their defaults.
    """
    if not callable(tie):
        return tie
    try:
        given = inspect.signature(tie).parameters
    except (TypeError, ValueError):
        return tie
    wanted = [name for name, p in given.items() if name in names or p.default is p.empty]
    if not wanted or not set(wanted) <= set(names):
        return tie
    places = [names.index(w) for w in wanted]
    return lambda x: tie(**{w: x[k] for w, k in zip(wanted, places, strict=True)})


class Parameters:
    """All parameters x, as functions of the free ones z.

    `fixed` has values by index or name, or is an array of booleans for those that keep the values of `x0`. `ties` has
    functions of x, which are called in their order: a tie may use those before it, and later ones are NaN.
    """

    def __init__(self, x0: Array, fixed: Any, ties: Any, names: Sequence[str] = ()) -> None:
        n = x0.size
        self.x0 = x0.copy()
        self.names = names
        self.fixed = np.zeros(n, dtype=bool)
        if isinstance(fixed, Mapping):
            for key, value in fixed.items():
                k = index(key, n, names, "fixed")
                number = arguments.real(value, f"fixed: {_label(k, names)}", low=-np.inf)
                if not np.isfinite(number):
                    raise ValueError(f"fixed: {_label(k, names)} must be finite, got {number}")
                self.x0[k], self.fixed[k] = number, True
        elif fixed is not None:
            chosen = np.asarray(fixed)
            if chosen.dtype != np.bool_ or chosen.shape != (n,):
                raise TypeError(
                    f"fixed: expected a dict {{parameter: value}} or {n} booleans, got {type(fixed).__name__} "
                    f"of {chosen.dtype} with shape {chosen.shape}"
                )
            self.fixed = chosen.copy()
        self.ties: list[tuple[int, Callable[[Array], Any]]] = []
        self.tied = np.zeros(n, dtype=bool)
        if ties is not None and not isinstance(ties, Mapping):
            raise TypeError(f"ties: expected a dict {{parameter: function}}, got {type(ties).__name__}")
        for key, tie in (ties or {}).items():
            k = index(key, n, names, "ties")
            if not callable(tie):
                instead = "a constant belongs in fixed"
                if isinstance(tie, str):
                    instead = "write an expression such as '2*a' as lambda a: 2*a"
                raise TypeError(
                    f"ties: expected a function for {_label(k, names)}, got {type(tie).__name__}; {instead}"
                )
            if self.fixed[k]:
                raise ValueError(f"ties: {_label(k, names)} is fixed")
            self.ties.append((k, tie))
            self.tied[k] = True
        self.free = np.flatnonzero(~self.fixed & ~self.tied)
        if self.free.size == 0:
            raise ValueError("fixed: no parameter is left to fit")
        self.lower, self.upper = np.full(n, -np.inf), np.full(n, np.inf)
        self.x0 = self.expand(self.x0[self.free])
        for k, _ in self.ties:
            if not np.isfinite(self.x0[k]):
                raise ValueError(
                    f"ties: {_label(k, names)} is {self.x0[k]} at the start; a tie may use parameters that are not "
                    "tied, and ties before it"
                )

    def expand(self, z: Array) -> Array:
        """x, shape (n,), or (k, n) for a stack (k, free)."""
        x = np.empty((*z.shape[:-1], self.x0.size), dtype=np.result_type(self.x0, z))
        x[...] = self.x0
        x[..., self.tied] = np.nan
        x[..., self.free] = z
        if self.ties:
            for row in x.reshape(-1, x.shape[-1]):
                for k, tie in self.ties:
                    row[k] = self._tied(k, tie, row)
        return x

    def _tied(self, k: int, tie: Callable[[Array], Any], x: Array) -> Any:
        value = np.asarray(tie(x.copy()))
        if value.size != 1 or value.dtype.kind not in ("biufc" if x.dtype.kind == "c" else "biuf"):
            raise TypeError(
                f"ties: the function of {_label(k, self.names)} must return a number, got {value.dtype} of shape "
                f"{value.shape}{self._names_of_ties()}"
            )
        return value.reshape(())

    def _names_of_ties(self) -> str:
        if not self.names:
            return ""
        return f"; it gets single parameters if its arguments have their names: {', '.join(self.names)}"

    def slopes(self, z: Array) -> Array:
        """The derivatives of x by z, shape (n, free)."""
        slopes = np.zeros((self.x0.size, self.free.size))
        slopes[self.free, np.arange(self.free.size)] = 1.0
        if self.ties:
            slopes[self.tied] = self._slopes_of_ties(z)
        return slopes

    def _slopes_of_ties(self, z: Array) -> Array:
        """By central differences, within the bounds."""
        slopes = np.zeros((int(self.tied.sum()), self.free.size))
        z = z.astype(np.float64)
        for j, k in enumerate(self.free):
            step = np.cbrt(np.finfo(np.float64).eps) * (max(abs(z[j]), abs(float(self.x0[k]))) or 1.0)
            up, down = z.copy(), z.copy()
            up[j] = min(z[j] + step, self.upper[k])
            down[j] = max(z[j] - step, self.lower[k])
            change = self.expand(up) - self.expand(down)
            slopes[:, j] = change[self.tied] / (up[j] - down[j])
        return slopes

    def chain(self, whole: Any, z: Array) -> Any:
        """The Jacobian by z from the Jacobian by x: an array, sparse matrix or operator like the given one."""
        if is_sparse(whole) and not self.ties:
            return whole.tocsc()[:, self.free]
        if not is_sparse(whole) and not is_product(whole):
            return whole @ self.slopes(z)
        ties = self._slopes_of_ties(z) if self.ties else np.zeros((0, self.free.size))
        times, back = (whole.matvec, whole.rmatvec) if is_product(whole) else (whole.__matmul__, whole.T.__matmul__)

        def matvec(v: Array) -> Any:
            full = np.zeros(self.x0.size, dtype=v.dtype)
            full[self.free] = v
            full[self.tied] = ties @ v
            return times(full)

        def rmatvec(u: Array) -> Array:
            full = np.asarray(back(u)).ravel()
            return np.asarray(full[self.free] + full[self.tied] @ ties)

        return Product((whole.shape[0], self.free.size), matvec, rmatvec)

    def spread(self, value: Any) -> Any:
        """Numbers or columns of the free parameters, with 0 for the others."""
        n = self.x0.size
        if is_sparse(value):
            from scipy.sparse import csr_array

            count = self.free.size
            return value @ csr_array((np.ones(count, value.dtype), (np.arange(count), self.free)), shape=(count, n))
        if is_product(value):

            def rmatvec(u: Array) -> Array:
                return np.asarray(self.spread(np.asarray(value.rmatvec(u)).ravel()))

            return Product((value.shape[0], n), lambda v: value.matvec(v[self.free]), rmatvec)
        full = np.zeros((*value.shape[:-1], n), dtype=value.dtype)
        full[..., self.free] = value
        return full

    def bound(self, lower: Array | None, upper: Array | None) -> tuple[Array, Array] | None:
        """The bounds of z."""
        if lower is None or upper is None:
            return None
        finite = np.isfinite(lower) | np.isfinite(upper)
        if (finite & self.tied).any():
            k = int(np.argmax(finite & self.tied))
            raise ValueError(
                f"bounds: {_label(k, self.names)} is tied and cannot have bounds; give it -np.inf and np.inf, and give "
                "bounds to the parameters that it depends on"
            )
        self.lower, self.upper = lower.astype(np.float64), upper.astype(np.float64)
        return lower[self.free], upper[self.free]

    def covariance(self, slopes: Array, cov: Array, std: Array) -> tuple[Array, Array]:
        """Covariance and standard deviations of x from those of z, which may be infinite or unknown."""
        if np.isfinite(cov).all():
            full = (slopes @ cov @ slopes.T).astype(cov.dtype)
            full = (full + full.T) / 2
        else:
            full = np.full((self.x0.size,) * 2, cov[0, 0])
            constant = ~slopes.any(axis=1)
            full[constant], full[:, constant] = 0.0, 0.0
        deviation = np.sqrt(full.diagonal())
        deviation[self.free] = std  # may be finite even if its square overflows
        return full, deviation


def _callback(callback: Any, expand: Callable[[Array], Array]) -> Any:
    if not callable(callback):
        return callback
    if arguments._takes_result(callback):

        def with_result(intermediate_result: Any) -> Any:
            intermediate_result["x"] = expand(intermediate_result.x)
            return callback(intermediate_result=intermediate_result)

        return with_result
    return lambda x: callback(expand(x))


def fit(solve: Solver, fun: Any, x0: Any, args: Any, options: dict[str, Any], bounds: Callable[..., Any]) -> Fit:
    """The fit by `solve` of the free parameters, as a result for all parameters.

    `bounds` checks and completes bounds; `options` are those of the solver, including `fixed` and `ties`.
    """
    x = arguments.start(x0)
    p = Parameters(x, options.pop("fixed"), options.pop("ties"))
    size, extra = x.dtype.itemsize, arguments.tuple_of(args)
    f = arguments.function(fun, "fun", size, "residuals")
    if isinstance(f, tuple):
        if options["m"] is None:
            raise TypeError("m: a compiled fun needs the number of residuals")
        f = _check._bind(f, "residuals", p.x0, extra, arguments.whole(options["m"], "m", low=1))
        extra = ()
    options["bounds"] = p.bound(*bounds(options["bounds"], p.x0))
    jac = options["jac"]
    if jac is not None and not isinstance(jac, str):
        j = arguments.function(jac, "jac", size, "jacobian")
        if isinstance(j, tuple):
            j = _check._bind(j, "jacobian", p.x0, (), arguments.whole(options["m"], "m", low=1))
        if options["check_derivatives"]:
            _check.verify(f, p.x0, extra, j, False, residuals=0)

        def slopes(z: Array, *more: Any) -> Any:
            whole = j(p.expand(z), *more)
            if not is_product(whole) and not is_sparse(whole):
                whole = np.asarray(whole)
            if len(whole.shape) != 2 or whole.shape[1] != x.size:
                raise ValueError(f"jac must return an array of shape (m, {x.size}), got one of shape {whole.shape}")
            return p.chain(whole, z)

        options["jac"] = slopes
        options["check_derivatives"] = False
    options["m"] = None
    for name in ("rel_step", "typical", "x_scale"):
        value = options[name]
        if value is not None and not isinstance(value, str):
            full = arguments.per_variable(value, name, x)
            options[name] = None if full is None else full[p.free]
    options["callback"] = _callback(options["callback"], p.expand)
    result = solve(lambda z, *more: f(p.expand(z), *more), p.x0[p.free], extra, **options)
    return _all(result, p)


def _all(result: Fit, p: Parameters) -> Fit:
    z = result.x
    result["x"] = p.expand(z)
    if "cov" in result:
        result["cov"], result["x_std"] = p.covariance(p.slopes(z), result.cov, result.x_std)

    result["grad"], result["active_mask"] = p.spread(result.grad), p.spread(result.active_mask)
    if result.jac is not None:
        result["jac"] = p.spread(result.jac)
    result["fixed"], result["tied"] = p.fixed, p.tied
    result["message"] = re.sub(r"\bx\[(\d+)\]", lambda at: f"x[{p.free[int(at[1])]}]", result.message)
    return result
