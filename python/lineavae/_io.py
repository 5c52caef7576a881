"""Files are written whole or not at all: to a temporary name beside the target, synced, then renamed.

And what JSON lacks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# the mask can only be read by setting it, which other threads would notice later on
_UMASK = os.umask(0o022)
os.umask(_UMASK)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on a clean exit it replaces ``path`` in one step.

    A process killed at any moment leaves either the old file or the new one, and at most one hidden file
    beside it, over which the next writer of ``path`` writes. On an exception the temporary file is removed
    and ``path`` stays as it was. A link stays one, to the new file.
    """
    path = _target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = _open_temporary(path)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # not after it was renamed, when the name may be another writer's
        raise
    finally:
        os.close(descriptor)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, most_bytes: int = 1 << 24) -> dict[str, Any]:
    """Read an object; a ValueError, which names the file, says why there is none."""
    try:
        if path.stat().st_size > most_bytes:
            raise ValueError("it is too long")
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def finite(value: Any, otherwise: Callable[[float], Any] = lambda _: None) -> Any:
    """Give None for numbers that are not finite, which JSON lacks, in dicts and lists as well."""
    if isinstance(value, Mapping):
        return {key: finite(item, otherwise) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item, otherwise) for item in value]
    return otherwise(value) if isinstance(value, float) and not math.isfinite(value) else value


def spelled(value: Any) -> Any:
    """Give "Infinity", "-Infinity" and "NaN" for them, as JavaScript spells them; `number` reads these."""
    return finite(value, lambda x: "NaN" if math.isnan(x) else "Infinity" if x > 0 else "-Infinity")


def number(value: Any) -> float:
    """Give a number as it was before `spelled`."""
    if isinstance(value, str) and value not in ("Infinity", "-Infinity", "NaN"):
        raise ValueError(f"{value!r} is no number")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def check_writable(path: Path) -> None:
    """Raise the OSError that writing ``path`` would end in, and leave nothing behind.

    It is what can be known before the work: a disk may still fill up in the meantime.
    """
    folder = _target(path).parent
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))


def _target(path: Path) -> Path:
    """Give the file that is to be replaced: absolute, and where links lead to."""
    if path.exists() and not path.is_file():  # root would replace a device
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.resolve()


def _open_temporary(path: Path) -> tuple[int, Path]:
    """Open the temporary file of ``path``, and hold its lock until it is closed.

    Its name is the same each time, so that what a killed process left is written over. The lock, which goes
    with its process, tells that from the file of one that lives. There, or where no lock can be had, the name
    is a random one.
    """
    # the suffix is kept: writers such as matplotlib choose their format by it
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    descriptor = None
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # the process that held the lock before may have renamed the file
        if os.path.samestat(os.fstat(descriptor), temporary.stat()):
            os.ftruncate(descriptor, 0)
            return descriptor, temporary
    except OSError:
        pass
    if descriptor is not None:
        os.close(descriptor)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    return descriptor, Path(name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
