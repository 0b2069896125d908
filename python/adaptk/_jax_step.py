"""The steps of :mod:`adaptk.jax`: checks, the custom call of XLA, and objects with optax's interface.

One custom call takes all arrays of a step. Its operands are the params, states and gradients of all tensors, the step
number, and the hyperparameters that are only known at run time. Its results are the params and states, in the memory of
the operands if XLA can donate it. Scales of states follow the states, the remainders or compensations of the params
follow the scales, and numbers that are carried from step to step come last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial, partialmethod
from typing import Any, NamedTuple, NoReturn, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from adaptk import _core, formats
from adaptk._docs import jax_doc, jax_signature, state_name
from adaptk._functions import function_of
from adaptk._names import hint
from adaptk._registry import ROW_WISE, RULES, Rule, State, rule_of, rule_of_program
from adaptk.schedules import FromZero, Schedule

try:
    from adaptk import _jax
except ImportError as error:
    raise ImportError(
        "adaptk.jax: this build of adaptk has no module for JAX, for jaxlib's headers were not found when it was made; "
        "build it again with ADAPTK_JAX_INCLUDE set to what jax.ffi.include_dir() returns",
        name="adaptk._jax",
    ) from error

try:
    from optax import GradientTransformationExtraArgs as _Pair
except ImportError:

    class _Pair(NamedTuple):  # type: ignore[no-redef]
        init: Callable[[Any], Any]
        update: Callable[..., tuple[Any, Any]]


_TARGET = "adaptk_step"
for _platform, _handler in _jax.handlers.items():
    jax.ffi.register_ffi_target(_TARGET, _handler, platform=_platform)
# jax.export accepts only calls that are declared stable. This one is: its handler refuses attributes of other versions.
# If a JAX release has the list elsewhere, users name the call in disabled_checks.
with suppress(ImportError, AttributeError):
    from jax._src.export import _export

    _export._CUSTOM_CALL_TARGETS_GUARANTEED_STABLE.add(_TARGET)

# The largest number of arrays that one call updates: XLA's compile time grows with the cube of their number.
_MAX_KEPT = 192
# In a packed state, the size of each tensor's part is rounded up to a multiple of this.
_GRAIN = 16

_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
_DTYPES = ("float32", "float64", "bfloat16", "float16", *_FLOAT8)
# Params of these dtypes are rounded after each step: to nearest, or stochastically if asked for.
_NARROW = ("bfloat16", "float16", *_FLOAT8)
_COMPLEX = ("complex64", "complex128")
_REAL = "expected float32, float64, bfloat16, float16, float8_e4m3fn or float8_e5m2"
_EXPECTED = "expected float32, float64, bfloat16, float16, float8_e4m3fn, float8_e5m2, complex64 or complex128"
_MAX_STEPS = np.iinfo(np.int32).max


@jax.tree_util.register_pytree_with_keys_class
class Stored(formats.Stored):
    """A stored state of one param with the name of its format, like :class:`adaptk.formats.Stored`.

    It is a pytree node: `data` and `scales` are the children, and `format` is part of the tree structure. To decode it,
    convert its arrays to NumPy and call :func:`adaptk.formats.dequantize`.

    Attributes
    ----------
    data : array
        The stored elements: int8, uint8, bfloat16 or float16, in the shape of the param. 4-bit codes are a flat uint8
        array, two codes in a byte.
    scales : array or None
        float32, one scale for each block of 128 or 256 elements; None if the format has no scales.
    format : str
        The name of the format in :mod:`adaptk.formats`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpy as np, adaptk.formats, adaptk.jax
    >>> opt = adaptk.jax.adam(state_dtype="8bit", min_8bit_size=0)
    >>> m = opt.init(jnp.ones(300)).exp_avg
    >>> m.data.dtype, m.scales.shape, m.format
    (dtype('int8'), (3,), 'int8')
    >>> adaptk.formats.dequantize(jax.tree.map(np.asarray, m)).shape
    (300,)
    """

    __slots__ = ()

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], str]:
        key = jax.tree_util.GetAttrKey
        return ((key("data"), self.data), (key("scales"), self.scales)), self.format

    @classmethod
    def tree_unflatten(cls, format: str, children: tuple[Any, Any]) -> Stored:
        return cls(*children, format)


export.register_pytree_node_serialization(
    Stored,
    serialized_name="adaptk.jax.Stored",
    serialize_auxdata=lambda format: cast("str", format).encode(),
    deserialize_auxdata=lambda format: bytes(format).decode(),
)


class SplitState(NamedTuple):
    """The state of a transformation with ``param_format="remainder16"``, ``"remainder8"`` or ``"kahan"``.

    Attributes
    ----------
    state : named tuple
        The state of the rule.
    side : tree
        A tree with the structure of the params. For each bfloat16 param it has the remainder (int16 or int8) or the
        compensation (bfloat16), in the shape of the param, as in :func:`adaptk.formats.split_param`; for all others
        None.

    Examples
    --------
    >>> import jax.numpy as jnp, adaptk.jax
    >>> state = adaptk.jax.adam(param_format="remainder16").init(jnp.ones(3, jnp.bfloat16))
    >>> state.side.dtype, int(state.state.count)
    (dtype('int16'), 0)
    """

    state: Any
    side: Any


export.register_namedtuple_serialization(SplitState, serialized_name="adaptk.jax.SplitState")


def _is_stored(x: Any) -> bool:
    return isinstance(x, formats.Stored)


class _Fixed(NamedTuple):
    """What is known when a step is compiled: the attributes of the call."""

    rule: str
    values: tuple[float, ...]
    traced: tuple[int, ...]  # 1 for each hyperparameter that is an operand
    packed: bool
    seed: int
    param_format: str | None
    undecayed: tuple[int, ...] = ()  # indices of params that a mask excludes from weight decay


def _without_decay(fixed: _Fixed) -> tuple[_Fixed, int | None]:
    """The same call without weight decay, and the index of the operand that it no longer has, or None."""
    at = [h.name for h in rule_of(fixed.rule).hyperparameters].index("weight_decay")
    values, traced = list(fixed.values), list(fixed.traced)
    operand = sum(traced[:at]) if traced[at] else None
    values[at], traced[at] = 0.0, 0
    return fixed._replace(values=tuple(values), traced=tuple(traced), undecayed=()), operand


class _Layout(NamedTuple):
    """The tensors and formats of the arrays of one call."""

    numbers: tuple[int, ...]  # the index of each tensor among all params, for stochastic rounding
    decayed: tuple[int, ...]  # 1 for each tensor with weight decay, 0 for one that a mask excludes
    formats: tuple[str, ...]  # of the arrays of states; "" if the dtype identifies the format


def _alike(arrays: Sequence[Any]) -> list[Any]:
    """Within shard_map, mark all arrays as varying if some are, because the arrays of a call must have one type."""
    axes: list[frozenset[str]] = [getattr(jax.typeof(x), "vma", frozenset()) for x in arrays]
    every: frozenset[str] = frozenset().union(*axes)
    if not every:
        return list(arrays)
    return [
        jax.lax.pcast(x, tuple(sorted(every - of)), to="varying") if every - of else x
        for x, of in zip(arrays, axes, strict=True)
    ]


def _call_unpartitioned(fixed: _Fixed, layout: _Layout, kept: list[Any], others: list[Any]) -> list[Any]:
    """All of `kept` after a step; `others` are gradients, the step number and hyperparameters."""
    operands = _alike([*kept, *others])
    # Only rules that reduce over all params have calls of more than _MAX_KEPT arrays. XLA does not try to fuse what has
    # side effects, and the trials take a time that grows with the cube of the number of arrays. For several devices it
    # refuses side effects without a sharding.
    call = jax.ffi.ffi_call(
        _TARGET,
        [jax.typeof(x) for x in operands[: len(kept)]],
        vmap_method="broadcast_all",
        input_output_aliases={i: i for i in range(len(kept))},
        has_side_effect=len(kept) > _MAX_KEPT and jax.device_count() == 1,
    )
    return list(
        call(
            *operands,
            rule=fixed.rule,
            packed=fixed.packed,
            values=np.array(fixed.values, np.float64),
            traced=np.array(fixed.traced, np.int32),
            numbers=np.array(layout.numbers, np.int32),
            decayed=np.array(layout.decayed, np.int32),
            formats=",".join(layout.formats) if any(layout.formats) else "",
            param_format=fixed.param_format or "",
            seed=np.int64(fixed.seed),
        )
    )


# Under jit over a mesh with automatic axes XLA chooses the sharding, and would gather the operands of a custom call. A
# sharding rule tells it that the step of a param is element-wise.


def _tensor_of(layout: _Layout, side_of: Sequence[int], kept: int, others: int) -> list[int | None]:
    """The index of the tensor that each operand belongs to; None for numbers."""
    count = len(layout.numbers)
    plain = kept - len(side_of)
    numbers = [None] * (others - count)
    return [*(i % count for i in range(plain)), *side_of, *range(count), *numbers]


def _rule_of_call(
    fixed: _Fixed, layout: _Layout, side_of: tuple[int, ...], ndims: tuple[tuple[int, ...], tuple[int, ...]], *_: Any
) -> SdyShardingRule:
    kept, others = ndims
    of = _tensor_of(layout, side_of, len(kept), len(others))
    mappings = []
    for k, (i, ndim) in enumerate(zip(of, (*kept, *others), strict=True)):
        name = f"n{k}" if i is None else f"t{i}"
        mappings.append(ArrayMapping(*(f"{name}_{axis}" for axis in range(ndim))))
    return SdyShardingRule(tuple(mappings), tuple(mappings[: len(kept)]))


def _partition_like_params(
    fixed: _Fixed, layout: _Layout, side_of: tuple[int, ...], ndims: Any, mesh: Any, shapes: Any, _: Any
) -> Any:
    kept, others = shapes
    of = _tensor_of(layout, side_of, len(kept), len(others))
    whole = NamedSharding(mesh, PartitionSpec())
    cuts = [whole if i is None else kept[i].sharding for i in of]
    results, rest = cuts[: len(kept)], cuts[len(kept) :]
    return mesh, partial(_call_unpartitioned, fixed, layout), results, (results, rest)


def _sharding_like_params(
    fixed: _Fixed, layout: _Layout, side_of: tuple[int, ...], ndims: Any, mesh: Any, shapes: Any, _: Any
) -> Any:
    kept, others = shapes
    return [kept[i].sharding for i in _tensor_of(layout, side_of, len(kept), len(others))[: len(kept)]]


def _call_partitioned(
    fixed: _Fixed, layout: _Layout, side_of: tuple[int, ...], ndims: Any, kept: list[Any], others: list[Any]
) -> list[Any]:
    return _call_unpartitioned(fixed, layout, kept, others)


_partitioned = custom_partitioning(_call_partitioned, static_argnums=(0, 1, 2, 3))
_partitioned.def_partition(
    partition=_partition_like_params,
    infer_sharding_from_operands=_sharding_like_params,
    sharding_rule=_rule_of_call,
    decode_shardings=False,
)


def _needs_whole_tensors(rule: Rule) -> bool:
    """Whether a step needs whole tensors, because the step of a shard is not the shard of the step."""
    return bool(rule.reduces) or any(s.per != "element" for s in rule.states)


def _is_elementwise(fixed: _Fixed, layout: _Layout, params: Sequence[Any]) -> bool:
    """Whether a step is element-wise, so that shards can be stepped alone: no norms, blocks or random bits."""
    narrow = fixed.param_format == "sr" and any(str(p.dtype) in _NARROW for p in params)
    return not (fixed.packed or narrow or any(layout.formats) or _needs_whole_tensors(rule_of(fixed.rule)))


def _call(fixed: _Fixed, layout: _Layout, kept: list[Any], others: list[Any]) -> list[Any]:
    params = kept[: len(layout.numbers)]
    unpartitioned = partial(_call_unpartitioned, fixed, layout)
    if jax.device_count() == 1 or not _is_elementwise(fixed, layout, params) or _within_shard_map(kept):
        return unpartitioned(kept, others)
    ndims = tuple(tuple(x.ndim for x in of) for of in (kept, others))
    call = jax.custom_batching.custom_vmap(partial(_partitioned, fixed, layout, tuple(_split(fixed, params)), ndims))

    @call.def_vmap  # type: ignore[untyped-decorator]
    def batched(size: int, in_batched: Any, kept: Any, others: Any) -> Any:
        axes = jax.tree.map(lambda b: 0 if b else None, in_batched)
        return jax.vmap(unpartitioned, in_axes=tuple(axes), axis_size=size)(kept, others), [True] * len(kept)

    return cast("list[Any]", call(kept, others))


def _within_shard_map(arrays: Sequence[Any]) -> bool:
    return any(getattr(jax.typeof(x), "vma", None) for x in arrays) or any(_spread(x) is not None for x in arrays)


def _no_derivative(fixed: _Fixed, layout: _Layout, primals: Any, tangents: Any) -> Any:
    raise TypeError(
        f"adaptk.jax.{fixed.rule}: a step has no derivative here; keep it out of what is differentiated, "
        "or pass params, gradients and state through jax.lax.stop_gradient"
    )


_opaque_call = jax.custom_jvp(_call, nondiff_argnums=(0, 1))
_opaque_call.defjvp(_no_derivative)


def _groups(
    params: Sequence[Any],
    states: Sequence[Sequence[Any]],
    packed: bool,
    undecayed: Sequence[int] = (),
    sides: Sequence[int] = (),
) -> list[list[int]]:
    """The params of each call: all with or all without weight decay, and with packed states all of one dtype. For rules
    that reduce over all tensors, _step has one call of all params instead."""
    without = set(undecayed)
    kinds = [(i in without, packed and p.dtype == jnp.float64) for i, p in enumerate(params)]
    groups: list[list[int]] = []
    for kind in ((False, False), (False, True), (True, False), (True, True)):
        arrays = _MAX_KEPT
        for i in (i for i, k in enumerate(kinds) if k == kind):
            own = 1 if packed else 1 + len(jax.tree_util.tree_leaves([s[i] for s in states])) + (i in sides)
            if arrays + own > _MAX_KEPT:
                groups.append([])
                arrays = 0
            groups[-1].append(i)
            arrays += own
    return groups


def _packed_size(params: Sequence[Any]) -> int:
    return sum(-(-p.size // _GRAIN) * _GRAIN for p in params)


def _split(fixed: _Fixed, params: Sequence[Any]) -> list[int]:
    """The indices of the params that have a remainder or a compensation."""
    if fixed.param_format not in formats.SIDES:
        return []
    return [i for i, p in enumerate(params) if p.dtype == jnp.bfloat16]


def _step(
    fixed: _Fixed,
    params: list[Any],
    states: list[list[Any]],
    sides: list[Any],
    count: Any,
    grads: list[Any],
    traced: list[Any],
    carried: Any,
) -> tuple[list[Any], list[list[Any]], list[Any], Any, Any]:
    """A step; `sides` are the remainders or compensations of the params that have them, and `carried` is the state's
    field of that name, or None."""
    count = jnp.where(count < _MAX_STEPS, count + 1, count)
    params, states = list(params), [list(s) for s in states]
    side = dict(zip(_split(fixed, params), sides, strict=True))
    without = set(fixed.undecayed)
    at_once = rule_of(fixed.rule).reduces == "all"
    if at_once:
        groups = [list(range(len(params)))] if params else []
    else:
        groups = _groups(params, states, fixed.packed, fixed.undecayed, list(side))
    for k, group in enumerate(groups):
        own, numbers = fixed._replace(undecayed=()), list(traced)
        if group[0] in without and not at_once:
            own, operand = _without_decay(fixed)
            if operand is not None:
                del numbers[operand]
        places = [(s, i) for s in states for i in ([k] if fixed.packed else group)]
        old = [s[i] for s, i in places]
        decayed = tuple(int(not (at_once and i in without)) for i in group)
        layout = _Layout(tuple(group), decayed, tuple(x.format if _is_stored(x) else "" for x in old))
        kept = [params[i] for i in group] + [x.data if _is_stored(x) else x for x in old]
        kept += [x.scales for x in old if _is_stored(x) and x.scales is not None]
        kept += [side[i] for i in group if i in side]
        kept += [] if carried is None else [carried]
        new = iter(_opaque_call(own, layout, kept, [*(grads[i] for i in group), count, *numbers]))
        for i in group:
            params[i] = next(new)
        for s, i in places:
            s[i] = next(new)
        for (s, i), x in zip(places, old, strict=True):
            if _is_stored(x):
                s[i] = Stored(s[i], None if x.scales is None else next(new), x.format)
        side.update((i, next(new)) for i in group if i in side)
        carried = carried if carried is None else next(new)
    return params, states, list(side.values()), count, carried


_step_in_place = jax.jit(_step, static_argnums=0, donate_argnums=(1, 2, 3, 4, 7))
_step_out_of_place = jax.jit(_step, static_argnums=0)


def step_arrays(
    rule: str,
    values: Mapping[str, Any],
    undecayed: tuple[int, ...],
    params: list[Any],
    states: list[list[Any]],
    count: Any,
    grads: list[Any],
    traced: Mapping[str, Any],
    carried: Any = None,
) -> tuple[list[Any], list[list[Any]], Any]:
    """A step for frameworks that own the arrays; nothing is donated. `traced` are hyperparameters in arrays: numbers,
    or the halves of float64 numbers. `carried` are the halves of the numbers that the step itself carries on."""
    known = {**rule_of(rule).defaults(), **values}
    are_traced = tuple(int(name in traced) for name in known)
    fixed = _Fixed(rule, tuple(float(v) for v in known.values()), are_traced, False, 0, None, undecayed)
    operands = [traced[name] for name in known if name in traced]
    everything = (*params, *(x for s in states for x in s), *grads, count, *operands)
    run = _step if any(isinstance(x, jax.core.Tracer) for x in everything) else _step_out_of_place
    new, new_states, _, _, carried = run(fixed, params, states, [], count, grads, operands, carried)
    return new, new_states, carried


def next_carried_arrays(rule: str, values: Mapping[str, Any], count: Any, traced: Mapping[str, Any]) -> Any:
    """What a rule carries behind a step of :func:`step_arrays`: the halves of a float64 for each number."""
    of = rule_of(rule)

    def following(step: Any, *numbers: Any) -> np.ndarray[Any, Any]:
        given = [np.asarray(x) for x in numbers]
        wide = [float(x.view(np.float64)[0] if x.dtype == np.uint32 else x) for x in given]
        known = {**of.defaults(), **values, **dict(zip(traced, wide, strict=True))}
        new = _core.next_carried(rule, [float(known[h.name]) for h in of.hyperparameters], int(step) + 1)
        return _halves(np.array([new[c] for c in of.carried]))

    if not any(isinstance(x, jax.core.Tracer) for x in (count, *traced.values())):
        return jnp.asarray(following(count, *traced.values()))
    result = jax.ShapeDtypeStruct((len(of.carried), 2), np.uint32)
    # XLA has the callback on one device, and without a barrier whatever takes its result too.
    return jax.lax.optimization_barrier(
        jax.pure_callback(following, result, count, *traced.values(), vmap_method="sequential")
    )


# Sharded params: each device steps its shard. XLA by itself would gather them.


def _spread(x: Any) -> Any:
    """The named sharding of an array if it is known to be divided among devices, else None."""
    sharding = jax.typeof(x).sharding if isinstance(x, jax.core.Tracer) else x.sharding
    if not isinstance(sharding, NamedSharding) or all(axis is None for axis in sharding.spec):
        return None
    return sharding


def _sharded(fixed: _Fixed, mesh: Any, specs: tuple[Any, ...], states: int, split: tuple[int, ...], traced: int) -> Any:
    every, one = list(specs), PartitionSpec()
    kept = (every, [every] * states, [specs[i] for i in split], one)
    return jax.shard_map(
        partial(_step, fixed),
        mesh=mesh,
        in_specs=(*kept, every, [one] * traced, None),
        out_specs=(*kept, None),
        check_vma=False,
    )


@lru_cache(maxsize=256)
def _sharded_in_jit(
    fixed: _Fixed,
    mesh: Any,
    specs: tuple[Any, ...],
    states: int,
    split: tuple[int, ...],
    traced: int,
    in_place: bool,
) -> Callable[..., Any]:
    donated = (0, 1, 2, 3) if in_place else ()
    step = _sharded(fixed, mesh, specs, states, split, traced)
    return cast("Callable[..., Any]", jax.jit(step, donate_argnums=donated))


# Numbers that are known at run time only.


def _halves(x: float | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float64 numbers as pairs of uint32, because JAX has float64 arrays only if x64 is enabled."""
    return np.asarray(x, np.float64)[..., None].view(np.uint32)


def _scheduled(schedule: Schedule, count: Any) -> Any:
    """The rate of one of adaptk's schedules, a Python function that returns a float64."""
    if not isinstance(count, jax.core.Tracer):
        return _halves(schedule(int(count) + 1))

    def rates(counts: Any) -> np.ndarray[Any, Any]:
        steps = np.asarray(counts)
        return _halves(np.array([schedule(int(c) + 1) for c in steps.ravel()], np.float64).reshape(steps.shape))

    result = jax.ShapeDtypeStruct((2,), np.uint32)
    # XLA places the callback on one device, and without a barrier also every operation that uses its result.
    return jax.lax.optimization_barrier(jax.pure_callback(rates, result, count, vmap_method="expand_dims"))


class _Carried(Schedule):
    """A number that each step computes for the next one, as a function of the step number."""

    def __init__(self, rule: Rule, values: Mapping[str, Any], name: str) -> None:
        self._rule, self._values, self._name = rule, values, name
        self._last = (1, {c: rule.defaults()[c] for c in rule.carried})

    def _at(self, t: int) -> float:
        step, carried = self._last
        if step > t:
            defaults = self._rule.defaults()
            step, carried = 1, {c: defaults[c] for c in self._rule.carried}
        while step < t:
            lr = self._values["lr"]
            now = {**self._values, "lr": lr(step) if callable(lr) else lr, **carried}
            values = [float(now[h.name]) for h in self._rule.hyperparameters]
            carried = _core.next_carried(self._rule.key, values, step)
            step += 1
        self._last = (step, carried)
        return float(carried[self._name])


def _operand(name: str, value: Any, count: Any) -> Any:
    if isinstance(value, Schedule):
        return _scheduled(value, count)
    if callable(value):
        value = value(count)
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            return _halves(float(value))
    value = jnp.asarray(value)
    if value.shape != ():
        raise TypeError(f"{name}: an array of shape {value.shape}, expected one number")
    if not jnp.issubdtype(value.dtype, jnp.floating) and not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name}: dtype {value.dtype}, expected a number")
    return value.astype(jnp.float64 if value.dtype == jnp.float64 else jnp.float32)


# Checks. The label of a leaf is made only for an error, because it takes time.


def _label(name: str, tree: Any, i: int) -> str:
    paths, _ = jax.tree_util.tree_flatten_with_path(jax.tree_util.tree_unflatten(tree, range(tree.num_leaves)))
    return name + str(jax.tree_util.keystr(paths[i][0]))


def _array(label: Callable[[], str], x: Any) -> Any:
    if isinstance(x, jax.Array):
        return x
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError):
        raise TypeError(f"{label()}: expected an array, got {type(x).__name__}") from None


# The arrays to step: (i, None) for leaf i, or (i, 0) and (i, 1) for its real and imaginary part, which are stepped
# separately. Integers and bools are passed through.
Parts = list[tuple[int, int | None]]


def _params(params: Any) -> tuple[list[Any], Any]:
    leaves, tree = jax.tree_util.tree_flatten(params)
    leaves = [_array(partial(_label, "params", tree, i), x) for i, x in enumerate(leaves)]
    for i, x in enumerate(leaves):
        if str(x.dtype) not in _DTYPES and str(x.dtype) not in _COMPLEX and not _is_passed_on(x):
            raise TypeError(f"{_label('params', tree, i)}: dtype {x.dtype}, {_EXPECTED}")
    return leaves, tree


def _is_passed_on(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == jnp.bool_)


def _is_complex(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.complexfloating))


def _parts_of(leaves: Sequence[Any]) -> Parts | None:
    """The arrays to step; None if they are the leaves themselves."""
    if all(str(x.dtype) in _DTYPES for x in leaves):
        return None
    parts: Parts = []
    for i, x in enumerate(leaves):
        if _is_complex(x):
            parts += [(i, 0), (i, 1)]
        elif not _is_passed_on(x):
            parts.append((i, None))
    return parts


def _split_parts(leaves: Sequence[Any], parts: Parts | None) -> list[Any]:
    if parts is None:
        return list(leaves)
    return [leaves[i] if part is None else (jnp.real, jnp.imag)[part](leaves[i]) for i, part in parts]


def _join_parts(new: Sequence[Any], leaves: Sequence[Any], parts: Parts | None) -> list[Any]:
    """The leaves after a step, from their stepped parts."""
    if parts is None:
        return list(new)
    whole = list(leaves)
    for k, (i, part) in enumerate(parts):
        if part is None:
            whole[i] = new[k]
        elif part == 1:
            whole[i] = jax.lax.complex(new[k - 1], new[k])
    return whole


def _check_shape(name: str, tree: Any, i: int, x: Any, param: Any, state: State | None = None) -> None:
    if state is not None and state.per != "element":
        wanted, like = state.shape_beside(param.shape), f"beside a param of shape {param.shape}"
    else:
        wanted, like = param.shape, "like its param"
    if x.shape != wanted:
        raise ValueError(f"{_label(name, tree, i)}: shape {x.shape}, expected {wanted} {like}")


def _beside(name: str, given: Any, tree: Any, params: Sequence[Any]) -> list[Any]:
    leaves, own = jax.tree_util.tree_flatten(given)
    if own != tree:
        raise ValueError(f"{name}: its tree is {own}, expected that of params, {tree}")
    # The gradient of an integer param may have dtype float0, which is not a JAX array.
    arrays = [
        x if _is_passed_on(p) else _array(partial(_label, name, tree, i), x)
        for i, (x, p) in enumerate(zip(leaves, params, strict=True))
    ]
    for i, (x, p) in enumerate(zip(arrays, params, strict=True)):
        if not _is_passed_on(p):
            _check_shape(name, tree, i, x, p)
    return arrays


def _stored(label: Callable[[], str], given: Any, shape: tuple[int, ...], compute: Any) -> Stored:
    """Check a state in a format that its dtype does not identify; `compute` is the dtype that the rule computes in."""
    if given.format not in formats.STORED_DTYPES:
        raise ValueError(f"{label()}: format {given.format!r}, expected {', '.join(map(repr, formats.STORED_DTYPES))}")
    if compute != jnp.float32:
        name = jnp.dtype(compute)
        raise TypeError(f"{label()}: {given.format}, expected {name} beside a {name} param")
    data = _array(lambda: f"{label()}.data", given.data)
    wanted = formats.STORED_DTYPES[given.format]
    if str(data.dtype) != wanted:
        raise TypeError(f"{label()}.data: dtype {data.dtype}, expected {wanted} for {given.format}")
    of_data = formats.stored_shape(given.format, shape)
    if data.shape != of_data:
        raise ValueError(f"{label()}.data: shape {data.shape}, expected {of_data}")
    if not formats.has_scales(given.format):
        if given.scales is not None:
            raise TypeError(f"{label()}.scales: an array, but {given.format} has no scales; expected None")
        return Stored(data, None, given.format)
    row = (formats.scale_count(given.format, math.prod(shape)),)
    if given.scales is None:
        raise TypeError(f"{label()}.scales: None, expected float32 of shape {row} for {given.format}")
    scales = _array(lambda: f"{label()}.scales", given.scales)
    if scales.dtype != jnp.float32:
        raise TypeError(f"{label()}.scales: dtype {scales.dtype}, expected float32")
    if scales.shape != row:
        raise ValueError(
            f"{label()}.scales: shape {scales.shape}, expected {row}: one for each "
            f"{formats.block_of(given.format)} elements of its param"
        )
    return Stored(data, scales, given.format)


def _state(state: State, given: Any, tree: Any, params: Sequence[Any]) -> list[Any]:
    """The leaves of a state, checked: arrays and Stored."""
    name, numbers = f"state.{state.name}", state.per != "element"
    leaves, own = jax.tree_util.tree_flatten(given, is_leaf=_is_stored)
    if own != tree:
        raise ValueError(f"{name}: its tree is {own}, expected that of params, {tree}")
    checked = []
    for i, (x, p) in enumerate(zip(leaves, params, strict=True)):
        if _is_passed_on(p):
            checked.append(x)
            continue
        if _is_stored(x) and not numbers:
            checked.append(_stored(partial(_label, name, tree, i), x, p.shape, _state_dtype(p)))
            continue
        x = _array(partial(_label, name, tree, i), x)
        _check_shape(name, tree, i, x, p, state)
        if numbers and x.dtype != _state_dtype(p):
            raise TypeError(
                f"{_label(name, tree, i)}: dtype {x.dtype}, expected {jnp.dtype(_state_dtype(p))} beside a "
                f"{p.dtype} param"
            )
        if not _fits_beside(x.dtype, _state_dtype(p)):
            raise TypeError(
                f"{_label(name, tree, i)}: dtype {x.dtype}, expected {jnp.dtype(_state_dtype(p))} beside a "
                f"{p.dtype} param"
                + ("" if _state_dtype(p) != jnp.float32 else ", or bfloat16 or float16, or an adaptk.jax.Stored")
            )
        checked.append(x)
    return checked


def _sides(given: Any, tree: Any, params: Sequence[Any], split: Sequence[int], dtype: str) -> list[Any]:
    """The remainders or compensations of the params that have them, checked."""
    leaves, own = jax.tree_util.tree_flatten(given, is_leaf=lambda x: x is None)
    if own != tree:
        raise ValueError(f"state.side: its tree is {own}, expected that of params, {tree}")
    arrays = []
    for i, x in enumerate(leaves):
        if (x is not None) != (i in split):
            wanted = f"an array of {dtype} beside a bfloat16 param" if i in split else f"None, for {params[i].dtype}"
            raise TypeError(f"{_label('state.side', tree, i)}: {type(x).__name__}, expected {wanted}")
        if x is None:
            continue
        x = _array(partial(_label, "state.side", tree, i), x)
        _check_shape("state.side", tree, i, x, params[i])
        if str(x.dtype) != dtype:
            raise TypeError(f"{_label('state.side', tree, i)}: dtype {x.dtype}, expected {dtype}")
        arrays.append(x)
    return arrays


def _grads(grads: Any, tree: Any, params: Sequence[Any]) -> list[Any]:
    arrays = _beside("grads", grads, tree, params)
    for i, (x, p) in enumerate(zip(arrays, params, strict=True)):
        if _is_passed_on(p):
            continue
        if str(x.dtype) not in (_COMPLEX if _is_complex(p) else _DTYPES):
            wanted = f"expected complex64 or complex128 beside a {p.dtype} param" if _is_complex(p) else _REAL
            raise TypeError(f"{_label('grads', tree, i)}: dtype {x.dtype}, {wanted}")
    return arrays


def _state_dtype(param: Any) -> Any:
    if _is_complex(param):
        return param.dtype
    return jnp.float64 if param.dtype == jnp.float64 else jnp.float32


def _fits_beside(state: Any, wanted: Any) -> bool:
    """Whether a state may have this dtype if init would make `wanted`: 16-bit dtypes may replace float32."""
    return bool(state == wanted or (wanted == jnp.float32 and state in (jnp.bfloat16, jnp.float16)))


def _placed(param: Any) -> Any:
    """The sharding of undivided state arrays of a param: the param's, but replicated; None if it is not committed."""
    if isinstance(param, jax.core.Tracer) or not param.committed:
        return None
    sharding = param.sharding
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(), memory_kind=sharding.memory_kind)
    return sharding


def _refuse_sharded(name: str) -> NoReturn:
    raise ValueError(
        f"{name}, and params that are cut into parts over several devices; call init and apply within "
        "jax.shard_map, where each part has blocks and random bits of its own"
    )


def _start_stored(param: Any, value: float, name: str) -> Stored:
    """A constant state, in a format that its dtype does not identify."""
    code, scale = formats.code_of(value, name)
    if formats.is_packed(name):
        data = jnp.full(
            formats.stored_shape(name, param.shape), code, formats.STORED_DTYPES[name], device=_placed(param)
        )
        data = _alike([param, data])[1]
    else:
        data = jnp.array(jnp.full_like(param, code, dtype=formats.STORED_DTYPES[name]), copy=True)
    if scale is None:
        return Stored(data, None, name)
    scales = jnp.full(formats.scale_count(name, param.size), scale, jnp.float32, device=_placed(param))
    return Stored(data, _alike([param, scales])[1], name)


def _carries_measured(rule: Rule) -> bool:
    """Whether a step itself computes carried numbers, because they depend on the gradients."""
    return bool(rule.carried) and rule.reduces == "all"


def _make_state_type(rule: Rule) -> type[Any]:
    fields: list[tuple[str, Any]] = [("count", Any), *((s.name, Any) for s in rule.states)]
    if _carries_measured(rule):
        fields.append(("carried", Any))
    made: type[Any] = NamedTuple(state_name(rule), fields)  # type: ignore[misc]
    made.__module__ = "adaptk.jax"
    # Exported steps have this type in their signatures.
    export.register_namedtuple_serialization(made, serialized_name=f"adaptk.jax.{rule.key}")
    made.__doc__ = f"The state of :func:`adaptk.jax.{rule.name}`: the steps taken, and trees like that of the params."
    if _carries_measured(rule):
        made.__doc__ += (
            f" `carried` has the float64 numbers {', '.join(rule.carried)}, as two uint32 each: "
            "``np.asarray(state.carried).view(np.float64)[:, 0]``."
        )
    return made


COMPILED: Mapping[str, Rule] = {**{n: r for n, r in RULES.items() if r.program is None}, **ROW_WISE}
STATES: Mapping[str, type[Any]] = {name: _make_state_type(rule) for name, rule in COMPILED.items()}
_states_of_made: dict[str, type[Any]] = {}  # by key


def _state_type_of(rule: Rule) -> type[Any]:
    """The type of a rule's state: always the same object. Types of rules made at run time are in no module."""
    if rule.program is None:
        return STATES[rule.name]
    found = _states_of_made.get(rule.key)
    if found is None:
        found = _make_state_type(rule)
        found.__reduce__ = partialmethod(_reduced_state, rule)  # type: ignore[assignment, method-assign]
        found = _states_of_made.setdefault(rule.key, found)
    return found


def _reduced_state(state: Any, rule: Rule) -> Any:
    return _state_of, (rule, tuple(state))


def _state_of(rule: Rule, values: tuple[Any, ...]) -> Any:
    return _state_type_of(rule)(*values)


# Options that are neither hyperparameters nor initial values of states.
_OWN_OPTIONS = ("convention", "packed", "state_dtype", "min_8bit_size", "seed", "param_format", "mask")


class _Steps:
    """A rule with its hyperparameters."""

    made_of: tuple[str, Mapping[str, Any]]  # the function and arguments that make the same object again, for pickle

    def __init__(
        self,
        rule: Rule,
        options: Mapping[str, Any],
        *,
        convention: str = "book",
        packed: bool = False,
        state_dtype: str | Mapping[str, str] | None = None,
        min_8bit_size: int | None = None,
        seed: int | None = None,
        param_format: str | None = None,
        mask: Any = None,
    ) -> None:
        if not isinstance(packed, bool):
            raise TypeError(f"packed: expected a bool, got {type(packed).__name__}")
        self.mask = mask
        self.rule = rule
        self.dtypes = {} if state_dtype is None else formats.check_state_dtype(state_dtype, rule.states)
        self.min_8bit_size = formats.check_min_8bit_size(4096 if min_8bit_size is None else min_8bit_size)
        if packed and any(s.per != "element" for s in rule.states):
            raise ValueError(f"packed: {rule.name} has states of other shapes than the params'; use packed=False")
        if packed and rule.reduces == "all":
            raise ValueError(
                f"packed: {rule.name} reduces all tensors to one number in one call, and packed states are divided "
                "among calls; use packed=False"
            )
        if packed and any(name in formats.CHOICES for name in self.dtypes.values()):
            raise ValueError("packed: states in 8 bits have scales, which are not packed; use packed=False")
        self.values: dict[str, Any] = rule.defaults(convention)
        initial = {s.option for s in rule.states if s.option is not None}
        started: dict[str, float] = {}
        for name, value in options.items():
            if value is None and name in ("learning_rate", "eps"):
                continue
            if name == "learning_rate":
                # Schedules of adaptk are given the count from 1.
                self.values["lr"] = cast("Any", value.schedule) if isinstance(value, FromZero) else value
            elif name == "eps" and name not in self.values:
                places = self.values if self.values["eps_in"] or self.values["eps_out"] else rule.defaults()
                place = "eps_in" if places["eps_in"] else "eps_out"
                if place in options:
                    raise TypeError(f"eps: it is {place} here, which is given too")
                self.values[place] = value
            elif name in initial:
                started[name] = float(value)
                if not 0.0 <= started[name] < np.inf:
                    raise ValueError(f"{name}: {value!r} is not in [0, inf)")
            else:
                self.values[name] = value
        self._schedule_carried(options)
        flags = {h.name for h in rule.hyperparameters if h.range == "bool"}
        self.traced = {n: v for n, v in self.values.items() if callable(v) or isinstance(v, jax.Array)}
        for name in self.traced:
            if name in flags:
                raise TypeError(f"{name}: expected a bool, got {type(self.values[name]).__name__}")
        defaults = rule.defaults()
        fixed = {n: defaults[n] if n in self.traced else v for n, v in self.values.items()}
        try:
            _core.check_hyperparameters(rule.key, fixed)
        except (TypeError, ValueError) as error:
            if str(error).startswith("lr:"):
                raise type(error)(f"learning_rate{str(error)[2:]}") from None
            raise
        self.fixed = _Fixed(
            rule.key,
            tuple(float(v) for v in fixed.values()),
            tuple(int(n in self.traced) for n in fixed),
            packed,
            formats.check_seed(0 if seed is None else seed),
            formats.check_param_format(param_format),
        )
        self.initial = rule.initial_states(convention, {**fixed, "lr": 0.0} if "lr" in self.traced else fixed, started)
        self.state_type = _state_type_of(rule)

    def _schedule_carried(self, options: Mapping[str, Any]) -> None:
        """Make carried numbers functions of the count, which they are because all other numbers are constants. Those
        that depend on the gradients are a part of the state."""
        for name in self.rule.carried:
            if name in options:
                raise TypeError(f"{name}: it is carried from step to step, and begins with the rule's own value")
            if _carries_measured(self.rule):
                continue
            for other, value in self.values.items():
                if other not in self.rule.carried and (isinstance(value, jax.Array) or callable(value)):
                    if other == "lr" and isinstance(value, Schedule):
                        continue
                    argument = "learning_rate" if other == "lr" else other
                    raise TypeError(
                        f"{argument}: expected a number, or a schedule of adaptk for the learning rate, got "
                        f"{type(value).__name__}; {self.rule.name} hands {name} on from step to step"
                    )
        if self.rule.carried and not _carries_measured(self.rule):
            known = {n: v for n, v in self.values.items() if n not in self.rule.carried}
            self.values.update({name: _Carried(self.rule, known, name) for name in self.rule.carried})

    def _start(self, state: str, initial_from: str | None) -> Any:
        """The initial value of a state: a number or a JAX scalar."""
        if initial_from not in self.traced:
            return self.initial[state]
        value = self.traced[initial_from]
        if isinstance(value, Schedule):
            return value(1)
        if not callable(value):
            return value
        with jax.ensure_compile_time_eval():  # concrete even under jit, if the function allows it
            return value(jnp.zeros((), jnp.int32))

    def init(self, params: Any) -> Any:
        """The state before the first step: a named tuple of the count and of trees like `params`."""
        leaves, tree = self._own_params(params)
        states: list[Any] = []
        for s in self.rule.states:
            start = self._start(s.name, s.initial_from)
            if self.fixed.packed:
                parts = _parts_of(leaves)
                arrays = self._packed_arrays(_split_parts(leaves, parts), self._undecayed(params, tree, parts))
                states.append(tuple(self._start_packed(s, size, dtype, start) for size, dtype in arrays))
            else:
                states.append(jax.tree_util.tree_unflatten(tree, [self._start_beside(s, p, start) for p in leaves]))
        if _carries_measured(self.rule):
            start_of = self.rule.defaults()
            states.append(jnp.asarray(_halves(np.array([start_of[c] for c in self.rule.carried]))))
        state = self.state_type(jnp.zeros((), jnp.int32), *states)
        if self.side_dtype is None:
            return state
        split = _split(self.fixed, leaves)
        sides = [
            jnp.array(jnp.zeros_like(p, self.side_dtype), copy=True) if i in split else None
            for i, p in enumerate(leaves)
        ]
        return SplitState(state, jax.tree_util.tree_unflatten(tree, sides))

    @property
    def side_dtype(self) -> str | None:
        """The dtype of the remainder or compensation of a bfloat16 param; None if there is none."""
        side = formats.SIDES.get(self.fixed.param_format or "")
        return None if side is None else side[1]

    def _own_params(self, params: Any) -> tuple[list[Any], Any]:
        leaves, tree = _params(params)
        for i, p in enumerate(leaves):
            if p.dtype == jnp.float16 or str(p.dtype) in _FLOAT8:
                formats.check_param_dtype(str(p.dtype), self.fixed.param_format, _label("params", tree, i))
        return leaves, tree

    def _format(self, state: State, size: int, dtype: Any) -> str:
        """The format of a new state of `size` elements, if the rule computes in this dtype."""
        if dtype == jnp.float64:
            return "float64"
        return formats.format_of(self.dtypes.get(state.name, "float32"), state, size, self.min_8bit_size)

    def _known(self, state: State, start: Any) -> float:
        if isinstance(start, jax.core.Tracer):
            raise TypeError(
                f"state_dtype: {state.name} starts as {state.initial_from}, which is traced here, and a traced number "
                f"is not encoded; give a number, call init outside of the transformation, or leave {state.name} out"
            )
        return float(start)

    def _start_beside(self, state: State, param: Any, start: Any) -> Any:
        if _is_passed_on(param):
            return jnp.zeros_like(param)
        if _is_complex(param):
            real = jnp.full_like(jnp.real(param), start)
            return jax.lax.complex(real, real)
        if state.per != "element":
            numbers = jnp.full(state.shape_beside(param.shape), start, _state_dtype(param), device=_placed(param))
            return _alike([param, numbers])[1]
        name = self._format(state, param.size, _state_dtype(param))
        if formats.is_plain(name):
            # A copy, because jnp.full_like returns its argument if that is a 0-d array.
            return jnp.array(jnp.full_like(param, start, dtype=name), copy=True)
        if _spread(param) is not None:
            _refuse_sharded(f"state_dtype: {name}")
        return _start_stored(param, self._known(state, start), name)

    def _start_packed(self, state: State, size: int, dtype: Any, start: Any) -> Any:
        name = self._format(state, size, dtype)
        if formats.is_plain(name):
            return jnp.full(size, start, dtype=name)
        code, _ = formats.code_of(self._known(state, start), name)
        return Stored(jnp.full(size, code, dtype=formats.STORED_DTYPES[name]), None, name)

    def _undecayed(self, params: Any, tree: Any, parts: Parts | None) -> tuple[int, ...]:
        """The indices of the params, or of their parts, that the mask excludes from weight decay."""
        if self.mask is None:
            return ()
        mask = self.mask(params) if callable(self.mask) else self.mask
        try:
            spread = jax.tree_util.tree_map(lambda m, below: jax.tree_util.tree_map(lambda _: m, below), mask, params)
            flags = jax.tree_util.tree_leaves(spread)
        except (TypeError, ValueError) as error:
            raise ValueError(f"mask: expected bools in the structure of the params, or above it: {error}") from None
        for i, flag in enumerate(flags):
            if not isinstance(flag, (bool, np.bool_)):
                raise TypeError(f"{_label('mask', tree, i)}: {type(flag).__name__}, expected a bool")
        numbers = range(len(flags)) if parts is None else [i for i, _ in parts]
        return tuple(k for k, i in enumerate(numbers) if not flags[i])

    def _packed_arrays(self, params: Sequence[Any], undecayed: Sequence[int]) -> list[tuple[int, Any]]:
        """The sizes and dtypes of the arrays that each packed state consists of."""
        groups = [[params[i] for i in g] for g in _groups(params, (), True, undecayed)]
        return [(_packed_size(g), _state_dtype(g[0])) for g in groups]

    def _packed_state(self, name: str, given: Any, params: Sequence[Any], undecayed: Sequence[int]) -> list[Any]:
        wanted = self._packed_arrays(params, undecayed)
        if not isinstance(given, (tuple, list)) or _is_stored(given) or len(given) != len(wanted):
            raise ValueError(f"{name}: expected {len(wanted)} packed arrays, as init makes them for these params")
        arrays: list[Any] = []
        for i, (x, (size, dtype)) in enumerate(zip(given, wanted, strict=True)):
            if _is_stored(x):
                if x.format in formats.STORED_DTYPES and formats.has_scales(x.format):
                    raise ValueError(f"{name}[{i}]: {x.format} has scales, which are not packed; use packed=False")
                arrays.append(_stored(partial(f"{name}[{{}}]".format, i), x, (size,), dtype))
                continue
            x = jnp.asarray(x)
            if x.shape != (size,) or not _fits_beside(x.dtype, dtype):
                raise ValueError(
                    f"{name}[{i}]: {x.dtype} of shape {x.shape}, expected {jnp.dtype(dtype)} of shape ({size},) "
                    "for these params"
                )
            arrays.append(x)
        return arrays

    def _take(self, params: Any, grads: Any, state: Any, in_place: bool) -> tuple[list[Any], list[Any], Any, Any]:
        leaves, tree = self._own_params(params)
        parts = _parts_of(leaves)
        if _needs_whole_tensors(self.rule) and any(map(_is_complex, leaves)):
            raise TypeError(
                f"params: complex, whose real and imaginary parts are tensors of their own here, and {self.rule.name} "
                "reduces whole tensors, or their rows and columns, to numbers, such as a norm"
            )
        given = _grads(grads, tree, leaves)
        of_leaves = _split(self.fixed, leaves)
        fixed = self.fixed._replace(undecayed=self._undecayed(params, tree, parts))
        fields = self.state_type._fields
        sides: list[Any] = []
        if self.side_dtype is not None:
            if not isinstance(state, SplitState):
                raise TypeError(f"state: expected a SplitState of init, got {type(state).__name__}")
            sides = _sides(state.side, tree, leaves, of_leaves, self.side_dtype)
            state = state.state
        if not isinstance(state, tuple) or getattr(state, "_fields", None) != fields:
            raise TypeError(f"state: expected a {self.state_type.__name__} of init, got {type(state).__name__}")
        count = jnp.asarray(state[0])
        if count.shape != () or not jnp.issubdtype(count.dtype, jnp.integer):
            raise TypeError(f"state.count: {count.dtype} of shape {count.shape}, expected one integer")
        old = _split_parts(leaves, parts)
        gradients = _split_parts(given, parts)
        of_state: list[list[Any]] = []
        states = []
        carried = self._carried(state) if _carries_measured(self.rule) else None
        for s, tree_of_state in zip(self.rule.states, state[1 : 1 + len(self.rule.states)], strict=True):
            if fixed.packed:
                states.append(self._packed_state(f"state.{s.name}", tree_of_state, old, fixed.undecayed))
                continue
            of_state.append(_state(s, tree_of_state, tree, leaves))
            states.append(_split_parts(of_state[-1], parts))
        count = count.astype(jnp.int32)
        traced = [
            _operand("learning_rate" if name == "lr" else name, value, count) for name, value in self.traced.items()
        ]
        everything = (*old, *sides, *gradients, *jax.tree_util.tree_leaves((states, carried)), count, *traced)
        within = any(isinstance(x, jax.core.Tracer) for x in everything)
        if in_place and not within:
            whole = states if parts is None or fixed.packed else of_state
            self._check_once(tree, leaves, whole, sides, [g for g in given if not isinstance(g, np.ndarray)])
        shardings = [_spread(p) for p in old]
        mesh = next((s.mesh for s in shardings if s is not None), None)
        if _needs_whole_tensors(self.rule) and (
            mesh is not None or any(getattr(jax.typeof(p), "vma", ()) for p in leaves)
        ):
            raise ValueError(
                f"params: cut into parts over several devices, and {self.rule.name} reduces whole tensors, or their "
                "rows and columns, to numbers, such as a norm"
            )
        run: Callable[..., Any]
        if mesh is None:
            run = partial(_step if within else _step_in_place if in_place else _step_out_of_place, fixed)
        elif fixed.packed:
            raise ValueError("packed: the params are cut into parts over several devices; use packed=False")
        elif stored := next((x for s in states for x in s if _is_stored(x)), None):
            _refuse_sharded(f"state_dtype: {stored.format}")
        elif fixed.param_format == "sr" and any(str(p.dtype) in _NARROW for p in old):
            _refuse_sharded("param_format: sr")
        else:
            specs = tuple(PartitionSpec() if s is None else s.spec for s in shardings)
            layout = (fixed, mesh, specs, len(states), tuple(_split(fixed, old)), len(traced))
            run = _sharded(*layout) if within else _sharded_in_jit(*layout, in_place)
        new, new_states, new_sides, count, carried = run(old, states, sides, count, gradients, traced, carried)
        trees = [
            tuple(s)
            if fixed.packed
            else jax.tree_util.tree_unflatten(tree, _join_parts(s, of_state[k] if of_state else (), parts))
            for k, s in enumerate(new_states)
        ]
        after = self.state_type(count, *trees, *(() if carried is None else (carried,)))
        if self.side_dtype is not None:
            beside: list[Any] = [None] * len(leaves)
            for i, x in zip(of_leaves, new_sides, strict=True):
                beside[i] = x
            after = SplitState(after, jax.tree_util.tree_unflatten(tree, beside))
        return leaves, _join_parts(new, leaves, parts), tree, after

    def _carried(self, state: Any) -> Any:
        """The numbers that are carried from step to step, checked."""
        carried = _array(lambda: "state.carried", state.carried)
        wanted = (len(self.rule.carried), 2)
        if carried.dtype != jnp.uint32 or carried.shape != wanted:
            raise TypeError(f"state.carried: {carried.dtype} of shape {carried.shape}, expected uint32 of {wanted}")
        return carried

    def _check_once(
        self,
        tree: Any,
        params: Sequence[Any],
        states: Sequence[Sequence[Any]],
        sides: Sequence[Any],
        grads: Sequence[Any],
    ) -> None:
        """Raise an error if an array that is donated is used elsewhere in the step."""
        fields = [f"state.{s.name}" for s in self.rule.states]
        beside: list[Any] = [None] * len(params)
        for i, x in zip(_split(self.fixed, params), sides, strict=True):
            beside[i] = x
        seen: dict[int, tuple[str, int]] = {}
        everything = (params, *states, beside, grads)
        for name, leaves in zip(("params", *fields, "state.side", "grads"), everything, strict=True):
            for i, leaf in enumerate(leaves):
                for x in jax.tree_util.tree_leaves(leaf):
                    name_of_first, first = seen.setdefault(id(x), (name, i))
                    if (name_of_first, first) == (name, i) or name_of_first == "grads":
                        continue
                    label, other = (
                        f"{n}[{k}]" if self.fixed.packed and n in fields else _label(n, tree, k)
                        for n, k in ((name, i), (name_of_first, first))
                    )
                    raise ValueError(f"{label}: the array is {other} too, which the step gives away")

    def apply(self, params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        _, new, tree, state = self._take(params, grads, state, True)
        return jax.tree_util.tree_unflatten(tree, new), state

    def update(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        """The updates of the params, for ``optax.apply_updates``, and the new state."""
        if self.side_dtype is not None:
            raise ValueError(
                f"param_format: {self.fixed.param_format!r} has no updates that a sum in bfloat16 could add to the "
                "params; use apply(params, grads, state)"
            )
        if params is None:
            if self._reads_params():
                raise ValueError(
                    f"params: the update of {self.rule.name} needs them here, update(grads, state, params)"
                )
            params = self._zeros(grads, state)
        old, new, tree, state = self._take(params, grads, state, False)
        # The update of an infinite param that does not change is 0 (inf - inf is NaN), and so is that of an integer.
        changes = [
            jnp.zeros_like(p) if n is p else jnp.where(n == p, jnp.zeros_like(n), n - p)
            for n, p in zip(new, old, strict=True)
        ]
        return jax.tree_util.tree_unflatten(tree, changes), state

    def _reads_params(self) -> bool:
        if "weight_decay" in self.traced or self.values["weight_decay"] or _carries_measured(self.rule):
            return True
        return _reads_params(self.rule.key, self.fixed.values)

    def _zeros(self, grads: Any, state: Any) -> Any:
        """Zeros in place of params on which the step does not depend, in dtypes that match the states."""
        leaves, tree = jax.tree_util.tree_flatten(grads)
        beside: list[Any] = [None] * len(leaves)
        if self.rule.states and not self.fixed.packed and isinstance(state, tuple) and len(state) > 1:
            found = jax.tree_util.tree_leaves(state[1], is_leaf=_is_stored)
            beside = found if len(found) == len(leaves) else beside
        zeros = []
        for x, s in zip(leaves, beside, strict=True):
            dtype = jnp.result_type(x)
            if s is not None and (dtype == jnp.float64) != (getattr(s, "dtype", None) == jnp.float64):
                dtype = jnp.float32 if dtype == jnp.float64 else jnp.float64
            zeros.append(jnp.zeros_like(x, dtype))
        return jax.tree_util.tree_unflatten(tree, zeros)


@cache
def _reads_params(key: str, values: tuple[float, ...]) -> bool:
    """Whether the updates depend on the params, not only on the gradients. This is tested numerically, in float64."""
    rule = rule_of(key)
    step = function_of(rule, "adaptk.ops")
    given = {h.name: bool(v) if h.range == "bool" else v for h, v in zip(rule.hyperparameters, values, strict=True)}
    given.update(lr=rule.defaults()["lr"], grad_scale=1.0)
    grads = np.random.default_rng(0).standard_normal((3, 8))
    first = rule.initial_states("book", given)

    def run(start: float) -> list[Any]:
        p = np.full(8, start)
        states = [np.full(s.shape_beside(p.shape), first[s.name]) for s in rule.states]
        seen = []
        for t, grad in enumerate(grads, 1):
            before = p.copy()
            step(p, grad, *states, step=t, **given)
            seen += [p - before, *(s.copy() for s in states)]
        return seen

    return not all(np.allclose(a, b, rtol=1e-9, atol=1e-13) for a, b in zip(run(0.5), run(2.0), strict=True))


class GradientTransformation(_Pair):
    """A rule as optax's pair of ``init`` and ``update``, with an in-place step, :meth:`apply`.

    A subclass of optax's ``GradientTransformationExtraArgs`` if optax is installed, else a named tuple with the same
    two fields. Returned by the functions of :mod:`adaptk.jax`.

    Attributes
    ----------
    init : callable
        ``init(params) -> state``. The state is a named tuple of ``count``, an int32, and one tree for each state of the
        rule, with the structure and shapes of `params`. States are float64 for float64 params, else in the format
        `state_dtype`. States in 8 bits and states with stochastic rounding are :class:`Stored`. A step computes in
        float32 and stores each state in the format in which it was passed, so you may also cast states yourself. With a
        `param_format` that splits params, the state is a :class:`SplitState`.
    update : callable
        ``update(grads, state, params) -> (updates, state)``. `params` may be left out if the rule does not depend on
        the params and there is no weight decay. The updates are the new minus the old params, in the dtypes of the
        params, so that ``optax.apply_updates`` equals :meth:`apply` up to the rounding of the updates.
    """

    __slots__ = ()

    @property
    def _steps(self) -> _Steps:
        """The object of both methods. It is not an attribute: JAX and ``_replace`` rebuild the tuple from the two."""
        steps: Any = getattr(self.init, "__self__", None)
        if not isinstance(steps, _Steps) or getattr(self.update, "__self__", None) is not steps:
            raise TypeError("init or update is another function than the rule's, and what apply would be is not known")
        return cast("_Steps", steps)

    def apply(self, params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        """Take a step in place.

        Outside of ``jax.jit`` the arrays of `params` and `state` are donated, as with ``donate_argnums``, and cannot be
        used afterwards. Within ``jax.jit``, arrays that the outer function donates are updated in place; XLA copies the
        others first.

        Under ``jax.vmap`` each member of the batch takes its own step, with its own count and learning rate if these
        are mapped. A step cannot be differentiated.

        Sharded params are updated in place on their devices, outside of ``jax.jit``, within it, and within
        ``jax.shard_map``. Within ``jax.jit`` over a mesh with automatic axes, XLA gathers params whose states are in 8
        bits, packed or rounded stochastically; use ``jax.shard_map`` for these params.

        Parameters
        ----------
        params : tree of arrays
            Any shapes; float32, float64, bfloat16, float16, float8_e4m3fn, float8_e5m2, or complex, which is updated
            as pairs of real numbers. Arrays of integers and bools are returned unchanged.
        grads : tree of arrays
            With the structure and shapes of `params`; any of the real dtypes above, or complex for complex params.
        state : named tuple
            Returned by ``init`` or the previous step.

        Returns
        -------
        params, state
            With the same structures, shapes and dtypes; bitwise identical to :mod:`adaptk.ops`.

        Raises
        ------
        TypeError, ValueError
            If an array does not match the params; raised when the step is called or traced. The message names the leaf.
        ValueError, jax.errors.JaxRuntimeError
            On the CPU, if a learning rate or another number that is only known at run time is out of range. The arrays
            donated to this step are lost.

        Examples
        --------
        >>> import jax.numpy as jnp, adaptk.jax
        >>> opt = adaptk.jax.sgd(0.5)
        >>> params, state = opt.apply(jnp.ones(2), jnp.ones(2), opt.init(jnp.ones(2)))
        >>> params.tolist(), int(state.count)
        ([0.5, 0.5], 1)
        """
        return self._steps.apply(params, grads, state)

    @property
    def rule(self) -> str:
        """The name of the rule."""
        return self._steps.rule.name

    def __repr__(self) -> str:
        try:
            rule, options = self.rule, self._steps.made_of[1]
        except TypeError:
            return f"GradientTransformation(init={self.init!r}, update={self.update!r})"
        return f"adaptk.jax.{rule}({', '.join(f'{n}={v!r}' for n, v in options.items())})"

    def __reduce__(self) -> Any:
        rule, options = self._steps.made_of
        return _transformation, (self._steps.rule.program or rule, options)


def _transformation(rule: str | bytes, options: Mapping[str, Any]) -> GradientTransformation:
    """The transformation of a rule, given by key or program; `options` are the arguments of its function."""
    if isinstance(rule, bytes):
        rule = rule_of_program(rule).key
    rest = dict(options)
    own = {name: rest.pop(name) for name in _OWN_OPTIONS if name in rest}
    steps = _Steps(rule_of(rule), rest, **own)
    steps.made_of = (rule, dict(options))
    return GradientTransformation(steps.init, steps.update)


# optax's names of hyperparameters.
_NAMES_OF_OPTAX = {
    "b1": "beta1",
    "b2": "beta2",
    "b3": "beta3",
    "decay": "rho",
    "eps_root": "eps_in",
    "min_step_size": "step_min",
    "max_step_size": "step_max",
}


def _variant(rule: Rule, options: dict[str, Any]) -> Rule:
    """The rule of the same class that options of optax's function choose, such as momentum=0.9; they are removed."""
    if rule.variant or rule.program is not None:
        return rule
    family = [r for r in RULES.values() if r.class_names == rule.class_names]
    words = {word for r in family for word in r.variant} - {h.name for h in rule.hyperparameters}
    chosen = {word: options[word] for word in words if word in options}
    for word, value in chosen.items():
        if word != "momentum" and not isinstance(value, bool):
            raise TypeError(f"{word}: expected a bool, got {type(value).__name__}")
    on = {word for word, value in chosen.items() if value is not None and value is not False}
    found = next((r for r in family if set(r.variant) == on), None)
    if on == {"momentum", "nesterov"}:
        # Nesterov's form of the same momentum has the same states.
        plain = next(r for r in family if r.variant == ("momentum",))
        found = next((r for r in family if r.variant == ("nesterov",) and r.states == plain.states), None)
    if not chosen:
        return rule
    if on == {"nesterov"}:
        raise TypeError("nesterov: it needs a momentum, such as momentum=0.9")
    if found is None:
        raise TypeError(f"{rule.name}: there is no form of it with {' and '.join(sorted(on))}")
    for word in chosen:
        if word != "momentum" or word not in on:
            del options[word]
    return found


def make_function(rule: Rule) -> Callable[..., GradientTransformation]:
    """The function of :mod:`adaptk.jax` for a rule."""
    signature = jax_signature(rule)

    def function(*args: Any, **kwargs: Any) -> GradientTransformation:
        chosen = _variant(rule, kwargs)
        takes = signature if chosen is rule else jax_signature(chosen)
        for theirs, ours in _NAMES_OF_OPTAX.items():
            if theirs in kwargs and theirs not in takes.parameters and ours in takes.parameters:
                if ours in kwargs:
                    raise TypeError(f"{theirs}: it is {ours} here, which is given too")
                kwargs[ours] = kwargs.pop(theirs)
        try:
            given = takes.bind(*args, **kwargs).arguments
        except TypeError as error:
            unknown = next((name for name in kwargs if name not in takes.parameters), None)
            names = ", ".join(takes.parameters)
            raise TypeError(f"{rule.name}() {error}{hint(unknown, takes.parameters)}; it takes {names}") from None
        return _transformation(chosen.key, given)

    function.__name__ = function.__qualname__ = rule.name
    function.__module__ = "adaptk.jax"
    function.__doc__ = jax_doc(rule)
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function
