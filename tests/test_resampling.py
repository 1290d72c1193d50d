"""Masks on another grid than the scan's: nearest neighbor, against a search through all voxels."""

import itertools
import tracemalloc

import numpy as np
import pytest
from support.phantoms import (
    ORGANS,
    ORIENTATIONS,
    Phantom,
    contours,
    label_segmentation,
    nifti,
    nrrd,
    phantom,
    segmentation,
)

from organ_infer import ImageError, InputError
from organ_infer.volumes import Volume, open_mask
from organ_infer.volumes import resampling as module
from organ_infer.volumes.resampling import resampling

SHAPE, SPACING = (11, 10, 9), (9.0, 9.5, 10.0)
SCAN = phantom(SHAPE, SPACING)
VOLUME = Volume(SCAN.hu, SCAN.affine, "scan")
NUMBERS = dict(enumerate(ORGANS, 1))


@pytest.fixture(scope="module")
def numbers_csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    path.write_text("".join(f"{number},{organ}\n" for number, organ in NUMBERS.items()))
    return str(path)


# of the patient, in LPS millimeters
CENTER = SCAN.affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + SCAN.affine[:3, 3]


def rotated(affine, degrees, axis):
    """The affine, rotated around the patient's center."""
    angle = np.radians(degrees)
    a, b = [other for other in range(3) if other != axis]
    rotation = np.eye(4)
    rotation[[a, a, b, b], [a, b, a, b]] = (
        np.cos(angle),
        -np.sin(angle),
        np.sin(angle),
        np.cos(angle),
    )
    rotation[:3, 3] = CENTER - rotation[:3, :3] @ CENTER
    return rotation @ affine


def mask_phantom(spacing=(5.0, 7.0, 12.0), shape=(17, 12, 7), offset=(3.3, -2.1, 1.7), turn=(0, 0)):
    """Labels on another grid, the center of which is `offset` mm from the patient's."""
    other = phantom(shape, spacing)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = CENTER + offset - np.array(spacing) * (np.array(shape) - 1) / 2
    return Phantom(other.hu, other.labels, rotated(affine, *turn))


def nearest(mask, scan_affine, shape):
    """For each voxel of the scan, the label of the mask's nearest voxel, in float64, or 0 if it is in none."""
    indices = np.array(list(np.ndindex(mask.labels.shape)), np.float64)
    centers = indices @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    result = np.zeros(shape, mask.labels.dtype)
    inverse = np.linalg.inv(mask.affine)
    for voxel in np.ndindex(shape):
        point = scan_affine[:3, :3] @ voxel + scan_affine[:3, 3]
        best = int(((centers - point) ** 2).sum(axis=1).argmin())
        offset = inverse[:3, :3] @ point + inverse[:3, 3] - indices[best]
        if np.abs(offset).max() <= 0.5:
            result[voxel] = mask.labels[tuple(indices[best].astype(int))]
    return result


CASES = {
    "spacing and origin": {},
    "smaller voxels": {"spacing": (2.9, 3.1, 4.3), "shape": (20, 19, 18)},
    "larger voxels": {"spacing": (21.0, 17.0, 23.0), "shape": (5, 6, 4)},
    "a few degrees": {"turn": (7, 2)},
    "45 degrees": {"turn": (45, 0), "offset": (3.3, 10.1, -9.7)},
    "90 degrees": {"turn": (90, 2), "offset": (10.3, -20.1, -3.7)},
    "133 degrees": {"turn": (133, 1)},
    "a part of the scan": {"spacing": SPACING, "shape": (5, 4, 3), "offset": (9.0, 9.5, 0.0)},
    "beyond the scan": {"spacing": (11.0, 13.0, 16.0), "shape": (19, 16, 11), "offset": (-3.2, 4.4, 1.9)},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_voxel_takes_the_label_of_the_nearest_one(tmp_path, numbers_csv, case):
    other = mask_phantom(**CASES[case])
    expected = nearest(other, SCAN.affine, SHAPE)
    (tmp_path / "m.nii").write_bytes(nifti(other.labels, other.affine))
    mask = open_mask(tmp_path / "m.nii", VOLUME, numbers_csv, resample=True)
    assert len({*np.unique(expected)}) > 2
    for number, organ in NUMBERS.items():
        voxels = expected == number
        np.testing.assert_array_equal(mask[organ] if organ in mask else voxels & False, voxels)
    (warning,) = (text for text in mask.warnings if "resampled" in text)
    x, y, z = other.labels.shape
    assert warning.startswith(f"resampled with nearest neighbor from {x} x {y} x {z} voxels of ")
    assert "to the scan's 11 x 10 x 9 voxels of 9 x 9.5 x 10 mm" in warning


def test_the_order_and_direction_of_the_axes_change_no_voxel():
    """Also where a voxel's center is in the middle between those of the mask: it takes the left, back or upper one."""
    other = mask_phantom(spacing=(4.5, 4.75, 20.0), shape=(24, 22, 6), offset=(0, 0, 0))
    results = []
    for order, flips in ORIENTATIONS:
        turned = other.turned(order, flips)
        results.append(resampling(turned.affine, VOLUME).apply(turned.labels))
    assert all((result == results[0]).all() for result in results)
    for order, flips in ORIENTATIONS:
        scan = SCAN.turned(order, flips)
        result = resampling(other.affine, Volume(scan.hu, scan.affine, "")).apply(other.labels)
        wanted = Phantom(SCAN.hu, results[0], SCAN.affine).turned(order, flips)
        np.testing.assert_array_equal(result, wanted.labels)
    # x: index 2 * i + 1.5, and z: index k / 2 + 0.5
    index = np.arange(24 * 22 * 6, dtype=np.int32).reshape(24, 22, 6)
    taken = resampling(other.affine, VOLUME).apply(index)
    np.testing.assert_array_equal(taken[1:, 2, 2] // (22 * 6), 2 * np.arange(1, 11) + 2)
    np.testing.assert_array_equal(taken[4, 2, :] % 6, [1, 1, 2, 2, 3, 3, 4, 4, 5])


def test_blocks_change_nothing(monkeypatch):
    other = mask_phantom(turn=(33, 1))
    whole = resampling(other.affine, VOLUME).apply(other.labels)
    for size in (1, 25, 40):
        monkeypatch.setattr(module, "BLOCK", size)
        np.testing.assert_array_equal(resampling(other.affine, VOLUME).apply(other.labels), whole)


def test_memory_is_that_of_both_grids():
    shape = (160, 150, 140)
    like = Volume(np.broadcast_to(np.int16(0), shape), rotated(np.diag([2.0, 2, 2, 1]), 20, 2), "")
    array = np.ones((40, 40, 40), np.uint8)
    tracemalloc.start()
    resampling(np.diag([8.0, 8, 8, 1]), like).apply(array)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < np.prod(shape) + 3e6


def test_without_the_option_the_line_names_it(tmp_path, numbers_csv):
    pytest.importorskip("pydicom")
    other = mask_phantom()
    (tmp_path / "m.nii").write_bytes(nifti(other.labels, other.affine))
    (tmp_path / "m.dcm").write_bytes(segmentation(other, {"liver": other.labels == 1}))
    for name in ("m.nii", "m.dcm"):
        with pytest.raises(
            ImageError, match=r"organ-infer volume with --resample-mask and in .* resample=True"
        ):
            open_mask(tmp_path / name, VOLUME, numbers_csv)
    with pytest.raises(InputError, match="resample: expected True or False, found 'yes'"):
        open_mask(tmp_path / "m.nii", VOLUME, numbers_csv, resample="yes")


def test_a_mask_in_centimeters_is_not_taken_for_a_small_part(tmp_path, numbers_csv):
    other = mask_phantom()
    affine = other.affine.copy()
    affine[:3, :3] /= 100
    (tmp_path / "m.nii").write_bytes(nifti(other.labels, affine))
    with pytest.raises(ImageError, match="the unit may be centimeters"):
        open_mask(tmp_path / "m.nii", VOLUME, numbers_csv, resample=True)


def test_a_mask_on_the_scans_grid_is_not_resampled(tmp_path, numbers_csv):
    for order, flips in itertools.islice(ORIENTATIONS, 0, 48, 11):
        turned = SCAN.turned(order, flips)
        (tmp_path / "m.nii").write_bytes(nifti(turned.labels, turned.affine))
        mask = open_mask(tmp_path / "m.nii", VOLUME, numbers_csv, resample=True)
        assert mask.warnings == ()
        np.testing.assert_array_equal(mask["liver"], SCAN.labels == 1)


def test_a_mask_beside_the_scan_is_one_line(tmp_path, numbers_csv):
    pytest.importorskip("pydicom")
    other = mask_phantom(offset=(500.0, 0, 0))
    liver = (other.labels == 1).astype(np.uint8)
    (tmp_path / "m.nii").write_bytes(nifti(other.labels, other.affine))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "liver.nii").write_bytes(nifti(liver, other.affine))
    (tmp_path / "m.dcm").write_bytes(segmentation(other, {"liver": liver.astype(bool)}))
    for name in ("m.nii", "files", "m.dcm"):
        labels = numbers_csv if name == "m.nii" else "totalsegmentator"
        with pytest.raises(
            ImageError, match=r"no voxel .* is in the scan: the mask has .* the scan"
        ):
            open_mask(tmp_path / name, VOLUME, labels, resample=True)


def test_structure_files_may_have_grids_of_their_own(tmp_path):
    coarse, fine = mask_phantom(), mask_phantom(spacing=(3.0, 4.0, 5.0), shape=(30, 26, 20))
    parts = {"liver": (coarse, 1), "spleen": (fine, 2), "pancreas": (SCAN, 5), "heart": (coarse, 4)}
    for name, (other, number) in parts.items():
        data = nrrd((other.labels == number).astype(np.uint8), other.affine)
        (tmp_path / f"{name}.nrrd").write_bytes(data)
    mask = open_mask(tmp_path, VOLUME, resample=True)
    for name, (other, number) in parts.items():
        expected = nearest(other, SCAN.affine, SHAPE) == number
        np.testing.assert_array_equal(mask[name], expected)
    assert [text[:49] for text in mask.warnings] == [
        "resampled with nearest neighbor from 17 x 12 x 7 ",
        "resampled with nearest neighbor from 30 x 26 x 20",
    ]


@pytest.mark.parametrize("turn", [(0, 0), (60, 2)])
def test_segments_are_resampled_from_the_grid_of_their_frames(tmp_path, turn):
    pytest.importorskip("pydicom")
    other = mask_phantom(turn=turn)
    liver, spleen = other.labels == 1, other.labels == 2
    structures = {"Liver": liver, "Spleen": spleen, "Kidney left": liver | spleen, "Tumor": liver}
    (tmp_path / "m.dcm").write_bytes(segmentation(other, structures))
    mask = open_mask(tmp_path / "m.dcm", VOLUME, resample=True)
    assert {*mask} == {"liver", "spleen", "kidney-left"} and mask.unmapped == ("Tumor",)
    for name, voxels in {"liver": liver, "spleen": spleen, "kidney-left": liver | spleen}.items():
        one = Phantom(other.hu, voxels, other.affine)
        np.testing.assert_array_equal(mask[name], nearest(one, SCAN.affine, SHAPE))
    assert "resampled with nearest neighbor from 17 x 12 x " in mask.warnings[0]
    names = [organ.replace("-", " ") for organ in ORGANS]
    (tmp_path / "l.dcm").write_bytes(label_segmentation(other, names))
    mask = open_mask(tmp_path / "l.dcm", VOLUME, resample=True)
    expected = nearest(other, SCAN.affine, SHAPE)
    for number, name in NUMBERS.items():
        if (expected == number).any():
            np.testing.assert_array_equal(mask[name], expected == number)


def test_a_segmentation_of_one_slice_is_as_thick_as_it_says(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    other = mask_phantom()
    voxels = np.zeros(other.labels.shape, bool)
    voxels[3:14, 3:9, 4] = True
    path = tmp_path / "m.dcm"
    path.write_bytes(segmentation(other, {"liver": voxels}))
    with pytest.raises(ImageError, match="a SEG of one slice without SliceThickness"):
        open_mask(path, VOLUME, resample=True)
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].SliceThickness = 12
    dataset.save_as(path)
    mask = open_mask(path, VOLUME, resample=True)
    one = Phantom(other.hu, voxels, other.affine)
    np.testing.assert_array_equal(mask["liver"], nearest(one, SCAN.affine, SHAPE))


def test_frames_without_a_common_grid_are_refused(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    other = mask_phantom()
    path = tmp_path / "m.dcm"
    path.write_bytes(segmentation(other, {"liver": other.labels == 1}))
    dataset = pydicom.dcmread(path)
    group = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    group.ImagePositionPatient[2] += 5
    dataset.save_as(path)
    with pytest.raises(ImageError, match="the frames of the SEG are not on one grid"):
        open_mask(path, VOLUME, resample=True)


def test_contours_need_no_grid(tmp_path):
    pytest.importorskip("pydicom")
    (tmp_path / "rt.dcm").write_bytes(
        contours(SCAN, {"liver": [[(2, 2, 3), (7, 2, 3), (7, 7, 3), (2, 7, 3)]]})
    )
    plain, asked = (open_mask(tmp_path / "rt.dcm", VOLUME, resample=r) for r in (False, True))
    np.testing.assert_array_equal(plain["liver"], asked["liver"])
    assert asked.warnings == ()
