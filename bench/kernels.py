"""Time our kernels at the sizes that matter: forward and backward apart, with inputs cold and warm.

On a GPU each figure is of many calls in one CUDA graph, all of them are taken twice, and CUPTI says what each
kernel takes. With --once everything is called once, for a profiler to look at.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from harness import machine, measure, report
from harness.measure import Contender, Part
from harness.setting import Setting
from lineavae import _io, ops

ROUNDS = 9
PROFILED_CALLS = 30
THRESHOLDS = torch.logspace(-4, 0, 32, dtype=torch.float64).tolist()


@dataclass(frozen=True)
class Workload:
    """A function of tensors, and the least bytes that each part moves; None where products take the time."""

    name: str
    function: Callable[..., Any]
    make_inputs: Callable[[], list[Tensor]]
    bytes: dict[Part, int | None]


def list_workloads(setting: Setting) -> Iterator[Workload]:
    def work(
        name: str, function: Callable[..., Any], make_inputs: Callable[[], list[Tensor]], *numbers: int | None
    ) -> Workload:
        """Take how many float32 numbers the forward moves, and the backward where there is one."""
        parts: list[Part] = ["forward", "backward"]
        num_bytes = {part: n and 4 * n for part, n in zip(parts, numbers, strict=False)}
        return Workload(name, function, make_inputs, num_bytes)

    def normal(*shapes: tuple[int, ...], grad: bool = True, scale: float = 1.0) -> list[Tensor]:
        tensors = [scale * torch.randn(shape, device=setting.device) for shape in shapes]
        return [tensor.requires_grad_(grad) for tensor in tensors]

    def data_and(shape: tuple[int, ...], *shapes: tuple[int, ...], scale: float = 1.0) -> list[Tensor]:
        """Make data in [0, 1], which is not differentiated, and parameters."""
        return [torch.rand(shape, device=setting.device), *normal(*shapes, scale=scale)]

    n = setting.size(1 << 27)
    array, two_arrays = partial(normal, (n,), grad=False), partial(normal, (n,), (n,), grad=False)
    yield work("copy", lambda source, target: target.copy_(source), two_arrays, 2 * n)
    yield work("read", torch.sum, array, n)
    yield work("write", torch.Tensor.zero_, array, n)

    for rows, k in [(60_000, 200), (200_000, 64), (1000, 200)]:
        n, size = setting.size(rows), f"{rows}x{k}"
        posterior = partial(normal, (n, k), (n, k))
        yield work(f"gaussian_kl {size}", ops.gaussian_kl, posterior, n * (2 * k + 1), n * (4 * k + 1))
        # mean and logvar in, z and KL out; both and the upstream of both in, two gradients out
        numbers = n * (3 * k + 1), n * (5 * k + 1)
        yield work(f"reparameterized_kl {size}", ops.reparameterized_kl, posterior, *numbers)
    n, k = setting.size(60_000), 200
    posterior = partial(normal, (n, k), (n, k))
    per_dimension = ops.gaussian_kl_per_dimension
    yield work("gaussian_kl_per_dimension 60000x200", per_dimension, posterior, 3 * n * k, 5 * n * k)

    for rows, k, count in [(60_000, 200, 32), (60_000, 200, 1), (1_000_000, 64, 32)]:
        n = setting.size(rows)
        name = f"collapse_statistics {rows}x{k}, {count} thresholds" + (" and histogram" if count > 1 else "")
        statistics_of = partial(ops.collapse_statistics, thresholds=THRESHOLDS[:count], histogram=count > 1)
        yield work(name, statistics_of, partial(normal, (n, k), (n, k), grad=False), 2 * n * k)

    for rows, d in [(60_000, 784), (64, 12_288), (1000, 784)]:
        n, size = setting.size(rows), f"{rows}x{d}"
        # data and reconstruction in, a number per row out; these in, a gradient out
        numbers = n * (2 * d + 1), n * (3 * d + 1)
        logits, gaussian = partial(data_and, (n, d), (n, d)), partial(data_and, (n, d), (n, d), ())
        yield work(f"bernoulli_log_likelihood {size}", ops.bernoulli_log_likelihood, logits, *numbers)
        yield work(f"gaussian_log_likelihood {size}", ops.gaussian_log_likelihood, gaussian, *numbers)
        # the forward makes the gradient, the backward scales it
        mean = ops.gaussian_log_likelihood_mean
        yield work(f"gaussian_log_likelihood_mean {size}", mean, gaussian, 3 * n * d, 2 * n * d)

    for rows in (60_000, 1000):
        n, d, k = setting.size(rows), 784, 50
        decoder = partial(data_and, (n, d), (n, k), (n, k), (d, k), (d,))
        # data in and two derivatives of each logit out, which the backward reads
        expected = ops.expected_bernoulli_log_likelihood
        yield work(f"expected_bernoulli_log_likelihood {rows}x{d}", expected, decoder, 3 * n * d, 2 * n * d)

    d, k = 784, 200
    batch = partial(data_and, (1000, d), (d, k), (k, d), (d,), (k,), (), scale=0.05)
    yield work("linear_vae_elbo 1000x784x200", ops.linear_vae_elbo, batch, None, None)

    def moments() -> list[Tensor]:
        x, *parameters = batch()
        return [x.mean(0), x.mT.cov(correction=0), *parameters]

    from_moments = ops.linear_vae_elbo_from_moments
    yield work("linear_vae_elbo_from_moments 784x200", from_moments, moments, None, None)


def time_part(workload: Workload, part: Part, setting: Setting) -> dict[str, Any]:
    """Time one part with inputs beyond the cache and, where that takes several sets of them, within it."""
    timer = setting.timer
    contender = Contender(workload.function, workload.make_inputs())
    cold = make_run(partial(measure.calls_of, contender, timer.cache_bytes, part), setting)
    runs = {"milliseconds": cold}
    if cold.input_sets > 1:
        runs["warm_milliseconds"] = make_run(partial(measure.calls_of, contender, 0, part), setting)
    for run in runs.values():
        for _ in range(measure.WARM_UP):
            run.call()
    times = measure.time_in_rounds(runs, timer, rounds=3 if setting.dry else ROUNDS)
    return {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}


def make_run(make_calls: Callable[[], list[measure.Call]], setting: Setting) -> measure.Run:
    return measure.captured(make_calls) if setting.timer.captures else measure.in_turn(make_calls())


def kernels_of(workload: Workload, part: Part, setting: Setting) -> dict[str, Any]:
    """Find the microseconds that each kernel takes of one call: medians over many, with cold inputs."""
    contender = Contender(workload.function, workload.make_inputs())
    turns = itertools.cycle(measure.calls_of(contender, setting.timer.cache_bytes, part))
    for _ in range(measure.WARM_UP):
        next(turns)()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED_CALLS):
            next(turns)()
        torch.cuda.synchronize()
    times = defaultdict(list)
    for event in profiled.events():
        if event.device_type == DeviceType.CUDA:
            times[report.short_name(event.name)].append(event.time_range.elapsed_us())
    per_call = {name: len(each) / PROFILED_CALLS for name, each in times.items()}
    return {"kernels": {name: per_call[name] * statistics.median(each) for name, each in times.items()}}


def measure_all(setting: Setting) -> list[dict[str, Any]]:
    """Return a row for each part of each workload; what cannot run has its error there."""
    parts = [(workload, part) for workload in list_workloads(setting) for part in workload.bytes]
    rows = [
        {"workload": workload.name, "part": part, "bytes": workload.bytes[part]} for workload, part in parts
    ]

    def fill(measure_part: Callable[[Workload, Part, Setting], dict[str, Any]]) -> None:
        for row, (workload, part) in zip(rows, parts, strict=True):
            try:
                row.update(measure_part(workload, part, setting))
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]

    fill(time_part)
    fill(lambda *what: {"again_milliseconds": time_part(*what)["milliseconds"]})
    if setting.device == "cuda":  # last, since graphs may be slower once CUPTI has come
        fill(kernels_of)
    return rows


def call_once(setting: Setting) -> None:
    """Call each part once where a profiler looks that does not look from the start."""
    for workload in list_workloads(setting):
        contender = Contender(workload.function, workload.make_inputs())
        for part in workload.bytes:
            (call,) = measure.calls_of(contender, 0, part)
            with torch.cuda.profiler.profile():
                call()
                torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--setting", choices=["cuda", "dry-run"], default="cuda")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--once", action="store_true", help="only call everything once")
    task.add_argument("--out", type=Path, help="the figures, as JSON")
    options = parser.parse_args()
    torch.manual_seed(0)
    setting = Setting.named(options.setting)
    if options.once:
        call_once(setting)
        return 0
    with machine.watched_gpu() as gpu:
        rows = measure_all(setting)
    _io.write_text(options.out, json.dumps({"gpu": gpu, "rows": rows}, indent=1) + "\n")
    print(f"{report.kernel_table(rows)}\n{report.summary_of_kernels(rows)}")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
