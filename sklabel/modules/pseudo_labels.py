"""What corrects pseudo-labels: their shares of the classes, and what is confident."""

# A method takes one of each kind. An alignment maps the logits of weak views:
# forward(logits, step). Thresholds say from which probability on a prediction counts,
# forward(), and are shown the predictions of each step: see(rows, logits).

import torch
from torch import nn

from .._core.checks import check_number
from .averages import ramped_decay


class NoAlignment(nn.Module):
    """Predictions as they are.

    Notes
    -----
    ``forward`` returns the logits that it is given, whatever the step.
    """

    def forward(self, logits, step):
        return logits


class DistributionAlignment(nn.Module):
    """Scale predictions so that on average they have given class shares (ReMixMatch).

    Parameters
    ----------
    prior : Tensor of shape (K,)
        The shares.
    decay : float, default=0.999
        Of the mean prediction; it grows as (1 + t) / (10 + t) up to this.

    Attributes
    ----------
    mean_prediction : Tensor of shape (K,)
        Moving average of the predictions, at first equal for all classes.

    Notes
    -----
    ``forward`` maps logits ``(B, K)``, which also move the mean, and the number of the
    step, 1 at the first, to aligned logits.

    References
    ----------
    .. [1] D. Berthelot et al., "ReMixMatch: semi-supervised learning with distribution
       alignment and augmentation anchoring", ICLR 2020; section 3.1.
    """

    def __init__(self, prior, decay=0.999):
        super().__init__()
        check_number(0, 1, decay=decay)
        self.decay = decay
        self.register_buffer("prior", prior)
        even = torch.full_like(prior, 1 / len(prior))
        self.register_buffer("mean_prediction", even)

    def forward(self, logits, step):
        mean = logits.softmax(1).mean(0)
        self.mean_prediction.lerp_(mean, 1 - ramped_decay(step, self.decay))
        return logits + (self.prior / self.mean_prediction.clamp_min(1e-6)).log()


class FixedThreshold(nn.Module):
    """One threshold for all classes and steps.

    Parameters
    ----------
    threshold : float
        In [0, 1].

    Notes
    -----
    ``forward`` returns the threshold.
    """

    def __init__(self, threshold):
        super().__init__()
        check_number(0, 1, threshold=threshold)
        self.threshold = threshold

    def forward(self):
        return self.threshold

    def see(self, rows, logits):
        """Take note of the predictions of some rows: here nothing follows from them."""


class ClassThresholds(nn.Module):
    """A threshold per class that grows with what is learned of the class (FlexMatch).

    Parameters
    ----------
    threshold : float
        Highest threshold, in [0, 1]; a class has learned the rows that reach it.
    n_classes : int
    n_rows : int
        Rows of the data set.
    n_unused : int, default=0
        Rows of which no prediction will be seen.
    temperature : float, default=1.0
        Divides the logits before a row is compared with the threshold, > 0.

    Attributes
    ----------
    confident : Tensor of int of shape (n_rows,)
        Class of the last prediction of each row that reached the threshold; -1: none.

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
        counts = torch.bincount(self.confident + 1, minlength=self.n_classes + 1)
        counts[0] -= self.n_unused
        # rows without a confident prediction count as a class of their own
        learned = counts[1:] / counts.max()
        return self.threshold * learned / (2 - learned)

    def see(self, rows, logits):
        """Take note of the predictions of some rows.

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


class PredictedClasses(nn.Module):
    """The last class predicted for every row, to see how many rows change theirs.

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
        """Write down classes; return the share of the rows that had the same before.

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
