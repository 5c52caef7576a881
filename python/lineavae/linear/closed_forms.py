"""Closed forms of a decoder that need no data: its best encoder, its principal axes and their span."""

from __future__ import annotations

import torch
from torch import Tensor

from lineavae.linear.moments import with_fixed_signs


def optimal_encoder(weight: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V*, log d* and the gap between the likelihood and the ELBO there; ``noise`` is βσ².

    With M̃ = WᵀW + βσ² I: V* = M̃⁻¹ Wᵀ, d*_j = βσ² / M̃_jj; the gap, ½ (Σ_j log M̃_jj - log det M̃), is for β = 1.
    """
    gram = weight.mT @ weight
    precision = gram + noise * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    cholesky = torch.linalg.cholesky(precision)
    log_diagonal = precision.diagonal().log()
    gap = 0.5 * log_diagonal.sum() - cholesky.diagonal().log().sum()
    return torch.cholesky_solve(weight.mT, cholesky), noise.log() - log_diagonal, gap


def principal_axes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """U, with fixed signs, and the diagonal of L, descending, of W = U L Rᵀ."""
    left, singular_values, _ = torch.linalg.svd(weight, full_matrices=False)
    return with_fixed_signs(left), singular_values


def unit_columns(matrix: Tensor) -> Tensor:
    """Columns of length 1; those of zeros stay."""
    largest = matrix.abs().amax(0)
    scaled = matrix / torch.where(largest > 0, largest, 1)  # no square underflows or overflows
    return torch.nn.functional.normalize(scaled, dim=0)


def orthonormal_basis(matrix: Tensor) -> Tensor:
    """Orthonormal float64 basis of the span of the columns, of any lengths: (D, rank)."""
    left, lengths, _ = torch.linalg.svd(unit_columns(matrix.double()), full_matrices=False)
    rounding = max(matrix.shape) * torch.finfo(matrix.dtype).eps
    basis: Tensor = left[:, lengths > rounding * lengths[0]]
    return basis
