"""CLIP as a classifier: classes from their names, and from a few labels (2021)."""

import copy
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing, get_tags
from torch import nn

from .._core.callbacks import fitting
from .._core.inputs import ImageFiles, check_samples
from .._core.labels import check_labels, decode_labels, encode_labels, is_labeled
from .._core.learner import Learner, unfrozen
from .._core.parameters import (
    KW_ONLY,
    ArrayLike,
    AtLeastTwo,
    Augment,
    Count,
    NonNegative,
    Positive,
)
from .._core.roles.classification import ClassificationRole
from .._core.samplers import Shuffled
from .._core.warn import warn
from ..embedding import CLIPTransformer
from ..losses import unit_rows

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
_C_GRID = 10.0 ** np.arange(-2, 5)
_ALPHA_GRID = np.array([0.1, 0.3, 1.0, 3.0, 10.0])
_BETA_GRID = np.array([1.0, 2.0, 5.5, 10.0, 20.0])


class _PromptClassifier(nn.Module):
    """An image tower and what makes classes of its embedding; not trained itself."""

    def __init__(self, backbone, project, head=None):
        super().__init__()
        self.backbone = backbone
        self.project = project
        self.head = head
        self.requires_grad_(False)

    def forward(self, x):
        z = unit_rows(self.project(self.backbone(x)))  # (B, D)
        return z if self.head is None else self.head(z)


class _Head(nn.Module):
    """Probabilities from embeddings: a linear layer, and labeled rows as a memory."""

    def __init__(self, weight, bias, keys, values, alpha, beta):
        super().__init__()
        n_classes, n_features = weight.shape
        self.linear = nn.Linear(n_features, n_classes)
        with torch.no_grad():
            self.linear.weight.copy_(torch.as_tensor(weight))
            self.linear.bias.copy_(torch.as_tensor(bias))
        self.register_buffer("keys", torch.as_tensor(keys, dtype=torch.float32))
        self.register_buffer("values", torch.as_tensor(values, dtype=torch.float32))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    def forward(self, z):
        # logits reach 100: bfloat16 would round them to halves
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            logits = self.linear(z)  # (B, K)
            if len(self.keys):
                logits = logits + remembered(
                    z, self.keys, self.values, self.alpha, self.beta
                )
            return logits.softmax(1)


def class_embedding(texts):
    """Return one direction for each class from the embeddings of its prompts.

    Parameters
    ----------
    texts : sequence of K Tensor of shape (n_prompts, D)
        Of any length; each row is normalized first, and their mean again.

    Returns
    -------
    embedding : Tensor of shape (K, D)
    """
    return torch.stack([unit_rows(unit_rows(own).mean(0)) for own in texts])


def remembered(images, keys, values, alpha, beta):
    r"""Return what labeled rows say of others: the memory of Tip-Adapter.

    .. math:: \alpha \exp(-\beta (1 - u F^T)) L

    Parameters
    ----------
    images : Tensor of shape (n, D)
        u, rows of length 1.
    keys : Tensor of shape (m, D)
        F, embeddings of the labeled rows, of length 1.
    values : Tensor of shape (m, K)
        L, their classes, one-hot.
    alpha, beta : float
        Weight, and sharpness: how fast it falls with the distance.

    Returns
    -------
    logits : Tensor of shape (n, K)
    """
    return alpha * torch.exp(-beta * (1 - images @ keys.T)) @ values


def linear_probe(Z, codes, weights, start, C):
    """Return a logistic regression whose penalty pulls it to given weights.

    Parameters
    ----------
    Z : ndarray of shape (n, D)
    codes : ndarray of int of shape (n,)
    weights : ndarray of shape (n,)
    start : ndarray of shape (K, D)
        Where it is pulled to.
    C : float
        Inverse strength of the penalty, on the intercept too.

    Returns
    -------
    coef : ndarray of shape (K, D)
    intercept : ndarray of shape (K,)
    """
    A = np.column_stack([Z, np.ones(len(Z))]).astype(np.float64)
    base = Z @ start.T  # (n, K)
    rows = np.arange(len(Z))

    def loss(flat):
        change = flat.reshape(len(start), -1)
        log_p = log_softmax(base + A @ change.T, axis=1)
        error = np.exp(log_p)
        error[rows, codes] -= 1
        value = -C * (weights * log_p[rows, codes]).sum() + (flat @ flat) / 2
        gradient = C * (error * weights[:, None]).T @ A + change
        return value, gradient.ravel()

    first = np.zeros(len(start) * A.shape[1])
    # the default tolerances end far from the optimum where C is large
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-6}
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options=options)
    change = found.x.reshape(len(start), -1)
    return start + change[:, :-1], change[:, -1]


def corrected_probe(Z, codes, weights, start, C):
    """Return `linear_probe` of the classes that have rows; the others keep ``start``.

    That nobody has labeled a row of a class yet does not say that there is none.
    """
    found, own_codes = np.unique(codes, return_inverse=True)
    coef, intercept = start.copy(), np.zeros(len(start))
    coef[found], intercept[found] = linear_probe(Z, own_codes, weights, start[found], C)
    return coef, intercept


def _choose_c(probe, Z, codes, weights, start, seed, n_folds=5):
    """Return the C whose probes are best on rows left out."""
    n_folds = min(n_folds, len(Z))
    fold = np.random.default_rng(seed).permutation(len(Z)) % n_folds
    losses = []
    for C in _C_GRID:
        total = 0.0
        for k in range(n_folds):
            held, rest = fold == k, fold != k
            if not rest.any():
                continue
            coef, bias = probe(Z[rest], codes[rest], weights[rest], start, C)
            logits = Z[held] @ coef.T + bias
            total += _cross_entropy(logits, codes[held], weights[held])
        losses.append(total)
    return float(_C_GRID[int(np.argmin(losses))])


def _choose_adapter(Z, codes, weights, values, logits, alpha, beta):
    """Return alpha and beta, where "auto" the best on each row left out in turn."""
    distance = 1 - Z @ Z.T
    best = np.inf, None, None
    for b in _BETA_GRID if beta == "auto" else [beta]:
        near = np.exp(-b * distance)
        np.fill_diagonal(near, 0)  # a row is not to remember itself
        memory = near @ values
        for a in _ALPHA_GRID if alpha == "auto" else [alpha]:
            loss = _cross_entropy(logits + a * memory, codes, weights)
            if loss < best[0]:
                best = loss, float(a), float(b)
    return best[1:]


def _cross_entropy(logits, codes, weights):
    log_p = log_softmax(logits, axis=1)
    return -float((weights * log_p[np.arange(len(codes)), codes]).sum())


class CLIPClassifier(ClassificationRole, Learner):
    """Classify images by the names of the classes, with no label or a few.

    Each class is described by some texts, such as "a photo of a cat". An image gets the
    class whose texts lie nearest to it in the common space of a
    :class:`sklabel.embedding.CLIPTransformer`. Where some rows are labeled, a linear
    probe or a memory of their embeddings can be put on top, or the towers themselves
    fine-tuned. Read more in the :ref:`User Guide <clip_classifier>`.

    Parameters
    ----------
    class_names : list of str, dict or None
        Names of the classes; labels in y are these names or their positions in this
        list. A dict {label: name} keeps the labels as classes. None: the labels of y
        are the classes, and their text is their name.
    prompts : str, list of str, or dict
        Texts for each class: templates with a place ``{}`` for the name, or a dict
        {class or name: text or list of texts}. What the towers were trained on matters:
        names alone, ``"{}"``, where captions were short. Default: seven that the
        authors chose from eighty for ImageNet, and of which they found the average as
        good.
    few_shot : {"zero_shot", "linear", "adapter", "fine_tune"}
        What is done with labels. "zero_shot": nothing but ``transduction_``; "linear":
        a linear probe of the embeddings; "adapter": similarities to the labeled rows
        are added to those to the texts, without training; "fine_tune": both towers are
        trained on the prompts of the labeled rows.
    C : float or "auto"
        Inverse strength of the probe's penalty, > 0; "auto": from 0.01 to 10,000, the
        best on labeled rows left out.
    shrink_to : {"text", "zero"}
        What the penalty pulls the probe to. "text": the classifier of the prompts, so
        that few labels correct it and classes without one keep it; "zero": a plain
        probe, as in the paper.
    alpha : float or "auto"
        Weight of the memory in the adapter, >= 0. "auto": the best on each labeled row
        left out in turn.
    beta : float or "auto"
        Sharpness of the memory in the adapter, > 0. "auto": as ``alpha``.
    logit_scale : float or None
        Factor of the cosines before the softmax, > 0; None: that of the embedder. The
        paper has 100.
    embedder : CLIPTransformer or None
        Fitted: used as it is. With published ``weights`` and not fitted: cloned and
        loaded. Any other has learned nothing and is refused, but trained with a warning
        where ``few_shot`` is "fine_tune". None: one of small towers, trained on the
        prompts of the labeled rows with the parameters of training below. A clone of
        this classifier, as a search makes, keeps a fitted one only in a
        :class:`sklearn.frozen.FrozenEstimator`.
    augment : "auto", nn.Module or None
        Random views; "auto": a crop of nine tenths of the area at least for images,
        :class:`sklabel.augment.VectorNoise` for vectors. No flips: texts may say left
        and right.
    class_weight : dict, "balanced" or None
        Weight of labeled rows of a class in the probe and in the memory: {class:
        weight}; "balanced": every class the same; None: every row the same.
    max_epochs : int
        Passes over the labeled rows, where towers are trained or fine-tuned.
    lr
        Published weights are fine-tuned with 1e-5 or less.
    weight_decay : float
        Decay of weights; biases, norms and the temperature have none. In fine-tuning
        1e-3.

    Attributes
    ----------
    prompts_ : list of n_classes list of str
        Texts of each class, in the order of ``classes_``.
    class_embedding_ : ndarray of shape (n_classes, n_features), float32
        Direction of each class: the mean of its texts, rows of length 1.
    logit_scale_ : float
        Factor of the cosines.
    C_ : float
        Of the probe, where there is one.
    alpha_, beta_ : float
        Of the adapter, where there is one.
    embedder_ : CLIPTransformer
        Fitted embedder; ``embedder_.net_.history`` tells of its training.
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
        or ``class_names``, labels are needed and there are none, or the embedder has
        learned nothing.
    TypeError
        If the embedder does not embed texts.

    See Also
    --------
    sklabel.embedding.CLIPTransformer : The towers; search by words.
    SupervisedClassifier : Learns from labels alone.

    Notes
    -----
    ``fit`` may be left out before prediction where nothing is to be learned: the
    embedder is fitted or brings its weights, ``class_names`` are given and ``few_shot``
    is "zero_shot". Each call then prepares everything anew and reads published weights
    again; ``fit(X)``, without labels, does so once. A pipeline always asks for ``fit``.

    Weights of rows and classes count in the probe and in the memory. The contrastive
    training needs none: what it learns does not depend on how often a class occurs.

    Departures: the probe's penalty also holds the intercept, and pulls to the prompts;
    the memory of the adapter holds plain embeddings, not the mean over augmented views.
    The memory is a sum over rows: with many labels a class without one is forgotten,
    and ``alpha`` should be smaller.

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
    logit_scale: Positive | None = None
    embedder: BaseEstimator | None = None
    augment: Augment = "auto"
    max_epochs: Count = 100
    batch_size: AtLeastTwo = 64
    weight_decay: NonNegative = 0.2

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
            Weight of a labeled row in the probe and in the memory; times the weight of
            its class. Unlabeled rows have no weight.

        Returns
        -------
        self : CLIPClassifier
        """
        samples = self._check_X(X, reset=True)
        codes = self._encode_y(y, samples)
        with self._seeded() as seed:
            rows, trained, weights, held = self._split_calibration(
                codes, samples, sample_weight, seed
            )
            self.embedder_ = self._fit_towers(X, rows, trained)
            Z = self._embed(samples)
            self._set_head(Z, trained, weights, seed)
        if Z is not None:
            self._finish(Z, codes, held, y)
        return self

    def predict_proba(self, X):
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes), float32
            Columns in the order of ``classes_``.
        """
        return super(CLIPClassifier, self._ready(X)).predict_proba(X)

    def predict(self, X):
        """Return the class of each sample.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            -1 for a file that cannot be read, with ``on_error="skip"``.
        """
        return super(CLIPClassifier, self._ready(X)).predict(X)

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
            codes = _codes(y, self.class_names, ready.classes_)
            y = decode_labels(codes, ready.classes_)
        return super(CLIPClassifier, ready).score(X, y, sample_weight)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "net_")

    def _ready(self, X):
        """Return this classifier, or one made on the spot where fit may be left out."""
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
                "that is fitted or brings its weights it may be left out."
            )
        ready = copy.copy(self)
        ready._on_the_spot = True
        samples = check_samples(ready, X, True)
        if len(samples) == 1 or isinstance(samples.source, ImageFiles):
            # fit wants two rows; of files that can be read any two do, which is sooner
            X = _safe_indexing(X, np.resize(samples.good, 2))
        return ready.fit(X)

    # -- classes and their texts

    def _encode_y(self, y, samples):
        names = self.class_names
        if names is None:
            codes = super()._encode_y(y, samples)
            self._names = [str(label) for label in self.classes_.tolist()]
        else:
            labels = np.array(list(names))
            if labels.ndim != 1 or len(labels) < 2:
                raise ValueError(
                    f"class_names={names!r} must name two classes at least."
                )
            # sorted, as the scorers of scikit-learn take it for granted
            self.classes_, order = np.unique(labels, return_index=True)
            if len(order) < len(labels):
                raise ValueError(f"class_names={names!r} names a class twice.")
            own = list(names.values() if isinstance(names, dict) else names)
            self._names = [str(own[position]) for position in order]
            self.calibration_temperature_ = 1.0
            codes = np.full(len(samples), -1)
            if y is not None:
                check_labels(y, n_samples=len(samples), min_classes=0)
                codes = _codes(y, names, self.classes_)
        self.prompts_ = self._write_prompts()
        if self.few_shot != "zero_shot" and not (codes[samples.good] >= 0).any():
            raise ValueError(
                f"few_shot={self.few_shot!r} learns from labels, but y has no labeled "
                'row that can be read: label some, or use few_shot="zero_shot".'
            )
        return codes

    def _write_prompts(self):
        """Return the texts of each class."""
        prompts = self.prompts
        if not isinstance(prompts, dict):
            templates = [prompts] if isinstance(prompts, str) else list(prompts)
            for template in templates:
                if not isinstance(template, str) or "{}" not in template:
                    raise ValueError(
                        f"The template {template!r} in prompts has no place for the "
                        'name of a class: write {} there, as in "a photo of a {}.".'
                    )
            if not templates:
                raise ValueError("prompts is empty: give one template at least.")
            return [[t.replace("{}", name) for t in templates] for name in self._names]
        texts = []
        for label, name in zip(self.classes_.tolist(), self._names, strict=True):
            own = prompts.get(label, prompts.get(name, ()))
            own = [own] if isinstance(own, str) else list(own)
            if not own or not all(isinstance(t, str) and t.strip() for t in own):
                raise ValueError(
                    f"prompts has no texts for the class {name!r}: give a text or a "
                    f"list of texts for each of {self._names}."
                )
            texts.append(own)
        return texts

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
        elif embedder is None:
            if str(self.backbone).startswith("open_clip/"):
                raise ValueError(
                    f"backbone={self.backbone!r} would be towers of random weights: give "
                    f"embedder=CLIPTransformer(backbone={self.backbone!r}, weights=...)."
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
            raise NotFittedError(
                "The embedder is frozen, but not fitted: fit it first."
            )
        else:
            if get_tags(embedder).target_tags.required:
                self._complain_of_no_weights(embedder)
            if not fine_tune:
                return self._fit_nested(embedder, samples.readable(X))
            embedder = clone(embedder).set_params(**self._training())
        return self._train_on_prompts(embedder, X, samples, codes)

    def _complain_of_no_weights(self, embedder):
        problem = (
            f"embedder={type(embedder).__name__} is not fitted and brings no weights. A "
            "clone of this classifier, as GridSearchCV makes, forgets what a fitted one "
            "has learned: fit it on images and texts, and give FrozenEstimator(embedder)."
        )
        if self.few_shot != "fine_tune":
            raise ValueError(
                f"{problem} few_shot={self.few_shot!r} does not train it; "
                '"fine_tune" does, on the labels alone.'
            )
        warn(f"{problem} Now it is trained on the labels alone.", UserWarning)

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
                "The embedder must be trained on labeled rows of two classes at least, "
                "which y does not have: label some, or give an embedder that is fitted "
                "or brings its weights."
            )
        texts = np.empty(len(codes), dtype=object)
        texts[:] = [self.prompts_[code] if code >= 0 else [] for code in codes]
        return self._fit_copy(embedder, samples.readable(X), texts[samples.good])

    def _check_usable(self, usable, codes):
        if self.few_shot != "zero_shot":  # which learns from no label
            super()._check_usable(usable, codes)

    # -- the classifier on top

    def _embed(self, samples):
        """Set ``net_`` to the image tower; return the embedding of all rows."""
        towers = unfrozen(self.embedder_)
        own = _PromptClassifier(*map(copy.deepcopy, self._image_tower()))
        self._fit_net(own, Shuffled(samples), stage="classify", train=False)
        self.n_iter_, self._fresh = towers.n_iter_, False
        if vars(self).pop("_on_the_spot", False):
            return None  # nobody asks for the classes of X
        return self._forward_rows(samples)

    def _image_tower(self):
        module = unfrozen(self.embedder_).net_.module_
        return module.backbone, module.project

    def _set_head(self, Z, codes, weights, seed):
        embedder = unfrozen(self.embedder_)
        texts = embedder.encode_text([t for own in self.prompts_ for t in own])
        sizes = [len(own) for own in self.prompts_]
        texts = torch.from_numpy(texts).double().split(sizes)
        embedding = class_embedding(texts).numpy()
        self.class_embedding_ = embedding.astype(np.float32)
        self.logit_scale_ = float(self.logit_scale or embedder.logit_scale_)
        weight, bias = self.logit_scale_ * embedding, np.zeros(len(embedding))
        keys, values = np.zeros((0, embedding.shape[1])), np.zeros((0, len(embedding)))
        self._n_cached, alpha, beta = 0, 0.0, 1.0
        if self.few_shot in ("linear", "adapter"):
            own = np.ones(len(Z)) if weights is None else weights
            rows = np.flatnonzero((codes >= 0) & (own > 0) & ~np.isnan(Z[:, 0]))
            own = own[rows]
            own = own * (len(own) / own.sum())
            U, codes = Z[rows].astype(np.float64), codes[rows]
        if self.few_shot == "linear":
            start, probe = weight, corrected_probe
            if self.shrink_to == "zero":
                start, probe = np.zeros_like(weight), linear_probe
            self.C_ = self.C
            if self.C == "auto":
                self.C_ = _choose_c(probe, U, codes, own, start, seed)
            weight, bias = probe(U, codes, own, start, self.C_)
        elif self.few_shot == "adapter":
            keys, values = U, np.eye(len(embedding))[codes] * own[:, None]
            alpha, beta = self.alpha, self.beta
            if "auto" in (alpha, beta):
                logits = U @ weight.T
                alpha, beta = _choose_adapter(
                    U, codes, own, values, logits, alpha, beta
                )
            self.alpha_, self.beta_, self._n_cached = alpha, beta, len(keys)
        head = _Head(weight, bias, keys, values, alpha, beta).requires_grad_(False)
        self.net_.module_.head = head.to(self.net_.device)

    def _forward_rows(self, samples):
        if not isinstance(samples, np.ndarray):
            return super()._forward_rows(samples)
        # rows that are embedded already
        with torch.inference_mode():
            z = torch.from_numpy(samples).to(self.net_.device)
            return self.net_.module_.head(z).cpu().numpy()

    def _rebuild_module(self, mean, std):
        n_classes, n_features = self.class_embedding_.shape
        head = _Head(
            np.zeros((n_classes, n_features)),
            np.zeros(n_classes),
            np.zeros((self._n_cached, n_features)),
            np.zeros((self._n_cached, n_classes)),
            0.0,
            1.0,
        )
        tower = map(copy.deepcopy, self._image_tower())
        return _PromptClassifier(*tower, head)


def _codes(y, class_names, classes):
    """Return codes of labels that are classes, or positions in class_names."""
    labeled = is_labeled(y)
    if classes.dtype.kind == "U" and labeled.any():
        column = np.array(y, dtype=object).reshape(-1)
        if not any(isinstance(value, str) for value in column[labeled]):
            positions = column[labeled].astype(np.int64)
            lowest, highest = positions.min(), positions.max()
            if lowest < 0 or highest >= len(classes):
                raise ValueError(
                    f"y contains the positions {lowest} to {highest}, but class_names "
                    f"has {len(classes)} names."
                )
            column[labeled] = np.array(list(class_names))[positions]
            y = column
    return encode_labels(y, classes=classes)[1]
