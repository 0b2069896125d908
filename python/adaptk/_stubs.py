"""Type stubs of functions and classes that are made from the registry. ``python -m adaptk._stubs`` rewrites them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adaptk import _registry
from adaptk._docs import class_options, jax_options, state_name
from adaptk._registry import Rule

RULES = _registry.rules(catalogue=True)
_ALL = {**RULES, **_registry.ROW_WISE}
_HEADER = "# Made by python -m adaptk._stubs from the registry.\n"


def ops_stub() -> str:
    """The text of ``ops.pyi``."""
    lines = [_HEADER + "from adaptk._typing import Buffer, Buffers, Gradients, Number", ""]
    for rule in _ALL.values():
        lines.append(f"def {rule.name}(")
        lines += ["    param: Buffers,", "    grad: Gradients,"]
        lines += [f"    {s.name}: Buffers," for s in rule.states]
        lines += ["    *,", "    step: int | Buffer,", "    seed: int = ...,", "    param_format: str | None = ...,"]
        lines += ["    zero_grad: bool = ...,", "    copy_out: Buffers | None = ...,"]
        lines += ["    ema: tuple[Buffers, float] | None = ...,"]
        lines += ["    sparse: str = ...,", "    last_step: Buffers | None = ...,"]
        lines += [
            f"    {h.name}: {'bool' if h.range == 'bool' else 'Number'} = ..." + "," for h in rule.hyperparameters
        ]
        lines += [") -> None:", f'    """{rule.summary}"""', ""]
    return "\n".join(lines)


def _classes() -> Iterator[tuple[str, list[Rule]]]:
    by_class: dict[str, list[Rule]] = {}
    for rule in _ALL.values():
        for name in rule.class_names:
            by_class.setdefault(name, []).append(rule)
    for name, rules in by_class.items():
        yield name, sorted(rules, key=lambda r: len(r.variant))


def _all_names() -> str:
    names = ["Optimizer", "StepInfo", "optimizer_for", *(name for name, _ in _classes())]
    return "[\n" + "".join(f'    "{name}",\n' for name in names) + "]"


def optim_stub() -> str:
    """The text of ``optim.pyi``."""
    lines = [
        _HEADER + "from collections.abc import Callable, Mapping",
        "from typing import Any",
        "",
        "from adaptk._optimizer import Optimizer as Optimizer",
        "from adaptk._optimizer import StepInfo as StepInfo",
        "from adaptk._typing import Number",
        "",
        f"__all__ = {_all_names()}",
        "",
        "CLASSES: Mapping[str, type[Optimizer]]",
        "ROW_WISE_CLASSES: Mapping[str, type[Optimizer]]",
        "",
        "def optimizer_for(",
        "    rule: str,",
        "    params: Any,",
        "    lr: Number | Callable[[int], float] | None = ...,",
        "    *,",
        "    convention: str = ...,",
        "    clip_norm: float | None = ...,",
        "    skip_nonfinite: bool = ...,",
        "    capturable: bool = ...,",
        "    state_dtype: str | Mapping[str, str] | None = ...,",
        "    min_8bit_size: int = ...,",
        "    seed: int = ...,",
        "    param_format: str | None = ...,",
        "    sparse: str = ...,",
        "    **options: Any,",
        ") -> Optimizer:",
        '    """An optimizer that runs the rule of this name."""',
        "",
    ]
    for name, rules in _classes():
        lines += [f"class {name}(Optimizer):", f'    """{rules[0].summary}"""', "", "    def __init__("]
        lines += ["        self,", "        params: Any,", "        lr: Number | Callable[[int], float] = ...,"]
        lines += ["        *,", "        convention: str = ...,"]
        options = [(option, default) for option, default, _ in class_options(rules) if option != "lr"]
        lines += [
            f"        {option}: {'bool' if isinstance(default, bool) else 'Number | Callable[[int], float]'} = ...,"
            for option, default in options
        ]
        if any(option == "eps_in" for option, _ in options):
            lines.append("        eps: Number | Callable[[int], float] = ...,")
        lines += ["        clip_norm: float | None = ...,", "        skip_nonfinite: bool = ...,"]
        lines += ["        capturable: bool = ...,", "        state_dtype: str | Mapping[str, str] | None = ...,"]
        lines += ["        min_8bit_size: int = ...,", "        seed: int = ...,"]
        lines += ["        param_format: str | None = ...,", "        sparse: str = ...,"]
        lines += ["    ) -> None: ...", ""]
    return "\n".join(lines)


def jax_stub() -> str:
    """The text of ``jax.pyi``."""
    names = ["GradientTransformation", "SplitState", "Stored", *_ALL, *map(state_name, _ALL.values())]
    lines = [
        _HEADER + "from collections.abc import Callable, Mapping",
        "from typing import Any, NamedTuple",
        "",
        "from adaptk._jax_step import GradientTransformation as GradientTransformation",
        "from adaptk._jax_step import SplitState as SplitState",
        "from adaptk._jax_step import Stored as Stored",
        "",
        "__all__ = [",
        *(f'    "{name}",' for name in names),
        "]",
        "",
    ]
    for rule in _ALL.values():
        ranges = {h.name: h.range for h in rule.hyperparameters}
        lines += [f"class {state_name(rule)}(NamedTuple):", "    count: Any"]
        lines += [f"    {s.name}: Any" for s in rule.states]
        lines += ["", f"def {rule.name}(", "    learning_rate: float | Callable[[Any], Any] | Any = ...,", "    *,"]
        lines += ["    convention: str = ...,", "    packed: bool = ...,"]
        for name, default, _ in jax_options(rule):
            kind = "bool" if ranges.get(name) == "bool" else "float | None" if default is None else "float | Any"
            lines.append(f"    {name}: {kind} = ...,")
        lines += ["    state_dtype: str | Mapping[str, str] | None = ...,"]
        lines += ["    min_8bit_size: int | None = ...,", "    seed: int | None = ...,"]
        lines += ["    param_format: str | None = ...,", "    mask: Any = ...,"]
        lines += [") -> GradientTransformation:", f'    """{rule.summary}"""', ""]
    return "\n".join(lines)


def torch_catalogue_stub() -> str:
    """The text of ``torch/_catalogue.pyi``: the classes that `adaptk.torch` makes from the catalogue's rules."""
    lines = [
        _HEADER + "from typing import Any",
        "",
        "from torch import Tensor",
        "",
        "from adaptk.torch._made import Made",
        "",
    ]
    for rule in RULES.values():
        if rule.program is None:
            continue
        lines += [f"class {rule.class_names[0]}(Made):", f'    """{rule.summary}"""', "", "    def __init__("]
        lines += ["        self,", "        params: Any,", "        lr: float | Tensor | None = ...,"]
        if {"beta1", "beta2"} <= {h.name for h in rule.hyperparameters}:
            lines.append("        betas: tuple[float | Tensor, ...] | None = ...,")
        lines += ["        *,", "        convention: str = ...,", "        fused: bool | None = ...,"]
        lines += [
            f"        {h.name}: {'bool' if h.range == 'bool' else 'float | Tensor'} = ...,"
            for h in rule.hyperparameters
            if h.name not in ("lr", "grad_scale")
        ]
        lines += ["        **storage: Any,", "    ) -> None: ...", ""]
    return "\n".join(lines)


def main() -> None:
    """Rewrite the stubs next to this file."""
    here = Path(__file__).parent
    (here / "ops.pyi").write_text(ops_stub())
    (here / "optim.pyi").write_text(optim_stub())
    (here / "jax.pyi").write_text(jax_stub())
    (here / "torch" / "_catalogue.pyi").write_text(torch_catalogue_stub())


if __name__ == "__main__":
    main()
