"""README.md as package indexes show it, a provider of metadata for scikit-build-core.

Beside an index's page there are no pictures, and not the files that README.md links to, which are named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def _name(link: re.Match[str]) -> str:
    text, target = link.groups()
    return text if text == target else f"{text} ({target})"


def dynamic_metadata(field: str, settings: Mapping[str, object]) -> dict[str, str]:
    text = README.read_text(encoding="utf-8")
    text = re.sub(r"^!\[[^]]*\]\((?!https:)[^)]*\)\n\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^]]*)\]\((?!https:)([^)]*)\)", _name, text)
    return {"content-type": "text/markdown", "text": text}
