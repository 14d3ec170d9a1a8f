/* qcow2-img create.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "img.h"

struct create_job {
    struct image_args args;
    const char *format;
    const char *name;
    char *option_text; /* all -o, joined */
    const char *backing_file, *backing_format;
    bool unsafe;
    bool size_given;
    int64_t size;
    struct create_options options;
};

static int add_option_text(struct create_job *job, const char *text)
{
    char *joined;
    size_t length = strlen(text), commas = 0;

    while (commas < length && text[length - 1 - commas] == ',')
        commas++;
    /* A doubled comma is part of a value, an odd one at the end is followed by nothing. */
    if (length == 0 || text[0] == ',' || commas % 2) {
        error_report("Invalid option list: %s", text);
        return EXIT_FAILURE;
    }
    joined = text_format("%s%s%s", job->option_text ? job->option_text : "", job->option_text ? "," : "", text);
    free(job->option_text);
    job->option_text = joined;
    return EXIT_SUCCESS;
}

static int print_options_help(struct create_job *job)
{
    if (!create_options_init(&job->options, job->format, job->name != NULL)) {
        error_report("Unknown file format '%s'", job->format);
        return EXIT_FAILURE;
    }
    if (job->name) {
        puts("Supported options:");
        create_options_help(&job->options);
        return EXIT_SUCCESS;
    }
    printf("Supported %s options:\n", job->format);
    create_options_help(&job->options);
    puts("\nThe protocol level may support further options.\nSpecify the target filename to include those options.");
    return EXIT_SUCCESS;
}

static const char *option_text(struct create_job *job, const char *key)
{
    const struct create_option *option = create_option_find(&job->options, key);

    return option ? option->text : NULL;
}

static int set_backing(struct create_job *job)
{
    struct create_option *file = create_option_find(&job->options, "backing_file");
    struct create_option *format = create_option_find(&job->options, "backing_fmt");

    if ((job->backing_file && !file) || (job->backing_format && !format)) {
        error_report("%s: Backing file %snot supported for file format '%s'", job->name,
                     job->backing_file && !file ? "" : "format ", job->format);
        return EXIT_FAILURE;
    }
    if (job->backing_file)
        create_option_set(file, job->backing_file);
    if (job->backing_format)
        create_option_set(format, job->backing_format);
    job->backing_file = file ? file->text : NULL;
    job->backing_format = format ? format->text : NULL;
    if (!job->backing_file)
        return EXIT_SUCCESS;
    if (!*job->backing_file) {
        error_report("%s: Expected backing file name, got empty string", job->name);
        return EXIT_FAILURE;
    }
    if (strcmp(job->backing_file, job->name) == 0) {
        error_report("%s: Error: Trying to create an image with the same filename as the backing file", job->name);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

/* The chain below must open; it gives the size where none was asked for. A writer may have it open. */
static int look_at_backing(struct create_job *job)
{
    struct image_spec spec = { 0 };
    qcow2_image *image = NULL;
    char *path = resolve_recorded(job->name, job->backing_file), *error = NULL;
    int result = image_from_name(&spec, path, job->backing_format, false, &error);

    if (result == 0)
        result = image_open(&spec, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_FORCE_SHARE, &image,
                            &error);
    if (result < 0) {
        error_report("%s: %s\nCould not open backing image.", job->name, error ? error : strerror(-result));
    } else if (!job->backing_format) {
        qcow2_info info;
        bool known = image_info(image, &info);

        error_report("%s: Backing file specified without backing format\nDetected format of %s.", job->name,
                     known && info.version ? "qcow2" : "raw");
        result = -EINVAL;
    } else if (!job->size_given) {
        job->size = qcow2_length(image);
        job->size_given = job->size >= 0;
    }
    qcow2_close(image);
    image_spec_free(&spec);
    free(error);
    free(path);
    return result == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int find_size(struct create_job *job)
{
    const char *text = option_text(job, "size");

    if (text && job->size_given) {
        error_report("%s: The image size must be specified only once", job->name);
        return EXIT_FAILURE;
    }
    if (text) {
        job->size = strtoll(text, NULL, 10);
        job->size_given = true;
    }
    return EXIT_SUCCESS;
}

static int create_qcow2(struct create_job *job, const char *path)
{
    struct string_list list = { 0 };
    int result;

    for (size_t i = 0; i < job->options.count; i++) {
        const struct create_option *option = &job->options.items[i];

        if (option->text && option->recorded && strcmp(option->key, "size") != 0)
            list_addf(&list, "%s=%s", option->key, option->text);
    }
    result = qcow2_create(path, (uint64_t)job->size, list_options(&list));
    list_free(&list);
    if (result < 0)
        error_report("%s: %s", job->name, qcow2_last_error());
    return result < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* QCOW2_PREALLOC_*, or -1 after a message. */
static int raw_preallocation(struct create_job *job)
{
    const char *mode = option_text(job, "preallocation");

    if (!mode || strcmp(mode, "off") == 0)
        return QCOW2_PREALLOC_OFF;
    if (strcmp(mode, "falloc") == 0)
        return QCOW2_PREALLOC_FALLOC;
    if (strcmp(mode, "full") == 0)
        return QCOW2_PREALLOC_FULL;
    if (strcmp(mode, "metadata") == 0)
        error_report("%s: Unsupported preallocation mode: metadata", job->name);
    else
        error_report("%s: invalid parameter value: %s", job->name, mode);
    return -1;
}

static int create_raw(struct create_job *job, const char *path)
{
    static const char zeroes[4096];
    const uint64_t size = ((uint64_t)job->size + 511) & ~UINT64_C(511);
    const size_t head = size < sizeof(zeroes) ? (size_t)size : sizeof(zeroes);
    qcow2_image *image = NULL;
    int mode = raw_preallocation(job), file;

    if (mode < 0)
        return EXIT_FAILURE;
    file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0) {
        error_report("%s: Could not create '%s': %s", job->name, path, strerror(errno));
        return EXIT_FAILURE;
    }
    close(file);
    /* Emptied by the library, which looks whether somebody uses the file. The first block is
       written, as the stock tool does: programs find the file's block size by it. */
    if (qcow2_open(path, QCOW2_OPEN_RAW, NULL, &image) < 0 || qcow2_truncate(image, 0, QCOW2_PREALLOC_OFF) < 0 ||
        qcow2_truncate(image, size, mode) < 0 || (head && qcow2_pwrite(image, zeroes, head, 0) < 0)) {
        error_report("%s: %s", job->name, qcow2_last_error());
        qcow2_close(image);
        return EXIT_FAILURE;
    }
    return close_image(image);
}

/* Everything before the "Formatting" line. */
static int prepare(struct create_job *job)
{
    if (!create_options_init(&job->options, job->format, true)) {
        error_report("%s: Unknown file format '%s'", job->name, job->format);
        return EXIT_FAILURE;
    }
    if ((job->option_text && create_options_parse(&job->options, job->name, job->option_text) != EXIT_SUCCESS) ||
        find_size(job) != EXIT_SUCCESS || set_backing(job) != EXIT_SUCCESS)
        return EXIT_FAILURE;
    if (job->backing_file && !job->unsafe && look_at_backing(job) != EXIT_SUCCESS)
        return EXIT_FAILURE;
    if (job->backing_file && !job->backing_format) {
        error_report("%s: Backing file specified without backing format", job->name);
        return EXIT_FAILURE;
    }
    if (!job->size_given) {
        error_report("%s: Image creation needs a size parameter", job->name);
        return EXIT_FAILURE;
    }
    if (!option_text(job, "size")) {
        char *text = text_format("%lld", (long long)job->size);

        create_option_set(create_option_find(&job->options, "size"), text);
        free(text);
    }
    return EXIT_SUCCESS;
}

static int create_image(struct create_job *job)
{
    struct image_spec target = { 0 };
    char *error = NULL;
    int result = EXIT_FAILURE;

    if (strncmp(job->name, "json:", 5) == 0) {
        error_report("%s: Unknown protocol 'json'", job->name);
    } else if (image_from_name(&target, job->name, "raw", false, &error) < 0) {
        error_report("%s: %s", job->name, error);
    } else if (prepare(job) == EXIT_SUCCESS) {
        if (!job->args.quiet) {
            printf("Formatting '%s', fmt=%s", job->name, job->format);
            create_options_print(&job->options, stdout);
            putchar('\n');
            fflush(stdout);
        }
        result = job->options.qcow2 ? create_qcow2(job, target.path) : create_raw(job, target.path);
    }
    free(error);
    image_spec_free(&target);
    return result;
}

static int run_create(const struct img_command *command, int argc, char **argv)
{
    struct create_job job = { 0 };
    bool help = false;
    int code, result = EXIT_SUCCESS;

    while (result == EXIT_SUCCESS && (code = next_option(command, argc, argv)) != -1) {
        switch (code) {
        case 'F': job.backing_format = optarg; break;
        case 'b': job.backing_file = optarg; break;
        case 'o':
            result = add_option_text(&job, optarg);
            help = help || options_ask_help(optarg);
            break;
        case 'u': job.unsafe = true; break;
        default: take_image_option(&job.args, command, code);
        }
    }
    job.format = job.args.format ? job.args.format : "raw";
    job.name = optind < argc ? argv[optind++] : NULL;
    if (result == EXIT_SUCCESS && help)
        result = print_options_help(&job);
    else if (result == EXIT_SUCCESS && !job.name)
        result = usage_error(command, "Expecting image file name");
    else if (result == EXIT_SUCCESS) {
        job.size_given = optind < argc;
        if (job.size_given && !parse_bytes(argv[optind++], "image size", &job.size))
            result = EXIT_FAILURE;
        else if (optind < argc)
            result = usage_error(command, "Unexpected argument: %s", argv[optind]);
        else
            result = create_image(&job);
    }
    create_options_free(&job.options);
    free(job.option_text);
    return result;
}

const struct img_command img_create = {
    .name = "create",
    .summary = "Create an image",
    .operands = "FILENAME [SIZE]",
    .options = (const struct img_option[]){
        IMG_HELP, IMG_QUIET,
        { 'f', "format", "FMT", "format of the new image, qcow2 or raw (default: raw)" },
        { 'o', "options", "KEY=VALUE,...", "options of the format; -o help lists them" },
        { 'b', "backing", "FILE", "the image holds what differs from this one" },
        { 'F', "backing-format", "FMT", "format of the image given with -b" },
        { 'u', "backing-unsafe", NULL, "do not look whether that image can be opened" },
        IMG_OBJECT, IMG_END },
    .run = run_create,
};
