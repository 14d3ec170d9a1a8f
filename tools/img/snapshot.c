/* qcow2-img snapshot, and the snapshot list of info.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "img.h"

#define NANOSECONDS 1000000000u

static bool next_snapshot(qcow2_image *image, size_t index, qcow2_snapshot_info *snapshot)
{
    memset(snapshot, 0, sizeof(*snapshot));
    snapshot->struct_size = sizeof(*snapshot);
    return qcow2_get_snapshot(image, index, snapshot) == 0;
}

/* A table that nobody can list is told as the stock tool tells it, which does not open such an image. */
bool snapshots_are_readable(qcow2_image *image, const char *name)
{
    qcow2_snapshot_info first = {.struct_size = sizeof(first)};
    int result = qcow2_get_snapshot(image, 0, &first);

    if (result == 0 || result == -ENOENT) {
        return true;
    }
    error_report("Could not open '%s': %s", name, failure_text());
    return false;
}

static void print_snapshot(FILE *out, const qcow2_snapshot_info *snapshot)
{
    char size[SIZE_TEXT_BYTES], date[64] = "", clock[64], icount[32] = "--";
    time_t when = (time_t)snapshot->date_seconds;
    uint64_t seconds = snapshot->vm_clock_nanoseconds / NANOSECONDS;
    struct tm local;

    if (localtime_r(&when, &local)) {
        strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &local);
    }
    snprintf(clock, sizeof(clock), "%04llu:%02u:%02u.%03u", (unsigned long long)(seconds / 3600),
             (unsigned)(seconds / 60 % 60), (unsigned)(seconds % 60),
             (unsigned)(snapshot->vm_clock_nanoseconds % NANOSECONDS / 1000000));
    if (snapshot->icount != UINT64_MAX) {
        snprintf(icount, sizeof(icount), "%llu", (unsigned long long)snapshot->icount);
    }
    fprintf(out, "%-7s %-16s %8s %19s %15s %10s\n", snapshot->id, snapshot->name,
            size_text_img(snapshot->vm_state_size, size), date, clock, icount);
}

void print_snapshot_list(FILE *out, qcow2_image *image)
{
    qcow2_snapshot_info snapshot;

    for (size_t index = 0; next_snapshot(image, index, &snapshot); index++) {
        if (index == 0) {
            fprintf(out, "Snapshot list:\n%-7s %-16s %8s %19s %15s %10s\n", "ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK",
                    "ICOUNT");
        }
        print_snapshot(out, &snapshot);
    }
}

void json_snapshots(struct json *json, qcow2_image *image)
{
    qcow2_snapshot_info snapshot;

    for (size_t index = 0; next_snapshot(image, index, &snapshot); index++) {
        if (index == 0) {
            json_open(json, "snapshots", '[');
        }
        json_open(json, NULL, '{');
        if (snapshot.icount != UINT64_MAX) {
            json_number(json, "icount", snapshot.icount);
        }
        json_number(json, "vm-clock-nsec", snapshot.vm_clock_nanoseconds % NANOSECONDS);
        json_string(json, "name", snapshot.name);
        json_number(json, "date-sec", snapshot.date_seconds);
        json_number(json, "date-nsec", snapshot.date_nanoseconds);
        json_number(json, "vm-clock-sec", snapshot.vm_clock_nanoseconds / NANOSECONDS);
        json_string(json, "id", snapshot.id);
        json_number(json, "vm-state-size", snapshot.vm_state_size);
        json_close(json, '}');
        if (!next_snapshot(image, index + 1, &snapshot)) {
            json_close(json, ']');
        }
    }
}

static int list_snapshots(const struct image_args *args, const char *name)
{
    struct image_spec spec = {0};
    qcow2_image *image = NULL;
    int result = EXIT_FAILURE;

    if (open_image(args, name, QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_READ_ONLY, &spec, &image)) {
        bool readable = has_key(args, name, image) && snapshots_are_readable(image, name);

        if (readable) {
            print_snapshot_list(stdout, image);
        }
        result = close_image(image);
        if (!readable) {
            result = EXIT_FAILURE;
        }
    }
    image_spec_free(&spec);
    return result;
}

/* The longest name that the stock tool takes; the rest is cut off. */
#define NAME_BYTES 255

static int create_snapshot(qcow2_image *image, const char *name)
{
    qcow2_snapshot_options options = {.struct_size = sizeof(options)};
    struct timespec now = {0};
    char cut[NAME_BYTES + 1];

    clock_gettime(CLOCK_REALTIME, &now);
    options.date_seconds = (uint64_t)now.tv_sec;
    options.date_nanoseconds = (uint32_t)now.tv_nsec;
    snprintf(cut, sizeof(cut), "%s", name);
    return qcow2_snapshot_create(image, cut, &options);
}

static bool change_snapshot(qcow2_image *image, int action, const char *name)
{
    int result;

    if (action == 'c') {
        result = create_snapshot(image, name);
        if (result < 0) {
            error_report("Could not create snapshot '%s': %s", name, strerror(-result));
        }
    } else if (action == 'a') {
        result = qcow2_snapshot_apply(image, name, NULL);
        if (result == -ENOENT) {
            result = qcow2_snapshot_apply(image, NULL, name);
        }
        if (result < 0) {
            qcow2_info info = {.struct_size = sizeof(info)};
            qcow2_bitmap_info bitmap = {.struct_size = sizeof(bitmap)};
            bool is_raw = qcow2_get_info(image, &info) == 0 && info.version == 0;

            if (qcow2_bitmap_list(image, 0, &bitmap) == 0) {
                error_report("Could not apply snapshot '%s': Device has active dirty bitmaps", name);
            } else {
                error_report("Could not apply snapshot '%s': %s%s", name, is_raw ? "" : "Failed to load snapshot: ",
                             is_raw ? "Block driver does not support snapshots" : strerror(-result));
            }
        }
    } else {
        result = qcow2_snapshot_delete(image, NULL, name);
        /* Where there can be none, there is none of that name. */
        if (result == -ENOENT || result == -ENOTSUP) {
            error_report("Could not delete snapshot '%s': snapshot not found", name);
        } else if (result < 0) {
            error_report("Could not delete snapshot '%s': %s", name, strerror(-result));
        }
    }
    return result == 0;
}

static int change_snapshots(const struct image_args *args, const char *name, int action, const char *snapshot)
{
    struct image_spec spec = {0};
    qcow2_image *image = NULL;
    int result = EXIT_FAILURE;

    if (open_image(args, name, QCOW2_OPEN_NO_BACKING, &spec, &image)) {
        bool done;

        if (action == 'a' && spec.probed_raw) {
            image_warn_guessed(&spec); /* the stock tool opens it twice */
        }
        done = change_snapshot(image, action, snapshot);

        result = close_image(image);
        if (!done) {
            result = EXIT_FAILURE;
        }
    }
    image_spec_free(&spec);
    return result;
}

static int run_snapshot(const struct img_command *command, int argc, char **argv)
{
    struct image_args args = {0};
    const char *name, *snapshot = NULL;
    int code, action = 0;

    while ((code = next_option(command, argc, argv)) != -1) {
        if (take_image_option(&args, command, code)) {
            continue;
        }
        if (action) {
            return usage_error(command, "Cannot mix '-l', '-a', '-c', '-d'");
        }
        action = code;
        snapshot = optarg;
    }
    name = one_file_name(&args, command, argc, argv);
    if (!name) {
        return EXIT_FAILURE;
    }
    if (action == 0 || action == 'l') {
        return list_snapshots(&args, name);
    }
    return change_snapshots(&args, name, action, snapshot);
}

const struct img_command img_snapshot = {
    .name = "snapshot",
    .summary = "List, create, apply or delete snapshots of an image",
    .operands = "FILENAME",
    .options = (const struct img_option[]){IMG_HELP,
                                           IMG_QUIET,
                                           IMG_FORMAT,
                                           IMG_IMAGE_OPTS,
                                           IMG_SHARE,
                                           IMG_OBJECT,
                                           {'l', "list", NULL, "list snapshots (the default)"},
                                           {'a', "apply", "SNAPSHOT", "go back to a snapshot"},
                                           {'c', "create", "SNAPSHOT", "create a snapshot"},
                                           {'d', "delete", "SNAPSHOT", "delete a snapshot"},
                                           IMG_END},
    .run = run_snapshot,
};
