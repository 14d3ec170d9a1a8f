/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* dprintf, which the C library would write past the hooks. */
#include "hooks.h"

#include <stdlib.h>

/* The text as a whole. */
static int print(int fd, const char *format, va_list arguments)
{
    char *text;
    int length = vasprintf(&text, format, arguments), done = 0;

    HIT("dprintf");
    while (done < length) {
        ssize_t part = write(fd, text + done, (size_t)(length - done));

        if (part <= 0) {
            break;
        }
        done += (int)part;
    }
    if (length >= 0) {
        free(text);
    }
    return done < length ? -1 : length;
}

HOOK int vdprintf(int fd, const char *format, va_list arguments)
{
    return is_view(fd) ? print(fd, format, arguments) : REAL(vdprintf)(fd, format, arguments);
}

HOOK int dprintf(int fd, const char *format, ...)
{
    va_list arguments;
    int result;

    va_start(arguments, format);
    result = vdprintf(fd, format, arguments);
    va_end(arguments);
    return result;
}

HOOK int __vdprintf_chk(int fd, int flag, const char *format, va_list arguments)
{
    return is_view(fd) ? print(fd, format, arguments) : REAL(__vdprintf_chk)(fd, flag, format, arguments);
}

HOOK int __dprintf_chk(int fd, int flag, const char *format, ...)
{
    va_list arguments;
    int result;

    va_start(arguments, format);
    result = __vdprintf_chk(fd, flag, format, arguments);
    va_end(arguments);
    return result;
}
