"""Training of the linear VAE by gradient ascent on its ELBO, resumable to the bit.

Everything random is a function of (seed, step), so that a run killed at any moment and resumed from its last
checkpoint ends where the uninterrupted run ends.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import Optimizer

from lineavae._arguments import check_integer, check_number
from lineavae._tensor_file import read_tensors, write_tensors
from lineavae.linear.gap import PARTS, Optimum
from lineavae.linear.moments import Moments
from lineavae.ops import linear_vae_elbo_from_factor, linear_vae_elbo_from_moments
from lineavae.reference.linear_vae_elbo import gaussian_term

if TYPE_CHECKING:
    from lineavae.linear.vae import LinearVAE

_OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}

# In the order in which the operators take them.
_ARGUMENTS = ("weight", "encoder", "mu", "log_d", "log_sigma2")

# Those with an entry for each feature.
_OF_FEATURES = ("weight", "encoder", "mu")

# One stream of random numbers for each purpose.
_NOISE, _ORDER = 0, 1


@dataclass(frozen=True, eq=False)
class History:
    """What a training run recorded.

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
        :func:`decompose_gap` names them, (P,) each, float64; ``None`` where it was not asked for.

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


def fit(
    model: LinearVAE,
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

    The module changes when the run has ended, and not at all where it fails or is interrupted; an interrupted
    run goes on from its checkpoint.

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
        Tell at each entry of the history why the ELBO is not the largest, as :func:`decompose_gap` does. It
        costs a singular value decomposition of W; ``beta`` must be 1.
    checkpoint
        A file for the parameters, the state of the optimizer and the history. It is replaced, atomically,
        every ``checkpoint_every`` steps and at the end.
    checkpoint_every
        Steps between two checkpoints.
    resume
        Go on from the checkpoint where there is one, whatever the parameters of the module are now.
    progress
        Show a progress bar on stderr, where that is a terminal.

    Returns
    -------
    History
        The analytic ELBO and σ² over the course of the run.

    Raises
    ------
    TypeError
        An argument, or the data, is of another type, or the state of the optimizer cannot be written.
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
    if torch.is_inference_mode_enabled():
        raise RuntimeError("LinearVAE.fit: gradients must be enabled, got a call in torch.inference_mode")
    check = partial(check_integer, "LinearVAE.fit")
    settings = _Settings(
        objective=objective,
        steps=check("steps", steps, minimum=1),
        batch_size=None if batch_size is None else check("batch_size", batch_size, minimum=1),
        beta=check_number("LinearVAE.fit", "beta", beta),
        learn_sigma2=learn_sigma2,
        seed=check("seed", seed, minimum=0),
        drop_constant_features=drop_constant_features,
        history_every=check("history_every", history_every, minimum=1),
        history_gap=history_gap,
    )
    check("checkpoint_every", checkpoint_every, minimum=1)
    if resume and checkpoint is None:
        raise ValueError("LinearVAE.fit: checkpoint must be given to resume from, got None")
    problem = _Problem(model, data, settings)
    run = _Run(problem, _make_optimizer(optimizer, list(problem.trained.values()), lr))
    file = None
    if checkpoint is not None:
        file = _Checkpoint(Path(checkpoint), _identity(data, settings, run))
        if resume and file.path.exists():
            file.load(run)

    console = Console(stderr=True, quiet=not progress)
    if len(problem.dropped):
        console.print(f"{len(problem.dropped)} of {model.num_features} features are constant and left out")
    with Progress(
        TextColumn("ELBO {task.fields[elbo]:.2f}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (progress and console.is_terminal),
    ) as bar:
        task = bar.add_task("", total=steps, completed=run.step, elbo=math.nan)

        def train(interrupted: Event) -> None:
            if not run.records:
                run.record(run.finite_elbo())
            while run.step < steps and not interrupted.is_set():
                run.advance()
                is_last = run.step == steps
                recording = is_last or run.step % history_every == 0
                saving = file is not None and (is_last or run.step % checkpoint_every == 0)
                if recording or saving:
                    elbo = run.finite_elbo()
                    if recording:
                        run.record(elbo)
                    if file is not None and saving:
                        file.save(run)
                bar.update(task, completed=run.step, elbo=run.records[-1][1])

        if model.weight.device.type == "cpu":
            _run_flushing_denormals(train)
        else:
            train(Event())
    problem.write_back(model)
    return run.history()


def mean_elbo(moments: Moments, like: Tensor) -> Callable[..., Tensor]:
    """Give the mean ELBO over the data as a function of weight, encoder, mu, log_d, log_sigma2 and beta.

    The statistics are cast here, once, to the dtype and device of ``like``: those of the parameters.
    """
    sample_mean, factor = moments.sample_mean.to(like), moments._factor
    if factor is not None and 2 * factor.shape[1] <= factor.shape[0]:  # 8 D r K flops against 4 D² K
        return partial(linear_vae_elbo_from_factor, sample_mean, factor.to(like))
    return partial(linear_vae_elbo_from_moments, sample_mean, moments.covariance.to(like))


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """The plain arguments on which the result of a run depends."""

    objective: str
    steps: int
    batch_size: int | None
    beta: float
    learn_sigma2: bool
    seed: int
    drop_constant_features: bool
    history_every: int
    history_gap: bool

    def __post_init__(self) -> None:
        if self.objective not in ("analytic", "stochastic"):
            raise ValueError(
                f"LinearVAE.fit: objective must be 'analytic' or 'stochastic', got {self.objective!r}"
            )
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"LinearVAE.fit: beta must be finite and >= 0, got {self.beta}")
        if self.history_gap and self.beta != 1:
            raise ValueError(f"LinearVAE.fit: beta must be 1 where history_gap is asked for, got {self.beta}")
        if self.batch_size is not None and self.objective == "analytic":
            raise ValueError(
                "LinearVAE.fit: batch_size must be None for the analytic objective, whose steps cost the "
                f"same for any number of samples, got {self.batch_size}"
            )


class _Problem:
    """What is maximised, over what: a copy of the model on the features that are kept, and its objective."""

    def __init__(self, model: LinearVAE, data: Tensor | NDArray[Any] | Moments, settings: _Settings) -> None:
        moments, samples = _read_data(model, data, settings)
        constant = moments.constant_features().to(model.weight.device)
        if not settings.drop_constant_features:
            constant.zero_()
        self.kept, self.dropped = (~constant).nonzero()[:, 0], constant.nonzero()[:, 0]
        self._dropped_mean = moments.sample_mean.to(model.mu)[self.dropped]
        if not len(self.kept):
            raise ValueError("LinearVAE.fit: data must vary in some feature where constant ones are dropped")
        if len(self.dropped):
            frozen = [name for name in _OF_FEATURES if not model.get_parameter(name).requires_grad]
            if frozen:
                raise ValueError(
                    "LinearVAE.fit: drop_constant_features must be False where weight, encoder or mu is "
                    f"frozen, since it sets their entries; got frozen {', '.join(frozen)}"
                )
            moments = moments.select(self.kept.to(moments.device))
            samples = None if samples is None else samples[:, self.kept]

        self.model = _working_copy(model, self.kept)
        self.model.log_sigma2.requires_grad_(settings.learn_sigma2 and model.log_sigma2.requires_grad)
        self.trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        if not self.trained:
            raise ValueError("LinearVAE.fit: some parameter must require grad, got all frozen")
        self._parameters = tuple(self.model.get_parameter(name) for name in _ARGUMENTS)
        self._beta, self._num_features = settings.beta, model.num_features
        self._exact_elbo = mean_elbo(moments, self.model.weight.double())
        self._optimum = None
        if settings.history_gap:
            self._optimum = Optimum(
                "LinearVAE.fit",
                moments,
                model.latent_dim,
                like=self.model.weight.double(),
                num_features=model.num_features,
            )
        if samples is None:
            self.objective = self._analytic(moments)
        else:
            self.objective = self._stochastic(samples, settings)

    def exact_elbo(self) -> float:
        """Analytic ELBO of the data, evaluated in float64."""
        parameters = (parameter.detach().double() for parameter in self._parameters)
        return self._exact_elbo(*parameters, self._beta, num_features=self._num_features).item()

    def gap(self, elbo: float) -> tuple[float, ...]:
        """Give the parts of the gap to the largest ELBO, where they are asked for."""
        if self._optimum is None:
            return ()
        return tuple(self._optimum.decompose(self.model, elbo).parts.values())

    def write_back(self, model: LinearVAE) -> None:
        """Set ``model`` to the result."""
        with torch.no_grad():
            model.weight[self.kept] = self.model.weight
            model.weight[self.dropped] = 0
            model.encoder[:, self.kept] = self.model.encoder
            model.encoder[:, self.dropped] = 0
            model.mu[self.kept] = self.model.mu
            model.mu[self.dropped] = self._dropped_mean
            model.log_d.copy_(self.model.log_d)
            model.log_sigma2.copy_(self.model.log_sigma2)

    def _analytic(self, moments: Moments) -> Callable[[int], Tensor]:
        elbo = mean_elbo(moments, self.model.weight)
        return lambda step: elbo(*self._parameters, self._beta, num_features=self._num_features)

    def _stochastic(self, samples: Tensor, settings: _Settings) -> Callable[[int], Tensor]:
        num_samples, device = len(samples), samples.device
        batch_size = settings.batch_size or num_samples
        batches_per_epoch = math.ceil(num_samples / batch_size)
        no_distortion = samples.new_zeros(())

        @lru_cache(maxsize=1)
        def order(epoch: int) -> Tensor:
            generator = _generator(device, settings.seed, _ORDER, epoch)
            return torch.randperm(num_samples, generator=generator, device=device)

        def batch(step: int) -> Tensor:
            if batch_size == num_samples:
                return samples
            epoch, index = divmod(step, batches_per_epoch)
            return samples[order(epoch)[index * batch_size : (index + 1) * batch_size]]

        def elbo(step: int) -> Tensor:
            noise = _generator(device, settings.seed, _NOISE, step)
            of_kept = self.model.stochastic_elbo(batch(step), generator=noise, beta=self._beta).mean()
            return of_kept + gaussian_term(no_distortion, self.model.log_sigma2, len(self.dropped))

        return elbo


class _Run:
    """The state of a run, all of which a checkpoint holds."""

    def __init__(self, problem: _Problem, optimizer: Optimizer) -> None:
        self.problem = problem
        self.optimizer = optimizer
        self.step = 0
        # step, ELBO, log σ² and the parts of the gap, if these are asked for
        self.records: list[tuple[float, ...]] = []

    def advance(self) -> None:
        """Take one step."""
        self.optimizer.step(self._loss_with_gradients)
        self.step += 1

    def finite_elbo(self) -> float:
        """Evaluate the ELBO of the data, which must be finite."""
        elbo = self.problem.exact_elbo()
        if not math.isfinite(elbo):
            last = "none was recorded"
            if self.records:
                last = f"the last finite one was {self.records[-1][1]}, at step {self.records[-1][0]:.0f}"
            raise FloatingPointError(f"LinearVAE.fit: the ELBO is {elbo} at step {self.step}; {last}")
        return elbo

    def record(self, elbo: float) -> None:
        """Add an entry to the history."""
        self.records.append((self.step, elbo, self.problem.model.log_sigma2.item(), *self.problem.gap(elbo)))

    def history(self) -> History:
        """Give the history so far."""
        steps, elbo, log_sigma2, *gap = np.array(self.records).T
        return History(
            steps.astype(np.int64),
            elbo,
            log_sigma2,
            self.problem.dropped.cpu().numpy(),
            dict(zip(PARTS, gap, strict=True)) if gap else None,
        )

    def _loss_with_gradients(self) -> Any:
        self.optimizer.zero_grad()
        with torch.enable_grad():  # also where the caller has switched gradients off
            loss = -self.problem.objective(self.step)
            torch.autograd.backward(loss)
        return loss


@dataclass(frozen=True)
class _Checkpoint:
    """The file of a run; a run may continue from it that has the same identity."""

    path: Path
    identity: dict[str, Any]

    def save(self, run: _Run) -> None:
        """Write the state of the run."""
        tensors: dict[str, Tensor] = dict(run.problem.model.named_parameters(prefix="parameter"))
        tensors["history"] = torch.tensor(run.records, dtype=torch.float64)
        optimizer = _pack(run.optimizer.state_dict(), "optimizer", tensors)
        state = {"identity": self.identity, "step": run.step, "optimizer": optimizer}
        write_tensors(self.path, "LinearVAE.fit", tensors, state=json.dumps(state))

    def load(self, run: _Run) -> None:
        """Set the state of the run."""
        tensors, metadata = read_tensors("LinearVAE.fit", self.path, "LinearVAE.fit")
        state = json.loads(metadata["state"])
        found = state["identity"]
        differences = [
            f"{key} {found.get(key)!r} instead of {self.identity.get(key)!r}"
            for key in {**self.identity, **found}
            if found.get(key) != self.identity.get(key)
        ]
        if differences:
            raise ValueError(f"LinearVAE.fit: {self.path} is of another run, with {', '.join(differences)}")
        with torch.no_grad():
            for name, parameter in run.problem.model.named_parameters(prefix="parameter"):
                parameter.copy_(tensors[name])
        run.optimizer.load_state_dict(_unpack(state["optimizer"], tensors))
        run.records = [tuple(record) for record in tensors["history"].tolist()]
        run.step = state["step"]


def _read_data(
    model: LinearVAE, data: Tensor | NDArray[Any] | Moments, settings: _Settings
) -> tuple[Moments, Tensor | None]:
    """Moments of the data, and the samples where the objective needs them."""
    if model.weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"LinearVAE.fit: the module must be float32 or float64, got {model.weight.dtype}")
    samples = None
    if isinstance(data, Moments):
        moments = data
        if settings.objective == "stochastic":
            raise ValueError("LinearVAE.fit: data must be samples for the stochastic objective, got Moments")
    else:
        moments = Moments.from_data(data)
        if settings.objective == "stochastic":
            samples = _as_tensor(data).to(model.weight)
    if moments.num_features != model.num_features:
        raise ValueError(
            f"LinearVAE.fit: data must have the {model.num_features} features of the module, "
            f"got {moments.num_features}"
        )
    if settings.batch_size is not None and settings.batch_size > moments.num_samples:
        raise ValueError(
            f"LinearVAE.fit: batch_size must be at most the {moments.num_samples} samples, "
            f"got {settings.batch_size}"
        )
    return moments, samples


def _as_tensor(data: Tensor | NDArray[Any]) -> Tensor:
    """Give samples as a tensor, those of an array in its dtype where torch has it."""
    if isinstance(data, Tensor):
        return data.detach()
    dtype = np.dtype(np.float64) if data.dtype.type is np.longdouble else data.dtype.newbyteorder("=")
    return torch.tensor(np.ascontiguousarray(data, dtype))


def _working_copy(model: LinearVAE, kept: Tensor) -> LinearVAE:
    """Copy the model on some of its features."""
    working = copy.deepcopy(model)
    selected = {"weight": model.weight[kept], "encoder": model.encoder[:, kept], "mu": model.mu[kept]}
    for name, values in selected.items():
        requires_grad = model.get_parameter(name).requires_grad
        setattr(working, name, nn.Parameter(values.detach().contiguous(), requires_grad))
    return working


def _make_optimizer(
    optimizer: str | Callable[[list[nn.Parameter]], Optimizer], parameters: list[nn.Parameter], lr: float
) -> Optimizer:
    if callable(optimizer):
        made = optimizer(parameters)
        if not isinstance(made, Optimizer):
            raise TypeError(
                f"LinearVAE.fit: optimizer must return a torch.optim.Optimizer, got {type(made).__name__}"
            )
        return made
    if not isinstance(optimizer, str) or optimizer not in _OPTIMIZERS:
        raise ValueError(
            f"LinearVAE.fit: optimizer must be one of {sorted(_OPTIMIZERS)} or a function, got {optimizer!r}"
        )
    lr = check_number("LinearVAE.fit", "lr", lr)
    if not 0 < lr < math.inf:
        raise ValueError(f"LinearVAE.fit: lr must be finite and > 0, got {lr}")
    return _OPTIMIZERS[optimizer](parameters, lr=lr, fused=True)


def _generator(device: torch.device, *key: int) -> torch.Generator:
    """Make a generator whose numbers are a function of ``key`` alone."""
    (seed,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(seed))


def _run_flushing_denormals(train: Callable[[Event], None]) -> None:
    """Run ``train`` in a thread for which, and for whose workers, denormal numbers are zero.

    The processor's flag belongs to a thread, and a new thread inherits it. Set in the calling thread it
    would miss the OpenMP workers that are there already, and the result would depend on what the process did
    before.
    """
    interrupted = Event()
    with ThreadPoolExecutor(1, initializer=torch.set_flush_denormal, initargs=(True,)) as executor:
        try:
            executor.submit(train, interrupted).result()
        finally:
            interrupted.set()


def _identity(data: Tensor | NDArray[Any] | Moments, settings: _Settings, run: _Run) -> dict[str, Any]:
    """Give what the result of a run depends on, initial parameters apart, in a form that JSON gives back."""
    groups = run.optimizer.state_dict()["param_groups"]
    return {
        **asdict(settings),
        "optimizer": type(run.optimizer).__qualname__,
        **{f"optimizer's {option}": [repr(group[option]) for group in groups] for option in groups[0]},
        "latent_dim": run.problem.model.latent_dim,
        "trained": list(run.problem.trained),
        "dtype": str(run.problem.model.weight.dtype),
        "data": _fingerprint(data),
    }


def _fingerprint(data: Tensor | NDArray[Any] | Moments) -> str:
    """Hash the values of the data."""
    if isinstance(data, Moments):
        spread = data._factor if data._factor is not None else data.covariance
        parts = [torch.tensor(float(data.num_samples)), data.sample_mean, spread]
    else:
        parts = [_as_tensor(data)]
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{tuple(part.shape)} {part.dtype}".encode())
        digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Give ``value`` as JSON; its tensors go into ``tensors``, under names that begin with ``name``."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, _pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        "LinearVAE.fit: an optimizer with a checkpoint must have a state of tensors, numbers and strings "
        f"in dicts and lists, got a {type(value).__name__} at {name}"
    )


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo :func:`_pack`."""
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpack(item, tensors) for key, item in value["items"]}
    return value
