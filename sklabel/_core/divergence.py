"""Trainings whose weights became too large: the error and its remedy."""

import math

from .checks import check_finite


def check_outputs(net, outputs):
    """Raise an error if outputs of a net's module are not finite."""
    check_finite(
        outputs,
        "The weights became NaN or infinite (or too large to compute with) in step "
        f"{net.step_}: {calmer(net)}.",
    )


def check_loss(net, loss):
    """Raise an error if the mean loss of an epoch is not finite."""
    if math.isfinite(loss):
        return
    first = getattr(net, "first_loss_", None)  # None: it continues
    if first is not None and not math.isfinite(float(first)):
        large = ""
        if net.pixel_range is None:  # vectors
            large = (
                "values of X are too large (scale them, as StandardScaler does), or "
            )
        raise ValueError(
            f"The loss is {loss} from the first step on, before a weight has changed: "
            f"{large}the output of the backbone or of augment is not finite. Let it "
            f"return finite numbers{_or_float32(net)}."
        )
    raise ValueError(
        f"The loss became {loss} in epoch {len(net.history)}: {calmer(net)}."
    )


def calmer(net):
    """Return what to change after a training that diverged."""
    return f"lower {net.rate or f'lr={net.lr}'}{_or_float32(net)}"


def _or_float32(net):
    """Return the other remedy of a net that computes with less precision, or ""."""
    is_precise = net.used_precision() == "float32"
    return "" if is_precise else ', or use precision="float32"'
