"""State dicts: what is checked and changed before PyTorch loads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adaptk import formats
from adaptk._registry import rule_of
from adaptk.torch._bind import Group, check_count

if TYPE_CHECKING:
    from adaptk.torch._fused import Fused


class Ids(list[Any]):
    """A list that finds out in constant time whether something is in it."""

    def __contains__(self, x: object) -> bool:
        if "known" not in self.__dict__:
            self.known = set(self)
        return x in self.known


class _Watched(dict[str, Any]):
    """A param group that finds out which of the options that a class reads are absent."""

    def __init__(self, group: Group, defaults: Group) -> None:
        super().__init__(group)
        self.defaults = defaults
        self.absent: list[str] = []

    def __missing__(self, option: str) -> Any:
        self.absent.append(option)
        return self.defaults[option]


def in_own_order(optimizer: Fused, saved: dict[str, Any]) -> dict[str, Any]:
    """Groups with the ids that this optimizer's params have by their names, if both know the same names."""
    groups = saved.get("param_groups", ())
    if len(groups) != len(optimizer.param_groups):
        return saved
    ids = [i for g in groups for i in g["params"]]
    theirs, own = ([n for g in of for n in g.get("param_names", ())] for of in (groups, optimizer.param_groups))
    known = dict(zip(theirs, ids, strict=False))
    if theirs == own or len(theirs) != len(ids) or len(known) != len(ids) or sorted(theirs) != sorted(own):
        return saved
    of_own = [[known[name] for name in g["param_names"]] for g in optimizer.param_groups]
    names = [list(g["param_names"]) for g in optimizer.param_groups]
    changed = [{**g, "params": i, "param_names": n} for g, i, n in zip(groups, of_own, names, strict=True)]
    return {**saved, "param_groups": changed}


def check_loaded(optimizer: Fused, saved: Mapping[str, Any]) -> None:
    """What is to be loaded has all that this class needs, in the shapes of the params."""
    remedy = (
        f", which {type(optimizer).__name__} needs; it seems to be another optimizer's: "
        "load it into one of the class that has saved it"
    )
    for key in ("state", "param_groups"):
        if key not in saved:
            raise ValueError(f"state_dict: no {key!r}, expected what state_dict() of an optimizer has returned")
    # Saved by another version of PyTorch, groups lack options that __setstate__ adds.
    filled = object.__new__(type(optimizer))
    filled.__setstate__(
        {**optimizer.__dict__, "state": {}, "param_groups": [{**g, "params": []} for g in saved["param_groups"]]}
    )
    if [len(g["params"]) for g in saved["param_groups"]] != [len(g["params"]) for g in optimizer.param_groups]:
        return  # which torch refuses
    for k, (group, loaded, own) in enumerate(
        zip(filled.param_groups, saved["param_groups"], optimizer.param_groups, strict=True)
    ):
        defaults = optimizer._defaults_of(group)
        for option, default in defaults.items():
            value = group.get(option, default)
            if isinstance(default, tuple) and (not isinstance(value, (tuple, list)) or len(value) != len(default)):
                raise ValueError(
                    f"state_dict['param_groups'][{k}][{option!r}] is {value!r}, and not {len(default)} numbers{remedy}"
                )
        watched = _Watched(group, defaults)
        rule = optimizer._rule(watched)[0]
        if watched.absent:
            raise ValueError(f"state_dict['param_groups'][{k}] has no {', '.join(map(repr, watched.absent))}{remedy}")
        arrays = [] if rule == "sgd" else [s.name for s in rule_of(rule).states]
        expected = optimizer._saved_names(group, rule, arrays)
        per = {s.name: s for s in rule_of(rule).states}
        for i, p in zip(loaded["params"], own["params"], strict=True):
            state = saved["state"].get(i)
            if not isinstance(state, dict) or not state:
                continue
            where = f"state_dict['state'][{i!r}]"
            if absent := [repr(n) for n in expected if state.get(n) is None]:
                raise ValueError(f"{where} has no {', '.join(absent)} beside {', '.join(map(repr, state))}{remedy}")
            if "step" in state:
                check_count(state["step"], f"{where}['step']")
            for n in arrays:
                wanted, like = tuple(p.shape), "like its param"
                if per[n].per != "element":
                    wanted, like = per[n].shape_beside(wanted), f"beside a param of shape {wanted}"
                if f"{n}_4bit_scales" in state:
                    wanted = formats.stored_shape(formats.format_of_saved("4bit_scales", n), p.shape)
                    like = f"of 4-bit codes for the {p.numel()} elements of its param"
                if isinstance(state.get(n), Tensor) and state[n].shape != wanted:
                    raise ValueError(f"{where}[{n!r}]: shape {tuple(state[n].shape)}, expected {wanted} {like}")
