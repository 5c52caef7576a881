"""Analytic ELBO of the linear VAE, averaged over a dataset, from a factor of its covariance."""

from __future__ import annotations

from torch import Tensor

from lineavae import reference
from lineavae.ops._statistics import differentiable_statistics, statistics_elbo

_Function = differentiable_statistics("linear_vae_elbo_from_factor", reference.linear_vae_elbo_from_factor)


def linear_vae_elbo_from_factor(
    sample_mean: Tensor,
    factor: Tensor,
    weight: Tensor,
    encoder: Tensor,
    mu: Tensor,
    log_d: Tensor,
    log_sigma2: Tensor,
    beta: Tensor | float = 1.0,
    *,
    num_features: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Mean analytic ELBO of the linear VAE over a dataset, from a factor of its covariance, in nats.

    The covariance is F Fᵀ; the formula is that of :func:`linear_vae_elbo_from_moments`. One evaluation with
    its gradient costs 8 D r K + 8 D K² flops, which pays for N < D (F is the centred data / √N, transposed).
    In an eigenbasis, where the data were rotated by the eigenvectors of their covariance, the factor is
    diagonal and the cost falls to 8 D K².

    Parameters
    ----------
    sample_mean
        Mean x̄ of the data, (*models, D). All tensors share one dtype and device.
    factor
        Factor F of the biased covariance about x̄, (*models, D, r) for any r, or (*models, D) for the
        diagonal of a diagonal one; its models are those of sample_mean.
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
    num_features
        The D of the constant (D/2) log(2πσ²). Larger than the D of the tensors where coordinates without
        variance were dropped in which W, V and x̄ - μ are zero; the ELBO is then that of the full model.
    check_finite
        Raise at the first NaN or infinity of an argument instead of propagating it.

    Returns
    -------
    Tensor
        (*models,), the mean over samples; the leading dimensions broadcast, and statistics that all models
        share are not copied. float64 for float64 inputs and float32 for all others.

    Raises
    ------
    TypeError
        An argument is no tensor, or of another dtype.
    ValueError
        A shape or device does not fit; beta is a number that is negative or not finite, or a tensor that
        requires grad; a statistic requires grad; with ``check_finite``: beta has a negative entry.
    FloatingPointError
        With ``check_finite``: an argument has a NaN or an infinity; the index is named.

    Notes
    -----
    Lucas et al. (2019), equations 15-20, averaged over samples, with every constant. The
    distortion T is a difference of terms as large as tr S, so float32 loses about tr S / (D σ²) times its
    precision: use float64 for noise far below the data's variance.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import linear_vae_elbo_from_factor
    >>> elbo = linear_vae_elbo_from_factor(
    ...     torch.zeros(2), torch.tensor([2.0, 1.0]).sqrt(), torch.tensor([[1.0], [0.0]]),
    ...     torch.tensor([[0.5, 0.0]]), torch.zeros(2), torch.tensor([0.5]).log(), torch.tensor(0.0),
    ... )
    >>> elbo
    tensor(-3.1845)
    """
    return statistics_elbo(
        "linear_vae_elbo_from_factor",
        _Function,
        reference.linear_vae_elbo_from_factor,
        "factor",
        factor,
        sample_mean,
        weight,
        encoder,
        mu,
        log_d,
        log_sigma2,
        beta,
        num_features,
        check_finite,
    )
