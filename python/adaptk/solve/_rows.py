"""Which residuals are used: masks, NaN, and complex residuals as real and imaginary parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from adaptk.solve import _arguments as arguments
from adaptk.solve import _check
from adaptk.solve._operators import Product, is_product, is_sparse
from adaptk.solve._result import Fit

__all__ = ["POLICIES", "fit", "mask_of", "of_rows", "stacked"]

Array = arguments.Array
POLICIES = (None, "raise", "omit")


def mask_of(mask: Any, shape: tuple[int, ...], name: str = "mask") -> Array:
    """Booleans of this shape, or one for all; True means left out."""
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        raise TypeError(f"{name}: expected booleans, True for what is left out, got dtype {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    return array


def stacked(value: Array) -> Array:
    """Real parts, then imaginary parts."""
    return np.concatenate([value.real, value.imag])


def of_rows(j: Any, keep: Array, as_complex: bool) -> Any:
    """Rows of a sparse matrix, or of an operator."""
    if tuple(j.shape[:1]) != keep.shape:
        raise ValueError(f"jac must return {keep.size} rows, as fun did at x0; got shape {tuple(j.shape)}")
    if is_sparse(j):
        rows = j.tocsr()[keep]
        if not as_complex:
            return rows
        from scipy.sparse import vstack

        return vstack([rows.real, rows.imag], format="csr")
    m = int(keep.sum())

    def matvec(v: Array) -> Array:
        value = np.asarray(j.matvec(v)).ravel()[keep]
        return stacked(value) if as_complex else value

    def rmatvec(u: Array) -> Any:
        full = np.zeros(keep.size, dtype=np.result_type(u, np.complex64) if as_complex else u.dtype)
        full[keep] = u[:m] + 1j * u[m:] if as_complex else u
        return np.asarray(j.rmatvec(full)).real

    return Product((2 * m if as_complex else m, j.shape[1]), matvec, rmatvec)


def fit(solve: Callable[..., Fit], fun: Any, x0: Any, args: Any, options: dict[str, Any]) -> Fit:
    """The fit by `solve` of the residuals that are not left out."""
    mask, policy = options.pop("mask"), options.pop("nan_policy")
    as_complex = bool(options.pop("complex_residuals"))
    if policy not in POLICIES:
        raise ValueError(f"nan_policy: expected None, 'raise' or 'omit', got {policy!r}")
    x = arguments.start(x0)
    size, extra = x.dtype.itemsize, arguments.tuple_of(args)
    f = arguments.function(fun, "fun", size, "residuals")
    if isinstance(f, tuple):
        if options["m"] is None:
            raise TypeError("m: a compiled fun needs the number of residuals")
        f, extra = _check._bind(f, "residuals", x, extra, arguments.whole(options["m"], "m", low=1)), ()
    vectorized = bool(options["vectorized"])
    if as_complex and options["jac"] == "cs":
        raise ValueError("jac: 'cs' takes the imaginary part for the derivative, so residuals must be real")
    first = f(x.copy(), *extra)
    hidden = np.ma.getmaskarray(first) if isinstance(first, np.ma.MaskedArray) else None
    values = np.asarray(np.ma.getdata(first))
    if values.ndim != 1 or values.dtype.kind not in "biufc":
        raise ValueError(f"fun must return residuals, shape (m,), got shape {values.shape} of {values.dtype}")
    if values.dtype.kind == "c" and not as_complex:
        raise TypeError("fun must return real residuals, or give complex_residuals=True")
    shape = values.shape
    out = np.zeros(shape, dtype=bool) if mask is None else mask_of(mask, shape).copy()
    missing = np.isnan(values)
    if hidden is not None and not policy == "omit" and (hidden & ~out).any():
        raise ValueError('fun must return no masked elements: give mask, or nan_policy="omit", which leaves them out')
    if hidden is not None:
        missing |= hidden
    if policy == "raise" and (missing & ~out).any():
        raise ValueError(f"fun: residual {int(np.argmax(missing & ~out))} is NaN at x0, and nan_policy is 'raise'")
    if policy == "omit":
        out |= missing
    keep = ~out
    if not keep.any():
        raise ValueError("mask: no residual is left" if policy != "omit" else "nan_policy: no residual is left")
    both = np.concatenate([keep, keep]) if as_complex else keep

    def chosen(value: Any, name: str) -> Array:
        array = np.asarray(np.ma.getdata(value) if isinstance(value, np.ma.MaskedArray) else value)
        if array.shape[:1] != shape:
            raise ValueError(f"{name} must return {shape[0]} rows, as fun did at x0; got shape {array.shape}")
        if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value)[keep].any():
            raise ValueError(f"{name} must return no masked elements but those of x0")
        return stacked(array)[both] if as_complex else array[keep]

    def residuals(at: Array, *more: Any) -> Any:
        value = f(at, *more)
        if not vectorized or np.ndim(at) == 1:
            return chosen(value, "fun")
        return np.stack([chosen(row, "fun") for row in value])

    jac = options["jac"]
    if jac is not None and not isinstance(jac, str):
        j = arguments.function(jac, "jac", size, "jacobian")
        if isinstance(j, tuple):
            j = _check._bind(j, "jacobian", x, (), shape[0])

        def jacobian(at: Array, *more: Any) -> Any:
            whole = j(at, *more)
            if is_sparse(whole) or is_product(whole):
                return of_rows(whole, keep, as_complex)
            return chosen(whole, "jac")

        options["jac"] = jacobian
    options["m"] = None
    result = solve(residuals, x, extra, **options)
    result["mask"] = out
    result["nfev"] += 1
    return result
