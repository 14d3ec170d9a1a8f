/* qcow2-img amend.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"
#include "node.h"
#include "secrets.h"

enum { OPTION_FORCE = OPTION_OWN };

struct amend_job {
    struct image_args args;
    struct image_spec spec;
    char *option_text; /* all -o, joined */
    const char *cache;
    bool force;
};

static int print_help(const char *format)
{
    qcow2_option_info info = {.struct_size = sizeof(info)};

    bool luks = strcmp(format, "luks") == 0;

    if (!luks && strcmp(format, "qcow2") != 0) {
        error_report(format_is_known(format) ? "Format driver '%s' does not support option amendment"
                                             : "Unknown file format '%s'",
                     format);
        return EXIT_FAILURE;
    }
    printf("Amend options for '%s':\n", format);
    for (size_t i = 0; qcow2_option_list(luks ? QCOW2_SCOPE_AMEND_LUKS : QCOW2_SCOPE_AMEND, i, &info) == 0; i++) {
        print_option_help(info.name, info.type, info.help);
    }
    return EXIT_SUCCESS;
}

/* Names and types, before anything is begun. */
static int check_options(const struct amend_job *job)
{
    struct create_options options;
    int result;

    amend_options_init(&options, strcmp(job->spec.tree->root->driver->name, "luks") == 0);
    result = create_options_parse(&options, "", job->option_text);
    create_options_free(&options);
    return result;
}

struct amend_secrets {
    const struct string_list *encrypt; /* what has opened the image */
    char *why;
};

static int64_t give_secret(void *opaque, const qcow2_secret_request *request, void *buffer, size_t room)
{
    struct amend_secrets *secrets = opaque;

    if (request->kind == QCOW2_SECRET_CURRENT) {
        return encrypt_secret(secrets->encrypt, (uint32_t)request->encryption, buffer, room, &secrets->why);
    }
    return secret_by_name(&secrets->why, request, buffer, room);
}

static int amend(struct amend_job *job, qcow2_image *image)
{
    qcow2_amend_params params = QCOW2_AMEND_PARAMS_INIT;
    struct amend_secrets secrets = {&job->spec.tree->root->encrypt, NULL};
    struct string_list items = {0};
    int result;

    if (check_options(job) != EXIT_SUCCESS) {
        return EXIT_FAILURE;
    }
    split_options(&items, job->option_text, false);
    params.options = list_options(&items);
    params.flags = job->force ? QCOW2_AMEND_FORCE : 0;
    params.progress = progress_update;
    params.secret = give_secret;
    params.secret_opaque = &secrets;
    progress_print(0.0);
    result = qcow2_amend_with(image, &params);
    progress_print(100.0);
    if (result < 0) {
        qcow2_error_detail parts;

        failure_parts(&parts);
        error_report("%s", secrets.why ? secrets.why : failure_text());
        if (parts.kind == QCOW2_ERROR_UNSUPPORTED && strcmp(parts.option, "backing_file") == 0) {
            fprintf(stderr, "You can use '%s rebase' instead.\n", program_name);
        }
    }
    free(secrets.why);
    list_free(&items);
    return result == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int amend_image(struct amend_job *job, const char *name, bool help)
{
    qcow2_image *image = NULL;
    qcow2_info info;
    int result = EXIT_FAILURE;

    if (set_cache(&job->spec, job->cache, "Invalid cache option") == EXIT_SUCCESS &&
        open_image(&job->args, name, QCOW2_OPEN_ALLOW_RECORDED, &job->spec, &image)) {
        if (image_info(image, &info)) {
            const char *format = job->spec.tree->root->driver->name;
            bool known = info.version != 0 || strcmp(format, "luks") == 0;

            result = help || !known ? print_help(known ? format : "raw") : amend(job, image);
        }
        if (close_image(image) != EXIT_SUCCESS) {
            result = EXIT_FAILURE;
        }
    }
    image_spec_free(&job->spec);
    return result;
}

static int run_amend(const struct img_command *command, int argc, char **argv)
{
    struct amend_job job = {0};
    const char *name;
    bool help = false;
    int code, result = EXIT_SUCCESS;

    while (result == EXIT_SUCCESS && (code = next_option(command, argc, argv)) != -1) {
        switch (code) {
        case 'o':
            result = create_options_join(&job.option_text, optarg);
            help = help || options_ask_help(optarg);
            break;
        case 't': job.cache = optarg; break;
        case OPTION_FORCE: job.force = true; break;
        default: take_image_option(&job.args, command, code);
        }
    }
    if (result == EXIT_SUCCESS && !job.option_text) {
        result = usage_error(command, "Must specify options (-o)");
    }
    if (result != EXIT_SUCCESS) {
        free(job.option_text);
        return result;
    }
    progress_init(job.args.progress && !job.args.quiet);
    if (help && job.args.format) {
        result = print_help(job.args.format);
    } else if (!(name = optind < argc ? argv[optind] : NULL) || optind + 1 < argc) {
        error_report("Expecting one image file name");
        result = EXIT_FAILURE;
    } else if (job.args.image_opts && job.args.format) {
        error_report("--image-opts and --format are mutually exclusive");
        result = EXIT_FAILURE;
    } else {
        result = amend_image(&job, name, help);
    }
    progress_end();
    free(job.option_text);
    return result;
}

const struct img_command img_amend = {
    .name = "amend",
    .summary = "Change format options of an image",
    .operands = "FILENAME",
    .options =
        (const struct img_option[]){IMG_HELP,
                                    IMG_QUIET,
                                    IMG_PROGRESS,
                                    IMG_FORMAT,
                                    IMG_IMAGE_OPTS,
                                    {'o', "options", "KEY=VALUE,...", "what shall be otherwise; -o help lists it"},
                                    {'t', "cache", "MODE", "cache mode of the image file"},
                                    {OPTION_FORCE, "force", NULL, "even if no passphrase opens the image afterwards"},
                                    IMG_OBJECT,
                                    IMG_END},
    .run = run_amend,
};
