"""The report as one HTML file: its sections and drawings."""

import base64
import html
import io
import string
import unicodedata
from importlib import resources
from typing import Any, NamedTuple

from PIL import Image

from .._core.decoding import UNREADABLE, Pictures

SIDE = 192  # pixels of the longer side of a picture
_QUALITY = 78
_HUES = (221, 18, 150, 280, 45, 190, 330, 95, 255, 0, 170, 305)
_WIDE, _HIGH, _LEFT, _BELOW = 360, 226, 40, 36  # of the curve


class Class(NamedTuple):
    """Content of the report for a class.

    Parameters
    ----------
    name : str
    n_given, n_predicted : int
    confidence : float or None
        Mean of its predictions.
    surest, least : list of Picture
    given : list of Picture
    """

    name: str
    n_given: int
    n_predicted: int
    confidence: Any
    surest: list
    least: list
    given: list


class Picture(NamedTuple):
    """A picture of an image: its number, name and confidence (None: given)."""

    row: int
    name: str
    confidence: Any


class Point(NamedTuple):
    """An image on the map: number of its class, position in [0, 1], name."""

    k: int
    x: float
    y: float
    name: str
    is_given: bool


def escaped(text):
    """Return a text for a place between tags or in an attribute, on one line.

    Characters that control the terminal or the text direction are replaced.
    """
    shown = "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c
        for c in str(text)
    )
    return html.escape(shown, quote=True)


def thumbnails(paths, rows, most, max_pixels=None):
    """Return {row: address with the picture in it}, and their total size in bytes.

    Parameters
    ----------
    paths : list of str
    rows : list of int
        The most important first.
    most : int
        Maximum total size in bytes; further pictures are left out.
    """
    pictures = Pictures(paths, max_pixels, side=SIDE)
    found, n_bytes = {}, 0
    for row in rows:
        if row in found:
            continue
        try:
            image = Image.fromarray(pictures[row]).convert("RGB")
        except UNREADABLE:
            continue
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        image.save(content, "JPEG", quality=_QUALITY, optimize=True)
        address = (
            "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
        )
        if n_bytes + len(address) > most:
            break
        found[row] = address
        n_bytes += len(address)
    return found, n_bytes


def page(title, subtitle, parts, version):
    """Return the text of the file.

    Parameters
    ----------
    title, subtitle : str
    parts : list of str
        HTML of the sections.
    version : str
    """
    template = resources.files(__package__).joinpath("report.html")
    return string.Template(template.read_text(encoding="utf-8")).substitute(
        title=escaped(title),
        subtitle=escaped(subtitle),
        body="\n".join(part for part in parts if part),
        version=escaped(version),
    )


def figures(values):
    """Return the first section: (what, number, explanation) of each."""
    items = "".join(
        f"<div><dt>{escaped(what)}</dt><dd>{escaped(number)}"
        f"<small>{escaped(more)}</small></dd></div>"
        for what, number, more in values
    )
    return (
        '<section aria-label="Key figures" class="first">'
        f'<dl class="figures">{items}</dl></section>'
    )


def classes(found):
    """Return the table of classes."""
    most = max(c.n_given + c.n_predicted for c in found) or 1
    rows = []
    for k, c in enumerate(found):
        widths = [100 * n / most for n in (c.n_given, c.n_predicted)]
        bars = "".join(f'<i style="width:{w:.2f}%"></i>' for w in widths)
        mean = "–" if c.confidence is None else _told(c.confidence)
        rows.append(
            f'<tr style="--h:{hue(k)}"><th scope="row"><span class="dot"></span>'
            f'<a href="#class-{k}"><bdi>{escaped(c.name)}</bdi></a></th>'
            f"<td>{c.n_given:,}</td><td>{c.n_predicted:,}</td>"
            f'<td class="all">{c.n_given + c.n_predicted:,}</td>'
            f"<td>{mean}</td>"
            '<td class="bars" aria-hidden="true">'
            f'<div class="bar">{bars}</div></td></tr>'
        )
    return (
        '<section aria-labelledby="classes"><h2 id="classes">Classes</h2>'
        '<p class="soft">Labels given by a person (the stronger part of the bars) '
        "and predicted labels.</p>"
        '<div class="wide" tabindex="0" role="region" aria-labelledby="classes">'
        '<table class="classes">'
        '<thead><tr><th scope="col">class</th><th scope="col">given</th>'
        '<th scope="col">predicted</th><th scope="col" class="all">all</th>'
        '<th scope="col">confidence</th><th class="bars" aria-hidden="true"></th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def curve(accuracy, shown=(0.1, 0.25, 0.5, 0.75, 1.0)):
    """Return the confidence curve.

    Parameters
    ----------
    accuracy : ndarray of shape (n,)
        Estimated accuracy of the 1, 2, ..., n most confident predictions.
    shown : tuple of float
        Shares of the images in the table.
    """
    n = len(accuracy)
    if not n:
        return ""
    low = min(0.5, float(int(min(accuracy) * 10)) / 10)

    def place(share, value):
        x = _LEFT + share * (_WIDE - _LEFT - 10)
        y = 10 + (1 - value) / (1 - low) * (_HIGH - _BELOW - 10)
        return x, y

    steps = sorted({max(1, round(n * i / 120)) for i in range(1, 121)})
    points = [(0.0, accuracy[0]), *((i / n, accuracy[i - 1]) for i in steps)]
    line = " ".join("{:.1f},{:.1f}".format(*place(*p)) for p in points)
    (x0, y0), (x1, _) = place(0, low), place(1, low)
    grid = []
    ticks = [1 - 0.1 * i for i in range(round((1 - low) * 10) + 1)]
    for value in ticks[:: 1 if len(ticks) < 8 else 2]:
        _, y = place(0, value)
        grid.append(
            f'<path class="grid" d="M{x0:.1f} {y:.1f}H{x1:.1f}"/>'
            f'<text x="{x0 - 6:.1f}" y="{y + 3.5:.1f}" text-anchor="end">'
            f"{100 * value:.0f} %</text>"
        )
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(share, low)
        anchor = {0: "start", 1: "end"}.get(share, "middle")
        grid.append(
            f'<text x="{x:.1f}" y="{y + 14:.1f}" text-anchor="{anchor}">'
            f"{100 * share:.0f} %</text>"
        )
    grid.append(
        f'<text x="{(x0 + x1) / 2:.1f}" y="{_HIGH - 3}" text-anchor="middle">'
        "share of the predicted images, the most confident first</text>"
    )
    rows = "".join(
        f'<tr><th scope="row">{100 * share:.0f} %</th>'
        f"<td>{max(1, round(n * share)):,}</td>"
        f"<td>{_told(accuracy[max(1, round(n * share)) - 1], 100)} %</td></tr>"
        for share in shown
    )
    return (
        '<section aria-labelledby="curve">'
        '<h2 id="curve">Accuracy by confidence</h2>'
        '<p class="soft">Estimated share of right labels among the most confident '
        "predictions, from their mean confidence.</p>"
        '<div class="two"><figure style="margin:0">'
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="Curve: estimated '
        f"accuracy of the most confident predictions, from {_told(accuracy[0], 100)} % "
        f"to {_told(accuracy[-1], 100)} % for all. The "
        'table beside it has the numbers.">'
        f'<polygon class="under" points="{x0:.1f},{y0:.1f} {line} {x1:.1f},{y0:.1f}"/>'
        f'{"".join(grid)}<polyline class="curve" points="{line}"/></svg></figure>'
        '<div class="wide"><table><thead><tr><th scope="col">most confident</th>'
        '<th scope="col">images</th><th scope="col">estimated right</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></div></section>"
    )


def map_of(points, names, note):
    """Return the map.

    Parameters
    ----------
    points : list of Point
    names : list of str
        Of the classes.
    note : str
        How it was made.
    """
    if not points:
        return ""
    size, margin = 400, 14

    def place(value):
        return margin + value * (size - 2 * margin)

    groups = {}
    for point in points:
        groups.setdefault(point.k, []).append(point)
    dots, texts = [], []
    for k, own in sorted(groups.items()):
        circles = "".join(
            f'<circle class="{"given" if p.is_given else "other"}" '
            f'cx="{place(p.x):.1f}" cy="{place(p.y):.1f}" '
            f'r="{3.6 if p.is_given else 2.2}">'
            f"<title>{escaped(p.name)}</title></circle>"
            for p in sorted(own, key=lambda p: p.is_given)
        )
        dots.append(f'<g style="--h:{hue(k)}">{circles}</g>')
        x, y = (
            sorted(v)[len(own) // 2]
            for v in zip(*[(p.x, p.y) for p in own], strict=True)
        )
        texts.append((place(x), place(y), _short(names[k])))
    return (
        '<section aria-labelledby="map"><h2 id="map">Map</h2>'
        f'<p class="soft">{escaped(note)}</p><figure class="map" style="margin:0 auto">'
        f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="Map of {len(points)} '
        f'images in {len(groups)} classes; similar images lie close to each other.">'
        f"{''.join(dots)}{''.join(_apart(texts))}</svg></figure></section>"
    )


def _apart(texts, height=10):
    """Return texts of the map, moved down if they would overlap."""
    placed = []
    for x, y, text in sorted(texts, key=lambda t: t[1]):
        width = 5 * len(text)
        x = min(max(x, width / 2 + 2), 398 - width / 2)
        for other_x, other_y, other in placed:
            if abs(x - other_x) < (width + 5 * len(other)) / 2 and y - other_y < height:
                y = other_y + height
        placed.append((x, y, text))
    return [
        f'<text x="{x:.1f}" y="{min(y, 394):.1f}" dy="3">{escaped(text)}</text>'
        for x, y, text in placed
    ]


def pictures(found, addresses, note):
    """Return the pictures of each class.

    Parameters
    ----------
    found : list of Class
    addresses : dict
        Of `thumbnails`.
    note : str
    """
    parts = []
    for k, c in enumerate(found):
        rows = "".join(
            _row(what, own, addresses)
            for what, own in (
                ("Most confident", c.surest),
                ("Least confident", c.least),
                ("Given", c.given),
            )
        )
        parts.append(
            f'<div class="class" id="class-{k}" style="--h:{hue(k)}"><header><h3>'
            f'<span class="dot"></span><bdi>{escaped(c.name)}</bdi></h3>'
            f'<span class="note">{c.n_given:,} given, {c.n_predicted:,} predicted'
            "</span>"
            f'</header><div class="rows">{rows}</div></div>'
        )
    return (
        '<section aria-labelledby="pictures"><h2 id="pictures">Pictures of each class'
        f'</h2><p class="soft">{escaped(note)}</p>{"".join(parts)}</section>'
    )


def _row(what, own, addresses):
    shown = [picture for picture in own if picture.row in addresses]
    if not shown:
        return ""
    items = "".join(
        f'<li><figure><img src="{addresses[p.row]}" alt="{escaped(p.name)}" '
        f'title="{escaped(p.name)}" loading="lazy" decoding="async">'
        f"<figcaption>{'given' if p.confidence is None else _told(p.confidence)}"
        "</figcaption></figure></li>"
        for p in shown
    )
    return f'<div><h4>{what}</h4><ul class="pictures">{items}</ul></div>'


def made(values):
    """Return how it was made, from (name, text, whether it is code)."""
    items = "".join(
        f"<dt>{escaped(what)}</dt><dd>"
        + (f"<code>{escaped(text)}</code>" if is_code else escaped(text))
        + "</dd>"
        for what, text, is_code in values
    )
    return (
        '<section aria-labelledby="made"><h2 id="made">How it was made</h2>'
        f'<dl class="made">{items}</dl></section>'
    )


def _told(share, of=1):
    """Return a share as text; no prediction is shown as certain."""
    share = min(float(share), 0.99)
    return f"{share:.2f}" if of == 1 else f"{of * share:.0f}"


def hue(k):
    """Return the hue of a class in degrees."""
    return _HUES[k] if k < len(_HUES) else round(k * 137.508) % 360


def _short(text, most=18):
    text = " ".join(str(text).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
