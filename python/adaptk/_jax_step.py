"""The steps behind :mod:`adaptk.jax`: checks, XLA's call, and the objects that optax takes.

One call of XLA's takes all arrays of a step. Its operands are the params, states and gradients of all tensors, the
number of the step, and the hyperparameters that are only known when it runs; its results are the params and states, in
the memory of the operands where XLA can give it away. Scales of states that have some lie behind the other states, and
behind them what lies beside the params.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial, partialmethod
from typing import Any, NamedTuple, NoReturn, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from adaptk import _core, formats
from adaptk._docs import jax_doc, jax_signature, state_name
from adaptk._names import hint
from adaptk._registry import RULES, Rule, State, rule_of, rule_of_program
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

# Arrays that one call keeps: the time that XLA takes to compile a call grows with the cube of their number.
_MOST_KEPT = 192
# Elements that a tensor's part of a packed state is rounded up to.
_GRAIN = 16

_DTYPES = ("float32", "float64", "bfloat16", "float16")
_EXPECTED = "expected float32, float64, bfloat16 or float16"
_MOST_STEPS = np.iinfo(np.int32).max


@jax.tree_util.register_pytree_with_keys_class
class Stored(formats.Stored):
    """A state of one param in a format that its dtype alone does not tell, as :class:`adaptk.formats.Stored`.

    A node of JAX's trees: `data` and `scales` are its children, and `format` is part of the tree's structure. To
    decode one, give :func:`adaptk.formats.dequantize` its arrays as those of NumPy.

    Attributes
    ----------
    data : array
        What the elements are stored as, in the shape of the param: int8, uint8 or bfloat16.
    scales : array or None
        float32, one for each block of 128 or 256 elements from the first one on; None if the format has none.
    format : {"bfloat16_sr", "int8", "uint8", "uint8_nearest", "dynamic_signed", "dynamic_unsigned", "fp8_e4m3"}
        Its name; :mod:`adaptk.formats` says what each one is.

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


class SplitState(NamedTuple):
    """The state of a transformation with ``param_format="remainder16"``, ``"remainder8"`` or ``"kahan"``.

    Attributes
    ----------
    state : named tuple
        The rule's own.
    side : tree
        Like the params. Beside a bfloat16 param its remainder, int16 or int8, or its compensation, bfloat16, in the
        param's shape, as :func:`adaptk.formats.split_param` makes it; None beside the others.

    Examples
    --------
    >>> import jax.numpy as jnp, adaptk.jax
    >>> state = adaptk.jax.adam(param_format="remainder16").init(jnp.ones(3, jnp.bfloat16))
    >>> state.side.dtype, int(state.state.count)
    (dtype('int16'), 0)
    """

    state: Any
    side: Any


def _is_stored(x: Any) -> bool:
    return isinstance(x, formats.Stored)


class _Fixed(NamedTuple):
    """What is known when a step is compiled."""

    rule: str
    values: tuple[float, ...]
    traced: tuple[int, ...]  # 1 for each hyperparameter that is an operand
    packed: bool
    seed: int
    param_format: str | None


class _Layout(NamedTuple):
    """What the arrays of one call are."""

    numbers: tuple[int, ...]  # of the tensors among all params, for stochastic rounding
    formats: tuple[str, ...]  # of the arrays of states; empty if a dtype tells


def _alike(arrays: Sequence[Any]) -> list[Any]:
    """Within shard_map, arrays that are the same on all devices become ones that may differ, as the others do."""
    axes: list[frozenset[str]] = [getattr(jax.typeof(x), "vma", frozenset()) for x in arrays]
    every: frozenset[str] = frozenset().union(*axes)
    if not every:
        return list(arrays)
    return [
        jax.lax.pcast(x, tuple(sorted(every - of)), to="varying") if every - of else x
        for x, of in zip(arrays, axes, strict=True)
    ]


def _call(fixed: _Fixed, layout: _Layout, kept: list[Any], others: list[Any]) -> list[Any]:
    """Params, states and scales after a step; `others` are gradients, the step's number and hyperparameters."""
    operands = _alike([*kept, *others])
    call = jax.ffi.ffi_call(
        _TARGET,
        [jax.typeof(x) for x in operands[: len(kept)]],
        vmap_method="broadcast_all",
        input_output_aliases={i: i for i in range(len(kept))},
    )
    return list(
        call(
            *operands,
            rule=fixed.rule,
            packed=fixed.packed,
            values=np.array(fixed.values, np.float64),
            traced=np.array(fixed.traced, np.int32),
            numbers=np.array(layout.numbers, np.int32),
            formats=",".join(layout.formats) if any(layout.formats) else "",
            param_format=fixed.param_format or "",
            seed=np.int64(fixed.seed),
        )
    )


def _no_derivative(fixed: _Fixed, layout: _Layout, primals: Any, tangents: Any) -> Any:
    raise TypeError(
        f"adaptk.jax.{fixed.rule}: a step has no derivative here; keep it out of what is differentiated, "
        "or pass params, gradients and state through jax.lax.stop_gradient"
    )


_opaque_call = jax.custom_jvp(_call, nondiff_argnums=(0, 1))
_opaque_call.defjvp(_no_derivative)


def _groups(
    params: Sequence[Any], states: Sequence[Sequence[Any]], packed: bool, sides: Sequence[int] = ()
) -> list[list[int]]:
    """Which params go into one call. Packed states are of one dtype in each."""
    wide = [packed and p.dtype == jnp.float64 for p in params]
    groups: list[list[int]] = []
    for kind in (False, True):
        arrays = _MOST_KEPT
        for i in (i for i, w in enumerate(wide) if w == kind):
            own = 1 if packed else 1 + len(jax.tree_util.tree_leaves([s[i] for s in states])) + (i in sides)
            if arrays + own > _MOST_KEPT:
                groups.append([])
                arrays = 0
            groups[-1].append(i)
            arrays += own
    return groups


def _packed_size(params: Sequence[Any]) -> int:
    return sum(-(-p.size // _GRAIN) * _GRAIN for p in params)


def _split(fixed: _Fixed, params: Sequence[Any]) -> list[int]:
    """The params that have something beside them."""
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
) -> tuple[list[Any], list[list[Any]], list[Any], Any]:
    """A step; `sides` are what lies beside the params, of those that have something there."""
    count = jnp.where(count < _MOST_STEPS, count + 1, count)
    params, states = list(params), [list(s) for s in states]
    side = dict(zip(_split(fixed, params), sides, strict=True))
    for k, group in enumerate(_groups(params, states, fixed.packed, list(side))):
        places = [(s, i) for s in states for i in ([k] if fixed.packed else group)]
        old = [s[i] for s, i in places]
        layout = _Layout(tuple(group), tuple(x.format if _is_stored(x) else "" for x in old))
        kept = [params[i] for i in group] + [x.data if _is_stored(x) else x for x in old]
        kept += [x.scales for x in old if _is_stored(x) and x.scales is not None]
        kept += [side[i] for i in group if i in side]
        new = iter(_opaque_call(fixed, layout, kept, [*(grads[i] for i in group), count, *traced]))
        for i in group:
            params[i] = next(new)
        for s, i in places:
            s[i] = next(new)
        for (s, i), x in zip(places, old, strict=True):
            if _is_stored(x):
                s[i] = Stored(s[i], None if x.scales is None else next(new), x.format)
        side.update((i, next(new)) for i in group if i in side)
    return params, states, list(side.values()), count


_step_in_place = jax.jit(_step, static_argnums=0, donate_argnums=(1, 2, 3, 4))
_step_beside = jax.jit(_step, static_argnums=0)


# Params that are spread over devices: each device steps its part, where XLA by itself would gather them all.


def _spread(x: Any) -> Any:
    """The named sharding of an array that is known to be cut into parts, or None."""
    sharding = jax.typeof(x).sharding if isinstance(x, jax.core.Tracer) else x.sharding
    if not isinstance(sharding, NamedSharding) or all(axis is None for axis in sharding.spec):
        return None
    return sharding


def _sharded(fixed: _Fixed, mesh: Any, specs: tuple[Any, ...], states: int, split: tuple[int, ...], traced: int) -> Any:
    every, one = list(specs), PartitionSpec()
    kept = (every, [every] * states, [specs[i] for i in split], one)
    return jax.shard_map(
        partial(_step, fixed), mesh=mesh, in_specs=(*kept, every, [one] * traced), out_specs=kept, check_vma=False
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


# Numbers that a step reads when it runs.


def _halves(x: float | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float64s as pairs of uint32: JAX has arrays of the former only where that is switched on."""
    return np.asarray(x, np.float64)[..., None].view(np.uint32)


def _scheduled(schedule: Schedule, count: Any) -> Any:
    """The rate of a schedule of adaptk's own, which is a float64 and a function in Python."""
    if not isinstance(count, jax.core.Tracer):
        return _halves(schedule(int(count) + 1))

    def rates(counts: Any) -> np.ndarray[Any, Any]:
        steps = np.asarray(counts)
        return _halves(np.array([schedule(int(c) + 1) for c in steps.ravel()], np.float64).reshape(steps.shape))

    result = jax.ShapeDtypeStruct((2,), np.uint32)
    return jax.pure_callback(rates, result, count, vmap_method="expand_dims")


class _Carried(Schedule):
    """A number that the steps before have left behind."""

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
            carried = _core.carry_on(self._rule.key, values, step)
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


# Checks. Labels of leaves are made where one is wrong.


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


def _params(params: Any) -> tuple[list[Any], Any]:
    leaves, tree = jax.tree_util.tree_flatten(params)
    leaves = [_array(partial(_label, "params", tree, i), x) for i, x in enumerate(leaves)]
    for i, x in enumerate(leaves):
        if str(x.dtype) not in _DTYPES:
            raise TypeError(f"{_label('params', tree, i)}: dtype {x.dtype}, {_EXPECTED}")
    return leaves, tree


def _check_shape(name: str, tree: Any, i: int, x: Any, param: Any) -> None:
    if x.shape != param.shape:
        raise ValueError(f"{_label(name, tree, i)}: shape {x.shape}, expected {param.shape} like its param")


def _beside(name: str, given: Any, tree: Any, params: Sequence[Any]) -> list[Any]:
    leaves, own = jax.tree_util.tree_flatten(given)
    if own != tree:
        raise ValueError(f"{name}: its tree is {own}, expected that of params, {tree}")
    arrays = [_array(partial(_label, name, tree, i), x) for i, x in enumerate(leaves)]
    for i, (x, p) in enumerate(zip(arrays, params, strict=True)):
        _check_shape(name, tree, i, x, p)
    return arrays


def _stored(label: Callable[[], str], given: Any, shape: tuple[int, ...], compute: Any) -> Stored:
    """A state in a format that its dtype does not tell, checked; `compute`: the dtype that its rule computes in."""
    if given.format not in formats.STORED_DTYPES:
        raise ValueError(f"{label()}: format {given.format!r}, expected {', '.join(map(repr, formats.STORED_DTYPES))}")
    if compute == jnp.float64:
        raise TypeError(f"{label()}: {given.format}, expected float64 beside a float64 param")
    data = _array(lambda: f"{label()}.data", given.data)
    wanted = formats.STORED_DTYPES[given.format]
    if str(data.dtype) != wanted:
        raise TypeError(f"{label()}.data: dtype {data.dtype}, expected {wanted} for {given.format}")
    if data.shape != shape:
        raise ValueError(f"{label()}.data: shape {data.shape}, expected {shape}")
    if not formats.has_scales(given.format):
        if given.scales is not None:
            raise TypeError(f"{label()}.scales: an array, but {given.format} has no scales; expected None")
        return Stored(data, None, given.format)
    row = (formats.scale_count(given.format, data.size),)
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


def _state(name: str, given: Any, tree: Any, params: Sequence[Any]) -> list[Any]:
    """The leaves of a state: arrays, and Stored."""
    leaves, own = jax.tree_util.tree_flatten(given, is_leaf=_is_stored)
    if own != tree:
        raise ValueError(f"{name}: its tree is {own}, expected that of params, {tree}")
    checked = []
    for i, (x, p) in enumerate(zip(leaves, params, strict=True)):
        if _is_stored(x):
            checked.append(_stored(partial(_label, name, tree, i), x, p.shape, _state_dtype(p)))
            continue
        x = _array(partial(_label, name, tree, i), x)
        _check_shape(name, tree, i, x, p)
        if not _fits_beside(x.dtype, _state_dtype(p)):
            raise TypeError(
                f"{_label(name, tree, i)}: dtype {x.dtype}, expected {jnp.dtype(_state_dtype(p))} beside a "
                f"{p.dtype} param"
                + ("" if p.dtype == jnp.float64 else ", or bfloat16 or float16, or an adaptk.jax.Stored")
            )
        checked.append(x)
    return checked


def _sides(given: Any, tree: Any, params: Sequence[Any], split: Sequence[int], dtype: str) -> list[Any]:
    """What lies beside the params, of those that have something there."""
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
    for i, x in enumerate(arrays):
        if str(x.dtype) not in _DTYPES:
            raise TypeError(f"{_label('grads', tree, i)}: dtype {x.dtype}, {_EXPECTED}")
    return arrays


def _state_dtype(param: Any) -> Any:
    return jnp.float64 if param.dtype == jnp.float64 else jnp.float32


def _fits_beside(state: Any, wanted: Any) -> bool:
    """Whether states may have this dtype where init makes the wanted one: 16 bits do in the place of float32."""
    return bool(state == wanted or (wanted == jnp.float32 and state in (jnp.bfloat16, jnp.float16)))


def _placed(param: Any) -> Any:
    """Where whole arrays beside a param belong: its sharding, if it was put somewhere, without parts."""
    if isinstance(param, jax.core.Tracer) or not param.committed:
        return None
    sharding = param.sharding
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(), memory_kind=sharding.memory_kind)
    return sharding


def _refuse_parts(name: str) -> NoReturn:
    raise ValueError(
        f"{name}, and params that are cut into parts over several devices; call init and apply within "
        "jax.shard_map, where each part has blocks and random bits of its own"
    )


def _start_stored(param: Any, value: float, name: str) -> Stored:
    """A state of one value, in a format that its dtype does not tell."""
    code, scale = formats.code_of(value, name)
    data = jnp.array(jnp.full_like(param, code, dtype=formats.STORED_DTYPES[name]), copy=True)
    if scale is None:
        return Stored(data, None, name)
    scales = jnp.full(formats.scale_count(name, param.size), scale, jnp.float32, device=_placed(param))
    return Stored(data, _alike([param, scales])[1], name)


def _make_state_type(rule: Rule) -> type[Any]:
    fields: list[tuple[str, Any]] = [("count", Any), *((s.name, Any) for s in rule.states)]
    made: type[Any] = NamedTuple(state_name(rule), fields)  # type: ignore[misc]
    made.__module__ = "adaptk.jax"
    made.__doc__ = f"The state of :func:`adaptk.jax.{rule.name}`: the steps taken, and trees like that of the params."
    return made


STATES: Mapping[str, type[Any]] = {rule.name: _make_state_type(rule) for rule in RULES.values() if rule.program is None}
_states_of_made: dict[str, type[Any]] = {}  # by key


def _state_type_of(rule: Rule) -> type[Any]:
    """The type of a rule's state, always the same one; of a rule that was made at run time, no module has it."""
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


# What is neither a hyperparameter nor the initial value of a state.
_OWN_OPTIONS = ("convention", "packed", "state_dtype", "min_8bit_size", "seed", "param_format")


class _Steps:
    """A rule with its hyperparameters."""

    made_of: tuple[str, Mapping[str, Any]]  # what makes it again

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
    ) -> None:
        if not isinstance(packed, bool):
            raise TypeError(f"packed: expected a bool, got {type(packed).__name__}")
        self.rule = rule
        self.dtypes = {} if state_dtype is None else formats.check_state_dtype(state_dtype, rule.states)
        self.min_8bit_size = formats.check_min_8bit_size(4096 if min_8bit_size is None else min_8bit_size)
        if packed and any(name in formats.CHOICES for name in self.dtypes.values()):
            raise ValueError("packed: states in 8 bits have scales, which are not packed; use packed=False")
        self.values: dict[str, Any] = rule.defaults(convention)
        initial = {s.option for s in rule.states if s.option is not None}
        started: dict[str, float] = {}
        for name, value in options.items():
            if value is None and name in ("learning_rate", "eps"):
                continue
            if name == "learning_rate":
                # A schedule gets its count from 1 by itself.
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
        self._carry_on(options)
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

    def _carry_on(self, options: Mapping[str, Any]) -> None:
        """What a step hands on to the next one follows from the count, for the other numbers are known."""
        for name in self.rule.carried:
            if name in options:
                raise TypeError(f"{name}: it is carried from step to step, and begins with the rule's own value")
            for other, value in self.values.items():
                if other not in self.rule.carried and (isinstance(value, jax.Array) or callable(value)):
                    if other == "lr" and isinstance(value, Schedule):
                        continue
                    argument = "learning_rate" if other == "lr" else other
                    raise TypeError(
                        f"{argument}: expected a number, or a schedule of adaptk for the learning rate, got "
                        f"{type(value).__name__}; {self.rule.name} hands {name} on from step to step"
                    )
        if self.rule.carried:
            known = {n: v for n, v in self.values.items() if n not in self.rule.carried}
            self.values.update({name: _Carried(self.rule, known, name) for name in self.rule.carried})

    def _start(self, state: str, initial_from: str | None) -> Any:
        """A number, or an array of JAX that holds one."""
        if initial_from not in self.traced:
            return self.initial[state]
        value = self.traced[initial_from]
        if isinstance(value, Schedule):
            return value(1)
        if not callable(value):
            return value
        with jax.ensure_compile_time_eval():  # a number also under jit, if the function allows
            return value(jnp.zeros((), jnp.int32))

    def init(self, params: Any) -> Any:
        """The state before the first step: a named tuple of the count and of trees like `params`."""
        leaves, tree = self._own_params(params)
        states: list[Any] = []
        for s in self.rule.states:
            start = self._start(s.name, s.initial_from)
            if self.fixed.packed:
                states.append(
                    tuple(self._start_packed(s, size, dtype, start) for size, dtype in self._packed_arrays(leaves))
                )
            else:
                arrays = [self._start_beside(s, p, start) for p in leaves]
                states.append(jax.tree_util.tree_unflatten(tree, arrays))
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
        """What lies beside a param of bfloat16; None if nothing does."""
        side = formats.SIDES.get(self.fixed.param_format or "")
        return None if side is None else side[1]

    def _own_params(self, params: Any) -> tuple[list[Any], Any]:
        leaves, tree = _params(params)
        for i, p in enumerate(leaves):
            if p.dtype == jnp.float16:
                formats.check_param_dtype("float16", self.fixed.param_format, _label("params", tree, i))
        return leaves, tree

    def _format(self, state: State, size: int, dtype: Any) -> str:
        """The format of a new state of `size` elements, where the rule computes in this dtype."""
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
        name = self._format(state, param.size, _state_dtype(param))
        if formats.is_plain(name):
            # A copy, for jnp.full_like returns a 0-d array that it is given.
            return jnp.array(jnp.full_like(param, start, dtype=name), copy=True)
        if _spread(param) is not None:
            _refuse_parts(f"state_dtype: {name}")
        return _start_stored(param, self._known(state, start), name)

    def _start_packed(self, state: State, size: int, dtype: Any, start: Any) -> Any:
        name = self._format(state, size, dtype)
        if formats.is_plain(name):
            return jnp.full(size, start, dtype=name)
        code, _ = formats.code_of(self._known(state, start), name)
        return Stored(jnp.full(size, code, dtype=formats.STORED_DTYPES[name]), None, name)

    def _packed_arrays(self, params: Sequence[Any]) -> list[tuple[int, Any]]:
        """Sizes and dtypes of the arrays that each state is."""
        groups = [[params[i] for i in g] for g in _groups(params, (), True)]
        return [(_packed_size(g), _state_dtype(g[0])) for g in groups]

    def _packed_state(self, name: str, given: Any, params: Sequence[Any]) -> list[Any]:
        wanted = self._packed_arrays(params)
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
        gradients = _grads(grads, tree, leaves)
        fields = self.state_type._fields
        split, sides = _split(self.fixed, leaves), []
        if self.side_dtype is not None:
            if not isinstance(state, SplitState):
                raise TypeError(f"state: expected a SplitState of init, got {type(state).__name__}")
            sides = _sides(state.side, tree, leaves, split, self.side_dtype)
            state = state.state
        if not isinstance(state, tuple) or getattr(state, "_fields", None) != fields:
            raise TypeError(f"state: expected a {self.state_type.__name__} of init, got {type(state).__name__}")
        count = jnp.asarray(state[0])
        if count.shape != () or not jnp.issubdtype(count.dtype, jnp.integer):
            raise TypeError(f"state.count: {count.dtype} of shape {count.shape}, expected one integer")
        states = []
        for name, given in zip(fields[1:], state[1:], strict=True):
            if self.fixed.packed:
                states.append(self._packed_state(f"state.{name}", given, leaves))
                continue
            states.append(_state(f"state.{name}", given, tree, leaves))
        count = count.astype(jnp.int32)
        traced = [
            _operand("learning_rate" if name == "lr" else name, value, count) for name, value in self.traced.items()
        ]
        everything = (*leaves, *sides, *gradients, *jax.tree_util.tree_leaves(states), count, *traced)
        within = any(isinstance(x, jax.core.Tracer) for x in everything)
        if in_place and not within:
            self._check_once(tree, leaves, states, sides, gradients)
        shardings = [_spread(p) for p in leaves]
        mesh = next((s.mesh for s in shardings if s is not None), None)
        run: Callable[..., Any]
        if mesh is None:
            run = partial(_step if within else _step_in_place if in_place else _step_beside, self.fixed)
        elif self.fixed.packed:
            raise ValueError("packed: the params are cut into parts over several devices; use packed=False")
        elif stored := next((x for s in states for x in s if _is_stored(x)), None):
            _refuse_parts(f"state_dtype: {stored.format}")
        elif self.fixed.param_format == "sr" and any(p.dtype in (jnp.bfloat16, jnp.float16) for p in leaves):
            _refuse_parts("param_format: sr")
        else:
            specs = tuple(PartitionSpec() if s is None else s.spec for s in shardings)
            layout = (self.fixed, mesh, specs, len(states), tuple(split), len(traced))
            run = _sharded(*layout) if within else _sharded_in_jit(*layout, in_place)
        new, new_states, new_sides, count = run(leaves, states, sides, count, gradients, traced)
        trees = [tuple(s) if self.fixed.packed else jax.tree_util.tree_unflatten(tree, s) for s in new_states]
        after = self.state_type(count, *trees)
        if self.side_dtype is not None:
            beside: list[Any] = [None] * len(leaves)
            for i, x in zip(split, new_sides, strict=True):
                beside[i] = x
            after = SplitState(after, jax.tree_util.tree_unflatten(tree, beside))
        return leaves, new, tree, after

    def _check_once(
        self,
        tree: Any,
        params: Sequence[Any],
        states: Sequence[Sequence[Any]],
        sides: Sequence[Any],
        grads: Sequence[Any],
    ) -> None:
        """No array is given away that is used elsewhere in the step."""
        fields = [f"state.{name}" for name in self.state_type._fields[1:]]
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
        if params is None:
            raise ValueError("params: the update needs them, update(grads, state, params)")
        if self.side_dtype is not None:
            raise ValueError(
                f"param_format: {self.fixed.param_format!r} has no updates that a sum in bfloat16 could add to the "
                "params; use apply(params, grads, state)"
            )
        old, new, tree, state = self._take(params, grads, state, False)
        # An infinite param that stays as it is has changed by 0.
        changes = [jnp.where(n == p, jnp.zeros_like(n), n - p) for n, p in zip(new, old, strict=True)]
        return jax.tree_util.tree_unflatten(tree, changes), state


class GradientTransformation(_Pair):
    """A rule as optax's pair of ``init`` and ``update``, with an in-place step, :meth:`apply`.

    A subclass of optax's ``GradientTransformationExtraArgs`` if optax is installed, else a named tuple with the same
    two fields. Returned by the functions of :mod:`adaptk.jax`.

    Attributes
    ----------
    init : callable
        ``init(params) -> state``: a named tuple of ``count``, an int32, and one tree for each state of the rule, with
        the structure and shapes of `params`; float64 for float64 params, else in the format that `state_dtype` says.
        States in 8 bits and those that are rounded stochastically are :class:`Stored`. A step keeps the format of every
        state that it is given: it computes in float32 and rounds. So states may be cast, also by hand.
        With a `param_format` that splits params it is a :class:`SplitState`.
    update : callable
        ``update(grads, state, params) -> (updates, state)``. The updates are new minus old params, in the params'
        dtypes, so that ``optax.apply_updates`` equals :meth:`apply` up to their rounding.
    """

    __slots__ = ()

    @property
    def _steps(self) -> _Steps:
        """What both functions belong to. There is no other attribute: JAX and ``_replace`` make anew from the two."""
        steps: Any = getattr(self.init, "__self__", None)
        if not isinstance(steps, _Steps) or getattr(self.update, "__self__", None) is not steps:
            raise TypeError("init or update is another function than the rule's, and what apply would be is not known")
        return cast("_Steps", steps)

    def apply(self, params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        """Take a step in place.

        Outside of ``jax.jit`` the arrays of `params` and `state` are donated, as by ``donate_argnums``, and cannot be
        used afterwards. Within ``jax.jit`` the arguments that the outer function donates are updated in place; XLA
        copies the others first.

        Under ``jax.vmap`` each member of the batch takes its own step, with its own count and learning rate if these
        are mapped. A step cannot be differentiated.

        Sharded params are updated in place on their devices: outside of ``jax.jit``, within ``jax.shard_map``, and if
        the axes of the mesh are explicit. Within ``jax.jit`` over a mesh with automatic axes use ``jax.shard_map``;
        otherwise XLA gathers the params on every device.

        Parameters
        ----------
        params : tree of arrays
            Any shapes; float32, float64, bfloat16 or float16.
        grads : tree of arrays
            The structure and shapes of `params`; float32, float64, bfloat16 or float16.
        state : named tuple
            Returned by ``init`` or the previous step.

        Returns
        -------
        params, state
            With the same structures, shapes and dtypes; bitwise identical to :mod:`adaptk.ops`.

        Raises
        ------
        TypeError, ValueError
            If an array does not fit, when the step is called or traced; the message names the leaf.
        ValueError, jax.errors.JaxRuntimeError
            On the CPU, if a learning rate or another number that is only known at run time is out of range. Arrays
            donated to that step are lost.

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
    """The rule of this key, or of this program; `options` are the arguments of its function."""
    if isinstance(rule, bytes):
        rule = rule_of_program(rule).key
    rest = dict(options)
    own = {name: rest.pop(name) for name in _OWN_OPTIONS if name in rest}
    steps = _Steps(rule_of(rule), rest, **own)
    steps.made_of = (rule, dict(options))
    return GradientTransformation(steps.init, steps.update)


def make_function(rule: Rule) -> Callable[..., GradientTransformation]:
    """The function of :mod:`adaptk.jax` for a rule."""
    signature = jax_signature(rule)

    def function(*args: Any, **kwargs: Any) -> GradientTransformation:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            unknown = next((name for name in kwargs if name not in signature.parameters), None)
            takes = ", ".join(signature.parameters)
            raise TypeError(f"{rule.name}() {error}{hint(unknown, signature.parameters)}; it takes {takes}") from None
        return _transformation(rule.key, given)

    function.__name__ = function.__qualname__ = rule.name
    function.__module__ = "adaptk.jax"
    function.__doc__ = jax_doc(rule)
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function
