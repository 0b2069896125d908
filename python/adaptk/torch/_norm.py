"""The norm of gradients that are sharded over processes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from adaptk.torch import _private
from adaptk.torch._dtensor import is_sharded, local_part, placed_like, total_over


@torch.no_grad()
def sharded_norm(params: list[Tensor], group: Any) -> tuple[float, bool]:
    """The norm of gradients some of which are sharded, and whether all gradients are finite.

    Those that are not sharded are the same in all processes; where there is a group, they are others in each of its
    processes. Finite gradients may have a norm beyond float64, as in the native step.
    """
    norm = _norm_of_scaled(params, group, 1.0)
    if not math.isinf(norm):
        return norm, math.isfinite(norm)
    # Squares of float64 that overflow are taken once more of smaller values.
    smaller = _norm_of_scaled(params, group, 2.0**-600)
    return smaller * 2.0**600, math.isfinite(smaller)


def _norm_of_scaled(params: list[Tensor], group: Any, scale: float) -> float:
    """See sharded_norm()."""
    parts: dict[Any, list[Tensor]] = {}
    for p in params:
        grad = placed_like(p.grad, p)
        how = (grad.device_mesh, tuple(x.is_replicate() for x in grad.placements)) if is_sharded(grad) else None
        local = local_part(grad)
        real = torch.view_as_real(local.resolve_conj()) if local.is_complex() else local
        parts.setdefault((how, real.device), []).append(real)
    squares, unsharded = 0.0, 0.0
    for (how, _), grads in parts.items():
        if scale != 1.0:
            grads = [g.double() * scale for g in grads]
        total = torch.stack(list(_private.norms(grads))).square().sum()
        if how is None:
            unsharded += float(total)
            continue
        mesh, copies = how
        squares += total_over(mesh, copies, total)
    if group is None:
        return math.sqrt(squares + unsharded)
    everyones = [0.0] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(everyones, unsharded, group=group)
    return math.sqrt(squares + sum(everyones))
