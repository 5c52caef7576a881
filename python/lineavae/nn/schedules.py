"""What changes from epoch to epoch: the weight of the KL, or its target."""

from __future__ import annotations

from dataclasses import dataclass

from lineavae._arguments import check_number


@dataclass(frozen=True)
class _Ramp:
    """From ``start`` to ``end`` in a straight line over ``num_epochs``, and ``end`` afterwards."""

    num_epochs: float
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        for name in ("num_epochs", "start", "end"):
            check_number(type(self).__name__, name, getattr(self, name), at_least=0)

    def __call__(self, epoch: float) -> float:
        """Give the value at an epoch, which counts from 0."""
        epoch = check_number(type(self).__name__, "epoch", epoch, at_least=0)
        progress = min(epoch / self.num_epochs, 1.0) if self.num_epochs else 1.0
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class KLAnnealing(_Ramp):
    """Weight β of the KL: from ``start`` to ``end`` over ``num_epochs``, and ``end`` afterwards.

    Annealing from 0 to 1 over 100 epochs is what Lucas et al. (2019), section 6.2, try against collapse:
    latents stay alive while β is small, and collapse later nevertheless where σ² is too large. An epoch may
    be a fraction; with steps in place of epochs it anneals over steps.

    Examples
    --------
    >>> from lineavae.nn import KLAnnealing
    >>> annealing = KLAnnealing(num_epochs=100)
    >>> annealing(0), annealing(50), annealing(300)
    (0.0, 0.5, 1.0)
    """


@dataclass(frozen=True)
class Capacity(_Ramp):
    """Target C of the KL, in nats: from 0 to ``end`` over ``num_epochs`` (Burgess et al. 2018).

    For ``GaussianVAE.elbo(x, beta=gamma, capacity=capacity(epoch))``, whose penalty is γ |KL - C|.

    Examples
    --------
    >>> from lineavae.nn import Capacity
    >>> Capacity(num_epochs=50, end=25.0)(10)
    5.0
    """

    end: float = 25.0
