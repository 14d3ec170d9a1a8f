/* What a client says.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "log.h"

#include <qcow2.h>

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <syslog.h>

static const char *log_program = "qcow2";
static bool log_in_syslog;

const char *last_failure(void)
{
    static __thread char line[1024];

    snprintf(line, sizeof(line), "%s", qcow2_last_error());
    for (char *c = line; *c != '\0'; c++) {
        *c = *c == '\n' ? ' ' : *c;
    }
    return line;
}

void log_begin(const char *program)
{
    log_program = program;
}

void log_to_syslog(void)
{
    openlog(log_program, LOG_PID, LOG_DAEMON);
    log_in_syslog = true;
}

void log_error(const char *format, ...)
{
    char *text = NULL;
    va_list arguments;

    va_start(arguments, format);
    if (vasprintf(&text, format, arguments) < 0) {
        text = NULL;
    }
    va_end(arguments);
    if (log_in_syslog) {
        syslog(LOG_ERR, "%s", text != NULL ? text : format);
    } else {
        fprintf(stderr, "%s: %s\n", log_program, text != NULL ? text : format);
    }
    free(text);
}
