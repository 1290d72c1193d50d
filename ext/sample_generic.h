/* Point sampling, linear and cubic, in plain C. Each dispatch level compiles its own copy.
 *
 * Included once per level, with TARGET (the attribute of its functions) and NAME(x) (their names) defined.
 *
 * Only the pixels with a weight are read, where they are. Per input row, the pixels under the output pixels are
 * collected into words and summed along the row, first to last. Rows that two output rows share are summed once. Then
 * the rows are summed, first to last. Loops run over output pixels, so vectors of any width add in the same order.
 *
 * Sums are doubles, weights and pixels integers. Sums below 2^53 are exact. Linear: weights add up to at most 2^13 per
 * axis, so totals are at most 2^42. Cubic: weights add up to 4 q^3, q = 2 size / gcd(length, size), and their absolute
 * values to at most 11/8 of it. At size 28 totals are at most 2^40 * depth, exact for uint8 and for windows of up
 * to 2^13 HU. Other totals are off by less than 2^-48 of the largest: at most 14 roundings, each 2^-53 of at most
 * (11/8)^2 times the largest. A flat slice stays flat: no quotient of integers below 2^16 is that close to a rounding
 * boundary (normalize_avx2.c).
 */

/* Pixel k of output pixel x. 8-bit pixels: four in low[x]. 16-bit pixels: two in low[x], two in high[x]. */
#define PIXEL8(k) ((int32_t)(low[x] >> (8 * (k)) & 0xff))
#define PIXEL16(k) ((int32_t)(((k) < 2 ? low[x] : high[x]) >> (16 * ((k) % 2)) & 0xffff))
#define HOUNSFIELD(k) ((int32_t)(int16_t)PIXEL16(k))

#define SAMPLE_ROW(name, value)                                                                        \
    TARGET static void name(const struct organ_sampling *sampling, double *restrict sums)              \
    {                                                                                                  \
        const struct organ_scale s = *sampling->scale;                                                 \
        const uint32_t padded = sampling->x.padded & ~(uint32_t)(ORGAN_GROUP - 1);                     \
        const uint32_t *restrict low = sampling->pixels, *restrict high = low + padded;                \
        const double *restrict w0 = sampling->x.weights, *restrict w1 = w0 + padded;                   \
        const double *restrict w2 = w1 + padded, *restrict w3 = w2 + padded;                           \
        (void)s, (void)high;                                                                           \
        if (sampling->x.count <= 2)                                                                    \
            for (uint32_t x = 0; x < padded; x++)                                                      \
                sums[x] = w0[x] * value(0) + w1[x] * value(1);                                         \
        else                                                                                           \
            for (uint32_t x = 0; x < padded; x++)                                                      \
                sums[x] = w0[x] * value(0) + w1[x] * value(1) + w2[x] * value(2) + w3[x] * value(3);   \
    }

#define U8(k) (double)PIXEL8(k)
#define U16(k) (double)PIXEL16(k)
#define CLIPPED(v) ((v) < s.low ? s.low : (v) > s.high ? s.high : (v))
#define I16(k) (double)(CLIPPED(HOUNSFIELD(k)) - s.low)
#define REAL(k) (double)organ_windowed((int16_t)HOUNSFIELD(k), s.real_low, s.real_width)
SAMPLE_ROW(NAME(sample_u8), U8)
SAMPLE_ROW(NAME(sample_u16), U16)
SAMPLE_ROW(NAME(sample_i16), I16)
SAMPLE_ROW(NAME(sample_real), REAL)
#undef REAL
#undef I16
#undef CLIPPED
#undef U16
#undef U8
#undef SAMPLE_ROW
#undef HOUNSFIELD
#undef PIXEL16
#undef PIXEL8

/* Collects pixels that are neither side by side nor whole words, one at a time. */
TARGET static void NAME(collect_each)(const struct organ_sampling *sampling, const char *row, ptrdiff_t stride)
{
    const struct organ_samples *axis = &sampling->x;
    uint32_t *low = sampling->pixels, *high = low + axis->padded;
    for (uint32_t x = 0; x < axis->out; x++) {
        const char *pixel = row + (ptrdiff_t)axis->starts[x] * stride;
        uint32_t word[2] = {0, 0};
        for (uint32_t k = 0; k < axis->count; k++, pixel += stride) {
            uint16_t value;
            if (sampling->itemsize == 1) {
                word[0] |= (uint32_t)*(const uint8_t *)pixel << (8 * k);
            } else {
                memcpy(&value, pixel, 2);
                word[k / 2] |= (uint32_t)value << (16 * (k % 2));
            }
        }
        low[x] = word[0];
        high[x] = word[1];
    }
}

/* Collects the pixels of one row. Words are loaded with memcpy because pixels may be unaligned. */
TARGET static void NAME(collect)(const struct organ_sampling *sampling, const char *row, ptrdiff_t stride)
{
    const struct organ_samples *axis = &sampling->x;
    const uint32_t *restrict starts = axis->starts;
    uint32_t *restrict low = sampling->pixels, *restrict high = low + axis->padded;
    const uint32_t out = axis->out, count = axis->count, one = 1;
    const int by_one = stride == 1 && sampling->itemsize == 1, by_two = stride == 2 && sampling->itemsize == 2;
    uint8_t first;
    memcpy(&first, &one, 1);
    if (first != 1) {
        /* big-endian: words hold their pixels in the other order */
        NAME(collect_each)(sampling, row, stride);
    } else if (by_one && count == 2) {
        for (uint32_t x = 0; x < out; x++) {
            uint16_t pair;
            memcpy(&pair, row + starts[x], 2);
            low[x] = pair;
        }
    } else if (by_one && count == 4) {
        for (uint32_t x = 0; x < out; x++)
            memcpy(&low[x], row + starts[x], 4);
    } else if (by_two && count == 2) {
        for (uint32_t x = 0; x < out; x++)
            memcpy(&low[x], row + (size_t)starts[x] * 2, 4);
    } else if (by_two && count == 4) {
        for (uint32_t x = 0; x < out; x++) {
            memcpy(&low[x], row + (size_t)starts[x] * 2, 4);
            memcpy(&high[x], row + (size_t)starts[x] * 2 + 4, 4);
        }
    } else {
        NAME(collect_each)(sampling, row, stride);
    }
}

TARGET static void NAME(sample_row)(const struct organ_sampling *sampling, const char *row, ptrdiff_t stride,
                                    double *sums)
{
    NAME(collect)(sampling, row, stride);
    switch (sampling->scale->kind) {
    case ORGAN_U8:
        NAME(sample_u8)(sampling, sums);
        break;
    case ORGAN_U16:
        NAME(sample_u16)(sampling, sums);
        break;
    case ORGAN_I16:
        NAME(sample_i16)(sampling, sums);
        break;
    case ORGAN_REAL:
        NAME(sample_real)(sampling, sums);
        break;
    }
}

/* The totals of one output row: the weighted sum of `count` rows, clamped. Only cubic sums are ever outside. */
TARGET static void NAME(sample_totals)(const struct organ_sampling *sampling, const double *const *rows,
                                       const double *weights, uint32_t count)
{
    const uint32_t padded = sampling->x.padded & ~(uint32_t)(ORGAN_GROUP - 1);
    const double most = sampling->most;
    double *restrict totals = sampling->totals;
    for (uint32_t x = 0; x < padded; x++)
        totals[x] = weights[0] * rows[0][x];
    for (uint32_t k = 1; k < count; k++) {
        const double *restrict row = rows[k];
        const double weight = weights[k];
        for (uint32_t x = 0; x < padded; x++)
            totals[x] += weight * row[x];
    }
    for (uint32_t x = 0; x < padded; x++) {
        const double total = totals[x] < 0.0 ? 0.0 : totals[x];
        totals[x] = total > most ? most : total;
    }
}

TARGET static void NAME(sample)(const struct organ_sampling *sampling, const char *src, ptrdiff_t stride_h,
                                ptrdiff_t stride_w, float *dst)
{
    const struct organ_samples *y = &sampling->y;
    const uint32_t padded = sampling->x.padded, out = sampling->x.out;
    /* the input row whose sums each row of the scratch memory holds; there is no row ORGAN_MAX_AXIS */
    uint32_t held[ORGAN_SAMPLES] = {ORGAN_MAX_AXIS, ORGAN_MAX_AXIS, ORGAN_MAX_AXIS, ORGAN_MAX_AXIS};
    for (uint32_t o = 0; o < y->out; o++, dst += out) {
        const double *rows[ORGAN_SAMPLES] = {sampling->rows};
        double weights[ORGAN_SAMPLES] = {0.0};
        uint32_t count = 0;
        for (uint32_t k = 0; k < y->count; k++) {
            const double weight = y->weights[k * y->padded + o];
            if (weight == 0.0)
                continue;
            /* Output rows read neighboring rows, which differ modulo ORGAN_SAMPLES. */
            const uint32_t row = y->starts[o] + k, slot = row % ORGAN_SAMPLES;
            double *sums = sampling->rows + (size_t)slot * padded;
            if (held[slot] != row) {
                NAME(sample_row)(sampling, src + (ptrdiff_t)row * stride_h, stride_w, sums);
                held[slot] = row;
            }
            rows[count] = sums;
            weights[count++] = weight;
        }
        NAME(sample_totals)(sampling, rows, weights, count);
        organ_finish(sampling->scale, sampling->inverse, sampling->totals, dst, out);
    }
}
