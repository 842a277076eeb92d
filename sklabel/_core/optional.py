"""Optional packages: one way to import them, one message if they are missing."""

from importlib import import_module


def import_optional(name, extra):
    """Import a package that sklabel does not require.

    Parameters
    ----------
    name : str
        Name of the module, such as ``"timm"``.
    extra : str
        The extra of sklabel that installs it, such as ``"backbones"``.

    Returns
    -------
    module : module

    Raises
    ------
    ImportError
        If the package is not installed. A package that is installed but fails to
        import something of its own raises its own error.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise ImportError(
            f"This needs the package {error.name!r}, which is not installed. Install "
            f'it with: pip install "sklabel[{extra}]"'
        ) from error
