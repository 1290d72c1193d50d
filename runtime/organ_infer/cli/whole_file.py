"""Files that are written once, at the end of a run: the report and the metrics."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle.files import packaged_bundle
from ..errors import file_reason
from ..files import atomic_file, partial_directory
from ..images.registry import has_known_content
from ..names import escape_path
from .arguments import Options, UsageError
from .output import OutputError

if TYPE_CHECKING:
    from .progress import Messages

__all__ = ["check_whole_files", "write_whole_file"]

# Options that name a file to write at the end, and those whose file is in use until then.
_WRITTEN = ("report", "metrics")
_IN_USE = ("output", "labels", "files_from", "boxes")


def check_whole_files(options: Options, messages: "Messages") -> None:
    """Check before a long run that its report and its metrics can be written after it.

    Raises:
        UsageError: Two options name one file, or a file would be in the bundle.
        OutputError: A file cannot be written, or is an image.
    """
    names = {name: getattr(options, name) for name in (*_IN_USE, *_WRITTEN)}
    files = {
        name: os.path.realpath(path) for name, path in names.items() if path not in (None, "-")
    }
    for option in _WRITTEN:
        for other, path in files.items():
            if option in files and other != option and path == files[option]:
                raise UsageError(
                    f"{_shown(option, names[option])}: the file of --{other.replace('_', '-')}; choose another name"
                )
        if names[option] is not None:
            _check_place(option, names[option], options.bundle)
            _check(option, names[option], options.force, messages)


def _check_place(option: str, path: str, bundle: str | None) -> None:
    """Refuse standard output, and the directory of the bundle, whose files are all listed in its manifest."""
    if path == "-":
        raise UsageError(f"{_shown(option, path)}: not standard output; name a file, or write ./-")
    directory = os.path.realpath(packaged_bundle() if bundle is None else bundle)
    if os.path.dirname(os.path.realpath(path)) == directory:
        raise UsageError(
            f"{_shown(option, path)}: in the directory of the model, which holds no other file; choose another path"
        )


def _check(option: str, path: str, force: bool, messages: "Messages") -> None:
    name = _shown(option, path)
    try:
        exists = _exists(path)
        if os.path.exists(path) and not os.path.isfile(path):
            raise OutputError(f"{name}: exists and is not a regular file; choose another path")
        if has_known_content(path) or _is_binary(path):
            raise OutputError(f"{name}: an image or another binary file; choose another name")
        with partial_directory(Path(os.path.realpath(path))):
            pass
    except (OSError, ValueError) as e:
        raise OutputError(f"{name}: cannot be written ({file_reason(e)})") from e
    if exists and not force:
        messages.note(f"{name}: exists and will be replaced; --force omits this note")


def _exists(path: str) -> bool:
    """Whether there is something at a path. Raises OSError for a path that no file can have."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _is_binary(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return b"\0" in file.read(4096)


def write_whole_file(option: str, path: str, parts: Iterable[str]) -> None:
    """Write a file, which appears complete or not at all.

    Args:
        option: The name of the option, for messages.
        path: The file. The file that a symbolic link points to is replaced, not the link.
        parts: Its content.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        with atomic_file(Path(os.path.realpath(path))) as file:
            for part in parts:
                file.write(part)
    except (OSError, ValueError) as e:
        raise OutputError(f"{_shown(option, path)}: cannot be written ({file_reason(e)})") from e


def _shown(option: str, path: str) -> str:
    return f"--{option} {escape_path(path, one_line=True)}"
