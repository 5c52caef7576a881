"""Break the kernels in one place at a time and see that a test notices: ``make emulator``, then this.

Removed: each ``__syncthreads``, ``__syncwarp`` and ``__threadfence``. Moved by one, either way: the bound of
each comparison, but those of the preprocessor, which ask for an architecture. A mutant must fail in one of
the builds, tried in the order plain, address, thread, trace. One that changes nothing that matters stands in
equivalent_mutants.tsv with a line on why. Where a barrier survives, it is the barrier that has to go.

Arguments: names of files, to look at these only.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
BUILD = HERE.parents[1] / "build" / "cuda_emulator"
EQUIVALENT = HERE / "equivalent_mutants.tsv"

BUILDS = ("plain", "address", "thread", "trace")
CPU_SECONDS = 30  # for one program, several times what the longest takes: an endless loop is noticed, too
SYNCHRONISATION = re.compile(r"__(?:syncthreads|syncwarp|threadfence)\(\);")
COMPARISON = re.compile(r"(?<!template) (<|>|<=|>=) ")


@dataclass(frozen=True)
class Mutant:
    """A change of one line; ``key`` names it wherever the line stands."""

    file: str  # below csrc
    line: int
    original: str
    mutation: str
    text: str  # of the whole file

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.original, self.mutation

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.mutation}: {self.original}"


def mutants(file: str, text: str) -> Iterator[Mutant]:
    """All mutants of a source text."""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        code = "" if line.startswith("#") else line.partition("//")[0]

        def mutant(start: int, end: int, replacement: str, mutation: str, number: int = number) -> Mutant:
            line = lines[number - 1]
            changed = [*lines[: number - 1], line[:start] + replacement + line[end:], *lines[number:]]
            return Mutant(file, number, line.strip(), mutation, "\n".join(changed))

        for match in SYNCHRONISATION.finditer(code):
            yield mutant(*match.span(), ";", f"without {match[0]}")
        for index, match in enumerate(COMPARISON.finditer(code), 1):
            for shift in ("1", "-1"):
                which = f" (comparison {index})" if index > 1 else ""
                yield mutant(*match.span(), f" {match[1]} {shift} + ", f"{match[1]} {shift} +{which}")


def programs_of(file: str) -> list[str]:
    """The programs that include a kernel file; all of them for what every kernel includes."""
    stem = Path(file).stem
    everything = sorted(path.stem for path in (HERE / "kernels").glob("*.cu"))
    return [stem] if stem in everything else everything


def commands() -> dict[str, list[str]]:
    """The command that compiles each program of each build, by target."""
    entries = json.loads((BUILD / "compile_commands.json").read_text(encoding="utf-8"))
    found = {}
    for entry in entries:
        output = re.search(r"-o CMakeFiles/(\w+)\.dir/kernels/\w+\.cu\.o", entry["command"])
        if output:
            found[output[1]] = shlex.split(entry["command"])
    return found


def objects(build: str) -> list[str]:
    """Object files of the emulator and the harness."""
    folders = [BUILD / "CMakeFiles" / f"{name}_{build}.dir" for name in ("emulator", "harness")]
    return [str(path) for folder in folders for path in sorted(folder.rglob("*.o"))]


def notices(mutant: Mutant) -> str | None:
    """The first build, and program, in which the mutant fails; None where it survives them all."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / mutant.file
        path.parent.mkdir(parents=True)
        path.write_text(mutant.text, encoding="utf-8")
        for build in BUILDS:
            for program in programs_of(mutant.file):
                compile_command = commands()[f"{program}_{build}"]
                object_file = f"{folder}/{program}_{build}.o"
                compile_command[compile_command.index("-o") + 1] = object_file
                first_include = next(i for i, word in enumerate(compile_command) if word.startswith("-I"))
                compile_command.insert(first_include, f"-I{folder}")
                compiled = subprocess.run(compile_command, cwd=BUILD, capture_output=True, text=True)
                if compiled.returncode != 0:
                    return f"{build} (does not compile)"
                sanitizers = [word for word in compile_command if word.startswith("-fsanitize")]
                executable = f"{folder}/{program}_{build}"
                link = ["g++", object_file, *objects(build), "-o", executable]
                subprocess.run(link + (sanitizers if build != "trace" else []), check=True)
                run = subprocess.run(
                    ["prlimit", f"--cpu={CPU_SECONDS}", executable],
                    capture_output=True,
                    env={"TSAN_OPTIONS": "halt_on_error=1"},
                )
                if run.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
                    return f"{build}, {program} (never ends)"
                if run.returncode != 0:
                    return f"{build}, {program}"
    return None


def equivalent() -> dict[tuple[str, str, str], str]:
    """The reasons why some mutants are no mistakes."""
    with EQUIVALENT.open(encoding="utf-8", newline="") as file:
        return {tuple(row[:3]): row[3] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


def main(names: list[str]) -> int:
    """Print a line per mutant; the exit status says whether all is as it should be."""
    shared = [CSRC / "common" / name for name in ("cuda.cuh", "row_tiles.cuh")]
    files = [*shared, *sorted((CSRC / "ops" / "cuda").glob("*.cu"))]
    chosen = [path for path in files if not names or path.name in names]
    candidates = [m for path in chosen for m in mutants(str(path.relative_to(CSRC)), path.read_text("utf-8"))]
    reasons = equivalent()
    survivors = []
    with ThreadPoolExecutor(2) as pool:
        for mutant, build in zip(candidates, pool.map(notices, candidates), strict=True):
            print(f"{build or 'SURVIVES':<34} {mutant}", flush=True)
            if build is None:
                survivors.append(mutant)
    surviving = {mutant.key for mutant in survivors}
    unexplained = [mutant for mutant in survivors if mutant.key not in reasons]
    looked_at = {str(path.relative_to(CSRC)) for path in chosen}
    stale = [key for key in reasons if key[0] in looked_at and key not in surviving]
    print(f"{len(candidates)} mutants, {len(survivors)} survive, {len(unexplained)} of them unexplained")
    for mutant in unexplained:
        print(f"no test notices {mutant}")
    for key in stale:
        print(f"{EQUIVALENT.name} explains what no longer survives: {' | '.join(key)}")
    return int(bool(unexplained or stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
