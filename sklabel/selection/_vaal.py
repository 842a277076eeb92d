"""VAAL: variational adversarial active learning (Sinha, Ebrahimi, Darrell, 2019)."""

from typing import Annotated, Literal

from .._core.adversary import (
    REDUCTIONS,
    AdversarialCodes,
    AdversarialRole,
    adversary_loss,
    discriminator_loss,
    share_right,
)
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    AtLeastTwo,
    Count,
    NonNegative,
    Optimizer,
    Positive,
    SampleCount,
    Schedule,
    one_of,
)
from .._core.samplers import Mixed, count_labeled


class _VAAL(AdversarialCodes):
    def loss(self, x, y):
        n_labeled = count_labeled(y)
        sizes = [n_labeled, len(x) - n_labeled]
        mu, _, _, error, kl = self.drawn(x, sizes)
        seen, judged = self.judged(mu, sizes)
        adversary = adversary_loss(*seen)
        discriminator = discriminator_loss(*judged)
        loss = error + self.kl_weight * kl + self.adversary_weight * adversary
        return loss + discriminator, {
            "reconstruction": error.detach() / 2,
            "kl": kl.detach(),
            "adversary": adversary.detach(),
            "discriminator": discriminator.detach(),
            "discriminator_accuracy": share_right(judged),
        }


class VAALSelector(AdversarialRole, Learner):
    """Select the rows that look least like the labeled rows.

    An autoencoder maps every row to a short code, and learns to make the codes of
    labeled and unlabeled rows look alike; a second network, the discriminator, learns
    to tell them apart. The rows that it most confidently classifies as unlabeled are
    chosen. The classes of the labels are not used, and no classifier is needed. Read
    more in the :ref:`User Guide <vaal>`.

    Parameters
    ----------
    n_samples : int, float in (0, 1) or None
        Number of rows to choose; a float is a share of the unlabeled rows. None: a
        tenth of them, at most 40.
    n_components : int
        Length of a code. Published: 32 for CIFAR.
    kl_weight : float
        Weight of the divergence of the codes from a normal distribution, >= 0. Paper:
        beta. Published: 1, on the sum.
    kl_reduction : {"mean", "sum"}
        "mean": the divergence is averaged over rows and components, like the
        reconstruction error. "sum": it is summed, as in the released code; see Notes.
    adversary_weight : float
        Weight of the adversarial loss, by which the autoencoder makes all rows look
        labeled, >= 0.
    vae_steps : int
        Steps of the autoencoder per step of the discriminator.
    width : int or "auto"
        Channels of the first of four convolutions, doubled from one to the next;
        vectors go through two layers of 8 times as many units. Published: 128, that is
        128, 256, 512, 1024. "auto": 16; then 2,000 images of 32 x 32 pixels take two
        minutes on two cores.
    max_epochs : int
        Passes over the unlabeled rows, or over the labeled rows if that takes more
        steps. Published: 100 over all rows, with both kinds in every step.
    batch_size : int
        Labeled samples per step, and as many unlabeled ones; labeled rows are repeated
        as needed.
    optimizer
        Published: Adam.
    lr : float
        Peak learning rate of both networks. Published: 5e-4.
    warmup_epochs
        Published: none.

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
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``reconstruction``
        (mean squared error), ``kl`` (both kinds of rows together), ``adversary``,
        ``discriminator`` (the loss of each) and ``discriminator_accuracy`` (0.5:
        chance). Absent if every row is labeled.
    encoder_ : nn.Module
        Trained encoder, without the layer that makes the codes.
    n_features_in_ : int
        Values per sample.

    Raises
    ------
    ValueError
        If no row is labeled, if more rows are requested than are unlabeled, or if too
        few files can be read.

    Warns
    -----
    CollapseWarning
        If the codes carry no information about the rows, or the discriminator is at
        chance at the end; the choice is then random.

    See Also
    --------
    USLSelector : Needs no label: for the first choice.
    CoreSetSelector : Rows far from all labeled ones, for vectors.

    Notes
    -----
    Images pass through convolutions of 4 pixels with stride 2, batch normalization and
    ReLU, while a side has at least two pixels (four layers from 32 pixels on), mirrored
    by transposed convolutions; pixels are in [-1, 1]. Vectors are standardized and pass
    through dense layers. The discriminator is a perceptron with two hidden layers of
    512 units; its input is the mean of a code, not a sample.

    On digits with 100 labels in classes 0 to 6, 31% of the unlabeled rows are in
    classes 7 to 9. Of 50 chosen rows, 67% are (75% with vectors; means of three seeds);
    with ``adversary_weight=0.1``, 76% (50%); with the published ``kl_weight=1,
    kl_reduction="sum"``, 41% (49%).

    Differences from the released code:

    - The divergence is a mean with a weight of 0.01. With the published sum and weight
      of 1, information in the codes costs more than it gains: the reconstruction error,
      a mean, cannot fall by more than the variance of a pixel, while a nat of
      information about each row costs 128 per batch. The codes then carry no
      information, and the fit warns.
    - Labeled and unlabeled rows pass through the encoder together, so that both kinds
      share the same batch statistics.
    - The discriminator is updated in the same step as the autoencoder, not after it.
      Neither gets gradients from the other's loss.
    - ``width`` and ``max_epochs`` are smaller.

    References
    ----------
    .. [1] S. Sinha, S. Ebrahimi, T. Darrell, "Variational adversarial active learning",
       ICCV 2019; equations 1 to 5, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import VAALSelector
    >>> X, target = load_digits(return_X_y=True)
    >>> X, target = X[:400], target[:400]
    >>> y = np.where((target < 7) & (np.arange(400) < 200), target, -1)
    >>> selector = VAALSelector(
    ...     20,
    ...     adversary_weight=0.1,
    ...     max_epochs=10,
    ...     batch_size=32,
    ...     lr=2e-3,
    ...     width=8,
    ...     random_state=0,
    ... )
    >>> rows = selector.fit_select(X, y)
    >>> bool((target[rows] >= 7).mean() > 0.5)  # of classes that have no label
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    n_components: Count = 32
    kl_weight: NonNegative = 0.01
    kl_reduction: Annotated[str, one_of(REDUCTIONS)] = "mean"
    adversary_weight: NonNegative = 1.0
    vae_steps: Count = 2
    width: Count | Literal["auto"] = "auto"
    max_epochs: Count = 50
    batch_size: AtLeastTwo = 128
    optimizer: Optimizer = "adam"
    lr: Positive = 5e-4
    schedule: Schedule = "constant"

    def _train(self, pool, seed):
        mixed = Mixed(pool.X, pool.labeled - 1, 1.0, include_labeled=False)
        module = self._build_module(*pool.X.statistics())
        self._stage("fit", module, mixed, predicts=False)

    def _build_module(self, mean, std):
        return self._build_codes(_VAAL, mean, std)
