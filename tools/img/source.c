/* -l of convert and measure: a snapshot as the source.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "img.h"

/* Whether the snapshot is the one that -l means: an ID, else a name, or both of them as a list. */
static bool is_wanted(const struct string_list *wanted, const char *text, const char *id, const char *name, bool by_id)
{
    const char *wanted_id = list_value(wanted, "snapshot.id"), *wanted_name = list_value(wanted, "snapshot.name");

    if (!wanted_id && !wanted_name) {
        return strcmp(text, by_id ? id : name) == 0;
    }
    return (!wanted_id || strcmp(wanted_id, id) == 0) && (!wanted_name || strcmp(wanted_name, name) == 0);
}

static int parse_snapshot(struct string_list *wanted, const char *text)
{
    if (strncmp(text, "snapshot.", 9) != 0) {
        return EXIT_SUCCESS;
    }
    split_options(wanted, text, true);
    for (size_t i = 0; i < wanted->count; i++) {
        size_t length = strcspn(wanted->items[i], "=");

        if ((length == 11 && strncmp(wanted->items[i], "snapshot.id", 11) == 0) ||
            (length == 13 && strncmp(wanted->items[i], "snapshot.name", 13) == 0)) {
            continue;
        }
        error_report("Invalid parameter '%.*s'", (int)length, wanted->items[i]);
        error_report("Failed in parsing snapshot param '%s'", text);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

/* Adds the snapshot to the options that the source is opened with. */
static bool choose_snapshot(struct image_spec *spec, const struct string_list *wanted, const char *text,
                            qcow2_image *image)
{
    qcow2_snapshot_info snapshot = {.struct_size = sizeof(snapshot)};

    for (int by_id = 1; by_id >= 0; by_id--) {
        for (size_t i = 0; qcow2_get_snapshot(image, i, &snapshot) == 0; i++) {
            if (!is_wanted(wanted, text, snapshot.id, snapshot.name, by_id)) {
                continue;
            }
            list_addf(&spec->options, "snapshot.id=%s", snapshot.id);
            list_addf(&spec->options, "snapshot.name=%s", snapshot.name);
            return true;
        }
    }
    return false;
}

int open_snapshot(struct image_spec *spec, const char *text, qcow2_image **image)
{
    struct string_list wanted = {NULL, 0};
    qcow2_info info;
    char *error = NULL;
    int result = parse_snapshot(&wanted, text);

    if (result == EXIT_SUCCESS && !image_info(*image, &info)) {
        result = EXIT_FAILURE;
    }
    if (result == EXIT_SUCCESS && !info.version) {
        error_report("Failed to load snapshot: Block format 'raw' used by device '' does not support temporarily"
                     " loading internal snapshots");
        result = EXIT_FAILURE;
    }
    if (result == EXIT_SUCCESS && !choose_snapshot(spec, &wanted, text, *image)) {
        error_report("Failed to load snapshot: Can't find snapshot");
        result = EXIT_FAILURE;
    }
    list_free(&wanted);
    if (result != EXIT_SUCCESS) {
        return result;
    }
    qcow2_close(*image);
    *image = NULL;
    if (image_open(spec, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, image, &error) == 0) {
        return EXIT_SUCCESS;
    }
    error_report("Failed to load snapshot: %s", error);
    free(error);
    return EXIT_FAILURE;
}
