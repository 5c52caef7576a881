"""What is said in several files, README.md beside nothing, and the types of the native module."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lineavae
from lineavae import _ext

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version():
    (cited,) = re.findall(r"^version: (.*)$", read("CITATION.cff"), re.MULTILINE)
    logged, *_ = re.findall(r"^## \[(.*?)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert cited == logged == lineavae.__version__


def test_an_index_shows_the_readme_without_what_lies_beside_it(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "cmake")
    shown = importlib.import_module("package_readme").dynamic_metadata("readme", {})["text"]
    readme = read("README.md")
    for target in re.findall(r"\]\(([^)]*)\)", readme):
        assert target.startswith("https://") or f"]({target})" not in shown
    assert "docs/theory.md goes through its equations" in shown
    assert "The tutorial (docs/tutorial.md) begins here" in shown
    assert "![" not in shown
    code = re.compile(r"```python\n.*?```", re.DOTALL)
    assert code.findall(shown) == code.findall(readme)


@pytest.mark.skipif("LINEAVAE_NATIVE" in os.environ, reason="of the module that is installed")
def test_the_types_of_the_native_module_are_its_own(tmp_path):
    pytest.importorskip("mypy")
    stubs = tmp_path / "lineavae"
    stubs.mkdir()
    (stubs / "__init__.pyi").touch()  # mypy would read all that the package imports
    shutil.copy(Path(lineavae.__file__).with_name("_C.pyi"), stubs)
    check = "import sys, torch; from mypy.stubtest import main; sys.exit(main())"
    environment = os.environ | {"MYPYPATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    checked = subprocess.run(
        [sys.executable, "-c", check, "lineavae._C"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout
    assert all(type(value) is str for value in _ext.load().build_info().values())
