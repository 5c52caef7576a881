"""What the best linear VAE of some data depends on: the eigenvalues of their covariance, and K."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lineavae.linear.closed_forms import log_density
from lineavae.linear.moments import Moments, check_unexplained

Floats = NDArray[np.float64]


class Spectrum:
    """The eigenvalues of the data, of which K latents can explain the first K.

    With λ the eigenvalues, descending, and R_q = Σ_{j>q} λ_j. ``num_features`` counts features that were left
    out as constant, too.
    """

    def __init__(
        self, caller: str, moments: Moments, latent_dim: int, num_features: int | None = None
    ) -> None:
        found, eigenvectors = moments.eigh()
        rounding = moments._eigenvalue_rounding(found, eigenvectors)
        check_unexplained(caller, found, rounding, slice(latent_dim, None))
        eigenvalues = found.cpu().numpy()
        padded = np.append(eigenvalues, np.zeros(max(latent_dim + 1 - len(eigenvalues), 0)))
        self.rank = moments.rank
        # (K,): λ
        self.eigenvalues: Floats = padded[:latent_dim]
        # (K + 1,): R_q, the variance that 0 to K latents leave
        self._unexplained: Floats = padded[::-1].cumsum()[::-1][: latent_dim + 1]
        self._num_features = num_features or moments.num_features
        # (K + 1,): D - q
        self._codimensions = self._num_features - np.arange(latent_dim + 1)

    def max_log_likelihoods(self) -> Floats:
        """Largest log-likelihood of probabilistic PCA with 0 to K latents, K below the rank, (K + 1,).

        Lucas et al. (2019), equation 7: σ² = R_q / (D - q), at which rᵀ C⁻¹ r is D on average.
        """
        log_det = np.append(0, np.log(self.eigenvalues).cumsum())
        log_det += self._codimensions * np.log(self._unexplained / self._codimensions)
        return log_density(log_det, np.array(float(self._num_features)), self._num_features)

    def learned_sigma2(self, beta: float = 1.0) -> float:
        """Give the stationary σ², of which there is one; 0 where there is none."""
        # The slope by log σ² is ½ (Σ_{j<=K} min(β, λ_j/σ²) + R_K/σ² - D), which falls as σ² rises. So
        # latent q lives at the root iff the slope is negative at βσ² = λ_q.
        counts = self._num_features - beta * np.arange(len(self.eigenvalues) + 1)
        num_live = int((self.eigenvalues * counts[1:] > beta * self._unexplained[1:]).sum())
        return float(self._unexplained[num_live] / counts[num_live])

    def elbo(self, sigma2: float, beta: float) -> float:
        """ELBO, with KL weight 1, at the maximum of the β-ELBO for this σ²."""
        threshold = beta * sigma2
        num_live = num_above(self.eigenvalues, threshold)
        distortion = num_live * threshold + float(self._unexplained[num_live])
        normaliser = self._num_features * math.log(2 * math.pi * sigma2)
        return -0.5 * (distortion / sigma2 + normaliser) - float(
            kl_of_eigenvalues(self.eigenvalues, threshold).sum()
        )


def num_above(eigenvalues: Floats, threshold: float) -> int:
    """Count the latents that live at βσ² = ``threshold``."""
    return int((eigenvalues > threshold).sum())


def kl_of_eigenvalues(eigenvalues: Floats, threshold: float) -> Floats:
    """Mean KL of each latent at βσ² = ``threshold``: ½ log(λ_j / βσ²), zero for a collapsed one."""
    kl: Floats = 0.5 * np.log(np.maximum(eigenvalues, threshold) / threshold)
    return kl
