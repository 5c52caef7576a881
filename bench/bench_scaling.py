"""How cost grows, ours beside the fastest that the other benchmarks know, along one size at a time.

One thread. docs/speed.py draws the curves; "ours" is what a call takes, of everything named.
"""

from functools import partial
from inspect import unwrap

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from bench_collapse_statistics import by_comparison, make_thresholds
from bench_linear_vae_ascent import by_hand
from bench_linear_vae_ascent import ours as train
from harness.measure import Contender
from lineavae import reference
from lineavae.linear import PPCA, Moments
from lineavae.ops import collapse_statistics, linear_vae_elbo_from_moments

pytestmark = [pytest.mark.only_cpu, pytest.mark.only_1_thread]
PER_SAMPLE = unwrap(reference.linear_vae_elbo)
FROM_MOMENTS = unwrap(reference.linear_vae_elbo_from_moments)
STEPS = 20


def normal(*shape, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(shape, generator=generator)


def parameters(num_features, latent_dim):
    shapes = [(num_features, latent_dim), (latent_dim, num_features), (num_features,), (latent_dim,), ()]
    return [normal(*shape, scale=0.05).requires_grad_() for shape in shapes]


def elbo_of_samples(num_samples, setting):
    """Take a step of a linear VAE with 256 features and 32 latents."""
    x, values = normal(num_samples, 256), parameters(256, 32)
    moments = Moments.from_data(x)
    statistics = moments.sample_mean.float(), moments.covariance.float()

    def mean_elbo(x, *values):
        return PER_SAMPLE(x, *values).mean()

    return {
        "ours": Contender(linear_vae_elbo_from_moments, [*statistics, *values]),
        "torch.compile, per sample": Contender(setting.compiled(mean_elbo), [x, *values]),
    }


def elbo_from_moments(num_features, latent_dim, setting):
    root = normal(num_features, num_features, scale=num_features**-0.5)
    inputs = [normal(num_features), root @ root.mT, *parameters(num_features, latent_dim)]
    return {
        "ours": Contender(linear_vae_elbo_from_moments, inputs),
        "torch.compile": Contender(setting.compiled(FROM_MOMENTS), inputs),
    }


def elbo_of_features(num_features, setting):
    """Take a step from moments with 50 latents."""
    return elbo_from_moments(num_features, 50, setting)


def elbo_of_latents(latent_dim, setting):
    """Take a step from moments with 512 features."""
    return elbo_from_moments(512, latent_dim, setting)


def ppca_of_samples(num_samples, setting):
    """Fit 20 components to 256 features."""
    x = np.random.default_rng(0).standard_normal((num_samples, 256))  # float64, in which we always compute
    fits = {
        "ours": lambda x: PPCA(20).fit(x.numpy()),
        "scikit-learn": lambda x: PCA(20, svd_solver="covariance_eigh").fit(x.numpy()),
    }
    return {name: Contender(fit, [torch.from_numpy(x)]) for name, fit in fits.items()}


def statistics_of_thresholds(count, setting):
    """Collect statistics of 20 000 posteriors with 100 latents; from two thresholds on with a histogram."""
    mean, logvar = normal(2, setting.size(20_000), 100)
    posterior = [mean, logvar]
    thresholds = make_thresholds(count)
    ours = partial(collapse_statistics, thresholds=thresholds, histogram=count > 1)
    return {
        "ours": Contender(lambda *posterior: ours(*posterior), posterior),
        "torch.compile": Contender(setting.compiled(by_comparison), [*posterior, torch.tensor(thresholds)]),
    }


def ascent_of_models(models, setting):
    """Take 20 steps of Adam on linear VAEs with 64 features and 16 latents."""
    num_features, latent_dim = 64, 16
    x = normal(2000, num_features)
    weights = normal(models, num_features, latent_dim, scale=0.1)
    inputs = [x.mT.cov(), weights, weights.clone(), torch.zeros(models, latent_dim)]
    return {
        "ours": Contender(train(STEPS), inputs),
        "bmm": Contender(by_hand(STEPS), inputs),
    }


AXES = {
    "samples": (elbo_of_samples, [1000, 4000, 16_000, 64_000]),
    "features": (elbo_of_features, [64, 128, 256, 512, 1024]),
    "latents": (elbo_of_latents, [8, 32, 128, 256]),
    "samples of PPCA": (ppca_of_samples, [1000, 4000, 16_000, 64_000]),
    "thresholds": (statistics_of_thresholds, [1, 4, 16, 64]),
    "models": (ascent_of_models, [1, 8, 64, 512]),
}


@pytest.mark.parametrize("axis", AXES)
def test_scaling(compare, setting, axis):
    make, sizes = AXES[axis]
    for size in sizes[:1] if setting.dry else sizes:
        torch.compiler.reset()
        compare(make(size, setting), rounds=7, at=size)
