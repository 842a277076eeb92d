"""A labeling session: rows in order, answers, and undo."""

import threading
import unicodedata
from typing import Any, NamedTuple, Protocol

from .._core.label_texts import look_alikes, text_label

# Answers that name no class; the last one is asked again at the end.
CANNOT_TELL, NONE_OF_THESE, SKIPPED = "cannot tell", "none of these", "skipped"
MARKS = (CANNOT_TELL, NONE_OF_THESE, SKIPPED)
_LONGEST = 100  # characters of a class name


class Answer(NamedTuple):
    """A person's answer for an image: a label, or one of `MARKS`."""

    label: str | None
    mark: str = ""


class Insight(NamedTuple):
    """Results of learning from the answers so far.

    Parameters
    ----------
    n_labels : int
        Number of labels it was learned from.
    rows : list of int
        Rows to label next, the most informative first.
    accuracy : float or None
        Expected accuracy on all other rows; None: not known yet.
    interval : (float, float) or None
        95 % interval of the accuracy.
    gain : float or None
        Expected gain in accuracy from ``more`` further labels.
    more : int
    classes : list of str
    codes : sequence of int of length n_rows
        Position of the proposed class of each row; empty: nothing is proposed.
    confidence : sequence of float of length n_rows
    """

    n_labels: int
    rows: list
    accuracy: float | None = None
    interval: tuple | None = None
    gain: float | None = None
    more: int = 0
    classes: list = []
    codes: Any = ()
    confidence: Any = ()


class Stale(Exception):
    """The answers have changed since the version that a change refers to."""


class Store(Protocol):
    """Storage of answers."""

    def changed(self) -> bool:
        """Return whether others have changed the stored answers."""

    def read(self) -> dict:
        """Return the stored {row: `Answer`}."""

    def write(self, answers: dict) -> None:
        """Store {row: `Answer` or None}; None removes an answer.

        The answers are stored when this returns. Raises `Stale` if others changed them
        first.
        """


class _Change(NamedTuple):
    before: dict  # {row: Answer or None}
    after: dict
    classes_before: list
    classes_after: list


class Session:
    """Answers of a person, each stored before the next one is accepted.

    Every change names the version of the answers that it refers to, and raises `Stale`
    if that is not the current one: two pages cannot overwrite each other, and changes
    in the store by other means take precedence.

    Parameters
    ----------
    n_rows : int
        Number of rows.
    order : iterable of int
        Rows in labeling order.
    store : Store or None
        None: answers are only in memory.
    classes : iterable of str
        Classes that are offered from the start.
    keep : collection of str
        Texts that name a class whatever they look like.
    unlabeled : collection of str
        Texts that mean no label.

    Attributes
    ----------
    version : int
        Version of the answers; it grows with each change.
    turn : int
        Version of the labeling order.
    trouble : str
        Reason why nothing is learned, or "".
    """

    def __init__(self, n_rows, order, store=None, *, classes=(), keep=(), unlabeled=()):
        self.n_rows = n_rows
        self.store = store
        self.keep, self.unlabeled = keep, unlabeled
        self.version = self.turn = 0
        self.insight = None
        self.trouble = ""
        self.answers = {} if store is None else dict(store.read())
        self.classes = []
        self._first = list(dict.fromkeys(order))  # as they were listed
        self._later = []  # chosen for what is learned
        self._done, self._undone = [], []  # changes
        self._watchers = []
        self._lock = threading.RLock()
        given = [a.label for a in self.answers.values() if a.label is not None]
        for label in [*map(self._as_label, classes), *given]:
            if label not in self.classes:
                self.classes.append(label)

    # -- what there is

    @property
    def order(self):
        """Rows in labeling order."""
        return [*self._first, *self._later]

    @property
    def labels(self):
        """{row: label} of the labeled rows."""
        with self._lock:
            return {r: a.label for r, a in self.answers.items() if a.label is not None}

    def n_open(self):
        """Return how many rows of the order have no answer."""
        with self._lock:
            return sum(not self._is_answered(row) for row in self.order)

    def _is_answered(self, row):
        return row in self.answers and self.answers[row].mark != SKIPPED

    def state(self):
        """Return all that a page shows, as plain lists and dicts."""
        with self._lock:
            return {
                "version": self.version,
                "turn": self.turn,
                "n_rows": self.n_rows,
                "order": self.order,
                "answers": {row: list(a) for row, a in self.answers.items()},
                **self._rest(),
            }

    def _rest(self):
        return {
            "classes": list(self.classes),
            "can_undo": bool(self._done),
            "can_redo": bool(self._undone),
            "n_more": len(self._unasked()),
            "insight": self._told(),
            "trouble": self.trouble,
        }

    def _told(self):
        if self.insight is None:
            return None
        names = ("n_labels", "accuracy", "interval", "gain", "more")
        return {name: getattr(self.insight, name) for name in names}

    def proposal(self, row):
        """Return the proposed (class, confidence) of a row, or None."""
        with self._lock:
            known = self.insight
            if known is None or not len(known.codes):
                return None
            label = known.classes[int(known.codes[row])]
            return (label, float(known.confidence[row])) if label else None

    # -- what changes it

    def answer(self, version, row, label=None, mark="", alike=False):
        """Answer a row, or remove its answer (neither label nor mark).

        Parameters
        ----------
        version : int
        row : int
        label : str or None
        mark : str
            One of `MARKS`, or "".
        alike : bool
            Whether a new class may look like another one.

        Returns
        -------
        change : dict
            ``version``, ``turn``, ``row``, ``changed`` ({row: [label, mark] or None}),
            and the rest of `state`.

        Raises
        ------
        Stale
            The answers have another version; nothing is changed.
        LooksAlike
            The class is new and looks like an existing one.
        ValueError
            There is no such row or mark, or the text cannot be a class name.
        OSError
            It cannot be stored; nothing is changed.
        """
        return self.answer_all(version, [row], label, mark, alike)

    def answer_all(self, version, rows, label=None, mark="", alike=False):
        """Answer several rows as one change; see `answer`."""
        with self._lock:
            self._check(version)
            self._check_rows(rows)
            if mark and (mark not in MARKS or label is not None):
                raise ValueError(f"{mark!r} is not an answer.")
            classes = list(self.classes)
            if label is not None and label not in classes:
                label = self._as_label(label)
                if label not in classes:
                    if not alike:
                        self._check_alike(label)
                    classes.append(label)
            found = Answer(label, mark) if label is not None or mark else None
            return self._change(dict.fromkeys(rows, found), classes)

    def rename(self, version, old, new, alike=False):
        """Rename a class; if the new name exists, both are merged."""
        with self._lock:
            self._check(version)
            if old not in self.classes:
                raise ValueError(f"there is no class {old!r}.")
            if new not in self.classes:
                new = self._as_label(new)
            if new not in self.classes and not alike:
                self._check_alike(new, but=old)
            is_merged = new in self.classes and new != old  # that one keeps its place
            classes = [
                new if c == old else c
                for c in self.classes
                if c != old or not is_merged
            ]
            rows = [row for row, a in self.answers.items() if a.label == old]
            return self._change(dict.fromkeys(rows, Answer(new)), classes)

    def undo(self, version):
        """Undo the last change, back to the start of this session."""
        with self._lock:
            self._check(version)
            if not self._done:
                raise ValueError("there is nothing to undo.")
            change = self._done[-1]
            self._keep(change.before, change.classes_before)
            self._undone.append(self._done.pop())
            return self._tell(change.before)

    def redo(self, version):
        """Redo the last undone change."""
        with self._lock:
            self._check(version)
            if not self._undone:
                raise ValueError("there is nothing to redo.")
            change = self._undone[-1]
            self._keep(change.after, change.classes_after)
            self._done.append(self._undone.pop())
            return self._tell(change.after)

    def refresh(self):
        """Load what others have written into the store."""
        with self._lock:
            if self.store is None or not self.store.changed():
                return
            found = dict(self.store.read())
            rows = [*found, *(row for row in self.answers if row not in found)]
            after = {r: found.get(r) for r in rows if found.get(r) != self._of(r)}
            if not after:
                return
            before = {row: self._of(row) for row in after}
            new = [a.label for a in after.values() if a and a.label is not None]
            classes = list(dict.fromkeys([*self.classes, *new]))
            # it can be undone as any change, so that nothing is lost
            self._done.append(_Change(before, after, self.classes, classes))
            self._undone.clear()
            self._set(after, classes)
            self._tell(after)

    def _of(self, row):
        return self.answers.get(row)

    def _check(self, version):
        self.refresh()
        if version != self.version:
            raise Stale

    def _check_rows(self, rows):
        for row in rows:
            if type(row) is not int or not 0 <= row < self.n_rows:
                raise ValueError(f"there is no row {row}.")

    def _change(self, after, classes):
        before = {row: self._of(row) for row in after}
        if before != after or classes != self.classes:
            change = _Change(before, after, self.classes, classes)
            self._keep(after, classes)
            self._done.append(change)
            self._undone.clear()
        return self._tell(after)

    def _keep(self, after, classes):
        """Store answers, then use them: an error in storing changes nothing."""
        if self.store is not None and after:
            try:
                self.store.write(after)
            except Stale:
                self.refresh()
                raise
        self._set(after, classes)

    def _set(self, after, classes):
        for row, answer in after.items():
            if answer is None:
                self.answers.pop(row, None)
            else:
                self.answers[row] = answer
        listed = {*self._first, *self._later}
        new = [row for row, a in after.items() if a is not None and row not in listed]
        if new:
            self._later += new
            self.turn += 1
        self.classes = list(classes)
        self.version += 1

    def _tell(self, after):
        for watch in self._watchers:
            watch()
        return {
            "version": self.version,
            "turn": self.turn,
            "row": next(iter(after), None),
            "changed": {row: a and list(a) for row, a in after.items()},
            **self._rest(),
        }

    def _as_label(self, text):
        label = " ".join(str(text).split())
        odd = [c for c in label if unicodedata.category(c) in ("Cc", "Cs")]
        if odd or len(label) > _LONGEST:
            raise ValueError(
                f"the name of a class may have at most {_LONGEST} characters, all of "
                "them visible."
            )
        if label in self.unlabeled:
            raise ValueError(f"{label!r} means a missing label here.")
        try:
            found = text_label(label, self.keep)
        except ValueError as error:
            raise ValueError(f"{error}: choose another name.") from None
        if found is None:
            raise ValueError("the name of a class is empty.")
        return str(found)

    def _check_alike(self, label, but=None):
        others = [name for name in self.classes if name != but]
        for group in look_alikes([*others, label]):
            if label in group:
                raise LooksAlike(label, group[0])

    # -- what is asked next

    def watch(self, function):
        """Call a function after each change."""
        self._watchers.append(function)

    def more(self, n):
        """Add n more rows to label, the most informative ones."""
        with self._lock:
            self._later += self._unasked()[: max(0, n)]
            self.turn += 1
            return self.state()

    def learned(self, insight):
        """Use an insight, which changes the order of the rows.

        The next three rows do not change, because pages have loaded them.
        """
        with self._lock:
            waiting = [row for row in self._later if row not in self.answers]
            loaded = [row for row in self.order if row not in self.answers][:3]
            movable = [row for row in waiting if row not in loaded]
            self.insight, self.trouble = insight, ""
            if movable:
                stay = [row for row in self._later if row not in set(movable)]
                self._later = stay
                new = dict.fromkeys([*self._unasked(), *movable])
                self._later = [*stay, *list(new)[: len(movable)]]
            self.turn += 1

    def not_learned(self, error):
        """Show the person why nothing is learned."""
        with self._lock:
            self.trouble = f"{type(error).__name__}: {error}"
            self.turn += 1

    def _unasked(self):
        if self.insight is None:
            return []
        listed = {*self._first, *self._later, *self.answers}
        return [row for row in self.insight.rows if row not in listed]


class LooksAlike(ValueError):
    """A new class looks like an existing one.

    Parameters
    ----------
    label, known : str
    """

    def __init__(self, label, known):
        super().__init__(f"{label!r} looks like {known!r}.")
        self.label, self.known = label, known
