"""Curricula: pacing, orders, passes, states and self-paced selection."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk.curriculum import Curriculum, SelfPaced, pacing

ALL_AT_ONCE = pacing.step(1.0, total=1)


def take(curriculum: Curriculum, n: int) -> list[list[int]]:
    return [batch.tolist() for batch in itertools.islice(curriculum, n)]


# Pacing


def test_linear_and_root_match_the_paper() -> None:
    """Platanios et al. 2019, equations 5 to 7, whose t counts from 0."""
    c0, total = 0.05, 40
    for t in range(60):
        linear = min(1.0, t * (1 - c0) / total + c0)
        assert pacing.linear(c0, total=total)(t + 1) == pytest.approx(linear, rel=1e-14)
        for p in (1.0, 2.0, 3.0, 10.0):
            root = min(1.0, (t * (1 - c0**p) / total + c0**p) ** (1 / p))
            assert pacing.root(c0, total=total, power=p)(t + 1) == pytest.approx(root, rel=1e-13)
    for share in (pacing.linear(c0, total=total), pacing.root(c0, total=total)):
        assert share(total) < 1
        assert share(total + 1) == share(10**9) == 1


def test_exponential_and_step_match_the_paper() -> None:
    """Hacohen and Weinshall 2019: fixed and varied exponential, and single-step pacing, whose i counts from 0."""
    start, increase = 0.04, 1.9
    stages = [3, 5, 1, 7, 2]
    for i in range(60):
        fixed = min(start * increase ** (i // 4), 1)
        varied = min(start * increase ** sum(i >= sum(stages[: k + 1]) for k in range(len(stages))), 1)
        assert pacing.exponential(start, every=4, factor=increase)(i + 1) == pytest.approx(fixed, rel=1e-13)
        assert pacing.exponential(start, every=stages, factor=increase)(i + 1) == pytest.approx(varied, rel=1e-13)
        assert pacing.step(start, total=9)(i + 1) == (start if i < 9 else 1)
    assert pacing.exponential(0.5, every=1)(10**9) == 1


@pytest.mark.parametrize(
    "share",
    [
        pacing.linear(0.25, total=10),
        pacing.root(0.25, total=10, power=3.0),
        pacing.exponential(0.25, every=3, factor=1.5),
        pacing.exponential(0.25, every=(3, 4), factor=1.5),
        pacing.step(0.25, total=10),
    ],
)
def test_pacing_objects(share: pacing.Pacing) -> None:
    assert eval(repr(share), vars(pacing).copy()) == share
    assert pickle.loads(pickle.dumps(share)) == share
    assert len({share, pickle.loads(pickle.dumps(share))}) == 1
    assert share(np.int64(3)) == share(3.0) == share(3)
    values = [share(t) for t in range(1, 40)]
    assert values == sorted(values)
    assert values[0] == 0.25
    for wrong in (0, -1, 0.5, math.nan):
        with pytest.raises(ValueError, match="t"):
            share(wrong)
    with pytest.raises(TypeError, match="t must be"):
        share("1")  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        share.start = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: pacing.linear(0.0, total=1), ValueError, "start must be a finite number > 0 and <= 1, got 0.0"),
        (lambda: pacing.linear(1.1, total=1), ValueError, "start must be"),
        (lambda: pacing.linear(math.nan, total=1), ValueError, "start must be"),
        (lambda: pacing.linear("a", total=1), TypeError, "start must be a number, got 'a'"),
        (lambda: pacing.linear(0.5, total=0), ValueError, "total must be >= 1, got 0"),
        (lambda: pacing.root(0.5, total=2.0), TypeError, "total must be an integer, got 2.0"),
        (lambda: pacing.root(0.5, total=2, power=0), ValueError, "power must be a finite number > 0"),
        (lambda: pacing.exponential(0.5, every=[]), ValueError, "every: an empty list"),
        (lambda: pacing.exponential(0.5, every=[1, 0]), ValueError, r"every\[1\] must be >= 1, got 0"),
        (lambda: pacing.exponential(0.5, every="12"), TypeError, "every must be an integer"),
        (lambda: pacing.exponential(0.5, every=2, factor=1), ValueError, "factor must be > 1, got 1"),
        (lambda: pacing.step(0.5, steps=2), TypeError, "'steps'.* it takes start, total"),
        (lambda: pacing.cosine, AttributeError, "no attribute 'cosine'"),
    ],
)
def test_pacing_arguments(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


# Orders


def test_orders() -> None:
    difficulty = np.random.default_rng(0).permutation(50).astype(float)
    easy, hard, random = (
        Curriculum(difficulty, ALL_AT_ONCE, 5, 0, order=order).ordered for order in ("easy", "hard", "random")
    )
    assert np.array_equal(easy, np.argsort(difficulty))
    assert np.array_equal(hard, easy[::-1])
    assert sorted(random) == list(range(50))
    assert abs(np.corrcoef(difficulty[random], np.arange(50))[0, 1]) < 0.4
    assert not np.array_equal(random, Curriculum(difficulty, ALL_AT_ONCE, 5, 1, order="random").ordered)


def test_equal_difficulties_are_in_random_order() -> None:
    """Not in the order of the data, which may be sorted by class."""
    difficulty = np.repeat([1.0, 0.0], 500)
    for order in ("easy", "hard"):
        ordered = Curriculum(difficulty, ALL_AT_ONCE, 5, 3, order=order).ordered
        for half in (ordered[:500], ordered[500:]):
            assert len({*difficulty[half]}) == 1
            assert abs(np.corrcoef(half, np.arange(500))[0, 1]) < 0.2


def test_infinite_difficulties() -> None:
    assert Curriculum([math.inf, 0, -math.inf, 1], ALL_AT_ONCE, 1, 0).ordered.tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize("order", ["easy", "hard", "random"])
def test_groups(order: Any) -> None:
    """Each part has the proportions of the whole, to within one example, and is in order within each group."""
    rng = np.random.default_rng(0)
    groups = rng.choice(["a", "b", "c"], size=300, p=[0.6, 0.3, 0.1])
    difficulty = rng.normal(size=300) + 10 * (groups == "a")
    ordered = Curriculum(difficulty, ALL_AT_ONCE, 5, 0, order=order, groups=groups).ordered
    assert sorted(ordered) == list(range(300))
    for n in range(1, 301):
        for g in "abc":
            assert abs((groups[ordered[:n]] == g).sum() - n * (groups == g).mean()) <= 1.5
    if order != "random":
        for g in "abc":
            scores = difficulty[ordered[groups[ordered] == g]]
            assert np.array_equal(scores, np.sort(scores)[:: 1 if order == "easy" else -1])


# Batches


def test_available_part() -> None:
    share = pacing.linear(0.1, total=20)
    curriculum = Curriculum(np.arange(100)[::-1], share, 7, 0)
    for t in range(1, 40):
        batch = next(curriculum)
        assert batch.dtype == np.int64
        assert curriculum.step == t
        assert curriculum.available == math.ceil(share(t) * 100 - 1e-9)
        # The easiest examples have the largest indices here.
        assert batch.min() >= 100 - curriculum.available
        assert len({*batch.tolist()}) == len(batch)
        assert len(batch) <= 7


@pytest.mark.parametrize("n", [1, 7, 100, 5000, 20_000])
@pytest.mark.parametrize("drop_last", [False, True])
def test_passes(n: int, drop_last: bool) -> None:
    """Every example once before any comes twice; the last batch of a pass is smaller or dropped."""
    size = max(1, n // 17) if n < 5000 else 300
    curriculum = Curriculum(np.zeros(n), ALL_AT_ONCE, size, 5, drop_last=drop_last)
    whole, rest = divmod(n, size)
    passes = []
    for _ in range(3):
        batches = take(curriculum, whole)
        assert {len(b) for b in batches} == {size}
        if rest and not drop_last:
            batches += take(curriculum, 1)
            assert len(batches[-1]) == rest
        seen = list(itertools.chain(*batches))
        assert len({*seen}) == len(seen) == (n if not drop_last else n - rest)
        passes.append(seen)
    assert n == 1 or passes[0] != passes[1] != passes[2]


def test_fewer_than_a_batch() -> None:
    curriculum = Curriculum(np.arange(10), pacing.step(0.25, total=3), 8, 0)
    assert [sorted(b) for b in take(curriculum, 3)] == [[0, 1, 2]] * 3
    assert [len(b) for b in take(curriculum, 4)] == [8, 2, 8, 2]


def test_batches_are_uniform() -> None:
    """Uniform over examples, pairs and orders; with both ways of sampling, for small and large parts."""
    for n, size, count in ((6, 3, 6000), (5000, 40, 3000)):
        # A part whose size changes at each step, so that each batch begins a pass.
        calls = itertools.count()
        curriculum = Curriculum(np.arange(n + 1), lambda t, n=n, calls=calls: (n + next(calls) % 2) / (n + 1), size, 11)
        batches = take(curriculum, count)[::2]
        seen = Counter(itertools.chain(*batches))
        expected = len(batches) * size / n
        chi2 = sum((seen[i] - expected) ** 2 / expected for i in range(n)) / (1 - size / n)
        assert abs(chi2 - (n - 1)) < 5 * math.sqrt(2 * (n - 1)), n
        first = Counter(b[0] * 2 // n for b in batches)
        assert abs(first[0] - len(batches) / 2) < 5 * math.sqrt(len(batches) / 4)
        rising = sum(b[0] < b[1] for b in batches)
        assert abs(rising - len(batches) / 2) < 5 * math.sqrt(len(batches) / 4)
    permutations = Counter(
        tuple(itertools.chain(*take(Curriculum(np.zeros(4), ALL_AT_ONCE, 4, s), 1))) for s in range(4800)
    )
    assert len(permutations) == 24
    assert sum((k - 200) ** 2 / 200 for k in permutations.values()) < 23 + 5 * math.sqrt(46)


def test_batches_are_reproducible() -> None:
    h = hashlib.sha256()
    difficulty = (np.arange(6000) * 7919) % 1009
    for share in (pacing.linear(0.01, total=50), pacing.exponential(0.1, every=10), ALL_AT_ONCE):
        for order in ("easy", "hard", "random"):
            curriculum = Curriculum(difficulty, share, 64, 2**63 + 5, order=order, groups=np.arange(6000) % 3)
            for batch in itertools.islice(curriculum, 100):
                h.update(batch.astype("<i8").tobytes())
    assert h.hexdigest() == "cee7e63fc6e70f85fa508f16d5ab71b5cda20e7af4d2df88bc7acf5e312593cb"


def test_new_difficulties() -> None:
    """Scores that change, as current losses do, take effect at the next batch."""
    curriculum = Curriculum(np.arange(10), pacing.step(0.2, total=100), 2, 0)
    assert sorted(next(curriculum)) == [0, 1]
    scores = np.arange(10)[::-1].astype(np.float32)
    curriculum.difficulty = scores
    assert sorted(next(curriculum)) == [8, 9]
    assert curriculum.difficulty.tolist() == scores.tolist()
    assert curriculum.step == 2
    with pytest.raises(ValueError, match="difficulty: 3 examples, expected 10 as before"):
        curriculum.difficulty = np.zeros(3)
    curriculum.difficulty[:] = 0  # a copy
    assert sorted(next(curriculum)) == [8, 9]


def test_any_function_of_the_step() -> None:
    assert len(next(Curriculum(np.arange(10), lambda t: np.float32(0.5), 20, 0))) == 5
    for value in (0.0, 1.01, -1, math.nan, math.inf):
        curriculum = Curriculum(np.arange(10), lambda t, value=value: value, 2, 0)
        with pytest.raises(ValueError, match=rf"pacing: returned {float(value)!r} for step 1, expected a number in"):
            next(curriculum)
        assert curriculum.step == 0
    with pytest.raises(TypeError, match="pacing: of step 1: "):
        next(Curriculum(np.arange(10), lambda t: None, 2, 0))  # type: ignore[arg-type, return-value]


# States


@pytest.mark.parametrize("n", [30, 9000])
@pytest.mark.parametrize("share", [pacing.linear(0.1, total=30), pacing.exponential(0.2, every=20), ALL_AT_ONCE])
@pytest.mark.parametrize("drop_last", [False, True])
def test_resuming(n: int, share: pacing.Pacing, drop_last: bool) -> None:
    """From any step, through each common file format."""

    def new() -> Curriculum:
        return Curriculum(np.arange(n) % 13, share, 7, 0, drop_last=drop_last)

    straight = new()
    batches = take(straight, 60)
    for at in (0, 1, 2, 5, 29, 30, 31, 59):
        curriculum = new()
        take(curriculum, at)
        state = curriculum.state_dict()
        file = io.BytesIO()
        np.savez(file, **state)
        file.seek(0)
        for stored in (state, pickle.loads(pickle.dumps(state)), np.load(file)):
            resumed = new()
            take(resumed, 3)
            resumed.load_state_dict(stored)
            assert resumed.step == at
            assert take(resumed, 60 - at) == batches[at:]
    # The state is a copy.
    assert state["step"] == 59


def test_states_keep_new_difficulties() -> None:
    curriculum = Curriculum(np.arange(10), pacing.step(0.2, total=100), 2, 0)
    next(curriculum)
    curriculum.difficulty = -np.arange(10)
    resumed = Curriculum(np.arange(10), pacing.step(0.2, total=100), 2, 0)
    resumed.load_state_dict(curriculum.state_dict())
    assert sorted(next(resumed)) == [8, 9]


def test_states_of_others() -> None:
    curriculum = Curriculum(np.arange(10), ALL_AT_ONCE, 2, 0)
    batches = take(curriculum, 3)
    state = curriculum.state_dict()
    for change, error, text in (
        ({"step": None}, KeyError, "no 'step'; expected what state_dict"),
        ({"difficulty": None}, KeyError, "no 'difficulty'"),
        ({"seed": 1}, ValueError, r"state\['seed'\]: 1, expected 0 as here"),
        ({"batch_size": 3}, ValueError, r"state\['batch_size'\]: 3, expected 2 as here"),
        ({"difficulty": np.zeros(9)}, ValueError, r"state\['difficulty'\]: 9 examples, expected 10"),
        ({"step": -1}, ValueError, r"state\['step'\] must be >= 0"),
        ({"pass": 0.5}, TypeError, r"state\['pass'\] must be an integer"),
        ({"position": 11}, ValueError, r"state\['position'\] must be <= state\['available'\]"),
        ({"available": 11}, ValueError, "and that <= the number of examples"),
    ):
        wrong = {k: v for k, v in {**state, **change}.items() if v is not None}
        with pytest.raises(error, match=text):
            curriculum.load_state_dict(wrong)
    assert take(curriculum, 2) == take(Curriculum(np.arange(10), ALL_AT_ONCE, 2, 0), 5)[3:]
    assert len({*itertools.chain(*batches)}) == 6


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"difficulty": []}, ValueError, r"difficulty: shape \(0,\), expected one number for each example"),
        ({"difficulty": 1.0}, ValueError, r"difficulty: shape \(\), expected"),
        ({"difficulty": [[1.0, 2.0]]}, ValueError, r"difficulty: shape \(1, 2\)"),
        ({"difficulty": [[1.0], [1.0, 2.0]]}, ValueError, "difficulty: "),
        ({"difficulty": ["a", "b"]}, TypeError, "difficulty: dtype <U1, expected one real number"),
        ({"difficulty": [1j]}, TypeError, "difficulty: dtype complex128"),
        ({"difficulty": [0.0, math.nan]}, ValueError, "difficulty: NaN at example 1"),
        ({"pacing": 0.5}, TypeError, "pacing must be a function of the step, .*adaptk.curriculum.pacing, got 0.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer, got 2.0"),
        ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
        ({"seed": 2**64}, ValueError, r"seed must be < 2\*\*64"),
        ({"seed": None}, TypeError, "seed must be an integer, got None"),
        (
            {"order": "Easy"},
            ValueError,
            r"order must be 'easy', 'hard' or 'random', got 'Easy' \(did you mean 'easy'\?\)",
        ),
        ({"groups": [1, 2]}, ValueError, r"groups: shape \(2,\), expected \(3,\), one group for each example"),
    ],
)
def test_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments: dict[str, Any] = {"difficulty": [1, 2, 3], "pacing": ALL_AT_ONCE, "batch_size": 2, "seed": 0}
    with pytest.raises(error, match=text):
        Curriculum(**{**arguments, **change})


def test_printed() -> None:
    curriculum = Curriculum([1, 2], pacing.step(0.5, total=3), 1, 7, order="hard")
    next(curriculum)
    assert repr(curriculum) == (
        "<Curriculum of 2 examples, pacing=step(0.5, total=3), batch_size=1, seed=7, order='hard', after step 1>"
    )
    assert repr(SelfPaced(0.25, growth=2)) == "<SelfPaced(0.25, growth=2.0) after round 0>"


def test_torch_is_not_needed() -> None:
    program = """
import sys
sys.modules["torch"] = None
import adaptk
from adaptk.curriculum import Curriculum, SelfPaced, pacing
from adaptk.curriculum import *
assert dir(adaptk.curriculum) == ["Curriculum", "SelfPaced", "pacing"]
try:
    adaptk.curriculum.TorchSampler
except ModuleNotFoundError as error:
    print(error)
try:
    adaptk.curriculum.Curiculum
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "adaptk.curriculum.TorchSampler needs PyTorch, which is not installed: pip install torch",
        "module 'adaptk.curriculum' has no attribute 'Curiculum' (did you mean 'Curriculum'?)",
    ]


# Self-paced learning


def test_self_paced() -> None:
    paced = SelfPaced(0.3, growth=2.0)
    losses = np.array([5.0, 0.5, 3.0, 0.25, 1.0, 9.0, 2.0, 4.0, 7.0, 6.0])
    assert paced.threshold is None
    assert paced.select(losses).tolist() == [1, 3, 4]
    assert (paced.threshold, paced.round) == (1.0, 1)
    assert paced.select(losses).tolist() == [1, 3, 4, 6]
    assert paced.select(losses).tolist() == [1, 2, 3, 4, 6, 7]  # <= 4
    assert paced.select(losses.astype(np.float32)).tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]  # <= 8
    assert paced.select(losses).tolist() == list(range(10))
    assert paced.round == 5


def test_self_paced_when_losses_grow() -> None:
    paced = SelfPaced(0.5, growth=1.5)
    paced.select([1.0, 2.0])
    assert paced.select([100.0, 200.0]).tolist() == [0]
    assert paced.threshold == 100


def test_self_paced_when_losses_vanish() -> None:
    paced = SelfPaced(0.5, growth=1.5)
    assert paced.select([0.0, 0.0, 1.0, 2.0]).tolist() == [0, 1]
    assert paced.select([0.0, 0.0, 1.0, 2.0]).tolist() == [0, 1, 2]
    assert SelfPaced().select([0.0, 0.0]).tolist() == [0, 1]


def test_self_paced_never_selects_infinite_losses() -> None:
    paced = SelfPaced(1.0, growth=1e300)
    for _ in range(3):
        assert paced.select([1.0, math.inf]).tolist() == [0]


def test_self_paced_learning_of_a_line_with_outliers() -> None:
    """Its purpose: the first rounds fit without the outliers, unlike a fit of all data."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    truth = np.array([2.0, -1.0])
    y = x @ truth + 0.01 * rng.normal(size=200)
    y[:60] += rng.normal(scale=20, size=60)
    w = np.linalg.lstsq(x, y, rcond=None)[0]
    error = np.abs(w - truth).max()
    paced = SelfPaced(0.5, growth=1.3)
    for _ in range(5):
        chosen = paced.select((x @ w - y) ** 2)
        w = np.linalg.lstsq(x[chosen], y[chosen], rcond=None)[0]
    assert error > 0.1
    assert np.abs(w - truth).max() < 0.02


def test_self_paced_states() -> None:
    paced = SelfPaced(0.5, growth=1.5)
    for rounds in range(3):
        resumed = SelfPaced(0.5, growth=1.5)
        file = io.BytesIO()
        np.savez(file, **paced.state_dict())
        file.seek(0)
        resumed.load_state_dict(np.load(file))
        assert (resumed.threshold, resumed.round) == (paced.threshold, rounds)
        losses = [1.0, 2.0, 3.0, 4.0]
        assert resumed.select(losses).tolist() == paced.select(losses).tolist()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: SelfPaced(0.0), ValueError, "start must be a finite number > 0 and <= 1"),
        (lambda: SelfPaced(growth=1.0), ValueError, "growth must be > 1, got 1"),
        (lambda: SelfPaced(growth="2"), TypeError, "growth must be a number"),
        (lambda: SelfPaced().select([1.0, -0.5]), ValueError, "losses: must be >= 0, got -0.5 at example 1"),
        (lambda: SelfPaced().select([math.nan]), ValueError, "losses: NaN at example 0"),
        (lambda: SelfPaced().select([math.inf]), ValueError, "losses: all of them are infinite"),
        (lambda: SelfPaced().select(1.0), ValueError, "losses: shape"),
        (lambda: SelfPaced().load_state_dict({"round": 0}), KeyError, "no 'threshold'"),
        (lambda: SelfPaced().load_state_dict({"threshold": 1.0, "round": 0}), ValueError, "belongs to at least one"),
        (lambda: SelfPaced().load_state_dict({"threshold": math.nan, "round": 1}), ValueError, "and NaN to none"),
        (lambda: SelfPaced().load_state_dict({"threshold": -1.0, "round": 1}), ValueError, "must be a finite number"),
    ],
)
def test_self_paced_arguments(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_the_name_in_the_package() -> None:
    assert adaptk.curriculum.Curriculum is Curriculum
    assert "curriculum" in dir(adaptk)
