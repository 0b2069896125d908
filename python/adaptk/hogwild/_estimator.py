"""The interface of scikit-learn's estimators, without scikit-learn."""

from __future__ import annotations

import inspect
import sys
from typing import Any, TypeVar

import numpy as np

from adaptk import _core
from adaptk._names import hint
from adaptk._numbers import count

E = TypeVar("E", bound="Estimator")


class NotFittedError(ValueError, AttributeError):
    """An estimator was used before it was fitted. If scikit-learn is imported, its class of this name is raised."""


class ConvergenceWarning(UserWarning):
    """Training ended before it converged. If scikit-learn is imported, its class of this name is used."""


def _of_sklearn(name: str) -> Any:
    exceptions = sys.modules.get("sklearn.exceptions")
    return getattr(exceptions, name, None)


def warning_named(name: str, otherwise: type[Warning]) -> type[Warning]:
    """scikit-learn's warning class of this name, if scikit-learn is imported."""
    found: type[Warning] | None = _of_sklearn(name)
    return otherwise if found is None else found


class Estimator:
    """Base of the estimators. The arguments of ``__init__`` are stored unchanged, and checked by ``fit``."""

    n_features_in_: int

    @classmethod
    def _names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name.

        Parameters
        ----------
        deep
            Not used; there are no estimators among the parameters.

        Returns
        -------
        dict
            Parameters by name, as they were given.
        """
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self: E, **params: Any) -> E:
        """Set parameters for the next call of ``fit`` or ``partial_fit``.

        Parameters
        ----------
        **params
            Parameters by name.

        Returns
        -------
        estimator
            ``self``.

        Raises
        ------
        ValueError
            A name is unknown. No parameter is changed in this case.
        """
        names = self._names()
        for name in params:
            if name not in names:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}{hint(name, names)}; it has "
                    f"{', '.join(names)}"
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if repr(value) != repr(defaults[name].default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        return any(name.endswith("_") and not name.startswith("_") for name in vars(self))

    def _check_is_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            kind: type[Exception] = _of_sklearn("NotFittedError") or NotFittedError
            raise kind(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with appropriate arguments before "
                "using this estimator."
            )

    # The parameters that all estimators have.

    def _one_of(self, name: str, known: tuple[Any, ...]) -> Any:
        value = getattr(self, name)
        if not any(value is k or (isinstance(value, str) and value == k) for k in known):
            raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}{hint(value, [])}")
        return value

    def _flag(self, name: str) -> bool:
        value = getattr(self, name)
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
        return bool(value)

    def _threads(self) -> int:
        n: Any = getattr(self, "n_jobs")  # noqa: B009
        if n is None or (not isinstance(n, bool) and n == -1):
            return _core.get_num_threads()
        return count("n_jobs", n, 1)

    def _seed(self) -> int:
        state: Any = getattr(self, "random_state")  # noqa: B009
        if state is None:
            return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        if hasattr(state, "randint"):
            return int(state.randint(2**31 - 1))
        if isinstance(state, np.random.Generator):
            return int(state.integers(2**63))
        n = count("random_state", state, 0)
        if n >= 2**64:
            raise ValueError(f"random_state must be < 2**64, got {n}")
        return n
