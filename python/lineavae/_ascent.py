"""Gradient ascent on a mean ELBO, resumable to the bit: what every training of models here shares.

Everything random is a function of (seed, step), so that a run killed at any moment and resumed from its last
checkpoint ends where the uninterrupted run ends.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import Optimizer

from lineavae._arguments import check_integer, check_number
from lineavae._tensor_file import read_tensors, write_tensors

_OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}

# One stream of random numbers for each purpose.
_NOISE, _ORDER = 0, 1


@dataclass(kw_only=True)
class Settings:
    """The plain arguments on which the result of a run depends; a model adds its own.

    ``caller`` names the method in errors and in checkpoints.
    """

    caller: ClassVar[str]

    objective: str
    steps: int
    batch_size: int | None
    beta: float
    seed: int
    history_every: int

    def __post_init__(self) -> None:
        if self.objective not in ("analytic", "stochastic"):
            raise ValueError(
                f"{self.caller}: objective must be 'analytic' or 'stochastic', got {self.objective!r}"
            )
        self.steps = check_integer(self.caller, "steps", self.steps, minimum=1)
        if self.batch_size is not None:
            self.batch_size = check_integer(self.caller, "batch_size", self.batch_size, minimum=1)
        self.beta = check_number(self.caller, "beta", self.beta, at_least=0)
        self.seed = check_integer(self.caller, "seed", self.seed, minimum=0)
        self.history_every = check_integer(self.caller, "history_every", self.history_every, minimum=1)


class Problem(ABC):
    """What is maximised, over what: the ELBO of some data, over parameters that belong to the run."""

    def __init__(self, settings: Settings, parameters: Mapping[str, nn.Parameter], latent_dim: int) -> None:
        self.settings = settings
        self.parameters = dict(parameters)
        self.latent_dim = latent_dim
        self.trained = {name: value for name, value in self.parameters.items() if value.requires_grad}
        if not self.trained:
            raise ValueError(f"{settings.caller}: some parameter must require grad, got all frozen")
        first = next(iter(self.parameters.values()))
        self.dtype, self.device = first.dtype, first.device

    @abstractmethod
    def objective(self, step: int) -> Tensor:
        """Mean ELBO, or an estimate of it, whose gradient the step follows."""

    def differentiate(self, step: int) -> Tensor:
        """Give the loss, the objective's negative, and set its gradients."""
        for parameter in self.trained.values():
            parameter.grad = None
        with torch.enable_grad():  # also where the caller has switched gradients off
            loss = -self.objective(step)
            torch.autograd.backward(loss)
        return loss

    @abstractmethod
    def exact_elbo(self) -> float:
        """Mean ELBO of the data, evaluated in float64."""

    @abstractmethod
    def record(self, elbo: float) -> tuple[float, ...]:
        """Give what the history holds beside the step and the ELBO."""

    @abstractmethod
    def data(self) -> list[Tensor]:
        """Give what a checkpoint recognises the data by."""


def ascend(
    problem: Problem,
    *,
    optimizer: str | Callable[[list[nn.Parameter]], Optimizer],
    lr: float,
    checkpoint: str | Path | None,
    checkpoint_every: int,
    resume: bool,
    progress: bool,
    log: Callable[[list[tuple[float, ...]]], None] | None = None,
    keep: Callable[[], None] | None = None,
) -> NDArray[np.float64]:
    """Run the steps; give the history, a row for each quantity: steps, ELBO, and what the problem records.

    ``log`` is called with all records so far when there is a new one, and ``keep`` when the run has ended or
    was interrupted, to take the parameters from the problem.
    """
    settings, caller = problem.settings, problem.settings.caller
    if torch.is_inference_mode_enabled():
        raise RuntimeError(f"{caller}: gradients must be enabled, got a call in torch.inference_mode")
    checkpoint_every = check_integer(caller, "checkpoint_every", checkpoint_every, minimum=1)
    if resume and checkpoint is None:
        raise ValueError(f"{caller}: checkpoint must be given to resume from, got None")
    run = _Run(problem, _make_optimizer(caller, optimizer, list(problem.trained.values()), lr))
    file = None
    if checkpoint is not None:
        file = _Checkpoint(caller, Path(checkpoint), _identity(run))
        if resume and file.path.exists():
            file.load(run)

    console = Console(stderr=True)
    with Progress(
        TextColumn("ELBO {task.fields[elbo]:.2f}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (progress and (console.is_terminal or _is_notebook_with_widgets(console))),
    ) as bar:
        task = bar.add_task("", total=settings.steps, completed=run.step, elbo=math.nan)

        def record(elbo: float) -> None:
            run.record(elbo)
            if log is not None:
                log(run.records)

        def train(interrupted: Event) -> None:
            if not run.records:
                record(run.finite_elbo())
            while run.step < settings.steps and not interrupted.is_set():
                run.advance()
                is_last = run.step == settings.steps
                recording = is_last or run.step % settings.history_every == 0
                saving = file is not None and (is_last or run.step % checkpoint_every == 0)
                if recording or saving:
                    elbo = run.finite_elbo()
                    if recording:
                        record(elbo)
                    if file is not None and saving:
                        file.save(run)
                bar.update(task, completed=run.step, elbo=run.records[-1][1])

        try:
            if problem.device.type == "cpu":
                run_flushing_denormals(train)
            else:
                train(Event())
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_end_early(run, keep)) from None
    if keep is not None:
        keep()
    return np.array(run.records).T


def _end_early(run: _Run, keep: Callable[[], None] | None) -> str:
    """Keep the parameters of an interrupted run, if they are finite, and say so."""
    elbo, settings = run.problem.exact_elbo(), run.problem.settings
    text = f"{settings.caller} was interrupted at step {run.step} of {settings.steps}, ELBO {elbo:.6g}"
    if keep is None:
        return text
    if not math.isfinite(elbo):
        return f"{text}: the parameters are as before"
    keep()
    return f"{text}: the parameters are those of this step"


def history_table(steps: NDArray[np.int64], columns: Mapping[str, NDArray[np.float64]]) -> str:
    """Give a history as text, in ten rows at the most, evenly from the first to the last."""
    rows = [f"{'step':>8}" + "".join(f"{name:>12}" for name in columns)]
    for index in np.unique(np.linspace(0, len(steps) - 1, 10).round().astype(int)):
        numbers = "".join(f"{values[index]:>12.6g}" for values in columns.values())
        rows.append(f"{steps[index]:>8}{numbers}")
    return "\n".join(rows)


def _is_notebook_with_widgets(console: Console) -> bool:
    # without them rich warns, and shows nothing
    return console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None


def noise(settings: Settings, step: int, device: torch.device) -> torch.Generator:
    """Source of the noise of a step."""
    return _generator(device, settings.seed, _NOISE, step)


def noise_seed(settings: Settings, step: int) -> int:
    """Seed of the noise of a step, for operators that take one in place of a generator."""
    return _derived_seed(settings.seed, _NOISE, step) >> 1  # below 2⁶³


def batches(settings: Settings, samples: Tensor) -> Callable[[int], Tensor]:
    """Give the batch of a step: all samples, or of the next ``batch_size`` in the order of the epoch."""
    num_samples, batch_size, device = len(samples), settings.batch_size, samples.device
    if batch_size is None or batch_size == num_samples:
        return lambda step: samples
    if batch_size > num_samples:
        raise ValueError(
            f"{settings.caller}: batch_size must be at most the {num_samples} samples, got {batch_size}"
        )
    batches_per_epoch = math.ceil(num_samples / batch_size)

    @lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        generator = _generator(device, settings.seed, _ORDER, epoch)
        return torch.randperm(num_samples, generator=generator, device=device)

    def batch(step: int) -> Tensor:
        epoch, index = divmod(step, batches_per_epoch)
        return samples[order(epoch)[index * batch_size : (index + 1) * batch_size]]

    return batch


def as_tensor(data: Tensor | NDArray[Any]) -> Tensor:
    """Give samples as a tensor, those of an array in its dtype where torch has it."""
    if isinstance(data, Tensor):
        return data.detach()
    dtype = np.dtype(np.float64) if data.dtype.type is np.longdouble else data.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(data, dtype, order="C"))  # a copy, which has no negative strides


class _Run:
    """The state of a run, all of which a checkpoint holds."""

    def __init__(self, problem: Problem, optimizer: Optimizer) -> None:
        self.problem = problem
        self.optimizer = optimizer
        self.step = 0
        self.records: list[tuple[float, ...]] = []

    def advance(self) -> None:
        """Take one step."""
        self.optimizer.step(self._differentiate)
        self.step += 1

    def finite_elbo(self) -> float:
        """Evaluate the ELBO of the data, which must be finite."""
        elbo = self.problem.exact_elbo()
        if not math.isfinite(elbo):
            last = "none was recorded"
            if self.records:
                last = f"the last finite one was {self.records[-1][1]}, at step {self.records[-1][0]:.0f}"
            caller = self.problem.settings.caller
            raise FloatingPointError(f"{caller}: the ELBO is {elbo} at step {self.step}; {last}")
        return elbo

    def record(self, elbo: float) -> None:
        """Add an entry to the history."""
        self.records.append((self.step, elbo, *self.problem.record(elbo)))

    def _differentiate(self) -> Any:
        return self.problem.differentiate(self.step)


@dataclass(frozen=True)
class _Checkpoint:
    """The file of a run; a run may continue from it that has the same identity."""

    caller: str
    path: Path
    identity: dict[str, Any]

    def save(self, run: _Run) -> None:
        """Write the state of the run."""
        tensors: dict[str, Tensor] = {
            f"parameter.{name}": parameter for name, parameter in run.problem.parameters.items()
        }
        tensors["history"] = torch.tensor(run.records, dtype=torch.float64, device="cpu")
        optimizer = _pack(self.caller, run.optimizer.state_dict(), "optimizer", tensors)
        state = {"identity": self.identity, "step": run.step, "optimizer": optimizer}
        write_tensors(self.path, self.caller, tensors, state=json.dumps(state))

    def load(self, run: _Run) -> None:
        """Set the state of the run."""
        tensors, metadata = read_tensors(self.caller, self.path, self.caller, "state")
        try:
            state = json.loads(metadata["state"])
            found = dict(state["identity"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise self._damaged(error) from error
        differences = [
            f"{key} {found.get(key)!r} instead of {self.identity.get(key)!r}"
            for key in {**self.identity, **found}
            if found.get(key) != self.identity.get(key)
        ]
        if differences:
            raise ValueError(f"{self.caller}: {self.path} is of another run, with {', '.join(differences)}")
        try:
            with torch.no_grad():
                for name, parameter in run.problem.parameters.items():
                    parameter.copy_(tensors[f"parameter.{name}"])
            run.optimizer.load_state_dict(_unpack(state["optimizer"], tensors))
            run.records = [tuple(record) for record in tensors["history"].tolist()]
            run.step = check_integer(self.caller, "step", state["step"], minimum=0)
        except Exception as error:  # any that an optimizer may raise of a state that is none
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(
            f"{self.caller}: {self.path} is no checkpoint of this run ({type(error).__name__}: {error}): "
            "delete it to begin anew"
        )


def _make_optimizer(
    caller: str,
    optimizer: str | Callable[[list[nn.Parameter]], Optimizer],
    parameters: list[nn.Parameter],
    lr: float,
) -> Optimizer:
    if callable(optimizer):
        made = optimizer(parameters)
        if not isinstance(made, Optimizer):
            raise TypeError(
                f"{caller}: optimizer must return a torch.optim.Optimizer, got {type(made).__name__}"
            )
        return made
    if not isinstance(optimizer, str) or optimizer not in _OPTIMIZERS:
        raise ValueError(
            f"{caller}: optimizer must be one of {sorted(_OPTIMIZERS)} or a function, got {optimizer!r}"
        )
    lr = check_number(caller, "lr", lr, above=0)
    return _OPTIMIZERS[optimizer](parameters, lr=lr, fused=True)


def _generator(device: torch.device, *key: int) -> torch.Generator:
    """Make a generator whose numbers are a function of ``key`` alone."""
    return torch.Generator(device).manual_seed(_derived_seed(*key))


def _derived_seed(*key: int) -> int:
    (seed,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return int(seed)


def run_flushing_denormals(train: Callable[[Event], None]) -> None:
    """Run ``train`` in a thread for which, and for whose workers, denormal numbers are zero.

    The processor's flag belongs to a thread, and a new thread inherits it. Set in the calling thread it
    would miss the OpenMP workers that are there already, and the result would depend on what the process did
    before.
    """
    interrupted, is_waited_for = Event(), Event()

    def begin() -> None:
        # an executor that Ctrl-C finds still starting its thread does not wait for it in the end
        is_waited_for.wait()
        if not interrupted.is_set():
            train(interrupted)

    with ThreadPoolExecutor(1, initializer=torch.set_flush_denormal, initargs=(True,)) as executor:
        try:
            result = executor.submit(begin)
            is_waited_for.set()
            result.result()
        finally:
            interrupted.set()
            is_waited_for.set()


def _identity(run: _Run) -> dict[str, Any]:
    """Give what the result of a run depends on, initial parameters apart, in a form that JSON gives back."""
    problem, groups = run.problem, run.optimizer.state_dict()["param_groups"]
    return {
        **asdict(problem.settings),
        "optimizer": type(run.optimizer).__qualname__,
        **{f"optimizer's {option}": [repr(group[option]) for group in groups] for option in groups[0]},
        "latent_dim": problem.latent_dim,
        "trained": list(problem.trained),
        "dtype": str(problem.dtype),
        "data": fingerprint(problem.data()),
    }


def fingerprint(data: list[Tensor]) -> str:
    """Hash the values of some data."""
    digest = hashlib.blake2b(digest_size=16)
    for part in data:
        digest.update(f"{tuple(part.shape)} {part.dtype}".encode())
        digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pack(caller: str, value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Give ``value`` as JSON; its tensors go into ``tensors``, under names that begin with ``name``."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = [[key, _pack(caller, item, f"{name}.{key}", tensors)] for key, item in value.items()]
        return {"items": items}
    if isinstance(value, list | tuple):
        return [_pack(caller, item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{caller}: an optimizer with a checkpoint must have a state of tensors, numbers and strings "
        f"in dicts and lists, got a {type(value).__name__} at {name}"
    )


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `_pack`."""
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpack(item, tensors) for key, item in value["items"]}
    return value
