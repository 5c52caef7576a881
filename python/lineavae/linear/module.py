"""What the linear VAEs of real and of binary data have in common: a linear decoder and a linear encoder."""

from __future__ import annotations

from torch import Tensor, nn

from lineavae._arguments import check_whole


class LinearModule(nn.Module):
    """A decoder with W z + μ and a posterior N(V ..., diag d): their sizes, and the check of their data."""

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
