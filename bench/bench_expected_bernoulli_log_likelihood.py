"""Expected Bernoulli log-likelihood of a linear decoder: ours, eager PyTorch and torch.compile.

What a quadrature costs depends on its nodes, and its error on the variances: with 20 nodes it is 3.5e-2 at a
standard deviation of 10, where that of the mixture is 5.2e-8 everywhere.
"""

import math
from functools import partial
from inspect import unwrap

import pytest
import torch
from scipy.special import roots_hermitenorm
from torch import Tensor
from torch.nn.functional import softplus

from harness.measure import Contender
from lineavae import reference
from lineavae.ops import expected_bernoulli_log_likelihood

# the formula of the reference in the dtype of the data, where a reference itself goes through float64
MIXTURE = unwrap(reference.expected_bernoulli_log_likelihood)
LATENT_DIM = 50
NODES, WEIGHTS = (values.tolist() for values in roots_hermitenorm(20))


def quadrature(x: Tensor, mean: Tensor, logvar: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Integrate softplus with 20 Gauss-Hermite nodes, one after another: of the eager forms the fastest."""
    logits = torch.addmm(bias, mean, weight.mT)
    std = (logvar.exp() @ weight.square().mT).sqrt()
    total = torch.zeros_like(logits)
    for node, share in zip(NODES, WEIGHTS, strict=True):
        total = torch.add(total, softplus(torch.add(logits, std, alpha=node)), alpha=share)
    return (x * logits - total / math.sqrt(2 * math.pi)).sum(-1)


@pytest.mark.parametrize(
    ("num_samples", "gradients"),
    [
        pytest.param(1000, False, id="value", marks=pytest.mark.only_cpu),
        pytest.param(1000, True, id="value-and-gradients"),
        pytest.param(60_000, True, id="60000-value-and-gradients", marks=pytest.mark.only_cuda),
    ],
)
def test_expected_bernoulli_log_likelihood(compare, setting, num_samples, gradients):
    torch.manual_seed(0)
    num_samples, num_features = setting.size(num_samples), 784
    random = partial(torch.randn, device=setting.device)
    x = random(num_samples, num_features).sigmoid().round()
    parameters = [
        random(num_samples, LATENT_DIM),
        random(num_samples, LATENT_DIM) - 1,
        random(num_features, LATENT_DIM) / 3,
        random(num_features),
    ]
    for parameter in parameters:
        parameter.requires_grad_(gradients)
    elements, flops = num_samples * num_features, 2 * num_samples * num_features * LATENT_DIM
    # forward: x in; for the backward, the two derivatives of each logit out and in again
    num_bytes = x.element_size() * elements * (5 if gradients else 1)

    def step(function):
        return Contender(function, [x, *parameters], bytes=num_bytes, flops=(6 if gradients else 2) * flops)

    compare(
        {
            "ours": step(expected_bernoulli_log_likelihood),
            "eager mixture": step(MIXTURE),
            "compiled mixture": step(setting.compiled(MIXTURE)),
            "eager quadrature": step(quadrature),
            "compiled quadrature": step(setting.compiled(quadrature)),
        },
        rounds=7,
    )
