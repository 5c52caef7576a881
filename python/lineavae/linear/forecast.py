"""Before training: which latents of a VAE can live on given data, from the data's eigenvalues alone.

With λ the eigenvalues of the covariance, descending, and τ = βσ², the global maximum of the linear VAE's
β-ELBO at a fixed σ² has q = min(K, #{λ_j > τ}) live latents, ‖w_j‖² = λ_j - τ, with a mean KL of
½ log(λ_j/τ). All other columns are zero, and stable at zero. The expected squared error is
T = qτ + Σ_{j>q} λ_j.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from lineavae._arguments import check_integer, check_number
from lineavae._paper import EPSILON
from lineavae._printing import PrintsInNotebooks
from lineavae.linear.moments import Moments
from lineavae.linear.spectrum import Floats, Spectrum, kl_of_eigenvalues, num_above


@dataclass(frozen=True, eq=False)
class CollapseForecast(PrintsInNotebooks):
    """What `forecast_collapse` expects of a VAE. Prints as a summary, warnings last.

    Attributes
    ----------
    num_samples, num_features, latent_dim
        Samples N (or their weight), features D and latents K.
    sigma2
        Observation noise σ²: the one given or, where ``is_learned``, the one that learning converges to.
    beta
        Weight β of the KL term.
    is_learned
        Whether σ² is learned.
    learned_sigma2
        What a learned σ² converges to with these K and β; 0 where it falls without bound.
    elbo
        ELBO in nats per sample, that with the KL term's weight 1 whatever β was in training.
    elbo_cost
        What ``elbo`` lacks to the largest with K latents, that of a learned σ² at β = 1; infinite where that
        one is.
    eigenvalues
        The K largest eigenvalues λ of the covariance, (K,), float64; zeros where the data have fewer.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import forecast_collapse
    >>> x = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))
    >>> forecast = forecast_collapse(torch.cat([x, -x]), latent_dim=3, sigma2=2.0)
    >>> forecast.num_active, forecast.kl.round(4), round(forecast.sigma2_to_keep(3), 6)
    (2, array([1.0397, 0.3466, 0.    ]), 1.0)
    """

    num_samples: int | float
    num_features: int
    latent_dim: int
    sigma2: float
    beta: float
    is_learned: bool
    learned_sigma2: float
    elbo: float
    elbo_cost: float
    eigenvalues: Floats

    @cached_property
    def kl(self) -> Floats:
        """Mean KL of each latent in nats, (K,), descending: ½ log(λ_j / βσ²), zero for a collapsed one."""
        return kl_of_eigenvalues(self.eigenvalues, self.beta * self.sigma2)

    @property
    def num_active(self) -> int:
        """Number of latents that can live, #{λ_j > βσ²}."""
        return num_above(self.eigenvalues, self.beta * self.sigma2)

    @property
    def num_collapsed(self) -> int:
        """Number of latents that collapse, and stay so: zero columns of W are stable."""
        return self.latent_dim - self.num_active

    def sigma2_to_keep(self, num_latents: int) -> float:
        """Give the σ² below which, and only there, so many latents live: λ_j/β of the last of them.

        Raises
        ------
        TypeError
            ``num_latents`` is not an integer.
        ValueError
            It is not from 1 to K.
        """
        num_latents = check_integer("CollapseForecast.sigma2_to_keep", "num_latents", num_latents, minimum=1)
        if num_latents > self.latent_dim:
            raise ValueError(
                "CollapseForecast.sigma2_to_keep: num_latents must be at most the "
                f"{self.latent_dim} latents, got {num_latents}"
            )
        return float(self.eigenvalues[num_latents - 1]) / self.beta

    @property
    def warnings(self) -> list[str]:
        """What to know before training, a sentence each; empty where nothing is wrong."""
        found = []
        rank = int((self.eigenvalues > 0).sum())
        if rank < self.latent_dim:
            found.append(
                f"the data vary along {rank} directions only: "
                f"{self.latent_dim - rank} of {self.latent_dim} latents collapse whatever σ² is"
            )
        if self.num_active < rank:
            found.append(
                f"{self._noise} will collapse {self.num_collapsed} of {self.latent_dim} latents; "
                f"{rank} live below σ² = {self.sigma2_to_keep(rank):.4g}"
            )
        if self.learned_sigma2 == 0:
            found.append("a learned σ² falls to 0, and the likelihood has no bound: use fewer latents")
        faint = int(((self.kl > 0) & (self.kl < EPSILON)).sum())
        if faint:
            found.append(
                f"{faint} live latents have a mean KL below {EPSILON:g} nats: "
                "slow to train, and collapsed by most measures"
            )
        return found

    @property
    def _noise(self) -> str:
        return f"σ² = {self.sigma2:.4g}" + (f" with β = {self.beta:g}" if self.beta != 1 else "")

    def to_dict(self) -> dict[str, Any]:
        """Give the forecast as numbers, strings, lists and dicts; an infinite cost is ``None``."""
        return {
            "num_samples": self.num_samples,
            "num_features": self.num_features,
            "latent_dim": self.latent_dim,
            "sigma2": self.sigma2,
            "beta": self.beta,
            "is_learned": self.is_learned,
            "learned_sigma2": self.learned_sigma2,
            "num_active": self.num_active,
            "num_collapsed": self.num_collapsed,
            "total_kl": float(self.kl.sum()),
            "elbo": self.elbo,
            "elbo_cost": self.elbo_cost if math.isfinite(self.elbo_cost) else None,
            "warnings": self.warnings,
            "latents": {
                "eigenvalue": self.eigenvalues.tolist(),
                "kl": self.kl.tolist(),
                "critical_sigma2": (self.eigenvalues / self.beta).tolist(),
            },
        }

    def __str__(self) -> str:
        below = f", {self.elbo_cost:.4g} below the largest" if math.isfinite(self.elbo_cost) else ""
        rows = [
            ("data", f"{self.num_samples} samples, {self.num_features} features"),
            ("noise", f"{self._noise}, {'learned' if self.is_learned else 'fixed'}"),
            ("model", "a linear VAE; a nonlinear decoder was never seen to keep more latents alive"),
            ("live", f"{self.num_active} of {self.latent_dim} latents, {self.num_collapsed} collapse"),
            ("KL", f"{self.kl.sum():.4g} nats, the largest {self.kl[0]:.4g}"),
            ("ELBO", f"{self.elbo:.6g} nats per sample{below}"),
        ]
        if not self.is_learned:
            live = num_above(self.eigenvalues, self.beta * self.learned_sigma2)
            rows.append(("learned σ²", f"converges to {self.learned_sigma2:.4g}: {live} latents live"))
        kept = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k < self.latent_dim]
        kept.append(self.latent_dim)
        rows += [
            ("to keep" if k == kept[0] else "", f"{k:>4}: σ² < {self.sigma2_to_keep(k):.4g}") for k in kept
        ]
        lines = [f"{name:<12}{text}" for name, text in rows]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


def forecast_collapse(
    data: NDArray[Any] | Tensor | Moments,
    latent_dim: int,
    *,
    sigma2: float | None = None,
    beta: float = 1.0,
) -> CollapseForecast:
    """Tell how many latents of a VAE can live on some data, before it is trained.

    It is exact for the linear VAE at its global maximum, to which training leads from almost everywhere: at a
    fixed σ², every other stationary point is a saddle. For a deep Gaussian VAE it promises neither latents
    nor an ELBO: with a nonlinear decoder fewer latents were seen to live, never more, and to reach a larger
    ELBO. On MNIST-5k with K = 50 it expects 12 live latents and an ELBO of -743.1 at σ² = 1, 50 and 69.3 at
    σ² = 0.1; an MLP VAE had 4 to 6 and -740.2 to -739.2, 12 to 13 and 102.5 to 103.1, after 100 epochs.

    Parameters
    ----------
    data
        Samples, (N, D), or their moments, in the units in which the VAE sees them: σ² is relative to them.
    latent_dim
        Latents K.
    sigma2
        Observation noise σ² > 0 that is held fixed; by default it is learned.
    beta
        Weight β > 0 of the KL term in training: a latent lives where its λ_j is above βσ².

    Returns
    -------
    CollapseForecast
        Live latents, their KL, the ELBO and its cost, what a learned σ² converges to, and warnings.

    Raises
    ------
    TypeError
        The data are neither an array nor a tensor nor `Moments`, or masked, or a number is of another type.
    ValueError
        A value of the data is not finite, ``latent_dim`` is below 1, ``sigma2`` or ``beta`` is not finite and
        above 0, or σ² is to be learned but would fall to 0: K latents leave no variance.

    Notes
    -----
    Lucas et al. (2019), section 4.1 and appendix A.1. With q live latents and R_q = Σ_{j>q} λ_j, a learned σ²
    converges to R_q / (D - βq) with the one q for which λ_q > βσ² >= λ_{q+1} or q = K; at β = 1 that is the
    maximum-likelihood σ² with all K latents (equation 7). Where K >= D and the covariance has full rank, it
    is the largest of many that are as good.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import forecast_collapse
    >>> x = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))
    >>> print(forecast_collapse(torch.cat([x, -x]), latent_dim=3, sigma2=2.0))
    data        8 samples, 4 features
    noise       σ² = 2, fixed
    model       a linear VAE; a nonlinear decoder was never seen to keep more latents alive
    live        2 of 3 latents, 1 collapse
    KL          1.386 nats, the largest 1.04
    ELBO        -7.76084 nats per sample, 0.6988 below the largest
    learned σ²  converges to 0.25: 3 latents live
    to keep        1: σ² < 16
                   2: σ² < 4
                   3: σ² < 1
    warning: σ² = 2 will collapse 1 of 3 latents; 3 live below σ² = 1
    """
    latent_dim = check_integer("forecast_collapse", "latent_dim", latent_dim, minimum=1)
    beta = check_number("forecast_collapse", "beta", beta, above=0)
    moments = data if isinstance(data, Moments) else Moments.from_data(data)
    spectrum = Spectrum("forecast_collapse", moments, latent_dim)
    learned = spectrum.learned_sigma2(beta)
    if sigma2 is not None:
        noise = check_number("forecast_collapse", "sigma2", sigma2, above=0)
    elif learned > 0:
        noise = learned
    else:
        raise ValueError(
            "forecast_collapse: sigma2 must be given where latent_dim is not below the rank of the "
            f"covariance, {spectrum.rank}: a learned one falls to 0; got latent_dim {latent_dim}"
        )
    elbo = spectrum.elbo(noise, beta)
    best = spectrum.learned_sigma2(1.0)
    return CollapseForecast(
        num_samples=moments.num_samples,
        num_features=moments.num_features,
        latent_dim=latent_dim,
        sigma2=noise,
        beta=beta,
        is_learned=sigma2 is None,
        learned_sigma2=learned,
        elbo=elbo,
        elbo_cost=max(spectrum.elbo(best, 1.0) - elbo, 0.0) if best > 0 else math.inf,
        eigenvalues=spectrum.eigenvalues,
    )
