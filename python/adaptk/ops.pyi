# Made by python -m adaptk._stubs from the registry.
from adaptk._typing import Buffer, Buffers, Number

def sgd(
    param: Buffers,
    grad: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """Gradient descent."""

def momentum(
    param: Buffers,
    grad: Buffers,
    momentum_buffer: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    momentum: Number = ...,
    dampening: Number = ...,
    velocity: bool = ...,
    dampen_first: bool = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """Gradient descent with momentum."""

def nesterov(
    param: Buffers,
    grad: Buffers,
    momentum_buffer: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    momentum: Number = ...,
    dampening: Number = ...,
    velocity: bool = ...,
    dampen_first: bool = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """Gradient descent with Nesterov's momentum."""

def delta_bar_delta(
    param: Buffers,
    grad: Buffers,
    bar: Buffers,
    eta: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    kappa: Number = ...,
    phi: Number = ...,
    theta: Number = ...,
    eta_min: Number = ...,
    eta_max: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """Delta-bar-delta: a learning rate for each parameter. For full-batch gradients only."""

def adagrad(
    param: Buffers,
    grad: Buffers,
    sum: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    lr_decay: Number = ...,
    eps_in: Number = ...,
    eps_out: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """AdaGrad: rates that fall with the sum of squared gradients."""

def rmsprop(
    param: Buffers,
    grad: Buffers,
    square_avg: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    rho: Number = ...,
    eps_in: Number = ...,
    eps_out: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """RMSProp: rates scaled by a running average of squared gradients."""

def rmsprop_centered(
    param: Buffers,
    grad: Buffers,
    square_avg: Buffers,
    grad_avg: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    rho: Number = ...,
    eps_in: Number = ...,
    eps_out: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """RMSProp scaled by the running variance of gradients."""

def rmsprop_momentum(
    param: Buffers,
    grad: Buffers,
    square_avg: Buffers,
    momentum_buffer: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    rho: Number = ...,
    eps_in: Number = ...,
    eps_out: Number = ...,
    momentum: Number = ...,
    lr_inside: bool = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """RMSProp with momentum."""

def rmsprop_centered_momentum(
    param: Buffers,
    grad: Buffers,
    square_avg: Buffers,
    grad_avg: Buffers,
    momentum_buffer: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    rho: Number = ...,
    eps_in: Number = ...,
    eps_out: Number = ...,
    momentum: Number = ...,
    lr_inside: bool = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """Centred RMSProp with momentum."""

def rmsprop_nesterov(
    param: Buffers,
    grad: Buffers,
    square_avg: Buffers,
    velocity: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    rho: Number = ...,
    eps_in: Number = ...,
    eps_out: Number = ...,
    momentum: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """RMSProp with Nesterov momentum: the gradient is taken at p + alpha*v."""

def adadelta(
    param: Buffers,
    grad: Buffers,
    square_avg: Buffers,
    acc_delta: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    rho: Number = ...,
    eps: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """AdaDelta: steps scaled by the ratio of past updates to past gradients."""

def adam(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_sq: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    beta1: Number = ...,
    beta2: Number = ...,
    eps: Number = ...,
    eps_root: Number = ...,
    eps_hat: bool = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """Adam: adaptive moment estimation."""

def amsgrad(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_sq: Buffers,
    max_exp_avg_sq: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    beta1: Number = ...,
    beta2: Number = ...,
    eps: Number = ...,
    eps_root: Number = ...,
    eps_hat: bool = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """Adam with a second moment that never falls."""

def adamw(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_sq: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    beta1: Number = ...,
    beta2: Number = ...,
    eps: Number = ...,
    eps_root: Number = ...,
    eps_hat: bool = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """Adam with decoupled weight decay."""

def adamax(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_inf: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    beta1: Number = ...,
    beta2: Number = ...,
    eps: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """AdaMax: Adam with the infinity norm of past gradients."""

def nadam(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_sq: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    beta1: Number = ...,
    beta2: Number = ...,
    eps: Number = ...,
    momentum_decay: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """NAdam: Adam with Nesterov momentum."""

def radam(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_sq: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    beta1: Number = ...,
    beta2: Number = ...,
    eps: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """RAdam: Adam with a rectified adaptive rate."""

def rprop(
    param: Buffers,
    grad: Buffers,
    prev: Buffers,
    step_size: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    eta_minus: Number = ...,
    eta_plus: Number = ...,
    step_min: Number = ...,
    step_max: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """Resilient propagation: step sizes from gradient signs. For full-batch gradients only."""

def asgd(
    param: Buffers,
    grad: Buffers,
    ax: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    lambd: Number = ...,
    alpha: Number = ...,
    t0: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """Averaged gradient descent: the average of the parameters is kept in ax."""

def lion(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    beta1: Number = ...,
    beta2: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """Lion: steps of one size, by the sign of an interpolated momentum."""

def adabelief(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_var: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    beta1: Number = ...,
    beta2: Number = ...,
    eps: Number = ...,
    eps_root: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
) -> None:
    """AdaBelief: steps scaled by the belief in the observed gradient."""

def yogi(
    param: Buffers,
    grad: Buffers,
    exp_avg: Buffers,
    exp_avg_sq: Buffers,
    *,
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
    beta1: Number = ...,
    beta2: Number = ...,
    eps: Number = ...,
    weight_decay: Number = ...,
    decoupled: bool = ...,
    maximize: bool = ...,
    grad_scale: Number = ...,
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
    step: int | Buffer,
    seed: int = ...,
    param_format: str | None = ...,
    lr: Number = ...,
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
) -> None:
    """Adan: adaptive Nesterov momentum from gradient differences."""
