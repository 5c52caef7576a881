"""Samples of Gaussian posteriors and their KL, forward and backward: ours, eager PyTorch and torch.compile.

The others keep their noise for the backward, ours makes it again. On a CPU compiled code draws from torch's
generator, since inductor's own takes many times as long; on CUDA it may fuse its own.
"""

import pytest
import torch
from torch import Tensor

from harness.measure import Contender
from lineavae.ops import reparameterized_kl
from lineavae.reference import expm1_minus_x

LATENT_DIM = 200


def sample(mean: Tensor, logvar: Tensor) -> Tensor:
    return mean + (0.5 * logvar).exp() * torch.randn_like(mean)


def as_written(mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the literal formula, with its cancellation."""
    return sample(mean, logvar), 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(-1)


def accurate(mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    return sample(mean, logvar), 0.5 * (mean.square() + expm1_minus_x(logvar)).sum(-1)


def distributions(mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Compute both as torch.distributions does."""
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return posterior.rsample(), torch.distributions.kl_divergence(posterior, prior).sum(-1)


@pytest.mark.parametrize("magnitude", ["usual", pytest.param("denormal", marks=pytest.mark.only_cpu)])
@pytest.mark.parametrize("num_samples", [1000, 60_000])
def test_reparameterized_kl(compare, setting, num_samples, magnitude):
    torch.manual_seed(0)
    shape = (setting.size(num_samples), LATENT_DIM)
    # as of latents that collapsed and whose means decayed
    scale = 1e-20 if magnitude == "denormal" else 1.0
    inputs = [(scale * torch.randn(shape)).to(setting.device).requires_grad_() for _ in range(2)]
    # forward: mean and logvar in, z and KL out; backward: both and the upstream of both in, two gradients out
    num_bytes = inputs[0].element_size() * shape[0] * (8 * LATENT_DIM + 2)

    def step(function):
        return Contender(function, inputs, bytes=num_bytes)

    own_generator = (
        {"compiled accurate, own generator": step(setting.compiled(accurate))}
        if setting.device == "cuda" or setting.dry
        else {}
    )
    compare(
        {
            "ours": step(reparameterized_kl),
            "eager as written": step(as_written),
            "eager accurate": step(accurate),
            "eager torch.distributions": step(distributions),
            "compiled as written": step(setting.compiled(as_written, fallback_random=True)),
            "compiled accurate": step(setting.compiled(accurate, fallback_random=True)),
            **own_generator,
        }
    )
