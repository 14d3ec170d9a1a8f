/* A JSON object as flat open options.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "common.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_LIMIT 64

struct parser {
    const char *at;
    struct string_list *items;
    struct string_list *kinds; /* what each value is; NULL: nobody asks */
    const char *prefix;        /* of errors */
    char *error;               /* the first one; parsing stops there */
    int depth;
};

static bool fail(struct parser *parser, char *error)
{
    if (parser->error == NULL) {
        parser->error = error;
    } else {
        free(error);
    }
    return false;
}

static bool syntax(struct parser *parser, const char *what)
{
    if (*parser->at == '\0') {
        what = "premature EOI";
    }
    return fail(parser, text_format("%sJSON parse error, %s", parser->prefix, what));
}

static void tell_kind(struct parser *parser, const char *key, const char *kind)
{
    if (parser->kinds != NULL && *key != '\0') {
        list_addf(parser->kinds, "%s=%s", key, kind);
    }
}

static char peek(struct parser *parser)
{
    parser->at += strspn(parser->at, " \t\r\n");
    return *parser->at;
}

static size_t put_utf8(char *out, unsigned code)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xc0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xe0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3f));
        out[2] = (char)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3f));
    out[2] = (char)(0x80 | (code >> 6 & 0x3f));
    out[3] = (char)(0x80 | (code & 0x3f));
    return 4;
}

/* The four digits after "u"; 0: there are none, or it would end the text. */
static unsigned hexadecimal(const char *at)
{
    char digits[5] = "";

    if (*at != 'u' || strspn(at + 1, "0123456789abcdefABCDEF") < 4) {
        return 0;
    }
    memcpy(digits, at + 1, 4);
    return (unsigned)strtoul(digits, NULL, 16);
}

/* At the character after a backslash; returns the bytes written, 0 for an escape JSON does not have. */
static size_t parse_escape(const char **at, char *out)
{
    static const char names[] = "\"'\\/bfnrt", values[] = "\"'\\/\b\f\n\r\t";
    const char *name = strchr(names, **at);
    unsigned code = hexadecimal(*at), low;

    if (code >= 0xd800 && code < 0xe000) {
        low = (*at)[5] == '\\' ? hexadecimal(*at + 6) : 0;
        if (code >= 0xdc00 || low < 0xdc00 || low >= 0xe000) {
            return 0; /* half a character */
        }
        *at += 6;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    if (code != 0) {
        *at += 5;
        return put_utf8(out, code);
    }
    if (**at == '\0' || name == NULL) {
        return 0;
    }
    (*at)++;
    *out = values[name - names];
    return 1;
}

/* A string in either kind of quotes; NULL after an error. */
static char *parse_string(struct parser *parser)
{
    const char *start = parser->at, *at = start + 1;
    char *text = memory_or_exit(malloc(strlen(start) + 1));
    size_t length = 0;

    while (*at != '\0' && *at != *start) {
        size_t bytes = 1;

        if (*at == '\\') {
            at++;
            bytes = parse_escape(&at, text + length);
            if (bytes == 0) {
                break;
            }
        } else {
            text[length] = *at++;
        }
        length += bytes;
    }
    if (*at != *start) {
        char *what = *at != '\0' ? text_copy("invalid escape sequence in string") : text_format("stray '%s'", start);

        syntax(parser, what);
        free(what);
        text_wipe(text);
        return NULL;
    }
    text[length] = '\0';
    parser->at = at + 1;
    return text;
}

static bool parse_value(struct parser *parser, const char *key);

static bool parse_member(struct parser *parser, const char *prefix, struct string_list *keys)
{
    char *name, *key;
    bool good;

    if (peek(parser) != '"' && *parser->at != '\'') {
        size_t word = strspn(parser->at, "abcdefghijklmnopqrstuvwxyz");
        char *what =
            word > 0 ? text_format("invalid keyword '%.*s'", (int)word, parser->at) : text_copy("expecting value");

        syntax(parser, what);
        free(what);
        return false;
    }
    name = parse_string(parser);
    if (name == NULL) {
        return false;
    }
    key = *prefix != '\0' ? text_format("%s.%s", prefix, name) : text_copy(name);
    if (list_value(keys, name) != NULL) {
        good = syntax(parser, "duplicate key");
    } else if (peek(parser) != ':') {
        good = syntax(parser, "missing : in object pair");
    } else {
        parser->at++;
        list_addf(keys, "%s=", name);
        good = parse_value(parser, key);
    }
    free(name);
    free(key);
    return good;
}

/* An object or an array: members of the latter are named by their index. */
static bool parse_group(struct parser *parser, const char *prefix)
{
    char close = *parser->at++ == '{' ? '}' : ']';
    struct string_list keys = {NULL, 0};
    size_t index = 0;
    bool good = true, more = peek(parser) != close;

    while (good && more) {
        if (close == '}') {
            good = parse_member(parser, prefix, &keys);
        } else {
            char *key = text_format("%s.%zu", prefix, index++);

            good = parse_value(parser, key);
            free(key);
        }
        more = good && peek(parser) == ',';
        parser->at += more ? 1 : 0;
    }
    list_free(&keys);
    if (good && peek(parser) != close) {
        good = syntax(parser, close == '}' ? "expected separator in dict" : "expected separator in list");
    }
    parser->at += good ? 1 : 0;
    return good;
}

static bool parse_word(struct parser *parser, const char *key)
{
    static const char number[] = "+-.0123456789eE";
    size_t length = strspn(parser->at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-._");
    char *word = text_format("%.*s", (int)length, parser->at);
    const char *value = NULL;
    bool good = true;

    if (strcmp(word, "true") == 0 || strcmp(word, "false") == 0) {
        value = *word == 't' ? "on" : "off";
    } else if (strcmp(word, "null") == 0) {
        value = "";
    } else if (length > 0 && strchr("-0123456789", *word) != NULL && strspn(word, number) == length) {
        value = word;
    }
    if (value != NULL) {
        tell_kind(parser, key, strcmp(word, "null") == 0 ? "null" : value == word ? "number" : "boolean");
        /* A null is as good as no value, but for a backing file: there it says that there is none. */
        if (*value != '\0' || strcmp(key, "backing") == 0) {
            list_addf(parser->items, "%s=%s", key, value);
        }
        parser->at += length;
    } else {
        char *what = length > 0 ? text_format("invalid keyword '%s'", word) : text_copy("expecting value");

        good = syntax(parser, what);
        free(what);
    }
    free(word);
    return good;
}

static bool parse_value(struct parser *parser, const char *key)
{
    char first = peek(parser);
    char *text;
    bool good;

    if (first == '{' || first == '[') {
        tell_kind(parser, key, first == '{' ? "object" : "array");
        if (parser->depth == DEPTH_LIMIT) {
            return syntax(parser, "nesting too deep");
        }
        parser->depth++;
        good = parse_group(parser, key);
        parser->depth--;
        return good;
    }
    if (first != '"' && first != '\'') {
        return parse_word(parser, key);
    }
    text = parse_string(parser);
    if (text == NULL) {
        return false;
    }
    tell_kind(parser, key, "string");
    list_addf(parser->items, "%s=%s", key, text);
    text_wipe(text);
    return true;
}

static int parse_all(struct parser *parser, char **error)
{
    char first = peek(parser);

    if (first == '\0') {
        fail(parser, text_format("%sExpecting a JSON value", parser->prefix));
    } else if (parse_value(parser, "")) {
        if (peek(parser) != '\0') {
            fail(parser, text_format("%sExpecting at most one JSON value", parser->prefix));
        } else if (first != '{') {
            fail(parser, text_copy("Invalid JSON object given"));
        }
    }
    *error = parser->error;
    return parser->error != NULL ? -EINVAL : 0;
}

int json_flatten(const char *text, struct string_list *items, char **error)
{
    struct parser parser = {text, items, NULL, "Could not parse the JSON options: ", NULL, 0};

    return parse_all(&parser, error);
}

int json_object(const char *text, struct string_list *items, struct string_list *kinds, char **error)
{
    struct parser parser = {text, items, kinds, "", NULL, 0};

    return parse_all(&parser, error);
}
