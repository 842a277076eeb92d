"""A real browser for the tests of pages, and what no page may show."""

import shutil
from contextlib import contextmanager

import pytest

from tests._waiting import until

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
exceptions = pytest.importorskip("selenium.common.exceptions")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
NEEDS_BROWSER = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"
)
SWITCHES = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
HOSTILE = [
    "<img src=x onerror=document.title='hacked'>.png",
    "a'b\"c&amp;d.png",
    "%2e%2e%2fetc.png",
    "javascript:alert(1).png",
    "Grüße 日本 \u202egnp.png",
    "=1+1.png",
    "#?&row=1.png",
]
SCRIPT = "\"><script>document.title='hacked'</script>"
# what a driver says of a document or an element that is being replaced
REPLACED = (
    exceptions.JavascriptException,
    exceptions.NoSuchElementException,
    exceptions.NoSuchFrameException,
    exceptions.StaleElementReferenceException,
)


class Page:
    """A page as a person uses it."""

    def __init__(self, driver):
        self.driver = driver
        self.js = driver.execute_script

    def until(self, what):
        """Wait until `what()` is true of the page, which may be replaced meanwhile."""
        errors = []

        def now():
            try:
                return what()
            except REPLACED as error:
                errors[:] = [error]

        shown = "return document.body?.innerText ?? ''"
        return until(now, lambda: [*errors, self.js(shown)])

    def text(self, name):
        return self.js(f"return document.getElementById('{name}')?.innerText ?? ''")

    def settle(self):
        """Wait until the last answer is saved or asks back: no key is taken before."""
        busy = "document.body.dataset.busy && !document.querySelector('dialog[open]')"
        self.until(lambda: not self.js(f"return {busy}"))

    def send(self, *keys):
        self.settle()
        actions = webdriver.ActionChains(self.driver)
        for key in keys:
            actions.send_keys(key)
        actions.perform()

    def sizes(self, path):
        """Return the bytes of each reply to a path."""
        loaded = "performance.getEntriesByType('resource')"
        return self.js(
            f"return {loaded}.filter((e) => e.name.endsWith(arguments[0]))"
            ".map((e) => e.decodedBodySize)",
            path,
        )

    def n_elements(self):
        return self.js("return document.querySelectorAll('*').length")

    def hold(self, path):
        """Keep replies of a path under way until they are released, one by one."""
        self.js(HOLD, path)

    def until_held(self):
        self.until(lambda: self.js("return nHeld()"))

    def release(self):
        self.js("release()")

    def dialog(self):
        """Return the text of the dialog that is open, or ""."""
        return self.js("return document.querySelector('dialog[open]')?.innerText ?? ''")

    @contextmanager
    def on_a_phone(self, scheme):
        """Show it on 390 pixels, light or dark."""
        command = self.driver.execute_cdp_cmd
        size = dict(width=390, height=844, deviceScaleFactor=1, mobile=True)
        command("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        command("Emulation.setEmulatedMedia", media)
        try:
            yield
        finally:
            command("Emulation.clearDeviceMetricsOverride", {})
            command("Emulation.setEmulatedMedia", {"features": []})


@contextmanager
def browser(profile):
    """Start a browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in [*SWITCHES, f"--user-data-dir={profile}", "--window-size=1280,800"]:
        options.add_argument(switch)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


HOLD = """
const [held, fetched] = [[], window.fetch];
window.fetch = async (path, ...more) => {
  const answer = await fetched(path, ...more);
  if (path === arguments[0]) await new Promise((done) => held.push(done));
  return answer;
};
window.nHeld = () => held.length;
window.release = () => held.shift()?.();"""
# what a screen reader could not name, what a finger could miss, what the eye could
NAMELESS = """return [...document.querySelectorAll("button, input, img, dialog")]
    .filter((e) => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby")
        || e.innerText?.trim() || e.textContent.trim() || e.labels?.length
        || e.tagName === "IMG" && e.hasAttribute("alt") || e.closest("dialog")))
    .map((e) => e.outerHTML)"""
SMALL = """return [...document.querySelectorAll("button, input")]
    .map((e) => [e.outerHTML, e.getBoundingClientRect()])
    .filter(([, b]) => b.width > 0 && (b.width < 36 || b.height < 36))
    .map(([html]) => html)"""
PALE = """
const channels = (c) => c.match(/[\\d.]+/g).map(Number);
const light = (c) => channels(c).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if ((channels(c)[3] ?? 1) > 0.5) return c;
  }
  return "rgb(255, 255, 255)";
};
return [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && !e.disabled && !e.closest(":disabled")
        && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .map((e) => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
      return [e.outerHTML, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    })
    .filter(([, ratio]) => ratio < 4.5)"""
