"""VAEs with a Gaussian decoder: the ELBO, its value at the best σ², and what one does with a trained one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.utils import _pytree

from lineavae._arguments import check_integer, check_number, check_whole
from lineavae._importance import importance_weighted_bound
from lineavae._noise import standard_normal
from lineavae._terms import weighted
from lineavae.nn.noise import ObservationNoise, check_event
from lineavae.ops import (
    expected_gaussian_log_likelihood,
    free_bits_kl,
    gaussian_kl,
    gaussian_log_likelihood,
    reparameterized_kl,
)
from lineavae.ops._dispatch import without_autocast
from lineavae.ops._tensors import check_posterior, widen

_LOG_2_PI = math.log(2 * math.pi)


class ELBOTerms(NamedTuple):
    """The ELBO of each sample and its parts, in nats.

    Examples
    --------
    >>> import torch
    >>> from lineavae.nn import GaussianVAE
    >>> terms = GaussianVAE(torch.nn.Linear(6, 4), torch.nn.Linear(2, 6))(torch.rand(5, 6))
    >>> bool((terms.elbo == terms.reconstruction - terms.kl).all())
    True
    """

    elbo: Tensor
    """What training maximises, (N,): reconstruction - β KL, or another penalty where asked for."""
    reconstruction: Tensor
    """E log p(x|z), (N,), with every constant."""
    kl: Tensor
    """KL(q(z|x) ‖ p(z)), (N,), neither weighted nor clipped."""
    log_sigma2: Tensor
    """log σ², of the noise's shape; () where there is one σ²."""


# torch.export saves what a model returns by this name
_pytree._register_namedtuple(ELBOTerms, serialized_type_name="lineavae.nn.ELBOTerms")


class TunedELBO(NamedTuple):
    """The ELBO with the σ² that is best for given encoder and decoder.

    Examples
    --------
    >>> import torch
    >>> from lineavae.nn import GaussianVAE
    >>> x = torch.rand(5, 6)
    >>> vae = GaussianVAE(torch.nn.Linear(6, 4), torch.nn.Linear(2, 6))
    >>> vae.sigma2_tuned_elbo([x]).elbo > vae(x).elbo.mean().item()
    True
    """

    elbo: float
    """Nats per sample, at β = 1."""
    reconstruction: float
    kl: float
    sigma2: Tensor
    """Of the noise's shape; () where there is one."""


class GaussianVAE(nn.Module):
    """A VAE with p(x|z) = N(D(z), σ²) and q(z|x) = N(m(x), diag v(x)) (Lucas et al. 2019, section 5).

    Parameters
    ----------
    encoder
        Module that maps x, (N, *event), to a pair of mean and log-variance, (N, K) each, or to one tensor
        (N, 2K) that has them in this order. Posteriors may be spatial: a pair of (N, C, H, W), say, or one
        tensor (N, 2C, H, W). Every element of such a posterior is a latent, one of K = C·H·W.
    decoder
        Module that maps z, of the shape of the mean, to reconstructions with as many elements as x has.
    noise
        The observation noise; by default one learned σ², 1 at first, of shape (1,): ``fully_shard`` takes no
        scalar parameter.
    beta
        Weight of the KL in the ELBO. It stands for another σ², see `sigma2_of_beta`.
    closed_form
        Whether to take the expectation of the reconstruction term in closed form, which a decoder that is an
        ``nn.Linear`` allows, in place of sampling. By default wherever it can be; a ``forward`` of its own
        rules it out, and so does a hook, here or in a later call.

    Raises
    ------
    TypeError
        encoder or decoder is no module, or noise is no `ObservationNoise`.
    ValueError
        beta is negative or not finite; ``closed_form`` is asked for a decoder that is not linear.

    Notes
    -----
    Calling the module is calling `elbo`, so that wrappers such as ``DistributedDataParallel`` and
    ``torch.compile`` serve for training.

    Examples
    --------
    >>> import torch
    >>> from lineavae.nn import GaussianVAE, MLPDecoder, MLPEncoder
    >>> vae = GaussianVAE(MLPEncoder(784, 20), MLPDecoder(20, 784))
    >>> optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    >>> terms = vae(torch.rand(100, 784))
    >>> (-terms.elbo.mean()).backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        noise: ObservationNoise | None = None,
        beta: float = 1.0,
        *,
        closed_form: bool | None = None,
    ) -> None:
        super().__init__()
        noise = ObservationNoise(shape=(1,)) if noise is None else noise
        for name, module, kind in (
            ("encoder", encoder, nn.Module),
            ("decoder", decoder, nn.Module),
            ("noise", noise, ObservationNoise),
        ):
            if not isinstance(module, kind):
                raise TypeError(
                    f"GaussianVAE: {name} must be of type {kind.__name__}, got {type(module).__name__}"
                )
        self.encoder = encoder
        self.decoder = decoder
        self.noise = noise
        self.beta = check_number("GaussianVAE", "beta", beta, at_least=0)
        self.closed_form = _is_linear(decoder) if closed_form is None else closed_form
        if self.closed_form:
            self._linear_decoder()

    def forward(self, x: Tensor, **options: Any) -> ELBOTerms:
        """Give `elbo`, with its options."""
        return self.elbo(x, **options)

    def elbo(
        self,
        x: Tensor,
        *,
        beta: Tensor | float | None = None,
        free_bits: float = 0.0,
        capacity: float | None = None,
        num_draws: int = 1,
        seed: Tensor | int | None = None,
    ) -> ELBOTerms:
        """Give the ELBO of each sample and its parts.

        Parameters
        ----------
        x
            Data, (N, *event), floating.
        beta
            Weight of the KL, in place of the model's: a number, or a tensor () for a weight that changes from
            step to step of a compiled model; the value of a tensor is not checked.
        free_bits
            KL in nats that each latent has for free: its mean over the batch, that of this process, counts as
            at least this much (Kingma et al. 2016). In a spatial posterior, each channel at each position is
            a latent.
        capacity
            Target C of the KL: the penalty is β |KL - C| with the batch's mean KL (Burgess et al. 2018).
        num_draws
            Posterior draws that the reconstruction term is averaged over. In closed form there are none.
        seed
            Fixes the samples, see `reparameterized_kl`.

        Returns
        -------
        ELBOTerms
            float32, or float64 for float64 data, under autocast too.

        Raises
        ------
        TypeError, ValueError
            x is no floating tensor, or not of the noise's shape; the encoder returns no posterior, or one
            that can be read in two ways, or the decoder nothing of x's size; an option is negative or not
            finite, or beta a tensor but not ().
        """
        _check_data(x)
        if beta is None:
            beta = self.beta
        elif not isinstance(beta, Tensor):
            beta = check_number("GaussianVAE", "beta", beta, at_least=0)
        elif beta.ndim:  # of N entries it would weigh samples
            raise ValueError(
                f"GaussianVAE: beta must be a number or a tensor of shape (), got {tuple(beta.shape)}"
            )
        free_bits = check_number("GaussianVAE", "free_bits", free_bits, at_least=0)
        if capacity is not None:
            capacity = check_number("GaussianVAE", "capacity", capacity, at_least=0)
            if free_bits:
                raise ValueError("GaussianVAE: free_bits and capacity exclude each other, got both")
        mean, logvar, latents = self._posterior(x)
        if self.closed_form:
            kl = gaussian_kl(mean, logvar)
            reconstruction, log_sigma2 = self._expected_reconstruction(x, mean, logvar)
        else:
            z, kl = reparameterized_kl(mean, logvar, num_draws=num_draws, seed=seed)
            reconstruction, log_sigma2 = self._sampled_reconstruction(x, z, latents)
        penalty = kl
        if free_bits:
            penalty, _ = free_bits_kl(mean, logvar, free_bits)
        elif capacity is not None:
            penalty = (kl.mean() - capacity).abs()
        return ELBOTerms(reconstruction - weighted(beta, penalty), reconstruction, kl, log_sigma2)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give the posteriors of x: means and log-variances, (N, K) each or spatial.

        Where the encoder returns one tensor, (N, 2K) or (N, 2C, H, W), the mean is the first half of
        dimension 1.

        Raises
        ------
        TypeError, ValueError
            The encoder returns no posterior; or one tensor of three dimensions, which may be (N, 2C, L) or
            (N, L, 2K).
        """
        output = self.encoder(x)
        if isinstance(output, Tensor):
            shape = tuple(output.shape)
            if output.ndim == 3:
                raise ValueError(
                    f"GaussianVAE: the encoder's output {shape} may be (N, 2C, L), mean and log-variance "
                    "along dimension 1, or (N, L, 2K), along the last: let it return the pair of them, "
                    "output.chunk(2, dim=1) or output.chunk(2, dim=-1)"
                )
            if output.ndim < 2 or output.shape[1] % 2:
                raise ValueError(
                    "GaussianVAE: the encoder's output must have shape (N, 2K) or (N, 2C, H, W), mean and "
                    f"log-variance, got {shape}"
                )
            output = output.chunk(2, dim=1)
        if not (isinstance(output, (tuple, list)) and len(output) == 2):
            raise TypeError(
                "GaussianVAE: the encoder must return mean and log-variance, a pair or one tensor (N, 2K), "
                f"got {type(output).__name__}"
            )
        mean, logvar = output
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Give the reconstructions of z, (N, K) or spatial, the means of p(x|z): what the decoder returns."""
        x_hat: Tensor = self.decoder(z)
        return x_hat

    @torch.no_grad()
    def sample(
        self, num_draws: int, latent_dim: int | Sequence[int], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Give what the decoder makes of draws of the prior: means of p(x|z), without observation noise.

        ``latent_dim`` is K, or the shape (C, H, W) of a spatial latent. ``generator``, on the parameters'
        device, fixes the draws. The model is in evaluation mode meanwhile.
        """
        check_integer("GaussianVAE", "num_draws", num_draws, 0)
        sizes = tuple(latent_dim) if isinstance(latent_dim, Sequence) else (latent_dim,)
        for size in sizes:
            check_integer("GaussianVAE", "latent_dim", size, 1)
        like = next(self.decoder.parameters(), self.noise.log_sigma2)
        z = standard_normal((num_draws, *sizes), like, generator)
        with self._evaluating():
            return self.decode(z)

    @torch.no_grad()
    def interpolate(self, start: Tensor, end: Tensor, num_steps: int) -> Tensor:
        """Give reconstructions on the line between the posterior means of two data points, both included.

        From start and end, (N, *event), to (num_steps, N, *reconstruction). The model is in evaluation mode
        meanwhile.
        """
        check_integer("GaussianVAE", "num_steps", num_steps, 2)
        weights = torch.linspace(0, 1, num_steps, dtype=torch.float64).tolist()
        with self._evaluating():
            (first, _), (last, _) = self.encode(start), self.encode(end)
            return torch.stack([self.decode(torch.lerp(first, last, weight)) for weight in weights])

    @torch.no_grad()
    def sigma2_tuned_elbo(
        self, loader: Iterable[Tensor | tuple[Tensor, ...]], *, seed: int | None = None
    ) -> TunedELBO:
        """Give the mean ELBO of all data with the σ² that maximises it, the encoder and decoder as they are.

        σ² = E‖x - D(z)‖²/D, in closed form (Lucas et al. 2019, section 6): this is what tells a model with
        worse latents from one that has only a worse σ². Batches are added in float64; the model is in
        evaluation mode meanwhile.

        Parameters
        ----------
        loader
            Batches of data: tensors (N, *event), or tuples and lists that begin with one.
        seed
            Fixes the posterior samples.

        Raises
        ------
        TypeError
            ``loader`` is a tensor.
        ValueError
            There is no data, or the noise's σ² would be 0: the data are reconstructed without error.
        FloatingPointError
            The squared errors have a NaN or an infinity.
        """
        if isinstance(loader, Tensor):  # whose rows would be taken for batches
            raise TypeError("GaussianVAE: loader must give batches, got a tensor; x.split(1000) gives them")
        num_samples, features, kl = 0, 0, 0.0
        squares = torch.zeros_like(self.noise.log_sigma2, dtype=torch.float64)
        with self._evaluating():
            for index, batch in enumerate(loader):
                x = batch[0] if isinstance(batch, (tuple, list)) else batch
                _check_data(x)
                if len(x) == 0:
                    continue
                mean, logvar, latents = self._posterior(x)
                if self.closed_form:
                    batch_kl = gaussian_kl(mean, logvar)
                    reconstructions: tuple[Tensor, ...] = self._linear_reconstructions(x, mean, logvar)
                else:
                    batch_seed = None if seed is None else seed + index
                    (z,), batch_kl = reparameterized_kl(mean, logvar, seed=batch_seed)
                    reconstructions = (self._reconstruct(x, z, latents),)
                squares += len(x) * self.noise.tuned(x, *reconstructions).double()
                kl += batch_kl.double().sum().item()
                num_samples += len(x)
                features = x[0].numel()
        if num_samples == 0:
            raise ValueError("GaussianVAE: loader must have data, got none")
        sigma2 = squares / num_samples
        if not sigma2.isfinite().all():
            raise FloatingPointError(f"GaussianVAE: the squared errors must be finite, got {sigma2.tolist()}")
        if not (sigma2 > 0).all():
            raise ValueError("GaussianVAE: the data are reconstructed without error, the best sigma2 is 0")
        reconstruction = -0.5 * features * (sigma2.log().mean().item() + _LOG_2_PI + 1)
        kl /= num_samples
        sigma2 = _scalar_if_one(sigma2.to(self.noise.log_sigma2))
        return TunedELBO(reconstruction - kl, reconstruction, kl, sigma2)

    @torch.no_grad()
    def importance_weighted_bound(
        self, x: Tensor, num_draws: int, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Give the bound of Burda et al. (2016) on log p(x), in nats, (N,).

        log 1/S Σ_s p(x|z_s) p(z_s)/q(z_s|x), with S draws of q: the ELBO for one, and closer to the
        likelihood with each. Memory does not grow with S. ``generator``, on the data's device, fixes the
        draws. The model is in evaluation mode meanwhile.
        """
        _check_data(x)
        check_integer("GaussianVAE", "num_draws", num_draws, 1)

        def log_likelihood(z: Tensor) -> Tensor:
            return self._sampled_reconstruction(x, z[None], latents)[0]

        with self._evaluating():
            mean, logvar, latents = self._posterior(x)
            mean, logvar = widen(mean), widen(logvar)
            return importance_weighted_bound(log_likelihood, mean, logvar, num_draws, generator)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = [module for module in self.modules() if module.training]  # some may be frozen
        self.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
        """Means and log-variances of x as (N, K), and the shape that the decoder takes: (K,) or spatial."""
        mean, logvar = self.encode(x)
        check_posterior("GaussianVAE", {"the encoder's mean": mean, "the encoder's logvar": logvar})
        if mean.ndim < 2 or mean.shape[0] != x.shape[0]:
            raise ValueError(
                "GaussianVAE: the encoder's mean must have shape (N, K) or (N, C, H, W) with "
                f"N={x.shape[0]}, got {tuple(mean.shape)}"
            )
        if self.closed_form and mean.ndim > 2:
            raise ValueError(
                f"GaussianVAE: closed_form needs posteriors (N, K), got {tuple(mean.shape)}; flatten them in "
                "the encoder, or closed_form=False samples"
            )
        return mean.flatten(1), logvar.flatten(1), mean.shape[1:]

    def _sampled_reconstruction(self, x: Tensor, z: Tensor, latents: torch.Size) -> tuple[Tensor, Tensor]:
        """Mean of log p(x|z) over samples z, (S, N, K), and log σ²."""
        x_hat = self._reconstruct(x, z, latents)
        log_sigma2 = _scalar_if_one(self.noise(x, x_hat))
        x_hat, noise = widen(x_hat).flatten(2), self._per_feature(x, log_sigma2)
        x = widen(x).flatten(1)
        if len(x_hat) == 1:  # of one draw a mean would only take time
            return gaussian_log_likelihood(x, x_hat.squeeze(0), noise), log_sigma2
        return gaussian_log_likelihood(x, x_hat, noise).mean(0), log_sigma2

    def _expected_reconstruction(self, x: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        """E log p(x|z) of a linear decoder in closed form, and log σ²."""
        decoder = self._linear_decoder()
        weight = decoder.weight
        bias = weight.new_zeros(len(weight)) if decoder.bias is None else decoder.bias
        if self.noise.kind == "closed_form":
            with torch.no_grad():
                log_sigma2 = self.noise(x, *self._linear_reconstructions(x, mean, logvar))
        else:
            log_sigma2 = self.noise.log_sigma2
        log_sigma2 = _scalar_if_one(log_sigma2)
        likelihood = expected_gaussian_log_likelihood(
            widen(x).flatten(1),
            widen(mean),
            widen(logvar),
            widen(weight),
            widen(bias),
            self._per_feature(x, log_sigma2),
        )
        return likelihood, log_sigma2

    def _reconstruct(self, x: Tensor, z: Tensor, latents: torch.Size) -> Tensor:
        """Decode z, (*samples, N, K), to what compares with x, (*samples, N, *event)."""
        z_of_decoder = z.flatten(end_dim=-2).unflatten(-1, latents)
        # samples are float32 where x is half
        return _shaped_like(x, self.decode(z_of_decoder.to(x.dtype)), z.shape[:-2])

    def _linear_reconstructions(self, x: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of a linear decoder's reconstructions under the posteriors, of the shape of x.

        In float32 at least, as the likelihood takes them.
        """
        decoder = self._linear_decoder()
        weight, bias = widen(decoder.weight), None if decoder.bias is None else widen(decoder.bias)
        # a latent that no reconstruction depends on may have an infinite variance
        variance = widen(logvar).exp().where(weight.any(0), 0.0)
        x_hat = without_autocast(nn.functional.linear, widen(mean), weight, bias)
        spread = without_autocast(nn.functional.linear, variance, weight.square())
        return _shaped_like(x, x_hat), _shaped_like(x, spread)

    def _linear_decoder(self) -> nn.Linear:
        if not _is_linear(self.decoder):
            got = type(self.decoder).__name__
            if isinstance(self.decoder, nn.Linear):
                got += " with a hook or a forward of its own"
            raise ValueError(
                f"GaussianVAE: closed_form needs a decoder that is a plain nn.Linear, got {got}; "
                "closed_form=False samples"
            )
        return self.decoder

    def _per_feature(self, x: Tensor, log_sigma2: Tensor) -> Tensor:
        """() as it is, and everything else as (D,); of x's dtype unless that would round it."""
        if log_sigma2.ndim:
            check_event(x, log_sigma2.shape)
            log_sigma2 = log_sigma2.expand(x.shape[1:]).flatten()
        return log_sigma2.to(torch.promote_types(log_sigma2.dtype, x.dtype))


def _is_linear(decoder: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether nothing but its weight and bias, which may be parametrized, decides on its output."""
    if not isinstance(decoder, nn.Linear) or type(decoder).forward is not nn.Linear.forward:
        return False
    if "forward" in vars(decoder) or type(decoder).__call__ is not nn.Module.__call__:
        return False
    # a hook may make another weight, spectral_norm's does, or another output or gradient
    if decoder._forward_pre_hooks or decoder._forward_hooks:
        return False
    if decoder._backward_pre_hooks or decoder._backward_hooks:
        return False
    # torch's own hooks on all modules only look on, as those that count operations do
    of_all = (*_module._global_forward_pre_hooks.values(), *_module._global_forward_hooks.values())
    return all(getattr(hook, "__module__", "").startswith("torch.") for hook in of_all)


def _shaped_like(x: Tensor, x_hat: Tensor, samples: Sequence[int] = ()) -> Tensor:
    """Give reconstructions the shape of x, (*samples, N, *event)."""
    shape = (*samples, *x.shape)
    expected = (math.prod(shape[: len(samples) + 1]), *x.shape[1:])
    if x_hat.shape[0] != expected[0] or x_hat.numel() != math.prod(expected):
        raise ValueError(
            f"GaussianVAE: the decoder's output must have as many elements as x, {expected}, "
            f"got {tuple(x_hat.shape)}"
        )
    return x_hat.reshape(shape)


def _scalar_if_one(log_sigma2: Tensor) -> Tensor:
    """Give one σ² as a scalar, whatever its shape: operators need not look for one of each feature."""
    if log_sigma2.ndim == 0 or log_sigma2.numel() > 1:
        return log_sigma2
    return log_sigma2.reshape(()).clone()  # of a view among a module's outputs FSDP warns


def _check_data(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"GaussianVAE: x must be a torch.Tensor, got {type(x).__name__}")
    check_whole("GaussianVAE", "x", x)
    if not x.is_floating_point():
        raise TypeError(
            f"GaussianVAE: x must be floating, got {x.dtype}; divide images by 255 or dequantise them"
        )
    if x.ndim < 2:
        raise ValueError(f"GaussianVAE: x must have shape (N, *event), got {tuple(x.shape)}")
