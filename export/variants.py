"""The variants of a member in a bundle: rewritten float32, int8 and fp16, each measured on validation.

An int8 or fp16 variant is accepted only if its validation accuracy is at most a little lower, and that of its orientation
if the network has one. The variant for CPUs is listed first: int8 if it is accepted, else fp32. The others are its
alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx

from export.machine import machine_failure
from export.member import (
    BATCH,
    ExportError,
    accepted_difference,
    check_logits,
    check_orientation,
    open_session,
    output_names,
    why_no_orientation,
)
from export.quantize import to_fp16, to_int8
from export.rewrite import rewrite

# training slices that determine the ranges of int8 activations
INT8_SAMPLES = 512


class _NotFinite(ExportError):
    """A variant returns NaN, infinity or an orientation without probabilities, as it would again."""


@dataclass(frozen=True)
class Slices:
    """The slices that variants are converted, measured and calibrated with.

    Attributes:
        train: uint8 (N, H, W), training slices.
        val: uint8 (N, H, W), validation slices.
        labels: int (N,), the labels of `val`.
        size: Height and width of the networks' input, pixels.
        fitted_on: Slices, uint8 (N, H, W), and labels, int (N,), that the temperature is fitted on. None: `val`.
        resample: How slices of another size are resampled, see `pack`.
    """

    train: np.ndarray
    val: np.ndarray
    labels: np.ndarray
    size: int
    fitted_on: tuple[np.ndarray, np.ndarray] | None = None
    resample: str = "area"

    def int8_samples(self) -> np.ndarray:
        """Pack training slices, evenly spaced over the split.

        Returns:
            float32 (N, 1, S, S), with N at most INT8_SAMPLES.
        """
        from organ_infer._packing import pack

        step = max(1, len(self.train) // INT8_SAMPLES)
        return pack(self.train[::step][:INT8_SAMPLES], self.size, resample=self.resample)

    def turned(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the validation slices in eight orientations, each slice in one of them.

        Returns:
            uint8 (N, H, W), and the column of the orientation that is right for each, int (N,).
        """
        images = self.val.copy()
        columns = np.arange(len(images)) % 8
        for column in range(1, 8):
            part = images[column::8]
            rows, lines = (slice(None, None, -1 if column & bit else 1) for bit in (1, 2))
            part = part[:, rows, lines]
            images[column::8] = part.swapaxes(1, 2) if column & 4 else part
        return images, columns


@dataclass(frozen=True)
class Precision:
    """One row of the table of precisions.

    Attributes:
        name: In manifests and on the command line. The runtime has a row of the same name
            (`organ_infer.bundle.precision`).
        file_suffix: The part of file names between the stage and `.onnx`.
        convert: Converts the rewritten float32 graph to this precision. None for float32 itself.
        max_accuracy_loss: The largest loss of validation accuracy against float32 that is accepted.
        max_orientation_loss: The largest loss of the share of turned validation slices whose orientation is right.
        value_bytes: Of one weight in the file.
        preferred_on_cpu: Whether an accepted variant is listed before float32.
    """

    name: str
    file_suffix: str
    convert: Callable[[onnx.ModelProto, Slices], onnx.ModelProto] | None
    max_accuracy_loss: float
    value_bytes: int
    preferred_on_cpu: bool = False
    max_orientation_loss: float = 0.01


PRECISIONS = {
    row.name: row
    for row in (
        Precision(
            "int8",
            ".int8",
            lambda model, slices: to_int8(model, slices.int8_samples()),
            max_accuracy_loss=0.002,
            value_bytes=1,
            preferred_on_cpu=True,
        ),
        Precision("fp32", "", None, max_accuracy_loss=0.0, value_bytes=4),
        Precision(
            "fp16",
            ".fp16",
            lambda model, _: to_fp16(model),
            max_accuracy_loss=0.002,
            value_bytes=2,
        ),
    )
}


@dataclass(frozen=True)
class Variant:
    """One variant of a member, with the logits that onnxruntime computes.

    Attributes:
        precision: The name of its precision.
        content: The ONNX file.
        logits: float32 (N, classes), of the validation slices.
        val_accuracy: On the validation slices.
        fitting_logits: float32 (N, classes), of the slices that the temperature is fitted on. None for a variant that
            is never listed first.
        orientation: float32 (N, 9), of the validation slices. None if the network does not know when not to answer.
        orientation_accuracy: The share of turned validation slices whose most probable orientation is right. None if
            there is no orientation.
    """

    precision: str
    content: bytes
    logits: np.ndarray
    val_accuracy: float
    fitting_logits: np.ndarray | None = None
    orientation: np.ndarray | None = None
    orientation_accuracy: float | None = None


def make_variants(
    stage: str,
    model: onnx.ModelProto,
    slices: Slices,
    precisions: Sequence[str] = tuple(PRECISIONS),
    *,
    report: Callable[[str], None] = print,
    failed: Callable[[str], None] = lambda precision: None,
) -> list[Variant]:
    """Convert an exported member to each precision and keep the accepted variants.

    Args:
        stage: The member's name, for messages.
        model: `images` float32 (N, 1, S, S) to `logits` (N, classes) and perhaps `orientation` (N, 9), as export.member
            writes it.
        slices: What the variants are converted and measured with.
        precisions: Names of the precisions to try. fp32 is always included.
        report: Called with one line per variant tried, accepted or not.
        failed: Called with each precision whose conversion failed, so that nothing is known of its accuracy.

    Returns:
        The accepted variants, the one for CPUs first.

    Raises:
        ExportError: The rewritten graph differs from the exported one, or the machine does not allow a conversion: a full
            disk, no permission, too little memory.
    """
    rewritten = rewrite(model)
    exact = _exact_variant(stage, model, rewritten, slices)
    preferred: list[Variant] = []
    others: list[Variant] = []
    for row in PRECISIONS.values():
        if row.convert is None or row.name not in precisions:
            continue
        variant = _converted_variant(stage, row, rewritten, slices, report, failed)
        if variant is not None and _is_accepted(stage, row, variant, exact, report):
            (preferred if row.preferred_on_cpu else others).append(variant)
    return [*preferred, exact, *others]


def _exact_variant(
    stage: str, model: onnx.ModelProto, rewritten: onnx.ModelProto, slices: Slices
) -> Variant:
    """Measure the rewritten float32 graph. Raises ExportError if it differs from the exported one."""
    expected = outputs_of(model.SerializeToString(), slices.val, slices.size, slices.resample)
    content = rewritten.SerializeToString()
    outputs, fitting_logits = _validation_and_fitting(content, slices)
    accepted = accepted_difference(expected.logits)
    check_logits(expected.logits, outputs.logits, name=f"{stage} rewritten", accepted=accepted)
    first = outputs_of(content, slices.val[:1], slices.size, slices.resample)
    check_logits(
        expected.logits[:1],
        first.logits,
        name=f"{stage} rewritten, at batch 1",
        accepted=accepted,
    )
    if expected.orientation is not None:
        assert outputs.orientation is not None and first.orientation is not None
        check_orientation(expected.orientation, outputs.orientation, name=f"{stage} rewritten")
        check_orientation(
            expected.orientation[:1], first.orientation, name=f"{stage} rewritten, at batch 1"
        )
    return _variant("fp32", content, outputs, fitting_logits, slices)


def _converted_variant(
    stage: str,
    row: Precision,
    rewritten: onnx.ModelProto,
    slices: Slices,
    report: Callable[[str], None],
    failed: Callable[[str], None],
) -> Variant | None:
    """Convert the graph to another precision and measure it.

    Returns:
        The variant, or None if it cannot be converted or run.

    Raises:
        ExportError: It failed because of the machine, so that it may succeed later.
    """
    assert row.convert is not None
    fitting_logits = None
    try:
        content = row.convert(rewritten, slices).SerializeToString()
        if row.preferred_on_cpu:
            outputs, fitting_logits = _validation_and_fitting(content, slices)
        else:
            outputs = outputs_of(content, slices.val, slices.size, slices.resample)
        return _variant(row.name, content, outputs, fitting_logits, slices)
    # the errors of onnx's and onnxruntime's tools share no base class
    except Exception as e:
        if reason := machine_failure(e):
            raise ExportError(
                f"{stage}: no {row.name} variant ({reason}); make room in the temporary directory and in memory, or set"
                " TMPDIR, and rerun the command"
            ) from e
        report(f"{stage}: no {row.name} variant: {' '.join(str(e).split())[:200]}")
        if not isinstance(e, _NotFinite):
            failed(row.name)
        return None


def _variant(
    precision: str,
    content: bytes,
    outputs: Outputs,
    fitting_logits: np.ndarray | None,
    slices: Slices,
) -> Variant:
    """Measure a graph by its outputs for the validation slices. Raises _NotFinite if they are none."""
    accuracy = _accuracy(outputs, slices.labels)
    orientation_accuracy = None
    if outputs.orientation is not None:
        images, columns = slices.turned()
        turned = outputs_of(content, images, slices.size, slices.resample).orientation
        assert turned is not None
        orientation_accuracy = float((turned.argmax(1) == columns).mean())
    return Variant(
        precision,
        content,
        outputs.logits,
        accuracy,
        fitting_logits,
        outputs.orientation,
        orientation_accuracy,
    )


def _is_accepted(
    stage: str, row: Precision, variant: Variant, exact: Variant, report: Callable[[str], None]
) -> bool:
    """Return whether a variant loses little enough accuracy, and report it."""
    # rounded, because 1 - 0.998 is more than 0.002 in floating point
    loss = round(exact.val_accuracy - variant.val_accuracy, 9)
    accepted = loss <= row.max_accuracy_loss
    orientation = ""
    if variant.orientation_accuracy is not None and exact.orientation_accuracy is not None:
        lost = round(exact.orientation_accuracy - variant.orientation_accuracy, 9)
        accepted = accepted and lost <= row.max_orientation_loss
        orientation = (
            f"; right orientation of turned slices {variant.orientation_accuracy:.4f}, fp32"
            f" {exact.orientation_accuracy:.4f}"
        )
    verdict = "accepted" if accepted else "not accepted"
    report(
        f"{stage}: {row.name} {verdict}, validation accuracy {variant.val_accuracy:.4f}, "
        f"fp32 {exact.val_accuracy:.4f}{orientation}"
    )
    return accepted


class Outputs(NamedTuple):
    """What a graph returns.

    Attributes:
        logits: float32 (N, classes).
        orientation: float32 (N, 9), or None if the graph has no such output.
    """

    logits: np.ndarray
    orientation: np.ndarray | None = None


def _validation_and_fitting(content: bytes, slices: Slices) -> tuple[Outputs, np.ndarray]:
    """Return the outputs for the validation slices, and the logits of the slices that the temperature is fitted on."""
    if slices.fitted_on is None:
        outputs = outputs_of(content, slices.val, slices.size, slices.resample)
        return outputs, outputs.logits
    images, count = np.concatenate([slices.val, slices.fitted_on[0]]), len(slices.val)
    logits, orientation = outputs_of(content, images, slices.size, slices.resample)
    validation = Outputs(logits[:count], None if orientation is None else orientation[:count])
    return validation, logits[count:]


def logits_of(content: bytes, images: np.ndarray, size: int, resample: str = "area") -> np.ndarray:
    """Run a graph with onnxruntime, as `outputs_of`, and return its logits, float32 (N, classes)."""
    return outputs_of(content, images, size, resample).logits


def outputs_of(content: bytes, images: np.ndarray, size: int, resample: str = "area") -> Outputs:
    """Run a graph with onnxruntime.

    Args:
        content: The ONNX file.
        images: uint8 (N, H, W).
        size: Height and width of the graph's input, pixels.
        resample: How slices of another size are resampled, see `pack`.

    Returns:
        Its outputs.
    """
    from organ_infer._packing import pack

    session = open_session(content)
    names = output_names(session)
    batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    parts = [
        session.run(names, {"images": pack(batch, size, resample=resample)}) for batch in batches
    ]
    return Outputs(*map(np.concatenate, zip(*parts, strict=True)))


def _accuracy(outputs: Outputs, labels: np.ndarray) -> float:
    if not np.isfinite(outputs.logits).all():
        raise _NotFinite("it returns NaN or infinite logits")
    if outputs.orientation is not None and (problem := why_no_orientation(outputs.orientation)):
        raise _NotFinite(f"its orientation {problem}")
    return float((outputs.logits.argmax(1) == labels).mean())
