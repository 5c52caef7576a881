"""Parquet and Arrow's IPC files by pyarrow: a column of lists, or columns such as mean_0, mean_1, ..."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lineavae._array_files import ArrayFileError, Contents, StoredArray, reading
from lineavae._formats import READ_BYTES
from lineavae._optional import require

_NUMBERED = re.compile(r"(.+?)[_.\- ]?(\d+)")


def arrays(path: Path) -> Contents:
    """Describe the columns, of which numbered ones are one array."""
    with reading(path), ExitStack() as stack:
        names = _columns(_schema(path, stack))
    return {name: partial(_describe, path, name) for name in names}


def blocks(array: StoredArray, stack: ExitStack) -> Iterator[NDArray[Any]]:
    """Read an array."""
    path, (_, num_columns) = array.path, array.shape
    names = _columns(_schema(path, stack))[str(array.member)]
    width = num_columns // len(names)
    rows = max(1, READ_BYTES // (array.dtype.itemsize * num_columns))
    start = 0
    for batch in _batches(path, names, rows, stack):
        columns = [_numbers(f"{path}: {name!r}", batch.column(name), start, width) for name in names]
        start += len(batch)
        yield np.stack(columns).swapaxes(0, 1)  # one copy more, and still half the time of stack(axis=1)


def _describe(path: Path, member: str) -> StoredArray:
    pa, where = require("pyarrow", "formats"), f"{path}: {member!r}"
    with reading(path), ExitStack() as stack:
        schema = _schema(path, stack)
        names = _columns(schema)[member]
        types = [schema.field(name).type for name in names]
        shape: tuple[int, ...] = (_num_rows(path, names[0], stack),)
        if _is_list(types[0]):
            shape += (_length(path, member, types[0], stack),)
            types = [types[0].value_type]
        elif names != [member]:
            _check_numbers(where, names)
            shape += (len(names),)
        for found in types:
            if not pa.types.is_floating(found):
                raise ArrayFileError(f"{where} must be of floating numbers, or lists of them, got {found}")
        dtype = np.result_type(*(found.to_pandas_dtype() for found in types))
        return StoredArray(path, dtype, shape, member=member, reader="arrow")


def _columns(schema: Any) -> dict[str, list[str]]:
    """Give the columns of each array by its name, numbered ones in the order of their numbers."""
    numbered: dict[str, list[str]] = {}
    alone = {}
    for field in schema:
        match = _NUMBERED.fullmatch(field.name)
        if match and not _is_list(field.type):
            numbered.setdefault(match[1], []).append(field.name)
        else:
            alone[field.name] = [field.name]
    return {name: sorted(columns, key=_number) for name, columns in numbered.items()} | alone


def _number(column: str) -> int:
    return int(_NUMBERED.fullmatch(column)[2])  # type: ignore[index]


def _check_numbers(where: str, columns: Sequence[str]) -> None:
    numbers = [_number(column) for column in columns]
    for expected, number in enumerate(numbers, min(numbers[0], 1)):
        if number != expected:
            raise ArrayFileError(
                f"{where} must have one column for each number, got {columns[0]} to {columns[-1]} "
                f"with {'two' if number < expected else 'none'} of {min(number, expected)}"
            )


def _is_list(kind: Any) -> bool:
    types = require("pyarrow", "formats").types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _length(path: Path, member: str, kind: Any, stack: ExitStack) -> int:
    """Give the length of the lists of a column, which is that of the first one."""
    if hasattr(kind, "list_size"):
        return int(kind.list_size)
    for batch in _batches(path, [member], 1, stack):
        if len(batch):
            batch.column(0).validate(full=True)  # or the list may reach out of the file
            _check_nulls(f"{path}: {member!r}", batch.column(0), 0)
            return len(batch.column(0)[0])
    return 0


def _numbers(where: str, column: Any, start: int, width: int) -> NDArray[Any]:
    """Give the numbers of a column, (n, width), of which the first is in row ``start``."""
    column.validate(full=True)  # or lists may reach out of the file
    _check_nulls(where, column, start)
    if _is_list(column.type):
        if not hasattr(column.type, "list_size"):
            lengths = np.diff(column.offsets.to_numpy())
            if (lengths != width).any():
                row = int((lengths != width).argmax())
                raise ArrayFileError(
                    f"{where} must have lists of one length, got {lengths[row]} numbers in row {start + row} "
                    f"and {width} in row 0"
                )
        column = column.flatten()
        _check_nulls(where, column, start, width)
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(-1, width)


def _check_nulls(where: str, column: Any, start: int, width: int = 1) -> None:
    if column.null_count:
        row = start + int(column.is_null().to_numpy(zero_copy_only=False).argmax()) // width
        raise ArrayFileError(f"{where} must have no missing values, got null in row {row}")


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _parquet(path: Path, stack: ExitStack) -> Any:
    return stack.enter_context(require("pyarrow.parquet", "formats").ParquetFile(path))


def _ipc(path: Path, names: Sequence[str], stack: ExitStack) -> tuple[Any, Iterator[Any]]:
    """Open a file of either of Arrow's formats; with names, batches have these columns alone."""
    pa = require("pyarrow", "formats")
    source = stack.enter_context(pa.OSFile(str(path)))
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    fields = None
    if names:
        schema, _ = _ipc(path, [], stack)
        fields = sorted(map(schema.get_field_index, names))
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    if not is_file:
        reader = pa.ipc.open_stream(source, options=options)
        return reader.schema, iter(reader)
    reader = pa.ipc.open_file(source, options=options)
    return reader.schema, map(reader.get_batch, range(reader.num_record_batches))


def _schema(path: Path, stack: ExitStack) -> Any:
    return _parquet(path, stack).schema_arrow if _is_parquet(path) else _ipc(path, [], stack)[0]


def _num_rows(path: Path, name: str, stack: ExitStack) -> int:
    if _is_parquet(path):
        return int(_parquet(path, stack).metadata.num_rows)
    return sum(map(len, _ipc(path, [name], stack)[1]))


def _batches(path: Path, names: Sequence[str], rows: int, stack: ExitStack) -> Iterator[Any]:
    """Give these columns, some rows at a time."""
    if _is_parquet(path):
        yield from _parquet(path, stack).iter_batches(rows, columns=names)
        return
    for batch in _ipc(path, names, stack)[1]:
        for start in range(0, len(batch), rows):
            yield batch.slice(start, rows)
