"""Mutual information with the aggregate posterior of 60 000 samples: ours, and eager PyTorch in blocks.

"eager differences" is how the log densities of pairs are written elsewhere, z and means broadcast against
each other; "eager products" has them as products of matrices, as ours, but neither ours' checks nor its care
for narrow posteriors.

What is usual has the rows of a minibatch alone for components of the aggregate posterior: `calc_mi` of He et
al. (2019), and minibatch weighted sampling, of beta-TCVAE (Chen et al. 2018), in the form that pythae has it.
Both cost less and are biased; they are held against ours of the same kind, over all 60 000 rows.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from harness.measure import Contender
from harness.setting import Setting
from lineavae.collapse import InformationBoundWarning, mutual_information

LATENT_DIM = 50
NUM_ROWS = 256  # that the mean is over; the components are all samples
BATCH_ROWS = 128  # of a minibatch, where that has the components
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


def calc_mi(mean: Tensor, logvar: Tensor) -> Tensor:
    """Take the entropy of q(z|x) in closed form, and the mean of log q(z) over the minibatch."""
    negative_entropy = -0.5 * (math.log(2 * math.pi) + 1 + logvar).sum(-1)
    z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
    log_q = log_normal(z[:, None], mean, logvar).logsumexp(1) - math.log(len(z))
    return (negative_entropy - log_q).mean()


def minibatch_weighted(mean: Tensor, logvar: Tensor, num_samples: int) -> Tensor:
    z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
    log_q = log_normal(z[:, None], mean, logvar).logsumexp(1) - math.log(len(z) * num_samples)
    return (log_normal(z, mean, logvar) - log_q).mean()


def make_posterior(setting: Setting) -> list[Tensor]:
    torch.manual_seed(0)
    shape = (setting.size(60_000), LATENT_DIM)
    mean, logvar = torch.randn(shape), 0.3 * torch.randn(shape) - 1.0
    return [mean.to(setting.device), logvar.to(setting.device)]


def test_minibatch_mutual_information(compare, setting):
    inputs = make_posterior(setting)
    num_samples = len(inputs[0])

    def ours(mean: Tensor, logvar: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InformationBoundWarning)
            information = mutual_information(mean, logvar, method="minibatch", batch_size=BATCH_ROWS)
        return torch.tensor(information.value)

    def of_batches(estimate: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def information(mean: Tensor, logvar: Tensor) -> Tensor:
            batches = zip(mean.split(BATCH_ROWS), logvar.split(BATCH_ROWS), strict=True)
            return torch.stack([len(batch[0]) * estimate(*batch) for batch in batches]).sum() / num_samples

        return information

    contenders = {
        "ours": ours,
        "calc_mi": of_batches(calc_mi),
        "minibatch weighted sampling": of_batches(partial(minibatch_weighted, num_samples=num_samples)),
    }
    compare({name: Contender(function, inputs) for name, function in contenders.items()}, rounds=3)


def test_mutual_information(compare, setting):
    inputs = make_posterior(setting)
    num_rows = min(NUM_ROWS, len(inputs[0]))

    def ours(mean: Tensor, logvar: Tensor) -> Tensor:
        return torch.tensor(mutual_information(mean, logvar, num_rows=num_rows).value)

    contenders = {
        "ours": ours,
        "eager products": eager(products, torch.float64),
        "eager differences": eager(differences, torch.float64),
        "eager differences, float32": eager(differences, torch.float32),
    }
    compare({name: Contender(function, inputs) for name, function in contenders.items()}, rounds=3)
