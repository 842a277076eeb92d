"""Messages for programmers, translated into the words of the commands."""

import re

from .._core.wording import n_of

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
    """Return a message on one line, with options instead of parameters."""
    for said, meant in _IN_COMMANDS:
        message = re.sub(said, meant, message)
    return one_line(message)


# Control characters, which a terminal obeys, and those that turn the direction of what
# follows; not those between the parts of a letter
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown(text):
    """Return a text without control characters; lines are kept."""
    return _UNSHOWN.sub("\ufffd", text)


def one_line(text):
    """Return a text, such as the name of a file or a class, on one line."""
    return shown(" ".join(str(text).split()))


def counted(counts):
    """Return each name with its count: "cat 3, dog 5".

    A name that would run into a count, as "class 1" or "3,5" would, has quotes.
    """
    return ", ".join(f"{_apart(one_line(name))} {n}" for name, n in counts.items())


def _apart(name):
    unclear = name[-1:].isdigit() or "," in name or "'" in name
    return repr(name) if unclear else name


def duration(seconds):
    """Return an expected time."""
    minutes = seconds / 60
    if minutes < 1:
        return "less than a minute"
    if minutes < 90:
        return f"about {n_of(round(minutes), 'minute')}"
    return f"about {minutes / 60:.0f} hours"
