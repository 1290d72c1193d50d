# The C functions and types that packing.pyx and reading.pyx use.
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int16_t, uint8_t, uint32_t, uint64_t

cdef extern from "pack.h" nogil:
    enum:
        ORGAN_MAX_AXIS
        ORGAN_MAX_SIZE

    ctypedef enum organ_kind "enum organ_kind":
        ORGAN_U8
        ORGAN_U16
        ORGAN_I16
        ORGAN_REAL

    ctypedef enum organ_resample "enum organ_resample":
        ORGAN_AREA
        ORGAN_LINEAR
        ORGAN_CUBIC

    ctypedef struct organ_scale "struct organ_scale":
        organ_kind kind
        uint32_t depth
        int16_t low, high
        double real_low, real_width
        float mean, std, inverse, depth_inverse, depth_rest

    ctypedef struct organ_run "struct organ_run":
        const char *data
        ptrdiff_t stride_n, stride_h, stride_w
        size_t n, h, w

    ctypedef struct organ_job "struct organ_job":
        const organ_run *runs
        size_t run_count, slices
        const organ_scale *scale
        organ_resample resample
        uint32_t size
        size_t itemsize
        float *out

    ctypedef struct organ_kernels "struct organ_kernels":
        const char *name
        uint64_t (*read_limit)(const uint8_t *src, size_t n)
        void (*store_limit)(const uint8_t *src, float *dst, size_t n)

    void organ_scale_ready(organ_scale *scale)
    int organ_levels(const char **names)
    const organ_kernels *organ_level()
    int organ_set_level(const char *name)
    int organ_pack(const organ_job *job, long threads)


# NumPy's C API, declared here because NumPy's own .pxd needs more than the limited API of Python.
cdef extern from "numpy/arrayobject.h":
    ctypedef ptrdiff_t npy_intp
    ctypedef struct PyArrayObject:
        pass
    enum:
        NPY_UINT8
        NPY_UINT16
        NPY_INT16
        NPY_UINT32
        NPY_FLOAT32
    int _import_array() except -1
    bint PyArray_Check(object array)
    int PyArray_NDIM(PyArrayObject *array)
    npy_intp *PyArray_DIMS(PyArrayObject *array)
    npy_intp *PyArray_STRIDES(PyArrayObject *array)
    void *PyArray_DATA(PyArrayObject *array)
    int PyArray_TYPE(PyArrayObject *array)
    bint PyArray_ISNOTSWAPPED(PyArrayObject *array)
    bint PyArray_IS_C_CONTIGUOUS(PyArrayObject *array)
    bint PyArray_ISBEHAVED(PyArrayObject *array)
    object PyArray_SimpleNew(int ndim, npy_intp *dims, int type)


cdef inline int resample_of(object name, organ_resample *resample) except -1:
    """Sets the resampling of a name. The names are those of the manifest."""
    if not isinstance(name, str):
        raise TypeError(f"expected resample to be area, linear or cubic, found {type(name).__name__}")
    if name == "area":
        resample[0] = ORGAN_AREA
    elif name == "linear":
        resample[0] = ORGAN_LINEAR
    elif name == "cubic":
        resample[0] = ORGAN_CUBIC
    else:
        raise ValueError(f"expected resample to be area, linear or cubic, found {name!r}")
    return 0
