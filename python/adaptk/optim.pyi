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
    "AdEMAMix",
    "SimplifiedAdEMAMix",
    "ADOPT",
    "NAdamW",
    "LaProp",
    "MARSAdamW",
    "MARSLion",
    "Sophia",
    "AdaHessian",
    "AdamS",
    "AdaBound",
    "AMSBound",
    "QHAdam",
    "Grams",
    "AdaMod",
    "PAdam",
    "AMSGradCorrected",
    "RAdamCorrected",
    "EXAdam",
    "AdamAtan2",
    "DiffGrad",
    "AdamG",
    "Ano",
    "ACProp",
    "OptimisticAdam",
    "FTML",
    "FOCUS",
    "MSVAG",
    "Adafactor",
    "AdafactorMomentum",
    "CAME",
    "SM3",
    "SM3Momentum",
    "AdamMini",
    "AdamMiniTensor",
    "LAMB",
    "LARS",
    "StableAdamW",
    "Fromage",
    "NovoGrad",
    "QHM",
    "AggMo",
    "PID",
    "AccSGD",
    "OptimisticSGD",
    "PNM",
    "SRMM",
    "AdaPNM",
    "FTRL",
    "MADGRAD",
    "Kate",
    "AdaSqrt",
    "SMORMS3",
    "COCOB",
    "ScheduleFreeSGD",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "SignSGD",
    "Signum",
    "Tiger",
    "RPropDelayed",
    "Prodigy",
    "DAdaptAdam",
    "DAdaptSGD",
    "DoG",
    "DoWG",
    "RowWiseAdaGrad",
    "RowWiseAdam",
]

CLASSES: Mapping[str, type[Optimizer]]
ROW_WISE_CLASSES: Mapping[str, type[Optimizer]]

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
    sparse: str = ...,
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
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        momentum: Number | Callable[[int], float] = ...,
        dampening: Number | Callable[[int], float] = ...,
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
        sparse: str = ...,
    ) -> None: ...

class DeltaBarDelta(Optimizer):
    """Delta-bar-delta: a learning rate for each parameter. For full-batch gradients only."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        kappa: Number | Callable[[int], float] = ...,
        phi: Number | Callable[[int], float] = ...,
        theta: Number | Callable[[int], float] = ...,
        eta_min: Number | Callable[[int], float] = ...,
        eta_max: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdaGrad(Optimizer):
    """AdaGrad: rates that fall with the sum of squared gradients."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        lr_decay: Number | Callable[[int], float] = ...,
        eps_in: Number | Callable[[int], float] = ...,
        eps_out: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        initial_accumulator_value: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class RMSProp(Optimizer):
    """RMSProp: rates scaled by a running average of squared gradients."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        rho: Number | Callable[[int], float] = ...,
        eps_in: Number | Callable[[int], float] = ...,
        eps_out: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        momentum: Number | Callable[[int], float] = ...,
        lr_inside: bool = ...,
        centered: bool = ...,
        nesterov: bool = ...,
        initial_accumulator_value: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdaDelta(Optimizer):
    """AdaDelta: steps scaled by the ratio of past updates to past gradients."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        rho: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Adam(Optimizer):
    """Adam: adaptive moment estimation."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        eps_root: Number | Callable[[int], float] = ...,
        eps_hat: bool = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        amsgrad: bool = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        eps_root: Number | Callable[[int], float] = ...,
        eps_hat: bool = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        amsgrad: bool = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdaMax(Optimizer):
    """AdaMax: Adam with the infinity norm of past gradients."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class NAdam(Optimizer):
    """NAdam: Adam with Nesterov momentum."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        momentum_decay: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class RAdam(Optimizer):
    """RAdam: Adam with a rectified adaptive rate."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class RProp(Optimizer):
    """Resilient propagation: step sizes from gradient signs. For full-batch gradients only."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        eta_minus: Number | Callable[[int], float] = ...,
        eta_plus: Number | Callable[[int], float] = ...,
        step_min: Number | Callable[[int], float] = ...,
        step_max: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class ASGD(Optimizer):
    """Averaged gradient descent: the average of the parameters is kept in ax."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        lambd: Number | Callable[[int], float] = ...,
        alpha: Number | Callable[[int], float] = ...,
        t0: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Lion(Optimizer):
    """Lion: steps of one size, by the sign of an interpolated momentum."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdaBelief(Optimizer):
    """AdaBelief: steps scaled by the belief in the observed gradient."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        eps_root: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Yogi(Optimizer):
    """Yogi: Adam with an additive update of the second moment."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        initial_accumulator_value: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Adan(Optimizer):
    """Adan: adaptive Nesterov momentum from gradient differences."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        beta3: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        eps_root: Number | Callable[[int], float] = ...,
        one_minus_beta2: bool = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdEMAMix(Optimizer):
    """Adam with a second, slow average of gradients."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        beta3: Number | Callable[[int], float] = ...,
        alpha: Number | Callable[[int], float] = ...,
        warmup: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class SimplifiedAdEMAMix(Optimizer):
    """AdEMAMix with a sum of gradients, and the gradient instead of the fast average."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        alpha: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class ADOPT(Optimizer):
    """Adam that divides each gradient by the root of the previous second moment, before the first moment."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        clip_exponent: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class NAdamW(Optimizer):
    """AdamW with Nesterov's momentum, without a schedule of the momentum."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class LaProp(Optimizer):
    """Momentum of the scaled gradient: the two operations of Adam in reverse order."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class MARSAdamW(Optimizer):
    """AdamW on gradients of reduced variance, which are not clipped."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        gamma: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class MARSLion(Optimizer):
    """The sign of a momentum of gradients of reduced variance, which are not clipped."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        gamma: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Sophia(Optimizer):
    """A clipped step by an average of estimates of the Hessian's diagonal."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        gamma: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdaHessian(Optimizer):
    """Adam with the Hessian's diagonal in the second moment."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdamS(Optimizer):
    """Adam whose second moment is computed from the momentum, with one state."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdaBound(Optimizer):
    """Adam whose rates are clipped to bounds that converge to the rate of gradient descent."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        final_lr: Number | Callable[[int], float] = ...,
        gamma: Number | Callable[[int], float] = ...,
        first_lr: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AMSBound(Optimizer):
    """AMSGrad whose rates are clipped to bounds that converge to the rate of gradient descent."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        final_lr: Number | Callable[[int], float] = ...,
        gamma: Number | Callable[[int], float] = ...,
        first_lr: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class QHAdam(Optimizer):
    """Adam with weighted means of the moments and of the gradient itself."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        nu1: Number | Callable[[int], float] = ...,
        nu2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Grams(Optimizer):
    """Steps with the magnitude of Adam's and the sign of the gradient."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdaMod(Optimizer):
    """Adam whose rates are bounded by their moving average."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        beta3: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class PAdam(Optimizer):
    """AMSGrad with the power 1/4 of the second moment instead of 1/2."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AMSGradCorrected(Optimizer):
    """AMSGrad with the maximum of bias-corrected second moments, as in optax."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        eps_root: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class RAdamCorrected(Optimizer):
    """RAdam with eps added to the bias-corrected root, as in optax."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        eps_root: Number | Callable[[int], float] = ...,
        threshold: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class EXAdam(Optimizer):
    """Adam with bias corrections that depend on both moments, and the gradient added to the first moment."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdamAtan2(Optimizer):
    """Adam with an angle instead of a quotient: it needs no eps and does not depend on the scale of gradients."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        a: Number | Callable[[int], float] = ...,
        b: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class DiffGrad(Optimizer):
    """Adam with shorter steps where the gradient changes little."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdamG(Optimizer):
    """Adam on gradients multiplied by a power of their second moment. It needs no tuned learning rate."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        beta3: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        scale: Number | Callable[[int], float] = ...,
        power: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Ano(Optimizer):
    """The momentum's direction with the gradient's magnitude."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class ACProp(Optimizer):
    """The gradient divided by the root of its variance over the previous steps."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class OptimisticAdam(Optimizer):
    """Adam that extrapolates the last change of its step."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class FTML(Optimizer):
    """Follow the moving leader."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class FOCUS(Optimizer):
    """Signum with an attraction to the average of the params."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        gamma: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class MSVAG(Optimizer):
    """Momentum, scaled down where its variance is large."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Adafactor(Optimizer):
    """Second moments from the means of rows and columns, and steps relative to the tensor."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta2_decay: Number | Callable[[int], float] = ...,
        eps1: Number | Callable[[int], float] = ...,
        eps2: Number | Callable[[int], float] = ...,
        clip_threshold: Number | Callable[[int], float] = ...,
        scale_parameter: bool = ...,
        relative_step: bool = ...,
        floor: bool = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdafactorMomentum(Optimizer):
    """Adafactor with a moving average of its steps."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2_decay: Number | Callable[[int], float] = ...,
        eps1: Number | Callable[[int], float] = ...,
        eps2: Number | Callable[[int], float] = ...,
        clip_threshold: Number | Callable[[int], float] = ...,
        scale_parameter: bool = ...,
        relative_step: bool = ...,
        floor: bool = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class CAME(Optimizer):
    """Averaged updates of Adafactor, divided by the root of their mean squared deviation from the average."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        beta3: Number | Callable[[int], float] = ...,
        eps1: Number | Callable[[int], float] = ...,
        eps2: Number | Callable[[int], float] = ...,
        clip_threshold: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class SM3(Optimizer):
    """AdaGrad that stores only the largest sum of each row and column."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class SM3Momentum(Optimizer):
    """SM3 with a moving average of its updates."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        momentum: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdamMini(Optimizer):
    """Adam with one second moment for each row: each output of a layer, and each vector."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdamMiniTensor(Optimizer):
    """Adam with one second moment for each tensor."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class LAMB(Optimizer):
    """Adam whose step is as long, in each tensor, as the learning rate times the tensor's norm."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class LARS(Optimizer):
    """Momentum of gradients that are scaled, in each tensor, to the tensor's norm."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        momentum: Number | Callable[[int], float] = ...,
        trust: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class StableAdamW(Optimizer):
    """AdamW with a smaller learning rate in tensors whose second moment is outdated."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Fromage(Optimizer):
    """Steps whose length is a fixed fraction of the tensor's norm, corrected for the growth of the norm."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class NovoGrad(Optimizer):
    """Momentum of gradients that are divided, in each tensor, by the root of one second moment."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class QHM(Optimizer):
    """A weighted mean of momentum and gradient."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta: Number | Callable[[int], float] = ...,
        nu: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AggMo(Optimizer):
    """The mean of three velocities, with the momenta 0, beta1 and beta2."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class PID(Optimizer):
    """The gradient, its sum and its change, as in a controller."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        momentum: Number | Callable[[int], float] = ...,
        dampening: Number | Callable[[int], float] = ...,
        integral: Number | Callable[[int], float] = ...,
        derivative: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AccSGD(Optimizer):
    """Gradient descent with a short and a long step."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        kappa: Number | Callable[[int], float] = ...,
        xi: Number | Callable[[int], float] = ...,
        small_const: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class OptimisticSGD(Optimizer):
    """Gradient descent that extrapolates the last change of the gradient."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class PNM(Optimizer):
    """The difference of two momenta that are updated in alternate steps."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta0: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class SRMM(Optimizer):
    """Averages of gradients and params with decreasing weights, which are reset periodically."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta: Number | Callable[[int], float] = ...,
        memory: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdaPNM(Optimizer):
    """AMSGrad with the difference of two momenta that are updated in alternate steps."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        beta0: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class FTRL(Optimizer):
    """Follow the regularised leader: sparse params for sparse features."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta: Number | Callable[[int], float] = ...,
        l1: Number | Callable[[int], float] = ...,
        l2: Number | Callable[[int], float] = ...,
        initial_accumulator: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class MADGRAD(Optimizer):
    """Dual averaging by the cube root of the sum of squares, with momentum."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        momentum: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Kate(Optimizer):
    """AdaGrad without the root, whose steps do not depend on the scale of the features."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        delta: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class AdaSqrt(Optimizer):
    """AdaGrad without the root, with rates that grow with the root of the step number."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class SMORMS3(Optimizer):
    """Rates from the ratio of the squared mean of gradients to their mean square, with an adaptive memory."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class COCOB(Optimizer):
    """Coin betting for each coordinate, without a learning rate."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        alpha: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class ScheduleFreeSGD(Optimizer):
    """Gradient descent with an average of the params instead of a learning-rate schedule."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        warmup: Number | Callable[[int], float] = ...,
        weight_lr_power: Number | Callable[[int], float] = ...,
        r: Number | Callable[[int], float] = ...,
        lr_max: Number | Callable[[int], float] = ...,
        weight_sum: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class ScheduleFreeAdamW(Optimizer):
    """AdamW with an average of the params instead of a learning-rate schedule and the first moment."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        warmup: Number | Callable[[int], float] = ...,
        weight_lr_power: Number | Callable[[int], float] = ...,
        r: Number | Callable[[int], float] = ...,
        lr_max: Number | Callable[[int], float] = ...,
        weight_sum: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class ScheduleFreeRAdam(Optimizer):
    """RAdam with an average of the params instead of a learning-rate schedule and the first moment."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        silent_sgd_phase: bool = ...,
        weight_lr_power: Number | Callable[[int], float] = ...,
        r: Number | Callable[[int], float] = ...,
        lr_max: Number | Callable[[int], float] = ...,
        weight_sum: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class SignSGD(Optimizer):
    """Steps by the sign of the gradient."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Signum(Optimizer):
    """Steps by the sign of a momentum."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Tiger(Optimizer):
    """Steps by the sign of a momentum."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class RPropDelayed(Optimizer):
    """Resilient propagation with steps one iteration later, unless the next gradient opposes them, as in optax."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        eta_minus: Number | Callable[[int], float] = ...,
        eta_plus: Number | Callable[[int], float] = ...,
        step_min: Number | Callable[[int], float] = ...,
        step_max: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class Prodigy(Optimizer):
    """Adam with an estimate of the distance to the solution as its step size."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        d0: Number | Callable[[int], float] = ...,
        d_coef: Number | Callable[[int], float] = ...,
        growth_rate: Number | Callable[[int], float] = ...,
        use_bias_correction: bool = ...,
        d: Number | Callable[[int], float] = ...,
        d_max: Number | Callable[[int], float] = ...,
        numerator: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class DAdaptAdam(Optimizer):
    """Adam with a lower bound of the distance to the solution as its step size."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        d0: Number | Callable[[int], float] = ...,
        growth_rate: Number | Callable[[int], float] = ...,
        use_bias_correction: bool = ...,
        d: Number | Callable[[int], float] = ...,
        numerator: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class DAdaptSGD(Optimizer):
    """Gradient descent with a lower bound of the distance to the solution as its step size."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        momentum: Number | Callable[[int], float] = ...,
        d0: Number | Callable[[int], float] = ...,
        growth_rate: Number | Callable[[int], float] = ...,
        d: Number | Callable[[int], float] = ...,
        numerator: Number | Callable[[int], float] = ...,
        g0_norm: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class DoG(Optimizer):
    """Gradient descent with the largest distance so far, divided by the root of the sum of squared gradients."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        reps_rel: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        distance: Number | Callable[[int], float] = ...,
        squares: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class DoWG(Optimizer):
    """DoG with gradients weighted by the squared distance at their step."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        d0: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        distance: Number | Callable[[int], float] = ...,
        squares: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class RowWiseAdaGrad(Optimizer):
    """AdaGrad with one accumulator per row: the sum of the row's mean squared gradients."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        lr_decay: Number | Callable[[int], float] = ...,
        eps_in: Number | Callable[[int], float] = ...,
        eps_out: Number | Callable[[int], float] = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        initial_accumulator_value: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...

class RowWiseAdam(Optimizer):
    """Adam with one second moment per row."""

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = ...,
        *,
        convention: str = ...,
        beta1: Number | Callable[[int], float] = ...,
        beta2: Number | Callable[[int], float] = ...,
        eps: Number | Callable[[int], float] = ...,
        eps_root: Number | Callable[[int], float] = ...,
        eps_hat: bool = ...,
        weight_decay: Number | Callable[[int], float] = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        grad_scale: Number | Callable[[int], float] = ...,
        clip_norm: float | None = ...,
        skip_nonfinite: bool = ...,
        capturable: bool = ...,
        state_dtype: str | Mapping[str, str] | None = ...,
        min_8bit_size: int = ...,
        seed: int = ...,
        param_format: str | None = ...,
        sparse: str = ...,
    ) -> None: ...
