"""SRAAL: state-relabeling adversarial active learning (Zhang et al., 2020)."""

from typing import Annotated, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .._core.adversary import (
    REDUCTIONS,
    AdversarialCodes,
    AdversarialRole,
    adversary_loss,
    discriminator_loss,
    kl_divergence,
    share_right,
)
from .._core.devices import to_device
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    AtLeastTwo,
    Count,
    NonNegative,
    Optimizer,
    Positive,
    ProbabilisticClassifier,
    SampleCount,
    Schedule,
    one_of,
)
from .._core.processes import gathered
from .._core.roles.selection import FitsClassifierMixin
from .._core.samplers import Mixed, count_labeled
from ..modules import filled_


def uncertainty(p):
    r"""Return the uncertainty of predictions: SRAAL's online uncertainty indicator.

    .. math:: U = 1 - \frac{\mathrm{MINVar}}{\mathrm{Var}(V)} \max V

    Var is the variance of the probabilities V of the classes, and MINVar is the
    variance with the same largest probability and the rest spread evenly over the other
    classes.

    Parameters
    ----------
    p : Tensor of shape (B, K)
        Probabilities.

    Returns
    -------
    doubt : Tensor of shape (B,)
        In [0, 1]; 0 if one class is certain, or if there is only one class.

    References
    ----------
    .. [1] B. Zhang et al., "State-relabeling adversarial active learning", CVPR 2020;
       equations 4 and 5.
    """
    p = p.double()
    n_classes, top = p.shape[1], p.max(1).values
    if n_classes == 1:
        return torch.zeros_like(top)
    even = 1 / n_classes
    rest = (1 - top) / (n_classes - 1)
    least = ((top - even) ** 2 + (n_classes - 1) * (rest - even) ** 2) / n_classes
    variance = ((p - even) ** 2).mean(1)
    # rounding is no variance, and the least one is no larger
    share = torch.where(variance > 1e-15, (least / variance).clamp(max=1), 1.0)
    return (1 - share * top).clamp(0, 1)


class _SRAAL(AdversarialCodes):
    _: KW_ONLY
    head: nn.Linear  # of the codes
    doubts: torch.Tensor | None = None  # of each row; None: by the head, as it learns
    label_weight: float = 1.0

    training_only = ("doubts",)

    def doubt(self, mu, rows):
        """Return the uncertainty (B', 1) of unlabeled rows, given their codes."""
        if self.doubts is not None:
            return to_device(self.doubts, rows.device)[rows, None]
        with torch.no_grad():
            return uncertainty(self.head(mu).softmax(1)).to(mu.dtype)[:, None]

    def loss(self, x, y):
        n = count_labeled(y)
        sizes = [n, len(x) - n]
        mu, logvar, z, error, kl = self.drawn(x, sizes)
        logits = self.head(z[:n])
        class_loss = cross_entropy(logits, y[:n])
        # the classifier is a decoder, too, with a divergence of its own
        seen = gathered(mu[:n]), gathered(logvar[:n])
        of_classes = kl_divergence(*seen, self.kl_reduction)
        supervised = class_loss + self.kl_weight * of_classes
        seen, judged = self.judged(mu, sizes)
        doubt = self.doubt(mu[n:].detach(), -1 - y[n:])
        adversary = adversary_loss(*seen)
        discriminator = discriminator_loss(*judged, doubt)
        loss = error + self.kl_weight * kl + self.label_weight * supervised
        loss = loss + self.adversary_weight * adversary
        return loss + discriminator, {
            "reconstruction": error.detach() / 2,
            "kl": kl.detach(),
            "class_loss": class_loss.detach(),
            "train_accuracy": (logits.argmax(1) == y[:n]).float().mean(),
            "doubt": doubt.mean(),
            "adversary": adversary.detach(),
            "discriminator": discriminator.detach(),
            "discriminator_accuracy": share_right(judged),
        }


class SRAALSelector(FitsClassifierMixin, AdversarialRole, Learner):
    """Select rows that are unlike the labeled rows and that a classifier is unsure of.

    As in VAAL, an autoencoder learns codes that a discriminator cannot classify as
    labeled or unlabeled. The codes must also predict the classes of the labeled rows,
    and for the discriminator an unlabeled row counts as labeled to the degree that a
    classifier is confident of it. The rows that the discriminator most confidently
    classifies as unlabeled are chosen. Read more in the :ref:`User Guide <sraal>`.

    Parameters
    ----------
    classifier : estimator with predict_proba or None
        Gives the uncertainty of each row; cloned and fitted, or used as is in a
        :class:`sklearn.frozen.FrozenEstimator`; in a loop, it is the loop's classifier.
        None: the classifier on the codes, during training.
    n_components : int
        Length of a code.
    label_weight : float
        Weight of the classification loss of the labeled rows, >= 0. Paper: lambda 2.
    kl_weight : float
        Weight of the divergence of the codes from a normal distribution, >= 0.
        Published: 1, on the sum.
    kl_reduction : {"mean", "sum"}
        See :class:`VAALSelector`: with "sum" and a weight of 1, codes carry no
        information.
    adversary_weight : float
        Weight of the adversarial loss, by which the autoencoder makes all rows look
        labeled, >= 0. Paper: lambda 3.
    vae_steps : int
        Steps of the autoencoder per step of the discriminator.
    width : int or "auto"
        Channels of the first of four convolutions, doubled from one to the next;
        vectors go through two layers of 8 times as many units. Published: 128. "auto":
        16.
    max_epochs : int
        Passes over the unlabeled rows, or over the labeled rows if that takes more
        steps.
    batch_size : int
        Labeled samples per step, and as many unlabeled ones; labeled rows are repeated
        as needed.
    optimizer
        Published: Adam.
    lr : float
        Peak learning rate of both networks. Published: 5e-4.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in labeling order: the highest score first, ties by lowest row
        number.
    scores_ : ndarray of shape (n_rows,)
        Probability of being unlabeled, from the discriminator; ``-inf`` for labeled
        rows and for files that cannot be read.
    assignments_ : ndarray of shape (n_rows,)
        Position in ``sample_indices_`` of the nearest chosen row, by the vectors
        themselves or by the codes of images; -1 for files that cannot be read.
    classes_ : ndarray of shape (n_classes,)
        Classes, sorted; with ``warm_start`` those of earlier fits too.
    classifier_ : estimator
        Fitted classifier, if there is one.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch the same as in VAAL, and
        ``class_loss``, ``train_accuracy`` and ``doubt`` (mean uncertainty of the
        unlabeled rows). Absent if every row is labeled.
    encoder_ : nn.Module
        Trained encoder, without the layer that makes the codes.
    n_features_in_ : int
        Values per sample.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, more rows are requested than
        are unlabeled, or too few files can be read.

    Warns
    -----
    CollapseWarning
        If the codes carry no information about the rows, or the discriminator is at
        chance at the end; the choice is then random.

    See Also
    --------
    VAALSelector : Does not use the classes of the labels.

    Notes
    -----
    Differences from the paper: those of :class:`VAALSelector`. In the paper the
    discriminator minimizes ``-log(U - D)`` for unlabeled rows, which is not defined if
    D is above U; here it minimizes the cross-entropy with the target ``1 - U``. The
    uncertainty of a ``classifier`` is computed once, not during its training. The first
    labels are not selected by this method: use :class:`CoreSetSelector`, as the paper
    does on its codes.

    References
    ----------
    .. [1] B. Zhang, L. Li, S. Yang, S. Wang, Z.-J. Zha, Q. Huang, "State-relabeling
       adversarial active learning", CVPR 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import SRAALSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 100, y, -1)
    >>> selector = SRAALSelector(20, max_epochs=3, width=8, lr=2e-3, random_state=0)
    >>> rows = selector.fit_select(X, y_partly)
    >>> bool(rows.min() >= 100)
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    classifier: ProbabilisticClassifier | None = None
    n_components: Count = 32
    label_weight: NonNegative = 1.0
    kl_weight: NonNegative = 0.01
    kl_reduction: Annotated[str, one_of(REDUCTIONS)] = "mean"
    adversary_weight: NonNegative = 1.0
    vae_steps: Count = 1
    width: Count | Literal["auto"] = "auto"
    max_epochs: Count = 50
    batch_size: AtLeastTwo = 128
    optimizer: Optimizer = "adam"
    lr: Positive = 5e-4
    schedule: Schedule = "constant"

    def _train(self, pool, seed):
        samples = pool.X
        codes, places = self._encode_y(pool.y, samples)
        doubts = self._doubts(pool, seed)
        mixed = Mixed(samples, codes, 1.0, include_labeled=False)
        module = self._build_module(*samples.statistics(), places)
        module.doubts = doubts
        identity = () if doubts is None else (doubts.numpy(),)
        self._stage("fit", module, mixed, identity=identity, predicts=False)

    def _doubts(self, pool, seed):
        """Return the classifier's uncertainty about each row (n,); None without one."""
        self._forget("classifier_")
        if self.classifier is None:
            return None
        random = np.random.RandomState(seed)
        self.classifier_ = self._fit_classifier(pool.given, pool.y, random)
        p = np.asarray(self.classifier_.predict_proba(pool.given), np.float64)
        p = np.where(np.isnan(p), 1 / p.shape[1], p)  # not read, and never drawn
        return uncertainty(torch.from_numpy(p)).float()

    def _train_nothing(self):
        super()._train_nothing()
        self._forget("classifier_", "classes_")

    def _build_module(self, mean, std, places=None):
        before = self._continued
        head = nn.Linear(self.n_components, len(self.classes_))
        given = {"head": head, "label_weight": self.label_weight}
        module = self._build_codes(_SRAAL, mean, std, **given)
        if before is not None:  # what the codes are made of fits
            module.head = filled_(head.to(before.head.weight), before.head, places)
        return module
