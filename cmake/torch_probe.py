"""Print ``version;directory;CUDA`` of the torch to build against, without importing it.

An isolated pip build hides by PYTHONPATH and PYTHONNOUSERSITE what the environment's own Python imports:
it is asked again without these. uv and ``python -m build`` make an environment of their own, and uv calls it
the activated one. So those are asked last that may be meant: the activated environment, the ``.venv`` of the
folder that uv was called in, and the Pythons of the PATH, where that of an activated environment still is.
Another environment's torch does as well: what is used of it is the stable ABI.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

WHERE = "import importlib.util as u; spec = u.find_spec('torch'); print(spec.origin if spec else '')"
HIDING = ("PYTHONPATH", "PYTHONNOUSERSITE")


def interpreters() -> Iterator[tuple[str, dict[str, str]]]:
    yield sys.executable, dict(os.environ)
    bare = {name: value for name, value in os.environ.items() if name not in HIDING}
    yield sys.executable, bare
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if prefix := os.environ.get(variable):
            yield str(Path(prefix) / "bin" / "python"), bare
    yield str(Path(os.environ.get("PWD", "")) / ".venv" / "bin" / "python"), bare
    for folder in os.get_exec_path():
        yield str(Path(folder) / "python"), bare


for python, environment in interpreters():
    try:
        found = subprocess.run([python, "-c", WHERE], env=environment, capture_output=True, text=True)
    except OSError:
        continue
    root = Path(found.stdout.strip()).parent
    version_file = root / "version.py"
    if found.stdout.strip() and version_file.is_file():
        text = version_file.read_text(encoding="utf-8")
        version = re.search(r"^__version__ *= *'([^']*)'", text, re.MULTILINE)
        cuda = re.search(r"^cuda\b.*= *'([^']*)'", text, re.MULTILINE)
        print(version[1] if version else "0", root, cuda[1] if cuda else "none", sep=";", end="")
        break
else:
    sys.exit(1)
