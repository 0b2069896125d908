# Made by python -m adaptk._stubs from the registry.
from collections.abc import Callable, Mapping
from typing import Any

from adaptk._optimizer import Optimizer as Optimizer
from adaptk._optimizer import StepInfo as StepInfo

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
    lr: float | Callable[[int], float] | None = ...,
    *,
    convention: str = ...,
    clip_norm: float | None = ...,
    skip_nonfinite: bool = ...,
    **options: Any,
) -> Optimizer:
    """An optimizer that runs the rule of this name."""

class SGD(Optimizer):
    """Gradient descent."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        momentum: float = ...,
        dampening: float = ...,
        velocity: bool = ...,
        dampen_first: bool = ...,
        nesterov: bool = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class DeltaBarDelta(Optimizer):
    """Delta-bar-delta: a learning rate for each parameter. For full-batch gradients only."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        kappa: float = ...,
        phi: float = ...,
        theta: float = ...,
        eta_min: float = ...,
        eta_max: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class AdaGrad(Optimizer):
    """AdaGrad: rates that fall with the sum of squared gradients."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        lr_decay: float = ...,
        eps_in: float = ...,
        eps_out: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        initial_accumulator_value: float = ...,
        eps: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class RMSProp(Optimizer):
    """RMSProp: rates scaled by a running average of squared gradients."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        rho: float = ...,
        eps_in: float = ...,
        eps_out: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        momentum: float = ...,
        lr_inside: bool = ...,
        centered: bool = ...,
        nesterov: bool = ...,
        initial_accumulator_value: float = ...,
        eps: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class AdaDelta(Optimizer):
    """AdaDelta: steps scaled by the ratio of past updates to past gradients."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        rho: float = ...,
        eps: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class Adam(Optimizer):
    """Adam: adaptive moment estimation."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: float = ...,
        beta2: float = ...,
        eps: float = ...,
        eps_root: float = ...,
        eps_hat: bool = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        amsgrad: bool = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: float = ...,
        beta2: float = ...,
        eps: float = ...,
        eps_root: float = ...,
        eps_hat: bool = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        amsgrad: bool = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class AdaMax(Optimizer):
    """AdaMax: Adam with the infinity norm of past gradients."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: float = ...,
        beta2: float = ...,
        eps: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class NAdam(Optimizer):
    """NAdam: Adam with Nesterov momentum."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: float = ...,
        beta2: float = ...,
        eps: float = ...,
        momentum_decay: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class RAdam(Optimizer):
    """RAdam: Adam with a rectified adaptive rate."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: float = ...,
        beta2: float = ...,
        eps: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class RProp(Optimizer):
    """Resilient propagation: step sizes from gradient signs. For full-batch gradients only."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        eta_minus: float = ...,
        eta_plus: float = ...,
        step_min: float = ...,
        step_max: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class ASGD(Optimizer):
    """Averaged gradient descent: the average of the parameters is kept in ax."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        lambd: float = ...,
        alpha: float = ...,
        t0: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class Lion(Optimizer):
    """Lion: steps of one size, by the sign of an interpolated momentum."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: float = ...,
        beta2: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class AdaBelief(Optimizer):
    """AdaBelief: steps scaled by the belief in the observed gradient."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: float = ...,
        beta2: float = ...,
        eps: float = ...,
        eps_root: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class Yogi(Optimizer):
    """Yogi: Adam with an additive update of the second moment."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: float = ...,
        beta2: float = ...,
        eps: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        initial_accumulator_value: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...

class Adan(Optimizer):
    """Adan: adaptive Nesterov momentum from gradient differences."""

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: float = ...,
        beta2: float = ...,
        beta3: float = ...,
        eps: float = ...,
        eps_root: float = ...,
        weight_decay: float = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: float = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
    ) -> None: ...
