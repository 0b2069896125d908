"""The benchmark against torch's optimizers, on small sizes. No measured value is asserted."""

from __future__ import annotations

import importlib
import json
import math
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import adaptk
import pytest

pytestmark = pytest.mark.full

pytest.importorskip("torch", reason="the race is against torch")
BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def race() -> SimpleNamespace:
    """The command, and its parts by name."""
    if str(BENCH) not in sys.path:
        sys.path.append(str(BENCH))
    parts = ("cases", "contenders", "measure", "report", "runner")
    return SimpleNamespace(
        main=importlib.import_module("torch_race").main,
        **{name: importlib.import_module(f"racing.{name}") for name in parts},
    )


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@pytest.fixture(scope="module")
def quick(race: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The smoke run: its report, its tables and its picture."""
    folder = tmp_path_factory.mktemp("race")
    arguments = ["--quick", "--json", str(folder / "race.json")]
    arguments += ["--markdown", str(folder / "race.md")]
    if _has("matplotlib"):
        arguments += ["--plot", str(folder / "race.png")]
    assert race.main(arguments) == 0
    return {
        "report": json.loads((folder / "race.json").read_text()),
        "text": (folder / "race.md").read_text(),
        "plot": folder / "race.png",
    }


def test_published_models(race: SimpleNamespace) -> None:
    def totals(model: str) -> tuple[int, int]:
        shapes = race.cases.case_shapes(model)
        return len(shapes), sum(math.prod(s) for s in shapes)

    assert totals("resnet50") == (161, 25_557_032)
    assert totals("gpt2") == (148, 124_439_808)
    assert totals("bert") == (199, 109_482_240)
    assert race.cases.case_shapes("3x2K") == [(2048,)] * 3
    assert race.cases.case_shapes("64M") == [(64 * 1024**2,)]


def test_every_rule_races(race: SimpleNamespace) -> None:
    assert set(race.contenders.RACES) == set(adaptk.rules())
    assert set(race.contenders.USUAL) <= set(race.contenders.RACES)


def test_every_peer_is_a_library(race: SimpleNamespace) -> None:
    libraries = race.contenders.LIBRARIES
    assert {name for r in race.contenders.RACES.values() for name in r.peers} <= set(libraries)
    assert all((library.optimizer is None) != (library.arrays is None) for library in libraries.values())


def test_a_new_library_and_a_new_model_are_entries_of_tables(
    race: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    library = race.contenders.Library
    mine = library("mine, of torch's interface", lambda r, params: torch.optim.SGD(params), packages=("numpy", "rich"))
    steps: list[Any] = []
    arrays = library(
        "mine, with arrays of its own",
        arrays=lambda r, shapes: race.contenders.Contender(lambda: steps.append(shapes)),
        no_fresh="no such gradients",
        no_loops="no such networks",
    )
    monkeypatch.setitem(race.contenders.LIBRARIES, "mine", mine)
    monkeypatch.setitem(race.contenders.LIBRARIES, "arrays", arrays)
    monkeypatch.setitem(race.cases.MODELS, "tiny", race.cases.Model("Tiny", lambda: [(32, 2), (16,)], usual=True))
    setting = race.measure.Setting(1, ["adaptk", "mine", "arrays"], race.measure.Effort(2, 0.1, 0, 0), 1, quick=False)
    shapes = race.cases.case_shapes("tiny")
    kept = race.measure.race_steps(setting, "tiny", "adam", "kept", shapes)
    fresh = race.measure.race_steps(setting, "tiny", "adam", "fresh", shapes)
    loop = race.measure.race_loop(setting, "digits")
    assert set(kept["contenders"]) == {"adaptk", "mine", "arrays"}
    assert steps[0] == [(32, 2), (16,)]
    assert set(fresh["contenders"]) == set(loop["contenders"]) == {"adaptk", "mine"}
    assert fresh["skipped"] == {"arrays": "no such gradients"}
    assert loop["skipped"] == {"arrays": "no such networks"}
    report = {
        "machine": race.runner.described_machine(),
        "options": {"threads": [1], "quick": False, "contenders": setting.libraries},
        "load_before": None,
        "load_after": None,
        "steps": [kept, fresh],
        "loops": [loop],
        "targets": [],
    }
    text = race.report.markdown(report)
    assert f"rich {report['machine']['rich']}" in text
    assert "### Tiny: 2 tensors, 80 elements, gradients kept, 1 thread" in text
    assert "| mine, of torch's interface | mine, with arrays of its own |" in text


def test_a_step_that_does_not_stay_compiled_does_not_count(
    race: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    contender = race.contenders.Contender(lambda: None, invalid=lambda: "has changed")
    library = race.contenders.Library("changes", arrays=lambda r, shapes: contender)
    monkeypatch.setitem(race.contenders.LIBRARIES, "changes", library)
    setting = race.measure.Setting(1, ["adaptk", "changes"], race.measure.Effort(2, 0.1, 0, 0), 1, quick=False)
    record = race.measure.race_steps(setting, "64", "adam", "kept", [(64,)])
    assert set(record["contenders"]) == {"adaptk"}
    assert record["skipped"] == {"changes": "has changed"}


def test_the_networks(race: SimpleNamespace) -> None:
    assert len(race.cases.source_text()) > 100_000
    for loop in race.cases.LOOPS.values():
        params, loss = loop.network()
        assert sum(p.numel() for p in params) > 1000
        assert math.isfinite(loss(0).item())


def test_every_case_is_there(race: SimpleNamespace, quick: dict[str, Any]) -> None:
    report = quick["report"]
    got = {(r["case"], r["rule"], r["gradients"]) for r in report["steps"]}
    cases = [c for c in race.cases.CASES if c not in race.cases.LOOPS]
    rules = ("adam", "rmsprop", "lion")
    assert got == {(s, rule, "kept") for s in ("64", "4K") for rule in rules} | {
        (c, rule, g) for c in cases for rule in rules for g in ("kept", "fresh")
    }
    assert [r["case"] for r in report["loops"]] == list(race.cases.LOOPS)
    assert report["machine"]["version"] == adaptk.__version__
    assert report["machine"]["torch"]
    assert {r["threads"] for r in report["steps"]} == {1}


def _check_ratios(contenders: dict[str, Any]) -> None:
    ours = statistics.median(contenders["adaptk"]["seconds"])
    for c in contenders.values():
        assert all(0 < s < 60 for s in c["seconds"])
        assert c["median"] == statistics.median(c["seconds"])
        assert c["speedup"] == pytest.approx(c["median"] / ours)
        assert c["quartiles"][0] <= c["quartiles"][1]


def test_steps_are_plausible(quick: dict[str, Any]) -> None:
    for r in quick["report"]["steps"]:
        contenders = r["contenders"]
        _check_ratios(contenders)
        expected = {"adaptk"}
        if r["rule"] != "lion":
            expected |= {"foreach", "single"}
        if r["rule"] == "adam":
            expected.add("fused")
        if _has("optax") and r["tensors"] == 1:
            expected.add("optax")
        assert expected <= set(contenders)
        assert not set(contenders) & set(r["skipped"])
        assert set(contenders) | set(r["skipped"]) == set(quick["report"]["options"]["contenders"])
        assert len({len(c["seconds"]) for c in contenders.values()}) == 1


def test_loops_are_plausible(race: SimpleNamespace, quick: dict[str, Any]) -> None:
    for r in quick["report"]["loops"]:
        assert {"adaptk", "fused", "foreach", "single"} <= set(r["contenders"])
        for part in race.cases.PARTS:
            _check_ratios({name: c[part] for name, c in r["contenders"].items()})
        for c in r["contenders"].values():
            sides = zip(*(c[p]["seconds"] for p in race.cases.PARTS), strict=True)
            assert all(total >= step + network for total, step, network in sides)
        # The same network on the same data: all reach the same loss.
        losses = [c["loss"] for c in r["contenders"].values()]
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-3)


def test_tables_parse(race: SimpleNamespace, quick: dict[str, Any]) -> None:
    lines = quick["text"].splitlines()
    assert "A smoke run" in quick["text"]
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 60
    width = 0
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            if not before.startswith("|"):
                width = line.count("|")
            assert line.count("|") == width
            assert line.endswith("|")
    for target in quick["report"]["targets"]:
        assert any(row.startswith(f"| {target['what']} ") for row in rows)
    first = next(r for r in quick["report"]["steps"] if r["rule"] == "adam" and r["case"] == "64")
    assert f"| {race.report.number(first['contenders']['fused']['speedup'])} (" in quick["text"]


@pytest.mark.skipif(not _has("matplotlib"), reason="the picture needs matplotlib")
def test_picture(quick: dict[str, Any]) -> None:
    data = quick["plot"].read_bytes()
    assert data.startswith(b"\x89PNG")
    # 8 inches: at 800 pixels the smallest letters have ten pixels.
    assert int.from_bytes(data[16:20], "big") == 1600


def _record(race: SimpleNamespace, case: str, rule: str, times: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    shapes = race.cases.case_shapes(case)
    return {
        "kind": "steps",
        "threads": 2,
        "case": case,
        "rule": rule,
        "gradients": "kept",
        "tensors": len(shapes),
        "elements": sum(math.prod(s) for s in shapes),
        "shrunk": False,
        "contenders": race.measure.compared(times, "adaptk"),
        "skipped": {},
        "of_ceiling": None,
        **more,
    }


def test_targets_and_check(race: SimpleNamespace, quick: dict[str, Any], tmp_path: Path) -> None:
    mine = [1.0, 1.0, 2.0]
    records = [
        _record(race, "64M", "adam", {"adaptk": mine, "fused": [1.5] * 3, "single": [9.0] * 3}, of_ceiling=0.97),
        _record(race, "64M", "sgd", {"adaptk": mine, "fused": [1.2] * 3}),
        _record(race, "64M", "momentum", {"adaptk": mine, "fused": [1.1] * 3}),
        _record(race, "64M", "rmsprop", {"adaptk": mine, "foreach": [5.0] * 3, "compiled": [1.0] * 3}),
        _record(race, "1M", "adam", {"adaptk": mine, "fused": [1.1] * 3}),
        # Targets do not apply to other gradients, fewer threads or a smaller case.
        _record(race, "1000x64", "adam", {"adaptk": mine, "fused": [1.0] * 3}, gradients="fresh"),
        _record(race, "1000x64", "adam", {"adaptk": mine, "fused": [1.0] * 3}, threads=1),
    ]
    found = {t.what: t for t in race.report.outcomes(records)}
    assert found["Adam, 64M / torch fused"].value == 1.5
    assert found["Adam, 64M / torch fused"].met
    assert found["SGD, 64M / torch fused"].value == pytest.approx(1.1)
    assert found["SGD, 64M / torch fused"].worst == "momentum"
    assert found["RMSprop, 64M / torch's best, not compiled"].value == 5.0
    assert found["Adam, 1M / torch fused"].met is False
    assert found["Adam, 1000 x 64 / torch fused"].met is None
    assert found["every rule, 64M, share of the ceiling"].value == 0.97
    report = {**quick["report"], "steps": records, "loops": []}
    path, text = tmp_path / "given.json", str(tmp_path / "given.md")
    path.write_text(json.dumps(report))
    assert race.main(["--from", str(path), "--markdown", text]) == 0
    assert race.main(["--from", str(path), "--markdown", text, "--check"]) == 1
    path.write_text(json.dumps({**report, "steps": records[:4]}))
    assert race.main(["--from", str(path), "--markdown", text, "--check"]) == 0
    path.write_text(json.dumps({**report, "steps": []}))
    assert race.main(["--from", str(path), "--markdown", text, "--check"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "adam,nothing"], "nothing"),
        (["--sizes", "0"], "'0'"),
        (["--cases", "1x64"], "1x64"),
        (["--cases", "alexnet"], "alexnet"),
        (["--contenders", "keras"], "keras"),
        (["--threads", "two"], "two"),
        (["--repeats", "0"], "--repeats"),
        (["--quick", "--check"], "smoke"),
    ],
)
def test_wrong_arguments(
    race: SimpleNamespace, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        race.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
