/* qcow2-img create.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

struct create_job {
    struct image_args args;
    const char *format;
    const char *name;
    char *prefix;      /* of messages: "NAME: " */
    char *option_text; /* all -o, joined */
    const char *backing_file, *backing_format;
    bool unsafe;
    bool size_given;
    int64_t size;
    struct create_options options;
};

static int set_backing(struct create_job *job)
{
    struct create_option *file = create_option_find(&job->options, "backing_file");
    struct create_option *format = create_option_find(&job->options, "backing_fmt");

    if ((job->backing_file && !file) || (job->backing_format && !format)) {
        error_report("%s: Backing file %snot supported for file format '%s'", job->name,
                     job->backing_file && !file ? "" : "format ", job->format);
        return EXIT_FAILURE;
    }
    if (job->backing_file) {
        create_option_set(file, job->backing_file);
    }
    if (job->backing_format) {
        create_option_set(format, job->backing_format);
    }
    job->backing_file = file ? file->text : NULL;
    job->backing_format = format ? format->text : NULL;
    if (!job->backing_file) {
        return EXIT_SUCCESS;
    }
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
    struct image_spec spec = {0};
    qcow2_image *image = NULL;
    char *path = resolve_recorded(job->name, job->backing_file), *error = NULL;
    int result = image_from_name(&spec, path, job->backing_format, false, &error);

    if (result == 0) {
        result = image_open(&spec, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_FORCE_SHARE, &image,
                            &error);
    }
    if (lacks_key(result)) {
        /* Its size can be told without. */
        free(error);
        error = NULL;
        result =
            image_open(&spec, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_FORCE_SHARE, &image, &error);
    }
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
    const char *text = create_option_text(&job->options, "size");

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

/* Everything before the "Formatting" line. */
static int prepare(struct create_job *job)
{
    if (!create_options_init(&job->options, job->format, true)) {
        return report_no_creation(job->prefix, job->format);
    }
    if ((job->option_text && create_options_parse(&job->options, job->prefix, job->option_text) != EXIT_SUCCESS) ||
        find_size(job) != EXIT_SUCCESS || set_backing(job) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    if (job->backing_file && !job->unsafe && look_at_backing(job) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    if (job->backing_file && !job->backing_format) {
        error_report("%s: Backing file specified without backing format", job->name);
        return EXIT_FAILURE;
    }
    if (!job->size_given) {
        error_report("%s: Image creation needs a size parameter", job->name);
        return EXIT_FAILURE;
    }
    if (!create_option_text(&job->options, "size")) {
        char *text = text_format("%lld", (long long)job->size);

        create_option_set(create_option_find(&job->options, "size"), text);
        free(text);
    }
    return EXIT_SUCCESS;
}

/* Of two complaints the one about the format comes first: always where it is unknown, and otherwise where the name is
   that of nothing that could be made. */
static bool creatable_here(const char *format, int found)
{
    const char *key, *type, *help;

    return creatable(format) || foreign_options(format, 0, &key, &type, &help) ||
           (format_is_known(format) && found != -ENOTSUP);
}

static int create_image(struct create_job *job)
{
    struct image_spec target = {0};
    char *error = NULL;
    int result = EXIT_FAILURE, found = 0;

    job->prefix = text_format("%s: ", job->name);
    if (strncmp(job->name, "json:", 5) == 0) {
        error_report("%s: Unknown protocol 'json'", job->name);
    } else if ((found = image_target(&target, job->name, &error)) < 0 && creatable_here(job->format, found)) {
        error_report("%s: %s", job->name, error);
    } else if (found < 0) {
        report_no_creation(job->prefix, job->format);
    } else if (prepare(job) == EXIT_SUCCESS) {
        if (!job->args.quiet) {
            printf("Formatting '%s', fmt=%s", job->name, job->format);
            create_options_print(&job->options, stdout);
            putchar('\n');
            fflush(stdout);
        }
        result = create_image_file(&job->options, job->prefix, target.path, job->size);
    }
    free(error);
    image_spec_free(&target);
    return result;
}

static int run_create(const struct img_command *command, int argc, char **argv)
{
    struct create_job job = {0};
    bool help = false;
    int code, result = EXIT_SUCCESS;

    while (result == EXIT_SUCCESS && (code = next_option(command, argc, argv)) != -1) {
        switch (code) {
        case 'F': job.backing_format = optarg; break;
        case 'b': job.backing_file = optarg; break;
        case 'o':
            result = create_options_join(&job.option_text, optarg);
            help = help || options_ask_help(optarg);
            break;
        case 'u': job.unsafe = true; break;
        default: take_image_option(&job.args, command, code);
        }
    }
    job.format = job.args.format ? job.args.format : "raw";
    job.name = optind < argc ? argv[optind++] : NULL;
    if (result == EXIT_SUCCESS && help) {
        result = create_options_print_help("", job.format, job.name != NULL);
    } else if (result == EXIT_SUCCESS && !job.name) {
        result = usage_error(command, "Expecting image file name");
    } else if (result == EXIT_SUCCESS) {
        job.size_given = optind < argc;
        if (job.size_given && !parse_bytes(argv[optind++], "image size", &job.size)) {
            result = EXIT_FAILURE;
        } else if (optind < argc) {
            result = usage_error(command, "Unexpected argument: %s", argv[optind]);
        } else {
            result = create_image(&job);
        }
    }
    create_options_free(&job.options);
    free(job.option_text);
    free(job.prefix);
    return result;
}

const struct img_command img_create = {
    .name = "create",
    .summary = "Create an image",
    .operands = "FILENAME [SIZE]",
    .options =
        (const struct img_option[]){IMG_HELP,
                                    IMG_QUIET,
                                    {'f', "format", "FMT", "format of the new image, qcow2 or raw (default: raw)"},
                                    {'o', "options", "KEY=VALUE,...", "options of the format; -o help lists them"},
                                    {'b', "backing", "FILE", "the image holds what differs from this one"},
                                    {'F', "backing-format", "FMT", "format of the image given with -b"},
                                    {'u', "backing-unsafe", NULL, "do not look whether that image can be opened"},
                                    IMG_OBJECT,
                                    IMG_END},
    .run = run_create,
};
