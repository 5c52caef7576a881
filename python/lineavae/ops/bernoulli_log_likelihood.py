"""Log-likelihood of Bernoulli variables given their logits, one value per sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lineavae import _ext, reference
from lineavae.ops._arguments import check_probabilities, check_tensors, has_native, widen
from lineavae.ops._registration import keep_signature, register_rules, second_order

_ext.load()
_raw = torch.ops.lineavae


def bernoulli_log_likelihood(x: Tensor, logits: Tensor, *, check_finite: bool = False) -> Tensor:
    """Log-likelihood of Bernoulli variables given their logits, per sample, in nats.

    Σ_i x_i log sigmoid(a_i) + (1 - x_i) log sigmoid(-a_i), accurate to rounding for every logit a: 0 where an
    infinite one is right, -inf where it is wrong.

    Parameters
    ----------
    x
        Data, (N, ...): zeros and ones, or anything between. Of integers, as of images, make probabilities
        first: ``images / 255``.
    logits
        Logits a of the probabilities, in the shape of x. Both share one dtype, float64, float32, bfloat16 or
        float16, and one device.
    check_finite
        Raise at the first NaN or infinity of an argument, and at an x outside [0, 1], instead of computing
        with it. Without it no value is looked at: that would wait for the device.

    Returns
    -------
    Tensor
        (N,), summed over everything after the first dimension; float64 for float64 inputs and float32 for
        all others.

    Raises
    ------
    TypeError
        An argument is no tensor, or of another dtype; integers among them.
    ValueError
        The shapes or devices differ; with ``check_finite``: x is outside [0, 1].
    FloatingPointError
        With ``check_finite``: an argument has a NaN or an infinity; the index is named.

    Notes
    -----
    log p(x|z) of the Bernoulli decoder in appendix C.3 of Lucas et al. (2019). One kernel forward, one
    backward.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import bernoulli_log_likelihood
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.5]])
    >>> bernoulli_log_likelihood(x, torch.tensor([[0.0, 0.0], [100.0, 0.0]]))
    tensor([-1.3863, -0.6931])
    """
    op = "bernoulli_log_likelihood"
    x, logits = check_tensors(op, check_finite, x=x, logits=logits)
    if x.ndim == 0:
        raise ValueError(f"{op}: x must have at least one dimension, the samples, got shape ()")
    if x.shape != logits.shape:
        raise ValueError(
            f"{op}: logits must have the shape of x, {tuple(x.shape)}, got {tuple(logits.shape)}"
        )
    if check_finite:
        check_probabilities(op, x)
    if not has_native(op, x.device):
        return _formula(x, logits)
    value: Tensor = _BernoulliLogLikelihood.apply(_as_rows(x), _as_rows(logits))
    return value


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0], tensor.shape[1:].numel())


@torch.compiler.allow_in_graph
class _BernoulliLogLikelihood(Function):
    generate_vmap_rule = True

    @staticmethod
    @keep_signature
    def forward(x: Tensor, logits: Tensor) -> Any:
        return _raw.bernoulli_log_likelihood(x, logits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _BernoulliLogLikelihoodBackward.apply(grad, ctx.needs_input_grad[0], *ctx.saved_tensors)


class _BernoulliLogLikelihoodBackward(Function):
    """Gradients for x (only where asked for) and logits."""

    generate_vmap_rule = True

    @staticmethod
    @keep_signature
    def forward(grad: Tensor, x_requires_grad: bool, x: Tensor, logits: Tensor) -> Any:
        grad_x = (grad.unsqueeze(-1) * logits).to(x.dtype) if x_requires_grad else None
        return grad_x, _raw.bernoulli_log_likelihood_backward(grad, x, logits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, _, x, logits = inputs
        ctx.save_for_backward(grad, x, logits)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        grad, *inputs = ctx.saved_tensors
        grad_grad, grad_x, grad_logits = second_order(_formula, grad, tuple(inputs), upstream)
        return grad_grad, None, grad_x, grad_logits


def _formula(x: Tensor, logits: Tensor) -> Tensor:
    return reference.bernoulli_log_likelihood(widen(x), widen(logits))


@torch.library.register_fake("lineavae::bernoulli_log_likelihood")
def _fake(x: Tensor, logits: Tensor) -> Tensor:
    return x.new_empty(x.shape[:1], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


@torch.library.register_fake("lineavae::bernoulli_log_likelihood_backward")
def _fake_backward(grad: Tensor, x: Tensor, logits: Tensor) -> Tensor:
    return x.new_empty(x.shape)


register_rules("bernoulli_log_likelihood")
register_rules("bernoulli_log_likelihood_backward")
