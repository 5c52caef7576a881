"""Which implementation of an operator runs, native or reference, and under which autocast."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

from lineavae import _ext
from lineavae._dynamo import assume_constant_result, tell_dynamo

_T = TypeVar("_T")


@assume_constant_result  # torch before 2.12 cannot trace it
def has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def without_autocast(function: Callable[..., _T], *args: Any) -> _T:
    """Call ``function`` of a tensor and more where autocast is off: the operators run in float32 there."""
    if not has_autocast(args[0].device.type):
        return function(*args)
    with torch.autocast(args[0].device.type, enabled=False):
        return function(*args)


@assume_constant_result
def has_native(op: str, device: torch.device) -> bool:
    """Whether the op has a native kernel on this device; where not, say once that the reference runs.

    Every operator asks this before it calls what Dynamo is not to trace.
    """
    tell_dynamo()
    if _ext.has_kernel(op, device.type):
        return True
    if device.type != "meta":  # where nothing is computed
        _warn_reference(op, device.type)
    return False


@cache
def _warn_reference(op: str, device_type: str) -> None:
    warnings.warn(
        f"lineavae: {op} has no native kernel for {device_type} in this build; its plain PyTorch reference "
        "runs instead. `python -m lineavae diagnose` tells why.",
        RuntimeWarning,
        stacklevel=4,
    )
