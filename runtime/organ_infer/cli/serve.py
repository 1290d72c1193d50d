"""organ-infer serve: answers HTTP requests until a signal."""

import importlib
import os
import sys
from contextlib import suppress

from ..errors import OrganInferError, one_line
from ..names import escape_path
from .exit_codes import ALL_CLASSIFIED
from .formats import JsonlFormat, RowOptions
from .model import open_classifier, packaged_model_note
from .output import ClosedPipe, OutputError, Writer
from .progress import Messages, library_messages
from .serve_arguments import ServeOptions
from .signals import Signals, Stopped

__all__ = ["run_service"]


def run_service(options: ServeOptions, messages: Messages, signals: Signals) -> int:
    """Serve until a signal.

    Returns:
        The exit code, if the server ends by itself.

    Raises:
        OrganInferError: A package is missing, or the address, the pages or the model cannot be used.
        Stopped: A signal ended the service, after the requests in progress.
    """
    _import_packages()
    from ..serve.app import Service, create_app
    from ..serve.server import address_of, open_socket, serve

    if options.web is not None:
        _check_web(options.web)
    with (
        library_messages(messages),
        open_socket(options.host, options.port) as listening,
        open_classifier(options) as classifier,
    ):
        task = classifier.manifest.task
        if options.bundle is None and messages.terminal:
            messages.note(packaged_model_note(classifier.manifest.name, task))
        rows = JsonlFormat(RowOptions(classifier.classes, task.organs()))
        service = Service(classifier, rows, options.limits)
        address = address_of(listening)

        def show_address() -> None:
            # A script that starts the service reads the address, and knows that it is ready.
            if sys.stdout is not None:
                with suppress(ClosedPipe, OutputError):
                    Writer(None).write(f"{address}\n")

        stopped_by = serve(
            create_app(service, options.web),
            listening,
            options.limits,
            service.metrics,
            show_address,
        )
    if stopped_by is not None:
        raise Stopped(stopped_by)
    signals.check()
    return ALL_CLASSIFIED


def _import_packages() -> None:
    """Import the packages of the extra.

    Raises:
        OrganInferError: One of them is missing.
    """
    for name in ("starlette.applications", "uvicorn", "h11"):
        try:
            importlib.import_module(name)
        except ImportError as e:
            package = name.partition(".")[0]
            raise OrganInferError(
                f"{package} cannot be loaded ({one_line(e)}); pip install 'organ-infer[serve]'"
            ) from e


def _check_web(directory: str) -> None:
    """Raise OrganInferError if there is no page in the directory."""
    index = os.path.join(directory, "index.html")
    try:
        with open(index, "rb"):
            return
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or one_line(e)
        raise OrganInferError(
            f"--web {escape_path(directory, one_line=True)}: index.html cannot be read ({reason});"
            " name the directory of a page"
        ) from e
