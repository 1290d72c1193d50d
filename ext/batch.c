/* Packs a batch: divides the slices among threads. Each thread has its own scratch memory and writes its own
 * part of the output. */
#include "pack.h"

#include <stdlib.h>
#include <string.h>

#include "threads.h"

/* Bytes read and written that justify one more thread. Starting and joining a thread takes 20 to 50
 * microseconds; in that time one core processes about 1 MB. */
#define BYTES_PER_THREAD ((uint64_t)1 << 20)
#define MAX_THREADS 256
/* arrays in the scratch memory of one worker */
#define PARTS 11

struct worker {
    const struct organ_job *job;
    /* slices [begin, end), counted over all runs */
    size_t begin, end;
    struct organ_axis y, x;
    int16_t *weights;
    uint32_t *starts;
    organ_sums sums;
    double *totals;
    /* for point sampling; starts and weights are those of both axes */
    struct organ_sampling sampling;
    /* holds one slice if its rows are not contiguous */
    char *copy;
    void *scratch;
};

static int same_size(const struct organ_job *job, const struct organ_run *run)
{
    return run->h == job->size && run->w == job->size;
}

/* Bytes read and written per slice. Point sampling reads at most a cache line per output pixel and row. */
static uint64_t cost(const struct organ_job *job, const struct organ_run *run)
{
    const uint64_t size = job->size, all = (uint64_t)run->h * run->w * job->itemsize;
    const uint64_t rows = run->h < ORGAN_SAMPLES * size ? run->h : ORGAN_SAMPLES * size;
    const uint64_t lines = rows * size * 64;
    const int sampled = job->resample != ORGAN_AREA && !same_size(job, run);
    return (sampled && lines < all ? lines : all) + 4 * size * size;
}

static int in_rows(const struct organ_job *job, const struct organ_run *run)
{
    const int aligned = ((uintptr_t)run->data | (uintptr_t)run->stride_n | (uintptr_t)run->stride_h) %
                            job->itemsize == 0;
    return run->stride_w == (ptrdiff_t)job->itemsize && aligned;
}

/* Copies pixels with memcpy because they may be unaligned. */
static void copy_slice(const struct organ_job *job, const struct organ_run *run, const char *src, char *dst)
{
    const ptrdiff_t step = run->stride_w;
    for (size_t y = 0; y < run->h; y++) {
        const char *pixel = src + (ptrdiff_t)y * run->stride_h;
        if (job->itemsize == 1)
            for (size_t x = 0; x < run->w; x++)
                *dst++ = pixel[(ptrdiff_t)x * step];
        else
            for (size_t x = 0; x < run->w; x++, dst += 2)
                memcpy(dst, pixel + (ptrdiff_t)x * step, 2);
    }
}

static void normalize_slices(struct worker *w, const struct organ_kernels *kernels,
                             const struct organ_run *run, size_t first, size_t count, float *out)
{
    const struct organ_job *job = w->job;
    const size_t area = run->h * run->w;
    void (*normalize)(const struct organ_scale *, const void *, float *, size_t) =
        job->scale->kind == ORGAN_REAL ? organ_normalize_real : kernels->normalize;
    const char *src = run->data + (ptrdiff_t)first * run->stride_n;
    const ptrdiff_t row = (ptrdiff_t)(run->w * job->itemsize);

    if (!in_rows(job, run)) {
        for (size_t i = 0; i < count; i++, out += area) {
            copy_slice(job, run, src + (ptrdiff_t)i * run->stride_n, w->copy);
            normalize(job->scale, w->copy, out, area);
        }
    } else if (run->stride_h != row && run->h > 1) {
        for (size_t i = 0; i < count; i++)
            for (size_t y = 0; y < run->h; y++, out += run->w)
                normalize(job->scale, src + (ptrdiff_t)i * run->stride_n + (ptrdiff_t)y * run->stride_h, out,
                          run->w);
    } else if (count > 1 && run->stride_n != (ptrdiff_t)(area * job->itemsize)) {
        for (size_t i = 0; i < count; i++, out += area)
            normalize(job->scale, src + (ptrdiff_t)i * run->stride_n, out, area);
    } else {
        normalize(job->scale, src, out, count * area);
    }
}

static void make_plan(struct worker *w, const struct organ_kernels *kernels, const struct organ_run *run,
                      struct organ_plan *plan)
{
    const struct organ_scale *scale = w->job->scale;
    if (w->y.in != run->h)
        organ_axis_fill(&w->y, (uint32_t)run->h, w->job->size);
    if (w->x.in != run->w)
        organ_axis_fill(&w->x, (uint32_t)run->w, w->job->size);
    plan->scale = scale;
    plan->y = w->y;
    plan->x = w->x;
    plan->inverse = 1.0 / ((double)w->y.total * (double)w->x.total * (double)scale->depth);
    /* the largest possible column sum */
    const uint64_t column = (uint64_t)w->y.total * scale->depth;
    const int dot = kernels->narrow != 0 && scale->kind != ORGAN_REAL && w->x.widest <= ORGAN_LANES &&
                    column * w->x.total <= UINT32_MAX;
    plan->narrow = dot && scale->kind != ORGAN_U16 && column <= UINT16_MAX && run->w >= kernels->narrow;
    plan->weights = dot ? w->weights : NULL;
    plan->starts = w->starts;
    if (!dot)
        return;
    for (uint32_t o = 0; o < w->x.out; o++) {
        const struct organ_tap *tap = &w->x.taps[o];
        int16_t *weight = w->weights + (size_t)o * ORGAN_LANES;
        const int16_t mid = (int16_t)tap->mid, count = (int16_t)tap->count;
        for (int16_t t = 0; t < ORGAN_LANES; t++)
            weight[t] = t < count ? mid : 0;
        if (tap->count > 1)
            weight[tap->count - 1] = (int16_t)tap->last;
        weight[0] = (int16_t)tap->first;
        w->starts[o] = tap->start;
    }
}

static void resample_slices(struct worker *w, const struct organ_kernels *kernels,
                            const struct organ_run *run, size_t first, size_t count, float *out)
{
    const struct organ_job *job = w->job;
    struct organ_plan plan;
    make_plan(w, kernels, run, &plan);
    const int real = job->scale->kind == ORGAN_REAL, copied = !in_rows(job, run);
    for (size_t i = 0; i < count; i++) {
        const char *src = run->data + (ptrdiff_t)(first + i) * run->stride_n;
        ptrdiff_t stride = run->stride_h;
        if (copied) {
            copy_slice(job, run, src, w->copy);
            src = w->copy;
            stride = (ptrdiff_t)(run->w * job->itemsize);
        }
        for (uint32_t o = 0; o < job->size; o++, out += job->size) {
            (real ? organ_rows_real : kernels->rows)(&plan, src, stride, &w->y.taps[o], w->sums);
            (real ? organ_columns_real : kernels->columns)(&plan, w->sums, w->totals, out);
        }
    }
}

static void sample_slices(struct worker *w, const struct organ_kernels *kernels, const struct organ_run *run,
                          size_t first, size_t count, float *out)
{
    const struct organ_job *job = w->job;
    struct organ_sampling *sampling = &w->sampling;
    if (sampling->y.in != run->h)
        organ_samples_fill(&sampling->y, job->resample, (uint32_t)run->h, job->size);
    if (sampling->x.in != run->w)
        organ_samples_fill(&sampling->x, job->resample, (uint32_t)run->w, job->size);
    sampling->scale = job->scale;
    sampling->itemsize = job->itemsize;
    sampling->most = sampling->y.total * sampling->x.total * (double)job->scale->depth;
    sampling->inverse = 1.0 / sampling->most;
    for (size_t i = 0; i < count; i++, out += (size_t)job->size * job->size)
        kernels->sample(sampling, run->data + (ptrdiff_t)(first + i) * run->stride_n, run->stride_h, run->stride_w,
                        out);
}

static void pack_slices(struct worker *w)
{
    const struct organ_job *job = w->job;
    const struct organ_kernels *kernels = organ_level();
    const size_t area = (size_t)job->size * job->size;
    size_t before = 0;
    for (size_t r = 0; r < job->run_count && before < w->end; before += job->runs[r++].n) {
        const struct organ_run *run = &job->runs[r];
        const size_t begin = w->begin > before ? w->begin - before : 0;
        const size_t end = w->end - before < run->n ? w->end - before : run->n;
        if (begin >= end)
            continue;
        float *out = job->out + (before + begin) * area;
        if (same_size(job, run))
            normalize_slices(w, kernels, run, begin, end - begin, out);
        else if (job->resample != ORGAN_AREA)
            sample_slices(w, kernels, run, begin, end - begin, out);
        else
            resample_slices(w, kernels, run, begin, end - begin, out);
    }
}

ORGAN_THREAD(thread_body, argument)
{
    pack_slices(argument);
    ORGAN_THREAD_END;
}

/* Allocates the scratch memory of one worker. Every part starts on a cache line. ORGAN_MAX_AXIS and
 * ORGAN_MAX_SIZE keep the total below 2^34, so only a 32-bit size_t can overflow; that case is checked. */
static int allocate_scratch(struct worker *w, uint64_t sums, uint64_t copy)
{
    const uint64_t size = w->job->size;
    const uint64_t dots = size > ORGAN_LANES ? size : ORGAN_LANES;
    const uint64_t area = w->job->resample == ORGAN_AREA, sampled = area ? 0 : organ_padded(w->job->size);
    const uint64_t parts[PARTS] = {area * size * sizeof(struct organ_tap),
                                   area * size * sizeof(struct organ_tap),
                                   area * dots * ORGAN_LANES * sizeof(int16_t),
                                   area * dots * sizeof(uint32_t),
                                   (area ? size : sampled) * sizeof(double),
                                   sums,
                                   copy,
                                   2 * sampled * sizeof(uint32_t),
                                   2 * ORGAN_SAMPLES * sampled * sizeof(double),
                                   2 * sampled * sizeof(uint32_t),
                                   ORGAN_SAMPLES * sampled * sizeof(double)};
    uint64_t offset[PARTS], total = 64;
    for (int i = 0; i < PARTS; i++) {
        offset[i] = total;
        total += (parts[i] + 63) & ~(uint64_t)63;
    }
    if (total > SIZE_MAX / 2)
        return -1;
    w->scratch = malloc((size_t)total);
    if (w->scratch == NULL)
        return -1;
    char *base = (char *)((uintptr_t)w->scratch & ~(uintptr_t)63);
    w->y.taps = (struct organ_tap *)(base + offset[0]);
    w->x.taps = (struct organ_tap *)(base + offset[1]);
    w->weights = (int16_t *)(base + offset[2]);
    w->starts = (uint32_t *)(base + offset[3]);
    w->totals = (double *)(base + offset[4]);
    w->sums.any = base + offset[5];
    w->copy = base + offset[6];
    w->sampling.totals = w->totals;
    w->sampling.y.starts = (uint32_t *)(base + offset[7]);
    w->sampling.x.starts = w->sampling.y.starts + sampled;
    w->sampling.y.weights = (double *)(base + offset[8]);
    w->sampling.x.weights = w->sampling.y.weights + ORGAN_SAMPLES * sampled;
    w->sampling.pixels = (uint32_t *)(base + offset[9]);
    w->sampling.rows = (double *)(base + offset[10]);
    /* dot products read past the last column, with weight 0 */
    memset(w->sums.any, 0, (size_t)sums);
    /* they also read past the last output pixel; that result is discarded */
    if (area && size < ORGAN_LANES) {
        memset(w->weights, 0, (size_t)parts[2]);
        memset(w->starts, 0, (size_t)parts[3]);
    }
    return 0;
}

/* Divides slices [0, slices) into `count` parts of about equal cost. */
static void divide_slices(const struct organ_job *job, struct worker *workers, size_t count, uint64_t total)
{
    size_t slice = 0, next = 1;
    uint64_t done = 0;
    workers[0].begin = 0;
    for (size_t r = 0; r < job->run_count; r++) {
        const uint64_t each = cost(job, &job->runs[r]);
        const size_t stop = slice + job->runs[r].n;
        while (next < count) {
            const uint64_t goal = total / count * next;
            const uint64_t steps = goal > done ? (goal - done + each - 1) / each : 0;
            if (steps > stop - slice)
                break;
            slice += (size_t)steps;
            done += steps * each;
            workers[next - 1].end = slice;
            workers[next++].begin = slice;
        }
        done += (stop - slice) * each;
        slice = stop;
    }
    while (next < count) {
        workers[next - 1].end = slice;
        workers[next++].begin = slice;
    }
    workers[count - 1].end = slice;
}

int organ_pack(const struct organ_job *job, long threads)
{
    struct worker alone, *workers = &alone;
    organ_thread *started = NULL;
    const uint64_t sum_size = job->scale->kind == ORGAN_REAL ? sizeof(double) : sizeof(uint32_t);
    uint64_t total = 0, sums = 0, copy = 0;
    size_t count = 1, ready = 0;
    int status = -1, sampled = 0;

    for (size_t r = 0; r < job->run_count; r++) {
        const struct organ_run *run = &job->runs[r];
        total += run->n * cost(job, run);
        if (job->resample != ORGAN_AREA && !same_size(job, run)) {
            /* reads pixels where they are */
            sampled = 1;
            continue;
        }
        if (!same_size(job, run) && (run->w + 2 * ORGAN_LANES) * sum_size > sums)
            sums = (run->w + 2 * ORGAN_LANES) * sum_size;
        if (!in_rows(job, run) && (uint64_t)run->h * run->w * job->itemsize > copy)
            copy = (uint64_t)run->h * run->w * job->itemsize;
    }
    if (threads > 1) {
        const uint64_t worthwhile = total / BYTES_PER_THREAD;
        count = (size_t)(threads < MAX_THREADS ? threads : MAX_THREADS);
        if (count > job->slices)
            count = job->slices;
        if (count > worthwhile)
            count = worthwhile != 0 ? (size_t)worthwhile : 1;
    }
    if (count > 1) {
        workers = malloc(count * sizeof *workers);
        started = malloc(count * sizeof *started);
        if (workers == NULL || started == NULL)
            goto done;
    }
    for (; ready < count; ready++) {
        struct worker *w = &workers[ready];
        w->job = job;
        w->scratch = NULL;
        w->y.in = w->x.in = w->sampling.y.in = w->sampling.x.in = 0;
        if ((sampled || sums + copy != 0) && allocate_scratch(w, sums, copy) != 0)
            goto done;
    }
    divide_slices(job, workers, count, total);

    size_t running = 0;
    while (running + 1 < count && organ_thread_start(&started[running], thread_body, &workers[running]) == 0)
        running++;
    /* this thread's own part, and the parts whose thread could not start */
    for (size_t i = running; i < count; i++)
        pack_slices(&workers[i]);
    for (size_t i = 0; i < running; i++)
        organ_thread_join(started[i]);
    status = 0;

done:
    for (size_t i = 0; i < ready; i++)
        free(workers[i].scratch);
    if (workers != &alone)
        free(workers);
    free(started);
    return status;
}
