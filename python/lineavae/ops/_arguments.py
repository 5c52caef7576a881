"""What users may pass: the checks that every public operator shares, and the choice of its implementation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from lineavae import _ext
from lineavae._arguments import check_integer, check_number, check_whole
from lineavae._terms import weighted

_T = TypeVar("_T")

_HALF = (torch.bfloat16, torch.float16)
_FLOATING = (torch.float32, torch.float64, *_HALF)


def check_tensors(op: str, check_finite: bool, **tensors: Tensor) -> list[Tensor]:
    """Check that the arguments are floating tensors of one dtype on one device; float32 under autocast."""
    _check_floating(op, tensors)
    return one_dtype(op, check_finite, tensors)


def check_posterior(caller: str, tensors: Mapping[str, Tensor]) -> None:
    """Check that mean and log-variance, or another spread, are floating tensors of one shape on one device.

    Every taker of posteriors asks this, and most `one_dtype` after it.
    """
    _check_floating(caller, tensors)
    (mean_name, mean), (name, spread) = tensors.items()
    if mean.ndim == 0:
        raise ValueError(f"{caller}: {mean_name} must have at least one dimension, the latents, got shape ()")
    if spread.shape != mean.shape:
        raise ValueError(
            f"{caller}: {name} must have the shape of {mean_name}, {tuple(mean.shape)}, "
            f"got {tuple(spread.shape)}"
        )


def _check_floating(caller: str, tensors: Mapping[str, Tensor]) -> None:
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{caller}: {name} must be a torch.Tensor, got {type(tensor).__name__}")
        check_whole(caller, name, tensor)
        if tensor.dtype not in _FLOATING:
            raise TypeError(
                f"{caller}: {name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"{caller}: {name} must be on the device of {first_name}, {first.device}, got {tensor.device}"
            )


def one_dtype(op: str, check_finite: bool, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Give checked tensors, which must be of one dtype once half precision is float32 under autocast."""
    values = list(tensors.values())
    device_type = values[0].device.type
    if _has_autocast(device_type) and torch.is_autocast_enabled(device_type):
        values = [widen(tensor) for tensor in values]
    for name, tensor in zip(tensors, values, strict=True):
        if tensor.dtype != values[0].dtype:
            raise TypeError(
                f"{op}: {name} must have the dtype of {next(iter(tensors))}, {values[0].dtype}, "
                f"got {tensor.dtype}"
            )
        if check_finite:
            _check_finite(op, name, tensor)
    return values


@torch.compiler.assume_constant_result  # torch before 2.12 cannot trace it
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def widen(tensor: Tensor) -> Tensor:
    """Half precision to float32; anything else as it is."""
    return tensor.float() if tensor.dtype in _HALF else tensor


def _check_finite(op: str, name: str, tensor: Tensor) -> None:
    finite = tensor.isfinite()
    if not finite.all():
        index = _first(~finite)
        raise FloatingPointError(f"{op}: {name} must be finite, got {tensor[index].item()} at index {index}")


def check_probabilities(op: str, x: Tensor) -> None:
    """Check that every entry of ``x`` is in [0, 1]; this looks at the values and waits for the device."""
    outside = (x < 0) | (x > 1)
    if outside.any():
        index = _first(outside)
        raise ValueError(f"{op}: x must be in [0, 1], got {x[index].item()} at index {index}")


def _first(where: Tensor) -> tuple[int, ...]:
    return tuple(where.nonzero()[0].tolist())


def check_shape(op: str, name: str, tensor: Tensor, core: dict[str, int]) -> None:
    """Check the trailing dimensions of ``tensor`` against ``core``, a symbol -> size mapping."""
    sizes = tuple(core.values())
    if tensor.ndim < len(sizes) or tuple(tensor.shape[tensor.ndim - len(sizes) :]) != sizes:
        symbols = ", ".join(core)
        expected = ", ".join(f"{symbol}={size}" for symbol, size in core.items())
        raise ValueError(
            f"{op}: {name} must have shape (*models, {symbols}) with {expected}, got {tuple(tensor.shape)}"
        )


def check_event_dim(op: str, name: str, tensor: Tensor, event_dim: int | None) -> int:
    """Check how many trailing dimensions of ``tensor`` one sample has; unsaid it is one, of at most two."""
    if event_dim is None:
        if tensor.ndim > 2:
            raise ValueError(
                f"{op}: event_dim must be given where {name} has more than two dimensions, got {name} "
                f"{tuple(tensor.shape)}: event_dim={tensor.ndim - 1} sums over all of "
                f"{tuple(tensor.shape[1:])}, one value per sample; event_dim=1 sums over the last dimension "
                "alone, those before it being models or samples; for a sum over channels, one value per "
                "position, movedim(1, -1) comes first"
            )
        return 1
    event_dim = check_integer(op, "event_dim", event_dim, 1)
    if event_dim > tensor.ndim:
        raise ValueError(
            f"{op}: event_dim must be at most the number of dimensions of {name}, got event_dim={event_dim} "
            f"and {name} {tuple(tensor.shape)}"
        )
    return event_dim


def flatten_data(
    op: str, x: Tensor, name: str, parameter: Tensor, event_dim: int | None
) -> tuple[Tensor, Tensor]:
    """Check data and the parameter of their likelihood that has their shape; make both (*models, N, D)."""
    event_dim = check_event_dim(op, "x", x, event_dim)
    symbols = ("N", "D") if event_dim == 1 else ("N", *(f"D{i}" for i in range(1, event_dim + 1)))
    if x.ndim <= event_dim:
        raise ValueError(f"{op}: x must have shape (*models, {', '.join(symbols)}), got {tuple(x.shape)}")
    check_shape(op, name, parameter, dict(zip(symbols, x.shape[-len(symbols) :], strict=True)))
    return (x, parameter) if event_dim == 1 else (x.flatten(-event_dim), parameter.flatten(-event_dim))


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether ``shape`` broadcasts to the trailing dimensions of ``to``."""
    return len(shape) <= len(to) and all(
        size == 1 or size == full for size, full in zip(reversed(shape), reversed(to), strict=False)
    )


def check_parameters(
    op: str, num_features: int, weight: Tensor, encoder: Tensor, mu: Tensor, log_d: Tensor
) -> None:
    """Check the shapes of a linear VAE's parameters for data of ``num_features`` features."""
    if weight.ndim < 2:
        raise ValueError(f"{op}: weight must have shape (*models, D, K), got {tuple(weight.shape)}")
    latent_dim = weight.shape[-1]
    check_shape(op, "weight", weight, {"D": num_features, "K": latent_dim})
    check_shape(op, "encoder", encoder, {"K": latent_dim, "D": num_features})
    check_shape(op, "mu", mu, {"D": num_features})
    check_shape(op, "log_d", log_d, {"K": latent_dim})


def check_linear_decoder(
    op: str, x: Tensor, mean: Tensor, logvar: Tensor, weight: Tensor, bias: Tensor
) -> dict[str, torch.Size]:
    """Check the shapes of data, posteriors and a linear decoder; returns those over models, by name."""
    if x.ndim < 2:
        raise ValueError(f"{op}: x must have shape (*models, N, D), got {tuple(x.shape)}")
    if weight.ndim < 2:
        raise ValueError(f"{op}: weight must have shape (*models, D, K), got {tuple(weight.shape)}")
    num_samples, num_features, latent_dim = *x.shape[-2:], weight.shape[-1]
    check_shape(op, "weight", weight, {"D": num_features, "K": latent_dim})
    check_shape(op, "mean", mean, {"N": num_samples, "K": latent_dim})
    check_shape(op, "logvar", logvar, {"N": num_samples, "K": latent_dim})
    check_shape(op, "bias", bias, {"D": num_features})
    matrices = {"x": x, "mean": mean, "logvar": logvar, "weight": weight}
    return {name: tensor.shape[:-2] for name, tensor in matrices.items()} | {"bias": bias.shape[:-1]}


def check_noise(op: str, log_sigma2: Tensor, x: Tensor) -> None:
    """Check that ``log_sigma2`` broadcasts to the samples and features of ``x`` (*models, N, D)."""
    sizes = x.shape[-2:]
    if not _broadcasts(log_sigma2.shape[-2:], sizes):
        raise ValueError(
            f"{op}: log_sigma2 must have shape (), (D,), (N, 1) or (N, D) with N={sizes[0]}, D={sizes[1]}, "
            f"or models before these, got {tuple(log_sigma2.shape)}"
        )


def flatten_noise_event(op: str, log_sigma2: Tensor, event: Sequence[int]) -> Tensor:
    """Make one dimension, 1 or D, of those that broadcast to an event of several."""
    given = log_sigma2.shape[-len(event) :]
    if not _broadcasts(given, event):
        raise ValueError(
            f"{op}: log_sigma2 must broadcast to the event {tuple(event)}, with samples and models before "
            f"it, got {tuple(log_sigma2.shape)}"
        )
    before = log_sigma2.shape[: -len(event)]
    one = all(size == 1 for size in given)
    return log_sigma2.reshape(*before, 1) if one else log_sigma2.expand(*before, *event).flatten(-len(event))


def check_beta(op: str, beta: Tensor | float, like: Tensor, check_finite: bool) -> Tensor:
    """``beta`` as a tensor of ``like``'s dtype and device: a number >= 0, or a tensor without gradient."""
    weight = _check_weight(op, "beta", beta, like.device, like.dtype, check_finite)
    return weight if isinstance(weight, Tensor) else like.new_full((), weight)


def _check_weight(
    op: str,
    name: str,
    weight: Tensor | float,
    device: torch.device,
    dtype: torch.dtype,
    check_finite: bool,
) -> Tensor | float:
    """Check a number >= 0, or a tensor without gradient, and give it this device and dtype.

    The values of a tensor are looked at where ``check_finite``: that waits for the device.
    """
    if isinstance(weight, Tensor):
        if weight.requires_grad:
            raise ValueError(f"{op}: {name} must not require grad: it is a weight, not a parameter")
        if weight.device != device and weight.ndim > 0:
            raise ValueError(f"{op}: {name} must be on device {device}, got {weight.device}")
        if check_finite:
            _check_finite(op, name, weight)
            if (weight < 0).any():
                index = _first(weight < 0)
                raise ValueError(f"{op}: {name} must be >= 0, got {weight[index].item()} at index {index}")
        return weight.to(device, dtype)
    return check_number(op, name, weight, at_least=0)


def check_latent_weight(
    op: str, name: str, weight: Tensor | float, mean: Tensor, event_dim: int, check_finite: bool
) -> Tensor | float:
    """Check a weight of the latents: a number, or a tensor () or (K,), then of the dtype of results.

    One that broadcasts to an event of several dimensions becomes (K,), one weight for each of its entries.
    """
    dtype = torch.float32 if mean.dtype in _HALF else mean.dtype
    weight = _check_weight(op, name, weight, mean.device, dtype, check_finite)
    if not isinstance(weight, Tensor) or weight.ndim == 0:
        return weight
    if event_dim > 1:
        event = mean.shape[-event_dim:]
        if not _broadcasts(weight.shape, event):
            raise ValueError(
                f"{op}: {name} must be a number or broadcast to the event {tuple(event)}, "
                f"got {tuple(weight.shape)}"
            )
        return weight.expand(*event).flatten()
    if tuple(weight.shape) != tuple(mean.shape[-1:]):
        raise ValueError(
            f"{op}: {name} must be a number or have shape () or (K,) with K={mean.shape[-1]}, "
            f"got {tuple(weight.shape)}"
        )
    return weight


def per_latent(kl_weight: Tensor | float) -> Tensor | None:
    """Return the weights that a kernel applies, (1, K); none where there is one weight for all latents."""
    return kl_weight.unsqueeze(0) if isinstance(kl_weight, Tensor) and kl_weight.ndim == 1 else None


def scale(kl: Tensor, kl_weight: Tensor | float) -> Tensor:
    """Apply a weight that no kernel has applied: one for all latents."""
    if isinstance(kl_weight, Tensor):
        return kl if kl_weight.ndim == 1 else weighted(kl_weight, kl)
    return kl if kl_weight == 1 else weighted(kl_weight, kl)


def broadcast_models(op: str, shapes: Mapping[str, Sequence[int]]) -> torch.Size:
    """Broadcast the leading dimensions, over models, of all arguments."""
    first, *others = shapes.values()
    if all(shape == first for shape in others):  # broadcasting takes its time
        return torch.Size(first)
    try:
        return torch.Size(torch.broadcast_shapes(*shapes.values()))
    except RuntimeError:
        got = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"{op}: the leading dimensions over models must broadcast, got {got}") from None


def flatten_models(tensor: Tensor, models: torch.Size, num_core: int) -> Tensor:
    """(*models, *core) -> (M, *core), expanding what is shared."""
    if not models:
        return tensor.unsqueeze(0)
    core = tensor.shape[tensor.ndim - num_core :]
    return tensor.expand((*models, *core)).reshape((math.prod(models), *core))


def flatten_shared(tensor: Tensor, models: torch.Size, num_core: int) -> Tensor:
    """As :func:`flatten_models`, but what all models share stays one: (1, *core)."""
    if tensor.ndim == num_core:
        return tensor.unsqueeze(0)
    own, core = tensor.shape[: tensor.ndim - num_core], tensor.shape[tensor.ndim - num_core :]
    return tensor.reshape((1, *core)) if math.prod(own) == 1 else flatten_models(tensor, models, num_core)


def sum_over_shared(gradient: Tensor, shared: bool) -> Tensor:
    """Sum the gradient of what all models share over the models."""
    return gradient.sum(0, keepdim=True) if shared and gradient.shape[0] != 1 else gradient


def flatten_noise(log_sigma2: Tensor, models: torch.Size) -> Tensor:
    """Flatten what broadcasts to (*models, N, D) -> (M or 1, N or 1, D or 1)."""
    if log_sigma2.ndim <= 2:
        return log_sigma2.reshape((1,) * (3 - log_sigma2.ndim) + log_sigma2.shape)
    return flatten_shared(log_sigma2, models, 2)


def check_num_features(op: str, num_features: int | None, features: int) -> int:
    """Check the D of the normaliser: that of the tensors by default, or a larger one."""
    if num_features is None:
        return features
    return check_integer(op, "num_features", num_features, features)


def without_autocast(function: Callable[..., _T], *args: Any) -> _T:
    """Call ``function`` of a tensor and more where autocast is off: the operators run in float32 there."""
    if not _has_autocast(args[0].device.type):
        return function(*args)
    with torch.autocast(args[0].device.type, enabled=False):
        return function(*args)


@torch.compiler.assume_constant_result
def has_native(op: str, device: torch.device) -> bool:
    """Whether the op has a native kernel on this device; where not, say once that the reference runs."""
    if _ext.has_kernel(op, device.type):
        return True
    _warn_reference(op, device.type)
    return False


@cache
def _warn_reference(op: str, device_type: str) -> None:
    warnings.warn(
        f"lineavae: {op} has no native kernel for {device_type} in this build; its plain PyTorch reference "
        "runs instead. `python -m lineavae diagnose` tells why.",
        RuntimeWarning,
        stacklevel=4,
    )
