"""Every example in a docstring runs and prints what it says; so does the README's."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import lineavae

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(lineavae.__path__, "lineavae.")
    if not module.name.endswith(("__main__", "._C"))
)
ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    results = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert results.failed == 0


def test_public_functions_have_examples() -> None:
    for package in ("lineavae.ops", "lineavae.linear", "lineavae.nn", "lineavae.collapse", "lineavae.data"):
        module = importlib.import_module(package)
        for name in module.__all__:
            docstring = getattr(module, name).__doc__ or ""
            assert ">>> " in docstring, f"{package}.{name} has no example"


def test_models_have_what_their_table_says() -> None:
    rows = re.findall(r"^\|(.+)\|$", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), re.MULTILINE)
    _, *names = [cell.strip(" `") for cell in rows[0].split("|")]
    models = [getattr(lineavae.linear, name, None) or getattr(lineavae.nn, name) for name in names]
    checked = 0
    for row in rows[2:]:
        _, *cells = re.split(r"(?<!\\)\|", row)
        for model, cell in zip(models, cells, strict=True):
            for method in re.findall(r"`([a-z][a-z_0-9]*)`", cell):
                assert hasattr(model, method), (model, method)
                checked += 1
    assert checked > 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index", "tutorial", "monitor", "sigma2", "losses", "many-gpus"])
def test_pages_print_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code of a page runs, and a comment behind a print is what it prints."""
    monkeypatch.chdir(tmp_path)
    for variable, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "localhost"),
        ("MASTER_PORT", "0"),
    ):
        monkeypatch.setenv(variable, value)
    code = "\n".join(
        re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{name}.md").read_text("utf-8"), re.DOTALL)
    )
    exec(compile(code, f"{name}.md", "exec"), {"__name__": "__main__"})
    printed = iter(capsys.readouterr().out.splitlines())
    for said in re.findall(r"^print\(.*\)  # (.+)$", code, re.MULTILINE):
        assert said in printed, said


@pytest.mark.slow
def test_readme_examples(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    elbo, likelihood = (float(re.search(r"-?\d+\.\d+", line)[0]) for line in printed.split("\n")[:2])
    assert likelihood - 1.0 < elbo <= likelihood + 1e-9
    assert "1000 samples, 50 latents" in printed
