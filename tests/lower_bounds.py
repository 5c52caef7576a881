"""Print every dependency of pyproject.toml at its lower bound, ``name==bound``, one a line.

torch is left out, since it is installed first, in the build that the machine wants.
"""

from __future__ import annotations

import re
from pathlib import Path

import tomllib

pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
extras = pyproject["project"]["optional-dependencies"]
requirements = [
    *pyproject["build-system"]["requires"],
    *pyproject["project"]["dependencies"],
    *extras["dataframe"],
    *extras["experiments"],
    *extras["formats"],
]
for requirement in requirements:
    name, bound, _ = re.fullmatch(r"([\w-]+)>=([\d.]+)(;.*)?", requirement).groups()
    if name != "torch":
        print(f"{name}=={bound}")
