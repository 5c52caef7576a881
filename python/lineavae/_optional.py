"""Optional libraries: imported where they are used, by one helper whose error names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import ``module`` or say which extra of lineavae brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.partition(".")[0]):
            raise
        raise ModuleNotFoundError(
            f"{module} is needed here and is not installed; "
            f"in lineavae's source folder: pip install '.[{extra}]'",
            name=error.name,
        ) from error
