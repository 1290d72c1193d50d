"""Limits, files that are none, and what is written: nothing hangs, nothing grows, nothing is left behind."""

import os
import signal
import socket
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, child_environment, needs_default
from support.bombs import bombs
from support.image_files import npy, npz, read_image, saved

from organ_infer import ImageError, ImageFailure, InputError, OrganClassifier
from organ_infer.cli.arguments import parse
from organ_infer.images.types import FILE_LIMIT, PIXEL_LIMIT

GRAY = np.random.default_rng(3).integers(0, 256, (28, 28), np.uint8)

BOUNDED = """
import resource, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {tests!r})
import pydicom, zipfile, numpy, PIL.Image
from organ_infer import ImageError
from organ_infer.images.types import Limits
from organ_infer.images.registry import FORMATS, decode_slices
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
while size := int.from_bytes(sys.stdin.buffer.read(8), "little"):
    data = sys.stdin.buffer.read(size)
    try:
        for _, read in decode_slices(data, Limits(file_bytes=1 << 25)):
            read()
            print("accepted")
    except ImageError as e:
        print("refused:", e)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown >> 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and kilobytes as on Linux")
def test_bombs_are_refused_in_bounded_memory():
    """All in one process that may take 64 MiB more than it has: each is refused, none by running out of them."""
    pytest.importorskip("pydicom")
    files = bombs(1 << 26)
    given = b"".join(len(data).to_bytes(8, "little") + data for data in files.values()) + bytes(8)
    code = BOUNDED.format(tests=str(ROOT / "tests"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=given,
        capture_output=True,
        timeout=60,
        env=child_environment(),
    )
    assert done.returncode == 0, done.stderr.decode()
    *lines, grown = done.stdout.decode().splitlines()
    assert len(lines) == len(files)
    for name, line in zip(files, lines, strict=True):
        assert line.startswith("refused:") and "memory" not in line, name
    assert int(grown) < 32  # MiB, of which the largest file itself is one


# The limits can be moved.


def test_the_pixel_limit_can_be_lowered_and_raised(classifier, tmp_path):
    for name, pixels in {"a.png": GRAY, "b.tif": GRAY, "c.npy": GRAY}.items():
        path = tmp_path / name
        path.write_bytes(
            npy(pixels) if name == "c.npy" else saved(pixels, {"a": "PNG", "b": "TIFF"}[name[0]])
        )
        (found,) = classifier.predict_paths([path], pixel_limit=783)
        assert (
            isinstance(found, ImageFailure)
            and "28 x 28 pixels: too large, at most 783" in found.error
        )
        assert next(classifier.predict_paths([path], pixel_limit=784)).label


def test_the_pixel_limit_can_be_raised_above_pillows():
    """Without a word to Pillow, whose limit is the whole process's."""
    from PIL import Image

    from organ_infer.images.pillow import _open_image
    from organ_infer.images.registry import FORMATS

    data = saved(Image.new("1", (20_000, 20_000)))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="20000 x 20000 pixels: too large"):
        _open_image(data, FORMATS[0], PIXEL_LIMIT)
    with _open_image(data, FORMATS[0], 400_000_000) as image:
        assert image.size == (20_000, 20_000)
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_file_limit_can_be_lowered_and_raised(classifier, tmp_path):
    for name, data in {
        "a.png": saved(GRAY),
        "b.npz": npz(True, a=np.zeros((40, 28, 28), np.uint8)),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        (found,) = classifier.predict_paths([path], file_limit=500)
        assert isinstance(found, ImageFailure) and "too large, at most 500 are read" in found.error
        assert all(p.label for p in classifier.predict_paths([path], file_limit=40 * 784 + 128))


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "9", None])
def test_a_limit_that_is_none_is_refused(classifier, limit):
    for name in ("pixel_limit", "file_limit"):
        with pytest.raises(InputError, match=f"{name}: expected a whole number from 1 to"):
            classifier.predict_paths([], **{name: limit})


def test_the_command_takes_limits(command, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(GRAY))
    for option in ("--pixel-limit", "--file-limit"):
        done = command(option, "100", path)
        assert (
            done.returncode == 1
            and f"too large, at most 100 {'pixels' if 'pixel' in option else 'are'}" in done.stderr
        )
        assert f"raise the limit with {option} or" in done.stderr
        assert command(option, "4000000000", path).returncode == 0
        assert command(option, "0", path).returncode == 2
    given = parse(["x"])
    assert (given.pixel_limit, given.file_limit) == (None, None)
    text = " ".join(command("--help", model=None).stdout.split())
    assert f"(default: {PIXEL_LIMIT:,})" in text and f"(default: {FILE_LIMIT:,})" in text


# What is no file.


def test_what_is_no_file_is_refused_at_once(classifier, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        (tmp_path / "link.png").symlink_to("pipe.png")
        (tmp_path / "loop.png").symlink_to("loop.png")
        (tmp_path / "gone.png").symlink_to("nothing")
        special, folder = "a special file, not an image", "a directory, not an image"
        expected = {
            tmp_path / "pipe.png": special,
            tmp_path / "socket.png": special,
            tmp_path / "link.png": special,
            Path("/dev/zero"): special,
            Path("/dev/null"): special,
            tmp_path: folder,
            tmp_path / "loop.png": "cannot be read (Too many levels of symbolic links)",
            tmp_path / "gone.png": "no such file",
            tmp_path / "none.png#3": "no such file",
            tmp_path / "pipe.png#3": "no such file",
        }
        for options in ({}, {"orientation": "PL"}):  # read in C, and not
            with OrganClassifier(classifier._options["bundle"], device="cpu", **options) as opened:
                found = list(opened.predict_paths(list(expected)))
            assert [p.error for p in found] == list(expected.values())


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")
def test_files_without_a_size_hold_no_image():
    for path in ("/proc/self/maps", "/proc/kmsg", "/proc/self/mem"):
        with pytest.raises(ImageError):
            read_image(path)


def test_a_file_that_turns_into_a_pipe_is_not_waited_for(tmp_path):
    """Between the question what it is and its opening."""
    path, other = tmp_path / "a.png", tmp_path / "b"
    ended = threading.Event()

    def change():
        for i in count():
            if ended.is_set():
                return
            if i % 2:
                os.mkfifo(other)
            else:
                other.write_bytes(saved(GRAY))
            other.replace(path)

    path.write_bytes(saved(GRAY))
    writer = threading.Thread(target=change)
    writer.start()
    signal.alarm(60)
    met = set()
    try:
        for i in count():
            try:
                assert (read_image(path).pixels == GRAY).all()
                met.add("whole")
            except ImageError as e:
                assert "special file" in str(e) or "empty" in str(e)
                met.add("special" if "special file" in str(e) else "empty")
            if i >= 500 and met >= {"whole", "special"}:
                break
    finally:
        signal.alarm(0)
        ended.set()
        writer.join()


# What is written.


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@needs_default
def test_nothing_is_written_that_was_not_asked_for(tmp_path):
    """In the places a program writes to: home, temporary files, the working directory, beside the images."""
    places = {name: tmp_path / name for name in ("home", "tmp", "work", "images")}
    for place in places.values():
        place.mkdir()
    (places["images"] / "a.png").write_bytes(saved(GRAY))
    (places["images"] / "b.npy").write_bytes(npy(np.stack([GRAY] * 3)))
    (places["images"] / "c.png").write_bytes(b"no image")
    before = {name: contents(place) for name, place in places.items()}
    environment = child_environment(
        HOME=str(places["home"]), TMPDIR=str(places["tmp"]), PYTHONDONTWRITEBYTECODE="1"
    )
    for name in [
        name for name in environment if name.startswith("XDG_") or name == "ORGAN_INFER_CACHE"
    ]:
        del environment[name]

    def run(*options):
        line = [
            sys.executable,
            "-m",
            "organ_infer",
            "--device",
            "cpu",
            *options,
            str(places["images"]),
        ]
        return subprocess.run(
            line, cwd=places["work"], env=environment, capture_output=True, timeout=60
        )

    assert run().returncode == run("--tta", "--format", "csv").returncode == 1
    assert {name: contents(place) for name, place in places.items()} == before
    assert run("--output", "rows.txt").returncode == 1
    assert [path.name for path in places["work"].iterdir()] == ["rows.txt"]
    assert all(contents(places[name]) == before[name] for name in ("home", "tmp", "images"))
