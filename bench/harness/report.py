"""Results as tables for people, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness.measure import GRAPH, Result

# Per unit: what is counted, and the benchmark and contender that measure the most of it a machine can do
CEILINGS = {
    "GB/s": ("bytes", "test_copy", "copy"),
    "GFLOP/s": ("flops", "test_matrix_product", "matrix product"),
}

READING = """\
Times are medians, with the distance between the quartiles; steps are forward and backward. "/ ours" is the
time of a contender over that of ours, in a CUDA graph over ours in a CUDA graph. GB/s counts what forward and
backward must each read and write, once; GFLOP/s counts the matrix products. Shares are of a large copy and of
a large matrix product, measured in the same run. MB is the most memory that a call held at once beyond its
inputs, results and gradients included. Every contender works in full float32: TF32 is off."""


def rate(result: Result, amount: str) -> float | None:
    """Return the "bytes" or "flops" of a contender in 1e9 per second, where it counts them."""
    return result[amount] / result["milliseconds"] * 1e-6 if result.get(amount) else None


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
            ours = benchmark["contenders"].get("ours" + GRAPH if name.endswith(GRAPH) else "ours", {})
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


def page(document: dict[str, Any]) -> str:
    """Render a whole run of bench/gpu.py."""
    machine = document["machine"]
    facts = [[name.replace("_", " "), str(fact)] for name, fact in machine.items() if fact is not None]
    steps = [
        [step["name"], step["status"], f"{step['seconds']:.0f}", step["reason"] or last_line(step["log"])]
        for step in document["steps"]
    ]
    return "\n\n".join(
        [
            f"# {machine['gpu'] or 'Dry run'}",
            f"Commit {document['commit']}, {document['date']}. "
            f"Not installed: {', '.join(document['not_installed']) or 'nothing'}.",
            table(["machine", ""], facts),
            table(["step", "status", "s", ""], steps),
            READING,
            benchmark_table(document["benchmarks"]),
        ]
    )


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
