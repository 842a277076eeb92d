"""Trainings whose weights became too large: the error and its remedy."""

from .checks import check_finite


def check_outputs(net, outputs):
    """Raise an error if outputs of a net's module are not finite."""
    check_finite(
        outputs,
        "The weights became NaN or infinite (or too large to compute with) in step "
        f"{net.step_}: {calmer(net)}.",
    )


def calmer(net):
    """Return what to change after a training that diverged."""
    remedy = f"lower {net.rate or f'lr={net.lr}'}"
    if net.used_precision() == "float32":
        return remedy
    return f'{remedy}, or use precision="float32"'
