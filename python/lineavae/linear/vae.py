"""The linear VAE: its ELBO without and with sampling, its exact likelihood, and its closed-form optima."""

from __future__ import annotations

import math

import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from lineavae._arguments import check_integer, check_number
from lineavae.linear import elbo, training
from lineavae.linear.closed_forms import (
    Marginal,
    optimal_encoder,
    orthonormal_basis,
    principal_axes,
    with_optimal_encoder,
)
from lineavae.linear.module import LinearModule
from lineavae.linear.moments import Moments, check_features, with_fixed_signs
from lineavae.linear.parameters import LinearParameters
from lineavae.linear.ppca import PPCA
from lineavae.ops import linear_vae_elbo


class LinearVAE(LinearModule):
    """Linear VAE of Lucas et al. (2019), equation 9.

    The model is p(x|z) = N(W z + μ, σ² I) with prior p(z) = N(0, I), the posterior is
    q(z|x) = N(V (x - μ), diag d) with one d for all x. The decoder is that of probabilistic PCA, so the
    likelihood, its maximum and its gap to the ELBO are closed forms.

    Parameters
    ----------
    num_features
        Observed dimensions D.
    latent_dim
        Latent dimensions K.
    generator
        Source of the initial parameters, on their device; torch's global one if None.
    dtype, device
        Of the parameters; torch's defaults if None.

    Attributes
    ----------
    weight : nn.Parameter
        Decoder W, (D, K).
    encoder : nn.Parameter
        Encoder V, (K, D).
    mu : nn.Parameter
        Model mean μ, (D,).
    log_d : nn.Parameter
        Log of the posterior variances d, (K,).
    log_sigma2 : nn.Parameter
        Log of the observation noise σ², ().

    Notes
    -----
    The initialisation is that of the paper's released code: Glorot-uniform W, V, μ and log d, and σ² = 1.

    Calling the module is calling `elbo`.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import LinearVAE
    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(100, 3, generator=generator) * torch.tensor([3.0, 1.0, 1.0])
    >>> vae = LinearVAE(num_features=3, latent_dim=1, generator=generator)
    >>> history = vae.fit(x, steps=1000, lr=0.01, progress=False)
    >>> gap = vae.log_marginal_likelihood(x).mean() - vae.elbo(x).mean()
    >>> bool(abs(gap) < 0.01)
    True
    """

    _kind = "LinearVAE"

    log_sigma2: nn.Parameter

    fit = training.fit

    def __init__(
        self,
        num_features: int,
        latent_dim: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        num_features = check_integer("LinearVAE", "num_features", num_features, minimum=1)
        latent_dim = check_integer("LinearVAE", "latent_dim", latent_dim, minimum=1)
        self.weight = nn.Parameter(torch.empty(num_features, latent_dim, dtype=dtype, device=device))
        self.encoder = nn.Parameter(torch.empty(latent_dim, num_features, dtype=dtype, device=device))
        self.mu = nn.Parameter(torch.empty(num_features, dtype=dtype, device=device))
        self.log_d = nn.Parameter(torch.empty(latent_dim, dtype=dtype, device=device))
        self.log_sigma2 = nn.Parameter(torch.empty((), dtype=dtype, device=device))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial parameters anew: Glorot-uniform W, V, μ and log d, and σ² = 1."""
        for parameter in (self.weight, self.encoder, self.mu, self.log_d):
            # a vector's fans are both its length, as in the released code
            fans = sum(parameter.shape) if parameter.ndim == 2 else 2 * parameter.numel()
            limit = math.sqrt(6 / fans)
            parameter.uniform_(-limit, limit, generator=generator)
        self.log_sigma2.zero_()

    def forward(self, data: Tensor | Moments, beta: Tensor | float = 1.0) -> Tensor:
        """Return ``elbo(data, beta)``."""
        return self.elbo(data, beta)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior means V (x - μ) and log-variances log d of q(z|x): (N, D) -> (N, K), (N, K).

        The log-variances are the same in every row, and share its memory.
        """
        self._check_samples("encode", x)
        return elbo.encode(LinearParameters.of(self), x)

    def elbo(self, data: Tensor | Moments, beta: Tensor | float = 1.0) -> Tensor:
        """Analytic ELBO, in nats: of each sample, or its mean over the data that the moments summarise.

        Parameters
        ----------
        data
            Samples (N, D) of the module's dtype and device, or their moments.
        beta
            Weight of the KL term.

        Returns
        -------
        Tensor
            (N,) for samples, in the module's dtype; () for moments, in float64 whatever that is, so that it
            can be judged beside its bound. Differentiable.

        Notes
        -----
        Lucas et al. (2019), equations 15-20, with every constant; the formulas are at
        `lineavae.ops.linear_vae_elbo` and `lineavae.ops.linear_vae_elbo_from_moments`. From
        moments it is a sum of squares over a factor of the covariance, without cancellation, while the
        operator is off by the rounding of tr S / σ². `fit` uses the operator, which takes a third of
        the time in float32.
        """
        _check_data("elbo", data)
        parameters = LinearParameters.of(self)
        if isinstance(data, Moments):
            check_features("LinearVAE.elbo", "data", data, self.num_features)
            return elbo.exact_elbo(parameters, data, beta)
        return linear_vae_elbo(data, *parameters, beta)

    def stochastic_elbo(
        self,
        x: Tensor,
        num_draws: int = 1,
        generator: torch.Generator | None = None,
        beta: Tensor | float = 1.0,
    ) -> Tensor:
        """Unbiased estimate of the ELBO of each sample, in nats: (N, D) -> (N,).

        The reconstruction term is sampled by reparameterisation, the KL term is analytic.

        Parameters
        ----------
        x
            Samples (N, D) of the module's dtype and device.
        num_draws
            Draws of z per sample, averaged over.
        generator
            Source of the draws, on the module's device; torch's global one if None.
        beta
            Weight of the KL term.

        Notes
        -----
        The estimator of Kingma and Welling (2014) that Lucas et al. (2019) compare with in their figure 3.
        """
        num_draws = check_integer("LinearVAE.stochastic_elbo", "num_draws", num_draws, minimum=1)
        self._check_samples("stochastic_elbo", x)
        return elbo.stochastic_elbo(LinearParameters.of(self), x, num_draws, generator, beta)

    def log_marginal_likelihood(self, data: Tensor | Moments) -> Tensor:
        """Exact log p(x) of the decoder, which is that of probabilistic PCA, in nats.

        Parameters
        ----------
        data
            Samples (N, D) of any floating dtype on the module's device, or their moments.

        Returns
        -------
        Tensor
            (N,) for samples, the mean () for moments; float64, differentiable. The encoder does not enter.

        Notes
        -----
        With r = x - μ, M̃ = WᵀW + σ² I and V* = M̃⁻¹ Wᵀ, the best encoder of this decoder, it is
        -½ (‖r - W V* r‖² / σ² + ‖V* r‖² + log det M̃ + (D - K) log σ² + D log 2π): Woodbury's
        identity and the matrix determinant lemma, without the cancellation that they suffer at small σ²; from
        moments as from samples. With K >= D, a σ² below the rounding of WᵀW is lost in M̃.

        Examples
        --------
        >>> import torch
        >>> from lineavae.linear import LinearVAE
        >>> vae = LinearVAE(2, 1)
        >>> _ = torch.nn.init.zeros_(vae.weight), torch.nn.init.zeros_(vae.mu)
        >>> vae.log_marginal_likelihood(torch.zeros(1, 2)).detach()
        tensor([-1.8379], dtype=torch.float64)
        """
        _check_data("log_marginal_likelihood", data)
        marginal = Marginal(self.mu.double(), self.weight.double(), self.log_sigma2.double().exp())
        if isinstance(data, Moments):
            check_features("LinearVAE.log_marginal_likelihood", "data", data, self.num_features)
            return marginal.mean_log_density(data)
        self._check_samples("log_marginal_likelihood", data)
        return marginal.log_density(data.double())

    @torch.no_grad()
    def optimal_encoder_(self, beta: float = 1.0) -> LinearVAE:
        """Set V and d to the maximisers of the ELBO given W and σ², whatever the data.

        V* = (WᵀW + βσ² I)⁻¹ Wᵀ and d* = βσ² / (diag(WᵀW) + βσ²): Lucas et al. (2019), appendix C.2, with
        the weight β of the KL term, which must be positive.
        """
        beta = check_number("LinearVAE.optimal_encoder_", "beta", beta, above=0)
        encoder, log_d, _ = optimal_encoder(self.weight.double(), beta * self.log_sigma2.double().exp())
        self.encoder.copy_(encoder)
        self.log_d.copy_(log_d)
        return self

    @torch.no_grad()
    def optimal_noise_(self, data: Tensor | Moments) -> LinearVAE:
        """Set σ² to the maximiser of the ELBO of ``data`` given all other parameters: T / D.

        T is the mean expected squared error E‖x - W z - μ‖², the same for every β.
        """
        moments = data if isinstance(data, Moments) else Moments.from_data(data)
        check_features("LinearVAE.optimal_noise_", "data", moments, self.num_features)
        weight, encoder, mu, log_d, _ = LinearParameters.of(self).to(torch.float64)
        root = moments._root_about(mu)
        residual = root - weight @ (encoder @ root)
        distortion = residual.square().sum() + (log_d.exp() * weight.square().sum(0)).sum()
        if not distortion > 0:
            raise ValueError(
                "LinearVAE.optimal_noise_: the model must leave some squared error, "
                f"else no finite σ² is best; got {distortion.item()}"
            )
        self.log_sigma2.copy_((distortion / self.num_features).log())
        return self

    @torch.no_grad()
    def canonicalize_(self) -> LinearVAE:
        """Rotate the latent space so that the columns of W are orthogonal, longest first, and set V* and d*.

        W becomes U L of its singular value decomposition W = U L Rᵀ. The likelihood stays as it is, and the
        ELBO of any data rises to it: this is the proof of theorem 1 of Lucas et al. (2019) as a method. The
        largest entry of each column is positive.
        """
        directions, lengths = principal_axes(self.weight.double())
        self.weight.zero_()  # columns beyond the number of features stay zero
        self.weight[:, : len(lengths)] = (directions * lengths).to(self.weight)
        return self.optimal_encoder_()

    @torch.no_grad()
    def principal_components(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Principal components of the data within the span of the decoder's columns (Rayleigh-Ritz).

        Training finds the principal subspace long before it finds the axes in it, since the ELBO is nearly
        flat along rotations. With Q an orthonormal basis of the span of W, the axes are Q times the
        eigenvectors of QᵀSQ.

        Parameters
        ----------
        moments
            Moments of the data.

        Returns
        -------
        eigenvalues : Tensor
            (r,), descending, float64: the variance of the data along each direction. r is the rank of W: K
            unless columns are zero or linearly dependent.
        directions : Tensor
            (D, r), float64, orthonormal columns; the largest entry of each is positive.
        """
        check_features("LinearVAE.principal_components", "moments", moments, self.num_features)
        basis = orthonormal_basis(self.weight)
        explained = basis.mT @ moments._root.to(basis)
        padded = torch.nn.functional.pad(explained, (0, len(explained)))  # of low rank there are r as well
        rotation, singular_values, _ = torch.linalg.svd(padded, full_matrices=False)
        return singular_values.square(), with_fixed_signs(basis @ rotation)

    @classmethod
    def from_parameters(cls, parameters: LinearParameters) -> LinearVAE:
        """Make the module with copies of these parameters, of their dtype and on their device."""
        weight = parameters.weight
        model = cls(*weight.shape, dtype=weight.dtype, device="meta").to_empty(device=weight.device)
        with torch.no_grad():
            for own, given in zip(LinearParameters.of(model), parameters, strict=True):
                own.copy_(given)
        return model

    @classmethod
    def from_ppca(
        cls, ppca: PPCA, *, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> LinearVAE:
        """Make the linear VAE with the decoder of a fitted `PPCA` and the best encoder for it.

        Its ELBO is the likelihood of the PPCA, which is the global maximum of both where the PPCA was fitted
        by maximum likelihood: theorem 1 of Lucas et al. (2019).

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The PPCA is not fitted.
        ValueError
            Its noise variance is 0: log σ² is then not a number.
        """
        check_is_fitted(ppca)
        if not ppca.noise_variance_ > 0:
            raise ValueError(
                f"LinearVAE.from_ppca: noise_variance_ must be positive, got {ppca.noise_variance_}"
            )
        density = ppca._model(torch.get_default_device() if device is None else torch.device(device))
        parameters = with_optimal_encoder(density.weight, density.mean, density.sigma2.log())
        return cls.from_parameters(parameters.to(dtype))

    @torch.no_grad()
    def to_ppca(self) -> PPCA:
        """Give the decoder as a fitted `PPCA`, with the same density.

        Its ``weight_`` is that of `canonicalize_`, at most D columns of it, and its
        ``explained_variance_`` the variance of the model along them. It has no ``n_samples_``: a model does
        not know its data.
        """
        directions, lengths = principal_axes(self.weight.double())
        noise_variance = self.log_sigma2.double().exp()
        ppca = PPCA(n_components=len(lengths))
        ppca.mean_ = self.mu.detach().to("cpu", torch.float64, copy=True).numpy()
        ppca.weight_ = (directions * lengths).cpu().numpy()
        ppca.components_ = directions.mT.contiguous().cpu().numpy()
        ppca.explained_variance_ = (lengths.square() + noise_variance).cpu().numpy()
        ppca.noise_variance_ = noise_variance.item()
        ppca.n_components_ = len(lengths)
        ppca.n_features_in_ = self.num_features
        return ppca


def _check_data(method: str, data: Tensor | Moments) -> None:
    if not isinstance(data, Tensor | Moments):
        raise TypeError(
            f"LinearVAE.{method}: data must be a torch.Tensor or Moments, got {type(data).__name__}"
        )
