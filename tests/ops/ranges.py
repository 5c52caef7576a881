"""Wild numbers, and what an operator must make of them: the promise of docs/numerics.md."""

import math
from collections.abc import Sequence
from typing import Any

import mpmath
import numpy as np
import torch
from torch import Tensor

mpmath.mp.dps = 40
EXP = np.frompyfunc(mpmath.exp, 1, 1)
LOG_2_PI = mpmath.log(2 * mpmath.pi)
# how far logs of variances go
LOGS = {torch.float64: 1400.0, torch.float32: 200.0, torch.bfloat16: 200.0, torch.float16: 200.0}


class Wild:
    """Draws numbers of every size that a dtype has."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(seed)
        info = torch.finfo(dtype)
        self._smallest, self._largest = math.log(info.smallest_normal), math.log(info.max) - 1e-2

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self._generator, dtype=torch.float64)

    def logs(self, *shape: int) -> Tensor:
        limit = LOGS[self.dtype]
        return self.uniform(-limit, limit, *shape).to(self.dtype)

    def signed(self, log_magnitude: Tensor) -> Tensor:
        """± exp(log_magnitude), as far as the dtype goes; a few are 0."""
        magnitude = log_magnitude.clamp(self._smallest, self._largest).exp()
        kind = torch.randint(0, 7, magnitude.shape, generator=self._generator)
        return torch.where(kind == 6, 0.0, torch.where(kind % 2 == 0, magnitude, -magnitude)).to(self.dtype)

    def numbers(self, *shape: int) -> Tensor:
        return self.signed(self.uniform(self._smallest, self._largest, *shape))


def exact(tensor: Tensor) -> np.ndarray:
    """The very numbers of a tensor, as mpmath's."""
    return np.frompyfunc(mpmath.mpf, 1, 1)(tensor.detach().double().numpy())


def assert_right(actual: Tensor, truth: Any, size: Any, rounding: float) -> None:
    """Compare with the exact ``truth``, a sum of terms whose magnitudes sum to ``size``.

    What fits the dtype is right to ``rounding`` of size, down to the smallest normal number; what does not
    is infinite, of the right sign.
    """
    info = torch.finfo(actual.dtype)
    rounding = max(rounding, info.eps)
    for got, true, scale in zip(
        actual.detach().double().flatten().tolist(),
        np.asarray(truth, dtype=object).reshape(-1),
        np.asarray(size, dtype=object).reshape(-1),
        strict=True,
    ):
        tolerance = rounding * scale + info.smallest_normal
        assert not math.isnan(got), f"NaN where {mpmath.nstr(true)} is right"
        if math.isinf(got):
            assert got * true > 0 or tolerance > abs(true), f"{got} where {mpmath.nstr(true)} is right"
            assert abs(true) + tolerance >= info.max, f"{got} where {mpmath.nstr(true)} is right"
        else:
            assert abs(got - true) <= tolerance, f"{got} where {mpmath.nstr(true)} is right"


def sum_to(terms: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Sum over all that an array of this shape was broadcast along."""
    extra = terms.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1)
    return np.asarray(terms.sum(axis=axes), dtype=object).reshape(shape) if axes else terms
