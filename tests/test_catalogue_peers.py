"""The catalogue against other implementations, and their differences from the papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest

pytestmark = pytest.mark.full

Grads = Callable[[np.ndarray, int], np.ndarray]


def gradients(p: np.ndarray, t: int) -> np.ndarray:
    return 0.3 * p + np.sin(np.arange(p.size) + 2.0 * t)


def start() -> np.ndarray:
    return np.random.default_rng(3).normal(size=40)


def ours(name: str, options: dict[str, Any], steps: int = 15, grads: Grads = gradients) -> np.ndarray:
    p = start()
    opt = adaptk.optimizer_for(name, [p], **options)
    for t in range(1, steps + 1):
        opt.step([grads(p, t)])
    return p


def of_torch(make: Callable[[Any], Any], steps: int = 15, matrix: bool = False, grads: Grads = gradients) -> np.ndarray:
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.from_numpy(start()[None] if matrix else start()))
    opt = make([p])
    if hasattr(opt, "train"):
        opt.train()
    for t in range(1, steps + 1):
        p.grad = torch.from_numpy(grads(p.detach().numpy(), t))
        opt.step()
    found: np.ndarray = p.detach().numpy()
    return found[0] if matrix else found


# Rule, our options, those of pytorch-optimizer, whose sources were compared with the papers.
ZOO: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    # Its default bound is t^0.25, and it decays in the first step.
    ("adopt", {"lr": 0.1}, "ADOPT", {"lr": 0.1, "clip_lambda": lambda t: (t - 1) ** 0.25}),
    # It decays after the step.
    ("laprop", {"lr": 0.1}, "LaProp", {"lr": 0.1}),
    ("tiger", {"lr": 0.1}, "Tiger", {"lr": 0.1}),
    ("qhm", {"lr": 0.1, "beta": 0.9, "nu": 0.7}, "QHM", {"lr": 0.1, "momentum": 0.9, "nu": 0.7}),
    ("kate", {"lr": 0.1, "delta": 0.1}, "Kate", {"lr": 0.1, "delta": 0.1}),
    ("aggmo", {"lr": 0.01}, "AggMo", {"lr": 0.01}),
    ("pid", {"lr": 0.01}, "PID", {"lr": 0.01, "momentum": 0.9}),
    ("accsgd", {"lr": 0.01}, "AccSGD", {"lr": 0.01}),
    ("madgrad", {"lr": 0.1}, "MADGRAD", {"lr": 0.1}),
    ("ftrl", {"lr": 0.5, "l1": 0.5, "l2": 0.3, "beta": 1.0, "initial_accumulator": 0.0}, "FTRL",
     {"lr": 0.5, "lambda_1": 0.5, "lambda_2": 0.3, "beta": 1.0}),
    ("adabound", {"lr": 0.1, "gamma": 0.1}, "AdaBound", {"lr": 0.1, "gamma": 0.1}),
    ("amsbound", {"lr": 0.1, "gamma": 0.1}, "AdaBound", {"lr": 0.1, "gamma": 0.1, "ams_bound": True}),
    ("grams", {"lr": 0.1}, "Grams", {"lr": 0.1}),
    ("qhadam", {"lr": 0.1, "beta1": 0.9, "nu1": 0.7, "nu2": 0.9}, "QHAdam", {"lr": 0.1, "nus": (0.7, 0.9)}),
    ("ademamix", {"lr": 0.1}, "AdEMAMix", {"lr": 0.1}),
    ("signum", {"lr": 0.1}, "SignSGD", {"lr": 0.1}),
    ("adamod", {"lr": 0.1}, "AdaMod", {"lr": 0.1, "betas": (0.9, 0.999, 0.999)}),
    # It adds eps to the root before that is corrected.
    ("diffgrad", {"lr": 0.1, "eps": 1e-20}, "DiffGrad", {"lr": 0.1, "eps": 1e-20}),
    ("adamg", {"lr": 0.5}, "AdamG", {"lr": 0.5}),
    ("padam", {"lr": 0.1}, "PAdam", {"lr": 0.1, "ams_bound": True, "partial": 0.25}),
    ("exadam", {"lr": 0.1}, "EXAdam", {"lr": 0.1}),
    ("ano", {"lr": 0.01}, "Ano", {"lr": 0.01}),
    ("focus", {"lr": 0.01, "weight_decay": 0.1}, "FOCUS", {"lr": 0.01, "weight_decay": 0.1}),
    ("msvag", {"lr": 0.1}, "MSVAG", {"lr": 0.1}),
    ("pnm", {"lr": 0.1}, "PNM", {"lr": 0.1}),
    # It adds eps before it divides by the root of the correction.
    ("adapnm", {"lr": 0.1, "eps": 1e-20}, "AdaPNM", {"lr": 0.1, "eps": 1e-20}),
    ("srmm", {"lr": 0.1, "memory": 4.0}, "SRMM", {"lr": 0.1, "memory_length": 4}),
    ("schedule_free_sgd", {"lr": 0.1}, "ScheduleFreeSGD", {"lr": 0.1, "momentum": 0.9}),
    ("lars", {"lr": 1.0, "trust": 0.1, "weight_decay": 0.1}, "LARS",
     {"lr": 1.0, "trust_coefficient": 0.1, "weight_decay": 0.1}),
    ("stable_adamw", {"lr": 0.1, "eps": 1e-3}, "StableAdamW", {"lr": 0.1, "eps": 1e-3, "kahan_sum": False}),
    ("novograd", {"lr": 0.01}, "NovoGrad", {"lr": 0.01}),
    ("schedule_free_adamw", {"lr": 0.1, "weight_decay": 0.1}, "ScheduleFreeAdamW", {"lr": 0.1, "weight_decay": 0.1}),
    ("schedule_free_radam", {"lr": 0.1, "beta2": 0.9}, "ScheduleFreeRAdam", {"lr": 0.1, "betas": (0.9, 0.9)}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "theirs", "their_options"), ZOO, ids=[z[0] for z in ZOO])
def test_pytorch_optimizer(name: str, options: dict[str, Any], theirs: str, their_options: dict[str, Any]) -> None:
    library = pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed")
    # Its LARS does not scale vectors.
    want = of_torch(lambda p: getattr(library, theirs)(p, **their_options), matrix=name == "lars")
    np.testing.assert_allclose(ours(name, options), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["adamw", "lion"])
def test_mars(kind: str) -> None:
    library = pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed")

    # In the first step it uses 0 as the previous gradient; in the paper there is no change. It divides corrected
    # gradients by their norm if that is above 1, and adds eps before it divides by the root of the correction.
    def small(p: np.ndarray, t: int) -> np.ndarray:
        return 0.05 * gradients(p, t) * (t > 1)

    theirs = {"lr": 0.01, "betas": (0.9, 0.99), "gamma": 0.1, "eps": 1e-20, "weight_decay": 0.0, "optimize_1d": True}
    want = of_torch(lambda p: library.MARS(p, mars_type=kind, **theirs), grads=small)
    options = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "gamma": 0.1, "eps": 1e-20}
    if kind == "lion":
        del options["beta2"], options["eps"]
    np.testing.assert_allclose(ours(f"mars_{kind}", options, grads=small), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "options", "theirs", "their_options"),
    [
        ("schedule_free_sgd", {"lr": 0.5, "weight_decay": 0.1, "r": 1.0}, "SGDScheduleFree",
         {"lr": 0.5, "weight_decay": 0.1, "r": 1.0}),
        ("schedule_free_sgd", {"lr": 0.5, "warmup": 5.0}, "SGDScheduleFree", {"lr": 0.5, "warmup_steps": 5}),
        ("schedule_free_adamw", {"lr": 0.1, "weight_decay": 0.1, "warmup": 5.0}, "AdamWScheduleFree",
         {"lr": 0.1, "weight_decay": 0.1, "warmup_steps": 5}),
        ("schedule_free_radam", {"lr": 0.1, "weight_decay": 0.1}, "RAdamScheduleFree",
         {"lr": 0.1, "weight_decay": 0.1}),
        ("schedule_free_radam", {"lr": 0.1, "beta2": 0.9, "silent_sgd_phase": False}, "RAdamScheduleFree",
         {"lr": 0.1, "betas": (0.9, 0.9), "silent_sgd_phase": False}),
    ],
)  # fmt: skip
def test_schedule_free_of_its_authors(name: str, options: Any, theirs: str, their_options: Any) -> None:
    library = pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    want = of_torch(lambda p: getattr(library, theirs)(p, foreach=False, **their_options))
    np.testing.assert_allclose(ours(name, options), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "options", "theirs", "their_options"),
    [
        # It multiplies eps by the next estimate.
        ("prodigy", {"d0": 0.01, "eps": 1e-16, "weight_decay": 0.1}, "prodigyopt.Prodigy",
         {"d0": 0.01, "eps": 1e-16, "weight_decay": 0.1}),
        ("prodigy", {"d0": 0.01, "eps": 1e-16, "use_bias_correction": True, "growth_rate": 1.1}, "prodigyopt.Prodigy",
         {"d0": 0.01, "eps": 1e-16, "use_bias_correction": True, "growth_rate": 1.1}),
        ("dadapt_adam", {"d0": 0.01, "weight_decay": 0.1}, "dadaptation.DAdaptAdam",
         {"d0": 0.01, "weight_decay": 0.1, "decouple": True}),
        ("dadapt_sgd", {"d0": 0.01, "momentum": 0.5}, "dadaptation.DAdaptSGD", {"d0": 0.01, "momentum": 0.5}),
        ("stable_adamw", {"lr": 0.1, "weight_decay": 0.1}, "optimi.StableAdamW", {"lr": 0.1, "weight_decay": 0.1}),
    ],
)  # fmt: skip
def test_step_sizes(name: str, options: Any, theirs: str, their_options: Any) -> None:
    module, cls = theirs.split(".")
    library = pytest.importorskip(module, reason=f"{module} is not installed")
    want = of_torch(lambda p: getattr(library, cls)(p, **their_options), 40)
    np.testing.assert_allclose(ours(name, options, 40), want, rtol=1e-9, atol=1e-11)


OPTAX: list[tuple[str, dict[str, Any], Callable[[Any], Any]]] = [
    ("ademamix", {"lr": 0.1, "weight_decay": 0.1}, lambda o: o.contrib.ademamix(0.1, weight_decay=0.1)),
    ("simplified_ademamix", {"lr": 0.1, "alpha": 5.0}, lambda o: o.contrib.simplified_ademamix(0.1, alpha=5.0)),
    ("adopt", {"lr": 0.1}, lambda o: o.contrib.adopt(0.1)),
    ("madgrad", {"lr": 0.1}, lambda o: o.contrib.madgrad(0.1)),
    ("nadamw", {"lr": 0.1, "weight_decay": 0.1}, lambda o: o.nadamw(0.1, weight_decay=0.1)),
    ("signsgd", {"lr": 0.1}, lambda o: o.sign_sgd(0.1)),
    ("optimistic_sgd", {"lr": 0.1, "beta": 0.5}, lambda o: o.optimistic_gradient_descent(0.1, beta=0.5)),
    ("optimistic_adam", {"lr": 0.1}, lambda o: o.optimistic_adam_v2(0.1, nesterov=False)),
    ("lamb", {"lr": 0.1, "weight_decay": 0.1}, lambda o: o.lamb(0.1, weight_decay=0.1)),
    # Its norm of the gradient includes the decay, so there is none here.
    ("lars", {"lr": 1.0, "trust": 0.1}, lambda o: o.lars(1.0, trust_coefficient=0.1)),
    ("fromage", {"lr": 0.1}, lambda o: o.fromage(0.1)),
    (
        "novograd",
        {"lr": 0.01, "beta1": 0.9, "beta2": 0.25, "eps": 1e-6, "weight_decay": 0.1},
        lambda o: o.novograd(0.01, weight_decay=0.1),
    ),
    ("dog", {"reps_rel": 0.01}, lambda o: o.contrib.dog(1.0, ("heuristic", 0.01))),
    ("amsgrad_corrected", {"lr": 0.1, "eps_root": 1e-3}, lambda o: o.amsgrad(0.1, eps_root=1e-3)),
    ("radam_corrected", {"lr": 0.1, "eps_root": 1e-3}, lambda o: o.radam(0.1, eps_root=1e-3)),
    ("radam_corrected", {"lr": 0.1, "beta2": 0.9, "threshold": 6.0}, lambda o: o.radam(0.1, b2=0.9, threshold=6.0)),
    ("rprop_delayed", {"lr": 0.1, "step_max": 0.2}, lambda o: o.rprop(0.1, max_step_size=0.2)),
    ("dowg", {}, lambda o: o.contrib.dowg(1.0)),
    ("cocob", {"alpha": 5.0}, lambda o: o.contrib.cocob(alpha=5.0)),
    # It corrects the bias.
    (
        "prodigy",
        {"d0": 0.01, "eps": 1e-16, "use_bias_correction": True},
        lambda o: o.contrib.prodigy(1.0, estim_lr0=0.01, eps=1e-16),
    ),
    ("schedule_free_sgd", {"lr": 0.1}, lambda o: o.contrib.schedule_free_sgd(0.1)),
    ("schedule_free_adamw", {"lr": 0.1}, lambda o: o.contrib.schedule_free_adamw(0.1)),
]


SHAPES = ((6, 5), (2, 3, 4), (4, 1), (2, 3, 3, 3), (7,))


def matrices(
    make: Callable[[Any], Any], of: str, steps: int = 15, scale: float = 1.0, shapes: Any = SHAPES
) -> list[np.ndarray]:
    """Params of several shapes after steps of torch's optimizer or, depending on `of`, of ours on NumPy arrays."""
    torch = pytest.importorskip("torch")
    params = [np.random.default_rng(i).normal(size=s) for i, s in enumerate(shapes)]
    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    opt = make(params if of == "numpy" else tensors)
    for t in range(1, steps + 1):
        now = params if of == "numpy" else [w.detach().numpy() for w in tensors]
        grads = [scale * gradients(p.reshape(-1), t).reshape(p.shape) for p in now]
        if of == "numpy":
            opt.step(grads)
            continue
        for w, g in zip(tensors, grads, strict=True):
            w.grad = torch.from_numpy(g)
        opt.step()
    return params if of == "numpy" else [w.detach().numpy() for w in tensors]


@pytest.mark.parametrize("scale", [1.0, 1e-9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adafactor_of_pytorch(decay: float, scale: float) -> None:
    torch = pytest.importorskip("torch")
    for options in ({}, {"lr": 0.5, "d": 1.3}, {"beta2_decay": -0.5, "eps": (1e-4, 0.1)}):
        eps = options.get("eps", (float(torch.finfo(torch.float64).eps), 1e-3))
        mine = {
            "lr": options.get("lr", 0.01),
            "beta2_decay": options.get("beta2_decay", -0.8),
            "eps1": eps[0],
            "eps2": eps[1],
            "clip_threshold": options.get("d", 1.0),
            "floor": True,
            "weight_decay": decay,
        }
        want = matrices(lambda p, o=options: torch.optim.Adafactor(p, weight_decay=decay, **o), "torch", scale=scale)
        got = matrices(lambda p, o=mine: adaptk.Adafactor(p, **o), "numpy", scale=scale)
        for p, q in zip(got, want, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-9, atol=1e-12)


def test_adafactor_of_hugging_face() -> None:
    library = pytest.importorskip("transformers.optimization", reason="transformers is not installed")
    for theirs, mine in (
        ({}, {}),
        (
            {"lr": 0.1, "relative_step": False, "scale_parameter": False, "clip_threshold": 0.5, "decay_rate": -0.5},
            {"lr": 0.1, "relative_step": False, "scale_parameter": False, "clip_threshold": 0.5, "beta2_decay": -0.5},
        ),
    ):
        want = matrices(lambda p, o=theirs: library.Adafactor(p, **o), "torch")
        got = matrices(lambda p, o=mine: adaptk.Adafactor(p, **o), "numpy")
        for p, q in zip(got, want, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-9, atol=1e-12)
    want = matrices(lambda p: library.Adafactor(p, beta1=0.8), "torch")
    got = matrices(lambda p: adaptk.AdafactorMomentum(p, beta1=0.8), "numpy")
    for p, q in zip(got, want, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "theirs", "their_options"),
    [
        ("came", {"lr": 0.1, "weight_decay": 0.1}, "CAME", {"lr": 0.1, "weight_decay": 0.1}),
        ("came", {"lr": 0.1, "beta1": 0.5, "beta2": 0.8, "beta3": 0.7, "eps1": 0.1, "eps2": 0.2, "clip_threshold": 0.6},
         "CAME", {"lr": 0.1, "betas": (0.5, 0.8, 0.7), "eps1": 0.1, "eps2": 0.2, "clip_threshold": 0.6}),
        ("sm3", {}, "SM3", {}),
        ("sm3_momentum", {"momentum": 0.6, "eps": 0.1}, "SM3", {"momentum": 0.6, "eps": 0.1}),
    ],
)  # fmt: skip
def test_pytorch_optimizer_on_matrices(name: str, options: Any, theirs: str, their_options: Any) -> None:
    library = pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed")
    # Its SM3 covers a tensor of more than two axes by slices along each of them.
    shapes = SHAPES if theirs == "CAME" else [s for s in SHAPES if len(s) < 3]
    want = matrices(lambda p: getattr(library, theirs)(p, **their_options), "torch", shapes=shapes)
    got = matrices(lambda p: adaptk.optimizer_for(name, p, **options), "numpy", shapes=shapes)
    for p, q in zip(got, want, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-9, atol=1e-12)


def test_adam_mini_of_pytorch_optimizer() -> None:
    """It partitions by the names of the params; heads of one row are our rows. It computes in float32."""
    library = pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed")
    torch = pytest.importorskip("torch")
    for name, key, shape in (("adam_mini", "q_proj", (6, 6)), ("adam_mini_tensor", "mlp", (6, 5))):

        def make(params: Any, key: str = key) -> Any:
            model = torch.nn.Module()
            model.add_module(key, torch.nn.Module())
            model.get_submodule(key).weight = params[0]
            options = {"num_embeds": 6, "num_heads": 6, "num_query_groups": 6}
            return library.AdamMini(model, lr=0.1, betas=(0.8, 0.9), weight_decay=0.1, eps=0.01, **options)

        (want,) = matrices(make, "torch", shapes=[shape])
        mine = {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.1, "eps": 0.01}
        (got,) = matrices(lambda p, n=name, o=mine: adaptk.optimizer_for(n, p, **o), "numpy", shapes=[shape])
        np.testing.assert_allclose(got, want, rtol=1e-4)


def test_sm3_of_optax() -> None:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    for shape in ((6, 5), (7,)):
        q = np.random.default_rng(0).normal(size=shape)
        mine = adaptk.SM3Momentum([q], lr=0.1, eps=1e-8)
        with jax.enable_x64(True):
            opt = optax.sm3(0.1)
            p = jax.numpy.asarray(q.copy())
            state = opt.init(p)
            for t in range(1, 16):
                g = gradients(np.asarray(p).reshape(-1), t).reshape(shape)
                updates, state = opt.update(jax.numpy.asarray(g), state, p)
                p = optax.apply_updates(p, updates)
                mine.step([gradients(q.reshape(-1), t).reshape(shape)])
        np.testing.assert_allclose(q, np.asarray(p), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "options", "make"), OPTAX, ids=[o[0] for o in OPTAX])
def test_optax(name: str, options: dict[str, Any], make: Callable[[Any], Any]) -> None:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    with jax.enable_x64(True):
        opt = make(optax)
        p = jax.numpy.asarray(start())
        state = opt.init(p)
        for t in range(1, 16):
            updates, state = opt.update(jax.numpy.asarray(gradients(np.asarray(p), t)), state, p)
            p = optax.apply_updates(p, updates)
    np.testing.assert_allclose(ours(name, options), np.asarray(p), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "options", "theirs", "their_options"),
    [
        ("adahessian", {"lr": 0.1}, "AdaHessian", {"lr": 0.1, "eps": 1e-4}),
        ("sophia", {"lr": 0.1, "gamma": 0.5, "weight_decay": 0.0}, "SophiaH",
         # lr p clamp(m/(p h), 1) is lr clamp(m/h, p).
         {"lr": 0.1 / 0.5, "betas": (0.965, 0.99), "p": 0.5, "update_period": 1, "hessian_distribution": "rademacher"}),
    ],
)  # fmt: skip
def test_rules_with_a_hessian(name: str, options: Any, theirs: str, their_options: Any) -> None:
    """On a loss whose Hessian is diagonal, so that an estimate of it by random signs is exact."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed")
    w = torch.nn.Parameter(torch.from_numpy(start()))
    other = getattr(library, theirs)([w], **their_options)
    p = start()
    opt = adaptk.optimizer_for(name, [p], **options)
    hessian = opt.state[0]["hessian"]
    for _ in range(10):
        (w.grad,) = torch.autograd.grad((w**4).sum(), w, create_graph=True)
        other.step()
        if name == "sophia":
            adaptk.ops.sophia_hessian(hessian, 12 * p**2, step=1, lr=0.01)
        else:
            hessian[:] = 12 * p**2
        opt.step([4 * p**3])
    np.testing.assert_allclose(p, w.detach().numpy(), rtol=1e-6, atol=1e-9)
