"""Matrix factorisation."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from adaptk import _core, init
from adaptk._numbers import count, number
from adaptk.hogwild._data import numbers
from adaptk.hogwild._estimator import Estimator

Array: TypeAlias = npt.NDArray[Any]

_ETA = {"sgd": 0.02, "adagrad": 0.1}


class MatrixFactorization(Estimator):
    """Matrix factorization with biases from some known entries, trained by threads without locks.

    Entry ``(i, j)`` is modelled as ``mean + row_bias[i] + column_bias[j] + row_factors[i] @ column_factors[j]``.

    Parameters
    ----------
    rank
        Number of factors, >= 1.
    alpha
        Factor of the L2 penalty. The loss of each known entry is half the squared error plus ``alpha / 2`` times the
        squares of its factors and biases.
    bias
        Whether the model has biases and a mean.
    max_iter
        Maximum number of passes of ``fit`` over the entries.
    tol
        ``fit`` ends if a pass has lowered the root mean squared error by less than ``tol``. The error of each entry is
        computed before the update for this entry. ``None``: ``fit`` ends after ``max_iter`` passes.
    rule
        ``"sgd"`` or ``"adagrad"``.
    eta0
        The step size; ``None``: 0.02, and 0.1 for ``"adagrad"``.
    decay
        With ``"sgd"``, the factor of the step size after each pass, in (0, 1].
    init_scale
        Standard deviation of the normal distribution of the initial factors; ``None``: ``0.1 / sqrt(rank)``.
    mode
        ``"hogwild"``, ``"locked"`` or ``"deterministic"``, see :mod:`adaptk.hogwild`.
    n_jobs
        Number of threads; ``None`` and -1: :func:`adaptk.get_num_threads`. Small data use fewer threads.
    random_state
        An integer in [0, 2**64), a NumPy generator, or ``None`` for different numbers each time.
    shuffle
        Whether the entries are shuffled anew for each pass.
    verbose
        Whether to print a line for each pass.

    Attributes
    ----------
    row_factors_, column_factors_
        Factors of shapes ``(rows, rank)`` and ``(columns, rank)``, in the dtype of the values.
    row_bias_, column_bias_, mean_
        Biases of shapes ``(rows,)`` and ``(columns,)``, and the mean of the values.
    n_iter_
        Number of passes so far.
    loss_curve_
        The root mean squared error of each pass.

    Notes
    -----
    Source: Niu, Recht, Ré, Wright 2011, and for ``"deterministic"`` the blocks of Gemulla et al. 2011; biases as in
    Koren, Bell, Volinsky 2009.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk.hogwild import MatrixFactorization
    >>> rows, columns = np.divmod(np.arange(100), 10)
    >>> values = np.outer(np.arange(10.0), np.arange(10.0))[rows, columns] / 10
    >>> model = MatrixFactorization(2, alpha=0.0, max_iter=300, decay=1.0, random_state=0).fit(rows, columns, values)
    >>> bool(np.abs(model.predict(rows, columns) - values).max() < 0.1)
    True
    """

    def __init__(
        self,
        rank: int = 16,
        *,
        alpha: float = 0.05,
        bias: bool = True,
        max_iter: int = 20,
        tol: float | None = None,
        rule: str = "sgd",
        eta0: float | None = None,
        decay: float = 0.95,
        init_scale: float | None = None,
        mode: str = "hogwild",
        n_jobs: int | None = None,
        random_state: Any = None,
        shuffle: bool = True,
        verbose: int = 0,
    ) -> None:
        self.rank = rank
        self.alpha = alpha
        self.bias = bias
        self.max_iter = max_iter
        self.tol = tol
        self.rule = rule
        self.eta0 = eta0
        self.decay = decay
        self.init_scale = init_scale
        self.mode = mode
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.shuffle = shuffle
        self.verbose = verbose

    def fit(self, rows: Any, columns: Any, values: Any, shape: tuple[int, int] | None = None) -> MatrixFactorization:
        """Train from random factors.

        Parameters
        ----------
        rows, columns
            The indices of the known entries, integers of shape ``(n,)``; int32 and int64 are read without a copy.
        values
            The known entries, finite, of shape ``(n,)``; float32 and float64 are read without a copy.
        shape
            The shape of the matrix; ``None``: just large enough for the indices.

        Returns
        -------
        MatrixFactorization
            ``self``.

        Raises
        ------
        TypeError, ValueError
            An argument or a parameter is invalid, or the training diverges.
        KeyboardInterrupt
            Ctrl-C was pressed. The factors keep their current values.
        """
        options, most = self._options(), count("max_iter", self.max_iter, 1)
        tol = None if self.tol is None else number("tol", self.tol, low=-math.inf)
        entries = _entries(rows, columns, values, shape)
        self._start(*entries, options)
        self._train(entries, options, most, tol)
        return self

    def partial_fit(
        self, rows: Any, columns: Any, values: Any, shape: tuple[int, int] | None = None
    ) -> MatrixFactorization:
        """Make one pass over more entries, from the current factors, biases and mean.

        Parameters
        ----------
        rows, columns, values
            As in :meth:`fit`.
        shape
            The shape of the matrix. The first call needs it if later calls have more rows or columns.

        Returns
        -------
        MatrixFactorization
            ``self``.

        Raises
        ------
        TypeError, ValueError
            As in :meth:`fit`, or an index is outside of the matrix.
        """
        options = self._options()
        known = getattr(self, "_shape", None)
        if known is not None and shape is not None and tuple(shape) != known:
            raise ValueError(f"shape: {tuple(shape)}, and the first call had {known}")
        entries = _entries(rows, columns, values, shape if known is None else known)
        if known is None:
            self._start(*entries, options)
        elif (options["rule"] == "adagrad") != (self._row_squares is not None):
            raise ValueError(f"rule: {options['rule']!r} is not that of the first call")
        self._train(entries, options, 1, None)
        return self

    def predict(self, rows: Any, columns: Any) -> Array:
        """Predict entries of the matrix.

        Parameters
        ----------
        rows, columns
            The indices of the entries, integers of shape ``(n,)``, within the matrix.

        Returns
        -------
        ndarray
            Predictions of shape ``(n,)``.
        """
        self._check_is_fitted()
        i, j = (
            _places(name, p, n) for name, p, n in zip(("rows", "columns"), (rows, columns), self._shape, strict=True)
        )
        if i.shape != j.shape:
            raise ValueError(f"columns: {len(j)} places, expected {len(i)} as in rows")
        out: Array = np.empty(len(i), self.row_factors_.dtype)
        for k in range(0, len(i), 65536):
            a, b = i[k : k + 65536], j[k : k + 65536]
            products = np.einsum("ij,ij->i", self.row_factors_[a], self.column_factors_[b])
            out[k : k + 65536] = self.mean_ + self.row_bias_[a] + self.column_bias_[b] + products
        return out

    def score(self, rows: Any, columns: Any, values: Any) -> float:
        """The coefficient of determination R²: 1 minus the sum of squared errors over the total sum of squares.

        Parameters
        ----------
        rows, columns, values
            As in :meth:`fit`.

        Returns
        -------
        float
            At most 1.
        """
        predicted = self.predict(rows, columns).astype(np.float64)
        known = numbers(values, "values", len(predicted))
        spread = float(((known - known.mean()) ** 2).sum())
        errors = float(((known - predicted) ** 2).sum())
        return 1.0 - errors / spread if spread > 0 else float(errors == 0)

    def _options(self) -> dict[str, Any]:
        rule = self._one_of("rule", ("sgd", "adagrad"))
        self._decay = number("decay", self.decay, high=1.0, open_low=True) if rule == "sgd" else 1.0
        count("rank", self.rank, 1)
        return {
            "rule": rule,
            "mode": self._one_of("mode", ("hogwild", "locked", "deterministic")),
            "eta": _ETA[rule] if self.eta0 is None else number("eta0", self.eta0, open_low=True),
            "alpha": number("alpha", self.alpha),
            "bias": self._flag("bias"),
            "shuffle": self._flag("shuffle"),
            "threads": self._threads(),
        }

    def _start(self, i: Array, j: Array, values: Array, shape: tuple[int, int], options: dict[str, Any]) -> None:
        rank = count("rank", self.rank, 1)
        scale = 0.1 / math.sqrt(rank) if self.init_scale is None else number("init_scale", self.init_scale)
        self._order_seed = self._seed()
        stride = _core.hogwild_factor_stride(rank)
        both = []
        for k, n in enumerate(shape):
            factors = np.zeros((n, stride), values.dtype)
            factors[:, :rank] = init.normal(
                np.empty((n, rank), values.dtype), seed=(self._order_seed + k + 1) % 2**64, std=scale
            )
            both.append(factors)
        self._row, self._column = both
        adagrad = options["rule"] == "adagrad"
        self._row_squares, self._column_squares = (np.zeros_like(f) if adagrad else None for f in both)
        self._shape = shape
        self._rank = rank
        self.mean_ = float(values.mean(dtype=np.float64)) if options["bias"] and len(values) else 0.0
        self.n_iter_ = 0
        self.loss_curve_: list[float] = []

    def _train(
        self,
        entries: tuple[Array, Array, Array, tuple[int, int]],
        options: dict[str, Any],
        most: int,
        tol: float | None,
    ) -> None:
        i, j, values, _ = entries
        values = np.ascontiguousarray(values, self._row.dtype)
        self.row_factors_, self.row_bias_ = self._row[:, : self._rank], self._row[:, self._rank]
        self.column_factors_, self.column_bias_ = self._column[:, : self._rank], self._column[:, self._rank]
        blocks = _core.hogwild_factor_blocks(i, j) if options["mode"] == "deterministic" else None
        for _ in range(most):
            _threads, squares = _core.hogwild_factors(
                i,
                j,
                values,
                self._row,
                self._column,
                self._row_squares,
                self._column_squares,
                self._rank,
                self.mean_,
                blocks,
                {
                    **options,
                    "eta": options["eta"] * self._decay**self.n_iter_,
                    "seed": self._order_seed,
                    "epoch": self.n_iter_,
                },
            )
            self.n_iter_ += 1
            error = math.sqrt(squares / len(values)) if len(values) else 0.0
            if not (math.isfinite(error) and np.isfinite(self._row).all() and np.isfinite(self._column).all()):
                raise ValueError(
                    f"the factors are no longer finite after pass {self.n_iter_}: give a smaller eta0 than "
                    f"{options['eta']:g}, or values of a smaller range"
                )
            if self.verbose:
                print(f"pass {self.n_iter_}  root mean square error {error:.6f}", flush=True)
            self.loss_curve_.append(error)
            if tol is not None and len(self.loss_curve_) > 1 and self.loss_curve_[-2] - error < tol:
                break


def _places(name: str, given: Any, size: int | None) -> Array:
    a = np.asarray(given)
    if a.ndim != 1:
        raise ValueError(f"{name}: shape {a.shape}, expected (n,)")
    if len(a) == 0:
        return np.zeros(0, np.int64)
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name}: dtype {a.dtype}, expected integers")
    least, most = int(a.min()), int(a.max())
    if least < 0 or (size is not None and most >= size):
        k = int(a.argmin()) if least < 0 else int(a.argmax())
        raise ValueError(
            f"{name}: {int(a[k])} at place {k}, expected >= 0" + (f" and < {size}" if size is not None else "")
        )
    dtype = a.dtype.newbyteorder("=") if a.dtype.itemsize in (4, 8) and a.dtype.kind == "i" else np.dtype(np.int64)
    return np.require(a, dtype, ["C_CONTIGUOUS", "ALIGNED"])


def _entries(
    rows: Any, columns: Any, values: Any, shape: tuple[int, int] | None
) -> tuple[Array, Array, Array, tuple[int, int]]:
    if shape is not None:
        if not isinstance(shape, (tuple, list)) or len(shape) != 2:
            raise TypeError(f"shape must be a pair of integers, got {shape!r}")
        shape = (count("shape[0]", shape[0], 1), count("shape[1]", shape[1], 1))
    i = _places("rows", rows, None if shape is None else shape[0])
    j = _places("columns", columns, None if shape is None else shape[1])
    if len(i) == 0:
        raise ValueError("rows: no entries")
    if i.dtype != j.dtype:
        i, j = i.astype(np.int64, copy=False), j.astype(np.int64, copy=False)
    checked = numbers(values, "values", len(i))
    given = np.asarray(values)
    known = (
        np.require(given.reshape(-1), given.dtype.newbyteorder("="), ["C_CONTIGUOUS", "ALIGNED"])
        if given.dtype.kind == "f" and given.dtype.itemsize in (4, 8)
        else checked
    )
    if len(j) != len(i):
        raise ValueError(f"columns: {len(j)} places, expected {len(i)} as in rows")
    return i, j, known, shape if shape is not None else (int(i.max()) + 1, int(j.max()) + 1)
