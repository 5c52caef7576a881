"""What becomes of steps: statuses, reasons, logs, limits."""

import sys
import time
from pathlib import Path

import pytest

from harness import steps
from harness.steps import Step


@pytest.fixture
def run(tmp_path):
    """Run steps in a folder of their own; what is reported after the last is what is returned."""

    def run(*to_run, budget=60.0, dry_run=False):
        reports = []
        outcomes = steps.run_steps(
            to_run,
            root=tmp_path,
            log_folder=tmp_path / "logs",
            budget=budget,
            dry_run=dry_run,
            report=lambda outcomes: reports.append([outcome["name"] for outcome in outcomes]),
        )
        names = [step.name for step in to_run]
        assert reports == [names[: count + 1] for count in range(len(names))]
        return outcomes

    return run


def test_a_failure_is_recorded_and_does_not_stop_what_is_independent(run):
    failed, dependent, independent = run(
        Step("build", "echo to stdout; echo to stderr >&2; exit 3", expected=5),
        Step("tests", "echo must not run", expected=5, after=("build",)),
        Step("other", "pwd > here; echo done", expected=5),
    )
    assert (failed["status"], failed["reason"]) == ("failed", "exit status 3")
    assert failed["log"] == "to stdout\nto stderr"
    assert failed["command"].endswith("exit 3")
    assert (dependent["status"], dependent["reason"]) == ("skipped", "did not pass: build")
    assert dependent["log"] == ""
    assert (independent["status"], independent["reason"], independent["log"]) == ("passed", "", "done")


def test_commands_run_in_the_root_whose_path_is_kept_out_of_the_log(run, tmp_path):
    (step,) = run(Step("where", "pwd", expected=5))
    assert step["log"] == "."
    assert (tmp_path / "logs/where.log").read_text() == f"{tmp_path}\n"


def test_only_the_end_of_a_long_log_is_kept(run):
    (step,) = run(Step("long", "seq 1000", expected=5))
    assert step["log"].splitlines() == [str(n) for n in range(1001 - steps.LOG_LINES, 1001)]


def test_a_step_that_is_stuck_is_ended_with_its_children(run, tmp_path):
    command = f"{sys.executable} -c 'import os, time; print(os.getpid(), flush=True); time.sleep(60)' | cat"
    start = time.monotonic()
    (step,) = run(Step("stuck", f"echo begun; {command}", expected=0.5))
    assert time.monotonic() - start < 30
    assert (step["status"], step["reason"]) == ("failed", "stopped after 2 s")
    assert step["seconds"] == pytest.approx(1.5, abs=1.0)
    begun, child = step["log"].splitlines()
    assert begun == "begun"
    for _ in range(100):
        stat = Path("/proc", child, "stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} goes on")


def test_what_does_not_fit_the_budget_is_skipped_by_name(run):
    stuck, long, short = run(
        Step("stuck", "sleep 60", expected=0.3),
        Step("long", "true", expected=30.0),
        Step("short", "true", expected=0.1),
        budget=2.0,
    )
    assert (stuck["status"], stuck["reason"]) == ("failed", "stopped after 1 s")
    assert (long["status"], long["reason"]) == ("skipped", "expected to take 30 s where 1 s are left")
    assert short["status"] == "passed"


def test_no_step_outlasts_the_budget(run):
    start = time.monotonic()
    (step,) = run(Step("slow", "sleep 60", expected=0.9), budget=1.0)
    assert time.monotonic() - start < 2.5  # three times what was expected is 2.7
    assert (step["status"], step["reason"]) == ("failed", "stopped after 1 s")


def test_what_is_missing_is_named(run):
    (step,) = run(
        Step("build", "true", expected=1, programs=("sh", "no-such-tool"), modules=("json", "no_such_module"))
    )
    assert (step["status"], step["reason"]) == ("skipped", "not installed: no-such-tool, no_such_module")


def test_steps_of_a_batch_run_at_once(run):
    outcomes = run(
        Step("asks", "until test -e answer; do sleep 0.05; done; touch heard", expected=9),
        Step("answers", "touch answer; until test -e heard; do sleep 0.05; done", expected=9, alongside=True),
        Step("fails", "exit 2", expected=9, alongside=True),
        Step("needs one", "true", expected=9, after=("asks",)),
        Step("needs the other", "true", expected=9, after=("fails",)),
    )
    assert [(outcome["status"], outcome["reason"]) for outcome in outcomes] == [
        ("passed", ""),
        ("passed", ""),
        ("failed", "exit status 2"),
        ("passed", ""),
        ("skipped", "did not pass: fails"),
    ]


def test_what_a_machine_does_not_allow_is_skipped_in_its_words(run):
    refused, quiet, allowed = run(
        Step(
            "tool",
            "echo must not run",
            expected=9,
            probe="echo Error: Device not supported >&2; echo; echo trying; exit 3",
        ),
        Step("quiet tool", "echo must not run", expected=9, probe="echo no device; exit 4"),
        Step("other tool", "echo ran", expected=9, probe="echo fine"),
    )
    assert (refused["status"], refused["reason"], refused["log"]) == (
        "skipped",
        "not allowed here: exit status 3: Error: Device not supported",
        "",
    )
    assert quiet["reason"] == "not allowed here: exit status 4: no device"
    assert (allowed["status"], allowed["log"]) == ("passed", "ran")


PLAN = [
    Step("build", "", expected=10),
    Step("programs", "", expected=30, alongside=True),
    Step("tests", "", expected=5, after=("build",)),
    Step("sanitizers", "", expected=7, after=("programs",)),
]


def test_problems_of_a_plan():
    assert steps.expected_seconds(PLAN) == 30 + 5 + 7
    assert steps.find_problems(PLAN, budget=42) == []
    assert steps.find_problems(PLAN, budget=41) == [
        "the steps are expected to take 42 s, and the budget is 41 s"
    ]
    beside = Step("beside", "", expected=1, after=("tests",), alongside=True)
    assert steps.find_problems([*PLAN[:3], beside], budget=60) == ["beside does not come after tests"]
    assert steps.find_problems(PLAN[1:], budget=60) == ["tests does not come after build"]


def test_chosen_steps_come_with_what_they_need():
    assert [step.name for step in steps.choose(PLAN, ["sanitizers"])] == ["programs", "sanitizers"]
    assert [step.name for step in steps.choose(PLAN, ["tests", "build"])] == ["build", "tests"]


def test_a_dry_run_leaves_out_what_needs_a_gpu(run):
    build, benchmarks = run(
        Step("build", "exit 1", expected=1),
        Step("benchmarks", "echo measured", expected=1, after=("build",), in_dry_run=True),
        dry_run=True,
    )
    assert (build["status"], build["reason"], build["command"]) == ("skipped", "dry run", "exit 1")
    assert (benchmarks["status"], benchmarks["log"]) == ("passed", "measured")
