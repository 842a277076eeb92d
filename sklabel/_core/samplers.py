"""The order: which rows each batch of an epoch holds."""

# A sampler draws and fetches. ``epoch`` yields what to fetch for each batch and takes
# all random numbers; ``fetch`` takes none, so that batches may be fetched ahead.

import itertools

import numpy as np
import torch


class Shuffled:
    """All readable rows in random order.

    Parameters
    ----------
    samples : Samples
    targets : ndarray of int of shape (n_samples,) or None
        The y of each row; None: its number.
    """

    def __init__(self, samples, targets=None):
        self.samples = samples
        self.targets = None if targets is None else np.asarray(targets)

    def __len__(self):
        return len(self.samples)

    @property
    def identity(self):
        """What identifies a training, besides the rows."""
        return (self.targets,)

    def n_batches(self, batch_size):
        """Return the number of batches of one epoch."""
        return _n_batches(len(self.samples.good), batch_size)

    def epoch(self, batch_size):
        """Yield what to fetch for each batch of one epoch."""
        yield from split(shuffled(self.samples.good), batch_size)

    def fetch(self, rows):
        """Return the batch ``x, y`` of some rows."""
        y = rows if self.targets is None else self.targets[rows]
        return self.samples[rows], torch.from_numpy(y)


class FixedSteps(Shuffled):
    """An epoch is a number of steps, whatever the number of rows.

    Parameters
    ----------
    samples : Samples
    n_steps : int
        Batches of an epoch; passes over the rows follow each other, each in a new
        order.
    """

    def __init__(self, samples, n_steps):
        super().__init__(samples)
        self.n_steps = n_steps

    def n_batches(self, batch_size):
        return self.n_steps

    def epoch(self, batch_size):
        passes = (super(FixedSteps, self).epoch(batch_size) for _ in itertools.count())
        yield from itertools.islice(itertools.chain.from_iterable(passes), self.n_steps)


class Paired(Shuffled):
    """Every row comes with one of its neighbors.

    Parameters
    ----------
    samples : Samples
    neighbors : ndarray of int of shape (n_samples, n_neighbors)
        A batch is ``(x, x_neighbor), rows``; the neighbor is drawn uniformly.
    """

    def __init__(self, samples, neighbors):
        super().__init__(samples)
        self.neighbors = neighbors

    @property
    def identity(self):
        return (self.neighbors,)

    def epoch(self, batch_size):
        for rows in super().epoch(batch_size):
            draw = torch.randint(self.neighbors.shape[1], (len(rows),)).numpy()
            yield rows, self.neighbors[rows, draw]

    def fetch(self, pair):
        rows, partners = pair
        x, y = super().fetch(rows)
        return (x, self.samples[partners]), y


class Mixed(Shuffled):
    """Every batch holds labeled and unlabeled rows.

    Parameters
    ----------
    samples : Samples
    targets : ndarray of int of shape (n_samples,)
        -1 for an unlabeled row.
    ratio : float
        Unlabeled rows per labeled row of a batch; 0 or no unlabeled row: none.
    include_labeled : bool
        Whether labeled images are also used as unlabeled ones.
    weights : ndarray of shape (n_samples,) or None
        How often a labeled row is drawn, compared with the others; None: equally often.

    Notes
    -----
    A batch is ``x, y``: first the labeled rows, then the unlabeled ones, where ``y`` is
    ``-1 - row``. An epoch is one pass over the unlabeled rows, or over the labeled ones
    where these take more steps; the others are repeated as often as needed. Labeled
    rows alone come at least two at a time, if need be a row twice, as BatchNorm cannot
    train on one.
    """

    def __init__(self, samples, targets, ratio, include_labeled=True, weights=None):
        super().__init__(samples, targets)
        self.ratio = ratio
        good = ~samples.bad
        labeled = good & (self.targets >= 0)
        self.labeled = np.flatnonzero(labeled)
        self.weights = None if weights is None else weights[self.labeled]
        unlabeled = good & (self.targets < 0)
        self.unlabeled = np.flatnonzero(unlabeled | (labeled & include_labeled))
        if ratio <= 0 or len(self.unlabeled) == 0 or not (good & (targets < 0)).any():
            # everything is labeled: plain supervised training
            self.unlabeled = np.empty(0, int)

    @property
    def identity(self):
        return self.targets, self.weights

    def n_batches(self, batch_size):
        if len(self.unlabeled) == 0:
            return _n_batches(len(self.labeled), max(2, batch_size))
        n_labeled = _n_batches(len(self.labeled), batch_size)
        return max(n_labeled, len(self.unlabeled) // self.n_unlabeled(batch_size))

    def epoch(self, batch_size):
        if len(self.unlabeled) == 0:
            for rows in split(self._labeled_pass(), max(2, batch_size)):
                yield rows.repeat(2 if len(rows) == 1 else 1), self.unlabeled
            return
        unlabeled = self._unlabeled_stream(self.n_unlabeled(batch_size))
        labeled = self._labeled_stream(batch_size)
        for _ in range(self.n_batches(batch_size)):
            rows = next(unlabeled)
            yield next(labeled), rows

    def fetch(self, rows):
        labeled, unlabeled = rows
        x, y = super().fetch(np.concatenate(rows))
        y[len(labeled) :] = torch.from_numpy(-1 - unlabeled)
        return x, _marked(y, len(labeled))

    def class_shares(self, n_classes, drawn=False):
        """Return the share of each class in the labeled rows, as they are or drawn."""
        codes, weights = self.targets[self.labeled], self.weights if drawn else None
        counts = np.bincount(codes, weights=weights, minlength=n_classes)
        return counts / counts.sum()

    def n_unlabeled(self, batch_size):
        return min(max(1, round(batch_size * self.ratio)), len(self.unlabeled))

    def _labeled_stream(self, batch_size):
        """Yield batches of labeled rows without end, one pass after the other."""
        passes = (self._labeled_pass() for _ in itertools.count())
        rows = itertools.chain.from_iterable(passes)
        while True:
            yield np.fromiter(itertools.islice(rows, batch_size), int, batch_size)

    def _unlabeled_stream(self, batch_size):
        """Yield batches of unlabeled rows without end, in none of them a row twice."""
        while True:
            order = shuffled(self.unlabeled)
            for start in range(0, len(order) - batch_size + 1, batch_size):
                yield order[start : start + batch_size]

    def _labeled_pass(self):
        """Return the labeled rows in random order, each as often as its weight says."""
        if self.weights is None:
            return shuffled(self.labeled)
        n = len(self.labeled)
        edges = np.append(0, self.weights.cumsum() / self.weights.sum() * n)
        edges[-1] = n
        counts = np.diff(np.floor(edges + float(torch.rand(()))).astype(int))
        return shuffled(np.repeat(self.labeled, counts))


class LabeledThenCoupled(Mixed):
    """The labeled rows in batches, and then one batch of given pairs of them.

    Parameters
    ----------
    samples : Samples
    targets : ndarray of int of shape (n_samples,)
        -1 for an unlabeled row.
    pairs : ndarray of int of shape (n_pairs, 2)
        A batch is ``(x, x_partner), y`` with y of shape (n_pairs, 2), always in this
        order; without pairs there is none.
    """

    def __init__(self, samples, targets, pairs):
        super().__init__(samples, targets, ratio=0)
        self.pairs = pairs

    @property
    def identity(self):
        return (*super().identity, self.pairs)

    def n_batches(self, batch_size):
        return super().n_batches(batch_size) + (len(self.pairs) > 0)

    def epoch(self, batch_size):
        yield from super().epoch(batch_size)
        if len(self.pairs):
            yield self.pairs

    def fetch(self, rows):
        if isinstance(rows, tuple):
            return super().fetch(rows)
        x = tuple(self.samples[part] for part in rows.T)
        return x, torch.from_numpy(self.targets[rows])


class Coupled(Shuffled):
    """Given pairs of rows, in random order.

    Parameters
    ----------
    samples : Samples
    pairs : ndarray of int of shape (n_pairs, 2)
        A batch is ``(x, x_partner)`` and the numbers of its pairs.
    in_order : bool
        Whether the pairs come as they are given.
    """

    def __init__(self, samples, pairs, in_order=False):
        super().__init__(samples)
        self.pairs = pairs
        self.in_order = in_order

    @property
    def identity(self):
        return (self.pairs,)

    def n_batches(self, batch_size):
        return _n_batches(len(self.pairs), batch_size)

    def epoch(self, batch_size):
        numbers = np.arange(len(self.pairs))
        yield from split(numbers if self.in_order else shuffled(numbers), batch_size)

    def fetch(self, numbers):
        x = tuple(self.samples[part] for part in self.pairs[numbers].T)
        return x, torch.from_numpy(numbers)


class Captioned(Shuffled):
    """Every batch is images and the tokens of one text of each.

    Parameters
    ----------
    samples : Samples
    texts : list of list of str
        Of each row; none: the row is left out.
    tokenize : callable
        Texts to tokens (n, L).
    trim : bool
        Whether tokens of 0 at the end of all rows of a batch are left out.
    unique : bool
        Whether a batch holds no text twice.
    """

    def __init__(self, samples, texts, tokenize, trim, unique):
        counts = np.array([len(own) for own in texts])
        super().__init__(samples.without(counts == 0))
        known = {text: None for own in texts for text in own}
        known = {text: i for i, text in enumerate(known)}
        self.tokens = tokenize(list(known)).to(torch.int32)
        ends = (self.tokens != 0).int().flip(1).argmax(1)
        self.lengths = self.tokens.shape[1] - ends if trim else None
        self.choices = np.array([known[text] for own in texts for text in own])
        self.starts = np.append(0, counts.cumsum())
        self.unique = unique
        self.texts = texts

    @property
    def identity(self):
        return (self.texts,)

    def epoch(self, batch_size):
        for rows, texts in self._pairs(batch_size):
            longest = self.tokens.shape[1]
            if self.lengths is not None:
                longest = int(self.lengths[texts].max())
            yield rows, texts, longest

    def _pairs(self, batch_size):
        """Yield rows and the number of a text of each."""
        if not self.unique:
            for rows in super().epoch(batch_size):
                yield rows, self._draw(rows)
            return
        n_left = n_batches = self.n_batches(batch_size)
        while n_left > 0:  # again where few different texts make few batches
            rows = np.concatenate(list(super().epoch(batch_size)))
            for batch in self._apart(rows, n_batches)[:n_left]:
                yield batch
                n_left -= 1

    def fetch(self, drawn):
        rows, texts, longest = drawn
        return self.samples[rows], self.tokens[texts, :longest].long()

    def _draw(self, rows):
        """Return the number of a text of each row."""
        counts = self.starts[rows + 1] - self.starts[rows]
        draw = torch.rand(len(rows), dtype=torch.float64).numpy() * counts
        return self.choices[self.starts[rows] + draw.astype(int)]

    def _apart(self, rows, n_batches):
        """Return batches of rows and texts, where no two rows have the same text.

        Of a text that more rows have than there are batches, the others are left out.
        """
        texts = self._draw(rows)
        place = torch.randperm(len(self.tokens)).numpy()
        order = np.argsort(place[texts], kind="stable")
        rows, texts = rows[order], texts[order]
        _, first, counts = np.unique(
            place[texts], return_index=True, return_counts=True
        )
        while np.minimum(counts, n_batches).sum() < 2 * n_batches:
            n_batches -= 1  # BatchNorm cannot train on a single row
        kept = np.arange(len(rows)) - np.repeat(first, counts) < n_batches
        rows, texts = rows[kept], texts[kept]
        # rows of one text stand next to each other, so every batch gets another one
        return [(rows[i::n_batches], texts[i::n_batches]) for i in range(n_batches)]


def split(rows, batch_size):
    """Cut rows into batches; a last batch of one row joins the one before.

    BatchNorm cannot train on a single row.
    """
    n_batches = _n_batches(len(rows), batch_size)
    for i in range(n_batches):
        last = i == n_batches - 1
        yield rows[i * batch_size : None if last else (i + 1) * batch_size]


def _n_batches(n_rows, batch_size):
    return max(1, n_rows // batch_size + (n_rows % batch_size > 1))


def shuffled(rows):
    """Return rows in random order."""
    return rows[torch.randperm(len(rows)).numpy()]


def split_labeled(x, y):
    """Part a batch of `Mixed`, or what a network says of it.

    Parameters
    ----------
    x : Tensor of shape (B, ...)
    y : Tensor of int of shape (B,)
        Of the batch: classes, then ``-1 - row`` of the unlabeled rows.

    Returns
    -------
    x_labeled, x_unlabeled : Tensor
    labels : Tensor of int
        Of the labeled rows.
    rows : Tensor of int
        Numbers of the unlabeled rows.
    """
    n_labeled = count_labeled(y)
    return x[:n_labeled], x[n_labeled:], y[:n_labeled], -1 - y[n_labeled:]


def count_labeled(y):
    """Return how many rows of a batch of `Mixed` have a label; the first ones.

    The sampler has noted it on ``y``, so a device need not be asked, and waited for.
    """
    noted = getattr(y, "n_labeled", None)
    return int((y >= 0).sum()) if noted is None else noted


def _marked(y, n_labeled):
    y.n_labeled = n_labeled
    return y


def count_rows(x):
    """Return the number of rows of a batch, or of pairs of them."""
    return len(x[0] if isinstance(x, tuple) else x)


def split_batch(x, y, n_parts):
    """Cut a batch into parts, in each as many labeled and unlabeled rows as can be.

    Parameters
    ----------
    x : Tensor of shape (B, ...), or tuple of them
    y : Tensor of shape (B, ...)
    n_parts : int
        Fewer, where a part would have less than two rows, or only one of both kinds.

    Returns
    -------
    parts : list of (x, y)
    """
    n_rows, n_labeled = count_rows(x), getattr(y, "n_labeled", None)
    sizes = [n_rows // 2]
    if n_labeled is not None:
        sizes += [n for n in (n_labeled, n_rows - n_labeled) if n > 0]
    n_parts = max(1, min(n_parts, *sizes))
    middle = n_rows if n_labeled is None else n_labeled
    first = np.linspace(0, middle, n_parts + 1).astype(int)
    second = np.linspace(middle, n_rows, n_parts + 1).astype(int)
    parts = []
    for i in range(n_parts):
        spans = [slice(ends[i], ends[i + 1]) for ends in (first, second)]
        part = [_rows_in(t, spans) for t in (x, y)]
        if n_labeled is not None:
            _marked(part[1], int(first[i + 1] - first[i]))
        parts.append(tuple(part))
    return parts


def _rows_in(x, spans):
    if isinstance(x, tuple):
        return tuple(_rows_in(part, spans) for part in x)
    return torch.cat([x[span] for span in spans])
