/* qcow2-img rebase.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

struct rebase_job {
    struct image_args args;
    struct image_spec spec, backing_spec;
    qcow2_image *image, *backing;
    const char *name; /* -b as given; NULL or "": none */
    const char *format, *cache, *backing_cache;
    bool unsafe, compress;
};

/* Whether a header may record the format: the library knows, and measuring changes nothing. */
static int check_format(const char *format)
{
    char *option = text_format("backing_fmt=%s", format);
    const char *const options[] = {"backing_file=x", option, NULL};
    qcow2_measure_result unused = {.struct_size = sizeof(unused)};
    int result = qcow2_measure(0, options, NULL, &unused);

    free(option);
    if (result == 0) {
        return EXIT_SUCCESS;
    }
    error_report("Invalid format name: '%s'", format);
    return EXIT_FAILURE;
}

static int open_backing(struct rebase_job *job)
{
    char *path = resolve_recorded(job->spec.path, job->name), *error = NULL;
    int result = image_from_name(&job->backing_spec, path, job->format, false, &error);

    if (result == 0) {
        result =
            image_open(&job->backing_spec, QCOW2_OPEN_READ_ONLY | (job->args.force_share ? QCOW2_OPEN_FORCE_SHARE : 0),
                       &job->backing, &error);
    }
    if (result < 0) {
        error_report("Could not open new backing file '%s': %s", job->name, error ? error : strerror(-result));
    }
    free(error);
    free(path);
    return result == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int change(struct rebase_job *job)
{
    const char *format = job->name && *job->name ? job->format : NULL;
    int result;

    if (job->unsafe) {
        result = qcow2_change_backing_file(job->image, job->name, format);
    } else {
        result = qcow2_rebase(job->image, job->backing, job->name, format, job->compress ? QCOW2_REBASE_COMPRESSED : 0,
                              progress_update, NULL);
    }
    if (result < 0) {
        /* The stock tool has no words for what the header cannot take. */
        const char *text = result == -ENOTSUP || (result == -EINVAL && job->unsafe) ||
                                   (result == -EINVAL && strlen(job->name ? job->name : "") > 1023)
                               ? strerror(-result)
                               : failure_text();

        if (result == -EINVAL || result == -ENOSPC || result == -ENOTSUP) {
            error_report("Could not change the backing file to '%s': %s", job->name ? job->name : "", text);
        } else {
            error_report("%s", text);
        }
    }
    progress_print(100.0);
    return result < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* What the header cannot take, before anything is copied; the stock tool copies first. */
static int check_change(const struct rebase_job *job)
{
    if (job->name && *job->name && !job->format) {
        error_report("Could not change the backing file to '%s': backing format must be specified", job->name);
        progress_print(100.0);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

/* 0, or 1 after a message. */
static int check_compression(const struct rebase_job *job)
{
    qcow2_info info;

    if (!job->compress || (image_info(job->image, &info) && info.version)) {
        return EXIT_SUCCESS;
    }
    error_report("Compression not supported for this file format");
    return EXIT_FAILURE;
}

static int rebase_image(struct rebase_job *job, const char *name)
{
    /* The lock of a writer cannot be shared; -U is for the new backing file then. */
    struct image_args writable = job->args;
    uint64_t flags = job->unsafe ? QCOW2_OPEN_NO_BACKING : QCOW2_OPEN_ALLOW_RECORDED;
    int result = EXIT_FAILURE;

    writable.force_share = false;
    if (!open_image(&writable, name, flags, &job->spec, &job->image)) {
        return EXIT_FAILURE;
    }
    if (check_compression(job) == EXIT_SUCCESS && (!job->format || check_format(job->format) == EXIT_SUCCESS)) {
        result = job->unsafe || !job->name || !*job->name ? EXIT_SUCCESS : open_backing(job);
    }
    if (result == EXIT_SUCCESS) {
        result = check_change(job);
    }
    if (result == EXIT_SUCCESS) {
        result = change(job);
    }
    qcow2_close(job->backing);
    if (close_image(job->image) != EXIT_SUCCESS) {
        result = EXIT_FAILURE;
    }
    return result;
}

static int run_rebase(const struct img_command *command, int argc, char **argv)
{
    struct rebase_job job = {0};
    const char *name;
    int code, result = EXIT_FAILURE;

    while ((code = next_option(command, argc, argv)) != -1) {
        switch (code) {
        case 'F': job.format = optarg; break;
        case 'T': job.backing_cache = optarg; break;
        case 'b': job.name = optarg; break;
        case 'c': job.compress = true; break;
        case 't': job.cache = optarg; break;
        case 'u': job.unsafe = true; break;
        default: take_image_option(&job.args, command, code);
        }
    }
    name = one_file_name(&job.args, command, argc, argv);
    if (name && !job.unsafe && !job.name) {
        result = usage_error(command, "Must specify backing file (-b) or use unsafe mode (-u)");
    } else if (name) {
        progress_init(job.args.progress && !job.args.quiet);
        progress_print(0.0);
        if (set_cache(&job.spec, job.cache, "Invalid cache option") == EXIT_SUCCESS &&
            set_cache(&job.backing_spec, job.backing_cache, "Invalid source cache option") == EXIT_SUCCESS) {
            result = rebase_image(&job, name);
        }
        progress_end();
    }
    image_spec_free(&job.spec);
    image_spec_free(&job.backing_spec);
    return result;
}

const struct img_command img_rebase = {
    .name = "rebase",
    .summary = "Change the backing file of an image",
    .operands = "FILENAME",
    .options =
        (const struct img_option[]){
            IMG_HELP,
            IMG_QUIET,
            IMG_PROGRESS,
            IMG_FORMAT,
            IMG_IMAGE_OPTS,
            {'t', "cache", "MODE", "cache mode of the image file"},
            {'b', "backing", "FILE", "the new backing file, as the image shall name it; \"\": none"},
            {'F', "backing-format", "FMT", "its format"},
            {'T', "backing-cache", "MODE", "its cache mode"},
            {'u', "backing-unsafe", NULL, "change the name only, whatever the file holds"},
            {'c', "compress", NULL, "compress what has to be written"},
            IMG_SHARE,
            IMG_OBJECT,
            IMG_END},
    .run = run_rebase,
};
