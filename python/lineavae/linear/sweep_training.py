"""How a sweep trains its models.

What trains together is a chunk: models with the same K, as many as there is memory for. A model does not
depend on what else is in its chunk, and chunks do not depend on the machine. So the results are the same
however many processes share the chunks, and whatever interrupts them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from lineavae._ascent import fingerprint, run_flushing_denormals
from lineavae._optional import require
from lineavae._tensor_file import read_tensors, write_tensors
from lineavae.linear.gap import PARTS
from lineavae.linear.grid import CALLER, Grid
from lineavae.linear.moments import Moments
from lineavae.linear.sweep_statistics import Statistics, width_of
from lineavae.linear.vae import LinearVAE
from lineavae.ops import linear_vae_ascent
from lineavae.reference.linear_vae_ascent import num_parameters, split_parameters

if TYPE_CHECKING:
    from xarray import Dataset

# Models of a chunk by the kind of device: enough to keep it busy.
_MOST_MODELS = {"cpu": 256, "cuda": 4096}

# Steps of one call, between which Ctrl-C is heard and the progress is shown.
_STEPS = 200


@dataclass
class _Chunk:
    """The state of models that train together, all of which a checkpoint holds."""

    parameters: Tensor
    first_moment: Tensor
    second_moment: Tensor
    active: Tensor
    steps_taken: Tensor
    gradient_norm: Tensor
    records: Tensor
    """(M, P', C), of which P' have been made."""
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Training:
    """The arguments of a sweep, checked one by one; together they are checked here."""

    moments: Moments
    grid: Grid
    steps: int
    learn_sigma2: bool
    optimizer: str
    rank: int | None
    record: tuple[str, ...]
    record_at: list[int]
    tolerance: float
    epsilon: float
    keep_models: bool
    dtype: torch.dtype
    device: torch.device
    memory: float

    def __post_init__(self) -> None:
        if self.rank is not None and not self._widest <= self.rank <= len(self._eigenvalues):
            raise ValueError(
                f"{CALLER}: rank must be at least latent_dim, {self._widest}, and at most the "
                f"{len(self._eigenvalues)} principal directions of the data, got {self.rank}"
            )
        results = self.grid.num_models * (
            8 * (len(self.record_at) * self._width + 2) + self._num_kept * self.dtype.itemsize
        )
        if results > self.memory:
            raise ValueError(
                f"{CALLER}: grid must be of models whose results fit in memory, {_gigabytes(self.memory)}, "
                f"got {self.grid.num_models} models with {_gigabytes(results)}: raise memory, or record less"
            )
        if not min(self._models_together.values()):
            raise ValueError(
                f"{CALLER}: the training of one model must fit in memory, {_gigabytes(self.memory)}, got "
                f"D={self.moments.num_features} and latent_dim {self._widest}: raise memory"
            )
        self._statistics  # noqa: B018  they may not be defined

    def identity(self) -> dict[str, Any]:
        """Give what the results depend on, as JSON has it."""
        return {
            **{name: list(axis.tolist()) for name, axis in self.grid.axes.items()},
            **self.grid.fixed,
            "axes": list(self.grid.axes),
            "steps": self.steps,
            "learn_sigma2": self.learn_sigma2,
            "optimizer": self.optimizer,
            "rank": self.rank,
            "record": list(self.record),
            "record_at": self.record_at,
            "tolerance": self.tolerance,
            "epsilon": self.epsilon,
            "keep_models": self.keep_models,
            "dtype": str(self.dtype),
            "device": self.device.type,
            "models together": list(self._models_together.values()),
            "data": fingerprint([self.moments.sample_mean, self.moments.covariance]),
        }

    def run(self, files: Checkpoints | None, progress: bool) -> Dataset:
        """Train all chunks, or the share of this process; give the results of all."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        chunks = list(self.grid.chunks(self._models_together))
        own = range(rank, len(chunks), world)
        num_models = self.grid.num_models
        results = {
            "records": torch.full(
                (num_models, len(self.record_at), self._width), torch.nan, dtype=torch.float64
            ),
            "steps_taken": torch.zeros(num_models, dtype=torch.int64),
            "gradient_norm": torch.full((num_models,), torch.nan, dtype=torch.float64),
            "diverged": torch.zeros(num_models, dtype=torch.int64),
            "parameters": torch.full((num_models, self._num_kept), torch.nan, dtype=self.dtype),
        }

        def train(interrupted: Event) -> None:
            for index in own:
                models = chunks[index]
                chunk = self._train_chunk(index, models, files, interrupted, bar)
                results["records"][models] = chunk.records.cpu()
                results["steps_taken"][models] = chunk.steps_taken.cpu()
                results["gradient_norm"][models] = chunk.gradient_norm.double().cpu()
                results["diverged"][models] = (~chunk.parameters.isfinite().all(1)).long().cpu()
                if self.keep_models:
                    parameters = self._of_features(chunk.parameters)
                    results["parameters"][models, : parameters.shape[1]] = parameters.to(
                        results["parameters"]
                    )

        with _progress_bar(progress and rank == 0) as bar:
            bar.add_task(f"{num_models} models", total=self.steps * sum(len(chunks[index]) for index in own))
            run_flushing_denormals(train)
        if world > 1:
            for index, models in enumerate(chunks):
                for values in results.values():
                    of_chunk = values[models]
                    dist.broadcast(of_chunk, index % world)
                    values[models] = of_chunk
        return self._label({name: values.numpy() for name, values in results.items()})

    @cached_property
    def _statistics(self) -> dict[int, Statistics]:
        """By K."""
        return {
            latent_dim: Statistics(
                self.moments,
                latent_dim,
                self._widest,
                self.record,
                self.epsilon,
                self.device,
                directions=self._eigh[1],
            )
            for latent_dim in self.grid.latent_dims
        }

    @cached_property
    def _models_together(self) -> dict[int, int]:
        """How many models may train together, for each K."""
        num_features, together = self.moments.num_features, {}
        for latent_dim in self.grid.latent_dims:
            # parameters and moments before and after a step, and their evaluation in float64
            training = 6 * num_parameters(self.rank or num_features, latent_dim) * self.dtype.itemsize
            evaluation = 8 * (4 * num_features * latent_dim + num_features**2)
            together[latent_dim] = min(
                _MOST_MODELS[self.device.type], int(self.memory / (training + evaluation))
            )
        return together

    @cached_property
    def _eigh(self) -> tuple[Tensor, Tensor]:
        return self.moments.eigh()

    @property
    def _eigenvalues(self) -> Tensor:
        return self._eigh[0]

    @cached_property
    def _directions(self) -> Tensor | None:
        """The basis (D, r) of the coordinates in which the models train, unless these are the features."""
        return None if self.rank is None else self._eigh[1][:, : self.rank].to(self.device)

    @cached_property
    def _covariance(self) -> Tensor:
        """In those coordinates."""
        covariance = self.moments.covariance if self.rank is None else self._eigenvalues[: self.rank].diag()
        return covariance.to(self.device, self.dtype)

    def _of_features(self, parameters: Tensor) -> Tensor:
        """Give the parameters of models over the features, in float64 where they train in others."""
        if self._directions is None:
            return parameters
        return _transform(self._directions, parameters.double())

    @property
    def _widest(self) -> int:
        return self.grid.latent_dims[-1]

    @property
    def _width(self) -> int:
        return sum(width_of(name, self._widest) for name in self.record)

    @property
    def _num_kept(self) -> int:
        return num_parameters(self.moments.num_features, self._widest) if self.keep_models else 0

    @torch.no_grad()  # of the thread that trains
    def _train_chunk(
        self,
        index: int,
        models: NDArray[np.int64],
        files: Checkpoints | None,
        interrupted: Event,
        bar: Progress,
    ) -> _Chunk:
        settings = {name: torch.from_numpy(values) for name, values in self.grid.of(models).items()}
        latent_dim = int(settings["latent_dim"][0])
        statistics = self._statistics[latent_dim]
        chunk = files.load(index, self.device) if files else None
        if chunk is None:
            chunk = self._begin(settings, latent_dim)
        done = 0
        while not interrupted.is_set():
            num_records = chunk.records.shape[1]
            if num_records < len(self.record_at) and self.record_at[num_records] == chunk.step:
                found = statistics.evaluate(self._of_features(chunk.parameters))
                chunk.records = torch.cat([chunk.records, found.unsqueeze(1)], 1)
            bar.update(bar.task_ids[0], advance=len(models) * (chunk.step - done))
            done = chunk.step
            if files and done and (done == self.steps or done % files.every == 0):
                files.save(index, chunk)
            if done == self.steps:
                break
            stops = [step for step in (*self.record_at, self.steps) if step > done]
            spans = [_STEPS, *([files.every] if files else [])]
            self._ascend(chunk, settings, min(*stops, *((done // span + 1) * span for span in spans)))
        return chunk

    def _begin(self, settings: Mapping[str, Tensor], latent_dim: int) -> _Chunk:
        """Initialise models as `LinearVAE` does."""
        seeds, of_seed = torch.unique(settings["seed"], return_inverse=True)
        matrices: list[Tensor] = []
        log_d: list[Tensor] = []
        for seed in seeds.tolist():
            generator = torch.Generator("cpu").manual_seed(seed)
            sizes = self.moments.num_features, latent_dim
            vae = LinearVAE(*sizes, generator=generator, dtype=self.dtype, device="cpu")
            matrices.append(torch.cat([vae.weight.flatten(), vae.encoder.mT.flatten()]))
            log_d.append(vae.log_d)
        scale = settings["init_scale"].to(self.dtype).unsqueeze(1)
        log_sigma2 = settings["sigma2"].log().to(self.dtype).unsqueeze(1)
        parts = [scale * torch.stack(matrices)[of_seed], torch.stack(log_d)[of_seed], log_sigma2]
        parameters = torch.cat(parts, 1).to(self.device)
        if self._directions is not None:
            parameters = _transform(self._directions.mT, parameters.double()).to(self.dtype)
        num_models = len(parameters)
        moments = torch.zeros_like(parameters if self.optimizer == "adam" else parameters[:, :0])
        return _Chunk(
            parameters,
            moments,
            moments.clone(),
            active=torch.ones(num_models, dtype=torch.bool, device=self.device),
            steps_taken=torch.zeros(num_models, dtype=torch.int64, device=self.device),
            gradient_norm=parameters.new_full((num_models,), torch.nan),
            records=parameters.new_empty((num_models, 0, self._width), dtype=torch.float64),
        )

    def _ascend(self, chunk: _Chunk, settings: Mapping[str, Tensor], until: int) -> None:
        """Take the steps of a chunk up to ``until``."""
        steps = torch.arange(chunk.step, until, dtype=torch.float64)
        ramp = settings["annealing_steps"].unsqueeze(1)
        beta = settings["beta"].unsqueeze(1) * torch.where(steps < ramp, steps / ramp, 1.0)
        lr = settings["lr"].unsqueeze(1).expand_as(beta)
        found = linear_vae_ascent(
            self._covariance,
            chunk.parameters,
            chunk.first_moment,
            chunk.second_moment,
            lr.to(chunk.parameters),
            beta.to(chunk.parameters),
            chunk.active,
            step=chunk.step,
            tolerance=self.tolerance,
            learn_sigma2=self.learn_sigma2,
            omitted_features=self.moments.num_features - len(self._covariance),
            omitted_variance=0.0 if self.rank is None else self._eigenvalues[self.rank :].sum().item(),
        )
        chunk.gradient_norm = torch.where(chunk.active, found.gradient_norm, chunk.gradient_norm)
        chunk.steps_taken = chunk.steps_taken + found.steps_taken
        chunk.parameters, chunk.first_moment, chunk.second_moment, chunk.active = found[:4]
        chunk.step = until

    def _label(self, results: Mapping[str, NDArray[Any]]) -> Dataset:
        """Give the results as a labelled array."""
        xarray = require("xarray", "dataframe")
        axes, shape = tuple(self.grid.axes), self.grid.shape
        places = np.cumsum([width_of(name, self._widest) for name in self.record])[:-1]
        records = np.split(results["records"].reshape(*shape, len(self.record_at), -1), places, -1)
        labels = {"kl": "latent", "gap": "part"}
        variables: dict[str, Any] = {
            name: ((*axes, "step", labels[name]), values)
            if name in labels
            else ((*axes, "step"), values[..., 0])
            for name, values in zip(self.record, records, strict=True)
        }
        for name in ("steps_taken", "gradient_norm", "diverged"):
            variables[name] = (axes, results[name].reshape(shape))
        if self.keep_models:
            variables["parameters"] = ((*axes, "parameter"), results["parameters"].reshape(*shape, -1))
        variables["eigenvalues"] = ("component", self._eigenvalues.cpu().numpy())
        variables["sample_mean"] = ("feature", self.moments.sample_mean.cpu().numpy())
        coordinates: dict[str, Any] = {**self.grid.axes, **self.grid.fixed, "step": self.record_at}
        if "gap" in self.record:
            coordinates["part"] = list(PARTS)
        attributes = {
            "learn_sigma2": int(self.learn_sigma2),
            "optimizer": self.optimizer,
            **({} if self.rank is None else {"rank": self.rank}),
            "steps": self.steps,
            "tolerance": self.tolerance,
            "epsilon": self.epsilon,
            "dtype": str(self.dtype).removeprefix("torch."),
            "num_samples": self.moments.num_samples,
            "num_features": self.moments.num_features,
        }
        dataset: Dataset = xarray.Dataset(variables, coordinates, attributes)
        return dataset


@dataclass(frozen=True)
class Checkpoints:
    """The files of the chunks in a folder; a sweep may continue from those that have its identity."""

    folder: Path
    every: int
    identity: dict[str, Any]
    resume: bool

    def save(self, index: int, chunk: _Chunk) -> None:
        """Write the state of a chunk."""
        state = {name: value for name, value in vars(chunk).items() if isinstance(value, Tensor)}
        head = json.dumps({"identity": self.identity, "step": chunk.step})
        write_tensors(self._path(index), CALLER, state, state=head)

    def load(self, index: int, device: torch.device) -> _Chunk | None:
        """Read the state of a chunk, where it is to be continued."""
        path = self._path(index)
        if not self.resume or not path.exists():
            return None
        tensors, metadata = read_tensors(CALLER, path, CALLER, "state")
        try:
            state = json.loads(metadata["state"])
            found, step = dict(state["identity"]), int(state["step"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{CALLER}: {path} is damaged ({error}): delete it to begin anew") from error
        differences = [
            f"{key} {found.get(key)!r} instead of {self.identity.get(key)!r}"
            for key in {**self.identity, **found}
            if found.get(key) != self.identity.get(key)
        ]
        if differences:
            raise ValueError(f"{CALLER}: {path} is of another sweep, with {', '.join(differences)}")
        try:
            return _Chunk(**{name: tensor.to(device) for name, tensor in tensors.items()}, step=step)
        except TypeError as error:
            raise ValueError(f"{CALLER}: {path} is no checkpoint of a sweep: delete it") from error

    def _path(self, index: int) -> Path:
        return self.folder / f"chunk-{index:04d}.safetensors"


def _transform(basis: Tensor, parameters: Tensor) -> Tensor:
    """Give W and V of models in other coordinates: (D', D) and of D features -> of D'."""
    weight, encoder_t, log_d, log_sigma2 = split_parameters(parameters, basis.shape[1])
    matrices = ((basis @ matrix).flatten(1) for matrix in (weight, encoder_t))
    return torch.cat([*matrices, log_d, log_sigma2.unsqueeze(1)], 1)


def _progress_bar(show: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (show and console.is_terminal),
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
