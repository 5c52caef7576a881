"""Bernoulli log-likelihood, forward and backward: ours, eager PyTorch and torch.compile."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from harness.measure import Contender
from lineavae.ops import bernoulli_log_likelihood


def cross_entropy(x: Tensor, logits: Tensor) -> Tensor:
    return -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


@pytest.mark.parametrize(
    ("num_samples", "num_features"),
    [
        (1000, 784),
        pytest.param(10_000, 784, marks=pytest.mark.only_cpu),
        pytest.param(64, 12_288, marks=pytest.mark.only_cpu),
        pytest.param(60_000, 784, marks=pytest.mark.only_cuda),
    ],
)
def test_bernoulli_log_likelihood(compare, setting, num_samples, num_features):
    torch.manual_seed(0)
    shape = (setting.size(num_samples), num_features)
    x = torch.rand(shape).round().to(setting.device)
    logits = (3 * torch.randn(shape)).to(setting.device).requires_grad_()
    # forward: x and logits in; backward: both and the upstream gradient in, one gradient out
    num_bytes = x.element_size() * shape[0] * (5 * num_features + 2)

    def step(function):
        return Contender(function, [x, logits], bytes=num_bytes)

    compare(
        {
            "ours": step(bernoulli_log_likelihood),
            "eager": step(cross_entropy),
            "compiled": step(setting.compiled(cross_entropy)),
        }
    )
