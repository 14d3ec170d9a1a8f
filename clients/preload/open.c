/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "open.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "real.h"
#include "report.h"

/* A memfd's name has at most 249 bytes. */
enum { NAME_MAX_BYTES = 249 };
#define NAME_BEGINNING "qcow2:"

int descriptor_of(const char *path)
{
    const char *digits;
    char *end;
    long fd;

    if (path == NULL || path[0] != '/' || (path[1] != 'd' && path[1] != 'p')) {
        return -1;
    }
    if (strcmp(path, "/dev/stdin") == 0 || strcmp(path, "/dev/stdout") == 0) {
        return path[8] == 'i' ? STDIN_FILENO : STDOUT_FILENO;
    }
    if (strncmp(path, "/dev/fd/", 8) == 0) {
        digits = path + 8;
    } else if (strncmp(path, "/proc/self/fd/", 14) == 0) {
        digits = path + 14;
    } else {
        return -1;
    }
    fd = strtol(digits, &end, 10);
    return *digits >= '0' && *digits <= '9' && *end == '\0' && fd < VIEWS_MAX ? (int)fd : -1;
}

/* What a descriptor refers to; false: nobody can say. */
static bool name_of(int fd, char *name, size_t room)
{
    char link[64];
    ssize_t length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, name, room - 1);
    if (length <= 0 || (size_t)length >= room - 1) {
        return false;
    }
    name[length] = '\0';
    return true;
}

static __attribute__((noinline)) const struct rule *descriptor_rule(int fd)
{
    const struct rule *rule;
    char name[PATH_MAX];

    if (is_view(fd)) {
        struct view *view = view_get(fd);

        if (view != NULL) {
            rule = view->rule;
            view_release(view);
            return rule;
        }
    }
    return name_of(fd, name, sizeof name) ? config_match(name) : NULL;
}

const struct rule *image_rule(const char *path)
{
    const struct rule *rule = config_match(path);
    int fd;

    if (rule != NULL || config_off) {
        return rule;
    }
    fd = descriptor_of(path);
    return fd < 0 ? NULL : descriptor_rule(fd);
}

static bool wants_write(int flags)
{
    return (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC) != 0;
}

/* The program's descriptor: takes the place of `fd`. 0 or -errno. */
static int place(int fd, const char *path, const struct stat64 *status, int flags)
{
    char name[NAME_MAX_BYTES + 1];
    int length, memory, result;

    length = snprintf(name, sizeof name, NAME_BEGINNING "%x:%lx:%lx:%s", (unsigned)flags, (unsigned long)status->st_dev,
                      (unsigned long)status->st_ino, path);
    if (length >= (int)sizeof name) {
        /* Another program cannot find it by this name. */
        snprintf(name, sizeof name, NAME_BEGINNING);
        NOT_SERVED("exec", "a path that is longer than some 210 bytes");
    }
    memory = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memory < 0) {
        return -errno;
    }
    REAL(fcntl64)(memory, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    REAL(fcntl64)(memory, F_SETFL, flags & (O_APPEND | O_NONBLOCK));
    result = REAL(dup3)(memory, fd, flags & O_CLOEXEC) < 0 ? -errno : 0;
    REAL(close)(memory);
    return result;
}

/* 0, or the -errno that `anchor` is. */
static int source_of(int anchor, const struct stat64 *status, const struct rule *rule, struct shared_source *source)
{
    *source = (struct shared_source){
        .anchor = anchor,
        .device = status->st_dev,
        .inode = status->st_ino,
        .flags = rule->flags,
        .options = rule->options,
    };
    return anchor < 0 ? anchor : 0;
}

/* What the library needs of a new file, which the program may want without. */
static const mode_t OWNER = S_IRUSR | S_IWUSR;

/* Opens the image; a new file, of this `mode`, is made so only then. */
static int open_shared(int fd, const struct stat64 *status, const struct rule *rule, bool writable, const mode_t *mode,
                       struct shared **shared)
{
    struct shared_source source;
    mode_t wanted = status->st_mode & 07777 & ~(mode != NULL ? OWNER & ~*mode : 0);
    bool lacks = mode != NULL && (wanted & OWNER) != OWNER;
    int result = source_of(anchor_make_fd(fd), status, rule, &source);

    if (result == 0 && lacks && REAL(fchmod)(fd, wanted | OWNER) != 0) {
        anchor_end(source.anchor);
        result = -errno;
    }
    if (result == 0) {
        result = shared_open(&source, writable, shared);
    }
    if (lacks) {
        REAL(fchmod)(fd, wanted);
    }
    return result;
}

/*
 * The image in the open file `fd`, which becomes the program's descriptor. -errno: it is closed. `mode`: what a new file
 * was asked for with, or NULL.
 */
static int take(int fd, const struct rule *rule, int flags, const mode_t *mode, bool empty)
{
    const char *const create_options[] = {"lazy_refcounts=on", NULL};
    bool writable = wants_write(flags) && !rule->read_only;
    struct shared *shared = NULL;
    struct view *view = NULL;
    struct stat64 status;
    char path[PATH_MAX];
    int result;

    if (fd >= VIEWS_MAX) {
        result = -EMFILE;
    } else if (REAL(fstat64)(fd, &status) != 0) {
        result = -errno;
    } else if (!name_of(fd, path, sizeof path)) {
        result = -ENAMETOOLONG;
    } else {
        empty = empty && status.st_size == 0;
        result = empty ? qcow2_create_fd(fd, 0, create_options) : 0;
        if (result == 0) {
            result = open_shared(fd, &status, rule, writable, mode, &shared);
        }
        if (result < 0) {
            report_line("open: %s: %s (%s)", path, qcow2_last_error(), strerrorname_np(-result));
        }
    }
    if (result == 0) {
        view = view_new(shared, writable, rule, flags & ~(O_CREAT | O_EXCL | O_TRUNC | O_CLOEXEC | O_NOCTTY), &status);
        result = view == NULL ? -ENOMEM : 0;
    }
    if (result == 0 && (flags & O_TRUNC) != 0 && !rule->device && !empty) {
        atomic_fetch_or(&view->flags, O_RDWR);
        result = view_truncate(view, 0);
        atomic_store(&view->flags, flags & ~(O_CREAT | O_EXCL | O_TRUNC | O_CLOEXEC | O_NOCTTY));
    }
    if (result == 0) {
        result = place(fd, path, &status, flags);
    }
    if (result == 0) {
        view_link(fd, view);
        return fd;
    }
    REAL(close)(fd);
    if (view != NULL) {
        atomic_store(&view->dying, 1);
        view_finish(view);
    } else if (shared != NULL) {
        shared_put(shared, writable);
    }
    return result;
}

/* The image of a view, through another open file description. */
static int open_again(struct view *view, int flags)
{
    int fd;

    if (view->rule->read_only && wants_write(flags)) {
        return -EROFS;
    }
    fd = REAL(open64)(view->shared->link, (wants_write(flags) ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY);
    return fd < 0 ? -errno : take(fd, view->rule, flags, NULL, false);
}

static int open_named(int directory, const char *path, int flags, mode_t mode)
{
    const struct rule *rule = image_rule(path);
    struct stat64 status;
    bool made = false;
    int fd, result;

    if (rule == NULL || (flags & (O_PATH | O_DIRECTORY)) != 0 || (flags & O_TMPFILE) == O_TMPFILE) {
        return NOT_AN_IMAGE;
    }
    fd = descriptor_of(path);
    if (fd >= 0 && is_view(fd)) {
        struct view *view = view_get(fd);
        int again = view != NULL ? open_again(view, flags & ~O_CREAT) : -EBADF;

        if (view != NULL) {
            view_release(view);
        }
        return again;
    }
    HIT("open");
    if (REAL(fstatat64)(directory, path, &status, (flags & O_NOFOLLOW) != 0 ? AT_SYMLINK_NOFOLLOW : 0) != 0) {
        if (errno != ENOENT || (flags & O_CREAT) == 0 || rule->read_only) {
            return NOT_AN_IMAGE;
        }
        made = true;
    } else if (!S_ISREG(status.st_mode)) {
        return NOT_AN_IMAGE;
    } else if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) {
        return -EEXIST;
    }
    if (rule->read_only && wants_write(flags)) {
        return -EROFS;
    }
    fd = REAL(openat64)(directory, path,
                        (made || wants_write(flags) ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | (flags & O_NOFOLLOW) |
                            (made ? O_CREAT | O_EXCL : 0),
                        made ? mode | OWNER : mode);
    if (fd < 0) {
        return -errno;
    }
    result = take(fd, rule, flags, made ? &mode : NULL, made || (status.st_size == 0 && (flags & O_TRUNC) != 0));
    if (result < 0 && made) {
        unlinkat(directory, path, 0);
    }
    return result;
}

int image_open(int directory, const char *path, int flags, mode_t mode)
{
    int result;

    shared_begin();
    result = open_named(directory, path, flags, mode);
    shared_end();
    return result;
}

/* What a placeholder says: flags, the file, and the name that it had. False: nothing. */
static bool read_name(const char *name, int *flags, dev_t *device, ino_t *inode, char path[PATH_MAX])
{
    char *end;

    *flags = (int)strtoul(name, &end, 16);
    if (*end == ':') {
        *device = strtoul(end + 1, &end, 16);
        *inode = *end == ':' ? strtoul(end + 1, &end, 16) : 0;
    }
    if (*end != ':' || strlen(end) >= PATH_MAX) {
        return false;
    }
    strcpy(path, end + 1);
    end = strstr(path, " (deleted)");
    if (end != NULL && end[strlen(" (deleted)")] == '\0') {
        *end = '\0';
    }
    return true;
}

/* A placeholder of the program that started this one. */
static void attach(int fd, const char *name)
{
    struct shared_source source = {.anchor = -ESTALE};
    const struct rule *rule;
    struct shared *shared;
    struct stat64 status;
    struct view *view;
    char path[PATH_MAX];
    bool writable;
    int flags;

    if (!read_name(name, &flags, &source.device, &source.inode, path)) {
        return;
    }
    rule = config_match(path);
    if (rule == NULL) {
        report_line("inherited descriptor %d: %s: not an image here", fd, path);
        return;
    }
    source.anchor = anchor_make(path);
    if (source.anchor < 0 || REAL(fstat64)(source.anchor, &status) != 0 || status.st_dev != source.device ||
        status.st_ino != source.inode) {
        report_line("inherited descriptor %d: %s: is gone, or another file has the name", fd, path);
        anchor_end(source.anchor);
        /* Every request fails, unless the image is open in another way. */
        source.anchor = -ESTALE;
        status = (struct stat64){.st_dev = source.device, .st_ino = source.inode};
    }
    source.flags = rule->flags;
    source.options = rule->options;
    writable = wants_write(flags) && !rule->read_only;
    if (shared_attach(&source, writable, &shared) < 0) {
        return;
    }
    flags = (flags & ~(O_APPEND | O_NONBLOCK | O_CLOEXEC | O_CREAT | O_EXCL | O_TRUNC)) |
            (REAL(fcntl64)(fd, F_GETFL) & (O_APPEND | O_NONBLOCK));
    view = view_new(shared, writable, rule, flags, &status);
    if (view == NULL) {
        shared_put(shared, writable);
        return;
    }
    atomic_store(&view->kernel_offset, true);
    view_link(fd, view);
    HIT("inherited descriptor");
}

/* A container that a program without the shim has opened for this one. */
static void convert(int fd, const struct rule *rule)
{
    int flags = REAL(fcntl64)(fd, F_GETFL);
    off_t offset = REAL(lseek64)(fd, 0, SEEK_CUR);
    struct stat64 status;
    struct view *view;
    char link[64];
    int taken;

    if (flags < 0 || (flags & O_PATH) != 0 || REAL(fstat64)(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
        return;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    taken = REAL(open64)(link, (flags & O_ACCMODE) == O_RDONLY ? O_RDONLY : O_RDWR | O_CLOEXEC);
    if (taken >= 0) {
        taken = take(taken, rule, flags, NULL, status.st_size == 0 && (flags & O_ACCMODE) != O_RDONLY);
    }
    view = taken >= 0 ? view_get(taken) : NULL;
    if (view == NULL) {
        /* Nothing rather than the container's bytes. */
        report_line("inherited descriptor %d cannot be served", fd);
        taken = memfd_create(NAME_BEGINNING, MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (taken >= 0) {
            REAL(fcntl64)(taken, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
        }
    }
    if (taken >= 0 && REAL(dup2)(taken, fd) >= 0 && view != NULL) {
        view->offset = offset;
        view_link(fd, view);
        HIT("inherited descriptor");
    }
    if (view != NULL) {
        view_unlink(taken);
        view_release(view);
    }
    if (taken >= 0) {
        REAL(close)(taken);
    }
}

/* The view of an earlier descriptor of the same open file description. */
static struct view *view_of_same(int fd, const struct stat64 *status, int below)
{
    struct stat64 other;

    for (int earlier = 0; earlier < below; earlier++) {
        if (earlier != fd && is_view(earlier) && REAL(fstat64)(earlier, &other) == 0 &&
            other.st_ino == status->st_ino && other.st_dev == status->st_dev) {
            return view_get(earlier);
        }
    }
    return NULL;
}

static void adopt(int fd, int below)
{
    const char placeholder[] = "/memfd:" NAME_BEGINNING;
    const struct rule *rule;
    struct stat64 status;
    struct view *same;
    char name[PATH_MAX];

    if (!name_of(fd, name, sizeof name) || is_view(fd) || fd >= VIEWS_MAX) {
        return;
    }
    if (strncmp(name, placeholder, sizeof placeholder - 1) == 0) {
        same = REAL(fstat64)(fd, &status) == 0 ? view_of_same(fd, &status, below) : NULL;
        if (same == NULL) {
            attach(fd, name + sizeof placeholder - 1);
            return;
        }
        view_link(fd, same);
        view_release(same);
        return;
    }
    rule = name[0] == '/' ? config_match(name) : NULL;
    if (rule != NULL) {
        convert(fd, rule);
    }
}

void adopt_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0, fds[1024];
    struct dirent *entry;

    if (directory == NULL) {
        for (int fd = 0; fd < 3; fd++) {
            adopt(fd, 3);
        }
        return;
    }
    /* All of them first: what is adopted opens more. */
    while ((entry = readdir(directory)) != NULL && count < 1024) {
        if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(directory)) {
            fds[count++] = atoi(entry->d_name);
        }
    }
    closedir(directory);
    for (int i = 0; i < count; i++) {
        adopt(fds[i], VIEWS_MAX);
    }
}
