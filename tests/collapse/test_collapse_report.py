from __future__ import annotations

import copy
import io
import json
import math
import pickle
import re
import sys
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import binomtest, chi2
from torch import Tensor

from lineavae.collapse import CollapseReport
from lineavae.ops import (
    LatentStatistics,
    collapse_statistics,
    gaussian_kl_per_dimension,
    histogram_edges,
)

THRESHOLDS = [0.01, 0.0, 0.3, 1e-3]
DELTAS = [0.0, 0.001, 0.01, 0.1, 0.29, 0.5, 0.999]


def report_of(mean: Tensor, logvar: Tensor, thresholds: list[float] = THRESHOLDS) -> CollapseReport:
    return CollapseReport(collapse_statistics(mean, logvar, thresholds), thresholds)


def report_of_kl(kl: NDArray[np.float64], thresholds: list[float]) -> CollapseReport:
    """The report of given KL values, (N, K), with the count of each made here."""
    edges = histogram_edges().numpy()
    columns = [column[~np.isnan(column)] for column in kl.T]
    statistics = LatentStatistics(
        counts=torch.tensor([[(c < t).sum() if t else (c <= t).sum() for t in thresholds] for c in columns])
        .reshape(len(columns), len(thresholds))
        .long(),
        histogram=torch.stack([torch.from_numpy(np.histogram(c, edges)[0]) for c in columns]).long(),
        moments=torch.tensor([[len(c), *[0.0] * 6] for c in columns], dtype=torch.float64),
        minimum=torch.tensor([c.min(initial=np.inf) for c in columns], dtype=torch.float64),
        maximum=torch.tensor([c.max(initial=-np.inf) for c in columns], dtype=torch.float64),
        infinite=torch.tensor([np.isinf(c).sum() for c in columns]),
        nan=torch.tensor([len(kl) - len(c) for c in columns]),
    )
    return CollapseReport(statistics, thresholds)


def report_of_counts(below: Sequence[int] | NDArray[np.int64], num_samples: int) -> CollapseReport:
    """The report of latents with so many samples at KL = 0 and the others at 1, counted at 0.01."""
    counts = torch.as_tensor(np.asarray(below))
    edges = histogram_edges()
    histogram = counts.new_zeros(len(counts), len(edges) - 1)
    histogram[:, 0] = counts
    histogram[:, torch.searchsorted(edges, 1.0, right=True) - 1] = num_samples - counts
    statistics = LatentStatistics(
        counts=counts[:, None],
        histogram=histogram,
        moments=torch.zeros(len(counts), 7, dtype=torch.float64),
        minimum=torch.zeros(len(counts), dtype=torch.float64),
        maximum=torch.ones(len(counts), dtype=torch.float64),
        infinite=torch.zeros_like(counts),
        nan=torch.zeros_like(counts),
    )
    return CollapseReport(statistics, [0.01])


def readings(column: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The least and the most that the values of one latent may be, where some are NaN."""
    return [np.where(np.isnan(column), unknown, column) for unknown in (0.0, np.inf)]


def num_below(kl: NDArray[np.float64], epsilon: float) -> int:
    return int((kl < epsilon).sum()) if epsilon > 0 else int((kl == 0).sum())


def is_collapsed(kl: NDArray[np.float64], epsilon: float, delta: float) -> bool:
    """The definition, in integers, of values of one latent none of which is NaN."""
    return len(kl) > 0 and len(kl) - num_below(kl, epsilon) <= math.floor(delta * len(kl) + 1e-9)


def verdicts(kl: NDArray[np.float64], epsilon: float, delta: float) -> list[set[bool]]:
    """What the definition may say of each latent: two answers where NaN leave it open."""
    return [{is_collapsed(values, epsilon, delta) for values in readings(column)} for column in kl.T]


def percentages(kl: NDArray[np.float64], epsilons: NDArray[np.float64], delta: float) -> tuple[Any, Any]:
    """How many latents are collapsed for certain, and how many may be, at each ε."""
    found = [verdicts(kl, epsilon, delta) for epsilon in epsilons.tolist()]
    return tuple(
        np.array([100 * np.mean([test(v) for v in of_latents]) for of_latents in found])
        for test in (lambda v: v == {True}, lambda v: True in v)
    )


@pytest.fixture(scope="module")
def posterior() -> tuple[Tensor, Tensor]:
    """Live, weak, zero and broken latents; KL below, in, above and on the edges of the histogram's range.

    Some KL of latents 5 and 7 are infinite; one in ten of latent 7, and all of latent 8, are NaN.
    """
    random = np.random.default_rng(0)
    num_samples = 997
    scale = np.array([1.0, 0.1, 0.01, 0.0, 1e-5, 600.0, 1.0, 1.0, 1.0, 0.0, 0.05])
    mean = torch.from_numpy(random.standard_normal((num_samples, len(scale))) * scale)
    logvar = torch.from_numpy(random.standard_normal(mean.shape) * 0.1 * (scale > 0.2)).contiguous()
    mean[:, 6] = 1.0  # KL = ½, the edge of a bin
    logvar[:, 6] = 0.0
    mean[::10, 7] = torch.nan
    logvar[5, 7] = logvar[:300, 5] = torch.inf
    mean[:, 8] = torch.nan
    mean[:, 9] = torch.from_numpy(np.where(np.arange(num_samples) < 30, 1e-160, 0.0))  # subnormal KL
    logvar[:, 10] = torch.from_numpy(np.where(np.arange(num_samples) < 500, -5.0, 0.0))
    return mean, logvar


@pytest.fixture(scope="module")
def kl(posterior: tuple[Tensor, Tensor]) -> NDArray[np.float64]:
    return gaussian_kl_per_dimension(*posterior).numpy()


@pytest.fixture(scope="module")
def report(posterior: tuple[Tensor, Tensor]) -> CollapseReport:
    return report_of(*posterior)


@pytest.fixture
def simple() -> CollapseReport:
    """A live latent, a collapsed one, and one on either side of the threshold with half of its samples."""
    near = np.where(np.arange(400) % 2, 0.0099, 0.0101)
    return report_of_kl(np.stack([np.full(400, 1.0), np.full(400, 1e-5), near], 1), [0.01])


class TestStatistics:
    def test_equal_to_two_passes(
        self, posterior: tuple[Tensor, Tensor], kl: NDArray[np.float64], report: CollapseReport
    ) -> None:
        mean, variance = posterior[0].numpy(), posterior[1].exp().numpy()
        assert (report.num_samples, report.latent_dim) == kl.shape
        assert report.nan.tolist() == np.isnan(kl).sum(0).tolist()
        assert report.infinite.tolist() == np.isinf(kl).sum(0).tolist() == [0] * 5 + [300, 0, 1, 0, 0, 0]
        for latent, known in enumerate(~np.isnan(kl).T):
            if not known.any():
                continue
            for values, average, spread in (
                (kl, report.mean_kl, report.kl_variance),
                (mean, report.mean_of_mean, report.variance_of_mean),
                (variance, report.mean_variance, report.variance_of_variance),
            ):
                column = values[known, latent].astype(np.longdouble)
                expected = column.mean()
                if np.isinf(expected):
                    assert average[latent] == spread[latent] == expected
                    continue
                size = float(abs(column).max())
                assert average[latent] == pytest.approx(float(expected), rel=1e-12, abs=1e-13 * size + 1e-320)
                assert spread[latent] == pytest.approx(
                    float(((column - expected) ** 2).mean()), rel=1e-11, abs=1e-20 * size**2
                )
            assert report.min_kl[latent] == pytest.approx(kl[known, latent].min(), rel=1e-14)
            assert report.max_kl[latent] == pytest.approx(kl[known, latent].max(), rel=1e-14)
            expected = np.histogram(kl[known, latent], histogram_edges().numpy())[0]
            np.testing.assert_array_equal(report.histogram[latent], expected)

    def test_undefined_where_all_is_nan(self, report: CollapseReport) -> None:
        names = ("mean_kl", "kl_variance", "min_kl", "max_kl", "mean_of_mean", "variance_of_mean")
        for name in (*names, "mean_variance", "variance_of_variance"):
            assert np.isnan(getattr(report, name)).tolist() == [latent == 8 for latent in range(11)], name

    def test_no_samples(self) -> None:
        report = report_of(torch.zeros(0, 2), torch.zeros(0, 2))
        assert report.num_samples == 0
        assert np.isnan(report.mean_kl).all()
        assert not report.at(0.5, 0.5).collapsed.any()
        assert np.isnan(report.at().critical_epsilon.estimate).all()
        assert report.at().collapse_test().tolist() == ["undetermined"] * 2
        assert report.classification().tolist() == ["undefined"] * 2
        assert "0 samples" in str(report)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_an_infinite_kl_is_no_collapse(self, dtype: torch.dtype) -> None:
        """Not one that overflows in float32 alone either, and both say the same."""
        logvar = torch.zeros(1000, 1, dtype=dtype)
        logvar[:600] = 90.0
        report = report_of(torch.zeros_like(logvar), logvar)
        assert report.num_samples == 1000
        assert report.at(0.01).fraction_below == (0.4, 0.4)
        assert not report.at().collapsed.any()
        assert report.at().collapse_test().tolist() == ["not collapsed"]
        assert report.classification().tolist() == ["mixed"]
        assert report.mean_kl.item() == math.inf if dtype == torch.float32 else report.mean_kl.item() > 1e38
        assert report.at().critical_epsilon.lower.item() > 65535
        assert report.at(delta=0.61).critical_epsilon.upper.item() == 0

    def test_arrays_are_read_only(self, report: CollapseReport) -> None:
        for name, value in vars(report).items():
            if isinstance(value, np.ndarray) and not name.startswith("_"):
                with pytest.raises(ValueError, match="read-only"):
                    value[...] = 0

    def test_what_is_computed_once_is_read_only(self, report: CollapseReport) -> None:
        at = report.at()
        for results in (at.verdict, at.fraction_below, at.critical_epsilon):
            for array in results:
                with pytest.raises(ValueError, match="read-only"):
                    array[...] = 0

    def test_survives_copies(self, report: CollapseReport) -> None:
        for twin in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
            assert str(twin) == str(report)

    def test_errors(self) -> None:
        mean = torch.zeros(3, 5, 2)
        with pytest.raises(ValueError, match=r"one model, got leading dimensions \(3,\)"):
            CollapseReport(collapse_statistics(mean, mean, []), [])
        statistics = collapse_statistics(mean[0], mean[0], [0.1])
        with pytest.raises(
            ValueError, match=r"counts must have shape \(2, 2\) with the 2 thresholds, got \(2, 1\)"
        ):
            CollapseReport(statistics, [0.1, 0.2])
        with pytest.raises(TypeError, match=r"thresholds must be float64, got torch\.float32"):
            CollapseReport(statistics, torch.tensor([0.1]))
        with pytest.raises(TypeError, match="thresholds must be a number, got str"):
            CollapseReport(statistics, ["0.1"])
        for bad in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="thresholds must be finite and >= 0"):
                CollapseReport(statistics, [bad])
        with pytest.raises(ValueError, match="at least one latent"):
            CollapseReport(collapse_statistics(mean[0, :, :0], mean[0, :, :0], []), [])
        with pytest.raises(ValueError, match="must have a histogram, got those of histogram=False"):
            CollapseReport(collapse_statistics(mean[0], mean[0], [], histogram=False), [])
        broken = statistics._replace(nan=torch.tensor([0, 1]))
        with pytest.raises(ValueError, match="same samples for every latent, got 5 to 6"):
            CollapseReport(broken, [0.1])

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (tuple, TypeError, "statistics must be LatentStatistics, got tuple"),
            (
                lambda s: s._replace(counts=s.counts.int()),
                TypeError,
                r"counts must be torch\.int64, got .*32",
            ),
            (lambda s: s._replace(moments=s.moments[:, 1:]), ValueError, r"moments must have shape \(3, 7\)"),
            (lambda s: s._replace(minimum=s.minimum[:1]), ValueError, r"minimum must .* \(3,\), got \(1,\)"),
            (lambda s: s._replace(nan=s.nan[0]), ValueError, r"counts must have shape \(1, 2\)"),
            (
                lambda s: s._replace(infinite=s.infinite - 1),
                ValueError,
                "infinite must not be negative, got -1",
            ),
            (
                lambda s: s._replace(counts=s.counts.flip(1)),
                ValueError,
                "counts at these thresholds, got 5 samples below 0.01 nats and 0 below 0.01.* in latent 1",
            ),
            (lambda s: s._replace(counts=s.counts + 1), ValueError, "counts at these thresholds"),
        ],
    )
    def test_statistics_that_are_none(self, change: Any, error: type[Exception], message: str) -> None:
        mean = torch.tensor([1.0, 0.3, 0.0]).expand(5, 3)  # of KL ½, 0.045 and 0
        statistics = collapse_statistics(mean, 0 * mean, [0.01, 0.3])
        CollapseReport(statistics, [0.01, 0.3])
        with pytest.raises(error, match=f"^CollapseReport: .*{message}"):
            CollapseReport(change(statistics), [0.01, 0.3])

    def test_other_thresholds_than_those_counted_at(self) -> None:
        statistics = collapse_statistics(torch.full((5, 1), 0.3), torch.zeros(5, 1), [0.01, 0.1])
        for thresholds in ([0.1, 0.01], [0.01, 0.03125], [0.0625, 0.1]):
            with pytest.raises(ValueError, match="statistics must be counts at these thresholds"):
                CollapseReport(statistics, thresholds)


class TestCriticalEpsilon:
    @pytest.mark.parametrize("delta", DELTAS)
    @pytest.mark.parametrize("thresholds", [[], THRESHOLDS])
    def test_bounds_hold_the_order_statistic(
        self, kl: NDArray[np.float64], delta: float, thresholds: list[float]
    ) -> None:
        critical = report_of_kl(kl, thresholds).at(delta=delta).critical_epsilon

        def quantile(column: NDArray[np.float64]) -> float:
            return float(np.sort(column)[len(column) - math.floor(delta * len(column) + 1e-9) - 1])

        for latent, column in enumerate(kl.T):
            estimate, lower, upper = (part[latent] for part in critical)
            least, most = map(quantile, readings(column))
            assert lower <= least <= most <= upper
            for bound, expected in ((lower, least), (upper, most)):
                if 2**-24 <= expected < 2**16:
                    assert abs(bound - expected) <= expected / 16
                elif expected in (0, math.inf):
                    assert bound == expected or (expected == 0 and upper > 0)
            if np.isnan(column).all():
                assert np.isnan(estimate)
                continue
            assert lower <= estimate <= upper
            expected = quantile(column[~np.isnan(column)])
            if 2**-24 <= expected < 2**16:
                assert abs(estimate - expected) <= expected / 32
            elif expected == math.inf:
                assert estimate == expected
            if delta == 0 and not np.isnan(column).any():
                assert lower == upper

    def test_below_and_above_the_histogram(self) -> None:
        values = np.array([[1e-12, 1e5], [2e-12, 2e5], [3e-12, 3e5], [4e-12, 4e5]])
        critical = report_of_kl(values, []).at(delta=0.5).critical_epsilon
        assert critical.lower.tolist() == [1e-12, 1e5]
        assert critical.upper.tolist() == [4e-12, 4e5]

    def test_smallest_and_largest_are_exact(self) -> None:
        values = np.linspace(1.001, 1.06, 10)[:, None]  # of one bin
        report = report_of_kl(values, [])
        for delta, expected in ((0.9, 1.001), (0.0, 1.06)):
            critical = report.at(delta=delta).critical_epsilon
            assert critical.lower == critical.upper == critical.estimate == expected
            for epsilon in (1.0005, 1.001, 1.03, 1.06, 1.0601):
                assert report.at(epsilon, delta).collapsed.item() == (expected < epsilon)

    def test_narrowed_by_thresholds(self) -> None:
        values = np.linspace(1.001, 1.06, 100)[:, None]  # of one bin
        critical = report_of_kl(values, [1.03, 1.02, 1.04]).at(delta=0.5).critical_epsilon
        assert (critical.lower.item(), critical.upper.item()) == (1.03, 1.04)

    def test_zero_is_exact_where_it_is_a_threshold(self) -> None:
        values = np.array([[0.0, 5e-324], [0.0, 5e-324], [1e-10, 1e-10]])
        critical = report_of_kl(values, [0.0]).at(delta=0.5).critical_epsilon
        assert critical.upper[0] == 0
        assert critical.lower[1] == 5e-324
        assert report_of_kl(values, []).at(delta=0.5).critical_epsilon.upper[0] > 0


class TestVerdict:
    def test_equal_to_the_definition(self, kl: NDArray[np.float64], report: CollapseReport) -> None:
        edges = histogram_edges().numpy()
        for epsilon in [*THRESHOLDS, *edges[1:-1:7]]:
            for delta in DELTAS:
                expected = verdicts(kl, epsilon, delta)
                verdict = report.at(epsilon, delta).verdict
                assert verdict.collapsed.tolist() == [answers == {True} for answers in expected]
                assert verdict.decided.tolist() == [len(answers) == 1 for answers in expected]

    @settings(deadline=None, max_examples=200)
    @given(
        kl=arrays(
            np.float64,
            (12, 2),
            elements=st.sampled_from(
                [
                    0.0,
                    5e-324,
                    1e-9,
                    *(v for e in (0.01, 0.5, 0.53125) for v in (np.nextafter(e, 0), e, np.nextafter(e, 1))),
                    np.inf,
                    np.nan,
                ]
            ),
        ),
        epsilon=st.sampled_from([0.0, 1e-9, 0.01, 0.5, 0.51, float(np.nextafter(0.5, 1)), 0.53125, 1.0]),
        delta=st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9]),
        thresholds=st.sampled_from([[], [0.0, 0.01], [0.51, 0.0], [0.01, 0.5]]),
    )
    def test_decided_verdicts_are_right_and_open_ones_undecidable(
        self, kl: NDArray[np.float64], epsilon: float, delta: float, thresholds: list[float]
    ) -> None:
        report = report_of_kl(kl, thresholds)
        at = report.at(epsilon, delta)
        verdict, critical = at.verdict, at.critical_epsilon
        expected = verdicts(kl, epsilon, delta)
        for latent, answers in enumerate(expected):
            if verdict.decided[latent]:
                assert answers == {verdict.collapsed[latent]}
            else:
                assert not verdict.collapsed[latent]
                # KL <= 0 is KL < 5e-324
                assert critical.lower[latent] < (epsilon or 5e-324) <= critical.upper[latent]
        if epsilon in thresholds or epsilon in histogram_edges()[1:-1]:
            assert verdict.decided.tolist() == [len(answers) == 1 for answers in expected]

    def test_number_of_samples_that_may_be_above(self) -> None:
        """floor(δN) of the decimal δ, where the product in floating point falls below the integer."""
        for num_samples in range(1, 120):
            kl = np.ones((num_samples, 1))
            for decimal in ("0.01", "0.05", "0.07", "0.29", "0.57", "0.58", "0.9"):
                allowed = math.floor(Fraction(decimal) * num_samples)
                for above in {min(allowed, num_samples - 1), allowed + 1} - {num_samples + 1}:
                    kl[:] = 1e-3
                    kl[:above] = 1.0
                    verdict = report_of_kl(kl, [0.01]).at(0.01, float(decimal)).collapsed
                    assert verdict.item() == (above <= allowed and above < num_samples), (
                        num_samples,
                        decimal,
                    )

    @pytest.mark.parametrize("num_samples", [100_000_000, 3_000_000_000, 7_000_000_000_000])
    @pytest.mark.parametrize("decimal", ["0.01", "0.29", "0.57"])
    def test_billions_of_samples(self, num_samples: int, decimal: str) -> None:
        """One latent has just so many samples above ε as δ allows, another has one more."""
        allowed = math.floor(Fraction(decimal) * num_samples)
        report = report_of_counts([num_samples - allowed, num_samples - allowed - 1], num_samples)
        assert report.at(0.01, float(decimal)).collapsed.tolist() == [True, False]

    def test_zero(self, posterior: tuple[Tensor, Tensor], report: CollapseReport) -> None:
        assert np.flatnonzero(report.at(0.0, 0.0).verdict.collapsed).tolist() == [3]
        assert np.flatnonzero(report.at(0.0, 0.04).verdict.collapsed).tolist() == [3, 9]
        verdict = report_of(*posterior, [0.01]).at(0.0, 0.01).verdict
        # the largest KL is zero, and subnormal
        assert verdict.collapsed.tolist() == [latent == 3 for latent in range(11)]

    def test_open(self, simple: CollapseReport) -> None:
        verdict = simple.at(epsilon=0.00995, delta=0.6).verdict
        assert verdict.decided.tolist() == [True, True, False]
        assert verdict.collapsed.tolist() == [False, True, False]
        with pytest.raises(
            ValueError, match=r"thresholds, \[0.01\], got 0.00995, where the verdict on 1 of 3"
        ):
            simple.at(epsilon=0.00995, delta=0.6).collapsed.any()
        assert simple.at(epsilon=0.01, delta=0.6).collapsed.tolist() == [False, True, True]

    def test_open_where_nan_could_tip_it_and_only_there(self) -> None:
        kl = np.zeros((100, 4))
        kl[:1, 1] = kl[:2, 2] = np.nan  # of one that may be above
        kl[:3] += np.array([0, 0, 0, 1.0])
        kl[3:, 3] = np.nan
        report = report_of_kl(kl, [0.01])
        assert report.at().verdict.collapsed.tolist() == [True, True, False, False]
        assert report.at().verdict.decided.tolist() == [True, True, False, True]
        assert report.at(delta=0.5).collapse_test().tolist() == ["collapsed"] * 3 + ["undetermined"]
        with pytest.raises(ValueError, match="verdict on 1 of 4 latents is open, because some KL are NaN"):
            report.at().collapsed.any()

    @pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf])
    def test_bad_epsilon(self, report: CollapseReport, bad: float) -> None:
        with pytest.raises(ValueError, match=f"at: epsilon must be finite and >= 0, got {bad}"):
            report.at(bad)
        with pytest.raises(TypeError, match="at: epsilon must be a number, got str"):
            report.at("0.01")

    @pytest.mark.parametrize("bad", [-1e-9, math.nan, 1.0])
    def test_bad_delta(self, report: CollapseReport, bad: float) -> None:
        with pytest.raises(ValueError, match=f"at: delta must be >= 0 and < 1, got {bad}"):
            report.at(delta=bad)
        with pytest.raises(ValueError, match=f"surface: deltas must be >= 0 and < 1, got {bad}"):
            report.collapse_surface([0.1], [0.1, bad])


class TestCriticalGap:
    def test_is_the_largest_ratio_of_neighbours(self) -> None:
        """By hand; what is below a thousandth of a nat is all the same, though it may be a millionth."""
        kl = np.array([[1e-7, 2.0, 8e-3, 5.0, 9e-4, 0.02]]).repeat(10, 0)
        gap = report_of_kl(kl, []).at().critical_gap
        assert gap == (4, 2, 0.02, 2.0)
        assert gap.is_clear
        assert gap.ratio == pytest.approx(100)

    def test_any_epsilon_in_it_gives_the_same_verdict(self, report: CollapseReport) -> None:
        for delta in (0.0, 0.01, 0.5):
            gap = report.at(delta=delta).critical_gap
            for epsilon in (np.nextafter(gap.lower, 1e9), math.sqrt(gap.lower * gap.upper), gap.upper):
                verdict = report.at(float(epsilon), delta).verdict
                known = report.nan < report.num_samples
                assert verdict.decided[known].all()
                assert verdict.collapsed.sum() == gap.num_below
            assert gap.num_below + gap.num_above == known.sum()

    def test_unclear_and_none(self) -> None:
        report = report_of_kl(np.array([[0.1, 0.3, 0.9]]), [])
        assert not report.at().critical_gap.is_clear
        assert "none is clear: " in str(report)
        for kl in ([0.5], [0.5, 0.5], [1e-6, 1e-9], [math.nan, 1.0]):
            report = report_of_kl(np.array([kl]), [])
            assert report.at().critical_gap is None
            assert re.search("largest gap of critical ε +none", str(report))

    def test_text(self) -> None:
        kl = np.array([[*[0.1] * 47, *[3.0] * 3]]).repeat(400, 0)
        text = str(report_of_kl(kl, [0.01]))
        assert "47 below 0.1, 3 above 3: no ε between changes the answer" in text


class TestConfidence:
    @pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
    def test_equal_to_scipy(self, kl: NDArray[np.float64], report: CollapseReport, level: float) -> None:
        for epsilon in (0.0, 0.01, 0.3, 1.0, 65536.0):
            at = report.at(epsilon)
            fraction, interval = at.fraction_below, at.confidence_interval(level)
            for latent, column in enumerate(kl.T):
                bounds = interval.lower[latent], interval.upper[latent]
                most, least = (num_below(values, epsilon) for values in readings(column))
                fractions = least / len(column), most / len(column)
                assert (fraction.lower[latent], fraction.upper[latent]) == fractions
                low, high = (
                    binomtest(below, len(column)).proportion_ci(level, "exact") for below in (least, most)
                )
                assert bounds == pytest.approx((low.low, high.high), rel=1e-9, abs=1e-12)

    def test_all_below(self) -> None:
        """The closed form where all of n are below: from (α/2)^(1/n) to one."""
        for num_samples in (1, 10, 100_000):
            report = report_of_kl(np.zeros((num_samples, 1)), [0.01])
            interval = report.at(0.01).confidence_interval(0.9)
            assert interval.lower.item() == pytest.approx(0.05 ** (1 / num_samples), rel=1e-12)
            assert interval.upper.item() == 1

    @pytest.mark.parametrize("level", [0.95, 1 - 1e-9, 1 - 1e-15])
    def test_tails_next_to_nothing(self, level: float) -> None:
        """The closed form where none of n are below is as accurate as the one where all are."""
        kl = np.tile([0.0, 1.0], (50, 1))
        interval = report_of_kl(kl, [0.01]).at(0.01).confidence_interval(level)
        power = math.log((1 - level) / 2) / 50
        assert interval.lower.tolist() == pytest.approx([math.exp(power), 0], rel=1e-12)
        assert interval.upper.tolist() == pytest.approx([1, -math.expm1(power)], rel=1e-12)

    @pytest.mark.parametrize("num_samples", [10**8, 10**9, 10**12])
    def test_billions_of_samples(self, num_samples: int) -> None:
        """Where few of very many are above, their number is Poisson's, whose interval is of chi-squared."""
        above = np.array([1, 10, 999, 1000, 1001, 30_000])
        interval = report_of_counts(num_samples - above, num_samples).at(0.01).confidence_interval(0.95)
        few, many = chi2.ppf(0.025, 2 * above) / 2, chi2.ppf(0.975, 2 * above + 2) / 2
        assert (1 - interval.upper) * num_samples == pytest.approx(few, rel=1e-3, abs=1e-3)
        assert (1 - interval.lower) * num_samples == pytest.approx(many, rel=1e-3)

    def test_covers_what_is_not_known(self) -> None:
        values = np.linspace(1.001, 1.06, 100)[:, None]  # of one bin
        coarse, fine = report_of_kl(values, [1.01]), report_of_kl(values, [1.03])
        assert coarse.at(1.03).fraction_below.lower.item() == (values < 1.01).mean()
        # of the bin's hundred values the largest is above
        assert coarse.at(1.03).fraction_below.upper.item() == 0.99
        known, bounds = fine.at(1.03).confidence_interval(), coarse.at(1.03).confidence_interval()
        assert bounds.lower < known.lower < known.upper < bounds.upper
        fraction = fine.at(1.03).fraction_below
        assert fraction.lower == fraction.upper == (values < 1.03).mean()

    def test_number_of_samples_that_prove_a_collapse(self) -> None:
        for num_samples, expected in ((367, "undetermined"), (368, "collapsed")):
            report = report_of_kl(np.zeros((num_samples, 1)), [0.01])
            assert report.at(0.01, 0.01).collapse_test(level=0.95).item() == expected

    def test_three_answers(self) -> None:
        kl = np.zeros((1000, 3))
        kl[:10, 1] = 1.0  # exactly the 1 % allowed
        kl[:30, 2] = 1.0
        report = report_of_kl(kl, [0.01])
        assert report.at().collapsed.tolist() == [True, True, False]
        assert report.at().collapse_test().tolist() == ["collapsed", "undetermined", "not collapsed"]

    @pytest.mark.parametrize("level", [0.0, 1.0, math.nan])
    def test_bad_level(self, report: CollapseReport, level: float) -> None:
        with pytest.raises(ValueError, match="level must be > 0 and < 1"):
            report.at(0.01).confidence_interval(level)


class TestCurveAndSurface:
    def test_equal_to_the_definition(self, kl: NDArray[np.float64], report: CollapseReport) -> None:
        for delta in (0.0, 0.01, 0.5):
            curve = report.at(delta=delta).collapse_curve()
            assert set(THRESHOLDS) < set(curve.epsilons)
            assert len(curve.epsilons) == 641 + len(THRESHOLDS)
            assert (np.diff(curve.epsilons) > 0).all()
            lower, upper = percentages(kl, curve.epsilons, delta)
            assert curve.lower == pytest.approx(lower, rel=1e-14)
            assert curve.upper == pytest.approx(upper, rel=1e-14)

    def test_is_the_distribution_of_the_critical_epsilon(self, report: CollapseReport) -> None:
        critical, curve = report.at(delta=0.1).critical_epsilon, report.at(delta=0.1).collapse_curve()
        with np.errstate(invalid="ignore"):
            at_least = [100 * (critical.upper < epsilon).mean() for epsilon in curve.epsilons]
            at_most = [100 * (critical.lower < epsilon).mean() for epsilon in curve.epsilons]
        positive = curve.epsilons > 0
        assert (np.array(at_least)[positive] <= curve.lower[positive]).all()
        assert (curve.lower[positive] <= np.array(at_most)[positive]).all()

    def test_bounds_between_the_edges(self, kl: NDArray[np.float64], report: CollapseReport) -> None:
        epsilons = np.geomspace(1e-6, 1e4, 300)
        curve = report.at(delta=0.3).collapse_curve(epsilons)
        lower, upper = percentages(kl, epsilons, 0.3)
        assert (curve.lower <= lower + 1e-9).all()
        assert (upper <= curve.upper + 1e-9).all()
        assert (curve.lower < curve.upper).any()

    def test_surface_is_curves_side_by_side(self, report: CollapseReport) -> None:
        epsilons = [0.0, 0.01, 0.7]
        surface = report.collapse_surface(epsilons, DELTAS)
        assert surface.lower.shape == (3, len(DELTAS))
        for index, delta in enumerate(DELTAS):
            curve = report.at(delta=delta).collapse_curve(epsilons)
            assert surface.lower[:, index].tolist() == curve.lower.tolist()
            assert surface.upper[:, index].tolist() == curve.upper.tolist()
        assert report.collapse_surface([], []).lower.shape == (0, 0)
        assert report.collapse_surface([0.1], []).upper.shape == (1, 0)

    def test_errors(self, report: CollapseReport) -> None:
        with pytest.raises(ValueError, match=r"epsilons must be finite and >= 0, got -1\.0"):
            report.at().collapse_curve(epsilons=[0.1, -1.0])
        with pytest.raises(ValueError, match=r"epsilons must have one dimension, got shape \(\)"):
            report.at().collapse_curve(epsilons=0.1)


class TestActiveUnits:
    def test_equal_to_the_dense_covariance(self) -> None:
        random = np.random.default_rng(1)
        mean = 1e4 + random.standard_normal((500, 60)) * np.linspace(0.05, 0.15, 60)
        report = report_of(torch.from_numpy(mean), torch.zeros(500, 60, dtype=torch.float64))
        covariance = np.cov((mean - mean.mean(0)).T, bias=True)
        assert report.variance_of_mean == pytest.approx(np.diag(covariance), rel=1e-9)
        expected = np.diag(covariance) >= 0.01
        assert 0 < expected.sum() < 60
        assert report.active_units().tolist() == expected.tolist()
        assert report.num_active() == expected.sum()
        assert report.num_active(threshold=0.02) == (np.diag(covariance) >= 0.02).sum()

    def test_threshold_is_included(self) -> None:
        mean = torch.tensor([[0.5], [-0.5]])  # variance ¼, biased
        report = report_of(mean, torch.zeros(2, 1))
        assert report.active_units(0.25).item()
        assert not report.active_units(float(np.nextafter(0.25, 1))).item()

    def test_bad_threshold(self, report: CollapseReport) -> None:
        with pytest.raises(ValueError, match="threshold must be finite and >= 0, got -1"):
            report.active_units(-1)


class TestClassification:
    def test_kinds(self) -> None:
        random = np.random.default_rng(2)
        half = np.arange(400) % 2
        variance = np.stack(
            [
                np.full(400, 1.0),
                np.full(400, 0.91),
                np.full(400, 0.89),
                np.full(400, 0.09),
                np.full(400, 0.11),
                np.where(half, 0.01, 1.0),  # active for half of the samples
                np.exp(random.standard_normal(400)),
                np.full(400, 1.11),
            ],
            1,
        )
        report = report_of(torch.zeros(400, 8, dtype=torch.float64), torch.from_numpy(variance).log())
        assert report.classification().tolist() == [
            "passive", "passive", "mixed", "active", "mixed", "mixed", "mixed", "mixed"
        ]  # fmt: skip
        assert report.classification(mean_error_range=0.12).tolist() == [
            "passive", "passive", "passive", "active", "active", "mixed", "mixed", "passive"
        ]  # fmt: skip
        # of mean 0.505 and variance 0.245
        assert report.classification(0.25, 0.499)[5] == "passive"
        assert report.classification(0.245, 0.499)[5] == "mixed"
        assert report.classification(0.25, 0.49)[5] == "mixed"
        assert report.classification(var_threshold=0.0).tolist() == ["mixed"] * 8

    def test_undefined(self, report: CollapseReport) -> None:
        assert (report.classification() == "undefined").tolist() == [latent == 8 for latent in range(11)]

    def test_kinds_must_not_overlap(self, report: CollapseReport) -> None:
        with pytest.raises(ValueError, match=r"mean_error_range must be >= 0 and < 0\.5, got 0\.5"):
            report.classification(mean_error_range=0.5)


class TestLiveLatents:
    @pytest.mark.parametrize(
        ("kl", "live"),
        [
            ([0.02, 2.0, 0.1, 3.0], [False, True, False, True]),
            ([0.02, math.inf, 0.1, 3.0], [False, True, False, True]),
            ([0.02, math.nan, 0.1, 3.0], [False, False, False, True]),
            ([1e-5, 0.0, 9e-4], [False, False, False]),  # all are dead, though without a gap
            ([1.0, 2.0, 4.0], [True, True, True]),  # all are live, though without a gap
            ([1.0, 2.0, 40.0], [True, True, True]),  # and though there is one
            ([math.inf, math.nan, 2.0], [True, False, True]),
        ],
    )
    def test_those_above_the_largest_gap(self, kl: list[float], live: list[bool]) -> None:
        at = report_of_kl(np.tile(kl, (400, 1)), [0.01]).at()
        assert at.live_latents().tolist() == live
        assert f"live latents {sum(live)} of {len(kl)} latents" in " ".join(str(at).split())
        assert at.to_dict()["num_live"] == sum(live)

    @pytest.mark.parametrize("kl", [[0.99, 2.0, 4.0], [0.3, 0.3], [math.nan, math.nan]])
    def test_open_where_no_gap_is_clear(self, kl: list[float]) -> None:
        at = report_of_kl(np.tile(kl, (400, 1)), [0.01]).at()
        with pytest.raises(ValueError, match="must have a gap that spans a factor of ten; none"):
            at.live_latents()
        assert "live latents open" in " ".join(str(at).split())
        assert at.to_dict()["num_live"] is None


class TestExport:
    def test_json_is_strict(self, report: CollapseReport, tmp_path: Path) -> None:
        def refuse(constant: str) -> Any:
            pytest.fail(f"{constant} is no JSON")

        path = tmp_path / "new" / "report.json"
        text = report.at(0.3, 0.1).to_json(path)
        loaded = json.loads(text, parse_constant=refuse)
        assert json.loads(path.read_text()) == loaded == report.at(0.3, 0.1).to_dict()
        assert [p.name for p in path.parent.iterdir()] == ["report.json"]
        verdict = report.at(0.3, 0.1).verdict
        assert loaded["num_collapsed"] == verdict.collapsed.sum()
        assert loaded["num_samples"] == 997
        assert (loaded["num_infinite"], loaded["num_nan"]) == (2, 2)
        latents = loaded["latents"]
        assert [latents["mean_kl"][latent] for latent in (0, 5, 8)] == [report.mean_kl[0], "Infinity", "NaN"]
        assert (latents["infinite"][5], latents["nan"][8]) == (300, 997)
        assert [answer is not None for answer in latents["collapsed"]] == verdict.decided.tolist()
        assert [answer is True for answer in latents["collapsed"]] == verdict.collapsed.tolist()
        assert latents["critical_epsilon"][0] == report.at(delta=0.1).critical_epsilon.estimate[0]
        assert latents["count_below_0.01"] == report.counts[:, 0].tolist()

    def test_histogram_is_whole(self, report: CollapseReport) -> None:
        exported = report.at().to_dict()["histogram"]
        edges = histogram_edges().tolist()
        begin = edges.index(exported["edges"][0])
        assert exported["edges"] == [*edges[begin:-1], "Infinity"]
        whole = np.zeros_like(report.histogram)
        for row, first, counts in zip(whole, exported["first"], exported["counts"], strict=True):
            assert not counts or counts[0] * counts[-1] > 0
            row[begin + first : begin + first + len(counts)] = counts
        np.testing.assert_array_equal(whole, report.histogram)
        empty = report_of(torch.zeros(0, 2), torch.zeros(0, 2)).at().to_dict()
        assert empty["histogram"]["counts"] == [[], []]

    def test_overflow_is_spelled(self) -> None:
        # the posterior variance is finite, its square is not
        report = report_of(torch.zeros(2, 1).double(), torch.tensor([[600.0], [0.0]]).double())
        assert report.variance_of_variance.item() == math.inf
        assert json.loads(report.at().to_json())["latents"]["variance_of_variance"] == ["Infinity"]

    def test_open_is_null(self, simple: CollapseReport) -> None:
        exported = simple.at(0.00995, 0.6).to_dict()
        assert exported["latents"]["collapsed"] == [False, True, None]
        assert (exported["num_collapsed"], exported["num_undecided"]) == (1, 1)
        column = simple.at(0.00995, 0.6).to_dataframe()["collapsed"]
        assert column.isna().tolist() == [False, False, True]

    @pytest.mark.parametrize(
        "kl", [None, [[0.3, 2.0], [0.31, 3.0]], [[np.nan, np.nan]], np.empty((0, 2))], ids=str
    )
    def test_saved_and_loaded_it_is_the_same_to_the_bit(
        self, report: CollapseReport, tmp_path: Path, kl: Any
    ) -> None:
        """With NaN and infinite statistics, in the middle of the histogram alone, and of nothing known."""
        report = report if kl is None else report_of_kl(np.array(kl), [0.3])
        report.save(tmp_path / "report.json")
        loaded = CollapseReport.load(tmp_path / "report.json")
        state = {name: value for name, value in vars(report).items() if isinstance(value, np.ndarray)}
        assert len(state) > 12
        for name, value in state.items():
            assert vars(loaded)[name].dtype == value.dtype
            assert vars(loaded)[name].tobytes() == value.tobytes(), name
        np.testing.assert_array_equal(loaded.histogram, report.histogram)
        assert loaded.at(0.2, 0.3, 0.9).to_json() == report.at(0.2, 0.3, 0.9).to_json()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"format": "lineavae.moments"}, "must be a lineavae.collapse-report of schema 1, got "),
            ({"schema": 2}, "must be a lineavae.collapse-report of schema 1, got "),
            ({"latents": {}}, "is damaged (KeyError"),
            ({"latent_dim": 7}, "is damaged (ValueError: there are 11 latents"),
            ({"num_samples": 996}, "is damaged (ValueError: not every latent has 996 samples"),
            ({"thresholds": [0.01, 0.0, 0.3, "no"]}, "is damaged (ValueError: 'no' is no number"),
            ({"thresholds": [0.02]}, "is damaged (KeyError: 'count_below_0.02'"),
            ({"histogram": {"edges": [0.0, 1.0]}}, "is damaged (ValueError: the histogram has other bins"),
            ({"nan": [-1] * 11}, "is damaged (ValueError"),
            ({"nan": [0.5] * 11}, "is damaged (TypeError: float64 of shape (11,)"),
            ({"count_below_0.01": [0] * 11}, "statistics must be counts at these thresholds"),
            ({"min_kl": [None] * 11}, "is damaged (TypeError: None is no number"),
            ({"max_kl": ["NaN"] * 11}, "is damaged (ValueError: there are samples and no smallest KL"),
            ({"mean_kl": [0.0]}, "is damaged (ValueError: 'mean_kl' of 11 latents has 1 values"),
            (
                {"thresholds": [-1.0], "count_below_-1.0": [0] * 11},
                "thresholds must be finite and >= 0, got -1.0",
            ),
        ],
    )
    def test_what_is_no_report_is_named(
        self, report: CollapseReport, tmp_path: Path, change: dict[str, Any], words: str
    ) -> None:
        document, path = report.at().to_dict(), tmp_path / "other.json"
        for key, value in change.items():
            (document if key in document else document["latents"])[key] = value
        path.write_text(json.dumps(document))
        with pytest.raises(ValueError, match=re.escape(str(path))) as error:
            CollapseReport.load(path)
        assert words in str(error.value)

    @pytest.mark.parametrize(("name", "value"), [("min_kl", 0.31), ("max_kl", 2.9), ("max_kl", "Infinity")])
    def test_an_end_that_is_not_where_it_was_counted(
        self, tmp_path: Path, name: str, value: float | str
    ) -> None:
        document = report_of_kl(np.array([[0.3, 2.0], [0.31, 3.0]]), [0.305]).at().to_dict()
        document["latents"][name][-1 if name == "max_kl" else 0] = value
        (tmp_path / "other.json").write_text(json.dumps(document))
        with pytest.raises(ValueError, match=f"is damaged .*: {name} must lie where it is counted, got"):
            CollapseReport.load(tmp_path / "other.json")

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            CollapseReport.load(tmp_path / "nowhere.json")

    def test_failed_write_leaves_the_old_file(
        self, report: CollapseReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "report.json"
        path.write_text("old")
        monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            report.at().to_json(path)
        assert path.read_text() == "old"

    def test_dataframe(self, report: CollapseReport) -> None:
        frame = report.at().to_dataframe()
        assert len(frame) == 11
        assert frame.index.name == "latent"
        collapsed = (frame["collapsed"] == True).fillna(False)  # noqa: E712
        assert collapsed.tolist() == report.at().verdict.collapsed.tolist()
        np.testing.assert_array_equal(frame["mean_kl"], report.mean_kl)

    def test_needs_pandas(self, report: CollapseReport, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'lineavae\[dataframe\]'"):
            report.at().to_dataframe()


class TestText:
    def test_what_is_broken_comes_first(self, report: CollapseReport) -> None:
        lines = str(report).splitlines()
        assert lines[0] == "2 of 11 latents have samples whose KL is NaN, which may be anything: latents 7-8"
        assert lines[1] == "2 of 11 latents have samples of infinite KL, above every ε: latents 5, 7"
        assert "latents 8: some KL is NaN" in " ".join(str(report).split())

    @pytest.mark.parametrize(
        ("value", "expected"), [(math.nan, "unknown for latents 0"), (math.inf, "inf nats, sum over latents")]
    )
    def test_mean_kl_is_not_zero_where_none_is_finite(self, value: float, expected: str) -> None:
        text = " ".join(str(report_of(torch.full((9, 1), value), torch.zeros(9, 1))).split())
        assert f"mean KL {expected}" in text

    def test_content(self, simple: CollapseReport) -> None:
        lines = [" ".join(line.split()) for line in str(simple).splitlines()]
        assert lines[0] == "400 samples, 3 latents"
        assert "(0.01, 0.01)-collapsed 1 of 3 latents, 33.3 %" in lines
        assert "latents 1" in lines
        assert "with 95 % confidence 1 collapsed, 2 not collapsed, 0 undetermined" in lines
        assert not any("not decided" in line for line in lines)
        # the mean KL of statistics made by hand is zero
        assert lines[-3:] == [
            "1 0 1e-05 yes yes no active",
            "2 0 0.01 to 0.0101 no no no active",
            "0 0 1 no no no active",
        ]

    def test_ranges(self) -> None:
        kl = np.ones((10, 12))
        kl[:, [0, 3, 4, 5, 11]] = 0
        assert "latents 0, 3-5, 11" in str(report_of_kl(kl, [0.01]))

    def test_says_what_is_open(self) -> None:
        near = np.where(np.arange(400) % 100, 0.0099, 0.0101)[:, None]
        text = str(report_of_kl(near, [0.5]))
        assert "latents 0: 0.01 is no threshold" in " ".join(text.split())

    def test_rows_of_many_latents_are_the_most_collapsed_and_the_most_live(self) -> None:
        mean = torch.arange(200.0).expand(3, 200)
        report = report_of(mean, 0 * mean)
        found = re.findall(r"(?m)^ *(\d+|\.\.\.)  ", str(report))
        assert found == [*map(str, range(10)), "...", *map(str, range(190, 200))]
        assert "180 more" in str(report)
        assert len(str(report).splitlines()) < 35
        console = Console(file=io.StringIO(), width=110)
        console.print(report.at().summary(max_latents=None))
        assert len(re.findall(r"(?m)^ *\d+  ", console.file.getvalue())) == 200
        with pytest.raises(ValueError, match="max_latents must be at least 0, got -1"):
            report.at().summary(max_latents=-1)

    def test_text_in_a_notebook(self, report: CollapseReport, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = str(report)
        monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
        assert str(report) == expected
        display = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
        display.active_types = display.format_types
        shown, _ = display.format(report)
        assert shown["text/plain"] == expected
        assert shown["text/html"] == report._repr_html_()

    @pytest.mark.parametrize("width", [50, 80])
    def test_numbers_are_whole_in_a_narrow_terminal(self, width: int) -> None:
        mean = torch.tensor([1.0, 0.0123]).expand(400, 2)
        console = Console(file=io.StringIO(), width=width)
        console.print(report_of(mean, 0 * mean))
        lines = [line.split() for line in console.file.getvalue().splitlines()]
        assert lines[-2][:4] == ["1", "7.56e-05", "7.56e-05", "yes"]

    def test_level(self) -> None:
        """370 of 370 samples below ε prove a collapse at 95 %, and not at 99 %."""
        report = report_of_kl(np.zeros((370, 1)), [0.01])
        assert "with 95 % confidence 1 collapsed" in " ".join(str(report).split())
        at = report.at(level=0.99)
        assert "with 99 % confidence 0 collapsed" in " ".join(str(at).split())
        assert "at 99 %" in str(at)
        assert at.to_dict()["latents"]["collapse_test"] == ["undetermined"]
        assert at.collapse_test().tolist() == at.collapse_test(0.99).tolist() == ["undetermined"]
        with pytest.raises(ValueError, match="level must be > 0 and < 1, got 1"):
            report.at(level=1)

    def test_html_of_a_notebook(self, report: CollapseReport) -> None:
        html = report._repr_html_()
        text = re.sub("<[^>]*>", "", html)
        expected = [line.rstrip() for line in str(report).splitlines()]
        assert [unescape(line).rstrip() for line in text.splitlines()] == expected
        assert "color: #800000" in html

    def test_verdicts_have_colours_where_there_are_any(self, report: CollapseReport) -> None:
        console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system="standard")
        console.print(report)
        assert "\x1b[31myes" in console.file.getvalue()
        console = Console(file=io.StringIO(), width=110, force_terminal=True, no_color=True)
        console.print(report)
        assert "\x1b[31m" not in console.file.getvalue()

    def test_rich_prints_the_same(self, report: CollapseReport) -> None:
        console = Console(file=io.StringIO(), width=110)
        console.print(report)
        printed = [line.rstrip() for line in console.file.getvalue().splitlines()]
        assert printed == str(report).splitlines()

    def test_repr(self, report: CollapseReport) -> None:
        assert repr(report) == "CollapseReport(num_samples=997, latent_dim=11)"
        assert repr(report.at(0.3)) == "CollapseAt(epsilon=0.3, delta=0.01, num_samples=997, latent_dim=11)"


class TestPlots:
    def test_curve(self, report: CollapseReport) -> None:
        (axes,) = report.at(epsilon=0.3, delta=0.1).plot_curve().axes
        curve = report.at(delta=0.1).collapse_curve()
        assert axes.lines[0].get_xdata().tolist() == curve.epsilons.tolist()
        assert axes.lines[0].get_ydata().tolist() == curve.lower.tolist()
        assert axes.lines[1].get_xdata() == [0.3, 0.3]

    def test_spectrum(self, report: CollapseReport) -> None:
        (axes,) = report.at(epsilon=0.3, delta=0.1).plot_spectrum().axes
        drawn = {line.get_label(): line for line in axes.lines}
        collapsed, decided = report.at(0.3, 0.1).verdict
        masks = {"collapsed": collapsed, "not collapsed": decided & ~collapsed, "open": ~decided}
        for name, mask in masks.items():
            values = drawn[f"mean KL, {name}"].get_ydata()
            np.testing.assert_array_equal(np.sort(values), np.sort(report.mean_kl[mask]))
        ranks = np.concatenate([drawn[f"mean KL, {name}"].get_xdata() for name in masks])
        assert sorted(ranks) == list(range(11))

    @pytest.mark.parametrize(("latent_dim", "step"), [(11, 1), (50, 1), (51, 2), (200, 4)])
    def test_spectrum_names_the_latents(self, latent_dim: int, step: int) -> None:
        scale = torch.randperm(latent_dim, generator=torch.Generator().manual_seed(0)) / latent_dim
        report = report_of(scale.expand(9, latent_dim), torch.zeros(9, latent_dim))
        (axes,) = report.at().plot_spectrum().axes
        order = scale.argsort(descending=True).tolist()
        assert [label.get_text() for label in axes.get_xticklabels()] == [str(i) for i in order[::step]]

    def test_shown_by_a_notebook_and_pickled(self, report: CollapseReport) -> None:
        figure = pickle.loads(pickle.dumps(report.at().plot_curve()))
        assert figure._repr_png_().startswith(b"\x89PNG")

    def test_surface(self, report: CollapseReport) -> None:
        axes = report.plot_surface().axes[0]
        mesh = axes.collections[0]
        assert (mesh.norm.vmin, mesh.norm.vmax) == (0, 100)
        deltas = mesh.get_coordinates()[:, 0, 1]
        assert deltas[0] < 0.001 < 0.5 < deltas[-1]
        # all but the broken latent and the one that the histogram's range does not hold
        assert mesh.get_array().max() == pytest.approx(100 * 9 / 11)

    def test_ranges_hold_the_thresholds_and_zero_only_where_it_has_a_place(self) -> None:
        mean = torch.tensor([0.0, 3.0, 5.0], dtype=torch.float64).mul(2).sqrt().repeat(9, 1)
        report = report_of(mean, torch.zeros_like(mean))  # of KL 0, 3 and 5
        assert report.at().plot_curve().axes[0].get_xlim() == pytest.approx((0.005, 10.0))
        assert report.plot_surface().axes[0].get_xlim() == pytest.approx((0.005, 10.0))
        bottom, top = report.at(epsilon=1e-3).plot_spectrum().axes[0].get_ylim()
        assert -1e-3 < bottom < 0
        assert top == pytest.approx(10.0)
        report = report_of(mean[:, 1:2], torch.zeros(9, 1, dtype=torch.float64))
        assert report.at(epsilon=1e-3).plot_spectrum().axes[0].get_ylim() == pytest.approx((0.0005, 6.0))

    @pytest.mark.parametrize("value", [0.0, 1e-12, 1e7, math.inf, math.nan])
    def test_draws_anything(self, value: float) -> None:
        report = report_of_kl(np.full((5, 2), value), [0.0, 0.01])
        for figure in (report.at().plot_curve(), report.at().plot_spectrum(), report.plot_surface()):
            figure.savefig(io.BytesIO())

    def test_needs_matplotlib(self, report: CollapseReport, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ModuleNotFoundError, match="matplotlib"):
            report.at().plot_curve()


def test_memory_of_many_latents() -> None:
    """More of them than samples: the histogram, and never more than one copy of it at once."""
    report = report_of(torch.zeros(2, 9000), torch.zeros(2, 9000))
    tracemalloc.start()
    try:
        document = report.at().to_dict()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert document["histogram"]["counts"] == [[2]] * 9000
    assert peak < 2 * report.histogram.nbytes
