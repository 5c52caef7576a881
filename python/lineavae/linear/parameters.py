"""The parameters of a linear VAE as one thing, apart from any module that holds them."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class LinearModel(Protocol):
    """Whatever has the five parameters of a linear VAE: a `LinearVAE`, or `LinearParameters`."""

    @property
    def weight(self) -> Tensor: ...  # noqa: D102
    @property
    def encoder(self) -> Tensor: ...  # noqa: D102
    @property
    def mu(self) -> Tensor: ...  # noqa: D102
    @property
    def log_d(self) -> Tensor: ...  # noqa: D102
    @property
    def log_sigma2(self) -> Tensor: ...  # noqa: D102


class LinearParameters(NamedTuple):
    """Parameters of the linear VAE of Lucas et al. (2019), equation 9, in the order of the operators.

    The functions of this package that judge a model take these as well as a `LinearVAE`.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import LinearParameters, LinearVAE
    >>> LinearParameters.of(LinearVAE(3, 2)).weight.shape
    torch.Size([3, 2])
    """

    weight: Tensor
    """Decoder W, (D, K)."""
    encoder: Tensor
    """Encoder V, (K, D)."""
    mu: Tensor
    """Model mean μ, (D,)."""
    log_d: Tensor
    """Log of the posterior variances d, (K,)."""
    log_sigma2: Tensor
    """Log of the observation noise σ², ()."""

    @classmethod
    def of(cls, model: LinearModel) -> LinearParameters:
        """Give the parameters of a model, not copies."""
        found: list[Any] = [getattr(model, name, None) for name in cls._fields]
        if not all(isinstance(parameter, Tensor) for parameter in found):
            raise TypeError(
                f"LinearParameters.of: model must have {', '.join(cls._fields)}, got {type(model).__name__}"
            )
        return cls(*found)

    @property
    def num_features(self) -> int:
        """Observed dimensions D."""
        return self.weight.shape[0]

    @property
    def latent_dim(self) -> int:
        """Latent dimensions K."""
        return self.weight.shape[1]

    def to(self, like: Tensor | torch.dtype) -> LinearParameters:
        """Cast every parameter, as ``Tensor.to`` does."""
        return LinearParameters(*(parameter.to(like) for parameter in self))

    def detach(self) -> LinearParameters:
        """Detach every parameter from its gradient."""
        return LinearParameters(*(parameter.detach() for parameter in self))
