"""Pages for one person on this machine: others are refused, whatever they ask."""

import asyncio
import signal
import socket
import threading

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from sklabel._pages.server import THIS_MACHINE, Guard, Server, opened_in_browser
from sklabel._pages.session import Insight, Session
from tests._pages._making import make_routes, write_images

PORT, TOKEN = 8123, "a-token"
HERE = f"http://127.0.0.1:{PORT}"
POST = {"origin": HERE}
SCRIPTS = [f"/static/{name}.js" for name in ("common", "label", "review")]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    paths = write_images(folder, 6, names=["<img src=x>.png", *map(str, range(5))])
    (folder / "secret.txt").write_text("secret")
    paths[3].write_text("no image")
    return paths


@pytest.fixture
def session():
    return Session(6, [2, 0, 1])


def make_client(paths, session, **settings):
    routes = make_routes(paths, session, **settings)
    app = Guard(Starlette(routes=routes), TOKEN, PORT)
    return TestClient(app, base_url=HERE, raise_server_exceptions=True)


@pytest.fixture
def stranger(paths, session):
    return make_client(paths, session)


@pytest.fixture
def client(stranger):
    assert stranger.get(f"/?token={TOKEN}").status_code == 200
    return stranger


def test_the_token_becomes_a_cookie_that_scripts_cannot_read(stranger):
    found = stranger.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (found.status_code, found.headers["location"]) == (303, "/")
    cookie = found.headers["set-cookie"].lower()
    assert f"sklabel-{PORT}={TOKEN}" in cookie
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert "referrer-policy" in found.headers


@pytest.mark.parametrize(
    "path", ["/", "/state", "/row/0", "/image/x/0/640", "/static/label.js", "/nothing"]
)
@pytest.mark.parametrize("token", [None, "", "wrong", f"{TOKEN}x", "\u00fc"])
def test_nothing_is_shown_without_the_token(stranger, path, token):
    found = stranger.get(path, params=token and {"token": token})
    assert found.status_code == 403 and "full address" in found.json()["error"]
    stranger.cookies.set(f"sklabel-{PORT}", token or "other")
    if token != "\u00fc":
        assert stranger.get(path).status_code == 403


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1", f"127.0.0.1:{PORT + 1}"],
)
def test_other_names_of_the_server_are_refused(client, host):
    assert client.get("/state", headers={"host": host}).status_code == 400
    ok = client.get("/state", headers={"host": f"localhost:{PORT}"})
    assert ok.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": f"http://127.0.0.1:{PORT + 1}"},
        {"origin": f"https://127.0.0.1:{PORT}"},
        {"origin": f"http://127.0.0.1:{PORT}.evil.example"},
        {},
        {**POST, "content-type": "text/plain"},
        {**POST, "content-type": "application/x-www-form-urlencoded"},
        {**POST, "sec-fetch-site": "cross-site"},
        {**POST, "sec-fetch-site": "same-site"},
    ],
)
def test_other_pages_cannot_answer(client, session, headers):
    body = b'{"version": 0, "row": 0, "label": "cat"}'
    headers = {"content-type": "application/json", **headers}
    assert client.post("/answer", content=body, headers=headers).status_code == 403
    assert session.labels == {}


def test_other_pages_cannot_load_images_but_may_link_here(client):
    there = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "image"}
    assert client.get("/image/x/0/640", headers=there).status_code == 403
    link = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}
    assert client.get("/", headers=link).status_code == 200


@pytest.mark.parametrize("path", ["/", "/static/label.js", "/state", "/image/x/0/640"])
def test_a_strict_policy_is_sent_with_everything(client, path):
    found = client.get(path)
    assert found.status_code == 200
    policy = found.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_notebook_of_this_machine_may_show_it_in_a_frame(paths, session):
    there = {"sec-fetch-site": "same-site", "sec-fetch-dest": "iframe"}
    client = make_client(paths, session)
    assert client.get(f"/?token={TOKEN}", headers=there).status_code == 403
    app = Guard(
        Starlette(routes=make_routes(paths, session)), TOKEN, PORT, frames=THIS_MACHINE
    )
    client = TestClient(app, base_url=HERE)
    found = client.get(f"/?token={TOKEN}", headers=there)
    assert found.status_code == 200 and "<title>Label images" in found.text
    policy = found.headers["content-security-policy"]
    assert policy.endswith("frame-ancestors http://localhost:* http://127.0.0.1:*")
    image = {**there, "sec-fetch-dest": "image"}
    assert client.get("/image/x/0/640", headers=image).status_code == 403
    headers = {**POST, "sec-fetch-site": "same-site"}
    body = dict(version=0, row=2, label="cat")
    assert client.post("/answer", json=body, headers=headers).status_code == 403


def test_who_comes_from_elsewhere_with_the_token_is_led_on(stranger):
    there = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}
    found = stranger.get(f"/?token={TOKEN}", headers=there, follow_redirects=False)
    assert found.status_code == 200 and 'content="0;url=/"' in found.text
    assert TOKEN not in found.text and TOKEN in found.headers["set-cookie"]
    assert stranger.get("/").status_code == 200


def test_the_token_is_no_argument_of_the_browser(monkeypatch):
    opened = []
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setattr("sklabel._pages.server.webbrowser.open", opened.append)
    url = f"{HERE}/?token={TOKEN}"
    with opened_in_browser(url) as path:
        assert opened == [path.as_uri()] and TOKEN not in opened[0]
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert f'content="0;url={url}"' in path.read_text()
    assert not path.exists()
    with opened_in_browser(url, wanted=False) as path:
        assert path is None
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sklabel._pages.server.sys.platform", "linux")
    with opened_in_browser(url) as path:
        assert path is None and len(opened) == 1


def test_pages_load_nothing_from_elsewhere_and_hold_no_scripts(client):
    page = client.get("/").text
    assert (
        "<script>" not in page and " style=" not in page and " on" + "click" not in page
    )
    for path in ("/", "/static/pages.css", *SCRIPTS):
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "//cdn" not in text
    assert not any("innerHTML" in client.get(path).text for path in SCRIPTS)


def test_images_are_known_by_row_and_made_anew(client, paths):
    found = client.get("/image/x/0/640")
    assert found.headers["content-type"] == "image/png"
    assert found.content != paths[0].read_bytes()
    assert "immutable" in found.headers["cache-control"]
    assert client.get("/image/x/3/640").status_code == 415
    assert client.get("/image/x/0/99").status_code == 404
    assert client.get("/image/x/6/640").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/image/x/secret.txt/640",
        "/image/x/../../secret.txt",
        "/image/x/..%2f..%2fsecret.txt/640",
        "/image/x/-1/640",
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static/label.html",
        "/static//etc/passwd",
        "/secret.txt",
    ],
)
def test_there_is_no_way_to_other_files(client, path):
    found = client.get(path)
    assert found.status_code in (403, 404)
    assert "secret" not in found.text and "import" not in found.text


def test_names_are_data(client):
    found = client.get("/row/0")
    assert found.headers["content-type"] == "application/json"
    assert found.json()["name"] == "<img src=x>.png"
    assert client.get("/row/6").status_code == 404


def test_answers_of_two_pages(client, session):
    reply = client.post(
        "/answer", json=dict(version=0, row=2, label="cat"), headers=POST
    )
    assert reply.json()["changed"] == {"2": ["cat", ""]}
    stale = client.post(
        "/answer", json=dict(version=0, row=0, label="dog"), headers=POST
    )
    assert stale.status_code == 409
    assert session.labels == {2: "cat"}
    state = client.get("/state").json()
    assert state["version"] == 1 and state["answers"] == {"2": ["cat", ""]}
    assert state["about"]["next"] == "sklabel fit list.csv"
    assert client.get("/pulse").json() == {"version": 1, "turn": 0}


def test_all_changes(client, session):
    def post(path, **body):
        return client.post(
            path, json={"version": session.version, **body}, headers=POST
        )

    assert post("/answer", row=0, mark="cannot tell").json()["row"] == 0
    assert post("/answer", row=1, label="Cat").json()["classes"] == ["Cat"]
    alike = post("/answer", row=2, label="cat")
    assert alike.status_code == 422
    assert (alike.json()["label"], alike.json()["known"]) == ("cat", "Cat")
    assert post("/rename", old="Cat", new="<b>").json()["changed"] == {"1": ["<b>", ""]}
    assert post("/undo").json()["classes"] == ["Cat"]
    assert post("/redo").json()["classes"] == ["<b>"]
    assert post("/redo").status_code == 422
    assert "missing label" in post("/answer", row=2, label="none").json()["error"]
    session.learned(Insight(2, [5, 4]))
    more = client.post("/more", json=dict(n=1), headers=POST)
    assert more.json()["order"] == [2, 0, 1, 5]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"version": 0}',
        b'{"version": "0", "row": 0}',
        b'{"version": 0, "row": true}',
        b'{"version": 0, "row": 0, "label": 1}',
        b'{"version": 0, "row": 0, "label": "a", "more": 1}',
        b"\xff\xfe",
        b"[" * 5000,
    ],
)
def test_what_is_not_understood_changes_nothing(client, session, body):
    headers = {**POST, "content-type": "application/json"}
    found = client.post("/answer", content=body, headers=headers)
    assert found.status_code == 400, found.text
    assert session.answers == {}


def test_long_requests_are_refused(client):
    headers = {**POST, "content-type": "application/json"}
    found = client.post("/answer", content=b" " * 70_000, headers=headers)
    assert found.status_code == 413


def test_a_store_that_fails_is_told(client, session):
    class Full:
        def changed(self):
            return False

        def write(self, answers):
            raise OSError(28, "No space left on device", "list.csv")

    session.store = Full()
    body = dict(version=0, row=2, label="cat")
    found = client.post("/answer", json=body, headers=POST)
    assert found.status_code == 422
    assert found.json()["error"] == (
        "list.csv: No space left on device: free some space, or give another place."
    )


def test_a_server_of_its_own(paths, session):
    server = Server(make_routes(paths, session, finish=lambda: server.finish()))
    server.start()
    with httpx.Client(follow_redirects=True) as client:
        assert client.get(f"http://127.0.0.1:{server.port}/").status_code == 403
        assert client.get(server.url).status_code == 200
        with pytest.raises(ValueError, match=f"port {server.port} is not free"):
            Server([], server.port)
        there = f"http://127.0.0.1:{server.port}"
        headers = {"origin": there}
        assert (
            client.post(f"{there}/finish", json={}, headers=headers).status_code == 200
        )
        server.wait()  # the open connection does not keep it
    server.stop()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), 1).close()


@pytest.mark.parametrize("digits", [450, 5000, 60_000])
@pytest.mark.parametrize("path", ["/row/{}", "/image/x/{}/640", "/image/x/0/{}"])
def test_numbers_of_many_digits_are_no_rows(client, path, digits):
    found = client.get(path.format("9" * digits))
    assert found.status_code in (404, 414) and found.json()["error"]


@pytest.mark.parametrize("path", ["//evil.example/", "///evil.example/x"])
def test_the_entrance_leads_to_this_server_alone(paths, session, path):
    app = Guard(Starlette(routes=make_routes(paths, session)), TOKEN, PORT)
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path}
    scope["headers"] = [(b"host", f"127.0.0.1:{PORT}".encode())]
    scope["query_string"] = f"token={TOKEN}".encode()
    asyncio.run(app(scope, None, send))
    location = dict(sent[0]["headers"])[b"location"]
    assert location.startswith(b"/evil.example/")


def test_a_fault_of_ours_is_one_line(paths, session, capsys):
    def near(row):
        raise RuntimeError("not expected")

    routes = make_routes(paths, session)
    routes += [Route("/fault", near)]
    server = Server(routes)
    server.start()
    with httpx.Client(follow_redirects=True) as client:
        client.get(server.url)
        there = f"http://127.0.0.1:{server.port}"
        assert client.get(f"{there}/fault").status_code == 500
        assert client.get(f"{there}/pulse").status_code == 200
        upgrade = {"upgrade": "websocket", "connection": "upgrade"}
        assert client.get(f"{there}/pulse", headers=upgrade).status_code == 200
    server.stop()
    err = capsys.readouterr().err
    assert err == "sklabel: error in the page (RuntimeError: not expected).\n"


def test_ctrl_c_ends_the_server_in_order(paths, session, monkeypatch):
    faults = []
    monkeypatch.setattr(threading, "excepthook", faults.append)
    server = Server(make_routes(paths, session))
    server.start()
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            server.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    assert server._thread.is_alive()
    assert httpx.get(f"http://127.0.0.1:{server.port}/").status_code == 403
    server.stop()
    timer.join()
    assert not server._thread.is_alive() and not faults
