"""Numbers of a posterior's collapse as metrics, which Lightning's ``self.log`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lineavae._arguments import check_number
from lineavae._paper import DELTA, EPSILON
from lineavae.collapse.statistics import PosteriorMetric
from lineavae.collapse.verdicts import DEFAULT_THRESHOLDS


class CollapsedFraction(PosteriorMetric):
    """Fraction of the latents that are (ε, δ)-collapsed for certain, a float32 tensor.

    It is updated as `CollapseStatistics`, whose other parameters it has.

    Parameters
    ----------
    latent_dim
        Number of latents K.
    epsilon, delta
        A latent is collapsed if its KL is below ε nats for at least the fraction 1 - δ of the samples.
    thresholds
        Other thresholds of the statistics.

    Examples
    --------
    >>> import torch
    >>> from torchmetrics import MetricCollection
    >>> from lineavae.collapse import ActiveUnits, CollapsedFraction, MeanKL
    >>> metrics = MetricCollection([CollapsedFraction(2), ActiveUnits(2), MeanKL(2)])
    >>> metrics.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2, 2))
    >>> metrics.compute()
    {'CollapsedFraction': tensor(0.5000), 'ActiveUnits': tensor(1.), 'MeanKL': tensor(0.5000)}
    """

    def __init__(
        self,
        latent_dim: int,
        epsilon: float = EPSILON,
        delta: float = DELTA,
        thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
        **kwargs: Any,
    ) -> None:
        self.epsilon = check_number(self._name, "epsilon", epsilon, at_least=0)
        self.delta = check_number(self._name, "delta", delta, at_least=0, below=1)
        super().__init__(latent_dim, sorted({*thresholds, self.epsilon}), **kwargs)

    def compute(self) -> Tensor:
        """Give the fraction, over all that was added in all processes."""
        return self._number(self._report().at(self.epsilon, self.delta).verdict.collapsed.mean())


class ActiveUnits(PosteriorMetric):
    """Number of latents whose posterior mean has at least this variance (Burda et al. 2016), float32.

    Parameters
    ----------
    latent_dim
        Number of latents K.
    threshold
        The least variance of an active unit.
    thresholds
        Those of the statistics, see `CollapseStatistics`.

    Examples
    --------
    >>> import torch
    >>> from lineavae.collapse import ActiveUnits
    >>> active = ActiveUnits(latent_dim=2)
    >>> active.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2, 2))
    >>> active.compute()
    tensor(1.)
    """

    def __init__(
        self,
        latent_dim: int,
        threshold: float = 0.01,
        thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
        **kwargs: Any,
    ) -> None:
        self.threshold = check_number(self._name, "threshold", threshold, at_least=0)
        super().__init__(latent_dim, thresholds, **kwargs)

    def compute(self) -> Tensor:
        """Give the number, over all that was added in all processes; a ValueError after `update_kl`."""
        return self._number(self._report().num_active(self.threshold))


class MeanKL(PosteriorMetric):
    """Mean KL of the posterior in nats, the sum over its latents, as in the ELBO; float32.

    Examples
    --------
    >>> import torch
    >>> from lineavae.collapse import MeanKL
    >>> kl = MeanKL(latent_dim=2)
    >>> kl.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2, 2))
    >>> kl.compute()
    tensor(0.5000)
    """

    def compute(self) -> Tensor:
        """Give the mean, over all that was added in all processes."""
        return self._number(self._report().mean_kl.sum())
