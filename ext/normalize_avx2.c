/* Normalizes pixels without resampling, eight at a time, at the levels AVX2 and AVX-512.
 *
 * Stores limit this loop. Vectors of 64 bytes made it a fifth slower when measured.
 */
#include "pack.h"

#ifdef ORGAN_X86
#include <immintrin.h>

#define TARGET ORGAN_TARGET("avx2,fma")
#define NAME(x) avx2_##x
#define INLINE TARGET static ORGAN_ALWAYS_INLINE
#include "normalize_generic.h"

typedef __m256 F;

/* pixel / depth, rounded as the division would be. With 1 / depth as a sum of two floats, the error before the one
 * rounding is below 2^-23 ulp. For integers pixel <= depth < 2^16, no quotient is closer than 2^-17 ulp to a
 * rounding boundary. */
INLINE F fraction(F pixel, const struct organ_scale *s)
{
    const F rest = _mm256_mul_ps(pixel, _mm256_set1_ps(s->depth_rest));
    return _mm256_fmadd_ps(pixel, _mm256_set1_ps(s->depth_inverse), rest);
}

/* If std is a power of two, scaling by it is exact, so one fused operation rounds as the subtraction does. */
INLINE F finished(F pixel, const struct organ_scale *s, const int divide)
{
    const F value = fraction(pixel, s);
    if (divide)
        return _mm256_div_ps(_mm256_sub_ps(value, _mm256_set1_ps(s->mean)), _mm256_set1_ps(s->std));
    return _mm256_fmadd_ps(value, _mm256_set1_ps(s->inverse), _mm256_set1_ps(-s->mean * s->inverse));
}

INLINE F pixels(const void *src, size_t i, const enum organ_kind kind, const struct organ_scale *s)
{
    if (kind == ORGAN_U8)
        return _mm256_cvtepi32_ps(
            _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)((const uint8_t *)src + i))));
    __m128i pixel = _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)src + i));
    if (kind == ORGAN_I16) {
        const __m128i low = _mm_set1_epi16(s->low), high = _mm_set1_epi16(s->high);
        pixel = _mm_sub_epi16(_mm_min_epi16(_mm_max_epi16(pixel, low), high), low);
    }
    return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(pixel));
}

INLINE void normalize_kind(const struct organ_scale *scale, const void *src, float *dst, size_t n,
                           const enum organ_kind kind, const int divide)
{
    const struct organ_scale s = *scale;
    size_t i = 0;
    /* one vector, then on from the next aligned address, so that no store crosses two cache lines */
    if (n >= 8 * 8) {
        _mm256_storeu_ps(dst, finished(pixels(src, 0, kind, &s), &s, divide));
        i = (32 - (uintptr_t)dst % 32) / 4;
    }
    for (; i + 32 <= n; i += 32)
        for (int k = 0; k < 4; k++)
            _mm256_storeu_ps(dst + i + k * 8, finished(pixels(src, i + k * 8, kind, &s), &s, divide));
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, finished(pixels(src, i, kind, &s), &s, divide));
    if (i == n)
        return;
    /* the last vector overlaps the one before it */
    if (n >= 8)
        _mm256_storeu_ps(dst + n - 8, finished(pixels(src, n - 8, kind, &s), &s, divide));
    else if (kind == ORGAN_U8)
        NAME(plain_u8)(scale, src, dst, n);
    else if (kind == ORGAN_U16)
        NAME(plain_u16)(scale, src, dst, n);
    else
        NAME(plain_i16)(scale, src, dst, n);
}

TARGET void organ_normalize_avx2(const struct organ_scale *scale, const void *src, float *dst, size_t n)
{
    const int divide = scale->inverse == 0.0f;
    if (scale->kind == ORGAN_U8 && !divide)
        normalize_kind(scale, src, dst, n, ORGAN_U8, 0);
    else if (scale->kind == ORGAN_U8)
        normalize_kind(scale, src, dst, n, ORGAN_U8, 1);
    else if (scale->kind == ORGAN_U16 && !divide)
        normalize_kind(scale, src, dst, n, ORGAN_U16, 0);
    else if (scale->kind == ORGAN_U16)
        normalize_kind(scale, src, dst, n, ORGAN_U16, 1);
    else if (!divide)
        normalize_kind(scale, src, dst, n, ORGAN_I16, 0);
    else
        normalize_kind(scale, src, dst, n, ORGAN_I16, 1);
}
#else
/* ISO C requires a declaration */
typedef int organ_normalize_elsewhere;
#endif
