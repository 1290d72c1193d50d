"""Rows of bad_input.py about scans and masks. Each yields `refused` (an error of the package, on one line, that says what
to do), `same` (the right voxels), or `crashed` and `different` with what was seen."""

import gzip
import io
import random
import resource
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from bad_environments import run
from support import phantoms
from support.damaged_files import cuts, flips
from support.image_files import dicom

Outcomes = Iterable[str]

SCAN = phantoms.phantom()
STRUCTURES = {name: SCAN.labels == number for number, name in enumerate(phantoms.ORGANS, 1)}
# bytes that a bomb may take beside what the process has
MEMORY = 1 << 28
# frames of a series that is too long to be read by mistake
MANY = 10_000


def _nifti(array: Any = SCAN.hu, affine: Any = SCAN.affine, **fields: Any) -> bytes:
    return gzip.compress(phantoms.nifti(array, affine, **fields), 1)


def _scaled(factor: float) -> Any:
    affine = SCAN.affine.copy()
    affine[:3] *= factor
    return affine


def _with_nan(array: Any) -> Any:
    floats = array.astype(np.float32)
    floats[3, 4, 5] = np.nan
    return floats


def _series(**fields: Any) -> bytes:
    return phantoms.zipped(phantoms.series(SCAN, **fields))


def _changed_series(change: Callable[[dict[str, bytes]], object]) -> bytes:
    files = phantoms.series(SCAN)
    change(files)
    return phantoms.zipped(files)


def _bad_scans() -> dict[str, bytes]:
    """Files, or zips of series, that are no CT volume."""
    hu, gray = SCAN.hu, (np.clip(SCAN.hu, -160, 240) + 160) / 400
    # a whole body: one side is long enough in centimeters, too
    body = np.repeat(hu, 20, axis=2)
    bad = {
        "4D": _nifti(np.stack([hu] * 3, 3)),
        "one slice": _nifti(hu[:, :, :1]),
        "NaN": _nifti(_with_nan(hu)),
        "unsigned": _nifti(hu.view(np.uint16)),
        "offset 1100": _nifti((hu + 1100).astype(np.uint16)),
        "uint8, wrapped": _nifti((hu & 255).astype(np.uint8)),
        "uint8, windowed": _nifti((gray * 255).astype(np.uint8)),
        "0 to 1": _nifti(gray.astype(np.float32)),
        "a mask": _nifti(SCAN.labels),
        "no orientation": _nifti(form=""),
        "an unknown unit": _nifti(units=5),
        "a body in centimeters": _nifti(body, np.diag([2.4, 2.7, 0.8, 1.0])),
        "a file of a zip": phantoms.zipped({"scan.nii.gz": _nifti()}),
        "a zip, cut": _series()[:-100],
        "no rescale": _series(RescaleSlope=None, RescaleIntercept=None),
        "rescale of 0": _series(RescaleIntercept=0),
        "no PixelSpacing": _series(PixelSpacing=None),
        "no ImagePositionPatient": _series(ImagePositionPatient=""),
        "MR": _series(Modality="MR"),
        "a missing slice": _changed_series(lambda files: files.pop("IM0005")),
        "a slice cut in its header": _changed_series(
            lambda files: files.update(IM0005=files["IM0005"][:140])
        ),
        "a slice cut in its pixels": _changed_series(
            lambda files: files.update(IM0005=files["IM0005"][:-100])
        ),
        "two series": phantoms.zipped(
            phantoms.series(SCAN)
            | {f"a{name}": data for name, data in phantoms.series(SCAN, uid="1.9").items()}
        ),
    }
    # centimeters, meters and micrometers that are called millimeters, and the reverse
    bad |= {
        f"spacing times {factor}": _nifti(affine=_scaled(factor)) for factor in (0.1, 1e-3, 1e3)
    }
    return bad | {f"unit {unit}, in millimeters": _nifti(units=unit) for unit in (1, 3)}


def _moved(by: list[float]) -> Any:
    affine = SCAN.affine.copy()
    affine[:3, 3] += by
    return affine


def _without(data: bytes, *names: str) -> bytes:
    """A DICOM file without an attribute of the dataset, or of the first item of a sequence."""
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(data))
    item = dataset
    for name in names[:-1]:
        item = item[name][0]
    del item[names[-1]]
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _bad_masks() -> dict[str, bytes]:
    labels = SCAN.labels
    segments, contours = (
        phantoms.segmentation(SCAN, STRUCTURES),
        phantoms.contours(SCAN, STRUCTURES),
    )
    other = type(SCAN)(SCAN.hu, labels, _moved([0, 3, 0]))
    bad = {
        "empty": _nifti(labels * 0),
        "no class": _nifti((labels * 0 + 99).astype(np.uint8)),
        "another place": _nifti(labels, _moved([30, 0, 0])),
        "another spacing": _nifti(labels, _scaled(1.1)),
        "another shape": _nifti(labels[:-1]),
        "4D": _nifti(np.stack([labels] * 2, 3)),
        "halves": _nifti(labels / np.float32(2)),
        "NaN": _nifti(_with_nan(labels)),
        "a scan": _nifti(),
        "a slice": phantoms.series(SCAN)["IM0003"],
        "a series": _series(),
        "a picture": b"\xff\xd8\xff\xe0" + bytes(400),
        "text": b"1,liver\n" * 40,
        "nothing": b"",
        "DICOM without a dataset": bytes(128) + b"DICM",
        "frames of another place": phantoms.segmentation(other, STRUCTURES),
        "contours of another place": phantoms.contours(
            type(SCAN)(SCAN.hu, labels, _moved([0, 0, 4])), STRUCTURES
        ),
        "frames of another system": phantoms.segmentation(
            SCAN, STRUCTURES, FrameOfReferenceUID="1.8"
        ),
        "contours of another system": phantoms.contours(
            SCAN, STRUCTURES, FrameOfReferenceUID="1.8"
        ),
    }
    for modality, kind in {
        "RTPLAN": "481.5",
        "RTDOSE": "481.2",
        "SR": "88.11",
        "PT": "128",
    }.items():
        bad[modality] = dicom(
            np.zeros((2, 2), np.uint8),
            SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{kind}",
            Modality=modality,
        )
    for names in (
        *(("Rows",), ("Columns",), ("BitsAllocated",), ("NumberOfFrames",), ("PixelData",)),
        *(("SegmentSequence",), ("PerFrameFunctionalGroupsSequence",)),
        *(("SharedFunctionalGroupsSequence",), ("SegmentSequence", "SegmentNumber")),
    ):
        bad[f"a SEG without {names[-1]}"] = _without(segments, *names)
    for names in (
        ("StructureSetROISequence", "ROINumber"),
        ("ROIContourSequence", "ReferencedROINumber"),
        ("ROIContourSequence",),
    ):
        bad[f"contours without {names[-1]}"] = _without(contours, *names)
    return bad


def _outcome(read: Callable[[], object], expected: object = None) -> str:
    """`refused`, `same` if what was read is expected, or else what happened."""
    from organ_infer import OrganInferError

    try:
        found = read()
    except OrganInferError as e:
        message = str(e)
        if "\n" in message or (";" not in message and "supported:" not in message):
            return f"crashed: no single line with advice: {message}"
        return "refused"
    except Exception as e:
        return f"crashed: {e!r}"
    return "same" if expected is not None and np.array_equal(found, expected) else "different: read"


def _saved(folder: str, name: str, data: bytes) -> str:
    path = Path(folder, name)
    path.write_bytes(data)
    return str(path)


def _scan_with_system(folder: str) -> Any:
    """The phantom's series, which names its coordinate system."""
    from organ_infer.volumes import open_volume

    return open_volume(_saved(folder, "scan.zip", _series(FrameOfReferenceUID="1.7")))


def no_volumes(_: int, __: random.Random) -> Outcomes:
    """Through the readers."""
    from organ_infer.volumes import open_mask, open_volume

    with tempfile.TemporaryDirectory() as folder:
        for name, data in _bad_scans().items():
            path = _saved(folder, "bad", data)
            found = _outcome(lambda path=path: open_volume(path))
            yield found if found == "refused" else f"{found}: scan, {name}"
        volume = _scan_with_system(folder)
        for name, data in _bad_masks().items():
            path = _saved(folder, "bad", data)
            found = _outcome(lambda path=path: open_mask(path, volume))
            yield found if found == "refused" else f"{found}: mask, {name}"
        for name, array in {
            "NaN": np.where(SCAN.labels == 1, 1, np.nan).astype(np.float32),
            "probabilities": (SCAN.labels == 1).astype(np.float32) * np.float32(0.5),
            "a scan": SCAN.hu,
        }.items():
            _saved(folder, "liver.nii.gz", _nifti(array))
            found = _outcome(lambda: open_mask(folder, volume))
            yield found if found == "refused" else f"{found}: structure, {name}"


def damaged(_: int, __: random.Random) -> Outcomes:
    """Scans and masks of every format, cut at every length: the same voxels or none."""
    from organ_infer.volumes import open_mask, open_volume

    scans = {
        "nifti": phantoms.nifti(SCAN.hu, SCAN.affine),
        "nifti.gz": _nifti(),
        "nrrd": phantoms.nrrd(SCAN.hu, SCAN.affine),
        "metaimage": phantoms.metaimage(SCAN.hu, SCAN.affine),
    }
    masks = {
        "seg": phantoms.segmentation(SCAN, STRUCTURES),
        "contours": phantoms.contours(SCAN, {"liver": STRUCTURES["liver"]}),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, data in scans.items():
            for cut in cuts(data):
                path = _saved(folder, "cut", cut)
                found = _outcome(lambda path=path: open_volume(path).hu, SCAN.hu)
                yield (
                    found
                    if found in ("same", "refused")
                    else f"{found}: {name} of {len(cut)} bytes"
                )
        volume = _scan_with_system(folder)
        for name, data in masks.items():
            for cut in cuts(data):
                path = _saved(folder, "cut", cut)
                found = _outcome(
                    lambda path=path: open_mask(path, volume)["liver"], STRUCTURES["liver"]
                )
                yield (
                    found
                    if found in ("same", "refused")
                    else f"{found}: {name} of {len(cut)} bytes"
                )


def flipped_headers(_: int, __: random.Random) -> Outcomes:
    """Every bit of the headers. Formats without checksums are read as what they hold."""
    from organ_infer.volumes import open_volume

    headers = {
        "nifti": (phantoms.nifti(SCAN.hu, SCAN.affine), 352),
        "nrrd": (phantoms.nrrd(SCAN.hu, SCAN.affine, "raw"), 300),
        "metaimage": (phantoms.metaimage(SCAN.hu, SCAN.affine, compressed=False), 300),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (data, size) in headers.items():
            for head in flips(data[:size]):
                path = _saved(folder, "flipped", head + data[size:])
                found = _outcome(lambda path=path: open_volume(path))
                yield (
                    "same"
                    if found.startswith("different")
                    else f"{found}: {name}"
                    if (found.startswith("crashed"))
                    else found
                )


def _inflating(count: int, head: bytes = b"") -> bytes:
    """gzip of `head` and `count` MiB of zeros."""
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
        packed.write(head)
        for _ in range(count):
            packed.write(bytes(1 << 20))
    return file.getvalue()


def _zip_bomb(count: int, head: bytes) -> bytes:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("slice.dcm", "w", force_zip64=True) as member,
    ):
        member.write(head)
        for _ in range(count):
            member.write(bytes(1 << 20))
    return file.getvalue()


def bombs(_: int, __: random.Random) -> Outcomes:
    """Files that claim, or unpack to, gigabytes, in a process that may take MEMORY more."""
    import zlib  # noqa: F401

    import pydicom  # noqa: F401

    from organ_infer.volumes import open_mask, open_volume

    small = np.diag([0.4, 0.4, 0.4, 1.0])
    head = phantoms.nifti(SCAN.hu[:0], small, dim=(3, 1024, 1024, 1000))
    zipped = _zip_bomb(1024, bytes(128) + b"DICM")
    files = {
        "voxels that are not there": gzip.compress(head + bytes(1 << 20)),
        "a header far behind": _nifti(offset=1 << 30),
        "zeros as declared": _inflating(1024, head),
        "a zip": zipped,
        "a zip whose list lies": zipped.replace(
            struct.pack("<I", (1024 << 20) + 132), struct.pack("<I", 900)
        ),
    }
    behind = _inflating(1024, phantoms.nifti(SCAN.hu, SCAN.affine))
    with tempfile.TemporaryDirectory() as folder:
        volume = _scan_with_system(folder)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for name, data in files.items():
            path = _saved(folder, "bomb", data)
            for read in (
                lambda path=path: open_volume(path),
                lambda path=path: open_mask(path, volume),
            ):
                found = _outcome(read)
                yield found if found == "refused" else f"{found}: {name}"
        path = _saved(folder, "bomb", behind)
        yield _outcome(lambda: open_volume(path).hu, SCAN.hu)


def long_series(_: int, __: random.Random) -> Outcomes:
    """A series of 10,000 slices, whole and with one that is missing in the middle."""
    import pydicom

    from organ_infer.volumes import open_volume

    dataset = pydicom.dcmread(io.BytesIO(phantoms.series(SCAN)["IM0003"]))
    with tempfile.TemporaryDirectory() as folder:
        for k in range(MANY):
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{k + 1}"
            dataset.ImagePositionPatient = [-51.5, 23.25, 0.3 * k]
            dataset.save_as(Path(folder, f"{k}"), enforce_file_format=True)
        expected = np.repeat(open_volume(folder).hu[:, :, :1], MANY, axis=2)
        yield _outcome(lambda: open_volume(folder).hu, expected)
        Path(folder, str(MANY // 2)).unlink()
        yield _outcome(lambda: open_volume(folder))


def commands(_: int, __: random.Random) -> Outcomes:
    """The command with each of the files: exit code 2 and one line."""
    with tempfile.TemporaryDirectory() as folder:
        scan, mask = (
            _saved(folder, "scan.nii.gz", _nifti()),
            _saved(folder, "mask.nii", _nifti(SCAN.labels)),
        )
        system = _saved(folder, "scan.zip", _series(FrameOfReferenceUID="1.7"))
        given: Iterator[tuple[str, list[str]]] = iter(
            [
                *((name, [_saved(folder, f"s{i}", data), "--mask", mask])
                  for i, (name, data) in enumerate(_bad_scans().items())),
                *((name, [system, "--mask", _saved(folder, f"m{i}", data)])
                  for i, (name, data) in enumerate(_bad_masks().items())),
                ("no mask", [scan]),
                ("a mask that is not there", [scan, "--mask", f"{folder}/none"]),
            ]
        )  # fmt: skip
        for name, arguments in given:
            done = run("volume", *arguments)
            lines = done.err.decode("utf-8", "replace").splitlines()
            if done.code is None:
                yield f"hung: {name}"
            elif (
                done.code == 2
                and not done.out
                and [line.startswith("organ-infer: error: ") for line in lines] == [True]
            ):
                yield "refused"
            else:
                yield f"crashed: {name}: {done.code}: {lines}"


ROWS: dict[str, Callable[[int, random.Random], Outcomes]] = {
    "what is no scan or mask: wrong kinds, grids, units, values": no_volumes,
    "the same with `organ-infer volume`": commands,
    "scans and masks of every format, cut at every length": damaged,
    "headers of scans, every bit flipped *": flipped_headers,
    f"scans and masks that unpack to 1 GiB and more, {MEMORY >> 20} MiB of memory available": bombs,
    f"a series of {MANY:,} slices": long_series,
}
