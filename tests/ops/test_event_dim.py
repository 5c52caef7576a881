"""How many trailing dimensions are one sample's, against torch.distributions.Independent."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from lineavae import ops

IMAGES = (4, 3, 5, 6)  # (N, C, H, W)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def divergence(mean: torch.Tensor, logvar: torch.Tensor, event_dim: int) -> torch.Tensor:
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), event_dim)
    return kl_divergence(Independent(Normal(mean, (logvar / 2).exp()), event_dim), prior)


@pytest.mark.parametrize("event_dim", [1, 2, 3, 4])
def test_kl_equals_torch_distributions(event_dim):
    mean, logvar = random(*IMAGES), random(*IMAGES, seed=1)
    expected = divergence(mean, logvar, event_dim)
    torch.testing.assert_close(ops.gaussian_kl(mean, logvar, event_dim=event_dim), expected)
    z, kl = ops.reparameterized_kl(mean, logvar, num_draws=2, seed=3, event_dim=event_dim)
    torch.testing.assert_close(kl, expected)
    rows, _ = ops.reparameterized_kl(mean.flatten(1), logvar.flatten(1), num_draws=2, seed=3)
    assert torch.equal(z, rows.unflatten(-1, IMAGES[1:]))


def test_free_bits_of_each_latent_of_the_event():
    mean, logvar = random(*IMAGES), random(*IMAGES, seed=1)
    free_bits = 0.5 + random(3, 1, 1).abs()
    objective, kl = ops.free_bits_kl(mean, logvar, free_bits, event_dim=3)
    each = divergence(mean, logvar, 0).mean(0)
    torch.testing.assert_close(kl, each.sum())
    torch.testing.assert_close(objective, each.maximum(free_bits).sum())


@pytest.mark.parametrize("noise", [(), (1, 1, 1), (3, 1, 1), (6,), (3, 5, 6), (4, 1, 1, 1), (2, 1, 1, 1, 1)])
def test_gaussian_equals_torch_distributions(noise):
    x, x_hat, log_sigma2 = random(*IMAGES), random(2, *IMAGES, seed=1), random(*noise, seed=2)
    expected = Independent(Normal(x_hat, (log_sigma2 / 2).exp().expand(x_hat.shape)), 3).log_prob(x)
    assert expected.shape == (2, 4)
    torch.testing.assert_close(ops.gaussian_log_likelihood(x, x_hat, log_sigma2, event_dim=3), expected)
    mean = ops.gaussian_log_likelihood_mean(x, x_hat, log_sigma2, event_dim=3)
    torch.testing.assert_close(mean, expected.mean(-1))


def test_bernoulli_equals_torch_distributions():
    x, logits = random(*IMAGES).sigmoid().round(), random(2, *IMAGES, seed=1)
    expected = Independent(Bernoulli(logits=logits), 3).log_prob(x)
    torch.testing.assert_close(ops.bernoulli_log_likelihood(x, logits, event_dim=3), expected)


ONE = torch.zeros(())
CALLS = {
    "gaussian_kl": (ops.gaussian_kl, ()),
    "reparameterized_kl": (ops.reparameterized_kl, ()),
    "free_bits_kl": (ops.free_bits_kl, (0.1,)),
    "gaussian_log_likelihood": (ops.gaussian_log_likelihood, (ONE,)),
    "gaussian_log_likelihood_mean": (ops.gaussian_log_likelihood_mean, (ONE,)),
    "bernoulli_log_likelihood": (ops.bernoulli_log_likelihood, ()),
}


@pytest.mark.parametrize("name", CALLS)
def test_more_than_two_dimensions_must_be_said(name):
    op, rest = CALLS[name]
    images, rows = torch.zeros(IMAGES), torch.zeros(4, 3)
    with pytest.raises(ValueError, match=rf"{name}: event_dim must be given .* \(4, 3, 5, 6\)") as caught:
        op(images, images, *rest)
    for reading in ("event_dim=3 sums over all of (3, 5, 6)", "event_dim=1 sums over", "movedim(1, -1)"):
        assert reading in str(caught.value)
    with pytest.raises(ValueError, match=rf"{name}: event_dim must be at least 1, got 0"):
        op(images, images, *rest, event_dim=0)
    with pytest.raises(TypeError, match=rf"{name}: event_dim must be an int, got float"):
        op(images, images, *rest, event_dim=3.0)
    with pytest.raises(ValueError, match=rf"{name}: (event_dim|mean|x) must .* \(4, 3\)"):
        op(rows, rows, *rest, event_dim=3)


def test_names_what_does_not_broadcast_to_the_event():
    images = torch.zeros(IMAGES)
    for shape in ((2, 1, 1), (3,), (4, 1)):
        with pytest.raises(ValueError, match="log_sigma2 must broadcast to the event"):
            ops.gaussian_log_likelihood(images, images, torch.zeros(shape), event_dim=3)
        with pytest.raises(ValueError, match="kl_weight must be a number or broadcast to the event"):
            ops.gaussian_kl(images, images, kl_weight=torch.ones(shape), event_dim=3)
        with pytest.raises(ValueError, match="free_bits must be a number or broadcast to the event"):
            ops.free_bits_kl(images, images, torch.ones(shape), event_dim=3)
    with pytest.raises(ValueError, match=r"x_hat must have shape .* got \(4, 3, 6, 5\)"):
        ops.gaussian_log_likelihood(images, torch.zeros(4, 3, 6, 5), ONE, event_dim=3)
