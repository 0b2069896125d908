"""How many of MINPACK's 53 runs of the problems of Moré, Garbow and Hillstrom end at the global minimum.

``python bench/solve_minpack.py [--starts 20]``

For ``levenberg_marquardt`` from MINPACK's start alone, for the same with more starts (each with at most 100
evaluations), and for SciPy's ``least_squares(method="lm")`` with tolerances of 1e-14. Jacobians are exact. The counts
hardly depend on the machine.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from adaptk import solve

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import mgh


def scipys(p: Any, x: Any) -> bool:
    from scipy.optimize import least_squares

    tight = {"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14}
    try:
        return bool(mgh.reaches_minimum(p, least_squares(p.residuals, x, jac=p.jacobian, method="lm", **tight).x))
    except ValueError:  # residuals that are not finite
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=20, help="drawn besides MINPACK's own; 0: none")
    starts = parser.parse_args().starts
    alone, together, peers, missed = 0, 0, 0, []
    runs = list(mgh.runs())
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for p, x in runs:
            peers += scipys(p, x)
            reached = mgh.reaches_minimum(p, solve.levenberg_marquardt(p.residuals, x, jac=p.jacobian).x)
            alone += reached
            # The starts add to MINPACK's, so a run that reaches the minimum without them does so with them.
            if not reached and starts:
                more = solve.levenberg_marquardt(p.residuals, x, jac=p.jacobian, starts=starts, max_nfev=100)
                reached = mgh.reaches_minimum(p, more.x)
            together += reached
            if not reached:
                missed.append(f"{p.name} (n = {p.n})")
    print(f"of MINPACK's {len(runs)} runs these end at the global minimum:")
    print(f"  levenberg_marquardt {alone}, with starts={starts} {together}; least_squares(method='lm') {peers}")
    print(f"  missed by all starts: {', '.join(missed) or 'none'}")


if __name__ == "__main__":
    main()
