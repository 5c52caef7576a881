"""KL of Gaussian posteriors, forward and backward: ours, eager PyTorch, torch.compile, and Triton by hand.

"torch.distributions" is `kl_divergence` of two Normals, which Pyro takes as well.
"""

import importlib.util

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from harness.measure import Contender
from lineavae import reference
from lineavae.ops import gaussian_kl, gaussian_kl_per_dimension

LATENT_DIM = 200


def as_written(mean: Tensor, logvar: Tensor) -> Tensor:
    """Compute the literal formula, with its cancellation."""
    return 0.5 * (mean.square() + logvar.exp() - logvar - 1)


def accurate(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean.square() + reference.expm1_minus_x(logvar))


def accurate_sum(mean: Tensor, logvar: Tensor) -> Tensor:
    return accurate(mean, logvar).sum(-1)


def as_written_sum(mean: Tensor, logvar: Tensor) -> Tensor:
    return as_written(mean, logvar).sum(-1)


def distributions(mean: Tensor, logvar: Tensor) -> Tensor:
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return kl_divergence(Normal(mean, (0.5 * logvar).exp()), prior)


def distributions_sum(mean: Tensor, logvar: Tensor) -> Tensor:
    return distributions(mean, logvar).sum(-1)


# ours, accurate, literal, of torch.distributions, and the results of one row
FORMS = {
    "gaussian_kl": (gaussian_kl, accurate_sum, as_written_sum, distributions_sum, 1),
    "gaussian_kl_per_dimension": (
        gaussian_kl_per_dimension,
        accurate,
        as_written,
        distributions,
        LATENT_DIM,
    ),
}


@pytest.mark.parametrize(
    ("op", "num_samples"),
    [
        ("gaussian_kl", 1000),
        ("gaussian_kl", 60_000),
        pytest.param("gaussian_kl_per_dimension", 1000, marks=pytest.mark.only_cpu),
        ("gaussian_kl_per_dimension", 60_000),
    ],
)
def test_gaussian_kl(compare, setting, op, num_samples):
    torch.manual_seed(0)
    shape = (setting.size(num_samples), LATENT_DIM)
    mean, logvar = (torch.randn(shape).to(setting.device).requires_grad_() for _ in range(2))
    ours, best, literal, of_torch, results_per_row = FORMS[op]
    # forward: mean and logvar in, KL out; backward: mean, logvar and upstream in, two gradients out
    num_bytes = mean.element_size() * shape[0] * (6 * LATENT_DIM + 2 * results_per_row)

    def step(function):
        return Contender(function, [mean, logvar], bytes=num_bytes)

    contenders = {
        "ours": step(ours),
        "eager as written": step(literal),
        "eager accurate": step(best),
        "torch.distributions": step(of_torch),
        "compiled as written": step(setting.compiled(literal)),
        "compiled accurate": step(setting.compiled(best)),
    }
    if op == "gaussian_kl" and setting.device == "cuda" and importlib.util.find_spec("triton"):
        from triton_kl import TritonKL

        contenders["Triton as written"] = step(TritonKL.apply)
    compare(contenders)
