# Made by python -m adaptk._stubs from the registry.
from typing import Any

from torch import Tensor

from adaptk.torch._made import Made

class AdEMAMix(Made):
    """Adam with a second, slow average of gradients."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        beta3: float | Tensor = ...,
        alpha: float | Tensor = ...,
        warmup: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class SimplifiedAdEMAMix(Made):
    """AdEMAMix with a sum of gradients, and the gradient instead of the fast average."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        alpha: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class ADOPT(Made):
    """Adam that divides each gradient by the root of the previous second moment, before the first moment."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        clip_exponent: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class NAdamW(Made):
    """AdamW with Nesterov's momentum, without a schedule of the momentum."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class LaProp(Made):
    """Momentum of the scaled gradient: the two operations of Adam in reverse order."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class MARSAdamW(Made):
    """AdamW on gradients of reduced variance, which are not clipped."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        gamma: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class MARSLion(Made):
    """The sign of a momentum of gradients of reduced variance, which are not clipped."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        gamma: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class Sophia(Made):
    """A clipped step by an average of estimates of the Hessian's diagonal."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        gamma: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AdaHessian(Made):
    """Adam with the Hessian's diagonal in the second moment."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AdamS(Made):
    """Adam whose second moment is computed from the momentum, with one state."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AdaBound(Made):
    """Adam whose rates are clipped to bounds that converge to the rate of gradient descent."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        final_lr: float | Tensor = ...,
        gamma: float | Tensor = ...,
        first_lr: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AMSBound(Made):
    """AMSGrad whose rates are clipped to bounds that converge to the rate of gradient descent."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        final_lr: float | Tensor = ...,
        gamma: float | Tensor = ...,
        first_lr: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class QHAdam(Made):
    """Adam with weighted means of the moments and of the gradient itself."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        nu1: float | Tensor = ...,
        nu2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class Grams(Made):
    """Steps with the magnitude of Adam's and the sign of the gradient."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AdaMod(Made):
    """Adam whose rates are bounded by their moving average."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        beta3: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class PAdam(Made):
    """AMSGrad with the power 1/4 of the second moment instead of 1/2."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AMSGradCorrected(Made):
    """AMSGrad with the maximum of bias-corrected second moments, as in optax."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        eps_root: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class RAdamCorrected(Made):
    """RAdam with eps added to the bias-corrected root, as in optax."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        eps_root: float | Tensor = ...,
        threshold: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class EXAdam(Made):
    """Adam with bias corrections that depend on both moments, and the gradient added to the first moment."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AdamAtan2(Made):
    """Adam with an angle instead of a quotient: it needs no eps and does not depend on the scale of gradients."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        a: float | Tensor = ...,
        b: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class DiffGrad(Made):
    """Adam with shorter steps where the gradient changes little."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AdamG(Made):
    """Adam on gradients multiplied by a power of their second moment. It needs no tuned learning rate."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        beta3: float | Tensor = ...,
        eps: float | Tensor = ...,
        scale: float | Tensor = ...,
        power: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class Ano(Made):
    """The momentum's direction with the gradient's magnitude."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class ACProp(Made):
    """The gradient divided by the root of its variance over the previous steps."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class OptimisticAdam(Made):
    """Adam that extrapolates the last change of its step."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class FTML(Made):
    """Follow the moving leader."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class FOCUS(Made):
    """Signum with an attraction to the average of the params."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        gamma: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class MSVAG(Made):
    """Momentum, scaled down where its variance is large."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class Adafactor(Made):
    """Second moments from the means of rows and columns, and steps relative to the tensor."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta2_decay: float | Tensor = ...,
        eps1: float | Tensor = ...,
        eps2: float | Tensor = ...,
        clip_threshold: float | Tensor = ...,
        scale_parameter: bool = ...,
        relative_step: bool = ...,
        floor: bool = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AdafactorMomentum(Made):
    """Adafactor with a moving average of its steps."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2_decay: float | Tensor = ...,
        eps1: float | Tensor = ...,
        eps2: float | Tensor = ...,
        clip_threshold: float | Tensor = ...,
        scale_parameter: bool = ...,
        relative_step: bool = ...,
        floor: bool = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class CAME(Made):
    """Averaged updates of Adafactor, divided by the root of their mean squared deviation from the average."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        beta3: float | Tensor = ...,
        eps1: float | Tensor = ...,
        eps2: float | Tensor = ...,
        clip_threshold: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class SM3(Made):
    """AdaGrad that stores only the largest sum of each row and column."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class SM3Momentum(Made):
    """SM3 with a moving average of its updates."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        momentum: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AdamMini(Made):
    """Adam with one second moment for each row: each output of a layer, and each vector."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AdamMiniTensor(Made):
    """Adam with one second moment for each tensor."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class LAMB(Made):
    """Adam whose step is as long, in each tensor, as the learning rate times the tensor's norm."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class LARS(Made):
    """Momentum of gradients that are scaled, in each tensor, to the tensor's norm."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        momentum: float | Tensor = ...,
        trust: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class StableAdamW(Made):
    """AdamW with a smaller learning rate in tensors whose second moment is outdated."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class Fromage(Made):
    """Steps whose length is a fixed fraction of the tensor's norm, corrected for the growth of the norm."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class NovoGrad(Made):
    """Momentum of gradients that are divided, in each tensor, by the root of one second moment."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class QHM(Made):
    """A weighted mean of momentum and gradient."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta: float | Tensor = ...,
        nu: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AggMo(Made):
    """The mean of three velocities, with the momenta 0, beta1 and beta2."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class PID(Made):
    """The gradient, its sum and its change, as in a controller."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        momentum: float | Tensor = ...,
        dampening: float | Tensor = ...,
        integral: float | Tensor = ...,
        derivative: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AccSGD(Made):
    """Gradient descent with a short and a long step."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        kappa: float | Tensor = ...,
        xi: float | Tensor = ...,
        small_const: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class OptimisticSGD(Made):
    """Gradient descent that extrapolates the last change of the gradient."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class PNM(Made):
    """The difference of two momenta that are updated in alternate steps."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta0: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class SRMM(Made):
    """Averages of gradients and params with decreasing weights, which are reset periodically."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta: float | Tensor = ...,
        memory: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AdaPNM(Made):
    """AMSGrad with the difference of two momenta that are updated in alternate steps."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        beta0: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class FTRL(Made):
    """Follow the regularised leader: sparse params for sparse features."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta: float | Tensor = ...,
        l1: float | Tensor = ...,
        l2: float | Tensor = ...,
        initial_accumulator: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class MADGRAD(Made):
    """Dual averaging by the cube root of the sum of squares, with momentum."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        momentum: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class Kate(Made):
    """AdaGrad without the root, whose steps do not depend on the scale of the features."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        delta: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class AdaSqrt(Made):
    """AdaGrad without the root, with rates that grow with the root of the step number."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class SMORMS3(Made):
    """Rates from the ratio of the squared mean of gradients to their mean square, with an adaptive memory."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class COCOB(Made):
    """Coin betting for each coordinate, without a learning rate."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        alpha: float | Tensor = ...,
        eps: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class ScheduleFreeSGD(Made):
    """Gradient descent with an average of the params instead of a learning-rate schedule."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        warmup: float | Tensor = ...,
        weight_lr_power: float | Tensor = ...,
        r: float | Tensor = ...,
        lr_max: float | Tensor = ...,
        weight_sum: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class ScheduleFreeAdamW(Made):
    """AdamW with an average of the params instead of a learning-rate schedule and the first moment."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        warmup: float | Tensor = ...,
        weight_lr_power: float | Tensor = ...,
        r: float | Tensor = ...,
        lr_max: float | Tensor = ...,
        weight_sum: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class ScheduleFreeRAdam(Made):
    """RAdam with an average of the params instead of a learning-rate schedule and the first moment."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        silent_sgd_phase: bool = ...,
        weight_lr_power: float | Tensor = ...,
        r: float | Tensor = ...,
        lr_max: float | Tensor = ...,
        weight_sum: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class SignSGD(Made):
    """Steps by the sign of the gradient."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class Signum(Made):
    """Steps by the sign of a momentum."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class Tiger(Made):
    """Steps by the sign of a momentum."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class RPropDelayed(Made):
    """Resilient propagation with steps one iteration later, unless the next gradient opposes them, as in optax."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        eta_minus: float | Tensor = ...,
        eta_plus: float | Tensor = ...,
        step_min: float | Tensor = ...,
        step_max: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class Prodigy(Made):
    """Adam with an estimate of the distance to the solution as its step size."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        d0: float | Tensor = ...,
        d_coef: float | Tensor = ...,
        growth_rate: float | Tensor = ...,
        use_bias_correction: bool = ...,
        d: float | Tensor = ...,
        d_max: float | Tensor = ...,
        numerator: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class DAdaptAdam(Made):
    """Adam with a lower bound of the distance to the solution as its step size."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        betas: tuple[float | Tensor, ...] | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        beta1: float | Tensor = ...,
        beta2: float | Tensor = ...,
        eps: float | Tensor = ...,
        d0: float | Tensor = ...,
        growth_rate: float | Tensor = ...,
        use_bias_correction: bool = ...,
        d: float | Tensor = ...,
        numerator: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class DAdaptSGD(Made):
    """Gradient descent with a lower bound of the distance to the solution as its step size."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        momentum: float | Tensor = ...,
        d0: float | Tensor = ...,
        growth_rate: float | Tensor = ...,
        d: float | Tensor = ...,
        numerator: float | Tensor = ...,
        g0_norm: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class DoG(Made):
    """Gradient descent with the largest distance so far, divided by the root of the sum of squared gradients."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        reps_rel: float | Tensor = ...,
        eps: float | Tensor = ...,
        distance: float | Tensor = ...,
        squares: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...

class DoWG(Made):
    """DoG with gradients weighted by the squared distance at their step."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = ...,
        *,
        convention: str = ...,
        fused: bool | None = ...,
        d0: float | Tensor = ...,
        eps: float | Tensor = ...,
        distance: float | Tensor = ...,
        squares: float | Tensor = ...,
        weight_decay: float | Tensor = ...,
        decoupled: bool = ...,
        maximize: bool = ...,
        **storage: Any,
    ) -> None: ...
