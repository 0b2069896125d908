"""Steps with the hooks and the profiler range of PyTorch's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.profiler import record_function

from adaptk._names import unexpected
from adaptk.torch import _private

if TYPE_CHECKING:
    from adaptk.torch._fused import Fused


def with_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` between its hooks, as every step of ``torch.optim`` is.

    PyTorch's own wrapper opens a range for profilers each time, which takes longer than a small step; this one does so
    where a profiler runs.
    """

    known = [name for name in inspect.signature(step).parameters if name != "self"]
    hooks, profiler_enabled = _private.hooks, _private.profiler_enabled
    is_traced = torch.compiler.is_dynamo_compiling

    def check(self: Fused, kwargs: Mapping[str, Any]) -> None:
        for name in kwargs:
            if name not in known:
                raise unexpected(f"{type(self).__name__}.step", name, known)

    @wraps(step)
    def unhooked(*args: Any, **kwargs: Any) -> Any:
        check(args[0], kwargs)
        return step(*args, **kwargs)

    if hooks is None:
        return unhooked  # PyTorch's own wrapper goes around it

    @wraps(step)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        self = args[0]
        if is_traced():
            if type(self).step is hooked and _private.is_traceable_step(self, kwargs):
                return _private.step_in_graph(*args, **kwargs)
            return untraced(*args, **kwargs)
        if type(self).step is not hooked:  # what overrides it has been wrapped by PyTorch
            return unhooked(*args, **kwargs)
        if not profiler_enabled():
            return between_hooks(self, args, kwargs)
        with record_function(f"Optimizer.step#{type(self).__name__}.step"):
            return between_hooks(self, args, kwargs)

    def between_hooks(self: Fused, args: Any, kwargs: Any) -> Any:
        for pre in (*hooks.pre.values(), *self._optimizer_step_pre_hooks.values()):
            changed = pre(self, args, kwargs)
            if changed is None:
                continue
            if not isinstance(changed, tuple) or len(changed) != 2:
                raise RuntimeError(f"step: a pre-hook must return None or (args, kwargs), got {changed!r}")
            args, kwargs = changed
        check(self, kwargs)
        result = step(*args, **kwargs)
        self._optimizer_step_code()
        for post in (*self._optimizer_step_post_hooks.values(), *hooks.post.values()):
            post(self, args, kwargs)
        return result

    untraced = _private.without_dynamo(hooked)
    hooked.hooked = True  # type: ignore[attr-defined]  # where PyTorch looks for its own wrapper
    return hooked
