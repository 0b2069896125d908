"""The catalogue: files, formulas against oracles, and every interface."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import catalogue
from catalogue_oracles import OWN_DECAY, STEPS, hessian
from helpers import first_tier, same_bits

NAMES = list(catalogue.CLASSES)
# Besides the defaults: values with which every part of a formula has an effect.
OTHERS: dict[str, list[dict[str, float]]] = {
    "schedule_free_sgd": [{"lr": 0.1, "warmup": 5.0, "r": 1.0, "weight_decay": 0.1}],
    "schedule_free_adamw": [{"lr": 0.1, "warmup": 5.0, "r": 1.0, "weight_lr_power": 1.0, "weight_decay": 0.1}],
    "schedule_free_radam": [{"lr": 0.1, "silent_sgd_phase": False, "beta2": 0.9, "weight_decay": 0.1}],
    "ademamix": [{"warmup": 8.0, "beta3": 0.99, "alpha": 3.0}, {"warmup": 4.0}],
    "simplified_ademamix": [{"alpha": 10.0, "eps": 0.1}],
    "adopt": [{"clip_exponent": 0.333, "eps": 0.1, "lr": 0.1}],
    "ftrl": [{"l1": 0.5, "l2": 0.3, "beta": 1.0, "lr": 0.5}],
    "qhadam": [{"nu2": 0.5, "beta1": 0.9}],
    "madgrad": [{"momentum": 0.0, "lr": 0.1}],
    "kate": [{"delta": 0.1, "lr": 0.1}],
    "adabound": [{"gamma": 0.5, "final_lr": 0.5, "lr": 0.1}],
    "amsbound": [{"gamma": 0.5, "final_lr": 0.5, "lr": 0.1}],
    "pid": [{"dampening": 0.5}],
    "adamod": [{"beta3": 0.5, "lr": 0.1}],
    "focus": [{"gamma": 0.4, "weight_decay": 0.1, "lr": 0.1}],
    "msvag": [{"beta": 0.5, "lr": 0.1}],
    "pnm": [{"beta0": 0.5, "lr": 0.1}],
    "srmm": [{"memory": 4.0, "beta": 0.7, "lr": 0.1}],
    "smorms3": [{"lr": 0.5}],
    "lamb": [{"lr": 0.1, "eps": 0.1, "weight_decay": 0.0}],
    "lars": [{"lr": 1.0, "momentum": 0.5, "trust": 0.1, "weight_decay": 0.0}],
    "stable_adamw": [{"lr": 0.1, "beta2": 0.5, "eps": 0.1}],
    "prodigy": [{"d0": 0.1, "d_coef": 2.0}, {"d0": 0.01, "growth_rate": 1.1, "use_bias_correction": True}],
    "dadapt_adam": [{"d0": 0.1}, {"d0": 0.01, "growth_rate": 1.1, "use_bias_correction": True}],
    "dog": [{"reps_rel": 0.1, "eps": 1.0}],
    "dowg": [{"d0": 1.0, "eps": 1.0, "lr": 0.5}],
    "fromage": [{"lr": 0.5}],
    "amsgrad_corrected": [{"lr": 0.1, "beta2": 0.5, "eps": 0.1, "eps_root": 0.2}],
    "radam_corrected": [
        {"lr": 0.1, "beta2": 0.9, "eps": 0.1, "eps_root": 0.2},
        {"beta2": 0.9, "threshold": 7.0},
        {"beta2": 0.8, "threshold": 1.0},
    ],
    "rprop_delayed": [{"lr": 0.1, "eta_plus": 1.5, "eta_minus": 0.25, "step_max": 0.3, "step_min": 0.05}],
    "novograd": [{"lr": 0.1, "eps": 0.1, "beta2": 0.5}],
    "adafactor": [
        {"lr": 0.5, "clip_threshold": 0.5, "relative_step": False},
        {"beta2_decay": -0.5, "scale_parameter": False, "floor": True, "eps1": 0.3},
    ],
    "adafactor_momentum": [{"lr": 0.5, "beta1": 0.5, "relative_step": False}],
    "adam_atan2": [{"lr": 0.1, "a": 0.7, "b": 2.0, "beta1": 0.5}],
    "adamg": [{"lr": 0.3, "beta2": 0.9, "beta3": 0.5, "eps": 0.1, "scale": 0.5, "power": 0.7}],
    "diffgrad": [{"lr": 0.1, "beta2": 0.9, "eps": 0.1}],
    "cocob": [{"lr": 0.5, "alpha": 3.0, "eps": 0.5}],
    "came": [{"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "beta3": 0.8, "eps1": 0.1, "eps2": 0.2, "clip_threshold": 0.5}],
    "sm3": [{"eps": 0.1}],
    "sm3_momentum": [{"momentum": 0.5}],
    "adam_mini": [{"lr": 0.1, "beta1": 0.5, "beta2": 0.7, "eps": 0.1}],
    "adam_mini_tensor": [{"lr": 0.1, "beta1": 0.5, "beta2": 0.7, "eps": 0.1}],
    "dadapt_sgd": [{"d0": 0.1, "momentum": 0.5}, {"d0": 0.01, "growth_rate": 1.1}],
}
STEPS_TAKEN = 12


def gradients(p: np.ndarray, t: int) -> np.ndarray:
    return (0.3 * p + np.sin(np.arange(p.size) + 2.0 * t)).astype(p.dtype)


def start(dtype: Any = np.float64, size: int = 150) -> np.ndarray:
    return np.random.default_rng(3).normal(size=size).astype(dtype)


def fill(opt: Any, p: np.ndarray, t: int) -> None:
    """Sets the states that the caller provides."""
    for name, state in opt.state[0].items():
        if name == "hessian":
            state[:] = hessian(p, t)


def path(name: str, dtype: Any, options: dict[str, float]) -> list[np.ndarray]:
    p = start(dtype)
    opt = adaptk.optimizer_for(name, [p], **options)
    found = []
    for t in range(1, STEPS_TAKEN + 1):
        fill(opt, p, t)
        opt.step([gradients(p, t)])
        found.append(p.copy())
    return found


def test_the_files_are_up_to_date() -> None:
    from adaptk.catalogue.__main__ import HERE, files

    made = dict(files())
    for file, data in made.items():
        assert file.read_bytes() == data, f"{file.name}: run python -m adaptk.catalogue"
    assert {f for f in made if f.suffix == ".rule"} == set((HERE / "programs").glob("*.rule"))


def test_every_rule_has_an_oracle() -> None:
    assert set(STEPS) == set(NAMES)


@pytest.mark.parametrize(
    ("name", "options"),
    [(n, o) for n in NAMES for o in ({}, {"weight_decay": 0.1, "decoupled": True}, *OTHERS.get(n, []))],
)
def test_the_formula_matches_the_oracle(name: str, options: dict[str, float]) -> None:
    rule = adaptk.rules()[name]
    h = SimpleNamespace(**{**rule.defaults(), **options})
    p = start()
    step = STEPS[name](h, p)
    want = []
    for t in range(1, STEPS_TAKEN + 1):
        g = gradients(p, t)
        if name == "adopt" and t == 1:
            decay = 0.0  # nothing moves
        else:
            decay = h.lr * h.weight_decay if h.decoupled and name not in OWN_DECAY else 0.0
        p = step(p * (1 - decay), g + (0.0 if h.decoupled else h.weight_decay) * p, t)
        want.append(p)
    found = path(name, np.float64, options)
    np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-11)
    # Estimates of the step size start far below it.
    least = 1e-5 if rule.reduces != "all" or {"d0", "reps_rel"} & options.keys() else 1e-7
    assert np.abs(np.subtract(found[-1], start())).max() > least
    # The same in float32, if no sign depends on the last place.
    near = np.isclose(path(name, np.float32, options)[-1], want[-1], rtol=2e-3, atol=2e-4)
    assert near.mean() > 0.98


@pytest.mark.parametrize("name", NAMES)
def test_every_interface_has_it(name: str) -> None:
    rule = adaptk.rules()[name]
    (class_name,) = rule.class_names
    assert class_name == catalogue.CLASSES[name]
    cls = getattr(adaptk, class_name)
    assert cls is getattr(adaptk.optim, class_name)
    assert name in dir(adaptk.ops)
    assert class_name in dir(adaptk)
    assert name in adaptk.rules(catalogue=True)
    p, q = start(np.float32), start(np.float32)
    opt = cls([p], lr=0.01)
    states = [s.copy() for s in opt.state[0].values()]
    carried = {c: rule.defaults()[c] for c in rule.carried}
    for t in (1, 2, 3):
        g = gradients(p, t)
        opt.step([g])
        if rule.reduces == "all":
            with pytest.raises(TypeError, match="a function keeps none; use its optimizer class"):
                getattr(adaptk.ops, name)(q, g, *states, step=t, lr=0.01, **carried)
            continue
        getattr(adaptk.ops, name)(q, g, *states, step=t, lr=0.01, **carried)
        carried = {c: opt.param_groups[0][c] for c in carried}
    assert rule.reduces == "all" or same_bits(p, q)
    again = pickle.loads(pickle.dumps((p, opt)))
    for held, of in ((p, opt), again):
        of.step([gradients(held, 4)])
    assert same_bits(p, again[0])
    assert type(again[1]) is cls


@pytest.mark.parametrize("name", NAMES)
def test_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    import adaptk.torch

    p = start(np.float32)
    w = torch.nn.Parameter(torch.from_numpy(p.copy()))
    opt, cls = adaptk.optimizer_for(name, [p], lr=0.01), getattr(adaptk.torch, catalogue.CLASSES[name])
    other = cls([w], lr=0.01)
    for t in (1, 2, 3):
        g = gradients(p, t)
        opt.step([g])
        w.grad = torch.from_numpy(g)
        if t == 3:  # a state dict has everything
            saved, other = other.state_dict(), cls([w], lr=0.5)
            other.load_state_dict(saved)
        other.step()
    assert same_bits(p, w.detach().numpy())


@pytest.mark.parametrize("name", first_tier(NAMES, "ademamix", "schedule_free_adamw"))
def test_jax(name: str) -> None:
    jax = pytest.importorskip("jax")
    import adaptk.jax

    p = start(np.float32)
    opt = adaptk.optimizer_for(name, [p], lr=0.01)
    other = getattr(adaptk.jax, name)(0.01)
    w = [jax.numpy.asarray(p)]
    state = other.init(w)
    step = jax.jit(other.apply)
    for t in (1, 2, 3):
        g = gradients(p, t)
        opt.step([g])
        w, state = step(w, [jax.numpy.asarray(g)], state)
    assert same_bits(p, np.asarray(w[0]))


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match=r"did you mean 'AdEMAMix'"):
        _ = adaptk.Ademamix
    with pytest.raises(AttributeError, match=r"did you mean 'ademamix'"):
        _ = adaptk.ops.adema_mix
    with pytest.raises(ValueError, match=r"did you mean 'ademamix'"):
        adaptk.optimizer_for("adema_mix", [np.ones(2)])
    with pytest.raises(KeyError):
        adaptk.rules()["adema_mix"]
    with pytest.raises(ValueError, match="'signum' is a rule of the library"):
        adaptk.rule(name="signum", lr=0.1)(lambda p, g, h, t: p)
    assert "schedule_free_average" not in adaptk.rules(catalogue=True)
    assert not set(NAMES) & set(adaptk.rules())


def test_sophias_helper_is_an_average() -> None:
    hessian, estimate = np.ones(3), np.full(3, 2.0)
    adaptk.ops.sophia_hessian(hessian, estimate, step=1, lr=0.25)
    assert (hessian == 1.25).all()
