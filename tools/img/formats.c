/* Formats that the stock tool knows: what -o help says of them, and that we make none of them.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "img.h"

#define SIZE_ROW                                                                                                       \
    {                                                                                                                  \
        "size", "size", "Virtual disk size"                                                                            \
    }
#define BACKING_ROW                                                                                                    \
    {                                                                                                                  \
        "backing_file", "str", "File name of a base image"                                                             \
    }

struct option_row {
    const char *key, *type, *help;
};

static const struct option_row luks[] = {
    {"cipher-alg", "str", "Name of encryption cipher algorithm"},
    {"cipher-mode", "str", "Name of encryption cipher mode"},
    {"detached-header", "bool (on/off)", "Create a detached LUKS header"},
    {"hash-alg", "str", "Name of encryption hash algorithm"},
    {"iter-time", "num", "Time to spend in PBKDF in milliseconds"},
    {"ivgen-alg", "str", "Name of IV generator algorithm"},
    {"ivgen-hash-alg", "str", "Name of IV generator hash algorithm"},
    {"key-secret", "str", "ID of the secret that provides the keyslot passphrase"},
    SIZE_ROW,
    {NULL, NULL, NULL},
};
static const struct option_row parallels[] = {
    {"cluster_size", "size", "Parallels image cluster size"},
    SIZE_ROW,
    {NULL, NULL, NULL},
};
static const struct option_row qcow[] = {
    BACKING_ROW,
    {"backing_fmt", "str", "Format of the backing image"},
    {"encrypt.format", "str", "Encrypt the image, format choices: 'aes'"},
    {"encrypt.key-secret", "str", "ID of the secret that provides the AES encryption key"},
    {"encryption", "bool (on/off)", "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"},
    SIZE_ROW,
    {NULL, NULL, NULL},
};
static const struct option_row qed[] = {
    BACKING_ROW,
    {"backing_fmt", "str", "Image format of the base image"},
    {"cluster_size", "size", "Cluster size (in bytes)"},
    SIZE_ROW,
    {"table_size", "size", "L1/L2 table size (in clusters)"},
    {NULL, NULL, NULL},
};
static const struct option_row vdi[] = {
    SIZE_ROW,
    {"static", "bool (on/off)", "VDI static (pre-allocated) image"},
    {NULL, NULL, NULL},
};
static const struct option_row vhdx[] = {
    {"block_size", "size", "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size."},
    {"block_state_zero", "bool (on/off)",
     "Force use of payload blocks of type 'ZERO'. Non-standard, but default.  Do not set to 'off' when using 'qemu-img"
     " convert' with subformat=dynamic."},
    {"log_size", "size", "Log size; min 1MB."},
    {"size", "size", "Virtual disk size; max of 64TB."},
    {"subformat", "str", "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'."},
    {NULL, NULL, NULL},
};
static const struct option_row vmdk[] = {
    {"adapter_type", "str", "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX"},
    BACKING_ROW,
    {"backing_fmt", "str", "Must be 'vmdk' if present"},
    {"compat6", "bool (on/off)", "VMDK version 6 image"},
    {"hwversion", "str", "VMDK hardware version"},
    SIZE_ROW,
    {"subformat", "str",
     "VMDK flat extent format, can be one of {monolithicSparse (default) | monolithicFlat | twoGbMaxExtentSparse |"
     " twoGbMaxExtentFlat | streamOptimized} "},
    {"toolsversion", "str", "VMware guest tools version"},
    {"zeroed_grain", "bool (on/off)", "Enable efficient zero writes using the zeroed-grain GTE feature"},
    {NULL, NULL, NULL},
};
static const struct option_row vpc[] = {
    {"force_size", "bool (on/off)",
     "Force disk size calculation to use the actual size specified, rather than using the nearest CHS-based calculation"},
    SIZE_ROW,
    {"subformat", "str", "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} "},
    {NULL, NULL, NULL},
};
static const struct option_row device[] = {
    {"preallocation", "str", "Preallocation mode (allowed values: off)"},
    SIZE_ROW,
    {NULL, NULL, NULL},
};

/* No options: nothing can be made in the format by the stock tool either. */
static const struct {
    const char *name;
    const struct option_row *options;
} formats[] = {
    {"blkdebug", NULL},
    {"blklogwrites", NULL},
    {"blkverify", NULL},
    {"bochs", NULL},
    {"cloop", NULL},
    {"compress", NULL},
    {"copy-before-write", NULL},
    {"copy-on-read", NULL},
    {"dmg", NULL},
    {"host_cdrom", device},
    {"host_device", device},
    {"luks", luks},
    {"nbd", device},
    {"null-aio", NULL},
    {"null-co", NULL},
    {"nvme", device},
    {"parallels", parallels},
    {"preallocate", NULL},
    {"qcow", qcow},
    {"qed", qed},
    {"quorum", NULL},
    {"replication", NULL},
    {"snapshot-access", NULL},
    {"throttle", NULL},
    {"vdi", vdi},
    {"vhdx", vhdx},
    {"vmdk", vmdk},
    {"vpc", vpc},
    {"vvfat", NULL},
};

bool creatable(const char *format)
{
    static const char *const names[] = {"qcow2", "raw", "file", "host_device"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(format, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

static int find(const char *format)
{
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
        if (strcmp(formats[i].name, format) == 0) {
            return (int)i;
        }
    }
    return -1;
}

int report_no_creation(const char *prefix, const char *format)
{
    if (find(format) < 0) {
        error_report("%sUnknown file format '%s'", prefix, format);
    } else {
        error_report("%sFormat driver '%s' does not support image creation", prefix, format);
    }
    return EXIT_FAILURE;
}

bool format_is_known(const char *format)
{
    return creatable(format) || find(format) >= 0;
}

bool foreign_options(const char *format, size_t index, const char **key, const char **type, const char **help)
{
    int found = find(format);
    const struct option_row *row;

    if (found < 0 || !formats[found].options) {
        return false;
    }
    row = formats[found].options;
    for (size_t i = 0; i < index && row->key; i++) {
        row++;
    }
    *key = row->key;
    *type = row->type;
    *help = row->help;
    return row->key != NULL;
}
