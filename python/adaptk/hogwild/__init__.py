"""Hogwild!: linear models over sparse rows and matrix factorisation, trained by threads without locks.

:class:`SGDClassifier` and :class:`SGDRegressor` have the interface of scikit-learn, but do not need scikit-learn. They
train on CSR matrices (float32 or float64, with int32 or int64 indices) without a copy, and on dense arrays.
:class:`MatrixFactorization` learns factors and biases from a list of entries.

Threads take blocks of examples and update the same weights without waiting for each other (Niu, Recht, Ré and Wright
2011). Weights are read and written by relaxed atomic loads and stores: there is no lock and no data race, but an update
is lost now and then. If two threads often write to the same weight, its cache line moves between their caches. So each
thread works on copies of the weights of frequent features, and adds its changes to the shared weights after about
``publish_every`` updates.

``mode`` says what may run at the same time:

``"hogwild"``
    All updates. The results of two runs differ slightly, except on one thread and for small data.
``"locked"``
    One lock for all weights, taken for each example. It is meant for comparison.
``"deterministic"``
    Results are bitwise identical for every number of threads and instruction set. Different classes are trained in
    parallel, and so are blocks of a matrix factorization that have no row or column in common. The examples of one
    class are processed one after another.

Training releases the GIL, and Ctrl-C ends it. ``partial_fit`` trains on data that do not fit into memory, one part
after another.
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
