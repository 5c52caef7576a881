"""The diagnosis of an installation, whole and broken."""

import json
import platform

import pytest
import torch
from typer.testing import CliRunner

import lineavae
from lineavae import _ext, ops

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
