"""The phase diagram, small: what is measured lies on the theory's stairs, and the figure shows it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lineavae.data import load_digits
from lineavae.experiments import EXPERIMENTS, execute

EXPERIMENT = EXPERIMENTS["phase-diagram"]
SMALL = replace(
    EXPERIMENT.presets["quick"],
    num_images=300,
    latent_dims=(2, 4, 6),
    num_sigma2=8,
    num_beta=4,
    seeds=(0, 1),
    steps=1500,
    learning_rate=0.01,
    rank=20,
    annealing_steps=700,
    num_stochastic=2,
    stochastic_steps=20,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return execute(EXPERIMENT, SMALL, tmp_path_factory.mktemp("phase-diagram"))


def test_measured_is_theory(run):
    curves = run.results["curves"]
    images = load_digits().subset(300, seed=0).to_tensor(torch.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(images.numpy().T, bias=True))[::-1]
    np.testing.assert_allclose(curves["eigenvalues"], eigenvalues, atol=1e-12)
    sigma2 = curves["sigma2"]
    expected = [[min(k, (eigenvalues > value).sum()) for value in sigma2] for k in (2, 4, 6)]
    assert np.array_equal(curves["theory"], expected)
    nearest = abs(eigenvalues[:6, None] / sigma2 - 1).min(0)
    assert (nearest > 0.02).sum() >= 6
    for name in ("fixed", "fixed.least", "fixed.most"):
        assert np.array_equal(curves[name][:, nearest > 0.02], np.array(expected)[:, nearest > 0.02]), name
    assert np.array_equal(curves["annealed"][nearest > 0.02], np.array(expected)[1, nearest > 0.02])
    assert (curves["half annealed"] >= curves["annealed"]).all()
    verdicts = [claim["verdict"] for claim in run.results["claims"]]
    assert verdicts[0] == verdicts[2] == "holds"
    quantities = run.results["quantities"]
    assert quantities["σ² fixed: models away from a step"]["measured"] >= 3 * 2 * 6
    assert quantities["σ² fixed: of these not as in theory"]["measured"] == 0


def test_figure_has_what_was_measured(run):
    curves = run.results["curves"]
    mapped, stairs, others, _ = EXPERIMENT.figures["phase-diagram"](run.results).axes
    assert np.array_equal(mapped.collections[0].get_array().ravel(), curves["map"].ravel())
    for index, (line, latent_dim) in enumerate(zip(stairs.lines, (2, 4, 6), strict=True)):
        assert np.array_equal(line.get_ydata(), 100 * (1 - curves["fixed"][index] / latent_dim))
        steps = stairs.patches[index].get_data()
        theory = 100 * (1 - curves["theory"][index] / latent_dim)
        place = np.searchsorted(steps.edges, curves["sigma2"][1:-1]) - 1
        assert np.allclose(steps.values[place], theory[1:-1])
    assert len(others.lines) == 4
