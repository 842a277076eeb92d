"""The methods of `fit`."""

import sklabel

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
    """Set ``args.method`` where it is not given; refuse steps of what has none."""
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
        "max_steps": args.steps or 400,
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
