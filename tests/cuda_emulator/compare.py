"""Compare what the kernels computed on the emulator with what they computed on a GPU.

The arguments are two records that one program wrote with ``--record FILE``, first the emulated one. Each may
be off from the truth by a tolerance that the record names, because nvcc contracts a * b + c and the functions
of the two mathematical libraries differ; so they may be twice as far apart. Infinities and NaN must be equal.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from pathlib import Path

# by case, array and how often that pair came before: dtype, tolerance of the largest magnitude, and values
Record = dict[tuple[str, str, int], tuple[str, float, list[float]]]


def read_record(path: Path) -> Record:
    record: Record = {}
    repetitions: Counter[tuple[str, str]] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        case, array, dtype, tolerance, values = line.split("\t")
        numbers = [float.fromhex(value) for value in values.split()]
        record[case, array, repetitions[case, array]] = dtype, float.fromhex(tolerance), numbers
        repetitions[case, array] += 1
    return record


def difference(emulated: list[float], gpu: list[float]) -> float:
    """Return the largest difference relative to the largest magnitude; infinite where only one is finite."""
    scale = max(filter(math.isfinite, map(abs, emulated)), default=0.0) or 1.0

    def apart(a: float, b: float) -> float:
        if a == b or (math.isnan(a) and math.isnan(b)):
            return 0.0
        return abs(a - b) / scale if math.isfinite(a) and math.isfinite(b) else math.inf

    return max(map(apart, emulated, gpu), default=0.0)


def main(emulated_path: Path, gpu_path: Path) -> int:
    """Print the largest difference per dtype and everything beyond the tolerance; return the exit status."""
    emulated, gpu = read_record(emulated_path), read_record(gpu_path)
    problems = [f"only in one record: {key}" for key in sorted(emulated.keys() ^ gpu.keys())]
    largest: dict[str, float] = defaultdict(float)
    for key in emulated.keys() & gpu.keys():
        (dtype, tolerance, values), (gpu_dtype, _, gpu_values) = emulated[key], gpu[key]
        if dtype != gpu_dtype or len(values) != len(gpu_values):
            problems.append(f"not the same array: {key}")
            continue
        found = difference(values, gpu_values)
        largest[dtype] = max(largest[dtype], found)
        if found > 2 * tolerance:
            problems.append(f"{key} differs by {found:.3g} of its largest magnitude, in {dtype}")
    for dtype, found in largest.items():
        print(f"{dtype:<9} largest difference {found:.3g}")
    print("\n".join([*problems, f"{len(emulated)} arrays compared, {len(problems)} problems"]))
    return int(bool(problems) or not emulated)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
