/* Shared by the kernels: what a slice is, what is made of it, and the table of one dispatch level.
 *
 * A packed value is an exact fraction before it is rounded: area and linear weights are whole numbers,
 * pixels are whole numbers, so a sum of weight * weight * pixel is a whole number below 2^48 and every
 * dispatch level finds the same one. Only windows with a fraction leave the whole numbers (real.c).
 */
#ifndef ORGAN_PACK_H
#define ORGAN_PACK_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* Both bound the whole-number sums: an axis weighs at most max(ORGAN_MAX_AXIS, 2 * ORGAN_MAX_SIZE) in all,
 * so a column sum is below 65535 * 65535 < 2^32 and a whole sum below 2^48, exact in a double. */
#define ORGAN_MAX_AXIS 65535
#define ORGAN_MAX_SIZE 4096

/* Lanes that one narrow dot product reads; column sums are padded by as many. */
#define ORGAN_LANES 32

enum organ_kind {
    ORGAN_U8,   /* pixel / 255 */
    ORGAN_U16,  /* pixel / 65535 */
    ORGAN_I16,  /* (clip(pixel, low, high) - low) / (high - low), whole low and high, HU */
    ORGAN_REAL, /* int16, clip((pixel - low) / width, 0, 1), HU */
};

/* How a pixel becomes a value: fraction of the depth, minus mean, over std, each rounded to float32. */
struct organ_scale {
    enum organ_kind kind;
    uint32_t depth; /* what a fraction is of: 255, 65535 or the window's width */
    int16_t low, high;
    double real_low, real_width;
    float mean, std;
    float inverse; /* 1 / std where std is a power of two, so that multiplying is dividing; else 0 */
    float depth_inverse, depth_rest; /* 1 / depth as a sum of two floats */
};

/* Fills in the inverses, once depth, mean and std are set. */
static inline void organ_scale_ready(struct organ_scale *scale)
{
    int exponent;
    const float half = frexpf(scale->std, &exponent);
    scale->inverse = half == 0.5f && -16 <= exponent && exponent <= 16 ? 1.0f / scale->std : 0.0f;
    scale->depth_inverse = 1.0f / (float)scale->depth;
    scale->depth_rest = (float)(1.0 / (double)scale->depth - (double)scale->depth_inverse);
}

/* One output pixel along one axis: first * in[start] + mid * (those between) + last * in[start+count-1].
 * With count 1 there is no last. */
struct organ_tap {
    uint32_t start, count, first, mid, last;
};

struct organ_axis {
    uint32_t in, out;
    uint32_t total;  /* the weights of each output pixel add up to this */
    uint32_t widest; /* largest count */
    struct organ_tap *taps;
};

/* Writes axis->taps[0..out). The caller owns taps, with room for out. */
void organ_axis_fill(struct organ_axis *axis, uint32_t in, uint32_t out);

/* What the resampling kernels work from, for one height and width. */
struct organ_plan {
    const struct organ_scale *scale;
    struct organ_axis y, x;
    /* (x.out, ORGAN_LANES), zero beyond each tap's count, and where each begins; at least ORGAN_LANES of
     * both. NULL where a tap has more, where a whole sum passes 32 bits, or where the level does not ask. */
    const int16_t *weights;
    const uint32_t *starts;
    int narrow; /* with weights, and column sums fit in 16 bits */
    double inverse;   /* 1 / (y.total * x.total * depth) */
};

/* Column sums of one output row. Wide: uint32_t. Narrow: the sum minus 32768 as int16_t. Real: double. */
typedef union {
    uint32_t *wide;
    int16_t *narrow;
    double *real;
    void *any;
} organ_sums;

struct organ_kernels {
    const char *name;
    size_t narrow; /* shortest row that narrow plans take, pixels; 0 where there are none */
    /* dst[0..n) from n pixels in a row. */
    void (*normalise)(const struct organ_scale *scale, const void *src, float *dst, size_t n);
    /* Column sums of an output row: src is the first pixel of the slice, stride is in bytes. */
    void (*rows)(const struct organ_plan *plan, const char *src, ptrdiff_t stride,
                 const struct organ_tap *tap, organ_sums sums);
    /* One output row from its column sums; totals is scratch for x.out doubles. */
    void (*columns)(const struct organ_plan *plan, organ_sums sums, double *totals, float *dst);
    /* Only for benchmarks: the cost of memory alone. */
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
#if defined(__GNUC__) /* in a register: loaded once, though two operations could take it from memory */
#define KEEP(v) __asm__("" : "+v"(v))
#else
#define KEEP(v)
#endif
#if defined(__GNUC__)
#define ORGAN_TARGET(list) __attribute__((target(list)))
#define ORGAN_ALWAYS_INLINE inline __attribute__((always_inline))
#else /* MSVC takes intrinsics without being told */
#define ORGAN_TARGET(list)
#define ORGAN_ALWAYS_INLINE __forceinline
#endif
extern const struct organ_kernels organ_avx2, organ_avx512;
void organ_normalise_avx2(const struct organ_scale *scale, const void *src, float *dst, size_t n);
#endif

/* Names of the levels that this processor has, slowest first; returns how many. */
int organ_levels(const char *names[3]);
/* The level in use; chosen once, the fastest there is. */
const struct organ_kernels *organ_level(void);
/* Returns 0, or -1 where there is no such level. */
int organ_set_level(const char *name);

/* Windows with a fraction, in double: the same code at every level. */
void organ_normalise_real(const struct organ_scale *scale, const void *src, float *dst, size_t n);
void organ_rows_real(const struct organ_plan *plan, const char *src, ptrdiff_t stride,
                     const struct organ_tap *tap, organ_sums sums);
void organ_columns_real(const struct organ_plan *plan, organ_sums sums, double *totals, float *dst);

/* The last step of every resampling: totals to float32, minus mean, over std. */
static inline void organ_finish(const struct organ_plan *plan, const double *totals, float *dst)
{
    const struct organ_scale *s = plan->scale;
    const double inverse = plan->inverse;
    const float mean = s->mean, by = s->inverse, std = s->std;
    const uint32_t n = plan->x.out;
    if (by != 0.0f)
        for (uint32_t i = 0; i < n; i++)
            dst[i] = ((float)(totals[i] * inverse) - mean) * by;
    else
        for (uint32_t i = 0; i < n; i++)
            dst[i] = ((float)(totals[i] * inverse) - mean) / std;
}

/* n slices of one height and width; strides in bytes, of either sign. */
struct organ_run {
    const char *data;
    ptrdiff_t stride_n, stride_h, stride_w;
    size_t n, h, w;
};

struct organ_job {
    const struct organ_run *runs;
    size_t run_count, slices;
    const struct organ_scale *scale;
    uint32_t size;
    size_t itemsize; /* bytes of a pixel: 1 or 2 */
    float *out;      /* (slices, 1, size, size), C-contiguous */
};

/* Returns 0, or -1 where memory is short. threads >= 1; fewer are started where they would not pay. */
int organ_pack(const struct organ_job *job, long threads);

#endif
