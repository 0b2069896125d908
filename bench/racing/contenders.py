"""Tables of the rules, with their names in each library, and of the libraries. A new library is an entry in both."""

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
    """The reason why a library is left out."""


# ---------------------------------------------------------------------------------------------------------------------
# Rules
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A rule in a library with names other than torch's, with the options for the same computation."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Race:
    """One rule, with equivalent options in every library that has it."""

    torch: str  # the class in adaptk.torch
    options: Mapping[str, Any] = field(default_factory=dict)
    in_torch: bool = True  # whether torch.optim has it too
    fused: bool = False  # whether torch.optim has a fused CPU implementation
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
        peers={
            "optax": Peer("adam"),
            "deepspeed": Peer("adam.DeepSpeedCPUAdam", {"adamw_mode": False}),
            "bitsandbytes": Peer("Adam8bit"),
        },
    ),
    "amsgrad": Race("Adam", {"amsgrad": True}, fused=True, peers={"optax": Peer("amsgrad")}),
    "adamw": Race(
        "AdamW",
        fused=True,
        peers={
            "optax": Peer("adamw"),
            "deepspeed": Peer("adam.DeepSpeedCPUAdam"),
            "bitsandbytes": Peer("AdamW8bit"),
        },
    ),
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
# Only these rules are measured if a case is long or one of many variants.
USUAL = ("momentum", "adam", "adamw", "adagrad", "rmsprop", "nadam", "adadelta")


# ---------------------------------------------------------------------------------------------------------------------
# Optimizers of the libraries
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """An implementation whose steps are timed."""

    step: Callable[[], object]
    wait: Callable[[], object] = lambda: None
    #: Called after the measurement: the reason why the times are invalid, or None.
    invalid: Callable[[], str | None] = lambda: None


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def line(shape: Shape, low: float, high: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Numbers of one sign and far from zero, so that no state of any rule becomes subnormal."""
    return np.linspace(low, high, math.prod(shape), dtype=np.float32).reshape(shape)


def forward_count(optimizer: Any) -> None:
    """Set the step count to 100, because the first steps of some rules differ from the others."""
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
    except Exception as e:  # it compiles its kernel here, which may fail in many ways
        raise Unavailable(f"its kernel cannot be had ({first_line(e)})") from None


def _bitsandbytes(race: Race, params: Sequence[Any]) -> Any:
    if (peer := race.peers.get("bitsandbytes")) is None:
        raise Unavailable("not one of its 8-bit rules")
    try:
        import bitsandbytes
    except ImportError as e:
        raise Unavailable(f"not installed ({first_line(e)})") from None
    return getattr(bitsandbytes.optim, peer.name)(params, lr=LR, **peer.options)


def _optax(race: Race, shapes: Sequence[Shape]) -> Contender:
    """An optax update with its own arrays, which each step donates."""
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
    # States that start as the same zeros may be one array, which cannot be donated twice.
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
    """A step under torch.compile, which notices if it is compiled again."""

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
        """The reason why a step since then was not compiled beforehand, or None."""
        return None if self._count() == self._graphs else "does not stay compiled from step to step"


# ---------------------------------------------------------------------------------------------------------------------
# Libraries
# ---------------------------------------------------------------------------------------------------------------------


def _states(states: int) -> int:
    return states


@dataclass(frozen=True)
class Library:
    """A library to compare: with torch's interface, or with its own arrays."""

    title: str
    #: Makes an optimizer with torch's interface, for the params that all such libraries share.
    optimizer: Callable[[Race, Sequence[Any]], Any] | None = None
    #: Or makes a contender with its own arrays.
    arrays: Callable[[Race, Sequence[Shape]], Contender] | None = None
    #: Whether the optimizer's step is compiled by torch.compile.
    compiled: bool = False
    #: Whether this is one of torch's own optimizers, uncompiled.
    eager: bool = False
    #: The packages whose versions are reported.
    packages: tuple[str, ...] = ("torch",)
    #: The number of arrays of the params' size that it makes, as a function of the rule's number of states.
    memory: Callable[[int], int] = _states
    #: The largest number of tensors in a smoke run.
    smoke_tensors: float = math.inf
    #: The reasons why it is left out if gradients are new at each step, and in training loops.
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
    "bitsandbytes": Library("bitsandbytes, 8-bit states", _bitsandbytes, packages=("torch", "bitsandbytes")),
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
    """Torch's own optimizers, uncompiled. Adaptk is compared with the fastest of them."""
    return [name for name, library in LIBRARIES.items() if library.eager]


def packages() -> list[str]:
    """The packages whose versions are reported."""
    return [*dict.fromkeys(p for library in LIBRARIES.values() for p in library.packages), "numpy"]


def torch_optimizer(name: str, race: Race, params: Sequence[Any]) -> Any:
    """The optimizer with torch's interface of the named library."""
    optimizer = LIBRARIES[name].optimizer
    if optimizer is None:
        raise Unavailable(LIBRARIES[name].no_loops)
    return optimizer(race, params)


def contender(name: str, race: Race, params: Sequence[Any], compile_tensors: int) -> Contender:
    """A library's contender on params whose gradients are set, or on arrays of the same shapes, after some steps."""
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
    """The result of `start`, or None with the reason added to `skipped`."""
    try:
        return start(name)
    except Unavailable as e:
        skipped[name] = str(e)
    except Exception as e:  # a failure of another library must not lose all figures
        if name == "adaptk":
            raise
        skipped[name] = first_line(e)
    return None
