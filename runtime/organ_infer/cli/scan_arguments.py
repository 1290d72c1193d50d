"""What the commands volume, audit and serve have in common. Nothing heavy is imported here."""

import argparse
import os
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import short_repr, shorten
from .arguments import BUNDLE_VARIABLE, UsageError, _Parser

__all__ = [
    "ScanParser",
    "add_general_arguments",
    "add_labels_argument",
    "add_margin_argument",
    "number_type",
    "resolve_bundle",
]


class ScanParser(_Parser):
    """The parser of a command that has a name.

    Args:
        command: Its name.
        usage: The arguments of the usage line, behind the name.
        description: One sentence.
        exit_codes: The last line of --help.
    """

    def __init__(self, command: str, usage: str, description: str, exit_codes: str) -> None:
        self._command = command
        self._exit_codes = exit_codes
        super().__init__(
            prog=f"organ-infer {command}",
            usage=usage,
            description=f"{description} Research software, not a medical device.",
            allow_abbrev=False,
            add_help=False,
        )

    def format_help(self) -> str:
        self.epilog = f"Exit codes: {self._exit_codes}"
        return argparse.ArgumentParser.format_help(self)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{shorten(message, 1000)} (see organ-infer {self._command} --help)")

    def refuse_empty(self, values: dict[str, Any], *names: str) -> None:
        """Raise UsageError if one of these options has an empty value."""
        for name in names:
            if values[name] == "":
                self.error(f"--{name}: the value is empty")


def add_labels_argument(group: argparse._ArgumentGroup) -> None:
    """Add --labels."""
    group.add_argument(
        "--labels",
        default="totalsegmentator",
        metavar="MAP",
        help="which structure is which class: the name of a label map, or a CSV file (default: %(default)s)",
    )


def add_margin_argument(
    group: argparse._ArgumentGroup, default: float | None = 5.0, text: str = "5"
) -> None:
    """Add --margin, with its default as a number and as text."""
    group.add_argument(
        "--margin",
        type=number_type(0, 1000, "mm"),
        default=default,
        metavar="MM",
        help=f"margin around each organ in the plane of the slices, in mm (default: {text})",
    )


def add_general_arguments(group: argparse._ArgumentGroup, quiet: str) -> None:
    """Add --quiet, with its help, and --help."""
    group.add_argument("-q", "--quiet", action="store_true", help=quiet)
    group.add_argument("-h", "--help", action="help", help="show this help and exit")


def resolve_bundle(bundle: str | None) -> str | None:
    """Return the bundle of the options, or else that of the environment, or None for the packaged one."""
    return bundle or os.environ.get(BUNDLE_VARIABLE) or None


def number_type(least: float, most: float, unit: str) -> Callable[[str], float]:
    """Return the type of an argument that is a number of a unit, such as mm.

    Args:
        least: At least, 0 or more.
        most: At most.
        unit: For the message.
    """

    def parse_number(text: str) -> float:
        try:
            value = float(text) if text.isascii() else -1.0
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"expected a number of {unit} from {least:g} to {most:,g}, found {short_repr(text)}"
            )
        return value

    return parse_number
