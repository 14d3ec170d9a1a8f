/* Secrets that the user gives with --object.  SPDX-License-Identifier: MIT OR Apache-2.0

   They are kept in pages of their own, which no core dump has, and are wiped at the end. */
#include "secrets.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define FILE_LIMIT (1u << 20)
#define KEY_BYTES 32

struct secret {
    struct secret *next;
    char *id;
    unsigned char *bytes; /* of `room` */
    size_t length, room;
};

static struct secret *secrets;

static bool same(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

/* --- memory --- */

static unsigned char *take_pages(size_t bytes)
{
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    pages = memory_or_exit(pages == MAP_FAILED ? NULL : pages);
    madvise(pages, bytes, MADV_DONTDUMP);
    mlock(pages, bytes); /* as far as the host allows */
    return pages;
}

static void secret_free(struct secret *secret)
{
    if (secret->bytes != NULL) {
        explicit_bzero(secret->bytes, secret->room);
        munmap(secret->bytes, secret->room);
    }
    free(secret->id);
    free(secret);
}

static void wipe_all(void)
{
    while (secrets != NULL) {
        struct secret *next = secrets->next;

        secret_free(secrets);
        secrets = next;
    }
}

static void list_wipe(struct string_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        text_wipe(list->items[i]);
        list->items[i] = NULL;
    }
    list_free(list);
}

static struct secret *find(const char *id)
{
    for (struct secret *secret = secrets; secret != NULL; secret = secret->next) {
        if (same(secret->id, id)) {
            return secret;
        }
    }
    return NULL;
}

static int no_secret(const char *id, char **error)
{
    return refuse(error, -ENOENT, text_format("No secret with id '%s'", id));
}

/* --- what a secret is made of --- */

struct properties {
    struct string_list items;
    struct string_list kinds; /* by key: "string", or what else JSON has */
    bool json;
};

static const char *const known[] = {"qom-type", "id", "format", "keyid", "iv", "data", "file"};
#define KNOWN (sizeof(known) / sizeof(known[0]))

static bool has_group(const struct properties *given, const char *name)
{
    size_t length = strlen(name);

    for (size_t i = 0; i < given->items.count; i++) {
        if (strncmp(given->items.items[i], name, length) == 0 && given->items.items[i][length] == '.') {
            return true;
        }
    }
    return false;
}

/* A key: names, with dots between them. */
static bool is_key(const char *text, size_t length)
{
    bool start = true;

    for (size_t i = 0; i < length; i++) {
        if (start ? !isalpha((unsigned char)text[i]) && !(i > 0 && isdigit((unsigned char)text[i]))
                  : !isalnum((unsigned char)text[i]) && strchr("-_.", text[i]) == NULL) {
            return false;
        }
        start = text[i] == '.';
    }
    return !start;
}

/* Takes "key=value" with ",," for a comma in the value, and what follows its comma; NULL after an error. */
static const char *parse_pair(struct properties *given, const char *text, char **error)
{
    size_t length = strcspn(text, "=,");
    char *item, *out;

    if (!is_key(text, length)) {
        refuse(error, -EINVAL, text_format("Invalid parameter '%.*s'", (int)length, text));
        return NULL;
    }
    if (text[length] != '=') {
        refuse(error, -EINVAL, text_format("Expected '=' after parameter '%.*s'", (int)length, text));
        return NULL;
    }
    item = memory_or_exit(malloc(strlen(text) + 1));
    out = item + length + 1;
    memcpy(item, text, length + 1);
    for (text += length + 1; *text != '\0'; text++) {
        if (*text == ',' && *++text != ',') {
            break;
        }
        *out++ = *text;
    }
    *out = '\0';
    list_add(&given->items, item);
    list_addf(&given->kinds, "%.*s=string", (int)length, item);
    explicit_bzero(item, (size_t)(out - item));
    free(item);
    return text;
}

static bool asks_help(const char *text)
{
    size_t length = strcspn(text, ",");

    return (length == 1 && *text == '?') || (length == 4 && strncmp(text, "help", 4) == 0);
}

/* 0, 1 where help is asked for, or -EINVAL with *error. */
static int parse_text(struct properties *given, const char *text, char **error)
{
    size_t length = strcspn(text, "=,");
    bool help = asks_help(text);

    if (length > 0 && text[length] != '=' && !help) {
        list_addf(&given->items, "qom-type=%.*s", (int)length, text);
        list_add(&given->kinds, "qom-type=string");
        text += length;
        text += *text == ',' ? 1 : 0;
    }
    while (text != NULL && *text != '\0') {
        if (asks_help(text)) {
            help = true;
            text += strcspn(text, ",");
            text += *text == ',' ? 1 : 0;
        } else {
            text = parse_pair(given, text, error);
        }
    }
    for (size_t i = 0; i < KNOWN && text != NULL; i++) {
        if (list_value(&given->items, known[i]) != NULL && has_group(given, known[i])) {
            return refuse(error, -EINVAL, text_format("Parameters '%s.*' used inconsistently", known[i]));
        }
    }
    return text == NULL ? -EINVAL : help;
}

/* A property that is text; *value is NULL where it is not given. */
static int take_text(const struct properties *given, const char *name, const char **value, char **error)
{
    const char *kind = list_value(&given->kinds, name);

    *value = list_value(&given->items, name);
    if (kind != NULL && !same(kind, "string")) {
        return refuse(error, -EINVAL, text_format("Invalid parameter type for '%s', expected: string", name));
    }
    if (kind == NULL && has_group(given, name)) {
        return refuse(error, -EINVAL, text_format("Parameters '%s.*' are unexpected", name));
    }
    return 0;
}

static int missing(const char *name, char **error)
{
    return refuse(error, -EINVAL, text_format("Parameter '%s' is missing", name));
}

static int not_accepted(const char *name, const char *value, char **error)
{
    return refuse(error, -EINVAL, text_format("Parameter '%s' does not accept value '%s'", name, value));
}

/* Values of all properties, in the order of `known`. */
static int take_all(const struct properties *given, const char *values[KNOWN], char **error)
{
    int ret = 0;

    for (size_t i = 0; i < KNOWN && ret == 0; i++) {
        ret = take_text(given, known[i], &values[i], error);
        if (ret == 0 && i < 2 && values[i] == NULL) {
            ret = missing(known[i], error);
        } else if (ret == 0 && i == 0 && !same(values[i], "secret")) {
            ret = not_accepted(known[i], values[i], error);
        } else if (ret == 0 && i == 2 && values[i] != NULL && !same(values[i], "raw") && !same(values[i], "base64")) {
            ret = not_accepted(known[i], values[i], error);
        }
    }
    for (size_t i = 0; i < given->kinds.count && ret == 0; i++) {
        const char *key = given->kinds.items[i];
        size_t length = strcspn(key, given->json ? "=" : "=."), k = 0;

        while (k < KNOWN && (strncmp(known[k], key, length) != 0 || known[k][length] != '\0')) {
            k++;
        }
        if (k == KNOWN) {
            ret = refuse(error, -EINVAL, text_format("Parameter '%.*s' is unexpected", (int)length, key));
        }
    }
    return ret;
}

static bool is_identifier(const char *id)
{
    for (size_t i = 0; id[i] != '\0'; i++) {
        if (!isalnum((unsigned char)id[i]) && (i == 0 || strchr("-._", id[i]) == NULL)) {
            return false;
        }
    }
    return isalpha((unsigned char)*id);
}

/* --- its bytes --- */

static int digit_of(unsigned char byte)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *found = byte != '\0' ? strchr(digits, byte) : NULL;

    return found != NULL ? (int)(found - digits) : -1;
}

/* In place. A group of four digits makes three bytes, less one for each "=" among its last two; what is left over at the
   end counts for nothing, as in the stock tools. */
static int decode_base64(unsigned char *bytes, size_t *length, char **error)
{
    unsigned group = 0, digits = 0;
    unsigned char *out = bytes, before = 0, last = 0;

    for (size_t i = 0; i < *length; i++) {
        int digit = digit_of(bytes[i]);

        if (bytes[i] == '\n') {
            continue;
        }
        if (digit < 0 && bytes[i] != '=') {
            return refuse(error, -EINVAL, text_copy("Base64 data contains invalid characters"));
        }
        before = last;
        last = bytes[i];
        group = group << 6 | (digit < 0 ? 0 : (unsigned)digit);
        if (++digits % 4 != 0) {
            continue;
        }
        *out++ = (unsigned char)(group >> 16);
        if (before != '=') {
            *out++ = (unsigned char)(group >> 8);
        }
        if (last != '=') {
            *out++ = (unsigned char)group;
        }
    }
    explicit_bzero(out, (size_t)(bytes + *length - out));
    *length = (size_t)(out - bytes);
    return 0;
}

static int read_file(struct secret *secret, const char *path, char **error)
{
    FILE *file = fopen(path, "re");
    int code;

    if (file == NULL) {
        code = errno;
        return refuse(error, -code,
                      text_format("Unable to read %s: Failed to open file “%s”: %s", path, path, strerror(code)));
    }
    setvbuf(file, NULL, _IONBF, 0); /* no copy of it */
    secret->room = FILE_LIMIT + 1;
    secret->bytes = take_pages(secret->room);
    errno = 0;
    secret->length = fread(secret->bytes, 1, secret->room, file);
    code = secret->length == secret->room ? EFBIG : ferror(file) ? errno : 0;
    fclose(file);
    if (code != 0) {
        return refuse(error, -code,
                      text_format("Unable to read %s: Error reading file “%s”: %s", path, path, strerror(code)));
    }
    return 0;
}

static int decrypt(struct secret *secret, const char *key_id, const char *iv_text, bool base64, char **error)
{
    const struct secret *key = find(key_id);
    unsigned char *iv;
    size_t iv_length;
    int64_t length;
    int ret;

    if (key == NULL) {
        return no_secret(key_id, error);
    }
    if (key->length != KEY_BYTES) {
        return refuse(error, -EINVAL, text_format("Key should be %d bytes in length", KEY_BYTES));
    }
    if (iv_text == NULL) {
        return refuse(error, -EINVAL, text_copy("IV is required to decrypt secret"));
    }
    iv = (unsigned char *)text_copy(iv_text);
    iv_length = strlen(iv_text);
    ret = decode_base64(iv, &iv_length, error);
    if (ret == 0 && iv_length != 16) {
        ret = refuse(error, -EINVAL, text_format("IV should be 16 bytes in length not %zu", iv_length));
    }
    ret = ret == 0 && base64 ? decode_base64(secret->bytes, &secret->length, error) : ret;
    if (ret == 0) {
        length = qcow2_decrypt_secret(key->bytes, key->length, iv, iv_length, secret->bytes, secret->length);
        ret = length < 0 ? refuse(error, (int)length, text_copy(failure_text())) : 0;
        secret->length = length < 0 ? 0 : (size_t)length;
    }
    free(iv);
    return ret;
}

static int load(struct secret *secret, const char *const values[KNOWN], char **error)
{
    const char *format = values[2], *key_id = values[3], *iv = values[4], *data = values[5], *file = values[6];
    bool base64 = format != NULL && same(format, "base64");
    int ret = 0;

    if (file != NULL && data != NULL) {
        return refuse(error, -EINVAL, text_copy("'file' and 'data' are mutually exclusive"));
    }
    if (file != NULL) {
        ret = read_file(secret, file, error);
    } else if (data != NULL) {
        secret->length = strlen(data);
        secret->room = secret->length + 1;
        secret->bytes = take_pages(secret->room);
        memcpy(secret->bytes, data, secret->length);
    } else {
        ret = refuse(error, -EINVAL, text_copy("Either 'file' or 'data' must be provided"));
    }
    if (ret == 0 && key_id != NULL) {
        ret = decrypt(secret, key_id, iv, base64, error);
    } else if (ret == 0 && base64) {
        ret = decode_base64(secret->bytes, &secret->length, error);
    }
    return ret;
}

static int add(const char *const values[KNOWN], char **error)
{
    struct secret *secret;
    int ret;

    if (!is_identifier(values[1])) {
        return refuse(error, -EINVAL,
                      text_copy("Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, "
                                "'-', '.', '_', starting with a letter."));
    }
    if (find(values[1]) != NULL) {
        return refuse(error, -EINVAL,
                      text_format("attempt to add duplicate property '%s' to object (type 'container')", values[1]));
    }
    secret = memory_or_exit(calloc(1, sizeof(*secret)));
    secret->id = text_copy(values[1]);
    ret = load(secret, values, error);
    if (ret < 0) {
        secret_free(secret);
        return -EINVAL;
    }
    if (secrets == NULL) {
        atexit(wipe_all);
    }
    secret->next = secrets;
    secrets = secret;
    return 0;
}

/* Names the types, or the properties of one. */
static int print_help(const struct properties *given, char **error)
{
    const char *type = list_value(&given->items, "qom-type");

    if (type != NULL && !same(type, "secret")) {
        return not_accepted("qom-type", type, error);
    }
    fputs(type == NULL ? "List of user creatable objects:\n  secret\n"
                       : "secret options:\n  data=<string>\n  file=<string>\n  format=<QCryptoSecretFormat>\n"
                         "  iv=<string>\n  keyid=<string>\n",
          stdout);
    return 1;
}

int secret_object(char *text, char **error)
{
    struct properties given = {.json = *text == '{'};
    const char *values[KNOWN] = {NULL};
    int ret = given.json ? json_object(text, &given.items, &given.kinds, error) : parse_text(&given, text, error);

    memset(text, 'x', strlen(text));
    if (ret == 1) {
        ret = print_help(&given, error);
    } else if (ret == 0) {
        ret = take_all(&given, values, error);
        ret = ret == 0 ? add(values, error) : ret;
    }
    list_wipe(&given.items);
    list_free(&given.kinds);
    return ret;
}

/* --- handing out --- */

/* Bytes of the character at `bytes`; 0: it is none, or one that no text has. */
static size_t character(const unsigned char *bytes, size_t length)
{
    unsigned first = bytes[0], code;
    size_t count = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;

    if (count == 0 || count > length || first == 0) {
        return 0;
    }
    code = count == 1 ? first : first & (0x7fu >> count);
    for (size_t i = 1; i < count; i++) {
        if ((bytes[i] & 0xc0) != 0x80) {
            return 0;
        }
        code = code << 6 | (bytes[i] & 0x3f);
    }
    if ((count == 3 && (code < 0x800 || (code >= 0xd800 && code < 0xe000))) ||
        (count == 4 && (code < 0x10000 || code > 0x10ffff))) {
        return 0;
    }
    return count;
}

int64_t secret_password(const char *id, void *buffer, size_t room, char **error)
{
    const struct secret *secret = find(id);

    if (secret == NULL) {
        return no_secret(id, error);
    }
    for (size_t at = 0, step; at < secret->length; at += step) {
        step = character(secret->bytes + at, secret->length - at);
        if (step == 0) {
            return refuse(error, -EINVAL, text_format("Data from secret %s is not valid UTF-8", id));
        }
    }
    if (buffer == NULL) {
        return (int64_t)secret->length;
    }
    if (secret->length > room) {
        return refuse(error, -EFBIG, text_format("Secret '%s' has %zu bytes, more than %zu", id, secret->length, room));
    }
    memcpy(buffer, secret->bytes, secret->length);
    return (int64_t)secret->length;
}
