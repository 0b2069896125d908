# Made by python -m adaptk._stubs from the registry.
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from adaptk._jax_step import GradientTransformation as GradientTransformation
from adaptk._jax_step import SplitState as SplitState
from adaptk._jax_step import Stored as Stored

__all__ = [
    "GradientTransformation",
    "SplitState",
    "Stored",
    "sgd",
    "momentum",
    "nesterov",
    "delta_bar_delta",
    "adagrad",
    "rmsprop",
    "rmsprop_centered",
    "rmsprop_momentum",
    "rmsprop_centered_momentum",
    "rmsprop_nesterov",
    "adadelta",
    "adam",
    "amsgrad",
    "adamw",
    "adamax",
    "nadam",
    "radam",
    "rprop",
    "asgd",
    "lion",
    "adabelief",
    "yogi",
    "adan",
    "ademamix",
    "simplified_ademamix",
    "adopt",
    "nadamw",
    "laprop",
    "mars_adamw",
    "mars_lion",
    "sophia",
    "adahessian",
    "adams",
    "adabound",
    "amsbound",
    "qhadam",
    "grams",
    "adamod",
    "padam",
    "amsgrad_corrected",
    "radam_corrected",
    "exadam",
    "adam_atan2",
    "diffgrad",
    "adamg",
    "ano",
    "acprop",
    "optimistic_adam",
    "ftml",
    "focus",
    "msvag",
    "adafactor",
    "adafactor_momentum",
    "came",
    "sm3",
    "sm3_momentum",
    "adam_mini",
    "adam_mini_tensor",
    "lamb",
    "lars",
    "stable_adamw",
    "fromage",
    "novograd",
    "qhm",
    "aggmo",
    "pid",
    "accsgd",
    "optimistic_sgd",
    "pnm",
    "srmm",
    "adapnm",
    "ftrl",
    "madgrad",
    "kate",
    "adasqrt",
    "smorms3",
    "cocob",
    "schedule_free_sgd",
    "schedule_free_adamw",
    "schedule_free_radam",
    "signsgd",
    "signum",
    "tiger",
    "rprop_delayed",
    "prodigy",
    "dadapt_adam",
    "dadapt_sgd",
    "dog",
    "dowg",
    "rowwise_adagrad",
    "rowwise_adam",
    "SgdState",
    "MomentumState",
    "NesterovState",
    "DeltaBarDeltaState",
    "AdagradState",
    "RmspropState",
    "RmspropCenteredState",
    "RmspropMomentumState",
    "RmspropCenteredMomentumState",
    "RmspropNesterovState",
    "AdadeltaState",
    "AdamState",
    "AmsgradState",
    "AdamwState",
    "AdamaxState",
    "NadamState",
    "RadamState",
    "RpropState",
    "AsgdState",
    "LionState",
    "AdabeliefState",
    "YogiState",
    "AdanState",
    "AdemamixState",
    "SimplifiedAdemamixState",
    "AdoptState",
    "NadamwState",
    "LapropState",
    "MarsAdamwState",
    "MarsLionState",
    "SophiaState",
    "AdahessianState",
    "AdamsState",
    "AdaboundState",
    "AmsboundState",
    "QhadamState",
    "GramsState",
    "AdamodState",
    "PadamState",
    "AmsgradCorrectedState",
    "RadamCorrectedState",
    "ExadamState",
    "AdamAtan2State",
    "DiffgradState",
    "AdamgState",
    "AnoState",
    "AcpropState",
    "OptimisticAdamState",
    "FtmlState",
    "FocusState",
    "MsvagState",
    "AdafactorState",
    "AdafactorMomentumState",
    "CameState",
    "Sm3State",
    "Sm3MomentumState",
    "AdamMiniState",
    "AdamMiniTensorState",
    "LambState",
    "LarsState",
    "StableAdamwState",
    "FromageState",
    "NovogradState",
    "QhmState",
    "AggmoState",
    "PidState",
    "AccsgdState",
    "OptimisticSgdState",
    "PnmState",
    "SrmmState",
    "AdapnmState",
    "FtrlState",
    "MadgradState",
    "KateState",
    "AdasqrtState",
    "Smorms3State",
    "CocobState",
    "ScheduleFreeSgdState",
    "ScheduleFreeAdamwState",
    "ScheduleFreeRadamState",
    "SignsgdState",
    "SignumState",
    "TigerState",
    "RpropDelayedState",
    "ProdigyState",
    "DadaptAdamState",
    "DadaptSgdState",
    "DogState",
    "DowgState",
    "RowwiseAdagradState",
    "RowwiseAdamState",
]

class SgdState(NamedTuple):
    count: Any

def sgd(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Gradient descent."""

class MomentumState(NamedTuple):
    count: Any
    momentum_buffer: Any

def momentum(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    momentum: float | Any = ...,
    dampening: float | Any = ...,
    velocity: bool = ...,
    dampen_first: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Gradient descent with momentum."""

class NesterovState(NamedTuple):
    count: Any
    momentum_buffer: Any

def nesterov(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    momentum: float | Any = ...,
    dampening: float | Any = ...,
    velocity: bool = ...,
    dampen_first: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Gradient descent with Nesterov's momentum."""

class DeltaBarDeltaState(NamedTuple):
    count: Any
    bar: Any
    eta: Any

def delta_bar_delta(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    kappa: float | Any = ...,
    phi: float | Any = ...,
    theta: float | Any = ...,
    eta_min: float | Any = ...,
    eta_max: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Delta-bar-delta: a learning rate for each parameter. For full-batch gradients only."""

class AdagradState(NamedTuple):
    count: Any
    sum: Any

def adagrad(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    lr_decay: float | Any = ...,
    eps_in: float | Any = ...,
    eps_out: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    eps: float | None = ...,
    initial_accumulator_value: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdaGrad: rates that fall with the sum of squared gradients."""

class RmspropState(NamedTuple):
    count: Any
    square_avg: Any

def rmsprop(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    rho: float | Any = ...,
    eps_in: float | Any = ...,
    eps_out: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    eps: float | None = ...,
    initial_accumulator_value: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """RMSProp: rates scaled by a running average of squared gradients."""

class RmspropCenteredState(NamedTuple):
    count: Any
    square_avg: Any
    grad_avg: Any

def rmsprop_centered(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    rho: float | Any = ...,
    eps_in: float | Any = ...,
    eps_out: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    eps: float | None = ...,
    initial_accumulator_value: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """RMSProp scaled by the running variance of gradients."""

class RmspropMomentumState(NamedTuple):
    count: Any
    square_avg: Any
    momentum_buffer: Any

def rmsprop_momentum(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    rho: float | Any = ...,
    eps_in: float | Any = ...,
    eps_out: float | Any = ...,
    momentum: float | Any = ...,
    lr_inside: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    eps: float | None = ...,
    initial_accumulator_value: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """RMSProp with momentum."""

class RmspropCenteredMomentumState(NamedTuple):
    count: Any
    square_avg: Any
    grad_avg: Any
    momentum_buffer: Any

def rmsprop_centered_momentum(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    rho: float | Any = ...,
    eps_in: float | Any = ...,
    eps_out: float | Any = ...,
    momentum: float | Any = ...,
    lr_inside: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    eps: float | None = ...,
    initial_accumulator_value: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Centred RMSProp with momentum."""

class RmspropNesterovState(NamedTuple):
    count: Any
    square_avg: Any
    velocity: Any

def rmsprop_nesterov(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    rho: float | Any = ...,
    eps_in: float | Any = ...,
    eps_out: float | Any = ...,
    momentum: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    eps: float | None = ...,
    initial_accumulator_value: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """RMSProp with Nesterov momentum: the gradient is taken at p + alpha*v."""

class AdadeltaState(NamedTuple):
    count: Any
    square_avg: Any
    acc_delta: Any

def adadelta(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    rho: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdaDelta: steps scaled by the ratio of past updates to past gradients."""

class AdamState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def adam(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    eps_root: float | Any = ...,
    eps_hat: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam: adaptive moment estimation."""

class AmsgradState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any

def amsgrad(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    eps_root: float | Any = ...,
    eps_hat: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with a second moment that never falls."""

class AdamwState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def adamw(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    eps_root: float | Any = ...,
    eps_hat: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with decoupled weight decay."""

class AdamaxState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_inf: Any

def adamax(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdaMax: Adam with the infinity norm of past gradients."""

class NadamState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def nadam(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    momentum_decay: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """NAdam: Adam with Nesterov momentum."""

class RadamState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def radam(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """RAdam: Adam with a rectified adaptive rate."""

class RpropState(NamedTuple):
    count: Any
    prev: Any
    step_size: Any

def rprop(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    eta_minus: float | Any = ...,
    eta_plus: float | Any = ...,
    step_min: float | Any = ...,
    step_max: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Resilient propagation: step sizes from gradient signs. For full-batch gradients only."""

class AsgdState(NamedTuple):
    count: Any
    ax: Any

def asgd(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    lambd: float | Any = ...,
    alpha: float | Any = ...,
    t0: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Averaged gradient descent: the average of the parameters is kept in ax."""

class LionState(NamedTuple):
    count: Any
    exp_avg: Any

def lion(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Lion: steps of one size, by the sign of an interpolated momentum."""

class AdabeliefState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_var: Any

def adabelief(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    eps_root: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdaBelief: steps scaled by the belief in the observed gradient."""

class YogiState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def yogi(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    initial_accumulator_value: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Yogi: Adam with an additive update of the second moment."""

class AdanState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_diff: Any
    exp_avg_sq: Any
    prev_grad: Any

def adan(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    beta3: float | Any = ...,
    eps: float | Any = ...,
    eps_root: float | Any = ...,
    one_minus_beta2: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adan: adaptive Nesterov momentum from gradient differences."""

class AdemamixState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_slow: Any
    exp_avg_sq: Any

def ademamix(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    beta3: float | Any = ...,
    alpha: float | Any = ...,
    warmup: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with a second, slow average of gradients."""

class SimplifiedAdemamixState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def simplified_ademamix(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    alpha: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdEMAMix with a sum of gradients, and the gradient instead of the fast average."""

class AdoptState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def adopt(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    clip_exponent: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam that divides each gradient by the root of the previous second moment, before the first moment."""

class NadamwState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def nadamw(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdamW with Nesterov's momentum, without a schedule of the momentum."""

class LapropState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def laprop(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Momentum of the scaled gradient: the two operations of Adam in reverse order."""

class MarsAdamwState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any
    prev_grad: Any

def mars_adamw(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    gamma: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdamW on gradients of reduced variance, which are not clipped."""

class MarsLionState(NamedTuple):
    count: Any
    exp_avg: Any
    prev_grad: Any

def mars_lion(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    gamma: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """The sign of a momentum of gradients of reduced variance, which are not clipped."""

class SophiaState(NamedTuple):
    count: Any
    exp_avg: Any
    hessian: Any

def sophia(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    gamma: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """A clipped step by an average of estimates of the Hessian's diagonal."""

class AdahessianState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_hessian_sq: Any
    hessian: Any

def adahessian(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with the Hessian's diagonal in the second moment."""

class AdamsState(NamedTuple):
    count: Any
    exp_avg: Any

def adams(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam whose second moment is computed from the momentum, with one state."""

class AdaboundState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def adabound(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    final_lr: float | Any = ...,
    gamma: float | Any = ...,
    first_lr: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam whose rates are clipped to bounds that converge to the rate of gradient descent."""

class AmsboundState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any

def amsbound(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    final_lr: float | Any = ...,
    gamma: float | Any = ...,
    first_lr: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AMSGrad whose rates are clipped to bounds that converge to the rate of gradient descent."""

class QhadamState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def qhadam(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    nu1: float | Any = ...,
    nu2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with weighted means of the moments and of the gradient itself."""

class GramsState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def grams(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Steps with the magnitude of Adam's and the sign of the gradient."""

class AdamodState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any
    exp_avg_rate: Any

def adamod(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    beta3: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam whose rates are bounded by their moving average."""

class PadamState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any

def padam(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AMSGrad with the power 1/4 of the second moment instead of 1/2."""

class AmsgradCorrectedState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any

def amsgrad_corrected(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    eps_root: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AMSGrad with the maximum of bias-corrected second moments, as in optax."""

class RadamCorrectedState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def radam_corrected(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    eps_root: float | Any = ...,
    threshold: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """RAdam with eps added to the bias-corrected root, as in optax."""

class ExadamState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def exadam(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with bias corrections that depend on both moments, and the gradient added to the first moment."""

class AdamAtan2State(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def adam_atan2(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    a: float | Any = ...,
    b: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with an angle instead of a quotient: it needs no eps and does not depend on the scale of gradients."""

class DiffgradState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any
    previous_grad: Any

def diffgrad(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with shorter steps where the gradient changes little."""

class AdamgState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any
    numerator: Any

def adamg(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    beta3: float | Any = ...,
    eps: float | Any = ...,
    scale: float | Any = ...,
    power: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam on gradients multiplied by a power of their second moment. It needs no tuned learning rate."""

class AnoState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def ano(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """The momentum's direction with the gradient's magnitude."""

class AcpropState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_var: Any

def acprop(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """The gradient divided by the root of its variance over the previous steps."""

class OptimisticAdamState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any
    prev_update: Any

def optimistic_adam(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam that extrapolates the last change of its step."""

class FtmlState(NamedTuple):
    count: Any
    exp_avg_sq: Any
    scale: Any
    linear: Any

def ftml(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Follow the moving leader."""

class FocusState(NamedTuple):
    count: Any
    exp_avg: Any
    param_avg: Any

def focus(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    gamma: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Signum with an attraction to the average of the params."""

class MsvagState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def msvag(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Momentum, scaled down where its variance is large."""

class AdafactorState(NamedTuple):
    count: Any
    exp_avg_sq_row: Any
    exp_avg_sq_col: Any

def adafactor(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta2_decay: float | Any = ...,
    eps1: float | Any = ...,
    eps2: float | Any = ...,
    clip_threshold: float | Any = ...,
    scale_parameter: bool = ...,
    relative_step: bool = ...,
    floor: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Second moments from the means of rows and columns, and steps relative to the tensor."""

class AdafactorMomentumState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq_row: Any
    exp_avg_sq_col: Any

def adafactor_momentum(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2_decay: float | Any = ...,
    eps1: float | Any = ...,
    eps2: float | Any = ...,
    clip_threshold: float | Any = ...,
    scale_parameter: bool = ...,
    relative_step: bool = ...,
    floor: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adafactor with a moving average of its steps."""

class CameState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq_row: Any
    exp_avg_sq_col: Any
    exp_avg_res_row: Any
    exp_avg_res_col: Any

def came(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    beta3: float | Any = ...,
    eps1: float | Any = ...,
    eps2: float | Any = ...,
    clip_threshold: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Averaged updates of Adafactor, divided by the root of their mean squared deviation from the average."""

class Sm3State(NamedTuple):
    count: Any
    largest_row: Any
    largest_col: Any

def sm3(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdaGrad that stores only the largest sum of each row and column."""

class Sm3MomentumState(NamedTuple):
    count: Any
    exp_avg: Any
    largest_row: Any
    largest_col: Any

def sm3_momentum(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    momentum: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """SM3 with a moving average of its updates."""

class AdamMiniState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def adam_mini(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with one second moment for each row: each output of a layer, and each vector."""

class AdamMiniTensorState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def adam_mini_tensor(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with one second moment for each tensor."""

class LambState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def lamb(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam whose step is as long, in each tensor, as the learning rate times the tensor's norm."""

class LarsState(NamedTuple):
    count: Any
    momentum_buffer: Any

def lars(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    momentum: float | Any = ...,
    trust: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Momentum of gradients that are scaled, in each tensor, to the tensor's norm."""

class StableAdamwState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def stable_adamw(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdamW with a smaller learning rate in tensors whose second moment is outdated."""

class FromageState(NamedTuple):
    count: Any

def fromage(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Steps whose length is a fixed fraction of the tensor's norm, corrected for the growth of the norm."""

class NovogradState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def novograd(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Momentum of gradients that are divided, in each tensor, by the root of one second moment."""

class QhmState(NamedTuple):
    count: Any
    exp_avg: Any

def qhm(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta: float | Any = ...,
    nu: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """A weighted mean of momentum and gradient."""

class AggmoState(NamedTuple):
    count: Any
    momentum_buffer1: Any
    momentum_buffer2: Any

def aggmo(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """The mean of three velocities, with the momenta 0, beta1 and beta2."""

class PidState(NamedTuple):
    count: Any
    integral_buffer: Any
    derivative_buffer: Any
    prev_grad: Any

def pid(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    momentum: float | Any = ...,
    dampening: float | Any = ...,
    integral: float | Any = ...,
    derivative: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """The gradient, its sum and its change, as in a controller."""

class AccsgdState(NamedTuple):
    count: Any
    running_average: Any

def accsgd(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    kappa: float | Any = ...,
    xi: float | Any = ...,
    small_const: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Gradient descent with a short and a long step."""

class OptimisticSgdState(NamedTuple):
    count: Any
    prev_grad: Any

def optimistic_sgd(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Gradient descent that extrapolates the last change of the gradient."""

class PnmState(NamedTuple):
    count: Any
    positive: Any
    negative: Any

def pnm(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta0: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """The difference of two momenta that are updated in alternate steps."""

class SrmmState(NamedTuple):
    count: Any
    grad_avg: Any
    param_avg: Any

def srmm(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta: float | Any = ...,
    memory: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Averages of gradients and params with decreasing weights, which are reset periodically."""

class AdapnmState(NamedTuple):
    count: Any
    positive: Any
    negative: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any

def adapnm(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    beta0: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AMSGrad with the difference of two momenta that are updated in alternate steps."""

class FtrlState(NamedTuple):
    count: Any
    accumulator: Any
    linear: Any

def ftrl(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta: float | Any = ...,
    l1: float | Any = ...,
    l2: float | Any = ...,
    initial_accumulator: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Follow the regularised leader: sparse params for sparse features."""

class MadgradState(NamedTuple):
    count: Any
    grad_sum: Any
    grad_sum_sq: Any
    x0: Any

def madgrad(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    momentum: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Dual averaging by the cube root of the sum of squares, with momentum."""

class KateState(NamedTuple):
    count: Any
    squares: Any
    ratios: Any

def kate(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    delta: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdaGrad without the root, whose steps do not depend on the scale of the features."""

class AdasqrtState(NamedTuple):
    count: Any
    sum: Any

def adasqrt(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdaGrad without the root, with rates that grow with the root of the step number."""

class Smorms3State(NamedTuple):
    count: Any
    memory: Any
    grad_avg: Any
    grad_sq_avg: Any

def smorms3(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Rates from the ratio of the squared mean of gradients to their mean square, with an adaptive memory."""

class CocobState(NamedTuple):
    count: Any
    largest: Any
    magnitudes: Any
    reward: Any
    negative_sum: Any
    start: Any

def cocob(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    alpha: float | Any = ...,
    eps: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Coin betting for each coordinate, without a learning rate."""

class ScheduleFreeSgdState(NamedTuple):
    count: Any
    z: Any

def schedule_free_sgd(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    warmup: float | Any = ...,
    weight_lr_power: float | Any = ...,
    r: float | Any = ...,
    lr_max: float | Any = ...,
    weight_sum: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Gradient descent with an average of the params instead of a learning-rate schedule."""

class ScheduleFreeAdamwState(NamedTuple):
    count: Any
    z: Any
    exp_avg_sq: Any

def schedule_free_adamw(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    warmup: float | Any = ...,
    weight_lr_power: float | Any = ...,
    r: float | Any = ...,
    lr_max: float | Any = ...,
    weight_sum: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdamW with an average of the params instead of a learning-rate schedule and the first moment."""

class ScheduleFreeRadamState(NamedTuple):
    count: Any
    z: Any
    exp_avg_sq: Any

def schedule_free_radam(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    silent_sgd_phase: bool = ...,
    weight_lr_power: float | Any = ...,
    r: float | Any = ...,
    lr_max: float | Any = ...,
    weight_sum: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """RAdam with an average of the params instead of a learning-rate schedule and the first moment."""

class SignsgdState(NamedTuple):
    count: Any

def signsgd(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Steps by the sign of the gradient."""

class SignumState(NamedTuple):
    count: Any
    exp_avg: Any

def signum(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Steps by the sign of a momentum."""

class TigerState(NamedTuple):
    count: Any
    exp_avg: Any

def tiger(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Steps by the sign of a momentum."""

class RpropDelayedState(NamedTuple):
    count: Any
    prev_update: Any
    step_size: Any

def rprop_delayed(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    eta_minus: float | Any = ...,
    eta_plus: float | Any = ...,
    step_min: float | Any = ...,
    step_max: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Resilient propagation with steps one iteration later, unless the next gradient opposes them, as in optax."""

class ProdigyState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any
    s: Any
    p0: Any

def prodigy(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    d0: float | Any = ...,
    d_coef: float | Any = ...,
    growth_rate: float | Any = ...,
    use_bias_correction: bool = ...,
    d: float | Any = ...,
    d_max: float | Any = ...,
    numerator: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with an estimate of the distance to the solution as its step size."""

class DadaptAdamState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any
    s: Any

def dadapt_adam(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    d0: float | Any = ...,
    growth_rate: float | Any = ...,
    use_bias_correction: bool = ...,
    d: float | Any = ...,
    numerator: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with a lower bound of the distance to the solution as its step size."""

class DadaptSgdState(NamedTuple):
    count: Any
    s: Any
    p0: Any

def dadapt_sgd(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    momentum: float | Any = ...,
    d0: float | Any = ...,
    growth_rate: float | Any = ...,
    d: float | Any = ...,
    numerator: float | Any = ...,
    g0_norm: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Gradient descent with a lower bound of the distance to the solution as its step size."""

class DogState(NamedTuple):
    count: Any
    p0: Any

def dog(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    reps_rel: float | Any = ...,
    eps: float | Any = ...,
    distance: float | Any = ...,
    squares: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Gradient descent with the largest distance so far, divided by the root of the sum of squared gradients."""

class DowgState(NamedTuple):
    count: Any
    p0: Any

def dowg(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    d0: float | Any = ...,
    eps: float | Any = ...,
    distance: float | Any = ...,
    squares: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """DoG with gradients weighted by the squared distance at their step."""

class RowwiseAdagradState(NamedTuple):
    count: Any
    sum: Any

def rowwise_adagrad(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    lr_decay: float | Any = ...,
    eps_in: float | Any = ...,
    eps_out: float | Any = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    eps: float | None = ...,
    initial_accumulator_value: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """AdaGrad with one accumulator per row: the sum of the row's mean squared gradients."""

class RowwiseAdamState(NamedTuple):
    count: Any
    exp_avg: Any
    exp_avg_sq: Any

def rowwise_adam(
    learning_rate: float | Callable[[Any], Any] | Any = ...,
    *,
    convention: str = ...,
    packed: bool = ...,
    beta1: float | Any = ...,
    beta2: float | Any = ...,
    eps: float | Any = ...,
    eps_root: float | Any = ...,
    eps_hat: bool = ...,
    weight_decay: float | Any = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float | Any = ...,
    state_dtype: str | Mapping[str, str] | None = ...,
    min_8bit_size: int | None = ...,
    seed: int | None = ...,
    param_format: str | None = ...,
    mask: Any = ...,
) -> GradientTransformation:
    """Adam with one second moment per row."""
