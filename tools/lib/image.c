/* From what the user calls an image to an open handle.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "common.h"
#include "json_options.h"

#include <ctype.h>
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
    free(*field);
    *field = text != NULL ? text_copy(text) : NULL;
}

void image_spec_free(struct image_spec *spec)
{
    free(spec->name);
    free(spec->path);
    free(spec->format);
    free(spec->backing_path);
    free(spec->backing_format);
    list_free(&spec->options);
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

static int flag_option(const char *key, const char *value, bool *result, char **error)
{
    if (parse_bool(value, result) == 0) {
        return 0;
    }
    return refuse(error, -EINVAL, text_format("Parameter '%s' expects 'on' or 'off'", key));
}

static int flag_bit_option(const char *key, const char *value, uint64_t bit, uint64_t *flags, char **error)
{
    bool on = false;
    int ret = flag_option(key, value, &on, error);

    if (ret == 0) {
        *flags = on ? *flags | bit : *flags & ~bit;
    }
    return ret;
}

static int node_name_option(const char *value, char **error)
{
    size_t i = 0;

    if (isalpha((unsigned char)value[0])) {
        while (isalnum((unsigned char)value[i]) || (value[i] != '\0' && strchr("-._", value[i]) != NULL)) {
            i++;
        }
    }
    if (i == 0 || value[i] != '\0') {
        return refuse(error, -EINVAL, text_format("Invalid node-name: '%s'", value));
    }
    return 0;
}

static int one_of(const char *value, const char *const *allowed, char **error)
{
    for (size_t i = 0; allowed[i] != NULL; i++) {
        if (same(value, allowed[i])) {
            return 0;
        }
    }
    return refuse(error, -EINVAL, text_format("invalid parameter value: %s", value));
}

/* Options of the file below the image. */
static int file_option(struct image_spec *spec, const char *key, const char *value, char **error)
{
    static const char *const locking[] = {"auto", "on", "off", NULL};
    static const char *const aio[] = {"threads", "native", "io_uring", NULL};
    bool ignored;
    int ret;

    if (same(key, "locking")) {
        ret = one_of(value, locking, error);
        if (ret == 0 && same(value, "off")) {
            spec->flags |= QCOW2_OPEN_NO_LOCK;
        }
        return ret;
    }
    if (same(key, "aio")) {
        return one_of(value, aio, error);
    }
    if (same(key, "node-name")) {
        return node_name_option(value, error);
    }
    if (same(key, "cache.direct")) {
        return flag_option(key, value, &spec->cache.direct, error);
    }
    if (same(key, "cache.no-flush")) {
        return flag_option(key, value, &spec->cache.no_flush, error);
    }
    if (same(key, "read-only") || same(key, "auto-read-only") || same(key, "force-share")) {
        return flag_option(key, value, &ignored, error);
    }
    return refuse(error, -EINVAL, text_format("Block protocol 'file' doesn't support the option '%s'", key));
}

static int backing_option(struct image_spec *spec, const char *key, const char *value, char **error)
{
    if (same(key, "driver")) {
        set_text(&spec->backing_format, value);
    } else if (same(key, "file.filename")) {
        set_text(&spec->backing_path, value);
    } else if (!same(key, "file.driver") && !same(key, "node-name") && !same(key, "file.node-name")) {
        return refuse(error, -ENOTSUP, text_format("The option 'backing.%s' is not supported", key));
    }
    return 0;
}

static int data_file_option(struct image_spec *spec, const char *key, const char *value, char **error)
{
    if (same(key, "filename")) {
        free(list_take(&spec->options, "data-file"));
        list_addf(&spec->options, "data-file=%s", value);
    } else if (same(key, "driver") && !same(value, "file")) {
        return refuse(error, -EINVAL, text_format("Unknown driver '%s'", value));
    } else if (!same(key, "driver") && !same(key, "node-name")) {
        return refuse(error, -ENOTSUP, text_format("The option 'data-file.%s' is not supported", key));
    }
    return 0;
}

static bool library_knows(const char *key)
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

int image_option(struct image_spec *spec, const char *key, const char *value, char **error)
{
    static const char *const detect[] = {"off", "on", "unmap", NULL};
    const char *format = spec->format != NULL ? spec->format : "qcow2";
    bool ignored;

    if (strncmp(key, "file.", 5) == 0) {
        return file_option(spec, key + 5, value, error);
    }
    if (strncmp(key, "backing.", 8) == 0) {
        return backing_option(spec, key + 8, value, error);
    }
    if (strncmp(key, "data-file.", 10) == 0 && !same(format, "raw")) {
        return data_file_option(spec, key + 10, value, error);
    }
    if (same(key, "data-file") && !same(format, "raw")) {
        return refuse(error, -ENODEV, text_format("Cannot find device='%s' nor node-name='%s'", value, value));
    }
    if (same(key, "backing")) {
        spec->flags |= QCOW2_OPEN_NO_BACKING;
        return *value == '\0' ? 0
                              : refuse(error, -ENODEV, text_format("Cannot find device='' nor node-name='%s'", value));
    }
    if (same(key, "read-only")) {
        return flag_option(key, value, &spec->ask_read_only, error);
    }
    if (same(key, "force-share")) {
        return flag_bit_option(key, value, QCOW2_OPEN_FORCE_SHARE, &spec->flags, error);
    }
    if (same(key, "auto-read-only")) {
        return flag_option(key, value, &ignored, error);
    }
    if (same(key, "node-name") || same(key, "cache.direct") || same(key, "cache.no-flush")) {
        return file_option(spec, key, value, error);
    }
    if (same(key, "discard")) {
        return image_discard(spec, value) ? 0 : refuse(error, -EINVAL, text_copy("Invalid discard option"));
    }
    if (same(key, "detect-zeroes") && one_of(value, detect, error) != 0) {
        return -EINVAL;
    }
    if (!same(key, "detect-zeroes") && (same(format, "raw") || !library_knows(key))) {
        return refuse(error, -ENOENT, text_format("Block format '%s' does not support the option '%s'", format, key));
    }
    list_addf(&spec->options, "%s=%s", key, value);
    return 0;
}

/* A raw node without a window of its own adds nothing to the qcow2 node below it. */
static void drop_raw_layer(struct string_list *items)
{
    const char *driver = list_value(items, "driver");
    const char *below = list_value(items, "file.driver");

    if (driver == NULL || below == NULL || !same(driver, "raw") || (!same(below, "qcow2") && !same(below, "raw"))) {
        return;
    }
    free(list_take(items, "driver"));
    for (size_t i = 0; i < items->count; i++) {
        if (strncmp(items->items[i], "file.", 5) == 0) {
            memmove(items->items[i], items->items[i] + 5, strlen(items->items[i] + 5) + 1);
        }
    }
}

/* Takes driver, file.driver and the file's name out of the items. */
static int image_node(struct image_spec *spec, struct string_list *items, char **error)
{
    char *driver = list_take(items, "driver");
    char *below = list_take(items, "file.driver");
    char *reference = list_take(items, "file"); /* a node by name: there are none */
    bool is_file = driver != NULL && same(driver, "file");
    char *path = list_take(items, is_file ? "filename" : "file.filename");
    int ret = 0;

    if (driver != NULL && !is_file && !same(driver, "qcow2") && !same(driver, "raw")) {
        ret = refuse(error, -EINVAL, text_format("Unknown driver '%s'", driver));
    } else if (below != NULL && !same(below, "file")) {
        ret = refuse(error, -EINVAL, text_format("Unknown driver '%s'", below));
    } else if (reference != NULL) {
        ret = refuse(
            error, -ENODEV,
            spec->path == NULL
                ? text_format("Cannot find device='%s' nor node-name='%s'", reference, reference)
                : text_copy("Cannot reference an existing block device with additional options or a new filename"));
    } else if (path == NULL && spec->path == NULL) {
        if (is_file || below != NULL) {
            ret = refuse(error, -EINVAL, text_copy("The 'file' block driver requires a file name"));
        } else if (driver != NULL) {
            ret = refuse(error, -EINVAL, text_copy("A block device must be specified for \"file\""));
        } else {
            ret = refuse(error, -EINVAL, text_copy("Must specify either driver or file"));
        }
    }
    if (ret == 0 && driver != NULL) {
        set_text(&spec->format, is_file ? "raw" : driver);
    }
    if (ret == 0 && path != NULL) {
        set_text(&spec->path, path);
    }
    free(driver);
    free(below);
    free(reference);
    free(path);
    return ret;
}

int image_options(struct image_spec *spec, const struct string_list *items, char **error)
{
    struct string_list rest = {NULL, 0};
    int ret;

    for (size_t i = 0; i < items->count; i++) {
        list_add(&rest, items->items[i]);
    }
    drop_raw_layer(&rest);
    ret = image_node(spec, &rest, error);
    for (size_t i = 0; i < rest.count && ret == 0; i++) {
        char *equals = strchr(rest.items[i], '=');

        *equals = '\0';
        ret = image_option(spec, rest.items[i], equals + 1, error);
    }
    list_free(&rest);
    return ret;
}

bool has_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

char *path_as_name(const char *path)
{
    return text_format("%s%s", has_protocol(path) ? "./" : "", path);
}

int image_from_name(struct image_spec *spec, const char *name, const char *format, bool image_opts, char **error)
{
    struct string_list items = {NULL, 0};
    bool json = !image_opts && strncmp(name, "json:", 5) == 0;
    bool protocol = has_protocol(name);
    int ret = 0;

    set_text(&spec->name, name);
    spec->by_options = image_opts;
    if (format != NULL && !same(format, "qcow2") && !same(format, "raw")) {
        return refuse(error, -EINVAL, text_format("Unknown driver '%s'", format));
    }
    set_text(&spec->format, format);
    if (image_opts || json) {
        if (json) {
            ret = json_flatten(name + 5, &items, error);
        } else {
            split_options(&items, name, true);
            if (list_value(&items, "backing") != NULL && *list_value(&items, "backing") == '\0') {
                warn_report("Use of \"backing\": \"\" is deprecated; use \"backing\": null instead");
            }
        }
        ret = ret == 0 ? image_options(spec, &items, error) : ret;
        list_free(&items);
        return ret;
    }
    if (protocol && strncmp(name, "file:", 5) != 0) {
        return refuse(error, -EINVAL, text_format("Unknown protocol '%.*s'", (int)strcspn(name, ":"), name));
    }
    name += protocol ? 5 : 0;
    if (*name == '\0') {
        return refuse(error, -EINVAL, text_copy("The 'file' block driver requires a file name"));
    }
    free(spec->path);
    spec->path = protocol ? path_as_name(name) : text_copy(name);
    return 0;
}
