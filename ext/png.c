/* The PNG decoder (PNG specification, third edition; section numbers are its). zlib inflates. */
#include "png.h"

#include <stdlib.h>
#include <string.h>

#include "pack.h"

#define NAME(a, b, c, d) ((uint32_t)(a) << 24 | (uint32_t)(b) << 16 | (uint32_t)(c) << 8 | (uint32_t)(d))
#define SIGNATURE 8
#define AROUND 12 /* a chunk's length, name and checksum */

struct chunk {
    uint32_t name;
    size_t length;
    const uint8_t *data;
};

/* Chunks that change no pixel of 8-bit gray and no word that Pillow has on it, with their only length. What may
 * turn, mask or animate the picture is not among them: tRNS, eXIf, text (XMP, raw EXIF profiles), acTL, fcTL. */
static const struct {
    uint32_t name;
    size_t length;
} PLAIN[] = {
    {NAME('g', 'A', 'M', 'A'), 4}, {NAME('c', 'H', 'R', 'M'), 32}, {NAME('s', 'R', 'G', 'B'), 1},
    {NAME('p', 'H', 'Y', 's'), 9}, {NAME('t', 'I', 'M', 'E'), 7},  {NAME('s', 'B', 'I', 'T'), 1},
    {NAME('b', 'K', 'G', 'D'), 2},
};

static uint32_t word(const uint8_t *at)
{
    return NAME(at[0], at[1], at[2], at[3]);
}

/* The chunk at *at, its checksum held against it; *at moves past it. */
static int next_chunk(const uint8_t *data, size_t size, size_t *at, struct chunk *chunk)
{
    const size_t left = size - *at; /* *at never passes size */
    if (left < AROUND)
        return -1;
    chunk->length = word(data + *at);
    if (chunk->length > left - AROUND)
        return -1;
    chunk->name = word(data + *at + 4);
    chunk->data = data + *at + 8;
    *at += AROUND + chunk->length;
    /* at most ORGAN_PNG_BYTES, so it fits zlib's unsigned int */
    return word(chunk->data + chunk->length) == crc32(0, chunk->data - 4, (uInt)chunk->length + 4) ? 0 : -1;
}

static int is_plain(const struct chunk *chunk)
{
    for (size_t i = 0; i < sizeof PLAIN / sizeof *PLAIN; i++)
        if (PLAIN[i].name == chunk->name)
            return PLAIN[i].length == chunk->length;
    return 0;
}

/* IHDR (11.2.1). */
static int read_header(struct organ_png *png, const struct chunk *chunk, uint64_t pixel_limit)
{
    static const uint8_t GRAY[5] = {8, 0, 0, 0, 0}; /* depth, colour, compression, filter, interlace */
    if (chunk->name != NAME('I', 'H', 'D', 'R') || chunk->length != 13 || memcmp(chunk->data + 8, GRAY, 5) != 0)
        return -1;
    png->width = word(chunk->data);
    png->height = word(chunk->data + 4);
    if (png->width < 1 || png->width > ORGAN_MAX_AXIS || png->height < 1 || png->height > ORGAN_MAX_AXIS)
        return -1;
    const uint64_t pixels = (uint64_t)png->width * png->height;
    return pixels <= pixel_limit && pixels <= ORGAN_PNG_PIXELS ? 0 : -1;
}

/* Room for the filtered rows, the size of which the header's limits bound, and a fresh stream into it. */
static int start_stream(struct organ_png *png)
{
    const size_t need = (size_t)png->height * ((size_t)png->width + 1);
    if (need > png->room) {
        free(png->pixels);
        png->room = 0;
        png->pixels = malloc(need);
        if (png->pixels == NULL)
            return -1;
        png->room = need;
    }
    if (png->streaming) {
        if (inflateReset(&png->stream) != Z_OK)
            return -1;
    } else {
        if (inflateInit(&png->stream) != Z_OK)
            return -1;
        png->streaming = 1;
    }
    png->stream.next_out = png->pixels;
    png->stream.avail_out = (uInt)need;
    return 0;
}

/* Some more of the stream; every byte must be of use. Z_FINISH spares zlib a window where one chunk is all. */
static int inflate_chunk(z_stream *stream, const struct chunk *chunk, int *status)
{
    if (*status == Z_STREAM_END || chunk->length == 0)
        return -1;
    stream->next_in = chunk->data;
    stream->avail_in = (uInt)chunk->length;
    *status = inflate(stream, Z_FINISH);
    if (*status != Z_STREAM_END && *status != Z_OK && *status != Z_BUF_ERROR)
        return -1;
    return stream->avail_in == 0 ? 0 : -1;
}

static uint8_t paeth(int left, int above, int corner)
{
    const int a = abs(above - corner), b = abs(left - corner), c = abs(left + above - 2 * corner);
    return (uint8_t)(a <= b && a <= c ? left : b <= c ? above : corner);
}

/* Undoes one row's filter (9.2). `row` lies at or before `in` in the same memory: each pixel is read before its
 * place is written. `above` is NULL for the first row. */
static int unfilter_row(int filter, const uint8_t *in, uint8_t *row, const uint8_t *above, size_t width)
{
    uint8_t left = 0, corner = 0;
    if (above == NULL && filter == 2)
        filter = 0;
    else if (above == NULL && filter == 4)
        filter = 1;
    switch (filter) {
    case 0:
        memmove(row, in, width);
        return 0;
    case 1:
        for (size_t x = 0; x < width; x++)
            row[x] = left = (uint8_t)(in[x] + left);
        return 0;
    case 2:
        for (size_t x = 0; x < width; x++)
            row[x] = (uint8_t)(in[x] + above[x]);
        return 0;
    case 3:
        for (size_t x = 0; x < width; x++)
            row[x] = left = (uint8_t)(in[x] + (left + (above != NULL ? above[x] : 0)) / 2);
        return 0;
    case 4:
        for (size_t x = 0; x < width; x++) {
            row[x] = left = (uint8_t)(in[x] + paeth(left, above[x], corner));
            corner = above[x];
        }
        return 0;
    default:
        return -1;
    }
}

int organ_png_decode(struct organ_png *png, const uint8_t *data, size_t size, uint64_t pixel_limit)
{
    static const uint8_t HEAD[SIGNATURE] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    struct chunk chunk;
    size_t at = SIGNATURE;
    int begun = 0, status = Z_OK;

    if (size < SIGNATURE || size > ORGAN_PNG_BYTES || memcmp(data, HEAD, SIGNATURE) != 0)
        return -1;
    if (next_chunk(data, size, &at, &chunk) != 0 || read_header(png, &chunk, pixel_limit) != 0)
        return -1;
    for (;;) {
        if (next_chunk(data, size, &at, &chunk) != 0)
            return -1;
        if (chunk.name == NAME('I', 'D', 'A', 'T')) {
            if (!begun && start_stream(png) != 0)
                return -1;
            begun = 1;
            if (inflate_chunk(&png->stream, &chunk, &status) != 0)
                return -1;
        } else if (begun) {
            break;
        } else if (!is_plain(&chunk)) {
            return -1;
        }
    }
    if (chunk.name != NAME('I', 'E', 'N', 'D') || chunk.length != 0 || at != size)
        return -1;
    if (status != Z_STREAM_END || png->stream.avail_out != 0)
        return -1;

    const size_t width = png->width;
    const uint8_t *in = png->pixels;
    uint8_t *row = png->pixels;
    for (uint32_t y = 0; y < png->height; y++, in += width + 1, row += width)
        if (unfilter_row(in[0], in + 1, row, y != 0 ? row - width : NULL, width) != 0)
            return -1;
    return 0;
}

void organ_png_end(struct organ_png *png)
{
    if (png->streaming)
        inflateEnd(&png->stream);
    free(png->pixels);
    memset(png, 0, sizeof *png);
}
