"""The demo's sparse part: its text, gradients, runs and output."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import _demo
from adaptk._cli import _rare_words, _texts, main
from adaptk._cli._screen import Screen

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
PACKAGES = ("adaptk_text_one", "adaptk_text_two")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """Two packages of 40 lines. The first five and the last five words are those of one package each."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(PACKAGES):
        (tmp_path / name).mkdir()
        lines = [f"# {name} " + " ".join(rng.choice(WORDS[5 * k : 5 * k + 5], 2)) for _ in range(40)]
        (tmp_path / name / "__init__.py").write_text("\n".join(lines[:25]))
        (tmp_path / name / "more.py").write_text("\n".join(lines[25:]))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield PACKAGES
    for name in PACKAGES:
        sys.modules.pop(name, None)


def read(packages: tuple[str, ...], seed: int = 0) -> _texts.Passages:
    text = _texts.passages(2, 100, 0.25, seed, packages)
    assert text is not None
    return text


def test_passages_are_bags_of_words(packages: tuple[str, ...]) -> None:
    text = read(packages)
    assert text.packages == list(packages)
    assert len(text.labels) == 40
    assert text.train == 30
    # "adaptk", "text", "one" and "two" do not occur in only one package.
    single = {word for word in text.words if " " not in word}
    assert single == {*WORDS, "adaptk", "text", "one", "two"}
    assert {"adaptk text", "text one"} < set(text.words) - single
    row, word, value = text.rows(np.arange(40))
    assert np.allclose(np.bincount(row, value.astype(np.float64) ** 2, 40), 1.0)
    for i in range(40):
        own = {text.words[j] for j in word[row == i]} & set(WORDS)
        assert own <= set(WORDS[:5] if text.labels[i] == 0 else WORDS[5:])
        assert 1 <= len(own) <= 4
    counts = np.bincount(word[row < text.train], minlength=len(text.words))
    assert (counts == text.counts).all()
    assert text.counts.min() >= 2
    again, other = read(packages), read(packages, 1)
    assert (again.indices == text.indices).all()
    assert (again.labels == text.labels).all()
    assert (other.labels != text.labels).any()


def test_no_passages_without_sources(tmp_path: Path, packages: tuple[str, ...]) -> None:
    assert _texts.passages(2, 100, 0.25, 0, (packages[0], "adaptk_text_none")) is None
    assert _texts.sources("adaptk_text_none") == ""


def test_the_rows_of_some_passages(packages: tuple[str, ...]) -> None:
    text = read(packages)
    which = np.array([7, 3, 7])
    row, word, value = text.rows(which)
    for i, passage in enumerate(which):
        inside = slice(text.starts[passage], text.starts[passage + 1])
        assert (word[row == i] == text.indices[inside]).all()
        assert (value[row == i] == text.values[inside]).all()


def test_the_gradient_matches_differences_of_the_loss(packages: tuple[str, ...]) -> None:
    text = read(packages)
    rng = np.random.default_rng(1)
    weights, direction = (rng.standard_normal((len(text.words), 2)) for _ in range(2))
    which = np.array([0, 5, 9])
    index, values = _rare_words.gradient(weights, text, which)
    whole = np.zeros_like(weights)
    np.add.at(whole, index, values)

    def along(h: float) -> float:
        return _rare_words.loss(weights + h * direction, text, which)

    # Values of words are float32.
    assert float((whole * direction).sum()) == pytest.approx((along(1e-5) - along(-1e-5)) / 2e-5, rel=1e-5)


def test_words_can_be_left_out(packages: tuple[str, ...]) -> None:
    text = read(packages)
    weights = np.ones((len(text.words), 2))
    which = np.arange(5)
    mask = np.arange(len(text.words)) % 2 == 0
    both = sum(_rare_words.scores(weights, text, which, words) for words in (mask, ~mask))
    np.testing.assert_allclose(both, _rare_words.scores(weights, text, which))
    assert not _rare_words.scores(weights, text, which, np.zeros_like(mask)).any()


def test_runs_match_sparse_steps(packages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    text = read(packages)
    monkeypatch.setattr(_rare_words, "RATES", (1e-3, 1.0))
    runs = _rare_words.run_all(text, 0)
    assert [run.rule for run in runs] == ["sgd", "adagrad"]
    for run in runs:
        assert run.rate == 1.0  # the other rate is too small
        assert len(run.losses) == text.train // _rare_words.BATCH
        assert run.losses[0] == pytest.approx(np.log(2))
        assert run.losses[-1] < run.losses[0]
        assert run.right > 0.9
        assert run.right_by_rare == np.mean(text.labels[text.train :] == 0)  # no word is rare: all scores are 0
    # The same steps with dense gradients.
    weights = np.zeros((len(text.words), 2), np.float32)
    optimizer = adaptk.AdaGrad([weights], lr=1.0)
    order = np.random.default_rng(0).permutation(text.train)
    losses = []
    for begin in range(0, text.train - _rare_words.BATCH + 1, _rare_words.BATCH):
        batch = order[begin : begin + _rare_words.BATCH]
        losses.append(_rare_words.loss(weights, text, batch))
        index, values = _rare_words.gradient(weights, text, batch)
        dense = np.zeros_like(weights)
        np.add.at(dense, index, values)
        optimizer.step([dense])
    np.testing.assert_allclose(losses, runs[1].losses, rtol=1e-4)


def test_output(packages: tuple[str, ...]) -> None:
    text = read(packages)
    run = _rare_words.Run("adagrad", 0.3, [0.7, 0.01], 0.875, 0.5, 2e-6, 5e-6)
    out = io.StringIO()
    _rare_words.show(Screen(out), text, [run])
    shown = out.getvalue()
    assert shown.startswith("Sparse gradients: 30 passages of 2 packages")
    assert shown.splitlines()[-1].split() == [
        *("adagrad", "0.3", "0.355", "87.5%", "50.0%"),
        *("2.0", "us", "5.0", "us", "2.5x"),
    ]


def demo(*arguments: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["demo", "--epochs", "1", "--rules", "adam", "--models", "softmax", "--no-fits", *arguments]) == 0
    return out.getvalue()


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not _texts.sources("xml"):
        pytest.skip("the standard library has no sources here")
    monkeypatch.setattr(_demo, "LARGE", 5_000)
    monkeypatch.setattr(_rare_words, "RATES", (1.0,))
    monkeypatch.setattr(_rare_words, "MOST", 60)
    path = tmp_path / "out.json"
    shown = demo("--json", str(path))
    assert "Sparse gradients: " in shown
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["sparse"]
    assert found["packages"] == list(_texts.PACKAGES)
    assert list(found["rules"]) == ["sgd", "adagrad"]
    for run in found["rules"].values():
        assert run["lr"] == 1.0
        assert 0 < run["loss"] < np.log(8)
        assert run["test_accuracy"] > 2 / len(_texts.PACKAGES)
        assert run["ratio"] == pytest.approx(run["dense_step_seconds"] / run["step_seconds"])
    assert json.loads(demo("--json", "-", "--no-sparse"))["sparse"] is None
    monkeypatch.setattr(_demo._rare_words, "read_passages", lambda seed: None)
    assert "the sources of the standard library, which this part reads, are not there" in demo()
    assert json.loads(demo("--json", "-"))["sparse"] is None
