from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from lineavae.experiments import EXPERIMENTS, execute
from lineavae.experiments.seeds import combine
from lineavae.experiments.theorem_1 import (
    generator_of_nearest_order,
    generator_of_proof,
    generators_of_jacobi,
    path_of_elbo,
    slope_of_elbo,
)
from lineavae.linear import LinearVAE, Moments

EXPERIMENT = EXPERIMENTS["theorem-1"]
TINY = replace(
    EXPERIMENT.presets["quick"],
    num_images=100,
    num_features=4,
    latent_dim=2,
    num_starts=40,
    newton_steps=60,
    ascent_steps=500,
    learning_rate=0.05,
    num_rotations=50,
)
SIGMA2 = 0.7


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return execute(EXPERIMENT, TINY, tmp_path_factory.mktemp("theorem-1"))


@pytest.fixture
def random():
    return np.random.default_rng(0)


def gap(weight):
    """Likelihood less ELBO under the best encoder, through the linear VAE."""
    model = LinearVAE(*weight.shape, dtype=torch.float64)
    model.weight.data.copy_(torch.as_tensor(weight))
    model.log_sigma2.data.fill_(np.log(SIGMA2))
    model.optimal_encoder_()
    x = Moments.from_data(torch.eye(len(weight), dtype=torch.float64))
    return (model.log_marginal_likelihood(x) - model.elbo(x)).item()


def test_every_stationary_point_is_the_global_maximum_or_a_saddle(run):
    quantities, curves = run.results["quantities"], run.results["curves"]
    for noise in ("fixed", "learned"):
        for search in ("Newton", "ascent"):
            found = {
                kind: quantities[f"σ² {noise}, {search}: {kind}"]["measured"]
                for kind in ("stationary points", "global maxima", "saddles", "other maxima")
            }
            assert found["other maxima"] == 0
            assert found["global maxima"] + found["saddles"] == found["stationary points"]
            # a maximum below the global one would be below it by no less than rounding
            assert (curves[f"{noise}, {search}: shortfall"] > -1e-10).all()
        # ascent ends at the global maximum, Newton's method finds saddles, some with oblique columns
        assert quantities[f"σ² {noise}, ascent: global maxima"]["measured"] == TINY.num_starts
        assert quantities[f"σ² {noise}, Newton: saddles"]["measured"] > 3
        assert quantities[f"σ² {noise}, Newton: columns not orthogonal"]["measured"] > 0


def test_the_symmetric_saddle(run):
    quantities = run.results["quantities"]
    assert quantities["symmetric saddle: gradient of the ELBO"]["measured"] < 1e-12
    assert quantities["symmetric saddle: gradient of the likelihood"]["measured"] > 1e-3
    assert quantities["symmetric saddle: largest eigenvalue of the Hessian"]["measured"] > 1e-3
    path = run.results["curves"]["path: symmetric saddle"]
    assert (path[1:] > 0).all()


def test_shares_of_falling_rotations(run):
    falls = [
        quantity["measured"]
        for name, quantity in run.results["quantities"].items()
        if "falls at first" in name
    ]
    assert 20 < falls[0] < 80
    assert falls[1] < falls[0]
    assert falls[2] == 0


def test_the_rotations_make_columns_orthogonal(random):
    for latent_dim in (1, 2, 3, 6):
        weight = random.standard_normal((6, latent_dim))
        for generators in (
            [generator_of_proof(weight)],
            [generator_of_nearest_order(weight)],
            generators_of_jacobi(weight),
        ):
            turned = weight
            for generator in generators:
                np.testing.assert_allclose(generator, -generator.T, atol=1e-12)
                turned = turned @ expm(generator)
            gram = turned.T @ turned
            np.testing.assert_allclose(gram, np.diag(gram.diagonal()), atol=1e-8)


def test_jacobi_rotations_raise_the_elbo_all_the_way(random):
    for latent_dim in (2, 3, 5):
        for _ in range(10):
            weight = random.standard_normal((6, latent_dim)) * random.uniform(0.1, 3, latent_dim)
            generators = generators_of_jacobi(weight)
            path = path_of_elbo(weight, SIGMA2, generators, parts=8)
            assert (np.diff(path) > -1e-13).all()
            assert path[-1] == pytest.approx(gap(weight), abs=1e-10)


def test_the_proofs_rotation_may_lower_the_elbo():
    # Two columns whose longer direction is nearer to the second: the way to the order of the singular
    # values goes through columns of equal length, where the gap is largest.
    turn = expm(1.4 * np.array([[0.0, -1.0], [1.0, 0.0]]))
    weight = np.diag([2.0, 1.0]) @ turn
    path = path_of_elbo(weight, SIGMA2, [generator_of_proof(weight)])
    assert path.min() < -0.05
    assert gap(weight) == pytest.approx(path[-1], abs=1e-10)
    part = expm(0.3 * generator_of_proof(weight))
    assert gap(weight @ part) > gap(weight)
    assert slope_of_elbo(weight, SIGMA2, generator_of_proof(weight)) < 0
    assert slope_of_elbo(weight, SIGMA2, generator_of_nearest_order(weight)) > 0


def test_slope_is_the_derivative(random):
    weight, step = random.standard_normal((5, 3)), 1e-5
    generator = random.standard_normal((3, 3))
    generator -= generator.T
    ends = [gap(weight @ expm(sign * step * generator)) for sign in (1, -1)]
    slope = slope_of_elbo(weight, SIGMA2, generator)
    assert slope == pytest.approx((ends[1] - ends[0]) / (2 * step), abs=1e-7)


def test_figure(run):
    figure = EXPERIMENT.figures["theorem-1"](run.results)
    points, rotations = figure.axes
    assert figure.get_suptitle().startswith("None of ")
    assert "below the global maximum (nats" in points.get_xlabel()
    labels = [text.get_text() for text in rotations.get_legend().get_texts()]
    assert labels == ["proof, order of the SVD", "proof, nearest order", "Jacobi", "symmetric saddle, proof"]


def test_headline_names_quantities(run):
    assert set(EXPERIMENT.headline) <= set(run.results["quantities"])


def test_figure_of_several_seeds(run):
    results = combine([run.results] * 2, (0, 1))
    figure = EXPERIMENT.figures["theorem-1"](results)
    assert "means of 2 seeds" in figure.get_supxlabel()
