"""Files by their first bytes, limits on both sides, names of slices, and one batch ahead."""

import inspect
import io
import os
import struct
import threading
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.image_files import (
    DEEP,
    GRAY,
    STACK,
    decode,
    dicom,
    npy,
    npz,
    read_image,
    refused,
    saved,
    slices,
    tiff,
)
from support.png_files import chunk
from test_images import png
from test_truncation import fctl, fdat, png_of

from organ_infer import ImageError, OrganClassifier, batching
from organ_infer._packing import pack
from organ_infer.bundle.manifest import Input
from organ_infer.errors import short_repr
from organ_infer.images import arrays
from organ_infer.images import registry as images
from organ_infer.images.registry import FORMATS, decode_slices, open_slices, split_selector
from organ_infer.images.types import (
    DTYPES,
    FILE_LIMIT,
    PIXEL_LIMIT,
    SIGNATURE_BYTES,
    Format,
    Limits,
    Slice,
    Source,
    check_size,
    numbered,
)

# Which format a file is of: by its first bytes, as each format's own specification has them.

MAGIC = {
    "PNG": [b"\x89PNG\r\n\x1a\n"],
    "JPEG": [b"\xff\xd8\xff"],
    "TIFF": [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"],
    "BMP": [b"BM"],
    "GIF": [b"GIF87a", b"GIF89a"],
    "PPM": [b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"],
    "WEBP": [b"RIFF\x10\0\0\0WEBP"],
    "JPEG2000": [b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"],
    ".npy": [b"\x93NUMPY"],
    ".npz": [b"PK\x03\x04"],
    "DICOM": [bytes(128) + b"DICM"],
}
UNKNOWN = "unknown image format; supported: PNG, JPEG, DICOM, .npy, .npz, TIFF, BMP, GIF, PNM, WebP, JPEG 2000"


def line_of(data):
    with pytest.raises(ImageError) as caught:
        slices(data)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MAGIC)
def test_a_format_is_known_by_all_of_its_first_bytes(name):
    for magic in MAGIC[name]:
        assert line_of(magic + bytes(200)).startswith(name), magic
        ours = {"GIF": 4}.get(name, len(magic))  # GIF8 is enough
        for at in range(ours):
            if (name == "WEBP" and at < 8) or (name == "DICOM" and at < 128):
                continue
            other = magic[:at] + bytes([magic[at] ^ 0x40]) + magic[at + 1 :]
            assert line_of(other + bytes(200)) == UNKNOWN, other
    assert SIGNATURE_BYTES == 132 and line_of(b"P0 1 1") == line_of(b"P7 1 1") == UNKNOWN


def test_a_dicom_file_may_begin_with_any_other_format_s_bytes_but_what_stands_first_counts():
    data = dicom(DEEP, RescaleSlope=1, RescaleIntercept=-5)
    assert decode(b"\1" * 128 + data[128:]).pixels.dtype == np.int16
    assert line_of(saved(GRAY)[:8] + data[8:]).startswith("PNG")


# Limits.


@pytest.mark.parametrize(
    ("width", "height", "limit", "words"),
    [
        (1, 1, 1, None), (3, 2, 6, None), (3, 2, 5, "3 x 2 pixels: too large, at most 5 pixels"),
        (65_535, 1, 10**9, None), (1, 65_535, 10**9, None), (65_536, 1, 10**9, "65,535 pixels per side are read$"),
        (1, 65_536, 10**9, "65,535 pixels per side are read$"), (0, 5, 9, "0 x 5 pixels: the image is empty"),
        (5, 0, 9, "the image is empty"), (65_535, 65_535, 65_535**2, None),
    ],
)  # fmt: skip
def test_a_size_is_taken_up_to_its_limits_and_not_one_more(width, height, limit, words):
    if words is None:
        check_size(width, height, limit)
        return
    with pytest.raises(ImageError, match=words):
        check_size(width, height, limit)


FORMS = {
    "PNG": saved(GRAY), "JPEG": saved(GRAY, "JPEG"), "TIFF": tiff(GRAY), "BMP": saved(GRAY, "BMP"),
    "GIF": saved(GRAY, "GIF"), "PPM": saved(GRAY, "PPM"), "WEBP": saved(GRAY, "WEBP"),
    "JPEG2000": saved(GRAY, "JPEG2000"), ".npy": npy(GRAY), ".npy, stack": npy(STACK), ".npz": npz(a=GRAY),
    "TIFF, pages": tiff(*STACK),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FORMS, "DICOM"])
def test_every_format_holds_the_limits_at_the_limit_and_refuses_one_below(name, tmp_path):
    """Slices of 9 x 7 pixels."""
    data = dicom(DEEP, RescaleSlope=1) if name == "DICOM" else FORMS[name]
    path = tmp_path / "file"
    path.write_bytes(data)

    def all_of(**limits):
        return [read().pixels.size for _, read in open_slices(str(path), Limits(**limits))]

    assert set(all_of(pixels=63)) == set(all_of()) == {63}
    with pytest.raises(
        ImageError,
        match=r"7 x 9 pixels: too large, at most 62 pixels are read; raise the limit with --pixel-limit or pixel_limit=$",
    ):
        for size in all_of(pixels=62):
            assert size is None
    size = len(data)
    assert set(all_of(file_bytes=size)) == {63}
    with pytest.raises(
        ImageError,
        match=rf"^{size:,} bytes: too large, at most {size - 1:,} are read; raise the limit with --file-limit or file_limit=$",
    ):
        all_of(file_bytes=size - 1)


def test_what_is_compressed_in_a_file_counts_towards_its_limit():
    held = np.zeros((40, 28, 28), np.uint8)
    data = npz(True, a=held)
    inside = len(npy(held))
    assert len(data) < inside and len(slices(data, file_bytes=inside)) == 40
    refused(
        data,
        rf"\.npz: {inside:,} bytes of arrays: too large, at most {inside - 1:,} are read",
        file_bytes=inside - 1,
    )


def test_the_published_limits_and_types():
    """docs/guides/formats.md, Limits; what is read becomes one of three types."""
    assert (PIXEL_LIMIT, FILE_LIMIT, DTYPES) == (
        89_478_485,
        268_435_456,
        ("uint8", "uint16", "int16"),
    )
    assert (
        Limits() == (89_478_485, 268_435_456, False, None)
        and Slice(GRAY).warnings == ()
        and Slice(GRAY).orientation is None
    )


def test_the_table_of_limits_is_what_the_command_and_predict_paths_hold():
    text = (ROOT / "docs" / "guides" / "formats.md").read_text().split("## Limits")[1]
    rows = [
        [cell.strip(" `") for cell in row.split("|")[1:-1]]
        for row in text.splitlines()
        if row.startswith("|")
    ]
    stated = {
        argument: (int(value.replace(",", "")), option) for _, value, option, argument in rows[2:]
    }
    assert stated == {
        "pixel_limit": (PIXEL_LIMIT, "--pixel-limit N"),
        "file_limit": (FILE_LIMIT, "--file-limit BYTES"),
        "": (65_535, ""),
    }
    defaults = inspect.signature(OrganClassifier.predict_paths).parameters
    assert all(defaults[name].default == stated[name][0] for name in ("pixel_limit", "file_limit"))


def test_a_file_that_is_not_as_long_as_it_was_is_told():
    for size in (4, 6):
        with pytest.raises(ImageError, match=r"^the file changed while it was read$"):
            Source(io.BytesIO(b"12345"), size, FORMATS[0], Limits(), None).read_all()
    assert Source(io.BytesIO(b"12345"), 5, FORMATS[0], Limits(), None).read_all() == b"12345"


def test_whatever_a_decoder_raises_is_one_line(monkeypatch):
    for raised, words in {
        ValueError("a\n" + "b" * 300): "PNG: damaged or not supported (a " + "b" * 198 + ")",
        KeyError(): "PNG: damaged or not supported (KeyError)",
        MemoryError(): "PNG: not enough memory to decode it",
        ImageError("its own words"): "its own words",
    }.items():

        def fails(source, raised=raised):
            raise raised

        def fails_later(source, raised=raised):
            yield "", lambda: fails(source)

        for reader in (fails, fails_later):
            monkeypatch.setattr(arrays, "read_test", reader, raising=False)
            row = Format("PNG", "PNG", ((0, b"x"),), (), "arrays:read_test")
            monkeypatch.setattr(images, "FORMATS", (row,))
            assert line_of(b"x") == words


# Names.


def test_one_slice_has_the_file_s_name_and_many_have_numbers(tmp_path):
    for name, data, ends in [
        ("a.png", saved(GRAY), [""]),
        ("a.npy", npy(GRAY), [""]),
        ("b.npy", npy(STACK), [f"#{i}" for i in range(5)]),
        ("c.npy", npy(STACK[:1]), ["#0"]),
        ("a.tif", tiff(*STACK), [f"#{i}" for i in range(5)]),
        ("a.npz", npz(one=GRAY, many=STACK[:2]), ["#one", "#many#0", "#many#1"]),
    ]:
        (tmp_path / name).write_bytes(data)
        path = str(tmp_path / name)
        everything = [(own, read().pixels) for own, read in open_slices(path)]
        assert [own for own, _ in everything] == [path + end for end in ends]
        for own, pixels in everything:  # each name is a path
            ((again, found),) = [(name, read().pixels) for name, read in open_slices(own)]
            assert again == own
            np.testing.assert_array_equal(found, pixels)
        assert [end for end, _ in decode_slices(data)] == ends


def test_a_picked_slice_must_be_one_of_those_there():
    assert [name for name, _ in numbered(3, lambda i: i, None)] == ["#0", "#1", "#2"]
    assert [(name, read()) for name, read in numbered(12, lambda i: i, "11")] == [("#11", 11)]
    assert [(name, read()) for name, read in numbered(3, lambda i: i, "002")] == [("#002", 2)]
    assert [name for name, _ in numbered(10**9, lambda i: i, "999999999")] == ["#999999999"]
    for pick in ("3", "-1", "", "x", "1.0", "١", "²", " 1", "0" * 10, "1" * 5000):
        with pytest.raises(ImageError) as told:
            list(numbered(3, lambda i: i, pick))
        assert str(told.value) == f"no slice {short_repr(pick)}; the file contains #0 to #2"
    with pytest.raises(ImageError, match=r"no slice '1'; the file contains only #0"):
        list(numbered(1, lambda i: i, "1"))
    for pick in (None, "0"):
        with pytest.raises(ImageError, match=r"^the file contains no slices$"):
            list(numbered(0, lambda i: i, pick))


def test_a_number_is_cut_off_a_path_only_where_the_whole_is_nothing(tmp_path):
    for name in ("a.npy", "b#1.npy", "c.npy", "c.npy#1"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone#2").symlink_to(tmp_path / "nothing")
    for name, expected in {
        "a.npy": ("a.npy", None),
        "a.npy#3": ("a.npy", "3"),
        "a.npy#x#3": ("a.npy", "x#3"),
        "a.npy#": ("a.npy", ""),
        "b#1.npy": ("b#1.npy", None),
        "b#1.npy#2": ("b#1.npy", "2"),
        "c.npy#1": ("c.npy#1", None),  # a file of that very name
        "c.npy#1#0": ("c.npy#1", "0"),
        "none#3": ("none#3", None),
        "folder#3": ("folder#3", None),
        "gone#2": ("gone#2", None),
    }.items():
        found, pick = split_selector(str(tmp_path / name))
        assert (found, pick) == (str(tmp_path / expected[0]), expected[1]), name
    assert split_selector("#3") == ("#3", None)


def test_a_file_is_closed_when_its_last_slice_was_asked_for(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy(STACK))
    before = len(os.listdir("/proc/self/fd"))
    assert [read().pixels.shape for _, read in open_slices(str(tmp_path / "a.npy"))] == [(9, 7)] * 5
    opened = open_slices(str(tmp_path / "a.npy"))
    next(opened)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    opened.close()
    assert len(os.listdir("/proc/self/fd")) == before


# One batch ahead.

SPEC = Input(size=7, mean=0.25, std=0.5, window=(40.0, 400.0))


def kept(kind, i):
    """A slice of a made-up file: its pixels say which."""
    return Slice(np.full((3, 4), i % 200, kind), (f"note {i}",))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(-1, 5), max_size=12),
    size=st.integers(1, 6),
    kind=st.sampled_from(["uint8", "uint16", "int16"]),
    damaged=st.sets(st.integers(0, 30)),
)
def test_batches_hold_every_slice_once_in_order_and_no_more_than_their_size(
    counts, size, kind, damaged
):
    """Files of 0 to 5 slices, or (-1) that are none; `damaged`: slices that cannot be read."""
    numbers = iter(range(1000))
    content = {
        f"f{at}": None if count < 0 else [next(numbers) for _ in range(count)]
        for at, count in enumerate(counts)
    }

    def load(path):
        if content[path] is None:
            raise ImageError(f"{path} is none")
        for i in content[path]:
            yield f"{path}#{i}", lambda i=i: broken(i) if i in damaged else kept(kind, i)

    def broken(i):
        raise ImageError(f"{i} is damaged")

    found = []
    for chunk_paths in batching.path_chunks(iter(content), size):
        assert 1 <= len(chunk_paths) <= size
        batches = list(
            batching.read_batches(
                chunk_paths,
                batch_size=size,
                spec=SPEC,
                load=load,
                prepare=lambda image: image,
                plain_pixel_limit=0,
                threads=1,
            )
        )
        assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
        assert (
            all(len(batch.names) == size for batch in batches[:-1])
            and len(batches[-1].names) <= size
        )
        found += batches
    names = [name for batch in found for name in batch.names]
    outcomes = [outcome for batch in found for outcome in batch.outcomes]
    expected = [
        row
        for path, numbers in content.items()
        for row in (
            [(path, f"{path} is none")]
            if numbers is None
            else [
                (f"{path}#{i}", f"{i} is damaged" if i in damaged else (f"note {i}",))
                for i in numbers
            ]
        )
    ]
    assert list(zip(names, outcomes, strict=True)) == expected
    good = [i for numbers in content.values() if numbers for i in numbers if i not in damaged]
    packed = [batch.packed for batch in found if len(batch.packed)]
    assert sum(map(len, packed)) == len(good)
    if good:
        window = {"window": (40.0, 400.0)} if kind == "int16" else {}
        wanted = pack([kept(kind, i).pixels for i in good], 7, mean=0.25, std=0.5, **window)
        np.testing.assert_array_equal(np.concatenate(packed), wanted)


def test_reading_stops_before_the_next_slice(tmp_path):
    """Of a file of many, and between files; the slice under way is kept in no batch."""
    read, stop = [], SimpleNamespace(now=False)

    def load(path):
        for i in range(3):
            yield f"{path}#{i}", lambda i=i: (read.append((path, i)), kept("uint8", i))[1]

    def run(at):
        read.clear()
        stop.now = False

        def prepare(image):
            stop.now = len(read) >= at
            return image

        options = {
            "batch_size": 9,
            "spec": SPEC,
            "load": load,
            "prepare": prepare,
            "plain_pixel_limit": 0,
            "threads": 1,
        }
        return list(batching.read_batches(["a", "b"], lambda: stop.now, **options))

    assert run(2) == [] and read == [("a", 0), ("a", 1)]
    assert run(3) == [] and read == [("a", 0), ("a", 1), ("a", 2)]
    assert len(run(99)[0].names) == 6


def one(names, stopped=lambda: False):
    """A reader for `read_ahead` of as many batches as paths, each a name."""
    for i, name in enumerate(names):
        yield batching.Batch(
            [name], np.empty((0, 1, 7, 7), np.float32), [()], last=i == len(names) - 1
        )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_one_batch_is_read_ahead_in_a_thread_and_no_thread_after_the_last(size):
    paths, by = [str(i) for i in range(7)], []

    def read(names, stopped):
        for batch in one(names):
            by.append((batch.names[0], threading.current_thread().name))
            yield batch

    found = batching.read_ahead(paths, size, read)
    assert by == []
    assert next(found).names == ["0"]
    for thread in threading.enumerate():
        if thread.name == "organ_infer reading":
            thread.join()
    assert [name for name, _ in by] == ["0", "1"]  # one ahead
    assert [batch.names[0] for batch in found] == paths[1:]
    assert [who for _, who in by] == ["MainThread"] + ["organ_infer reading"] * 6
    assert "organ_infer reading" not in [thread.name for thread in threading.enumerate()]


def test_an_error_in_the_thread_comes_where_its_batch_would_have(monkeypatch):
    def read(names, stopped):
        yield from one(names[:1])
        raise ZeroDivisionError

    found = batching.read_ahead(["a", "b"], 2, read)
    assert next(found).names == ["a"]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert list(found) == []
    assert list(batching.read_ahead([], 2, read)) == []


def test_closing_waits_for_the_slice_under_way_and_begins_no_further_batch():
    begun, seen = threading.Event(), []

    def read(names, stopped):
        seen.append(names)
        if len(seen) > 1:
            begun.set()
            while not stopped():
                pass
            return  # without a batch, as read_batches does
        yield from one(names)

    found = batching.read_ahead([str(i) for i in range(9)], 1, read)
    next(found)
    assert begun.wait(60)
    found.close()
    assert seen == [["0"], ["1"]]


def test_a_file_read_in_c_stands_between_others_in_order(tmp_path, monkeypatch):
    """What C takes is not loaded again; what it leaves is, in its place."""
    if batching._read_plain is None:
        pytest.skip("built without zlib: Pillow reads all")
    loaded = []
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(saved(GRAY + np.uint8(i)) if i != 2 else saved(DEEP))

    def load(path):
        loaded.append(os.path.basename(path))
        return open_slices(path)

    def batch(indices, plain):
        (found,) = batching.read_batches(
            [tmp_path / f"{i}.png" for i in indices], batch_size=9, spec=SPEC, load=load, prepare=lambda image: image, plain_pixel_limit=plain, threads=2
        )  # fmt: skip
        return found

    mixed = batch([0, 2, 3], 63)
    assert loaded == ["2.png"] and mixed.outcomes == [(), (), ()] and mixed.last
    assert [os.path.basename(name) for name in mixed.names] == ["0.png", "2.png", "3.png"]
    loaded.clear()
    for plain in (0, 62):  # none of so many pixels
        np.testing.assert_array_equal(batch([0, 2, 3], plain).packed, mixed.packed)
    assert loaded == ["0.png", "2.png", "3.png"] * 2
    loaded.clear()
    whole = batch([3, 1, 0], 63)
    assert loaded == [] and whole.outcomes == [(), (), ()] and whole.last and len(whole.packed) == 3
    np.testing.assert_array_equal(whole.packed[2], mixed.packed[0])
    monkeypatch.setattr(batching, "_read_plain", None)
    np.testing.assert_array_equal(batch([3, 1, 0], 63).packed, whole.packed)
    assert loaded == ["3.png", "1.png", "0.png"]


# Pixels.


def test_a_color_image_is_implausible_from_a_mean_distance_of_10():
    """docs/guides/formats.md: red, green and blue apart by 10 of 255 or more on average."""
    for apart, implausible in ((9, False), (10, True), (11, True)):
        pixels = np.full((4, 5, 3), 100, np.uint8)
        pixels[..., 1] += np.uint8(apart)
        found = read_pixels(pixels)
        assert (
            any(word.startswith("implausible: color image") for word in found.warnings)
            == implausible
        ), apart
    half = np.full((4, 5, 3), 100, np.uint8)
    half[:2, :, 2] -= np.uint8(20)  # 20 in half of the pixels
    assert any(word.startswith("implausible") for word in read_pixels(half).warnings)
    half[0, 0] = 100
    assert not any(word.startswith("implausible") for word in read_pixels(half).warnings)


def read_pixels(pixels, form="PNG", **options):
    return decode(saved(Image.fromarray(pixels), form, **options))


def test_a_transparent_gray_is_scaled_with_its_depth_for_every_depth():
    """1, 2 and 4 bits are stored as they are and shown as multiples of 255, 85 and 17."""
    for depth, step in ((1, 255), (2, 85), (4, 17), (8, 1)):
        for clear in range(0, 1 << depth, max(1, (1 << depth) // 8)):
            row = bytes([clear << (8 - depth)])
            for chunks in ((), ((b"tRNS", b"\0" + bytes([clear])),)):
                found = decode(png(1, 1, depth, 0, [row], *chunks))
                assert found.pixels[0, 0] == (0 if chunks else clear * step), (depth, clear)
                assert found.warnings == (("alpha composited on black",) if chunks else ())


def test_each_frame_keeps_its_own_pixels_in_any_order(tmp_path):
    for form, data in {
        "TIFF": tiff(*STACK),
        "GIF": frames("GIF"),
        "PNG": frames("PNG"),
        "WEBP": frames("WEBP"),
    }.items():
        reads = dict(decode_slices(data))
        assert list(reads) == [f"#{i}" for i in range(5)], form
        for i in (4, 0, 3, 3, 1, 2):
            found = slices(data, str(i))[f"#{i}"].pixels
            np.testing.assert_array_equal(found, STACK[i], err_msg=f"{form} {i}")
        refused(data, r"no slice '5'; the file contains #0 to #4", "5")
        refused(data, "too large, at most 62 pixels", pixels=62)
    (tmp_path / "a.png").write_bytes(saved(GRAY))
    assert read_image(f"{tmp_path / 'a.png'}#0").pixels.shape == (9, 7)
    refused(saved(GRAY), "no slice '1'; the file contains only #0", "1")


def frames(form):
    first, *others = map(Image.fromarray, STACK)
    options = {"lossless": True} if form == "WEBP" else {}
    return saved(first, form, save_all=True, append_images=others, **options)


def test_a_png_has_as_many_frames_as_it_says_or_is_refused():
    """The picture itself is no frame unless the frames' controls say so."""

    def claims(count, frames):
        parts = b"".join(fctl(2 * i, 4, 3) + fdat(2 * i + 1, stream) for i in range(frames))
        return png_of(stream, before=chunk(b"acTL", struct.pack(">II", count, 0)), after=parts)

    stream = zlib.compress(bytes(15))
    for count in (1, 2):
        assert len(slices(claims(count, count))) == count + 1
        message = (
            f"PNG: header declares {count + 2} frames, but they are missing; the file is truncated"
        )
        refused(claims(count + 1, count), message)
    refused(claims(1_000_000, 0), "PNG: header declares 1,000,001 frames")
