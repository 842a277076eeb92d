"""Ask a person for labels, in the browser or in a notebook."""

import html
import sys
from contextlib import ExitStack
from numbers import Integral

import numpy as np
from PIL import Image
from sklearn.utils.validation import _num_samples

from .._core.answers import check_rows
from .._core.columns import as_array, item_column
from .._core.inputs import images_by_row
from .._core.labels import check_labels, encode_labels
from .._core.optional import import_optional
from .._pages.photographs import Photographs
from .._pages.session import Answer, Session
from ..labels import partial_labels
from ..neighbors import kneighbors
from ._vectors import as_vectors, unit_rows

_N_NEAR = 8
_HEIGHT = 720  # pixels of the page in a notebook


def label(
    X, rows=None, *, y=None, classes=(), embedder=None, wait=True, browser=True, port=0
):
    """Ask a person for labels of images, in the browser or in the notebook.

    Opens the page of ``sklabel label`` on this machine: one image at a time, a key for
    each class. Needs the extra ``label``.

    Parameters
    ----------
    X : array-like of length n_samples
        Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``, or paths of image
        files, in a list, a Series or a frame of one column.
    rows : array-like of int, default=None
        Rows to label, in this order, such as those of
        :meth:`sklabel.active_learning.ActiveLearningClassifier.query`; None: all.
    y : array-like of shape (n_samples,), default=None
        Known labels; -1, None or NaN in the other rows. The person sees them and may
        change them.
    classes : iterable, default=()
        Classes to offer from the start, besides those in ``y``.
    embedder : transformer or None, default=None
        Embeds X, so that the page can show similar images; a fitted one is used as is,
        another one is cloned and fitted.
    wait : bool, default=True
        Whether to wait until the person has finished. False: return a handle at once.
    browser : bool, default=True
        Whether to show the page: in a notebook, in a frame below the cell, otherwise in
        the browser. False: only print its address.
    port : int, default=0
        Port of the page; 0: a free one.

    Returns
    -------
    y : ndarray of shape (n_samples,)
        The labels, including those known before, and -1 in all rows that were not
        answered, for example because the person could not tell.
    handle : Labeling
        Returned instead of ``y`` if ``wait=False``.

    Raises
    ------
    ValueError
        If X holds no images, or rows are not in X.
    ImportError
        If the extra ``label`` is not installed.

    Notes
    -----
    Ctrl-C, or the interrupt button of a notebook, has the same effect as the button
    "Finish": the answers so far are returned. They are in memory only; the command
    ``sklabel label`` writes each answer to a CSV.

    Examples
    --------
    >>> from sklabel.inspection import label
    >>> y = label(X, rows=[5, 2], classes=["cat", "dog"])  # doctest: +SKIP
    """
    handle = Labeling(X, rows, y, classes, embedder, browser, port)
    if not wait:
        return handle
    try:
        handle.wait()
    except KeyboardInterrupt:  # a way to finish
        pass
    handle.close()
    return handle.answers


class Labeling:
    """A page on which a person labels images; `label` returns it if it does not wait.

    It can be used in a ``with`` statement, which closes the page at its end.

    Parameters
    ----------
    X : array-like of length n_samples
        Images, or paths of image files.
    rows : array-like of int or None
        Rows to label, in this order; None: all.
    y : array-like of shape (n_samples,) or None
        Known labels.
    classes : iterable
        Classes to offer from the start.
    embedder : transformer or None
        Embeds X, so that the page can show similar images.
    browser : bool
        Whether to show the page.
    port : int
        Port of the page; 0: a free one.

    Attributes
    ----------
    answers : ndarray of shape (n_samples,)
        The labels so far, -1 for unlabeled rows.
    url : str
        Address of the page, with a token that opens it.

    See Also
    --------
    label : Open the page, and wait for the answers.
    """

    def __init__(self, X, rows, y, classes, embedder, browser, port):
        for name in ("starlette", "uvicorn"):
            import_optional(name, "label")
        from .._pages.server import THIS_MACHINE, Server, labeling_routes

        self._n = n = _num_samples(X)
        rows = np.arange(n) if rows is None else check_rows(rows, n)
        known = _known(y, n)
        classes = [*dict.fromkeys([*classes, *known.values()])]
        self._classes = {str(c): c for c in classes}
        self._session = Session(
            n,
            rows.tolist(),
            _Known({row: Answer(str(label)) for row, label in known.items()}),
            classes=self._classes,
            keep=list(self._classes),
        )
        names, items = _shown(X)
        routes = labeling_routes(
            self._session,
            names,
            Photographs(items),
            near=_near(X, embedder),
            about={
                "title": "Label images",
                "list": "Python",
                "leave": "Finish returns the answers so far.",
                "lost": "The answers were only in the memory of the Python program.",
            },
            finish=lambda: self._server.finish(),
        )
        kernel = _notebook() if browser else None
        frames = {} if kernel is None else {"frames": THIS_MACHINE}
        self._server = Server(routes, port, **frames)
        self.url = self._server.url
        self._end = ExitStack()
        self._end.callback(self._server.stop)
        self._server.start()
        self._show(kernel, browser)

    def _show(self, kernel, browser):
        from .._pages.server import HOST, opened_in_browser

        if kernel is None:
            print(f"Label at {self.url}", flush=True)
            self._end.enter_context(opened_in_browser(self.url, browser))
            return
        # a browser takes the two names of this machine for two sites, and most
        # notebooks have this one
        here = html.escape(self.url.replace(HOST, "localhost"), quote=True)
        shown = kernel.display(
            kernel.HTML(
                f'<iframe src="{here}" width="100%" height="{_HEIGHT}" '
                'style="border: 0" title="Label images"></iframe>'
                f'<a href="{here}" target="_blank">Open in a separate tab</a>'
            ),
            display_id=True,
        )
        self._end.callback(lambda: shown.update(kernel.HTML(html.escape(repr(self)))))

    @property
    def answers(self):
        """Labels so far, -1 for unlabeled rows."""
        labels = self._session.labels
        found = [self._classes.get(text, text) for text in labels.values()]
        if any(not isinstance(value, str) for value in found):
            found = _of_one_type(found)
        return partial_labels(self._n, list(labels), found)

    def wait(self):
        """Wait until the person has finished."""
        self._server.wait()

    def close(self):
        """Close the page; the answers so far are kept."""
        self._end.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __repr__(self):
        n_open = self._session.n_open()
        return f"<Labeling: {len(self._session.labels)} labels, {n_open} not answered>"


class _Known:
    """The store of answers that are in memory: those of before."""

    def __init__(self, answers):
        self.answers = answers

    def changed(self):
        return False

    def read(self):
        return self.answers

    def write(self, answers):
        pass


def _known(y, n):
    """Return {row: label} of a partly labeled y."""
    if y is None:
        return {}
    classes, codes = encode_labels(check_labels(y, n_samples=n, min_classes=0))
    names = classes.tolist()
    return {row: names[code] for row, code in enumerate(codes.tolist()) if code >= 0}


def _of_one_type(values):
    """Return classes, typed numbers as numbers if all are, else all as texts."""
    known = [value for value in values if not isinstance(value, str)]
    typed = [value for value in values if isinstance(value, str)]
    if all(isinstance(v, Integral) and not isinstance(v, bool) for v in known) and all(
        text.isdecimal() for text in typed
    ):
        return [int(value) for value in values]
    return [str(value) for value in values] if typed else values


def _shown(X):
    """Return names of all rows, and what `Photographs` takes."""
    column = item_column(as_array(X))
    if column is not None and column.kind in ("path", "bytes", "picture"):
        return [column.name(row) for row in range(len(column))], column
    rows = _Rows(X)
    return [f"X[{row}]" for row in range(len(rows))], rows


class _Rows:
    """Images of an array as pictures, by row."""

    def __init__(self, X):
        self.images, self.n = images_by_row(X), _num_samples(X)

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        image = np.asarray(self.images(np.array([row]))[0])
        if image.dtype != np.uint8:
            image = np.rint(image * 255).astype(np.uint8)
        return Image.fromarray(image)


def _near(X, embedder):
    """Return a function that returns the rows most like one, or None."""
    if embedder is None:
        return None
    Z = unit_rows(as_vectors(X, embedder, "A comparison"))
    n_neighbors = min(_N_NEAR, len(Z) - 1)
    if not n_neighbors:
        return None
    _, rows = kneighbors(
        Z, n_neighbors, metric="cosine", include_self=False, random_state=0
    )
    return lambda row: rows[row].tolist()


def _notebook():
    """Return IPython's display function in a notebook, else None."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or "IPKernelApp" not in shell.config:
        return None
    from IPython import display

    return display
