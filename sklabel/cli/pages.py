"""Pages in the browser, shown until the person has finished."""

from . import outputs, signals


def serve(server, line, args, *, begin, end):
    """Serve a page until Ctrl-C, SIGTERM or its own button; end cleanly.

    Parameters
    ----------
    server : Server
    line : str
        Text to print once the page can be opened.
    args : namespace
        ``no_browser`` is used.
    begin, end : list of callable
        Functions called before the first page, and after the last one, however it ends.
    """
    from .._pages.server import opened_in_browser

    try:
        for step in begin:
            step()
        server.start()
        outputs.show(line)
        with opened_in_browser(server.url, not args.no_browser):
            server.wait()
    except KeyboardInterrupt:  # that is the way to end it
        pass
    finally:
        with signals.finishing():
            server.stop()
            for step in end:
                step()
