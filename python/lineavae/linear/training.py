"""Training of the linear VAE: by its ELBO in closed form, from the moments of the data, or by samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from lineavae._ascent import Problem, Settings, as_tensor, ascend, batches, history_table, noise
from lineavae._printing import PrintsInNotebooks
from lineavae._terms import gaussian_term
from lineavae.linear.elbo import MeanELBO, exact_elbo, stochastic_elbo
from lineavae.linear.gap import PARTS, Optimum
from lineavae.linear.moments import Moments, check_features
from lineavae.linear.parameters import LinearModel, LinearParameters

# Those with an entry for each feature.
_OF_FEATURES = ("weight", "encoder", "mu")


@dataclass(frozen=True, eq=False)
class History(PrintsInNotebooks):
    """What a training run recorded. Prints as a table.

    Attributes
    ----------
    steps
        Numbers of steps after which the values were taken, (P,), int64: 0, the multiples of
        ``history_every``, and the last.
    elbo
        Analytic ELBO of the data at those points, in nats per sample, (P,), float64: exact whatever the
        objective, and with the β of the run.
    log_sigma2
        Log of the observation noise at those points, (P,), float64.
    dropped_features
        Indices of the features that were left out as constant, int64.
    gap
        What the ELBO lacks to the largest likelihood at those points, part by part as
        `decompose_gap` names them, (P,) each, float64; ``None`` where it was not asked for.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import LinearVAE
    >>> history = LinearVAE(2, 1).fit(torch.eye(2), steps=150, progress=False)
    >>> history.steps
    array([  0, 100, 150])
    """

    steps: NDArray[np.int64]
    elbo: NDArray[np.float64]
    log_sigma2: NDArray[np.float64]
    dropped_features: NDArray[np.int64]
    gap: dict[str, NDArray[np.float64]] | None = None

    def __str__(self) -> str:
        return history_table(self.steps, {"ELBO": self.elbo, "σ²": np.exp(self.log_sigma2)})


def fit(
    model: LinearModel,
    data: Tensor | NDArray[Any] | Moments,
    *,
    objective: Literal["analytic", "stochastic"] = "analytic",
    optimizer: Literal["adam", "sgd"] | Callable[[list[nn.Parameter]], Optimizer] = "adam",
    lr: float = 1e-3,
    steps: int = 12_000,
    batch_size: int | None = None,
    beta: float = 1.0,
    learn_sigma2: bool = True,
    seed: int = 0,
    drop_constant_features: bool = False,
    history_every: int = 100,
    history_gap: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train the parameters that require grad to maximise the mean ELBO of the data.

    The module changes when the run has ended, and not at all where it fails. If it is interrupted by Ctrl-C,
    the module has the parameters that were reached, as the KeyboardInterrupt says; the run goes on from its
    checkpoint.

    Parameters
    ----------
    data
        Samples, (N, D), or their moments; cast to the module's dtype and device.
    objective
        ``"analytic"``: the exact ELBO, from the moments of the data; a step costs the same for any N.
        ``"stochastic"``: one reparameterised draw per sample and step; needs samples.
    optimizer
        ``"adam"`` or ``"sgd"``, both fused, or a function from the list of parameters to any
        ``torch.optim.Optimizer``, LBFGS included.
    lr
        Step size of ``"adam"`` and ``"sgd"``; a function sets its own.
    steps
        Steps of the optimizer, including those before a resumption.
    batch_size
        Samples per step of the stochastic objective, all if None. Each epoch has its own order, and its last
        batch may be smaller.
    beta
        Weight of the KL term.
    learn_sigma2
        Whether σ² is trained along with the other parameters.
    seed
        The noise of a step is a function of (seed, step), the order of the samples one of (seed, epoch).
    drop_constant_features
        Leave features without variance out of the computation. Their rows of W and columns of V are set to
        zero and their entries of μ to the mean: there their gradients are zero, so the result is that of
        training all features from that point. All three must be trained, then.
    history_every
        Steps between two entries of the history; each costs one evaluation in float64.
    history_gap
        Tell at each entry of the history why the ELBO is not the largest, as `decompose_gap` does. It
        costs a singular value decomposition of W; ``beta`` must be 1.
    checkpoint
        A file for the parameters, the state of the optimizer and the history. It is replaced, atomically,
        every ``checkpoint_every`` steps and at the end.
    checkpoint_every
        Steps between two checkpoints.
    resume
        Go on from the checkpoint where there is one, whatever the parameters of the module are now.
    progress
        Show a progress bar on stderr, where that is a terminal, or in a notebook that has ipywidgets.

    Returns
    -------
    History
        The analytic ELBO and σ² over the course of the run.

    Raises
    ------
    TypeError
        An argument, or the data, is of another type, the data are masked, or the state of the optimizer
        cannot be written.
    ValueError
        An argument is out of range, the data do not fit the module or the objective, or the checkpoint is
        that of another run; the message says in what it differs.
    RuntimeError
        Gradients are switched off by ``torch.inference_mode``.
    FloatingPointError
        The ELBO became infinite or NaN. No checkpoint holds such parameters.

    Notes
    -----
    On the CPU the run has a thread of its own, for which numbers below the normal range are zero: the
    columns of a collapsed latent decay to such numbers, and they can slow matrix products down a hundredfold.

    Resumed or not, a run ends at the same bits on the same machine, torch and number of threads.

    The run is over copies of the five parameters: methods that a subclass overrides are not asked, and hooks
    are those that the optimizer's function registers.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import LinearVAE
    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(100, 4, generator=generator)
    >>> vae = LinearVAE(4, 2, generator=generator)
    >>> history = vae.fit(x, objective="stochastic", batch_size=20, steps=300, progress=False)
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
        learn_sigma2=learn_sigma2,
        seed=seed,
        drop_constant_features=drop_constant_features,
        history_every=history_every,
        history_gap=history_gap,
    )
    parameters = LinearParameters.of(model)
    problem = _Problem(parameters, data, settings)
    num_dropped = len(problem.dropped)
    if num_dropped:
        console = Console(stderr=True, quiet=not progress)
        console.print(f"{num_dropped} of {parameters.num_features} features are constant and left out")
    recorded, elbo, log_sigma2, *gap = ascend(
        problem,
        optimizer=optimizer,
        lr=lr,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        progress=progress,
        keep=lambda: problem.write_back(parameters),
    )
    return History(
        recorded.astype(np.int64),
        elbo,
        log_sigma2,
        problem.dropped.cpu().numpy(),
        dict(zip(PARTS, gap, strict=True)) if gap else None,
    )


@dataclass(kw_only=True)
class _Settings(Settings):
    caller: ClassVar[str] = "LinearVAE.fit"

    learn_sigma2: bool
    drop_constant_features: bool
    history_gap: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history_gap and self.beta != 1:
            raise ValueError(f"LinearVAE.fit: beta must be 1 where history_gap is asked for, got {self.beta}")
        if self.batch_size is not None and self.objective == "analytic":
            raise ValueError(
                "LinearVAE.fit: batch_size must be None for the analytic objective, whose steps cost the "
                f"same for any number of samples, got {self.batch_size}"
            )


class _Problem(Problem):
    """The ELBO of the linear VAE, over copies of its parameters on the features that are kept."""

    def __init__(
        self, given: LinearParameters, data: Tensor | NDArray[Any] | Moments, settings: _Settings
    ) -> None:
        moments, samples = _read_data(given, data, settings)
        constant = moments.constant_features().to(given.weight.device)
        if not settings.drop_constant_features:
            constant.zero_()
        self.kept, self.dropped = (~constant).nonzero()[:, 0], constant.nonzero()[:, 0]
        self._dropped_mean = moments.sample_mean.to(given.mu)[self.dropped]
        if not len(self.kept):
            raise ValueError("LinearVAE.fit: data must vary in some feature where constant ones are dropped")
        if len(self.dropped):
            frozen = [name for name in _OF_FEATURES if not getattr(given, name).requires_grad]
            if frozen:
                raise ValueError(
                    "LinearVAE.fit: drop_constant_features must be False where weight, encoder or mu is "
                    f"frozen, since it sets their entries; got frozen {', '.join(frozen)}"
                )
            moments = moments.select(self.kept.to(moments.device))
            samples = None if samples is None else samples[:, self.kept]

        self._data = data
        self._moments = moments
        self._working = _working_copy(given, self.kept, settings.learn_sigma2)
        super().__init__(settings, self._working._asdict(), given.latent_dim)
        num_features = given.num_features
        self._optimum = None
        if settings.history_gap:
            self._optimum = Optimum("LinearVAE.fit", moments, given.latent_dim, num_features)
        self._mean_elbo: MeanELBO | None = None
        if samples is None:
            like = self._working.weight
            self._mean_elbo = MeanELBO(moments, like, beta=settings.beta, num_features=num_features)
        else:
            self._batch = batches(settings, samples)

    def objective(self, step: int) -> Tensor:
        """Mean ELBO of the moments, or an estimate of it from a batch."""
        if self._mean_elbo is not None:
            return self._mean_elbo(self._working)
        generator, batch = noise(self.settings, step, self.device), self._batch(step)
        elbo = stochastic_elbo(self._working, batch, 1, generator, self.settings.beta)
        return elbo.mean() + self._of_dropped(self._working.log_sigma2)

    def differentiate(self, step: int) -> Tensor:
        """Give the loss and set its gradients; from moments without autograd, where nothing hooks into it."""
        if self._mean_elbo is None or not self._mean_elbo.is_native:
            return super().differentiate(step)
        for parameter in self._working:
            if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
                return super().differentiate(step)
        loss, gradients = self._mean_elbo.loss(self._working)
        for parameter, gradient in zip(self._working, gradients, strict=True):
            if parameter.requires_grad:
                parameter.grad = gradient
        return loss

    def exact_elbo(self) -> float:
        """Analytic ELBO of the data, evaluated in float64."""
        with torch.no_grad():
            of_kept = exact_elbo(self._working, self._moments, self.settings.beta)
            return (of_kept + self._of_dropped(self._working.log_sigma2.double())).item()

    def record(self, elbo: float) -> tuple[float, ...]:
        """Give log σ², and the parts of the gap to the largest ELBO where they are asked for."""
        log_sigma2 = self._working.log_sigma2.item()
        if self._optimum is None:
            return (log_sigma2,)
        return log_sigma2, *self._optimum.decompose(self._working, elbo).parts.values()

    def data(self) -> list[Tensor]:
        """Give the samples, or the tensors that make up the moments."""
        if not isinstance(self._data, Moments):
            return [as_tensor(self._data)]
        spread = self._data._factor if self._data._factor is not None else self._data.covariance
        num_samples = torch.tensor(float(self._data.num_samples), device="cpu")
        return [num_samples, self._data.sample_mean, spread]

    @torch.no_grad()
    def write_back(self, given: LinearParameters) -> None:
        """Set the parameters that were given to the result."""
        given.weight[self.kept] = self._working.weight
        given.weight[self.dropped] = 0
        given.encoder[:, self.kept] = self._working.encoder
        given.encoder[:, self.dropped] = 0
        given.mu[self.kept] = self._working.mu
        given.mu[self.dropped] = self._dropped_mean
        given.log_d.copy_(self._working.log_d)
        given.log_sigma2.copy_(self._working.log_sigma2)

    def _of_dropped(self, log_sigma2: Tensor) -> Tensor:
        """Give what the features that were left out add to the ELBO: they have no distortion."""
        return gaussian_term(torch.zeros_like(log_sigma2), log_sigma2, len(self.dropped))


def _read_data(
    parameters: LinearParameters, data: Tensor | NDArray[Any] | Moments, settings: _Settings
) -> tuple[Moments, Tensor | None]:
    """Moments of the data, and the samples where the objective needs them."""
    weight = parameters.weight
    computed = [name for name, value in parameters._asdict().items() if not value.is_leaf]
    if computed:  # by a parametrization, say: there is nothing to write the result to
        raise ValueError(f"LinearVAE.fit: the module must hold its parameters, got computed {computed}")
    if weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"LinearVAE.fit: the module must be float32 or float64, got {weight.dtype}")
    samples = None
    if isinstance(data, Moments):
        moments = data
        if settings.objective == "stochastic":
            raise ValueError("LinearVAE.fit: data must be samples for the stochastic objective, got Moments")
    else:
        moments = Moments.from_data(data)
        if settings.objective == "stochastic":
            samples = as_tensor(data).to(weight)
    check_features("LinearVAE.fit", "data", moments, parameters.num_features)
    return moments, samples


def _working_copy(given: LinearParameters, kept: Tensor, learn_sigma2: bool) -> LinearParameters:
    """Copy the parameters on some of the features."""
    selected = given.detach()._replace(
        weight=given.weight[kept], encoder=given.encoder[:, kept], mu=given.mu[kept]
    )
    working = LinearParameters(
        *(
            nn.Parameter(values.detach().clone().contiguous(), parameter.requires_grad)
            for values, parameter in zip(selected, given, strict=True)
        )
    )
    working.log_sigma2.requires_grad_(learn_sigma2 and given.log_sigma2.requires_grad)
    return working
