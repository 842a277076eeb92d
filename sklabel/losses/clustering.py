"""Clustering losses: agreement of neighbors, views and codes; use of all clusters."""

import math

import torch
from torch.nn import functional as F

from .._core.checks import check_number, check_option
from ._precision import TINY, at_least_float32, unit_rows


def entropy(probabilities, from_logits=False):
    r"""Entropy of each distribution, :math:`-\sum_k p_k \ln p_k`.

    Parameters
    ----------
    probabilities : Tensor of shape (..., K)
        Each row sums to 1; entries below 1e-8 count as 1e-8.
    from_logits : bool, default=False
        Whether the rows are logits; nothing is clamped then.

    Returns
    -------
    entropy : Tensor of shape (...)
        In nats, 0 to ln K.
    """
    if from_logits:
        log_p = at_least_float32(probabilities).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)
    p = at_least_float32(probabilities).clamp_min(TINY)
    return -(p * p.log()).sum(-1)


def mean_entropy(probabilities):
    """Entropy of the batch's mean distribution: high if all clusters are used.

    Parameters
    ----------
    probabilities : Tensor of shape (..., B, K)
        Each row sums to 1.

    Returns
    -------
    entropy : Tensor of shape (...)
        In nats, 0 (all rows in one cluster) to ln K (equal shares). Entries of the mean
        below 1e-8 count as 1e-8.
    """
    return entropy(at_least_float32(probabilities).mean(-2))


def scan_consistency(logits_anchor, logits_neighbor):
    r"""Disagreement of rows and their neighbors: mean of :math:`-\ln (p \cdot p')`.

    Parameters
    ----------
    logits_anchor, logits_neighbor : Tensor of shape (..., B, K)
        Row i of both are a sample and one of its neighbors.

    Returns
    -------
    consistency : Tensor of shape (...)
        0 if all pairs are in the same cluster with certainty; a pair counts at most
        100.

    Notes
    -----
    Value and gradient are exact (log-sum-exp) up to the cap; beyond it the gradient is
    0. The public code uses torch's binary cross-entropy, whose gradient vanishes if the
    product of the probabilities falls below 1e-12, so that a confident but wrong pair
    is never corrected. Values are the same.
    """
    log_p = at_least_float32(logits_anchor).log_softmax(-1)
    log_q = at_least_float32(logits_neighbor).log_softmax(-1)
    return (-(log_p + log_q).logsumexp(-1)).clamp_max(100).mean(-1)


def scan_loss(anchors, neighbors, entropy_weight=5.0, prior=None):
    r"""Return SCAN's loss: neighbors agree, and all clusters are used.

    `scan_consistency` minus ``entropy_weight`` times `mean_entropy` of the anchors.

    Parameters
    ----------
    anchors, neighbors : Tensor of shape (..., B, K)
        Logits; rows i are a sample and one of its neighbors. Leading axes are heads.
    entropy_weight : float, default=5.0
        Weight of the entropy, >= 0.
    prior : Tensor of shape (K,) or None, default=None
        Expected share of each cluster, summing to 1. The entropy is then replaced by
        :math:`\ln K - KL(\bar p \| prior)`, which is the entropy itself for equal
        shares.

    Returns
    -------
    loss : Tensor of shape (...)
        One value per head, at best ``-entropy_weight * ln K``. The public code sums
        over heads.

    References
    ----------
    .. [1] W. Van Gansbeke et al., "SCAN: learning to classify images without labels",
       ECCV 2020; equation 2.
    """
    check_number(0, entropy_weight=entropy_weight)
    used = _cluster_usage(at_least_float32(anchors).softmax(-1).mean(-2), prior)
    return scan_consistency(anchors, neighbors) - entropy_weight * used


def _cluster_usage(mean, prior):
    """Return how evenly the mean of all rows (..., K) uses clusters, at best ln K."""
    if prior is None:
        return entropy(mean)
    log_prior = prior.to(mean).clamp_min(TINY).log()
    return entropy(mean) + (mean * log_prior).sum(-1) + math.log(len(prior))


@torch.no_grad()
def scan_head_scores(probabilities, neighbors, prior=None):
    """Score each head on a whole set without labels; the lowest is the best.

    Parameters
    ----------
    probabilities : Tensor of shape (H, n, K)
        Probabilities of every row from every head, without augmentation.
    neighbors : Tensor of shape (n, k)
        Row numbers of each row's neighbors, usually including the row itself.
    prior : Tensor of shape (K,) or None, default=None
        Expected share of each cluster, as for `scan_loss`.

    Returns
    -------
    total : Tensor of shape (H,)
        ``consistency - entropy``, whatever the entropy's weight in training.
    consistency : Tensor of shape (H,)
        Mean over all n * k pairs of minus the log of the product of probabilities; a
        pair counts at most 100.
    entropy : Tensor of shape (H,)
        Entropy of the mean of all rows; with a prior :math:`\\ln K - KL(\\bar p \\|
        prior)`.

    Notes
    -----
    Processes one column of neighbors of one head at a time: besides the input, it needs
    memory for about 2 n K numbers.
    """
    consistency = []
    for p in probabilities:
        p = at_least_float32(p)  # (n, K)
        columns = (
            (p * p[column]).sum(-1).log().clamp_min(-100).mean()
            for column in neighbors.T
        )
        consistency.append(-sum(columns) / neighbors.shape[1])
    consistency = torch.stack(consistency)
    spread = torch.stack(
        [_cluster_usage(at_least_float32(p).mean(-2), prior) for p in probabilities]
    )
    return consistency - spread, consistency, spread


def iic_loss(p1, p2, marginal_weight=1.0):
    r"""Minus the mutual information of the clusters of two views: IIC's loss.

    .. math:: -\sum_{ij} P_{ij} (\ln P_{ij} - \lambda \ln P_i - \lambda \ln P_j), \quad
              P \propto p_1^T p_2 + p_2^T p_1

    Parameters
    ----------
    p1, p2 : Tensor of shape (..., B, K)
        Probabilities of the clusters; rows i are two views of sample i. Leading axes
        are heads.
    marginal_weight : float, default=1.0
        Weight of the entropy of the cluster shares, >= 0; values above 1 favor equal
        shares. Paper: lambda.

    Returns
    -------
    loss : Tensor of shape (...)
        With weight 1, between 0 (independent) and -ln K (confident, in agreement, equal
        shares). The public code averages over heads.

    Notes
    -----
    Smaller entries are set to 2.2e-16, without a gradient.

    References
    ----------
    .. [1] X. Ji, J. F. Henriques, A. Vedaldi, "Invariant information clustering for
       unsupervised image classification and segmentation", ICCV 2019; equations 2 and
       3.
    """
    check_number(0, marginal_weight=marginal_weight)
    with torch.autocast(p1.device.type, enabled=False):
        joint = at_least_float32(p1).mT @ at_least_float32(p2)  # (..., K, K)
    return _minus_information(joint / joint.sum((-2, -1), True), marginal_weight)


def iic_segmentation_loss(
    p1, p2, affine=None, mask=None, marginal_weight=1.0, half_side=0, collapsed=False
):
    """Minus the mutual information between the clusters of nearby pixels of two views.

    Parameters
    ----------
    p1, p2 : Tensor of shape (B, K, H, W)
        Probabilities of the clusters of each pixel; images i are two views of one.
    affine : Tensor of shape (B, 2, 3) or None, default=None
        For :func:`torch.nn.functional.affine_grid`: moves the second view into the
        frame of the first.
    mask : Tensor of shape (B, H, W) or None, default=None
        1 where a pixel of the first view counts, 0 where it does not.
    marginal_weight : float, default=1.0
        See `iic_loss`.
    half_side : int, default=0
        Pixels are paired over all displacements of up to this many rows and columns.
        Paper: 10 for 128 pixels.
    collapsed : bool, default=False
        Whether all displacements share one joint distribution, whose total then has no
        gradient; False: one each, as in all published models.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over the displacements with any pairs of pixels; at best -ln K. 0 if there
        are none.

    Notes
    -----
    One product of (K, B H W) by (B H W, K) for each of the (2 half_side + 1) ** 2
    displacements.

    References
    ----------
    .. [1] X. Ji, J. F. Henriques, A. Vedaldi, "Invariant information clustering for
       unsupervised image classification and segmentation", ICCV 2019; equation 5.
    """
    check_number(0, marginal_weight=marginal_weight)
    check_number(0, whole=True, half_side=half_side)
    p1, p2 = at_least_float32(p1), at_least_float32(p2)
    if affine is not None:
        # in bfloat16 the grid would be off by a third of a pixel
        with torch.autocast(p2.device.type, enabled=False):
            grid = F.affine_grid(affine.to(p2), p2.shape, align_corners=False)
            p2 = F.grid_sample(p2, grid, align_corners=False)
    if mask is not None:
        p1, p2 = (p * mask[:, None].to(p) for p in (p1, p2))
    height, width = p1.shape[2:]
    padded = F.pad(p1, (half_side,) * 4)
    columns = p2.transpose(0, 1).flatten(1).T  # (B H W, K)
    joints = []
    with torch.autocast(p1.device.type, enabled=False):
        for down in range(2 * half_side + 1):
            for right in range(2 * half_side + 1):
                moved = padded[:, :, down : down + height, right : right + width]
                joints.append(moved.transpose(0, 1).flatten(1) @ columns)
    joints = torch.stack(joints)  # (displacements, K, K)
    if collapsed:
        joints = joints.sum(0, True)
    totals = joints.sum((-2, -1), True)
    if collapsed:
        totals = totals.detach()
    # the mask may leave a displacement no pair of pixels
    paired = totals.flatten() > 0
    losses = _minus_information(joints / totals.where(totals > 0, 1), marginal_weight)
    return losses.where(paired, 0).sum() / paired.sum().clamp_min(1)


def _minus_information(joint, marginal_weight):
    """Return the loss of joint distributions of shape (..., K, K) that sum to 1."""
    joint = (joint + joint.mT) / 2
    rows, columns = joint.sum(-1, True), joint.sum(-2, True)
    least = torch.finfo(torch.float64).eps
    joint, rows, columns = (
        torch.where(p < least, least, p) for p in (joint, rows, columns)
    )
    logs = joint.log() - marginal_weight * (rows.log() + columns.log())
    return -(joint * logs).sum((-2, -1))


def student_assignment(z, centers, alpha=1.0):
    r"""Assign rows to centers softly, by Student's t-distribution: DEC.

    :math:`q_{ij} \propto (1 + |z_i - \mu_j|^2 / \alpha)^{-(\alpha + 1) / 2}`

    Parameters
    ----------
    z : Tensor of shape (B, D)
    centers : Tensor of shape (K, D)
    alpha : float, default=1.0
        Degrees of freedom, > 0.

    Returns
    -------
    q : Tensor of shape (B, K)
        Rows sum to 1.

    References
    ----------
    .. [1] J. Xie, R. Girshick, A. Farhadi, "Unsupervised deep embedding for clustering
       analysis", ICML 2016; equation 1.
    """
    check_number(0, above=True, alpha=alpha)
    z, centers = at_least_float32(z), at_least_float32(centers)
    differences = z[:, None] - centers  # (B, K, D)
    # those whose squares could overflow are made smaller first
    size = differences.detach().abs().amax(-1)  # (B, K)
    size = torch.where(size > torch.finfo(z.dtype).max ** 0.4, size, 1.0)
    squares = (differences / size[..., None]).square().sum(-1) / alpha
    far = (squares + size**-2).log() + 2 * size.log()
    logs = torch.where(size > 1, far, squares.log1p())  # of 1 + squares
    return (-(alpha + 1) / 2 * logs).softmax(1)


@torch.no_grad()
def sharpened_targets(q):
    r"""Square an assignment and divide by the clusters' sizes: the target of DEC.

    :math:`p_{ij} \propto q_{ij}^2 / \sum_i q_{ij}`

    Parameters
    ----------
    q : Tensor of shape (n, K)
        Assignment of the whole set, not of a batch; rows sum to 1.

    Returns
    -------
    p : Tensor of shape (n, K)
        Rows sum to 1; without a gradient.

    References
    ----------
    .. [1] J. Xie, R. Girshick, A. Farhadi, "Unsupervised deep embedding for clustering
       analysis", ICML 2016; equation 3.
    """
    # the size of a cluster that nobody is near would make its targets explode
    weights = q.square() / q.sum(0).clamp_min(torch.finfo(q.dtype).tiny)
    return weights / weights.sum(1, keepdim=True)


def target_divergence(q, p):
    r"""Distance of an assignment from its target, :math:`KL(p \| q)`: DEC's loss.

    Parameters
    ----------
    q, p : Tensor of shape (B, K)
        Assignment and target; entries below 1e-7 count as 1e-7. No gradient passes to
        p.

    Returns
    -------
    loss : Tensor of shape ()
        Sum over clusters, mean over rows.

    References
    ----------
    .. [1] J. Xie, R. Girshick, A. Farhadi, "Unsupervised deep embedding for clustering
       analysis", ICML 2016; equation 2.
    """
    p, q = p.detach().clamp(1e-7, 1), q.clamp(1e-7, 1)
    return (p * (p / q).log()).sum(1).mean()


def contrastive_clustering(
    z, y, centers, temperature=0.5, contrast="rows", normalize=True, alpha=1.0
):
    r"""Pull codes to the center of their class, and others away from it: CCL.

    .. math:: -\frac{1}{C} \sum_c \frac{1}{|I_c|} \sum_{i \in I_c}
              \ln \frac{e^{s_{ic}}}{e^{s_{ic}} + \sum_{j \notin I_c} e^{s_{jc}}}, \quad
              s_{ic} = z_i \cdot \mu_c / T

    Parameters
    ----------
    z : Tensor of shape (B, D)
        Codes.
    y : Tensor of int of shape (B,)
        Class of each row.
    centers : Tensor of shape (K, D)
        One for each class.
    temperature : float, default=0.5
        T, > 0.
    contrast : {"rows", "literal", "centers", "assignment"}, default="rows"
        "rows": as above. "literal": as printed, without the positive in the denominator
        and with a sum over the classes. "centers": the cross-entropy of each row among
        all centers, mean over rows. "assignment": minus the logarithm of the
        `student_assignment` of a row to its class, with logits divided by T; the
        classes of the batch count equally. It uses distances, and ignores
        ``normalize``.
    normalize : bool, default=True
        Whether codes and centers are scaled to length 1.
    alpha : float, default=1.0
        Degrees of freedom of "assignment", > 0.

    Returns
    -------
    loss : Tensor of shape ()
        With "rows" and "literal", over the classes of the batch, and 0 if there is only
        one. "literal" without ``normalize`` has no lower bound.

    Notes
    -----
    The authors have published no code, and the formula in the article allows these
    readings.

    References
    ----------
    .. [1] H. Roda and A. B. Geva, "Semi-supervised active learning using convolutional
       auto-encoder and contrastive learning", Frontiers in Artificial Intelligence 7,
       2024; equation 7.
    """
    check_option(("rows", "literal", "centers", "assignment"), contrast=contrast)
    check_number(0, above=True, temperature=temperature)
    with torch.autocast(z.device.type, enabled=False):
        z, centers = at_least_float32(z), at_least_float32(centers)
        if contrast == "assignment":
            q = student_assignment(z, centers, alpha)
            logits = q.clamp_min(torch.finfo(q.dtype).tiny).log() / temperature
            losses = F.cross_entropy(logits, y, reduction="none")  # (B,)
            counts = F.one_hot(y, len(centers)).sum(0)
            return (losses / counts[y]).sum() / (counts > 0).sum()
        if normalize:
            z, centers = unit_rows(z), unit_rows(centers)
        scores = z @ centers.T / temperature  # (B, K)
        if contrast == "centers":
            return F.cross_entropy(scores, y)
        # asked on the device, which is not waited for
        alone = (y == y[0]).all()  # nothing to be told apart from
        members = F.one_hot(y, len(centers))  # (B, K)
        own_kind = members.bool() & ~alone  # all at -inf would have no gradient
        others = scores.masked_fill(own_kind, -math.inf).logsumexp(0)[y]  # (B,)
        own = scores.gather(1, y[:, None])[:, 0]
        counts = members.sum(0)
        all_ = others if contrast == "literal" else torch.logaddexp(own, others)
        total = ((all_ - own) / counts[y]).sum()
        if contrast != "literal":
            total = total / (counts > 0).sum()
        return torch.where(alone, 0 * scores.sum(), total)
