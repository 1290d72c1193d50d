/* The level AVX2 with FMA: x86 processors since 2013 (Intel) and 2015 (AMD). */
#include "pack.h"

#ifdef ORGAN_X86
#include <immintrin.h>

#define TARGET ORGAN_TARGET("avx2,fma")
#define NAME(x) avx2_##x
#include "resample_generic.h"
#include "sample_generic.h"

#define BYTES 32
#define STRIP 4
typedef __m256i V;
typedef __m256 F;

#define v_zero() _mm256_setzero_si256()
#define v_all16(x) _mm256_set1_epi16((short)(x))
#define v_all32(x) _mm256_set1_epi32((int)(x))
#define v_load(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define v_store(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define v_and _mm256_and_si256
#define v_xor _mm256_xor_si256
#define v_add16 _mm256_add_epi16
#define v_sub16 _mm256_sub_epi16
#define v_mul16 _mm256_mullo_epi16
#define v_min16 _mm256_min_epi16
#define v_max16 _mm256_max_epi16
#define v_madd16 _mm256_madd_epi16
#define v_sll16 _mm256_slli_epi16
#define v_srl16 _mm256_srli_epi16
#define v_add32 _mm256_add_epi32
#define v_sub32 _mm256_sub_epi32
#define v_mul32 _mm256_mullo_epi32
#define v_sll32 _mm256_slli_epi32
#define v_srl32 _mm256_srli_epi32
#define v_add64 _mm256_add_epi64
#define v_sad8 _mm256_sad_epu8
#define v_unpacklo16 _mm256_unpacklo_epi16
#define v_unpackhi16 _mm256_unpackhi_epi16
#define v_unpacklo32 _mm256_unpacklo_epi32
#define v_unpackhi32 _mm256_unpackhi_epi32
/* Unpacking works within 128-bit halves. These restore memory order. */
#define v_order_lo(lo, hi) _mm256_permute2x128_si256(lo, hi, 0x20)
#define v_order_hi(lo, hi) _mm256_permute2x128_si256(lo, hi, 0x31)
#define v_from_i16(p) _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p)))

#define f_all _mm256_set1_ps
#define f_store _mm256_storeu_ps
#define f_mul _mm256_mul_ps
#define f_sub _mm256_sub_ps
#define f_div _mm256_div_ps

/* The sum of each of eight vectors. */
TARGET static inline V v_reduce(const V part[8])
{
    V pair[4], four[2];
    for (int i = 0; i < 4; i++)
        pair[i] = v_add32(_mm256_unpacklo_epi32(part[2 * i], part[2 * i + 1]),
                          _mm256_unpackhi_epi32(part[2 * i], part[2 * i + 1]));
    for (int i = 0; i < 2; i++)
        four[i] = v_add32(_mm256_unpacklo_epi64(pair[2 * i], pair[2 * i + 1]),
                          _mm256_unpackhi_epi64(pair[2 * i], pair[2 * i + 1]));
    return v_add32(v_order_lo(four[0], four[1]), v_order_hi(four[0], four[1]));
}

/* Multiplies unsigned integers by `by` in double and rounds once to float. 2^52 + x has x in its low bits. */
TARGET static inline F f_from_u32(V whole, double by)
{
    const __m256i bits = _mm256_set1_epi64x(0x4330000000000000);
    const __m256d base = _mm256_set1_pd(4503599627370496.0), times = _mm256_set1_pd(by);
    const __m256i lo = _mm256_or_si256(_mm256_cvtepu32_epi64(_mm256_castsi256_si128(whole)), bits);
    const __m256i hi = _mm256_or_si256(_mm256_cvtepu32_epi64(_mm256_extracti128_si256(whole, 1)), bits);
    const __m256d low = _mm256_mul_pd(_mm256_sub_pd(_mm256_castsi256_pd(lo), base), times);
    const __m256d high = _mm256_mul_pd(_mm256_sub_pd(_mm256_castsi256_pd(hi), base), times);
    return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low));
}

#include "x86.h"

const struct organ_kernels organ_avx2 = {
    "avx2", BYTES, organ_normalize_avx2, avx2_rows, avx2_columns, avx2_sample, avx2_read_limit, avx2_store_limit,
};
#else
/* ISO C requires a declaration */
typedef int organ_avx2_elsewhere;
#endif
