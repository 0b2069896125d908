"""Solvers for small and medium dense problems: Newton, Levenberg-Marquardt, conjugate gradients, steepest descent.

Names and conventions are those of :mod:`scipy.optimize`, which need not be installed; where it is, the minimisers work
as ``scipy.optimize.minimize(..., method=adaptk.solve.newton)``. Every solver

- keeps float32, and turns anything else that is real into float64;
- hands each call of a function an array of its own, which may be kept or changed;
- takes a shorter step where a value is NaN or infinite;
- returns the best point that it has seen, however it ends;
- passes the exceptions of functions and callbacks on unchanged, KeyboardInterrupt included;
- takes compiled functions too, which run without Python and its lock: function pointers of :mod:`ctypes`,
  ``numba.cfunc`` and ``scipy.LowLevelCallable``, with the C signatures that the docstrings give (float in the place of
  double for float32). `user` is the LowLevelCallable's user data, else null. Where fun, jac and hess are all compiled,
  the whole run needs no lock, and several threads run at once. With Python functions the lock is given up between
  their calls where the linear algebra takes a millisecond or more.
"""

from adaptk.solve._batch import levenberg_marquardt_batch
from adaptk.solve._gradient import conjugate_gradient, steepest_descent
from adaptk.solve._least_squares import levenberg_marquardt
from adaptk.solve._linear import cg
from adaptk.solve._newton import newton
from adaptk.solve._plot import plot
from adaptk.solve._result import Result

__all__ = [
    "Result",
    "cg",
    "conjugate_gradient",
    "levenberg_marquardt",
    "levenberg_marquardt_batch",
    "newton",
    "plot",
    "steepest_descent",
]
