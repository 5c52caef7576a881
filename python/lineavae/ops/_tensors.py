"""Checks of tensor arguments: their type, dtype, device and shape, and their values where asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lineavae._arguments import check_integer, check_whole
from lineavae.ops._dispatch import has_autocast

HALF = (torch.bfloat16, torch.float16)
_FLOATING = (torch.float32, torch.float64, *HALF)


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
    if has_autocast(device_type) and torch.is_autocast_enabled(device_type):
        values = [widen(tensor) for tensor in values]
    for name, tensor in zip(tensors, values, strict=True):
        if tensor.dtype != values[0].dtype:
            raise TypeError(
                f"{op}: {name} must have the dtype of {next(iter(tensors))}, {values[0].dtype}, "
                f"got {tensor.dtype}"
            )
        if check_finite:
            check_finite_values(op, name, tensor)
    return values


def widen(tensor: Tensor) -> Tensor:
    """Half precision to float32; anything else as it is."""
    return tensor.float() if tensor.dtype in HALF else tensor


def check_finite_values(op: str, name: str, tensor: Tensor) -> None:
    finite = tensor.isfinite()
    if not finite.all():
        index = first_index(~finite)
        raise FloatingPointError(f"{op}: {name} must be finite, got {tensor[index].item()} at index {index}")


def check_probabilities(op: str, x: Tensor) -> None:
    """Check that every entry of ``x`` is in [0, 1]; this looks at the values and waits for the device."""
    outside = (x < 0) | (x > 1)
    if outside.any():
        index = first_index(outside)
        raise ValueError(f"{op}: x must be in [0, 1], got {x[index].item()} at index {index}")


def first_index(where: Tensor) -> tuple[int, ...]:
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


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether ``shape`` broadcasts to the trailing dimensions of ``to``."""
    return len(shape) <= len(to) and all(
        size == 1 or size == full for size, full in zip(reversed(shape), reversed(to), strict=False)
    )
