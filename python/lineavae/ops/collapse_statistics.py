"""Statistics of the KL of each latent, in one pass over the posteriors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lineavae import _ext, reference
from lineavae._arguments import check_integer, check_number
from lineavae._dynamo import allow_in_graph
from lineavae.ops._differentiable import Operator
from lineavae.ops._dispatch import has_native
from lineavae.ops._tensors import widen
from lineavae.ops.gaussian_kl import check_latents
from lineavae.reference.collapse_statistics import NUM_BINS, NUM_MOMENTS, LatentStatistics

_ext.load()

_OP = "collapse_statistics"
MAX_THRESHOLDS = 64


def collapse_statistics(
    mean: Tensor,
    logvar: Tensor,
    thresholds: Sequence[float] | Tensor,
    *,
    histogram: bool = True,
    event_dim: int | None = None,
) -> LatentStatistics:
    """Statistics of the KL of each latent over N posteriors, for any number of thresholds in one pass.

    Exact counts of KL < ε for every threshold ε (of KL <= 0 at ε = 0), where a KL is the value that
    `gaussian_kl_per_dimension` returns; a histogram with bins of relative width 1/16 or less, which holds
    every quantile; count, mean and spread of the KL, of the posterior mean and of the posterior variance. An
    infinite KL is above every ε; one that is NaN is counted apart and left out of all else.

    Parameters
    ----------
    mean, logvar
        Posterior means and log-variances of one dtype, float64, float32, bfloat16 or float16: (N, K), or
        (M, N, K) for several models or checkpoints. For other shapes give ``event_dim``.
    thresholds
        At most 64 thresholds ε in nats, in any order: finite numbers >= 0, which go with the call and into a
        CUDA graph as they are; or a tensor (E,) of dtype float64 on the device of mean, which is read there
        when the kernel runs, in every replay of a graph. Its values are not looked at; none counts below a
        NaN. Neither waits for the device.
    histogram
        Without it the histogram has no bins, and one to four thresholds cost less.
    event_dim
        How many trailing dimensions are the latents of a sample, as in ``torch.distributions.Independent``:
        with 1 the shape is (*models, N, K); with 3 it is (*models, N, C, H, W), each position has latents of
        its own, and K = C·H·W. Where there is one latent per channel, and positions are samples,
        ``mean.movedim(1, -1).flatten(0, -2)`` is (N·H·W, C).

    Returns
    -------
    LatentStatistics
        Tensors with K for their last or last but one dimension. The same input gives the same bits for any
        number of threads.

    Raises
    ------
    TypeError
        An argument is no tensor or of another dtype; a threshold is no number; event_dim is no integer.
    ValueError
        A shape or device does not fit; there are more than three dimensions and no event_dim; a threshold is
        negative or not finite; there are more than 64; an argument requires grad: the statistics are not
        differentiable.

    Notes
    -----
    The (ε, δ)-collapse of section 6.2 of Lucas et al. (2019): latent j is collapsed if at least the fraction
    1 - δ of its N KL values is below ε. Beyond inputs and results it needs at most
    128 MB of memory, or a few thousandths of the inputs.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import collapse_statistics
    >>> mean = torch.tensor([[1.0, 0.0], [-1.0, 0.1]])
    >>> statistics = collapse_statistics(mean, torch.zeros(2, 2), thresholds=[0.0, 0.01, 1.0])
    >>> statistics.counts
    tensor([[0, 0, 2],
            [1, 2, 2]])
    >>> statistics.maximum
    tensor([0.5000, 0.0050], dtype=torch.float64)
    """
    mean, logvar = check_latents(_OP, mean, logvar, False)
    event_dim = _check_event_dim(event_dim, mean)
    for name, tensor in (("mean", mean), ("logvar", logvar)):
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(
                f"{_OP}: {name} must not require grad: the statistics are not differentiable; "
                "detach it or call this under torch.no_grad()"
            )
    thresholds = _check_thresholds(thresholds, mean.device)
    return count_checked(mean.flatten(-event_dim), logvar.flatten(-event_dim), thresholds, histogram)


def count_checked(
    mean: Tensor, logvar: Tensor, thresholds: list[float] | Tensor, histogram: bool = True
) -> LatentStatistics:
    """`collapse_statistics` of (*models, N, K) whose arguments are known to be right."""
    if not has_native(_OP, mean.device):
        return reference.collapse_statistics(widen(mean), widen(logvar), thresholds, histogram)
    models = mean.shape[:-2]
    core = (math.prod(models), *mean.shape[-2:])
    numbers, tensor = ([], thresholds) if isinstance(thresholds, Tensor) else (thresholds, None)
    outputs = _CollapseStatistics.apply(mean.reshape(core), logvar.reshape(core), numbers, tensor, histogram)
    return LatentStatistics(*(output.reshape((*models, *output.shape[1:])) for output in outputs))


def _check_event_dim(event_dim: int | None, mean: Tensor) -> int:
    if event_dim is None:
        if mean.ndim > 3:
            raise ValueError(
                f"{_OP}: mean must have shape (N, K) or (M, N, K), got {tuple(mean.shape)}: give "
                f"event_dim={mean.ndim - 1} for one latent per position of each sample, or event_dim=1 where "
                "the last two dimensions are (N, K) and all others are models; for one latent per channel, "
                "with positions as samples, pass mean.movedim(1, -1).flatten(0, -2), and logvar likewise"
            )
        event_dim = 1
    event_dim = check_integer(_OP, "event_dim", event_dim, 1)
    if mean.ndim <= event_dim:
        shape = "(*models, N, K)" if event_dim == 1 else f"(*models, N, *event) with event_dim={event_dim}"
        raise ValueError(f"{_OP}: mean must have shape {shape}, got {tuple(mean.shape)}")
    return event_dim


def _check_thresholds(thresholds: Sequence[float] | Tensor, device: torch.device) -> list[float] | Tensor:
    if isinstance(thresholds, Tensor):
        if thresholds.dtype != torch.float64:
            raise TypeError(f"{_OP}: thresholds must be float64, got {thresholds.dtype}")
        if thresholds.device != device:
            raise ValueError(f"{_OP}: thresholds must be on device {device}, got {thresholds.device}")
        if thresholds.ndim != 1:
            raise ValueError(f"{_OP}: thresholds must have shape (E,), got {tuple(thresholds.shape)}")
        checked: list[float] | Tensor = thresholds
    else:
        if isinstance(thresholds, (str, bytes)) or not isinstance(thresholds, Sequence):
            raise TypeError(
                f"{_OP}: thresholds must be a sequence of numbers or a tensor, "
                f"got {type(thresholds).__name__}"
            )
        checked = [check_number(_OP, "every threshold", threshold, at_least=0) for threshold in thresholds]
    if len(checked) > MAX_THRESHOLDS:
        raise ValueError(f"{_OP}: there must be at most {MAX_THRESHOLDS} thresholds, got {len(checked)}")
    return checked


@allow_in_graph
class _CollapseStatistics(Operator):
    @staticmethod
    def forward(
        mean: Tensor,
        logvar: Tensor,
        thresholds: list[float],
        thresholds_tensor: Tensor | None,
        histogram: bool,
    ) -> Any:
        return torch.ops.lineavae.collapse_statistics(mean, logvar, thresholds, thresholds_tensor, histogram)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(f"{_OP} is not differentiable")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        return _vmap(info, in_dims, *args)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """Fold vmap's dimension into the models."""
    mean, logvar, *others = args
    if in_dims[3] is not None:
        raise ValueError(f"{_OP}: vmap over thresholds is not supported: pass all of them in one call")
    folded = []
    for tensor, dim in ((mean, in_dims[0]), (logvar, in_dims[1])):
        batched = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
        folded.append(batched.expand(info.batch_size, *batched.shape[1:]).flatten(0, 1))
    outputs = torch.ops.lineavae.collapse_statistics(*folded, *others)
    return tuple(output.unflatten(0, (info.batch_size, -1)) for output in outputs), (0,) * len(outputs)


torch.library.register_vmap(f"lineavae::{_OP}", _vmap)  # that of a vmap around the one of the Function


@torch.library.register_fake(f"lineavae::{_OP}")
def _fake(
    mean: Tensor, logvar: Tensor, thresholds: list[float], thresholds_tensor: Tensor | None, histogram: bool
) -> tuple[Tensor, ...]:
    models, _, latents = mean.shape

    def empty(*sizes: int, dtype: torch.dtype) -> Tensor:
        return mean.new_empty(models, latents, *sizes, dtype=dtype)

    return (
        empty(len(thresholds if thresholds_tensor is None else thresholds_tensor), dtype=torch.int64),
        empty(NUM_BINS if histogram else 0, dtype=torch.int64),
        empty(NUM_MOMENTS, dtype=torch.float64),
        empty(dtype=torch.float64),
        empty(dtype=torch.float64),
        empty(dtype=torch.int64),
        empty(dtype=torch.int64),
    )
