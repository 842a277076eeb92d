"""Losses of selectors that train a network: USL-T, learning loss, TOD."""

import torch
from torch.nn import functional as F

from .._core.checks import check_number
from ._precision import TINY, at_least_float32


def uslt_local_loss(
    anchors, neighbors, mean_probabilities, adjustment_weight=5.0, temperature=0.25
):
    r"""Train a row on its neighbor's prediction: USL-T's local loss.

    .. math:: L = \mathrm{KL}(t \,\|\, \mathrm{softmax}(z)), \quad
              t = \mathrm{softmax}((z' - \beta \ln \bar p) / T)

    where z and z' are the logits of a row and of its neighbor.

    Parameters
    ----------
    anchors, neighbors : Tensor of shape (B, K)
        Logits of rows and of one neighbor of each; no gradient passes to the neighbors.
    mean_probabilities : Tensor of shape (K,)
        Running mean of the neighbors' probabilities, before this batch is added to it.
        Paper: p bar; at least 1e-8.
    adjustment_weight : float, default=5.0
        beta, >= 0: how strongly targets avoid large clusters.
    temperature : float, default=0.25
        T, > 0; below 1 sharpens the targets. The public code sharpens after the
        softmax, which is equivalent.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over the rows minus the entropy of the targets; at least 0.

    References
    ----------
    .. [1] X. Wang, L. Lian, S. X. Yu, "Unsupervised selective labeling for more
       effective semi-supervised learning", ECCV 2022; section 4 and its public code.
    """
    check_number(0, adjustment_weight=adjustment_weight)
    check_number(0, above=True, temperature=temperature)
    adjustment = adjustment_weight * mean_probabilities.clamp_min(TINY).log()  # (K,)
    adjusted = at_least_float32(neighbors.detach()) - adjustment
    targets = (adjusted / temperature).softmax(-1)  # (B, K)
    return F.kl_div(
        at_least_float32(anchors).log_softmax(-1), targets, reduction="batchmean"
    )


def uslt_global_loss(
    logits_weak,
    logits_strong,
    threshold=0.95,
    cluster_weights="balanced",
    mean_over="kept",
):
    """Train strong views on confident predictions of plain views: USL-T's global loss.

    Parameters
    ----------
    logits_weak, logits_strong : Tensor of shape (B, K)
        Logits of the plain and the augmented view; no gradient passes to the first.
    threshold : float, default=0.95
        Rows are kept if their largest probability is above it (not equal).
    cluster_weights : {"balanced", "renormalized"} or None, default="balanced"
        Weight of a kept row of a cluster with n_c of the n kept rows. "balanced":
        n / n_c; "renormalized": n / n_c over the number of clusters with kept rows,
        which is 1 on average; None: 1.
    mean_over : {"kept", "batch"}, default="kept"
        Divisor of the weighted sum. "kept": the total weight of the kept rows; "batch":
        B.

    Returns
    -------
    loss : Tensor of shape ()
        0 with gradient 0 if no row is kept.

    Raises
    ------
    ValueError
        For unknown ``cluster_weights`` or ``mean_over``.

    References
    ----------
    .. [1] X. Wang, L. Lian, S. X. Yu, "Unsupervised selective labeling for more
       effective semi-supervised learning", ECCV 2022; section 4 and its public code.
    """
    check_number(0, 1, threshold=threshold)
    if cluster_weights not in ("balanced", "renormalized", None):
        raise ValueError(
            f'cluster_weights={cluster_weights!r} is not one of "balanced", '
            '"renormalized", None.'
        )
    if mean_over not in ("kept", "batch"):
        raise ValueError(f'mean_over={mean_over!r} is not one of "kept", "batch".')
    confidence, targets = at_least_float32(logits_weak.detach()).softmax(-1).max(-1)
    kept = confidence > threshold  # (B,)
    losses = F.cross_entropy(at_least_float32(logits_strong), targets, reduction="none")
    weights = kept.float()
    if cluster_weights is not None:
        members = F.one_hot(targets, logits_weak.shape[-1]) * kept[:, None]  # (B, K)
        # in float32 and in this order the released code's digits come out
        counts, n_kept = members.sum(0).float(), kept.sum().float()
        present = counts.clamp_min(1)
        if cluster_weights == "balanced":
            weights = weights * (1 / (present / n_kept))[targets]
        else:
            n_clusters = (counts > 0).sum().clamp_min(1)
            weights = weights * (1 / present * (n_kept / n_clusters))[targets]
    total = (losses.masked_fill(~kept, 0) * weights).sum()
    if mean_over == "batch":
        return total / len(kept)
    # weights add up to 1 at least where a row is kept, so the bound only saves 0 / 0
    return total / weights.sum().clamp_min(1)


def learning_loss(predicted, losses, margin=1.0):
    r"""Return the ranking loss of predicted losses, pair by pair: learning loss.

    .. math:: \max(0, m - s_{ij} (\hat l_i - \hat l_j)), \quad
              s_{ij} = +1 \text{ if } l_i > l_j, \text{ else } -1, \quad j = B - 1 - i

    Losses fall during training, but which of two is larger remains meaningful.

    Parameters
    ----------
    predicted : Tensor of shape (B,)
        Predicted losses, the l with a hat.
    losses : Tensor of shape (B,)
        True ones; no gradient passes to them.
    margin : float, default=1.0
        m, >= 0: margin between the predictions of a pair. Paper: xi.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over the B // 2 pairs: first and last row, second and second-to-last, and
        so on; ``margin`` if all predictions are equal, 0 for B = 1.

    Raises
    ------
    ValueError
        If the two are not 1-D or differ in length.

    Notes
    -----
    The middle row of an odd batch has no partner and is left out. If losses are equal,
    the first counts as the smaller one, as in the public code.

    References
    ----------
    .. [1] D. Yoo, I. S. Kweon, "Learning loss for active learning", CVPR 2019,
       section 3.3.
    """
    check_number(0, margin=margin)
    if predicted.shape != losses.shape or predicted.ndim != 1:
        raise ValueError(
            f"predicted and losses have shapes {tuple(predicted.shape)} and "
            f"{tuple(losses.shape)}; both must be (B,)."
        )
    predicted, losses = at_least_float32(predicted), losses.detach()
    n_pairs = len(predicted) // 2
    difference = (predicted - predicted.flip(0))[:n_pairs]
    larger = (losses > losses.flip(0))[:n_pairs]
    sign = torch.where(larger, 1, -1)
    return F.relu(margin - sign * difference).sum() / max(1, n_pairs)


def temporal_consistency(logits, auxiliary, average):
    r"""Pull an auxiliary head toward the main head and its average: TOD's loss.

    .. math:: \frac{1}{BK} \sum_{ik} (s_{ik} - c_{ik})^2 + (c_{ik} - \bar s_{ik})^2

    Parameters
    ----------
    logits : Tensor of shape (B, K)
        Logits of the main head, s.
    auxiliary : Tensor of shape (B, K)
        Logits of the second head on the same features, c.
    average : Tensor of shape (B, K)
        Logits of the main head of the averaged network; no gradient passes to it.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over rows and classes; 0 if all agree or B = 0. TOD adds the values for
        labeled and unlabeled rows.

    References
    ----------
    .. [1] S. Huang et al., "Semi-supervised active learning with temporal output
       discrepancy", ICCV 2021, and its public code.
    """
    s, c = at_least_float32(logits), at_least_float32(auxiliary)
    past = at_least_float32(average.detach())
    return ((s - c).square() + (c - past).square()).sum() / max(1, s.numel())
