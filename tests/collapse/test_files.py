import os
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lineavae.collapse.files import Keys, PosteriorFileError, Shard, find_shards

NUM_SAMPLES, LATENT_DIM = 17_000, 257


def draw(num_samples=NUM_SAMPLES, latent_dim=LATENT_DIM, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    mean, logvar = rng.standard_normal((2, num_samples, latent_dim)).astype(dtype)
    return {"mean": mean, "logvar": logvar}


def save_safetensors(path, arrays):
    save_file({name: torch.as_tensor(array).contiguous() for name, array in arrays.items()}, path)


def save_npy(path, arrays):
    """Save a pair of files whose common beginning is the path without its suffix."""
    for name, array in arrays.items():
        np.save(f"{path.with_suffix('')}_{name}.npy", array)


SAVE = {
    "safetensors": (save_safetensors, "x.safetensors", "x.safetensors"),
    "npz": (lambda path, arrays: np.savez(path, **arrays), "x.npz", "x.npz"),
    "compressed": (lambda path, arrays: np.savez_compressed(path, **arrays), "x.npz", "x.npz"),
    "npy": (save_npy, "x.npy", "x_mean.npy"),
}


def store(folder, kind, arrays):
    """Save a shard and give the file that stands for it."""
    save, path, named = SAVE[kind]
    save(folder / path, arrays)
    return folder / named


def read(shard):
    """All rows of a shard, and the sizes of its blocks."""
    blocks = [(mean.clone(), logvar.clone()) for mean, logvar in shard.blocks()]
    mean, logvar = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return mean, logvar, [len(mean) for mean, _ in blocks]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("kind", SAVE)
def test_rows_come_back_as_they_were_saved(tmp_path, kind, dtype):
    arrays = draw(dtype=dtype)
    (shard,) = find_shards([store(tmp_path, kind, arrays)])
    assert (shard.num_samples, shard.latent_dim) == (NUM_SAMPLES, LATENT_DIM)
    assert shard.num_bytes == 2 * arrays["mean"].nbytes
    mean, logvar, sizes = read(shard)
    assert mean.dtype == logvar.dtype == torch.from_numpy(arrays["mean"]).dtype
    assert np.array_equal(mean, arrays["mean"])
    assert np.array_equal(logvar, arrays["logvar"])
    assert len(sizes) > 2  # or nothing is overwritten by a later block
    assert sizes == [8192, 8192, 616]


def test_bfloat16(tmp_path):
    arrays = {name: torch.as_tensor(array).bfloat16() for name, array in draw().items()}
    (shard,) = find_shards([store(tmp_path, "safetensors", arrays)])
    mean, logvar, _ = read(shard)
    assert mean.dtype == torch.bfloat16
    assert torch.equal(mean, arrays["mean"])
    assert torch.equal(logvar, arrays["logvar"])


def test_two_dtypes_give_the_wider(tmp_path):
    arrays = draw()
    arrays["mean"] = arrays["mean"].astype(np.float16)
    (shard,) = find_shards([store(tmp_path, "npz", arrays)])
    mean, logvar, _ = read(shard)
    assert mean.dtype == logvar.dtype == torch.float32
    assert np.array_equal(mean, arrays["mean"].astype(np.float32))
    assert np.array_equal(logvar, arrays["logvar"])
    assert shard.num_bytes == arrays["mean"].nbytes + arrays["logvar"].nbytes


@pytest.mark.parametrize(
    ("dtype", "result", "tolerance"),
    [
        (np.float64, torch.float64, 1e-15),
        (np.float32, torch.float32, 2e-7),
        (np.float16, torch.float32, 2e-7),
    ],
)
def test_standard_deviations_become_log_variances(tmp_path, dtype, result, tolerance):
    mean = draw(1000, 7, dtype)["mean"]
    std = (np.abs(mean) + dtype(1e-3)).astype(dtype)
    (shard,) = find_shards([store(tmp_path, "npz", {"mean": mean, "std": std})])
    read_mean, logvar, _ = read(shard)
    assert logvar.dtype == read_mean.dtype == result
    np.testing.assert_allclose(logvar, 2 * np.log(std.astype(np.float64)), rtol=tolerance, atol=tolerance)


def test_logvar_is_taken_where_there_is_std_too(tmp_path):
    arrays = draw(10, 3)
    (shard,) = find_shards([store(tmp_path, "npz", {**arrays, "std": np.ones((10, 3))})])
    assert np.array_equal(read(shard)[1], arrays["logvar"])


def test_standard_deviations_are_not_negative(tmp_path):
    arrays = {"mean": np.zeros((NUM_SAMPLES, LATENT_DIM)), "std": np.ones((NUM_SAMPLES, LATENT_DIM))}
    arrays["std"][16_900, 5] = -1
    (shard,) = find_shards([store(tmp_path, "npy", arrays)])
    with pytest.raises(
        PosteriorFileError,
        match=r"x_mean.npy: std must not be negative, got -1.0 in row 16900, latent 5",
    ):
        read(shard)


def test_a_standard_deviation_that_is_no_number_stays_none(tmp_path):
    arrays = {"mean": np.zeros((2, 2)), "std": np.array([[np.nan, 1], [np.inf, 1]])}
    (shard,) = find_shards([store(tmp_path, "npz", arrays)])
    assert torch.equal(read(shard)[1].isfinite(), torch.tensor([[False, True], [False, True]]))


@pytest.mark.parametrize("kind", SAVE)
def test_names_of_the_arrays(tmp_path, kind):
    arrays = draw(20, 3)
    # one is the ending of another, and there is a third array that is of no concern
    renamed = {"mu": arrays["mean"], "log_mu": arrays["logvar"], "labels": np.arange(20)}
    store(tmp_path, kind, renamed)
    (shard,) = find_shards([tmp_path], Keys(mean="mu", logvar="log_mu"))
    mean, logvar, _ = read(shard)
    assert np.array_equal(mean, arrays["mean"])
    assert np.array_equal(logvar, arrays["logvar"])


def test_a_folder_a_pattern_and_a_file_find_the_same(tmp_path, monkeypatch):
    for index, name in enumerate(("b.npz", "a.npz")):
        np.savez(tmp_path / name, **draw(5 + index, 3))
    save_npy(tmp_path / "c.npy", draw(7, 3))
    (tmp_path / "notes.txt").write_text("not a shard")
    (tmp_path / ".a-temporary.npz").write_text("being written")
    (tmp_path / "link.npz").symlink_to(tmp_path / "b.npz")
    sizes = [6, 5, 7]
    assert [shard.num_samples for shard in find_shards([tmp_path])] == sizes
    files = [tmp_path / name for name in ("c_logvar.npy", "a.npz", "b.npz")]
    assert [shard.num_samples for shard in find_shards(files)] == sizes
    everything = [tmp_path / "*.np?", *files, tmp_path, tmp_path / ".." / tmp_path.name / "a.npz"]
    assert [shard.num_samples for shard in find_shards(everything)] == sizes
    monkeypatch.chdir(tmp_path)
    assert [shard.name for shard in find_shards(["a.npz", "./b.npz"])] == ["a.npz", "b.npz"]


def test_a_pattern_reaches_into_folders(tmp_path):
    for name in (".", "one", "one/two"):
        (tmp_path / name).mkdir(exist_ok=True)
        np.savez(tmp_path / name / "x.npz", **draw(5, 3))
    assert len(find_shards([f"{tmp_path}/**/*.npz"])) == 3


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    np.savez(tmp_path / "x[1].npz", **draw(5, 3))
    assert len(find_shards([tmp_path / "x[1].npz"])) == 1


def test_shards_without_rows(tmp_path):
    np.savez(tmp_path / "a.npz", **draw(0, 3))
    with pytest.raises(PosteriorFileError, match=r"a.npz: there is no row in any array"):
        find_shards([tmp_path / "a.npz"])
    np.savez(tmp_path / "b.npz", **draw(4, 3))
    empty, other = find_shards([tmp_path])
    assert list(empty.blocks()) == []
    assert other.num_samples == 4


def test_keys_differ():
    with pytest.raises(ValueError, match="keys must differ from each other, got"):
        find_shards(["x.npz"], Keys(mean="a", std="a"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing.npz", "nothing.npz: there is no such file or folder"),
        ("*.npz", r"\*.npz: no file matches"),
        ("empty", r"empty: the folder holds none of \*.safetensors, \*.npz, .*, \*mean.npy"),
        (
            "table.csv",
            "table.csv: the file must be a .safetensors, .npz, .npy, .* file; .*PosteriorWriter",
        ),
        ("labels.npy", "labels.npy: the name of an .npy file must end with one of mean.npy, logvar.npy"),
        (
            "lonely_mean.npy",
            "lonely_mean.npy: there is no variance, such as 'logvar', .*'mean': name it .*no part of a shard",
        ),
    ],
)
def test_paths_that_are_no_shards(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("table.csv", "labels.npy", "lonely_mean.npy"):
        np.save(tmp_path / name, np.zeros((2, 2)))
        (tmp_path / f"{name}.npy").rename(tmp_path / name) if name.endswith(".csv") else None
    with pytest.raises(PosteriorFileError, match=f"^{message}"):
        find_shards([path])


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_missing_keys_are_said_with_those_there_are(tmp_path, kind):
    path = store(tmp_path, kind, {"m": np.zeros((2, 2)), "logvar": np.zeros((2, 2))})
    with pytest.raises(
        PosteriorFileError,
        match=r"no mean, such as 'mean', among '(m|logvar)', '(m|logvar)': name it by --mean-key",
    ):
        find_shards([path])


def test_of_many_names_some_are_said(tmp_path):
    path = store(tmp_path, "safetensors", {f"m{i}x": np.zeros((2, 2)) for i in range(25)})
    with pytest.raises(PosteriorFileError, match=r"'m\d+x' and 15 others: name it by --mean-key") as error:
        find_shards([path])
    assert str(error.value).count("x'") == 10


KINDS = {
    "logvar": lambda variance: np.log(variance),
    "variance": lambda variance: variance,
    "std": np.sqrt,
    "log_std": lambda variance: 0.5 * np.log(variance),
}


@pytest.mark.parametrize("kind", ["safetensors", "npz", "npy"])
@pytest.mark.parametrize(
    ("mean_name", "name", "spread"),
    [
        ("mu", "sigma", "std"),
        ("loc", "scale", "std"),
        ("mean", "var", "variance"),
        ("qz_m", "qz_v", "variance"),
        ("z_mean", "z_log_var", "logvar"),
        ("embedding", "log_covariance", "logvar"),
        ("mean", "log_std", "log_std"),
    ],
)
def test_usual_names_say_what_they_are(tmp_path, kind, mean_name, name, spread):
    arrays = draw(50, 3, np.float64)
    variance = np.exp(arrays["logvar"])
    store(tmp_path, kind, {mean_name: arrays["mean"], name: KINDS[spread](variance)})
    (shard,) = find_shards([tmp_path])
    assert shard.kind == spread
    mean, logvar, _ = read(shard)
    assert np.array_equal(mean, arrays["mean"])
    np.testing.assert_allclose(logvar, arrays["logvar"], rtol=1e-12, atol=1e-12)


def test_names_that_are_no_choice(tmp_path):
    """The own names go before, a named one before all; two others are one too many."""
    ones = np.ones((2, 2))
    np.savez(tmp_path / "own.npz", mean=0 * ones, mu=ones, std=ones, var=0.5 * ones)
    assert read(find_shards([tmp_path / "own.npz"])[0])[0].abs().max() == 0
    assert find_shards([tmp_path / "own.npz"])[0].kind == "std"
    assert find_shards([tmp_path / "own.npz"], Keys(variance="var"))[0].kind == "variance"
    np.savez(tmp_path / "two.npz", mean=ones, sigma=ones, var=ones)
    with pytest.raises(PosteriorFileError, match="'sigma' and 'var' may all be the variance: name it by"):
        find_shards([tmp_path / "two.npz"])
    with pytest.raises(ValueError, match="'var' is the usual name of the variance: name it by --var-key"):
        find_shards([tmp_path / "two.npz"], Keys(std="var"))


def test_what_is_no_regular_file(tmp_path):
    """A pipe would be waited for."""
    save_npy(tmp_path / "x.npy", draw(5, 3))
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    assert len(find_shards([tmp_path])) == 1
    with pytest.raises(PosteriorFileError, match=r"pipe.npz must be a regular file"):
        find_shards([tmp_path / "pipe.npz"])


def test_npy_files_that_only_end_alike_are_left_alone(tmp_path):
    save_npy(tmp_path / "x.npy", draw(5, 3))
    for name in ("menu", "data_mu", "covar", "upscale"):
        np.save(tmp_path / f"{name}.npy", np.zeros(3))
    assert len(find_shards([tmp_path])) == 1


@pytest.mark.parametrize("kind", ["safetensors", "npz", "npy"])
def test_feature_maps(tmp_path, kind):
    arrays = {name: array.reshape(50, 4, 8, 8) for name, array in draw(50, 256).items()}
    path = store(tmp_path, kind, arrays)
    with pytest.raises(
        PosteriorFileError, match=r"event_dim=3 makes it \(N, K\) = \(50, 256\), .*--event-dim"
    ):
        find_shards([path])
    for event_dim, shape in ((3, (50, 256)), (1, (1600, 8))):
        (shard,) = find_shards([path], event_dim=event_dim)
        assert np.array_equal(read(shard)[0], arrays["mean"].reshape(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_files_of_torch(tmp_path, dtype):
    """Whole tensors and a view of a larger one, where they lie; in a folder they may be checkpoints."""
    arrays = {name: torch.from_numpy(array).to(dtype) for name, array in draw().items()}
    torch.save(
        {"epoch": 3, "mean": arrays["mean"], "logvar": torch.cat(2 * [arrays["logvar"]])[NUM_SAMPLES:]},
        tmp_path / "x.pt",
    )
    (shard,) = find_shards([tmp_path / "x.pt"])
    mean, logvar, _ = read(shard)
    assert torch.equal(mean, arrays["mean"])
    assert torch.equal(logvar, arrays["logvar"])
    with pytest.raises(PosteriorFileError, match="holds none of"):
        find_shards([tmp_path])


def test_files_of_torch_that_are_refused(tmp_path):
    trace, zeros = tmp_path / "unpickled", torch.zeros(4, 2)
    contents = {
        "must hold tensors alone, got .*mkdir": Unpickled(trace),
        "tensors alone": {"mean": zeros, "logvar": Unpickled(trace)},
        "must hold a dict of tensors, got list": [zeros, zeros],
        "must hold a dict of tensors, got a tensor": zeros,
        "must hold a dict of tensors, got 'model' of type dict, 'epoch' of type int": {
            "model": {"mean": zeros},
            "epoch": 3,
        },
        "'0.weight', '0.bias': these are the parameters of a model, .* its encoder": nn.Sequential(
            nn.Linear(2, 3)
        ).state_dict(),
        "'mean' must be contiguous": {"mean": torch.zeros(2, 4).mT, "logvar": zeros},
        "no variance, such as 'logvar'": {"mean": zeros, "logvar": [1.0]},
        "must be of one of the dtypes .* got int64": {"mean": zeros.long(), "logvar": zeros},
    }
    for message, content in contents.items():
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(PosteriorFileError, match=rf"x.pt.*{message}"):
            find_shards([tmp_path / "x.pt"])
    posterior = {"mean": zeros, "logvar": zeros}
    torch.save(posterior, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(posterior, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as whole,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    os.truncate(tmp_path / "x.pt", 300)
    for name in ("legacy", "packed", "x"):
        with pytest.raises(
            PosteriorFileError, match=f"{name}.pt must be in the format that torch.save writes"
        ):
            find_shards([tmp_path / f"{name}.pt"])
    assert not trace.exists()


def test_bfloat16_of_numpy_is_named(tmp_path):
    arrays = {name: np.zeros((3, 2), "V2") for name in ("mean", "logvar")}  # as ml_dtypes' is saved
    with pytest.raises(PosteriorFileError, match=r"got \|V2, as NumPy saves bfloat16, .* save float32 of it"):
        find_shards([store(tmp_path, "npz", arrays)])


WRONG = {
    "shapes": (
        {"logvar": np.zeros((4, 2))},
        r"'logvar' must have the shape of 'mean', \(3, 2\), got \(4, 2\)",
    ),
    "flat": ({"mean": np.zeros(3)}, r"must have shape \(N, K\) with K >= 1, got \(3,\)"),
    "no latents": ({"mean": np.zeros((3, 0))}, r"must have shape \(N, K\) with K >= 1, got \(3, 0\)"),
    "integers": ({"mean": np.zeros((3, 2), np.int32)}, "must be of one of the dtypes .*, got int32"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("kind", SAVE)
def test_arrays_that_are_no_posterior(tmp_path, kind, case):
    changed, message = WRONG[case]
    arrays = {"mean": np.zeros((3, 2)), "logvar": np.zeros((3, 2)), **changed}
    path = store(tmp_path, kind, arrays)
    with pytest.raises(PosteriorFileError, match=message) as caught:
        find_shards([path])
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("kind", ["npz", "npy"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda array: array.astype(">f8"),
            "must be of one of the dtypes float64, .*, got >f8",
        ),
        (lambda array: array.astype("g"), "must be of one of the dtypes"),
        (np.asfortranarray, "is in Fortran order: save np.ascontiguousarray of it"),
    ],
)
def test_layouts_that_are_refused(tmp_path, kind, change, message):
    arrays = draw(5, 3, np.float64)
    arrays["mean"] = change(arrays["mean"])
    path = store(tmp_path, kind, arrays)
    with pytest.raises(PosteriorFileError, match=message):
        find_shards([path])


class Unpickled:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_nothing_is_unpickled(tmp_path, kind):
    trace = tmp_path / "unpickled"
    arrays = {"mean": np.array([[Unpickled(trace)]], dtype=object), "logvar": np.zeros((1, 1))}
    path = store(tmp_path, kind, arrays)
    with pytest.raises(PosteriorFileError, match="holds pickled Python objects, which are not read"):
        find_shards([path])
    assert not trace.exists()


def test_a_bare_pickle_is_no_npy_file(tmp_path):
    trace = tmp_path / "unpickled"
    import pickle

    (tmp_path / "mean.npy").write_bytes(pickle.dumps(Unpickled(trace)))
    np.save(tmp_path / "logvar.npy", np.zeros((1, 1)))
    with pytest.raises(PosteriorFileError, match=r"mean.npy is not in NumPy's npy format: it begins with"):
        find_shards([tmp_path])
    assert not trace.exists()


def test_shards_of_different_models(tmp_path):
    for name, latent_dim in (("a", 3), ("b", 3), ("c", 4)):
        np.savez(tmp_path / f"{name}.npz", **draw(5, latent_dim))
    with pytest.raises(PosteriorFileError, match=r"c.npz has K=4 latents where .*a.npz has K=3"):
        find_shards([tmp_path])


@pytest.mark.parametrize("kind", SAVE)
def test_a_shard_is_described_to_another_process(tmp_path, kind):
    folder = tmp_path / "of two \n lines \x85 é"
    folder.mkdir()
    (shard,) = find_shards([store(folder, kind, draw(5, 3, np.float16))])
    text = shard.to_json()
    assert len(text.splitlines()) == 1
    assert text.isascii()
    assert Shard.from_json(text) == shard


@pytest.mark.parametrize("left", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("kind", SAVE)
def test_a_truncated_file_is_named(tmp_path, kind, left):
    path = store(tmp_path, kind, draw(1000, 3))
    os.truncate(path, int(path.stat().st_size * left))
    with pytest.raises(PosteriorFileError, match=path.name):
        find_shards([path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-4], "is truncated: 12124 bytes where its header says 12128"),
        (lambda content: content + content, "is too long: 24256 bytes where its header says 12128"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "compressed", "npy"])
def test_an_array_is_as_long_as_its_header_says(tmp_path, kind, change, message):
    """Two arrays saved one after the other in a file are not half read either."""
    path = store(tmp_path, kind, draw(1000, 3))
    if kind == "npy":
        path = tmp_path / "x_logvar.npy"
        path.write_bytes(change(path.read_bytes()))
    else:
        with zipfile.ZipFile(path) as archive:
            members = {info: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for info, content in members.items():
                archive.writestr(info, change(content) if info.filename == "logvar.npy" else content)
    with pytest.raises(PosteriorFileError, match=rf"{path.name}.* {message}"):
        find_shards([path])


@pytest.mark.parametrize("kind", SAVE)
def test_a_file_that_shrinks_after_it_was_found(tmp_path, kind):
    path = store(tmp_path, kind, draw())
    (shard,) = find_shards([path])
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(
        PosteriorFileError, match=rf"{path.name} is (truncated: \d+ bytes are missing|damaged)"
    ):
        read(shard)


@pytest.mark.parametrize("kind", SAVE)
def test_a_file_that_changes_while_it_is_read(tmp_path, kind):
    path = store(tmp_path, kind, draw())
    (shard,) = find_shards([path])
    blocks = shard.blocks()
    next(blocks)
    os.utime(path, ns=(0, 0))
    with pytest.raises(PosteriorFileError, match=f"{path.name} was changed while it was read"):
        list(blocks)


@pytest.mark.parametrize("where", [0.2, 0.45, 0.95])
@pytest.mark.parametrize("kind", ["npz", "compressed"])
def test_a_damaged_member_is_noticed_by_its_checksum(tmp_path, kind, where):
    path = store(tmp_path, kind, draw())
    (shard,) = find_shards([path])
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 0xFF
    stamp = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(PosteriorFileError, match=r"x.npz is damaged: "):
        read(shard)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = store(tmp_path, "npz", draw(5, 3))

    def refuse(*arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(PosteriorFileError, match=r"x.npz: cannot be read: Permission denied"):
        find_shards([path])


def test_an_encrypted_member(tmp_path):
    path = store(tmp_path, "npz", draw(5, 3))
    content = bytearray(path.read_bytes())
    # the flag of every entry, in the local headers and in the directory
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + offset] |= 1
            start = content.find(signature, start + 1)
    path.write_bytes(content)
    with pytest.raises(PosteriorFileError, match=r"x.npz: 'mean' cannot be read: .*password"):
        find_shards([path])
