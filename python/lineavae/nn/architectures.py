"""The encoders and decoders of the paper."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lineavae._arguments import check_integer, check_number


class _Encoder(nn.Module):
    """Some layers that end in 2K numbers: means, and log-variances within a bound."""

    def __init__(self, layers: nn.Module, latent_dim: int, logvar_bound: float | None) -> None:
        super().__init__()
        name = type(self).__name__
        if logvar_bound is not None:
            check_number(name, "logvar_bound", logvar_bound, above=0)
        self.layers = layers
        self.latent_dim = latent_dim
        self.logvar_bound = logvar_bound

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give posterior means and log-variances, (N, K) each."""
        mean, logvar = self.layers(x).chunk(2, dim=-1)
        if self.logvar_bound is not None:
            logvar = self.logvar_bound * torch.tanh(logvar / self.logvar_bound)
        return mean, logvar


class MLPEncoder(_Encoder):
    """Encoder D-1024-512-K of fully connected layers with ReLU: that of the paper for MNIST.

    Parameters
    ----------
    num_features
        Observed dimensions D.
    latent_dim
        Latent dimensions K.
    hidden
        Widths of the hidden layers; () for a linear encoder of mean and log-variance.
    logvar_bound
        Keeps log-variances within ± this, smoothly: b tanh(t/b). The default of 10 is what training survives
        steps with that are far too long, where e^t overflows otherwise. None for the paper's plain layer.

    Examples
    --------
    >>> import torch
    >>> from lineavae.nn import MLPEncoder
    >>> mean, logvar = MLPEncoder(num_features=784, latent_dim=50)(torch.rand(8, 784))
    >>> mean.shape, logvar.shape
    (torch.Size([8, 50]), torch.Size([8, 50]))
    """

    def __init__(
        self,
        num_features: int,
        latent_dim: int,
        hidden: Sequence[int] = (1024, 512),
        *,
        logvar_bound: float | None = 10.0,
    ) -> None:
        layers = _mlp("MLPEncoder", (num_features, *hidden), 2, latent_dim)
        super().__init__(nn.Sequential(nn.Flatten(), layers), latent_dim, logvar_bound)


class MLPDecoder(nn.Sequential):
    """Decoder K-512-1024-D of fully connected layers with ReLU: that of the paper for MNIST.

    Parameters
    ----------
    latent_dim
        Latent dimensions K.
    num_features
        Observed dimensions D.
    hidden
        Widths of the hidden layers. For a linear decoder take ``nn.Linear(latent_dim, num_features)``: a
        `GaussianVAE` has its reconstruction term in closed form.

    Examples
    --------
    >>> import torch
    >>> from lineavae.nn import MLPDecoder
    >>> MLPDecoder(latent_dim=50, num_features=784)(torch.zeros(8, 50)).shape
    torch.Size([8, 784])
    """

    def __init__(self, latent_dim: int, num_features: int, hidden: Sequence[int] = (512, 1024)) -> None:
        super().__init__(*_mlp("MLPDecoder", (latent_dim, *hidden), 1, num_features))
        self.latent_dim = latent_dim


class ConvEncoder(_Encoder):
    """Encoder of 64 x 64 images (Higgins et al. 2017): that of the paper for CelebA.

    Four convolutions 4 x 4 with stride 2 to 32, 32, 64 and 64 channels and a layer of 256, with ReLU.

    Parameters
    ----------
    channels
        Channels C of the images, (N, C, 64, 64).
    latent_dim
        Latent dimensions K; 500 in the paper.
    logvar_bound
        As in `MLPEncoder`.

    Examples
    --------
    >>> import torch
    >>> from lineavae.nn import ConvEncoder
    >>> mean, logvar = ConvEncoder(channels=3, latent_dim=32)(torch.rand(2, 3, 64, 64))
    >>> mean.shape, logvar.shape
    (torch.Size([2, 32]), torch.Size([2, 32]))
    """

    def __init__(
        self, channels: int = 3, latent_dim: int = 500, *, logvar_bound: float | None = 10.0
    ) -> None:
        check_integer("ConvEncoder", "channels", channels, 1)
        check_integer("ConvEncoder", "latent_dim", latent_dim, 1)
        sizes = (channels, 32, 32, 64, 64)
        convolutions = [
            layer
            for size, next_size in itertools.pairwise(sizes)
            for layer in (nn.Conv2d(size, next_size, 4, stride=2, padding=1), nn.ReLU())
        ]
        layers = nn.Sequential(
            *convolutions, nn.Flatten(), nn.Linear(64 * 4 * 4, 256), nn.ReLU(), nn.Linear(256, 2 * latent_dim)
        )
        super().__init__(layers, latent_dim, logvar_bound)


class ConvDecoder(nn.Sequential):
    """Decoder of 64 x 64 images (Higgins et al. 2017), the mirror image of `ConvEncoder`.

    Parameters
    ----------
    latent_dim
        Latent dimensions K; 500 in the paper.
    channels
        Channels C of the images.

    Examples
    --------
    >>> import torch
    >>> from lineavae.nn import ConvDecoder
    >>> ConvDecoder(latent_dim=32, channels=3)(torch.zeros(2, 32)).shape
    torch.Size([2, 3, 64, 64])
    """

    def __init__(self, latent_dim: int = 500, channels: int = 3) -> None:
        check_integer("ConvDecoder", "latent_dim", latent_dim, 1)
        check_integer("ConvDecoder", "channels", channels, 1)
        super().__init__(
            nn.Linear(latent_dim, 256),
            nn.ReLU(),
            nn.Linear(256, 64 * 4 * 4),
            nn.ReLU(),
            nn.Unflatten(-1, (64, 4, 4)),
            nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, channels, 4, stride=2, padding=1),
        )
        self.latent_dim = latent_dim


def _mlp(caller: str, sizes: Sequence[int], groups: int, num_outputs: int) -> nn.Sequential:
    """Fully connected layers with ReLU between them; the last has ``groups * num_outputs`` outputs."""
    for size in (*sizes, num_outputs):
        check_integer(caller, "every size", size, 1)
    layers = [
        layer
        for size, next_size in itertools.pairwise(sizes)
        for layer in (nn.Linear(size, next_size), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], groups * num_outputs))
