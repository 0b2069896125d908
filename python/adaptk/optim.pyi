# Made by python -m adaptk._stubs from the registry.
from collections.abc import Callable, Mapping
from typing import Any

from adaptk._optimizer import Optimizer as Optimizer
from adaptk._optimizer import StepInfo as StepInfo
from adaptk._typing import Number

__all__ = [
    "Optimizer",
    "StepInfo",
    "optimizer_for",
    "SGD",
    "DeltaBarDelta",
    "AdaGrad",
    "RMSProp",
    "AdaDelta",
    "Adam",
    "AdamW",
    "AdaMax",
    "NAdam",
    "RAdam",
    "RProp",
    "ASGD",
    "Lion",
    "AdaBelief",
    "Yogi",
    "Adan",
]

CLASSES: Mapping[str, type[Optimizer]]

def optimizer_for(
    rule: str,
    params: Any,
    lr: Number | Callable[[int], float] | None = ...,
    *,
    convention: str = ...,
    clip_norm: float | None = ...,
    skip_nonfinite: bool = ...,
    capturable: bool = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int = ...,
    seed: int = ...,
    param_format: str | None = ...,
    **options: Any,
) -> Optimizer:
    """An optimizer that runs the rule of this name."""

class SGD(Optimizer):
    """Gradient descent."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        momentum: Number = ...,
        dampening: Number = ...,
        velocity: bool = ...,
        dampen_first: bool = ...,
        nesterov: bool = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class DeltaBarDelta(Optimizer):
    """Delta-bar-delta: a learning rate for each parameter. For full-batch gradients only."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        kappa: Number = ...,
        phi: Number = ...,
        theta: Number = ...,
        eta_min: Number = ...,
        eta_max: Number = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class AdaGrad(Optimizer):
    """AdaGrad: rates that fall with the sum of squared gradients."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        lr_decay: Number = ...,
        eps_in: Number = ...,
        eps_out: Number = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        initial_accumulator_value: Number = ...,
        eps: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class RMSProp(Optimizer):
    """RMSProp: rates scaled by a running average of squared gradients."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        rho: Number = ...,
        eps_in: Number = ...,
        eps_out: Number = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        momentum: Number = ...,
        lr_inside: bool = ...,
        centered: bool = ...,
        nesterov: bool = ...,
        initial_accumulator_value: Number = ...,
        eps: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class AdaDelta(Optimizer):
    """AdaDelta: steps scaled by the ratio of past updates to past gradients."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        rho: Number = ...,
        eps: Number = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class Adam(Optimizer):
    """Adam: adaptive moment estimation."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number = ...,
        beta2: Number = ...,
        eps: Number = ...,
        eps_root: Number = ...,
        eps_hat: bool = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        amsgrad: bool = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number = ...,
        beta2: Number = ...,
        eps: Number = ...,
        eps_root: Number = ...,
        eps_hat: bool = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        amsgrad: bool = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class AdaMax(Optimizer):
    """AdaMax: Adam with the infinity norm of past gradients."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number = ...,
        beta2: Number = ...,
        eps: Number = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class NAdam(Optimizer):
    """NAdam: Adam with Nesterov momentum."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number = ...,
        beta2: Number = ...,
        eps: Number = ...,
        momentum_decay: Number = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class RAdam(Optimizer):
    """RAdam: Adam with a rectified adaptive rate."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number = ...,
        beta2: Number = ...,
        eps: Number = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class RProp(Optimizer):
    """Resilient propagation: step sizes from gradient signs. For full-batch gradients only."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        eta_minus: Number = ...,
        eta_plus: Number = ...,
        step_min: Number = ...,
        step_max: Number = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class ASGD(Optimizer):
    """Averaged gradient descent: the average of the parameters is kept in ax."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        lambd: Number = ...,
        alpha: Number = ...,
        t0: Number = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class Lion(Optimizer):
    """Lion: steps of one size, by the sign of an interpolated momentum."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number = ...,
        beta2: Number = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class AdaBelief(Optimizer):
    """AdaBelief: steps scaled by the belief in the observed gradient."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number = ...,
        beta2: Number = ...,
        eps: Number = ...,
        eps_root: Number = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class Yogi(Optimizer):
    """Yogi: Adam with an additive update of the second moment."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number = ...,
        beta2: Number = ...,
        eps: Number = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        initial_accumulator_value: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...

class Adan(Optimizer):
    """Adan: adaptive Nesterov momentum from gradient differences."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number = ...,
        beta2: Number = ...,
        beta3: Number = ...,
        eps: Number = ...,
        eps_root: Number = ...,
        one_minus_beta2: bool = ...,
        weight_decay: Number = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
    ) -> None: ...
