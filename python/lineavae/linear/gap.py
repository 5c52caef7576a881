"""Why an ELBO is below the largest likelihood of its model family: the difference, split exactly.

After the encoder and the rotation are repaired, the ELBO is the likelihood of the decoder, whose columns are
then orthogonal: u_j of length l_j. With s_j = u_jᵀ S u_j, and s = tr S - Σ s_j left over, it is

    log p = -½ (D log 2π + Σ_j log(l_j² + σ²) + (D - K) log σ² + Σ_j s_j / (l_j² + σ²) + s / σ²)

so that all that remains is in 2K + 2 numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq

from lineavae._arguments import check_number
from lineavae._paper import EPSILON
from lineavae._printing import PrintsInNotebooks
from lineavae.linear.closed_forms import log_density, optimal_encoder, principal_axes
from lineavae.linear.elbo import exact_elbo
from lineavae.linear.moments import Moments, check_features
from lineavae.linear.parameters import LinearModel, LinearParameters
from lineavae.linear.spectrum import Floats, Spectrum

# In the order of the steps.
PARTS = ("encoder", "rotation", "mean", "noise", "components", "collapsed")

# Spacing in log σ² of the points between which a maximum over σ² is looked for.
_SPACING = 0.05


@dataclass(frozen=True)
class GapDecomposition(PrintsInNotebooks):
    """The difference between the largest likelihood and an ELBO, in parts; see `decompose_gap`.

    Everything is in nats per sample. Prints as a table.

    Attributes
    ----------
    maximum
        Largest log-likelihood of probabilistic PCA with K latents, which is also the largest ELBO.
    elbo
        ELBO of the model.
    encoder, rotation, mean, noise, components, collapsed
        The parts, each >= 0.
    latent_dim
        Latents K of the model.
    num_live
        Latents of the rotated model that are not collapsed.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import LinearVAE, Moments, decompose_gap
    >>> x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> gap = decompose_gap(LinearVAE(4, 2), Moments.from_data(x))
    >>> abs(sum(gap.parts.values()) - gap.total) < 1e-12
    True
    """

    maximum: float
    elbo: float
    encoder: float
    rotation: float
    mean: float
    noise: float
    components: float
    collapsed: float
    latent_dim: int
    num_live: int

    @property
    def total(self) -> float:
        """The gap ``maximum - elbo``: the sum of the parts, up to rounding."""
        return self.maximum - self.elbo

    @property
    def parts(self) -> dict[str, float]:
        """The parts by name, in the order of the steps."""
        return {name: getattr(self, name) for name in PARTS}

    def __str__(self) -> str:
        collapsed = self.latent_dim - self.num_live
        meanings = {
            "encoder": "V and d are not the best for this decoder",
            "rotation": "the columns of W are not orthogonal",
            "mean": "μ is not the mean of the data",
            "noise": "σ² is not the best for this W",
            "components": f"the live latents, {self.num_live} of {self.latent_dim}, "
            "are not the first principal components",
            "collapsed": f"latents that are not used: {collapsed} of {self.latent_dim}",
        }
        return "\n".join(
            [
                f"ELBO             {self.elbo:14.6f}  nats per sample",
                *(f"  + {name:<12} {part:14.6f}  {meanings[name]}" for name, part in self.parts.items()),
                f"largest ELBO     {self.maximum:14.6f}  that of probabilistic PCA",
            ]
        )


@torch.no_grad()
def decompose_gap(model: LinearModel, moments: Moments, epsilon: float = EPSILON) -> GapDecomposition:
    """Split what the ELBO of a model lacks to the largest possible one into six causes.

    The model is repaired in six steps, each of which can only raise the ELBO, the last of which ends at the
    maximum. A part is what its step gains:

    1. ``encoder``: V and d become the best of the decoder, V* and d*.
    2. ``rotation``: W becomes U L of W = U L Rᵀ, and V, d again the best. The ELBO is now the likelihood.
    3. ``mean``: μ becomes the mean of the data.
    4. ``noise``: σ² becomes the best of this W.
    5. ``components``: W and σ² become the best of as many latents as are live now. A latent of the rotated
       model is live if its mean KL, with the model's own σ², is at least ε. If the collapsed ones hold so
       much that this would be a step down, nothing is done.
    6. ``collapsed``: W and σ² become the best of all K latents.

    So a model with a single defect has a single part. The posteriors' divergence from the true ones,
    KL(q(z|x) ‖ p(z|x)), is ``encoder + rotation``; the best σ² for the representation that is there, the
    σ²-tuned ELBO of the paper, is behind ``noise``; and what collapse costs even then is ``collapsed``.

    Parameters
    ----------
    model
        The linear VAE, of any floating dtype, or its `LinearParameters`; it is not changed.
    moments
        Moments of the data, on any device.
    epsilon
        Mean KL in nats below which a latent counts as collapsed, >= 0.

    Returns
    -------
    GapDecomposition
        The parts, computed in float64, at β = 1.

    Raises
    ------
    TypeError
        ``moments`` are not `Moments`.
    ValueError
        The numbers of features differ; ``epsilon`` is negative or not finite; a parameter is not finite; K
        is not below the rank of the covariance, so that the likelihood has no maximum with σ² > 0.

    Notes
    -----
    Lucas et al. (2019), equations 7, 15, 21, 22 and 27. No part is the difference of two ELBOs before the
    noise is: 1 and 2 are divergences in closed form, 3 is a squared distance.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import PPCA, LinearVAE, Moments, decompose_gap
    >>> x = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64))
    >>> moments = Moments.from_data(torch.cat([x, -x]))
    >>> vae = LinearVAE.from_ppca(PPCA(n_components=2).fit(moments))
    >>> decompose_gap(vae, moments).total < 1e-12
    True
    >>> with torch.no_grad():
    ...     vae.weight[:, 1] = 0
    >>> print(decompose_gap(vae.optimal_encoder_(), moments))
    ELBO                  -9.057043  nats per sample
      + encoder            0.000000  V and d are not the best for this decoder
      + rotation           0.000000  the columns of W are not orthogonal
      + mean               0.000000  μ is not the mean of the data
      + noise              1.154446  σ² is not the best for this W
      + components         0.001125  the live latents, 1 of 2, are not the first principal components
      + collapsed          0.616280  latents that are not used: 1 of 2
    largest ELBO          -7.285192  that of probabilistic PCA
    """
    parameters = LinearParameters.of(model)
    check_features("decompose_gap", "moments", moments, parameters.num_features)
    epsilon = check_number("decompose_gap", "epsilon", epsilon, at_least=0)
    for name, parameter in parameters._asdict().items():
        if not parameter.isfinite().all():
            raise ValueError(f"decompose_gap: {name} of the model must be finite, got a NaN or an infinity")
    optimum = Optimum("decompose_gap", moments, parameters.latent_dim)
    return optimum.decompose(parameters, exact_elbo(parameters, moments).item(), epsilon)


class Optimum:
    """The largest likelihood of the data for each number of latents, and the way there from a model."""

    def __init__(
        self, caller: str, moments: Moments, latent_dim: int, num_features: int | None = None
    ) -> None:
        """Collect what is needed of the data; ``num_features`` counts features left out as constant too."""
        if latent_dim >= moments.rank:
            raise ValueError(
                f"{caller}: the model must have fewer latents than the rank of the covariance, "
                f"{moments.rank}, for a largest likelihood to exist, got {latent_dim}"
            )
        self._moments = moments
        self._num_features = num_features or moments.num_features
        # (K + 1,): with 0 to K latents
        self._maxima = Spectrum(caller, moments, latent_dim, num_features).max_log_likelihoods()

    def decompose(self, model: LinearModel, elbo: float, epsilon: float = EPSILON) -> GapDecomposition:
        """Split the gap of a model whose ELBO is known; see `decompose_gap`."""
        parameters = LinearParameters.of(model).detach().to(torch.float64)
        weight, encoder, mu, log_d, log_sigma2 = parameters
        about_mu, sigma2 = self._moments._root_about(mu), log_sigma2.exp()
        root, offset = about_mu[:, :-1], about_mu[:, -1]
        best_encoder, best_log_d, rotation = optimal_encoder(weight, sigma2)
        axes, lengths = principal_axes(weight)

        # ½ tr(ΔV S_μ ΔVᵀ M̃) / σ², with S_μ about μ, and the divergence of d from d*
        change = (encoder - best_encoder) @ about_mu
        distortion = (weight @ change).square().sum() + sigma2 * change.square().sum()
        ratio = log_d - best_log_d
        encoder_part = 0.5 * (distortion / sigma2 + (ratio.expm1() - ratio).sum())

        along = axes.mT @ offset
        aside = (offset - axes @ along).square().sum()
        mean_part = 0.5 * ((along.square() / (lengths.square() + sigma2)).sum() + aside / sigma2)

        explained = axes.mT @ root
        columns = _Columns(
            lengths.square().cpu().numpy(),
            explained.square().sum(1).cpu().numpy(),
            (root - axes @ explained).square().sum().item(),
            self._num_features,
        )
        current = float(columns.log_likelihood(sigma2.cpu().numpy()))
        num_live = int((columns.mean_kl(sigma2.item()) >= max(epsilon, np.finfo(np.float64).tiny)).sum())
        tuned = max(current, columns.best_log_likelihood())
        reached = max(tuned, float(self._maxima[num_live]))
        maximum = max(reached, float(self._maxima[-1]))
        return GapDecomposition(
            maximum=maximum,
            elbo=elbo,
            encoder=encoder_part.item(),
            rotation=max(rotation.item(), 0.0),
            mean=mean_part.item(),
            noise=tuned - current,
            components=reached - tuned,
            collapsed=maximum - reached,
            latent_dim=parameters.latent_dim,
            num_live=num_live,
        )


@dataclass(frozen=True)
class _Columns:
    """The likelihood of orthogonal columns, as a function of σ² alone."""

    squared_lengths: Floats
    variances: Floats
    rest: float
    """Variance outside the span of the columns."""
    num_features: int

    @property
    def codimension(self) -> int:
        return self.num_features - len(self.variances)

    def log_likelihood(self, sigma2: Floats) -> Floats:
        """Mean log p(x) for each σ²: (...) -> (...)."""
        model = self.squared_lengths + np.expand_dims(sigma2, -1)
        log_det = np.log(model).sum(-1) + self.codimension * np.log(sigma2)
        distance: Floats = (self.variances / model).sum(-1) + self.rest / sigma2
        return log_density(log_det, distance, self.num_features)

    def slope(self, log_sigma2: Floats) -> Floats:
        """Twice the derivative of the likelihood by log σ²: (...) -> (...)."""
        sigma2 = np.exp(log_sigma2)
        model = self.squared_lengths + np.expand_dims(sigma2, -1)
        explained = ((self.variances / model - 1) / model).sum(-1) * sigma2
        result: Floats = explained + self.rest / sigma2 - self.codimension
        return result

    def best_log_likelihood(self) -> float:
        """Largest likelihood over all σ²; it may have several maxima."""
        # it rises below the first and falls above the last
        low = math.log(self.rest / self.num_features)
        high = math.log(max(self.rest / self.codimension, (self.variances - self.squared_lengths).max()))
        points = np.linspace(low - 1e-6, high + 1e-6, 2 + math.ceil((high - low) / _SPACING))
        slopes = self.slope(points)
        (peaks,) = np.nonzero((slopes[:-1] > 0) & (slopes[1:] <= 0))
        roots = [brentq(self.slope, points[peak], points[peak + 1], xtol=1e-14) for peak in peaks]
        return float(self.log_likelihood(np.exp(np.array(roots))).max())

    def mean_kl(self, sigma2: float) -> Floats:
        """Mean KL of each latent at the best encoder, (K,)."""
        model = self.squared_lengths + sigma2
        mean_square = self.variances * self.squared_lengths / model**2
        excess = mean_square - self.squared_lengths / model
        kl: Floats = 0.5 * (excess + np.log1p(self.squared_lengths / sigma2))
        return kl
