"""Closed forms of a decoder: its density and the best encoder for it, its principal axes and their span.

Everything about p(x) = N(μ, W Wᵀ + σ² I) and about p(z|x) goes through the K x K matrix M̃ = WᵀW + σ² I.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineavae.linear.moments import Moments, with_fixed_signs
from lineavae.linear.parameters import LinearParameters

_Values = TypeVar("_Values", float, Tensor, NDArray[np.float64])


def log_density(log_det: _Values, distance: _Values, num_features: int) -> _Values:
    """Log-density of a normal variable from log det C and rᵀ C⁻¹ r, or their means."""
    return -0.5 * (num_features * math.log(2 * math.pi) + log_det + distance)


@dataclass(frozen=True)
class LatentPrecision:
    """M̃ = WᵀW + noise · I, (..., K, K), where the noise is σ², or βσ² for the encoder of the β-ELBO.

    p(z|x) is N(M̃⁻¹ Wᵀ (x - μ), σ² M̃⁻¹).
    """

    gram: Tensor
    """WᵀW, (..., K, K)."""
    noise: Tensor

    @cached_property
    def matrix(self) -> Tensor:
        """M̃ itself."""
        identity = torch.eye(self.gram.shape[-1], dtype=self.gram.dtype, device=self.gram.device)
        return self.gram + self.noise * identity

    @cached_property
    def cholesky(self) -> Tensor:
        """Lower factor of M̃."""
        factor: Tensor = torch.linalg.cholesky(self.matrix)
        return factor

    @cached_property
    def log_det(self) -> Tensor:
        """Log det M̃, (...)."""
        log_det: Tensor = 2 * self.cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det

    @property
    def best_log_d(self) -> Tensor:
        """Log d* = log(noise / M̃_jj), (..., K): the best posterior variances whatever the encoder."""
        return self.noise.log() - self._log_diagonal

    @property
    def rotation_gap(self) -> Tensor:
        """½ (Σ_j log M̃_jj - log det M̃), (...): what the ELBO of the best encoder lacks to the likelihood."""
        return 0.5 * (self._log_diagonal.sum(-1) - self.log_det)

    @cached_property
    def _log_diagonal(self) -> Tensor:
        return self.matrix.diagonal(dim1=-2, dim2=-1).log()

    def log_det_covariance(self, num_features: int) -> Tensor:
        """Log det C = (D - K) log σ² + log det M̃, (...)."""
        return (num_features - self.gram.shape[-1]) * self.noise.log() + self.log_det

    def solve(self, right: Tensor) -> Tensor:
        """M̃⁻¹ times a matrix."""
        return torch.cholesky_solve(right, self.cholesky)


def optimal_encoder(weight: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V* = M̃⁻¹ Wᵀ, log d* and the gap between the likelihood and the ELBO there; ``noise`` is βσ².

    Lucas et al. (2019), appendix C.2. The gap is for β = 1.
    """
    precision = LatentPrecision(weight.mT @ weight, noise)
    return precision.solve(weight.mT), precision.best_log_d, precision.rotation_gap


def with_optimal_encoder(weight: Tensor, mu: Tensor, log_sigma2: Tensor) -> LinearParameters:
    """Add the best encoder to a decoder."""
    encoder, log_d, _ = optimal_encoder(weight, log_sigma2.exp())
    return LinearParameters(weight, encoder, mu, log_d, log_sigma2)


@dataclass(frozen=True)
class Marginal:
    """p(x) = N(μ, C) with C = W Wᵀ + σ² I: all of the algebra of probabilistic PCA, differentiable.

    With V* = M̃⁻¹ Wᵀ, the mean of p(z|x) being V* (x - μ):

        log det C = (D - K) log σ² + log det M̃
        rᵀ C⁻¹ r = ‖r - W V* r‖² / σ² + ‖V* r‖²

    This form of the distance has none of the cancellation that Woodbury's identity suffers at small σ².
    """

    mean: Tensor
    """(D,)."""
    weight: Tensor
    """(D, K)."""
    sigma2: Tensor
    """()."""

    @cached_property
    def precision(self) -> LatentPrecision:
        """M̃ of the latents given x."""
        return LatentPrecision(self.weight.mT @ self.weight, self.sigma2)

    @cached_property
    def encoder(self) -> Tensor:
        """V* = M̃⁻¹ Wᵀ, (K, D)."""
        return self.precision.solve(self.weight.mT)

    def posterior_mean(self, x: Tensor) -> Tensor:
        """Mean of p(z|x): (..., D) -> (..., K)."""
        return (x - self.mean) @ self.encoder.mT

    def posterior_covariance(self) -> Tensor:
        """Covariance of p(z|x), (K, K), the same for all x."""
        return torch.cholesky_inverse(self.precision.cholesky) * self.sigma2

    def log_density(self, x: Tensor) -> Tensor:
        """Log p(x), (..., D) -> (...)."""
        return log_density(self._log_det, self._distance(x - self.mean), len(self.mean))

    def mean_log_density(self, moments: Moments) -> Tensor:
        """Mean of log p(x) over a dataset, ()."""
        distance = self._distance(moments._root_about(self.mean).mT).sum()
        return log_density(self._log_det, distance, len(self.mean))

    @property
    def _log_det(self) -> Tensor:
        return self.precision.log_det_covariance(len(self.mean))

    def _distance(self, centred: Tensor) -> Tensor:
        """Give rᵀ C⁻¹ r of each row."""
        code = centred @ self.encoder.mT
        residual = centred - code @ self.weight.mT
        return (residual / self.sigma2.sqrt()).square().sum(-1) + code.square().sum(-1)

    def covariance(self) -> Tensor:
        """C, (D, D)."""
        covariance = self.weight @ self.weight.mT
        covariance.diagonal().add_(self.sigma2)
        return covariance

    def inverse_covariance(self) -> Tensor:
        """C⁻¹ = (I - W M̃⁻¹ Wᵀ) / σ², (D, D)."""
        half = torch.linalg.solve_triangular(self.precision.cholesky, self.weight.mT, upper=False)
        inverse: Tensor = half.mT @ half / -self.sigma2
        inverse.diagonal().add_(1 / self.sigma2)
        return inverse


def log_likelihood_and_gap(
    gram: Tensor, projected: Tensor, total_variance: Tensor, log_sigma2: Tensor, num_features: int
) -> tuple[Tensor, Tensor]:
    """Average log-likelihood from WᵀW and WᵀSW, and how far the ELBO of the best encoder stays below it.

    For many W at once, and for W that is a parameter: S enters by K x K matrices alone, at the price of a
    difference of terms as large as tr S / σ², which `Marginal` does not have.

    Parameters
    ----------
    gram, projected
        WᵀW and WᵀSW, (..., K, K).
    total_variance
        tr S, ().
    log_sigma2
        Log of the noise σ², ().
    num_features
        Observed dimensions D.

    Returns
    -------
    log_likelihood, gap
        (...), in nats per sample; differentiable.
    """
    sigma2 = log_sigma2.exp()
    precision = LatentPrecision(gram, sigma2)
    explained = precision.solve(projected).diagonal(dim1=-2, dim2=-1).sum(-1)
    distance = (total_variance - explained) / sigma2
    log_likelihood = log_density(precision.log_det_covariance(num_features), distance, num_features)
    return log_likelihood, precision.rotation_gap


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
