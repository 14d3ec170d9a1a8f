/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Wide characters on streams of ours. The C library's cookie streams have no place for them: they are turned into bytes
 * here, and those are what the stream has. Encodings that keep a state between characters are no locale's.
 */
#include "hooks.h"

#include <stdlib.h>
#include <wchar.h>

enum { ERROR_SEEN = 0x20 };

static wint_t failed(FILE *file, int number)
{
    file->_flags |= ERROR_SEEN;
    errno = number;
    return WEOF;
}

static wint_t get_wide(FILE *file)
{
    mbstate_t state = {0};
    wchar_t wide = 0;
    size_t length;

    do {
        int byte = getc_unlocked(file);
        char one = (char)byte;

        if (byte == EOF) {
            return mbsinit(&state) ? WEOF : failed(file, EILSEQ);
        }
        length = mbrtowc(&wide, &one, 1, &state);
    } while (length == (size_t)-2);
    return length == (size_t)-1 ? failed(file, EILSEQ) : (wint_t)wide;
}

static wint_t put_wide(wchar_t wide, FILE *file)
{
    char bytes[MB_LEN_MAX];
    mbstate_t state = {0};
    size_t length = wcrtomb(bytes, wide, &state);

    if (length == (size_t)-1) {
        /* As the C library writes what the locale does not have. */
        bytes[0] = '?';
        length = 1;
    }
    return fwrite_unlocked(bytes, 1, length, file) == length ? (wint_t)wide : WEOF;
}

static wint_t get_one(FILE *file)
{
    wint_t wide;

    stream_wide(file, 1);
    flockfile(file);
    wide = get_wide(file);
    funlockfile(file);
    return wide;
}

static wint_t put_one(wchar_t wide, FILE *file)
{
    wint_t result;

    stream_wide(file, 1);
    flockfile(file);
    result = put_wide(wide, file);
    funlockfile(file);
    return result;
}

static wchar_t *get_line(wchar_t *line, int room, FILE *file)
{
    int used = 0;
    wint_t wide = WEOF;

    stream_wide(file, 1);
    if (room <= 0) {
        return NULL;
    }
    flockfile(file);
    while (used < room - 1 && (wide = get_wide(file)) != WEOF) {
        line[used++] = (wchar_t)wide;
        if (wide == L'\n') {
            break;
        }
    }
    funlockfile(file);
    line[used] = L'\0';
    return used == 0 && room > 1 ? NULL : line;
}

static int put_text(const wchar_t *text, FILE *file)
{
    int result = 1;

    stream_wide(file, 1);
    flockfile(file);
    while (*text != L'\0' && result == 1) {
        result = put_wide(*text++, file) == WEOF ? -1 : 1;
    }
    funlockfile(file);
    return result;
}

#define GET(name)                                                                                                      \
    HOOK wint_t hook_##name(FILE *file) __asm__(#name);                                                                \
    wint_t hook_##name(FILE *file)                                                                                     \
    {                                                                                                                  \
        return is_ours(file) ? get_one(file) : REAL(name)(file);                                                       \
    }
#define GET_STANDARD(name, of)                                                                                         \
    HOOK wint_t hook_##name(void) __asm__(#name);                                                                      \
    wint_t hook_##name(void)                                                                                           \
    {                                                                                                                  \
        return is_ours(stdin) ? get_one(stdin) : REAL(of)(stdin);                                                      \
    }
#define PUT(name)                                                                                                      \
    HOOK wint_t hook_##name(wchar_t wide, FILE *file) __asm__(#name);                                                  \
    wint_t hook_##name(wchar_t wide, FILE *file)                                                                       \
    {                                                                                                                  \
        return is_ours(file) ? put_one(wide, file) : REAL(name)(wide, file);                                           \
    }
#define PUT_STANDARD(name, of)                                                                                         \
    HOOK wint_t hook_##name(wchar_t wide) __asm__(#name);                                                              \
    wint_t hook_##name(wchar_t wide)                                                                                   \
    {                                                                                                                  \
        return is_ours(stdout) ? put_one(wide, stdout) : REAL(of)(wide, stdout);                                       \
    }

GET(fgetwc)
GET(getwc)
GET(fgetwc_unlocked)
GET(getwc_unlocked)
GET_STANDARD(getwchar, fgetwc)
GET_STANDARD(getwchar_unlocked, fgetwc_unlocked)
PUT(fputwc)
PUT(putwc)
PUT(fputwc_unlocked)
PUT(putwc_unlocked)
PUT_STANDARD(putwchar, fputwc)
PUT_STANDARD(putwchar_unlocked, fputwc_unlocked)

HOOK wchar_t *fgetws(wchar_t *line, int room, FILE *file)
{
    return is_ours(file) ? get_line(line, room, file) : REAL(fgetws)(line, room, file);
}

HOOK wchar_t *fgetws_unlocked(wchar_t *line, int room, FILE *file)
{
    return is_ours(file) ? get_line(line, room, file) : REAL(fgetws_unlocked)(line, room, file);
}

HOOK wchar_t *__fgetws_chk(wchar_t *line, size_t size, int room, FILE *file)
{
    return is_ours(file) && (size_t)room <= size ? get_line(line, room, file)
                                                 : REAL(__fgetws_chk)(line, size, room, file);
}

HOOK wchar_t *__fgetws_unlocked_chk(wchar_t *line, size_t size, int room, FILE *file)
{
    return is_ours(file) && (size_t)room <= size ? get_line(line, room, file)
                                                 : REAL(__fgetws_unlocked_chk)(line, size, room, file);
}

HOOK int fputws(const wchar_t *text, FILE *file)
{
    return is_ours(file) ? put_text(text, file) : REAL(fputws)(text, file);
}

HOOK int fputws_unlocked(const wchar_t *text, FILE *file)
{
    return is_ours(file) ? put_text(text, file) : REAL(fputws_unlocked)(text, file);
}

HOOK wint_t ungetwc(wint_t wide, FILE *file)
{
    char bytes[MB_LEN_MAX];
    mbstate_t state = {0};
    size_t length;

    if (!is_ours(file)) {
        return REAL(ungetwc)(wide, file);
    }
    length = wide != WEOF ? wcrtomb(bytes, (wchar_t)wide, &state) : (size_t)-1;
    if (length == (size_t)-1) {
        return WEOF;
    }
    stream_wide(file, 1);
    while (length > 0) {
        if (ungetc((unsigned char)bytes[--length], file) == EOF) {
            return WEOF;
        }
    }
    return wide;
}

HOOK int fwide(FILE *file, int mode)
{
    return is_ours(file) ? stream_wide(file, mode) : REAL(fwide)(file, mode);
}

/* By a stream that has a place for wide characters. `flag` < 0: no checks. */
static int print_wide(FILE *file, int flag, const wchar_t *format, va_list arguments)
{
    wchar_t *text = NULL;
    size_t size;
    FILE *memory = open_wmemstream(&text, &size);
    int length;

    if (memory == NULL) {
        return -1;
    }
    length =
        flag < 0 ? REAL(vfwprintf)(memory, format, arguments) : REAL(__vfwprintf_chk)(memory, flag, format, arguments);
    REAL(fclose)(memory);
    stream_wide(file, 1);
    flockfile(file);
    for (int i = 0; i < length; i++) {
        if (put_wide(text[i], file) == WEOF) {
            length = -1;
        }
    }
    funlockfile(file);
    free(text);
    return length;
}

HOOK int vfwprintf(FILE *file, const wchar_t *format, va_list arguments)
{
    return is_ours(file) ? print_wide(file, -1, format, arguments) : REAL(vfwprintf)(file, format, arguments);
}

HOOK int __vfwprintf_chk(FILE *file, int flag, const wchar_t *format, va_list arguments)
{
    return is_ours(file) ? print_wide(file, flag, format, arguments)
                         : REAL(__vfwprintf_chk)(file, flag, format, arguments);
}

HOOK int vwprintf(const wchar_t *format, va_list arguments)
{
    return vfwprintf(stdout, format, arguments);
}

HOOK int __vwprintf_chk(int flag, const wchar_t *format, va_list arguments)
{
    return __vfwprintf_chk(stdout, flag, format, arguments);
}

/* What has "..." is what takes the list. */
#define WITH_LIST(call, format)                                                                                        \
    va_list arguments;                                                                                                 \
    int result;                                                                                                        \
                                                                                                                       \
    va_start(arguments, format);                                                                                       \
    result = (call);                                                                                                   \
    va_end(arguments);                                                                                                 \
    return result;

HOOK int fwprintf(FILE *file, const wchar_t *format, ...){WITH_LIST(vfwprintf(file, format, arguments), format)}

HOOK int wprintf(const wchar_t *format, ...){WITH_LIST(vfwprintf(stdout, format, arguments), format)}

HOOK int __fwprintf_chk(FILE *file, int flag, const wchar_t *format,
                        ...){WITH_LIST(__vfwprintf_chk(file, flag, format, arguments), format)}

HOOK int __wprintf_chk(int flag, const wchar_t *format, ...)
{
    WITH_LIST(__vfwprintf_chk(stdout, flag, format, arguments), format)
}

static int scan_none(FILE *file)
{
    NOT_SERVED("fwscanf", "an image's stream");
    return (int)failed(file, EOPNOTSUPP);
}

/* Under each of the names that C's standards have given them. */
#define SCAN(prefix)                                                                                                   \
    HOOK int hook_##prefix##vfwscanf(FILE *file, const wchar_t *format,                                                \
                                     va_list arguments) __asm__(#prefix "vfwscanf");                                   \
    HOOK int hook_##prefix##vwscanf(const wchar_t *format, va_list arguments) __asm__(#prefix "vwscanf");              \
    HOOK int hook_##prefix##fwscanf(FILE *file, const wchar_t *format, ...) __asm__(#prefix "fwscanf");                \
    HOOK int hook_##prefix##wscanf(const wchar_t *format, ...) __asm__(#prefix "wscanf");                              \
    int hook_##prefix##vfwscanf(FILE *file, const wchar_t *format, va_list arguments)                                  \
    {                                                                                                                  \
        return is_ours(file) ? scan_none(file) : REAL(prefix##vfwscanf)(file, format, arguments);                      \
    }                                                                                                                  \
    int hook_##prefix##vwscanf(const wchar_t *format, va_list arguments)                                               \
    {                                                                                                                  \
        return hook_##prefix##vfwscanf(stdin, format, arguments);                                                      \
    }                                                                                                                  \
    int hook_##prefix##fwscanf(FILE *file, const wchar_t *format, ...)                                                 \
    {                                                                                                                  \
        WITH_LIST(hook_##prefix##vfwscanf(file, format, arguments), format)                                            \
    }                                                                                                                  \
    int hook_##prefix##wscanf(const wchar_t *format, ...)                                                              \
    {                                                                                                                  \
        WITH_LIST(hook_##prefix##vfwscanf(stdin, format, arguments), format)                                           \
    }

SCAN()
SCAN(__isoc99_)
SCAN(__isoc23_)
