"""DICOM to slices: Hounsfield units, frames, and the orientation that the file states."""

import io
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.image_files import DEEP, GRAY, decode, dicom, refused, same, saved, slices

STORED = (DEEP >> 4).astype(np.uint16)
HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}
LYING = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}


def test_dicom_becomes_hounsfield_units():
    same(decode(dicom(STORED, **HU)), STORED.astype(np.int32) - 1024, np.int16)
    found = decode(dicom(STORED, RescaleSlope=100, RescaleIntercept=-1024))
    same(found, np.clip(STORED.astype(np.int32) * 100 - 1024, -32_768, 32_767), np.int16)
    same(
        decode(dicom(STORED, **HU, PhotometricInterpretation="MONOCHROME1")),
        STORED.astype(np.int32) - 1024,
        np.int16,
    )


def test_dicom_without_a_rescale_is_read_as_shown():
    found = decode(dicom(GRAY, PhotometricInterpretation="MONOCHROME1"))
    same(found, 255 - GRAY)
    assert "inverted, because 0 is white in this file" in found.warnings


@pytest.mark.parametrize(
    ("cosines", "expected"),
    [
        ([1, 0, 0, 0, 1, 0], ("P", "L")),
        ([-1, 0, 0, 0, 1, 0], ("P", "R")),
        ([0, 1, 0, 1, 0, 0], ("L", "P")),
        ([1, 0, 0, 0, 0, -1], ("F", "L")),
        ([0.99, 0.1, 0, -0.1, 0.99, 0], ("P", "L")),
    ],
)
def test_dicom_states_its_orientation(cosines, expected):
    assert decode(dicom(STORED, **HU, ImageOrientationPatient=cosines)).orientation == expected


# x, y, z of DICOM's patient (PS3.3 C.7.6.2.1.1), growing and falling
LETTERS = np.array([["L", "R"], ["P", "A"], ["H", "F"]])


def turned(axis, degrees):
    """The rotation by an angle about x, y or z, float64 (3, 3)."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    found = np.eye(3)
    first, second = [i for i in range(3) if i != axis]
    found[[first, second], [first, second]] = cosine
    found[first, second], found[second, first] = -sine, sine
    return found


def cosines_of(rotation):
    """ImageOrientationPatient of a usual axial slice after a rotation, with the digits that DICOM has room for."""
    return [round(float(value), 10) for value in (*rotation[:, 0], *rotation[:, 1])]


@pytest.mark.parametrize("length", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("degrees", "straight"),
    [
        (0, True),
        (10, True),
        (24.9, True),
        (25.1, False),
        (30, False),
        (41, False),
        (45, False),
        (49, False),
    ],
)
def test_a_slice_more_than_25_degrees_off_the_axes_is_refused(axis, degrees, straight, length):
    """docs/guides/formats.md: 25 degrees. Only the direction of the cosines counts, for files that round them."""
    for sign in (1, -1):
        cosines = [length * value for value in cosines_of(turned(axis, sign * degrees))]
        data = dicom(STORED, **HU, ImageOrientationPatient=[f"{value:.10g}" for value in cosines])
        if straight:
            assert decode(data).orientation == ("P", "L")
        else:
            refused(data, "oblique slice, more than 25 degrees off the patient axes")


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.floats(-180, 180)] * 3))
def test_any_rotation_is_named_by_the_nearest_axes_or_refused(angles):
    rotation = turned(0, angles[0]) @ turned(1, angles[1]) @ turned(2, angles[2])
    cosines = cosines_of(rotation)
    # degrees from both directions of the slice to the six of the patient: (2, 3, 2)
    directions = np.reshape(cosines, (2, 3, 1)) * [1, -1]
    degrees = np.degrees(np.arccos(np.clip(directions, -1, 1)))
    nearest = degrees.min(axis=(1, 2))
    assume((np.abs(nearest - 25) > 0.01).all())
    data = dicom(STORED, **HU, ImageOrientationPatient=cosines)
    if (nearest > 25).any():
        refused(data, "oblique")
    else:
        columns, rows = (str(LETTERS[one == one.min()][0]) for one in degrees)
        assert decode(data).orientation == (rows, columns)


@pytest.mark.parametrize(
    "cosines", [[0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [1e300, 1e300, 0, 0, 1, 0]]
)
def test_directions_that_are_none_are_refused(cosines):
    refused(
        dicom(STORED, **HU, ImageOrientationPatient=cosines),
        "invalid ImageOrientationPatient; a direction has no length",
    )


@pytest.mark.parametrize("cosines", [[1, 0, 0], [1, 0, 0, 0, 1]])
def test_too_few_cosines_are_no_orientation(cosines):
    found = decode(dicom(STORED, **HU, ImageOrientationPatient=cosines))
    assert found.orientation is None
    assert found.warnings == (
        "no ImageOrientationPatient; orientation unknown, used as stored unless an orientation is given",
    )


def test_dicom_without_an_orientation_is_warned_of():
    warning = "no ImageOrientationPatient; orientation unknown, used as stored unless an orientation is given"
    assert decode(dicom(STORED, **HU)).warnings == (warning,)
    assert decode(dicom(STORED, **HU, **LYING)).warnings == ()


def test_dicom_that_cannot_be_a_ct_slice_is_refused():
    refused(dicom(STORED, **HU, ImageOrientationPatient=[0.7, 0.7, 0, -0.7, 0.7, 0]), "oblique")
    refused(
        dicom(STORED, **HU, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
        "along the same patient axis",
    )
    refused(dicom(STORED, **HU)[:200], "DICOM")
    refused(dicom(STORED, **HU, SamplesPerPixel=3), "color is not supported")


def test_dicom_without_pydicom_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pydicom", None)
    refused(b"\0" * 128 + b"DICM", r"pip install 'organ-infer\[dicom\]'")


def test_a_dicom_slice_is_reoriented_to_the_model(bundle, tmp_path):
    """A usual axial slice (rows to the back, columns to the left) is the transpose of what the model takes."""
    from organ_infer import ImageFailure, OrganClassifier

    usual, coronal = tmp_path / "usual", tmp_path / "coronal"
    usual.write_bytes(dicom(STORED, **HU, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    coronal.write_bytes(dicom(STORED, **HU, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]))
    with OrganClassifier(bundle, device="cpu", orientation="LP") as opened:  # the file knows better
        expected = opened.predict_proba((STORED.astype(np.int32) - 1024).astype(np.int16).T)[0]
        turned, refusal = opened.predict_paths([usual, coronal])
    assert turned.probabilities == tuple(expected.tolist())
    assert isinstance(refusal, ImageFailure) and "found one in the coronal plane" in refusal.error


SIGNED = (STORED.astype(np.int32) - 2048).astype(np.int16)


@pytest.mark.parametrize("fields", [{"RescaleSlope": 2}, {"RescaleIntercept": -7}])
def test_a_slope_or_an_intercept_alone_is_enough(fields):
    expected = STORED.astype(np.int32) * fields.get("RescaleSlope", 1) + fields.get(
        "RescaleIntercept", 0
    )
    same(decode(dicom(STORED, **fields)), expected, np.int16)


def test_hounsfield_units_are_rounded_to_the_nearest_and_clipped_to_int16():
    stored = np.array([[0, 1, 3, 65_535]], np.uint16)
    same(decode(dicom(stored, RescaleSlope=0.6, RescaleIntercept=0)), [[0, 1, 2, 32_767]], np.int16)
    same(
        decode(dicom(stored, RescaleSlope=-1, RescaleIntercept=0)), [[0, -1, -3, -32_768]], np.int16
    )


@pytest.mark.parametrize("bits", [1, 5, 7, 8, 9, 12, 15, 16])
@pytest.mark.parametrize("shown", ["MONOCHROME1", "MONOCHROME2"])
def test_gray_is_scaled_from_the_bits_stored_to_8_or_16(bits, shown):
    """docs/guides/formats.md. Black and white are reached at any depth."""
    top = 2**bits - 1
    stored = np.array([[0, top // 2, top]], np.uint8 if bits <= 8 else np.uint16)
    full = 255 if bits <= 8 else 65_535
    fraction = stored / top if shown == "MONOCHROME2" else 1 - stored / top
    data = dicom(
        stored, **LYING, BitsStored=bits, HighBit=bits - 1, PhotometricInterpretation=shown
    )
    found = decode(data)
    same(found, np.rint(fraction * full), np.uint8 if bits <= 8 else np.uint16)
    inverted = ("inverted, because 0 is white in this file",) if shown == "MONOCHROME1" else ()
    assert found.warnings == (
        f"implausible: no rescale to HU; read as {bits}-bit gray of unknown units",
        *inverted,
    )


def test_frames_must_be_there_to_the_last_byte():
    stack = np.stack([STORED, STORED[::-1]])
    whole = dicom(stack, **HU)
    assert len(slices(whole)) == 2
    refused(
        dicom(stack, **HU, NumberOfFrames=3),
        "3 frames, found 252 bytes of pixels; the file is truncated or damaged",
    )
    refused(dicom(STORED, **HU, PixelData=STORED.tobytes()[:-2]), "DICOM: damaged or not supported")


def test_signed_pixels_and_those_of_fewer_bits():
    same(
        decode(dicom(SIGNED, RescaleSlope=2, RescaleIntercept=10)),
        SIGNED.astype(np.int32) * 2 + 10,
        np.int16,
    )
    same(
        decode(dicom(SIGNED, RescaleSlope=1, RescaleIntercept=0, BitsStored=12, HighBit=11)),
        SIGNED,
        np.int16,
    )
    same(
        decode(dicom(GRAY, RescaleSlope=0.5, RescaleIntercept=-1)),
        np.rint(GRAY * 0.5 - 1),
        np.int16,
    )
    found = decode(dicom(STORED, **LYING, BitsStored=12, HighBit=11))
    same(found, np.rint(STORED / 4095 * 65_535), np.uint16)
    assert found.warnings == (
        "implausible: no rescale to HU; read as 12-bit gray of unknown units",
    )


def test_frames_of_one_file():
    stack = np.stack([STORED, STORED[::-1], STORED[:, ::-1]])
    data = dicom(stack, **HU)
    found = slices(data)
    assert list(found) == ["#0", "#1", "#2"]
    for piece, stored in zip(found.values(), stack, strict=True):
        same(piece, stored.astype(np.int32) - 1024, np.int16)
    same(decode(data, "1"), stack[1].astype(np.int32) - 1024, np.int16)
    assert list(slices(dicom(stack[:1], **HU))) == [""]
    refused(data[:-2], "3 frames, found 376 bytes of pixels; the file is truncated or damaged")


def test_enhanced_ct_says_units_and_orientation_frame_by_frame():
    from pydicom import Dataset, Sequence

    def item(**fields):
        found = Dataset()
        for name, value in fields.items():
            setattr(found, name, value)
        return found

    def units(slope, intercept):
        return Sequence([item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU")])

    def lying(*cosines):
        return Sequence([item(ImageOrientationPatient=list(cosines))])

    shared = item(
        PixelValueTransformationSequence=units(1, -1024),
        PlaneOrientationSequence=lying(1, 0, 0, 0, 1, 0),
    )
    own = [
        item(),
        item(
            PixelValueTransformationSequence=units(2, 7),
            PlaneOrientationSequence=lying(0, 1, 0, 1, 0, 0),
        ),
    ]
    data = dicom(
        np.stack([STORED, STORED]),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(own),
    )
    first, second = slices(data).values()
    same(first, STORED.astype(np.int32) - 1024, np.int16)
    same(second, STORED.astype(np.int32) * 2 + 7, np.int16)
    assert (first.orientation, second.orientation) == (("P", "L"), ("L", "P"))


def test_a_group_holds_for_its_own_frame_and_only_the_first_shared_one_for_all():
    from pydicom import Dataset, Sequence

    def lying(*cosines):
        inner, outer = Dataset(), Dataset()
        inner.ImageOrientationPatient = list(cosines)
        outer.PlaneOrientationSequence = Sequence([inner])
        return outer

    usual, turned_over = lying(1, 0, 0, 0, 1, 0), lying(-1, 0, 0, 0, 1, 0)
    stack = np.stack([STORED] * 3)
    own = {"PerFrameFunctionalGroupsSequence": Sequence([Dataset(), usual, turned_over])}
    found = slices(dicom(stack, **HU, **own)).values()
    assert [piece.orientation for piece in found] == [None, ("P", "L"), ("P", "R")]
    shared = {
        "SharedFunctionalGroupsSequence": Sequence([Dataset(), usual])
    }  # the standard knows one
    assert {piece.orientation for piece in slices(dicom(stack, **HU, **shared)).values()} == {None}


def test_units_that_are_none_are_said():
    assert decode(dicom(STORED, **HU, **LYING, RescaleType="US")).warnings == (
        "rescale type US read as HU",
    )


@pytest.mark.parametrize("modality", ["MR", "PT", "XA", "OT", "CR"])
def test_another_modality_is_refused_unless_any_is_asked_for(modality):
    data = dicom(STORED, **HU, **LYING, Modality=modality)
    refused(data, f"DICOM: modality {modality}, not CT; pass --any-modality")
    found = decode(data, any_modality=True)
    same(found, STORED.astype(np.int32) - 1024, np.int16)
    assert found.warnings == (f"implausible: modality {modality}, not CT",)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("1.2.840.10008.5.1.4.1.1.66.4", "a segmentation"),
        ("1.2.840.10008.5.1.4.1.1.66.5", "a segmentation"),
        ("1.2.840.10008.5.1.4.1.1.481.2", "a radiotherapy object"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "a radiotherapy object"),
        ("1.2.840.10008.5.1.4.1.1.30", "a parametric map"),
    ],
)
def test_objects_that_are_no_images_are_refused_whatever_is_asked_for(kind, words):
    for modality in ("CT", "SEG"):
        data = dicom(STORED, **HU, **LYING, SOPClassUID=kind, Modality=modality)
        for any_modality in (False, True):
            refused(data, f"DICOM: {words}.*, not a CT image", any_modality=any_modality)


@pytest.mark.parametrize(
    ("image_type", "words"),
    [
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], "localizer image"),
        (["DERIVED", "SECONDARY", "SCREEN SAVE"], "dose report or screenshot"),
        (["DERIVED", "SECONDARY", "OTHER", "DOSE_INFO"], "dose report or screenshot"),
        (["ORIGINAL", "PRIMARY", "AXIAL"], None),
    ],
)
def test_localizers_and_reports_are_implausible(image_type, words):
    found = decode(dicom(STORED, **HU, **LYING, ImageType=image_type)).warnings
    assert (
        (found == ())
        if words is None
        else (len(found) == 1 and f"implausible: {words}" in found[0])
    )


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_the_stored_ones_are_no_pixels(signed):
    """Old files keep overlays there, and decoders of compressed frames leave them."""
    values = np.arange(-2048, 2048, 64) if signed else np.arange(0, 4096, 64)
    clean = values.astype(np.int16 if signed else np.uint16).reshape(8, 8)
    overlaid = clean.view(np.uint16) & 0x0FFF | 0xA000
    expected = clean.astype(np.int32) * 2 - 3
    data = dicom(
        overlaid.view(clean.dtype),
        RescaleSlope=2,
        RescaleIntercept=-3,
        BitsStored=12,
        HighBit=11,
    )
    same(decode(data), expected, np.int16)


def test_an_overlay_in_a_compressed_frame_is_no_pixel():
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    clean = np.arange(0, 4096, 4, dtype=np.uint16).reshape(32, 32)
    overlaid = clean.copy()
    overlaid[8:20, 8:20] |= 0x1000
    code = saved(Image.fromarray(overlaid), "JPEG2000", irreversible=False, no_jp2=True)
    data = dicom(
        overlaid,
        **HU,
        syntax=JPEG2000Lossless,
        BitsStored=12,
        HighBit=11,
        PixelData=encapsulate([code]),
    )
    same(decode(data), clean.astype(np.int32) - 1024, np.int16)


@pytest.mark.parametrize(
    ("stored", "rescale", "hounsfield"),
    [
        (GRAY, (1, 0), False),
        (GRAY, (1, -1), True),
        (GRAY, (2, 0), True),
        (GRAY.astype(np.int8), (1, 0), True),
        (STORED, (1, 0), True),
    ],
)
def test_8_bits_with_an_empty_rescale_are_gray(stored, rescale, hounsfield):
    found = decode(dicom(stored, **LYING, RescaleSlope=rescale[0], RescaleIntercept=rescale[1]))
    assert (found.pixels.dtype == np.int16) == hounsfield
    assert bool(found.warnings) != hounsfield


@pytest.mark.parametrize(
    "name",
    [
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "PixelRepresentation",
        "PhotometricInterpretation",
    ],
)
def test_a_missing_attribute_is_named(name):
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(dicom(STORED, **HU)))
    delattr(dataset, name)
    file = io.BytesIO()
    dataset.save_as(file)
    refused(file.getvalue(), f"DICOM: the attribute {name} is missing")


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
def test_what_has_no_known_gray_is_refused():
    from pydicom import Dataset, Sequence

    refused(
        dicom(GRAY, PhotometricInterpretation="PALETTE COLOR"), "PALETTE COLOR is not supported"
    )
    refused(dicom(STORED, ModalityLUTSequence=Sequence([Dataset()])), "Modality LUT")
    refused(dicom(SIGNED), "no known unit")
    refused(dicom(STORED, **HU), "7 x 9 pixels: too large", pixels=62)
    refused(dicom(STORED, RescaleSlope="nan", RescaleIntercept=0), "not a finite number")


SYNTAXES = {
    "CT_small.dcm": "ExplicitVRLittleEndian",
    "693_J2KI.dcm": "JPEG2000",
    "J2K_pixelrep_mismatch.dcm": "JPEG2000Lossless",
}


@pytest.mark.parametrize("name", SYNTAXES)
def test_real_slices_in_their_transfer_syntaxes(name):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    path = get_testdata_file(name, download=False)
    dataset = pydicom.dcmread(path)
    assert dataset.file_meta.TransferSyntaxUID == getattr(pydicom.uid, SYNTAXES[name])
    with open(path, "rb") as file:
        found = decode(file.read())
    units = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    same(found, np.rint(units), np.int16)
    assert found.orientation == ("P", "L")


def test_compressed_frames_are_those_that_were_compressed():
    """RLE, which pydicom writes itself; and a deflated file, within the limit of what it inflates to."""
    pydicom = pytest.importorskip("pydicom")
    stack = np.stack([STORED, STORED[::-1]])
    dataset = pydicom.dcmread(io.BytesIO(dicom(stack, **HU)))
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    file = io.BytesIO()
    dataset.save_as(file)
    for piece, stored in zip(slices(file.getvalue()).values(), stack, strict=True):
        same(piece, stored.astype(np.int32) - 1024, np.int16)
    deflated = dicom(STORED, **HU, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    same(decode(deflated), STORED.astype(np.int32) - 1024, np.int16)
    refused(deflated, "inflates to more than 200 bytes", file_bytes=200)


def test_more_compressed_frames_than_there_are_fragments_are_refused_at_once():
    """A fragment has a head of 8 bytes."""
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(io.BytesIO(dicom(STORED, **HU)))
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    size = len(dataset.PixelData)
    for count, words in (
        (size // 8, "DICOM: damaged or not supported"),
        (
            size // 8 + 1,
            f"{size // 8 + 1} frames, found {size} bytes of pixels; the file is truncated or damaged",
        ),
    ):
        dataset.NumberOfFrames = count
        file = io.BytesIO()
        dataset.save_as(file)
        refused(file.getvalue(), words)


@pytest.mark.filterwarnings("ignore:A value of '0'")
@pytest.mark.parametrize("count", [0, 1])
def test_a_file_of_no_or_one_frame_is_one_slice(count):
    data = dicom(STORED, **HU, NumberOfFrames=count)
    assert list(slices(data)) == [""]
    same(decode(data), STORED.astype(np.int32) - 1024, np.int16)
    same(decode(data, "0"), STORED.astype(np.int32) - 1024, np.int16)
    refused(data, "the file contains only #0", "1")


@pytest.mark.parametrize("limit", ["exact", "one less"])
def test_a_deflated_file_is_inflated_up_to_the_limit(limit):
    pydicom = pytest.importorskip("pydicom")
    plain, deflated = (
        dicom(STORED, **HU, syntax=syntax)
        for syntax in (
            pydicom.uid.ExplicitVRLittleEndian,
            pydicom.uid.DeflatedExplicitVRLittleEndian,
        )
    )
    # What stands behind the head, its uncompressed part, whose length (0002,0000) names.
    head = pydicom.dcmread(io.BytesIO(plain)).file_meta.FileMetaInformationGroupLength + 144
    size = len(plain) - head
    if limit == "exact":
        same(decode(deflated, file_bytes=size), STORED.astype(np.int32) - 1024, np.int16)
    else:
        refused(
            deflated,
            f"inflates to more than {size - 1:,} bytes; raise the limit with --file-limit",
            file_bytes=size - 1,
        )


def test_a_deflated_bomb_is_not_inflated_whole():
    """64 MiB of zeros in 64 KB, within a limit of a megabyte."""
    pydicom = pytest.importorskip("pydicom")
    pixels = np.zeros((1, 1), np.uint8)
    data = dicom(
        pixels,
        **HU,
        PixelData=b"\0" * (64 << 20),
        syntax=pydicom.uid.DeflatedExplicitVRLittleEndian,
    )
    tracemalloc.start()
    try:
        refused(data, "inflates to more than", file_bytes=1 << 20)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 << 20


def test_a_slice_that_names_no_modality_or_rescale_type_is_ct_in_hu():
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(io.BytesIO(dicom(STORED, **HU, **LYING)))
    del dataset.Modality
    file = io.BytesIO()
    dataset.save_as(file)
    found = decode(file.getvalue())
    same(found, STORED.astype(np.int32) - 1024, np.int16)
    assert found.warnings == ()


def test_a_file_without_pixels_is_named():
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(io.BytesIO(dicom(STORED, **HU)))
    del dataset.PixelData
    file = io.BytesIO()
    dataset.save_as(file)
    refused(file.getvalue(), "DICOM: no pixel data$")


LIBJPEG = "pip install pylibjpeg pylibjpeg-libjpeg$"
OPENJPEG = "pip install pylibjpeg pylibjpeg-openjpeg$"
DCMTK = "pydicom has none, so convert the file with dcmdjpeg of DCMTK$"
NONE_KNOWN = "no decoder is known; export the series again, uncompressed$"


@pytest.mark.parametrize(
    "numbers, advice",
    [
        ([50, 51, 57, 70, 80, 81], LIBJPEG),
        ([90, 91, 201, 202, 203], OPENJPEG),
        ([53, 55], DCMTK),
        ([52, 54, 56, 58, *range(59, 67), 92, 94, 100, 107, 110, 999], NONE_KNOWN),
    ],
)
def test_a_syntax_without_a_decoder_is_refused_with_what_decodes_it(numbers, advice, monkeypatch):
    base = pytest.importorskip("pydicom.pixels.decoders.base")
    from pydicom.encaps import encapsulate

    original = base.get_decoder

    def without_plugins(syntax):
        original(syntax)
        return SimpleNamespace(available_plugins=())

    monkeypatch.setattr(base, "get_decoder", without_plugins)
    for number in numbers:
        syntax = f"1.2.840.10008.1.2.4.{number}"
        # pydicom writes no syntax that it does not know
        known = "1.2.840.10008.1.2.4.107" if number in (110, 999) else syntax
        data = dicom(STORED, **HU, syntax=known, PixelData=encapsulate([b"\xff\xd8\xff\xf7"]))
        data = data.replace(known.encode(), syntax.encode())
        refused(data, f"^DICOM: no decoder for .+ is installed; {advice}")


@pytest.mark.parametrize(
    "bits, plugins, decodes",
    [
        (8, ("pillow",), True),
        (12, ("pillow",), False),
        (12, ("gdcm", "pillow"), False),
        (12, ("pillow", "pylibjpeg"), True),
    ],
)
def test_twelve_bits_of_jpeg_need_pylibjpeg(bits, plugins, decodes, monkeypatch):
    base = pytest.importorskip("pydicom.pixels.decoders.base")
    from pydicom.encaps import encapsulate

    monkeypatch.setattr(base, "get_decoder", lambda _: SimpleNamespace(available_plugins=plugins))
    syntax = "1.2.840.10008.1.2.4.51"
    # The start of image and of a frame alone: a plugin that is asked refuses it otherwise.
    pixels = encapsulate([b"\xff\xd8\xff\xc1"])
    data = dicom(STORED, **HU, syntax=syntax, PixelData=pixels, BitsStored=bits, HighBit=bits - 1)
    words = "^DICOM: no decoder for JPEG Extended"
    refused(data, f"^(?!{words[1:]})" if decodes else f"{words}.+; {LIBJPEG}")


def test_unused_high_bits_are_not_pixels():
    """12 bits stored, the four above them in use for something else; and two's complement of 12 bits."""
    high = STORED | 0xA000
    twelve = (SIGNED.astype(np.uint16) & 0x0FFF).view(np.int16)
    same(
        decode(dicom(high, **HU, BitsStored=12, HighBit=11)),
        STORED.astype(np.int32) - 1024,
        np.int16,
    )
    same(
        decode(dicom(twelve, RescaleSlope=1, RescaleIntercept=0, BitsStored=12, HighBit=11)),
        SIGNED,
        np.int16,
    )


def test_the_command_classifies_other_modalities_if_asked_to(command, tmp_path):
    path = tmp_path / "mr.dcm"
    path.write_bytes(dicom(STORED, **HU, **LYING, Modality="MR"))
    refusal = command(path)
    assert refusal.returncode == 1 and "modality MR, not CT; pass --any-modality" in refusal.stderr
    done = command("--any-modality", path)
    assert done.returncode == 0 and done.stdout.endswith(f" {path}\n")
    assert "warning" in done.stderr and "implausible: modality MR, not CT" in done.stderr
