/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Symbolic links to images. They are followed by name, since it is a name that says what is an image. */
#include <string.h>

#include "open.h"
#include "real.h"

/* As many as the kernel follows. */
enum { LINKS_MOST = 40 };

/* Puts what a link `name` contains in the place of its last part. */
static bool put_target(char name[PATH_MAX], const char *target, size_t length)
{
    const char *slash = target[0] == '/' ? NULL : strrchr(name, '/');
    size_t kept = slash != NULL ? (size_t)(slash + 1 - name) : 0;

    if (kept + length >= PATH_MAX) {
        return false;
    }
    memcpy(name + kept, target, length);
    name[kept + length] = '\0';
    return true;
}

bool image_link(int directory, const char *path, char name[PATH_MAX])
{
    int saved = errno;
    char target[PATH_MAX];
    struct stat64 status;
    bool found = false;

    path = config_hide(path);
    if (config_off || path == NULL) {
        return false;
    }
    for (int i = 0; i < LINKS_MOST && !found; i++) {
        ssize_t length = readlinkat(directory, i == 0 ? path : name, target, sizeof target);

        if (i == 0 && length > 0) {
            found = strlen(path) < PATH_MAX;
            strcpy(name, found ? path : "");
        }
        if (length <= 0 || name[0] == '\0' || !put_target(name, target, (size_t)length)) {
            found = false;
            break;
        }
        found = image_rule(name) != NULL;
    }
    /* Whoever may not follow the link (a sticky directory) does not get to the image by it. */
    found = found && (REAL(fstatat64)(directory, path, &status, 0) == 0 || errno == ENOENT);
    errno = saved;
    return found;
}
