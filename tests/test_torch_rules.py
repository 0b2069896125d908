"""adaptk.torch against torch.optim, and the rules that torch lacks against adaptk.optim."""

from __future__ import annotations

import copy
import doctest
import inspect
from collections.abc import Mapping
from typing import Any

import adaptk
import numpy as np
import pytest
from torch_cases import (
    OWN,
    SHAPES,
    TORCHS,
    Case,
    _seeded,  # noqa: F401
    all_close,
    at,
    every_case,
    every_class,
    every_dtype,
    give,
    in_another_process,
    params,
    raw,
    same_bits,
    states_close,
    torch,
    twins,
)

RULES = adaptk.rules()


every_own = pytest.mark.parametrize("name", OWN)


# Names


def test_there_is_a_class_for_each_rule() -> None:
    others = {"RowWiseAdaGrad", "RowWiseAdam", "Muon", "Offload", "ReleasedGradients", "release_gradients"}
    assert set(at.__all__) == {*TORCHS, *OWN} | others
    names = {c.lower() for r in RULES.values() for c in r.class_names}
    assert names == {c.lower() for c in (*TORCHS, *OWN)} - {"rmspropnesterov"}


def test_importing_adaptk_does_not_import_torch() -> None:
    in_another_process("import adaptk, sys; assert 'torch' not in sys.modules")


@every_class
def test_signature_and_defaults_match_torch(case: Case) -> None:
    ours, torchs = getattr(at, case.name), getattr(torch.optim, case.name)
    assert issubclass(ours, torchs)
    assert ours.__name__ == torchs.__name__
    *parameters, dtype, size, seed, form, sparse, clip, skip, zero = inspect.signature(ours).parameters.values()
    assert parameters == list(inspect.signature(torchs).parameters.values())
    added = [(p.name, p.kind, p.default) for p in (dtype, size, seed, form, sparse, clip, skip, zero)]
    keyword = dtype.KEYWORD_ONLY
    assert added[:2] == [("state_dtype", keyword, None), ("min_8bit_size", keyword, 4096)]
    assert added[2:5] == [("seed", keyword, 0), ("param_format", keyword, None), ("sparse", keyword, "lazy")]
    of_step = [("clip_norm", keyword, None), ("skip_nonfinite", keyword, False), ("zero_grad", keyword, False)]
    assert added[5:] == of_step
    assert "closure" in inspect.signature(ours.step).parameters
    p = params()
    a, b = ours(p), torchs(p)
    assert a.defaults == b.defaults
    assert [list(g) for g in a.param_groups] == [list(g) for g in b.param_groups]
    assert [{k: v for k, v in g.items() if k != "params"} for g in a.param_groups] == [
        {k: v for k, v in g.items() if k != "params"} for g in b.param_groups
    ]
    assert repr(a) == repr(b)


def test_examples_of_the_documentation() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [t for t in finder.find(at, "adaptk.torch") if t.examples]
    with_examples = set(at.__all__) - {"ReleasedGradients"}
    assert {f"adaptk.torch.{name}" for name in with_examples} <= {t.name for t in tests}
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0, test.name


# Trajectories


@every_dtype
@every_case
def test_trajectory_matches_torch(case: Case, dtype: str) -> None:
    a = params(dtype)
    b = twins(a)
    ours, torchs = case.ours(a), case.torchs(b)
    for t in range(25):
        # Some params have no gradient at first, others now and then.
        but = [i for i in range(len(a)) if (i == 1 and t < 3) or (t + 2 * i) % 5 == 4]
        give([a, b], t, scale=10.0 ** (t % 3 - 1), but=but)
        ours.step()
        torchs.step()
        all_close(a, b)
        states_close(ours, a, torchs, b)


@every_dtype
@every_case
def test_trajectory_with_options_that_change(case: Case, dtype: str) -> None:
    a = params(dtype)
    b = twins(a)
    late_a = params(dtype, [(2, 3), (4,)])
    late_b = twins(late_a)
    ours, torchs = case.ours(a), case.torchs(b)
    for t in range(20):
        for optimizer, late in ((ours, late_a), (torchs, late_b)):
            if t == 8:
                optimizer.add_param_group({"params": late, "lr": 0.01, "maximize": True})
            first = optimizer.param_groups[0]
            first["lr"] = 0.02 / (1 + t)
            first["weight_decay"] = 0.1 * (t % 2) if "weight_decay" in first else 0.0
            if "betas" in first:
                first["betas"] = (0.9 - 0.02 * t, 0.99 - 0.01 * t)
            if first.get("momentum", 0) > 0:
                first["momentum"] = 0.9 - 0.02 * t
            if t == 12:
                first["maximize"] = not first["maximize"]
        give([a, b], t)
        if t >= 8:
            give([late_a, late_b], 100 + t)
        ours.step()
        torchs.step()
        all_close(a + late_a, b + late_b)
        states_close(ours, a + late_a, torchs, b + late_b)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@every_case
def test_complex_params_are_pairs_of_real_ones(case: Case, dtype: str) -> None:
    a = [*params(dtype, [(3, 4), (), (0,)]), *(p.detach().t() for p in params(dtype, [(4, 3)]))]
    b = twins(a)
    # Except for NaN, if torch takes the square root of a number that rounding has made negative.
    more = {"eps": 0.1} if case.options.get("centered") else {}
    ours, torchs = case.ours(a, **more), case.torchs(b, **more)
    for t in range(12):
        give([a, b], t)
        ours.step()
        torchs.step()
    all_close(a, b)
    states_close(ours, a, torchs, b)


def test_switching_momentum_off_and_on() -> None:
    a = params()
    b = twins(a)
    case = Case("SGD", {"lr": 0.1, "momentum": 0.9})
    ours, torchs = case.ours(a), case.torchs(b)
    for t, momentum in enumerate([0.9, 0.9, 0, 0, 0.5, 0.5]):
        for optimizer in (ours, torchs):
            optimizer.param_groups[0]["momentum"] = momentum
        give([a, b], t)
        ours.step()
        torchs.step()
        all_close(a, b)
        states_close(ours, a, torchs, b)


def test_named_parameters() -> None:
    model = torch.nn.Linear(2, 2)
    opt = at.Adam(model.named_parameters())
    assert opt.param_groups[0]["param_names"] == ["weight", "bias"]
    model(torch.ones(1, 2)).sum().backward()
    opt.step()
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_states_are_matched_by_name() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    named = dict(model.named_parameters())
    first = at.Adam([{"params": list(named.items())[:2]}, {"params": list(named.items())[2:], "lr": 0.5}])
    model(torch.ones(1, 3)).sum().backward()
    first.step()
    saved = first.state_dict()
    backwards = list(named.items())[::-1]
    second = at.Adam([{"params": backwards[:1]}, {"params": backwards[1:]}])
    second.load_state_dict(saved)
    for p in named.values():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(first.state[p][key], second.state[p][key])
    # Options are matched by the order of groups, and the names are those of the current params.
    assert [g["lr"] for g in second.param_groups] == [g["lr"] for g in first.param_groups]
    assert second.param_groups[0]["param_names"] == ["1.bias"]
    # Like torch if a name differs: by order, with matching shapes.
    renamed = {**saved, "param_groups": copy.deepcopy(saved["param_groups"])}
    renamed["param_groups"][0]["param_names"][0] = "other"
    third = at.Adam([{"params": list(named.items())[:2]}, {"params": list(named.items())[2:]}])
    third.load_state_dict(renamed)
    assert torch.equal(third.state[named["0.weight"]]["exp_avg"], first.state[named["0.weight"]]["exp_avg"])
    with pytest.raises(ValueError, match="doesn't match the size"):
        second.load_state_dict(renamed)


# The rules that torch lacks


def numpy_of(t: Any) -> Any:
    if t.dtype == torch.bfloat16:
        return t.detach().view(torch.int16).numpy().view(pytest.importorskip("ml_dtypes").bfloat16)
    return t.detach().numpy()


def in_numpy(case: Case, arrays: list[Any]) -> adaptk.Optimizer:
    """The class of the same rule in adaptk.optim."""
    rule = RULES[OWN[case.name]]
    options = dict.fromkeys(rule.variant, True)
    if "nesterov" in options:
        options["momentum"] = rule.defaults()["momentum"]
    return getattr(adaptk, rule.class_names[0])(arrays, **{**options, **case.options})


OWN_OPTIONS: Mapping[str, list[dict[str, Any]]] = {
    "DeltaBarDelta": [{}, {"lr": 0.1, "kappa": 0.01, "phi": 0.2, "theta": 0.5, "eta_max": 0.2}, {"maximize": True}],
    "Lion": [{}, {"lr": 0.01, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.1}],
    "AdaBelief": [{}, {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.1, "decoupled": True}],
    "Yogi": [{}, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}],
    "Adan": [{}, {"lr": 0.01, "beta3": 0.9, "weight_decay": 0.1, "decoupled": True}],
    "RMSpropNesterov": [{}, {"lr": 0.01, "momentum": 0.5, "rho": 0.8, "weight_decay": 0.1}],
}


OWN_CASES = [Case(name, options) for name, several in OWN_OPTIONS.items() for options in several]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("case", OWN_CASES, ids=str)
def test_own_rules_match_adaptk_optim(case: Case, dtype: str) -> None:
    mine = params(dtype, SHAPES)
    arrays = [numpy_of(p).copy() for p in mine]
    opt = case.ours(mine)
    other = in_numpy(case, arrays)
    for t in range(10):
        give([mine], t, but=[] if t % 3 else [1])
        if t == 5:
            opt.param_groups[0]["lr"] = other.param_groups[0]["lr"] = 0.003
        opt.step()
        other.step([None if p.grad is None else numpy_of(p.grad) for p in mine])
        assert [numpy_of(p).tobytes() for p in mine] == [a.tobytes() for a in arrays]
    saved = other.state_dict()
    for i, p in enumerate(mine):
        for name, value in opt.state[p].items():
            want = saved[f"state.{i}.{name}"]
            if name == "step":
                assert float(value) == float(want)
            else:
                assert value.numpy().tobytes() == np.ascontiguousarray(want).tobytes(), name


@every_own
def test_own_rules_names_and_defaults(name: str) -> None:
    rule = RULES[OWN[name]]
    p = params()
    opt = getattr(at, name)(p)
    starts = {s.option for s in rule.states if s.option is not None}
    betas = {n: v for n, v in rule.defaults().items() if n.startswith("beta")}
    others = {n: v for n, v in rule.defaults().items() if n not in betas and n != "grad_scale"}
    together = {"betas": tuple(betas.values())} if betas else {}
    assert set(opt.param_groups[0]) == {"params", "fused", *others, *together, *starts}
    assert {k: opt.defaults[k] for k in (*others, *together)} == {**others, **together}
    signature = inspect.signature(getattr(at, name))
    added = {"state_dtype", "min_8bit_size", "seed", "param_format", "sparse"}
    added |= {"clip_norm", "skip_nonfinite", "zero_grad"}
    assert set(signature.parameters) == {"params", "convention", *added, *opt.defaults, *betas}
    for option, value in opt.defaults.items():
        assert signature.parameters[option].default == value, option
    give([p], 0)
    opt.step()
    assert list(opt.state[p[0]]) == ["step", *(s.name for s in rule.states)]
    for convention in rule.conventions:
        assert getattr(at, name)(params(), convention=convention).defaults["lr"] == rule.defaults(convention)["lr"]
    with pytest.raises(ValueError, match="convention"):
        getattr(at, name)(params(), convention="nobody")


@every_own
def test_own_rules_state_dict(name: str) -> None:
    a = params()
    b = twins(a)
    one, two = getattr(at, name)(a, lr=0.02), getattr(at, name)(b)
    for t in range(3):
        give([a], t)
        one.step()
    saved = copy.deepcopy(one.state_dict())
    del saved["param_groups"][0]["maximize"]
    two.load_state_dict(saved)
    assert two.param_groups[0]["maximize"] is False
    for p, q in zip(a, b, strict=True):
        q.data.copy_(p)
    give([a, b], 3)
    one.step()
    two.step()
    assert same_bits(a, b)


def test_lookahead() -> None:
    (w,) = params(shapes=[(4,)])
    opt = at.RMSpropNesterov([w], lr=0.1, momentum=0.5)
    for _ in range(3):
        before, velocity = raw(w), opt.state[w].get("velocity")
        with opt.lookahead():
            interim = w.detach().clone()
            opt.zero_grad()
            w.square().sum().backward()
        assert raw(w) == before
        if velocity is not None:
            torch.testing.assert_close(interim, w.detach() + 0.5 * velocity)
        torch.testing.assert_close(w.grad, 2 * interim)
        opt.step()
        assert raw(w) != before
