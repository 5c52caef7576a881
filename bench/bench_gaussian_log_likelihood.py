"""Gaussian log-likelihoods, forward and backward: ours, eager PyTorch and torch.compile."""

import math
from inspect import unwrap

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from harness.measure import Contender
from lineavae import reference
from lineavae.ops import (
    expected_gaussian_log_likelihood,
    gaussian_log_likelihood,
    gaussian_log_likelihood_mean,
)

# the formula of the reference in the dtype of the data, where a reference itself goes through float64
EXPECTED = unwrap(reference.expected_gaussian_log_likelihood)
LATENT_DIM = 50
SIZES = [(1000, 784), pytest.param(64, 12_288, marks=pytest.mark.only_cpu), (60_000, 784)]
each_size = pytest.mark.parametrize(("num_samples", "num_features"), SIZES)


def from_distortion(distortion: Tensor, log_sigma2: Tensor, num_features: int) -> Tensor:
    normaliser = num_features * (math.log(2 * math.pi) + log_sigma2)
    return -0.5 * (distortion * torch.exp(-log_sigma2) + normaliser)


def as_written(x: Tensor, x_hat: Tensor, log_sigma2: Tensor) -> Tensor:
    distortion = (x - x_hat).square() * (-log_sigma2).exp()
    return -0.5 * (distortion + log_sigma2 + math.log(2 * math.pi)).sum(-1)


def by_rows(x: Tensor, x_hat: Tensor, log_sigma2: Tensor) -> Tensor:
    """Sum squares first, which one σ² allows."""
    return from_distortion((x - x_hat).square().sum(1), log_sigma2, x.shape[1])


def by_mse_loss(x: Tensor, x_hat: Tensor, log_sigma2: Tensor) -> Tensor:
    """As by rows, with the fewest passes that eager PyTorch has for it."""
    return from_distortion(mse_loss(x_hat, x, reduction="none").sum(1), log_sigma2, x.shape[1])


def loss_by_rows(x: Tensor, x_hat: Tensor, log_sigma2: Tensor) -> Tensor:
    return -by_rows(x, x_hat, log_sigma2).mean()


def loss_by_mse_loss(x: Tensor, x_hat: Tensor, log_sigma2: Tensor) -> Tensor:
    distortion = mse_loss(x_hat, x, reduction="sum") / len(x)
    return -from_distortion(distortion, log_sigma2, x.shape[1])


def loss(x: Tensor, x_hat: Tensor, log_sigma2: Tensor) -> Tensor:
    return -gaussian_log_likelihood_mean(x, x_hat, log_sigma2)


def make_data(setting, num_samples: int, num_features: int, noise: str = "one") -> list[Tensor]:
    torch.manual_seed(0)
    shape = (setting.size(num_samples), num_features)
    x, x_hat = torch.randn(shape), torch.randn(shape)
    log_sigma2 = {"one": torch.tensor(0.3), "features": torch.randn(shape[1]), "elements": torch.randn(shape)}
    return [
        x.to(setting.device),
        x_hat.to(setting.device).requires_grad_(),
        log_sigma2[noise].to(setting.device).requires_grad_(),
    ]


@each_size
def test_gaussian_log_likelihood(compare, setting, num_samples, num_features):
    data = make_data(setting, num_samples, num_features)

    def step(function):
        # forward: x and x_hat in; backward: both in, a gradient out
        return Contender(function, data, bytes=5 * data[0].nbytes)

    compare(
        {
            "ours": step(gaussian_log_likelihood),
            "eager as written": step(as_written),
            "eager by rows": step(by_rows),
            "eager by mse_loss": step(by_mse_loss),
            "compiled as written": step(setting.compiled(as_written)),
            "compiled by rows": step(setting.compiled(by_rows)),
        }
    )


@pytest.mark.parametrize("noise", ["features", pytest.param("elements", marks=pytest.mark.only_cpu)])
def test_gaussian_log_likelihood_noise(compare, setting, noise):
    data = make_data(setting, 1000, 784, noise)

    def step(function):
        return Contender(function, data, bytes=5 * data[0].nbytes + 3 * data[2].nbytes)

    compare(
        {
            "ours": step(gaussian_log_likelihood),
            "eager": step(as_written),
            "compiled": step(setting.compiled(as_written)),
        }
    )


@each_size
def test_gaussian_log_likelihood_mean(compare, setting, num_samples, num_features):
    data = make_data(setting, num_samples, num_features)
    # x and x_hat in, a gradient out
    num_bytes = 3 * data[0].nbytes

    def step(function):
        return Contender(function, data, bytes=num_bytes)

    compare(
        {
            "ours": step(loss),
            "eager by rows": step(loss_by_rows),
            "eager by mse_loss": step(loss_by_mse_loss),
            "compiled by rows": step(setting.compiled(loss_by_rows)),
            "copy: x - x_hat": Contender(
                torch.sub, [tensor.detach() for tensor in data[:2]], bytes=num_bytes
            ),
        }
    )


def test_expected_gaussian_log_likelihood(compare, setting):
    x, _, log_sigma2 = make_data(setting, 1000, 784)
    num_samples, num_features = x.shape
    shapes = [(num_samples, LATENT_DIM)] * 2 + [(num_features, LATENT_DIM), (num_features,)]
    others = [torch.randn(shape).to(setting.device).requires_grad_() for shape in shapes]
    flops = 3 * 2 * num_samples * num_features * LATENT_DIM

    def step(function):
        return Contender(function, [x, *others, log_sigma2], flops=flops)

    compare(
        {
            "ours": step(expected_gaussian_log_likelihood),
            "eager": step(EXPECTED),
            "compiled": step(setting.compiled(EXPECTED)),
        }
    )
