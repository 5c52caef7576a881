"""Tensors in one safetensors file, written atomically; the header says what they are, and their checksum."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lineavae._array_files import ArrayFileError, StoredArray, safetensors_arrays
from lineavae._io import atomic_path


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write ``tensors`` as a file of the given kind, with more ``metadata`` in its header."""
    # copies: safetensors takes neither strided tensors nor two that share memory
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": f"lineavae.{kind}", "schema": "1", **metadata}
    metadata["checksum"] = _checksum(copies, metadata)
    with atomic_path(path) as temporary:
        try:
            save_file(copies, temporary, metadata)
        except SafetensorError as error:  # the disk is full, or fails
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from error


def read_tensors(caller: str, path: Path, kind: str, *more: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of the given kind; ``caller`` is named in errors, ``more`` are its further metadata."""
    path.open("rb").close()  # of what cannot be read, the error is Python's
    try:
        arrays, metadata = safetensors_arrays(path)
        with ExitStack() as stack:
            tensors = {name: _read(array(), stack) for name, array in arrays.items()}
    except ArrayFileError as error:
        raise ValueError(f"{caller}: {error}") from error
    found = (metadata.get("format"), metadata.get("schema"))
    if found != (f"lineavae.{kind}", "1"):
        raise ValueError(f"{caller}: {path} must be a file of lineavae.{kind}, schema 1, got {found}")
    # files of before the checksum have none
    is_whole = metadata.pop("checksum", None) in (None, _checksum(tensors, metadata))
    if not is_whole or metadata.keys() != {"format", "schema", *more}:
        raise ValueError(f"{caller}: {path} is damaged: it is not as it was written")
    return tensors, metadata


def _read(array: StoredArray, stack: ExitStack) -> Tensor:
    # into memory of torch's own: it is aligned, which the last bit of a vectorised sum may depend on
    buffer = torch.empty(array.shape, dtype=cast(torch.dtype, array.dtype), device="cpu")
    return array.read(array.open(stack), buffer)


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(json.dumps(sorted(metadata.items())).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
