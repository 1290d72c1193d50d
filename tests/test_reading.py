"""_reading: plain 8-bit gray PNG, in C. What it takes is what Pillow gives; everything else is left alone."""

import os
import shutil
import struct
import subprocess
import threading
import zlib
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_files import DATA
from support.image_files import read_image
from support.png_files import GRAY, ODD, RANDOM, SIGNATURE, WHOLE, chunk, head, mended, one_row, png

from organ_infer import ImageError
from organ_infer._packing import pack
from organ_infer.images.registry import open_slices

read = pytest.importorskip(
    "organ_infer._reading", reason="built without zlib: Pillow reads all"
).read

SUITE = DATA / "pngsuite"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Writes bytes to a new file."""
    folder, numbers = tmp_path_factory.mktemp("files"), count()

    def write(data):
        path = folder / f"{next(numbers)}.png"
        path.write_bytes(data)
        return path

    return write


def taken(paths, size=28, **options):
    """For each file whether it was taken; those that were are what Pillow and `pack` give, bit for bit."""
    packed, done = read(paths, size, **options)
    assert packed.shape == (len(done), 1, size, size) and packed.dtype == np.float32
    for path, row, whole in zip(paths, packed, done, strict=True):
        if whole:
            piece = read_image(path)
            assert (
                piece.warnings == ()
                and piece.orientation is None
                and piece.pixels.dtype == np.uint8
            )
            assert (pack(piece.pixels, size)[0] == row).all()
    return [bool(whole) for whole in done]


# What is taken.


def test_every_filter_and_shape_is_what_pillow_reads(place):
    shapes = [(1, 1), (1, 9), (9, 1), (28, 28), (5, 300), (64, 64), (700, 900)]
    paths = [
        place(png(RANDOM.integers(0, 256, shape, np.uint8), filters, pieces, level=level))
        for shape in shapes
        for pieces, level in [(1, 6), (3, 0), (2, 9)]
        for filters in [[kind] * shape[0] for kind in range(5)]
        + [RANDOM.integers(0, 5, shape[0]).tolist()]
    ]
    for size in (28, 64):
        assert all(taken(paths, size))


def test_what_pillow_writes_is_taken(place, tmp_path):
    from PIL import Image

    for i, options in enumerate([{}, {"optimize": True}, {"compress_level": 0}, {"dpi": (72, 72)}]):
        smooth = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)
        Image.fromarray(smooth).save(tmp_path / f"{i}.png", **options)
    assert all(taken(sorted(tmp_path.iterdir())))


PLAIN = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7, b"sBIT": 1, b"bKGD": 2}


@pytest.mark.parametrize("name", PLAIN, ids=bytes.decode)
def test_a_chunk_that_changes_no_pixel_is_passed_over(place, name):
    for fill in (b"\0", b"\1", b"\xff"):
        assert taken([place(png(GRAY, before=chunk(name, fill * PLAIN[name])))]) == [True]
    for data in (b"", b"\1" * (PLAIN[name] - 1), b"\1" * (PLAIN[name] + 1)):
        assert taken([place(png(GRAY, before=chunk(name, data)))]) == [False]
    assert taken([place(png(GRAY, after=chunk(name, b"\1" * PLAIN[name])))]) == [False]


@pytest.mark.skipif(
    not SUITE.is_dir(), reason="ORGAN_DATA_DIR does not name the directory of pngsuite"
)
def test_the_png_suite_is_read_alike(tmp_path):
    paths = sorted(SUITE.glob("*.png"))
    names = [path.stem for path, whole in zip(paths, taken(paths), strict=True) if whole]
    assert names == [
        *("basn0g08", "f00n0g08", "f01n0g08", "f02n0g08", "f03n0g08", "f04n0g08", "tp0n0g08"),
    ]


def test_the_number_of_threads_changes_nothing(place):
    some = [place(png(RANDOM.integers(0, 256, (28, 28), np.uint8))) for _ in range(20)]
    paths = [*some * 20, place(b"no image"), *some]
    one, done = read(paths)
    for threads in (2, 4, 1000):
        other, also = read(paths, threads=threads)
        assert also == done and (other == one)[np.frombuffer(done, bool)].all()
    assert done == b"\1" * 400 + b"\0" + b"\1" * 20


def test_mean_std_and_size_are_those_of_pack(place):
    path = place(WHOLE)
    for size, mean, std in [(28, 0.5, 0.5), (7, 0.1, 0.3), (1, 0, 1), (100, -1, 2.5)]:
        packed, _ = read([path], size, mean=mean, std=std)
        assert (packed == pack(GRAY, size, mean=mean, std=std)).all()
    assert read([])[0].shape == (0, 1, 28, 28) and read([])[1] == b""


@pytest.mark.parametrize("resample", ["area", "linear", "cubic"])
def test_files_are_resampled_as_pack_does(place, resample):
    pictures = [RANDOM.integers(0, 256, shape, np.uint8) for shape in [(60, 41), (9, 30), (28, 28)]]
    packed, done = read([place(png(picture)) for picture in pictures], resample=resample)
    assert done == b"\1" * 3 and (packed == pack(pictures, resample=resample)).all()


@pytest.mark.parametrize(("name", "error"), [("bilinear", ValueError), (None, TypeError)])
def test_other_resampling_is_refused(place, name, error):
    with pytest.raises(error, match="expected resample to be area, linear or cubic, found"):
        read([place(WHOLE)], resample=name)


@pytest.mark.parametrize(
    "options",
    [{"size": 0}, {"size": 5000}, {"std": 0}, {"std": -1}, {"mean": float("nan")}, {"std": 1e60}],
)
def test_arguments_out_of_range_are_refused(place, options):
    with pytest.raises(ValueError, match="expected"):
        read([place(WHOLE)], **options)
    with pytest.raises(TypeError):
        read([7])


# What is left alone.


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_what_is_odd_is_left_alone(place, data):
    assert taken([place(data), place(WHOLE)]) == [False, True]
    assert taken([place(one_row())]) == [True]


def test_limits(place):
    big = np.zeros((1024, 1024), np.uint8)
    assert taken([place(png(big))]) == [True]
    assert taken([place(png(np.zeros((1025, 1024), np.uint8)))]) == [False]
    noise = RANDOM.integers(0, 256, (1024, 1024), np.uint8)
    assert taken([place(png(noise, level=0))]) == [False]  # over 1 MiB
    assert taken([place(WHOLE)], pixel_limit=62) == [False] and taken(
        [place(WHOLE)], pixel_limit=63
    ) == [True]


def identical_or_left_alone(paths, expected):
    """Files made by damage to one: never another picture."""
    packed, done = read(paths, threads=4)
    whole = np.frombuffer(done, bool)
    assert (packed[whole] == expected).all()
    return whole


def test_a_file_cut_anywhere_is_left_alone(place):
    assert not identical_or_left_alone(
        [place(WHOLE[:n]) for n in range(len(WHOLE))], pack(GRAY)[0]
    ).any()


def test_a_file_with_any_bit_flipped_is_left_alone(place):
    data = png(GRAY, [0, 1, 2, 3, 4, 4, 3, 2, 1], pieces=2, before=chunk(b"gAMA", b"\0\0\xb1\x8f"))

    def flipped(bit):
        other = bytearray(data)
        other[bit // 8] ^= 1 << bit % 8
        return bytes(other)

    paths = [place(flipped(bit)) for bit in range(len(data) * 8)]
    assert not identical_or_left_alone(
        paths, pack(GRAY)[0]
    ).any()  # a checksum sees every single bit


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 12), st.binary(max_size=12)), max_size=4
    ),
    mend=st.booleans(),
)
def test_edited_files_are_read_as_pillow_reads_them_or_left_alone(place, edits, mend):
    data = WHOLE
    for at, length, new in edits:
        data = data[:at] + new + data[at + length :]
    taken([place(mended(data) if mend else data)])


@settings(max_examples=200, deadline=None)
@given(
    stream=st.binary(max_size=60),
    width=st.integers(0, 40),
    height=st.integers(0, 40),
    noise=st.binary(max_size=9),
)
def test_any_stream_in_a_sound_file(place, stream, width, height, noise):
    for data in (stream, zlib.compress(stream), zlib.compress(stream) + noise):
        taken([place(SIGNATURE + head(width, height) + chunk(b"IDAT", data) + chunk(b"IEND"))])


MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include "png.h"
int main(void)
{
    struct organ_png png = {0};
    uint32_t length, taken = 0;
    while (fread(&length, 4, 1, stdin) == 1) {
        uint8_t *data = malloc(length); /* of its own, so that a read past its end is seen */
        if (fread(data, 1, length, stdin) != length)
            return 2;
        if (organ_png_decode(&png, data, length, 1000000) == 0 && ++taken)
            for (size_t i = 0; i < (size_t)png.width * png.height; i++)
                png.pixels[i] ^= 1;
        free(data);
    }
    organ_png_end(&png);
    printf("%u", taken);
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_decoder_under_sanitisers(tmp_path):
    """Every cut, every flipped byte with its checksums mended, the odd files, all filters: no stray access."""
    (tmp_path / "main.c").write_text(MAIN)
    flags = ["-g", "-O1", "-std=c11", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [str(tmp_path / "main.c"), str(ROOT / "ext" / "png.c"), f"-I{ROOT / 'ext'}"]
    built = subprocess.run(
        ["cc", *flags, *sources, "-lz", "-o", str(tmp_path / "main")],
        capture_output=True,
        text=True,
    )
    if built.returncode:
        pytest.skip(f"no sanitisers here: {built.stderr.splitlines()[-1:]}")
    cases = [WHOLE, *ODD.values(), *(WHOLE[:n] for n in range(len(WHOLE)))]
    cases += [
        png(RANDOM.integers(0, 256, (h, w), np.uint8), [k] * h)
        for h in (1, 5)
        for w in (1, 33)
        for k in range(5)
    ]
    for at in range(8, len(WHOLE)):
        for value in (0, 1, 0x7F, 0xFF):
            cases.append(mended(WHOLE[:at] + bytes([value]) + WHOLE[at + 1 :]))
    given = b"".join(struct.pack("=I", len(data)) + data for data in cases)
    done = subprocess.run([str(tmp_path / "main")], input=given, capture_output=True)
    assert done.returncode == 0 and int(done.stdout) >= 21, done.stderr.decode()


# Files.


def test_what_is_no_file_is_left_alone(place, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to(place(WHOLE))
    (tmp_path / "secret").write_bytes(WHOLE)
    (tmp_path / "secret").chmod(0)
    odd = [
        tmp_path / "pipe.png",
        tmp_path,
        tmp_path / "none",
        tmp_path / "loop",
        "/dev/zero",
        "a\0b",
        "\ud800",
        "",
    ]
    assert read(odd)[1] == bytes(len(odd))
    expected = b"\1\1" if os.geteuid() == 0 else b"\1\0"
    assert read([tmp_path / "link", os.fsencode(tmp_path / "secret")])[1] == expected


def test_a_file_replaced_or_changed_while_it_is_read_is_never_another_picture(tmp_path):
    """Whole replacements by rename, and writing over it in place, which can be seen half done."""
    pictures = [np.full((28, 28), value, np.uint8) for value in (10, 200)]
    files = [png(pixels, level=0) for pixels in pictures]
    expected = [pack(pixels)[0] for pixels in pictures]
    path, other = tmp_path / "a.png", tmp_path / "b.png"
    path.write_bytes(files[0])
    ended = threading.Event()

    def change():
        for i in count():
            if ended.is_set():
                return
            if i % 3:
                other.write_bytes(files[i % 2])
                other.replace(path)
            else:
                with open(path, "r+b") as file:
                    file.write(files[i % 2][: i % len(files[0])])

    writer = threading.Thread(target=change)
    writer.start()
    seen = set()
    try:
        for i in count():
            packed, done = read([path] * 20)
            for row in packed[np.frombuffer(done, bool)]:
                (which,) = (k for k, one in enumerate(expected) if (row == one).all())
                seen.add(which)
            if i >= 100 and seen == {0, 1}:
                break
            assert i < 100_000, f"of the two pictures only {seen} were ever read whole"
    finally:
        ended.set()
        writer.join()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_no_descriptor_is_left_open(place, tmp_path):
    paths = [place(data) for data in [WHOLE, WHOLE[:-3], *ODD.values()]] + [
        tmp_path,
        tmp_path / "none",
    ]
    before = len(os.listdir("/proc/self/fd"))
    for threads in (1, 4):
        read(paths * 10, threads=threads)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_errors_are_pillows_own(place, bundle):
    """Through the classifier: the line of a damaged file is that of the reader in Python."""
    from organ_infer import ImageFailure, OrganClassifier

    expected = []
    for path in [place(data) for data in [WHOLE, WHOLE[:40], *ODD.values()]]:
        try:
            for name, read_slice in open_slices(str(path)):
                try:
                    read_slice()
                except ImageError as e:
                    expected.append((path, ImageFailure(name, str(e))))
                else:
                    expected.append((path, name))
        except ImageError as e:
            expected.append((path, ImageFailure(str(path), str(e))))
    with OrganClassifier(bundle, device="cpu") as opened:
        found = list(opened.predict_paths(dict(expected)))
    for (_, wanted), result in zip(expected, found, strict=True):
        assert result == wanted or (result.path == wanted and result.label)
