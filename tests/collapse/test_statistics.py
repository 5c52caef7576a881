from __future__ import annotations

import copy
import json
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, Laplace, Normal, kl_divergence
from torchmetrics import MetricCollection
from torchmetrics.aggregation import MeanMetric

from lineavae.collapse import CollapseReport, CollapseStatistics, WidePosteriorWarning, mutual_information
from lineavae.ops import collapse_statistics, gaussian_kl_per_dimension, histogram_edges

THRESHOLDS = (0.0, 0.01, 0.5)


def whole_report(mean: Tensor, logvar: Tensor) -> CollapseReport:
    return CollapseReport(collapse_statistics(mean, logvar, THRESHOLDS), THRESHOLDS)


def assert_same(first: CollapseReport, second: CollapseReport) -> None:
    """Counts to the bit, means and variances to 1e-6 of the largest: float sums some rows at a time."""
    assert first.num_samples == second.num_samples
    for name, value in vars(first).items():
        other = getattr(second, name)
        if name.startswith(("mean", "variance", "kl_variance")):
            scale = np.nan_to_num(abs(value)).max()
            np.testing.assert_allclose(other, value, rtol=1e-6, atol=1e-6 * scale, err_msg=name)
        else:
            np.testing.assert_array_equal(other, value, err_msg=name)


@pytest.fixture(scope="module")
def posterior() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(300, 5, generator=generator) * torch.tensor([1.0, 0.1, 0.01, 0.0, 1.0]) + 7 * (
        torch.arange(5) == 4
    )
    logvar = torch.randn(300, 5, generator=generator) * torch.tensor([1.0, 0.1, 0.0, 0.0, 0.5])
    mean[17, 1] = torch.nan
    return mean, logvar


@pytest.fixture
def metric() -> CollapseStatistics:
    return CollapseStatistics(5, THRESHOLDS)


def states(metric: CollapseStatistics) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in metric.metric_state.items()}


def assert_equal_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype
        assert torch.equal(value, second[name]), name


class TestUpdate:
    @pytest.mark.parametrize("sizes", [[300], [1, 299], [100, 0, 200], [30] * 10])
    def test_batches(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor], sizes: list[int]
    ) -> None:
        for mean, logvar in zip(*(tensor.split(sizes) for tensor in posterior), strict=True):
            metric.update(mean, logvar)
        assert_same(whole_report(*posterior), metric.compute())

    def test_any_number_of_leading_dimensions(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor]
    ) -> None:
        mean, logvar = posterior
        metric.update(mean[:299].reshape(13, 23, 5), logvar[:299].reshape(13, 23, 5), event_dim=1)
        metric.update(mean[299], logvar[299])
        assert_same(whole_report(mean, logvar), metric.compute())

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_dtypes(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor], dtype: torch.dtype
    ) -> None:
        mean, logvar = (tensor.to(dtype) for tensor in posterior)
        metric.update(mean, logvar)
        accumulated = torch.float64 if dtype == torch.float64 else torch.float32
        assert_same(whole_report(mean.to(accumulated), logvar.to(accumulated)), metric.compute())

    def test_device(self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor], device: str) -> None:
        metric.to(device).update(*(tensor.to(device) for tensor in posterior))
        assert metric.moments.device.type == device
        # a GPU's exponential is another
        np.testing.assert_allclose(metric.compute().mean_kl, whole_report(*posterior).mean_kl, rtol=1e-5)

    def test_keeps_no_graph(self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor]) -> None:
        mean, logvar = (tensor.clone().requires_grad_() for tensor in posterior)
        metric.update(mean, logvar)
        metric(mean, logvar)
        assert not any(state.requires_grad for state in metric.metric_state.values())

    def test_under_autocast(self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor]) -> None:
        mean, logvar = posterior
        with torch.autocast("cpu", dtype=torch.bfloat16):
            metric.update(mean.bfloat16(), logvar)  # as a layer under autocast and one outside give
        assert_same(whole_report(mean.bfloat16().float(), logvar), metric.compute())

    def test_state_dtypes_are_kept(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor]
    ) -> None:
        before = {name: state.dtype for name, state in states(metric).items()}
        metric.update(*(tensor.half() for tensor in posterior))
        assert {name: state.dtype for name, state in states(metric).items()} == before
        assert {before[name] for name in ("counts", "histogram", "infinite", "nan")} == {torch.int64}
        assert {before[name] for name in ("moments", "minimum", "maximum")} == {torch.float64}

    @pytest.mark.parametrize(
        ("mean", "logvar", "error", "message"),
        [
            (torch.zeros(3, 4), torch.zeros(3, 4), ValueError, r"K=5 latents, got \(N, K\) = \(3, 4\)"),
            (torch.zeros(3, 5), torch.zeros(3, 1), ValueError, r"logvar must have .*\(3, 5\), got \(3, 1\)"),
            (torch.zeros(6, 5), torch.zeros(2, 3, 5), ValueError, r"of mean, \(6, 5\), got \(2, 3, 5\)"),
            (torch.zeros(()), torch.zeros(()), ValueError, r"at least .* got shape \(\)"),
            (torch.zeros(3, 5), None, ValueError, "exactly one of logvar, variance and std .* got none"),
            (torch.zeros(3, 5), torch.zeros(3, 5).double(), TypeError, "logvar must have the dtype"),
            (torch.zeros(3, 5).int(), torch.zeros(3, 5).int(), TypeError, "got torch.int32"),
            (np.zeros((3, 5), int), np.zeros((3, 5)), TypeError, "mean must be of floating .* int64"),
            ("embedding", "log_covariance", TypeError, "array, got str: a dict that is unpacked"),
            ((torch.zeros(3, 5), torch.zeros(3, 5)), None, TypeError, "tuple: give a pair as two arguments"),
            ([torch.zeros(3, 5)], [torch.zeros(3, 5)], TypeError, "got list: .* batches one at a time"),
            ({"mean": 0, "logvar": 0}, None, TypeError, r"pass output\['mean'\], logvar=output\['logvar'\]"),
            (
                {"embedding": 0, "log_covariance": 0},
                torch.zeros(3, 5),
                TypeError,
                r"pass output\['embedding'\], logvar=output\['log_covariance'\]",
            ),
            (Laplace(torch.zeros(3, 5), 1.0), None, TypeError, "Normal or an Independent .* got Laplace"),
            (Normal(torch.zeros(3, 5), 1.0), torch.zeros(3, 5), ValueError, "no other spread"),
            (torch.zeros(3, 5), torch.zeros(3, 5, device="meta"), ValueError, "of mean, cpu, got meta"),
        ],
    )  # fmt: skip
    def test_errors_change_nothing(
        self,
        metric: CollapseStatistics,
        posterior: tuple[Tensor, Tensor],
        mean: Any,
        logvar: Any,
        error: type[Exception],
        message: str,
    ) -> None:
        metric.update(*posterior)
        before = states(metric)
        with pytest.raises(error, match=message):
            metric.update(mean, logvar)
        assert_equal_states(states(metric), before)

    def test_bad_constructor_arguments(self) -> None:
        with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
            CollapseStatistics(0)
        with pytest.raises(TypeError, match="latent_dim must be an int, got float"):
            CollapseStatistics(2.0)
        with pytest.raises(ValueError, match="threshold must be finite and >= 0, got nan"):
            CollapseStatistics(2, [torch.nan])
        with pytest.raises(TypeError, match="threshold must be a number, got Tensor"):
            CollapseStatistics(2, torch.tensor([0.1]))
        with pytest.raises(ValueError, match="at most 64 thresholds"):
            CollapseStatistics(2, [0.1] * 65)


class Foreign:
    """An array of a library that is neither torch nor NumPy."""

    def __init__(self, array: Any, strides: tuple[int, ...] | None = None, copy: Any = None) -> None:
        self.array, self.strides, self.copy = array, strides, copy

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def read_only(tensor: Tensor) -> Any:
    array = tensor.numpy().copy()
    array.flags.writeable = False
    return array


FORMS = {
    "variance": lambda mean, std: ((mean,), {"variance": std.square()}),
    "std": lambda mean, std: ((mean,), {"std": std}),
    "Normal": lambda mean, std: ((Normal(mean, std),), {}),
    "Independent": lambda mean, std: ((Independent(Normal(mean, std), 1),), {}),
    "pixels": lambda mean, std: (
        (mean.reshape(-1, 5, 1, 1),),
        {"std": std.reshape(-1, 5, 1, 1), "event_dim": 3},
    ),
    "NumPy": lambda mean, std: ((mean.numpy(), 2 * np.log(std.numpy())), {}),
    "strides": lambda mean, std: ((np.flip(mean.numpy(), 0),), {"std": np.flip(std.numpy(), 0)}),
    "columns": lambda mean, std: ((np.asfortranarray(mean),), {"std": np.asfortranarray(std)}),
    "big-endian": lambda mean, std: ((mean.numpy().astype(">f8"),), {"std": std.numpy().astype(">f8")}),
    "read-only": lambda mean, std: ((read_only(mean),), {"std": read_only(std)}),
    "DLPack": lambda mean, std: ((Foreign(mean),), {"std": Foreign(std)}),
    # of which only a copy has the posterior
    "DLPack, backwards": lambda mean, std: (
        (Foreign(0 * mean, (-24, 8), lambda: Foreign(mean)),),
        {"std": Foreign(std, (24, 8))},
    ),
    "two dtypes": lambda mean, std: ((mean.float(),), {"std": std}),
}  # fmt: skip


class TestForms:
    """A posterior is the same in every form that people have it in."""

    @pytest.mark.parametrize("form", FORMS)
    def test_one_posterior(self, form: str) -> None:
        """Mean KL from the formula in float64; five latents, one of which is at the prior."""
        random = np.random.default_rng(0)
        std = np.exp(random.standard_normal((200, 5)) * [1, 0.5, 0.1, 0, 0.3] - [0.5, 0.5, 0.5, 0, 0.5])
        mean = random.standard_normal((200, 5)) * [1, 0.5, 0.1, 0, 1]
        positional, named = FORMS[form](torch.from_numpy(mean), torch.from_numpy(std))
        metric = CollapseStatistics(5)
        metric.update(*positional, **named)
        expected = (0.5 * (mean**2 + std**2 - 2 * np.log(std) - 1)).mean(0)
        np.testing.assert_allclose(metric.compute().mean_kl, expected, rtol=1e-7, atol=1e-12)

    @pytest.mark.parametrize("kind", ["variance", "std"])
    def test_half_precision_keeps_what_it_has(self, kind: str) -> None:
        """The logarithm of float16 in float16 would lose half of the digits of a KL near zero."""
        spread = torch.linspace(0.6, 0.97, 10, dtype=torch.float16)[:, None]
        metric = CollapseStatistics(1)
        metric.update(torch.zeros_like(spread), **{kind: spread})
        variance = spread.double() ** (2 if kind == "std" else 1)
        expected = 0.5 * (variance - variance.log() - 1).mean().item()
        assert metric.compute().mean_kl.item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("kind", ["variance", "std"])
    def test_no_spread_is_an_infinite_kl_and_a_negative_one_an_error(
        self, metric: CollapseStatistics, kind: str
    ) -> None:
        spread = torch.ones(3, 5)
        spread[2, 1] = 0
        mean = torch.zeros(3, 5)
        metric.update(mean, **{kind: spread})
        kl = gaussian_kl_per_dimension(mean, spread.log())
        assert kl[2, 1] == torch.inf
        assert torch.equal(metric.counts[:, 1], (kl < 0.01).sum(0))
        before = states(metric)
        spread[2, 1] = -0.5
        with pytest.raises(ValueError, match=rf"{kind} must not be negative, got -0.5 in row 2, latent 1"):
            metric.update(mean, **{kind: spread})
        assert_equal_states(states(metric), before)

    def test_feature_maps_ask_which_dimensions_are_latents(self) -> None:
        mean = torch.arange(16 * 4 * 8 * 8.0).reshape(16, 4, 8, 8) % 7
        with pytest.raises(ValueError, match=re.escape(
            "event_dim=3 makes it (N, K) = (16, 256), event_dim=1 (512, 8); "
            "movedim(1, -1), one latent per channel, and event_dim=1 (1024, 4)"
        )):  # fmt: skip
            CollapseStatistics(8).update(mean, 0 * mean)
        metric = CollapseStatistics(4)
        channels = mean.movedim(1, -1)
        metric.update(channels, 0 * channels, event_dim=1)
        expected = mean.double().square().mean((0, 2, 3)) / 2
        np.testing.assert_allclose(metric.compute().mean_kl, expected, rtol=1e-12)
        with pytest.raises(ValueError, match="event_dim must be that of the distribution, 2, got 3"):
            metric.update(Independent(Normal(mean, 1.0), 2), event_dim=3)


class TestKL:
    """KL values of any posterior, against counts of all of them in float64."""

    @pytest.mark.parametrize("sizes", [[300], [1, 0, 299], [100] * 3])
    def test_is_all_that_a_gaussian_one_has_of_its_kl(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor], sizes: list[int]
    ) -> None:
        kl = gaussian_kl_per_dimension(*posterior)
        kl[3, 2] = torch.inf
        for part in kl.split(sizes):
            metric.update_kl(part)
        report, values = metric.compute(), kl.double().numpy()
        known = [column[~np.isnan(column)] for column in values.T]
        np.testing.assert_array_equal(
            report.counts, [[(column < max(t, 5e-324)).sum() for t in THRESHOLDS] for column in known]
        )
        edges = histogram_edges().numpy()
        np.testing.assert_array_equal(
            report.histogram, [np.histogram(np.minimum(column, 1e9), edges)[0] for column in known]
        )
        np.testing.assert_allclose(report.mean_kl, [column.mean() for column in known], rtol=1e-12)
        finite = [column for column in known if np.isfinite(column).all()]
        some = np.isfinite(report.kl_variance)
        np.testing.assert_allclose(report.kl_variance[some], [c.var() for c in finite], rtol=1e-12)
        np.testing.assert_array_equal(report.max_kl, [column.max() for column in known])
        assert (report.nan.tolist(), report.infinite.tolist()) == ([0, 1, 0, 0, 0], [0, 0, 1, 0, 0])

    def test_other_latents(self) -> None:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(200, 3, 4, generator=generator, dtype=torch.float64) * torch.tensor(
            [3, 0.3, 0.1, 0]
        )
        for posterior, prior in (
            (Bernoulli(logits=logits), Bernoulli(torch.tensor(0.5).double())),
            (Categorical(logits=logits.mT), Categorical(torch.ones(3).double())),
        ):
            kl = kl_divergence(posterior, prior).reshape(200, -1)
            metric = CollapseStatistics(kl.shape[1])
            metric.update_kl(kl.unflatten(1, (-1, 2)).numpy(), event_dim=2)
            at = metric.compute().at(0.01, 0.05)
            np.testing.assert_array_equal(at.collapsed, (kl < 0.01).double().mean(0) >= 0.95)
            exact = kl.sort(0).values[200 - 10 - 1].numpy()
            assert (at.critical_epsilon.lower <= exact).all()
            assert (exact <= at.critical_epsilon.upper).all()

    @pytest.mark.filterwarnings("ignore:CollapseStatistics. the mean KL:RuntimeWarning")
    def test_estimates_below_zero_count_as_zero_but_in_the_mean(self) -> None:
        metric = CollapseStatistics(2, THRESHOLDS)
        kl = torch.tensor([[-0.3, 0.2], [0.1, -torch.inf], [0.0, torch.nan]], dtype=torch.float64)
        metric.update_kl(kl)
        report = metric.compute()
        np.testing.assert_array_equal(report.counts, [[2, 2, 3], [0, 0, 1]])
        np.testing.assert_allclose(report.mean_kl, [-0.2 / 3, 0.2])
        np.testing.assert_allclose(report.kl_variance, [kl[:, 0].var(correction=0), 0], atol=1e-15)
        assert (report.min_kl[0], report.nan.tolist()) == (0, [0, 2])

    def test_a_mean_below_zero_warns(self, metric: CollapseStatistics) -> None:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(400, 5, generator=generator) * 0.3 + 0.1
        estimate = Normal(0.1, 0.3).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
        metric.update_kl(estimate)  # some of which are below zero
        metric.compute()
        metric.reset()
        metric.update_kl(torch.cat([estimate[:, :3], -estimate[:, 3:]], 1))
        with pytest.warns(RuntimeWarning, match="mean KL of latents 3-4 is below zero") as caught:
            metric.compute()
        assert caught[0].filename == __file__

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_rounding_below_zero_does_not_warn(self, dtype: torch.dtype) -> None:
        """Of collapsed latents the closed form, as it is written, cancels to a little below zero."""
        generator = torch.Generator().manual_seed(0)
        mean, logvar = torch.randn(2, 20_000, 4, generator=generator)
        mean, logvar = (mean * 1e-4).to(dtype), (logvar * torch.tensor([1e-5, 1e-4, 1e-3, 1e-2])).to(dtype)
        kl = 0.5 * (mean**2 + logvar.exp() - logvar - 1)
        assert (kl.double().mean(0) < 0).any()
        metric = CollapseStatistics(4)
        metric.update_kl(kl)
        assert metric.compute().at().collapsed.all()

    @pytest.mark.parametrize("both", [False, True])
    def test_what_needs_moments_says_so(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor], both: bool
    ) -> None:
        metric.update_kl(gaussian_kl_per_dimension(*posterior))
        if both:
            metric.update(*posterior)
            metric.update_kl(torch.empty(0, 5))
        report = metric.compute()
        assert report.num_samples == 300 * (1 + both)
        assert not report.has_moments
        assert not report.is_wider_than_prior
        for array in (report.mean_of_mean, report.variance_of_mean, report.variance_of_variance):
            assert np.isnan(array).all()
        for method in ("active_units", "num_active", "classification"):
            with pytest.raises(ValueError, match=r"means and variances .* must be known.*update_kl"):
                getattr(report, method)()
        assert "active units, variables     unknown: KL values were given alone" in str(report)
        at = report.at()
        document = json.loads(at.to_json())
        assert (document["num_active"], document["latents"]["active"]) == (None, [None] * 5)
        assert at.to_dataframe()["classification"].isna().all()
        if both:  # all that is of the KL is that of both
            np.testing.assert_array_equal(report.counts, 2 * whole_report(*posterior).counts)

    def test_follows_computes(self, metric: CollapseStatistics) -> None:
        for number in (1, 2):
            metric.update_kl(torch.zeros(7, 5))
            assert metric.compute().num_samples == 7 * number

    @pytest.mark.parametrize(
        ("kl", "error", "message"),
        [
            (torch.zeros(4), ValueError, r"kl must have shape \(N, K\).* got \(4,\)"),
            (torch.zeros(4, 5, 2), ValueError, "kl has shape .* event_dim must say .* event_dim=2"),
            (torch.zeros(4, 3), ValueError, "kl must have K=5"),
            (torch.zeros(4, 5, dtype=torch.int64), TypeError, "kl must be float64"),
            (torch.zeros(4, 5, device="meta"), ValueError, "kl must be on the metric's device"),
            ([[0.0] * 5], TypeError, "kl must be a tensor or an array, got list"),
        ],
    )
    def test_errors_change_nothing(
        self, metric: CollapseStatistics, kl: Any, error: type[Exception], message: str
    ) -> None:
        before = states(metric)
        with pytest.raises(error, match=f"CollapseStatistics.update_kl: {message}"):
            metric.update_kl(kl)
        assert_equal_states(before, states(metric))


class TestWidth:
    """Variances in the place of log-variances are noticed, posteriors that may be right are not."""

    @staticmethod
    def trained(latent_dim: int, num_live: int) -> tuple[Tensor, Tensor]:
        """The posterior at a VAE's optimum: mean and variance add up to the prior's variance."""
        generator = torch.Generator().manual_seed(0)
        variance = torch.ones(latent_dim).index_fill(0, torch.arange(num_live), 0.2)
        mean = torch.randn(500, latent_dim, generator=generator) * (1 - variance).sqrt()
        return mean, variance.expand_as(mean)

    @pytest.mark.parametrize("sizes", [(1, 1), (1, 0), (12, 7), (12, 12), (12, 0)])
    @pytest.mark.parametrize("spoil", [lambda variance: variance, torch.sqrt])
    def test_other_spreads_warn(self, sizes: tuple[int, int], spoil: Any) -> None:
        mean, variance = self.trained(*sizes)
        metric = CollapseStatistics(sizes[0])
        metric.update(mean, spoil(variance))
        with pytest.warns(WidePosteriorWarning, match="variance= or std="):
            report = metric.compute()
        assert report.is_wider_than_prior
        assert "are the log-variances variances" in " ".join(str(report).split())
        with pytest.warns(WidePosteriorWarning):
            mutual_information(mean.double(), spoil(variance).double())

    @pytest.mark.parametrize("sizes", [(1, 1), (1, 0), (12, 7), (12, 12), (12, 0)])
    @pytest.mark.parametrize("wobble", [1e-3, 0.2])
    def test_trained_and_untrained_ones_do_not(self, sizes: tuple[int, int], wobble: float) -> None:
        """Log-variances may all be above zero: that of the one latent of a collapsed model often is."""
        mean, variance = self.trained(*sizes)
        for logvar in (variance.log() + wobble, torch.full_like(mean, wobble)):
            metric = CollapseStatistics(sizes[0])
            metric.update(mean if logvar[0, 0] < 0 else 0 * mean, logvar)
            assert not metric.compute().is_wider_than_prior

    @pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
    def test_what_scatters_around_zero_does_not(self, scale: float) -> None:
        mean, logvar = torch.randn(2, 4000, 3, generator=torch.Generator().manual_seed(0))
        metric = CollapseStatistics(3)
        metric.update(mean, scale * logvar)
        assert not metric.compute().is_wider_than_prior

    def test_one_narrow_latent_or_none_known_is_no_sign(self) -> None:
        mean, logvar = torch.ones(9, 3), torch.full((9, 3), 3.0)
        logvar[:, 1] = -0.1
        metric = CollapseStatistics(3)
        metric.update(mean, logvar)
        assert not metric.compute().is_wider_than_prior
        metric.reset()
        metric.update(mean * torch.nan, logvar)
        assert not metric.compute().is_wider_than_prior


class TestMetric:
    """What torchmetrics promises of any metric."""

    def test_forward_gives_the_batch_and_adds_it(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor]
    ) -> None:
        batches = list(zip(*(tensor.split(100) for tensor in posterior), strict=True))
        for batch in batches:
            assert_same(whole_report(*batch), metric(*batch))
        assert_same(whole_report(*posterior), metric.compute())
        assert metric(posterior[0][:0], posterior[1][:0]).num_samples == 0
        assert_same(whole_report(*posterior), metric.compute())

    def test_reset(self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor]) -> None:
        fresh = states(metric)
        metric.update(*posterior)
        metric.reset()
        assert_equal_states(states(metric), fresh)
        metric.update(posterior[0][:9], posterior[1][:9])
        assert metric.compute().num_samples == 9

    def test_compute_follows_updates(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor]
    ) -> None:
        metric.update(*posterior)
        first = metric.compute()
        metric.update(*posterior)
        assert (first.num_samples, metric.compute().num_samples) == (300, 600)

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))])
    def test_copies(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor], duplicate: Any
    ) -> None:
        metric.update(*posterior)
        metric.compute()
        twin = duplicate(metric)
        twin.update(*posterior)
        assert (metric.compute().num_samples, twin.compute().num_samples) == (300, 600)

    def test_in_a_collection(self, posterior: tuple[Tensor, Tensor]) -> None:
        # both count no KL at first, so that only their thresholds tell them apart
        live = torch.full((10, 5), 3.0)
        collection = MetricCollection(
            {"low": CollapseStatistics(5, [0.001]), "high": CollapseStatistics(5, [0.5])}
        )
        collection.update(live, 0 * live)
        collection.update(*posterior)
        reports = collection.compute()
        for name, threshold in (("low", 0.001), ("high", 0.5)):
            expected = collapse_statistics(*posterior, [threshold]).counts.numpy()
            np.testing.assert_array_equal(reports[name].counts, expected)

    def test_no_update_warns(self, metric: CollapseStatistics) -> None:
        with pytest.warns(UserWarning, match="was called before the ``update``"):
            assert metric.compute().num_samples == 0


class TestDtypeOfTheModel:
    @pytest.mark.parametrize(
        "convert",
        [
            lambda model: model.half(),
            lambda model: model.float(),
            lambda model: model.double(),
            lambda model: model.bfloat16(),
            lambda model: model.to(torch.bfloat16),
            lambda model: model.to("cpu", torch.float16),
            lambda model: model.type(torch.float16),
        ],
    )
    @pytest.mark.parametrize("inside", [True, False])
    def test_is_not_that_of_the_metric(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor], convert: Any, inside: bool
    ) -> None:
        metric.update(*posterior)
        before = states(metric)
        model = nn.Sequential(nn.Linear(2, 2), metric) if inside else metric
        assert convert(model) is model
        assert_equal_states(states(metric), before)
        metric.reset()
        metric.update(*posterior)
        assert_equal_states(states(metric), before)

    def test_set_dtype_refuses(self, metric: CollapseStatistics) -> None:
        with pytest.raises(TypeError, match=r"counters stay int64 and moments float64, got torch\.float16"):
            metric.set_dtype(torch.float16)

    def test_moves_to_a_device(self, metric: CollapseStatistics) -> None:
        model = nn.Sequential(nn.Linear(2, 2), metric).to("meta", torch.bfloat16)
        assert metric.device.type == "meta"
        assert {state.device.type for state in metric.metric_state.values()} == {"meta"}
        assert model[1].counts.dtype == torch.int64
        assert model[1].moments.dtype == torch.float64


class TestMergeState:
    @pytest.mark.parametrize("as_dict", [True, False])
    def test_equal_to_the_whole(self, posterior: tuple[Tensor, Tensor], as_dict: bool) -> None:
        metrics = [CollapseStatistics(5, THRESHOLDS) for _ in range(3)]
        for metric, mean, logvar in zip(metrics, *(t.split([50, 250, 0]) for t in posterior), strict=True):
            metric.update(mean, logvar)
        first, *others = metrics
        first.compute()  # its cached report must not outlive the merge
        for other in others:
            first.merge_state(other.metric_state if as_dict else other)
        assert_same(whole_report(*posterior), first.compute())

    def test_into_one_without_data(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor]
    ) -> None:
        other = CollapseStatistics(5, THRESHOLDS)
        other.update(*posterior)
        metric.merge_state(other)
        assert_same(whole_report(*posterior), metric.compute())

    def test_a_billion_samples(self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor]) -> None:
        metric.update(*posterior)
        small = metric.compute()
        for _ in range(30):
            metric.merge_state(copy.deepcopy(metric))
        large = metric.compute()
        assert large.num_samples == 300 * 2**30
        for name in ("counts", "histogram", "infinite", "nan"):
            np.testing.assert_array_equal(getattr(large, name), getattr(small, name) * 2**30)
        for name in ("mean_kl", "kl_variance", "variance_of_mean", "mean_variance", "min_kl", "max_kl"):
            np.testing.assert_allclose(getattr(large, name), getattr(small, name), rtol=1e-13)
        for delta in (0.0, 0.01, 0.3):
            np.testing.assert_array_equal(large.at(0.01, delta).collapsed, small.at(0.01, delta).collapsed)

    def test_long_streams_do_not_drift(self) -> None:
        """A thousand batches far from zero, against extended precision."""
        random = np.random.default_rng(0)
        metric = CollapseStatistics(1, [])
        mean = 1000 + random.standard_normal((1000, 20, 1)) * 0.01
        for batch in torch.from_numpy(mean):
            metric.update(batch, torch.zeros_like(batch))
        values = mean.astype(np.longdouble).ravel()
        report = metric.compute()
        assert report.mean_of_mean.item() == pytest.approx(float(values.mean()), rel=1e-14)
        assert report.variance_of_mean.item() == pytest.approx(float(values.var()), rel=1e-8)

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (CollapseStatistics(5, (0.0, 0.01, 0.4)), r"thresholds must be \[0.0, 0.01, 0.5\], got .*0.4\]"),
            (
                CollapseStatistics(5, (0.0, 0.01)),
                r"thresholds must be .* of shape \(3,\), got .* shape \(2,\)",
            ),
            (CollapseStatistics(1, THRESHOLDS), r"counts must be .* shape \(5, 3\), got .* shape \(1, 3\)"),
            (MeanMetric(), "thresholds must be a tensor among the states"),
            ({"counts": torch.zeros(5, 3)}, r"thresholds must be a tensor .* got \['counts'\]"),
            ({"thresholds": list(THRESHOLDS)}, "thresholds must be a tensor among the states"),
        ],
    )
    def test_others_are_refused(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor], other: Any, message: str
    ) -> None:
        metric.update(*posterior)
        before = states(metric)
        with pytest.raises(ValueError, match=message):
            metric.merge_state(other)
        assert_equal_states(states(metric), before)


class TestStateDict:
    def test_round_trip_in_a_model(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor], tmp_path: Path
    ) -> None:
        metric.update(*posterior)
        torch.save(nn.Sequential(nn.Linear(2, 2), metric).state_dict(), tmp_path / "model.pt")
        restored = CollapseStatistics(5, THRESHOLDS)
        restored.update(torch.ones(3, 5), torch.zeros(3, 5))
        restored.compute()
        model = nn.Sequential(nn.Linear(2, 2), restored)
        model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        assert_same(metric.compute(), restored.compute())
        restored.update(*posterior)
        assert restored.compute().num_samples == 600

    def test_into_a_fresh_one(self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor]) -> None:
        metric.update(*posterior)
        restored = CollapseStatistics(5, THRESHOLDS)
        restored.load_state_dict(metric.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # that compute came before update
            assert_same(metric.compute(), restored.compute())

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (CollapseStatistics(5, (0.0, 0.01, 0.4)), r"thresholds must be \[0.0, 0.01, 0.5\], got"),
            (CollapseStatistics(4, THRESHOLDS), r"counts must be torch.int64 of shape \(5, 3\)"),
        ],
    )
    def test_others_are_refused(
        self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor], other: Any, message: str
    ) -> None:
        metric.update(*posterior)
        before = states(metric)
        with pytest.raises(RuntimeError, match=message):
            metric.load_state_dict(other.state_dict())
        assert_equal_states(states(metric), before)

    def test_missing_states(self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor]) -> None:
        metric.update(*posterior)
        before = states(metric)
        partial = CollapseStatistics(5, THRESHOLDS).state_dict()
        del partial["moments"]
        with pytest.raises(RuntimeError, match=r'Missing key.*"moments"'):
            metric.load_state_dict(partial)
        metric.load_state_dict(partial, strict=False)
        assert_equal_states(states(metric), before)


def compute_in_process(rank: int, folder: str, parts: list[list[tuple[Tensor, Tensor]]]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    warnings.simplefilter("ignore", UserWarning)  # of no update in this process
    for number, ranks in enumerate(parts):
        metric = CollapseStatistics(5, THRESHOLDS)
        if len(ranks[rank][0]):
            metric.update(*ranks[rank])
        report = metric.compute()
        Path(folder, f"{number}-{rank}.pickle").write_bytes(pickle.dumps(report))
        assert metric.moments[0, 0] + metric.nan[0] == len(ranks[rank][0])  # its own data again
    metric = CollapseStatistics(5, [0.1 + rank])
    with pytest.raises(ValueError, match=r"thresholds must be the same in all, got \[\[0.1\], \[1.1\]\]"):
        metric.compute()
    dist.destroy_process_group()


class TestProcesses:
    def test_two(self, posterior: tuple[Tensor, Tensor], tmp_path: Path) -> None:
        parts = [
            list(zip(*(tensor.split([cut, 300 - cut]) for tensor in posterior), strict=True))
            for cut in (150, 7, 0, 300)
        ]
        torch.multiprocessing.spawn(compute_in_process, (str(tmp_path), parts), nprocs=2)
        for number in range(len(parts)):
            first, second = (
                pickle.loads((tmp_path / f"{number}-{rank}.pickle").read_bytes()) for rank in range(2)
            )
            assert_same(whole_report(*posterior), first)
            for name, value in vars(first).items():
                np.testing.assert_array_equal(getattr(second, name), value, err_msg=name)

    @pytest.fixture
    def one_process(self, tmp_path: Path) -> Iterator[None]:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
        yield
        dist.destroy_process_group()

    @pytest.mark.usefixtures("one_process")
    def test_one(self, metric: CollapseStatistics, posterior: tuple[Tensor, Tensor]) -> None:
        metric.update(*posterior)
        assert_same(whole_report(*posterior), metric.compute())
