"""The tools beside the emulator: records compared, mutants made."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from mutate import mutants  # noqa: E402

RECORD = "case\ta\tfloat32\t0x1p-20\t0x1p+0 -0x1.8p+1 inf -nan\ncase\tn\tint64\t0x0p+0\t0x1p+3\n"


def compare(tmp_path: Path, emulated: str, gpu: str) -> tuple[int, str]:
    (tmp_path / "emulated").write_text(emulated)
    (tmp_path / "gpu").write_text(gpu)
    command = [sys.executable, str(HERE / "compare.py"), str(tmp_path / "emulated"), str(tmp_path / "gpu")]
    run = subprocess.run(command, capture_output=True, text=True)
    return run.returncode, run.stdout


def test_equal_records(tmp_path):
    status, output = compare(tmp_path, RECORD, RECORD)
    assert status == 0
    assert "2 arrays compared, 0 problems" in output


def test_rounding_of_floats_is_forgiven(tmp_path):
    status, output = compare(tmp_path, RECORD, RECORD.replace("-0x1.8p+1", "-0x1.80003p+1"))
    assert status == 0
    # 6 * 2^-20 of 3, the largest that is finite: twice the tolerance
    assert f"float32   largest difference {2**-19:.3g}" in output


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-0x1.8p+1", "-0x1.81p+1", "('case', 'a', 0) differs"),
        # 7 * 2^-20 of 3
        ("-0x1.8p+1", "-0x1.800038p+1", "('case', 'a', 0) differs by 2.23e-06"),
        ("-0x1.8p+1", "nan", "('case', 'a', 0) differs by inf"),
        ("inf", "-inf", "('case', 'a', 0) differs by inf"),
        ("inf", "0x1p+127", "('case', 'a', 0) differs by inf"),
        ("-nan", "inf", "('case', 'a', 0) differs by inf"),
        ("0x1p+3", "0x1.2p+3", "('case', 'n', 0) differs"),
        ("0x1p+0 ", "", "not the same array: ('case', 'a', 0)"),
        ("case\tn", "other\tn", "only in one record: ('case', 'n', 0)"),
    ],
)
def test_differences_are_named(tmp_path, old, new, message):
    status, output = compare(tmp_path, RECORD, RECORD.replace(old, new))
    assert status == 1
    assert message in output


def test_empty_records_prove_nothing(tmp_path):
    assert compare(tmp_path, "", "")[0] == 1


SOURCE = """\
template <class T>
__global__ void f(T* x, int n) {
  for (int i = 0; i < n; ++i) x[i] = 0;  // while i < n
  __syncthreads();
  if (n >= 3 && n > 4) __syncwarp();
}"""


def test_mutants_change_one_bound_or_barrier_each():
    made = {(mutant.line, mutant.mutation): mutant.text.split("\n") for mutant in mutants("f.cuh", SOURCE)}
    original = SOURCE.split("\n")
    assert set(made) == {
        (3, "< 1 +"),
        (3, "< -1 +"),
        (4, "without __syncthreads();"),
        (5, "without __syncwarp();"),
        (5, ">= 1 +"),
        (5, ">= -1 +"),
        (5, "> 1 + (comparison 2)"),
        (5, "> -1 + (comparison 2)"),
    }
    for (line, _), text in made.items():
        assert [i for i, (new, old) in enumerate(zip(text, original, strict=True), 1) if new != old] == [line]
    assert made[3, "< -1 +"][2] == "  for (int i = 0; i < -1 + n; ++i) x[i] = 0;  // while i < n"
    assert made[5, "> 1 + (comparison 2)"][4] == "  if (n >= 3 && n > 1 + 4) __syncwarp();"
    assert made[4, "without __syncthreads();"][3] == "  ;"
