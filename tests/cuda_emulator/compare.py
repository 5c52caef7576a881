"""Compare what the kernels computed on the emulator with what they computed on a GPU.

The arguments are two records that one program wrote with ``--record FILE``, first the emulated one. Whole
numbers must be equal; floating-point numbers may differ by rounding, because nvcc contracts a * b + c and the
functions of the two mathematical libraries differ.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

# of the largest magnitude of an array; what both may be off from the truth by
TOLERANCE = {"float64": 2e-13, "float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2, "uint32": 0.0}

Record = dict[tuple[str, str, int], tuple[str, list[float]]]


def read_record(path: Path) -> Record:
    """Read a record: values by case, array, and how often that pair came before."""
    record: Record = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        case, array, dtype, values = line.split("\t")
        repetition = sum(key[:2] == (case, array) for key in record)
        record[case, array, repetition] = dtype, [float.fromhex(value) for value in values.split()]
    return record


def difference(emulated: list[float], gpu: list[float]) -> float:
    """Return the largest difference relative to the largest magnitude; infinite where one is no number."""
    scale = max(map(abs, emulated), default=0.0) or 1.0
    differences = [abs(a - b) / scale for a, b in zip(emulated, gpu, strict=True)]
    return max((math.inf if math.isnan(value) else value for value in differences), default=0.0)


def main(emulated_path: Path, gpu_path: Path) -> int:
    """Print the largest difference per dtype and everything beyond the tolerance; return the exit status."""
    emulated, gpu = read_record(emulated_path), read_record(gpu_path)
    problems = [f"only in one record: {key}" for key in sorted(emulated.keys() ^ gpu.keys())]
    largest = dict.fromkeys(TOLERANCE, 0.0)
    for key in emulated.keys() & gpu.keys():
        (dtype, values), (gpu_dtype, gpu_values) = emulated[key], gpu[key]
        if dtype != gpu_dtype or len(values) != len(gpu_values):
            problems.append(f"not the same array: {key}")
            continue
        found = difference(values, gpu_values)
        largest[dtype] = max(largest[dtype], found)
        if found > TOLERANCE[dtype]:
            problems.append(f"{key} differs by {found:.3g} of its largest magnitude, in {dtype}")
    for dtype, found in largest.items():
        print(f"{dtype:<9} largest difference {found:.3g}")
    print("\n".join([*problems, f"{len(emulated)} arrays compared, {len(problems)} problems"]))
    return int(bool(problems) or not emulated)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
