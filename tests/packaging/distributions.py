"""What `make package` built and installed: the sdist and the wheel of it, in the folder LINEAVAE_DIST."""

import importlib
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path, PurePosixPath

import pytest

import lineavae

DIST = Path(os.environ["LINEAVAE_DIST"])
NAME = f"lineavae-{lineavae.__version__}"
(WHEEL,) = DIST.glob(f"{NAME}-*.whl")
MODULE = f"lineavae/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
PACKAGES = Path(sysconfig.get_path("platlib"))
SYSTEM = r"(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux-x86-64)\.so\.\d"  # of manylinux


@pytest.fixture(scope="module")
def sources():
    with tarfile.open(DIST / f"{NAME}.tar.gz") as sdist:
        return {str(PurePosixPath(file.name).relative_to(NAME)) for file in sdist if file.isfile()}


@pytest.fixture(scope="module")
def wheel():
    with zipfile.ZipFile(WHEEL) as archive:
        yield archive


def test_what_is_imported_is_what_was_installed():
    native = importlib.import_module("lineavae._ext").load()
    assert [Path(module.__file__) for module in (lineavae, native)] == [
        PACKAGES / "lineavae" / "__init__.py",
        PACKAGES / MODULE,
    ]


def test_the_sdist_holds_what_builds_it_and_what_tests_it(sources):
    assert {path.partition("/")[0] for path in sources} == {
        *("PKG-INFO", "pyproject.toml", "CMakeLists.txt", "cmake", "csrc", "python", "LICENSE", "README.md"),
        *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Makefile", ".gitignore", ".clang-format"),
        *("tests", "bench", "examples", "docs", "mkdocs.yml"),
    }
    assert [path for path in sources if path.endswith((".png", ".so", ".pyc"))] == []
    assert (DIST / f"{NAME}.tar.gz").stat().st_size < 1.5e6


def test_the_wheel_holds_the_package_and_its_module_alone(sources, wheel):
    package = {path.removeprefix("python/") for path in sources if path.startswith("python/")}
    assert {"lineavae/py.typed", "lineavae/_C.pyi"} < package
    information = {name for name in wheel.namelist() if name.startswith(f"{NAME}.dist-info/")}
    assert set(wheel.namelist()) - information == package | {MODULE}
    assert f"{NAME}.dist-info/licenses/LICENSE" in information


def test_metadata_says_nothing_that_leads_nowhere(wheel):
    metadata = message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    assert (metadata["Name"], metadata["Version"]) == ("lineavae", lineavae.__version__)
    description = metadata.get_payload()
    assert "from lineavae.linear import PPCA" in description
    assert re.findall(r"\]\((?!https://)[^)]*\)", description) == []


def test_the_module_needs_torch_and_the_system_alone(wheel, tmp_path):
    module = wheel.extract(MODULE, tmp_path)
    dynamic = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert {name for name in needed if not re.fullmatch(SYSTEM, name)} == {"libtorch.so", "libtorch_cpu.so"}
    assert re.findall(r"\(RUNPATH\).*\[(.*)\]", dynamic) == ["$ORIGIN/../torch/lib"]


def test_the_module_has_neither_symbols_nor_paths_of_the_build(wheel, tmp_path):
    module = Path(wheel.extract(MODULE, tmp_path))
    sections = subprocess.run(["readelf", "-SW", module], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"\.symtab|\.z?debug\w*", sections) == []
    assert re.findall(rb"/(?:tmp|home|root|work)/[\w/.+-]*", module.read_bytes()) == []


@pytest.mark.parametrize("name", sorted({*lineavae.__all__} - {"__version__", "diagnose"}))
def test_every_part_is_imported_without_an_extra(name):
    code = f"import lineavae; lineavae.{name}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_is_installed():
    command = Path(sysconfig.get_path("scripts")) / "lineavae"
    printed = subprocess.run([command, "diagnose"], capture_output=True, text=True, check=True).stdout
    assert f"lineavae      {lineavae.__version__}\n" in printed
    assert "could not be loaded" not in printed
