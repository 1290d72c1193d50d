"""Scans and masks: equal voxels whatever the format and orientation, and one line for what cannot be read."""

import gzip
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, child_environment
from support.image_files import dicom
from support.phantoms import (
    ORGANS,
    ORIENTATIONS,
    RAS,
    contours,
    in_patient_axes,
    label_segmentation,
    metaimage,
    multi_frame,
    nifti,
    nrrd,
    phantom,
    segmentation,
    series,
    write_series,
    zipped,
)

from organ_infer import ImageError, InputError
from organ_infer.images.discovery import expand_path
from organ_infer.images.registry import open_slices
from organ_infer.volumes import Mask, Volume, open_mask, open_volume
from organ_infer.volumes.label_maps import LABEL_MAPS, label_map

SCAN = phantom()
# number in the phantom's labels -> class
NUMBERS = dict(enumerate(ORGANS, 1))


@pytest.fixture(scope="module")
def numbers_csv(tmp_path_factory):
    """A label map for the phantom's numbers."""
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    path.write_text("number,class\n" + "".join(f"{n},{organ}\n" for n, organ in NUMBERS.items()))
    return str(path)


def saved(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


def same_scan(volume, expected=SCAN):
    """The volume has the phantom's voxels and place, once both are in patient axes."""
    hu, affine = in_patient_axes(volume.hu, volume.affine)
    wanted, place = in_patient_axes(expected.hu, expected.affine)
    assert volume.hu.dtype == np.int16 and volume.affine.dtype == np.float64
    np.testing.assert_array_equal(hu, wanted)
    np.testing.assert_allclose(affine, place, atol=1e-3)


def same_organs(mask, volume, expected=SCAN):
    """The mask has the phantom's organs, on the volume's grid."""
    assert {*mask} == {*ORGANS}
    for number, organ in NUMBERS.items():
        voxels = mask[organ]
        assert voxels.shape == volume.hu.shape and voxels.dtype == bool
        turned, _ = in_patient_axes(voxels, volume.affine)
        wanted, _ = in_patient_axes(expected.labels == number, expected.affine)
        np.testing.assert_array_equal(turned, wanted)
        corners = np.argwhere(voxels)
        low, high = corners.min(axis=0).tolist(), (corners.max(axis=0) + 1).tolist()
        assert mask.box(organ) == tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        np.testing.assert_array_equal(mask.region(organ, mask.box(organ)), voxels[mask.box(organ)])


def refused(words, read, *arguments, error=ImageError, **options):
    with pytest.raises(error, match=words) as caught:
        read(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    assert message.startswith(str(arguments[0])) or error is InputError
    # a problem, and what to do; pydicom's own words have no advice
    assert ";" in message or "DICOM: damaged or not supported" in message


# Every format in every orientation.

WRITERS = {
    "scan.nii.gz": lambda scan: gzip.compress(nifti(scan.hu, scan.affine)),
    "scan.nii": lambda scan: nifti(scan.hu, scan.affine, form="qform"),
    "two.nii": lambda scan: nifti(scan.hu, scan.affine, version=2, order=">"),
    "scan.nrrd": lambda scan: nrrd(scan.hu, scan.affine),
    "raw.nrrd": lambda scan: nrrd(scan.hu, scan.affine, "raw", "right-anterior-superior"),
    "scan.mha": lambda scan: metaimage(scan.hu, scan.affine),
    "scan.dcm": lambda scan: multi_frame(scan),
    "scan.zip": lambda scan: zipped(series(scan)),
}


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_every_format_and_orientation_gives_the_same_scan_and_mask(
    tmp_path, numbers_csv, order, flips
):
    pytest.importorskip("pydicom")
    scan = SCAN.turned(order, flips)
    for name, write in WRITERS.items():
        same_scan(open_volume(saved(tmp_path, name, write(scan))))
    volume = open_volume(write_series(tmp_path / "series", series(scan)))
    same_scan(volume)
    # the mask keeps the orientation that the scan had before
    for name, data in {
        "mask.nii.gz": gzip.compress(nifti(SCAN.labels, SCAN.affine)),
        "mask.nrrd": nrrd(SCAN.labels, SCAN.affine),
        "mask.mha": metaimage(SCAN.labels, SCAN.affine),
    }.items():
        same_organs(open_mask(saved(tmp_path, name, data), volume, numbers_csv), volume)
    structures = {organ: scan.labels == number for number, organ in NUMBERS.items()}
    path = saved(tmp_path, "mask.dcm", segmentation(scan, structures))
    same_organs(
        open_mask(path, open_volume(tmp_path / "scan.nii")), open_volume(tmp_path / "scan.nii")
    )
    path = saved(tmp_path, "labels.dcm", label_segmentation(scan, ORGANS))
    same_organs(open_mask(path, volume), volume)
    path = saved(tmp_path, "contours.dcm", contours(scan, structures))
    same_organs(open_mask(path, volume), volume)
    turned = SCAN.turned((0, 1, 2), (True, False, True))
    structures = {organ: turned.labels == number for number, organ in NUMBERS.items()}
    if order[2] == 2:
        # frames of the same plane as the scan's slices
        path = saved(tmp_path, "turned.dcm", segmentation(turned, structures, fractional=True))
        same_organs(open_mask(path, volume), volume)


def test_nibabel_and_simpleitk_agree(tmp_path):
    """Programs that share no code with the phantom's writers."""
    nibabel = pytest.importorskip("nibabel")
    sitk = pytest.importorskip("SimpleITK")
    scan = SCAN.turned((2, 0, 1), (True, False, True))
    image = nibabel.Nifti1Image(scan.hu, RAS @ scan.affine)
    image.set_qform(image.affine, 1)
    image.to_filename(tmp_path / "nibabel.nii.gz")
    same_scan(open_volume(tmp_path / "nibabel.nii.gz"))
    image.set_sform(None, 0)
    image.to_filename(tmp_path / "qform.nii")
    same_scan(open_volume(tmp_path / "qform.nii"))
    # SimpleITK takes right-handed axes alone into qform, and any into the other formats
    itk = sitk.GetImageFromArray(scan.hu.transpose(2, 1, 0))
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    itk.SetSpacing(spacing.tolist())
    itk.SetOrigin(scan.affine[:3, 3].tolist())
    itk.SetDirection((scan.affine[:3, :3] / spacing).ravel().tolist())
    for name in ("itk.nrrd", "itk.mha", "itk.mhd", "itk.nii.gz", "itk.nhdr"):
        for compressed in (False, True):
            sitk.WriteImage(itk, str(tmp_path / name), compressed)
            same_scan(open_volume(tmp_path / name))
    # and it reads what the phantom's writers write
    for name in ("scan.nrrd", "scan.mha", "scan.nii.gz"):
        read = sitk.ReadImage(saved(tmp_path, name, WRITERS[name](scan)))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read).transpose(2, 1, 0), scan.hu)
        np.testing.assert_allclose(read.GetOrigin(), scan.affine[:3, 3], atol=1e-3)


@pytest.mark.parametrize("isal", [False, True])
def test_gzip_is_read_with_and_without_isal(tmp_path, monkeypatch, isal):
    if isal:
        pytest.importorskip("isal")
    else:
        monkeypatch.setitem(sys.modules, "isal.igzip", None)
    path = saved(tmp_path, "scan.nii.gz", gzip.compress(nifti(SCAN.hu, SCAN.affine)))
    same_scan(open_volume(path))
    data = bytearray(Path(path).read_bytes())
    refused("truncated", open_volume, saved(tmp_path, "cut.nii.gz", data[:-900]))
    refused("truncated", open_volume, saved(tmp_path, "tail.nii.gz", data[:-4]))
    data[-6] ^= 255
    refused("damaged", open_volume, saved(tmp_path, "sum.nii.gz", data))


def test_dtypes_and_scaling(tmp_path):
    for kind in ("f4", "f8", "i4"):
        path = saved(tmp_path, f"{kind}.nii", nifti(SCAN.hu.astype(kind), SCAN.affine))
        volume = open_volume(path)
        same_scan(volume)
        assert volume.warnings == ()
    stored = (SCAN.hu.astype(np.int32) + 1024).astype(np.uint16)
    path = saved(tmp_path, "u2.nii", nifti(stored, SCAN.affine, slope=1, intercept=-1024))
    same_scan(open_volume(path))
    path = saved(tmp_path, "half.nii", nifti(SCAN.hu, SCAN.affine, slope=0.5, intercept=0))
    volume = open_volume(path)
    same_scan(volume, SCAN.with_hu(np.rint(SCAN.hu * 0.5).astype(np.int16)))
    assert volume.warnings == ("fractions of Hounsfield units rounded",)
    path = saved(tmp_path, "part.nii", nifti(stored, SCAN.affine, slope=1, intercept=-1023.75))
    same_scan(open_volume(path))
    wide = SCAN.hu.astype(np.int32)
    wide[0, 0, 0] = 100_000
    volume = open_volume(saved(tmp_path, "wide.nii", nifti(wide, SCAN.affine)))
    assert volume.warnings == ("1 voxels outside int16 clipped",) and volume.hu.max() == 32_767


def test_units_are_converted(tmp_path):
    meters = SCAN.affine.copy()
    meters[:3] /= 1000
    volume = open_volume(saved(tmp_path, "m.nii", nifti(SCAN.hu, meters, units=1)))
    same_scan(volume)
    assert volume.warnings == ("units other than millimeters converted to millimeters",)
    centimeters = SCAN.affine.copy()
    centimeters[:3] /= 10
    lines = ['space units: "cm" "cm" "cm"']
    same_scan(open_volume(saved(tmp_path, "cm.nrrd", nrrd(SCAN.hu, centimeters, lines=lines))))
    refused("centimeters", open_volume, saved(tmp_path, "cm.nii", nifti(SCAN.hu, centimeters)))


def test_sform_goes_before_qform_and_a_difference_is_reported(tmp_path):
    path = saved(tmp_path, "both.nii", nifti(SCAN.hu, SCAN.affine, codes=(1, 1)))
    assert open_volume(path).warnings == ()
    data = bytearray(Path(path).read_bytes())
    # qoffset_x
    data[268:272] = np.float32(999).tobytes()
    volume = open_volume(saved(tmp_path, "differ.nii", data))
    same_scan(volume)
    assert volume.warnings == ("sform and qform differ; sform is used",)


# What cannot be read.


def turned_by(affine, degrees):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    return turn @ affine


def test_oblique_scans(tmp_path):
    small = open_volume(saved(tmp_path, "a.nii", nifti(SCAN.hu, turned_by(SCAN.affine, 10))))
    assert small.warnings == (
        "oblique scan, 10 degrees off the patient axes; used along its own axes",
    )
    path = saved(tmp_path, "b.nii", nifti(SCAN.hu, turned_by(SCAN.affine, 30)))
    refused("oblique scan, more than 25", open_volume, path)
    sheared = SCAN.affine.copy()
    sheared[1, 2] = np.tan(np.radians(12)) * sheared[2, 2]
    for name, data in {
        "t.nii": nifti(SCAN.hu, sheared),
        "t.nrrd": nrrd(SCAN.hu, sheared),
    }.items():
        refused("gantry tilt, the axes are 12.0 degrees", open_volume, saved(tmp_path, name, data))


def scaled(factor):
    affine = SCAN.affine.copy()
    affine[:3] *= factor
    return affine


def nan_scan():
    hu = SCAN.hu.astype(np.float32)
    hu[3, 4, 5] = np.nan
    return nifti(hu, SCAN.affine)


GRAY = (np.clip(SCAN.hu, -160, 240) + 160).astype(np.float32) / 400
BAD = {
    "4d.nii": (lambda: nifti(np.stack([SCAN.hu] * 3, 3), SCAN.affine), "a series of 3 volumes"),
    "2d.nii": (lambda: nifti(SCAN.hu[:, :, :1], SCAN.affine), "one slice, not a volume"),
    "empty.nii": (lambda: nifti(SCAN.hu, SCAN.affine, dim=(3, 17, 0, 12)), "the scan is empty"),
    "huge.nii": (lambda: nifti(SCAN.hu, SCAN.affine, dim=(3, 9000, 9000, 9000)), "too large"),
    "nan.nii": (nan_scan, "1 voxels or more are NaN"),
    "unsigned.nii": (lambda: nifti(SCAN.hu.view(np.uint16), SCAN.affine), "stored as unsigned"),
    # Some voxels were below -1024, so that the offset leaves negative values.
    "offset-and-noise.nii": (
        lambda: nifti((SCAN.hu + 930).astype(np.int16), SCAN.affine),
        "HU and more, denser than bone, so these are not Hounsfield units; subtract the missing offset",
    ),
    "offset.nii": (
        lambda: nifti((SCAN.hu + 1024).astype(np.uint16), SCAN.affine),
        "subtract the missing offset",
    ),
    "uint8.nii": (lambda: nifti((GRAY * 255).astype(np.uint8), SCAN.affine), "gray levels"),
    "unit.nii": (lambda: nifti(GRAY, SCAN.affine), "not Hounsfield units"),
    "zscore.nii": (lambda: nifti(GRAY * 4 - 2, SCAN.affine), "not Hounsfield units"),
    "mask.nii": (lambda: nifti(SCAN.labels, SCAN.affine), "look like a mask"),
    "nowhere.nii": (lambda: nifti(SCAN.hu, SCAN.affine, form=""), "orientation is unknown"),
    "color.nii": (lambda: nifti(SCAN.hu, SCAN.affine, datatype=128), "color is not supported"),
    "complex.nii": (lambda: nifti(SCAN.hu, SCAN.affine, datatype=32), "data type 32"),
    "pair.nii": (lambda: nifti(SCAN.hu, SCAN.affine, magic=b"ni1\0"), "in two files"),
    "centimeters.nii": (lambda: nifti(SCAN.hu, scaled(0.1)), "hardly a patient .*centimeters"),
    "meters.nii": (lambda: nifti(SCAN.hu, scaled(0.001)), "hardly a patient .*meters"),
    "microns.nii": (
        lambda: nifti(SCAN.hu, scaled(1000)),
        "hardly a patient .*wrong spacing or unit",
    ),
    "millimeters_as_meters.nii": (lambda: nifti(SCAN.hu, SCAN.affine, units=1), "hardly a patient"),
    "millimeters_as_microns.nii": (
        lambda: nifti(SCAN.hu, SCAN.affine, units=3),
        "hardly a patient",
    ),
    # a whole body, of which one side is long enough in centimeters, too
    "body.nii": (
        lambda: nifti(np.repeat(SCAN.hu, 20, axis=2), np.diag([2.4, 2.7, 0.8, 1])),
        "40.8 x 40.5 x 192 mm, hardly a patient .*centimeters",
    ),
    "unit.nii.gz": (lambda: nifti(SCAN.hu, SCAN.affine, units=7), "unknown unit"),
    "inf.nii": (lambda: nifti(SCAN.hu, turned_by(SCAN.affine, np.nan)), "not finite"),
    "flat.nii": (lambda: nifti(SCAN.hu, SCAN.affine * [0, 1, 1, 1]), "an axis has no length"),
    "cut.nii": (lambda: nifti(SCAN.hu, SCAN.affine)[:-7], "declares 6,120 bytes of voxels, found"),
    "head.nii": (lambda: nifti(SCAN.hu, SCAN.affine)[:348], "the file is truncated"),
    "bomb.nii.gz": (
        lambda: gzip.compress(nifti(SCAN.hu, SCAN.affine, dim=(3, 400, 400, 400))),
        "compressed bytes can hold",
    ),
    "ascii.nrrd": (lambda: nrrd(SCAN.hu, SCAN.affine, "ascii"), "encoding 'ascii'"),
    "block.nrrd": (lambda: nrrd(SCAN.hu, SCAN.affine, type="block"), "type 'block'"),
    "space.nrrd": (lambda: nrrd(SCAN.hu, SCAN.affine, without=("space",)), "space is missing"),
    "plain.nrrd": (
        lambda: nrrd(SCAN.hu, SCAN.affine, without=("space directions",)),
        "space directions or space origin is missing",
    ),
    "list.nhdr": (lambda: nrrd(SCAN.hu, SCAN.affine, lines=["data file: LIST"]), "in many files"),
    "out.nhdr": (lambda: nrrd(SCAN.hu, SCAN.affine, lines=["data file: ../a"]), "is not beside"),
    "cut.nrrd": (lambda: nrrd(SCAN.hu, SCAN.affine)[:-500], "truncated"),
    "cut.mha": (lambda: metaimage(SCAN.hu, SCAN.affine)[:-500], "truncated"),
    "out.mhd": (lambda: metaimage(SCAN.hu, SCAN.affine, file="/etc/passwd"), "is not beside"),
    "place.mha": (
        lambda: metaimage(SCAN.hu, SCAN.affine, without=("TransformMatrix",)),
        "the geometry is unknown",
    ),
    "head.mha": (lambda: b"ObjectType = Image\nNDims = 3\n", "no ElementDataFile"),
    "words.mha": (lambda: b"ObjectType = Image\nElementDataFile = LOCAL\n", "ElementType"),
    "text.txt": (lambda: b"hello, this is no scan", "unknown format"),
    "none.nii": (lambda: b"", "unknown format"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_line_for_what_is_no_scan(tmp_path, name):
    write, words = BAD[name]
    refused(words, open_volume, saved(tmp_path, name, write()))


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.nrrd", "scan.mha"])
def test_damaged_files_are_one_line_or_a_scan(tmp_path, name):
    """Any byte of the header changed: an ImageError, never another exception."""
    data = WRITERS[name](SCAN)
    for at in range(0, 400, 3):
        changed = bytearray(data)
        changed[at] ^= 0xFF
        path = saved(tmp_path, name, changed)
        try:
            open_volume(path)
        except ImageError as e:
            assert str(e).startswith(path) and "\n" not in str(e)


def test_missing_files_and_directories_without_a_scan(tmp_path):
    with pytest.raises(ImageError, match=r"none\.nii: no such file"):
        open_volume(tmp_path / "none.nii")
    (tmp_path / "empty").mkdir()
    refused("no DICOM file found", open_volume, tmp_path / "empty")
    saved(tmp_path, "a.nii.gz", b"")
    refused("1 files such as a.nii.gz", open_volume, tmp_path)


# DICOM series.


def dicom_refused(tmp_path, files, words, error=ImageError, **options):
    pytest.importorskip("pydicom")
    refused(words, open_volume, write_series(tmp_path / "s", files), error=error, **options)


def test_missing_doubled_and_uneven_slices_are_named(tmp_path):
    pytest.importorskip("pydicom")
    files = series(SCAN)
    by_height = sorted(
        files, key=lambda name: files[name].find(b"nothing") or position(files[name])
    )
    gap = {name: data for name, data in files.items() if name != by_height[5]}
    refused(
        f"{by_height[6]}: 16 mm after .*{by_height[4]}, elsewhere 8 mm: slices are missing",
        lambda path: open_volume(path),
        write_series(tmp_path / "gap", gap),
    )
    again = files | {"again": series(SCAN, uid="1.2.826.1", SOPInstanceUID="1.9")[by_height[5]]}
    refused(
        "at the same position",
        open_volume,
        write_series(tmp_path / "again", again),
    )
    copied = files | {"copy": files[by_height[5]]}
    volume = open_volume(write_series(tmp_path / "copied", copied))
    same_scan(volume)
    assert volume.warnings == ("1 slices are in two files; one is used",)
    moved = files | {
        by_height[5]: series(SCAN, ImagePositionPatient=[-51.5, 23.25, 442.5])[by_height[5]]
    }
    refused("10.5 mm after", open_volume, write_series(tmp_path / "moved", moved))
    # 5 mm to the left
    shifted = files | {
        by_height[5]: series(SCAN, ImagePositionPatient=[-46.5, 23.25, 440])[by_height[5]]
    }
    refused("shifted by", open_volume, write_series(tmp_path / "shifted", shifted))


def position(data):
    import io

    import pydicom

    return float(pydicom.dcmread(io.BytesIO(data)).ImagePositionPatient[2])


def test_other_objects_beside_a_series_are_left_out_and_named(tmp_path):
    localizer = series(SCAN, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])["IM0003"]
    files = {f"z{name}": data for name, data in series(SCAN).items()} | {
        "a_localizer": localizer,
        "notes.txt": b"hello",
    }
    pytest.importorskip("pydicom")
    volume = open_volume(write_series(tmp_path / "s", files))
    same_scan(volume)
    assert len(volume.warnings) == 1 and "a_localizer: localizer image" in volume.warnings[0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"Modality": "MR"}, "modality MR, not CT"),
        ({"Modality": "PT"}, "modality PT, not CT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]}, "dose report"),
        ({"SamplesPerPixel": 3}, "color"),
        ({"PixelSpacing": None}, "no PixelSpacing, so the geometry is unknown"),
        ({"ImageOrientationPatient": None}, "no ImageOrientationPatient"),
        ({"ImagePositionPatient": ""}, "no ImagePositionPatient"),
        ({"RescaleSlope": None, "RescaleIntercept": None}, "no RescaleSlope"),
        ({"RescaleIntercept": 0}, "subtract the missing offset"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3"}, "radiotherapy object"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "a segmentation"),
        ({"PixelSpacing": [0.07, 0.06]}, "12 mm after|hardly a patient|sl"),
    ],
)
def test_a_series_that_is_no_ct_volume_is_one_line(tmp_path, fields, words):
    pytest.importorskip("pydicom")
    files = series(SCAN, **fields)
    if fields.get("PixelSpacing"):
        # a whole scan in centimeters
        small = SCAN.affine.copy()
        small[:3] /= 10
        files, words = series(type(SCAN)(SCAN.hu, SCAN.labels, small)), "centimeters"
    dicom_refused(tmp_path, files, words)


@pytest.mark.parametrize("frames", [11, 2_000_000_000])
def test_frames_without_a_position_are_refused(tmp_path, frames):
    pytest.importorskip("pydicom")
    data = multi_frame(SCAN)
    # NumberOfFrames is text
    old, new = b"IS\2\0" + b"12", f"{frames}".encode()
    new = (
        b"IS" + len(new + b" " * (len(new) % 2)).to_bytes(2, "little") + new + b" " * (len(new) % 2)
    )
    assert data.count(old) == 1
    path = saved(tmp_path, "a.dcm", data.replace(old, new))
    refused(f"{frames:,} frames with 12 positions", open_volume, path)


def test_an_unreadable_slice_in_the_middle_is_named(tmp_path):
    pytest.importorskip("pydicom")
    files = series(SCAN)
    files["IM0007"] = files["IM0007"][:-100]
    dicom_refused(
        tmp_path,
        files,
        "IM0007: DICOM: the header declares 510 bytes of pixels, found 410; the file is truncated",
    )


def test_frames_without_their_number_are_refused(tmp_path):
    """Without NumberOfFrames, one of twelve frames would be read."""
    pytest.importorskip("pydicom")
    path = saved(tmp_path, "a.dcm", without(multi_frame(SCAN), "NumberOfFrames"))
    refused("1 frames with 12 positions", open_volume, path)


def without(data, name):
    """A DICOM file without an attribute."""
    import io

    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(data))
    del dataset[name]
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_files_that_may_be_slices_are_not_passed_over(tmp_path):
    pytest.importorskip("pydicom")
    files = series(SCAN)
    for name, data in {"cut.dcm": b"", "text.DCM": b"hello"}.items():
        path = write_series(tmp_path / name[:3], files | {name: data})
        refused(f"{name}: no DICOM file, but named so", open_volume, path)
        refused(
            f"{name}: no DICOM file", open_volume, saved(tmp_path, "a.zip", zipped({name: data}))
        )
    (tmp_path / "cut" / "cut.dcm").unlink()
    (tmp_path / "cut" / "nowhere").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "cut" / "pipe")
    same_scan(open_volume(tmp_path / "cut"))


def test_a_detached_header_needs_its_data(tmp_path):
    lines = ["data file: voxels.raw"]
    header = nrrd(SCAN.hu, SCAN.affine, "raw", lines=lines)[: -SCAN.hu.nbytes]
    path = saved(tmp_path, "a.nhdr", header)
    refused("no data file 'voxels.raw'", open_volume, path)
    saved(tmp_path, "voxels.raw", SCAN.hu.tobytes(order="F"))
    same_scan(open_volume(path))
    # voxels at the end, after a header of another format
    saved(tmp_path, "voxels.raw", b"before" + SCAN.hu.tobytes(order="F"))
    for skip in (-1, 6):
        data = nrrd(SCAN.hu, SCAN.affine, "raw", lines=[*lines, f"byte skip: {skip}"])
        same_scan(open_volume(saved(tmp_path, "a.nhdr", data[: -SCAN.hu.nbytes])))
    saved(tmp_path, "voxels.raw", b"short")
    refused("truncated", open_volume, path)


def test_a_tilted_gantry_and_mixed_slices_are_refused(tmp_path):
    pytest.importorskip("pydicom")
    sheared = SCAN.affine.copy()
    sheared[1, 2] = np.tan(np.radians(12)) * sheared[2, 2]
    tilted = series(type(SCAN)(SCAN.hu, SCAN.labels, sheared))
    refused("gantry tilt", open_volume, write_series(tmp_path / "tilted", tilted))
    mixed = series(SCAN)
    mixed["IM0002"] = series(SCAN, PixelSpacing=[6.5, 6])["IM0002"]
    refused("another PixelSpacing", open_volume, write_series(tmp_path / "mixed", mixed))
    mixed["IM0002"] = series(SCAN, ImageOrientationPatient=[0, 1, 0, 1, 0, 0])["IM0002"]
    refused("another orientation", open_volume, write_series(tmp_path / "mixed", mixed))
    mixed["IM0002"] = series(SCAN.turned((1, 0, 2), (False,) * 3))["IM0002"]
    refused("15 x 17 pixels|17 x 15 pixels", open_volume, write_series(tmp_path / "mixed", mixed))
    one = {"IM0002": series(SCAN)["IM0002"]}
    refused("one slice, not a volume", open_volume, write_series(tmp_path / "one", one))
    refused("one slice, not a volume", open_volume, tmp_path / "one" / "IM0002")


def test_a_mask_beside_the_slices_is_left_out_with_its_name(tmp_path):
    pytest.importorskip("pydicom")
    path = write_series(tmp_path / "a", series(SCAN))
    mask = segmentation(SCAN, {"liver": SCAN.labels == 1})
    (path / "mask1.dcm").write_bytes(mask)
    volume = open_volume(path)
    reason = "a segmentation, surface or registration, not a CT image"
    assert volume.warnings == (f"1 file left out, {path}/mask1.dcm: {reason}",)
    # it may be the mask of the command, so nothing is advised
    assert "liver" in open_mask(path / "mask1.dcm", volume)
    (path / "mask2.dcm").write_bytes(mask)
    assert open_volume(path).warnings == (
        f"2 files left out, the first {path}/mask1.dcm: {reason}",
    )


def test_one_of_several_series_is_chosen(tmp_path):
    pytest.importorskip("pydicom")
    other = SCAN.with_hu(SCAN.hu + np.int16(7))
    path = write_series(tmp_path / "a", series(SCAN))
    below = write_series(path / "below", series(other, uid="1.2.826.2", SeriesNumber=12))
    (below / ".hidden").write_bytes(b"")
    refused(
        "2 series; choose one .*3 .17 x 15 x 12, 1.2.826.1., 12",
        open_volume,
        path,
        error=InputError,
    )
    same_scan(open_volume(path, series=3))
    same_scan(open_volume(path, series="12"), other)
    same_scan(open_volume(path, series="1.2.826.2"), other)
    refused("no such series", open_volume, path, series=4, error=InputError)
    write_series(path / "third", series(other, uid="1.2.826.9", SeriesNumber=12))
    refused("several series have this number", open_volume, path, series=12, error=InputError)
    plain = saved(tmp_path, "scan.nii", nifti(SCAN.hu, SCAN.affine))
    refused(
        "--series or series= chooses a DICOM series.*; leave it out",
        open_volume,
        plain,
        series=3,
        error=InputError,
    )


def test_zips_are_read_within_limits(tmp_path, monkeypatch):
    pytest.importorskip("pydicom")
    from organ_infer.volumes import dicom_files

    path = saved(tmp_path, "a.zip", zipped(series(SCAN) | {"README": b"text"}))
    same_scan(open_volume(path))
    monkeypatch.setattr(dicom_files, "VOLUME_FILE_LIMIT", 1000)
    refused("inflates to .* at most 1,000 are read", open_volume, path)
    monkeypatch.undo()
    monkeypatch.setattr(dicom_files, "MOST_FILES", 5)
    refused("more than 5 files", open_volume, path)
    refused(
        "no DICOM file found in the zip; unpack it",
        open_volume,
        saved(tmp_path, "b.zip", zipped({"a": b"text"})),
    )
    cut = saved(tmp_path, "c.zip", zipped(series(SCAN))[:-50])
    refused("the zip is truncated or damaged; copy it again", open_volume, cut)


def test_a_file_of_a_zip_is_inflated_within_the_limit_of_an_image(tmp_path, monkeypatch):
    """Whether or not the list of the zip states its size."""
    pytest.importorskip("pydicom")
    from organ_infer.volumes import dicom_files

    monkeypatch.setattr(dicom_files, "FILE_LIMIT", 1000)
    data = bytes(128) + b"DICM" + bytes(5000)
    honest = zipped({"a.dcm": data})
    lies = honest.replace(len(data).to_bytes(4, "little"), (900).to_bytes(4, "little"))
    assert honest.count(len(data).to_bytes(4, "little")) == 2
    refused(
        "a.dcm: inflates to more than 1,000 bytes", open_volume, saved(tmp_path, "a.zip", honest)
    )
    refused("a.dcm: DICOM: damaged or not supported;", open_volume, saved(tmp_path, "b.zip", lies))


# Masks.


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.nii"
    path.write_bytes(nifti(SCAN.hu, SCAN.affine))
    return open_volume(path)


def test_a_directory_of_structures_is_merged_into_classes(tmp_path, volume):
    lobes = np.arange(12)[None, None, :] % 3
    liver = SCAN.labels == 1
    for number, name in enumerate(["upper", "middle", "lower"]):
        part = (liver & (lobes == number)).astype(np.uint8)
        data = gzip.compress(nifti(part * 255, SCAN.affine))
        saved(tmp_path, f"lung_{name}_lobe_right.nii.gz", data)
    # overlaps the lung
    saved(tmp_path, "liver.nrrd", nrrd(liver.astype(np.uint8), SCAN.affine))
    saved(tmp_path, "aorta.nii.gz", b"not read, because it has no class")
    saved(tmp_path, "spleen.nii", nifti(np.zeros_like(SCAN.labels), SCAN.affine))
    mask = open_mask(tmp_path, volume)
    assert {*mask} == {"liver", "lung-right"} and mask.unmapped == ("aorta",)
    np.testing.assert_array_equal(mask["lung-right"], liver)
    np.testing.assert_array_equal(mask["liver"], liver)
    assert mask.box("liver") == mask.box("lung-right")
    assert mask.warnings == ("structures without a voxel: spleen",)
    assert len(mask.structures("lung-right")) == 3
    assert mask.source == str(tmp_path) and "spleen" not in mask


def test_a_file_of_a_directory_is_named(tmp_path, volume):
    path = saved(tmp_path, "liver.nii", nifti(SCAN.labels, SCAN.affine)[:-9])
    refused("liver.nii: .*truncated", open_mask, tmp_path, volume)
    assert path


@pytest.mark.parametrize(
    ("voxels", "words"),
    [
        (lambda liver: np.where(liver, 1, np.nan), "NaN or infinite values are no labels"),
        (lambda liver: liver * 0.75, "fractions, so probabilities"),
        (lambda liver: SCAN.hu, ".* are no labels"),
    ],
)
def test_a_file_of_one_structure_holds_labels(tmp_path, volume, voxels, words):
    """Every number but 0 would be the structure."""
    array = voxels(SCAN.labels == 1)
    array = array.astype(np.float32) if array.dtype.kind == "f" else array
    saved(tmp_path, "liver.nii", nifti(array, SCAN.affine))
    refused(f"liver.nii: {words}", open_mask, tmp_path, volume)


def test_names_in_the_file_go_before_numbers_of_totalsegmentator(tmp_path, volume):
    names = {1: "spleen", 2: "lung_upper_lobe_left", 3: "aorta", 4: "lung_lower_lobe_left"}
    table = "".join(
        f'<Label Key="{key}" Red="0" Alpha="1"><![CDATA[{name}]]></Label>\n'
        for key, name in names.items()
    ).encode()
    table += b" " * (-(len(table) + 8) % 16)
    data = nifti(SCAN.labels, SCAN.affine, extension=table)
    mask = open_mask(saved(tmp_path, "named.nii.gz", gzip.compress(data)), volume)
    assert {*mask} == {"spleen", "lung-left"} and mask.unmapped == ("5", "aorta")
    np.testing.assert_array_equal(mask["lung-left"], np.isin(SCAN.labels, (2, 4)))
    assert mask.structures("lung-left") == ("lung_upper_lobe_left", "lung_lower_lobe_left")
    # a data set that was asked for has its own numbers
    mask = open_mask(tmp_path / "named.nii.gz", volume, "word")
    assert "liver" in mask
    # with a warning that lists the numbers whose names are of another organ
    assert mask.warnings == (
        "the label map word contradicts the names in the file: 1 spleen is read as liver, 2 lung_upper_lobe_left is"
        " read as spleen, 4 lung_lower_lobe_left is read as kidney-right; choose totalsegmentator to read the names",
    )
    assert open_mask(tmp_path / "named.nii.gz", volume, "msd-spleen").warnings == ()
    slicer = ["Segment0_Name:=Left Kidney", "Segment0_LabelValue:=1"]
    mask = open_mask(
        saved(tmp_path, "s.nrrd", nrrd(SCAN.labels, SCAN.affine, lines=slicer)), volume
    )
    np.testing.assert_array_equal(mask["kidney-left"], SCAN.labels == 1)


def test_numbers_that_two_versions_may_have_written_are_named(tmp_path, volume):
    labels = np.where(SCAN.labels == 1, 5, 0).astype(np.uint8)
    path = saved(tmp_path, "a.nii", nifti(labels, SCAN.affine))
    (warning,) = open_mask(path, volume).warnings
    assert "if they are of version 1, choose totalsegmentator-v1" in warning
    assert warning.endswith("if of another data set, its label map or a CSV file")
    assert open_mask(path, volume, "totalsegmentator-v1").warnings == ()
    # version 1 has no such number
    labels[0, 0, 0] = 105
    path = saved(tmp_path, "b.nii", nifti(labels, SCAN.affine))
    assert open_mask(path, volume).warnings == ()


@pytest.mark.parametrize("kind", ["u1", "i2", "f4", "f8", "i4"])
def test_label_images_of_any_dtype(tmp_path, volume, numbers_csv, kind):
    data = nifti(SCAN.labels.astype(kind), SCAN.affine, slope=1, intercept=0)
    same_organs(open_mask(saved(tmp_path, "m.nii", data), volume, numbers_csv), volume)


def shifted(by):
    affine = SCAN.affine.copy()
    affine[:3, 3] += by
    return affine


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda: nifti(SCAN.labels, shifted([30, 0, 0])), "not the scan's grid"),
        (lambda: nifti(SCAN.labels, shifted([0, 0, 2])), "not the scan's grid"),
        (lambda: nifti(SCAN.labels, SCAN.affine * [1.02, 1, 1, 1]), "of 6.12 x 7 x 8 mm"),
        (lambda: nifti(SCAN.labels[:-1], SCAN.affine), "the mask has 16 x 15 x 12 voxels"),
        (lambda: nifti(SCAN.labels.transpose(1, 0, 2), SCAN.affine), "15 x 17 x 12 voxels"),
        (lambda: nifti(SCAN.labels * 0, SCAN.affine), "the mask is empty"),
        (lambda: nifti(SCAN.labels * 0 + 99, SCAN.affine), "no structure .* found 99"),
        (lambda: nifti(SCAN.labels / np.float32(2), SCAN.affine), "probabilities"),
        (lambda: nifti(SCAN.labels * np.float32(np.nan), SCAN.affine), "NaN or infinite"),
        (lambda: nifti(SCAN.hu, SCAN.affine), "are no labels"),
        (lambda: nifti(np.stack([SCAN.labels] * 2, 3), SCAN.affine), "a series of 2 volumes"),
    ],
)
def test_masks_that_do_not_fit_are_one_line(tmp_path, volume, write, words):
    refused(words, open_mask, saved(tmp_path, "m.nii", write()), volume)


def test_a_mask_that_is_rounded_differently_is_on_the_grid(tmp_path, volume, numbers_csv):
    data = nifti(SCAN.labels, shifted([0.3, -0.3, 0.3]))
    same_organs(open_mask(saved(tmp_path, "m.nii", data), volume, numbers_csv), volume)


def test_segments_are_found_by_label_or_code_and_may_overlap(tmp_path, volume):
    pytest.importorskip("pydicom")
    liver, spleen = SCAN.labels == 1, SCAN.labels == 2
    structures = {
        ("Segment 1", "Liver", None): liver,
        ("Segment 2", "Kidney", "Left"): liver | spleen,
        ("KIDNEY, right", None, None): spleen,
        ("Left", "Lung", None): spleen,
        ("Tumor", "Neoplasm", None): liver,
    }
    mask = open_mask(saved(tmp_path, "m.dcm", segmentation(SCAN, structures)), volume)
    assert {*mask} == {"liver", "kidney-left", "kidney-right"}
    np.testing.assert_array_equal(mask["kidney-left"], liver | spleen)
    np.testing.assert_array_equal(mask["liver"], liver)
    np.testing.assert_array_equal(mask["kidney-right"], spleen)
    assert mask.unmapped == ("Left", "Tumor")


def inside(polygon, x, y):
    """Whether a point is inside a polygon: the number of edges that a ray to the right crosses is odd."""
    crossed = False
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x:
            crossed = not crossed
    return crossed


def test_contours_are_filled_by_the_even_odd_rule(tmp_path, volume):
    """Polygons that cross themselves and leave the scan, and a contour in another one."""
    pytest.importorskip("pydicom")
    for seed in range(20):
        generator = np.random.default_rng(seed)
        flat = [generator.uniform(-3, 20, (n, 2)).round(3).tolist() for n in (7, 4, 1, 2)]
        lines = [[(x, y, 5) for x, y in polygon] for polygon in flat]
        path = saved(tmp_path, "rt.dcm", contours(SCAN, {"Left Kidney": lines, "PTV": lines}))
        mask = open_mask(path, volume)
        expected = np.zeros(volume.hu.shape, bool)
        for x, y in np.ndindex(volume.hu.shape[:2]):
            expected[x, y, 5] = sum(inside(polygon, x, y) for polygon in flat) % 2
        np.testing.assert_array_equal(mask["kidney-left"], expected)
        assert mask.unmapped == ("PTV",)


@pytest.mark.parametrize("z", [4.5, 12, -1])
def test_contours_beside_the_slices_are_refused(tmp_path, volume, z):
    pytest.importorskip("pydicom")
    data = contours(SCAN, {"liver": [[(2, 2, z), (9, 2, z), (9, 9, z)]]})
    refused("contour of 'liver' is not on a slice", open_mask, saved(tmp_path, "a", data), volume)
    slanted = contours(SCAN, {"liver": [[(2, 2, 3), (9, 2, 4), (9, 9, 5)]]})
    refused("is not on a slice", open_mask, saved(tmp_path, "b", slanted), volume)


def test_other_files_are_no_segmentation(tmp_path, volume):
    pytest.importorskip("pydicom")
    structures = {"liver": SCAN.labels == 1}
    other = type(SCAN)(SCAN.hu, SCAN.labels, shifted([0, 3, 0]))
    path = saved(tmp_path, "moved.dcm", segmentation(other, structures))
    refused("not the scan's grid: frame", open_mask, path, volume)
    other = type(SCAN)(SCAN.hu, SCAN.labels, shifted([0, 0, 8 * 12]))
    path = saved(tmp_path, "above.dcm", segmentation(other, structures))
    refused("not the scan's grid: frame", open_mask, path, volume)
    for name, data in {
        "a.jpg": b"\xff\xd8\xff\xe0" + bytes(200),
        "a.csv": b"1,liver\n" * 40,
        "a.dcm": b"",
    }.items():
        path = saved(tmp_path, name, data)
        refused("unknown format, no mask; pass a label image", open_mask, path, volume)
    for modality, kind in {"RTPLAN": "481.5", "RTDOSE": "481.2"}.items():
        data = dicom(
            np.zeros((2, 2), np.uint8),
            SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{kind}",
            Modality=modality,
        )
        path = saved(tmp_path, "plan.dcm", data)
        refused(f"modality {modality}, neither SEG nor RTSTRUCT", open_mask, path, volume)
    path = saved(tmp_path, "ct.dcm", series(SCAN)["IM0001"])
    refused("modality CT, neither SEG nor RTSTRUCT", open_mask, path, volume)
    (tmp_path / "empty").mkdir()
    refused(
        "no NIfTI, NRRD, MetaImage, DICOM SEG or RTSTRUCT", open_mask, tmp_path / "empty", volume
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Rows", "no Rows; export the mask again"),
        ("BitsAllocated", "no BitsAllocated"),
        ("NumberOfFrames", "1 frames with 22 positions"),
        ("PixelData", "a SEG without frames"),
        ("SharedFunctionalGroupsSequence", "no ImageOrientationPatient"),
    ],
)
def test_a_segmentation_without_an_attribute_is_one_line(tmp_path, volume, name, words):
    """Not in the words of a library."""
    pytest.importorskip("pydicom")
    data = without(segmentation(SCAN, {"liver": SCAN.labels == 1, "spleen": SCAN.labels > 0}), name)
    frames = int(
        (SCAN.labels == 1).any(axis=(0, 1)).sum() + (SCAN.labels > 0).any(axis=(0, 1)).sum()
    )
    words = words.replace("22", str(frames))
    refused(words, open_mask, saved(tmp_path, "m.dcm", data), volume)


def test_a_region_without_its_number_is_one_line(tmp_path, volume):
    pytest.importorskip("pydicom")
    import io

    import pydicom

    for sequence, name in (
        ("StructureSetROISequence", "ROINumber"),
        ("ROIContourSequence", "ReferencedROINumber"),
    ):
        dataset = pydicom.dcmread(io.BytesIO(contours(SCAN, {"liver": SCAN.labels == 1})))
        del dataset[sequence][0][name]
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        path = saved(tmp_path, "rt.dcm", file.getvalue())
        refused(f"a region without {name}; export", open_mask, path, volume)


def item(**fields):
    """A sequence of one item."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    dataset = Dataset()
    for name, value in fields.items():
        setattr(dataset, name, value)
    return Sequence([dataset])


@pytest.mark.parametrize("write", [segmentation, contours])
def test_a_mask_of_another_coordinate_system_is_refused(tmp_path, write):
    """Its positions are those of the scan, and mean other places."""
    pytest.importorskip("pydicom")
    structures = {"liver": SCAN.labels == 1}

    def scan(name, **fields):
        return open_volume(write_series(tmp_path / name, series(SCAN, uid="1.5", **fields)))

    def mask(**fields):
        return saved(tmp_path, "m.dcm", write(SCAN, structures, **fields))

    named, unnamed = scan("a", FrameOfReferenceUID="1.7"), scan("b")
    assert (named.frame_of_reference, named.series) == ("1.7", "1.5")
    assert (unnamed.frame_of_reference, unnamed.series) == ("", "1.5")
    refused(
        "not the scan's coordinate system: the mask's FrameOfReferenceUID is 1.8, the scan's 1.7;",
        open_mask,
        mask(FrameOfReferenceUID="1.8"),
        named,
    )
    # the same system, none, or the scan's own series
    series_of = item(SeriesInstanceUID="1.5")
    studies = item(RTReferencedStudySequence=item(RTReferencedSeriesSequence=series_of))
    for fields, volume in (
        ({"FrameOfReferenceUID": "1.7"}, named),
        ({}, named),
        ({"FrameOfReferenceUID": "1.8"}, unnamed),
        ({"FrameOfReferenceUID": "1.8", "ReferencedSeriesSequence": series_of}, named),
        ({"FrameOfReferenceUID": "1.8", "ReferencedFrameOfReferenceSequence": studies}, named),
        ({"ReferencedFrameOfReferenceSequence": item(FrameOfReferenceUID="1.7")}, named),
    ):
        assert {*open_mask(mask(**fields), volume)} == {"liver"}
    refused(
        "not the scan's coordinate system",
        open_mask,
        mask(ReferencedFrameOfReferenceSequence=item(FrameOfReferenceUID="1.8")),
        named,
    )


def test_files_with_a_system_each_name_none(tmp_path):
    """As some anonymizers write them."""
    pytest.importorskip("pydicom")
    files = series(SCAN, FrameOfReferenceUID="1.7")
    files["IM0004"] = series(SCAN, FrameOfReferenceUID="1.9")["IM0004"]
    assert open_volume(write_series(tmp_path / "s", files)).frame_of_reference == ""


# Label maps.


def test_label_maps_have_the_packaged_models_classes_and_a_source():
    for row in LABEL_MAPS.values():
        assert {*row.numbers.values(), *row.names.values()} <= {*CLASSES}
        assert row.source.startswith("https://") and 0 not in row.numbers
    assert {*LABEL_MAPS["totalsegmentator"].numbers.values()} == {*CLASSES}
    assert {*LABEL_MAPS["totalsegmentator-v1"].numbers.values()} == {*CLASSES}


# The structures of each data set in the order of their numbers, from 1, as its row's source lists them. Of
# TotalSegmentator's, only the first. None is "kidney" or the like, without a side.
PUBLISHED = {
    "totalsegmentator": "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right"
    " adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right"
    " lung_lower_lobe_right esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder",
    "totalsegmentator-v1": "spleen kidney_right kidney_left gallbladder liver stomach aorta inferior_vena_cava"
    " portal_vein_and_splenic_vein pancreas adrenal_gland_right adrenal_gland_left lung_upper_lobe_left"
    " lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right",
    "amos22": "spleen kidney_right kidney_left gallbladder esophagus liver stomach aorta postcava pancreas"
    " adrenal_gland_right adrenal_gland_left duodenum bladder prostate/uterus",
    "btcv": "spleen right_kidney left_kidney gallbladder esophagus liver stomach aorta inferior_vena_cava"
    " portal_vein_and_splenic_vein pancreas right_adrenal_gland left_adrenal_gland",
    "flare22": "liver right_kidney spleen pancreas aorta inferior_vena_cava right_adrenal_gland left_adrenal_gland"
    " gallbladder esophagus stomach duodenum left_kidney",
    "word": "liver spleen kidney_left kidney_right stomach gallbladder esophagus pancreas duodenum colon intestine"
    " adrenal rectum bladder head_of_femur_left head_of_femur_right",
    "ct-org": "liver bladder lungs kidneys bone brain",
    "lits": "liver liver_tumor",
    "abdomenatlas": "aorta gall_bladder kidney_left kidney_right liver pancreas postcava spleen stomach"
    " adrenal_gland_left adrenal_gland_right bladder celiac_trunk colon duodenum esophagus femur_left femur_right"
    " hepatic_vessel intestine lung_left lung_right portal_vein_and_splenic_vein prostate rectum",
    "msd-liver": "liver liver_tumor",
    "msd-pancreas": "pancreas pancreas_tumor",
    "msd-spleen": "spleen",
}
# a tumor alone has no class by name, but by its number in a data set where it is a part of the organ
TUMORS = {"liver_tumor": "liver", "pancreas_tumor": "pancreas"}


@pytest.mark.parametrize("name", LABEL_MAPS)
def test_the_numbers_of_a_label_map_are_those_of_the_published_list(name):
    row, structures = LABEL_MAPS[name], PUBLISHED[name].split()
    expected = {
        number: organ
        for number, structure in enumerate(structures, 1)
        if (organ := TUMORS.get(structure) or row.class_of(None, structure))
    }
    assert {n: organ for n, organ in row.numbers.items() if n <= len(structures)} == expected
    # the numbers after the list, of TotalSegmentator alone
    later = {organ for n, organ in row.numbers.items() if n > len(structures)}
    assert later <= (
        {"heart", "femur-left", "femur-right", "bladder"} if "total" in name else {*()}
    )


@pytest.mark.parametrize(
    ("name", "organ"),
    [
        ("lung_middle_lobe_right", "lung-right"),
        ("Right Kidney", "kidney-right"),
        ("Kidney(L)", "kidney-left"),
        ("heart_atrium_left", "heart"),
        ("Head_of_femur_R", "femur-right"),
        ("kidney_cyst_left", None),
        ("atrial_appendage_left", None),
        ("lung", None),
        ("pulmonary_vein", None),
        ("adrenal_gland_left", None),
    ],
)
def test_names_have_classes_whatever_their_order_and_case(name, organ):
    assert LABEL_MAPS["totalsegmentator"].class_of(None, name) == organ


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,liver,x\n", "line 1: expected number_or_name,class"),
        ("1,liver\n2\n", "line 2: expected"),
        ("1,liver\n1,spleen\n", "line 2: '1' has two classes"),
        ("", "the file is empty"),
        (b"\xff\xfe1\0", "not UTF-8"),
    ],
)
def test_a_wrong_csv_file_is_one_line(tmp_path, text, words):
    path = saved(tmp_path, "l.csv", text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words):
        label_map(path)


def test_a_csv_file_maps_numbers_and_names(tmp_path):
    path = saved(
        tmp_path,
        "l.csv",
        b"\xef\xbb\xbfvalue_or_name,class\r\n# mine\r\n7,Left Kidney\r\nMilz,spleen\r\n",
    )
    row = label_map(path)
    assert row.class_of(7) == "kidney-left" and row.class_of(None, "MILZ") == "spleen"
    assert row.class_of(1) is None and row.class_of(None, "liver") is None
    with pytest.raises(
        InputError, match="no such label map or CSV file; expected totalsegmentator"
    ):
        label_map("tptalsegmentator")


# Scans where slices are expected.


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "two.nii", "scan.nrrd", "scan.mha"])
def test_a_scan_is_no_image_and_the_message_names_the_command(tmp_path, name):
    path = saved(tmp_path, name, WRITERS[name](SCAN))
    with pytest.raises(
        ImageError, match=r"a whole scan or mask, not a slice; .* organ-infer volume"
    ):
        list(open_slices(path))
    for data in (b"\x1f\x8b damaged", gzip.compress(b"text"), b"NDims"):
        with pytest.raises(ImageError, match="unknown image format"):
            list(open_slices(saved(tmp_path, "other", data)))


def test_a_directory_of_scans_is_no_directory_of_images(tmp_path):
    saved(tmp_path, "CT.NII.GZ", b"")
    (candidate,) = expand_path(str(tmp_path), False)
    assert candidate.error == (
        "no image in this directory, but scans or masks; pass a scan with its mask to organ-infer volume"
    )


@pytest.mark.parametrize(
    ("uid", "words"),
    [
        ("1.2.840.10008.5.1.4.1.1.66.4", "not a CT image; pass it as the mask"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "not a CT image; pass it as the mask"),
    ],
)
def test_a_dicom_mask_is_no_image(tmp_path, uid, words):
    pytest.importorskip("pydicom")
    path = saved(tmp_path, "a.dcm", series(SCAN, SOPClassUID=uid)["IM0001"])
    with pytest.raises(ImageError, match=words):
        list(open_slices(path))


# Costs.


def test_memory_stays_near_the_volumes_size(tmp_path):
    """Reading needs the int16 volume and a few blocks, whatever is stored."""
    shape = (160, 160, 200)
    hu = np.zeros(shape, np.int16)
    hu[:, ::2] = -1000
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for name, stored, fields in (
        ("i2.nii.gz", hu, {}),
        ("scaled.nii.gz", hu, {"slope": 1.5, "intercept": -3}),
        ("f8.nii", hu.astype(np.float64), {}),
    ):
        data = nifti(stored, affine, **fields)
        path = saved(tmp_path, name, gzip.compress(data, 1) if name.endswith("gz") else data)
        del data
        tracemalloc.start()
        open_volume(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # beside the volume, blocks of 4 MiB and what is computed from them
        assert peak < hu.nbytes * 1.1 + (40 << 20), name


def test_importing_stays_light():
    code = (
        "import sys, organ_infer\n"
        "assert 'numpy' not in sys.modules and 'organ_infer.volumes' not in sys.modules\n"
        "import organ_infer.volumes\n"
        "assert not {'pydicom', 'isal', 'PIL', 'onnxruntime'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=child_environment())


def test_without_pydicom_one_line_names_the_extra(tmp_path, monkeypatch):
    pytest.importorskip("pydicom")
    path = write_series(tmp_path / "s", series(SCAN))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    refused(r"needs pydicom 3; pip install 'organ-infer\[volume\]'", open_volume, path)


def test_types_are_checked(tmp_path, volume):
    with pytest.raises(InputError, match="like: expected a Volume"):
        open_mask(tmp_path, volume.hu)
    with pytest.raises(InputError, match="path: expected a path, found int"):
        open_volume(3)
    same_scan(open_volume(os.fsencode(volume.source)))
    with pytest.raises(InputError, match="labels: expected a name"):
        open_mask(tmp_path, volume, 3)
    with pytest.raises(InputError, match="layers: expected a list of uint8 arrays"):
        Mask([], {})
    assert isinstance(volume, Volume)


# Scans of patients.

SCANS = Path(os.environ.get("ORGAN_SCANS_DIR", "/nonexistent"))
real_scans = pytest.mark.skipif(
    not SCANS.is_dir(), reason="ORGAN_SCANS_DIR does not name the directory of the CT scans"
)


@real_scans
def test_real_scans_agree_with_nibabel():
    nibabel = pytest.importorskip("nibabel")
    folder = SCANS / "totalsegmentator"
    for scan, mask in (
        ("example_ct.nii.gz", "example_seg_fast_force_split.nii.gz"),
        ("example_ct_sm.nii.gz", "example_seg_fast"),
        ("example_ct_dicom", "example_seg_dicom.nii.gz"),
    ):
        volume = open_volume(folder / scan)
        if scan.endswith(".gz"):
            image = nibabel.load(folder / scan)
            np.testing.assert_array_equal(volume.hu, np.asanyarray(image.dataobj))
            np.testing.assert_allclose(volume.affine, RAS @ image.affine)
        organs = open_mask(folder / mask, volume)
        assert "liver" in organs and "spleen" in organs
        # bright, unlike air and fat
        assert 20 < np.median(volume.hu[organs["liver"]]) < 150
    seg = nibabel.as_closest_canonical(nibabel.load(folder / "example_seg_dicom.nii.gz"))
    turned, _ = in_patient_axes(organs["liver"], volume.affine)
    np.testing.assert_array_equal(turned[::-1, ::-1], np.asanyarray(seg.dataobj) == 5)


@real_scans
def test_a_real_segmentation_is_its_nrrd():
    pytest.importorskip("pydicom")
    volume = open_volume(SCANS / "dcmqi")
    mask = open_mask(SCANS / "dcmqi" / "liver.dcm", volume)
    label = open_mask(SCANS / "dcmqi" / "liver_seg.nrrd", volume, "lits")
    np.testing.assert_array_equal(mask["liver"], label["liver"])
    assert mask["liver"].any()


@real_scans
@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("dicom2nifti/failing_gantry*", "gantry tilt, the axes are 14.0 degrees"),
        ("dicom2nifti/failing_notavolume*", "at the same position"),
        (
            "dicom2nifti/failing_sliceincrement*",
            "10 mm after .* elsewhere 5 mm: slices are missing",
        ),
        ("dicom/*S1000*", "localizer"),
        ("dicom/*S4010*", "color, so a dose page"),
        ("dicom/*DICOMDIR", "a DICOMDIR, not a CT image"),
    ],
)
def test_broken_real_series_are_one_line(tmp_path, pattern, words):
    pytest.importorskip("pydicom")
    for file in SCANS.glob(pattern):
        (tmp_path / file.name).symlink_to(file)
    refused(words, open_volume, tmp_path)
