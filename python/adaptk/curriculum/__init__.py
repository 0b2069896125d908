"""Curriculum learning: which examples to train on, and when.

A :class:`Curriculum` orders examples by difficulty and returns a batch of indices for each step. A pacing function of
:mod:`adaptk.curriculum.pacing` says how the part of the data that batches are drawn from grows. :class:`SelfPaced`
selects examples by their current losses. :class:`TorchSampler` is a sampler with a curriculum for PyTorch's
``DataLoader``. Only the sampler needs PyTorch.

Difficulties are any scores that are larger for harder examples: the length of a sentence, the noise of an image, or the
loss of another model that was trained before. Every experiment should have two controls: ``order="hard"``, the reverse
order, and ``order="random"``, a random order with the same pacing.

All choices depend only on the seed. Batches are the same on every machine, with every release of NumPy, and after a run
is resumed.
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
