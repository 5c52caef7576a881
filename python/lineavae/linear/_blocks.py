"""Rows of a dataset, a block at a time: in float64, about their mean, and the sums of their products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk
from torch import Tensor

# Rows in one matrix product, which adds its terms one after the other, addmm even onto what is there. Many
# small equal terms, those of a feature that is constant in nearly all rows, are then all rounded the same
# way: 4e-12 over the 60 000 rows of MNIST, against 4e-14 for a sum of short products.
PRODUCT_ROWS = 1024

# Products that are added up before they are added to others, for the same reason.
_PRODUCTS = 64

# Elements that are copied at a time: 2 MB in float64 stay in a cache from one operation to the next.
_PART_ELEMENTS = 1 << 18

# Rows of a block, at least half as many, that are looked at to choose the pivot.
_SAMPLED_ROWS = 256

# Integers below it are float64 numbers.
_LARGEST_EXACT = 2**53


def blocks(data: NDArray[Any] | Tensor, elements: int = _PART_ELEMENTS) -> Iterator[NDArray[Any] | Tensor]:
    """Cut (N, D) data into blocks of rows of at most so many elements, and at least one row."""
    block_rows = max(1, elements // data.shape[1])
    for start in range(0, len(data), block_rows):
        yield data[start : start + block_rows]


class Block:
    """Rows (n, D) and their shares (n,), which add up to 1, about a pivot (D,) near the mean.

    A constant feature is exactly zero about it. ``lacking``, (D,), is what the pivot lacks in digits where
    the data are numbers that float64 does not hold, else ``None``.
    """

    def __init__(self, rows: NDArray[Any] | Tensor, shares: Tensor) -> None:
        self._rows = rows
        # the heaviest row, as all others may be too light to be seen in the mean
        heaviest = int(shares.argmax())
        row = rows[heaviest : heaviest + 1]
        pivot = to_float64(row)
        lacking = remainder_of(row, pivot)
        self.pivot = pivot.squeeze(0)
        self.lacking = None if lacking is None else lacking.squeeze(0)
        self._shares = shares.to(self.pivot.device)
        step = -(-len(rows) // _SAMPLED_ROWS)
        sampled = self._shares[::step]
        towards_mean = sampled @ self._deviations(rows[::step]) / (sampled.sum() + self._shares[heaviest])
        self._move_pivot(towards_mean)

    def factor(self) -> tuple[Tensor, Tensor]:
        """Mean less the pivot, (D,), and a factor R, (n - 1, D), of the covariance: RᵀR."""
        rows, roots = self._deviations(self._rows), self._shares.sqrt()
        offset = _mean(rows, self._shares)
        rows -= offset
        rows *= roots.unsqueeze(1)
        # The columns of √share · rows are orthogonal to the vector of all √share. A reflection that takes it
        # to the first axis makes the first row zero.
        rows[1:].addr_(roots[1:] / (1 + roots[0]), rows[0], alpha=-1)
        return offset, rows[1:]

    def covariance(self) -> tuple[Tensor, Tensor]:
        """Mean less the pivot, (D,), and the covariance, (D, D); the pivot becomes better if need be."""
        offset, second_moment = self._moments()
        if not (2 * offset.square() <= second_moment.diagonal()).all():
            # The sampled rows were no fair sample: the mean is off by more than the standard deviation, and
            # more than one bit would cancel.
            self._move_pivot(offset)
            offset, second_moment = self._moments()
        return offset, second_moment.addr_(offset, offset, alpha=-1)

    def _move_pivot(self, distance: Tensor) -> None:
        pivot = self.pivot + distance
        if self.lacking is not None:  # integers near one another may round to the same number
            self.lacking = self.lacking + (distance - (pivot - self.pivot))
        self.pivot = pivot

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and second moment (D, D) about the pivot, of a part of the rows at a time."""
        num_rows, num_features = self._rows.shape
        largest = self._shares.max()
        roots = (self._shares / largest).sqrt()
        is_weighted = bool((roots != 1).any())
        offset = torch.zeros_like(self.pivot)

        def parts() -> Iterator[Tensor]:
            step = min(max(_PART_ELEMENTS // num_features, PRODUCT_ROWS), num_rows)
            memory = offset.new_empty(step, num_features)
            for start in range(0, num_rows, step):
                part = slice(start, start + step)
                rows = self._deviations(self._rows[part], memory)
                offset.add_(_mean(rows, self._shares[part]))
                yield rows.mul_(roots[part].unsqueeze(1)) if is_weighted else rows

        return offset, _sum_of_products(parts(), offset).mul_(largest)

    def _deviations(self, rows: NDArray[Any] | Tensor, memory: Tensor | None = None) -> Tensor:
        deviations = to_float64(rows, memory)
        remainder = remainder_of(rows, deviations)
        deviations -= self.pivot
        if remainder is not None:
            deviations += remainder
        if self.lacking is not None:
            deviations -= self.lacking
        return deviations


def gram(rows: Tensor) -> Tensor:
    """Product RᵀR, (D, D), of (n, D) rows."""
    return _sum_of_products([rows], rows)


def _sum_of_products(parts: Iterable[Tensor], like: Tensor) -> Tensor:
    """Sum of x xᵀ, (D, D), over rows that come in parts of (n, D), where ``like`` is (..., D)."""
    # memory of zeros costs nothing before something is added
    total, some, product = (like.new_zeros(like.shape[-1], like.shape[-1]) for _ in range(3))
    count = 0
    for part in parts:
        for rows in torch.split(part, PRODUCT_ROWS):
            if rows.is_cpu:  # BLAS finds one half alone; the other one stays zero
                dsyrk(1, rows.numpy().T, c=product.numpy().T, lower=True, overwrite_c=True)
            else:
                torch.mm(rows.mT, rows, out=product)
            some += product
            count += 1
            if count % _PRODUCTS == 0:
                total += some
                some.zero_()
    total += some
    if total.is_cpu:
        total += product.copy_(total.mT)
        total.diagonal().div_(2)
    return total


def _mean(rows: Tensor, shares: Tensor) -> Tensor:
    mean = torch.zeros_like(rows[0])
    pairs = zip(torch.split(rows, PRODUCT_ROWS), torch.split(shares, PRODUCT_ROWS), strict=True)
    for some, their_shares in pairs:
        mean += their_shares @ some
    return mean


def to_float64(rows: NDArray[Any] | Tensor, memory: Tensor | None = None) -> Tensor:
    """Copy rows to a float64 tensor on their device: into the first rows of ``memory``, if that is given."""
    if memory is None:
        device = rows.device if isinstance(rows, Tensor) else "cpu"
        copy = torch.empty(rows.shape, dtype=torch.float64, device=device)
    else:
        copy = memory[: len(rows)]
    if isinstance(rows, Tensor):
        return copy.copy_(rows.detach())
    # memory of torch is aligned, on which the last bit of a matrix product may depend
    np.copyto(copy.numpy(), rows, casting="unsafe")
    return copy


def remainder_of(data: NDArray[Any] | Tensor, rows: Tensor) -> Tensor | None:
    """Give what ``rows`` lack of the data that they were rounded from; ``None`` where that is nothing."""
    if isinstance(data, Tensor):
        is_wide = data.dtype in (torch.int64, torch.uint64)
    elif data.dtype.type is np.longdouble:
        return to_float64(data - rows.numpy())
    else:
        is_wide = data.dtype.kind in "iu" and data.dtype.itemsize == 8
    if not is_wide or rows.abs().max() < _LARGEST_EXACT:
        return None
    half = 2**32 - 1
    if isinstance(data, Tensor) and data.dtype == torch.uint64:  # which torch does not shift
        signed = data.view(torch.int64)
        high, low = to_float64((signed >> 32) & half), to_float64(signed & half)
    else:
        high, low = to_float64(data >> 32), to_float64(data & half)
    return (high * 2**32 - rows) + low
