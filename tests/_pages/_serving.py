"""Serve a list and its folder of images until killed: LIST FOLDER PORT; no learning."""

import sys
from pathlib import Path
from types import SimpleNamespace

from sklabel._pages.photographs import Photographs
from sklabel._pages.review import Review, review_routes
from sklabel._pages.server import Server
from sklabel._pages.session import Session
from sklabel.cli.answer_list import AnswerList
from tests._pages._making import make_routes

OPTIONS = SimpleNamespace(
    path_column="path",
    label_column="label",
    path_prefix=None,
    unlabeled=[],
    keep_label=[],
)


def open_session(path, folder):
    """Return the session of a list, and the paths of its rows."""
    paths = sorted(Path(folder).iterdir())
    files = {p.name: p for p in paths}
    answers = AnswerList(path, files, list(files), folder, OPTIONS)
    return Session(len(paths), answers.listed(), answers), paths


def open_review(path, folder):
    """Return the review of a list, and the paths of its rows."""
    paths = sorted(Path(folder).iterdir())
    files = {p.name: p for p in paths}
    answers = AnswerList(path, files, list(files), folder, OPTIONS)
    return Review(len(paths), answers), paths


def serve_review(path, folder, learner=None):
    """Return a server of a review that has started, and the review."""
    review, paths = open_review(path, folder)
    routes = review_routes(
        review,
        [p.name for p in paths],
        Photographs(paths),
        about={"title": "photos", "list": "labels.csv", "next": "sklabel report"},
        finish=lambda: server.finish(),
    )
    server = Server(routes, longest=2**20)
    server.start()
    if learner is not None:
        learner.start(review, known=review.labels)
    return server, review


def serve(path, folder, port=0, learner=None):
    """Return a server that has started, and its session."""
    session, paths = open_session(path, folder)
    routes = make_routes(paths, session, learner, finish=lambda: server.finish())
    server = Server(routes, port)
    server.start()
    if learner is not None:
        learner.start(session)
    return server, session


if __name__ == "__main__":
    path, folder, port = sys.argv[1:]
    server, _ = serve(path, folder, int(port))
    print(server.url, flush=True)
    server.wait()
