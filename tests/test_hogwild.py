"""adaptk.hogwild: passes against plain NumPy, modes, threads, and kinds of data."""

from __future__ import annotations

import math
import pickle
import signal
import threading
import time
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import _core
from adaptk.hogwild import SGDClassifier, SGDRegressor
from adaptk.hogwild._data import matrix


def sparse_rows(
    n: int, columns: int, per_row: int, seed: int = 0, dtype: Any = np.float64, index: Any = np.int32
) -> tuple[np.ndarray[Any, Any], ...]:
    """Rows of length 1 as (data, indices, indptr), with frequent and rare features."""
    rng = np.random.default_rng(seed)
    drawn = (columns ** rng.random((n, 2 * per_row)) - 1).astype(np.int64)
    indices, starts = [], [0]
    for row in drawn:
        unique = np.unique(row)[:per_row]
        indices.append(unique)
        starts.append(starts[-1] + len(unique))
    data = rng.normal(size=starts[-1])
    for i in range(n):
        part = slice(starts[i], starts[i + 1])
        data[part] /= np.linalg.norm(data[part])
    return data.astype(dtype), np.concatenate(indices).astype(index), np.array(starts, index)


def dense_of(x: tuple[np.ndarray[Any, Any], ...], columns: int) -> np.ndarray[Any, Any]:
    data, indices, starts = x
    out = np.zeros((len(starts) - 1, columns), data.dtype)
    for i in range(len(out)):
        out[i, indices[starts[i] : starts[i + 1]]] = data[starts[i] : starts[i + 1]]
    return out


def labels_for(x: tuple[np.ndarray[Any, Any], ...], columns: int, seed: int = 1) -> np.ndarray[Any, Any]:
    scores = dense_of(x, columns) @ np.random.default_rng(seed).normal(size=columns)
    return np.where(scores > np.median(scores), "b", "a")


COLUMNS = 300


@pytest.fixture(scope="module")
def small() -> tuple[Any, Any]:
    x = sparse_rows(200, COLUMNS, 12)
    return x, labels_for(x, COLUMNS)


# The rules, in plain NumPy


def derivative(loss: str, p: float, y: float, epsilon: float) -> float:
    if loss == "log_loss":
        return -y / (1 + math.exp(y * p))
    if loss == "hinge":
        return -y if y * p < 1 else 0.0
    if loss == "squared_hinge":
        return -2 * y * max(0.0, 1 - y * p)
    if loss == "squared_error":
        return p - y
    return min(max(p - y, -epsilon), epsilon)


def soft(w: Any, by: Any) -> Any:
    return np.sign(w) * np.maximum(np.abs(w) - by, 0)


def plain_pass(x: Any, y: Any, loss: str, rule: str, l1: float, l2: float, eta: float) -> tuple[Any, float]:
    """One pass in the order of the rows; weights and intercept."""
    data, indices, starts = x
    n = len(starts) - 1
    rare = n / np.maximum(np.bincount(indices, minlength=COLUMNS), 1)
    w, m, v = (np.zeros(COLUMNS + 1) for _ in range(3))
    z, squares = np.zeros(COLUMNS + 1), np.zeros(COLUMNS + 1)
    for i in range(n):
        at = np.append(indices[starts[i] : starts[i + 1]], COLUMNS)
        row = np.append(data[starts[i] : starts[i + 1]], 1.0)
        one, two = (np.where(at == COLUMNS, 0.0, penalty) for penalty in (l1, l2))
        share = np.append(rare, 0.0)[at]
        if rule == "ftrl":
            w[at] = -soft(z[at], one * i) / ((1 + np.sqrt(squares[at])) / eta + two * i)
        g = derivative(loss, float(row @ w[at]), y[i], 0.1) * row
        if rule == "sgd":
            w[at] = soft(w[at] - eta * g, eta * one * share)
            w[:-1] /= 1 + eta * l2
            continue
        if rule == "ftrl":
            more = squares[at] + g * g
            z[at] += g - (np.sqrt(more) - np.sqrt(squares[at])) / eta * w[at]
            squares[at] = more
            continue
        if rule == "adagrad":
            squares[at] += g * g
            step = np.where(squares[at] > 0, eta / (np.sqrt(squares[at]) + 1e-10), 0.0)
            w[at] -= step * g
        else:
            m[at] = 0.9 * m[at] + 0.1 * g
            v[at] = 0.999 * v[at] + 0.001 * g * g
            corrected = math.sqrt(1 - 0.999 ** (i + 1))
            step = np.where(
                v[at] > 0, eta * corrected / (1 - 0.9 ** (i + 1)) / (np.sqrt(v[at]) + 1e-10 * corrected), 0.0
            )
            w[at] -= step * m[at]
        w[at] = soft(w[at], step * one * share) / (1 + step * two * share)
    if rule == "ftrl":
        penalised = np.append(np.ones(COLUMNS), 0.0) * n
        w = -soft(z, l1 * penalised) / ((1 + np.sqrt(squares)) / eta + l2 * penalised)
    return w[:-1], w[-1]


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "adam", "ftrl"])
@pytest.mark.parametrize("penalty", [None, "l1", "elasticnet", "l2"])
@pytest.mark.parametrize("loss", ["hinge", "log_loss", "squared_hinge", "squared_error", "huber"])
def test_one_pass_is_the_formula(small: tuple[Any, Any], rule: str, penalty: str | None, loss: str) -> None:
    x, y = small
    alpha = 1e-3
    model = SGDClassifier(
        loss, penalty=penalty, alpha=alpha, rule=rule, eta0=0.2, shuffle=False, max_iter=1, tol=None, l1_ratio=0.3
    ).fit((*x, (200, COLUMNS)), y)
    l1 = {None: 0.0, "l1": alpha, "elasticnet": 0.3 * alpha, "l2": 0.0}[penalty]
    l2 = {None: 0.0, "l1": 0.0, "elasticnet": 0.7 * alpha, "l2": alpha}[penalty]
    w, b = plain_pass(x, np.where(y == "b", 1.0, -1.0), loss, rule, l1, l2, 0.2)
    np.testing.assert_allclose(model.coef_[0], w, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(model.intercept_[0], b, rtol=1e-9, atol=1e-12)
    assert (model.coef_ == 0).sum() == (w == 0).sum()


@pytest.mark.parametrize("loss", ["hinge", "log_loss", "squared_hinge", "squared_error", "huber"])
def test_the_mean_loss_is_that_before_each_update(small: tuple[Any, Any], loss: str) -> None:
    x, y = small
    # A step too small to change the weights: every loss is that of zero weights.
    model = SGDClassifier(loss, rule="sgd", eta0=1e-300, max_iter=1, tol=None).fit(x, y)
    at_zero = {"hinge": 1.0, "log_loss": math.log(2), "squared_hinge": 1.0, "squared_error": 0.5, "huber": 0.095}[loss]
    assert model.loss_curve_ == pytest.approx([at_zero], rel=1e-12)
    weighted = SGDClassifier(loss, rule="sgd", eta0=1e-300, max_iter=1, tol=None).fit(x, y, np.full(200, 2.5))
    assert weighted.loss_curve_ == pytest.approx([2.5 * at_zero], rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "options", "steps"),
    [
        ("invscaling", {"power_t": 0.4}, lambda t: 0.1 * t**-0.4),
        ("optimal", {"alpha": 0.01}, lambda t: 1 / (0.01 * (t - 1) + 0.01**0.25)),
        ("constant", {}, lambda t: 0.1),
    ],
)
def test_step_sizes(schedule: str, options: dict[str, float], steps: Any) -> None:
    # Hinge loss with one feature whose weight stays small: the weight is the sum of the steps.
    n = 64
    model = SGDClassifier(
        rule="sgd", learning_rate=schedule, eta0=0.1, penalty=None, fit_intercept=False, shuffle=False, max_iter=1,
        tol=None, **options,
    ).fit(np.full((n, 1), 1e-6), np.arange(n) % 2 * 0 + (np.arange(n) == n - 1))  # fmt: skip
    signs = np.where(np.arange(n) == n - 1, 1.0, -1.0)
    groups = np.arange(n) // 16 * 16 + 1
    assert model.coef_[0, 0] == pytest.approx(1e-6 * sum(signs * [steps(t) for t in groups]), rel=1e-9)


def test_decay_and_adaptive(small: tuple[Any, Any]) -> None:
    x, y = small
    curves = {}
    for schedule in ("constant", "decay", "adaptive"):
        model = SGDClassifier(
            "squared_error", rule="sgd", learning_rate=schedule, eta0=0.5, max_iter=3000, tol=1e-4, random_state=0,
            decay=0.5,
        )  # fmt: skip
        curves[schedule] = model.fit(x, y).loss_curve_
    assert curves["decay"][0] == curves["constant"][0]
    assert curves["decay"][1] != curves["constant"][1]
    # Its steps get smaller when the others stop, so the adaptive one ends later and lower.
    assert len(curves["adaptive"]) > len(curves["constant"])
    assert curves["adaptive"][-1] < curves["constant"][-1]


def test_strong_penalties_do_not_overflow(small: tuple[Any, Any]) -> None:
    x, y = small
    for dtype in (np.float32, np.float64):
        model = SGDClassifier(rule="sgd", alpha=50.0, eta0=1.0, max_iter=3, tol=None)
        model.fit((x[0].astype(dtype), *x[1:]), y)
        assert np.abs(model.coef_).max() < 0.1


# Kinds of data


def test_all_kinds_of_rows_give_the_same_weights(small: tuple[Any, Any]) -> None:
    x, y = small
    wanted = SGDClassifier(random_state=3, max_iter=3, tol=None).fit((*x, (200, COLUMNS)), y).coef_
    for index in (np.int32, np.int64):
        for starts in (np.int32, np.int64):
            given = (x[0], x[1].astype(index), x[2].astype(starts), (200, COLUMNS))
            assert (SGDClassifier(random_state=3, max_iter=3, tol=None).fit(given, y).coef_ == wanted).all()
    # A dense row has all features, so its penalty differs.
    for order in "CF":
        given = np.asarray(dense_of(x, COLUMNS), order=order)
        dense, rows = (
            SGDClassifier(random_state=3, max_iter=3, tol=None, penalty=None).fit(m, y).coef_
            for m in (given, (*x, (200, COLUMNS)))
        )
        np.testing.assert_allclose(dense, rows, rtol=1e-9, atol=1e-12)


def test_scipy_matrices_and_repeated_indices(small: tuple[Any, Any]) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    x, y = small
    m = sparse.csr_matrix(x, (200, COLUMNS))
    wanted = SGDClassifier(random_state=3, max_iter=2, tol=None).fit(m, y).coef_
    for form in ("csc", "coo", "lil", "bsr"):
        assert (SGDClassifier(random_state=3, max_iter=2, tol=None).fit(m.asformat(form), y).coef_ == wanted).all()
    # Each element in two halves, in reversed order: the caller's arrays do not change.
    data, indices, starts = np.repeat(x[0] / 2, 2), np.repeat(x[1], 2), x[2] * 2
    for i in range(200):
        part = slice(starts[i], starts[i + 1])
        data[part], indices[part] = data[part][::-1].copy(), indices[part][::-1].copy()
    before = data.copy(), indices.copy()
    model = SGDClassifier(random_state=3, max_iter=2, tol=None).fit((data, indices, starts, (200, COLUMNS)), y)
    assert (model.coef_ == wanted).all()
    assert (data == before[0]).all()
    assert (indices == before[1]).all()


def test_no_copies_are_made(small: tuple[Any, Any]) -> None:
    x, _ = small
    for dtype in (np.float32, np.float64):
        data = x[0].astype(dtype)
        m = matrix((data, *x[1:]))
        assert np.shares_memory(m.data, data)
        assert np.shares_memory(m.indices, x[1])
        assert m.starts is not None
        assert np.shares_memory(m.starts, x[2])
        dense = dense_of((data, *x[1:]), COLUMNS)
        assert np.shares_memory(matrix(dense).data, dense)


def test_dtype_of_the_data(small: tuple[Any, Any]) -> None:
    x, y = small
    for dtype, wanted in ((np.float32, np.float32), (np.float64, np.float64), (np.int64, np.float64)):
        model = SGDClassifier(max_iter=1, tol=None).fit((np.ceil(x[0]).astype(dtype), *x[1:]), y)
        assert model.coef_.dtype == wanted
        assert model.intercept_.dtype == wanted


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d, i, s: (np.where(np.arange(len(d)) == 30, np.nan, d), i, s), ValueError, "X: row 2 has a NaN or inf"),
        (lambda d, i, s: (np.where(np.arange(len(d)) == 0, -np.inf, d), i, s), ValueError, "X: row 0 has a NaN or inf"),
        (lambda d, i, s: (d, np.where(np.arange(len(d)) == 30, -1, i), s), ValueError, "X: row 2 has an index outside"),
        (lambda d, i, s: (d, np.where(np.arange(len(d)) == 0, 999, i), s), ValueError, r"X: row 0 .*\[0, 300\)"),
        (lambda d, i, s: (d, i, s[::-1].copy()), ValueError, "X: indptr decreases"),
        (lambda d, i, s: (d, i, np.append(s[:-1], s[-1] + 1)), ValueError, "indptr.* at row 199"),
        (lambda d, i, s: (d, i - 0.5, s), TypeError, "X: indices of dtype float64"),
        (lambda d, i, s: (d[:-1], i, s), ValueError, "X: data of shape"),
        (lambda d, i, s: (d + 1j, i, s), ValueError, "X: Complex data not supported"),
    ],
)  # fmt: skip
def test_wrong_matrices_are_refused(small: tuple[Any, Any], change: Any, error: Any, message: str) -> None:
    x, y = small
    model = SGDClassifier(max_iter=1, tol=None).fit((*x, (200, COLUMNS)), y)
    before = model.coef_.copy()
    wrong = (*change(*x), (200, COLUMNS))
    for call in (
        lambda: model.partial_fit(wrong, y),
        lambda: model.predict(wrong),
        lambda: SGDClassifier().fit(wrong, y),
    ):
        with pytest.raises(error, match=message):
            call()
    assert (model.coef_ == before).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "log"}, ValueError, "loss must be 'hinge' or"),
        ({"rule": "lion"}, ValueError, "rule must be 'sgd' or"),
        ({"mode": "fast"}, ValueError, "mode must be 'hogwild' or"),
        ({"penalty": "l3"}, ValueError, "penalty must be"),
        ({"learning_rate": "cosine"}, ValueError, "learning_rate must be"),
        ({"alpha": -1.0}, ValueError, "alpha must be a finite number >= 0"),
        ({"alpha": "x"}, TypeError, "alpha must be a number"),
        ({"alpha": 0.0, "learning_rate": "optimal"}, ValueError, "alpha must be > 0"),
        ({"l1_ratio": 1.5}, ValueError, "l1_ratio"),
        ({"eta0": 0.0}, ValueError, "eta0 must be a finite number > 0"),
        ({"decay": 0.0}, ValueError, "decay"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1"),
        ({"max_iter": 1.5}, TypeError, "max_iter must be an integer"),
        ({"n_jobs": 0}, ValueError, "n_jobs must be >= 1"),
        ({"random_state": -1}, ValueError, "random_state must be >= 0"),
        ({"random_state": 2**64}, ValueError, "random_state must be < 2"),
        ({"publish_every": 0}, ValueError, "publish_every must be >= 1"),
        ({"shuffle": 1}, TypeError, "shuffle must be True or False"),
        ({"rule": "adam", "beta1": 1.0}, ValueError, "beta1 must be < 1"),
        ({"class_weight": {"c": 1.0}}, ValueError, "class_weight: 'c' is not one of the classes"),
        ({"class_weight": "even"}, ValueError, "class_weight must be"),
        ({"class_weight": 3}, TypeError, "class_weight must be"),
        ({"early_stopping": True, "validation_fraction": 1.0}, ValueError, "validation_fraction"),
    ],
)
def test_wrong_parameters_are_refused(small: tuple[Any, Any], options: Any, error: Any, message: str) -> None:
    x, y = small
    model = SGDClassifier(**options)
    with pytest.raises(error, match=message):
        model.fit(x, y)
    assert not hasattr(model, "coef_")


def test_diverging_weights_raise() -> None:
    X = np.full((64, 2), 1e6, np.float32)
    with pytest.raises(ValueError, match=r"no longer finite after pass .* smaller eta0 than 1e"):
        SGDRegressor(rule="sgd", eta0=1e25, tol=None).fit(X, np.arange(64.0))


# Training


def test_early_stopping_holds_rows_out(small: tuple[Any, Any]) -> None:
    x, y = small
    noise = np.random.default_rng(0).permutation(y)  # nothing to learn
    model = SGDClassifier(early_stopping=True, n_iter_no_change=2, random_state=0, max_iter=500).fit(x, noise)
    assert model.n_iter_ < 100
    assert model.t_ == model.n_iter_ * 180


def test_warm_start(small: tuple[Any, Any]) -> None:
    x, y = small
    once = SGDClassifier(max_iter=2, tol=None, shuffle=False).fit(x, y)
    twice = SGDClassifier(max_iter=1, tol=None, shuffle=False, warm_start=True).fit(x, y)
    twice.fit(x, y)
    assert (once.coef_ == twice.coef_).all()
    assert twice.t_ == 400
    with pytest.raises(ValueError, match="rule: 'sgd', and the weights so far are of 'adagrad'"):
        twice.set_params(rule="sgd").fit(x, y)
    with pytest.raises(ValueError, match="y has the classes"):
        twice.set_params(rule="adagrad").fit(x, np.where(y == "a", 0, 1))


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "adam", "ftrl"])
def test_partial_fit_of_parts_equals_a_pass(small: tuple[Any, Any], rule: str) -> None:
    data, indices, starts = small[0]
    y = small[1]
    options: dict[str, Any] = {"rule": rule, "shuffle": False, "penalty": "l2" if rule in ("sgd", "ftrl") else None}
    whole = SGDClassifier(max_iter=1, tol=None, **options).fit((data, indices, starts, (200, COLUMNS)), y)
    parts = SGDClassifier(**options)
    for i in range(0, 200, 64):
        s = starts[i : i + 65]
        part = (data[s[0] : s[-1]], indices[s[0] : s[-1]], s - s[0], (len(s) - 1, COLUMNS))
        parts.partial_fit(part, y[i : i + 64], classes=["a", "b"])
    assert parts.t_ == 200
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-12, atol=1e-15)
    with pytest.raises(ValueError, match="y: 'c' is not in classes"):
        parts.partial_fit(part, np.full(8, "c"))
    with pytest.raises(ValueError, match="X has 5 features"):
        parts.partial_fit(np.zeros((2, 5)), ["a", "b"])


def test_weights_of_classes_and_samples(small: tuple[Any, Any]) -> None:
    x, y = small
    options: dict[str, Any] = {"shuffle": False, "max_iter": 2, "tol": None}
    by_class = SGDClassifier(class_weight={"a": 3.0, "b": 0.5}, **options).fit(x, y).coef_
    by_row = SGDClassifier(**options).fit(x, y, np.where(y == "a", 3.0, 0.5)).coef_
    np.testing.assert_allclose(by_class, by_row, rtol=1e-12)
    some = y == "b"
    some[:60] = True
    kept = np.flatnonzero(some)
    dense = dense_of(x, COLUMNS)
    balanced = SGDClassifier(class_weight="balanced", **options).fit(dense[kept], y[kept]).coef_
    n_a, n_b = (y[kept] == "a").sum(), (y[kept] == "b").sum()
    weights = np.where(y[kept] == "a", len(kept) / (2 * n_a), len(kept) / (2 * n_b))
    np.testing.assert_allclose(balanced, SGDClassifier(**options).fit(dense[kept], y[kept], weights).coef_, rtol=1e-12)


def test_multiclass_is_one_against_all(small: tuple[Any, Any]) -> None:
    x, _ = small
    y = np.random.default_rng(5).integers(0, 3, 200)
    options: dict[str, Any] = {"loss": "log_loss", "shuffle": False, "max_iter": 2, "tol": None}
    model = SGDClassifier(**options).fit(x, y)
    for k in range(3):
        assert (SGDClassifier(**options).fit(x, y == k).coef_[0] == model.coef_[k]).all()
    p = model.predict_proba(x)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert (model.predict(x) == p.argmax(axis=1)).all()
    np.testing.assert_allclose(np.exp(model.predict_log_proba(x)), p)
    with pytest.raises(AttributeError, match="not available for loss='hinge'"):
        SGDClassifier().fit(x, y).predict_proba(x)


def test_estimators_can_be_pickled(small: tuple[Any, Any]) -> None:
    x, y = small
    model = SGDClassifier(max_iter=2, tol=None).fit(x, y)
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict(x) == model.predict(x)).all()
    assert (again.partial_fit(x, y).coef_ == model.partial_fit(x, y).coef_).all()


def test_verbose_prints_passes(small: tuple[Any, Any], capsys: Any) -> None:
    SGDClassifier(max_iter=2, tol=None, verbose=1).fit(*small)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["pass 1", "pass 2"]


# Threads

MANY = 4000


@pytest.fixture(scope="module")
def large() -> tuple[Any, Any]:
    """More than twice the minimum amount of work per thread."""
    rng = np.random.default_rng(7)
    indices = np.sort((2000 ** rng.random((MANY, 40)) - 1).astype(np.int64), axis=1)
    repeated = np.zeros_like(indices, bool)
    repeated[:, 1:] = indices[:, 1:] == indices[:, :-1]
    starts = np.append(0, np.cumsum((~repeated).sum(axis=1))).astype(np.int32)
    indices = indices[~repeated].astype(np.int32)
    data = rng.normal(size=len(indices)).astype(np.float32) / np.float32(6)
    assert len(data) > 2 * 32768
    truth = rng.normal(size=2000)
    scores = np.add.reduceat(data * truth[indices], starts[:-1])
    return (data, indices, starts, (MANY, 2000)), scores


@pytest.fixture(autouse=True)
def threads_as_before() -> Any:
    before = adaptk.get_num_threads(), adaptk.get_isa()
    yield
    adaptk.set_num_threads(before[0])
    adaptk.set_isa(before[1])


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "adam", "ftrl"])
def test_deterministic_has_the_same_bits_everywhere(large: tuple[Any, Any], rule: str) -> None:
    x, scores = large
    y = np.digitize(scores, np.quantile(scores, [0.25, 0.5, 0.75]))
    found = []
    for threads, isa in [(1, adaptk.available_isas()[0]), (2, adaptk.available_isas()[-1]), (5, "portable")]:
        adaptk.set_isa(isa)
        model = SGDClassifier(
            "log_loss", rule=rule, mode="deterministic", n_jobs=threads, random_state=1, max_iter=2, tol=None
        ).fit(x, y)
        assert model._threads_used == min(threads, 4)
        found.append(model.coef_.tobytes() + model.intercept_.tobytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("publish_every", [1, 4, 32])
@pytest.mark.parametrize("rule", ["sgd", "adagrad", "adam", "ftrl"])
@pytest.mark.parametrize("mode", ["hogwild", "locked"])
def test_several_threads_reach_the_loss_of_one(
    large: tuple[Any, Any], mode: str, rule: str, publish_every: int
) -> None:
    x, scores = large
    y = scores > 0
    options: dict[str, Any] = {
        "loss": "log_loss", "rule": rule, "max_iter": 4, "tol": None, "random_state": 2, "penalty": "elasticnet",
        "alpha": 1e-5, "eta0": 0.1 if rule != "adam" else 0.003, "publish_every": publish_every,
    }  # fmt: skip
    one = SGDClassifier(n_jobs=1, **options).fit(x, y)
    several = SGDClassifier(n_jobs=3, mode=mode, **options).fit(x, y)
    assert several._threads_used == 3
    assert several.loss_curve_[-1] < 1.1 * one.loss_curve_[-1]
    assert several.loss_curve_[-1] < 0.8 * math.log(2)
    assert several.score(x, y) > one.score(x, y) - 0.03
    assert (several.predict(x) == several.predict(x)).all()


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "adam", "ftrl"])
def test_threads_that_copy_only_frequent_weights(large: tuple[Any, Any], rule: str) -> None:
    """Too many weights for per-thread copies of all of them; most have no feature."""
    (data, indices, starts, _), scores = large
    few, many = (data, indices, starts, (MANY, 2000)), (data, indices, starts, (MANY, 300_000))
    y = scores > 0
    options: dict[str, Any] = {
        "rule": rule, "max_iter": 4, "tol": None, "random_state": 2, "alpha": 1e-5,
        "eta0": 0.1 if rule != "adam" else 0.003,
    }  # fmt: skip
    one = SGDClassifier("log_loss", n_jobs=1, **options).fit(few, y)
    several = SGDClassifier("log_loss", n_jobs=2, **options).fit(many, y)
    assert several._threads_used == 2
    assert several.loss_curve_[-1] < 1.1 * one.loss_curve_[-1]
    assert several.coef_.shape == (1, 300_000)
    assert not several.coef_[0, 2000:].any()
    assert np.corrcoef(several.coef_[0, :2000], one.coef_[0])[0, 1] > 0.95


def test_locked_updates_are_not_lost() -> None:
    # The sum of all steps of a constant derivative is the same in every order.
    n = 40_000
    X = np.full((n, 2), 2.0**-12)
    model = SGDRegressor("huber", epsilon=2.0**-10, rule="sgd", eta0=1.0, penalty=None, mode="locked", n_jobs=4)
    model.set_params(fit_intercept=False, max_iter=1, tol=None).fit(X, np.full(n, 1e6))
    assert model._threads_used > 1
    assert (model.coef_ == n * 2.0**-22).all()


def test_published_updates_are_not_lost() -> None:
    # Both features are in every row: each thread sums its updates and adds them atomically.
    n = 40_000
    X = np.full((n, 2), 2.0**-12)
    model = SGDRegressor("huber", epsilon=2.0**-10, rule="sgd", eta0=1.0, penalty=None, n_jobs=4)
    model.set_params(fit_intercept=False, max_iter=1, tol=None).fit(X, np.full(n, 1e6))
    assert model._threads_used > 1
    assert (model.coef_ == n * 2.0**-22).all()


def test_orders_are_permutations() -> None:
    # A weight for each row shows which rows a pass visits, and how often.
    for n in (1, 2, 3, 5, 1023, 1024, 1025, 5000, 16384, 20_011):
        X = (np.ones(n), np.arange(n, dtype=np.int32), np.arange(n + 1, dtype=np.int32), (n, n))
        model = SGDRegressor("huber", epsilon=1.0, rule="sgd", eta0=1.0, penalty=None, fit_intercept=False)
        model.set_params(learning_rate="constant", max_iter=3, tol=None, random_state=n).fit(X, np.full(n, 1e6))
        assert (model.coef_ == 3.0).all()


def test_each_pass_has_an_order_of_its_own(small: tuple[Any, Any]) -> None:
    x, y = small
    runs = [SGDClassifier(max_iter=2, tol=None, random_state=seed).fit(x, y).loss_curve_ for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_the_gil_is_released(large: tuple[Any, Any]) -> None:
    x, scores = large
    model = SGDClassifier("log_loss", max_iter=300, tol=None, n_jobs=1)
    counted, done = 0, threading.Event()

    def train() -> None:
        model.fit(x, scores > 0)
        done.set()

    thread = threading.Thread(target=train)
    thread.start()
    before = model.__dict__.get("n_iter_", 0)
    while not done.is_set() and counted < 200:
        counted += 1
        time.sleep(0.0005)
    thread.join()
    assert before < 300
    assert counted > 20


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_pass(threads: int) -> None:
    # A pass takes a second or more.
    n = 100_000
    x = np.ones(n * 64), np.tile(np.arange(64, dtype=np.int32), n), np.arange(n + 1) * 64
    main = threading.main_thread().ident
    assert main is not None
    model = SGDClassifier("log_loss", rule="adam", max_iter=10_000, tol=None, n_jobs=threads)
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, np.arange(n) % 2)
    timer.join()
    assert time.monotonic() - begin < 20
    assert np.isfinite(model._weights).all()


def test_scores_do_not_depend_on_threads(large: tuple[Any, Any]) -> None:
    x, scores = large
    model = SGDRegressor(max_iter=1, tol=None, n_jobs=1).fit(x, scores)
    one = model.predict(x)
    assert (model.set_params(n_jobs=3).predict(x) == one).all()
    np.testing.assert_allclose(
        one[:50], dense_of(x[:3], 2000)[:50] @ model.coef_ + model.intercept_, rtol=1e-5, atol=1e-5
    )


def test_fields_of_rules() -> None:
    assert [_core.hogwild_fields(rule) for rule in ("sgd", "adagrad", "adam", "ftrl")] == [1, 2, 4, 2]
