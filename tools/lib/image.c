/* From what the user calls an image to an open handle.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "node.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool same(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

static void set_text(char **field, const char *text)
{
    char *copy = text != NULL ? text_copy(text) : NULL;

    free(*field);
    *field = copy;
}

void image_spec_free(struct image_spec *spec)
{
    node_tree_free(spec->tree);
    free(spec->name);
    free(spec->path);
    free(spec->format);
    list_free(&spec->options);
    list_free(&spec->items);
    memset(spec, 0, sizeof(*spec));
}

bool cache_parse(const char *mode, struct cache_mode *cache)
{
    static const struct {
        const char *name;
        struct cache_mode mode;
    } modes[] = {
        {"none", {true, false, false}},       {"off", {true, false, false}},
        {"writeback", {false, false, false}}, {"writethrough", {false, false, true}},
        {"directsync", {true, false, true}},  {"unsafe", {false, true, false}},
    };

    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (same(mode, modes[i].name)) {
            *cache = modes[i].mode;
            return true;
        }
    }
    return false;
}

const char *cache_option(struct cache_mode cache)
{
    if (cache.no_flush) {
        return "cache=unsafe";
    }
    if (cache.direct) {
        return cache.writethrough ? "cache=directsync" : "cache=none";
    }
    return cache.writethrough ? "cache=writethrough" : "cache=writeback";
}

void image_cache(struct image_spec *spec, struct cache_mode cache)
{
    spec->cache = cache;
}

bool image_discard(struct image_spec *spec, const char *mode)
{
    bool unmap = same(mode, "unmap") || same(mode, "on");

    if (!unmap && !same(mode, "ignore") && !same(mode, "off")) {
        return false;
    }
    free(list_take(&spec->options, "discard"));
    list_addf(&spec->options, "discard=%s", unmap ? "unmap" : "ignore");
    return true;
}

bool has_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

bool name_is_file(const char *name)
{
    const struct node_driver *driver = node_find_protocol(name);

    return driver == NULL || driver->needs_filename;
}

char *path_as_name(const char *path)
{
    return text_format("%s%s", has_protocol(path) ? "./" : "", path);
}

void image_items(struct image_spec *spec, const struct string_list *items)
{
    const char *path, *driver;

    for (size_t i = 0; i < items->count; i++) {
        list_add(&spec->items, items->items[i]);
    }
    path = list_value(&spec->items, "file.filename");
    path = path != NULL ? path : list_value(&spec->items, "filename");
    driver = list_value(&spec->items, "driver");
    if (path != NULL) {
        set_text(&spec->path, path);
    }
    if (driver != NULL) {
        set_text(&spec->format, same(driver, "file") ? "raw" : driver);
    }
}

static int from_items(struct image_spec *spec, const char *name, bool json, char **error)
{
    struct string_list items = {NULL, 0};
    int ret = 0;

    if (json) {
        ret = json_flatten(name + 5, &items, error);
    } else {
        split_options(&items, name, true);
        if (list_value(&items, "backing") != NULL && *list_value(&items, "backing") == '\0') {
            warn_report("Use of \"backing\": \"\" is deprecated; use \"backing\": null instead");
        }
    }
    if (ret == 0) {
        image_items(spec, &items);
    }
    list_free(&items);
    return ret;
}

int image_from_name(struct image_spec *spec, const char *name, const char *format, bool image_opts, char **error)
{
    bool json = !image_opts && strncmp(name, "json:", 5) == 0;
    bool protocol = has_protocol(name);
    const struct node_driver *driver = format != NULL ? node_find_driver(format) : NULL;

    set_text(&spec->name, name);
    spec->by_options = image_opts;
    if (format != NULL && driver == NULL) {
        return refuse(error, -EINVAL, text_format("Unknown driver '%s'", format));
    }
    set_text(&spec->format, format);
    if (image_opts || json) {
        int ret = from_items(spec, name, json, error);

        if (ret == 0 && format != NULL) {
            free(list_take(&spec->items, "driver")); /* what is said beside the name counts */
            set_text(&spec->format, format);
        }
        return ret;
    }
    driver = node_find_protocol(name);
    if (driver == NULL) {
        return refuse(error, -EINVAL, text_format("Unknown protocol '%.*s'", (int)strcspn(name, ":"), name));
    }
    spec->bare = true;
    if (protocol && same(driver->name, "file")) {
        name += 5;
        protocol = false;
        if (*name == '\0') {
            return refuse(error, -EINVAL, text_copy("The 'file' block driver requires a file name"));
        }
        free(spec->path);
        spec->path = path_as_name(name);
        return 0;
    }
    if (*name == '\0') {
        return refuse(error, -EINVAL, text_copy("The 'file' block driver requires a file name"));
    }
    set_text(&spec->path, name);
    return 0;
}

int image_target(struct image_spec *spec, const char *name, char **error)
{
    int ret = image_from_name(spec, name, "raw", false, error);
    const struct node_driver *driver = ret == 0 && spec->bare ? node_find_protocol(name) : NULL;

    if (driver != NULL && !driver->needs_filename) {
        return refuse(error, -ENOTSUP,
                      text_format("Protocol driver '%s' does not support image creation", driver->name));
    }
    return ret;
}

void image_warn_guessed(const struct image_spec *spec)
{
    char *name = node_name(spec->tree->root);

    fprintf(stderr,
            "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw images, write operations on block 0"
            " will be restricted.\n"
            "         Specify the 'raw' format explicitly to remove the restrictions.\n",
            name);
    free(name);
}

static int build(struct image_spec *spec, uint64_t flags, char **error)
{
    struct string_list items = {NULL, 0};
    int ret;

    node_tree_free(spec->tree); /* of an earlier open */
    spec->tree = memory_or_exit(calloc(1, sizeof(*spec->tree)));
    spec->tree->flags = flags;
    if (list_value(&spec->options, "snapshot") != NULL) {
        spec->tree->flags |= QCOW2_OPEN_READ_ONLY; /* what is written goes elsewhere */
    }
    spec->tree->cache = spec->cache;
    spec->tree->recorded = spec->recorded;
    spec->tree->writes_below = spec->writes_below;
    for (size_t i = 0; i < spec->items.count; i++) {
        list_add(&items, spec->items.items[i]);
    }
    if (spec->format != NULL && list_value(&items, "driver") == NULL) {
        list_addf(&items, "driver=%s", spec->format);
    }
    ret = node_build(spec->tree, &items, spec->bare ? spec->name : NULL, false, &spec->tree->root, error);
    list_free(&items);
    return ret;
}

/* A disk that is written to has no node that is only read. */
static int check_access(const struct node *node, char **error)
{
    int ret = 0;

    if ((node->flags & QCOW2_OPEN_FORCE_SHARE) != 0) {
        return refuse(error, -EINVAL, text_copy("force-share=on can only be used with read-only images"));
    }
    if (node->ask_read_only) {
        return refuse(error, -EACCES, text_copy("Block node is read-only"));
    }
    for (size_t i = 0; i < node->child_count && ret == 0; i++) {
        ret = check_access(node->children[i], error);
    }
    return ret;
}

int image_open(struct image_spec *spec, uint64_t flags, qcow2_image **image, char **error)
{
    struct node *root, *file;
    int ret;

    if ((flags & QCOW2_OPEN_FORCE_SHARE) != 0 && (flags & QCOW2_OPEN_READ_ONLY) == 0) {
        return refuse(error, -EINVAL, text_copy("force-share=on can only be used with read-only images"));
    }
    ret = build(spec, flags, error);
    if (ret < 0) {
        return ret;
    }
    root = spec->tree->root;
    spec->tree->flags |= root->flags & QCOW2_OPEN_FORCE_SHARE;
    flags |= root->flags;
    if ((flags & QCOW2_OPEN_FORCE_SHARE) != 0 && (flags & QCOW2_OPEN_READ_ONLY) == 0) {
        return refuse(error, -EINVAL, text_copy("force-share=on can only be used with read-only images"));
    }
    if (root->ask_read_only && (flags & QCOW2_OPEN_READ_ONLY) == 0) {
        return refuse(error, -EACCES, text_copy("Block node is read-only"));
    }
    if ((spec->tree->flags & QCOW2_OPEN_READ_ONLY) == 0) {
        ret = check_access(root, error);
        if (ret < 0) {
            return ret;
        }
    }
    root->copies_on_read = list_value(&spec->options, "copy-on-read") != NULL;
    ret = node_open_root(root, flags, &spec->options, image, error);
    spec->cache = root->cache;
    spec->probed_raw = root->probed && same(root->driver->name, "raw");
    file = node_file(root);
    free(spec->path);
    spec->path = file != NULL ? text_copy(file->filename) : node_name(root);
    if (ret == 0 && spec->probed_raw && (flags & QCOW2_OPEN_READ_ONLY) == 0 &&
        list_value(&spec->options, "snapshot") == NULL) {
        image_warn_guessed(spec);
    }
    return ret;
}

/* --- changing options while it is open --- */

/* What names the image cannot change; saying the same again is fine. */
static int check_fixed(struct string_list *items, const char *key, const char *now, char **error)
{
    char *value = list_take(items, key);
    const char *dot = strrchr(key, '.');
    int ret = 0;

    if (value != NULL && (now == NULL || !same(value, now))) {
        ret = refuse(error, -EINVAL, text_format("Cannot change the option '%s'", dot != NULL ? dot + 1 : key));
    }
    free(value);
    return ret;
}

/* What every node takes; a value that is none is refused. */
static int take_general_items(struct string_list *items, char **error)
{
    static const char *const flags[] = {"auto-read-only", "cache.direct", "cache.no-flush"};
    bool ignored;
    int ret = 0;

    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]) && ret == 0; i++) {
        ret = take_flag(items, flags[i], &ignored, error);
    }
    free(list_take(items, "discard"));
    free(list_take(items, "detect-zeroes"));
    return ret;
}

static int cannot_change(const char *item, char **error)
{
    char *key = text_format("%.*s", (int)strcspn(item, "="), item);
    const char *dot = strrchr(key, '.');
    int ret = refuse(error, -EINVAL, text_format("Cannot change the option '%s'", dot != NULL ? dot + 1 : key));

    free(key);
    return ret;
}

/* A file below the image: which one it is stays, and most of how it is open. */
static int check_file(struct string_list *items, const char *driver, const char *path, bool *read_only, char **error)
{
    struct string_list group = {NULL, 0};
    int ret;

    take_group(items, "file", &group);
    ret = check_fixed(&group, "driver", driver, error);
    ret = ret == 0 ? check_fixed(&group, "filename", path, error) : ret;
    ret = ret == 0 ? take_flag(&group, "read-only", read_only, error) : ret;
    ret = ret == 0 ? take_general_items(&group, error) : ret;
    if (ret == 0 && group.count > 0) {
        ret = cannot_change(group.items[0], error);
    }
    list_free(&group);
    return ret;
}

/* The images below stay what they are; options of their format are looked at and no more. */
static int check_backing(qcow2_image *image, struct string_list *items, char **error)
{
    struct string_list group = {NULL, 0};
    char *above = NULL;
    int ret = 0;

    take_group(items, "backing", &group);
    for (uint32_t depth = 1; group.count > 0 && ret == 0; depth++) {
        qcow2_info info = {.struct_size = sizeof(info)};
        struct string_list next = {NULL, 0}, encrypt = {NULL, 0};
        bool ignored = false, qcow2;

        free(above);
        above = qcow2_get_node_info(image, depth - 1, &info) == 0 && info.backing_file != NULL
                    ? text_copy(info.backing_file)
                    : NULL;
        qcow2 = qcow2_get_node_info(image, depth, &info) == 0 && info.version > 0;
        take_group(&group, "backing", &next);
        if (qcow2) {
            take_group(&group, "encrypt", &encrypt);
        }
        ret = check_fixed(&group, "driver", qcow2 ? "qcow2" : "raw", error);
        ret = ret == 0 ? check_file(&group, "file", above, &ignored, error) : ret;
        ret = ret == 0 ? take_flag(&group, "read-only", &ignored, error) : ret;
        ret = ret == 0 ? take_general_items(&group, error) : ret;
        for (size_t i = 0; i < group.count && ret == 0; i++) {
            char *key = text_format("%.*s", (int)strcspn(group.items[i], "="), group.items[i]);

            ret = qcow2 && library_knows(key) ? 0 : cannot_change(group.items[i], error);
            free(key);
        }
        ret = ret == 0 ? encrypt_check(&encrypt, info.crypt_method, error) : ret;
        list_free(&encrypt);
        list_free(&group);
        group = next;
    }
    list_free(&group);
    free(above);
    return ret;
}

static int check_references(struct string_list *items, char **error)
{
    static const char *const keys[] = {"backing", "file", "data-file"};
    int ret = 0;

    for (size_t i = 0; i < 3 && ret == 0; i++) {
        char *reference = list_take(items, keys[i]);

        if (reference != NULL) {
            ret = i < 2 ? refuse(error, -ENODEV, text_format("Cannot find device='' nor node-name='%s'", reference))
                        : cannot_change(keys[i], error);
        }
        free(reference);
    }
    return ret;
}

int image_reopen_options(const struct image_spec *spec, qcow2_image *image, const struct string_list *given,
                         struct reopen_change *change, char **error)
{
    const struct node *root = spec->tree->root;
    const char *below = root->child_count > 0 ? root->children[0]->driver->name : NULL;
    struct string_list items = {NULL, 0}, encrypt = {NULL, 0};
    qcow2_info info = {.struct_size = sizeof(info)};
    bool file_read_only = false;
    int ret;

    for (size_t i = 0; i < given->count; i++) {
        list_add(&items, given->items[i]);
    }
    if (same(root->driver->name, "qcow2")) {
        take_group(&items, "encrypt", &encrypt); /* the cipher stays what it is */
    }
    ret = check_fixed(&items, "driver", root->driver->name, error);
    ret = ret == 0 ? check_fixed(&items, "node-name", NULL, error) : ret;
    ret = ret == 0 ? check_fixed(&items, "force-share", NULL, error) : ret;
    ret = ret == 0 ? check_file(&items, below, spec->path, &file_read_only, error) : ret;
    ret = ret == 0 ? check_backing(image, &items, error) : ret;
    ret = ret == 0 ? check_references(&items, error) : ret;
    ret = ret == 0 ? node_reopen_options(root, &items, change, error) : ret;
    if (ret == 0 && qcow2_get_info(image, &info) == 0) {
        ret = encrypt_check(&encrypt, info.crypt_method, error);
    }
    change->read_only = change->read_only || file_read_only;
    list_free(&items);
    list_free(&encrypt);
    return ret;
}
