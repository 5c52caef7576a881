from __future__ import annotations

import io
import json
import re
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from lineavae.collapse import CollapseComparison, CollapseReport, compare
from lineavae.collapse.comparison import _fisher
from lineavae.ops import collapse_statistics, histogram_edges


def report_of(kl: NDArray[np.float64], threshold: float = 0.01) -> CollapseReport:
    """The report of posteriors with these KL, (N, K): of variance 1 and mean √(2 KL)."""
    mean = torch.from_numpy(np.sqrt(2 * kl))
    return CollapseReport(collapse_statistics(mean, torch.zeros_like(mean), [threshold]), [threshold])


def with_below(num_below: list[int], num_samples: int, threshold: float = 0.01) -> CollapseReport:
    """The report of latents with so many samples below 0.01."""
    return report_of(np.where(np.arange(num_samples)[:, None] < num_below, 0.005, 1.0), threshold)


def in_a_bin(count: int) -> NDArray[np.float64]:
    """Values in the histogram's bin around 0.0102."""
    edges = histogram_edges().numpy()
    end = np.searchsorted(edges, 0.0102)
    return np.linspace(edges[end - 1] * 1.001, edges[end] * 0.999, count)


@pytest.fixture(scope="module")
def comparison() -> CollapseComparison:
    """Of 400 and 500 samples; latent 1 dies and 2 wakes, 3 dies by a few samples alone; then all stay."""
    before = with_below([0, 100, 399, 395, 0], 400)
    after = with_below([0, 499, 100, 496, 10], 500)
    return compare({"epoch=2": before, "epoch=10": after, "epoch=20": after})


def test_what_died_and_woke(comparison: CollapseComparison) -> None:
    change, nothing = comparison.changes
    assert (change.before, change.after) == ("epoch=2", "epoch=10")
    assert np.flatnonzero(change.died).tolist() == [1, 3]
    assert np.flatnonzero(change.woke).tolist() == [2]
    assert np.isnan(change.p_value).tolist() == [True, False, False, False, True]
    assert change.p_value[[1, 2]].max() < 1e-100
    assert change.p_value[3] == 1  # five times more than one half
    assert not (nothing.died | nothing.woke).any()
    text = [" ".join(line.split()) for line in str(comparison).splitlines()]
    assert "epoch=2 to epoch=10 1 died: 1" in text
    assert "1 may have died: 3" in text
    assert "1 woke: 2" in text
    assert "epoch=10 to epoch=20 none died or woke" in text


def doubled_tail(below: tuple[int, int], sizes: tuple[int, int]) -> float:
    table = [[count, size - count] for count, size in zip(below, sizes, strict=True)]
    return 2 * min(fisher_exact(table, alternative=side).pvalue for side in ("less", "greater"))


@pytest.mark.parametrize(
    ("below", "sizes"),
    [
        ((393, 400), (400, 400)),
        ((999, 970), (1000, 1000)),
        ((50, 2000), (60, 2000)),
        ((4995, 4940), (5000, 5000)),
    ],
)
def test_the_p_value_is_that_of_fishers_exact_test(below: tuple[int, int], sizes: tuple[int, int]) -> None:
    reports = [with_below([count, 0], size) for count, size in zip(below, sizes, strict=True)]
    change = compare(reports, delta=0.011).changes[0]
    assert (change.died | change.woke).tolist() == [True, False]
    assert change.p_value[0] == pytest.approx(min(1, 2 * doubled_tail(below, sizes)), rel=1e-9)


def test_of_counts_in_bounds_the_largest_p_value_counts() -> None:
    """At an ε that is no threshold, somewhere in a bin that holds samples."""
    inside = in_a_bin(10)
    kl = [np.concatenate([np.full(n, 0.001), inside, np.full(390 - n, 1.0)])[:, None] for n in (370, 385)]
    one, other = (report_of(values, 0.5).at(0.0102, 0.1) for values in kl)
    assert [tuple(int(bound[0]) for bound in at._below) for at in (one, other)] == [(370, 380), (385, 395)]
    every = [
        2
        * min(
            fisher_exact([[a, 400 - a], [b, 400 - b]], alternative=side).pvalue
            for side in ("less", "greater")
        )
        for a in range(370, 381)
        for b in range(385, 396)
    ]
    found = _fisher(one, other, np.array([True]))
    assert found == pytest.approx([min(1, max(every))], rel=1e-9)


def test_models_that_are_the_same_rarely_differ() -> None:
    """3000 latents with 0.99 of the samples below ε, of two samples, and of one and the same in part."""
    generator = np.random.default_rng(0)
    draws = np.where(generator.random((3, 500, 3000)) < 0.99, 0.001, 1.0)
    latents = np.ones(3000, bool)
    one, other, near = (
        report_of(kl).at() for kl in (draws[0], draws[1], np.r_[draws[0][:450], draws[2][450:]])
    )
    for level in (0.05, 0.2):
        error = 3 * np.sqrt(level * (1 - level) / 3000)
        assert (_fisher(one, other, latents) <= level).mean() < level + error
        assert (_fisher(one, near, latents) <= level).mean() < 0.2 * level
    assert (_fisher(one, other, latents) <= 0.2).mean() > 0.02


def test_models_of_different_sizes_have_a_table_and_curves() -> None:
    found = compare({"a": with_below([0, 400], 400), "b": with_below([0, 300, 300], 300)})
    text = [" ".join(line.split()) for line in str(found).splitlines()]
    assert text[0] == "2 models, 2 to 3 latents, N = 300 to 400, at ε = 0.01, δ = 0.01"
    assert "model samples latents collapsed live active mean KL" in text
    assert "a to b not matched: 2 latents and 3" in text
    assert found.to_dict()["changes"] == [{"before": "a", "after": "b", "died": None, "woke": None}]
    assert len(found.plot_curves().axes[0].lines) == 3
    with pytest.raises(ValueError, match="must have the same number of latents, got 2 of a, 3 of b"):
        found.plot_heat_map()


def test_table(comparison: CollapseComparison) -> None:
    frame = comparison.to_dataframe()
    assert frame.index.tolist() == ["epoch=2", "epoch=10", "epoch=20"]
    assert frame["num_samples"].tolist() == [400, 500, 500]
    assert frame["num_collapsed"].tolist() == [1, 2, 2]
    assert frame["num_undecided"].tolist() == [0, 0, 0]
    assert frame["num_live"].tolist() == [4, 3, 3]
    expected = [0.005 * n + 400 - n for n in (0, 100, 399, 395, 0)]
    assert frame["mean_kl"].iloc[0] == pytest.approx(sum(expected) / 400, rel=1e-12)
    text = [" ".join(line.split()) for line in str(comparison).splitlines()]
    assert f"epoch=2 400 1 4 2 {sum(expected) / 400:.5g}" in text
    assert frame["num_active"].tolist() == [2, 3, 3]  # of variance p (1 - p) (√2 - 0.1)²


def test_names_are_printed_as_they_are() -> None:
    report = with_below([9, 0], 9)
    names = ["run[1]", "[bold]", "a[/b]", ":smile:"]
    comparison = compare(dict.fromkeys(names, report))
    for text in (str(comparison), comparison._repr_html_()):
        assert all(name in text for name in names)
        assert "[bold] to a[/b]" in text


def test_undecided_and_open_are_shown_where_there_are_any() -> None:
    kl = np.stack([in_a_bin(400), np.full(400, 0.3)], -1)
    lines = str(compare([report_of(kl, 0.5)], epsilon=0.0102)).splitlines()
    assert lines[2].split() == ["model", "collapsed", "undecided", "live", "active", "mean", "KL"]
    text = [" ".join(line.split()) for line in str(compare([report_of(kl[:, 1:])])).splitlines()]
    assert text[0].startswith("1 model, 1 latents")
    assert re.fullmatch(r"0 0 \? 0 0\.3", text[3])
    assert text[-1] == "live: above the largest gap of critical ε, ? where none is clear"
    text = str(compare([report_of(kl[:, 1:]), report_of(kl + 1)])).splitlines()
    assert (
        "live: above the largest gap of critical ε, all where none is below 1, ? where none is clear" in text
    )


def test_document_is_strict_and_has_every_report(comparison: CollapseComparison) -> None:
    document = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert (document["format"], document["schema"]) == ("lineavae.collapse-comparison", 1)
    for name, at in comparison.models.items():
        assert document["models"][name] == at.to_dict()
    died, woke = document["changes"][0]["died"], document["changes"][0]["woke"]
    assert [latent["latent"] for latent in died] == [1, 3]
    assert woke == [{"latent": 2, "p_value": comparison.changes[0].p_value[2]}]
    assert document["changes"][1]["died"] == []


def test_curves(comparison: CollapseComparison) -> None:
    (axes,) = comparison.plot_curves().axes
    for line, (name, at) in zip(axes.lines, comparison.models.items(), strict=False):
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_ydata(), at.collapse_curve().lower)


def test_heat_map(comparison: CollapseComparison) -> None:
    axes, bar = comparison.plot_heat_map().axes
    (image,) = axes.images
    order = [int(label.get_text()) for label in axes.get_yticklabels()]
    critical = np.stack([at.critical_epsilon.estimate for at in comparison.models.values()], -1)
    np.testing.assert_array_equal(image.get_array(), critical[order])
    assert order == np.argsort(-critical[:, -1], kind="stable").tolist()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["epoch=2", "epoch=10", "epoch=20"]
    assert bar.lines[0].get_ydata() == [0.01, 0.01]


@pytest.mark.parametrize("value", [0.0, 1e-12, 1e7, np.inf, np.nan])
@pytest.mark.parametrize("num_models", [1, 7])
def test_draws_anything(value: float, num_models: int) -> None:
    report = report_of(np.full((5, 21), value))
    found = compare({f"${index}": report for index in range(num_models)}, epsilon=0.0)
    for figure in (found.plot_curves(), found.plot_heat_map()):
        figure.savefig(io.BytesIO(), dpi=20)


@pytest.mark.parametrize(
    ("reports", "error", "message"),
    [
        ({}, ValueError, "reports must be at least one, got none"),
        ([], ValueError, "reports must be at least one, got none"),
        ({"a": 1}, TypeError, "reports must be CollapseReport by str, got int by str"),
        ({1: with_below([0], 9)}, TypeError, "got CollapseReport by int"),
        (with_below([0], 9), TypeError, "must be a mapping or a sequence, got CollapseReport"),
    ],
)
def test_errors(reports: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"compare: .*{message}"):
        compare(reports)  # type: ignore[arg-type]


def test_figures_are_as_journals_take_them(comparison: CollapseComparison) -> None:
    file = io.BytesIO()
    comparison.plot_curves().savefig(file, format="pdf")
    assert b"/TrueType" in file.getvalue() or b"/CIDFontType2" in file.getvalue()
    assert b"/Type3" not in file.getvalue()
    png = io.BytesIO()
    comparison.plot_curves().savefig(png, format="png")
    assert int.from_bytes(png.getvalue()[16:20], "big") == 200 * 6.4


def test_needs_pandas(comparison: CollapseComparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lineavae\[dataframe\]'"):
        comparison.to_dataframe()
