"""The role of classifiers: from partly labeled y to classes and probabilities."""

import functools
from collections import namedtuple
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.base import (
    ClassifierMixin,
)
from sklearn.preprocessing import normalize

from ..calibration import (
    FEWEST_ROWS,
    beta_interval,
    fit_temperature,
    hold_out,
    match_temperature,
    rescale,
    with_doubt,
)
from ..callbacks import fitting
from ..few_shot import left_out_probe
from ..health import CollapseWarning, watch_accuracy
from ..labels import (
    check_labels,
    decode_labels,
    encode_labels,
    most_probable,
    read_labels,
)
from ..learner import unfrozen
from ..parameters import KW_ONLY, Count, OpenUnitInterval, Parameters
from ..propagation import LabeledRows
from ..samplers import Mixed
from ..samples import Samples
from ..warn import warn

# of the probe that tells the accuracy, for vectors of length 1
_PROBE_C = 100.0


class LabeledScoreMixin:
    """Score on the rows that have a label."""

    def score(self, X, y, sample_weight=None):
        """Return the accuracy on the labeled rows.

        Parameters
        ----------
        X : array-like
            Input of ``predict``.
        y : array-like of shape (n_samples,)
            Classes; rows that are unlabeled (-1, None, NaN or blank) do not count.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row.

        Returns
        -------
        accuracy : float
        """
        _, labeled, truth = read_labels(y, classes=vars(self).get("classes_"))
        if not labeled.any():
            raise ValueError(
                "y has no labeled row to score on: pass the true labels of some rows."
            )
        weights = _check_sample_weight(sample_weight, labeled)[labeled]
        if not weights.any():
            raise ValueError(
                "sample_weight is 0 for every labeled row: give some rows a positive "
                "weight."
            )
        found = np.asarray(self.predict(X))
        if len(found) != len(labeled):
            raise ValueError(
                "Found input variables with inconsistent numbers of samples: "
                f"X has {len(found)} rows, y has {len(labeled)}."
            )
        hits = found[labeled] == truth
        return float(np.average(hits, weights=weights))


# labeled rows that are withheld, with their classes and their sample_weight
Withheld = namedtuple("Withheld", "rows codes weights")


@dataclass
class PartlyLabeled:
    """Rows that a classifier trains on, with the labels that it may use.

    Parameters
    ----------
    rows : Samples
        Without labeled rows of weight 0.
    codes : ndarray of int of shape (n_samples,)
        Class of each row; -1: unlabeled, or its label is withheld.
    weights : ndarray of shape (n_samples,) or None
        How often each labeled row is drawn; None: all equally often.
    withheld : Withheld
        Rows whose labels are withheld, to calibrate on.
    """

    rows: Samples
    codes: np.ndarray
    weights: np.ndarray | None
    withheld: Withheld

    def mixed(self, ratio, include_labeled=True):
        """Return the sampler of batches of labeled and unlabeled rows."""
        return Mixed(self.rows, self.codes, ratio, include_labeled, self.weights)

    @property
    def watch(self):
        """The monitor of the accuracy on withheld rows; None: there are none."""
        if not len(self.withheld.rows):
            return None
        rows, codes = self.withheld.rows, self.withheld.codes
        return functools.partial(watch_accuracy, rows=rows, codes=codes)


class ClassificationRole(LabeledScoreMixin, ClassifierMixin, Parameters, abstract=True):
    """Encode partly labeled y, and predict classes from the module's probabilities.

    Parameters
    ----------
    class_weight : dict, "balanced" or None
        How often labeled rows of a class are drawn: {class: weight}; "balanced": every
        class equally often; None: every row equally often.
    calibration_size : int, float, "auto" or None
        Number or share of the labeled rows that are withheld from training to fit the
        temperature of :meth:`predict_proba`; their images count as unlabeled. "auto": a
        fifth, if classes have ten labels on average; with fewer, no row is withheld,
        and the mean confidence in unlabeled rows is set to the cross-validated accuracy
        of a linear probe on the vectors of the embedder. None: probabilities as
        trained, which are usually overconfident.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Classes, sorted.
    transduction_ : ndarray of shape (n_samples,)
        A class for every row of X: the given label, else the predicted one.
    calibration_temperature_ : float
        Divides the logits of :meth:`predict_proba`; 1 without ``calibration_size``.
    estimated_accuracy_ : float
        Accuracy on withheld rows or in cross-validation, with ``calibration_size``.
    estimated_accuracy_interval_ : ndarray of shape (2,)
        95 % interval of the accuracy; it covers random error only.
    encoder_ : nn.Module
        Trained encoder.
    """

    _: KW_ONLY
    class_weight: Literal["balanced"] | dict | None = None
    calibration_size: Literal["auto"] | Count | OpenUnitInterval | None = None

    @fitting
    def fit(self, X, y, sample_weight=None):
        """Train on labeled and unlabeled rows.

        Parameters
        ----------
        X : array-like
            Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``; paths of image
            files; or vectors ``(n, D)``.
        y : array-like of shape (n_samples,)
            Classes; -1, None, NaN or a blank text for unlabeled rows.
        sample_weight : array-like of shape (n_samples,), default=None
            How often a labeled row is drawn relative to the others, multiplied by the
            weight of its class. Equal weights have no effect. A labeled row of weight 0
            is left out of the training. Weights of unlabeled rows are ignored.

        Returns
        -------
        self : estimator
        """
        samples = self._check_X(X, reset=True)
        codes = self._encode_y(y, samples)
        with self._seeded() as seed:
            labeled = self._split_calibration(codes, samples, sample_weight, seed)
            trained = self._train(X, labeled, seed)
            self.net_.module_.drop_training_state()
            self._look_at_probe(X, labeled, seed)
        p = self._forward_trained(samples, trained)
        self._finish(p, codes, labeled.withheld, y)
        self._check_health(trained)
        return self

    def _train(self, X, labeled, seed):
        """Train the method's module; return what `_check_health` looks at."""
        raise NotImplementedError

    def _forward_trained(self, samples, trained):
        """Return the output for each row of ``fit``; NaN where it cannot be read."""
        return self._forward_rows(samples)

    def _check_health(self, trained):
        """Warn if the training shows that something is wrong."""

    def _encode_y(self, y, samples):
        """Set ``classes_`` and return class codes, -1 for an unlabeled row."""
        classes, codes = encode_labels(check_labels(y, n_samples=len(samples)))
        if self._continued is not None and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"warm_start=True continues on the classes {self.classes_}, but y has "
                f"{classes}: use warm_start=False."
            )
        self.classes_ = classes
        self.calibration_temperature_ = 1.0  # until the end: callbacks may predict
        return codes

    def _split_calibration(self, codes, samples, sample_weight, seed):
        """Divide the labeled rows into those to train on and those to calibrate on.

        Only readable rows with a positive weight are used for either.

        Parameters
        ----------
        codes : ndarray of int of shape (n_samples,)
            -1 for an unlabeled row.
        samples : Samples
        sample_weight : array-like of shape (n_samples,) or None
        seed : int

        Returns
        -------
        labeled : PartlyLabeled
        """
        self._forget("estimated_accuracy_", "estimated_accuracy_interval_")
        self._check_class_weight()
        own = _check_sample_weight(sample_weight, codes >= 0)
        given = own * self._class_weights()[codes]
        weightless = (codes >= 0) & (given == 0)
        rows = samples.without(weightless)
        if rows.n_trained < 2:  # BatchNorm cannot train on one
            rows = samples
        usable = np.where(samples.bad | weightless, -1, codes)
        self._check_usable(usable, codes)
        trained, held = codes, np.empty(0, int)
        if self._continued is None or not hasattr(self, "_held_seed"):
            self._held_seed = seed
        size = self._size_to_withhold(usable)
        if size is not None:
            # what goes on with the same y withholds the same rows: it knows the others
            usable, held = hold_out(usable, size, self._held_seed)
            trained = codes.copy()
            trained[held] = -1
        held = Withheld(held, codes[held], own[held])
        known = usable >= 0
        weights = np.where(known, given, 0.0)
        if self.class_weight == "balanced":
            weights[known] /= np.bincount(usable[known])[usable[known]]
        if not weightless.any() and _are_equal(weights[known]):
            weights = None  # the draws of a training without weights
        return PartlyLabeled(rows, trained, weights, held)

    _withholds = True  # whether "auto" may withhold labels

    def _size_to_withhold(self, usable):
        """Return ``calibration_size``, with "auto" resolved; None: withhold nothing."""
        if self.calibration_size != "auto":
            return self.calibration_size
        n_labeled, n_classes = (usable >= 0).sum(), len(self.classes_)
        if not self._withholds:
            return None
        size = n_labeled // 5
        if n_labeled >= 10 * n_classes and size >= max(FEWEST_ROWS, n_classes):
            return int(size)
        self._check_embedder()
        return None

    def _check_embedder(self):
        """Raise an error if nothing provides vectors before the training."""
        if "embedder" not in self.get_params(deep=False) and not hasattr(
            unfrozen(getattr(self, "backbone", None)), "transform"
        ):
            raise ValueError(
                'calibration_size="auto" with fewer than ten labels a class (or fifty '
                "in all) needs the vectors of an embedder: give a fitted one as "
                "backbone=, label more rows, or use calibration_size=None."
            )

    def _look_at_probe(self, X, labeled, seed):
        """Set the expected accuracy if "auto" withholds nothing."""
        used = len(labeled.withheld.rows)
        if self.calibration_size != "auto" or used or not self._withholds:
            return
        embedder = getattr(self, "embedder_", None) or unfrozen(self.backbone)
        rows = labeled.rows.good
        z = np.asarray(embedder.transform(labeled.rows.readable(X)), np.float64)
        z = z.reshape(len(rows), -1)
        z = normalize(z - z.mean(0))
        codes = labeled.codes[rows]
        known = np.flatnonzero(codes >= 0)
        own = codes[known]
        if not len(own):  # as of classes by their names
            return
        given = LabeledRows(known, own, np.ones(len(own)), len(self.classes_), seed)
        _, _, log_p = left_out_probe(z, given, _PROBE_C)
        hits = log_p.argmax(1) == own[given.left_out]
        hits = hits[given.useful]
        self._set_accuracy(hits.sum() + 1, (~hits).sum() + 1)

    def _set_accuracy(self, right, wrong):
        """Set the expected accuracy, from the numbers of right and wrong rows."""
        self.estimated_accuracy_ = float(right / (right + wrong))
        self.estimated_accuracy_interval_ = beta_interval(right, wrong)

    def _check_class_weight(self):
        if not isinstance(self.class_weight, dict):
            return
        classes = self.classes_.tolist()
        unknown = [name for name in self.class_weight if name not in classes]
        if unknown:
            raise ValueError(
                f"class_weight names {unknown}, which are not classes of y: "
                f"{self.classes_}."
            )
        weights = np.array([*self.class_weight.values()], dtype=float)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(
                f"class_weight={self.class_weight} must be finite and not negative."
            )

    def _class_weights(self):
        """Return the weight that was given to each class."""
        given = self.class_weight if isinstance(self.class_weight, dict) else {}
        given = [given.get(name, 1.0) for name in self.classes_.tolist()]
        return _scaled(np.array(given, dtype=np.float64))

    def _check_usable(self, usable, codes):
        """Warn if no labeled row of a class can be used; raise if none at all can."""
        lost = np.setdiff1d(codes[codes >= 0], usable)
        if not len(lost):
            return
        if (usable < 0).all():
            raise ValueError(
                f"None of the {(codes >= 0).sum()} labeled rows can be used: their "
                "image files cannot be read, or their sample_weight or class_weight is "
                "zero. Label other rows."
            )
        names = ", ".join(map(str, self.classes_[lost].tolist()))
        warn(
            f"No labeled row of class {names} can be used: their image files cannot "
            "be read, or their sample_weight or class_weight is zero. Label other "
            "rows, or remove these labels.",
            UserWarning,
        )

    def _finish(self, p, codes, held, y):
        """Calibrate on the rows withheld, and give every row of X a class.

        A row gets the given class, else the most probable one of p (n, K). An
        unreadable row keeps the mark of unlabeled rows in y.
        """
        if len(held.rows):
            temperature = fit_temperature(p[held.rows], held.codes, held.weights)
            self.calibration_temperature_ = temperature
            hits = p[held.rows].argmax(1) == held.codes
            self._set_accuracy(hits.sum() + 1, (~hits).sum() + 1)
            self._check_held(len(held.rows))
        elif self.calibration_size == "auto" and (codes >= 0).any():
            asked = p[(codes < 0) & ~np.isnan(p[:, 0])]
            temperature = match_temperature(asked, self.estimated_accuracy_)
            self.calibration_temperature_ = temperature
        codes = np.where(codes >= 0, codes, most_probable(p))
        self.transduction_ = decode_labels(codes, self.classes_, like=y)

    def _check_held(self, n_rows):
        """Warn if the accuracy on withheld rows has fallen late."""
        history = getattr(getattr(self, "net_", None), "history", [])
        course = [
            epoch["held_accuracy"]
            for epoch in history
            # every stage trains a network of its own
            if "held_accuracy" in epoch  # Ctrl-C may have come before
            and all(epoch.get(k) == history[-1].get(k) for k in ("stage", "round"))
        ]
        if not course:
            return
        best, last = max(course), course[-1]
        mean = (best + last) / 2
        # the best of many epochs is high by chance, too
        if best - last > 3 * np.sqrt(2 * mean * (1 - mean) / n_rows):
            warn(
                f"The accuracy on the {n_rows} withheld rows fell from {best:.0%} to "
                f"{last:.0%} at the end of the training: train for fewer epochs, "
                "lower lr, or label more rows.",
                CollapseWarning,
            )

    def _warn_hardly_used(self, share, span, rule=None, way="lower the threshold"):
        """Warn that hardly any row had a pseudo-label in the last ``span``.

        ``rule``: what rows must do to have one; ``way``: how more of them would.
        """
        rule = rule or f"reached threshold={self.threshold}"
        warn(
            f"{share:.1%} of the unlabeled rows {rule} in the last {span}, so "
            f"unlabeled images hardly contribute. Train longer, {way}, or start from a "
            "fitted embedder (backbone=).",
            CollapseWarning,
        )

    def _check_shares(self, shares, prior, rows, n_rows, *remedies, **settings):
        """Warn if one class has nearly all of some rows, or another none of them.

        Parameters
        ----------
        shares, prior : ndarray of shape (n_classes,)
            Of these rows, and of the labeled ones whatever their weights.
        rows : str
            Name of these rows.
        n_rows : int
            Their number; among fewer than ten, a class may be missing by chance.
        *remedies : str
            What to try.
        **settings
            Parameters that may help, unless they are set like that.
        """
        most, least = shares.argmax(), shares.argmin()
        expected = n_rows * prior
        unset = [f"{k}={v!r}" for k, v in settings.items() if getattr(self, k) != v]
        ways = " or ".join([*unset, *remedies, "more labels of rare classes"])
        if (
            shares[most] > (1 + prior[most]) / 2
            and expected.sum() - expected[most] >= 10
        ):
            warn(
                f"{shares[most]:.0%} of the {rows} are of class {self.classes_[most]}, "
                f"but {prior[most]:.0%} of the labels. Unless your data really have "
                f"these shares, try {ways}.",
                CollapseWarning,
            )
        elif shares[least] < 1e-4 and expected[least] >= 10:
            warn(
                f"None of the {rows} is of class {self.classes_[least]}: try {ways}.",
                CollapseWarning,
            )

    def predict_proba(self, X):
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes), float32
            Columns in the order of ``classes_``.
        """
        ready = self._ready(X)
        p = rescale(ready._predict_rows(X), ready.calibration_temperature_)
        return with_doubt(p) if ready.calibration_size == "auto" else p

    def predict(self, X):
        """Return the class of each sample.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            -1 for a file that cannot be read, with ``on_error="skip"``.
        """
        ready = self._ready(X)
        return decode_labels(most_probable(ready.predict_proba(X)), ready.classes_)

    def _ready(self, X):
        """Return the classifier that predicts: this one, or one that needs no fit."""
        return self


def _check_sample_weight(sample_weight, labeled):
    """Return the weight of each row (None: 1), checked for labeled rows."""
    if sample_weight is None:
        return np.ones(len(labeled))
    given = np.asarray(sample_weight, dtype=np.float64)
    if given.ndim == 0:
        given = np.full(len(labeled), given)
    if given.shape != labeled.shape:
        raise ValueError(
            f"sample_weight.shape == {given.shape}, expected {labeled.shape}!"
        )
    wrong = np.flatnonzero(labeled & ~(np.isfinite(given) & (given >= 0)))
    if len(wrong):
        raise ValueError(
            f"sample_weight must be finite and not negative, but row {wrong[0]} has "
            f"{given[wrong[0]]}. Give 0 to a row that should not count."
        )
    given = np.where(labeled, given, 0.0)
    if _are_equal(given[labeled]):
        return np.ones(len(labeled))
    return _scaled(given)


def _are_equal(weights):
    """Whether weights are equal up to a factor."""
    low, high = weights.min(initial=np.inf), weights.max(initial=0.0)
    return 0 < high and high - low <= 1e-12 * high


def _scaled(weights):
    """Return weights; extreme ones are scaled by a power of 2 to avoid overflow."""
    exponent = np.frexp(weights.max(initial=0.0))[1]
    return np.ldexp(weights, -exponent) if abs(exponent) > 400 else weights
