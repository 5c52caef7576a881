"""``lineavae forecast``: how many latents of a VAE can live on some data, before it is trained."""

from __future__ import annotations

from typing import Annotated

import typer

from lineavae._io import finite
from lineavae.commands._common import fail, importing, show_json

EPILOG = (
    "Example: [bold]lineavae forecast images.npy --latent-dim 200 --sigma2 1[/bold] tells how many of "
    "the 200 latents will collapse, and which σ² keeps them."
)


def forecast(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="[bold]digits[/bold]: scikit-learn's of 8 x 8 pixels; [bold]mnist5k[/bold]: 5000 images of "
            "MNIST; a .npy, .npz or .safetensors file of samples (N, D), or (N, ...), in the units in which "
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
    with importing():
        from lineavae.commands._moments import read_moments
        from lineavae.linear import forecast_collapse
    try:
        result = forecast_collapse(read_moments(data, key), latent_dim, sigma2=sigma2, beta=beta)
    except ValueError as error:
        fail(str(error).removeprefix("forecast_collapse: "))
    except ModuleNotFoundError as error:
        fail(str(error), 1)
    show_json(finite(result.to_dict())) if as_json else typer.echo(str(result))
