"""Public CT scans with masks: how many slices and organs the packaged model names correctly.

ORGAN_SCANS_DIR names a directory with TotalSegmentator's example files in `totalsegmentator`.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_default
from support.dict_mask import DictMask

from organ_infer import OrganClassifier
from organ_infer.audit import audit_scan
from organ_infer.plausibility import WHOLE_SLICE_SIDE
from organ_infer.volumes import reading

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
    # 0.910 of 145 slices. The wrong organ is cut off by the border of the scan.
    share, slices, organs, wrong = shares(classifier, *PLAIN)
    assert (slices, organs, wrong) == (145, 10, {"lung-left"})
    assert share == pytest.approx(0.910, abs=0.02)


def test_a_scan_with_contrast_medium(classifier):
    # 25 of 26 slices. The wrong one is of a fragment of the pancreas at the border of the scan.
    share, slices, organs, wrong = shares(classifier, *CONTRAST)
    assert (slices, organs, wrong) == (26, 3, set())
    assert share >= 24 / 26


@pytest.mark.parametrize(("scan", "least"), [(PLAIN, 0.01), (CONTRAST, 0.0)])
def test_the_margin_and_the_middle_slices_help(classifier, scan, least):
    share = shares(classifier, *scan)[0]
    assert share - shares(classifier, *scan, margin_mm=0)[0] >= least
    assert share - shares(classifier, *scan, slices="all")[0] >= least / 2


@pytest.mark.parametrize("pair", [PLAIN, CONTRAST])
def test_an_audit_finds_nothing_in_intact_scans_and_names_flips_and_swaps(classifier, pair):
    volume = reading.open_volume(str(SCANS / pair[0]))
    mask = reading.open_mask(str(SCANS / pair[1]), like=volume)

    def messages(volume, mask):
        return [finding.message for finding in audit_scan(classifier, volume, mask).findings]

    flipped = replace(volume, affine=np.diag([-1.0, 1, 1, 1]) @ volume.affine)
    names = {"liver": "spleen", "spleen": "liver"}
    swapped = DictMask({names.get(name, name): mask[name] for name in mask})
    assert messages(volume, mask) == []
    assert messages(flipped, mask) == ["left-right flipped: scan and mask"]
    assert messages(volume, swapped) == ["labels swapped: liver <-> spleen"]


@pytest.mark.parametrize("pair", [PLAIN, CONTRAST])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hu: -hu, "the values of the scan look negated; multiply them by -1"),
        (lambda hu: hu - 1024, "the values of the scan look 1,024 too low; add 1,024"),
        (
            lambda hu: np.random.default_rng(0).integers(-1000, 1000, hu.shape),
            "organs show no organ",
        ),
    ],
    ids=["negated", "too low", "noise"],
)
def test_an_audit_names_values_that_are_no_hounsfield_units(classifier, pair, change, message):
    volume = reading.open_volume(str(SCANS / pair[0]))
    mask = reading.open_mask(str(SCANS / pair[1]), like=volume)
    hu = change(volume.hu.astype(np.int32)).astype(np.int16)
    (finding,) = audit_scan(classifier, replace(volume, hu=hu), mask).findings
    assert message in finding.message and set(finding.organs) == set(mask)


def test_an_audit_names_an_organ_whose_mask_is_in_a_corner_and_one_of_a_voxel(classifier):
    volume = reading.open_volume(str(SCANS / PLAIN[0]))
    mask = reading.open_mask(str(SCANS / PLAIN[1]), like=volume)
    x, y, z = np.argwhere(mask["pancreas"]).T
    corner = np.zeros(mask.shape, bool)
    corner[x - x.min() + 4, y - y.min() + 4, z] = True
    dot = np.zeros(mask.shape, bool)
    dot[x[0], y[0], z[0]] = True
    kinds = []
    for wrong in (corner, dot):
        organs = {name: wrong if name == "pancreas" else mask[name] for name in mask}
        findings = audit_scan(classifier, volume, DictMask(organs)).findings
        assert findings and all(finding.organs == ("pancreas",) for finding in findings)
        kinds.append({finding.kind for finding in findings})
    assert kinds[1] == {"size"}


@pytest.mark.parametrize("as_gray", [False, True])
@pytest.mark.parametrize("scan", [PLAIN, CONTRAST])
def test_every_whole_slice_of_a_scan_is_told(classifier, scan, as_gray):
    """Without a pixel spacing, as HU and as gray through 40/400: their pixels could be those of a crop."""
    volume = reading.open_volume(str(SCANS / scan[0]))
    for k in range(volume.hu.shape[2]):
        # Below the size that is a whole slice in any case.
        step = 1 + (volume.hu.shape[0] >= WHOLE_SLICE_SIDE)
        pixels = np.ascontiguousarray(volume.hu[::step, ::step, k].T)
        if as_gray:
            pixels = np.rint((pixels.clip(-160, 240) + 160) / 400 * 255).astype(np.uint8)
        (found,) = classifier.predict(pixels[None])
        (warning,) = found.warnings
        assert "likely a whole slice" in warning or "no organ crop" in warning


@pytest.mark.parametrize("margin", [0, 5, 30])
def test_no_crop_around_an_organ_is_a_whole_slice(classifier, margin):
    for scan, mask in (PLAIN, CONTRAST):
        volume = reading.open_volume(str(SCANS / scan))
        for organ in classifier.predict_volume(
            volume,
            reading.open_mask(str(SCANS / mask), like=volume),
            margin_mm=margin,
            slices="all",
        ):
            warnings = [text for one in organ.slices for text in one.prediction.warnings]
            assert not any("body in air" in text for text in warnings)
