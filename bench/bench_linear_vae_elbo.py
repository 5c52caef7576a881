"""One full-batch step, ELBO and all its gradients, of a linear VAE on 784-pixel images with 200 latents.

Four forms of the same number: per sample, from moments, from a factor in the eigenbasis, and their eager and
compiled references. The yardstick of the moments form is the rate of a plain matrix product of the machine in
the same run.
"""

import pytest
import torch

from lineavae import reference
from lineavae.data import load_mnist5k
from lineavae.linear import Moments
from lineavae.ops import linear_vae_elbo, linear_vae_elbo_from_factor, linear_vae_elbo_from_moments

LATENT_DIM = 200


def parameters(num_features):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return (0.05 * torch.randn(shape, generator=generator)).requires_grad_()

    return [
        normal(num_features, LATENT_DIM),
        normal(LATENT_DIM, num_features),
        normal(num_features),
        normal(LATENT_DIM),
        normal(),
    ]


def step(elbo, values):
    def run():
        value = elbo(*values)
        return torch.autograd.grad(value, values, torch.ones_like(value))

    return run


@pytest.fixture(scope="module")
def images():
    return load_mnist5k().subset(1000, seed=0).to_tensor()


@pytest.fixture(scope="module")
def moments(images):
    return Moments.from_data(images)


def gemm_rate(threads):
    """Return a product of the step's own shapes, S [W | V'], and its flops."""
    left, right = torch.rand(784, 784), torch.rand(784, 2 * LATENT_DIM)
    return lambda: left @ right, 2 * 784 * 784 * 2 * LATENT_DIM


def test_linear_vae_elbo(compare, threads, images):
    values = parameters(images.shape[1])

    def eager(*values):
        return reference.linear_vae_elbo(images, *values)

    compare(
        {
            "ours": step(lambda *values: linear_vae_elbo(images, *values), values),
            "eager": step(eager, values),
            "compiled": step(torch.compile(eager), values),
        }
    )


def test_linear_vae_elbo_from_moments(compare, threads, images, moments):
    num_features = images.shape[1]
    values = parameters(num_features)
    mean, covariance = moments.sample_mean.float(), moments.covariance.float()

    def ours(*values):
        return linear_vae_elbo_from_moments(mean, covariance, *values)

    def eager(*values):
        return reference.linear_vae_elbo_from_moments(mean, covariance, *values)

    def eager_batch(*values):
        return reference.linear_vae_elbo(images, *values).mean()

    product, product_flops = gemm_rate(threads)
    medians = compare(
        {
            "ours": step(ours, values),
            "eager": step(eager, values),
            "compiled": step(torch.compile(eager), values),
            "eager batch form": step(eager_batch, values),
            "compiled batch form": step(torch.compile(eager_batch), values),
            "one product": product,
        }
    )
    flops = 4 * num_features**2 * LATENT_DIM + 8 * num_features * LATENT_DIM**2
    rate = flops / medians["ours"] / (product_flops / medians["one product"])
    print(f"\nshare of the rate of one matrix product: {rate:.3f}")


def test_linear_vae_elbo_from_factor(compare, threads, images, moments):
    num_features = images.shape[1]
    eigenvalues, _ = moments.eigh()
    eigenvalues = eigenvalues[eigenvalues > 1e-7 * eigenvalues[0]]
    rank = len(eigenvalues)
    mean, factor = torch.zeros(rank), eigenvalues.sqrt().float()
    full_mean, covariance = moments.sample_mean.float(), moments.covariance.float()
    values, full_values = parameters(rank), parameters(num_features)

    def ours(*values):
        return linear_vae_elbo_from_factor(mean, factor, *values, num_features=num_features)

    def eager(*values):
        return reference.linear_vae_elbo_from_factor(mean, factor, *values, 1.0, num_features)

    def eager_moments(*values):
        return reference.linear_vae_elbo_from_moments(full_mean, covariance, *values)

    compare(
        {
            "ours": step(ours, values),
            "eager": step(eager, values),
            "compiled": step(torch.compile(eager), values),
            "eager moments form": step(eager_moments, full_values),
        }
    )


def test_number_of_samples(compare, threads, images, moments):
    """From moments, 60 000 samples cost what 1000 cost; the batch form costs sixty times more."""
    many = images.repeat(60, 1)
    num_features = images.shape[1]
    values = parameters(num_features)
    of_many = Moments.from_data(many)

    def from_moments(statistics):
        mean, covariance = statistics.sample_mean.float(), statistics.covariance.float()
        return step(lambda *values: linear_vae_elbo_from_moments(mean, covariance, *values), values)

    compare(
        {
            "ours": from_moments(moments),
            "ours, 60 000 samples": from_moments(of_many),
            "ours, batch form, 60 000 samples": step(lambda *v: linear_vae_elbo(many, *v).mean(), values),
        },
        rounds=5,
    )
