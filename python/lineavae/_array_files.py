"""Arrays in NumPy's and safetensors' files: which there are, where they lie, and their bytes.

This is the one place that reads these formats. No header is trusted: its size is bounded before it is parsed,
and what it says is compared with the bytes that are there, before anything is allocated by its word. Nothing
is ever unpickled. Formats that have libraries of their own are in `lineavae._formats`.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses import FakeTensorMode

# Bytes of one read. A zip member makes a copy of as many.
_READ_BYTES = 1 << 20

# Bytes of headers at the most: NumPy's own bound; that of some 50 000 tensors; that of as many zip members.
_NPY_HEADER, _SAFETENSORS_HEADER, _ZIP_DIRECTORY = 10_000, 1 << 22, 1 << 22

# Bytes that deflate makes of one.
_DEFLATE_RATIO = 1032

_MOST_DIMENSIONS = 64

_NPY_TEXT = re.compile(
    r"""\{\s*(?:(?:
        ['"]descr['"]\s*:\s*['"](?P<dtype>[^'"]{1,20})['"] |
        ['"]fortran_order['"]\s*:\s*(?P<is_fortran>True|False) |
        ['"]shape['"]\s*:\s*\((?P<shape>[\d,\sL]*)\)
    )\s*(?:,\s*|(?=\})))*\}\s*""",
    re.VERBOSE,
)
_NPY_DTYPE = re.compile(r"[<>=|]?[a-zA-Z?]\d{0,3}")

_SAFETENSORS_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}

_Buffer = TypeVar("_Buffer", Tensor, NDArray[Any])

Stream = io.RawIOBase | io.BufferedIOBase


class ArrayFileError(ValueError):
    """A file is not what it should be; the message names it."""


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies: in a file from byte ``offset`` on, or so in a member of a zip file.

    One that has a ``reader``, a module of `lineavae._formats`, is what that calls ``member``.
    """

    path: Path
    dtype: np.dtype[Any] | torch.dtype
    shape: tuple[int, ...]
    offset: int = 0
    member: str | None = None
    is_fortran: bool = False
    reader: str | None = None

    def open(self, stack: ExitStack) -> Stream:
        """Open the file at the beginning of the data, until the stack is closed."""
        with reading(self.path):
            if self.reader is not None:
                format = import_module(f"lineavae._formats.{self.reader}")
                return _Blocks(format.blocks(self, stack))
            if self.member is None:
                file = stack.enter_context(self.path.open("rb", buffering=0))
                file.seek(self.offset)
                return file
            member = stack.enter_context(_open_zip(self.path, stack).open(self.member))
            member.read(self.offset)  # a seek would give up the checksum
            return cast(io.BufferedIOBase, member)

    def map(self) -> NDArray[Any]:
        """Map an array of NumPy's into memory, for reading alone.

        The process is killed without a word where the file shrinks later, or its disk fails.
        """
        order: Literal["C", "F"] = "F" if self.is_fortran else "C"
        dtype = cast("np.dtype[Any]", self.dtype)
        with reading(self.path):
            return np.asarray(np.memmap(self.path, dtype, "r", self.offset, self.shape, order))

    def read(self, stream: Stream, buffer: _Buffer) -> _Buffer:
        """Fill a contiguous buffer with what comes next, and give it back."""
        # not mapped, so that a file that shrinks, or a disk that fails, ends in an error
        if isinstance(buffer, Tensor):
            view = buffer.reshape(-1).view(torch.uint8).numpy().data
        else:
            view = buffer.reshape(-1).view(np.uint8).data
        with reading(self.path):
            while view:
                count = stream.readinto(view[:_READ_BYTES])
                if not count:
                    raise ArrayFileError(f"{self.path} is truncated: {len(view)} bytes are missing")
                view = view[count:]
        return buffer


class _Blocks(io.RawIOBase):
    """The bytes of arrays that follow each other, as a stream."""

    def __init__(self, blocks: Iterator[NDArray[Any]]) -> None:
        self._blocks = blocks
        self._left = memoryview(b"")

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


# What a file holds by name; an array is looked at when it is asked for, whatever the others are.
Contents = Mapping[str, Callable[[], StoredArray]]


def npy_array(path: Path) -> StoredArray:
    """Describe the array of an ``.npy`` file."""
    with reading(path), path.open("rb") as stream:
        return _npy_array(str(path), stream, path.stat().st_size, path)


def npz_arrays(path: Path) -> Contents:
    """Describe the arrays of an ``.npz`` file."""
    with reading(path), ExitStack() as stack:
        members = {info.filename: info for info in _open_zip(path, stack).infolist()}
        size = path.stat().st_size

    def describe(info: zipfile.ZipInfo) -> StoredArray:
        where = f"{path}: {info.filename.removesuffix('.npy')!r}"
        ratios = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE_RATIO}
        if info.compress_type not in ratios:
            raise ArrayFileError(f"{where} cannot be read: it must be stored or deflated, as np.savez does")
        if info.flag_bits & 1:
            raise ArrayFileError(f"{where} cannot be read: it is encrypted with a password")
        if info.file_size > ratios[info.compress_type] * min(info.compress_size, size):
            raise ArrayFileError(f"{path} is damaged: no {info.file_size} bytes are in it")
        with reading(path), ExitStack() as stack, _open_zip(path, stack).open(info.filename) as stream:
            return _npy_array(where, stream, info.file_size, path, info.filename)

    return {
        name.removesuffix(".npy"): partial(describe, info)
        for name, info in members.items()
        if name.endswith(".npy")
    }


def torch_arrays(path: Path) -> Contents:
    """Describe the tensors of a dict in a file of ``torch.save``, in torch's zip format."""
    with reading(path), ExitStack() as stack:
        is_zip = zipfile.is_zipfile(path)
        archive = _open_zip(path, stack) if is_zip else None
        if archive is None or not all(map(partial(_is_plain, archive), archive.infolist())):
            raise ArrayFileError(
                f"{path} must be in the format that torch.save writes: an uncompressed zip, little-endian"
            )
        try:
            # no data are read: each tensor says where in the file its own are
            with FakeTensorMode():
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's loader raises a dozen kinds
            foreign = re.search(r"GLOBAL (\S+)", str(error))  # behind advice to unpickle it all the same
            if foreign:
                raise ArrayFileError(f"{path} must hold tensors alone, got {foreign[1]}") from error
            reason = _reason(error).splitlines()[0]
            raise ArrayFileError(f"{path} is no file of tensors by torch.save: {reason}") from error
    if not isinstance(content, Mapping):
        got = "a tensor" if isinstance(content, Tensor) else type(content).__name__
        raise ArrayFileError(f"{path} must hold a dict of tensors, got {got}")
    if content and not any(isinstance(tensor, Tensor) for tensor in content.values()):
        got = ", ".join(f"{name!r} of type {type(value).__name__}" for name, value in content.items())
        raise ArrayFileError(f"{path} must hold a dict of tensors, got {got}")

    def describe(name: str, tensor: Tensor) -> StoredArray:
        if not tensor.is_contiguous():
            raise ArrayFileError(f"{path}: {name!r} must be contiguous, got strides {tensor.stride()}")
        start = cast(int, tensor.untyped_storage()._checkpoint_offset)
        offset = start + int(tensor.storage_offset()) * tensor.itemsize
        return StoredArray(path, tensor.dtype, tuple(tensor.shape), offset)

    return {
        name: partial(describe, name, tensor)
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }


def _is_plain(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    """Whether the bytes of a member of torch's zip format lie in the file as they lie in memory."""
    if info.filename.endswith("/byteorder") and archive.read(info) != b"little":
        return False
    return info.compress_type == zipfile.ZIP_STORED


def safetensors_arrays(path: Path) -> tuple[Contents, dict[str, str]]:
    """Describe the arrays of a ``.safetensors`` file, and give the metadata of its header.

    All of them are checked at once, since the data must be theirs without a gap. safetensors' own reader
    refuses paths that are not UTF-8.
    """
    with reading(path), path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        left = path.stat().st_size - 8 - size
        if left < 0 or size > _SAFETENSORS_HEADER:
            raise ArrayFileError(f"{path} is not a safetensors file: its header would have {size} bytes")
        try:
            header = json.loads(stream.read(size).decode())
            metadata = dict(header.pop("__metadata__", {}))
            if not all(isinstance(value, str) for value in metadata.values()):
                raise TypeError("metadata must be text")
            arrays = {name: _safetensors_array(path, 8 + size, **entry) for name, entry in header.items()}
        # whatever Python says of JSON that is no such header, too deeply nested included
        except Exception as error:
            raise ArrayFileError(f"{path} is not a safetensors file: {_reason(error)}") from error
    end = 8 + size
    for array in sorted(arrays.values(), key=lambda array: (array.offset, math.prod(array.shape))):
        if array.offset != end:
            break
        end += math.prod(array.shape) * array.dtype.itemsize
    if end != 8 + size + left:
        raise ArrayFileError(f"{path} is not a whole safetensors file: its data are not what its header says")
    return {name: partial(_identity, array) for name, array in arrays.items()}, metadata


def _identity(array: StoredArray) -> StoredArray:
    return array


def _safetensors_array(
    path: Path, start: int, dtype: str, shape: list[int], data_offsets: list[int]
) -> StoredArray:
    begin, end = data_offsets
    if not all(type(number) is int and number >= 0 for number in (*shape, begin)):
        raise ValueError(f"shape {shape} from {begin} on")
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{len(shape)} dimensions")
    array = StoredArray(path, _SAFETENSORS_DTYPES[dtype], tuple(shape), start + begin)
    if end != begin + math.prod(shape) * array.dtype.itemsize:
        raise ValueError(f"shape {shape} of {dtype} in {data_offsets}")
    return array


def _npy_array(
    where: str, stream: IO[bytes], size: int, path: Path, member: str | None = None
) -> StoredArray:
    """Describe an array in NumPy's format; its header and data are ``size`` bytes."""
    magic = stream.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise ArrayFileError(f"{where} is not in NumPy's npy format: it begins with {magic!r}")
    prefix = stream.read(2 if magic[6] == 1 else 4)
    length = int.from_bytes(prefix, "little")
    if length > _NPY_HEADER:
        raise ArrayFileError(f"{where} is not in NumPy's npy format: its header would have {length} bytes")
    # not NumPy's parser: that of Python, to which it hands the text, can be made to fail in any way
    text = stream.read(length).decode("latin-1")
    found = _NPY_TEXT.fullmatch(text)
    fields = found.groupdict() if found else {}
    if None in fields.values() or not fields or not _NPY_DTYPE.fullmatch(fields["dtype"]):
        raise ArrayFileError(f"{where} must hold one plain array, got the header {text.strip()[:100]!r}")
    if fields["dtype"].strip("|") == "O":
        raise ArrayFileError(f"{where} holds pickled Python objects, which are not read")
    numbers = [number.strip().rstrip("L") for number in fields["shape"].split(",") if number.strip()]
    if len(numbers) > _MOST_DIMENSIONS or not all(n.isdecimal() and len(n) < 20 for n in numbers):
        raise ArrayFileError(f"{where} must have a shape, got ({fields['shape'][:100]})")
    try:
        dtype = np.dtype(fields["dtype"])
    except TypeError as error:
        raise ArrayFileError(f"{where} must be of a known dtype, got {fields['dtype']}") from error
    shape = tuple(map(int, numbers))
    offset = len(magic) + len(prefix) + length
    expected = offset + math.prod(shape) * dtype.itemsize
    if size != expected:  # and so a member is read to its end, where zipfile compares the checksum
        state = "truncated" if size < expected else "too long"
        raise ArrayFileError(f"{where} is {state}: {size} bytes where its header says {expected}")
    return StoredArray(path, dtype, shape, offset, member, fields["is_fortran"] == "True")


class _ZipBytes(io.BufferedReader):
    """A zip file's bytes, of which zipfile asks for as many at once as the file says."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > max(_ZIP_DIRECTORY, _READ_BYTES):
            raise zipfile.BadZipFile(f"its directory would have {size} bytes")
        return super().read(size)


def _open_zip(path: Path, stack: ExitStack) -> zipfile.ZipFile:
    file = stack.enter_context(_ZipBytes(io.FileIO(path)))
    return stack.enter_context(zipfile.ZipFile(file))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is raised while a file is read as an error that names it."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise ArrayFileError(f"{path} must be a regular file")
    try:
        yield
    except (ArrayFileError, ModuleNotFoundError):
        raise
    except OSError as error:
        raise ArrayFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile and zlib raise a dozen kinds
        raise ArrayFileError(f"{path} is damaged: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
