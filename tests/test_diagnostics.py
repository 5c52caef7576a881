"""The diagnosis of an installation, whole and broken."""

import json
import platform

import pytest
import torch
from typer.testing import CliRunner

import lineavae
from lineavae import _ext, diagnostics, ops

# the public functions that have a raw operator of their name
OPERATORS = {name for name in ops.__all__ if hasattr(torch.ops.lineavae, name)}
BROKEN = "libc10.so: cannot open shared object file: No such file or directory"


@pytest.fixture
def broken_module(monkeypatch):
    def load():
        raise ImportError(BROKEN)

    monkeypatch.setattr(_ext, "load", load)


def diagnose_command(*options):
    from lineavae.cli import app

    return CliRunner().invoke(app, ["diagnose", *options])


def test_fields():
    diagnosis = lineavae.diagnose()
    assert diagnosis.lineavae == lineavae.__version__
    assert diagnosis.python == platform.python_version()
    assert diagnosis.platform == f"{platform.system()} {platform.machine()}"
    assert diagnosis.torch == torch.__version__
    assert diagnosis.torch_cuda == torch.version.cuda
    assert diagnosis.devices[0] == "cpu"
    assert len(diagnosis.devices) == 1 + torch.cuda.device_count()
    assert diagnosis.native_error is None
    assert set(diagnosis.build) == {"torch", "compiler", "cuda", "cuda_architectures"}
    assert diagnosis.build["torch"]
    assert diagnosis.build["compiler"]
    assert bool(diagnosis.build["cuda"]) == bool(diagnosis.build["cuda_architectures"])


def test_every_operator_runs_natively_on_the_cpu():
    diagnosis = lineavae.diagnose()
    assert set(diagnosis.kernels) == OPERATORS
    for kernels in diagnosis.kernels.values():
        assert kernels == {"cpu": True, "cuda": bool(diagnosis.build["cuda"])}


def test_text_is_one_screen():
    diagnosis = lineavae.diagnose()
    lines = str(diagnosis).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for op in OPERATORS:
        (line,) = (line for line in lines if line.split()[:1] == [op])
        assert line.split()[1:] == ["native", "native" if diagnosis.build["cuda"] else "reference"]
    for word in (diagnosis.lineavae, diagnosis.python, diagnosis.torch, diagnosis.build["compiler"]):
        assert word in str(diagnosis)


@pytest.mark.parametrize(
    ("architectures", "served", "not_served"),
    [
        ("75-real 80-real 90-real 90-virtual", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 3)], [(7, 0)]),
        ("90", [(9, 0), (12, 0)], [(8, 9)]),  # machine code and PTX
        ("90-real", [(9, 0)], [(8, 9), (10, 0)]),
        ("86-real", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("80-virtual", [(8, 0), (9, 0)], [(7, 5)]),
        ("90a-real", [(9, 0)], [(10, 0)]),
        ("90a", [(9, 0)], [(10, 0)]),
        ("100f-real", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        ("all-major", [(7, 5), (9, 0)], []),
    ],
)
def test_which_devices_the_kernels_serve(architectures, served, not_served):
    words = architectures.split()
    for capability in served + not_served:
        assert any(diagnostics._serves(word, *capability) for word in words) == (capability in served)


@pytest.mark.parametrize(
    ("driver", "capability", "hip", "said"),
    [
        (13010, (9, 0), None, []),
        (
            12080,
            (9, 0),
            None,
            ["driver is for CUDA 12, nvcc was 13.0.88", "CUDACXX=/usr/local/cuda-12.8/bin/nvcc"],
        ),
        (13000, (7, 0), None, ["cannot run on cuda:0", "not built for sm_70", "CUDAARCHS=70"]),
        (13000, (9, 4), "6.4", ["this torch is for ROCm"]),
    ],
)
def test_says_what_cannot_run_the_kernels(monkeypatch, driver, capability, hip, said):
    build = {
        "torch": "2.13",
        "compiler": "GNU",
        "cuda": "13.0.88",
        "cuda_architectures": "90-real 90-virtual",
    }
    monkeypatch.setattr(_ext.load(), "build_info", lambda: build)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU")
    problems = lineavae.diagnose().problems
    assert len(problems) == (1 if said else 0)
    for word in said:
        assert word in problems[0]
        assert word in str(lineavae.diagnose())
    assert diagnose_command().exit_code == (1 if said else 0)


def test_rocm_has_no_kernels(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not _ext.has_kernel.__wrapped__("gaussian_kl", "cuda")
    assert _ext.has_kernel.__wrapped__("gaussian_kl", "cpu")


def test_json_is_the_same_object():
    diagnosis = lineavae.diagnose()
    assert json.loads(json.dumps(diagnosis.to_dict())) == diagnosis.to_dict()
    assert diagnosis.to_dict()["kernels"] == diagnosis.kernels


@pytest.mark.usefixtures("broken_module")
def test_a_broken_module_is_told_not_raised():
    diagnosis = lineavae.diagnose()
    assert diagnosis.native_error == BROKEN
    assert diagnosis.build == {}
    assert diagnosis.kernels == {}
    assert BROKEN in str(diagnosis)
    assert diagnosis.torch in str(diagnosis)


def test_command_of_a_whole_module_exits_with_0():
    result = diagnose_command()
    assert result.exit_code == 0
    assert result.stdout == f"{lineavae.diagnose()}\n"
    assert json.loads(diagnose_command("--json").stdout) == lineavae.diagnose().to_dict()


@pytest.mark.usefixtures("broken_module")
def test_command_of_a_broken_module_exits_with_1():
    result = diagnose_command()
    assert result.exit_code == 1
    assert BROKEN in result.stdout
    result = diagnose_command("--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["native_error"] == BROKEN


def test_import_error_says_why_and_what_to_do(monkeypatch):
    def import_module(name):
        raise ImportError(BROKEN)

    monkeypatch.setattr(_ext.importlib, "import_module", import_module)
    with pytest.raises(ImportError, match=r"lineavae's native module could not be loaded") as caught:
        _ext.load.__wrapped__()
    for word in (BROKEN, torch.__version__, "pip install", "python -m lineavae diagnose"):
        assert word in str(caught.value)
