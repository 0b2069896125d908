"""Saved states of adaptk.torch: nothing shared, no partial loads, valid step counts."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import adaptk.torch  # noqa: E402

ARRAYS = {
    "Adadelta": ("square_avg", "acc_delta"),
    "Adagrad": ("sum",),
    "Adam": ("exp_avg", "exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "Adamax": ("exp_avg", "exp_inf"),
    "ASGD": ("ax", "eta", "mu"),
    "NAdam": ("exp_avg", "exp_avg_sq", "mu_product"),
    "RAdam": ("exp_avg", "exp_avg_sq"),
    "RMSprop": ("square_avg",),
    "Rprop": ("prev", "step_size"),
    "Lion": ("exp_avg",),
    "Adan": ("exp_avg", "exp_avg_diff", "exp_avg_sq", "prev_grad"),
}


def make(name: str, dtype: Any = None, steps: int = 2, **options: Any) -> tuple[Any, Any]:
    w = torch.nn.Parameter(torch.linspace(1.0, 2.0, 5, dtype=dtype or torch.float32))
    opt = getattr(adaptk.torch, name)([w], **{"lr": 0.1, **options})
    for _ in range(steps):
        step(opt, w)
    return opt, w


def step(opt: Any, w: Any) -> None:
    w.grad = torch.full_like(w, 0.25)
    opt.step()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex64"])
@pytest.mark.parametrize("name", ["SGD", *ARRAYS])
def test_loading_copies(name: str, dtype: str) -> None:
    """A snapshot does not change, and optimizers that load it share no memory."""
    if dtype == "complex64" and name in ("Adan", "Lion"):
        pytest.skip("reals are enough for the rules that torch lacks")
    one, w = make(name, getattr(torch, dtype), **({"momentum": 0.9} if name == "SGD" else {}))
    two, v = make(name, getattr(torch, dtype), 0, **({"momentum": 0.9} if name == "SGD" else {}))
    one.load_state_dict(snapshot := one.state_dict())
    two.load_state_dict(snapshot)
    kept = copy.deepcopy(snapshot)
    with torch.no_grad():
        v.copy_(w)
    step(one, w)
    for key, value in kept["state"][0].items():
        torch.testing.assert_close(snapshot["state"][0][key], value, rtol=0, atol=0)
    step(two, v)
    torch.testing.assert_close(v, w, rtol=0, atol=0)
    places = [{t.data_ptr() for t in states.values()} for states in (one.state[w], two.state[v], snapshot["state"][0])]
    assert len(set.union(*places)) == sum(map(len, places))


def test_a_state_dict_refers_to_the_states() -> None:
    opt, w = make("Adam")
    assert opt.state_dict()["state"][0]["exp_avg"] is opt.state[w]["exp_avg"]


@pytest.mark.parametrize("name", ARRAYS)
def test_a_state_without_an_array_is_refused(name: str) -> None:
    for missing in ("step", *ARRAYS[name]):
        opt, w = make(name)
        saved = copy.deepcopy(opt.state_dict())
        del saved["state"][0][missing]
        before = w.detach().clone()
        with pytest.raises(ValueError, match=f"\\['state'\\]\\[0\\] has no '{missing}' beside .*, which {name} needs"):
            opt.load_state_dict(saved)
        assert missing in opt.state[w]
        del opt.state[w][missing]
        with pytest.raises(KeyError, match=f"state of params\\[0\\]: no '{missing}' beside"):
            step(opt, w)
        assert torch.equal(w, before)
        assert missing not in opt.state[w]
        # torch raises too, if it has the rule.
        if (peer := getattr(torch.optim, name, None)) is not None:
            theirs = peer([w], lr=0.1)
            with pytest.raises(KeyError, match=missing):  # noqa: PT012
                theirs.load_state_dict(copy.deepcopy(saved))
                theirs.step()
        del opt.state[w]
        step(opt, w)  # the remedy
        assert float(opt.state[w]["step"]) == 1.0


def test_an_option_enabled_later_is_refused() -> None:
    for module in (torch.optim, adaptk.torch):
        w = torch.nn.Parameter(torch.ones(3))
        opt = module.Adam([w])
        step(opt, w)
        opt.param_groups[0]["amsgrad"] = True
        with pytest.raises(KeyError, match="max_exp_avg_sq"):
            step(opt, w)


def test_a_state_with_unknown_entries_is_reset() -> None:
    opt, w = make("Adam", steps=0)
    opt.state[w]["note"] = "mine"
    step(opt, w)
    assert set(opt.state[w]) == {"note", "step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("bad", [2.5, -1.0, float("nan"), float("inf")])
def test_invalid_step_counts(bad: float) -> None:
    opt, w = make("Adam")
    before = copy.deepcopy(opt.state_dict())
    for value in (torch.tensor(bad), bad):
        saved = copy.deepcopy(before)
        saved["state"][0]["step"] = value
        saved["state"][0]["exp_avg"].fill_(9.0)
        with pytest.raises(ValueError, match=r"state_dict\['state'\]\[0\]\['step'\]: .* is no count of steps"):
            opt.load_state_dict(saved)
    assert torch.equal(opt.state[w]["exp_avg"], before["state"][0]["exp_avg"])
    opt.state[w]["step"] = torch.tensor(bad)
    with pytest.raises(ValueError, match=r"state\['step'\] of params\[0\]: .* is no count of steps"):
        step(opt, w)


def test_two_optimizers_from_one_list_of_groups() -> None:
    """Changing the learning rate of one, or adding a group to it, does not affect the other."""
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [a], "lr": 0.5}, {"params": [b]}]
    one, two = (adaptk.torch.Adam(groups, lr=0.1) for _ in range(2))
    one.param_groups[0]["lr"] = 7.0
    assert [g["lr"] for g in two.param_groups] == [0.5, 0.1]
    assert groups == [{"params": [a], "lr": 0.5}, {"params": [b]}]
    group = {"params": [torch.nn.Parameter(torch.ones(2))]}
    one.add_param_group(group)
    one.param_groups[2]["params"].clear()
    assert len(group["params"]) == 1


def test_rprop_propagates_a_nan_that_torch_hides() -> None:
    """The one difference in results that the guide names."""
    for module, is_nan in ((torch.optim, False), (adaptk.torch, True)):
        w = torch.nn.Parameter(torch.ones(2))
        opt = module.Rprop([w])
        w.grad = torch.tensor([1.0, float("nan")])
        opt.step()
        assert w.isnan().tolist() == [False, is_nan]


CLASSES = ("SGD", *ARRAYS)


@pytest.mark.parametrize("theirs", CLASSES)
def test_a_state_of_another_optimizer(theirs: str) -> None:
    """Only states that a step can continue from are loaded."""
    refused = set()
    for name in CLASSES:
        options = {"momentum": 0.9} if theirs == "SGD" else {}
        saved = make(theirs, **options)[0].state_dict()
        opt, w = make(name)
        before = copy.deepcopy(opt.state_dict())
        message = ""
        try:
            opt.load_state_dict(saved)
        except ValueError as error:
            message = str(error)
            refused.add(name)
        if message:
            assert f", which {name} needs; it seems to be another optimizer's: load it into " in message
            assert str(opt.state_dict()) == str(before)
        step(opt, w)
    assert theirs not in refused
    if theirs in ("AdamW", "SGD"):
        assert {"SGD", "AdamW", "Adamax", "RMSprop"} - {theirs} <= refused


def test_a_state_of_another_shape_is_refused_when_it_is_loaded() -> None:
    opt, w = make("AdamW")
    saved = copy.deepcopy(opt.state_dict())
    before = copy.deepcopy(saved)
    saved["state"][0]["exp_avg_sq"] = torch.ones(4)
    with pytest.raises(ValueError, match=r"\['exp_avg_sq'\]: shape \(4,\), expected \(5,\) like its param"):
        opt.load_state_dict(saved)
    assert str(opt.state_dict()) == str(before)
    step(opt, w)


@pytest.mark.parametrize("name", ["SGD", *(n for n in ARRAYS if hasattr(torch.optim, n))])
def test_states_of_torch_and_of_old_versions(name: str) -> None:
    """Old versions of PyTorch saved fewer options, and step counts as numbers."""
    options = {"momentum": 0.9} if name == "SGD" else {}
    w = torch.nn.Parameter(torch.linspace(1.0, 2.0, 5))
    theirs = getattr(torch.optim, name)([w], lr=0.1, **options)
    step(theirs, w)
    saved = copy.deepcopy(theirs.state_dict())
    opt, v = make(name, steps=0, **options)
    opt.load_state_dict(saved)
    for option in ("foreach", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
        saved["param_groups"][0].pop(option, None)
    if "step" in saved["state"][0]:
        saved["state"][0]["step"] = 1.0
    opt.load_state_dict(saved)
    with torch.no_grad():
        v.copy_(w)
    step(theirs, w)
    step(opt, v)
    torch.testing.assert_close(v, w)


def test_wrong_types_of_state_dicts() -> None:
    opt, _ = make("AdamW")
    with pytest.raises(ValueError, match="state_dict: no 'state', expected what state_dict"):
        opt.load_state_dict({})
