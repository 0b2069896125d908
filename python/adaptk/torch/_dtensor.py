"""PyTorch's sharded tensors, without importing them: ``torch.distributed.tensor`` takes nearly as long to import as
torch itself, and a program with a DTensor has imported it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(t: Any) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    known = getattr(module, "DTensor", None)  # missing in builds without distributed, and before PyTorch 2.5
    return known is not None and isinstance(t, known)


def local_part(t: Any) -> Tensor:
    """This process's part of a sharded tensor."""
    part: Tensor = t.to_local() if is_sharded(t) else t
    return part


def is_partitioned(t: Any) -> bool:
    """Whether the tensor is divided, so that no process has all of it."""
    return is_sharded(t) and not all(x.is_replicate() for x in t.placements)


def placed_like(t: Any, p: Any) -> Any:
    """A sharded tensor, placed like `p`: autograd may leave gradients as partial sums, or sharded differently."""
    if not is_sharded(t) or not is_sharded(p) or (t.device_mesh, t.placements) == (p.device_mesh, p.placements):
        return t
    return t.redistribute(p.device_mesh, p.placements)


def total_over(mesh: Any, copies: tuple[bool, ...], part: Tensor) -> float:
    """The sum of a number over the processes of a mesh; along the axes in `copies` all processes have the same."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    return float(DTensor.from_local(part, mesh, [Replicate() if c else Partial() for c in copies]).full_tensor())


def shard_like(part: Tensor, p: Any) -> DTensor:
    """A sharded tensor, like `p`, from this process's part."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def part_of_whole(whole: Tensor, p: Any) -> Tensor:
    """This process's part of a tensor that is complete in all processes, if it is sharded like `p`."""
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * p.device_mesh.ndim
    sharded = DTensor.from_local(whole, p.device_mesh, everywhere, run_check=False)
    part: Tensor = sharded.redistribute(p.device_mesh, p.placements).to_local()
    return part
