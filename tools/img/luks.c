/* What encrypts an image, part of info.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "img.h"

bool encryption_is_readable(qcow2_image *image, const qcow2_info *info, const char *name)
{
    qcow2_encryption_info found = {.struct_size = sizeof(found)};

    if (info->crypt_method != QCOW2_ENCRYPTION_LUKS || qcow2_get_encryption_info(image, 0, &found) == 0) {
        return true;
    }
    error_report("Could not open '%s': %s", name, failure_text());
    return false;
}

static void json_slots(struct json *json, const qcow2_encryption_info *info)
{
    json_open(json, "slots", '[');
    for (size_t i = 0; i < sizeof(info->slots) / sizeof(info->slots[0]); i++) {
        const qcow2_key_slot *slot = &info->slots[i];

        json_open(json, NULL, '{');
        json_bool(json, "active", slot->active);
        if (slot->active) {
            json_number(json, "iters", slot->iterations);
        }
        json_number(json, "key-offset", slot->material_offset);
        if (slot->active) {
            json_number(json, "stripes", slot->stripes);
        }
        json_close(json, '}');
    }
    json_close(json, ']');
}

void json_luks(struct json *json, qcow2_image *image, bool in_qcow2)
{
    qcow2_encryption_info info = {.struct_size = sizeof(info)};

    if (qcow2_get_encryption_info(image, 0, &info) < 0) {
        return;
    }
    json_string(json, "ivgen-alg", info.iv_generator);
    json_bool(json, "detached-header", false);
    json_string(json, "hash-alg", info.hash);
    json_string(json, "cipher-alg", info.cipher);
    json_string(json, "uuid", info.uuid);
    if (info.iv_hash) {
        json_string(json, "ivgen-hash-alg", info.iv_hash);
    }
    if (in_qcow2) {
        json_string(json, "format", "luks");
    }
    json_string(json, "cipher-mode", info.mode);
    json_slots(json, &info);
    json_number(json, "payload-offset", info.payload_offset);
    json_number(json, "master-key-iters", info.digest_iterations);
}
