"""Public CT scans with masks: how many slices and organs the packaged model names correctly.

ORGAN_SCANS_DIR names a directory with TotalSegmentator's example files in `totalsegmentator`.
"""

import os
from pathlib import Path

import pytest
from conftest import needs_default

from organ_infer import OrganClassifier
from organ_infer.plausibility import air_warnings
from organ_infer.volumes import organ_crops, reading

SCANS = Path(os.environ.get("ORGAN_SCANS_DIR") or os.devnull) / "totalsegmentator"
pytestmark = [
    needs_default,
    pytest.mark.skipif(
        not SCANS.is_dir(), reason="ORGAN_SCANS_DIR does not name the directory of the scans"
    ),
]


@pytest.fixture(scope="module")
def classifier():
    with OrganClassifier(device="cpu") as opened:
        yield opened


def shares(classifier, scan, mask, **options):
    """Return the share of correct slices, the number of slices, and the classes of the organs that are wrong."""
    volume = reading.open_volume(str(SCANS / scan))
    organs = classifier.predict_volume(
        volume, reading.open_mask(str(SCANS / mask), like=volume), **options
    )
    correct = [one.prediction.label == organ.expected for organ in organs for one in organ.slices]
    wrong = {organ.expected for organ in organs if not organ.agrees}
    return sum(correct) / len(correct), len(correct), len(organs), wrong


PLAIN = "example_ct.nii.gz", "example_seg_fast_force_split.nii.gz"
CONTRAST = "example_ct_dicom", "example_seg_dicom.nii.gz"


def test_an_unenhanced_scan(classifier):
    # 0.862 of 145 slices. Both wrong organs are cut off by the border of the scan.
    share, slices, organs, wrong = shares(classifier, *PLAIN)
    assert (slices, organs, wrong) == (145, 10, {"lung-left", "femur-left"})
    assert share == pytest.approx(0.862, abs=0.02)


def test_a_scan_with_contrast_medium(classifier):
    # 25 of 26 slices. The wrong one is of a fragment of the pancreas at the border of the scan.
    share, slices, organs, wrong = shares(classifier, *CONTRAST)
    assert (slices, organs, wrong) == (26, 3, set())
    assert share >= 24 / 26


@pytest.mark.parametrize("scan", [PLAIN, CONTRAST])
def test_air_in_the_corners_tells_whole_slices_from_crops(scan):
    volume = reading.open_volume(str(SCANS / scan[0]))
    mask = reading.open_mask(str(SCANS / scan[1]), like=volume)
    assert all(air_warnings(volume.hu[:, :, k]) for k in range(volume.hu.shape[2]))
    for margin in (0, 5, 20):
        crops = organ_crops(volume, mask, orientation="LP", margin_mm=margin, slices="all")
        assert not [crop for crop in crops if air_warnings(crop.pixels)]


@pytest.mark.parametrize(("scan", "least"), [(PLAIN, 0.05), (CONTRAST, 0.02)])
def test_the_margin_and_the_middle_slices_help(classifier, scan, least):
    share = shares(classifier, *scan)[0]
    assert share - shares(classifier, *scan, margin_mm=0)[0] >= least
    assert share - shares(classifier, *scan, slices="all")[0] >= least / 2
