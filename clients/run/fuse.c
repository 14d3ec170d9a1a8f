/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The images as files of the kernel's, for this process and its children alone. */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SERVERS_MAX = 64, PATIENCE_MS = 10000, PAUSE_MS = 5 };

static int write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC), result;

    if (fd < 0) {
        return -errno;
    }
    result = write(fd, text, strlen(text)) < 0 ? -errno : 0;
    close(fd);
    return result;
}

/* A mount namespace of its own; who is not root becomes root of a user namespace for it. 0 or -errno. */
static int private_mounts(void)
{
    uid_t user = geteuid();
    gid_t group = getegid();
    char map[64];
    int result;

    if (user != 0 || unshare(CLONE_NEWNS) != 0) {
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
            return -errno;
        }
        write_file("/proc/self/setgroups", "deny");
        snprintf(map, sizeof map, "0 %u 1", (unsigned)user);
        result = write_file("/proc/self/uid_map", map);
        snprintf(map, sizeof map, "0 %u 1", (unsigned)group);
        if (result == 0) {
            result = write_file("/proc/self/gid_map", map);
        }
        if (result < 0) {
            return result;
        }
    }
    return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ? -errno : 0;
}

const char *fuse_unavailable(const char *server)
{
    int fd, status;
    pid_t child;

    if (server == NULL) {
        return "there is no qcow2-fuse";
    }
    fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return "/dev/fuse cannot be opened";
    }
    close(fd);
    child = fork();
    if (child == 0) {
        _exit(private_mounts() != 0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
        return "no private mount namespace is allowed here";
    }
    return NULL;
}

/* The process of a server, or -1. */
static pid_t start_server(const char *server, bool read_only, const char *image)
{
    pid_t child = fork();

    if (child == 0) {
        /* Terminal signals are for the program; its end ends the server. */
        setsid();
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (read_only) {
            execl(server, server, "-f", "-o", "ro", image, image, (char *)NULL);
        } else {
            execl(server, server, "-f", image, image, (char *)NULL);
        }
        say("%s: %s", server, strerror(errno));
        _exit(127);
    }
    return child;
}

/* Until the image's name is another file: 0, or -errno. */
static int wait_for_mount(const char *image, const struct stat *before, pid_t server)
{
    struct timespec pause = {.tv_nsec = PAUSE_MS * 1000000L};
    struct stat now;
    int status;

    for (int waited = 0; waited < PATIENCE_MS; waited += PAUSE_MS) {
        if (stat(image, &now) == 0 && now.st_dev != before->st_dev) {
            return 0;
        }
        if (waitpid(server, &status, WNOHANG) == server) {
            return -EIO;
        }
        nanosleep(&pause, NULL);
    }
    return -ETIMEDOUT;
}

static int run_command(char *const command[])
{
    pid_t child = fork();
    int status;

    if (child == 0) {
        execvp(command[0], command);
        say("%s: %s", command[0], strerror(errno));
        _exit(errno == ENOENT ? 127 : 126);
    }
    if (child < 0) {
        return 126;
    }
    signal(SIGINT, SIG_IGN);
    signal(SIGQUIT, SIG_IGN);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int run_by_fuse(const char *server, bool read_only, char *const images[], char *const command[])
{
    pid_t servers[SERVERS_MAX];
    int count = 0, result = private_mounts();

    if (result < 0) {
        say("private mounts: %s", strerror(-result));
        return 126;
    }
    for (; images[count] != NULL && count < SERVERS_MAX; count++) {
        struct stat before;

        if (stat(images[count], &before) != 0) {
            result = -errno;
            break;
        }
        servers[count] = start_server(server, read_only, images[count]);
        result = servers[count] < 0 ? -errno : wait_for_mount(images[count], &before, servers[count]);
        if (result < 0) {
            say("%s cannot be shown as a disk: %s", images[count], strerror(-result));
            break;
        }
    }
    result = result < 0 ? 126 : run_command(command);
    while (count-- > 0) {
        int status;

        /* What the program has written is with the server, which brings it to the image before it ends. */
        umount2(images[count], 0);
        kill(servers[count], SIGTERM);
        if (waitpid(servers[count], &status, 0) == servers[count] && WIFEXITED(status) && WEXITSTATUS(status) != 0 &&
            result == 0) {
            say("the server of %s has failed", images[count]);
            result = 126;
        }
    }
    return result;
}
