"""Where benchmarks run, and how large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from harness.measure import CpuTimer, CudaTimer, Timer, processor_time

# The same for all contenders: products of float32 matrices are float32 products, not TF32.
torch.set_float32_matmul_precision("highest")

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """Where and how large a benchmark runs."""

    device: str
    timer: Timer
    dry: bool = False

    @classmethod
    def named(cls, name: str) -> Setting:  # noqa: D102
        if name == "cuda":
            return cls("cuda", CudaTimer())
        if name == "dry-run":
            return cls("cpu", CpuTimer(cache_bytes=1 << 20), dry=True)
        return cls("cpu", CpuTimer(clock=processor_time) if name == "1-thread" else CpuTimer())

    def size(self, size: int) -> int:
        """Return the size of a benchmark's data: as given, or small in a dry run."""
        return max(1, size // 100) if self.dry else size

    def compiled(self, function: Callable[..., T], **options: bool) -> Callable[..., T]:
        """Compile for the very shapes it will see; a dry run traces and generates no code."""
        if self.dry:
            return torch.compile(function, dynamic=False, backend="eager")
        return torch.compile(function, dynamic=False, options=options)
