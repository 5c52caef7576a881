"""Collapse statistics as a metric of torchmetrics: streamed over batches, merged over processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lineavae._arguments import check_integer
from lineavae._recomputation import recomputes
from lineavae.collapse._posterior import (
    Array,
    Posterior,
    as_posterior,
    as_rows,
    check_latent_dim,
    warn_of_width,
)
from lineavae.collapse._tables import ranges
from lineavae.collapse.report import CollapseReport
from lineavae.collapse.verdicts import DEFAULT_THRESHOLDS
from lineavae.ops import LatentStatistics, collapse_statistics, merge_moments
from lineavae.ops.collapse_statistics import count_checked
from lineavae.reference.collapse_statistics import latent_statistics

# What rounding may take from a KL in nats: m² + v - log v - 1 of a collapsed latent, in half precision.
_ROUNDING = 1e-3


class PosteriorMetric(Metric):
    """A metric of posteriors, whose state is the statistics of the KL of each latent, for any subclass.

    Metrics of the same latents and thresholds in one ``MetricCollection`` share it.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    thresholds: Tensor
    counts: Tensor
    histogram: Tensor
    moments: Tensor
    minimum: Tensor
    maximum: Tensor
    infinite: Tensor
    nan: Tensor

    def __init__(
        self, latent_dim: int, thresholds: Sequence[float] = DEFAULT_THRESHOLDS, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.latent_dim = check_integer(self._name, "latent_dim", latent_dim, 1)
        values = list(thresholds)
        # of no rows: the neutral elements of every reduction, once the op has checked the thresholds
        empty = torch.empty(0, self.latent_dim)
        neutral = collapse_statistics(empty, empty, values)
        # a state too, so that what is saved, merged or compared says at which thresholds it counts
        self.add_state(
            "thresholds", torch.tensor(values, dtype=torch.float64), dist_reduce_fx=_the_same, persistent=True
        )
        reductions: dict[str, str | Callable[[Tensor], Tensor]] = {
            "counts": "sum",
            "histogram": "sum",
            "moments": merge_moments,
            "minimum": "min",
            "maximum": "max",
            "infinite": "sum",
            "nan": "sum",
        }
        for name, reduction in reductions.items():
            self.add_state(name, getattr(neutral, name), dist_reduce_fx=reduction, persistent=True)

    def update(
        self,
        mean: Posterior,
        logvar: Array | None = None,
        *,
        variance: Array | None = None,
        std: Array | None = None,
        event_dim: int | None = None,
    ) -> None:
        """Add posteriors.

        Parameters
        ----------
        mean
            Posterior means, (N, K), or (K,) of a single one: tensors, or arrays of NumPy or of any library
            that has ``__dlpack__`` or ``__array__``; float64, float32, bfloat16 or float16. They may require
            grad. Every row is a sample; there may be none. If gradient checkpointing repeats a forward pass,
            they are added once. A ``torch.distributions.Normal``, or an ``Independent`` of one, is a whole
            posterior, and no spread may be given beside it.
        logvar, variance, std
            Exactly one of them, of the shape of mean: the posterior's log-variances (of the dtype of mean),
            variances or standard deviations. A variance of zero makes the KL infinite.
        event_dim
            Number of last dimensions that are the latents, as of an ``Independent``: with 3 a posterior
            (N, C, H, W) has K = CHW latents. It must be given where there are more than two dimensions.

        Raises
        ------
        TypeError
            An argument is no array or of another dtype.
        ValueError
            A shape or device does not fit, there is not exactly one spread, or it is a negative variance or
            standard deviation. The metric is then as it was.

        Examples
        --------
        >>> import numpy as np
        >>> from lineavae.collapse import CollapseStatistics
        >>> statistics = CollapseStatistics(latent_dim=2)
        >>> statistics.update(np.zeros((100, 2)), variance=np.full((100, 2), [1.0, 0.25]))
        >>> statistics.compute().mean_kl.round(4)
        array([0.    , 0.3181])
        """
        means, logvars = as_posterior(self._name, mean, logvar, variance, std, event_dim, self.device)
        self._check(self._name, "mean", means)
        if not recomputes():
            self._add(count_checked(means, logvars, self.thresholds))

    def update_kl(self, kl: Array, *, event_dim: int | None = None) -> None:
        """Add the KL values of posteriors that are not diagonal Gaussians, or of another prior.

        Everything about the KL is then known: counts, critical ε, mean. Active units and the classification,
        which are about the posteriors' means and variances, are not, even if other batches came by `update`.

        Parameters
        ----------
        kl
            KL of each latent of each sample in nats, (N, K), as `update` takes means: of a flow, a mixture,
            a Bernoulli or categorical latent, in closed form or estimated. Where it is a mean over few draws
            of log q(z|x) - log p(z) it may be negative, and then counts as zero, but in mean and variance of
            the KL. One draw near the prior deviates by √(2 KL), 0.14 at 0.01 nats: average over as many draws
            as ε asks for. NaN and minus infinity are unknown.
        event_dim
            As that of `update`.

        Raises
        ------
        TypeError
            kl is no array, or not of floating numbers.
        ValueError
            Its shape or device does not fit. The metric is then as it was.

        Examples
        --------
        >>> import torch
        >>> from torch.distributions import Bernoulli, kl_divergence
        >>> from lineavae.collapse import CollapseStatistics
        >>> posterior = Bernoulli(torch.tensor([[0.5, 0.9], [0.51, 0.2], [0.5, 0.4]]))
        >>> statistics = CollapseStatistics(latent_dim=2)
        >>> statistics.update_kl(kl_divergence(posterior, Bernoulli(torch.tensor(0.5))))
        >>> statistics.compute().at(epsilon=0.01).collapsed
        array([ True, False])
        """
        caller = f"{self._name}.update_kl"
        values = as_rows(caller, "kl", kl, event_dim, self.device)
        self._check(caller, "kl", values)
        if recomputes():
            return
        values = values.double()
        known = values.where(values > -torch.inf, torch.nan)
        batch = latent_statistics(known.clamp(min=0), [known], self.thresholds)
        of_others = torch.where(batch.moments[:, :1] > 0, torch.nan, 0.0).expand(-1, 4)
        self._add(batch._replace(moments=torch.cat([batch.moments, of_others], 1)))
        # what torchmetrics does around `update`
        self._computed = None
        self._update_count += 1

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another metric, or a dict of its states, holds.

        Raises
        ------
        ValueError
            It is no such metric, or has other latents or thresholds. This metric is then as it was.
        """
        states = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        if isinstance(states, dict) and (mismatch := self._mismatch(states)):
            raise ValueError(f"{self._name}.merge_state: {mismatch}")
        super().merge_state(incoming_state)
        # torchmetrics leaves both as they were: compute would warn, or give the report of before
        self._computed = None
        self._update_count += 1

    def set_dtype(self, dst_type: str | torch.dtype) -> PosteriorMetric:
        """Refuse: the counters are int64 and the moments float64 whatever the dtype of the data."""
        raise TypeError(f"{self._name}.set_dtype: counters stay int64 and moments float64, got {dst_type}")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> PosteriorMetric:
        # `model.to(torch.bfloat16)` reaches the metrics in the model: it may move them, not cast them
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor.new_empty(0)).device)

        super()._apply(move, exclude_state)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # torchmetrics would take whatever is there, unchecked, and compute would warn of no update
        states = {
            name: state_dict.pop(prefix + name) for name in self._defaults if prefix + name in state_dict
        }
        missing = [prefix + name for name in self._defaults if name not in states]
        if missing:
            missing_keys += missing if strict else []
            return
        if mismatch := self._mismatch(states):
            error_msgs.append(f"{self._name}: {mismatch}")
            return
        for name, state in states.items():
            setattr(self, name, state.to(self.device))
        self._computed = None
        self._update_count = int((self.moments[:, 0].sum() + self.nan.sum()) > 0)

    def _report(self) -> CollapseReport:
        """Give the report of all that was added, with warnings of what it cannot be."""
        statistics = LatentStatistics(*(getattr(self, name) for name in LatentStatistics._fields))
        report = CollapseReport(statistics, self.thresholds)
        if report.is_wider_than_prior:
            warn_of_width(self._name, stacklevel=5)
        error = np.sqrt(report.kl_variance / max(report.num_samples, 1))
        negative = report.mean_kl < -6 * error - _ROUNDING
        if negative.any():
            warnings.warn(
                f"{self._name}: the mean KL of latents {ranges(negative)} is below zero by more than chance: "
                "a KL is the mean of log q(z|x) - log p(z)",
                RuntimeWarning,
                stacklevel=4,
            )
        return report

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=self.device)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check(self, caller: str, name: str, values: Tensor) -> None:
        """Check that values, (N, K), are of as many latents as the metric, and on its device."""
        check_latent_dim(caller, values, self.latent_dim, name)
        if values.device != self.device:
            raise ValueError(
                f"{caller}: {name} must be on the metric's device, {self.device}, got {values.device}; "
                "its .to(device) moves the metric"
            )

    def _add(self, batch: LatentStatistics) -> None:
        self.counts = self.counts + batch.counts
        self.histogram = self.histogram + batch.histogram
        self.moments = merge_moments(torch.stack([self.moments, batch.moments]))
        self.minimum = torch.minimum(self.minimum, batch.minimum)
        self.maximum = torch.maximum(self.maximum, batch.maximum)
        self.infinite = self.infinite + batch.infinite
        self.nan = self.nan + batch.nan

    def _mismatch(self, states: dict[str, Any]) -> str | None:
        """Say why these states are not of such a metric."""
        for name in self._defaults:
            own, other = getattr(self, name), states.get(name)
            if not isinstance(other, Tensor):
                return f"{name} must be a tensor among the states, got {sorted(states)}"
            if (own.dtype, own.shape) != (other.dtype, other.shape):
                return (
                    f"{name} must be {own.dtype} of shape {tuple(own.shape)}, "
                    f"got {other.dtype} of shape {tuple(other.shape)}"
                )
        own, other = self.thresholds.tolist(), states["thresholds"].tolist()
        return None if own == other else f"thresholds must be {own}, got {other}"


class CollapseStatistics(PosteriorMetric):
    """Statistics of the KL of each latent over all batches and processes, which give a `CollapseReport`.

    Counters are int64 and moments float64 whatever the dtype of the data and of the model around it, on the
    device of the metric. The counts, and with them every verdict, are the same for any batches, order and
    number of processes.

    Parameters
    ----------
    latent_dim
        Number of latents K.
    thresholds
        Thresholds ε in nats at which counts are exact, at most 64; the cost hardly depends on their number.
    **kwargs
        Those of ``torchmetrics.Metric``.

    Examples
    --------
    >>> import torch
    >>> from lineavae.collapse import CollapseStatistics
    >>> statistics = CollapseStatistics(latent_dim=3)
    >>> for _ in range(10):
    ...     mean = torch.randn(100, 3) * torch.tensor([1.0, 0.3, 1e-3])
    ...     statistics.update(mean, torch.zeros(100, 3))
    >>> report = statistics.compute()
    >>> report
    CollapseReport(num_samples=1000, latent_dim=3)
    >>> report.at(epsilon=0.01, delta=0.01).collapsed
    array([False, False,  True])
    """

    def compute(self) -> CollapseReport:
        """Give the report of all that was added, in all processes.

        Warns
        -----
        WidePosteriorWarning
            The log-variances look like variances or standard deviations, see
            `CollapseReport.is_wider_than_prior`.
        RuntimeWarning
            The mean of a latent's KL values, which `update_kl` was given, is below zero by more than chance.
        """
        return self._report()


def _the_same(thresholds: Tensor) -> Tensor:
    """Reduce the thresholds of several metrics, (R, E), to the one set that they must share."""
    if (thresholds != thresholds[0]).any():
        raise ValueError(f"CollapseStatistics: thresholds must be the same in all, got {thresholds.tolist()}")
    return thresholds[0]
