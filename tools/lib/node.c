/* Building the tree of nodes.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "node.h"

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
    } else if ((filename != NULL || group.count > 0) && node->child_count == NODE_CHILD_LIMIT) {
        ret = refuse(error, -EINVAL, text_copy("Too many children"));
    } else if (filename != NULL || group.count > 0) {
        ret = node_build(node->tree, &group, filename, protocol, &child, error);
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

bool node_is_read_only(const struct node *node)
{
    return (node->tree->flags & QCOW2_OPEN_READ_ONLY) != 0 || node->read_only;
}

struct node *node_file(struct node *node)
{
    while (node != NULL && node->driver != NULL && !node->driver->needs_filename) {
        node = node->child_count > 0 ? node->children[0] : NULL;
    }
    return node;
}

char *node_no_directory(const struct node *node)
{
    while (!node->driver->needs_filename && node->child_count > 0) {
        node = node->children[0];
    }
    if (node->driver->needs_filename) {
        return NULL;
    }
    return text_format("Cannot generate a base directory for %s nodes",
                       same(node->driver->name, "nbd") ? "NBD" : node->driver->name);
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
    list_free(&node->encrypt);
    pthread_mutex_destroy(&node->end_lock);
    pthread_mutex_destroy(&node->flush_lock);
    pthread_mutex_destroy(&node->flight_lock);
    pthread_cond_destroy(&node->landed);
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

/* What is left is the library's, or unknown: an error once all else is well, which for an image is when it is open. */
static int take_rest(struct node *node, struct string_list *items, char **error)
{
    bool qcow2 = same(node->driver->name, "qcow2"), later = node->driver->read == NULL && !node->driver->protocol;
    char *unknown = NULL;

    for (size_t i = 0; i < items->count && unknown == NULL; i++) {
        char *key = text_format("%.*s", (int)strcspn(items->items[i], "="), items->items[i]);

        if (qcow2 && library_knows(key)) {
            list_add(&node->image_options, items->items[i]);
        } else {
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
        for (size_t i = 0; i < node->backing_items.count; i++) {
            list_addf(items, "backing.%s", node->backing_items.items[i]); /* which nothing takes */
        }
        list_free(&node->backing_items);
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
    ret = ret == 0 ? node_take_general(node, items, error) : ret;
    if (ret == 0 && format && node->child_count == 0) {
        ret = refuse(error, -EINVAL, text_copy("A block device must be specified for \"file\""));
    }
    if (ret == 0 && node->driver->needs_filename) {
        node->filename = list_take(items, "filename");
        if (node->filename == NULL || *node->filename == '\0') {
            ret = refuse(error, -EINVAL, text_format("The '%s' block driver requires a file name", node->driver->name));
        }
        ret = ret == 0 ? node_take_file_options(node, items, error) : ret;
        ret = ret == 0 ? check_exists(node->filename, error) : ret;
    }
    if (ret == 0 && same(node->driver->name, "qcow2")) {
        take_group(items, "encrypt", &node->encrypt);
        ret = take_backing(node, items, error);
    }
    if (ret == 0 && node->driver->open != NULL) {
        ret = node->driver->open(node, items, error);
    }
    return ret == 0 ? take_rest(node, items, error) : ret;
}

int node_enter(struct node_tree *tree, char **error)
{
    if (tree->depth == NODE_DEPTH_LIMIT || tree->made > NODE_LIMIT) {
        return refuse(error, -ELOOP, text_copy("Images and nodes are nested too deep, or are too many"));
    }
    tree->depth++;
    return 0;
}

void node_leave(struct node_tree *tree)
{
    tree->depth--;
}

static int build(struct node *node, struct string_list *items, const char *filename, bool protocol, char **error)
{
    int ret = node_enter(node->tree, error);

    if (ret < 0) {
        return ret;
    }
    if (filename != NULL && starts_with(filename, "json:")) {
        ret = json_flatten(filename + 5, items, error);
        filename = NULL;
    }
    ret = ret == 0 ? choose_driver(node, items, filename, protocol, error) : ret;
    ret = ret == 0 ? fill(node, items, filename, error) : ret;
    node_leave(node->tree);
    return ret;
}

static struct node *make(struct node_tree *tree)
{
    struct node *made = memory_or_exit(calloc(1, sizeof(*made)));

    made->tree = tree;
    made->cache = tree->cache;
    made->recorded = tree->recorded;
    made->read_only = tree->read_only;
    tree->made++;
    pthread_mutex_init(&made->end_lock, NULL);
    pthread_mutex_init(&made->flush_lock, NULL);
    pthread_mutex_init(&made->flight_lock, NULL);
    pthread_cond_init(&made->landed, NULL);
    return made;
}

int node_build(struct node_tree *tree, struct string_list *items, const char *filename, bool protocol,
               struct node **node, char **error)
{
    struct node *made = make(tree);
    int ret = build(made, items, filename, protocol, error);

    if (ret < 0) {
        node_free(made);
        return ret;
    }
    *node = made;
    return 0;
}

struct node *node_over(struct node *child)
{
    struct node *made = make(child->tree);

    made->driver = node_find_driver("raw");
    made->recorded = child->recorded;
    made->read_only = child->read_only;
    made->child_names[0] = text_copy("file");
    made->children[0] = child;
    made->child_count = 1;
    return made;
}
