/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "open.h"

#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#include "real.h"
#include "report.h"

/* A memfd's name has at most 249 bytes. */
enum { NAME_MAX_BYTES = 249 };

atomic_bool image_paths;

/* The number in the name of a process's descriptor, and what comes before it; NULL: no such name. */
static const char *descriptor_name(const char *path, size_t *before)
{
    const char *digits;

    if (path == NULL || path[0] != '/' || (path[1] != 'd' && path[1] != 'p')) {
        return NULL;
    }
    if (strncmp(path, "/dev/fd/", 8) == 0) {
        digits = path + 8;
    } else {
        digits = strncmp(path, "/proc/", 6) == 0 ? strstr(path + 5, "/fd/") : NULL;
        digits = digits != NULL ? digits + 4 : NULL;
    }
    if (digits == NULL || *digits == '\0' || digits[strspn(digits, "0123456789")] != '\0') {
        return NULL;
    }
    *before = (size_t)(digits - path);
    return digits;
}

int descriptor_of(const char *path)
{
    const char *digits, *who;
    size_t before;
    long fd;

    if (path == NULL || path[0] != '/' || (path[1] != 'd' && path[1] != 'p')) {
        return -1;
    }
    if (strcmp(path, "/dev/stdin") == 0 || strcmp(path, "/dev/stdout") == 0) {
        return path[8] == 'i' ? STDIN_FILENO : STDOUT_FILENO;
    }
    digits = descriptor_name(path, &before);
    if (digits == NULL) {
        return -1;
    }
    who = path + sizeof "/proc/" - 1;
    if (path[1] == 'p' && strncmp(who, "self/", 5) != 0 && strncmp(who, "thread-self/", 12) != 0 &&
        strtol(who, NULL, 10) != getpid()) {
        return -1;
    }
    fd = strtol(digits, NULL, 10);
    return fd < VIEWS_MAX ? (int)fd : -1;
}

bool image_name_of(int fd, char *name, size_t room)
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

int no_name(const char *call)
{
    if (access("/proc/self/fd", F_OK) == 0) {
        return -ENAMETOOLONG;
    }
    report_line("%s: /proc is not mounted, and the library needs it (ENOSYS)", call);
    return -ENOSYS;
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
    return image_name_of(fd, name, sizeof name) ? config_match(name) : NULL;
}

bool placeholder_path(const char *name, char path[PATH_MAX], int *flags, dev_t *device, ino_t *inode)
{
    const char gone[] = " (deleted)";
    size_t length;
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
    /* The kernel's, of the memory file; what comes before may be the name's own. */
    length = strlen(path);
    if (length >= strlen(gone) && strcmp(path + length - strlen(gone), gone) == 0) {
        path[length - strlen(gone)] = '\0';
    }
    return true;
}

bool image_name_of_other(const char *path, char name[PATH_MAX])
{
    const char placeholder[] = "/memfd:" NAME_BEGINNING;
    char link[PATH_MAX];
    size_t before;
    ssize_t length;
    dev_t device;
    ino_t inode;
    int flags;

    if (descriptor_name(path, &before) == NULL || descriptor_of(path) >= 0) {
        return false;
    }
    length = readlink(path, link, sizeof link - 1);
    if (length <= 0) {
        return false;
    }
    link[length] = '\0';
    if (strncmp(link, placeholder, sizeof placeholder - 1) == 0) {
        return placeholder_path(link + sizeof placeholder - 1, name, &flags, &device, &inode);
    }
    strcpy(name, link);
    return true;
}

const struct rule *image_rule(const char *path)
{
    const struct rule *rule = config_match(path);
    char name[PATH_MAX];
    int fd;

    if (rule != NULL || config_off) {
        return rule;
    }
    fd = descriptor_of(path);
    if (fd >= 0) {
        return descriptor_rule(fd);
    }
    return image_name_of_other(path, name) ? config_match(name) : NULL;
}

static bool wants_write(int flags)
{
    return (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC) != 0;
}

int placeholder_new(const char *name, int flags)
{
    int memory = REAL(memfd_create)(name, MFD_CLOEXEC | MFD_ALLOW_SEALING), made;
    char link[64];

    if (memory < 0) {
        return -errno;
    }
    REAL(fcntl64)(memory, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    snprintf(link, sizeof link, "/proc/self/fd/%d", memory);
    made = REAL(open64)(link, O_WRONLY | O_CLOEXEC | (flags & (O_APPEND | O_NONBLOCK)));
    made = made < 0 ? -errno : made;
    /* Nobody opens it again. */
    REAL(fchmod)(memory, 0);
    REAL(close)(memory);
    return made;
}

bool is_placeholder(int fd)
{
    const char placeholder[] = "/memfd:" NAME_BEGINNING;
    char name[PATH_MAX];

    return image_name_of(fd, name, sizeof name) && strncmp(name, placeholder, sizeof placeholder - 1) == 0;
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
    memory = placeholder_new(name, flags);
    if (memory < 0) {
        return memory;
    }
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

/* Opens the image; a new file, of this `mode`, is made so only then. */
static int open_shared(int fd, const struct stat64 *status, const struct rule *rule, bool writable, const mode_t *mode,
                       struct shared **shared)
{
    struct shared_source source;
    mode_t wanted = status->st_mode & 07777 & ~(mode != NULL ? NEW_FILE_OWNER & ~*mode : 0);
    bool lacks = mode != NULL && (wanted & NEW_FILE_OWNER) != NEW_FILE_OWNER;
    int result = source_of(anchor_make_fd(fd), status, rule, &source);

    if (result == 0 && lacks && REAL(fchmod)(fd, wanted | NEW_FILE_OWNER) != 0) {
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

int image_take(int fd, const struct rule *rule, int flags, const mode_t *mode, bool empty)
{
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
    } else if (!image_name_of(fd, path, sizeof path)) {
        result = no_name("open");
    } else {
        result = fill_empty(fd, empty, (flags & O_TRUNC) != 0 && writable, &status);
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
    if (result == 0 && (flags & O_TRUNC) != 0 && !rule->device && view_size(view) != 0) {
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

static int open_file(int directory, const char *path, int flags)
{
    int how = (wants_write(flags) ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | (flags & O_NOFOLLOW);
    int fd = REAL(openat64)(directory, path, how);

    return fd < 0 ? -errno : fd;
}

/* The image of a view, through another open file description. */
static int open_again(struct view *view, int flags)
{
    int fd;

    if (view->rule->read_only && wants_write(flags)) {
        return -EROFS;
    }
    fd = REAL(open64)(view->shared->link, (wants_write(flags) ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY);
    return fd < 0 ? -errno : image_take(fd, view->rule, flags, NULL, false);
}

static int open_named(int directory, const char *path, int flags, mode_t mode)
{
    const struct rule *rule = image_rule(path);
    char name[PATH_MAX];
    struct stat64 status;
    bool absent = false, made = false;
    int fd, result;

    if (rule != NULL && (flags & O_PATH) != 0) {
        atomic_store(&image_paths, true);
    }
    if (rule != NULL && view_interrupted()) {
        /* A signal handler, in the middle of a request: the images' list may be held. */
        return -EDEADLK;
    }
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
    if (fd < 0 && image_name_of_other(path, name)) {
        directory = AT_FDCWD;
        path = name;
    }
    HIT("open");
    if (REAL(fstatat64)(directory, path, &status, (flags & O_NOFOLLOW) != 0 ? AT_SYMLINK_NOFOLLOW : 0) != 0) {
        if (errno != ENOENT || (flags & O_CREAT) == 0 || rule->read_only) {
            return NOT_AN_IMAGE;
        }
        absent = true;
    } else if (!S_ISREG(status.st_mode)) {
        return NOT_AN_IMAGE;
    } else if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) {
        return -EEXIST;
    }
    if (rule->read_only && wants_write(flags)) {
        return -EROFS;
    }
    fd = absent ? make_file(directory, path, flags, mode, &made) : open_file(directory, path, flags);
    if (fd < 0) {
        return fd;
    }
    /* A file without contents, opened so that it would be made or cut, becomes an image. */
    result = image_take(fd, rule, flags, made ? &mode : NULL,
                        made || (wants_write(flags) && (flags & (O_CREAT | O_TRUNC)) != 0));
    if (result < 0 && made) {
        unlinkat(directory, path, 0);
    }
    return result;
}

int image_open(int directory, const char *path, int flags, mode_t mode)
{
    int result, cancel;

    /* Parts of it take locks. */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    result = open_named(directory, path, flags, mode);
    pthread_setcancelstate(cancel, NULL);
    return result;
}

int64_t image_size_at(int fd, const struct stat64 *status, const struct rule **rule)
{
    char name[PATH_MAX];
    int flags = REAL(fcntl64)(fd, F_GETFL);

    if (flags < 0 || (flags & O_PATH) == 0 || !S_ISREG(status->st_mode) || !image_name_of(fd, name, sizeof name) ||
        (*rule = config_match(name)) == NULL) {
        return -ENOENT;
    }
    return image_size(AT_FDCWD, name, status);
}
