"""Files of many slices: each by its name, in order, one at a time."""

import io
import json
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from support.image_files import (
    DEEP,
    GRAY,
    STACK,
    decode,
    npy,
    npz,
    refused,
    same,
    saved,
    slices,
    tiff,
)

from organ_infer import ImageError, ImageFailure, OrganClassifier, Prediction
from organ_infer.images.registry import decode_slices, open_slices, split_selector

UNITS = (DEEP.astype(np.int32) - 32_768).astype(np.int16)
NAMES = ["#0", "#1", "#2", "#3", "#4"]


def stacked(found, expected, dtype=np.uint8):
    assert list(found) == [f"#{i}" for i in range(len(expected))]
    for piece, pixels in zip(found.values(), expected, strict=True):
        same(piece, pixels, dtype)


# Arrays.


@pytest.mark.parametrize(
    "stack",
    [STACK, STACK.astype(np.uint16) * 257, STACK.astype(">i2"), np.asfortranarray(STACK), STACK[:1], STACK[:, :2, :5]],
    ids=["uint8", "uint16", "big endian", "columns first", "one", "a few pixels"],
)  # fmt: skip
def test_a_stack_is_its_slices(stack):
    expected = stack.astype(stack.dtype.newbyteorder("="))
    stacked(slices(npy(stack)), expected, expected.dtype)
    found = slices(npz(b=stack, a=stack[0]))
    assert list(found) == [*(f"#b#{i}" for i in range(len(stack))), "#a"]
    same(found["#b#0"], expected[0], expected.dtype)
    same(found["#a"], expected[0], expected.dtype)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_slice_or_an_array_is_picked_by_its_name(compressed):
    same(decode(npy(STACK), "3"), STACK[3])
    same(decode(npy(STACK), "004"), STACK[4])
    same(decode(npy(GRAY), "0"), GRAY)
    data = npz(compressed, first=STACK, second=GRAY, third=STACK[:2])
    assert list(slices(data, "third")) == ["#third#0", "#third#1"]
    same(decode(data, "first#4"), STACK[4])
    same(decode(data, "second"), GRAY)
    for pick in ("5", "-1", "1.5", "٣", "", "x", "9" * 30):
        refused(npy(STACK), "no slice .*; the file contains #0 to #4", pick)
        refused(data, "no slice .*; the file contains #0 to #4", f"first#{pick}")
    refused(saved(GRAY), "the file contains only #0", "1")
    refused(data, "no array 'fourth'; the file contains: first, second, third", "fourth")


def test_what_is_no_stack_is_refused():
    refused(npy(STACK[:0]), "the file contains no slices")
    refused(npy(STACK[:, :, :3]), "looks like color")
    refused(npy(STACK[None]), r"found uint8 \(1, 5, 9, 7\)")
    refused(npy(STACK.astype(np.float32)), "found float32")
    refused(npy(STACK)[:-1], "truncated or damaged")
    refused(npy(STACK), "7 x 9 pixels: too large", pixels=62)
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 60, 9, 7)}
    )
    refused(file.getvalue() + STACK.tobytes(), "truncated or damaged")


def test_an_array_that_is_no_slice_does_not_keep_the_others_of_its_archive(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(npz(labels=np.zeros(9), images=STACK[:1], objects=GRAY[:1, :2].astype(float)))
    found = dict(open_slices(str(path)))
    assert list(found) == [f"{path}#labels", f"{path}#images#0", f"{path}#objects"]


def test_a_pickle_is_never_loaded():
    file = io.BytesIO()
    np.save(file, np.array([[print]], object), allow_pickle=True)
    refused(file.getvalue(), "found object")
    file = io.BytesIO()
    np.savez(file, a=np.array([[print]], object))
    refused(file.getvalue(), "found object")


def zipped(method=zipfile.ZIP_STORED, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("_", "."), data)
    return file.getvalue()


def test_an_archive_that_is_no_npz_is_refused():
    for members in (
        {"a_txt": b"x", "b_npy": npy(GRAY)},
        {"a_png": saved(GRAY)},
        {"deep/b_dcm": b""},
    ):
        refused(
            zipped(**members), "^a zip of other files than .npy; unpack it, and pass the directory$"
        )
    refused(
        zipped(a_npy=npy(GRAY)) + b"x",
        "truncated, or not an archive of up to 4 GiB as numpy.savez writes it",
    )
    refused(zipped(a_npy=npy(GRAY))[:-5], "truncated, or not an archive")
    refused(b"PK\3\4", "truncated, or not an archive")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        refused(
            zipped(method, a_npy=npy(GRAY)),
            "unsupported compression of a.npy; save it with numpy.savez",
        )
    refused(
        npz(True, a=np.zeros((1000, 1000), np.uint8)),
        "1,000,128 bytes of arrays: too large",
        file_bytes=10_000,
    )
    many = zipped(**{f"{'x' * 900}{i}_npy": b"" for i in range(1200)})
    refused(many, "too many arrays")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_stack_in_column_order_is_its_slices_whatever_their_number(count):
    stacked(slices(npy(np.asfortranarray(STACK[:count]))), STACK[:count])
    same(decode(npy(np.asfortranarray(STACK[:count])), str(count - 1)), STACK[count - 1])
    same(decode(npy(np.asfortranarray(GRAY))), GRAY)


@pytest.mark.parametrize("limit", ["exact", "one less"])
def test_an_archive_is_read_up_to_the_limit_on_its_arrays(limit):
    stack = np.zeros((5, 40, 40), np.uint8)
    data = npz(True, a=stack, b=GRAY)
    size = len(npy(stack)) + len(npy(GRAY))
    assert len(data) < size
    if limit == "exact":
        assert len(slices(data, file_bytes=size)) == 6
    else:
        refused(
            data, rf"{size:,} bytes of arrays: too large, at most {size - 1:,}", file_bytes=size - 1
        )


def test_an_archive_of_over_4_gib_is_refused_by_the_record_before_its_end():
    data = zipped(a_npy=npy(GRAY))
    same(decode(data), GRAY)
    refused(
        data[:-22] + b"PK\6\7" + b"\0" * 16 + data[-22:],
        "not an archive of up to 4 GiB as numpy.savez writes it",
    )


def test_an_archive_whose_list_of_members_is_over_a_mebibyte_is_refused():
    """The length of the list stands in the archive's last record; nothing of it is read."""
    data = bytearray(zipped(a_npy=npy(GRAY)))
    for size, words in ((1 << 20) + 1, "too many arrays"), (1 << 20, "damaged or not supported"):
        data[-10:-6] = size.to_bytes(4, "little")
        refused(bytes(data), words)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", npy(GRAY))
        archive.writestr("a.npy", npy(STACK[0]))
    refused(file.getvalue(), "damaged, or two arrays have one name")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    stack = np.tile(STACK, (1, 60, 60))  # slices larger than any buffer
    path.write_bytes(npy(stack))
    for i, (_, read) in enumerate(open_slices(str(path))):
        if i == 4:
            os.truncate(path, path.stat().st_size - 1)
            with pytest.raises(ImageError, match="the file changed while it was read"):
                read()
        else:
            same(read(), stack[i])


def test_an_npy_of_another_version_is_refused():
    data = bytearray(npy(GRAY))
    data[6] = 3
    refused(bytes(data), r"\.npy: version \(3, 0\) is not supported; save it with numpy\.save")
    file = io.BytesIO()
    np.lib.format.write_array(file, GRAY, version=(2, 0))
    same(decode(file.getvalue()), GRAY)


def test_an_array_of_three_or_four_in_its_last_axis_looks_like_color_and_others_do_not():
    assert len(slices(npy(STACK[:, :, :5]))) == 5
    for count in (3, 4):
        refused(npy(STACK[:, :, :count]), "looks like color; convert it to gray")
        assert list(slices(npy(STACK[0, :, :count]))) == [""]


def test_a_damaged_archive_gives_none_of_its_slices():
    """Its checksum stands behind the last slice, and is asked for before the first."""
    stack = np.tile(STACK, (1, 60, 60))  # more than is read at once
    data = npz(a=stack)
    at = data.index(stack[0].tobytes())
    damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    refused(damaged, "damaged or not supported .Bad CRC-32")
    with pytest.raises(ImageError, match="Bad CRC-32"):
        next(decode_slices(damaged))


# Pictures.


def test_a_tiff_of_many_pages():
    for order in "<>":
        stacked(slices(tiff(*STACK, order=order)), STACK)
    stacked(slices(saved(Image.fromarray(STACK[0]), "TIFF", save_all=True, append_images=list(map(Image.fromarray, STACK[1:])))), STACK)  # fmt: skip
    same(decode(tiff(GRAY, DEEP, UNITS.astype(np.uint16)), "1"), DEEP, np.uint16)
    mixed = list(slices(tiff(GRAY, DEEP, STACK[0])).values())
    assert [piece.pixels.dtype.name for piece in mixed] == ["uint8", "uint16", "uint8"]
    assert list(slices(tiff(GRAY))) == [""]


def test_pages_in_a_circle_end():
    data = tiff(*STACK)
    stacked(slices(data[:-4] + data[4:8]), STACK)


def test_frames_of_an_animated_png_gif_and_webp():
    images = [Image.fromarray(pixels) for pixels in STACK]
    for form, options in {
        "PNG": {},
        "GIF": {"optimize": False},
        "WEBP": {"lossless": True},
    }.items():
        data = saved(
            images[0], form, save_all=True, append_images=images[1:], duration=100, **options
        )
        stacked(slices(data), STACK)
        same(decode(data, "2"), STACK[2])


def test_a_damaged_frame_fails_alone(tmp_path, bundle):
    data = bytearray(tiff(*STACK))
    at = data.rindex(b"\x11\x01\x04\0\x01\0\0\0")  # where the last page's pixels are
    data[at + 8 : at + 12] = struct.pack("<I", 1 << 20)
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with OrganClassifier(bundle, device="cpu") as opened:
        found = list(opened.predict_paths([path]))
    assert [p.path for p in found] == [f"{path}#{i}" for i in range(5)]
    assert [isinstance(p, Prediction) for p in found] == [True] * 4 + [False]


def test_only_the_page_with_an_exif_orientation_is_reoriented():
    """A page's orientation does not stay for the next one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(file, new=True) as pages:
        for pixels, options in (GRAY, {"exif": exif}), (STACK[1], {}):
            Image.fromarray(pixels).save(pages, "TIFF", **options)
            pages.newFrame()
    turned, plain = slices(file.getvalue()).values()
    same(turned, np.rot90(GRAY, -1))
    same(plain, STACK[1])
    assert (turned.warnings, plain.warnings) == (("reoriented by its EXIF orientation (6)",), ())


# Their names.


def test_a_file_beats_the_slice_of_another(tmp_path):
    stack = tmp_path / "a#b.npy"
    stack.write_bytes(npy(STACK))
    assert split_selector(f"{stack}#3") == (str(stack), "3")
    assert split_selector(str(stack)) == (str(stack), None)
    assert split_selector(f"{tmp_path}/none#3") == (f"{tmp_path}/none#3", None)
    assert split_selector(f"{tmp_path}#3") == (f"{tmp_path}#3", None)  # a directory
    (tmp_path / "a#b.npy#3").write_bytes(saved(GRAY))
    ((name, read),) = ((name, read()) for name, read in open_slices(f"{stack}#3"))
    assert name == f"{stack}#3"
    same(read, GRAY)


def test_slices_come_back_in_order_among_other_files(bundle, pictures, tmp_path):
    """More slices than a batch, in sequences and one by one, in C and not."""
    stack = np.random.default_rng(1).integers(0, 256, (11, 28, 28), np.uint8)
    (tmp_path / "s.npy").write_bytes(npy(stack))
    (tmp_path / "t.tif").write_bytes(tiff(*stack[:3]))
    (tmp_path / "bad.npy").write_bytes(npy(stack)[:-1])
    files = sorted(map(str, pictures.iterdir()))[:5]
    paths = [files[0], f"{tmp_path}/s.npy", files[1], f"{tmp_path}/bad.npy", f"{tmp_path}/t.tif", files[2],
             f"{tmp_path}/s.npy#7", f"{tmp_path}/s.npy#11", *files[3:]]  # fmt: skip
    expected = [files[0], *(f"{tmp_path}/s.npy#{i}" for i in range(11)), files[1], f"{tmp_path}/bad.npy",
                *(f"{tmp_path}/t.tif#{i}" for i in range(3)), files[2], f"{tmp_path}/s.npy#7",
                f"{tmp_path}/s.npy#11", *files[3:]]  # fmt: skip
    for size in (1, 3, 4, 64):
        with OrganClassifier(bundle, device="cpu", batch_size=size) as opened:
            sequence, one_by_one = (
                list(opened.predict_paths(paths)),
                list(opened.predict_paths(iter(paths))),
            )
            direct = opened.predict_proba(stack)
        assert [p.path for p in sequence] == [p.path for p in one_by_one] == expected
        failed = [p for p in sequence if isinstance(p, ImageFailure)]
        assert [p.path for p in failed] == [f"{tmp_path}/bad.npy", f"{tmp_path}/s.npy#11"]
        by_name = {p.path: p for p in sequence}
        for i in range(11):
            np.testing.assert_allclose(
                by_name[f"{tmp_path}/s.npy#{i}"].probabilities, direct[i], atol=1e-6
            )
        assert [type(p) for p in sequence] == [type(p) for p in one_by_one]


def test_slices_are_read_a_batch_at_a_time(bundle, tmp_path, monkeypatch):
    from organ_infer.images import arrays

    path = tmp_path / "s.npy"
    path.write_bytes(npy(np.zeros((1000, 28, 28), np.uint8)))
    read = []
    whole = arrays.Slice
    monkeypatch.setattr(arrays, "Slice", lambda *a: (read.append(1), whole(*a))[-1])
    with OrganClassifier(bundle, device="cpu", batch_size=8) as opened:
        results = opened.predict_paths(iter([path]))
        assert len(read) == 0
        next(results)
        assert len(read) == 9
        results.close()
        read.clear()
        results = opened.predict_paths([path])
        next(results)
        results.close()
        assert len(read) <= 18
        before = len(os.listdir("/proc/self/fd"))
        assert len(list(opened.predict_paths([path]))) == 1000
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("compressed", [None, False, True])
@pytest.mark.parametrize("listed", [True, False])
def test_memory_does_not_grow_with_a_stack(bundle, tmp_path, compressed, listed):
    """Forty slices of a megapixel, plain and in archives: some are held, as NumPy and Python count their bytes."""
    stack = np.zeros((40, 1024, 1024), np.uint8)
    path = tmp_path / "a"
    path.write_bytes(npy(stack) if compressed is None else npz(compressed, a=stack))
    del stack
    with OrganClassifier(bundle, device="cpu") as opened:
        opened.predict(np.zeros((28, 28), np.uint8))
        tracemalloc.start()
        try:
            results = opened.predict_paths([path] if listed else iter([path]))
            assert sum(isinstance(found, Prediction) for found in results) == 40
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert 1 << 20 < most < 6 << 20


# The command.


def test_the_command_takes_slices(command, tmp_path):
    (tmp_path / "[s].npy").write_bytes(npy(STACK))
    (tmp_path / "z.npz").write_bytes(npz(a=STACK[:2], b=STACK[:1]))
    done = command("--format", "jsonl", tmp_path)
    expected = [*(f"{tmp_path}/[s].npy#{i}" for i in range(5)), f"{tmp_path}/z.npz#a#0", f"{tmp_path}/z.npz#a#1",
                f"{tmp_path}/z.npz#b#0"]  # fmt: skip
    assert done.returncode == 0
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == expected
    one = command(
        "--format", "jsonl", f"{tmp_path}/[s].npy#3", f"{tmp_path}/z.npz#b", f"{tmp_path}/z.npz#c"
    )
    rows = [json.loads(line) for line in one.stdout.splitlines()]
    assert one.returncode == 1
    assert [row["path"] for row in rows] == [expected[3], expected[-1], f"{tmp_path}/z.npz#c"]
    assert rows[0] == json.loads(done.stdout.splitlines()[3])
    assert "no array 'c'" in rows[2]["error"]


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_last_axis_of_one_is_dropped(order):
    channel = np.asarray(STACK[..., None], order=order)
    for data, suffix in ((npy(channel), ""), (npz(a=channel), "#a")):
        found = slices(data)
        assert list(found) == [f"{suffix}#{i}" for i in range(len(STACK))]
        for i, pixels in enumerate(STACK):
            np.testing.assert_array_equal(found[f"{suffix}#{i}"].pixels, pixels)
    same(decode(npy(np.asarray(GRAY[..., None], order=order))), GRAY)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((9, 7, 2), "gray with alpha"),
        ((128, 128, 5), "a volume"),
        ((200, 200, 199), "a volume"),
        ((9, 1), "one pixel wide"),
        ((1, 9), "one pixel wide"),
        ((4, 1, 9), "one pixel wide"),
    ],
)
def test_an_array_that_is_no_stack_is_refused_and_the_other_arrays_are_read(shape, words):
    odd = np.zeros(shape, np.uint8)
    refused(npy(odd), words)
    with pytest.raises(ImageError, match=words):
        dict(decode_slices(npz(labels=odd, images=STACK)))["#labels"]()
    assert len(dict(decode_slices(npz(labels=odd, images=STACK)))) == 1 + len(STACK)


@pytest.mark.parametrize("shape", [(127, 127, 5), (128, 128, 128), (128, 129, 128), (3, 128, 128)])
def test_other_stacks_are_no_volumes(shape):
    assert len(dict(decode_slices(npy(np.zeros(shape, np.uint8))))) == shape[0]
