/* Resampling in plain C with 32-bit column sums. Each dispatch level compiles its own copy.
 *
 * Included once per level, with TARGET (the attribute of its functions) and NAME(x) (their names) defined.
 */

/* sums[x] = weighted sum of column x, from the rows under one output row. */
#define WIDE_ROWS(name, type, value)                                                                 \
    TARGET static void name(const struct organ_plan *plan, const char *src, ptrdiff_t stride,        \
                            const struct organ_tap *tap, uint32_t *restrict sums)                    \
    {                                                                                                \
        const struct organ_scale s = *plan->scale;                                                   \
        const uint32_t n = plan->x.in;                                                               \
        const type *restrict row = (const type *)(src + (ptrdiff_t)tap->start * stride);             \
        const type *restrict end =                                                                   \
            (const type *)(src + (ptrdiff_t)(tap->start + tap->count - 1) * stride);                 \
        (void)s;                                                                                     \
        if (tap->count == 1) {                                                                       \
            for (uint32_t x = 0; x < n; x++)                                                         \
                sums[x] = tap->first * (uint32_t)(value(row[x]));                                    \
            return;                                                                                  \
        }                                                                                            \
        for (uint32_t x = 0; x < n; x++)                                                             \
            sums[x] = tap->first * (uint32_t)(value(row[x])) + tap->last * (uint32_t)(value(end[x])); \
        for (uint32_t t = 1; t + 1 < tap->count; t++) {                                              \
            row = (const type *)(src + (ptrdiff_t)(tap->start + t) * stride);                        \
            for (uint32_t x = 0; x < n; x++)                                                         \
                sums[x] += tap->mid * (uint32_t)(value(row[x]));                                     \
        }                                                                                            \
    }

#define AS_IS(v) (v)
#define WINDOWED(v) (((v) < s.low ? s.low : (v) > s.high ? s.high : (v)) - s.low)
WIDE_ROWS(NAME(wide_rows_u8), uint8_t, AS_IS)
WIDE_ROWS(NAME(wide_rows_u16), uint16_t, AS_IS)
WIDE_ROWS(NAME(wide_rows_i16), int16_t, WINDOWED)
#undef WINDOWED
#undef AS_IS
#undef WIDE_ROWS

TARGET static void NAME(wide_rows)(const struct organ_plan *plan, const char *src, ptrdiff_t stride,
                                   const struct organ_tap *tap, organ_sums sums)
{
    if (plan->scale->kind == ORGAN_U8)
        NAME(wide_rows_u8)(plan, src, stride, tap, sums.wide);
    else if (plan->scale->kind == ORGAN_U16)
        NAME(wide_rows_u16)(plan, src, stride, tap, sums.wide);
    else
        NAME(wide_rows_i16)(plan, src, stride, tap, sums.wide);
}

TARGET static void NAME(wide_columns)(const struct organ_plan *plan, organ_sums sums, double *totals,
                                      float *dst)
{
    for (uint32_t o = 0; o < plan->x.out; o++) {
        const struct organ_tap *tap = &plan->x.taps[o];
        const uint32_t *column = sums.wide + tap->start;
        uint64_t total = (uint64_t)tap->first * column[0];
        if (tap->count > 1) {
            uint64_t mid = 0;
            for (uint32_t t = 1; t + 1 < tap->count; t++)
                mid += column[t];
            total += mid * tap->mid + (uint64_t)tap->last * column[tap->count - 1];
        }
        totals[o] = (double)total;
    }
    organ_finish(plan->scale, plan->inverse, totals, dst, plan->x.out);
}

TARGET static void NAME(read_bytes)(const uint8_t *src, size_t n, uint64_t *total)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += src[i];
    *total += sum;
}

/* Starts on a cache line, as the kernels do. Unaligned, this baseline would be a fifth slower than the kernels. */
TARGET static void NAME(store_limit)(const uint8_t *restrict src, float *restrict dst, size_t n)
{
    size_t i = 0;
    for (; i < n && (uintptr_t)(dst + i) % 64 != 0; i++)
        dst[i] = (float)src[i];
    for (; i < n; i++)
        dst[i] = (float)src[i];
}
