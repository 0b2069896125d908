"""Optimizers for PyTorch: subclasses of the classes of ``torch.optim`` whose step is one native call.

For each optimizer of torch there is a subclass with the same name. Arguments, defaults, param groups, states and
``state_dict`` are those of torch; only the step differs. Rules that torch does not have are provided in the same way
under the names of this library. Gradients are read without a copy, a step is one pass over memory, and its result does
not depend on threads or processors.

Differences from the classes of torch:

- Params in bfloat16 and float16 have float32 states.
- ``differentiable=True`` is refused, and so is ``capturable=True`` for params on the CPU.
- All classes accept sparse gradients (``torch.sparse_coo``, such as those of ``nn.Embedding(sparse=True)``). The option
  `sparse` says what happens to rows without values. On a CUDA device a step waits for the indices.
- ``foreach`` is accepted and ignored. ``fused=True`` tells GradScaler to leave the unscaling to the step, as for the
  classes of torch; the step itself does not change. The rules that torch does not have accept it too.
- Some values that torch accepts are out of range: ``dampening`` outside [0, 1], ``alpha`` of RMSprop and ``rho`` of
  Adadelta from 1 on, and negative ``lambd``, ``alpha``, ``t0`` and ``step_sizes``.
- A NaN in a gradient makes the param NaN, also under Rprop, whereas Rprop of torch leaves the param unchanged.
- Loaded states are copied, and matched by the names of the params if both optimizers were made from named params. The
  dicts of added param groups are copied.
- Params that overlap in memory are refused, and so is a param that occurs twice in a group.
- A step that fails or is skipped changes nothing, and does not create states either.
- ``step`` also accepts ``clip_norm``, ``skip_nonfinite``, ``norm_group``, ``zero_grad``, ``copy_out``, ``ema`` and
  ``grad_norm``. For wrappers that call ``step()``, the constructors and param groups accept ``clip_norm``,
  ``skip_nonfinite`` and ``zero_grad``.
- Params and gradients of wrapper subclasses, which store their numbers in other tensors (such as quantized weights, and
  pending results of collectives), are copied to plain tensors, and back with ``copy_``. Their states are plain tensors.
- Under ``torch.compile`` a step is one operator, without a graph break for ``fullgraph=True``: a step without
  arguments, or with a closure, ``clip_norm``, ``skip_nonfinite`` and ``zero_grad``.

Examples
--------
>>> import torch, adaptk.torch
>>> model = torch.nn.Linear(4, 1)
>>> opt = adaptk.torch.AdamW(model.parameters(), lr=1e-3)
>>> model(torch.ones(2, 4)).square().sum().backward()
>>> opt.step(clip_norm=1.0)
>>> opt.last_step.skipped
False
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptk._names import face, not_installed

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise not_installed("adaptk.torch", "PyTorch", "torch") from None

from adaptk import catalogue
from adaptk.torch._classes import ASGD as ASGD
from adaptk.torch._classes import SGD as SGD
from adaptk.torch._classes import TORCHS
from adaptk.torch._classes import Adadelta as Adadelta
from adaptk.torch._classes import Adagrad as Adagrad
from adaptk.torch._classes import Adam as Adam
from adaptk.torch._classes import Adamax as Adamax
from adaptk.torch._classes import AdamW as AdamW
from adaptk.torch._classes import NAdam as NAdam
from adaptk.torch._classes import RAdam as RAdam
from adaptk.torch._classes import RMSprop as RMSprop
from adaptk.torch._classes import Rprop as Rprop
from adaptk.torch._docs import document_all
from adaptk.torch._made import class_of_catalogue
from adaptk.torch._muon import Muon as Muon
from adaptk.torch._offload import Offload as Offload
from adaptk.torch._options import checked
from adaptk.torch._own import OWN, ROW_WISE
from adaptk.torch._own import AdaBelief as AdaBelief
from adaptk.torch._own import Adan as Adan
from adaptk.torch._own import DeltaBarDelta as DeltaBarDelta
from adaptk.torch._own import Lion as Lion
from adaptk.torch._own import RMSpropNesterov as RMSpropNesterov
from adaptk.torch._own import RowWiseAdaGrad as RowWiseAdaGrad
from adaptk.torch._own import RowWiseAdam as RowWiseAdam
from adaptk.torch._own import Yogi as Yogi
from adaptk.torch._release import ReleasedGradients as ReleasedGradients
from adaptk.torch._release import release_gradients as release_gradients

for _class in (*TORCHS, *OWN, *ROW_WISE):
    _class.__init__ = checked(_class.__init__)  # type: ignore[method-assign]
document_all()

__all__ = [c.__name__ for c in (*TORCHS, *OWN, *ROW_WISE)]
__all__ += ["Muon", "Offload", "ReleasedGradients", "release_gradients"]

for _name in __all__:
    globals()[_name].__module__ = __name__

if TYPE_CHECKING:
    from adaptk.torch._catalogue import *  # noqa: F403
else:
    __getattr__, __dir__ = face(__name__, __all__, more=catalogue.CLASSES.values(), find=class_of_catalogue)
