/* qcow2-img info.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"
#include "node.h"

#define SECTOR_BYTES 512

struct info_job {
    struct image_args args;
    FILE *out;
    struct json json;
    struct string_list seen;
    bool chain;
};

static bool encrypted(const qcow2_info *info)
{
    return info->crypt_method != 0;
}

static const char *compression_name(const qcow2_info *info)
{
    return info->compression_type == 1 ? "zstd" : "zlib";
}

/* --- human --- */

static void print_size(FILE *out, const char *indent, const char *label, uint64_t bytes, bool exact)
{
    char text[SIZE_TEXT_BYTES];

    fprintf(out, "%s%s: %s", indent, label, size_text_img(bytes, text));
    if (exact) {
        fprintf(out, " (%llu bytes)", (unsigned long long)bytes);
    }
    putc('\n', out);
}

static bool next_bitmap(qcow2_image *image, size_t index, qcow2_bitmap_info *bitmap)
{
    bitmap->struct_size = sizeof(*bitmap);
    return qcow2_get_bitmap(image, index, bitmap) == 0;
}

static const char *const bitmap_flags[] = {"in-use", "auto"};
#define BITMAP_FLAGS 2

static void print_bitmaps(FILE *out, qcow2_image *image)
{
    qcow2_bitmap_info bitmap;

    for (size_t index = 0; next_bitmap(image, index, &bitmap); index++) {
        int shown = 0;

        if (index == 0) {
            fputs("    bitmaps:\n", out);
        }
        fprintf(out, "        [%zu]:\n            flags:\n", index);
        for (int i = 0; i < BITMAP_FLAGS; i++) {
            if (bitmap.flags & 1u << i) {
                fprintf(out, "                [%d]: %s\n", shown++, bitmap_flags[i]);
            }
        }
        fprintf(out, "            name: %s\n            granularity: %llu\n", bitmap.name,
                (unsigned long long)bitmap.granularity);
    }
}

static bool has_data_file(const qcow2_info *info)
{
    return info->incompatible_features & QCOW2_INCOMPATIBLE_DATA_FILE;
}

static void print_specific(FILE *out, qcow2_image *image, const qcow2_info *info)
{
    fprintf(out, "Format specific information:\n    compat: %s\n    compression type: %s\n",
            info->version >= 3 ? "1.1" : "0.10", compression_name(info));
    if (info->version >= 3) {
        fprintf(out, "    lazy refcounts: %s\n",
                info->compatible_features & QCOW2_COMPATIBLE_LAZY_REFCOUNTS ? "true" : "false");
    }
    print_bitmaps(out, image);
    fprintf(out, "    refcount bits: %u\n", (unsigned)info->refcount_bits);
    if (encrypted(info)) {
        fputs("    encrypt:\n", out);
    }
    if (info->crypt_method == QCOW2_ENCRYPTION_LUKS) {
        print_luks(out, 8, image, true);
    } else if (encrypted(info)) {
        fputs("        format: aes\n", out);
    }
    if (info->data_file) {
        fprintf(out, "    data file: %s\n", info->data_file);
    }
    if (info->version < 3) {
        return;
    }
    if (has_data_file(info)) {
        fprintf(out, "    data file raw: %s\n", info->data_file_raw ? "true" : "false");
    }
    fprintf(out, "    corrupt: %s\n    extended l2: %s\n", info->corrupt ? "true" : "false",
            info->extended_l2 ? "true" : "false");
}

static void print_human(FILE *out, qcow2_image *image, const struct node *root, const qcow2_info *info,
                        const char *name, const char *below)
{
    fprintf(out, "image: %s\nfile format: %s\n", name, root->driver->name);
    print_size(out, "", "virtual size", info->virtual_size, true);
    if (node_disk_bytes(root) < 0) {
        fputs("disk size: unavailable\n", out);
    } else {
        print_size(out, "", "disk size", (uint64_t)node_disk_bytes(root), false);
    }
    if (encrypted(info)) {
        fputs("encrypted: yes\n", out);
    }
    if (info->version) {
        fprintf(out, "cluster_size: %llu\n", 1ull << info->cluster_bits);
    }
    if (info->dirty) {
        fputs("cleanly shut down: no\n", out);
    }
    if (info->backing_file) {
        fprintf(out, "backing file: %s", info->backing_file);
        if (!below) {
            fprintf(out, " (cannot determine actual path)");
        } else if (strcmp(below, info->backing_file) != 0) {
            fprintf(out, " (actual path: %s)", below);
        }
        putc('\n', out);
        if (info->backing_format) {
            fprintf(out, "backing file format: %s\n", info->backing_format);
        }
    }
    print_snapshot_list(out, image);
    if (info->version) {
        print_specific(out, image, info);
    }
    print_child_nodes(out, root);
}

/* --- JSON --- */

static void json_bitmaps(struct json *json, qcow2_image *image)
{
    qcow2_bitmap_info bitmap;
    size_t index;

    for (index = 0; next_bitmap(image, index, &bitmap); index++) {
        if (index == 0) {
            json_open(json, "bitmaps", '[');
        }
        json_open(json, NULL, '{');
        json_open(json, "flags", '[');
        for (int i = 0; i < BITMAP_FLAGS; i++) {
            if (bitmap.flags & 1u << i) {
                json_string(json, NULL, bitmap_flags[i]);
            }
        }
        json_close(json, ']');
        json_string(json, "name", bitmap.name);
        json_number(json, "granularity", bitmap.granularity);
        json_close(json, '}');
    }
    if (index > 0) {
        json_close(json, ']');
    }
}

static void json_specific(struct json *json, qcow2_image *image, const qcow2_info *info)
{
    json_open(json, "format-specific", '{');
    json_string(json, "type", "qcow2");
    json_open(json, "data", '{');
    json_string(json, "compat", info->version >= 3 ? "1.1" : "0.10");
    json_string(json, "compression-type", compression_name(info));
    if (info->version >= 3) {
        json_bool(json, "lazy-refcounts", info->compatible_features & QCOW2_COMPATIBLE_LAZY_REFCOUNTS);
    }
    json_bitmaps(json, image);
    json_number(json, "refcount-bits", info->refcount_bits);
    if (encrypted(info)) {
        json_open(json, "encrypt", '{');
        if (info->crypt_method == QCOW2_ENCRYPTION_LUKS) {
            json_luks(json, image, true);
        } else {
            json_string(json, "format", "aes");
        }
        json_close(json, '}');
    }
    if (info->data_file) {
        json_string(json, "data-file", info->data_file);
    }
    if (info->version >= 3) {
        if (has_data_file(info)) {
            json_bool(json, "data-file-raw", info->data_file_raw);
        }
        json_bool(json, "corrupt", info->corrupt);
        json_bool(json, "extended-l2", info->extended_l2);
    }
    json_close(json, '}');
    json_close(json, '}');
}

static void print_json(struct json *json, qcow2_image *image, const struct node *root, const qcow2_info *info,
                       const char *name, const char *below)
{
    json_open(json, NULL, '{');
    json_child_nodes(json, root);
    if (info->backing_format) {
        json_string(json, "backing-filename-format", info->backing_format);
    }
    json_snapshots(json, image);
    json_number(json, "virtual-size", info->virtual_size);
    json_string(json, "filename", name);
    if (info->version) {
        json_number(json, "cluster-size", 1ull << info->cluster_bits);
    }
    json_string(json, "format", root->driver->name);
    if (node_disk_bytes(root) >= 0) {
        json_number(json, "actual-size", (uint64_t)node_disk_bytes(root));
    }
    if (info->version) {
        json_specific(json, image, info);
    }
    json_file_specific(json, root);
    if (below) {
        json_string(json, "full-backing-filename", below);
    }
    if (encrypted(info)) {
        json_bool(json, "encrypted", true);
    }
    if (info->backing_file) {
        json_string(json, "backing-filename", info->backing_file);
    }
    if (node_tells_dirty(root)) {
        json_bool(json, "dirty-flag", info->dirty);
    }
    json_close(json, '}');
}

/* --- one image, then the ones below --- */

static bool seen_before(struct info_job *job, const char *name)
{
    for (size_t i = 0; i < job->seen.count; i++) {
        if (strcmp(job->seen.items[i], name) == 0) {
            error_report("Backing file '%s' creates an infinite loop.", name);
            return true;
        }
    }
    list_add(&job->seen, name);
    return false;
}

/* An image whose list of bitmaps is broken does not open. */
static bool bitmaps_are_readable(qcow2_image *image, const qcow2_info *info, const char *name)
{
    qcow2_bitmap_info bitmap = {.struct_size = sizeof(bitmap)};
    int result = info->bitmap_count ? qcow2_get_bitmap(image, 0, &bitmap) : 0;

    if (info->version >= 3 && info->bitmap_count && !(info->autoclear_features & QCOW2_AUTOCLEAR_BITMAPS)) {
        warn_report("a program lacking bitmap support modified this file, so all bitmaps are now considered "
                    "inconsistent");
    }
    if (result == 0 || result == -ENOENT) {
        return true;
    }
    error_report("Could not open '%s': %s", name, failure_text());
    return false;
}

/* Prints one image. *below and *below_format: what it stands on, allocated or NULL. */
static int print_one(struct info_job *job, const char *name, char **below, char **below_format)
{
    struct image_spec spec = {0};
    qcow2_image *image = NULL;
    qcow2_info info;
    int result = EXIT_FAILURE;

    spec.recorded = job->seen.count > 0;
    if (!seen_before(job, name) &&
        open_image(&job->args, name, QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_READ_ONLY, &spec, &image)) {
        if (image_info(image, &info) && encryption_is_readable(image, &info, name) &&
            bitmaps_are_readable(image, &info, name) && snapshots_are_readable(image, name)) {
            /* Told in whole sectors, as the stock tool counts. */
            info.file_length = (info.file_length + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES;
            if (info.version == 0) {
                info.virtual_size = info.file_length;
            }

            char *shown = shown_name(spec.tree->root);

            *below = info.backing_file ? recorded_below(&spec, info.backing_file) : NULL;
            *below_format = info.backing_format ? text_copy(info.backing_format) : NULL;
            if (job->args.json) {
                print_json(&job->json, image, spec.tree->root, &info, shown, *below);
            } else {
                fputs(job->seen.count > 1 ? "\n" : "", job->out);
                print_human(job->out, image, spec.tree->root, &info, shown, *below);
            }
            free(shown);
            result = EXIT_SUCCESS;
            if (job->chain && info.backing_file && !*below) {
                error_report("Could not determine absolute backing filename, but backing filename '%s' present",
                             info.backing_file);
                result = EXIT_FAILURE;
            }
        }
        if (close_image(image) != EXIT_SUCCESS) {
            result = EXIT_FAILURE;
        }
    }
    image_spec_free(&spec);
    return result;
}

static int print_all(struct info_job *job, const char *name)
{
    char *below = text_copy(name), *format = job->args.format ? text_copy(job->args.format) : NULL;
    int result = EXIT_SUCCESS;

    if (job->args.json && job->chain) {
        json_open(&job->json, NULL, '[');
    }
    while (below && result == EXIT_SUCCESS) {
        char *this_name = below, *this_format = format;

        below = format = NULL;
        job->args.format = this_format;
        result = print_one(job, this_name, &below, &format);
        job->args.image_opts = false;
        free(this_name);
        free(this_format);
        if (!job->chain) {
            break;
        }
    }
    if (job->args.json && job->chain) {
        json_close(&job->json, ']');
    }
    free(below);
    free(format);
    return result;
}

static int run_info(const struct img_command *command, int argc, char **argv)
{
    struct info_job job = {0};
    char *text = NULL;
    size_t length = 0;
    const char *name;
    int code, result;

    while ((code = next_option(command, argc, argv)) != -1) {
        if (code == 'b') {
            job.chain = true;
        } else {
            take_image_option(&job.args, command, code);
        }
    }
    name = one_file_name(&job.args, command, argc, argv);
    if (!name) {
        return EXIT_FAILURE;
    }
    /* Nothing is printed about a chain that cannot be followed to its end. */
    job.out = memory_or_exit(open_memstream(&text, &length));
    job.json.out = job.out;
    result = print_all(&job, name);
    fclose(job.out);
    if (result == EXIT_SUCCESS) {
        fwrite(text, 1, length, stdout);
    }
    free(text);
    list_free(&job.seen);
    return result;
}

const struct img_command img_info = {
    .name = "info",
    .summary = "Describe an image",
    .operands = "FILENAME",
    .options = (const struct img_option[]){IMG_HELP,
                                           IMG_FORMAT,
                                           IMG_IMAGE_OPTS,
                                           IMG_SHARE,
                                           IMG_OBJECT,
                                           IMG_OUTPUT,
                                           {'b', "backing-chain", NULL, "describe the images below as well"},
                                           IMG_END},
    .run = run_info,
};
