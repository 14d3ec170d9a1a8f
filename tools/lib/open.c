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
    struct node *layers[NODE_DEPTH_LIMIT + 1]; /* by depth; NULL: the library has opened it by itself */
};

static struct node *layer(const struct resolve_state *state, int depth)
{
    return depth <= NODE_DEPTH_LIMIT ? state->layers[depth] : NULL;
}

/* Whether a recorded name is relative to nothing; then with *why. */
static bool no_directory(const struct node *node, const char *recorded, char **why)
{
    bool relative = *recorded != '/' && !has_protocol(recorded);

    *why = relative && node != NULL ? node_no_directory(node) : NULL;
    return *why != NULL;
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

struct builder {
    struct node_tree *tree;
    bool recorded;  /* an image has a part in the items or the name */
    bool read_only; /* nobody writes to the node */
};

static int build_as(struct builder as, struct string_list *items, const char *name, bool protocol, struct node **node,
                    char **error)
{
    struct node_tree *tree = as.tree;
    bool recorded = tree->recorded, read_only = tree->read_only;
    int ret;

    tree->recorded = as.recorded;
    tree->read_only = as.read_only && !tree->writes_below;
    ret = node_build(tree, items, name, protocol, node, error);
    tree->recorded = recorded;
    tree->read_only = read_only;
    return ret;
}

/* Whether options say what an answer to the library cannot: then the node is opened by itself, and read through. */
static bool says_more(const struct node *node)
{
    return node->driver->read == NULL && !node_is_file(node) &&
           ((node->flags & QCOW2_OPEN_NO_BACKING) != 0 || list_value(&node->image_options, "data-file") != NULL);
}

/* Whether it is a format on a file, with nothing between. */
static bool is_straight(const struct node *node)
{
    return node->driver->read == NULL && node->child_count > 0 && node_is_file(node->children[0]);
}

/* What the image above records about it: items, and a name, allocated, or NULL. */
static int name_backing(struct resolve_state *state, struct node *above, const qcow2_resolve_request *request,
                        struct string_list *items, char **name)
{
    char **why = &state->tree->refusal;
    int ret = 0;

    if (request->resolved_path != NULL) {
        *name = path_as_name(request->resolved_path);
    } else if (strncmp(request->recorded_name, "json:", 5) == 0) {
        ret = json_flatten(request->recorded_name + 5, items, why);
    } else if (no_directory(above, request->recorded_name, why)) {
        state->tree->refusal_alone = true;
        return -EINVAL;
    } else {
        *name = seen_from_here(above, request->recorded_name);
    }
    if (request->format != NULL) {
        free(list_take(items, "driver")); /* what is said beside the name counts */
        list_addf(items, "driver=%s", request->format);
    }
    return ret;
}

/* Builds the node of a backing file that is not a plain file name, or that options say something about. */
static int build_backing(struct resolve_state *state, struct node *above, const qcow2_resolve_request *request,
                         struct node **backing)
{
    struct string_list items = {NULL, 0};
    bool named = above != NULL && (list_value(&above->backing_items, "file.filename") != NULL ||
                                   list_value(&above->backing_items, "file.driver") != NULL);
    char *name = NULL;
    int ret = 0;

    if (!named) {
        ret = name_backing(state, above, request, &items, &name);
    }
    for (size_t i = 0; above != NULL && i < above->backing_items.count; i++) {
        list_add(&items, above->backing_items.items[i]); /* what is last counts */
    }
    if (ret < 0) {
        list_free(&items);
        return ret;
    }
    ret = build_as((struct builder){state->tree, !named || above->recorded, true}, &items, name, false, backing,
                   &state->tree->refusal);
    list_free(&items);
    free(name);
    if (ret == 0 && (*backing)->unknown != NULL) {
        return refuse(&state->tree->refusal, -EINVAL, text_copy((*backing)->unknown));
    }
    if (ret == 0 && says_more(*backing)) {
        *backing = node_over(*backing);
    }
    return ret;
}

/* A data file whose name is no path: what is said about backing files is not for it. */
static int build_data_file(struct resolve_state *state, const qcow2_resolve_request *request, struct node **node)
{
    struct string_list items = {NULL, 0};
    struct builder as = {state->tree, true, state->layers[0]->read_only || request->depth > 0};
    int ret = build_as(as, &items, request->recorded_name, true, node, &state->tree->refusal);

    list_free(&items);
    if (ret == 0 && node_file(*node) != *node && (strcmp((*node)->driver->name, "raw") != 0 || !is_straight(*node))) {
        ret = refuse(&state->tree->refusal, -ENOTSUP,
                     text_format("A data file by the driver '%s' is not supported", (*node)->driver->name));
    }
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

static int resolve_by_node(struct resolve_state *state, struct node *above, const qcow2_resolve_request *request,
                           qcow2_resolve_answer *answer)
{
    bool backing = request->kind == QCOW2_NODE_BACKING;
    struct node *node = NULL;
    int ret = node_enter(state->tree, &state->tree->refusal);

    if (ret < 0) {
        return ret;
    }
    ret = backing ? build_backing(state, above, request, &node) : build_data_file(state, request, &node);
    if (ret == 0) {
        ret = answer_with(state->tree, node, answer, &state->tree->refusal);
    }
    if (node != NULL && backing && request->depth <= NODE_DEPTH_LIMIT) {
        state->layers[request->depth] = node;
    }
    if (node != NULL && backing && above != NULL && above->backing == NULL) {
        above->backing = node;
    } else if (node != NULL) {
        node->backing = state->tree->spare; /* lives as long as the tree */
        state->tree->spare = node;
    }
    node_leave(state->tree);
    return ret;
}

static int resolve(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    struct resolve_state *state = opaque;
    bool backing = request->kind == QCOW2_NODE_BACKING;
    struct node *above = layer(state, backing ? request->depth - 1 : request->depth);
    int ret;

    free(state->tree->refusal);
    state->tree->refusal = NULL;
    state->tree->refusal_alone = false;
    if (request->resolved_path != NULL && !(backing && above != NULL && above->backing_items.count > 0)) {
        ret = answer_path(state->tree, request, answer);
    } else {
        ret = resolve_by_node(state, above, request, answer);
    }
    if (ret < 0 && ret != -ELOOP && backing && state->tree->refusal != NULL && !state->tree->refusal_alone) {
        state->tree->refusal = backing_failure(request->depth - 1, state->tree->refusal);
    }
    return ret;
}

bool node_tells_offsets(const struct node_tree *tree, int depth)
{
    const struct node *node = depth > 0 && depth <= NODE_DEPTH_LIMIT ? tree->layers[depth] : NULL;

    return node == NULL || node_is_file(node) || is_straight(node);
}

/* --- opening --- */

static int64_t give_secret(void *opaque, const qcow2_secret_request *request, void *buffer, size_t room)
{
    struct resolve_state *state = opaque;
    const struct node *node = layer(state, request->depth);
    char *why = NULL;
    int64_t ret = -ENOKEY;

    if (node != NULL) {
        ret = encrypt_secret(&node->encrypt, (uint32_t)request->encryption, buffer, room, &why);
    }
    if (why != NULL) {
        free(state->tree->refusal);
        state->tree->refusal = backing_failure(request->depth, why);
        state->tree->refusal_alone = true;
    }
    return ret;
}

static const char *chosen_cache(const struct node *node)
{
    struct cache_mode cache = node->cache;

    if (node->child_count > 0 && node_is_file(node->children[0])) {
        cache.direct = cache.direct || node->children[0]->cache.direct;
        cache.no_flush = cache.no_flush || node->children[0]->cache.no_flush;
    }
    return cache_option(cache);
}

static const char backing_failed[] = "Could not open backing file: ",
                  names_none[] = "The image names none that it could replace";

/* Nobody gives a backing file to an image below that names none. */
static int check_layers(const struct resolve_state *state, qcow2_image **image, char **error)
{
    int ret = encrypt_check_layers(state->layers, *image, error);

    if (ret < 0) {
        qcow2_close(*image);
        *image = NULL;
        return ret;
    }
    for (int depth = 1; depth < NODE_DEPTH_LIMIT; depth++) {
        const struct node *node = state->layers[depth];

        if (node != NULL && node->backing_items.count > 0 && state->layers[depth + 1] == NULL) {
            qcow2_close(*image);
            *image = NULL;
            return refuse(error, -ENOTSUP, text_format("%s%s", backing_failed, names_none));
        }
    }
    return 0;
}

static int open_with(struct node *node, qcow2_open_params *params, const struct string_list *more, qcow2_image **image,
                     char **error)
{
    struct resolve_state state = {.tree = node->tree, .layers = {node}};
    struct string_list options = {NULL, 0};
    char *refusal;
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
    params->secret = give_secret;
    params->secret_opaque = &state;
    ret = qcow2_open_with(params, image);
    list_free(&options);
    if (ret == 0) {
        if (node->tree->depth == 0) {
            memcpy(node->tree->layers, state.layers, sizeof(state.layers));
        }
        return check_layers(&state, image, error);
    }
    refusal = node->tree->refusal;
    node->tree->refusal = NULL;
    *error = refusal == NULL
                 ? text_copy(failure_text())
                 : text_format("%s%s", node->tree->refusal_alone || ret == -ELOOP ? "" : backing_failed, refusal);
    free(refusal);
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
    ret = build_as((struct builder){node->tree, node->recorded, true}, &items, NULL, false, &node->backing, &why);
    if (ret == 0 && info.backing_file == NULL) {
        ret = refuse(&why, -ENOTSUP, text_copy(names_none));
    }
    if (ret < 0 && info.backing_file == NULL) {
        *error = text_format("%s%s", backing_failed, why);
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
        struct string_list both = {NULL, 0};

        for (size_t i = 0; i < node->image_options.count; i++) {
            list_add(&both, node->image_options.items[i]);
        }
        for (size_t i = 0; options != NULL && i < options->count; i++) {
            list_add(&both, options->items[i]);
        }
        ret = open_node(child, flags | node->flags, &both, image, error); /* a raw disk on a disk adds nothing to it */
        list_free(&both);
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
        params.flags |= child->flags & (QCOW2_OPEN_NO_LOCK | QCOW2_OPEN_FORCE_SHARE);
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
    if (child->ask_read_only || child->read_only) {
        flags |= QCOW2_OPEN_READ_ONLY;
    }
    ret = node_enter(child->tree, error);
    if (ret == 0) {
        ret = open_node(child, flags, NULL, &child->image, error);
        child->image_is_child = ret == 0;
        node_leave(child->tree);
    }
    return ret;
}

int node_open_root(struct node *root, uint64_t flags, const struct string_list *options, qcow2_image **image,
                   char **error)
{
    return open_node(root, flags, options, image, error);
}
