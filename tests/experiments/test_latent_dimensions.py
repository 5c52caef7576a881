from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from lineavae.experiments import EXPERIMENTS, execute
from lineavae.experiments.seeds import combine

EXPERIMENT = EXPERIMENTS["latent-dimensions"]
TINY = replace(
    EXPERIMENT.presets["quick"],
    num_images=60,
    latent_dims=(1, 3, 5, 10),
    frozen_latent_dim=3,
    trained_latent_dims=(3,),
    steps=1000,
    learning_rate=0.01,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return execute(EXPERIMENT, TINY, tmp_path_factory.mktemp("latent-dimensions"))


@pytest.fixture(scope="module")
def spectrum():
    x = TINY.images.to_tensor(torch.float64).numpy()
    eigenvalues, eigenvectors = np.linalg.eigh(np.cov(x, rowvar=False, bias=True))
    return x, eigenvalues[::-1], eigenvectors[:, ::-1]


def noise(eigenvalues, latent_dim):
    return eigenvalues[latent_dim:].sum() / (len(eigenvalues) - latent_dim)


def test_likelihood_is_the_maximum(run, spectrum):
    # Tipping and Bishop (1999), equation 8 at the maximum, from the eigenvalues alone
    _, eigenvalues, _ = spectrum
    num_features = len(eigenvalues)
    expected = [
        -0.5
        * (
            num_features * (np.log(2 * np.pi) + 1)
            + np.log(eigenvalues[:latent_dim]).sum()
            + (num_features - latent_dim) * np.log(noise(eigenvalues, latent_dim))
        )
        for latent_dim in TINY.latent_dims
    ]
    np.testing.assert_allclose(run.results["curves"]["likelihood"], expected, rtol=1e-12)


def test_optimal_elbo_is_the_likelihood(run):
    curves = run.results["curves"]
    np.testing.assert_allclose(curves["optimal_elbo"], curves["likelihood"], rtol=1e-11)
    assert run.results["quantities"]["optimal ELBO: largest deviation"]["measured"] < 1e-8


def test_frozen_noise_is_swapped_into_each_maximum(run, spectrum):
    x, eigenvalues, eigenvectors = spectrum
    expected = []
    for latent_dim in TINY.latent_dims:
        leading = eigenvectors[:, :latent_dim]
        kept = eigenvalues[:latent_dim] - noise(eigenvalues, latent_dim)
        covariance = leading * kept @ leading.T + noise(eigenvalues, 3) * np.eye(len(eigenvalues))
        expected.append(multivariate_normal(x.mean(0), covariance).logpdf(x).mean())
    np.testing.assert_allclose(run.results["curves"]["frozen_likelihood"], expected, rtol=1e-9)


def test_training_reaches_the_optimum(run):
    gap = run.results["quantities"]["trained VAE, K=3: gap to the optimum"]["measured"]
    assert 0 <= gap < 0.1


def test_mnist5k_has_the_papers_shape(tmp_path):
    # the optimum at K=200 is 948.5 with a standard deviation of 3.9 over random subsets of 1000 images
    config = replace(EXPERIMENT.presets["quick"], latent_dims=(50, 125, 200, 275, 500))
    run = execute(EXPERIMENT, config, tmp_path)
    curves, quantities = run.results["curves"], run.results["quantities"]
    assert abs(quantities["likelihood, K=200"]["measured"] - 948.5) < 3 * 3.9
    assert (np.diff(curves["likelihood"]) > 0).all()
    best = quantities["noise of K=50: best K"]
    assert abs(best["measured"] - best["published"]) <= best["tolerance"]
    assert quantities["noise of K=50: lost from there to K=500"]["measured"] > 0


def test_figure_shows_the_curves(run):
    figure = EXPERIMENT.figures["figure-2"](run.results)
    everything, enlarged = figure.axes
    drawn = [line.get_ydata() for line in everything.get_lines()]
    names = ("likelihood", "optimal_elbo", "frozen_likelihood", "trained_elbo")
    for values, name in zip(drawn, names, strict=True):
        assert np.array_equal(values, run.results["curves"][name])
    assert np.array_equal(enlarged.get_lines()[0].get_xdata(), [3, 5, 10])
    assert "nats" in everything.get_ylabel()
    assert "noise of K = 3 the likelihood is highest at K = 10" in figure.get_suptitle()
    assert "MNIST-5k, N=60" in figure.get_supxlabel()


def test_claims(run):
    assert [claim["verdict"] for claim in run.results["claims"]] == ["holds", "does not hold", "holds"]


def test_presets():
    quick, full = EXPERIMENT.presets["quick"], EXPERIMENT.presets["full"]
    assert quick.trained_latent_dims == ()
    for preset in (quick, full):
        assert preset.num_images == 1000
        assert preset.frozen_latent_dim in preset.latent_dims
        assert set(preset.trained_latent_dims) <= set(preset.latent_dims)


def test_figure_of_several_seeds(run):
    results = combine([run.results] * 2, (0, 1))
    figure = EXPERIMENT.figures["figure-2"](results)
    assert "means of 2 seeds" in figure.get_supxlabel()
