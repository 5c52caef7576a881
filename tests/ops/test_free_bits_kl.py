"""free_bits_kl: what is minimised, what is reported, and which latents have a gradient."""

import pytest
import torch

from lineavae.ops import free_bits_kl, gaussian_kl, gaussian_kl_per_dimension


@pytest.fixture
def posterior(device):
    """Eight latents, the mean KL of the first the smallest."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.1, 2, 8, dtype=torch.float64)
    mean, logvar = scale * torch.randn(2, 50, 8, generator=generator, dtype=torch.float64)
    return mean.to(device).requires_grad_(), logvar.to(device).requires_grad_()


def test_definition_and_gradient(posterior):
    mean, logvar = posterior
    per_latent = gaussian_kl_per_dimension(mean, logvar).mean(0)
    free = 0.5
    below = per_latent < free
    assert 0 < below.sum() < 8
    objective, kl = free_bits_kl(mean, logvar, free)
    torch.testing.assert_close(objective, free * below.sum() + per_latent[~below].sum())
    torch.testing.assert_close(kl, gaussian_kl(mean, logvar).mean())
    gradients = torch.autograd.grad(objective, posterior, retain_graph=True)
    for gradient, expected in zip(gradients, torch.autograd.grad(kl, posterior), strict=True):
        assert not gradient[:, below].any()
        assert torch.equal(gradient[:, ~below], expected[:, ~below])


def test_acts_on_the_mean_over_the_batch_not_on_each_sample():
    # KL 2 and 0: the mean 1 is above the free 0.5 although half of the samples is below
    mean = torch.tensor([[2.0], [0.0]], requires_grad=True)
    objective, _ = free_bits_kl(mean, torch.zeros(2, 1), 0.5)
    assert objective.item() == 1.0
    objective.backward()
    assert mean.grad.tolist() == [[1.0], [0.0]]


def test_none_free_is_the_kl(posterior):
    objective, kl = free_bits_kl(*posterior, 0)
    assert torch.equal(objective, kl)


def test_one_number_of_free_bits_per_latent(posterior):
    mean, logvar = posterior
    free = torch.linspace(0, 3, 8, dtype=torch.float64, device=mean.device)
    per_latent = gaussian_kl_per_dimension(mean, logvar).mean(0)
    expected = torch.stack([torch.maximum(k, f) for k, f in zip(per_latent, free, strict=True)]).sum()
    torch.testing.assert_close(free_bits_kl(mean, logvar, free)[0], expected)
    torch.testing.assert_close(
        free_bits_kl(mean, logvar, torch.tensor(0.5))[0], free_bits_kl(mean, logvar, 0.5)[0]
    )


def test_models_are_apart(posterior):
    mean, logvar = (tensor.detach().reshape(5, 10, 8) for tensor in posterior)
    objective, kl = free_bits_kl(mean, logvar, 0.5, event_dim=1)
    mapped = torch.func.vmap(lambda m, t: free_bits_kl(m, t, 0.5))(mean, logvar)
    for i in range(5):
        alone = free_bits_kl(mean[i], logvar[i], 0.5)
        for actual, expected in zip(
            (objective[i], kl[i], mapped[0][i], mapped[1][i]), 2 * alone, strict=True
        ):
            torch.testing.assert_close(actual, expected)


def test_half_precision_gives_float32(posterior):
    mean, logvar = (tensor.bfloat16() for tensor in posterior)
    for actual, expected in zip(
        free_bits_kl(mean, logvar, 0.5), free_bits_kl(mean.double(), logvar.double(), 0.5), strict=True
    ):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("shape", "free_bits", "error", "message"),
    [
        ((5, 3), -0.1, ValueError, "free_bits must be finite and >= 0, got -0.1"),
        ((5, 3), "1", TypeError, "free_bits must be a number, got str"),
        ((5, 3), torch.ones(2), ValueError, "free_bits must be a number or have shape () or (K,) with K=3"),
        ((5, 3), torch.ones(3, requires_grad=True), ValueError, "free_bits must not require grad"),
        ((3,), 0.1, ValueError, "mean must have shape (*models, N, K) with N at least 1, got (3,)"),
        ((0, 3), 0.1, ValueError, "mean must have shape (*models, N, K) with N at least 1, got (0, 3)"),
    ],
)
def test_says_what_is_wrong(shape, free_bits, error, message):
    with pytest.raises(error) as caught:
        free_bits_kl(torch.zeros(shape), torch.zeros(shape), free_bits)
    assert str(caught.value).startswith(f"free_bits_kl: {message}")
