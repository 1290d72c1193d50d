"""Rows of bad_input.py about arrays that are no stacks of slices, process-wide switches of the host program, and DICOM
objects that are no CT images or lack attributes."""

import io
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray
from support.damaged_files import answer, checked, outcome, unchecked
from support.image_files import dicom, npy, npz

Outcomes = Iterable[str]
Array = NDArray[Any]


def axes(count: int, rng: random.Random) -> Outcomes:
    """Arrays with a channel axis, volumes as other libraries store them, labels: refused, or the one right answer."""
    from organ_infer import InputError, OrganClassifier

    pixels = np.random.default_rng(rng.getrandbits(32))

    def drawn(*shape: int, dtype: Any = np.uint8) -> Array:
        return pixels.integers(0, 256, shape).astype(dtype)

    with OrganClassifier(device="cpu", threads=1) as classifier:
        for height, width in ((28, 28), (64, 48), (5, 300)):
            plain = drawn(height, width)
            expected = classifier.predict_proba(plain)
            squeezed = [
                plain[..., None],
                plain[None],
                plain[None, ..., None],
                np.asfortranarray(plain)[..., None],
            ]
            for dtype in (np.uint8, np.int16, np.uint16):
                odd = [drawn(height, width, channels, dtype=dtype) for channels in (2, 3, 4)]
                odd += [drawn(2, height, width, 3, dtype=dtype), drawn(height, 1, dtype=dtype)]
                odd += [drawn(1, width, dtype=dtype), drawn(1, height, 1, dtype=dtype)]
                odd += [drawn(7, dtype=dtype), drawn(7, 1, dtype=dtype)]
                for array in odd:
                    yield from _refused(lambda array=array: classifier.predict_proba(array))
                    for data in (npy(array), npz(images=array)):
                        found = outcome(data, {})
                        yield (
                            "refused"
                            if found == "refused"
                            else f"different: {array.shape}: {found}"
                        )
            for array in squeezed:
                try:
                    found_probabilities = classifier.predict_proba(array)
                except InputError as e:
                    yield "refused" if "\n" not in str(e) else "crashed: two lines"
                    continue
                alike = np.array_equal(found_probabilities, expected)
                yield "same" if alike else f"different: {array.shape}"
        for shape in ((512, 512, 40), (256, 256, 3), (200, 200, 130)):
            volume = drawn(*shape, dtype=np.int16)
            yield from _refused(lambda volume=volume: classifier.predict_proba(volume))
        labels = [np.arange(10), np.arange(10)[:, None], np.zeros((600, 1), np.uint8)]
        for array in labels:
            yield from _refused(lambda array=array: classifier.predict_proba(array))


def _refused(ask: Callable[[], Any]) -> Iterator[str]:
    from organ_infer import InputError

    try:
        found = ask()
    except InputError as e:
        yield "refused" if "\n" not in str(e) and len(str(e)) < 500 else f"crashed: {e!r:.300}"
    except Exception as e:
        yield f"crashed: {e!r:.300}"
    else:
        yield f"different: {len(found)} answers"


def host_switches(count: int, rng: random.Random) -> Outcomes:
    """Files of every format, whole and cut, under each process-wide switch that a host program may have set."""
    import locale

    from PIL import Image, ImageFile, PngImagePlugin

    files = checked() | unchecked()
    sound = {name: answer(data) for name, data in files.items()}
    switches: list[tuple[Any, str, Any]] = [
        (ImageFile, "LOAD_TRUNCATED_IMAGES", True),
        (ImageFile, "ERRORS", {}),
        (Image, "MAX_IMAGE_PIXELS", None),
        (Image, "MAX_IMAGE_PIXELS", 1),
        (PngImagePlugin, "MAX_TEXT_CHUNK", 1),
        (PngImagePlugin, "MAX_TEXT_MEMORY", 1),
    ]
    for module, name, value in switches:
        before = getattr(module, name, None)
        setattr(module, name, value)
        try:
            # A limit of one pixel is meant.
            yield from _whole_and_cut(files, sound, may_refuse=value == 1)
        finally:
            setattr(module, name, before)
    with np.errstate(all="raise"):
        yield from _whole_and_cut(files, sound)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield from _whole_and_cut(files, sound)
    locale.setlocale(locale.LC_ALL, "C")
    yield from _whole_and_cut(files, sound)


def _whole_and_cut(
    files: dict[str, bytes], sound: dict[str, Any], may_refuse: bool = False
) -> Iterator[str]:
    for name, data in files.items():
        what = outcome(data, sound[name])
        yield (
            what
            if what == "same" or (may_refuse and what == "refused")
            else f"different: {name}, whole: {what}"
        )
        for share in (0.3, 0.6, 0.95):
            what = outcome(data[: int(len(data) * share)], sound[name])
            # A file whose last bytes are not pixels may be whole without them.
            yield what if what in ("refused", "same") else f"{what}: {name}, cut at {share}"


KINDS = [
    "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.2", "1.2.840.10008.5.1.4.1.1.481.3",
    "1.2.840.10008.5.1.4.1.1.30", "1.2.840.10008.5.1.4.1.1.128", "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.88.67", "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.104.1",
]  # fmt: skip
MODALITIES = ["SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "MR", "PT", "NM", "US", "XA", "CR", "DX", "MG", "SR", "PR", "KO", "OT", "", "ct", "X"]  # fmt: skip
ODD: list[Any] = [
    "",
    None,
    "x",
    -1,
    0,
    65_535,
    1e9,
    float("nan"),
    [1, 2, 3],
    ["a"] * 7,
    b"\xff\xfe",
]


def dicom_objects(count: int, rng: random.Random) -> Outcomes:
    """Objects of other kinds and modalities are refused, whatever their pixels."""
    stored = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 2000
    units = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    for kind in KINDS:
        for modality in ("CT", "OT", kind[-2:]):
            what = outcome(dicom(stored, **units, SOPClassUID=kind, Modality=modality), {})
            other = kind.endswith(("66.4", "481.2", "481.3", ".30")) or modality != "CT"
            if what == "different":
                what = f"different: {kind} {modality}" if other else "same"
            yield what
    for modality in MODALITIES:
        what = outcome(dicom(stored, **units, Modality=modality), {})
        if modality.strip().upper() in ("", "CT"):
            yield "same" if what == "different" else what
        else:
            yield what if what == "refused" else f"different: modality {modality}: {what}"


def dicom_attributes(count: int, rng: random.Random) -> Outcomes:
    """Each attribute of a CT slice missing, empty, or with a value that does not belong there."""
    import pydicom

    cosines = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 0]}
    more = {
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelSpacing": [1, 1],
        "RescaleType": "HU",
    }
    more |= {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "NumberOfFrames": 1,
        "SmallestImagePixelValue": 0,
    }
    more |= {
        "WindowCenter": 40,
        "WindowWidth": 400,
        "PixelPaddingValue": 0,
        "LossyImageCompression": "00",
    }
    stored = (np.arange(64 * 64, dtype=np.uint16) % 2000).reshape(64, 64)
    whole = dicom(stored, **more, **cosines)
    names = [element.keyword for element in pydicom.dcmread(io.BytesIO(whole))]
    for name in names:
        for value in ["missing", *ODD]:
            data = pydicom.dcmread(io.BytesIO(whole))
            try:
                if value == "missing":
                    del data[name]
                else:
                    setattr(data, name, value)
                file = io.BytesIO()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    data.save_as(file, enforce_file_format=True)
            except Exception:
                # pydicom does not write it.
                continue
            what = outcome(file.getvalue(), {})
            yield (
                "same"
                if what == "different"
                else f"{what}: {name}={value!r}"
                if what.startswith("crashed")
                else what
            )


ROWS: dict[str, Callable[[int, random.Random], Outcomes]] = {
    "arrays with a channel axis, volumes, labels": axes,
    "every format under process-wide switches of the host program": host_switches,
    "DICOM objects that are no CT images": dicom_objects,
    "DICOM attributes missing, empty or odd *": dicom_attributes,
}
