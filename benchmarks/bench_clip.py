"""CLIP trained from the start: images found by words, and classes by their names.

Emoji: pictures with captions in three styles of drawing. Trained on twemoji and
emojione, tested on noto without skin tones; with ``--split codepoints`` no character of
the test, whatever its skin tone, is in training. CIFAR-10: several wordings around the
names of the classes, of which two are not in training. Every row is one seed; scores
are those of the last epoch. Rows that are in the results file are not run again.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from _common import Results, load, parse, shared, small_network, summary

from sklabel.classification import CLIPClassifier
from sklabel.embedding import CLIPTransformer

EMOJI = ("{}", "a picture of {}", "the sign for {}", "{} as an icon", "{}, drawn")
NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
KINDS = ("", "blurry", "black and white", "low contrast", "high contrast")
KINDS += ("bad", "good", "small", "big")
# the authors' wordings for CIFAR-10
CIFAR = [
    " ".join(f"a {kind} photo of {article} {{}}.".split())
    for kind in KINDS
    for article in ("a", "the")
]
SKIN_TONES = {f"1f3f{k}" for k in "bcdef"}


def emoji(args):
    """Return training images, names and mask of the unseen, and those of the test."""
    folder = Path(os.environ["SKLABEL_DATA"])
    with np.load(folder / "emoji-captions.npz") as file:
        data = {key: file[key] for key in file.files}
    test = (data["style"] == "noto") & ~data["skin_tone"]
    train = data["style"] != "noto"
    if args.split == "codepoints":
        # a character with another color of skin is the same character
        parts = [
            [part for part in code.split("-") if part not in SKIN_TONES | {"fe0f"}]
            for code in data["codepoints"].tolist()
        ]
        signs, which = np.unique(["-".join(own) for own in parts], return_inverse=True)
        held = np.random.default_rng(0).random(len(signs)) < args.held_share
        test &= held[which]
        train &= ~held[which]
    x, names = data["images"], data["captions"]
    seen = np.isin(names[test], names[train])
    return (
        x[train][: args.n_train],
        names[train][: args.n_train],
        x[test],
        names[test],
        seen,
    )


def cifar(args):
    x, y, x_test, y_test = load("cifar10")
    names = np.array(NAMES)
    rows = np.flatnonzero(~np.isin(names[y], args.held_out))[: args.n_train]
    seen = ~np.isin(names[y_test], args.held_out)
    return x[rows], names[y[rows]], x_test, names[y_test], seen


def captions(names, templates):
    """Return several texts for each row, of which training draws one."""
    texts = np.empty(len(names), dtype=object)
    texts[:] = [[t.replace("{}", name) for t in templates] for name in names.tolist()]
    return texts


def fitted(args, seed, x, texts):
    backbone = "auto"
    if args.width:
        backbone = small_network(x, args.width, seed)
    return CLIPTransformer(
        args.size,
        backbone=backbone,
        same_captions=args.same_captions,
        text_width=args.text_width,
        text_layers=args.text_layers,
        context_length=112,  # nothing is cut
        max_steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        **shared(args, seed),
    ).fit(x, texts)


def recalls(embedder, Z, names, templates, ks=(1, 10)):
    """Return the share of names with a right image among the first k, by template."""
    unique = np.unique(names)
    figures = {}
    for kind, own in (("single", templates[:1]), ("mean", templates)):
        right = []
        for template in own:
            texts = [template.replace("{}", name) for name in unique.tolist()]
            rows, _ = embedder.search(texts, Z=Z, n_results=max(ks))
            right.append(names[rows] == unique[:, None])
        for k in ks:
            hits = np.mean([own[:, :k].any(1) for own in right])
            figures[f"recall_{k}_{kind}"] = float(hits)
        precision = np.mean([own[:, : max(ks)] for own in right])
        figures[f"precision_{max(ks)}_{kind}"] = float(precision)
    return figures


def zero_shot(embedder, Z, x, names, seen, templates):
    """Return accuracies with the mean of all prompts, with each alone, and chance."""
    classes = np.unique(names)
    texts = {
        t: embedder.encode_text([t.replace("{}", n) for n in classes])
        for t in templates
    }

    def accuracy(own, rows):
        clf = CLIPClassifier(list(own), prompts=templates, embedder=embedder)
        return float(np.mean(clf.predict(x[rows]) == names[rows]))

    figures = {"classes": len(classes), "chance": 1 / len(classes)}
    groups = {"all": np.ones(len(x), bool), "seen": seen, "unseen": ~seen}
    for group, rows in groups.items():
        if not rows.any():
            continue
        found = [classes[(Z[rows] @ texts[t].T).argmax(1)] for t in templates]
        alone = [float(np.mean(labels == names[rows])) for labels in found]
        figures[f"accuracy_{group}"] = accuracy(classes, rows)
        figures[f"accuracy_{group}_single"] = alone[0]
        figures[f"accuracy_{group}_single_mean"] = float(np.mean(alone))
    unseen = np.unique(names[~seen])
    if 1 < len(unseen) < len(classes):  # among themselves: which of the new ones
        figures["accuracy_among_unseen"] = accuracy(unseen, ~seen)
        figures["chance_among_unseen"] = 1 / len(unseen)
    return figures


def clip(args, seed, data, templates):
    x, names, x_test, names_test, seen = data
    embedder = fitted(args, seed, x, captions(names, templates))
    history = embedder.net_.history[-1]
    Z = embedder.transform(x_test)
    return {
        "n_train": len(x),
        "n_test": len(x_test),
        "loss": history["train_loss"],
        "logit_scale": history["logit_scale"],
        **recalls(embedder, Z, names_test, templates),
        **zero_shot(embedder, Z, x_test, names_test, seen, templates),
    }


def pixels(data):
    """Return what the mean picture of each name finds: no learning at all."""
    x, names, x_test, names_test, _ = data
    flat, flat_test = (
        a.reshape(len(a), -1).astype(np.float32) / 255 for a in (x, x_test)
    )
    known = np.unique(names)
    means = np.stack([flat[names == name].mean(0) for name in known])
    unique = np.unique(names_test)
    where = {name: i for i, name in enumerate(known.tolist())}
    square = (flat_test**2).sum(1) - 2 * means @ flat_test.T  # (known, n_test)
    right = np.zeros((len(unique), 10), bool)
    for i, name in enumerate(unique.tolist()):
        if name in where:
            rows = np.argsort(square[where[name]])[:10]
            right[i] = names_test[rows] == name
    square += (means**2).sum(1)[:, None]
    return {
        "n_train": len(x),
        "n_test": len(x_test),
        "recall_1_single": float(right[:, 0].mean()),
        "recall_10_single": float(right.any(1).mean()),
        "accuracy_all": float(np.mean(known[square.argmin(0)] == names_test)),
        "chance": 1 / len(unique),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=["emoji", "cifar10"], default="emoji")
    parser.add_argument("--split", choices=["style", "codepoints"], default="style")
    parser.add_argument("--held-share", type=float, default=0.2, help="of the signs")
    parser.add_argument("--held-out", nargs="+", default=["deer", "truck"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-train", type=int, help="first rows of the training images")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--size", type=int, default=128, help="of an embedding")
    parser.add_argument("--width", type=int, help="of a small image tower; else auto")
    parser.add_argument("--text-width", type=int, default=128)
    parser.add_argument("--text-layers", type=int, default=3)
    parser.add_argument("--same-captions", default="positives")
    args = parse(parser)

    if args.data == "emoji":
        data, templates = emoji(args), list(EMOJI)
        task = {"data": "emoji", "split": args.split}
    else:
        unknown = set(args.held_out) - set(NAMES)
        if unknown:
            parser.error(f"--held-out names {unknown}; the classes are {NAMES}")
        data, templates = cifar(args), CIFAR
        task = {"data": "cifar10", "split": "+".join(sorted(args.held_out))}
    results = Results("clip")
    setting = {
        name: getattr(args, name)
        for name in "n_train steps batch_size lr size width text_width".split()
    }
    setting = {**setting, "text_layers": args.text_layers, "same": args.same_captions}
    results.run(lambda: pixels(data), **task, method="pixels", rows=args.n_train)
    rows = [
        results.run(
            lambda s=seed: clip(args, s, data, templates),
            **task,
            method="clip",
            **setting,
            seed=seed,
        )
        for seed in args.seeds
    ]
    by = ["data", "split", "method"]
    for figure in ("recall_1_single", "recall_10_single", "accuracy_all"):
        summary(rows, by, figure)
    for figure in ("accuracy_all_single_mean", "accuracy_unseen", "chance"):
        if figure in rows[0]:
            summary(rows, by, figure)


if __name__ == "__main__":
    main()
