/* The x86 resampling kernels, written once for the vectors of avx2.c and avx512.c.
 *
 * Included after the level has defined V (an integer vector), F (a float vector), BYTES (per vector) and the
 * operations v_*, f_* used below. Every sum is an integer that fits its lane, so the order of additions does
 * not matter and results equal those of resample_generic.h.
 */

/* Prefetches the same columns of the rows under the next output row. A strip is a short piece of many rows, an
 * access pattern that hardware prefetchers miss. The address may be past the slice: it is only a hint. */
#define v_prefetch(p, ahead) _mm_prefetch((const char *)((uintptr_t)(p) + (uintptr_t)(ahead)), _MM_HINT_T0)

#define LANES16 (BYTES / 2)
#define LANES32 (BYTES / 4)
#define INLINE TARGET static ORGAN_ALWAYS_INLINE

/* Column sums, `count` vectors wide. The sums of the inner rows stay in registers.
 *
 * Even and odd columns are separated only after the inner rows. `all` holds even + 2^8 odd (2^16 for 16-bit
 * pixels) modulo the lane, `odd` only the odd columns, and even = all - (odd << 8) modulo the lane. */
INLINE void strip_u8(const struct organ_plan *plan, const char *src, ptrdiff_t stride,
                     const struct organ_tap *tap, uint32_t x, int16_t *sums, const int count)
{
    V all[STRIP], odd[STRIP];
    for (int i = 0; i < count; i++)
        all[i] = odd[i] = v_zero();
    const char *first = src + (ptrdiff_t)tap->start * stride + x;
    const char *last = first + (ptrdiff_t)(tap->count - 1) * stride;
    const char *row = first + stride;
    const ptrdiff_t ahead = (ptrdiff_t)tap->count * stride;
    for (uint32_t t = 1; t + 1 < tap->count; t++, row += stride)
        for (int i = 0; i < count; i++) {
            V pixel = v_load(row + i * BYTES);
            KEEP(pixel);
            v_prefetch(row, ahead + i * BYTES);
            all[i] = v_add16(all[i], pixel);
            odd[i] = v_add16(odd[i], v_srl16(pixel, 8));
        }
    const V by_first = v_all16(tap->first), by_mid = v_all16(tap->mid);
    const V by_last = v_all16(tap->count > 1 ? tap->last : 0), bias = v_all16(0x8000);
    for (int i = 0; i < count; i++) {
        const V a = v_load(first + i * BYTES), b = v_load(last + i * BYTES);
        V both = v_add16(v_mul16(a, by_first), v_mul16(b, by_last));
        V odds = v_add16(v_mul16(v_srl16(a, 8), by_first), v_mul16(v_srl16(b, 8), by_last));
        both = v_add16(both, v_mul16(all[i], by_mid));
        odds = v_add16(odds, v_mul16(odd[i], by_mid));
        const V evens = v_xor(v_sub16(both, v_sll16(odds, 8)), bias);
        odds = v_xor(odds, bias);
        const V lo = v_unpacklo16(evens, odds), hi = v_unpackhi16(evens, odds);
        v_store(sums + x + i * BYTES, v_order_lo(lo, hi));
        v_store(sums + x + i * BYTES + LANES16, v_order_hi(lo, hi));
    }
    (void)plan;
}

INLINE void strip_u16(const struct organ_plan *plan, const char *src, ptrdiff_t stride,
                      const struct organ_tap *tap, uint32_t x, uint32_t *sums, const int count)
{
    V all[STRIP], odd[STRIP];
    for (int i = 0; i < count; i++)
        all[i] = odd[i] = v_zero();
    const char *first = src + (ptrdiff_t)tap->start * stride + (size_t)x * 2;
    const char *last = first + (ptrdiff_t)(tap->count - 1) * stride;
    const char *row = first + stride;
    const ptrdiff_t ahead = (ptrdiff_t)tap->count * stride;
    for (uint32_t t = 1; t + 1 < tap->count; t++, row += stride)
        for (int i = 0; i < count; i++) {
            V pixel = v_load(row + i * BYTES);
            KEEP(pixel);
            v_prefetch(row, ahead + i * BYTES);
            all[i] = v_add32(all[i], pixel);
            odd[i] = v_add32(odd[i], v_srl32(pixel, 16));
        }
    /* The outer rows as signed 16-bit pairs: 32768 is subtracted first and `back` restores it. */
    const uint32_t by_last = tap->count > 1 ? tap->last : 0;
    const V pair = v_all32(tap->first | by_last << 16), by_mid = v_all32(tap->mid), bias = v_all16(0x8000);
    const V back = v_all32((tap->first + by_last) << 15);
    for (int i = 0; i < count; i++) {
        const V a = v_xor(v_load(first + i * BYTES), bias), b = v_xor(v_load(last + i * BYTES), bias);
        const V even = v_sub32(all[i], v_sll32(odd[i], 16));
        const V lo = v_add32(v_madd16(v_unpacklo16(a, b), pair), v_mul32(v_unpacklo32(even, odd[i]), by_mid));
        const V hi = v_add32(v_madd16(v_unpackhi16(a, b), pair), v_mul32(v_unpackhi32(even, odd[i]), by_mid));
        v_store(sums + x + i * LANES16, v_add32(v_order_lo(lo, hi), back));
        v_store(sums + x + i * LANES16 + LANES32, v_add32(v_order_hi(lo, hi), back));
    }
    (void)plan;
}

INLINE V windowed(V pixel, V low, V high)
{
    return v_sub16(v_min16(v_max16(pixel, low), high), low);
}

INLINE void strip_i16(const struct organ_plan *plan, const char *src, ptrdiff_t stride,
                      const struct organ_tap *tap, uint32_t x, int16_t *sums, const int count)
{
    const V low = v_all16(plan->scale->low), high = v_all16(plan->scale->high);
    V sum[STRIP];
    for (int i = 0; i < count; i++)
        sum[i] = v_zero();
    const char *first = src + (ptrdiff_t)tap->start * stride + (size_t)x * 2;
    const char *last = first + (ptrdiff_t)(tap->count - 1) * stride;
    const char *row = first + stride;
    const ptrdiff_t ahead = (ptrdiff_t)tap->count * stride;
    for (uint32_t t = 1; t + 1 < tap->count; t++, row += stride)
        for (int i = 0; i < count; i++) {
            v_prefetch(row, ahead + i * BYTES);
            sum[i] = v_add16(sum[i], windowed(v_load(row + i * BYTES), low, high));
        }
    const V by_first = v_all16(tap->first), by_mid = v_all16(tap->mid);
    const V by_last = v_all16(tap->count > 1 ? tap->last : 0), bias = v_all16(0x8000);
    for (int i = 0; i < count; i++) {
        V total = v_mul16(sum[i], by_mid);
        total = v_add16(total, v_mul16(windowed(v_load(first + i * BYTES), low, high), by_first));
        total = v_add16(total, v_mul16(windowed(v_load(last + i * BYTES), low, high), by_last));
        v_store(sums + x + i * LANES16, v_xor(total, bias));
    }
}

/* Full strips, then single vectors, then one vector that overlaps the last. A row must hold one vector. */
#define STRIPS(strip, columns, sums)                                                   \
    do {                                                                               \
        const uint32_t n = plan->x.in;                                                 \
        uint32_t x = 0;                                                                \
        for (; x + STRIP * (columns) <= n; x += STRIP * (columns))                     \
            strip(plan, src, stride, tap, x, sums, STRIP);                             \
        for (; x + (columns) <= n; x += (columns))                                     \
            strip(plan, src, stride, tap, x, sums, 1);                                 \
        if (x < n)                                                                     \
            strip(plan, src, stride, tap, n - (columns), sums, 1);                     \
    } while (0)

TARGET static void NAME(rows)(const struct organ_plan *plan, const char *src, ptrdiff_t stride,
                              const struct organ_tap *tap, organ_sums sums)
{
    if (plan->narrow && plan->scale->kind == ORGAN_U8)
        STRIPS(strip_u8, BYTES, sums.narrow);
    else if (plan->narrow)
        STRIPS(strip_i16, LANES16, sums.narrow);
    else if (plan->scale->kind == ORGAN_U16 && plan->x.in >= LANES16)
        STRIPS(strip_u16, LANES16, sums.wide);
    else
        NAME(wide_rows)(plan, src, stride, tap, sums);
}

/* One output row: a dot product of ORGAN_LANES elements per output pixel, LANES32 of them reduced together. The
 * total is below 2^32, so sums modulo 2^32 are correct whatever the sign of the parts. */
INLINE void dots(const struct organ_plan *plan, organ_sums sums, float *dst, const int narrow)
{
    const struct organ_scale *s = plan->scale;
    const uint32_t out = plan->x.out;
    const V back = v_all32(narrow ? plan->x.total << 15 : 0);
    const F mean = f_all(s->mean), std = f_all(s->std), inverse = f_all(s->inverse);
    const int divide = s->inverse == 0.0f;
    float few[LANES32];
    for (uint32_t o = 0; o < out; o += LANES32) {
        V part[LANES32];
        /* the last vector overlaps the one before it */
        if (o + LANES32 > out && out >= LANES32)
            o = out - LANES32;
        UNROLL
        for (uint32_t i = 0; i < LANES32; i++) {
            const int16_t *weight = plan->weights + (size_t)(o + i) * ORGAN_LANES;
            const uint32_t start = plan->starts[o + i];
            part[i] = v_zero();
            if (narrow)
                for (uint32_t k = 0; k < ORGAN_LANES; k += LANES16)
                    part[i] = v_add32(part[i], v_madd16(v_load(sums.narrow + start + k), v_load(weight + k)));
            else
                for (uint32_t k = 0; k < ORGAN_LANES; k += LANES32)
                    part[i] = v_add32(part[i], v_mul32(v_load(sums.wide + start + k), v_from_i16(weight + k)));
        }
        const F value = f_sub(f_from_u32(v_add32(v_reduce(part), back), plan->inverse), mean);
        f_store(out >= LANES32 ? dst + o : few, divide ? f_div(value, std) : f_mul(value, inverse));
    }
    for (uint32_t o = 0; out < LANES32 && o < out; o++)
        dst[o] = few[o];
}

TARGET static void NAME(columns)(const struct organ_plan *plan, organ_sums sums, double *totals, float *dst)
{
    if (plan->weights == NULL)
        NAME(wide_columns)(plan, sums, totals, dst);
    else if (plan->narrow)
        dots(plan, sums, dst, 1);
    else
        dots(plan, sums, dst, 0);
}

TARGET static uint64_t NAME(read_limit)(const uint8_t *src, size_t n)
{
    V sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    uint64_t total = 0, lanes[BYTES / 8];
    size_t i = 0;
    for (; i + 4 * BYTES <= n; i += 4 * BYTES)
        for (int k = 0; k < 4; k++)
            sum[k] = v_add64(sum[k], v_sad8(v_load(src + i + k * BYTES), v_zero()));
    v_store(lanes, v_add64(v_add64(sum[0], sum[1]), v_add64(sum[2], sum[3])));
    for (size_t k = 0; k < BYTES / 8; k++)
        total += lanes[k];
    NAME(read_bytes)(src + i, n - i, &total);
    return total;
}
