"""scikit-learn's callbacks on our estimators: alone, in a pipeline, in a search."""

import pickle

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklabel.classification import FixMatchClassifier
from sklabel.clustering import SCANClusterer
from sklabel.embedding import SimCLRTransformer
from sklabel.selection import RandomSelector, USLSelector

pytest.importorskip("sklearn.callback")

X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
Y = np.where(np.arange(40) < 12, np.arange(40) % 2, -1)


class Recorder:
    """Notes the tasks that end; asks to stop in a given epoch."""

    max_propagation_depth = None

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.tasks = []
        self.scores = []

    def setup(self, estimator, context):
        self.tasks.append(("setup", type(estimator).__name__))

    def teardown(self, estimator, context):
        self.tasks.append(("teardown", type(estimator).__name__))

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
        self.tasks.append((context.estimator_name, context.task_name))
        if context.task_name != "epoch":
            return False
        if y is not None and fitted_estimator is not None:
            self.scores.append(fitted_estimator.score(X, y))
        return context.task_id + 1 == self.stop_after


def count(recorder, name, task):
    return recorder.tasks.count((name, task))


def test_every_epoch_is_told_with_an_estimator_that_predicts():
    recorder = Recorder()
    classifier = FixMatchClassifier(max_epochs=4, random_state=0)
    plain = pickle.dumps(classifier.fit(X, Y).predict_proba(X))
    told = classifier.set_callbacks(recorder).fit(X, Y)
    assert pickle.dumps(told.predict_proba(X)) == plain  # looking changes nothing
    assert count(recorder, "FixMatchClassifier", "epoch") == 4
    assert count(recorder, "FixMatchClassifier", "fit") == 2  # the stage, and all
    assert len(recorder.scores) == 4
    assert recorder.scores[-1] == told.score(X, Y)
    assert recorder.tasks[0][0] == "setup" and recorder.tasks[-1][0] == "teardown"
    assert told.net_.stage is None  # nothing holds on to X


def test_a_callback_may_stop_the_training():
    embedder = SimCLRTransformer(max_epochs=9, random_state=0)
    embedder.set_callbacks(Recorder(stop_after=3)).fit(X)
    assert embedder.n_iter_ == 3


def test_stages_and_the_held_estimator():
    recorder = Recorder()
    SCANClusterer(
        2,
        max_epochs=2,
        self_label_epochs=3,
        embedder=SimCLRTransformer(max_epochs=2),
        random_state=0,
    ).set_callbacks(recorder).fit(X)
    assert count(recorder, "SimCLRTransformer", "epoch") == 2
    assert count(recorder, "SCANClusterer", "epoch") == 5
    assert count(recorder, "SCANClusterer", "cluster") == 1
    assert count(recorder, "SCANClusterer", "self-label") == 1


@pytest.mark.parametrize("selector", [USLSelector(4), RandomSelector(4)])
def test_selectors(selector):
    recorder = Recorder()
    selector.set_callbacks(recorder).fit(X)
    assert count(recorder, type(selector).__name__, "fit") == 1


def test_in_a_pipeline_and_a_search():
    recorder = Recorder()
    steps = SimCLRTransformer(max_epochs=2), USLSelector(4)
    make_pipeline(*steps).set_callbacks(recorder).fit(X)
    assert count(recorder, "SimCLRTransformer", "epoch") == 2
    recorder = Recorder()
    search = GridSearchCV(
        SimCLRTransformer(max_epochs=2), {"temperature": [0.2, 0.5]}, cv=2
    )
    search.set_callbacks(recorder).fit(X)
    assert count(recorder, "SimCLRTransformer", "epoch") == 2 * (2 * 2 + 1)


def test_teardown_after_an_error():
    recorder = Recorder()
    with pytest.raises(ValueError, match="NaN"):
        SimCLRTransformer().set_callbacks(recorder).fit(np.full((5, 3), np.nan))
    assert recorder.tasks[-1] == ("teardown", "SimCLRTransformer")
