/* Divides files among threads. Each file is opened, read once, decoded and packed into its own place. POSIX. */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "threads.h"

/* Files that justify one more thread: a small file takes about 8 microseconds, starting a thread 20 to 50. */
#define FILES_PER_THREAD 64
#define MAX_THREADS 64

struct worker {
    const struct organ_reading *reading;
    size_t begin, end;
    struct organ_png png;
    uint8_t *file;
    /* bytes allocated at `file` */
    size_t capacity;
};

static int is_small_file(const struct stat *status)
{
    return S_ISREG(status->st_mode) && status->st_size > 0 && (uint64_t)status->st_size <= ORGAN_PNG_BYTES;
}

/* Requests one byte more than the file's size, so that a file that has grown or shrunk since is rejected. */
static size_t read_whole(struct worker *w, int file, size_t size)
{
    size_t taken = 0;
    if (size + 1 > w->capacity) {
        free(w->file);
        w->capacity = 0;
        w->file = malloc(size + 1);
        if (w->file == NULL)
            return 0;
        w->capacity = size + 1;
    }
    while (taken < size) {
        const ssize_t more = read(file, w->file + taken, size + 1 - taken);
        if (more < 0 && errno == EINTR)
            continue;
        if (more < 0)
            return 0;
        if (more == 0)
            break;
        taken += (size_t)more;
    }
    return taken == size ? size : 0;
}

/* Reads a file into w->file. Returns the number of bytes, or 0. The file type is checked before opening, because
 * opening a device can have side effects, and again on the open descriptor. */
static size_t read_file(struct worker *w, const char *path)
{
    struct stat status;
    size_t size = 0;
    if (stat(path, &status) != 0 || !is_small_file(&status))
        return 0;
    const int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (file < 0)
        return 0;
    if (fstat(file, &status) == 0 && is_small_file(&status))
        size = read_whole(w, file, (size_t)status.st_size);
    close(file);
    return size;
}

static int read_slice(struct worker *w, size_t i)
{
    const struct organ_reading *reading = w->reading;
    const size_t size = reading->paths[i] != NULL ? read_file(w, reading->paths[i]) : 0;
    if (size == 0 || organ_png_decode(&w->png, w->file, size, reading->pixel_limit) != 0)
        return -1;
    const struct organ_run run = {
        .data = (const char *)w->png.pixels,
        .stride_n = 0,
        .stride_h = (ptrdiff_t)w->png.width,
        .stride_w = 1,
        .n = 1,
        .h = w->png.height,
        .w = w->png.width,
    };
    const struct organ_job job = {
        .runs = &run,
        .run_count = 1,
        .slices = 1,
        .scale = reading->scale,
        .resample = reading->resample,
        .size = reading->size,
        .itemsize = 1,
        .out = reading->out + i * reading->size * reading->size,
    };
    return reading->pack(&job, 1);
}

ORGAN_THREAD(read_slices, argument)
{
    struct worker *w = argument;
    for (size_t i = w->begin; i < w->end; i++)
        w->reading->done[i] = read_slice(w, i) == 0;
    organ_png_end(&w->png);
    free(w->file);
    ORGAN_THREAD_END;
}

void organ_read(const struct organ_reading *reading, long threads)
{
    struct worker workers[MAX_THREADS];
    organ_thread started[MAX_THREADS];
    size_t count = reading->count / FILES_PER_THREAD, running = 0;

    if (count > MAX_THREADS)
        count = MAX_THREADS;
    if (threads < 1 || count < 1)
        count = 1;
    else if (count > (size_t)threads)
        count = (size_t)threads;
    memset(workers, 0, count * sizeof *workers);
    for (size_t i = 0; i < count; i++) {
        workers[i].reading = reading;
        workers[i].begin = reading->count / count * i;
        workers[i].end = i + 1 < count ? reading->count / count * (i + 1) : reading->count;
    }
    while (running + 1 < count && organ_thread_start(&started[running], read_slices, &workers[running]) == 0)
        running++;
    /* this thread's own part, and the parts whose thread could not start */
    for (size_t i = running; i < count; i++)
        read_slices(&workers[i]);
    for (size_t i = 0; i < running; i++)
        organ_thread_join(started[i]);
}
