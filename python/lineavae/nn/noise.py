"""The observation noise σ² of a Gaussian decoder, and what β of a β-VAE it amounts to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lineavae._arguments import check_integer, check_number
from lineavae._recomputation import recomputes_on_device
from lineavae.ops._tensors import widen

# Batches of a running mean whose backward, with the recomputation of their σ², may still be to come.
_NUM_PENDING = 16


class ObservationNoise(nn.Module):
    """Observation noise σ² of p(x|z) = N(x̂, σ²): fixed, learned, or in closed form.

    σ² decides which latents collapse (Lucas et al. 2019, section 5): fixed too large it costs the model
    latents for good, and learning it is part of the maximum likelihood.

    Parameters
    ----------
    sigma2
        σ² at the beginning; for good where it is fixed. A step of Adam moves a learned log σ² by no more than
        about the learning rate: begin near the residual variance of the data, or give it a learning rate of
        its own.
    kind
        ``"learned"``: log σ² is a parameter. ``"fixed"``: it is a buffer. ``"closed_form"``: it is the mean
        squared error of each training batch, which maximises the batch's ELBO, and is kept in a buffer for
        evaluation. Each of several processes takes that of its own batch.
    shape
        () for one σ², or (1,), as ``fully_shard`` takes no scalar; otherwise what broadcasts against one x:
        (D,) for one per feature, (C, 1, 1) for one per channel of images. A saved () loads into a noise with
        one element, such as (1,), and the other way round.
    momentum
        How much of σ² a batch replaces, in the closed form: 1 takes the σ² of each batch, a value below 1
        makes a running mean. A σ² that is not finite is returned for its batch, but is not kept.
    floor
        The closed form's least value: a perfect reconstruction would make the likelihood infinite.

    Attributes
    ----------
    log_sigma2 : nn.Parameter or Tensor
        log σ², of the given shape; float32 in a model that is cast to half precision, which has too few
        digits for the steps of training, and float64 where it is cast to that.

    Raises
    ------
    TypeError, ValueError
        sigma2 or floor is not a positive number, momentum not in (0, 1], kind none of the three, or shape no
        tuple of positive integers.

    Examples
    --------
    >>> import torch
    >>> from lineavae.nn import ObservationNoise
    >>> noise = ObservationNoise(kind="closed_form")
    >>> noise(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])).exp()
    tensor(0.5000)
    >>> noise.eval()(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.0]])).exp()
    tensor(0.5000)

    Notes
    -----
    Under gradient checkpointing the second pass changes nothing and gives the σ² of the first. With a running
    mean, up to 16 batches may wait for their backward.
    """

    log_sigma2: Tensor
    has_seen_data: Tensor  # of the closed form only
    pending_batches: Tensor  # of a running mean only: the mean σ² of the last batches, which tells them apart
    pending_log_sigma2: Tensor  # and what was given for each of them

    def __init__(
        self,
        sigma2: float = 1.0,
        *,
        kind: Literal["learned", "fixed", "closed_form"] = "learned",
        shape: tuple[int, ...] = (),
        momentum: float = 1.0,
        floor: float = 1e-6,
    ) -> None:
        super().__init__()
        if kind not in ("learned", "fixed", "closed_form"):
            raise ValueError(
                f"ObservationNoise: kind must be 'learned', 'fixed' or 'closed_form', got {kind!r}"
            )
        self.kind = kind
        self.floor = check_number("ObservationNoise", "floor", floor, above=0)
        self.momentum = check_number("ObservationNoise", "momentum", momentum, above=0, at_most=1)
        if not isinstance(shape, (tuple, list)):
            raise TypeError(f"ObservationNoise: shape must be a tuple, got {type(shape).__name__}")
        for size in shape:
            check_integer("ObservationNoise", "every size of shape", size, 1)
        log_sigma2 = torch.full(
            shape,
            math.log(check_number("ObservationNoise", "sigma2", sigma2, above=0)),
            dtype=torch.promote_types(torch.get_default_dtype(), torch.float32),
        )
        if kind == "learned":
            self.log_sigma2 = nn.Parameter(log_sigma2)
        else:
            self.register_buffer("log_sigma2", log_sigma2)
        if kind == "closed_form":
            self.register_buffer("has_seen_data", torch.zeros((), dtype=torch.bool))
            if self.momentum < 1:
                pending = log_sigma2.expand(_NUM_PENDING, *shape).clone()
                self.register_buffer("pending_log_sigma2", pending, persistent=False)
                self.register_buffer(
                    "pending_batches", pending.new_full((_NUM_PENDING,), math.inf), persistent=False
                )

    def forward(self, x: Tensor, x_hat: Tensor, variance: Tensor | None = None) -> Tensor:
        """Give log σ² for a batch; in training the closed form takes it in.

        Parameters
        ----------
        x, x_hat
            Data, (N, *event), and reconstructions, of the same shape or several of each, (S, N, *event).
        variance
            Where x_hat is the mean of reconstructions under the posterior: their variance, (N, *event).

        Returns
        -------
        Tensor
            log σ², of this noise's ``shape``. In the closed form it carries no gradient. With ``momentum`` 1
            and σ² above the floor, none is missing: the ELBO is stationary in it.
        """
        if self.kind == "closed_form" and self.training:
            return self._take_in(self.tuned(x, x_hat, variance).clamp(min=self.floor))
        return self.log_sigma2

    def _take_in(self, batch: Tensor) -> Tensor:
        """Give log σ² for a batch, from its own σ², and keep it unless that is nothing to keep.

        All of it stays on the device: nothing waits for a value.
        """
        recomputes = recomputes_on_device(batch)
        takes_in = batch.isfinite().all() & ~recomputes
        if self.momentum == 1:
            log_sigma2 = batch.log()
        else:
            running = torch.lerp(self.log_sigma2.exp(), batch, self.momentum)
            # a state that was saved with a bad batch in its mean begins again
            has_mean = self.has_seen_data & self.log_sigma2.isfinite().all()
            log_sigma2 = torch.where(has_mean, running, batch).log()
            # before a recomputation later batches may have moved the mean: it gets what its first pass got
            key = batch.mean()
            index = (self.pending_batches - key).abs().argmin().reshape(1)
            of_first_pass = self.pending_log_sigma2.index_select(0, index)[0]
            log_sigma2 = torch.where(recomputes & key.isfinite(), of_first_pass, log_sigma2)
            for pending, new in ((self.pending_batches, key), (self.pending_log_sigma2, log_sigma2)):
                pending.copy_(torch.where(takes_in, torch.cat([pending[1:], new[None]]), pending))
        self.log_sigma2.copy_(torch.where(takes_in, log_sigma2, self.log_sigma2))
        self.has_seen_data.logical_or_(takes_in)
        return log_sigma2

    @torch.no_grad()
    def tuned(self, x: Tensor, x_hat: Tensor, variance: Tensor | None = None) -> Tensor:
        """Give the σ² that maximises the likelihood of the data given these reconstructions.

        The mean of (x - x̂)², over all that shares one σ²; the arguments are those of `forward`.

        Raises
        ------
        ValueError
            The noise's shape does not broadcast against one x; x_hat or variance is not of the shape of x;
            there is no sample.
        """
        check_event(x, self.log_sigma2.shape)
        if x.numel() == 0:
            raise ValueError(f"ObservationNoise: x must have at least one sample, got shape {tuple(x.shape)}")
        _check_like(x, "x_hat", x_hat)
        squares = (widen(x) - widen(x_hat)).square()
        if variance is not None:
            _check_like(x, "variance", variance)
            squares = squares + variance
        sums = squares.sum_to_size(self.log_sigma2.shape)
        return (sums * (sums.numel() / squares.numel())).to(self.log_sigma2)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ObservationNoise:
        super()._apply(keep_wide(fn), recurse)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "log_sigma2")
        if isinstance(saved, Tensor):
            saved = keep_wide(Tensor.detach)(saved)  # of a state that is assigned too
            is_one = saved.numel() == self.log_sigma2.numel() == 1
            state_dict[prefix + "log_sigma2"] = saved.reshape(self.log_sigma2.shape) if is_one else saved
        if self.kind == "closed_form" and self.momentum < 1:
            self.pending_batches.fill_(math.inf)  # no batch of this state is to come; to_empty left anything
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:  # noqa: D102
        return f"kind={self.kind!r}, shape={tuple(self.log_sigma2.shape)}"


class NoiseOfBeta(NamedTuple):
    """A VAE with β = 1 that trains as a β-VAE does.

    Examples
    --------
    >>> from lineavae.nn import sigma2_of_beta
    >>> sigma2_of_beta(4.0).sigma2
    4.0
    """

    sigma2: float
    learning_rate_factor: float
    """What the β-VAE's learning rate is to be multiplied with."""


class BetaOfNoise(NamedTuple):
    """A β-VAE that trains as a VAE with β = 1 does.

    Examples
    --------
    >>> from lineavae.nn import beta_of_sigma2
    >>> beta_of_sigma2(4.0).beta
    4.0
    """

    beta: float
    learning_rate_factor: float
    """What the VAE's learning rate is to be multiplied with."""


def sigma2_of_beta(beta: float, sigma2: float = 1.0) -> NoiseOfBeta:
    """Give the fixed σ² whose VAE is the β-VAE with ``beta`` and the fixed ``sigma2``.

    The β-VAE's loss ‖x - x̂‖²/2σ² + β KL is β times the loss ‖x - x̂‖²/2βσ² + KL of a VAE with βσ²: the same
    optima and the same collapse. Gradients are β times as large, so gradient descent is the same with the
    learning rate times β; Adam does not see the factor but for its ε (Lucas et al. 2019, section 5).

    Examples
    --------
    >>> from lineavae.nn import sigma2_of_beta
    >>> sigma2_of_beta(4.0, sigma2=0.5)
    NoiseOfBeta(sigma2=2.0, learning_rate_factor=4.0)
    """
    beta = check_number("sigma2_of_beta", "beta", beta, above=0)
    return NoiseOfBeta(beta * check_number("sigma2_of_beta", "sigma2", sigma2, above=0), beta)


def beta_of_sigma2(sigma2: float, of_beta_vae: float = 1.0) -> BetaOfNoise:
    """Give the β-VAE, with the fixed σ² ``of_beta_vae``, that is the VAE with the fixed ``sigma2``.

    The inverse of `sigma2_of_beta`.

    Examples
    --------
    >>> from lineavae.nn import beta_of_sigma2
    >>> beta_of_sigma2(2.0, of_beta_vae=0.5)
    BetaOfNoise(beta=4.0, learning_rate_factor=0.25)
    """
    sigma2 = check_number("beta_of_sigma2", "sigma2", sigma2, above=0)
    beta = sigma2 / check_number("beta_of_sigma2", "of_beta_vae", of_beta_vae, above=0)
    return BetaOfNoise(beta, 1 / beta)


def keep_wide(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Make of what a module's ``_apply`` does to tensors one that leaves them float32 or wider."""

    def apply(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        is_narrow = result.is_floating_point() and result.dtype.itemsize < 4
        return tensor.to(result.device, torch.float32) if is_narrow else result

    return apply


def _check_like(x: Tensor, name: str, tensor: Tensor) -> None:
    if tensor.ndim < x.ndim or tensor.shape[tensor.ndim - x.ndim :] != x.shape:
        raise ValueError(
            f"ObservationNoise: {name} must have the shape of x, {tuple(x.shape)}, got {tuple(tensor.shape)}"
        )


def check_event(x: Tensor, shape: torch.Size) -> None:
    """Check that a noise of this shape broadcasts against each of the samples x."""
    try:
        broadcasts = torch.broadcast_shapes(x.shape[1:], shape) == x.shape[1:]
    except RuntimeError:
        broadcasts = False
    if not broadcasts:
        raise ValueError(
            f"ObservationNoise: x must have shape (N, *event) with an event that {tuple(shape)} broadcasts "
            f"to, got {tuple(x.shape)}"
        )
