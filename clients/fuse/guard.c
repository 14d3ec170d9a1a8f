/*
 * A process that unmounts what a killed server leaves.  SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * libfuse has one (auto_unmount), which counts the machine's FUSE mounts before and after, and does nothing where another
 * one has come or gone meanwhile.
 */
#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Which file system it is. */
struct device {
    unsigned major;
    unsigned minor;
};

/*
 * What is on top there, if it is this one: another server may have come since. The link leads to that mount and no other.
 */
static bool is_on_top(const char *mountpoint, struct device device, char link[32])
{
    int fd = open(mountpoint, O_PATH | O_CLOEXEC);
    struct statx found;

    snprintf(link, 32, "/proc/self/fd/%d", fd);
    return fd >= 0 && statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, 0, &found) == 0 &&
           found.stx_dev_major == device.major && found.stx_dev_minor == device.minor;
}

/* Standard input is the pipe: a device once it is mounted, a byte if all is well, and the end otherwise. */
static _Noreturn void watch(const char *mountpoint)
{
    struct device device;
    char byte, link[32];

    if (read(STDIN_FILENO, &device, sizeof(device)) != sizeof(device) || read(STDIN_FILENO, &byte, 1) != 0 ||
        !is_on_top(mountpoint, device, link) || umount2(link, MNT_DETACH) == 0) {
        _exit(0);
    }
    /* Not root, or no /proc: this one is allowed to. */
    execlp("fusermount3", "fusermount3", "-u", "-z", "-q", "--", mountpoint, (char *)NULL);
    _exit(1);
}

/* Nothing of the server's stays open here, and no signal to its group or terminal ends this process. */
static _Noreturn void become_guard(int pipe_end, const char *mountpoint)
{
    int null = open("/dev/null", O_RDWR);
    sigset_t all;

    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    setsid();
    dup2(null, STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    dup2(pipe_end, STDIN_FILENO);
    close_range(STDERR_FILENO + 1, ~0u, 0);
    if (chdir("/") < 0) {
        _exit(1);
    }
    watch(mountpoint);
}

int guard_begin(struct guard *guard, const char *mountpoint)
{
    int ends[2];
    pid_t child;

    if (pipe2(ends, O_CLOEXEC) < 0) {
        return -errno;
    }
    child = fork();
    if (child == 0) {
        become_guard(ends[0], mountpoint);
    }
    close(ends[0]);
    if (child < 0) {
        close(ends[1]);
        return -EAGAIN;
    }
    *guard = (struct guard){child, ends[1]};
    return 0;
}

int guard_mounted(struct guard *guard, const char *mountpoint)
{
    struct statx found;
    struct device device;

    if (guard->process == 0) {
        return 0;
    }
    /* Nobody serves it yet: this must not be a question to the server. */
    if (statx(AT_FDCWD, mountpoint, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, 0, &found) < 0) {
        return -errno;
    }
    device = (struct device){found.stx_dev_major, found.stx_dev_minor};
    return write(guard->pipe, &device, sizeof(device)) == sizeof(device) ? 0 : -EIO;
}

void guard_end(struct guard *guard)
{
    if (guard->process == 0) {
        return;
    }
    if (write(guard->pipe, "", 1) == 1) {
        close(guard->pipe);
        waitpid(guard->process, NULL, 0);
    }
    guard->process = 0;
}
