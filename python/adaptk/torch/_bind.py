"""What the native step asks of Python: the states of params that it sees for the first time, and tensors that it cannot
read as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adaptk import formats
from adaptk._registry import Rule, State, rule_of
from adaptk.torch import _private
from adaptk.torch._dtensor import is_partitioned, is_sharded, local_part, placed_like
from adaptk.torch._tensors import (
    check_storage,
    check_wrapper,
    detached,
    full_like,
    in_layout_of,
    in_memory_order,
    is_captured,
    is_dense,
    is_wrapper,
    overlaps_itself,
    plain_copy,
    row_shape,
)
from adaptk.torch._undo import Undo, drop, put

Group = dict[str, Any]


# What _bind() returns.
_Bound = tuple[dict[str, Any] | None, tuple[Any, ...], tuple[Tensor, ...], bool, bool, bool]

_PLAIN = (Tensor, torch.nn.Parameter)
_STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_USUAL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_UNUSUAL_OPTIONS = ("capturable", "sparse", "param_format", "state_dtype")


def state_format(p: Tensor, state: State, group: Group) -> torch.dtype | str:
    """What a state is stored as: a dtype (float64 beside float64, complex beside complex), or a format with codes."""
    if p.dtype in (torch.float64, torch.complex128, torch.complex64):
        return p.dtype
    given = group.get("state_dtype")
    if given is None or state.per != "element":
        return torch.float32
    chosen = given.get(state.name, "float32") if isinstance(given, Mapping) else given or "float32"
    name = formats.format_of(chosen, state, p.numel(), group.get("min_8bit_size", 4096))
    return getattr(torch, name) if formats.is_plain(name) else name


def storage_of(group: Group) -> tuple[Any, Any]:
    """What a group says of the formats of its states, as it is now."""
    given = group.get("state_dtype")
    if given is not None and not isinstance(given, str) and isinstance(given, Mapping):
        given = tuple(given.items())  # a dict may change too
    return given, group.get("min_8bit_size")


def _new_numbers(p: Tensor, state: State, value: float) -> Tensor:
    dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
    return torch.full(state.shape_beside(tuple(p.shape)), value, dtype=dtype, device=p.device)


def _new_number(value: float, device: torch.device | None) -> Tensor:
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return torch.full((), value, dtype=dtype, device=device)


def _usual_states(rule: str) -> tuple[State, ...] | None:
    """The states of a rule that makes them all alike, as the numbers that numbers_beside() has beside them."""
    states = rule_of(rule).states
    alike = all(s.per == "element" and s.initial_from is None for s in states)
    # These make theirs as gradients come, none at all, or of the learning rate.
    return states if alike and rule not in ("sgd", "momentum", "nesterov", "asgd") else None


def _in_torchs_order(states: tuple[State, ...]) -> list[State]:
    """Of what is in a state: that of centered RMSprop has the mean of the gradients last."""
    return sorted(states, key=lambda s: s.name == "grad_avg")


def numbers_beside(rule: str) -> dict[str, float]:
    """The numbers that a rule has beside its state arrays, and what they start at; ASGD's eta at its learning rate."""
    others = {"nadam": {"mu_product": 1.0}, "asgd": {"eta": 0.0, "mu": 1.0}}
    return {"step": 0.0, **others.get(rule, {})}


def _draws(p: Tensor, rule: Rule, group: Group) -> bool:
    """Whether a step of this param needs random bits."""
    if group.get("param_format") == "sr" and p.dtype in (torch.bfloat16, torch.float16):
        return True
    if group.get("state_dtype") is None:
        return False
    stored = [state_format(p, s, group) for s in rule.states]
    return any(isinstance(name, str) and formats.is_stochastic(name) for name in stored)


def check_count(value: Any, where: str) -> None:
    """A number of steps that a state has: whole, and not negative."""
    if isinstance(value, Tensor):
        value = local_part(value)
        if value.numel() != 1 or value.is_meta:
            return  # looked at when the step needs it
    step = float(value)
    if not (step >= 0.0 and step.is_integer()):
        raise ValueError(f"{where}: {step:g} is no count of steps, expected a whole number from 0 on")


class Binding(torch.optim.Optimizer):
    """The methods that the native step calls. Each leaves what it changes in `undo`."""

    def _initial(self, name: str, group: Group) -> float:
        """The value that a state starts with."""
        return 0.0

    def _bind(self, p: Tensor, group: Group, name: str, where: str, undo: Undo) -> _Bound:
        """The state of a param, made where it is missing: (state, (param, *states), numbers, odd, fresh, counts_rows).

        A param that is split is a pair: (param, remainder). `counts_rows`: whether the state has the last step of each
        row.
        """
        if self._is_usual(p, group) and (states := _usual_states(name)) is not None and self.state.get(p) is None:
            return self._bind_new(p, group, states, numbers_beside(name), undo)
        with torch.no_grad():
            return self._bind_any(p, group, name, where, undo)

    @staticmethod
    def _is_usual(p: Tensor, group: Group) -> bool:
        """Whether nothing about a param needs a closer look: most are like this, and a model may have thousands."""
        return (
            type(p) in _PLAIN
            and p.dtype in _USUAL_DTYPES
            and p.is_cpu
            and p.layout is torch.strided
            and p.is_contiguous()
            and not (p.is_neg() or p.is_inference())
            and (p.grad is None or p.grad.layout is torch.strided)
            and not any(map(group.get, _UNUSUAL_OPTIONS))
        )

    def _bind_new(
        self, p: Tensor, group: Group, states: tuple[State, ...], starts: dict[str, float], undo: Undo
    ) -> _Bound:
        """The same of a usual param that has no state yet."""
        cpu = torch.device("cpu")
        state: dict[str, Any] = {key: _new_number(start, cpu) for key, start in starts.items()}
        numbers = tuple(state.values())
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        for s in _in_torchs_order(states):
            state[s.name] = full_like(p, self._initial(s.name, group), dtype)
        put(self.state, p, state, undo)
        return state, (p, *(state[s.name] for s in states)), numbers, False, False, False

    def _bind_any(self, p: Tensor, group: Group, name: str, where: str, undo: Undo) -> _Bound:
        """The same of any param."""
        if not isinstance(p, Tensor):
            raise TypeError(f"{where}: {type(p).__name__}, expected a torch.Tensor")
        if p.layout != torch.strided:
            raise TypeError(f"{where}: {p.layout}, expected torch.strided")
        if p.is_meta or _private.is_fake(p):
            kind = "a fake tensor" if _private.is_fake(p) else "on the device meta"
            raise TypeError(f"{where}: {kind}, which holds no numbers to step")
        if not p.is_floating_point() and not p.is_complex():
            raise TypeError(f"{where}: dtype {p.dtype}, expected floating point or complex numbers")
        if p.dtype == torch.complex32:
            raise TypeError(f"{where}: dtype torch.complex32, expected complex64 or complex128")
        if p.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(f"{where}: an inference tensor, which is not updated outside of torch.inference_mode()")
        if p.grad is not None and p.grad.layout not in (torch.strided, torch.sparse_coo):
            raise RuntimeError(
                f"{where}: a gradient of layout {p.grad.layout}, expected torch.strided or torch.sparse_coo"
            )
        rule = rule_of(name)
        subclass = type(p) not in _PLAIN
        wraps = subclass and is_wrapper(local_part(p))
        odd = wraps or p.is_complex() or (subclass and is_sharded(p)) or not is_dense(p)
        if rule.reduces and is_partitioned(p):
            raise TypeError(
                f"{where}: a DTensor that is cut into parts, and {rule.name} reduces whole tensors to numbers, such as "
                "a norm; no process has a whole one"
            )
        if rule.shaped and odd:
            raise TypeError(
                f"{where}: a DTensor, complex or not dense, and {rule.name} has numbers for a tensor, a row or a "
                "column: it is for plain dense real params"
            )
        if odd and overlaps_itself(local_part(p)):
            raise RuntimeError(f"{where}: several of its elements are at one address, as in an expanded tensor")
        if wraps:
            check_wrapper(local_part(p), where)
        in_rows = not odd and p.is_contiguous()
        if any(s.per == "slice" for s in rule.states) and not (in_rows and p.device.type == "cpu"):
            raise TypeError(
                f"{where}: {rule.name} keeps one number for each row, of plain dense real params in C order on the CPU"
            )
        late = in_rows and p.ndim > 0 and group.get("sparse") == "catch_up" and p.device.type in ("cpu", "cuda")
        if late and group.get("capturable"):
            raise NotImplementedError(
                f"{where}: sparse='catch_up' with capturable=True; rows catch up by steps that the host counts"
            )
        draws = _draws(p, rule, group)
        side = formats.SIDES.get(group.get("param_format") or "") if p.dtype == torch.bfloat16 else None
        if name == "sgd" and not draws and side is None and not late:
            return None, (p,), (), odd, False, False
        if is_captured(p):
            raise RuntimeError(
                f"{where}: step() while its stream is captured in a graph: its state is not known yet, and one that is "
                "made now would be made anew at each replay; take one step before"
            )
        state = self.state.get(p)
        if state is None:
            state = {}
            put(self.state, p, state, undo)
        param = p if side is None else (p, self._side(state, *side, p, where, odd, undo))
        count: tuple[Tensor, ...] = ()
        if (draws or late) and name in ("sgd", "momentum", "nesterov"):
            # torch counts no steps here, and random bits depend on their number, as do steps that rows have missed.
            device = p.device if group.get("capturable") else None
            if name != "sgd" and state.get("momentum_buffer") is None:
                put(state, "step", _new_number(0.0, device), undo)
            count = (self._number(state, "step", 0.0, p, device, where, undo),)
        if name in ("sgd", "momentum", "nesterov"):
            self._bind_last_step(state, p, late, where, undo)
        if name == "sgd":
            return state, (param,), count, odd, False, late
        if name in ("momentum", "nesterov"):
            # As torch has it, the buffer is in the state once it has seen a gradient.
            fresh = state.get("momentum_buffer") is None
            stored = self._check_format(p, rule.states[0], group, where, odd)
            if fresh and isinstance(stored, str):
                self._new_coded(state, "momentum_buffer", p, 0.0, stored, undo)
            if fresh and not isinstance(stored, str):
                return state, (param, full_like(p, 0.0, stored)), count, odd, True, late
            buffer = self._state_array(state, rule.states[0], p, stored, where, odd, undo)
            return state, (param, buffer), count, odd, fresh, late
        starts = numbers_beside(name)
        if name == "asgd":
            starts["eta"] = float(detached(group["lr"]))
        expected = [*starts, *(s.name for s in rule.states)]
        missing = [n for n in expected if state.get(n) is None]
        if missing and len(missing) < len(expected):
            # As torch: what began at its initial value in the middle of a run would be a wrong step.
            raise KeyError(
                f"state of {where}: no {', '.join(map(repr, missing))} beside {', '.join(map(repr, state))}; "
                "load the whole state, or delete it (del optimizer.state[param]) to begin anew"
            )
        # The host looks at all of several numbers, and torch may have left them on the device of the params.
        device = p.device if group.get("capturable") else torch.device("cpu") if len(starts) > 1 else None
        numbers = [self._number(state, key, start, p, device, where, undo) for key, start in starts.items()]
        formats_of = {s.name: self._check_format(p, s, group, where, odd) for s in rule.states}
        for s in _in_torchs_order(rule.states):
            if state.get(s.name) is None:
                stored = formats_of[s.name]
                if s.per != "element":
                    put(state, s.name, _new_numbers(p, s, self._initial(s.name, group)), undo)
                elif isinstance(stored, str):
                    self._new_coded(state, s.name, p, self._initial(s.name, group), stored, undo)
                else:
                    put(state, s.name, full_like(p, self._initial(s.name, group), stored), undo)
                    if s.initial_from == "param":
                        state[s.name].copy_(p.detach())
        arrays = [
            self._state_array(state, s, p, formats_of[s.name], where, odd, undo)
            if s.per == "element"
            else self._state_numbers(state, s, p, where, undo)
            for s in rule.states
        ]
        self._bind_last_step(state, p, late, where, undo)
        return state, (param, *arrays), tuple(numbers), odd, False, late

    @staticmethod
    def _bind_last_step(state: dict[str, Any], p: Tensor, late: bool, where: str, undo: Undo) -> None:
        """The last step of each row, made if it is missing, for rows have missed none then; none if not `late`."""
        value = state.get("last_step")
        if not late:
            if value is not None:
                drop(state, "last_step", undo)
            return
        if value is None:
            put(state, "last_step", torch.full(row_shape(p), int(state["step"]), dtype=torch.int64), undo)
            return
        if not isinstance(value, Tensor):
            raise TypeError(f"state['last_step'] of {where}: {type(value).__name__}, expected a torch.Tensor")
        if value.shape != row_shape(p):
            raise ValueError(
                f"state['last_step'] of {where}: shape {tuple(value.shape)}, expected {row_shape(p)}: one number for "
                "each row of its param"
            )
        if value.dtype != torch.int64 or value.device.type != "cpu" or not value.is_contiguous():
            put(state, "last_step", value.detach().to(device="cpu", dtype=torch.int64).contiguous(), undo)

    def _side(
        self, state: dict[str, Any], name: str, dtype: str, p: Tensor, where: str, odd: bool, undo: Undo
    ) -> Tensor:
        """What lies beside a param that is split, made where it is missing: the param has lost nothing then."""
        wanted: torch.dtype = getattr(torch, dtype)
        if state.get(name) is None:
            put(state, name, full_like(p, 0.0, wanted), undo)
        value = state[name]
        if name == "remainder" and isinstance(value, Tensor) and value.dtype != wanted:
            raise TypeError(f"state[{name!r}] of {where}: dtype {value.dtype}, expected {wanted} by its param_format")
        return self._array(state, name, p, wanted, where, odd, undo)

    @staticmethod
    def _number(
        state: dict[str, Any], name: str, start: float, p: Tensor, device: torch.device | None, where: str, undo: Undo
    ) -> Tensor:
        """A number beside the states: on a device, or else on the CPU or where the param is."""
        value = state.get(name)
        if not isinstance(value, Tensor):
            value = _new_number(start if value is None else float(value), device)
            put(state, name, value, undo)
        value = local_part(value)
        if value.numel() != 1:
            raise ValueError(f"state[{name!r}] of {where}: {value.numel()} numbers, expected one")
        if name == "step" and value.device.type == "cpu":
            check_count(value, f"state['step'] of {where}")
        if device is None:
            device = value.device if value.device == p.device else torch.device("cpu")
        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
        if name in ("eta", "mu") and torch.get_default_dtype() != torch.float64:
            # torch computes them as numbers of the default dtype, however wide the tensor is that it writes them to.
            dtype = torch.float32
        if value.dtype != dtype or value.ndim != 0 or value.device != device:
            value = value.detach().reshape(()).to(device=device, dtype=dtype)
            put(state, name, value, undo)
        return value

    @staticmethod
    def _check_format(p: Tensor, state: State, group: Group, where: str, odd: bool) -> torch.dtype | str:
        stored = state_format(p, state, group)
        if isinstance(stored, str) and odd:
            what = "a DTensor" if is_sharded(p) else f"a {type(p).__name__}" if is_wrapper(p) else "not dense"
            raise TypeError(
                f"{where}: {what}, and state_dtype={group['state_dtype']!r} is for dense tensors; "
                "use float32, bfloat16 or float16"
            )
        return stored

    @staticmethod
    def _new_coded(state: dict[str, Any], name: str, p: Tensor, value: float, stored: str, undo: Undo) -> None:
        made = formats.full_like(p.detach(), value, stored)
        put(state, name, made.data, undo)
        if made.scales is not None:
            put(state, f"{name}_{formats.scales_name(stored)}", made.scales, undo)

    @staticmethod
    def _state_numbers(state: dict[str, Any], spec: State, p: Tensor, where: str, undo: Undo) -> Tensor:
        """A state that is not for each element, brought into the dtype, device and layout that the step takes."""
        value = state[spec.name]
        if not isinstance(value, Tensor):
            raise TypeError(f"state[{spec.name!r}] of {where}: {type(value).__name__}, expected a torch.Tensor")
        wanted = spec.shape_beside(tuple(p.shape))
        if tuple(value.shape) != wanted:
            raise ValueError(
                f"state[{spec.name!r}] of {where}: shape {tuple(value.shape)}, expected {wanted} beside a param of "
                f"shape {tuple(p.shape)}"
            )
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        if (
            value.dtype != dtype
            or value.device != p.device
            or value.requires_grad
            or not value.is_contiguous()
            or value.is_neg()
        ):
            check_storage(value, f"state[{spec.name!r}] of {where}")
            value = value.detach().to(device=p.device, dtype=dtype).contiguous().clone()
            put(state, spec.name, value, undo)
        return value

    def _state_array(
        self,
        state: dict[str, Any],
        spec: State,
        p: Tensor,
        stored: torch.dtype | str,
        where: str,
        odd: bool,
        undo: Undo,
    ) -> Tensor | formats.Stored:
        """A state, brought into the format that the step takes."""
        name = spec.name
        own = formats.scales_name(stored) if isinstance(stored, str) else None
        saved = next((s for s in formats.SAVED_SCALES if f"{name}_{s}" in state), None)
        if saved is not None and saved != own:
            # Saved in 8 bits, or in others of them.
            of = formats.format_of_saved(saved, name)
            coded = self._codes(state[name], spec, p, of, where), self._scales(state, f"{name}_{saved}", where)
            # Loaded once; codes are converted on the CPU.
            dense = formats.dequantize([*(x.cpu() for x in coded), of], (p.numel(),)).to(p.device)
            put(state, name, dense.as_strided(p.shape, p.stride()), undo)
            drop(state, f"{name}_{saved}", undo)
        if not isinstance(stored, str):
            return self._array(state, name, p, stored, where, odd, undo)
        if own is None:
            dtype = getattr(torch, formats.STORED_DTYPES[stored])
            return formats.Stored(self._array(state, name, p, dtype, where, odd, undo), None, stored)
        scales_name = f"{name}_{own}"
        if scales_name in state:
            scales = self._scales(state, scales_name, where)
            if scales is not state[scales_name]:
                put(state, scales_name, scales, undo)
            if formats.is_packed(stored):
                codes = self._codes(state[name], spec, p, stored, where)
                if codes is not state[name]:
                    put(state, name, codes, undo)
                return formats.Stored(codes, scales, stored)
            dtype = getattr(torch, formats.STORED_DTYPES[stored])
            return formats.Stored(self._array(state, name, p, dtype, where, odd, undo), scales, stored)
        dense = self._array(state, name, p, torch.float32, where, odd, undo)
        made = formats.quantize(in_memory_order(dense).cpu(), stored)
        codes = made.data.to(p.device)
        put(state, name, codes if formats.is_packed(stored) else codes.as_strided(p.shape, p.stride()), undo)
        put(state, scales_name, made.scales.to(p.device), undo)
        return formats.Stored(state[name], state[scales_name], stored)

    @staticmethod
    def _codes(codes: Any, spec: State, p: Tensor, format: str, where: str) -> Tensor:
        """Codes in a row, in the order of memory and the dtype that they were saved in."""
        wanted = formats.stored_shape(format, p.shape)
        if not isinstance(codes, Tensor) or tuple(codes.shape) != wanted:
            like = f"for the {p.numel()} elements of its param" if formats.is_packed(format) else "like its param"
            raise ValueError(f"state[{spec.name!r}] of {where}: expected codes of shape {wanted} {like}")
        # torch may have brought them into the dtype of the param, which holds them exactly.
        if formats.is_packed(format):
            plain = codes.dtype == torch.uint8 and codes.device == p.device and codes.is_contiguous()
            return codes if plain else codes.detach().to(device=p.device, dtype=torch.uint8).contiguous()
        return in_memory_order(in_layout_of(codes, p, getattr(torch, formats.STORED_DTYPES[format])))

    @staticmethod
    def _scales(state: dict[str, Any], name: str, where: str) -> Tensor:
        scales = state[name]
        if not isinstance(scales, Tensor):
            raise TypeError(f"state[{name!r}] of {where}: {type(scales).__name__}, expected a torch.Tensor")
        plain = scales.dtype == torch.float32 and scales.device.type == "cpu" and scales.is_contiguous()
        return scales if plain else scales.detach().to(device="cpu", dtype=torch.float32).contiguous()

    def _array(
        self, state: dict[str, Any], name: str, p: Tensor, dtype: torch.dtype, where: str, odd: bool, undo: Undo
    ) -> Tensor:
        """A state array, brought into the dtype, device and layout that the step takes."""
        value: Tensor = state[name]
        if not isinstance(value, Tensor):
            raise TypeError(f"state[{name!r}] of {where}: {type(value).__name__}, expected a torch.Tensor")
        if value.shape != p.shape:
            raise ValueError(
                f"state[{name!r}] of {where}: shape {tuple(value.shape)}, expected {tuple(p.shape)} like its param"
            )
        same = value.dtype == dtype and value.device == p.device and not value.requires_grad
        if same and not odd and type(value) is Tensor and value.stride() == p.stride():
            return value
        if is_sharded(value) != is_sharded(p):
            raise TypeError(
                f"state[{name!r}] of {where}: only one of the two is a DTensor; "
                "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict loads states as params are sharded"
            )
        placed = placed_like(value, p)
        if placed is not value:
            value = placed
            put(state, name, value, undo)
        same = value.dtype == dtype and value.device == p.device and not value.requires_grad
        if not same or (not odd and value.stride() != p.stride()):
            check_storage(value, f"state[{name!r}] of {where}")
            value = in_layout_of(value, p, dtype)
            put(state, name, value, undo)
        return value

    @staticmethod
    @torch.no_grad()
    def _fit(p: Tensor, grad: Tensor, where: str) -> Tensor:
        """A gradient in the layout of its param."""
        if not isinstance(grad, Tensor):
            raise TypeError(f"gradient of {where}: {type(grad).__name__}, expected a torch.Tensor")
        if grad.layout != torch.strided:
            raise RuntimeError(f"gradient of {where}: layout {grad.layout}, expected torch.strided or torch.sparse_coo")
        grad = local_part(grad)
        if is_wrapper(grad):
            grad = plain_copy(grad, f"gradient of {where}")
        if grad.stride() == p.stride() and not grad.is_neg() and grad.device == p.device:
            return grad
        if grad.shape != p.shape:
            raise ValueError(
                f"gradient of {where}: shape {tuple(grad.shape)}, expected {tuple(p.shape)} like its param"
            )
        if grad.device != p.device:
            raise ValueError(f"gradient of {where}: on {grad.device}, expected {p.device} like its param")
        check_storage(grad, f"gradient of {where}")
        return in_layout_of(grad, p, grad.dtype)

    @staticmethod
    @torch.no_grad()
    def _rows_of(p: Tensor, grad: Tensor, where: str, odd: bool) -> tuple[Tensor, Tensor]:
        """The indices and the values of a sparse gradient, which need not be coalesced."""
        if grad.shape != p.shape:
            raise ValueError(
                f"gradient of {where}: shape {tuple(grad.shape)}, expected {tuple(p.shape)} like its param"
            )
        if odd:
            raise TypeError(
                f"{where}: a sparse gradient is for plain dense real params in C order; give it a dense one"
            )
        if grad.sparse_dim() != 1:
            raise ValueError(
                f"gradient of {where}: {grad.sparse_dim()} sparse dimensions, expected 1, as nn.Embedding(sparse=True) "
                "gives; pass its to_dense()"
            )
        if grad.device != p.device:
            raise ValueError(f"gradient of {where}: on {grad.device}, expected {p.device} like its param")
        return grad._indices()[0].contiguous(), grad._values().detach().contiguous()

    @staticmethod
    @torch.no_grad()
    def _stand_in(
        buffers: tuple[Any, ...], grad: Tensor, where: str
    ) -> tuple[list[Any], list[tuple[Tensor, Tensor]]] | None:
        """Plain dense real tensors in the place of others, and which of them have to be copied back.

        None where the tensors are no longer what they were when they were bound.
        """
        if grad.layout != torch.strided:
            raise RuntimeError(f"gradient of {where}: layout {grad.layout}, expected torch.strided")
        whole, *beside = buffers[0] if isinstance(buffers[0], tuple) else (buffers[0],)
        p, *states = (local_part(b) for b in (whole, *beside, *buffers[1:]))
        grad = local_part(placed_like(grad, whole))
        wraps = is_wrapper(p)
        if not (is_sharded(whole) or wraps or p.is_complex() or not is_dense(p)):
            return None
        dtypes = (p.dtype,) if p.is_complex() or p.dtype == torch.float64 else _STATE_DTYPES
        if any(s.dtype not in dtypes for s in states[len(beside) :]):
            return None
        if any(s.shape != p.shape or s.device != p.device for s in states):
            return None
        for b, name in ((p, where), (grad, f"gradient of {where}"), *((s, f"a state of {where}") for s in states)):
            check_storage(b, name)
        copies: list[tuple[Tensor, Tensor]] = []
        dense = p
        if wraps:
            dense = plain_copy(p, where)
            copies.append((p, dense))
        elif not is_dense(p):
            dense = p.resolve_conj().resolve_neg().contiguous()
            copies.append((p, dense))
        used = []
        for s in states:
            fits = s.stride() == dense.stride() and is_dense(s) and not is_wrapper(s)
            used.append(s if fits else in_layout_of(s, dense, s.dtype))
            if not fits:
                copies.append((s, used[-1]))
        if is_wrapper(grad):
            grad = plain_copy(grad, f"gradient of {where}")
        fits = grad.stride() == dense.stride() and is_dense(grad)
        stand_in = [dense, grad if fits else in_layout_of(grad, dense, grad.dtype), *used]
        if dense.is_complex():
            stand_in = [torch.view_as_real(t) for t in stand_in]
        if beside:
            return [(dense, used[0]), stand_in[1], *used[1:]], copies
        return stand_in, copies

    @staticmethod
    @torch.no_grad()
    def _copy_back(copies: list[tuple[Tensor, Tensor]]) -> None:
        for target, source in copies:
            target.copy_(source)

    @staticmethod
    @torch.no_grad()
    def _count(steps: list[Tensor], by: int) -> None:
        _private.add_to_all(steps, by)

    _check_storage = staticmethod(check_storage)

    @staticmethod
    def _is_plain(p: Tensor) -> bool:
        return not (is_sharded(p) or is_wrapper(p) or p.is_complex() or not is_dense(p))

    @staticmethod
    def _check_epilogue_tensor(p: Tensor, t: Any, where: str) -> None:
        """A tensor that PyTorch copies or averages a param into."""
        if not isinstance(t, Tensor):
            raise TypeError(f"{where}: {type(t).__name__}, expected a torch.Tensor")
        if t.shape != p.shape:
            raise ValueError(f"{where}: shape {tuple(t.shape)}, expected {tuple(p.shape)} like its param")
        if t.is_complex() != p.is_complex() or not (t.is_complex() or t.is_floating_point()):
            raise TypeError(f"{where}: dtype {t.dtype}, which does not go with {p.dtype}")
        if t.device != p.device or is_sharded(t) != is_sharded(p):
            raise ValueError(f"{where}: expected a tensor that is placed like its param")
