import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from lineavae.experiments import EXPERIMENTS, Config, Experiment, RunDirectoryError, execute, execute_seeds
from lineavae.experiments.figures import draw, make_panels
from lineavae.experiments.runs import claim, quantity
from lineavae.experiments.seeds import combine

SEEDS = (0, 3, 7)


@dataclass(frozen=True, kw_only=True)
class NoisyConfig(Config):
    num_images: int = 10
    size: int = 4


def noisy(config, run_dir):
    """Numbers that are a function of the seed; a claim that does not hold with seed 3."""
    with (run_dir / "calls").open("a") as calls:
        calls.write("x")
    random = np.random.default_rng(config.seed)
    curve = random.random(config.size)
    number = random.random()
    return config.results(
        {"number": quantity(number, "1", published=0.5, tolerance=0.1)},
        {"steps": np.arange(config.size), "curve": curve, "found": random.random(config.seed + 1)},
        {
            "table-1": {
                "caption": "T",
                "columns": ["a", "b"],
                "rows": {"row": [quantity(number, "1"), None if config.seed == 3 else quantity(number, "1")]},
            }
        },
        [claim("it holds", "Section 0", config.seed != 3, f"seed {config.seed}")],
        {"steps": ["steps"], "curve": ["steps"], "found": ["points"]},
    )


def plot(results):
    figure, (axes,) = make_panels("finding", 1)
    draw(axes, results["curves"], "steps", "curve")
    return figure


EXPERIMENT = Experiment("noisy", "Figure 0", {"quick": NoisyConfig()}, noisy, {"figure-0": plot})
CONFIG = NoisyConfig()


def test_means_and_spread_are_those_of_runs_made_one_by_one(tmp_path):
    alone = [execute(EXPERIMENT, replace(CONFIG, seed=seed), tmp_path / str(seed)).results for seed in SEEDS]
    run = execute_seeds(EXPERIMENT, CONFIG, SEEDS, tmp_path / "all")
    numbers = [results["quantities"]["number"]["measured"] for results in alone]
    found = run.results["quantities"]["number"]
    assert found["measured"] == pytest.approx(np.mean(numbers), rel=1e-15)
    assert found["spread"] == pytest.approx(np.std(numbers, ddof=1), rel=1e-15)
    assert (found["published"], found["tolerance"]) == (0.5, 0.1)
    first, second = run.results["tables"]["table-1"]["rows"]["row"]
    assert (first["measured"], first["spread"]) == (found["measured"], found["spread"])
    assert second is None
    curves = [results["curves"]["curve"] for results in alone]
    np.testing.assert_allclose(run.results["curves"]["curve"], np.mean(curves, 0), rtol=1e-15)
    np.testing.assert_allclose(run.results["curves"]["curve.spread"], np.std(curves, 0, ddof=1), rtol=1e-14)
    assert run.results["curves"]["steps"].tolist() == [0, 1, 2, 3]
    assert "steps.spread" not in run.results["curves"]
    points = [results["curves"]["found"] for results in alone]
    assert np.array_equal(run.results["curves"]["found"], np.concatenate(points))
    assert run.results["config"]["seeds"] == list(SEEDS)
    assert "seed" not in run.results["config"]
    rows = np.genfromtxt(tmp_path / "all" / "curves" / "steps.csv", delimiter=",", names=True, deletechars="")
    assert np.array_equal(rows["curve.spread"], run.results["curves"]["curve.spread"])


def test_a_claim_holds_where_it_does_with_all_seeds(tmp_path):
    (found,) = execute_seeds(EXPERIMENT, CONFIG, SEEDS, tmp_path / "some").results["claims"]
    assert found["verdict"] == "does not hold"
    assert found["evidence"] == "holds with 2 of 3 seeds; with seed 3: seed 3"
    (found,) = execute_seeds(EXPERIMENT, CONFIG, (7, 0), tmp_path / "all").results["claims"]
    assert found["verdict"] == "holds"
    assert found["evidence"] == "holds with 2 of 2 seeds; with seed 7: seed 7"


def test_one_seed_has_no_spread(tmp_path):
    results = execute_seeds(EXPERIMENT, CONFIG, (3,), tmp_path).results
    assert results["quantities"]["number"]["spread"] is None
    assert results["curves"].keys() == {"steps", "curve", "found"}


def test_what_curves_are_along_has_to_be_the_same():
    runs = [noisy_results(size) for size in (4, 5)]
    with pytest.raises(ValueError, match="the same 'steps' along"):
        combine(runs, (0, 1))


def noisy_results(size):
    return CONFIG.results({}, {"steps": np.arange(size)}, axes={"steps": ["steps"]})


def test_more_seeds_run_the_new_ones_only(tmp_path):
    execute_seeds(EXPERIMENT, CONFIG, (0, 1), tmp_path, formats=("png", "pdf"))
    run = execute_seeds(EXPERIMENT, CONFIG, (0, 1, 2), tmp_path)
    assert not run.skipped
    assert [len((tmp_path / f"seed-{seed}" / "calls").read_text()) for seed in (0, 1, 2)] == [1, 1, 1]
    assert not (tmp_path / "figure-0.pdf").exists()  # of two seeds
    assert execute_seeds(EXPERIMENT, CONFIG, (0, 1, 2), tmp_path).skipped
    fewer = execute_seeds(EXPERIMENT, CONFIG, (0, 1), tmp_path)
    assert fewer.results["config"]["seeds"] == [0, 1]
    assert len((tmp_path / "seed-0" / "calls").read_text()) == 1


def test_another_configuration_is_refused(tmp_path):
    execute_seeds(EXPERIMENT, CONFIG, (0, 1), tmp_path)
    with pytest.raises(RunDirectoryError, match=r"holds a run with size 4 instead of 5: choose"):
        execute_seeds(EXPERIMENT, replace(CONFIG, size=5), (0, 1), tmp_path)


def test_a_band_is_the_spread(tmp_path):
    results = execute_seeds(EXPERIMENT, CONFIG, SEEDS, tmp_path).results
    (axes,) = plot(results).axes
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    curve, spread = results["curves"]["curve"], results["curves"]["curve.spread"]
    assert heights.min() == pytest.approx((curve - spread).min())
    assert heights.max() == pytest.approx((curve + spread).max())
    del results["curves"]["curve.spread"]
    (axes,) = plot(results).axes
    assert not axes.collections


def test_an_interrupted_seed_is_resumed_and_the_others_are_not_run_again(tmp_path):
    def interrupted(config, run_dir):
        if config.seed == 3:
            raise KeyboardInterrupt
        return noisy(config, run_dir)

    broken = replace(EXPERIMENT, run=interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute_seeds(broken, CONFIG, SEEDS, tmp_path / "broken")
    with pytest.raises(RunDirectoryError, match="seed-3 holds an unfinished run: pass --resume"):
        execute_seeds(EXPERIMENT, CONFIG, SEEDS, tmp_path / "broken")
    execute_seeds(EXPERIMENT, CONFIG, SEEDS, tmp_path / "broken", resume=True)
    execute_seeds(EXPERIMENT, CONFIG, SEEDS, tmp_path / "whole")
    assert (tmp_path / "broken" / "results.json").read_text() == (
        tmp_path / "whole" / "results.json"
    ).read_text()
    assert len((tmp_path / "broken" / "seed-0" / "calls").read_text()) == 1


TRAINED = EXPERIMENTS["analytic-vs-stochastic"]
SHORT = replace(TRAINED.presets["quick"], num_images=60, latent_dim=3, steps=1200, learning_rates=(0.01,))
SCRIPT = f"""
import sys
from pathlib import Path
from lineavae.experiments import EXPERIMENTS, execute_seeds
from lineavae.experiments.analytic_vs_stochastic import AnalyticVsStochasticConfig
execute_seeds(EXPERIMENTS["analytic-vs-stochastic"], {SHORT}, (0, 1), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_seeds_killed_in_training_end_as_if_they_were_not(tmp_path, one_thread):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(killed)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    # fit writes a checkpoint after 1000 steps and at the end: the kill comes between the two
    while not (killed / "seed-1" / "analytic-0.01.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "results.json").exists()
    execute_seeds(TRAINED, SHORT, (0, 1), killed, resume=True)
    execute_seeds(TRAINED, SHORT, (0, 1), whole)
    # with the checksum of the curves
    assert (killed / "results.json").read_text() == (whole / "results.json").read_text()


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
