"""What the package says to programmers, in the words of the commands."""

import re

_IN_COMMANDS = [
    (
        r"Use\s+EmbeddingClassifier, train_backbone=False, or a smaller lr",
        "Use --method embedding",
    ),
    (
        r"Train longer, lower the\s+threshold, or start from a fitted embedder "
        r"\(backbone=\)",
        "Train longer (--steps), or label more images",
    ),
    (
        r"lower lr=\S+ or temperature=[^\s.]+(\.\d+)?",
        "try another --seed, or fewer --epochs",
    ),
    (
        r'lower\s+lr=\S+,? or use precision="float32"',
        "try another --seed, or another --device",
    ),
    (
        r'pass on_error="skip" to leave such files out',
        "leave it out with --skip-broken",
    ),
    (r'give its path: weights="[^"]*"', "give its path: --weights FILE"),
    (r"leave input_size=None", "leave --image-size out"),
    (r"\binput_size=", "--image-size "),
    (r"\bbackbone=", "--embedder "),
    (r"\bweights=", "--weights "),
]


def in_commands(message):
    """Return a message on one line, with options in place of parameters."""
    for said, meant in _IN_COMMANDS:
        message = re.sub(said, meant, message)
    # a file's name may hold anything, a line break too
    return " ".join(message.split())


def duration(seconds):
    """Return an expected time."""
    minutes = seconds / 60
    if minutes < 1:
        return "less than a minute"
    if minutes < 90:
        return f"about {minutes:.0f} minute{'s' * (round(minutes) > 1)}"
    return f"about {minutes / 60:.0f} hours"
