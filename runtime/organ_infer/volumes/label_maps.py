"""Numbers and names of structures in public data sets, and the classes that they belong to.

The classes are those of the packaged model. A structure without a row has no class: it is listed once, as unmapped.
"""

import csv
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError, file_reason, one_line, short_repr

__all__ = ["LABEL_MAPS", "LABEL_MAP_OF_NAMES", "LabelMap", "label_map"]

# The map that reads label images by the names in the file.
LABEL_MAP_OF_NAMES = "totalsegmentator"

# bytes of a CSV file
CSV_LIMIT = 1 << 20


@dataclass(frozen=True)
class LabelMap:
    """One row of the table of label maps.

    Attributes:
        name: As in `labels=` and `--labels`.
        source: Where the numbers are published.
        numbers: Number in a label image -> class.
        names: Words of a structure's name -> class. Every map of a data set has the same ones.
        prefers_names: Whether names that a label image gives its numbers replace `numbers`.
        other: A map with other numbers that the same program writes, and the largest of them.
    """

    name: str
    source: str
    numbers: Mapping[int, str]
    names: Mapping[frozenset[str], str]
    prefers_names: bool = False
    other: tuple[str, int] | None = None

    def class_of(self, number: int | None = None, *names: str) -> str | None:
        """Return the class of a structure, or None.

        Args:
            number: In a label image or DICOM SEG, or None.
            *names: What the file calls it, the best name first.
        """
        named = (self.names.get(words(name)) for name in names)
        by_name = next((found for found in named if found), None)
        by_number = None if number is None else self.numbers.get(number)
        return by_number or by_name


_LEFT, _RIGHT = ("left", "l"), ("right", "r")
# words that do not tell structures apart
_FILLERS = {"of", "the", "lobe", "organ"}


def words(name: str) -> frozenset[str]:
    """Return a name's words, whatever their order, their case and what is between them."""
    found = re.findall(r"[a-z0-9]+", name.lower())
    sides = {letter: side for side, letter in (_LEFT, _RIGHT)}
    return frozenset(sides.get(word, word) for word in found) - _FILLERS


def _named(names: Mapping[str, str]) -> dict[frozenset[str], str]:
    return {words(name): organ for name, organ in names.items()}


# Names of TotalSegmentator v1 and v2 (the same source as its numbers), and of segments in DICOM SEG. The chambers of
# v1 are the heart, and the lobes are the lungs. A cyst or tumor alone is no organ.
_NAMES = _named(
    {
        "bladder": "bladder",
        "urinary_bladder": "bladder",
        "femur_left": "femur-left",
        "femur_right": "femur-right",
        "head_of_femur_left": "femur-left",
        "head_of_femur_right": "femur-right",
        "heart": "heart",
        "heart_myocardium": "heart",
        "heart_atrium_left": "heart",
        "heart_atrium_right": "heart",
        "heart_ventricle_left": "heart",
        "heart_ventricle_right": "heart",
        "kidney_left": "kidney-left",
        "kidney_right": "kidney-right",
        "liver": "liver",
        "lung_left": "lung-left",
        "lung_right": "lung-right",
        "lung_upper_lobe_left": "lung-left",
        "lung_lower_lobe_left": "lung-left",
        "lung_upper_lobe_right": "lung-right",
        "lung_middle_lobe_right": "lung-right",
        "lung_lower_lobe_right": "lung-right",
        "pancreas": "pancreas",
        "spleen": "spleen",
    }
)


def _source(repository: str, commit: str, path: str, part: str = "") -> str:
    """Return the address of the file on GitHub that lists a row's numbers, and the part of it."""
    return f"https://github.com/{repository}/blob/{commit}/{path}{f', {part}' if part else ''}"


_ROWS = (
    # Label images of v1 have other numbers. Masks that TotalSegmentator writes name their numbers, so that both are
    # read by name.
    LabelMap(
        name="totalsegmentator",
        source=_source(
            "wasserth/TotalSegmentator",
            "0275d3046117a9615a9876e6e4eefd5156843f1c",
            "totalsegmentator/map_to_binary.py",
            "total",
        ),
        numbers={
            1: "spleen",
            2: "kidney-right",
            3: "kidney-left",
            5: "liver",
            7: "pancreas",
            10: "lung-left",
            11: "lung-left",
            12: "lung-right",
            13: "lung-right",
            14: "lung-right",
            21: "bladder",
            51: "heart",
            75: "femur-left",
            76: "femur-right",
        },
        names=_NAMES,
        prefers_names=True,
        other=("totalsegmentator-v1", 104),
    ),
    LabelMap(
        name="totalsegmentator-v1",
        source=_source(
            "wasserth/TotalSegmentator",
            "0275d3046117a9615a9876e6e4eefd5156843f1c",
            "totalsegmentator/map_to_binary.py",
            "total_v1",
        ),
        numbers={
            1: "spleen",
            2: "kidney-right",
            3: "kidney-left",
            5: "liver",
            10: "pancreas",
            13: "lung-left",
            14: "lung-left",
            15: "lung-right",
            16: "lung-right",
            17: "lung-right",
            44: "heart",
            45: "heart",
            46: "heart",
            47: "heart",
            48: "heart",
            88: "femur-left",
            89: "femur-right",
            104: "bladder",
        },
        names=_NAMES,
        prefers_names=True,
    ),
    LabelMap(
        name="amos22",
        source=_source(
            "uni-medical/A-Eval",
            "2baafb85c8de33f53a7fa19295946993443e2b81",
            "Evaluation/label_systems.py",
            "AMOS_label",
        ),
        numbers={
            1: "spleen",
            2: "kidney-right",
            3: "kidney-left",
            6: "liver",
            10: "pancreas",
            14: "bladder",
        },
        names=_NAMES,
    ),
    LabelMap(
        name="btcv",
        source=_source(
            "MIC-DKFZ/nnUNet",
            "0999d54b44557419df79f6aa2a63773eb2c6738b",
            "nnunet/dataset_conversion/Task017_BeyondCranialVaultAbdominalOrganSegmentation.py",
        ),
        numbers={
            1: "spleen",
            2: "kidney-right",
            3: "kidney-left",
            6: "liver",
            11: "pancreas",
        },
        names=_NAMES,
    ),
    LabelMap(
        name="flare22",
        source=_source(
            "JunMa11/FLARE",
            "be3eb6fcfb70c17d44be4192506c88795662dea6",
            "FLARE22/Evaluation/FLARE22_DSC_NSD_Eval.py",
        ),
        numbers={
            1: "liver",
            2: "kidney-right",
            3: "spleen",
            4: "pancreas",
            13: "kidney-left",
        },
        names=_NAMES,
    ),
    LabelMap(
        name="word",
        source=_source(
            "constantinpape/torch-em",
            "9601dcb1e2e7f1f8564e51a9777b1fbcf6801830",
            "torch_em/data/datasets/medical/word.py",
        ),
        numbers={
            1: "liver",
            2: "spleen",
            3: "kidney-left",
            4: "kidney-right",
            8: "pancreas",
            14: "bladder",
            15: "femur-left",
            16: "femur-right",
        },
        names=_NAMES,
    ),
    # Lungs (3) and kidneys (4) have no side.
    LabelMap(
        name="ct-org",
        source=_source(
            "constantinpape/torch-em",
            "5f96049b75e4346dc50cc021f6f8ab07b75fbbfc",
            "torch_em/data/datasets/medical/ct_org.py",
        ),
        numbers={1: "liver", 2: "bladder"},
        names=_NAMES,
    ),
    # 2 is a tumor of the liver, so it is a part of it.
    LabelMap(
        name="lits",
        source=_source(
            "MIC-DKFZ/nnUNet",
            "9a34c56209db67e90e2948830ebddd0743ed0355",
            "nnunet/dataset_conversion/Task029_LiverTumorSegmentationChallenge.py",
        ),
        numbers={1: "liver", 2: "liver"},
        names=_NAMES,
    ),
    # Version 1.0 has the first nine numbers only. Its combined_labels.nii.gz and its directory segmentations are read.
    LabelMap(
        name="abdomenatlas",
        source=_source(
            "MIC-DKFZ/nnUNet",
            "4bfd07710dd121aa04dfcf64a677e8597b0b73af",
            "nnunetv2/dataset_conversion/Dataset023_AbdomenAtlas1_1Mini.py",
        ),
        numbers={
            3: "kidney-left",
            4: "kidney-right",
            5: "liver",
            6: "pancreas",
            8: "spleen",
            12: "bladder",
            17: "femur-left",
            18: "femur-right",
            21: "lung-left",
            22: "lung-right",
        },
        names=_NAMES,
    ),
    # Tasks 3, 7 and 9 of the Medical Segmentation Decathlon. 2 is a tumor.
    LabelMap(
        name="msd-liver",
        source="https://medicaldecathlon.com, dataset.json of Task03_Liver",
        numbers={1: "liver", 2: "liver"},
        names=_NAMES,
    ),
    LabelMap(
        name="msd-pancreas",
        source=_source(
            "Project-MONAI/model-zoo",
            "12f4b0e89d5d44580aebf1d3f77c71da531115a5",
            "models/pancreas_ct_dints_segmentation/configs/metadata.json",
        ),
        numbers={1: "pancreas", 2: "pancreas"},
        names=_NAMES,
    ),
    LabelMap(
        name="msd-spleen",
        source=_source(
            "Project-MONAI/model-zoo",
            "0524f9e04fb22a9723d784ba3b9ae315e204ad77",
            "models/spleen_ct_segmentation/configs/metadata.json",
        ),
        numbers={1: "spleen"},
        names=_NAMES,
    ),
)

LABEL_MAPS: Mapping[str, LabelMap] = {row.name: row for row in _ROWS}


def label_map(labels: str) -> LabelMap:
    """Return a label map.

    Args:
        labels: A name in LABEL_MAPS, or the path of a CSV file with lines `number or name,class`.

    Raises:
        InputError: If there is no such map, or a line of the file is wrong.
    """
    if not isinstance(labels, (str, os.PathLike)):
        raise InputError("labels: expected a name or the path of a CSV file")
    labels = os.fspath(labels)
    row = LABEL_MAPS.get(labels.lower())
    if row is not None:
        return row
    if not os.path.isfile(labels):
        raise InputError(
            f"labels {short_repr(labels)}: no such label map or CSV file; expected {', '.join(LABEL_MAPS)}"
        )
    return _from_csv(labels)


def _from_csv(path: str) -> LabelMap:
    numbers: dict[int, str] = {}
    names: dict[frozenset[str], str] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read(CSV_LIMIT + 1)
        if len(text) > CSV_LIMIT:
            raise InputError(f"labels {short_repr(path)}: larger than {CSV_LIMIT:,} bytes")
        rows = list(csv.reader(text.splitlines()))
    except UnicodeDecodeError as e:
        raise InputError(f"labels {short_repr(path)}: not UTF-8; save the CSV file as UTF-8") from e
    except (OSError, csv.Error) as e:
        raise InputError(f"labels {short_repr(path)}: cannot be read ({file_reason(e)})") from e
    for line, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or cells[0].startswith("#"):
            continue
        if len(cells) != 2 or not all(cells):
            raise InputError(
                f"labels {short_repr(path)}, line {line}: expected number_or_name,class,"
                f" found {short_repr(one_line(','.join(row)))}"
            )
        key, organ = cells
        if line == 1 and organ.lower() == "class":
            continue
        known = numbers if key.isascii() and key.isdigit() else names
        value: int | frozenset[str] = int(key[:9]) if known is numbers else words(key)
        organ = _NAMES.get(words(organ), organ)
        if known.setdefault(value, organ) != organ:  # type: ignore[arg-type]
            raise InputError(
                f"labels {short_repr(path)}, line {line}: {short_repr(key)} has two classes; keep one line"
            )
    if not numbers and not names:
        raise InputError(
            f"labels {short_repr(path)}: the file is empty; expected number_or_name,class"
        )
    return LabelMap(path, path, numbers, names)
