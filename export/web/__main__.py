"""python -m export.web BUNDLE DIR: write a bundle as a static web page (docs/deploy/browser.md).

The page runs the bundle in the visitor's browser with onnxruntime-web and sends nothing. The command needs the runtime
and, once, npm, which downloads two packages.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from export.console import run_bundle_command
from export.web.errors import WebError
from export.web.page import PRECISIONS, write_page


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Of the command line. None: sys.argv.

    Returns:
        The exit code: 0 done, 2 nothing could be done.
    """
    return run_bundle_command(lambda: _run(arguments), WebError)


def _run(arguments: list[str] | None) -> None:
    from organ_infer.engine.graph_cache import cache_directory

    options = _parse(arguments)
    cache = cache_directory()
    size = write_page(
        options.bundle,
        options.directory,
        precision=options.precision,
        packages=options.packages or (cache / "npm" if cache else None),
    )
    print(
        f"{options.directory}: {size / 1e6:.1f} MB; python -m http.server --directory {options.directory}"
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.web",
        description="Write a bundle as a static web page that runs it in the browser.",
        epilog="Serve the directory over HTTP: docs/deploy/browser.md. Research software, not a medical device.",
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle")
    add("directory", type=Path, metavar="DIR", help="directory for the page, new or empty")
    add(
        "--precision",
        choices=PRECISIONS,
        default="listed",
        help="precision of every network (default: listed, the one that the runtime uses on a CPU)",
    )
    add(
        "--packages",
        type=Path,
        metavar="DIR",
        help="directory of the archives of the npm packages; npm downloads missing ones (default: the user's cache)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
