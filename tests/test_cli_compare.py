"""`compare`: its problems, the runs, who is the best, and what is shown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk._cli import _compare, main
from adaptk._cli._compare import PROBLEMS, SOLVED, Run, best, mean_ranks, ranked

FULL_BATCH = {"delta_bar_delta", "rprop"}


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["compare", *arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


# Problems


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_are_those_of_the_loss(name: str) -> None:
    task = PROBLEMS[name].make(0, 44)
    rng = np.random.default_rng(1)
    params = [p.astype(np.float64) + 0.1 * rng.standard_normal(p.shape) for p in task.start]
    directions = [rng.standard_normal(p.shape) for p in params]

    def along(h: float) -> float:
        return task.loss([p + h * d for p, d in zip(params, directions, strict=True)])

    # Of all minibatches of an epoch together, which leave out a few digits.
    steps = range(44) if PROBLEMS[name].minibatches else range(1)
    grads = [np.mean([task.gradient(params, k)[i] for k in steps], axis=0) for i in range(len(params))]
    slope = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
    tolerance = 0.05 if PROBLEMS[name].minibatches else 1e-6
    assert slope == pytest.approx((along(1e-6) - along(-1e-6)) / 2e-6, rel=tolerance)


@pytest.mark.parametrize(
    ("name", "minimum"),
    [("ravine", (0.0, 0.0)), ("saddle", (0.0, math.sqrt(2))), ("rosenbrock", (1.0, 1.0)), ("beale", (3.0, 0.5))],
)
def test_the_minimum_of_a_surface_is_zero(name: str, minimum: tuple[float, float]) -> None:
    task = PROBLEMS[name].make(0, 1)
    assert task.loss([np.array(minimum)]) < 1e-30
    assert np.abs(task.gradient([np.array(minimum)], 0)[0]).max() < 1e-14
    assert task.loss(task.start) > 0.5


def test_the_logistic_regression_is_measured_from_its_minimum() -> None:
    task = PROBLEMS["logistic"].make(0, 1)
    params = [p.copy() for p in task.start]
    solver = pytest.importorskip("scipy.optimize", reason="SciPy finds the minimum too")
    found = solver.minimize(
        lambda w: task.loss([w]), params[0], jac=lambda w: task.gradient([w], 0)[0], method="BFGS", tol=1e-7
    )
    assert 0 <= found.fun < 1e-9
    assert task.loss(params) > 0.1


def test_minibatches_are_the_same_for_everyone_and_follow_the_seed() -> None:
    first, again, other = (_compare._batches(100, 32, 7, seed) for seed in (0, 0, 1))
    assert len(first) == 7
    assert all(len(batch) == 32 for batch in first)
    assert len(set(np.concatenate(first[:3]).tolist())) == 96
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not all((a == b).all() for a, b in zip(first, other, strict=True))


# Runs


def test_a_run_is_that_of_the_optimizer() -> None:
    task = PROBLEMS["rosenbrock"].make(0, 6)
    run = _compare.train(adaptk.rules()["adam"], task, 6, 0.1, points=3)
    p = task.start[0].copy()
    optimizer = adaptk.Adam([p], lr=0.1)
    losses = [task.loss([p])]
    for _ in range(6):
        optimizer.step(task.gradient([p], 0))
        losses.append(task.loss([p]))
    assert run.at == [0, 2, 4, 6]
    assert run.losses == losses[::2]


def test_a_run_ends_where_it_is_solved_or_lost() -> None:
    task = PROBLEMS["ravine"].make(0, 100)
    sgd = adaptk.rules()["sgd"]
    with np.errstate(all="raise"):
        lost = _compare.train(sgd, task, 100, 10.0)
    assert lost.final == math.inf
    assert lost.at[-1] < 100
    solved = _compare.train(adaptk.rules()["rprop"], task, 1000, 0.1)
    assert solved.solved
    assert solved.at[-1] < 1000


def test_interim_gradients_are_taken_at_the_interim_point() -> None:
    task = PROBLEMS["ravine"].make(0, 2)
    seen = []

    def gradient(params: Any, step: int) -> Any:
        seen.append(params[0].copy())
        return task.gradient(params, step)

    spy = _compare.Task(task.start, task.loss, gradient)
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
    # Below what counts as solved, fewer steps and not the smaller number.
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
    found = call(capsys, "--steps", "40", "--rates", "0.003,0.03,0.3")
    assert list(found["problems"]) == list(PROBLEMS)
    for name, problem in found["problems"].items():
        rules = problem["rules"]
        assert list(rules) == [r for r in adaptk.rules() if not (PROBLEMS[name].minibatches and r in FULL_BATCH)]
        assert len({r["losses"][0] for r in rules.values()}) == 1
        # At one of the rates each rule gets closer to the minimum.
        better = [r for r in rules.values() if r["loss"] is not None and r["loss"] < r["losses"][0]]
        assert len(better) >= len(rules) - 1
        for r in rules.values():
            assert r["lr"] in (0.003, 0.03, 0.3)
            assert r["at_end_of_rates"] == (r["lr"] != 0.03)
            assert len(r["loss_by_rate"]) == 3
            assert len(r["steps"]) == len(r["losses"])
    assert set(found["mean_rank"]) == set(adaptk.rules())
    assert adaptk.get_num_threads() == threads


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


def test_one_problem_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_nobody_takes_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--problems", "digits", "--rules", "rprop"]) == 1
    assert "rprop: full-batch gradients only, and digits has minibatches" in capsys.readouterr().err
