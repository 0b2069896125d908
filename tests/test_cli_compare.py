"""`compare`: its problems, the runs, who is the best, and what is shown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import _demo, catalogue
from adaptk._cli import _compare, _problems, _texts, main
from adaptk._cli._compare import SOLVED, Run, best, mean_ranks, ranked
from adaptk._cli._problems import PROBLEMS, Task

FULL_BATCH = {"delta_bar_delta", "rprop"}


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["compare", *arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def made(name: str, steps: int) -> Task:
    task = PROBLEMS[name].make(0, steps)
    if task is None:
        pytest.skip("the standard library has no sources here")
    return task


# Problems


# The gradients of the others are measured on minibatches, see below.
@pytest.mark.parametrize("name", [n for n in PROBLEMS if n not in ("text", "cnn", "transformer")])
def test_gradients_match_differences_of_the_loss(name: str) -> None:
    task = made(name, 44)
    rng = np.random.default_rng(1)
    params = [p.astype(np.float64) + 0.1 * rng.standard_normal(p.shape) for p in task.start]
    directions = [rng.standard_normal(p.shape) for p in params]

    def along(h: float) -> float:
        return task.loss([p + h * d for p, d in zip(params, directions, strict=True)])

    # Over all minibatches of an epoch, which omit a few digits.
    steps = range(44) if PROBLEMS[name].minibatches else range(1)
    grads = [np.mean([task.gradient(params, k)[i] for k in steps], axis=0) for i in range(len(params))]
    slope = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
    tolerance = 0.05 if PROBLEMS[name].minibatches else 1e-6
    assert slope == pytest.approx((along(1e-6) - along(-1e-6)) / 2e-6, rel=tolerance)


def slopes(value: Any, grads: list[np.ndarray[Any, Any]], params: list[np.ndarray[Any, Any]]) -> list[Any]:
    """The slope of each param along a direction, by the gradient and by differences."""
    found = []
    rng = np.random.default_rng(1)
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        direction = rng.standard_normal(p.shape)

        def along(h: float, i: int = i, d: Any = direction) -> float:
            return float(value([q + h * d if k == i else q for k, q in enumerate(params)]))

        found.append((float((g * direction).sum()), (along(1e-5) - along(-1e-5)) / 2e-5))
    return found


def test_the_gradient_of_the_convolution() -> None:
    rng = np.random.default_rng(0)
    data = _demo.load_digits(0)
    patches, labels = _problems._patches(data.train_x[:6].astype(np.float64)), data.train_y[:6]
    params = [0.3 * rng.standard_normal(s) for s in ((9, 8), (8,), (128, 10), (10,))]
    grads = _problems.cnn_gradient(params, patches, labels)
    for found, wanted in slopes(
        lambda p: _problems.cross_entropy(_problems.cnn_logits(p, patches)[2], labels), grads, params
    ):
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    # A patch is the neighbourhood of its pixel: row by row, the pixel itself in the middle.
    image = np.arange(64.0).reshape(1, 64)
    assert _problems._patches(image)[0, 9].tolist() == [0, 1, 2, 8, 9, 10, 16, 17, 18]
    assert _problems._patches(image)[0, 0].tolist() == [0, 0, 0, 0, 0, 1, 0, 8, 9]


def test_the_gradient_of_the_transformer() -> None:
    rng = np.random.default_rng(0)
    params = [p.astype(np.float64) + 0.1 * rng.standard_normal(p.shape) for p in _problems.transformer_start(rng)]
    given, wanted = (rng.integers(0, _problems.CHARACTERS, (3, 7)) for _ in range(2))
    value, grads = _problems.transformer(params, given, wanted)
    assert value == _problems.transformer(params, given, wanted, False)[0]
    for found, slope in slopes(lambda p: _problems.transformer(p, given, wanted, False)[0], grads, params):
        assert found == pytest.approx(slope, rel=1e-6, abs=1e-9)
    # Attention is causal: the first sequence's losses do not depend on its last character.
    other = given.copy()
    other[:, -1] = (other[:, -1] + 1) % _problems.CHARACTERS
    short = [_problems.transformer(params, g[:, :-1], wanted[:, :-1], False)[0] for g in (given, other)]
    assert short[0] == short[1]
    last = [_problems.transformer(params, g, wanted, False)[0] for g in (given, other)]
    assert last[0] != last[1]


def test_characters_are_numbered_by_frequency() -> None:
    codes = _problems.characters_of("aaabbc\u4e2d")
    assert codes[:6].tolist() == [0, 0, 0, 1, 1, codes[5]]
    many = "".join(chr(200 + k) * (100 - k) for k in range(90))
    codes = _problems.characters_of(many)
    assert codes.max() == _problems.CHARACTERS - 1
    assert (np.diff(codes) >= 0).all()
    assert (codes == _problems.CHARACTERS - 1).sum() == sum(100 - k for k in range(63, 90))


@pytest.mark.parametrize("name", ["text", "cnn", "transformer"])
def test_networks_learn(name: str) -> None:
    task = made(name, 30)
    found = _compare.train(
        adaptk.rules()["adagrad" if name == "text" else "adam"], task, 30, 0.5 if name == "text" else 0.02, 2
    )
    assert found.losses[-1] < 0.9 * found.losses[0]
    assert all(p.dtype == np.float32 for p in task.start)
    again = PROBLEMS[name].make(0, 30)
    assert again is not None
    for a, b in zip(task.gradient(task.start, 3), again.gradient(again.start, 3), strict=True):
        for x, y in zip(a if isinstance(a, tuple) else [a], b if isinstance(b, tuple) else [b], strict=True):
            assert (x == y).all()


@pytest.mark.parametrize(
    ("name", "minimum"),
    [("ravine", (0.0, 0.0)), ("saddle", (0.0, math.sqrt(2))), ("rosenbrock", (1.0, 1.0)), ("beale", (3.0, 0.5))],
)
def test_the_minimum_of_a_surface_is_zero(name: str, minimum: tuple[float, float]) -> None:
    task = made(name, 1)
    assert task.loss([np.array(minimum)]) < 1e-30
    assert np.abs(task.gradient([np.array(minimum)], 0)[0]).max() < 1e-14
    assert task.loss(task.start) > 0.5


def test_the_logistic_regression_is_measured_from_its_minimum() -> None:
    task = made("logistic", 1)
    params = [p.copy() for p in task.start]
    solver = pytest.importorskip("scipy.optimize", reason="SciPy finds the minimum too")
    found = solver.minimize(
        lambda w: task.loss([w]), params[0], jac=lambda w: task.gradient([w], 0)[0], method="BFGS", tol=1e-7
    )
    assert 0 <= found.fun < 1e-9
    assert task.loss(params) > 0.1


def test_minibatches_are_the_same_for_everyone_and_follow_the_seed() -> None:
    first, again, other = (_problems._batches(100, 32, 7, seed) for seed in (0, 0, 1))
    assert len(first) == 7
    assert all(len(batch) == 32 for batch in first)
    assert len(set(np.concatenate(first[:3]).tolist())) == 96
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not all((a == b).all() for a, b in zip(first, other, strict=True))


# Runs


def test_a_run_matches_the_optimizer() -> None:
    task = made("rosenbrock", 6)
    run = _compare.train(adaptk.rules()["adam"], task, 6, 0.1, points=3)
    p = task.start[0].copy()
    optimizer = adaptk.Adam([p], lr=0.1)
    losses = [task.loss([p])]
    for _ in range(6):
        optimizer.step(task.gradient([p], 0))
        losses.append(task.loss([p]))
    assert run.at == [0, 2, 4, 6]
    assert run.losses == losses[::2]


def test_a_run_ends_if_solved_or_diverged() -> None:
    task = made("ravine", 100)
    sgd = adaptk.rules()["sgd"]
    with np.errstate(all="raise"):
        lost = _compare.train(sgd, task, 100, 10.0)
    assert lost.final == math.inf
    assert lost.at[-1] < 100
    solved = _compare.train(adaptk.rules()["rprop"], task, 1000, 0.1)
    assert solved.solved
    assert solved.at[-1] < 1000


def test_interim_gradients_are_taken_at_the_interim_point() -> None:
    task = made("ravine", 2)
    seen = []

    def gradient(params: Any, step: int) -> Any:
        seen.append(params[0].copy())
        return task.gradient(params, step)

    spy = Task(task.start, task.loss, gradient)
    _compare.train(adaptk.rules()["rmsprop_nesterov"], spy, 2, 0.01)
    p = task.start[0].copy()
    optimizer = adaptk.RMSProp([p], nesterov=True, lr=0.01)
    optimizer.step(task.gradient([p], 0))
    assert (seen[0] == task.start[0]).all()
    assert (seen[1] != p).all()
    with optimizer.lookahead():
        assert (seen[1] == p).all()


def run(rate: float, final: float, steps: int = 100) -> Run:
    return Run(rate, [0, steps], [1.0, final])


def test_the_best_run() -> None:
    assert best([run(0.1, 0.5), run(1.0, 0.25), run(2.0, 0.25), run(3.0, math.nan)]).rate == 1.0
    # Below the threshold of "solved", fewer steps win, not the smaller loss.
    assert best([run(0.1, SOLVED / 1e6, 50), run(1.0, SOLVED / 2, 40), run(2.0, 1e-9, 10)]).rate == 1.0
    assert best([run(0.1, math.inf)]).final == math.inf


def test_ranks() -> None:
    results = {
        "one": {"a": [run(1, 0.1)], "b": [run(1, 0.2)], "c": [run(1, 0.2)]},
        "two": {"a": [run(1, 0.3)], "b": [run(1, 0.1)]},
    }
    assert mean_ranks(results) == {"a": 1.5, "b": 1.75, "c": 2.5}
    assert ranked(results["two"]) == ["b", "a"]


# The command


@pytest.mark.full
def test_every_rule_on_every_problem(capsys: pytest.CaptureFixture[str], restored: None) -> None:
    threads = adaptk.get_num_threads()
    small = [name for name in PROBLEMS if name not in ("text", "cnn", "transformer")]
    found = call(capsys, "--steps", "40", "--rates", "0.003,0.03,0.3", "--problems", ",".join(small))
    assert list(found["problems"]) == small
    for name, problem in found["problems"].items():
        rules = problem["rules"]
        assert list(rules) == [r for r in adaptk.rules() if not (PROBLEMS[name].minibatches and r in FULL_BATCH)]
        assert len({r["losses"][0] for r in rules.values()}) == 1
        # Each rule gets closer to the minimum with one of the rates.
        better = [r for r in rules.values() if r["loss"] is not None and r["loss"] < r["losses"][0]]
        assert len(better) >= len(rules) - 1
        for r in rules.values():
            assert r["lr"] in (0.003, 0.03, 0.3)
            assert r["at_end_of_rates"] == (r["lr"] != 0.03)
            assert len(r["loss_by_rate"]) == 3
            assert len(r["steps"]) == len(r["losses"])
    assert set(found["mean_rank"]) == set(adaptk.rules())
    assert adaptk.get_num_threads() == threads


def test_catalogue_rules_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    found = call(capsys, "--rules", "all", "--problems", "beale", "--steps", "60", "--rates", "0.003,0.03,0.3")
    rules = found["problems"]["beale"]["rules"]
    assert set(rules) == {*adaptk.rules(), *catalogue.CLASSES} - {"sophia", "adahessian"}
    worse = [name for name, r in rules.items() if r["loss"] is None or not r["loss"] < r["losses"][0]]
    assert len(worse) <= 1, worse
    # Schedule-Free rules are measured where they are to be evaluated.
    task = made("beale", 5)
    p = task.start[0].copy()
    optimizer = adaptk.ScheduleFreeSGD([p], lr=0.01)
    for _ in range(5):
        optimizer.step(task.gradient([p], 0))
    run = _compare.train(_compare.rule_named("schedule_free_sgd"), task, 5, 0.01)
    assert run.losses[-1] == task.loss(optimizer.evaluation_params())
    assert run.losses[-1] != task.loss([p])


def test_the_quick_mode(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = call(capsys, "--quick", "--problems", "ravine,cnn", "--rules", "adam,sgd")
    assert found["rates"] == list(_compare.QUICK_RATES)
    for name, problem in found["problems"].items():
        ends = {r["steps"][-1] for r in problem["rules"].values()}
        assert ends == {math.ceil(PROBLEMS[name].steps * _compare.QUICK)}
    chosen = call(capsys, "--quick", "--problems", "ravine", "--rules", "adam", "--rates", "0.5", "--steps", "7")
    assert chosen["rates"] == [0.5]
    assert chosen["problems"]["ravine"]["rules"]["adam"]["steps"][-1] == 7
    # Without the sources of the standard library.
    monkeypatch.setattr(_texts, "sources", lambda package: "")
    assert main(["compare", "--quick", "--problems", "ravine,text,transformer", "--rules", "adam"]) == 0
    out = capsys.readouterr().out
    assert "text: left out; the sources of the standard library are not there" in out
    assert "transformer: left out" in out
    assert main(["compare", "--quick", "--problems", "text", "--rules", "adam"]) == 1
    assert "the sources of Python's standard library are not there" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_losses(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--problems", "digits", "--rules", "adam", "--rates", "0.01", "--steps", "5", "--seed")
    first, again, other = (call(capsys, *arguments, seed)["problems"] for seed in ("3", "3", "4"))
    assert first == again
    assert first != other


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rules", "sgd,rprop,adam", "--problems", "ravine,digits", "--steps", "200", "--rates", "0.03,0.1,10"]
    assert main(["compare", *arguments]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    text = " ".join(out.split())
    assert lines[0] == "3 rules on 2 problems, each with the best of 3 learning rates from 0.03 to 10."
    assert lines[1].startswith("Best: rprop on ravine (")
    rows = {line.split()[0]: line for line in lines[3:] if line.startswith(("sgd ", "rprop ", "adam "))}
    assert len(rows) == 3
    assert "full-batch only" in rows["rprop"]
    assert " steps " in rows["rprop"]
    # SGD leaves the ravine at all of these rates.
    assert rows["sgd"].split()[2] == "-"
    assert "digits: network 64-32-10 on handwritten digits, minibatches of 32; 200 steps" in text


def test_chart_of_one_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--problems", "beale", "--rules", "adam,lion", "--steps", "120", "--rates", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "beale: loss, the best 2 of 2" in lines
    (axis,) = (line for line in lines if line.split() == ["0", "step", "120"])
    assert axis


def test_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    path = tmp_path / "compare.svg"
    arguments = ["--problems", "ravine,saddle,beale,logistic", "--steps", "20", "--rates", "0.01,0.1"]
    assert main(["compare", *arguments, "--plot", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    for name in ("ravine", "saddle", "beale", "logistic"):
        assert f"<!-- {name} -->" in text
    assert text.count(", lr 0.") == 4 * 5
    assert str(path) in capsys.readouterr().out
    # Nothing that a logarithmic axis can show.
    _compare.plot({"ravine": {"sgd": [run(1, math.inf)], "adam": [Run(1, [0], [math.nan])]}}, tmp_path / "x.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problems", "rosenbrok"], "did you mean rosenbrock"),
        (["--rates", "0.1,fast"], "not numbers"),
        (["--rates", "0,1"], "above 0"),
        (["--rates", ","], "one at least"),
        (["--steps", "0"], "0 is less than 1"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *arguments])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_no_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--problems", "digits", "--rules", "rprop"]) == 1
    assert "rprop: full-batch gradients only, and digits has minibatches" in capsys.readouterr().err


def test_rules_with_reductions_on_sparse_problems() -> None:
    param, values = np.ones((4, 2)), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    task = Task([param], lambda p: float((p[0] ** 2).sum()), lambda p, step: [(np.array([2, 0, 2]), values)])
    want = np.array([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [0.0, 0.0]])
    assert (_compare._dense(task.gradient([param], 0)[0], param) == want).all()
    assert _compare._dense(want, param) is want
    run = _compare.train(_compare.rule_named("lamb"), task, 3, 0.1)
    assert 0 < run.losses[-1] < run.losses[0]
