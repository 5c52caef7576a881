"""Tables, against arithmetic by hand."""

import pytest

from harness import report


def timing(milliseconds, **amounts):
    return {"milliseconds": milliseconds, "iqr_milliseconds": 0.5, "bytes": None, "flops": None, **amounts}


BENCHMARKS = [
    # 4e9 bytes in 2 ms: 2000 GB/s
    {"name": "test_copy[cuda]", "setting": "cuda", "contenders": {"copy": timing(2.0, bytes=4_000_000_000)}},
    # 1e11 flops in 2 ms: 50 000 GFLOP/s
    {
        "name": "test_matrix_product[cuda]",
        "setting": "cuda",
        "contenders": {"matrix product": timing(2.0, flops=100_000_000_000)},
    },
    {
        "name": "test_gaussian_kl[cuda-60000]",
        "setting": "cuda",
        "contenders": {
            # 1e9 bytes in 1 ms: 1000 GB/s, half of the copy's
            "ours": timing(1.0, bytes=1_000_000_000),
            "ours, CUDA graph": timing(0.8, bytes=1_000_000_000),
            "eager": timing(5.0, bytes=1_000_000_000, peak_bytes=2_500_000),
            "eager, CUDA graph": timing(2.0, bytes=1_000_000_000),
            "compiled": {"error": "RuntimeError: a | b"},
        },
    },
    # 1e10 flops in 4 ms: 2500 GFLOP/s, where no ceiling was measured
    {"name": "test_elbo[1-thread]", "setting": "1-thread", "contenders": {"ours": timing(4.0, flops=10**10)}},
]


def rows(table):
    cells = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines()]
    return [[cell.strip("| ") for cell in row] for row in cells]


def test_rates():
    assert report.rate(timing(2.0, bytes=4_000_000_000), "bytes") == pytest.approx(2000.0)
    assert report.rate(timing(2.0), "bytes") is None
    assert report.rate({"error": "none"}, "bytes") is None


def test_ceilings_are_those_of_the_setting():
    assert report.ceilings(BENCHMARKS) == {
        "cuda": {"GB/s": pytest.approx(2000.0), "GFLOP/s": pytest.approx(50_000.0)}
    }


def test_benchmark_table():
    heads, _, copy, product, *kl, elbo = rows(report.benchmark_table(BENCHMARKS))
    assert heads == [
        *("benchmark", "contender", "ms", "± ms", "/ ours"),
        *("MB", "GB/s", "of copy", "GFLOP/s", "of product"),
    ]
    assert copy == ["`copy[cuda]`", "copy", "2", "0.5", "", "", "2000", "100%", "", ""]
    assert product == [
        "`matrix_product[cuda]`",
        "matrix product",
        "2",
        "0.5",
        "",
        "",
        "",
        "",
        "50000",
        "100%",
    ]
    assert kl == [
        ["`gaussian_kl[cuda-60000]`", "ours", "1", "0.5", "", "", "1000", "50%", "", ""],
        ["", "ours, CUDA graph", "0.8", "0.5", "", "", "1250", "62%", "", ""],
        # each against ours of its own kind: 5 / 1 and 2 / 0.8
        ["", "eager", "5", "0.5", "5.00", "2.5", "200", "10%", "", ""],
        ["", "eager, CUDA graph", "2", "0.5", "2.50", "", "500", "25%", "", ""],
        ["", "compiled", "RuntimeError: a \\| b", "", "", "", "", "", "", ""],
    ]
    assert elbo == ["`elbo[1-thread]`", "ours", "4", "0.5", "", "", "", "", "2500", ""]


def test_no_ratio_where_ours_failed_in_a_graph():
    contenders = {"ours": timing(1.0), "ours, CUDA graph": {"error": "no"}, "eager, CUDA graph": timing(2.0)}
    (*_, eager) = rows(
        report.benchmark_table([{"name": "a[b]", "setting": "cuda", "contenders": contenders}])
    )
    assert eager[:5] == ["", "eager, CUDA graph", "2", "0.5", ""]


def test_page_names_machine_steps_and_what_is_missing():
    step = {
        "name": "build",
        "status": "passed",
        "seconds": 12.3,
        "reason": "",
        "log": "one\n== 3 passed ==\n\n",
    }
    page = report.page(
        {
            "machine": {"gpu": "NVIDIA H100", "driver": "580.1", "nvcc": None},
            "commit": "abc",
            "date": "2026-01-02",
            "not_installed": ["mlxtend"],
            "steps": [
                step,
                {**step, "name": "tests", "status": "skipped", "reason": "not installed: pytest"},
            ],
            "benchmarks": BENCHMARKS,
            "kernels": {"gpu": {"clocks.sm": [345.0, 1980.0, 1980.0]}, "rows": KERNELS},
            "counters": [],
        }
    )
    assert page.startswith("# NVIDIA H100\n\nCommit abc, 2026-01-02. Not installed: mlxtend.\n")
    table = rows(page)
    assert ["build", "passed", "12", "3 passed"] in table
    assert ["tests", "skipped", "12", "not installed: pytest"] in table
    assert ["driver", "580.1"] in table
    assert all("nvcc" not in row for row in table)
    assert ["clocks.sm", "345 to 1980, median 1980"] in table
    assert "TF32 is off" in page
    assert report.kernel_table(KERNELS) in page
    assert "Hardware counters" not in page


# the copy moves 1000 GB/s
KERNELS = [
    {
        "workload": "copy",
        "part": "forward",
        "bytes": 10**9,
        "milliseconds": 1.0,
        "again_milliseconds": 1.0,
        "kernels": {"copy": 990.0},
    },
    # 850 and 849 GB/s
    {
        "workload": "kl 60000x200",
        "part": "forward",
        "bytes": 85_000_000,
        "milliseconds": 0.1,
        "again_milliseconds": 0.101,
        "warm_milliseconds": 0.09,
    },
    {
        "workload": "kl 60000x200",
        "part": "backward",
        "bytes": 84_900_000,
        "milliseconds": 0.1,
        "again_milliseconds": 0.097,
        "kernels": {"kl_gradients<4>": 90.0, "sums": 8.0},
    },
    {
        "workload": "kl 10x200",
        "part": "forward",
        "bytes": 6_300_000,
        "milliseconds": 0.01,
        "again_milliseconds": 0.01,
    },
    {
        "workload": "elbo",
        "part": "forward",
        "bytes": None,
        "milliseconds": 0.2,
        "again_milliseconds": 0.2,
    },
    {"workload": "broken", "part": "forward", "bytes": 4, "error": "RuntimeError: no"},
]


def test_kernel_table_says_what_is_reached():
    heads, _, copy, forward, backward, small, elbo, broken = rows(report.kernel_table(KERNELS))
    assert heads == [
        *("ours", "part", "µs, cold", "again", "µs, warm"),
        *("MB", "GB/s", "of copy", "target", "kernels, µs"),
    ]
    assert copy == ["copy", "forward", "1000", "1000", "", "1000.0", "1000", "100%", "", "copy 990"]
    assert forward == ["kl 60000x200", "forward", "100", "101", "90", "85.0", "850", "85%", "reached", ""]
    assert backward[5:] == ["84.9", "849", "85%", "missed", "kl_gradients<4> 90, sums 8"]
    assert small[5:] == ["6.3", "630", "63%", "", ""]
    assert elbo[2:] == ["200", "200", "", "", "", "", "", ""]
    assert broken[2:] == ["RuntimeError: no", "", "", "", "", "", "", ""]


def test_targets_and_spread_of_two_runs():
    # 0, 1, 3, 0, 0 %
    assert report.summary_of_kernels(KERNELS) == (
        "1 of 2 targets are reached. Two equal runs differ by 0.0% in the median, 3.0% at most."
    )
    # without a copy none is
    assert report.summary_of_kernels(KERNELS[1:3]) == (
        "0 of 2 targets are reached. Two equal runs differ by 2.0% in the median, 3.0% at most."
    )
    assert report.summary_of_kernels(KERNELS[-1:]) == "0 of 0 targets are reached."


def test_counters_are_those_that_ncu_printed(tmp_path):
    log = tmp_path / "counters.csv"
    log.write_text(
        "==PROF== Connected to process 12\n"
        '"ID","Process ID","Kernel Name","Grid Size","dram__bytes.sum","gpu__time_duration.sum"\n'
        '"","","","","Mbyte","us"\n'
        '"0","12","void lineavae::cuda::rows<(int)4, float>(float *)","(125, 1, 1)","96.2","31.5"\n'
        '"1","12","lineavae::sums(float *)","(1, 1, 1)","1,024","2"\n'
    )
    first, second = report.read_counters(log)
    assert (first["kernel"], first["grid"], first["dram__bytes.sum"]) == (
        "rows<4, float>",
        "(125, 1, 1)",
        "96.2 Mbyte",
    )
    assert second["gpu__time_duration.sum"] == "2 us"
    assert second["smsp__inst_executed.sum"] == ""
    heads, _, *launches = rows(report.counter_table([first, second]))
    assert heads[:4] == ["kernel", "grid", "time", "DRAM"]
    assert launches[1][:4] == ["sums", "(1, 1, 1)", "2 us", "1,024 Mbyte"]
    log.write_text("==WARNING== No kernels were profiled.\n")
    assert report.read_counters(log) == []


@pytest.mark.parametrize(
    ("kernel", "short"),
    [
        ("void lineavae::cuda::gaussian_rows<(bool)1, float>(float const*, long)", "gaussian_rows<1, float>"),
        ("void lineavae::(anonymous namespace)::part<lineavae::Float16, -1>(int)", "part<Float16, -1>"),
        ("Memset (Device)", "Memset"),
    ],
)
def test_short_names_of_kernels(kernel, short):
    assert report.short_name(kernel) == short
