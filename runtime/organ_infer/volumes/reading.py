"""Opens scans and masks, whatever their format. Every error is one line that begins with the path."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ImageError, InputError, short_repr
from .hounsfield import check_density, read_hounsfield
from .label_maps import label_map
from .masks import read_label_image, read_structure_files
from .scan_files import read_header, scan_names, title_of
from .segments import read_segments
from .series import read_series
from .types import Mask, Volume
from .voxel_files import read_header_bytes, reader_errors

__all__ = ["open_mask", "open_volume"]

# the first bytes of an .npy file
_NPY = b"\x93NUMPY"


def open_volume(path: str | os.PathLike[str], *, series: int | str | None = None) -> Volume:
    """Read a CT scan.

    Args:
        path: A NIfTI, NRRD or MetaImage file, the directory or zip of a DICOM series, or a multi-frame DICOM file.
            DICOM files are found by content, in directories below too.
        series: SeriesNumber or SeriesInstanceUID, if there are several DICOM series.

    Returns:
        The scan, int16 HU (X, Y, Z) in the file's order, and its affine.

    Raises:
        ImageError: If the file cannot be read as a CT scan in a known geometry.
        InputError: If there are several series and `series` chooses none.
    """
    path = _as_text(path)
    with _named(path):
        if os.path.isdir(path) or title_of(path) is None:
            _check_no_array(path)
            volume = read_series(path, series)
            check_density(volume.hu)
            return volume
        if series is not None:
            raise InputError(
                f"{path}: --series or series= chooses a DICOM series, and this file holds one scan; leave it out"
            )
        header = read_header(path)
        hu, warnings = read_hounsfield(header)
        check_density(hu)
        return Volume(hu, header.affine, path, (*header.warnings, *warnings))


def open_mask(
    path: str | os.PathLike[str],
    like: Volume,
    labels: str = "totalsegmentator",
    *,
    resample: bool = False,
) -> Mask:
    """Read the mask of a scan.

    Args:
        path: A label image (NIfTI, NRRD, MetaImage), a directory with one binary image per structure, a DICOM SEG or
            an RTSTRUCT.
        like: The scan. A mask whose axes have another order or direction is reoriented to it.
        labels: The data set whose numbers and names the mask has: totalsegmentator, totalsegmentator-v1, amos22, btcv,
            flare22, word, ct-org, lits, abdomenatlas, msd-liver, msd-pancreas or msd-spleen. Or the path of a CSV file
            with lines `number_or_name,class`.
        resample: Whether a mask on another grid is resampled to the scan's with nearest neighbor, with a warning.

    Returns:
        The organs on the scan's grid.

    Raises:
        ImageError: If the mask cannot be read, is empty, has another grid that is not to be resampled or lies
            outside the scan, or has no structure with a class.
        InputError: If `labels` is no label map, or `resample` is not True or False.
    """
    path = _as_text(path)
    if not isinstance(like, Volume):
        raise InputError("like: expected a Volume; pass what open_volume returned")
    if not isinstance(resample, bool):
        raise InputError(f"resample: expected True or False, found {short_repr(resample)}")
    row = label_map(labels)
    with _named(path):
        if os.path.isdir(path):
            if files := scan_names(path):
                return read_structure_files(path, files, like, row, resample)
        elif title_of(path) is not None:
            return read_label_image(path, like, row, resample)
        else:
            _check_no_array(path)
        return read_segments(path, like, row, resample)


def _check_no_array(path: str) -> None:
    """Refuse NumPy's files, which have no affine."""
    if os.path.isdir(path):
        return
    head, _ = read_header_bytes(path, len(_NPY))
    if head == _NPY or (path.lower().endswith(".npz") and head.startswith(b"PK")):
        raise ImageError(
            "an array without its affine; pass NIfTI or DICOM, or from Python Volume(hu, affine, source) and"
            " Mask(layers, codes) to predict_volume"
        )


def _as_text(path: object) -> str:
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise InputError(f"path: expected a path, found {type(path).__name__}")
    return os.fsdecode(path)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Name the path in every error that does not name a file of it, and convert any other error."""
    try:
        with reader_errors("scan"):
            yield
    except ImageError as e:
        message = str(e.args[0])
        raise ImageError(message if message.startswith(path) else f"{path}: {message}") from e
