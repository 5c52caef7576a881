"""The ELBO of a linear VAE as a function of its parameters: sampled, exact, and fast in a training loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lineavae._noise import standard_normal
from lineavae._terms import gaussian_term, weighted
from lineavae.linear.moments import Moments
from lineavae.linear.parameters import LinearParameters
from lineavae.ops import (
    gaussian_kl,
    linear_vae_elbo,
    linear_vae_elbo_from_factor,
    linear_vae_elbo_from_moments,
)
from lineavae.ops._differentiable import raw
from lineavae.ops._dispatch import has_native


def encode(parameters: LinearParameters, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means V (x - μ) and log-variances log d of q(z|x): (N, D) -> (N, K), (N, K)."""
    mean = (x - parameters.mu) @ parameters.encoder.mT
    return mean, parameters.log_d.expand_as(mean)


def stochastic_elbo(
    parameters: LinearParameters,
    x: Tensor,
    num_draws: int,
    generator: torch.Generator | None,
    beta: Tensor | float,
) -> Tensor:
    """Unbiased estimate of the ELBO of each sample: see `LinearVAE.stochastic_elbo`."""
    mean, logvar = encode(parameters, x)
    noise = standard_normal((num_draws, *mean.shape), mean, generator)
    z = mean + (0.5 * logvar).exp() * noise
    residual = x - (z @ parameters.weight.mT + parameters.mu)
    distortion = residual.square().sum(-1).mean(0)
    reconstruction = gaussian_term(distortion, parameters.log_sigma2, parameters.num_features)
    return reconstruction - weighted(beta, gaussian_kl(mean, logvar))


def exact_elbo(parameters: LinearParameters, moments: Moments, beta: Tensor | float = 1.0) -> Tensor:
    """Mean ELBO over the data in float64, without the cancellation of tr S - tr(...) of the moments' form.

    With S_x̄ = R Rᵀ it is the ELBO at x̄ plus what each column r of R changes, all of them squares: the ELBO
    at μ + r less that at μ.
    """
    weight, encoder, mu, log_d, log_sigma2 = parameters.to(torch.float64)
    mean, root = moments.sample_mean.to(mu), moments._root.to(mu)
    scale = (log_sigma2, beta.double() if isinstance(beta, Tensor) else beta)
    columns = torch.nn.functional.pad(root, (1, 0)).mT
    # the terms of log d are the same at all columns, and may not fit
    at_columns = linear_vae_elbo(columns, weight, encoder, torch.zeros_like(mean), log_d.clamp_max(0), *scale)
    at_mean = linear_vae_elbo(mean.unsqueeze(0), weight, encoder, mu, log_d, *scale)
    return at_mean.squeeze(0) + (at_columns[1:] - at_columns[0]).sum()


class MeanELBO:
    """Mean ELBO over a dataset as a function of the parameters alone, in their dtype: for a training loop.

    The statistics are checked and cast once, to the dtype and device of ``like``. ``num_features`` counts
    features that were left out as constant, too.
    """

    def __init__(
        self, moments: Moments, like: Tensor, *, beta: float = 1.0, num_features: int | None = None
    ) -> None:
        self._operator: Callable[..., Tensor]
        factor = moments._factor
        if factor is not None and 2 * factor.shape[1] <= factor.shape[0]:  # 8 D r K flops against 4 D² K
            self._operator, spread = linear_vae_elbo_from_factor, factor
        else:
            self._operator, spread = linear_vae_elbo_from_moments, moments.covariance
        self._statistics = moments.sample_mean.to(like), spread.to(like)
        self._num_features = num_features or moments.num_features
        self._beta = beta
        # for the raw operators, which take models along the first dimension
        op = self._operator.__name__
        self.is_native = has_native(op, like.device)
        self._forward, self._backward = raw(op), raw(f"{op}_backward")
        self._raw_statistics = [statistic.unsqueeze(0) for statistic in self._statistics]
        self._raw_beta = like.new_full((1,), beta)
        self._downwards = like.new_full((1,), -1)

    def __call__(self, parameters: LinearParameters) -> Tensor:
        """Give the mean ELBO, (), differentiable."""
        return self._operator(*self._statistics, *parameters, self._beta, num_features=self._num_features)

    def loss(self, parameters: LinearParameters) -> tuple[Tensor, LinearParameters]:
        """Give the negative mean ELBO and its gradients, by the native kernels alone."""
        model = [parameter.detach().unsqueeze(0) for parameter in parameters]
        arguments = (*self._raw_statistics, *model, self._raw_beta)
        elbo, *kept = self._forward(*arguments, self._num_features)
        gradients = self._backward(self._downwards, *arguments, *kept, self._num_features)
        return -elbo[0], LinearParameters(*(gradient[0] for gradient in gradients))
