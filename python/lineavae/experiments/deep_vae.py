"""How the experiments train deep Gaussian VAEs, and what they measure of them.

What trains together is a chunk: models of one seed with one kind of noise that differ in their initial σ².
They begin with the same weights and see the same batches and the same noise. On a GPU all σ² are one chunk,
which is an `Ensemble`; on a CPU each is one, since with one thread products of this size are as fast one
after another, and what is between them faster (``bench/bench_ensemble.py``). A chunk has a checkpoint of its
own, and on a CPU a thread of its own; so the results are the same however many processes share the chunks,
and whatever interrupts them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from lineavae._ascent import Problem, Settings, ascend, batches, fingerprint, noise_seed
from lineavae._io import atomic_path, write_text
from lineavae._optional import require
from lineavae._paper import DELTA, EPSILON
from lineavae.collapse import CollapseReport, CollapseStatistics, WidePosteriorWarning
from lineavae.data import DataError, bits_per_dimension, dequantize, logit_transform
from lineavae.experiments import processes
from lineavae.experiments.published import Kind, gaussian_elbo
from lineavae.experiments.runs import Config
from lineavae.nn import (
    ConvDecoder,
    ConvEncoder,
    Ensemble,
    GaussianVAE,
    KLAnnealing,
    MLPDecoder,
    MLPEncoder,
    ObservationNoise,
)
from lineavae.ops import reparameterized_kl

# ε in nats at which collapse is counted in the course of a training: eight for each factor of ten.
EPSILONS = tuple(10.0 ** (k / 8) for k in range(-32, 5))

# Posterior draws of each image in an evaluation, and pixels in one part of it.
_NUM_DRAWS = 2
_EVALUATED_TOGETHER = 2000 * 784


@dataclass(frozen=True, kw_only=True)
class DeepConfig(Config):
    """The models of an experiment and their training.

    Attributes
    ----------
    logits
        Whether the models are of the logits of the pixels, or of the pixels.
    sigma2
        Initial values of σ².
    seeds
        Of the trials: each fixes initial weights, batches and noise. The images are those of ``seed``.
    latent_dim
        Latent dimensions K.
    hidden
        Widths of the encoder's hidden layers; the decoder's are the same in reverse. None for convolutional
        networks of images of 64 x 64 pixels.
    epochs, batch_size
        Epochs of Adam, and the samples of each of its steps.
    learning_rates
        Grid, from which each row of a table takes what ends with the best ELBO.
    standardise
        Whether the encoder sees the data less their mean and divided by one number, so that their variance is
        1, and the decoder begins with the mean of logits; without it both are as in the paper.
    record_every
        Epochs from one evaluation, which is also a checkpoint, to the next.
    precision
        "float32", or "bfloat16" for the networks in training by autocast; everything else is float32.
    compile
        Whether ``torch.compile`` makes the training step.
    tensorboard
        Whether to write event files for TensorBoard as well as the CSV files.
    """

    logits: bool
    sigma2: tuple[float, ...]
    seeds: tuple[int, ...]
    latent_dim: int = 200
    hidden: tuple[int, ...] | None
    epochs: int
    batch_size: int
    learning_rates: tuple[float, ...]
    standardise: bool
    record_every: int = 20
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        if self.standardise and self.hidden is None:
            raise ValueError("standardise must be False for convolutional networks, got True")
        for name in ("sigma2", "seeds", "learning_rates"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} must have at least one value, got none")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must have each value once, got {', '.join(map(str, values))}")

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; the last may be of fewer samples."""
        return math.ceil(self.num_images / self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of a whole training."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Chunk:
    """Models that train together, one for each initial σ²."""

    kind: Kind
    sigma2: tuple[float, ...]
    seed: int
    learning_rate: float
    annealing_epochs: int = 0

    def __str__(self) -> str:
        annealed = f", KL annealed over {self.annealing_epochs} epochs" if self.annealing_epochs else ""
        sigma2 = ", ".join(f"{value:g}" for value in self.sigma2)
        return f"{self.kind} σ² {sigma2}, seed {self.seed}, learning rate {self.learning_rate:g}{annealed}"


def chunks_of(config: DeepConfig, kinds: Iterable[Kind] = ("fixed", "learned")) -> list[Chunk]:
    """Give all chunks of a configuration without annealing."""
    alone = [(value,) for value in config.sigma2]
    return [
        Chunk(kind, sigma2, seed, lr)
        for kind in kinds
        for seed in config.seeds
        for lr in config.learning_rates
        for sigma2 in (alone if _is_on_cpu(config) else [config.sigma2])
    ]


def _is_on_cpu(config: DeepConfig) -> bool:
    return torch.device(config.device).type == "cpu"


class DeepData(NamedTuple):
    """Images as the models see them."""

    x: Tensor
    """(N, D), or (N, C, 64, 64) for convolutional networks, float32: dequantised pixels in [0, 1) or their
    logits, less ``offset``."""
    offset: Tensor
    """(D,): their mean where they are standardised, else zeros of the shape of an image."""
    scale: float
    """What the encoder divides by."""
    log_det: float
    """Mean of log |det| of the transform's Jacobian, from grey levels in [0, 256): what an ELBO of x lacks to
    one on the paper's scale."""


def prepare(config: DeepConfig) -> DeepData:
    """Dequantise the images of a configuration, and take logits of them or not."""
    images = config.images.images
    images = np.moveaxis(images.reshape(*images.shape[:3], -1), -1, 1)  # (N, C, H, W)
    if config.logits:
        x, log_dets = logit_transform(images, config.seed, alpha=_alpha(images.shape[1]))
    else:
        x, log_dets = dequantize(images, config.seed)
    if config.hidden is None:
        if images.shape[2:] != (64, 64):
            raise DataError(
                f"convolutional networks take images of 64 x 64 pixels, {config.images.name} has "
                f"{images.shape[2]} x {images.shape[3]}"
            )
        x = x.reshape(images.shape)
    offset, scale = torch.zeros(x.shape[1:], dtype=x.dtype), 1.0
    if config.standardise:
        offset = x.mean(0)
        scale = (x - offset).square().mean().sqrt().item()
    return DeepData((x - offset).float().to(config.device), offset.float(), scale, log_dets.mean().item())


def grey_levels(config: DeepConfig, data: DeepData, x: Tensor) -> NDArray[np.uint8]:
    """Give what images ``data.x``, or reconstructions of such, look like: of the shape of x, 0 to 255."""
    y = x.cpu().double() + data.offset
    if config.logits:
        alpha = _alpha(config.images.images[0, 0, 0].size)
        y = (y.sigmoid() - alpha) / (1 - 2 * alpha)
    levels: NDArray[np.uint8] = (256 * y).clamp(0, 255).byte().numpy()
    return levels


def _alpha(num_colours: int) -> float:
    """Give α of the logits, as Papamakarios et al. (2017) have it for MNIST and for images in colour."""
    return 1e-6 if num_colours == 1 else 0.05


class ScaledEncoder(nn.Module):
    """An encoder of x divided by a number."""

    def __init__(self, encoder: nn.Module, scale: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.scale = scale

    def forward(self, x: Tensor) -> Any:
        """Give the posteriors of x."""
        return self.encoder(x / self.scale)


def make_vae(config: DeepConfig, data: DeepData, sigma2: float, kind: Kind, seed: int) -> GaussianVAE:
    """Make a VAE before training; of one ``seed`` all begin with the same weights."""
    size = data.x.shape[1]
    encoder: nn.Module
    decoder: nn.Sequential
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.hidden is None:
            encoder = ConvEncoder(size, config.latent_dim)
            decoder = ConvDecoder(config.latent_dim, size)
        else:
            encoder = MLPEncoder(size, config.latent_dim, config.hidden)
            decoder = MLPDecoder(config.latent_dim, size, config.hidden[::-1])
    if config.standardise:
        bias = cast(nn.Linear, decoder[-1]).bias
        with torch.no_grad():  # the data are less their mean, and so is the bias
            if config.logits:
                bias.zero_()
            else:  # a decoder that begins with the mean may stay collapsed for good
                bias.sub_(data.offset)
    return GaussianVAE(
        ScaledEncoder(encoder, data.scale), decoder, ObservationNoise(sigma2, kind=kind), closed_form=False
    ).to(config.device)


@dataclass(frozen=True)
class Evaluation:
    """A model on all training images, by two posterior draws of each.

    Attributes
    ----------
    num_features
        Features D.
    log_det
        As in `DeepData`.
    sigma2
        The model's σ².
    tuned_sigma2
        Mean of (x - x̂)², the σ² that maximises the ELBO of the same draws.
    kl
        Mean KL, in nats.
    report
        Which latents are collapsed.
    """

    num_features: int
    log_det: float
    sigma2: float
    tuned_sigma2: float
    kl: float
    report: CollapseReport

    @property
    def elbo(self) -> float:
        """Nats per image, on the scale of grey levels."""
        return self._elbo(self.sigma2)

    @property
    def tuned_elbo(self) -> float:
        """The same with the best σ²."""
        return self._elbo(self.tuned_sigma2)

    @property
    def bits_per_dimension(self) -> float:
        """What the ELBO promises of a code for the grey levels."""
        return bits_per_dimension(self.elbo, self.num_features)

    def collapse(self, epsilon: float = EPSILON) -> float:
        """Percentage of the latents that are (ε, 0.01)-collapsed, for one of `EPSILONS`."""
        return 100 * float(self.report.at(epsilon, DELTA).collapsed.mean())

    @cached_property
    def collapse_interval(self) -> tuple[float, float]:
        """Percentage that is proven of the population at (0.01, 0.01), and that which is not disproven.

        A latent at the level 0.95 each, see `CollapseAt.collapse_test`.
        """
        test = self.report.at().collapse_test()
        return 100 * float((test == "collapsed").mean()), 100 * float((test != "not collapsed").mean())

    def _elbo(self, sigma2: float) -> float:
        return gaussian_elbo(self.num_features, sigma2, self.tuned_sigma2, self.kl) + self.log_det


@torch.no_grad()
def evaluate(vae: GaussianVAE, data: DeepData, seed: int) -> Evaluation:
    """Evaluate a model on all images; ``seed`` fixes the draws."""
    # not synchronised: other processes have other models
    latent_dim = cast(Any, vae.decoder).latent_dim
    statistics = CollapseStatistics(latent_dim, EPSILONS, sync_on_compute=False).to(data.x.device)
    squared_error, kl = 0.0, 0.0
    for index, x in enumerate(torch.split(data.x, max(1, _EVALUATED_TOGETHER // data.x[0].numel()))):
        mean, logvar = vae.encode(x)
        z, kls = reparameterized_kl(mean, logvar, num_draws=_NUM_DRAWS, seed=seed + index)
        x_hat = vae.decode(z.flatten(0, 1)).reshape(len(z), *x.shape)
        squared_error += len(x) * vae.noise.tuned(x, x_hat).item()
        kl += kls.double().sum().item()
        statistics.update(mean, logvar)
    with warnings.catch_warnings():
        # of small models before training, whose variances may all be a little above 1
        warnings.simplefilter("ignore", WidePosteriorWarning)
        report = statistics.compute()
    num_samples = len(data.x)
    return Evaluation(
        num_features=data.x[0].numel(),
        log_det=data.log_det,
        sigma2=vae.noise.log_sigma2.double().exp().item(),
        tuned_sigma2=squared_error / num_samples,
        kl=kl / num_samples,
        report=report,
    )


class Outcome(NamedTuple):
    """A chunk that has been trained."""

    chunk: Chunk
    epochs: NDArray[np.float64]
    """When it was evaluated, (P,)."""
    elbo: NDArray[np.float64]
    """Of each model then, (M, P), in nats per image on the scale of grey levels."""
    kl: NDArray[np.float64]
    """(M, P)."""
    sigma2: NDArray[np.float64]
    """(M, P)."""
    collapse: NDArray[np.float64]
    """Percentage of the latents collapsed at each of `EPSILONS`, (M, E, P)."""
    evaluations: list[Evaluation]
    """Of the models at the end."""


@dataclass(kw_only=True)
class _Settings(Settings):
    """All that the result of a chunk depends on, data apart; lists are what JSON gives back."""

    caller: ClassVar[str] = "lineavae reproduce"

    kind: str
    sigma2: list[float]
    hidden: list[int] | None
    learning_rate: float
    annealing_epochs: int
    logits: bool
    standardise: bool
    precision: str
    compile: bool
    device: str


class _Problem(Problem):
    """The sum over the models of a chunk of their ELBO, which has for each the gradient of its own."""

    def __init__(
        self, settings: _Settings, vaes: Sequence[GaussianVAE], data: DeepData, config: DeepConfig
    ) -> None:
        trained = vaes[0] if len(vaes) == 1 else Ensemble(vaes)
        super().__init__(settings, dict(trained.named_parameters()), config.latent_dim)
        self._trained, self._data = trained, data
        self._call = torch.compile(trained) if config.compile else trained
        self._batch = batches(settings, data.x)
        self._annealing = KLAnnealing(settings.annealing_epochs)
        self._steps_per_epoch = config.steps_per_epoch
        self._bfloat16 = config.precision == "bfloat16"
        self.evaluations: list[Evaluation] = []

    @property
    def models(self) -> list[GaussianVAE]:
        """The models as they are."""
        if isinstance(self._trained, Ensemble):
            return cast("list[GaussianVAE]", self._trained.to_models())
        return [self._trained]

    def objective(self, step: int) -> Tensor:
        """ELBO of the batch, by one draw of each image."""
        seed = torch.tensor(noise_seed(self.settings, step), device=self.device)
        beta = torch.tensor(self._annealing(step / self._steps_per_epoch), device=self.device)
        with self._autocast():
            elbo: Tensor = self._call(self._batch(step), beta=beta, seed=seed).elbo
        return elbo.mean(-1).sum()

    def exact_elbo(self) -> float:
        """Mean over the models of the ELBO of all images, by two draws of each."""
        self.evaluations = [evaluate(vae, self._data, self.settings.seed) for vae in self.models]
        return math.fsum(evaluation.elbo for evaluation in self.evaluations) / len(self.evaluations)

    def record(self, elbo: float) -> tuple[float, ...]:
        """Give for each model ELBO, KL, σ² and the collapsed percentages."""
        return tuple(
            number
            for evaluation in self.evaluations
            for number in (
                evaluation.elbo,
                evaluation.kl,
                evaluation.sigma2,
                *map(evaluation.collapse, EPSILONS),
            )
        )

    def data(self) -> list[Tensor]:
        """Give the images."""
        return [self._data.x]

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bfloat16 else nullcontext()


def train(config: DeepConfig, chunks: Sequence[Chunk], data: DeepData, run_dir: Path) -> list[Outcome]:
    """Train chunks, or read them where they are trained already; in the order given.

    Of several processes each trains its own, and waits for the others. On a CPU there are as many as there
    are threads, if torchrun did not start some.
    """
    num_threads, rank, num_processes = torch.get_num_threads(), processes.rank(), processes.world_size()
    started = 1
    if _is_on_cpu(config):
        torch.set_num_threads(1)
        if num_processes == 1:
            started = min(num_threads, len(chunks))
    own: dict[Chunk, Outcome] = {}
    try:
        if started > 1:
            _make_problem(config, chunks[0], data)  # settings that cannot be raise here
            share = (started, config, chunks, run_dir)
            spawn(_train_share, share, started, daemon=True)  # type: ignore[no-untyped-call]
        else:
            own = _train_own(config, chunks, data, run_dir, rank, num_processes)
        processes.wait_for_all()
        return [own.get(chunk) or _train_chunk(config, chunk, data, run_dir) for chunk in chunks]
    finally:
        torch.set_num_threads(num_threads)


def _train_share(
    rank: int, num_processes: int, config: DeepConfig, chunks: Sequence[Chunk], run_dir: Path
) -> None:
    """Train what a process that `train` started has to."""
    torch.set_num_threads(1)
    _train_own(config, chunks, prepare(config), run_dir, rank, num_processes)


def _train_own(
    config: DeepConfig,
    chunks: Sequence[Chunk],
    data: DeepData,
    run_dir: Path,
    rank: int,
    num_processes: int,
) -> dict[Chunk, Outcome]:
    """Train the share of a process; each names its own, and the first has the progress bar."""
    outcomes = {}
    for index in range(rank, len(chunks), num_processes):
        chunk = chunks[index]
        Console(stderr=True).print(
            f"{index + 1} of {len(chunks)}: {chunk}, {config.epochs} epochs", soft_wrap=True
        )
        outcomes[chunk] = _train_chunk(config, chunk, data, run_dir, show=rank == 0)
    return outcomes


def models_of(config: DeepConfig, chunk: Chunk, data: DeepData, run_dir: Path) -> list[GaussianVAE]:
    """Give the models of a chunk, trained; in the order of the initial σ²."""
    _, problem, _ = _trained(config, chunk, data, run_dir)
    return problem.models


def _train_chunk(
    config: DeepConfig, chunk: Chunk, data: DeepData, run_dir: Path, *, show: bool = False
) -> Outcome:
    name, problem, history = _trained(config, chunk, data, run_dir, show=show)
    if not problem.evaluations:  # it was finished already
        problem.exact_elbo()
    if not (run_dir / f"{name}.csv").exists():  # it was taken from another run
        _write_csv(run_dir / f"{name}.csv", chunk, history.T)
    steps = history[0]
    of_models = history[2:].reshape(len(chunk.sigma2), -1, len(steps))
    elbo, kl, sigma2 = of_models[:, :3].transpose(1, 0, 2)
    epochs = steps / config.steps_per_epoch
    return Outcome(chunk, epochs, elbo, kl, sigma2, of_models[:, 3:], problem.evaluations)


def _trained(
    config: DeepConfig, chunk: Chunk, data: DeepData, run_dir: Path, *, show: bool = False
) -> tuple[str, _Problem, NDArray[np.float64]]:
    """Give the name of a chunk's files, the chunk as it is after training, and its history."""
    settings, problem = _settings(config, chunk), _make_problem(config, chunk, data)
    name = _file_name(settings, config, data)
    checkpoint = run_dir / f"{name}.safetensors"
    if not checkpoint.exists():
        _take_from_another_run(checkpoint)
    history = ascend(
        problem,
        optimizer="adam",
        lr=chunk.learning_rate,
        checkpoint=checkpoint,
        checkpoint_every=settings.history_every,
        resume=True,
        progress=show,
        log=_make_log(config, chunk, run_dir, name),
    )
    return name, problem, history


def _make_problem(config: DeepConfig, chunk: Chunk, data: DeepData) -> _Problem:
    vaes = [make_vae(config, data, sigma2, chunk.kind, chunk.seed) for sigma2 in chunk.sigma2]
    return _Problem(_settings(config, chunk), vaes, data, config)


def _settings(config: DeepConfig, chunk: Chunk) -> _Settings:
    return _Settings(
        objective="stochastic",
        steps=config.steps,
        batch_size=config.batch_size,
        beta=1.0,
        seed=chunk.seed,
        history_every=config.record_every * config.steps_per_epoch,
        kind=chunk.kind,
        sigma2=list(chunk.sigma2),
        hidden=None if config.hidden is None else list(config.hidden),
        learning_rate=chunk.learning_rate,
        annealing_epochs=chunk.annealing_epochs,
        logits=config.logits,
        standardise=config.standardise,
        precision=config.precision,
        compile=config.compile,
        device=config.device,
    )


def _file_name(settings: _Settings, config: DeepConfig, data: DeepData) -> str:
    """Name a chunk by all that its result depends on: of any two that differ, the names do."""
    parts = [asdict(settings), config.latent_dim, fingerprint([data.x])]
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()
    return f"{settings.kind}-seed{settings.seed}-{digest}"


def _take_from_another_run(checkpoint: Path) -> None:
    """Take a training that a run in a directory beside this one has, finished or not."""
    for found in sorted(checkpoint.parent.parent.glob(f"*/{checkpoint.name}")):
        with atomic_path(checkpoint) as temporary:
            shutil.copyfile(found, temporary)
        return


# What of a record is in the logs, by its place among the numbers of a model.
_LOGGED = {
    "ELBO": 0,
    "KL": 1,
    "sigma2": 2,
    **{f"collapse % at {epsilon:g}": 3 + EPSILONS.index(epsilon) for epsilon in (0.01, 0.1, 1.0)},
}


def _logged(chunk: Chunk, record: Sequence[float]) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """Give the initial σ² of each model with its numbers of `_LOGGED`."""
    of_models = np.reshape(record[2:], (len(chunk.sigma2), -1))
    yield from zip(chunk.sigma2, of_models[:, list(_LOGGED.values())], strict=True)


def _write_csv(path: Path, chunk: Chunk, records: Iterable[Sequence[float]]) -> None:
    """Write the history of a chunk: a row for each step recorded and each model."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("step", "initial sigma2", *_LOGGED))
    for record in records:
        table.writerows((int(record[0]), sigma2, *numbers) for sigma2, numbers in _logged(chunk, record))
    write_text(path, text.getvalue())


def _make_log(
    config: DeepConfig, chunk: Chunk, run_dir: Path, name: str
) -> Callable[[list[tuple[float, ...]]], None]:
    """Make what logs a chunk while it trains: to a CSV file, and to TensorBoard if asked for."""
    writer: Any = None

    def log(records: list[tuple[float, ...]]) -> None:
        nonlocal writer
        _write_csv(run_dir / f"{name}.csv", chunk, records)
        if not config.tensorboard:
            return
        step = int(records[-1][0])
        if writer is None:
            # what a killed process wrote beyond its last checkpoint comes again
            tensorboard = require("torch.utils.tensorboard", "experiments")
            writer = tensorboard.SummaryWriter(str(run_dir / "tensorboard" / name), purge_step=step)
        for sigma2, numbers in _logged(chunk, records[-1]):
            for quantity, number in zip(_LOGGED, numbers, strict=True):
                writer.add_scalar(f"{quantity}/initial sigma2 {sigma2:g}", number, step)
        writer.flush()

    return log
