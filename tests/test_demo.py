"""The demo, run in this process, and the plain NumPy formulas that it is compared with."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import subprocess
import sys

import adaptk
import numpy as np
import pytest
from adaptk import _demo, _reference
from adaptk.__main__ import main

RULES = adaptk.rules()
FULL_BATCH = {"delta_bar_delta", "rprop"}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(_demo, "LARGE", 5_000)


def call(*arguments):
    """Status, output and messages of the command, without a terminal."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["demo", *arguments])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Output, messages and JSON of a short run of all rules on both models."""
    path = tmp_path_factory.mktemp("demo") / "out.json"
    threads = adaptk.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_demo, "LARGE", 5_000)
        status, out, err = call(
            "--no-sparse", "--epochs", "3", "--rules", "all", "--models", "all", "--json", str(path)
        )
    assert status == 0
    assert adaptk.get_num_threads() == threads
    return out, err, json.loads(path.read_text(encoding="utf-8"))


def run(*arguments):
    """The JSON of a run with these arguments."""
    status, out, _ = call("--no-fits", "--no-sparse", "--json", "-", *arguments)
    assert status == 0
    return json.loads(out)


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", _demo.MODELS)
@pytest.mark.parametrize("rule", RULES)
def test_losses_fall(everything, model, rule):
    figures = everything[2]["models"][model]["rules"][rule]
    losses = figures["loss"]
    assert len(losses) == 4
    assert all(math.isfinite(x) for x in losses)
    assert losses[-1] < 0.8 * losses[0]
    assert figures["test_accuracy"] > 0.5


@pytest.mark.parametrize("model", _demo.MODELS)
def test_all_rules_start_alike(everything, model):
    assert len({figures["loss"][0] for figures in everything[2]["models"][model]["rules"].values()}) == 1


def test_the_tables_have_every_rule(everything):
    out = everything[0]
    softmax, mlp = out[out.index("Softmax regression (") :].split("Two-layer network (")
    for text in (softmax, mlp):
        lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
        for rule in RULES:
            assert len(re.findall(r"\d+\.\dx", lines[rule])) == 2, lines[rule]
            assert lines[rule].count(" us") + lines[rule].count(" ms") == 2
            assert "%" in lines[rule]
            assert ("*" in lines[rule]) == (rule in FULL_BATCH)
        assert "the best 6 of 23" in text
    assert "one thread" in out


def test_the_default_fits_on_a_screen_and_begins_with_the_result():
    status, out, err = call("--epochs", "3")
    assert status == 0
    assert err == ""
    lines = out.splitlines()
    assert len(lines) <= 48
    assert lines[0].startswith("5 optimizers train a two-layer network of 9,610 parameters")
    first = " ".join(lines[: lines.index("")])
    assert re.search(r"A fused step is \d+(\.\d)?( to \d+(\.\d)?)? times as fast as the same formula in NumPy", first)
    assert re.search(r"Best on 360 digits that no network has seen: [a-z, ]+, \d+\.\d%", first)
    rows = [line.split()[0] for line in lines if re.search(r"\d x|\dx", line) and "%" in line and "digits" not in line]
    assert rows[: len(_demo.RULES)] == list(_demo.RULES)
    assert rows[len(_demo.RULES) :] in (["sgd", "adagrad"], [])  # of the sparse part, if there are sources
    assert "training loss" in lines
    assert "54 of 54 least-squares fits" in " ".join(lines)


def test_json(everything):
    document = everything[2]
    assert document["adaptk"] == adaptk.__version__
    assert document["epochs"] == 3
    assert document["seed"] == 0
    assert len(document["nist"]) == 27
    assert all(min(fit["digits"]) >= 10 for fit in document["nist"].values())
    assert document["train"] + document["test"] == 1797
    assert set(document["models"]) == {"softmax", "mlp"}
    for model, layers in (("softmax", [64, 10]), ("mlp", [64, 128, 10])):
        part = document["models"][model]
        assert part["layers"] == layers
        assert list(part["rules"]) == list(RULES)
        for rule, figures in part["rules"].items():
            want = {**RULES[rule].defaults(), **_demo.HYPERPARAMETERS.get(rule, {})}
            assert {k: float(v) for k, v in figures["hyperparameters"].items()} == want
            assert figures["full_batch"] == (rule in FULL_BATCH)
            assert figures["steps"] == 3 * (_demo.FULL_BATCH_STEPS if rule in FULL_BATCH else 44)
            assert 0.0 < figures["test_accuracy"] <= 1.0
            assert 0.0 < figures["step_seconds"] < 60.0
            assert figures["ratio"] == pytest.approx(figures["numpy_step_seconds"] / figures["step_seconds"])
            assert figures["large_ratio"] > 0.0


def test_the_same_seed_gives_the_same_losses():
    def losses(seed):
        document = run("--epochs", "1", "--rules", "adam,rprop", "--models", "all", "--seed", str(seed))
        return [r["loss"] for m in document["models"].values() for r in m["rules"].values()]

    assert losses(3) == losses(3)
    assert losses(3) != losses(4)


def test_rules_and_models_can_be_chosen():
    document = run("--epochs", "1", "--rules", "yogi, adam,yogi", "--models", "mlp")
    assert list(document["models"]) == ["mlp"]
    assert list(document["models"]["mlp"]["rules"]) == ["yogi", "adam"]


def test_a_rule_without_a_plain_formula_is_trained_but_not_compared(monkeypatch):
    monkeypatch.delitem(_reference.FORMULAS, "adam")
    figures = run("--epochs", "1", "--rules", "adam", "--models", "softmax")["models"]["softmax"]["rules"]["adam"]
    assert figures["ratio"] is None
    assert figures["numpy_step_seconds"] is None
    assert figures["large_ratio"] is None
    assert figures["step_seconds"] > 0.0
    status, out, _ = call("--no-sparse", "--epochs", "1", "--rules", "adam", "--models", "softmax")
    assert status == 0
    assert out.startswith("adam trains a softmax regression of 650 parameters")
    assert "A fused step" not in out
    assert [line.split()[-3:] for line in out.splitlines() if line.startswith("adam  ")] == [["-", "-", "-"]]


def test_interim_gradients_follow_the_docs():
    assert {name for name, rule in RULES.items() if _demo.wants_full_batch(rule)} == FULL_BATCH
    assert {name for name, rule in RULES.items() if _demo.wants_lookahead(rule)} == {"rmsprop_nesterov"}


def test_the_interim_gradient_is_taken_at_the_interim_point(monkeypatch):
    """After the first step the gradient's parameters differ from the optimizer's by the momentum times the velocity."""
    rule = RULES["rmsprop_nesterov"]
    seen = []
    gradients = _demo.gradients

    def spy(parameters, x, y):
        seen.append(parameters[0].copy())
        return gradients(parameters, x, y)

    monkeypatch.setattr(_demo, "gradients", spy)
    data = _demo.load_digits(0)
    run = _demo.train(rule, (64, 10), data, 1, 0, lambda run: None)
    assert run.steps == len(seen) == 44
    start = _demo.initial_parameters((64, 10), 0)
    h = run.hyperparameters
    np.testing.assert_array_equal(seen[0], start[0])
    batch = next(_demo.batches(len(data.train_y), 0))[0]
    grads = gradients(start, data.train_x[batch], data.train_y[batch])
    states = _reference.initial_states(rule.name, start[0], h)
    p, (_, v) = _reference.update(rule.name, start[0], grads[0], states, 1, h)
    np.testing.assert_allclose(seen[1], p + h["momentum"] * v, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layers", _demo.MODELS.values(), ids=list(_demo.MODELS))
def test_gradients_match_differences_of_the_loss(layers):
    data = _demo.load_digits(0)
    x, y = data.train_x[:20].astype(np.float64), data.train_y[:20]
    rng = np.random.default_rng(1)
    parameters = [
        p.astype(np.float64) + 0.1 * rng.standard_normal(p.shape) for p in _demo.initial_parameters(layers, 1)
    ]
    grads = _demo.gradients(parameters, x, y)
    directions = [rng.standard_normal(p.shape) for p in parameters]

    def along(h):
        return _demo.mean_loss([p + h * d for p, d in zip(parameters, directions, strict=True)], x, y)

    slope = (along(1e-5) - along(-1e-5)) / 2e-5
    assert sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True)) == pytest.approx(slope, rel=1e-7)


def test_data():
    data = _demo.load_digits(0)
    assert data.train_x.shape == (1797 - _demo.TEST, 64)
    assert data.test_x.shape == (_demo.TEST, 64)
    assert data.train_x.dtype == np.float32
    assert data.train_x.min() == 0.0
    assert data.train_x.max() == 1.0
    labels = np.concatenate([data.train_y, data.test_y])
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_choices_are_known_names():
    assert set(_demo.HYPERPARAMETERS) <= set(RULES)
    for rule, values in _demo.HYPERPARAMETERS.items():
        assert set(values) <= set(RULES[rule].defaults())
    assert sorted(r for rules in _demo.FAMILIES.values() for r in rules) == sorted(RULES)
    assert set(_demo.TITLES) == set(_demo.MODELS)
    assert set(_demo.RULES) <= set(RULES)


@pytest.mark.full
@pytest.mark.parametrize(
    ("model", "chosen", "wanted"),
    [
        ("softmax", "all", 0.90),
        ("mlp", "sgd,nesterov,adam", 0.93),
        pytest.param("mlp", "all", 0.93, marks=pytest.mark.exhaustive),
    ],
)
def test_every_rule_learns_to_read(model, chosen, wanted):
    rules = run("--rules", chosen, "--models", model)["models"][model]["rules"]
    assert len(rules) == (len(RULES) if chosen == "all" else 3)
    assert {rule: r["test_accuracy"] for rule, r in rules.items() if not r["test_accuracy"] > wanted} == {}


# ---------------------------------------------------------------------------------------------------------------------
# The plot
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_training(monkeypatch):
    def train(*arguments):
        raise AssertionError("trained")

    monkeypatch.setattr(_demo, "train", train)
    monkeypatch.setattr(_demo, "large_ratio", train)


def test_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    rules = ["sgd", "adam", "rprop", "yogi"]
    path = tmp_path / "curves.svg"
    assert (
        main(
            ["demo", "--no-sparse", "--epochs", "2", "--rules", ",".join(rules), "--models", "all", "--plot", str(path)]
        )
        == 0
    )
    text = path.read_text(encoding="utf-8")
    # Texts are drawn as outlines, with the text itself in a comment.
    for word in [*rules, "Softmax regression", "Two-layer network", "rprop (full batch)", "epoch"]:
        assert f"{word}" in text
    # A few rules share one panel, with a legend in each model's.
    assert "Gradient descent" not in text
    assert text.count("yogi") == 2
    assert str(path) in capsys.readouterr().out


@pytest.mark.full
def test_plot_of_everything(tmp_path, everything):
    pytest.importorskip("matplotlib")
    results = {
        model: [
            _demo.Run(rule, {}, figures["full_batch"], losses=[*figures["loss"][:-1], 0.0 if rule == "lion" else 1e-9])
            for rule, figures in part["rules"].items()
        ]
        for model, part in everything[2]["models"].items()
    }
    path = tmp_path / "curves.png"
    _demo.plot(results, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(_demo.panels(results)) == list(_demo.FAMILIES)


def test_plot_of_nonfinite_losses(tmp_path):
    pytest.importorskip("matplotlib")
    lost = [
        _demo.Run("sgd", {}, False, losses=[2.0, math.inf, math.nan]),
        _demo.Run("adam", {}, False, losses=[2.0] * 3),
    ]
    for runs in (lost, lost[:1], [_demo.Run("sgd", {}, False, losses=[math.nan] * 3)]):
        _demo.plot({"mlp": runs}, tmp_path / "curves.png")


def test_plot_of_a_rule_without_a_family(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "curves.svg"
    known = [_demo.Run(rule, {}, False, losses=[2.0, 1.0]) for rule in RULES]
    _demo.plot({"mlp": [*known, _demo.Run("newest", {}, False, losses=[2.0, 1.0])]}, path)
    text = path.read_text(encoding="utf-8")
    assert "newest" in text
    assert "Others" in text


@pytest.mark.usefixtures("no_training")
def test_without_matplotlib(monkeypatch, tmp_path, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = tmp_path / "curves.png"
    assert main(["demo", "--plot", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "needs matplotlib" in captured.err
    assert "pip install matplotlib" in captured.err
    assert not path.exists()


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "adan,yogo"], "no rule 'yogo'; did you mean yogi?"),
        (["--rules", "zzz"], "no rule 'zzz'; there are sgd, "),
        (["--rules", ","], "no rule given; there are sgd, "),
        (["--models", "cnn"], "no model 'cnn'; there are softmax, mlp"),
        (["--epochs", "0"], "0 is less than 1"),
        (["--epochs", "many"], "'many' is not a whole number"),
        (["--seed", "-1"], "-1 is less than 0"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_files_that_cannot_be_written(option, tmp_path, capsys):
    if option == "--plot":
        pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    for name, message in (("nowhere/x.png", "there is no folder"), ("folder.png", "that is a folder")):
        assert main(["demo", option, str(tmp_path / name)]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_training")
def test_plots_of_an_unknown_kind(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["demo", "--plot", str(tmp_path / "x.foo")]) == 1
    assert ".png" in capsys.readouterr().err


def test_interrupt(monkeypatch, capsys):
    def train(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(_demo, "train", train)
    threads = adaptk.get_num_threads()
    assert main(["demo", "--rules", "sgd"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert adaptk.get_num_threads() == threads


def test_the_command():
    command = [sys.executable, "-m", "adaptk", "demo", "--epochs", "1", "--rules", "sgd", "--no-fits", "--no-sparse"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    assert done.stdout.startswith("sgd trains a two-layer network")
    assert "NIST" not in done.stdout
    assert done.stderr == ""


def test_fits_against_scipy():
    pytest.importorskip("scipy", reason="SciPy is the peer")
    status, out, _ = call("--no-sparse", "--epochs", "1", "--rules", "sgd", "--nist")
    assert status == 0
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert len(lines["MGH17"]) == 9
    assert "SciPy's least_squares" in " ".join(out.split())


# ---------------------------------------------------------------------------------------------------------------------
# The plain formulas
# ---------------------------------------------------------------------------------------------------------------------


def test_plain_formulas_match_the_registry():
    assert set(_reference.FORMULAS) == set(RULES)


def agree(rule, hyper, initial, dtype, steps=12):
    """Steps of the kernel and of the formula agree on random gradients, some of which are 0."""
    rng = np.random.default_rng(7)
    p = rng.standard_normal((40, 25)).astype(dtype)
    states = [np.full_like(p, value) for value in initial]
    plain_p, plain_states = p.copy(), tuple(s.copy() for s in states)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-14}
    for t in range(1, steps + 1):
        g = rng.standard_normal(p.shape).astype(dtype)
        g[:2] = 0
        getattr(adaptk.ops, rule)(p, g, *states, step=t, **hyper)
        plain_p, plain_states = _reference.update(rule, plain_p, g, plain_states, t, hyper)
        assert plain_p.dtype == dtype
        assert all(s.dtype == dtype for s in plain_states)
        for got, want in zip([p, *states], [plain_p, *plain_states], strict=True):
            np.testing.assert_allclose(got, want, **tolerance, err_msg=f"{rule}, step {t}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rule", "convention"), [(name, convention) for name, rule in RULES.items() for convention in rule.conventions]
)
def test_the_plain_formula_agrees_with_the_kernel(rule, convention, dtype):
    agree(rule, RULES[rule].defaults(convention), RULES[rule].initial_states(convention).values(), dtype)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "common",
    [
        {"weight_decay": 0.1, "decoupled": False},
        {"weight_decay": 0.1, "decoupled": True},
        {"maximize": True},
        {"grad_scale": 0.25},
        {"maximize": True, "grad_scale": -2.0, "weight_decay": 0.1, "decoupled": False},
    ],
    ids=str,
)
def test_the_plain_formula_agrees_with_common_options(rule, common):
    agree(rule, {**RULES[rule].defaults(), **common}, RULES[rule].initial_states().values(), np.float64)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("adagrad", {"lr_decay": 0.3}),
        ("adam", {"eps_root": 1e-3}),
        ("amsgrad", {"eps_root": 1e-3, "eps_hat": True}),
        ("asgd", {"t0": 3.0, "lambd": 0.1}),
        ("delta_bar_delta", {"eta_min": 0.009, "eta_max": 0.012}),
        ("momentum", {"dampening": 0.3, "dampen_first": False}),
        ("nesterov", {"dampening": 0.3, "velocity": False}),
        ("nadam", {"momentum_decay": 0.1}),
        ("radam", {"beta2": 0.9}),
        ("rmsprop_momentum", {"lr_inside": False, "eps_out": 1e-3}),
        ("rprop", {"step_max": 0.012, "step_min": 0.008}),
    ],
)
def test_the_plain_formula_agrees_with_options_of_its_own(rule, options):
    agree(rule, {**RULES[rule].defaults(), **options}, RULES[rule].initial_states().values(), np.float64)


@pytest.mark.parametrize("rule", RULES)
def test_initial_states_of_the_plain_formula(rule):
    hyper = {**RULES[rule].defaults(), "lr": 0.125}
    p = np.ones((3, 2), np.float32)
    states = _reference.initial_states(rule, p, hyper)
    want = RULES[rule].initial_states(hyperparameters=hyper).values()
    for state, value in zip(states, want, strict=True):
        np.testing.assert_array_equal(state, np.full_like(p, value))


@pytest.mark.parametrize("rule", RULES)
def test_the_plain_formula_changes_nothing_in_place(rule):
    hyper = RULES[rule].defaults()
    p, g = np.ones(4), np.array([1.0, -2.0, 0.0, 3.0])
    states = _reference.initial_states(rule, p, hyper)
    for t in (1, 2, 3):
        before = [x.copy() for x in (p, g, *states)]
        new_p, new_states = _reference.update(rule, p, g, states, t, hyper)
        for x, y in zip((p, g, *states), before, strict=True):
            np.testing.assert_array_equal(x, y)
        assert not any(np.shares_memory(x, y) for x in new_states for y in (new_p, g))
        p, states = new_p, new_states
