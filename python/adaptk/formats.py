"""Storage formats of states and params between steps, and conversions between them.

A rule computes in float32 (float64 for float64 params). A state in another format is decoded before the update and
encoded after it, in the same pass over memory.

========================  =====  ======================================================================================
format                    bytes  elements
========================  =====  ======================================================================================
``float32``               4      stored without conversion
``bfloat16``              2      rounded to nearest
``float16``               2      rounded to nearest
``bfloat16_sr``           2      bfloat16, rounded stochastically
``float16_sr``            2      float16, rounded stochastically
``int8``                  1.03   ``rint(127 * x / scale)``; the scale is the largest magnitude in a block of 128
``uint8``                 1.03   for nonnegative numbers: the leading bits of ``x / scale`` as a float, rounded
                                 stochastically; 8 codes an octave, down to 2**-31.75 of the scale
``uint8_nearest``         1.03   the same, rounded to nearest
``dynamic_signed``        1.02   the nearest number of the dynamic map of bitsandbytes and torchao, times the largest
                                 magnitude in a block of 256; stored as uint8
``dynamic_unsigned``      1.02   for nonnegative numbers: the same with the map without a sign
``fp8_e4m3``              1.02   float8_e4m3fn, rounded to nearest, times 1/448 of the largest magnitude in a block of
                                 256; stored as uint8
``4bit_signed``           0.53   the nearest of 16 numbers (0, 1, and seven magnitudes with either sign), times the
                                 largest magnitude in a block of 128; two in a uint8, the first in its upper half
``4bit_unsigned``         0.53   for nonnegative numbers: the same with the multiples of 1/16 from 1/16 to 1
========================  =====  ======================================================================================

Four names stand for one of two formats: the first for states that are never negative, such as second moments, and the
second for all others. ``8bit`` stands for ``uint8`` or ``int8``, ``8bit_nearest`` for ``uint8_nearest`` or ``int8``,
``8bit_dynamic`` for ``dynamic_unsigned`` or ``dynamic_signed``, and ``4bit`` for ``4bit_unsigned`` or ``4bit_signed``.

Second moments that are rounded to nearest stop moving, because a step changes them by less than half of the distance
between two codes. Use a format with stochastic rounding for them. The random bits depend only on the seed, the step
number, the tensor and the element, so a run can be repeated bit for bit, with any number of threads.

Params in bfloat16, float16, float8_e4m3fn and float8_e5m2 are rounded to nearest after each step, like conversions in
ml_dtypes and JAX, unless ``param_format`` is one of these:

================  =====  ==============================================================================================
``param_format``  bytes  params
================  =====  ==============================================================================================
``sr``            2, 1   bfloat16, float16, float8_e4m3fn or float8_e5m2, rounded stochastically
``remainder16``   4      bfloat16, and for each element an int16, the *remainder*: together a float32, bit for bit,
                         from which the steps continue
``remainder8``    3      bfloat16, and for each element an int8: together the upper 24 bits of a float32
``kahan``         4      bfloat16, and for each element a bfloat16, the *compensation*: the steps continue from the sum
================  =====  ==============================================================================================

:func:`split_param` and :func:`join_param` convert params between float32 and the last three. The 16-bit remainder is
the same as in TransformerEngine's ``FusedAdam(store_param_remainders=True)``.

Params in float8 have 3 or 2 bits of significand. With rounding to nearest, a step is lost unless it moves a param by a
sixteenth or an eighth of itself, so such params need ``sr``. float8_e4m3fn has no infinity: a result that would be
rounded to more than 448 becomes NaN. For states use ``fp8_e4m3``, which has scales, instead of these dtypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptk import _backend, _core
from adaptk._registry import State, rules

__all__ = [
    "Stored",
    "dequantize",
    "from_bitsandbytes",
    "from_torchao",
    "join_param",
    "quantize",
    "split_param",
    "to_bitsandbytes",
    "to_torchao",
]


class Stored(NamedTuple):
    """A stored state with the name of its format, for formats that the dtype alone does not identify.

    The functions of :mod:`adaptk.ops` accept it instead of an array.

    Attributes
    ----------
    data : buffer
        The stored elements: int8, uint8, bfloat16 or float16, in the shape of the param. 4-bit codes are a flat uint8
        array, two codes in a byte, in the memory order of the param.
    scales : buffer or None
        float32, one scale for each block of 128 or 256 elements; None if the format has no scales.
    format : str
        The name of the format.
    """

    data: Any
    scales: Any
    format: str


#: The properties of each format, by name.
_FACTS: dict[str, dict[str, Any]] = {f["name"]: f for f in _core.formats()}
#: The dtype of the stored elements, for formats that are not dtypes.
STORED_DTYPES = {
    "bfloat16_sr": "bfloat16",
    "float16_sr": "float16",
    "int8": "int8",
    **dict.fromkeys(("uint8", "uint8_nearest", "dynamic_signed", "dynamic_unsigned", "fp8_e4m3"), "uint8"),
    **dict.fromkeys(("4bit_signed", "4bit_unsigned"), "uint8"),
}
#: Names for 8-bit and 4-bit storage: the format for a state that is never negative, and the one for other states.
CHOICES = {
    "8bit": ("uint8", "int8"),
    "8bit_nearest": ("uint8_nearest", "int8"),
    "8bit_dynamic": ("dynamic_unsigned", "dynamic_signed"),
    "fp8_e4m3": ("fp8_e4m3", "fp8_e4m3"),
    "4bit": ("4bit_unsigned", "4bit_signed"),
}
#: Names of the scales in saved states, with the formats that use them: for a state that is never negative, and others.
SAVED_SCALES = {
    "scales": ("uint8", "int8"),
    "absmax": CHOICES["8bit_dynamic"],
    "fp8_scales": CHOICES["fp8_e4m3"],
    "4bit_scales": CHOICES["4bit"],
}
_SCALES_OF = {name: scales for scales, names in SAVED_SCALES.items() for name in names}

#: Whether a state of this name is never negative, which is the same in all rules.
_NONNEGATIVE = {s.name: s.nonnegative for rule in rules().values() for s in rule.states}

#: The values of `param_format`: how params of 16 and 8 bits are stored.
PARAM_FORMATS = ("sr", "remainder16", "remainder8", "kahan")
#: The second array of a bfloat16 param in formats that split params: its name and dtype.
SIDES = {
    "remainder16": ("remainder", "int16"),
    "remainder8": ("remainder", "int8"),
    "kahan": ("compensation", "bfloat16"),
}

#: The values of `state_dtype`.
STATE_DTYPES = ("float32", "bfloat16", "float16", "bfloat16_sr", "float16_sr", *CHOICES)


def check_seed(seed: Any) -> int:
    """Check that a seed fits into the numbers of a state dict."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed: expected an int, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: {seed} is not in [0, 2**63)")
    return int(seed)


def check_param_format(param_format: Any) -> str | None:
    if param_format is not None and not isinstance(param_format, str):
        raise TypeError(f"param_format: expected a str or None, got {type(param_format).__name__}")
    if param_format is None or param_format in PARAM_FORMATS:
        return param_format
    known = ", ".join(map(repr, PARAM_FORMATS))
    raise ValueError(f"param_format: {param_format!r} is unknown; expected {known} or None")


def check_param_dtype(dtype: str, param_format: str | None, name: str) -> None:
    if (dtype == "float16" or dtype.startswith("float8")) and param_format in SIDES:
        raise TypeError(f"{name}: dtype {dtype} cannot be stored as {param_format!r}, which is for bfloat16")


def new_side(param: Any, dtype: str, param_format: str | None) -> dict[str, Any]:
    """The second array of a new param, of zeros; empty if the param's dtype or format has none."""
    if dtype != "bfloat16" or param_format not in SIDES:
        return {}
    name, of_side = SIDES[param_format]
    return {name: _backend.full_like(param, 0, of_side)}


def check_min_8bit_size(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
        raise TypeError(f"min_8bit_size: expected an int, got {type(size).__name__}")
    if size < 0:
        raise ValueError(f"min_8bit_size: {size} is below 0")
    return int(size)


def check_state_dtype(value: Any, states: Sequence[State]) -> dict[str, str]:
    """The value of `state_dtype` for each state, from one name for all or a dict from state to name."""
    alone = {s.name for s in states if s.per != "element"}
    names = [s.name for s in states if s.name not in alone]
    given = value if isinstance(value, Mapping) else dict.fromkeys(names, value)
    for state, name in given.items():
        if state in alone:
            of = next(s.per for s in states if s.name == state)
            raise ValueError(f"state_dtype: {state!r} has one number for each {of}, in the dtype that is computed in")
        if state not in names:
            raise ValueError(f"state_dtype: no state {state!r}; there are {', '.join(names) or 'none'}")
        if not isinstance(name, str):
            raise TypeError(
                f"state_dtype: expected a dtype's name such as 'bfloat16', or a dict from state to name, got {name!r}"
            )
        if name not in STATE_DTYPES:
            raise ValueError(f"state_dtype: {name!r}, expected {', '.join(map(repr, STATE_DTYPES))}")
    return dict(given)


def format_of(name: str, state: State, size: int, min_8bit_size: int) -> str:
    """The format that a name of `state_dtype` stands for, for a param of `size` elements."""
    if name not in CHOICES:
        return name
    if size < min_8bit_size:
        return "float32"
    return CHOICES[name][0 if state.nonnegative else 1]


def is_plain(name: str) -> bool:
    """Whether the dtype of an array identifies this format."""
    return name not in STORED_DTYPES


def is_stochastic(name: str) -> bool:
    return bool(_FACTS[name]["stochastic"])


def has_scales(name: str) -> bool:
    return block_of(name) > 1


def scales_name(name: str) -> str | None:
    """The name of the scales of this format in saved states."""
    if not has_scales(name):
        return None
    return _SCALES_OF.get(name, "scales")


def format_of_saved(scales: str, state: str, codes: str | None = None) -> str:
    """The format of a saved state, from the name of its scales, and the dtype of its codes if known."""
    if codes == "int8":
        return "int8"
    return SAVED_SCALES[scales][0 if _NONNEGATIVE[state] else 1]


def block_of(name: str) -> int:
    """The number of elements that share a scale; 1 if the format has none."""
    return int(_FACTS[name]["block"])


def scale_count(name: str, size: int) -> int:
    return -(-size // block_of(name))


def is_packed(name: str) -> bool:
    """Whether several elements are packed into each stored number, in a flat array."""
    return int(_FACTS[name]["packed"]) > 1


def stored_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the stored state of a param of this shape."""
    return (-(-math.prod(shape) // int(_FACTS[name]["packed"])),) if is_packed(name) else tuple(shape)


def new_data(like: Any, value: float, name: str) -> Any:
    """The stored elements for a state of the param `like`, all of one value."""
    if not is_packed(name):
        return _backend.full_like(like, value, STORED_DTYPES[name])
    (count,) = stored_shape(name, _core.layout(like, "params")[0])
    return _backend.row(like, count, value, STORED_DTYPES[name])


def code_of(value: float, name: str) -> tuple[float, float | None]:
    """The code of each element of a constant state, and the scale of each block if there are scales."""
    # Equal elements get equal codes, so one block is enough.
    block = quantize(np.full(block_of(name), value, np.float32), name, seed=0)
    code = np.asarray(block.data).reshape(-1)[0].item()
    return code, None if block.scales is None else float(block.scales[0])


def full_like(param: Any, value: float, name: str) -> Any:
    """A constant state of a param, in any format."""
    if is_plain(name):
        return _backend.full_like(param, value, name)
    code, scale = code_of(value, name)
    data = new_data(param, code, name)
    if scale is None:
        return Stored(data, None, name)
    size = int(np.prod(_core.layout(param, "params")[0]))
    return Stored(data, _backend.row(param, scale_count(name, size), scale), name)


def quantize(x: Any, format: str, *, seed: int = 0, step: int = 1) -> Stored:
    """Encode float32 numbers.

    Parameters
    ----------
    x : buffer
        Any shape in C order, float32, on the CPU.
    format : str
        ``"bfloat16_sr"``, ``"float16_sr"``, ``"int8"``, ``"uint8"``, ``"uint8_nearest"``, ``"dynamic_signed"``,
        ``"dynamic_unsigned"``, ``"fp8_e4m3"``, ``"4bit_signed"`` or ``"4bit_unsigned"``. ``uint8``, ``uint8_nearest``,
        ``dynamic_unsigned`` and ``4bit_unsigned`` are for nonnegative numbers; negative numbers are stored as the
        smallest code.
    seed, step : int
        For formats with stochastic rounding: the random bits depend on these two numbers and the element.

    Returns
    -------
    Stored
        With arrays of the same library as `x`.

    Raises
    ------
    TypeError, ValueError
        If `x` is not as described, the format is unknown or has no codes, or `seed` or `step` is out of range.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> stored = adaptk.formats.quantize(np.array([0.0, 0.5, -2.0], np.float32), "int8")
    >>> stored.data.tolist(), stored.scales.tolist()
    ([0, 32, -127], [2.0])
    """
    if format not in STORED_DTYPES:
        raise ValueError(f"format: {format!r}, expected {', '.join(map(repr, STORED_DTYPES))}")
    shape, _, _, _ = _core.layout(x, "x")
    data = new_data(x, 0, format)
    scales = _backend.row(x, scale_count(format, math.prod(shape)), 0.0) if has_scales(format) else None
    stored = Stored(data, scales, format)
    _core.encode(x, stored, seed, step, 0, 0)
    return stored


def dequantize(stored: Any, shape: Sequence[int] | None = None) -> Any:
    """Decode to float32 numbers.

    Parameters
    ----------
    stored : Stored, or a pair (codes, scales) of ``int8`` or ``uint8``
        In C order, on the CPU.
    shape : sequence of int, optional
        The shape of the result. By default that of the codes; for 4-bit codes one axis of twice the number of bytes.

    Returns
    -------
    array of float32
        From the same library as the codes.

    Raises
    ------
    TypeError, ValueError
        If the arrays are not as described, the format is unknown, or the number of codes does not match the shape.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> stored = adaptk.formats.quantize(np.array([0.0, 0.5, -2.0], np.float32), "int8")
    >>> adaptk.formats.dequantize(stored)
    array([ 0.      ,  0.503937, -2.      ], dtype=float32)
    """
    data = stored[0]
    each = int(_FACTS[stored[2]]["packed"]) if len(stored) == 3 and stored[2] in _FACTS else 1
    size = each * math.prod(data.shape)
    if shape is not None:
        size, most = math.prod(shape), size
        if not most - each < size <= most:
            raise ValueError(f"shape: {tuple(shape)} has {size} elements, and the codes are of {most}")
    out = _backend.zeros((size,) if each > 1 else data.shape, data)
    _core.decode(tuple(stored), out)
    return out if shape is None else out.reshape(tuple(shape))


# Params.


def split_param(x: Any, param_format: str) -> tuple[Any, Any]:
    """Split float32 params into bfloat16 params and the bits that these lose.

    Parameters
    ----------
    x : buffer
        Any shape in C order, float32, on the CPU.
    param_format : {"remainder16", "remainder8", "kahan"}
        The format, named as in the optimizers.

    Returns
    -------
    param : array of bfloat16
        `x` rounded to nearest; ties are rounded away from zero, with ``"kahan"`` to even.
    side : array
        The remainder in int16 (``"remainder16"``) or int8 (``"remainder8"``), or the compensation in bfloat16, in the
        shape of `x`. Both arrays are from the same library as `x`.

    Raises
    ------
    TypeError, ValueError
        If `x` is not as described, or the format is unknown.

    See Also
    --------
    join_param : the inverse.

    Notes
    -----
    With ``"remainder16"``, ``(param << 16) + remainder`` are the bits of `x`, except that a NaN keeps only its upper
    half. ``"remainder8"`` keeps the upper 24 bits, rounded to nearest, ties to even: 16 of the 24 significant bits.
    With ``"kahan"``, ``param + compensation`` has 16 or more significant bits.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> param, remainder = adaptk.formats.split_param(np.array([1.0, 0.1], np.float32), "remainder16")
    >>> param.astype(np.float32).tolist(), remainder.tolist()
    ([1.0, 0.10009765625], [0, -13107])
    """
    if param_format not in SIDES:
        raise ValueError(f"param_format: {param_format!r}, expected {', '.join(map(repr, SIDES))}")
    _core.layout(x, "x")
    pair = _backend.full_like(x, 0, "bfloat16"), _backend.full_like(x, 0, SIDES[param_format][1])
    _core.encode_param(x, pair, param_format)
    return pair


def join_param(param: Any, side: Any, param_format: str) -> Any:
    """Join bfloat16 params and their remainders or compensations to float32 params.

    Parameters
    ----------
    param, side : buffer
        As returned by :func:`split_param` and stored by optimizers.
    param_format : {"remainder16", "remainder8", "kahan"}
        The format.

    Returns
    -------
    array of float32
        From the same library as `param`, with the same shape.

    Raises
    ------
    TypeError, ValueError
        If the arrays are not as described, or the format is unknown.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> x = np.array([1.0, 0.1], np.float32)
    >>> adaptk.formats.join_param(*adaptk.formats.split_param(x, "remainder16"), "remainder16")
    array([1. , 0.1], dtype=float32)
    """
    if param_format not in SIDES:
        raise ValueError(f"param_format: {param_format!r}, expected {', '.join(map(repr, SIDES))}")
    out = _backend.zeros(param.shape, param)
    _core.decode_param((param, side), out, param_format)
    return out


# The states of other libraries.


def _map_of(name: str) -> np.ndarray[Any, Any]:
    """The values of all codes of a format with a map, for the scale 1."""
    codes = np.arange(8) * 34 + 1 if is_packed(name) else np.arange(256)  # 0x01, 0x23, ...
    return np.asarray(dequantize(Stored(codes.astype(np.uint8), np.ones(1, np.float32), name)))


def _is_map(given: np.ndarray[Any, Any], name: str) -> bool:
    """Whether this is a format's map, up to rounding: PyTorch's results for it depend on the processor."""
    own = _map_of(name)
    return bool((np.abs(given - own) <= 4 * np.spacing(np.abs(own))).all())


def _read_map(qmap: Any, where: str) -> str:
    """The format with this map."""
    remedy = "convert the state to float32 where it comes from"
    given = _backend.to_numpy(qmap).reshape(-1)
    if given.size != 256:
        raise ValueError(f"{where}: {given.size} numbers, expected the 256 of 8-bit states; {remedy}")
    name = "dynamic_signed" if given[0] < 0 else "dynamic_unsigned"
    if not _is_map(given, name):
        raise ValueError(f"{where}: not the dynamic map; {remedy}")
    return name


def _in_own_blocks(scales: Any, size: int, where: str) -> Any:
    """Scales of blocks of 256 elements, from those of the same or longer blocks."""
    if len(scales.shape) != 1:
        raise ValueError(f"{where}: shape {tuple(scales.shape)}, expected one number for each block of elements")
    count = scales.shape[0]
    for times in (1, 2, 4, 8, 16):
        if -(-size // (256 * times)) == count:
            if times == 1:
                return scales
            repeated = scales.repeat_interleave(times) if _backend.is_torch(scales) else np.repeat(scales, times)
            return repeated[: -(-size // 256)]
    raise ValueError(
        f"{where}: {count} beside {size} elements, expected one for each 256 elements, or for 512, 1024, 2048 or 4096; "
        "convert the state to float32 where it comes from"
    )


def _float32(stored: Stored, shape: Sequence[int] | None = None) -> Any:
    """Decode a state, on any device and in any layout. `shape` is for packed states, which are in C order."""
    of_packed = shape if is_packed(stored.format) else None
    if not _backend.is_torch(stored.data):
        return dequantize(stored, of_packed)
    data = stored.data
    flat = data.detach().as_strided((data.numel(),), (1,)).cpu()
    dense = dequantize(Stored(flat, stored.scales.detach().cpu().contiguous(), stored.format), of_packed)
    return dense.to(data.device) if of_packed else dense.to(data.device).as_strided(data.shape, data.stride())


def _recoded(state: Any, name: str) -> Stored:
    """Encode float32 numbers, on any device and in any layout."""
    if not _backend.is_torch(state):
        return quantize(state, name)
    made = quantize(state.detach().as_strided((state.numel(),), (1,)).cpu(), name)
    data = made.data.to(state.device).as_strided(state.shape, state.stride())
    return Stored(data, made.scales.to(state.device), name)


def _named(name: str, stored: Stored, shape: Sequence[int] | None = None) -> dict[str, Any]:
    """A state of another library under adaptk.torch's names; in float32 if its map is not the one for this state."""
    scales = scales_name(stored.format)
    if name not in _NONNEGATIVE:
        raise ValueError(f"names: no rule has a state {name!r}; there are {', '.join(map(repr, _NONNEGATIVE))}")
    if scales is None or format_of_saved(scales, name) != stored.format:
        return {name: _float32(stored, shape)}
    return {name: stored.data, f"{name}_{scales}": stored.scales}


def _saved(state: Mapping[str, Any], name: str, shape: Sequence[int] | None = None) -> Any:
    """The state of this name of adaptk.torch: Stored, or an array."""
    if name not in state:
        raise ValueError(f"state: no {name!r} beside {', '.join(map(repr, state))}")
    for scales in SAVED_SCALES:
        if f"{name}_{scales}" in state:
            found = Stored(state[name], state[f"{name}_{scales}"], format_of_saved(scales, name))
            if is_packed(found.format):
                codes = math.prod(found.data.shape)
                if shape is None:
                    raise ValueError(f"shape: None, expected that of the param beside the 4-bit codes of {name!r}")
                if stored_shape(found.format, shape) != (codes,):
                    raise ValueError(f"shape: {tuple(shape)}, and {name!r} has 4-bit codes of {2 * codes} elements")
            return found
    return state[name]


def _from_torchaos_4bit(name: str, parts: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The codes unchanged if the map and the block size are those of 4bit; else float32."""
    codes, scales, qmap = parts["codes"].reshape(-1), parts["scale"].reshape(-1), parts["qmap"]
    size, count = 2 * math.prod(codes.shape), math.prod(scales.shape)
    if count == 0 or size % count > 0:
        raise ValueError(f"{where}, scale: {count} beside {size} elements, expected one for each block of some size")
    shape = tuple(parts.get("shape", parts.get("_shape", (size,))))
    if math.prod(shape) != size:
        raise ValueError(f"{where}: {size} elements, expected those of the shape {shape}")
    for format in CHOICES["4bit"]:
        if size == count * block_of(format) and _is_map(_backend.to_numpy(qmap).reshape(-1), format):
            return _named(name, Stored(codes, scales, format), shape)
    halves = codes.reshape(-1, 1) >> _backend.like([4, 0], codes) & 15
    indices = halves.int() if _backend.is_torch(halves) else halves
    return {name: (qmap[indices].reshape(count, -1) * scales.reshape(-1, 1)).reshape(shape)}


def _map_like(name: str, like: Any) -> Any:
    if not _backend.is_torch(like):
        return _map_of(name)
    import torch

    return torch.from_numpy(_map_of(name)).to(like.device)


def _check_mapping(state: Any) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(f"state: {type(state).__name__}, expected the dict of one param's states")


def from_bitsandbytes(state: Mapping[str, Any], names: Sequence[str] = ("exp_avg", "exp_avg_sq")) -> dict[str, Any]:
    """Convert the state of one param from an optimizer of bitsandbytes.

    Codes and scales are not changed. They represent the same numbers up to one or two last places, because the entries
    of the map, which PyTorch computes, differ that much between processors.

    Parameters
    ----------
    state : mapping
        ``optimizer.state[param]``, or an entry of ``optimizer.state_dict()["state"]``: ``"state1"``, ``"absmax1"``,
        ``"qmap1"`` and so on. Tensors or NumPy arrays.
    names : sequence of str
        The names of ``state1`` and ``state2``: ``("exp_avg", "exp_avg_sq")`` for Adam and AdamW, ``("exp_avg",)`` for
        Lion, ``("momentum_buffer",)`` for SGD, ``("square_avg",)`` for RMSprop, ``("sum",)`` for Adagrad.

    Returns
    -------
    dict
        The state of the param for :mod:`adaptk.torch` with ``state_dtype="8bit_dynamic"``: ``"step"``, and codes and
        scales of each state (``"exp_avg"`` and ``"exp_avg_absmax"``). It shares memory with `state`. States that are
        never negative but are stored with the signed map, as in RMSprop, are decoded to float32.

    Raises
    ------
    TypeError, ValueError
        If a state is missing, its map is not the dynamic map, or the block size is not 256, 512, 1024, 2048 or 4096.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> m = adaptk.formats.quantize(np.ones(300, np.float32), "dynamic_signed")
    >>> qmap = adaptk.formats.dequantize((np.arange(256).astype(np.uint8), np.ones(1, np.float32), "dynamic_signed"))
    >>> theirs = {"step": 7, "state1": m.data, "absmax1": m.scales, "qmap1": qmap}
    >>> sorted(adaptk.formats.from_bitsandbytes(theirs, ["exp_avg"]))
    ['exp_avg', 'exp_avg_absmax', 'step']
    """
    _check_mapping(state)
    # In state_dict(), entries with 8-bit storage are in a nested dict.
    flat: dict[str, Any] = {}
    for key, value in state.items():
        flat.update(value if isinstance(value, Mapping) else {key: value})
    out = {"step": flat["step"]} if "step" in flat else {}
    for k, name in enumerate(names, 1):
        if f"state{k}" not in flat:
            raise ValueError(f"state: no 'state{k}' for {name!r} beside {', '.join(map(repr, flat))}")
        codes = flat[f"state{k}"]
        if f"absmax{k}" not in flat:  # the state of a small param, in float32
            out[name] = codes
            continue
        if f"qmap{k}" not in flat:
            raise ValueError(f"state: no 'qmap{k}' beside 'absmax{k}'")
        scales = _in_own_blocks(flat[f"absmax{k}"], int(np.prod(codes.shape)), f"state['absmax{k}']")
        out.update(_named(name, Stored(codes, scales, _read_map(flat[f"qmap{k}"], f"state['qmap{k}']"))))
    return out


def to_bitsandbytes(
    state: Mapping[str, Any], names: Sequence[str] = ("exp_avg", "exp_avg_sq"), shape: Sequence[int] | None = None
) -> dict[str, Any]:
    """Convert the state of one param from :mod:`adaptk.torch` to that of an optimizer of bitsandbytes.

    Parameters
    ----------
    state : mapping
        ``optimizer.state[param]``, or an entry of ``optimizer.state_dict()["state"]``, with any ``state_dtype``.
    names : sequence of str
        As in :func:`from_bitsandbytes`.
    shape : sequence of int, optional
        The shape of the param, which must be in C order. Required for 4-bit states, whose codes are a flat array.

    Returns
    -------
    dict
        ``"step"``, and for each state ``"state1"``, ``"absmax1"`` and ``"qmap1"``. States with scales in another format
        than ``8bit_dynamic`` are encoded again. States without scales become ``"state1"`` in float32, without the other
        two, as bitsandbytes stores the states of params with fewer than 4096 elements. The dict shares memory with
        `state`.

    Raises
    ------
    TypeError, ValueError
        If a state is missing, or `shape` is missing but required, or does not match the number of codes.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> ours = {"step": 3, "exp_avg": np.zeros(300, np.uint8), "exp_avg_absmax": np.zeros(2, np.float32)}
    >>> sorted(adaptk.formats.to_bitsandbytes(ours, ["exp_avg"]))
    ['absmax1', 'qmap1', 'state1', 'step']
    """
    _check_mapping(state)
    out: dict[str, Any] = {"step": int(state["step"])} if "step" in state else {}
    for k, name in enumerate(names, 1):
        found = _saved(state, name, shape)
        if not isinstance(found, Stored):
            out[f"state{k}"] = _backend.float32(found)
            continue
        # In bitsandbytes the first state always has the signed map, the second the unsigned one.
        wanted = "dynamic_signed" if k == 1 else "dynamic_unsigned"
        if found.format != wanted:
            found = _recoded(_float32(found, shape), wanted)
        out |= {f"state{k}": found.data, f"absmax{k}": found.scales, f"qmap{k}": _map_like(wanted, found.data)}
    return out


def from_torchao(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the state of one param from an optimizer of torchao.

    Codes and scales are not changed. They represent the same numbers up to one or two last places, because the entries
    of the maps, which PyTorch computes, differ that much between processors.

    Parameters
    ----------
    state : mapping
        ``optimizer.state[param]``, or an entry of ``optimizer.state_dict()["state"]``, of ``AdamW8bit``, ``AdamWFp8``,
        ``AdamW4bit`` and similar classes. Values with ``codes``, ``scale`` and, in 8 and 4 bits, ``qmap``, as
        attributes or in a mapping, are converted; other values are kept.

    Returns
    -------
    dict
        The state of the param for :mod:`adaptk.torch` with ``state_dtype="8bit_dynamic"``, ``"fp8_e4m3"`` or
        ``"4bit"``. It shares memory with `state`. 4-bit states with another map or a block size other than 128 are
        decoded to float32.

    Raises
    ------
    TypeError, ValueError
        If an 8-bit map is not the dynamic map, or the block size is not 256, 512, 1024, 2048 or 4096.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> theirs = {"step": 7, "exp_avg": {"codes": np.zeros(512, np.uint8), "scale": np.zeros(2, np.float32)}}
    >>> sorted(adaptk.formats.from_torchao(theirs))
    ['exp_avg', 'exp_avg_fp8_scales', 'step']
    """
    _check_mapping(state)
    out: dict[str, Any] = {}
    for name, value in state.items():
        parts = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
        if "codes" not in parts or "scale" not in parts:
            out[name] = value
            continue
        codes, qmap = parts["codes"], parts.get("qmap")
        where = f"state[{name!r}]"
        if qmap is not None and int(np.prod(qmap.shape)) == 16:
            out.update(_from_torchaos_4bit(name, parts, where))
            continue
        format = "fp8_e4m3" if qmap is None else _read_map(qmap, f"{where}, qmap")
        if "float8_e4m3fn" in str(codes.dtype):
            codes = codes.view(_backend.uint8(codes))
        scales = _in_own_blocks(parts["scale"], int(np.prod(codes.shape)), f"{where}, scale")
        out.update(_named(name, Stored(codes, scales, format)))
    return out


def to_torchao(state: Mapping[str, Any], shape: Sequence[int] | None = None) -> dict[str, Any]:
    """Convert the state of one param from :mod:`adaptk.torch` to that of an optimizer of torchao.

    Parameters
    ----------
    state : mapping
        ``optimizer.state[param]``, or an entry of ``optimizer.state_dict()["state"]``, with any ``state_dtype``.
    shape : sequence of int, optional
        The shape of the param, which must be in C order. Required for 4-bit states, whose codes are a flat array.

    Returns
    -------
    dict
        Each state in 8 or 4 bits is a dict of arguments for a class of torchao: ``OptimState8bit(**value)`` with
        ``codes``, ``scale``, ``qmap`` and ``signed``; for ``fp8_e4m3`` ``OptimStateFp8(**value)`` with ``codes`` and
        ``scale``; for ``4bit`` ``OptimState4bit(**value)``, which also has ``shape``. States in other 8-bit formats are
        encoded again as ``8bit_dynamic``. 8-bit states whose number of elements is not a multiple of 256, and 4-bit
        states for which it is not a multiple of 128, become float32, because torchao does not store them in 8 or 4
        bits. All others are kept. The dict shares memory with `state`.

    Raises
    ------
    TypeError, ValueError
        If `state` is not as described.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> ours = {"step": 3, "exp_avg": np.zeros(512, np.uint8), "exp_avg_absmax": np.zeros(2, np.float32)}
    >>> theirs = adaptk.formats.to_torchao(ours)
    >>> theirs["step"], sorted(theirs["exp_avg"])
    (3, ['codes', 'qmap', 'scale', 'signed'])
    """
    _check_mapping(state)
    out: dict[str, Any] = {}
    scales = {f"{name}_{s}" for name in state for s in SAVED_SCALES}
    for name in state:
        if name in scales:
            continue
        found = _saved(state, name, shape)
        if not isinstance(found, Stored):
            out[name] = found
            continue
        packed = is_packed(found.format)
        if math.prod(found.data.shape if shape is None else shape) % (block_of(found.format) if packed else 256) > 0:
            out[name] = _float32(found, shape)
            continue
        if found.format == "fp8_e4m3":
            out[name] = {"codes": found.data.view(_backend.float8(found.data)), "scale": found.scales}
            continue
        signed = not _NONNEGATIVE[name]
        wanted = found.format if packed else "dynamic_signed" if signed else "dynamic_unsigned"
        if found.format != wanted:
            found = _recoded(_float32(found), wanted)
        qmap = _map_like(wanted, found.data)
        out[name] = {"codes": found.data, "scale": found.scales, "qmap": qmap, "signed": signed}
        if packed:
            out[name]["shape"] = tuple(shape or ())
    return out
