"""Labels from a person in the browser or in a notebook, played here through HTTP."""

import re
import stat
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sklabel.active_learning import ActiveLearningClassifier
from sklabel.inspection import Labeling, label
from sklabel.labels import is_labeled
from sklabel.selection import RandomSelector

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


class Person:
    """A person with a browser."""

    def __init__(self, url):
        self.client = httpx.Client(follow_redirects=True)
        self.page = self.client.get(url)
        assert self.page.status_code == 200
        self.here = url.partition("/?")[0]
        self.state = self.get("state").json()

    def get(self, path):
        return self.client.get(f"{self.here}/{path}")

    def post(self, path, **body):
        headers = {"origin": self.here}
        found = self.client.post(f"{self.here}/{path}", json=body, headers=headers)
        assert found.status_code == 200, found.text
        return found.json()

    def answer(self, answers):
        version = self.state["version"]
        for row, name in answers.items():
            version = self.post("answer", version=version, row=row, **name)["version"]


def named(**labels):
    return {int(row[1:]): {"label": text} for row, text in labels.items()}


@pytest.fixture
def browser(monkeypatch):
    """Return a list to fill with what the person does; the browser opens for them."""
    acts, modes = [], []

    def play(path):
        person = Person(re.search('href="(.*?)"', path.read_text())[1])
        for act in acts:
            act(person)
        person.post("finish")

    def opened(address):
        assert "token" not in address
        path = Path(address.removeprefix("file://"))
        modes.append(stat.S_IMODE(path.stat().st_mode))
        threading.Thread(target=play, args=[path], daemon=True).start()

    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setattr("sklabel._pages.server.webbrowser.open", opened)
    yield acts
    assert set(modes) == {0o600}


def test_it_returns_what_the_person_has_answered(browser):
    X = np.zeros((6, 8, 8), dtype=np.uint8)
    asked = []

    def act(person):
        asked.extend(person.state["order"])
        assert person.state["classes"] == ["cat"]
        person.answer({**named(r5="dog", r2="cat"), 0: {"mark": "cannot tell"}})

    browser.append(act)
    y = label(X, [5, 2, 0, 3], classes=["cat"])
    assert asked == [5, 2, 0, 3]
    assert y.tolist() == [-1, -1, "cat", -1, -1, "dog"] and y.dtype == object


def test_it_answers_a_loop(browser):
    X = np.random.default_rng(0).random((12, 4, 4))
    loop = ActiveLearningClassifier(
        initial_selector=RandomSelector(), n_samples=4, random_state=0
    ).begin(X)
    rows = loop.query()
    browser.append(
        lambda person: person.answer(
            {row: {"label": "ab"[i % 2]} for i, row in enumerate(rows.tolist()[:3])}
        )
    )
    y = label(X, rows)
    answered = rows[is_labeled(y[rows])]
    assert len(answered) == 3
    loop.teach(answered, y[answered])
    assert is_labeled(loop.labels_).sum() == 3


def test_no_answer_is_no_label(browser):
    assert label(np.zeros((3, 4, 4))).tolist() == [-1, -1, -1]


def as_paths(pixels, folder):
    for row, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{row}.png")
    return [str(folder / f"{row}.png") for row in range(len(pixels))]


def kinds_of_images(pixels, folder):
    pd = pytest.importorskip("pandas")
    paths = as_paths(pixels, folder)
    gray = pixels[..., 0]
    return {
        "color": pixels,
        "channels first": pixels.transpose(0, 3, 1, 2),
        "float": (pixels / 255).astype(np.float32),
        "wide float": pixels.astype(float),
        "gray": gray,
        "gray float": gray / 255,
        "paths": paths,
        "Path": [Path(path) for path in paths],
        "array of paths": np.array(paths),
        "Series": pd.Series(paths, index=[9, 8, 7, 6]),
        "frame": pd.DataFrame({"path": paths}),
        "pictures": [Image.fromarray(image) for image in pixels],
        "arrays": list(pixels),
    }


@pytest.mark.parametrize(
    "kind",
    "color,channels first,float,wide float,gray,gray float,paths,Path,"
    "array of paths,Series,frame,pictures,arrays".split(","),
)
def test_images_in_every_form(tmp_path, kind):
    pixels = np.zeros((4, 12, 10, 3), dtype=np.uint8)
    pixels[1], pixels[2, ..., 0], pixels[3] = 255, 200, 90
    X = kinds_of_images(pixels, tmp_path)[kind]
    with label(X, [2, 1], wait=False, browser=False) as handle:
        person = Person(handle.url)
        for row, level in ((2, 200), (1, 255), (3, 90), (0, 0)):
            found = person.get(f"image/x/{row}/640")
            assert found.headers["content-type"] == "image/png"
            path = tmp_path / "shown.png"
            path.write_bytes(found.content)
            shown = np.asarray(Image.open(path))
            assert shown.shape == (12, 10, 3)
            assert abs(int(shown[0, 0, 0]) - level) <= 1
        name = person.get("row/2").json()["name"]
        is_path = kind in ("paths", "Path", "array of paths", "Series", "frame")
        assert name == (str(tmp_path / "2.png") if is_path else "X[2]")
        person.answer(named(r2="cat"))
        assert handle.answers.tolist() == [-1, -1, "cat", -1]
    with pytest.raises(httpx.ConnectError):
        person.get("state")
    assert handle.answers.tolist() == [-1, -1, "cat", -1]


def test_known_labels_are_seen_and_kept_in_their_type():
    X = np.zeros((5, 4, 4))
    handle = label(X, y=[3, -1, 7, -1, -1], classes=[9], wait=False, browser=False)
    person = Person(handle.url)
    assert person.state["answers"] == {"0": ["3", ""], "2": ["7", ""]}
    assert person.state["classes"] == ["9", "3", "7"]
    person.answer(named(r1="9", r2="3", r4="11"))
    assert handle.answers.tolist() == [3, 9, 3, -1, 11]
    assert handle.answers.dtype.kind == "i"
    person.state = person.get("state").json()
    person.answer(named(r3="dog"))
    assert handle.answers.tolist() == ["3", "9", "3", "dog", "11"]
    handle.close()


def test_the_ones_most_like_it():
    X = np.zeros((12, 4, 4))
    X[:6, :2] = 1
    X += np.random.default_rng(0).random(X.shape) / 10
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    flat = FunctionTransformer(lambda X: X.reshape(len(X), -1))
    embedder = make_pipeline(flat, PCA(3))
    with label(X, embedder=embedder, wait=False, browser=False) as handle:
        near = Person(handle.url).get("row/1").json()["near"]
    assert len(near) == 8 and set(near[:5]) == {0, 2, 3, 4, 5}


def test_what_cannot_be_asked():
    X = np.zeros((3, 4, 4))
    with pytest.raises(ValueError, match="0 to 2, got 3"):
        label(X, [3])
    with pytest.raises(ValueError, match="give images"):
        label(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="2"):
        label(X, y=[1, 2])


def test_a_notebook_shows_the_page_in_a_frame(monkeypatch):
    shown = []

    class Display:
        def update(self, what):
            shown.append(what)

    def display(what, display_id):
        shown.append(what)
        return Display()

    tools = SimpleNamespace(display=display, HTML=lambda text: text)
    monkeypatch.setattr("sklabel.inspection._asking._notebook", lambda: tools)
    handle = label(np.zeros((3, 4, 4)), wait=False)
    assert isinstance(handle, Labeling)
    address = re.search('src="(http://localhost:.*?)"', shown[0])[1]
    person = Person(address)
    policy = person.page.headers["content-security-policy"]
    assert "frame-ancestors http://localhost:* http://127.0.0.1:*" in policy
    person.answer(named(r0="cat"))
    handle.close()
    assert shown[1] == "&lt;Labeling: 1 labels, 2 not answered&gt;"
    assert "token" not in shown[1]


def test_a_kernel_is_known_by_its_configuration(monkeypatch):
    from sklabel.inspection._asking import _notebook

    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert _notebook() is None
    for config, is_kernel in (({}, False), ({"IPKernelApp": {}}, True)):
        shell = SimpleNamespace(config=config)
        fake = SimpleNamespace(get_ipython=lambda shell=shell: shell, display="display")
        monkeypatch.setitem(sys.modules, "IPython", fake)
        assert (_notebook() == "display") == is_kernel


def test_an_interruption_returns_the_answers_so_far(monkeypatch):
    def interrupted(server):
        Person(server.url).answer(named(r1="cat"))
        raise KeyboardInterrupt

    monkeypatch.setattr("sklabel._pages.server.Server.wait", interrupted)
    assert label(np.zeros((2, 4, 4)), browser=False).tolist() == [-1, "cat"]
