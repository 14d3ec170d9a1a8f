/* JSON as the stock tool lays it out.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "img.h"

static void new_line(struct json *json)
{
    fprintf(json->out, "\n%*s", 4 * json->depth, "");
}

/* Decodes one code point; an invalid byte gives U+FFFD and is skipped alone. */
static unsigned next_code_point(const unsigned char **text)
{
    const unsigned char *at = *text;
    unsigned code = *at++;
    int more = code >= 0xf0 && code < 0xf5 ? 3 : code >= 0xe0 && code < 0xf0 ? 2 : code >= 0xc2 && code < 0xe0 ? 1 : 0;
    static const unsigned smallest[] = {0, 0x80, 0x800, 0x10000};

    *text = at;
    if (code < 0x80) {
        return code;
    }
    if (more == 0) {
        return 0xfffd;
    }
    code &= 0x3fu >> more;
    for (int i = 0; i < more; i++) {
        if ((at[i] & 0xc0) != 0x80) {
            return 0xfffd;
        }
        code = code << 6 | (at[i] & 0x3f);
    }
    if (code < smallest[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) {
        return 0xfffd;
    }
    *text = at + more;
    return code;
}

void json_quoted(FILE *out, const char *value)
{
    static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
    const unsigned char *at = (const unsigned char *)value;

    putc('"', out);
    while (*at) {
        unsigned code = next_code_point(&at);
        const char *special = NULL;

        for (const char *p = plain; *p; p++) {
            if ((unsigned char)*p == code) {
                special = p;
            }
        }
        if (special) {
            fprintf(out, "\\%c", letter[special - plain]);
        } else if (code >= 0x20 && code < 0x7f) {
            putc((int)code, out);
        } else if (code < 0x10000) {
            fprintf(out, "\\u%04X", code);
        } else {
            fprintf(out, "\\u%04X\\u%04X", 0xd800 + ((code - 0x10000) >> 10), 0xdc00 + ((code - 0x10000) & 0x3ff));
        }
    }
    putc('"', out);
}

static void member(struct json *json, const char *key)
{
    if (json->filled) {
        putc(',', json->out);
    }
    if (json->depth > 0) {
        new_line(json);
    }
    json->filled = true;
    if (key) {
        json_quoted(json->out, key);
        fputs(": ", json->out);
    }
}

void json_open(struct json *json, const char *key, char bracket)
{
    member(json, key);
    putc(bracket, json->out);
    json->depth++;
    json->filled = false;
}

void json_close(struct json *json, char bracket)
{
    json->depth--;
    new_line(json);
    putc(bracket, json->out);
    json->filled = true;
    if (json->depth == 0) {
        putc('\n', json->out);
    }
}

void json_string(struct json *json, const char *key, const char *value)
{
    member(json, key);
    json_quoted(json->out, value);
}

void json_number(struct json *json, const char *key, uint64_t value)
{
    member(json, key);
    fprintf(json->out, "%llu", (unsigned long long)value);
}

void json_bool(struct json *json, const char *key, bool value)
{
    member(json, key);
    fputs(value ? "true" : "false", json->out);
}
