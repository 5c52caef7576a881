"""Standard normal noise for estimators that sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def standard_normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw noise of this shape, and of the dtype and device of ``like``."""
    if generator is None:  # a compiled graph of any size takes no generator, not even none
        return torch.randn(shape, dtype=like.dtype, device=like.device)
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
