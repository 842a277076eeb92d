"""scikit-learn's callbacks (1.9 and later), and the same calls without them."""

import functools
from contextlib import ExitStack, contextmanager, nullcontext
from numbers import Real

from sklearn.base import _fit_context

from .plain import float32_by_default, plain_parameters
from .processes import alone, current, sharing
from .warn import one_fit

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for that of scikit-learn: nobody is called."""

        def _init_callback_context(self, **kwargs):
            return _Nobody()

    def with_callbacks(fit):
        return fit


class _Nobody:
    def subcontext(self, **kwargs):
        return self

    def propagate_callback_context(self, estimator):
        return nullcontext()

    def call_on_fit_task_begin(self, **kwargs):
        return self

    def call_on_fit_task_end(self, **kwargs):
        return False


def fitting(fit):
    """Decorate ``fit``: check the parameters, and tell callbacks of begin and end.

    A fit that fails or is broken off leaves the estimator as it was before, unless it
    has set ``_kept`` to True: then it stays as it is.
    """

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=False)
    @functools.wraps(fit)
    def fit_with_callbacks(self, X, *args, **kwargs):
        y = args[0] if args else kwargs.get("y")
        self._task = self._init_callback_context(max_subtasks=None), X, y
        before = vars(self).copy()
        try:
            self._task[0].call_on_fit_task_begin(estimator=self, X=X, y=y)
            with ExitStack() as stack:
                stack.enter_context(plain_parameters(self))
                stack.enter_context(float32_by_default())
                stack.enter_context(one_fit())
                stack.enter_context(sharing())
                stack.enter_context(_first_tells(self))
                fit(self, X, *args, **kwargs)
            self._unfinished = getattr(self, "interrupted_", False)
            if not self._unfinished:
                self._forget("_for_rest")
            self._task[0].call_on_fit_task_end(
                estimator=self, X=X, y=y, reconstruction_attributes={}
            )
        except BaseException:
            if not vars(self).get("_kept"):
                vars(self).clear()
                vars(self).update(before)
            raise
        finally:  # what only a fit needs
            for name in (
                "_task",
                "_continued",
                "_goes_on",
                "_changed",
                "_earlier_epochs",
                "_kept",
            ):
                vars(self).pop(name, None)
        return self

    return fit_with_callbacks


@contextmanager
def _first_tells(estimator):
    """Of several processes that share a fit, let the first one alone show progress."""
    verbose = vars(estimator).get("verbose")
    if current().is_first or not verbose:
        yield
        return
    estimator.verbose = 0
    try:
        yield
    finally:
        estimator.verbose = verbose


class Stage:
    """Tell callbacks of the epochs of one stage of a fit.

    What they fit or predict is their own: of several processes that share the fit, the
    first alone has callbacks.

    Parameters
    ----------
    estimator : estimator
        In its ``fit``.
    name : str
    predicts : bool
        Whether the estimator can predict between the epochs of this stage.
    """

    def __init__(self, estimator, name, predicts):
        context, X, y = estimator._task
        self.parent, self.name, self.predicts = context, name, predicts
        self.known = {"estimator": estimator, "X": X, "y": y}

    @alone()
    def begin(self, n_epochs):
        self.task = self.parent.subcontext(task_name=self.name, max_subtasks=n_epochs)
        self.task.call_on_fit_task_begin(**self.known)

    @alone()
    def begin_epoch(self):
        self.epoch = self.task.subcontext(task_name="epoch")
        self.epoch.call_on_fit_task_begin(**self.known)

    @alone()
    def end_epoch(self):
        """Return whether a callback asks to stop."""
        # {}: a copy of the estimator as it is now can predict
        attributes = {} if self.predicts else None
        return self.epoch.call_on_fit_task_end(
            **self.known, reconstruction_attributes=attributes
        )

    @alone()
    def end(self):
        self.task.call_on_fit_task_end(**self.known)


class NoStage:
    """Stands where nobody is to be told of the epochs."""

    def begin(self, n_epochs):
        pass

    begin_epoch = end_epoch = end = lambda self: None


@contextmanager
def monitored(callbacks, epoch):
    """Name the callback that fails because it monitors what an epoch does not hold.

    Parameters
    ----------
    callbacks : iterable of callbacks of skorch
        The block tells them that the epoch has ended. They may add values to it.
    epoch : dict
        Values of the epoch in the history.
    """
    try:
        yield
    except Exception as error:
        for callback in callbacks:
            name = getattr(callback, "monitor", None)
            if isinstance(name, str) and name not in epoch:
                known = [key for key, value in epoch.items() if isinstance(value, Real)]
                raise ValueError(
                    f"{type(callback).__name__} monitors {name!r}, which is not in "
                    f"net_.history: set its monitor to one of {known}."
                ) from error
        raise
