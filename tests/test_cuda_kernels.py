"""Every CUDA kernel keeps to the budget, and the report that says so finds what it is meant to find."""

import json
import re
from pathlib import Path

import pytest

from cuda_budget import report, sass

ROOT = Path(__file__).parents[1]
needs_nvcc = pytest.mark.skipif(report.NVCC is None, reason="nvcc is not installed")
needs_nvdisasm = pytest.mark.skipif(report.NVDISASM is None, reason="nvidia-cuda-nvdisasm is not installed")

# Each kernel fails in one way, or in none.
SAMPLE = r"""
// 32 registers for 96 values that live across a barrier
__global__ void __launch_bounds__(1024, 2) spilling(float* p) {
  float x[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) x[i] = p[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) p[i * 1024 + threadIdx.x] = x[95 - i] * x[i];
}

// an array whose index is known only when it runs
__global__ void __launch_bounds__(64) stacked(float* p, int n) {
  float x[32];
  for (int i = 0; i < 32; ++i) x[i] = p[i * n];
  for (int i = 0; i < n; ++i) p[i] += x[n * i % 32];
}

namespace {
template <int kWidth>
__global__ void __launch_bounds__(256) dynamic(float* p) {
  extern __shared__ float shared[];
  shared[threadIdx.x] = p[threadIdx.x];
  __syncthreads();
  p[threadIdx.x] = shared[threadIdx.x ^ kWidth];
}
template __global__ void dynamic<4>(float*);
}  // namespace

__global__ void unbounded(float* p) { p[threadIdx.x] = 0; }

namespace outer {
struct Pair {};
template <class T, class V>
__global__ void __launch_bounds__(128, 1) copying(const V* from, V* to) {
  to[threadIdx.x] = from[threadIdx.x];
}
template __global__ void copying<Pair, float>(const float*, float*);
template __global__ void copying<Pair, float4>(const float4*, float4*);
}  // namespace outer
"""


# A loop over vectors with a rare case inside, one over what is left, and a store by the first lane.
LISTING = r"""
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/               @P0 EXIT ;
.L_x_1:
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   MUFU.EX2 R4, R4 ;
        /*0040*/                   BSSY B0, `(.L_x_3) ;
        /*0050*/              @!P1 BRA `(.L_x_2) ;
        /*0060*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_rcp_rn_f32_slowpath) ;
        /*0070*/                   BSYNC B0 ;
.L_x_2:
        /*0080*/                   FADD R4, R4, R4 ;
        /*0090*/                   FADD R4, R4, R5 ;
        /*00a0*/                   BSYNC B0 ;
.L_x_3:
        /*00b0*/              @!P2 BRA `(.L_x_1) ;
        /*00c0*/                   ISETP.NE.AND P3, PT, R6, RZ, PT ;
        /*00d0*/              @!P3 BRA `(.L_x_5) ;
.L_x_4:
        /*00e0*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*00f0*/               @P3 BRA `(.L_x_4) ;
.L_x_5:
        /*0100*/                   BRA.DIV ~URZ, `(.L_x_6) ;
        /*0110*/               @P4 BRA `(.L_x_7) ;
        /*0120*/                   STG.E desc[UR4][R2.64], R4 ;
.L_x_7:
        /*0130*/                   EXIT ;
.L_x_6:
        /*0140*/                   WARPSYNC.COLLECTIVE R0, `(.L_x_7) ;
        /*0150*/                   BRA `(.L_x_7) ;
        /*0160*/                   NOP ;
"""


@pytest.mark.parametrize(
    ("trips", "instructions"),
    [
        ([1, 0], 2 + 8 + 2 + 4),  # one vector: the rare case and the second loop are passed by
        ([3, 0], 2 + 3 * 8 + 2 + 4),
        ([3, 5], 2 + 3 * 8 + 2 + 5 * 2 + 4),
    ],
)
def test_counts_the_fast_path(trips: list[int], instructions: int) -> None:
    assert sass.fast_path(LISTING, trips) == sass.Cost(
        loops=-sum(count > 0 for count in trips),
        wide_loads=-trips[0],
        stores=-1,
        calls=0,
        instructions=instructions,
        special=trips[0],
    )


def test_counts_one_turn_of_a_loop() -> None:
    assert sass.one_turn(LISTING, 0, 2) == sass.Cost(wide_loads=-1, instructions=8, special=1)
    with pytest.raises(ValueError, match="not 3"):
        sass.one_turn(LISTING, 0, 3)


@pytest.mark.parametrize(
    ("trips", "words"),
    [
        ([2], r"2 loops \(0x20, 0xe0\), not 1"),
        ([0, 0], "no path to its end has these trips"),
    ],
)
def test_says_which_trips_are_wrong(trips: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sass.fast_path(LISTING, trips)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> list[report.Kernel]:
    source = tmp_path_factory.mktemp("sample") / "sample.cu"
    source.write_text(SAMPLE, encoding="utf-8")
    return report.measure([source], {"dynamic": report.Budget(0, dynamic_shared_bytes=100 * 1024)})


def lines_about(kernels: list[report.Kernel], name: str, **budget: float) -> list[str]:
    """What the report says of the kernel `name` alone, under this budget."""
    budgets = {name: report.Budget(**{"occupancy": 0, **budget})}
    return report.violations([kernel for kernel in kernels if kernel.template == name], budgets)


ERRORS = """
#include <cstdio>
#include "common/cuda_platform.cuh"
int main() {
  const auto errors = {cudaErrorInsufficientDriver, cudaErrorNoKernelImageForDevice, cudaErrorLaunchFailure};
  for (const cudaError_t error : errors)
    try {
      lineavae::cuda::check(error);
    } catch (const std::runtime_error& e) {
      std::puts(e.what());
    }
}
"""


@needs_nvcc
def test_an_error_of_a_launch_says_what_to_do(tmp_path: Path) -> None:
    source, program = tmp_path / "errors.cu", tmp_path / "errors"
    source.write_text(ERRORS, encoding="utf-8")
    report.run(report.NVCC, "-std=c++17", f"-I{ROOT / 'csrc'}", source, "-o", program)
    assert report.run(program).stdout.splitlines() == [
        "lineavae: CUDA kernel: CUDA driver version is insufficient for CUDA runtime version; "
        "`python -m lineavae diagnose` tells what lineavae was built for",
        "lineavae: CUDA kernel: no kernel image is available for execution on the device; "
        "`python -m lineavae diagnose` tells what lineavae was built for",
        "lineavae: CUDA kernel: unspecified launch failure; "
        "it may be an earlier kernel's: CUDA_LAUNCH_BLOCKING=1 tells",
    ]


@needs_nvcc
@pytest.mark.slow
def test_every_kernel_keeps_to_the_budget() -> None:
    budgets = report.read_budgets(report.HERE / "budget.json")
    # of the architectures that `make cuda-report` looks at, the one whose instructions are counted
    kernels = report.measure(report.SOURCES, budgets, [report.COUNTED])
    assert {kernel.architecture for kernel in kernels} == {90}
    assert report.violations(kernels, budgets) == []
    assert report.count_fast_paths(kernels, budgets)[1] == []


@needs_nvcc
def test_reports_spills(sample: list[report.Kernel]) -> None:
    lines = lines_about(sample, "spilling")
    for arch in (80, 90, 100):
        assert any(line.startswith(f"spilling on sm_{arch} spills ") for line in lines)


@needs_nvcc
def test_reports_stack_frames(sample: list[report.Kernel]) -> None:
    assert lines_about(sample, "stacked") == [
        f"stacked on sm_{arch} has a stack frame of {32 * 4} bytes; none is allowed" for arch in (80, 90, 100)
    ]


@needs_nvcc
def test_reports_low_occupancy(sample: list[report.Kernel]) -> None:
    # 100 KB and the system's 1 KB fit once in 164 KB, twice in 228 KB: 256 or 512 of 2048 threads.
    assert [kernel.occupancy for kernel in sample if kernel.template == "dynamic"] == [12.5, 25, 25]
    assert lines_about(sample, "dynamic", occupancy=12.5) == []
    assert lines_about(sample, "dynamic", occupancy=25) == [
        "dynamic<4> on sm_80 has an occupancy of 12.5 %, limited by shared memory; the budget asks for 25 %"
    ]


@needs_nvcc
def test_reports_missing_launch_bounds(sample: list[report.Kernel]) -> None:
    lines = lines_about(sample, "unbounded", occupancy=50)
    assert len(lines) == 3
    assert all("has no __launch_bounds__" in line for line in lines)


@needs_nvcc
@needs_nvdisasm
def test_counts_128_bit_accesses(sample: list[report.Kernel]) -> None:
    copying = [kernel for kernel in sample if kernel.template == "copying"]
    counts = {kernel.name: tuple(map(kernel.moving_128_bits, ("LD", "ST"))) for kernel in copying}
    assert counts == {"copying<Pair, float>": (0, 0), "copying<Pair, float4>": (1, 1)}
    assert lines_about(sample, "copying", with_128_bit_loads=1, with_128_bit_stores=1) == []
    assert lines_about(sample, "copying", with_128_bit_stores=2) == [
        f"copying on sm_{arch} has 128-bit stores in 1 of 2 instantiations; the budget asks for 2"
        for arch in (80, 90, 100)
    ]


@needs_nvcc
@needs_nvdisasm
def test_reports_long_fast_paths(sample: list[report.Kernel]) -> None:
    path = report.FastPath("copying<Pair, float4>", "a vector", elements=128, instructions=1, special=0)
    rows, (line,) = report.count_fast_paths(sample, {"copying": report.Budget(fast_paths=[path])})
    takes = r"copying<Pair, float4>, a vector, on sm_90 takes (\S+) lane-instructions per element; "
    figures = re.fullmatch(takes + "the budget is 1", line)
    assert 5 * 32 / 128 < float(figures[1]) < 16 * 32 / 128  # index, two addresses, load and store, exit
    assert rows[0]["lane-instructions"] == f"{figures[1]} of 1"

    path.kernel, path.trips = "copying<Pair, float8>", [1]
    assert (
        "no kernel has that name"
        in report.count_fast_paths(sample, {"copying": report.Budget(fast_paths=[path])})[1][0]
    )


@needs_nvcc
def test_reports_budgets_without_a_kernel(sample: list[report.Kernel]) -> None:
    copying = [kernel for kernel in sample if kernel.template == "copying"]
    assert report.violations(copying, {"coping": report.Budget(100)}) == [
        "coping has a budget, but no kernel has that name; correct or remove it in budget.json",
    ]


@needs_nvcc
def test_a_kernel_without_a_line_keeps_half_of_the_threads(sample: list[report.Kernel]) -> None:
    crowded = [kernel for kernel in sample if kernel.template == "dynamic"]
    assert [line.partition(";")[2] for line in report.violations(crowded, {})] == [
        " the budget asks for 50 %" for kernel in crowded
    ]


@needs_nvcc
def test_table_names_every_kernel_once(sample: list[report.Kernel]) -> None:
    lines = report.table(sample).splitlines()
    names = [line.split("  ")[0] for line in lines if line and not line.startswith(" ")]
    assert names == [
        "kernel",
        "copying<Pair, float4>",
        "copying<Pair, float>",
        "dynamic<4>",
        "spilling",
        "stacked",
        "unbounded",
    ]
    assert sum("sm_" in line for line in lines) == 3 * (len(names) - 1)


def test_a_budget_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    path.write_text(json.dumps({"copying": {"occupancy": 100, "vector_loads": 1}}), encoding="utf-8")
    with pytest.raises(TypeError, match="vector_loads"):
        report.read_budgets(path)


@needs_nvcc
def test_occupancy_by_hand() -> None:
    # An SM has 65536 registers, 2048 threads and room for 32 blocks; threads take registers by the 8.
    kilobyte = 1024
    cases = {
        # (arch, registers, shared bytes, threads)
        (90, 64, 0, 256): (4, 50, "registers"),  # 65536 / (64 x 256) = 4
        (90, 65, 0, 256): (3, 37.5, "registers"),  # 72 x 32 per warp: 28 warps, 3 blocks of 8
        (80, 24, 0, 256): (8, 100, "threads"),  # 2048 / 256
        (80, 32, 0, 256): (8, 100, "threads, registers"),
        (100, 16, 0, 32): (32, 50, "blocks"),  # 32 x 32 threads
        (100, 33, 0, 768): (2, 75, "threads, registers"),  # 51 warps of 40 x 32 registers, 2 blocks of 24
        (80, 16, 53 * kilobyte, 256): (3, 37.5, "shared memory"),  # 164 / 54
        (90, 16, 53 * kilobyte, 256): (4, 50, "shared memory"),  # 228 / 54
        (80, 16, 163 * kilobyte, 1024): (1, 50, "shared memory"),  # the most a block can have
        (80, 16, 163 * kilobyte + 1, 1024): (0, 0, "shared memory"),
        (90, 16, 227 * kilobyte, 1024): (1, 50, "shared memory"),
        (100, 16, 227 * kilobyte, 1024): (1, 50, "shared memory"),
        (100, 16, 227 * kilobyte + 1, 1024): (0, 0, "shared memory"),
    }
    assert dict(zip(cases, report.occupancies(cases), strict=True)) == cases


def test_kernels_keep_to_the_shared_vocabulary() -> None:
    # The wrappers of common/cuda.cuh are what lets a kernel file run on a CPU in tests.
    for path in (ROOT / "csrc/ops/cuda").glob("*.cu"):
        text = path.read_text(encoding="utf-8")
        assert "<<<" not in text, f"{path.name} launches without cuda::launch"
        assert "__shared__" not in text, f"{path.name} declares shared memory without common/cuda.cuh"
        for call in re.findall(r"atomicAdd\(.*", text):  # of integers: a sum of floats depends on its order
            assert re.search(r"\b1u\b|unsigned|uint32_t", call), f"{path.name} adds floats atomically: {call}"
