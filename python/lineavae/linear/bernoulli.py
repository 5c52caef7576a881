"""The Bernoulli linear VAE: a linear VAE of binary data, whose ELBO takes no sampling."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from lineavae._arguments import check_integer, check_real, check_whole
from lineavae._ascent import Problem, Settings, as_tensor, ascend, batches, history_table, noise
from lineavae._importance import importance_weighted_bound
from lineavae._noise import standard_normal
from lineavae._printing import PrintsInNotebooks
from lineavae._terms import weighted
from lineavae.linear.module import LinearModule
from lineavae.ops import bernoulli_log_likelihood, expected_bernoulli_log_likelihood, gaussian_kl

# Rows of data that are held in float64 at a time.
_EXACT_ROWS = 1024

# No probability begins closer to 0 or 1.
_LEAST_PROBABILITY = 1e-3


@dataclass(frozen=True, eq=False)
class BernoulliHistory(PrintsInNotebooks):
    """What the training of a `BernoulliLinearVAE` recorded. Prints as a table.

    Attributes
    ----------
    steps
        Numbers of steps after which the values were taken, (P,), int64: 0, the multiples of
        ``history_every``, and the last.
    elbo
        ELBO of the data at those points, in nats per sample, (P,), float64: without sampling whatever the
        objective, and with the β of the run.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import BernoulliLinearVAE
    >>> history = BernoulliLinearVAE(2, 1).fit(torch.eye(2), steps=150, progress=False)
    >>> history.steps
    array([  0, 100, 150])
    """

    steps: NDArray[np.int64]
    elbo: NDArray[np.float64]

    def __str__(self) -> str:
        return history_table(self.steps, {"ELBO": self.elbo})


class BernoulliLinearVAE(LinearModule):
    """Linear VAE of binary data: the Bernoulli pPCA of Lucas et al. (2019), appendix C.3, equation 29.

    The model is p(x|z) = Bernoulli(sigmoid(W z + μ)) with prior p(z) = N(0, I), the posterior is
    q(z|x) = N(V (x - x̄) + c, diag d) with one d for all x. Each logit is a normal variable under the
    posterior, so the ELBO is a sum of one-dimensional integrals and is computed without sampling, with its
    gradient. The likelihood has no closed form: `importance_weighted_bound` bounds it from below.

    Data are zeros and ones; what is between counts as the probability of a one, as in
    `lineavae.ops.bernoulli_log_likelihood`.

    Parameters
    ----------
    num_features
        Observed dimensions D.
    latent_dim
        Latent dimensions K.
    center
        The x̄ of the encoder, (D,), in [0, 1], at whose logit μ begins: training is fastest where it is the
        mean of the data. ½ if None.
    generator
        Source of the initial parameters, on their device; torch's global one if None.
    dtype, device
        Of the parameters; torch's defaults if None.

    Attributes
    ----------
    center : Tensor
        Constant x̄, (D,).
    weight : nn.Parameter
        Decoder W, (D, K).
    encoder : nn.Parameter
        Encoder V, (K, D).
    encoder_bias : nn.Parameter
        Intercept c of the posterior means, (K,).
    mu : nn.Parameter
        Logits μ at z = 0, (D,).
    log_d : nn.Parameter
        Log of the posterior variances d, (K,).

    Notes
    -----
    The posterior means have an intercept, so that x̄ does not matter to what the model can express. Where x̄
    is the mean of the data, c = 0 at a maximum of the ELBO: a shift of c by δ together with μ by -W δ changes
    no logit, and the KL is least where the posterior means average to 0.

    Initially W and V are Glorot-uniform, c and log d are zero, and sigmoid(μ) = x̄, but at least 1e-3 from 0
    and 1.

    All latents are collapsed at W = 0, V = 0, c = 0, d = 1, sigmoid(μ) = x̄, the mean of the data, where the
    ELBO is that of independent features. To second order it changes by wᵀS v - ½ (wᵀB w + vᵀS v) with a
    column w of W and row v of V, S being the covariance of the data and B = diag(x̄ (1 - x̄)): this is a saddle
    if S - B has a positive eigenvalue. For binary data B is the diagonal of S. Then it is a saddle whenever
    two features are correlated, and for each latent as many directions lead out as the correlation matrix has
    eigenvalues above 1: Kaiser's criterion, and the linear VAE of standardised features with σ² = 1.

    Calling the module is calling `elbo`.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import BernoulliLinearVAE
    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.bernoulli(torch.full((200, 1), 0.5), generator=generator).repeat(1, 6)
    >>> vae = BernoulliLinearVAE(num_features=6, latent_dim=1, center=x.mean(0), generator=generator)
    >>> history = vae.fit(x, steps=500, lr=0.03, progress=False)
    >>> bool(vae.elbo(x).mean() > -2)  # 6 log 2 = 4.2 nats without a latent, log 2 = 0.7 for the best model
    True
    """

    _kind = "BernoulliLinearVAE"

    center: Tensor
    encoder_bias: nn.Parameter

    def __init__(
        self,
        num_features: int,
        latent_dim: int,
        *,
        center: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        num_features = check_integer("BernoulliLinearVAE", "num_features", num_features, minimum=1)
        latent_dim = check_integer("BernoulliLinearVAE", "latent_dim", latent_dim, minimum=1)
        self.weight = nn.Parameter(torch.empty(num_features, latent_dim, dtype=dtype, device=device))
        self.encoder = nn.Parameter(torch.empty(latent_dim, num_features, dtype=dtype, device=device))
        self.encoder_bias = nn.Parameter(torch.empty(latent_dim, dtype=dtype, device=device))
        self.mu = nn.Parameter(torch.empty(num_features, dtype=dtype, device=device))
        self.log_d = nn.Parameter(torch.empty(latent_dim, dtype=dtype, device=device))
        if center is None:
            center = torch.full_like(self.mu, 0.5)
        _check_center(center, num_features)
        self.register_buffer("center", center.detach().to(self.mu, copy=True))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw W and V anew, Glorot-uniform, and set c and log d to zero and μ to the logit of x̄."""
        nn.init.xavier_uniform_(self.weight, generator=generator)
        nn.init.xavier_uniform_(self.encoder, generator=generator)
        self.encoder_bias.zero_()
        self.log_d.zero_()
        self.mu.copy_(self.center.logit(eps=_LEAST_PROBABILITY))

    def forward(self, x: Tensor, beta: Tensor | float = 1.0) -> Tensor:
        """Return ``elbo(x, beta)``."""
        return self.elbo(x, beta)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior means V (x - x̄) + c and log-variances log d of q(z|x): (N, D) -> (N, K), (N, K).

        The log-variances are the same in every row, and share its memory.
        """
        self._check_samples("encode", x)
        mean = (x - self.center) @ self.encoder.mT + self.encoder_bias
        return mean, self.log_d.expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        """Means sigmoid(W z + μ) of p(x|z), the probabilities of ones: (..., K) -> (..., D).

        ``torch.bernoulli`` of those of `sample` gives binary samples.
        """
        return super().decode(z).sigmoid()

    def elbo(self, x: Tensor, beta: Tensor | float = 1.0) -> Tensor:
        """ELBO of each sample without sampling, in nats: (N, D) -> (N,), differentiable.

        Parameters
        ----------
        x
            Samples (N, D) in [0, 1], of the module's dtype and device. Their values are not looked at.
        beta
            Weight of the KL term.

        Notes
        -----
        E log p(x|z) of Lucas et al. (2019), appendix C.3, equation 33 with the logarithm that is missing
        there, up to D times 5.2e-8: see `lineavae.ops.expected_bernoulli_log_likelihood`.
        """
        mean, logvar = self.encode(x)
        reconstruction = expected_bernoulli_log_likelihood(x, mean, logvar, self.weight, self.mu)
        return reconstruction - weighted(beta, gaussian_kl(mean, logvar))

    def stochastic_elbo(
        self,
        x: Tensor,
        num_draws: int = 1,
        generator: torch.Generator | None = None,
        beta: Tensor | float = 1.0,
    ) -> Tensor:
        """Unbiased estimate of the ELBO of each sample, in nats: (N, D) -> (N,).

        The reconstruction term is sampled by reparameterisation, the KL term is analytic; the arguments are
        those of `LinearVAE.stochastic_elbo`, with x in [0, 1]. Values are not looked at.

        Notes
        -----
        The estimator of Kingma and Welling (2014), by which such models are trained elsewhere.
        """
        caller = "BernoulliLinearVAE.stochastic_elbo"
        num_draws = check_integer(caller, "num_draws", num_draws, minimum=1)
        mean, logvar = self.encode(x)
        eps = standard_normal((num_draws, *mean.shape), mean, generator)
        logits = self._logits(mean + (0.5 * logvar).exp() * eps)
        return bernoulli_log_likelihood(x, logits).mean(0) - weighted(beta, gaussian_kl(mean, logvar))

    @torch.no_grad()
    def importance_weighted_bound(
        self, x: Tensor, num_draws: int, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Bound of Burda et al. (2016) on log p(x) of each sample, in nats: (N, D) -> (N,).

        log 1/S Σ_s p(x|z_s) p(z_s)/q(z_s|x), with S draws of q: the ELBO in expectation for one, and closer
        to the likelihood with each. Memory does not grow with S. ``generator``, on the module's device, fixes
        the draws.
        """
        caller = "BernoulliLinearVAE.importance_weighted_bound"
        num_draws = check_integer(caller, "num_draws", num_draws, minimum=1)
        mean, logvar = self.encode(x)

        def log_likelihood(z: Tensor) -> Tensor:
            return bernoulli_log_likelihood(x, self._logits(z))

        return importance_weighted_bound(log_likelihood, mean, logvar, num_draws, generator)

    def fit(
        self,
        data: Tensor | NDArray[Any],
        *,
        objective: Literal["analytic", "stochastic"] = "analytic",
        optimizer: Literal["adam", "sgd"] | Callable[[list[nn.Parameter]], Optimizer] = "adam",
        lr: float = 1e-3,
        steps: int = 12_000,
        batch_size: int | None = None,
        beta: float = 1.0,
        seed: int = 0,
        history_every: int = 100,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 1000,
        resume: bool = False,
        progress: bool = True,
    ) -> BernoulliHistory:
        """Train the parameters that require grad to maximise the mean ELBO of the data.

        As with `LinearVAE.fit`, the module changes when the run has ended or was interrupted by Ctrl-C,
        and an interrupted run goes on from its checkpoint, to the bit.

        Parameters
        ----------
        data
            Samples in [0, 1], (N, D), of any real dtype; cast to the module's dtype and device.
        objective
            ``"analytic"``: the ELBO without sampling. ``"stochastic"``: one reparameterised draw per sample
            and step.
        batch_size
            Samples per step of either objective, all if None. Each epoch has its own order, and its last
            batch may be smaller.
        history_every
            Steps between two entries of the history; each costs one evaluation of all data in float64.
        optimizer, lr, steps, beta, seed, checkpoint, checkpoint_every, resume, progress
            As in `LinearVAE.fit`.

        Returns
        -------
        BernoulliHistory
            The ELBO over the course of the run.

        Raises
        ------
        TypeError
            An argument, or the data, is of another type, or the state of the optimizer cannot be written.
        ValueError
            An argument is out of range, a value of the data is NaN or outside [0, 1], the data do not fit the
            module, or the checkpoint is that of another run; the message says in what it differs.
        RuntimeError
            Gradients are switched off by ``torch.inference_mode``.
        FloatingPointError
            The ELBO became infinite or NaN. No checkpoint holds such parameters.

        Notes
        -----
        Where a feature is the same in all data, its best μ is infinite: μ grows as long as it is trained, and
        what the ELBO gains by it vanishes.

        Examples
        --------
        >>> import torch
        >>> from lineavae.linear import BernoulliLinearVAE
        >>> vae = BernoulliLinearVAE(3, 1, generator=torch.Generator().manual_seed(0))
        >>> x = torch.tensor([[0, 0, 1], [1, 1, 0]], dtype=torch.uint8).repeat(50, 1)
        >>> history = vae.fit(x, objective="stochastic", batch_size=20, steps=300, lr=0.01, progress=False)
        >>> history.steps
        array([  0, 100, 200, 300])
        >>> bool(history.elbo[-1] > history.elbo[0])
        True
        """
        settings = _Settings(
            objective=objective,
            steps=steps,
            batch_size=batch_size,
            beta=beta,
            seed=seed,
            history_every=history_every,
        )
        problem = _Problem(settings, self, data)
        recorded, elbo = ascend(
            problem,
            optimizer=optimizer,
            lr=lr,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            progress=progress,
            keep=lambda: self.load_state_dict(problem.model.state_dict()),
        )
        return BernoulliHistory(recorded.astype(np.int64), elbo)

    def _logits(self, z: Tensor) -> Tensor:
        return super().decode(z)


class _Settings(Settings):
    caller: ClassVar[str] = "BernoulliLinearVAE.fit"


class _Problem(Problem):
    """The ELBO of samples, over the parameters of a copy of the model."""

    def __init__(self, settings: _Settings, model: BernoulliLinearVAE, data: Tensor | NDArray[Any]) -> None:
        self.model = copy.deepcopy(model)
        super().__init__(settings, dict(self.model.named_parameters()), model.latent_dim)
        self._samples = _read_data(model, data)
        self._batch = batches(settings, self._samples)

    def objective(self, step: int) -> Tensor:
        """Mean ELBO of the step's batch, or an estimate of it."""
        batch, beta = self._batch(step), self.settings.beta
        if self.settings.objective == "analytic":
            return self.model.elbo(batch, beta).mean()
        generator = noise(self.settings, step, batch.device)
        return self.model.stochastic_elbo(batch, generator=generator, beta=beta).mean()

    @torch.no_grad()
    def exact_elbo(self) -> float:
        """Mean ELBO without sampling, evaluated in float64."""
        model = copy.deepcopy(self.model).double()
        blocks = torch.split(self._samples, _EXACT_ROWS)
        sums = [model.elbo(block.double(), self.settings.beta).sum().item() for block in blocks]
        return sum(sums) / len(self._samples)

    def record(self, elbo: float) -> tuple[float, ...]:
        """Add nothing to the steps and the ELBO."""
        return ()

    def data(self) -> list[Tensor]:
        """Give the samples, and what the model centres them at."""
        return [self._samples, self.model.center]


def _check_center(center: Tensor, num_features: int) -> None:
    if not isinstance(center, Tensor):
        raise TypeError(f"BernoulliLinearVAE: center must be a torch.Tensor, got {type(center).__name__}")
    if center.shape != (num_features,):
        raise ValueError(
            f"BernoulliLinearVAE: center must have shape (D,) with D={num_features}, "
            f"got {tuple(center.shape)}"
        )
    if not ((center >= 0) & (center <= 1)).all():
        raise ValueError(f"BernoulliLinearVAE: center must be in [0, 1], got {center.tolist()}")


def _read_data(model: BernoulliLinearVAE, data: Tensor | NDArray[Any]) -> Tensor:
    """Check samples, and give them in the module's dtype and on its device."""
    caller, dtype = "BernoulliLinearVAE.fit", model.weight.dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{caller}: the module must be float32 or float64, got {dtype}")
    if not isinstance(data, Tensor | np.ndarray):
        raise TypeError(f"{caller}: data must be a torch.Tensor or an array, got {type(data).__name__}")
    check_whole(caller, "data", data)
    check_real(caller, "data", data)
    samples = as_tensor(data)
    if samples.dtype in (torch.uint16, torch.uint32, torch.uint64):  # which torch does not compare
        samples = samples.to(model.weight)
    if samples.ndim != 2 or samples.shape[1] != model.num_features or not len(samples):
        raise ValueError(
            f"{caller}: data must have shape (N, D) with N >= 1 and D={model.num_features}, "
            f"got {tuple(samples.shape)}"
        )
    outside = ~((samples >= 0) & (samples <= 1))  # NaN as well
    if outside.any():
        index = tuple(outside.nonzero()[0].tolist())
        raise ValueError(f"{caller}: data must be in [0, 1], got {samples[index].item()} at index {index}")
    return samples.to(model.weight)
