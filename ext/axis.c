/* Resampling weights of one axis, as integers. */
#include "pack.h"

static uint32_t common_divisor(uint32_t a, uint32_t b)
{
    while (b != 0) {
        const uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Output pixel o is the mean of the input over [o * in / out, (o + 1) * in / out). In units of 1 / out of an
 * input pixel, every boundary is an integer. Dividing by the common divisor keeps the weights small. */
static void fill_area(struct organ_axis *axis, uint32_t divisor)
{
    const uint32_t in = axis->in / divisor, out = axis->out / divisor;
    const uint32_t whole = in / out, rest = in % out;
    /* output pixel o begins at start + past / out */
    uint32_t start = 0, past = 0;
    axis->total = in;
    for (uint32_t o = 0; o < axis->out; o++) {
        struct organ_tap *tap = &axis->taps[o];
        uint32_t stop = start + whole, end = past + rest;
        if (end >= out) {
            end -= out;
            stop++;
        }
        tap->start = start;
        tap->first = out - past;
        tap->mid = out;
        tap->last = end != 0 ? end : out;
        tap->count = stop - start + (end != 0);
        start = stop;
        past = end;
    }
}

/* Half-pixel centers: output pixel o is at ((2 o + 1) in - out) / (2 out), clamped to [0, in - 1]. */
static void fill_linear(struct organ_axis *axis, uint32_t divisor)
{
    const int64_t in = axis->in, out = axis->out, parts = 2 * out;
    axis->total = (uint32_t)(parts / divisor);
    for (uint32_t o = 0; o < axis->out; o++) {
        int64_t position = (2 * (int64_t)o + 1) * in - out;
        if (position < 0)
            position = 0;
        if (position > (in - 1) * parts)
            position = (in - 1) * parts;
        struct organ_tap *tap = &axis->taps[o];
        tap->start = (uint32_t)(position / parts);
        tap->last = (uint32_t)(position % parts / divisor);
        tap->mid = 0;
        tap->first = axis->total - tap->last;
        tap->count = tap->last != 0 ? 2 : 1;
    }
}

/* Four times the weights of cubic convolution with A = -3/4 (Keys 1981), at p / q of the way from the second of four
 * pixels to the third, in units of 1 / q^3. They add up to 4 q^3. For q <= 2^13 each step is below 2^45. */
static void cubic_weights(int64_t p, int64_t q, int64_t weights[ORGAN_SAMPLES])
{
    const int64_t r = q - p, all = 4 * q * q * q;
    weights[0] = -3 * p * r * r;
    weights[1] = (5 * p - 9 * q) * p * p + all;
    weights[2] = (5 * r - 9 * q) * r * r + all;
    weights[3] = -3 * r * p * p;
}

static int64_t clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* Half-pixel centers: output pixel o is at ((2 o + 1) in - out) / (2 out). It reads the pixels around this position.
 * A pixel beyond the edge is the pixel at the edge: both weights are added. So the pixels that are read lie side by
 * side within the axis, and an axis of fewer pixels is read whole. */
void organ_samples_fill(struct organ_samples *axis, enum organ_resample resample, uint32_t in, uint32_t out)
{
    const uint32_t reach = resample == ORGAN_CUBIC ? 4 : 2, padded = organ_padded(out);
    const int64_t divisor = common_divisor(in, out), q = 2 * (int64_t)out / divisor;
    const int64_t step = 2 * (int64_t)in / divisor;
    axis->in = in;
    axis->out = out;
    axis->padded = padded;
    axis->count = in < reach ? in : reach;
    axis->total = (double)(resample == ORGAN_CUBIC ? 4 * q * q * q : q);
    memset(axis->starts, 0, padded * sizeof *axis->starts);
    memset(axis->weights, 0, (size_t)ORGAN_SAMPLES * padded * sizeof *axis->weights);
    /* The first position is above -1/2 pixel. `whole` is rounded down, so that 0 <= part < q. */
    int64_t part = ((int64_t)in - (int64_t)out) / divisor;
    int64_t whole = part < 0 ? -1 : part / q;
    part -= whole * q;
    for (uint32_t o = 0; o < out; o++) {
        int64_t weights[ORGAN_SAMPLES] = {q - part, part, 0, 0};
        if (resample == ORGAN_CUBIC)
            cubic_weights(part, q, weights);
        const int64_t first = whole - (reach / 2 - 1);
        const int64_t start = clamp(first, 0, (int64_t)in - axis->count);
        axis->starts[o] = (uint32_t)start;
        for (uint32_t k = 0; k < reach; k++)
            axis->weights[(clamp(first + k, 0, (int64_t)in - 1) - start) * padded + o] += (double)weights[k];
        whole += step / q;
        part += step % q;
        if (part >= q) {
            part -= q;
            whole++;
        }
    }
}

void organ_axis_fill(struct organ_axis *axis, uint32_t in, uint32_t out)
{
    axis->in = in;
    axis->out = out;
    if (in < out)
        fill_linear(axis, common_divisor(in, out));
    else
        fill_area(axis, common_divisor(in, out));
    axis->widest = 0;
    for (uint32_t o = 0; o < out; o++)
        if (axis->taps[o].count > axis->widest)
            axis->widest = axis->taps[o].count;
}
