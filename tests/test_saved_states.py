"""Saved states, pickles and copies of optimizer objects: states that do not match are refused."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest

RULES = adaptk.rules()


def grads(params: list[Any], t: int) -> list[Any]:
    """Gradients with the params' shapes and layouts."""
    rng = np.random.default_rng(t)
    made = [np.empty_like(p) for p in params]
    for g in made:
        g[...] = rng.normal(size=g.shape)
    return made


def run(optimizer: adaptk.Optimizer, params: list[Any], first: int, last: int) -> None:
    for t in range(first, last):
        optimizer.step(grads(params, t))


# Schedules


def test_a_state_saved_with_a_schedule_needs_a_schedule() -> None:
    p = [np.ones(3)]
    scheduled = adaptk.Lion(p, lr=adaptk.schedules.cosine(0.1, total=100))
    run(scheduled, p, 0, 5)
    saved = scheduled.state_dict()
    q = [np.ones(3)]
    constant = adaptk.Lion(q, lr=0.5)
    text = (
        "state_dict: no 'param_groups.0.lr', for it was saved with a schedule, and this optimizer has lr=0.5; give its "
        "constructor the schedule again, or add the rate to the dict to go on without one"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        constant.load_state_dict(saved)
    assert constant.step_count == 0
    # Both remedies.
    constant.load_state_dict({**saved, "param_groups.0.lr": 0.01})
    assert (constant.step_count, constant.param_groups[0]["lr"]) == (5, 0.01)
    again = adaptk.Lion([np.ones(3)], lr=adaptk.schedules.cosine(0.1, total=100))
    again.load_state_dict(saved)
    assert again.step_count == 5


def test_the_group_that_lacks_its_schedule_is_named() -> None:
    def make(lr: Any) -> adaptk.Optimizer:
        return adaptk.SGD([{"params": np.ones(2)}, {"params": np.ones(3), "lr": lr}], lr=0.1)

    with pytest.raises(ValueError, match=r"param_groups\.1\.lr"):
        make(0.1).load_state_dict(make(adaptk.schedules.constant(0.1)).state_dict())


# Rules


@pytest.mark.parametrize(
    ("saved", "loaded", "remedy"),
    [
        (("Adam", {}), ("AdamW", {}), "adaptk.Adam"),
        (("RAdam", {}), ("Yogi", {}), "adaptk.RAdam"),
        (("SGD", {"momentum": 0.9}), ("SGD", {"momentum": 0.9, "nesterov": True}), "adaptk.SGD(momentum=...)"),
        (("Adam", {"amsgrad": True}), ("AdamW", {}), "adaptk.Adam(amsgrad=True)"),
        (("RMSProp", {"centered": True}), ("RMSProp", {}), "adaptk.RMSProp(centered=True)"),
    ],
)
def test_the_state_of_another_rule_is_refused(saved: Any, loaded: Any, remedy: str) -> None:
    p, q = [np.ones(3)], [np.ones(3)]
    one = getattr(adaptk, saved[0])(p, lr=0.01, **saved[1])
    two = getattr(adaptk, loaded[0])(q, lr=0.5, **loaded[1])
    run(one, p, 0, 3)
    text = (
        f"state_dict: group 0 was saved by the rule {one.rules[0]!r}, and this optimizer runs {two.rules[0]!r} there; "
        f"make it as the one that was saved: {remedy}"
    )
    with pytest.raises(ValueError, match=re.escape(text) + "$"):
        two.load_state_dict(one.state_dict())
    assert (two.step_count, two.param_groups[0]["lr"]) == (0, 0.5)


def test_adam_with_amsgrad_and_adamw_with_it_are_one_rule() -> None:
    one, two = adaptk.Adam([np.ones(3)], amsgrad=True), adaptk.AdamW([np.ones(3)], amsgrad=True)
    two.load_state_dict(one.state_dict())


def test_a_rule_that_is_not_known() -> None:
    optimizer = adaptk.Adam([np.ones(3)])
    saved = optimizer.state_dict()
    for name in ("adam_of_later", np.frombuffer(b"adam_of_later", np.uint8), np.ones(2)):
        with pytest.raises(ValueError, match="this optimizer runs 'adam' there; no rule of this version has that name"):
            optimizer.load_state_dict({**saved, "param_groups.0.rule": name})
    optimizer.load_state_dict({**saved, "param_groups.0.rule": "adam"})


@pytest.mark.parametrize("rule", RULES)
def test_a_state_of_a_version_that_did_not_name_its_rule(rule: str) -> None:
    p, q = [np.ones(3)], [np.ones(3)]
    one, two = adaptk.optimizer_for(rule, p), adaptk.optimizer_for(rule, q, lr=123.0)
    run(one, p, 0, 2)
    saved = one.state_dict()
    assert bytes(saved.pop("param_groups.0.rule")).decode() == rule
    two.load_state_dict(saved)
    assert two.step_count == 2
    q[0][:] = p[0]
    run(one, p, 2, 4)
    run(two, q, 2, 4)
    assert q[0].tobytes() == p[0].tobytes()


def test_two_optimizers_from_one_snapshot_share_nothing() -> None:
    p, q = [np.ones(3)], [np.ones(3)]
    one, two = adaptk.Adam(p), adaptk.Adam(q)
    run(one, p, 0, 2)
    one.load_state_dict(snapshot := one.state_dict())
    two.load_state_dict(snapshot)
    kept = copy.deepcopy(snapshot)
    run(one, p, 2, 4)
    assert all(np.array_equal(snapshot[k], v) for k, v in kept.items())
    assert all(np.array_equal(two.state_dict()[k], v) for k, v in kept.items())


def test_two_optimizers_from_one_list_of_groups() -> None:
    groups = [{"params": [np.ones(2)], "lr": 0.5}]
    one, two = (adaptk.SGD(groups) for _ in range(2))
    one.param_groups[0]["lr"] = 7.0
    assert two.param_groups[0]["lr"] == groups[0]["lr"] == 0.5


# Pickles and copies


def through_pickle(protocol: int) -> Callable[[Any], Any]:
    return lambda x: pickle.loads(pickle.dumps(x, protocol))


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    **{f"pickle-{p}": through_pickle(p) for p in (pickle.HIGHEST_PROTOCOL, 2, 0)},
}


@pytest.mark.parametrize(
    ("rule", "way"), [*((r, w) for r in RULES for w in list(WAYS)[:2]), *(("adam", w) for w in WAYS)]
)
def test_copies_are_independent(rule: str, way: str) -> None:
    """The copy and the original take the same steps, each on its own params."""
    rng = np.random.default_rng(0)
    model = {"w": rng.normal(size=(3, 4)).astype(np.float32).T, "b": rng.normal(size=5)}
    params = list(model.values())
    optimizer = adaptk.optimizer_for(rule, model, lr=adaptk.schedules.exponential(0.1, gamma=0.5), clip_norm=2.0)
    for t in range(3):
        made = dict(zip(model, grads(params, t), strict=True))
        optimizer.step({**made, "w": None} if t == 1 else made)
    other_model, other = WAYS[way]((model, optimizer))
    others = list(other_model.values())
    assert all(not np.shares_memory(a, b) for a, b in zip(params, others, strict=True))
    # The copied optimizer steps the copied model only if params are shared in the copy.
    assert all(a is b for a, b in zip(other.param_groups[0]["params"], others, strict=True))
    assert (other.step_count, other.clip_norm, other.rules) == (3, 2.0, (rule,))
    assert repr(other) == repr(optimizer)
    for t in range(3, 5):
        optimizer.step(dict(zip(model, grads(params, t), strict=True)))
        other.step(dict(zip(other_model, grads(others, t), strict=True)))
    for a, b in zip(params, others, strict=True):
        assert a.tobytes() == b.tobytes()
    for key, value in optimizer.state_dict().items():
        assert np.array_equal(value, other.state_dict()[key]), key
    other.param_groups[0]["lr"] = 0.5
    assert callable(optimizer.param_groups[0]["lr"])


def test_a_layout_that_pickle_does_not_keep() -> None:
    """NumPy pickles a permuted array in C order; the states follow their param."""
    p = np.random.default_rng(0).normal(size=(2, 3, 4)).transpose(1, 0, 2)
    optimizer = adaptk.Adam([p])
    optimizer.step(grads([p], 0))
    q, other = pickle.loads(pickle.dumps((p, optimizer)))
    assert q.strides != p.strides
    optimizer.step(grads([p], 1))
    other.step(grads([q], 1))
    assert np.array_equal(p, q)


def test_a_copy_of_several_groups_can_be_extended_saved_and_loaded() -> None:
    optimizer = adaptk.SGD([{"params": np.ones(2)}, {"params": np.ones(3), "momentum": 0.5}], lr=0.1)
    optimizer.step([np.ones(2), np.ones(3)])
    other = copy.deepcopy(optimizer)
    other.add_param_group({"params": np.ones(1), "momentum": 0.9, "nesterov": True})
    other.step([np.ones(2), None, np.ones(1)])
    assert other.rules == ("sgd", "momentum", "nesterov")
    assert optimizer.rules == ("sgd", "momentum")
    twice = pickle.loads(pickle.dumps(other))
    twice.load_state_dict(other.state_dict())
    assert [g["momentum"] for g in twice.param_groups[1:]] == [0.5, 0.9]
    with pytest.raises(KeyError, match="no hyperparameter 'learning_rate'"):
        twice.param_groups[0]["learning_rate"] = 1.0


class Mine(adaptk.Adam):  # type: ignore[misc, name-defined]
    note = "none"


def test_a_subclass_with_attributes_of_its_own() -> None:
    optimizer = Mine([np.ones(2)])
    optimizer.note = "some"
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert type(other) is Mine
        assert other.note == "some"


def test_an_optimizer_in_lookahead_is_not_copied() -> None:
    """Its params are at the interim point."""
    optimizer = adaptk.RMSProp([np.ones(2)], nesterov=True)
    with optimizer.lookahead(), pytest.raises(RuntimeError, match="leave the block first"):
        copy.deepcopy(optimizer)
    copy.deepcopy(optimizer)


def test_a_shallow_copy_is_refused() -> None:
    with pytest.raises(TypeError, match=r"would share its states; use copy\.deepcopy"):
        copy.copy(adaptk.Adam([np.ones(2)]))


def test_rules_infos_and_groups_are_copied_too() -> None:
    rule = RULES["adam"]
    assert pickle.loads(pickle.dumps(rule)) is rule
    assert copy.deepcopy(rule) is rule
    info = adaptk.SGD([np.ones(2)]).step([np.array([3.0, 4.0])], clip_norm=1.0)
    assert pickle.loads(pickle.dumps(info)) == info == copy.deepcopy(info)
    group = adaptk.SGD([np.ones(2)], lr=0.5).param_groups[0]
    assert type(copy.deepcopy(group)) is dict
    assert copy.deepcopy(group)["lr"] == 0.5


def test_tensors_are_copied_with_their_optimizer() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    optimizer = adaptk.Adam(list(model.parameters()))
    run_torch = lambda m, o: o.step([torch.ones_like(p) for p in m.parameters()])  # noqa: E731
    run_torch(model, optimizer)
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    for other_model, other in (copy.deepcopy((model, optimizer)), torch.load(file, weights_only=False)):
        assert other.step_count == 1
        before = [p.detach().clone() for p in other_model.parameters()]
        run_torch(other_model, other)
        assert all(not torch.equal(p, q) for p, q in zip(other_model.parameters(), before, strict=True))
    assert optimizer.step_count == 1


# Param groups


def test_params_of_a_group_are_not_replaced_silently() -> None:
    p = np.ones(2)
    optimizer = adaptk.SGD([p])
    group = optimizer.param_groups[0]
    with pytest.raises(TypeError, match="does not support item assignment"):
        group["params"][0] = np.zeros(2)
    for change in (
        lambda: group.__setitem__("params", [np.zeros(2)]),
        lambda: group.update(params=[np.zeros(2)]),
        lambda: group.update({"params": [np.zeros(2)]}),
        lambda: group.__ior__({"params": [np.zeros(2)]}),
    ):
        with pytest.raises(ValueError, match="the params of a group stay what they are"):
            change()
    group["params"] = group["params"]
    group.update(lr=0.5, maximize=True)
    optimizer.step([np.ones(2)])
    assert p.tolist() == [1.5, 1.5]


@pytest.mark.parametrize("params", [[np.zeros(2)], [], (np.zeros(2), np.zeros(2))], ids=["other", "none", "more"])
def test_a_replaced_group(params: Any) -> None:
    p = np.ones(2)
    optimizer = adaptk.SGD([p], lr=1.0)
    own = optimizer.param_groups[0]
    optimizer.param_groups[0] = {**own, "params": params}
    with pytest.raises(ValueError, match=r"param_groups\[0\]: its params are not those of group 0"):
        optimizer.step([np.ones(2)])
    optimizer.param_groups[0] = {**own, "nestrov": True}
    with pytest.raises(KeyError, match=r"param_groups\[0\]: no hyperparameter 'nestrov'"):
        optimizer.step([np.ones(2)])
    assert p.tolist() == [1.0, 1.0]
    optimizer.param_groups[0] = {**own, "lr": 0.5}
    optimizer.step([np.ones(2)])
    assert p.tolist() == [0.5, 0.5]


def test_swapped_groups() -> None:
    optimizer = adaptk.SGD([{"params": np.ones(2), "lr": 1.0}, {"params": np.ones(2), "lr": 2.0}])
    optimizer.param_groups.reverse()
    with pytest.raises(ValueError, match=r"param_groups\[0\]: its params are not those of group 0"):
        optimizer.step([np.ones(2), np.ones(2)])


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("learning_rate", "'lr'"),
        ("beta_1", "'beta1'"),
        ("betas", "'beta1', 'beta2'"),
        ("wieght_decay", "'weight_decay'"),
    ],
)
def test_a_misspelt_key_of_a_group(key: str, hint: str) -> None:
    group = adaptk.Adam([np.ones(2)]).param_groups[0]
    for change in (
        lambda: group.__setitem__(key, 0.1),
        lambda: group.update({key: 0.1}),
        lambda: group.setdefault(key, 0.1),
    ):
        with pytest.raises(KeyError, match=re.escape(f"no hyperparameter {key!r} (did you mean {hint}?)")):
            change()
    assert key not in group
    assert group.setdefault("lr", 7.0) == 1e-3
    with pytest.raises(KeyError, match="no hyperparameter 'colour'; there are lr, beta1"):
        group["colour"] = 1
