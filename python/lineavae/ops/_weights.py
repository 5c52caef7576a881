"""Weights of the KL: β of whole models, and ``kl_weight`` of latents."""

from __future__ import annotations

import torch
from torch import Tensor

from lineavae._arguments import check_number, check_real, check_whole
from lineavae._terms import weighted
from lineavae.ops._tensors import HALF, broadcasts, check_finite_values, first_index


def check_beta(op: str, beta: Tensor | float, like: Tensor, check_finite: bool) -> Tensor:
    """``beta`` as a tensor of ``like``'s dtype and device: a number >= 0, or a tensor without gradient."""
    weight = _check_weight(op, "beta", beta, like.device, like.dtype, check_finite)
    return weight if isinstance(weight, Tensor) else like.new_full((), weight)


def _check_weight(
    op: str,
    name: str,
    weight: Tensor | float,
    device: torch.device,
    dtype: torch.dtype,
    check_finite: bool,
) -> Tensor | float:
    """Check a number >= 0, or a tensor without gradient, and give it this device and dtype.

    The values of a tensor are looked at where ``check_finite``: that waits for the device.
    """
    if isinstance(weight, Tensor):
        check_whole(op, name, weight)
        check_real(op, name, weight)
        if weight.requires_grad:
            raise ValueError(f"{op}: {name} must not require grad: it is a weight, not a parameter")
        if weight.device != device and weight.ndim > 0:
            raise ValueError(f"{op}: {name} must be on device {device}, got {weight.device}")
        if check_finite:
            check_finite_values(op, name, weight)
            if (weight < 0).any():
                index = first_index(weight < 0)
                raise ValueError(f"{op}: {name} must be >= 0, got {weight[index].item()} at index {index}")
        return weight.to(device, dtype)
    return check_number(op, name, weight, at_least=0)


def check_latent_weight(
    op: str, name: str, weight: Tensor | float, mean: Tensor, event_dim: int, check_finite: bool
) -> Tensor | float:
    """Check a weight of the latents: a number, or a tensor () or (K,), then of the dtype of results.

    One that broadcasts to an event of several dimensions becomes (K,), one weight for each of its entries.
    """
    dtype = torch.float32 if mean.dtype in HALF else mean.dtype
    weight = _check_weight(op, name, weight, mean.device, dtype, check_finite)
    if not isinstance(weight, Tensor) or weight.ndim == 0:
        return weight
    if event_dim > 1:
        event = mean.shape[-event_dim:]
        if not broadcasts(weight.shape, event):
            raise ValueError(
                f"{op}: {name} must be a number or broadcast to the event {tuple(event)}, "
                f"got {tuple(weight.shape)}"
            )
        return weight.expand(*event).flatten()
    if tuple(weight.shape) != tuple(mean.shape[-1:]):
        raise ValueError(
            f"{op}: {name} must be a number or have shape () or (K,) with K={mean.shape[-1]}, "
            f"got {tuple(weight.shape)}"
        )
    return weight


def per_latent(kl_weight: Tensor | float) -> Tensor | None:
    """Return the weights that a kernel applies, (1, K); none where there is one weight for all latents."""
    return kl_weight.unsqueeze(0) if isinstance(kl_weight, Tensor) and kl_weight.ndim == 1 else None


def scale(kl: Tensor, kl_weight: Tensor | float) -> Tensor:
    """Apply a weight that no kernel has applied: one for all latents."""
    if isinstance(kl_weight, Tensor):
        return kl if kl_weight.ndim == 1 else weighted(kl_weight, kl)
    return kl if kl_weight == 1 else weighted(kl_weight, kl)
