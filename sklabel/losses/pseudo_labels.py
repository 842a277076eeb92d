"""Pseudo-labels: predictions as targets, and losses that learn from them."""

import torch
from torch.nn import functional as F

from .._core.checks import check_number
from ._precision import at_least_float32


@torch.no_grad()
def pseudo_targets(logits, threshold=0.95, temperature=1.0, hard=True):
    """Return targets from predictions, and which of them are confident enough to use.

    Parameters
    ----------
    logits : Tensor of shape (B, K)
        Logits of weakly augmented rows.
    threshold : float or Tensor of shape (K,), default=0.95
        A row is confident if its largest probability reaches it; with one per class,
        that of the predicted class.
    temperature : float, default=1.0
        > 0; below 1 sharpens. It is applied before the threshold with hard targets, and
        only to the targets with soft ones.
    hard : bool, default=True
        Whether targets are classes (ties go to the first) or distributions.

    Returns
    -------
    targets : Tensor of shape (B,) or (B, K)
        Classes if ``hard``, else probabilities.
    mask : Tensor of bool of shape (B,)
        Whether a row is confident.
    """
    check_number(0, 1, threshold=threshold)
    check_number(0, above=True, temperature=temperature)
    logits = at_least_float32(logits)
    p = (logits / temperature if hard else logits).softmax(-1)
    confidence, classes = p.max(-1)
    if isinstance(threshold, torch.Tensor) and threshold.ndim:
        threshold = threshold.to(confidence)[classes]
    targets = classes if hard else (logits / temperature).softmax(-1)
    return targets, confidence >= threshold


def pseudo_label(
    logits_weak, logits_strong, threshold=0.95, temperature=1.0, hard=True, weights=None
):
    """Train strong views on confident weak views: FixMatch's unlabeled loss.

    Parameters
    ----------
    logits_weak, logits_strong : Tensor of shape (B, K)
        Logits of weakly and strongly augmented views of the same rows; no gradient
        passes to the first.
    threshold : float or Tensor of shape (K,), default=0.95
        A row counts if its largest probability reaches it; with one per class, that of
        the predicted class.
    temperature : float, default=1.0
        > 0; see `pseudo_targets`.
    hard : bool, default=True
        Whether targets are classes or distributions.
    weights : Tensor of shape (B,) or None, default=None
        Weight of each row, in [0, 1] or bool, which replaces ``threshold``; None: by
        the threshold.

    Returns
    -------
    loss : Tensor of shape ()
        Weighted sum of the cross-entropy of the rows that count, divided by the number
        of ALL rows; 0 if none counts.
    mask : Tensor of shape (B,)
        Whether a row counts, bool; or ``weights``.

    References
    ----------
    .. [1] K. Sohn et al., "FixMatch: simplifying semi-supervised learning with
       consistency and confidence", NeurIPS 2020; equation 4.
    """
    check_number(0, 1, threshold=threshold)
    check_number(0, above=True, temperature=temperature)
    targets, mask = pseudo_targets(logits_weak, threshold, temperature, hard)
    mask = mask if weights is None else weights
    logits_strong = at_least_float32(logits_strong)
    if not hard:
        targets = targets.to(logits_strong)
    losses = F.cross_entropy(logits_strong, targets, reduction="none")  # (B,)
    losses = mask.to(losses) * losses.masked_fill(mask == 0, 0)
    return losses.sum() / max(1, len(mask)), mask


def self_adaptive_fairness(logits, weights, mean_prediction, class_shares):
    r"""Keep predictions near the class distribution: FreeMatch's fairness term.

    .. math:: \sum_k \hat p_k \ln \bar p_k, \quad
              \hat p \propto p / h, \; \bar p \propto \bar q / \bar h

    Parameters
    ----------
    logits : Tensor of shape (B, K)
        Logits of strongly augmented rows.
    weights : Tensor of shape (B,)
        Rows of weight 0 are ignored; the others count equally. :math:`\bar q` is the
        mean of their probabilities and :math:`\bar h` the shares of their most probable
        classes.
    mean_prediction, class_shares : Tensor of shape (K,)
        Moving averages p and h of the probabilities of weakly augmented rows and of the
        shares of their most probable classes.

    Returns
    -------
    loss : Tensor of shape ()
        0 if no row counts. A class without a share is not divided by it.

    References
    ----------
    .. [1] Y. Wang et al., "FreeMatch: self-adaptive thresholding for semi-supervised
       learning", ICLR 2023; equations 9 to 12.
    """
    q = at_least_float32(logits).softmax(-1)
    used = (weights > 0)[:, None].to(q)  # no row is taken out: a device need not wait
    n_used = used.sum().clamp_min(1)
    shares = (used * F.one_hot(q.argmax(-1), q.shape[-1])).sum(0) / n_used

    def normalized(p, shares):
        scaled = torch.where(shares > 0, p / shares.clamp_min(1e-30), 0)
        return scaled / scaled.sum().clamp_min(1e-30)

    wanted = normalized(mean_prediction.to(q), class_shares.to(q))
    found = normalized((used * q).sum(0) / n_used, shares)
    loss = (wanted * (found + 1e-12).log()).sum()
    return torch.where(used.any(), loss, loss * 0)


def confidence_cross_entropy(logits_weak, logits_strong, threshold=0.99, balance=True):
    """Learn from one's own confident predictions: SCAN's self-labeling.

    The target of a strong view is the class of its weak view, if that is confident.

    Parameters
    ----------
    logits_weak, logits_strong : Tensor of shape (B, K)
        Logits of the plain and the augmented view; no gradient passes to the first.
    threshold : float, default=0.99
        Rows count if their largest probability is above it (not equal).
    balance : bool, default=True
        Whether classes are weighted inversely to their number of rows that count.

    Returns
    -------
    loss : Tensor of shape ()
        Weighted mean of the cross-entropy; 0 with gradient 0 if no row counts.

    References
    ----------
    .. [1] W. Van Gansbeke et al., "SCAN: learning to classify images without labels",
       ECCV 2020; section 2.3.
    """
    check_number(0, 1, threshold=threshold)
    confidence, targets = at_least_float32(logits_weak.detach()).softmax(-1).max(-1)
    kept = confidence > threshold  # (B,)
    losses = F.cross_entropy(at_least_float32(logits_strong), targets, reduction="none")
    weights = kept.to(losses)
    if balance:
        members = F.one_hot(targets, logits_weak.shape[-1]) * kept[:, None]  # (B, K)
        counts = members.sum(0).clamp_min(1)[targets]
        weights = weights * kept.sum() / counts
    # weights of rows that count are at least 1, so the bound only saves 0 / 0
    return (weights * losses.masked_fill(~kept, 0)).sum() / weights.sum().clamp_min(1)


def sharpen(probabilities, temperature=0.5):
    r"""Move distributions toward their largest entries.

    .. math:: q_k = p_k^{1/T} / \sum_j p_j^{1/T}

    Parameters
    ----------
    probabilities : Tensor of shape (..., K)
        Last axis sums to one.
    temperature : float, default=0.5
        T, > 0; 1 changes nothing, and toward 0 the largest entry approaches 1.

    Returns
    -------
    q : Tensor of shape (..., K)
        In at least float32.

    References
    ----------
    .. [1] D. Berthelot et al., "MixMatch: a holistic approach to semi-supervised
       learning", NeurIPS 2019; equation 7.
    """
    check_number(0, above=True, temperature=temperature)
    # as logarithms: powers of small probabilities would all become 0
    return (at_least_float32(probabilities).log() / temperature).softmax(-1)


def guessed_labels(logits, temperature=0.5):
    """Guess one soft label per row from several views of it: MixMatch's targets.

    Parameters
    ----------
    logits : Tensor of shape (V, B, K)
        Logits of V views of the same rows; no gradient passes.
    temperature : float, default=0.5
        > 0; see `sharpen`.

    Returns
    -------
    targets : Tensor of shape (B, K)
        The mean of the views' probabilities, sharpened.

    References
    ----------
    .. [1] D. Berthelot et al., "MixMatch: a holistic approach to semi-supervised
       learning", NeurIPS 2019; equations 6 and 7.
    """
    check_number(0, above=True, temperature=temperature)
    return sharpen(at_least_float32(logits.detach()).softmax(-1).mean(0), temperature)


def mixup(x, order, weights):
    r"""Mix every row with another one.

    .. math:: x'_i = w_i x_i + (1 - w_i) x_{o(i)}

    Parameters
    ----------
    x : Tensor of shape (B, ...)
        Samples, or their targets as distributions.
    order : Tensor of int of shape (B,)
        Partner of each row.
    weights : Tensor of shape (B,)
        Share of the row itself, in [0, 1]. MixMatch: the larger of a and 1 - a for a
        drawn from Beta(alpha, alpha), so that a row stays closer to itself.

    Returns
    -------
    x : Tensor of shape (B, ...)

    References
    ----------
    .. [1] H. Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018.
    .. [2] D. Berthelot et al., "MixMatch: a holistic approach to semi-supervised
       learning", NeurIPS 2019; equations 8 to 11.
    """
    weights = weights.to(x).reshape(-1, *[1] * (x.ndim - 1))
    return weights * x + (1 - weights) * x[order]


def mixmatch_losses(logits, targets, n_labeled):
    """Return MixMatch's two terms: cross-entropy, and squared error of probabilities.

    Parameters
    ----------
    logits : Tensor of shape (B, K)
        Logits of mixed rows; those from labeled rows come first.
    targets : Tensor of shape (B, K)
        Mixed distributions.
    n_labeled : int
        Number of rows that come from labeled ones, >= 1.

    Returns
    -------
    labeled : Tensor of shape ()
        Mean cross-entropy of the first ``n_labeled`` rows.
    unlabeled : Tensor of shape ()
        Mean over the other rows AND the classes of the squared difference between
        target and softmax; 0 if there is no other row.

    References
    ----------
    .. [1] D. Berthelot et al., "MixMatch: a holistic approach to semi-supervised
       learning", NeurIPS 2019; equations 3 and 4.
    """
    logits = at_least_float32(logits)
    targets = targets.to(logits)
    labeled = F.cross_entropy(logits[:n_labeled], targets[:n_labeled])
    difference = targets[n_labeled:] - logits[n_labeled:].softmax(1)
    return labeled, difference.square().sum() / max(1, difference.numel())


def noisy_student_loss(
    logits_labeled, labels, logits_unlabeled, targets, label_smoothing=0.1
):
    """Learn from labels and a teacher's predictions, equal per row: Noisy Student.

    Parameters
    ----------
    logits_labeled : Tensor of shape (B, K)
    labels : Tensor of int of shape (B,)
    logits_unlabeled : Tensor of shape (M, K)
        M may be 0.
    targets : Tensor of shape (M,) or (M, K)
        The teacher's predicted classes or probabilities.
    label_smoothing : float, default=0.1
        Share of a target's weight that is spread over all classes, in [0, 1]; for
        classes only, not for probabilities.

    Returns
    -------
    loss : Tensor of shape ()
        Mean cross-entropy of the labeled rows, plus M / B times that of the others.

    References
    ----------
    .. [1] Q. Xie et al., "Self-training with Noisy Student improves ImageNet
       classification", CVPR 2020; algorithm 1 and its public code.
    """
    check_number(0, 1, label_smoothing=label_smoothing)
    loss = F.cross_entropy(
        at_least_float32(logits_labeled), labels, label_smoothing=label_smoothing
    )
    if len(logits_unlabeled) == 0:
        return loss
    logits_unlabeled = at_least_float32(logits_unlabeled)
    if targets.ndim == 2:
        targets, label_smoothing = targets.to(logits_unlabeled), 0.0
    unlabeled_loss = F.cross_entropy(
        logits_unlabeled, targets, label_smoothing=label_smoothing
    )
    return loss + len(logits_unlabeled) / len(logits_labeled) * unlabeled_loss


def distillation(logits_teacher, logits_student, temperature=1.0):
    r"""Train a student on the probabilities of a teacher: SimCLRv2's last stage.

    .. math:: -\frac{1}{B} \sum_i \sum_k p_{ik} \ln q_{ik}, \quad
              p_i = \mathrm{softmax}(t_i / T), \; q_i = \mathrm{softmax}(s_i / T)

    Parameters
    ----------
    logits_teacher, logits_student : Tensor of shape (B, K)
        t and s, of the same views; no gradient passes to the first.
    temperature : float, default=1.0
        T, > 0; below 1 sharpens both. The loss is not multiplied by T squared, in
        accordance with the paper; the authors' notebook does so.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over the rows; at least the mean entropy of the teacher.

    References
    ----------
    .. [1] T. Chen et al., "Big self-supervised models are strong semi-supervised
       learners", NeurIPS 2020; equation 2.
    """
    check_number(0, above=True, temperature=temperature)
    p = (at_least_float32(logits_teacher.detach()) / temperature).softmax(-1)
    log_q = (at_least_float32(logits_student) / temperature).log_softmax(-1)
    return -(p * log_q).sum(-1).mean()
