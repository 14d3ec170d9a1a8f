/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the environment says.
 *
 * LIBQCOW2_PRELOAD=off            nothing is served
 * LIBQCOW2_PRELOAD=RULE[:RULE...] RULE is NAME[,ro][,device][,backing=on|off][,KEY=VALUE...]; the first
 *                                 one that fits counts
 *
 * NAME is "*END" (names that end so), a path, or a name without '/'. Without rules it is "*.qcow2". KEY=VALUE is an
 * option of qcow2_open.
 */
#ifndef PRELOAD_CONFIG_H
#define PRELOAD_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct rule {
    struct rule *next;
    /* What names end with; `whole`: what the last part of them is. */
    const char *end;
    size_t end_length;
    bool whole;
    /* A path with a '/': the file is compared, too. */
    const char *path;
    bool read_only;
    bool device;
    uint64_t flags;
    const char *const *options;
};

void config_read(void);

/* The rule for a name, NULL: not an image. */
const struct rule *config_match(const char *name);

/* LIBQCOW2_PRELOAD=off. */
extern bool config_off;

/* What names of images end with. */
extern bool config_last[256];

/*
 * strlen without a jump through a table: after a system call each of those is a guess that the processor gets wrong.
 * Aligned words do not reach into a page that the string is not in.
 */
static inline size_t config_length(const char *text)
{
    typedef uint64_t __attribute__((may_alias)) word;
    const uint64_t ones = UINT64_C(0x0101010101010101);
    const char *at = text;

    for (; ((uintptr_t)at & 7) != 0; at++) {
        if (*at == '\0') {
            return (size_t)(at - text);
        }
    }
    while (((*(const word *)at - ones) & ~*(const word *)at & ones << 7) == 0) {
        at += 8;
    }
    while (*at != '\0') {
        at++;
    }
    return (size_t)(at - text);
}

/* Headers say that a name is never NULL; programs pass NULL to see whether the kernel has a call. */
static inline const char *config_hide(const char *name)
{
    __asm__("" : "+r"(name));
    return name;
}

/* False for most names that are none of an image's, and of no descriptor's. */
static inline bool config_maybe(const char *name)
{
    size_t length;

    name = config_hide(name);
    if (name == NULL || name[0] == '\0') {
        return false;
    }
    length = config_length(name);
    return config_last[(unsigned char)name[length - 1]] || (name[0] == '/' && (name[1] == 'd' || name[1] == 'p'));
}

#endif
