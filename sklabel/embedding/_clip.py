"""CLIP: contrastive language-image pretraining (Radford et al., 2021)."""

import copy
import math
from collections.abc import Callable
from dataclasses import InitVar
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._core.callbacks import fitting
from .._core.freezing import thaw_
from .._core.health import CollapseWarning, watch_features
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    Augment,
    Count,
    NonNegative,
    Positive,
    UnitInterval,
    between,
    one_of,
    whole,
)
from .._core.processes import gathered, n_in_step
from .._core.roles.embedding import EmbeddingRole
from .._core.roles.search import SearchRole
from .._core.samplers import Captioned, Shuffled
from .._core.texts import check_captions, check_texts, check_tokens
from .._core.warn import warn
from ..augment import Contrastive
from ..backbones import Encoder
from ..losses import clip_loss, unit_rows
from ..modules import Method
from ..optim import _NORMS
from ..pretrained import _WITH_WEIGHTS, open_clip_model, open_clip_tokenizer
from ..text import TextTower, tokenizer

_OPEN_CLIP = "open_clip/"
_PARTS = ("image", "text", "norms")
# a rate from which on published weights were seen to be undone
_HIGH_LR = 1e-4


class _CLIP(Method):
    """Two towers into one space, and the temperature of their similarities."""

    backbone: nn.Module
    project: nn.Module
    text: nn.Module
    n_features_out: int
    log_scale: InitVar[float]

    def __post_init__(self, log_scale):
        self.logit_scale = nn.Parameter(torch.tensor(float(log_scale)))

    def set_training(self, augment, max_logit_scale, same_captions, frozen):
        self.augment = augment
        self.max_log_scale = math.log(max_logit_scale)
        self.same_captions = same_captions
        thaw_(self)
        norms = [n for n, part in self.named_modules() if isinstance(part, _NORMS)]
        parts = {"image": ["backbone"], "text": ["text"], "norms": norms}
        self.frozen = ()
        for part in frozen:
            for name in parts[part]:
                self.set_trained(name, False)

    def forward(self, x):
        return unit_rows(self.project(self.backbone(x)))  # (B, D)

    def encode_text(self, tokens):
        return unit_rows(self.text(tokens))  # (B, D)

    def loss(self, x, tokens):
        return self.contrast(self(self.augment(x)), tokens)

    def contrast(self, images, tokens):
        """Return the loss of embedded images (B, D) and tokens, and metrics."""
        # a text that several rows share is encoded once
        tokens, which = tokens.unique(dim=0, return_inverse=True)
        texts = gathered(self.encode_text(tokens)[which])
        images = gathered(images)
        positives = None
        if self.same_captions == "positives":
            if n_in_step() > 1:  # a text has another number in each process
                tokens = gathered(tokens[which])
                which = tokens.unique(dim=0, return_inverse=True)[1]
            positives = which[:, None] == which  # (B, B)
        loss = clip_loss(images, texts, self.logit_scale, positives)
        with torch.no_grad():
            s = images @ texts.T
            found = s.diagonal() >= s.max(1).values
        return loss, {
            "train_accuracy": found.float().mean(),
            "logit_scale": self.logit_scale.detach().exp(),
        }

    @torch.no_grad()
    def after_step(self):
        self.logit_scale.clamp_(0, self.max_log_scale)


class _PublishedTexts(nn.Module):
    """The text tower of a model of open_clip."""

    def __init__(self, model):
        super().__init__()
        del model.visual, model.logit_scale
        self.model = model

    def forward(self, tokens):
        return self.model.encode_text(tokens)


class CLIPTransformer(SearchRole, EmbeddingRole, Learner):
    """Embed images and texts in one space, where an image is near its description.

    An image tower and a text tower are trained on pairs: each image must identify its
    text among the texts of the batch, and each text its image. The trained towers can
    search images by words and classify them by class names without examples. They are
    trained from random weights, or loaded with published weights through ``open_clip``
    and used as is or fine-tuned. Read more in the :ref:`User Guide <clip>`.

    Parameters
    ----------
    projection_size : int
        Length of an embedding; published weights have their own. Paper: 512.
    temperature : float
        Initial temperature of the contrastive loss, > 0; it is learned. Published
        weights have their own.
    max_logit_scale : float
        Largest value of 1 / temperature, >= 1; clipped after each step.
    same_captions : {"negatives", "positives", "unique"}
        How to treat images of a batch with the same text. "negatives": as negative
        pairs, as published, good if texts rarely repeat; "positives": the target is
        spread over all of them; "unique": no batch has the same text twice, and if a
        text has more rows than there are batches, some of its rows are left out of the
        epoch.
    tokenizer : {"auto", "bytes", "bpe"} or callable
        Tokenizer of texts, if the towers are not published ones. "bytes": each byte is
        a token, no vocabulary; "bpe": the published vocabulary of 49,408 word pieces
        (extra ``clip``), with fewer tokens per text but a larger text tower; a callable
        turns a list of n str into integers (n, L), L <= context_length, 0 after the
        end. "auto": "bytes", and with published weights the model's own.
    context_length : int
        Maximum number of tokens of a text, including its start and end; more are cut
        off.
    text_width : int
        Width of the text tower. Paper: 512.
    text_layers : int
        Layers of the text tower. Paper: 12.
    text_heads : int
        Attention heads of the text tower; a divisor of ``text_width``. Paper: 8.
    weights : str, Path or None
        Weights of ``backbone="open_clip/NAME"``: their name, such as
        "laion2b_s34b_b79k", downloaded from a hub, or a file in safetensors format or
        with a state dict; no code in the file is executed. "DEFAULT": the first that
        open_clip lists. None: random weights.
    frozen : {"image", "text", "norms"}, list of them or None
        Parts that are not trained: a tower, or all norm layers with their statistics.
    start_weight : float
        Weight of the initial weights in the final average of initial and trained
        weights, in [0, 1]. After fine-tuning, 0.5 is often better on images of another
        kind.
    augment : "auto", nn.Module or None
        Random views; "auto": a crop of at least nine tenths of the area for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Images are not flipped,
        because texts may say left and right.
    max_epochs
        Published: 32 over 400 million pairs.
    batch_size
        Published: 32768.
    lr
        Published: 5e-4. Use 1e-5 or less to fine-tune published weights.
    weight_decay : float
        Weight decay, not applied to biases, norms and the temperature. For fine-tuning,
        use 1e-3.

    Attributes
    ----------
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``train_accuracy``
        (share of images whose own text is the nearest in the batch), ``logit_scale`` (1
        / temperature), ``feature_std`` (1: spread over the sphere, 0: collapsed) and
        ``effective_rank``.
    encoder_ : nn.Module
        Image tower without its projection; published towers include it.
    projection_ : nn.Module or None
        Projection from the image tower into the common space; None if the tower
        includes it. As ``backbone`` of other estimators, both are used.
    vocabulary_size_ : int or None
        Number of different tokens; None for published models.

    Raises
    ------
    ValueError
        If there are no texts and no weights, all texts are the same, y does not fit X,
        the name of a model or of its weights is unknown, or a weight file cannot be
        read or belongs to another model.
    ImportError
        If ``open_clip`` is needed and not installed.
    OSError
        If weights cannot be downloaded.

    See Also
    --------
    sklabel.classification.CLIPClassifier : Classifies by the names of the classes.
    SimCLRTransformer : Learns from images alone.

    Notes
    -----
    To use an image tower of torchvision or timm with published weights, give
    ``backbone=PretrainedTransformer("resnet50").fit(X)``; it is trained further.
    ``backbone="open_clip/NAME"`` uses both towers of that model; the images of X, all
    of one size, are resized, cropped and standardized as its weights require. Image
    files of several sizes are first stretched to ``image_size``, which changes their
    aspect ratio; :class:`PretrainedTransformer` prepares each file separately, and its
    vectors, scaled to length 1, can be searched as ``Z``.
    ``"open_clip/hf-hub:OWNER/NAME"`` and ``"open_clip/local-dir:FOLDER"`` include their
    weights. Files of OpenAI's weights do not say which activation they were trained
    with: use a NAME that ends in "-quickgelu" for them.

    Differences from the paper, for small data and batches: small towers, a learning
    rate of 1e-3, a warm-up of one epoch, and byte tokens. The paper's optimizer:
    ``lr=5e-4, net_params={"optimizer__betas": (0.9, 0.98), "optimizer__eps": 1e-6}``.
    Fine-tuning: ``lr=1e-5, weight_decay=1e-3, frozen="norms", start_weight=0.5``.

    References
    ----------
    .. [1] A. Radford et al., "Learning transferable visual models from natural language
       supervision", ICML 2021; figure 3 and section 2.
    .. [2] M. Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022: the
       average with the first weights.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.embedding import CLIPTransformer
    >>> X, y = load_digits(return_X_y=True)
    >>> names = "zero one two three four five six seven eight nine".split()
    >>> texts = [f"the digit {names[k]}" for k in y]
    >>> clip = CLIPTransformer(same_captions="positives", max_steps=20, random_state=0)
    >>> rows, similarities = clip.fit(X, texts).search("the digit two", X, n_results=5)
    >>> rows.shape
    (1, 5)
    """

    projection_size: Count = 128
    _: KW_ONLY
    temperature: Positive = 0.07
    max_logit_scale: Annotated[float, between(1, None)] = 100.0
    same_captions: Literal["negatives", "positives", "unique"] = "negatives"
    tokenizer: Literal["auto", "bytes", "bpe"] | Callable = "auto"
    context_length: Annotated[int, whole(3)] = 77
    text_width: Count = 128
    text_layers: Count = 3
    text_heads: Count = 4
    weights: str | Path | None = None
    frozen: Annotated[str, one_of(_PARTS)] | list | tuple | None = None
    start_weight: UnitInterval = 0.0
    augment: Augment = "auto"
    weight_decay: NonNegative = 0.2
    warmup_epochs: NonNegative = 1

    _bound = ("tokenizer",)

    @fitting
    def fit(self, X, y=None):
        """Train both towers on images and their texts.

        Parameters
        ----------
        X : array-like
            Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``; paths of image
            files; or vectors ``(n, D)``.
        y : array-like of length n_samples or None, default=None
            A text for each image, or a list of texts, one of which is drawn each time;
            -1, None or NaN for images without a text, which are left out. Numbers are
            converted to text. None: nothing is trained, published weights are loaded.

        Returns
        -------
        self : CLIPTransformer
        """
        samples = self._check_X(X, reset=True)
        if y is None and self._continued is None and not self._brings_weights():
            raise ValueError(
                f"{type(self).__name__} without weights requires y to be passed, but "
                "the target y is None: give a text for each image, or published "
                'weights, such as backbone="open_clip/ViT-B-32", '
                'weights="laion2b_s34b_b79k".'
            )
        texts = None if y is None else check_captions(y, samples)
        with self._seeded():
            self._train(samples, texts)
        self._check_health()
        return self

    def _train(self, samples, texts):
        statistics = samples.statistics()
        load = self._continued is None
        if load:
            self.vocabulary_size_ = None  # that of the last fit is no limit
            self.vocabulary_size_ = self._count_tokens(texts)
        module = self._part("", lambda: self._build_module(*statistics, load))
        if texts is None:
            self._stage("fit", module, Shuffled(samples), train=False)
            return
        if self._brings_weights() and self.lr > _HIGH_LR:
            warn(
                f"lr={self.lr} is likely to undo the weights={str(self.weights)!r}: "
                "fine-tune with lr=1e-5 or less.",
                UserWarning,
            )
        start = copy.deepcopy(module.state_dict()) if self.start_weight > 0 else {}
        pairs = self._pair(samples, texts)
        self._stage("fit", module, pairs, watch=watch_features)
        self._check_learned(pairs.samples.n_trained)
        trained = module.state_dict()
        for name, first in start.items():
            if first.is_floating_point():
                trained[name].lerp_(first.to(trained[name]), self.start_weight)

    def _check_learned(self, n_pairs, n_steps=100):
        """Warn if the loss after many steps is no better than chance."""
        net = self.net_
        if not net.history or net.step_ < n_steps:
            return
        loss = net.history[-1, "train_loss"]
        guessed = math.log(n_pairs / net.history[-1, "train_batch_count"])
        if loss > 0.98 * guessed:
            warn(
                f"{type(self).__name__} has learned nothing: its loss is {loss:.3f}, "
                f"and {guessed:.3f} by chance. Check that each text describes its "
                f"image, or change lr={self.lr}, which may be too high or too low.",
                CollapseWarning,
            )

    def encode_text(self, texts):
        """Embed texts.

        Parameters
        ----------
        texts : str or list of str
            Of length n_texts.

        Returns
        -------
        T : ndarray of shape (n_texts, n_features_out), float32
            Rows have length 1; their dot products with embeddings of images are
            cosines.
        """
        check_is_fitted(self)
        tokens = self._tokenize(check_texts(texts))
        if self._model_name() is None:  # nothing stands behind the longest text
            tokens = tokens[:, : int((tokens != 0).any(0).nonzero().max()) + 1]
        return self.net_.evaluate_tensor(tokens, self.net_.module_.encode_text).numpy()

    def score(self, X, y=None):
        """Return the negative contrastive loss on pairs.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.
        y : array-like of length n_samples
            Texts, as in :meth:`fit`.

        Returns
        -------
        score : float
            Higher is better. Values are comparable only for equal ``batch_size`` and
            ``same_captions``.
        """
        samples = self._check_X(X)
        if y is None:
            raise ValueError("score requires y to be passed, the texts of the images.")
        pairs = self._pair(samples, check_captions(y, samples))
        module = self.net_.module_
        with self._seeded():
            losses = self.net_.evaluate_epoch(
                pairs, lambda x, tokens: float(module.contrast(module(x), tokens)[0])
            )
        return -float(np.mean(losses))

    @property
    def projection_(self):
        """Projection into the common space; None if the image tower includes it."""
        check_is_fitted(self)
        project = self.net_.module_.project
        return None if isinstance(project, nn.Identity) else project

    @property
    def logit_scale_(self):
        """Factor of the cosines in the loss, 1 / learned temperature."""
        check_is_fitted(self)
        return float(self.net_.module_.logit_scale.detach().exp())

    def _brings_weights(self):
        name = self._model_name()
        if name is None:
            return False
        return self.weights is not None or name.startswith(_WITH_WEIGHTS)

    def _model_name(self):
        """Return the name of the published model, or None without one."""
        spec = self.backbone
        if isinstance(spec, str) and spec.startswith(_OPEN_CLIP):
            return spec[len(_OPEN_CLIP) :]
        if self.weights is not None:
            raise ValueError(
                f"weights={str(self.weights)!r} needs a model of open_clip, such as "
                'backbone="open_clip/ViT-B-32". Weights of torchvision and timm come '
                'with backbone=PretrainedTransformer("resnet50").fit(X); what save '
                "wrote, sklabel.load reads."
            )
        return None

    # -- texts

    def _pair(self, samples, texts):
        trim, unique = self._model_name() is None, self.same_captions == "unique"
        return Captioned(samples, texts, self._tokenize, trim, unique)

    def _tokenizer(self):
        name = self._model_name()
        if name is not None:
            return open_clip_tokenizer(name)
        if callable(self.tokenizer):
            return self.tokenizer
        name = "bytes" if self.tokenizer == "auto" else self.tokenizer
        return tokenizer(name, self.context_length)

    def _count_tokens(self, texts):
        """Return how many different tokens the text tower must know."""
        if self._model_name() is not None:
            if callable(self.tokenizer) or self.tokenizer != "auto":
                raise ValueError(
                    f"tokenizer={self.tokenizer!r} is not that of {self.backbone!r}: "
                    'use tokenizer="auto".'
                )
            return None
        known = getattr(self._tokenizer(), "vocab_size", None)
        if known is None:
            tokens = self._tokenize([text for own in texts for text in own])
            known = int(tokens.max()) + 1
        return int(known)

    def _tokenize(self, texts):
        """Return tokens (n, L) of texts; those of a given tokenizer are checked."""
        tokens = torch.as_tensor(np.asarray(self._tokenizer()(texts)))
        if self._model_name() is None:
            limit = getattr(self, "vocabulary_size_", None)
            check_tokens(tokens, texts, self.tokenizer, self.context_length, limit)
        return tokens.long()

    # -- towers

    def _frozen(self):
        frozen = () if self.frozen is None else self.frozen
        frozen = (frozen,) if isinstance(frozen, str) else tuple(frozen)
        unknown = [part for part in frozen if part not in _PARTS]
        if unknown:
            raise ValueError(f"frozen names {unknown}, but the parts are {_PARTS}.")
        return frozen

    def _set_training(self, module, mean, std):
        # as published: hardly more than a shift
        published = Contrastive(crop=(0.9, 1.0), flip=0, jitter=0, grayscale=0)
        augment = self._build_augment(self.augment, published, mean, std)
        module.set_training(
            augment, self.max_logit_scale, self.same_captions, self._frozen()
        )
        return module

    def _build_module(self, mean, std, load=True):
        name = self._model_name()
        if name is not None:
            module = self._build_published(name, load)
        else:
            module = self._build_towers(mean, std)
        return self._set_training(module, mean, std)

    def _build_towers(self, mean, std):
        if self.text_width % self.text_heads:
            raise ValueError(
                f"text_heads={self.text_heads} must divide "
                f"text_width={self.text_width}."
            )
        backbone, size = self._build_backbone(mean, std), self.projection_size
        project = nn.Linear(backbone.n_features_out, size, bias=False)
        text = TextTower(
            self.vocabulary_size_,
            self.context_length,
            self.text_width,
            self.text_layers,
            self.text_heads,
            size,
        )
        return _CLIP(backbone, project, text, size, -math.log(self.temperature))

    def _build_published(self, name, load):
        shape = self.sample_shape_
        if len(shape) == 1:
            raise ValueError(
                f"backbone={self.backbone!r} needs images, but X holds vectors of "
                f"length {shape[0]}: give image_shape=(height, width, channels)."
            )
        weights, log_scale = None, -math.log(self.temperature)
        if self._brings_weights():
            weights = "DEFAULT" if self.weights is None else self.weights
        model, frame, mean, std = open_clip_model(name, weights, load=load)
        if weights is not None:
            log_scale = float(model.logit_scale.detach())
        encoder = Encoder(model.visual, (3, *frame.size), mean, std)
        backbone = Encoder(nn.Sequential(frame, encoder), shape)
        text = _PublishedTexts(model)
        return _CLIP(backbone, nn.Identity(), text, backbone.n_features_out, log_scale)

    def _rebuild_module(self, mean, std):
        return self._build_module(mean, std, load=False)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        spec = self.backbone
        published = isinstance(spec, str) and spec.startswith(_OPEN_CLIP)
        tags.target_tags.required = not (published and self._brings_weights())
        return tags
