/* Opening an image with the files that it names.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "common.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *image_probe(const char *path)
{
    int found = qcow2_probe(path);

    return found < 0 ? NULL : found ? "qcow2" : "raw";
}

void print_message(void *opaque, int kind, const char *text)
{
    (void)opaque;
    (void)kind;
    fprintf(stderr, "%s\n", text);
}

/* What an image names is opened as the stock tools do: a missing format is guessed. */
struct resolve_state {
    const struct image_spec *spec;
    struct string_list paths; /* answers must outlive the open call */
    char *refusal;            /* why a name means no file here; NULL: none was refused */
};

/* Adds what a backing file's name means, where it is no plain file name, to state->paths; a format that it gives
   replaces *format. 0 or -errno with state->refusal. */
static int find_by_name(struct resolve_state *state, const char *name, const char **format)
{
    struct image_spec named = {.name = NULL};
    int ret;

    free(state->refusal);
    state->refusal = NULL;
    ret = image_from_name(&named, name, NULL, false, &state->refusal);
    if (ret == 0) {
        list_add(&state->paths, named.path);
        *format = named.format == NULL ? *format : strcmp(named.format, "raw") == 0 ? "raw" : "qcow2";
    }
    image_spec_free(&named);
    return ret;
}

/* Which file an image means and in which format (NULL: not recorded). The path is added to state->paths. */
static int find_node(struct resolve_state *state, const qcow2_resolve_request *request, const char **format)
{
    const struct image_spec *spec = state->spec;

    *format = request->format;
    if (request->kind == QCOW2_NODE_BACKING && request->depth == 1 && spec->backing_path != NULL) {
        list_add(&state->paths, spec->backing_path);
        *format = spec->backing_format;
    } else if (request->resolved_path != NULL) {
        list_add(&state->paths, request->resolved_path);
    } else {
        return find_by_name(state, request->recorded_name, format);
    }
    return 0;
}

static int resolve(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    struct resolve_state *state = opaque;
    const char *format;
    int ret = find_node(state, request, &format);

    if (ret < 0) {
        return ret;
    }
    answer->path = state->paths.items[state->paths.count - 1];
    answer->fd = -1;
    if (format == NULL && request->kind == QCOW2_NODE_BACKING) {
        format = image_probe(answer->path);
    }
    if (format == NULL || strcmp(format, "raw") == 0 || strcmp(format, "file") == 0) {
        answer->format = "raw";
    } else {
        answer->format = strcmp(format, "qcow2") == 0 ? "qcow2" : NULL;
    }
    return 0;
}

static void warn_guessed(const struct image_spec *spec)
{
    fprintf(stderr,
            "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw images, write operations on block 0"
            " will be restricted.\n"
            "         Specify the 'raw' format explicitly to remove the restrictions.\n",
            spec->path);
}

static int open_spec(struct image_spec *spec, uint64_t flags, qcow2_image **image, char **error)
{
    struct resolve_state state = {.spec = spec};
    struct string_list options = {NULL, 0};
    qcow2_open_params params;
    int ret;

    for (size_t i = 0; i < spec->options.count; i++) {
        list_add(&options, spec->options.items[i]);
    }
    list_add(&options, cache_option(spec->cache));
    memset(&params, 0, sizeof(params));
    params.struct_size = sizeof(params);
    params.path = spec->path;
    params.fd = -1;
    params.flags = flags;
    params.options = list_options(&options);
    params.resolve = resolve;
    params.resolve_opaque = &state;
    params.message = print_message;
    ret = qcow2_open_with(&params, image);
    if (ret < 0) {
        *error = state.refusal != NULL ? text_format("Could not open backing file: %s", state.refusal)
                                       : text_copy(failure_text());
    }
    free(state.refusal);
    list_free(&options);
    list_free(&state.paths);
    return ret;
}

int image_open(struct image_spec *spec, uint64_t flags, qcow2_image **image, char **error)
{
    const char *format = spec->format != NULL ? spec->format : image_probe(spec->path);
    int ret;

    flags |= spec->flags | QCOW2_OPEN_ALLOW_RECORDED;
    if ((flags & QCOW2_OPEN_FORCE_SHARE) != 0 && (flags & QCOW2_OPEN_READ_ONLY) == 0) {
        return refuse(error, -EINVAL, text_copy("force-share=on can only be used with read-only images"));
    }
    if (spec->ask_read_only && (flags & QCOW2_OPEN_READ_ONLY) == 0) {
        return refuse(error, -EACCES, text_copy("Block node is read-only"));
    }
    if (format != NULL && strcmp(format, "raw") == 0) {
        flags |= QCOW2_OPEN_RAW;
    }
    ret = open_spec(spec, flags, image, error);
    spec->probed_raw = spec->format == NULL && (flags & QCOW2_OPEN_RAW) != 0;
    if (ret == 0 && spec->probed_raw && (flags & QCOW2_OPEN_READ_ONLY) == 0 &&
        list_value(&spec->options, "snapshot") == NULL) {
        warn_guessed(spec);
    }
    return ret;
}
