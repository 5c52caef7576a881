"""A run is a plan of steps: shell commands, with what they need and how long they take."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A step that takes this many times what was expected is stuck.
PATIENCE = 3
LOG_LINES = 40


@dataclass(frozen=True)
class Step:
    """A shell command and what it needs."""

    name: str
    command: str  # for sh
    expected: float  # seconds
    after: tuple[str, ...] = ()  # steps without whose success this one makes no sense
    alongside: bool = False  # whether it starts with the step before it
    probe: str = ""  # a command that fails, in words of its own, where this machine does not allow the step
    programs: tuple[str, ...] = ()  # needed on the PATH
    modules: tuple[str, ...] = ()  # needed of Python
    in_dry_run: bool = False  # whether it needs no GPU, nor what earlier steps made


def batches(steps: Sequence[Step]) -> list[list[Step]]:
    """Group the steps that start together."""
    groups: list[list[Step]] = []
    for step in steps:
        if step.alongside and groups:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def expected_seconds(steps: Sequence[Step]) -> float:
    return sum(max(step.expected for step in batch) for batch in batches(steps))


def find_problems(steps: Sequence[Step], budget: float) -> list[str]:
    """Say what is wrong with a plan: steps that do not come after what they need, and more than fits."""
    problems, earlier = [], set[str]()
    for batch in batches(steps):
        for step in batch:
            problems += [
                f"{step.name} does not come after {name}" for name in step.after if name not in earlier
            ]
        earlier |= {step.name for step in batch}
    seconds = expected_seconds(steps)
    if seconds > budget:
        problems.append(f"the steps are expected to take {seconds:.0f} s, and the budget is {budget:.0f} s")
    return problems


def choose(steps: Sequence[Step], names: Sequence[str]) -> list[Step]:
    """Keep the steps of these names, and what they come after."""
    chosen = set(names)
    for step in reversed(steps):
        if step.name in chosen:
            chosen |= set(step.after)
    return [step for step in steps if step.name in chosen]


def run_steps(
    steps: Sequence[Step],
    *,
    root: Path,
    log_folder: Path,
    budget: float,
    dry_run: bool,
    report: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Run the steps in turn, in the folder ``root``; after each, report what became of all so far.

    A step fails when its command exits with anything but 0, or takes more than `PATIENCE` times what was
    expected or than is left of the budget, in seconds. It is skipped, with the reason, when something it
    needs is missing, when a step it comes after did not pass, when it is expected to exceed the budget, and
    when its probe fails.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + budget
    outcomes: list[dict[str, Any]] = []
    for batch in batches(steps):
        passed = {outcome["name"] for outcome in outcomes if outcome["status"] == "passed"}
        skipped: dict[str, str] = {}
        for step in batch:
            left = end - time.monotonic()
            reason = why_skip(step, passed, left, dry_run) or why_not_allowed(step, root, log_folder, left)
            if reason:
                skipped[step.name] = reason
        ended = run_together([step for step in batch if step.name not in skipped], root, log_folder, end)
        for step in batch:
            failure, seconds = ended.get(step.name, (None, 0.0))
            status = "skipped" if step.name in skipped else "failed" if failure else "passed"
            lines = read_log(log_folder, step.name) if step.name in ended else []
            outcomes.append(
                {
                    "name": step.name,
                    "command": step.command,
                    "status": status,
                    "reason": skipped.get(step.name) or failure or "",
                    "seconds": round(seconds, 1),
                    "log": "\n".join(lines[-LOG_LINES:]).replace(str(root), "."),
                }
            )
            report(outcomes)
    return outcomes


def why_skip(step: Step, passed: set[str], left: float, dry_run: bool) -> str | None:
    """Return why the step is not to run, or None."""
    if dry_run and not step.in_dry_run:
        return "dry run"
    if not dry_run and (blockers := [name for name in step.after if name not in passed]):
        return f"did not pass: {', '.join(blockers)}"
    missing = [program for program in step.programs if shutil.which(program) is None]
    missing += [module for module in step.modules if not is_installed(module)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if step.expected > left:
        return f"expected to take {step.expected:.0f} s where {left:.0f} s are left"
    return None


def why_not_allowed(step: Step, root: Path, log_folder: Path, left: float) -> str | None:
    """Return what the step's probe says where it fails, or None."""
    if not step.probe:
        return None
    probe = Step(f"{step.name}.probe", step.probe, expected=step.expected / PATIENCE)
    ((failure, _),) = run_together([probe], root, log_folder, time.monotonic() + left).values()
    said = list(filter(str.strip, read_log(log_folder, probe.name)))
    errors = [line for line in said if "error" in line.lower()]
    return f"not allowed here: {failure}: {[*errors, *said[-1:], ''][0]}" if failure else None


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def read_log(log_folder: Path, name: str) -> list[str]:
    return (log_folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()


def run_together(
    steps: Sequence[Step], root: Path, log_folder: Path, end: float
) -> dict[str, tuple[str | None, float]]:
    """Run steps at once, each with its output in a file; return how it failed, or None, and its seconds."""
    start = time.monotonic()
    limits = {step.name: min(PATIENCE * step.expected, end - start) for step in steps}
    processes: dict[str, subprocess.Popen[bytes]] = {}
    ended: dict[str, tuple[str | None, float]] = {}
    try:
        for step in steps:
            with (log_folder / f"{step.name}.log").open("wb") as log:
                processes[step.name] = subprocess.Popen(
                    ["sh", "-c", step.command],
                    cwd=root,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a process group, so that the limit ends its children too
                )
        while len(ended) < len(processes):
            time.sleep(0.02)
            seconds = time.monotonic() - start
            for name, process in processes.items():
                if name in ended:
                    continue
                status = process.poll()
                if status is not None:
                    ended[name] = f"exit status {status}" if status else None, seconds
                elif seconds > limits[name]:
                    ended[name] = f"stopped after {limits[name]:.0f} s", seconds
                    stop(process)
    finally:
        for process in processes.values():
            stop(process)
    return ended


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
