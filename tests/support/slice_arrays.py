"""Slices for tests of packing: random ones, the fractions of their pixels, and other layouts in memory."""

import numpy as np

# dtype: the pixel that is 1; int16 has a window
KINDS = {"uint8": 255, "uint16": 65535, "int16": None}


def fractions(image, window=(40, 400)):
    """Each pixel's fraction, float64."""
    if image.dtype == np.int16:
        low = window[0] - window[1] / 2
        return np.clip((image - low) / window[1], 0, 1)
    return image / KINDS[image.dtype.name]


def random_slice(rng, dtype, shape):
    if dtype == "int16":
        return rng.integers(-400, 500, shape).astype(np.int16)
    return rng.integers(0, KINDS[dtype] + 1, shape).astype(dtype)


def strided(image):
    """Arrays equal to `image` that lie otherwise in memory."""
    wide = np.zeros((image.shape[0], image.shape[1] * 3), image.dtype)
    wide[:, ::3] = image
    tall = np.zeros((image.shape[0] * 2, image.shape[1] + 5), image.dtype)
    tall[::2, 5:] = image
    raw = np.zeros(image.nbytes + 1, np.uint8)
    odd = raw[1:].view(image.dtype).reshape(image.shape)
    odd[...] = image
    read_only = image.copy()
    read_only.flags.writeable = False
    return {
        "fortran": np.asfortranarray(image),
        "every third column": wide[:, ::3],
        "padded rows": tall[::2, 5:],
        "rows backwards": np.ascontiguousarray(image[::-1])[::-1],
        "columns backwards": np.ascontiguousarray(image[:, ::-1])[:, ::-1],
        "both backwards": np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1],
        "misaligned": odd,
        "read-only": read_only,
    }
