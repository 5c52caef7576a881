"""What every CUDA kernel takes of an SM, held against budget.json. Needs nvcc, but no GPU.

Prints a table, then a line for each figure that misses its budget; exits with 1 where there is one. No kernel
may spill registers or have a stack frame, each tells its block size by ``__launch_bounds__``, and each keeps
half of an SM's threads. A kernel that must reach more, or may reach less, has a line in budget.json under its
name without template arguments; see `Budget` for the keys. A second table holds what a warp issues per
element on the fast paths that have a budget, on sm_90.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from cuda_budget import sass

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = sorted((ROOT / "csrc/ops/cuda").glob("*.cu"))
ARCHITECTURES = (80, 90, 100)
COUNTED = 90  # the architecture whose instructions are counted


@dataclass
class FastPath:
    """What a warp may issue on ordinary input of one shape. Per element, the idle lanes counted too."""

    kernel: str  # with its template arguments
    case: str
    elements: int  # of a warp, from the kernel's start to its end
    instructions: float  # at most, times 32 lanes
    special: float  # at most, of those that only 16 lanes execute in a cycle
    trips: list[int] = field(default_factory=list)  # of each loop: see sass.py
    loop: list[int] = field(default_factory=list)  # or one turn of this loop alone, of so many: [11, 23]


@dataclass
class Budget:
    """What the kernels of one name must reach, on each architecture."""

    occupancy: float = 50  # least percentage of an SM's threads, of the worst instantiation
    # least number of instantiations that read, or write, global memory 16 bytes at a time
    with_128_bit_loads: int = 0
    with_128_bit_stores: int = 0
    dynamic_shared_bytes: int = 0  # the most that a launch asks for
    fast_paths: list[FastPath] = field(default_factory=list)


@dataclass
class Kernel:
    """One instantiation on one architecture."""

    architecture: int
    name: str
    threads: int  # of a block; 0 where __launch_bounds__ is missing
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    listing: str | None  # its machine code; None without a disassembler
    blocks: int = 0  # per SM
    occupancy: float = 0.0  # percent
    limiter: str = ""

    @property
    def template(self) -> str:
        return self.name.partition("<")[0]

    def moving_128_bits(self, instruction: str) -> int | None:
        """The number of ``LD`` or ``ST`` that move 128 bits."""
        return (
            None if self.listing is None else len(re.findall(rf"\b{instruction}G?\.\S*\b128\b", self.listing))
        )


def run(*command: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    result = subprocess.run([str(word) for word in command], input=stdin, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(result.args)}\n{result.stdout}{result.stderr}")
    return result


def find_nvdisasm() -> str | None:
    """The disassembler of the package nvidia-cuda-nvdisasm, or else that of a toolkit on the PATH."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    return next((str(file.locate()) for file in files if file.name == "nvdisasm"), shutil.which("nvdisasm"))


NVCC = shutil.which(os.environ.get("CUDACXX", "nvcc"))
NVDISASM = find_nvdisasm()


def short_names(symbols: Iterable[str]) -> list[str]:
    demangled = run("c++filt", "--no-params", stdin="\n".join(symbols)).stdout
    return [re.sub(r"(\(anonymous namespace\)|\w+)::", "", name) for name in demangled.splitlines()]


def block_sizes(ptx: str) -> dict[str, int]:
    """Threads per block of each kernel with launch bounds."""
    entries = re.findall(r"\.entry (\w+)\([^)]*\)[^{]*\.maxntid ([\d, ]+)", ptx)
    return {symbol: math.prod(int(size) for size in sizes.split(",")) for symbol, sizes in entries}


def machine_code(cubin: Path) -> dict[str, str]:
    """The disassembled text of each kernel."""
    listing = run(NVDISASM, "-c", cubin).stdout
    return dict(text.split(":", 1) for text in re.split(r"^\.text\.", listing, flags=re.MULTILINE)[1:])


def compile_kernels(source: Path, architecture: int, folder: Path) -> list[Kernel]:
    folder.mkdir()
    cubin = folder / "kernels.cubin"
    # as CMake's Release build compiles them; --keep leaves the PTX as well
    options = ["-std=c++17", "-DNDEBUG", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "--keep", f"--keep-dir={folder}"]
    log = run(NVCC, f"-arch=sm_{architecture}", *options, "-cubin", source, "-o", cubin).stderr
    threads = block_sizes((folder / f"{source.stem}.ptx").read_text(encoding="utf-8"))
    code = machine_code(cubin) if NVDISASM else None

    kernels = []
    sections = [text.split("'", 1) for text in log.split("Compiling entry function '")[1:]]
    for (symbol, usage), name in zip(sections, short_names(symbol for symbol, _ in sections), strict=True):
        # more than one frame where the kernel calls functions that were not inlined
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", usage)
        static_shared = re.search(r"(\d+) bytes smem", usage)
        kernels.append(
            Kernel(
                architecture,
                name,
                threads=threads.get(symbol, 0),
                registers=int(re.search(r"Used (\d+) registers", usage)[1]),
                spill_bytes=sum(int(stores) + int(loads) for _, stores, loads in frames),
                stack_bytes=sum(int(stack) for stack, _, _ in frames),
                shared_bytes=int(static_shared[1]) if static_shared else 0,
                listing=code[symbol] if code else None,
            )
        )
    return kernels


def occupancies(blocks: Iterable[tuple[int, int, int, int]]) -> list[tuple[int, float, str]]:
    """Blocks per SM, percent and limiter for each (architecture, registers, shared bytes, threads)."""
    with TemporaryDirectory() as folder:
        program = Path(folder) / "occupancy"
        # nvcc hands C++ to the host's compiler, and knows where the toolkit's headers are
        run(NVCC, "-std=c++17", "-cudart=none", HERE / "occupancy.cpp", "-o", program)
        questions = "\n".join(" ".join(map(str, block)) for block in blocks)
        answers = [line.split(" ", 2) for line in run(program, stdin=questions).stdout.splitlines()]
    return [(int(count), float(percent), limiter) for count, percent, limiter in answers]


def measure(
    sources: Iterable[Path], budgets: Mapping[str, Budget], architectures: Iterable[int] = ARCHITECTURES
) -> list[Kernel]:
    """The kernels of all sources on all architectures, sorted by name."""
    with TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(
            lambda job: compile_kernels(*job, Path(folder) / f"{job[0].stem}.sm_{job[1]}"),
            product(sources, architectures),
        )
        kernels = sorted(
            (kernel for kernels in compiled for kernel in kernels), key=lambda k: (k.name, k.architecture)
        )
    for kernel in kernels:
        if kernel.template in budgets:
            kernel.shared_bytes += budgets[kernel.template].dynamic_shared_bytes
    bounded = [kernel for kernel in kernels if kernel.threads]
    figures = occupancies((k.architecture, k.registers, k.shared_bytes, k.threads) for k in bounded)
    for kernel, figure in zip(bounded, figures, strict=True):
        kernel.blocks, kernel.occupancy, kernel.limiter = figure
    return kernels


def violations(kernels: list[Kernel], budgets: Mapping[str, Budget]) -> list[str]:
    lines = []
    for kernel in kernels:
        where = f"{kernel.name} on sm_{kernel.architecture}"
        if kernel.spill_bytes:
            lines.append(f"{where} spills {kernel.spill_bytes} bytes of registers; none are allowed")
        if kernel.stack_bytes:
            lines.append(f"{where} has a stack frame of {kernel.stack_bytes} bytes; none is allowed")
        if not kernel.threads:
            lines.append(f"{where} has no __launch_bounds__, so its block size is not known")
        elif kernel.occupancy < (asked := budgets.get(kernel.template, Budget()).occupancy):
            lines.append(
                f"{where} has an occupancy of {kernel.occupancy:g} %, limited by {kernel.limiter}; "
                f"the budget asks for {asked:g} %"
            )

    templates = {kernel.template for kernel in kernels}
    for template in sorted(budgets.keys() - templates):
        lines.append(
            f"{template} has a budget, but no kernel has that name; correct or remove it in budget.json"
        )

    architectures = sorted({kernel.architecture for kernel in kernels})
    for template, architecture in product(sorted(templates & budgets.keys()), architectures):
        variants = [k for k in kernels if (k.template, k.architecture) == (template, architecture)]
        for what, counts, least in [
            ("loads", [k.moving_128_bits("LD") for k in variants], budgets[template].with_128_bit_loads),
            ("stores", [k.moving_128_bits("ST") for k in variants], budgets[template].with_128_bit_stores),
        ]:
            found = sum(bool(count) for count in counts)
            if None not in counts and found < least:
                lines.append(
                    f"{template} on sm_{architecture} has 128-bit {what} in {found} of {len(counts)} "
                    f"instantiations; the budget asks for {least}"
                )
    return lines


def columns(kernel: Kernel) -> dict[str, object]:
    return {
        "kernel": kernel.name,
        "arch": f"sm_{kernel.architecture}",
        "threads": kernel.threads or "-",
        "registers": kernel.registers,
        "spill bytes": kernel.spill_bytes,
        "stack bytes": kernel.stack_bytes,
        "shared bytes": kernel.shared_bytes,
        "blocks/SM": kernel.blocks,
        "occupancy": f"{kernel.occupancy:g} %",
        "limited by": kernel.limiter,
        "128-bit loads": "-" if kernel.listing is None else kernel.moving_128_bits("LD"),
        "128-bit stores": "-" if kernel.listing is None else kernel.moving_128_bits("ST"),
    }


def count_fast_paths(
    kernels: list[Kernel], budgets: Mapping[str, Budget]
) -> tuple[list[dict[str, object]], list[str]]:
    """Rows for the table of fast paths, and a line for each that misses its budget."""
    listings = {kernel.name: kernel.listing for kernel in kernels if kernel.architecture == COUNTED}
    rows: list[dict[str, object]] = []
    lines = []
    for path in (path for budget in budgets.values() for path in budget.fast_paths):
        where = f"{path.kernel}, {path.case}, on sm_{COUNTED}"
        if path.kernel not in listings:
            lines.append(f"{path.kernel} has a budget for its fast path, but no kernel has that name")
            continue
        if (listing := listings[path.kernel]) is None:
            continue
        try:
            cost = sass.one_turn(listing, *path.loop) if path.loop else sass.fast_path(listing, path.trips)
        except ValueError as error:
            lines.append(f"{where}: {error}; correct budget.json")
            continue
        counts = {
            "lane-instructions": (cost.instructions * 32 / path.elements, path.instructions),
            "special operations": (cost.special * 32 / path.elements, path.special),
        }
        figures = {what: f"{count:.1f} of {most:g}" for what, (count, most) in counts.items()}
        rows.append({"fast path, per element": f"{path.kernel}, {path.case}", **figures})
        if cost.calls:
            lines.append(f"{where} calls a subroutine on its fast path; none is allowed")
        lines += [
            f"{where} takes {count:.1f} {what} per element; the budget is {most:g}"
            for what, (count, most) in counts.items()
            if count > most
        ]
    return rows, lines


def aligned(rows: list[dict[str, object]]) -> list[str]:
    """A line of headers, and a line for each row; the first column is aligned to the left."""
    headers = list(rows[0])
    widths = [max(len(header), *(len(str(row[header])) for row in rows)) for header in headers]

    def line(name: object, *figures: object) -> str:
        right = [f"{figure!s:>{width}}" for figure, width in zip(figures, widths[1:], strict=True)]
        return "  ".join([f"{name!s:<{widths[0]}}", *right])

    return [line(*headers), *(line(*row.values()) for row in rows)]


def table(kernels: list[Kernel]) -> str:
    """The figures in columns, a blank line before each template, each name on its first line alone."""
    rows = [columns(kernel) for kernel in kernels]
    for above, kernel, row in zip(kernels, kernels[1:], rows[1:], strict=False):
        if kernel.name == above.name:
            row["kernel"] = ""
    header, *lines = aligned(rows)
    grouped = [header]
    for above, kernel, line in zip([None, *kernels], kernels, lines, strict=False):
        if above is None or kernel.template != above.template:
            grouped.append("")
        grouped.append(line)
    return "\n".join(grouped)


def read_budgets(path: Path) -> dict[str, Budget]:
    entries = json.loads(path.read_text(encoding="utf-8"))
    budgets = {name: Budget(**entry) for name, entry in entries.items()}
    for budget in budgets.values():
        budget.fast_paths = [FastPath(**path) for path in budget.fast_paths]
    return budgets


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    if NVCC is None:
        sys.exit("No nvcc was found. Put it on the PATH or name it: CUDACXX=/usr/local/cuda/bin/nvcc")
    budgets = read_budgets(HERE / "budget.json")
    kernels = measure(SOURCES, budgets)
    rows, too_long = count_fast_paths(kernels, budgets)
    print(table(kernels))
    print()
    if NVDISASM is None:
        print("Instructions were not counted: no nvdisasm (pip install nvidia-cuda-nvdisasm)")
    else:
        print("\n".join([*aligned(rows), ""]))
    over_budget = violations(kernels, budgets) + too_long
    names = {kernel.name for kernel in kernels}
    within = f"{len(names)} kernels on {len(ARCHITECTURES)} architectures, all within the budget."
    print("\n".join(over_budget) or within)
    return bool(over_budget)


if __name__ == "__main__":
    sys.exit(main())
