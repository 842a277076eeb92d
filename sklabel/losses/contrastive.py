"""Embedding losses: agreement of two views of a sample, or of an image and its text."""

import math

import torch
from torch.nn import functional as F

from .._core.checks import check_number
from ._precision import at_least_float32, unit_rows


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
        "both": the sum of the means over the anchors of each view, which is twice the
        mean over all 2B anchors, as in SimCLR's code. "first": the mean over the first
        views only, as in SCAN's pretext task.

    Returns
    -------
    loss : Tensor of shape ()
        2 ln(2B - 1) ("both") if all rows are equal, and 0 for B = 1. Computed in at
        least float32, also under autocast.

    Raises
    ------
    ValueError
        For views of different shapes or unknown ``anchors``.

    Notes
    -----
    One product of 2B x 2B (B x 2B with "first"). The similarity of an anchor with
    itself is masked before the softmax, so no gradient passes through it. Equal samples
    in a batch are negatives of each other.

    References
    ----------
    .. [1] T. Chen et al., "A simple framework for contrastive learning of visual
       representations", ICML 2020; equation 1.
    """
    check_number(0, above=True, temperature=temperature)
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
        z = at_least_float32(torch.cat([z1, z2]))  # (2B, D)
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
        Rows of other samples, n in the formula; not normalized, without a gradient.
    temperature : float, default=0.2
        T, > 0.

    Returns
    -------
    loss : Tensor of shape ()
        Mean over the queries; ln(1 + Q) if all rows are equal. Computed in at least
        float32, also under autocast.

    References
    ----------
    .. [1] K. He et al., "Momentum contrast for unsupervised visual representation
       learning", CVPR 2020; equation 1.
    """
    check_number(0, above=True, temperature=temperature)
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys, queue = (
            at_least_float32(queries),
            at_least_float32(keys),
            at_least_float32(queue.detach()),
        )
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
        A zero row costs 1. BYOL's training loss is the sum over both directions.

    References
    ----------
    .. [1] J.-B. Grill et al., "Bootstrap your own latent", NeurIPS 2020; equation 2.
    """
    p, t = unit_rows(predictions), unit_rows(targets.detach())
    return (p - t).square().sum(-1).mean()


@torch.no_grad()
def sinkhorn(scores, epsilon=0.05, n_iterations=3):
    """Assign rows to prototypes softly, with equal shares for all prototypes.

    Parameters
    ----------
    scores : Tensor of shape (n, K)
        Similarity of each row to each prototype.
    epsilon : float, default=0.05
        Softness, > 0.
    n_iterations : int, default=3
        Each iteration scales first the prototypes and then the rows to their shares.

    Returns
    -------
    codes : Tensor of shape (n, K)
        Rows sum to 1 (after one iteration or more), columns nearly to n / K. Without a
        gradient, in at least float32.

    References
    ----------
    .. [1] M. Caron et al., "Unsupervised learning of visual features by contrasting
       cluster assignments", NeurIPS 2020; equation 5.
    """
    check_number(0, above=True, epsilon=epsilon)
    check_number(0, whole=True, n_iterations=n_iterations)
    # as logarithms: nothing overflows, and no row or prototype is ever divided by 0
    log_codes = at_least_float32(scores) / epsilon
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
        ln K if nothing is learned.

    References
    ----------
    .. [1] M. Caron et al., "Unsupervised learning of visual features by contrasting
       cluster assignments", NeurIPS 2020; equation 2 and section 3.2.
    """
    check_number(0, above=True, temperature=temperature)
    n_crops, n_rows = scores.shape[:2]
    log_p = (at_least_float32(scores) / temperature).log_softmax(-1)
    others = log_p.sum(0) - torch.stack([log_p[a] for a in assigned])  # (A, B, K)
    return -(codes.detach() * others).sum() / (len(codes) * (n_crops - 1) * n_rows)


def lloyd_groups(z, n_groups, n_iterations=5):
    """Group the rows of one batch by differentiable k-means.

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
        Group of each row; ties go to the first.
    centers : Tensor of shape (K, D)
        Mean of the rows of each group, 0 if it is empty; not normalized. Gradients pass
        to the averaged rows.

    Raises
    ------
    ValueError
        If there are more groups than rows.
    """
    check_number(1, whole=True, n_groups=n_groups)
    check_number(0, whole=True, n_iterations=n_iterations)
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
    """Identify the group of each row among those of the other view: CLD's group loss.

    Each view is grouped by `lloyd_groups`. A row of one view is then classified among
    the centers of the other view, with the other view's group of the same sample as
    target.

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
        Mean over both directions; ln K if all rows are equal.

    References
    ----------
    .. [1] X. Wang, Z. Liu, S. X. Yu, "Unsupervised feature learning by cross-level
       instance-group discrimination", CVPR 2021; equation 4.
    """
    check_number(0, above=True, temperature=temperature)
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = at_least_float32(z1), at_least_float32(z2)
        labels1, centers1 = lloyd_groups(z1, n_groups, n_iterations)
        labels2, centers2 = lloyd_groups(z2, n_groups, n_iterations)
        first = F.cross_entropy(z1 @ centers2.T / temperature, labels2)
        second = F.cross_entropy(z2 @ centers1.T / temperature, labels1)
    return (first + second) / 2


def clip_loss(images, texts, log_scale, positives=None):
    r"""Identify each image's text in the batch, and each text's image: CLIP's loss.

    The mean of the two cross-entropies over rows and over columns of

    .. math:: e^s \frac{u_i \cdot v_j}{|u_i| |v_j|}

    with the diagonal as target.

    Parameters
    ----------
    images, texts : Tensor of shape (B, D)
        Rows i belong together; scaled to length 1 inside. A zero row stays zero.
    log_scale : Tensor of shape () or float
        s, the logarithm of 1 / temperature.
    positives : Tensor of bool of shape (B, B) or None, default=None
        Which texts (columns) belong to which images (rows), including the diagonal; the
        target is spread evenly over them. None: the diagonal only, as published.

    Returns
    -------
    loss : Tensor of shape ()
        ln B if all rows are equal, and 0 for B = 1. Computed in at least float32, also
        under autocast.

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
