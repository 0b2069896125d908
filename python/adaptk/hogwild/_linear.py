"""Linear classifiers and regressors."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from adaptk import _core
from adaptk._numbers import count, number
from adaptk.hogwild._data import Matrix, matrix, numbers, sample_weights, vector
from adaptk.hogwild._estimator import ConvergenceWarning, Estimator, warning_named

Array: TypeAlias = npt.NDArray[Any]
L = TypeVar("L", bound="_Linear")

_LOSSES = ("hinge", "log_loss", "squared_hinge", "squared_error", "huber")
_RULES = ("sgd", "adagrad", "adam", "ftrl")
_MODES = ("hogwild", "locked", "deterministic")
_SCHEDULES = ("auto", "constant", "decay", "invscaling", "optimal", "adaptive")
# Step sizes for rows of norm about 1.
_ETA = {"sgd": 0.1, "adagrad": 0.1, "adam": 0.01, "ftrl": 0.1}


class _Linear(Estimator):
    """Base of classifiers and regressors."""

    loss: Any
    penalty: Any
    alpha: Any
    l1_ratio: Any
    fit_intercept: Any
    max_iter: Any
    tol: Any
    shuffle: Any
    verbose: Any
    epsilon: Any
    n_jobs: Any
    random_state: Any
    learning_rate: Any
    eta0: Any
    power_t: Any
    decay: Any
    early_stopping: Any
    validation_fraction: Any
    n_iter_no_change: Any
    warm_start: Any
    rule: Any
    mode: Any
    beta1: Any
    beta2: Any
    eps: Any
    publish_every: Any

    coef_: Array
    intercept_: Array
    n_iter_: int
    t_: int
    loss_curve_: list[float]

    # Training

    def _options(self) -> dict[str, Any]:
        """Check the parameters, and return them under the names of the compiled code."""
        rule = self._one_of("rule", _RULES)
        schedule = self._one_of("learning_rate", _SCHEDULES)
        if schedule == "auto":
            schedule = "decay" if rule == "sgd" else "constant"
        penalty = self._one_of("penalty", ("l2", "l1", "elasticnet", None))
        alpha = number("alpha", self.alpha)
        share = number("l1_ratio", self.l1_ratio, high=1.0)
        l1 = alpha * {"l2": 0.0, "l1": 1.0, "elasticnet": share, None: 0.0}[penalty]
        l2 = alpha * {"l2": 1.0, "l1": 0.0, "elasticnet": 1.0 - share, None: 0.0}[penalty]
        options: dict[str, Any] = {
            "loss": self._one_of("loss", _LOSSES),
            "rule": rule,
            "mode": self._one_of("mode", _MODES),
            "epsilon": number("epsilon", self.epsilon),
            "eta": _ETA[rule] if self.eta0 is None else number("eta0", self.eta0, open_low=True),
            "power_t": number("power_t", self.power_t, low=-math.inf),
            "l1": l1,
            "l2": l2,
            "beta1": 1.0 if rule == "ftrl" else number("beta1", self.beta1, high=1.0),
            "beta2": number("beta2", self.beta2, high=1.0),
            "eps": number("eps", self.eps),
            "intercept": self._flag("fit_intercept"),
            "shuffle": self._flag("shuffle"),
            "threads": self._threads(),
            "publish_every": 0 if self.publish_every is None else count("publish_every", self.publish_every, 1),
            "schedule": schedule if schedule in ("invscaling", "optimal") else "constant",
        }
        for name in ("beta1", "beta2"):
            if rule == "adam" and options[name] >= 1.0:
                raise ValueError(f"{name} must be < 1, got {options[name]:g}")
        if schedule == "optimal":
            if alpha == 0.0:
                raise ValueError("alpha must be > 0 if learning_rate is 'optimal', whose steps are in 1 / alpha")
            # L. Bottou's heuristic: the first step has the size of typical weights.
            options["optimal_scale"] = alpha
            options["optimal_t0"] = 1.0 / (math.sqrt(1.0 / math.sqrt(alpha)) * alpha)
        self._schedule = schedule
        self._decay = number("decay", self.decay, high=1.0, open_low=True)
        self._l1, self._l2, self._eta = l1, l2, options["eta"]
        return options

    def _read(self, X: Any, *, count: bool = False, reset: bool = False) -> Matrix:
        names = _feature_names(X)
        if not reset:
            self._check_names(names)
        x = matrix(
            X,
            dtype=None if reset or not hasattr(self, "_weights") else self._weights.dtype,
            columns=None if reset else self.n_features_in_,
            count=count,
        )
        if reset:
            self.n_features_in_ = x.columns
            if names is not None:
                self.feature_names_in_ = names
            elif hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        elif x.columns != self.n_features_in_:
            raise ValueError(
                f"X has {x.columns} features, but {type(self).__name__} is expecting {self.n_features_in_} features "
                "as input"
            )
        return x

    def _check_names(self, names: Array | None) -> None:
        known = getattr(self, "feature_names_in_", None)
        if names is None and known is None:
            return
        if known is None:
            warnings.warn(
                f"X has feature names, but {type(self).__name__} was fitted without feature names", stacklevel=4
            )
        elif names is None:
            warnings.warn(
                f"X does not have valid feature names, but {type(self).__name__} was fitted with feature names",
                stacklevel=4,
            )
        elif list(names) != known.tolist():
            message = "The feature names should match those that were passed during fit.\n"
            unseen, missing = sorted({*names} - {*known}), sorted({*known} - {*names})
            for what, some in (("unseen at fit time", unseen), ("seen at fit time, yet now missing", missing)):
                if some:
                    message += f"Feature names {what}:\n" + "".join(f"- {n}\n" for n in some[:5])
                    message += "- ...\n" if len(some) > 5 else ""
            if not unseen and not missing:
                message += "Feature names must be in the same order as they were in fit.\n"
            raise ValueError(message)

    def _start(self, x: Matrix, problems: int, rule: str) -> None:
        fields = _core.hogwild_fields(rule)
        self._weights = np.zeros((problems, x.columns + 1, fields), x.data.dtype)
        self._rule = rule
        self._counts = np.zeros(x.columns, np.int64)
        self._counted = 0
        self.t_ = 0
        self._epochs = 0

    def _begin(self, x: Matrix, problems: int, options: dict[str, Any], *, new: bool) -> None:
        rule = options["rule"]
        if new or not hasattr(self, "_weights"):
            self._start(x, problems, rule)
        elif self._rule != rule:
            raise ValueError(
                f"rule: {rule!r}, and the weights so far are of {self._rule!r}; call fit with warm_start=False"
            )

    def _pass(
        self,
        x: Matrix,
        targets: Array,
        classes: int,
        weights: Array | None,
        class_weights: Array | None,
        options: dict[str, Any],
        *,
        subset: Array | None = None,
        factor: float = 1.0,
    ) -> float:
        """Make one pass over the rows. Returns the mean loss, each measured before its example's update."""
        penalised = self._rule != "ftrl" and (options["l1"] > 0 or (options["l2"] > 0 and self._rule != "sgd"))
        examples = x.rows if subset is None else len(subset)
        threads, losses = _core.hogwild_train(
            x.native,
            subset,
            examples,
            targets,
            classes,
            weights,
            class_weights,
            self._weights,
            self._counted / np.maximum(self._counts, 1) if penalised else None,
            self._counts if options["threads"] > 1 else None,
            {
                **options,
                "eta": options["eta"] * factor,
                "counted_rows": self._counted,
                "longest": x.longest,
                "stored": x.stored,
                "seed": self._order_seed,
                "epoch": self._epochs,
                "steps_before": self.t_,
            },
        )
        self.t_ += examples
        self._epochs += 1
        self._threads_used = threads
        # For warm starts: later calls begin from coef_ and intercept_, which a user may have changed.
        self._publish()
        if not (np.isfinite(self.coef_).all() and np.isfinite(self.intercept_).all()):
            raise ValueError(
                f"the weights are no longer finite after pass {self._epochs}: scale the features of X (each row to "
                f"length 1, or each feature to variance 1), or give a smaller eta0 than {options['eta']:g}"
            )
        return float(losses.sum()) / (examples * len(losses))

    def _publish(self) -> None:
        """coef_ and intercept_ from the weights."""
        w = self._weights
        if self._rule == "ftrl":
            z, squares = w[..., 0], w[..., 1]
            penalty = np.full(w.shape[1], w.dtype.type(self.t_))
            penalty[-1] = 0  # the intercept
            l1, l2 = penalty * w.dtype.type(self._l1), penalty * w.dtype.type(self._l2)
            shrunk = np.sign(z) * np.maximum(np.abs(z) - l1, 0)
            value = -shrunk / ((1 + np.sqrt(squares)) / w.dtype.type(self._eta) + l2)
            value[squares == 0] = 0
        else:
            value = w[..., 0]
        self.coef_ = np.ascontiguousarray(value[:, :-1])
        self.intercept_ = np.ascontiguousarray(value[:, -1])

    def _train(
        self, x: Matrix, targets: Array, classes: int, weights: Array | None, class_weights: Array | None
    ) -> None:
        """Make passes until the loss stops improving."""
        options = self._options()
        most, patience = count("max_iter", self.max_iter, 1), count("n_iter_no_change", self.n_iter_no_change, 1)
        tol = None if self.tol is None else number("tol", self.tol, low=-math.inf)
        stopping = self._flag("early_stopping")
        again = self._flag("warm_start") and hasattr(self, "_weights")
        self._begin(x, max(classes, 1), options, new=not again)
        self._order_seed = self._seed()
        subset, held_out = self._split(x.rows, targets, classes) if stopping else (None, None)
        self._count(x)
        best, waited, factor = math.inf, 0, 1.0
        self.loss_curve_ = []
        for epoch in range(1, most + 1):
            loss = self._pass(x, targets, classes, weights, class_weights, options, subset=subset, factor=factor)
            self.loss_curve_.append(loss)
            self.n_iter_ = epoch
            if self._schedule == "decay":
                factor *= self._decay
            value = loss if held_out is None else -self._score_of(x, targets, classes, weights, held_out)
            if self.verbose:
                what = "" if held_out is None else f"  validation score {-value:.6f}"
                print(f"pass {epoch}  mean loss {loss:.6f}{what}", flush=True)
            if tol is None:
                continue
            waited = waited + 1 if value > best - tol else 0
            best = min(best, value)
            if waited >= patience:
                if self._schedule != "adaptive" or factor * options["eta"] < 1e-6:
                    return
                factor, waited = factor / 5.0, 0
        if tol is not None:
            warnings.warn(
                f"max_iter: {most} passes did not converge; the loss still improves by more than tol={tol:g}. "
                "Maximum number of iteration reached before convergence.",
                warning_named("ConvergenceWarning", ConvergenceWarning),
                stacklevel=3,
            )

    def _one_part(
        self,
        x: Matrix,
        targets: Array,
        classes: int,
        weights: Array | None,
        class_weights: Array | None,
        options: dict[str, Any],
    ) -> None:
        first = not hasattr(self, "_weights")
        self._begin(x, max(classes, 1), options, new=first)
        if first:
            self._order_seed = self._seed()
            self.loss_curve_ = []
        self._count(x)
        # A part of the data is not an epoch, so it does not count for "decay".
        self.loss_curve_.append(self._pass(x, targets, classes, weights, class_weights, options))
        self.n_iter_ = 1

    def _count(self, x: Matrix) -> None:
        """The frequency of each feature, which penalties and threads depend on."""
        if x.counts is not None:
            self._counts += x.counts
            self._counted += x.rows

    def _split(self, rows: int, targets: Array, classes: int) -> tuple[Array, Array]:
        """The rows for training and for validation: the same fraction of each class."""
        share = number("validation_fraction", self.validation_fraction, high=1.0, open_low=True)
        rng = np.random.default_rng(self._order_seed)
        order = rng.permutation(rows)
        kinds = [order[targets[order] == k] for k in range(max(classes, 2))] if classes else [order]
        cuts = [min(max(round(share * len(kind)), 1), len(kind) - 1) for kind in kinds]
        if share >= 1.0 or min(cuts) < 1:
            raise ValueError(
                f"validation_fraction: {share:g} of {rows} rows leaves a class without rows to train on or to hold out"
            )
        held_out = np.concatenate([kind[:cut] for kind, cut in zip(kinds, cuts, strict=True)])
        kept = np.concatenate([kind[cut:] for kind, cut in zip(kinds, cuts, strict=True)])
        return np.sort(kept).astype(np.int64), np.sort(held_out).astype(np.int64)

    def _scores(self, x: Matrix) -> Array:
        coef = np.atleast_2d(np.asarray(self.coef_, np.float64))
        intercept = np.atleast_1d(np.asarray(self.intercept_, np.float64))
        if coef.shape[1] != x.columns or len(intercept) != len(coef):
            raise ValueError(
                f"coef_: shape {coef.shape} with intercept_ of shape {intercept.shape}, for {x.columns} features"
            )
        scores: Array = _core.hogwild_scores(x.native, np.ascontiguousarray(coef), intercept, self._threads())
        return scores

    def _score_of(self, x: Matrix, targets: Array, classes: int, weights: Array | None, rows: Array) -> float:
        scores = self._scores(x)[rows]
        return self._quality(scores, targets[rows], None if weights is None else weights[rows])

    def _quality(self, scores: Array, targets: Array, weights: Array | None) -> float:
        """Accuracy or R squared, defined by each subclass."""
        raise NotImplementedError

    # Required by scikit-learn.

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def _tags(self, kind: str) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        classifier = kind == "classifier"
        return Tags(
            estimator_type=kind,
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags() if classifier else None,
            regressor_tags=None if classifier else RegressorTags(),
            transformer_tags=None,
            input_tags=InputTags(sparse=True),
        )


def _feature_names(X: Any) -> Array | None:
    columns = getattr(X, "columns", None)
    if columns is None or callable(columns) or not hasattr(X, "__array__"):
        return None
    names = np.asarray(list(columns), dtype=object)
    kinds = {isinstance(n, str) for n in names}
    if kinds == {True, False}:
        raise TypeError(
            "X: Feature names are only supported if all input features have string names, but your input has names of "
            "other types as well; convert them by X.columns = X.columns.astype(str)"
        )
    return names if kinds == {True} else None


_PARAMETERS = """\
penalty
    ``"l2"``, ``"l1"``, ``"elasticnet"`` or ``None``. The intercept is not penalized. For rare features, the penalty
    is applied only at examples that have the feature, with a weight in inverse proportion to its frequency, as in
    the paper; with ``"sgd"`` and ``"l2"`` it is exact.
alpha
    Factor of the penalty: the mean loss plus ``alpha`` times the penalty is minimized.
l1_ratio
    Fraction of L1 in ``"elasticnet"``, in [0, 1].
fit_intercept
    Whether the model has an intercept.
max_iter
    Maximum number of passes of ``fit`` over the data.
tol
    ``fit`` ends if the mean loss, or the validation score, has not improved by ``tol`` for ``n_iter_no_change``
    passes. ``None``: it ends after ``max_iter`` passes.
shuffle
    Whether the examples are shuffled anew for each pass, depending on ``random_state``.
verbose
    Whether to print a line for each pass.
epsilon
    For ``"huber"``: the error from which on the loss is linear.
n_jobs
    Number of threads; ``None`` and -1: :func:`adaptk.get_num_threads`. Small data use fewer threads.
random_state
    An integer in [0, 2**64), a NumPy generator, or ``None`` for a different order each time.
learning_rate
    ``"constant"``: ``eta0``. ``"decay"``: ``eta0``, multiplied by ``decay`` after each pass, as in the paper.
    ``"invscaling"``: ``eta0 / t**power_t``. ``"optimal"``: ``1 / (alpha * (t + t0))``, with the heuristic of Bottou.
    ``"adaptive"``: divided by 5 each time that ``fit`` would otherwise end, until it is below 1e-6. ``"auto"``:
    ``"decay"`` for the rule ``"sgd"``, else ``"constant"``. `t` counts examples; the step size changes every 16
    examples.
eta0
    The initial step size; ``None``: 0.1, and 0.01 for ``"adam"``.
power_t
    The exponent of ``"invscaling"``.
decay
    The factor of ``"decay"``, in (0, 1].
early_stopping
    Whether to hold out a part of the rows, and to end ``fit`` when the score on this part no longer improves.
validation_fraction
    The fraction of rows to hold out, the same for each class.
n_iter_no_change
    See ``tol``.
"""
_MORE_PARAMETERS = """\
warm_start
    Whether ``fit`` starts from the weights and states of the last call.
rule
    ``"sgd"``, ``"adagrad"``, ``"adam"`` or ``"ftrl"`` (FTRL-Proximal), for each weight. An example updates only the
    weights of the features that it has.
mode
    ``"hogwild"``, ``"locked"`` or ``"deterministic"``, see :mod:`adaptk.hogwild`.
beta1, beta2
    Decay rates of ``"adam"``.
eps
    Added to the square root in ``"adagrad"`` and ``"adam"``.
publish_every
    The number of updates of a frequent feature's weight, approximately, after which a thread adds them to the shared
    weight. 1: threads write only to the shared weights. ``None``: 128 divided by the number of threads, but at least
    16.
"""


class SGDClassifier(_Linear):
    """A linear classifier, trained by threads without locks.

    More than two classes are trained one-vs-all.

    Parameters
    ----------
    loss
        ``"hinge"`` (a linear support vector machine), ``"log_loss"`` (logistic regression, with probabilities),
        ``"squared_hinge"``, ``"squared_error"`` or ``"huber"``.
    @PARAMETERS@
    class_weight
        A dict from class to the weight of its examples, 1 for classes that are not in the dict. ``"balanced"``: weights
        in inverse proportion to the number of examples.
    @MORE@
    Attributes
    ----------
    coef_, intercept_
        Weights of shape ``(1, features)``, or ``(classes, features)`` for more than two classes, and as many
        intercepts, in the dtype of the data.
    classes_
        The labels, sorted.
    n_iter_, t_
        Number of passes of the last ``fit``, and of examples since the weights were zero.
    loss_curve_
        The mean loss of each pass without the penalty. The loss of each example is computed before its update.
    n_features_in_, feature_names_in_
        The number of features, and their names if the data have names.

    Notes
    -----
    Source: Niu, Recht, Ré, Wright 2011. FTRL-Proximal, whose penalty grows with each example, is from McMahan 2011. The
    other rules apply the penalty by the proximal steps of Duchi and Singer 2009.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk.hogwild import SGDClassifier
    >>> X = np.array([[-1.0, 1.0], [-2.0, 0.5], [1.0, -1.0], [2.0, -0.5]])
    >>> model = SGDClassifier(loss="log_loss", random_state=0).fit(X, ["no", "no", "yes", "yes"])
    >>> model.predict([[3.0, -1.0]])
    array(['yes'], dtype='<U3')
    >>> model.score(X, ["no", "no", "yes", "yes"])
    1.0
    """

    _estimator_type = "classifier"
    classes_: Array

    def __init__(
        self,
        loss: str = "hinge",
        *,
        penalty: str | None = "l2",
        alpha: float = 1e-4,
        l1_ratio: float = 0.15,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float | None = 1e-3,
        shuffle: bool = True,
        verbose: int = 0,
        epsilon: float = 0.1,
        n_jobs: int | None = None,
        random_state: Any = None,
        learning_rate: str = "auto",
        eta0: float | None = None,
        power_t: float = 0.5,
        decay: float = 0.9,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        class_weight: Any = None,
        warm_start: bool = False,
        rule: str = "adagrad",
        mode: str = "hogwild",
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-10,
        publish_every: int | None = None,
    ) -> None:
        self.loss = loss
        self.penalty = penalty
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.shuffle = shuffle
        self.verbose = verbose
        self.epsilon = epsilon
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.learning_rate = learning_rate
        self.eta0 = eta0
        self.power_t = power_t
        self.decay = decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.rule = rule
        self.mode = mode
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.publish_every = publish_every

    def __sklearn_tags__(self) -> Any:
        return self._tags("classifier")

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SGDClassifier:
        """Train from zero weights, or from the last weights with ``warm_start``.

        Parameters
        ----------
        X
            A sparse matrix of SciPy, a tuple ``(data, indices, indptr)`` or ``(data, indices, indptr, shape)``, or a
            dense array, of shape ``(n, features)``. CSR matrices and C-ordered arrays in float32 and float64 are read
            without a copy. All others are copied, and so are matrices with rows whose indices do not increase.
        y
            Labels of any type, of shape ``(n,)``.
        sample_weight
            Factors of the losses of the examples, >= 0, of shape ``(n,)``.

        Returns
        -------
        SGDClassifier
            ``self``.

        Raises
        ------
        TypeError, ValueError
            An argument or a parameter is invalid, the data contain NaN or inf, or the training diverges.
        KeyboardInterrupt
            Ctrl-C was pressed. The weights keep their current values.
        """
        again = self._flag("warm_start") and hasattr(self, "_weights")
        x = self._read(X, count=True, reset=not again)
        labels = _labels(y, x.rows)
        classes, numbers_of = np.unique(labels, return_inverse=True)
        if again and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"y has the classes {classes.tolist()}, and those of the last fit were {self.classes_.tolist()}"
            )
        weights = sample_weights(sample_weight, x.rows)
        self._check_classes(classes, numbers_of, weights)
        self.classes_ = classes
        self._train(x, numbers_of.astype(np.float64), self._problems(), weights, self._class_weights(numbers_of))
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> SGDClassifier:
        """Make one pass over a part of the data.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.
        classes
            All labels that occur in any call. Required in the first call.

        Returns
        -------
        SGDClassifier
            ``self``.

        Raises
        ------
        TypeError, ValueError
            As in :meth:`fit`, or ``y`` has a label that is not in ``classes``.

        Examples
        --------
        >>> import numpy as np
        >>> from adaptk.hogwild import SGDClassifier
        >>> model = SGDClassifier()
        >>> for part in ([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.5], [0.5, 2.0]]):
        ...     model = model.partial_fit(part, [0, 1], classes=[0, 1])
        >>> model.t_
        4
        """
        first = not hasattr(self, "_weights")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        options = self._options()
        if isinstance(self.class_weight, str):
            raise ValueError("class_weight='balanced' is for fit, which knows all labels; give a dict of weights")
        known = np.unique(np.asarray(classes)) if classes is not None else self.classes_
        if not first and not np.array_equal(known, self.classes_):
            raise ValueError(f"classes: {known.tolist()}, and the first call had {self.classes_.tolist()}")
        x = self._read(X, count=True, reset=first)
        labels = _labels(y, x.rows)
        places = np.searchsorted(known, labels)
        found = known[np.minimum(places, len(known) - 1)] == labels
        if not np.all(found):
            raise ValueError(f"y: {labels.tolist()[int(np.argmin(found))]!r} is not in classes, {known.tolist()}")
        weights = sample_weights(sample_weight, x.rows)
        if len(known) < 2:
            raise ValueError(f"classes: The number of classes has to be greater than one; got {len(known)} class")
        self.classes_ = known
        self._one_part(x, places.astype(np.float64), self._problems(), weights, self._class_weights(places), options)
        return self

    def decision_function(self, X: Any) -> Array:
        """Signed distances from the separating hyperplanes, up to a factor.

        Parameters
        ----------
        X
            As in :meth:`fit`.

        Returns
        -------
        ndarray
            ``(n,)`` for two classes, positive for the second one, else ``(n, classes)``.
        """
        self._check_is_fitted()
        scores = self._scores(self._read(X))
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> Array:
        """Predict the label of each row.

        Parameters
        ----------
        X
            As in :meth:`fit`.

        Returns
        -------
        ndarray
            Predictions of shape ``(n,)``.
        """
        scores = self.decision_function(X)
        chosen: Array = self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]
        return chosen

    @property
    def predict_proba(self) -> Any:
        """``predict_proba(X)``: probabilities of shape ``(n, classes)``, in the order of ``classes_``. For more than
        two classes, those of each class against all others, normalized to the sum 1. Only for the loss
        ``"log_loss"``."""
        if self.loss != "log_loss":
            raise AttributeError(f"probability estimates are not available for loss={self.loss!r}; use 'log_loss'")
        return self._predict_proba

    @property
    def predict_log_proba(self) -> Any:
        """``predict_log_proba(X)``: the logarithm of :attr:`predict_proba`."""
        proba = self.predict_proba
        return lambda X: _log(proba(X))

    def _predict_proba(self, X: Any) -> Array:
        scores = self.decision_function(X)
        p: Array = np.exp(-np.logaddexp(0.0, -scores))
        if p.ndim == 1:
            return np.stack([np.exp(-np.logaddexp(0.0, scores)), p], axis=1)
        total = p.sum(axis=1, keepdims=True)
        none = total[:, 0] == 0
        p[none] = 1.0
        total[none] = p.shape[1]
        p /= total
        return p

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The accuracy: the fraction of rows whose label is predicted correctly.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.

        Returns
        -------
        float
            In [0, 1].
        """
        right = self.predict(X) == vector(y, "y", _rows(X))
        return float(np.average(right, weights=sample_weights(sample_weight, len(right))))

    def _problems(self) -> int:
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def _check_classes(self, classes: Array, numbers_of: Array, weights: Array | None) -> None:
        if weights is not None:
            present = np.unique(numbers_of[weights > 0])
            if len(present) == 1 and len(classes) > 1:
                raise ValueError(
                    "sample_weight: The number of classes has to be greater than one; got 1 class with a weight > 0"
                )
        if len(classes) < 2:
            raise ValueError(f"y: The number of classes has to be greater than one; got {len(classes)} class")

    def _class_weights(self, numbers_of: Array) -> Array | None:
        """For each binary problem the factor of the other classes, and of its own class."""
        given = self.class_weight
        if given is None:
            return None
        n = len(self.classes_)
        if isinstance(given, str):
            if given != "balanced":
                raise ValueError(f"class_weight must be a dict, 'balanced' or None, got {given!r}")
            by_class = len(numbers_of) / (n * np.maximum(np.bincount(numbers_of, minlength=n), 1))
        elif isinstance(given, dict):
            by_class = np.ones(n)
            known = self.classes_.tolist()
            for label, weight in given.items():
                if label not in known:
                    raise ValueError(f"class_weight: {label!r} is not one of the classes, {known}")
                by_class[known.index(label)] = number(f"class_weight[{label!r}]", weight)
        else:
            raise TypeError(f"class_weight must be a dict, 'balanced' or None, got {type(given).__name__}")
        if n == 2:
            return np.ascontiguousarray(by_class, np.float64)
        return np.ascontiguousarray(np.stack([np.ones(n), by_class], axis=1))

    def _quality(self, scores: Array, targets: Array, weights: Array | None) -> float:
        chosen = scores[:, 0] > 0 if scores.shape[1] == 1 else scores.argmax(axis=1)
        if weights is not None and not weights.any():
            weights = None
        return float(np.average(chosen == targets, weights=weights))


class SGDRegressor(_Linear):
    """A linear regression, trained by threads without locks.

    Parameters
    ----------
    loss
        ``"squared_error"``, half the square of the error, or ``"huber"``, which is linear from ``epsilon`` on.
    @PARAMETERS@
    @MORE@
    Attributes
    ----------
    coef_, intercept_
        Weights of shape ``(features,)`` and the intercept of shape ``(1,)``, in the dtype of the data.
    n_iter_, t_
        Number of passes of the last ``fit``, and of examples since the weights were zero.
    loss_curve_
        The mean loss of each pass without the penalty. The loss of each example is computed before its update.
    n_features_in_, feature_names_in_
        The number of features, and their names if the data have names.

    Notes
    -----
    Source: see :class:`SGDClassifier`.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk.hogwild import SGDRegressor
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> model = SGDRegressor(random_state=0).fit(X, X @ [1.0, -2.0] + 3.0)
    >>> bool(np.allclose(model.coef_, [1.0, -2.0], atol=0.01) and abs(model.intercept_[0] - 3.0) < 0.01)
    True
    """

    _estimator_type = "regressor"

    def __init__(
        self,
        loss: str = "squared_error",
        *,
        penalty: str | None = "l2",
        alpha: float = 1e-4,
        l1_ratio: float = 0.15,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float | None = 1e-3,
        shuffle: bool = True,
        verbose: int = 0,
        epsilon: float = 0.1,
        n_jobs: int | None = None,
        random_state: Any = None,
        learning_rate: str = "auto",
        eta0: float | None = None,
        power_t: float = 0.25,
        decay: float = 0.9,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        warm_start: bool = False,
        rule: str = "adagrad",
        mode: str = "hogwild",
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-10,
        publish_every: int | None = None,
    ) -> None:
        self.loss = loss
        self.penalty = penalty
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.shuffle = shuffle
        self.verbose = verbose
        self.epsilon = epsilon
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.learning_rate = learning_rate
        self.eta0 = eta0
        self.power_t = power_t
        self.decay = decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.rule = rule
        self.mode = mode
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.publish_every = publish_every

    def __sklearn_tags__(self) -> Any:
        return self._tags("regressor")

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SGDRegressor:
        """Train from zero weights, or from the last weights with ``warm_start``.

        Parameters
        ----------
        X, sample_weight
            As in :meth:`SGDClassifier.fit`.
        y
            Numbers of shape ``(n,)``.

        Returns
        -------
        SGDRegressor
            ``self``.

        Raises
        ------
        TypeError, ValueError
            An argument or a parameter is invalid, the data contain NaN or inf, or the training diverges.
        KeyboardInterrupt
            Ctrl-C was pressed. The weights keep their current values.
        """
        again = self._flag("warm_start") and hasattr(self, "_weights")
        self._check_loss()
        x = self._read(X, count=True, reset=not again)
        targets = numbers(_needed(y), "y", x.rows)
        self._train(x, targets, 0, sample_weights(sample_weight, x.rows), None)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> SGDRegressor:
        """Make one pass over a part of the data.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.

        Returns
        -------
        SGDRegressor
            ``self``.

        Raises
        ------
        TypeError, ValueError
            As in :meth:`fit`.
        """
        self._check_loss()
        options = self._options()
        x = self._read(X, count=True, reset=not hasattr(self, "_weights"))
        targets = numbers(_needed(y), "y", x.rows)
        self._one_part(x, targets, 0, sample_weights(sample_weight, x.rows), None, options)
        return self

    def predict(self, X: Any) -> Array:
        """Predict the target of each row.

        Parameters
        ----------
        X
            As in :meth:`SGDClassifier.fit`.

        Returns
        -------
        ndarray
            Predictions of shape ``(n,)``.
        """
        self._check_is_fitted()
        return self._scores(self._read(X))[:, 0]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The coefficient of determination R²: 1 minus the sum of squared errors over the total sum of squares.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.

        Returns
        -------
        float
            At most 1.
        """
        predicted = self.predict(X)
        targets = numbers(y, "y", len(predicted))
        return self._quality(predicted[:, None], targets, sample_weights(sample_weight, len(predicted)))

    def _check_loss(self) -> None:
        self._one_of("loss", ("squared_error", "huber"))

    def _publish(self) -> None:
        super()._publish()
        self.coef_ = self.coef_[0]

    def _quality(self, scores: Array, targets: Array, weights: Array | None) -> float:
        mean = np.average(targets, weights=weights)
        errors = np.average((targets - scores[:, 0]) ** 2, weights=weights)
        spread = np.average((targets - mean) ** 2, weights=weights)
        if spread == 0.0:
            return 1.0 if errors == 0.0 else 0.0
        return float(1.0 - errors / spread)


def _needed(y: Any) -> Any:
    if y is None:
        raise ValueError("y: This estimator requires y to be passed, but the target y is None")
    return y


def _rows(X: Any) -> int:
    if isinstance(X, tuple) and len(X) in (3, 4):
        return len(X[2]) - 1
    return int(X.shape[0]) if hasattr(X, "shape") else len(X)


def _log(p: Array) -> Array:
    with np.errstate(divide="ignore"):
        logarithm: Array = np.log(p)
    return logarithm


def _labels(y: Any, rows: int) -> Array:
    labels = vector(_needed(y), "y", rows)
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise ValueError("y: Input y contains NaN or Input y contains infinity")
        if (labels != np.floor(labels)).any():
            raise ValueError("y: Unknown label type: continuous; labels of classes are integers, strings or booleans")
    elif labels.dtype.kind == "c":
        raise ValueError(f"y: Complex data not supported, got dtype {labels.dtype}")
    elif labels.dtype.kind == "O" and any(isinstance(v, float) and v != v for v in labels):
        raise ValueError("y: Input y contains NaN")
    return labels


for _class in (SGDClassifier, SGDRegressor):
    if _class.__doc__ is not None:  # not with python -OO
        _class.__doc__ = (
            inspect.cleandoc(_class.__doc__)
            .replace("@PARAMETERS@", _PARAMETERS.strip("\n"))
            .replace("@MORE@", _MORE_PARAMETERS)
        )
