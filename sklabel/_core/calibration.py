"""Calibrated confidence: one temperature, fitted on held-out labeled rows."""

from numbers import Integral

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import beta

# fewer say too little about a temperature
FEWEST_ROWS = 10
# what few labels cannot exclude
_DOUBT = 1e-3


def hold_out(codes, size, seed):
    """Return codes with some labels withheld, and the rows that lost theirs.

    Parameters
    ----------
    codes : ndarray of int of shape (n_samples,)
        Class of each row, -1 for an unlabeled one.
    size : int or float
        Labeled rows to withhold, or their share.
    seed : int
        Of the draw, which takes about the same share of every class.

    Returns
    -------
    codes : ndarray of int of shape (n_samples,)
    rows : ndarray of int

    Raises
    ------
    ValueError
        If too few would be withheld, or a class would keep no labeled row.
    """
    rng = np.random.default_rng(seed)
    labeled = rng.permutation(np.flatnonzero(codes >= 0))
    _, kept = np.unique(codes[labeled], return_index=True)  # one row of each class
    spare = np.delete(labeled, kept)
    n_held = size if isinstance(size, Integral) else round(size * len(labeled))
    fewest = max(FEWEST_ROWS, len(kept))
    if not fewest <= n_held <= len(spare):
        raise ValueError(
            f"calibration_size={size} would withhold {n_held} of {len(labeled)} "
            f"labeled rows. At least {fewest} are needed and at most {len(spare)} can "
            "be withheld: change calibration_size, label more rows, or use "
            "calibration_size=None."
        )
    # evenly over the rows in order of their classes
    spare = spare[np.argsort(codes[spare], kind="stable")]
    places = (np.arange(n_held) + rng.random()) * len(spare) / n_held
    rows = np.sort(spare[places.astype(int)])
    codes = codes.copy()
    codes[rows] = -1
    return codes, rows


def fit_temperature(p, codes, weights=None):
    """Return the temperature that makes probabilities most likely (Guo et al., 2017).

    Unlike in the paper, the logarithm of the temperature has a normal prior around 0,
    of variance 1/3. Without it, if all of ten or thirty rows are right, ever sharper
    probabilities are more likely, up to 0 and 1. The more rows, the less the prior
    counts.

    Parameters
    ----------
    p : ndarray of shape (n, K)
        Probabilities.
    codes : ndarray of int of shape (n,)
        True classes.
    weights : ndarray of shape (n,) or None
        Weight of each row.

    Returns
    -------
    temperature : float
        Above 1 if the probabilities were overconfident. Between 0.01 and 100.
    """
    log_p = _log(p)

    def negative_log_likelihood(log_temperature):
        logits = log_p * np.exp(-log_temperature)
        highest = logits.max(1)
        total = highest + np.log(np.exp(logits - highest[:, None]).sum(1))
        losses = total - logits[np.arange(len(codes)), codes]
        penalty = 3 * log_temperature**2 / (2 * len(codes))  # the prior
        return np.average(losses, weights=weights) + penalty

    limit = np.log(100)
    return float(
        np.exp(
            minimize_scalar(
                negative_log_likelihood, bounds=(-limit, limit), method="bounded"
            ).x
        )
    )


def with_doubt(p):
    """Return probabilities (n, K), mixed with a thousandth uniform: none is 1."""
    return (1 - _DOUBT) * p + p.dtype.type(_DOUBT / p.shape[1])


def rescale(p, temperature):
    """Return probabilities (n, K) whose logits are divided by a temperature."""
    if temperature == 1:
        return p
    logits = _log(p) / temperature
    scaled = np.exp(logits - logits.max(1, keepdims=True))
    return (scaled / scaled.sum(1, keepdims=True)).astype(p.dtype)


def _log(p):
    # a class of probability 0 is one too small for single precision
    return np.log(np.maximum(np.asarray(p, np.float64), 1e-38))


def match_temperature(p, accuracy, fewest=1e-3):
    """Return the temperature that makes the mean confidence equal an accuracy.

    For few labels: cross-validated accuracy needs no withheld labels, and a mean over
    all unlabeled rows is more stable than a likelihood of few.

    Parameters
    ----------
    p : ndarray of shape (n, K)
        Probabilities of rows without a label.
    accuracy : float
        Estimate of the accuracy on these rows.
    fewest : float, default=1e-3
        Minimum distance of the mean from 1, and from the chance level 1/K.

    Returns
    -------
    temperature : float
        Above 1 if the probabilities were overconfident. Between 0.01 and 100.
    """
    if not len(p):
        return 1.0
    log_p = _log(p)
    n_classes = p.shape[1]
    aim = np.clip(accuracy, 1 / n_classes + fewest, 1 - fewest)

    def excess(log_temperature):
        logits = log_p * np.exp(-log_temperature)
        sums = np.exp(logits - logits.max(1, keepdims=True)).sum(1)
        return float(np.mean(1 / sums)) - aim  # falls with the temperature

    limit = np.log(100)
    if excess(limit) >= 0:
        return 100.0
    if excess(-limit) <= 0:
        return 0.01
    return float(np.exp(brentq(excess, -limit, limit, xtol=1e-4)))


def beta_interval(hits, misses, coverage=0.95):
    """Return the central interval of a Beta distribution of an accuracy."""
    tail = (1 - coverage) / 2
    return beta.ppf([tail, 1 - tail], hits, misses)
