"""How many corrupted scans and masks `organ_infer.audit` notices, and how often it is wrong about intact ones.

    ORGAN_SCANS_DIR=DIR python tests/endurance/audit_corruptions.py [--kind NAME] [--scan A] [--verbose]

DIR holds TotalSegmentator's example files in `totalsegmentator`. Two scans are corrupted in memory, in every way that is
listed in `all_cases`. `noticed` counts cases with any finding, `named` those whose strongest finding is the corruption.
Intact cases are the scans as they are, and variants of them that nobody would call wrong.
"""

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.phantoms import nifti

from organ_infer import OrganClassifier
from organ_infer.audit.anatomy import ORGANS
from organ_infer.audit.scan import audit_scan
from organ_infer.errors import ImageError
from organ_infer.volumes import Mask, Volume, open_mask, open_volume
from organ_infer.volumes.label_maps import LABEL_MAPS
from organ_infer.volumes.scan_files import read_header
from organ_infer.volumes.voxel_files import blocks

PAIRS = {
    "A": ("example_ct.nii.gz", "example_seg_fast_force_split.nii.gz"),
    "B": ("example_ct_dicom", "example_seg_dicom.nii.gz"),
}
SIDES = {"left": "right", "right": "left"}
SHIFT_MM = 30
PERMUTATIONS = {"A": 30, "B": 5}


@dataclass(frozen=True)
class Case:
    """One scan with a mask, and what an audit should say.

    Attributes:
        kind: The row of the table.
        name: What was done.
        volume: The scan.
        mask: Its mask.
        answers: Parts of messages. One of them must be in the message of a finding.
        other_masks: As for `audit_scan`.
    """

    kind: str
    name: str
    volume: Volume
    mask: Mask
    answers: tuple[str, ...] = ()
    other_masks: Callable[[], Mapping[str, Mask]] | None = None


def relabeled(mask: Mask, names: Mapping[str, str]) -> Mask:
    codes = {names.get(name, name): mask._codes[name] for name in mask}
    return Mask(mask._layers, {name: codes[name] for name in sorted(codes)}, source=mask.source)


def moved(mask: Mask, change: Callable[[np.ndarray], np.ndarray]) -> Mask:
    layers = [np.asfortranarray(change(layer)) for layer in mask._layers]
    return Mask(layers, mask._codes, source=mask.source)


def shifted(array: np.ndarray, voxels: tuple[int, int, int]) -> np.ndarray:
    result = np.zeros_like(array)
    to = tuple(
        slice(max(n, 0), size + min(n, 0)) for n, size in zip(voxels, array.shape, strict=True)
    )
    of = tuple(
        slice(max(-n, 0), size + min(-n, 0)) for n, size in zip(voxels, array.shape, strict=True)
    )
    result[to] = array[of]
    return result


def with_axes(volume: Volume, axes: np.ndarray) -> Volume:
    """A header that says something else about the patient's axes. Scan and mask share it."""
    affine = np.array(volume.affine)
    affine[:3] = axes @ affine[:3]
    return replace(volume, affine=affine)


def flipped(array: np.ndarray, axis: int) -> np.ndarray:
    return np.flip(array, axis)


def intact(name: str, volume: Volume, mask: Mask) -> Iterator[Case]:
    yield Case("intact", f"{name}: as it is", volume, mask)
    random = np.random.default_rng(0)
    for sigma in (10, 20, 40):
        noise = random.normal(0, sigma, volume.hu.shape)
        hu = np.clip(volume.hu + np.rint(noise), -1024, 3071).astype(np.int16)
        yield Case("intact", f"{name}: noise of {sigma} HU", replace(volume, hu=hu), mask)
    for axis in range(3):
        for voxels in (-1, 1):
            move = tuple(voxels if i == axis else 0 for i in range(3))
            part = moved(mask, lambda layer, move=move: shifted(layer, move))
            yield Case("intact", f"{name}: mask off by one voxel, {move}", volume, part)
    neighbors = [
        tuple(n if i == axis else 0 for i in range(3)) for axis in range(3) for n in (-1, 1)
    ]

    def eroded(layer: np.ndarray) -> np.ndarray:
        return layer * np.all([shifted(layer, step) == layer for step in neighbors], axis=0)

    def dilated(layer: np.ndarray) -> np.ndarray:
        around = np.max([shifted(layer, step) for step in neighbors], axis=0)
        return np.where(layer == 0, around, layer)

    for change in (eroded, dilated):
        what = f"{name}: mask {change.__name__} by one voxel"
        yield Case("intact", what, volume, moved(mask, change))
    mean = np.mean(
        [volume.hu, *(np.roll(volume.hu, n, axis) for axis in range(2) for n in (-1, 1))], axis=0
    )
    yield Case(
        "intact", f"{name}: blurred", replace(volume, hu=np.rint(mean).astype(np.int16)), mask
    )
    for offset in (-30, 30):
        hu = np.clip(volume.hu.astype(int) + offset, -1024, 3071).astype(np.int16)
        yield Case("intact", f"{name}: {offset} HU", replace(volume, hu=hu), mask)
    depth = volume.hu.shape[2]
    for start, stop in ((0, depth // 2), (depth // 2, depth), (depth // 4, 3 * depth // 4)):
        part = slice(start, stop)
        cut = replace(volume, hu=volume.hu[:, :, part])
        yield Case("intact", f"{name}: slices {start} to {stop}", cut, cropped(mask, part))
    for step in ((2, 2, 1), (1, 1, 2), (1, 1, 3)):
        affine = volume.affine @ np.diag([*step, 1.0])
        every = tuple(slice(None, None, n) for n in step)
        coarse = replace(volume, hu=volume.hu[every], affine=affine)
        part = moved(mask, lambda layer, every=every: layer[every])
        yield Case("intact", f"{name}: every {step} voxel", coarse, part)
    for organ in mask:
        rest = {one: code for one, code in mask._codes.items() if one != organ}
        yield Case("intact", f"{name}: without {organ}", volume, Mask(mask._layers, rest))
    yield from (
        Case("intact", f"{name}: {organ} alone", volume, Mask(mask._layers, {organ: code}))
        for organ, code in mask._codes.items()
    )


def cropped(mask: Mask, part: slice) -> Mask:
    layers = [layer[:, :, part] for layer in mask._layers]
    present = set(np.unique(layers))
    return Mask(layers, {name: code for name, code in mask._codes.items() if code in present})


def corrupted(name: str, volume: Volume, mask: Mask) -> Iterator[Case]:
    for signs, answer in (
        ((-1, 1, 1), "left-right flipped"),
        ((1, -1, 1), "front-back flipped"),
        ((1, 1, -1), "head-feet flipped"),
        ((-1, -1, 1), "turned by 180"),
        ((-1, 1, -1), "left-right and head-feet flipped"),
        ((1, -1, -1), "front-back and head-feet flipped"),
    ):
        turned = with_axes(volume, np.diag(signs))
        kind = "header flipped left-right" if signs == (-1, 1, 1) else "header flipped or turned"
        yield Case(kind, f"{name}: {signs}", turned, mask, (answer,))
    for axis, answer in enumerate(("left-right", "front-back", "head-feet")):
        kind = f"data flipped {answer}"
        answers = (f"{answer} flipped",)
        scan = replace(volume, hu=np.flip(volume.hu, axis))
        flip = moved(mask, lambda layer, axis=axis: np.flip(layer, axis))
        yield Case(kind, f"{name}: scan", scan, mask, answers)
        yield Case(kind, f"{name}: mask", volume, flip, answers)
        yield Case(kind, f"{name}: both", scan, flip, answers)
    pairs = [
        (one, other)
        for one in mask
        for other in [one.replace("left", "right")]
        if one != other and other in mask
    ]
    for one, other in pairs:
        swap = relabeled(mask, {one: other, other: one})
        yield Case("sides swapped", f"{name}: {one}", volume, swap, (f"{one} <-> {other}",))
    if len(pairs) > 1:
        names = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
        yield Case("sides swapped", f"{name}: all", volume, relabeled(mask, names), ("swapped",))
    for one, other in itertools.combinations(mask, 2):
        if (one, other) not in pairs:
            swap = relabeled(mask, {one: other, other: one})
            answers = (f"{one} <-> {other}",)
            yield Case("two organs swapped", f"{name}: {one}, {other}", volume, swap, answers)
    random = np.random.default_rng(1)
    organs = list(mask)
    for organ in organs:
        absent = [other for other in ORGANS if other not in mask and other != organ]
        wrong = absent[int(random.integers(len(absent)))]
        named = relabeled(mask, {organ: wrong})
        yield Case(
            "one label wrong", f"{name}: {organ} is {wrong}", volume, named, (f"like {organ}",)
        )
    for i in range(PERMUTATIONS[name]):
        order = random.permutation(len(organs))
        if (order == np.arange(len(organs))).all():
            order = np.roll(order, 1)
        names = {organs[k]: organs[order[k]] for k in range(len(organs))}
        yield Case(
            "labels permuted", f"{name}: {i}", volume, relabeled(mask, names), ("label", "swapped")
        )
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    for direction in itertools.product((-1, 0, 1), repeat=3):
        length = np.linalg.norm(direction)
        if length and not (name == "B" and direction[2]):
            voxels = np.rint(np.array(direction) / length * SHIFT_MM / spacing).astype(int)
            move = tuple(voxels.tolist())
            part = moved(mask, lambda layer, move=move: shifted(layer, move))
            yield Case("mask shifted by 30 mm", f"{name}: {direction}", volume, part, ("shifted",))
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            for signs in ((1, 1, 1), (-1, 1, 1), (1, 1, -1)):
                axes = np.zeros((3, 3))
                axes[np.arange(3), order] = signs
                answers = ("exchanged", "turned by 90")
                exchanged = with_axes(volume, axes)
                yield Case("axes exchanged", f"{name}: {order} {signs}", exchanged, mask, answers)
    if volume.hu.shape[0] == volume.hu.shape[1]:
        part = moved(mask, lambda layer: layer.transpose(1, 0, 2))
        yield Case("axes exchanged", f"{name}: mask", volume, part, ("exchanged",))


def with_wrong_values(
    name: str, volume: Volume, mask: Mask, masks: Callable[[], dict[str, Mask]]
) -> Iterator[Case]:
    """A scan whose values are no Hounsfield units, and one that is no scan."""
    hu = volume.hu.astype(int)
    random = np.random.default_rng(2)
    for what, values, answers in (
        ("negated", -hu, ("negated",)),
        ("1,024 too low", hu - 1024, ("1,024 too low",)),
        ("doubled", 2 * hu, ("doubled", "show no organ")),
        ("halved", hu // 2, ("halved", "show no organ")),
        ("noise", random.integers(-1000, 1000, hu.shape), ("show no organ",)),
        ("constant", np.full_like(hu, 40), ("show no organ",)),
    ):
        scan = replace(volume, hu=values.clip(-32768, 32767).astype(np.int16))
        yield Case("values of the scan wrong", f"{name}: {what}", scan, mask, answers, masks)


def with_one_organ_wrong(name: str, volume: Volume, mask: Mask) -> Iterator[Case]:
    """A mask of which one organ is somewhere else, or hardly there."""
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    for organ in mask:
        region = mask[organ]
        rest = [layer * (layer != mask._codes[organ]) for layer in mask._layers]

        def with_region(
            region: np.ndarray, organ: str = organ, rest: list[np.ndarray] = rest
        ) -> Mask:
            first = np.where(region, np.uint8(mask._codes[organ]), rest[0])
            return Mask([np.asfortranarray(first), *rest[1:]], mask._codes, source=mask.source)

        center = np.argwhere(region).mean(axis=0)
        # Toward the middle of the scan, so that the organ stays inside.
        toward = np.where(center < np.array(region.shape) / 2, 1, -1)
        for axis in range(2):
            voxels = [0, 0, 0]
            voxels[axis] = int(np.rint(toward[axis] * 60 / spacing[axis]))
            off = with_region(shifted(region, (voxels[0], voxels[1], voxels[2])))
            yield Case("one organ off by 60 mm", f"{name}: {organ}, {axis}", volume, off, (organ,))
        # The corner of the scan with the same size: table, air and skin.
        points = np.argwhere(region)
        corner = np.zeros_like(region)
        corner[tuple((points - (points.min(axis=0) - 1) * [1, 1, 0]).T)] = True
        yield Case(
            "one organ in a corner", f"{name}: {organ}", volume, with_region(corner), (organ,)
        )
        inside = points[np.abs(points - center).sum(axis=1).argmin()]
        for side in (1, 3):
            dot = np.zeros_like(region)
            dot[tuple(slice(i, i + side) for i in np.maximum(inside - side // 2, 1))] = True
            kind = "one organ of a few voxels"
            yield Case(kind, f"{name}: {organ}, {side}", volume, with_region(dot), (organ,))


def of_another_patient(name: str, volume: Volume, directory: Path) -> Iterator[Case]:
    """The mask of the other scan, on the grid of this one."""
    other = next(key for key in PAIRS if key != name)
    source = open_volume(directory / PAIRS[other][0])
    mask = open_mask(directory / PAIRS[other][1], like=source)
    indices = [
        np.arange(size) * old // size
        for size, old in zip(volume.hu.shape, source.hu.shape, strict=True)
    ]
    part = moved(mask, lambda layer: layer[np.ix_(*indices)])
    answers = ("worse than random labels", "show no organ", "look different")
    yield Case("mask of another patient", name, volume, part, answers)


def read_with_every_map(
    volume: Volume, path: Path, directory: Path
) -> Callable[[], dict[str, Mask]]:
    """Return a function that reads the numbers of a mask without their names, as those of every data set."""
    header = read_header(str(path))
    numbers = np.concatenate([values for _, values in blocks(header)]).astype(np.uint8)
    array = numbers.reshape(header.shape[::-1]).transpose(2, 1, 0)
    plain = directory / f"{path.stem}.nii"
    plain.write_bytes(nifti(array, header.affine))

    def masks() -> dict[str, Mask]:
        found = {}
        for row in LABEL_MAPS:
            try:
                found[row] = open_mask(plain, like=volume, labels=row)
            except ImageError:
                continue
        return found

    return masks


def of_another_map(
    name: str, volume: Volume, masks: Callable[[], dict[str, Mask]]
) -> Iterator[Case]:
    """The numbers without names, read as those of every other data set."""
    intact_mask = masks()["totalsegmentator"]
    for row, mask in masks().items():
        # Data sets that number these organs alike.
        is_right = all(
            organ in intact_mask and (mask[organ] == intact_mask[organ]).all() for organ in mask
        )
        kind = "intact" if is_right else "another label map"
        right = () if is_right else ("label map totalsegmentator",)
        others = lambda row=row: {k: v for k, v in masks().items() if k != row}  # noqa: E731
        yield Case(kind, f"{name}: read as {row}, {', '.join(mask)}", volume, mask, right, others)


def all_cases(directory: Path, work: Path) -> Iterator[Case]:
    for name, (scan, mask_file) in PAIRS.items():
        volume = open_volume(directory / scan)
        mask = open_mask(directory / mask_file, like=volume)
        yield from intact(name, volume, mask)
        yield from corrupted(name, volume, mask)
        masks = read_with_every_map(volume, directory / mask_file, work)
        yield from of_another_map(name, volume, masks)
        yield from with_wrong_values(name, volume, mask, masks)
        yield from with_one_organ_wrong(name, volume, mask)
        yield from of_another_patient(name, volume, directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", help="only kinds with this text in their name")
    parser.add_argument("--scan", choices=PAIRS, help="only this one of the two scans")
    parser.add_argument("--verbose", action="store_true", help="print what each case gave")
    options = parser.parse_args()
    directory = Path(os.environ["ORGAN_SCANS_DIR"]) / "totalsegmentator"
    table: dict[str, list[int]] = {}
    with OrganClassifier(device="cpu") as classifier, tempfile.TemporaryDirectory() as work:
        for case in all_cases(directory, Path(work)):
            if options.kind and options.kind not in case.kind:
                continue
            if options.scan and not case.name.startswith(options.scan):
                continue
            audit = audit_scan(classifier, case.volume, case.mask, other_masks=case.other_masks)
            strongest = audit.findings[0].message if audit.findings else ""
            row = table.setdefault(case.kind, [0, 0, 0])
            row[0] += 1
            row[1] += bool(audit.findings)
            is_named = any(answer in strongest for answer in case.answers)
            row[2] += is_named
            is_right = not audit.findings if case.kind == "intact" else is_named
            if options.verbose or not is_right:
                print(
                    f"{case.kind} | {case.name} | expected {' or '.join(case.answers) or 'nothing'}"
                )
                for finding in audit.findings:
                    print(f"    {finding.evidence:6.1f} {finding.kind}: {finding.message}")
    print(f"\n{'kind':<28}{'cases':>6}{'noticed':>9}{'named':>7}")
    for kind, (cases, noticed, named) in table.items():
        print(f"{kind:<28}{cases:>6}{noticed:>9}{'' if kind == 'intact' else named:>7}")


if __name__ == "__main__":
    main()
