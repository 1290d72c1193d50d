"""The forms of a member that a bundle carries, each verified on validation: rewritten float32, int8, fp16.

A form of fewer bits is accepted only where validation accuracy falls by at most MOST_LOST. Where int8 is accepted it is
the form that is listed, else fp32; the others are its alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from export.member import BATCH, ExportError, check_logits, open_session
from export.quantize import to_fp16, to_int8
from export.rewrite import rewrite

MOST_LOST = 0.002  # of validation accuracy, by a form of fewer bits
CALIBRATION = 512  # training slices
PRECISIONS = ("int8", "fp32", "fp16")


@dataclass(frozen=True)
class Slices:
    """What forms are made and judged with: uint8 (N, H, W) training slices, validation slices and their labels, the
    size of the networks' input, and the slices and labels that the temperature is fitted on, validation where None."""

    train: np.ndarray
    val: np.ndarray
    labels: np.ndarray
    size: int
    fitted_on: tuple[np.ndarray, np.ndarray] | None = None

    def calibration(self) -> np.ndarray:
        """float32 (N, 1, S, S): training slices spread evenly over the split, packed."""
        from organ_infer._packing import pack

        step = max(1, len(self.train) // CALIBRATION)
        return pack(self.train[::step][:CALIBRATION], self.size)


@dataclass(frozen=True)
class Form:
    """One form of a member: its graph, and its logits (N, classes) and accuracy on validation, through onnxruntime;
    `fitting`: its logits of what the temperature is fitted on, where it may be the form that is listed."""

    precision: str
    content: bytes
    logits: np.ndarray
    val_accuracy: float
    fitting: np.ndarray | None = None


def forms_of(
    stage: str,
    plain: onnx.ModelProto,
    slices: Slices,
    precisions: Sequence[str] = PRECISIONS,
    *,
    say: Callable[[str], None] = print,
) -> list[Form]:
    """The forms of an exported member, the one to list first; fp32 is always among them. Raises ExportError where the
    rewritten graph is not the network; a form that is not accepted, or cannot be made, is told and left out."""
    expected = logits_of(plain.SerializeToString(), slices.val, slices.size)
    rewritten = rewrite(plain)
    content = rewritten.SerializeToString()
    found, fitting = _asked(content, slices)
    check_logits(expected, found, name=f"{stage} rewritten")
    alone = logits_of(content, slices.val[:1], slices.size)
    check_logits(expected[:1], alone, name=f"{stage} rewritten, at batch 1")
    exact = Form("fp32", content, found, _accuracy(found, slices.labels), fitting)
    makers: dict[str, Callable[[], onnx.ModelProto]] = {
        "int8": lambda: to_int8(rewritten, slices.calibration()),
        "fp16": lambda: to_fp16(rewritten),
    }
    accepted = {}
    for precision, make in makers.items():
        if precision not in precisions:
            continue
        try:
            content = make().SerializeToString()
            if precision == "int8":
                found, fitting = _asked(content, slices)
            else:
                found, fitting = logits_of(content, slices.val, slices.size), None
            accuracy = _accuracy(found, slices.labels)
        except Exception as e:  # onnx's and onnxruntime's tools share no base class
            say(f"{stage}: no {precision} form: {' '.join(str(e).split())[:200]}")
            continue
        # 1 - 0.998 is more than 0.002 in floating point
        lost = round(exact.val_accuracy - accuracy, 9)
        verdict = "accepted" if lost <= MOST_LOST else "not accepted"
        say(
            f"{stage}: {precision} {verdict}, validation accuracy {accuracy:.4f}, fp32 {exact.val_accuracy:.4f}"
        )
        if lost <= MOST_LOST:
            accepted[precision] = Form(precision, content, found, accuracy, fitting)
    listed = [accepted.pop("int8")] if "int8" in accepted else []
    return [*listed, exact, *accepted.values()]


def _asked(content: bytes, slices: Slices) -> tuple[np.ndarray, np.ndarray]:
    """A graph's logits on validation, and of what the temperature is fitted on, by one session."""
    if slices.fitted_on is None:
        found = logits_of(content, slices.val, slices.size)
        return found, found
    found = logits_of(content, np.concatenate([slices.val, slices.fitted_on[0]]), slices.size)
    return found[: len(slices.val)], found[len(slices.val) :]


def logits_of(content: bytes, images: np.ndarray, size: int) -> np.ndarray:
    """A graph's logits, float32 (N, classes), of uint8 (N, H, W)."""
    from organ_infer._packing import pack

    session = open_session(content)
    parts = [
        session.run(["logits"], {"images": pack(images[start : start + BATCH], size)})[0]
        for start in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts)


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    if not np.isfinite(logits).all():
        raise ExportError("it gives NaN or infinite logits")
    return float((logits.argmax(1) == labels).mean())
