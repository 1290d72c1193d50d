# cython: language_level=3, binding=False, freethreading_compatible=True
"""Opens, reads, decodes and packs a batch of files for a network, in C.

A strict decoder accepts plain 8-bit gray PNG only. Unusual, damaged and missing files are left to the caller, so that
`organ_infer.images.registry` is the one place that reads them or reports what is wrong.
"""

import os
from operator import index

from cpython.bytes cimport PyBytes_AsString
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport isfinite
from libc.stdlib cimport free, malloc

from kernels cimport *
from organ_infer import _packing

cdef extern from "files.h" nogil:
    enum:
        ORGAN_PNG_PIXELS

    ctypedef struct organ_reading "struct organ_reading":
        const char **paths
        size_t count
        uint64_t pixel_limit
        const organ_scale *scale
        organ_resample resample
        uint32_t size
        int (*pack)(const organ_job *job, long threads)
        float *out
        uint8_t *done

    void organ_read(const organ_reading *reading, long threads)

ctypedef int (*packer)(const organ_job *job, long threads) noexcept nogil

__all__ = ["read"]

_import_array()

# Only _packing contains the kernels: one copy, one dispatch level.
cdef packer PACK = <packer> PyCapsule_GetPointer(_packing._organ_pack, "organ_infer._packing._organ_pack")


cdef object _name(object path):
    """Encode a path for the system. None for an invalid path: opening it in the usual way reports the error."""
    try:
        name = os.fsencode(path)
    except UnicodeError:
        return None
    return None if b"\0" in name else name


def read(paths, size=28, *, mean=0.5, std=0.5, resample="area", pixel_limit=ORGAN_PNG_PIXELS, threads=1):
    """read(paths, size=28, *, mean=0.5, std=0.5, resample="area", pixel_limit=1048576, threads=1)

    Read and pack a batch of files. The GIL is released around the whole batch.

    Args:
        paths: str, bytes or path-like, of any kind of file.
        size: S, pixels, 1 to 4,096.
        mean: of the network's input, rounded to float32.
        std: of the network's input, rounded to float32, above 0.
        resample: area, linear or cubic, see `pack`.
        pixel_limit: larger images are skipped, and so are images of more than 1,048,576 pixels and files of more
            than 1 MiB.
        threads: upper bound. There is at most one per 64 files.

    Returns:
        (packed, done): float32 (N, 1, size, size) and bytes (N). If done[i] is 1, packed[i] is equal to the bit to
        the result of `pack` for the pixels of paths[i]. If it is 0, the file must be read in another way and
        packed[i] is not set.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: size, mean or std out of range, or an unknown resample.
        MemoryError: no memory for the output. The content of a file never raises.
    """
    cdef tuple names = tuple([_name(path) for path in paths])
    cdef size_t i, count = len(names)
    cdef long side = index(size), thread_count = max(1, min(index(threads), 1024))
    cdef organ_scale scale
    cdef organ_reading reading
    cdef npy_intp[4] shape
    cdef const char **pointers = NULL
    cdef uint8_t *done = NULL

    if not 1 <= side <= ORGAN_MAX_SIZE:
        raise ValueError(f"expected size from 1 to {ORGAN_MAX_SIZE}, found {side}")
    scale.kind = ORGAN_U8
    scale.depth = 255
    scale.mean = <float> mean
    scale.std = <float> std
    if not (isfinite(scale.mean) and isfinite(scale.std) and scale.std > 0.0):
        raise ValueError(f"expected a finite mean and a finite std above 0, found {mean} and {std}")
    organ_scale_ready(&scale)
    resample_of(resample, &reading.resample)
    shape[0] = <npy_intp> count
    shape[1] = 1
    shape[2] = shape[3] = side
    packed = PyArray_SimpleNew(4, shape, NPY_FLOAT32)
    if count == 0:
        return packed, b""
    try:
        pointers = <const char **> malloc(count * sizeof(char *))
        done = <uint8_t *> malloc(count)
        if pointers == NULL or done == NULL:
            raise MemoryError()
        for i in range(count):
            pointers[i] = NULL if names[i] is None else PyBytes_AsString(names[i])
        reading.paths = pointers
        reading.count = count
        reading.pixel_limit = max(0, min(index(pixel_limit), ORGAN_PNG_PIXELS))
        reading.scale = &scale
        reading.size = <uint32_t> side
        reading.pack = PACK
        reading.out = <float *> PyArray_DATA(<PyArrayObject *> packed)
        reading.done = done
        with nogil:
            organ_read(&reading, thread_count)
        return packed, <bytes> (<const char *> done)[:count]
    finally:
        free(pointers)
        free(done)
