from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lineavae.collapse import PosteriorWriter
from lineavae.collapse.files import find_shards


def read(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = [(m.clone(), v.clone()) for shard in find_shards([folder]) for m, v in shard.blocks()]
    mean, logvar = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return mean, logvar


VIEWS = {
    "halves": lambda array: np.split(np.concatenate([array, array + 1], 1), 2, axis=1),
    "columns": lambda array: (np.asfortranarray(array), np.asfortranarray(array + 1)),
    "backwards": lambda array: (array[::-1], array[::-1] + 1),
    "tensors": lambda array: torch.from_numpy(np.concatenate([array, array + 1], 1)).chunk(2, 1),
    "transposed": lambda array: torch.from_numpy(np.stack([array.T, array.T + 1])).mT,
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_of_any_strides_come_back(tmp_path: Path, view: str) -> None:
    mean, logvar = VIEWS[view](np.random.default_rng(0).standard_normal((100, 3)))
    with PosteriorWriter(tmp_path, rows_per_shard=40) as writer:
        for start in range(0, 100, 25):
            writer.write(mean[start : start + 25], logvar[start : start + 25])
    assert [shard.num_samples for shard in find_shards([tmp_path])] == [50, 50]
    for found, expected in zip(read(tmp_path), (mean, logvar), strict=True):
        assert np.array_equal(found.numpy(), np.asarray(expected))


def test_spreads_dtypes_and_events(tmp_path: Path) -> None:
    std = torch.full((4, 2, 1, 3), 0.5, dtype=torch.bfloat16)
    with PosteriorWriter(tmp_path / "new") as writer:
        buffer = torch.zeros_like(std)
        writer.write(buffer, std=std, event_dim=3)
        buffer += 1  # a model may write to what it returned
    mean, logvar = read(tmp_path / "new")
    assert mean.shape == (4, 6)
    assert not mean.any()
    assert logvar.dtype == torch.float32
    np.testing.assert_allclose(logvar, 2 * np.log(0.5), rtol=1e-7)


def test_a_loop_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Whole batches are kept or dropped, and the rest is that of a loop without a stop."""
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))

    def write(resume: bool, stop: int | None) -> None:
        with PosteriorWriter(tmp_path, rows_per_shard=30, resume=resume) as writer:
            for start in range(writer.num_samples, 100, 20):
                if start == stop:
                    raise KeyboardInterrupt
                writer.write(rows[start : start + 20], rows[start : start + 20])

    with pytest.raises(KeyboardInterrupt):
        write(resume=False, stop=60)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.safetensors"]
    assert len(read(tmp_path)[0]) == 40
    with pytest.raises(ValueError, match=r"folder must hold no posteriors, got .*000000.*resume=True"):
        PosteriorWriter(tmp_path)
    write(resume=True, stop=None)
    assert torch.equal(read(tmp_path)[0], rows)


def test_other_latents_and_other_files_are_refused(tmp_path: Path) -> None:
    with PosteriorWriter(tmp_path) as writer:
        writer.write(np.zeros((2, 3)), np.zeros((2, 3)))
        with pytest.raises(ValueError, match=r"mean must have K=3 latents, got .*\(2, 4\)"):
            writer.write(np.zeros((2, 4)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="K=3 latents, got"):
        PosteriorWriter(tmp_path, resume=True).write(np.zeros((2, 4)), np.zeros((2, 4)))
    (tmp_path / "shard-000000.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"shards of this class alone to continue, got .*other"):
        PosteriorWriter(tmp_path, resume=True)
