"""Checks of arguments: numbers, of which those of NumPy become Python's, and arrays that are not whole."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.masked import MaskedTensor

_MASKED = (np.ma.MaskedArray, MaskedTensor)


def check_integer(caller: str, name: str, value: int, minimum: int) -> int:
    """Give ``value`` as an ``int``, which must be at least ``minimum`` and fit in 64 bits, as torch's do."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{caller}: {name} must be an int, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{caller}: {name} must be at least {minimum}, got {value}")
    if value >= 2**63:
        raise ValueError(f"{caller}: {name} must be below 2**63, got {value}")
    return int(value)


def check_number(
    caller: str,
    name: str,
    value: float,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> float:
    """Give ``value`` as a ``float``, which must be finite and within the bounds."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{caller}: {name} must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # of an integer
        number = math.inf if value > 0 else -math.inf
    if not (above < number < below and at_least <= number <= at_most):
        bounds = ((">=", at_least), (">", above), ("<", below), ("<=", at_most))
        rules = [f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound)]
        if math.isinf(below) and math.isinf(at_most):
            rules.insert(0, "finite")
        raise ValueError(f"{caller}: {name} must be {' and '.join(rules)}, got {number}")
    return number


def check_real(caller: str, name: str, array: NDArray[Any] | Tensor) -> None:
    """Refuse complex and quantized tensors, and arrays of complex numbers, dates or objects."""
    if isinstance(array, Tensor):
        is_real = not (array.is_complex() or array.is_quantized)
    else:
        is_real = array.dtype.kind in "biuf"
    if not is_real:
        raise TypeError(f"{caller}: {name} must be real, got {array.dtype}")


def check_whole(caller: str, name: str, value: object) -> None:
    """Refuse an array with a mask, and a tensor of which not every element is stored as a number."""
    if isinstance(value, _MASKED):
        raise TypeError(
            f"{caller}: {name} must not be masked: leave out the rows with masked values or fill them, "
            f"got a {type(value).__name__}"
        )
    if not isinstance(value, Tensor):
        return
    if value.layout != torch.strided or value.is_nested:
        layout = "a nested one" if value.is_nested else str(value.layout)
        raise TypeError(f"{caller}: {name} must be a dense tensor, torch.strided, got {layout}")
