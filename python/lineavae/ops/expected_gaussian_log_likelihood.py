"""Expected Gaussian log-likelihood of a linear decoder, in closed form, per sample.

The term of the reconstruction's mean is ``gaussian_log_likelihood`` and runs its kernels. The term of its
variance is thin: nothing of it is larger than the latents or the weight. It is computed in float64, because
its factors may overflow float32 where it does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lineavae import _ext, reference
from lineavae.ops._differentiable import differentiable, raw
from lineavae.ops._dispatch import has_native, without_autocast
from lineavae.ops._linear import check_linear_decoder
from lineavae.ops._models import broadcast_models, flatten_models, flatten_shared, sum_over_shared
from lineavae.ops._noise import check_noise, flatten_noise
from lineavae.ops._tensors import check_tensors, widen

_ext.load()
_forward_op = raw("gaussian_log_likelihood")
_backward_op = raw("gaussian_log_likelihood_backward")


def expected_gaussian_log_likelihood(
    x: Tensor,
    mean: Tensor,
    logvar: Tensor,
    weight: Tensor,
    bias: Tensor,
    log_sigma2: Tensor,
    *,
    check_finite: bool = False,
) -> Tensor:
    """Average log N(x | W z + b, σ²) over z ~ N(m, diag v), for each sample, in nats, without sampling.

    The reconstruction term of the ELBO of a linear decoder under any encoder. With x̂ = W m + b,

        E log p(x|z) = -½ Σ_i (((x_i - x̂_i)² + Σ_j v_j W_ij²) / σ_i² + log σ_i² + log 2π)

    Value and gradients are exact and have no variance. One product with W forward, two backward.

    Parameters
    ----------
    x
        Data, (*models, N, D). All tensors share one dtype and device.
    mean, logvar
        Means m and log-variances log v of the posterior of each sample, (*models, N, K).
    weight
        Decoder W, (*models, D, K), as in ``nn.Linear``.
    bias
        Decoder bias b, (*models, D).
    log_sigma2
        Log of the observation noise σ², broadcast against x by NumPy's rules: () for one variance, (D,) for
        one per feature, (N, 1) per sample, (N, D) for each element, (*models, 1, 1) for one per model. With
        one per element there is one more product with W² forward, and two backward.
    check_finite
        Raise at the first NaN or infinity of an argument instead of propagating it.

    Returns
    -------
    Tensor
        (*models, N); the leading dimensions broadcast. float64 for float64 inputs and float32 for all others.

    Raises
    ------
    TypeError
        An argument is no tensor, or of another dtype.
    ValueError
        A shape or device does not fit.
    FloatingPointError
        With ``check_finite``: an argument has a NaN or an infinity; the index is named.

    Notes
    -----
    Lucas et al. (2019), section 5 and equation 10, with the expectation of appendix C.1 taken exactly.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import expected_gaussian_log_likelihood
    >>> decoder = torch.nn.Linear(1, 2)
    >>> _ = torch.nn.init.ones_(decoder.weight), torch.nn.init.zeros_(decoder.bias)
    >>> x, mean, logvar = torch.zeros(1, 2), torch.zeros(1, 1), torch.zeros(1, 1)
    >>> with torch.no_grad():
    ...     expected_gaussian_log_likelihood(
    ...         x, mean, logvar, decoder.weight, decoder.bias, torch.tensor(0.0)
    ...     )
    tensor([-2.8379])
    """
    op = "expected_gaussian_log_likelihood"
    x, mean, logvar, weight, bias, log_sigma2 = map(
        widen,
        check_tensors(
            op,
            check_finite,
            x=x,
            mean=mean,
            logvar=logvar,
            weight=weight,
            bias=bias,
            log_sigma2=log_sigma2,
        ),
    )
    shapes = check_linear_decoder(op, x, mean, logvar, weight, bias)
    check_noise(op, log_sigma2, x)
    models = broadcast_models(op, shapes | {"log_sigma2": log_sigma2.shape[:-2]})
    if not has_native("gaussian_log_likelihood", x.device):
        formula = reference.expected_gaussian_log_likelihood
        return without_autocast(formula, x, mean, logvar, weight, bias, log_sigma2)
    value: Tensor = _ExpectedGaussianLogLikelihood.apply(
        flatten_shared(x, models, 2),
        flatten_models(mean, models, 2),
        flatten_models(logvar, models, 2),
        flatten_models(weight, models, 2),
        flatten_models(bias, models, 1),
        flatten_noise(log_sigma2, models),
    )[0]
    return value.reshape((*models, x.shape[-2]))


def _forward(
    x: Tensor, mean: Tensor, logvar: Tensor, weight: Tensor, bias: Tensor, log_sigma2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x_hat = torch.baddbmm(bias.unsqueeze(1), mean, weight.mT)
    value, distortion = _forward_op(x, x_hat, log_sigma2)
    spread = (logvar.double().exp() * _column_norms(weight, log_sigma2)).sum(-1)
    return (value - 0.5 * spread).to(value.dtype), x_hat, distortion


def _backward(
    grad: Tensor,
    needs_x: bool,
    x: Tensor,
    mean: Tensor,
    logvar: Tensor,
    weight: Tensor,
    bias: Tensor,
    log_sigma2: Tensor,
    x_hat: Tensor,
    distortion: Tensor,
) -> tuple[Tensor | None, ...]:
    grad_x_hat, grad_log_sigma2 = _backward_op(grad, x, x_hat, log_sigma2, distortion)
    grad_x = sum_over_shared(-grad_x_hat, x.shape[0] == 1) if needs_x else None
    of_variance = _variance_gradients(grad, logvar, weight, log_sigma2)
    grad_logvar, grad_weight, grad_noise = (gradient.to(grad.dtype) for gradient in of_variance)
    return (
        grad_x,
        grad_x_hat @ weight,
        grad_logvar,
        grad_x_hat.mT @ mean + grad_weight,
        grad_x_hat.sum(1),
        sum_over_shared(grad_log_sigma2 + grad_noise, log_sigma2.shape[0] == 1),
    )


_ExpectedGaussianLogLikelihood = differentiable(
    "expected_gaussian_log_likelihood",
    lambda *arguments: without_autocast(_forward, *arguments),
    lambda needs_x, grad, *arguments: without_autocast(_backward, grad, needs_x, *arguments),
    reference.expected_gaussian_log_likelihood,
    inputs=slice(0, 6),
    num_arguments=6,
)


def _column_norms(weight: Tensor, log_sigma2: Tensor) -> Tensor:
    """Σ_i W_ij² / σ_i²: (M, D, K), (M or 1, N or 1, D or 1) -> (M, N or 1, K), in float64."""
    precision, squares = (-log_sigma2.double()).exp(), weight.double().square()
    if precision.shape[-1] == 1:
        return precision * squares.sum(1, keepdim=True)
    return precision @ squares


def _variance_gradients(
    grad: Tensor, logvar: Tensor, weight: Tensor, log_sigma2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of -½ Σ_ij v_nj W_ij² / σ_ni² for logvar, weight and, per model, log_sigma2, in float64."""
    precision, wide = (-log_sigma2.double()).exp(), weight.double()
    # ∂ / ∂(the column norms)
    pull = -0.5 * grad.double().unsqueeze(-1) * logvar.double().exp()
    grad_logvar = pull * _column_norms(weight, log_sigma2)
    if precision.shape[1] == 1:
        pull = pull.sum(1, keepdim=True)
    if precision.shape[-1] == 1:
        grad_squares = (precision * pull).sum(1, keepdim=True)
        grad_precision = (pull * wide.square().sum(1, keepdim=True)).sum(-1, keepdim=True)
    else:
        grad_squares = precision.mT @ pull
        grad_precision = pull @ wide.square().mT
    return grad_logvar, 2 * wide * grad_squares, -precision * grad_precision
