"""What a sweep records of its models: in float64, of many models at once where there is a form for many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lineavae.linear.elbo import exact_elbo
from lineavae.linear.gap import PARTS, Optimum
from lineavae.linear.identifiability import align
from lineavae.linear.moments import Moments
from lineavae.linear.parameters import LinearParameters
from lineavae.ops import gaussian_kl_per_dimension
from lineavae.reference.linear_vae_ascent import split_parameters

STATISTICS = ("elbo", "live", "log_sigma2", "kl", "alignment", "gap")


def width_of(name: str, latent_dim: int) -> int:
    """How many numbers a statistic is."""
    return {"kl": latent_dim, "gap": len(PARTS)}.get(name, 1)


class Statistics:
    """The statistics that are asked for, of models with K latents: a row of numbers for each model.

    It is as long as for the widest models of the sweep; the KL of latents that a model lacks is NaN. The
    principal directions are those of the data, (D, r).
    """

    def __init__(
        self,
        moments: Moments,
        latent_dim: int,
        widest: int,
        names: Sequence[str],
        epsilon: float,
        device: torch.device,
        directions: Tensor,
    ) -> None:
        self._moments = moments
        self._latent_dim = latent_dim
        self._widest = widest
        self._names = names
        self._epsilon = epsilon
        self._mean = moments.sample_mean.to(device)
        self._root = moments._root.to(device)
        self._directions = directions[:, :latent_dim].to(device) if "alignment" in names else None
        self._optimum = Optimum("sweep", moments, latent_dim) if "gap" in names else None

    def evaluate(self, flat: Tensor) -> Tensor:
        """Give the statistics of models by their parameters: (M, P) -> (M, C) float64; NaN if one is."""
        width = sum(width_of(name, self._widest) for name in self._names)
        found = flat.new_full((len(flat), width), torch.nan, dtype=torch.float64)
        is_finite = flat.isfinite().all(1)
        if is_finite.any():
            found[is_finite] = self._evaluate(flat[is_finite])
        return found

    def _evaluate(self, flat: Tensor) -> Tensor:
        weight, encoder_t, log_d, log_sigma2 = split_parameters(flat.double(), len(self._mean))
        encoder = encoder_t.mT
        models = LinearParameters(weight, encoder, self._mean.expand(len(flat), -1), log_d, log_sigma2)
        code = encoder @ self._root.expand(len(flat), -1, -1)
        # of any samples with this mean square the mean KL is that of one with its root
        kl = gaussian_kl_per_dimension(torch.linalg.vector_norm(code, dim=2), log_d)
        missing = (0, self._widest - self._latent_dim)
        columns = {
            "kl": torch.nn.functional.pad(kl, missing, value=torch.nan),
            "log_sigma2": log_sigma2.unsqueeze(1),
        }
        columns["live"] = (kl >= self._epsilon).sum(1, keepdim=True).double()
        if "elbo" in self._names or self._optimum is not None:
            of_one = torch.func.vmap(lambda *model: exact_elbo(LinearParameters(*model), self._moments))
            columns["elbo"] = of_one(*models).unsqueeze(1)
        if self._directions is not None:
            columns["alignment"] = flat.new_tensor(
                [self._alignment(*model) for model in zip(weight, kl, strict=True)], dtype=torch.float64
            ).unsqueeze(1)
        if self._optimum is not None:
            parts = [
                list(self._optimum.decompose(LinearParameters(*model), elbo, self._epsilon).parts.values())
                for *model, elbo in zip(*models, columns["elbo"][:, 0].tolist(), strict=True)
            ]
            columns["gap"] = flat.new_tensor(parts, dtype=torch.float64)
        return torch.cat([columns[name] for name in self._names], 1)

    def _alignment(self, weight: Tensor, kl: Tensor) -> float:
        live = kl >= self._epsilon
        if self._directions is None or not live.any():
            return torch.nan
        return align(weight[:, live], self._directions).cosines.mean().item()
