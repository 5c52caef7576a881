"""How everything here is measured.

Contenders do the same work on the same data; they run in turn, round after round, in one process, so that
whatever else the machine does falls on all of them alike. What counts is each contender's median. Outputs are
allocated inside the timed call on every side.

One thread is timed by what the processor gave to it, all threads of a contender together: so nobody gains by
more threads than one, and others on the machine matter less. Two are timed by the wall clock.
"""

from __future__ import annotations

import ctypes
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

WARM_UP = 3
# of the inputs, in turn; those of a megabyte or more leave every cache
MOST_COPIES = 256
# in a CUDA graph, whose launch would else be part of the figure
LEAST_CALLS = 16
# long against the resolution of clocks and the latency of a first launch
ROUND_SECONDS = 5e-3
# what the names of contenders end with that are in a CUDA graph, or a process of their own
GRAPH, PROCESS = ", CUDA graph", ", process"

Call = Callable[[], object]
# what is timed of a function that is differentiated
Part = Literal["forward", "backward", "both"]
# of one contender: milliseconds, iqr_milliseconds, input_sets, bytes, flops, peak_bytes; or error
Result = dict[str, float | str | None]


@dataclass(frozen=True)
class Contender:
    """A function of some tensors; where any of them requires grad, those gradients are part of the work.

    ``bytes`` is the least that forward and backward move: what each reads and writes, once. ``flops`` counts
    the matrix products, two for each multiplication and addition. What waits for the device, or captures
    CUDA graphs itself, says that it cannot be captured in one.
    """

    function: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: Sequence[Tensor]
    bytes: int | None = None
    flops: int | None = None
    captures: bool = True


@dataclass(frozen=True)
class Run:
    """What is timed of a contender: one call, or many in a CUDA graph."""

    call: Call
    calls: int
    input_sets: int


class Timer(Protocol):
    """A device's clock."""

    cache_bytes: int  # inputs are rotated through more than twice as much
    captures: bool  # whether calls can be captured in a CUDA graph

    def seconds(self, call: Call, count: int) -> float:
        """Return the time of one call, the mean of ``count`` made one after another."""

    def peak_bytes(self, call: Call) -> int | None:
        """Return the most memory that a call held beyond what was held before it, if it can be known."""


def processor_time() -> float:
    """Return the seconds that all threads of this process took, and the processes that it saw end."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass(frozen=True)
class CpuTimer:
    """A clock of the host, for calls that end when they return."""

    cache_bytes: int = 0
    captures: bool = False
    clock: Callable[[], float] = time.perf_counter

    def seconds(self, call: Call, count: int) -> float:  # noqa: D102
        start = self.clock()
        for _ in range(count):
            call()
        return (self.clock() - start) / count

    def peak_bytes(self, call: Call) -> int | None:  # noqa: D102
        if sys.platform != "linux":
            return None
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed and kept would hide what a call needs
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
        before = _resident("VmRSS")
        call()
        return _resident("VmHWM") - before


def _resident(name: str) -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


class CudaTimer:
    """CUDA events, for calls that return before the device is done: enough of them that it is never idle."""

    captures = True

    def __init__(self) -> None:
        self.cache_bytes = torch.cuda.get_device_properties().L2_cache_size

    def seconds(self, call: Call, count: int) -> float:  # noqa: D102
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / count

    def peak_bytes(self, call: Call) -> int | None:  # noqa: D102
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before


def compare(contenders: dict[str, Contender], timer: Timer, rounds: int) -> dict[str, Result]:
    """Time the contenders, and where there are CUDA graphs each in one too.

    A contender that cannot run here, or be captured, has an error for its result; that of ours is raised.
    """
    makers: dict[str, Callable[[], Run]] = {}
    for name, contender in contenders.items():
        make_calls = partial(calls_of, contender, timer.cache_bytes)
        makers[name] = lambda make_calls=make_calls: in_turn(make_calls())
        if timer.captures and contender.captures:
            makers[name + GRAPH] = partial(captured, make_calls)

    results: dict[str, Result] = {}
    runs: dict[str, Run] = {}
    for name, make in makers.items():
        try:
            run = make()
            for _ in range(max(WARM_UP, run.input_sets // run.calls)):
                run.call()
        except Exception as error:
            if name == "ours":
                raise
            results[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        contender = contenders[name.removesuffix(GRAPH)]
        results[name] = {"input_sets": run.input_sets, "bytes": contender.bytes, "flops": contender.flops}
        if not name.endswith(GRAPH):  # a graph has its memory before the call
            results[name]["peak_bytes"] = timer.peak_bytes(run.call)
        runs[name] = run

    for name, seconds in time_in_rounds(runs, timer, rounds).items():
        results[name] = {**summarise(seconds), **results[name]}
    return results


def time_in_rounds(runs: dict[str, Run], timer: Timer, rounds: int) -> dict[str, list[float]]:
    """Time runs in turn, round after round; return the seconds of one call in each round."""
    counts = {name: calls_per_round(run.call, timer) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(timer.seconds(run.call, counts[name]) / run.calls)
    return times


def calls_per_round(call: Call, timer: Timer) -> int:
    """Return how many calls fill a round, one after another: a CPU's caches are warm in all but the first."""
    return max(1, round(ROUND_SECONDS / timer.seconds(call, WARM_UP)))


def calls_of(contender: Contender, cache_bytes: int, part: Part = "both") -> list[Call]:
    """Make one call for each of enough copies of the inputs to be more than twice the cache.

    Made in turn, no call finds its inputs in the cache that an earlier one filled; but of tiny inputs, a turn
    of which would take minutes, there are `MOST_COPIES`. The backward alone goes through one forward again
    and again.
    """
    inputs = list(contender.inputs)
    function = contender.function
    differentiates = any(tensor.requires_grad for tensor in inputs)
    if differentiates and part != "forward":
        results = function(*inputs)
        inputs += [torch.ones_like(x) for x in (results if isinstance(results, tuple) else (results,))]

    def make_call() -> Call:
        copies = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
        if not differentiates or part == "forward":
            return partial(function, *copies)
        count = len(contender.inputs)
        arguments, upstream = copies[:count], copies[count:]
        leaves = [tensor for tensor in arguments if tensor.requires_grad]
        if part == "backward":
            return partial(torch.autograd.grad, function(*arguments), leaves, upstream, retain_graph=True)
        return lambda: torch.autograd.grad(function(*arguments), leaves, upstream)

    copies = 2 * cache_bytes // sum(tensor.nbytes for tensor in inputs) + 1
    return [make_call() for _ in range(min(copies, MOST_COPIES))]


def in_turn(calls: Sequence[Call]) -> Run:
    """Make one call of many, each in its turn."""
    turns = itertools.cycle(calls)
    return Run(lambda: next(turns)(), calls=1, input_sets=len(calls))


def captured(make_calls: Callable[[], list[Call]]) -> Run:
    """Capture whole turns of calls in one CUDA graph, at least `LEAST_CALLS` of them.

    Outputs of a call need not outlive it, so later calls use their memory, as without a graph.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # Calls are made on the stream that captures, where autograd runs what it recorded there. This brings back
    # the stream before it even after a failed capture, which torch.cuda.graph does not.
    with torch.cuda.stream(stream):
        calls = make_calls()
        for _ in range(WARM_UP):  # libraries must have set themselves up before a capture
            calls[0]()
        rehearse(calls[0])
        turn = calls * -(-LEAST_CALLS // len(calls))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                for call in turn:
                    call()
        except Exception:
            forget_capture()
            raise
    torch.cuda.current_stream().wait_stream(stream)
    # the graph reads the memory of the inputs, so the calls live as long
    return Run(lambda turn=turn: graph.replay(), calls=len(turn), input_sets=len(calls))


def rehearse(call: Call) -> None:
    """Raise where a call waits for the device, which would break a capture and what torch keeps of it."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def forget_capture() -> None:
    """Let CUDA's random numbers go on after a capture that failed: up to torch 2.11 they think it goes on."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())


def summarise(seconds: Sequence[float]) -> Result:
    """Median and distance between the quartiles."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"milliseconds": median * 1e3, "iqr_milliseconds": (high - low) * 1e3}
