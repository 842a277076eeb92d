"""The labeling page: how long a person waits from the key to the next image.

A folder of N photographs (JPEG, 800 x 600; a hundred different ones under many
names) is labeled with `sklabel label` in Chromium. In the page a key is pressed, and
the time until the next image is painted counts: the answer is in the CSV by then.
Between two answers a person looks at the image for a while, then nobody does.
"""

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from _common import machine
from PIL import Image
from selenium import webdriver

# presses keys in turn, and returns the milliseconds until each next image was painted
_PRESS = """
const [n, pause, done] = arguments;
(async () => {
const next = (before) => new Promise((resolve) => {
  const look = () => document.body.dataset.row !== before
    ? requestAnimationFrame(() => requestAnimationFrame(resolve)) : setTimeout(look, 1);
  look();
});
const found = [];
for (let i = 0; i < n; i++) {
  await new Promise((resolve) => setTimeout(resolve, pause));
  const start = performance.now();
  const key = {key: String(1 + i % 2), bubbles: true};
  const before = document.body.dataset.row;
  document.body.dispatchEvent(new KeyboardEvent("keydown", key));
  await next(before);
  found.push(performance.now() - start);
}
done(found);
})();
"""


def write_folder(folder, n):
    """Write photographs: waves of colors with noise, as hard to decode as real ones."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    y, x = np.mgrid[:600, :800] / 100
    grain = rng.integers(-12, 12, (600, 800, 3))
    n_different = min(n, 100)
    for i in range(n_different):
        a, b, c = rng.uniform(0.2, 3, 3)
        waves = np.stack([np.sin(a * x + b * y), np.cos(b * x), np.sin(c * y)], -1)
        pixels = np.clip(128 + 100 * waves + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=85)
    names = [f"{i:05d}.jpg" for i in range(n)]
    for i, name in enumerate(names):
        os.link(folder / f"{i % n_different}.jpg", folder / "photos" / name)
    rows = [(name, ["a", "b"][i] if i < 2 else "") for i, name in enumerate(names)]
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])


def browse(profile):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    switches = "headless=new no-sandbox disable-gpu disable-quic no-first-run "
    switches += "disable-background-networking disable-component-update disable-sync"
    for switch in [
        *switches.split(),
        "window-size=1280,800",
        f"user-data-dir={profile}",
    ]:
        options.add_argument(f"--{switch}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(600)
    return driver


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds of looking")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_folder(folder, args.images)
        argv = [sys.executable, "-m", "sklabel", "label", "list.csv", "photos"]
        argv += "--no-browser --embedder simclr --epochs 1 --image-size 16".split()
        argv += ["--cache", "cache", "--quiet"]
        server = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, text=True)
        driver = browse(folder / "profile")
        try:
            driver.get(re.search(r"http\S+", server.stdout.readline())[0])
            look = "return document.body.dataset.row"
            while driver.execute_script(look) is None:
                pass
            for pause in (args.pause, 0):
                found = driver.execute_async_script(_PRESS, args.answers, 1000 * pause)
                middle, late, worst = np.percentile(found, [50, 95, 100])
                print(
                    f"{args.images} images, {args.answers} answers, {pause} s between "
                    f"them: median {middle:.0f} ms, 95 % within {late:.0f} ms, worst "
                    f"{worst:.0f} ms"
                )
        finally:
            driver.quit()
            server.kill()
            server.wait()
    print(machine())


if __name__ == "__main__":
    main()
