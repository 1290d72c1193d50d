"""The scans of an audit with their masks: from a CSV file, or from two parallel directories."""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..errors import InputError, file_reason, one_line, short_repr, shorten_names
from ..images.scan_formats import SCAN_SUFFIXES, scan_title
from ..names import escape_path
from ..volumes.label_maps import LABEL_MAPS, label_map

__all__ = ["CSV_LIMIT", "Pair", "Pairs", "pair_directories", "read_pairs"]

# Bytes of the CSV file.
CSV_LIMIT = 1 << 26
COLUMNS = ("scan", "mask", "labels")
_LINE_FORMAT = "expected scan,mask[,labels]"
# Besides the suffixes of whole scans: zip and multi-frame DICOM, DICOM SEG, RTSTRUCT.
SUFFIXES = tuple(sorted((*SCAN_SUFFIXES, ".zip", ".dcm"), key=len, reverse=True))
# nnU-Net numbers the channels of a case from 0. CT is the only one.
CHANNEL = "_0000"
# Headers whose voxels may be in another file, which has the same stem.
DETACHED_SUFFIXES = (".nhdr", ".mhd", ".hdr")
# Characters of a list of names in a message.
NAMES_LIMIT = 300


@dataclass(frozen=True, slots=True)
class Pair:
    """One scan with its mask.

    Attributes:
        scan: Path of the scan.
        mask: Path of the mask.
        labels: Name of a label map, or the path of a CSV file.
    """

    scan: str
    mask: str
    labels: str

    def key(self) -> str:
        """Return a text that changes if a path or a file changes: by its size, or by the time of its last change.

        Of a directory, all names, sizes and times count, also those in directories below.
        """
        digest = hashlib.sha256()
        for path in (self.scan, self.mask):
            _add_state(digest, path)
        if self.labels.lower() in LABEL_MAPS:
            digest.update(self.labels.lower().encode())
        else:
            _add_state(digest, self.labels)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of two directories.

    Attributes:
        pairs: Sorted by name.
        notes: One line each about entries that have no partner.
    """

    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()


# A CSV file.


def read_pairs(path: str, labels: str) -> tuple[Pair, ...]:
    """Read `scan,mask[,labels]` per line.

    Args:
        path: The CSV file, in UTF-8. The first line may be a header, whose columns may have any order.
            Other columns of a header are ignored. Relative paths begin at the file's directory.
        labels: The label map of lines without one.

    Raises:
        InputError: If the file cannot be read, or a line is wrong. The message has the line's number.
    """
    name = escape_path(path, one_line=True)
    label_map(labels)
    base = os.path.dirname(path)
    # pair -> the line that it is on
    lines: dict[tuple[str, str, str], int] = {}
    pairs = []
    for line, cells in _rows(path, name):
        pair = _pair(cells, base, labels, f"{name}, line {line}")
        identity = (os.path.abspath(pair.scan), os.path.abspath(pair.mask), pair.labels)
        first = lines.setdefault(identity, line)
        if first != line:
            raise InputError(
                f"{name}, line {line}: the same scan and mask as in line {first}; remove one of them"
            )
        pairs.append(pair)
    if not pairs:
        raise InputError(f"{name}: lists no scan; expected scan,mask per line")
    return tuple(pairs)


def _rows(path: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Iterate over the rows below the header, with their line numbers. Blank lines are skipped."""
    text = _text(path, name)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    line = 1
    header: list[str] | None = None
    try:
        for cells in reader:
            is_header = line == 1 and _header(cells) is not None
            if is_header:
                header = _header(cells)
            elif any(cells):
                yield line, _ordered(cells, header, f"{name}, line {line}")
            # a quoted cell may hold line breaks
            line = reader.line_num + 1
    except csv.Error as e:
        raise InputError(
            f"{name}, line {line}: no valid CSV ({one_line(e)}); {_LINE_FORMAT}"
        ) from e


def _text(path: str, name: str) -> str:
    if os.path.isdir(path):
        raise InputError(
            f"{name}: a directory; pass a CSV file with scan,mask per line, or the directories SCANS and MASKS"
        )
    try:
        with open(path, "rb") as file:
            content = file.read(CSV_LIMIT + 1)
    except (OSError, ValueError) as e:
        raise InputError(f"{name}: cannot be read ({file_reason(e)})") from e
    if len(content) > CSV_LIMIT:
        raise InputError(f"{name}: larger than {CSV_LIMIT:,} bytes; split the list")
    if (title := scan_title(content)) is not None:
        raise InputError(
            f"{name}: a scan or mask ({title}), not a list; pass a CSV file with scan,mask per line, or the directories"
            " SCANS and MASKS"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content[: e.start].count(b"\n") + 1
        raise InputError(f"{name}, line {line}: not UTF-8; save the CSV file as UTF-8") from e
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{name}, line {line}: NUL in the text; pass a CSV file")
    return text


def _header(cells: Sequence[str]) -> list[str] | None:
    """Return the names of the columns, or None if the line is no header."""
    names = [cell.strip().lower() for cell in cells]
    if not {*COLUMNS[:2]} <= {*names}:
        return None
    # Lines may have label maps below this header, too.
    return [*COLUMNS] if names == [*COLUMNS[:2]] else names


def _ordered(cells: list[str], header: Sequence[str] | None, where: str) -> list[str]:
    """Return the cells in the order of COLUMNS, without the other columns of the header."""
    if header is None:
        return cells
    order = [header.index(column) for column in COLUMNS if column in header]
    if len(cells) <= max(order[:2]) or any(cells[len(header) :]):
        raise InputError(f"{where}: {_LINE_FORMAT}, found {short_repr(one_line(','.join(cells)))}")
    return [cells[i] for i in order if i < len(cells)]


def _pair(cells: Sequence[str], base: str, labels: str, where: str) -> Pair:
    if not 2 <= len(cells) <= 3 or not cells[0] or not cells[1]:
        raise InputError(f"{where}: {_LINE_FORMAT}, found {short_repr(one_line(','.join(cells)))}")
    own_labels = cells[2] if len(cells) == 3 else ""
    if own_labels and own_labels.lower() not in LABEL_MAPS:
        own_labels = os.path.join(base, own_labels)
    if own_labels:
        try:
            label_map(own_labels)
        except InputError as e:
            raise InputError(f"{where}: {e}") from e
    return Pair(os.path.join(base, cells[0]), os.path.join(base, cells[1]), own_labels or labels)


# Two directories.


def pair_directories(scans: str, masks: str, labels: str) -> Pairs:
    """Pair the entries of two directories that have the same name without the suffix.

    Args:
        scans: Directory of scans: files, or one directory per DICOM series. `case_0000.nii.gz`, as of nnU-Net,
            belongs to the mask `case` if no mask is named `case_0000`.
        masks: Directory of masks: files, or one directory per mask. Hidden entries are skipped in both.
        labels: The label map of all masks.

    Raises:
        InputError: If a directory cannot be read, two entries have the same name, or there is no pair.
    """
    label_map(labels)
    if os.path.realpath(scans) == os.path.realpath(masks):
        raise InputError(
            f"{escape_path(scans, one_line=True)}: SCANS and MASKS are the same directory; pass a CSV file"
            " with scan,mask per line"
        )
    scan_names, other_scans = _entries(scans, "SCANS")
    mask_names, other_masks = _entries(masks, "MASKS")
    chosen = {name: name for name in scan_names if name in mask_names}
    for name in scan_names:
        case = name.removesuffix(CHANNEL)
        if name not in chosen and case in mask_names:
            chosen.setdefault(case, name)
    pairs = [
        Pair(os.path.join(scans, scan_names[chosen[name]]), os.path.join(masks, mask), labels)
        for name, mask in mask_names.items()
        if name in chosen
    ]
    used = {*chosen.values()}
    notes = [
        *_without("scan", "mask", (file for name, file in scan_names.items() if name not in used)),
        *_without(
            "mask", "scan", (file for name, file in mask_names.items() if name not in chosen)
        ),
        *_others(scans, other_scans),
        *_others(masks, other_masks),
    ]
    if not pairs:
        raise InputError(
            f"{escape_path(scans, one_line=True)}, {escape_path(masks, one_line=True)}: no scan and mask have the same"
            f" name without suffix ({len(scan_names):,} scans, {len(mask_names):,} masks); pass a CSV file with"
            " scan,mask per line"
        )
    return Pairs(tuple(pairs), tuple(notes))


def _entries(directory: str, argument: str) -> tuple[dict[str, str], int]:
    """Return the entries by their name without suffix, and the number of those that are no scan."""
    shown = escape_path(directory, one_line=True)
    try:
        files = sorted(os.listdir(directory))
    except NotADirectoryError as e:
        raise InputError(
            f"{argument} {shown}: not a directory; list single files in a CSV file with scan,mask per line"
        ) from e
    except (OSError, ValueError) as e:
        raise InputError(f"{argument} {shown}: cannot be listed ({file_reason(e)})") from e
    names: dict[str, str] = {}
    others = 0
    for file in files:
        if file.startswith("."):
            continue
        name = _name(os.path.join(directory, file))
        if name is None:
            others += 1
            continue
        first = names.setdefault(name, file)
        if first != file:
            raise InputError(
                f"{argument} {shown}: {escape_path(first, one_line=True)} and {escape_path(file, one_line=True)} have"
                " the same name without suffix; rename one, or pass a CSV file with scan,mask per line"
            )
    return names, others


def _name(path: str) -> str | None:
    """Return the name without suffix of a file or directory, or None if the file has no suffix of a scan."""
    file = os.path.basename(path)
    if os.path.isdir(path):
        return file
    suffix = next((suffix for suffix in SUFFIXES if file.lower().endswith(suffix)), None)
    return None if suffix is None else file[: -len(suffix)]


def _without(what: str, partner: str, files: Iterable[str]) -> Iterator[str]:
    """Name the files without a partner on one line, if there are any."""
    names = [escape_path(file, one_line=True) for file in files]
    if names:
        noun = what if len(names) == 1 else f"{what}s"
        listed = shorten_names(names, NAMES_LIMIT)
        yield f"{len(names):,} {noun} without a {partner}, left out: {listed}"


def _others(directory: str, count: int) -> Iterator[str]:
    if count:
        noun = "file" if count == 1 else "files"
        shown = escape_path(directory, one_line=True)
        yield f"{shown}: {count:,} {noun} without a suffix of scans, left out"


# The state of files.


def _add_state(digest: "hashlib._Hash", path: str) -> None:
    """Add the path of a file or directory to a digest, with what changes when its content does."""
    _add(digest, "path", os.path.abspath(path))
    if os.path.isdir(path):
        for directory, folders, files in os.walk(path, followlinks=False):
            folders.sort()
            for file in sorted(files):
                whole = os.path.join(directory, file)
                _add(digest, os.path.relpath(whole, path), *_size_and_time(whole))
        return
    _add(digest, *_size_and_time(path))
    stem, suffix = os.path.splitext(path)
    if suffix.lower() in DETACHED_SUFFIXES:
        for whole in _siblings(path, os.path.basename(stem)):
            _add(digest, whole, *_size_and_time(whole))


def _siblings(path: str, stem: str) -> list[str]:
    """Return the other files of a directory whose name is `stem` and a suffix."""
    directory, own = os.path.split(path)
    try:
        files = sorted(os.listdir(directory or "."))
    except OSError:
        return []
    return [
        os.path.join(directory, file)
        for file in files
        if file != own and file.startswith(f"{stem}.")
    ]


def _size_and_time(path: str) -> tuple[object, ...]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        # A file that is not there is reported when the scan is opened.
        return (None, None)
    return status.st_size, status.st_mtime_ns


def _add(digest: "hashlib._Hash", *values: object) -> None:
    digest.update(repr(values).encode("utf-8", "surrogatepass"))
