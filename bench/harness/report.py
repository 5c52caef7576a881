"""Results as tables for people, in Markdown."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.measure import GRAPH, PROCESS, Result

# Per unit: what is counted, and the benchmark and contender that measure the most of it a machine can do
CEILINGS = {
    "GB/s": ("bytes", "test_copy", "copy"),
    "GFLOP/s": ("flops", "test_matrix_product", "matrix product"),
}

# What a kernel that moves this much must reach of a copy; what moves less is as much about launches.
TARGET = 0.85
TARGET_BYTES = 64e6
YARDSTICKS = ("copy", "read", "write")  # of bench/kernels.py, which have none

# Hardware counters, and what they are called in the table
COUNTERS = {
    "gpu__time_duration.sum": "time",
    "dram__bytes.sum": "DRAM",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM, % of peak",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue slots, % busy",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps, % of most",
    "smsp__inst_executed.sum": "instructions",
    "sm__inst_executed_pipe_xu.sum": "of them special",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "bank conflicts",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "warps that wait for memory",
}

READING = """\
Times are medians, with the distance between the quartiles; steps are forward and backward. "/ ours" is the
time of a contender over that of ours, in a CUDA graph over ours in a CUDA graph. GB/s counts what forward and
backward must each read and write, once; GFLOP/s counts the matrix products. Shares are of a large copy and of
a large matrix product, measured in the same run. MB is the most memory that a call held at once beyond its
inputs, results and gradients included. Every contender works in full float32: TF32 is off.
A figure in a CUDA graph is of a graph that makes many calls in turn, divided."""

READING_KERNELS = f"""\
Forward and backward apart, many calls in one CUDA graph. Cold inputs were not in the L2 cache, warm ones
were; "again" is a second run of the same. MB is the least that a part must move. Where that is
{TARGET_BYTES / 1e6:.0f} or more there is a target: {TARGET:.0%} of the rate of the copy in the same table.
The kernels' own times are CUPTI's."""


def rate(result: Result, amount: str) -> float | None:
    """Return the "bytes" or "flops" of a contender in 1e9 per second, where it counts them."""
    return result[amount] / result["milliseconds"] * 1e-6 if result.get(amount) else None


def ours_beside(name: str, contenders: Mapping[str, Result]) -> Result:
    """Return what a contender's ratio is to: ours, in a CUDA graph or process if it is; empty if not run."""
    kind = next((kind for kind in (GRAPH, PROCESS) if name.endswith(kind)), "")
    return contenders.get(f"ours{kind}", {})


def ceilings(benchmarks: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Find what each setting can do at best, by unit."""
    found: dict[str, dict[str, float]] = {}
    for benchmark in benchmarks:
        for unit, (amount, name, contender) in CEILINGS.items():
            if benchmark["name"].startswith(f"{name}["):
                best = rate(benchmark["contenders"][contender], amount)
                if best is not None:
                    found.setdefault(benchmark["setting"], {})[unit] = best
    return found


def benchmark_table(benchmarks: Sequence[dict[str, Any]]) -> str:
    """Make a row for each contender of each benchmark."""
    best = ceilings(benchmarks)
    rows = []
    for benchmark in benchmarks:
        title = f"`{benchmark['name'].removeprefix('test_')}`"
        for name, result in benchmark["contenders"].items():
            ours = ours_beside(name, benchmark["contenders"])
            rows.append([title, name, *figures(result, ours, best.get(benchmark["setting"], {}))])
            title = ""
    heads = ["benchmark", "contender", "ms", "± ms", "/ ours"]
    return table([*heads, "MB", "GB/s", "of copy", "GFLOP/s", "of product"], rows)


def figures(result: Result, ours: Result, ceiling: dict[str, float]) -> list[str]:
    """Fill a row's cells: time, spread, ratio to ours, memory, and rates with shares of the ceiling."""
    if "error" in result:
        return [str(result["error"]), "", "", "", "", "", "", ""]
    cells = [f"{result['milliseconds']:.4g}", f"{result['iqr_milliseconds']:.2g}"]
    has_ratio = "milliseconds" in ours and ours is not result
    cells.append(f"{result['milliseconds'] / ours['milliseconds']:.2f}" if has_ratio else "")
    memory = result.get("peak_bytes")
    cells.append("" if memory is None else f"{memory / 1e6:.1f}")
    for unit, (amount, _, _) in CEILINGS.items():
        achieved = rate(result, amount)
        cells.append("" if achieved is None else f"{achieved:.0f}" if achieved >= 1000 else f"{achieved:.3g}")
        cells.append("" if achieved is None or unit not in ceiling else f"{achieved / ceiling[unit]:.0%}")
    return cells


def share_of_copy(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the rate of a part as a share of the copy's, where bytes are what it is about."""
    copies = [rate(copy, "bytes") for copy in rows if copy["workload"] == "copy" and "error" not in copy]
    achieved = None if "error" in row else rate(row, "bytes")
    return achieved / copies[0] if copies and copies[0] and achieved else None


def has_target(row: Mapping[str, Any]) -> bool:
    return row["workload"] not in YARDSTICKS and (row["bytes"] or 0) >= TARGET_BYTES


def kernel_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Make a row for each part of each of our workloads: what it reaches, and whether that is the target."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append([row["workload"], row["part"], row["error"], *[""] * 7])
            continue
        share = share_of_copy(row, rows)
        warm = row.get("warm_milliseconds")
        lines.append(
            [
                row["workload"],
                row["part"],
                f"{1e3 * row['milliseconds']:.4g}",
                f"{1e3 * row['again_milliseconds']:.4g}",
                "" if warm is None else f"{1e3 * warm:.4g}",
                "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}",
                "" if share is None else f"{rate(row, 'bytes'):.0f}",
                "" if share is None else f"{share:.0%}",
                ("reached" if share and share >= TARGET else "missed") if has_target(row) else "",
                ", ".join(f"{name} {time:.4g}" for name, time in row.get("kernels", {}).items()),
            ]
        )
    heads = [
        "ours",
        "part",
        "µs, cold",
        "again",
        "µs, warm",
        "MB",
        "GB/s",
        "of copy",
        "target",
        "kernels, µs",
    ]
    return table(heads, lines)


def summary_of_kernels(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how many targets are reached, and by how much two equal runs differ."""
    shares = [share_of_copy(row, rows) or 0.0 for row in rows if has_target(row)]
    reached = f"{sum(share >= TARGET for share in shares)} of {len(shares)} targets are reached."
    pairs = [(row["milliseconds"], row["again_milliseconds"]) for row in rows if "error" not in row]
    spreads = [abs(again / once - 1) for once, again in pairs]
    if not spreads:
        return reached
    median, most = statistics.median(spreads), max(spreads)
    return f"{reached} Two equal runs differ by {median:.1%} in the median, {most:.1%} at most."


def read_counters(path: Path) -> list[dict[str, str]]:
    """Read what ncu --csv --page raw printed: a row for each launch, between lines of its own."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith('"')]
    if not lines:
        return []
    units, *launches = csv.DictReader(lines)
    return [
        {
            "kernel": short_name(launch["Kernel Name"]),
            "grid": launch["Grid Size"],
            **{name: f"{launch.get(name, '')} {units.get(name, '')}".strip(" %") for name in COUNTERS},
        }
        for launch in launches
    ]


def counter_table(launches: Sequence[Mapping[str, str]]) -> str:
    return table(["kernel", "grid", *COUNTERS.values()], [list(launch.values()) for launch in launches])


def short_name(kernel: str) -> str:
    """Leave out namespaces, types of template arguments, and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|\b\w+::|\(\w+\)(?=[-\d])", "", kernel)
    return name.removeprefix("void ").partition("(")[0].strip()


def page(document: dict[str, Any]) -> str:
    """Render a whole run of bench/gpu.py."""
    machine = document["machine"]
    facts = [[name.replace("_", " "), str(fact)] for name, fact in machine.items() if fact is not None]
    kernels, counters = document["kernels"], document["counters"]
    facts += [
        [name, f"{least:g} to {most:g}, median {median:g}"]
        for name, (least, median, most) in kernels.get("gpu", {}).items()
    ]
    steps = [
        [step["name"], step["status"], f"{step['seconds']:.0f}", step["reason"] or last_line(step["log"])]
        for step in document["steps"]
    ]
    parts = [
        f"# {machine['gpu'] or 'Dry run'}",
        f"Commit {document['commit']}, {document['date']}. "
        f"Not installed: {', '.join(document['not_installed']) or 'nothing'}.",
        table(["machine", ""], facts),
        table(["step", "status", "s", ""], steps),
    ]
    if kernels:
        rows = kernels["rows"]
        parts += ["## Our kernels", READING_KERNELS, kernel_table(rows), summary_of_kernels(rows)]
    if counters:
        parts += ["## Hardware counters", counter_table(counters)]
    if document["benchmarks"]:
        parts += ["## Ours and the others", READING, benchmark_table(document["benchmarks"])]
    return "\n\n".join(parts)


def last_line(text: str) -> str:
    """Return the last line that says something, which is where most programs put their verdict."""
    lines = [line.strip(" =") for line in text.splitlines()]
    return next(filter(None, reversed(lines)), "")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a Markdown table with aligned columns, to be read as text too."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(f"| {line} |" for line in lines)
