"""`bench --readme`: the block of figures, processes that fail, and the place in the README."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import adaptk
import pytest
from adaptk._cli import _figures, main
from adaptk._cli._figures import BEGIN_LINE, END, STUDIES, Study

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not (ROOT / "bench" / "torch_race.py").exists(), reason="only in a checkout")


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def steps(rule: str, case: str, tensors: int, elements: int, **speedups: float) -> dict[str, Any]:
    return {
        "rule": rule,
        "case": case,
        "tensors": tensors,
        "elements": elements,
        "contenders": {"adaptk": {"speedup": 1.0}, **{name: {"speedup": s} for name, s in speedups.items()}},
        "skipped": {"deepspeed": "not installed (ModuleNotFoundError)"},
    }


RAW: dict[str, dict[str, Any]] = {
    "ceiling": {"results": [{"size": 64 << 20, "of_ceiling": share} for share in (0.961, 1.002, 1.094)]},
    "overhead": {"overhead": {"one": 0.8, "thousand": 0.25}},
    "dtypes": {"size": 64 << 20, "ratios": {"adam": {"bfloat16": 1.5}, "yogi": {"bfloat16": 0.79}}},
    "solve": {
        "nist": {"ratio": 6.41, "digits": {"ours": [11.0] * 54, "scipy": [11.0] * 8 + [7.0] * 46}},
        "small": [
            {"m": m, "jacobian": j, "ratio": r} for m, j, r in ((10, "differences", 8.4), (50, "differences", 10.2))
        ]
        + [{"m": 10, "jacobian": "exact Jacobian", "ratio": 4.0}],
        "newton": {"1000": 1.02},
    },
    "solve_batch": {dtype: {"batch": 1.0, "scalar C++, -O3": r} for dtype, r in (("float32", 7.8), ("float64", 5.2))},
    "jax": {
        "results": [
            {"rule": "adam", "size": "64M", "seconds": {"optax": 2.0, "adaptk": 1.0, "packed": 1.0}},
            {"rule": "adam", "size": "1000 x 64", "seconds": {"optax": 2.6, "adaptk": 2.0, "packed": 1.0}},
        ]
    },
    "cpp": {
        "openmp": True,
        "nanoseconds": {"beyond_run": 67.4, "beyond_loop": 180.2},
        "results": [
            {"rule": rule, "dtype": dtype, "size": "64M", "seconds": {"armadillo": ratio, "adaptk": 1.0}}
            for rule, ratio in (("adam", 4.1), ("rmsprop", 3.2))
            for dtype in ("float", "double")
        ],
    },
    "import": {"numpy": 0.075, "adaptk": 0.031},
    "torch_small": {
        "steps": [steps("adam", "1000x64", 1000, 64000, fused=19.0, foreach=22.0)],
        "loops": [{"case": "digits", "contenders": {"fused": {"total": {"speedup": 1.6}}}}],
    },
    "torch_large": {
        "steps": [
            steps("adam", "64M", 1, 64 << 20, fused=1.14, single=5.0, optax=1.85),
            steps("rmsprop", "64M", 1, 64 << 20, foreach=4.87, single=6.0),
        ],
        "loops": [],
    },
}


@pytest.fixture
def report() -> dict[str, Any]:
    studies: dict[str, Any] = {name: {"seconds": 1.0, "raw": copy.deepcopy(raw)} for name, raw in RAW.items()}
    studies["cpp_one_thread"] = {"left_out": "needs Armadillo's headers (Debian: libarmadillo-dev)"}
    machine = {**_figures.machine(), "processor": "Some CPU", "cores": 2}
    return {"date": "2026-01-02", "machine": machine, "quick": False, "load_before": 0.0, "studies": studies}


@pytest.fixture
def kept(report: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "kept.json"
    path.write_text(json.dumps(report))
    return path


# The block


def test_contents_of_the_block(report: dict[str, Any]) -> None:
    text = _figures.block(report)
    assert text.startswith(BEGIN_LINE)
    assert text.endswith(END)
    assert "Measured on 2026-01-02: Some CPU, 2 cores" in text
    assert f"adaptk {adaptk.__version__} ({adaptk.get_isa()}, {adaptk.get_num_threads()} threads" in text
    figures = {
        what: (figure, command) for what, figure, command in re.findall(r"^\| (.+) \| (.+) \| `(.+)` \|$", text, re.M)
    }
    want = {
        "share of the memory ceiling: each of 3 rules, float32, 64M": "0.96 to 1.09",
        "`numpy.add(a, b, out=a)` / one call of `ops.adam`, 64": "1.25",
        "1,000 calls of `numpy.add` / one `Adam.step`": "4.00",
        "a step in float32 / the same in bfloat16": "0.79 to 1.50 (below 0.95: yogi 0.79)",
        "fits of NIST's reference sets that reach 10": "54 of 54 (8)",
        "SciPy's `least_squares(method='lm')`": "6.41",
        "the same, fits of 2 parameters, default": "8.40 to 10.2",
        "the same, fits of 2 parameters, exact": "4.00",
        "SciPy's `cho_factor`": "1.02",
        "plain C++ loop": "7.80 (5.20)",
        "optax / `adaptk.jax`'s `apply`, both jitted, adam, 64M": "2.00 (2.00)",
        "optax / `adaptk.jax`'s `apply`, both jitted, adam, 1000 x 64": "1.30 (2.60)",
        "Armadillo's expressions / `plan.step` in C++, 64M floats: adam, rmsprop": "4.10, 3.20",
        "`plan.step` in C++ on 64 elements": "67 (180)",
        "`import adaptk` after NumPy, in ms (`import numpy`: 75)": "31",
        "training step of the digits network": "1.60",
    }
    for begin, figure in want.items():
        (found,) = (f for what, (f, _) in figures.items() if what.startswith(begin))
        assert found == figure, begin
    assert len(figures) == len(want)
    assert {command for _, command in figures.values()} >= {"python -m adaptk bench", "python bench/solve.py"}
    assert "| rule | 1000 x 64 | 64M | optax, jitted, 64M |" in text
    assert "| `adam` | 19.0 | 1.14 | 1.85 |" in text
    assert "| `rmsprop` |  | 4.87 |  |" in text
    assert "Not measured: cpp_one_thread: needs Armadillo's headers" in text
    assert "DeepSpeed: not installed" in text
    assert "smoke" not in text
    assert "smoke" in _figures.block({**report, "quick": True})


def test_every_study_has_a_table_row(report: dict[str, Any]) -> None:
    assert set(report["studies"]) == set(STUDIES)
    for name, found in report["studies"].items():
        if "raw" in found:
            assert STUDIES[name].claims(found["raw"]) or name == "torch_large"
    assert sum(study.seconds for study in STUDIES.values()) <= 12 * 60


def test_the_scripts_exist() -> None:
    for study in STUDIES.values():
        assert study.command[0] == "-m" or (ROOT / study.command[0]).is_file()


def test_empty_report(report: dict[str, Any]) -> None:
    text = _figures.block({**report, "studies": {}})
    assert "Not measured" not in text
    assert text.count("\n|") == 2


# The README


def test_the_block_is_written_between_its_markers(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.md"
    before, after = "# Title\n\nAbove: 1.5\n\n", "\n\nBelow\n"
    path.write_text(f"{before}{BEGIN_LINE}\nold\n{END}{after}", encoding="utf-8")
    for _ in range(2):
        assert main(["bench", "--readme", "--from", str(kept), "--write", str(path)]) == 0
        text = path.read_text(encoding="utf-8")
        assert text == before + _figures.block(json.loads(kept.read_text())) + after
    assert "page.md" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", f"{BEGIN_LINE}\n", f"{END}\n{BEGIN_LINE}\n", f"{BEGIN_LINE}\n{END}\n" * 2])
def test_a_document_without_markers(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_figures, "run_study", lambda *_: pytest.fail("measured first"))
    path = tmp_path / "page.md"
    path.write_text(text)
    assert main(["bench", "--readme", "--write", str(path)]) == 1
    assert f"must have the line {BEGIN_LINE} once" in capsys.readouterr().err
    assert path.read_text() == text


# Claims of how many times as fast something is.
SPEED = re.compile(r"\d(\.\d+)?\s*(x|times) (as fast|faster|as long|longer)|\b\d+(\.\d+)?x\b|\d+% (faster|slower)")


@pytest.mark.skipif(_figures.BEGIN not in README.read_text(encoding="utf-8"), reason="the README has no block yet")
def test_the_readme_has_the_saved_figures() -> None:
    text = README.read_text(encoding="utf-8")
    begin, end = _figures.between_markers(text)
    report = _figures.load(ROOT / _figures.KEPT)
    assert text[begin:end] == _figures.block(report)
    assert not report["quick"]
    assert not any(f.get("left_out", "").startswith("failed") for f in report["studies"].values())
    # And there are no others elsewhere.
    assert [m[0] for m in SPEED.finditer(text[:begin] + text[end:])] == []


def test_figure_pattern() -> None:
    for text in ("is 3 times as fast", "1.14x", "2.5 times faster", "10% slower", "takes 1.6 times as long"):
        assert SPEED.search(text), text
    for text in ("200 x 4096", "x86-64", "5 x 5 pixels", "10 of the 11 digits", "Python 3.10", "0x10"):
        assert not SPEED.search(text), text


# Running


def script(tmp_path: Path, name: str, code: str) -> str:
    path = tmp_path / f"{name}.py"
    path.write_text(
        "import json, pathlib, sys, time\nto = pathlib.Path(sys.argv[sys.argv.index('--json') + 1])\n" + code
    )
    return str(path)


GOOD = "to.write_text(json.dumps({'numpy': 0.1, 'adaptk': 0.05, 'seconds': [1.0, 2.0], 'arguments': sys.argv[1:-2]}))"


def study(command: str, *needs: _figures.Need, seconds: float = 0.5) -> Study:
    return Study((command,), ("--short",), STUDIES["import"].claims, seconds, needs)


def test_a_failing_study_keeps_other_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> str:
        return "needs nothing that there is"

    studies = {
        "broken": study(script(tmp_path, "broken", "print('text', file=sys.stderr); raise ValueError('lost')")),
        "absent": study(script(tmp_path, "absent", GOOD), missing),
        "silent": study(script(tmp_path, "silent", "pass")),
        "other": study(script(tmp_path, "other", "to.write_text('{}')")),
        "hangs": study(script(tmp_path, "hangs", "time.sleep(60)"), seconds=0.1),
        "good": study(script(tmp_path, "good", "print('not for stdout'); " + GOOD)),
    }
    monkeypatch.setattr(_figures, "STUDIES", studies)
    monkeypatch.setattr(_figures, "MIN_PATIENCE", 5.0)
    path = tmp_path / "results.json"
    assert main(["bench", "--readme", "--json", str(path)]) == 1
    out, err = capsys.readouterr()
    found = json.loads(path.read_text())["studies"]
    assert list(found) == list(studies)
    assert found["broken"] == {"left_out": "failed with status 1: ValueError: lost"}
    assert found["absent"] == {"left_out": "needs nothing that there is"}
    assert found["silent"]["left_out"].startswith("failed: no results that can be read (FileNotFoundError")
    assert found["other"]["left_out"].startswith("failed: no results that can be read (KeyError")
    assert found["hangs"]["left_out"].startswith("failed: stopped after")
    # The rounds are not kept.
    assert found["good"]["raw"] == {"numpy": 0.1, "adaptk": 0.05, "arguments": []}
    assert "(`import numpy`: 100) | 50 |" in out
    assert "broken: failed with status 1: ValueError: lost" in out
    assert "not for stdout" not in out
    assert "failed: broken, silent, other, hangs" in err
    assert "[6/6] good: " in err


def test_results_are_kept_after_each_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_study(study: Study, *_: Any) -> Any:
        if study is STUDIES["overhead"]:
            raise KeyboardInterrupt
        return {"seconds": 1.0, "raw": RAW["ceiling"]}

    monkeypatch.setattr(_figures, "run_study", run_study)
    path = tmp_path / "results.json"
    assert main(["bench", "--readme", "--json", str(path)]) == 130
    assert list(json.loads(path.read_text())["studies"]) == ["ceiling"]


def test_some_studies_again(
    kept: Path,
    report: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(STUDIES, "import", study(script(tmp_path, "good", GOOD)))
    path = tmp_path / "new.json"
    again = ["bench", "--readme", "--only", "import", "--from", str(kept), "--json", str(path)]
    # The processor of the kept results is another one.
    assert main(again) == 1
    assert "another machine" in capsys.readouterr().err
    kept.write_text(json.dumps({**report, "machine": _figures.machine()}))
    assert main(again) == 0
    found = json.loads(path.read_text())["studies"]
    assert found["import"]["raw"]["adaptk"] == 0.05
    assert found["jax"] == report["studies"]["jax"]


def test_json_alone_on_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STUDIES, "import", study(script(tmp_path, "good", GOOD)))
    assert main(["bench", "--readme", "--quick", "--only", "import", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["quick"] is True
    assert found["studies"]["import"]["raw"]["arguments"] == ["--short"]


def test_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--readme"]) == 1
    assert "in a checkout of the repository and not in the installed package" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick"], "belong to --readme"),
        (["--readme", "--quick", "--write", "x.md"], "--quick"),
        (["--readme", "--device", "cuda"], "--device"),
        (["--readme", "--only", "tourch_small"], "did you mean torch_small"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"studies": 3, "machine": {}}'])
def test_a_file_without_results(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert main(["bench", "--readme", "--from", str(path)]) == 1
    assert "no results of bench --readme" in capsys.readouterr().err


def test_missing_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for need in (_figures.compiler, _figures.armadillo):
        assert "needs a C++ compiler: there is no no-such-compiler" in str(need())
    assert _figures.package("nothing_of_that_name")() == "needs nothing_of_that_name: pip install nothing_of_that_name"
    assert _figures.package("numpy")() is None
    assert _figures.built("_nothing", "such part")() == "this build of adaptk has no such part"


SHORT = "ceiling,overhead,dtypes,import"


@pytest.mark.parametrize(
    "only", [SHORT, pytest.param(",".join(STUDIES), marks=pytest.mark.full)], ids=["short", "everything"]
)
def test_a_smoke_run(only: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every script accepts its arguments and writes the numbers that its claims read."""
    path = tmp_path / "results.json"
    assert main(["bench", "--readme", "--quick", "--only", only, "--json", str(path)]) == 0, capsys.readouterr().err
    found = json.loads(path.read_text())["studies"]
    assert list(found) == only.split(",")
    for name, results in found.items():
        assert "raw" in results or results["left_out"].startswith(("needs ", "this build")), (name, results)
    assert "A smoke run" in capsys.readouterr().out
    if "torch_small" in found and "raw" in found["torch_small"] and "matplotlib" in sys.modules:
        assert main(["bench", "--readme", "--from", str(path), "--plot", str(tmp_path / "x.png")]) == 0


# The picture


def test_the_picture(kept: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    files = [tmp_path / name for name in ("a.svg", "b.svg", "c.png")]
    for path in files:
        assert main(["bench", "--readme", "--from", str(kept), "--plot", str(path)]) == 0
    text = files[0].read_text(encoding="utf-8")
    # Texts are drawn as outlines, with the text itself in a comment.
    for words in ("Adam, 64M parameters", "torch, fused=True", "1.14x", "Adam, 1,000 small tensors", "19.0x", "adaptk"):
        assert f"<!-- {words} -->" in text
    # torch's best implementation: RMSProp is not fused there.
    assert "<!-- torch, foreach=True -->" in text
    assert "<!-- 4.87x -->" in text
    assert files[1].read_text(encoding="utf-8") == text
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_an_empty_picture(report: dict[str, Any], kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    kept.write_text(json.dumps({**report, "studies": {"import": report["studies"]["import"]}}))
    assert main(["bench", "--readme", "--from", str(kept), "--plot", str(kept.with_suffix(".png"))]) == 1
    assert "none of the studies" in capsys.readouterr().err
