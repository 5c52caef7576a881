"""Print ``version;directory`` of the torch to build against, without importing it.

An isolated pip build hides the target environment from ``sys.path`` but keeps its ``sys.prefix``, so the
environment's own site-packages are looked into next; uv and ``python -m build`` make an environment of their
own, so an activated virtual or conda environment is tried last.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent
    yield Path(sysconfig.get_path("purelib")) / "torch"
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if prefix := os.environ.get(variable):
            python = f"python{sys.version_info.major}.{sys.version_info.minor}"
            yield Path(prefix) / "lib" / python / "site-packages" / "torch"


for root in candidates():
    version_file = root / "version.py"
    if version_file.is_file():
        text = version_file.read_text(encoding="utf-8")
        version = re.search(r"^__version__ *= *'([^']*)'", text, re.MULTILINE)
        print(version.group(1) if version else "0", root, sep=";", end="")
        break
else:
    sys.exit(1)
