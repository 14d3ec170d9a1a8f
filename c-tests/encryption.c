/* Encrypted images and LUKS files through the C interface.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

/* What is asked for, in order, and what is given for each kind; NULL is none. */
static struct {
    const char *given[3];
    const char *expected_name;
    int kinds[8];
    size_t asked;
} secrets;

static int64_t give(void *opaque, const qcow2_secret_request *request, void *buffer, size_t buffer_bytes)
{
    CHECK(opaque == &secrets && request->struct_size == sizeof *request && request->depth == 0);
    CHECK(request->file != NULL && request->encryption == QCOW2_ENCRYPTION_LUKS);
    CHECK(request->kind >= QCOW2_SECRET_CURRENT && request->kind <= QCOW2_SECRET_OLD);
    if (request->kind == QCOW2_SECRET_CURRENT) {
        CHECK(request->name == NULL);
    } else if (secrets.expected_name != NULL) {
        CHECK(request->name != NULL && strcmp(request->name, secrets.expected_name) == 0);
    }
    CHECK(secrets.asked < sizeof secrets.kinds / sizeof secrets.kinds[0]);
    secrets.kinds[secrets.asked++] = request->kind;
    const char *secret = secrets.given[request->kind];
    if (secret == NULL) {
        return -ENOKEY;
    }
    CHECK(strlen(secret) <= buffer_bytes);
    memcpy(buffer, secret, strlen(secret));
    return (int64_t)strlen(secret);
}

static int stop(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    (void)done;
    (void)total;
    return 1;
}

static void may_give(const char *current, const char *new_secret, const char *old)
{
    secrets.given[QCOW2_SECRET_CURRENT] = current;
    secrets.given[QCOW2_SECRET_NEW] = new_secret;
    secrets.given[QCOW2_SECRET_OLD] = old;
    secrets.asked = 0;
}

static int create(const char *path, const char *format, const char *const *options)
{
    qcow2_create_params params = QCOW2_CREATE_PARAMS_INIT;

    params.path = path;
    params.size = MIB;
    params.options = options;
    params.format = format;
    params.secret = give;
    params.secret_opaque = &secrets;
    return qcow2_create_with(&params);
}

static int open_as(const char *path, const char *format, uint64_t flags, qcow2_image **image)
{
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;

    params.path = path;
    params.flags = flags;
    params.format = format;
    params.secret = give;
    params.secret_opaque = &secrets;
    return qcow2_open_with(&params, image);
}

static int amend(qcow2_image *image, uint64_t flags, const char *const *options)
{
    qcow2_amend_params params = QCOW2_AMEND_PARAMS_INIT;

    params.options = options;
    params.flags = flags;
    params.secret = give;
    params.secret_opaque = &secrets;
    return qcow2_amend_with(image, &params);
}

static qcow2_encryption_info info_of(qcow2_image *image)
{
    qcow2_encryption_info info = {.struct_size = sizeof info};

    CHECK_OK(qcow2_get_encryption_info(image, 0, &info));
    CHECK_ERROR(qcow2_get_encryption_info(image, 1, &info), ENOENT);
    return info;
}

/* Another secret in another slot, then without the first one, then by force without any. */
static void change_slots(const char *path, const char *format, const char *const *fill, const char *const *erase)
{
    qcow2_image *image;

    secrets.expected_name = "by name";
    may_give("first", "second", NULL);
    CHECK_OK(open_as(path, format, 0, &image));
    CHECK_OK(amend(image, 0, fill));
    CHECK_EQ(secrets.asked, 3);
    CHECK_EQ(secrets.kinds[1], QCOW2_SECRET_CURRENT);
    CHECK_EQ(secrets.kinds[2], QCOW2_SECRET_NEW);
    qcow2_encryption_info info = info_of(image);
    CHECK(info.slots[0].active == 1 && info.slots[1].active == 1 && info.slots[2].active == 0);
    may_give(NULL, NULL, "first");
    CHECK_OK(amend(image, 0, erase));
    CHECK_ERROR(amend(image, 0, erase), EINVAL);
    CHECK_TEXT("No keyslots match given (old) password");
    may_give(NULL, NULL, "second");
    CHECK_ERROR(amend(image, 0, erase), EINVAL);
    CHECK_TEXT("refusing operation");
    test_expect(image, 0, 4096, 7);
    test_close(image);
    may_give("first", NULL, NULL);
    CHECK_ERROR(open_as(path, format, 0, &image), EKEYREJECTED);
    may_give("second", NULL, "second");
    CHECK_OK(open_as(path, format, 0, &image));
    test_expect(image, 0, 4096, 7);
    CHECK_OK(amend(image, QCOW2_AMEND_FORCE, erase));
    test_close(image);
    CHECK_ERROR(open_as(path, format, 0, &image), EKEYREJECTED);
    CHECK_ERROR(amend(NULL, 0, erase), EINVAL);
    secrets.expected_name = NULL;
}

static void both_ways(const char *path, const char *format, const char *const *options)
{
    qcow2_image *image;

    secrets.expected_name = NULL;
    may_give(NULL, NULL, NULL);
    CHECK_ERROR(create(path, format, options), ENOKEY);
    CHECK(access(path, F_OK) != 0);
    may_give(NULL, "first", NULL);
    CHECK_OK(create(path, format, options));
    CHECK_EQ(secrets.asked, 1);
    CHECK_ERROR(open_as(path, format, 0, &image), ENOKEY);
    CHECK_OK(open_as(path, format, QCOW2_OPEN_METADATA_ONLY, &image));
    qcow2_encryption_info info = info_of(image);
    CHECK_EQ(info.encryption, QCOW2_ENCRYPTION_LUKS);
    CHECK(strcmp(info.cipher, "aes-128") == 0 && strcmp(info.mode, "xts") == 0 && strlen(info.uuid) == 36);
    CHECK(strcmp(info.iv_generator, "plain64") == 0 && info.iv_hash == NULL && strcmp(info.hash, "sha256") == 0);
    CHECK_EQ(info.payload_offset, 1052672);
    CHECK_EQ(info.slots[7].material_offset, 4096 + 7 * 131072);
    CHECK(info.slots[0].active == 1 && info.slots[0].iterations >= 1000 && info.slots[0].stripes == 4000);
    test_close(image);
    may_give("first", NULL, NULL);
    CHECK_OK(open_as(path, format, 0, &image));
    test_fill(image, 0, 4096, 7);
    test_close(image);
}

static void what_is_not_encrypted(void)
{
    const char *path = test_create("plain.qcow2", MIB, NULL);
    qcow2_image *image = test_open(path, 0, NULL);

    CHECK_EQ(info_of(image).encryption, 0);
    test_close(image);
}

static void what_is_refused(void)
{
    const char *luks[] = {"encrypt.format=luks", NULL};
    qcow2_create_params params = QCOW2_CREATE_PARAMS_INIT;
    qcow2_image *image;

    CHECK_ERROR(qcow2_create(test_path("none"), MIB, luks), ENOKEY);
    params.path = test_path("none");
    params.size = MIB;
    params.options = luks;
    params.secret = give;
    params.secret_opaque = &secrets;
    params.progress = stop;
    may_give(NULL, "first", NULL);
    CHECK_ERROR(qcow2_create_with(&params), ECANCELED);
    CHECK_ERROR(create(params.path, "vmdk", NULL), ENOTSUP);
    CHECK(access(params.path, F_OK) != 0);
    CHECK_ERROR(open_as(test_create("qcow2", MIB, NULL), "luks", 0, &image), EINVAL);
    CHECK_ERROR(open_as(test_path("qcow2"), "luks", QCOW2_OPEN_RAW, &image), EINVAL);
}

static void how_long_it_gets(void)
{
    const char *luks[] = {"cipher-alg=aes-128", NULL};
    const char *encrypted[] = {"encrypt.format=luks", "encrypt.cipher-alg=aes-128", NULL};
    qcow2_measure_result plain = {.struct_size = sizeof plain}, result = plain;

    CHECK_OK(qcow2_measure_format("luks", MIB, luks, NULL, &result));
    CHECK_EQ(result.required_bytes, MIB + 1052672);
    CHECK_EQ(result.bitmaps_bytes, UINT64_MAX);
    CHECK_OK(qcow2_measure(MIB, NULL, NULL, &plain));
    CHECK_OK(qcow2_measure_format(NULL, MIB, encrypted, NULL, &result));
    CHECK_EQ(result.required_bytes - plain.required_bytes, 17 * 65536);
    CHECK_ERROR(qcow2_measure_format("raw", MIB, NULL, NULL, &result), ENOTSUP);
}

static void a_secret_under_another(void)
{
    static const unsigned char key[] = "0123456789abcdef0123456789abcdef", iv[16];
    unsigned char data[] = {0xf9, 0xf8, 0x1d, 0x86, 0xfe, 0xff, 0x0c, 0xb2,
                            0x79, 0x4f, 0x4a, 0xda, 0x02, 0xb8, 0x86, 0x12};
    unsigned char wrong[16] = {0};

    CHECK(qcow2_decrypt_secret(key, 32, iv, 16, data, sizeof data) == 7);
    CHECK(memcmp(data, "hunter2", 7) == 0);
    CHECK(qcow2_decrypt_secret(key, 31, iv, 16, data, sizeof data) == -EINVAL);
    CHECK(qcow2_decrypt_secret(key, 32, iv, 15, data, sizeof data) == -EINVAL);
    CHECK(qcow2_decrypt_secret(key, 32, iv, 16, data, 15) == -EINVAL);
    CHECK(qcow2_decrypt_secret(key, 32, iv, 16, wrong, sizeof wrong) == -EINVAL);
    CHECK(qcow2_decrypt_secret(NULL, 32, iv, 16, data, sizeof data) == -EINVAL);
    CHECK(qcow2_decrypt_secret(key, 32, iv, 16, data, 0) == 0);
}

int main(void)
{
    const char *image = test_path("image.qcow2"), *file = test_path("file.luks");
    const char *of_image[] = {"encrypt.format=luks", "encrypt.cipher-alg=aes-128", "encrypt.iter-time=0", NULL};
    const char *of_file[] = {"cipher-alg=aes-128", "iter-time=0", NULL};
    const char *fill_image[] = {"encrypt.state=active", "encrypt.new-secret=by name", "encrypt.iter-time=0", NULL};
    const char *fill_file[] = {"state=active", "new-secret=by name", "iter-time=0", NULL};
    const char *erase_image[] = {"encrypt.state=inactive", "encrypt.old-secret=by name", NULL};
    const char *erase_file[] = {"state=inactive", "old-secret=by name", NULL};

    both_ways(image, NULL, of_image);
    change_slots(image, "qcow2", fill_image, erase_image);
    both_ways(file, "luks", of_file);
    change_slots(file, "luks", fill_file, erase_file);
    what_is_not_encrypted();
    what_is_refused();
    a_secret_under_another();
    how_long_it_gets();
    return 0;
}
