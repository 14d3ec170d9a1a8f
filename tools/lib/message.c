/* What the tools say, and text in memory.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "common.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
    /* Nobody need read what is printed: an image is closed in any case. */
    signal(SIGPIPE, SIG_IGN);

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

void text_wipe(char *text)
{
    if (text != NULL) {
        explicit_bzero(text, strlen(text));
    }
    free(text);
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

char *text_vformat(const char *format, va_list arguments)
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
