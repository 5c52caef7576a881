"""docs/reliability.md: every test that it names exists."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def functions_of(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text())
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) > 25
    assert {(path, name) for path, name in named if name not in functions_of(TESTS / path)} == set()
    assert PAGE.read_text().count("::") == len(named)  # none that this does not read


def test_every_row_names_a_test():
    rows = [
        line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "| test |" not in line
    ]
    assert [row for row in rows if "::" not in row] == []
