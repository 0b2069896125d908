"""Storage formats of states: how they are stored between steps, and conversions between them.

A rule computes in float32 (float64 beside float64 params). A state in another format is decoded before the rule runs
and encoded after it, in the same pass over memory.

========================  =====  ======================================================================================
format                    bytes  elements
========================  =====  ======================================================================================
``float32``               4      as they are
``bfloat16``              2      rounded to nearest
``float16``               2      rounded to nearest
``bfloat16_sr``           2      bfloat16, rounded stochastically
``int8``                  1.03   ``rint(127 * x / scale)``, with the largest magnitude of each 128 elements as scale
``uint8``                 1.03   never negative: the leading bits of ``x / scale`` as a float, rounded stochastically;
                                 8 codes an octave, down to 2**-31.75 of the scale
``uint8_nearest``         1.03   the same, rounded to nearest
========================  =====  ======================================================================================

Two names stand for one of these each, by what a state is: ``8bit`` for ``uint8`` if the state is never negative, as
second moments are, else ``int8``; ``8bit_nearest`` for ``uint8_nearest`` or ``int8``.

Second moments that are rounded to nearest stop moving, because a step changes them by less than half of the distance
between two codes. Choose formats that are rounded stochastically for them. Their random bits depend on nothing but the
seed, the number of the step, the tensor and the element: a run can be repeated bit for bit, with any number of
threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptk import _backend, _core
from adaptk._registry import State

__all__ = ["Stored", "dequantize", "quantize"]


class Stored(NamedTuple):
    """A state in a format that its dtype alone does not tell; :mod:`adaptk.ops` takes it in the place of an array.

    Attributes
    ----------
    data : buffer
        What the elements are stored as, in the shape of the param: int8, uint8 or bfloat16.
    scales : buffer or None
        float32, one for each block of 128 elements from the first one on; None if the format has none.
    format : str
        Its name.
    """

    data: Any
    scales: Any
    format: str


#: Facts of each format, by its name.
_FACTS: dict[str, dict[str, Any]] = {f["name"]: f for f in _core.formats()}
#: What the elements of a format are stored as whose name no dtype has.
STORED_DTYPES = {"bfloat16_sr": "bfloat16", "int8": "int8", "uint8": "uint8", "uint8_nearest": "uint8"}
_CHOICES = {"8bit": "uint8", "8bit_nearest": "uint8_nearest"}

#: What `state_dtype` may be.
STATE_DTYPES = ("float32", "bfloat16", "float16", "bfloat16_sr", *_CHOICES)


def check_seed(seed: Any) -> int:
    """A seed that fits into a state_dict's numbers."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed: expected an int, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: {seed} is not in [0, 2**63)")
    return int(seed)


def check_min_8bit_size(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
        raise TypeError(f"min_8bit_size: expected an int, got {type(size).__name__}")
    if size < 0:
        raise ValueError(f"min_8bit_size: {size} is below 0")
    return int(size)


def check_state_dtype(value: Any, states: Sequence[State]) -> dict[str, str]:
    """The name for each state that `state_dtype` speaks of: one for all, or a dict from state to name."""
    names = [s.name for s in states]
    given = value if isinstance(value, Mapping) else dict.fromkeys(names, value)
    for state, name in given.items():
        if state not in names:
            raise ValueError(f"state_dtype: no state {state!r}; there are {', '.join(names) or 'none'}")
        if not isinstance(name, str):
            raise TypeError(f"state_dtype: {type(name).__name__}, expected a dtype's name or a dict from state to name")
        if name not in STATE_DTYPES:
            raise ValueError(f"state_dtype: {name!r}, expected {', '.join(map(repr, STATE_DTYPES))}")
    return dict(given)


def format_of(name: str, state: State, size: int, min_8bit_size: int) -> str:
    """The format that a name of `state_dtype` stands for beside a param of `size` elements."""
    if name not in _CHOICES:
        return name
    if size < min_8bit_size:
        return "float32"
    return _CHOICES[name] if state.nonnegative else "int8"


def is_plain(name: str) -> bool:
    """Whether a state in this format is an array whose dtype tells it."""
    return name not in STORED_DTYPES


def is_stochastic(name: str) -> bool:
    return bool(_FACTS[name]["stochastic"])


def has_scales(name: str) -> bool:
    return bool(_FACTS[name]["block"] > 1)


def scale_count(name: str, size: int) -> int:
    block: int = _FACTS[name]["block"]
    return -(-size // block)


def code_of(value: float, name: str) -> tuple[float, float | None]:
    """What each element of a state of one value is stored as, and the scale of each block if there are scales."""
    # Elements that are all the same are encoded to the same code.
    block = quantize(np.full(_FACTS[name]["block"], value, np.float32), name, seed=0)
    code = np.asarray(block.data).reshape(-1)[0].item()
    return code, None if block.scales is None else float(block.scales[0])


def full_like(param: Any, value: float, name: str) -> Any:
    """A state of one value beside a param, in any format."""
    if is_plain(name):
        return _backend.full_like(param, value, name)
    code, scale = code_of(value, name)
    data = _backend.full_like(param, code, STORED_DTYPES[name])
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
    format : {"bfloat16_sr", "int8", "uint8", "uint8_nearest"}
        ``uint8`` formats are for numbers that are not negative; negative ones are stored as the smallest code.
    seed, step : int
        What the random bits of formats that are rounded stochastically depend on, besides the element.

    Returns
    -------
    Stored
        Arrays of the library that `x` is from.

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
    data = _backend.full_like(x, 0, STORED_DTYPES[format])
    scales = _backend.row(x, scale_count(format, int(np.prod(shape))), 0.0) if has_scales(format) else None
    stored = Stored(data, scales, format)
    _core.encode(x, stored, seed, step, 0, 0)
    return stored


def dequantize(stored: Any) -> Any:
    """Decode to float32 numbers.

    Parameters
    ----------
    stored : Stored, or a pair (codes, scales)
        In C order, on the CPU.

    Returns
    -------
    array of float32
        Of the library and the shape that the codes are of.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> stored = adaptk.formats.quantize(np.array([0.0, 0.5, -2.0], np.float32), "int8")
    >>> adaptk.formats.dequantize(stored)
    array([ 0.      ,  0.503937, -2.      ], dtype=float32)
    """
    out = _backend.zeros_like(stored[0])
    _core.decode(tuple(stored), out)
    return out
