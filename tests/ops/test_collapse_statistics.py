"""collapse_statistics against dense NumPy, and what every operator promises."""

import functools
import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from lineavae import _ext, reference
from lineavae.linear import LinearVAE
from lineavae.ops import (
    _dispatch,
    collapse_statistics,
    gaussian_kl_per_dimension,
    histogram_edges,
    merge_moments,
)
from lineavae.ops._tensors import widen

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
THRESHOLDS = (0.5, 0.0, 0.01)
# more rows than a block and a part have, more columns than a tile has, and what is left over by each
SHAPES = [(1, 1), (7, 3), (1300, 17), (9, 300)]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_histogram = pytest.mark.parametrize("histogram", [True, False], ids=["histogram", "no_histogram"])


def make_posterior(shape, dtype=torch.float32, device="cpu", seed=0):
    """Posteriors whose latents go from active to collapsed: KLs above, in and below the histogram's range."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0.7, -7, shape[-1], dtype=torch.float64)
    mean, logvar = scale * torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    return mean.to(device, dtype), logvar.to(device, dtype)


# --- the truth: dense, in NumPy ---


def kl_values(mean, logvar):
    return gaussian_kl_per_dimension(mean, logvar).double().cpu().numpy()


def accumulated(dtype):
    return np.float64 if dtype == torch.float64 else np.float32


def dense_edges():
    """The histogram's edges: every float32 whose bits end in 19 zeros, from 2⁻²⁴ to 2¹⁶."""
    first, last = np.array([2.0**-24, 2.0**16], np.float32).view(np.int32)
    inner = np.arange(first, last + 1, 2**19, dtype=np.int32).view(np.float32)
    return np.concatenate([[0.0], inner.astype(np.float64), [np.inf]])


def dense_counts(kl, thresholds):
    """(N, K) and (E,) -> (K, E)."""
    thresholds = np.array([float(threshold) for threshold in thresholds])
    return np.where(thresholds == 0, kl[..., None] <= 0, kl[..., None] < thresholds).sum(0)


def dense_moments(*columns):
    """Count, then mean and sum of squared deviations of each of ``columns``, in two passes."""
    moments = [float(len(columns[0]))]
    for values in columns:
        if np.isinf(values).any():
            signs = np.unique(values[np.isinf(values)])
            moments += [signs[0] if len(signs) == 1 else math.nan, math.inf]
            continue
        average = math.fsum(values) / max(len(values), 1)
        moments += [average, math.fsum((values - average) ** 2)]
    return np.array(moments)


def moment_columns(mean, logvar, kl):
    """KL, m and v of each latent's elements whose KL is not NaN; v as far as the dtype goes."""
    m = mean.double().cpu().numpy()
    with np.errstate(over="ignore"):
        v = np.exp(logvar.double().cpu().numpy()).astype(accumulated(mean.dtype)).astype(np.float64)
    return [(kl[rows, j], m[rows, j], v[rows, j]) for j, rows in enumerate(~np.isnan(kl).T)]


EPS = np.finfo(np.float64).eps


def assert_near_moments(actual, expected, columns, value_errors):
    """Compare means with the size of the values, squared deviations with theirs and a mean's error.

    ``value_errors`` is how far apart the values themselves may be, for each column, relative to their size.
    """
    assert actual[0] == expected[0]
    for i, (values, error) in enumerate(zip(columns, value_errors, strict=True)):
        size = abs(values).max(initial=0)
        mean, squares = 1 + 2 * i, 2 + 2 * i
        if np.isinf(size):
            np.testing.assert_array_equal(actual[[mean, squares]], expected[[mean, squares]])
            continue
        np.testing.assert_allclose(actual[mean], expected[mean], rtol=0, atol=(error + 1e-14) * size)
        offset = (error + 2 * EPS) * size
        atol = len(values) * offset**2 + 2 * offset * math.sqrt(len(values) * expected[squares])
        np.testing.assert_allclose(actual[squares], expected[squares], rtol=1e-12 + error, atol=atol)


def assert_equals_numpy(mean, logvar, thresholds, histogram=True):
    """Compare everything with what NumPy says of the KL values of (N, K) posteriors; returns it."""
    statistics = collapse_statistics(mean, logvar, thresholds, histogram=histogram)
    kl = kl_values(mean, logvar)
    np.testing.assert_array_equal(statistics.counts.cpu(), dense_counts(kl, thresholds))
    known = ~np.isnan(kl)
    np.testing.assert_array_equal(statistics.nan.cpu(), (~known).sum(0))
    np.testing.assert_array_equal(statistics.infinite.cpu(), np.isinf(kl).sum(0))
    np.testing.assert_array_equal(statistics.minimum.cpu(), kl.min(0, initial=np.inf, where=known))
    np.testing.assert_array_equal(statistics.maximum.cpu(), kl.max(0, initial=-np.inf, where=known))
    assert statistics.histogram.shape == (kl.shape[1], 642 if histogram else 0)
    # in the half types too, differences from the first value are summed in float
    value_errors = (0, 0, 1e-15) if mean.dtype == torch.float64 else (5e-7, 5e-7, 1e-6)
    for j, columns in enumerate(moment_columns(mean, logvar, kl)):
        if histogram:
            expected = np.histogram(columns[0], dense_edges())[0]
            np.testing.assert_array_equal(statistics.histogram[j].cpu(), expected)
        moments = statistics.moments[j].cpu().numpy()
        assert_near_moments(moments, dense_moments(*columns), columns, value_errors)
    return statistics


def assert_same_bits(actual, expected):
    for name in expected._fields:
        assert getattr(actual, name).dtype == getattr(expected, name).dtype, name
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name


# --- exactness ---


def thresholds_on_and_beside(kl, dtype):
    """Zero, the ends of the histogram, and 12 of the values, each with its neighbours in two formats."""
    values = np.unique(kl[(kl > 0) & np.isfinite(kl)])
    thresholds = [0.0, 2.0**-24, 2.0**16, 1e-300]
    for value in values[np.linspace(0, len(values) - 1, 12).astype(int)]:
        for number in (accumulated(dtype)(value), np.float64(value)):
            thresholds += [float(np.nextafter(number, number.dtype.type(end))) for end in (0, np.inf)]
        thresholds.append(float(value))
    assert len(thresholds) == 64
    return thresholds


@each_histogram
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_numpy_with_thresholds_on_values_and_beside(shape, dtype, histogram, device):
    posterior = make_posterior(shape, dtype, device)
    thresholds = thresholds_on_and_beside(kl_values(*posterior), dtype)
    assert_equals_numpy(*posterior, thresholds, histogram)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_histogram_of_values_on_its_edges_and_beside(dtype, device):
    edges = dense_edges()[1:-1]
    nearest = np.sqrt(2 * edges).astype(accumulated(dtype))
    beside = [np.nextafter(nearest, nearest.dtype.type(end)) for end in (0, np.inf)]
    mean = torch.from_numpy(np.concatenate([nearest, *beside]))[:, None].to(device)
    logvar = torch.zeros_like(mean)
    assert np.isin(edges, kl_values(mean, logvar)).sum() > 200
    assert_equals_numpy(mean, logvar, edges[::10].tolist()[:64])


@each_histogram
@each_dtype
def test_zero_is_counted_at_zero_and_the_least_above_it_is_not(dtype, histogram, device):
    mean = torch.zeros(5, 2, dtype=dtype, device=device)
    logvar = torch.full_like(mean, -0.0)
    mean[:3, 1] = torch.finfo(dtype).smallest_normal ** 0.5
    mean[0] = -0.0
    statistics = collapse_statistics(mean, logvar, [0.0, 5e-324], histogram=histogram)
    assert statistics.counts.tolist() == [[5, 5], [3, 3]]
    assert statistics.maximum.tolist() == [0.0, kl_values(mean, logvar).max()]
    assert statistics.nan.tolist() == [0, 0]


@each_histogram
@pytest.mark.parametrize(
    ("dtype", "means"),
    [(torch.float32, [2e-20, 1e-21, 3e-22, 1e-22]), (torch.float64, [2e-155, 1e-160, 3e-161, 1e-161])],
    ids=str,
)
def test_subnormal_values_are_not_zero(dtype, means, histogram, device):
    mean = torch.tensor(means, dtype=dtype, device=device)[:, None]
    logvar = torch.zeros_like(mean)
    truth = [float(mpmath.mpf(m) ** 2 / 2) for m in mean.flatten().tolist()]
    tiny, spacing = (
        torch.finfo(dtype).smallest_normal,
        torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps,
    )
    assert truth[1] < tiny
    np.testing.assert_allclose(kl_values(mean, logvar).flatten(), truth, rtol=1e-6, atol=spacing)
    between = [math.sqrt(a) * math.sqrt(b) for a, b in itertools.pairwise(truth)]
    statistics = assert_equals_numpy(mean, logvar, [0.0, *between, truth[0] * 2], histogram)
    assert statistics.counts.tolist() == [[0, 3, 2, 1, 4]]


@each_histogram
@each_dtype
def test_infinite_is_above_every_threshold_and_only_nan_is_unknown(dtype, histogram, device):
    mean, logvar = make_posterior((600, 9), dtype, device)
    for row, value in enumerate((math.nan, math.inf, -math.inf), start=1):
        mean[row, 0] = value
        logvar[300 + row, 1] = value
    mean[::7, 2] = -math.nan
    logvar[1::2, 3] = 1000.0  # the variance overflows
    mean[:, 4] = math.inf
    mean[0, 5], mean[599, 5] = (
        torch.finfo(dtype).max,
        math.inf,
    )  # in float16 the first is finite, as is its KL
    mean[:, 6], logvar[300:, 6] = math.nan, math.inf
    mean[:, 7], logvar[:, 7] = math.nan, -math.inf
    logvar[:599, 8] = -math.inf
    limits = torch.tensor([*THRESHOLDS, 1e300, math.inf], dtype=torch.float64, device=device)
    statistics = assert_equals_numpy(mean, logvar, limits, histogram)
    assert statistics.nan.tolist() == [1, 1, 86, 0, 0, 0, 600, 600, 0]
    overflows = dtype in (torch.bfloat16, torch.float32, torch.float64)
    assert statistics.infinite.tolist() == [2, 2, 0, 300, 600, 1 + overflows, 0, 0, 599]
    assert statistics.counts[:, -1].tolist() == [597, 597, 514, 300, 0, 599 - overflows, 0, 0, 1]
    assert statistics.moments[0].isnan().tolist() == [False] * 3 + [True] + [False] * 3  # ∞ and -∞
    assert statistics.moments[4, :5].tolist() == [600.0] + [math.inf] * 4
    assert statistics.moments[6:8].tolist() == [[0.0] * 7] * 2
    assert statistics.minimum[[4, 6]].tolist() == [math.inf] * 2
    assert statistics.maximum[[4, 6]].tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_variance_that_overflows_is_no_sign_of_collapse(dtype, device):
    logvar = torch.zeros(1000, 1, dtype=dtype, device=device)
    logvar[:600] = 90.0 if dtype == torch.float32 else 800.0
    statistics = collapse_statistics(torch.zeros_like(logvar), logvar, THRESHOLDS)
    assert statistics.counts.tolist() == [[400, 400, 400]]
    assert statistics.moments[0, :4].tolist() == [1000.0, math.inf, math.inf, 0.0]
    assert statistics.maximum.item() == math.inf


def test_moments_far_from_zero(device):
    mean, logvar = make_posterior((1500, 4), torch.float64, device)
    assert_equals_numpy(mean + 1e6, logvar, THRESHOLDS)


@pytest.mark.parametrize("size", [1e-24, 1e30])
def test_moments_whose_squares_do_not_fit_the_dtype(size, device):
    mean = make_posterior((1500, 4), torch.float64, device)[0].mul(size).float()
    mean[::2, 1] = 0.0
    mean[1::2, 2] = 1.0
    assert_equals_numpy(mean, torch.zeros_like(mean), THRESHOLDS)


def test_more_rows_than_sixteen_bits_count(device):
    mean = torch.zeros(140_000, 2, device=device)
    mean[:, 1] = 1
    thresholds = [0.0, 0.5, 0.501, 0.502]
    for histogram in (True, False):
        statistics = collapse_statistics(mean, torch.zeros_like(mean), thresholds, histogram=histogram)
        assert statistics.counts.tolist() == [[140_000] * 4, [0, 0, 140_000, 140_000]]
        assert statistics.moments.tolist() == [[140_000, 0, 0, 0, 0, 1, 0], [140_000, 0.5, 0, 1, 0, 1, 0]]
    bins = np.searchsorted(dense_edges(), [0, 0.5], side="right") - 1
    histogram = collapse_statistics(mean, torch.zeros_like(mean), thresholds).histogram
    assert histogram.nonzero().tolist() == [[0, bins[0]], [1, bins[1]]]
    assert histogram.amax(-1).tolist() == [140_000, 140_000]


def test_only_values_within_1e_6_of_a_threshold_are_counted_otherwise_than_in_truth(device):
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-4, 0.5, 3000)
    mean, logvar = (scale * torch.randn(2, 3000, generator=generator)).to(device)
    with mpmath.workdps(40):
        truth = np.array(
            [
                float((mpmath.mpf(m) ** 2 + mpmath.expm1(t) - mpmath.mpf(t)) / 2)
                for m, t in zip(mean.tolist(), logvar.tolist(), strict=True)
            ]
        )
    # each on one of the true values, which rounding puts on either side
    thresholds = np.sort(truth)[np.linspace(0, 2999, 64).astype(int)]
    counted = collapse_statistics(mean[None], logvar[None], thresholds.tolist()).counts.cpu().numpy() == 1
    otherwise = counted != (truth[:, None] < thresholds)
    distance = abs(truth[:, None] / thresholds - 1)
    assert distance[otherwise].max(initial=0) < 1e-6, (
        f"{otherwise.sum()} of {otherwise.size} decisions differ from the truth, "
        f"{(otherwise & (distance >= 1e-6)).sum()} of them 1e-6 or more away from the threshold"
    )
    assert otherwise.sum() <= 64


# --- the same bits, however it is computed ---


@pytest.fixture
def set_num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@each_histogram
@each_dtype
def test_threads_change_no_bit(dtype, histogram, set_num_threads):
    # several parts of the rows of one tile, and a few rows of several tiles
    for shape in ((5000, 3), (3, 2500, 9), (20, 600)):
        posterior = make_posterior(shape, dtype)
        set_num_threads(1)
        alone = collapse_statistics(*posterior, THRESHOLDS, histogram=histogram)
        set_num_threads(2)
        assert_same_bits(collapse_statistics(*posterior, THRESHOLDS, histogram=histogram), alone)


def test_repeats_bitwise(device):
    posterior = make_posterior((3000, 20), device=device)
    first = collapse_statistics(*posterior, THRESHOLDS)
    for _ in range(3):
        assert_same_bits(collapse_statistics(*posterior, THRESHOLDS), first)


@each_histogram
def test_order_and_repetition_of_thresholds_do_not_matter(histogram, device):
    posterior = make_posterior((300, 5), device=device)
    # many share a bin of the histogram, and some are outside of all
    thresholds = np.concatenate([np.geomspace(0.1, 0.2, 40), [0.0, 1e-9, 1e6], np.geomspace(1e-4, 1, 21)])
    expected = assert_equals_numpy(*posterior, thresholds.tolist(), histogram)
    order = np.random.default_rng(0).permutation(64)
    shuffled = collapse_statistics(*posterior, thresholds[order].tolist(), histogram=histogram)
    assert_same_bits(shuffled, expected._replace(counts=expected.counts[:, order]))
    repeated = np.repeat(np.arange(0, 64, 4), 4)
    twice = collapse_statistics(*posterior, thresholds[repeated].tolist(), histogram=histogram)
    assert_same_bits(twice, expected._replace(counts=expected.counts[:, repeated]))


@each_dtype
def test_the_histogram_changes_nothing_else(dtype, device):
    posterior = make_posterior((1300, 17), dtype, device)
    thresholds = np.geomspace(1e-8, 1e6, 64).tolist()
    expected = collapse_statistics(*posterior, thresholds)
    without = collapse_statistics(*posterior, thresholds, histogram=False)
    assert_same_bits(without, expected._replace(histogram=expected.histogram[:, :0]))


@each_dtype
def test_shards_merge(dtype, device):
    mean, logvar = make_posterior((2500, 5), dtype, device)
    mean[100:120, 1] = math.nan
    mean[::500, 2], logvar[0, 3] = math.inf, 1000.0
    whole = collapse_statistics(mean, logvar, THRESHOLDS)
    rtol = 1e-12 if dtype == torch.float64 else 1e-6
    for sizes in ((1250, 1250), (1, 0, 99, 20, 2380), (1023, 1025, 452)):
        shards = [
            collapse_statistics(*rows, THRESHOLDS)
            for rows in zip(mean.split(sizes), logvar.split(sizes), strict=True)
        ]
        counts, histogram, moments, minimum, maximum, infinite, nan = map(
            torch.stack, zip(*shards, strict=True)
        )
        merged = merge_moments(moments)
        means, squares = [0, 1, 3, 5], [2, 4, 6]
        torch.testing.assert_close(merged[:, means], whole.moments[:, means], rtol=rtol, atol=0)
        # the last latents' variances are next to 1: the rounding of that 1 is in their squared deviations
        offset = 4 * EPS * (len(mean) * whole.moments[:, squares]).sqrt()
        difference = (merged - whole.moments)[:, squares].nan_to_num(0).abs()  # ∞ - ∞
        assert (difference <= rtol * whole.moments[:, squares] + offset).all()
        assert torch.equal(merged[:, squares].isinf(), whole.moments[:, squares].isinf())
        added = whole._replace(
            counts=counts.sum(0),
            histogram=histogram.sum(0),
            minimum=minimum.amin(0),
            maximum=maximum.amax(0),
            infinite=infinite.sum(0),
            nan=nan.sum(0),
        )
        assert_same_bits(added, whole)


# --- shapes, layouts, thresholds ---


@each_histogram
@each_dtype
def test_no_rows_are_neutral(dtype, histogram, device):
    nothing = torch.empty(2, 0, 3, dtype=dtype, device=device)
    statistics = collapse_statistics(nothing, nothing, THRESHOLDS, histogram=histogram)
    assert statistics.counts.tolist() == [[[0] * 3] * 3] * 2
    assert statistics.histogram.tolist() == [[[0] * (642 if histogram else 0)] * 3] * 2
    assert statistics.moments.tolist() == [[[0.0] * 7] * 3] * 2
    assert statistics.minimum.tolist() == [[math.inf] * 3] * 2
    assert statistics.maximum.tolist() == [[-math.inf] * 3] * 2
    assert statistics.infinite.tolist() == statistics.nan.tolist() == [[0] * 3] * 2


@pytest.mark.parametrize("models", [(), (2,), (0,), (2, 3), (3, 0), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("core", [(5, 3), (1, 3), (5, 1), (0, 3), (5, 0)], ids=str)
def test_shapes_and_dtypes(models, core, device):
    mean, logvar = make_posterior((*models, *core), device=device)
    statistics = collapse_statistics(mean, logvar, THRESHOLDS, event_dim=1)
    for name, (size, dtype) in {
        "counts": ((3,), torch.int64),
        "histogram": ((642,), torch.int64),
        "moments": ((7,), torch.float64),
        "minimum": ((), torch.float64),
        "maximum": ((), torch.float64),
        "infinite": ((), torch.int64),
        "nan": ((), torch.int64),
    }.items():
        tensor = getattr(statistics, name)
        assert tensor.shape == (*models, core[1], *size), name
        assert (tensor.dtype, tensor.device) == (dtype, mean.device), name
    for index in np.ndindex(models):
        alone = assert_equals_numpy(mean[index], logvar[index], THRESHOLDS)
        assert_same_bits(type(statistics)(*(tensor[index] for tensor in statistics)), alone)


@pytest.mark.parametrize(("shape", "event_dim"), [((5, 2, 3, 4), 3), ((3, 5, 2, 4), 2), ((5, 6), 1)], ids=str)
def test_event_dim_says_which_dimensions_are_the_latents(shape, event_dim, device):
    posterior = make_posterior(shape, device=device)
    statistics = collapse_statistics(*posterior, THRESHOLDS, event_dim=event_dim)
    flat = [tensor.reshape(*shape[: len(shape) - event_dim], -1) for tensor in posterior]
    assert_same_bits(statistics, collapse_statistics(*flat, THRESHOLDS))
    for index in np.ndindex(*shape[: len(shape) - event_dim - 1]):
        alone = assert_equals_numpy(*(tensor[index] for tensor in flat), THRESHOLDS)
        assert_same_bits(type(statistics)(*(tensor[index] for tensor in statistics)), alone)


def test_the_readings_of_an_image_of_latents_are_in_the_error(device):
    posterior = make_posterior((16, 4, 8, 8), device=device)
    with pytest.raises(ValueError, match=r"\(16, 4, 8, 8\): give event_dim=3 .* or event_dim=1 .*movedim"):
        collapse_statistics(*posterior, THRESHOLDS)
    of_channels = [tensor.movedim(1, -1).flatten(0, -2) for tensor in posterior]
    assert assert_equals_numpy(*of_channels, THRESHOLDS).moments[:, 0].tolist() == [16 * 8 * 8] * 4


@each_histogram
@pytest.mark.parametrize("threads", [1, 2])
def test_models_with_more_columns_than_a_tile(threads, histogram, set_num_threads):
    """Columns left over by tile and vectors, in several models: what counts for one must not for the next."""
    set_num_threads(threads)
    mean, logvar = make_posterior((3, 8, 257))
    mean[::2], logvar[::2] = 0.0, 0.0
    thresholds = [0.0, *np.geomspace(0.1, 0.104, 6), 1e-9, 1e6]  # some share a bin, some are outside of all
    statistics = collapse_statistics(mean, logvar, thresholds, histogram=histogram)
    for i in range(3):
        alone = assert_equals_numpy(mean[i], logvar[i], thresholds, histogram)
        assert_same_bits(type(statistics)(*(tensor[i] for tensor in statistics)), alone)


@pytest.mark.parametrize("shape", [(1, 3, 30_000), (40, 3, 700)], ids=str)
def test_more_latents_than_the_work_space_holds(shape, device):
    mean, logvar = make_posterior(shape, device=device)
    statistics = collapse_statistics(mean, logvar, THRESHOLDS)
    for first in range(0, shape[-1], 6000):
        some = slice(first, first + 10)
        for i in (0, shape[0] // 2, shape[0] - 1):
            alone = assert_equals_numpy(mean[i, :, some], logvar[i, :, some], THRESHOLDS)
            assert_same_bits(type(statistics)(*(tensor[i, some] for tensor in statistics)), alone)


def strided(tensor):
    """The same values, transposed, with NaNs in between that no kernel may read."""
    tensor = tensor.mT.contiguous().mT
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1)[..., 0]


def expanded(tensor):
    """The first row everywhere, as log-variances of a linear VAE are."""
    return tensor[..., :1, :].expand(tensor.shape)


@each_dtype
@pytest.mark.parametrize("layouts", [(strided, strided), (expanded, expanded), (strided, expanded)])
def test_any_layout_of_the_inputs(layouts, dtype, device):
    posterior = make_posterior((2, 30, 5), dtype, device)
    posterior = [layout(tensor) for layout, tensor in zip(layouts, posterior, strict=True)]
    expected = collapse_statistics(*(tensor.contiguous() for tensor in posterior), THRESHOLDS)
    assert not expected.nan.any()
    assert_same_bits(collapse_statistics(*posterior, THRESHOLDS), expected)


@each_histogram
def test_thresholds_as_a_tensor_are_not_looked_at(histogram, device):
    posterior = make_posterior((50, 3), device=device)
    posterior[0][3] = math.inf
    limits = torch.tensor([math.nan, 0.5, -1.0, 0.0, math.inf, 1e300], dtype=torch.float64, device=device)
    gaps = torch.stack([limits, torch.ones_like(limits)], -1)[:, 0]
    for thresholds in (limits, gaps):
        counts = collapse_statistics(*posterior, thresholds, histogram=histogram).counts
        np.testing.assert_array_equal(
            counts[:, [1, 3]].cpu(), dense_counts(kl_values(*posterior), [0.5, 0.0])
        )
        assert counts[:, [0, 2, 4, 5]].tolist() == [[0, 0, 49, 49]] * 3  # what is infinite is below none


class Calls(TorchDispatchMode):
    """The operators that are called meanwhile."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def test_numbers_are_not_copied_to_a_tensor(device):
    """A copy to a GPU waits for it, and cannot be captured in a graph."""
    posterior = make_posterior((50, 3), device=device)
    with Calls() as calls:
        collapse_statistics(*posterior, THRESHOLDS)
    assert set(calls.names) <= {"aten::view", "lineavae::collapse_statistics"}


def test_numbers_and_a_tensor_give_the_same_bits(device):
    posterior = make_posterior((600, 5), device=device)
    values = np.geomspace(1e-8, 1e6, 64).tolist()
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    for histogram in (True, False):
        expected = collapse_statistics(*posterior, values, histogram=histogram)
        assert_same_bits(collapse_statistics(*posterior, tensor, histogram=histogram), expected)
    with pytest.raises(RuntimeError, match="thresholds must be numbers or a tensor, got both"):
        torch.ops.lineavae.collapse_statistics(*(t[None] for t in posterior), values, tensor, True)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@each_histogram
@pytest.mark.parametrize("as_tensor", [False, True], ids=["numbers", "tensor"])
def test_captured_in_a_cuda_graph(as_tensor, histogram, device):
    mean, logvar = make_posterior((3000, 20), device="cuda")
    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64, device="cuda") if as_tensor else THRESHOLDS
    collapse_statistics(mean, logvar, thresholds, histogram=histogram)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = collapse_statistics(mean, logvar, thresholds, histogram=histogram)
    for seed in (1, 2):  # each replay counts anew, what is in the tensors then
        for tensor, values in zip((mean, logvar), make_posterior(mean.shape, seed=seed), strict=True):
            tensor.copy_(values)
        if as_tensor:
            thresholds.mul_(2)
        graph.replay()
        assert_same_bits(captured, collapse_statistics(mean, logvar, thresholds, histogram=histogram))


@each_histogram
def test_without_thresholds(histogram, device):
    posterior = make_posterior((50, 3), device=device)
    expected = collapse_statistics(*posterior, THRESHOLDS, histogram=histogram)
    expected = expected._replace(counts=expected.counts[:, :0])
    for thresholds in ([], (), torch.empty(0, dtype=torch.float64, device=device)):
        statistics = collapse_statistics(*posterior, thresholds, histogram=histogram)
        assert_same_bits(statistics, expected)


# --- the raw operator, transforms, autocast ---


@each_histogram
@each_dtype
@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 0, 3), (2, 5, 0)], ids=str)
def test_opcheck_of_the_raw_operator(shape, dtype, histogram, device):
    tensor = torch.tensor(THRESHOLDS, dtype=torch.float64, device=device)
    for thresholds in ((list(THRESHOLDS), None), ([], tensor)):
        arguments = *make_posterior(shape, dtype, device), *thresholds, histogram
        torch.library.opcheck(torch.ops.lineavae.collapse_statistics.default, arguments)


def assert_vmap_equals_a_loop(in_dims, mean, logvar):
    """Compare with one call for each entry of the batch, bit for bit."""
    function = functools.partial(collapse_statistics, thresholds=THRESHOLDS)
    actual = torch.func.vmap(function, in_dims)(mean, logvar)
    size = next(t.shape[d] for t, d in zip((mean, logvar), in_dims, strict=True) if d is not None)
    for i in range(size):
        entry = [t if d is None else t.select(d, i) for t, d in zip((mean, logvar), in_dims, strict=True)]
        assert_same_bits(type(actual)(*(tensor[i] for tensor in actual)), function(*entry))


@pytest.mark.parametrize("models", [(), (3,)], ids=str)
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (-1, 1), (1, None), (None, -1)], ids=str)
def test_vmap(in_dims, models, device):
    mean, logvar = (
        tensor[0] if dim is None else tensor.movedim(0, dim)
        for tensor, dim in zip(make_posterior((4, *models, 30, 2), device=device), in_dims, strict=True)
    )
    assert_vmap_equals_a_loop(in_dims, mean, logvar)


@pytest.fixture
def no_fallback():
    """Without torch's loop over single calls, where an operator has no vmap rule."""
    torch._C._functorch._set_vmap_fallback_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)


@pytest.mark.usefixtures("no_fallback")
def test_vmap_in_vmap(device):
    mean, logvar = make_posterior((3, 4, 30, 2), device=device)
    function = functools.partial(collapse_statistics, thresholds=THRESHOLDS)
    inner = torch.func.vmap(function, (0, None))
    actual = torch.func.vmap(inner, (0, 1))(mean, logvar[0].movedim(0, 1)[:, :3])
    for i in range(3):
        for j in range(4):
            expected = function(mean[i, j], logvar[0, i])
            assert_same_bits(type(actual)(*(tensor[i, j] for tensor in actual)), expected)


def test_vmap_over_thresholds_is_refused(device):
    posterior = make_posterior((30, 2), device=device)
    thresholds = torch.rand(4, 3, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match="collapse_statistics: vmap over thresholds is not supported"):
        torch.func.vmap(collapse_statistics, (None, None, 0))(*posterior, thresholds)
    shared = torch.func.vmap(collapse_statistics, (0, 0, None))(
        *(tensor[None] for tensor in posterior), thresholds[0]
    )
    expected = collapse_statistics(*posterior, thresholds[0])
    assert_same_bits(type(shared)(*(tensor[0] for tensor in shared)), expected)


def assert_compiles(backend, thresholds, histogram, device):
    torch._dynamo.reset()
    function = functools.partial(collapse_statistics, thresholds=thresholds, histogram=histogram)
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for shape in ((5, 3), (300, 17), (2, 5, 3)):  # other sizes make them dynamic
        posterior = make_posterior(shape, device=device)
        assert_same_bits(compiled(*posterior), function(*posterior))


@each_histogram
def test_compiles_to_one_graph(histogram, device):
    assert_compiles("aot_eager", THRESHOLDS, histogram, device)
    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64, device=device)
    assert_compiles("aot_eager", thresholds, histogram, device)


@pytest.mark.slow
def test_compiles_with_inductor(device):
    assert_compiles("inductor", THRESHOLDS, True, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_that_of_float32(dtype, device):
    mean, logvar = make_posterior((300, 5), device=device)
    expected = collapse_statistics(mean, logvar, THRESHOLDS)
    expected_of_half = collapse_statistics(mean.to(dtype).float(), logvar, THRESHOLDS)
    with torch.autocast(device, dtype):
        assert_same_bits(collapse_statistics(mean, logvar, THRESHOLDS), expected)
        assert_same_bits(collapse_statistics(mean.to(dtype), logvar, THRESHOLDS), expected_of_half)


# --- not differentiable ---


def test_refuses_what_requires_grad(device):
    posterior = dict(zip(("mean", "logvar"), make_posterior((30, 2), device=device), strict=True))
    expected = collapse_statistics(**posterior, thresholds=THRESHOLDS)
    for name, tensor in posterior.items():
        leaf = tensor.clone().requires_grad_()
        message = f"collapse_statistics: {name} must not require grad: the statistics are not differentiable"
        with pytest.raises(ValueError, match=message):
            collapse_statistics(**posterior | {name: leaf}, thresholds=THRESHOLDS)
        with pytest.raises(ValueError, match=message):
            torch.func.grad(
                lambda t, name=name: collapse_statistics(
                    **posterior | {name: t}, thresholds=THRESHOLDS
                ).minimum.sum()
            )(tensor)
        with torch.no_grad():
            assert_same_bits(collapse_statistics(**posterior | {name: leaf}, thresholds=THRESHOLDS), expected)


def test_forward_mode_raises(device):
    mean, logvar = make_posterior((30, 2), device=device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(mean, torch.ones_like(mean))
        with pytest.raises(NotImplementedError):
            collapse_statistics(dual, logvar, THRESHOLDS)


# --- where no kernel serves a device ---


@pytest.fixture
def no_kernels(monkeypatch):
    monkeypatch.setattr(_ext, "has_kernel", lambda op, device_type: False)
    _dispatch._warn_reference.cache_clear()
    yield
    _dispatch._warn_reference.cache_clear()


@each_histogram
@each_dtype
def test_the_reference_stands_in_and_says_so_once(dtype, histogram, device, no_kernels):
    posterior = make_posterior((60, 5), dtype, device)
    posterior[0][2, 1], posterior[0][3, 2] = math.nan, math.inf
    # the reference's KL values are not the kernel's to the last bit: at 0 they are, and it counts its own
    kl = reference.gaussian_kl_per_dimension(*map(widen, posterior)).double().cpu().numpy()
    thresholds = [0.0, 1e6, *np.unique(kl[np.isfinite(kl)])[::6][:62].tolist()]
    with pytest.warns(RuntimeWarning, match=f"collapse_statistics has no native kernel for {device}"):
        statistics = collapse_statistics(*posterior, thresholds, histogram=histogram)
    # warnings are errors: a second one would end the test here
    models = collapse_statistics(*(t.expand(2, 60, 5) for t in posterior), thresholds, histogram=histogram)
    assert_same_bits(type(models)(*(tensor[1] for tensor in models)), statistics)
    np.testing.assert_array_equal(statistics.counts.cpu(), dense_counts(kl, thresholds))
    assert statistics.nan.tolist() == [0, 1, 0, 0, 0]
    assert statistics.infinite.tolist() == [0, 0, 1, 0, 0]
    for j, columns in enumerate(moment_columns(*(tensor.double() for tensor in posterior), kl)):
        moments = statistics.moments[j].cpu().numpy()
        assert_near_moments(moments, dense_moments(*columns), columns, (0, 0, 1e-15))
        assert (statistics.minimum[j], statistics.maximum[j]) == (columns[0].min(), columns[0].max())
        if histogram:
            expected = np.histogram(columns[0], dense_edges())[0]
            np.testing.assert_array_equal(statistics.histogram[j].cpu(), expected)
    nothing = torch.empty(0, 2, dtype=dtype, device=device)
    neutral = collapse_statistics(nothing, nothing, THRESHOLDS, histogram=histogram)
    assert neutral.moments.tolist() == [[0.0] * 7] * 2
    assert (neutral.minimum.tolist(), neutral.maximum.tolist()) == ([math.inf] * 2, [-math.inf] * 2)


# --- error messages ---

HERE = torch.zeros(5, 3)
IMAGE = torch.zeros(5, 3, 2, 2)
OF_MEAN = "logvar must have the dtype of mean,"
DTYPE_RULE = "must be float64, float32, bfloat16 or float16, got"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mean": [[0.0]]}, TypeError, "mean must be a torch.Tensor, got list"),
        ({"logvar": None}, TypeError, "logvar must be a torch.Tensor, got NoneType"),
        ({"mean": HERE.int()}, TypeError, f"mean {DTYPE_RULE} torch.int32"),
        ({"logvar": HERE > 0}, TypeError, f"logvar {DTYPE_RULE} torch.bool"),
        ({"logvar": HERE.double()}, TypeError, f"{OF_MEAN} torch.float32, got torch.float64"),
        ({"mean": HERE.half()}, TypeError, f"{OF_MEAN} torch.float16, got torch.float32"),
        ({"logvar": HERE.to("meta")}, ValueError, "logvar must be on the device of mean, {device}, got meta"),
        ({"mean": HERE[0], "logvar": HERE[0]}, ValueError, "mean must have shape (*models, N, K), got (3,)"),
        (
            {"mean": IMAGE, "logvar": IMAGE, "event_dim": 4},
            ValueError,
            "mean must have shape (*models, N, *event) with event_dim=4, got (5, 3, 2, 2)",
        ),
        ({"event_dim": 0}, ValueError, "event_dim must be at least 1, got 0"),
        ({"event_dim": True}, TypeError, "event_dim must be an int, got bool"),
        (
            {"mean": HERE[0, 0]},
            ValueError,
            "mean must have at least one dimension, the latents, got shape ()",
        ),
        ({"logvar": HERE[:1]}, ValueError, "logvar must have the shape of mean, (5, 3), got (1, 3)"),
        ({"mean": HERE[None]}, ValueError, "logvar must have the shape of mean, (1, 5, 3), got (5, 3)"),
        ({"thresholds": 0.1}, TypeError, "thresholds must be a sequence of numbers or a tensor, got float"),
        ({"thresholds": "0.1"}, TypeError, "thresholds must be a sequence of numbers or a tensor, got str"),
        ({"thresholds": b"1"}, TypeError, "thresholds must be a sequence of numbers or a tensor, got bytes"),
        ({"thresholds": {0.1}}, TypeError, "thresholds must be a sequence of numbers or a tensor, got set"),
        ({"thresholds": [0.1, "1"]}, TypeError, "every threshold must be a number, got str"),
        ({"thresholds": [True]}, TypeError, "every threshold must be a number, got bool"),
        ({"thresholds": [1j]}, TypeError, "every threshold must be a number, got complex"),
        ({"thresholds": [0.1, -0.1]}, ValueError, "every threshold must be finite and >= 0, got -0.1"),
        ({"thresholds": [math.nan]}, ValueError, "every threshold must be finite and >= 0, got nan"),
        ({"thresholds": [math.inf]}, ValueError, "every threshold must be finite and >= 0, got inf"),
        ({"thresholds": [0.1] * 65}, ValueError, "there must be at most 64 thresholds, got 65"),
        ({"thresholds": torch.ones(65).double()}, ValueError, "there must be at most 64 thresholds, got 65"),
        ({"thresholds": torch.ones(2)}, TypeError, "thresholds must be float64, got torch.float32"),
        ({"thresholds": HERE.double()}, ValueError, "thresholds must have shape (E,), got (5, 3)"),
        ({"thresholds": torch.ones(()).double()}, ValueError, "thresholds must have shape (E,), got ()"),
        (
            {"thresholds": torch.ones(2, device="meta").double()},
            ValueError,
            "thresholds must be on device {device}, got meta",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)  # fmt: skip
def test_error_messages(arguments, error, message, device):
    arguments = {"mean": HERE, "logvar": HERE, "thresholds": [0.1]} | arguments
    arguments = {
        name: value.to(device) if isinstance(value, torch.Tensor) and value.device.type == "cpu" else value
        for name, value in arguments.items()
    }
    with pytest.raises(error) as caught:
        collapse_statistics(**arguments)
    here = torch.empty(0, device=device).device
    assert str(caught.value) == f"collapse_statistics: {message.format(device=here)}"


# --- what it is for ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_zero_columns_of_a_linear_vae_are_collapsed_at_zero(dtype, device):
    generator = torch.Generator().manual_seed(0)
    model = LinearVAE(6, 5, generator=generator, dtype=dtype)
    zero = [1, 4]
    with torch.no_grad():
        model.weight[:, zero] = 0
    model.optimal_encoder_().to(device)
    x = torch.randn(200, 6, generator=generator, dtype=dtype).to(device)
    with torch.no_grad():
        statistics = collapse_statistics(*model.encode(x), [0.0])
    collapsed = statistics.counts[:, 0] == 200
    assert collapsed.tolist() == [j in zero for j in range(5)]
    assert statistics.maximum[zero].tolist() == [0.0, 0.0]


# --- edges and merging ---


def test_edges_are_those_of_float32_with_four_bits_of_mantissa():
    edges = histogram_edges()
    assert edges.dtype == torch.float64
    np.testing.assert_array_equal(edges, dense_edges())
    assert edges.shape == (643,)
    inner = edges[1:-1]
    assert (inner.diff() / inner[:-1]).max() == 1 / 16


samples = st.lists(
    st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 3), max_size=8).map(
        lambda rows: np.array(rows).reshape(-1, 3)
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(samples, st.floats(-1e6, 1e6))
def test_merged_moments_are_those_of_all_values(shards, offset):
    shards = [values + offset for values in shards]
    parts = torch.from_numpy(np.stack([dense_moments(*values.T) for values in shards]))
    together = np.concatenate(shards)
    columns = together.T
    merged = merge_moments(parts).numpy()
    size = abs(together).max(initial=1e-300)
    expected = dense_moments(*columns)
    assert merged[0] == expected[0]
    np.testing.assert_allclose(merged[1::2], expected[1::2], rtol=0, atol=1e-14 * size)
    np.testing.assert_allclose(merged[2::2], expected[2::2], rtol=1e-12, atol=1e-12 * size * 1e3)


def test_moments_merge_for_each_latent_apart():
    values = np.random.default_rng(0).normal(
        size=(3, 10, 2, 4, 3)
    )  # shards, rows, models, latents, variables

    def moments(rows):
        return [[dense_moments(*rows[:, i, j].T) for j in range(4)] for i in range(2)]

    merged = merge_moments(torch.tensor(np.array([moments(shard) for shard in values])))
    np.testing.assert_allclose(merged, moments(values.reshape(30, 2, 4, 3)), rtol=1e-13)
    one = torch.tensor(np.array(moments(values[0])))
    assert torch.equal(merge_moments(one[None]), one)
    assert torch.equal(merge_moments(torch.stack([one, torch.zeros_like(one)])), one)
    assert torch.equal(merge_moments(torch.stack([torch.zeros_like(one), one])), one)
