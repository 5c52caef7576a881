"""Samples of diagonal Gaussian posteriors and their KL divergence, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from lineavae import _ext, reference
from lineavae._arguments import check_integer
from lineavae.ops._differentiable import differentiable, raw, refuse_autograd, register_autograd
from lineavae.ops._dispatch import has_native
from lineavae.ops._registration import register_rules
from lineavae.ops._tensors import check_event_dim, widen
from lineavae.ops._weights import check_latent_weight, per_latent, scale
from lineavae.ops.gaussian_kl import as_rows, check_latents

_ext.load()

_OP = "reparameterized_kl"
_backward_op = raw(f"{_OP}_backward")
_MAX_SEED = 2**63 - 1


def reparameterized_kl(
    mean: Tensor,
    logvar: Tensor,
    *,
    num_draws: int = 1,
    seed: Tensor | int | None = None,
    kl_weight: Tensor | float = 1.0,
    event_dim: int | None = None,
    check_finite: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sample each posterior N(mean, exp(logvar)), with its KL to N(0, I), in one pass.

    z = m + ε e^(log v / 2) with standard normal noise ε, differentiable in mean and logvar (Kingma and
    Welling 2014), and KL = ½ Σ_j w_j (m_j² + v_j - log v_j - 1) as `gaussian_kl` gives it. The noise is
    stored nowhere: the backward makes it again.

    Parameters
    ----------
    mean, logvar
        Posterior means and log-variances, (N, K) or (*batch, *event), of one dtype: float64, float32,
        bfloat16 or float16.
    num_draws
        Draws S of each posterior.
    seed
        Fixes the noise: an int, or a tensor () of dtype int64 on the device of mean. By default one is drawn
        from torch's generator, which `torch.manual_seed` governs; under `torch.func.vmap` its ``randomness``
        says whether models share it. Under `torch.compile` a seed that changes at every step should be a
        tensor.
    kl_weight
        Weight of the KL: a number, or a tensor () or (K,), then w_j for each latent; with ``event_dim`` one
        that broadcasts to the event. Not differentiable. Under `torch.compile` a weight that changes at every
        step should be a tensor, whose values are looked at with ``check_finite`` only.
    event_dim
        How many trailing dimensions of one sample are summed, as in `torch.distributions.Independent`: 3 for
        (N, C, H, W). It must be given where mean has more than two dimensions.
    check_finite
        Raise at the first NaN or infinity of an argument instead of propagating it.

    Returns
    -------
    z
        (S, *batch, *event), which is (S, N, K).
    kl
        (N,) or (*batch,), in nats, weighted by ``kl_weight``. Both float64 for float64 inputs and float32 for
        all others.

    Raises
    ------
    TypeError
        An argument is no tensor or of another dtype; num_draws, seed or event_dim is no int.
    ValueError
        The shapes or devices differ; event_dim is missing, or larger than the number of dimensions;
        num_draws is below 1; seed is a tensor of another shape or a number beyond 64 bits; kl_weight is a
        number that is negative or not finite, or a tensor of another shape or one that requires grad; with
        ``check_finite``: it has a negative entry.
    FloatingPointError
        With ``check_finite``: an argument has a NaN or an infinity; the index is named.

    Notes
    -----
    Terms of the ELBO in section 3.1 of Lucas et al. (2019). One kernel forward, one backward. The noise is a
    function of the seed and of the index in z (Philox4x32-10, transformed as Box and Muller do): the same for
    every dtype but for rounding, for any number of threads and on every device; and a model in an ensemble
    under `torch.func.vmap` gets the noise that it gets alone with the same seed.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import reparameterized_kl
    >>> mean, logvar = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    >>> z, kl = reparameterized_kl(mean, logvar, num_draws=3, seed=0)
    >>> z.shape
    torch.Size([3, 2, 2])
    >>> kl
    tensor([0.5000, 0.0000])
    """
    mean, logvar = check_latents(_OP, mean, logvar, check_finite)
    num_draws = check_integer(_OP, "num_draws", num_draws, 1)
    event_dim = check_event_dim(_OP, "mean", mean, event_dim)
    shape = mean.shape
    kl_weight = check_latent_weight(_OP, "kl_weight", kl_weight, mean, event_dim, check_finite)
    if event_dim > 1:
        mean, logvar = mean.flatten(-event_dim), logvar.flatten(-event_dim)
    seed = _check_seed(seed, mean.device)
    if not has_native(_OP, mean.device):
        z, kl = reference.reparameterized_kl(
            widen(mean), widen(logvar), seed.reshape(()), num_draws, kl_weight
        )
    else:
        arguments = as_rows(mean), as_rows(logvar), seed, per_latent(kl_weight), num_draws
        z, kl = _ReparameterizedKL.apply(*arguments)
        kl = scale(kl, kl_weight)
    if mean.ndim != 2:
        kl = kl.reshape(mean.shape[:-1])
    return z if mean.ndim == len(shape) == 2 else z.reshape(num_draws, *shape), kl


def _check_seed(seed: Tensor | int | None, device: torch.device) -> Tensor:
    if seed is None:
        return torch.randint(_MAX_SEED, (1,), device=device)
    if not isinstance(seed, Tensor):
        seed = check_integer(_OP, "seed", seed, -_MAX_SEED - 1)
        return torch.full((1,), seed, dtype=torch.int64, device=device)
    if seed.dtype != torch.int64:
        raise TypeError(f"{_OP}: seed must be int64, got {seed.dtype}")
    if seed.device != device:
        raise ValueError(f"{_OP}: seed must be on device {device}, got {seed.device}")
    if seed.ndim != 0:
        raise ValueError(f"{_OP}: seed must have shape (), got {tuple(seed.shape)}")
    return seed.reshape(1)


def _formula(
    mean: Tensor, logvar: Tensor, seed: Tensor, kl_weight: Tensor | None, num_draws: int
) -> tuple[Tensor, Tensor]:
    weight = 1.0 if kl_weight is None else kl_weight.squeeze(0)
    return reference.reparameterized_kl(widen(mean), widen(logvar), seed.reshape(()), num_draws, weight)


_ReparameterizedKL = differentiable(
    _OP,
    raw(_OP),
    lambda _, *arguments: _backward_op(*arguments[:-1]),  # which needs no num_draws
    _formula,
    inputs=slice(0, 2),
    num_arguments=5,
    num_plain=1,
    num_values=2,
)


@torch.library.register_fake("lineavae::reparameterized_kl")
def _fake(
    mean: Tensor, logvar: Tensor, seed: Tensor, kl_weight: Tensor | None, num_draws: int
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if mean.dtype == torch.float64 else torch.float32
    models, (rows, latents) = seed.numel(), mean.shape
    z = mean.new_empty((models * num_draws, rows // max(models, 1), latents), dtype=dtype)
    return z, mean.new_empty(rows, dtype=dtype)


@torch.library.register_fake("lineavae::reparameterized_kl_backward")
def _fake_backward(
    grad_z: Tensor, grad_kl: Tensor, mean: Tensor, logvar: Tensor, seed: Tensor, kl_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    return mean.new_empty(mean.shape), mean.new_empty(mean.shape)


register_rules("reparameterized_kl", shared=(3,))
register_rules("reparameterized_kl_backward", shared=(5,))
register_autograd("reparameterized_kl", _ReparameterizedKL)
refuse_autograd("reparameterized_kl_backward")
