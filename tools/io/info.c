/* qcow2-io: length, truncate, info, alloc, map.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "io.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <string.h>

int cmd_length(const struct io_command *command, int argc, char **argv)
{
    int64_t length = IO_ASK(qcow2_length(io.image));
    char text[SIZE_TEXT_BYTES];

    (void)command, (void)argc, (void)argv;
    if (length < 0) {
        printf("getlength: %s\n", strerror((int)-length));
        return (int)length;
    }
    printf("%s\n", size_text_io((double)length, text));
    return 0;
}

static int preallocation_mode(const char *name)
{
    static const char *const names[] = {
        [QCOW2_PREALLOC_OFF] = "off",
        [QCOW2_PREALLOC_METADATA] = "metadata",
        [QCOW2_PREALLOC_FALLOC] = "falloc",
        [QCOW2_PREALLOC_FULL] = "full",
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(name, names[i]) == 0) {
            return (int)i;
        }
    }
    return -EINVAL;
}

int cmd_truncate(const struct io_command *command, int argc, char **argv)
{
    int mode = QCOW2_PREALLOC_OFF, code, ret;
    int64_t size;

    while ((code = getopt(argc, argv, command->options)) != -1) {
        if (code != 'm') {
            return io_usage(command);
        }
        mode = preallocation_mode(optarg);
        if (mode < 0) {
            error_report("Invalid preallocation mode '%s'", optarg);
            return mode;
        }
    }
    if (optind >= argc || parse_size_i64(argv[optind], &size) != 0) {
        io_number(optind < argc && parse_size_i64(argv[optind], &size) == -ERANGE ? argv[optind] : argv[1], &size);
        return -EINVAL;
    }
    ret = qcow2_truncate(io.image, (uint64_t)size, mode);
    if (ret < 0) {
        error_report("%s", failure_text());
    }
    return ret;
}

static const char *truth(uint32_t value)
{
    return value != 0 ? "true" : "false";
}

static void print_encryption(const qcow2_info *info)
{
    if (info->crypt_method == 0) {
        return;
    }
    printf("    encrypt:\n");
    if (info->crypt_method == QCOW2_ENCRYPTION_LUKS) {
        print_luks(stdout, 8, io.image, true);
    } else {
        printf("        format: aes\n");
    }
}

/* A writer has all of them in use, from the moment that it opens the image. */
static void print_bitmaps(void)
{
    static const char *const names[] = {"in-use", "auto"};
    qcow2_bitmap_info bitmap = {.struct_size = sizeof(bitmap)};

    for (size_t index = 0; qcow2_get_bitmap(io.image, index, &bitmap) == 0; index++) {
        uint32_t flags = bitmap.flags | (io.read_only ? 0 : 1);
        int shown = 0;

        if (index == 0) {
            printf("    bitmaps:\n");
        }
        printf("        [%zu]:\n            flags:\n", index);
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
            if (flags & 1u << i) {
                printf("                [%d]: %s\n", shown++, names[i]);
            }
        }
        printf("            name: %s\n            granularity: %" PRIu64 "\n", bitmap.name,
               (uint64_t)bitmap.granularity);
        bitmap = (qcow2_bitmap_info){.struct_size = sizeof(bitmap)};
    }
}

static void print_specific(const qcow2_info *info)
{
    printf("Format specific information:\n");
    printf("    compat: %s\n", info->version < 3 ? "0.10" : "1.1");
    printf("    compression type: %s\n", info->compression_type == 0 ? "zlib" : "zstd");
    if (info->version < 3) {
        printf("    refcount bits: %" PRIu32 "\n", info->refcount_bits);
        print_encryption(info);
        return;
    }
    printf("    lazy refcounts: %s\n", truth((uint32_t)(info->compatible_features & QCOW2_COMPATIBLE_LAZY_REFCOUNTS)));
    print_bitmaps();
    printf("    refcount bits: %" PRIu32 "\n", info->refcount_bits);
    print_encryption(info);
    if (info->data_file != NULL) {
        printf("    data file: %s\n", info->data_file);
        printf("    data file raw: %s\n", truth(info->data_file_raw));
    }
    printf("    corrupt: %s\n", truth(info->corrupt));
    printf("    extended l2: %s\n", truth(info->extended_l2));
}

uint64_t io_cluster_size(void)
{
    qcow2_info info = {.struct_size = sizeof(info)};

    return qcow2_get_info(io.image, &info) == 0 && info.version > 0 ? UINT64_C(1) << info.cluster_bits : 0;
}

/* The VM state lies behind the guest's data, from the first L1 entry that no guest offset needs. */
static uint64_t vm_state_offset(const qcow2_info *info)
{
    uint32_t entry_bits = info->extended_l2 != 0 ? 4 : 3;
    uint32_t l1_entry_bits = 2 * info->cluster_bits - entry_bits;
    uint64_t mask = (UINT64_C(1) << l1_entry_bits) - 1;

    return (info->virtual_size + mask) & ~mask;
}

int cmd_info(const struct io_command *command, int argc, char **argv)
{
    qcow2_info info = {.struct_size = sizeof(info)};
    char cluster[SIZE_TEXT_BYTES], state[SIZE_TEXT_BYTES];
    int ret = qcow2_get_info(io.image, &info);

    (void)command, (void)argc, (void)argv;
    if (ret < 0) {
        return ret;
    }
    if (info.version == 0) {
        printf("format name: raw\ncluster size: 0 bytes\nvm state offset: 0 bytes\n");
        return 0;
    }
    printf("format name: qcow2\ncluster size: %s\nvm state offset: %s\n",
           size_text_io((double)(UINT64_C(1) << info.cluster_bits), cluster),
           size_text_io((double)vm_state_offset(&info), state));
    print_specific(&info);
    return 0;
}

/* How far this layer's answer goes on from `offset`, never beyond `end`: bytes > 0, or -errno. */
static int64_t allocated_run(int64_t offset, int64_t end, bool *allocated)
{
    int64_t at = offset;

    *allocated = false;
    while (at < end) {
        qcow2_extent extent = {.struct_size = sizeof(extent)};
        int ret =
            IO_ASK(qcow2_block_status(io.image, (uint64_t)at, (uint64_t)(end - at), QCOW2_STATUS_TOP_ONLY, &extent));
        bool here;

        if (ret < 0) {
            return ret;
        }
        here = (extent.flags & QCOW2_EXTENT_ALLOCATED) != 0;
        if (at == offset) {
            *allocated = here;
        }
        if (here != *allocated || extent.length == 0) {
            break;
        }
        at += (int64_t)extent.length < end - at ? (int64_t)extent.length : end - at;
    }
    return at > offset ? at - offset : -EIO;
}

int cmd_alloc(const struct io_command *command, int argc, char **argv)
{
    int64_t length = qcow2_length(io.image), offset, count = 512, sum = 0, run;
    char text[SIZE_TEXT_BYTES];
    bool allocated;

    (void)command;
    if (!io_number(argv[1], &offset) || (argc > 2 && !io_number(argv[2], &count))) {
        return -EINVAL;
    }
    if (length < 0) {
        printf("getlength: %s\n", strerror((int)-length));
        return (int)length;
    }
    if (offset >= length) {
        count = 0;
    } else if (count > length - offset) {
        count = length - offset;
    }
    for (int64_t at = offset; at < offset + count; at += run) {
        run = allocated_run(at, offset + count, &allocated);
        if (run < 0) {
            io.ejected = io.ejected || tell_corruption() == CORRUPTION_MARKED;
            printf("is_allocated failed: %s\n", strerror((int)-run));
            return (int)run;
        }
        sum += allocated ? run : 0;
    }
    printf("%" PRId64 "/%" PRId64 " bytes allocated at offset %s\n", sum, count, size_text_io((double)offset, text));
    return 0;
}

int cmd_map(const struct io_command *command, int argc, char **argv)
{
    int64_t length = IO_ASK(qcow2_length(io.image)), run;
    char size[SIZE_TEXT_BYTES], start[SIZE_TEXT_BYTES];
    bool allocated = false;

    (void)command, (void)argc, (void)argv;
    if (length < 0) {
        error_report("Failed to query image length: %s", strerror((int)-length));
        return (int)length;
    }
    for (int64_t at = 0; at < length; at += run) {
        run = allocated_run(at, length, &allocated);
        if (run < 0) {
            io.ejected = io.ejected || tell_corruption() == CORRUPTION_MARKED;
            error_report("Failed to get allocation status: %s", strerror((int)-run));
            return (int)run;
        }
        printf("%s (0x%" PRIx64 ") bytes %s allocated at offset %s (0x%" PRIx64 ")\n", size_text_io((double)run, size),
               (uint64_t)run, allocated ? "   " : "not", size_text_io((double)at, start), (uint64_t)at);
    }
    return 0;
}
