/* The level that every processor supports: plain C, which the compiler vectorizes (SSE2, NEON). */
#include "pack.h"

#define TARGET
#define NAME(x) portable_##x
#include "normalize_generic.h"
#include "resample_generic.h"
#include "sample_generic.h"

static void normalize(const struct organ_scale *scale, const void *src, float *dst, size_t n)
{
    if (scale->kind == ORGAN_U8)
        portable_plain_u8(scale, src, dst, n);
    else if (scale->kind == ORGAN_U16)
        portable_plain_u16(scale, src, dst, n);
    else
        portable_plain_i16(scale, src, dst, n);
}

static uint64_t read_limit(const uint8_t *src, size_t n)
{
    uint64_t total = 0;
    portable_read_bytes(src, n, &total);
    return total;
}

const struct organ_kernels organ_portable = {
    "portable",           0,          normalize,           portable_wide_rows,
    portable_wide_columns, portable_sample, read_limit, portable_store_limit,
};
