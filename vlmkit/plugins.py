"""`package.module:Class`: how a stranger's class takes the place of a name in a table."""

from __future__ import annotations

import importlib
from typing import TypeVar

from vlmkit.errors import UsageError

T = TypeVar("T")


def load_class(path: str, base: type[T]) -> type[T]:
    """Import `package.module:Class` and check that it is a subclass of `base`.

    Raises:
        UsageError: The module or the class does not exist, or it is something else.
    """
    module_name, _, class_name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UsageError(f"{path!r} cannot be imported ({error}); write package.module:Class") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UsageError(f"{path!r} is not a subclass of {base.__module__}.{base.__name__}")
    return found
