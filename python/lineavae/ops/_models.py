"""The leading dimensions over models, which operators take as one: (*models, ...) -> (M, ...)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def broadcast_models(op: str, shapes: Mapping[str, Sequence[int]]) -> torch.Size:
    """Broadcast the leading dimensions, over models, of all arguments."""
    first, *others = shapes.values()
    if all(shape == first for shape in others):  # broadcasting takes its time
        return torch.Size(first)
    try:
        return torch.Size(torch.broadcast_shapes(*shapes.values()))
    except RuntimeError:
        got = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"{op}: the leading dimensions over models must broadcast, got {got}") from None


def flatten_models(tensor: Tensor, models: torch.Size, num_core: int) -> Tensor:
    """(*models, *core) -> (M, *core), expanding what is shared."""
    if not models:
        return tensor.unsqueeze(0)
    core = tensor.shape[tensor.ndim - num_core :]
    return tensor.expand((*models, *core)).reshape((math.prod(models), *core))


def flatten_shared(tensor: Tensor, models: torch.Size, num_core: int) -> Tensor:
    """As `flatten_models`, but what all models share stays one: (1, *core)."""
    if tensor.ndim == num_core:
        return tensor.unsqueeze(0)
    own, core = tensor.shape[: tensor.ndim - num_core], tensor.shape[tensor.ndim - num_core :]
    return tensor.reshape((1, *core)) if math.prod(own) == 1 else flatten_models(tensor, models, num_core)


def sum_over_shared(gradient: Tensor, shared: bool) -> Tensor:
    """Sum the gradient of what all models share over the models."""
    return gradient.sum(0, keepdim=True) if shared and gradient.shape[0] != 1 else gradient
