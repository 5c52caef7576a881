import io
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lineavae.data import DataError, read_samples
from lineavae.data import arrays as arrays_module


@pytest.fixture
def samples():
    return np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)


def read(path, key=None):
    return [(file.name, np.asarray(array)) for file, array in read_samples(path, key)]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, ">f4", np.float64])
def test_npy_and_npz(tmp_path, samples, dtype):
    np.save(tmp_path / "a.npy", samples.astype(dtype))
    np.savez_compressed(tmp_path / "b.npz", images=samples.astype(dtype))
    np.save(tmp_path / "c.npy", np.asfortranarray(samples.astype(dtype)))
    for name in ("a.npy", "b.npz", "c.npy"):
        [(found, array)] = read(tmp_path / name)
        assert found == name
        assert array.dtype == np.dtype(dtype)
        assert np.array_equal(array, samples.reshape(6, 20))


def test_safetensors(tmp_path, samples):
    tensor = torch.from_numpy(samples).bfloat16()
    save_file({"images": tensor}, tmp_path / "a.safetensors")
    [(_, found)] = read_samples(tmp_path / "a.safetensors")
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, tensor.reshape(6, 20))


def test_a_named_array(tmp_path, samples):
    np.savez(tmp_path / "a.npz", train=samples, test=samples[:2])
    save_file({"train": torch.from_numpy(samples), "y": torch.zeros(3)}, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        [(_, array)] = read(tmp_path / name, "train")
        assert np.array_equal(array, samples.reshape(6, 20))
        with pytest.raises(DataError, match=f"{name} must hold one array, or the one to take named, got 't"):
            read(tmp_path / name)
        with pytest.raises(DataError, match=f"{name} must hold an array 'x', got 't"):
            read(tmp_path / name, "x")


def test_a_folder_is_read_in_order(tmp_path, samples):
    for index in range(20):
        np.save(tmp_path / f"d{index:02d}.npy", np.zeros((1, 20)))
    np.savez(tmp_path / "b.npz", samples[2:4])
    np.save(tmp_path / "a.npy", samples[:2])
    save_file({"images": torch.from_numpy(samples[4:])}, tmp_path / "c.safetensors")
    (tmp_path / ".a-being-written.npy").write_bytes(b"")
    (tmp_path / "README.txt").write_text("not an array")
    found = read(tmp_path)
    names = ["a.npy", "b.npz", "c.safetensors", *(f"d{index:02d}.npy" for index in range(20))]
    assert [name for name, _ in found] == names
    assert np.array_equal(np.concatenate([array for _, array in found])[:6], samples.reshape(6, 20))


@pytest.mark.parametrize("kind", ["npy", "fortran", "npz", "safetensors", "NPY"])
def test_large_files_come_in_blocks(tmp_path, monkeypatch, samples, kind):
    monkeypatch.setattr(arrays_module, "_BLOCK_ELEMENTS", 45)  # two rows of 20
    path = tmp_path / f"a.{kind}"
    if kind == "safetensors":
        save_file({"x": torch.from_numpy(samples)}, path)
    elif kind == "npz":
        np.savez_compressed(path, samples)
    else:
        path = path.with_suffix(".npy") if kind == "fortran" else path
        with path.open("wb") as file:
            np.save(file, np.asfortranarray(samples) if kind == "fortran" else samples)
    blocks = [np.asarray(block) for _, block in read_samples(path)]
    assert [block.shape for block in blocks] == [(2, 20)] * 3
    assert np.array_equal(np.concatenate(blocks), samples.reshape(6, 20))


def npy(array, **keywords):
    stream = io.BytesIO()
    np.save(stream, array, **keywords)
    return stream.getvalue()


def damaged_zip(array):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", npy(array))
    content = bytearray(stream.getvalue())
    content[len(npy(array))] ^= 1  # in the data, so that the checksum does not match
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"1,2", "a.csv: the name must end with one of .npy, .npz, .safetensors"),
        ("a.npy", b"nothing", "a.npy is not in NumPy's npy format: it begins with"),
        ("a.npy", npy(np.ones((5, 3)))[:-1], "a.npy is truncated: 247 bytes where its header says 248"),
        (
            "a.npy",
            npy(np.array([[{}]]), allow_pickle=True),
            "a.npy holds pickled Python objects",
        ),
        ("a.npy", npy(np.ones(3)), r"a.npy: the array must have shape \(N, D\), got \(3,\)"),
        ("a.npy", npy(np.ones((0, 3))), r"a.npy: the array must have shape \(N, D\), got \(0, 3\)"),
        ("a.npz", b"nothing", "a.npz is damaged: File is not a zip file"),
        ("a.npz", damaged_zip(np.ones((5, 3))), "a.npz is damaged: Bad CRC-32"),
        ("a.safetensors", b"nothing", "a.safetensors is not a safetensors file: its header would have"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_missing(tmp_path):
    for name in ("a.npy", "a.npz", "a.safetensors"):
        with pytest.raises(DataError, match=f"{name}: cannot be read: No such file or directory"):
            read(tmp_path / name)
    with pytest.raises(DataError, match=r"the folder holds no .npy, .npz, .safetensors file"):
        read(tmp_path)
