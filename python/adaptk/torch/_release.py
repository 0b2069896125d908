"""Gradient release: each param is stepped as soon as its gradient is there."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptk.torch._fused import Fused
from adaptk.torch._options import refuse_all_gradients


class ReleasedGradients:
    """The hooks that :func:`release_gradients` has installed. :meth:`remove` removes them."""

    def __init__(self, model: torch.nn.Module, optimizer: Fused) -> None:
        if optimizer._releases:
            raise RuntimeError("optimizer: its gradients are being released already")
        refuse_all_gradients(optimizer.param_groups, "release_gradients()")
        of_model = set(model.parameters())
        if any(p not in of_model for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("optimizer: some of its params are not the model's")
        self._optimizer = optimizer
        self._handles = [
            p.register_post_accumulate_grad_hook(self._step)
            for group in optimizer.param_groups
            for p in group["params"]
            if p.requires_grad
        ]
        optimizer._releases = True

    def _step(self, param: Tensor) -> None:
        self._optimizer.step_param(param)
        param.grad = None

    def remove(self) -> None:
        """Remove the hooks. Gradients are kept again, for steps with all params."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._optimizer._releases = False


def release_gradients(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> ReleasedGradients:
    """Step each param as soon as its gradient has been computed in a backward pass, and then free the gradient.

    The gradients of a model are then never in memory all at once. Each backward pass is a step: do not call
    `optimizer.step()`. Gradients cannot be accumulated over several backward passes. The options ``clip_norm`` and
    ``skip_nonfinite``, which need all gradients at once, are refused. Learning-rate schedulers work as before.

    Parameters
    ----------
    model : torch.nn.Module
        The model whose backward passes become steps.
    optimizer : torch.optim.Optimizer
        An optimizer of this module, for params of the model that are dense, real and on the CPU.

    Returns
    -------
    ReleasedGradients
        Call its ``remove()`` to remove the hooks.

    Raises
    ------
    TypeError, ValueError
        If the optimizer is not of this module, or has params that are not those of the model.
    RuntimeError
        If gradients of the optimizer are already released.

    Examples
    --------
    >>> import torch, adaptk.torch
    >>> model = torch.nn.Linear(3, 1)
    >>> opt = adaptk.torch.AdamW(model.parameters(), lr=1e-3)
    >>> hooks = adaptk.torch.release_gradients(model, opt)
    >>> model(torch.ones(2, 3)).sum().backward()  # a step, too
    >>> model.weight.grad is None
    True
    >>> hooks.remove()
    """
    if not isinstance(optimizer, Fused):
        raise TypeError(f"optimizer: {type(optimizer).__name__}, expected one of adaptk.torch")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: {type(model).__name__}, expected a torch.nn.Module")
    return ReleasedGradients(model, optimizer)
