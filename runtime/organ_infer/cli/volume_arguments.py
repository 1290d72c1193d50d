"""The arguments of organ-infer volume. Nothing heavy is imported here, so that --help answers at once."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import short_repr
from .arguments import _add_model_arguments, _format_of_output
from .scan_arguments import (
    ScanParser,
    add_general_arguments,
    add_labels_argument,
    add_margin_argument,
    resolve_bundle,
)
from .volume_rows import VOLUME_FORMATS

__all__ = ["VolumeOptions", "parse_volume"]

_HINT = "for images in a directory named volume, write ./volume"


class VolumeOptions(NamedTuple):
    """The parsed arguments of organ-infer volume."""

    scan: str
    mask: str
    labels: str
    series: str | None
    margin: float
    slices: str
    bundle: str | None
    device: str
    threads: int | None
    batch_size: int
    tta: bool
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
    parser = _build_parser()
    values = vars(parser.parse_args(list(arguments)))
    scans = values.pop("scans")
    if len(scans) != 1:
        parser.error(f"expected one scan, found {len(scans)}; {_HINT}")
    if values["mask"] is None:
        parser.error(
            f"--mask: missing; name the mask whose organs are to be classified, or {_HINT}"
        )
    parser.refuse_empty(values, "mask", "labels", "series", "bundle", "output")
    if scans[0] == "":
        parser.error("SCAN: the value is empty")
    if values["format"] is None:
        name = _format_of_output(parser, values["output"])
        if name not in VOLUME_FORMATS:
            parser.error(
                f"--output {short_repr(values['output'])}: {name} is not written; use .csv, .jsonl or .txt, or pass --format"
            )
        values["format"] = name
    values["bundle"] = resolve_bundle(values["bundle"])
    return VolumeOptions(scan=scans[0], **values)


def _build_parser() -> ScanParser:
    parser = ScanParser(
        "volume",
        usage="organ-infer volume SCAN --mask MASK [options]",
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
    add_labels_argument(group)
    group.add_argument(
        "--series",
        metavar="SERIES",
        help="SeriesNumber or SeriesInstanceUID, if the directory has several DICOM series",
    )
    add_margin_argument(group)
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
        choices=tuple(VOLUME_FORMATS),
        help="output format (default: that of the suffix of --output, or else text)",
    )
    group.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write results to FILE, which appears only when it is complete; .csv and .jsonl choose the format",
    )
    group.add_argument(
        "--force", action="store_true", help="replace an existing FILE of --output without a note"
    )
    add_general_arguments(group, "show errors only, without notes and warnings")
