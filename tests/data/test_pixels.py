import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

from lineavae.data import bits_per_dimension, dequantize, load_mnist5k, logit_transform
from lineavae.data import pixels as module


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 2, 3), dtype=np.uint8)


@pytest.mark.parametrize("alpha", [1e-6, 0.05])
def test_inverse_gives_the_pixels_and_their_noise(images, alpha):
    x = logit_transform(images, seed=0, alpha=alpha).x
    assert x.shape == (4, 6)
    assert x.dtype == torch.float64
    noise = (256 * (x.sigmoid() - alpha) / (1 - 2 * alpha)).numpy() - images.reshape(4, 6)
    assert (noise > -1e-9).all()
    assert (noise < 1).all()
    assert noise.std() > 0.2


@pytest.mark.parametrize("alpha", [1e-6, 0.05])
def test_log_det_is_that_of_autograds_jacobian(images, alpha):
    pixels = logit_transform(images, seed=0, alpha=alpha)

    def inverse(x):
        return 256 * (x.sigmoid() - alpha) / (1 - 2 * alpha)

    for x, log_det in zip(pixels.x, pixels.log_det, strict=True):
        expected = -torch.linalg.slogdet(jacobian(inverse, x)).logabsdet
        assert log_det.item() == pytest.approx(expected.item(), abs=1e-6)


def test_density_is_that_of_grey_levels():
    # a logistic density of x with α -> 0 is a uniform one of grey levels: 1/256 each
    pixels = logit_transform(np.arange(256, dtype=np.uint8)[:, None], seed=0, alpha=1e-12)
    logistic = torch.nn.functional.logsigmoid(pixels.x) + torch.nn.functional.logsigmoid(-pixels.x)
    assert torch.allclose(logistic[:, 0] + pixels.log_det, torch.tensor(-np.log(256)), atol=1e-8)


def test_mnist_is_as_wide_as_others_found_it():
    # of all training images: variance per pixel 9.08, mean of log_det 272.2 with a standard deviation of 140
    pixels = logit_transform(load_mnist5k().images, seed=0)
    assert pixels.x.var(0).mean().item() == pytest.approx(9.08, abs=0.1)
    assert pixels.log_det.mean().item() == pytest.approx(272.2, abs=4 * 140 / 5000**0.5)
    assert pixels.x.abs().max() < 13.9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_parts_change_nothing(monkeypatch, dtype):
    """The whole at once, in float64, as the formulas say."""
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    noise = np.random.default_rng(3).random((7, 60))
    y = torch.from_numpy(0.05 + (1 - 2 * 0.05) * (images.reshape(7, 60) + noise) / 256)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 130)  # two images of 60, and one in the last part
    pixels = logit_transform(images, seed=3, alpha=0.05, dtype=dtype)
    assert torch.equal(pixels.x, y.logit().to(dtype))
    assert torch.equal(pixels.log_det, 60 * np.log(0.9 / 256) - (y.log() + (-y).log1p()).sum(1))
    pixels = dequantize(images, seed=3, dtype=dtype)
    assert torch.equal(pixels.x, torch.from_numpy((images.reshape(7, 60) + noise) / 256).to(dtype))
    assert pixels.log_det.tolist() == pytest.approx([-60 * np.log(256)] * 7, rel=1e-15)


def test_bits_per_dimension():
    # grey levels of equal probability: log 256 nats for each of D
    uniform = dequantize(np.zeros((2, 3, 4), np.uint8), seed=0).log_det
    assert torch.allclose(bits_per_dimension(uniform, 12), torch.tensor([8.0, 8.0]).double())
    assert bits_per_dimension(-np.log(2), 1) == pytest.approx(1)
    assert bits_per_dimension(np.array([-3.0, 0.0]), 3).tolist() == pytest.approx([1 / np.log(2), 0])
    with pytest.raises(ValueError, match="bits_per_dimension: num_features must be at least 1, got 0"):
        bits_per_dimension(-1.0, 0)


def test_noise_is_uniform_and_a_function_of_the_seed():
    black = np.zeros((100, 100), dtype=np.uint8)
    first, second = (logit_transform(black, seed=seed).x for seed in (0, 1))
    assert torch.equal(first, logit_transform(black, seed=0).x)
    assert not torch.equal(first, second)
    noise = 256 * first.sigmoid()
    assert noise.mean().item() == pytest.approx(0.5, abs=0.02)
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.004)


def test_bad_arguments_are_named(images):
    with pytest.raises(TypeError, match=r"logit_transform: images must be a uint8 array, got float64"):
        logit_transform(images / 255, seed=0)
    with pytest.raises(TypeError, match=r"images must be a uint8 array, got torch.uint8"):
        logit_transform(torch.from_numpy(images), seed=0)
    with pytest.raises(ValueError, match=r"alpha must be > 0 and < 0.5, got 0.5"):
        logit_transform(images, seed=0, alpha=0.5)
    with pytest.raises(ValueError, match=r"alpha must be > 0 and < 0.5, got nan"):
        logit_transform(images, seed=0, alpha=float("nan"))
    with pytest.raises(ValueError, match=r"seed must be at least 0, got -1"):
        logit_transform(images, seed=-1)
    with pytest.raises(TypeError, match=r"dequantize: dtype must be a floating one, got torch.uint8"):
        dequantize(images, seed=0, dtype=torch.uint8)


def test_example_of_the_page(capsys):
    page = Path(__file__).parents[2] / "docs" / "figures.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, page.name, "exec"), {})
    nats, bits = map(float, capsys.readouterr().out.split())
    assert -1250 < nats < -1150  # figure 4's maximum, of all of MNIST and K = 200, is -1098
    assert bits == pytest.approx(-nats / 784 / np.log(2))
