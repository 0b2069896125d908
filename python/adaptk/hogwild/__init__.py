"""Hogwild!: linear models over sparse rows and matrix factorisation, trained by threads without locks.

:class:`SGDClassifier` and :class:`SGDRegressor` have scikit-learn's interface, and do not need it. They train on CSR
matrices without a copy, of float32 or float64 with indices of int32 or int64, and on dense arrays.
:class:`MatrixFactorization` learns factors and biases from a list of entries.

Threads take examples by blocks and update the same weights whenever they like (Niu, Recht, Ré and Wright 2011). Weights
are read and written by relaxed atomic loads and stores: there is no lock and no data race, and now and then an update
is lost. What two threads write all the time would travel between their caches, so each thread works on copies of the
weights of frequent features and adds its changes to the shared weights after about ``publish_every`` updates.

``mode`` says what may happen at the same time:

``"hogwild"``
    Everything. The results of two runs differ a little. On one thread, and with little data, they do not.
``"locked"``
    One lock for all weights, taken for each example. It is here to compare with.
``"deterministic"``
    The same bits for every number of threads and instruction set. Classes are trained at the same time, and so are
    blocks of a matrix factorisation that have no row or column in common; the examples of one class come one after
    another.

Training releases the GIL, Ctrl-C ends it, and ``partial_fit`` goes on with the next part of data that do not fit into
memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptk._names import face
from adaptk.hogwild._estimator import ConvergenceWarning, NotFittedError
from adaptk.hogwild._factorization import MatrixFactorization
from adaptk.hogwild._linear import SGDClassifier, SGDRegressor

__all__ = ["ConvergenceWarning", "MatrixFactorization", "NotFittedError", "SGDClassifier", "SGDRegressor"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = face(__name__, __all__, {"SGD": "SGDClassifier or SGDRegressor"})
