"""CCL: codes of an autoencoder around one center per class (Roda and Geva, 2024)."""

from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.utils.validation import check_is_fitted

from .._core.codes import CenteredCodes, CodesMixin
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    Count,
    NonNegative,
    Optimizer,
    Positive,
    Schedule,
)
from .._core.processes import gathered
from .._core.roles.classification import ClassificationRole
from .._core.samplers import FixedSteps, Mixed, Shuffled, split_labeled
from ..embedding import AutoencoderTransformer
from ..losses import contrastive_clustering, target_divergence

# squared length of standardized codes
_LENGTH = 10


class _MixedRounds(Mixed):
    """Labeled rows and rows of the whole set, in epochs of a fixed number of steps."""

    def __init__(self, samples, targets, ratio, weights, n_steps):
        super().__init__(samples, targets, ratio, weights=weights)
        self.n_steps = n_steps
        # only the contrast asks for labels: all else is learned from every row, also
        # where each has a label
        self.unlabeled = samples.good

    def n_batches(self, batch_size):
        return self.n_steps

    def epoch(self, batch_size):
        labeled = self._labeled_stream(batch_size)
        size = self.n_unlabeled(batch_size)
        for rows in FixedSteps(self.samples, self.n_steps).epoch(size):
            yield next(labeled), rows


class _CCL(CenteredCodes):
    """The centers are in the order of the classes."""

    contrastive_weight: float
    contrast: str
    temperature: float
    update_centers: bool = False
    shift: torch.Tensor = torch.zeros(())  # (D,), of the codes
    scale: torch.Tensor = torch.ones(())  # (D,)

    def __post_init__(self):
        super().__post_init__()
        for name in ("shift", "scale"):
            self.register_buffer(name, vars(self).pop(name))

    def standardized(self, z):
        """Return codes (B, D) in the space where distances are computed."""
        return (z - self.shift) / self.scale

    def assign(self, z):
        return super().assign(self.standardized(z))

    @torch.no_grad()
    def move_centers(self, net, mixed):
        """Move each center to the mean code of the labeled rows of its class."""
        codes = net.evaluate(mixed.samples, mixed.labeled, self.embed)
        z = self.standardized(codes.to(net.device))
        members = _members(mixed, len(self.centers))
        sizes = members.sum(1, keepdims=True)
        known = torch.from_numpy(sizes[:, 0] > 0).to(net.device)
        means = torch.from_numpy(members / np.where(sizes > 0, sizes, 1)).to(z) @ z
        self.centers.copy_(torch.where(known[:, None], means, self.centers))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ("shift", "scale"):  # models of before have neither
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def loss(self, x, y):
        z_labeled, z, labels, rows = split_labeled(self.embed(x), y)
        contrastive_loss = contrastive_clustering(
            gathered(self.standardized(z_labeled)),
            gathered(labels),
            self.centers,
            self.temperature,
            self.contrast,
            normalize=self.contrast == "rows",
            alpha=self.alpha,
        )
        q = self.assign(z)
        cluster_loss = target_divergence(q, self.targets[rows])
        loss = self.contrastive_weight * contrastive_loss
        loss = loss + self.cluster_weight * cluster_loss
        metrics = {
            "contrastive_loss": contrastive_loss.detach(),
            "cluster_loss": cluster_loss.detach(),
        }
        if self.reconstruction_weight:
            error = self.embed.error(z, x[len(labels) :])
            metrics["reconstruction_loss"] = error.detach()
            loss = loss + self.reconstruction_weight * error
        return loss, metrics

    def after_epoch(self, net, mixed):
        if self.update_centers:
            self.move_centers(net, mixed)
        self.q = net.evaluate(mixed.samples, mixed.samples.good)
        predicted = self.q.argmax(1)
        labeled = np.searchsorted(mixed.samples.good, mixed.labeled)
        truth = torch.from_numpy(mixed.targets)[mixed.labeled]
        right = predicted[labeled] == truth
        counts = torch.bincount(predicted, minlength=len(self.centers))
        confident = self.q.max(1).values > 0.5
        return {
            "labeled_accuracy": float(right.float().mean()),
            "changed_share": float((predicted != self.labels).float().mean()),
            "confident_share": float(confident.float().mean()),
            "class_shares": (counts / counts.sum()).tolist(),
        }


def _members(mixed, n_classes):
    """Return the weight of each labeled row in its class, (K, n_labeled)."""
    members = np.eye(n_classes)[mixed.targets[mixed.labeled]].T
    return members if mixed.weights is None else members * mixed.weights


class CCLClassifier(CodesMixin, ClassificationRole, Learner):
    """Classify images by short codes that are pulled toward one center for each class.

    An autoencoder is trained on all images first; the mean code of the labeled images
    of a class is the class's center. Then codes and centers move together: every image
    is assigned softly to all centers and the assignment is trained toward a sharper
    version of itself, labeled images are pulled to their own center and pushed away
    from the others, and the decoder keeps reconstructing the images. Read more in the
    :ref:`User Guide <ccl>`.

    Parameters
    ----------
    contrastive_weight : float
        Weight of the contrastive loss of the labeled rows, >= 0. Paper: not given.
    cluster_weight : float
        Weight of the clustering loss of all rows, >= 0. Paper: not given; 0.1 in DCEC.
    reconstruction_weight : float
        Weight of the reconstruction of all rows, >= 0; 0: the decoder is not trained.
    unlabeled_ratio : float
        Rows of X, labeled or not, per labeled row in a batch, > 0. With the default
        ``batch_size`` a batch has 256 rows in total, as in DCEC.
    contrast : {"assignment", "rows", "literal", "centers"}
        What a labeled row is contrasted with. "assignment": the other centers, by the
        distances that predict classes. "rows": for its center, the rows of other
        classes in the batch, by cosine. "literal": the formula of "rows" as printed in
        the paper, without the row itself in the denominator, by dot product and summed
        over classes; it has no lower bound, so set ``contrastive_weight`` to about
        1e-4. "centers": the other centers, by dot product. See
        :func:`sklabel.losses.contrastive_clustering`.
    temperature : float
        Divides the similarities in the contrastive loss, > 0. Paper: tau, not given.
    alpha : float
        Degrees of freedom of the assignment, > 0.
    standardize_codes : bool
        Whether distances are computed on standardized codes: each feature is centered
        and divided by its standard deviation over X, and by a common factor that makes
        the mean squared length 10. Codes of photographs lie close together, far from 0.
    update_centers : bool
        Whether each center becomes the mean code of the labeled rows of its class after
        every ``update_interval`` steps.
    update_interval : int
        Steps between two updates of the targets; an epoch of ``net_.history``. Small
        data sets learn faster with fewer.
    embedder : estimator or None
        Computes the codes; cloned and fitted, or used as is in a
        :class:`sklearn.frozen.FrozenEstimator`. None:
        :class:`sklabel.embedding.AutoencoderTransformer` with codes of length 10, or 64
        for color images. Other embedders have no decoder and need
        ``reconstruction_weight=0``; on photographs, contrastive embedders such as
        SimCLR are better. Searches reach its parameters as ``embedder__temperature``.
    calibration_size : int, float, "auto" or None
        Number or share of the labeled rows that are withheld from training to fit the
        temperature of :meth:`predict_proba`; their images count as unlabeled. "auto": a
        fifth, if classes have ten labels on average; with fewer, no row is withheld,
        and the mean confidence in unlabeled rows is set to the cross-validated accuracy
        of a linear probe on the vectors of the embedder. None: probabilities as
        trained, which are usually too unsure here.
    max_epochs
        Published: 10 after each of 20 queries for labels.
    batch_size : int
        Labeled samples per step; labeled rows are repeated as needed.

    Attributes
    ----------
    class_centers_ : ndarray of shape (n_classes, n_components)
        Center of each class, in the space of the codes.
    embedder_ : estimator
        Fitted embedder, before this training.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per ``update_interval`` ``train_loss``,
        ``contrastive_loss``, ``cluster_loss``, ``reconstruction_loss``,
        ``labeled_accuracy`` (on the rows trained with), ``changed_share`` (rows that
        changed their class), ``confident_share`` (rows with a probability above 0.5)
        and ``class_shares`` (of the rows, by predicted class); with
        ``calibration_size`` also ``held_accuracy`` (on the rows withheld).
    n_iter_ : int
        Rounds of ``update_interval`` steps trained.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, too few
        rows are labeled for ``calibration_size``, or the embedder has no decoder where
        a reconstruction is wanted.

    Warns
    -----
    CollapseWarning
        If, at the end, a class is predicted for no row, or for nearly all rows; or if,
        with ``calibration_size``, the accuracy on the withheld rows has fallen at the
        end.

    See Also
    --------
    FixMatchClassifier : Learns from augmented views.
    sklabel.clustering.DCECClusterer : The same without labels.

    Notes
    -----
    Unlabeled rows are -1 in y, as in :mod:`sklearn.semi_supervised`; None and NaN mean
    the same. The authors have published no code. The paper gives no loss weights,
    temperature, batch size or networks, and its contrastive formula has several
    readings, see ``contrast``. Differences from the paper: every batch has labeled rows
    beside the rows of X, so that a few labels count in each step; and the contrastive
    loss uses the distances that predict classes, on standardized codes, with centers
    that follow the labels: with the printed formula, codes of photographs end near one
    single center. As printed: ``contrast="literal", contrastive_weight=1e-4,
    standardize_codes=False, update_centers=False``.

    Each class has one center, and with ``contrast="rows"`` all classes of a batch count
    equally, so ``class_weight`` has little effect; it has most with
    ``contrast="centers"``. The entropy of :meth:`predict_proba` is the paper's score
    for the rows to label next.

    References
    ----------
    .. [1] H. Roda and A. B. Geva, "Semi-supervised active learning using convolutional
       auto-encoder and contrastive learning", Frontiers in Artificial Intelligence 7,
       2024; equations 2 to 7.
    .. [2] X. Guo, X. Liu, E. Zhu, J. Yin, "Deep clustering with convolutional
       autoencoders", ICONIP 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.classification import CCLClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 100, y, -1)
    >>> clf = CCLClassifier(max_steps=5, image_shape=(8, 8), random_state=0)
    >>> clf.fit(X, y_partly).transduction_.shape
    (1797,)
    """

    contrastive_weight: NonNegative = 1.0
    cluster_weight: NonNegative = 1.0
    _: KW_ONLY
    reconstruction_weight: NonNegative = 1.0
    unlabeled_ratio: Positive = 7
    contrast: Literal["assignment", "rows", "literal", "centers"] = "assignment"
    temperature: Positive = 0.5
    alpha: Positive = 1.0
    standardize_codes: bool = True
    update_centers: bool = True
    update_interval: Count = 80
    embedder: BaseEstimator | None = None
    max_epochs: Count = 100
    batch_size: Count = 32
    optimizer: Optimizer = "adam"
    schedule: Schedule = "constant"

    _default_embedder = AutoencoderTransformer

    def _train(self, X, labeled, seed):
        rows = labeled.rows
        mixed = _MixedRounds(
            rows,
            labeled.codes,
            self.unlabeled_ratio,
            labeled.weights,
            self.update_interval,
        )
        if self._continued is None:
            used = rows.readable(X)
            self.embedder_ = self._fit_embedder(used)
            space = self._find_centers(used, mixed, seed)
        else:
            before = self._continued
            space = before.centers.detach(), before.shift, before.scale
        n_steps = Shuffled(rows).n_batches(mixed.n_unlabeled(self.batch_size))
        self._stage(
            "fit",
            self._new_module(*space),
            mixed,
            watch=labeled.watch,
            max_steps=self.max_steps or self.max_epochs * n_steps,
            # the net counts in rounds
            warmup_epochs=self.warmup_epochs * n_steps / self.update_interval,
        )
        return mixed

    def _find_centers(self, X, mixed, seed):
        """Return the mean code of each class, and the standardization of codes.

        Means weight the labeled rows as they are drawn.

        Parameters
        ----------
        X : array-like
            Rows to train on.
        mixed : Mixed
        seed : int
        """
        Z = self._first_codes(X).astype(np.float64)
        shift, scale = np.zeros(Z.shape[1]), np.ones(Z.shape[1])
        if self.standardize_codes:
            # of length sqrt(10), as codes of 10 are
            shift, scale = Z.mean(0), Z.std(0)
            scale = np.where(scale > 0, scale, 1) * np.sqrt(Z.shape[1] / _LENGTH)
        Z = (Z - shift) / scale
        labeled = np.searchsorted(mixed.samples.good, mixed.labeled)
        n_classes = len(self.classes_)
        members = _members(mixed, n_classes)
        sizes = members.sum(1, keepdims=True)
        centers = members @ Z[labeled] / np.where(sizes > 0, sizes, 1)
        known = sizes[:, 0] > 0
        if not known.all():
            # labels on weight 0 or unreadable files alone: a center of k-means that is
            # near the mean of no other class
            n_clusters = min(n_classes, len(np.unique(Z, axis=0)))
            found = KMeans(n_clusters, n_init=20, random_state=seed).fit(Z)
            found = found.cluster_centers_[np.arange(n_classes) % n_clusters]
            distances = np.linalg.norm(centers[known, None] - found, axis=2)
            _, taken = linear_sum_assignment(distances)
            centers[~known] = np.delete(found, taken, axis=0)
        return [torch.from_numpy(a.astype(np.float32)) for a in (centers, shift, scale)]

    def _n_components(self):
        # colors and places take more numbers than strokes do
        return 64 if self.sample_shape_[0] == 3 and len(self.sample_shape_) == 3 else 10

    def _new_module(self, centers, shift, scale):
        return _CCL(
            self._build_embed(),
            centers,
            contrastive_weight=self.contrastive_weight,
            cluster_weight=self.cluster_weight,
            reconstruction_weight=self.reconstruction_weight,
            contrast=self.contrast,
            temperature=self.temperature,
            alpha=self.alpha,
            update_centers=self.update_centers,
            shift=shift,
            scale=scale,
        )

    def _build_module(self, mean, std):
        size = self._code_length()
        shift, scale = torch.zeros(size), torch.ones(size)
        return self._new_module(torch.zeros(len(self.classes_), size), shift, scale)

    @property
    def class_centers_(self):
        """Centers of the classes, in the space of the codes."""
        check_is_fitted(self)
        module = self.net_.module_
        centers = module.centers.detach() * module.scale + module.shift
        return centers.cpu().numpy()

    def _check_health(self, mixed):
        """Warn if the centers have lost a class, or all but one."""
        if not self.net_.history:
            return  # interrupted in the first epoch
        shares = np.array(self.net_.history[-1, "class_shares"])
        self._check_shares(
            shares,
            mixed.class_shares(len(shares)),
            "predictions",
            len(mixed.unlabeled),
            f"a cluster_weight below {self.cluster_weight}",
        )
