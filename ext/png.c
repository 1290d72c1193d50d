/* The PNG decoder. Section numbers are those of the PNG specification, third edition. zlib does the inflating. */
#include "png.h"

#include <stdlib.h>
#include <string.h>

#include "pack.h"

#define NAME(a, b, c, d) ((uint32_t)(a) << 24 | (uint32_t)(b) << 16 | (uint32_t)(c) << 8 | (uint32_t)(d))
#define SIGNATURE 8
/* bytes of a chunk's length, name and checksum */
#define CHUNK_OVERHEAD 12

struct chunk {
    uint32_t name;
    size_t length;
    const uint8_t *data;
};

/* Chunks that change neither the pixels of 8-bit gray nor anything Pillow reports about them, with their only valid
 * length. Chunks that may rotate, mask or animate the image are excluded: tRNS, eXIf, text (XMP, raw EXIF
 * profiles), acTL, fcTL. */
static const struct {
    uint32_t name;
    size_t length;
} PLAIN[] = {
    {NAME('g', 'A', 'M', 'A'), 4}, {NAME('c', 'H', 'R', 'M'), 32}, {NAME('s', 'R', 'G', 'B'), 1},
    {NAME('p', 'H', 'Y', 's'), 9}, {NAME('t', 'I', 'M', 'E'), 7},  {NAME('s', 'B', 'I', 'T'), 1},
    {NAME('b', 'K', 'G', 'D'), 2},
};

static uint32_t big_endian_32(const uint8_t *bytes)
{
    return NAME(bytes[0], bytes[1], bytes[2], bytes[3]);
}

/* Reads the chunk at *offset, verifies its checksum and moves *offset past it. */
static int next_chunk(const uint8_t *data, size_t size, size_t *offset, struct chunk *chunk)
{
    /* *offset never exceeds size */
    const size_t left = size - *offset;
    if (left < CHUNK_OVERHEAD)
        return -1;
    chunk->length = big_endian_32(data + *offset);
    if (chunk->length > left - CHUNK_OVERHEAD)
        return -1;
    chunk->name = big_endian_32(data + *offset + 4);
    chunk->data = data + *offset + 8;
    *offset += CHUNK_OVERHEAD + chunk->length;
    /* the length is at most ORGAN_PNG_BYTES, so it fits zlib's unsigned int */
    const uint32_t checksum = big_endian_32(chunk->data + chunk->length);
    return checksum == crc32(0, chunk->data - 4, (uInt)chunk->length + 4) ? 0 : -1;
}

static int is_plain(const struct chunk *chunk)
{
    for (size_t i = 0; i < sizeof PLAIN / sizeof *PLAIN; i++)
        if (PLAIN[i].name == chunk->name)
            return PLAIN[i].length == chunk->length;
    return 0;
}

/* Reads IHDR (11.2.1). */
static int read_header(struct organ_png *png, const struct chunk *chunk, uint64_t pixel_limit)
{
    /* bit depth, color type, compression, filter, interlace */
    static const uint8_t GRAY[5] = {8, 0, 0, 0, 0};
    if (chunk->name != NAME('I', 'H', 'D', 'R') || chunk->length != 13 || memcmp(chunk->data + 8, GRAY, 5) != 0)
        return -1;
    png->width = big_endian_32(chunk->data);
    png->height = big_endian_32(chunk->data + 4);
    if (png->width < 1 || png->width > ORGAN_MAX_AXIS || png->height < 1 || png->height > ORGAN_MAX_AXIS)
        return -1;
    const uint64_t pixels = (uint64_t)png->width * png->height;
    return pixels <= pixel_limit && pixels <= ORGAN_PNG_PIXELS ? 0 : -1;
}

/* Allocates memory for the filtered rows, whose size the limits on the header bound, and resets the stream. */
static int start_stream(struct organ_png *png)
{
    const size_t need = (size_t)png->height * ((size_t)png->width + 1);
    if (need > png->capacity) {
        free(png->pixels);
        png->capacity = 0;
        png->pixels = malloc(need);
        if (png->pixels == NULL)
            return -1;
        png->capacity = need;
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

/* Inflates one more chunk, all of whose bytes must be used. With Z_FINISH zlib needs no window if there is only one
 * chunk. */
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

/* Reverses the filter of one row (9.2). `row` starts at or before `in` in the same memory: each pixel is read before
 * its place is written. `above` is NULL for the first row. */
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
    size_t offset = SIGNATURE;
    int started = 0, status = Z_OK;

    if (size < SIGNATURE || size > ORGAN_PNG_BYTES || memcmp(data, HEAD, SIGNATURE) != 0)
        return -1;
    if (next_chunk(data, size, &offset, &chunk) != 0 || read_header(png, &chunk, pixel_limit) != 0)
        return -1;
    for (;;) {
        if (next_chunk(data, size, &offset, &chunk) != 0)
            return -1;
        if (chunk.name == NAME('I', 'D', 'A', 'T')) {
            if (!started && start_stream(png) != 0)
                return -1;
            started = 1;
            if (inflate_chunk(&png->stream, &chunk, &status) != 0)
                return -1;
        } else if (started) {
            break;
        } else if (!is_plain(&chunk)) {
            return -1;
        }
    }
    if (chunk.name != NAME('I', 'E', 'N', 'D') || chunk.length != 0 || offset != size)
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
