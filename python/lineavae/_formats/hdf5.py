"""HDF5 by h5py: the ``obsm`` of an AnnData file, or else the data sets of the root and of its groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lineavae._array_files import ArrayFileError, Contents, StoredArray, reading
from lineavae._formats import num_chunks, row_ranges
from lineavae._optional import require


def arrays(path: Path) -> Contents:
    """Describe the data sets; one whose bytes lie in the file as in memory is read without h5py."""
    h5py = require("h5py", "formats")
    with reading(path), h5py.File(path, "r") as file:
        group = _object(path, file, "obsm") if "obsm" in file else file
        if not isinstance(group, h5py.Group):
            raise ArrayFileError(f"{path}: 'obsm' must be a group of arrays")
        names = [*group]
        if group is file:
            names += [f"{name}/{inner}" for name in group if _is_group(file, name) for inner in file[name]]
        members = {name: f"{group.name}/{name}".lstrip("/") for name in names}
    return {name: partial(_describe, path, member) for name, member in members.items()}


def blocks(array: StoredArray, stack: ExitStack) -> Iterator[NDArray[Any]]:
    """Read a data set."""
    path, member = array.path, str(array.member)
    file = stack.enter_context(require("h5py", "formats").File(path, "r"))
    where, data = f"{path}: {member!r}", _data_set(path, file, member)
    ranges = row_ranges(where, data.shape, data.chunks, data.dtype.itemsize)
    _check_written(where, data)
    for rows in ranges:
        yield data[rows]


def _describe(path: Path, member: str) -> StoredArray:
    h5py = require("h5py", "formats")
    with reading(path), h5py.File(path, "r") as file:
        data = _data_set(path, file, member)
        dtype, shape, offset = data.dtype, data.shape, data.id.get_offset()
        # a float of the file's own making has no equal in memory
        is_plain = offset is not None and data.id.get_type().equal(h5py.h5t.py_create(np.dtype(dtype)))
    if is_plain:
        return StoredArray(path, dtype, shape, offset)
    return StoredArray(path, dtype, shape, member=member, reader="hdf5")


def _data_set(path: Path, file: Any, member: str) -> Any:
    """Look a data set up whose numbers lie in this file, and can be read."""
    h5py = require("h5py", "formats")
    where, found = f"{path}: {member!r}", _object(path, file, member)
    if not isinstance(found, h5py.Dataset):
        kind = found.attrs.get("encoding-type", "group")
        raise ArrayFileError(
            f"{where} must be an array, got a {kind}: replace it by .to_numpy() of a dataframe, or by "
            ".toarray() of a sparse matrix"
        )
    if found.shape is None:
        raise ArrayFileError(f"{where} must be an array, got an empty data set")
    how = found.id.get_create_plist()
    if how.get_external_count() or how.get_layout() == h5py.h5d.VIRTUAL:
        raise ArrayFileError(f"{where} has its data in other files, which are not read")
    for code, *_, name in map(how.get_filter, range(how.get_nfilters())):
        if not h5py.h5z.filter_avail(code):
            raise ArrayFileError(
                f"{where} is compressed by filter {code} ({name.decode(errors='replace')}), which h5py lacks"
            )
    return found


def _check_written(where: str, data: Any) -> None:
    """Check that all numbers were written: others would be read as zeros, and look like a collapse."""
    if data.chunks is None:
        is_written = data.size == 0 or data.id.get_storage_size() > 0
    else:
        is_written = data.id.get_num_chunks() == num_chunks(data.shape, data.chunks)
    if not is_written:
        raise ArrayFileError(f"{where} is incomplete: not all of its numbers were written")


def _is_link(group: Any, name: str) -> bool:
    """Whether a name leads elsewhere, maybe to another file."""
    return not isinstance(group.get(name, getlink=True), require("h5py", "formats").HardLink)


def _is_group(file: Any, name: str) -> bool:
    return not _is_link(file, name) and file.get(name, getclass=True) is require("h5py", "formats").Group


def _object(path: Path, file: Any, member: str) -> Any:
    """Look up what a path of names leads to, without following links."""
    found = file
    for name in member.split("/"):
        if _is_link(found, name):
            raise ArrayFileError(f"{path}: {member!r} is a link, which is not followed")
        found = found[name]
    return found
