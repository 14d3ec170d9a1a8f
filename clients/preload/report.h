/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* LIBQCOW2_REPORT=FILE: what was not served, at once, and how often each call met an image, at the end. */
#ifndef PRELOAD_REPORT_H
#define PRELOAD_REPORT_H

#include <stdbool.h>

extern bool report_wanted;

void report_start(void);
void report_count(const char *call);
void report_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
void report_end(void);

/* A call that met an image. */
#define HIT(call)                                                                                                      \
    do {                                                                                                               \
        if (__builtin_expect(report_wanted, 0)) {                                                                      \
            report_count(call);                                                                                        \
        }                                                                                                              \
    } while (0)

/* A call that an image cannot serve. */
#define NOT_SERVED(call, why)                                                                                          \
    do {                                                                                                               \
        if (__builtin_expect(report_wanted, 0)) {                                                                      \
            report_line("not served: %s: %s", call, why);                                                              \
        }                                                                                                              \
    } while (0)

#endif
