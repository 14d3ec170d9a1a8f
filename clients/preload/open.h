/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef PRELOAD_OPEN_H
#define PRELOAD_OPEN_H

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "views.h"

/* Not an image: the C library's function answers. */
enum { NOT_AN_IMAGE = INT_MIN };

/* What placeholders' names begin with; "FLAGS:DEVICE:INODE:PATH" follows. */
#define NAME_BEGINNING "qcow2:"

/*
 * What a program has in place of an image: a memory file, sealed and open for writing alone, so that what passes by
 * the hooks can neither read nor write it, and gets an error. A descriptor or -errno.
 */
int placeholder_new(const char *name, int flags);
/* What a placeholder's name, after its beginning, says; false: nothing. */
bool placeholder_path(const char *name, char path[PATH_MAX], int *flags, dev_t *device, ino_t *inode);

/* What a descriptor refers to; false: nobody can say. */
bool image_name_of(int fd, char *name, size_t room);
/* Why nobody can say, as -errno; the report has a sentence where the process has no /proc. */
int no_name(const char *call);
/* `path` is /proc/PID/fd/N of another process: the file, or the image, that it has there. */
bool image_name_of_other(const char *path, char name[PATH_MAX]);

/* Whether a name may be an image's: the rule, or NULL. Names of descriptors, as /dev/stdin, count. */
const struct rule *image_rule(const char *path);

/* Whether a symbolic link leads to what has an image's name: that name, for the same `directory`. Keeps errno. */
bool image_link(int directory, const char *path, char name[PATH_MAX]);

/* A descriptor, -errno, or NOT_AN_IMAGE. */
int image_open(int directory, const char *path, int flags, mode_t mode);

/*
 * The image in the open file `fd`, which becomes the program's descriptor. -errno: it is closed. `mode`: what a new file
 * was asked for with, or NULL.
 */
int image_take(int fd, const struct rule *rule, int flags, const mode_t *mode, bool empty);

/* What the library needs of a new file, which the program may want without. */
enum { NEW_FILE_OWNER = S_IRUSR | S_IWUSR };

/* Makes a file that is not there. `*made`: it is to be removed again where it becomes no image. A descriptor or -errno. */
int make_file(int directory, const char *path, int flags, mode_t mode, bool *made);
/*
 * Makes the image of a file without contents: one of those that may be about to do so does. Whoever only reads waits.
 * `cut`: whatever is there goes. `status` is what the file is then. 0 or -errno.
 */
int fill_empty(int fd, bool create, bool cut, struct stat64 *status);

/* Virtual size of the image in a file that stat says is regular; -errno. */
int64_t image_size(int directory, const char *path, const struct stat64 *status);

/* The program has opened an image with O_PATH: a descriptor that is no view, of the file itself. */
extern atomic_bool image_paths;
/* The same as image_size for such a descriptor; -ENOENT: it is none. */
int64_t image_size_at(int fd, const struct stat64 *status, const struct rule **rule);

/* A descriptor whose name is /dev/fd/N and the like; -1: no such name. */
int descriptor_of(const char *path);

/* Whether the kernel has what stands for an image at a descriptor. */
bool is_placeholder(int fd);

/* Takes over the images that the process was started with. */
void adopt_descriptors(void);
/* What another process has sent. */
void adopt_descriptor(int fd);

/* What a call returns for a count or -errno. */
static inline long answer(long result)
{
    if (__builtin_expect(result < 0, 0)) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

#endif
