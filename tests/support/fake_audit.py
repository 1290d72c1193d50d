"""A fake of `audit_scan`: the findings depend on the name of the scan."""

import os
import sys
from types import ModuleType

import numpy as np

from organ_infer.audit import AuditedOrgan, Finding, Picture, ScanAudit
from organ_infer.errors import DeviceError, ImageError

SWAPPED = "labels swapped: kidney-left <-> kidney-right"


def picture(organ="kidney-left", label="kidney-right", side=40, index=7):
    """A slice with a gradient."""
    pixels = np.linspace(0, 255, side * (side + 8)).astype(np.uint8).reshape(side, side + 8)
    return Picture(organ, index, -45.25, label, 0.93, pixels)


def organ(expected="kidney-left", label="kidney-left", **changes):
    """An audited organ."""
    values = {
        "structures": ("3",),
        "probability": 0.9,
        "expected_probability": 0.05 if expected != label else 0.9,
        "agrees": expected == label,
        "slices": 12,
        "volume_ml": 151.5,
        "median_hu": 31.0,
    }
    return AuditedOrgan(expected=expected, label=label, **values | changes)


def finding(evidence=12.5, kind="labels swapped", message=SWAPPED, **changes):
    """A finding with two pictures."""
    values = {
        "organs": ("kidney-left", "kidney-right"),
        "numbers": {"log likelihood as it is": -20.0, "log likelihood swapped": -7.5},
        "pictures": (picture(), picture("kidney-right", "kidney-left", index=9)),
    }
    return Finding(kind, message, evidence, **values | changes)


class FakeScan(ModuleType):
    """The module `organ_infer.audit.scan`.

    A scan whose name contains "swapped" has a finding, its number is the evidence. "bad", "device" and "bug" raise.

    Attributes:
        asked: Names of the scans, in order.
        before: Called with each name before anything else.
        others: The names of other label maps that were offered, by scan, if `asks_others`.
    """

    def __init__(self):
        super().__init__("organ_infer.audit.scan")
        self.asked = []
        self.margins = []
        self.before = lambda name: None
        self.asks_others = False
        self.others = {}

    def audit_scan(self, classifier, volume, mask, *, other_masks=None, margin_mm=5.0):
        name = os.path.basename(volume.source)
        self.before(name)
        self.asked.append(name)
        self.margins.append(margin_mm)
        if "bad" in name:
            raise ImageError(f"{volume.source}: the scan is bad")
        if "device" in name:
            raise DeviceError("the GPU is gone")
        if "bug" in name:
            raise ZeroDivisionError("a\nbug")
        if self.asks_others:
            self.others[name] = {key: list(other) for key, other in other_masks().items()}
        findings = ()
        if "swapped" in name:
            number = float("".join(filter(str.isdigit, name.split(".")[0])) or 12.5)
            findings = (finding(number),)
        answer = "kidney-right" if findings else "kidney-left"
        return ScanAudit(
            scan=volume.source,
            mask=mask.source,
            organs=(organ("liver", "liver"), organ(label=answer)),
            findings=findings,
            unmapped=mask.unmapped,
            warnings=(*volume.warnings, *mask.warnings),
        )


def install(monkeypatch):
    """Put the fake in the place of the module."""
    import organ_infer.audit

    fake = FakeScan()
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(organ_infer.audit, "scan", fake, raising=False)
    return fake
