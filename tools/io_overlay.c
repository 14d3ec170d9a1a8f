/* qcow2-io -s: writes go to a temporary overlay.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "io.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fail(char **error, int code)
{
    *error = text_format("Could not create temporary overlay: %s", strerror(-code));
    return code;
}

/* A file with an empty image on top of `base`, at *path: 0 or -errno. */
static int create_overlay(const char *base, const char *format, int64_t bytes, char **path, char **error)
{
    const char *directory = getenv("TMPDIR");
    struct string_list options = { NULL, 0 };
    int fd, ret;

    *path = text_format("%s/qcow2-io.XXXXXX", directory != NULL && *directory != '\0' ? directory : "/var/tmp");
    fd = mkstemp(*path);
    if (fd < 0) {
        return fail(error, -errno);
    }
    list_addf(&options, "backing_file=%s", base);
    list_addf(&options, "backing_fmt=%s", format);
    ret = qcow2_create_fd(fd, (uint64_t)bytes, list_options(&options));
    if (ret < 0) {
        *error = text_copy(failure_text());
        unlink(*path);
    }
    close(fd);
    list_free(&options);
    return ret;
}

/* The base is opened once by itself: for its size, and so that its errors are the ones shown. */
static int examine_base(struct image_spec *spec, int64_t *bytes, char **error)
{
    qcow2_image *base = NULL;
    int ret = image_open(spec, QCOW2_OPEN_READ_ONLY, &base, error);

    if (ret < 0) {
        return ret;
    }
    *bytes = qcow2_length(base);
    qcow2_close(base);
    return *bytes < 0 ? fail(error, (int)*bytes) : 0;
}

int io_open_overlay(struct image_spec *spec, qcow2_image **image, char **error)
{
    struct image_spec overlay = { .cache = { false, true, false } }; /* nothing to keep: never flush */
    char absolute[PATH_MAX];
    char *path = NULL;
    int64_t bytes;
    int ret = examine_base(spec, &bytes, error);

    if (ret < 0) {
        return ret;
    }
    if (realpath(spec->path, absolute) == NULL) {
        return fail(error, -errno);
    }
    ret = create_overlay(absolute, spec->format == NULL ? image_probe(absolute) : spec->format, bytes, &path, error);
    if (ret == 0) {
        overlay.path = text_copy(path);
        overlay.format = text_copy("qcow2");
        ret = image_open(&overlay, 0, image, error);
        unlink(path); /* the handle is all that is needed of it */
    }
    image_spec_free(&overlay);
    free(path);
    return ret;
}
