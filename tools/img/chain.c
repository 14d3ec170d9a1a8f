/* The host files below an image.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "img.h"

char *resolve_recorded(const char *image_path, const char *recorded)
{
    const char *slash = image_path ? strrchr(image_path, '/') : NULL;

    if (*recorded == '/' || has_protocol(recorded) || !slash) {
        return text_copy(recorded);
    }

    char *path = text_format("%.*s%s", (int)(slash + 1 - image_path), image_path, recorded), *name = path_as_name(path);

    free(path);
    return name;
}

void chain_init(struct chain *chain, const char *path, const char *format)
{
    memset(chain, 0, sizeof(*chain));
    chain->next_path = name_is_file(path) ? path_as_name(path) : text_copy(path);
    chain->next_format = format ? text_copy(format) : NULL;
}

void chain_free(struct chain *chain)
{
    free(chain->next_path);
    free(chain->next_format);
    list_free(&chain->data_names);
    list_free(&chain->paths);
}

/* Adds a layer; returns the name of the next one as an allocated string, NULL at the end of the chain. */
static char *add_layer(struct chain *chain, const char *name, const char *format, bool *added)
{
    struct image_spec spec = {0};
    qcow2_image *image = NULL;
    qcow2_info info = {.struct_size = sizeof(info)};
    char *next = NULL, *error = NULL, *data = NULL;

    *added = false;
    /* Names only: whoever uses the layers holds the locks. */
    if (image_from_name(&spec, name, format, false, &error) == 0 &&
        image_open(&spec, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_FORCE_SHARE, &image, &error) ==
            0) {
        if (qcow2_get_info(image, &info) == 0) {
            data = text_copy(info.data_file ? info.data_file : spec.path);
            list_add(&chain->paths, spec.path);
            list_add(&chain->data_names, data);
            free(data);
            free(chain->next_format);
            chain->next_format = info.backing_format ? text_copy(info.backing_format) : NULL;
            next = info.backing_file ? resolve_recorded(spec.path, info.backing_file) : NULL;
            *added = true;
        }
        qcow2_close(image);
    }
    free(error);
    image_spec_free(&spec);
    return next;
}

bool chain_reach(struct chain *chain, size_t depth)
{
    while (chain->paths.count <= depth && chain->next_path) {
        char *name = chain->next_path, *format = chain->next_format;
        bool added;

        chain->next_format = NULL;
        chain->next_path = add_layer(chain, name, format, &added);
        free(name);
        free(format);
        if (!added) {
            break;
        }
    }
    return chain->paths.count > depth;
}
