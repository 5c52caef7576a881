"""KL of Gaussian posteriors, forward and backward: ours, eager PyTorch and torch.compile."""

import pytest
import torch
from torch import Tensor

from lineavae import reference
from lineavae.ops import gaussian_kl, gaussian_kl_per_dimension


def as_written(mean: Tensor, logvar: Tensor) -> Tensor:
    """Compute the literal formula, with its cancellation."""
    return 0.5 * (mean.square() + logvar.exp() - logvar - 1)


FORMS = {
    "gaussian_kl": (
        gaussian_kl,
        reference.gaussian_kl,
        lambda mean, logvar: as_written(mean, logvar).sum(-1),
    ),
    "gaussian_kl_per_dimension": (
        gaussian_kl_per_dimension,
        reference.gaussian_kl_per_dimension,
        as_written,
    ),
}


@pytest.mark.parametrize("num_samples", [1000, 60_000])
@pytest.mark.parametrize("op", FORMS)
def test_gaussian_kl(compare, threads, op, num_samples):
    torch.manual_seed(0)
    mean = torch.randn(num_samples, 200).requires_grad_()
    logvar = torch.randn(num_samples, 200).requires_grad_()
    ours, accurate, literal = FORMS[op]
    upstream = torch.ones_like(ours(mean, logvar))

    def step(function):
        return lambda: torch.autograd.grad(function(mean, logvar), (mean, logvar), upstream)

    compare(
        {
            "ours": step(ours),
            "eager as written": step(literal),
            "eager accurate": step(accurate),
            "compiled as written": step(torch.compile(literal)),
            "compiled accurate": step(torch.compile(accurate)),
        }
    )
