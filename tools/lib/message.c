/* What the tools say, and text in memory.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "common.h"

#include <errno.h>
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
    tell_corruption();
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

static enum corruption told;

void forget_corruption(void)
{
    told = CORRUPTION_NONE;
}

/* The stock engine has other words for a data cluster that is about to be written to. */
static char *corruption_words(const qcow2_error_detail *parts, const char *summary, uint64_t offset,
                              uint64_t cluster_size)
{
    static const char entry[] = "Cluster allocation offset ", guest[] = "of guest cluster ";
    const char *at = strstr(summary, entry), *end = strstr(summary, "; further ");
    uint64_t start;

    if (at == NULL || end == NULL || cluster_size == 0 || strncmp(parts->index, guest, strlen(guest)) != 0) {
        return text_copy(summary);
    }
    start = strtoull(parts->index + strlen(guest), NULL, 10) * cluster_size;
    at += strlen(entry);
    return text_format("%.*s%s cluster offset %.*s unaligned (guest offset: %#llx)%s",
                       (int)(at - strlen(entry) - summary), summary, parts->value & 1 ? "Preallocated zero" : "Data",
                       (int)strcspn(at, " "), at, (unsigned long long)(offset > start ? offset : start), end);
}

static void tell(enum corruption found, const char *words)
{
    if (found > told) {
        fprintf(stderr, "qcow2: %s\n", words);
        told = found;
    }
}

static char *seen_words(const char *summary, size_t length)
{
    return text_format("Image is corrupt: %.*s; further non-fatal corruption events will be suppressed", (int)length,
                       summary);
}

/* A broken table that is the cause of an error with words of its own. */
static void tell_cause(const char *cause)
{
    const char *end = cause != NULL ? strstr(cause, " [L1 entry ") : NULL;
    char *words;

    end = end == NULL && cause != NULL ? strstr(cause, " [L2 entry ") : end;
    if (end != NULL) {
        words = seen_words(cause, (size_t)(end - cause));
        tell(CORRUPTION_SEEN, words);
        free(words);
    }
}

enum corruption tell_corruption_of_write(uint64_t offset, uint64_t cluster_size)
{
    qcow2_error_detail parts;
    const char *marked;
    enum corruption found;
    char *words;

    failure_parts(&parts);
    marked = strstr(parts.summary, "Marking image as corrupt: ");
    if (marked != NULL) {
        found = CORRUPTION_MARKED;
        words = corruption_words(&parts, marked, offset, cluster_size);
    } else if (parts.kind == QCOW2_ERROR_CORRUPT &&
               (strcmp(parts.structure, "L1 entry") == 0 || strcmp(parts.structure, "L2 entry") == 0)) {
        found = CORRUPTION_SEEN;
        words = seen_words(parts.summary, strlen(parts.summary));
    } else {
        tell_cause(parts.cause);
        return CORRUPTION_NONE;
    }
    tell(found, words);
    free(words);
    return found;
}

enum corruption tell_corruption(void)
{
    return tell_corruption_of_write(0, 0);
}

const char *failure_text(void)
{
    static char *text;
    const char *wanted = getenv("QCOW2_TOOL_DETAIL");
    qcow2_error_detail parts;
    char *hint;

    failure_parts(&parts);
    if (tell_corruption() != CORRUPTION_NONE) {
        return strerror(EIO);
    }
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
