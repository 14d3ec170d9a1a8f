/* qcow2-img bitmap, and the bitmaps of convert.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

enum {
    OPTION_ADD = OPTION_OWN,
    OPTION_REMOVE,
    OPTION_CLEAR,
    OPTION_ENABLE,
    OPTION_DISABLE,
    OPTION_MERGE,
};

struct action {
    int code;
    const char *source; /* of a merge */
};

struct bitmap_job {
    struct image_args args;
    const char *source_name, *source_format;
    uint64_t granularity;
    struct action *actions; /* room for as many as there are words */
    size_t count;
    bool adds, merges;
};

static const char *action_name(int code)
{
    static const char *const names[] = {"add", "remove", "clear", "enable", "disable", "merge"};

    return names[code - OPTION_ADD];
}

static void add_action(struct bitmap_job *job, int code)
{
    job->actions[job->count++] = (struct action){code, optarg};
    job->adds |= code == OPTION_ADD;
    job->merges |= code == OPTION_MERGE;
}

static int parse_granularity(struct bitmap_job *job, const char *text)
{
    int64_t bytes;

    if (!parse_bytes(text, "granularity", &bytes)) {
        return EXIT_FAILURE;
    }
    job->granularity = (uint64_t)bytes;
    return EXIT_SUCCESS;
}

static int check_options(const struct bitmap_job *job)
{
    if (job->count == 0) {
        error_report("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge");
    } else if (job->granularity && !job->adds) {
        error_report("granularity only supported with --add");
    } else if (job->source_format && !job->source_name) {
        error_report("-F only supported with -b");
    } else if (job->source_name && !job->merges) {
        error_report("Merge bitmap source file only supported with --merge");
    } else {
        return EXIT_SUCCESS;
    }
    return EXIT_FAILURE;
}

/* Looked at before the image is. */
static bool granularity_fits(uint64_t bytes)
{
    return bytes == 0 || (bytes >= 512 && bytes <= UINT64_C(1) << 31 && (bytes & (bytes - 1)) == 0);
}

/* What the library says, without what it adds in brackets; its hint on a line of its own. */
static void report_failure(const struct bitmap_job *job, qcow2_image *image, const struct action *action,
                           const char *bitmap)
{
    qcow2_info info = {.struct_size = sizeof(info)};

    if (action->code == OPTION_ADD && *bitmap && !granularity_fits(job->granularity)) {
        error_report("Operation add on bitmap %s failed: Granularity must be power of 2 and at least 512", bitmap);
        return;
    }

    /* Version 2 and raw disks have no place for bitmaps: there is none, and none can stay. */
    if (qcow2_get_info(image, &info) == 0 && info.version < 3) {
        if (info.version == 0 && action->code == OPTION_ADD) {
            error_report("Operation add on bitmap %s failed: Can't store persistent bitmaps to #block144: "
                         "Operation not supported",
                         bitmap);
        } else if (action->code == OPTION_ADD) {
            error_report("Operation add on bitmap %s failed: Can't make bitmap '%s' persistent in '#block144': "
                         "Cannot store dirty bitmaps in qcow2 v2 files",
                         bitmap, bitmap);
        } else {
            error_report("Operation %s on bitmap %s failed: Dirty bitmap '%s' not found", action_name(action->code),
                         bitmap, bitmap);
        }
        return;
    }
    error_report("Operation %s on bitmap %s failed: %s", action_name(action->code), bitmap, failure_text());
}

static int act(const struct bitmap_job *job, qcow2_image *image, qcow2_image *source, const char *bitmap,
               const struct action *action)
{
    /* The stock tool adds a bitmap that is enabled, and disables it then. */
    switch (action->code) {
    case OPTION_ADD: return qcow2_bitmap_add(image, bitmap, job->granularity, 0);
    case OPTION_REMOVE: return qcow2_bitmap_remove(image, bitmap);
    case OPTION_CLEAR: return qcow2_bitmap_clear(image, bitmap);
    case OPTION_ENABLE: return qcow2_bitmap_enable(image, bitmap);
    case OPTION_DISABLE: return qcow2_bitmap_disable(image, bitmap);
    default: return qcow2_bitmap_merge(image, bitmap, source, action->source);
    }
}

static int act_on(const struct bitmap_job *job, qcow2_image *image, qcow2_image *source, const char *bitmap)
{
    for (size_t i = 0; i < job->count; i++) {
        if (act(job, image, source, bitmap, &job->actions[i]) < 0) {
            report_failure(job, image, &job->actions[i], bitmap);
            return EXIT_FAILURE;
        }
    }
    return EXIT_SUCCESS;
}

static int change_bitmap(const struct bitmap_job *job, const char *name, const char *bitmap)
{
    struct image_spec spec = {0}, source_spec = {0};
    struct image_args source_args = {.format = job->source_format, .quiet = job->args.quiet};
    qcow2_image *image = NULL, *source = NULL;
    int result = EXIT_FAILURE;

    /* Nothing of the disk is read. */
    if (open_image(&job->args, name, QCOW2_OPEN_NO_BACKING | QCOW2_OPEN_ALLOW_RECORDED, &spec, &image) &&
        (!job->source_name ||
         open_image(&source_args, job->source_name,
                    QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_NO_BACKING | QCOW2_OPEN_ALLOW_RECORDED, &source_spec, &source))) {
        result = act_on(job, image, source, bitmap);
    }
    qcow2_close(source);
    if (close_image(image) != EXIT_SUCCESS) {
        result = EXIT_FAILURE;
    }
    image_spec_free(&spec);
    image_spec_free(&source_spec);
    return result;
}

static int run_bitmap(const struct img_command *command, int argc, char **argv)
{
    struct bitmap_job job = {0};
    int code, result = EXIT_SUCCESS;

    job.actions = memory_or_exit(calloc((size_t)argc, sizeof(*job.actions)));
    while (result == EXIT_SUCCESS && (code = next_option(command, argc, argv)) != -1) {
        switch (code) {
        case 'b': job.source_name = optarg; break;
        case 'F': job.source_format = optarg; break;
        case 'g': result = parse_granularity(&job, optarg); break;
        default:
            if (!take_image_option(&job.args, command, code)) {
                add_action(&job, code);
            }
        }
    }
    if (result == EXIT_SUCCESS) {
        result = check_options(&job);
    }
    if (result == EXIT_SUCCESS && argc - optind != 2) {
        error_report("Expecting filename and bitmap name");
        result = EXIT_FAILURE;
    }
    if (result == EXIT_SUCCESS) {
        result = change_bitmap(&job, argv[optind], argv[optind + 1]);
    }
    free(job.actions);
    return result;
}

int check_bitmap_target(qcow2_image *target)
{
    qcow2_info info;

    if (!image_info(target, &info)) {
        return EXIT_FAILURE;
    }
    if (info.version < 3) {
        error_report("Format driver '%s' does not support bitmaps", info.version ? "qcow2" : "raw");
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

/* `result` becomes a failure where the list cannot be read, and not where it ends. */
static bool next_listed(qcow2_image *image, size_t index, qcow2_bitmap_info *bitmap, int *result)
{
    int listed;

    memset(bitmap, 0, sizeof(*bitmap));
    bitmap->struct_size = sizeof(*bitmap);
    listed = qcow2_bitmap_list(image, index, bitmap);
    if (listed < 0 && listed != -ENOENT) {
        error_report("Failed to list bitmaps: %s", failure_text());
        *result = EXIT_FAILURE;
    }
    return listed == 0;
}

int check_bitmaps(qcow2_image *source, bool skip_broken)
{
    qcow2_info info;
    qcow2_bitmap_info bitmap;
    int result = EXIT_SUCCESS;

    if (!image_info(source, &info)) {
        return EXIT_FAILURE;
    }
    if (info.version < 3) {
        error_report("Source lacks bitmap support");
        return EXIT_FAILURE;
    }
    if (!skip_broken) {
        char *broken = NULL;

        for (size_t index = 0; next_listed(source, index, &bitmap, &result); index++) {
            if (bitmap.flags & QCOW2_BITMAP_IN_USE) {
                free(broken);
                broken = text_format("%s", bitmap.name);
            }
        }
        /* The last one is the one that the stock tool names. */
        if (result == EXIT_SUCCESS && broken != NULL) {
            error_report("Cannot copy inconsistent bitmap '%s'\n"
                         "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
                         broken);
            result = EXIT_FAILURE;
        }
        free(broken);
    }
    return result;
}

int copy_bitmaps(qcow2_image *source, qcow2_image *target)
{
    qcow2_bitmap_info bitmap;
    int result = EXIT_SUCCESS;
    size_t count = 0;

    for (; result == EXIT_SUCCESS && next_listed(source, count, &bitmap, &result); count++) {
        char *name = text_format("%s", bitmap.name);

        if (!(bitmap.flags & QCOW2_BITMAP_IN_USE) && qcow2_bitmap_copy(target, source, name) < 0) {
            error_report("Failed to create bitmap %s: %s", name, failure_text());
            result = EXIT_FAILURE;
        }
        free(name);
    }
    /* From the last one on, as the stock tool has them. */
    while (result == EXIT_SUCCESS && count-- > 0 && next_listed(source, count, &bitmap, &result)) {
        if (bitmap.flags & QCOW2_BITMAP_IN_USE) {
            warn_report("Skipping inconsistent bitmap '%s'", bitmap.name);
        }
    }
    return result;
}

const struct img_command img_bitmap = {
    .name = "bitmap",
    .summary = "Change a dirty bitmap of an image",
    .operands = "FILENAME BITMAP",
    .options =
        (const struct img_option[]){IMG_HELP,
                                    IMG_FORMAT,
                                    IMG_IMAGE_OPTS,
                                    IMG_OBJECT,
                                    {OPTION_ADD, "add", NULL, "create BITMAP, enabled"},
                                    {OPTION_REMOVE, "remove", NULL, "delete BITMAP"},
                                    {OPTION_CLEAR, "clear", NULL, "clear all bits of BITMAP"},
                                    {OPTION_ENABLE, "enable", NULL, "have BITMAP track changes"},
                                    {OPTION_DISABLE, "disable", NULL, "have BITMAP track no more changes"},
                                    {OPTION_MERGE, "merge", "SOURCE", "set in BITMAP what is set in the bitmap SOURCE"},
                                    {'g', "granularity", "BYTES", "with --add: guest bytes that one bit stands for"},
                                    {'b', "source-file", "FILE", "with --merge: the image that has SOURCE"},
                                    {'F', "source-format", "FMT", "format of the image given with -b"},
                                    IMG_END},
    .run = run_bitmap,
};
