from typing import Any

import numpy as np
import numpy.typing as npt

def copy_of_plain_start(x0: Any) -> npt.NDArray[np.float64] | None: ...
def levenberg_marquardt(
    fun: Any,
    x0: Any,
    args: tuple[Any, ...],
    jac: Any,
    derivatives: tuple[Any, ...],
    residuals: int,
    lower: Any,
    upper: Any,
    options: tuple[Any, ...],
    common: tuple[Any, ...],
    /,
) -> dict[str, Any]: ...
def plain_fit(arguments: tuple[Any, ...], keywords: dict[str, Any], /) -> Any: ...
def set_result_type(type: type, messages: dict[int, str], finish: Any, /) -> None: ...
def newton(
    fun: Any,
    x0: Any,
    args: tuple[Any, ...],
    jac: Any,
    hess: Any,
    hessp: Any,
    derivatives: tuple[Any, ...],
    damping: int,
    lower: Any,
    upper: Any,
    options: tuple[Any, ...],
    common: tuple[Any, ...],
    /,
) -> dict[str, Any]: ...
def descend(
    fun: Any,
    x0: Any,
    args: tuple[Any, ...],
    jac: Any,
    derivatives: tuple[Any, ...],
    kind: int,
    rule: int,
    lower: Any,
    upper: Any,
    options: tuple[Any, ...],
    common: tuple[Any, ...],
    /,
) -> dict[str, Any]: ...
def cg(
    a: Any,
    b: Any,
    x0: Any,
    m: Any,
    rtol: float,
    atol: float,
    maxiter: int,
    common: tuple[Any, ...],
    /,
) -> dict[str, Any]: ...
def cholesky_solve(h: Any, b: Any, /) -> Any: ...
def levenberg_marquardt_batch(
    model: tuple[int, int, int, int, tuple[Any, ...] | None],
    x0: Any,
    data: Any,
    coordinates: Any,
    weights: Any,
    lower: Any,
    upper: Any,
    fixed: Any,
    loss_scale: Any,
    options: tuple[Any, ...],
    covariance: bool,
    /,
) -> dict[str, Any]: ...
def batch_model(
    model: tuple[int, int, int, int, tuple[Any, ...] | None], p: Any, coordinates: Any, /
) -> tuple[Any, Any]: ...
def batch_exp(x: Any, /) -> Any: ...
