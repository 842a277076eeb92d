"""Words of messages."""


def n_of(n, name):
    """Return a number with its noun: "1 image", "3 images", "2 classes"."""
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    return f"{n} {name if n == 1 else plural}"
