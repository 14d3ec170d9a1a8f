/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The images as files of the kernel's, for the program and its children alone.
 *
 * The servers live outside of the namespace that has the mounts, and get descriptors of /dev/fuse instead of places to
 * mount at. So nobody unmounts: a server that dies leaves calls that fail, never the image's own bytes. The mounts go,
 * and with them the servers, when the last process in the namespace has ended, whatever becomes of this one.
 */
#include "run.h"

#include "../fuse/longest.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct server {
    pid_t process;
    int device; /* of /dev/fuse; only until it is the server's alone */
};

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

static _Noreturn void become_server(const char *program, bool read_only, const struct image *image, int device, int go)
{
    const char *arguments[10] = {program, "-f"};
    const int ignored[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT};
    int count = 2, null = open("/dev/null", O_RDWR);
    char place[32], byte;

    /* Terminal signals, and those of a shutdown, are for the programs: when they end, this one does. */
    setsid();
    for (size_t i = 0; i < sizeof ignored / sizeof ignored[0]; i++) {
        signal(ignored[i], SIG_IGN);
    }
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    if (read_only) {
        arguments[count++] = "-o";
        arguments[count++] = "ro";
    }
    if (image->guessed) {
        arguments[count++] = "-o";
        arguments[count++] = "backing=off";
    }
    snprintf(place, sizeof place, "/dev/fd/%d", device);
    arguments[count++] = image->path;
    arguments[count++] = place;
    /* A device that is not mounted yet cannot be read. */
    if (read(go, &byte, 1) == 1 && fcntl(device, F_SETFD, 0) == 0) {
        execv(program, __extension__(char **) arguments);
        complain("%s: %s", program, strerror(errno));
    }
    _exit(127);
}

/* 0 or -errno. */
static int start_server(struct server *server, const char *program, bool read_only, const struct image *image,
                        const int go[2])
{
    server->device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (server->device < 0) {
        return -errno;
    }
    server->process = fork();
    if (server->process == 0) {
        close(go[1]);
        become_server(program, read_only, image, server->device, go[0]);
    }
    if (server->process < 0) {
        close(server->device);
        return -EAGAIN;
    }
    return 0;
}

/* The program may become another user; nobody else is in the namespace. 0 or -errno. */
static int mount_image(const struct image *image, int device, bool read_only)
{
    char options[160];

    snprintf(options, sizeof options,
             "fd=%d,rootmode=100000,user_id=%u,group_id=%u,default_permissions,allow_other,max_read=%u", device,
             (unsigned)geteuid(), (unsigned)getegid(), VIEW_LONGEST_REQUEST);
    return mount(image->path, image->path, "fuse", MS_NOSUID | MS_NODEV | (read_only ? MS_RDONLY : 0), options) != 0
               ? -errno
               : 0;
}

/* Whether the server answers: it does when it has the image open. 0 or -errno. */
static int wait_for_server(const struct image *image)
{
    struct stat status;

    return stat(image->path, &status) != 0 ? -errno : 0;
}

/* What all images need before one is served. `outside`: the namespace without mounts. 0 or -errno, said. */
static int show_images(struct server *servers, const char *program, bool read_only, const struct images *images,
                       int *outside)
{
    int go[2], started = 0, result = private_mounts();

    if (result == 0 && pipe2(go, O_CLOEXEC) != 0) {
        result = -errno;
    }
    if (result < 0) {
        complain("private mounts: %s", strerror(-result));
        return result;
    }
    while (result == 0 && started < images->count) {
        result = start_server(&servers[started], program, read_only, &images->list[started], go);
        started += result == 0;
    }
    *outside = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (result == 0 && (*outside < 0 || unshare(CLONE_NEWNS) != 0)) {
        result = -errno;
    }
    for (int i = 0; i < started; i++) {
        if (result == 0) {
            result = mount_image(&images->list[i], servers[i].device, read_only);
        }
        close(servers[i].device);
    }
    close(go[0]);
    for (int i = 0; i < started && result == 0; i++) {
        result = write(go[1], "", 1) == 1 ? 0 : -EIO;
    }
    close(go[1]);
    for (int i = 0; i < images->count && result == 0; i++) {
        result = wait_for_server(&images->list[i]);
        if (result < 0) {
            complain("%s cannot be shown as a disk", images->list[i].path);
            return result;
        }
    }
    if (result < 0) {
        complain("%s", strerror(-result));
    }
    return result;
}

/* Waits for the program, and hands on what is sent to this process. */
static int wait_for_program(pid_t child, const sigset_t *signals)
{
    siginfo_t info;
    int status;

    while (waitpid(child, &status, WNOHANG) != child) {
        /* What the terminal sends, the program has got, too. */
        if (sigwaitinfo(signals, &info) > 0 && info.si_signo != SIGCHLD && info.si_code <= 0) {
            kill(child, info.si_signo);
        }
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int run_command(char *const command[])
{
    sigset_t signals, before;
    pid_t child;
    int result = 126;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGQUIT);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, &before);
    child = fork();
    if (child == 0) {
        sigprocmask(SIG_SETMASK, &before, NULL);
        execvp(command[0], command);
        complain("%s: %s", command[0], strerror(errno));
        _exit(errno == ENOENT ? 127 : 126);
    }
    if (child > 0) {
        result = wait_for_program(child, &signals);
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    return result;
}

/* Until the image is closed, which is when nobody sees it any more. False: the server has failed. */
static bool wait_for_end(const struct server *server, const char *program)
{
    const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};
    int status;

    for (int waited = 0; waitpid(server->process, &status, WNOHANG) != server->process; waited++) {
        if (waited == 400) {
            say("%s has ended; waiting for processes that it has left", program);
        }
        nanosleep(&pause, NULL);
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int run_by_fuse(const char *server, bool read_only, const struct images *images, char *const command[])
{
    struct server *servers = calloc((size_t)images->count, sizeof *servers);
    int outside = -1, result = 126;

    if (servers == NULL) {
        complain("%s", strerror(ENOMEM));
        return 126;
    }
    if (show_images(servers, server, read_only, images, &outside) == 0) {
        result = run_command(command);
    }
    /* This process in the namespace keeps the mounts, too. */
    if (outside >= 0 && setns(outside, CLONE_NEWNS) == 0) {
        for (int i = 0; i < images->count; i++) {
            if (servers[i].process > 0 && !wait_for_end(&servers[i], command[0]) && result == 0) {
                complain("the server of %s has failed", images->list[i].path);
                result = 126;
            }
        }
    }
    free(servers);
    return result;
}
