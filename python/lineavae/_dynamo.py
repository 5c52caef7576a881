"""What Dynamo is told of functions, once it is loaded: to import it takes as long as to import torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_T = TypeVar("_T", bound=Callable[..., Any])

_untold: list[Callable[..., Any]] = []


def allow_in_graph(function: _T) -> _T:
    """Have Dynamo write calls into its graph and not trace them, as `torch.compiler.allow_in_graph` does.

    It is told by `tell_dynamo`, which a trace must have called before.
    """
    _untold.append(function)
    return function


def assume_constant_result(function: _T) -> _T:
    """Have Dynamo call the function while it traces, as `torch.compiler.assume_constant_result` does."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def tell_dynamo() -> None:
    """Tell Dynamo which functions it is not to trace."""
    while _untold and "torch._dynamo" in sys.modules:
        torch.compiler.allow_in_graph(_untold.pop())  # type: ignore[no-untyped-call]
