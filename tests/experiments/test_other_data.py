"""Linear experiments of other data than MNIST: images of any size and colours, and samples that are none."""

from dataclasses import replace

import numpy as np
import pytest

from lineavae.data import DataError
from lineavae.experiments import EXPERIMENTS, execute

RANDOM = np.random.default_rng(0)

# Presets made small.
SMALL = {
    "stationary-points": {"grid": 5},
    "latent-dimensions": {
        "latent_dims": (1, 5, 9, 300),
        "frozen_latent_dim": 5,
        "trained_latent_dims": (5,),
        "steps": 5,
    },
    "analytic-vs-stochastic": {"latent_dim": 5, "steps": 5},
    "nonlinear-encoders": {"latent_dim": 5, "epochs": 2, "batch_size": 50, "hidden": (8, 4)},
    "theorem-1": {
        "num_starts": 5,
        "newton_steps": 50,
        "ascent_steps": 10,
        "num_features": 4,
        "latent_dim": 2,
        "num_rotations": 3,
    },
    "phase-diagram": {
        "latent_dims": (2, 5),
        "num_sigma2": 4,
        "num_beta": 3,
        "seeds": (0,),
        "steps": 5,
        "annealing_steps": 4,
        "num_stochastic": 2,
        "stochastic_steps": 3,
        "batch_size": 20,
    },
    "bernoulli-ppca": {"latent_dim": 5, "steps": 5, "bound_samples": (1, 2)},
}
DATA = {
    "small": RANDOM.integers(0, 256, (60, 4, 5), dtype=np.uint8),
    "coloured": RANDOM.integers(0, 256, (60, 9, 8, 3), dtype=np.uint8),
    "samples": RANDOM.standard_normal((60, 12)).astype(np.float32),
}
# theorem-1 takes seconds
CASES = [(name, data) for name in SMALL for data in DATA if name != "theorem-1" or data == "samples"]


def config_of(tmp_path, name, data):
    np.save(tmp_path / f"{data}.npy", DATA[data])
    preset = EXPERIMENTS[name].presets["quick"]
    return replace(preset, num_images=50, data=str(tmp_path / f"{data}.npy"), **SMALL[name])


@pytest.mark.parametrize(("name", "data"), CASES)
def test_other_data(tmp_path, name, data):
    config = config_of(tmp_path, name, data)
    if data == "samples" and name in ("nonlinear-encoders", "bernoulli-ppca"):
        with pytest.raises(
            DataError, match=r"samples.npy must hold the pixels of images, uint8, for this exp"
        ):
            execute(EXPERIMENTS[name], config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return
    run = execute(EXPERIMENTS[name], config, tmp_path / "run")
    assert run.results["data"] == data
    assert all(path.exists() for paths in run.figures.values() for path in paths)
    assert all(quantity["published"] is None for quantity in run.results["quantities"].values())


@pytest.mark.parametrize(
    ("name", "settings", "needed"),
    [
        ("stationary-points", {"noise_components": (4, 6, 30)}, 30),
        ("latent-dimensions", {"frozen_latent_dim": 20}, 21),
        ("latent-dimensions", {"trained_latent_dims": (25,)}, 26),
        ("analytic-vs-stochastic", {"latent_dim": 20}, 21),
        ("nonlinear-encoders", {"latent_dim": 20}, 21),
        ("theorem-1", {"num_features": 21}, 21),
        ("phase-diagram", {"latent_dims": (4, 21)}, 21),
    ],
)
def test_too_few_features(tmp_path, name, settings, needed):
    config = replace(config_of(tmp_path, name, "small"), **settings)
    with pytest.raises(DataError, match=rf"small.npy has 20 features, {needed} are needed"):
        execute(EXPERIMENTS[name], config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
