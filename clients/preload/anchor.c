/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "anchor.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "real.h"

#define LINKS "/proc/self/fd/"

int engine_open64(const char *path, int flags, ...);
int engine_close(int fd);

int anchor_make(const char *path)
{
    int anchor = engine_open64(path, O_PATH | O_CLOEXEC, 0);

    return anchor < 0 ? -errno : anchor;
}

int anchor_make_fd(int fd)
{
    char link[ANCHOR_LINK_BYTES];

    anchor_link(fd, link);
    return anchor_make(link);
}

int anchor_open_file(int anchor)
{
    char link[ANCHOR_LINK_BYTES];
    int fd;

    anchor_link(anchor, link);
    fd = engine_open64(link, O_RDONLY | O_CLOEXEC | O_NOCTTY, 0);
    return fd < 0 ? -errno : fd;
}

void anchor_end(int anchor)
{
    if (anchor >= 0) {
        engine_close(anchor);
    }
}

void anchor_link(int anchor, char link[ANCHOR_LINK_BYTES])
{
    snprintf(link, ANCHOR_LINK_BYTES, LINKS "%d", anchor);
}

bool anchor_is(int anchor, dev_t device, ino_t inode)
{
    struct stat64 status;

    return REAL(fstat64)(anchor, &status) == 0 && status.st_dev == device && status.st_ino == inode;
}

struct names {
    const char *link;
    char path[2 * PATH_MAX];
};

static int resolve(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    struct names *names = opaque;
    const char *name = request->recorded_name, *path = request->resolved_path;
    const size_t length = strlen(LINKS);
    ssize_t folder;

    if (path == NULL) {
        return -ENOTSUP;
    }
    answer->path = path;
    if (request->kind == QCOW2_NODE_BACKING && request->depth == 1 && name[0] != '/' &&
        strncmp(name, "file:", 5) != 0 && strncmp(path, LINKS, length) == 0) {
        folder = readlink(names->link, names->path, PATH_MAX);
        while (folder > 0 && names->path[folder - 1] != '/') {
            folder--;
        }
        if (folder <= 0 || strlen(path) >= PATH_MAX) {
            return -ENAMETOOLONG;
        }
        strcpy(names->path + folder, path + length);
        answer->path = names->path;
    }
    return 0;
}

int anchor_open(int anchor, dev_t device, ino_t inode, uint64_t flags, const char *const *options, qcow2_image **image)
{
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    char link[ANCHOR_LINK_BYTES];
    struct names names = {.link = link};

    if (!anchor_is(anchor, device, inode)) {
        return -ESTALE;
    }
    anchor_link(anchor, link);
    params.path = link;
    params.flags = flags;
    params.options = options;
    if ((flags & QCOW2_OPEN_ALLOW_RECORDED) != 0) {
        params.resolve = resolve;
        params.resolve_opaque = &names;
    }
    return qcow2_open_with(&params, image);
}
