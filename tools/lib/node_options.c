/* The options of nodes.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "node.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool same(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
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

int node_take_general(struct node *node, struct string_list *items, char **error)
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

int node_take_file_options(struct node *node, struct string_list *items, char **error)
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

int node_reopen_options(const struct node *node, struct string_list *items, struct reopen_change *change, char **error)
{
    struct node_tree tree = {.root = NULL};
    struct node scratch = {.driver = node->driver, .tree = &tree, .cache = change->cache};
    int ret = node_take_general(&scratch, items, error);

    for (size_t i = 0; i < items->count && ret == 0; i++) {
        char *key = text_format("%.*s", (int)strcspn(items->items[i], "="), items->items[i]);

        if (same(node->driver->name, "qcow2") && library_knows(key)) {
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
