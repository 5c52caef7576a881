"""The command ``lineavae forecast``."""

import json
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from lineavae.cli import app
from lineavae.data import load_digits
from lineavae.linear import Moments, forecast_collapse


@pytest.fixture
def samples():
    return np.random.default_rng(0).normal(size=(30, 2, 3)) * [[3.0, 2.0, 1.0], [0.5, 0.2, 0.1]]


@pytest.fixture
def expected(samples):
    return forecast_collapse(samples.reshape(30, 6), 4, sigma2=0.3)


def invoke(*arguments):
    return CliRunner().invoke(app, ["forecast", *map(str, arguments)])


def forecast_of(path, *arguments):
    result = invoke(path, "--latent-dim", 4, "--sigma2", 0.3, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_same(found, expected):
    expected = expected.to_dict()
    for name, column in expected.pop("latents").items():
        np.testing.assert_allclose(found["latents"][name], column, rtol=1e-10, atol=1e-15)
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, rel=1e-10) if isinstance(value, float) else value), name


def test_table(tmp_path, samples, expected):
    np.save(tmp_path / "x.npy", samples)
    result = invoke(tmp_path / "x.npy", "--latent-dim", 4, "--sigma2", 0.3)
    assert result.exit_code == 0
    assert result.stdout == f"{expected}\n"
    assert "warning: σ² = 0.3 will collapse 1 of 4 latents" in result.stdout


def test_digits():
    images = load_digits().to_tensor(torch.float64)
    assert_same(forecast_of("digits"), forecast_collapse(images, 4, sigma2=0.3))


def test_neither_a_file_nor_embedded_data(tmp_path):
    result = invoke(tmp_path / "mnist", "--latent-dim", 4)
    assert result.exit_code == 2
    assert "mnist is no file or folder, and none of the embedded data, digits and mnist5k" in result.stderr


def test_every_kind_of_file(tmp_path, samples, expected):
    np.save(tmp_path / "x.npy", samples)
    np.savez(tmp_path / "x.npz", images=samples, labels=np.zeros(30))
    save_file({"x": torch.from_numpy(samples)}, tmp_path / "x.safetensors")
    Moments.from_data(samples.reshape(30, 6)).save(tmp_path / "moments.safetensors")
    folder = tmp_path / "shards"
    folder.mkdir()
    np.save(folder / "0.npy", samples[:7])
    np.save(folder / "1.npy", samples[7:])
    for path in ("x.npy", "x.safetensors", "moments.safetensors", "shards"):
        assert_same(forecast_of(tmp_path / path), expected)
    assert_same(forecast_of(tmp_path / "x.npz", "--key", "images"), expected)


def test_learned_noise_and_beta(tmp_path, samples):
    np.save(tmp_path / "x.npy", samples)
    result = invoke(tmp_path / "x.npy", "--latent-dim", 4, "--beta", 3, "--json")
    assert_same(json.loads(result.stdout), forecast_collapse(samples.reshape(30, 6), 4, beta=3.0))


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_json_of_numbers_that_json_lacks(tmp_path, samples):
    np.save(tmp_path / "x.npy", samples)
    result = invoke(tmp_path / "x.npy", "--latent-dim", 4, "--sigma2", 1e-320, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["elbo"] is None  # -inf


def test_a_folder_of_mnist(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    header = struct.pack(">4I", 0x0803, *images.shape)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 40) + bytes(40))
    expected = forecast_collapse(images.reshape(40, -1).astype(np.float32) / 255, 4, sigma2=0.3)
    assert_same(forecast_of(tmp_path), expected)


def test_images_without_labels(tmp_path):
    """Of another size too, under the dotted names, where torchvision puts them, and with no label."""
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 7), dtype=np.uint8)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    content = struct.pack(">4I", 0x0803, *images.shape) + images.tobytes()
    (tmp_path / "MNIST" / "raw" / "train-images.idx3-ubyte").write_bytes(content)
    expected = forecast_collapse(images.reshape(40, -1).astype(np.float32) / 255, 4, sigma2=0.3)
    assert_same(forecast_of(tmp_path), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.npy", "--latent-dim", 4], "nothing.npy: cannot be read: No such file or directory"),
        (["nothing.safetensors", "--latent-dim", 4], "nothing.safetensors: cannot be read: No such file"),
        (["x.npy", "--latent-dim", 4, "--sigma2", 0], "sigma2 must be finite and > 0, got 0"),
        (["x.npy", "--latent-dim", 4, "--beta", -1], "beta must be finite and > 0, got -1"),
        (["few.npy", "--latent-dim", 6], "sigma2 must be given where latent_dim is not below the rank"),
        (["nan.npy", "--latent-dim", 4], "nan.npy: data must be finite"),
        (["text.npy", "--latent-dim", 4], "text.npy: the array must be real, got <U1"),
        (["shards", "--latent-dim", 4], "1.npy: data must have 6 features, got 5"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, monkeypatch, samples, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", samples)
    np.save("few.npy", samples[:4])
    np.save("nan.npy", np.full((3, 2), math.nan))
    np.save("text.npy", np.array([["a", "b"]]))
    (tmp_path / "shards").mkdir()
    np.save("shards/0.npy", samples)
    np.save("shards/1.npy", samples.reshape(30, 6)[:, :5])
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("lineavae: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["x.npy"], ["x.npy", "--latent-dim", "0"], ["--latent-dim", "4"]])
def test_wrong_usage_exits_with_2(arguments):
    assert invoke(*arguments).exit_code == 2


def test_help_names_an_example():
    text = " ".join(invoke("--help").stdout.split())
    assert "Example: lineavae forecast images.npy --latent-dim 200 --sigma2 1" in text


def test_without_the_native_module(tmp_path):
    code = "import sys; sys.modules['lineavae._C'] = None; from lineavae.cli import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", code, "forecast", "x.npy", "--latent-dim", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert process.stderr.startswith("lineavae: lineavae's native module could not be loaded")
