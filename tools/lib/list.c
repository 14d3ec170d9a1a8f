/* Growable lists of strings, and option text split into them.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "common.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

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
    static const char *const none[] = {NULL};

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
