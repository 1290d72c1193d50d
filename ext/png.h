/* A strict decoder of 8-bit gray PNG. Pillow decodes every accepted file to the same bytes and reads the others. */
#ifndef ORGAN_PNG_H
#define ORGAN_PNG_H

#define ZLIB_CONST
#include <stddef.h>
#include <stdint.h>
#include <zlib.h>

/* The largest file and image accepted. They limit the memory of one worker to about two megabytes. */
#define ORGAN_PNG_BYTES ((size_t)1 << 20)
#define ORGAN_PNG_PIXELS ((size_t)1 << 20)

/* A decoder for many files, one after another. All zero before its first file. */
struct organ_png {
    z_stream stream;
    /* whether the stream is initialized */
    int streaming;
    /* (height, width) of the last file decoded */
    uint8_t *pixels;
    /* bytes allocated at `pixels` */
    size_t capacity;
    uint32_t width, height;
};

/* Decodes data[0..size). Returns 0, or -1 for any file that another reader must handle. */
int organ_png_decode(struct organ_png *png, const uint8_t *data, size_t size, uint64_t pixel_limit);
/* Frees the memory of the decoder. */
void organ_png_end(struct organ_png *png);

#endif
