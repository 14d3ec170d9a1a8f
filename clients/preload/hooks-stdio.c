/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Streams. The C library's own read their descriptors past every hook, so that an image's is a cookie stream. */
#include "hooks.h"

#include <langinfo.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>

struct stream {
    struct stream *next;
    FILE *file;
    int fd;
    /* As fwide has it. */
    int orientation;
};

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct stream *list;

void streams_before_fork(void)
{
    pthread_mutex_lock(&list_lock);
}

void streams_after_fork(void)
{
    pthread_mutex_unlock(&list_lock);
}

static ssize_t stream_read(void *cookie, char *buffer, size_t count)
{
    return read(((struct stream *)cookie)->fd, buffer, count);
}

/* 0 after an error: that is how these streams say it. */
static ssize_t stream_write(void *cookie, const char *buffer, size_t count)
{
    size_t done = 0;

    while (done < count) {
        ssize_t part = write(((struct stream *)cookie)->fd, buffer + done, count - done);

        if (part <= 0) {
            break;
        }
        done += (size_t)part;
    }
    return (ssize_t)done;
}

static int stream_seek(void *cookie, off64_t *offset, int whence)
{
    off_t result = lseek(((struct stream *)cookie)->fd, *offset, whence);

    if (result < 0) {
        return -1;
    }
    *offset = result;
    return 0;
}

/* Out of the list: the descriptor, or -1. */
static int forget(const FILE *file)
{
    int fd = -1;

    pthread_mutex_lock(&list_lock);
    for (struct stream **link = &list; *link != NULL; link = &(*link)->next) {
        if ((*link)->file == file) {
            struct stream *stream = *link;

            fd = stream->fd;
            stream->fd = -1;
            *link = stream->next;
            break;
        }
    }
    pthread_mutex_unlock(&list_lock);
    return fd;
}

static void closed_ours(const FILE *file);

static int stream_close(void *cookie)
{
    struct stream *stream = cookie;
    int fd = forget(stream->file);

    closed_ours(stream->file);
    free(stream);
    return fd < 0 ? 0 : close(fd);
}

/* NULL: no mode. */
static const char *mode_flags(const char *mode, int *flags)
{
    bool plus = strchr(mode, '+') != NULL;

    switch (mode[0]) {
    case 'r': *flags = plus ? O_RDWR : O_RDONLY; break;
    case 'w': *flags = (plus ? O_RDWR : O_WRONLY) | O_CREAT | O_TRUNC; break;
    case 'a': *flags = (plus ? O_RDWR : O_WRONLY) | O_CREAT | O_APPEND; break;
    default: return NULL;
    }
    for (const char *letter = mode + 1; *letter != '\0' && *letter != ','; letter++) {
        *flags |= *letter == 'x' ? O_EXCL : *letter == 'e' ? O_CLOEXEC : 0;
    }
    switch (mode[0]) {
    case 'r': return plus ? "r+" : "r";
    case 'w': return plus ? "w+" : "w";
    default: return plus ? "a+" : "a";
    }
}

static FILE *make_stream(int fd, const char *mode)
{
    const cookie_io_functions_t functions = {stream_read, stream_write, stream_seek, stream_close};
    struct stream *stream = calloc(1, sizeof *stream);
    FILE *file = stream != NULL ? fopencookie(stream, mode, functions) : NULL;

    if (file == NULL) {
        free(stream);
        return NULL;
    }
    stream->fd = fd;
    stream->file = file;
    pthread_mutex_lock(&list_lock);
    stream->next = list;
    list = stream;
    pthread_mutex_unlock(&list_lock);
    return file;
}

static FILE *open_plain(const char *path, const char *mode)
{
    FILE *file = REAL(fopen64)(path, mode);

    if (file != NULL) {
        number_made(REAL(fileno)(file));
    }
    return file;
}

/* Whether a stream of ours has the encoding that ",ccs=" asks for: the locale's alone. */
static bool has_encoding(const char *mode)
{
    const char *asked = strstr(mode, ",ccs=");

    if (asked == NULL || strcasecmp(asked + strlen(",ccs="), nl_langinfo(CODESET)) == 0) {
        return true;
    }
    NOT_SERVED("fopen", "an encoding other than the locale's");
    return false;
}

static FILE *open_stream(const char *path, const char *mode)
{
    const char *plain;
    char name[PATH_MAX];
    FILE *file;
    int flags, fd;

    if (image_rule(path) == NULL) {
        if (!image_link(AT_FDCWD, path, name)) {
            return open_plain(path, mode);
        }
        path = name;
    }
    plain = mode_flags(mode, &flags);
    if (plain == NULL) {
        return answer(-EINVAL), NULL;
    }
    if (!has_encoding(mode)) {
        return answer(-EOPNOTSUPP), NULL;
    }
    fd = image_open(AT_FDCWD, path, flags, 0666);
    if (fd == NOT_AN_IMAGE) {
        return open_plain(path, mode);
    }
    if (fd < 0) {
        return answer(fd), NULL;
    }
    HIT("fopen");
    file = make_stream(fd, plain);
    if (file == NULL) {
        close(fd);
    } else if (strstr(mode, ",ccs=") != NULL) {
        stream_wide(file, 1);
    }
    return file;
}

HOOK FILE *fopen(const char *path, const char *mode)
{
    return open_stream(path, mode);
}

HOOK FILE *fopen64(const char *path, const char *mode)
{
    return open_stream(path, mode);
}

HOOK FILE *fdopen(int fd, const char *mode)
{
    const char *plain;
    int flags, is;

    if (!is_view(fd)) {
        return REAL(fdopen)(fd, mode);
    }
    HIT("fdopen");
    plain = mode_flags(mode, &flags);
    is = fcntl(fd, F_GETFL);
    if (is < 0) {
        return NULL;
    }
    if (plain == NULL || (((is ^ flags) & O_ACCMODE) != 0 && (is & O_ACCMODE) != O_RDWR)) {
        return answer(-EINVAL), NULL;
    }
    if ((flags & O_APPEND) != 0 && (is & O_APPEND) == 0 && fcntl(fd, F_SETFL, is | O_APPEND) != 0) {
        return NULL;
    }
    return make_stream(fd, plain);
}

static int descriptor(const FILE *file)
{
    int fd = -1;

    pthread_mutex_lock(&list_lock);
    for (struct stream *stream = list; stream != NULL; stream = stream->next) {
        if (stream->file == file) {
            fd = stream->fd;
        }
    }
    pthread_mutex_unlock(&list_lock);
    return fd;
}

bool stream_is_ours(const FILE *file)
{
    return descriptor(file) >= 0;
}

int stream_wide(const FILE *file, int mode)
{
    int result = 0;

    pthread_mutex_lock(&list_lock);
    for (struct stream *stream = list; stream != NULL; stream = stream->next) {
        if (stream->file == file) {
            if (stream->orientation == 0) {
                stream->orientation = mode > 0 ? 1 : mode < 0 ? -1 : 0;
            }
            result = stream->orientation;
        }
    }
    pthread_mutex_unlock(&list_lock);
    return result;
}

HOOK int fileno(FILE *file)
{
    int saved = errno, fd = REAL(fileno)(file), own;

    if (fd >= 0 || (own = descriptor(file)) < 0) {
        return fd;
    }
    errno = saved;
    return own;
}

HOOK int fileno_unlocked(FILE *file)
{
    return fileno(file);
}

/* A stream whose pointer the program takes from a variable of the C library's. */
static FILE **standard(const FILE *file)
{
    return file == stdin ? &stdin : file == stdout ? &stdout : file == stderr ? &stderr : NULL;
}

static FILE *reopen_image(const char *path, const char *mode, FILE *file)
{
    FILE **variable = standard(file), *made;
    const char *plain;
    int old, fd, flags;

    plain = mode_flags(mode, &flags);
    if (plain == NULL || variable == NULL) {
        NOT_SERVED("freopen", "a stream other than stdin, stdout, stderr");
        return answer(plain == NULL ? -EINVAL : -EOPNOTSUPP), NULL;
    }
    HIT("freopen");
    fflush(file);
    fd = image_open(AT_FDCWD, path, flags, 0666);
    if (fd < 0) {
        return answer(fd == NOT_AN_IMAGE ? -ENOENT : fd), NULL;
    }
    old = fileno(file);
    forget(file);
    if (old >= 0 && old != fd && dup2(fd, old) == old) {
        close(fd);
        fd = old;
    }
    made = make_stream(fd, plain);
    if (made != NULL) {
        *variable = made;
    }
    return made;
}

/* The streams that the C library made, and ours that stand in for them. */
static FILE *first[3], *ours[3];

static FILE **variable_of(int fd)
{
    FILE **const variables[] = {&stdin, &stdout, &stderr};

    return variables[fd];
}

/* The program has closed it. */
static void closed_ours(const FILE *file)
{
    for (int fd = 0; fd < 3; fd++) {
        if (ours[fd] == file) {
            ours[fd] = NULL;
        }
    }
}

void stream_leaves(int fd)
{
    FILE *file;

    if (fd < 0 || fd > STDERR_FILENO) {
        return;
    }
    file = *variable_of(fd);
    if (file == NULL) {
        return;
    }
    if (fd != STDIN_FILENO && __fpending(file) > 0) {
        fflush(file);
    } else if (fd == STDIN_FILENO && file == ours[fd]) {
        __fpurge(file);
    }
}

void stream_follows(int fd)
{
    FILE **variable;

    if (fd < 0 || fd > STDERR_FILENO) {
        return;
    }
    variable = variable_of(fd);
    if (is_view(fd) && *variable != ours[fd]) {
        first[fd] = *variable;
        *variable = NULL;
    }
    if (is_view(fd) && *variable == NULL) {
        if (ours[fd] == NULL) {
            ours[fd] = make_stream(fd, fd == STDIN_FILENO ? "r" : "w");
        }
        if (fd == STDERR_FILENO && ours[fd] != NULL) {
            setvbuf(ours[fd], NULL, _IONBF, 0);
        }
        *variable = ours[fd] != NULL ? ours[fd] : first[fd];
        if (ours[fd] != NULL) {
            clearerr(ours[fd]);
        }
    } else if (!is_view(fd) && ours[fd] != NULL && *variable == ours[fd] && first[fd] != NULL) {
        *variable = first[fd];
    }
}

void flush_streams(void)
{
    FILE *files[64];
    int count = 0;

    pthread_mutex_lock(&list_lock);
    for (struct stream *stream = list; stream != NULL && count < 64; stream = stream->next) {
        files[count++] = stream->file;
    }
    pthread_mutex_unlock(&list_lock);
    for (int i = 0; i < count; i++) {
        fflush(files[i]);
    }
}

/* Of the stream's own flags. */
enum { NO_READS = 4, NO_WRITES = 8, IS_APPENDING = 0x1000 };

static void forget_descriptor(const FILE *file)
{
    pthread_mutex_lock(&list_lock);
    for (struct stream *stream = list; stream != NULL; stream = stream->next) {
        if (stream->file == file) {
            stream->fd = -1;
            stream->orientation = 0;
        }
    }
    pthread_mutex_unlock(&list_lock);
}

/* A stream of ours stays; its descriptor becomes another file. */
static FILE *reopen_ours(const char *path, const char *mode, FILE *file, int old)
{
    int flags, fd = mode_flags(mode, &flags) != NULL ? open(path, flags, 0666) : (int)answer(-EINVAL);

    HIT("freopen");
    if (fd < 0 || (fd != old && dup3(fd, old, flags & O_CLOEXEC) < 0)) {
        int saved = errno;

        forget_descriptor(file);
        close(old);
        if (fd >= 0) {
            close(fd);
        }
        return answer(-saved), NULL;
    }
    if (fd != old) {
        close(fd);
    }
    flockfile(file);
    __fpurge(file);
    clearerr_unlocked(file);
    file->_offset = -1;
    file->_flags &= ~(NO_READS | NO_WRITES | IS_APPENDING);
    file->_flags |= (flags & O_ACCMODE) == O_RDONLY ? NO_WRITES : (flags & O_ACCMODE) == O_WRONLY ? NO_READS : 0;
    file->_flags |= (flags & O_APPEND) != 0 ? IS_APPENDING : 0;
    funlockfile(file);
    if ((flags & (O_APPEND | O_ACCMODE)) == (O_APPEND | O_WRONLY)) {
        lseek(old, 0, SEEK_END);
    }
    return file;
}

static FILE *reopen_plain(const char *path, const char *mode, FILE *file)
{
    file = REAL(freopen64)(path, mode, file);
    if (file != NULL) {
        number_made(REAL(fileno)(file));
    }
    return file;
}

static FILE *reopen_any(const char *path, const char *mode, FILE *file)
{
    const struct rule *rule = path != NULL ? image_rule(path) : NULL;
    int old = is_ours(file) ? descriptor(file) : -1;
    struct stat64 status;
    char name[PATH_MAX];

    if (path != NULL && rule == NULL && image_link(AT_FDCWD, path, name)) {
        path = name;
        rule = image_rule(path);
    }
    if (old >= 0) {
        if (path == NULL) {
            return file;
        }
        fflush(file);
        if (rule == NULL && old <= STDERR_FILENO && file == ours[old] && first[old] != NULL) {
            /* The C library's own stream takes its place again. */
            close(old);
            return reopen_plain(path, mode, first[old]);
        }
        return reopen_ours(path, mode, file, old);
    }
    return rule != NULL && (REAL(stat64)(path, &status) != 0 || S_ISREG(status.st_mode))
               ? reopen_image(path, mode, file)
               : reopen_plain(path, mode, file);
}

HOOK FILE *freopen(const char *path, const char *mode, FILE *file)
{
    return reopen_any(path, mode, file);
}

HOOK FILE *freopen64(const char *path, const char *mode, FILE *file)
{
    return reopen_any(path, mode, file);
}
