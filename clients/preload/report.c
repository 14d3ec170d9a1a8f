/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "report.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "real.h"

enum { CALLS_MAX = 128, LINE_MAX_BYTES = 2048 };

bool report_wanted;

static const char *file;
static struct {
    _Atomic(const char *) call;
    atomic_ulong count;
} calls[CALLS_MAX];

void report_start(void)
{
    const char *name = secure_getenv("LIBQCOW2_REPORT");

    if (name != NULL && name[0] != '\0') {
        file = strdup(name);
        report_wanted = file != NULL;
    }
}

void report_count(const char *call)
{
    for (int i = 0; i < CALLS_MAX; i++) {
        const char *found = atomic_load(&calls[i].call);

        if (found == NULL && atomic_compare_exchange_strong(&calls[i].call, &found, call)) {
            found = call;
        }
        if (found != NULL && strcmp(found, call) == 0) {
            atomic_fetch_add(&calls[i].count, 1);
            return;
        }
    }
}

void report_line(const char *format, ...)
{
    char line[LINE_MAX_BYTES];
    int saved = errno, fd, used, text;
    va_list arguments;

    if (!report_wanted) {
        return;
    }
    used = snprintf(line, sizeof line, "%s[%d]: ", program_invocation_short_name, (int)getpid());
    va_start(arguments, format);
    text = vsnprintf(line + used, sizeof line - 1 - (size_t)used, format, arguments);
    va_end(arguments);
    used += text;
    if (used > (int)sizeof line - 2) {
        used = (int)sizeof line - 2;
    }
    line[used++] = '\n';
    fd = REAL(open64)(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd >= 0) {
        if (REAL(write)(fd, line, (size_t)used) < 0) {
            report_wanted = false;
        }
        REAL(close)(fd);
    }
    errno = saved;
}

void report_end(void)
{
    for (int i = 0; report_wanted && i < CALLS_MAX && atomic_load(&calls[i].call) != NULL; i++) {
        unsigned long count = atomic_exchange(&calls[i].count, 0);

        if (count > 0) {
            report_line("served: %s: %lu", atomic_load(&calls[i].call), count);
        }
    }
}
