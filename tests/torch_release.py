"""A program of ``adaptk.torch`` in a PyTorch without some of its names. It prints its result as JSON.

``python tests/torch_release.py NAME ...`` renames each of these in PyTorch's own sources while they are imported, so
that PyTorch still works, and removes those of its extension module.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import json
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import CodeType
from typing import Any


class Renaming(importlib.machinery.SourceFileLoader):
    """Compiles a module's source after some of the names in it have been replaced."""

    names: re.Pattern[str]

    def get_code(self, fullname: str) -> CodeType | None:
        source = self.get_source(fullname)
        return compile(self.names.sub(r"\g<0>_as_it_is_called_now", source), self.path, "exec", dont_inherit=True)


class Renamer(MetaPathFinder):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] != "torch":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return spec
        if self.names.search(Path(spec.loader.path).read_text(encoding="utf-8")):
            spec.loader = Renaming(fullname, spec.loader.path)
            spec.loader.names = self.names
        return spec


def without(names: Sequence[str]) -> None:
    """Import PyTorch without these names."""
    # Names of a C++ module are removed after everything in PyTorch that uses them has been imported.
    native = [n for n in names if n.startswith("torch.")]
    if others := [n for n in names if n not in native]:
        sys.meta_path.insert(0, Renamer(others))
    import torch
    import torch._dynamo

    for name in native:
        holder, _, last = name.removeprefix("torch.").rpartition(".")
        found: Any = torch
        for part in holder.split(".") if holder else []:
            found = getattr(found, part)
        delattr(found, last)
    for name in others:
        assert not hasattr(torch, name)


def numbers(*shape: int) -> Any:
    import torch

    return torch.linspace(-1.0, 2.0, max(1, int(torch.tensor(shape).prod()))).reshape(shape)


def digest(optimizer: Any) -> str:
    """A digest of every param, state and version counter."""
    import torch

    found = hashlib.sha256()
    for group in optimizer.param_groups:
        for p in group["params"]:
            found.update(f"{p._version}".encode())
            for name, t in (("", p.detach()), *sorted(optimizer.state[p].items())):
                if isinstance(t, torch.Tensor):
                    found.update(name.encode() + bytes(t.contiguous().reshape(-1).view(torch.uint8).tolist()))
    return found.hexdigest()


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("Adam", {}),
    "amsgrad": ("AdamW", {"amsgrad": True, "weight_decay": 0.1}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "sgd": ("SGD", {}),
    "nadam": ("NAdam", {}),
    "adagrad": ("Adagrad", {"initial_accumulator_value": 0.1}),
    "rmsprop": ("RMSprop", {"centered": True, "momentum": 0.9}),
    "asgd": ("ASGD", {"t0": 2.0}),
    "lion": ("Lion", {}),
}


def trained(case: str) -> dict[str, Any]:
    """Steps of every kind with hooks, and a state that is saved and loaded. Returns the results."""
    import adaptk.torch
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    name, options = CASES[case]
    params = [torch.nn.Parameter(numbers(*shape)) for shape in ((3, 4), (), (64,))]
    params += [torch.nn.Parameter(numbers(7).bfloat16()), torch.nn.Parameter(numbers(6, 5).t())]
    calls: list[str] = []

    def told(what: str) -> Callable[..., None]:
        return lambda *_: calls.append(what)

    def made() -> Any:
        result = getattr(adaptk.torch, name)(params, lr=0.01, **options)
        result.register_step_pre_hook(told("before"))
        result.register_step_post_hook(told("after"))
        return result

    def loss() -> Any:
        optimizer.zero_grad()
        result = sum((p.float() - 0.5).square().sum() for p in params)
        result.backward()
        return result

    everyone = [
        register_optimizer_step_pre_hook(told("all: before")),
        register_optimizer_step_post_hook(told("all: after")),
    ]
    optimizer = made()
    optimizer.step(loss)
    loss()
    optimizer.step(clip_norm=0.5, skip_nonfinite=True)
    saved = optimizer.state_dict()
    optimizer = made()
    optimizer.load_state_dict(saved)
    loss()
    with torch.autograd.profiler.profile() as seen:
        optimizer.step()
        optimizer.zero_grad()
    for hook in everyone:
        hook.remove()
    loss()
    params[0].grad[0, 0] = float("inf")
    before = digest(optimizer)
    optimizer.step(skip_nonfinite=True)
    assert digest(optimizer) == before
    ranges = {e.name for e in seen.function_events if "Optimizer." in e.name}
    return {"digest": digest(optimizer), "calls": calls, "ranges": sorted(ranges)}


def misused() -> list[str]:
    """The messages for wrong arguments, and for a class that overrides `step`."""
    import adaptk.torch
    import torch

    said = []
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)

    class Own(adaptk.torch.SGD):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            said.append("own")
            return super().step(*args, **kwargs)

    for cls in (adaptk.torch.SGD, Own):
        optimizer = cls([p], lr=0.5)
        optimizer.register_step_post_hook(lambda *_: said.append("after"))
        optimizer.step()
        said.append(refusal(lambda: optimizer.step(clip=1.0)))  # noqa: B023
    return [*said, f"{p.tolist()}"]


def many() -> list[Any]:
    """Functions on many tensors that only devices and sharded tensors need."""
    import adaptk.torch
    import torch
    from adaptk.torch._norm import sharded_norm

    steps = [torch.zeros(()), torch.ones(())]
    adaptk.torch.Adam._count(steps, 1)
    grads = [numbers(2, 3).bfloat16(), numbers(5)]
    return [[float(t) for t in steps], sharded_norm([_with_grad(g) for g in grads], None)[0]]


def _with_grad(grad: Any) -> Any:
    import torch

    p = torch.nn.Parameter(torch.zeros_like(grad))
    p.grad = grad
    return p


def capture() -> str:
    """A step while PyTorch only reports that a graph is captured."""
    import types

    import adaptk.torch
    import torch

    p = _with_grad(torch.ones(2))
    optimizer = adaptk.torch.Adam([p])
    stream = types.SimpleNamespace(is_capturing=lambda: True)
    kept = {}
    for holder, name, value in (
        (torch.cuda, "is_initialized", lambda: True),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "is_current_stream_capturing", lambda: True),
        (torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda")),
        (torch.accelerator, "current_stream", lambda *_: stream),
    ):
        kept[holder, name] = getattr(holder, name)
        setattr(holder, name, value)
    try:
        optimizer.step()
    except RuntimeError as e:
        return str(e)
    finally:
        for (holder, name), value in kept.items():
            setattr(holder, name, value)
    return f"{p.tolist()}"


def too_old() -> list[str]:
    """With a PyTorch that reports an old version: the messages of construction and of a copy's step."""
    import adaptk.torch
    import torch

    p = _with_grad(torch.ones(2))
    optimizer = adaptk.torch.SGD([p], lr=0.5)
    copy = pickle.loads(pickle.dumps(optimizer))
    copy.param_groups[0]["params"][0].grad = torch.ones(2)
    torch.__version__ = "2.9.1"
    said = [refusal(lambda: adaptk.torch.Adam([p])), refusal(copy.step)]
    return [*said, f"{copy.param_groups[0]['params'][0].tolist()}"]


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except (RuntimeError, TypeError) as e:
        return str(e)
    return "nothing"


def main(names: Sequence[str]) -> dict[str, Any]:
    without(names)
    import adaptk.torch
    import torch

    torch.set_num_threads(1)
    return {
        "torch": torch.__version__,
        "native": bool(adaptk.torch._private.face()),
        "hooked": hasattr(adaptk.torch.Adam.step, "hooked"),
        "trained": {case: trained(case) for case in CASES},
        "misused": misused(),
        "many": many(),
        "capture": capture(),
        "too_old": too_old(),
    }


if __name__ == "__main__":
    warnings.simplefilter("error")
    print(json.dumps(main(sys.argv[1:])))
