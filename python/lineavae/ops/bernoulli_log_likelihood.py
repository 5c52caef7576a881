"""Log-likelihood of Bernoulli variables given their logits, one value per sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lineavae import _ext, reference
from lineavae.ops._differentiable import differentiable, raw, refuse_autograd, register_autograd
from lineavae.ops._dispatch import has_native
from lineavae.ops._models import broadcast_models, flatten_models, flatten_shared, sum_over_shared
from lineavae.ops._registration import register_rules
from lineavae.ops._tensors import check_probabilities, check_tensors, flatten_data, widen

_ext.load()
_backward_op = raw("bernoulli_log_likelihood_backward")


def bernoulli_log_likelihood(
    x: Tensor, logits: Tensor, *, event_dim: int | None = None, check_finite: bool = False
) -> Tensor:
    """Log-likelihood of Bernoulli variables given their logits, per sample, in nats.

    Σ_i x_i log sigmoid(a_i) + (1 - x_i) log sigmoid(-a_i), accurate to rounding for every logit a: 0 where an
    infinite one is right, -inf where it is wrong.

    Parameters
    ----------
    x
        Data, (N, D) or (*models, N, *event): zeros and ones, or anything between. Integer images
        must be turned into probabilities first: ``images / 255``.
    logits
        Logits a of the probabilities, of the shape of x. Leading dimensions broadcast: one x (N, D) serves
        many models, or many posterior samples of one, (S, N, D). Both arguments share one dtype, float64,
        float32, bfloat16 or float16, and one device.
    event_dim
        How many trailing dimensions of one sample are summed, as in `torch.distributions.Independent`: 3 for
        images (N, C, H, W). It must be given where x has more than two dimensions.
    check_finite
        Raise at the first NaN or infinity of an argument, and at an x outside [0, 1], instead of computing
        with it. Without it no value is looked at: that would wait for the device.

    Returns
    -------
    Tensor
        (*models, N), float64 for float64 inputs and float32 for all others.

    Raises
    ------
    TypeError
        An argument is no tensor, or of another dtype; integers among them.
    ValueError
        A shape or device does not fit; event_dim is missing; with ``check_finite``: x is outside [0, 1].
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
    x, logits = flatten_data(op, x, "logits", logits, event_dim)
    if check_finite:
        check_probabilities(op, x)
    models = broadcast_models(op, {"x": x.shape[:-2], "logits": logits.shape[:-2]})
    if not has_native(op, x.device):
        return _formula(x, logits)
    x_is_shared = math.prod(x.shape[:-2]) == 1
    if logits.shape[:-2] != models or not (x_is_shared or math.prod(x.shape[:-2]) == math.prod(models)):
        # one that is repeated has a gradient that is summed: not in half precision
        x, logits = widen(x), widen(logits)
    value: Tensor = _BernoulliLogLikelihood.apply(
        flatten_shared(x, models, 2), flatten_models(logits, models, 2)
    )
    return value.reshape((*models, x.shape[-2]))


def _backward(needs_x: bool, grad: Tensor, x: Tensor, logits: Tensor) -> tuple[Tensor | None, Tensor]:
    grad_x = None
    if needs_x:
        grad_x = sum_over_shared(grad.unsqueeze(-1) * logits, x.shape[0] == 1).to(x.dtype)
    return grad_x, _backward_op(grad, x, logits)


def _formula(x: Tensor, logits: Tensor) -> Tensor:
    return reference.bernoulli_log_likelihood(widen(x), widen(logits))


_BernoulliLogLikelihood = differentiable(
    "bernoulli_log_likelihood",
    raw("bernoulli_log_likelihood"),
    _backward,
    _formula,
    inputs=slice(0, 2),
    num_arguments=2,
)


@torch.library.register_fake("lineavae::bernoulli_log_likelihood")
def _fake(x: Tensor, logits: Tensor) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(logits.shape[:2], dtype=dtype)


@torch.library.register_fake("lineavae::bernoulli_log_likelihood_backward")
def _fake_backward(grad: Tensor, x: Tensor, logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


register_rules("bernoulli_log_likelihood", shared=(0,))
register_rules("bernoulli_log_likelihood_backward", shared=(1,))
register_autograd("bernoulli_log_likelihood", _BernoulliLogLikelihood)
refuse_autograd("bernoulli_log_likelihood_backward")
