"""CLIP as a classifier: classes from their names, and from a few labels (2021)."""

import copy
from typing import Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import normalize
from sklearn.utils import _safe_indexing, get_tags
from torch import nn

from .._core.callbacks import fitting
from .._core.checks import check_finite
from .._core.class_names import encode_named, sorted_classes, write_prompts
from .._core.few_shot import (
    FewShotHead,
    choose_c,
    choose_memory,
    class_embedding,
    corrected_probe,
    linear_probe,
    tuned_keys,
)
from .._core.freezing import lock_
from .._core.image_files import ImageFiles
from .._core.inputs import check_samples
from .._core.labels import check_labels, decode_labels
from .._core.learner import Learner, unfrozen
from .._core.parameters import (
    KW_ONLY,
    ArrayLike,
    AtLeastTwo,
    Augment,
    Count,
    CountOrZero,
    NonNegative,
    Positive,
)
from .._core.roles.classification import ClassificationRole
from .._core.samplers import Shuffled
from .._core.warn import warn
from ..augment import Contrastive
from ..embedding import CLIPTransformer
from ..losses import unit_rows
from ..modules import Method

# seven of the eighty templates for ImageNet, chosen greedily by the authors
_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
_TRAINING = (
    "max_epochs",
    "max_steps",
    "batch_size",
    "optimizer",
    "lr",
    "weight_decay",
    "schedule",
    "warmup_epochs",
    "augment",
    "net_params",
)


class _PromptClassifier(Method):
    """An image tower and a classifier on its embedding; not trained itself."""

    backbone: nn.Module
    project: nn.Module
    head: nn.Module | None = None

    def __post_init__(self):
        lock_(self)

    def forward(self, x):
        z = unit_rows(self.project(self.backbone(x)))  # (B, D)
        return z if self.head is None else self.head(z)


class CLIPClassifier(ClassificationRole, Learner):
    """Classify images by the names of the classes, with few labels or none.

    Each class is described by some texts, such as "a photo of a cat". An image gets the
    class whose texts are nearest in the common space of a
    :class:`sklabel.embedding.CLIPTransformer`. If some rows are labeled, a linear probe
    or a memory of their embeddings can be added, or the towers themselves can be
    fine-tuned. Read more in the :ref:`User Guide <clip_classifier>`.

    Parameters
    ----------
    class_names : list of str, dict or None
        Names of the classes; labels in y are these names or their positions in this
        list. A dict {label: name} keeps the labels as classes. None: the labels of y
        are the classes, and their text is their name.
    prompts : str, list of str, or dict
        Texts for each class: templates with a place ``{}`` for the name, or a dict
        {class or name: text or list of texts}. Prompts should resemble the captions
        that the towers were trained on: for short captions use the name alone,
        ``"{}"``. Default: the seven templates that the authors chose from eighty for
        ImageNet, whose average is as good.
    few_shot : {"zero_shot", "linear", "adapter", "fine_tune"}
        How labels are used. "zero_shot": only in ``transduction_``; "linear": to train
        a linear probe on the embeddings; "adapter": similarities to the labeled rows
        are added to the similarities to the texts, without training; "fine_tune": to
        train both towers on the prompts of the labeled rows.
    C : float or "auto"
        Inverse strength of the probe's penalty, > 0; "auto": the best value from 0.01
        to 10,000 in cross-validation.
    shrink_to : {"text", "zero"}
        Where the penalty pulls the probe. "text": to the prompts' classifier, so that
        few labels correct it and classes without labels keep it; "zero": to 0, a plain
        probe as in the paper.
    alpha : float or "auto"
        Weight of the memory in the adapter, >= 0. "auto": the best value in
        leave-one-out cross-validation.
    beta : float or "auto"
        Sharpness of the memory in the adapter, > 0. "auto": as ``alpha``.
    memory_views : int
        Number of random views of each labeled row; the memory holds their mean
        embedding. 0: the embedding of the row itself. Published: 10, with
        ``augment=Contrastive(crop=(0.5, 1), jitter=0, grayscale=0)``.
    memory_epochs : int
        Passes over the labeled rows that train the memory (Tip-Adapter-F), on random
        views if ``memory_views`` is not 0. Published: 20, with ``batch_size=256``.
    memory_lr : float
        Learning rate of that training, with AdamW, > 0.
    logit_scale : float or None
        Factor of the cosines before the softmax, > 0; None: the embedder's. Paper: 100.
    embedder : CLIPTransformer or None
        A fitted embedder is used as is. One with published ``weights`` that is not
        fitted is cloned and loaded. Any other is untrained and raises an error, unless
        ``few_shot="fine_tune"``, which trains it with a warning. None: small towers,
        trained on the prompts of the labeled rows with the training parameters below. A
        clone of this classifier, as made in a search, keeps a fitted embedder only in a
        :class:`sklearn.frozen.FrozenEstimator`.
    augment : "auto", nn.Module or None
        Random views; "auto": a crop of at least nine tenths of the area for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Images are not flipped,
        because texts may say left and right.
    class_weight : dict, "balanced" or None
        Weight of labeled rows of a class in the probe and in the memory: {class:
        weight}; "balanced": every class the same; None: every row the same.
    max_epochs : int
        Passes over the labeled rows, if towers are trained or fine-tuned.
    lr
        Use 1e-5 or less to fine-tune published weights.
    weight_decay : float
        Weight decay, not applied to biases, norms and the temperature. For fine-tuning,
        use 1e-3.

    Attributes
    ----------
    prompts_ : list of n_classes list of str
        Texts of each class, in the order of ``classes_``.
    class_embedding_ : ndarray of shape (n_classes, n_features), float32
        Direction of each class: the mean of its texts, rows of length 1.
    logit_scale_ : float
        Factor of the cosines.
    C_ : float
        Value used by the probe, if there is one.
    alpha_, beta_ : float
        Values used by the adapter, if there is one.
    embedder_ : CLIPTransformer
        Fitted embedder; ``embedder_.net_.history`` describes its training.
    net_ : skorch.NeuralNet
        Image tower and classifier, for prediction only.
    encoder_ : nn.Module
        Image tower.
    n_iter_ : int
        Epochs that the embedder was trained.

    Raises
    ------
    ValueError
        If a template has no place for the name, a class has no prompt, y does not fit X
        or ``class_names``, labels are needed but missing, or the embedder is untrained.
    TypeError
        If the embedder does not embed texts.

    See Also
    --------
    sklabel.embedding.CLIPTransformer : The towers; search by words.
    SupervisedClassifier : Learns from labels alone.

    Notes
    -----
    Prediction works without ``fit`` if there is nothing to learn: the embedder is
    fitted or has published weights, ``class_names`` are given and ``few_shot`` is
    "zero_shot". Each call then repeats the preparation and reads published weights
    again; ``fit(X)``, without labels, does this once. A pipeline always requires
    ``fit``.

    Sample and class weights apply to the probe and to the memory. The contrastive
    training needs none: it does not depend on how often a class occurs.

    Differences from the papers: the probe's penalty includes the intercept, and pulls
    to the prompts; the memory of the adapter holds plain embeddings unless
    ``memory_views`` is set; "auto" chooses ``alpha`` and ``beta`` before the memory is
    trained. The memory is a sum over rows: with many labels, classes without labels are
    forgotten, and ``alpha`` should be smaller.

    References
    ----------
    .. [1] A. Radford et al., "Learning transferable visual models from natural language
       supervision", ICML 2021; section 3.1.
    .. [2] R. Zhang et al., "Tip-Adapter: training-free adaption of CLIP for few-shot
       classification", ECCV 2022; equation 5.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.classification import CLIPClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 200, y, -1)
    >>> names = "zero one two three four five six seven eight nine".split()
    >>> clf = CLIPClassifier(
    ...     dict(enumerate(names)), prompts="the digit {}", max_steps=40, random_state=0
    ... ).fit(X, y_partly)
    >>> clf.score(X, y) > 0.5
    True
    """

    class_names: ArrayLike | dict | None = None
    _: KW_ONLY
    prompts: str | ArrayLike | dict = _TEMPLATES
    few_shot: Literal["zero_shot", "linear", "adapter", "fine_tune"] = "zero_shot"
    C: Positive | Literal["auto"] = "auto"
    shrink_to: Literal["text", "zero"] = "text"
    alpha: NonNegative | Literal["auto"] = 1.0
    beta: Positive | Literal["auto"] = 5.5
    memory_views: CountOrZero = 0
    memory_epochs: CountOrZero = 0
    memory_lr: Positive = 1e-3
    logit_scale: Positive | None = None
    embedder: BaseEstimator | None = None
    augment: Augment = "auto"
    max_epochs: Count = 100
    batch_size: AtLeastTwo = 64
    weight_decay: NonNegative = 0.2

    _bound = ("embedder",)
    _transduces = True  # whether fit classifies the rows of X, too

    @fitting
    def fit(self, X, y=None, sample_weight=None):
        """Describe the classes, and learn from the labeled rows, if there are any.

        Parameters
        ----------
        X : array-like
            Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``; paths of image
            files; or vectors ``(n, D)``.
        y : array-like of shape (n_samples,) or None, default=None
            Classes, or their positions in ``class_names``; -1, None or NaN for
            unlabeled rows. None: no row is labeled, which needs ``class_names``.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of a labeled row in the probe and in the memory, multiplied by the
            weight of its class. Weights of unlabeled rows are ignored.

        Returns
        -------
        self : CLIPClassifier
        """
        samples = self._check_X(X, reset=True)
        codes = self._encode_y(y, samples)
        with self._seeded() as seed:
            labeled = self._split_calibration(codes, samples, sample_weight, seed)
            self.embedder_ = self._fit_towers(X, labeled.rows, labeled.codes)
            self._set_tower(samples)
            Z = self._forward_rows(samples) if self._transduces else None
            self._set_head(Z, labeled, seed)
            if self._transduces:
                self._look_at_probe(X, labeled, seed)
        if self._transduces:
            p = self._classify(Z)
            names = "logit_scale_", "alpha_", "beta_"
            given = [f"{k}={vars(self)[k]:.3g}" for k in names if hasattr(self, k)]
            check_finite(
                p[samples.good],
                f"The logits are too large for float32: lower {' or '.join(given)}.",
            )
            self._finish(p, codes, labeled.withheld, y)
        return self

    def score(self, X, y, sample_weight=None):
        """Return the accuracy on the labeled rows.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.
        y : array-like of shape (n_samples,)
            Classes, or their positions in ``class_names``; rows that are unlabeled (-1,
            None or NaN) do not count.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row.

        Returns
        -------
        accuracy : float
        """
        ready = self._ready(X)
        if self.class_names is not None:
            codes = encode_named(y, self.class_names, ready.classes_)
            y = decode_labels(codes, ready.classes_)
        return super(CLIPClassifier, ready).score(X, y, sample_weight)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "net_")

    def _ready(self, X):
        """Return this classifier, or one made on the spot if fit can be skipped."""
        if hasattr(self, "net_"):
            return self
        embedder = unfrozen(self.embedder)
        learned = embedder is not None and (
            hasattr(embedder, "net_") or not get_tags(embedder).target_tags.required
        )
        if self.class_names is None or self.few_shot != "zero_shot" or not learned:
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet: call fit "
                'first. Only with class_names, few_shot="zero_shot" and an embedder '
                "that is fitted or has published weights can you skip fit."
            )
        ready = copy.copy(self)
        ready._transduces = False
        samples = check_samples(ready, X, True)
        if len(samples) == 1 or isinstance(samples.source, ImageFiles):
            # fit wants two rows; of files that can be read any two do, which is sooner
            X = _safe_indexing(X, np.resize(samples.good, 2))
        return ready.fit(X)

    # -- classes and their texts

    def _encode_y(self, y, samples):
        if self.class_names is None:
            codes = super()._encode_y(y, samples)
            self._names = [str(label) for label in self.classes_.tolist()]
        else:
            self.classes_, self._names = sorted_classes(self.class_names)
            self.calibration_temperature_ = 1.0
            codes = np.full(len(samples), -1)
            if y is not None:
                check_labels(
                    y, n_samples=len(samples), min_classes=0, classes=self.classes_
                )
                codes = encode_named(y, self.class_names, self.classes_)
        self.prompts_ = write_prompts(self.prompts, self.classes_, self._names)
        if self.few_shot != "zero_shot" and not (codes[samples.good] >= 0).any():
            raise ValueError(
                f"few_shot={self.few_shot!r} learns from labels, but y has no labeled "
                'row that can be read: label rows, or use few_shot="zero_shot".'
            )
        return codes

    # -- the towers

    def _fit_towers(self, X, samples, codes):
        """Return the embedder, fitted."""
        embedder = self.embedder
        inner = unfrozen(embedder)
        if embedder is not None and not hasattr(inner, "encode_text"):
            raise TypeError(
                f"embedder={type(inner).__name__} does not embed texts: use "
                "sklabel.embedding.CLIPTransformer."
            )
        fine_tune = self.few_shot == "fine_tune"
        if self._continued is not None:
            if not fine_tune and embedder is not None:
                return self.embedder_
            embedder = self._learning_copy(unfrozen(self.embedder_))
            if self.embedder is None:
                embedder.set_params(backbone=self.backbone)
        elif embedder is None:
            if str(self.backbone).startswith("open_clip/"):
                raise ValueError(
                    f"backbone={self.backbone!r} has random weights: give "
                    f"embedder=CLIPTransformer(backbone={self.backbone!r}, "
                    "weights=...)."
                )
            names = ("backbone", "device", "precision", "verbose")
            own = {name: getattr(self, name) for name in names}
            embedder = CLIPTransformer(**own, **self._training())
        elif hasattr(inner, "net_"):
            if inner.sample_shape_ != self.sample_shape_:
                raise ValueError(
                    f"embedder={type(inner).__name__} was fitted on samples of shape "
                    f"{inner.sample_shape_}, but X has samples of shape "
                    f"{self.sample_shape_}: resize the images."
                )
            if not fine_tune:
                return embedder
            embedder = self._learning_copy(inner)
            embedder._unfinished = False  # its own training is over, even if broken off
        elif isinstance(embedder, FrozenEstimator):
            raise NotFittedError("The embedder is frozen but not fitted: fit it first.")
        else:
            if get_tags(embedder).target_tags.required:
                self._complain_of_no_weights(embedder)
            if not fine_tune:
                return self._fit_nested(embedder, samples.readable(X))
            embedder = clone(embedder).set_params(**self._training())
        return self._train_on_prompts(embedder, X, samples, codes)

    def _complain_of_no_weights(self, embedder):
        problem = (
            f"embedder={type(embedder).__name__} is not fitted and has no published "
            "weights. A clone of this classifier, as GridSearchCV makes, loses a "
            "fitted embedder: fit the embedder on images and texts, and give "
            "FrozenEstimator(embedder)."
        )
        if self.few_shot != "fine_tune":
            raise ValueError(
                f"{problem} few_shot={self.few_shot!r} does not train it; "
                '"fine_tune" does, on the labels alone.'
            )
        warn(f"{problem} It is now trained on the labels alone.", UserWarning)

    def _learning_copy(self, embedder):
        """Return a fitted embedder's copy, whose next fit goes on from its weights."""
        embedder = copy.deepcopy(embedder)
        return embedder.set_params(warm_start=True, **self._training())

    def _training(self):
        settings = {name: getattr(self, name) for name in _TRAINING}
        # rows of a class share their texts
        return {"same_captions": "positives", **settings}

    def _train_on_prompts(self, embedder, X, samples, codes):
        if len(np.unique(codes[(codes >= 0) & ~samples.bad])) < 2:
            raise ValueError(
                "Training the embedder needs labeled rows of at least two classes, and "
                "y has fewer: label more rows, or give an embedder that is fitted or "
                "has published weights."
            )
        texts = np.empty(len(codes), dtype=object)
        texts[:] = [self.prompts_[code] if code >= 0 else [] for code in codes]
        return self._fit_copy(embedder, samples.readable(X), texts[samples.good])

    def _check_usable(self, usable, codes):
        if self.few_shot != "zero_shot":  # which learns from no label
            super()._check_usable(usable, codes)

    # -- the classifier on top

    def _set_tower(self, samples):
        """Set ``net_`` to the image tower, which embeds until it has a head."""
        own = _PromptClassifier(*self._image_tower())
        self._stage("classify", own, Shuffled(samples), train=False)
        self.n_iter_, self._fresh = unfrozen(self.embedder_).n_iter_, False

    def _image_tower(self):
        module = unfrozen(self.embedder_).net_.module_
        return copy.deepcopy(module.backbone), copy.deepcopy(module.project)

    def _set_head(self, Z, labeled, seed):
        weight = self._weigh_prompts()
        self._forget("C_", "alpha_", "beta_")
        if self.few_shot == "linear":
            _, *given = _labeled_rows(Z, labeled)
            head = self._fit_probe(weight, *given, seed)
        elif self.few_shot == "adapter":
            head = self._fit_memory(weight, labeled.rows, *_labeled_rows(Z, labeled))
        else:
            head = FewShotHead(weight)
        self._n_cached = len(head.keys)
        self.net_.module_.head = head.requires_grad_(False).to(self.net_.device)

    def _weigh_prompts(self):
        """Return the weights of the classifier that the prompts are, (K, D)."""
        embedder = unfrozen(self.embedder_)
        texts = embedder.encode_text([t for own in self.prompts_ for t in own])
        sizes = [len(own) for own in self.prompts_]
        texts = torch.from_numpy(texts).double().split(sizes)
        embedding = class_embedding(texts).numpy()
        self.class_embedding_ = embedding.astype(np.float32)
        self.logit_scale_ = float(self.logit_scale or embedder.logit_scale_)
        return self.logit_scale_ * embedding

    def _fit_probe(self, start, Z, codes, weights, seed):
        probe = corrected_probe
        if self.shrink_to == "zero":
            start, probe = np.zeros_like(start), linear_probe
        self.C_ = self.C
        if self.C == "auto":
            self.C_ = choose_c(probe, Z, codes, weights, start, seed)
        return FewShotHead(*probe(Z, codes, weights, start, self.C_))

    def _fit_memory(self, weight, samples, rows, Z, codes, weights):
        keys, values = Z, np.eye(len(weight))[codes] * weights[:, None]
        if self.memory_views:
            policy = self._build_views(samples)
            views = [
                self._embed_views(policy, samples, rows)
                for _ in range(self.memory_views)
            ]
            keys = normalize(np.mean(views, axis=0))
        self.alpha_, self.beta_ = self.alpha, self.beta
        if "auto" in (self.alpha, self.beta):
            logits = Z @ weight.T
            self.alpha_, self.beta_ = choose_memory(
                Z, keys, codes, weights, values, logits, self.alpha, self.beta
            )
        if self.memory_epochs:

            def embed():
                if not self.memory_views:
                    return Z
                return normalize(self._embed_views(policy, samples, rows))

            keys = tuned_keys(
                keys,
                values,
                weight,
                codes,
                weights,
                self.alpha_,
                self.beta_,
                embed,
                self.memory_epochs,
                self.memory_lr,
                self.batch_size,
            )
            check_finite(
                keys,
                f"The training of the memory diverged: lower memory_lr={self.memory_lr}"
                f", alpha={self.alpha_} or beta={self.beta_}.",
            )
        return FewShotHead(weight, None, keys, values, self.alpha_, self.beta_)

    def _build_views(self, samples):
        """Return the policy of random views."""
        shift = Contrastive(crop=(0.9, 1.0), flip=0, jitter=0, grayscale=0)
        policy = self._build_augment(self.augment, shift, *samples.statistics())
        return getattr(policy, "to", lambda device: policy)(self.net_.device)

    def _embed_views(self, policy, samples, rows):
        """Return the embeddings of a view of each row, of any length."""
        module = self.net_.module_

        def embed(x):
            return module.project(module.backbone(policy(x)))

        return self.net_.evaluate(samples, rows, embed).double().numpy()

    def _classify(self, Z):
        """Return the probabilities of rows that are embedded already."""
        with torch.inference_mode():
            z = torch.from_numpy(Z).to(self.net_.device)
            return self.net_.module_.head(z).cpu().numpy()

    def _build_module(self, mean, std):
        n_classes, n_features = self.class_embedding_.shape
        keys = np.zeros((self._n_cached, n_features))
        values = np.zeros((self._n_cached, n_classes))
        head = FewShotHead(self.class_embedding_, None, keys, values)
        return _PromptClassifier(*self._image_tower(), head)


def _labeled_rows(Z, labeled):
    """Return numbers, embeddings, codes and weights (on average 1) of labeled rows."""
    weights = np.ones(len(Z)) if labeled.weights is None else labeled.weights
    rows = np.flatnonzero((labeled.codes >= 0) & (weights > 0) & ~np.isnan(Z[:, 0]))
    weights = weights[rows]
    weights = weights * (len(weights) / weights.sum())
    return rows, Z[rows].astype(np.float64), labeled.codes[rows], weights
