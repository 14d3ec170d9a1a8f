/* The target of convert.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "convert.h"

static int check_single(const struct convert_job *job)
{
    if (!job->has_backing || job->source_count == 1) {
        return EXIT_SUCCESS;
    }
    error_report("Having a backing file for the target makes no sense when concatenating multiple input images");
    return EXIT_FAILURE;
}

/* The options of a new image, with -B and -F: 0, or 1 after a message. */
static int prepare_options(struct convert_job *job, struct create_options *options)
{
    struct create_option *file, *format, *preallocation, *encryption;
    bool encrypted;

    if (job->option_text && create_options_parse(options, "", job->option_text) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    file = create_option_find(options, "backing_file");
    format = create_option_find(options, "backing_fmt");
    if ((job->backing_file && !file) || (job->backing_format && !format)) {
        error_report("Backing file %snot supported for file format '%s'", job->backing_file && !file ? "" : "format ",
                     job->target_format);
        return EXIT_FAILURE;
    }
    if (job->backing_file) {
        create_option_set(file, job->backing_file);
    }
    if (job->backing_format) {
        create_option_set(format, job->backing_format);
    }
    job->has_backing = file && file->text;
    if (check_single(job) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    if (job->has_backing && !format->text) {
        error_report("Use of backing file requires explicit backing format");
        return EXIT_FAILURE;
    }
    if (!job->compress) {
        return EXIT_SUCCESS;
    }
    if (!options->qcow2) {
        error_report("Compression not supported for this file format");
        return EXIT_FAILURE;
    }
    encryption = create_option_find(options, "encryption");
    if ((encryption && encryption->text && parse_bool(encryption->text, &encrypted) == 0 && encrypted) ||
        create_option_text(options, "encrypt.format")) {
        error_report("Compression and encryption not supported at the same time");
        return EXIT_FAILURE;
    }
    preallocation = create_option_find(options, "preallocation");
    if (preallocation && preallocation->text && strcmp(preallocation->text, "off") != 0) {
        error_report("Compression and preallocation not supported at the same time");
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

/* The new image is opened with the secret that it has been made with. */
static void keep_secret(struct convert_job *job, const struct create_options *options)
{
    const char *key = options->luks ? "key-secret" : "encrypt.key-secret";
    const char *id = create_option_text(options, key);
    struct string_list items = {0};

    if (id) {
        list_addf(&items, "%s=%s", key, id);
        image_items(&job->target_spec, &items);
        list_free(&items);
    }
}

static int create_target(struct convert_job *job)
{
    struct create_options options;
    struct image_spec named = {0};
    char *error = NULL;
    int result = EXIT_FAILURE;

    if (!create_options_init(&options, job->target_format, true)) {
        return report_no_creation("", job->target_format);
    }
    if (strncmp(job->target_name, "json:", 5) == 0) {
        error_report("Unknown protocol 'json'");
    } else if (*job->target_name && image_target(&named, job->target_name, &error) < 0) {
        error_report("%s", error);
    } else {
        result = prepare_options(job, &options);
    }
    if (result == EXIT_SUCCESS) {
        result = set_cache(&job->target_spec, job->target_cache, "Invalid cache option");
    }
    if (result == EXIT_SUCCESS) {
        job->prefix = text_format("%s: error while converting %s: ", job->target_name, job->target_format);
        result = create_image_file(&options, job->prefix, named.path ? named.path : "", (int64_t)job->size);
        keep_secret(job, &options);
        job->target_is_zero = options.qcow2 || (!options.luks && !(named.path && file_is_device(named.path)));
    }
    free(error);
    image_spec_free(&named);
    create_options_free(&options);
    return result;
}

/* 0, or 1 after a message. */
static int check_compression(struct convert_job *job)
{
    qcow2_info info;

    if (!image_info(job->target, &info)) {
        return EXIT_FAILURE;
    }
    if (!info.version) {
        error_report("Compression not supported for this file format");
        return EXIT_FAILURE;
    }
    job->flags |= QCOW2_CONVERT_COMPRESSED;
    return EXIT_SUCCESS;
}

int convert_prepare_target(struct convert_job *job)
{
    struct image_args args = {.format = job->target_format, .image_opts = job->target_image_opts};

    if (!job->no_create) {
        if (create_target(job) != EXIT_SUCCESS) {
            return EXIT_FAILURE;
        }
    } else {
        job->has_backing = job->backing_file;
        if (check_single(job) != EXIT_SUCCESS ||
            set_cache(&job->target_spec, job->target_cache, "Invalid cache option") != EXIT_SUCCESS) {
            return EXIT_FAILURE;
        }
    }
    if (job->target_image_opts && job->target_format) {
        error_report("--image-opts and --format are mutually exclusive");
        return EXIT_FAILURE;
    }
    if (!open_image(&args, job->target_name, QCOW2_OPEN_ALLOW_RECORDED, &job->target_spec, &job->target)) {
        return EXIT_FAILURE;
    }
    if (job->compress && check_compression(job) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    if (qcow2_length(job->target) < (int64_t)job->size) {
        error_report("output file is smaller than input file");
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
