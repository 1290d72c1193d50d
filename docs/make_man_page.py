"""Writes the manual page of organ-infer, runtime/organ-infer.1, from the parser of the command.

python docs/make_man_page.py            # write the page
python docs/make_man_page.py --check    # exit with 1 if the stored page is not the current one
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "runtime" / "organ-infer.1"
EXIT_CODES = {
    0: "all images were classified",
    1: "some images were not classified",
    2: "an error, such as invalid arguments or no image found",
    130: "interrupted by SIGINT",
    143: "terminated by SIGTERM",
}
ENVIRONMENT = {
    "ORGAN_INFER_BUNDLE": "the default of --bundle",
    "ORGAN_INFER_CACHE": "the directory of optimized graphs; empty: none are cached",
    "CUDA_VISIBLE_DEVICES": "the visible GPUs, among which N of cuda:N counts",
}


def man_page(parser: argparse.ArgumentParser) -> str:
    """The manual page in troff."""
    # Without the date and the version: the page changes only if the options do.
    lines = [
        r".\" written by docs/make_man_page.py",
        '.TH ORGAN-INFER 1 "" "organ-infer" "User Commands"',
        ".SH NAME",
        r"organ-infer \- name the organ on crops of abdominal CT slices",
        ".SH SYNOPSIS",
        ".B organ-infer",
        r"[\fIoptions\fR] \fIPATH\fR ...",
        ".br",
        ".B organ-infer",
        r"[\fIoptions\fR] \fB\-\-files\-from\fR \fIFILE\fR",
        ".br",
        ".B organ-infer",
        r"[\fIoptions\fR] \fB\-\-check\fR",
        ".br",
        r".B organ-infer volume",
        r"\fISCAN\fR \fB\-\-mask\fR \fIMASK\fR [\fIoptions\fR]",
        ".br",
        r".B organ-infer audit",
        r"\fIPAIRS.csv\fR|\fISCANS MASKS\fR \fB\-\-output\fR \fIDIR\fR [\fIoptions\fR]",
        ".br",
        r".B organ-infer serve",
        r"[\fIoptions\fR]",
        ".SH DESCRIPTION",
        escape(parser.description or ""),
        "Results go to standard output in the order of the input, messages to standard error.",
        "The options of",
        '.BR "organ-infer volume" ,',
        ".B organ-infer audit",
        "and",
        ".B organ-infer serve",
        r"are shown by their own \fB\-\-help\fR.",
    ]
    for group in parser._action_groups:
        if group._group_actions:
            lines.append(f".SH {(group.title or '').upper()}")
            lines += [line for action in group._group_actions for line in entry(parser, action)]
    lines.append(".SH EXIT STATUS")
    lines += [line for code, text in EXIT_CODES.items() for line in tagged(rf"\fB{code}\fR", text)]
    lines.append(".SH ENVIRONMENT")
    for name, text in ENVIRONMENT.items():
        lines += tagged(rf"\fB{name}\fR", text)
    return "\n".join(lines) + "\n"


def entry(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    """The lines of one option or positional argument."""
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    argument = rf"\fI{escape(str(value))}\fR"
    names = [rf"\fB{escape(name)}\fR" for name in action.option_strings]
    if names and action.nargs != 0:
        names[-1] += f" {argument}"
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    yield from tagged(", ".join(names) or argument, text)


def tagged(tag: str, text: str) -> list[str]:
    return [".TP", tag, escape(text)]


def escape(text: str) -> str:
    """Text for troff. A line must not begin with a period or an apostrophe."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    return rf"\&{text}" if text.startswith(".") else text


def main(arguments: list[str]) -> int:
    sys.path.insert(0, str(ROOT / "runtime"))
    from organ_infer.cli.arguments import build_parser

    page = man_page(build_parser())
    if arguments != ["--check"]:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    print(
        f"{PAGE.relative_to(ROOT)} is not current; run python docs/make_man_page.py",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
