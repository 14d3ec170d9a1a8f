/* The options "encrypt.*" of an image.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "node.h"
#include "secrets.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int encrypt_check(const struct string_list *encrypt, uint32_t method, char **error)
{
    const char *format = list_value(encrypt, "format"), *name = method == QCOW2_ENCRYPTION_AES ? "aes" : "luks";

    if (format != NULL && method == 0) {
        return refuse(error, -EINVAL,
                      text_format("No encryption in image header, but options specified format '%s'", format));
    }
    if (format != NULL && strcmp(format, name) != 0) {
        return refuse(error, -EINVAL,
                      text_format("Header reported '%s' encryption format but options specify '%s'", name, format));
    }
    for (size_t i = 0; i < encrypt->count && method != 0; i++) {
        const char *item = encrypt->items[i];

        if (strncmp(item, "format=", 7) != 0 && strncmp(item, "key-secret=", 11) != 0) {
            return refuse(error, -EINVAL,
                          text_format("Parameter '%.*s' is unexpected", (int)strcspn(item, ".="), item));
        }
    }
    return 0;
}

int64_t encrypt_secret(const struct string_list *encrypt, uint32_t method, void *buffer, size_t room, char **error)
{
    const char *id = list_value(encrypt, "key-secret");
    int64_t ret;

    if (encrypt_check(encrypt, method, error) < 0) {
        return -EACCES;
    }
    if (id == NULL) {
        return -ENOKEY;
    }
    ret = secret_password(id, buffer, room, error);
    return ret < 0 ? -EACCES : ret;
}

char *backing_failure(int depth, char *why)
{
    for (; depth > 0; depth--) {
        char *longer = text_format("Could not open backing file: %s", why);

        free(why);
        why = longer;
    }
    return why;
}

int encrypt_check_layers(struct node *const *layers, qcow2_image *image, char **error)
{
    int ret = 0;

    for (int depth = 0; depth <= NODE_DEPTH_LIMIT && ret == 0; depth++) {
        const struct node *node = layers[depth];
        qcow2_info info = {.struct_size = sizeof(info)};

        if (node == NULL || node->encrypt.count == 0 || qcow2_get_node_info(image, (uint32_t)depth, &info) < 0) {
            continue;
        }
        ret = encrypt_check(&node->encrypt, info.crypt_method, error);
        if (ret < 0) {
            *error = backing_failure(depth, *error);
        }
    }
    return ret;
}

int64_t secret_by_name(void *opaque, const qcow2_secret_request *request, void *buffer, size_t room)
{
    int64_t ret = -ENOKEY;

    if (request->name != NULL) {
        ret = secret_password(request->name, buffer, room, opaque);
    }
    return ret;
}
