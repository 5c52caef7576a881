"""Write the tables of docs/speed.md and draw its pictures, from the results of the benchmarks.

    LINEAVAE_BENCH_OUT=new.json .venv/bin/pytest -c bench/pytest.ini bench
    python docs/speed.py new.json

Takes the results that are given into bench/results/amd-epyc-2-cores.json, benchmark by benchmark, in place
of earlier ones. What the tables have as rows is here and, for the targets, in bench/targets.json; a test
compares page and pictures with the results.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from lineavae._colours import BLACK, BLUE, GREEN, VERMILION
from lineavae._io import write_text
from lineavae._optional import make_figure
from lineavae.experiments import figures

DOCS = Path(__file__).parent
PAGE = DOCS / "speed.md"
RESULTS = DOCS.parent / "bench/results/amd-epyc-2-cores.json"
TARGETS = DOCS.parent / "bench/targets.json"
SETTINGS = {"1-thread": "1 thread", "2-threads": "2 threads"}  # and what they are called
MACHINE = "two cores of an AMD EPYC with AVX-512, torch 2.13"

Benchmarks = dict[str, dict[str, dict[str, Any]]]


class Row(NamedTuple):
    """Something that PyTorch does too: each kind of contender, of which the fastest counts."""

    what: str
    benchmark: str
    eager: tuple[str, ...]
    compiled: tuple[str, ...]


def accurate(what: str, benchmark: str) -> Row:
    return Row(what, benchmark, ("eager accurate",), ("compiled accurate",))


def plain(what: str, benchmark: str) -> Row:
    return Row(what, benchmark, ("eager",), ("compiled",))


STATISTICS = (
    ("eager, threshold by threshold", "eager, bucketize"),
    ("compiled, threshold by threshold", "compiled, broadcasting", "compiled, bucketize"),
)
LIKELIHOOD = (
    ("eager as written", "eager by rows", "eager by mse_loss"),
    ("compiled as written", "compiled by rows"),
)
PYTORCH = [
    plain("linear VAE, D = 784, K = 200, from moments", "linear_vae_elbo_from_moments[{}]"),
    plain("linear VAE, per sample, 1000 images", "linear_vae_elbo[{}]"),
    accurate("`gaussian_kl`, 60 000 x 200", "gaussian_kl[{}-gaussian_kl-60000]"),
    accurate("`reparameterized_kl`, 1000 x 200", "reparameterized_kl[{}-1000-usual]"),
    accurate("`reparameterized_kl`, 60 000 x 200", "reparameterized_kl[{}-60000-usual]"),
    Row("`gaussian_log_likelihood`, 1000 x 784", "gaussian_log_likelihood[{}-1000-784]", *LIKELIHOOD),
    Row(
        "`gaussian_log_likelihood_mean`, 1000 x 784",
        "gaussian_log_likelihood_mean[{}-1000-784]",
        ("eager by rows", "eager by mse_loss"),
        ("compiled by rows",),
    ),
    plain("`bernoulli_log_likelihood`, 10 000 x 784", "bernoulli_log_likelihood[{}-10000-784]"),
    plain("`expected_gaussian_log_likelihood`", "expected_gaussian_log_likelihood[{}]"),
    Row(
        "`expected_bernoulli_log_likelihood`",
        "expected_bernoulli_log_likelihood[{}-value-and-gradients]",
        ("eager mixture", "eager quadrature"),
        ("compiled mixture", "compiled quadrature"),
    ),
    Row("`collapse_statistics`, 60 000 x 200, one threshold", "collapse_statistics[{}-1]", *STATISTICS),
    Row("with a histogram and 32 thresholds", "collapse_statistics[{}-32]", *STATISTICS),
    Row(
        "256 linear VAEs at once, D = 64, K = 16, with Adam",
        "linear_vae_ascent[{}-256-64-16-100]",
        ("bmm", "autograd"),
        ("compiled",),
    ),
    plain("a step of the paper's MLP VAE, with Adam", "gaussian_vae_step[{}]"),
]

# What, the benchmark, which contender of ours, and the others by the names they have in the table
PEERS: list[tuple[str, str, str, dict[str, str]]] = [
    (
        "`PPCA.fit`, 5000 x 784, K = 50, float64",
        "ppca_fit[{}-float64]",
        "ours",
        {
            "scikit-learn full": "PCA, full",
            "scikit-learn covariance_eigh": "PCA, covariance_eigh",
            "scikit-learn arpack": "PCA, arpack",
            "scikit-learn randomized": "PCA, randomized",
            "scikit-learn IncrementalPCA": "IncrementalPCA",
        },
    ),
    (
        "float32, in which PCA then computes, and ours does not",
        "ppca_fit[{}-float32]",
        "ours",
        {"scikit-learn covariance_eigh": "PCA, covariance_eigh", "scikit-learn arpack": "PCA, arpack"},
    ),
    (
        "`PPCA.fit`, 1797 x 64, K = 10",
        "ppca_fit_digits[{}]",
        "ours",
        {
            "scikit-learn covariance_eigh": "PCA, covariance_eigh",
            "ppca-py": "ppca-py",
            "ppca-rs, 10 iterations": "ppca-rs, 10 iterations",
        },
    ),
    (
        "`PPCA.transform`, 60 000 x 784",
        "ppca[{}-transform]",
        "ours",
        {"scikit-learn PCA": "PCA", "scikit-learn IncrementalPCA": "IncrementalPCA"},
    ),
    ("`PPCA.score`, 60 000 x 784", "ppca[{}-score]", "ours", {"scikit-learn PCA": "PCA"}),
    (
        "`Moments.from_data`, 60 000 x 784",
        "moments[{}]",
        "ours",
        {"NumPy cov": "NumPy, mean and cov", "scikit-learn EmpiricalCovariance": "EmpiricalCovariance"},
    ),
    (
        "`Moments.update`, 1000 x 784",
        "moments_update[{}]",
        "ours",
        {"scikit-learn IncrementalPCA": "IncrementalPCA.partial_fit, K = 50"},
    ),
    (
        "loss of a VAE, 784-400-20, and its gradients",
        "vae_loss[{}-784-400-20-128]",
        "ours",
        {
            "Pyro": "Pyro, TraceMeanField_ELBO",
            "Pyro, without its checks": "the same without its checks",
            "pythae": "pythae",
            "eager as written": "eager PyTorch",
        },
    ),
    (
        "the same, 64-64-10",
        "vae_loss[{}-64-64-10-128]",
        "ours",
        {
            "Pyro": "Pyro, TraceMeanField_ELBO",
            "Pyro, without its checks": "the same without its checks",
            "pythae": "pythae",
            "eager as written": "eager PyTorch",
        },
    ),
    (
        "`gaussian_kl`, 60 000 x 200, and its gradients",
        "gaussian_kl[{}-gaussian_kl-60000]",
        "ours",
        {"torch.distributions": "torch.distributions, kl_divergence"},
    ),
    (
        "`mutual_information` of 256 of 60 000 rows",
        "mutual_information[{}]",
        "ours",
        {"eager differences": "differences of pairs", "eager products": "plain products"},
    ),
    (
        '`method="minibatch"`, 60 000 rows',
        "minibatch_mutual_information[{}]",
        "ours",
        {
            "calc_mi": "`calc_mi` of He et al.",
            "minibatch weighted sampling": "minibatch weighted sampling",
        },
    ),
    (
        "collapse of a parquet file, 1 000 000 x 30",
        "formats[{}-wide]",
        "ours",
        {"polars": "polars, lazy and streaming", "pyarrow and NumPy": "pyarrow and NumPy"},
    ),
    (
        "of an h5ad file of the same size",
        "formats[{}-h5ad]",
        "ours",
        {"anndata and NumPy": "anndata and NumPy"},
    ),
    (
        "`lineavae collapse`, parquet, as processes",
        "formats[{}-wide]",
        "ours, process",
        {"polars, process": "polars", "pyarrow and NumPy, process": "pyarrow and NumPy"},
    ),
    (
        "h5ad, as processes",
        "formats[{}-h5ad]",
        "ours, process",
        {"anndata and NumPy, process": "anndata and NumPy"},
    ),
]

# What the chart at the top shows: a line each, of one thread
CHART = [
    ("collapse statistics, 32 thresholds", "collapse_statistics[{}-32]"),
    ("KL, 60 000 x 200", "gaussian_kl[{}-gaussian_kl-60000]"),
    ("posterior samples and KL", "reparameterized_kl[{}-60000-usual]"),
    ("expected Bernoulli likelihood", "expected_bernoulli_log_likelihood[{}-value-and-gradients]"),
    ("256 linear VAEs at once", "linear_vae_ascent[{}-256-64-16-100]"),
    ("collapse of a parquet file", "formats[{}-wide]"),
    ("a small VAE's loss", "vae_loss[{}-64-64-10-128]"),
    ("linear VAE's ELBO, from moments", "linear_vae_elbo_from_moments[{}]"),
    ("Gaussian likelihood", "gaussian_log_likelihood[{}-1000-784]"),
    ("a step of an MLP VAE", "gaussian_vae_step[{}]"),
    ("PPCA.fit, 5000 x 784", "ppca_fit[{}-float64]"),
]
# Of them, which contenders are others than PyTorch, and what they are called
CHART_PEERS = {
    "formats[{}-wide]": {"polars": "polars", "pyarrow and NumPy": "NumPy"},
    "vae_loss[{}-64-64-10-128]": {"Pyro": "Pyro", "pythae": "pythae"},
    "ppca_fit[{}-float64]": {"scikit-learn covariance_eigh": "scikit-learn"},
}

AXES = {
    "samples": ("samples N", "A step of a linear VAE", "D = 256, K = 32"),
    "features": ("features D", "A step from moments", "K = 50"),
    "latents": ("latents K", "A step from moments", "D = 512"),
    "samples of PPCA": ("samples N", "PPCA.fit", "D = 256, K = 20, float64"),
    "thresholds": ("thresholds", "Collapse statistics", "20 000 x 100"),
    "models": ("models", "20 steps of Adam", "D = 64, K = 16"),
}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def take(document: dict[str, Any], new: dict[str, Any]) -> None:
    """Take new results, of the same processor, in place of those of the same name, or behind all."""
    cpu, other = (each["machine"]["cpu"] for each in (document, new))
    if cpu != other:
        raise ValueError(f"{RESULTS.name} is of {cpu}, the new results are of {other}")
    by_name = {each["name"]: each for each in (*document["benchmarks"], *new["benchmarks"])}
    document["benchmarks"] = list(by_name.values())


def contenders_by_name(document: dict[str, Any]) -> Benchmarks:
    return {each["name"].removeprefix("test_"): each["contenders"] for each in document["benchmarks"]}


def milliseconds(contenders: dict[str, dict[str, Any]], names: Iterable[str]) -> float:
    """Give the time of the fastest of some."""
    return min(contenders[name]["milliseconds"] for name in names)


def ratios(
    benchmarks: Benchmarks, benchmark: str, names: Sequence[str], ours: str = "ours"
) -> list[float | None]:
    """Say how many times as long as ours the fastest of some takes, in each setting that was measured."""
    return [
        milliseconds(contenders, names) / contenders[ours]["milliseconds"]
        if (contenders := benchmarks.get(benchmark.format(setting), {})).keys() >= {ours, *names}
        else None
        for setting in measured(benchmarks)
    ]


def measured(benchmarks: Benchmarks) -> list[str]:
    """Name the settings that there are results of."""
    return [setting for setting in SETTINGS if any(f"[{setting}" in name for name in benchmarks)]


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pytorch_table(benchmarks: Benchmarks) -> str:
    rows = []
    for row in PYTORCH:
        kinds = (ratios(benchmarks, row.benchmark, names) for names in (row.eager, row.compiled))
        rows.append([row.what, *(", ".join(map(number, values)) for values in kinds)])
    return table(["forward and backward", "eager", "`torch.compile`"], rows)


def peers_table(benchmarks: Benchmarks) -> str:
    rows = []
    for what, benchmark, ours, others in PEERS:
        for contender, name in others.items():
            values = ratios(benchmarks, benchmark, [contender], ours)
            rows.append([what, name, *map(number, values)])
            what = ""
    return table(["ours", "beside", *(SETTINGS[setting] for setting in measured(benchmarks))], rows)


def reached(target: dict[str, Any], benchmarks: Benchmarks) -> list[float | None]:
    """Give what a target is about, by setting: the ratio of times, one way or the other, or of rates."""
    ours, beside = target.get("ours", "ours"), target["beside"]
    found = ratios(benchmarks, target["benchmark"], beside, ours)
    if target["measure"] == "times as fast":
        return found
    if target["measure"] == "of its time":
        return [None if value is None else 1 / value for value in found]
    contenders = benchmarks[target["benchmark"].format(measured(benchmarks)[0])]
    work = contenders[ours]["flops"] / contenders[beside[0]]["flops"]
    return [None if value is None else value * work for value in found]


def is_reached(target: dict[str, Any], value: float) -> bool:
    """Compare what the page says."""
    said = float(number(value))
    return said <= target["target"] if target["measure"] == "of its time" else said >= target["target"]


def targets_table(benchmarks: Benchmarks, targets: Sequence[dict[str, Any]]) -> str:
    rows = []
    for target in targets:
        values = reached(target, benchmarks)
        met = [is_reached(target, value) for value in values if value is not None]
        bound = "at most" if target["measure"] == "of its time" else "at least"
        verdict = "yes" if all(met) else f"{'in part' if any(met) else 'no'}: {target.get('why')}"
        asked = f"{bound} {target['target']:g} {target['measure']}"
        rows.append([target["what"], target["name"], asked, *map(number, values), verdict])
    settings = [SETTINGS[setting] for setting in measured(benchmarks)]
    return table(["ours", "beside", "target", *settings, "reached"], rows)


def tables(document: dict[str, Any], targets: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Make what the page has between its marks, by their names."""
    benchmarks = contenders_by_name(document)
    return {
        "pytorch": pytorch_table(benchmarks),
        "peers": peers_table(benchmarks),
        "targets": targets_table(benchmarks, targets),
    }


def marked(page: str) -> Iterator[re.Match[str]]:
    return re.finditer(r"(<!-- (\w+): docs/speed.py -->\n)(.*?)(\n<!-- end -->)", page, re.DOTALL)


def fill(page: str, found: dict[str, str]) -> str:
    """Write the tables between their marks."""
    for match in list(marked(page)):
        page = page.replace(match[0], f"{match[1]}\n{found[match[2]]}\n{match[4]}")
    return page


def chart_points(benchmarks: Benchmarks) -> list[tuple[str, dict[str, float]]]:
    """Give the lines of the chart: how many times as long as ours each other takes."""
    pytorch = {row.benchmark: row for row in PYTORCH}
    lines = []
    for what, benchmark in CHART:
        points = {}
        if benchmark in pytorch:
            row = pytorch[benchmark]
            points = {"eager PyTorch": row.eager, "torch.compile": row.compiled}
        others = CHART_PEERS.get(benchmark, {})
        points |= {name: (contender,) for contender, name in others.items()}
        values = {name: ratios(benchmarks, benchmark, of)[0] for name, of in points.items()}
        lines.append((what, {name: value for name, value in values.items() if value is not None}))
    return lines


def scaling_curves(benchmarks: Benchmarks) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Give milliseconds by size, of each contender along each axis."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for axis in AXES:
        start = f"scaling[1-thread-{axis}] at "
        for name in sorted(benchmarks, key=lambda name: int(name.partition(" at ")[2] or 0)):
            if name.startswith(start):
                for contender, result in benchmarks[name].items():
                    curve = found.setdefault(axis, {}).setdefault(contender, [])
                    curve.append((int(name.removeprefix(start)), result["milliseconds"]))
    return found


def checksum(drawn: object) -> str:
    """Name what a picture was drawn from."""
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16]


def draw_chart(lines: list[tuple[str, dict[str, float]]]) -> None:
    figure, (axes,) = figures.make_panels(
        "Time of others over ours: right of the line, ours is faster", 1, f"One thread; {MACHINE}"
    )
    figure.set_size_inches(8, 4.6)
    colours = {"eager PyTorch": VERMILION, "torch.compile": BLUE}
    axes.axvline(1, color=BLACK, linewidth=1)
    for place, (_, points) in enumerate(reversed(lines)):
        values = 1, *points.values()
        axes.plot([min(values), max(values)], [place, place], color="0.8", linewidth=2, zorder=1)
        for name, value in points.items():
            axes.plot(value, place, "o", color=colours.get(name, GREEN), markersize=7)
        for names, value in label_peers({n: v for n, v in points.items() if n not in colours}):
            side = 1 if value == max(values) else -1  # the slowest's name is on its right
            axes.annotate(
                names,
                (value, place),
                xytext=(7 * side, 0),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=8,
            )
    axes.set_xlim(0.2, 400)
    axes.set_yticks(range(len(lines)), [what for what, _ in reversed(lines)])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("times as long as ours, on a logarithmic scale")
    names = [*colours, "other packages"]
    marks = [Line2D([], [], marker="o", linestyle="", color=colours.get(name, GREEN)) for name in names]
    axes.legend(marks, names, frameon=False, fontsize=9, loc="lower right")
    figures.save(figure, DOCS / "speed.png", checksum(lines))


def label_peers(points: dict[str, float]) -> list[tuple[str, float]]:
    """Give names and where they stand; one place for all where they are too near each other."""
    if len(points) > 1 and max(points.values()) < 1.5 * min(points.values()):
        return [(", ".join(points), max(points.values()))]
    return list(points.items())


def draw_scaling(curves: dict[str, dict[str, list[tuple[int, float]]]]) -> None:
    figure = make_figure(figsize=(11, 6.4))
    figure.suptitle("How cost grows", x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.supxlabel(f"One thread; {MACHINE}", x=0.01, ha="left", fontsize=8, color="0.35")
    panels = figure.subplots(2, 3).flat
    for axes, (axis, of_contenders) in zip(panels, curves.items(), strict=True):
        label, what, sizes = AXES[axis]
        for name, curve in of_contenders.items():
            colour = BLUE if name == "ours" else VERMILION
            axes.loglog(*zip(*curve, strict=True), "o-", color=colour, label=name, markersize=4)
        ticks = [size for size, _ in of_contenders["ours"]]
        axes.set_xticks(ticks, [f"{size:,}".replace(",", " ") for size in ticks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for axis_of_panel in (axes.xaxis, axes.yaxis):
            axis_of_panel.set_minor_locator(NullLocator())
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_title(f"{what}; {sizes}", fontsize=10, loc="left")
        axes.set_xlabel(label)
        axes.set_ylabel("milliseconds")
        axes.legend(frameon=False, fontsize=8)
    figures.save(figure, DOCS / "scaling.png", checksum(curves))


def main() -> None:
    document = read(RESULTS)
    for path in sys.argv[1:]:
        take(document, read(Path(path)))
    write_text(RESULTS, json.dumps(document, indent=1) + "\n")
    benchmarks = contenders_by_name(document)
    write_text(PAGE, fill(PAGE.read_text(encoding="utf-8"), tables(document, read(TARGETS)["targets"])))
    draw_chart(chart_points(benchmarks))
    draw_scaling(scaling_curves(benchmarks))


if __name__ == "__main__":
    main()
