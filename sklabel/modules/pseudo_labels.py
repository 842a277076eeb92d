"""Corrections of pseudo-labels: alignment, thresholds and weights, mixing."""

# A method takes one of each kind. An alignment maps the logits of weak views,
# forward(logits, step, labeled), and those of strong ones, adjust(logits). Thresholds
# say how much each prediction counts, weigh(rows, logits, labeled).

import torch
from torch import nn
from torch.nn.functional import one_hot

from .._core.checks import check_number
from .averages import ramped_decay


class _Alignment(nn.Module):
    learned: tuple[str, ...] = ()  # buffers that a warm start takes over

    def adjust(self, logits):
        """Return the logits of strong views for the loss."""
        return logits


class NoAlignment(_Alignment):
    """Predictions are not changed.

    Notes
    -----
    ``forward`` returns its logits unchanged at every step.
    """

    def forward(self, logits, step, labeled=None):
        return logits


class DistributionAlignment(_Alignment):
    """Scale predictions so that their mean has given class shares (ReMixMatch).

    Parameters
    ----------
    prior : Tensor of shape (K,)
        The shares.
    decay : float, default=0.999
        Decay of the mean prediction; it grows as (1 + t) / (10 + t) up to this.

    Attributes
    ----------
    mean_prediction : Tensor of shape (K,)
        Moving average of the predictions, initially equal for all classes.

    Notes
    -----
    ``forward`` maps logits ``(B, K)``, which also update the mean, and the number of
    the step (first: 1) to aligned logits.

    References
    ----------
    .. [1] D. Berthelot et al., "ReMixMatch: semi-supervised learning with distribution
       alignment and augmentation anchoring", ICLR 2020; section 3.1.
    """

    learned: tuple[str, ...] = ("mean_prediction",)

    def __init__(self, prior, decay=0.999):
        super().__init__()
        check_number(0, 1, decay=decay)
        self.decay = decay
        self.register_buffer("prior", prior)
        even = torch.full_like(prior, 1 / len(prior))
        self.register_buffer("mean_prediction", even)

    def forward(self, logits, step, labeled=None):
        mean = logits.softmax(1).mean(0)
        self.mean_prediction.lerp_(mean, 1 - ramped_decay(step, self.decay))
        return logits + (self.prior / self.mean_prediction.clamp_min(1e-6)).log()


class PredictedAlignment(DistributionAlignment):
    """Scale predictions to the mean prediction for labeled rows (AdaMatch).

    Parameters
    ----------
    n_classes : int
    decay : float, default=0.999
        Decay of both averages; it grows as (1 + t) / (10 + t) up to this. For the
        second, the public code uses the mean of the last 128 steps.

    Attributes
    ----------
    prior, mean_prediction : Tensor of shape (K,)
        Averages of the predictions for labeled and for unlabeled rows, initially equal
        for all classes.

    Notes
    -----
    ``forward`` maps logits ``(B, K)``, the number of the step and logits ``(M, K)`` of
    labeled rows to aligned logits; both sets of logits also update the averages.

    References
    ----------
    .. [1] D. Berthelot et al., "AdaMatch: a unified approach to semi-supervised
       learning and domain adaptation", ICLR 2022; section 3.2.
    """

    learned = ("mean_prediction", "prior")

    def __init__(self, n_classes, decay=0.999):
        check_number(1, whole=True, n_classes=n_classes)
        super().__init__(torch.full((n_classes,), 1 / n_classes), decay)

    def forward(self, logits, step, labeled=None):
        mean = labeled.softmax(1).mean(0)
        self.prior.lerp_(mean, 1 - ramped_decay(step, self.decay))
        return super().forward(logits, step)


class Debiasing(_Alignment):
    """Subtract the bias that predictions share over all rows (DebiasPL).

    Parameters
    ----------
    n_classes : int
    strength : float, default=0.4
        >= 0. Paper: lambda; code: tau.
    decay : float, default=0.999
        Decay of the average, in [0, 1]. Published for ImageNet: 0.99.
    ramp : bool, default=False
        Whether the decay grows as (1 + t) / (10 + t) up to ``decay``. Published: no.

    Attributes
    ----------
    mean_prediction : Tensor of shape (K,)
        Average of the uncorrected predictions, initially equal for all classes.

    Notes
    -----
    ``forward`` subtracts ``strength * log(mean_prediction)`` from logits ``(B, K)`` of
    weak views, which then update the mean; ``adjust`` adds it to the logits of strong
    views, as a margin for rarely predicted classes.

    References
    ----------
    .. [1] X. Wang et al., "Debiased learning from naturally imbalanced pseudo-labels",
       CVPR 2022; equations 2 to 5.
    """

    learned: tuple[str, ...] = ("mean_prediction",)

    def __init__(self, n_classes, strength=0.4, decay=0.999, ramp=False):
        super().__init__()
        check_number(1, whole=True, n_classes=n_classes)
        check_number(0, strength=strength)
        check_number(0, 1, decay=decay)
        self.strength = strength
        self.decay = decay
        self.ramp = ramp
        even = torch.full((n_classes,), 1 / n_classes)
        self.register_buffer("mean_prediction", even)

    def _bias(self):
        return self.strength * self.mean_prediction.clamp_min(1e-12).log()

    def forward(self, logits, step, labeled=None):
        debiased = logits - self._bias()
        decay = ramped_decay(step, self.decay) if self.ramp else self.decay
        self.mean_prediction.lerp_(logits.softmax(1).mean(0), 1 - decay)
        return debiased

    def adjust(self, logits):
        """Return the logits of strong views for the loss."""
        return logits + self._bias()


class _Thresholds(nn.Module):
    """Base of the rules that weight predictions."""

    temperature = 1.0

    def see(self, rows, logits):
        """Record the predictions of some rows; the base class ignores them.

        Parameters
        ----------
        rows : Tensor of int of shape (B,)
        logits : Tensor of shape (B, K)
        """

    def weigh(self, rows, logits, labeled=None):
        """Return the weight of each row, and record the predictions.

        Parameters
        ----------
        rows : Tensor of int of shape (B,)
        logits : Tensor of shape (B, K)
            Logits of weak views of unlabeled rows.
        labeled : Tensor of shape (M, K) or None, default=None
            Logits of weak views of labeled rows.

        Returns
        -------
        weights : Tensor of shape (B,)
            In [0, 1], or bool.
        """
        self._look(logits, labeled)
        weights = self._count(logits)
        self.see(rows, logits)
        return weights

    def _look(self, logits, labeled):
        """Record predictions before they are weighted."""

    def _count(self, logits):
        threshold = self()
        confidence, classes = (logits / self.temperature).softmax(1).max(1)
        if isinstance(threshold, torch.Tensor) and threshold.ndim:  # one for each class
            threshold = threshold.to(confidence)[classes]
        return confidence >= threshold


class FixedThreshold(_Thresholds):
    """One threshold for all classes and steps.

    Parameters
    ----------
    threshold : float
        In [0, 1].
    temperature : float, default=1.0
        Divides the logits before a row is compared with the threshold, > 0.

    Notes
    -----
    ``forward`` returns the threshold.
    """

    def __init__(self, threshold, temperature=1.0):
        super().__init__()
        check_number(0, 1, threshold=threshold)
        check_number(0, above=True, temperature=temperature)
        self.threshold = threshold
        self.temperature = temperature

    def forward(self):
        return self.threshold


class RelativeThreshold(_Thresholds):
    """A share of the mean confidence in labeled rows (AdaMatch).

    Parameters
    ----------
    share : float
        In [0, 1].
    temperature : float, default=1.0
        Divides the logits first, those of labeled rows too, > 0.

    Notes
    -----
    ``forward`` returns the threshold of the last step.

    References
    ----------
    .. [1] D. Berthelot et al., "AdaMatch: a unified approach to semi-supervised
       learning and domain adaptation", ICLR 2022; section 3.3.
    """

    def __init__(self, share, temperature=1.0):
        super().__init__()
        check_number(0, 1, share=share)
        check_number(0, above=True, temperature=temperature)
        self.share = share
        self.temperature = temperature
        self.register_buffer("confidence", torch.tensor(1.0))

    def forward(self):
        return self.share * self.confidence

    def _look(self, logits, labeled):
        p = (labeled / self.temperature).softmax(1)
        self.confidence.copy_(p.amax(1).mean())


class ClassThresholds(_Thresholds):
    """A threshold per class that rises as the class is learned (FlexMatch).

    Parameters
    ----------
    threshold : float
        Highest threshold, in [0, 1]; rows that reach it count as learned.
    n_classes : int
    n_rows : int
        Rows of the data set.
    n_unused : int, default=0
        Number of rows without predictions.
    temperature : float, default=1.0
        Divides the logits before a row is compared with the threshold, > 0.

    Attributes
    ----------
    confident : Tensor of int of shape (n_rows,)
        Class of each row's last prediction that reached the threshold; -1: none.

    Notes
    -----
    ``forward`` returns the thresholds, ``(K,)``.

    References
    ----------
    .. [1] B. Zhang et al., "FlexMatch: boosting semi-supervised learning with
       curriculum pseudo labeling", NeurIPS 2021; equations 5, 7, 10 and 12.
    """

    def __init__(self, threshold, n_classes, n_rows, n_unused=0, temperature=1.0):
        super().__init__()
        check_number(0, 1, threshold=threshold)
        check_number(1, whole=True, n_classes=n_classes)
        check_number(0, whole=True, n_rows=n_rows, n_unused=n_unused)
        check_number(0, above=True, temperature=temperature)
        self.threshold = threshold
        self.n_classes = n_classes
        self.n_unused = n_unused
        self.temperature = temperature
        self.register_buffer("confident", torch.full((n_rows,), -1))

    def forward(self):
        # not by bincount, which a device waits for
        counts = self.confident.new_zeros(self.n_classes + 1)
        counts.scatter_add_(0, self.confident + 1, torch.ones_like(self.confident))
        counts[0] -= self.n_unused
        # rows without a confident prediction count as a class of their own
        learned = counts[1:] / counts.max()
        return self.threshold * learned / (2 - learned)

    def see(self, rows, logits):
        """Record the predictions of some rows.

        Parameters
        ----------
        rows : Tensor of int of shape (B,)
        logits : Tensor of shape (B, K)
        """
        # not by the thresholds of the classes: what they have learned is to be compared
        p = (logits / self.temperature).softmax(1)
        confident = p.max(1).values >= self.threshold
        kept = self.confident[rows]
        self.confident[rows] = torch.where(confident, logits.argmax(1), kept)


class _Averaging(_Thresholds):
    """Thresholds that follow moving averages of the predictions, from step to step."""

    def __init__(self, decay, ramp, temperature):
        super().__init__()
        check_number(0, 1, decay=decay)
        check_number(0, above=True, temperature=temperature)
        self.decay = decay
        self.ramp = ramp
        self.temperature = temperature
        self.register_buffer("n_seen", torch.tensor(0))

    def _next_rate(self):
        """Return the weight of this step's predictions in the averages."""
        self.n_seen += 1
        decay = torch.full_like(self.confidence, self.decay)
        if self.ramp:  # as `ramped_decay`, on the device
            decay = torch.minimum(decay, (1 + self.n_seen) / (10 + self.n_seen))
        return 1 - decay


class FreeThresholds(_Averaging):
    """Thresholds that rise with the network's own confidence (FreeMatch).

    Parameters
    ----------
    n_classes : int
    decay : float, default=0.999
        Decay of the averages, in [0, 1].
    ramp : bool, default=False
        Whether the decay grows as (1 + t) / (10 + t) up to ``decay``. Published: no.
    temperature : float, default=1.0
        Divides the logits first, > 0.

    Attributes
    ----------
    confidence : Tensor of shape ()
        Average of the largest probability; initially 1 / K.
    mean_prediction, class_shares : Tensor of shape (K,)
        Averages of the predictions, and of the shares of the predicted classes;
        initially equal for all classes.

    Notes
    -----
    ``forward`` returns the thresholds, ``(K,)``: the confidence, times the mean
    prediction of the class divided by the largest one.

    References
    ----------
    .. [1] Y. Wang et al., "FreeMatch: self-adaptive thresholding for semi-supervised
       learning", ICLR 2023; equations 5 to 8.
    """

    def __init__(self, n_classes, decay=0.999, ramp=False, temperature=1.0):
        super().__init__(decay, ramp, temperature)
        check_number(1, whole=True, n_classes=n_classes)
        even = torch.full((n_classes,), 1 / n_classes)
        self.register_buffer("confidence", torch.tensor(1 / n_classes))
        self.register_buffer("mean_prediction", even)
        self.register_buffer("class_shares", even.clone())

    def forward(self):
        return self.confidence * self.mean_prediction / self.mean_prediction.max()

    def _look(self, logits, labeled):
        # this step's predictions count in this step's thresholds
        p = (logits / self.temperature).softmax(1)
        confidence, classes = p.max(1)
        shares = one_hot(classes, p.shape[1]).to(p).mean(0)
        rate = self._next_rate()
        self.confidence.lerp_(confidence.mean(), rate)
        self.mean_prediction.lerp_(p.mean(0), rate)
        self.class_shares.lerp_(shares, rate)


class SoftWeights(_Averaging):
    """Weights that fall with the confidence; every row counts (SoftMatch).

    Parameters
    ----------
    n_classes : int
    sharpness : float, default=2.0
        How fast the weight falls below the mean confidence, > 0: the width of its
        Gaussian is the standard deviation of the confidences divided by this. Paper: n
        in n_sigma.
    decay : float, default=0.999
        Decay of the averages, in [0, 1].
    ramp : bool, default=False
        Whether the decay grows as (1 + t) / (10 + t) up to ``decay``. Published: no.
    temperature : float, default=1.0
        Divides the logits first, > 0.

    Attributes
    ----------
    confidence, variance : Tensor of shape ()
        Averages of mean and variance of the largest probability; initially 1 / K and 1.
    mean_prediction : Tensor of shape (K,)
        Average of the predictions; initially equal for all classes.

    Notes
    -----
    ``forward`` returns the confidence above which a row has full weight. Confidences
    are computed from predictions that are scaled to equal class shares; the targets are
    not scaled.

    References
    ----------
    .. [1] H. Chen et al., "SoftMatch: addressing the quantity-quality trade-off in
       semi-supervised learning", ICLR 2023; equations 6 to 9.
    """

    def __init__(
        self, n_classes, sharpness=2.0, decay=0.999, ramp=False, temperature=1.0
    ):
        super().__init__(decay, ramp, temperature)
        check_number(1, whole=True, n_classes=n_classes)
        check_number(0, above=True, sharpness=sharpness)
        self.sharpness = sharpness
        self.register_buffer("confidence", torch.tensor(1 / n_classes))
        self.register_buffer("variance", torch.tensor(1.0))
        even = torch.full((n_classes,), 1 / n_classes)
        self.register_buffer("mean_prediction", even)

    def forward(self):
        return self.confidence

    def _count(self, logits):
        logits = logits / self.temperature
        rate = self._next_rate()
        self.mean_prediction.lerp_(logits.softmax(1).mean(0), rate)
        aligned = logits - self.mean_prediction.clamp_min(1e-6).log()
        confidence = aligned.softmax(1).amax(1)
        self.confidence.lerp_(confidence.mean(), rate)
        # of a single row there is no other variance
        spread = confidence.var(correction=min(1, len(logits) - 1))
        self.variance.lerp_(spread, rate)
        below = (confidence - self.confidence).clamp_max(0) * self.sharpness
        return torch.exp(-below.square() / (2 * self.variance.clamp_min(1e-12)))


class EveryRow(nn.Module):
    """Rows keep their weights, whatever their energy.

    Notes
    -----
    ``forward`` returns its weights unchanged.
    """

    def forward(self, logits, weights):
        return weights


class LowEnergy(nn.Module):
    """Rows of high energy, which fit no class, do not count (InPL).

    Parameters
    ----------
    threshold : float
        Upper limit of the energy, which is minus the log-sum-exp of the logits.

    Notes
    -----
    ``forward`` maps logits ``(B, K)`` and weights ``(B,)`` to weights.

    References
    ----------
    .. [1] Z. Yu, Y. Li, Y. J. Lee, "InPL: pseudo-labeling the inliers first for
       imbalanced semi-supervised learning", ICLR 2023; equations 3 and 4.
    .. [2] W. Liu et al., "Energy-based out-of-distribution detection", NeurIPS 2020.
    """

    def __init__(self, threshold):
        super().__init__()
        check_number(threshold=threshold)
        self.threshold = threshold

    def forward(self, logits, weights):
        return weights * (-logits.logsumexp(1) < self.threshold)


class PredictedClasses(nn.Module):
    """The last class predicted for every row, to measure how many rows change.

    Parameters
    ----------
    n_rows : int
        Rows of the data set.

    Attributes
    ----------
    classes : Tensor of int of shape (n_rows,)
        -1: none yet.
    """

    def __init__(self, n_rows):
        super().__init__()
        self.register_buffer("classes", torch.full((n_rows,), -1))

    def update(self, rows, classes):
        """Record classes; return the share of rows whose class has not changed.

        Parameters
        ----------
        rows, classes : Tensor of int of shape (B,)

        Returns
        -------
        agreement : Tensor of shape ()
        """
        agreement = (self.classes[rows] == classes).float().mean()
        self.classes[rows] = classes
        return agreement


def mixing_weights(n, alpha):
    """Draw each row's share in its mixture, at least one half.

    Parameters
    ----------
    n : int
    alpha : float
        >= 0; 0: shares of 1.

    Returns
    -------
    weights : Tensor of shape (n,)
        The larger of a and 1 - a for a drawn from Beta(alpha, alpha), on the CPU.
    """
    check_number(0, alpha=alpha)
    if alpha == 0:
        return torch.ones(n)
    # by logarithms of Gamma(alpha), which for a small alpha is mostly below 1e-38
    gamma = torch.distributions.Gamma(alpha + 1, 1.0).sample((2, n)).log()
    gamma += torch.rand(2, n).log() / alpha
    # two infinite ones, as of an alpha of 1e-40, are far apart, too
    return (gamma[0] - gamma[1]).abs().nan_to_num(nan=torch.inf).sigmoid()
