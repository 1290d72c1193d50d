/* The level AVX-512 F, BW, DQ, VL: Intel servers since 2017, AMD since 2022. */
#include "pack.h"

#ifdef ORGAN_X86
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
#define TARGET ORGAN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#else
#define TARGET ORGAN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#define NAME(x) avx512_##x
#include "resample_generic.h"
#include "sample_generic.h"

#define BYTES 64
#define STRIP 8
typedef __m512i V;
typedef __m512 F;

#define v_zero() _mm512_setzero_si512()
#define v_all16(x) _mm512_set1_epi16((short)(x))
#define v_all32(x) _mm512_set1_epi32((int)(x))
#define v_load(p) _mm512_loadu_si512((const void *)(p))
#define v_store(p, v) _mm512_storeu_si512((void *)(p), v)
#define v_and _mm512_and_si512
#define v_xor _mm512_xor_si512
#define v_add16 _mm512_add_epi16
#define v_sub16 _mm512_sub_epi16
#define v_mul16 _mm512_mullo_epi16
#define v_min16 _mm512_min_epi16
#define v_max16 _mm512_max_epi16
#define v_madd16 _mm512_madd_epi16
#define v_sll16 _mm512_slli_epi16
#define v_srl16 _mm512_srli_epi16
#define v_add32 _mm512_add_epi32
#define v_sub32 _mm512_sub_epi32
#define v_mul32 _mm512_mullo_epi32
#define v_sll32 _mm512_slli_epi32
#define v_srl32 _mm512_srli_epi32
#define v_add64 _mm512_add_epi64
#define v_sad8 _mm512_sad_epu8
#define v_unpacklo16 _mm512_unpacklo_epi16
#define v_unpackhi16 _mm512_unpackhi_epi16
#define v_unpacklo32 _mm512_unpacklo_epi32
#define v_unpackhi32 _mm512_unpackhi_epi32
/* Unpacking works within 128-bit quarters. These restore memory order. */
#define v_order_lo(lo, hi) _mm512_permutex2var_epi64(lo, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), hi)
#define v_order_hi(lo, hi) _mm512_permutex2var_epi64(lo, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), hi)
#define v_from_i16(p) _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p)))

#define f_all _mm512_set1_ps
#define f_store _mm512_storeu_ps
#define f_mul _mm512_mul_ps
#define f_sub _mm512_sub_ps
#define f_div _mm512_div_ps

/* The sum of each of sixteen vectors. */
TARGET static inline V v_reduce(const V part[16])
{
    V pair[8], four[4], eight[2];
    for (int i = 0; i < 8; i++)
        pair[i] = v_add32(_mm512_unpacklo_epi32(part[2 * i], part[2 * i + 1]),
                          _mm512_unpackhi_epi32(part[2 * i], part[2 * i + 1]));
    for (int i = 0; i < 4; i++)
        four[i] = v_add32(_mm512_unpacklo_epi64(pair[2 * i], pair[2 * i + 1]),
                          _mm512_unpackhi_epi64(pair[2 * i], pair[2 * i + 1]));
    for (int i = 0; i < 2; i++)
        eight[i] = v_add32(_mm512_shuffle_i32x4(four[2 * i], four[2 * i + 1], 0x88),
                           _mm512_shuffle_i32x4(four[2 * i], four[2 * i + 1], 0xdd));
    return v_add32(_mm512_shuffle_i32x4(eight[0], eight[1], 0x88),
                   _mm512_shuffle_i32x4(eight[0], eight[1], 0xdd));
}

/* Multiplies unsigned integers by `by` in double and rounds once to float. */
TARGET static inline F f_from_u32(V whole, double by)
{
    const __m512d times = _mm512_set1_pd(by);
    const __m512d low = _mm512_mul_pd(_mm512_cvtepu32_pd(_mm512_castsi512_si256(whole)), times);
    const __m512d high = _mm512_mul_pd(_mm512_cvtepu32_pd(_mm512_extracti64x4_epi64(whole, 1)), times);
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
}

#include "x86.h"

const struct organ_kernels organ_avx512 = {
    "avx512", BYTES, organ_normalize_avx2, avx512_rows, avx512_columns, avx512_sample, avx512_read_limit, avx512_store_limit,
};
#else
/* ISO C requires a declaration */
typedef int organ_avx512_elsewhere;
#endif
