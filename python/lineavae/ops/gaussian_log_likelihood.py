"""Log-likelihood of data under Gaussians around their reconstructions, per sample and its mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lineavae import _ext, reference
from lineavae._dynamo import allow_in_graph
from lineavae.ops._differentiable import Operator, differentiable, raw, refuse_autograd, register_autograd
from lineavae.ops._dispatch import has_native
from lineavae.ops._models import broadcast_models, flatten_models, flatten_shared, sum_over_shared
from lineavae.ops._noise import check_noise, flatten_noise, flatten_noise_event
from lineavae.ops._registration import register_rules
from lineavae.ops._tensors import check_tensors, flatten_data, widen

_ext.load()
_backward_op = raw("gaussian_log_likelihood_backward")
_mean_op = raw("gaussian_log_likelihood_mean")


def gaussian_log_likelihood(
    x: Tensor,
    x_hat: Tensor,
    log_sigma2: Tensor,
    *,
    event_dim: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Log-likelihood log N(x | x̂, σ²) of each sample, in nats, with every constant.

        log p(x|z) = -½ Σ_i ((x_i - x̂_i)² / σ_i² + log σ_i² + log 2π)

    Parameters
    ----------
    x
        Data, (N, D) or (*models, N, *event). All tensors share one dtype and device: float64, float32,
        bfloat16 or float16.
    x_hat
        Reconstructions x̂, the means of the Gaussians, of the shape of x. Leading dimensions broadcast: one
        x (N, D) serves many models, or many posterior samples of one, (S, N, D).
    log_sigma2
        Log of the observation noise σ², broadcast against x by NumPy's rules: () for one variance, (D,) for
        one per feature, (N, 1) per sample, (N, D) for each element, (*models, 1, 1) for one per model.
        With event_dim=3: (C, 1, 1) for one per channel, (N, 1, 1, 1) per sample.
    event_dim
        How many trailing dimensions of one sample are summed, as in `torch.distributions.Independent`: 3 for
        images (N, C, H, W). It must be given where x has more than two dimensions.
    check_finite
        Raise at the first NaN or infinity of an argument instead of propagating it.

    Returns
    -------
    Tensor
        (*models, N), float64 for float64 inputs and float32 for all others.

    Raises
    ------
    TypeError
        An argument is no tensor, or of another dtype.
    ValueError
        A shape or device does not fit; event_dim is missing.
    FloatingPointError
        With ``check_finite``: an argument has a NaN or an infinity; the index is named.

    Notes
    -----
    Lucas et al. (2019), equation 10, whose normaliser is D/2 where ½ is printed. One pass over the data
    forward and one backward; gradients to all three arguments.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import gaussian_log_likelihood
    >>> x, x_hat = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.zeros(2, 2)
    >>> gaussian_log_likelihood(x, x_hat, torch.tensor(0.0))
    tensor([-2.3379, -3.8379])
    """
    op = "gaussian_log_likelihood"
    x, x_hat, given_noise = check_tensors(op, check_finite, x=x, x_hat=x_hat, log_sigma2=log_sigma2)
    x, x_hat, log_sigma2, models = _flatten_event(op, x, x_hat, given_noise, event_dim)
    if not has_native(op, x.device):
        return reference.gaussian_log_likelihood(widen(x), widen(x_hat), widen(log_sigma2))
    if models or log_sigma2.numel() != given_noise.numel():
        # gradients of what models or pixels share are sums, which half precision would round term by term
        x, x_hat, log_sigma2 = widen(x), widen(x_hat), widen(log_sigma2)
    value: Tensor = _GaussianLogLikelihood.apply(*_flatten(models, x, x_hat, log_sigma2))[0]
    return value.reshape((*models, x.shape[-2]))


def gaussian_log_likelihood_mean(
    x: Tensor,
    x_hat: Tensor,
    log_sigma2: Tensor,
    *,
    event_dim: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Mean over the samples of their log-likelihood log N(x | x̂, σ²), in nats, with every constant.

    The mean of `gaussian_log_likelihood`, for losses. The gradients of the negative mean are made in
    the pass that makes the value. What they cost is paid without backward too, and there is no second
    derivative: it raises. Backward scales them; but on a CPU, where the gradient that comes in is -1, it
    gives away that of x_hat as it is: after ``retain_graph=True`` it must not be changed in place, and a
    further backward raises if it was.

    Parameters
    ----------
    x, x_hat, log_sigma2, event_dim, check_finite
        As in `gaussian_log_likelihood`.

    Returns
    -------
    Tensor
        (*models,), float64 for float64 inputs and float32 for all others; NaN where N is 0.

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As `gaussian_log_likelihood`.
    RuntimeError
        In the backward of its backward.

    Notes
    -----
    Lucas et al. (2019), equation 10, averaged. Half-precision inputs are computed in float32 copies.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import gaussian_log_likelihood_mean
    >>> x, x_hat = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.zeros(2, 2)
    >>> gaussian_log_likelihood_mean(x, x_hat, torch.tensor(0.0))
    tensor(-3.0879)
    """
    op = "gaussian_log_likelihood_mean"
    x, x_hat, log_sigma2 = map(
        widen, check_tensors(op, check_finite, x=x, x_hat=x_hat, log_sigma2=log_sigma2)
    )
    x, x_hat, log_sigma2, models = _flatten_event(op, x, x_hat, log_sigma2, event_dim)
    if not has_native(op, x.device):
        return reference.gaussian_log_likelihood_mean(x, x_hat, log_sigma2)
    mean: Tensor = _GaussianLogLikelihoodMean.apply(*_flatten(models, x, x_hat, log_sigma2))[0]
    return mean.reshape(models)


def _flatten_event(
    op: str, x: Tensor, x_hat: Tensor, log_sigma2: Tensor, event_dim: int | None
) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
    """Check the shapes of the arguments, and make them (*models, N, D); returns those and the models."""
    flat_x, x_hat = flatten_data(op, x, "x_hat", x_hat, event_dim)
    if event_dim is not None and event_dim > 1:
        log_sigma2 = flatten_noise_event(op, log_sigma2, x.shape[-event_dim:])
    check_noise(op, log_sigma2, flat_x)
    models = broadcast_models(
        op, {"x": flat_x.shape[:-2], "x_hat": x_hat.shape[:-2], "log_sigma2": log_sigma2.shape[:-2]}
    )
    return flat_x, x_hat, log_sigma2, models


def _flatten(
    models: torch.Size, x: Tensor, x_hat: Tensor, log_sigma2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        flatten_shared(x, models, 2),
        flatten_models(x_hat, models, 2),
        flatten_noise(log_sigma2, models),
    )


def _backward(
    needs_x: bool, grad: Tensor, x: Tensor, x_hat: Tensor, log_sigma2: Tensor, distortion: Tensor
) -> tuple[Tensor | None, ...]:
    grad_x_hat, grad_log_sigma2 = _backward_op(grad, x, x_hat, log_sigma2, distortion)
    grad_x = sum_over_shared(-grad_x_hat, x.shape[0] == 1) if needs_x else None
    return grad_x, grad_x_hat, sum_over_shared(grad_log_sigma2, log_sigma2.shape[0] == 1)


def _widened(x: Tensor, x_hat: Tensor, log_sigma2: Tensor) -> Tensor:
    return reference.gaussian_log_likelihood(widen(x), widen(x_hat), widen(log_sigma2))


_GaussianLogLikelihood = differentiable(
    "gaussian_log_likelihood",
    raw("gaussian_log_likelihood"),
    _backward,
    _widened,
    inputs=slice(0, 3),
    num_arguments=3,
)


@allow_in_graph
class _GaussianLogLikelihoodMean(Operator):
    """Its gradients are outputs too: differentiating them comes back to this backward, which raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, x_hat: Tensor, log_sigma2: Tensor) -> Any:
        return _mean_op(x, x_hat, log_sigma2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, _, log_sigma2 = inputs
        ctx.x_is_shared, ctx.noise_is_shared = x.shape[0] == 1, log_sigma2.shape[0] == 1
        ctx.save_for_backward(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *second: Tensor | None) -> Any:
        if any(upstream is not None for upstream in second):
            raise RuntimeError(
                "gaussian_log_likelihood_mean has no second derivative; "
                "gaussian_log_likelihood(...).mean(-1) has"
            )
        if grad is None:
            return None, None, None
        grad_x_hat, grad_log_sigma2 = ctx.saved_tensors
        if torch.is_grad_enabled() or not _is_of_loss(grad):
            scale = -grad[:, None, None]
            grad_x_hat, grad_log_sigma2 = scale * grad_x_hat, scale * grad_log_sigma2
        else:
            grad_x_hat, grad_log_sigma2 = grad_x_hat.detach(), grad_log_sigma2.clone()
        grad_x = sum_over_shared(-grad_x_hat, ctx.x_is_shared) if ctx.needs_input_grad[0] else None
        return grad_x, grad_x_hat, sum_over_shared(grad_log_sigma2, ctx.noise_is_shared)


def _is_of_loss(grad: Tensor) -> bool:
    """Whether the gradient that comes in is -1, as where the loss is the negative mean.

    Where looking would wait for a device or stop a trace, it is taken to be another.
    """
    if type(grad) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(grad):
        return False
    if grad.device.type != "cpu" or grad.shape[0] != 1:
        return False
    try:
        return grad.item() == -1
    except (
        RuntimeError
    ):  # the batches of autograd.functional.jacobian(vectorize=True) have no values to look at
        return False


@torch.library.register_fake("lineavae::gaussian_log_likelihood")
def _fake(x: Tensor, x_hat: Tensor, log_sigma2: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x_hat.dtype == torch.float64 else torch.float32
    rows = x_hat.shape[:2]
    return x_hat.new_empty(rows, dtype=dtype), x_hat.new_empty(rows, dtype=dtype)


@torch.library.register_fake("lineavae::gaussian_log_likelihood_backward")
def _fake_backward(
    grad: Tensor, x: Tensor, x_hat: Tensor, log_sigma2: Tensor, distortion: Tensor
) -> tuple[Tensor, Tensor]:
    return x_hat.new_empty(x_hat.shape), x_hat.new_empty((x_hat.shape[0], *log_sigma2.shape[1:]))


@torch.library.register_fake("lineavae::gaussian_log_likelihood_mean")
def _fake_mean(x: Tensor, x_hat: Tensor, log_sigma2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    models = x_hat.shape[0]
    return (
        x_hat.new_empty(models),
        x_hat.new_empty(x_hat.shape),
        x_hat.new_empty((models, *log_sigma2.shape[1:])),
    )


register_rules("gaussian_log_likelihood", shared=(0, 2))
register_rules("gaussian_log_likelihood_backward", shared=(1, 3))
register_rules("gaussian_log_likelihood_mean", shared=(0, 2))
register_autograd("gaussian_log_likelihood", _GaussianLogLikelihood)
register_autograd("gaussian_log_likelihood_mean", _GaussianLogLikelihoodMean)
refuse_autograd("gaussian_log_likelihood_backward")
