"""One line of results.jsonl per scan: what an audit found out about it, or why it failed."""

import base64
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import escape_bytes
from ..names import escape_path, unescape_path
from ..page.pictures import png
from .pairs import Pair
from .types import AuditedOrgan, Finding, Picture, ScanAudit

__all__ = [
    "Record",
    "RunIdentity",
    "StoredPicture",
    "read_record",
    "record_line",
    "stored_pictures",
]


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What all results of one directory have in common. Another value of these would give other results.

    Attributes:
        version: Of organ-infer.
        model: Name of the model. It says if only one network of several is used.
        sha256: Of the bundle's manifest, which lists all other files.
        dataset: The data set that the model was trained on.
        view: The plane of its slices.
        margin_mm: Margin around each organ.
        tta: Whether test-time augmentation is used.
    """

    version: str
    model: str
    sha256: str
    dataset: str
    view: str
    margin_mm: float
    tta: bool

    def difference(self, other: "RunIdentity") -> str | None:
        """Return what differs from an earlier run, as in `--margin 3, now 5`, or None."""
        if self.version != other.version:
            return f"organ-infer {other.version}, now {self.version}"
        if self.sha256 != other.sha256:
            return f"the model {other.model} (sha256 {other.sha256[:12]}...), now {self.model} ({self.sha256[:12]}...)"
        if self.model != other.model:
            return f"the model {other.model}, now {self.model}"
        if self.margin_mm != other.margin_mm:
            return f"--margin {other.margin_mm:g}, now {self.margin_mm:g}"
        if self.tta != other.tta:
            return f"{_tta_text(other.tta)}, now {_tta_text(self.tta)}"
        return None


def _tta_text(tta: bool) -> str:
    return "--tta" if tta else "no --tta"


@dataclass(frozen=True, slots=True)
class Record:
    """The result for one pair.

    Attributes:
        pair: The scan and its mask.
        key: `Pair.key` before the scan was read.
        audit: What was found out, or None if the scan failed. Findings read from a file have no pictures.
        error: Why the scan failed, or None.
    """

    pair: Pair
    key: str
    audit: ScanAudit | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture of a finding as it is in results.jsonl. The attributes are those of `Picture`, and a PNG in base64."""

    organ: str
    index: int
    position: float
    label: str
    probability: float
    width: int
    height: int
    png: str


def record_line(record: Record) -> str:
    """Return the line of a record, with its newline."""
    pair, audit = record.pair, record.audit
    row: dict[str, Any] = {
        "row": "scan",
        "scan": escape_path(pair.scan),
        "mask": escape_path(pair.mask),
        "labels": escape_path(pair.labels),
        "key": record.key,
        "error": None if record.error is None else escape_bytes(record.error),
    }
    if audit is not None:
        row["organs"] = [_organ_row(organ) for organ in audit.organs]
        row["findings"] = [_finding_row(finding) for finding in audit.findings]
        row["unmapped"] = _texts(audit.unmapped)
        row["warnings"] = _texts(audit.warnings)
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def read_record(row: Mapping[str, Any]) -> Record:
    """Return the record of a line, without the pixels of its pictures.

    Raises:
        KeyError, TypeError, ValueError: The line is not one of `record_line`.
    """
    scan, mask, labels = (unescape_path(row[name]) for name in ("scan", "mask", "labels"))
    pair, key = Pair(scan, mask, labels), str(row["key"])
    if row["error"] is not None:
        return Record(pair, key, error=str(row["error"]))
    organs = tuple(
        AuditedOrgan(
            **organ
            | {"structures": tuple(organ["structures"]), "warnings": tuple(organ["warnings"])}
        )
        for organ in row["organs"]
    )
    findings = tuple(
        Finding(**finding | {"organs": tuple(finding["organs"]), "pictures": ()})
        for finding in row["findings"]
    )
    return Record(
        pair,
        key,
        ScanAudit(scan, mask, organs, findings, tuple(row["unmapped"]), tuple(row["warnings"])),
    )


def stored_pictures(line: str) -> list[list[StoredPicture]]:
    """Return the pictures of each finding of a line."""
    return [
        [StoredPicture(**picture) for picture in finding["pictures"]]
        for finding in json.loads(line)["findings"]
    ]


def _organ_row(organ: AuditedOrgan) -> dict[str, Any]:
    return asdict(organ) | {
        "expected": escape_bytes(organ.expected),
        "label": escape_bytes(organ.label),
        "structures": _texts(organ.structures),
        "probability": _number(organ.probability),
        "expected_probability": _number(organ.expected_probability),
        "agrees": bool(organ.agrees),
        "slices": int(organ.slices),
        "volume_ml": _number(organ.volume_ml),
        "median_hu": _number(organ.median_hu),
        "warnings": _texts(organ.warnings),
    }


def _finding_row(finding: Finding) -> dict[str, Any]:
    return {
        "kind": escape_bytes(finding.kind),
        "message": escape_bytes(finding.message),
        "evidence": _number(finding.evidence),
        "organs": _texts(finding.organs),
        "numbers": {escape_bytes(name): _value(value) for name, value in finding.numbers.items()},
        "pictures": [_picture_row(picture) for picture in finding.pictures],
    }


def _picture_row(picture: Picture) -> dict[str, Any]:
    height, width = picture.pixels.shape
    return {
        "organ": escape_bytes(picture.organ),
        "index": int(picture.index),
        "position": _number(picture.position),
        "label": escape_bytes(picture.label),
        "probability": _number(picture.probability),
        "width": width,
        "height": height,
        "png": base64.b64encode(png(np.ascontiguousarray(picture.pixels, np.uint8))).decode(
            "ascii"
        ),
    }


def _texts(values: Sequence[str]) -> list[str]:
    return list(map(escape_bytes, values))


def _value(value: object) -> float | int | str:
    if isinstance(value, str):
        return escape_bytes(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    number = float(value)  # type: ignore[arg-type]
    # JSON has no such numbers
    return _number(number) if math.isfinite(number) else str(number)


def _number(value: float) -> float:
    """Return nine significant digits. JSON has neither NaN, which becomes 0, nor infinity."""
    if math.isnan(value):
        return 0.0
    largest = sys.float_info.max
    return (
        float(f"{min(max(float(value), -largest), largest):.9g}")
        if math.isfinite(value)
        else (math.copysign(largest, value))
    )
