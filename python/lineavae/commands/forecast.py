"""``lineavae forecast``: how many latents of a VAE can live on some data, before it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from lineavae._array_files import ArrayFileError, safetensors_arrays
from lineavae._io import finite
from lineavae.commands._common import fail, show_json
from lineavae.data import read_samples
from lineavae.data.mnist import find_images, read_images
from lineavae.linear import Moments, forecast_collapse

EPILOG = (
    "Example: [bold]lineavae forecast images.npy --latent-dim 200 --sigma2 1[/bold] tells how many of "
    "the 200 latents will collapse, and which σ² keeps them."
)

# Images of which the pixels are divided at once.
_ROWS = 4096


def forecast(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A .npy, .npz or .safetensors file of samples (N, D), or (N, ...), in the units in which "
            "the VAE sees them; a folder of such files; moments that Moments.save wrote; or a folder with "
            "MNIST's files, whose pixels are divided by 255.",
        ),
    ],
    latent_dim: Annotated[int, typer.Option(min=1, help="Latents K.")],
    sigma2: Annotated[
        float | None, typer.Option(help="Observation noise σ² that is held fixed; without it, it is learned.")
    ] = None,
    beta: Annotated[float, typer.Option(help="Weight β of the KL term.")] = 1.0,
    key: Annotated[
        str | None, typer.Option(help="Name of the array, in a file that holds more than one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read the data and print the forecast."""
    try:
        result = forecast_collapse(_read(data, key), latent_dim, sigma2=sigma2, beta=beta)
    except ValueError as error:
        fail(str(error).removeprefix("forecast_collapse: "))
    show_json(finite(result.to_dict())) if as_json else typer.echo(str(result))


def _read(path: Path, key: str | None) -> Moments:
    """Give the moments of the samples at ``path``; a ValueError says why there are none."""
    if _holds_moments(path):
        return Moments.load(path)
    images = find_images(path)
    if images is not None:
        pixels = torch.from_numpy(read_images(images)).flatten(1)
        return Moments.from_batches(part.float() / 255 for part in torch.split(pixels, _ROWS))
    moments = Moments()
    for file, samples in read_samples(path, key):
        try:
            moments.update(samples)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {str(error).removeprefix('Moments: ')}") from error
    return moments


def _holds_moments(path: Path) -> bool:
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        return safetensors_arrays(path)[1].get("format") == "lineavae.Moments"
    except ArrayFileError:
        return False  # the reader of samples says why
