/* Building the tree of nodes.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "node.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool same(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

static bool starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

/* --- taking items apart --- */

int take_size(struct string_list *items, const char *key, uint64_t *value, char **error)
{
    char *text = list_take(items, key);
    int ret = text != NULL ? parse_size(text, value) : 0;

    if (ret == -ERANGE) {
        *error = text_format("Value '%s' is out of range for parameter '%s'", text, key);
    } else if (ret < 0) {
        *error = text_format("Parameter '%s' expects a non-negative number below 2^64\n"
                             "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                             "and exabytes, respectively.",
                             key);
    }
    free(text);
    return ret < 0 ? -EINVAL : 0;
}

int take_flag(struct string_list *items, const char *key, bool *value, char **error)
{
    char *text = list_take(items, key);
    int ret = text != NULL ? parse_bool(text, value) : 0;

    free(text);
    return ret < 0 ? refuse(error, ret, text_format("Parameter '%s' expects 'on' or 'off'", key)) : 0;
}

void take_group(struct string_list *items, const char *prefix, struct string_list *group)
{
    size_t length = strlen(prefix), kept = 0;

    for (size_t i = 0; i < items->count; i++) {
        if (strncmp(items->items[i], prefix, length) == 0 && items->items[i][length] == '.') {
            list_add(group, items->items[i] + length + 1);
            free(items->items[i]);
        } else {
            items->items[kept++] = items->items[i];
        }
    }
    items->count = kept;
    if (items->items != NULL) {
        items->items[kept] = NULL;
    }
}

/* --- options that every node has --- */

static int one_of(struct string_list *items, const char *key, const char *const *allowed, char **error)
{
    char *value = list_take(items, key);
    int ret = 0;

    for (size_t i = 0; value != NULL && (allowed[i] == NULL || !same(value, allowed[i])); i++) {
        if (allowed[i] == NULL) {
            ret = refuse(error, -EINVAL, text_format("invalid parameter value: %s", value));
            break;
        }
    }
    if (ret == 0 && value != NULL) {
        list_addf(items, "%s=%s", key, value);
    }
    free(value);
    return ret;
}

static int take_name(struct node *node, struct string_list *items, char **error)
{
    char *name = list_take(items, "node-name");
    size_t i = 0;
    int ret = 0;

    if (name == NULL) {
        return 0;
    }
    if (isalpha((unsigned char)name[0])) {
        while (isalnum((unsigned char)name[i]) || (name[i] != '\0' && strchr("-._", name[i]) != NULL)) {
            i++;
        }
    }
    if (i == 0 || name[i] != '\0') {
        ret = refuse(error, -EINVAL, text_format("Invalid node-name: '%s'", name));
    } else if (list_value(&node->tree->names, name) != NULL) {
        ret = refuse(error, -EINVAL, text_format("Duplicate nodes with node-name='%s'", name));
    } else {
        list_addf(&node->tree->names, "%s=", name);
    }
    free(name);
    return ret;
}

static int take_discard(struct node *node, struct string_list *items, char **error)
{
    char *mode = list_take(items, "discard");
    bool unmap = mode != NULL && (same(mode, "unmap") || same(mode, "on"));
    int ret = 0;

    if (mode != NULL && !unmap && !same(mode, "ignore") && !same(mode, "off")) {
        ret = refuse(error, -EINVAL, text_copy("Invalid discard option"));
    } else if (mode != NULL) {
        list_addf(&node->image_options, "discard=%s", unmap ? "unmap" : "ignore");
    }
    free(mode);
    return ret;
}

static int take_general(struct node *node, struct string_list *items, char **error)
{
    static const char *const detect[] = {"off", "on", "unmap", NULL};
    bool share = false, ignored;
    char *zeroes;

    if (take_name(node, items, error) < 0 || take_flag(items, "read-only", &node->ask_read_only, error) < 0 ||
        take_flag(items, "auto-read-only", &ignored, error) < 0 || take_flag(items, "force-share", &share, error) < 0 ||
        take_flag(items, "cache.direct", &node->cache.direct, error) < 0 ||
        take_flag(items, "cache.no-flush", &node->cache.no_flush, error) < 0 ||
        one_of(items, "detect-zeroes", detect, error) < 0 || take_discard(node, items, error) < 0) {
        return -EINVAL;
    }
    node->flags |= share ? QCOW2_OPEN_FORCE_SHARE : 0;
    zeroes = list_take(items, "detect-zeroes");
    if (zeroes != NULL) {
        list_addf(&node->image_options, "detect-zeroes=%s", zeroes);
        free(zeroes);
    }
    return 0;
}

static int take_file_options(struct node *node, struct string_list *items, char **error)
{
    static const char *const locking[] = {"auto", "on", "off", NULL};
    static const char *const aio[] = {"threads", "native", "io_uring", NULL};
    static const char *const ignored[] = {"aio", "aio-max-batch", "pr-manager", "drop-cache", "x-check-cache-dropped"};
    char *lock;

    if (one_of(items, "locking", locking, error) < 0 || one_of(items, "aio", aio, error) < 0) {
        return -EINVAL;
    }
    lock = list_take(items, "locking");
    if (lock != NULL && same(lock, "off")) {
        node->flags |= QCOW2_OPEN_NO_LOCK;
    }
    free(lock);
    for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++) {
        free(list_take(items, ignored[i]));
    }
    return 0;
}

/* --- children --- */

struct node *node_child(const struct node *node, const char *name)
{
    for (size_t i = 0; i < node->child_count; i++) {
        if (same(node->child_names[i], name)) {
            return node->children[i];
        }
    }
    return NULL;
}

int node_build_child(struct node *node, struct string_list *items, const char *name, const char *filename,
                     bool protocol, char **error)
{
    struct string_list group = {NULL, 0};
    char *reference = list_take(items, name);
    struct node *child = NULL;
    int ret = 0;

    take_group(items, name, &group);
    if (reference != NULL && (filename != NULL || group.count > 0)) {
        ret = refuse(error, -EINVAL,
                     text_copy("Cannot reference an existing block device with additional options or a new filename"));
    } else if (reference != NULL) {
        ret = refuse(error, -ENODEV, text_format("Cannot find device='%s' nor node-name='%s'", reference, reference));
    } else if (filename != NULL || group.count > 0) {
        ret = node_build(node->tree, &group, filename, protocol, &child, error);
    }
    if (ret == 0 && child != NULL && node->child_count == NODE_CHILD_LIMIT) {
        ret = refuse(error, -EINVAL, text_copy("Too many children"));
    }
    if (ret == 0 && child != NULL) {
        child->cache.writethrough = false; /* a matter of the node that the guest writes to */
        node->child_names[node->child_count] = text_copy(name);
        node->children[node->child_count++] = child;
    }
    list_free(&group);
    free(reference);
    return ret;
}

struct node *node_file(struct node *node)
{
    while (node != NULL && node->driver != NULL && !node->driver->needs_filename) {
        node = node->child_count > 0 ? node->children[0] : NULL;
    }
    return node;
}

char *node_name(const struct node *node)
{
    while (node->filename == NULL && node->child_count > 0) {
        node = node->children[0];
    }
    return text_copy(node->filename != NULL ? node->filename : "");
}

/* --- building --- */

static void node_free(struct node *node)
{
    if (node == NULL) {
        return;
    }
    if (node->image_is_child) {
        qcow2_close(node->image);
    }
    if (node->driver != NULL && node->driver->free_state != NULL) {
        node->driver->free_state(node);
    }
    for (size_t i = 0; i < node->child_count; i++) {
        node_free(node->children[i]);
        free(node->child_names[i]);
    }
    node_free(node->backing);
    list_free(&node->backing_items);
    list_free(&node->image_options);
    pthread_mutex_destroy(&node->end_lock);
    free(node->filename);
    free(node->unknown);
    free(node);
}

void node_tree_free(struct node_tree *tree)
{
    if (tree != NULL) {
        node_free(tree->root);
        node_free(tree->spare);
        list_free(&tree->names);
        list_free(&tree->backing_paths);
        free(tree->refusal);
        free(tree);
    }
}

static int unknown_driver(const char *name, char **error)
{
    return refuse(error, -EINVAL, text_format("Unknown driver '%s'", name));
}

/* Which driver, and a file name among the items where it takes one. */
static int choose_driver(struct node *node, struct string_list *items, const char *filename, bool protocol,
                         char **error)
{
    char *name = list_take(items, "driver");
    const char *given = filename;
    int ret = 0;

    node->driver = name != NULL ? node_find_driver(name) : NULL;
    if (name != NULL && node->driver == NULL) {
        ret = unknown_driver(name, error);
        free(name);
        return ret;
    }
    free(name);
    protocol = node->driver != NULL ? node->driver->protocol : protocol;
    if (!protocol) {
        return 0;
    }
    if (given != NULL && list_value(items, "filename") != NULL) {
        return refuse(error, -EINVAL, text_copy("Can't specify 'file' and 'filename' options at the same time"));
    }
    given = given != NULL ? given : list_value(items, "filename");
    if (node->driver == NULL && given == NULL) {
        return refuse(error, -EINVAL, text_copy("Must specify either driver or file"));
    }
    if (node->driver == NULL) {
        /* Only a bare name may have a protocol before it. */
        node->driver = filename != NULL ? node_find_protocol(given) : node_find_driver("file");
        if (node->driver == NULL) {
            return refuse(error, -EINVAL, text_format("Unknown protocol '%.*s'", (int)strcspn(given, ":"), given));
        }
    }
    if (filename != NULL && node->driver->parse_filename != NULL) {
        return node->driver->parse_filename(filename, items, error);
    }
    if (filename != NULL) {
        list_addf(items, "filename=%s", filename);
    }
    return 0;
}

bool library_knows(const char *key)
{
    qcow2_option_info info;

    if (same(key, "cache")) {
        return false; /* spelled cache.direct and cache.no-flush here */
    }
    for (size_t i = 0; memset(&info, 0, sizeof(info)), info.struct_size = sizeof(info),
                qcow2_option_list(QCOW2_SCOPE_OPEN, i, &info) == 0;
         i++) {
        if (same(key, info.name)) {
            return true;
        }
    }
    return false;
}

/* What is left is the library's, or unknown: an error once all else is well, which for an image is when it is open. */
static int take_rest(struct node *node, struct string_list *items, char **error)
{
    bool qcow2 = same(node->driver->name, "qcow2"), later = node->driver->read == NULL && !node->driver->protocol;
    char *unknown = NULL;

    for (size_t i = 0; i < items->count && unknown == NULL; i++) {
        char *key = text_format("%.*s", (int)strcspn(items->items[i], "="), items->items[i]);

        if (qcow2 && library_knows(key)) {
            list_add(&node->image_options, items->items[i]);
        } else if (!qcow2 || strncmp(key, "encrypt.", 8) != 0) {
            unknown = node->driver->protocol
                          ? text_format("Block protocol '%s' doesn't support the option '%s'", node->driver->name, key)
                          : text_format("Block format '%s' does not support the option '%s'", node->driver->name, key);
        }
        free(key);
    }
    node->unknown = later ? unknown : NULL;
    return unknown != NULL && !later ? refuse(error, -EINVAL, unknown) : 0;
}

static int take_backing(struct node *node, struct string_list *items, char **error)
{
    char *reference = list_take(items, "backing");
    int ret = 0;

    take_group(items, "backing", &node->backing_items);
    if (reference != NULL && *reference == '\0') {
        node->flags |= QCOW2_OPEN_NO_BACKING;
    } else if (reference != NULL) {
        ret = refuse(error, -ENODEV,
                     text_format("Could not open backing file: Cannot find device='%s' nor node-name='%s'", reference,
                                 reference));
    }
    free(reference);
    return ret;
}

static int check_exists(const char *path, char **error)
{
    struct stat status;

    if (stat(path, &status) < 0) {
        int code = errno;

        return refuse(error, -code, text_format("Could not open '%s': %s", path, strerror(code)));
    }
    return 0;
}

/* The file below, the format where it is guessed, and all options. */
static int fill(struct node *node, struct string_list *items, const char *filename, char **error)
{
    bool format = node->driver == NULL || !node->driver->protocol;
    int ret = 0;

    if (format) {
        ret = node_build_child(node, items, "file", filename, true, error);
    }
    if (ret == 0 && node->driver == NULL && node->child_count == 0) {
        ret = refuse(error, -EINVAL, text_copy("Must specify either driver or file"));
    }
    if (ret == 0 && node->driver == NULL) {
        const char *name = node_probe(node->children[0], error);

        node->driver = name != NULL ? node_find_driver(name) : NULL;
        node->probed = true;
        if (node->driver == NULL) {
            ret = name != NULL ? unknown_driver(name, error) : -EIO;
        }
    }
    ret = ret == 0 ? take_general(node, items, error) : ret;
    if (ret == 0 && format && node->child_count == 0) {
        ret = refuse(error, -EINVAL, text_copy("A block device must be specified for \"file\""));
    }
    if (ret == 0 && node->driver->needs_filename) {
        node->filename = list_take(items, "filename");
        if (node->filename == NULL || *node->filename == '\0') {
            ret = refuse(error, -EINVAL, text_format("The '%s' block driver requires a file name", node->driver->name));
        }
        ret = ret == 0 ? take_file_options(node, items, error) : ret;
        ret = ret == 0 ? check_exists(node->filename, error) : ret;
    }
    if (ret == 0 && same(node->driver->name, "qcow2")) {
        ret = take_backing(node, items, error);
    }
    if (ret == 0 && node->driver->open != NULL) {
        ret = node->driver->open(node, items, error);
    }
    return ret == 0 ? take_rest(node, items, error) : ret;
}

int node_build(struct node_tree *tree, struct string_list *items, const char *filename, bool protocol,
               struct node **node, char **error)
{
    struct node *made = memory_or_exit(calloc(1, sizeof(*made)));
    bool json = filename != NULL && starts_with(filename, "json:");
    int ret = 0;

    made->tree = tree;
    made->cache = tree->cache;
    pthread_mutex_init(&made->end_lock, NULL);
    if (json) {
        ret = json_flatten(filename + 5, items, error);
        filename = NULL;
    }
    ret = ret == 0 ? choose_driver(made, items, filename, protocol, error) : ret;
    ret = ret == 0 ? fill(made, items, filename, error) : ret;
    if (ret < 0) {
        node_free(made);
        return ret;
    }
    *node = made;
    return 0;
}

int node_reopen_options(const struct node *node, struct string_list *items, struct reopen_change *change, char **error)
{
    struct node_tree tree = {.root = NULL};
    struct node scratch = {.driver = node->driver, .tree = &tree, .cache = change->cache};
    int ret = take_general(&scratch, items, error);

    for (size_t i = 0; i < items->count && ret == 0; i++) {
        char *key = text_format("%.*s", (int)strcspn(items->items[i], "="), items->items[i]);

        if (same(node->driver->name, "qcow2") && strncmp(key, "encrypt.", 8) == 0) {
            /* The cipher stays what it is. */
        } else if (same(node->driver->name, "qcow2") && library_knows(key)) {
            list_add(&scratch.image_options, items->items[i]);
        } else {
            ret = refuse(error, -EINVAL, text_format("Cannot change the option '%s'", key));
        }
        free(key);
    }
    change->cache = scratch.cache;
    change->read_only = scratch.ask_read_only;
    change->options = scratch.image_options;
    list_free(&tree.names);
    return ret;
}
