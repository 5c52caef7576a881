"""Images and samples in arrays, and what is recognised by what is there."""

import hashlib
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from lineavae.data import DataError, Images, Samples, load_data, load_images, mnist

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (6, 5, 4), dtype=np.uint8)
COLOURED = RANDOM.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEAVAE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("pixels", [GREY, COLOURED, np.asfortranarray(COLOURED)])
def test_arrays_of_images(tmp_path, pixels):
    np.save(tmp_path / "cats.npy", pixels)
    for images in (load_images(tmp_path / "cats.npy"), load_data(tmp_path / "cats.npy")):
        assert np.array_equal(images.images, pixels)
        assert images.name == "cats"
        assert images.labels is None
        assert not images.is_mnist
        assert not images.images.flags.writeable
        expected = torch.tensor(pixels.reshape(6, -1).tolist(), dtype=torch.float64) / 255
        assert torch.equal(images.to_tensor(torch.float64), expected)
        subset = images.subset(4, seed=1)
        chosen = np.random.default_rng(1).permutation(6)[:4]
        assert np.array_equal(subset.images, pixels[chosen])
        assert subset.labels is None


def test_mnist_in_an_array_is_known_by_its_pixels(tmp_path, monkeypatch):
    pixels = RANDOM.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "MNIST.npy", pixels)
    assert load_data(tmp_path / "MNIST.npy").name == "MNIST (not the original)"
    monkeypatch.setattr(mnist, "_PIXELS", {hashlib.sha256(pixels.tobytes()).hexdigest()})
    assert load_data(tmp_path / "MNIST.npy").is_mnist


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ">f4"])
def test_arrays_of_samples(tmp_path, dtype):
    x = RANDOM.standard_normal((6, 3)).astype(dtype)
    np.save(tmp_path / "genes.npy", x)
    samples = load_data(tmp_path / "genes.npy")
    assert isinstance(samples, Samples)
    assert samples.name == "genes"
    assert torch.equal(samples.to_tensor(torch.float64), torch.tensor(x.tolist(), dtype=torch.float64))
    assert samples.subset(2, seed=0).to_tensor().shape == (2, 3)
    with pytest.raises(ValueError, match=r"Samples.subset: num_samples .* the number of samples, 6, got 7"):
        samples.subset(7, seed=0)
    with pytest.raises(DataError, match=r"genes.npy must hold uint8 pixels, got "):
        load_images(tmp_path / "genes.npy")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (GREY.astype(np.int64), r"must hold images, uint8 of shape .* got int64 of \(6, 5, 4\)"),
        (GREY.reshape(6, -1), r"got uint8 of \(6, 20\)"),
        (COLOURED.transpose(0, 3, 1, 2)[..., None], r"got uint8 of \(6, 3, 5, 4, 1\)"),
        (np.zeros((6, 3, 32, 32), np.uint8), r"C at most 4, .* got uint8 of \(6, 3, 32, 32\)"),
        (GREY[:0], r"got uint8 of \(0, 5, 4\)"),
        (GREY / 255, r"got float64 of \(6, 5, 4\)"),
        (np.array([[1.0, np.nan]]), "must hold finite numbers"),
        (np.array([[{}]]), "holds pickled Python objects, which are not read"),
    ],
)
def test_other_arrays(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=rf"a.npy.* ?{message}"):
        load_data(tmp_path / "a.npy")


def test_files_that_are_none(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"a.npy is truncated"):
        load_data(tmp_path / "a.npy")
    (tmp_path / "a.txt").write_text("no array")
    with pytest.raises(DataError, match=r"a.txt is not in NumPy's npy format"):
        load_data(tmp_path / "a.txt")
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_data(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no images: .jpg, .jpeg, .png"):
        load_data(tmp_path / "empty")


def test_only_folders_are_resized(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    with pytest.raises(DataError, match="only the images of folders are cut out and resized"):
        load_images(tmp_path / "a.npy", size=4)
    with pytest.raises(DataError, match="image_size is for folders of image files"):
        load_data(tmp_path / "a.npy", image_size=4)


def write_mnist(folder):
    pixels = RANDOM.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x0803, 6, 28, 28) + pixels.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 6) + bytes(6))
    return pixels


def test_what_a_folder_holds(tmp_path):
    save = Image.fromarray(np.zeros((218, 178, 3), np.uint8)).save
    for name in ("digits", "faces", "img_align_celeba"):
        (tmp_path / name).mkdir()
    pixels = write_mnist(tmp_path / "digits")
    save(tmp_path / "faces" / "a.png")
    save(tmp_path / "img_align_celeba" / "000001.jpg")
    digits = load_data(tmp_path / "digits")
    assert np.array_equal(digits.images, pixels)
    assert digits.labels.tolist() == [0] * 6
    for name, size, shape in [
        ("faces", None, (218, 178)),
        ("faces", 8, (8, 8)),
        ("img_align_celeba", None, (64, 64)),
        ("img_align_celeba", 32, (32, 32)),
    ]:
        images = load_data(tmp_path / name, image_size=size)
        assert images.images.shape == (1, *shape, 3)
        assert images.name == name


def test_pixels_are_checked():
    with pytest.raises(TypeError, match="Images: images must be uint8, got float64"):
        Images(GREY / 255, None, "a")
    with pytest.raises(ValueError, match=r"must have shape \(N, H, W\) or \(N, H, W, C\), got \(6, 20\)"):
        Images(GREY.reshape(6, 20), None, "a")
