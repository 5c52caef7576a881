"""How the benchmarks are timed, against clocks and devices that are known."""

import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness import measure
from harness.measure import Contender, CpuTimer


class ScriptedTimer:
    """Has the times in advance: of two contenders, by which three calls fill a round, then of the rounds."""

    captures = False

    def __init__(self, seconds, cache_bytes=0):
        self.seconds_left = [measure.ROUND_SECONDS / 3] * 2 + list(seconds)
        self.cache_bytes = cache_bytes

    def seconds(self, call, count):
        for _ in range(count):
            call()
        return self.seconds_left.pop(0)

    def peak_bytes(self, call):
        return None


def test_median_and_quartiles_are_those_of_numpy():
    seconds = np.random.default_rng(0).exponential(size=11)
    result = measure.summarise(list(seconds))
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    assert result["milliseconds"] == pytest.approx(1e3 * median, rel=1e-12)
    assert result["iqr_milliseconds"] == pytest.approx(1e3 * (high - low), rel=1e-12)


def test_contenders_take_turns():
    order = []
    contenders = {
        name: Contender(lambda x, name=name: order.append(name), [torch.zeros(1)])
        for name in ("ours", "other")
    }
    # ours, other, ours, other, ...
    results = measure.compare(contenders, ScriptedTimer([1.0, 10.0, 3.0, 30.0, 2.0, 20.0]), rounds=3)
    assert results["ours"]["milliseconds"] == 2000.0
    assert results["other"]["milliseconds"] == 20_000.0
    warm_up = 2 * 2 * measure.WARM_UP
    assert order[warm_up:] == 3 * (3 * ["ours"] + 3 * ["other"])


@pytest.mark.parametrize("num_elements", [1, 100, 3000, 10_000])
def test_inputs_rotate_through_more_than_twice_the_cache(monkeypatch, num_elements):
    cache_bytes = 20_000
    monkeypatch.setattr(measure, "MOST_COPIES", 20_000)
    seen = []
    contender = Contender(
        lambda x, y: seen.append((x.data_ptr(), y.data_ptr())), [torch.rand(num_elements)] * 2
    )
    calls = measure.calls_of(contender, cache_bytes)
    run = measure.in_turn(calls)
    assert (run.calls, run.input_sets) == (1, len(calls))
    for _ in range(2 * len(calls)):
        run.call()
    assert seen[: len(calls)] == seen[len(calls) :]
    one_turn = {pointer for pointers in seen for pointer in pointers}
    assert len(one_turn) == 2 * len(calls)
    assert len(one_turn) * 4 * num_elements > 2 * cache_bytes
    # and through no more than needed
    assert (len(one_turn) - 2) * 4 * num_elements <= 2 * cache_bytes


def test_every_input_set_holds_the_data():
    data = torch.rand(50)
    seen = []
    for call in measure.calls_of(Contender(lambda x: seen.append(x), [data]), cache_bytes=1000):
        call()
    assert len(seen) == 11
    for copy in seen:
        assert torch.equal(copy, data)
        assert copy.data_ptr() != data.data_ptr()


def test_tiny_inputs_have_no_more_copies_than_a_turn_allows():
    calls = measure.calls_of(Contender(lambda x: x, [torch.zeros(())]), cache_bytes=1 << 30)
    assert len(calls) == measure.MOST_COPIES


def test_gradients_are_part_of_the_work():
    x, y = torch.rand(4).requires_grad_(), torch.rand(4)
    (call,) = measure.calls_of(Contender(lambda x, y: x.square() * y, [x, y]), cache_bytes=0)
    (gradient,) = call()
    torch.testing.assert_close(gradient, 2 * x.detach() * y)
    assert x.grad is None
    (call,) = measure.calls_of(Contender(lambda x, y: x * y, [x.detach(), y]), cache_bytes=0)
    assert torch.equal(call(), x.detach() * y)


def test_forward_and_backward_apart():
    forwards = []

    def square(x, y):
        forwards.append(x)
        return x.square() * y

    x, y = torch.rand(4).requires_grad_(), torch.rand(4)
    contender = Contender(square, [x, y])
    (forward,) = measure.calls_of(contender, cache_bytes=0, part="forward")
    assert torch.equal(forward(), x.square() * y)
    assert forward().requires_grad  # what the backward needs is part of it
    (backward,) = measure.calls_of(contender, cache_bytes=0, part="backward")
    forwards.clear()
    for _ in range(2):
        torch.testing.assert_close(backward(), (2 * x.detach() * y,))
    assert forwards == []


def test_a_contender_that_cannot_run_is_named_and_ours_raises():
    def broken(x):
        raise RuntimeError("no compiler\nat all")

    good, bad = Contender(torch.neg, [torch.zeros(1)]), Contender(broken, [torch.zeros(1)])
    results = measure.compare({"ours": good, "compiled": bad}, CpuTimer(), rounds=3)
    assert results["compiled"] == {"error": "RuntimeError: no compiler"}
    assert results["ours"]["milliseconds"] > 0
    with pytest.raises(RuntimeError, match="no compiler"):
        measure.compare({"ours": bad, "eager": good}, CpuTimer(), rounds=3)


def test_cpu_timer_divides_by_the_number_of_calls():
    now = [0.0]

    def call():
        now[0] += 0.25

    timer = CpuTimer(clock=lambda: now[0])
    assert timer.seconds(call, 8) == 0.25
    assert measure.calls_per_round(call, timer) == 1


def test_processor_time_is_that_of_all_threads_and_of_ended_processes():
    """Each works until it has had a tenth of a second of the processor, whatever else runs."""

    def work():
        start = time.thread_time()
        while time.thread_time() < start + 0.1:
            pass

    def in_threads():
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def in_a_process():
        code = "import time\nwhile time.process_time() < 0.1: pass"
        subprocess.run([sys.executable, "-S", "-c", code], check=True)

    timer = CpuTimer(clock=measure.processor_time)
    assert timer.seconds(in_threads, 1) >= 0.2
    assert timer.seconds(in_a_process, 1) >= 0.1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_peak_of_memory_on_a_cpu():
    def call():
        torch.ones(20_000_000)  # freed at once
        return torch.ones(5_000_000)

    assert CpuTimer().peak_bytes(call) == pytest.approx(80e6, rel=0.05)
    kept = call()
    assert CpuTimer().peak_bytes(lambda: kept.add(1)) == pytest.approx(20e6, abs=4e6)


@pytest.fixture
def cuda(monkeypatch):
    """A stand-in for torch.cuda whose device takes 0.1 ms for each call, and which records captures.

    In each call it holds 500 bytes at once, besides the 100 that it always holds.
    """
    state = SimpleNamespace(
        milliseconds=0.0,
        capturing=None,
        replayed=[],
        peak=0,
        stream="default",
        sync="default",
        states=["first"],
    )

    class Event:
        def __init__(self, enable_timing=False):
            assert enable_timing
            self.synchronized = False

        def record(self):
            self.at = state.milliseconds

        def synchronize(self):
            self.synchronized = True

        def elapsed_time(self, end):
            assert end.synchronized
            return end.at - self.at

    class Graph:
        def __init__(self):
            self.work = []

        def replay(self):
            state.replayed.append(self)
            state.milliseconds += 0.01 * len(self.work)

    class Stream:
        def wait_stream(self, other):
            pass

    class Generator:
        def clone_state(self):
            return "clone"

        def graphsafe_set_state(self, new):
            state.states.append(new)

    @contextmanager
    def graph(captured, stream):
        assert state.stream is stream
        state.capturing = captured
        try:
            yield
        finally:
            state.capturing = None

    @contextmanager
    def stream(new):
        before, state.stream = state.stream, new
        try:
            yield
        finally:
            state.stream = before

    fakes = {
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": stream,
        "set_sync_debug_mode": lambda mode: setattr(state, "sync", mode),
        "default_generators": [None, Generator()],
        "current_device": lambda: 1,
        "get_device_properties": lambda: SimpleNamespace(L2_cache_size=1000),
        "reset_peak_memory_stats": lambda: setattr(state, "peak", 100),
        "memory_allocated": lambda: 100,
        "max_memory_allocated": lambda: state.peak,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return state


def test_cuda_timer_reads_events_after_waiting_for_them(cuda):
    def call():
        cuda.milliseconds += 0.1

    timer = measure.CudaTimer()
    assert timer.cache_bytes == 1000
    assert timer.seconds(call, 20) == pytest.approx(1e-4)
    assert measure.calls_per_round(call, timer) == round(measure.ROUND_SECONDS / 1e-4)


def test_every_input_set_is_captured_in_one_graph(cuda):
    def work(x):
        if cuda.capturing is not None:
            cuda.capturing.work.append(x.data_ptr())
        cuda.milliseconds += 0.1
        cuda.peak = 600

    results = measure.compare({"ours": Contender(work, [torch.zeros(100)])}, measure.CudaTimer(), rounds=5)
    assert results["ours"]["milliseconds"] == pytest.approx(0.1)
    assert results["ours, CUDA graph"]["milliseconds"] == pytest.approx(0.01)
    assert results["ours"]["peak_bytes"] == 500
    assert "peak_bytes" not in results["ours, CUDA graph"]
    (graph,) = set(cuda.replayed)
    sets = results["ours, CUDA graph"]["input_sets"]
    assert sets == 2 * 1000 // 400 + 1
    # whole turns
    assert len(graph.work) >= measure.LEAST_CALLS
    assert graph.work == graph.work[:sets] * (len(graph.work) // sets)
    assert len(set(graph.work)) == sets


def test_what_cannot_be_captured_says_so_beforehand(cuda):
    def work(x):
        assert cuda.capturing is None
        cuda.milliseconds += 0.1

    bucketize = Contender(work, [torch.zeros(1)], captures=False)
    assert set(measure.compare({"ours": bucketize}, measure.CudaTimer(), rounds=3)) == {"ours"}


def test_what_waits_for_the_device_is_not_captured(cuda):
    def work(x):
        assert cuda.capturing is None
        if cuda.sync == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        cuda.milliseconds += 0.1

    results = measure.compare({"ours": Contender(work, [torch.zeros(1)])}, measure.CudaTimer(), rounds=3)
    assert results["ours, CUDA graph"] == {"error": "RuntimeError: called a synchronizing CUDA operation"}
    assert results["ours"]["milliseconds"] == pytest.approx(0.1)
    assert cuda.sync == "default"


def test_a_failed_capture_leaves_nothing_behind(cuda):
    def work(x):
        if cuda.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        cuda.milliseconds += 0.1

    results = measure.compare({"ours": Contender(work, [torch.zeros(1)])}, measure.CudaTimer(), rounds=3)
    assert results["ours, CUDA graph"] == {
        "error": "RuntimeError: operation not permitted when stream is capturing"
    }
    assert results["ours"]["milliseconds"] == pytest.approx(0.1)
    assert (cuda.stream, cuda.states) == ("default", ["first", "clone"])
