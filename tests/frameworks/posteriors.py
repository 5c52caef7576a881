"""Posteriors that other frameworks' own models wrote, by `lineavae collapse`, against NumPy in float64.

    make frameworks

Each function trains or makes a small model, writes its posteriors as that framework's users do, and gives the
files, options of the command, and means and variances (N, K) as the framework tells them. The frameworks are
large, so this is no part of the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Posterior = tuple[list[str], Any, Any]


def scvi_tools(folder: Path) -> Posterior:
    """A minified SCVI, saved with its data."""
    import scvi

    scvi.settings.seed = 0
    data = scvi.data.synthetic_iid()
    scvi.model.SCVI.setup_anndata(data, batch_key="batch")
    model = scvi.model.SCVI(data, n_latent=10)
    model.train(max_epochs=3, accelerator="cpu", enable_progress_bar=False, logger=False)

    mean, variance = model.get_latent_representation(return_dist=True)
    data.obsm["X_latent_qzm"], data.obsm["X_latent_qzv"] = mean, variance
    model.minify_adata()
    model.save(folder / "model", save_anndata=True)
    return [str(folder / "model" / "adata.h5ad")], mean, variance


def pythae(folder: Path) -> Posterior:
    """A VAE of pythae, whose encoder's output has the names of its arrays."""
    import torch
    from pythae.models import VAE, VAEConfig
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = VAE(VAEConfig(input_dim=(1, 8, 8), latent_dim=6)).eval()
    with torch.no_grad():
        output = model.encoder(torch.rand(200, 1, 8, 8))
    save_file(dict(output), folder / "pythae.safetensors")
    return [str(folder / "pythae.safetensors")], output.embedding, output.log_covariance.exp()


def diffusers(folder: Path) -> Posterior:
    """A small AutoencoderKL of random weights: (N, C, H, W), of which every element is a latent."""
    import torch
    from diffusers import AutoencoderKL

    from lineavae.collapse import PosteriorWriter

    torch.manual_seed(0)
    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    with torch.no_grad(), PosteriorWriter(folder / "diffusers") as writer:
        posterior = model.encode(torch.randn(60, 3, 4, 4)).latent_dist
        writer.write(posterior.mean, posterior.logvar, event_dim=3)
    return [str(folder / "diffusers")], posterior.mean.flatten(1), posterior.var.flatten(1)


def jax(folder: Path) -> Posterior:
    """Arrays of JAX, of half precision too, in batches."""
    from jax import numpy as jnp
    from jax import random

    from lineavae.collapse import PosteriorWriter

    mean, logvar = random.normal(random.key(0), (2, 300, 5)).astype(jnp.bfloat16)
    with PosteriorWriter(folder / "jax") as writer:
        for rows in (slice(100), slice(100, 300)):
            writer.write(mean[rows], std=jnp.exp(0.5 * logvar[rows].astype(jnp.float32)))
    std = jnp.exp(0.5 * logvar.astype(jnp.float32))
    return [str(folder / "jax")], mean.astype(jnp.float32), np.asarray(std, np.float64) ** 2


FRAMEWORKS: dict[str, tuple[Callable[[Path], Posterior], str]] = {
    "scvi-tools": (scvi_tools, "the `adata.h5ad` of a minified `SCVI`"),
    "pythae": (pythae, "`VAE`, the encoder's output in safetensors"),
    "diffusers": (diffusers, "`AutoencoderKL`, (N, C, H, W), by `PosteriorWriter`"),
    "jax": (jax, "bfloat16 arrays, by `PosteriorWriter`"),
}


def report_of(arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "lineavae", "collapse", *arguments, "--json", "--allow-wide"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    """Print a row of a table for each framework, or fail where one does not agree."""
    for name, (write, what) in FRAMEWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            arguments, *posterior = write(Path(folder))
            report = report_of(arguments)
        mean, variance = (np.asarray(array, np.float64) for array in posterior)
        kl = 0.5 * (mean**2 + variance - np.log(variance) - 1)
        np.testing.assert_allclose(report["latents"]["mean_kl"], kl.mean(0), rtol=1e-5, atol=1e-7)
        collapsed = (kl < 0.01).mean(0) >= 0.99
        assert report["latents"]["collapsed"] == collapsed.tolist()
        error = np.abs(np.asarray(report["latents"]["mean_kl"]) / kl.mean(0) - 1).max()
        dead = f"{collapsed.sum()} of {len(collapsed)}"
        print(f"| {name} {version(name)} | {what} | {dead} | {error:.0e} |", flush=True)


if __name__ == "__main__":
    main()
