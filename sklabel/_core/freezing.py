"""Which parameters of a network are not trained: by its user, by a method."""


def lock_(module):
    """Freeze a module for a method, in place. `thaw_` undoes it.

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    module : nn.Module
        The same one.
    """
    for part in module.modules():
        own = dict(part.named_parameters(recurse=False))
        trained = tuple(name for name, weight in own.items() if weight.requires_grad)
        if trained:
            part.locked = (*getattr(part, "locked", ()), *trained)
    return module.requires_grad_(False)


def frozen_by_user(part):
    """Return which of a part's own parameters are frozen, except by `lock_`.

    Parameters
    ----------
    part : nn.Module

    Returns
    -------
    names : tuple of str
    """
    locked = getattr(part, "locked", ())
    return tuple(
        name
        for name, weight in part.named_parameters(recurse=False)
        if not weight.requires_grad and name not in locked
    )


def keep_frozen_(module):
    """Remember which parameters the user has frozen, for `thaw_`; thaw all others.

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    module : nn.Module
        The same one.
    """
    for part in module.modules():
        vars(part).pop("kept_frozen", None)
        names = frozen_by_user(part)
        if names:
            part.kept_frozen = names
    return thaw_(module)


def thaw_(module):
    """Unfreeze all parameters of a module, except those frozen by its user.

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    module : nn.Module
        The same one.
    """
    module.requires_grad_(True)
    for part in module.modules():
        vars(part).pop("locked", None)
        for name in getattr(part, "kept_frozen", ()):
            getattr(part, name).requires_grad_(False)
    return module


def keep_evaluating_(module):
    """Keep parts that their user has frozen completely in evaluation mode."""
    frozen = {
        id(getattr(part, name))
        for part in module.modules()
        for name in getattr(part, "kept_frozen", ())
    }
    if not frozen:
        return
    for part in module.modules():
        weights = [id(weight) for weight in part.parameters()]
        if weights and frozen.issuperset(weights):
            for inner in part.modules():
                inner.training = False  # eval() of an encoder would come back here
