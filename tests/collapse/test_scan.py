import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import expm1

from lineavae.collapse.files import Keys, PosteriorFileError, Shard, find_shards
from lineavae.collapse.scan import ShardResults, scan
from lineavae.ops import LatentStatistics, histogram_edges

THRESHOLDS = [0.0, 0.01, 0.1, 1.0]
NUM_SAMPLES, LATENT_DIM = 30_000, 100


@pytest.fixture(scope="module")
def arrays():
    """Collapsed and live latents, one of exactly zero KL, and some elements that are not finite."""
    rng = np.random.default_rng(0)
    scale = np.logspace(-3, 0, LATENT_DIM)
    mean = rng.standard_normal((NUM_SAMPLES, LATENT_DIM)) * scale
    logvar = rng.standard_normal((NUM_SAMPLES, LATENT_DIM)) * scale - np.log1p(scale**2)
    mean[:, 7] = logvar[:, 7] = 0
    mean[[3, 15_000], 11], logvar[[3, 4], 12] = np.nan, np.inf
    return {"mean": mean, "logvar": logvar}


def save(folder, arrays, pieces):
    """Save the rows in so many files of unequal lengths."""
    cuts = (np.linspace(0, 1, pieces + 1)[1:-1] ** 2 * len(arrays["mean"])).astype(int)
    for index in range(pieces):
        rows = {name: np.split(array, cuts)[index] for name, array in arrays.items()}
        np.savez(folder / f"shard-{index}.npz", **rows)
    return find_shards([folder])


@pytest.fixture
def shards(tmp_path, arrays):
    return save(tmp_path, arrays, 3)


@pytest.fixture
def results(tmp_path):
    return ShardResults(tmp_path / "results", THRESHOLDS)


def assert_same(found, expected):
    for name, tensor, other in zip(LatentStatistics._fields, found, expected, strict=True):
        assert torch.equal(tensor, other), name


def test_statistics_are_those_of_the_kl_in_float64(shards, arrays):
    """NumPy's, two passes for each variance."""
    found = scan(shards, THRESHOLDS)
    mean, logvar = arrays["mean"], arrays["logvar"]
    with np.errstate(invalid="ignore"):
        kl = 0.5 * (mean**2 + (expm1(logvar) - logvar))
    kl[np.isposinf(logvar)] = np.inf
    known = ~np.isnan(kl)
    assert np.array_equal(found.nan, (~known).sum(0))
    assert np.array_equal(found.infinite, np.isinf(kl).sum(0))
    assert (found.nan[[10, 11, 12]].tolist(), found.infinite[[10, 11, 12]].tolist()) == ([0, 2, 0], [0, 0, 2])
    counts = [(kl <= 0).sum(0), *((kl < threshold).sum(0) for threshold in THRESHOLDS[1:])]
    assert np.array_equal(found.counts, np.stack(counts, -1))
    assert found.counts[7].tolist() == [NUM_SAMPLES] * 4
    for latent in range(LATENT_DIM):
        of_latent = known[:, latent]
        values = kl[of_latent, latent]
        histogram, _ = np.histogram(values, histogram_edges().numpy())
        assert np.array_equal(found.histogram[latent], histogram)
        np.testing.assert_allclose(found.minimum[latent], values.min(), rtol=1e-12, atol=1e-17)
        np.testing.assert_allclose(found.maximum[latent], values.max(), rtol=1e-12, atol=1e-17)
        moments = [of_latent.sum()]
        for column in (values, mean[of_latent, latent], np.exp(logvar[of_latent, latent])):
            average = column.mean()
            squares = np.inf if np.isinf(average) else ((column - average) ** 2).sum()
            moments += [average, squares]
        np.testing.assert_allclose(found.moments[latent], moments, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("pieces", [1, 7])
def test_any_split_into_shards(tmp_path, arrays, shards, pieces):
    expected = scan(shards, THRESHOLDS)
    (tmp_path / "split").mkdir()
    found = scan(save(tmp_path / "split", arrays, pieces), THRESHOLDS)
    assert_same(found._replace(moments=expected.moments), expected)
    torch.testing.assert_close(found.moments, expected.moments, rtol=1e-12, atol=1e-15)


def test_latents_are_counted_some_at_a_time(shards, monkeypatch):
    expected = scan(shards, THRESHOLDS)
    monkeypatch.setattr("lineavae.collapse.scan._LATENTS_AT_ONCE", 7)
    found = scan(shards, THRESHOLDS)
    assert_same(found._replace(moments=expected.moments), expected)
    torch.testing.assert_close(found.moments, expected.moments, rtol=1e-12, atol=1e-15)


def test_the_kind_of_file_does_not_matter(tmp_path, arrays):
    posterior = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_file(posterior, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", **arrays)
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    found = [scan([shard], THRESHOLDS) for shard in find_shards([tmp_path])]
    assert len(found) == 3
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_float32_of_its_values(tmp_path, arrays, dtype):
    posterior = {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}
    save_file(posterior, tmp_path / "half.safetensors")
    save_file({name: tensor.float() for name, tensor in posterior.items()}, tmp_path / "single.safetensors")
    half, single = (scan([shard], THRESHOLDS) for shard in find_shards([tmp_path]))
    assert_same(half, single)


def test_finished_shards_are_not_read_again(shards, results, monkeypatch):
    expected = scan(shards, THRESHOLDS)
    scan(shards[:2], THRESHOLDS, results)
    assert [results.has(shard) for shard in shards] == [True, True, False]
    read = []
    blocks = Shard.blocks
    monkeypatch.setattr(Shard, "blocks", lambda shard: read.append(shard) or blocks(shard))
    calls = []
    found = scan(shards, THRESHOLDS, results, progress=lambda *state: calls.append(state))
    assert read == [shards[2]]
    assert_same(found, expected)
    assert calls[0] == (0, shards[2].num_bytes)
    assert calls[-1] == (shards[2].num_bytes, shards[2].num_bytes)
    assert_same(scan(shards, THRESHOLDS, results), expected)
    assert read == [shards[2]]


def test_a_changed_shard_is_read_again(tmp_path, arrays, shards, results):
    scan(shards, THRESHOLDS, results)
    np.savez(tmp_path / "shard-1.npz", mean=arrays["mean"][:10], logvar=arrays["logvar"][:10])
    changed = find_shards([tmp_path])
    assert [results.has(shard) for shard in changed] == [True, False, True]
    assert_same(scan(changed, THRESHOLDS, results), scan(changed, THRESHOLDS))


def test_results_at_other_thresholds_or_of_other_arrays_are_not_used(tmp_path, arrays, shards, results):
    scan(shards, THRESHOLDS, results)
    other = ShardResults(results.folder, [0.02])
    assert not any(other.has(shard) for shard in shards)
    assert_same(scan(shards, [0.02], other), scan(shards, [0.02]))
    assert all(results.has(shard) for shard in shards)
    both = {"mean": arrays["mean"], "a": arrays["logvar"], "b": arrays["logvar"] - 1}
    np.savez(tmp_path / "both.npz", **both)
    for key in ("a", "b"):
        (shard,) = find_shards([tmp_path / "both.npz"], Keys("mean", key, "std"))
        assert not results.has(shard)
        scan([shard], THRESHOLDS, results)


def test_a_shard_that_fails_leaves_nothing(tmp_path, shards, results):
    path = tmp_path / "shard-2.npz"
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-len(content) // 4] ^= 0xFF
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(PosteriorFileError, match=r"shard-2.npz is damaged"):
        scan(shards, THRESHOLDS, results)
    assert [results.has(shard) for shard in shards] == [True, True, False]
    assert len(list(results.folder.iterdir())) == 2


def test_a_damaged_result_is_named(shards, results):
    scan(shards, THRESHOLDS, results)
    (damaged, *_) = results.folder.iterdir()
    os.truncate(damaged, 1000)
    with pytest.raises(PosteriorFileError, match=rf"{damaged.name} is not a whole .*: delete it"):
        scan(shards, THRESHOLDS, results)


def more_counts(statistics):
    statistics.counts[0, -1] += 40_000


def fewer_samples(statistics):
    statistics.histogram[3, statistics.histogram[3].argmax()] -= 1


def falling_counts(statistics):
    statistics.counts[7, 0], statistics.counts[7, 1] = 2, 1


@pytest.mark.parametrize("change", [more_counts, fewer_samples, falling_counts])
def test_a_result_fits_its_shard(shards, results, change):
    statistics = scan(shards[:1], THRESHOLDS)
    change(statistics)
    results.save(shards[0], statistics)
    with pytest.raises(
        PosteriorFileError, match=rf"must hold statistics of {shards[0].num_samples} samples: del"
    ):
        scan(shards, THRESHOLDS, results)


def test_progress(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    (shard,) = find_shards([tmp_path])
    calls = []
    scan([shard], THRESHOLDS, progress=lambda *state: calls.append(state))
    rows = [0, 20_971, 30_000]
    assert calls == [(count * 2 * 8 * LATENT_DIM, shard.num_bytes) for count in rows]


@pytest.mark.parametrize("thresholds", [[-0.1], [float("nan")], [0.1] * 65])
def test_thresholds_are_checked(shards, thresholds):
    with pytest.raises(ValueError, match="threshold"):
        scan(shards, thresholds)


def test_no_shard():
    with pytest.raises(ValueError, match="shards must be at least one"):
        scan([], THRESHOLDS)


PROCESS = """
import sys
import torch, torch.distributed as dist
from lineavae.collapse.files import find_shards
from lineavae.collapse.scan import ShardResults, scan

folder, rank, size, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
thresholds = [0.0, 0.01, 0.1, 1.0]
results = ShardResults(f"{folder}/results", thresholds)
statistics = scan(find_shards([folder]), thresholds, results)
torch.save(statistics._asdict(), f"{out}-{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_processes(tmp_path, shards, size):
    """More processes than shards too; and the results of several serve one."""
    expected = scan(shards, THRESHOLDS)
    out = tmp_path / "out"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path), str(rank), str(size), str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]
    assert [process.wait() for process in processes] == [0] * size
    for rank in range(size):
        found = torch.load(f"{out}-{rank}.pt", weights_only=True)
        assert_same(LatentStatistics(**found), expected)
    results = ShardResults(tmp_path / "results", THRESHOLDS)
    assert all(results.has(shard) for shard in shards)
    assert_same(scan(shards, THRESHOLDS, results), expected)


MEMORY = """
import re, sys, threading
from pathlib import Path

from lineavae.collapse.files import find_shards
from lineavae.collapse.scan import scan

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())

warm, large = (find_shards([path]) for path in sys.argv[1:])
scan(warm, [0.01])  # threads and their stacks, modules that are loaded when they are needed
start = peak = anonymous()
done = threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
statistics = scan(large, [0.0, 0.01, 0.1])
done.set()
watcher.join()
print(int(statistics.moments[0, 0]), peak - start)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "npz", "npy"])
def test_memory_does_not_grow_with_the_posterior(tmp_path, kind):
    """200 MB, of which less than a quarter is ever in memory."""
    num_samples, latent_dim = 125_000, 200
    for name, rows in (("warm", 1000), ("large", num_samples)):
        mean, logvar = torch.randn(2, rows, latent_dim)
        posterior = {"mean": mean, "logvar": logvar.clone()}
        if kind == "safetensors":
            save_file(posterior, tmp_path / f"{name}.safetensors")
        elif kind == "npz":
            np.savez_compressed(tmp_path / f"{name}.npz", **posterior)
        else:
            for key, tensor in posterior.items():
                np.save(tmp_path / f"{name}_{key}.npy", tensor)
    process = subprocess.run(
        [sys.executable, "-c", MEMORY, *(str(tmp_path / f"{name}*") for name in ("warm", "large"))],
        capture_output=True,
        text=True,
        check=True,
    )
    rows, growth = map(int, process.stdout.split())
    assert rows == num_samples
    assert growth < 50e6, f"{growth / 1e6:.0f} MB"
