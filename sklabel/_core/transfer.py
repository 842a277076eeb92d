"""Fine-tuning of a pretrained encoder, without harm to it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..optim import layer_scales
from .calibration import fit_temperature
from .few_shot import left_out_probe, linear_probes
from .health import CollapseWarning
from .learner import Learner, unfrozen
from .parameters import KW_ONLY, CountOrZero, Factor, NonNegative, Positive
from .propagation import LabeledRows
from .roles.classification import ClassificationRole
from .samples import evenly_spaced
from .warn import warn

# rate of a pretrained encoder, as a share of that of its new head: of one that an
# embedder of ours has trained on such images alone, and of any other, which has learned
# from millions of images, or from texts
_EMBEDDER_LR, _PUBLISHED_LR = 0.1, 0.01
# of the steps
_WARMUP_SHARE = 0.05
# inverse penalty of a probe, on features whose mean squared length is 1
_C = 100.0
# rows that the probe, and the comparison with it, look at
_MOST_ROWS = 1000
# unlabeled rows that are needed to say what the network has learned
_FEWEST_ASKED = 50
# standard deviations: one in twenty by chance
_SURE = 1.64


@dataclass
class Probe:
    """A logistic regression on features, with the rows that it was fitted on.

    Parameters
    ----------
    weight : ndarray of shape (K, D)
    bias : ndarray of shape (K,)
    center : ndarray of shape (D,)
    scale : float
        Divides the features after centering.
    rows : ndarray of int of shape (m,)
        Rows of the cross-validation.
    hits : ndarray of bool of shape (m,)
        Whether a probe fitted on the others predicts their class.
    """

    weight: np.ndarray
    bias: np.ndarray
    center: np.ndarray
    scale: float
    rows: np.ndarray
    hits: np.ndarray

    def scaled(self, Z):
        """Return features (n, D), scaled as for the probe."""
        return (Z - self.center) / self.scale


def fit_probe(Z, codes, weights, n_classes, seed=0):
    """Return a logistic regression calibrated by cross-validation.

    Parameters
    ----------
    Z : ndarray of shape (n, D)
    codes : ndarray of int of shape (n,)
    weights : ndarray of shape (n,)
        Positive.
    n_classes : int
        K; a class may have no row.
    seed : int, default=0
        Seed of the folds, if there are more than fifty rows.

    Returns
    -------
    probe : Probe
    """
    weights = weights * (len(weights) / weights.sum())
    center = np.average(Z, axis=0, weights=weights)
    spread = ((Z - center) ** 2).sum(1)
    scale = float(np.sqrt(np.average(spread, weights=weights))) or 1.0
    z = (Z - center) / scale
    given = LabeledRows(np.arange(len(z)), codes, weights, n_classes, seed)
    coef, bias, log_p = left_out_probe(z, given, _C)
    # a row whose class has no other says nothing
    out, log_p = given.left_out[given.useful], log_p[given.useful]
    temperature = 1.0
    if len(out):
        temperature = fit_temperature(np.exp(log_p), codes[out], weights[out])
    weight = coef / (scale * temperature)
    bias = bias / temperature - weight @ center
    return Probe(weight, bias, center, scale, out, log_p.argmax(1) == codes[out])


def _batchnorms(module, parts):
    """Return the names of the BatchNorm layers in some parts of a module."""
    return [
        f"{part}.{name}".rstrip(".")
        for part in parts
        for name, layer in module.get_submodule(part).named_modules()
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)
    ]


@dataclass
class _Before:
    """State of the labeled rows before training.

    Parameters
    ----------
    probe : Probe
    Z : ndarray of shape (m, D)
        Features of the labeled rows, scaled.
    codes : ndarray of int of shape (m,)
    asked : ndarray of int of shape (n,)
        Some rows without a label.
    Z_asked : ndarray of shape (n, D)
        Their features, scaled.
    """

    probe: Probe
    Z: np.ndarray
    codes: np.ndarray
    asked: np.ndarray
    Z_asked: np.ndarray

    def reached(self, p):
        """Return which labeled rows a probe of the network's predictions gets right.

        The probe is fitted on the network's predictions for unlabeled rows and predicts
        the labeled ones, which the network has memorized.

        Parameters
        ----------
        p : ndarray of shape (n_samples, K)
            Probabilities of all rows of X.
        """
        answers, n_classes = p[self.asked].argmax(1), p.shape[1]
        ones = np.ones((1, len(answers)))
        coef, bias = linear_probes(self.Z_asked, answers, ones, n_classes, _C)
        out = self.probe.rows
        return (self.Z[out] @ coef[0].T + bias[0]).argmax(1) == self.codes[out]


class EncoderClassifier(ClassificationRole, Learner, abstract=True):
    """Base of classifiers: a linear layer on an encoder that may be pretrained.

    Parameters
    ----------
    backbone_lr : float or "auto"
        Learning rate of the encoder, as a factor on ``lr``, > 0. "auto": 0.1 if an
        embedder has trained it without texts; 0.01 if it is from a
        :class:`~sklabel.embedding.CLIPTransformer` or has published weights
        (:class:`~sklabel.embedding.PretrainedTransformer`, or a trained module); else
        1. With a factor below 1, the BatchNorm layers of a pretrained encoder are
        frozen.
    layer_decay : float
        Learning rate of each encoder layer relative to the next one, in (0, 1]: the
        first layers, which are the most general, change least. Published for vision
        transformers (USB): 0.5, with ``optimizer="adamw", lr=5e-4, backbone_lr=1``, and
        ``ema_decay=0`` if the weights are averaged.
    head_init : {"auto", "probe", "random"}
        Initial weights of the last layer. "probe": a logistic regression on the
        encoder's features of the labeled rows (LP-FT); "random": random weights;
        "auto": "probe" if the encoder is pretrained, else "random".
    train_backbone : bool
        Whether the encoder is trained too. False: only the last layer (a linear probe);
        the encoder's BatchNorm statistics do not change either.
    warmup_epochs : float or "auto"
        Epochs of linear warm-up. "auto": 5 % of the steps if the encoder is pretrained,
        else 0.
    min_steps : int
        Minimum number of optimizer steps of each stage, unless ``max_steps`` is set,
        since few rows make short epochs. 300 is a good minimum for a few hundred rows.
    """

    _: KW_ONLY
    backbone_lr: Positive | Literal["auto"] = "auto"
    layer_decay: Factor = 1.0
    head_init: Literal["auto", "probe", "random"] = "auto"
    train_backbone: bool = True
    warmup_epochs: NonNegative | Literal["auto"] = "auto"  # type: ignore[assignment]
    min_steps: CountOrZero = 0

    # in a fit that begins with a pretrained encoder
    _before = None

    def _check_X(self, X, reset=False):
        if reset:
            self._before = None
        return super()._check_X(X, reset)

    def _labeled_stage(self, name, module, sampler, labeled, fresh=None, **settings):
        """Train a classifier, gently if its encoder is pretrained.

        Parameters
        ----------
        name, module, sampler, **settings
            See `Learner._stage`; the module is a `LinearHeaded`.
        labeled : PartlyLabeled
        fresh : bool or None
            Whether the last layer is untrained; None: no warm start.
        """
        fresh = self._continued is None if fresh is None else fresh
        encoder = module.get_submodule(module.encoder_parts[0])
        pretrained = encoder.pretrained
        scale = self.backbone_lr
        if scale == "auto":
            scale = self._pretrained_lr() if pretrained else 1.0
        if not self.train_backbone:
            for part in module.encoder_parts:
                module.set_trained(part, False)
        elif pretrained and scale < 1:
            # statistics of strong views are not those of the images to predict
            for norm in _batchnorms(module, module.encoder_parts):
                module.set_trained(norm, False)
        wanted = self.head_init == "probe" or (self.head_init == "auto" and pretrained)
        if fresh and not self.interrupted_ and (wanted or pretrained):
            before = self._look(module, labeled, pretrained and self._before is None)
            if pretrained and self._before is None:
                self._before = before
            if wanted:
                probe = before.probe
                module.set_head_(*map(torch.from_numpy, (probe.weight, probe.bias)))
        if scale != 1 or self.layer_decay != 1:
            settings["lr_scales"] = layer_scales(
                module, module.encoder_parts, self.layer_decay, scale
            )
        if self._n_steps(sampler, **settings) < self.min_steps:
            settings["max_steps"] = self.min_steps
        if self.warmup_epochs == "auto":
            length = self._n_epochs(sampler, **settings)
            settings["warmup_epochs"] = _WARMUP_SHARE * length if pretrained else 0
        return self._stage(name, module, sampler, watch=labeled.watch, **settings)

    def _build_strong(self, augment, mean, std):
        """Return a policy of strong views, from its name or as given."""
        kinds = {"randaugment": "strong", "ctaugment": "ctaugment"}
        if isinstance(augment, str):
            return self._build_augment("auto", kinds[augment], mean, std)
        return self._build_augment(augment, None, mean, std)

    def _pretrained_lr(self):
        source = unfrozen(getattr(self, "embedder_", self.backbone))
        without_texts = not hasattr(source, "encode_text")
        own = isinstance(source, Learner) and without_texts
        return _EMBEDDER_LR if own else _PUBLISHED_LR

    def _n_steps(self, sampler, max_epochs=None, max_steps=0, batch_size=None, **_):
        """Return the length of a training in steps; inf if it was set directly."""
        if (self.max_steps if max_steps == 0 else max_steps) is not None:
            return np.inf
        n_batches = sampler.n_batches(batch_size or self.batch_size)
        return (max_epochs or self.max_epochs) * n_batches

    def _look(self, module, labeled, compared):
        """Return the state of the labeled rows with the current encoder.

        ``compared``: whether to include unlabeled rows.
        """
        mixed = labeled.mixed(0)
        rows, weights = mixed.labeled, mixed.weights
        weights = np.ones(len(rows)) if weights is None else weights
        rows, weights = rows[weights > 0], weights[weights > 0]
        few = evenly_spaced(len(rows), _MOST_ROWS)
        rows, weights = rows[few], weights[few]
        asked = np.empty(0, int)
        if compared:
            asked = labeled.rows.good[labeled.codes[labeled.rows.good] < 0]
            asked = asked[evenly_spaced(len(asked), _MOST_ROWS)]
        net = self._make_net(
            module, self._resolve_pixel_range(labeled.rows), warmup_epochs=0
        )
        both = np.concatenate([rows, asked])
        Z = net.evaluate(labeled.rows, both, module.features).double().numpy()
        Z, Z_asked = Z[: len(rows)], Z[len(rows) :]
        codes = mixed.targets[rows]
        probe = fit_probe(Z, codes, weights, len(self.classes_))
        return _Before(probe, probe.scaled(Z), codes, asked, probe.scaled(Z_asked))

    def _finish(self, p, codes, held, y):
        super()._finish(p, codes, held, y)
        before = vars(self).pop("_before", None)
        if before is None or self.interrupted_ or len(before.asked) < _FEWEST_ASKED:
            return
        hits, reached = before.probe.hits, before.reached(p)
        lost = (hits & ~reached).sum()
        won = (reached & ~hits).sum()
        if lost - won > _SURE * np.sqrt(lost + won):
            warn(
                "A linear probe on the embedding predicts the labels better than this "
                f"network: {hits.mean():.0%} of the labeled rows in cross-validation, "
                f"against {reached.mean():.0%} from the network's predictions for the "
                "other rows. Use EmbeddingClassifier, train_backbone=False, or a "
                "smaller lr.",
                CollapseWarning,
            )


class GuessingClassifier(EncoderClassifier, abstract=True):
    """Base of classifiers that guess a label for every unlabeled row.

    The method's module records its guesses in ``predicted``.
    """

    def _train(self, X, labeled, seed):
        mixed = labeled.mixed(self.unlabeled_ratio, self.include_labeled)
        module = self._build_module(*labeled.rows.statistics(), mixed)
        self._labeled_stage("fit", module, mixed, labeled)
        prior = mixed.class_shares(len(self.classes_))
        return module.predicted.classes.cpu().numpy(), prior

    def _check_health(self, trained):
        """Warn if one class has nearly all of the last guesses, or another none."""
        guessed, prior = trained
        counts = np.bincount(guessed[guessed >= 0], minlength=len(prior))
        self._check_shares(
            counts / max(1, counts.sum()),
            prior,
            "guessed labels",
            counts.sum(),
            f"an unlabeled_weight below {self.unlabeled_weight}",
            "a longer training",
            class_weight="balanced",
        )
