/* qcow2-img compare.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

/* Exit codes beside 0 (the same) and 1 (different, or a wrong command line). */
enum { COMPARE_SAME, COMPARE_DIFFERENT, COMPARE_OPEN_FAILED, COMPARE_STATUS_FAILED, COMPARE_READ_FAILED };

#define BUFFER_BYTES (UINT64_C(2) << 20)
#define SECTOR_BYTES 512

struct side {
    const char *name;
    struct image_spec spec;
    qcow2_image *image;
    uint64_t size;
    qcow2_extent extent; /* at the offset looked at */
    unsigned char *buffer;
};

struct comparison {
    struct image_args args;
    const char *formats[2];
    bool strict;
    struct side sides[2];
    double progress;
};

static void say(const struct comparison *job, const char *text)
{
    if (!job->args.quiet)
        puts(text);
}

static int mismatch(const struct comparison *job, uint64_t offset)
{
    if (!job->args.quiet)
        printf("Content mismatch at offset %llu!\n", (unsigned long long)offset);
    return COMPARE_DIFFERENT;
}

static void show_progress(struct comparison *job, uint64_t done)
{
    uint64_t left = job->sides[0].size, right = job->sides[1].size;

    if (job->args.progress && !job->args.quiet)
        print_progress(&job->progress, done, left > right ? left : right);
}

static int find_extent(struct side *side, uint64_t offset)
{
    side->extent = (qcow2_extent){ .struct_size = sizeof(side->extent) };
    if (qcow2_block_status(side->image, offset, side->size - offset, 0, &side->extent) == 0 && side->extent.length)
        return COMPARE_SAME;
    error_report("Sector allocation test failed for %s", side->name);
    return COMPARE_STATUS_FAILED;
}

static bool reads_zero(const struct side *side)
{
    return (side->extent.flags & QCOW2_EXTENT_ZERO) || !(side->extent.flags & QCOW2_EXTENT_DATA);
}

static int read_side(struct side *side, uint64_t offset, uint64_t bytes)
{
    ssize_t count;

    if (!side->buffer)
        side->buffer = memory_or_exit(malloc(BUFFER_BYTES));
    count = qcow2_pread(side->image, side->buffer, bytes, offset);
    if (count >= 0)
        return COMPARE_SAME;
    error_report("Error while reading offset %llu of %s: %s", (unsigned long long)offset, side->name,
                 strerror((int)-count));
    return COMPARE_READ_FAILED;
}

/* The first sector (from `offset`, where the buffers start) that differs; `right` NULL: that is not zero. */
static uint64_t first_difference(const unsigned char *left, const unsigned char *right, uint64_t bytes)
{
    static const unsigned char zeroes[SECTOR_BYTES];
    uint64_t at = 0;

    while (at < bytes) {
        size_t length = bytes - at < SECTOR_BYTES ? (size_t)(bytes - at) : SECTOR_BYTES;

        if (memcmp(left + at, right ? right + at : zeroes, length) != 0)
            break;
        at += length;
    }
    return at;
}

/* Compares a range in which both sides are of one kind each. */
static int compare_contents(struct comparison *job, uint64_t offset, uint64_t bytes)
{
    struct side *left = &job->sides[0], *right = &job->sides[1];
    bool left_zero = reads_zero(left), right_zero = reads_zero(right);
    uint64_t same;
    int result = COMPARE_SAME;

    if (left_zero && right_zero)
        return COMPARE_SAME;
    if (!left_zero)
        result = read_side(left, offset, bytes);
    if (result == COMPARE_SAME && !right_zero)
        result = read_side(right, offset, bytes);
    if (result != COMPARE_SAME)
        return result;
    same = first_difference(left_zero ? right->buffer : left->buffer, left_zero || right_zero ? NULL : right->buffer,
                            bytes);
    return same < bytes ? mismatch(job, offset + same) : COMPARE_SAME;
}

/* In strict mode an extent that reaches the end of the disk is not the same as one that does not: as the stock tool. */
static uint32_t strict_kind(const struct side *side, uint64_t offset)
{
    const uint32_t end = UINT32_C(1) << 31;

    return (side->extent.flags & ~(uint32_t)QCOW2_EXTENT_HOST_OFFSET) |
           (offset + side->extent.length >= side->size ? end : 0);
}

/* The longest range from `offset` on that can be looked at in one go. */
static uint64_t step_length(const struct comparison *job, uint64_t limit)
{
    bool zero = true;

    for (int i = 0; i < 2; i++) {
        const struct side *side = &job->sides[i];

        if (!side->image || !side->extent.length)
            continue;
        if (side->extent.length < limit)
            limit = side->extent.length;
        zero = zero && reads_zero(side);
    }
    return zero || limit < BUFFER_BYTES ? limit : BUFFER_BYTES;
}

static int compare_common(struct comparison *job, uint64_t end)
{
    struct side *sides = job->sides;
    int result;

    for (uint64_t at = 0, bytes; at < end; at += bytes) {
        result = find_extent(&sides[0], at);
        if (result == COMPARE_SAME)
            result = find_extent(&sides[1], at);
        if (result != COMPARE_SAME)
            return result;
        if (job->strict && strict_kind(&sides[0], at) != strict_kind(&sides[1], at)) {
            if (!job->args.quiet)
                printf("Strict mode: Offset %llu block status mismatch!\n", (unsigned long long)at);
            return COMPARE_DIFFERENT;
        }
        bytes = step_length(job, end - at);
        result = compare_contents(job, at, bytes);
        if (result != COMPARE_SAME)
            return result;
        show_progress(job, at + bytes);
    }
    return COMPARE_SAME;
}

/* What the longer image has more must be zero. */
static int compare_rest(struct comparison *job, uint64_t start)
{
    const int longer = job->sides[1].size > job->sides[0].size;
    struct side *side = &job->sides[longer], *other = &job->sides[!longer];
    int result;

    other->extent = (qcow2_extent){ .flags = QCOW2_EXTENT_ZERO };
    for (uint64_t at = start, bytes; at < side->size; at += bytes) {
        result = find_extent(side, at);
        if (result != COMPARE_SAME)
            return result;
        bytes = step_length(job, side->size - at);
        result = compare_contents(job, at, bytes);
        if (result != COMPARE_SAME)
            return result;
        show_progress(job, at + bytes);
    }
    return COMPARE_SAME;
}

static int compare_images(struct comparison *job)
{
    uint64_t left = job->sides[0].size, right = job->sides[1].size, common = left < right ? left : right;
    int result;

    show_progress(job, 0);
    if (job->strict && left != right) {
        say(job, "Strict mode: Image size mismatch!");
        return COMPARE_DIFFERENT;
    }
    result = compare_common(job, common);
    if (result == COMPARE_SAME && left != right) {
        say(job, "Warning: Image size mismatch!");
        result = compare_rest(job, common);
    }
    if (result == COMPARE_SAME)
        say(job, "Images are identical.");
    return result;
}

static bool open_side(struct comparison *job, int number, const char *cache)
{
    struct side *side = &job->sides[number];
    int64_t size;

    job->args.format = job->formats[number];
    if (set_cache(&side->spec, cache, "Invalid source cache option") != EXIT_SUCCESS ||
        !open_image(&job->args, side->name, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, &side->spec, &side->image))
        return false;
    size = qcow2_length(side->image);
    if (size < 0) {
        error_report("Can't get size of %s: %s", side->name, strerror((int)-size));
        return false;
    }
    /* Disks are made of whole sectors; the rest of the last one reads as zeroes. */
    side->size = (uint64_t)size;
    return true;
}

static int run_compare(const struct img_command *command, int argc, char **argv)
{
    struct comparison job = { .progress = -1.0 };
    const char *cache = NULL;
    int code, result = COMPARE_OPEN_FAILED;

    while ((code = next_option(command, argc, argv)) != -1) {
        switch (code) {
        case 'F': job.formats[1] = optarg; break;
        case 'T': cache = optarg; break;
        case 's': job.strict = true; break;
        default: take_image_option(&job.args, command, code);
        }
    }
    job.formats[0] = job.args.format;
    if (optind != argc - 2)
        return usage_error(command, "Expecting two image file names");
    if (job.args.image_opts && (job.formats[0] || job.formats[1])) {
        error_report("--image-opts and --format are mutually exclusive");
        return COMPARE_OPEN_FAILED;
    }
    job.sides[0].name = argv[optind];
    job.sides[1].name = argv[optind + 1];
    if (open_side(&job, 0, cache) && open_side(&job, 1, cache)) {
        result = compare_images(&job);
        if (job.args.progress && !job.args.quiet)
            putchar('\n');
    }
    for (int i = 0; i < 2; i++) {
        qcow2_close(job.sides[i].image);
        image_spec_free(&job.sides[i].spec);
        free(job.sides[i].buffer);
    }
    return result;
}

const struct img_command img_compare = {
    .name = "compare",
    .summary = "Compare the disks in two images",
    .operands = "FILENAME1 FILENAME2",
    .options = (const struct img_option[]){
        IMG_HELP, IMG_QUIET, IMG_PROGRESS, IMG_IMAGE_OPTS, IMG_SHARE, IMG_OBJECT,
        { 'f', "a-format", "FMT", "format of FILENAME1, qcow2 or raw (default: look)" },
        { 'F', "b-format", "FMT", "format of FILENAME2, qcow2 or raw (default: look)" },
        { 'T', "cache", "MODE", "cache mode of both images" },
        { 's', "strict", NULL, "sizes and what is allocated must be the same, too" },
        IMG_END },
    .run = run_compare,
};
