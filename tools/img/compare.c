/* qcow2-img compare.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

/* Exit codes beside 0 (the same) and 1 (different, or a wrong command line). */
enum { COMPARE_SAME, COMPARE_DIFFERENT, COMPARE_OPEN_FAILED, COMPARE_STATUS_FAILED, COMPARE_READ_FAILED };

struct side {
    const char *name;
    struct image_spec spec;
    qcow2_image *image;
    uint64_t size;
};

struct comparison {
    struct image_args args;
    const char *formats[2];
    bool strict;
    struct side sides[2];
};

static int report_failure(const struct comparison *job, const qcow2_compare_result *found, int error)
{
    const char *name = found->failed_disk ? job->sides[found->failed_disk - 1].name : "";

    if (found->verdict == QCOW2_COMPARE_STATUS) {
        error_report("Sector allocation test failed for %s", name);
        return COMPARE_STATUS_FAILED;
    }
    error_report("Error while reading offset %llu of %s: %s", (unsigned long long)found->offset, name,
                 strerror(-error));
    return COMPARE_READ_FAILED;
}

static int compare_images(struct comparison *job)
{
    uint64_t left = job->sides[0].size, right = job->sides[1].size, common = left < right ? left : right;
    qcow2_compare_result found = {.struct_size = sizeof(found)};
    int error;

    progress_print(0.0);
    error = qcow2_compare(job->sides[0].image, job->sides[1].image, job->strict ? QCOW2_COMPARE_STRICT : 0, &found,
                          progress_update, NULL);
    if (!job->args.quiet && !job->strict && left != right &&
        ((error == 0 && found.verdict == QCOW2_COMPARE_SAME) || found.offset >= common)) {
        puts("Warning: Image size mismatch!");
    }
    if (error < 0) {
        return report_failure(job, &found, error);
    }
    if (!job->args.quiet) {
        switch (found.verdict) {
        case QCOW2_COMPARE_SIZES: puts("Strict mode: Image size mismatch!"); break;
        case QCOW2_COMPARE_STATUS:
            printf("Strict mode: Offset %llu block status mismatch!\n", (unsigned long long)found.offset);
            break;
        case QCOW2_COMPARE_CONTENTS:
            printf("Content mismatch at offset %llu!\n", (unsigned long long)found.offset);
            break;
        default: puts("Images are identical.");
        }
    }
    return found.verdict == QCOW2_COMPARE_SAME ? COMPARE_SAME : COMPARE_DIFFERENT;
}

static bool open_side(struct comparison *job, int number, const char *cache)
{
    struct side *side = &job->sides[number];
    int64_t size;

    job->args.format = job->formats[number];
    if (set_cache(&side->spec, cache, "Invalid source cache option") != EXIT_SUCCESS ||
        !open_image(&job->args, side->name, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, &side->spec,
                    &side->image)) {
        return false;
    }
    size = qcow2_length(side->image);
    if (size < 0) {
        error_report("Can't get size of %s: %s", side->name, strerror((int)-size));
        return false;
    }
    side->size = (uint64_t)size;
    return true;
}

static int run_compare(const struct img_command *command, int argc, char **argv)
{
    struct comparison job = {0};
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
    if (optind != argc - 2) {
        return usage_error(command, "Expecting two image file names");
    }
    if (job.args.image_opts && (job.formats[0] || job.formats[1])) {
        error_report("--image-opts and --format are mutually exclusive");
        return COMPARE_OPEN_FAILED;
    }
    job.sides[0].name = argv[optind];
    job.sides[1].name = argv[optind + 1];
    progress_init(job.args.progress && !job.args.quiet);
    if (open_side(&job, 0, cache) && open_side(&job, 1, cache)) {
        result = compare_images(&job);
    }
    progress_end();
    for (int i = 0; i < 2; i++) {
        qcow2_close(job.sides[i].image);
        image_spec_free(&job.sides[i].spec);
    }
    return result;
}

const struct img_command img_compare = {
    .name = "compare",
    .summary = "Compare the disks in two images",
    .operands = "FILENAME1 FILENAME2",
    .options =
        (const struct img_option[]){IMG_HELP,
                                    IMG_QUIET,
                                    IMG_PROGRESS,
                                    IMG_IMAGE_OPTS,
                                    IMG_SHARE,
                                    IMG_OBJECT,
                                    {'f', "a-format", "FMT", "format of FILENAME1, qcow2, luks or raw (default: look)"},
                                    {'F', "b-format", "FMT", "format of FILENAME2, qcow2, luks or raw (default: look)"},
                                    {'T', "cache", "MODE", "cache mode of both images"},
                                    {'s', "strict", NULL, "sizes and what is allocated must be the same, too"},
                                    IMG_END},
    .run = run_compare,
};
