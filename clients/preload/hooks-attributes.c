/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Lists of attributes, without the one that keeps a length. */
#include "hooks.h"

#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "length.h"

enum { LIST_BYTES = 65536 };

typedef ssize_t (*lister)(const char *path, char *names, size_t size);

static ssize_t list_others(lister list, const char *path, char *names, size_t size)
{
    char *all = malloc(LIST_BYTES);
    ssize_t length = all != NULL ? list(path, all, LIST_BYTES) : answer(-ENOMEM), used = 0;

    for (ssize_t at = 0; at < length;) {
        size_t part = strlen(all + at) + 1;

        if (strcmp(all + at, LENGTH_ATTRIBUTE) != 0) {
            memmove(all + used, all + at, part);
            used += (ssize_t)part;
        }
        at += (ssize_t)part;
    }
    if (length >= 0 && size > 0 && (size_t)used > size) {
        length = answer(-ERANGE);
    } else if (length >= 0) {
        length = used;
        if (size > 0) {
            memcpy(names, all, (size_t)used);
        }
    }
    free(all);
    return length;
}

HOOK ssize_t listxattr(const char *path, char *names, size_t size)
{
    bool image = config_maybe(path) && image_rule(path) != NULL;
    char target[PATH_MAX];
    ssize_t length = image ? 0 : REAL(listxattr)(path, names, size);

    if (!image && (length > 0 || (length < 0 && errno == ERANGE))) {
        image = image_link(AT_FDCWD, path, target);
    }
    return image ? list_others(REAL(listxattr), path, names, size) : length;
}

HOOK ssize_t llistxattr(const char *path, char *names, size_t size)
{
    return config_maybe(path) && config_match(path) != NULL ? list_others(REAL(llistxattr), path, names, size)
                                                            : REAL(llistxattr)(path, names, size);
}
