"""Folders of image files: what is decoded, what is left out, and the cache that keeps it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lineavae.data import DataError, image_cache, load_celeba, load_images, loading
from lineavae.data.image_files import Preparation

RANDOM = np.random.default_rng(0)


def smooth(height, width, *channels):
    """An image as JPEG likes it."""
    coarse = RANDOM.integers(0, 256, (1, 3, 4, 4)).astype(np.float32)
    grown = torch.nn.functional.interpolate(torch.from_numpy(coarse), (height, width), mode="bicubic")
    image = grown[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return image if channels else image[..., 0]


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "faces").mkdir()
    return tmp_path / "faces"


@pytest.fixture
def load(folder, tmp_path):
    def load(**options):
        return load_images(folder, cache=tmp_path / "cache", **options)

    return load


def test_files_come_in_the_order_of_their_paths(folder, load):
    pixels = {name: smooth(5, 7, 3) for name in ("b.png", "a/z.PNG", "a/b/c.png", "B.png", "a.png")}
    for name, image in pixels.items():
        save(folder / name, image)
    save(folder / ".hidden.png", smooth(9, 9, 3))
    save(folder / ".thumbnails" / "a.png", smooth(9, 9, 3))
    (folder / "list.txt").write_text("no image")
    images = load()
    order = ["B.png", "a/b/c.png", "a/z.PNG", "a.png", "b.png"]
    assert np.array_equal(images.images, np.stack([pixels[name] for name in order]))
    assert images.name == "faces"
    assert images.labels is None
    assert images.remarks == ()


def test_grey_images_are_grey_alone_and_colours_among_others(folder, load):
    grey, coloured = smooth(5, 7), smooth(5, 7, 3)
    save(folder / "a.png", grey)
    assert np.array_equal(load().images, grey[None])
    save(folder / "b.png", coloured)
    images = load()
    assert np.array_equal(images.images, np.stack([np.stack([grey] * 3, axis=-1), coloured]))
    assert images.remarks == ("1 of 2 images are grey, among others in colours",)


@pytest.mark.parametrize(("crop", "size"), [(148, 64), (None, 64), (148, None), (None, 200)])
def test_cut_out_and_resized(folder, load, crop, size):
    """By Pillow and slices; and torch's antialiased interpolation is within two grey levels."""
    save(folder / "a.jpg", smooth(218, 178, 3), quality=90)
    decoded = np.asarray(Image.open(folder / "a.jpg"))
    square = decoded[35:183, 15:163] if crop else decoded[20:198]
    found = load(crop=crop, size=size).images[0]
    if size is None:
        assert np.array_equal(found, square)
        return
    assert np.array_equal(found, Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR))
    planes = torch.from_numpy(square.copy()).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(planes, (size, size), mode="bilinear", antialias=True)
    assert (resized[0].permute(1, 2, 0) - torch.from_numpy(found.copy())).abs().max() < 2


def test_images_stand_upright(folder, load):
    pixels = smooth(5, 7, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    save(folder / "a.png", pixels, exif=exif)
    assert np.array_equal(load().images[0], np.rot90(pixels, -1))


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK"])
def test_other_kinds_of_pixels(folder, load, mode):
    picture = Image.fromarray(smooth(6, 6, 3)).convert(mode)
    suffix = "jpg" if mode == "CMYK" else "png"
    picture.save(folder / f"a.{suffix}", quality=100, subsampling=0)
    expected = np.asarray(Image.open(folder / f"a.{suffix}").convert("L" if mode in ("1", "LA") else "RGB"))
    assert np.array_equal(load().images[0], expected)


def truncated(path):
    save(path, smooth(64, 64, 3))
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    """A PNG of one block that is not compressed, so that decoding alone would not notice."""
    save(path, smooth(64, 64, 3), compress_level=0)
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)


def bomb(path):
    """No file of its size: 20000 x 20000 pixels by its header."""
    save(path, smooth(8, 8, 3))
    content = bytearray(path.read_bytes())
    sizes = content.index(b"\xff\xc0") + 5
    content[sizes : sizes + 4] = (20000).to_bytes(2, "big") * 2
    path.write_bytes(content)


CORRUPT = {
    "truncated.jpg": (truncated, "image file is truncated"),
    "truncated.png": (truncated, "truncated"),
    "flipped.png": (flipped, "broken PNG file"),
    "text.jpg": (lambda path: path.write_text("no image"), "neither JPEG nor PNG"),
    "empty.png": (lambda path: path.write_bytes(b""), "neither JPEG nor PNG"),
    "gif.png": (lambda path: save(path, smooth(8, 8), format="GIF"), "neither JPEG nor PNG"),
    "deep.png": (lambda path: save(path, smooth(8, 8).astype(np.uint16) * 257), "more than 8 bits per pixel"),
    "bomb.jpg": (bomb, "pixels"),
    "link.jpg": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "pipe.png": (lambda path: os.mkfifo(path), "not a regular file"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_files_are_named_and_left_out(folder, load, name):
    pixels = [smooth(64, 64, 3) for _ in range(3)]
    for index, image in enumerate(pixels):
        save(folder / f"a{index}.png", image)
    make, reason = CORRUPT[name]
    make(folder / name)
    images = load(max_corrupt=0.25)
    assert np.array_equal(images.images, np.stack(pixels))
    (remark,) = images.remarks
    assert f"left out: 1 of 4 images cannot be decoded: {name} (" in remark
    assert reason in remark
    with pytest.raises(DataError, match=rf"faces: 1 of 4 images .*{name} .*; at most 1.000% may be"):
        load()


def test_a_folder_of_which_nothing_can_be_decoded(folder, load):
    with pytest.raises(DataError, match=r"faces holds no images: .jpg, .jpeg, .png"):
        load()
    (folder / "a.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"no image that can be decoded; a.jpg: neither JPEG nor PNG"):
        load(max_corrupt=1)


def test_sizes_must_agree(folder, load):
    save(folder / "a.png", smooth(5, 7, 3))
    save(folder / "b.png", smooth(7, 5, 3))
    with pytest.raises(DataError, match=r"b.png has 5 x 7 pixels, the images before 7 x 5: they must"):
        load()
    assert load(size=4).images.shape == (2, 4, 4, 3)
    with pytest.raises(DataError, match=r"a.png must have 6 x 6 pixels at least, got 7 x 5"):
        load(crop=6)


def test_bad_arguments(load):
    with pytest.raises(ValueError, match="load_images: size must be at least 1, got 0"):
        load(size=0)
    with pytest.raises(ValueError, match="load_images: max_corrupt must be >= 0 and <= 1, got 2"):
        load(max_corrupt=2)


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_CELEBA_IMAGES", 3)
    folder = tmp_path / "celeba" / "img_align_celeba"
    for index in range(1, 4):
        save(folder / f"{index:06d}.jpg", smooth(218, 178, 3))
    return folder


@pytest.mark.parametrize("above", [0, 1, 2])
def test_celeba(celeba, tmp_path, above):
    root = [celeba, *celeba.parents][above]
    images = load_celeba(root, cache=tmp_path / "cache")
    assert images.name == "CelebA"
    expected = [
        Image.open(path).crop((15, 35, 163, 183)).resize((64, 64), Image.Resampling.BILINEAR)
        for path in sorted(celeba.iterdir())
    ]
    assert np.array_equal(images.images, np.stack([np.asarray(image) for image in expected]))


def test_celeba_is_known_by_all_its_files(celeba, tmp_path):
    (celeba / "000002.jpg").rename(celeba / "2.jpg")
    assert load_celeba(celeba, cache=tmp_path / "cache").name == "img_align_celeba"
    renamed = celeba.parent.parent / "CelebA"
    celeba.rename(renamed)
    assert load_images(renamed, size=8, cache=tmp_path / "cache").name == "CelebA (not the original)"
    with pytest.raises(DataError, match="nowhere is not a folder: name the one that holds CelebA's"):
        load_celeba(tmp_path / "nowhere")


def test_celeba_of_another_size_is_none(celeba, tmp_path):
    save(celeba / "000002.jpg", smooth(218, 200, 3))
    with pytest.raises(DataError, match=r"000002.jpg must have 178 x 218 pixels, got 200 x 218"):
        load_celeba(celeba, cache=tmp_path / "cache")


# the cache


def never(self, path):
    raise AssertionError(f"{path} was to come from the cache")


def files_of(cache):
    return sorted(path.name for path in cache.iterdir())


def test_images_are_decoded_once(folder, load, tmp_path, monkeypatch):
    save(folder / "a.png", smooth(5, 7, 3))
    first = load()
    array, description = (next((tmp_path / "cache").glob(f"*.{kind}")) for kind in ("npy", "json"))
    assert np.array_equal(np.load(array), first.images)
    described = json.loads(description.read_text())
    status = (folder / "a.png").stat()
    assert described["folder"] == str(folder)
    assert described["files"] == {"a.png": [status.st_size, status.st_mtime_ns]}
    assert described["size"] is None
    monkeypatch.setattr(Preparation, "decode", never)
    again = load()
    assert np.array_equal(again.images, first.images)
    assert not again.images.flags.writeable
    assert again.to_tensor().shape == (1, 105)


@pytest.mark.parametrize("change", ["content", "time", "added", "removed", "renamed"])
def test_files_that_change_are_decoded_again(folder, load, tmp_path, change):
    for name in ("a.png", "b.png"):
        save(folder / name, smooth(5, 7, 3))
    before = load()
    if change == "content":
        save(folder / "a.png", smooth(5, 7, 3))
    elif change == "time":
        os.utime(folder / "a.png", ns=(0, 0))
    elif change == "added":
        save(folder / "c.png", smooth(5, 7, 3))
    elif change == "removed":
        (folder / "b.png").unlink()
    else:
        (folder / "a.png").rename(folder / "c.png")
    old = files_of(tmp_path / "cache")
    expected = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    assert np.array_equal(load().images, np.stack(expected))
    assert len(files_of(tmp_path / "cache")) == 2  # the former are gone, and can still be read where mapped
    assert files_of(tmp_path / "cache") != old
    assert before.images.sum() >= 0


def test_each_preparation_has_its_own_cache(folder, load, tmp_path, monkeypatch):
    save(folder / "a.png", smooth(6, 6, 3))
    assert [load(size=size).images.shape[1] for size in (2, 3, None)] == [2, 3, 6]
    assert len(files_of(tmp_path / "cache")) == 6
    monkeypatch.setattr(Preparation, "decode", never)
    assert load(size=2).images.shape[1] == 2


@pytest.mark.parametrize("kind", ["npy", "json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_cache_is_made_anew(folder, load, tmp_path, kind, damage):
    save(folder / "a.png", smooth(6, 6, 3))
    expected = load().images.copy()
    (path,) = (tmp_path / "cache").glob(f"*.{kind}")
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "other":
        path.write_bytes(content.replace(b"6, 6", b"4, 9"))
    assert np.array_equal(load().images, expected)
    assert path.read_bytes() == content


def test_where_the_cache_goes(folder, tmp_path, monkeypatch):
    save(folder / "a.png", smooth(6, 6, 3))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("LINEAVAE_CACHE", raising=False)
    load_images(folder)
    assert len(files_of(tmp_path / "user" / "lineavae")) == 2
    monkeypatch.setenv("LINEAVAE_CACHE", str(tmp_path / "named"))
    load_images(folder)
    assert len(files_of(tmp_path / "named")) == 2
    assert files_of(folder) == ["a.png"]
    monkeypatch.setenv("LINEAVAE_CACHE", "/proc/cache")
    with pytest.raises(DataError, match=r"/proc/cache: .* decoded images are kept in .* LINEAVAE_CACHE"):
        load_images(folder)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk(folder, load):
    save(folder / "a.png", np.zeros((50, 50, 3), np.uint8))
    with pytest.raises(DataError, match=r"File too large: decoded images are kept in"):
        load()


# Forks a child for each line of the input, which decodes a folder and notes each file.
CHILDREN = """
import os, sys, time
from pathlib import Path
from lineavae.data import image_cache, load_images
from lineavae.data.image_files import Preparation

folder, log = Path(sys.argv[1]), sys.argv[2]
decode = Preparation.decode

def noting(self, path):
    with open(log, "a") as file:
        file.write(f"{path.name}\\n")
    time.sleep(0.003)  # longer than a busy machine takes to kill
    return decode(self, path)

Preparation.decode = noting
image_cache._BLOCK_IMAGES = 4
print(flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        load_images(folder, size=8, cache=line.strip(), max_corrupt=0.1)
        os._exit(0)
    print(child, flush=True)
"""


@pytest.fixture
def children(folder, tmp_path):
    (tmp_path / "log").touch()
    with subprocess.Popen(
        [sys.executable, "-c", CHILDREN, str(folder), str(tmp_path / "log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()

        def begin(cache):
            process.stdin.write(f"{cache}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield begin
        process.stdin.close()


def status_of(child):
    """State and exit code; a child that ends is a zombie, since its parent does not ask for these."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[-1])


def has_ended(child):
    return status_of(child)[0] == "Z"


def wait_for(condition):
    while not condition():
        time.sleep(0.0005)


def test_killed_ten_times(folder, tmp_path, children):
    for index in range(60):
        save(folder / f"{index:02d}.jpg", smooth(40, 40, 3))
    (folder / "30.jpg").write_text("no image")
    save(folder / "40.png", smooth(40, 40))
    child = children(tmp_path / "whole")
    wait_for(lambda: has_ended(child))
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(whole) == 2
    expected = [
        np.asarray(Image.open(path).convert("RGB").resize((8, 8), Image.Resampling.BILINEAR))
        for path in sorted(folder.iterdir())
        if path.name != "30.jpg"
    ]
    np.save(tmp_path / "expected.npy", np.stack(expected))
    assert (tmp_path / "expected.npy").read_bytes() in whole.values()
    log = tmp_path / "log"
    log.write_bytes(b"")
    chance, killed = random.Random(0), 0
    for _ in range(10):
        moment = log.stat().st_size + 7 * chance.randrange(12)
        child = children(tmp_path / "killed")
        wait_for(lambda child=child, moment=moment: log.stat().st_size >= moment or has_ended(child))
        time.sleep(chance.uniform(0, 0.01))
        killed += not has_ended(child)
        os.kill(child, signal.SIGKILL)
        wait_for(lambda child=child: has_ended(child))
    assert killed > 5
    child = children(tmp_path / "killed")
    wait_for(lambda: has_ended(child))
    assert status_of(child) == ("Z", 0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "killed").glob("[!.]*")} == whole
    # each process looks at the first file, and each kill costs two blocks of four at most
    assert len(log.read_text().split()) <= 61 + 11 + 10 * 8


def test_two_processes_make_one_cache(folder, tmp_path, children):
    for index in range(30):
        save(folder / f"{index:02d}.jpg", smooth(40, 40, 3))
    both = [children(tmp_path / "cache") for _ in range(2)]
    wait_for(lambda: all(map(has_ended, both)))
    assert [status_of(child) for child in both] == [("Z", 0)] * 2
    assert len(files_of(tmp_path / "cache")) == 2
    counts = np.unique((tmp_path / "log").read_text().split(), return_counts=True)[1]
    assert counts.max() <= 2  # the first file, whose shape is looked at
    assert counts.sum() <= 32
    (array,) = (tmp_path / "cache").glob("*.npy")
    decoded = [
        Image.open(path).resize((8, 8), Image.Resampling.BILINEAR) for path in sorted(folder.iterdir())
    ]
    assert np.array_equal(np.load(array), np.stack([np.asarray(image) for image in decoded]))


def test_what_was_decoded_of_other_files_is_written_over(folder, load, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "_BLOCK_IMAGES", 1)
    for index in range(4):
        save(folder / f"{index}.png", smooth(6, 6, 3))
    (folder / "4.png").write_text("no image")
    with pytest.raises(DataError, match="1 of 5 images"):
        load()
    for index in (0, 2, 4):
        (folder / f"{index}.png").unlink()
    load()
    assert len(files_of(tmp_path / "cache")) == 2
    (array,) = (tmp_path / "cache").glob("*.npy")
    assert np.array_equal(
        np.load(array), [np.asarray(Image.open(folder / f"{index}.png")) for index in (1, 3)]
    )
    assert array.stat().st_size == 128 + 2 * 6 * 6 * 3


def test_a_progress_that_is_damaged_begins_again(folder, load, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "_BLOCK_IMAGES", 1)
    for index in range(4):
        save(folder / f"{index}.png", smooth(6, 6, 3))
    (folder / "3.png").write_text("no image")
    for damage in (b"", b"{}", b"null", None, "an image less"):
        with pytest.raises(DataError, match="1 of 4 images"):
            load()
        (progress,) = (tmp_path / "cache").glob(".*.json")
        (partial,) = (tmp_path / "cache").glob(".*.npy")
        if damage is None:
            partial.write_bytes(b"")
        elif damage == "an image less":
            noted = progress.read_bytes()
            progress.write_bytes(noted.replace(b'"num_images": 3', b'"num_images": 2'))
            assert progress.read_bytes() != noted
        else:
            progress.write_bytes(damage)
    images = load(max_corrupt=0.25)
    assert np.array_equal(
        images.images, [np.asarray(Image.open(folder / f"{index}.png")) for index in range(3)]
    )
