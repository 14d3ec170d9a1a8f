/* map --picture: the disk, and the file that holds it, as a picture in SVG.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "img.h"

#define COLUMNS 128
#define MAX_ROWS 32
#define CELL 8 /* units of the picture */
#define MARGIN 12
#define TEXT_HEIGHT 18

enum kind { KIND_NOTHING, KIND_ZERO, KIND_BELOW, KIND_COMPRESSED, KIND_DATA, KIND_OTHER, KINDS };

static const struct {
    const char *name, *colour;
} kinds[KINDS] = {
    [KIND_NOTHING] = {"nothing", "#f2f2f2"},     [KIND_ZERO] = {"zeroes", "#c9c9c9"},
    [KIND_BELOW] = {"backing files", "#7fb2e5"}, [KIND_COMPRESSED] = {"compressed", "#a6d189"},
    [KIND_DATA] = {"data", "#5aa469"},           [KIND_OTHER] = {"tables, or free", "#e8b66b"},
};

/* A row of bytes cut into cells, with how much of each kind is in each. */
struct strip {
    const char *title;
    uint64_t length, cell_bytes;
    size_t cells;
    uint64_t (*bytes)[KINDS];
    uint64_t total[KINDS];
};

static void strip_init(struct strip *strip, const char *title, uint64_t length)
{
    strip->title = title;
    strip->length = length;
    strip->cell_bytes = length / (COLUMNS * MAX_ROWS) + 1;
    /* Small images have cells of a sector at least. */
    strip->cell_bytes = (strip->cell_bytes + 511) / 512 * 512;
    strip->cells = (size_t)((length + strip->cell_bytes - 1) / strip->cell_bytes);
    strip->bytes = memory_or_exit(calloc(strip->cells + 1, sizeof(*strip->bytes)));
}

static void strip_add(struct strip *strip, uint64_t at, uint64_t length, enum kind kind)
{
    if (at >= strip->length) {
        return;
    }
    if (length > strip->length - at) {
        length = strip->length - at;
    }
    strip->total[kind] += length;
    while (length > 0) {
        uint64_t left = strip->cell_bytes - at % strip->cell_bytes, part = left < length ? left : length;

        strip->bytes[at / strip->cell_bytes][kind] += part;
        at += part;
        length -= part;
    }
}

/* The kind that a cell shows: a little data among nothing is to be seen. */
static enum kind strip_kind(const struct strip *strip, size_t cell)
{
    static const enum kind first[] = {KIND_DATA, KIND_COMPRESSED, KIND_BELOW, KIND_OTHER, KIND_ZERO};

    for (size_t i = 0; i < sizeof(first) / sizeof(first[0]); i++) {
        if (strip->bytes[cell][first[i]]) {
            return first[i];
        }
    }
    return KIND_NOTHING;
}

static enum kind kind_of(const qcow2_extent *extent)
{
    if (!(extent->flags & QCOW2_EXTENT_ALLOCATED)) {
        return KIND_NOTHING;
    }
    if (extent->flags & QCOW2_EXTENT_ZERO) {
        return KIND_ZERO;
    }
    if (extent->depth > 0) {
        return KIND_BELOW;
    }
    return extent->flags & QCOW2_EXTENT_COMPRESSED ? KIND_COMPRESSED : KIND_DATA;
}

static int look(qcow2_image *image, struct strip *disk, struct strip *file)
{
    for (uint64_t at = 0; at < disk->length;) {
        qcow2_extent extent = {.struct_size = sizeof(extent)};

        if (qcow2_block_status(image, at, disk->length - at, 0, &extent) < 0 || extent.length == 0) {
            error_report("Failed to read image metadata: %s", failure_text());
            return EXIT_FAILURE;
        }
        strip_add(disk, at, extent.length, kind_of(&extent));
        if (extent.depth == 0 && (extent.flags & QCOW2_EXTENT_HOST_OFFSET) &&
            !(extent.flags & QCOW2_EXTENT_IN_DATA_FILE)) {
            strip_add(file, extent.host_offset, extent.length, KIND_DATA);
        }
        at += extent.length;
    }
    /* What the tables do not lead to. */
    for (size_t cell = 0; cell < file->cells; cell++) {
        uint64_t start = cell * file->cell_bytes, end = start + file->cell_bytes;
        uint64_t bytes = (end < file->length ? end : file->length) - start;

        if (file->bytes[cell][KIND_DATA] < bytes) {
            strip_add(file, start, bytes - file->bytes[cell][KIND_DATA], KIND_OTHER);
        }
    }
    return EXIT_SUCCESS;
}

static size_t rows_of(const struct strip *strip)
{
    return (strip->cells + COLUMNS - 1) / COLUMNS;
}

/* Returns the height. */
static size_t draw_strip(const struct strip *strip, size_t top)
{
    char length[SIZE_TEXT_BYTES], cell_text[SIZE_TEXT_BYTES];

    printf("<text x=\"%d\" y=\"%zu\">%s: %s, %s for each square</text>\n", MARGIN, top + TEXT_HEIGHT - 5, strip->title,
           size_text_img(strip->length, length), size_text_img(strip->cell_bytes, cell_text));
    top += TEXT_HEIGHT;
    for (size_t cell = 0; cell < strip->cells;) {
        enum kind kind = strip_kind(strip, cell);
        size_t row = cell / COLUMNS, first = cell, end = (row + 1) * COLUMNS;

        while (cell < strip->cells && cell < end && strip_kind(strip, cell) == kind) {
            cell++;
        }
        printf(
            "<rect x=\"%zu\" y=\"%zu\" width=\"%zu\" height=\"%d\" fill=\"%s\"><title>%llu to %llu: %s</title></rect>\n",
            MARGIN + first % COLUMNS * CELL, top + row * CELL, (cell - first) * CELL, CELL, kinds[kind].colour,
            (unsigned long long)(first * strip->cell_bytes),
            (unsigned long long)(cell * strip->cell_bytes < strip->length ? cell * strip->cell_bytes : strip->length),
            kinds[kind].name);
    }
    return TEXT_HEIGHT + rows_of(strip) * CELL + MARGIN;
}

static void draw_legend(const struct strip *disk, const struct strip *file, size_t top)
{
    size_t left = MARGIN;

    for (int kind = KINDS - 1; kind >= 0; kind--) {
        uint64_t bytes = kind == KIND_OTHER ? file->total[kind] : disk->total[kind];
        char size[SIZE_TEXT_BYTES];

        printf(
            "<rect x=\"%zu\" y=\"%zu\" width=\"10\" height=\"10\" fill=\"%s\"/><text x=\"%zu\" y=\"%zu\">%s: %s</text>\n",
            left, top + 3, kinds[kind].colour, left + 14, top + 12, kinds[kind].name, size_text_img(bytes, size));
        left += COLUMNS * CELL / KINDS;
    }
}

static void draw(const struct strip *disk, const struct strip *file, bool with_file)
{
    size_t top = MARGIN, height = MARGIN + TEXT_HEIGHT + MARGIN;

    height += TEXT_HEIGHT + rows_of(disk) * CELL + MARGIN;
    height += with_file ? TEXT_HEIGHT + rows_of(file) * CELL + MARGIN : 0;
    printf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%zu\" font-family=\"sans-serif\""
           " font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
           COLUMNS * CELL + 2 * MARGIN, height);
    top += draw_strip(disk, top);
    if (with_file) {
        top += draw_strip(file, top);
    }
    draw_legend(disk, file, top);
    puts("</svg>");
}

int print_picture(qcow2_image *image)
{
    struct strip disk = {0}, file = {0};
    qcow2_info info;
    int result;

    if (!image_info(image, &info)) {
        return EXIT_FAILURE;
    }
    strip_init(&disk, "The disk", (uint64_t)qcow2_length(image));
    strip_init(&file, "The file", info.version ? info.file_length : 0);
    result = look(image, &disk, &file);
    if (result == EXIT_SUCCESS) {
        draw(&disk, &file, info.version != 0);
    }
    free(disk.bytes);
    free(file.bytes);
    return result;
}
