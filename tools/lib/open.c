/* Opening nodes, with what images name.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "node.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void print_message(void *opaque, int kind, const char *text)
{
    (void)opaque;
    (void)kind;
    fprintf(stderr, "%s\n", text);
}

/* --- from a node to what the library takes --- */

struct place {
    const char *path; /* NULL: by functions */
    const qcow2_io_ops *io;
    void *opaque;
};

/* How the bytes that `node` shows are got at; `reader` reads them. */
static int place_of(struct node *node, struct node *reader, struct place *place, char **error)
{
    int ret = 0;

    memset(place, 0, sizeof(*place));
    if (node->driver->read != NULL) {
        place->io = node_ops(node, node->driver);
        place->opaque = node;
    } else if (node_is_file(node)) {
        place->path = node->filename;
    } else {
        ret = node_open_child(node, error);
        place->io = node_ops(reader, &node_through);
        place->opaque = reader;
    }
    return ret;
}

/* --- what images name --- */

struct resolve_state {
    struct node_tree *tree;
    struct node *top;
};

/* The node of that depth below the top; NULL: the library has opened it by itself. */
static struct node *layer(struct resolve_state *state, int depth)
{
    struct node *node = state->top;

    while (node != NULL && depth-- > 0) {
        node = node->backing;
    }
    return node;
}

/* The name of a file that is recorded in the image of `node`, as seen from here; allocated. */
static char *seen_from_here(struct node *node, const char *recorded)
{
    struct node *file = node != NULL ? node_file(node) : NULL;
    const char *slash = file != NULL ? strrchr(file->filename, '/') : NULL;
    char *path, *name;

    if (*recorded == '/' || has_protocol(recorded) || slash == NULL) {
        return text_copy(recorded);
    }
    path = text_format("%.*s%s", (int)(slash + 1 - file->filename), file->filename, recorded);
    name = path_as_name(path);
    free(path);
    return name;
}

/* Builds the node of a backing file that is not a plain file name, or that options say something about. */
static int build_backing(struct resolve_state *state, struct node *above, const qcow2_resolve_request *request,
                         struct node **backing)
{
    struct string_list items = {NULL, 0};
    bool named = above != NULL && (list_value(&above->backing_items, "file.filename") != NULL ||
                                   list_value(&above->backing_items, "file.driver") != NULL);
    char *name = NULL;
    int ret;

    for (size_t i = 0; above != NULL && i < above->backing_items.count; i++) {
        list_add(&items, above->backing_items.items[i]);
    }
    if (!named) {
        name = request->resolved_path != NULL ? path_as_name(request->resolved_path)
                                              : seen_from_here(above, request->recorded_name);
        if (request->format != NULL && list_value(&items, "driver") == NULL && strncmp(name, "json:", 5) != 0) {
            list_addf(&items, "driver=%s", request->format);
        }
    }
    state->tree->recorded = !named;
    ret = node_build(state->tree, &items, name, false, backing, &state->tree->refusal);
    state->tree->recorded = false;
    list_free(&items);
    free(name);
    return ret;
}

static int answer_with(struct node_tree *tree, struct node *node, qcow2_resolve_answer *answer, char **error)
{
    bool qcow2 = strcmp(node->driver->name, "qcow2") == 0;
    bool plain = node->driver->read == NULL && !node_is_file(node);
    struct place place;
    int ret = place_of(plain ? node->children[0] : node, node, &place, error);

    if (ret < 0) {
        return ret;
    }
    if (place.path != NULL) {
        list_add(&tree->backing_paths, place.path);
        answer->path = tree->backing_paths.items[tree->backing_paths.count - 1];
    }
    answer->io = place.io;
    answer->io_opaque = place.opaque;
    answer->fd = -1;
    answer->format = qcow2 ? "qcow2" : "raw";
    return 0;
}

/* A file as the library has found it. */
static int answer_path(struct node_tree *tree, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    const char *format = request->format;

    list_add(&tree->backing_paths, request->resolved_path);
    answer->path = tree->backing_paths.items[tree->backing_paths.count - 1];
    answer->fd = -1;
    if (format == NULL && request->kind == QCOW2_NODE_BACKING) {
        format = image_probe(answer->path);
        if (format != NULL && node_find_driver(format) == NULL) {
            return refuse(&tree->refusal, -EINVAL, text_format("Unknown driver '%s'", format));
        }
    }
    if (format == NULL || strcmp(format, "raw") == 0 || strcmp(format, "file") == 0) {
        answer->format = "raw";
    } else {
        answer->format = strcmp(format, "qcow2") == 0 ? "qcow2" : NULL;
    }
    return 0;
}

static int resolve(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    struct resolve_state *state = opaque;
    bool backing = request->kind == QCOW2_NODE_BACKING;
    struct node *above = layer(state, backing ? request->depth - 1 : request->depth), *node = NULL;
    bool asked = backing && above != NULL && above->backing_items.count > 0;
    int ret;

    free(state->tree->refusal);
    state->tree->refusal = NULL;
    if (request->resolved_path != NULL && !asked) {
        return answer_path(state->tree, request, answer);
    }
    ret = build_backing(state, above, request, &node);
    if (ret == 0) {
        ret = answer_with(state->tree, node, answer, &state->tree->refusal);
    }
    if (node != NULL && above != NULL && above->backing == NULL) {
        above->backing = node;
    } else if (node != NULL) {
        node->backing = state->tree->spare; /* lives as long as the tree */
        state->tree->spare = node;
    }
    return ret;
}

/* --- opening --- */

static const char *chosen_cache(const struct node *node)
{
    struct cache_mode cache = node->cache;

    if (node->child_count > 0 && node_is_file(node->children[0])) {
        cache.direct = cache.direct || node->children[0]->cache.direct;
        cache.no_flush = cache.no_flush || node->children[0]->cache.no_flush;
    }
    return cache_option(cache);
}

static int open_with(struct node *node, qcow2_open_params *params, const struct string_list *more, qcow2_image **image,
                     char **error)
{
    struct resolve_state state = {node->tree, node};
    struct string_list options = {NULL, 0};
    int ret;

    for (size_t i = 0; i < node->image_options.count; i++) {
        list_add(&options, node->image_options.items[i]);
    }
    for (size_t i = 0; more != NULL && i < more->count; i++) {
        list_add(&options, more->items[i]);
    }
    list_add(&options, chosen_cache(node));
    params->options = list_options(&options);
    params->resolve = resolve;
    params->resolve_opaque = &state;
    params->message = print_message;
    ret = qcow2_open_with(params, image);
    if (ret < 0) {
        *error = node->tree->refusal != NULL ? text_format("Could not open backing file: %s", node->tree->refusal)
                                             : text_copy(failure_text());
    }
    list_free(&options);
    return ret;
}

/* A backing file that the user gives takes the place of one that the image names; the library opens no other. */
static int check_backing_given(struct node *node, qcow2_image *image, char **error)
{
    struct string_list items = {NULL, 0};
    qcow2_info info = {.struct_size = sizeof(info)};
    char *why = NULL;
    int ret;

    if (node->backing_items.count == 0 || node->backing != NULL || qcow2_get_info(image, &info) < 0) {
        return 0;
    }
    for (size_t i = 0; i < node->backing_items.count; i++) {
        list_add(&items, node->backing_items.items[i]);
    }
    ret = node_build(node->tree, &items, NULL, false, &node->backing, &why);
    if (ret == 0 && info.backing_file == NULL) {
        ret = refuse(&why, -ENOTSUP, text_copy("The image names none that it could replace"));
    }
    if (ret < 0 && info.backing_file == NULL) {
        *error = text_format("Could not open backing file: %s", why);
    }
    list_free(&items);
    free(why);
    return info.backing_file == NULL ? ret : 0;
}

/* What can only be said once the image is open, which it is not after an error. */
static int check_options(struct node *node, qcow2_image **image, char **error)
{
    int ret = check_backing_given(node, *image, error);

    if (ret == 0 && node->unknown != NULL) {
        ret = refuse(error, -EINVAL, text_copy(node->unknown));
    }
    if (ret < 0) {
        qcow2_close(*image);
        *image = NULL;
    }
    return ret;
}

static int open_node(struct node *node, uint64_t flags, const struct string_list *options, qcow2_image **image,
                     char **error)
{
    bool format = node->driver->read == NULL && !node_is_file(node);
    struct node *child = format ? node->children[0] : NULL;
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    struct place place;
    int ret;

    if (format && strcmp(node->driver->name, "raw") == 0 && child->driver->read == NULL && !node_is_file(child) &&
        child->image == NULL) {
        ret = open_node(child, flags, options, image, error); /* a raw disk on a disk adds nothing to it */
        return ret == 0 ? check_options(node, image, error) : ret;
    }
    ret = place_of(format ? child : node, node, &place, error);
    if (ret < 0) {
        return ret;
    }
    params.path = place.path;
    params.io = place.io;
    params.io_opaque = place.opaque;
    params.flags = flags | node->flags | QCOW2_OPEN_ALLOW_RECORDED;
    if (child != NULL && node_is_file(child)) {
        params.flags |= child->flags & QCOW2_OPEN_NO_LOCK;
    }
    if (strcmp(node->driver->name, "qcow2") != 0) {
        params.flags |= QCOW2_OPEN_RAW;
    }
    ret = open_with(node, &params, options, image, error);
    return ret == 0 ? check_options(node, image, error) : ret;
}

int node_open_child(struct node *child, char **error)
{
    uint64_t flags = child->tree->flags & (QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_FORCE_SHARE);
    int ret;

    if (child->image != NULL) {
        return 0;
    }
    if (child->ask_read_only) {
        flags |= QCOW2_OPEN_READ_ONLY;
    }
    ret = open_node(child, flags, NULL, &child->image, error);
    child->image_is_child = ret == 0;
    return ret;
}

int node_open_root(struct node *root, uint64_t flags, const struct string_list *options, qcow2_image **image,
                   char **error)
{
    return open_node(root, flags, options, image, error);
}
