"""The arguments of organ-infer audit. Nothing heavy is imported here, so that --help answers at once."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from .arguments import _add_model_arguments
from .scan_arguments import (
    ScanParser,
    add_general_arguments,
    add_labels_argument,
    add_margin_argument,
    resolve_bundle,
)

__all__ = ["AuditOptions", "build_audit_parser", "parse_audit"]

_HINT = "for images in a directory named audit, write ./audit"


class AuditOptions(NamedTuple):
    """The parsed arguments of organ-infer audit.

    Attributes:
        inputs: A CSV file, or the directories of scans and masks.
        output: The directory of the results.
        arguments: All arguments as given.
    """

    inputs: tuple[str, ...]
    output: str
    labels: str
    margin: float
    fresh: bool
    bundle: str | None
    device: str
    threads: int | None
    batch_size: int
    tta: bool
    fast: bool
    cuda_graphs: bool
    quiet: bool
    arguments: tuple[str, ...]
    # Volumes are oriented by their affine.
    orientation: None = None


def parse_audit(arguments: Sequence[str]) -> AuditOptions:
    """Parse the arguments after `audit`.

    Raises:
        UsageError: The arguments are not valid.
        SystemExit: After --help.
    """
    parser = build_audit_parser()
    values = vars(parser.parse_args(list(arguments)))
    inputs = tuple(values.pop("inputs"))
    if not 1 <= len(inputs) <= 2:
        parser.error(
            f"expected PAIRS.csv, or the directories SCANS and MASKS, found {len(inputs)} paths; {_HINT}"
        )
    if "" in inputs:
        parser.error("PAIRS.csv: the value is empty")
    if values["output"] is None:
        parser.error(f"--output: missing; name the directory of the results, or {_HINT}")
    parser.refuse_empty(values, "output", "labels", "bundle")
    values["bundle"] = resolve_bundle(values["bundle"])
    return AuditOptions(inputs=inputs, arguments=tuple(arguments), **values)


def build_audit_parser() -> ScanParser:
    """Build the parser of organ-infer audit."""
    parser = ScanParser(
        "audit",
        usage="organ-infer audit PAIRS.csv -o DIR [options]\n"
        "       organ-infer audit SCANS MASKS -o DIR [options]",
        description="Find masks that do not fit their CT scans: swapped sides, wrong labels, flipped or shifted masks.",
        exit_codes="0 all scans audited, with findings or without, 1 some scans failed, 2 no scan audited,"
        " or an error, 130 interrupted, 143 terminated.",
    )
    _add_input_arguments(parser.add_argument_group("input"))
    _add_model_arguments(parser.add_argument_group("model"))
    _add_output_arguments(parser.add_argument_group("output"))
    return parser


def _add_input_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "inputs",
        nargs="*",
        metavar="PAIRS.csv | SCANS MASKS",
        help="a CSV file with scan,mask[,labels] per line, or the directories of scans and masks, in which a scan and"
        " its mask have the same name without suffix",
    )
    add_labels_argument(group)
    add_margin_argument(group)


def _add_output_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="directory of the results: report.html, findings.csv, organs.csv and results.jsonl. If it has results,"
        " only scans that are new, changed or failed are audited",
    )
    group.add_argument(
        "--fresh", action="store_true", help="forget the results in DIR and start over"
    )
    add_general_arguments(group, "show errors only, without progress, notes and warnings")
