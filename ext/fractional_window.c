/* int16 slices with a window whose bounds are not integers or are outside int16.
 *
 * Each pixel is rounded to float32, as without resampling. Sums are doubles. Weights are integers, so a flat slice
 * is summed without rounding (24 bits of pixel, at most 29 bits of weights) and stays flat. All levels share this
 * code: additions happen in source order, so results are equal on every processor.
 */
#include "pack.h"

void organ_normalize_real(const struct organ_scale *scale, const void *src, float *dst, size_t n)
{
    const struct organ_scale s = *scale;
    const int16_t *pixel = src;
    for (size_t i = 0; i < n; i++)
        dst[i] = (organ_windowed(pixel[i], s.real_low, s.real_width) - s.mean) / s.std;
}

void organ_rows_real(const struct organ_plan *plan, const char *src, ptrdiff_t stride,
                     const struct organ_tap *tap, organ_sums sums)
{
    const double low = plan->scale->real_low, width = plan->scale->real_width;
    const uint32_t n = plan->x.in;
    double *sum = sums.real;
    for (uint32_t t = 0; t < tap->count; t++) {
        const int16_t *row = (const int16_t *)(src + (ptrdiff_t)(tap->start + t) * stride);
        const double weight = t == 0 ? tap->first : t + 1 == tap->count ? tap->last : tap->mid;
        if (t == 0)
            for (uint32_t x = 0; x < n; x++)
                sum[x] = weight * (double)organ_windowed(row[x], low, width);
        else
            for (uint32_t x = 0; x < n; x++)
                sum[x] += weight * (double)organ_windowed(row[x], low, width);
    }
}

void organ_columns_real(const struct organ_plan *plan, organ_sums sums, double *totals, float *dst)
{
    for (uint32_t o = 0; o < plan->x.out; o++) {
        const struct organ_tap *tap = &plan->x.taps[o];
        const double *column = sums.real + tap->start;
        double total = tap->first * column[0];
        for (uint32_t t = 1; t + 1 < tap->count; t++)
            total += tap->mid * column[t];
        if (tap->count > 1)
            total += tap->last * column[tap->count - 1];
        totals[o] = total;
    }
    organ_finish(plan->scale, plan->inverse, totals, dst, plan->x.out);
}
