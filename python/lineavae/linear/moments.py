"""Mean and covariance of a dataset: all that a linear model needs to know of it.

They are collected in one pass, in float64, in blocks of rows, and those of two datasets merge into those of
their union (Chan, Golub and LeVeque 1983). With the shares a + b = 1 of the two and the gap g of their means:

    S = a S_a + b S_b + a b g gᵀ

Each block is taken relative to a pivot near its mean, and the mean is kept as such a pivot, the reference,
plus an offset. The pivot of a constant feature is its value. So it has exactly this mean and exactly zero
variance, however the data were split, and a mean far larger than the spread costs no accuracy.

An entry S_ij is off by some ε √(S_ii S_jj), whatever the scales of the two features. So all that depends on
small eigenvalues goes by way of the correlation matrix: `Moments._root` decides about the rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from scipy.linalg import eigh
from torch import Tensor

from lineavae._arguments import check_real, check_whole
from lineavae._tensor_file import read_tensors, write_tensors
from lineavae.linear._blocks import PRODUCT_ROWS, Block, blocks, gram, to_float64

# Elements of a block, whose rows have one pivot. Of many features it is more, so that the products outweigh
# what each block costs beside them.
_BLOCK_ELEMENTS = 1 << 22
_BLOCK_ROWS_PER_FEATURE = 8

# Part of the largest eigenvalue of which a small one is still exact to ten digits if found beside it.
_LEADING = 1e-3

# Part of the variance that some components leave that may be lost beside the largest eigenvalue, by a bound
# that is mostly a hundred times too large.
_LOST = 0.1

# Part of the eigenvectors up to which LAPACK finds them in less time than all: one of so many.
_FEW = 8

# Beyond it the squares that enter a variance overflow float64.
_LARGEST = 1e150

# What rounding may do to a correlation in a file.
_ROUNDING = 1e-11

_EPSILON = torch.finfo(torch.float64).eps

# Relative difference of two magnitudes up to which the sign of a column takes them for equal.
_TIE = 1e-6


class Moments:
    """Number of samples, mean and biased covariance of a dataset, collected in one pass and mergeable.

    ``Moments()`` has seen no data; `update` adds rows in place, every other method leaves its object as
    it is. The covariance of N <= D samples is held as a factor of N - 1 columns; no D x D matrix is formed.

    Notes
    -----
    Weights count rows: a row of weight 2 is a row seen twice, and a row of weight 0, which must be finite
    too, changes nothing except the number by which an error names later rows.

    References
    ----------
    Chan, Golub and LeVeque (1983). Algorithms for computing the sample variance: analysis and
    recommendations. The American Statistician 37.

    Examples
    --------
    >>> import numpy as np
    >>> from lineavae.linear.moments import Moments
    >>> moments = Moments.from_data(np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]))
    >>> moments
    Moments(num_samples=3, num_features=2)
    >>> moments.sample_mean
    tensor([2., 1.], dtype=torch.float64)
    >>> moments.variances
    tensor([2.6667, 0.0000], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._num_samples = 0.0
        self._num_rows = 0
        self._reference = torch.empty(0, dtype=torch.float64, device="cpu")
        self._offset = self._reference
        # (D, D): the covariance. (r, D) with r < D: the transposed factor.
        self._matrix = self._reference.reshape(0, 0)
        self._known_root: Tensor | None = None

    def __copy__(self) -> Moments:
        return self.to(self.device)  # update works in place

    @classmethod
    def from_data(cls, data: NDArray[Any] | Tensor, weights: NDArray[Any] | Tensor | None = None) -> Moments:
        """Collect the moments of a whole dataset, (N, D); arguments and errors are those of `update`."""
        return cls().update(data, weights)

    @classmethod
    def from_batches(cls, batches: Iterable[NDArray[Any] | Tensor | tuple[Any, ...] | list[Any]]) -> Moments:
        """Collect the moments of a dataset that comes in batches of shape (N, D).

        Of a batch that is a tuple or a list, such as samples and labels, the first element is taken.
        """
        moments = cls()
        for batch in batches:
            moments.update(batch[0] if isinstance(batch, tuple | list) else batch)
        return moments

    @torch.no_grad()
    def update(self, batch: NDArray[Any] | Tensor, weights: NDArray[Any] | Tensor | None = None) -> Moments:
        """Add rows, in place.

        Parameters
        ----------
        batch
            Rows of any real dtype, (N, D), N >= 0. A tensor may be on any device that has float64, and the
            statistics stay there. Only a block of rows at a time is held in float64; integers beyond 2**53,
            and extended precision, are centred before they are rounded.
        weights
            Non-negative weights of the rows, (N,); one each where not given.

        Returns
        -------
        Moments
            This object. On an error it is as it was before.

        Raises
        ------
        TypeError
            The batch is neither an array nor a dense tensor, is masked, is not real, or is on a device
            without float64.
        ValueError
            A shape or device does not fit; a value is NaN, infinite or beyond 1e150 in magnitude, where
            squares overflow (the row is named, counted over all rows seen); a weight is negative or not
            finite.
        """
        self._absorb(_summarise(batch, weights, self._num_rows))
        return self

    @torch.no_grad()
    def merge(self, other: Moments) -> Moments:
        """Give the moments of the union of two datasets, on one device; neither operand is changed.

        Raises
        ------
        ValueError
            The numbers of features or the devices differ.
        """
        merged = Moments()
        merged._absorb(self)
        merged._absorb(other)
        return merged

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Moments:
        """Merge the moments of all processes of a ``torch.distributed`` group; a collective call.

        Every process gets the same statistics, to the bit, and a repetition gives them again: processes are
        merged in the order of their ranks and the first one's result is sent to all. A process that has seen
        no data takes part as well; its result is on the device over which the group communicates.

        Raises
        ------
        ValueError
            The numbers of features differ between processes.
        """
        merged = Moments()
        for rank in range(dist.get_world_size(group)):
            merged._absorb(self._broadcast(rank, group))
        result = merged._broadcast(0, group)
        return result.to(self.device) if self._num_samples else result

    def to(self, device: torch.device | str) -> Moments:
        """Copy the moments to a device, which must have float64."""
        return Moments._from_state(
            {name: tensor.to(device, copy=True) for name, tensor in self._state().items()}
        )

    def select(self, features: Tensor | Sequence[int]) -> Moments:
        """Give the moments of some of the features: a boolean mask (D,), or indices in the order wanted.

        Examples
        --------
        >>> import torch
        >>> from lineavae.linear.moments import Moments
        >>> moments = Moments.from_data(torch.tensor([[0.0, 1.0, 3.0], [2.0, 1.0, 5.0], [4.0, 1.0, 0.0]]))
        >>> moments.select(~moments.constant_features())
        Moments(num_samples=3, num_features=2)
        """
        index = torch.as_tensor(features, device=self.device)
        if index.dtype == torch.bool:
            if index.shape != self.sample_mean.shape:
                raise ValueError(
                    f"Moments.select: a mask must have shape ({self.num_features},), got {tuple(index.shape)}"
                )
            index = index.nonzero().squeeze(1)
        if index.ndim != 1 or not index.numel() or index.is_floating_point():
            raise ValueError(
                "Moments.select: features must be a mask or a sequence of indices of at least one feature"
            )
        outside = index[(index < -self.num_features) | (index >= self.num_features)]
        if outside.numel():
            raise ValueError(
                f"Moments.select: features must be indices of the {self.num_features} features, "
                f"got {outside[0].item()}"
            )
        selected = Moments()
        selected._num_samples, selected._num_rows = self._num_samples, self._num_rows
        selected._reference, selected._offset = self._reference[index], self._offset[index]
        columns = self._matrix[:, index]
        selected._matrix = _compact(columns) if self._is_low_rank else columns[index]
        return selected

    @property
    def num_samples(self) -> int | float:
        """Number of rows seen, or their total weight; an ``int`` where it is whole."""
        return int(self._num_samples) if self._num_samples.is_integer() else self._num_samples

    @property
    def num_features(self) -> int:
        """Number of features D."""
        return self._seen()._reference.numel()

    @property
    def device(self) -> torch.device:
        """Device of the statistics, that of the data."""
        return self._reference.device

    @property
    def sample_mean(self) -> Tensor:
        """Mean x̄ of the data, (D,), float64."""
        return self._seen()._reference + self._offset

    @property
    def covariance(self) -> Tensor:
        """Biased covariance (1/N) Σ (x - x̄)(x - x̄)ᵀ, (D, D), float64; a new tensor at each access."""
        matrix = _dense(self._seen()._matrix)
        return (matrix + matrix.mT) / 2

    @property
    def factor(self) -> Tensor | None:
        """Factor F, (D, r) with r < D and covariance = F Fᵀ, of at most D samples; ``None`` of more."""
        factor = self._factor
        return None if factor is None else factor.clone()

    @property
    def variances(self) -> Tensor:
        """Diagonal of the covariance, (D,), float64."""
        matrix = self._seen()._matrix
        return matrix.square().sum(0) if self._is_low_rank else matrix.diagonal().clone()

    @property
    def total_variance(self) -> float:
        """Sum of the variances, the trace of the covariance."""
        return self.variances.sum().item()

    @property
    def rank(self) -> int:
        """Rank of the covariance up to its rounding: the number of positive eigenvalues that `eigh` gives."""
        return self._root.shape[1]

    def constant_features(self) -> Tensor:
        """Mask of the features with zero variance, (D,), bool: those that had one value in all rows."""
        return self.variances == 0

    def eigh(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the covariance, the largest first.

        As many eigenvalues are positive as the covariance has rank. One that its rounding does not tell from
        zero is zero, whatever the order of the rows and the batches that they came in; the scales of the
        features do not matter to it.

        Returns
        -------
        eigenvalues : Tensor
            (r,), float64, descending, >= 0. If N <= D, r is N - 1 and all other eigenvalues are zero; else r
            is D.
        eigenvectors : Tensor
            (D, r), float64, orthonormal columns. The entry of largest magnitude of each is positive, the
            first one of several that are equal up to 1e-6.
        """
        root = self._root
        # with the large rows first, the small singular values of a graded matrix keep their digits
        order = self.variances.argsort(descending=True, stable=True)
        vectors, singular_values, _ = torch.linalg.svd(root[order], full_matrices=False)
        missing = len(self._matrix) - len(singular_values)
        if missing:
            padded = torch.nn.functional.pad(vectors, (0, missing))
            vectors = torch.cat([vectors, torch.linalg.qr(padded).Q[:, -missing:]], 1)
        eigenvectors = torch.empty_like(vectors)
        eigenvectors[order] = vectors
        eigenvalues = torch.nn.functional.pad(singular_values.square(), (0, missing))
        return eigenvalues, with_fixed_signs(eigenvectors)

    def _leading_eigenpairs(self, count: int) -> tuple[Tensor, float, Tensor] | None:
        """Give the ``count`` largest eigenvalues, the sum of the others, and the eigenvectors (D, count).

        They are as exact as those of `eigh`, in a fraction of its time; or it is None. A decomposition of the
        covariance itself errs relative to the largest eigenvalue, so the next one after ``count`` must not be
        far below that. Then it is above zero, too.
        """
        matrix = self._seen()._matrix
        if count >= len(matrix):
            return None
        # of few samples their products, whose eigenvalues are the same
        square = gram(matrix.mT.contiguous()) if self._is_low_rank else self.covariance
        eigenvalues, eigenvectors = _largest_eigenpairs(square, count + 1)
        if not eigenvalues[count] >= _LEADING * eigenvalues[0] > 0:  # of constant data all are zero
            return None
        eigenvalues, eigenvectors = eigenvalues[:count], eigenvectors[:, :count]
        if self._is_low_rank:
            eigenvectors = matrix.mT @ eigenvectors / eigenvalues.sqrt()
        rest = self.total_variance - eigenvalues.sum().item()
        return eigenvalues, rest, with_fixed_signs(eigenvectors)

    def save(self, path: str | Path) -> None:
        """Write the moments to a safetensors file, atomically; `load` gives them back to the bit."""
        write_tensors(Path(path), "Moments", self._seen()._state())

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Moments:
        """Read moments that `save` wrote.

        Raises
        ------
        OSError
            The file cannot be read: there is none, or it is a folder.
        ValueError
            The file is not such a file, it is damaged, or its content is not the moments of any data: a
            number is NaN, or the covariance beyond rounding not symmetric or not positive semidefinite.
        """
        state, _ = read_tensors("Moments.load", Path(path), "Moments")
        _check_state(path, state)
        return cls._from_state(state).to(device)

    def __repr__(self) -> str:
        if not self._num_samples:
            return "Moments(num_samples=0)"
        rank = f", rank={len(self._matrix)}" if self._is_low_rank else ""
        device = "" if self.device.type == "cpu" else f", device='{self.device}'"
        return f"Moments(num_samples={self.num_samples}, num_features={self.num_features}{rank}{device})"

    @property
    def _factor(self) -> Tensor | None:
        """The factor itself, not a copy, for those who only read it."""
        matrix = self._seen()._matrix
        return matrix.mT if self._is_low_rank else None

    @property
    def _root(self) -> Tensor:
        """Factor R of full column rank, (D, rank): covariance = R Rᵀ up to the rounding of the covariance.

        The rank is that of the correlation matrix, decided by what its entries may be off by.
        """
        if self._known_root is None:
            with torch.inference_mode(False):  # it stays for later calls, which may need gradients
                self._known_root = self._find_root()
        return self._known_root

    @torch.no_grad()
    def _find_root(self) -> Tensor:
        deviations = self._seen().variances.sqrt()
        scale = torch.where(deviations > 0, deviations, 1)
        # the entries' roundings are random enough to add up like √D, the decomposition's is D ε
        noise = (math.sqrt(self.num_features) * self._rounding + self.num_features) * _EPSILON
        if self._is_low_rank:
            _, singular_values, rows = torch.linalg.svd(self._matrix / scale, full_matrices=False)
            axes, kept = rows.mT, singular_values > noise
        else:
            eigenvalues, axes = torch.linalg.eigh(self.covariance / scale / scale.unsqueeze(1))
            singular_values, kept = eigenvalues.clamp_min(0).sqrt(), eigenvalues > noise
        root: Tensor = scale.unsqueeze(1) * axes[:, kept] * singular_values[kept]
        return root

    def _root_about(self, mean: Tensor) -> Tensor:
        """Factor R, (D, rank + 1), of the second moment about another mean: S + (x̄ - μ)(x̄ - μ)ᵀ = R Rᵀ.

        Distances of its columns add up to those of the data, without the cancellation of tr S - tr(...). It
        is on the device of the mean, and differentiable by it.
        """
        return torch.cat([self._root.to(mean), (self.sample_mean.to(mean) - mean).unsqueeze(1)], 1)

    @property
    def _rounding(self) -> float:
        """How many ε an entry may be off by, beside the deviations, in any order and batching of the rows."""
        # of a product over PRODUCT_ROWS each rounding may go the same way; those of merges do not
        in_product = 16 if self._is_low_rank else PRODUCT_ROWS / 2
        return in_product + 4 * math.sqrt(self._num_rows)

    def _eigenvalue_rounding(self, eigenvalues: Tensor, eigenvectors: Tensor) -> Tensor:
        """How much each eigenvalue may be off by, (r,), to first order."""
        spread = eigenvectors.square().mT @ self.variances
        if self._is_low_rank:
            spread = 2 * (eigenvalues * spread).sqrt()
        return (self._rounding * spread + self.num_features * eigenvalues) * _EPSILON

    @property
    def _is_low_rank(self) -> bool:
        return self._matrix.shape[0] < self._matrix.shape[1]

    def _seen(self) -> Moments:
        if not self._num_samples:
            raise ValueError("Moments: there are no statistics before the first sample of positive weight")
        return self

    def _state(self) -> dict[str, Tensor]:
        return {
            "num_samples": torch.tensor(self._num_samples, dtype=torch.float64, device="cpu"),
            "num_rows": torch.tensor(self._num_rows, device="cpu"),
            "reference": self._reference,
            "offset": self._offset,
            "matrix": self._matrix,
        }

    @staticmethod
    def _from_state(state: dict[str, Tensor]) -> Moments:
        moments = Moments()
        moments._num_samples = float(state["num_samples"])
        moments._num_rows = int(state["num_rows"])
        moments._reference = state["reference"]
        moments._offset = state["offset"]
        moments._matrix = state["matrix"]
        return moments

    def _absorb(self, other: Moments) -> None:
        """Merge ``other`` into this object; ``other`` stays as it is."""
        self._known_root = None
        if not other._num_samples:
            self._num_rows += other._num_rows
            return
        if not self._num_samples:
            self._reference, self._offset = other._reference, other._offset
            self._matrix = other._matrix.clone()  # updated in place from here on
            self._num_samples, self._num_rows = other._num_samples, self._num_rows + other._num_rows
            return
        if other.num_features != self.num_features:
            raise ValueError(
                f"Moments: data must have {self.num_features} features, got {other.num_features}"
            )
        if other.device != self.device:
            raise ValueError(f"Moments: data must be on device {self.device}, got {other.device}")
        total = self._num_samples + other._num_samples
        if math.isinf(total):
            raise ValueError("Moments: weights must have a finite sum")
        own_share, other_share = self._num_samples / total, other._num_samples / total
        gap = (other._reference - self._reference) + (other._offset - self._offset)
        between = math.sqrt(own_share * other_share) * gap
        own, others = self._matrix, other._matrix
        if self._is_low_rank and other._is_low_rank:
            rows = [math.sqrt(own_share) * own, math.sqrt(other_share) * others, between.unsqueeze(0)]
            self._matrix = _compact(torch.cat(rows))
        else:
            covariance = _dense(own)
            if covariance.is_inference() and not torch.is_inference_mode_enabled():
                covariance = covariance.clone()  # as torch lets it be changed in place in that mode alone
            covariance.mul_(own_share).add_(_dense(others), alpha=other_share)
            self._matrix = covariance.addr_(between, between)
        self._offset = self._offset + other_share * gap
        self._num_samples, self._num_rows = total, self._num_rows + other._num_rows

    def _broadcast(self, source: int, group: dist.ProcessGroup | None) -> Moments:
        """Give the moments of the process of rank ``source`` in the group, in every process."""
        device = _communication_device(group)
        is_source = dist.get_rank(group) == source
        shape = torch.tensor(self._matrix.shape, device=device)
        dist.broadcast(shape, group=group, group_src=source)
        rows, features = shape.tolist()
        if is_source:
            state = {name: tensor.to(device).contiguous() for name, tensor in self._state().items()}
        else:
            state = {
                "num_samples": torch.empty((), dtype=torch.float64, device=device),
                "num_rows": torch.empty((), dtype=torch.int64, device=device),
                "reference": torch.empty(features, dtype=torch.float64, device=device),
                "offset": torch.empty(features, dtype=torch.float64, device=device),
                "matrix": torch.empty(rows, features, dtype=torch.float64, device=device),
            }
        for tensor in state.values():
            dist.broadcast(tensor, group=group, group_src=source)
        return Moments._from_state(state)


def _largest_eigenpairs(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Give the largest eigenvalues of a symmetric matrix, descending, and their eigenvectors."""
    if not matrix.is_cpu:
        eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    else:  # SciPy can find some alone, and all in less time than torch
        found = None
        if _FEW * count < len(matrix):
            some = (len(matrix) - count, len(matrix) - 1)
            with suppress(np.linalg.LinAlgError):
                found = eigh(matrix.numpy(), subset_by_index=some, driver="evr")
        # LAPACK's evr loses equal eigenvalues, mostly without a word
        if found is None or len(found[0]) < count:
            found = eigh(matrix.numpy(), driver="evd")
        eigenvalues, eigenvectors = map(torch.from_numpy, found)
    return eigenvalues.flip(0)[:count], eigenvectors.flip(1)[:, :count]


def with_fixed_signs(columns: Tensor) -> Tensor:
    """Flip columns so that the entry of largest magnitude of each, the first of equal ones, is positive."""
    magnitudes = columns.abs()
    largest = magnitudes >= (1 - _TIE) * magnitudes.amax(0)
    return columns * columns.gather(0, largest.int().argmax(0, keepdim=True)).sign()


def _summarise(data: NDArray[Any] | Tensor, weights: NDArray[Any] | Tensor | None, first_row: int) -> Moments:
    """Moments of (N, D) data whose first row has the given number in the stream."""
    _check_data(data)
    row_weights = _check_weights(weights, len(data))
    moments, start = Moments(), 0
    for block in blocks(data, max(_BLOCK_ELEMENTS, _BLOCK_ROWS_PER_FEATURE * data.shape[1] ** 2)):
        stop = start + len(block)
        moments._absorb(_summarise_block(block, row_weights[start:stop], first_row + start))
        start = stop
    moments._num_rows = len(data)
    return moments


def _summarise_block(rows: NDArray[Any] | Tensor, weights: Tensor, first_row: int) -> Moments:
    moments = Moments()
    positive = weights > 0
    if not positive.all():
        _check_finite(rows, first_row)
        rows = rows[positive.to(rows.device) if isinstance(rows, Tensor) else positive.numpy()]
        weights = weights[positive]
    if not len(rows):
        return moments
    total = weights.sum()
    shares = weights / total
    block = Block(rows, shares)
    offset, moments._matrix = block.factor() if len(rows) <= rows.shape[1] else block.covariance()
    moments._reference = block.pivot
    moments._offset = offset if block.lacking is None else offset + block.lacking
    moments._num_samples = total.item()
    farthest = (moments.variances.max() / shares.min()).sqrt() + moments.sample_mean.abs().max()
    if not farthest <= _LARGEST:  # some number may be, or is NaN
        _check_finite(rows, first_row)
    return moments


def _compact(rows: Tensor) -> Tensor:
    """Replace (r, D) rows by their Gram matrix (D, D) as soon as it is no larger."""
    return gram(rows) if rows.shape[0] >= rows.shape[1] else rows


def _dense(matrix: Tensor) -> Tensor:
    return gram(matrix) if matrix.shape[0] < matrix.shape[1] else matrix


def _check_data(data: NDArray[Any] | Tensor) -> None:
    check_whole("Moments", "data", data)
    if not isinstance(data, Tensor | np.ndarray):
        raise TypeError(
            f"Moments: data must be a NumPy array or a torch.Tensor, got {type(data).__name__}; "
            "from_batches takes a DataLoader"
        )
    check_real("Moments", "data", data)
    if isinstance(data, Tensor) and data.device.type == "mps":
        raise TypeError("Moments: data must be on a device that has float64, got mps; move it with .cpu()")
    if data.ndim != 2 or data.shape[1] == 0:
        hint = "; reshape(N, -1) makes images rows" if data.ndim > 2 else ""
        raise ValueError(f"Moments: data must have shape (N, D) with D >= 1, got {tuple(data.shape)}{hint}")


def _check_weights(weights: NDArray[Any] | Tensor | None, num_rows: int) -> Tensor:
    if weights is None:
        return torch.ones(num_rows, dtype=torch.float64, device="cpu")
    check_whole("Moments", "weights", weights)
    checked = to_float64(weights)
    if checked.shape != (num_rows,):
        raise ValueError(
            f"Moments: weights must have shape (N,) with N={num_rows}, got {tuple(checked.shape)}"
        )
    bad = ~(checked >= 0) | checked.isinf()
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"Moments: weights must be finite and >= 0, got {checked[row].item()} at index {row}"
        )
    if checked.sum().isinf():
        raise ValueError("Moments: weights must have a finite sum")
    return checked


def _check_finite(rows: NDArray[Any] | Tensor, first_row: int) -> None:
    for part in blocks(rows):
        numbers = to_float64(part)
        bad = ~(numbers.abs() <= _LARGEST)
        if bad.any():
            row, feature = bad.nonzero()[0].tolist()
            raise ValueError(
                f"Moments: data must be finite, not NaN, and at most {_LARGEST:g} in magnitude, "
                f"got {numbers[row, feature].item()} in row {first_row + row}, feature {feature}"
            )
        first_row += len(part)


def check_unexplained(caller: str, eigenvalues: Tensor, rounding: Tensor, rest: slice | Tensor) -> None:
    """Check that the variance that some components leave is not lost beside the largest eigenvalue."""
    known, lost = eigenvalues[rest].sum().item(), rounding[rest][eigenvalues[rest] == 0].sum().item()
    if lost > _LOST * known > 0:
        raise ValueError(
            f"{caller}: the variance that the components leave must not be lost in the rounding of the "
            f"largest eigenvalue, {eigenvalues[0].item():.2g}; got {known:.2g}, to which up to {lost:.2g} "
            "may be missing. Scale down, or leave out, the features or samples that are so large"
        )


def check_features(caller: str, name: str, moments: Moments, num_features: int) -> None:
    """Check that an argument is moments, and of as many features as a model has."""
    if not isinstance(moments, Moments):
        raise TypeError(f"{caller}: {name} must be Moments, got {type(moments).__name__}")
    if moments.num_features != num_features:
        raise ValueError(
            f"{caller}: {name} must have the {num_features} features of the model, got {moments.num_features}"
        )


def _check_state(path: str | Path, state: dict[str, Tensor]) -> None:
    """Check what a file claims to be the moments of some data."""

    def check(rule: str, holds: bool, got: object) -> None:
        if not holds:
            raise ValueError(f"Moments.load: {path}: {rule}, got {got}")

    dtypes = dict.fromkeys(("num_samples", "reference", "offset", "matrix"), torch.float64)
    dtypes["num_rows"] = torch.int64
    check(f"the tensors must be {sorted(dtypes)}", state.keys() == dtypes.keys(), sorted(state))
    for name, tensor in state.items():
        check(f"{name} must be {dtypes[name]}", tensor.dtype == dtypes[name], tensor.dtype)
        check(f"{name} must be finite", bool(tensor.isfinite().all()), "a NaN or an infinity")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    features = state["reference"].numel()
    numbers = [state["num_samples"], state["num_rows"]]
    check("num_samples and num_rows must be numbers", all(number.ndim == 0 for number in numbers), shapes)
    check("num_samples and num_rows must be positive", all(number > 0 for number in numbers), numbers)
    check("reference and offset must be (D,)", shapes["reference"] == shapes["offset"] == (features,), shapes)
    matrix = state["matrix"]
    fits = matrix.ndim == 2 and matrix.shape[0] <= matrix.shape[1] == features
    check("matrix must be (r, D) with r <= D", fits and features > 0, shapes)
    if matrix.shape[0] == features:
        check("the covariance must have no negative variance", bool((matrix.diagonal() >= 0).all()), "one")
        # Entries are rounded relative to √(variance · variance): so they are checked as correlations. The
        # absolute term is for variances that are zero, or in which denormal numbers are few digits.
        roots = matrix.diagonal().sqrt()
        correlation = matrix / (roots.outer(roots) + 1e-300)
        asymmetry = (correlation - correlation.mT).abs().max().item()
        check("the covariance must be symmetric", asymmetry <= _ROUNDING, f"a difference of {asymmetry:.2g}")
        shifted = (correlation + correlation.mT) / 2 + features * _ROUNDING * torch.eye(
            features, dtype=matrix.dtype, device=matrix.device
        )
        semidefinite = not torch.linalg.cholesky_ex(shifted).info
        check("the covariance must be positive semidefinite", semidefinite, "a negative eigenvalue")


def _communication_device(group: dist.ProcessGroup | None) -> torch.device:
    """Choose a device whose tensors the group's backend can send: the CPU where possible."""
    devices = dist.Backend.backend_capability[dist.get_backend(group)]
    return torch.device("cpu" if "cpu" in devices else devices[0])
