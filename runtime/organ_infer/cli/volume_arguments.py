"""The arguments of organ-infer volume. Nothing heavy is imported here, so that --help answers at once."""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import short_repr
from .arguments import _add_model_arguments, _check_binary, _format_of_output
from .scan_arguments import (
    ScanParser,
    add_general_arguments,
    add_labels_argument,
    add_margin_argument,
    resolve_bundle,
)
from .volume_rows import VOLUME_FORMATS

__all__ = ["VolumeOptions", "build_volume_parser", "parse_volume"]

_SUFFIXES = ".csv, .jsonl, .parquet or .txt"
_HINT = "for images in a directory named volume, write ./volume"


class VolumeOptions(NamedTuple):
    """The parsed arguments of organ-infer volume."""

    scan: str
    mask: str | None
    boxes: str | None
    box_units: str
    resample_mask: bool
    labels: str
    series: str | None
    margin: float | None
    slices: str
    bundle: str | None
    device: str
    threads: int | None
    batch_size: int
    tta: bool
    fast: bool
    cuda_graphs: bool
    format: str
    output: str | None
    force: bool
    quiet: bool
    # Volumes are oriented by their affine.
    orientation: None = None


def parse_volume(arguments: Sequence[str]) -> VolumeOptions:
    """Parse the arguments after `volume`.

    Raises:
        UsageError: The arguments are not valid.
        SystemExit: After --help.
    """
    parser = build_volume_parser()
    values = vars(parser.parse_args(list(arguments)))
    scans = values.pop("scans")
    if len(scans) != 1:
        has_no_mask = values["mask"] is None and values["boxes"] is None
        advice = "name the mask after --mask" if len(scans) == 2 and has_no_mask else _HINT
        parser.error(f"expected one scan, found {len(scans)}; {advice}")
    if values["mask"] is None and values["boxes"] is None:
        parser.error(
            f"--mask: missing; name the mask whose organs are to be classified, or boxes with --boxes, or {_HINT}"
        )
    _check_boxes(parser, values)
    parser.refuse_empty(values, "mask", "boxes", "labels", "series", "bundle", "output")
    if scans[0] == "":
        parser.error("SCAN: the value is empty")
    if values["format"] is None:
        name = _format_of_output(parser, values["output"], _SUFFIXES)
        if name not in VOLUME_FORMATS:
            parser.error(
                f"--output {short_repr(values['output'])}: {name} is not written; use {_SUFFIXES}, or pass --format"
            )
        values["format"] = name
    if VOLUME_FORMATS[values["format"]].is_binary:
        _check_binary(parser, values["format"], values["output"])
    values["bundle"] = resolve_bundle(values["bundle"])
    return VolumeOptions(scan=scans[0], **values)


def _check_boxes(parser: ScanParser, values: dict[str, Any]) -> None:
    """Raise UsageError if options of masks and boxes are mixed."""
    if values["boxes"] is None:
        if values["box_units"] is not None:
            parser.error("--box-units: requires --boxes")
    elif values["mask"] is not None:
        parser.error("--boxes: replaces --mask; pass one of them")
    elif values["resample_mask"]:
        parser.error("--resample-mask: requires --mask; boxes have no grid")
    values["box_units"] = values["box_units"] or "voxels"


def build_volume_parser() -> ScanParser:
    """Build the parser of organ-infer volume."""
    parser = ScanParser(
        "volume",
        usage="organ-infer volume SCAN --mask MASK [options]\n       organ-infer volume SCAN --boxes FILE [options]",
        description="Name the organs of a CT scan that a mask outlines, and compare them with the mask.",
        exit_codes="0 all organs classified, whether or not they agree with the mask, 2 error,"
        " 130 interrupted, 143 terminated.",
    )
    _add_input_arguments(parser.add_argument_group("input"))
    _add_model_arguments(parser.add_argument_group("model"))
    _add_output_arguments(parser.add_argument_group("output"))
    return parser


def _add_input_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "scans", nargs="*", metavar="SCAN", help="the CT scan: a file, or a directory of DICOM"
    )
    group.add_argument(
        "--mask",
        metavar="MASK",
        help="its organs: a label image, a directory with one file per structure, or DICOM",
    )
    group.add_argument(
        "--resample-mask",
        action="store_true",
        help="resample a mask on another grid to the scan's with nearest neighbor, with a warning",
    )
    group.add_argument(
        "--boxes",
        metavar="FILE",
        help="boxes around its organs instead of a mask: a CSV file with lines organ,x0,y0,z0,x1,y1,z1",
    )
    group.add_argument(
        "--box-units",
        choices=("voxels", "mm"),
        help="unit of the boxes: voxels, or mm in LPS coordinates (default: voxels)",
    )
    add_labels_argument(group)
    group.add_argument(
        "--series",
        metavar="SERIES",
        help="SeriesNumber or SeriesInstanceUID, if the directory has several DICOM series",
    )
    add_margin_argument(group, default=None, text="5, with --boxes 0")
    group.add_argument(
        "--slices",
        choices=("middle", "all"),
        default="middle",
        help="the middle 60 %% of each organ's slices, or all (default: %(default)s)",
    )


def _add_output_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-f",
        "--format",
        type=str.lower,
        choices=tuple(VOLUME_FORMATS),
        help="output format (default: that of the suffix of --output, or else text)",
    )
    group.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write results to FILE, which appears only when it is complete; .csv, .jsonl and .parquet choose the"
        " format",
    )
    group.add_argument(
        "--force", action="store_true", help="replace an existing FILE of --output without a note"
    )
    add_general_arguments(group, "show errors only, without notes and warnings")
