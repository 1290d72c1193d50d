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
