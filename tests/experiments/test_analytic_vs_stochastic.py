import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from lineavae.experiments import EXPERIMENTS, analytic_vs_stochastic, execute
from lineavae.experiments.seeds import combine
from lineavae.linear import LinearVAE, Moments

EXPERIMENT = EXPERIMENTS["analytic-vs-stochastic"]
LATENT_DIM = 3
TINY = replace(
    EXPERIMENT.presets["quick"],
    num_images=60,
    latent_dim=LATENT_DIM,
    steps=1000,
    learning_rates=(0.01,),
)
GRID = replace(TINY, steps=40, learning_rates=(1e-4, 0.02))
OBJECTIVES = ("analytic", "stochastic")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return execute(EXPERIMENT, TINY, tmp_path_factory.mktemp("analytic-vs-stochastic"))


@pytest.fixture(scope="module")
def grid_run(tmp_path_factory):
    return execute(EXPERIMENT, GRID, tmp_path_factory.mktemp("grid"))


def measured_by(run):
    return {name: value["measured"] for name, value in run.results["quantities"].items()}


@pytest.fixture(scope="module")
def measured(run):
    return measured_by(run)


@pytest.fixture(scope="module")
def eigenvalues():
    x = TINY.images.to_tensor(torch.float64).numpy()
    return np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True))[::-1]


def moments_of_spectrum(eigenvalues):
    """Moments with the coordinate axes as principal axes."""
    axes = (len(eigenvalues) * torch.tensor(eigenvalues, dtype=torch.float64)).sqrt().diag()
    return Moments.from_data(torch.cat([axes, -axes]))


def test_optimum_is_that_of_ppca(measured, eigenvalues):
    # Tipping and Bishop (1999), equation 8 at the maximum, from the eigenvalues alone
    noise = eigenvalues[LATENT_DIM:].mean()
    log_det = np.log(eigenvalues[:LATENT_DIM]).sum() + (784 - LATENT_DIM) * np.log(noise)
    expected = -0.5 * (784 * (np.log(2 * np.pi) + 1) + log_det)
    assert measured["pPCA optimum"] == pytest.approx(expected, rel=1e-12)


def test_analytic_training_ends_at_the_optimum_and_stochastic_below(measured):
    assert 0 <= measured["analytic: gap to the optimum"] < 0.1
    assert measured["stochastic: gap to the optimum"] > measured["analytic: gap to the optimum"]
    for objective in OBJECTIVES:
        assert measured[f"{objective}: ELBO"] == pytest.approx(
            measured["pPCA optimum"] - measured[f"{objective}: gap to the optimum"], rel=1e-12
        )


def test_rotation_closes_a_part_of_the_gap(measured):
    for objective in OBJECTIVES:
        rotated = measured[f"{objective}: gap after SVD rotation"]
        assert 0 <= rotated < measured[f"{objective}: gap to the optimum"]


def test_claim(run, measured):
    (claim,) = run.results["claims"]
    assert claim["verdict"] == "holds"
    step = int(re.search(r"by step (\d+) of 1000", claim["evidence"])[1])
    curves = run.results["curves"]
    reached = curves["analytic"][0] >= measured["stochastic: ELBO"]
    assert curves["steps"][reached][0] == step


def test_noise_is_that_of_maximum_likelihood(measured):
    assert measured["analytic: σ² / σ²_MLE"] == pytest.approx(1, abs=2e-3)
    assert measured["stochastic: σ² / σ²_MLE"] > 1.002


@pytest.mark.parametrize(("turned", "found"), [("latents", [0, 100, 100]), ("columns", [0, 0, 100])])
def test_axes_that_each_method_finds(turned, found):
    moments = moments_of_spectrum([8.0, 4.0, 2.0, 0.1, 0.1])
    rotation, _ = torch.linalg.qr(torch.tensor([[1.0, 1, 1], [1, -1, 1], [1, 1, -2]], dtype=torch.float64))
    lengths = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64).diag()
    model = LinearVAE(5, 3, dtype=torch.float64)
    with torch.no_grad():
        model.weight.zero_()
        # turned in the latent space, which the SVD undoes, or in the principal subspace, which it does not
        model.weight[:3] = lengths @ rotation if turned == "latents" else rotation @ lengths
    quantities = analytic_vs_stochastic._judge("analytic", model, model, moments)
    shares = [
        quantities[f"analytic: axes by {source}"]["measured"]
        for source in ("raw W", "SVD rotation", "Rayleigh-Ritz")
    ]
    assert shares == found


def test_training_finds_every_axis(measured):
    assert measured["analytic: axes by Rayleigh-Ritz"] == 100


def test_the_better_learning_rate_is_chosen(grid_run):
    measured = measured_by(grid_run)
    for objective in OBJECTIVES:
        final = grid_run.results["curves"][objective][:, -1]
        assert final[1] > final[0]
        assert measured[f"{objective}: learning rate"] == 0.02
        assert measured[f"{objective}: ELBO"] == pytest.approx(final[1], rel=1e-12)


def test_both_objectives_begin_with_the_same_model(run):
    curves = run.results["curves"]
    assert curves["steps"][0] == 0
    assert curves["steps"][-1] == TINY.steps
    assert len(set(curves["analytic"][:, 0]) | set(curves["stochastic"][:, 0])) == 1


def test_training_begins_where_the_paper_does(run):
    # Glorot-uniform, σ² = 1, in float32
    generator = torch.Generator().manual_seed(TINY.seed)
    model = LinearVAE(784, LATENT_DIM, generator=generator, dtype=torch.float32).double()
    moments = Moments.from_data(TINY.images.to_tensor(torch.float64))
    kept = ~moments.constant_features()
    with torch.no_grad():
        model.weight[~kept] = 0
        model.encoder[:, ~kept] = 0
        model.mu[~kept] = moments.sample_mean[~kept]
    expected = model.elbo(moments).item()
    assert run.results["curves"]["analytic"][0, 0] == pytest.approx(expected, rel=1e-9)


def test_published_values_stand_beside_the_papers_model_only(run):
    assert run.results["quantities"]["analytic: ELBO"]["published"] is None
    moments = Moments.from_data(torch.randn(300, 210, dtype=torch.float64))
    model = LinearVAE(210, 200, dtype=torch.float64)
    for objective, published in (("analytic", 950.7), ("stochastic", 939.3)):
        quantities = analytic_vs_stochastic._judge(objective, model, model, moments)
        assert quantities[f"{objective}: ELBO"]["published"] == published


def test_presets_are_the_papers_and_a_small_one():
    full = EXPERIMENT.presets["full"]
    assert (full.latent_dim, full.steps, full.num_images) == (200, 12_000, 1000)
    assert full.learning_rates == (1e-4, 3e-4, 1e-3, 3e-3)
    assert len(EXPERIMENT.presets["quick"].learning_rates) == 1


def test_separated_directions_keep_two_percent_from_both_neighbours():
    moments = moments_of_spectrum([5.0, 3.0, 2.97, 2.0, 1.0, 0.99])
    separated = analytic_vs_stochastic._separated_directions(moments, latent_dim=5)
    # 3.0 and 2.97 are 1 % apart, and so are the fifth and the one after it
    assert separated.abs().argmax(0).tolist() == [0, 3]


def test_figure_shows_the_better_curves(grid_run):
    figure = EXPERIMENT.figures["figure-3"](grid_run.results)
    curves, measured = grid_run.results["curves"], measured_by(grid_run)
    (axes,) = figure.axes
    for objective, line in zip(OBJECTIVES, axes.get_lines(), strict=True):
        assert np.array_equal(line.get_ydata(), measured["pPCA optimum"] - curves[objective][1])
    assert axes.get_yscale() == "log"
    assert "nats" in axes.get_ylabel()
    assert f"ends {measured['analytic: gap to the optimum']:.2g} nats below" in figure.get_suptitle()
    assert "MNIST-5k, N=60" in figure.get_supxlabel()


def assert_same_results(directory, expected):
    assert json.loads((directory / "results.json").read_text()) == json.loads(
        (expected / "results.json").read_text()
    )
    with np.load(directory / "curves.npz") as curves, np.load(expected / "curves.npz") as expected_curves:
        assert curves.files == expected_curves.files
        for name in curves.files:
            assert np.array_equal(curves[name], expected_curves[name])


def test_a_run_interrupted_between_trainings_ends_as_if_it_was_not(grid_run, tmp_path, monkeypatch):
    train, calls = analytic_vs_stochastic.train, []

    def interrupted(*arguments, **keywords):
        calls.append(keywords["checkpoint"].name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(analytic_vs_stochastic, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(EXPERIMENT, GRID, tmp_path)
    finished = [tmp_path / name for name in calls[:2]]
    written = [path.stat().st_mtime_ns for path in finished]
    execute(EXPERIMENT, GRID, tmp_path, resume=True)
    assert [path.stat().st_mtime_ns for path in finished] == written
    assert_same_results(tmp_path, grid_run.directory)


# fit writes a checkpoint after 1000 steps and at the end: the kill comes between the two
SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from lineavae.experiments import EXPERIMENTS, execute
experiment = EXPERIMENTS["analytic-vs-stochastic"]
config = replace(
    experiment.presets["quick"], num_images=60, latent_dim=3, steps=1500, learning_rates=(0.01,)
)
execute(experiment, config, Path(sys.argv[1]), resume=True)
"""


def start(directory):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(directory)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    assert start(directory).wait() == 0
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_killed_run_ends_as_if_it_was_not(whole, tmp_path, objective):
    process = start(tmp_path)
    while not (tmp_path / f"{objective}-0.01.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "results.json").exists()
    assert start(tmp_path).wait() == 0
    assert_same_results(tmp_path, whole)


def test_figure_of_several_seeds(grid_run):
    results = combine([grid_run.results] * 2, (0, 1))
    figure = EXPERIMENT.figures["figure-3"](results)
    assert "means of 2 seeds" in figure.get_supxlabel()
