from dataclasses import replace

import numpy as np
import pytest
import torch

from lineavae.experiments import EXPERIMENTS, execute
from lineavae.experiments.bernoulli_ppca import binarise
from lineavae.experiments.seeds import combine

EXPERIMENT = EXPERIMENTS["bernoulli-ppca"]
TINY = replace(
    EXPERIMENT.presets["quick"],
    num_images=60,
    latent_dim=4,
    steps=150,
    learning_rate=0.02,
    bound_samples=(1, 10, 100),
)
OBJECTIVES = ("analytic", "stochastic")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return execute(EXPERIMENT, TINY, tmp_path_factory.mktemp("bernoulli-ppca"))


@pytest.fixture(scope="module")
def measured(run):
    return {name: value["measured"] for name, value in run.results["quantities"].items()}


@pytest.fixture(scope="module")
def x():
    x = binarise(TINY.images.to_tensor(torch.float64), TINY.seed).numpy()
    return x[:, x.any(0) & ~x.all(0)]


def test_images_are_binarised_by_their_grey_values():
    pixels = torch.linspace(0, 1, 5, dtype=torch.float64).repeat(20_000, 1)
    drawn = binarise(pixels, seed=1)
    assert drawn.dtype == torch.float64
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    error = (pixels[0] * (1 - pixels[0]) / len(pixels)).sqrt()
    assert ((drawn.mean(0) - pixels[0]).abs() <= 4 * error).all()
    assert torch.equal(drawn, binarise(pixels, seed=1))
    assert not torch.equal(drawn, binarise(pixels, seed=2))


def test_independent_pixels(measured, x):
    frequency = x.mean(0)
    likelihood = np.where(x > 0, np.log(frequency), np.log(1 - frequency)).sum(1).mean()
    assert measured["independent pixels: ELBO"] == pytest.approx(likelihood, rel=1e-12)


def test_eigenvalues_of_the_correlation_matrix(measured, x):
    standardised = (x - x.mean(0)) / x.std(0)
    values = np.linalg.svd(standardised / np.sqrt(len(x)), compute_uv=False) ** 2
    assert measured["correlation matrix: eigenvalues above 1"] == (values > 1).sum()


def test_training_without_sampling_ends_higher(run, measured):
    curves = run.results["curves"]
    first = {curves[f"{objective}: ELBO"][0] for objective in OBJECTIVES}
    assert len(first) == 1
    for objective in OBJECTIVES:
        assert measured[f"{objective}: ELBO"] == pytest.approx(curves[f"{objective}: ELBO"][-1], rel=1e-12)
        assert measured[f"{objective}: ELBO"] > measured["independent pixels: ELBO"]
    assert measured["analytic: ELBO"] > measured["stochastic: ELBO"]
    overtaken = np.flatnonzero(curves["steps"] == measured["analytic: steps to stochastic end"])[0]
    assert curves["analytic: ELBO"][overtaken] >= measured["stochastic: ELBO"]
    assert curves["analytic: ELBO"][overtaken - 1] < measured["stochastic: ELBO"]


def test_bounds_are_above_the_elbo_and_rise(run, measured):
    curves = run.results["curves"]
    for objective in OBJECTIVES:
        above = [
            measured[f"{objective}: bound of {size} samples above the ELBO"] for size in TINY.bound_samples
        ]
        assert above[0] == pytest.approx(0, abs=2)  # one sample per image: the ELBO in expectation
        assert 0 < above[1] < above[2]
        expected = measured[f"{objective}: ELBO"] + np.array(above)
        np.testing.assert_allclose(curves[f"{objective}: bound"], expected, rtol=1e-12)


def test_live_latents(run, measured):
    for objective in OBJECTIVES:
        critical = run.results["curves"][f"{objective}: critical ε"]
        assert len(critical) == TINY.latent_dim
        assert measured[f"{objective}: live latents"] == (critical >= 0.01).sum()
        assert 0 < measured[f"{objective}: KL"] < critical.sum()


def test_gradient_is_lost_in_the_noise_of_sampling_at_the_end(measured):
    start, end = (
        measured[f"{name}: norm of gradient"] / measured[f"{name}: norm of sampling noise"]
        for name in ("start", "analytic")
    )
    assert end < 0.5 < 1 < start


def test_figure(run, measured):
    figure = EXPERIMENT.figures["bernoulli-ppca"](run.results)
    course, bound, spectrum = figure.axes
    assert "binarised; MNIST-5k, N=60" in figure.get_supxlabel()
    gain = measured["analytic: ELBO"] - measured["stochastic: ELBO"]
    assert f"ends {gain:.1f} nats higher" in figure.get_suptitle()
    assert course.get_ylabel() == "ELBO (nats per image)"
    elbo = f"{measured['analytic: ELBO']:.2f}".replace("-", "\N{MINUS SIGN}")
    assert f"analytic\n{elbo}" in [text.get_text() for text in course.texts]
    assert bound.get_xscale() == spectrum.get_yscale() == "log"


def test_headline_names_quantities(run):
    assert set(EXPERIMENT.headline) <= set(run.results["quantities"])


def test_figure_of_several_seeds(run):
    results = combine([run.results] * 2, (0, 1))
    figure = EXPERIMENT.figures["bernoulli-ppca"](results)
    assert "means of 2 seeds" in figure.get_supxlabel()
