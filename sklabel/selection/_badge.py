"""BADGE: batch active learning by diverse gradient embeddings (Ash et al., 2020)."""

import numpy as np
from sklearn.utils import check_random_state

from .._core.nested import hidden_features
from .._core.parameters import SampleCount
from .._core.roles.selection import ClassifierSelectionRole

# Values gathered at once where distances are computed from differences.
_BLOCK_VALUES = 2**22


def gradient_residuals(probabilities):
    """Return the gradient of the cross-entropy with respect to the logits.

    The most probable class (the first in a tie) is used as the unknown label: ``p -
    onehot(argmax p)``.

    Parameters
    ----------
    probabilities : ndarray of shape (n, C)
        Rows in [0, 1] that add up to 1.

    Returns
    -------
    residuals : ndarray of shape (n, C), float64
        Rows are zero if a probability is 1.

    References
    ----------
    .. [1] J. Ash et al., "Deep batch active learning by diverse, uncertain gradient
       lower bounds", ICLR 2020, equation 1.
    """
    residuals = np.array(probabilities, dtype=np.float64)
    rows = np.arange(len(residuals))
    residuals[rows, residuals.argmax(axis=1)] -= 1
    return residuals


def gradient_norms(residuals, features):
    """Return the length of each gradient embedding, ``|residual| * |feature|``.

    The gradient embedding of a row is the outer product of the two: the gradient of
    its loss with respect to the weights of the last layer.

    Parameters
    ----------
    residuals : ndarray of shape (n, C)
        See `gradient_residuals`.
    features : ndarray of shape (n, D)
        Input of the last layer.

    Returns
    -------
    norms : ndarray of shape (n,), float64
    """
    return np.sqrt(_squares(residuals)) * np.sqrt(_squares(features))


def gradient_distances(residuals, features, lengths, row):
    """Return squared distances of all gradient embeddings to that of one row.

    Never forms them: with residuals r and features h,

    ``|g_i - g_j|^2 = |r_i|^2 |h_i|^2 + |r_j|^2 |h_j|^2 - 2 (r_i . r_j) (h_i . h_j)``.

    For pairs so close that the subtraction would lose most digits, differences are
    used, so the distance of equal rows is exactly 0.

    Parameters
    ----------
    residuals : ndarray of shape (n, C)
    features : ndarray of shape (n, D)
        float32 or float64; their products are computed in this precision.
    lengths : ndarray of shape (n,)
        Squares of `gradient_norms`.
    row : int
        Number of the row.

    Returns
    -------
    squared : ndarray of shape (n,), float64
        At least 0.
    """
    r, h = residuals[row], features[row]
    sums = lengths + lengths[row]
    squared = sums - 2 * (residuals @ r) * (features @ h).astype(np.float64)
    few_digits = 1e-3 if features.dtype == np.float32 else 1e-9
    close = np.flatnonzero(squared < few_digits * sums)
    h = h.astype(np.float64)
    step = max(1, _BLOCK_VALUES // features.shape[1])
    for start in range(0, len(close), step):
        rows = close[start : start + step]
        other = residuals[rows]
        change, shift = r - other, h - features[rows]
        # g_row - g_i = change x h + other x shift
        squared[rows] = (
            _squares(change) * (h @ h)
            + _squares(other) * _squares(shift)
            + 2 * np.einsum("ij,ij->i", other, change) * (shift @ h)
        )
    return np.maximum(squared, 0, out=squared)


def choose_plus_plus(residuals, features, n_samples, random_state=None):
    """Draw rows by k-means++ on their gradient embeddings.

    The first row has the longest embedding; each further row is drawn with probability
    proportional to the squared distance to the nearest row drawn before.

    Parameters
    ----------
    residuals : ndarray of shape (n, C)
        See `gradient_residuals`.
    features : ndarray of shape (n, D)
        Input of the last layer.
    n_samples : int
        Number of rows to draw, 1 to n.
    random_state : int, RandomState instance or None, default=None
        Seed of the draws.

    Returns
    -------
    chosen : ndarray of shape (n_samples,)
        Different rows in the order of the draw. If only copies of drawn rows are left,
        they follow in row order.

    Notes
    -----
    Time: n * (C + D) per drawn row. Memory: n * C plus the features.

    References
    ----------
    .. [1] J. Ash et al., "Deep batch active learning by diverse, uncertain gradient
       lower bounds", ICLR 2020, algorithm 1; its released code starts with the longest
       embedding, the paper with a row at random.
    """
    rng = check_random_state(random_state)
    peak = max(features.max(), -features.min())
    if peak > 0 and not 1e-12 < peak < 1e12:
        features = features / peak  # float32 squares would overflow or vanish
    norms = gradient_norms(residuals, features)
    lengths = norms**2
    chosen = [int(norms.argmax())]
    nearest = np.full(len(norms), np.inf)
    while len(chosen) < n_samples:
        squared = gradient_distances(residuals, features, lengths, chosen[-1])
        np.minimum(nearest, squared, out=nearest)
        nearest[chosen[-1]] = 0
        total = nearest.cumsum()
        if total[-1] <= 0:
            left = np.setdiff1d(np.arange(len(norms)), chosen)
            chosen.extend(left[: n_samples - len(chosen)].tolist())
            break
        draw = rng.random_sample() * total[-1]
        row = np.searchsorted(total, draw, side="right")
        if row == len(total):  # the product was rounded up to the total
            row = np.flatnonzero(nearest)[-1]
        chosen.append(int(row))
    return np.array(chosen, dtype=np.int64)


def _squares(rows):
    return np.einsum("ij,ij->i", rows, rows, dtype=np.float64)


class BADGESelector(ClassifierSelectionRole):
    """Select rows that are uncertain for a classifier and differ from one another.

    The gradient of a row's loss in the last layer, with its most probable class as the
    label, is long if the classifier is uncertain, and its direction depends on class
    and features. Rows are drawn by k-means++ on these gradients, which prefers long
    gradients that are far apart. Read more in the :ref:`User Guide <badge>`.

    Parameters
    ----------
    random_state : int, RandomState instance or None
        Seed of the draws, and of the classifier if it has no ``random_state`` of its
        own.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in labeling order.
    scores_ : ndarray of shape (n_rows,)
        Length of the gradient of each row, 0 where a probability is 1; ``-inf`` for
        labeled rows and for files that cannot be read. The choice also depends on the
        distances between gradients.
    classifier_ : estimator
        The fitted classifier. Absent if every row is labeled.

    Raises
    ------
    ValueError
        If more rows are requested than are unlabeled, or if the classifier must be
        fitted and y has no labels.

    See Also
    --------
    MMASelector : Other measures of uncertainty.
    USLSelector : Needs neither labels nor classifier.

    Notes
    -----
    Features are the output of ``encoder_`` for sklabel's classifiers, and X itself
    (after the steps of a pipeline) for others: center and scale it first. Head layers
    between encoder and last layer (SimCLRv2 without distillation) are skipped.

    The first row has the longest gradient, as in the released code; the paper draws it
    at random. If only copies of chosen rows are left, they are taken in row order.

    Gradients have n_classes * n_features numbers each and are never computed
    explicitly: their distances follow from products of probabilities and of features.
    Each chosen row takes time n_rows * (n_classes + n_features).

    References
    ----------
    .. [1] J. Ash, C. Zhang, A. Krishnamurthy, J. Langford, A. Agarwal, "Deep batch
       active learning by diverse, uncertain gradient lower bounds", ICLR 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import BADGESelector
    >>> X, target = load_digits(return_X_y=True)
    >>> y = np.where(np.arange(len(X)) < 50, target, -1)
    >>> rows = BADGESelector(20, random_state=0).fit_select(X / 16, y)
    >>> bool(rows.min() >= 50)
    True
    """

    n_samples: SampleCount = None

    def _ask(self, pool, random):
        seed = random.randint(2**31 - 1)  # first: whatever seeds the classifier takes
        self.classifier_ = self._fit_classifier(pool.X, pool.y, random)
        probabilities = np.asarray(self.classifier_.predict_proba(pool.X))
        rows = pool.candidates(np.isnan(probabilities).any(axis=1))
        residuals = gradient_residuals(probabilities[rows])
        features = hidden_features(self.classifier_, pool.X)[rows]
        _, scores = pool.nothing()
        scores[rows] = gradient_norms(residuals, features)
        chosen = choose_plus_plus(residuals, features, pool.n_samples, seed)
        return rows[chosen], scores
