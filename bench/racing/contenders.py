"""The rules under their names in each library, and the libraries. A new library is an entry in both tables."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from racing.cases import Shape

Started = TypeVar("Started")

LR = 1e-3


class Unavailable(Exception):
    """Why a library does not take part."""


# ---------------------------------------------------------------------------------------------------------------------
# Rules
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A rule in a library without torch's names, with the options that give it the same meaning."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Race:
    """One rule, with the same options in every library that has it."""

    torch: str  # the class in adaptk.torch
    options: Mapping[str, Any] = field(default_factory=dict)
    in_torch: bool = True  # whether torch.optim has it too
    fused: bool = False  # and whether it is fused there on the CPU
    peers: Mapping[str, Peer] = field(default_factory=dict)  # by library


_MOMENTUM = {"momentum": 0.9}
_NESTEROV = {"momentum": 0.9, "nesterov": True}
_DECAY = {"decay": 0.99}

RACES: dict[str, Race] = {
    "sgd": Race("SGD", fused=True, peers={"optax": Peer("sgd")}),
    "momentum": Race("SGD", _MOMENTUM, fused=True, peers={"optax": Peer("sgd", _MOMENTUM)}),
    "nesterov": Race("SGD", _NESTEROV, fused=True, peers={"optax": Peer("sgd", _NESTEROV)}),
    "adagrad": Race(
        "Adagrad", fused=True, peers={"optax": Peer("adagrad"), "deepspeed": Peer("adagrad.DeepSpeedCPUAdagrad")}
    ),
    "adam": Race(
        "Adam",
        fused=True,
        peers={"optax": Peer("adam"), "deepspeed": Peer("adam.DeepSpeedCPUAdam", {"adamw_mode": False})},
    ),
    "amsgrad": Race("Adam", {"amsgrad": True}, fused=True, peers={"optax": Peer("amsgrad")}),
    "adamw": Race("AdamW", fused=True, peers={"optax": Peer("adamw"), "deepspeed": Peer("adam.DeepSpeedCPUAdam")}),
    "adamax": Race("Adamax", peers={"optax": Peer("adamax")}),
    "nadam": Race("NAdam", peers={"optax": Peer("nadam")}),
    "radam": Race("RAdam", peers={"optax": Peer("radam")}),
    "adadelta": Race("Adadelta", peers={"optax": Peer("adadelta")}),
    "rmsprop": Race("RMSprop", peers={"optax": Peer("rmsprop", _DECAY)}),
    "rmsprop_centered": Race(
        "RMSprop", {"centered": True}, peers={"optax": Peer("rmsprop", {**_DECAY, "centered": True})}
    ),
    "rmsprop_momentum": Race("RMSprop", _MOMENTUM, peers={"optax": Peer("rmsprop", {**_DECAY, **_MOMENTUM})}),
    "rmsprop_centered_momentum": Race(
        "RMSprop",
        {"centered": True, **_MOMENTUM},
        peers={"optax": Peer("rmsprop", {**_DECAY, "centered": True, **_MOMENTUM})},
    ),
    "rprop": Race("Rprop", peers={"optax": Peer("rprop")}),
    "asgd": Race("ASGD"),
    "lion": Race("Lion", in_torch=False, peers={"optax": Peer("lion"), "deepspeed": Peer("lion.DeepSpeedCPULion")}),
    "adabelief": Race("AdaBelief", in_torch=False, peers={"optax": Peer("adabelief")}),
    "yogi": Race("Yogi", in_torch=False, peers={"optax": Peer("yogi")}),
    "adan": Race("Adan", in_torch=False, peers={"optax": Peer("adan")}),
    "delta_bar_delta": Race("DeltaBarDelta", in_torch=False),
    "rmsprop_nesterov": Race("RMSpropNesterov", in_torch=False),
}
# These stand for all rules if a case is long or one of many variants.
USUAL = ("momentum", "adam", "adamw", "adagrad", "rmsprop", "nadam", "adadelta")


# ---------------------------------------------------------------------------------------------------------------------
# Optimizers of the libraries
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """Something whose steps are timed."""

    step: Callable[[], object]
    wait: Callable[[], object] = lambda: None
    #: Why the times do not count, or None; asked after they were taken.
    invalid: Callable[[], str | None] = lambda: None


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def line(shape: Shape, low: float, high: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Numbers of one sign and far from zero, so that no state of any rule decays into subnormal numbers."""
    return np.linspace(low, high, math.prod(shape), dtype=np.float32).reshape(shape)


def forward_count(optimizer: Any) -> None:
    """Count as after a hundred steps: some rules have first steps that differ from the rest."""
    import torch

    for state in optimizer.state.values():
        count = state.get("step")
        if isinstance(count, torch.Tensor):
            count.fill_(100.0)


def _adaptk(race: Race, params: Sequence[Any]) -> Any:
    import adaptk.torch

    return getattr(adaptk.torch, race.torch)(params, lr=LR, **race.options)


def _torch(how: Mapping[str, bool]) -> Callable[[Race, Sequence[Any]], Any]:
    def optimizer(race: Race, params: Sequence[Any]) -> Any:
        import torch

        if not race.in_torch:
            raise Unavailable("torch has no such rule")
        if how.get("fused") and not race.fused:
            raise Unavailable("torch does not fuse this rule on the CPU")
        return getattr(torch.optim, race.torch)(params, lr=LR, **race.options, **how)

    return optimizer


def _deepspeed(race: Race, params: Sequence[Any]) -> Any:
    if (peer := race.peers.get("deepspeed")) is None:
        raise Unavailable("DeepSpeed has no such rule for the CPU")
    try:
        module, cls = peer.name.split(".")
        found = getattr(importlib.import_module(f"deepspeed.ops.{module}"), cls)
    except ImportError as e:
        raise Unavailable(f"not installed ({first_line(e)})") from None
    try:
        return found(params, lr=LR, **peer.options)
    except Exception as e:  # it compiles its kernel here, which fails in many ways
        raise Unavailable(f"its kernel cannot be had ({first_line(e)})") from None


def _optax(race: Race, shapes: Sequence[Shape]) -> Contender:
    """An optax update of arrays of its own, which each step donates to the next."""
    if (peer := race.peers.get("optax")) is None:
        raise Unavailable("optax has no such rule")
    try:
        import jax
        import optax
    except ImportError as e:
        raise Unavailable(f"not installed ({first_line(e)})") from None
    rule = getattr(optax, peer.name)(LR, **peer.options)
    device = jax.devices("cpu")[0]
    grads = [jax.device_put(line(s, 1e-3, 2e-3), device) for s in shapes]
    params: Any = [jax.device_put(line(s, 0.5, 1.5), device) for s in shapes]
    # Several states that start as the same zeros would be one array, which cannot be donated twice.
    state: Any = jax.tree.map(lambda a: jax.numpy.array(a, copy=True), rule.init(params))

    def update(params: Any, grads: Any, state: Any) -> Any:
        changes, state = rule.update(grads, state, params)
        return optax.apply_updates(params, changes), state

    compiled = jax.jit(update, donate_argnums=(0, 2))

    def step() -> None:
        nonlocal params, state
        params, state = compiled(params, grads, state)

    return Contender(step, lambda: jax.block_until_ready((params, state)))


class Compiled:
    """A step under torch.compile, which says if it does not stay compiled."""

    def __init__(self, optimizer: Any, tensors: int, most: int) -> None:
        import torch

        if tensors > most:
            raise Unavailable(f"would compile for minutes: {tensors} tensors, --compile-tensors {most}")
        torch._dynamo.reset()
        torch._logging.set_logs(all=50)
        self.step = torch.compile(optimizer.step, dynamic=False)
        try:
            self.step()
            forward_count(optimizer)
            for _ in range(3):
                self.step()
        except Exception as e:
            raise Unavailable(f"does not compile ({first_line(e)})") from None
        self._graphs = self._count()

    @staticmethod
    def _count() -> int:
        import torch

        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    def invalid(self) -> str | None:
        """Why what has run since was not compiled before, or None if it was."""
        return None if self._count() == self._graphs else "does not stay compiled from step to step"


# ---------------------------------------------------------------------------------------------------------------------
# Libraries
# ---------------------------------------------------------------------------------------------------------------------


def _states(states: int) -> int:
    return states


@dataclass(frozen=True)
class Library:
    """Whose steps are raced: of torch's interface, or with arrays of its own."""

    title: str
    #: An optimizer of torch's interface, which steps the params that all such libraries share.
    optimizer: Callable[[Race, Sequence[Any]], Any] | None = None
    #: Or what steps arrays of its own.
    arrays: Callable[[Race, Sequence[Shape]], Contender] | None = None
    #: Whether the optimizer's step goes through torch.compile.
    compiled: bool = False
    #: Whether this is one of torch's own optimizers as they come.
    eager: bool = False
    #: The packages whose versions matter.
    packages: tuple[str, ...] = ("torch",)
    #: How many arrays as large as the params it makes, by the number of the rule's states.
    memory: Callable[[int], int] = _states
    #: The most tensors in a smoke run.
    smoke_tensors: float = math.inf
    #: Why it does not race if the gradients are new at each step, and why not in training loops.
    no_fresh: str = ""
    no_loops: str = ""


LIBRARIES: dict[str, Library] = {
    "adaptk": Library("adaptk.torch", _adaptk),
    "fused": Library("torch, fused=True", _torch({"fused": True}), eager=True),
    "foreach": Library("torch, foreach=True", _torch({"foreach": True}), eager=True),
    "single": Library("torch, one tensor after another", _torch({"foreach": False}), eager=True),
    "compiled": Library(
        "torch.compile of the step",
        _torch({"foreach": False}),
        compiled=True,
        memory=lambda states: states + 2,
        no_fresh="compiles anew for other gradients",
    ),
    "deepspeed": Library("DeepSpeed", _deepspeed, packages=("torch", "deepspeed")),
    "optax": Library(
        "optax, jax.jit, donated buffers",
        arrays=_optax,
        packages=("jax", "optax"),
        memory=lambda states: 2 + 2 * states + 2,
        smoke_tensors=8,
        no_fresh="gradients of JAX are new arrays in any case",
        no_loops="the network is torch's",
    ),
}


def eager() -> list[str]:
    """Torch's own optimizers as they come, whose best is what adaptk is compared with."""
    return [name for name, library in LIBRARIES.items() if library.eager]


def packages() -> list[str]:
    """Those whose versions matter."""
    return [*dict.fromkeys(p for library in LIBRARIES.values() for p in library.packages), "numpy"]


def torch_optimizer(name: str, race: Race, params: Sequence[Any]) -> Any:
    """An optimizer of torch's interface by the library's name."""
    optimizer = LIBRARIES[name].optimizer
    if optimizer is None:
        raise Unavailable(LIBRARIES[name].no_loops)
    return optimizer(race, params)


def contender(name: str, race: Race, params: Sequence[Any], compile_tensors: int) -> Contender:
    """A library's step of params whose gradients are set, or of arrays of the same shapes, as after some steps."""
    library = LIBRARIES[name]
    if library.arrays is not None:
        return library.arrays(race, [tuple(p.shape) for p in params])
    optimizer = torch_optimizer(name, race, params)
    if library.compiled:
        compiled = Compiled(optimizer, len(params), compile_tensors)
        return Contender(compiled.step, invalid=compiled.invalid)
    optimizer.step()
    forward_count(optimizer)
    return Contender(optimizer.step)


def attempt(name: str, start: Callable[[str], Started], skipped: dict[str, str]) -> Started | None:
    """What a library starts with, or None and the reason among those skipped."""
    try:
        return start(name)
    except Unavailable as e:
        skipped[name] = str(e)
    except Exception as e:  # another's failure is no reason to lose all figures
        if name == "adaptk":
            raise
        skipped[name] = first_line(e)
    return None
