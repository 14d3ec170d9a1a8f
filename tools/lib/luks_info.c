/* What a LUKS header says, as the stock tools print it.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "common.h"

static void print_slots(FILE *out, int indent, const qcow2_encryption_info *info)
{
    fprintf(out, "%*sslots:\n", indent, "");
    for (size_t i = 0; i < sizeof(info->slots) / sizeof(info->slots[0]); i++) {
        const qcow2_key_slot *slot = &info->slots[i];

        fprintf(out, "%*s[%zu]:\n", indent + 4, "", i);
        fprintf(out, "%*sactive: %s\n", indent + 8, "", slot->active ? "true" : "false");
        if (slot->active) {
            fprintf(out, "%*siters: %u\n", indent + 8, "", (unsigned)slot->iterations);
        }
        fprintf(out, "%*skey offset: %llu\n", indent + 8, "", (unsigned long long)slot->material_offset);
        if (slot->active) {
            fprintf(out, "%*sstripes: %u\n", indent + 8, "", (unsigned)slot->stripes);
        }
    }
}

int print_luks(FILE *out, int indent, qcow2_image *image, bool in_qcow2)
{
    qcow2_encryption_info info = {.struct_size = sizeof(info)};
    int ret = qcow2_get_encryption_info(image, 0, &info);

    if (ret < 0) {
        return ret;
    }
    fprintf(out, "%*sivgen alg: %s\n%*sdetached header: false\n", indent, "", info.iv_generator, indent, "");
    fprintf(out, "%*shash alg: %s\n%*scipher alg: %s\n", indent, "", info.hash, indent, "", info.cipher);
    fprintf(out, "%*suuid: %s\n", indent, "", info.uuid);
    if (info.iv_hash != NULL) {
        fprintf(out, "%*sivgen hash alg: %s\n", indent, "", info.iv_hash);
    }
    if (in_qcow2) {
        fprintf(out, "%*sformat: luks\n", indent, "");
    }
    fprintf(out, "%*scipher mode: %s\n", indent, "", info.mode);
    print_slots(out, indent, &info);
    fprintf(out, "%*spayload offset: %llu\n", indent, "", (unsigned long long)info.payload_offset);
    fprintf(out, "%*smaster key iters: %u\n", indent, "", (unsigned)info.digest_iterations);
    return 0;
}
