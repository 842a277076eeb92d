"""Wait for what another thread or process does."""

import time


def until(what, told=lambda: ""):
    """Return the first true result of `what()`; fail with `told()` after two minutes.

    Only what never comes needs so long: no test measures time.
    """
    end = time.monotonic() + 120
    while not (found := what()):
        assert time.monotonic() < end, told()
        time.sleep(0.01)
    return found
