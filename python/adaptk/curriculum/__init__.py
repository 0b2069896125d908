"""Curriculum learning: which examples to train on, and when.

A :class:`Curriculum` orders examples by difficulty and gives a batch of indices for each step. The part of the data
that it draws from grows by a pacing function of :mod:`adaptk.curriculum.pacing`. :class:`SelfPaced` selects examples by
their current losses. :class:`TorchSampler` is a curriculum as a sampler for PyTorch's ``DataLoader``; it needs PyTorch,
the rest does not.

Difficulties are any scores that are larger for harder examples: the length of a sentence, the noise of an image, or the
loss of another model that was trained before. Two controls belong to every experiment: ``order="hard"``, the reverse,
and ``order="random"``, which has the same pacing without the order.

All choices depend on the seed alone: the same batches come out on every machine, with every release of NumPy, and after
a run has been resumed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adaptk._names import is_installed, no_attribute
from adaptk.curriculum import pacing
from adaptk.curriculum._curriculum import Curriculum, SelfPaced

if TYPE_CHECKING:
    from adaptk.curriculum._torch import TorchSampler

__all__ = ["Curriculum", "SelfPaced", "pacing"]
if TYPE_CHECKING or is_installed("torch"):
    __all__ += ["TorchSampler"]


def __getattr__(name: str) -> Any:
    if name == "TorchSampler":
        return importlib.import_module("adaptk.curriculum._torch").TorchSampler
    raise no_attribute(__name__, name, [*__all__, "TorchSampler"])


def __dir__() -> list[str]:
    return sorted(__all__)
