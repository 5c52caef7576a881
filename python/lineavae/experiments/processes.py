"""The processes that torchrun starts, between which an experiment divides its trainings."""

from __future__ import annotations

import torch
import torch.distributed as dist


def rank() -> int:
    """Give the number of this process, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Tell how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def tell(flag: bool) -> bool:
    """Give every process the flag of the first, for which they wait."""
    if not dist.is_initialized():
        return flag
    told = torch.tensor(int(flag))
    dist.broadcast(told, 0)
    return bool(told)


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(()))  # of the CPU: a barrier may be the GPU's
