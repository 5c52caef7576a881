"""Folders of image files as one array: decoded once, into a file that is mapped into memory from then on.

A cache is named after all that goes into it: the folder, the preparation, and name, size and time of the last
change of every file. So it never holds anything else, and files that have changed make another. It grows
under a hidden name, and after each block the progress is noted beside it, from where the next process
continues. A lock, which goes with its process, makes others wait that need the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lineavae._array_files import ArrayFileError, npy_array
from lineavae._io import write_text
from lineavae._optional import require
from lineavae.data.image_files import SUFFIXES, Preparation, is_coloured, list_images
from lineavae.data.images import DataError

_VERSION = 1

# A block, of which two are held: what is decoded between two notes of the progress, and again after a kill.
_BLOCK_BYTES, _BLOCK_IMAGES = 1 << 24, 1024

# Files that cannot be decoded of which a message has the names.
_NAMED = 3

# What NumPy's header takes before the pixels, whatever their number.
_HEADER_BYTES = 128


@dataclass
class _Decoded:
    """What has become of the files so far: of how many, in how many rows, and which are left out, and why."""

    num_files: int = 0
    num_images: int = 0
    num_grey: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def default_cache() -> Path:
    """Give the folder that LINEAVAE_CACHE names; else ``lineavae`` in the user's folder of caches."""
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LINEAVAE_CACHE") or Path(users, "lineavae"))


class ImageCache:
    """The images of a folder, and the files that keep them decoded.

    Parameters
    ----------
    folder
        Where the image files are.
    preparation
        What becomes of each.
    cache
        Folder of the files that keep them.
    max_corrupt
        Part of the files that may be left out because they cannot be decoded.

    Attributes
    ----------
    files : dict
        The image files, as `list_images` gives them.
    left_out : dict
        Those that could not be decoded, and why.
    num_grey : int
        Images without colours, where others have some.
    """

    def __init__(self, folder: Path, preparation: Preparation, cache: Path, max_corrupt: float) -> None:
        self.folder = folder.resolve()
        self.files = list_images(self.folder)
        if not self.files:
            raise DataError(f"{folder} holds no images: {', '.join(SUFFIXES)}")
        self.left_out: Mapping[str, str] = {}
        self.num_grey = 0
        self._preparation, self._max_corrupt, self._cache = preparation, max_corrupt, cache
        self._source = {"version": _VERSION, "folder": str(self.folder), **asdict(preparation)}
        self._stem = f"{self.folder.name[:40]}-{_digest(self._source)[:8]}"
        self._digest = _digest({**self._source, "files": self.files})
        self._final = cache / f"{self._stem}-{self._digest}.npy"
        self._partial = cache / f".{self._stem}.partial.npy"
        self._progress = cache / f".{self._stem}.progress.json"

    def load(self) -> NDArray[np.uint8]:
        """Map the pixels into memory, (N, H, W) or (N, H, W, 3); decode what is not yet decoded."""
        images = self._find()
        if images is None:
            try:
                self._cache.mkdir(parents=True, exist_ok=True)
                with _locked(self._partial, f"another process decodes {self.folder}: waiting for it") as file:
                    images = self._find()
                    if images is None:
                        images = self._make(file)
                    else:
                        self._partial.unlink()
            except OSError as error:
                raise DataError(
                    f"{error.filename or self._cache}: {error.strerror or error}: decoded images are kept in "
                    f"{self._cache}, or where LINEAVAE_CACHE says"
                ) from error
        self._check(self.left_out)
        return images

    def _find(self) -> NDArray[np.uint8] | None:
        """Give the images of a finished cache; one that is damaged is none."""
        found = _read(self._final.with_suffix(".json"))
        try:
            array = npy_array(self._final)
        except ArrayFileError:
            return None
        if found is None or array.dtype != np.uint8 or list(array.shape) != found["shape"]:
            return None
        self.left_out, self.num_grey = found["left_out"], found["num_grey"]
        return array.map()

    def _make(self, file: IO[bytes]) -> NDArray[np.uint8]:
        decoded, shape = self._decode_all(file)
        document = {
            **self._source,
            "decoder": _decoder(),
            "shape": shape,
            **asdict(decoded),
            "files": self.files,
        }
        _write(self._final.with_suffix(".json"), document)
        self._partial.replace(self._final)
        self._progress.unlink(missing_ok=True)
        for other in self._cache.iterdir():  # of files that have changed since
            if other.name.startswith(f"{self._stem}-") and other.stem != self._final.stem:
                other.unlink(missing_ok=True)
        self.left_out, self.num_grey = decoded.left_out, decoded.num_grey
        return npy_array(self._final).map()

    def _decode_all(self, file: IO[bytes]) -> tuple[_Decoded, tuple[int, ...]]:
        """Write what the file does not have yet; give the shape of all."""
        shape = self._shape()
        done = self._continue(file, prod(shape))
        step = max(1, min(_BLOCK_IMAGES, _BLOCK_BYTES // prod(shape)))
        names = islice(self.files, done.num_files, None)
        with _progress_bar(done.num_files, len(self.files)) as advance, _workers() as workers:

            def begin() -> dict[str, Future[NDArray[np.uint8] | str]]:
                return {name: workers.submit(self._decode, name) for name in islice(names, step)}

            coming = begin()
            while block := coming:
                coming = begin()
                for name, future in block.items():
                    image = future.result()
                    if isinstance(image, str):
                        done.left_out[name] = image
                        self._check(done.left_out)
                    else:
                        if image.ndim < len(shape):
                            image = np.repeat(image[..., None], 3, axis=2)
                            done.num_grey += 1
                        if image.shape != shape:
                            raise DataError(self._other_size(name, image.shape, shape))
                        file.write(np.ascontiguousarray(image).data)
                        done.num_images += 1
                    done.num_files += 1
                    advance()
                if coming:
                    _sync(file)
                    _write(self._progress, {"digest": self._digest, **asdict(done)})
        shape = (done.num_images, *shape)
        file.seek(0)
        file.write(_header(shape))
        _sync(file)
        return done, shape

    def _shape(self) -> tuple[int, ...]:
        """Give the shape of an image: of the first that can be decoded, in colours if any file has some."""
        images = map(self._decode, self.files)
        first = next((image for image in images if not isinstance(image, str)), None)
        if first is None:
            name = next(iter(self.files))
            raise DataError(f"{self.folder} holds no image that can be decoded; {name}: {self._decode(name)}")
        return (*first.shape[:2], 3) if any(map(self._is_coloured, self.files)) else first.shape

    def _is_coloured(self, name: str) -> bool:
        try:
            return is_coloured(self.folder / name)
        except Exception:  # as in _decode, which says so in its turn
            return False

    def _continue(self, file: IO[bytes], row_bytes: int) -> _Decoded:
        """Give what a process before has done, and cut off what it had not noted."""
        noted = _read(self._progress) or {}
        done = _Decoded()
        if noted.pop("digest", None) == self._digest:
            done = _Decoded(**noted)
        size = _HEADER_BYTES + done.num_images * row_bytes
        if os.fstat(file.fileno()).st_size < size:
            done, size = _Decoded(), _HEADER_BYTES
        file.truncate(size)
        file.seek(size)
        return done

    def _decode(self, name: str) -> NDArray[np.uint8] | str:
        """Give the pixels of a file, or why there are none."""
        try:
            return self._preparation.decode(self.folder / name)
        except (DataError, ModuleNotFoundError):
            raise
        except OSError as error:
            return error.strerror or str(error)
        except Exception as error:  # Pillow raises a dozen kinds
            return str(error) or type(error).__name__

    def _other_size(self, name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> str:
        return (
            f"{self.folder / name} has {found[1]} x {found[0]} pixels, the images before {shape[1]} x "
            f"{shape[0]}: they must have one size, or be given one"
        )

    def _check(self, left_out: Mapping[str, str]) -> None:
        if len(left_out) > self._max_corrupt * len(self.files):
            raise DataError(
                f"{self.folder}: {self.describe(left_out)}; at most {self._max_corrupt:.3%} may be left out "
                "(max_corrupt)"
            )

    def describe(self, left_out: Mapping[str, str]) -> str:
        """Say how many files cannot be decoded, and name the first."""
        named = [f"{name} ({reason})" for name, reason in islice(left_out.items(), _NAMED)]
        if len(left_out) > _NAMED:
            named.append("...")
        return f"{len(left_out)} of {len(self.files)} images cannot be decoded: {', '.join(named)}"


def _decoder() -> dict[str, str]:
    """Give the versions of what decodes: another libjpeg may round otherwise."""
    features = require("PIL.features", "experiments")
    return {"Pillow": features.version("pil"), "libjpeg": features.version("jpg")}


def _header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    if stream.tell() != _HEADER_BYTES:
        raise RuntimeError(f"NumPy's header has {stream.tell()} bytes")
    return stream.getvalue()


def _digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _write(path: Path, document: dict[str, Any]) -> None:
    write_text(path, json.dumps({**document, "checksum": _digest(document)}))


def _read(path: Path) -> dict[str, Any] | None:
    """Give what was written there; None where there is nothing, or it is damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        checksum = document.pop("checksum")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return dict(document) if checksum == _digest(document) else None


@contextmanager
def _locked(path: Path, waiting: str) -> Iterator[IO[bytes]]:
    """Open a file, made where there is none, and hold its lock."""
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                Console(stderr=True).print(waiting, markup=False)
                fcntl.flock(file, fcntl.LOCK_EX)
            # who held the lock before may have renamed the file
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """Threads, one for each core that the process has: Pillow works without Python's lock."""
    workers = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        yield workers
    finally:
        workers.shutdown(cancel_futures=True)


@contextmanager
def _progress_bar(done: int, total: int) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda: bar.advance(task)
