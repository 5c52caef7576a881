"""Analytic ELBO of the linear VAE, one value per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from lineavae import _ext, reference
from lineavae.ops._differentiable import differentiable, raw, refuse_autograd, register_autograd
from lineavae.ops._dispatch import has_native, without_autocast
from lineavae.ops._linear import check_parameters, flatten_parameters
from lineavae.ops._models import broadcast_models, flatten_models, flatten_shared, sum_over_shared
from lineavae.ops._registration import register_rules
from lineavae.ops._tensors import check_tensors, widen
from lineavae.ops._weights import check_beta

_ext.load()
_backward_op = raw("linear_vae_elbo_backward")


def linear_vae_elbo(
    x: Tensor,
    weight: Tensor,
    encoder: Tensor,
    mu: Tensor,
    log_d: Tensor,
    log_sigma2: Tensor,
    beta: Tensor | float = 1.0,
    *,
    check_finite: bool = False,
) -> Tensor:
    """Analytic ELBO of the linear VAE, per sample, in nats.

    The model is p(x|z) = N(W z + μ, σ² I) with prior N(0, I); the posterior is q(z|x) = N(V (x - μ), diag d).
    No sampling: with r = x - μ, h = V r and e = r - W h,

        ELBO(x) = -(‖e‖² + Σ_j d_j ‖w_j‖²) / (2σ²) - (D/2) log(2πσ²) - (β/2) (Σ_j (d_j - log d_j - 1) + ‖h‖²)

    All six gradients are closed forms over thin products: no D x D intermediate exists.

    Parameters
    ----------
    x
        Data, (*models, N, D). All tensors share one dtype and device.
    weight
        Decoder W, (*models, D, K).
    encoder
        Encoder V, (*models, K, D).
    mu
        Model mean μ, (*models, D).
    log_d
        Log of the posterior variances d, (*models, K).
    log_sigma2
        Log of the observation noise σ², (*models,).
    beta
        Weight of the KL term: a number or a tensor broadcastable over models, whose values are looked at with
        ``check_finite`` only; not differentiable.
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
        A shape or device does not fit; beta is a number that is negative or not finite, or a tensor that
        requires grad; with ``check_finite``: it has a negative entry.
    FloatingPointError
        With ``check_finite``: an argument has a NaN or an infinity; the index is named.

    Notes
    -----
    Lucas et al. (2019), equations 15-20, with every constant.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import linear_vae_elbo
    >>> x = torch.zeros(2, 3)
    >>> weight, encoder = torch.zeros(3, 1), torch.zeros(1, 3)
    >>> linear_vae_elbo(x, weight, encoder, torch.zeros(3), torch.zeros(1), torch.tensor(0.0))
    tensor([-2.7568, -2.7568])
    """
    op = "linear_vae_elbo"
    x, *parameters = map(
        widen,
        check_tensors(
            op,
            check_finite,
            x=x,
            weight=weight,
            encoder=encoder,
            mu=mu,
            log_d=log_d,
            log_sigma2=log_sigma2,
        ),
    )
    if x.ndim < 2:
        raise ValueError(f"{op}: x must have shape (*models, N, D), got {tuple(x.shape)}")
    over_models = check_parameters(op, x.shape[-1], *parameters)
    beta = check_beta(op, beta, x, check_finite)
    models = broadcast_models(op, {"x": x.shape[:-2], **over_models, "beta": beta.shape})
    if not has_native(op, x.device):
        return without_autocast(reference.linear_vae_elbo, x, *parameters, beta)
    elbo: Tensor = _LinearVAEELBO.apply(
        flatten_shared(x, models, 2),
        *flatten_parameters(models, *parameters),
        flatten_models(beta, models, 0),
    )[0]
    return elbo.reshape((*models, x.shape[-2]))


def _backward(
    needs_x: bool, grad: Tensor, x: Tensor, weight: Tensor, encoder: Tensor, mu: Tensor, *rest: Tensor
) -> tuple[Tensor | None, ...]:
    log_d, log_sigma2, beta, distortion, centred, code, residual, column_norms = rest
    parameters = (weight, encoder, log_d, log_sigma2, beta)
    grad_code, *gradients = _backward_op(grad, *parameters, distortion, centred, code, residual, column_norms)
    grad_x = None
    if needs_x:
        grad_x = without_autocast(_grad_x, grad, log_sigma2, residual, grad_code, encoder)
        grad_x = sum_over_shared(grad_x, x.shape[0] == 1)
    return grad_x, *gradients


def _grad_x(grad: Tensor, log_sigma2: Tensor, residual: Tensor, grad_code: Tensor, encoder: Tensor) -> Tensor:
    inverse_scale = (-0.5 * log_sigma2).exp()[:, None, None]  # 1 / σ, which has more room than its square
    scaled = residual * (-grad.unsqueeze(-1) * inverse_scale) * inverse_scale
    return torch.baddbmm(scaled, grad_code, encoder)


_LinearVAEELBO = differentiable(
    "linear_vae_elbo",
    raw("linear_vae_elbo"),
    _backward,
    reference.linear_vae_elbo,
    inputs=slice(0, 6),
    num_arguments=7,
)


@torch.library.register_fake("lineavae::linear_vae_elbo")
def _fake(
    x: Tensor, weight: Tensor, encoder: Tensor, mu: Tensor, log_d: Tensor, log_sigma2: Tensor, beta: Tensor
) -> tuple[Tensor, ...]:
    models, num_features, latent_dim = weight.shape
    num_samples = x.shape[1]
    return (
        x.new_empty(models, num_samples),
        x.new_empty(models, num_samples, dtype=torch.float64),
        x.new_empty(models, num_samples, num_features),
        x.new_empty(models, num_samples, latent_dim),
        x.new_empty(models, num_samples, num_features),
        x.new_empty(models, latent_dim),
    )


@torch.library.register_fake("lineavae::linear_vae_elbo_backward")
def _fake_backward(
    grad: Tensor,
    weight: Tensor,
    encoder: Tensor,
    log_d: Tensor,
    log_sigma2: Tensor,
    beta: Tensor,
    distortion: Tensor,
    centred: Tensor,
    code: Tensor,
    residual: Tensor,
    column_norms: Tensor,
) -> tuple[Tensor, ...]:
    models, num_features, latent_dim = weight.shape
    return (
        weight.new_empty(code.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(encoder.shape),
        weight.new_empty(models, num_features),
        weight.new_empty(models, latent_dim),
        weight.new_empty(models),
    )


register_rules("linear_vae_elbo", shared=(0,))
register_rules("linear_vae_elbo_backward")
register_autograd("linear_vae_elbo", _LinearVAEELBO)
refuse_autograd("linear_vae_elbo_backward")
