"""Analytic ELBO of the linear VAE, averaged over a dataset, from its mean and covariance."""

from __future__ import annotations

from torch import Tensor

from lineavae import reference
from lineavae.ops._statistics import differentiable_statistics, statistics_elbo

_Function = differentiable_statistics("linear_vae_elbo_from_moments", reference.linear_vae_elbo_from_moments)


def linear_vae_elbo_from_moments(
    sample_mean: Tensor,
    covariance: Tensor,
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
    """Mean analytic ELBO of the linear VAE over a dataset, from its mean and covariance, in nats.

    With S = covariance + (x̄-μ)(x̄-μ)ᵀ, B = V S, M = WᵀW and P = B Vᵀ:

        T = Σ_j d_j M_jj + <M, P> - 2 <B, Wᵀ> + tr S
        ELBO / N = -T / (2σ²) - (D/2) log(2πσ²) - (β/2) (Σ_j (d_j - log d_j - 1) + tr P)

    One evaluation with its gradient costs 4 D² K + 8 D K² flops, however many samples the dataset has.

    Parameters
    ----------
    sample_mean
        Mean x̄ of the data, (*models, D). All tensors share one dtype and device.
    covariance
        Biased covariance of the data about x̄, symmetric, (*models, D, D).
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
    >>> from lineavae.ops import linear_vae_elbo_from_moments
    >>> weight = torch.tensor([[1.0], [0.0]], requires_grad=True)
    >>> elbo = linear_vae_elbo_from_moments(
    ...     torch.zeros(2), torch.diag(torch.tensor([2.0, 1.0])),
    ...     weight, torch.tensor([[0.5, 0.0]]), torch.zeros(2), torch.tensor([0.5]).log(), torch.tensor(0.0),
    ... )
    >>> elbo
    tensor(-3.1845, grad_fn=<...>)
    """
    return statistics_elbo(
        "linear_vae_elbo_from_moments",
        _Function,
        reference.linear_vae_elbo_from_moments,
        "covariance",
        covariance,
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
