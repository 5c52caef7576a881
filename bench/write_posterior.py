"""Write a synthetic posterior in shards, as large as wanted: something to run `lineavae collapse` on.

    python bench/write_posterior.py --shards 40 --gigabytes 20 OUT

The latents are those of a pPCA model with signal to noise ratios s² between 1e-6 and 100, and a little noise
is added to the log-variance. Two in five are (0.01, 0.01)-collapsed; the mean KL of each is log(1 + s²)/2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from lineavae._io import atomic_path


def scales(latent_dim: int) -> torch.Tensor:
    return torch.logspace(1, -3, latent_dim)


def posterior(num_samples: int, latent_dim: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    square = scales(latent_dim).square()
    mean, logvar = torch.randn(2, num_samples, latent_dim, generator=generator)
    mean *= (square / (1 + square)).sqrt()
    logvar *= 5e-3
    logvar -= square.log1p()
    return {"mean": mean, "logvar": logvar.clone()}


def write(folder: Path, num_shards: int, gigabytes: float, latent_dim: int, seed: int) -> None:
    """Write the shards that are not there yet; one that is killed on the way can be run again."""
    num_samples = round(gigabytes * 1e9 / num_shards / (8 * latent_dim))
    for shard in range(num_shards):
        path = folder / f"shard-{shard:05d}.safetensors"
        if not path.exists():
            with atomic_path(path) as temporary:
                save_file(posterior(num_samples, latent_dim, seed + shard), temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a synthetic posterior in float32, in shards.")
    parser.add_argument("folder", type=Path, metavar="OUT")
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--latents", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.folder, options.shards, options.gigabytes, options.latents, options.seed)


if __name__ == "__main__":
    main()
