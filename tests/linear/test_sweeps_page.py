"""The code of docs/sweeps.md runs, and what is measured in it lies on the stairs."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "sweeps.md"


def test_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, PAGE.name, "exec"), {})
    agrees, columns = capsys.readouterr().out.splitlines()
    assert agrees == "True"
    assert "live" in columns
    assert {path.name for path in tmp_path.iterdir()} == {"stairs.png", "digits.safetensors"}
    for target in re.findall(r"\]\(([\w.-]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).exists(), target
