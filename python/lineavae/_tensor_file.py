"""Tensors in one safetensors file, written atomically; the header says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lineavae._io import atomic_path


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write ``tensors`` as a file of the given kind, with more ``metadata`` in its header."""
    # copies: safetensors takes neither strided tensors nor two that share memory
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(copies, temporary, {"format": f"lineavae.{kind}", "schema": "1", **metadata})


def read_tensors(caller: str, path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the header of a file of the given kind; ``caller`` is named in errors."""
    path.open("rb").close()  # of what cannot be read, Python's error gives the path, safetensors' may not
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # copies: torch's own memory is aligned, which the last bit of a vectorised sum may depend on
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{caller}: {path} is not a safetensors file: {error}") from error
    found = (metadata.get("format"), metadata.get("schema"))
    if found != (f"lineavae.{kind}", "1"):
        raise ValueError(f"{caller}: {path} must be a file of lineavae.{kind}, schema 1, got {found}")
    return tensors, metadata
