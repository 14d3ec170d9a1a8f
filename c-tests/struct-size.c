/* Sized structs: smaller ones get what fits and nothing beyond, larger ones keep what the library does not know,
   and larger ones with content ask for something that is not there.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

/* Bytes beyond what the caller said it has stay untouched; so does struct_size. */
#define CHECK_SMALLER(type, last_field, call)                                                                          \
    do {                                                                                                               \
        size_t small = offsetof(type, last_field);                                                                     \
        type out;                                                                                                      \
        memset(&out, 0xa5, sizeof out);                                                                                \
        out.struct_size = small;                                                                                       \
        CHECK_OK(call);                                                                                                \
        CHECK_EQ(out.struct_size, small);                                                                              \
        CHECK_FILLED((char *)&out + small, sizeof out - small, 0xa5);                                                  \
        size_t broken[] = {0, 1, sizeof(size_t)};                                                                      \
        for (unsigned i = 0; i < 3; i++) {                                                                             \
            memset(&out, 0xa5, sizeof out);                                                                            \
            out.struct_size = broken[i];                                                                               \
            CHECK_ERROR(call, EINVAL);                                                                                 \
            CHECK_FILLED((char *)&out + sizeof(size_t), sizeof out - sizeof(size_t), 0xa5);                            \
        }                                                                                                              \
    } while (0)

#define CHECK_LARGER(type, call)                                                                                       \
    do {                                                                                                               \
        union {                                                                                                        \
            type out;                                                                                                  \
            char bytes[sizeof(type) + 256];                                                                            \
        } large;                                                                                                       \
        memset(&large, 0xa5, sizeof large);                                                                            \
        large.out.struct_size = sizeof large;                                                                          \
        type *out = &large.out;                                                                                        \
        CHECK_OK(call);                                                                                                \
        CHECK_EQ(out->struct_size, sizeof large);                                                                      \
        CHECK_FILLED(large.bytes + sizeof(type), 256, 0xa5);                                                           \
    } while (0)

static void outputs(qcow2_image *image)
{
    CHECK_SMALLER(qcow2_extent, depth, qcow2_block_status(image, 0, MIB, 0, &out));
    CHECK_SMALLER(qcow2_info, version, qcow2_get_info(image, &out));
    CHECK_SMALLER(qcow2_info, open_repaired, qcow2_get_info(image, &out));
    CHECK_SMALLER(qcow2_check_result, leaks_fixed, qcow2_check(image, 0, &out, NULL, NULL, NULL, NULL));
    CHECK_SMALLER(qcow2_check_result, leaks_fixed, qcow2_check_findings(image, 0, &out, NULL, NULL, NULL, NULL));
    CHECK_SMALLER(qcow2_header_extension, data, qcow2_get_header_extension(image, 0, &out));
    CHECK_SMALLER(qcow2_option_info, scope, qcow2_option_list(QCOW2_SCOPE_OPEN, 0, &out));

    CHECK_LARGER(qcow2_extent, qcow2_block_status(image, 0, MIB, 0, out));
    CHECK_LARGER(qcow2_info, qcow2_get_info(image, out));
    CHECK_LARGER(qcow2_check_result, qcow2_check(image, 0, out, NULL, NULL, NULL, NULL));
    CHECK_LARGER(qcow2_check_result, qcow2_check_findings(image, 0, out, NULL, NULL, NULL, NULL));
    CHECK_LARGER(qcow2_header_extension, qcow2_get_header_extension(image, 0, out));
    CHECK_LARGER(qcow2_option_info, qcow2_option_list(QCOW2_SCOPE_OPEN, 0, out));
}

static void open_params(const char *path)
{
    union {
        qcow2_open_params params;
        char bytes[sizeof(qcow2_open_params) + 256];
    } large;
    qcow2_open_params small;
    qcow2_image *image;

    /* What a smaller struct lacks counts as not given: here everything from `flags` on, which holds garbage. */
    memset(&small, 0xa5, sizeof small);
    small.struct_size = offsetof(qcow2_open_params, flags);
    small.path = path;
    small.fd = -1;
    small.io = NULL;
    small.io_opaque = NULL;
    CHECK_OK(qcow2_open_with(&small, &image));
    test_close(image);
    small.struct_size = sizeof(size_t);
    CHECK_ERROR(qcow2_open_with(&small, &image), EINVAL);
    CHECK(image == NULL);
    small.struct_size = 0;
    CHECK_ERROR(qcow2_open_with(&small, &image), EINVAL);

    /* A larger one is welcome as long as the rest is zero. */
    memset(&large, 0, sizeof large);
    large.params = (qcow2_open_params)QCOW2_OPEN_PARAMS_INIT;
    large.params.struct_size = sizeof large;
    large.params.path = path;
    CHECK_OK(qcow2_open_with(&large.params, &image));
    test_close(image);
    large.bytes[sizeof large - 1] = 1;
    CHECK_ERROR(qcow2_open_with(&large.params, &image), ENOTSUP);
    CHECK(image == NULL);
}

static void io_ops(void)
{
    union {
        qcow2_io_ops ops;
        char bytes[sizeof(qcow2_io_ops) + 256];
    } large;
    struct test_memory memory = TEST_MEMORY_INIT;
    qcow2_io_ops small;
    qcow2_image *image;

    memset(&small, 0xa5, sizeof small);
    small = test_memory_ops;
    small.struct_size = offsetof(qcow2_io_ops, truncate);
    memset((char *)&small + small.struct_size, 0xa5, sizeof small - small.struct_size);
    CHECK_OK(qcow2_create_io(&small, &memory, MIB, NULL));
    CHECK_OK(test_memory_open(&small, &memory, 0, &image));
    test_fill(image, 0, MIB, 1);
    test_expect(image, 0, MIB, 1);
    test_close(image);
    CHECK_EQ(memory.closes, 0);

    memset(&large, 0, sizeof large);
    large.ops = test_memory_ops;
    large.ops.struct_size = sizeof large;
    CHECK_OK(test_memory_open(&large.ops, &memory, 0, &image));
    test_close(image);
    CHECK_EQ(memory.closes, 1);
    large.bytes[sizeof(qcow2_io_ops)] = 1;
    CHECK_ERROR(test_memory_open(&large.ops, &memory, 0, &image), ENOTSUP);
    test_memory_free(&memory);
}

int main(void)
{
    const char *path = test_create("disk.qcow2", MIB, NULL);
    qcow2_image *image = test_open(path, 0, NULL);

    outputs(image);
    test_close(image);
    open_params(path);
    io_ops();
    return 0;
}
