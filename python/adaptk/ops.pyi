# Made by python -m adaptk._stubs from the registry.
from adaptk._typing import Buffers

def sgd(
    param: Buffers,
    grad: Buffers,
    *,
    step: int,
    lr: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Gradient descent."""

def momentum(
    param: Buffers,
    grad: Buffers,
    momentum_buffer: Buffers,
    *,
    step: int,
    lr: float = ...,
    momentum: float = ...,
    dampening: float = ...,
    velocity: bool = ...,
    dampen_first: bool = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Gradient descent with momentum."""

def nesterov(
    param: Buffers,
    grad: Buffers,
    momentum_buffer: Buffers,
    *,
    step: int,
    lr: float = ...,
    momentum: float = ...,
    dampening: float = ...,
    velocity: bool = ...,
    dampen_first: bool = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Gradient descent with Nesterov's momentum."""

def delta_bar_delta(
    param: Buffers,
    grad: Buffers,
    bar: Buffers,
    eta: Buffers,
    *,
    step: int,
    lr: float = ...,
    kappa: float = ...,
    phi: float = ...,
    theta: float = ...,
    eta_min: float = ...,
    eta_max: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Delta-bar-delta: a learning rate for each parameter. For full-batch gradients only."""

def adagrad(
    param: Buffers,
    grad: Buffers,
    sum: Buffers,
    *,
    step: int,
    lr: float = ...,
    lr_decay: float = ...,
    eps_in: float = ...,
    eps_out: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """AdaGrad: rates that fall with the sum of squared gradients."""

def rmsprop(
    param: Buffers,
    grad: Buffers,
    square_avg: Buffers,
    *,
    step: int,
    lr: float = ...,
    rho: float = ...,
    eps_in: float = ...,
    eps_out: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """RMSProp: rates scaled by a running average of squared gradients."""

def rmsprop_centered(
    param: Buffers,
    grad: Buffers,
    square_avg: Buffers,
    grad_avg: Buffers,
    *,
    step: int,
    lr: float = ...,
    rho: float = ...,
    eps_in: float = ...,
    eps_out: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """RMSProp scaled by the running variance of gradients."""

def rmsprop_momentum(
    param: Buffers,
    grad: Buffers,
    square_avg: Buffers,
    momentum_buffer: Buffers,
    *,
    step: int,
    lr: float = ...,
    rho: float = ...,
    eps_in: float = ...,
    eps_out: float = ...,
    momentum: float = ...,
    lr_inside: bool = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """RMSProp with momentum."""

def rmsprop_centered_momentum(
    param: Buffers,
    grad: Buffers,
    square_avg: Buffers,
    grad_avg: Buffers,
    momentum_buffer: Buffers,
    *,
    step: int,
    lr: float = ...,
    rho: float = ...,
    eps_in: float = ...,
    eps_out: float = ...,
    momentum: float = ...,
    lr_inside: bool = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Centred RMSProp with momentum."""

def rmsprop_nesterov(
    param: Buffers,
    grad: Buffers,
    square_avg: Buffers,
    velocity: Buffers,
    *,
    step: int,
    lr: float = ...,
    rho: float = ...,
    eps_in: float = ...,
    eps_out: float = ...,
    momentum: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """RMSProp with Nesterov momentum: the gradient is taken at p + alpha*v."""

def adadelta(
    param: Buffers,
    grad: Buffers,
    square_avg: Buffers,
    acc_delta: Buffers,
    *,
    step: int,
    lr: float = ...,
    rho: float = ...,
    eps: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """AdaDelta: steps scaled by the ratio of past updates to past gradients."""

def adam(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_sq: Buffers,
    *,
    step: int,
    lr: float = ...,
    beta1: float = ...,
    beta2: float = ...,
    eps: float = ...,
    eps_root: float = ...,
    eps_hat: bool = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Adam: adaptive moment estimation."""

def amsgrad(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_sq: Buffers,
    max_exp_avg_sq: Buffers,
    *,
    step: int,
    lr: float = ...,
    beta1: float = ...,
    beta2: float = ...,
    eps: float = ...,
    eps_root: float = ...,
    eps_hat: bool = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Adam with a second moment that never falls."""

def adamw(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_sq: Buffers,
    *,
    step: int,
    lr: float = ...,
    beta1: float = ...,
    beta2: float = ...,
    eps: float = ...,
    eps_root: float = ...,
    eps_hat: bool = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Adam with decoupled weight decay."""

def adamax(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_inf: Buffers,
    *,
    step: int,
    lr: float = ...,
    beta1: float = ...,
    beta2: float = ...,
    eps: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """AdaMax: Adam with the infinity norm of past gradients."""

def nadam(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_sq: Buffers,
    *,
    step: int,
    lr: float = ...,
    beta1: float = ...,
    beta2: float = ...,
    eps: float = ...,
    momentum_decay: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """NAdam: Adam with Nesterov momentum."""

def radam(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_sq: Buffers,
    *,
    step: int,
    lr: float = ...,
    beta1: float = ...,
    beta2: float = ...,
    eps: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """RAdam: Adam with a rectified adaptive rate."""

def rprop(
    param: Buffers,
    grad: Buffers,
    prev: Buffers,
    step_size: Buffers,
    *,
    step: int,
    lr: float = ...,
    eta_minus: float = ...,
    eta_plus: float = ...,
    step_min: float = ...,
    step_max: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Resilient propagation: step sizes from gradient signs. For full-batch gradients only."""

def asgd(
    param: Buffers,
    grad: Buffers,
    ax: Buffers,
    *,
    step: int,
    lr: float = ...,
    lambd: float = ...,
    alpha: float = ...,
    t0: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Averaged gradient descent: the average of the parameters is kept in ax."""

def lion(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    *,
    step: int,
    lr: float = ...,
    beta1: float = ...,
    beta2: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Lion: steps of one size, by the sign of an interpolated momentum."""

def adabelief(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_var: Buffers,
    *,
    step: int,
    lr: float = ...,
    beta1: float = ...,
    beta2: float = ...,
    eps: float = ...,
    eps_root: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """AdaBelief: steps scaled by the belief in the observed gradient."""

def yogi(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_sq: Buffers,
    *,
    step: int,
    lr: float = ...,
    beta1: float = ...,
    beta2: float = ...,
    eps: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Yogi: Adam with an additive update of the second moment."""

def adan(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_diff: Buffers,
    exp_avg_sq: Buffers,
    prev_grad: Buffers,
    *,
    step: int,
    lr: float = ...,
    beta1: float = ...,
    beta2: float = ...,
    beta3: float = ...,
    eps: float = ...,
    eps_root: float = ...,
    weight_decay: float = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: float = ...,
) -> None:
    """Adan: adaptive Nesterov momentum from gradient differences."""
