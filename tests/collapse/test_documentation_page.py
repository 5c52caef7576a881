"""The code of docs/collapse.md runs, on a VAE whose collapse is known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

PAGE = Path(__file__).parents[2] / "docs" / "collapse.md"


class Encoder(nn.Module):
    """The optimal encoder of a linear VAE with K = 20 whose columns from the fifth on are zero."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        squared_norm = torch.cat([torch.linspace(0.5, 4, 5), torch.zeros(15)])
        mean = squared_norm.sqrt() / (1 + squared_norm) * x
        return mean, -squared_norm.log1p().expand_as(mean)


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    squared_norm = torch.cat([torch.linspace(0.5, 4, 5), torch.zeros(15)])
    data = torch.randn(1000, 20) * (1 + squared_norm).sqrt()
    namespace = {"encoder": Encoder(), "loader": data.split(128)}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks[0].strip().splitlines()) <= 10 + 1  # ten lines and a blank one
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    collapsed = namespace["report"].at(0.0, 0.0).collapsed
    assert np.flatnonzero(collapsed).tolist() == list(range(5, 20))
    assert "collapsed latents: [ 5  6  7" in capsys.readouterr().out
    # the closed form, ½ Σ log(λ_j/σ²)
    expected = squared_norm.log1p().sum().item() / 2
    information = namespace["information"]
    assert information.value == pytest.approx(expected, abs=0.25)
    assert {path.name for path in tmp_path.iterdir()} == {
        "curve.png",
        "spectrum.png",
        "surface.png",
        "epoch=10.json",
        "course.png",
        "posterior",
    }
