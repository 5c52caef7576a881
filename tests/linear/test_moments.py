from __future__ import annotations

import copy
import gzip
import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.data import DataLoader, TensorDataset

from lineavae.data import load_mnist5k
from lineavae.linear import moments as moments_module
from lineavae.linear.moments import Moments


def relative_error(measured: Tensor, expected: Tensor) -> float:
    """Largest difference of two covariances in units of the deviations; exact where these are zero."""
    deviation = expected.diagonal().sqrt()
    scale = deviation.outer(deviation)
    error = (measured - expected).abs()
    assert (error[scale == 0] == 0).all()
    return (error / torch.where(scale == 0, 1.0, scale)).max().item()


def two_pass(data: NDArray[Any], weights: NDArray[Any] | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased covariance in extended precision."""
    rows = data.astype(np.longdouble)
    weight = np.ones(len(rows), np.longdouble) if weights is None else weights.astype(np.longdouble)
    mean = weight @ rows / weight.sum()
    correction = weight @ (rows - mean) / weight.sum()
    centred = rows - mean - correction
    covariance = (centred * weight[:, None]).T @ centred / weight.sum()
    return tuple(torch.from_numpy(x.astype(np.float64)) for x in (mean + correction, covariance))


def exact_covariance_of_pixels(pixels: NDArray[np.uint8]) -> Tensor:
    """(N Σ x xᵀ - Σx Σxᵀ) / N², in which the numerator is an integer below 2**53 and so exact."""
    wide, num_samples = pixels.astype(np.float64), len(pixels)
    products, sums = (wide.T @ wide).astype(np.int64), wide.sum(0).astype(np.int64)
    numerator = num_samples * products - np.outer(sums, sums)
    assert abs(numerator).max() < 2**53
    return torch.from_numpy(numerator / num_samples**2)


def merge_in_turn(parts: list[Moments]) -> Moments:
    merged = Moments()
    for part in parts:
        merged = merged.merge(part)
    return merged


def assert_equal(first: Moments, second: Moments) -> None:
    assert first.num_samples == second.num_samples
    assert torch.equal(first.sample_mean, second.sample_mean)
    assert torch.equal(first.covariance, second.covariance)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "_BLOCK_ELEMENTS", 64)
    monkeypatch.setattr(moments_module, "_BLOCK_ROWS_PER_FEATURE", 0)


class TestAgainstExactArithmetic:
    def check(self, pixels: NDArray[np.uint8]) -> None:
        """One pass, 100 merges and the exact covariance agree; so do one pass and merges of pixels / 255."""
        exact = exact_covariance_of_pixels(pixels)
        whole = Moments.from_data(pixels)
        merged = merge_in_turn([Moments.from_data(part) for part in np.array_split(pixels, 100)])
        assert whole.num_samples == merged.num_samples == len(pixels)
        assert relative_error(whole.covariance, exact) < 1e-13
        assert relative_error(merged.covariance, exact) < 1e-13
        assert relative_error(merged.covariance, whole.covariance) < 1e-12
        constant = torch.from_numpy((pixels == pixels[0]).all(0))
        assert constant.any()
        assert torch.equal(whole.constant_features(), constant)
        assert torch.equal(merged.constant_features(), constant)
        scaled = pixels.astype(np.float32) / 255
        merged = Moments.from_batches(np.array_split(scaled, 100))
        assert relative_error(merged.covariance, Moments.from_data(scaled).covariance) < 1e-12
        for row, column in [(406, 406), (406, 434), (210, 573), (400, 14)]:
            x, y = scaled[:, row].tolist(), scaled[:, column].tolist()
            x_mean, y_mean = math.fsum(x) / len(x), math.fsum(y) / len(y)
            expected = math.fsum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / len(x)
            scale = math.sqrt(merged.variances[row] * merged.variances[column])
            assert abs(merged.covariance[row, column] - expected) <= 1e-13 * scale

    def test_mnist5k(self) -> None:
        self.check(load_mnist5k().images.reshape(-1, 784))

    @pytest.mark.slow
    def test_mnist(self) -> None:
        file = Path(os.environ.get("LINEAVAE_DATA", "")) / "train-images-idx3-ubyte.gz"
        if not file.is_file():
            pytest.skip("LINEAVAE_DATA does not name a folder with MNIST")
        pixels = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=16).reshape(-1, 784)
        assert pixels.shape == (60_000, 784)
        self.check(pixels)

    def test_rational_arithmetic(self) -> None:
        data = np.array([[0.1, 1e8 + 0.3], [0.7, 1e8 - 2.9], [-0.4, 1e8 + 1.1], [0.1, 1e8]])
        weights = np.array([0.5, 2.0, 0.25, 3.0])
        x, w = (
            [[Fraction(value) for value in row] for row in data.tolist()],
            [Fraction(v) for v in weights.tolist()],
        )
        mean = [sum(a * row[j] for a, row in zip(w, x, strict=True)) / sum(w) for j in range(2)]
        moments = Moments.from_data(data[:1], weights[:1]).update(data[1:], weights[1:])
        assert moments.num_samples == float(sum(w))
        for i in range(2):
            assert moments.sample_mean[i].item() == pytest.approx(float(mean[i]), rel=1e-15)
            for j in range(2):
                products = [a * (row[i] - mean[i]) * (row[j] - mean[j]) for a, row in zip(w, x, strict=True)]
                exact = float(sum(products) / sum(w))
                assert moments.covariance[i, j].item() == pytest.approx(exact, rel=1e-13)


class TestAccuracy:
    @pytest.mark.parametrize("mean", [0.0, 1e4, 1e12])
    def test_mean_far_above_the_spread(self, random: np.random.Generator, mean: float) -> None:
        data = mean + random.standard_normal((3000, 7)) @ random.standard_normal((7, 7))
        expected_mean, expected = two_pass(data)
        moments = Moments.from_batches(np.array_split(data, 50))
        assert relative_error(moments.covariance, expected) < 1e-13
        torch.testing.assert_close(moments.sample_mean, expected_mean, rtol=1e-15, atol=1e-15)

    def test_batches_with_labels(self, random: np.random.Generator) -> None:
        data = torch.from_numpy(random.standard_normal((50, 3)))
        loader = DataLoader(TensorDataset(data, torch.arange(50)), batch_size=7)
        assert_equal(Moments.from_batches(loader), Moments.from_batches(data.split(7)))

    def test_one_row_at_a_time(self, random: np.random.Generator) -> None:
        data = random.standard_normal((2000, 5)) + 100
        moments = Moments.from_batches(data[:, None])
        assert relative_error(moments.covariance, two_pass(data)[1]) < 1e-13

    def test_sorted_rows(self, random: np.random.Generator) -> None:
        data = np.sort(random.standard_cauchy((4000, 3)), 0)
        moments = Moments.from_batches(np.array_split(data, 30))
        assert relative_error(moments.covariance, two_pass(data)[1]) < 1e-13

    @pytest.mark.parametrize("weighted", [False, True])
    def test_regular_rows_far_from_all_others(self, random: np.random.Generator, weighted: bool) -> None:
        """No few rows tell where the mean is, even of a block that is taken at once."""
        data = random.standard_normal((1 << 18, 3))
        for step in (256, 512, 1024, 2048):
            data[::step] += 1e5
        weights = random.exponential(size=len(data)) if weighted else np.ones(len(data))
        moments = Moments.from_data(data, weights)
        assert relative_error(moments.covariance, two_pass(data, weights)[1]) < 3e-15

    def test_many_equal_products(self) -> None:
        """They are not added to one sum in turn, which would round all of them the same way."""
        data = np.tile([[0.3], [0.1]], (1 << 19, 1))
        low, high = (Fraction(value) for value in (0.1, 0.3))
        moments = Moments.from_data(data)
        assert abs(Fraction(moments.covariance.item()) / ((high - low) / 2) ** 2 - 1) < 3e-15

    @pytest.mark.parametrize("dtype", [np.int64, np.uint64])
    def test_integers_that_float64_takes_for_one(self, dtype: type) -> None:
        """The pivot may be as far from the mean as the next float64, and all of the spread much less."""
        steps = np.zeros((20_003, 2), dtype)
        steps[::1000, 0] = 1
        steps[0] = 400
        data = steps + dtype(9_000_000_000_000_000_000)
        moments = Moments.from_data(data)
        assert relative_error(moments.covariance, two_pass(steps)[1]) < 3e-14
        assert np.all(moments.sample_mean.numpy() == 9e18)

    def test_extended_precision_about_one_number(self) -> None:
        if np.finfo(np.longdouble).eps > 1e-18:
            pytest.skip("longdouble has no more digits than float64")
        steps = np.zeros((20_003, 1), np.longdouble)
        steps[0] = 2.0**-55
        moments = Moments.from_data(1 + steps)
        assert relative_error(moments.covariance, two_pass(steps)[1]) < 3e-14

    def test_covariance_is_exactly_symmetric(self, random: np.random.Generator) -> None:
        covariance = Moments.from_data(random.standard_normal((500, 33))).covariance
        assert torch.equal(covariance, covariance.mT)

    @settings(max_examples=60, deadline=None)
    @given(
        num_rows=st.integers(1, 40),
        num_features=st.integers(1, 20),
        cuts=st.lists(st.integers(0, 40), max_size=5),
        weighted=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_any_split(
        self, num_rows: int, num_features: int, cuts: list[int], weighted: bool, seed: int
    ) -> None:
        random = np.random.default_rng(seed)
        data = random.standard_normal((num_rows, num_features)) * 10.0 ** random.integers(-5, 5, num_features)
        weights = random.exponential(size=num_rows) if weighted else np.ones(num_rows)
        where = sorted(cuts)
        parts = zip(np.split(data, where), np.split(weights, where), strict=True)
        merged = merge_in_turn([Moments.from_data(*part) for part in parts])
        expected_mean, expected = two_pass(data, weights)
        scale = torch.from_numpy(abs(data).max(0))
        assert ((merged.sample_mean - expected_mean).abs() <= 1e-14 * scale).all()
        assert ((merged.covariance - expected).abs() <= 1e-13 * scale.outer(scale)).all()
        assert (merged.factor is None) == (num_rows > num_features)


class TestConstantFeatures:
    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.uint8, np.int64])
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("num_parts", [1, 3, 199])
    def test_zero_variance_and_exact_mean(
        self, random: np.random.Generator, dtype: type[np.number[Any]], weighted: bool, num_parts: int
    ) -> None:
        constants = np.array([0.1, 1 / 3, 7e4 / 9, 3, 0, 65000 if dtype == np.float16 else 1e-7])
        constants = constants.astype(dtype) if dtype != np.uint8 else constants.astype(np.int64).astype(dtype)
        data = np.tile(constants, (1000, 1))
        data[:, 4] = random.integers(0, 100, 1000)
        weights = random.exponential(size=1000) if weighted else None
        parts = np.array_split(data, num_parts)
        part_weights = np.array_split(weights, num_parts) if weights is not None else [None] * num_parts
        merged = merge_in_turn([Moments.from_data(*part) for part in zip(parts, part_weights, strict=True)])
        expected = torch.tensor([True, True, True, True, False, True])
        assert torch.equal(merged.constant_features(), expected)
        assert torch.equal(
            merged.sample_mean[expected], torch.from_numpy(constants.astype(np.float64))[expected]
        )
        assert (merged.covariance[expected] == 0).all()

    def test_low_rank(self, random: np.random.Generator) -> None:
        data = random.standard_normal((6, 20))
        data[:, 3] = 0.1
        moments = Moments.from_batches(data[:, None])
        assert moments.factor is not None
        assert moments.constant_features().nonzero().tolist() == [[3]]
        assert moments.sample_mean[3].item() == 0.1

    def test_values_that_differ_between_parts(self) -> None:
        merged = Moments.from_data(np.full((3, 1), 0.1)).merge(Moments.from_data(np.full((1, 1), 0.3)))
        assert merged.variances.item() == pytest.approx(0.1875 * 0.04, rel=1e-14)


class TestLowRank:
    def test_factor(self, random: np.random.Generator) -> None:
        data = random.standard_normal((9, 30)) + 5
        moments = Moments.from_batches([data[:4], data[4:5], data[5:]])
        assert moments.factor is not None
        assert moments.factor.shape == (30, 8)
        moments.factor.zero_()  # a copy
        assert relative_error(moments.factor @ moments.factor.mT, two_pass(data)[1]) < 1e-14
        torch.testing.assert_close(moments.variances, moments.covariance.diagonal(), rtol=1e-14, atol=0)
        assert repr(moments) == "Moments(num_samples=9, num_features=30, rank=8)"

    @pytest.mark.parametrize("first", [4, 12, 30])
    @pytest.mark.parametrize("second", [4, 12, 30])
    def test_factor_and_covariance_merge(self, random: np.random.Generator, first: int, second: int) -> None:
        data = random.standard_normal((first + second, 10)) + 3
        merged = Moments.from_data(data[:first]).merge(Moments.from_data(data[first:]))
        assert (merged.factor is None) == (first + second > 10)
        assert relative_error(merged.covariance, two_pass(data)[1]) < 1e-14

    def test_more_features_than_a_covariance_fits(self, random: np.random.Generator) -> None:
        data = random.standard_normal((20, 200_000), dtype=np.float32)
        moments = Moments.from_data(data)
        eigenvalues, eigenvectors = moments.eigh()
        assert eigenvectors.shape == (200_000, 19)
        centred = data.astype(np.float64) - data.mean(0, dtype=np.float64)
        expected = np.linalg.eigvalsh(centred @ centred.T / 20)[:0:-1].copy()
        torch.testing.assert_close(eigenvalues, torch.from_numpy(expected), rtol=1e-12, atol=0)


class TestEigh:
    @pytest.mark.parametrize("num_rows", [8, 200])
    def test_eigenpairs(self, random: np.random.Generator, num_rows: int) -> None:
        data = random.standard_normal((num_rows, 12)) * np.arange(1, 13)
        eigenvalues, eigenvectors = Moments.from_data(data).eigh()
        rank = min(num_rows - 1, 12)
        expected = np.linalg.eigvalsh(np.cov(data.T, bias=True))[::-1][:rank].copy()
        torch.testing.assert_close(eigenvalues, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
        assert eigenvectors.shape == (12, rank)
        torch.testing.assert_close(eigenvectors.mT @ eigenvectors, torch.eye(rank, dtype=torch.float64))
        covariance = two_pass(data)[1]
        torch.testing.assert_close(covariance @ eigenvectors, eigenvectors * eigenvalues)
        largest = eigenvectors.gather(0, eigenvectors.abs().argmax(0, keepdim=True))
        assert (largest > 0).all()

    def test_singular_covariance_has_no_negative_eigenvalue(self, random: np.random.Generator) -> None:
        data = random.standard_normal((50, 2)) @ random.standard_normal((2, 10))
        assert (Moments.from_data(data).eigh()[0] >= 0).all()

    def test_one_sample(self) -> None:
        eigenvalues, eigenvectors = Moments.from_data(np.ones((1, 3))).eigh()
        assert eigenvalues.shape == (0,)
        assert eigenvectors.shape == (3, 0)


class TestWeights:
    def test_weights_count_rows(self, random: np.random.Generator) -> None:
        data, weights = random.standard_normal((30, 4)), random.integers(0, 4, 30)
        weighted, repeated = Moments.from_data(data, weights), Moments.from_data(data.repeat(weights, 0))
        assert weighted.num_samples == repeated.num_samples == weights.sum()
        torch.testing.assert_close(weighted.sample_mean, repeated.sample_mean, rtol=1e-14, atol=1e-15)
        assert relative_error(weighted.covariance, repeated.covariance) < 1e-14

    def test_rows_of_zero_weight_have_no_effect(self, random: np.random.Generator) -> None:
        data, weights = random.standard_normal((30, 4)), random.exponential(size=30)
        junk = np.full((7, 4), 1e9)
        mixed = Moments.from_data(np.r_[junk, data, junk], np.r_[np.zeros(7), weights, np.zeros(7)])
        assert_equal(mixed, Moments.from_data(data, weights))

    def test_all_weights_zero(self) -> None:
        moments = Moments.from_data(np.ones((3, 2)), np.zeros(3))
        assert moments.num_samples == 0
        assert moments.update(np.full((1, 2), 5.0)).sample_mean.tolist() == [5.0, 5.0]

    def test_an_outlier_of_tiny_weight(self, random: np.random.Generator) -> None:
        data, weights = random.standard_normal((100, 3)), np.ones(100)
        data[0], weights[0] = 1e12, 1e-30
        assert relative_error(Moments.from_data(data, weights).covariance, two_pass(data, weights)[1]) < 1e-13

    @pytest.mark.parametrize("scale", [1e-300, 1e300])
    def test_scale_of_the_weights_does_not_matter(self, random: np.random.Generator, scale: float) -> None:
        data, weights = random.standard_normal((50, 3)), random.exponential(size=50)
        halves = [Moments.from_data(data[part], scale * weights[part]) for part in (slice(25), slice(25, 50))]
        assert relative_error(merge_in_turn(halves).covariance, two_pass(data, weights)[1]) < 1e-14

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ([1.0, -1.0], r"weights must be finite and >= 0, got -1.0 at index 1"),
            ([np.nan, 1.0], r"weights must be finite and >= 0, got nan at index 0"),
            ([np.inf, 1.0], r"weights must be finite and >= 0, got inf at index 0"),
            ([1e308, 1e308], r"weights must have a finite sum"),
            ([1.0], r"weights must have shape \(N,\) with N=2, got \(1,\)"),
        ],
    )
    def test_bad_weights(self, weights: list[float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Moments.from_data(np.eye(2), np.array(weights))

    def test_sum_of_weights_over_batches(self) -> None:
        moments = Moments.from_data(np.eye(1), np.array([1e308]))
        with pytest.raises(ValueError, match="weights must have a finite sum"):
            moments.update(np.eye(1), np.array([1e308]))


class TestInputs:
    @pytest.mark.parametrize(
        "dtype",
        [
            np.bool_,
            np.uint8,
            np.int8,
            np.uint16,
            np.int32,
            np.uint64,
            np.float16,
            np.float32,
            np.longdouble,
            ">f4",
        ],
    )
    def test_array_dtypes(self, random: np.random.Generator, dtype: Any) -> None:
        data = random.integers(0, 2 if dtype == np.bool_ else 100, (40, 3)).astype(dtype)
        assert relative_error(Moments.from_data(data).covariance, two_pass(data)[1]) < 1e-14

    @pytest.mark.parametrize(
        "dtype",
        [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64],
    )
    def test_tensor_dtypes(self, dtype: torch.dtype) -> None:
        data = torch.randint(
            0, 2 if dtype == torch.bool else 100, (40, 3), generator=torch.Generator().manual_seed(0)
        )
        data = data.to(dtype)
        before = data.clone()
        moments = Moments.from_data(data)
        assert relative_error(moments.covariance, two_pass(data.double().numpy())[1]) < 1e-14
        assert torch.equal(data, before)

    @pytest.mark.usefixtures("small_blocks")
    @pytest.mark.parametrize(
        ("start", "kind"),
        [
            (1_700_000_000_000_000_000, np.int64),
            (-1_700_000_000_000_000_000, ">i8"),
            (2**63 - 10_000, np.int64),
            (2**64 - 10_000, np.uint64),
            (2**63 - 10_000, torch.int64),
            (2**64 - 10_000, torch.uint64),
            (2**53 - 500, np.int64),
            (2**63 - 10_000, np.longdouble),
        ],
    )
    def test_integers_beyond_float64(self, start: int, kind: Any) -> None:
        """Their differences are exact, in any batching, though 64-bit floats do not hold them."""
        steps = np.arange(90)[:, None] * np.array([[100, 7]])
        if isinstance(kind, torch.dtype):
            data = torch.from_numpy(steps.astype(np.uint64) + np.uint64(start)).to(kind)
        else:
            data = (steps.astype(np.dtype(kind)) + np.dtype(kind).type(start)).astype(kind)
        mean = [start + Fraction(sum(column), 90) for column in steps.T.tolist()]
        weights = np.r_[np.zeros(5), np.ones(85)]
        for moments in (
            Moments.from_data(data),
            Moments.from_batches([data[:1], data[1:40], data[40:]]),
            merge_in_turn([Moments.from_data(part) for part in (data[40:], data[:1], data[1:40])]),
        ):
            # the nearest number, or one of two
            for found, exact in zip(moments.sample_mean.tolist(), mean, strict=True):
                assert abs(Fraction(found) - exact) == abs(Fraction(float(exact)) - exact)
            assert relative_error(moments.covariance, two_pass(steps)[1]) < 1e-12
        weighted = Moments.from_data(data, weights)
        assert relative_error(weighted.covariance, two_pass(steps[5:])[1]) < 1e-12

    @pytest.mark.usefixtures("small_blocks")
    def test_blocks(self, random: np.random.Generator) -> None:
        data, weights = random.standard_normal((333, 5)), random.exponential(size=333)
        moments = Moments.from_data(data, weights)
        assert relative_error(moments.covariance, two_pass(data, weights)[1]) < 1e-14

    @pytest.mark.parametrize(
        "view",
        [
            lambda data: np.asfortranarray(data),
            lambda data: data[::-1, ::2],
            lambda data: np.broadcast_to(data[:, :1], data.shape),
            lambda data: torch.from_numpy(data).mT.contiguous().mT,
            lambda data: torch.from_numpy(data)[::3, 1:],
            lambda data: torch.from_numpy(data).requires_grad_(),
        ],
    )
    def test_memory_layouts(self, random: np.random.Generator, view: Callable[[NDArray[Any]], Any]) -> None:
        data = view(random.standard_normal((40, 6)))
        values = data.detach().numpy() if isinstance(data, Tensor) else data
        moments = Moments.from_data(data)
        assert not moments.covariance.requires_grad
        assert ((moments.covariance - two_pass(values)[1]).abs() < 1e-14).all()

    def test_read_only_array_stays_as_it_is(self, random: np.random.Generator) -> None:
        data = random.standard_normal((10, 3))
        data.flags.writeable = False
        assert relative_error(Moments.from_data(data).covariance, two_pass(data)[1]) < 1e-14

    @pytest.mark.usefixtures("small_blocks")
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e151])
    def test_not_finite_names_the_row_of_the_stream(self, bad: float) -> None:
        moments = Moments.from_data(np.arange(70.0).reshape(35, 2), np.r_[np.zeros(5), np.ones(30)])
        before = moments.to("cpu")
        batch = np.ones((100, 2))
        batch[71, 1] = bad
        with pytest.raises(
            ValueError, match=r"finite, not NaN, and at most 1e\+150 in magnitude, .* in row 106, feature 1"
        ):
            moments.update(batch)
        assert_equal(moments, before)

    @pytest.mark.parametrize("num_rows", [3, 30])
    def test_begun_in_inference_mode(self, random: np.random.Generator, num_rows: int) -> None:
        data = random.standard_normal((50, 5))
        with torch.inference_mode():
            moments = Moments.from_data(torch.from_numpy(data[:num_rows]))
        for copied in (moments.select(range(5)), moments.to("cpu"), moments):
            assert relative_error(copied.update(data[num_rows:]).covariance, two_pass(data)[1]) < 1e-14

    def test_squares_do_not_overflow(self) -> None:
        assert Moments.from_data(np.array([[1e150], [-1e150]])).variances.item() == pytest.approx(1e300)

    @pytest.mark.parametrize(
        ("data", "error", "message"),
        [
            (np.ones(3), ValueError, r"shape \(N, D\) with D >= 1, got \(3,\)"),
            (np.ones((3, 0)), ValueError, r"shape \(N, D\) with D >= 1, got \(3, 0\)"),
            (np.ones((3, 1), complex), TypeError, "must be real, got complex128"),
            (np.array([["a"]]), TypeError, "must be real, got <U1"),
            (torch.ones(3, 1, dtype=torch.complex64), TypeError, "must be real, got torch.complex64"),
            ([[1.0]], TypeError, r"must be a NumPy array or a torch.Tensor, got list; from_batches takes"),
            (np.zeros((2, 3, 3)), ValueError, r"got \(2, 3, 3\); reshape\(N, -1\) makes images rows"),
        ],
    )
    def test_wrong_data(self, data: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            Moments.from_data(data)

    @pytest.mark.parametrize("num_rows", [5, 200])
    def test_devices(self, random: np.random.Generator, device: str, num_rows: int, tmp_path: Path) -> None:
        data, weights = random.standard_normal((num_rows, 9)), random.exponential(size=num_rows)
        rows = torch.from_numpy(data).to(device)
        moments = Moments.from_data(rows[:3], weights[:3]).update(
            rows[3:], torch.from_numpy(weights[3:]).to(device)
        )
        assert moments.device.type == device
        for result in (moments.sample_mean, moments.covariance, *moments.eigh(), moments.constant_features()):
            assert result.device.type == device
        if device != "cpu":
            with pytest.raises(ValueError, match="data must be on device cuda:0, got cpu"):
                moments.update(data)
        moments.save(tmp_path / "moments.safetensors")
        assert_equal(Moments.load(tmp_path / "moments.safetensors", device), moments)
        assert relative_error(moments.to("cpu").covariance, two_pass(data, weights)[1]) < 1e-13

    def test_device_without_float64(self) -> None:
        with FakeTensorMode():
            data = torch.empty(2, 2, device="mps")
            with pytest.raises(TypeError, match="on a device that has float64, got mps"):
                Moments.from_data(data)

    def test_features_that_do_not_fit(self) -> None:
        moments = Moments.from_data(np.ones((2, 3)))
        with pytest.raises(ValueError, match="must have 3 features, got 2"):
            moments.update(np.ones((2, 2)))
        assert moments.num_samples == 2


class TestValue:
    def test_empty(self) -> None:
        empty = Moments.from_data(np.ones((0, 3)))
        assert empty.num_samples == 0
        assert repr(empty) == "Moments(num_samples=0)"
        for name in ("sample_mean", "covariance", "num_features", "variances", "factor"):
            with pytest.raises(ValueError, match="no statistics before the first sample"):
                getattr(empty, name)
        full = Moments.from_data(np.eye(3))
        assert_equal(full.merge(empty), full)
        assert_equal(empty.merge(full), full)

    def test_operands_of_a_merge_stay_as_they_are(self, random: np.random.Generator) -> None:
        data = random.standard_normal((60, 3))
        first, second = Moments.from_data(data[:30]), Moments.from_data(data[30:])
        merged = Moments().merge(first).merge(second)
        Moments().merge(first).update(data)
        merged.update(data)
        assert_equal(first, Moments.from_data(data[:30]))
        assert_equal(second, Moments.from_data(data[30:]))

    @pytest.mark.parametrize("num_rows", [3, 30])
    def test_a_copy_is_of_its_own(self, random: np.random.Generator, num_rows: int) -> None:
        data = random.standard_normal((num_rows, 4))
        moments = Moments.from_data(data)
        for duplicate in (copy.copy(moments), copy.deepcopy(moments)):
            assert_equal(duplicate.update(data + 1), Moments.from_batches([data, data + 1]))
            assert_equal(moments, Moments.from_data(data))

    def test_repetition_gives_the_same_bits(self, random: np.random.Generator) -> None:
        data = random.standard_normal((5000, 40)).astype(np.float32)
        assert_equal(Moments.from_data(data), Moments.from_data(data.copy()))

    @pytest.mark.parametrize("num_rows", [4, 50])
    def test_select(self, random: np.random.Generator, num_rows: int) -> None:
        data = random.standard_normal((num_rows, 6))
        moments = Moments.from_data(data)
        for features in ([4, 0, 2], torch.tensor([4, 0, 2]), [1], [5, 4, 3, 2, 1, 0]):
            selected = moments.select(features)
            assert selected.num_samples == num_rows
            assert torch.equal(selected.sample_mean, moments.sample_mean[features])
            assert relative_error(selected.covariance, two_pass(data[:, features])[1]) < 1e-14
        mask = torch.tensor([True, False, True, True, False, True])
        kept = moments.select(mask).merge(Moments.from_data(data[:, mask.numpy()]))
        assert relative_error(kept.covariance, two_pass(data[:, mask.numpy()])[1]) < 1e-14

    @pytest.mark.parametrize(
        "features", [[], [[0]], [0.5], [True, False], [False, False, False], [0, 3], [-4, 0]]
    )
    def test_select_wrong_features(self, features: list[Any]) -> None:
        with pytest.raises(ValueError, match=r"Moments.select: "):
            Moments.from_data(np.eye(3)).select(features)


class TestFile:
    @pytest.mark.parametrize("num_rows", [1, 4, 50])
    def test_round_trip_goes_on_to_the_bit(
        self, random: np.random.Generator, tmp_path: Path, num_rows: int
    ) -> None:
        data = random.standard_normal((num_rows + 20, 6))
        moments = Moments.from_data(data[:num_rows])
        moments.save(tmp_path / "moments.safetensors")
        loaded = Moments.load(tmp_path / "moments.safetensors")
        assert_equal(loaded, moments)
        assert_equal(loaded.update(data[num_rows:]), moments.update(data[num_rows:]))
        with pytest.raises(ValueError, match=f"row {num_rows + 20}"):
            loaded.update(np.full((1, 6), np.nan))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"matrix": None}, "the tensors must be"),
            ({"more": torch.zeros(1)}, "the tensors must be"),
            ({"offset": torch.zeros(2, dtype=torch.float32)}, "offset must be torch.float64"),
            ({"offset": torch.zeros(3, dtype=torch.float64)}, r"reference and offset must be \(D,\)"),
            ({"reference": torch.tensor([0.0, math.nan], dtype=torch.float64)}, "reference must be finite"),
            ({"matrix": torch.zeros(2, 3, dtype=torch.float64)}, r"matrix must be \(r, D\)"),
            ({"matrix": torch.zeros(3, 2, dtype=torch.float64)}, r"matrix must be \(r, D\)"),
            ({"matrix": -torch.eye(2, dtype=torch.float64)}, "no negative variance"),
            ({"matrix": torch.tensor([[5.0, 5.0], [5.000001, 5.0]], dtype=torch.float64)}, "symmetric"),
            (
                {"matrix": torch.tensor([[5.0, 5.000001], [5.000001, 5.0]], dtype=torch.float64)},
                "semidefinite",
            ),
            ({"matrix": torch.tensor([[0.0, 1e-9], [1e-9, 1.0]], dtype=torch.float64)}, "semidefinite"),
            ({"num_samples": torch.tensor(0.0, dtype=torch.float64)}, "must be positive"),
            ({"num_rows": torch.tensor([3, 4])}, "must be numbers"),
        ],
    )
    def test_wrong_content(self, tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
        path = tmp_path / "moments.safetensors"
        Moments.from_data(np.arange(8.0).reshape(4, 2)).save(path)
        state = {name: tensor for name, tensor in (load_file(path) | change).items() if tensor is not None}
        save_file(state, path, {"format": "lineavae.Moments", "schema": "1"})
        with pytest.raises(ValueError, match=f"Moments.load: .*{message}"):
            Moments.load(path)

    @pytest.mark.parametrize("scale", [1.0, 1e-160, 1e140])
    def test_any_moments_are_read_again(
        self, random: np.random.Generator, tmp_path: Path, scale: float
    ) -> None:
        """Of low rank, of features equal or constant, of scales far apart, and merged from many parts."""
        rows = random.integers(0, 2, (3000, 3)) @ random.standard_normal((3, 40))
        rows[:, 3], rows[:, 4] = 7, rows[:, 5]
        rows = np.concatenate([rows, rows[:, :5] * 1e-9, 1e7 * rows[:, 5:9] + 1e9], 1) * scale
        moments = Moments.from_batches(np.array_split(rows, 50))
        moments.save(tmp_path / "moments")
        assert_equal(Moments.load(tmp_path / "moments"), moments)

    def test_other_files(self, tmp_path: Path) -> None:
        path = tmp_path / "other.safetensors"
        save_file({"x": torch.zeros(1)}, path)
        with pytest.raises(ValueError, match=r"Moments\.load: "):
            Moments.load(path)
        path.write_bytes(b"no such thing")
        with pytest.raises(ValueError, match=r"Moments\.load: .* is not a safetensors file"):
            Moments.load(path)
        with pytest.raises(FileNotFoundError):
            Moments.load(tmp_path / "absent")
        with pytest.raises(IsADirectoryError, match=str(tmp_path)):
            Moments.load(tmp_path)
        with pytest.raises(ValueError, match="no statistics"):
            Moments().save(path)


def reduce_in_process(rank: int, folder: str, splits: list[list[NDArray[Any]]]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    parts = [Moments.from_data(split[rank]) for split in splits]
    if rank == 1:  # a machine that rounds otherwise
        moments_module.gram = lambda rows: rows.mT @ rows * (1 + 1e-15)
    for number, part in enumerate(parts):
        part.all_reduce().save(Path(folder) / f"{number}-{rank}.safetensors")
        assert part.num_samples == len(splits[number][rank])
    dist.destroy_process_group()


class TestAllReduce:
    @pytest.mark.slow
    def test_two_processes(self, random: np.random.Generator, tmp_path: Path) -> None:
        data = random.standard_normal((60, 5)) + 100
        data[:, 2] = 0.1
        splits = [np.split(data, [cut]) for cut in (30, 3, 0, 60)]
        splits.append(np.split(data[:4], [1]))
        torch.multiprocessing.spawn(reduce_in_process, (str(tmp_path), splits), nprocs=2)
        for number, split in enumerate(splits):
            first, second = (Moments.load(tmp_path / f"{number}-{rank}.safetensors") for rank in range(2))
            assert_equal(first, second)
            whole = np.concatenate(split)
            assert first.num_samples == len(whole)
            assert first.sample_mean[2].item() == 0.1
            assert relative_error(first.covariance, two_pass(whole)[1]) < 1e-13
            assert_equal(first, Moments.from_data(split[0]).merge(Moments.from_data(split[1])))

    @pytest.fixture
    def one_process(self, tmp_path: Path) -> Iterator[None]:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
        yield
        dist.destroy_process_group()

    @pytest.mark.usefixtures("one_process")
    def test_one_process_without_data(self) -> None:
        assert Moments().all_reduce().num_samples == 0

    @pytest.mark.usefixtures("one_process")
    def test_result_shares_no_memory(self, random: np.random.Generator) -> None:
        moments = Moments.from_data(random.standard_normal((20, 3)))
        before = moments.to("cpu")
        moments.all_reduce().update(np.ones((5, 3)))
        assert_equal(moments, before)
