"""Probabilistic PCA by maximum likelihood in closed form (Lucas et al. 2019, section 4.1).

    p(x) = N(μ, C),  C = W Wᵀ + σ² I

with the sample mean μ, W = U (Λ - σ² I)^½ from the K largest eigenvalues of the biased covariance and σ² the
mean of the other D - K. Its density is that of `lineavae.linear.closed_forms.Marginal`.
"""

# ruff: noqa: N803 (X is scikit-learn's name)

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from lineavae._arguments import check_real, check_whole
from lineavae.linear._blocks import blocks, remainder_of, to_float64
from lineavae.linear.closed_forms import Marginal
from lineavae.linear.moments import Moments, check_unexplained

# Part of σ by which float64 may round samples of more digits than it has.
_EXACT = 1e-9

# What the methods take, and give back in kind.
Array = NDArray[np.float64] | Tensor


class PPCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Probabilistic PCA: a Gaussian of low rank plus isotropic noise, fitted by maximum likelihood.

    A scikit-learn estimator whose methods also take tensors on any device that has float64. For a tensor they
    return a tensor on its device, for everything else a NumPy array; in float64, in which they compute. What
    does not depend on an argument, the fitted attributes included, is of the kind of the data of the fit.

    Parameters
    ----------
    n_components : int, optional
        Latent dimensions K, 1 <= K < rank of the covariance; with a fixed noise, 1 <= K <= min(D, N - 1). By
        default as many as the likelihood can use: the rank less one, or the number of eigenvalues above a
        fixed noise, at least one.
    noise_variance : float, optional
        Noise σ² > 0 to hold fixed. W then has zero columns, collapsed for good, for the eigenvalues <= σ². By
        default the noise of maximum likelihood.

    Attributes
    ----------
    mean_ : (D,)
        Mean of the data.
    weight_ : (D, K)
        W = U (Λ - σ² I)^½, columns in descending order of eigenvalue.
    components_ : (K, D)
        Unit principal directions, also where W has zero columns. The entry of largest magnitude of each is
        positive, the first one of several that are equal up to 1e-6.
    explained_variance_ : (K,)
        The K largest eigenvalues of the biased covariance.
    noise_variance_ : float
        Noise σ².
    n_components_ : int
        Latent dimensions K, zero columns included.
    n_samples_ : int or float
        Number of samples, or the total weight of weighted moments.
    n_features_in_ : int
        Number of features D.
    feature_names_in_ : (D,)
        Names of the features, if the data had any.

    See Also
    --------
    sklearn.decomposition.PCA : Its ``score`` uses the covariance over N - 1, and so misses the maximum.

    References
    ----------
    Tipping and Bishop (1999). Probabilistic principal component analysis. JRSS B 61.
    Lucas, Tucker, Grosse and Norouzi (2019). Don't blame the ELBO! Section 4.1 and appendix A.

    Examples
    --------
    >>> import numpy as np
    >>> from lineavae.linear.ppca import PPCA
    >>> data = np.array([[8.0, 6.0], [-8.0, -6.0], [-3.0, 4.0], [3.0, -4.0]])
    >>> ppca = PPCA(n_components=1).fit(data)
    >>> ppca.components_.round(6), ppca.explained_variance_.round(6), round(ppca.noise_variance_, 6)
    (array([[0.8, 0.6]]), array([50.]), 12.5)
    >>> round(ppca.score(data), 4)
    -6.0568
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "noise_variance": [Interval(Real, 0, None, closed="neither"), None],
    }

    def __init__(self, n_components: int | None = None, noise_variance: float | None = None) -> None:
        self.n_components = n_components
        self.noise_variance = noise_variance

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def fit(self, X: ArrayLike | Tensor | Moments, y: None = None) -> PPCA:
        """Fit the model.

        Parameters
        ----------
        X
            Samples (N, D), or their moments.
        y
            Ignored.

        Returns
        -------
        PPCA
            This estimator.

        Raises
        ------
        TypeError
            X is masked, on a device without float64, sparse or complex; a parameter is a bool.
        ValueError
            X has a NaN or an infinity, or too few samples; a parameter is out of its range; the rank of the
            covariance is too small for the components and a positive noise; float64 loses the noise beside
            the largest eigenvalue.
        """
        for name in ("n_components", "noise_variance"):
            value = getattr(self, name)
            if isinstance(value, bool):  # which Python counts among the numbers
                raise TypeError(f"PPCA: {name} must be a number or None, got {value}")
        moments = self._validate_moments(X)
        leading = None
        if self.n_components is not None and self.noise_variance is None:
            leading = moments._leading_eigenpairs(int(self.n_components))
        if leading is None:
            eigenvalues, eigenvectors = moments.eigh()
            latent_dim, noise_variance = self._choose_dimensions(eigenvalues, moments)
            if self.noise_variance is None:
                rounding = moments._eigenvalue_rounding(eigenvalues, eigenvectors)
                check_unexplained("PPCA", eigenvalues, rounding, slice(latent_dim, None))
            kept, directions = eigenvalues[:latent_dim], eigenvectors[:, :latent_dim]
        else:
            kept, rest, directions = leading
            latent_dim, noise_variance = len(kept), _mean_of_rest(rest, len(kept), moments)
        weight = directions * (kept - noise_variance).clamp_min(0).sqrt()
        self.mean_ = _in_kind_of(X, moments.sample_mean)
        self.weight_ = _in_kind_of(X, weight)
        self.components_ = _in_kind_of(X, directions.mT.contiguous())
        self.explained_variance_ = _in_kind_of(X, kept)
        self.noise_variance_ = noise_variance
        self.n_components_ = latent_dim
        self.n_samples_ = moments.num_samples
        return self

    def transform(self, X: ArrayLike | Tensor) -> Array:
        """Mean of the posterior over the latents, M⁻¹ Wᵀ (x - μ): (N, D) -> (N, K)."""
        return self.posterior(X)[0]

    def posterior(self, X: ArrayLike | Tensor) -> tuple[Array, Array]:
        """Posterior over the latents, N(M⁻¹ Wᵀ (x - μ), σ² M⁻¹).

        Parameters
        ----------
        X
            Samples, (N, D).

        Returns
        -------
        mean
            (N, K).
        covariance
            (K, K), the same for all samples.
        """
        samples, model = self._validate_samples(X)
        means = self._in_blocks(samples, model.posterior_mean)
        return _in_kind_of(X, means), _in_kind_of(X, model.posterior_covariance())

    def inverse_transform(self, X: ArrayLike | Tensor) -> Array:
        """Mean of the samples given their latents, W z + μ: (N, K) -> (N, D)."""
        check_is_fitted(self)
        check_whole("PPCA.inverse_transform", "X", X)
        given = X if isinstance(X, Tensor) else check_array(X, input_name="X")
        check_real("PPCA.inverse_transform", "X", given)
        latents = _tensor(given)
        if latents.ndim != 2 or latents.shape[1] != self.n_components_:
            raise ValueError(
                f"PPCA.inverse_transform: X must have shape (N, K) with K={self.n_components_}, "
                f"got {tuple(latents.shape)}"
            )
        model = self._model(latents.device)
        return _in_kind_of(X, latents @ model.weight.mT + model.mean)

    def score_samples(self, X: ArrayLike | Tensor) -> Array:
        """Log-density log p(x) of each sample in nats: (N, D) -> (N,)."""
        samples, model = self._validate_samples(X)
        return _in_kind_of(X, self._in_blocks(samples, model.log_density))

    def score(self, X: ArrayLike | Tensor | Moments, y: None = None) -> float:
        """Average log-density in nats per sample, of samples (N, D) or of the data that moments summarise.

        -½ (D log 2π + log det C + tr(C⁻¹ S)),  S = S_x̄ + (x̄ - μ)(x̄ - μ)ᵀ
        """
        if not isinstance(X, Moments):
            return float(self.score_samples(X).mean())
        check_is_fitted(self)
        self._validate_moments(X, reset=False)
        return self._model(X.device).mean_log_density(X).item()

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> Array:
        """Draw samples from the model: (n_samples, D).

        Parameters
        ----------
        n_samples
            Number of samples, >= 1.
        random_state
            Seed or generator, as everywhere in scikit-learn.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"PPCA.sample: n_samples must be at least 1, got {n_samples}")
        random = check_random_state(random_state)
        model = self._model()
        latents = _tensor(random.standard_normal((n_samples, self.n_components_)), model.mean.device)
        noise = _tensor(random.standard_normal((n_samples, self.n_features_in_)), model.mean.device)
        samples = latents @ model.weight.mT + model.mean + math.sqrt(self.noise_variance_) * noise
        return _in_kind_of(self.mean_, samples)

    def get_covariance(self) -> Array:
        """Covariance of the model, C = W Wᵀ + σ² I: (D, D)."""
        check_is_fitted(self)
        return _in_kind_of(self.mean_, self._model().covariance())

    def get_precision(self) -> Array:
        """Inverse of the covariance of the model, (I - W M⁻¹ Wᵀ) / σ²: (D, D)."""
        check_is_fitted(self)
        return _in_kind_of(self.mean_, self._model().inverse_covariance())

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def _choose_dimensions(self, eigenvalues: Tensor, moments: Moments) -> tuple[int, float]:
        """Choose K and σ² from the eigenvalues of the covariance, or say why there is no such model."""
        shape = f"n_samples = {moments.num_samples}, n_features = {moments.num_features}"
        if self.noise_variance is None:
            rank = moments.rank
            if rank < 2:
                raise ValueError(
                    "PPCA: X must have variance left for the noise beside one component, "
                    f"unless noise_variance is given; got a covariance of rank {rank} with {shape}"
                )
            largest = usable = rank - 1
            rule = "the rank of the covariance less one, for the noise, unless noise_variance is given"
        else:
            largest = len(eigenvalues)
            usable = int((eigenvalues > self.noise_variance).sum())
            rule = "min(n_features, n_samples - 1)"
        latent_dim = max(usable, 1) if self.n_components is None else int(self.n_components)
        if latent_dim > largest:
            raise ValueError(
                f"PPCA: n_components must be at most {largest} ({rule}), got {latent_dim} with {shape}"
            )
        if self.noise_variance is not None:
            return latent_dim, float(self.noise_variance)
        return latent_dim, _mean_of_rest(eigenvalues[latent_dim:].sum().item(), latent_dim, moments)

    def _model(self, device: torch.device | None = None) -> Marginal:
        return Marginal(*(_tensor(v, device) for v in (self.mean_, self.weight_, self.noise_variance_)))

    def _validate_moments(self, X: ArrayLike | Tensor | Moments, *, reset: bool = True) -> Moments:
        """Give the moments of X, whose features become, or must be, those of the estimator."""
        if isinstance(X, Moments):
            validate_data(self, X.sample_mean.unsqueeze(0), reset=reset, skip_check_array=True)
            return X
        return Moments.from_data(self._validate(X, reset=reset))

    def _validate_samples(self, X: ArrayLike | Tensor) -> tuple[Array, Marginal]:
        """Give the samples, and the model on their device."""
        check_is_fitted(self)
        samples = self._validate(X, reset=False)
        return samples, self._model(samples.device if isinstance(samples, Tensor) else None)

    def _in_blocks(self, samples: Array, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a function of float64 rows, a block of which is held at a time."""
        results, start = torch.empty(0), 0
        for block in blocks(samples):
            rows = to_float64(block)
            if not rows.isfinite().all():
                raise ValueError("PPCA: X must be finite, got a NaN or an infinity")
            rounding = remainder_of(block, rows)
            if rounding is not None and rounding.abs().max() > _EXACT * math.sqrt(self.noise_variance_):
                raise ValueError(
                    f"PPCA: X must fit in float64 up to {_EXACT:g} of the noise σ, "
                    f"got numbers that it rounds by up to {rounding.abs().max().item():g}; "
                    "subtract one row from all, for fit too"
                )
            part = function(rows)
            if start == 0:
                results = part.new_empty(len(samples), *part.shape[1:])
            results[start : start + len(part)] = part
            start += len(part)
        return results

    def _validate(self, X: ArrayLike | Tensor, *, reset: bool) -> Array:
        """Check samples as scikit-learn does, but leave a tensor the tensor it is."""
        check_whole("PPCA", "X", X)
        if isinstance(X, Tensor) and (X.ndim != 2 or not len(X)):
            raise ValueError(f"PPCA: X must have shape (N, D) with N >= 1, got {tuple(X.shape)}")
        samples: Array = validate_data(
            self,
            X,
            reset=reset,
            skip_check_array=isinstance(X, Tensor),
            ensure_all_finite=False,  # what follows finds a NaN as it reads
        )
        check_real("PPCA", "X", samples)  # scikit-learn lets dates through
        return samples


def _mean_of_rest(total: float, latent_dim: int, moments: Moments) -> float:
    """Give the best σ², the mean of the D - K eigenvalues not kept (Lucas et al. 2019, equation 7)."""
    return total / (moments.num_features - latent_dim)


def _tensor(values: ArrayLike | Tensor, device: torch.device | None = None) -> Tensor:
    """Give values as a float64 tensor without gradient, on their own device by default."""
    if isinstance(values, Tensor):
        return values.detach().to(device, torch.float64)
    # a copy, which has neither negative strides nor another byte order
    return torch.from_numpy(np.array(values, np.float64)).to(device)


def _in_kind_of(example: object, result: Tensor) -> Array:
    """Give a result as a tensor where ``example`` is of torch, else as a NumPy array."""
    return result if isinstance(example, Tensor | Moments) else result.numpy()
