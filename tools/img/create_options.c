/* Options of a new image: the library's table, and what a host file has.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

/* In which order the "Formatting" line shows options, and which it shows with a default. */
static const struct {
    const char *key, *default_text;
} line_order[] = {
    {"encryption", NULL},
    {"encrypt.format", NULL},
    {"encrypt.key-secret", NULL},
    {"encrypt.cipher-alg", NULL},
    {"encrypt.cipher-mode", NULL},
    {"encrypt.ivgen-alg", NULL},
    {"encrypt.ivgen-hash-alg", NULL},
    {"encrypt.hash-alg", NULL},
    {"encrypt.iter-time", NULL},
    {"cluster_size", "65536"},
    {"extended_l2", "off"},
    {"preallocation", NULL},
    {"compression_type", "zlib"},
    {"size", NULL},
    {"compat", NULL},
    {"backing_file", NULL},
    {"backing_fmt", NULL},
    {"data_file", NULL},
    {"data_file_raw", NULL},
    {"lazy_refcounts", "off"},
    {"refcount_bits", "16"},
    {"nocow", NULL},
    {"extent_size_hint", NULL},
};
static const char *const raw_line_order[] = {"size", "nocow", "preallocation", "extent_size_hint"};
static const char *const luks_line_order[] = {
    "size",     "key-secret", "cipher-alg",      "cipher-mode", "ivgen-alg",     "ivgen-hash-alg",
    "hash-alg", "iter-time",  "detached-header", "nocow",       "preallocation", "extent_size_hint",
};

static const struct create_option raw_options[] = {
    {.key = "size", .type = "size", .help = "Virtual disk size", .recorded = true},
};
static const struct create_option file_options[] = {
    {.key = "extent_size_hint", .type = "size", .help = "Extent size hint for the image file, 0 to disable"},
    {.key = "nocow", .type = "bool (on/off)", .help = "Turn off copy-on-write (valid only on btrfs)"},
    {.key = "preallocation", .type = "str", .help = "Preallocation mode (allowed values: off, falloc, full)"},
};

/* A key that is there already keeps its place: the format's options hide those of the file. */
static void add_option(struct create_options *options, const struct create_option *option)
{
    if (create_option_find(options, option->key)) {
        return;
    }
    options->items = memory_or_exit(realloc(options->items, (options->count + 1) * sizeof(*option)));
    options->items[options->count++] = *option;
}

static int creation_scope(const struct create_options *options)
{
    return options->luks ? QCOW2_SCOPE_CREATE_LUKS : QCOW2_SCOPE_CREATE;
}

/* Of a format that we do not make: the file's options are among them where the format has none of that name. */
static void add_foreign_options(struct create_options *options, const char *format, bool file_level)
{
    const char *key, *type, *help;

    memset(options, 0, sizeof(*options));
    for (size_t i = 0; foreign_options(format, i, &key, &type, &help); i++) {
        add_option(options, &(struct create_option){.key = key, .type = type, .help = help});
    }
    for (size_t i = 0; options->count > 0 && file_level && i < sizeof(file_options) / sizeof(file_options[0]); i++) {
        add_option(options, &file_options[i]);
    }
}

bool create_options_init(struct create_options *options, const char *format, bool file_level)
{
    qcow2_option_info info = {.struct_size = sizeof(info)};

    memset(options, 0, sizeof(*options));
    options->qcow2 = strcmp(format, "qcow2") == 0;
    options->luks = strcmp(format, "luks") == 0;
    options->device = strcmp(format, "host_device") == 0;
    if (!creatable(format)) {
        return false;
    }
    if (options->device) {
        add_foreign_options(options, format, file_level);
        options->device = true;
        return true;
    }
    file_level = file_level || strcmp(format, "file") == 0;
    for (size_t i = 0; (options->qcow2 || options->luks) && qcow2_option_list(creation_scope(options), i, &info) == 0;
         i++) {
        if (options->luks && strcmp(info.name, "preallocation") == 0) {
            continue; /* told of as the file's */
        }
        add_option(options,
                   &(struct create_option){.key = info.name, .type = info.type, .help = info.help, .recorded = true});
    }
    if (!options->qcow2 && !options->luks) {
        add_option(options, &raw_options[0]);
    }
    for (size_t i = 0; file_level && i < sizeof(file_options) / sizeof(file_options[0]); i++) {
        add_option(options, &file_options[i]);
    }
    return true;
}

void amend_options_init(struct create_options *options, bool luks)
{
    qcow2_option_info info = {.struct_size = sizeof(info)};

    memset(options, 0, sizeof(*options));
    options->amends = true;
    options->luks = luks;
    for (size_t i = 0; qcow2_option_list(luks ? QCOW2_SCOPE_AMEND_LUKS : QCOW2_SCOPE_AMEND, i, &info) == 0; i++) {
        add_option(options, &(struct create_option){.key = info.name, .type = info.type, .help = info.help});
    }
}

void create_options_free(struct create_options *options)
{
    for (size_t i = 0; i < options->count; i++) {
        free(options->items[i].value);
        free(options->items[i].text);
    }
    free(options->items);
    memset(options, 0, sizeof(*options));
}

struct create_option *create_option_find(struct create_options *options, const char *key)
{
    for (size_t i = 0; i < options->count; i++) {
        if (strcmp(options->items[i].key, key) == 0) {
            return &options->items[i];
        }
    }
    return NULL;
}

const char *create_option_text(const struct create_options *options, const char *key)
{
    for (size_t i = 0; i < options->count; i++) {
        if (strcmp(options->items[i].key, key) == 0) {
            return options->items[i].text;
        }
    }
    return NULL;
}

void create_option_set(struct create_option *option, const char *value)
{
    free(option->value);
    free(option->text);
    option->value = text_copy(value);
    option->text = text_copy(value);
}

static int set_size(struct create_option *option, const char *prefix, const char *value)
{
    uint64_t bytes;
    int result = parse_size(value, &bytes);

    if (result == -ERANGE) {
        error_report("%sValue '%s' is out of range for parameter '%s'", prefix, value, option->key);
        return EXIT_FAILURE;
    }
    if (result < 0) {
        error_report("%sParameter '%s' expects a non-negative number below 2^64\n"
                     "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                     "and exabytes, respectively.",
                     prefix, option->key);
        return EXIT_FAILURE;
    }
    create_option_set(option, value);
    free(option->text);
    option->text = text_format("%lld", (long long)bytes);
    return EXIT_SUCCESS;
}

static int set_number(struct create_option *option, const char *prefix, const char *value)
{
    char *end;
    unsigned long long number;

    errno = 0;
    number = strtoull(value, &end, 0);
    if (end == value || *end) {
        error_report("%sParameter '%s' expects a number", prefix, option->key);
        return EXIT_FAILURE;
    }
    if (errno == ERANGE) {
        error_report("%sValue '%s' is too large for parameter '%s'", prefix, value, option->key);
        return EXIT_FAILURE;
    }
    create_option_set(option, value);
    free(option->text);
    option->text = text_format("%lld", (long long)number);
    return EXIT_SUCCESS;
}

static int set_typed(struct create_option *option, const char *prefix, const char *value)
{
    bool on;

    if (strcmp(option->type, "size") == 0) {
        return set_size(option, prefix, value);
    }
    if (strcmp(option->type, "num") == 0) {
        return set_number(option, prefix, value);
    }
    if (strncmp(option->type, "bool", 4) == 0 && parse_bool(value, &on) < 0) {
        error_report("%sParameter '%s' expects 'on' or 'off'", prefix, option->key);
        return EXIT_FAILURE;
    }
    create_option_set(option, value);
    return EXIT_SUCCESS;
}

static bool fits_type(const char *type, const char *value)
{
    uint64_t number;
    bool on;
    char *end;

    if (strcmp(type, "size") == 0) {
        return parse_size(value, &number) == 0;
    }
    if (strcmp(type, "num") == 0) {
        strtoull(value, &end, 0);
        return end != value && *end == '\0';
    }
    return strncmp(type, "bool", 4) != 0 || parse_bool(value, &on) == 0;
}

/* Whether a creation would take all of them. */
static bool are_creation_options(const struct create_options *options, const struct string_list *items)
{
    qcow2_option_info info = {.struct_size = sizeof(info)};

    for (size_t i = 0; i < items->count; i++) {
        const char *item = items->items[i];
        size_t length = strcspn(item, "="), at = 0;
        bool known = false;

        while (!known && qcow2_option_list(creation_scope(options), at++, &info) == 0) {
            known = strlen(info.name) == length && strncmp(info.name, item, length) == 0;
        }
        if (!known || !fits_type(info.type, item + length + 1)) {
            return false;
        }
    }
    return true;
}

int create_options_parse(struct create_options *options, const char *prefix, const char *text)
{
    struct string_list items = {0};
    int result = EXIT_SUCCESS;

    split_options(&items, text, false);
    for (size_t i = 0; i < items.count && result == EXIT_SUCCESS; i++) {
        size_t length = strcspn(items.items[i], "=");
        char *key = text_format("%.*s", (int)length, items.items[i]);
        struct create_option *option = create_option_find(options, key);

        if (option) {
            result = set_typed(option, prefix, items.items[i] + length + 1);
        } else {
            error_report("%sInvalid parameter '%s'", prefix, key);
            if (options->amends && are_creation_options(options, &items)) {
                fprintf(stderr, "This option is only supported for image creation\n");
            }
            result = EXIT_FAILURE;
        }
        free(key);
    }
    list_free(&items);
    return result;
}

/* Commas are doubled, so that the text could be given to -o again. */
static void print_value(const char *value, FILE *out)
{
    for (; *value; value++) {
        putc(*value, out);
        if (*value == ',') {
            putc(',', out);
        }
    }
}

static void print_option(const struct create_options *options, const char *key, const char *default_text, FILE *out)
{
    const char *text = create_option_text(options, key);

    if (!text) {
        text = default_text;
    }
    if (!text) {
        return;
    }
    fprintf(out, " %s=", key);
    print_value(text, out);
}

void create_options_print(const struct create_options *options, FILE *out)
{
    if (options->qcow2) {
        for (size_t i = 0; i < sizeof(line_order) / sizeof(line_order[0]); i++) {
            print_option(options, line_order[i].key, line_order[i].default_text, out);
        }
        return;
    }
    for (size_t i = 0; options->luks && i < sizeof(luks_line_order) / sizeof(luks_line_order[0]); i++) {
        print_option(options, luks_line_order[i], NULL, out);
    }
    for (size_t i = 0; !options->luks && i < sizeof(raw_line_order) / sizeof(raw_line_order[0]); i++) {
        print_option(options, raw_line_order[i], NULL, out);
    }
}

static int by_key(const void *left, const void *right)
{
    return strcmp(((const struct create_option *)left)->key, ((const struct create_option *)right)->key);
}

void print_option_help(const char *key, const char *type, const char *help)
{
    int width = printf("  %s=<%s>", key, type);

    printf("%*s - %s\n", width < 24 ? 24 - width : 0, "", help);
}

void create_options_help(const struct create_options *options)
{
    qsort(options->items, options->count, sizeof(options->items[0]), by_key);
    for (size_t i = 0; i < options->count; i++) {
        print_option_help(options->items[i].key, options->items[i].type, options->items[i].help);
    }
}

int create_options_join(char **option_text, const char *text)
{
    char *joined;
    size_t length = strlen(text), commas = 0;

    while (commas < length && text[length - 1 - commas] == ',') {
        commas++;
    }
    /* A doubled comma is part of a value, an odd one at the end is followed by nothing. */
    if (length == 0 || text[0] == ',' || commas % 2) {
        error_report("Invalid option list: %s", text);
        return EXIT_FAILURE;
    }
    joined = text_format("%s%s%s", *option_text ? *option_text : "", *option_text ? "," : "", text);
    free(*option_text);
    *option_text = joined;
    return EXIT_SUCCESS;
}

int create_options_print_help(const char *prefix, const char *format, bool file_level)
{
    struct create_options options;

    if (!create_options_init(&options, format, file_level)) {
        add_foreign_options(&options, format, file_level);
    }
    if (options.count == 0) {
        return report_no_creation(prefix, format);
    }
    if (file_level) {
        puts("Supported options:");
    } else {
        printf("Supported %s options:\n", format);
    }
    create_options_help(&options);
    if (!file_level) {
        puts("\nThe protocol level may support further options.\n"
             "Specify the target filename to include those options.");
    }
    create_options_free(&options);
    return EXIT_SUCCESS;
}
