"""The command's arguments. Nothing heavy is imported here, so that --help and --version answer at once.

A new option is one `add_argument` call, one field of `Options`, and its use.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from ..engine.devices import parse_device
from ..errors import short_repr, shorten
from .formats import FORMATS, format_of
from .progress import encodable

__all__ = ["BUNDLE_VARIABLE", "Options", "UsageError", "build_parser", "dataset_name", "parse"]

BUNDLE_VARIABLE = "ORGAN_INFER_BUNDLE"
_DATASETS = {
    "organamnist": "OrganAMNIST",
    "organcmnist": "OrganCMNIST",
    "organsmnist": "OrganSMNIST",
}
_SHELLS = ("bash", "zsh", "tcsh")
_EXIT_CODES = "Exit codes: 0 all images classified, 1 some images failed, 2 error, 130 interrupted, 143 terminated."


# The beginning of argparse's message.
_UNKNOWN = "unrecognized arguments: "


class UsageError(Exception):
    """The arguments of the command are not valid."""


class Options(NamedTuple):
    """The parsed arguments. (A dataclass would add a tenth to the time of --help.)"""

    paths: list[str]
    files_from: str | None
    boxes: str | None
    null: bool
    recursive: bool
    bundle: str | None
    device: str
    threads: int | None
    batch_size: int
    orientation: str | None
    tta: bool
    fast: bool
    cuda_graphs: bool
    pixel_limit: int | None
    file_limit: int | None
    any_modality: bool
    format: str
    output: str | None
    force: bool
    top: int | None
    organs: bool
    min_probability: float | None
    min_plausibility: float | None
    strict: bool
    report: str | None
    explain: bool
    labels: str | None
    labels_from_folders: bool
    group_by: str | None
    metrics: str | None
    check: bool
    quiet: bool


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        self.epilog = f"{_packaged_model_text()} {_EXIT_CODES}"
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        advice = ""
        if message.startswith(_UNKNOWN):
            unknown = message.removeprefix(_UNKNOWN).split()
            advice = _suggestion(unknown, self.long_options())
        raise UsageError(f"{shorten(message, 1000)}{advice} (see organ-infer --help)")

    def long_options(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(encodable(message, file), file)


def _suggestion(unknown: Sequence[str], options: Sequence[str]) -> str:
    """Return `; did you mean --format?` if an unknown argument looks like an option, or else nothing."""
    # Imported here: only errors need it.
    import difflib

    names = [option.removeprefix("--") for option in options]
    for argument in unknown:
        name = argument.partition("=")[0].lstrip("-").replace("_", "-").lower()
        if not argument.startswith("-") or not name:
            continue
        longer = [each for each in names if len(name) > 1 and each.startswith(name)]
        if close := longer or difflib.get_close_matches(name, names, n=1):
            return f"; did you mean --{close[0]}?"
    return ""


class _CompletionAction(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, _: object, shell: Any, *__: object
    ) -> NoReturn:
        try:
            import shtab
        except ImportError:
            parser.error(
                "--print-completion: shtab is not installed; pip install 'organ-infer[completion]'"
            )
        for action in parser._actions:
            if action.dest in (
                "paths",
                "files_from",
                "boxes",
                "output",
                "report",
                "labels",
                "metrics",
            ):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.dest == "bundle":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        print(encodable(shtab.complete(parser, shell=shell), sys.stdout))
        parser.exit()


class _VersionAction(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from .. import __version__

        print(encodable(f"organ-infer {__version__}", sys.stdout))
        parser.exit()


def dataset_name(flag: str) -> str:
    """Return the published name of a data set."""
    return _DATASETS.get(flag, flag)


def parse(arguments: Sequence[str]) -> Options:
    """Parse the arguments.

    Raises:
        UsageError: The arguments are not valid.
        SystemExit: After --help and --version.
    """
    parser = build_parser()
    arguments = list(arguments)
    # Everything after -- is a path, even if it looks like an option.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    _check_dashes(parser, arguments[:end])
    namespace = parser.parse_intermixed_args(arguments[:end])
    namespace.paths += arguments[end + 1 :]
    options = Options(**vars(namespace))
    _check_combinations(parser, options)
    name = options.format or _format_of_output(parser, options.output)
    if FORMATS[name].is_binary:
        _check_binary(parser, name, options.output)
    return options._replace(
        bundle=options.bundle or os.environ.get(BUNDLE_VARIABLE) or None, format=name
    )


def _check_binary(parser: _Parser, name: str, output: str | None) -> None:
    """Raise UsageError if a format that is no text would go to standard output."""
    if output is None:
        parser.error(f"--format {name}: not written to standard output; pass --output FILE")


def _format_of_output(
    parser: _Parser, output: str | None, suffixes: str = ".csv, .jsonl, .json, .parquet or .txt"
) -> str:
    """Return the format for the suffix of --output, or text. Raise UsageError if it is not written."""
    try:
        return format_of(output or "")
    except ValueError as e:
        parser.error(
            f"--output {short_repr(output)}: {e} is not written; use {suffixes}, or pass --format"
        )


def _check_dashes(parser: _Parser, arguments: Sequence[str]) -> None:
    """Raise UsageError for `-output`, which would be `-o utput`."""
    for argument in arguments:
        if f"-{argument.partition('=')[0]}" in parser.long_options():
            parser.error(f"{_UNKNOWN}{argument}")


def _check_combinations(parser: _Parser, options: Options) -> None:
    """Raise UsageError if options exclude each other, or one of them is empty."""
    has_input = bool(options.paths) or options.files_from is not None
    if options.boxes is not None and has_input:
        parser.error("--boxes: takes no paths and no --files-from; its file names the images")
    has_input |= options.boxes is not None
    if options.check and (has_input or options.output is not None):
        parser.error("--check: takes no images and no --output")
    _check_evaluation(parser, options)
    if not options.check and not has_input:
        parser.error(
            "no image given; name files, directories or patterns, or use --files-from or --boxes"
        )
    if options.null and options.files_from is None:
        parser.error("-0: requires --files-from")
    for name in ("bundle", "output", "files_from", "boxes", "report", "labels", "metrics"):
        if getattr(options, name) == "":
            parser.error(f"--{name.replace('_', '-')}: the value is empty")


def _check_evaluation(parser: _Parser, options: Options) -> None:
    """Raise UsageError if options of the evaluation exclude or miss each other."""
    has_labels = options.labels is not None or options.labels_from_folders
    if options.check and (has_labels or options.report is not None):
        parser.error("--check: takes no images, so no labels and no --report")
    if options.labels is not None and options.labels_from_folders:
        parser.error("--labels: excludes --labels-from-folders; labels come from one of them")
    if options.explain and options.report is None:
        parser.error("--explain: requires --report")
    for name in ("group_by", "metrics"):
        if getattr(options, name) is not None and not has_labels:
            parser.error(f"--{name.replace('_', '-')}: requires --labels or --labels-from-folders")


# The arguments, by the sections of --help.


def build_parser() -> _Parser:
    """Return the parser of the options, from which docs/make_man_page.py makes the manual page, too."""
    parser = _Parser(
        prog="organ-infer",
        usage="organ-infer [options] PATH [PATH ...]\n       organ-infer volume SCAN --mask MASK [options]\n       organ-infer audit PAIRS.csv|SCANS MASKS -o DIR [options]\n       organ-infer serve [options]",
        description="Name the organ on crops of abdominal CT slices. Research software, not a medical device.",
        allow_abbrev=False,
        add_help=False,
    )
    _add_input_arguments(parser.add_argument_group("input"))
    _add_model_arguments(parser.add_argument_group("model"))
    _add_output_arguments(parser.add_argument_group("output"))
    _add_evaluation_arguments(parser.add_argument_group("evaluation"))
    _add_other_arguments(parser.add_argument_group("other"))
    return parser


def _add_input_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="image file, directory or quoted pattern ('scans/*.png'); 'stack.npy#3' selects one slice, - reads one"
        " image from standard input",
    )
    group.add_argument(
        "--files-from",
        metavar="FILE",
        help="read paths from FILE, one per line; - for standard input",
    )
    group.add_argument(
        "-0",
        "--null",
        action="store_true",
        help="paths in --files-from end with NUL, not with a newline",
    )
    group.add_argument(
        "--boxes",
        metavar="FILE",
        help="classify boxes of images: a CSV file with lines path,x0,y0,x1,y1[,name] in pixels, x1 and y1 not included;"
        " paths are relative to its directory",
    )
    group.add_argument(
        "-r", "--recursive", action="store_true", help="include the subdirectories of directories"
    )
    group.add_argument(
        "--orientation",
        metavar="XY",
        help="orientation of the images, which are reoriented for the model: patient directions (L R A P H F)"
        " in which row and column index grow, PL for the usual axial display (default: as stored; DICOM:"
        " from the header)",
    )
    group.add_argument(
        "--pixel-limit",
        type=_count(65_535**2),
        metavar="N",
        help="refuse slices with more pixels (default: 89,478,485)",
    )
    group.add_argument(
        "--file-limit",
        type=_count(1 << 50),
        metavar="BYTES",
        help="refuse larger files, also after decompression (default: 268,435,456)",
    )
    group.add_argument(
        "--any-modality",
        action="store_true",
        help="also classify DICOM of other modalities than CT, with a warning",
    )


def _add_model_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-b",
        "--bundle",
        metavar="DIR",
        help=f"model bundle (default: ${BUNDLE_VARIABLE}, or else the packaged model)",
    )
    group.add_argument(
        "--device",
        type=_device,
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda, or cuda:N for GPU number N of those visible to CUDA (default: %(default)s)",
    )
    group.add_argument(
        "--threads",
        type=_count(1024),
        metavar="N",
        help="CPU threads (default: the processors available to this process)",
    )
    group.add_argument(
        "--batch-size",
        type=_count(4096),
        default=64,
        metavar="N",
        help="slices per batch, at most (default: %(default)s)",
    )
    group.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: average over the slice and four one-pixel shifts; takes five times as long",
    )
    group.add_argument(
        "--fast",
        action="store_true",
        help="use only the best single network of a bundle that averages several",
    )
    group.add_argument(
        "--no-cuda-graphs",
        dest="cuda_graphs",
        action="store_false",
        help="run CUDA without CUDA graphs",
    )


def _add_output_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-f",
        "--format",
        type=str.lower,
        choices=tuple(FORMATS),
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)} (default: that of the suffix of --output, or else text)",
    )
    group.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write results to FILE, which appears only when it is complete; .csv, .jsonl, .json and"
        " .parquet choose the format",
    )
    group.add_argument(
        "--force",
        action="store_true",
        help="replace an existing FILE of --output without a note",
    )
    group.add_argument(
        "--report",
        metavar="FILE",
        help="also write a page with pictures of the slices, filters and sorting: one HTML file",
    )
    group.add_argument(
        "--explain",
        action="store_true",
        help="color in the report's pictures what each answer depends on (about 600 runs of the network per slice)",
    )
    group.add_argument(
        "--top",
        type=_count(1000),
        metavar="K",
        help="list the K most probable classes (text, jsonl) or organs (text with --organs)",
    )
    group.add_argument(
        "--organs",
        action="store_true",
        help="text: show the organ without its side, with the summed probability of both sides"
        " (csv and jsonl always contain both)",
    )
    group.add_argument(
        "--min-probability",
        type=_probability,
        metavar="P",
        help="show 'uncertain' instead of the label if its probability is below P; with --organs, instead of"
        " the organ",
    )
    group.add_argument(
        "--min-plausibility",
        type=_probability,
        metavar="P",
        help="show 'uncertain', as --min-probability does, if the model's plausibility of the slice is below P"
        " (default: only a warning, below the model's threshold)",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="let implausible slices fail (exit code 1) instead of labeling them with a warning",
    )
    group.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="show errors only, without progress, notes and warnings",
    )


def _add_evaluation_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--labels",
        metavar="FILE",
        help="compare the answers with true labels: a CSV file with lines path,label; paths are relative to its directory",
    )
    group.add_argument(
        "--labels-from-folders",
        action="store_true",
        help="compare the answers with the names of the folders that contain the images, one folder per class",
    )
    group.add_argument(
        "--group-by",
        type=_pattern,
        metavar="REGEX",
        help="resample groups of slices, such as patients, for the interval of the accuracy; the first group of REGEX in"
        " the path, or else its match, names the group",
    )
    group.add_argument(
        "--metrics",
        metavar="FILE",
        help="write the evaluation to FILE as JSON",
    )


def _add_other_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--check",
        action="store_true",
        help="report the environment and run a self-test on reference slices; exits with 2 on failure",
    )
    group.add_argument(
        "--print-completion",
        action=_CompletionAction,
        choices=_SHELLS,
        metavar="SHELL",
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help=f"print the completion for {', '.join(_SHELLS)} and exit; needs shtab",
    )
    group.add_argument(
        "--version",
        action=_VersionAction,
        nargs=0,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help="show the version and exit",
    )
    group.add_argument("-h", "--help", action="help", help="show this help and exit")


# Types of arguments.


def _device(text: str) -> str:
    try:
        parse_device(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None
    return text


def _count(limit: int) -> Callable[[str], int]:
    """Return the argparse type of a whole number from 1 to `limit`."""

    def parse_count(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or len(text) > 16 or not 1 <= int(text) <= limit:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from 1 to {limit:,}, found {short_repr(text)}"
            )
        return int(text)

    return parse_count


def _probability(text: str) -> float:
    try:
        value = float(text) if text.isascii() else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"expected a number above 0 and at most 1, found {short_repr(text)}"
        )
    return value


def _pattern(text: str) -> str:
    # Imported here: other options do not need it.
    import re

    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as e:
        raise argparse.ArgumentTypeError(
            f"expected a regular expression, found {short_repr(text)} ({e})"
        ) from None
    return text


def _packaged_model_text() -> str:
    """Return one sentence about the packaged model, from its manifest, for argparse (with %% for %)."""
    import json

    path = os.path.join(os.path.dirname(os.path.dirname(__file__)), "default", "manifest.json")
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        name, task = str(manifest["name"]), manifest["task"]
        dataset = dataset_name(str(task["dataset"]))
        text = f"The packaged model is {name}, for {task['view']} slices, trained on {dataset}."
        return text.replace("%", "%%")
    except (OSError, ValueError, KeyError, TypeError):
        return "This installation has no packaged model; use --bundle DIR."
