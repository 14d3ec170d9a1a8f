/* qcow2-img measure.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"
#include "secrets.h"

struct measure_job {
    struct image_args args;
    const char *format; /* of the image to be */
    const char *snapshot;
    char *option_text; /* all -o, joined */
    bool size_given;
    int64_t size;
    struct create_options options;
    struct image_spec spec;
    qcow2_image *source;
};

/* The stock tool names the option by its other spelling here. */
static void report_failure(void)
{
    qcow2_error_detail parts;

    failure_parts(&parts);
    if (tell_corruption() != CORRUPTION_NONE) {
        error_report("Unable to get block status: %s", failure_text());
        return;
    }
    if (strcmp(parts.option, "compat") == 0 && *parts.hint) {
        error_report("%s (use compat=1.1 or greater)", parts.summary);
    } else {
        error_report("%s", failure_text());
    }
}

static int check_preallocation(const char *mode)
{
    if (!mode || strcmp(mode, "off") == 0 || strcmp(mode, "metadata") == 0 || strcmp(mode, "falloc") == 0 ||
        strcmp(mode, "full") == 0) {
        return EXIT_SUCCESS;
    }
    error_report("invalid parameter value: %s", mode);
    return EXIT_FAILURE;
}

static bool is_luks(const struct measure_job *job)
{
    const char *format = create_option_text(&job->options, "encrypt.format");

    return format && strcmp(format, "luks") == 0;
}

/* The header of LUKS takes space, of which no secret is needed to tell how much; 0, or 1 after a message. */
static int check_secret(const struct measure_job *job)
{
    const char *id = create_option_text(&job->options, "encrypt.key-secret");
    char *why = NULL;

    if (!is_luks(job)) {
        return EXIT_SUCCESS;
    }
    if (!id) {
        error_report("Parameter 'encrypt.key-secret' is required for cipher");
        return EXIT_FAILURE;
    }
    if (secret_password(id, NULL, 0, &why) < 0) {
        error_report("%s", why);
        free(why);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

/* Whether a size depends on the option. What the library refuses to create together can be measured together. */
static bool matters(const struct measure_job *job, const char *key)
{
    if (strncmp(key, "encrypt", 7) == 0) {
        return is_luks(job) && strcmp(key, "encryption") != 0 && strcmp(key, "encrypt.key-secret") != 0;
    }
    return strcmp(key, "size") != 0 && strcmp(key, "lazy_refcounts") != 0 &&
           (strcmp(key, "preallocation") != 0 || !create_option_text(&job->options, "backing_file")) &&
           (strcmp(key, "backing_fmt") != 0 || create_option_text(&job->options, "backing_file"));
}

static bool is_full(const struct measure_job *job)
{
    const char *mode = create_option_text(&job->options, "preallocation");

    return mode && (strcmp(mode, "falloc") == 0 || strcmp(mode, "full") == 0);
}

static int measure_qcow2(struct measure_job *job, qcow2_measure_result *measured)
{
    struct string_list options = {0};
    int result;

    if (check_preallocation(create_option_text(&job->options, "preallocation")) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    for (size_t i = 0; i < job->options.count; i++) {
        const struct create_option *option = &job->options.items[i];

        if (option->text && option->recorded && matters(job, option->key)) {
            list_addf(&options, "%s=%s", option->key, option->text);
        }
    }
    /* Its format changes no size. */
    if (create_option_text(&job->options, "backing_file") && !create_option_text(&job->options, "backing_fmt")) {
        list_add(&options, "backing_fmt=raw");
    }
    result = qcow2_measure((uint64_t)job->size, list_options(&options), job->source, measured);
    list_free(&options);
    if (result < 0) {
        report_failure();
        return EXIT_FAILURE;
    }
    if (is_full(job)) {
        measured->required_bytes = measured->fully_allocated_bytes;
    }
    return check_secret(job);
}

static void print_measured(const struct measure_job *job, const qcow2_measure_result *measured)
{
    struct json json = {.out = stdout};

    if (!job->args.json) {
        printf("required size: %llu\nfully allocated size: %llu\n", (unsigned long long)measured->required_bytes,
               (unsigned long long)measured->fully_allocated_bytes);
        if (measured->bitmaps_bytes != UINT64_MAX) {
            printf("bitmaps size: %llu\n", (unsigned long long)measured->bitmaps_bytes);
        }
        return;
    }
    json_open(&json, NULL, '{');
    if (measured->bitmaps_bytes != UINT64_MAX) {
        json_number(&json, "bitmaps", measured->bitmaps_bytes);
    }
    json_number(&json, "required", measured->required_bytes);
    json_number(&json, "fully-allocated", measured->fully_allocated_bytes);
    json_close(&json, '}');
}

/* Returns 1. */
static int report_no_measure(const char *format)
{
    const char *key, *type, *help;

    if (!foreign_options(format, 0, &key, &type, &help)) {
        return report_no_creation("", format);
    }
    error_report("Block driver '%s' does not support size measurement", format);
    return EXIT_FAILURE;
}

static int measure_image(struct measure_job *job)
{
    qcow2_measure_result measured = {.struct_size = sizeof(measured)};

    if (!create_options_init(&job->options, job->format, true)) {
        return report_no_measure(job->format);
    }
    if (job->option_text && create_options_parse(&job->options, "", job->option_text) != EXIT_SUCCESS) {
        error_report("Invalid options for file format '%s'", job->format);
        return EXIT_FAILURE;
    }
    if (job->source && (job->size = qcow2_length(job->source)) < 0) {
        error_report("%s", failure_text());
        return EXIT_FAILURE;
    }
    if (job->options.qcow2) {
        if (measure_qcow2(job, &measured) != EXIT_SUCCESS) {
            return EXIT_FAILURE;
        }
    } else {
        measured.required_bytes = measured.fully_allocated_bytes = ((uint64_t)job->size + 511) / 512 * 512;
        measured.bitmaps_bytes = UINT64_MAX;
    }
    print_measured(job, &measured);
    return EXIT_SUCCESS;
}

static int open_source(struct measure_job *job, const char *name)
{
    if (!open_image(&job->args, name, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, &job->spec, &job->source)) {
        return EXIT_FAILURE;
    }
    return job->snapshot ? open_snapshot(&job->spec, job->snapshot, &job->source) : EXIT_SUCCESS;
}

static int check_operands(const struct measure_job *job, const char *name, int operands)
{
    if (operands > 1) {
        error_report("At most one filename argument is allowed.");
    } else if (job->args.image_opts && job->args.format) {
        error_report("--image-opts and --format are mutually exclusive");
    } else if (!name && (job->args.image_opts || job->args.format || job->snapshot)) {
        error_report("--image-opts, -f, and -l require a filename argument.");
    } else if (!name && !job->size_given) {
        error_report("Either --size N or one filename must be specified.");
    } else if (name && job->size_given) {
        error_report("--size N cannot be used together with a filename.");
    } else {
        return EXIT_SUCCESS;
    }
    return EXIT_FAILURE;
}

static int run_measure(const struct img_command *command, int argc, char **argv)
{
    struct measure_job job = {.format = "raw"};
    const char *name;
    int code, result = EXIT_SUCCESS;

    while (result == EXIT_SUCCESS && (code = next_option(command, argc, argv)) != -1) {
        switch (code) {
        case 'O': job.format = optarg; break;
        case 'l': job.snapshot = optarg; break;
        case 'o': result = create_options_join(&job.option_text, optarg); break;
        case 's':
            job.size_given = true;
            result = parse_bytes(optarg, "image size", &job.size) ? EXIT_SUCCESS : EXIT_FAILURE;
            break;
        default: take_image_option(&job.args, command, code);
        }
    }
    name = optind < argc ? argv[optind] : NULL;
    if (result == EXIT_SUCCESS) {
        result = check_operands(&job, name, argc - optind);
    }
    if (result == EXIT_SUCCESS && name) {
        result = open_source(&job, name);
    }
    if (result == EXIT_SUCCESS) {
        result = measure_image(&job);
    }
    if (job.source && close_image(job.source) != EXIT_SUCCESS) {
        result = EXIT_FAILURE;
    }
    create_options_free(&job.options);
    image_spec_free(&job.spec);
    free(job.option_text);
    return result;
}

const struct img_command img_measure = {
    .name = "measure",
    .summary = "Compute how large a new image file gets",
    .operands = "[FILENAME]",
    .options = (const struct img_option[]){IMG_HELP,
                                           IMG_FORMAT,
                                           IMG_IMAGE_OPTS,
                                           {'O', "target-format", "FMT",
                                            "format of the new image, qcow2 or raw (default: raw)"},
                                           {'o', "options", "KEY=VALUE,...", "options of that format"},
                                           {'s', "size", "SIZE", "the new image is empty and of this size"},
                                           {'l', "snapshot", "SNAPSHOT", "a snapshot of FILENAME instead of its disk"},
                                           IMG_OUTPUT,
                                           IMG_SHARE,
                                           IMG_OBJECT,
                                           IMG_END},
    .run = run_measure,
};
