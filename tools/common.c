/* Messages, numbers and string lists of the tools.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const char *program_name = "qcow2";

/* A file that is opened while one of these is free would take its place, and be written to by the next message. */
static void fill_standard_descriptors(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR);
        if (fd < 0) {
            fd = open("/", O_PATH); /* where there is no /dev */
        }
    } while (fd >= 0 && fd < STDERR_FILENO);
    if (fd > STDERR_FILENO) {
        close(fd);
    }
}

void program_init(const char *argv0)
{
    fill_standard_descriptors();
    /* A limit on the length of files is an error of the write that meets it. */
    signal(SIGXFSZ, SIG_IGN);

    const char *slash = argv0 != NULL ? strrchr(argv0, '/') : NULL;

    if (slash != NULL) {
        program_name = slash + 1;
    } else if (argv0 != NULL) {
        program_name = argv0;
    }
}

static void report(const char *prefix, const char *format, va_list arguments)
{
    fprintf(stderr, "%s: %s", program_name, prefix);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

void error_report(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    report("", format, arguments);
    va_end(arguments);
}

void warn_report(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    report("warning: ", format, arguments);
    va_end(arguments);
}

int refuse(char **error, int code, char *text)
{
    *error = text;
    return code;
}

void *memory_or_exit(void *pointer)
{
    if (pointer == NULL) {
        fprintf(stderr, "%s: out of memory\n", program_name);
        exit(1);
    }
    return pointer;
}

char *text_copy(const char *text)
{
    return memory_or_exit(strdup(text));
}

static char *text_vformat(const char *format, va_list arguments)
{
    char *text = NULL;

    if (vasprintf(&text, format, arguments) < 0) {
        text = NULL;
    }
    return memory_or_exit(text);
}

char *text_format(const char *format, ...)
{
    va_list arguments;
    char *text;

    va_start(arguments, format);
    text = text_vformat(format, arguments);
    va_end(arguments);
    return text;
}

void failure_parts(qcow2_error_detail *parts)
{
    memset(parts, 0, sizeof(*parts));
    parts->struct_size = sizeof(*parts);
    qcow2_last_error_detail(parts);
}

const char *failure_text(void)
{
    static char *text;
    const char *wanted = getenv("QCOW2_TOOL_DETAIL");
    qcow2_error_detail parts;
    char *hint;

    failure_parts(&parts);
    /* The library tells another handle of this process from another process; the stock tools know no difference. */
    if (parts.kind == QCOW2_ERROR_LOCKED && *parts.hint != '\0') {
        hint = text_format("\nIs another process using the image [%s]?", parts.file);
    } else {
        hint = text_copy(parts.hint);
    }
    free(text);
    if (*parts.detail != '\0' && wanted != NULL && strcmp(wanted, "1") == 0) {
        text = text_format("%s%s [%s]", parts.summary, hint, parts.detail);
    } else {
        text = text_format("%s%s", parts.summary, hint);
    }
    free(hint);
    return text;
}

/* Shift for a size suffix, or -1. */
static int suffix_bits(char suffix)
{
    switch (suffix) {
    case 'b': case 'B': return 0;
    case 'k': case 'K': return 10;
    case 'm': case 'M': return 20;
    case 'g': case 'G': return 30;
    case 't': case 'T': return 40;
    case 'p': case 'P': return 50;
    case 'e': case 'E': return 60;
    default: return -1;
    }
}

static int parse_hex(const char *text, uint64_t *bytes)
{
    char *end;

    if (strspn(text + 2, "0123456789abcdefABCDEF") == 0) {
        return -EINVAL;
    }
    errno = 0;
    *bytes = strtoull(text, &end, 16);
    if (*end != '\0') {
        return -EINVAL;
    }
    return errno == ERANGE ? -ERANGE : 0;
}

/* Negative numbers are out of range if they are numbers at all; a suffix or fraction makes them none. */
static int parse_negative(const char *text)
{
    size_t digits = strspn(text + 1, "0123456789");

    return digits > 0 && text[1 + digits] == '\0' ? -ERANGE : -EINVAL;
}

/* Reads ".ddd": the part of one unit in *fraction; returns where the text goes on. */
static const char *parse_fraction(const char *text, double *fraction, bool *non_zero)
{
    size_t digits = strspn(text + 1, "0123456789");
    char *copy = text_format("0%.*s", (int)(digits + 1), text);

    *non_zero = strspn(text + 1, "0") < digits;
    *fraction = strtod(copy, NULL);
    free(copy);
    return text + 1 + digits;
}

/* Digits, perhaps a fraction, perhaps one suffix. */
static int parse_decimal(const char *text, uint64_t *bytes)
{
    size_t digits = strspn(text, "0123456789");
    const char *rest = text + digits;
    bool part_of_unit = false;
    double fraction = 0.0;
    uint64_t whole, part;
    int bits = 0;

    errno = 0;
    whole = digits > 0 ? strtoull(text, NULL, 10) : 0;
    bool overflow = errno == ERANGE;

    if (*rest == '.') {
        digits += strspn(rest + 1, "0123456789");
        rest = parse_fraction(rest, &fraction, &part_of_unit);
    }
    if (*rest != '\0') {
        bits = suffix_bits(*rest++);
    }
    if (digits == 0 || bits < 0 || *rest != '\0' || (bits == 0 && part_of_unit)) {
        return -EINVAL; /* there is no half a byte */
    }
    if (overflow || (bits != 0 && whole >> (64 - bits) != 0)) {
        return -ERANGE;
    }
    part = (uint64_t)(fraction * (double)(UINT64_C(1) << bits) + 0.5);
    if ((whole << bits) > UINT64_MAX - part) {
        return -ERANGE;
    }
    *bytes = (whole << bits) + part;
    return 0;
}

int parse_size(const char *text, uint64_t *bytes)
{
    text += strspn(text, " \t\n\v\f\r");
    if (*text == '-') {
        return parse_negative(text);
    }
    if (*text == '+') {
        text++;
    }
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
        return parse_hex(text, bytes);
    }
    return parse_decimal(text, bytes);
}

int parse_size_i64(const char *text, int64_t *bytes)
{
    uint64_t value;
    int ret = parse_size(text, &value);

    if (ret == 0 && value > INT64_MAX) {
        ret = -ERANGE;
    }
    if (ret == 0) {
        *bytes = (int64_t)value;
    }
    return ret;
}

int parse_bool(const char *text, bool *value)
{
    static const char *const words[2][4] = { { "off", "no", "false", "n" }, { "on", "yes", "true", "y" } };

    for (size_t i = 0; i < 8; i++) {
        if (strcmp(text, words[i / 4][i % 4]) == 0) {
            *value = i >= 4;
            return 0;
        }
    }
    return -EINVAL;
}

static const char size_units[] = "KMGTPE";

const char *size_text_io(double bytes, char text[SIZE_TEXT_BYTES])
{
    int unit = -1;
    char *zeroes;

    while (bytes >= 1024.0 && size_units[unit + 1] != '\0') {
        bytes /= 1024.0;
        unit++;
    }
    if (unit < 0) {
        snprintf(text, SIZE_TEXT_BYTES, "%f", bytes);
        zeroes = strstr(text, ".000000");
    } else {
        snprintf(text, SIZE_TEXT_BYTES, "%.3f", bytes);
        zeroes = strstr(text, ".000");
    }
    if (zeroes != NULL) {
        *zeroes = '\0';
    }
    if (unit < 0) {
        strcat(text, " bytes");
    } else {
        snprintf(text + strlen(text), SIZE_TEXT_BYTES - strlen(text), " %ciB", size_units[unit]);
    }
    return text;
}

const char *size_text_img(uint64_t bytes, char text[SIZE_TEXT_BYTES])
{
    double value = (double)bytes;
    int unit = -1;

    /* The next unit starts at 1000, so that three digits always do. */
    while (value >= 1000.0 && size_units[unit + 1] != '\0') {
        value /= 1024.0;
        unit++;
    }
    if (unit < 0) {
        snprintf(text, SIZE_TEXT_BYTES, "%.3g B", value);
    } else {
        snprintf(text, SIZE_TEXT_BYTES, "%.3g %ciB", value, size_units[unit]);
    }
    return text;
}

uint64_t monotonic_nanoseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static void list_take_over(struct string_list *list, char *text)
{
    list->items = memory_or_exit(realloc(list->items, (list->count + 2) * sizeof(*list->items)));
    list->items[list->count++] = text;
    list->items[list->count] = NULL;
}

void list_add(struct string_list *list, const char *text)
{
    list_take_over(list, text_copy(text));
}

void list_addf(struct string_list *list, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    list_take_over(list, text_vformat(format, arguments));
    va_end(arguments);
}

void list_free(struct string_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->items[i]);
    }
    free(list->items);
    list->items = NULL;
    list->count = 0;
}

const char *const *list_options(const struct string_list *list)
{
    static const char *const none[] = { NULL };

    return list->items != NULL ? (const char *const *)list->items : none;
}

static const char *value_of(const char *item, const char *key)
{
    size_t length = strlen(key);

    return strncmp(item, key, length) == 0 && item[length] == '=' ? item + length + 1 : NULL;
}

const char *list_value(const struct string_list *list, const char *key)
{
    for (size_t i = list->count; i > 0; i--) {
        const char *value = value_of(list->items[i - 1], key);

        if (value != NULL) {
            return value;
        }
    }
    return NULL;
}

char *list_take(struct string_list *list, const char *key)
{
    char *last = NULL;
    size_t kept = 0;

    for (size_t i = 0; i < list->count; i++) {
        const char *value = value_of(list->items[i], key);

        if (value == NULL) {
            list->items[kept++] = list->items[i];
            continue;
        }
        free(last);
        last = text_copy(value);
        free(list->items[i]);
    }
    list->count = kept;
    if (list->items != NULL) {
        list->items[kept] = NULL;
    }
    return last;
}

/* Copies up to a single comma, ",," standing for one in values; returns the text after it, or NULL at the end. */
static const char *next_item(const char *text, char **item)
{
    char *out = *item = memory_or_exit(malloc(strlen(text) + 1));
    bool in_value = false;

    for (; *text != '\0'; text++) {
        in_value = in_value || *text == '=';
        if (*text == ',' && (*++text != ',' || !in_value)) {
            *out = '\0';
            return *text != '\0' ? text : NULL;
        }
        *out++ = *text;
    }
    *out = '\0';
    return NULL;
}

void split_options(struct string_list *list, const char *text, bool deprecated)
{
    if (*text == '\0') {
        return;
    }
    while (text != NULL) {
        char *item;

        text = next_item(text, &item);
        if (strchr(item, '=') != NULL) {
            list_take_over(list, item);
            continue;
        }
        /* "help" is for the caller; everything else is a switch. */
        const char *name = strncmp(item, "no", 2) == 0 && item[2] != '\0' ? item + 2 : item;
        const char *value = name == item ? "on" : "off";

        if (deprecated) {
            warn_report("short-form boolean option '%s' deprecated\nPlease use %s=%s instead", item, name, value);
        }
        list_addf(list, "%s=%s", name, value);
        free(item);
    }
}

bool options_ask_help(const char *text)
{
    bool found = false;

    while (text != NULL && *text != '\0' && !found) {
        char *item;

        text = next_item(text, &item);
        found = strcmp(item, "help") == 0 || strcmp(item, "?") == 0;
        free(item);
    }
    return found;
}
