"""The hybrid: an embedding that came with words, USL's choice, then few labels.

CLIP is trained from random weights on captions of CIFAR-10 without deer and trucks, as
in bench_clip.py. The images to label are the last training images, which it has not
seen, of all ten classes. A selector chooses some in CLIP's space; a linear head, a
linear head that starts from the names of the classes, or FixMatch from CLIP's image
tower learns from their labels. Accuracy on the test images. Rows that are in the
results file are not run again.
"""

import argparse

import numpy as np
from _common import Results, load, parse, shared, summary
from bench_clip import CIFAR, NAMES, captions, cifar, fitted
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklabel.classification import CLIPClassifier, FixMatchClassifier
from sklabel.selection import RandomSelector, USLSelector

SELECTORS = {"random": RandomSelector, "USL": USLSelector}


def zero_shot(embedder):
    return CLIPClassifier(NAMES, prompts=CIFAR, embedder=embedder)


def linear(args, seed, embedder):
    head = LogisticRegression(max_iter=1000)
    return make_pipeline(FrozenEstimator(embedder), StandardScaler(), head)


def linear_from_words(args, seed, embedder):
    return CLIPClassifier(
        NAMES,
        prompts=CIFAR,
        few_shot="linear",
        embedder=embedder,
        random_state=seed,
    )


def fixmatch(args, seed, embedder):
    return FixMatchClassifier(
        backbone=embedder,
        max_steps=args.fixmatch_steps,
        lr=args.fixmatch_lr,
        batch_size=16,
        **shared(args, seed),
    )


CLASSIFIERS = {
    "linear head": linear,
    "linear head from words": linear_from_words,
    "FixMatch": fixmatch,
}


def choose(selector, n_labels, seed, embedder, x):
    """Return the chosen rows: one pipeline from images to choice."""
    chosen = selector(n_labels, random_state=seed)
    return make_pipeline(FrozenEstimator(embedder), chosen).fit(x)[-1].sample_indices_


def accuracy(model, x, names, x_test, y_test, rows):
    y = np.full(len(x), -1, dtype=object)
    y[rows] = names[rows]
    if hasattr(model, "steps"):  # scikit-learn's take labeled rows alone
        x, y = x[rows], y[rows].astype(str)
    return float(np.mean(model.fit(x, y).predict(x_test) == y_test))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-labels", type=int, nargs="+", default=[20, 40, 100])
    parser.add_argument("--n-pool", type=int, default=5000, help="images to label")
    parser.add_argument("--fixmatch-steps", type=int, default=500)
    parser.add_argument("--fixmatch-lr", type=float, default=0.03)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-train", type=int, default=20_000, help="of CLIP")
    parser.add_argument("--steps", type=int, default=1500, help="of CLIP")
    parser.add_argument("--batch-size", type=int, default=256, help="of CLIP")
    parser.add_argument("--lr", type=float, default=1e-3, help="of CLIP")
    parser.add_argument("--size", type=int, default=128, help="of an embedding")
    parser.add_argument("--width", type=int, default=32, help="of the image tower")
    parser.add_argument("--text-width", type=int, default=128)
    parser.add_argument("--text-layers", type=int, default=3)
    parser.add_argument("--same-captions", default="positives")
    parser.add_argument("--held-out", nargs="+", default=["deer", "truck"])
    args = parse(parser)

    x_clip, words, x_test, y_test, _ = cifar(args)
    x, y = (part[-args.n_pool :] for part in load("cifar10")[:2])
    names = np.array(NAMES)[y]
    results, rows = Results("hybrid"), []
    towers = "n_train steps batch_size lr size width text_width text_layers".split()
    pool = {"n_pool": args.n_pool, "held_out": "+".join(sorted(args.held_out))}
    pool |= {name: getattr(args, name) for name in towers}
    for seed in args.seeds:
        embedder = fitted(args, seed, x_clip, captions(words, CIFAR))
        key = {**pool, "same": args.same_captions, "seed": seed}
        setting = {"selector": "none", "n_labels": 0, "classifier": "zero-shot"}

        def ask(embedder=embedder):
            found = zero_shot(embedder).predict(x_test)
            return {"accuracy": float(np.mean(found == y_test))}

        rows.append(results.run(ask, **setting, **key))
        for name, selector in SELECTORS.items():
            for n_labels in args.n_labels:
                chosen = choose(selector, n_labels, seed, embedder, x)
                for kind, build in CLASSIFIERS.items():

                    def run(build=build, chosen=chosen, seed=seed, embedder=embedder):
                        model = build(args, seed, embedder)
                        found = accuracy(model, x, names, x_test, y_test, chosen)
                        n_classes = len(np.unique(names[chosen]))
                        return {"accuracy": found, "classes": n_classes}

                    setting = {"selector": name, "n_labels": n_labels}
                    setting["classifier"] = kind
                    if kind == "FixMatch":
                        setting["fixmatch_steps"] = args.fixmatch_steps
                        setting["fixmatch_lr"] = args.fixmatch_lr
                    rows.append(results.run(run, **setting, **key))
    summary(rows, ["classifier", "selector", "n_labels"], "accuracy")


if __name__ == "__main__":
    main()
