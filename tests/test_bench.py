"""The benchmark's command line, on small sizes. No measured value is asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import adaptk
import pytest
from adaptk import _bench
from adaptk.__main__ import main


def test_json_of_every_rule(tmp_path: Path, restored: None) -> None:
    path = tmp_path / "bench.json"
    assert main(["bench", "--sizes", "1000", "--repeats", "2", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert [r["rule"] for r in report["results"]] == list(adaptk.rules())
    for r in report["results"]:
        states = len(adaptk.rules()[r["rule"]].states)
        assert r["bytes_per_parameter"] == 4 * (3 + 2 * states)
        assert r["size"] == 1000
        assert r["seconds"] > 0
        assert r["of_ceiling"] > 0
    assert report["machine"]["version"] == adaptk.__version__


def test_selections(capsys: pytest.CaptureFixture[str], restored: None) -> None:
    isa, threads = adaptk.get_isa(), adaptk.get_num_threads()
    pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
    arguments = ["--rules", "adam,sgd", "--sizes", "1k,2K", "--dtypes", "float64,bfloat16,float16", "--isas", "all"]
    assert main(["bench", *arguments, "--threads", "1,2", "--repeats", "1", "--json", "-"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    got = {(r["rule"], r["size"], r["dtype"], r["isa"], r["threads"]) for r in results}
    assert got == {
        (rule, size, dtype, name, n)
        for rule in ("adam", "sgd")
        for size in (1000, 2048)
        for dtype in ("float64", "bfloat16", "float16")
        for name in adaptk.available_isas()
        for n in (1, 2)
    }
    by_dtype = {r["dtype"]: r["bytes_per_parameter"] for r in results if r["rule"] == "adam"}
    assert by_dtype == {"float64": 56, "bfloat16": 22, "float16": 22}
    assert (adaptk.get_isa(), adaptk.get_num_threads()) == (isa, threads)


def test_table_and_overhead(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--rules", "lion", "--sizes", "64", "--repeats", "1"]) == 0
    header, _, line, *legend = capsys.readouterr().out.splitlines()
    assert "of ceiling" in header
    assert line.split()[:3] == ["lion", "float32", "64"]
    assert "1.00 is as fast as memory allows" in " ".join(legend)
    assert main(["bench", "--overhead", "--repeats", "1"]) == 0
    header, _, one, thousand, *legend = capsys.readouterr().out.splitlines()
    assert "ops.adam on 64 elements" in one
    assert "1000 x 64" in thousand
    assert "below 1.00 it is the faster one" in " ".join(legend)


def test_an_interrupt_keeps_results(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measure = _bench.measure

    def interrupted(rule: adaptk.Rule, *arguments: Any) -> Any:
        if rule.name == "lion":
            raise KeyboardInterrupt
        return measure(rule, *arguments)

    monkeypatch.setattr(_bench, "measure", interrupted)
    assert main(["bench", "--rules", "adam,lion", "--sizes", "64", "--repeats", "1"]) == 130
    captured = capsys.readouterr()
    assert captured.out.splitlines()[2].split()[:3] == ["adam", "float32", "64"]
    assert "interrupted" in captured.err


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    path = tmp_path / "bench.png"
    assert main(["bench", "--sizes", "100", "--repeats", "1", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "adam,nothing"], "nothing"),
        (["--sizes", "0"], "'0'"),
        (["--sizes", "3T"], "3T"),
        (["--dtypes", "int8"], "int8"),
        (["--isas", "mmx"], "mmx"),
        (["--threads", "two"], "two"),
        (["--repeats", "0"], "--repeats"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "--sizes", "64", "--rules", "sgd", "--plot", "x.png"]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err
