/* Making the file of a new image: for create and for convert.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "img.h"
#include "secrets.h"

static int create_qcow2(const struct create_options *options, const char *prefix, const char *path, int64_t size)
{
    qcow2_create_params params = QCOW2_CREATE_PARAMS_INIT;
    struct string_list list = {0};
    char *why = NULL;
    int result;

    for (size_t i = 0; i < options->count; i++) {
        const struct create_option *option = &options->items[i];

        if (option->text && option->recorded && strcmp(option->key, "size") != 0) {
            list_addf(&list, "%s=%s", option->key, option->text);
        }
    }
    params.path = path;
    params.size = (uint64_t)size;
    params.options = list_options(&list);
    params.secret = secret_by_name;
    params.secret_opaque = &why;
    result = qcow2_create_with(&params);
    list_free(&list);
    if (result < 0) {
        error_report("%s%s", prefix, why ? why : failure_text());
    }
    free(why);
    return result < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* QCOW2_PREALLOC_*, or -1 after a message. */
static int raw_preallocation(const struct create_options *options, const char *prefix)
{
    const char *mode = create_option_text(options, "preallocation");

    if (!mode || strcmp(mode, "off") == 0) {
        return QCOW2_PREALLOC_OFF;
    }
    if (strcmp(mode, "falloc") == 0) {
        return QCOW2_PREALLOC_FALLOC;
    }
    if (strcmp(mode, "full") == 0) {
        return QCOW2_PREALLOC_FULL;
    }
    if (strcmp(mode, "metadata") == 0) {
        error_report("%sUnsupported preallocation mode: metadata", prefix);
    } else {
        error_report("%sinvalid parameter value: %s", prefix, mode);
    }
    return -1;
}

bool file_is_device(const char *path)
{
    struct stat found;

    return stat(path, &found) == 0 && S_ISBLK(found.st_mode);
}

/* A device has the size that it has. What it holds stays, but for its first sector, by which programs would still
   know it. */
static int create_on_device(const char *prefix, const char *path, uint64_t size, int mode)
{
    static const char zeroes[512];
    qcow2_image *image = NULL;

    if (mode != QCOW2_PREALLOC_OFF) {
        error_report("%sUnsupported preallocation mode '%s'", prefix, mode == QCOW2_PREALLOC_FULL ? "full" : "falloc");
        return EXIT_FAILURE;
    }
    if (qcow2_open(path, QCOW2_OPEN_RAW, NULL, &image) < 0) {
        error_report("%s%s", prefix, failure_text());
        return EXIT_FAILURE;
    }
    if (qcow2_length(image) < (int64_t)size) {
        error_report("%sCannot grow device files", prefix);
        qcow2_close(image);
        return EXIT_FAILURE;
    }
    if (qcow2_length(image) > 0 && qcow2_pwrite(image, zeroes, sizeof(zeroes), 0) < 0) {
        error_report("%s%s", prefix, failure_text());
        qcow2_close(image);
        return EXIT_FAILURE;
    }
    return close_image(image);
}

static int create_raw(const struct create_options *options, const char *prefix, const char *path, int64_t bytes)
{
    static const char zeroes[4096];
    const uint64_t size = ((uint64_t)bytes + 511) & ~UINT64_C(511);
    const size_t head = size < sizeof(zeroes) ? (size_t)size : sizeof(zeroes);
    qcow2_image *image = NULL;
    int mode = raw_preallocation(options, prefix), file;

    if (mode < 0) {
        return EXIT_FAILURE;
    }
    if (options->device && !file_is_device(path)) {
        char *why =
            access(path, F_OK) != 0
                ? text_format("Could not open '%s': %s", path, strerror(errno))
                : text_format("'host_device' driver requires '%s' to be either a character or block device", path);

        error_report(
            "%sProtocol driver 'host_device' does not support creating new images, so an existing image must be "
            "selected as the target; however, opening the given target as an existing image failed: %s",
            prefix, why);
        free(why);
        return EXIT_FAILURE;
    }
    if (file_is_device(path)) {
        return create_on_device(prefix, path, size, mode);
    }
    file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0) {
        error_report("%sCould not create '%s': %s", prefix, path, strerror(errno));
        return EXIT_FAILURE;
    }
    close(file);
    /* Emptied by the library, which looks whether somebody uses the file. The first block is
       written, as the stock tool does: programs find the file's block size by it. */
    if (qcow2_open(path, QCOW2_OPEN_RAW, NULL, &image) < 0 || qcow2_truncate(image, 0, QCOW2_PREALLOC_OFF) < 0 ||
        qcow2_truncate(image, size, mode) < 0 || (head && qcow2_pwrite(image, zeroes, head, 0) < 0)) {
        error_report("%s%s", prefix, failure_text());
        qcow2_close(image);
        return EXIT_FAILURE;
    }
    return close_image(image);
}

int create_image_file(const struct create_options *options, const char *prefix, const char *path, int64_t size)
{
    return options->qcow2 ? create_qcow2(options, prefix, path, size) : create_raw(options, prefix, path, size);
}
