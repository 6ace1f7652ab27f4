"""Imports packages that only some sources need."""

import importlib
from types import ModuleType


def import_optional(module: str, extra: str, user: str) -> ModuleType:
    """Return a module of an optional package.

    Args:
        module: its name.
        extra: the extra of fastclr that installs it.
        user: what needs it, for the error.

    Raises:
        ValueError: it is not installed; the error says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ValueError(f"{user} needs {package} ({error}): pip install 'fastclr[{extra}]'") from error
