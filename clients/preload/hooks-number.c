/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Calls of the C library that make or close descriptors by themselves. A number that an image had may be another file's
 * after them: the table must not say that it is an image still.
 */
#include "hooks.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <syslog.h>
#include <utmp.h>

/* Not in every C library's headers. */
int pidfd_open(pid_t pid, unsigned flags);

void number_gone(int fd)
{
    if (view_at(fd) != VIEW_ENGINE) {
        view_unlink(fd);
        stream_follows(fd);
    }
}

/* After calls that do not say which descriptors they close. */
static void sweep(void)
{
    if (!views_any()) {
        return;
    }
    for (int fd = 0; fd <= views_highest(); fd++) {
        if (is_view(fd) && !is_placeholder(fd)) {
            number_gone(fd);
        }
    }
}

#define MAKES(name, parameters, ...)                                                                                   \
    HOOK int name parameters                                                                                           \
    {                                                                                                                  \
        return number_made(REAL(name)(__VA_ARGS__));                                                                   \
    }

MAKES(socket, (int domain, int type, int protocol), domain, type, protocol)
MAKES(accept, (int fd, struct sockaddr *address, socklen_t *length), fd, address, length)
MAKES(accept4, (int fd, struct sockaddr *address, socklen_t *length, int flags), fd, address, length, flags)
MAKES(epoll_create, (int size), size)
MAKES(epoll_create1, (int flags), flags)
MAKES(eventfd, (unsigned value, int flags), value, flags)
MAKES(signalfd, (int fd, const sigset_t *mask, int flags), fd, mask, flags)
MAKES(timerfd_create, (clockid_t clock, int flags), clock, flags)
MAKES(inotify_init, (void), )
MAKES(inotify_init1, (int flags), flags)
MAKES(fanotify_init, (unsigned flags, unsigned event_flags), flags, event_flags)
MAKES(memfd_create, (const char *name, unsigned flags), name, flags)
MAKES(pidfd_open, (pid_t pid, unsigned flags), pid, flags)
MAKES(posix_openpt, (int flags), flags)
MAKES(getpt, (void), )
MAKES(shm_open, (const char *name, int flags, mode_t mode), name, flags, mode)
MAKES(open_by_handle_at, (int mount, struct file_handle *handle, int flags), mount, handle, flags)

/* Two at once. */
static int both_made(int result, const int fds[2])
{
    if (result == 0) {
        number_made(fds[0]);
        number_made(fds[1]);
    }
    return result;
}

HOOK int pipe(int fds[2])
{
    return both_made(REAL(pipe)(fds), fds);
}

HOOK int pipe2(int fds[2], int flags)
{
    return both_made(REAL(pipe2)(fds, flags), fds);
}

HOOK int socketpair(int domain, int type, int protocol, int fds[2])
{
    return both_made(REAL(socketpair)(domain, type, protocol, fds), fds);
}

HOOK int openpty(int *master, int *slave, char *name, const struct termios *termios, const struct winsize *size)
{
    int result = REAL(openpty)(master, slave, name, termios, size);

    if (result == 0) {
        number_made(*master);
        number_made(*slave);
    }
    return result;
}

HOOK pid_t forkpty(int *master, char *name, const struct termios *termios, const struct winsize *size)
{
    pid_t result = REAL(forkpty)(master, name, termios, size);

    if (result > 0) {
        number_made(*master);
    } else if (result == 0) {
        sweep();
    }
    return result;
}

HOOK int login_tty(int fd)
{
    int result = REAL(login_tty)(fd);

    sweep();
    return result;
}

HOOK int daemon(int stay, int keep)
{
    int result;

    prepare_exec();
    result = REAL(daemon)(stay, keep);
    sweep();
    return result;
}

HOOK void closelog(void)
{
    REAL(closelog)();
    sweep();
}

static FILE *stream_made(FILE *file)
{
    if (file != NULL) {
        number_made(REAL(fileno)(file));
    }
    return file;
}

HOOK FILE *tmpfile(void)
{
    return stream_made(REAL(tmpfile64)());
}

HOOK FILE *tmpfile64(void)
{
    return stream_made(REAL(tmpfile64)());
}

HOOK FILE *popen(const char *command, const char *mode)
{
    prepare_exec();
    return stream_made(REAL(popen)(command, mode));
}

/* Before the C library closes it: afterwards another thread may have the number. It may be an image's by dup2. */
static void closes_stream(FILE *file)
{
    int saved = errno;

    if (file != NULL) {
        number_made(REAL(fileno)(file));
    }
    errno = saved;
}

HOOK int fclose(FILE *file)
{
    closes_stream(file);
    return REAL(fclose)(file);
}

HOOK int pclose(FILE *file)
{
    closes_stream(file);
    return REAL(pclose)(file);
}

HOOK DIR *opendir(const char *path)
{
    DIR *directory = REAL(opendir)(path);

    if (directory != NULL) {
        number_made(dirfd(directory));
    }
    return directory;
}

HOOK int closedir(DIR *directory)
{
    if (directory != NULL) {
        number_made(dirfd(directory));
    }
    return REAL(closedir)(directory);
}

/* `visit` for each descriptor that a message carries. */
static void each_carried(const struct msghdr *message, void (*visit)(int fd, void *opaque), void *opaque)
{
    struct msghdr *headers = __extension__(struct msghdr *) message;

    for (struct cmsghdr *part = CMSG_FIRSTHDR(headers); part != NULL; part = CMSG_NXTHDR(headers, part)) {
        if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
            for (size_t at = CMSG_LEN(0); at + sizeof(int) <= part->cmsg_len; at += sizeof(int)) {
                int fd;

                memcpy(&fd, (char *)part + at, sizeof fd);
                visit(fd, opaque);
            }
        }
    }
}

static void look_for_view(int fd, void *found)
{
    if (is_view(fd)) {
        *(bool *)found = true;
    }
}

/* Who gets an image may have it when the sender does not use it. */
static void before_sending(const struct msghdr *message)
{
    bool found = false;

    if (message != NULL && message->msg_controllen > 0 && views_any()) {
        each_carried(message, look_for_view, &found);
    }
    if (found) {
        HIT("sendmsg");
        prepare_exec();
    }
}

static void take_received(int fd, void *opaque)
{
    (void)opaque;
    number_made(fd);
    adopt_descriptor(fd);
}

static void received(const struct msghdr *message)
{
    int saved = errno;

    if (message->msg_controllen > 0) {
        each_carried(message, take_received, NULL);
    }
    errno = saved;
}

HOOK ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    before_sending(message);
    return REAL(sendmsg)(fd, message, flags);
}

HOOK int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    for (unsigned i = 0; i < count && views_any(); i++) {
        before_sending(&messages[i].msg_hdr);
    }
    return REAL(sendmmsg)(fd, messages, count, flags);
}

HOOK ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    ssize_t result = REAL(recvmsg)(fd, message, flags);

    if (result >= 0) {
        received(message);
    }
    return result;
}

HOOK int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *patience)
{
    int result = REAL(recvmmsg)(fd, messages, count, flags, patience);

    for (int i = 0; i < result; i++) {
        received(&messages[i].msg_hdr);
    }
    return result;
}
