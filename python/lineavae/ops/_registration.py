"""What every raw operator carries besides its kernels: a vmap rule and float32 autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_AUTOCAST_DEVICES = ("cpu", "cuda")


def register_rules(op: str, shared: tuple[int, ...] = ()) -> None:
    """Register vmap and autocast for ``torch.ops.lineavae.<op>``.

    Raw operators act independently along the first dimension of their tensors, over models or over the rows
    of all models, and vmap folds its own dimension into that one. The arguments at the positions ``shared``
    may have size 1 there; such a one that vmap does not batch stays as it is instead of being repeated. How
    many they would have otherwise says the last tensor that is none of them.
    """
    overload = getattr(torch.ops.lineavae, op).default

    def vmap_rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        batch = info.batch_size
        tensors = {i: _batch_first(arg, in_dims[i]) for i, arg in enumerate(args) if isinstance(arg, Tensor)}
        *_, models = (tensor.shape[1] for i, tensor in tensors.items() if i not in shared)
        folded = list(args)
        for i, tensor in tensors.items():
            is_shared = i in shared and tensor.shape[1] == 1
            if not (is_shared and in_dims[i] is None):
                size = models if is_shared else tensor.shape[1]
                folded[i] = tensor.expand(batch, size, *tensor.shape[2:]).flatten(0, 1)
        outputs = overload(*folded)
        if isinstance(outputs, Tensor):
            return _unfold(outputs, batch), 0
        return tuple(_unfold(output, batch) for output in outputs), (0,) * len(outputs)

    torch.library.register_vmap(f"lineavae::{op}", vmap_rule)
    for device in _AUTOCAST_DEVICES:
        torch.library.register_autocast(f"lineavae::{op}", device, torch.float32)


def _batch_first(tensor: Tensor, dim: int | None) -> Tensor:
    """Put vmap's dimension first, of size 1 where there is none."""
    return tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)


def _unfold(tensor: Tensor, batch: int) -> Tensor:
    return tensor.reshape((batch, tensor.shape[0] // batch, *tensor.shape[1:]))
