"""Stationary points of probabilistic PCA, and how far a linear VAE is from one.

Where the derivative of the likelihood by W is zero, W consists of scaled eigenvectors of the covariance and
of nothing else (Tipping and Bishop 1999; Lucas et al. 2019, appendix A):

    W = U_q (K_q - σ² I)^½ R

U_q holds any eigenvectors, not only the leading ones, k_i is the eigenvalue of column i, or σ² where the
column is zero, and R is any rotation. With R = I the ELBO is stationary there as well.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lineavae._arguments import check_integer, check_number
from lineavae.linear.closed_forms import Marginal, log_density, with_optimal_encoder
from lineavae.linear.moments import Moments, check_features, check_unexplained
from lineavae.linear.parameters import LinearModel, LinearParameters
from lineavae.linear.vae import LinearVAE

Objective = Literal["likelihood", "elbo"]
Noise = Literal["fixed", "learned"]

# Beyond it a given rotation is taken to be none.
_ORTHOGONAL = 1e-8


class StationaryPoint:
    """A stationary point of the likelihood of probabilistic PCA over W, at any noise σ².

    Parameters
    ----------
    moments
        Moments of the data. The model has the mean of the data as its own.
    kept
        Which principal components the columns of W hold, one each: distinct indices of eigenvalues, 0 being
        the largest. All further columns are zero. Every eigenvalue kept must be above σ².
    latent_dim
        Latent dimensions K, at least ``len(kept)``, which is the default; at least one.
    sigma2
        Noise σ² > 0. By default the only one at which the point is stationary in σ² too: the mean of all
        eigenvalues that are not kept.
    rotation
        Orthogonal matrix R, (K, K), by which the latent space is turned; none by default. It leaves the
        likelihood as it is and lowers the ELBO.

    Attributes
    ----------
    eigenvalues : Tensor
        Of the biased covariance, (D,), descending, float64 as everything here.
    eigenvectors : Tensor
        (D, r). Of N <= D samples r is N - 1: the eigenvalues from there on are zero.
    kept : tuple of int
        As given.
    latent_dim : int
        Latent dimensions K.
    sigma2 : float
        Noise σ².
    rotation : Tensor or None
        As given.

    Raises
    ------
    TypeError
        An argument is of the wrong type.
    ValueError
        An index is out of range or given twice, a number is out of its range, an eigenvalue is kept that is
        not above σ², or the rotation is not orthogonal.

    See Also
    --------
    lineavae.linear.stability : Whether the point is a maximum or a saddle.

    Notes
    -----
    Lucas et al. (2019), equations 11 and 12.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import Moments, StationaryPoint
    >>> x = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> point = StationaryPoint(Moments.from_data(x), kept=[1], latent_dim=2, sigma2=1.0)
    >>> point.eigenvalues.round(decimals=6)
    tensor([8., 2.], dtype=torch.float64)
    >>> point.weight.round(decimals=6)
    tensor([[0., 0.],
            [1., 0.]], dtype=torch.float64)
    >>> round(point.log_likelihood, 4), round(point.elbo, 4)
    (-6.6845, -6.6845)
    """

    def __init__(
        self,
        moments: Moments,
        kept: Sequence[int],
        *,
        latent_dim: int | None = None,
        sigma2: float | None = None,
        rotation: Tensor | None = None,
    ) -> None:
        eigenvalues, self.eigenvectors = moments.eigh()
        rounding = moments._eigenvalue_rounding(eigenvalues, self.eigenvectors)
        missing = moments.num_features - len(eigenvalues)
        # (D,) both: the second is up to which an eigenvalue may be off
        self.eigenvalues, self._rounding = (
            torch.nn.functional.pad(values, (0, missing)) for values in (eigenvalues, rounding)
        )
        self._mean = moments.sample_mean
        self.kept = self._check_kept(kept)
        if latent_dim is None:
            latent_dim = max(1, len(self.kept))
        self.latent_dim = check_integer(
            "StationaryPoint", "latent_dim", latent_dim, minimum=max(1, len(self.kept))
        )
        self.rotation = self._check_rotation(rotation)
        self.sigma2 = self._check_sigma2(sigma2)

    def __repr__(self) -> str:
        turned = "" if self.rotation is None else ", rotated"
        return (
            f"StationaryPoint(kept={list(self.kept)}, latent_dim={self.latent_dim}, "
            f"sigma2={self.sigma2:g}{turned})"
        )

    @property
    def num_features(self) -> int:
        """Observed dimensions D."""
        return len(self.eigenvalues)

    @property
    def kept_eigenvalues(self) -> Tensor:
        """Eigenvalues of the kept components, (q,), in the order of ``kept``."""
        return self.eigenvalues[list(self.kept)]

    @property
    def unused_eigenvalues(self) -> Tensor:
        """All other eigenvalues, (D - q,), descending."""
        return self.eigenvalues[self.unused]

    @property
    def unused(self) -> Tensor:
        """Indices of the eigenvalues that are not kept, (D - q,), ascending."""
        mask = torch.ones(self.num_features, dtype=torch.bool, device=self.eigenvalues.device)
        mask[list(self.kept)] = False
        return mask.nonzero().squeeze(1)

    @property
    def column_variances(self) -> Tensor:
        """The k_i of the paper, (K,): the eigenvalue that column i keeps, or σ² where the column is zero.

        They are the eigenvalues of M = WᵀW + σ² I.
        """
        empty = self.latent_dim - len(self.kept)
        return torch.nn.functional.pad(self.kept_eigenvalues, (0, empty), value=self.sigma2)

    @property
    def column_lengths(self) -> Tensor:
        """Singular values of W, (K,): (k_i - σ²)^½, the lengths of the columns before the rotation."""
        return (self.column_variances - self.sigma2).sqrt()

    @property
    def weight(self) -> Tensor:
        """Decoder W, (D, K)."""
        weight = self.eigenvalues.new_zeros(self.num_features, self.latent_dim)
        lengths = self.column_lengths[: len(self.kept)]
        weight[:, : len(self.kept)] = self.eigenvectors[:, list(self.kept)] * lengths
        return weight if self.rotation is None else weight @ self.rotation

    @property
    def log_likelihood(self) -> float:
        """Average log-likelihood of the data in nats per sample.

        -½ (D log 2π + Σ_kept log λ_j + q + Σ_unused (log σ² + λ_j / σ²))
        """
        kept, unused = self.kept_eigenvalues, self.unused_eigenvalues
        log_det = kept.log().sum().item() + len(unused) * math.log(self.sigma2)
        distance = len(kept) + unused.sum().item() / self.sigma2
        return log_density(log_det, distance, self.num_features)

    @property
    def elbo(self) -> float:
        """Average ELBO of the data under the best encoder, in nats per sample.

        The likelihood less ½ (Σ_j log M_jj - log det M), which is zero without a rotation.
        """
        if self.rotation is None:
            return self.log_likelihood
        variances = self.column_variances
        diagonal = variances @ self.rotation.square()
        return self.log_likelihood - 0.5 * (diagonal.log().sum() - variances.log().sum()).item()

    @property
    def log_sigma2_gradient(self) -> float:
        """Derivative of the average log-likelihood, and of the ELBO, by log σ²: ½ Σ_unused (λ_j / σ² - 1).

        Negative where learning σ² would make it smaller. Zero at the default of ``sigma2``.
        """
        return 0.5 * (self.unused_eigenvalues / self.sigma2 - 1).sum().item()

    def with_sigma2(self, sigma2: float | None) -> StationaryPoint:
        """Give the point with the same components at another noise; ``None`` is the default as above."""
        other = copy.copy(self)
        other.sigma2 = other._check_sigma2(sigma2)
        return other

    def perturbation(self, column: int, direction: int) -> Tensor:
        """Change of W of unit length that adds an eigenvector to one column, as it is before the rotation.

        Parameters
        ----------
        column
            Which column, 0 <= column < K; the first ``len(kept)`` are those that hold a component.
        direction
            Which eigenvector, 0 <= direction < r.

        Returns
        -------
        Tensor
            u eᵀ R with eigenvector u and unit vector e, (D, K).
        """
        for name, index, size in (
            ("column", column, self.latent_dim),
            ("direction", direction, self.eigenvectors.shape[1]),
        ):
            if check_integer("StationaryPoint.perturbation", name, index, minimum=0) >= size:
                raise ValueError(f"StationaryPoint.perturbation: {name} must be below {size}, got {index}")
        change = self.eigenvalues.new_zeros(self.num_features, self.latent_dim)
        change[:, column] = self.eigenvectors[:, direction]
        return change if self.rotation is None else change @ self.rotation

    def to_vae(self) -> LinearVAE:
        """Make the linear VAE that is at this point: its W, σ² and mean, and the best encoder for them."""
        return self._to_vae(self.weight)

    def _to_vae(self, weight: Tensor) -> LinearVAE:
        log_sigma2 = weight.new_tensor(self.sigma2).log()
        return LinearVAE.from_parameters(with_optimal_encoder(weight, self._mean, log_sigma2))

    def _check_kept(self, kept: Sequence[int]) -> tuple[int, ...]:
        indices = tuple(check_integer("StationaryPoint", "kept", index, minimum=0) for index in kept)
        available = self.eigenvectors.shape[1]
        if any(index >= available for index in indices):
            raise ValueError(
                f"StationaryPoint: kept must be indices of the {available} eigenvectors, got {list(indices)}"
            )
        if len(set(indices)) < len(indices):
            raise ValueError(f"StationaryPoint: kept must be distinct, got {list(indices)}")
        return indices

    def _check_sigma2(self, sigma2: float | None) -> float:
        source = "sigma2"
        if sigma2 is None:
            if len(self.kept) == self.num_features:
                raise ValueError(
                    "StationaryPoint: sigma2 must be given where all components are kept: no noise is best"
                )
            check_unexplained("StationaryPoint", self.eigenvalues, self._rounding, self.unused)
            source, sigma2 = "the mean of the eigenvalues left", self.unused_eigenvalues.mean().item()
        sigma2 = check_number("StationaryPoint", source, sigma2, above=0)
        if self.kept and not self.kept_eigenvalues.min() > sigma2:
            raise ValueError(
                f"StationaryPoint: kept eigenvalues must be above the noise, {source} = {sigma2:g}, "
                f"got {self.kept_eigenvalues.min().item():g}"
            )
        return sigma2

    def _check_rotation(self, rotation: Tensor | None) -> Tensor | None:
        if rotation is None:
            return None
        if not isinstance(rotation, Tensor):
            raise TypeError(
                f"StationaryPoint: rotation must be a torch.Tensor, got {type(rotation).__name__}"
            )
        expected = (self.latent_dim, self.latent_dim)
        if rotation.shape != expected:
            raise ValueError(
                f"StationaryPoint: rotation must have shape (K, K) with K={self.latent_dim}, "
                f"got {tuple(rotation.shape)}"
            )
        rotation = rotation.detach().to(self.eigenvalues)
        identity = torch.eye(self.latent_dim, device=rotation.device)
        error = (rotation.mT @ rotation - identity).abs().max().item()
        if not error < _ORTHOGONAL:
            raise ValueError(
                f"StationaryPoint: rotation must be orthogonal, got RᵀR - I of up to {error:.3g}"
            )
        return rotation


@dataclass(frozen=True)
class Stationarity:
    """How far a linear VAE is from a stationary point: norms of gradients in nats per sample.

    Lengths are measured in units of the noise: the derivatives by W and μ are times σ, that by V is divided
    by it. So data in other units give the same norms, and one tolerance serves for all.

    Attributes
    ----------
    likelihood_weight : float
        By W, of the log-likelihood: σ ‖C⁻¹ (S C⁻¹ W - W)‖: equation 11.
    likelihood_log_sigma2 : float
        By log σ², of the log-likelihood.
    weight, encoder, log_d : float
        By W, V and log d, of the ELBO: equations 23, 22 and 21.
    mu, log_sigma2 : float
        By μ and log σ², of the ELBO.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import Moments, StationaryPoint, stationarity
    >>> x = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> moments = Moments.from_data(x)
    >>> found = stationarity(StationaryPoint(moments, kept=[0], sigma2=1.0).to_vae(), moments)
    >>> round(found.log_sigma2, 6), found.is_stationary(), found.is_stationary(noise="fixed")
    (0.5, False, True)
    """

    likelihood_weight: float
    likelihood_log_sigma2: float
    weight: float
    encoder: float
    log_d: float
    mu: float
    log_sigma2: float

    def is_stationary(
        self, objective: Objective = "elbo", noise: Noise = "learned", tolerance: float = 1e-6
    ) -> bool:
        """Whether no norm that belongs to the objective is above the tolerance.

        Parameters
        ----------
        objective
            "elbo" or "likelihood", the latter of W and σ² alone.
        noise
            "learned" or "fixed": whether the derivative by log σ² counts.
        tolerance
            In nats per sample.
        """
        check_choices("Stationarity.is_stationary", objective, noise)
        if objective == "elbo":
            norms = [self.weight, self.encoder, self.log_d, self.mu]
            of_noise = self.log_sigma2
        else:
            norms = [self.likelihood_weight]
            of_noise = self.likelihood_log_sigma2
        return max([*norms, of_noise] if noise == "learned" else norms) <= tolerance


@torch.no_grad()
def stationarity(model: LinearModel, moments: Moments) -> Stationarity:
    """Measure how far a linear VAE is from a stationary point of its ELBO and of its likelihood.

    Parameters
    ----------
    model
        A linear VAE of any dtype, or its `LinearParameters`; the computation is in float64 on its device.
    moments
        Moments of the data.

    Returns
    -------
    Stationarity
        The norms of all gradients, from the closed forms: appendix C.2 of Lucas et al. (2019), equation 23
        corrected to S Vᵀ - W D - W V S Vᵀ.

    Raises
    ------
    ValueError
        The numbers of features differ.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import PPCA, LinearVAE, Moments, stationarity
    >>> x = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 2.0], [0.0, -2.0]], dtype=torch.float64)
    >>> model = LinearVAE.from_ppca(PPCA(1).fit(x))
    >>> stationarity(model, Moments.from_data(x)).is_stationary()
    True
    >>> model.log_sigma2.data += 0.1
    >>> round(stationarity(model, Moments.from_data(x)).log_sigma2, 4)
    0.0952
    """
    parameters = LinearParameters.of(model)
    check_features("stationarity", "moments", moments, parameters.num_features)
    weight, encoder, mu, log_d, log_sigma2 = parameters.to(torch.float64)
    noise, d = log_sigma2.exp(), log_d.exp()
    root = moments._root_about(mu)  # S = R Rᵀ
    offset = root[:, -1]  # x̄ - μ
    squared_lengths = weight.square().sum(0)

    encoded = encoder @ root
    residual = root - weight @ encoded
    by_weight = residual @ encoded.mT / noise - weight * (d / noise)
    by_encoder = (weight.mT @ residual / noise - encoded) @ root.mT
    by_log_d = 0.5 * (1 - d - d * squared_lengths / noise)
    left = offset - weight @ (encoder @ offset)
    by_mu = encoder.mT @ (encoder @ offset) + (left - encoder.mT @ (weight.mT @ left)) / noise
    distortion = residual.square().sum() + (d * squared_lengths).sum()
    by_log_sigma2 = 0.5 * (distortion / noise - len(mu))

    # with V* = M⁻¹ Wᵀ, C⁻¹ W = V*ᵀ and C⁻¹ = (I - W V*) / σ²
    best_encoder = Marginal(mu, weight, noise).encoder
    encoded = best_encoder @ root
    residual = root - weight @ encoded
    likelihood_by_weight = residual @ encoded.mT / noise - best_encoder.mT
    precision_trace = len(mu) - (weight * best_encoder.mT).sum()
    likelihood_by_log_sigma2 = 0.5 * (residual.square().sum() / noise - precision_trace)

    scale = noise.sqrt()
    return Stationarity(
        likelihood_weight=(scale * likelihood_by_weight.norm()).item(),
        likelihood_log_sigma2=likelihood_by_log_sigma2.abs().item(),
        weight=(scale * by_weight.norm()).item(),
        encoder=(by_encoder.norm() / scale).item(),
        log_d=by_log_d.norm().item(),
        mu=(scale * by_mu.norm()).item(),
        log_sigma2=by_log_sigma2.abs().item(),
    )


def symmetric_saddle(
    moments: Moments, kept: Sequence[int], *, latent_dim: int | None = None, sigma2: float
) -> LinearVAE:
    """Make a stationary point of the ELBO, over all but σ², at which the columns of W are not orthogonal.

    At no such point is the likelihood stationary: W = U (C - σ² I)^½ R has the eigenvectors of the
    covariance, but other lengths, and a rotation R that gives M = WᵀW + σ² I a constant diagonal m. Theorem 1
    of Lucas et al. (2019) says that all of them are saddles.

    Parameters
    ----------
    moments, kept, latent_dim
        As for `StationaryPoint`; K must be at least 2.
    sigma2
        Noise σ² > 0.

    Returns
    -------
    LinearVAE
        The model with the best encoder, float64.

    Raises
    ------
    ValueError
        An argument is out of its range as for `StationaryPoint`, or all c_i are equal, so that the
        columns are orthogonal whatever the rotation.

    Notes
    -----
    With (V*, d*) the derivative of the ELBO by W is C⁻¹ (S C⁻¹ - I) W - W (diag(M)⁻¹ - M⁻¹). Where M has the
    constant diagonal m it is zero iff c_i² = m λ_i for each singular value of W that is not zero, C having
    the eigenvalues c_i. The trace of M then gives m: K m = √m Σ √λ_i + (K - q) σ². Both m and all c_i are
    above σ² where all λ_i are.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import Moments, stationarity, symmetric_saddle
    >>> x = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> moments = Moments.from_data(x)
    >>> model = symmetric_saddle(moments, kept=[0, 1], sigma2=1.0)
    >>> (model.weight.mT @ model.weight).detach().round(decimals=6)
    tensor([[ 3.5000, -1.5000],
            [-1.5000,  3.5000]], dtype=torch.float64)
    >>> stationarity(model, moments).is_stationary(noise="fixed")
    True
    """
    point = StationaryPoint(moments, kept, latent_dim=latent_dim, sigma2=sigma2)
    size, roots = point.latent_dim, point.kept_eigenvalues.sqrt()
    empty = size - len(roots)
    total = roots.sum()
    root = (total + (total.square() + 4 * size * empty * point.sigma2).sqrt()) / (2 * size)
    variances = torch.nn.functional.pad(root * roots, (0, empty), value=point.sigma2)
    if not variances.max() - variances.min() > point._rounding[list(point.kept)].sum():
        raise ValueError(
            "symmetric_saddle: kept must hold unequal eigenvalues, or leave a column empty, "
            f"got {list(point.kept)} with latent_dim = {size}"
        )
    lengths = (variances - point.sigma2).sqrt()[: len(roots)]
    columns = point.eigenvectors[:, list(point.kept)] * lengths
    weight = torch.nn.functional.pad(columns, (0, empty)) @ _levelling_rotation(variances)
    return point._to_vae(weight)


def _levelling_rotation(values: Tensor) -> Tensor:
    """Rotation R for which Rᵀ diag(values) R has a constant diagonal.

    A rotation in the plane of a diagonal entry above the mean and one below it takes the first to the mean.
    """
    matrix, level = values.diag(), values.mean()
    rotation = torch.eye(len(values), dtype=values.dtype, device=values.device)
    remaining = list(range(len(values)))
    while len(remaining) > 1:
        diagonal = matrix.diagonal()[remaining]
        high, low = remaining[int(diagonal.argmax())], remaining[int(diagonal.argmin())]
        centre, half = (
            (matrix[high, high] + matrix[low, low]) / 2,
            (matrix[high, high] - matrix[low, low]) / 2,
        )
        radius = torch.hypot(half, matrix[high, low])
        remaining.remove(high)
        if radius == 0:
            continue
        lift = ((level - centre) / radius).clamp(-1, 1)
        angle = (torch.atan2(matrix[high, low], half) + lift.acos()) / 2
        plane = torch.eye(len(values), dtype=values.dtype, device=values.device)
        plane[high, high] = plane[low, low] = angle.cos()
        plane[low, high], plane[high, low] = angle.sin(), -angle.sin()
        matrix, rotation = plane.mT @ matrix @ plane, rotation @ plane
    return rotation


def check_point(caller: str, point: object) -> None:
    """Check that an argument is a stationary point."""
    if not isinstance(point, StationaryPoint):
        raise TypeError(
            f"{caller}: point must be a StationaryPoint, got {type(point).__name__}; "
            "stationarity and hessian_eigenpairs judge a trained model"
        )


def check_choices(caller: str, objective: str, noise: str) -> None:
    """Check the two arguments that say of what a point is stationary."""
    if objective not in ("likelihood", "elbo"):
        raise ValueError(f"{caller}: objective must be 'likelihood' or 'elbo', got {objective!r}")
    if noise not in ("fixed", "learned"):
        raise ValueError(f"{caller}: noise must be 'fixed' or 'learned', got {noise!r}")
