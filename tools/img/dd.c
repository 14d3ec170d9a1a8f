/* qcow2-img dd.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

#define SECTOR_BYTES 512

struct dd_job {
    struct image_args args;
    const char *format; /* of the output */
    const char *input, *output;
    bool count_given;
    int64_t block_bytes, count, skip;
    struct image_spec input_spec, output_spec;
    qcow2_image *source, *target;
};

static int parse_operand(struct dd_job *job, const char *text)
{
    const char *equals = strchr(text, '='), *value = equals ? equals + 1 : "";
    size_t length = equals ? (size_t)(equals - text) : strlen(text);
    char *key = text_format("%.*s", (int)length, text);
    bool good = true, known = equals != NULL;

    if (equals && strcmp(key, "if") == 0) {
        job->input = value;
    } else if (equals && strcmp(key, "of") == 0) {
        job->output = value;
    } else if (equals && strcmp(key, "bs") == 0) {
        good = parse_bytes_within(value, "bs", 1, INT_MAX, &job->block_bytes);
    } else if (equals && strcmp(key, "count") == 0) {
        job->count_given = true;
        good = parse_count_within(value, "count", 0, INT64_MAX, &job->count);
    } else if (equals && strcmp(key, "skip") == 0) {
        good = parse_count_within(value, "skip", 0, INT64_MAX, &job->skip);
    } else {
        known = false;
    }
    if (!known) {
        error_report("unrecognized operand %s", key);
    }
    free(key);
    return known && good ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int parse_command_line(struct dd_job *job, const struct img_command *command, int argc, char **argv)
{
    int code;

    while ((code = next_option(command, argc, argv)) != -1) {
        if (code == 'O') {
            job->format = optarg;
        } else {
            take_image_option(&job->args, command, code);
        }
    }
    for (; optind < argc; optind++) {
        if (parse_operand(job, argv[optind]) != EXIT_SUCCESS) {
            return EXIT_FAILURE;
        }
    }
    if (!job->input || !job->output) {
        error_report("Must specify both input and output files");
        return EXIT_FAILURE;
    }
    if (job->args.image_opts && job->args.format) {
        error_report("--image-opts and --format are mutually exclusive");
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

/* Makes the output of `bytes` bytes and opens it. */
static int make_output(struct dd_job *job, int64_t bytes)
{
    struct image_args args = {.format = job->format};
    struct image_spec named = {0};
    struct create_options options = {0};
    char *prefix = text_format("%s: error while creating output image: ", job->output), *error = NULL;
    int result = EXIT_FAILURE;

    if (!create_options_init(&options, job->format, true)) {
        report_no_creation("", job->format);
    } else if (*job->output && image_from_name(&named, job->output, "raw", false, &error) < 0) {
        error_report("%s", error);
    } else {
        result = create_image_file(&options, prefix, named.path ? named.path : "", bytes);
    }
    if (result == EXIT_SUCCESS &&
        !open_image(&args, job->output, QCOW2_OPEN_ALLOW_RECORDED, &job->output_spec, &job->target)) {
        result = EXIT_FAILURE;
    }
    free(error);
    free(prefix);
    image_spec_free(&named);
    create_options_free(&options);
    return result;
}

/* Block by block, as they are: the output is fully allocated. */
static int copy_blocks(const struct dd_job *job, int64_t from, int64_t end)
{
    char *buffer = memory_or_exit(malloc((size_t)job->block_bytes));
    int64_t length = qcow2_length(job->source), at = from;
    int result = EXIT_SUCCESS;

    while (at < end && result == EXIT_SUCCESS) {
        size_t bytes = (size_t)(end - at < job->block_bytes ? end - at : job->block_bytes);
        size_t held = at >= length ? 0 : length - at < (int64_t)bytes ? (size_t)(length - at) : bytes;
        ssize_t done = qcow2_pread(job->source, buffer, held, (uint64_t)at);

        memset(buffer + held, 0, bytes - held);
        if (done < 0) {
            error_report("error while reading from input image file: %s", strerror((int)-done));
            result = EXIT_FAILURE;
        } else if ((done = qcow2_pwrite(job->target, buffer, bytes, (uint64_t)(at - from))) < 0) {
            error_report("error while writing to output image file: %s", strerror((int)-done));
            result = EXIT_FAILURE;
        }
        at += (int64_t)bytes;
    }
    free(buffer);
    return result;
}

static int copy(struct dd_job *job)
{
    int64_t size, from;

    if (!open_image(&job->args, job->input, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, &job->input_spec,
                    &job->source)) {
        return EXIT_FAILURE;
    }
    if (!format_is_known(job->format)) {
        error_report("Unknown file format");
        return EXIT_FAILURE;
    }
    if (!creatable(job->format)) {
        return report_no_creation("", job->format);
    }
    size = (qcow2_length(job->source) + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES;
    /* What count leaves includes what skip leaves out, as in the stock tool. */
    if (job->count_given && job->count <= INT64_MAX / job->block_bytes && size > job->count * job->block_bytes) {
        size = job->count * job->block_bytes;
    }
    from = job->skip > INT64_MAX / job->block_bytes ? INT64_MAX : job->skip * job->block_bytes;
    if (make_output(job, from > size ? 0 : size - from) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    if (from > size) {
        error_report("%s: cannot skip to specified offset", job->input);
        return EXIT_SUCCESS;
    }
    return copy_blocks(job, from, size);
}

static int run_dd(const struct img_command *command, int argc, char **argv)
{
    struct dd_job job = {.format = "raw", .block_bytes = SECTOR_BYTES};
    int result = parse_command_line(&job, command, argc, argv);

    if (result == EXIT_SUCCESS) {
        result = copy(&job);
    }
    if (close_image(job.target) != EXIT_SUCCESS) {
        result = EXIT_FAILURE;
    }
    qcow2_close(job.source);
    image_spec_free(&job.input_spec);
    image_spec_free(&job.output_spec);
    return result;
}

const struct img_command img_dd = {
    .name = "dd",
    .summary = "Copy blocks of an image into another",
    .operands = "[bs=BLOCK_SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    .options =
        (const struct img_option[]){
            IMG_HELP,
            {'f', "format", "FMT", "format of the input, qcow2, luks or raw (default: look)"},
            {OPTION_IMAGE_OPTS, "image-opts", NULL, "INPUT is a list driver=...,file.filename=..."},
            {'O', "output-format", "FMT", "format of the output, qcow2, luks or raw (default: raw)"},
            IMG_SHARE,
            IMG_OBJECT,
            IMG_END},
    .run = run_dd,
};
