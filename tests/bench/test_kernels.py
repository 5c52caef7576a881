"""What the script about our kernels asks of the device and of the profiler, with stand-ins for both."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

import kernels
from harness import machine
from harness.setting import Setting


def test_a_kernel_s_time_is_the_median_times_its_launches_in_a_call(monkeypatch):
    calls = []

    class Profile:
        def __init__(self, activities):
            pass

        def __enter__(self):
            calls.clear()
            return self

        def __exit__(self, *_):
            pass

        def events(self):
            for number in range(len(calls)):
                yield event("cudaLaunchKernel", 9.0, DeviceType.CPU)
                yield event("void lineavae::rows<4>(float*)", 30.0 if number else 1000.0)
                yield event("sums(float*)", 2.0)
                yield event("sums(float*)", 2.0)

    def event(name, microseconds, device_type=DeviceType.CUDA):
        time_range = SimpleNamespace(elapsed_us=lambda: microseconds)
        return SimpleNamespace(name=name, device_type=device_type, time_range=time_range)

    monkeypatch.setattr(kernels, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    workload = kernels.Workload("add", calls.append, lambda: [torch.zeros(3)], {"forward": 4})
    found = kernels.kernels_of(workload, "forward", Setting.named("dry-run"))
    assert len(calls) == kernels.PROFILED_CALLS
    assert found == {"kernels": {"rows<4>": 30.0, "sums": 4.0}}


def test_a_profiler_sees_each_part_once(monkeypatch):
    seen, looks = [], []

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(x):
            seen.extend(["forward"] * len(looks))
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, grad):
            seen.extend(["backward"] * len(looks))
            return 3 * grad * ctx.saved_tensors[0] ** 2

    @contextmanager
    def profile():
        looks.append(True)
        yield
        looks.pop()

    monkeypatch.setattr(torch.cuda.profiler, "profile", profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    cube = kernels.Workload(
        "cube", Cube.apply, lambda: [torch.ones(3, requires_grad=True)], {"forward": 4, "backward": 4}
    )
    monkeypatch.setattr(kernels, "list_workloads", lambda _: [cube])
    kernels.call_once(Setting.named("dry-run"))
    assert seen == ["forward", "backward"]


def test_what_cannot_run_is_named_and_the_rest_is_timed(monkeypatch):
    def broken(x):
        raise RuntimeError("no kernel\nat all")

    monkeypatch.setattr(
        kernels,
        "list_workloads",
        lambda _: [
            kernels.Workload("broken", broken, lambda: [torch.zeros(3)], {"forward": 4}),
            kernels.Workload("add", torch.neg, lambda: [torch.zeros(3)], {"forward": 4}),
        ],
    )
    bad, good = kernels.measure_all(Setting.named("dry-run"))
    assert bad == {"workload": "broken", "part": "forward", "bytes": 4, "error": "RuntimeError: no kernel"}
    assert good["milliseconds"] > 0


def test_clocks_and_power_while_something_runs(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"""#!/bin/sh
echo "$@" > {tmp_path}/arguments
echo "345, 3201, 80.5, 31"; echo "[N/A], 3201, 80.5, 31"
echo "1980, 3201, 610.0, 45"; echo "1980, 3201, 650.1, 50"
touch {tmp_path}/printed
exec sleep 60
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="12-34"))
    with machine.watched_gpu() as gpu:
        assert gpu == {}
        while not (tmp_path / "printed").exists():
            pass
    assert gpu == {
        "clocks.sm": [345.0, 1980.0, 1980.0],
        "clocks.mem": [3201.0] * 3,
        "power.draw": [80.5, 610.0, 650.1],
        "temperature.gpu": [31.0, 45.0, 50.0],
    }
    assert "--id=GPU-12-34 " in (tmp_path / "arguments").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_watched():
    with machine.watched_gpu() as gpu:
        pass
    assert gpu == {}
