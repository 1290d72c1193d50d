/* Types shared by the kernels: slices, resampling plans, and the kernel table of one dispatch level.
 *
 * A packed value is an exact fraction before it is rounded. Weights and pixels are integers, so a sum of
 * weight * weight * pixel is an integer below 2^48, and every dispatch level computes the same one. Exceptions
 * are windows with bounds that are not integers (fractional_window.c) and cubic sums above 2^53
 * (sample_generic.h).
 */
#ifndef ORGAN_PACK_H
#define ORGAN_PACK_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Both limits bound the integer sums. The weights of an axis add up to at most max(ORGAN_MAX_AXIS,
 * 2 * ORGAN_MAX_SIZE), so a column sum is below 65535 * 65535 < 2^32 and a total below 2^48, exact in a double. */
#define ORGAN_MAX_AXIS 65535
#define ORGAN_MAX_SIZE 4096

/* Lanes that one narrow dot product reads. Column sums are padded by this many elements. */
#define ORGAN_LANES 32

/* The pixels of one axis that an output pixel of point sampling reads, at most. */
#define ORGAN_SAMPLES 4

/* Point sampling computes this many output pixels together. Its rows are padded to a multiple. */
#define ORGAN_GROUP 8

enum organ_resample {
    ORGAN_AREA,   /* an axis longer than the output: means over areas; a shorter axis: linear */
    ORGAN_LINEAR, /* two pixels per axis, whatever its length */
    ORGAN_CUBIC,  /* four pixels per axis, A = -3/4, whatever its length */
};

enum organ_kind {
    ORGAN_U8,   /* pixel / 255 */
    ORGAN_U16,  /* pixel / 65535 */
    ORGAN_I16,  /* (clip(pixel, low, high) - low) / (high - low), integers low and high, HU */
    ORGAN_REAL, /* int16, clip((pixel - low) / width, 0, 1), HU */
};

/* How a pixel becomes a value: (pixel / depth - mean) / std, each step rounded to float32. */
struct organ_scale {
    enum organ_kind kind;
    /* 255, 65535 or the window's width */
    uint32_t depth;
    int16_t low, high;
    double real_low, real_width;
    float mean, std;
    /* 1 / std if std is a power of two, so that multiplying equals dividing; else 0 */
    float inverse;
    /* 1 / depth as a sum of two floats */
    float depth_inverse, depth_rest;
};

/* Sets the inverses. Call after depth, mean and std are set. */
static inline void organ_scale_ready(struct organ_scale *scale)
{
    int exponent;
    const float half = frexpf(scale->std, &exponent);
    scale->inverse = half == 0.5f && -16 <= exponent && exponent <= 16 ? 1.0f / scale->std : 0.0f;
    scale->depth_inverse = 1.0f / (float)scale->depth;
    scale->depth_rest = (float)(1.0 / (double)scale->depth - (double)scale->depth_inverse);
}

/* One output pixel along one axis: first * in[start] + mid * (the pixels between) + last * in[start + count - 1].
 * With count 1 there is no last pixel. */
struct organ_tap {
    uint32_t start, count, first, mid, last;
};

struct organ_axis {
    uint32_t in, out;
    /* sum of the weights of each output pixel */
    uint32_t total;
    /* largest count */
    uint32_t widest;
    struct organ_tap *taps;
};

/* Writes axis->taps[0..out). The caller allocates taps. */
void organ_axis_fill(struct organ_axis *axis, uint32_t in, uint32_t out);

/* Point sampling along one axis. Output pixel o is the sum over k < count of weights[k * padded + o] *
 * in[starts[o] + k], divided by total. Weights are integers of at most 2^41. */
struct organ_samples {
    uint32_t in, out, padded, count;
    double total;
    /* (padded), zero from `out` on */
    uint32_t *starts;
    /* (ORGAN_SAMPLES, padded), zero from `count` and from `out` on */
    double *weights;
};

static inline uint32_t organ_padded(uint32_t n)
{
    return (n + ORGAN_GROUP - 1) / ORGAN_GROUP * ORGAN_GROUP;
}

/* Fills starts and weights. The caller allocates them. resample is ORGAN_LINEAR or ORGAN_CUBIC. */
void organ_samples_fill(struct organ_samples *axis, enum organ_resample resample, uint32_t in, uint32_t out);

/* Input of the point sampling kernels, for one height and width. */
struct organ_sampling {
    const struct organ_scale *scale;
    size_t itemsize;
    struct organ_samples y, x;
    /* the largest total, for clamping: y.total * x.total * depth */
    double most;
    /* 1 / most */
    double inverse;
    /* scratch memory, x.padded elements each: (2), (ORGAN_SAMPLES) and (1) */
    uint32_t *pixels;
    double *rows, *totals;
};

/* Input of the resampling kernels, for one height and width. */
struct organ_plan {
    const struct organ_scale *scale;
    struct organ_axis y, x;
    /* (x.out, ORGAN_LANES), zero beyond each tap's count, and the first column of each; at least ORGAN_LANES of
     * both. weights is NULL if a tap has more than ORGAN_LANES pixels, if a total exceeds 32 bits, or if the level
     * does not use them. */
    const int16_t *weights;
    const uint32_t *starts;
    /* whether weights are set and column sums fit in 16 bits */
    int narrow;
    /* 1 / (y.total * x.total * depth) */
    double inverse;
};

/* Column sums of one output row. Wide: uint32_t. Narrow: the sum minus 32768, as int16_t. Real: double. */
typedef union {
    uint32_t *wide;
    int16_t *narrow;
    double *real;
    void *any;
} organ_sums;

struct organ_kernels {
    const char *name;
    /* shortest row of a narrow plan, in pixels; 0 if the level has no narrow kernels */
    size_t narrow;
    /* Writes dst[0..n) from n contiguous pixels. */
    void (*normalize)(const struct organ_scale *scale, const void *src, float *dst, size_t n);
    /* Computes the column sums of one output row. src is the first pixel of the slice; stride is in bytes. */
    void (*rows)(const struct organ_plan *plan, const char *src, ptrdiff_t stride,
                 const struct organ_tap *tap, organ_sums sums);
    /* Computes one output row from its column sums. totals is scratch memory for x.out doubles. */
    void (*columns)(const struct organ_plan *plan, organ_sums sums, double *totals, float *dst);
    /* Point-samples one slice. Strides are in bytes; rows and pixels may be anywhere and unaligned. */
    void (*sample)(const struct organ_sampling *sampling, const char *src, ptrdiff_t stride_h, ptrdiff_t stride_w,
                   float *dst);
    /* For benchmarks only: the cost of memory access. */
    uint64_t (*read_limit)(const uint8_t *src, size_t n);
    void (*store_limit)(const uint8_t *src, float *dst, size_t n);
};

extern const struct organ_kernels organ_portable;
#if defined(__x86_64__) || defined(_M_X64)
#define ORGAN_X86 1
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif
/* Keeps v in a register, so that it is loaded once although two operations could read it from memory. */
#if defined(__GNUC__)
#define KEEP(v) __asm__("" : "+v"(v))
#else
#define KEEP(v)
#endif
#if defined(__GNUC__)
#define ORGAN_TARGET(list) __attribute__((target(list)))
#define ORGAN_ALWAYS_INLINE inline __attribute__((always_inline))
#else
/* MSVC needs no attribute to accept intrinsics. */
#define ORGAN_TARGET(list)
#define ORGAN_ALWAYS_INLINE __forceinline
#endif
extern const struct organ_kernels organ_avx2, organ_avx512;
void organ_normalize_avx2(const struct organ_scale *scale, const void *src, float *dst, size_t n);
#endif

/* Writes the names of the levels that this processor supports, slowest first. Returns their number. */
int organ_levels(const char *names[3]);
/* The level in use. The first call selects the fastest. */
const struct organ_kernels *organ_level(void);
/* Returns 0, or -1 if this processor has no such level. */
int organ_set_level(const char *name);

/* Windows with bounds that are not integers, in double. All levels share this code. */
void organ_normalize_real(const struct organ_scale *scale, const void *src, float *dst, size_t n);
void organ_rows_real(const struct organ_plan *plan, const char *src, ptrdiff_t stride,
                     const struct organ_tap *tap, organ_sums sums);
void organ_columns_real(const struct organ_plan *plan, organ_sums sums, double *totals, float *dst);

/* A pixel through a window with bounds that are not integers. */
static inline float organ_windowed(int16_t pixel, double low, double width)
{
    double fraction = ((double)pixel - low) / width;
    fraction = fraction < 0.0 ? 0.0 : fraction;
    fraction = fraction > 1.0 ? 1.0 : fraction;
    return (float)fraction;
}

/* The last step of all resampling: n totals to float32, minus mean, divided by std. */
static inline void organ_finish(const struct organ_scale *s, double inverse, const double *totals, float *dst,
                                uint32_t n)
{
    const float mean = s->mean, by = s->inverse, std = s->std;
    if (by != 0.0f)
        for (uint32_t i = 0; i < n; i++)
            dst[i] = ((float)(totals[i] * inverse) - mean) * by;
    else
        for (uint32_t i = 0; i < n; i++)
            dst[i] = ((float)(totals[i] * inverse) - mean) / std;
}

/* n slices of one height and width. Strides are in bytes and may be negative. */
struct organ_run {
    const char *data;
    ptrdiff_t stride_n, stride_h, stride_w;
    size_t n, h, w;
};

struct organ_job {
    const struct organ_run *runs;
    size_t run_count, slices;
    const struct organ_scale *scale;
    enum organ_resample resample;
    uint32_t size;
    /* bytes per pixel: 1 or 2 */
    size_t itemsize;
    /* (slices, 1, size, size), C-contiguous */
    float *out;
};

/* Returns 0, or -1 if memory runs out. threads >= 1 is an upper bound; small batches start fewer. */
int organ_pack(const struct organ_job *job, long threads);

#endif
