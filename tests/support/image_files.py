"""Image files made here, and what is to come of them."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from organ_infer import ImageError
from organ_infer.images.registry import decode_slices, open_slices
from organ_infer.images.types import Limits

GRAY = np.random.default_rng(3).integers(0, 256, (9, 7), np.uint8)
DEEP = np.random.default_rng(4).integers(0, 65_536, (9, 7), np.uint16)
COLOUR = np.random.default_rng(5).integers(0, 256, (9, 7, 3), np.uint8)
ALPHA = np.random.default_rng(6).integers(0, 256, (9, 7), np.uint8)
STACK = np.random.default_rng(7).integers(0, 256, (5, 9, 7), np.uint8)


def slices(data, pick=None, **limits):
    """{name: slice} of a file's bytes."""
    return {name: read() for name, read in decode_slices(data, Limits(**limits), pick)}


def decode(data, pick=None, **limits):
    """The slice of a file that holds one."""
    (found,) = slices(data, pick, **limits).values()
    return found


def read_image(path, **limits):
    ((_, found),) = ((name, read()) for name, read in open_slices(str(path), Limits(**limits)))
    return found


def same(found, expected, dtype=np.uint8):
    assert found.pixels.dtype == dtype
    np.testing.assert_array_equal(found.pixels, expected)


def close(found, expected):
    assert found.pixels.dtype == np.uint8
    np.testing.assert_allclose(found.pixels, expected, atol=1.01)


def refused(data, words, pick=None, **limits):
    with pytest.raises(ImageError, match=words) as caught:
        slices(data, pick, **limits)
    assert "\n" not in str(caught.value)


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, form, **options
    )
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(compressed=False, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def tiff(*pages, order="<", bits=None, **tags):
    """A TIFF by hand, its pages (H, W) or (H, W, channels) in strips of their own. tags: those of every page, by
    number (t274=6)."""
    data = (b"II*\0" if order == "<" else b"MM\0*") + b"\0\0\0\0"
    link = 4
    for page in pages:
        channels = 1 if page.ndim == 2 else page.shape[2]
        depth = bits or page.dtype.itemsize * 8
        raw = (
            page.astype(page.dtype.newbyteorder(order)).tobytes()
            if bits is None
            else packed_12(page)
        )
        strip, data = len(data), data + raw + b"\0" * (len(raw) % 2)
        entries = {
            256: page.shape[1],
            257: page.shape[0],
            258: depth,
            259: 1,
            262: 1 if channels == 1 else 2,
        }
        entries |= {273: strip, 277: channels, 278: page.shape[0], 279: len(raw)}
        entries |= {int(name[1:]): value for name, value in tags.items()}
        if channels > 2:  # its depth, a channel each, does not fit into the entry
            entries[258], data = (
                len(data),
                data + struct.pack(f"{order}{channels}H", *[depth] * channels),
            )
            data += b"\0" * (len(data) % 2)
        at = len(data)
        data = data[:link] + struct.pack(order + "I", at) + data[link + 4 :]
        data += struct.pack(order + "H", len(entries))
        for number, value in sorted(entries.items()):
            count = channels if number == 258 else 1
            kind, form = (4, "I") if number in (256, 257, 273, 278, 279) or count > 2 else (3, "HH")
            kind = 3 if number == 258 else kind
            values = [value] if form == "I" else [value, value if count == 2 else 0]
            data += struct.pack(order + "HHI" + form, number, kind, count, *values)
        link = len(data)
        data += b"\0\0\0\0"
    return data


def packed_12(page):
    """uint16 of 12 bits, two pixels in three bytes, each row begun anew."""
    bits = np.unpackbits(page.astype(">u2")[..., None].view(np.uint8), axis=-1)[..., 4:]
    return np.packbits(bits.reshape(len(page), -1), axis=1).tobytes()


def dicom(pixels, **fields):
    """A DICOM file of pixels (H, W) or (N, H, W) as they are stored."""
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = fields.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.Modality, data.PhotometricInterpretation, data.SamplesPerPixel = "CT", "MONOCHROME2", 1
    data.Rows, data.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in fields.items():
        setattr(data, name, value)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()
