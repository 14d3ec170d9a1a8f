/* What a client is told about opening an image.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "options.h"

#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A word for a flag of the open. */
struct flag_word {
    const char *key;
    const char *value;
    uint64_t set;
    uint64_t clear;
};

static const struct flag_word flag_words[] = {
    {"backing", "on", QCOW2_OPEN_ALLOW_RECORDED, QCOW2_OPEN_NO_BACKING},
    {"backing", "off", 0, QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_NO_BACKING},
    {"backing", "none", QCOW2_OPEN_NO_BACKING, QCOW2_OPEN_ALLOW_RECORDED},
    {"force-share", "on", QCOW2_OPEN_FORCE_SHARE, 0},
    {"force-share", "off", 0, QCOW2_OPEN_FORCE_SHARE},
    {"format", "raw", QCOW2_OPEN_RAW, 0},
    {"format", "qcow2", 0, QCOW2_OPEN_RAW},
    {"lock", "off", QCOW2_OPEN_NO_LOCK, 0},
    {"lock", "on", 0, QCOW2_OPEN_NO_LOCK},
    {"read-only", "on", QCOW2_OPEN_READ_ONLY, 0},
    {"read-only", "off", 0, QCOW2_OPEN_READ_ONLY},
    {"repair", "off", QCOW2_OPEN_NO_REPAIR, 0},
    {"repair", "on", 0, QCOW2_OPEN_NO_REPAIR},
};

/* The same keys, for lists. */
static const qcow2_option_info flag_list[] = {
    {.name = "backing",
     .type = "str",
     .default_value = "on",
     .help = "Files that the image names: opened, refused, or ignored (allowed values: on, off, none)"},
    {.name = "force-share",
     .type = "bool (on/off)",
     .default_value = "off",
     .help = "Read although another program writes; for reading only"},
    {.name = "format",
     .type = "str",
     .default_value = "qcow2",
     .help = "What the file is; formats are never guessed (allowed values: qcow2, raw)"},
    {.name = "lock", .type = "bool (on/off)", .default_value = "on", .help = "Keep other writers out"},
    {.name = "read-only", .type = "bool (on/off)", .default_value = "off", .help = "Change nothing in the file"},
    {.name = "repair",
     .type = "bool (on/off)",
     .default_value = "on",
     .help = "Repair an image whose writer has died, rather than refuse it"},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

__attribute__((format(printf, 3, 4))) static int refuse(char **error, int code, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    if (vasprintf(error, format, arguments) < 0) {
        *error = NULL;
    }
    va_end(arguments);
    return code;
}

static bool is_flag(const char *key)
{
    for (size_t i = 0; i < COUNT(flag_list); i++) {
        if (strcmp(flag_list[i].name, key) == 0) {
            return true;
        }
    }
    return false;
}

/* Calls `each` for every option of the library. */
static void list_library(open_option_fn each, void *opaque)
{
    qcow2_option_info info = {.struct_size = sizeof(info)};

    for (size_t i = 0; qcow2_option_list(QCOW2_SCOPE_OPEN, i, &info) == 0; i++) {
        each(opaque, info.name, info.type, info.default_value, info.help);
    }
}

void open_options_list(open_option_fn each, void *opaque)
{
    for (size_t i = 0; i < COUNT(flag_list); i++) {
        each(opaque, flag_list[i].name, flag_list[i].type, flag_list[i].default_value, flag_list[i].help);
    }
    list_library(each, opaque);
}

struct search {
    const char *key;
    bool found;
};

static void look(void *opaque, const char *key, const char *type, const char *default_value, const char *help)
{
    struct search *search = opaque;

    (void)type;
    (void)default_value;
    (void)help;
    search->found = search->found || strcmp(search->key, key) == 0;
}

bool open_options_known(const char *key)
{
    struct search search = {key, false};

    open_options_list(look, &search);
    return search.found;
}

static int set_flag(struct open_options *options, const char *key, const char *value, char **error)
{
    for (size_t i = 0; i < COUNT(flag_words); i++) {
        if (strcmp(flag_words[i].key, key) == 0 && strcmp(flag_words[i].value, value) == 0) {
            options->flags = (options->flags & ~flag_words[i].clear) | flag_words[i].set;
            return 0;
        }
    }
    return refuse(error, -EINVAL, "Option '%s' does not take '%s'", key, value);
}

/* Where the value of `key` is, or options->count. */
static size_t find(const struct open_options *options, const char *key)
{
    size_t length = strlen(key), i = 0;

    while (i < options->count && (strncmp(options->items[i], key, length) != 0 || options->items[i][length] != '=')) {
        i++;
    }
    return i;
}

static int set_item(struct open_options *options, const char *key, const char *value, char **error)
{
    size_t at = find(options, key);
    char *item;
    int ret;

    if (asprintf(&item, "%s=%s", key, value) < 0) {
        *error = NULL;
        return -ENOMEM;
    }
    ret = qcow2_check_open_option(item);
    if (ret < 0) {
        free(item);
        return refuse(error, ret, "%s", last_failure());
    }
    if (at < options->count) {
        free(options->items[at]);
    } else {
        char **items = realloc(options->items, (options->count + 2) * sizeof(*items));

        if (items == NULL) {
            free(item);
            *error = NULL;
            return -ENOMEM;
        }
        items[++options->count] = NULL;
        options->items = items;
    }
    options->items[at] = item;
    return 0;
}

int open_options_set(struct open_options *options, const char *key, const char *value, char **error)
{
    return is_flag(key) ? set_flag(options, key, value, error) : set_item(options, key, value, error);
}

int open_options_default(struct open_options *options, const char *key, const char *value, char **error)
{
    return open_options_value(options, key) != NULL ? 0 : set_item(options, key, value, error);
}

const char *open_options_value(const struct open_options *options, const char *key)
{
    size_t at = find(options, key);

    return at < options->count ? options->items[at] + strlen(key) + 1 : NULL;
}

bool open_options_read_only(const struct open_options *options)
{
    return (options->flags & (QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_FORCE_SHARE)) != 0 ||
           open_options_value(options, "snapshot.id") != NULL || open_options_value(options, "snapshot.name") != NULL;
}

struct help {
    FILE *stream;
    const char *indent;
};

static void print_help(void *opaque, const char *key, const char *type, const char *default_value, const char *help)
{
    struct help *to = opaque;

    fprintf(to->stream, "%s%s=<%s>%s%s%s  %s\n", to->indent, key, strncmp(type, "bool", 4) == 0 ? "on|off" : type,
            default_value != NULL ? " (" : "", default_value != NULL ? default_value : "",
            default_value != NULL ? ")" : "", help);
}

char *open_options_help(const char *indent)
{
    char *text = NULL;
    size_t length;
    struct help to = {open_memstream(&text, &length), indent};

    if (to.stream == NULL) {
        return NULL;
    }
    open_options_list(print_help, &to);
    if (fclose(to.stream) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

int open_options_open(const struct open_options *options, const char *path, qcow2_image **image, char **error)
{
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    qcow2_error_detail why = {.struct_size = sizeof(why)};
    int ret;

    params.path = path;
    params.flags = options->flags;
    params.options = (const char *const *)options->items;
    ret = qcow2_open_with(&params, image);
    if (ret < 0) {
        qcow2_last_error_detail(&why);
        refuse(error, ret, "%s%s", last_failure(),
               why.kind == QCOW2_ERROR_NOT_ALLOWED && (options->flags & QCOW2_OPEN_ALLOW_RECORDED) == 0
                   ? " (backing=on opens what the image names)"
                   : "");
    }
    return ret;
}

void open_options_free(struct open_options *options)
{
    for (size_t i = 0; i < options->count; i++) {
        free(options->items[i]);
    }
    free(options->items);
    *options = (struct open_options)OPEN_OPTIONS_INIT;
}
