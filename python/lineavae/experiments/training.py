"""How the experiments train a linear VAE."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from lineavae.experiments.figures import Objective
from lineavae.experiments.runs import Config
from lineavae.linear import History, LinearVAE

_HISTORY_POINTS = 120


def train(
    config: Config,
    x: Tensor,
    latent_dim: int,
    *,
    objective: Objective = "analytic",
    lr: float,
    steps: int,
    checkpoint: Path,
) -> tuple[LinearVAE, History]:
    """Train from the paper's initialisation in float32, full batch, by Adam.

    Parameters
    ----------
    config
        Gives the seed and the device.
    x
        Samples, (N, D).
    latent_dim
        Latent dimensions K.
    objective, lr, steps
        As in `lineavae.linear.LinearVAE.fit`.
    checkpoint
        File from which the training goes on if it is there.

    Returns
    -------
    model : LinearVAE
        The trained model in float64 on the CPU, for judgement.
    history : History
        Its ELBO in the course of the training.
    """
    Console(stderr=True).print(f"{objective} training: K={latent_dim}, learning rate {lr:g}, {steps} steps")
    generator = torch.Generator().manual_seed(config.seed)
    model = LinearVAE(x.shape[1], latent_dim, generator=generator, dtype=torch.float32).to(config.device)
    history = model.fit(
        x,
        objective=objective,
        lr=lr,
        steps=steps,
        seed=config.seed,
        drop_constant_features=True,
        history_every=max(1, steps // _HISTORY_POINTS),
        checkpoint=checkpoint,
        resume=True,
    )
    return model.cpu().double(), history
