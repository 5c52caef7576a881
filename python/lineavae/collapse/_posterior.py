"""Posteriors in the forms that people have them in, as means and log-variances (N, K)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from lineavae._arguments import check_integer, check_whole
from lineavae.collapse.names import Keys, Spread
from lineavae.ops._tensors import check_posterior, check_tensors, one_dtype

# A tensor, or an array of NumPy or of any library that speaks DLPack or `__array__`.
Array: TypeAlias = Any

# What a mean may be: an array, or the whole posterior.
Posterior: TypeAlias = "Array | Distribution"


def as_posterior(
    caller: str,
    mean: Posterior,
    logvar: Array | None,
    variance: Array | None,
    std: Array | None,
    event_dim: int | None,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Give means and log-variances, (N, K) each, of one dtype and detached.

    Arrays that are no tensors go to ``device``. Log-variances must have the dtype of the means, where under
    autocast half precision is float32. Another spread may have another dtype: the result has the wider one.
    Errors name ``caller`` and the argument.
    """
    if isinstance(mean, Distribution):
        if not (logvar is None and variance is None and std is None):
            raise ValueError(f"{caller}: mean is a distribution, beside which no other spread may be given")
        mean, std, event_dim = _parts_of(caller, mean, event_dim)
    means = _as_tensor(caller, "mean", mean, device)
    spreads_by_kind: tuple[tuple[Spread, Array], ...] = (
        ("logvar", logvar),
        ("variance", variance),
        ("std", std),
    )
    given = {kind: spread for kind, spread in spreads_by_kind if spread is not None}
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ValueError(f"{caller}: exactly one of logvar, variance and std must be given, got {got}")
    ((kind, spread),) = given.items()
    if event_dim is not None:
        event_dim = check_integer(caller, "event_dim", event_dim, 0)
    spreads = _as_tensor(caller, kind, spread, means.device if device is None else device)
    check_posterior(caller, {"mean": means, kind: spreads})
    try:
        rows = fold(means.shape, event_dim)
    except ValueError as error:
        raise ValueError(f"{caller}: mean {error}") from None
    means, spreads = means.detach().reshape(rows), spreads.detach().reshape(rows)
    if kind == "logvar":
        if means.dtype != spreads.dtype:
            means, spreads = one_dtype(caller, False, {"mean": means, kind: spreads})
        return means, spreads
    try:
        logvars = log_variance(kind, spreads)
    except ValueError as error:
        raise ValueError(f"{caller}: {error}") from None
    dtype = torch.promote_types(means.dtype, logvars.dtype)
    return means.to(dtype), logvars.to(dtype)


def as_rows(
    caller: str, name: str, array: Array, event_dim: int | None, device: torch.device | None = None
) -> Tensor:
    """Give numbers of each latent of each sample, (N, K), detached; errors are those of `as_posterior`."""
    (values,) = check_tensors(caller, False, **{name: _as_tensor(caller, name, array, device)})
    if event_dim is not None:
        event_dim = check_integer(caller, "event_dim", event_dim, 0)
    elif values.ndim < 2:
        raise ValueError(
            f"{caller}: {name} must have shape (N, K), a number for each latent, got {tuple(values.shape)}"
        )
    try:
        return values.detach().reshape(fold(values.shape, event_dim))
    except ValueError as error:
        raise ValueError(f"{caller}: {name} {error}") from None


def check_latent_dim(caller: str, mean: Tensor, latent_dim: int, name: str = "mean") -> None:
    """Check that posterior means (N, K) are of as many latents as those before."""
    if mean.shape[1] != latent_dim:
        raise ValueError(
            f"{caller}: {name} must have K={latent_dim} latents, got (N, K) = {tuple(mean.shape)}"
        )


def log_variance(kind: Spread, spread: Tensor, first_row: int = 0) -> Tensor:
    """Give the log-variances, of half precision in float32; a variance of zero has minus infinity.

    A ValueError names the kind, the value and where it is, if a variance or standard deviation is negative.
    """
    if kind == "logvar":
        return spread
    if spread.dtype.itemsize == 2:
        spread = spread.float()
    if kind == "log_std":
        return 2 * spread
    negative = spread < 0
    if negative.any():
        row, latent = negative.nonzero()[0].tolist()
        raise ValueError(
            f"{kind} must not be negative, got {spread[row, latent].item()} "
            f"in row {first_row + row}, latent {latent}"
        )
    return spread.log() if kind == "variance" else 2 * spread.log()


def fold(shape: Iterable[int], event_dim: int | None) -> tuple[int, int]:
    """Give (N, K) of an array whose last ``event_dim`` dimensions are the latents.

    Without event_dim there must be no choice: the shape is (N, K), or (K,) of a single posterior.
    """
    shape = tuple(shape)
    if event_dim is None:
        if len(shape) > 2:
            raise ValueError(
                f"has shape {shape}, and event_dim must say which dimensions are latents: {_readings(shape)}"
            )
        event_dim = 1
    if not 0 <= event_dim <= len(shape):
        raise ValueError(f"must have at least event_dim={event_dim} dimensions, got shape {shape}")
    split = len(shape) - event_dim
    return math.prod(shape[:split]), math.prod(shape[split:])


def is_wider_than_prior(
    mean_square: NDArray[np.float64],
    mean_variance: NDArray[np.float64],
    variance_of_variance: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Tell of posteriors, (..., K), whether their log-variances look like variances or standard deviations.

    Where a VAE can scale a latent, its ELBO is stationary only at E[m² + v] = 1, whatever β is, so that
    E v <= 1. Log-variances that are really variances are all above 0, and give E[m² + exp(v)] of at least one
    more, near 2 or above; standard deviations do the same. What scatters around zero, as at random, may have
    E v > 1 too, but then v deviates by more than E v - 1. It takes every latent to look so; one without a
    finite element has no say.
    """
    known = np.isfinite(mean_square) & np.isfinite(mean_variance)
    with np.errstate(invalid="ignore"):
        excess = mean_variance - 1
        wide = (excess > 0) & (mean_square + excess > 0.5) & (np.sqrt(variance_of_variance) <= excess)
    return np.asarray(known.any(-1) & (wide | ~known).all(-1))


class WidePosteriorWarning(UserWarning):
    """The log-variances of every latent look like variances or standard deviations.

    Examples
    --------
    >>> import warnings
    >>> import torch
    >>> from lineavae.collapse import CollapseStatistics, WidePosteriorWarning
    >>> mean, variance = torch.tensor([[0.8], [-0.8]]), torch.full((2, 1), 0.36)
    >>> statistics = CollapseStatistics(latent_dim=1)
    >>> statistics.update(mean, variance)  # in the place of logvar
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     report = statistics.compute()
    >>> [warning.category.__name__ for warning in caught]
    ['WidePosteriorWarning']
    """


WIDE = (
    "every latent's posterior is wider than the prior, as those of a trained VAE are not: "
    "are the log-variances variances or standard deviations?"
)


def warn_of_width(caller: str, stacklevel: int = 4) -> None:
    """Warn that posteriors are wider than the prior, in the name of the function that was called."""
    text = f"{caller}: {WIDE} Pass them as variance= or std="
    warnings.warn(text, WidePosteriorWarning, stacklevel=stacklevel)


def _parts_of(
    caller: str, posterior: Distribution, event_dim: int | None
) -> tuple[Tensor, Tensor, int | None]:
    base = posterior
    while isinstance(base, Independent):
        base = base.base_dist
    if not isinstance(base, Normal):
        raise TypeError(
            f"{caller}: mean must be an array, a Normal or an Independent of one, got {type(base).__name__}"
        )
    own = len(posterior.event_shape) or None  # a plain Normal does not say
    if own is not None and event_dim not in (None, own):
        raise ValueError(f"{caller}: event_dim must be that of the distribution, {own}, got {event_dim}")
    return base.loc, base.scale, own or event_dim


def _as_tensor(caller: str, name: str, value: Array, device: torch.device | None) -> Tensor:
    if isinstance(value, Tensor):
        return value
    check_whole(caller, name, value)
    if isinstance(value, Mapping):
        raise TypeError(f"{caller}: {name} must be an array, got {_how_to_pass(value)}")
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        strides = getattr(value, "strides", None)
        if isinstance(strides, tuple) and min(strides, default=0) < 0:
            value = value.copy()  # torch takes no negative strides
        return torch.utils.dlpack.from_dlpack(value)
    if hasattr(value, "__array__"):
        return _from_numpy(caller, name, np.asarray(value)).to(device)
    hint = ""
    if isinstance(value, str):
        hint = ": a dict that is unpacked gives its names"
    elif isinstance(value, tuple | list):
        hint = ": give a pair as two arguments, and batches one at a time"
    raise TypeError(f"{caller}: {name} must be a tensor or an array, got {type(value).__name__}{hint}")


def _from_numpy(caller: str, name: str, array: NDArray[Any]) -> Tensor:
    # torch takes neither negative strides nor the other byte order, and warns of what is read-only
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype.kind != "f":
        raise TypeError(f"{caller}: {name} must be of floating numbers, got an array of {array.dtype}")
    # a stride of one row stays negative in C order
    must_copy = not array.flags.writeable or min(array.strides, default=0) < 0
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=must_copy)
    try:
        return torch.from_numpy(native)
    except TypeError:  # longdouble
        raise TypeError(f"{caller}: {name} must be float64, float32 or float16, got {array.dtype}") from None


def _how_to_pass(output: Mapping[Any, Any]) -> str:
    """Say what a dict is, and which of its entries to pass."""
    names = [name for name in output if isinstance(name, str)]
    what = f"{type(output).__name__} with {', '.join(map(repr, names)) or 'no names'}"
    try:
        mean, kind, spread = Keys().choose(names)
    except ValueError:
        return f"{what}: pass its entries"
    return f"{what}: pass output[{mean!r}], {kind}=output[{spread!r}]".replace("log_std=", "logvar=2 * ")


def _readings(shape: tuple[int, ...]) -> str:
    """Say what the choices are for an array of more than two dimensions."""
    whole, last = (fold(shape, event_dim) for event_dim in (len(shape) - 1, 1))
    channels = fold((shape[0], *shape[2:], shape[1]), 1)
    return (
        f"event_dim={len(shape) - 1} makes it (N, K) = {whole}, event_dim=1 {last}; "
        f"movedim(1, -1), one latent per channel, and event_dim=1 {channels}"
    )
