"""The methods of `fit`."""

import argparse

import sklabel

from . import inputs, models, words

_N_STEPS = 400
_FEW = 64  # rows in a trial
_ON_VECTORS = "embedding"
_TRAINING = {
    "fixmatch": "FixMatchClassifier",
    "mixmatch": "MixMatchClassifier",
    "remixmatch": "ReMixMatchClassifier",
    "noisy-student": "NoisyStudentClassifier",
    "simclrv2": "SimCLRv2Classifier",
    "supervised": "SupervisedClassifier",
}
NAMES = (_ON_VECTORS, *_TRAINING)


def check(args):
    """Set ``args.method`` if it is not given; check that the method has steps."""
    if args.method is None:
        args.method = _ON_VECTORS if args.steps is None else "fixmatch"
    if args.steps is not None and not trains(args):
        raise ValueError(
            f"--steps is for methods that train, and --method {args.method} trains no "
            "network: leave one of them out."
        )


def trains(args):
    """Return whether the method trains the encoder."""
    return args.method != _ON_VECTORS


def announce(embedder, X, y, args):
    """Print the expected time of training, measured in a few steps on some rows."""
    import numpy as np

    n_steps = args.steps or _N_STEPS
    if args.quiet or not trains(args) or n_steps < models.LONG:
        return
    labeled = np.flatnonzero(y != -1)
    some = np.union1d(labeled[:_FEW], np.flatnonzero(y == -1)[:_FEW])
    some = np.union1d(some, [np.flatnonzero(y == c)[0] for c in set(y[labeled])])

    def train(n):
        of_trial = {"steps": n, "checkpoint": None, "quiet": True}
        trial = make(embedder, argparse.Namespace(**vars(args) | of_trial))
        return trial.fit(X[some], y[some])

    seconds = models.time_of_a_step(train) * n_steps
    inputs.say(f"{args.method}: {n_steps} steps, {words.duration(seconds)}.")


def make(embedder, args):
    """Return the classifier for a fitted embedder."""
    from sklearn.frozen import FrozenEstimator

    if not trains(args):
        return sklabel.classification.EmbeddingClassifier(
            FrozenEstimator(embedder), device=args.device, random_state=args.seed
        )
    method = getattr(sklabel.classification, _TRAINING[args.method])
    known = method().get_params(deep=False)
    given = {
        "max_steps": args.steps or _N_STEPS,
        "batch_size": 16,
        "checkpoint_dir": args.checkpoint,
        "device": args.device,
        "random_state": args.seed,
        "verbose": int(not args.quiet),
    }
    views = "weak_augment" if "weak_augment" in known else "augment"
    given[views] = sklabel.augment.Weak(flip=0) if args.no_flip else "auto"
    if "embedder" in known:  # pretrained, then fine-tuned
        given["embedder"] = FrozenEstimator(embedder)
        has_head = isinstance(embedder, sklabel.embedding.SimCLRTransformer)
        given["head_layer"] = int(has_head)
    else:
        given["backbone"] = embedder
    return method(**given)
