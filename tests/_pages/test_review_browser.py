"""A person reviews labels in a real browser: runs, undo, predictions, hostile names."""

import csv
import os
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from sklabel._pages.learning import Learner
from sklabel._pages.review import Issue
from sklabel._pages.server import opened_in_browser
from sklabel.inspection import label
from tests._pages._browsing import (
    HOSTILE,
    NAMELESS,
    NEEDS_BROWSER,
    PALE,
    SCRIPT,
    SMALL,
    Page,
    webdriver,
)
from tests._pages._making import color_of, read, vectors, write_images
from tests._pages._serving import serve_review

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
pytestmark = NEEDS_BROWSER
HEADER = ["path", "label", "confidence", "source", "predicted"]


class ReviewPage(Page):
    """The page of a review as a person uses it."""

    def open(self, url):
        self.driver.get(url)
        self.until(lambda: self.js("return document.body.dataset.ready"))

    @property
    def rows(self):
        """Rows of the cells in the document, in their order."""
        found = "[...document.querySelectorAll('.cell')].map((c) => +c.dataset.row)"
        return self.js(f"return {found}")

    @property
    def at(self):
        return self.js(
            "return Number(document.querySelector('.cell.at')?.dataset.row ?? -1)"
        )

    @property
    def selected(self):
        found = "document.querySelectorAll('.cell[aria-selected=true]')"
        return sorted(self.js(f"return [...{found}].map((c) => +c.dataset.row)"))

    def cell(self, row):
        return self.js(f"return document.getElementById('cell-{row}').innerText")

    def click(self, row, key=None):
        self.settle()
        cell = self.js(f"return document.getElementById('cell-{row}')")
        actions = webdriver.ActionChains(self.driver)
        if key:
            actions.key_down(key)
        actions.click(cell)
        if key:
            actions.key_up(key)
        actions.perform()

    def hold_shift(self, *keys):
        self.settle()
        actions = webdriver.ActionChains(self.driver).key_down(Keys.SHIFT)
        actions.send_keys(*keys).key_up(Keys.SHIFT).perform()

    def filter(self, text):
        self.settle()
        self.js(
            "[...document.querySelectorAll('.filters button')]"
            ".find((b) => b.innerText.includes(arguments[0])).click()",
            text,
        )


@pytest.fixture
def page(tab):
    return ReviewPage(tab)


@pytest.fixture
def start(tmp_path):
    """Return a function that serves a review: all is predicted to be red."""
    servers = []

    def start(n, given=(), names=None, learner=None, label="red"):
        folder, path = tmp_path / "photos", tmp_path / "labels.csv"
        if not folder.exists():
            write_images(folder, n, names=names)
        rows = []
        for row, name in enumerate(sorted(os.listdir(folder))):
            p = f"{0.3 + 0.6 * row / n:.4f}"
            rows.append([name, label, p, "predicted", label])
            if row in given:
                rows[-1][2:4] = ["1.0000", "given"]
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([HEADER, *rows])
        server, review = serve_review(path, folder, learner)
        servers.append(server)
        return server.url, review, path

    yield start
    for server in servers:
        server.stop()


def given_in(path):
    return {row["path"]: row["label"] for row in read(path) if row["source"] == "given"}


def test_a_run_is_corrected_with_keys_and_undone(page, start):
    url, review, path = start(30, given=[0, 1])
    page.open(url)
    assert page.text("count") == "2 given, 28 predicted"
    assert page.at == 2  # the least sure first; what is given comes last
    page.hold_shift(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.selected == [2, 3, 4] and "3 selected" in page.text("target")
    page.send("+", "blue", Keys.ENTER)
    page.until(lambda: page.text("count") == "5 given, 25 predicted")
    assert review.labels == {0: "red", 1: "red", 2: "blue", 3: "blue", 4: "blue"}
    assert len(given_in(path)) == 5
    page.filter("red")
    assert page.text("shown") == "27 images" and page.at == 5
    page.send("2")  # blue: it leaves what is shown, and the next one comes
    page.until(lambda: page.at == 6)
    page.send(Keys.ENTER)  # that one is right
    page.until(lambda: page.at == 7)
    assert review.labels[5] == "blue" and review.labels[6] == "red"
    page.click(9, Keys.SHIFT)
    page.click(12, Keys.CONTROL)
    assert page.selected == [7, 8, 9, 12]
    page.send("?")
    page.until(lambda: len(review.answers) == 11)
    assert review.answers[12].mark == "cannot tell"
    for n in (7, 6, 5, 2):
        page.send(Keys.BACKSPACE)
        page.until(lambda n=n: page.text("count").startswith(f"{n} given"))
    assert len(given_in(path)) == 2 and not page.js("return !undo.disabled")
    webdriver.ActionChains(page.driver).key_down(Keys.CONTROL).send_keys("a").key_up(
        Keys.CONTROL
    ).perform()
    assert "30 selected" in page.text("target")
    page.send(Keys.ENTER)
    page.until(lambda: page.text("count") == "30 given, 0 predicted")
    page.hold_shift(Keys.BACKSPACE)  # there is nothing to be done again
    page.send(Keys.BACKSPACE)
    page.until(lambda: page.text("count") == "2 given, 28 predicted")
    page.send(" ")
    page.until(lambda: page.js("return !document.getElementById('large').hidden"))
    assert "red" in page.text("large-text")
    page.send(Keys.ENTER, Keys.ESCAPE)
    page.until(lambda: len(given_in(path)) == 3)


def test_predictions_are_made_anew_meanwhile(page, start):
    learner = Learner(vectors(60), batch=8, n_asked=0)
    url, review, path = start(60, learner=learner)
    page.open(url)
    greens = [row for row in range(60) if color_of(row) == "green"][:5]
    for row in greens[:-1]:
        page.click(row, Keys.CONTROL)
    page.send(Keys.ESCAPE)
    page.click(greens[0])
    for row in greens[1:]:
        page.click(row, Keys.CONTROL)
    page.send("+", "green", Keys.ENTER)
    page.until(lambda: len(review.labels) == 5)
    reds = [row for row in range(60) if color_of(row) == "red"][:5]
    page.click(reds[0])
    for row in reds[1:]:
        page.click(row, Keys.CONTROL)
    page.send(Keys.ENTER)
    page.until(lambda: "% right" in page.text("insight"))
    assert page.text("news").startswith(f"{len(review.news)} predictions changed")
    page.send("!")
    page.until(lambda: page.text("shown") == f"{len(review.news)} images")
    assert set(page.rows) <= set(review.news)
    assert "green" in page.cell(page.at)
    written = {row["path"]: row for row in read(path)}
    assert all(written[f"{row:05d}.png"]["label"] == "green" for row in review.news)
    assert len(given_in(path)) == 10
    learner.stop()


def test_an_answer_that_overtakes_the_state_is_not_taken_back(page, start):
    url, review, path = start(12)
    page.open(url)
    page.hold("/state")
    review.found([Issue(3, "blurred")])
    page.until_held()
    page.send("1")
    page.until(lambda: page.text("count") == "1 given, 11 predicted")
    page.release()
    assert page.text("count") == "1 given, 11 predicted"
    page.send("1")
    page.until(lambda: page.text("count") == "2 given, 10 predicted")
    assert len(given_in(path)) == 2
    # what the overtaken reply told is asked for again
    page.until(lambda: page.release() or "blurred" in page.cell(3))


def test_what_to_look_at_is_marked(page, start):
    url, review, _ = start(20, given=[7, 8])
    page.open(url)
    review.found(
        [
            Issue(7, "suspicious label", "the other labels suggest blue"),
            Issue(3, "blurred"),
        ]
    )
    page.until(lambda: "suspicious" in page.js("return document.body.innerText"))
    page.js("sort.value = 'name'; sort.onchange()")
    assert page.at == 0
    page.js("sort.value = 'least'; sort.onchange()")
    assert page.at == 7 and "suspicious" in page.cell(7)  # before all others
    page.filter("blurred")
    assert page.rows == [3] and "blurred" in page.cell(3)
    page.filter("blurred")
    page.click(7)
    page.send(Keys.ENTER)  # the label was right
    page.until(lambda: "suspicious" not in page.js("return document.body.innerText"))
    assert review.labels[7] == "red"


def test_hostile_names_are_texts(page, start):
    url, review, path = start(len(HOSTILE), names=HOSTILE, label=SCRIPT)
    page.open(url)
    review.found([Issue(0, "exact copy", f"of {HOSTILE[0]}")])
    page.until(lambda: "copy" in page.cell(0))
    assert SCRIPT in page.text("show-classes") and SCRIPT in page.text("classes")
    page.send(" ")
    page.until(lambda: page.text("large-text").endswith(sorted(HOSTILE)[0]))
    page.send(Keys.ESCAPE, "+", "<b>bold</b>", Keys.ENTER)
    page.until(lambda: len(given_in(path)) == 1)
    assert list(given_in(path).values()) == ["<b>bold</b>"]
    assert "hacked" not in page.driver.title
    assert not page.js("return document.querySelector('b, .cell script, li script')")
    everything = "performance.getEntriesByType('resource').map((e) => e.name)"
    here = url.partition("?")[0]
    assert all(name.startswith(here) for name in page.js(f"return {everything}"))


def test_five_thousand_rows(page, start, tmp_path):
    folder = tmp_path / "photos"
    few = write_images(tmp_path / "few", 20, (8, 8))
    folder.mkdir()
    for row in range(5000):
        os.link(few[row % 20], folder / f"{row:05d}.png")
    url, review, path = start(5000)
    page.open(url)
    assert page.text("count") == "0 given, 5,000 predicted"
    assert len(page.rows) < 100
    loaded = "return [...document.querySelectorAll('.cell img')].filter((i) => i.src)"
    page.until(lambda: page.js(f"{loaded}.length > 12"))
    page.send(Keys.END)
    page.until(lambda: page.at == 4999)
    page.until(lambda: "4999" in page.js(f"{loaded}.at(-1)?.src ?? ''"))
    assert len(page.rows) < 100
    page.send(Keys.HOME)
    for n in range(1, 6):
        page.send(Keys.ENTER)
        page.until(lambda n=n: page.text("count").startswith(f"{n} given"))
    page.send("+", "other", Keys.ENTER)
    page.until(lambda: page.text("count").startswith("6 given"))
    # an answer costs as much as with few images
    sizes = page.sizes("/confirm") + page.sizes("/correct")
    assert len(sizes) == 6 and max(sizes) < 1000 and page.n_elements() < 1000
    page.js("document.getElementById('all').click()")
    page.send("1")
    page.until(lambda: page.text("count").startswith("5,000 given"))
    assert set(given_in(path).values()) == {"red"}
    page.send(Keys.BACKSPACE)
    page.until(lambda: len(review.labels) == 6)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_a_screen_reader(page, start, scheme):
    url, review, _ = start(24, given=[2])
    with page.on_a_phone(scheme):
        page.open(url)
        assert page.js("return document.documentElement.scrollWidth") <= 390
        page.until(lambda: len(page.rows) > 3)
        time.sleep(0.2)  # colors change softly
        assert page.js(NAMELESS) == []
        assert page.js(SMALL) == []
        assert page.js(PALE) == []
        grid = "document.getElementById('grid')"
        active = page.js(f"return {grid}.getAttribute('aria-activedescendant')")
        assert active == f"cell-{page.at}"
        assert page.js(f"return {grid}.getAttribute('aria-rowcount')") == "12"
        page.js("document.querySelector('#classes button').click()")
        page.until(lambda: len(review.labels) == 2)


def test_the_browser_is_led_from_a_file_to_the_page(page, start, monkeypatch):
    url, _, _ = start(6)
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setattr("sklabel._pages.server.webbrowser.open", page.driver.get)
    with opened_in_browser(url) as path:
        page.until(lambda: page.js("return document.body.dataset.ready"))
        assert page.driver.current_url == url.partition("?")[0]
    assert not path.exists()


def test_a_notebook_shows_the_labeling_page_in_a_frame(page, tmp_path, monkeypatch):
    shown = []

    def display(what, display_id):
        shown.append(what)
        return SimpleNamespace(update=shown.append)

    tools = SimpleNamespace(display=display, HTML=lambda text: text)
    monkeypatch.setattr("sklabel.inspection._asking._notebook", lambda: tools)
    with label(np.zeros((3, 8, 8)), classes=["cat"], wait=False) as handle:
        notebook = Route("/", lambda request: HTMLResponse(shown[0]))
        server = uvicorn.Server(
            uvicorn.Config(Starlette(routes=[notebook]), port=0, log_level="error")
        )
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            thread = threading.Thread(target=server.run, args=([listening],))
            thread.start()
            page.driver.get(f"http://localhost:{port}/")
            page.driver.switch_to.frame(0)
            page.until(lambda: page.js("return document.body.dataset.row") == "0")
            page.js("document.querySelector('.class').click()")
            page.until(lambda: page.js("return document.body.dataset.row") == "1")
            server.should_exit = True
            thread.join(10)
    assert handle.answers.tolist() == ["cat", -1, -1]
