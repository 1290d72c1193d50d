"""The command's arguments. Nothing heavy is imported here: --help and --version answer at once."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from ..engine.devices import parse_device

__all__ = ["BUNDLE_VARIABLE", "FORMATS", "Options", "UsageError", "dataset_name", "parse"]

FORMATS = ("text", "csv", "jsonl")
BUNDLE_VARIABLE = "ORGAN_INFER_BUNDLE"
_DATASETS = {"organamnist": "OrganAMNIST", "organcmnist": "OrganCMNIST", "organsmnist": "OrganSMNIST"}
_EXIT_CODES = "Exit codes: 0 all images classified, 1 some were not, 2 nothing could be done, 130 interrupted, 143 terminated."


class UsageError(Exception):
    """The command was given what it does not take."""


class Options(NamedTuple):
    """What was asked for. (No dataclass: that module alone takes a tenth of the time of --help.)"""

    paths: list[str]
    files_from: str | None
    null: bool
    recursive: bool
    bundle: str | None
    device: str
    threads: int | None
    batch_size: int
    orientation: str | None
    tta: bool
    cuda_graphs: bool
    pixel_limit: int | None
    file_limit: int | None
    format: str
    output: str | None
    top: int | None
    organs: bool
    min_probability: float | None
    check: bool
    quiet: bool


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        self.epilog = f"{_packaged_text()} {_EXIT_CODES}"
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (organ-infer --help shows the options)")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from .. import __version__

        print(f"organ-infer {__version__}")
        parser.exit()


def dataset_name(flag: str) -> str:
    """A data set as people write it."""
    return _DATASETS.get(flag, flag)


def parse(arguments: Sequence[str]) -> Options:
    """Raises UsageError; --help and --version end in SystemExit."""
    parser = _Parser(
        prog="organ-infer",
        allow_abbrev=False,
        description="Name the organ on crops of abdominal CT slices. Research software, not a medical device.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="image files, directories, or quoted patterns ('scans/*.png'); 'stack.npy#3' is one slice of many",
    )
    parser.add_argument(
        "--files-from", metavar="FILE", help="read paths from FILE, one a line; - is standard input"
    )
    parser.add_argument(
        "-0", "--null", action="store_true", help="paths in --files-from end in NUL, not in a newline"
    )
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="directories with all their subdirectories"
    )
    parser.add_argument(
        "--bundle",
        metavar="DIR",
        help=f"the model, a directory (default: ${BUNDLE_VARIABLE}, else the packaged one)",
    )
    parser.add_argument(
        "--device",
        type=_device,
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda, or cuda:N for the GPU with number N of those that CUDA_VISIBLE_DEVICES leaves visible"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=_count(1024), metavar="N", help="default: the processors this process may use"
    )
    parser.add_argument(
        "--batch-size", type=_count(4096), default=64, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--orientation",
        metavar="XY",
        help="how the images lie, to be turned to the model's way: the patient direction (L R A P H F) in which rows,"
        " then columns run; PL is the usual axial display (default: as stored; DICOM says so itself)",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average over each slice as it is and shifted by one pixel up, down, left and right: five times the work",
    )
    parser.add_argument(
        "--no-cuda-graphs",
        dest="cuda_graphs",
        action="store_false",
        help="do not record runs on CUDA as CUDA graphs",
    )
    parser.add_argument(
        "--pixel-limit",
        type=_count(65_535**2),
        metavar="N",
        help="refuse slices of more pixels (default: 89,478,485)",
    )
    parser.add_argument(
        "--file-limit",
        type=_count(1 << 50),
        metavar="BYTES",
        help="refuse larger files, and larger ones compressed in them (default: 268,435,456)",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: %(default)s")
    parser.add_argument(
        "--output", metavar="FILE", help="write the results to FILE, which appears whole or not at all"
    )
    parser.add_argument(
        "--top",
        type=_count(1000),
        metavar="K",
        help="the K likeliest classes (text and jsonl; with --organs text has the K likeliest organs)",
    )
    parser.add_argument(
        "--organs",
        action="store_true",
        help="text: the organ without its side, and the probability of both sides together (csv and jsonl always have"
        " both)",
    )
    parser.add_argument(
        "--min-probability",
        type=_probability,
        metavar="P",
        help="the label of a slice becomes 'uncertain' where its probability is below P, with --organs the organ where"
        " the organ's is; all else stays, and the exit code too",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="classify nothing: say what is installed, which device is granted and what the model is, and ask it about"
        " slices whose answers are known; exit code 2 where something is wrong",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress, notes or warnings; errors are still shown"
    )
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help="show the version and exit",
    )
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)  # what follows is a path, whatever it looks like
    found = parser.parse_intermixed_args(given[:end])
    found.paths += given[end + 1 :]
    if found.check and (found.paths or found.files_from is not None or found.output is not None):
        parser.error("--check takes no images and no --output")
    if not found.check and not found.paths and found.files_from is None:
        parser.error("no image given: name files, directories or patterns, or use --files-from")
    if found.null and found.files_from is None:
        parser.error("-0 goes with --files-from")
    for name in ("bundle", "output", "files_from"):
        if getattr(found, name) == "":
            parser.error(f"--{name.replace('_', '-')} is empty")
    found.bundle = found.bundle or os.environ.get(BUNDLE_VARIABLE) or None
    return Options(**vars(found))


def _device(text: str) -> str:
    try:
        parse_device(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None
    return text


def _count(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or len(text) > 16 or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"a whole number from 1 to {most:,} expected, found {text!r}")
        return int(text)

    return read


def _probability(text: str) -> float:
    try:
        value = float(text) if text.isascii() else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a number above 0 and at most 1 expected, found {text!r}")
    return value


def _packaged_text() -> str:
    """What the packaged model is, from its manifest."""
    import json

    path = os.path.join(os.path.dirname(os.path.dirname(__file__)), "default", "manifest.json")
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        name, task = str(manifest["name"]), manifest["task"]
        text = f"The packaged model {name} is for {task['view']} slices, trained on {dataset_name(str(task['dataset']))}."
        return text.replace("%", "%%")
    except (OSError, ValueError, KeyError, TypeError):
        return "No model is packaged with this installation: give one with --bundle."
