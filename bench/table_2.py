"""Train as much of Table 2 as fits some minutes on the GPU at hand, and write its report.

The networks and the batches are the paper's, of all ten σ², fixed and learned, with one learning rate; as
many epochs as there is time for, up to the paper's, then as many seeds. The images are MNIST's where --data
or LINEAVAE_DATA names its folder, else the 5000 of MNIST-5k.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from lineavae import report
from lineavae._io import write_text
from lineavae.experiments import EXPERIMENTS, execute
from lineavae.experiments.deep_vae import Chunk, DeepConfig, DeepData, prepare, train

EXPERIMENT = EXPERIMENTS["deep-mnist"]
FULL = EXPERIMENT.presets["full"]
KINDS = ("fixed", "learned")
# What is kept for reading the data, figures and the page, and for an estimate that is too low.
RESERVE = 0.2


def configure(device: str, data: str | None, dry: bool) -> DeepConfig:
    """Give the whole of what there could be time for."""
    num_images = FULL.num_images if data else 5000
    config = replace(FULL, num_images=num_images, learning_rates=(1e-3,), device=device, data=data)
    if dry:
        config = replace(config, num_images=100, batch_size=50, hidden=(8, 6), latent_dim=3)
    return config


def seconds_of(config: DeepConfig, data: DeepData, epochs: int) -> float:
    """Time a training of all σ² at once, with its evaluations at the beginning and at the end."""
    short = replace(config, epochs=epochs, record_every=epochs)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train(short, [Chunk("fixed", config.sigma2, 0, config.learning_rates[0])], data, Path(folder))
        if config.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def fit(config: DeepConfig, data: DeepData, seconds: float) -> DeepConfig:
    """Choose epochs and seeds by what an epoch and an evaluation take here."""
    seconds_of(config, data, 1)  # what only the first takes
    one, three = seconds_of(config, data, 1), seconds_of(config, data, 3)
    epoch, evaluation = max((three - one) / 2, 1e-9), one / 2
    per_epoch = len(KINDS) * (epoch + evaluation / config.record_every)
    affordable = int(seconds * (1 - RESERVE) / per_epoch)
    epochs = max(
        config.record_every, min(config.epochs, affordable) // config.record_every * config.record_every
    )
    seeds = config.seeds[: max(1, affordable // epochs)]
    print(
        f"an epoch of {len(config.sigma2)} models takes {epoch:.2f} s, an evaluation {evaluation:.2f} s: "
        f"{epochs} epochs, {len(seeds)} seeds"
    )
    return replace(config, epochs=epochs, seeds=seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--setting", choices=("cuda", "dry-run"), default="cuda")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--data", default=os.environ.get("LINEAVAE_DATA"))
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run")
    parser.add_argument("--out", type=Path, required=True, help="the page")
    options = parser.parse_args()
    start = time.perf_counter()
    dry = options.setting == "dry-run"
    config = configure("cpu" if dry else "cuda", options.data, dry)
    data = prepare(config)
    config = fit(config, data, options.seconds - (time.perf_counter() - start))
    directory = options.runs / f"deep-mnist-{config.epochs}-epochs-{len(config.seeds)}-seeds"
    execute(EXPERIMENT, config, directory, resume=True)
    write_text(options.out, report.to_html(report.read([directory])))
    print(f"written: {options.out}, after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
