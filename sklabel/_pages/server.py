"""Pages on this machine only: an address with a token, and no external content."""

import hmac
import html
import json
import os
import secrets
import socket
import sys
import tempfile
import threading
import webbrowser
from contextlib import contextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from .._core.files import explained
from .photographs import SIDES, Unreadable
from .session import LooksAlike, Stale

HOST = "127.0.0.1"
THIS_MACHINE = "http://localhost:* http://127.0.0.1:*"  # pages of its other servers
_STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_LONGEST = 2**16  # bytes that a page may send at once
_LONGEST_PATH = 500  # characters of an address
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src "
    "'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors {frames}",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Admit only the browser of the person who has the address.

    A request needs the server's own name as its Host, so that no other name can be
    pointed here; the token, first in the address and then in a cookie; and, if it
    changes anything, this server as Origin and a JSON body, which pages of other sites
    cannot send.

    Parameters
    ----------
    app : ASGI application
    token : str
    port : int
    frames : str
        Pages that may show this one in a frame, in the syntax of ``frame-ancestors``.
    longest : int
        Maximum number of bytes of a request.
    """

    def __init__(self, app, token, port, *, frames="'none'", longest=_LONGEST):
        self.app, self.token = app, token
        self.frames, self.longest = frames, longest
        self.headers = [
            (name.encode(), value.format(frames=frames).encode())
            for name, value in _HEADERS.items()
        ]
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
        self.cookie = f"sklabel-{port}"  # the ports of a machine share their cookies

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}

        async def send_guarded(message):
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"]]
                for name, value in self.headers:
                    if name not in own:
                        message["headers"].append((name, value))
            await send(message)

        response = self._refusal(scope, headers)
        response = response or self._entrance(scope, headers)
        response = response or self._missing_cookie(headers) or self.app
        try:
            await response(scope, receive, send_guarded)
        except Exception as error:  # it has been answered with 500
            what = f"{type(error).__name__}: {error}"
            print(f"sklabel: error in the page ({what}).", file=sys.stderr)

    def _refusal(self, scope, headers):
        if headers.get(b"host", "") not in self.hosts:
            return _problem("this server has another name.", 400)
        if len(scope["path"]) > _LONGEST_PATH:
            return _problem("this address is too long.", 414)
        origin = headers.get(b"origin")
        allowed = {f"http://{host}" for host in self.hosts}
        if origin is not None and origin not in allowed:
            return _problem("requests from other pages are rejected.", 403)
        if headers.get(b"sec-fetch-site", "none") not in ("same-origin", "none"):
            # a link to this server, which shows the page, is all right
            shown = {"document"} if self.frames == "'none'" else {"document", "iframe"}
            if headers.get(b"sec-fetch-dest") not in shown:
                return _problem("requests from other pages are rejected.", 403)
        if scope["method"] == "POST":
            kind = headers.get(b"content-type", "").partition(";")[0].strip()
            if origin is None or kind != "application/json":
                return _problem("requests from other pages are rejected.", 403)
            if not headers.get(b"content-length", "").isdigit():
                return _problem("the request has no length.", 411)
            if int(headers[b"content-length"]) > self.longest:
                return _problem("the request is too long.", 413)
        return None

    def _entrance(self, scope, headers):
        """Return the answer to an address with the right token: a cookie."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["method"] != "GET" or not self._is_token(given):
            return None
        # two slashes would lead to another server
        path = "/" + scope["path"].lstrip("/")
        response = RedirectResponse(path, 303)
        if headers.get(b"sec-fetch-site") == "cross-site":
            # the cookie is sent only where this server itself leads on
            response = HTMLResponse(_redirect(path))
        response.set_cookie(
            self.cookie, self.token, httponly=True, samesite="strict", path="/"
        )
        return response

    def _missing_cookie(self, headers):
        try:
            given = SimpleCookie(headers.get(b"cookie", "")).get(self.cookie)
        except Exception:  # a cookie of somebody else may be anything
            given = None
        if given is not None and self._is_token(given.value):
            return None
        text = "open the full address that the program printed, including its token."
        return _problem(text, 403)

    def _is_token(self, given):
        return hmac.compare_digest(given.encode(), self.token.encode())


def _redirect(address):
    """Return a page that leads to another one."""
    address = html.escape(address, quote=True)
    return (
        '<!doctype html><meta charset="utf-8"><title>sklabel</title>'
        f'<meta http-equiv="refresh" content="0;url={address}">'
        f'<a href="{address}">Continue</a>'
    )


def _problem(text, status, **more):
    return JSONResponse({"error": text, **more}, status)


# -- routes


def page(name):
    """Return a route's answer: a file of `static`."""
    content, kind = (_STATIC / name).read_bytes(), _TYPES[Path(name).suffix]
    return lambda request: Response(content, media_type=kind)


def static_routes():
    """Return a route for each file that a page loads; there are no other paths."""
    return [
        Route(f"/static/{path.name}", page(path.name))
        for path in sorted(_STATIC.iterdir())
        if path.suffix in (".css", ".js", ".svg")
    ]


def image_routes(names, photographs):
    """Return routes to the images of a folder, by row."""

    def image(request):
        row, side = request.path_params["row"], request.path_params["side"]
        if row >= len(names) or side not in SIDES:
            return _problem("there is no such image.", 404)
        try:
            content, kind = photographs.file(row, side)
        except Unreadable as error:
            return _problem(f"{names[row]} cannot be read: {error}.", 415)
        # the address holds a key that is new with every server
        headers = {"cache-control": "private, max-age=86400, immutable"}
        return Response(content, media_type=kind, headers=headers)

    return [Route("/image/{key}/{row:int}/{side:int}", image)]


def session_routes(session, names, *, near=None, about=(), finish=None, changes=()):
    """Return routes by which pages read and change a session.

    Parameters
    ----------
    session : Session
    names : list of str
        Of the rows.
    near : callable or None
        ``near(row)`` returns similar rows.
    about : dict
        Other data for the page: ``title``, ``list``, ``next`` (a command).
    finish : callable or None
        Called when the person has finished.
    changes : dict
        Other changes: {name: (function, required {argument: type}, optional ones)}.
    """
    about = {"key": secrets.token_hex(6), **dict(about)}

    def state(request):
        session.refresh()
        return JSONResponse({**session.state(), "about": about})

    def pulse(request):
        session.refresh()
        return JSONResponse({"version": session.version, "turn": session.turn})

    def row(request):
        row = request.path_params["row"]
        if row >= len(names):
            return _problem("there is no such image.", 404)
        rows = [] if near is None else near(row)
        found = session.proposal(row)
        return JSONResponse({"name": names[row], "near": rows, "proposal": found})

    def change(function):
        async def route(request):
            body = await _body(request)
            return await _in_thread(function, body)

        return route

    def answer(version, row, label=None, mark="", alike=False):
        return session.answer(version, row, label, mark, alike)

    def end():
        if finish is not None:
            finish()
        return {}

    posts = {
        "answer": (answer, dict(version=int, row=int), dict(label=str, mark=str)),
        "rename": (session.rename, dict(version=int, old=str, new=str), {}),
        "undo": (session.undo, dict(version=int), {}),
        "redo": (session.redo, dict(version=int), {}),
        "more": (session.more, dict(n=int), {}),
        "finish": (end, {}, {}),
        **dict(changes),
    }
    return [
        Route("/state", guarded(state)),
        Route("/pulse", guarded(pulse)),
        Route("/row/{row:int}", row),
        *(
            Route(f"/{name}", change(_checked(*what)), methods=["POST"])
            for name, what in posts.items()
        ),
    ]


def guarded(function):
    """Return a route that reports errors of the store."""

    def route(request):
        try:
            return function(request)
        except (ValueError, OSError) as error:
            return _problem(_said(error), 422)

    return route


def _checked(function, needed, allowed):
    """Return a function of the body of a request, whose entries have these types."""
    kinds = {**needed, **allowed, "alike": bool}

    def call(body):
        wrong = not isinstance(body, dict) or set(needed) - set(body)
        if wrong or any(type(v) is not kinds.get(k) for k, v in body.items()):
            return _problem("this request is invalid.", 400)
        try:
            return JSONResponse(function(**body))
        except Stale:
            return _problem("the answers were changed elsewhere.", 409)
        except LooksAlike as error:
            return _problem(str(error), 422, label=error.label, known=error.known)
        except (ValueError, OSError) as error:
            return _problem(_said(error), 422)

    return call


def _said(error):
    if isinstance(error, OSError) and error.strerror:
        return explained(error)
    return str(error)


async def _body(request):
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        return None


async def _in_thread(function, *args):
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(function, *args)


def labeling_routes(session, names, photographs, **settings):
    """Return all routes of the labeling page."""
    return [
        Route("/", page("label.html")),
        *static_routes(),
        *image_routes(names, photographs),
        *session_routes(session, names, **settings),
    ]


# -- the server


class Server:
    """Pages served on this machine, from a separate thread.

    Parameters
    ----------
    routes : list of Route
    port : int
        0: a free one.
    **settings
        Of `Guard`.

    Attributes
    ----------
    url : str
        The address, with the token.
    """

    def __init__(self, routes, port=0, **settings):
        self.token = secrets.token_urlsafe(24)
        try:
            self._socket = socket.create_server((HOST, port))
        except OSError as error:
            raise ValueError(
                f"port {port} is not free ({error.strerror}): give another port, or "
                "leave it out."
            ) from None
        self.port = self._socket.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}/?token={self.token}"
        app = Guard(Starlette(routes=routes), self.token, self.port, **settings)
        config = uvicorn.Config(
            app,
            log_level="critical",
            ws="none",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        # Ctrl-C in a join lets Python 3.11 take a thread for ended that is not
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            self._server.run([self._socket])
        finally:
            self._ended.set()

    def start(self):
        """Start serving."""
        self._thread.start()
        while not (self._server.started or self._ended.wait(0.01)):
            pass

    def wait(self):
        """Wait until somebody stops the server."""
        while not self._ended.wait(0.2):  # Ctrl-C is noticed in between
            pass

    def finish(self):
        """Stop after the current requests have been answered."""
        self._server.should_exit = True

    def stop(self):
        """Stop, and wait for the end."""
        self.finish()
        if not self._ended.wait(5):  # an answer takes long
            self._server.force_exit = True
        if self._ended.wait(2):
            self._socket.close()


@contextmanager
def opened_in_browser(url, wanted=True):
    """Open an address in the browser, if there is a screen.

    Until the end of the block, the token is in a file that only this user can read,
    because other users can see the arguments of programs.
    """
    if not wanted or not _has_screen():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="sklabel-") as folder:
        path = Path(folder, "open.html")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(_redirect(url))
        webbrowser.open(path.as_uri())
        yield path


def _has_screen():
    """Return whether windows open here: a text browser would take over the shell."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
