"""The arguments of organ-infer volume. Nothing heavy is imported here, so that --help answers at once."""

import argparse
import os
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from ..errors import short_repr, shorten
from .arguments import (
    BUNDLE_VARIABLE,
    UsageError,
    _add_model_arguments,
    _format_of_output,
    _Parser,
    build_parser,
)
from .volume_rows import VOLUME_FORMATS

__all__ = ["VolumeOptions", "parse_volume", "volume_position"]

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


class _VolumeParser(_Parser):
    def format_help(self) -> str:
        self.epilog = (
            "Exit codes: 0 all organs classified, whether or not they agree with the mask, 2 error,"
            " 130 interrupted, 143 terminated."
        )
        return argparse.ArgumentParser.format_help(self)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{shorten(message, 1000)} (see organ-infer volume --help)")


def volume_position(arguments: Sequence[str]) -> int | None:
    """Return the index of the word `volume` that selects the command for scans; None for the command for images.

    It is the first argument, or the first one that is neither an option nor the value of one. In the second case a file
    or directory of this name is meant if it exists, unless there is a mask, which images do not have.
    """
    if "volume" not in arguments:
        return None
    if arguments[0] == "volume":
        return 0
    actions = build_parser()._option_string_actions | _build_parser()._option_string_actions
    position = 0
    while arguments[position].startswith("-") and arguments[position] not in ("-", "--"):
        action = actions.get(arguments[position])
        position += 1 if action is None or action.nargs == 0 else 2
        if position >= len(arguments):
            return None
    if arguments[position] != "volume":
        return None
    has_mask = any(argument.partition("=")[0] == "--mask" for argument in arguments)
    return position if has_mask or not os.path.lexists("volume") else None


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
    for name in ("mask", "labels", "series", "bundle", "output"):
        if values[name] == "":
            parser.error(f"--{name}: the value is empty")
    if scans[0] == "":
        parser.error("SCAN: the value is empty")
    if values["format"] is None:
        name = _format_of_output(parser, values["output"])
        if name not in VOLUME_FORMATS:
            parser.error(
                f"--output {short_repr(values['output'])}: {name} is not written; use .csv, .jsonl or .txt, or pass --format"
            )
        values["format"] = name
    values["bundle"] = values["bundle"] or os.environ.get(BUNDLE_VARIABLE) or None
    return VolumeOptions(scan=scans[0], **values)


def _build_parser() -> _VolumeParser:
    parser = _VolumeParser(
        prog="organ-infer volume",
        usage="organ-infer volume SCAN --mask MASK [options]",
        description="Name the organs of a CT scan that a mask outlines, and compare them with the mask."
        " Research software, not a medical device.",
        allow_abbrev=False,
        add_help=False,
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
        "--labels",
        default="totalsegmentator",
        metavar="MAP",
        help="which structure is which class: the name of a label map, or a CSV file (default: %(default)s)",
    )
    group.add_argument(
        "--series",
        metavar="SERIES",
        help="SeriesNumber or SeriesInstanceUID, if the directory has several DICOM series",
    )
    group.add_argument(
        "--margin",
        type=_margin,
        default=5.0,
        metavar="MM",
        help="margin around each organ in the plane of the slices, in mm (default: %(default)g)",
    )
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
    group.add_argument(
        "-q", "--quiet", action="store_true", help="show errors only, without notes and warnings"
    )
    group.add_argument("-h", "--help", action="help", help="show this help and exit")


def _margin(text: str) -> float:
    try:
        value = float(text) if text.isascii() else -1.0
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1000:
        raise argparse.ArgumentTypeError(
            f"expected a number of mm from 0 to 1,000, found {short_repr(text)}"
        )
    return value
