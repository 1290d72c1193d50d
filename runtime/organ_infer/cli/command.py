"""The command organ-infer: its entry point and the handling of errors (docs/reference/command.md)."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .exit_codes import ALL_CLASSIFIED, FAILED
from .signals import SIGNALS, Signals, Stopped

if TYPE_CHECKING:
    from .arguments import Options
    from .audit_arguments import AuditOptions
    from .output import Writer
    from .progress import Messages
    from .serve_arguments import ServeOptions
    from .volume_arguments import VolumeOptions

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The arguments after the program's name; by default those of this process.

    Returns:
        The exit code.
    """
    with Signals() as signals:
        messages = None
        try:
            # Imported here, because a signal may already arrive during the import.
            from .progress import Messages

            messages = Messages()
            try:
                return _parse_and_run(
                    sys.argv[1:] if arguments is None else arguments, messages, signals
                )
            except Exception:
                signals.check()
                raise
        except Stopped as e:
            return _stopped(e.number, messages, signals)
        except MemoryError:
            _error(
                messages,
                "not enough memory; use a smaller --batch-size, or raise the limit of memory (ulimit -v)",
            )
        except Exception as e:
            reason = " ".join(str(e).split())[:300]
            _error(messages, f"unexpected {type(e).__name__} ({reason}); please report this error")
        return FAILED


def _error(messages: "Messages | None", text: str) -> None:
    if messages is not None:
        messages.error(text)


def _stopped(number: int, messages: "Messages | None", signals: Signals) -> int:
    """Report the signal and where the results are. Returns the exit code."""
    if messages is not None:
        messages.end()
        note = ""
        if signals.writer is not None:
            signals.writer.discard()
            note = signals.writer.partial_note()
        messages.status(f"{SIGNALS[number]}{note}")
    return 128 + number


def _parse_and_run(arguments: Sequence[str], messages: "Messages", signals: Signals) -> int:
    from .arguments import UsageError, parse
    from .subcommands import after_word

    options: Options | VolumeOptions | AuditOptions | ServeOptions
    try:
        # A file or directory of this name is still ./volume.
        if "volume" in arguments and (rest := after_word("volume", arguments)) is not None:
            from .volume_arguments import parse_volume

            options = parse_volume(rest)
        elif "audit" in arguments and (rest := after_word("audit", arguments)) is not None:
            from .audit_arguments import parse_audit

            options = parse_audit(rest)
        elif "serve" in arguments and (rest := after_word("serve", arguments)) is not None:
            from .serve_arguments import parse_serve

            options = parse_serve(rest)
        else:
            options = parse(arguments)
    except SystemExit as e:
        # --help and --version end this way.
        return _flush_stdout(int(e.code or 0))
    except BrokenPipeError:
        # argparse of Python 3.11.2, for example, raises it if the reader of --help is gone
        return _flush_stdout(ALL_CLASSIFIED)
    except UsageError as e:
        messages.error(str(e))
        return FAILED
    return _run(options, arguments, messages, signals)


def _run(
    options: "Options | VolumeOptions | AuditOptions | ServeOptions",
    arguments: Sequence[str],
    messages: "Messages",
    signals: Signals,
) -> int:
    """Run what the options ask for, and report what ends it early. Returns the exit code."""
    from ..errors import OrganInferError
    from .arguments import Options, UsageError
    from .output import ClosedPipe, OutputError

    writer: Writer | None = None
    try:
        messages.quiet = options.quiet
        if not isinstance(options, Options):
            from .audit_arguments import AuditOptions

            if isinstance(options, AuditOptions):
                messages.leave_screen_to_pager()
                _import_numpy()
                from .audit import audit

                return audit(options, messages, signals)
            from .serve_arguments import ServeOptions

            if isinstance(options, ServeOptions):
                _import_numpy()
                from .serve import run_service

                return run_service(options, messages, signals)
        if options.output is None:
            messages.leave_screen_to_pager()
        _import_numpy()
        if sys.stdout is None and options.output is None:
            raise OutputError("standard output is closed; redirect it, or use --output FILE")
        if not isinstance(options, Options):
            from .volume import classify_volume

            writer = signals.writer = _open_writer(options, messages)
            return classify_volume(options, messages, writer, signals)
        if options.check:
            return _check(options, messages)
        from .classify import classify
        from .paths import require_candidates, require_standard_input

        require_standard_input(options)
        candidates = require_candidates(options, messages)
        if options.report is not None or options.metrics is not None:
            # Imported here, because most runs have neither.
            from .whole_file import check_whole_files

            check_whole_files(options, messages)
        writer = signals.writer = _open_writer(options, messages)
        return classify(options, candidates, messages, writer, signals, arguments)
    except ClosedPipe:
        return ALL_CLASSIFIED
    except (UsageError, OrganInferError, OutputError) as e:
        signals.check()
        note = ""
        if writer is not None:
            writer.discard()
            if not isinstance(e, OutputError):
                note = writer.partial_note()
        messages.error(f"{e}{note}")
        return FAILED
    finally:
        messages.end()


def _open_writer(options: "Options | VolumeOptions", messages: "Messages") -> "Writer":
    """Open what --output names, and note that an existing file will be replaced.

    Raises:
        OutputError: It cannot be written, or holds no text. It may be one of the images.
    """
    from ..images.registry import has_known_content
    from ..names import escape_path
    from .output import OutputError, Writer

    name = f"--output {escape_path(options.output or '', one_line=True)}"
    if options.output is not None and (
        has_known_content(options.output) or _holds_other_content(options.output, options.format)
    ):
        raise OutputError(f"{name}: an image or another binary file; choose another name")
    writer = Writer(options.output)
    if writer.replaces and not options.force:
        messages.note(f"{name}: exists and will be replaced; --force omits this note")
    return writer


def _holds_other_content(path: str, format_name: str) -> bool:
    """Whether a regular file has a NUL among its first bytes, which no results have but those in Parquet."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            head = file.read(4096)
        is_own = format_name == "parquet" and head.startswith(b"PAR1")
        return b"\0" in head and not is_own
    except (OSError, ValueError):
        return False


def _import_numpy() -> None:
    """Import NumPy without the threads of OpenBLAS, which this command does not use.

    Under a limit on processes OpenBLAS interrupts the process because it cannot start them.

    Raises:
        OrganInferError: NumPy cannot be loaded.
    """
    if "numpy" in sys.modules:
        return
    from ..errors import OrganInferError

    variable = "OPENBLAS_NUM_THREADS"
    own_value = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        import numpy  # noqa: F401
    except ImportError as e:
        reason = str(e.__cause__ or e).strip().splitlines()[0]
        raise OrganInferError(
            f"NumPy cannot be loaded ({reason}); install it again, or raise the limit of memory (ulimit -v)"
        ) from e
    finally:
        if own_value is None:
            del os.environ[variable]
        else:
            os.environ[variable] = own_value


def _check(options: "Options", messages: "Messages") -> int:
    from .check import check
    from .output import Writer
    from .progress import library_messages

    with library_messages(messages):
        lines, problems = check(options)
    Writer(None).write("".join(f"{line}\n" for line in lines))
    for problem in problems:
        messages.error(problem)
    return FAILED if problems else ALL_CLASSIFIED


def _flush_stdout(code: int) -> int:
    """Flush standard output while a closed pipe can still be ignored. Returns `code`."""
    try:
        # None if it was closed before this process began.
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
