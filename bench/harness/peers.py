"""Packages that do what some of ours does. Each is optional; bench/peers.txt pins them."""

from __future__ import annotations

import importlib.util

MISSING: set[str] = set()


def has(module: str) -> bool:
    """Say whether a module is there; what is missing is named at the end of the run."""
    found = importlib.util.find_spec(module) is not None
    if not found:
        MISSING.add(module)
    return found
