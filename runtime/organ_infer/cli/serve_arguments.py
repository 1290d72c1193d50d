"""The arguments of organ-infer serve. Nothing heavy is imported here, so that --help answers at once."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import short_repr
from ..serve.limits import ServiceLimits
from .arguments import _add_model_arguments, _count
from .scan_arguments import ScanParser, add_general_arguments, number_type, resolve_bundle

__all__ = ["ServeOptions", "build_serve_parser", "parse_serve"]

_HINT = "for images in a directory named serve, write ./serve"
_DEFAULTS = ServiceLimits()


class ServeOptions(NamedTuple):
    """The parsed arguments of organ-infer serve.

    Attributes:
        limits: What the service accepts.
        web: A directory of pages, or None.
    """

    host: str
    port: int
    web: str | None
    limits: ServiceLimits
    bundle: str | None
    device: str
    threads: int | None
    batch_size: int
    tta: bool
    fast: bool
    cuda_graphs: bool
    orientation: str | None
    quiet: bool


def parse_serve(arguments: Sequence[str]) -> ServeOptions:
    """Parse the arguments after `serve`.

    Raises:
        UsageError: The arguments are not valid.
        SystemExit: After --help.
    """
    parser = build_serve_parser()
    values = vars(parser.parse_args(list(arguments)))
    if paths := values.pop("paths"):
        parser.error(f"expected no paths, found {short_repr(paths[0])}; {_HINT}")
    parser.refuse_empty(values, "host", "web", "bundle")
    values["bundle"] = resolve_bundle(values["bundle"])
    limits = {name: values.pop(name) for name in ServiceLimits._fields if name in values}
    return ServeOptions(limits=ServiceLimits(**limits), **values)


def build_serve_parser() -> ScanParser:
    """Build the parser of organ-infer serve."""
    parser = ScanParser(
        "serve",
        usage="organ-infer serve [options]",
        description="Answer HTTP requests: POST images to /v1/predict. Needs the extra serve.",
        exit_codes="2 error, 130 interrupted, 143 terminated. After a signal, requests in progress are answered.",
    )
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    _add_address_arguments(parser.add_argument_group("address"))
    _add_limit_arguments(parser.add_argument_group("limits"))
    model = parser.add_argument_group("model")
    _add_model_arguments(model)
    model.add_argument(
        "--max-batch",
        dest="batch_size",
        type=_count(4096),
        default=argparse.SUPPRESS,
        metavar="N",
        help="another name of --batch-size",
    )
    add_general_arguments(
        parser.add_argument_group("other"), "show errors only, without notes and warnings"
    )
    return parser


def _add_address_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="HOST",
        help="the address to listen at; 0.0.0.0 or :: for all of this machine (default: %(default)s)",
    )
    group.add_argument(
        "--port",
        type=_port,
        default=8080,
        metavar="PORT",
        help="the port; 0 for a free one (default: %(default)s)",
    )
    group.add_argument(
        "--web",
        metavar="DIR",
        help="also serve the files of DIR at /, such as a page of python -m export.web",
    )


def _add_limit_arguments(group: argparse._ArgumentGroup) -> None:
    _add_limit(group, "--request-limit", "request_bytes", "BYTES", 1 << 40, "bytes per request")
    _add_limit(group, "--files-per-request", "files", "N", 100_000, "files per request")
    _add_limit(group, "--slices-per-request", "slices", "N", 10_000_000, "slices per request")
    _add_limit(group, "--pixel-limit", "pixels", "N", 65_535**2, "pixels per slice")
    _add_limit(
        group,
        "--file-limit",
        "file_bytes",
        "BYTES",
        1 << 50,
        "bytes per file, also after decompression",
    )
    _add_limit(
        group, "--queue", "queue", "N", 100_000, "requests that are worked on or wait; more get 503"
    )
    _add_limit(group, "--connections", "connections", "N", 1_000_000, "open connections")
    group.add_argument(
        "--max-wait",
        dest="batch_wait",
        type=_milliseconds,
        default=_DEFAULTS.batch_wait,
        metavar="MS",
        help="a request waits so long, at most, for others that are being decoded, so that they are classified"
        f" together (default: {_DEFAULTS.batch_wait * 1000:g})",
    )
    for option, name, text in (
        ("--header-timeout", "header_seconds", "seconds for the head of a request"),
        ("--body-timeout", "body_seconds", "seconds for the body of a request"),
        (
            "--shutdown-timeout",
            "shutdown_seconds",
            "seconds for requests in progress after a signal",
        ),
    ):
        default = getattr(_DEFAULTS, name)
        group.add_argument(
            option,
            dest=name,
            type=number_type(0.1, 86_400, "seconds"),
            default=default,
            metavar="S",
            help=f"{text} (default: {default:g})",
        )
    group.add_argument(
        "--any-modality",
        action="store_true",
        help="also classify DICOM of other modalities than CT, with a warning",
    )
    group.add_argument(
        "--orientation",
        metavar="XY",
        help="orientation of the images, as in organ-infer (default: as stored; DICOM: from the header)",
    )


def _add_limit(
    group: argparse._ArgumentGroup, option: str, name: str, metavar: str, most: int, text: str
) -> None:
    default = getattr(_DEFAULTS, name)
    group.add_argument(
        option,
        dest=name,
        type=_count(most),
        default=default,
        metavar=metavar,
        help=f"{text} (default: {default:,})",
    )


# Types of arguments.


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or int(text) > 65_535:
        raise argparse.ArgumentTypeError(
            f"expected a port from 0 to 65,535, found {short_repr(text)}"
        )
    return int(text)


def _milliseconds(text: str) -> float:
    """Parse milliseconds. Returns seconds."""
    return number_type(0, 10_000, "milliseconds")(text) / 1000
