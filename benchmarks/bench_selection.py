"""What the choice is worth: every selector on the same embeddings, with the same seeds.

``--task probe``: classes among the chosen rows, their balance, and the accuracy of a
logistic regression on the embedding, fitted on the chosen rows alone, on the test
images. Selectors that need no label choose each budget anew. Those that do start from
the ten rows of "random" and add rows up to each budget in turn, with a logistic
regression as their classifier. ``--task fixmatch``: FixMatch trained from the encoder
of the embedding on 40 chosen labels. ``--task transfer``: the same on blood cells,
chosen by an embedding (CLD) that has only seen CIFAR-10; FixMatch starts from random
weights there.

``--task rounds``: a logistic regression on the embedding in the active-learning loop;
the first rows by ``--first``, then more by a selector up to each budget; accuracy on
the test images.

``--task why``: how far the rows that are asked after the first ones lie in crowded
places (0.5 as random rows, 1 in the densest), the share of their commonest class, how
many of them the probe knew already, and what it gains; the same if rows are requested
one by one, among a random tenth, or among the half in the denser places.

``--task loop``: contrastive clustering (CCL) in the active-learning loop, one per cent
of the rows chosen at random, then more by a selector; accuracy on the test images at
each budget. By default the loop chooses the first ones by USL, the others by BADGE.

The embedding is SimCLR's with a small network, from the training images without labels,
one for each seed. With ``--embed-seed`` it is one for all, and with ``--weights FILE``
that of a published mobilenet_v2; then each seed has four fifths of the rows, drawn at
random. ``--data`` may be a folder with photographs in ``train/CLASS/`` and
``test/CLASS/``, or an .npz file with vectors in the place of images. ``--vectors
FOLDER`` keeps embeddings. Rows that are in the results file are not run again, so a
broken run continues.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
from _common import Results, load, parse, shared, small_network, summary
from bench_classification import embedder, fixmatch
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from sklabel.active_learning import ActiveLearningClassifier
from sklabel.classification import CCLClassifier
from sklabel.embedding import (
    AutoencoderTransformer,
    CLDTransformer,
    PretrainedTransformer,
)
from sklabel.metrics import class_balance, class_coverage
from sklabel.selection import (
    BADGESelector,
    BALDSelector,
    CoreGCNSelector,
    CoreSetSelector,
    DFALSelector,
    LADASelector,
    LearningLossSelector,
    MaxHerdingSelector,
    MMASelector,
    RandomSelector,
    SRAALSelector,
    StratifiedSelector,
    TODSelector,
    TypiClustSelector,
    UHerdingSelector,
    UncertainGCNSelector,
    UncertaintySelector,
    USLSelector,
    USLTSelector,
    VAALSelector,
)


def probe():
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def committee():
    return [probe(), GaussianNB(), RandomForestClassifier(50, random_state=0)]


def short(Selector, **settings):
    """Return a selector that trains a network of its own, for a few hundred steps."""
    return Selector(max_steps=300, batch_size=64, **settings)


# each takes the embedding; StratifiedSelector sees all labels, so it is no method
FREE = {
    "random": RandomSelector,
    "stratified (all labels)": StratifiedSelector,
    "USL": USLSelector,
    "USL-T": lambda: USLTSelector(train_backbone=False),
    "core-set": CoreSetSelector,
    "TypiClust": TypiClustSelector,
    "MaxHerding": MaxHerdingSelector,
}
ASKING = {
    "entropy": lambda: UncertaintySelector("entropy", classifier=probe()),
    "margin": lambda: UncertaintySelector("margin", classifier=probe()),
    "BALD": lambda: BALDSelector(classifier=probe()),
    "committee": lambda: BALDSelector(committee=committee()),
    "committee, votes": lambda: BALDSelector(
        measure="vote_entropy", committee=committee()
    ),
    "DFAL": lambda: DFALSelector(classifier=probe()),
    "BADGE": lambda: BADGESelector(classifier=probe()),
    "UHerding": lambda: UHerdingSelector(classifier=probe()),
    "MMA": lambda: MMASelector(classifier=probe()),
    "VAAL": lambda: short(VAALSelector),
    "SRAAL": lambda: short(SRAALSelector, classifier=probe()),
    "LADA": lambda: LADASelector(warm_start=True),
    "learning loss": lambda: short(LearningLossSelector),
    "TOD": lambda: short(TODSelector, warm_start=True),
    "UncertainGCN": UncertainGCNSelector,
    "CoreGCN": CoreGCNSelector,
    "CoreGCN, with logit": lambda: CoreGCNSelector(features="hidden_and_logit"),
}


def choose(name, n_samples, seed, Z, y, known, memory):
    """Return all rows chosen up to a budget; ``known`` those of the budget before."""
    hidden = np.full(len(y), -1)
    if name in FREE:
        selector = FREE[name]()
        given = y if name.startswith("stratified") else None
        return selector.set_params(n_samples=n_samples, random_state=seed).fit_select(
            Z, given
        )
    if not len(known):
        return RandomSelector(n_samples, random_state=seed).fit_select(Z)
    hidden[known] = y[known]
    selector = memory.setdefault(name, ASKING[name]())
    selector.set_params(n_samples=n_samples - len(known), random_state=seed)
    return np.concatenate([known, selector.fit_select(Z, hidden)])


def embedded(args, seed, x, y, x_test):
    """Return vectors to choose from, their classes, and vectors of the test images."""
    shared_space = args.weights or args.embed_seed is not None
    Z, Z_test = vectors(args, args.embed_seed if shared_space else seed, x, x_test)
    if not shared_space:
        return Z, y, Z_test
    rows = np.random.default_rng(seed).permutation(len(x))[: len(x) * 4 // 5]
    return Z[rows], y[rows], Z_test


def vectors(args, seed, x, x_test):
    """Return the embedding of the training and of the test images; vectors stay."""
    if x.ndim == 2:
        return x, x_test
    name = "mobilenet_v2" if args.weights else f"simclr-{seed}-{args.embed_epochs}"
    path = f"{Path(args.data).name}-{name}-{len(x)}-{len(x_test)}.npz"
    path = Path(args.vectors) / path if args.vectors else None
    if path is not None and path.exists():
        with np.load(path) as file:
            return file["Z"], file["Z_test"]
    if args.weights:
        fitted = PretrainedTransformer(
            "mobilenet_v2", weights=args.weights, input_size=args.input_size
        ).fit(x)
    else:
        fitted = embedder(args, seed, x).fit(x)
    Z, Z_test = fitted.transform(x), fitted.transform(x_test)
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        np.savez(path, Z=Z, Z_test=Z_test)
    return Z, Z_test


def space(args, x):
    """Return what is noted of an embedding."""
    if x.ndim == 2:
        return {
            "space": "as given",
            "n_test": args.n_test,
            "embed_seed": args.embed_seed,
        }
    trained = {"space": None, "width": args.width, "embed_epochs": args.embed_epochs}
    made = {"space": "mobilenet_v2"} if args.weights else trained
    return {**made, "n_test": args.n_test, "embed_seed": args.embed_seed}


def photographs(folder):
    """Return paths and classes of train/CLASS/ and test/CLASS/."""
    parts = []
    for part in ("train", "test"):
        files = sorted(Path(folder, part).glob("*/*"))
        names = [file.parent.name for file in files]
        parts += [
            np.array(list(map(str, files))),
            np.unique(names, return_inverse=True)[1],
        ]
    return tuple(parts)


def figures_of(rows, y, n_classes):
    return {
        "coverage": class_coverage(y[rows], np.arange(n_classes)),
        "balance": class_balance(y[rows], np.arange(n_classes)),
    }


def run_probe(args, results, data):
    x, y, x_test, y_test = data
    rows_of_results, n_classes = [], len(np.unique(y))
    names = [*FREE, *ASKING] if args.method is None else args.method
    for seed in args.seeds:
        Z = target = Z_test = None
        for name in names:
            known, memory = np.empty(0, np.int64), {}
            for n_labels in args.n_labels:
                key = {
                    "task": "probe",
                    "data": Path(args.data).name,
                    "n_train": len(x),
                    **space(args, x),
                    "n_labels": n_labels,
                    "method": name,
                    "seed": seed,
                }
                done = results.find(**key)
                if done is None and Z is None:
                    Z, target, Z_test = embedded(args, seed, x, y, x_test)

                def run(name=name, n_labels=n_labels, known=known, memory=memory):
                    rows = choose(name, n_labels, seed, Z, target, known, memory)
                    found = target[rows]
                    if len(np.unique(found)) == 1:
                        accuracy = float((y_test == found[0]).mean())
                    else:
                        accuracy = probe().fit(Z[rows], found).score(Z_test, y_test)
                    figures = figures_of(rows, target, n_classes)
                    return {"accuracy": accuracy, "rows": rows.tolist(), **figures}

                row = results.run(run, **key)
                known = np.array(row["rows"])
                rows_of_results.append(row)
    for figure in ("coverage", "balance", "accuracy"):
        summary(rows_of_results, ["data", "n_labels", "method"], figure)


def run_fixmatch(args, results, data):
    x, y, x_test, y_test = data
    rows_of_results, n_classes = [], len(np.unique(y))
    names = [*FREE] if args.method is None else args.method
    for seed in args.seeds:
        fitted = Z = None
        for name in names:
            key = {
                "task": args.task,
                "data": args.data,
                "n_train": len(x),
                "width": args.width,
                "embed_epochs": args.embed_epochs,
                "steps": args.steps,
                "n_labels": args.n_labels[0],
                "method": name,
                "seed": seed,
            }
            if results.find(**key) is None and Z is None:
                if args.task == "transfer":
                    fitted, source = None, load("cifar10")[0][: args.n_source]
                    source = source[:, 2:-2, 2:-2]  # 28 x 28, as the cells
                    choosing = cld(args, seed, source).fit(source)
                else:
                    choosing = fitted = embedder(args, seed, x).fit(x)
                Z = choosing.transform(x)

            def run(name=name, fitted=fitted, Z=Z, seed=seed):
                rows = choose(name, args.n_labels[0], seed, Z, y, (), {})
                hidden = np.full(len(y), -1)
                hidden[rows] = y[rows]
                start = fitted
                if start is None:
                    start = small_network(x, args.width, seed)
                p = fixmatch(args, seed, start, x, hidden, x_test)
                classes = np.unique(y[rows])  # those without a label it cannot know
                accuracy = float((classes[p.argmax(1)] == y_test).mean())
                return {"accuracy": accuracy, **figures_of(rows, y, n_classes)}

            rows_of_results.append(results.run(run, **key))
    for figure in ("coverage", "accuracy"):
        summary(rows_of_results, ["task", "data", "method"], figure)


def round_selectors():
    return {
        "random": RandomSelector(),
        "entropy": UncertaintySelector("entropy"),
        "margin": UncertaintySelector("margin"),
        "BALD": BALDSelector(),
        "BADGE": BADGESelector(),
        "UHerding": UHerdingSelector(),
        "UHerding, published radius": UHerdingSelector(sigma="least"),
        "UHerding, T = 1": UHerdingSelector(temperature=1.0),
        "USL": USLSelector(),
        "core-set": CoreSetSelector(),
        "TypiClust": TypiClustSelector(),
        "MaxHerding": MaxHerdingSelector(),
    }


def run_rounds(args, results, data):
    x, y, x_test, y_test = data
    rows_of_results, budgets = [], args.n_labels
    for seed in args.seeds:
        Z = target = Z_test = None
        for name, selector in round_selectors().items():
            if args.method is not None and name not in args.method:
                continue
            key = {
                "task": "rounds",
                "data": Path(args.data).name,
                "n_train": len(x),
                **space(args, x),
                "first": args.first,
                "budgets": budgets,
                "method": name,
                "seed": seed,
            }
            if results.find(**key) is None and Z is None:
                Z, target, Z_test = embedded(args, seed, x, y, x_test)

            def run(selector=selector, seed=seed, Z=Z, target=target, Z_test=Z_test):
                loop = ActiveLearningClassifier(
                    probe(), selector, FREE[args.first](), random_state=seed
                ).begin(Z)
                found, known = {}, 0
                for n_labels in budgets:
                    asked = loop.set_params(n_samples=n_labels - known).query()
                    loop.teach(asked, target[asked])
                    known = n_labels
                    found[f"accuracy_{n_labels}"] = loop.score(Z_test, y_test)
                return found

            rows_of_results.append(results.run(run, **key))
    for n_labels in budgets:
        summary(rows_of_results, ["data", "method"], f"accuracy_{n_labels}")


WHY = [
    *("random", "entropy", "entropy, in turn", "entropy, random tenth"),
    *("entropy, denser half", "BALD", "BALD, in turn", "BALD, denser half"),
    *("margin", "BADGE", "UHerding", "MaxHerding"),
]


def crowding(Z, n_neighbors=20):
    """Return of each row the share of the rows that lie in a sparser place."""
    Z = normalize(Z)
    distances = (
        NearestNeighbors(n_neighbors=n_neighbors + 1).fit(Z).kneighbors(Z)[0][:, -1]
    )
    return np.argsort(np.argsort(-distances)) / len(Z)


def ask(name, n_samples, seed, Z, y, known, crowded):
    """Return rows to ask: at once, one by one, or among some of the rows."""
    base, _, way = name.partition(", ")
    if way == "in turn":
        for _ in range(n_samples):
            known = np.r_[known, ask(base, 1, seed, Z, y, known, crowded)]
        return known[-n_samples:]
    pool = np.ones(len(y), bool)
    if way == "random tenth":
        pool = np.random.default_rng(seed).random(len(y)) < 0.1
    elif way == "denser half":
        pool = crowded >= 0.5
    pool[known] = True
    hidden = np.full(len(y), -1)
    hidden[known] = y[known]
    selector = {**FREE, **ASKING}[base]()
    selector.set_params(n_samples=n_samples, random_state=seed)
    return np.flatnonzero(pool)[selector.fit_select(Z[pool], hidden[pool])]


def run_why(args, results, data):
    x, y, x_test, y_test = data
    rows_of_results, (n_first, n_labels) = [], args.n_labels
    for seed in args.seeds:
        known = None
        for name in args.method or WHY:
            key = {
                "task": "why",
                "data": Path(args.data).name,
                "n_train": len(x),
                **space(args, x),
                "first": args.first,
                "budgets": args.n_labels,
                "method": name,
                "seed": seed,
            }
            if results.find(**key) is None and known is None:
                Z, target, Z_test = embedded(args, seed, x, y, x_test)
                known = choose(args.first, n_first, seed, Z, target, (), {})
                right = probe().fit(Z[known], target[known]).predict(Z) == target
                crowded = crowding(Z)

            def run(name=name, seed=seed):
                n_more = n_labels - n_first
                rows = ask(name, n_more, seed, Z, target, known, crowded)
                seen = np.r_[known, rows]
                return {
                    "accuracy": probe()
                    .fit(Z[seen], target[seen])
                    .score(Z_test, y_test),
                    "crowding": float(crowded[rows].mean()),
                    "commonest": float(np.bincount(target[rows]).max() / n_more),
                    "right_before": float(right[rows].mean()),
                }

            rows_of_results.append(results.run(run, **key))
    for figure in ("accuracy", "crowding", "commonest", "right_before"):
        summary(rows_of_results, ["data", "method"], figure)


def loop_selectors():
    return {
        "random": RandomSelector(),
        "entropy": UncertaintySelector("entropy"),
        "BALD": BALDSelector(),
        "VAAL": short(VAALSelector),
        "core-set": CoreSetSelector(),
        "BADGE": BADGESelector(),
        "default of the loop": None,
    }


def run_loop(args, results, data):
    x, y, x_test, y_test = data
    rows_of_results = []
    for seed in args.seeds:
        codes = None
        for name, selector in loop_selectors().items():
            if args.method is not None and name not in args.method:
                continue
            key = {
                "task": "loop",
                "data": args.data,
                "n_train": len(x),
                "code_epochs": args.code_epochs,
                "steps": args.steps,
                "method": name,
                "seed": seed,
            }
            if results.find(**key) is None and codes is None:
                codes = AutoencoderTransformer(
                    10,
                    max_epochs=args.code_epochs,
                    **shared(args, seed),
                ).fit(x)

            def run(selector=selector, codes=codes, seed=seed):
                held = FrozenEstimator(codes)
                loop = ActiveLearningClassifier(
                    CCLClassifier(embedder=held, max_steps=args.steps),
                    selector,
                    None if selector is None else RandomSelector(),
                    embedder=held,
                    random_state=seed,
                ).begin(x)
                found, known = {}, 0
                for share in (0.01, 0.03, 0.05, 0.1):
                    n_labels = round(share * len(x))
                    rows = loop.set_params(n_samples=n_labels - known).query()
                    loop.teach(rows, y[rows])
                    known = n_labels
                    found[f"accuracy_{share:.0%}"] = loop.score(x_test, y_test)
                return found

            rows_of_results.append(results.run(run, **key))
    for share in ("1%", "3%", "5%", "10%"):
        summary(rows_of_results, ["data", "method"], f"accuracy_{share}")


def cld(args, seed, x):
    return CLDTransformer(
        backbone=small_network(x, args.width, seed),
        max_epochs=args.embed_epochs,
        output="projection",
        **shared(args, seed),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--task",
        choices=["probe", "fixmatch", "transfer", "rounds", "why", "loop"],
        default="probe",
    )
    parser.add_argument("--data", default="mnist", help="a name of fetch_*, or .npz")
    names = {**FREE, **ASKING, **round_selectors(), **loop_selectors()}
    names |= dict.fromkeys(WHY)
    parser.add_argument("--method", nargs="+", choices=[*names])
    parser.add_argument("--first", choices=[*FREE], default="USL", help="of the loop")
    parser.add_argument("--weights", help="of mobilenet_v2")
    parser.add_argument("--input-size", type=int, help="of mobilenet_v2")
    parser.add_argument("--vectors", help="folder of embeddings")
    parser.add_argument("--n-labels", type=int, nargs="+", help="ascending")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--n-train", type=int, default=5000, help="first rows")
    parser.add_argument("--n-test", type=int, help="first rows of the test images")
    parser.add_argument("--n-source", type=int, default=10_000, help="of CIFAR-10")
    parser.add_argument("--width", type=int, default=16, help="of the first layer")
    parser.add_argument("--embed-epochs", type=int, default=40)
    parser.add_argument("--embed-seed", type=int, help="one embedding for all seeds")
    parser.add_argument("--code-epochs", type=int, default=60, help="of CCL's codes")
    parser.add_argument("--steps", type=int, default=500, help="of FixMatch, CCL")
    parser.add_argument("--batch-size", type=int, default=16, help="of FixMatch")
    args = parse(parser)
    warnings.simplefilter("ignore", ConvergenceWarning)

    if args.task == "transfer":
        args.data = "bloodmnist"
    if args.n_labels is None:
        many = args.task in ("probe", "rounds")
        args.n_labels = [10, 20, 40, 100, 250] if many else [40]
        if args.task == "why":
            args.n_labels = [20, 40]
    read = photographs if Path(args.data).is_dir() else load
    x, y, x_test, y_test = read(args.data)
    x_test, y_test = x_test[: args.n_test], y_test[: args.n_test]
    data = x[: args.n_train], y[: args.n_train], x_test, y_test
    results = Results("selection")
    tasks = {"probe": run_probe, "rounds": run_rounds, "why": run_why}
    run = {**tasks, "loop": run_loop}.get(args.task, run_fixmatch)
    run(args, results, data)


if __name__ == "__main__":
    main()
