"""Damaged files, manifests and arguments: refused in a line, or as they were; never another picture, never a crash.

tests/corpus holds sound files of every format and such as once went wrong; what hypothesis finds is kept there too.
"""

import io
import json
import random
import string
import zlib

import numpy as np
import pytest
from conftest import DEFAULT, ROOT, needs_default
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase
from support.damaged_files import answer, checked, cuts, edits, flips, outcome, unchecked
from support.data_files import DATA
from support.image_files import decode
from support.png_files import (
    CHANNELS,
    GRAY,
    KINDS,
    ODD,
    ROW,
    WHOLE,
    any_png,
    mended,
    random_png,
    reference_gray,
)

from organ_infer import BundleError, ImageError, InputError
from organ_infer.bundle.files import Manifest
from organ_infer.cli.arguments import Options, UsageError, parse

CORPUS = ROOT / "tests" / "corpus"
IMAGES = sorted((CORPUS / "images").iterdir())
EXPECTED = json.loads((CORPUS / "images.json").read_text())
SUITE = DATA / "pngsuite"

kept = settings(
    max_examples=100,
    deadline=None,
    database=DirectoryBasedExampleDatabase(CORPUS / "hypothesis"),
    suppress_health_check=[HealthCheck.too_slow],
)
quiet = pytest.mark.filterwarnings("ignore")  # what Pillow and pydicom have to say of damage


def as_reference(data, found):
    """Exactly where the file is gray; within a step where it is computed, two where 16 bits of color are cut to 8."""
    gray, depth, kind = reference_gray(data)
    most = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65_535}[found.pixels.dtype]
    if kind in (0, 4):
        assert most == (65_535 if depth == 16 else 255)
    apart = np.abs(found.pixels - gray * most).max()
    assert apart <= (0 if kind == 0 else 2 if depth == 16 and kind != 4 else 1)


# PNG whose checksums are right and whose pixels are not.


@pytest.mark.parametrize(
    "name",
    ["a row too few", "a row too many", "filter 5", "no checksum", "a wrong checksum", "a dictionary", "parted IDAT",
     "16 bits", "color", "interlaced", "no pixels", "no header", "no width"],
)  # fmt: skip
def test_png_without_all_its_pixels_is_refused(name):
    with pytest.raises(ImageError) as caught:
        decode(ODD[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["text", "text at the end", "a palette", "unknown", "an empty IDAT", "IEND with data"]
)
def test_odd_png_with_all_its_pixels_is_read(name):
    assert np.array_equal(
        decode(ODD[name]).pixels, ROW if name in ("an empty IDAT", "IEND with data") else GRAY
    )


@quiet
@pytest.mark.parametrize(
    "sound", [WHOLE, *(random_png(*kind) for kind in [(2, 8), (0, 16), (3, 4)]), random_png(6, 8, interlaced=True)]
)  # fmt: skip
def test_a_changed_stream_with_its_checksums_mended_is_refused_or_what_it_says(sound):
    refused = 0
    for at in range(sound.index(b"IDAT") + 4, len(sound) - 16):
        data = mended(sound[:at] + bytes([sound[at] ^ 8]) + sound[at + 1 :])
        try:
            found = decode(data)
        except ImageError:
            refused += 1
            continue
        as_reference(
            data, found
        )  # a byte of a filter or of a length can be changed to another valid one
    assert refused > 0


@pytest.mark.parametrize(
    "behind", [b"\n", bytes(4), bytes(100), b"hello world trailing junk", b"\xff" * 50]
)
def test_what_lies_behind_the_end_of_a_png_is_no_part_of_it(behind):
    assert np.array_equal(decode(WHOLE + behind).pixels, GRAY)


def test_a_palette_that_is_not_there_is_not_made_up():
    sound = random_png(3, 8)
    at = sound.index(b"PLTE") - 4
    length = int.from_bytes(sound[at : at + 4], "big")
    with pytest.raises(ImageError, match="PNG"):
        decode(sound[:at] + sound[at + 12 + length :])


# Sound PNG of every kind, against a decoder of the tests' own.


@pytest.mark.parametrize(("kind", "depth"), KINDS)
@pytest.mark.parametrize("interlaced", [False, True])
def test_every_kind_of_png_is_what_the_specification_says(kind, depth, interlaced):
    for seed, (height, width) in enumerate([(1, 1), (9, 11), (3, 30), (17, 2)]):
        data = random_png(kind, depth, interlaced=interlaced, height=height, width=width, seed=seed)
        as_reference(data, decode(data))


def test_the_reference_decoder_decodes():
    """By known values, so that it and the encoder beside it are not wrong alike."""
    values = np.arange(24).reshape(4, 6, 1)
    gray, depth, kind = reference_gray(any_png(values, 0, 8))
    np.testing.assert_array_equal(gray * 255, values[..., 0])
    assert (depth, kind, CHANNELS[kind]) == (8, 0, 1)


@pytest.mark.skipif(
    not SUITE.is_dir(), reason="ORGAN_DATA_DIR does not name the directory of pngsuite"
)
def test_the_png_suite():
    """159 of its 161 valid files as the specification says, 2 refused with the reason; all 14 broken ones refused."""
    refused = {}
    for path in sorted(SUITE.glob("*.png")):
        data = path.read_bytes()
        try:
            found = decode(data)
        except ImageError as e:
            refused[path.stem] = str(e)
        else:
            as_reference(data, found)
    broken = {name for name in refused if name.startswith("x")}
    assert len(broken) == 14 == len(list(SUITE.glob("x*.png")))
    assert refused.keys() - broken == {"tbbn2c16", "tbgn2c16"}
    assert all(
        "16-bit color with a transparent color" in refused[name] for name in refused.keys() - broken
    )


# Every cut and every flipped bit.


PNGS = [
    "PNG, 8-bit gray",
    "PNG, 16-bit gray",
    "PNG, 4-bit palette",
    "PNG, 8-bit RGBA, interlaced",
    ".npz, deflated",
]


@quiet
@pytest.mark.parametrize("name", PNGS)
def test_no_damage_to_a_checked_file_passes_unseen(name):
    data = checked()[name]
    expected = answer(data)
    found = {outcome(other, expected) for damaged in (cuts, flips) for other in damaged(data)}
    assert found <= {"refused", "same"} and "refused" in found


@quiet
def test_no_cut_passes_unseen_in_any_format():
    for name, data in (checked() | unchecked()).items():
        expected = answer(data)
        for i, other in enumerate(cuts(data)):
            if i % 7 == 0 or len(data) - i < 12:
                assert outcome(other, expected) in ("refused", "same"), (name, i)


# The corpus.


@quiet
@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_the_corpus_is_answered_as_before(path):
    if path.suffix == ".dcm":
        pytest.importorskip("pydicom")
    expected = EXPECTED[path.name]
    if isinstance(expected, str):
        with pytest.raises(ImageError) as caught:
            answer(path.read_bytes())
        assert str(caught.value).startswith(expected)
        return
    for name, pixels in answer(path.read_bytes()).items():
        kind, shape, checksum = expected.pop(name)
        assert (pixels.dtype.name, list(pixels.shape)) == (kind, shape)
        assert checksum in (None, zlib.crc32(pixels.tobytes()))
    assert expected == {}


def test_the_corpus_is_whole():
    assert [path.name for path in IMAGES] == sorted(EXPECTED)


@quiet
@kept
@given(path=st.sampled_from(IMAGES), seed=st.integers(0, 1 << 32))
def test_edited_files_end_in_an_answer_or_an_error_of_one_line(path, seed):
    if path.suffix == ".dcm":
        pytest.importorskip("pydicom")
    for data in edits(path.read_bytes(), random.Random(seed), 5):
        found = outcome(data, {})
        assert not found.startswith("crashed"), found


@quiet
@kept
@given(
    head=st.sampled_from([path.read_bytes()[:140] for path in IMAGES]), data=st.binary(max_size=400)
)
def test_any_bytes_behind_a_known_beginning(head, data):
    found = outcome(head + data, {})
    assert not found.startswith("crashed"), found


# Manifests.


def read_manifest(text):
    """One line of refusal, or a manifest that survives being written."""
    try:
        found = Manifest.from_json(text)
    except BundleError as e:
        assert str(e) and "\n" not in str(e)
    else:
        assert Manifest.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    "path", sorted((CORPUS / "manifests").iterdir()), ids=lambda path: path.name
)
def test_the_corpus_of_manifests(path):
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(path.read_bytes())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, at=()):
    """Where every part of parsed JSON stands."""
    yield at
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        yield from places(child, (*at, key))


@needs_default
@kept
@given(data=st.data(), changes=st.lists(JSON, min_size=1, max_size=3))
def test_manifests_with_parts_replaced_or_missing(data, changes):
    manifest = {"": json.loads(DEFAULT.read_text())}
    for value in changes:
        left = [at for at in places(manifest) if at]
        if not left:  # all of it was taken away
            break
        *before, last = data.draw(st.sampled_from(left))
        part = manifest
        for key in before:
            part = part[key]
        if value is None and data.draw(st.booleans()):
            del part[last]
        else:
            part[last] = value
    read_manifest(json.dumps(manifest.get("")))


@needs_default
@kept
@given(seed=st.integers(0, 1 << 32))
def test_manifests_with_bytes_edited(seed):
    for text in edits(DEFAULT.read_bytes(), random.Random(seed), 3):
        read_manifest(text)


# Arguments.


OPTIONS = sorted(
    "--" + name.replace("_", "-")
    for name in Options._fields
    if name not in ("paths", "null", "recursive")
)
WORDS = st.sampled_from(
    [
        *OPTIONS,
        "-0",
        "-r",
        "-",
        "--",
        "--recursive",
        "--null",
        "text",
        "csv",
        "jsonl",
        "auto",
        "cpu",
    ]
)
NUMBERS = st.integers().map(str) | st.floats().map(str)
PARTS = WORDS | NUMBERS | st.text(max_size=8) | st.text(string.printable, max_size=8) | st.builds("{}={}".format, WORDS, NUMBERS)  # fmt: skip


def read_arguments(given):
    try:
        assert isinstance(parse(given), Options)
    except UsageError as e:
        assert str(e)
    except SystemExit as e:  # --help and --version
        assert e.code in (None, 0)


@pytest.mark.parametrize("given", json.loads((CORPUS / "arguments.json").read_text()), ids=repr)
def test_the_corpus_of_arguments(given):
    read_arguments(given)


@kept
@given(given=st.lists(PARTS, max_size=6))
def test_any_arguments_are_taken_or_refused(given):
    read_arguments(given)


def test_a_pillow_image_of_a_damaged_file_is_refused(classifier):
    from PIL import Image

    for name in ("filter 5", "a wrong checksum", "parted IDAT"):
        with pytest.raises(InputError, match="images: ") as caught:
            classifier.predict(Image.open(io.BytesIO(ODD[name])))
        assert "\n" not in str(caught.value)
