"""Objectives as functions on tensors: contrastive, clustering and pseudo-label losses."""

import math

import torch
from torch.nn import functional as F

# Smallest probability under a logarithm.
TINY = 1e-8


def nt_xent(z1, z2, temperature=0.5, normalize=True, anchors="both"):
    r"""Contrast two views of a batch: normalized temperature-scaled cross-entropy.

    .. math:: \ell_i = -s_{i,p(i)} + \log \sum_{j \ne i} e^{s_{ij}}, \quad
              s_{ij} = z_i \cdot z_j / T

    over all 2B views, where p(i) is the other view of the same row.

    Parameters
    ----------
    z1, z2 : Tensor of shape (B, D)
        Rows i are two views of sample i; B >= 1.
    temperature : float, default=0.5
        T, > 0.
    normalize : bool, default=True
        Whether rows are scaled to length 1. A zero row stays zero.
    anchors : {"both", "first"}, default="both"
        "both": the sum of the means over the anchors of each view, as SimCLR's code has
        it, which is twice the mean over all 2B anchors. "first": the mean over the first
        views alone, as SCAN's pretext has it.

    Returns
    -------
    loss : Tensor of shape ()
        2 ln(2B - 1) ("both") where all rows are equal, and 0 for B = 1. Computed in
        float32 at least, also under autocast.

    Raises
    ------
    ValueError
        For views of different shapes or unknown ``anchors``.

    Notes
    -----
    One product of 2B x 2B (B x 2B with "first"). The similarity of an anchor with itself
    is masked before the softmax, so no gradient passes through it. Equal samples of a
    batch are negatives of each other.

    References
    ----------
    .. [1] T. Chen et al., "A simple framework for contrastive learning of visual
       representations", ICML 2020; equation 1.
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(
            f"z1 and z2 have shapes {tuple(z1.shape)} and {tuple(z2.shape)}; both must "
            "be (B, D)."
        )
    if anchors not in ("both", "first"):
        raise ValueError(f'anchors={anchors!r} is neither "both" nor "first".')
    n_samples = len(z1)
    # a bfloat16 product would be off by 0.03 at a logit of 10
    with torch.autocast(z1.device.type, enabled=False):
        z = _full(torch.cat([z1, z2]))  # (2B, D)
        if normalize:
            z = unit_rows(z)
        z = z / math.sqrt(temperature)
        rows = z if anchors == "both" else z[:n_samples]
        logits = rows @ z.T  # (2B, 2B) or (B, 2B)
        itself = torch.eye(*logits.shape, dtype=torch.bool, device=z.device)
        logits = logits.masked_fill_(itself, -math.inf)
        partner = torch.arange(len(rows), device=z.device) + n_samples
        loss = F.cross_entropy(logits, partner % (2 * n_samples))
    return 2 * loss if anchors == "both" else loss


def info_nce(queries, keys, queue, temperature=0.2):
    r"""Find each query's key among the rows of a queue: MoCo's loss.

    .. math:: -\ln \frac{e^{q_i \cdot k_i / T}}
              {e^{q_i \cdot k_i / T} + \sum_j e^{q_i \cdot n_j / T}}

    Parameters
    ----------
    queries, keys : Tensor of shape (B, D)
        Rows i belong together; of length 1, see `unit_rows`.
    queue : Tensor of shape (Q, D)
        Rows of other samples, the n in the formula; as they are, without a gradient.
    temperature : float, default=0.2
        T, > 0.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over the queries; ln(1 + Q) where nothing can be told apart. Computed in
        float32 at least, also under autocast.

    References
    ----------
    .. [1] K. He et al., "Momentum contrast for unsupervised visual representation
       learning", CVPR 2020; equation 1.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys, queue = _full(queries), _full(keys), _full(queue.detach())
        positive = (queries * keys).sum(-1, keepdim=True)  # (B, 1)
        logits = torch.cat([positive, queries @ queue.T], 1) / temperature
        targets = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits, targets)


def normalized_mse(predictions, targets):
    r"""Squared distance of directions, :math:`|p / |p| - t / |t||^2`: BYOL's loss.

    Parameters
    ----------
    predictions : Tensor of shape (B, D)
    targets : Tensor of shape (B, D)
        No gradient passes to them.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over the rows of ``2 - 2 cos``: 0 (equal directions) to 4 (opposite ones).
        A zero row costs 1. BYOL's training loss is the sum of both directions.

    References
    ----------
    .. [1] J.-B. Grill et al., "Bootstrap your own latent", NeurIPS 2020; equation 2.
    """
    p, t = unit_rows(predictions), unit_rows(targets.detach())
    return (p - t).square().sum(-1).mean()


@torch.no_grad()
def sinkhorn(scores, epsilon=0.05, n_iterations=3):
    """Assign rows to prototypes softly, so that all prototypes get equal shares.

    Parameters
    ----------
    scores : Tensor of shape (n, K)
        Similarity of each row to each prototype.
    epsilon : float, default=0.05
        Softness, > 0.
    n_iterations : int, default=3
        Each scales first the prototypes, then the rows to their shares.

    Returns
    -------
    codes : Tensor of shape (n, K)
        Rows sum to 1 (after one iteration or more), columns nearly to n / K. Without a
        gradient, in float32 at least.

    References
    ----------
    .. [1] M. Caron et al., "Unsupervised learning of visual features by contrasting
       cluster assignments", NeurIPS 2020; equation 5.
    """
    # as logarithms: nothing overflows, and no row or prototype is ever divided by 0
    log_codes = _full(scores) / epsilon
    n_rows, n_prototypes = log_codes.shape
    log_codes = log_codes - log_codes.flatten().logsumexp(0)
    for _ in range(n_iterations):
        log_codes -= log_codes.logsumexp(0) + math.log(n_prototypes)
        log_codes -= log_codes.logsumexp(1, keepdim=True) + math.log(n_rows)
    return (log_codes + math.log(n_rows)).exp()


def swapped_prediction(scores, codes, temperature=0.1, assigned=(0, 1)):
    r"""Predict the code of one crop from the scores of the others: SwAV's loss.

    The mean over assigned crops a, and over the other crops v, of
    :math:`-\sum_k q_{ak} \ln \mathrm{softmax}(s_v / T)_k`.

    Parameters
    ----------
    scores : Tensor of shape (V, B, K)
        Similarity to each prototype, of each of V >= 2 crops.
    codes : Tensor of shape (A, B, K)
        Targets of the assigned crops, see `sinkhorn`; rows sum to 1.
    temperature : float, default=0.1
        T, > 0.
    assigned : sequence of A int, default=(0, 1)
        Which crops the codes belong to.

    Returns
    -------
    loss : Tensor of shape ()
        ln K where nothing is learned.

    References
    ----------
    .. [1] M. Caron et al., "Unsupervised learning of visual features by contrasting
       cluster assignments", NeurIPS 2020; equation 2 and section 3.2.
    """
    n_crops, n_rows = scores.shape[:2]
    log_p = (_full(scores) / temperature).log_softmax(-1)
    others = log_p.sum(0) - log_p[list(assigned)]  # (A, B, K)
    return -(codes.detach() * others).sum() / (len(codes) * (n_crops - 1) * n_rows)


def lloyd_groups(z, n_groups, n_iterations=5):
    """Group the rows of one batch by k-means, in a way that gradients pass through.

    Parameters
    ----------
    z : Tensor of shape (B, D)
    n_groups : int
        K, at most B. The first K rows are the first centers.
    n_iterations : int, default=5
        Lloyd steps.

    Returns
    -------
    labels : Tensor of int of shape (B,)
        Group of each row, the first of equally near ones.
    centers : Tensor of shape (K, D)
        Mean of the rows of each group, 0 where it is empty; not normalized. Their
        gradient passes to the rows they were averaged from.

    Raises
    ------
    ValueError
        If there are more groups than rows.
    """
    if n_groups > len(z):
        raise ValueError(f"n_groups={n_groups} is more than the {len(z)} rows.")
    rows = z.detach()
    centers = rows[:n_groups]
    for _ in range(n_iterations):
        # not by a matrix product, whose rounding would part equal centers
        mode = "donot_use_mm_for_euclid_dist"
        labels = torch.cdist(rows, centers, compute_mode=mode).argmin(1)
        members = F.one_hot(labels, n_groups).to(z.dtype)  # (B, K)
        share = (members / members.sum(0).clamp_min(1)).T  # (K, B)
        centers = share @ rows
    return labels, share @ z


def group_discrimination(z1, z2, n_groups, temperature=0.2, n_iterations=5):
    """Find the group of each row among those of the other view: CLD's group loss.

    Each view is grouped by `lloyd_groups`. A row of one view is then classified among the
    centers of the other view, with the other view's group of the same sample as target.

    Parameters
    ----------
    z1, z2 : Tensor of shape (B, D)
        Rows i are two views of sample i; of length 1, see `unit_rows`.
    n_groups : int
        K, at most B.
    temperature : float, default=0.2
        > 0.
    n_iterations : int, default=5
        Lloyd steps.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over both directions; about ln K at first.

    References
    ----------
    .. [1] X. Wang, Z. Liu, S. X. Yu, "Unsupervised feature learning by cross-level
       instance-group discrimination", CVPR 2021; equation 4.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = _full(z1), _full(z2)
        labels1, centers1 = lloyd_groups(z1, n_groups, n_iterations)
        labels2, centers2 = lloyd_groups(z2, n_groups, n_iterations)
        first = F.cross_entropy(z1 @ centers2.T / temperature, labels2)
        second = F.cross_entropy(z2 @ centers1.T / temperature, labels1)
    return (first + second) / 2


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
        log_p = _full(probabilities).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)
    p = _full(probabilities).clamp_min(TINY)
    return -(p * p.log()).sum(-1)


def mean_entropy(probabilities):
    """Entropy of the batch's mean distribution: high where all clusters are used.

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
    return entropy(_full(probabilities).mean(-2))


def scan_consistency(logits_anchor, logits_neighbor):
    r"""Disagreement of rows and their neighbors: mean of :math:`-\ln (p \cdot p')`.

    Parameters
    ----------
    logits_anchor, logits_neighbor : Tensor of shape (..., B, K)
        Row i of both are a sample and one of its neighbors.

    Returns
    -------
    consistency : Tensor of shape (...)
        0 where all pairs give the same sure answer; a pair counts at most 100.

    Notes
    -----
    Value and gradient are exact (log-sum-exp) up to the cap; beyond it the gradient is 0.
    The public code goes through torch's binary cross-entropy, whose gradient dies once
    the product of the probabilities falls below 1e-12, so that a sure but wrong pair is
    never mended. Values are the same.
    """
    log_p = _full(logits_anchor).log_softmax(-1)
    log_q = _full(logits_neighbor).log_softmax(-1)
    return (-(log_p + log_q).logsumexp(-1)).clamp_max(100).mean(-1)


def scan_loss(anchors, neighbors, entropy_weight=5.0, prior=None):
    r"""Cluster by agreement with neighbors while all clusters stay in use.

    `scan_consistency` minus ``entropy_weight`` times `mean_entropy` of the anchors.

    Parameters
    ----------
    anchors, neighbors : Tensor of shape (..., B, K)
        Logits; rows i are a sample and one of its neighbors. Leading axes are heads.
    entropy_weight : float, default=5.0
        Weight of the entropy, >= 0.
    prior : Tensor of shape (K,) or None, default=None
        Expected share of each cluster, summing to 1. The entropy is then replaced by
        :math:`\ln K - KL(\bar p \| prior)`, which is the entropy itself for equal shares.

    Returns
    -------
    loss : Tensor of shape (...)
        One value per head, at best ``-entropy_weight * ln K``. The public code sums over
        heads.

    References
    ----------
    .. [1] W. Van Gansbeke et al., "SCAN: learning to classify images without labels",
       ECCV 2020; equation 2.
    """
    used = _use(_full(anchors).softmax(-1).mean(-2), prior)
    return scan_consistency(anchors, neighbors) - entropy_weight * used


def _use(mean, prior):
    """Return how well the mean (..., K) of all rows uses the clusters, at best ln K."""
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
        Of every row by every head, from un-augmented samples.
    neighbors : Tensor of shape (n, k)
        Row numbers of each row's neighbors, the row itself usually among them.
    prior : Tensor of shape (K,) or None, default=None
        Expected share of each cluster, as for `scan_loss`.

    Returns
    -------
    total : Tensor of shape (H,)
        ``consistency - entropy``, whatever the entropy's weight in training.
    consistency : Tensor of shape (H,)
        Mean of minus the log of the product of probabilities over all n * k pairs, a
        pair counting at most 100.
    entropy : Tensor of shape (H,)
        Of the mean of all rows; with a prior :math:`\\ln K - KL(\\bar p \\| prior)`.

    Notes
    -----
    Takes one column of neighbors of one head at a time: beyond the input, memory for
    some 2 n K numbers.
    """
    consistency = []
    for p in probabilities:
        p = _full(p)  # (n, K)
        columns = (
            (p * p[column]).sum(-1).log().clamp_min(-100).mean()
            for column in neighbors.T
        )
        consistency.append(-sum(columns) / neighbors.shape[1])
    consistency = torch.stack(consistency)
    spread = torch.stack([_use(_full(p).mean(-2), prior) for p in probabilities])
    return consistency - spread, consistency, spread


def iic_loss(p1, p2, marginal_weight=1.0):
    r"""Minus the mutual information of the clusters of two views: IIC's loss.

    .. math:: -\sum_{ij} P_{ij} (\ln P_{ij} - \lambda \ln P_i - \lambda \ln P_j), \quad
              P \propto p_1^T p_2 + p_2^T p_1

    Parameters
    ----------
    p1, p2 : Tensor of shape (..., B, K)
        Probabilities of the clusters; rows i are two views of sample i. Leading axes are
        heads.
    marginal_weight : float, default=1.0
        Weight of the entropy of the clusters' shares, > 0; above 1 for more equal shares.
        Paper: lambda.

    Returns
    -------
    loss : Tensor of shape (...)
        With weight 1 between 0 (nothing in common) and -ln K (sure, agreeing, equal
        shares). The public code averages over heads.

    Notes
    -----
    Entries below 2.2e-16 count as that, without a gradient.

    References
    ----------
    .. [1] X. Ji, J. F. Henriques, A. Vedaldi, "Invariant information clustering for
       unsupervised image classification and segmentation", ICCV 2019; equations 2 and 3.
    """
    with torch.autocast(p1.device.type, enabled=False):
        joint = _full(p1).mT @ _full(p2)  # (..., K, K)
    return _minus_information(joint / joint.sum((-2, -1), True), marginal_weight)


def iic_segmentation_loss(
    p1, p2, affine=None, mask=None, marginal_weight=1.0, half_side=0, collapsed=False
):
    """Minus the mutual information of the clusters of nearby pixels of two views.

    Parameters
    ----------
    p1, p2 : Tensor of shape (B, K, H, W)
        Probabilities of the clusters of each pixel; images i are two views of one.
    affine : Tensor of shape (B, 2, 3) or None, default=None
        For :func:`torch.nn.functional.affine_grid`: brings the second view into the frame
        of the first.
    mask : Tensor of shape (B, H, W) or None, default=None
        1 where a pixel of the first view counts, 0 where it does not.
    marginal_weight : float, default=1.0
        See `iic_loss`.
    half_side : int, default=0
        Pixels are paired over all displacements of up to so many rows and columns. Paper:
        10 for 128 pixels.
    collapsed : bool, default=False
        Whether all displacements make one joint distribution, whose total then passes no
        gradient, or one each, as in all published models.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over the displacements that pair any pixels; at best -ln K. 0 where none
        does.

    Notes
    -----
    One product of (K, B H W) by (B H W, K) for each of the (2 half_side + 1) ** 2
    displacements.

    References
    ----------
    .. [1] X. Ji, J. F. Henriques, A. Vedaldi, "Invariant information clustering for
       unsupervised image classification and segmentation", ICCV 2019; equation 5.
    """
    p1, p2 = _full(p1), _full(p2)
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
    z, centers = _full(z), _full(centers)
    squares = (z[:, None] - centers).square().sum(-1)  # (B, K)
    return (-(alpha + 1) / 2 * (squares / alpha).log1p()).softmax(1)


@torch.no_grad()
def sharpened_targets(q):
    r"""Square an assignment and divide by the clusters' sizes: the target of DEC.

    :math:`p_{ij} \propto q_{ij}^2 / \sum_i q_{ij}`

    Parameters
    ----------
    q : Tensor of shape (n, K)
        Of the whole set, not of a batch; rows sum to 1.

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
        Assignment and target; entries below 1e-7 count as 1e-7. No gradient passes to p.

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
    z, y, centers, temperature=0.5, contrast="rows", normalize=True
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
    contrast : {"rows", "literal", "centers"}, default="rows"
        "rows": as above. "literal": as printed, without the positive in the denominator
        and with a sum over the classes. "centers": the cross-entropy of each row among
        all centers, mean over rows.
    normalize : bool, default=True
        Whether codes and centers are scaled to length 1.

    Returns
    -------
    loss : Tensor of shape ()
        With "rows" and "literal" over the classes of the batch, and 0 where there is only
        one. "literal" without ``normalize`` has no lower bound.

    Notes
    -----
    The authors have published no code and the article leaves the formula open to these
    readings.

    References
    ----------
    .. [1] H. Roda and A. B. Geva, "Semi-supervised active learning using convolutional
       auto-encoder and contrastive learning", Frontiers in Artificial Intelligence 7,
       2024; equation 7.
    """
    with torch.autocast(z.device.type, enabled=False):
        z, centers = _full(z), _full(centers)
        if normalize:
            z, centers = unit_rows(z), unit_rows(centers)
        scores = z @ centers.T / temperature  # (B, K)
        if contrast == "centers":
            return F.cross_entropy(scores, y)
        if (y == y[0]).all():  # nothing to be told apart from
            return 0 * scores.sum()
        members = F.one_hot(y, len(centers))  # (B, K)
        others = scores.masked_fill(members.bool(), -math.inf).logsumexp(0)[y]  # (B,)
        own = scores.gather(1, y[:, None])[:, 0]
        counts = members.sum(0)
        all_ = others if contrast == "literal" else torch.logaddexp(own, others)
        total = ((all_ - own) / counts[y]).sum()
        return total if contrast == "literal" else total / (counts > 0).sum()


def confidence_cross_entropy(logits_weak, logits_strong, threshold=0.99, balance=True):
    """Learn from one's own sure answers: SCAN's self-labeling.

    The target of a strong view is the class of its weak view, where that is sure.

    Parameters
    ----------
    logits_weak, logits_strong : Tensor of shape (B, K)
        Of the plain and of the augmented view; no gradient passes to the first.
    threshold : float, default=0.99
        Rows count where the largest probability is above it (not equal).
    balance : bool, default=True
        Whether a class weighs the more the rarer it is among the rows that count.

    Returns
    -------
    loss : Tensor of shape ()
        Weighted mean of the cross-entropy; 0 with gradient 0 where no row counts.

    References
    ----------
    .. [1] W. Van Gansbeke et al., "SCAN: learning to classify images without labels",
       ECCV 2020; section 2.3.
    """
    confidence, targets = _full(logits_weak.detach()).softmax(-1).max(-1)
    kept = confidence > threshold  # (B,)
    losses = F.cross_entropy(_full(logits_strong), targets, reduction="none")
    weights = kept.to(losses)
    if balance:
        members = F.one_hot(targets, logits_weak.shape[-1]) * kept[:, None]  # (B, K)
        counts = members.sum(0).clamp_min(1)[targets]
        weights = weights * kept.sum() / counts
    # weights of rows that count are at least 1, so the bound only saves 0 / 0
    return (weights * losses.masked_fill(~kept, 0)).sum() / weights.sum().clamp_min(1)


@torch.no_grad()
def pseudo_targets(logits, threshold=0.95, temperature=1.0, hard=True):
    """Targets from predictions, and which of them are sure enough to be used.

    Parameters
    ----------
    logits : Tensor of shape (B, K)
        Of weakly augmented rows.
    threshold : float or Tensor of shape (K,), default=0.95
        A row is sure where its largest probability reaches it; one per class: that of
        the predicted class.
    temperature : float, default=1.0
        > 0; below 1 sharpens. With hard targets before the threshold, with soft ones in
        the targets only.
    hard : bool, default=True
        Whether targets are classes (of equal ones the first) or distributions.

    Returns
    -------
    targets : Tensor of shape (B,) or (B, K)
        Classes if ``hard``, else probabilities.
    mask : Tensor of bool of shape (B,)
        Whether a row is sure.
    """
    logits = _full(logits)
    p = (logits / temperature if hard else logits).softmax(-1)
    confidence, classes = p.max(-1)
    if isinstance(threshold, torch.Tensor) and threshold.ndim:
        threshold = threshold.to(confidence)[classes]
    targets = classes if hard else (logits / temperature).softmax(-1)
    return targets, confidence >= threshold


def pseudo_label(
    logits_weak, logits_strong, threshold=0.95, temperature=1.0, hard=True
):
    """Teach strong views what weak views are sure of: FixMatch's unlabeled term.

    Parameters
    ----------
    logits_weak, logits_strong : Tensor of shape (B, K)
        Of weakly and strongly augmented views of the same rows; no gradient passes to
        the first.
    threshold : float or Tensor of shape (K,), default=0.95
        A row counts where its largest probability reaches it; one per class: that of the
        predicted class.
    temperature : float, default=1.0
        > 0; see `pseudo_targets`.
    hard : bool, default=True
        Whether targets are classes or distributions.

    Returns
    -------
    loss : Tensor of shape ()
        Cross-entropy of the rows that count, summed and divided by the number of ALL
        rows; 0 where none counts.
    mask : Tensor of bool of shape (B,)
        Rows that count.

    References
    ----------
    .. [1] K. Sohn et al., "FixMatch: simplifying semi-supervised learning with
       consistency and confidence", NeurIPS 2020; equation 4.
    """
    targets, mask = pseudo_targets(logits_weak, threshold, temperature, hard)
    logits_strong = _full(logits_strong)
    if not hard:
        targets = targets.to(logits_strong)
    losses = F.cross_entropy(logits_strong, targets, reduction="none")  # (B,)
    return losses.masked_fill(~mask, 0).sum() / max(1, len(mask)), mask


def distillation(logits_teacher, logits_student, temperature=1.0):
    r"""Teach a student the probabilities of a teacher: SimCLRv2's last stage.

    .. math:: -\frac{1}{B} \sum_i \sum_k p_{ik} \ln q_{ik}, \quad
              p_i = \mathrm{softmax}(t_i / T), \; q_i = \mathrm{softmax}(s_i / T)

    Parameters
    ----------
    logits_teacher, logits_student : Tensor of shape (B, K)
        t and s, of the same views; no gradient passes to the first.
    temperature : float, default=1.0
        T, > 0; below 1 sharpens both. The loss is not multiplied by its square, as the
        authors' notebook does and their paper does not.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over the rows; at least the mean entropy of the teacher.

    References
    ----------
    .. [1] T. Chen et al., "Big self-supervised models are strong semi-supervised
       learners", NeurIPS 2020; equation 2.
    """
    p = (_full(logits_teacher.detach()) / temperature).softmax(-1)
    log_q = (_full(logits_student) / temperature).log_softmax(-1)
    return -(p * log_q).sum(-1).mean()


def sharpen(probabilities, temperature=0.5):
    r"""Move distributions toward their largest entries.

    .. math:: q_k = p_k^{1/T} / \sum_j p_j^{1/T}

    Parameters
    ----------
    probabilities : Tensor of shape (..., K)
        Last axis sums to one.
    temperature : float, default=0.5
        T, > 0; 1 changes nothing, towards 0 the largest entry takes all.

    Returns
    -------
    q : Tensor of shape (..., K)
        In float32 at least.

    References
    ----------
    .. [1] D. Berthelot et al., "MixMatch: a holistic approach to semi-supervised
       learning", NeurIPS 2019; equation 7.
    """
    # as logarithms: powers of small probabilities would all become 0
    return (_full(probabilities).log() / temperature).softmax(-1)


def guessed_labels(logits, temperature=0.5):
    """Guess one soft label per row from several views of it: MixMatch's targets.

    Parameters
    ----------
    logits : Tensor of shape (V, B, K)
        Of V views of the same rows; no gradient passes.
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
    return sharpen(_full(logits.detach()).softmax(-1).mean(0), temperature)


def mixup(x, order, weights):
    r"""Mix every row with another one.

    .. math:: x'_i = w_i x_i + (1 - w_i) x_{o(i)}

    Parameters
    ----------
    x : Tensor of shape (B, ...)
        Samples, or their targets as distributions.
    order : Tensor of int of shape (B,)
        The other row of each row.
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
        Of mixed rows; first those that come from labeled ones.
    targets : Tensor of shape (B, K)
        Mixed distributions.
    n_labeled : int
        Rows that come from labeled ones, >= 1.

    Returns
    -------
    labeled : Tensor of shape ()
        Mean cross-entropy of the first ``n_labeled`` rows.
    unlabeled : Tensor of shape ()
        Mean over the other rows AND the classes of the squared difference between
        target and softmax; 0 where there is no other row.

    References
    ----------
    .. [1] D. Berthelot et al., "MixMatch: a holistic approach to semi-supervised
       learning", NeurIPS 2019; equations 3 and 4.
    """
    logits = _full(logits)
    targets = targets.to(logits)
    labeled = F.cross_entropy(logits[:n_labeled], targets[:n_labeled])
    difference = targets[n_labeled:] - logits[n_labeled:].softmax(1)
    return labeled, difference.square().sum() / max(1, difference.numel())


def noisy_student_loss(
    logits_labeled, labels, logits_unlabeled, targets, label_smoothing=0.1
):
    """Learn from labels and from a teacher's answers, every row alike: Noisy Student.

    Parameters
    ----------
    logits_labeled : Tensor of shape (B, K)
    labels : Tensor of int of shape (B,)
    logits_unlabeled : Tensor of shape (M, K)
        M may be 0.
    targets : Tensor of shape (M,) or (M, K)
        The teacher's classes, or its probabilities.
    label_smoothing : float, default=0.1
        Share of a class's weight that is spread over all classes, in [0, 1]; for classes
        only, never for probabilities.

    Returns
    -------
    loss : Tensor of shape ()
        Mean cross-entropy of the labeled rows, plus M / B times that of the others.

    References
    ----------
    .. [1] Q. Xie et al., "Self-training with Noisy Student improves ImageNet
       classification", CVPR 2020; algorithm 1 and its public code.
    """
    loss = F.cross_entropy(
        _full(logits_labeled), labels, label_smoothing=label_smoothing
    )
    if len(logits_unlabeled) == 0:
        return loss
    logits_unlabeled = _full(logits_unlabeled)
    if targets.ndim == 2:
        targets, label_smoothing = targets.to(logits_unlabeled), 0.0
    unlabeled_loss = F.cross_entropy(
        logits_unlabeled, targets, label_smoothing=label_smoothing
    )
    return loss + len(logits_unlabeled) / len(logits_labeled) * unlabeled_loss


def uslt_local_loss(
    anchors, neighbors, mean_probabilities, adjustment_weight=5.0, temperature=0.25
):
    r"""Teach a row what its neighbor says, corrected for large clusters: USL-T's local.

    .. math:: L = \mathrm{KL}(t \,\|\, \mathrm{softmax}(z)), \quad
              t = \mathrm{softmax}((z' - \beta \ln \bar p) / T)

    where z and z' are the logits of a row and of its neighbor.

    Parameters
    ----------
    anchors, neighbors : Tensor of shape (B, K)
        Logits of rows and of one neighbor of each; no gradient passes to the neighbors.
    mean_probabilities : Tensor of shape (K,)
        Running mean of the neighbors' probabilities, before this batch is added to it.
        Paper: p bar; counted as 1e-8 at least.
    adjustment_weight : float, default=5.0
        beta, >= 0: how strongly targets turn from clusters that are large already.
    temperature : float, default=0.25
        T, > 0; below 1 sharpens the targets, after their softmax in the public code,
        which is the same.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over the rows, the entropy of the targets subtracted: 0 at the least.

    References
    ----------
    .. [1] X. Wang, L. Lian, S. X. Yu, "Unsupervised selective labeling for more
       effective semi-supervised learning", ECCV 2022; section 4 and its public code.
    """
    adjustment = adjustment_weight * mean_probabilities.clamp_min(TINY).log()  # (K,)
    adjusted = _full(neighbors.detach()) - adjustment
    targets = (adjusted / temperature).softmax(-1)  # (B, K)
    return F.kl_div(_full(anchors).log_softmax(-1), targets, reduction="batchmean")


def uslt_global_loss(
    logits_weak,
    logits_strong,
    threshold=0.95,
    cluster_weights="balanced",
    mean_over="kept",
):
    """Teach strong views the sure answers of plain views: USL-T's global loss.

    Parameters
    ----------
    logits_weak, logits_strong : Tensor of shape (B, K)
        Of the plain and of the augmented view; no gradient passes to the first.
    threshold : float, default=0.95
        Rows are kept where the largest probability is above it (not equal).
    cluster_weights : {"balanced", "renormalized"} or None, default="balanced"
        Weight of a kept row of a cluster with n_c of the n kept rows. "balanced":
        n / n_c; "renormalized": n / n_c over the number of clusters with kept rows, which
        is 1 on average; None: 1.
    mean_over : {"kept", "batch"}, default="kept"
        What the weighted sum is divided by. "kept": the weights of the kept rows;
        "batch": B.

    Returns
    -------
    loss : Tensor of shape ()
        0 with gradient 0 where no row is kept.

    Raises
    ------
    ValueError
        For unknown ``cluster_weights`` or ``mean_over``.

    References
    ----------
    .. [1] X. Wang, L. Lian, S. X. Yu, "Unsupervised selective labeling for more
       effective semi-supervised learning", ECCV 2022; section 4 and its public code.
    """
    if cluster_weights not in ("balanced", "renormalized", None):
        raise ValueError(
            f'cluster_weights={cluster_weights!r} is none of "balanced", '
            '"renormalized", None.'
        )
    if mean_over not in ("kept", "batch"):
        raise ValueError(f'mean_over={mean_over!r} is none of "kept", "batch".')
    confidence, targets = _full(logits_weak.detach()).softmax(-1).max(-1)
    kept = confidence > threshold  # (B,)
    losses = F.cross_entropy(_full(logits_strong), targets, reduction="none")
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
    r"""Teach the order of losses, pair by pair: learning loss.

    .. math:: \max(0, m - s_{ij} (\hat l_i - \hat l_j)), \quad
              s_{ij} = +1 \text{ if } l_i > l_j, \text{ else } -1, \quad j = B - 1 - i

    The size of a loss falls during training; what stays is which of two is larger.

    Parameters
    ----------
    predicted : Tensor of shape (B,)
        Predicted losses, the l with a hat.
    losses : Tensor of shape (B,)
        True ones; no gradient passes to them.
    margin : float, default=1.0
        m, >= 0: how far predictions of a pair shall be apart. Paper: xi.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over the B // 2 pairs of the first row with the last, the second with the
        last but one, and so on; ``margin`` where all predictions are equal, 0 for
        B = 1.

    Raises
    ------
    ValueError
        If the two have not the same number of entries along one axis.

    Notes
    -----
    The middle row of an odd batch has no partner and is left out. Of equal losses the
    first is taken for the smaller one, as in the public code.

    References
    ----------
    .. [1] D. Yoo, I. S. Kweon, "Learning loss for active learning", CVPR 2019,
       section 3.3.
    """
    if predicted.shape != losses.shape or predicted.ndim != 1:
        raise ValueError(
            f"predicted and losses have shapes {tuple(predicted.shape)} and "
            f"{tuple(losses.shape)}; both must be (B,)."
        )
    predicted, losses = _full(predicted), losses.detach()
    n_pairs = len(predicted) // 2
    difference = (predicted - predicted.flip(0))[:n_pairs]
    larger = (losses > losses.flip(0))[:n_pairs]
    sign = torch.where(larger, 1, -1)
    return F.relu(margin - sign * difference).sum() / max(1, n_pairs)


def temporal_consistency(logits, auxiliary, average):
    r"""Pull an auxiliary head toward the main one and toward the past: TOD's loss.

    .. math:: \frac{1}{BK} \sum_{ik} (s_{ik} - c_{ik})^2 + (c_{ik} - \bar s_{ik})^2

    Parameters
    ----------
    logits : Tensor of shape (B, K)
        Of the main head, s.
    auxiliary : Tensor of shape (B, K)
        Of the second head on the same features, c.
    average : Tensor of shape (B, K)
        Of the main head of the averaged network; no gradient passes to it.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over rows and classes; 0 where all agree or B = 0. TOD's is the sum of that
        of the labeled and that of the unlabeled rows.

    References
    ----------
    .. [1] S. Huang et al., "Semi-supervised active learning with temporal output
       discrepancy", ICCV 2021, and its public code.
    """
    s, c, past = _full(logits), _full(auxiliary), _full(average.detach())
    return ((s - c).square() + (c - past).square()).sum() / max(1, s.numel())


def clip_loss(images, texts, log_scale, positives=None):
    r"""Find each image's text in the batch, and each text's image: CLIP's loss.

    The mean of the two cross-entropies over rows and over columns of

    .. math:: e^s \frac{u_i \cdot v_j}{|u_i| |v_j|}

    with the diagonal as target.

    Parameters
    ----------
    images, texts : Tensor of shape (B, D)
        Rows i belong together; scaled to length 1 inside. A zero row stays zero.
    log_scale : Tensor of shape () or float
        s, the logarithm of one over the temperature.
    positives : Tensor of bool of shape (B, B) or None, default=None
        Which texts (columns) belong to which images (rows), the diagonal among them: the
        target is spread evenly over them. None: the diagonal alone, as published.

    Returns
    -------
    loss : Tensor of shape ()
        ln B where nothing can be told apart, and 0 for B = 1. Computed in float32 at
        least, also under autocast.

    Raises
    ------
    ValueError
        For images and texts of different shapes.

    References
    ----------
    .. [1] A. Radford et al., "Learning transferable visual models from natural language
       supervision", ICML 2021; figure 3.
    """
    if images.shape != texts.shape or images.ndim != 2:
        raise ValueError(
            f"images and texts have shapes {tuple(images.shape)} and "
            f"{tuple(texts.shape)}; both must be (B, D)."
        )
    with torch.autocast(images.device.type, enabled=False):
        scale = torch.as_tensor(log_scale, device=images.device).exp()
        logits = scale * (unit_rows(images) @ unit_rows(texts).T)  # (B, B)
        if positives is None:
            of_rows = of_columns = torch.arange(len(logits), device=logits.device)
        else:
            positives = positives.to(logits)
            of_rows = positives / positives.sum(1, keepdim=True)
            of_columns = (positives / positives.sum(0)).T
        loss = F.cross_entropy(logits, of_rows)
        return (loss + F.cross_entropy(logits.T, of_columns)) / 2


def _full(x):
    """Return x with at least the digits of float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit_rows(z):
    """Scale rows to length 1.

    Parameters
    ----------
    z : Tensor of shape (..., D)

    Returns
    -------
    z : Tensor of shape (..., D)
        In float32 at least. The squared length counts as 1e-12 at least, so that a zero
        row stays zero.
    """
    z = _full(z)
    # rows with large entries are made smaller first: their squares could overflow
    z = z / z.detach().abs().amax(-1, keepdim=True).clamp_min(1)
    return z * z.square().sum(-1, keepdim=True).clamp_min(1e-12).rsqrt()
