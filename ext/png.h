/* 8-bit gray PNG, strictly: what this takes, Pillow reads as the same bytes; anything else is for Pillow. */
#ifndef ORGAN_PNG_H
#define ORGAN_PNG_H

#define ZLIB_CONST
#include <stddef.h>
#include <stdint.h>
#include <zlib.h>

/* The largest file and picture taken; they bound what one worker holds to about two megabytes. */
#define ORGAN_PNG_BYTES ((size_t)1 << 20)
#define ORGAN_PNG_PIXELS ((size_t)1 << 20)

/* One decoder, for many files in turn. All zero before its first file. */
struct organ_png {
    z_stream stream;
    int streaming;      /* the stream is initialised */
    uint8_t *pixels;    /* (height, width) of the last file decoded */
    size_t room;        /* bytes */
    uint32_t width, height;
};

/* Decodes data[0..size). Returns 0, or -1 for a file that is not to be read here, for whatever reason. */
int organ_png_decode(struct organ_png *png, const uint8_t *data, size_t size, uint64_t pixel_limit);
/* Frees what the decoder holds. */
void organ_png_end(struct organ_png *png);

#endif
