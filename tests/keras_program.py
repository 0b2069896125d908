"""test_keras.py runs this in a process for each of Keras's backends: ``python keras_program.py CASE``."""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import adaptk
import adaptk.keras as ak
import keras
import numpy as np
import pytest
from adaptk import catalogue

BACKEND = keras.backend.backend()
SHAPES = ((3, 4), (5,), ())
CARRIED = ("AdaBound", "AMSBound", "ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeRAdam")
ESTIMATES = ("Prodigy", "DAdaptAdam", "DAdaptSGD", "DoG", "DoWG")
THEIRS = {
    "Adadelta": [{}, {"rho": 0.9}],
    "Adagrad": [{"learning_rate": 0.1}, {"initial_accumulator_value": 0.2, "epsilon": 1e-3}],
    "Adam": [{}, {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}, {"amsgrad": True}, {"weight_decay": 0.1}],
    "AdamW": [{"learning_rate": 0.01}, {"weight_decay": 0.1}],
    "Adamax": [{"beta_1": 0.8}],
    "Lion": [{"learning_rate": 0.01, "weight_decay": 0.1}],
    "Nadam": [{}, {"beta_1": 0.8}],
    "RMSprop": [{}, {"rho": 0.8, "momentum": 0.5}, {"centered": True}, {"centered": True, "momentum": 0.5}],
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
}


def variables(seed: int = 0, dtype: str = "float32") -> list[Any]:
    rng = np.random.default_rng(seed)
    return [keras.Variable(rng.standard_normal(s), dtype=dtype, name=f"v{i}") for i, s in enumerate(SHAPES)]


def gradients(step: int) -> list[Any]:
    rng = np.random.default_rng(100 + step)
    return [keras.ops.convert_to_tensor(rng.standard_normal(s).astype(np.float32)) for s in SHAPES]


def array(x: Any) -> Any:
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(x)))


def run(opt: Any, steps: int = 5, first: int = 0, of: Any = None) -> list[Any]:
    params = of or variables()
    for t in range(first, first + steps):
        opt.apply(gradients(t), params)
    return [array(v) for v in params]


def close(a: list[Any], b: list[Any], tolerance: float = 2e-5) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def same(a: list[Any], b: list[Any]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def keras_classes() -> None:
    for name, several in THEIRS.items():
        ours, theirs = getattr(ak, name), getattr(keras.optimizers, name)
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
        wanted = [(p.name, p.default) for p in inspect.signature(theirs).parameters.values() if p.kind in kinds]
        have = [(p.name, p.default) for p in inspect.signature(ours).parameters.values() if p.kind in kinds]
        assert have == wanted, name
        for options in several:
            a, b = ours(**options), theirs(**options)
            close(run(a), run(b))
            assert int(a.iterations) == 5
            # Keras divides by u + eps instead of max(u, eps).
            config, known = a.get_config(), b.get_config()
            for key in known:
                if key not in ("name", "epsilon"):
                    assert config[key] == known[key], (name, key, config[key], known[key])
    close(run(ak.Adam(0.01, 0.8, 0.9)), run(keras.optimizers.Adam(0.01, 0.8, 0.9)))


def library_bits() -> None:
    """Steps of each class have the library's bits, also after a config and weights are loaded."""
    names = [*ak.__all__, *("AdEMAMix", "ADOPT", "MADGRAD", "Kate"), *CARRIED, *ESTIMATES]
    theirs = {"Adadelta": "AdaDelta", "Adagrad": "AdaGrad", "Adamax": "AdaMax", "Nadam": "NAdam", "RMSprop": "RMSProp"}
    for name in names:
        cls = getattr(ak, name)
        for narrow in ("float32", "bfloat16"):
            if narrow == "bfloat16" and BACKEND == "numpy":
                continue
            params = variables(dtype=narrow)
            opt = cls(learning_rate=0.0625, weight_decay=0.25)
            beside = [np.array(array(keras.ops.cast(v, "float32"))) for v in params]
            of_library = getattr(adaptk, theirs.get(name, name))
            # Keras's default, if the rule has no "keras" convention.
            given = {"eps": 1e-7} if name == "Adamax" else {}
            native = of_library(
                beside, lr=0.0625, weight_decay=0.25, decoupled=True, convention=opt.convention, **given
            )
            for t in range(3):
                opt.apply(gradients(t), params)
                native.step([array(g) for g in gradients(t)])
            if narrow == "float32":
                same([array(v) for v in params], beside)
            for v in opt.variables[2:]:
                assert str(v.dtype) == ("int32" if v.name == "carried" else "float32"), (name, v.dtype)
            twin = cls.from_config(opt.get_config())
            copies = [keras.Variable(keras.ops.copy(v.value), dtype=v.dtype) for v in params]
            twin.build(copies)
            twin.set_weights([array(keras.ops.cast(v, "float32")) if "float" in str(v.dtype) else array(v)
                              for v in opt.variables])  # fmt: skip
            same(run(opt, 2, 3, params), run(twin, 2, 3, copies))


def estimates() -> None:
    """Steps that depend on all variables at once, also on those without weight decay, have the library's bits."""
    params = variables()
    opt = ak.Prodigy(learning_rate=0.5, weight_decay=0.25, d0=0.01)
    opt.exclude_from_weight_decay(var_list=params[1:2])
    beside = [np.array(array(v)) for v in params]
    groups = [{"params": [p], "weight_decay": 0.25 if i != 1 else 0.0} for i, p in enumerate(beside)]
    native = adaptk.Prodigy(groups, lr=0.5, d0=0.01)
    before = None
    for _ in range(4):
        opt.apply(gradients(0), params)
        native.step([array(g) for g in gradients(0)])
        same([array(v) for v in params], beside)
        (carried,) = (array(v).view(np.float64)[:, 0] for v in opt.variables if v.name == "carried")
        assert carried.tolist() == [native.param_groups[0][c] for c in opt.rule.carried]
        assert before is None or carried[0] >= before
        before = carried[0]
    assert before > 0.01
    refused(lambda: opt.update_step(gradients(0)[0], params[0], 0.5), RuntimeError, "use apply()")


def every_rule_of_the_catalogue() -> None:
    for name in catalogue.CLASSES.values():
        opt = getattr(ak, name)(learning_rate=0.01)
        before = run(opt, 0)
        # RAdam's first steps may be zero.
        after = run(opt, 8)
        assert all(np.isfinite(x).all() for x in after)
        assert any((x != y).any() for x, y in zip(before, after, strict=True)), name


def numbers_that_are_carried() -> None:
    """Under a schedule: the bits of the library's objects, and the values for evaluation."""
    rates = [0.5, 0.25, 0.25, 0.125, 0.5, 0.0625]
    for name in CARRIED:
        rate = keras.optimizers.schedules.PiecewiseConstantDecay([0, 2, 3, 4], rates[:2] + rates[3:])
        opt, params = getattr(ak, name)(learning_rate=rate), variables()
        beside = [np.array(array(v)) for v in params]
        native = getattr(adaptk, name)(beside, lr=lambda t: rates[t - 1])
        for t in range(6):
            opt.apply(gradients(t), params)
            native.step([array(g) for g in gradients(t)])
        same([array(v) for v in params], beside)
        if name.startswith("ScheduleFree"):
            same(opt.evaluation_values(params), native.evaluation_params())
            assert any((x != y).any() for x, y in zip(opt.evaluation_values(params), beside, strict=True))
        else:
            refused(lambda o=opt, p=params: o.evaluation_values(p), ValueError, "with the variables themselves")
        refused(lambda o=opt, p=params: o.update_step(gradients(0)[0], p[0], 0.1), RuntimeError, "use apply()")
    refused(lambda: ak.ScheduleFreeSGD().evaluation_values(variables()), RuntimeError, "call build() or apply()")


def loop_of_keras() -> None:
    """Clipping, averages, accumulation, decay of some variables, constraints, schedules, overwriting."""
    rate = keras.optimizers.schedules.CosineDecay(0.1, 10)
    for options in (
        {"clipnorm": 0.5},
        {"global_clipnorm": 0.5},
        {"clipvalue": 0.1},
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
        {"gradient_accumulation_steps": 2},
        {"loss_scale_factor": 4.0},
        {"learning_rate": rate},
        {"learning_rate": lambda: 0.02},
    ):
        if BACKEND == "numpy" and "gradient_accumulation_steps" in options:
            continue
        close(run(ak.Adam(**options)), run(keras.optimizers.Adam(**options)))
    for cls in (ak.AdamW, keras.optimizers.AdamW):
        opt = cls(0.1, weight_decay=0.5)
        opt.exclude_from_weight_decay(var_names=["v1"])
        params = variables()
        before = [array(v) for v in params]
        opt.apply([keras.ops.zeros(s) for s in SHAPES], params)
        np.testing.assert_allclose(array(params[0]), before[0] * 0.95, rtol=1e-6)
        same([array(params[1])], [before[1]])
    averaged = ak.SGD(0.5, use_ema=True, ema_momentum=0.5)
    params = variables()
    run(averaged, 2, 0, params)
    averaged.finalize_variable_values(params)
    theirs = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    others = variables()
    run(theirs, 2, 0, others)
    theirs.finalize_variable_values(others)
    close([array(v) for v in params], [array(v) for v in others])
    # A gradient that overwrites its variable.
    params = variables()
    params[1].overwrite_with_gradient = True
    opt = ak.Adam()
    opt.apply(gradients(0), params)
    same([array(params[1])], [array(gradients(0)[1])])
    # The rate may be changed.
    opt = ak.SGD(1.0)
    opt.learning_rate = 0.25
    (v,) = [keras.Variable(np.ones(2, np.float32))]
    opt.apply([keras.ops.ones(2)], [v])
    same([array(v)], [np.full(2, 0.75, np.float32)])


def stateless() -> None:
    """The caller's tensors do not change."""
    for opt in (ak.AdamW(0.1), ak.SGD(0.1, momentum=0.9)):
        params = variables()
        opt.build(params)
        kept = [keras.ops.copy(v.value) for v in params]
        state = [keras.ops.copy(v.value) for v in opt.variables]
        new, after = opt.stateless_apply(state, gradients(0), kept)
        same([array(x) for x in kept], [array(v) for v in params])
        assert int(array(opt.iterations)) == 0
        opt.apply(gradients(0), params)
        same([array(x) for x in new], [array(v) for v in params])
        same([array(x) for x in after], [array(v) for v in opt.variables])


def refused(call: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        call()


def errors() -> None:
    refused(lambda: ak.Adam(betas=(0.9, 0.99)), TypeError, "'betas'")
    refused(lambda: ak.Adam(beta_1=1.5), ValueError, "is not in [0, 1)")
    refused(lambda: ak.Adam(learning_rate=-1.0), ValueError, "lr: -1 is not in")
    refused(lambda: ak.Adam(weight_decay=-1.0), ValueError, "weight_decay: -1 is not in")
    refused(lambda: ak.SGD(0.1, 0.9, momentum=0.9), TypeError, "multiple values for argument 'momentum'")
    refused(lambda: ak.SGD(nesterov=True), ValueError, "nesterov: needs a momentum")
    refused(lambda: ak.RMSprop(nesterov=True), ValueError, "nesterov: its gradients are taken at another point")
    refused(lambda: ak.Adamm, AttributeError, "did you mean 'Adam")


def fit_and_save() -> None:
    def trained(opt: Any, epochs: int = 3, model: Any = None) -> Any:
        if model is None:
            keras.utils.set_random_seed(0)
            model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
            model.compile(optimizer=opt, loss="mse")
        x, y = np.linspace(-1, 1, 64, dtype=np.float32).reshape(16, 4), np.ones((16, 1), np.float32)
        history = model.fit(x, y, batch_size=4, epochs=epochs, verbose=0, shuffle=False)
        return model, history.history["loss"]

    model, losses = trained(ak.Adam(0.01))
    _, theirs = trained(keras.optimizers.Adam(0.01))
    np.testing.assert_allclose(losses, theirs, rtol=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        again = keras.models.load_model(path)
    assert type(again.optimizer) is ak.Adam
    assert again.optimizer.get_config() == model.optimizer.get_config()
    _, first = trained(None, 1, model)
    _, second = trained(None, 1, again)
    np.testing.assert_allclose(first, second, rtol=1e-6)
    assert keras.optimizers.deserialize(keras.optimizers.serialize(ak.Lion(0.01))).get_config()["beta_1"] == 0.9
    # Carried numbers are saved too. Each run compiles its training function again.
    model, losses = trained(ak.ScheduleFreeAdamW(0.05))
    assert losses[-1] < losses[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        again = keras.models.load_model(path)
    carried = [array(v) for m in (model, again) for v in m.optimizer.variables if v.name == "carried"]
    same(carried[:1], carried[1:])
    assert carried[0].any()
    _, first = trained(None, 1, model)
    _, second = trained(None, 1, again)
    np.testing.assert_allclose(first, second, rtol=1e-6)
    _, losses = trained(keras.optimizers.LossScaleOptimizer(ak.Adam(0.01)))
    np.testing.assert_allclose(losses, theirs, rtol=1e-3)


if __name__ == "__main__":
    for case in sys.argv[1:]:
        globals()[case]()
