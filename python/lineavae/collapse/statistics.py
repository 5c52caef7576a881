"""Collapse statistics as a metric of torchmetrics: streamed over batches, merged over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lineavae.collapse.report import CollapseReport
from lineavae.linear._arguments import check_integer
from lineavae.ops import LatentStatistics, collapse_statistics, merge_moments

DEFAULT_THRESHOLDS = (0.0, 0.001, 0.01, 0.1, 1.0)


class CollapseStatistics(Metric):
    """Statistics of the KL of each latent over all batches and processes; :meth:`compute` gives a `CollapseReport`.

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
    >>> report.collapsed(epsilon=0.01, delta=0.01)
    array([False, False,  True])
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
    nonfinite: Tensor

    def __init__(
        self, latent_dim: int, thresholds: Sequence[float] | Tensor = DEFAULT_THRESHOLDS, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.latent_dim = check_integer("CollapseStatistics", "latent_dim", latent_dim, 1)
        # the op's own neutral elements, after its checks of the thresholds
        empty = torch.empty(0, self.latent_dim)
        neutral = collapse_statistics(empty, empty, thresholds)
        # a state too, so that what is saved, merged or compared says at which thresholds it counts
        values = torch.as_tensor(thresholds, dtype=torch.float64)
        self.add_state("thresholds", values, dist_reduce_fx=_the_same, persistent=True)
        reductions: dict[str, str | Callable[[Tensor], Tensor]] = {
            "counts": "sum",
            "histogram": "sum",
            "moments": merge_moments,
            "minimum": "min",
            "maximum": "max",
            "nonfinite": "sum",
        }
        for name, reduction in reductions.items():
            self.add_state(name, getattr(neutral, name), dist_reduce_fx=reduction, persistent=True)

    def update(self, mean: Tensor, logvar: Tensor) -> None:
        """Add posteriors.

        Parameters
        ----------
        mean, logvar
            Posterior means and log-variances, (..., K), of one dtype: float64, float32, bfloat16 or float16. They
            may require grad. Every row counts as a sample; there may be none.

        Raises
        ------
        TypeError
            An argument is no tensor or of another dtype.
        ValueError
            A shape or device does not fit. The metric is then as it was.
        """
        for name, tensor in (("mean", mean), ("logvar", logvar)):
            if isinstance(tensor, Tensor) and tensor.shape[-1:] != (self.latent_dim,):
                raise ValueError(
                    f"CollapseStatistics: {name} must have shape (..., K) with K={self.latent_dim}, "
                    f"got {tuple(tensor.shape)}"
                )
        if mean.shape != logvar.shape:
            raise ValueError(
                f"CollapseStatistics: logvar must have the shape of mean, {tuple(mean.shape)}, "
                f"got {tuple(logvar.shape)}"
            )
        batch = collapse_statistics(
            mean.detach().reshape(-1, self.latent_dim),
            logvar.detach().reshape(-1, self.latent_dim),
            self.thresholds,
        )
        self.counts = self.counts + batch.counts
        self.histogram = self.histogram + batch.histogram
        self.moments = merge_moments(torch.stack([self.moments, batch.moments]))
        self.minimum = torch.minimum(self.minimum, batch.minimum)
        self.maximum = torch.maximum(self.maximum, batch.maximum)
        self.nonfinite = self.nonfinite + batch.nonfinite

    def compute(self) -> CollapseReport:
        """Give the report of all that was added, in all processes."""
        statistics = LatentStatistics(*(getattr(self, name) for name in LatentStatistics._fields))
        return CollapseReport.from_statistics(statistics, self.thresholds)


def _the_same(thresholds: Tensor) -> Tensor:
    """Reduce the thresholds of several metrics, (R, E), to the one set that they must share."""
    if (thresholds != thresholds[0]).any():
        raise ValueError(
            f"CollapseStatistics: metrics must have the same thresholds to be merged, got {thresholds.tolist()}"
        )
    return thresholds[0]
