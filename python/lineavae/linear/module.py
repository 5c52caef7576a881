"""What the linear VAEs of real and of binary data have in common: a linear decoder and a linear encoder."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from lineavae._arguments import check_integer, check_whole
from lineavae._noise import standard_normal
from lineavae._tensor_file import read_tensors, write_tensors

_Module = TypeVar("_Module", bound="LinearModule")


class LinearModule(nn.Module):
    """A decoder with W z + μ and a posterior N(V ..., diag d): sizes, prior samples, files, checks of data.

    Subclasses are made from (num_features, latent_dim) and the keywords generator, dtype and device.
    """

    _kind: ClassVar[str]  # of file, whatever a subclass is called

    weight: nn.Parameter
    encoder: nn.Parameter
    mu: nn.Parameter
    log_d: nn.Parameter

    @property
    def num_features(self) -> int:
        """Observed dimensions D."""
        return self.weight.shape[0]

    @property
    def latent_dim(self) -> int:
        """Latent dimensions K."""
        return self.weight.shape[1]

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        return f"num_features={self.num_features}, latent_dim={self.latent_dim}"

    def decode(self, z: Tensor) -> Tensor:
        """Means W z + μ of p(x|z): (..., K) -> (..., D)."""
        return z @ self.weight.mT + self.mu

    @torch.no_grad()
    def sample(self, num_draws: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Give what the decoder makes of draws of the prior: means of p(x|z), (num_draws, D).

        They are without observation noise. ``generator``, on the parameters' device, fixes the draws.
        """
        num_draws = check_integer(f"{type(self).__name__}.sample", "num_draws", num_draws, minimum=0)
        return self.decode(standard_normal((num_draws, self.latent_dim), self.weight, generator))

    def save(self, path: str | Path) -> None:
        """Write the tensors to a safetensors file, atomically; `load` gives them back to the bit."""
        write_tensors(Path(path), self._kind, self.state_dict())

    @classmethod
    def load(cls: type[_Module], path: str | Path, device: torch.device | str | None = None) -> _Module:
        """Read a module that `save` wrote.

        Raises
        ------
        OSError
            The file cannot be read: there is none, or it is a folder.
        ValueError
            The file is not such a file, or its tensors are not those of such a module, finite and of one
            dtype.
        """
        caller = f"{cls.__name__}.load"
        tensors, _ = read_tensors(caller, Path(path), cls._kind)
        weight = tensors.get("weight", torch.empty(0))
        for name, tensor in tensors.items():
            if tensor.dtype != weight.dtype or not tensor.is_floating_point():
                raise ValueError(
                    f"{caller}: {path} must hold tensors of one floating dtype, got {tensor.dtype} for {name}"
                )
            if not tensor.isfinite().all():
                raise ValueError(f"{caller}: {path}: {name} must be finite, got a NaN or an infinity")
        sizes = weight.shape if weight.ndim == 2 and weight.numel() else (1, 1)
        # with a generator of its own: torch's is not to be advanced
        model = cls(*sizes, generator=torch.Generator("cpu"), dtype=weight.dtype, device="cpu")
        found, expected = (
            {name: tuple(tensor.shape) for name, tensor in state.items()}
            for state in (tensors, model.state_dict())
        )
        if found != expected:
            raise ValueError(f"{caller}: {path} must hold the tensors of a {cls.__name__}, got {found}")
        model.load_state_dict(tensors)
        return model.to(device or torch.get_default_device())

    def _check_samples(self, method: str, x: Tensor) -> None:
        """Check that ``x`` is a tensor (N, D)."""
        caller = f"{type(self).__name__}.{method}"
        if not isinstance(x, Tensor):
            raise TypeError(f"{caller}: x must be a torch.Tensor, got {type(x).__name__}")
        check_whole(caller, "x", x)
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"{caller}: x must have shape (N, D) with D={self.num_features}, got {tuple(x.shape)}"
            )
        if x.device != self.weight.device:
            raise ValueError(f"{caller}: x must be on device {self.weight.device}, got {x.device}")
