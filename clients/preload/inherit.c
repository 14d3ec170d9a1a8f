/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Images that a process is started with, as descriptors. */
#include <linux/kcmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "open.h"
#include "real.h"
#include "report.h"

enum { INHERITED_MAX = 1024 };

/*
 * Whether a placeholder is of this user's making, or root's: another user's names a file that this process would open with
 * its own rights. Programs with rights of their own take none.
 */
static bool is_trusted(int fd)
{
    struct stat64 status;

    return getauxval(AT_SECURE) == 0 && REAL(fstat64)(fd, &status) == 0 &&
           (status.st_uid == 0 || status.st_uid == geteuid());
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

    if (!placeholder_path(name, path, &flags, &source.device, &source.inode)) {
        return;
    }
    if (!is_trusted(fd)) {
        report_line("descriptor %d: %s: another user's", fd, path);
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
    writable = (flags & (O_ACCMODE | O_TRUNC)) != O_RDONLY && !rule->read_only;
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

/* Whether both are one open file description, with one offset; false also where the system does not tell. */
static bool is_same_open(int fd, int other)
{
    return REAL(syscall)(SYS_kcmp, getpid(), getpid(), KCMP_FILE, fd, other) == 0;
}

/* `fd`, and each of `others` that is a copy of it, become what `taken` is. */
static void replace(int fd, int taken, struct view *view, const int *others, int count)
{
    bool same[INHERITED_MAX];

    for (int i = 0; i < count; i++) {
        same[i] = others[i] == fd || is_same_open(fd, others[i]);
    }
    for (int i = 0; i < count; i++) {
        int kept = same[i] && (REAL(fcntl64)(others[i], F_GETFD) & FD_CLOEXEC) != 0 ? O_CLOEXEC : 0;

        if (same[i] && REAL(dup3)(taken, others[i], kept) >= 0 && view != NULL) {
            view_link(others[i], view);
            HIT("inherited descriptor");
        }
    }
}

/* A container that a program without the shim has opened for this one, perhaps as several descriptors (`others`). */
static void convert(int fd, const struct rule *rule, const int *others, int count)
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
    taken = REAL(open64)(link, ((flags & O_ACCMODE) == O_RDONLY ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (taken >= 0) {
        taken = image_take(taken, rule, flags, NULL, status.st_size == 0 && (flags & O_ACCMODE) != O_RDONLY);
    }
    view = taken >= 0 ? view_get(taken) : NULL;
    if (view == NULL) {
        /* Nothing rather than the container's bytes. */
        report_line("inherited descriptor %d cannot be served", fd);
        taken = placeholder_new(NAME_BEGINNING, 0);
    }
    if (view != NULL) {
        view->offset = offset;
    }
    if (taken >= 0) {
        replace(fd, taken, view, others, count);
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

/* Without /proc nothing is served; but the container's bytes are not shown either. */
static void hide_container(int fd)
{
    int kept = REAL(fcntl64)(fd, F_GETFD), nothing;
    struct stat64 status;
    char magic[4];

    if (kept < 0 || REAL(fstat64)(fd, &status) != 0 || !S_ISREG(status.st_mode) ||
        REAL(pread64)(fd, magic, sizeof magic, 0) != sizeof magic || memcmp(magic, "QFI\xfb", sizeof magic) != 0) {
        return;
    }
    no_name("inherited descriptor");
    nothing = REAL(memfd_create)(NAME_BEGINNING, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (nothing >= 0) {
        REAL(fcntl64)(nothing, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
        REAL(dup3)(nothing, fd, (kept & FD_CLOEXEC) != 0 ? O_CLOEXEC : 0);
        REAL(close)(nothing);
    }
}

/* `others`: all that there are, this one too. */
static void adopt(int fd, int below, const int *others, int count)
{
    const char placeholder[] = "/memfd:" NAME_BEGINNING;
    const struct rule *rule;
    struct stat64 status;
    struct view *same;
    char name[PATH_MAX];

    if (!image_name_of(fd, name, sizeof name) || is_view(fd) || fd >= VIEWS_MAX) {
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
        convert(fd, rule, others, count);
    }
}

void adopt_descriptor(int fd)
{
    if (!config_off) {
        adopt(fd, views_highest() + 1, &fd, 1);
    }
}

void adopt_descriptors(void)
{
    DIR *directory = REAL(opendir)("/proc/self/fd");
    int count = 0, fds[INHERITED_MAX];
    struct dirent *entry;

    if (directory == NULL) {
        for (; count < 3; count++) {
            fds[count] = count;
        }
        for (int fd = 0; fd < count; fd++) {
            if (access("/proc/self/fd", F_OK) != 0) {
                hide_container(fd);
            } else {
                adopt(fd, count, fds, count);
            }
        }
        return;
    }
    /* All of them first: what is adopted opens more. */
    while ((entry = readdir(directory)) != NULL && count < INHERITED_MAX) {
        if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(directory)) {
            fds[count++] = atoi(entry->d_name);
        }
    }
    REAL(closedir)(directory);
    for (int i = 0; i < count; i++) {
        adopt(fds[i], VIEWS_MAX, fds, count);
    }
}
