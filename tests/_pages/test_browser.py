"""A person labels in a real browser: with keys, two tabs, hostile names, and a kill."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sklabel._pages.learning import Learner
from tests._pages._browsing import (
    HOSTILE,
    NAMELESS,
    NEEDS_BROWSER,
    PALE,
    SCRIPT,
    SMALL,
    Page,
)
from tests._pages._making import COLORS, color_of, read, vectors, write_images
from tests._pages._serving import serve

By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys

pytestmark = NEEDS_BROWSER


class LabelingPage(Page):
    """The labeling page as a person uses it."""

    def open(self, url):
        self.driver.get(url)
        self.until(lambda: self.row is not None or self.text("done"))

    @property
    def row(self):
        row = self.js("return document.body.dataset.row")
        return None if row is None else int(row)

    def classes(self):
        found = "document.querySelectorAll('.class .label')"
        return self.js(f"return [...{found}].map((e) => e.textContent)")

    def press(self, key):
        """Press a key, and wait until another image is there."""
        self.settle()
        before = self.row
        self.send(key)
        self.until(lambda: self.row != before)

    def type(self, label):
        self.settle()
        before = self.row
        field = self.driver.find_element(By.ID, "name-new")
        field.send_keys(label, Keys.ENTER)
        self.until(lambda: self.row != before)

    def label(self, label):
        known = self.classes()
        if label in known:
            self.press(str(known.index(label) + 1))
        else:
            self.type(label)


@pytest.fixture
def page(tab):
    return LabelingPage(tab)


@pytest.fixture
def start(tmp_path):
    """Return a function that serves a folder of images and a list of some of them."""
    servers = []

    def start(n, n_listed=None, names=None, learner=None):
        folder, path = tmp_path / "photos", tmp_path / "list.csv"
        if not folder.exists():
            paths = sorted(write_images(folder, n, names=names))
            rows = [(p.name, "") for p in paths[: n_listed or n]]
            with open(path, "w", newline="") as file:
                csv.writer(file).writerows([("path", "label"), *rows])
        server, session = serve(path, folder, learner=learner)
        servers.append(server)
        return server.url, session, path

    yield start
    for server in servers:
        server.stop()


def labels_in(path):
    return {row["path"]: row["label"] for row in read(path) if row["label"]}


def test_forty_images_are_labeled_with_keys(page, start):
    url, session, path = start(50, 40)
    page.open(url)
    assert page.text("count") == "0 of 40"
    for n in range(20):
        page.label(color_of(page.row))
        assert len(labels_in(path)) == n + 1  # before the next image is shown
    wrong = page.row
    page.press("3" if color_of(wrong) == page.classes()[0] else "1")
    for _ in range(2):
        page.press(Keys.BACKSPACE)
    assert page.row == wrong - 1 and len(labels_in(path)) == 19
    page.driver.get("about:blank")  # closed, and opened again
    page.open(url)
    assert page.text("count") == "19 of 40" and page.row == wrong - 1
    page.press(" ")
    page.press("?")
    page.press("0")
    while page.row is not None and page.row != wrong - 1:
        page.label(color_of(page.row))
    assert page.text("count") == "39 of 40"  # the one that was skipped comes last
    page.label(color_of(page.row))
    page.until(lambda: "All 40 images" in page.text("done"))
    sources = {int(row["path"][:5]): row["source"] for row in read(path)}
    assert sources.pop(wrong) == "cannot tell"
    assert sources.pop(wrong + 1) == "none of these"
    assert set(sources.values()) == {"given"}
    given = {int(name[:5]): label for name, label in labels_in(path).items()}
    assert given == {row: color_of(row) for row in sources} == session.labels


def test_back_and_forth_zoom_rename_and_merge(page, start):
    url, session, path = start(8)
    page.open(url)
    for label in ("rde", "blue", "red"):
        page.type(label)
    page.press(Keys.ARROW_LEFT)
    page.press(Keys.ARROW_LEFT)
    assert page.row == 1 and page.text("given") == "blue"
    page.press("3")
    assert page.row == 2 and session.labels == {0: "rde", 1: "red", 2: "red"}
    page.send(Keys.ARROW_UP, Keys.ARROW_UP)
    style = "return document.querySelector('#frame img').style.transform"
    page.until(lambda: "scale(2.25)" in page.js(style))
    page.send(Keys.ESCAPE)
    page.until(lambda: "scale(1)" in page.js(style))
    page.press(Keys.ARROW_RIGHT)
    page.driver.find_element(By.CSS_SELECTOR, "[aria-label='Rename rde']").click()
    assert "Rename “rde”" in page.dialog()
    page.send("red", Keys.ENTER)
    page.until(lambda: page.classes() == ["blue", "red"])
    assert set(labels_in(path).values()) == {"red"}
    page.send("r")  # no such key: nothing happens
    page.send("+")
    page.send("Red", Keys.ENTER)  # a new class that looks like one
    page.until(lambda: "Is “Red” the same as “red”?" in page.dialog())
    page.press(Keys.ENTER)
    assert session.labels[3] == "red"
    page.send(Keys.F1)
    assert "the class with this key" in page.dialog()
    page.send(Keys.ESCAPE)
    assert page.dialog() == ""


def test_hostile_names_of_files_and_classes_are_texts(page, start):
    url, session, path = start(len(HOSTILE), names=HOSTILE)
    page.open(url)
    page.type(SCRIPT)
    page.type("=cmd|' /C calc'!A0")
    shown = []
    while page.row is not None:
        shown.append(page.until(lambda: page.text("name")))
        page.press("1")
    assert shown == sorted(HOSTILE)[2:]
    assert page.classes() == [SCRIPT, "=cmd|' /C calc'!A0"]
    edit = page.driver.find_elements(By.CSS_SELECTOR, ".edit")[0]
    edit.click()
    assert SCRIPT in page.dialog()
    page.send("<b>bold</b>", Keys.ENTER)
    page.until(lambda: page.classes()[0] == "<b>bold</b>")
    assert "hacked" not in page.driver.title
    assert not page.js("return document.querySelector('b, #frame script, li script')")
    labels = labels_in(path)
    assert sorted(labels) == sorted(HOSTILE)
    assert sorted(set(labels.values())) == ["'=cmd|' /C calc'!A0", "<b>bold</b>"]
    everything = "performance.getEntriesByType('resource').map((e) => e.name)"
    here = url.partition("?")[0]
    assert all(name.startswith(here) for name in page.js(f"return {everything}"))


def test_an_answer_that_found_no_program_is_not_said_to_be_saved(page, start):
    url, session, _ = start(6)
    page.open(url)
    page.type("cat")
    page.js(
        "const ask = fetch; window.fetch = (path, given) => given.method "
        "? Promise.reject(new TypeError()) : ask(path, given)"
    )
    page.send("1")
    body = "return document.body.innerText"
    page.until(lambda: "The program is not running" in page.js(body))
    assert "What you did last may not be saved" in page.js(body)
    assert session.labels == {0: "cat"}


def test_two_tabs_overwrite_nothing(page, start):
    url, session, path = start(6)
    page.open(url)
    page.type("cat")
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.open(url)
    assert page.row == 1 and page.classes() == ["cat"]
    page.js(
        "const ask = fetch; window.fetch = (path, ...more) => path === '/pulse' "
        "? new Promise(() => {}) : ask(path, ...more)"
    )
    second = page.driver.current_window_handle
    page.driver.switch_to.window(first)
    page.type("dog")
    page.driver.switch_to.window(second)
    page.send("1")  # it still shows the image that is a dog by now
    page.until(lambda: "changed in another tab" in page.text("notice"))
    assert session.labels == {0: "cat", 1: "dog"} and page.text("given") == "dog"
    time.sleep(0.6)  # a key that was meant for what was there before is not taken
    page.press(Keys.ARROW_RIGHT)
    page.press("1")
    assert labels_in(path) == {
        "00000.png": "cat",
        "00001.png": "dog",
        "00002.png": "cat",
    }


def test_a_list_that_is_changed_by_hand_is_not_overwritten(page, start):
    url, session, path = start(6)
    page.open(url)
    page.type("cat")
    path.write_text("path,label\n00000.png,by hand\n00001.png,\n00005.png,more\n")
    page.until(lambda: "changed in another tab or in the list" in page.text("notice"))
    assert page.row == 1 and page.classes() == ["cat", "by hand", "more"]
    time.sleep(0.6)
    page.press("1")
    assert path.read_text() == (
        "path,label\n00000.png,by hand\n00001.png,cat\n00005.png,more\n"
    )
    path.write_text('path,label\n"half')
    page.send("1")
    page.until(lambda: "is not a CSV" in page.text("notice"))
    assert path.read_text() == 'path,label\n"half' and page.row == 2


def test_a_kill_between_two_answers_loses_nothing(page, start, tmp_path):
    _, session, path = start(6)
    port = 0

    def run():
        argv = [sys.executable, "-m", "tests._pages._serving", path]
        process = subprocess.Popen(
            [*map(str, argv), str(tmp_path / "photos"), str(port)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        return process, process.stdout.readline().strip()

    process, url = run()
    try:
        page.open(url)
        page.type("cat")
        process.kill()
        process.communicate()
        page.send("1")
        page.until(
            lambda: (
                "The program is not running" in page.text("title")
                or (
                    "The program is not running"
                    in page.js("return document.body.innerText")
                )
            )
        )
        assert labels_in(path) == {"00000.png": "cat"}
        process, url = run()
        page.open(url)
        assert page.row == 1
        page.press("1")
        assert labels_in(path) == {"00000.png": "cat", "00001.png": "cat"}
    finally:
        process.kill()
        process.communicate()


def test_it_learns_while_a_person_labels(page, start):
    learner = Learner(vectors(90), batch=9)
    url, session, path = start(90, 18, learner=learner)
    page.open(url)
    page.until(lambda: "first estimate" in page.text("insight"))
    for _ in range(9):
        page.label(color_of(page.row))
    page.until(lambda: "% right" in page.text("insight"))
    page.until(lambda: page.js("return document.querySelector('.proposed') !== null"))
    proposed = page.js("return document.querySelector('.proposed').dataset.label")
    row = page.row
    assert proposed == color_of(row)
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "#strip button")) == 8
    page.press(Keys.ENTER)
    assert session.labels[row] == proposed
    while page.row is not None:
        page.label(color_of(page.row))
    page.until(lambda: "more labels would bring" in page.text("done"))
    page.until(lambda: "Label 40 more" in page.text("done"))
    page.press(Keys.ENTER)
    assert page.text("count") == "18 of 58" and page.row >= 18
    page.press("1")
    assert len(read(path)) == 19
    page.driver.find_element(By.ID, "finish").click()
    assert "39 images have no answer yet" in page.dialog()
    page.send(Keys.ENTER)
    page.until(
        lambda: "sklabel fit list.csv" in page.js("return document.body.innerText")
    )
    learner.stop()


def test_why_nothing_is_learned_is_told(page, start):
    url, session, _ = start(4)
    page.open(url)
    session.not_learned(RuntimeError("no <b>memory</b>"))
    told = "Learning has stopped (RuntimeError: no <b>memory</b>)"
    page.until(lambda: told in page.text("insight"))


def test_five_thousand_images(page, start, tmp_path):
    folder = tmp_path / "photos"
    few = write_images(tmp_path / "few", 20, (8, 8))
    folder.mkdir()
    rows = [(f"{row:05d}.png", "") for row in range(5000)]
    for row, (name, _) in enumerate(rows):
        os.link(few[row % 20], folder / name)
    path = tmp_path / "list.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    url, session, path = start(5000)
    page.open(url)
    assert page.text("count") == "0 of 5000"
    page.type("cat")
    for _ in range(15):
        page.press("1")
    # an answer costs as much as with few images
    assert max(page.sizes("/answer")) < 1000 and page.n_elements() < 500
    assert len(labels_in(path)) == 16 and page.text("count") == "16 of 5000"


def test_an_answer_that_overtakes_a_look_at_the_server_is_no_change_by_others(
    page, start
):
    url, session, path = start(12)
    page.open(url)
    page.type("red")
    page.hold("/pulse")
    page.js("document.dispatchEvent(new Event('visibilitychange'))")  # look now
    page.until_held()
    page.press("1")
    page.release()
    for n in range(3, 8):
        page.press("1")
        assert len(labels_in(path)) == n
    assert "another tab" not in page.text("notice")


def test_an_answer_that_overtakes_the_state_is_not_taken_back(page, start):
    url, session, path = start(12)
    page.open(url)
    page.type("red")
    page.hold("/state")
    session.not_learned(RuntimeError("no memory"))  # something to look for
    page.until_held()
    page.press("1")
    page.press("1")
    page.release()
    assert page.row == 3 and page.text("count") == "3 of 12"
    page.press("1")
    assert len(labels_in(path)) == 4 and "another tab" not in page.text("notice")
    # what the overtaken reply told is asked for again
    page.until(lambda: page.release() or "no memory" in page.text("insight"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_a_screen_reader(page, start, scheme):
    url, session, path = start(6)
    with page.on_a_phone(scheme):
        page.open(url)
        for color in COLORS:
            page.type(color)
        assert page.js("return document.documentElement.scrollWidth") <= 390
        assert page.js(NAMELESS) == []
        assert page.js(SMALL) == []
        assert page.js(PALE) == []
        page.driver.find_element(By.CSS_SELECTOR, ".class").click()
        page.until(lambda: page.row == 4)
        assert session.labels[3] == "red"
