"""Mutual information with the aggregate posterior of 60 000 samples: ours, and eager PyTorch in blocks.

"eager differences" is how the log densities of pairs are written elsewhere, z and means broadcast against
each other; "eager products" has them as products of matrices, as ours, but neither ours' checks nor its care
for narrow posteriors.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from harness.measure import Contender
from lineavae.collapse import mutual_information

LATENT_DIM = 50
NUM_ROWS = 256  # that the mean is over; the components are all samples
BLOCK_BYTES = 1 << 23


def log_normal(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * ((z - mean).square() / logvar.exp() + logvar + math.log(2 * math.pi)).sum(-1)


def differences(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    rows = max(1, BLOCK_BYTES // (mean.element_size() * mean.numel()))
    return torch.cat([log_normal(block[:, None], mean, logvar) for block in z.split(rows)])


def products(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    precision = logvar.neg().exp()
    constant = -0.5 * (logvar + mean.square() * precision + math.log(2 * math.pi)).sum(-1)
    return constant + z @ (mean * precision).mT - 0.5 * (z.square() @ precision.mT)


def eager(
    log_normal_of_pairs: Callable[..., Tensor], dtype: torch.dtype
) -> Callable[[Tensor, Tensor], Tensor]:
    def information(mean: Tensor, logvar: Tensor) -> Tensor:
        rows = torch.randperm(len(mean), device=mean.device)[:NUM_ROWS]
        row_mean, row_logvar = mean[rows].to(dtype), logvar[rows].to(dtype)
        z = row_mean + (0.5 * row_logvar).exp() * torch.randn_like(row_mean)
        log_sum = torch.full_like(z[:, 0], -math.inf)
        for block in zip(mean.split(1024), logvar.split(1024), strict=True):
            log_density = log_normal_of_pairs(z, *(part.to(dtype) for part in block))
            log_sum = torch.logaddexp(log_sum, log_density.logsumexp(1))
        return (log_normal(z, row_mean, row_logvar) - log_sum).mean() + math.log(len(mean))

    return information


def test_mutual_information(compare, setting):
    torch.manual_seed(0)
    shape = (setting.size(60_000), LATENT_DIM)
    num_rows = min(NUM_ROWS, shape[0])
    mean, logvar = torch.randn(shape), 0.3 * torch.randn(shape) - 1.0
    inputs = [mean.to(setting.device), logvar.to(setting.device)]

    def ours(mean: Tensor, logvar: Tensor) -> Tensor:
        return torch.tensor(mutual_information(mean, logvar, num_rows=num_rows).value)

    contenders = {
        "ours": ours,
        "eager products": eager(products, torch.float64),
        "eager differences": eager(differences, torch.float64),
        "eager differences, float32": eager(differences, torch.float32),
    }
    compare({name: Contender(function, inputs) for name, function in contenders.items()}, rounds=3)
