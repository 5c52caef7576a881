"""Posterior collapse while a VAE trains: statistics of the posteriors that the encoder gives anyway."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.hooks import RemovableHandle

from lineavae._arguments import check_integer, check_number
from lineavae._paper import DELTA, EPSILON
from lineavae._recomputation import recomputes
from lineavae.collapse._posterior import (
    Array,
    Posterior,
    WidePosteriorWarning,
    as_posterior,
    check_latent_dim,
)
from lineavae.collapse.report import CollapseReport
from lineavae.collapse.statistics import CollapseStatistics
from lineavae.collapse.verdicts import NO_GAP_BELOW

_NAME = "CollapseMonitor"

Extract = Callable[[Any], "tuple[Tensor, Tensor] | Distribution"]

# Posterior means that are kept until the statistics take them in, rows times latents: one pass for many small
# batches, within 8 MiB in float32 with the log-variances.
_PENDING_MEANS = 2**20


@runtime_checkable
class SummaryWriter(Protocol):
    """What a monitor calls of ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write a number."""

    def add_text(self, tag: str, text_string: str, global_step: int) -> None:
        """Write a text."""


@dataclass(frozen=True, eq=False)
class CollapseCheck:
    """What a monitor found in the posteriors since the check before. Prints as a line.

    Examples
    --------
    >>> import torch
    >>> from lineavae.collapse import CollapseMonitor
    >>> monitor, mean = CollapseMonitor(), torch.randn(1000, 2)
    >>> for scale in (torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.0])):
    ...     monitor.observe(scale * mean, torch.zeros(1000, 2))
    ...     check = monitor.check()
    >>> check.step, check.collapsed, check.died
    (2, array([False,  True]), (1,))
    >>> check.scalars()["collapse/collapsed_percent"], check.texts()
    (50.0, {'collapse/died_latents': '1'})
    >>> print(check)
    step 2: 1 of 2 latents collapsed, 1 active units, mean KL ... nats; died: 1
    """

    step: int
    """Posteriors observed until then, as many as there were training steps."""
    report: CollapseReport
    """All statistics since the check before."""
    collapsed: NDArray[np.bool_]
    """Latents that are (ε, δ)-collapsed for certain, (K,); one that a KL of NaN leaves open is not."""
    died: tuple[int, ...]
    """Latents that have collapsed since it was last certain whether they are."""
    revived: tuple[int, ...]
    """Latents that were collapsed when that was last certain and are no longer."""
    drift: NDArray[np.float64]
    """Factor by which the critical ε has changed since the check before, (K,); NaN if there was no check.
    Less than 0.001 nats count as 0.001."""

    @property
    def sinking(self) -> tuple[int, ...]:
        """Latents that are not collapsed, and whose critical ε has fallen by more than a tenth.

        While there are any, the number of collapsed latents says how long the model has been trained.
        """
        return tuple(np.flatnonzero(~self.collapsed & (self.drift < 0.9)).tolist())

    def __str__(self) -> str:
        found = (("died", self.died), ("revived", self.revived), ("still sinking", self.sinking))
        news = "".join(f"; {what}: {', '.join(map(str, latents))}" for what, latents in found if latents)
        return (
            f"step {self.step}: {self.collapsed.sum()} of {len(self.collapsed)} latents collapsed, "
            f"{self.report.num_active()} active units, mean KL {self.report.mean_kl.sum():.4g} nats{news}"
        )

    def scalars(self) -> dict[str, float]:
        """Give the numbers to be logged, by name; the KL is that of the ELBO, in nats per sample."""
        return {
            "collapse/collapsed_percent": 100 * float(self.collapsed.mean()),
            "collapse/active_units": float(self.report.num_active()),
            "collapse/mean_kl": float(self.report.mean_kl.sum()),
            "collapse/died": float(len(self.died)),
            "collapse/revived": float(len(self.revived)),
            "collapse/sinking": float(len(self.sinking)),
            "collapse/infinite": float(self.report.infinite.sum()),
            "collapse/nan": float(self.report.nan.sum()),
        }

    def texts(self) -> dict[str, str]:
        """Give the latents that died or revived, by name, where there are any."""
        changes = {"collapse/died_latents": self.died, "collapse/revived_latents": self.revived}
        return {name: ", ".join(map(str, latents)) for name, latents in changes.items() if latents}


class CollapseMonitor:
    """Watches the posteriors of a VAE in training for collapse.

    It takes them from the forward passes that training makes anyway; one that gradient checkpointing repeats
    counts once. They are copied, and counted some megabytes at a time; nothing waits for a GPU before a
    check.

    Parameters
    ----------
    log
        Where checks go: a function of a `CollapseCheck`, such as ``print``, or a ``SummaryWriter`` of
        TensorBoard. None only keeps the last one, in ``last``.
    every
        Steps between checks. With None only `check` makes one; call it once an epoch, for example.
    epsilon, delta
        A latent is collapsed if its KL is below ε nats for at least the fraction 1 - δ of the samples.
    event_dim
        Number of last dimensions that are the latents, as of ``torch.distributions.Independent``; it must be
        given where posteriors have more than two dimensions. With 3, (N, C, H, W) has K = C·H·W latents,
        those of the ELBO.

    Attributes
    ----------
    step : int
        Posteriors observed so far.
    last : CollapseCheck or None
        The last check.

    Notes
    -----
    The posteriors of one window, from check to check, come from parameters that change meanwhile: a check
    tells how training goes. For a verdict on a model pass all data through it to a `CollapseStatistics`.

    Where ``torch.distributed`` is initialised, a check merges the windows of all processes. It is a
    collective call: every process must come to it, as those of data-parallel training do, and gets the same
    result; let one of them have the ``log``.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from lineavae.collapse import CollapseMonitor
    >>> class Encoder(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.mean, self.logvar = nn.Linear(4, 2), nn.Linear(4, 2)
    ...     def forward(self, x):
    ...         return self.mean(x), self.logvar(x)
    >>> encoder = Encoder()
    >>> monitor = CollapseMonitor(log=lambda check: print(check.step, len(check.collapsed)), every=10)
    >>> with monitor.watch(encoder):
    ...     for _ in range(25):
    ...         mean, logvar = encoder(torch.randn(8, 4))  # and the rest of a training step
    10 2
    20 2
    25 2
    """

    def __init__(
        self,
        log: Callable[[CollapseCheck], object] | SummaryWriter | None = None,
        *,
        every: int | None = None,
        epsilon: float = EPSILON,
        delta: float = DELTA,
        event_dim: int | None = None,
    ) -> None:
        self.every = None if every is None else check_integer(_NAME, "every", every, 1)
        self.epsilon = check_number(_NAME, "epsilon", epsilon, at_least=0)
        self.delta = check_number(_NAME, "delta", delta, at_least=0, below=1)
        self.event_dim = event_dim if event_dim is None else check_integer(_NAME, "event_dim", event_dim, 1)
        self.step = 0
        self.last: CollapseCheck | None = None
        self._log = self._write_to(log) if isinstance(log, SummaryWriter) else log
        if not (self._log is None or callable(self._log)):
            raise TypeError(
                f"{_NAME}: log must be a function, a SummaryWriter of TensorBoard or None, "
                f"got {type(log).__name__}"
            )
        self._statistics: CollapseStatistics | None = None
        self._pending: list[Tensor] = []
        self._pending_means = 0
        self._window_steps = 0
        self._collapsed: NDArray[np.bool_] | None = None
        self._critical: NDArray[np.float64] | None = None

    def watch(
        self, module: nn.Module, extract: Extract | None = None, *, training: bool = True
    ) -> AbstractContextManager[CollapseMonitor]:
        """Observe what a module returns in its forward passes while it is in training mode.

        Each pass counts as a step; those in evaluation mode, such as validation, do not count. At the end of
        a ``with`` what was observed since the last check is checked; on an exception it is not. Either way
        the module is left as it was. Without ``with`` it is watched for as long as it lives.

        Parameters
        ----------
        module
            The encoder, or whichever module's output has the posterior in it. Watch it before its first call
            under ``torch.compile``, which leaves out hooks that come later.
        extract
            Function of the module's output that gives mean and log-variance, (N, K) each, or a
            ``torch.distributions.Normal``. By default the output must be one of these.
            ``lambda output: output.chunk(2, dim=1)`` is for an encoder with both in one tensor,
            ``lambda output: output[1:]`` for a model with (reconstruction, mean, logvar), and
            ``lambda output: [part.movedim(1, -1).flatten(0, -2) for part in output]`` makes every channel of
            (N, C, H, W) a latent, and every position a sample.
        training
            With False, observe the passes in evaluation mode in place of those in training mode.

        Warns
        -----
        RuntimeWarning
            The module was not called in that mode.

        Raises
        ------
        TypeError, ValueError
            In the forward pass: there is no posterior, its dimensions are not two and there is no event_dim,
            or K has changed.
        """

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def hook(module: nn.Module, args: object, output: Any) -> None:
            if module.training == training:
                self.observe(*_posterior(output if extract is None else extract(output)))

        return self._until_the_end(module.register_forward_hook(hook), training)

    @contextmanager
    def _until_the_end(self, handle: RemovableHandle, training: bool) -> Iterator[CollapseMonitor]:
        first_step = self.step
        try:
            yield self
        finally:
            handle.remove()
        self.check()
        if self.step == first_step:
            warnings.warn(
                f"{_NAME}: the watched module was not called in {'training' if training else 'evaluation'} "
                "mode; nothing was observed "
                "(posteriors that no forward returns are for observe(mean, logvar))",
                RuntimeWarning,
                stacklevel=3,
            )

    @torch.no_grad()
    def observe(
        self,
        mean: Posterior,
        logvar: Array | None = None,
        *,
        variance: Array | None = None,
        std: Array | None = None,
    ) -> None:
        """Observe the posterior of one training step, in any form that `CollapseStatistics.update` takes.

        Call this if no module returns it; otherwise `watch` does.
        """
        if isinstance(mean, Tensor) and mean.ndim < 2:  # which may be (N,), of a single latent
            raise ValueError(f"{_NAME}: mean must have shape (N, K), got {tuple(mean.shape)}")
        if isinstance(logvar, Tensor) and isinstance(mean, Tensor) and logvar.is_floating_point():
            logvar = logvar.to(torch.promote_types(mean.dtype, logvar.dtype))  # autocast may leave one half
            mean = mean.to(logvar.dtype) if mean.is_floating_point() else mean
        mean, logvar = as_posterior(_NAME, mean, logvar, variance, std, self.event_dim)
        if recomputes():
            return
        if self._statistics is None:
            self._statistics = CollapseStatistics(mean.shape[1], [self.epsilon]).to(mean.device)
        check_latent_dim(_NAME, mean, self._statistics.latent_dim)
        # a copy: the model may write to what it returned, and a CUDA graph will
        self._pending.append(torch.stack([mean, logvar]))
        self._pending_means += mean.numel()
        if self._pending_means >= _PENDING_MEANS:
            self._count_pending(self._statistics)
        self.step += 1
        self._window_steps += 1
        if self._window_steps == self.every:
            self.check()

    def check(self) -> CollapseCheck | None:
        """Check what was observed since the last check, log it and begin a new window.

        Returns
        -------
        CollapseCheck or None
            None where nothing was observed.
        """
        if self._statistics is None or not self._window_steps:
            return None
        if self._pending:
            self._count_pending(self._statistics)
        with warnings.catch_warnings():
            # while a model trains, its posteriors may well be wider than the prior
            warnings.simplefilter("ignore", WidePosteriorWarning)
            report = self._statistics.compute()
        self._statistics.reset()
        self._window_steps = 0
        at = report.at(self.epsilon, self.delta)
        collapsed, decided = at.verdict
        before = np.zeros(report.latent_dim, bool) if self._collapsed is None else self._collapsed
        changed = decided & (collapsed != before) & (self._collapsed is not None)
        critical = np.maximum(at.critical_epsilon.estimate, NO_GAP_BELOW)
        critical_before = np.full(report.latent_dim, np.nan) if self._critical is None else self._critical
        with np.errstate(invalid="ignore"):  # infinite now and before
            drift = critical / critical_before
        self.last = CollapseCheck(
            step=self.step,
            report=report,
            collapsed=collapsed,
            died=tuple(np.flatnonzero(changed & collapsed).tolist()),
            revived=tuple(np.flatnonzero(changed & ~collapsed).tolist()),
            drift=drift,
        )
        # an open verdict is no news of a latent
        self._collapsed = np.where(decided, collapsed, before)
        self._critical = np.where(np.isnan(critical), critical_before, critical)
        if self._log is not None:
            self._log(self.last)
        return self.last

    def state_dict(self) -> dict[str, Any]:
        """Give the step and the last verdicts, in plain Python; the window under way is not saved."""
        return {
            "step": self.step,
            "collapsed": None if self._collapsed is None else self._collapsed.tolist(),
            "critical_epsilon": None if self._critical is None else self._critical.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave, with a new window."""
        collapsed, critical = state["collapsed"], state["critical_epsilon"]
        self.step = state["step"]
        self._collapsed = None if collapsed is None else np.array(collapsed, bool)
        self._critical = None if critical is None else np.array(critical, np.float64)
        self._statistics, self._pending, self._pending_means, self._window_steps = None, [], 0, 0

    def _write_to(self, writer: SummaryWriter) -> Callable[[CollapseCheck], None]:
        def write(check: CollapseCheck) -> None:
            for name, number in check.scalars().items():
                writer.add_scalar(name, number, check.step)
            for name, text in check.texts().items():
                writer.add_text(name, text, check.step)
            write_kl(writer, check, self.epsilon, self.delta, check.step, "collapse")

        return write

    def _count_pending(self, statistics: CollapseStatistics) -> None:
        statistics.update(*torch.cat(self._pending, dim=1))
        self._pending.clear()
        self._pending_means = 0


def _posterior(output: Any) -> tuple[Any, ...]:
    if isinstance(output, Distribution):
        return (output,)
    if not isinstance(output, (tuple, list)) or len(output) != 2:
        got = f"{len(output)} items" if isinstance(output, (tuple, list)) else type(output).__name__
        raise TypeError(
            f"{_NAME}: the output must be a pair of mean and logvar or a Normal, or extract must make one of "
            f"it, got {got}"
        )
    return output[0], output[1]


def write_kl(writer: Any, check: CollapseCheck, epsilon: float, delta: float, step: int, prefix: str) -> None:
    """Write the KL of the latents for TensorBoard: a histogram and, if there is matplotlib, a spectrum."""
    known = check.report.mean_kl[np.isfinite(check.report.mean_kl)]
    if len(known) and hasattr(writer, "add_histogram"):
        writer.add_histogram(f"{prefix}/kl", known, step)
    if hasattr(writer, "add_figure") and find_spec("matplotlib") is not None:
        figure = check.report.at(epsilon, delta).plot_spectrum()
        writer.add_figure(f"{prefix}/spectrum", figure, step, close=False)
