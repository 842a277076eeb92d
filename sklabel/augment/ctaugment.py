"""CTAugment: random operations as strong as the model still recognizes."""

import torch

from .._core.checks import check_number, check_option
from .operations import (
    GREY,
    OPERATIONS,
    apply_sorted,
    cut_out,
    draw_square,
    operation_number,
    sort_plan,
    to_bytes,
    to_device_of,
    widest_float,
)
from .policy import ImagePolicy

# CTAugment's names, in the order of its rates, and the bins of their two parameters.
CTAUGMENT = {
    "autocontrast": ("AutoContrast", 17, 0),
    "blur": ("Blur", 17, 0),
    "brightness": ("Brightness", 17, 0),
    "color": ("Color", 17, 0),
    "contrast": ("Contrast", 17, 0),
    "cutout": ("Cutout", 17, 0),
    "equalize": ("Equalize", 17, 0),
    "invert": ("Invert", 17, 0),
    "identity": ("Identity", 0, 0),
    "posterize": ("Posterize", 8, 0),
    "rescale": ("Rescale", 17, 6),
    "rotate": ("Rotate", 17, 0),
    "sharpness": ("Sharpness", 17, 0),
    "shear_x": ("ShearX", 17, 0),
    "shear_y": ("ShearY", 17, 0),
    "smooth": ("Smooth", 17, 0),
    "solarize": ("Solarize", 17, 0),
    "translate_x": ("TranslateX", 17, 0),
    "translate_y": ("TranslateY", 17, 0),
}
CTAUGMENT_NAMES = {OPERATIONS.index(op): name for name, (op, *_) in CTAUGMENT.items()}


def ctaugment_values(op, levels, size=(32, 32), cutout=0.5):
    """Return magnitudes of a CTAugment operation, as `apply_op` takes them.

    Parameters
    ----------
    op : str
        One of the keys of ``CTAUGMENT``.
    levels : Tensor of shape (B,)
        In [0, 1].
    size : tuple of two int, default=(32, 32)
        Height and width of the images.
    cutout : float, default=0.5
        Side of the largest hole, as a share of the shorter side.

    Returns
    -------
    values : Tensor of shape (B,)
    """
    check_option(CTAUGMENT, op=op)
    centered = 2 * levels - 1
    if op in ("brightness", "color", "contrast", "sharpness"):
        return 0.1 + 1.9 * levels
    if op == "posterize":
        return 1 + (levels * 7.999).floor()
    if op == "solarize":
        return (levels * 255.999).floor()
    if op == "rotate":
        return (centered * 45).round()
    if op in ("shear_x", "shear_y", "translate_x", "translate_y"):
        # translations by parts of a PIXEL, as in the public code
        return centered * 0.3
    if op == "cutout":
        # a thousandth less, as in the public code: 16 of 32 pixels, not 17
        return 1 + (levels * min(size) * (cutout - 0.001)).floor()
    return levels


class CTAugment(ImagePolicy):
    """Random operations as strong as the model still recognizes.

    The range of each parameter of the 19 operations is divided into bins. `probe`
    applies operations of any strength to labeled images, `update` records how well the
    model predicts them, and training draws only from bins with good predictions.

    Parameters
    ----------
    depth : int, default=2
        Operations in a row, drawn with replacement.
    decay : float, default=0.99
        Decay of the average rate of a bin, in [0, 1].
    threshold : float, default=0.80
        Bins with a rate below this share of the best are not used.
    cutout : float, default=0.5
        Side of the final gray square, as a share of the image's shorter side. 0: no
        square, and at most a pixel if Cutout is drawn as an operation.

    Attributes
    ----------
    rates : Tensor of shape (19, 2, 17)
        Rate by operation, parameter and bin; a buffer. Missing bins are 0.

    References
    ----------
    .. [1] D. Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution
       Alignment and Augmentation Anchoring", ICLR 2020.

    Examples
    --------
    >>> import torch
    >>> from sklabel.augment import CTAugment
    >>> policy = CTAugment()
    >>> x = torch.rand(8, 3, 32, 32)
    >>> views, draw = policy.probe(x)
    >>> policy.update(draw, torch.rand(8))
    >>> policy(x).shape
    torch.Size([8, 3, 32, 32])
    """

    def __init__(self, depth=2, decay=0.99, threshold=0.80, cutout=0.5):
        super().__init__()
        self.depth = depth
        self.decay = decay
        self.threshold = threshold
        self.cutout = cutout
        self._check()
        self._start()

    def _check(self):
        check_number(0, whole=True, depth=self.depth)
        check_number(0, 1, decay=self.decay, threshold=self.threshold)
        check_number(0, 1, cutout=self.cutout)

    def _start(self):
        numbers = [operation_number(op) for op, *_ in CTAUGMENT.values()]
        bins = torch.tensor([bins for _, *bins in CTAUGMENT.values()])
        device = self.rates.device if "rates" in self._buffers else None
        known = torch.arange(17) < bins[:, :, None]
        # what the tables say is no state: it is made anew, never loaded
        self.numbers = torch.tensor(numbers)
        self.register_buffer("bins", bins.to(device), persistent=False)
        self.register_buffer("known", known.to(device), persistent=False)
        self.register_buffer("rates", known.float().to(device))

    def probabilities(self):
        """Return the probabilities of the bins that training draws from.

        Returns
        -------
        probabilities : Tensor of shape (19, 2, 17)
            They sum to 1 over the bins of a parameter, or to 0 if there is none.
        """
        weight = (self.rates + (1 - self.decay)) * self.known
        weight = weight / weight.amax(2, keepdim=True).clamp(min=1e-30)
        weight = weight * (weight >= self.threshold) * self.known
        return weight / weight.sum(2, keepdim=True).clamp(min=1e-30)

    def probe(self, x):
        """Apply operations of any strength, to test the model on them.

        Parameters
        ----------
        x : Tensor of shape (B, C, H, W)
            Images in [0, 1]; FixMatch: weak views of the labeled ones.

        Returns
        -------
        views : Tensor of shape (B, C, H, W)
        draw : tuple of two Tensors
            Operations, int of shape (B, depth), and levels in [0, 1] of shape
            (B, depth, 2): what `update` needs.
        """
        draw = ()

        def augment(images):
            nonlocal draw
            shape = (self.depth, len(images), 2)
            ops = self._draw_ops(len(images))
            levels = torch.rand(shape, device=images.device)
            draw = to_device_of(ops, images).T, levels.transpose(0, 1)
            return self._transform(images, ops, levels)

        return self._guarded(x, augment), draw

    @torch.no_grad()
    def update(self, draw, proximity):
        """Update the rates by how close the predictions for probes are to the labels.

        Parameters
        ----------
        draw : tuple of two Tensors
            From `probe`.
        proximity : Tensor of shape (B,)
            In [0, 1]: 1 minus half the absolute distance of probabilities and label.

        Notes
        -----
        The result equals successive updates, row by row.
        """
        ops, levels = (t.to(self.rates.device) for t in draw)
        bins = self.bins[ops]  # (B, depth, 2)
        level = torch.nan_to_num(levels.to(widest_float(levels)))
        bin_number = (level * bins * 0.999).long()
        parameter = torch.arange(2, device=ops.device)
        entry = ((ops[..., None] * 2 + parameter) * 17 + bin_number).flatten()
        # entries of missing parameters go to one behind the last
        n_entries = self.rates.numel()
        entry = torch.where(bins.flatten() > 0, entry, n_entries)
        proximity = proximity.to(level)[:, None, None].expand(bins.shape).flatten()
        order = entry.argsort(dim=0, stable=True)
        entry, proximity = entry[order], proximity[order]
        ends = torch.searchsorted(entry, entry, right=True)
        # an update is forgotten a little with each later one of the same entry
        later = ends - 1 - torch.arange(len(entry), device=entry.device)
        gain = (1 - self.decay) * proximity * self.decay ** later.to(level)
        rates = self.rates.to(level.dtype).flatten()
        rates = torch.cat([rates, rates.new_zeros(1)])
        count = torch.zeros_like(rates).index_add_(0, entry, torch.ones_like(gain))
        rates = (rates * self.decay**count).index_add_(0, entry, gain)
        self.rates.copy_(rates[:-1].view_as(self.rates))

    def _augment(self, x):
        ops = self._draw_ops(len(x))
        chances = self.probabilities().to(x.device)[
            to_device_of(ops, x)
        ]  # (depth, B, 2, 17)
        # the smallest of exponential times with these rates is a draw from them
        bins = (chances / torch.empty_like(chances).exponential_()).argmax(-1)
        inside = torch.rand(bins.shape, device=x.device)
        n_bins = self.bins.to(x.device)[to_device_of(ops, x)].clamp(min=1)
        return self._transform(x, ops, (bins + inside) / n_bins, self.cutout)

    def _draw_ops(self, n):
        return torch.randint(len(CTAUGMENT), (self.depth, n))

    def _transform(self, x, ops, levels, cutout=0):
        """Apply operations (depth, B) on the host at levels (depth, B, 2)."""
        n, size = len(x), x.shape[2:]
        numbers = self.numbers[ops]
        images = to_bytes(x)
        if self.depth:
            order, moves, counts = sort_plan(numbers)
            moves, order = to_device_of(moves, x), to_device_of(order, x)
            levels = levels.to(widest_float(x))
            for k in range(self.depth):
                sorted_levels = levels[k].index_select(0, order[k])
                level, method = sorted_levels.unbind(1)
                values = [
                    ctaugment_values(CTAUGMENT_NAMES[i], part, size, self.cutout)
                    for i, part in enumerate(level.split(counts[k]))
                    if len(part)
                ]
                images = images.index_select(0, moves[k])
                images = apply_sorted(
                    images, counts[k], torch.cat(values), method, blend=True
                )
            images = images.index_select(0, moves[-1])
        if cutout:
            level = torch.ones(n, device=x.device)
            side = ctaugment_values("cutout", level, size, cutout)
            images = cut_out(images, *draw_square(side.long(), x), GREY)
        return images
