"""The active learning loop: choose rows, ask for labels, train, choose again."""

import copy
import time
from collections.abc import Callable

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    MetaEstimatorMixin,
    clone,
    is_classifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _num_samples, check_is_fitted, validate_data

from ._core.answers import check_rows, read_answers
from ._core.callbacks import CallbackSupportMixin, fitting
from ._core.columns import holds_images
from ._core.inputs import unpacked
from ._core.labels import (
    as_column,
    check_labels,
    check_look_alikes,
    encode_labels,
    is_labeled,
    read_labels,
)
from ._core.learner import Learner
from ._core.nested import fit_partly_labeled, has_features, last_step
from ._core.parameters import (
    KW_ONLY,
    Count,
    CountOrZero,
    Parameters,
    RandomState,
    Verbosity,
)
from ._core.persistence import save as save_estimator
from ._core.processes import once, sharing
from ._core.roles.classification import ClassificationRole, LabeledScoreMixin
from .classification import SupervisedClassifier
from .embedding import SimCLRTransformer
from .selection import (
    BADGESelector,
    RandomSelector,
    StratifiedSelector,
    UncertaintySelector,
    USLSelector,
)

__all__ = ["ActiveLearningClassifier"]

# selectors that need no vectors
_OF_ANYTHING = RandomSelector, StratifiedSelector


def _classifier_has(name):
    def check(self):
        classifier = vars(self).get("classifier_", self.classifier)
        getattr(SupervisedClassifier if classifier is None else classifier, name)
        return True

    return check


def _as_labels(labels):
    """Return answers as labels: integers become an array, others do not change."""
    known = labels[is_labeled(labels)]
    kinds = set(map(type, known))
    if all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
        try:
            return labels.astype(np.int64)
        except OverflowError:  # numbers without an end, such as hashes
            return labels
    return labels


def _as_objects(y):
    """Return a column of labels as a 1-D array of objects, None for masked ones."""
    column = as_column(y)
    objects = np.empty(len(column), dtype=object)
    objects[:] = column.tolist()
    return objects


def _without_classifier(selector):
    """Return a selector without the loop's classifier, which each query sets."""
    if not isinstance(
        selector.get_params(deep=False).get("classifier"), FrozenEstimator
    ):
        return selector
    selector = copy.copy(selector).set_params(classifier=None)
    vars(selector).pop("classifier_", None)
    return selector


class ActiveLearningClassifier(
    LabeledScoreMixin,
    MetaEstimatorMixin,
    ClassifierMixin,
    CallbackSupportMixin,
    Parameters,
    BaseEstimator,
):
    """Classify with labels that are requested in rounds (active learning).

    A first selector, which needs no labels, chooses the first rows. Then, in every
    round, the classifier is trained on the labeled rows, and a second selector chooses
    the rows with the most informative labels. Labels come from a function, from known
    but hidden labels (to evaluate a method), or from a person (:meth:`begin`,
    :meth:`query`, :meth:`teach`). Read more in the :ref:`User Guide <active_learning>`.

    Parameters
    ----------
    classifier : estimator or None
        Classifier to train; cloned. None:
        :class:`sklabel.classification.SupervisedClassifier`. A classifier that does not
        support unlabeled rows, as most of scikit-learn, gets the labeled rows.
    selector : selector or None
        Chooses the rows of a round; cloned. Its ``classifier``, if it has one, is the
        loop's; in a pipeline, which changes its input, it keeps its own. None:
        :class:`sklabel.selection.BADGESelector`; for images with a classifier of
        another library, which has no features,
        :class:`sklabel.selection.UncertaintySelector` with "margin".
    initial_selector : selector or None
        Chooses the first rows; cloned. None: :class:`sklabel.selection.USLSelector`.
    n_rounds : int
        Rounds of ``fit`` after the first choice, >= 0.
    n_samples : int
        Rows to label per round, >= 1; the last round may have fewer.
    n_initial : int or None
        Rows to label at the start; None: ``n_samples``.
    oracle : callable or None
        ``oracle(indices)`` returns the labels of rows, in the form that :meth:`teach`
        takes; -1, None, NaN or a blank text for a row without a label, which is not
        queried again. None: labels are revealed from the y given to ``fit``, only for
        the queried rows; rows that are unlabeled there are not queried. A search or a
        cross-validation needs None, because an oracle does not know the row numbers of
        a fold.
    embedder : estimator or None
        Embeds images for selectors that need vectors; cloned and fitted once, or used
        as is in a :class:`sklearn.frozen.FrozenEstimator`. None:
        :class:`sklabel.embedding.SimCLRTransformer`. Not used for 2-D X.
    warm_start : bool
        Whether the classifier (the last step of a pipeline) continues from the weights
        of the last round; it must have a parameter of that name. If False, or if there
        is a new class, training starts anew.
    random_state : int, RandomState instance or None
        Seed of classifier, selectors and embedder that have none of their own.
    verbose : int
        1: a line per round with the number of labels, the accuracy if it is known, and
        the seconds. 0: nothing.

    Attributes
    ----------
    classifier_ : estimator
        Trained on all answers.
    classes_ : ndarray of shape (n_classes,)
        Classes among the answers.
    labels_ : ndarray of shape (n_samples,), dtype object
        Answers so far; -1 for unlabeled rows.
    selector_, initial_selector_ : selector
        Selectors after their last choice. Each is the same object in all rounds, so
        with ``warm_start=True`` it continues from the network of the last round.
    embedder_ : estimator
        Fitted embedder, if X is not 2-D and a selector needed vectors.
    sample_indices_ : ndarray of int
        Queried rows, in order, each once.
    refused_ : ndarray of int
        Rows that got no label, and files that the embedder cannot read; they are not
        queried again.
    pending_ : ndarray of int
        Queried rows that are not answered yet.
    history_ : list of dict
        Per round ``n_asked``, ``n_labeled``, ``seconds`` (of choice and training) and,
        if labels are revealed from y, ``accuracy`` on the rows not queried yet: the
        learning curve.
    n_features_in_ : int
        Values per sample, if X has 2 dimensions.

    Raises
    ------
    ValueError
        If y has no label to reveal, the number of answers differs from the number of
        rows, ``teach`` gets rows that are not in X, or the classifier does not support
        ``warm_start``.

    See Also
    --------
    sklabel.selection.USLSelector : Chooses the first rows.
    sklabel.classification.CCLClassifier : Made for this loop.

    Notes
    -----
    While all answers are of one class, nothing can be trained, and the first selector
    chooses again. :meth:`save` and pickles keep the state of the loop, but not X: after
    loading, call ``attach(X)``.

    The loop of Roda and Geva (2024) is ``ActiveLearningClassifier(CCLClassifier(),
    UncertaintySelector("entropy"), RandomSelector(), n_rounds=20, n_samples=250)``.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklabel.active_learning import ActiveLearningClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> loop = ActiveLearningClassifier(
    ...     LogisticRegression(max_iter=1000), n_rounds=2, n_samples=20, random_state=0
    ... ).fit(X, y)
    >>> [step["n_labeled"] for step in loop.history_]
    [20, 40, 60]

    With a person:

    >>> loop.begin(X)
    ActiveLearningClassifier(...)
    >>> rows = loop.query()
    >>> loop.teach(rows, y[rows]).predict(X).shape
    (1797,)
    """

    classifier: BaseEstimator | None = None
    selector: BaseEstimator | None = None
    initial_selector: BaseEstimator | None = None
    _: KW_ONLY
    n_rounds: CountOrZero = 5
    n_samples: Count = 40
    n_initial: Count | None = None
    oracle: Callable | None = None
    embedder: BaseEstimator | None = None
    warm_start: bool = False
    random_state: RandomState = None
    verbose: Verbosity = 0

    @fitting
    def fit(self, X, y=None):
        """Run the loop.

        Parameters
        ----------
        X : array-like
            Input of the classifier: vectors ``(n, D)``, images, or paths of image
            files.
        y : array-like of shape (n_samples,) or None
            With ``oracle``, the labels known so far (-1 for unlabeled rows), or None.
            Without ``oracle``, the labels to reveal; rows with -1 are not queried.

        Returns
        -------
        self : ActiveLearningClassifier

        Notes
        -----
        If an oracle fails or returns invalid answers (see :meth:`teach`), the error
        ends the fit, but the answers of earlier rounds are kept: continue with
        :meth:`query` and :meth:`teach`, or with ``fit(X, loop.labels_)``.
        """
        X, hidden = self._check_X(X, reset=True), None
        if self.oracle is None:
            hidden, y = _as_objects(check_labels(y, n_samples=_num_samples(X))), None
        self._start(X, y)
        self._hidden = hidden
        n_given = is_labeled(self.labels_).sum()
        for _ in range(self.n_rounds + 1):
            rows = self.query()
            if len(rows) == 0:
                break
            answers = (
                hidden[rows] if self.oracle is None else once(self.oracle)(rows.copy())
            )
            try:
                self.teach(rows, answers)
            finally:  # answers are not lost, whatever fails after them
                answered = is_labeled(self.labels_).sum() > n_given
                self._kept = self.oracle is not None and answered
        if not hasattr(self, "classifier_"):
            n_answers = int(is_labeled(self.labels_).sum())
            if n_answers == 0:
                raise ValueError(
                    f"None of the {len(self.sample_indices_)} queried rows got a "
                    f"label, so nothing can be trained: let "
                    f"oracle={self.oracle!r} return a label for some rows."
                )
            raise ValueError(
                f"All {n_answers} answers are of "
                f"one class, so nothing can be trained: raise n_rounds={self.n_rounds} "
                f"or n_samples={self.n_samples}."
            )
        return self

    def begin(self, X, y=None):
        """Start the loop; nothing is queried, and only given labels are trained on.

        Parameters
        ----------
        X : array-like
            Input of the classifier.
        y : array-like of shape (n_samples,) or None
            Labels known so far, -1 for unlabeled rows.

        Returns
        -------
        self : ActiveLearningClassifier
        """
        self._validate_params()
        with sharing():
            return self._start(self._check_X(X, reset=True), y)

    def _check_parts(self):
        """Raise an error, before a label is requested, for parts of the wrong kind."""
        classifier = self.classifier
        if not (classifier is None or is_classifier(classifier)):
            raise ValueError(
                f"classifier={classifier!r} is no classifier: give an estimator that "
                "predicts classes."
            )
        for name in ("selector", "initial_selector"):
            selector = getattr(self, name)
            if selector is not None and (
                isinstance(selector, FrozenEstimator)
                or "n_samples" not in last_step(selector).get_params(deep=False)
            ):
                raise ValueError(
                    f"{name}={selector!r} is no selector: give one of "
                    "sklabel.selection, not frozen, or a pipeline that ends with one."
                )
        selector = BADGESelector() if self.selector is None else self.selector
        asks = "classifier" in selector.get_params(deep=False)
        if asks and not (classifier is None or hasattr(classifier, "predict_proba")):
            raise ValueError(
                f"{type(selector).__name__}, the selector, needs probabilities, but "
                f"classifier={classifier!r} has no predict_proba: wrap it in "
                "sklearn.calibration.CalibratedClassifierCV, or use another selector."
            )

    def _start(self, X, y):
        self._check_parts()
        n_rows = _num_samples(X)
        if y is not None:  # an error before anything is changed
            known, labeled, _ = read_labels(y)
            known = _as_objects(known)
            if len(known) != n_rows:
                raise ValueError(
                    "Found input variables with inconsistent numbers of samples: X "
                    f"has {n_rows} rows, y has {len(known)}."
                )
        for name in (
            "classifier_",
            "classes_",
            "initial_selector_",
            "selector_",
            "embedder_",
            "_Z",
            "_hidden",
        ):
            vars(self).pop(name, None)
        self._rng = np.random.RandomState(
            check_random_state(self.random_state).randint(2**31 - 1)
        )
        self.labels_ = np.full(n_rows, -1, dtype=object)
        self.sample_indices_ = self.pending_ = self.refused_ = np.empty(0, np.int64)
        self.history_ = []
        self._X = X
        if y is not None:
            self.labels_[labeled] = known[labeled]
            self._train()
        return self

    def save(self, folder):
        """Write the loop into a folder as safetensors and JSON, without X.

        ``sklabel.load`` reads it, and :meth:`attach` gives it its rows again; the
        ``oracle``, a function, and ``verbose`` are not saved. If the classifier, a
        selector or the embedder is scikit-learn's, use ``joblib.dump``.

        Parameters
        ----------
        folder : str or Path
            Created if it does not exist. Nothing executable is written.

        Raises
        ------
        TypeError
            If a part is not sklabel's own; only pickle can save it.
        """
        check_is_fitted(self, "labels_")
        kept = copy.copy(self)
        vars(kept).update(self.__getstate__())
        for name in ("_X", "_Z", "_hidden", "_sklearn_version"):
            vars(kept).pop(name, None)
        for name in ("selector_", "initial_selector_"):
            if hasattr(kept, name):
                setattr(kept, name, _without_classifier(getattr(kept, name)))
        save_estimator(kept, folder)

    def attach(self, X):
        """Give the loop its rows after loading.

        Parameters
        ----------
        X : array-like
            The rows that the loop was started with.

        Returns
        -------
        self : ActiveLearningClassifier
        """
        check_is_fitted(self, "labels_")
        X = self._check_X(X)
        if _num_samples(X) != len(self.labels_):
            raise ValueError(
                f"The loop was started with {len(self.labels_)} rows, but X has "
                f"{_num_samples(X)}: attach the rows that it was started with."
            )
        self._X = X
        return self

    def query(self):
        """Choose the rows to label next.

        The same rows are returned until they are answered by :meth:`teach`.

        Returns
        -------
        indices : ndarray of int of shape (n_rows,)
            At most ``n_samples``, in labeling order; empty when none is left.
        """
        self._check_attached()
        if len(self.pending_):
            return self.pending_.copy()
        start = time.perf_counter()
        first = not hasattr(self, "classifier_")
        selector = self.initial_selector if first else self.selector
        if selector is None:
            selector = USLSelector() if first else self._default_selector()
        name = "initial_selector_" if first else "selector_"
        if not hasattr(self, name):
            setattr(self, name, clone(selector))
        chosen = getattr(self, name)
        if last_step(selector).get_params(deep=False).get("random_state", 0) is None:
            last_step(chosen).set_params(random_state=None)  # a new seed in every round
        rows = self._select(chosen, self.n_initial if first else None)
        self.pending_ = rows
        new = rows[~np.isin(rows, self.sample_indices_)]
        self.sample_indices_ = np.append(self.sample_indices_, new)
        self._seconds = time.perf_counter() - start
        return rows.copy()  # what a caller does with them does not change the loop

    def _default_selector(self):
        if has_features(self.classifier_, self._X):
            return BADGESelector()
        return UncertaintySelector("margin")

    def teach(self, indices, y, *, correct=False):
        """Take answers, and train on all of them.

        Parameters
        ----------
        indices : array-like of int
            Rows, queried or not, in any order, each once. Queried rows that are left
            out may be queried again.
        y : array-like, or mapping or Series by row
            Their labels: a list or an array in the order of ``indices``, or {row:
            label}, in which rows may be left out. -1, None, NaN or a blank text for a
            row that gets no label and is not to be queried again.
        correct : bool, default=False
            Whether answers may replace earlier ones.

        Returns
        -------
        self : ActiveLearningClassifier

        Raises
        ------
        ValueError
            If the numbers of answers and rows differ, there are answers for other rows,
            a row is repeated, a row already has another label (unless ``correct``), or
            an answer cannot be a label. Nothing is changed then.
        TypeError
            If the answers have no order, as in a set, or mix texts and numbers.
        """
        self._check_attached()
        rows = check_rows(indices, len(self.labels_))
        known = self.labels_[is_labeled(self.labels_)]
        rows, answers, answered = read_answers(rows, y, classes=known)
        if not correct:
            self._check_contradictions(rows, answers, answered)
        labels = self.labels_.copy()
        labels[rows] = np.where(answered, answers, -1)
        if answered.any():
            encode_labels(_as_labels(labels))  # an error before anything is changed
        start = time.perf_counter()
        self.labels_ = labels
        refused = np.union1d(self.refused_, rows[~answered])
        self.refused_ = np.setdiff1d(refused, np.flatnonzero(is_labeled(self.labels_)))
        self.pending_ = np.empty(0, np.int64)
        self._train()
        seconds = time.perf_counter() - start + vars(self).pop("_seconds", 0)
        self.history_.append(
            {
                "n_asked": len(self.sample_indices_),
                "n_labeled": int(is_labeled(self.labels_).sum()),
                "seconds": round(seconds, 3),
                **self._curve(),
            }
        )
        if self.verbose:
            self._print_round()
        return self

    def _check_contradictions(self, rows, answers, answered):
        """Raise if a row already has another label."""
        before = self.labels_[rows]
        for row, old, new, known, has in zip(
            rows.tolist(), before, answers, is_labeled(before), answered, strict=True
        ):
            if known and not (has and old == new):
                raise ValueError(
                    f"Row {row} has the label {old!r}, but the answer is now {new!r}: "
                    "call teach with correct=True to replace the earlier answer."
                )

    def _print_round(self):
        step = self.history_[-1]
        accuracy = step.get("accuracy")
        print(
            f"round {len(self.history_)}: {step['n_labeled']} of {step['n_asked']} "
            "queried rows are labeled"
            + ("" if accuracy is None else f", accuracy {accuracy:.3f} on the others")
            + f", {step['seconds']:.1f} s"
        )

    @available_if(_classifier_has("predict_proba"))
    def predict_proba(self, X):
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like
            Input of the classifier.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Columns in the order of ``classes_``.
        """
        check_is_fitted(self, "classifier_")
        return self.classifier_.predict_proba(self._check_X(X))

    def predict(self, X):
        """Return the class of each sample.

        Parameters
        ----------
        X : array-like
            Input of the classifier.

        Returns
        -------
        y : ndarray of shape (n_samples,)
        """
        check_is_fitted(self, "classifier_")
        found = np.asarray(self.classifier_.predict(self._check_X(X)))
        # scikit-learn's semi-supervised classifiers know no bool beside -1
        return found.astype(bool) if self.classes_.dtype == bool else found

    def _check_X(self, X, reset=False):
        """Return vectors as an array; images and paths are checked by their user."""
        X = unpacked(X)
        if len(getattr(X, "shape", ())) > 2 or holds_images(X):
            return X
        return validate_data(self, X, reset=reset)

    def _check_attached(self):
        check_is_fitted(self, "labels_")
        if not hasattr(self, "_X"):
            raise ValueError(
                "The loop was loaded without its rows: call attach(X) with the rows "
                "that it was started with."
            )

    def _train(self):
        """Train on all answers, if they have at least two classes."""
        labeled = is_labeled(self.labels_)
        if not labeled.any():
            return
        y = _as_labels(self.labels_)
        classes, _ = encode_labels(y)
        if len(classes) < 2:
            return
        classifier = vars(self).get("classifier_")
        if classifier is None or not self.warm_start:
            classifier = self.classifier
            default = SupervisedClassifier()
            classifier = self._seed(
                clone(default if classifier is None else classifier)
            )
        if self.warm_start:
            last = last_step(classifier)
            if "warm_start" not in last.get_params(deep=False):
                raise ValueError(
                    f"warm_start=True, but {type(last).__name__} has no parameter "
                    "warm_start and starts anew in every round: set warm_start=False."
                )
            same = np.array_equal(classes, vars(self).get("classes_"))
            last.set_params(warm_start=same)
        new = set(classes.tolist()) - set(vars(self).get("classes_", ()))
        if new and not isinstance(last_step(classifier), ClassificationRole):
            check_look_alikes(classes)  # sklabel's classifiers tell it themselves
        self.classifier_ = fit_partly_labeled(classifier, self._X, y)
        own = np.asarray(self.classifier_.classes_)
        self.classes_ = classes if classes.dtype == bool else own

    def _select(self, selector, n_samples):
        """Return rows chosen by a selector, or by the last of a pipeline."""
        last = last_step(selector)
        X, y = self._X, self.labels_
        alone = last is selector
        if alone and "classifier" in last.get_params(deep=False):
            if hasattr(self, "classifier_"):
                last.set_params(classifier=FrozenEstimator(self.classifier_))
        elif alone and not isinstance(last, (Learner, *_OF_ANYTHING)):
            X = self._vectors()
        rows = np.setdiff1d(np.arange(len(y)), self.refused_)
        hidden = vars(self).get("_hidden")
        if hidden is not None:  # what has no answer is not asked
            rows = rows[is_labeled(hidden[rows])]
        n_open = int((~is_labeled(y[rows])).sum())
        n_samples = min(n_samples or self.n_samples, n_open)
        if n_samples == 0:
            return np.empty(0, np.int64)
        self._seed(last.set_params(n_samples=n_samples))
        if len(rows) < len(y):
            X, y = _safe_indexing(X, rows), y[rows]
        return rows[last_step(selector.fit(X, y)).sample_indices_]

    def _vectors(self):
        """Return X if it is 2-D, else its embedding; unreadable files are refused."""
        if len(getattr(self._X, "shape", ())) == 2 and not holds_images(self._X):
            return self._X
        if not hasattr(self, "_Z"):
            if not hasattr(self, "embedder_"):
                embedder = (
                    SimCLRTransformer() if self.embedder is None else self.embedder
                )
                if not isinstance(embedder, FrozenEstimator):
                    embedder = self._seed(clone(embedder)).fit(self._X)
                self.embedder_ = embedder
            self._Z = np.asarray(self.embedder_.transform(self._X))
            unread = np.flatnonzero(np.isnan(self._Z).any(axis=1))
            unread = unread[~is_labeled(self.labels_[unread])]
            self.refused_ = np.union1d(self.refused_, unread)
        return self._Z

    def _seed(self, estimator):
        """Give an estimator a seed, if it has none."""
        if estimator.get_params(deep=False).get("random_state", 0) is None:
            estimator.set_params(random_state=int(self._rng.randint(2**31 - 1)))
        return estimator

    def _curve(self):
        """Return the accuracy on rows not queried yet, if their labels are known."""
        hidden = vars(self).get("_hidden")
        if hidden is None or not hasattr(self, "classifier_"):
            return {}
        rest = is_labeled(hidden) & ~is_labeled(self.labels_)
        if not rest.any():
            return {}
        predicted = np.asarray(self.classifier_.predict(self._X), dtype=object)
        return {"accuracy": float((predicted[rest] == hidden[rest]).mean())}

    def __getstate__(self):
        state = super().__getstate__()
        return {k: v for k, v in state.items() if k not in ("_X", "_Z", "_hidden")}

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.oracle is None
        return tags
