"""Solvers for small and medium dense problems: Newton, Levenberg-Marquardt, conjugate gradients, steepest descent.

Names and conventions are those of :mod:`scipy.optimize`, which is not required; if it is installed, the minimisers work
as ``scipy.optimize.minimize(..., method=adaptk.solve.newton)``. Every solver

- works in float32 if `x0` is float32, else in float64;
- passes a new array to each call of a function, which the function may keep or change;
- shortens a step if a value is NaN or infinite;
- returns the best point that it has seen, however it ends;
- propagates exceptions of functions and callbacks, KeyboardInterrupt included;
- accepts compiled functions, which run without the GIL: function pointers of :mod:`ctypes`, ``numba.cfunc`` and
  ``scipy.LowLevelCallable``, with the C signatures given in the docstrings (float instead of double for float32).
  `user` is the LowLevelCallable's user data, else null. If fun, jac and hess are all compiled, the whole run releases
  the GIL. With Python functions it is released between their calls if the linear algebra takes a millisecond or more.
"""

from typing import TYPE_CHECKING

from adaptk._names import face
from adaptk.solve._batch import levenberg_marquardt_batch
from adaptk.solve._check import check_derivatives
from adaptk.solve._curve_fit import CurveFit, curve_fit
from adaptk.solve._gradient import conjugate_gradient, steepest_descent
from adaptk.solve._lbfgs import lbfgs
from adaptk.solve._least_squares import levenberg_marquardt
from adaptk.solve._linear import cg
from adaptk.solve._newton import newton
from adaptk.solve._plot import plot
from adaptk.solve._result import Batch, Fit, Result

__all__ = [
    "Batch",
    "CurveFit",
    "Fit",
    "Result",
    "cg",
    "check_derivatives",
    "conjugate_gradient",
    "curve_fit",
    "lbfgs",
    "levenberg_marquardt",
    "levenberg_marquardt_batch",
    "newton",
    "plot",
    "steepest_descent",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = face(
        __name__,
        __all__,
        {
            "least_squares": "levenberg_marquardt(fun, x0)",
            "leastsq": "levenberg_marquardt(fun, x0)",
            "minimize": "newton, lbfgs, conjugate_gradient or steepest_descent, or for squares levenberg_marquardt",
        },
    )
