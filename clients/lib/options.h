/* What a client is told about opening an image.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef CLIENTS_OPTIONS_H
#define CLIENTS_OPTIONS_H

#include <qcow2.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The flags and options of one open. The library's own list says which options there are; the flags have words here. */
struct open_options {
    uint64_t flags; /* QCOW2_OPEN_* */
    char **items;   /* "key=value", NULL at the end; NULL while there are none */
    size_t count;
};

/* Files that the image names are opened, as the stock servers do. */
#define OPEN_OPTIONS_INIT                                                                                              \
    {                                                                                                                  \
        QCOW2_OPEN_ALLOW_RECORDED, NULL, 0                                                                             \
    }

/* One line of a list of options. `type` and `default_value` are as in qcow2_option_info. */
typedef void (*open_option_fn)(void *opaque, const char *key, const char *type, const char *default_value,
                               const char *help);

/* Where a function has `error`, it returns 0 or -errno, and then *error is a sentence to be freed (NULL: no memory). */

bool open_options_known(const char *key);

/* Takes the place of an earlier value. */
int open_options_set(struct open_options *options, const char *key, const char *value, char **error);

/* For an option of the library: only where no value has been given. */
int open_options_default(struct open_options *options, const char *key, const char *value, char **error);

/* What was given for an option of the library, or NULL. Valid until the next change. */
const char *open_options_value(const struct open_options *options, const char *key);

/* Whether nothing can be written with these: read-only, shared by force, or a snapshot. */
bool open_options_read_only(const struct open_options *options);

/* Flags first, then the library's. */
void open_options_list(open_option_fn each, void *opaque);

/* The list as text of one line each, to be freed; NULL: no memory. */
char *open_options_help(const char *indent);

int open_options_open(const struct open_options *options, const char *path, qcow2_image **image, char **error);

void open_options_free(struct open_options *options);

#endif
