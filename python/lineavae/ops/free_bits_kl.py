"""The KL term of an ELBO trained with free bits."""

from __future__ import annotations

import torch
from torch import Tensor

from lineavae.ops._tensors import check_event_dim
from lineavae.ops._weights import check_latent_weight
from lineavae.ops.gaussian_kl import check_latents, gaussian_kl_per_dimension

_OP = "free_bits_kl"


def free_bits_kl(
    mean: Tensor,
    logvar: Tensor,
    free_bits: Tensor | float,
    *,
    event_dim: int | None = None,
    check_finite: bool = False,
) -> tuple[Tensor, Tensor]:
    """KL of a batch of posteriors for training with free bits, and the KL itself, in nats.

    Σ_j max(λ_j, KL_j) with KL_j the mean over the batch of the KL of latent j: a latent whose mean is below
    λ_j has no gradient (Kingma et al. 2016). Minimise the first result and report the second.

    Parameters
    ----------
    mean, logvar
        Posterior means and log-variances, (N, K) or (*models, N, *event), of one dtype: float64, float32,
        bfloat16 or float16; N is the batch.
    free_bits
        What a latent has for free, λ, in nats: a number, or a tensor () or (K,); with ``event_dim`` one that
        broadcasts to the event, each entry of which is a latent. Not differentiable; the values of a tensor
        are looked at with ``check_finite`` only.
    event_dim
        How many trailing dimensions one sample has, as in `torch.distributions.Independent`: 3 for
        (N, C, H, W). It must be given where mean has more than two dimensions.
    check_finite
        Raise at the first NaN or infinity of an argument instead of propagating it.

    Returns
    -------
    objective
        (*models,), what to minimise in place of the mean KL.
    kl
        (*models,), the mean KL, unclipped. Both float64 for float64 inputs and float32 for all others.

    Raises
    ------
    TypeError
        An argument is no tensor, or of another dtype.
    ValueError
        The shapes or devices differ; event_dim is missing or does not fit; the batch is empty; free_bits is a
        number that is negative or not finite, or a tensor of another shape or one that requires grad; with
        ``check_finite``: it has a negative entry.
    FloatingPointError
        With ``check_finite``: an argument has a NaN or an infinity; the index is named.

    Notes
    -----
    Kingma et al. (2016), "Improved variational inference with inverse autoregressive flow", equation 15, with
    one latent per group.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import free_bits_kl
    >>> mean = torch.tensor([[2.0, 0.0], [0.0, 0.2]])
    >>> free_bits_kl(mean, torch.zeros(2, 2), 0.1)
    (tensor(1.1000), tensor(1.0100))
    """
    mean, logvar = check_latents(_OP, mean, logvar, check_finite)
    event_dim = check_event_dim(_OP, "mean", mean, event_dim)
    if mean.ndim <= event_dim or mean.shape[-event_dim - 1] == 0:
        event = "K" if event_dim == 1 else "*event"
        raise ValueError(
            f"{_OP}: mean must have shape (*models, N, {event}) with N at least 1, got {tuple(mean.shape)}"
        )
    minimum = check_latent_weight(_OP, "free_bits", free_bits, mean, event_dim, check_finite)
    if event_dim > 1:
        mean, logvar = mean.flatten(-event_dim), logvar.flatten(-event_dim)
    kl = (gaussian_kl_per_dimension(mean, logvar) / mean.shape[-2]).sum(-2)  # a mean fits where a sum may not
    return torch.where(kl < minimum, minimum, kl).sum(-1), kl.sum(-1)
