"""log σ² of a likelihood: one for all, or one for each model, sample, feature or element."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lineavae.ops._models import flatten_shared
from lineavae.ops._tensors import broadcasts


def check_noise(op: str, log_sigma2: Tensor, x: Tensor) -> None:
    """Check that ``log_sigma2`` broadcasts to the samples and features of ``x`` (*models, N, D)."""
    sizes = x.shape[-2:]
    if not broadcasts(log_sigma2.shape[-2:], sizes):
        raise ValueError(
            f"{op}: log_sigma2 must have shape (), (D,), (N, 1) or (N, D) with N={sizes[0]}, D={sizes[1]}, "
            f"or models before these, got {tuple(log_sigma2.shape)}"
        )


def flatten_noise_event(op: str, log_sigma2: Tensor, event: Sequence[int]) -> Tensor:
    """Make one dimension, 1 or D, of those that broadcast to an event of several."""
    given = log_sigma2.shape[-len(event) :]
    if not broadcasts(given, event):
        raise ValueError(
            f"{op}: log_sigma2 must broadcast to the event {tuple(event)}, with samples and models before "
            f"it, got {tuple(log_sigma2.shape)}"
        )
    before = log_sigma2.shape[: -len(event)]
    one = all(size == 1 for size in given)
    return log_sigma2.reshape(*before, 1) if one else log_sigma2.expand(*before, *event).flatten(-len(event))


def flatten_noise(log_sigma2: Tensor, models: torch.Size) -> Tensor:
    """Flatten what broadcasts to (*models, N, D) -> (M or 1, N or 1, D or 1)."""
    if log_sigma2.ndim <= 2:
        return log_sigma2.reshape((1,) * (3 - log_sigma2.ndim) + log_sigma2.shape)
    return flatten_shared(log_sigma2, models, 2)
