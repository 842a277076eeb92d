"""One browser for all tests of pages."""

import pytest


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    from tests._pages._browsing import browser

    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def tab(driver):
    """Return the browser; other tabs are closed afterwards."""
    first = driver.current_window_handle
    yield driver
    for handle in driver.window_handles:
        if handle != first:
            driver.switch_to.window(handle)
            driver.close()
    driver.switch_to.window(first)
    driver.get("about:blank")
