/* qcow2-img resize.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

enum { OPTION_PREALLOCATION = OPTION_OWN, OPTION_SHRINK };

struct resize_job {
    struct image_args args;
    const char *name, *size_text;
    int operands;
    int preallocation;
    bool shrink;
    int direction; /* -1, 0 (absolute), +1 */
    uint64_t bytes;
};

static int parse_preallocation(const char *mode, int *preallocation)
{
    static const char *const modes[] = {
        [QCOW2_PREALLOC_OFF] = "off",
        [QCOW2_PREALLOC_METADATA] = "metadata",
        [QCOW2_PREALLOC_FALLOC] = "falloc",
        [QCOW2_PREALLOC_FULL] = "full",
    };

    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (strcmp(mode, modes[i]) == 0) {
            *preallocation = (int)i;
            return EXIT_SUCCESS;
        }
    }
    error_report("Invalid preallocation mode '%s'", mode);
    return EXIT_FAILURE;
}

static void take_operand(struct resize_job *job, const char *text)
{
    if (job->operands++ == 0) {
        job->name = text;
    } else if (job->operands == 2) {
        job->size_text = text;
    }
}

static int parse_options(struct resize_job *job, const struct img_command *command, int argc, char **argv)
{
    int code;

    while ((code = next_option(command, argc, argv)) != -1) {
        switch (code) {
        case OPTION_OPERAND:
            take_operand(job, optarg);
            /* A size like -1M right after the name is no option. */
            if (job->operands == 1 && optind < argc && argv[optind][0] == '-' && argv[optind][1] >= '0' &&
                argv[optind][1] <= '9') {
                take_operand(job, argv[optind++]);
            }
            break;
        case OPTION_PREALLOCATION:
            if (parse_preallocation(optarg, &job->preallocation) != EXIT_SUCCESS) {
                return EXIT_FAILURE;
            }
            break;
        case OPTION_SHRINK: job->shrink = true; break;
        default: take_image_option(&job->args, command, code);
        }
    }
    while (optind < argc) {
        take_operand(job, argv[optind++]);
    }
    if (job->operands < 2) {
        return usage_error(command, "Expecting image file name and size");
    }
    if (job->operands > 2) {
        return usage_error(command, "Extra argument(s) in command line");
    }
    if (job->args.image_opts && job->args.format) {
        error_report("--image-opts and --format are mutually exclusive");
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

static int parse_new_size(struct resize_job *job)
{
    const char *text = job->size_text;
    int result;

    job->direction = *text == '+' ? 1 : *text == '-' ? -1 : 0;
    text += job->direction != 0;
    result = parse_size(text, &job->bytes);
    if (result == -ERANGE) {
        error_report("Value '%s' is out of range for parameter 'size'", text);
    } else if (result < 0) {
        error_report("Parameter 'size' expects a non-negative number below 2^64\n"
                     "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                     "and exabytes, respectively.");
    }
    return result == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int resize_image(const struct resize_job *job, qcow2_image *image)
{
    int64_t current = qcow2_length(image), wanted;
    /* Unsigned, as sums of what was typed may wrap; the result is judged below. */
    uint64_t total = job->direction < 0   ? (uint64_t)current - job->bytes
                     : job->direction > 0 ? (uint64_t)current + job->bytes
                                          : job->bytes;

    wanted = (int64_t)total;
    if (current < 0) {
        error_report("Could not get the image size: %s", failure_text());
        return EXIT_FAILURE;
    }
    if (wanted <= 0) {
        error_report("New image size must be positive");
        return EXIT_FAILURE;
    }
    if (wanted <= current && job->preallocation != QCOW2_PREALLOC_OFF) {
        error_report("Preallocation can only be used for growing images");
        return EXIT_FAILURE;
    }
    if (wanted < current && !job->shrink) {
        error_report("Use the --shrink option to perform a shrink operation.");
        warn_report("Shrinking an image will delete all data beyond the shrunken image's end. "
                    "Before performing such an operation, make sure there is no important data there.");
        return EXIT_FAILURE;
    }
    if (qcow2_truncate(image, total, job->preallocation) < 0) {
        error_report("%s", failure_text());
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

static int run_resize(const struct img_command *command, int argc, char **argv)
{
    struct resize_job job = {0};
    struct image_spec spec = {0};
    qcow2_image *image = NULL;
    int result = EXIT_FAILURE;

    if (parse_options(&job, command, argc, argv) != EXIT_SUCCESS || parse_new_size(&job) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    if (open_image(&job.args, job.name, QCOW2_OPEN_ALLOW_RECORDED, &spec, &image)) {
        result = resize_image(&job, image);
        if (close_image(image) != EXIT_SUCCESS) {
            result = EXIT_FAILURE;
        }
        if (result == EXIT_SUCCESS && !job.args.quiet) {
            puts("Image resized.");
        }
    }
    image_spec_free(&spec);
    return result;
}

const struct img_command img_resize = {
    .name = "resize",
    .summary = "Change the size of the disk in an image",
    .operands = "FILENAME [+|-]SIZE",
    .options =
        (const struct img_option[]){
            IMG_HELP,
            IMG_QUIET,
            IMG_FORMAT,
            IMG_IMAGE_OPTS,
            IMG_OBJECT,
            {OPTION_SHRINK, "shrink", NULL, "allow a smaller size: what lies beyond is lost"},
            {OPTION_PREALLOCATION, "preallocation", "MODE", "off, metadata, falloc or full, for the new part"},
            IMG_END},
    .run = run_resize,
    .in_order = true,
};
