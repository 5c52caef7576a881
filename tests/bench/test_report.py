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
        }
    )
    assert page.startswith("# NVIDIA H100\n\nCommit abc, 2026-01-02. Not installed: mlxtend.\n")
    table = rows(page)
    assert ["build", "passed", "12", "3 passed"] in table
    assert ["tests", "skipped", "12", "not installed: pytest"] in table
    assert ["driver", "580.1"] in table
    assert all("nvcc" not in row for row in table)
    assert "TF32 is off" in page
