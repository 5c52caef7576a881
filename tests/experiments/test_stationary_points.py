from dataclasses import replace

import numpy as np
import pytest
import torch

from lineavae.experiments import EXPERIMENTS, execute
from lineavae.experiments.seeds import combine

EXPERIMENT = EXPERIMENTS["stationary-points"]
TINY = replace(EXPERIMENT.presets["quick"], num_images=200, grid=11)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return execute(EXPERIMENT, TINY, tmp_path_factory.mktemp("stationary-points"))


@pytest.fixture(scope="module")
def eigenvalues():
    x = TINY.images.to_tensor(torch.float64).numpy()
    return np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True))[::-1]


def test_as_many_components_are_captured_as_in_the_paper(run):
    quantities = run.results["quantities"]
    for component, captured in ((4, 0), (6, 1), (8, 2)):
        found = quantities[f"σ² = λ{component}: components captured"]
        assert found["measured"] == found["published"] == captured


def test_surfaces_are_those_of_the_eigenvalues(run, eigenvalues):
    # zero columns along eigenvectors: the likelihood is a sum over the components
    curves = run.results["curves"]
    for panel, sigma2 in enumerate(eigenvalues[[3, 5, 7]]):
        variances = sigma2 + curves["coordinates"][panel] ** 2
        first, second = (
            -0.5 * (np.log(variances / sigma2) + value / variances - value / sigma2)
            for value in eigenvalues[[4, 6]]
        )
        surface = curves["log_likelihood"][panel]
        np.testing.assert_allclose(surface - surface[5, 5], first[:, None] + second, atol=1e-9)
        np.testing.assert_allclose(curves["elbo"][panel], surface, atol=1e-9)
    # the highest points of the last panel are on it
    assert curves["coordinates"][2][-1] > np.sqrt(eigenvalues[4] - eigenvalues[7])


def test_verdicts(run, eigenvalues):
    # each of two zero columns rises towards each unused eigenvalue above the noise
    curves = run.results["curves"]
    assert curves["index"].tolist() == [2 * (4 - 4), 2 * (6 - 4), 2 * (8 - 4)]
    assert curves["is_maximum"].tolist() == [True, False, False]
    expected = (eigenvalues[4] / eigenvalues[5] - 1) / eigenvalues[5]
    assert run.results["quantities"]["σ² = λ6: curvature along u5"]["measured"] == pytest.approx(expected)


def test_figure_prints_the_verdicts(run):
    figure = EXPERIMENT.figures["figure-1"](run.results)
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    assert "rises along neither;\na maximum over all directions" in titles[0]
    assert "rises along $u_5$;\na saddle with 4 directions" in titles[1]
    assert "rises along $u_5$ and $u_7$;\na saddle with 8 directions" in titles[2]
    assert "rises along 0, 1 and 2 of two" in figure.get_suptitle()
    assert "MNIST-5k, N=200" in figure.get_supxlabel()
    assert "u_5" in figure.axes[0].get_xlabel()
    assert "u_7" in figure.axes[0].get_ylabel()
    assert run.results["claims"][0]["verdict"] == "holds"


def test_figure_has_one_scale_centred_at_the_point(run):
    *panels, bar = EXPERIMENT.figures["figure-1"](run.results).axes
    highest = max(curve.max() - curve[5, 5] for curve in run.results["curves"]["log_likelihood"])
    assert {panel.collections[0].get_clim() for panel in panels} == {(-highest, highest)}
    assert "nats" in bar.get_ylabel()


def test_presets():
    for preset in EXPERIMENT.presets.values():
        assert preset.num_images == 1000
        assert preset.grid % 2 == 1


def test_headline_names_quantities(run):
    assert set(EXPERIMENT.headline) <= set(run.results["quantities"])


def test_figure_of_several_seeds(run):
    results = combine([run.results] * 2, (0, 1))
    figure = EXPERIMENT.figures["figure-1"](results)
    assert "means of 2 seeds" in figure.get_supxlabel()
