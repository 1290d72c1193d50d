/* Reads, decodes and packs a batch of files. */
#ifndef ORGAN_FILES_H
#define ORGAN_FILES_H

#include "pack.h"
#include "png.h"

struct organ_reading {
    /* (count), NULL for an object that is not a path */
    const char *const *paths;
    size_t count;
    uint64_t pixel_limit;
    const struct organ_scale *scale;
    enum organ_resample resample;
    uint32_t size;
    /* organ_pack of the module that holds the kernels */
    int (*pack)(const struct organ_job *job, long threads);
    /* (count, 1, size, size) */
    float *out;
    /* (count), 1 if the file's slice was written to out, else 0 and its part of out is not set */
    uint8_t *done;
};

/* Skips files that are not plain 8-bit gray PNG, without an error. */
void organ_read(const struct organ_reading *reading, long threads);

#endif
