"""Expected Bernoulli log-likelihood of a linear decoder under a diagonal Gaussian posterior, per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from lineavae import _ext, reference
from lineavae.ops._differentiable import differentiable, raw, refuse_autograd, register_autograd
from lineavae.ops._dispatch import has_native, without_autocast
from lineavae.ops._linear import check_linear_decoder
from lineavae.ops._models import broadcast_models, flatten_models, flatten_shared, sum_over_shared
from lineavae.ops._registration import register_rules
from lineavae.ops._tensors import check_probabilities, check_tensors, widen

_ext.load()
_backward_op = raw("expected_bernoulli_log_likelihood_backward")


def expected_bernoulli_log_likelihood(
    x: Tensor,
    mean: Tensor,
    logvar: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    check_finite: bool = False,
) -> Tensor:
    """Reconstruction term E log p(x|z) of a Bernoulli VAE with a linear decoder, per sample, in nats.

    The posterior z ~ N(μ, diag v) may come from any encoder. No sampling, so neither value nor gradient has
    variance: the logits W z + b are normal with means m = W μ + b and variances s² = (W ∘ W) v, and

        E log p(x|z) = Σ_i x_i m_i - E softplus(a_i),    a_i ~ N(m_i, s²_i)

    is a sum of one-dimensional integrals. Each is computed up to 5.2e-8, plus rounding, whatever m and s², by
    a mixture of six normal distributions in place of the logistic one; the gradients are those of the
    mixture.

    Parameters
    ----------
    x
        Data, (*models, N, D): zeros and ones, or anything between. Integer images must be turned into
        probabilities first: ``images / 255``. All tensors share one dtype and device.
    mean, logvar
        Posterior means μ and log-variances log v, (*models, N, K).
    weight
        Decoder W, (*models, D, K), as the weight of ``nn.Linear(K, D)``.
    bias
        Bias b of the logits, (*models, D).
    check_finite
        Raise at the first NaN or infinity of an argument, and at an x outside [0, 1], instead of computing
        with it. Without it no value is looked at: that would wait for the device.

    Returns
    -------
    Tensor
        (*models, N); the leading dimensions broadcast. float64 for float64 inputs and float32 for all others.

    Raises
    ------
    TypeError
        An argument is no tensor, or of another dtype; integers among them.
    ValueError
        A shape or device does not fit; with ``check_finite``: x is outside [0, 1].
    FloatingPointError
        With ``check_finite``: an argument has a NaN or an infinity; the index is named.

    Notes
    -----
    Lucas et al. (2019), appendix C.3, which calls it intractable. Normal scale mixtures for the logistic
    distribution: Monahan and Stefanski (1992). Where the variances are zero this is
    `bernoulli_log_likelihood`, up to D times 5.2e-8.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import expected_bernoulli_log_likelihood
    >>> x, weight, bias = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0], [-1.0]]), torch.zeros(2)
    >>> expected_bernoulli_log_likelihood(x, torch.tensor([[1.0]]), torch.tensor([[0.0]]), weight, bias)
    tensor([-0.7632])
    """
    op = "expected_bernoulli_log_likelihood"
    x, mean, logvar, weight, bias = map(
        widen, check_tensors(op, check_finite, x=x, mean=mean, logvar=logvar, weight=weight, bias=bias)
    )
    shapes = check_linear_decoder(op, x, mean, logvar, weight, bias)
    if check_finite:
        check_probabilities(op, x)
    models = broadcast_models(op, shapes)
    if not has_native(op, x.device):
        return without_autocast(reference.expected_bernoulli_log_likelihood, x, mean, logvar, weight, bias)
    value: Tensor = _ExpectedBernoulli.apply(
        flatten_shared(x, models, 2),
        flatten_models(mean, models, 2),
        flatten_models(logvar, models, 2),
        flatten_models(weight, models, 2),
        flatten_models(bias, models, 1),
    )[0]
    return value.reshape((*models, x.shape[-2]))


def _backward(
    needs_x: bool,
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    _: Tensor,
    weight: Tensor,
    bias: Tensor,
    *kept: Tensor,
) -> tuple[Tensor | None, ...]:
    grad_x = None
    if needs_x:
        grad_x = sum_over_shared(without_autocast(_grad_x, grad, mean, weight, bias), x.shape[0] == 1)
    return grad_x, *_backward_op(grad, mean, weight, *kept)


def _grad_x(grad: Tensor, mean: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return grad.unsqueeze(-1) * torch.baddbmm(bias.unsqueeze(-2), mean, weight.mT)


_ExpectedBernoulli = differentiable(
    "expected_bernoulli_log_likelihood",
    raw("expected_bernoulli_log_likelihood"),
    _backward,
    reference.expected_bernoulli_log_likelihood,
    inputs=slice(0, 5),
    num_arguments=5,
)


@torch.library.register_fake("lineavae::expected_bernoulli_log_likelihood")
def _fake(x: Tensor, mean: Tensor, logvar: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    models, num_features, _ = weight.shape
    num_samples = x.shape[1]
    return (
        x.new_empty(models, num_samples),
        x.new_empty(models, num_samples, num_features),
        x.new_empty(models, num_samples, num_features),
        x.new_empty(mean.shape),
        x.new_empty(weight.shape),
    )


@torch.library.register_fake("lineavae::expected_bernoulli_log_likelihood_backward")
def _fake_backward(
    grad: Tensor,
    mean: Tensor,
    weight: Tensor,
    slope: Tensor,
    curvature: Tensor,
    variance: Tensor,
    squared_weight: Tensor,
) -> tuple[Tensor, ...]:
    return (
        weight.new_empty(mean.shape),
        weight.new_empty(mean.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[:2]),
    )


register_rules("expected_bernoulli_log_likelihood", shared=(0,))
register_rules("expected_bernoulli_log_likelihood_backward")
register_autograd("expected_bernoulli_log_likelihood", _ExpectedBernoulli)
refuse_autograd("expected_bernoulli_log_likelihood_backward")
