"""Jacobians that are arrays, matrices of scipy.sparse, or operators with ``matvec`` and ``rmatvec``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Jacobian", "Product", "is_product", "is_sparse"]

Array = npt.NDArray[Any]


def is_sparse(j: Any) -> bool:
    """A matrix of scipy.sparse."""
    return hasattr(j, "tocsr")


def is_product(j: Any) -> bool:
    """An operator, whose elements are not available."""
    return hasattr(j, "matvec") and hasattr(j, "rmatvec") and not is_sparse(j)


class Product:
    """An operator made of two functions."""

    def __init__(
        self, shape: tuple[int, int], matvec: Callable[[Array], Array], rmatvec: Callable[[Array], Array]
    ) -> None:
        self.shape, self.matvec, self.rmatvec = shape, matvec, rmatvec


class Jacobian:
    """Products with J and J', and the norms of its columns if they are available."""

    def __init__(self, j: Any, m: int, n: int, dtype: Any) -> None:
        if not is_sparse(j) and not is_product(j):
            j = np.asarray(j)
        if tuple(j.shape) != (m, n):
            raise ValueError(f"jac must return shape {(m, n)}, got {tuple(j.shape)}")
        self.j, self.dtype = j, dtype
        if is_product(j):
            self._times, self._back = j.matvec, j.rmatvec
        else:
            t = j.T.tocsr() if is_sparse(j) else j.T
            self._times, self._back = lambda v: j @ v, lambda u: t @ u
            self._squares = (j.multiply(j) if is_sparse(j) else j.astype(np.float64) ** 2).T

    def times(self, v: Array) -> Array:
        return np.asarray(self._times(v), dtype=self.dtype).ravel()

    def back(self, u: Array) -> Array:
        return np.asarray(self._back(u), dtype=self.dtype).ravel()

    def norms(self, weight: Array) -> Array | None:
        """The norms of the columns, with rows multiplied by `weight`."""
        if is_product(self.j):
            return None
        squares = np.asarray(self._squares @ np.square(weight, dtype=np.float64)).ravel()
        return np.asarray(np.sqrt(squares), dtype=self.dtype)

    def normal(self, weight: Array, divisor: Array, free: Array, damping: float) -> Callable[[Array], Array]:
        """Products with ``D^-1 J' diag(weight) J D^-1 + damping`` among the free variables."""

        def times(v: Array) -> Array:
            inner = weight * self.times(np.where(free, v / divisor, 0).astype(v.dtype))
            return np.asarray(np.where(free, self.back(inner) / divisor, 0) + damping * v, dtype=v.dtype)

        return times

    def gram(self, weight: Array) -> Array:
        """``J' diag(weight) J`` in float64. With an operator a product with J and with J' for each column."""
        if is_product(self.j):
            eye = np.eye(self.j.shape[1])
            columns = [np.asarray(self._back(weight * np.asarray(self._times(e)).ravel())).ravel() for e in eye]
            squares = np.stack(columns, axis=1).astype(np.float64)
            return np.asarray((squares + squares.T) / 2)
        if is_sparse(self.j):
            j = self.j.astype(np.float64)
            return np.asarray((j.T @ j.multiply(weight[:, None]).tocsr()).toarray())
        j = np.asarray(self.j, dtype=np.float64)
        return np.asarray(j.T @ (j * weight[:, None]))

    def dense(self) -> Array:
        if is_sparse(self.j):
            return np.asarray(self.j.toarray())
        if is_product(self.j):
            return np.stack([self.times(e) for e in np.eye(self.j.shape[1], dtype=self.dtype)], axis=1)
        return np.asarray(self.j)
