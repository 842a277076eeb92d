"""A review: all rows and their predictions, corrected one by one or in ranges."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from starlette.responses import JSONResponse
from starlette.routing import Route

from .server import guarded, image_routes, page, session_routes, static_routes
from .session import Answer, Session, Stale, Store

_MOST = 0.9999  # confidence, as in what `fit` writes
_TRIES = 5  # to write predictions, while somebody else writes, too


class Issue(NamedTuple):
    """An image that a person should check.

    Parameters
    ----------
    row : int
    kind : str
        Such as "blurred".
    detail : str
    """

    row: int
    kind: str
    detail: str = ""


class PredictionStore(Store, Protocol):
    """Storage of answers and predictions."""

    predictions: dict

    def predict(self, predictions: dict) -> None:
        """Store {row: (label, confidence)}, never replacing an answer."""


class Review(Session):
    """A session that shows all rows and their predictions.

    Parameters
    ----------
    n_rows : int
    store : PredictionStore
    **settings
        Of `Session`.

    Attributes
    ----------
    issues : list of Issue
    news : list of int
        Unanswered rows whose prediction has changed since last time.
    """

    def __init__(self, n_rows, store, **settings):
        super().__init__(n_rows, range(n_rows), store, **settings)
        self.issues, self.news = [], []
        self._looked = set()  # rows of which a person has said that they are right
        self._label_then = {}  # of the rows of issues, when those were found
        self._know_classes()

    def _know_classes(self):
        labels = [label for label, _ in self.store.predictions.values()]
        self.classes = list(dict.fromkeys([*self.classes, *labels]))

    def state(self):
        """Return all that a page shows, as plain lists and dicts."""
        with self._lock:
            return {
                **super().state(),
                "predictions": {r: list(p) for r, p in self.store.predictions.items()},
                "news": self.news,
                "issues": [list(issue) for issue in self.issues],
            }

    def _rest(self):
        settled = {
            row
            for row, label in self._label_then.items()
            if row in self._looked or self._label_of(row) != label
        }
        return {**super()._rest(), "settled": sorted(settled)}

    def proposal(self, row):
        """Return the predicted (class, confidence) of a row, or None."""
        with self._lock:
            return self.store.predictions.get(row)

    # -- what a person changes

    def correct(self, version, rows, label=None, mark="", alike=False):
        """Answer several rows as one change; see `Session.answer`."""
        return self.answer_all(version, rows, label, mark, alike)

    def confirm(self, version, turn, rows):
        """Confirm the labels of rows: predictions become answers.

        Raises
        ------
        Stale
            The labels or predictions have changed since the page loaded them.
        """
        with self._lock:
            self._check(version)
            if turn != self.turn:
                raise Stale
            self._check_rows(rows)
            after = {
                row: Answer(self.store.predictions[row][0])
                for row in rows
                if not self._has_answer(row) and row in self.store.predictions
            }
            self._looked |= {row for row in rows if self._label_of(row) is not None}
            return self._change(after, self.classes)

    def _has_answer(self, row):
        return self._of(row) is not None

    def _label_of(self, row):
        answer = self._of(row)
        return None if answer is None else answer.label

    # -- what others change

    def refresh(self):
        """Load what others have written into the store."""
        with self._lock:
            before = self.store.predictions
            super().refresh()
            if self.store.predictions is not before:
                self._know_classes()
                self.turn += 1

    def learned(self, insight):
        """Use an insight, and store its predictions."""
        with self._lock:
            super().learned(insight)
            if not len(insight.codes):
                return
            found = {
                row: (str(insight.classes[int(code)]), min(float(p), _MOST))
                for row, (code, p) in enumerate(
                    zip(insight.codes, insight.confidence, strict=True)
                )
            }
            before = self.store.predictions
            try:
                self._keep_predictions(found)
            except (ValueError, OSError, Stale) as error:
                self.not_learned(error)
                return
            self.news = [
                row
                for row, (label, _) in found.items()
                if not self._has_answer(row)
                and row in before
                and before[row][0] != label
            ]

    def _keep_predictions(self, found):
        for last in range(_TRIES):
            try:
                self.refresh()
                self.store.predict(found)
                return
            except Stale:
                if last == _TRIES - 1:
                    raise

    def found(self, issues):
        """Add issues that a person should check."""
        with self._lock:
            new = list(issues)
            self.issues = [*self.issues, *new]
            for issue in new:
                self._label_then[issue.row] = self._label_of(issue.row)
            self.turn += 1


def review_routes(review, names, photographs, *, learn: Callable | None = None, **more):
    """Return all routes of the page of a review.

    Parameters
    ----------
    review : Review
    names : list of str
    photographs : Photographs
    learn : callable or None
        Called when the person requests new predictions.
    **more
        Of `session_routes`.
    """

    def all_names(request):
        return JSONResponse(names)

    def learn_now():
        if learn is not None:
            learn()
        return {}

    changes = {
        "correct": (
            review.correct,
            dict(version=int, rows=list),
            dict(label=str, mark=str),
        ),
        "confirm": (review.confirm, dict(version=int, turn=int, rows=list), {}),
        "learn": (learn_now, {}, {}),
    }
    return [
        Route("/", page("review.html")),
        Route("/names", guarded(all_names)),
        *static_routes(),
        *image_routes(names, photographs),
        *session_routes(review, names, changes=changes, **more),
    ]
