# Made by python -m adaptk._stubs from the registry.
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from adaptk._jax_step import GradientTransformation as GradientTransformation
from adaptk._jax_step import Stored as Stored

__all__ = [
    "GradientTransformation",
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
) -> GradientTransformation:
    """Adan: adaptive Nesterov momentum from gradient differences."""
