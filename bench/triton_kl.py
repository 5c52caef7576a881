"""The KL of Gaussian posteriors by hand in Triton, a program for each row: what one writes without C++."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def forward_kernel(mean, logvar, kl, columns, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < columns
    m = tl.load(mean + row * columns + column, mask=inside, other=0.0)
    v = tl.load(logvar + row * columns + column, mask=inside, other=0.0)
    tl.store(kl + row, tl.sum(0.5 * (m * m + tl.exp(v) - v - 1), axis=0))


@triton.jit
def backward_kernel(mean, logvar, upstream, of_mean, of_logvar, columns, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < columns
    at = row * columns + column
    m = tl.load(mean + at, mask=inside)
    v = tl.load(logvar + at, mask=inside)
    g = tl.load(upstream + row)
    tl.store(of_mean + at, g * m, mask=inside)
    tl.store(of_logvar + at, 0.5 * g * (tl.exp(v) - 1), mask=inside)


class TritonKL(torch.autograd.Function):
    """The literal formula, with its cancellation: (N, K), (N, K) -> (N,)."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, logvar: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(mean, logvar)
        rows, columns = mean.shape
        kl = mean.new_empty(rows)
        forward_kernel[(rows,)](mean, logvar, kl, columns, block=triton.next_power_of_2(columns))
        return kl

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        mean, logvar = ctx.saved_tensors
        rows, columns = mean.shape
        gradients = torch.empty_like(mean), torch.empty_like(logvar)
        block = triton.next_power_of_2(columns)
        backward_kernel[(rows,)](mean, logvar, upstream, *gradients, columns, block=block)
        return gradients
