"""The estimators of adaptk.hogwild in scikit-learn: its own checks, and its tools."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from adaptk.hogwild import SGDClassifier, SGDRegressor

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import ConvergenceWarning, NotFittedError  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

# scikit-learn has the same exceptions for its own SGDClassifier and SGDRegressor.
STOCHASTIC = {
    f"check_sample_weight_equivalence_on_{kind}_data": "the order of the examples is another one"
    for kind in ("dense", "sparse")
}


@pytest.mark.parametrize("rule", ["adagrad", "sgd", "adam", "ftrl"])
@pytest.mark.parametrize("kind", [SGDClassifier, SGDRegressor])
def test_check_estimator(kind: Any, rule: str) -> None:
    model = kind(rule=rule, max_iter=100 if rule == "adagrad" else 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = check_estimator(model, expected_failed_checks=STOCHASTIC, on_skip=None)
    assert len(done) > 40
    assert {d["status"] for d in done} <= {"passed", "skipped", "xfail"}


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 8))
    return X, (X @ rng.normal(size=8) + 0.5 * rng.normal(size=300) > 0.3).astype(int)


@pytest.mark.parametrize("rule", ["adagrad", "sgd", "adam", "ftrl"])
@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet"])
def test_the_minimum_matches_logistic_regression(data: tuple[Any, Any], rule: str, penalty: str) -> None:
    from sklearn.linear_model import LogisticRegression

    X, y = data
    alpha = 0.02
    wanted = LogisticRegression(
        C=1 / (alpha * len(y)), l1_ratio={"l2": 0.0, "l1": 1.0, "elasticnet": 0.5}[penalty], solver="saga", tol=1e-8,
        max_iter=10_000,
    ).fit(X, y)  # fmt: skip
    model = SGDClassifier(
        "log_loss", penalty=penalty, alpha=alpha, l1_ratio=0.5, rule=rule, max_iter=400, tol=None, random_state=0,
        learning_rate="decay" if rule in ("sgd", "adam") else "constant", decay=0.97,
    ).fit(X, y)  # fmt: skip
    np.testing.assert_allclose(model.coef_, wanted.coef_, atol=0.03)
    np.testing.assert_allclose(model.intercept_, wanted.intercept_, atol=0.03)
    if penalty == "l1":
        assert ((model.coef_ == 0) == (wanted.coef_ == 0)).mean() > 0.7


def test_tools_of_sklearn(data: tuple[Any, Any]) -> None:
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = data
    model = SGDClassifier("log_loss", random_state=0, max_iter=20, tol=None)
    assert clone(model).get_params() == model.get_params()
    assert repr(model) == "SGDClassifier(loss='log_loss', max_iter=20, tol=None, random_state=0)"
    assert cross_val_score(make_pipeline(StandardScaler(), model), X, y, cv=3).mean() > 0.85
    search = GridSearchCV(model, {"alpha": [1e-4, 10.0]}, cv=3).fit(X, y)
    assert search.best_params_ == {"alpha": 1e-4}
    with pytest.raises(NotFittedError):
        model.predict(X)
    with pytest.warns(ConvergenceWarning, match="max_iter: 1 passes did not converge"):
        SGDClassifier(max_iter=1, n_iter_no_change=1).fit(X, y)
