# cython: language_level=3, binding=False, freethreading_compatible=True
"""A batch of files as a network's input: opened, read, decoded and packed in C.

Only plain 8-bit gray PNG is taken, by a strict decoder; whatever is unusual, damaged or missing is left to the
caller, so that there is one place, `organ_infer.images.registry`, that reads it or says what is wrong with it.
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
        uint32_t size
        int (*pack)(const organ_job *job, long threads)
        float *out
        uint8_t *done

    void organ_read(const organ_reading *reading, long threads)

ctypedef int (*packer)(const organ_job *job, long threads) noexcept nogil

__all__ = ["read"]

_import_array()

# The kernels stand in _packing alone: one copy, one dispatch level.
cdef packer PACK = <packer> PyCapsule_GetPointer(_packing._organ_pack, "organ_infer._packing._organ_pack")


cdef object _name(object path):
    """As the system takes it; None for what is no name, which opening it the usual way reports."""
    try:
        name = os.fsencode(path)
    except UnicodeError:
        return None
    return None if b"\0" in name else name


def read(paths, size=28, *, mean=0.5, std=0.5, pixel_limit=ORGAN_PNG_PIXELS, threads=1):
    """read(paths, size=28, *, mean=0.5, std=0.5, pixel_limit=1048576, threads=1)

    (packed, done): float32 (N, 1, size, size) and bytes (N). Where done[i] is 1, packed[i] is bit for bit what
    `pack` gives for the pixels of paths[i]; where it is 0, the file has to be read otherwise, and packed[i] is not set.

    paths: str, bytes or path-like, of any files whatever. size, mean, std: as for `pack`.
    pixel_limit: pictures of more are not taken; nor of more than 1,048,576, nor files of more than 1 MiB.
    threads: upper bound; there is no more than one for every 64 files.

    The GIL is released around the whole batch. Raises TypeError, ValueError, MemoryError; never for what a file
    is or holds.
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
