/* Opening and closing the image that a command works on.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

bool open_image(const struct image_args *args, const char *name, uint64_t flags, struct image_spec *spec,
                qcow2_image **image)
{
    /* A list that starts with a word means a node of that name, of which there are none. */
    bool is_node = args->image_opts && *name && name[strcspn(name, ",=")] != '=';
    char *full = text_format("%s%s", is_node ? "file=" : "", name), *error = NULL;
    int result = image_from_name(spec, full, args->format, args->image_opts, &error);

    free(full);
    if (result == 0) {
        result = image_open(spec, flags | (args->force_share ? QCOW2_OPEN_FORCE_SHARE : 0), image, &error);
    }
    if (result < 0) {
        error_report("Could not open '%s': %s", name, error ? error : strerror(-result));
    }
    free(error);
    return result == 0;
}

bool lacks_key(int result)
{
    return result == -ENOKEY || result == -EKEYREJECTED || result == -EACCES;
}

bool has_key(const struct image_args *args, const char *name, qcow2_image *image)
{
    struct image_spec spec = {0};
    qcow2_image *again = NULL;
    qcow2_info info;
    char *error = NULL;
    int result;

    if (!image_info(image, &info)) {
        return false;
    }
    if (info.crypt_method == 0) {
        return true;
    }
    result = image_from_name(&spec, name, args->format, args->image_opts, &error);
    if (result == 0) {
        result = image_open(&spec,
                            QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_FORCE_SHARE | QCOW2_OPEN_NO_LOCK | QCOW2_OPEN_NO_BACKING,
                            &again, &error);
    }
    if (result == 0) {
        qcow2_close(again);
    }
    /* What else is wrong with it is for the caller to find. */
    if (lacks_key(result)) {
        error_report("Could not open '%s': %s", name, error);
    } else {
        result = 0;
    }
    free(error);
    image_spec_free(&spec);
    return result == 0;
}

int close_image(qcow2_image *image)
{
    int result = qcow2_close(image);

    if (result == 0) {
        return EXIT_SUCCESS;
    }
    if (tell_corruption() == CORRUPTION_NONE) {
        error_report("%s", failure_text());
    }
    return EXIT_FAILURE;
}

bool image_info(qcow2_image *image, qcow2_info *info)
{
    memset(info, 0, sizeof(*info));
    info->struct_size = sizeof(*info);
    if (qcow2_get_info(image, info) == 0) {
        return true;
    }
    error_report("%s", failure_text());
    return false;
}

int set_cache(struct image_spec *spec, const char *mode, const char *what)
{
    struct cache_mode cache;

    if (!mode) {
        return EXIT_SUCCESS;
    }
    if (!cache_parse(mode, &cache)) {
        error_report("%s: %s", what, mode);
        return EXIT_FAILURE;
    }
    image_cache(spec, cache);
    return EXIT_SUCCESS;
}
