"""A run is a list of steps: shell commands, with what they need and how long they take."""

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
    programs: tuple[str, ...] = ()  # needed on the PATH
    modules: tuple[str, ...] = ()  # needed of Python
    in_dry_run: bool = False  # whether it needs no GPU, nor what earlier steps made


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
    needs is missing, when a step it comes after did not pass, and when it is expected to exceed the budget.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    outcomes: list[dict[str, Any]] = []
    for step in steps:
        left = budget - (time.monotonic() - start)
        passed = {outcome["name"] for outcome in outcomes if outcome["status"] == "passed"}
        status, seconds, log = "skipped", 0.0, ""
        reason = why_skip(step, passed, left, dry_run)
        if reason is None:
            log_file = log_folder / f"{step.name.replace(' ', '-').replace(':', '')}.log"
            began = time.monotonic()
            reason = run(step.command, root, log_file, min(PATIENCE * step.expected, left))
            seconds = round(time.monotonic() - began, 1)
            status = "failed" if reason else "passed"
            lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
            log = "\n".join(lines[-LOG_LINES:]).replace(str(root), ".")
        outcomes.append(
            {
                "name": step.name,
                "command": step.command,
                "status": status,
                "reason": reason or "",
                "seconds": seconds,
                "log": log,
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


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def run(command: str, root: Path, log_file: Path, limit: float) -> str | None:
    """Run a command with its output in a file; return how it failed, or None."""
    with log_file.open("wb") as log:
        # in a process group of its own, so that the limit ends its children too
        process = subprocess.Popen(
            ["sh", "-c", command],
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return f"exit status {status}" if status else None
