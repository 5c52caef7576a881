"""The build says why it cannot do what is asked, finds the torch that is there, takes any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cuda_budget.report import NVCC

ROOT = Path(__file__).parents[1]
CMAKE = Path(sys.executable).with_name("cmake")
NINJA = CMAKE.with_name("ninja")
pytestmark = pytest.mark.skipif(not CMAKE.exists(), reason="cmake is not installed")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


def configure(source: Path, build: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [CMAKE, "-G", "Ninja", "-S", source, "-B", build, f"-DCMAKE_MAKE_PROGRAM={NINJA}"]
    return subprocess.run(
        [
            *command,
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DLINEAVAE_CUDA={environment.get('CUDA', 'AUTO')}",
        ],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def words(text: str) -> str:
    """The text without CMake's line breaks."""
    return " ".join(text.split())


@pytest.fixture
def refusing_nvcc(tmp_path: Path) -> str:
    """An nvcc that finds its toolkit and compiles nothing, as with a g++ that it does not know."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    refusal = 'case "$*" in *.cu*) echo "error: -- unsupported GNU version!" >&2; exit 1;; esac'
    nvcc.write_text(f'#!/bin/sh\n{refusal}\nexec {NVCC} "$@"\n')
    nvcc.chmod(0o755)
    return str(nvcc)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CUDACXX": "/nowhere/nvcc"}, "CUDACXX: /nowhere/nvcc"),
        ({"CUDAARCHS": "sm_80"}, "CUDAARCHS must be architectures as CMake writes them"),
        ({"CUDAARCHS": "80,90"}, "got 80,90"),
        ({"CUDAARCHS": "8.0;9.0+PTX"}, "got 8.0;9.0+PTX"),
        ({"CUDACXX": "refusing"}, "unsupported GNU version!"),
        ({"CUDACXX": "refusing", "CUDA": "ON"}, "unsupported GNU version!"),
    ],
)
@needs_nvcc
def test_an_nvcc_that_does_not_work_stops_the_build_in_its_own_words(
    tmp_path, refusing_nvcc, environment, said
):
    if environment.get("CUDACXX") == "refusing":
        environment = environment | {"CUDACXX": refusing_nvcc}
    configured = configure(ROOT, tmp_path / "build", **environment)
    assert configured.returncode != 0
    assert said in words(configured.stdout)


@needs_nvcc
@pytest.mark.parametrize(("cuda", "warns"), [("'11.8'", True), ("'99.0'", False), ("None", False)])
def test_an_nvcc_that_asks_more_of_the_driver_than_torch_does_is_told(tmp_path, cuda, warns):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2.99.1'\ncuda: Optional[str] = {cuda}\n")
    configured = configure(ROOT, tmp_path / "build", PYTHONPATH=str(tmp_path), CUDA="ON")
    assert configured.returncode == 0, configured.stdout
    said = words(configured.stdout)
    assert (
        ("runs on those of CUDA 11.8 too" in said)
        == ("CUDACXX=/usr/local/cuda-11.8/bin/nvcc" in said)
        == warns
    )


def test_any_path_serves(tmp_path):
    source = tmp_path / "a b'c$d#e=f,g@h (übung)"
    for part in ("cmake", "csrc"):
        shutil.copytree(ROOT / part, source / part)
    shutil.copy(ROOT / "CMakeLists.txt", source)
    assert configure(source, source / "build", CUDA="OFF").returncode == 0
    one = "CMakeFiles/_C.dir/csrc/module.cpp.o"
    compiled = subprocess.run([NINJA, "-C", source / "build", one], capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stdout


@pytest.mark.parametrize("name", ["a;b", "a[b", 'a"b'])
def test_a_path_that_cmake_cannot_take_is_named(tmp_path, name):
    source = tmp_path / name
    source.mkdir()
    shutil.copy(ROOT / "CMakeLists.txt", source)
    configured = configure(source, tmp_path / "build", CUDA="OFF")
    assert configured.returncode != 0
    assert "CMake cannot build in a folder whose path has one of" in words(configured.stdout)


# What an isolated build does to the environment's own Python.
ISOLATION = "import site, sys\nsys.path = [path for path in sys.path if 'site-packages' not in path]\n"


@pytest.mark.parametrize("place", ["environment", "user site", "activated", "activated before", "folder"])
def test_torch_is_found_wherever_it_imports_from(tmp_path, place):
    def environment(name: str, *options: str) -> tuple[Path, Path]:
        prefix = tmp_path / name
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", *options, prefix], check=True)
        return prefix, next(prefix.glob("lib/python*/site-packages"))

    prefix, packages = environment("target", *(["--system-site-packages"] if place == "user site" else []))
    variables = {
        "PYTHONPATH": str(tmp_path / "isolation"),
        "PYTHONNOUSERSITE": "1",
        "PWD": str(tmp_path),  # that of the tests may have a .venv
    }
    if place == "user site":
        variables["PYTHONUSERBASE"] = str(tmp_path / "user")
        packages = tmp_path / "user" / packages.relative_to(prefix)
    if place == "activated":
        variables["VIRTUAL_ENV"] = str(prefix)
    if place == "activated before":  # by uv's environment of the build, whose Python comes first
        variables["PATH"] = os.pathsep.join(
            [str(tmp_path / "of_the_build" / "bin"), f"{prefix}/bin", os.defpath]
        )
    if place == "folder":
        prefix, packages = environment(".venv")
    if place in ("activated", "activated before", "folder"):
        prefix, _ = environment("of_the_build")
    torch = packages / "torch"
    torch.mkdir(parents=True)
    (torch / "__init__.py").write_text("raise ImportError('torch must not be imported')")
    (torch / "version.py").write_text("__version__ = '2.99.1'\ncuda: Optional[str] = '13.2'\n")
    (tmp_path / "isolation").mkdir()
    (tmp_path / "isolation" / "sitecustomize.py").write_text(ISOLATION)
    base = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    probe = [prefix / "bin" / "python", ROOT / "cmake" / "torch_probe.py"]
    found = subprocess.run(probe, env=base | variables, capture_output=True, text=True)
    assert found.stdout == f"2.99.1;{torch};13.2"
