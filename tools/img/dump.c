/* qcow2-img dump-header.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <ctype.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

#define QCOW2_MAGIC 0x514649fbu
#define EXTENSION_FEATURE_TABLE 0x6803f857u
#define FEATURE_ENTRY_BYTES 48
#define FEATURE_NAME_BYTES 46

enum { OPTION_NAMES = OPTION_OWN };

static const struct {
    uint32_t type;
    const char *name;
} extension_names[] = {
    {0xe2792aca, "Backing format"}, {EXTENSION_FEATURE_TABLE, "Feature table"},
    {0x0537be77, "Crypto header"},  {0x23852875, "Bitmaps"},
    {0x44415441, "Data file"},
};

/* Names of feature bits the format documents, for images without a table of their own. */
static const struct {
    unsigned kind;
    uint64_t mask;
    const char *name;
} feature_names[] = {
    {0, QCOW2_INCOMPATIBLE_DIRTY, "dirty bit"},
    {0, QCOW2_INCOMPATIBLE_CORRUPT, "corrupt bit"},
    {0, QCOW2_INCOMPATIBLE_DATA_FILE, "external data file"},
    {0, QCOW2_INCOMPATIBLE_COMPRESSION, "compression type"},
    {0, QCOW2_INCOMPATIBLE_EXTENDED_L2, "extended L2 entries"},
    {1, QCOW2_COMPATIBLE_LAZY_REFCOUNTS, "lazy refcounts"},
    {2, QCOW2_AUTOCLEAR_BITMAPS, "bitmaps"},
    {2, QCOW2_AUTOCLEAR_RAW_DATA, "raw external data"},
};

static void print_number(const char *label, uint64_t value)
{
    printf("%-25s %llu\n", label, (unsigned long long)value);
}

static void print_hex(const char *label, uint64_t value)
{
    printf("%-25s 0x%llx\n", label, (unsigned long long)value);
}

/* The image's own table has the first word. */
static void print_feature_name(qcow2_image *image, unsigned kind, unsigned bit)
{
    qcow2_header_extension extension = {.struct_size = sizeof(extension)};

    for (size_t i = 0; qcow2_get_header_extension(image, i, &extension) == 0; i++) {
        const unsigned char *entry = extension.data;

        if (extension.type != EXTENSION_FEATURE_TABLE) {
            continue;
        }
        for (uint32_t at = 0; at + FEATURE_ENTRY_BYTES <= extension.length; at += FEATURE_ENTRY_BYTES) {
            if (entry[at] == kind && entry[at + 1] == bit) {
                printf(" (%.*s)", FEATURE_NAME_BYTES, (const char *)entry + at + 2);
                return;
            }
        }
    }
    for (size_t i = 0; i < sizeof(feature_names) / sizeof(feature_names[0]); i++) {
        if (feature_names[i].kind == kind && feature_names[i].mask == UINT64_C(1) << bit) {
            printf(" (%s)", feature_names[i].name);
        }
    }
}

static void print_features(qcow2_image *image, const char *label, unsigned kind, uint64_t bits, bool names)
{
    const char *separator = "";

    printf("%-25s [", label);
    for (unsigned bit = 0; bit < 64; bit++) {
        if (!(bits >> bit & 1)) {
            continue;
        }
        printf("%s%u", separator, bit);
        if (names) {
            print_feature_name(image, kind, bit);
        }
        separator = ", ";
    }
    puts("]");
}

static void print_header(qcow2_image *image, const qcow2_info *info, bool names)
{
    unsigned order = 0;

    while (order < 6 && 1u << order < info->refcount_bits) {
        order++;
    }
    print_hex("magic", QCOW2_MAGIC);
    print_number("version", info->version);
    print_hex("backing_file_offset", info->backing_file_offset);
    print_hex("backing_file_size", info->backing_file_size);
    print_number("cluster_bits", info->cluster_bits);
    print_number("size", info->virtual_size);
    print_number("crypt_method", info->crypt_method);
    print_number("l1_size", info->l1_size);
    print_hex("l1_table_offset", info->l1_table_offset);
    print_hex("refcount_table_offset", info->refcount_table_offset);
    print_number("refcount_table_clusters", info->refcount_table_clusters);
    print_number("nb_snapshots", info->snapshot_count);
    print_hex("snapshot_offset", info->snapshot_table_offset);
    print_features(image, "incompatible_features", 0, info->incompatible_features, names);
    print_features(image, "compatible_features", 1, info->compatible_features, names);
    print_features(image, "autoclear_features", 2, info->autoclear_features, names);
    print_number("refcount_order", order);
    print_number("header_length", info->header_length);
    putchar('\n');
}

static const char *extension_name(uint32_t type)
{
    for (size_t i = 0; i < sizeof(extension_names) / sizeof(extension_names[0]); i++) {
        if (extension_names[i].type == type) {
            return extension_names[i].name;
        }
    }
    return "<unknown>";
}

static void print_extension(const qcow2_header_extension *extension)
{
    const unsigned char *data = extension->data;
    bool printable = true;

    for (uint32_t i = 0; i < extension->length; i++) {
        printable = printable && data[i] < 0x80 && isprint(data[i]);
    }
    printf("Header extension:\n%-25s 0x%08x (%s)\n%-25s %u\n", "magic", (unsigned)extension->type,
           extension_name(extension->type), "length", (unsigned)extension->length);
    if (printable) {
        printf("%-25s '%.*s'\n\n", "data", (int)extension->length, (const char *)data);
    } else {
        printf("%-25s <binary>\n\n", "data");
    }
}

static int dump(qcow2_image *image, bool names)
{
    qcow2_header_extension extension = {.struct_size = sizeof(extension)};
    qcow2_info info;

    if (!image_info(image, &info)) {
        return EXIT_FAILURE;
    }
    print_header(image, &info, names);
    for (size_t i = 0; qcow2_get_header_extension(image, i, &extension) == 0; i++) {
        print_extension(&extension);
    }
    return EXIT_SUCCESS;
}

static int run_dump(const struct img_command *command, int argc, char **argv)
{
    struct image_args args = {0};
    struct image_spec spec = {0};
    qcow2_image *image = NULL;
    const char *name;
    bool names = false;
    int code, result = EXIT_FAILURE;

    while ((code = next_option(command, argc, argv)) != -1) {
        if (code == OPTION_NAMES) {
            names = true;
        } else {
            take_image_option(&args, command, code);
        }
    }
    name = one_file_name(&args, command, argc, argv);
    if (!args.format && !args.image_opts) {
        args.format = "qcow2";
    }
    if (name && open_image(&args, name, QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_READ_ONLY, &spec, &image)) {
        result = dump(image, names);
        if (close_image(image) != EXIT_SUCCESS) {
            result = EXIT_FAILURE;
        }
    }
    image_spec_free(&spec);
    return result;
}

const struct img_command img_dump_header = {
    .name = "dump-header",
    .summary = "Print the header of a qcow2 image",
    .operands = "FILENAME",
    .options = (const struct img_option[]){IMG_HELP,
                                           IMG_FORMAT,
                                           IMG_IMAGE_OPTS,
                                           IMG_SHARE,
                                           {OPTION_NAMES, "names", NULL, "print feature bits with their names"},
                                           IMG_END},
    .run = run_dump,
};
