from dataclasses import replace

import numpy as np
import pytest
import torch

from lineavae.data import DataError, Images
from lineavae.experiments import EXPERIMENTS, Config, execute
from lineavae.experiments.deep_vae import grey_levels, make_vae, prepare

EXPERIMENT = EXPERIMENTS["deep-celeba"]
TINY = replace(
    EXPERIMENT.presets["quick"],
    num_images=8,
    sigma2=(1.0, 0.1),
    latent_dim=4,
    epochs=2,
    batch_size=4,
    record_every=1,
    annealing_epochs=1,
    snapshot_epoch=1,
)


@pytest.fixture
def images(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    found = Images(pixels, np.zeros(8, np.uint8), "faces")
    monkeypatch.setattr(Config, "images", property(lambda config: found))
    return found


def test_tables_curves_and_pictures(images, tmp_path):
    run = execute(EXPERIMENT, TINY, tmp_path)
    assert set(run.figures) == {f"figure-{number}" for number in range(9, 14)}
    assert {"table-1", "table-3", "table-5"} == run.results["tables"].keys()
    curves = run.results["curves"]
    assert np.array_equal(curves["images"], images.images.transpose(0, 3, 1, 2))
    assert curves["plane"].shape == (49, 3, 64, 64)
    for corner, index in ((0, 0), (6, 1), (42, 2)):  # top left, top right, bottom left
        assert np.array_equal(curves["plane"][corner], curves["reconstructions"][index])
    assert run.results["claims"][-1]["source"].endswith("Figure 9")


def test_colours_have_the_scale_of_grey_levels(images):
    # of a density that is uniform over grey levels, whatever the transform: 8 bits per dimension
    data = prepare(TINY)
    y = (data.x.double().sigmoid() - 0.05) / 0.9
    assert ((y > 0) & (y < 1)).all()
    log_density_of_logits = torch.log(torch.sigmoid(data.x.double()) * torch.sigmoid(-data.x.double()) / 0.9)
    uniform = log_density_of_logits.flatten(1).sum(1).mean().item()
    assert (uniform + data.log_det) / (-12288 * np.log(2)) == pytest.approx(8, abs=1e-6)
    assert np.array_equal(grey_levels(TINY, data, data.x), images.images.transpose(0, 3, 1, 2))


def test_networks_are_convolutional(images):
    vae = make_vae(TINY, prepare(TINY), 0.1, "fixed", seed=0)
    kinds = [type(module).__name__ for module in vae.modules()]
    assert kinds.count("Conv2d") == kinds.count("ConvTranspose2d") == 4


def test_images_of_another_size_are_refused():
    with pytest.raises(DataError, match="take images of 64 x 64 pixels, MNIST-5k has 28 x 28"):
        prepare(TINY)
