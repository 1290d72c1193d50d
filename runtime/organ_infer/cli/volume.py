"""organ-infer volume: classifies the organs of a scan that a mask outlines, and writes the rows."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from ..errors import InputError, shorten_names
from ..names import escape_path
from ..plausibility import without_plausibility
from .exit_codes import ALL_CLASSIFIED
from .model import open_classifier, packaged_model_note
from .output import RowBuffer, Writer
from .progress import Messages, library_messages
from .signals import Signals
from .summary import organ_summary
from .volume_arguments import VolumeOptions
from .volume_rows import VOLUME_FORMATS, VolumeFormat

if TYPE_CHECKING:
    from ..results import OrganPrediction
    from ..volumes.boxes import Units
    from ..volumes.crops import Slices
    from ..volumes.types import Mask, Volume

__all__ = ["classify_volume"]

# Seconds that rows may wait to be written together with later ones.
DELAY = 0.2
# Characters of a list of structures.
NAMES_LIMIT = 300


def classify_volume(
    options: VolumeOptions, messages: Messages, writer: Writer, signals: Signals
) -> int:
    """Classify the organs of a scan and write their rows.

    Returns:
        The exit code.

    Raises:
        OrganInferError: The model, the scan or the mask cannot be opened, or the mask outlines no organ.
        OutputError: The results cannot be written.
        ClosedPipe: The reader of standard output has closed it.
    """
    with library_messages(messages), open_classifier(options) as classifier:
        if options.bundle is None and messages.terminal:
            manifest = classifier.manifest
            messages.note(packaged_model_note(manifest.name, manifest.task))
        volume, mask = _open(options, messages)
        messages.stage("cutting crops around the organs")
        organs = classifier.predict_volume(
            volume,
            mask,
            margin_mm=options.margin,
            slices=cast("Slices", options.slices),
            on_progress=partial(_show_progress, messages),
        )
        # The rows may go to the same terminal.
        messages.end()
        if not organs:
            raise InputError(
                f"{escape_path(_outlines(options), one_line=True)}: every structure is empty; check that the mask"
                " belongs to the scan"
            )
        classified = {organ.expected for organ in organs}
        empty = [name for name in mask if name not in classified]
        _note_names(options, "classes without voxels, skipped", empty, messages)
        for warning in organs.warnings:
            messages.warning(f"{escape_path(options.scan, one_line=True)}: {warning}")
        row_format = VOLUME_FORMATS[options.format](
            options.scan, classifier.classes, classifier.manifest.plausibility is not None
        )
        _write_rows(
            organs, row_format, RowBuffer(writer, row_format.header, DELAY), messages, signals
        )
        signals.check()
        if end := row_format.end():
            writer.write(end)
        writer.finish()
        if messages.terminal:
            messages.status(organ_summary(organs, messages.seconds))
        return ALL_CLASSIFIED


def _show_progress(messages: Messages, done: int, total: int) -> None:
    if done == 0:
        messages.start_progress()
    messages.progress(done, 0, total, "slices")


def _open(options: VolumeOptions, messages: Messages) -> "tuple[Volume, Mask]":
    """Open the scan and its mask, and note what is remarkable about them."""
    # Here, because the readers load libraries.
    from ..volumes.boxes import open_boxes
    from ..volumes.reading import open_mask, open_volume

    messages.stage(f"reading {escape_path(options.scan, one_line=True)}")
    volume = open_volume(options.scan, series=options.series)
    messages.stage(f"reading {escape_path(_outlines(options), one_line=True)}")
    mask: Mask
    if options.boxes is not None:
        units = cast("Units", options.box_units)
        mask = open_boxes(options.boxes, like=volume, labels=options.labels, units=units)
    else:
        assert options.mask is not None
        mask = open_mask(
            options.mask, like=volume, labels=options.labels, resample=options.resample_mask
        )
    for path, warnings in ((options.scan, volume.warnings), (_outlines(options), mask.warnings)):
        for warning in warnings:
            messages.warning(f"{escape_path(path, one_line=True)}: {warning}")
    _note_names(options, "structures of no class, not classified", mask.unmapped, messages)
    return volume, mask


def _outlines(options: VolumeOptions) -> str:
    """The path of the mask, or of the boxes."""
    return options.mask or options.boxes or ""


def _note_names(
    options: VolumeOptions, what: str, names: Sequence[str], messages: Messages
) -> None:
    """Note names of the mask's structures on one line, if there are any."""
    if names:
        path = escape_path(_outlines(options), one_line=True)
        messages.note(f"{path}: {what}: {shorten_names(names, NAMES_LIMIT)}")


def _write_rows(
    organs: "list[OrganPrediction]",
    row_format: VolumeFormat,
    rows: RowBuffer,
    messages: Messages,
    signals: Signals,
) -> None:
    """Write the rows. Formats whose rows have no warnings get them on standard error, each once per organ."""
    try:
        for organ in organs:
            if not row_format.has_warnings:
                _note_warnings(organ, messages)
            if rows.add(row_format.rows(organ)):
                signals.check()
    except BaseException:
        rows.flush_results()
        raise
    rows.flush()


def _note_warnings(organ: "OrganPrediction", messages: Messages) -> None:
    """Write the warnings of an organ, and those of its slices: one line per kind, not one per slice."""
    for warning in organ.warnings:
        messages.warning(f"{organ.expected}: {warning}")
    slices: dict[str, list[int]] = {}
    for result in organ.slices:
        for warning in result.prediction.warnings:
            if warning not in organ.warnings:
                slices.setdefault(without_plausibility(warning), []).append(result.index)
    for warning, indices in slices.items():
        where = (
            f"slice {indices[0]}"
            if len(indices) == 1
            else f"{len(indices)} of {len(organ.slices)} slices"
        )
        messages.warning(f"{organ.expected}, {where}: {warning}")
