"""The scripts in examples/ run as a user runs them, in their short form."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_notebook() -> None:
    """It runs, is without outputs, and each result shows as it prints."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "linear_vae.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [cell.outputs[-1].data for cell in cells]
    forecast, history, gap, stability, report, curve, comparison, heat_map = outputs
    for shown, text in (
        (forecast, "7 of 16 latents, 9 collapse"),
        (history, "    3000     -17.352 "),
        (gap, "largest ELBO          23.929443"),
        (stability, "a saddle of the likelihood, with σ² fixed"),
        (comparison, "9 woke: 7-15"),
    ):
        assert shown["text/html"].startswith("<pre")
        assert text in shown["text/html"]
    assert "latents 7-15" in report["text/plain"]
    assert curve["image/png"]
    assert heat_map["image/png"]


@pytest.mark.slow
def test_train_vae() -> None:
    command = [
        sys.executable,
        "-W",
        "error",
        EXAMPLES / "train_vae.py",
        "--epochs",
        "3",
        "--num-images",
        "600",
    ]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    elbos = [float(number) for number in re.findall(r"ELBO +(-?[0-9.]+) nats   σ²", printed)]
    assert len(elbos) == 3
    assert elbos[0] < elbos[-1]
    assert "σ²-tuned ELBO" in printed
    assert "600 samples, 50 latents" in printed
