import errno
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from lineavae._io import atomic_path, check_writable, write_text
from lineavae.linear import LinearVAE, Moments

KILLED = """
import os, sys
from pathlib import Path
from lineavae._io import atomic_path

with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    sys.stdin.readline()
"""


def names(folder):
    return [path.name for path in folder.iterdir()]


def start(path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_what_a_killed_process_left_is_written_over(tmp_path):
    path = tmp_path / "model.safetensors"
    for _ in range(2):
        process, temporary = start(path)
        with process:
            process.kill()
        assert names(tmp_path) == [temporary]  # one, however often
    write_text(path, "whole")
    assert names(tmp_path) == [path.name]
    assert path.read_text() == "whole"


def test_the_file_of_a_process_that_lives_is_left_alone(tmp_path):
    path = tmp_path / "model.safetensors"
    process, temporary = start(path)
    with process:
        write_text(path, "mine")
        assert (tmp_path / temporary).read_text() == "half"
        assert path.read_text() == "mine"
        process.communicate("\n")
    assert process.returncode == 0
    assert names(tmp_path) == [path.name]
    assert path.read_text() == "half"


def test_writers_of_one_path_do_not_meet(tmp_path, monkeypatch):
    """A second one begins when the first has renamed its file, whose name it may take."""
    path, second = tmp_path / "model.safetensors", ExitStack()
    replace = Path.replace

    def replace_and_begin_another(temporary, target):
        replace(temporary, target)
        monkeypatch.undo()
        second.enter_context(atomic_path(path)).write_text("second")

    monkeypatch.setattr(Path, "replace", replace_and_begin_another)
    write_text(path, "first")
    assert path.read_text() == "first"
    second.close()
    assert path.read_text() == "second"
    assert names(tmp_path) == [path.name]


def test_links_are_kept(tmp_path):
    for folder in ("real", "links"):
        (tmp_path / folder).mkdir()
    link = tmp_path / "links" / "x.txt"
    link.symlink_to("../real/y.txt")
    for text in ("first", "second"):
        check_writable(link)
        write_text(link, text)
        assert link.is_symlink()
        assert (tmp_path / "real" / "y.txt").read_text() == text
    assert names(tmp_path / "links") == ["x.txt"]


def test_an_exception_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \udc00")
    assert names(tmp_path) == ["x.txt"]
    assert path.read_text() == "old"


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for write in (check_writable, lambda path: write_text(path, "")):
        with pytest.raises(OSError, match="not a regular file"):
            write(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_writable_place_is_left_as_it_was(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "x.png")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        check_writable(tmp_path / "file" / "x.png")
    with pytest.raises(OSError, match="proc"):
        check_writable(type(tmp_path)("/proc/x.png"))


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: LinearVAE(100, 20).save(path),
        lambda path: Moments.from_data(torch.rand(300, 100)).save(path),
        lambda path: LinearVAE(100, 20).fit(torch.rand(300, 100), steps=1, checkpoint=path, progress=False),
    ],
    ids=["save", "moments", "fit"],
)
def test_a_full_disk_is_an_os_error(tmp_path, write):
    with pytest.raises(OSError, match=r"model\.safetensors") as caught:
        write(tmp_path / "model.safetensors")
    assert caught.value.errno == errno.EFBIG
    assert names(tmp_path) == []


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.safetensors")
    model = LinearVAE(3, 2)
    model.save(path)
    assert torch.equal(LinearVAE.load(path).weight, model.weight)
