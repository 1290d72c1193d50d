/* A batch of files, read, decoded and packed. */
#ifndef ORGAN_FILES_H
#define ORGAN_FILES_H

#include "pack.h"
#include "png.h"

struct organ_reading {
    const char *const *paths; /* (count), NULL for one that is no path */
    size_t count;
    uint64_t pixel_limit;
    const struct organ_scale *scale;
    uint32_t size;
    int (*pack)(const struct organ_job *job, long threads); /* organ_pack, of the module that holds the kernels */
    float *out;                                             /* (count, 1, size, size) */
    uint8_t *done; /* (count), 1 where the file's slice stands in out; elsewhere out is not written */
};

/* Files that are no plain 8-bit gray PNG are left alone, without an error. */
void organ_read(const struct organ_reading *reading, long threads);

#endif
