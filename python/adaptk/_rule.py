"""Rules written by users: :func:`rule` and the objects that it returns."""

from __future__ import annotations

import ast
import functools
import inspect
import keyword
import math
import struct
import textwrap
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from adaptk import _core, _registry, catalogue, ops
from adaptk._classes import class_of_made
from adaptk._functions import function_of
from adaptk._names import hint
from adaptk._optimizer import Optimizer
from adaptk._registry import ROW_WISE, RULES, Rule
from adaptk._trace import PER, Trace, trace_rule

_RANGES = ("(-inf, inf)", "[0, inf)", "(0, inf)", "[0, 1)", "[0, 1]", "(0, 1)", "(1, inf)", "[0, inf]", "bool")
_COMMON = ("weight_decay", "decoupled", "maximize", "grad_scale")
# Arguments that the optimizer classes, the functions or those of the adapters have for every rule.
_ARGUMENTS = frozenset(
    (
        *("self", "params", "param", "grad", "step", "last_step", "learning_rate", "convention", "fused", "packed"),
        *("mask", "clip_norm", "skip_nonfinite", "capturable", "state_dtype", "min_8bit_size", "seed", "param_format"),
        *("sparse", "zero_grad", "copy_out", "ema"),
    )
)
_lock = threading.Lock()
_objects: dict[str, TracedRule] = {}  # by the key of the rule


class TracedRule:
    """A rule made by :func:`rule`. It is called like the functions of :mod:`adaptk.ops`.

    Attributes
    ----------
    rule : Rule
        Its description, as in :func:`rules`.
    name : str
    Optimizer : type
        Its optimizer class, like :class:`Adam`.
    torch : type
        Its optimizer class for PyTorch, like :class:`adaptk.torch.Lion`.
    jax : function
        Its function for JAX, like :func:`adaptk.jax.lion`.

    Notes
    -----
    It can be pickled and copied. The bytes contain the operations of the rule, but no code of its Python function. They
    are checked when they are loaded.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> @adaptk.rule(states={"m": 0.0}, lr=0.1, beta=0.9)
    ... def heavy_ball(p, g, m, h, t):
    ...     m = h.beta * m + g
    ...     return p - h.lr * m, m
    >>> w = np.ones(2)
    >>> opt = heavy_ball.Optimizer([w], lr=0.5)
    >>> info = opt.step([w.copy()])
    >>> w
    array([0.5, 0.5])
    >>> heavy_ball.unregister()
    """

    def __init__(self, rule: Rule, function: Callable[..., Any] | None = None) -> None:
        self.rule = rule
        self.name = rule.name
        self._run = function_of(rule, ops.__name__)
        self.__name__ = self.__qualname__ = rule.name
        self.__doc__ = self._run.__doc__
        if function is not None:
            self.__wrapped__ = function
            self.__module__ = function.__module__

    @property
    def function(self) -> Callable[..., None]:
        """Its function, like those in :mod:`adaptk.ops`."""
        run: Callable[..., None] = self._run
        return run

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self._run(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._run)

    @property
    def Optimizer(self) -> type[Optimizer]:
        return class_of_made(self.rule)

    @property
    def torch(self) -> Any:
        """Its optimizer class for PyTorch, like :class:`adaptk.torch.Lion`."""
        from adaptk.torch._made import class_of_made

        return class_of_made(self.rule)

    @property
    def jax(self) -> Any:
        """Its function for JAX, like :func:`adaptk.jax.lion`."""
        from adaptk._jax_step import make_function

        return make_function(self.rule)

    def to_bytes(self) -> bytes:
        """The program of the rule as bytes, for :func:`load_rule` and other processes."""
        assert self.rule.program is not None
        return self.rule.program

    def to_cpp(self) -> str:
        """The rule as a C++ struct: the text of a header for ``adaptk/run.hpp``, with bitwise identical results.

        Raises
        ------
        ValueError
            If the rule reads ``weight_decay``, as some rules of the library do.

        Examples
        --------
        >>> import adaptk
        >>> @adaptk.rule(lr=0.1)
        ... def plain(p, g, h, t):
        ...     return p - h.lr * g
        >>> "struct Plain {" in plain.to_cpp()
        True
        >>> plain.unregister()
        """
        from adaptk._rule_cpp import to_cpp

        return to_cpp(self.rule)

    def compile(self) -> TracedRule:
        """Compile the rule for the current instruction set, instead of interpreting it. Results stay bitwise identical.

        This needs a C++ compiler: the command in the environment variable ``CXX``, or ``c++``, ``g++`` or ``clang++``.
        The compiled library is cached for other processes in the folder ``ADAPTK_CACHE`` (default: ``adaptk`` in the
        user's cache folder). A folder that other users may write to is refused. Existing optimizers use the compiled
        code from their next step on. The compiled code is not pickled.

        Returns
        -------
        TracedRule
            The rule itself.

        Raises
        ------
        RuntimeError
            If there is no compiler, or it fails.
        OSError
            If the folder cannot be written to, or other users may write to it.

        Examples
        --------
        >>> import adaptk
        >>> @adaptk.rule(lr=0.1)
        ... def plain(p, g, h, t):
        ...     return p - h.lr * g
        >>> try:
        ...     compiled = plain.compile().compiled_for == (adaptk.get_isa(),)
        ... except (RuntimeError, OSError) as error:  # no compiler, or no folder
        ...     compiled = False
        >>> plain.unregister()
        """
        from adaptk._compile import compile_rules

        compile_rules([self.rule])
        return self

    @property
    def compiled_for(self) -> tuple[str, ...]:
        """The instruction sets that the rule has been compiled for in this process."""
        return tuple(_core.compiled_for(self.rule.key))

    def register(self) -> None:
        """Add the rule to :func:`rules` and :mod:`adaptk.ops`, replacing an earlier rule of the same name."""
        with _lock:
            if self.name not in RULES and hasattr(ops, self.name):
                raise ValueError(f"name: adaptk.ops has something else of the name {self.name!r}")
            _registry.add(self.rule)
            setattr(ops, self.name, self._run)
            names = vars(ops)["__all__"]
            if self.name not in names:
                names.append(self.name)

    def unregister(self) -> None:
        """Remove the rule from :func:`rules` and :mod:`adaptk.ops`. This object and its optimizers still work."""
        with _lock:
            if RULES.get(self.name) is not self.rule:
                return
            _registry.remove(self.rule)
            delattr(ops, self.name)
            vars(ops)["__all__"].remove(self.name)

    def __reduce__(self) -> Any:
        return load_rule, (self.rule.program,)

    def __repr__(self) -> str:
        return repr(self.rule)


def load_rule(program: bytes) -> TracedRule:
    """Load a rule from the bytes of :meth:`TracedRule.to_bytes`. It is registered if its name is not taken.

    Parameters
    ----------
    program : bytes
        From a file or another process. The bytes are checked, and contain no Python code.

    Raises
    ------
    TypeError, ValueError
        If the bytes are not those of a rule, or are corrupted.

    Examples
    --------
    >>> import adaptk
    >>> @adaptk.rule(lr=0.1)
    ... def plain(p, g, h, t):
    ...     return p - h.lr * g
    >>> adaptk.load_rule(plain.to_bytes()) is plain
    True
    >>> plain.unregister()
    """
    if not isinstance(program, bytes):
        raise TypeError(f"program: expected bytes, got {type(program).__name__}")
    made = _registry.rule_of_program(program)
    found = _object_of(made, None)
    if made.name not in RULES and made.name not in catalogue.NAMES and not hasattr(ops, made.name):
        found.register()
    return found


def read_rule(program: bytes) -> TracedRule:
    """The rule of these bytes. It is not registered."""
    return _object_of(_registry.rule_of_program(program), None)


def find_rule(name: str) -> TracedRule:
    """The rule of this name in the catalogue or among the registered rules."""
    found = catalogue.find(name)
    if found is None and name in RULES and RULES[name].program is not None:
        found = _object_of(RULES[name], None)
    if found is None:
        raise ValueError(f"evaluation: there is no rule of the name {name!r}; register it")
    return found


def _object_of(made: Rule, function: Callable[..., Any] | None) -> TracedRule:
    with _lock:
        found = _objects.get(made.key)
        if found is None:
            found = _objects.setdefault(made.key, TracedRule(made, function))
    return found


@overload
def rule(function: Callable[..., Any], /) -> TracedRule: ...
@overload
def rule(
    *,
    states: Mapping[str, float | str] | None = ...,
    name: str | None = ...,
    summary: str | None = ...,
    source: str = ...,
    nonnegative: Sequence[str] = ...,
    ranges: Mapping[str, str] | None = ...,
    meanings: Mapping[str, str] | None = ...,
    carried: Mapping[str, float] | None = ...,
    per: Mapping[str, str] | None = ...,
    class_name: str | None = ...,
    evaluation: TracedRule | str | None = ...,
    compile: bool = ...,
    **hyperparameters: float | bool,
) -> Callable[[Callable[..., Any]], TracedRule]: ...
def rule(
    function: Callable[..., Any] | None = None,
    /,
    *,
    states: Mapping[str, float | str] | None = None,
    name: str | None = None,
    summary: str | None = None,
    source: str = "",
    nonnegative: Sequence[str] = (),
    ranges: Mapping[str, str] | None = None,
    meanings: Mapping[str, str] | None = None,
    carried: Mapping[str, float] | None = None,
    per: Mapping[str, str] | None = None,
    class_name: str | None = None,
    evaluation: TracedRule | str | None = None,
    compile: bool = False,
    **hyperparameters: float | bool,
) -> Any:
    """Make an update rule from a Python function. Used as a decorator.

    The function is called once, as ``function(p, g, *states, h, t)``. Its arguments are symbolic values: one element of
    the param, of the gradient and of each state, the hyperparameters (``h.lr``), and the step number, counted from 1.
    It returns the new `p` and the new states, in the same order. The rule can then be used like those of the library:
    it has a function in :mod:`adaptk.ops`, an optimizer class and an entry in :func:`rules`. By default it is not
    compiled: an interpreter inside the kernels runs it. The results are bitwise identical to those of a compiled rule
    with the same formula.

    Parameters
    ----------
    states : dict of str to float or str
        Names and initial values of the states: a number; ``"param"``, a copy of the param; ``"grad"``, the first
        gradient; or the name of a hyperparameter.
    name : str, optional
        The name of the rule; by default that of the function.
    summary, source : str, optional
        A description in one line, by default the first line of the function's docstring; and the origin of the rule.
    nonnegative : sequence of str
        The states that are never below zero, such as second moments. 8-bit formats use a different code for them.
    ranges, meanings : dict of str to str, optional
        For hyperparameters: the range, an interval such as ``"[0, 1)"`` or ``"bool"``, and the description for the
        docstrings. By default `lr` is in ``[0, inf)``, and others may be any finite numbers.
    carried : dict of str to float, optional
        Names and initial values of numbers that each step updates for the next one, such as a running maximum of
        learning rates. The function reads them like hyperparameters, ``h.name``, and returns their next values after
        the states. These may depend on `h`, `t` and reductions over all tensors. Optimizers keep them in the param
        groups, and functions take them as arguments.
    per : dict of str to str, optional
        States that are not arrays of the param's shape. ``"tensor"``: one number, which the function uses like a
        hyperparameter. ``"row"`` or ``"column"``: one number for each row or column; see :attr:`State.per` for the
        shapes. These states come after those per element, and are float32, or float64 for float64 params.
    class_name : str, optional
        The name of the optimizer class; by default made from the name, such as ``MyAdam`` from ``my_adam``.
    evaluation : TracedRule or str, optional
        For rules whose model is evaluated at another point than `p`: a rule that computes this point as its new param.
        Its function is called with `p` both as its `p` and as its `g`, and with those states of this rule that it
        names.
        ``opt.eval()`` moves the params to the point, and ``opt.train()`` moves them back, bit for bit.
    compile : bool, optional
        Whether to compile the rule for the current instruction set, like :meth:`TracedRule.compile`. If this fails,
        for example without a compiler, there is a warning, and the rule is interpreted, with the same results.
    **hyperparameters : float or bool
        Names and defaults of the hyperparameters, including `lr`. Every rule also has ``weight_decay``, ``decoupled``,
        ``maximize`` and ``grad_scale``, which are applied to `p` and `g` before the function. The defaults of
        ``weight_decay`` and ``decoupled`` may be given here.

    Returns
    -------
    TracedRule
        The rule, which replaces the function.

    Raises
    ------
    TypeError
        If the function does something that a rule cannot do: branch on a value, call other functions on it, or return
        something else. The message names the line.
    ValueError
        If a name is taken, is not an identifier or is that of an option of every rule, or a default is out of range.

    Notes
    -----
    Values support ``+ - * /``, ``** 2`` and ``** 0.5``, comparisons, ``& | ^ ~`` of conditions, ``adaptk.sqrt``,
    ``adaptk.abs``, ``adaptk.sign``, ``adaptk.minimum``, ``adaptk.maximum`` and ``adaptk.where``. Each operation is
    rounded; none are contracted. Expressions of only `h` and `t` are computed once per step in float64, and rounded
    once where they are combined with an element. They may also have any powers and ``adaptk.cumprod``.

    ``adaptk.norm``, ``adaptk.sum`` and ``adaptk.mean`` reduce an expression of elements to one number for each tensor,
    for each of its rows or columns, or for all tensors of the step. This needs a pass over the elements before the
    update. Carried numbers may depend on reductions over all tensors.

    On CUDA devices NVRTC (``pip install nvidia-cuda-nvrtc``) compiles a rule at its first step. A rule with five
    states per element runs on the CPU.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> @adaptk.rule(states={"m": 0.0, "v": 0.0}, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
    ... def my_adam(p, g, m, v, h, t):
    ...     m = h.beta1 * m + (1 - h.beta1) * g
    ...     v = h.beta2 * v + (1 - h.beta2) * (g * g)
    ...     root = adaptk.sqrt(v) / adaptk.sqrt(1 - h.beta2**t)
    ...     return p - h.lr / (1 - h.beta1**t) * m / (root + h.eps), m, v
    >>> w = np.array([1.0, -2.0])
    >>> opt = my_adam.Optimizer([w], lr=0.1)
    >>> info = opt.step([2 * w])
    >>> w.round(6)
    array([ 0.9, -1.9])
    >>> "my_adam" in adaptk.rules()
    True
    >>> my_adam.unregister()
    """
    if function is None:
        for what, text in (("name", name), ("class_name", class_name), ("summary", summary), ("source", source)):
            if text is not None and not isinstance(text, str):
                raise TypeError(f"{what}: expected a string, got {type(text).__name__}")
        if not isinstance(compile, bool):
            raise TypeError(f"compile: expected a bool, got {type(compile).__name__}")
        texts = _Texts(name, class_name, summary, None, source, _name_of(evaluation))
        parts = _Parts(
            states or {}, hyperparameters, carried or {}, nonnegative, ranges or {}, meanings or {}, per or {}
        )
        return functools.partial(_make, texts, parts, compile)
    if not callable(function):
        raise TypeError(f"rule: expected a function or keyword arguments, got {type(function).__name__}")
    raise TypeError("rule: needs hyperparameters, lr among them: @adaptk.rule(lr=1e-3)")


class _Texts(NamedTuple):
    name: str | None
    class_name: str | None
    summary: str | None
    formula: str | None
    source: str
    evaluation: str


class _Parts(NamedTuple):
    states: Mapping[str, float | str]
    hyperparameters: Mapping[str, Any]
    carried: Mapping[str, float]
    nonnegative: Sequence[str]
    ranges: Mapping[str, str]
    meanings: Mapping[str, str]
    per: Mapping[str, str]


def _name_of(evaluation: TracedRule | str | None) -> str:
    if evaluation is not None and not isinstance(evaluation, (TracedRule, str)):
        raise TypeError(f"evaluation: expected a rule or its name, got {type(evaluation).__name__}")
    return evaluation.name if isinstance(evaluation, TracedRule) else evaluation or ""


def _make(texts: _Texts, parts: _Parts, compiled: bool, function: Callable[..., Any]) -> TracedRule:
    if not inspect.isfunction(function):
        raise TypeError(f"rule: expected a Python function, got {type(function).__name__}")
    name = function.__name__ if texts.name is None else texts.name
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise ValueError(f"name: {name!r} is not an identifier; give the rule a name: @adaptk.rule(name=...)")
    if (name in RULES and RULES[name].program is None) or name in ROW_WISE or name in catalogue.NAMES:
        raise ValueError(f"name: {name!r} is a rule of the library")
    try:
        described = _registry.rule_of_program(build(texts, parts, function))
    except ValueError as error:
        # Nobody gave bytes here.
        raise ValueError(str(error).replace("bytes: ", f"{name}: ", 1)) from None
    made = _object_of(described, function)
    made.register()
    if compiled:
        try:
            made.compile()
        except (RuntimeError, OSError) as error:
            warnings.warn(f"{name} is interpreted: {error}", RuntimeWarning, stacklevel=2)
    return made


def build(texts: _Texts, parts: _Parts, function: Callable[..., Any]) -> bytes:
    """The bytes of the rule that a function computes. Only rules of the library are passed with a formula."""
    hyperparameters, states, carried = parts.hyperparameters, parts.states, parts.carried
    name = function.__name__ if texts.name is None else texts.name
    if clash := hyperparameters.keys() & carried.keys():
        raise ValueError(f"carried: {min(clash)!r} is a hyperparameter too")
    own = _check_hyperparameters({**hyperparameters, **carried}, parts.ranges, parts.meanings)
    _check_states(states, own, parts.nonnegative)
    per = _check_per(states, parts.per)
    if texts.formula is None:
        _check_arguments(function, states)
    copies = {s: start for s, start in states.items() if isinstance(start, str) and start not in own}
    trace, results = trace_rule(function, list(states), copies, list(own), list(carried), per)
    summary, formula = texts.summary, texts.formula
    if summary is None:
        summary = (inspect.getdoc(function) or f"{name}, a rule that was made at run time.").splitlines()[0]
    if formula is None:
        formula = _formula(function, states)
    meanings = {**dict.fromkeys(carried, "carried from step to step: not to be set"), **parts.meanings}
    return _pack(
        [name, texts.class_name or "", summary, formula, texts.source, texts.evaluation],
        [float(hyperparameters.get(c, 0.0)) for c in _COMMON[:2]],
        [(h, float(value), _RANGES.index(interval), meanings.get(h, h)) for h, (value, interval) in own.items()],
        [
            (s, _initial(start), _from(start, own), s in parts.nonnegative, PER.index(of))
            for (s, start), of in zip(states.items(), per, strict=True)
        ],
        [len(own), len(states), len(trace.scalars), len(trace.elements), len(carried)],
        trace,
        results[: 1 + len(states)],
        [(list(own).index(c), node) for c, node in zip(carried, results[1 + len(states) :], strict=True)],
    )


def _check_hyperparameters(
    given: Mapping[str, Any], ranges: Mapping[str, str], meanings: Mapping[str, str]
) -> dict[str, tuple[Any, str]]:
    """Check the rule's own hyperparameters: the default and range of each, `lr` first."""
    for what, table in (("ranges", ranges), ("meanings", meanings)):
        for h in table:
            if h not in given or h in _COMMON:
                raise ValueError(f"{what}: {h!r} is not one of the rule's hyperparameters{hint(h, given)}")
    for h in ("maximize", "grad_scale"):
        if h in given:
            raise TypeError(f"{h}: every rule has it, and its default stays what it is")
    if "lr" not in given:
        raise TypeError("rule: a rule has a learning rate; give its default: @adaptk.rule(lr=1e-3)")
    own = {}
    for h in given:
        _check_name("hyperparameter", h)
    for h in ("lr", *(h for h in given if h != "lr")):
        value = given[h]
        flag = isinstance(value, (bool, np.bool_))
        if not flag and not isinstance(value, (int, float, np.integer, np.floating)):
            raise TypeError(f"{h}: expected a number as default, got {type(value).__name__}")
        least = "[0, inf)" if h in ("lr", "weight_decay") else "(-inf, inf)"
        default = "bool" if flag else "[0, inf]" if value == math.inf else least
        interval = ranges.get(h, default)
        if interval not in _RANGES:
            raise ValueError(f"ranges[{h!r}]: {interval!r} is not one of {', '.join(_RANGES)}")
        if math.isnan(value):
            raise ValueError(f"{h}: its default is {value}, not in {interval}")
        if h not in _COMMON:
            own[h] = (value, interval)
    return own


def _check_name(what: str, name: str) -> None:
    if keyword.iskeyword(name):
        raise ValueError(f"{name}: a {what} cannot be named like a keyword of Python")
    if name in _ARGUMENTS:
        raise ValueError(f"{name}: a {what} cannot be named like an argument that every rule has")


def _check_states(states: Mapping[str, Any], own: Mapping[str, Any], nonnegative: Sequence[str]) -> None:
    if not isinstance(states, Mapping):
        raise TypeError(f"states: expected a dict from name to initial value, got {type(states).__name__}")
    if isinstance(nonnegative, str):
        raise TypeError(f"nonnegative: expected a list of states, got the string {nonnegative!r}")
    for s, start in states.items():
        _check_name("state", s)
        if isinstance(start, str):
            if start not in ("param", "grad", *own):
                raise ValueError(
                    f"states[{s!r}]: {start!r} is not a number, 'param', 'grad' or a hyperparameter"
                    f"{hint(start, ('param', 'grad', *own))}"
                )
        elif isinstance(start, bool) or not isinstance(start, (int, float, np.integer, np.floating)):
            raise TypeError(f"states[{s!r}]: expected a number, 'param' or 'grad', got {type(start).__name__}")
        elif not math.isfinite(start):
            raise ValueError(f"states[{s!r}]: {start!r} is not finite")
        elif start < 0 and s in nonnegative:
            raise ValueError(f"states[{s!r}]: starts as {start!r}, and is named in nonnegative")
    for s in nonnegative:
        if s not in states:
            raise ValueError(f"nonnegative: {s!r} is not a state{hint(s, states)}")


def _check_per(states: Mapping[str, Any], per: Mapping[str, str]) -> list[str]:
    if not isinstance(per, Mapping):
        raise TypeError(f"per: expected a dict from state to what it has one number for, got {type(per).__name__}")
    for s, of in per.items():
        if s not in states:
            raise ValueError(f"per: {s!r} is not a state{hint(s, states)}")
        if of not in PER:
            raise ValueError(f"per[{s!r}]: {of!r} is not one of {', '.join(PER)}{hint(str(of), PER)}")
        if of != "element" and states[s] in ("param", "grad"):
            raise ValueError(f"states[{s!r}]: starts as the {states[s]}, and has one number for each {of}")
    found = [per.get(s, "element") for s in states]
    if found != sorted(found, key=lambda of: of != "element"):
        late = next(s for i, s in enumerate(states) if found[i] == "element" and set(found[:i]) - {"element"})
        raise ValueError(f"states: {late!r} is for each element, and behind one that is not; those come last")
    return found


def _check_arguments(function: Any, states: Mapping[str, Any]) -> None:
    code = function.__code__
    names = list(code.co_varnames[: code.co_argcount])
    wanted = f"{function.__name__}({', '.join(['p', 'g', *states, 'h', 't'])})"
    plain = code.co_kwonlyargcount == 0 and not code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    if not plain or len(names) != 4 + len(states) or names[2:-2] != list(states):
        raise TypeError(
            f"{function.__name__}: takes ({', '.join(names)}), expected {wanted}: the param, the gradient, the states "
            "by their names, the hyperparameters and the step"
        )


def _initial(start: float | str) -> float:
    return 0.0 if isinstance(start, str) else float(start)


def _from(start: float | str, own: Mapping[str, Any]) -> int:
    if isinstance(start, str):
        return list(own).index(start) if start in own else {"param": 254, "grad": 253}[start]
    return 255


def _formula(function: Callable[..., Any], states: Mapping[str, Any]) -> str:
    """The source of the function's body, if it is available."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
        (tree,) = ast.parse(source).body
        assert isinstance(tree, ast.FunctionDef)
    except (OSError, TypeError, SyntaxError, ValueError, AssertionError):
        return f"{', '.join(['p', *states])} = {function.__name__}({', '.join(['p', 'g', *states, 'h', 't'])})"
    body = tree.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and len(body) > 1:
        body = body[1:]
    lines = source.splitlines()[body[0].lineno - 1 : body[-1].end_lineno]
    return textwrap.dedent("\n".join(line.rstrip() for line in lines))


def _text(s: str) -> bytes:
    data = s.replace("\0", "").encode()[:60000].decode(errors="ignore").encode()
    return struct.pack("<H", len(data)) + data


def _pack(
    texts: Sequence[str],
    common: Sequence[float],
    hypers: Sequence[tuple[str, float, int, str]],
    states: Sequence[tuple[str, float, int, bool, int]],
    counts: Sequence[int],
    trace: Trace,
    results: Sequence[int],
    carried: Sequence[tuple[int, int]],
) -> bytes:
    """The text form of cpp/src/program.hpp."""
    version = 3 if trace.shaped else 2 if trace.reductions else 1
    if version > 1:
        counts = [*counts, len(trace.reductions)]
    body = struct.pack(f"<{len(counts)}H", *counts) + b"".join(map(_text, texts)) + struct.pack("<2d", *common)
    for h, value, interval, meaning in hypers:
        body += _text(h) + struct.pack("<dB", value, interval) + _text(meaning)
    for s, initial, start, nonnegative, per in states:
        body += _text(s) + struct.pack("<dBB", initial, start, nonnegative)
        body += struct.pack("<B", per) if version == 3 else b""
    body += trace.pack_scalars() + trace.pack_elements() + struct.pack(f"<{len(results)}H", *results)
    body += b"".join(struct.pack("<2H", *c) for c in carried) + trace.pack_reductions()
    checksum = 0x811C9DC5
    for byte in body:
        checksum = ((checksum ^ byte) * 0x01000193) & 0xFFFFFFFF
    return b"ADKRULE" + struct.pack("<BI", version, checksum) + body
