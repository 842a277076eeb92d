"""Learning loss: ask for rows of high predicted loss (Yoo and Kweon, 2019)."""

from contextlib import contextmanager
from numbers import Integral
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .._core.callbacks import fitting
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    ArrayLike,
    AtLeastTwo,
    Augment,
    Count,
    CountOrZero,
    NonNegative,
    Optimizer,
    Positive,
    SampleCount,
    Schedule,
    UnitInterval,
)
from .._core.roles.selection import (
    OwnNetworkMixin,
    SelectionRole,
)
from .._core.samplers import Mixed
from ..losses import learning_loss
from ..modules import filled_

# parts that say nothing beyond the part before them
_POOLED = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Identity,
)
_N_LAYERS = 4  # of ResNet-18: its stages


class _LossHead(nn.Module):
    """Predict the loss of each row from the outputs of some layers."""

    def __init__(self, sizes, width):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.last = nn.Linear(len(sizes) * width, 1)

    def forward(self, outputs):
        # which of two losses is larger is lost in the few digits of bfloat16
        with torch.autocast(outputs[0].device.type, enabled=False):
            h = [
                layer(pooled(x).to(layer.weight.dtype)).relu()
                for layer, x in zip(self.layers, outputs, strict=True)
            ]
            return self.last(torch.cat(h, 1))[:, 0]  # (B,)


class _LearningLoss(nn.Module):
    def __init__(self, backbone, head, layers, loss_head, augment, **settings):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.layers = layers
        self.loss_head = loss_head
        self.augment = augment
        for name, value in settings.items():
            setattr(self, name, value)
        self.n_steps, self.n_attached = 0, float("inf")

    def forward(self, x):
        return self.loss_head(self._features(x)[1])[:, None]  # (B, 1)

    def loss(self, x, y):
        h, outputs = self._features(self.augment(x))
        logits = self.head(h).float()
        losses = cross_entropy(logits, y, reduction="none")
        if self.n_steps >= self.n_attached:
            outputs = [output.detach() for output in outputs]
        ranking = learning_loss(self.loss_head(outputs), losses, self.margin)
        class_loss = losses.mean()
        return class_loss + self.loss_weight * ranking, {
            "class_loss": class_loss.detach(),
            "ranking_loss": ranking.detach(),
            "train_accuracy": (logits.argmax(1) == y).float().mean(),
        }

    def before_epoch(self, net, sampler):
        """Find out how many steps the loss head teaches the backbone."""
        self.n_steps = net.step_
        if self.detach_after is None:
            self.n_attached = float("inf")
        elif isinstance(self.detach_after, Integral):
            self.n_attached = self.detach_after * sampler.n_batches(net.batch_size)
        else:
            self.n_attached = self.detach_after * net.total_steps_

    def after_step(self):
        self.n_steps += 1

    def _features(self, x):
        """Return the backbone's features, and the pooled outputs of the layers."""
        with _outputs_of(self.backbone.body, self.layers) as outputs:
            h = self.backbone(x)
        return h, [outputs[name] for name in self.layers]


def pooled(x):
    """Return what is left of an output after the mean over places.

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W), (B, T, C) or (B, C)
        Maps, tokens or vectors.

    Returns
    -------
    x : Tensor of shape (B, C)
        A copy, never a view.
    """
    axes = {4: (2, 3), 3: 1}.get(x.ndim)
    half = x.dtype in (torch.bfloat16, torch.float16)
    if axes is None:
        return x.clone()
    return x.mean(axes, dtype=torch.float32 if half else None)


@contextmanager
def _outputs_of(net, names, look=pooled):
    """Collect ``look(output)`` of parts of a network, in the order in which they end.

    The hooks are gone afterwards, so that the network can be copied and pickled.
    """
    outputs, handles = {}, []

    def hook(name):
        def keep(part, inputs, output):
            if isinstance(output, torch.Tensor):
                outputs.pop(name, None)
                # at once: a later part may write over it
                outputs[name] = look(output)

        return keep

    try:
        for name in names:
            handles.append(net.get_submodule(name).register_forward_hook(hook(name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def output_shapes(encoder):
    """Return the shape of what each part of an encoder's network gives.

    Parameters
    ----------
    encoder : Encoder

    Returns
    -------
    shapes : dict of {str: tuple of int}
        Without the batch, by the name of the part, "" for the whole network, in the
        order in which they end. Only parts that give maps, tokens or vectors.
    """
    training = encoder.training
    x = torch.zeros(2, *encoder.sample_shape, device=encoder.mean.device)
    names = [name for name, _ in encoder.body.named_modules()]
    with _outputs_of(encoder.body, names, look=lambda output: output.shape) as shapes:
        encoder.eval()(x)
    encoder.train(training)
    return {
        name: tuple(shape[1:])
        for name, shape in shapes.items()
        if 2 <= len(shape) <= 4 and shape[0] == 2
    }


def choose_layers(net, shapes):
    """Choose the layers whose outputs the loss is predicted from.

    Parameters
    ----------
    net : nn.Module
    shapes : dict of {str: tuple of int}
        See `output_shapes`.

    Returns
    -------
    names : tuple of str
        At most four. A block is a part with weights and the parts without (norms,
        activations, pooling) that follow it; they are looked for further inside while
        there are fewer than four and one part holds nine tenths of the weights. Of
        more than four, those at the end of a stage are taken, where the shape changes,
        if there are three of them or more; of these the last four.
    """
    order = list(shapes)
    maps = any(len(shape) > 1 for shape in shapes.values())
    parts = [("", net)]
    while True:
        names = _ends_of_blocks(parts, shapes, maps)
        weights = [_n_weights(name, part, shapes, maps) for name, part in parts]
        heaviest = int(np.argmax(weights))
        if len(names) >= _N_LAYERS or weights[heaviest] < 0.9 * sum(weights):
            break
        inner = sorted(
            _children(*parts[heaviest], shapes), key=lambda p: order.index(p[0])
        )
        if not inner:
            break
        parts[heaviest : heaviest + 1] = inner
    if len(names) > _N_LAYERS:
        after = [*(shapes[name] for name in names[1:]), None]
        ends = [n for n, shape in zip(names, after, strict=True) if shapes[n] != shape]
        names = ends if len(ends) >= 3 else names
    return tuple(names[-_N_LAYERS:]) or ("",)


def _ends_of_blocks(parts, shapes, maps):
    """Return the last part of each block that gives what is looked for."""
    ends = []
    for name, part in parts:
        if any(p.ndim > 1 for p in part.parameters()):
            ends.append(None)
        if ends and not isinstance(part, _POOLED) and (len(shapes[name]) > 1) == maps:
            ends[-1] = name
    return [name for name in ends if name is not None]


def _n_weights(name, part, shapes, maps):
    """Return the number of weights of a part; 0 if nothing in it is looked for."""
    inside = (
        shape
        for other, shape in shapes.items()
        if not name or other == name or other.startswith(f"{name}.")
    )
    looked_for = any((len(shape) > 1) == maps for shape in inside)
    return sum(p.numel() for p in part.parameters()) if looked_for else 0


def _children(name, part, shapes):
    """Yield the parts of a part that are run; lists of modules are looked into."""
    for key, child in part.named_children():
        full = f"{name}.{key}" if name else key
        if full in shapes:
            yield full, child
        else:
            yield from _children(full, child, shapes)


class LearningLossSelector(OwnNetworkMixin, SelectionRole, Learner):
    """Select the rows for which a network predicts its own loss to be high.

    A classifier is trained on the labeled rows. Beside it a small head learns, from
    the outputs of several layers, which of two rows has the larger loss; of an
    unlabeled row it then says how wrong the classifier would be. The highest are
    chosen. Read more in the :ref:`User Guide <learning_loss>`.

    Parameters
    ----------
    layers : "auto" or sequence of str
        Parts of the backbone whose outputs the head sees, by their names in
        ``named_modules()``. Maps ``(B, C, H, W)`` are averaged over H and W, tokens
        ``(B, T, D)`` over T. "auto": the ends of the last four stages, or the last
        blocks, up to four, where there are no stages.
    width : int
        Neurons for each layer.
    margin : float
        How far the predictions for two rows shall be apart, > 0. Paper: xi.
    loss_weight : float
        Weight of the ranking of losses beside the classification, >= 0. Paper: lambda.
    detach_after : float, int or None
        When the head no longer teaches the backbone: a share of the training, in
        [0, 1], or an int, a number of epochs; None: never. Published: 120 of 200
        epochs.
    n_candidates : int or None
        Unlabeled rows, drawn at random, that are looked at, at least ``n_samples``.
        None: all. Published: 10000, against near copies among the highest.
    augment : "auto", nn.Module or None
        Random views; "auto": :class:`sklabel.augment.Weak` for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips for digits:
        ``Weak(flip=0)``.
    max_epochs : int
        Passes over the labeled rows.
    batch_size
        Published: 128, with 1000 labels and more.
    lr
        Published: 0.1, for batches of 128.
    schedule
        Published: one fall, after 80 %, ``functools.partial(sklabel.optim.step_decay,
        milestones=(0.8,))``.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows, the highest predicted loss first, the lower row number among
        equals.
    scores_ : ndarray of shape (n_rows,)
        Predicted loss; its order counts, not its size. ``-inf`` for rows labeled
        already, for rows not looked at and for files that cannot be read.
    layers_ : tuple of str
        Parts of the backbone whose outputs the head sees; "" is the whole of it.
    classes_ : ndarray of shape (n_classes,)
        Classes, sorted; with ``warm_start`` those of earlier fits too.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``class_loss``,
        ``ranking_loss`` (``margin`` where nothing is learned of the order of losses)
        and ``train_accuracy``. None of these where every row is labeled.
    n_features_in_ : int
        Values per sample.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, more rows
        are asked than have no label (and can be read), or ``layers`` names a part that
        the backbone does not have.

    See Also
    --------
    TODSelector : Estimates the loss from how predictions change.
    USLSelector : Needs no label; for the first choice.
    UncertaintySelector : Asks any classifier how sure it is.

    Notes
    -----
    The released code builds the network once and continues in every round: call
    ``fit`` again with more labels and ``warm_start=True``. The optimizer begins anew. A
    class that was not there before gets an output of its own, with random weights; one
    that is gone keeps its own. What the network looks like (``backbone``, ``layers``,
    ``width``) stays.

    Departures: smaller batches at a lower rate, since there are few labels; the rate
    also falls after 60 % of the training; of a batch of odd size the middle row has no
    partner, where the released code stops.

    The head can only learn from differences of the losses of labeled rows. Once all of
    these are classified well, their order is mostly chance; augmentation keeps some
    differences alive.

    References
    ----------
    .. [1] D. Yoo, I. S. Kweon, "Learning loss for active learning", CVPR 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import LearningLossSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 50, y, -1)
    >>> selector = LearningLossSelector(20, max_epochs=30, random_state=0)
    >>> rows = selector.fit_select(X, y_partly)
    >>> bool(rows.min() >= 50)
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    layers: Literal["auto"] | ArrayLike = "auto"
    width: Count = 128
    margin: Positive = 1.0
    loss_weight: NonNegative = 1.0
    detach_after: CountOrZero | UnitInterval | None = 0.6
    n_candidates: Count | None = None
    augment: Augment = "auto"
    max_epochs: Count = 200
    batch_size: AtLeastTwo = 32
    optimizer: Optimizer = "sgd"
    lr: Positive = 0.03
    weight_decay: NonNegative = 5e-4
    schedule: Schedule = "step"

    @fitting
    def fit(self, X, y=None):
        """Train on the labeled rows, and choose among the others.

        Parameters
        ----------
        X : array-like
            Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``; paths of image
            files; or vectors ``(n, D)``.
        y : array-like of shape (n_rows,)
            Labels known so far, -1 (None, NaN) where there is none. Labeled rows are
            never chosen.

        Returns
        -------
        self : LearningLossSelector
        """
        samples = self._check_X(X, reset=True)
        n_samples, labeled = self._candidates(samples, y, self.n_samples)
        vectors = samples.source if len(self.sample_shape_) == 1 else None
        scores = np.full(len(samples), -np.inf)
        if not n_samples:
            self._train_nothing()
            return self._set_selection(vectors, [], scores)
        codes, places = self._encode_y(y, samples)
        rows = self._readable_candidates(samples, labeled, n_samples)
        with self._seeded() as seed:
            rows = self._drawn(rows, n_samples, np.random.RandomState(seed))
            module = self._build_module(*samples.statistics(), places)
            self._fit_net(module, Mixed(samples, codes, ratio=0))
        scores[rows] = self.net_.evaluate(samples, rows).numpy()[:, 0]
        chosen = np.argsort(-scores, kind="stable")[:n_samples]
        return self._set_selection(vectors, chosen, scores)

    def _build_module(self, mean, std, places=None):
        before = self._continued
        n_classes = len(self.classes_)
        if before is not None:
            backbone, layers, loss_head = (
                before.backbone,
                before.layers,
                before.loss_head,
            )
            head = filled_(
                nn.Linear(before.head.in_features, n_classes).to(before.head.weight),
                before.head,
                places,
            )
        else:
            backbone = self._build_backbone(mean, std)
            shapes = output_shapes(backbone)
            layers = self._find_layers(backbone.body, shapes)
            # channels come first in maps, last in tokens
            sizes = [
                shapes[name][1 if len(shapes[name]) == 2 else 0] for name in layers
            ]
            head = nn.Linear(backbone.n_features_out, n_classes)
            loss_head = _LossHead(sizes, self.width)
        self.layers_ = layers
        return _LearningLoss(
            backbone,
            head,
            layers,
            loss_head,
            self._build_augment(self.augment, "weak", mean, std),
            margin=self.margin,
            loss_weight=self.loss_weight,
            detach_after=self.detach_after,
        )

    def _rebuild_module(self, mean, std):
        self._continued = None
        return self._build_module(mean, std)

    def _find_layers(self, net, shapes):
        if isinstance(self.layers, str):
            return choose_layers(net, shapes)
        layers = tuple(map(str, self.layers))
        unknown = [name for name in layers if name not in shapes]
        if unknown or not layers:
            raise ValueError(
                f"layers={list(self.layers)!r} must be names of parts of the backbone "
                f"that give maps, tokens or vectors, one at least; {unknown} are not. "
                f"There are {list(shapes)}."
            )
        return layers
