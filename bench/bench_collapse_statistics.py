"""Statistics of collapse of 60 000 posteriors: ours, and what one would write with PyTorch.

The others return less: no histogram, no count of what is not finite.
"""

import pytest
import torch
from torch import Tensor

from harness.measure import Contender
from lineavae import reference
from lineavae.ops import collapse_statistics

NUM_SAMPLES, LATENT_DIM = 60_000, 200


def make_posterior(setting) -> list[Tensor]:
    """From latents far from the prior to latents that are collapsed."""
    torch.manual_seed(0)
    scale = torch.logspace(0.3, -3, LATENT_DIM)
    return [(scale * torch.randn(setting.size(NUM_SAMPLES), LATENT_DIM)).to(setting.device) for _ in range(2)]


def make_thresholds(count: int) -> list[float]:
    return torch.logspace(-4, 0, count, dtype=torch.float64).tolist()


def moments(kl: Tensor, mean: Tensor, logvar: Tensor) -> list[Tensor]:
    """Mean and variance of KL, mean and v, and the extremes of KL."""
    of_each = [statistic for x in (kl, mean, logvar.exp()) for statistic in torch.var_mean(x, 0)]
    return [*of_each, *kl.aminmax(dim=0)]


def by_comparison(mean: Tensor, logvar: Tensor, thresholds: Tensor) -> list[Tensor]:
    """Pass over the KL once for each threshold."""
    kl = reference.gaussian_kl_per_dimension(mean, logvar)
    return [torch.stack([(kl < t).sum(0) for t in thresholds.unbind()]), *moments(kl, mean, logvar)]


def by_broadcasting(mean: Tensor, logvar: Tensor, thresholds: Tensor) -> list[Tensor]:
    """Compare with all thresholds in one expression: memory for all of it in eager, a fused loop compiled."""
    kl = reference.gaussian_kl_per_dimension(mean, logvar)
    return [(kl < thresholds[:, None, None]).sum(1), *moments(kl, mean, logvar)]


def by_bucket(mean: Tensor, logvar: Tensor, thresholds: Tensor) -> list[Tensor]:
    """Find the interval of each KL, and count these."""
    kl = reference.gaussian_kl_per_dimension(mean, logvar)
    buckets, columns = len(thresholds) + 1, kl.shape[-1]
    interval = torch.bucketize(kl, thresholds, right=True) + buckets * torch.arange(columns, device=kl.device)
    counts = torch.bincount(interval.flatten(), minlength=buckets * columns).view(columns, buckets)
    return [counts.cumsum(1)[:, :-1], *moments(kl, mean, logvar)]


def plain_read(mean: Tensor, logvar: Tensor) -> list[Tensor]:
    return [mean.sum(), logvar.sum()]


def counts_of(posterior: list[Tensor], thresholds: list[float], *, histogram: bool) -> Contender:
    def ours(mean: Tensor, logvar: Tensor) -> object:
        return collapse_statistics(mean, logvar, thresholds, histogram=histogram)

    return Contender(ours, posterior, bytes=sum(t.nbytes for t in posterior))


@pytest.mark.parametrize("num_thresholds", [1, 32])
def test_collapse_statistics(compare, setting, num_thresholds):
    posterior = make_posterior(setting)
    thresholds = make_thresholds(num_thresholds)
    on_device = torch.tensor(thresholds, device=setting.device)
    num_bytes = sum(t.nbytes for t in posterior)

    def contender(function, captures=True):
        return Contender(function, [*posterior, on_device], bytes=num_bytes, captures=captures)

    compare(
        {
            "ours": counts_of(posterior, thresholds, histogram=num_thresholds > 1),
            "eager, threshold by threshold": contender(by_comparison),
            "eager, bucketize": contender(by_bucket, captures=False),  # bincount reads its largest element
            "compiled, threshold by threshold": contender(setting.compiled(by_comparison)),
            "compiled, broadcasting": contender(setting.compiled(by_broadcasting)),
            "compiled, bucketize": contender(setting.compiled(by_bucket), captures=False),
            "a plain read": Contender(plain_read, posterior, bytes=num_bytes),
        },
        rounds=7,
    )


def test_number_of_thresholds(compare, setting):
    posterior = make_posterior(setting)
    compare(
        {
            "ours": counts_of(posterior, make_thresholds(64), histogram=True),
            "ours, 8 thresholds": counts_of(posterior, make_thresholds(8), histogram=True),
            "ours, 1 threshold": counts_of(posterior, make_thresholds(1), histogram=True),
        }
    )
