"""The result of every solver, and what its status says."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Result", "finish"]


class Result(dict[str, Any]):
    """What a solver returns: a dict whose items are attributes too, as ``scipy.optimize.OptimizeResult``.

    Attributes
    ----------
    x : ndarray, shape (n,)
        The best point that was seen.
    success : bool
        Whether the solver converged: ``status > 0``.
    status : int
        How it ended; the docstring of each solver states its values.
    message : str
        The same in words.
    fun : float or ndarray, shape (m,)
        The value at `x`; for least squares the residuals.
    jac : ndarray
        The gradient at `x`, shape (n,); for least squares the Jacobian, shape (m, n).
    nit, nfev, njev, nhev : int
        Iterations, and calls of the function, of its gradient or Jacobian, and of its Hessian (or products with it).
        Calls for differences are counted.
    history : dict of ndarray
        With ``history=True``: ``"fun"``, ``"step"`` and ``"gradient"``, one value an iteration and one for the start.

    Examples
    --------
    >>> import adaptk
    >>> r = adaptk.solve.newton(lambda x: (x[0] - 1) ** 2, [3.0], jac=lambda x: 2 * (x - 1), hess=lambda x: [[2.0]])
    >>> r.success, float(r.x[0]), r["nit"]
    (True, 1.0, 1)
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __repr__(self) -> str:
        if not self:
            return "Result()"
        width = max(map(len, self))
        lines = []
        for name in sorted(self, key=_order):
            text = repr(self[name]).replace("\n", "\n" + " " * (width + 3))
            lines.append(f"{name.rjust(width)}: {text}")
        return "\n".join(lines)


_FIRST = ("message", "success", "status", "cost", "fun", "x")


def _order(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


_COMMON = {
    0: "The limit of iterations or evaluations is reached.",
    1: "The gradient is small: |g| <= gtol times the largest gradient of the run.",
    5: "No step changes the function by more than its rounding.",
    -1: "The callback stopped it.",
    -2: "Time limit reached (max_seconds).",
    -3: "The function or a derivative is not finite where it must be.",
    -6: "The function fell to minus infinity.",
}
MESSAGES: dict[str, dict[int, str]] = {
    "newton": _COMMON
    | {
        1: "A minimum: the gradient is small, and the Hessian has no negative eigenvalue.",
        3: "The last full step is small: |p| <= xtol |x|, and the Hessian is positive definite.",
        -4: "The Hessian is not positive definite, which the plain method cannot use.",
        -5: "A saddle or a maximum: the gradient is small, but the function falls along an eigenvector.",
    },
    "least_squares": _COMMON
    | {
        1: "The residuals are orthogonal to the Jacobian's columns: cosine <= gtol.",
        2: "The last reduction is small: actual and predicted <= ftol.",
        3: "The last step is small: |D p| <= xtol |D x|.",
        4: "The last reduction and the last step are small.",
    },
    "gradient": _COMMON,
    "cg": _COMMON
    | {
        1: "The residual is small: |b - A x| <= max(rtol |b|, atol).",
        5: "Rounding keeps the residual from falling any further.",
        -7: "A is not positive definite: a direction p has p'Ap <= 0.",
    },
}


class Progress(Protocol):
    def close(self, status: str) -> None: ...


def finish(raw: dict[str, Any], kind: str, progress: Progress | None) -> Result:
    """What the solver returned, with its status in words, in the result and at the end of the line of progress."""
    status: int = raw["status"]
    result = Result(raw)
    result["success"] = status > 0
    result["message"] = MESSAGES[kind][status]
    if progress is not None:
        progress.close(result.message)
    return result
