"""Classes of modules that only some bots load."""

import sys


def is_of_loaded_class(subject: object, module: str, name: str) -> bool:
    """Return whether an object is of a class, without importing the class's module."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(subject, getattr(loaded, name))
