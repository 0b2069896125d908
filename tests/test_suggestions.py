"""Messages with a remedy: misspelt names, names of other libraries, and arguments of wrong types."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk.catalogue import CLASSES, NAMES

W = [np.ones(2)]


def refused(call: Callable[[], Any], error: type[Exception], *texts: str) -> None:
    with pytest.raises(error) as raised:
        call()
    for text in texts:
        assert text in str(raised.value)


OPTIONS = [
    ("Adam", "beta_1", "'beta1'"),
    ("Adam", "b2", "'beta2'"),
    ("Adam", "betas", "'beta1', 'beta2'"),
    ("Adan", "betas", "'beta1', 'beta2', 'beta3'"),
    ("Adam", "learning_rate", "'lr'"),
    ("AdamW", "epsilon", "'eps'"),
    ("AdamW", "wieght_decay", "'weight_decay'"),
    ("SGD", "nestrov", "'nesterov'"),
    ("RMSProp", "alpha", "'rho'"),
    ("RMSProp", "decay", "'rho'"),
    ("RProp", "etas", "'eta_minus', 'eta_plus'"),
    ("Lion", "max_norm", "'clip_norm'"),
    ("Lion", "clipnorm", "'clip_norm'"),
    ("Lion", "skip_nonfinit", "'skip_nonfinite'"),
]


@pytest.mark.parametrize(("name", "given", "meant"), OPTIONS)
def test_misspelt_and_foreign_options(name: str, given: str, meant: str) -> None:
    refused(
        lambda: getattr(adaptk, name)(W, **{given: 0.1}),
        TypeError,
        f"{name}() got an unexpected keyword argument {given!r} (did you mean {meant}?); it takes lr, ",
    )


def test_messages_list_all_options() -> None:
    with pytest.raises(TypeError) as raised:
        adaptk.RMSProp(W, colour=1)
    listed = str(raised.value).partition("it takes ")[2].split(", ")
    assert "did you mean" not in str(raised.value)
    assert listed == [
        *("lr", "rho", "eps", "eps_in", "eps_out", "weight_decay", "decoupled", "maximize", "grad_scale"),
        *("centered", "momentum", "nesterov", "initial_accumulator_value"),
        *("convention", "clip_norm", "skip_nonfinite", "capturable"),
        *("state_dtype", "min_8bit_size", "seed", "param_format", "sparse"),
    ]
    values = {"convention": "book", "lr": 0.1, "rho": 0.5, "momentum": 0.5, "state_dtype": "float16"}
    values |= {"min_8bit_size": 0, "seed": 1, "param_format": "sr", "sparse": "dense"}
    for option in set(listed) - {"eps", "eps_in", "eps_out", "nesterov", "capturable"}:
        value = values.get(option, 1.0 if option in ("clip_norm", "grad_scale") else False)
        adaptk.RMSProp(W, **{option: value})


@pytest.mark.parametrize(
    ("given", "meant"),
    [("Adam", "adam"), ("RMSProp", "rmsprop"), ("delta-bar-delta", "delta_bar_delta"), ("adamm", "adam")],
)
def test_a_rule_that_is_misspelt(given: str, meant: str) -> None:
    refused(
        lambda: adaptk.optimizer_for(given, W),
        ValueError,
        f"rule: {given!r} is not one of ",
        f"did you mean {meant!r}?",
    )


def test_a_convention_that_is_misspelt() -> None:
    refused(lambda: adaptk.Adam(W, convention="tourch"), ValueError, "did you mean 'torch'?")


@pytest.mark.parametrize(
    ("module", "given", "meant"),
    [
        ("adaptk", "Adagrad", "AdaGrad"),
        ("adaptk", "RMSprop", "RMSProp"),
        ("adaptk", "schedule", "schedules"),
        ("adaptk.ops", "Adam", "adam"),
        ("adaptk.ops", "rms_prop", "rmsprop"),
        ("adaptk.optim", "Adagrad", "AdaGrad"),
        ("adaptk.schedules", "cosin", "cosine"),
        ("adaptk.solve", "levenberg_marquart", "levenberg_marquardt"),
        ("adaptk.cuda", "is_avaliable", "is_available"),
        ("adaptk.torch", "AdaGrad", "Adagrad"),
        ("adaptk.jax", "Adam", "adam"),
    ],
)
def test_a_name_of_a_module_that_is_misspelt(module: str, given: str, meant: str) -> None:
    if module in ("adaptk.torch", "adaptk.jax"):
        pytest.importorskip(module.removeprefix("adaptk."))
    found = pytest.importorskip(module)
    with pytest.raises(AttributeError) as raised:
        getattr(found, given)
    assert str(raised.value) == f"module {module!r} has no attribute {given!r} (did you mean {meant!r}?)"
    assert not hasattr(found, "colour")
    with pytest.raises(AttributeError, match=r"has no attribute '_adamm'$"):
        found._adamm  # noqa: B018
    with pytest.raises(ImportError):
        exec(f"from {module} import {given}")


# Params


class Model:
    def __init__(self, *params: Any) -> None:
        self.held = params

    def parameters(self) -> Any:
        return iter(self.held)

    def __iter__(self) -> Any:  # like torch.nn.Sequential
        return iter([self])


def test_a_model_in_the_place_of_its_parameters() -> None:
    model = Model(np.ones(2))
    refused(lambda: adaptk.Adam(model), TypeError, "got Model; give its parameters: model.parameters()")
    refused(lambda: adaptk.Adam({"params": model}.values()), TypeError, "params[0]")
    refused(lambda: adaptk.Adam([{"params": model}]), TypeError, "got Model; give its parameters: model.parameters()")
    refused(lambda: adaptk.Adam(model.parameters), TypeError, "got method; call it")
    adaptk.Adam(model.parameters()).step([np.ones(2)])


def test_a_set_has_no_order() -> None:
    class Param(np.ndarray):  # type: ignore[type-arg]
        __hash__ = object.__hash__  # type: ignore[assignment]

    p = np.ones(2).view(Param)
    for params in ({p}, frozenset([p]), [{"params": {p}}]):
        refused(
            lambda params=params: adaptk.Adam(params), TypeError, "got ", "set changes from run to run: give a list"
        )
    refused(lambda: adaptk.Adam([p]).step({p}), TypeError, "grads: a set has no order; give a list")
    adaptk.Adam({"w": p}.values())


def test_hyperparameters_by_position() -> None:
    refused(
        lambda: adaptk.Adam(W, 0.1, 0.9, 0.99),
        TypeError,
        "Adam() takes params and lr by position and 2 more were given; give the others by name: lr, beta1, beta2",
    )


@pytest.mark.parametrize("bad", ["1", True, [1.0]])
def test_a_clip_norm_that_is_no_number(bad: Any) -> None:
    refused(
        lambda: adaptk.Adam(W, clip_norm=bad),
        TypeError,
        f"clip_norm: expected a number or None, got {type(bad).__name__}",
    )


def test_a_clip_norm_out_of_range() -> None:
    refused(lambda: adaptk.Adam(W, clip_norm=-1.0), ValueError, "clip_norm: -1.0 is not in (0, inf]")


# PyTorch and JAX


def test_params_of_adaptk_torch() -> None:
    torch = pytest.importorskip("torch")
    at = pytest.importorskip("adaptk.torch")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    for cls in (at.Adam, at.SGD, at.Lion):
        text = f"give its parameters: {cls.__name__}(model.parameters())"
        refused(lambda cls=cls: cls(model), TypeError, f"got Sequential; {text}")
        refused(lambda cls=cls: cls(params=model[0]), TypeError, f"got Linear; {text}")
        refused(lambda cls=cls: cls(model.parameters), TypeError, "got method; call it: model.parameters()")
        refused(lambda cls=cls: cls(set(model.parameters())), TypeError, "set changes from run to run")
        remedy = (
            f"{cls.__name__}(params, lr=1.0) and torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.from_zero())"
        )
        rate = adaptk.schedules.constant(0.1)
        refused(lambda cls=cls, rate=rate: cls(model.parameters(), rate), TypeError, remedy)
        refused(lambda cls=cls, rate=rate: cls(model.parameters(), lr=rate), TypeError, remedy)
        cls(model.parameters(), torch.tensor(0.1))
    refused(lambda: at.Lion(model.parameters(), betas=1), TypeError, "betas: expected a tuple of 2 numbers, got 1")
    refused(lambda: at.Lion(model.parameters(), b1=1), TypeError, "(did you mean 'beta1'?)", "convention")


def test_signatures_match_torch() -> None:
    torch = pytest.importorskip("torch")
    at = pytest.importorskip("adaptk.torch")
    import inspect

    for name in ("Adam", "SGD", "Rprop"):
        ours, theirs = getattr(at, name), getattr(torch.optim, name)
        for mine, torchs in ((ours, theirs), (ours.__init__, theirs.__init__)):
            parameters = list(inspect.signature(mine).parameters.values())
            assert parameters[:-8] == list(inspect.signature(torchs).parameters.values())
            of_storage = ["state_dtype", "min_8bit_size", "seed", "param_format", "sparse"]
            assert [p.name for p in parameters[-8:]] == [*of_storage, "clip_norm", "skip_nonfinite", "zero_grad"]


def test_options_of_adaptk_jax() -> None:
    pytest.importorskip("jax")
    aj = pytest.importorskip("adaptk.jax")
    refused(lambda: aj.adam(0.1, beta_1=0.9), TypeError, "'beta_1' (did you mean 'beta1'?); it takes learning_rate")
    refused(lambda: aj.adam(lr=0.1), TypeError, "'lr' (did you mean 'learning_rate'?)")


@pytest.mark.parametrize(("module", "project"), [("torch", "PyTorch"), ("jax", "JAX")])
def test_a_package_that_is_not_installed(module: str, project: str) -> None:
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "import adaptk\n"
        f"assert {module!r} not in dir(adaptk)\n"
        "try:\n"
        f"    import adaptk.{module}\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error.name, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == (f"{module} adaptk.{module} needs {project}, which is not installed: pip install {module}\n")
    assert re.search("installed", done.stdout)


# dir() of modules


def test_dir_of_the_package() -> None:
    import importlib.util

    names = dir(adaptk)
    assert [n for n in names if n.startswith("_")] == ["__version__"]
    assert set(names) >= {*adaptk.__all__, "cuda", "ops", "optim", "schedules", "solve"}
    for extra in ("jax", "torch"):
        assert (extra in names) == (importlib.util.find_spec(extra) is not None)
    assert set(names) == {*adaptk.__all__, "__version__", *CLASSES.values(), *({"jax", "torch"} & set(names))}
    assert not {"Any", "TYPE_CHECKING", "importlib", "annotations"} & set(names)


@pytest.mark.parametrize("name", ["ops", "optim", "schedules", "init", "curriculum", "solve", "cuda", "torch", "jax"])
def test_dir_of_a_module(name: str) -> None:
    if name in ("torch", "jax"):
        pytest.importorskip(name)
    module = pytest.importorskip(f"adaptk.{name}")
    of_catalogue = {"ops": NAMES, "optim": CLASSES.values(), "torch": CLASSES.values(), "jax": CLASSES}
    assert dir(module) == sorted({*module.__all__, *of_catalogue.get(name, ())})
    assert all(hasattr(module, n) and not n.startswith("_") for n in dir(module))


def test_dir_imports_nothing() -> None:
    names = ("torch", "jax", "adaptk.solve", "adaptk.init", "adaptk.curriculum")
    program = f"import sys, adaptk; dir(adaptk); print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Printing


def test_the_rules_print_as_a_table() -> None:
    rules = adaptk.rules()
    assert isinstance(rules, dict)
    lines = str(rules).splitlines()
    assert lines[0].split() == ["rule", "class", "states"]
    assert [line.split()[0] for line in lines[1:]] == list(rules)
    starts = {line.index(word) for line, word in ((lines[0], "class"), (lines[2], "SGD("), (lines[1], "SGD"))}
    assert len(starts) == 1
    assert "rmsprop_centered_momentum  RMSProp(centered=True, momentum=...)" in str(rules)
    assert max(map(len, lines)) <= 120


def test_printing_a_rule() -> None:
    text = str(adaptk.rules()["adagrad"])
    assert text.startswith("adagrad: ")
    for part in ("p -= ", "source  Duchi", "class   AdaGrad", "states  sum = ", "lr_decay", "[0, inf)"):
        assert part in text
    assert "states  none" in str(adaptk.rules()["sgd"])
    assert "eta = lr" in str(adaptk.rules()["delta_bar_delta"])


@pytest.mark.parametrize("rule", adaptk.rules())
def test_repr_of_a_rule(rule: str) -> None:
    found = adaptk.rules()[rule]
    call = found.spelling.replace("momentum=...", "momentum=0.9")
    if rule == "nesterov":
        call = call.replace("nesterov=True", "momentum=0.9, nesterov=True")
    name, _, options = call.partition("(")
    assert eval(f"adaptk.{name}(W, {options.rstrip(')')})").rules == (rule,)


def test_the_build_prints_as_lines() -> None:
    info = adaptk.build_info()
    lines = str(info).splitlines()
    assert [line.split()[0] for line in lines] == list(info)
    assert lines[0] == f"version   {adaptk.__version__}"
    assert "{" not in str(info)


def test_a_step_prints_its_outcome() -> None:
    info = adaptk.SGD([np.ones(2)]).step([np.array([3.0, 4.0])], clip_norm=1.0)
    assert str(info) == "StepInfo(grad_norm=5.0, skipped=False)"


# adaptk.torch


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("AdamW", "learning_rate", "lr"),
        ("Adam", "beta1", "betas"),
        ("SGD", "momemtum", "momentum"),
        ("Lion", "wd", "weight_decay"),
    ],
)
def test_an_option_of_a_torch_class_that_is_misspelt(name: str, given: str, meant: str) -> None:
    torch = pytest.importorskip("torch")
    adaptk_torch = pytest.importorskip("adaptk.torch")
    refused(
        lambda: getattr(adaptk_torch, name)([torch.nn.Parameter(torch.ones(2))], **{given: 0.1}),
        TypeError,
        f"{name}() got an unexpected keyword argument {given!r} (did you mean {meant!r}?); it takes lr, ",
    )


def test_an_option_of_a_torch_step_that_is_misspelt() -> None:
    torch = pytest.importorskip("torch")
    adaptk_torch = pytest.importorskip("adaptk.torch")

    class Mine(adaptk_torch.SGD):  # type: ignore[misc, name-defined]
        def step(self, closure: Any = None, **options: Any) -> Any:
            return super().step(closure, **options)

    for cls in (adaptk_torch.AdamW, Mine):
        opt = cls([torch.nn.Parameter(torch.ones(2))], lr=0.1)
        refused(
            lambda opt=opt: opt.step(clipnorm=1.0),
            TypeError,
            f"{cls.__name__}.step() got an unexpected keyword argument 'clipnorm' (did you mean 'clip_norm'?)",
            "; it takes closure, clip_norm, skip_nonfinite, norm_group",
        )


# Schedules


def test_the_arguments_of_schedules() -> None:
    schedules: Any = adaptk.schedules
    for call, text in (
        (
            lambda: schedules.cosine(1e-3, 10),
            "cosine() accepts lr by position and 1 more were given; give the others by name: cosine(lr, total=10)",
        ),
        (lambda: schedules.cosine(1e-3, total=10, warmup_steps=2), "(did you mean 'warmup'?); it takes lr, total, "),
        (lambda: schedules.cosine(1e-3, total_steps=10), "'total_steps' (did you mean 'total'?)"),
        (lambda: schedules.one_cycle(learning_rate=1e-3, total=10), "(did you mean 'max_lr'?)"),
        (lambda: schedules.step_decay(0.1, step_size=10), "(did you mean 'every'?)"),
        (lambda: schedules.warmup(0.1, 10), "warmup(schedule_or_lr, steps=10)"),
        (lambda: schedules.constant(0.1, 10), "constant() accepts lr by position and 1 more were given"),
        (lambda: schedules.exponential(0.1), "gamma"),
    ):
        refused(call, TypeError, text)


@pytest.mark.parametrize("name", [n for n in adaptk.schedules.__all__ if n != "Schedule"])
def test_every_schedule_checks_its_arguments(name: str) -> None:
    refused(lambda: getattr(adaptk.schedules, name)(colour=1), TypeError, f"{name}() got an unexpected", "it takes ")


# Solvers


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("least_squares", "use levenberg_marquardt("),
        ("minimize", "use newton, lbfgs, conjugate_gradient or steepest_descent"),
    ],
)
def test_solvers_by_the_names_of_scipy(name: str, meant: str) -> None:
    refused(lambda: getattr(pytest.importorskip("adaptk.solve"), name), AttributeError, repr(name), meant)


def test_arguments_of_other_fits() -> None:
    solve = pytest.importorskip("adaptk.solve")
    for option, text in (
        ("sigma", "divide the residuals by sigma, with absolute_sigma=True"),
        ("method", "the solver is chosen by its function"),
        ("p0", "the start is x0"),
        ("max_nfevs", "(did you mean 'max_nfev'?); it takes fun, x0, args, jac, "),
    ):
        refused(lambda option=option: solve.levenberg_marquardt(lambda x: x, [1.0], **{option: 1}), TypeError, text)
    for bounds in ([(0, None), (None, None)], (None, 1.0), ([0.0, 0.0], [None, 1.0])):
        refused(
            lambda bounds=bounds: solve.levenberg_marquardt(lambda x: x, [1.0, 1.0], bounds=bounds),
            ValueError,
            "bounds: None is not a bound; write -np.inf or np.inf",
        )


def test_tukeys_loss_if_every_residual_is_too_large() -> None:
    solve = pytest.importorskip("adaptk.solve")
    data = np.array([1.0, 1.1, 0.9])
    for start, good in ((100.0, False), (1.5, True)):
        fit = solve.levenberg_marquardt(lambda x: x[0] - data, [start], loss="tukey")
        assert fit.success is good
        assert (fit.status == -4) is not good
        assert ("Every residual has weight 0: raise f_scale or start closer." in fit.message) is not good
