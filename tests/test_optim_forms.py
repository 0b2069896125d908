"""Forms of params and gradients that optimizer objects accept."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest
from optim_cases import (
    FORMS,
    all_bits,
    arrays,
    bits,
    like,
    snapshot,
)


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_params(form: str) -> None:
    want = arrays()
    adaptk.Adam(want).step(like(want, 0))
    got = arrays()
    grads = like(got, 0)
    named = form in ("dict", "named groups")
    adaptk.Adam(FORMS[form](got)).step({"p0": grads[0], "p1": grads[1]} if named else grads)
    assert all_bits(got) == all_bits(want)


def test_a_single_buffer() -> None:
    want, got = arrays()[0], arrays()[0]
    adaptk.Adam([want]).step(like([want], 0))
    adaptk.Adam(got).step(like([got], 0))
    assert bits(got) == bits(want)


@pytest.mark.parametrize("form", ["list", "tuple", "generator", "iterator"])
def test_forms_of_gradients(form: str) -> None:
    want = arrays()
    adaptk.Adam(want).step(like(want, 0))
    got = arrays()
    adaptk.Adam(got).step(FORMS[form](like(got, 0)))
    assert all_bits(got) == all_bits(want)


@pytest.mark.parametrize("form", ["dict", "named groups"])
def test_named_gradients_come_in_any_order(form: str) -> None:
    want = arrays()
    adaptk.Adam(want).step(like(want, 0))
    got = arrays()
    optimizer = adaptk.Adam(FORMS[form](got))
    grads = like(got, 0)
    optimizer.step({"p1": grads[1], "p0": grads[0]})
    assert all_bits(got) == all_bits(want)
    assert list(optimizer.state) == ["p0", "p1"]


def test_named_gradients_have_the_names_of_the_params() -> None:
    params = arrays()
    grads = like(params, 0)
    optimizer = adaptk.Adam({"w": params[0], "b": params[1]})
    before = snapshot(optimizer, params)
    with pytest.raises(ValueError, match=re.escape("grads: missing ['b'], unexpected ['c']")):
        optimizer.step({"w": grads[0], "c": grads[1]})
    with pytest.raises(ValueError, match=re.escape("grads['b']: shape (6,), expected (5,)")):
        optimizer.step({"w": grads[0], "b": np.zeros(6, np.float32)})
    with pytest.raises(TypeError, match="grads: a dict, but the params were given without names"):
        adaptk.Adam(params).step({"w": grads[0], "b": grads[1]})
    assert snapshot(optimizer, params) == before


@pytest.mark.parametrize("grads", [None, 1.0, np.zeros(5, np.float32)], ids=["None", "number", "buffer"])
def test_gradients_of_wrong_types(grads: Any) -> None:
    with pytest.raises(TypeError, match="grads: expected a list or a dict"):
        adaptk.SGD([np.zeros(5, np.float32), np.zeros(5, np.float32)]).step(grads)


BAD_PARAMS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "nothing": (list, ValueError, "params: an empty list"),
    "an empty dict": (dict, ValueError, "params: an empty list"),
    "a number": (lambda: 1.0, TypeError, "params: expected buffers"),
    "a list of numbers": (lambda: [1.0], TypeError, "params[0]: float is not a buffer"),
    "NumPy scalars": (lambda: [np.zeros(2), np.float32(1.0)], TypeError, "params[1]: numpy.float32 is not a buffer"),
    "integers": (lambda: [np.zeros(2), np.zeros(2, int)], TypeError, "params[1]: dtype int64"),
    "read-only": (lambda: {"w": np.broadcast_to(1.0, ())}, ValueError, "params['w']: read-only"),
    "strided": (lambda: [np.zeros(4)[::2]], ValueError, "params[0]: not contiguous"),
    "twice the same": (lambda: [np.zeros(4)] * 2, ValueError, "params[0] and params[1] are the same buffer"),
    "a group without params": (lambda: [{"lr": 0.1}], TypeError, "the key 'params'"),
    "an empty group": (lambda: [{"params": [np.zeros(2)]}, {"params": []}], ValueError, "params of group 1: an empty"),
    "a name that is no string": (lambda: {1: np.zeros(2)}, TypeError, "names of params must be strings"),
    "the name of another group": (
        lambda: [{"params": {"w": np.zeros(2)}}, {"params": {"w": np.zeros(2)}}],
        ValueError,
        "the names w are taken",
    ),
    "names in one group only": (
        lambda: [{"params": {"w": np.zeros(2)}}, {"params": [np.zeros(2)]}],
        ValueError,
        "either all groups have named params or none has",
    ),
}


@pytest.mark.parametrize("what", BAD_PARAMS)
def test_invalid_params(what: str) -> None:
    make, error, text = BAD_PARAMS[what]
    with pytest.raises(error, match=re.escape(text)):
        adaptk.Adam(make())


def test_the_base_class_cannot_be_instantiated() -> None:
    with pytest.raises(TypeError, match="Optimizer is the base of the optimizers"):
        adaptk.Optimizer([np.zeros(2)])
    assert all(issubclass(c, adaptk.Optimizer) for c in adaptk.optim.CLASSES.values())


def test_optimizer_for_takes_the_options_of_its_rule_only() -> None:
    with pytest.raises(ValueError, match=r"rule: 'sdg' is not one of sgd, momentum"):
        adaptk.optimizer_for("sdg", [np.zeros(2)])
    assert adaptk.optimizer_for("momentum", [np.zeros(2)], momentum=0.5).param_groups[0]["momentum"] == 0.5
    for rule, options in (("sgd", {"momentum": 0.9}), ("adam", {"amsgrad": True}), ("rmsprop", {"centered": False})):
        with pytest.raises(TypeError, match=next(iter(options))):
            adaptk.optimizer_for(rule, [np.zeros(2)], **options)


def test_a_subclass() -> None:
    class Mine(adaptk.SGD):
        pass

    assert Mine([np.zeros(2)], momentum=0.9).rules == ("momentum",)
    with pytest.raises(ValueError, match="nesterov: needs a momentum"):
        Mine([np.zeros(2)], nesterov=True)
