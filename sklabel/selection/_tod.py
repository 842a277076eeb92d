"""TOD: rows whose prediction has changed (Huang et al., 2021)."""

import functools
from typing import Literal

import numpy as np
import torch
from scipy.special import softmax
from torch import nn
from torch.nn.functional import cross_entropy

from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    AtLeastTwo,
    Augment,
    BelowOne,
    Count,
    NonNegative,
    Optimizer,
    Positive,
    SampleCount,
    Schedule,
)
from .._core.roles.selection import PredictedLossRole
from .._core.samplers import Mixed, count_labeled
from ..losses import temporal_consistency
from ..modules import Method, ema_update_, filled_, frozen_copy, mean_decay


class _TwoHeads(nn.Module):
    """Logits of the main head and of an auxiliary one on the same features."""

    def __init__(self, backbone, n_classes):
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(
            nn.Linear(backbone.n_features_out, n_classes) for _ in range(2)
        )

    def forward(self, x):
        h = self.backbone(x)
        return [head(h).float() for head in self.heads]  # twice (B, K)


class _TOD(Method):
    online: _TwoHeads
    average: (
        _TwoHeads  # in training it normalizes its own batches, as in the public code
    )
    augment: nn.Module
    ema_decay: float
    consistency_weight: float
    n_steps: int = 0  # of all cycles

    @property
    def backbone(self):
        return self.online.backbone

    def forward(self, x):
        return self.online(x)[0]  # (B, K)

    def loss(self, x, y):
        n_labeled = count_labeled(y)
        x = self.augment(x)
        # one forward: BatchNorm sees labeled and unlabeled rows together
        logits, auxiliary = self.online(x)
        with torch.no_grad():
            past, _ = self.average(x)
        class_loss = cross_entropy(logits[:n_labeled], y[:n_labeled])
        consistency = sum(
            temporal_consistency(logits[rows], auxiliary[rows], past[rows])
            for rows in (slice(n_labeled), slice(n_labeled, None))
        )
        hits = logits[:n_labeled].argmax(1) == y[:n_labeled]
        return class_loss + self.consistency_weight * consistency, {
            "class_loss": class_loss.detach(),
            "consistency": consistency.detach(),
            "train_accuracy": hits.float().mean(),
        }

    def after_step(self):
        self.n_steps += 1
        decay = mean_decay(self.n_steps, self.ema_decay)
        ema_update_(self.average, self.online, decay, copy_buffers=False)

    def get_extra_state(self):
        return torch.tensor(self.n_steps)

    def set_extra_state(self, state):
        self.n_steps = int(state)


def temporal_discrepancy(
    logits, logits_before, measure="squared", on="probabilities", places=None
):
    r"""Difference of two predictions for each row.

    Parameters
    ----------
    logits : array-like of shape (n, n_classes)
        Logits of the current network.
    logits_before : array-like of shape (n, n_classes_before)
        Logits of the earlier network.
    measure : {"squared", "norm"}, default="squared"
        Half the squared difference, summed over the classes, or the length of the
        difference.
    on : {"probabilities", "logits"}, default="probabilities"
        What is compared.
    places : array-like of int of shape (n_classes_before,) or None, default=None
        Positions of the earlier classes among those of ``logits``; None: the classes
        are the same. New classes had probability 0; with logits they are left out.

    Returns
    -------
    discrepancy : ndarray of shape (n,), float64
        "squared" on probabilities: 0 to 1; "norm": 0 to the square root of 2.

    References
    ----------
    .. [1] S. Huang et al., "Semi-supervised active learning with temporal output
       discrepancy", ICCV 2021; the public code has "squared".
    """
    now, before = (np.asarray(a, dtype=np.float64) for a in (logits, logits_before))
    places = np.arange(now.shape[1]) if places is None else np.asarray(places)
    if on == "logits":
        difference = now[:, places] - before
    else:
        difference = softmax(now, axis=1)
        difference[:, places] -= softmax(before, axis=1)
    squared = np.square(difference).sum(axis=1)
    return squared / 2 if measure == "squared" else np.sqrt(squared)


class TODSelector(PredictedLossRole, Learner):
    """Select the rows whose predictions changed most in a round of training.

    A classifier is trained on the labeled rows, and on all rows to agree with the
    network of its averaged weights. The loss of a row tends to be high if its
    prediction differs from that of the network at the end of the last fit: the
    difference is a lower bound of the loss. The method is made for rounds: call ``fit``
    again with more labels and ``warm_start=True``. Read more in the :ref:`User Guide
    <tod>`.

    Parameters
    ----------
    measure : {"squared", "norm"}
        Half the squared difference, summed over the classes (released code), or the
        length of the difference (paper). Both make the same choice.
    on : {"probabilities", "logits"}
        What is compared.
    first_cycle : {"lowest", "random", "highest"}
        Choice in the first fit, which has no earlier fit to compare with. "lowest": the
        rows whose prediction differs least from the untrained network's, as in the
        released code; these are the least confident. "random": random rows. "highest":
        the rows that differ most.
    consistency_weight : float
        Weight of the agreement of the two heads and the averaged network, >= 0.
        Published: 0.02 for CIFAR-10, 0.05 for CIFAR-100, 0.005 for SVHN, 0.1 for
        Caltech-101.
    ema_decay : float
        Decay of the averaged weights, in [0, 1). It grows as 1 - 1 / (t + 1), where t
        counts the steps of all continued fits.
    unlabeled_ratio : float
        Unlabeled rows per labeled row in a batch, >= 0.
    n_candidates
        Published: 25000 of the 45000 of CIFAR.
    max_epochs : int
        Passes over the unlabeled rows, or over the labeled rows if that takes more
        steps.
    max_steps
        Published: 200 passes over the labeled rows in each cycle, with batches of 128.
    batch_size : int
        Labeled samples per step; labeled rows are repeated as needed.
    lr
        Published: 0.1, for batches of 128.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows, the highest score first, ties by lower row number.
    scores_ : ndarray of shape (n_rows,)
        ``discrepancies_``; in the first cycle minus these ("lowest") or random numbers
        ("random"). ``-inf`` for labeled rows, for rows that were not scored and for
        files that cannot be read.
    discrepancies_ : ndarray of shape (n_rows,)
        Difference between predictions now and before this fit; NaN if the score is
        ``-inf``.
    n_cycles_ : int
        Number of continued fits so far, this one included.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``class_loss``,
        ``consistency`` and ``train_accuracy``. Empty if every row is labeled.
    n_features_in_ : int
        Values per sample.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, or more
        rows are requested than are unlabeled and readable.

    See Also
    --------
    LearningLossSelector : Learns to predict the loss with an extra head.
    USLSelector : Needs no label; for the first choice.
    UncertaintySelector : Uses the confidence of any classifier.

    Notes
    -----
    The earlier network is ``net_`` of the last fit; pickles contain it, a clone does
    not. It predicts the rows of the new X before training continues. A new class gets
    outputs with random weights, and had probability 0; a class that is gone keeps its
    outputs.

    Differences from the released code: the averaged network starts as a copy of the
    trained one, not with other random weights, since averaging unrelated weights is
    meaningless; the untrained network is that network itself; labeled and unlabeled
    rows pass through the network together; unlabeled rows are drawn anew in the first
    cycle too, and from all of them, even if only ``n_candidates`` are scored; batches
    are smaller and the learning rate lower, since there are few labels; the rate also
    drops after 60 % of the training.

    References
    ----------
    .. [1] S. Huang, T. Wang, H. Xiong, J. Huan, D. Dou, "Semi-supervised active
       learning with temporal output discrepancy", ICCV 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import TODSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 50, y, -1)
    >>> selector = TODSelector(20, max_epochs=2, warm_start=True, random_state=0)
    >>> rows = selector.fit_select(X, y_partly)
    >>> y_partly[rows] = y[rows]
    >>> selector.fit(X, y_partly).n_cycles_
    2
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    measure: Literal["squared", "norm"] = "squared"
    on: Literal["probabilities", "logits"] = "probabilities"
    first_cycle: Literal["lowest", "random", "highest"] = "lowest"
    consistency_weight: NonNegative = 0.02
    ema_decay: BelowOne = 0.999
    unlabeled_ratio: NonNegative = 1
    augment: Augment = "auto"
    max_epochs: Count = 20
    batch_size: AtLeastTwo = 64
    optimizer: Optimizer = "sgd"
    lr: Positive = 0.03
    weight_decay: NonNegative = 5e-4
    schedule: Schedule = "step"

    def _train(self, samples, codes, places, rows, random):
        fresh = self._continued is None
        module = self._build_module(*samples.statistics(), places)
        net = self._make_net(module, self._resolve_pixel_range(samples))
        before = net.evaluate(samples, rows).numpy()[:, places]
        mixed = Mixed(samples, codes, self.unlabeled_ratio, include_labeled=False)
        self._stage("fit", module, mixed)
        if not self._goes_on:
            self.n_cycles_ = 1 if fresh else self.n_cycles_ + 1
        elif self._for_rest:  # of the cycle that was broken off
            before = self._for_rest["before"]
        self._for_rest = {"before": before}
        now = self.net_.evaluate(samples, rows).numpy()
        found = temporal_discrepancy(now, before, self.measure, self.on, places)
        self.discrepancies_ = np.full(len(samples), np.nan)
        self.discrepancies_[rows] = found
        if self.n_cycles_ == 1 and self.first_cycle == "lowest":
            return -found
        if self.n_cycles_ == 1 and self.first_cycle == "random":
            return random.random_sample(len(rows))
        return found

    def _train_nothing(self, samples):
        super()._train_nothing(samples)
        self.discrepancies_ = np.full(len(samples), np.nan)

    def _build_module(self, mean, std, places=None):
        before = self._continued
        n_classes = len(self.classes_)
        if before is None:
            online = _TwoHeads(self._build_backbone(mean, std), n_classes)
            average = frozen_copy(online)
        else:
            build = functools.partial(self._build_backbone, mean, std)
            backbone = self._part("online.backbone", build)
            online, average = before.online, before.average
            average.backbone = self._part(
                "average.backbone", lambda: frozen_copy(backbone)
            )
            online.backbone = backbone
            for i, head in enumerate(online.heads):
                wider = nn.Linear(head.in_features, n_classes).to(head.weight)
                # both networks have the same weights for new classes
                for net, new in ((average, frozen_copy(wider)), (online, wider)):
                    net.heads[i] = filled_(new, net.heads[i], places)
        return _TOD(
            online,
            average,
            self._build_augment(self.augment, "weak", mean, std),
            self.ema_decay,
            self.consistency_weight,
            n_steps=0 if before is None else before.n_steps,
        )
