"""The code of docs/theory.md runs and prints what it says, and what the page names exists."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from types import ModuleType

import pytest

from lineavae import collapse, linear, nn, ops
from lineavae.experiments import EXPERIMENTS, theorem_1

PAGE = Path(__file__).parents[2] / "docs" / "theory.md"
TEXT = PAGE.read_text(encoding="utf-8")
PROSE = re.sub(r"```python\n.*?```", "", TEXT, flags=re.DOTALL)
MODULES: tuple[ModuleType, ...] = (linear, ops, nn, collapse, theorem_1)

# arguments and attributes that the page names beside the functions
PARAMETERS = {"weight", "encoder", "mu", "log_d", "log_sigma2"}


def resolves(name: str) -> bool:
    """Whether a dotted name is one of the public modules', or begins with ``lineavae``."""
    first, *rest = name.split(".")
    owners = [getattr(module, first) for module in MODULES if hasattr(module, first)]
    if first == "lineavae":
        owners = [__import__("lineavae")]
    for attribute in rest:
        owners = [getattr(owner, attribute) for owner in owners if hasattr(owner, attribute)]
    return bool(owners)


def test_code_prints_what_it_says() -> None:
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) > 10
    for block in blocks:
        expected = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert expected
        assert len(expected) == block.count("print(")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, str(PAGE), "exec"), namespace)
        assert printed.getvalue().splitlines() == expected


def test_names_exist() -> None:
    quoted = set(re.findall(r"`([^`\n]+)`", PROSE))
    names = {re.sub(r"\(.*\)$", "", name) for name in quoted if not name.startswith("lineavae ")}
    missing = sorted(name for name in names - PARAMETERS - {"nn.Linear"} if not resolves(name))
    assert not missing
    commands = {name.split()[2] for name in quoted if name.startswith("lineavae reproduce")}
    assert commands
    assert commands <= EXPERIMENTS.keys()


def test_every_equation_is_in_the_table_once() -> None:
    rows = re.findall(r"^\| (\d[^|]*) \|", TEXT.partition("## Every equation")[2], re.MULTILINE)
    found: list[int] = []
    for row in rows:
        numbers = re.split(r", (?=[A-Z])", row)[0]  # without the theorems
        for first, last in re.findall(r"(\d+)(?: to (\d+))?", numbers):
            found += range(int(first), int(last or first) + 1)
    assert sorted(found) == list(range(1, 34))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_links_lead_somewhere(target: str) -> None:
    if target.startswith("#"):
        headings = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert target[1:] in anchors
    else:
        assert (PAGE.parent / target).exists()
