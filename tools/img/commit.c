/* qcow2-img commit.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

static bool same_file(const char *left, const char *right)
{
    char *left_path = realpath(left, NULL), *right_path = realpath(right, NULL);
    bool same = left_path && right_path && strcmp(left_path, right_path) == 0;

    free(left_path);
    free(right_path);
    return same;
}

/* The path of a backing file as it is recorded: relative to the image, but after "file:", and in "json:{...}", to here;
   allocated. NULL: the name means no file. */
static char *path_of_base(const struct image_spec *spec, const char *base)
{
    struct image_spec named = {0};
    char *path = NULL, *error = NULL;

    if (!has_protocol(base)) {
        return resolve_recorded(spec->path, base);
    }
    if (image_from_name(&named, base, NULL, false, &error) == 0) {
        path = text_copy(named.path);
    }
    free(error);
    image_spec_free(&named);
    return path;
}

/* The depth at which `base`, named as seen from the top image, is in the chain; 0: nowhere. */
static size_t find_base(const struct image_spec *spec, const char *base)
{
    struct chain chain;
    char *path = path_of_base(spec, base);
    size_t depth, found = 0;

    if (path == NULL) {
        return 0;
    }
    chain_init(&chain, spec->path, spec->format);
    for (depth = 1; !found && chain_reach(&chain, depth); depth++) {
        if (strcmp(chain.paths.items[depth], path) == 0 || same_file(chain.paths.items[depth], path)) {
            found = depth;
        }
    }
    chain_free(&chain);
    free(path);
    return found;
}

/* The depth of the layer to write to; 0 after a message. */
static size_t choose_base(const struct image_spec *spec, const qcow2_info *info, const char *name, const char *base)
{
    size_t depth = base ? find_base(spec, base) : info->backing_file ? 1 : 0;

    if (depth == 0 && base) {
        error_report("Did not find '%s' in the backing chain of '%s'", base, name);
    } else if (depth == 0) {
        error_report("Image does not have a backing file");
    }
    return depth;
}

static int commit_image(qcow2_image *image, size_t depth, bool keep)
{
    if (qcow2_commit_to(image, (uint32_t)depth, keep ? QCOW2_COMMIT_KEEP : 0, progress_update, NULL) < 0) {
        error_report("%s", failure_text());
        return EXIT_FAILURE;
    }
    progress_print(100.0);
    return EXIT_SUCCESS;
}

static int commit_open(qcow2_image *image, const struct image_args *args, const struct image_spec *spec,
                       const char *name, const char *base, bool keep)
{
    qcow2_info info;
    size_t depth = 0;
    int result = EXIT_FAILURE;

    progress_init(args->progress && !args->quiet);
    progress_print(0.0);
    if (image_info(image, &info)) {
        depth = choose_base(spec, &info, name, base);
    }
    if (depth > 0) {
        result = commit_image(image, depth, keep);
    }
    progress_end();
    if (close_image(image) != EXIT_SUCCESS) {
        result = EXIT_FAILURE;
    }
    if (result == EXIT_SUCCESS && !args->quiet) {
        puts("Image committed.");
    }
    return result;
}

static int run_commit(const struct img_command *command, int argc, char **argv)
{
    struct image_args args = {0};
    struct image_spec spec = {0};
    qcow2_image *image = NULL;
    const char *base = NULL, *cache = NULL, *name;
    int64_t rate;
    bool keep = false;
    int code, result = EXIT_FAILURE;

    while ((code = next_option(command, argc, argv)) != -1) {
        switch (code) {
        case 'b':
            base = optarg;
            keep = true;
            break;
        case 'd': keep = true; break;
        case 't': cache = optarg; break;
        case 'r':
            if (!parse_bytes(optarg, "rate limit", &rate)) {
                return EXIT_FAILURE;
            }
            break;
        default: take_image_option(&args, command, code);
        }
    }
    name = one_file_name(&args, command, argc, argv);
    if (name && set_cache(&spec, cache, "Invalid cache option") == EXIT_SUCCESS &&
        open_image(&args, name, QCOW2_OPEN_ALLOW_RECORDED, &spec, &image)) {
        result = commit_open(image, &args, &spec, name, base, keep);
    }
    image_spec_free(&spec);
    return result;
}

const struct img_command img_commit = {
    .name = "commit",
    .summary = "Write what an image holds into its backing file",
    .operands = "FILENAME",
    .options = (const struct img_option[]){IMG_HELP,
                                           IMG_QUIET,
                                           IMG_PROGRESS,
                                           IMG_FORMAT,
                                           IMG_IMAGE_OPTS,
                                           {'t', "cache", "MODE", "cache mode of the image files"},
                                           {'d', "drop", NULL, "do not empty the image afterwards"},
                                           {'b', "base", "FILE", "the image below to write to (implies -d)"},
                                           {'r', "rate", "RATE", "accepted for compatibility, without effect"},
                                           IMG_OBJECT,
                                           IMG_END},
    .run = run_commit,
};
