"""Fail unless the package, with its native module, comes from the folder given."""

import sys
from pathlib import Path

import lineavae.ops

print(lineavae.diagnose())
found = Path(lineavae.__path__[0]).resolve()
if found.parent != Path(sys.argv[1]).resolve():
    sys.exit(f"lineavae is imported from {found}: uninstall it there, or name another Python in PYTHON")
