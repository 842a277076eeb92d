"""Learn while a person labels: estimate accuracy, propose classes, choose rows."""

import threading
import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import normalize as unit_rows

from ..classification import EmbeddingClassifier
from ..selection import MaxHerdingSelector, UHerdingSelector
from .session import Insight

_N_ASKED = 60  # rows that are ranked for asking
_N_CANDIDATES = 2000  # among which
_N_COMPONENTS = 256  # as EmbeddingClassifier keeps them
_MORE = 40  # further labels, whose gain is estimated
# The error falls as a power of the number of labels, about as fast as this: behind
# published encoders, between 40 and 400 labels
_POWER, _POWER_SPREAD = 0.25, 0.1
_LEAST_FOR_GAIN = 16  # labels
_GUESS_ROWS = 10  # as in EmbeddingClassifier: what an estimate is worth beside labels


def expected_gain(sizes, accuracies, more):
    """Return the gain in accuracy to expect from more labels, from the course so far.

    The error is modeled as ``c * n ** -b``. Each accuracy is weighted by its
    information about the logarithm of the error; the prior of b is normal around 0.25.

    Parameters
    ----------
    sizes : array-like of int of shape (m,)
        Numbers of labels, ascending; the last is the current one.
    accuracies : array-like of shape (m,)
    more : int

    Returns
    -------
    gain : float
        At least 0, and below the current error.
    """
    n = np.asarray(sizes, dtype=float)
    errors = 1 - np.clip(accuracies, 0.005, 0.995)
    weights = errors * (n + _GUESS_ROWS) / (1 - errors)  # of log(errors), 1 / variance
    x, y = np.log(n), np.log(errors)
    x, y = x - np.average(x, weights=weights), y - np.average(y, weights=weights)
    precision = _POWER_SPREAD**-2
    power = (precision * _POWER - weights @ (x * y)) / (precision + weights @ (x * x))
    power = max(0.02, power)
    return float(errors[-1] * (1 - ((n[-1] + more) / n[-1]) ** -power))


def learn(Z, labels, seed=0, answered=(), n_asked=_N_ASKED):
    """Return the `Insight` of some labels.

    Parameters
    ----------
    Z : ndarray of shape (n_rows, D)
        Vectors.
    labels : dict
        {row: label}, in the order in which they were given.
    seed : int
    answered : collection of int
        Rows not to query, besides labeled rows.
    n_asked : int
        Maximum number of rows to query.
    """
    y = _as_y(labels, len(Z))
    n_wanted = 0
    if n_asked:
        n_left_out = len(set(answered) - set(labels))
        n_wanted = min(n_asked + n_left_out, len(Z) - len(labels))
    settings = {"n_candidates": max(_N_CANDIDATES, n_wanted), "random_state": seed}
    classifier = None
    if len(set(labels.values())) > 1:
        classifier = _fit(Z, y, seed)
    rows = []
    if n_wanted:
        if classifier is None:
            selector = MaxHerdingSelector(n_wanted, **settings)
        else:
            selector = UHerdingSelector(
                n_wanted,
                classifier=FrozenEstimator(classifier),
                temperature=1.0,
                **settings,
            )
        rows = selector.fit(Z, y).sample_indices_.tolist()
    left_out = set(answered)
    rows = [row for row in rows if row not in left_out][:n_asked]
    if classifier is None:
        return Insight(len(labels), rows)
    accuracy = float(classifier.estimated_accuracy_)
    p = classifier.predict_proba(Z)
    more = min(_MORE, len(Z) - len(labels))
    return Insight(
        len(labels),
        rows,
        accuracy,
        tuple(map(float, classifier.estimated_accuracy_interval_)),
        _gain(Z, labels, seed, accuracy, more),
        more,
        classifier.classes_.tolist(),
        p.argmax(1),
        p.max(1),
    )


def _gain(Z, labels, seed, accuracy, more):
    """Return the gain from more labels, estimated from the gain from half of them."""
    if len(labels) < _LEAST_FOR_GAIN or not more:
        return None
    half = dict(list(labels.items())[: len(labels) // 2])
    sizes, found = [len(labels)], [accuracy]
    if len(set(half.values())) == len(set(labels.values())):
        before = _fit(Z, _as_y(half, len(Z)), seed)
        sizes.insert(0, len(half))
        found.insert(0, float(before.estimated_accuracy_))
    return expected_gain(sizes, found, more)


def _as_y(labels, n_rows):
    y = np.full(n_rows, -1, dtype=object)
    for row, label in labels.items():
        y[row] = label
    return y


def _fit(Z, y, seed):
    return EmbeddingClassifier(random_state=seed).fit(Z, y)


class Learner:
    """Learn in the background, again after every few answers.

    Parameters
    ----------
    Z : ndarray of shape (n_rows, D)
        Vectors of the rows.
    batch : int
        Number of answers after which it learns again.
    seed : int
    n_asked : int
        Maximum number of rows to query.
    """

    def __init__(self, Z, batch=10, seed=0, n_asked=_N_ASKED):
        Z = np.asarray(Z, dtype=np.float32)
        if Z.shape[1] > _N_COMPONENTS < len(Z):  # once, and not in every fit
            Z = PCA(_N_COMPONENTS, random_state=seed).fit_transform(Z)
        self.Z, self.batch, self.seed, self.n_asked = Z, batch, seed, n_asked
        self._units = unit_rows(Z - Z.mean(axis=0))
        self._session = self._thread = None
        self._known = None  # labels that were learned from
        self._wake, self._stopped = threading.Event(), False
        self.error = None

    def near(self, row, n=8):
        """Return the n rows most similar to one, the nearest first."""
        cosines = self._units @ self._units[row]
        cosines[row] = -np.inf
        n = min(n, len(cosines) - 1)
        best = np.argpartition(-cosines, n - 1)[:n] if n else []
        return sorted(map(int, best), key=lambda other: -cosines[other])

    def start(self, session, known=None):
        """Learn from the answers of a session, from now on.

        Parameters
        ----------
        session : Session
        known : dict or None
            Labels that were already learned from: the first training is skipped.
        """
        self._session, self._known = session, known
        session.watch(self._look)
        if known is None:
            self._wake.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def now(self):
        """Learn from the current answers, however few are new."""
        self._wake.set()

    def stop(self):
        """Stop learning, and discard the current training."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(60)  # a process must not end in the middle of it

    def _look(self):
        """Wake the thread if there are enough new answers, or nothing else to do."""
        labels = self._session.labels
        known = self._known or {}
        rows = {*labels, *known}
        n_new = sum(labels.get(row) != known.get(row) for row in rows)
        if n_new >= self.batch or (n_new and not self._session.n_open()):
            self._wake.set()

    def _run(self):
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopped:
                return
            labels, answered = self._session.labels, list(self._session.answers)
            self._known = labels
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = learn(self.Z, labels, self.seed, answered, self.n_asked)
            except Exception as error:  # the person can go on without
                self.error = error
                self._session.not_learned(error)
                continue
            if not self._stopped:
                self._session.learned(found)
                self._look()  # what was answered meanwhile
