"""The importance-weighted bound of a model, whatever its likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lineavae._noise import standard_normal


@torch.no_grad()
def importance_weighted_bound(
    log_likelihood: Callable[[Tensor], Tensor],
    mean: Tensor,
    logvar: Tensor,
    num_draws: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Bound on log p(x) from samples of q(z|x) = N(mean, exp(logvar)), in nats: (N, K), (N, K) -> (N,).

    log 1/S Σ_s p(x|z_s) p(z_s)/q(z_s|x) (Burda et al. 2016), where ``log_likelihood`` gives log p(x|z), (N,),
    for one z per data point, (N, K). Memory does not grow with S.
    """
    std = (0.5 * logvar).exp()
    bound = torch.full((), -math.inf, device=mean.device)
    for _ in range(num_draws):
        eps = standard_normal(mean.shape, mean, generator)
        z = mean + std * eps
        # log p(z) - log q(z|x); from z - m instead, all digits of a narrow posterior would be lost
        log_ratio = 0.5 * (eps.square() + logvar - z.square()).sum(-1)
        bound = torch.logaddexp(bound, log_likelihood(z) + log_ratio)
    return bound - math.log(num_draws)
