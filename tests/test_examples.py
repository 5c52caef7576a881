"""The scripts in examples/ run as a user runs them, in their short form."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


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
