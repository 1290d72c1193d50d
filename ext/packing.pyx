# cython: language_level=3, binding=False, freethreading_compatible=True
"""Normalizes, resamples and packs CT slices for a network, in one pass over each slice.

`pack` is the API. `levels`, `level` and `set_level` select among the kernels for several generations of
processor, for tests and benchmarks. The environment variable ORGAN_INFER_SIMD (`portable`, `avx2` or
`avx512`) selects one at import. Results do not depend on the level.

One slice of 28x28 costs about 0.1 microseconds more than an empty call with the same arguments, and
another 0.1 if the output is new. Arrays are accessed through NumPy's C API, which the limited API of Python
allows. PyObject_GetBuffer would add 0.19 microseconds and typed memoryviews 0.65.
"""

import os
from operator import index

from cpython.float cimport PyFloat_AsDouble, PyFloat_CheckExact
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_CheckExact
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport floor, isfinite
from libc.stdlib cimport free, malloc

from kernels cimport *

__all__ = ["level", "levels", "pack", "set_level"]

_import_array()

# Below this number of pixels the GIL is held: the work takes about ten microseconds, and reacquiring the GIL may
# take longer.
cdef enum:
    KEEP_LOCK_BELOW = 65536

cdef str LINE = "expected uint8, uint16 or int16 slices (H, W) or (N, H, W), or a sequence of (H, W) arrays"


cdef str _type(object value):
    return type(value).__name__


cdef double _number(object value, str name) except? -1e300:
    if PyFloat_CheckExact(value):
        return PyFloat_AsDouble(value)
    if isinstance(value, (str, bytes)):
        raise TypeError(f"expected {name} to be a number, found {_type(value)}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"expected {name} to be a number, found {_type(value)}") from None
    except OverflowError:
        raise ValueError(f"expected a finite {name}, found a whole number too large for a float") from None


cdef long _whole(object value, str name, long low, long high) except -1:
    cdef int overflow = 0
    cdef long number
    if isinstance(value, bool):
        raise TypeError(f"expected {name} to be a whole number, found bool")
    if not PyLong_CheckExact(value):
        try:
            value = index(value)
        except TypeError:
            raise TypeError(f"expected {name} to be a whole number, found {_type(value)}") from None
    number = PyLong_AsLongAndOverflow(value, &overflow)
    if overflow != 0 or not low <= number <= high:
        raise ValueError(f"expected {name} from {low} to {high}, found {value}")
    return number


cdef int _window(object window, organ_scale *scale) except -1:
    """Sets the window of int16 slices: as integers if both bounds are integers, else as doubles."""
    cdef double level = 40.0, width = 400.0, low
    if window is not None:
        if isinstance(window, (str, bytes)):
            raise TypeError(f"expected window as (level, width) in HU, found {_type(window)}")
        try:
            given = tuple(window)
        except TypeError:
            raise TypeError(f"expected window as (level, width) in HU, found {_type(window)}") from None
        if len(given) != 2:
            raise ValueError(f"expected window as (level, width) in HU, found {len(given)} values")
        level = _number(given[0], "the window's level")
        width = _number(given[1], "the window's width")
        if not isfinite(level):
            raise ValueError(f"expected a finite window level, found {level}")
        if not (isfinite(width) and width > 0.0):
            raise ValueError(f"expected a window width above 0, found {width}")
    low = level - width / 2.0
    if low >= -32768.0 and low + width <= 32767.0 and low == floor(low) and width == floor(width):
        scale.kind = ORGAN_I16
        scale.low = <int16_t> low
        scale.high = <int16_t> (low + width)
        scale.depth = <uint32_t> width
    else:
        scale.kind = ORGAN_REAL
        scale.depth = 1
        scale.real_low = low
        scale.real_width = width
    return 0


cdef int _scale(int type_number, object mean, object std, object window, organ_scale *scale) except -1:
    cdef double mean_given = _number(mean, "mean"), std_given = _number(std, "std")
    scale.mean = <float> mean_given
    scale.std = <float> std_given
    if not isfinite(scale.mean):
        raise ValueError(f"expected a mean that is finite in float32, found {mean_given}")
    if not (isfinite(scale.std) and scale.std > 0.0):
        raise ValueError(f"expected a std that is finite and above 0 in float32, found {std_given}")
    if type_number == NPY_INT16:
        _window(window, scale)
    elif window is not None:
        raise ValueError(
            f"expected window only with int16 slices, found {'uint8' if type_number == NPY_UINT8 else 'uint16'}"
        )
    elif type_number == NPY_UINT8:
        scale.kind = ORGAN_U8
        scale.depth = 255
    else:
        scale.kind = ORGAN_U16
        scale.depth = 65535
    organ_scale_ready(scale)
    return 0


cdef int _run(object image, bint one, int type_number, organ_run *run) except -1:
    """Describes one array as a run of slices. type_number: of the arrays before it, or -1. Returns its own."""
    if not PyArray_Check(image):
        raise TypeError(f"{LINE}, found {_type(image)}")
    cdef PyArrayObject *array = <PyArrayObject *> image
    cdef int array_type = PyArray_TYPE(array), ndim = PyArray_NDIM(array)
    cdef npy_intp *dims = PyArray_DIMS(array)
    cdef npy_intp *strides = PyArray_STRIDES(array)
    if array_type != NPY_UINT8 and array_type != NPY_UINT16 and array_type != NPY_INT16:
        raise TypeError(f"{LINE}, found dtype {image.dtype}")
    if not PyArray_ISNOTSWAPPED(array):
        raise TypeError(f"expected slices in this machine's byte order, found dtype {image.dtype.str}")
    if type_number >= 0 and array_type != type_number:
        raise TypeError(f"expected slices of one dtype, found {image.dtype} among others")
    if ndim != 2 and (one or ndim != 3):
        raise ValueError(
            f"expected {'each slice as (H, W)' if one else 'slices (H, W) or (N, H, W)'}, found shape {image.shape}"
        )
    run.n = dims[0] if ndim == 3 else 1
    run.stride_n = strides[0] if ndim == 3 else 0
    run.h = dims[ndim - 2]
    run.w = dims[ndim - 1]
    run.stride_h = strides[ndim - 2]
    run.stride_w = strides[ndim - 1]
    run.data = <const char *> PyArray_DATA(array)
    if not (1 <= run.h <= ORGAN_MAX_AXIS and 1 <= run.w <= ORGAN_MAX_AXIS):
        raise ValueError(
            f"expected a height and a width from 1 to {ORGAN_MAX_AXIS}, found shape {image.shape}"
        )
    return array_type


cdef bint _touches(const organ_run *run, size_t itemsize, const char *low, const char *high) noexcept nogil:
    """Whether the bytes from a run's first to its last pixel overlap [low, high)."""
    cdef const char *first = run.data
    cdef const char *last = run.data + itemsize
    cdef ptrdiff_t[3] reach
    cdef int axis
    if run.n == 0:
        return False
    reach[0] = <ptrdiff_t> (run.n - 1) * run.stride_n
    reach[1] = <ptrdiff_t> (run.h - 1) * run.stride_h
    reach[2] = <ptrdiff_t> (run.w - 1) * run.stride_w
    for axis in range(3):
        if reach[axis] < 0:
            first += reach[axis]
        else:
            last += reach[axis]
    return first < high and low < last


cdef object _output(object out, npy_intp *shape, organ_job *job):
    """Returns a new array, or `out` after checking it."""
    cdef PyArrayObject *array
    cdef npy_intp *dims
    cdef size_t i, length
    cdef const char *low
    if out is None:
        out = PyArray_SimpleNew(4, shape, NPY_FLOAT32)
        job.out = <float *> PyArray_DATA(<PyArrayObject *> out)
        return out
    if not PyArray_Check(out):
        raise TypeError(f"expected out to be a float32 array, found {_type(out)}")
    array = <PyArrayObject *> out
    dims = PyArray_DIMS(array)
    if PyArray_TYPE(array) != NPY_FLOAT32 or not PyArray_ISNOTSWAPPED(array):
        raise TypeError(f"expected out to be float32, found dtype {out.dtype.str}")
    if (
        PyArray_NDIM(array) != 4 or dims[0] != shape[0] or dims[1] != 1
        or dims[2] != shape[2] or dims[3] != shape[3]
    ):
        raise ValueError(
            f"expected out of shape ({shape[0]}, 1, {shape[2]}, {shape[3]}), found {out.shape}"
        )
    if not PyArray_IS_C_CONTIGUOUS(array):
        raise ValueError("expected out to be C-contiguous, found other strides")
    if not PyArray_ISBEHAVED(array):
        raise ValueError("expected out to be writeable and aligned, found a read-only or misaligned array")
    job.out = <float *> PyArray_DATA(array)
    low = <const char *> job.out
    length = job.slices * job.size * job.size * sizeof(float)
    for i in range(job.run_count):
        if _touches(&job.runs[i], job.itemsize, low, low + length):
            raise ValueError("expected out apart from the slices, found memory that overlaps them")
    return out


def pack(images, size=28, *, mean=0.5, std=0.5, window=None, resample="area", threads=1, out=None):
    """pack(images, size=28, *, mean=0.5, std=0.5, window=None, resample="area", threads=1, out=None)

    Pack slices as the network's input.

    A pixel v becomes a fraction f: v / 255 (uint8), v / 65535 (uint16), or
    clip((v - (level - width / 2)) / width, 0, 1) (int16, HU; DICOM PS3.3 C.11.2.1.3.2, LINEAR_EXACT),
    rounded to float32. The result is (f - mean) / std in float32, as torchvision's ToTensor and Normalize
    compute it. For uint8 slices of size (S, S) the bits are equal to theirs.

    Each axis is resampled separately, after the window and before mean and std. `resample` names the method:

    - area: An axis longer than size: the mean over the area under each output pixel, fractions weighted.
      Shorter: as linear.
    - linear: Linear interpolation between two pixels, with half-pixel centers, clamped at the edge. An axis
      longer than size is point-sampled, without anti-aliasing.
    - cubic: Cubic convolution of four pixels with A = -0.75, otherwise as linear. Fractions below 0 and
      above 1 are clamped.

    An axis of length size is unchanged. Weights are integers. Sums are exact and rounded once, and a flat
    slice stays flat. Two sums are rounded to float64 instead, with an error below 2^-48: those of a window
    whose bounds are not integers or are outside int16, and those of cubic above 2^53 (uint16 at most sizes).

    Results are equal to the bit at every dispatch level and for every number of threads. The GIL is
    released around the loop unless input and output have fewer than 65,536 pixels together, which take
    about ten microseconds.

    Args:
        images: uint8, uint16 or int16, (H, W) or (N, H, W), or a sequence of (H, W) arrays of one dtype,
            whose shapes may differ. H and W from 1 to 65,535. Read-only and strided arrays are accepted
            and never written to. No slices, () or (0, H, W), give (0, 1, size, size).
        size: S, pixels, 1 to 4,096.
        mean: of the network's input, rounded to float32.
        std: of the network's input, rounded to float32, above 0.
        window: (level, width) in Hounsfield units, for int16 only. Default: (40, 400).
        resample: area, linear or cubic.
        threads: upper bound. More than one starts only for more than about a megabyte per thread.
        out: float32 (N, 1, size, size), C-contiguous, in other memory than `images`. It is filled and
            returned.

    Returns:
        float32 (N, 1, size, size), C-contiguous.

    Raises:
        TypeError: dtype, byte order or object. Nothing was read or written.
        ValueError: shape, range, window, resample or out. Nothing was read or written.
        MemoryError: no memory for the scratch or the output.
    """
    cdef organ_run single
    cdef organ_run *runs = &single
    cdef organ_scale scale
    cdef organ_job job
    cdef npy_intp[4] shape
    cdef size_t i, count, slices = 0, pixels = 0
    cdef int type_number = -1, status
    cdef long side, thread_count
    cdef organ_resample mode
    cdef tuple held = None

    side = _whole(size, "size", 1, ORGAN_MAX_SIZE)
    thread_count = _whole(threads, "threads", 1, 2147483647)
    resample_of(resample, &mode)
    if not PyArray_Check(images):
        if isinstance(images, (str, bytes, bytearray, memoryview, dict, set)) or not hasattr(images, "__getitem__"):
            raise TypeError(f"{LINE}, found {_type(images)}")
        held = tuple(images)
    try:
        if held is None:
            count = 1
            type_number = _run(images, False, -1, &single)
            slices = single.n
            pixels = single.n * single.h * single.w
        else:
            count = len(held)
            if count > 1:
                runs = <organ_run *> malloc(count * sizeof(organ_run))
                if runs == NULL:
                    raise MemoryError()
            for i in range(count):
                type_number = _run(held[i], True, type_number, &runs[i])
                pixels += runs[i].h * runs[i].w
            slices = count
        if type_number < 0:
            type_number = NPY_INT16 if window is not None else NPY_UINT8
        _scale(type_number, mean, std, window, &scale)
        if slices > <size_t> 0x7fffffffffffffff // 4 // <size_t> (side * side):
            raise ValueError(f"expected fewer slices of size {side} than memory has addresses, found {slices}")
        job.runs = runs
        job.run_count = count
        job.slices = slices
        job.scale = &scale
        job.resample = mode
        job.size = <uint32_t> side
        job.itemsize = 1 if type_number == NPY_UINT8 else 2
        shape[0] = <npy_intp> slices
        shape[1] = 1
        shape[2] = shape[3] = side
        out = _output(out, shape, &job)
        pixels += slices * <size_t> (side * side)
        if slices == 0:
            status = 0
        elif pixels < KEEP_LOCK_BELOW:
            status = organ_pack(&job, 1)
        else:
            with nogil:
                status = organ_pack(&job, thread_count)
        if status != 0:
            raise MemoryError("no memory for the scratch of one slice")
        return out
    finally:
        if runs != &single:
            free(runs)


def levels():
    """Return the names of the dispatch levels that this processor supports, slowest first."""
    cdef const char *names[3]
    cdef int i, count = organ_levels(names)
    return tuple(names[i].decode("ascii") for i in range(count))


def level():
    """Return the name of the level in use."""
    return organ_level().name.decode("ascii")


def set_level(str name not None):
    """Use the named level in the whole process. For tests and benchmarks; not while another thread packs."""
    if organ_set_level(name.encode("utf-8")) != 0:
        raise ValueError(f"expected a level of this processor ({', '.join(levels())}), found {name!r}")


def _nothing(images, size=28, *, mean=0.5, std=0.5, window=None, resample="area", threads=1, out=None):
    """Do nothing, with the arguments of `pack`. For benchmarks."""
    return None


def _read_limit(image):
    """Return the sum of the bytes of a contiguous uint8 array. For benchmarks: the cost of reading it once."""
    cdef PyArrayObject *array = <PyArrayObject *> image
    cdef size_t n = image.size
    assert PyArray_TYPE(array) == NPY_UINT8 and PyArray_IS_C_CONTIGUOUS(array)
    return organ_level().read_limit(<const uint8_t *> PyArray_DATA(array), n)


def _store_limit(image, out):
    """Store each byte of a contiguous uint8 array as a float. For benchmarks: the lower bound of `pack`."""
    cdef PyArrayObject *array = <PyArrayObject *> image
    cdef PyArrayObject *target = <PyArrayObject *> out
    cdef size_t n = image.size
    assert PyArray_TYPE(array) == NPY_UINT8 and PyArray_IS_C_CONTIGUOUS(array)
    assert PyArray_TYPE(target) == NPY_FLOAT32 and PyArray_IS_C_CONTIGUOUS(target) and out.size == n
    organ_level().store_limit(<const uint8_t *> PyArray_DATA(array), <float *> PyArray_DATA(target), n)


def _touch_limit(image, rows, columns):
    """Return the sum of the bytes at these rows and columns, uint32, of a contiguous uint8 array (N, H, W).

    For benchmarks: the cost of reading one byte per cache line that point sampling needs. Rows and columns are not
    checked, because that would take longer than the loop.
    """
    cdef PyArrayObject *array = <PyArrayObject *> image
    cdef PyArrayObject *first = <PyArrayObject *> rows
    cdef PyArrayObject *second = <PyArrayObject *> columns
    cdef npy_intp *dims = PyArray_DIMS(array)
    cdef const uint8_t *data = <const uint8_t *> PyArray_DATA(array)
    cdef const uint32_t *row = <const uint32_t *> PyArray_DATA(first)
    cdef const uint32_t *column = <const uint32_t *> PyArray_DATA(second)
    cdef const uint8_t *line
    cdef npy_intp n, y, x, height = PyArray_DIMS(first)[0], width = PyArray_DIMS(second)[0]
    cdef uint64_t total = 0
    assert PyArray_TYPE(array) == NPY_UINT8 and PyArray_IS_C_CONTIGUOUS(array) and PyArray_NDIM(array) == 3
    assert PyArray_TYPE(first) == NPY_UINT32 and PyArray_IS_C_CONTIGUOUS(first) and PyArray_NDIM(first) == 1
    assert PyArray_TYPE(second) == NPY_UINT32 and PyArray_IS_C_CONTIGUOUS(second) and PyArray_NDIM(second) == 1
    with nogil:
        for n in range(dims[0]):
            for y in range(height):
                line = data + (n * dims[1] + row[y]) * dims[2]
                for x in range(width):
                    total += line[column[x]]
    return total


# _reading packs its decoded slices with this function.
_organ_pack = PyCapsule_New(<void *> organ_pack, "organ_infer._packing._organ_pack", NULL)

if os.environ.get("ORGAN_INFER_SIMD"):
    try:
        set_level(os.environ["ORGAN_INFER_SIMD"])
    except ValueError as e:
        from organ_infer.errors import InputError

        raise InputError(f"ORGAN_INFER_SIMD: {e}") from None
organ_level()
