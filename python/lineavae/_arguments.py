"""Checks of numbers among the arguments: those of NumPy count as well, and become Python's."""

from __future__ import annotations

import math
from numbers import Integral, Real


def check_integer(caller: str, name: str, value: int, minimum: int) -> int:
    """Give ``value`` as an ``int``, which must be at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{caller}: {name} must be an int, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{caller}: {name} must be at least {minimum}, got {value}")
    return int(value)


def check_number(caller: str, name: str, value: float) -> float:
    """Give ``value`` as a ``float``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{caller}: {name} must be a number, got {type(value).__name__}")
    return float(value)


def check_weight(caller: str, name: str, value: float) -> float:
    """Give ``value`` as a ``float``, which must be finite and not negative."""
    number = check_number(caller, name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{caller}: {name} must be finite and >= 0, got {value}")
    return number
