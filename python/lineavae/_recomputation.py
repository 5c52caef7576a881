"""Gradient checkpointing runs a forward twice; what changes state there must not count the second time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def recomputes() -> bool:
    """Whether this forward runs within a backward, where ``torch.utils.checkpoint`` repeats it.

    Without reentrance the first pass records its graph and is outside, with reentrance it runs under
    ``no_grad`` and is outside as well.
    """
    return torch._C._current_graph_task_id() != -1


def recomputes_on_device(like: Tensor) -> Tensor:
    """Give `recomputes` as a tensor (), on the device of ``like``; in a compiled graph too."""
    # an operator, since what compiled code asks of Python is answered once, when it is compiled
    return torch.ops.lineavae.recomputes(like) if torch.compiler.is_compiling() else _recomputes(like)


def _recomputes(like: Tensor) -> Tensor:
    return torch.full((), recomputes(), device=like.device)


def _vmap_rule(info: Any, in_dims: tuple[int | None, ...], like: Tensor) -> tuple[Tensor, None]:
    return torch.ops.lineavae.recomputes(like), None


torch.library.define("lineavae::recomputes", "(Tensor like) -> Tensor")
torch.library.impl("lineavae::recomputes", "default", _recomputes)
torch.library.register_fake("lineavae::recomputes", lambda like: like.new_empty((), dtype=torch.bool))
torch.library.register_vmap("lineavae::recomputes", _vmap_rule)
