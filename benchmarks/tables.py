"""Write the tables and the curves of README.md anew from the rows in results/.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; the text around it
is written by hand. A cell is mean and standard deviation over the seeds, a single value
where there is one; with less seeds than the others their number stands beside it.
"""

import itertools
import re
from pathlib import Path

import numpy as np
from _common import Results
from bench_classification import HARD
from bench_clustering import METHODS as CLUSTERERS
from bench_transfer import METHODS as TRAININGS
from bench_transfer import RULES

README = Path(__file__).parent / "README.md"
# drawn; the others would hide them
CURVES = ["random", "USL", "USL-T", "core-set", "BADGE", "entropy"]
FREE = ["random", "USL", "core-set", "TypiClust", "MaxHerding"]
DATA = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "usps": "USPS",
    "bloodmnist": "blood cells",
    "cifar10": "CIFAR-10",
    "clothing": "clothes",
}
EMBEDDINGS = {"mobilenet": "MobileNet", "simclr": "SimCLR"}


def rows_of(name, **key):
    return [
        row
        for row in Results(name).rows
        if all(row.get(k) == value for k, value in key.items())
    ]


def distinct(rows, name):
    return list(dict.fromkeys(row[name] for row in rows))


def percent(rows, figure="accuracy"):
    """Return "mean ± deviation" of a figure in percent."""
    values = [100 * row[figure] for row in rows]
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def counted(text, rows, n_seeds):
    return f"{text} ({len(rows)})" if text and len(rows) != n_seeds else text


def table(head, lines):
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in cells)


def clustering():
    return _clustering({name: name for name in DATA})


def clustering_of_vectors():
    return _clustering({name: f"{name}-mobilenet" for name in DATA})


LENGTHS = "embed_epochs code_epochs epochs iic_epochs iic_repeats iic_crop".split()


def _by_length(rows):
    """Return rows in lists of one setting each, that with the most seeds first."""
    found: dict = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in LENGTHS), []).append(row)
    return sorted(found.values(), key=len, reverse=True)


def lengths():
    """Trainings of other lengths than those in the table above."""
    rows, lines = rows_of("clustering"), []
    for data, method in itertools.product(DATA, CLUSTERERS):
        own = [r for r in rows if (r["data"], r["method"]) == (data, method)]
        for group in _by_length(own) if len(_by_length(own)) > 1 else []:
            given = [f"{n} {group[0][n]}" for n in LENGTHS if group[0].get(n)]
            figures = [percent(group, f) for f in ("accuracy", "nmi", "ari")]
            text = ", ".join(given).replace("_", " ")
            lines.append([DATA[data], counted(method, group, 3), text, *figures])
    return table(["", "", "", "accuracy", "NMI", "ARI"], lines)


def _clustering(files):
    rows = [r for r in rows_of("clustering") if r["data"] in files.values()]
    columns = {d: name for d, name in files.items() if name in distinct(rows, "data")}
    sizes = {d: rows_of("clustering", data=n)[0]["n_train"] for d, n in columns.items()}
    lines = []
    for method in CLUSTERERS:
        if method not in distinct(rows, "method"):
            continue
        line = [method]
        for data in columns:
            own = [r for r in rows if (r["method"], r["data"]) == (method, files[data])]
            own = next(iter(_by_length(own)), [])
            text = percent(own)
            if own:
                text += "".join(
                    f", {np.mean([r[figure] for r in own]):.2f}"
                    for figure in ("nmi", "ari")
                )
            line.append(counted(text, own, 3))
        lines.append(line)
    return table(["", *(f"{DATA[d]} ({sizes[d]:,})" for d in columns)], lines)


def segmentation():
    rows = rows_of("segmentation")
    lines = [
        [strokes, method, percent(own), percent(own, "iou")]
        for strokes in distinct(rows, "strokes")
        for method in distinct(rows, "method")
        for own in [
            [r for r in rows if (r["strokes"], r["method"]) == (strokes, method)]
        ]
    ]
    return table(["strokes", "", "pixels", "overlap of the strokes"], lines)


def few_labels():
    rows = [r for r in rows_of("classification") if not any(k in r for k in HARD)]
    parts = []
    for data in DATA:
        own = [r for r in rows if r["data"] == data]
        if not own:
            continue
        n_seeds = len(distinct(own, "seed"))
        budgets = sorted(distinct(own, "n_labels"))
        lines = []
        for method in distinct(own, "method"):
            line = [method]
            for n_labels in budgets:
                cell = [
                    r for r in own if (r["method"], r["n_labels"]) == (method, n_labels)
                ]
                line.append(counted(percent(cell), cell, n_seeds))
            lines.append(line)
        head = [f"{DATA[data]}, seeds {_list(own)}; labels", *budgets]
        parts.append(table(head, lines))
    return "\n\n".join(parts)


def hard_cases():
    rows = [r for r in rows_of("classification") if any(k in r for k in HARD)]
    tables = {}
    for row in rows:
        tables.setdefault((row["data"], row["n_labels"]), []).append(row)
    parts = []
    for (data, n_labels), own in sorted(tables.items()):
        cases = sorted({_case(r) for r in own})
        n_seeds = len(distinct(own, "seed"))
        lines = []
        for method in distinct(own, "method"):
            cells = [
                [r for r in own if (r["method"], _case(r)) == (method, case)]
                for case in cases
            ]
            texts = [counted(percent(cell), cell, n_seeds) for cell in cells]
            lines.append([method, *texts])
        head = f"{DATA.get(data, data)}, {n_labels} labels, seeds {_list(own)}"
        parts.append(table([head, *cases], lines))
    return "\n\n".join(parts)


def _case(row):
    """Return what makes a row a hard case, in words."""
    words = [f"{row['imbalance']:g}:1"] if "imbalance" in row else []
    words += [f"{row['wrong']:.0%} wrong"] if "wrong" in row else []
    return ", ".join(words + ["balanced"] * ("balanced" in row))


def probe():
    rows, parts = rows_of("selection", task="probe", space=None, embed_seed=None), []
    for data in DATA:
        own = [r for r in rows if r["data"] == data]
        if not own:
            continue
        # a seed that is not through would be compared with others' seeds
        counts = {s: sum(r["seed"] == s for r in own) for s in distinct(own, "seed")}
        own = [r for r in own if counts[r["seed"]] == max(counts.values())]
        budgets = sorted(distinct(own, "n_labels"))
        n_classes = 8 if data == "bloodmnist" else 10
        lines = []
        for method in distinct(own, "method"):
            cells = {
                n: [r for r in own if (r["method"], r["n_labels"]) == (method, n)]
                for n in budgets
            }
            met = n_classes * np.mean([r["coverage"] for r in cells[20]])
            line = [method, *(percent(cells[n]) for n in budgets), f"{met:.1f}"]
            if method == "entropy":
                lines.append([""] * len(line))
            lines.append(line)
        head = [f"{DATA[data]}, seeds {_list(own)}; labels", *budgets]
        parts.append(table([*head, "classes among 20"], lines))
    return "\n\n".join(parts)


def curves():
    """Draw accuracy over labels with its spread, one panel for each data set."""
    import matplotlib.pyplot as plt

    rows = rows_of("selection", task="probe", space=None, embed_seed=None)
    names = [data for data in DATA if data in distinct(rows, "data")]
    size = (3 * len(names), 3.2)
    figure, axes = plt.subplots(1, len(names), figsize=size, layout="constrained")
    for ax, data in zip(axes, names, strict=True):
        own = [r for r in rows if r["data"] == data]
        budgets = np.array(sorted(distinct(own, "n_labels")))
        for i, method in enumerate(CURVES):
            cells = [
                [
                    100 * r["accuracy"]
                    for r in own
                    if (r["method"], r["n_labels"]) == (method, n)
                ]
                for n in budgets
            ]
            mean, spread = np.mean(cells, axis=1), np.std(cells, axis=1, ddof=1)
            # side by side, so that the bars can be told apart
            x = budgets * 1.03 ** (i - len(CURVES) / 2)
            ax.errorbar(x, mean, spread, label=method, marker=".", lw=1, elinewidth=0.6)
        ax.set(xscale="log", title=DATA[data], xlabel="labels")
        ax.set_xticks(budgets, budgets)
        ax.minorticks_off()
    axes[0].set_ylabel("accuracy of a linear probe, %")
    axes[-1].legend(fontsize=7, frameon=False)
    figure.savefig(README.parent / "selection.png", dpi=80)


def _spaces(rows, methods, budgets):
    """Return the rows of each data set in each space by what a table calls it.

    Those that are not through are left out.
    """
    found = {}
    n_rows = 3 * len(methods) * (len(budgets) if "n_labels" in rows[0] else 1)
    for data in DATA:
        for space in (None, "mobilenet_v2"):
            own = [r for r in rows if (r["data"], r.get("space")) == (data, space)]
            if sum(r["method"] in methods for r in own) == n_rows:
                found[f"{DATA[data]}, {space or 'SimCLR'}"] = own
    return found


def one_space():
    rows = [
        r
        for r in rows_of("selection", task="probe")
        if r.get("space") or r.get("embed_seed") is not None
    ]
    return _side_by_side(rows, FREE, (10, 20, 40, 100), lambda r, n: r["n_labels"] == n)


def rounds(n_first=10):
    rows = rows_of("selection", task="rounds", first="USL")
    rows = [r for r in rows if r["budgets"][0] == n_first]
    budgets = [n for n in rows[0]["budgets"] if n > n_first]
    return _side_by_side(rows, distinct(rows, "method"), budgets)


def long_rounds():
    return rounds(n_first=40)


STARTS = [("USL", 20), ("random", 20), ("random", 40)]
STARTED = ["entropy", "BALD", "margin", "BADGE", "UHerding", "MaxHerding"]


def starts():
    """How far the loop is above random choice with the same first rows."""
    every, lines = rows_of("selection", task="rounds"), []
    spaces = {
        data: "mobilenet_v2" if data == "cifar10" else None
        for data in DATA
        if data != "clothing"
    }
    for (first, n_first), method in itertools.product(STARTS, STARTED):
        line = [f"{n_first} by {first}", method]
        for data, space in spaces.items():
            own = [
                r
                for r in every
                if (r["first"], r["budgets"][0]) == (first, n_first)
                and (r["data"], r.get("space")) == (data, space)
            ]
            by_seed = {(r["method"], r["seed"]): r for r in own}
            seeds = [s for m, s in by_seed if m == method]
            gains = [
                [100 * (by_seed[method, s][f] - by_seed["random", s][f]) for s in seeds]
                for f in (f"accuracy_{n}" for n in own[0]["budgets"][1:])
            ]
            line.append(" / ".join(f"{np.mean(g):+.1f}" for g in gains))
        means = [[float(v) for v in cell.split(" / ")] for cell in line[2:]]
        lines.append([*line, " / ".join(f"{v:+.1f}" for v in np.mean(means, 0))])
    head = [
        "first",
        "then",
        *(DATA[d] + ", " + (v or "SimCLR") for d, v in spaces.items()),
    ]
    return table([*head, "mean"], lines)


def why():
    rows = rows_of("selection", task="why", first="random")
    rows = [r for r in rows if r["seed"] < 3]  # of some there are more
    columns = [d for d in DATA if d in distinct(rows, "data")]
    lines = []
    for method in distinct(rows, "method"):
        line = [method]
        for data in columns:
            own = [r for r in rows if (r["method"], r["data"]) == (method, data)]
            names = ("accuracy", "crowding", "commonest")
            means = [100 * np.mean([r[name] for r in own]) for name in names]
            line.append("{:.1f} ({:.0f}, {:.0f})".format(*means))
        lines.append(line)
    return table(["", *(DATA[d] for d in columns)], lines)


ENCODERS = {
    "simclr": "SimCLR",
    "clip": "CLIP tower",
    "mobilenet, 64 pixels": "MobileNet v2 at 64 pixels",
}
SHOWN = ("logistic regression", "FixMatch")


def _choices():
    """Yield the title and rows of every set and encoder that labels were chosen in."""
    rows = [r for r in rows_of("transfer") if r.get("choice") and not r.get("asked_in")]
    for data, embedding in itertools.product(DATA, ENCODERS):
        own = [r for r in rows if (r["data"], r["embedding"]) == (data, embedding)]
        if own:
            yield f"{DATA[data]}, {ENCODERS[embedding]}", own


def chosen_from_encoder():
    """Trainings from the encoder in whose space the labels were chosen."""
    parts = []
    for title, every in _choices():
        methods, lines = distinct(every, "method"), []
        for choice in distinct(every, "choice"):
            own = [r for r in every if r["choice"] == choice]
            cells = [[r for r in own if r["method"] == m] for m in methods]
            texts = [counted(percent(cell), cell, 3) for cell in cells]
            n_classes = 8 if every[0]["data"] == "bloodmnist" else 10
            met = n_classes * np.mean([r["coverage"] for r in cells[0]])
            lines.append([choice, f"{met:.1f}", *texts])
        parts.append(table([title, "classes", *methods], lines))
    return "\n\n".join(parts)


def balance():
    """How the balance of the classes among the labels goes with the accuracy."""
    lines = []
    for title, every in _choices():
        line = [title]
        for method in TRAININGS:
            own = [r for r in every if r["method"] == method]
            both = np.array([[r["balance"], r["accuracy"]] for r in own]).T
            line.append(f"{np.corrcoef(both)[0, 1]:.2f}" if own else "")
        lines.append(line)
    return table(["correlation", *TRAININGS], lines)


def asked_in():
    """The same, chosen by what a network sees that has learned from ten labels."""
    rows = [r for r in rows_of("transfer") if r.get("choice") and r["method"] in SHOWN]
    chosen_so = [r for r in rows if r.get("asked_in") == "labels"]
    columns = [d for d in DATA if d in distinct(chosen_so, "data")]
    lines = []
    for choice in distinct(chosen_so, "choice"):
        for space in (None, "labels"):
            line = [choice, "first labels" if space else "SimCLR"]
            for data, method in itertools.product(columns, SHOWN):
                own = [
                    r
                    for r in rows
                    if (r["data"], r["method"], r["choice"]) == (data, method, choice)
                    and r.get("asked_in") == space
                ]
                line.append(counted(percent(own), own, 3))
            lines.append(line)
    head = [f"{DATA[d]}, {m}" for d, m in itertools.product(columns, SHOWN)]
    return table(["40 labels", "chosen in the space of", *head], lines)


def rules():
    """FixMatch with other rules for which predictions count."""
    rows = [
        r
        for r in rows_of("transfer", n_train=5000, start="default", n_labels=40)
        if r["method"] in RULES and not r.get("choice")
    ]
    columns = [d for d in DATA if d in distinct(rows, "data")]
    lines = []
    for method in RULES:
        line = [method]
        for data in columns:
            own = [r for r in rows if (r["method"], r["data"]) == (method, data)]
            line.append(counted(percent(own), own, 3))
        lines.append(line)
    return table(["40 labels", *(DATA[d] for d in columns)], lines)


def clip_starts():
    """Classifiers behind the tower of CLIP, by the rate of its training."""
    rows = rows_of("transfer", embedding="clip", choice=None)
    shown = ("logistic regression", "EmbeddingClassifier", "FixMatch")
    lines = []
    for method in shown:
        of_method = [r for r in rows if r["method"] == method]
        for start in sorted(distinct(of_method, "start"), reverse=True):
            own = [r for r in of_method if r["start"] == start]
            lines.append([method, start, counted(percent(own), own, 3)])
    return table(["40 labels", "start", "CIFAR-10"], lines)


def _side_by_side(rows, methods, budgets, of=lambda row, n: True):
    spaces = _spaces(rows, methods, budgets)
    lines = []
    for method in methods:
        line = [method]
        for own in spaces.values():
            cells = []
            for n in budgets:
                cell = [r for r in own if r["method"] == method and of(r, n)]
                figure = "accuracy" if "n_labels" in own[0] else f"accuracy_{n}"
                cells.append(f"{100 * np.mean([r[figure] for r in cell]):.1f}")
            line.append(" / ".join(cells))
        lines.append(line)
    means = np.array(
        [[[float(v) for v in cell.split(" / ")] for cell in line[1:]] for line in lines]
    )
    for line, mean in zip(lines, means.mean(axis=1), strict=True):
        line.append(" / ".join(f"{v:.1f}" for v in mean))
    counts = " / ".join(map(str, budgets))
    return table([counts, *spaces, "mean"], lines)


def chosen():
    rows = [r for r in rows_of("selection") if r["task"] in ("fixmatch", "transfer")]
    columns = [
        (task, data)
        for task in ("fixmatch", "transfer")
        for data in DATA
        if any((r["task"], r["data"]) == (task, data) for r in rows)
    ]
    lines = []
    for method in distinct(rows, "method"):
        line = [method]
        for task, data in columns:
            own = [
                r
                for r in rows
                if (r["task"], r["data"], r["method"]) == (task, data, method)
            ]
            line.append(counted(percent(own), own, 3))
        lines.append(line)
    heads = [
        DATA[data] + (", chosen by CIFAR-10's embedding" if task == "transfer" else "")
        for task, data in columns
    ]
    return table(["40 labels", *heads], lines)


def loop():
    rows, lines = rows_of("selection", task="loop"), []
    shares = ("1%", "3%", "5%", "10%")
    n_seeds = max((r["seed"] for r in rows), default=0) + 1
    sizes = sorted(distinct(rows, "n_train"))
    cases = itertools.product(DATA, sizes, distinct(rows, "method"))
    for data, size, method in cases:
        case = data, size, method
        own = [r for r in rows if (r["data"], r["n_train"], r["method"]) == case]
        if own:
            figures = [percent(own, f"accuracy_{share}") for share in shares]
            name = f"{DATA[data]} ({size:,})"
            lines.append([name, counted(method, own, n_seeds), *figures])
    return table(["", "", *(f"{s[:-1]} %" for s in shares)], lines)


def hybrid():
    rows = rows_of("hybrid")
    budgets = sorted(n for n in distinct(rows, "n_labels") if n)
    lines = []
    for classifier in distinct(rows, "classifier"):
        for selector in distinct(rows, "selector"):
            cells = [
                [
                    r
                    for r in rows
                    if (r["classifier"], r["selector"]) == (classifier, selector)
                    and r["n_labels"] in (n, 0)
                ]
                for n in budgets
            ]
            if any(cells):
                lines.append([classifier, selector, *(percent(c[:3]) for c in cells)])
    return table(["", "chosen by", *(f"{n} labels" for n in budgets)], lines)


def quick():
    """Accuracy, and calibration error in brackets, with random labels."""
    rows, parts = rows_of("photographs", choice="random"), []
    for data, embedding in dict.fromkeys((r["data"], r["embedding"]) for r in rows):
        own = [r for r in rows if (r["data"], r["embedding"]) == (data, embedding)]
        name = f"{DATA.get(data, data)} behind {EMBEDDINGS[embedding]}"
        parts.append(_quick(own, f"{name}; labels", "method"))
    return "\n\n".join(parts)


def chosen_photographs():
    """The same with labels chosen by a selector."""
    rows = rows_of("photographs", data="clothing")
    parts = []
    for method in ("EmbeddingClassifier", "logistic regression"):
        own = [r for r in rows if r["method"] == method]
        parts.append(_quick(own, f"clothing, {method}; labels", "choice"))
    return "\n\n".join(parts)


def _quick(rows, head, by):
    budgets = sorted(distinct(rows, "n_labels"))
    lines = []
    for name in distinct(rows, by):
        line = [name]
        for n in budgets:
            cell = [r for r in rows if (r[by], r["n_labels"]) == (name, n)]
            error = np.mean([r["calibration_error"] for r in cell]) if cell else 0
            line.append(f"{percent(cell)} [{error:.2f}]" if cell else "")
        seconds = [r["cpu_seconds"] for r in rows if r[by] == name]
        lines.append([*line, f"{np.median(seconds):.1f}"])
    return table([head, *budgets, "seconds"], lines)


def _list(rows):
    return ", ".join(str(seed) for seed in sorted(set(distinct(rows, "seed"))))


TABLES = {
    "clustering": clustering,
    "lengths": lengths,
    "clustering of vectors": clustering_of_vectors,
    "segmentation": segmentation,
    "few labels": few_labels,
    "hard cases": hard_cases,
    "probe": probe,
    "one space": one_space,
    "rounds": rounds,
    "long rounds": long_rounds,
    "starts": starts,
    "why": why,
    "chosen from encoder": chosen_from_encoder,
    "asked in": asked_in,
    "balance": balance,
    "rules": rules,
    "clip starts": clip_starts,
    "chosen": chosen,
    "loop": loop,
    "hybrid": hybrid,
    "quick": quick,
    "chosen photographs": chosen_photographs,
}


def main():
    def written(match):
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    text = README.read_text(encoding="utf-8")
    pattern = r"<!-- table: (.*?) -->.*?<!-- end -->"
    text = re.sub(pattern, written, text, flags=re.DOTALL)
    README.write_text(text, encoding="utf-8")
    curves()


if __name__ == "__main__":
    main()
