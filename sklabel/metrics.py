"""Scores: clusterings, k-nearest neighbors, selections, and signs of collapse."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from ._core.checks import check_number
from ._core.labels import encode_labels


def hungarian_match(labels_true, labels_pred):
    """Match clusters to classes one to one so that most rows agree.

    Parameters
    ----------
    labels_true : array-like of shape (n_samples,)
        Classes. Unlabeled rows (-1, ``None``, NaN) are left out.
    labels_pred : array-like of shape (n_samples,)
        Clusters. -1 means no cluster: the row agrees with no class.

    Returns
    -------
    clusters : ndarray of shape (n_matched,)
        Matched clusters, sorted; ``n_matched`` is the smaller of the number of
        clusters and the number of classes.
    classes : ndarray of shape (n_matched,)
        The class that each of these clusters is matched to.

    Raises
    ------
    ValueError
        If the two differ in length or no row is labeled.

    Notes
    -----
    If the numbers differ, the contingency table is padded with zeros to a square. If
    several matches are equally good, one of them is returned.

    References
    ----------
    .. [1] H. W. Kuhn, "The Hungarian method for the assignment problem", 1955.

    Examples
    --------
    >>> from sklabel.metrics import hungarian_match
    >>> clusters, classes = hungarian_match(["b", "b", "a"], [0, 0, 1])
    >>> clusters.tolist(), classes.tolist()
    ([0, 1], ['b', 'a'])
    """
    classes, clusters, counts, _ = _count_table(labels_true, labels_pred)
    rows, columns = _match_table(counts)
    return clusters[columns], classes[rows]


def _count_table(labels_true, labels_pred):
    """Return classes, clusters, counts (n_classes, n_clusters), number of rows."""
    classes, y = encode_labels(labels_true)
    clusters, c = encode_labels(labels_pred)
    if len(y) != len(c):
        raise ValueError(
            "labels_true and labels_pred must have the same length, got "
            f"{len(y)} and {len(c)}."
        )
    labeled = y >= 0
    if not labeled.any():
        raise ValueError("labels_true has no labeled row, so nothing can be scored.")
    # a cluster without a labeled row stays in the table, as a column of zeros
    both = labeled & (c >= 0)
    cells = np.bincount(
        y[both] * len(clusters) + c[both], minlength=len(classes) * len(clusters)
    )
    counts = cells.reshape(len(classes), len(clusters))
    return classes, clusters, counts, int(labeled.sum())


def _match_table(counts):
    """Return matched rows and columns of a table, ordered by column."""
    # scipy matches the smaller side of a rectangle completely: the same total as a
    # square padded with zeros
    rows, columns = linear_sum_assignment(counts, maximize=True)
    order = np.argsort(columns)
    return rows[order], columns[order]


def clustering_accuracy(labels_true, labels_pred):
    """Return the share of rows that agree under the best one-to-one match.

    Parameters
    ----------
    labels_true : array-like of shape (n_samples,)
        Classes. Unlabeled rows (-1, ``None``, NaN) are left out.
    labels_pred : array-like of shape (n_samples,)
        Clusters. -1 means no cluster and counts as wrong.

    Returns
    -------
    accuracy : float
        In (0, 1]. With more clusters than classes, unmatched clusters count as wrong;
        see :func:`many_to_one_accuracy` for the alternative.

    Raises
    ------
    ValueError
        If the two differ in length or no row is labeled.

    Examples
    --------
    >>> from sklabel.metrics import clustering_accuracy
    >>> clustering_accuracy([0, 0, 1, 1], [5, 5, 3, 5])
    0.75
    """
    _, _, counts, n_labeled = _count_table(labels_true, labels_pred)
    return float(counts[_match_table(counts)].sum() / n_labeled)


def many_to_one_accuracy(labels_true, labels_pred):
    """Return the share of rows in the largest class of their cluster (purity).

    Parameters
    ----------
    labels_true : array-like of shape (n_samples,)
        Classes. Unlabeled rows (-1, ``None``, NaN) are left out.
    labels_pred : array-like of shape (n_samples,)
        Clusters. -1 means no cluster and counts as wrong.

    Returns
    -------
    accuracy : float
        In [0, 1]. It grows with the number of clusters: compare only equal numbers of
        clusters.

    Raises
    ------
    ValueError
        If the two differ in length or no row is labeled.

    Examples
    --------
    >>> from sklabel.metrics import many_to_one_accuracy
    >>> many_to_one_accuracy([0, 0, 1, 1], [0, 1, 2, 2])
    1.0
    """
    _, _, counts, n_labeled = _count_table(labels_true, labels_pred)
    return float(counts.max(axis=0, initial=0).sum() / n_labeled)


def top_k_clustering_accuracy(labels_true, probabilities, k=5):
    """Return how often the class is among the k most probable matched clusters.

    The clusters are matched to classes on their argmax, as in
    :func:`clustering_accuracy`, and renamed once.

    Parameters
    ----------
    labels_true : array-like of shape (n_samples,)
        Classes. Unlabeled rows (-1, ``None``, NaN) are left out.
    probabilities : ndarray of shape (n_samples, n_clusters)
        Probability (or any score) of each cluster.
    k : int, default=5
        Number of clusters that count, at most the number of clusters.

    Returns
    -------
    accuracy : float
        In [0, 1].

    Raises
    ------
    ValueError
        If the two differ in length, no row is labeled or ``k`` is less than 1.
    """
    probabilities = np.asarray(probabilities)
    check_number(1, whole=True, k=k)
    n_clusters = probabilities.shape[1]
    classes, y = encode_labels(labels_true)
    argmax = probabilities.argmax(axis=1)
    # the match covers clusters that are nobody's argmax too: any class left over
    counts = np.zeros((len(classes), n_clusters), dtype=np.int64)
    _, used, filled, n_labeled = _count_table(labels_true, argmax)
    counts[:, used] = filled
    rows, columns = _match_table(counts)
    class_of = np.full(n_clusters, -1)
    class_of[columns] = rows
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    hits = (class_of[top] == y[:, None]).any(axis=1) & (y >= 0)
    return float(hits.sum() / n_labeled)


def knn_scores(
    Z_train, codes, Z_test, *, k=200, temperature=0.1, n_classes=None, block_size=1024
):
    """Return each class's score from the nearest training rows.

    ``score[i, c] = sum of exp(cos(i, j) / temperature)`` over the rows ``j`` of class
    ``c`` among the ``k`` nearest.

    Parameters
    ----------
    Z_train : array-like or Tensor of shape (n_train, D)
        Embeddings with known classes; rows are L2-normalized inside.
    codes : array-like or Tensor of shape (n_train,), dtype int
        Classes as numbers 0 .. n_classes - 1; rows with -1 are left out.
    Z_test : array-like or Tensor of shape (n_test, D)
        Embeddings to score; rows are L2-normalized inside.
    k : int, default=200
        Number of neighbors, at most the number of training rows.
    temperature : float, default=0.1
        Divides the cosine, > 0. The smaller, the more the nearest rows dominate.
    n_classes : int, default=None
        Number of columns; ``None``: the largest code + 1.
    block_size : int, default=1024
        Test rows compared with the training rows at a time. Memory is ``block_size *
        n_train`` numbers.

    Returns
    -------
    scores : ndarray of shape (n_test, n_classes), dtype float64
        If ``temperature`` is below 1/700, all are scaled by one constant to keep them
        finite.

    Raises
    ------
    ValueError
        If no training row has a class, or ``k`` or ``temperature`` is not positive.

    References
    ----------
    .. [1] Z. Wu et al., "Unsupervised feature learning via non-parametric instance
       discrimination", CVPR 2018, section 3.4.
    """
    check_number(1, whole=True, k=k, block_size=block_size)
    check_number(0, above=True, temperature=temperature)
    Z_train, Z_test = _unit_rows(Z_train), _unit_rows(Z_test)
    codes = torch.as_tensor(codes, dtype=torch.long, device=Z_train.device)
    if len(codes) != len(Z_train):
        raise ValueError(
            f"Z_train has {len(Z_train)} rows, but there are {len(codes)} labels."
        )
    labeled = codes >= 0
    Z_train, codes = Z_train[labeled], codes[labeled]
    if len(codes) == 0:
        raise ValueError("No training row has a label, so there are no neighbors.")
    if n_classes is None:
        n_classes = int(codes.max()) + 1
    k = min(k, len(codes))
    shift = max(0.0, 1 / temperature - 700)  # exp overflows float64 above 709
    scores = []
    for block in Z_test.split(block_size):
        cosine, nearest = (block @ Z_train.T).topk(k, dim=1)  # (b, k)
        weights = torch.exp(cosine.double() / temperature - shift)
        scores.append(
            weights.new_zeros(len(block), n_classes).scatter_add_(
                1, codes[nearest], weights
            )
        )
    if not scores:
        return np.empty((0, n_classes))
    return torch.cat(scores).cpu().numpy()


def _rows(Z):
    Z = torch.as_tensor(np.nan if Z is None else Z)
    if Z.ndim != 2:
        raise ValueError(
            f"Embeddings must have shape (n, D), got shape {tuple(Z.shape)}."
        )
    return Z.detach()


def _unit_rows(Z):
    Z = _rows(Z)
    return F.normalize(Z if Z.dtype == torch.float64 else Z.float())


def knn_accuracy(Z_train, y_train, Z_test, y_test, k=200, temperature=0.1):
    """Return the accuracy of weighted k-nearest-neighbor classification.

    The usual monitor of embeddings learned without labels: cosine similarity, the k
    nearest training rows vote with weight exp(cosine / temperature).

    Parameters
    ----------
    Z_train : array-like or Tensor of shape (n_train, D)
        Embeddings with known classes; rows are L2-normalized inside.
    y_train : array-like of shape (n_train,)
        Their classes. Unlabeled rows (-1, ``None``, NaN) are left out.
    Z_test : array-like or Tensor of shape (n_test, D)
        Embeddings to classify; rows are L2-normalized inside.
    y_test : array-like of shape (n_test,)
        Their classes. Unlabeled rows are left out. Rows of a class that is missing in
        the training rows count as wrong.
    k : int, default=200
        Number of neighbors, at most the number of training rows.
    temperature : float, default=0.1
        Divides the cosine, > 0. The smaller, the more the nearest rows dominate.

    Returns
    -------
    accuracy : float
        In [0, 1].

    Raises
    ------
    ValueError
        If no training row or no test row has a class, or ``k`` or ``temperature`` is
        not positive.

    References
    ----------
    .. [1] Z. Wu et al., "Unsupervised feature learning via non-parametric instance
       discrimination", CVPR 2018, section 3.4.

    Examples
    --------
    >>> from sklabel.metrics import knn_accuracy
    >>> Z = [[1.0, 0.0], [0.0, 1.0]]
    >>> knn_accuracy(Z, ["x", "y"], [[0.9, 0.1], [0.2, 0.9]], ["x", "y"], k=1)
    1.0
    """
    classes, codes = encode_labels(y_train)
    classes_test, codes_test = encode_labels(y_test)
    Z_test = _rows(Z_test)
    if len(codes_test) != len(Z_test):
        raise ValueError(
            f"Z_test has {len(Z_test)} rows, but y_test has {len(codes_test)}."
        )
    labeled = codes_test >= 0
    if not labeled.any():
        raise ValueError("y_test has no labeled row, so there is nothing to score.")
    Z_test = Z_test[torch.from_numpy(labeled)]
    scores = knn_scores(
        Z_train,
        codes,
        Z_test,
        k=k,
        temperature=temperature,
        n_classes=len(classes),
    )
    predicted = classes[scores.argmax(axis=1)]
    return float(np.mean(predicted == classes_test[codes_test[labeled]]))


def class_coverage(y_selected, classes):
    """Return the share of the classes that a selection contains.

    Parameters
    ----------
    y_selected : array-like of shape (n_selected,)
        Classes of the selected rows. Unlabeled rows (-1, ``None``, NaN) are left out.
    classes : array-like of shape (n_classes,)
        All classes.

    Returns
    -------
    coverage : float
        In [0, 1]; 1: every class occurs.

    Raises
    ------
    ValueError
        If ``classes`` is empty or a selected row has a class outside it.

    Examples
    --------
    >>> from sklabel.metrics import class_coverage
    >>> class_coverage([0, 0, 3], classes=[0, 1, 2, 3])
    0.5
    """
    return float(np.mean(_class_counts(y_selected, classes) > 0))


def class_balance(y_selected, classes):
    """Return how evenly a selection is distributed over the classes.

    It is the entropy of the class counts divided by its maximum, log(n_classes).

    Parameters
    ----------
    y_selected : array-like of shape (n_selected,)
        Classes of the selected rows. Unlabeled rows (-1, ``None``, NaN) are left out.
    classes : array-like of shape (n_classes,)
        All classes.

    Returns
    -------
    balance : float
        In [0, 1]; 1: all classes equally often; 0: only one class, or nothing was
        selected.

    Raises
    ------
    ValueError
        If ``classes`` is empty or a selected row has a class outside it.

    Examples
    --------
    >>> from sklabel.metrics import class_balance
    >>> class_balance([0, 1, 0, 1], classes=[0, 1])
    1.0
    """
    counts = _class_counts(y_selected, classes)
    total = counts.sum()
    if total == 0:
        return 0.0
    if len(counts) == 1:
        return 1.0
    p = counts[counts > 0] / total
    return float(min(1.0, max(0.0, -(p * np.log(p)).sum() / np.log(len(counts)))))


def expected_calibration_error(y_true, probabilities, n_bins=15):
    """Return the mean gap between confidence and accuracy.

    Rows are binned by their largest probability; the error is the mean absolute
    difference between accuracy and mean confidence in each bin, weighted by its number
    of rows.

    Parameters
    ----------
    y_true : array-like of int of shape (n_samples,)
        Column of the true class, 0 to ``n_classes - 1``.
    probabilities : array-like of shape (n_samples, n_classes)
    n_bins : int, default=15
        Bins of equal width from 0 to 1.

    Returns
    -------
    error : float
        In [0, 1]; 0: of the rows with confidence 0.8, 80 % are correct, and so on.

    References
    ----------
    .. [1] C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural
       networks", ICML 2017; equation 3.

    Examples
    --------
    >>> from sklabel.metrics import expected_calibration_error
    >>> expected_calibration_error([0, 1], [[1.0, 0.0], [1.0, 0.0]])
    0.5
    """
    p = np.asarray(probabilities, dtype=np.float64)
    y_true = np.asarray(y_true)
    if p.ndim != 2 or y_true.shape != (len(p),) or len(p) == 0:
        raise ValueError(
            f"probabilities must have shape (n_samples, n_classes) and y_true "
            f"(n_samples,), got {p.shape} and {y_true.shape}."
        )
    unknown = np.isnan(p).any(1)
    if unknown.any():
        raise ValueError(
            f"Row {unknown.argmax()} of probabilities is NaN, as for a file that could "
            "not be read: leave out such rows."
        )
    if y_true.dtype.kind not in "iub":
        raise ValueError(
            f"y_true has the dtype {y_true.dtype}, but column numbers are needed: give "
            "np.searchsorted(classifier.classes_, y)."
        )
    confidence, hits = p.max(1), p.argmax(1) == y_true
    bins = np.ceil(confidence * n_bins).astype(int).clip(1, n_bins)
    gaps = np.bincount(bins, weights=hits - confidence, minlength=n_bins + 1)
    return float(np.abs(gaps).sum() / len(p))


def _class_counts(y_selected, classes):
    classes = np.unique(np.asarray(classes))
    if len(classes) == 0:
        raise ValueError("classes is empty: give all classes that exist.")
    _, codes = encode_labels(y_selected, classes=classes)
    return np.bincount(codes[codes >= 0], minlength=len(classes))


@torch.no_grad()
def feature_std(h):
    """Return the spread of the directions of feature vectors, as one number.

    ``sqrt(D) * mean over features of the standard deviation of h / |h|``

    Parameters
    ----------
    h : Tensor of shape (B, D)
        Feature vectors; rows are L2-normalized inside.

    Returns
    -------
    spread : Tensor of shape ()
        In [0, 1]: about 1 for directions spread evenly over the sphere, 0 if all rows
        have the same direction (collapse). With fewer than a few dozen rows it is
        biased low.

    Raises
    ------
    ValueError
        If ``h`` is not of shape (B, D) or has no row.

    References
    ----------
    .. [1] X. Chen and K. He, "Exploring simple Siamese representation learning",
       CVPR 2021, section 4.1.
    """
    h = _features(h)
    return F.normalize(h, dim=1).std(dim=0, correction=0).mean() * h.shape[1] ** 0.5


@torch.no_grad()
def effective_rank(h):
    """Return the number of directions that feature vectors use, as a real number.

    ``exp(-sum p log p)`` with ``p`` the singular values over their sum.

    Parameters
    ----------
    h : Tensor of shape (B, D)
        Feature vectors, neither centered nor normalized.

    Returns
    -------
    rank : Tensor of shape ()
        In [1, min(B, D)]; 1: all rows are multiples of one vector. 0 if all entries are
        0.

    Raises
    ------
    ValueError
        If ``h`` is not of shape (B, D) or has no row.

    References
    ----------
    .. [1] O. Roy and M. Vetterli, "The effective rank: a measure of effective
       dimensionality", EUSIPCO 2007, definition 1.
    """
    s = torch.linalg.svdvals(_features(h))
    p = s / s.sum().clamp_min(torch.finfo(s.dtype).tiny)
    rank = torch.exp(torch.special.entr(p).sum())
    return torch.where(s.sum() > 0, rank, torch.zeros_like(rank))


def _features(h):
    if h.ndim != 2 or len(h) == 0:
        raise ValueError(f"h must have shape (B, D) with rows, got {tuple(h.shape)}.")
    return h if h.dtype == torch.float64 else h.float()
