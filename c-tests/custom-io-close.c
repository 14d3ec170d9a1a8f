/* The storage's close is called once and last, however the call that took the storage ends.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static const char *const bad_option[] = {"no-such-option=1", NULL};

struct answer {
    qcow2_resolve_answer given;
    int result;
    unsigned calls;
};

static int resolve(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    struct answer *mine = opaque;

    (void)request;
    mine->calls++;
    answer->path = mine->given.path;
    answer->fd = mine->given.fd;
    answer->io = mine->given.io;
    answer->io_opaque = mine->given.io_opaque;
    answer->format = mine->given.format;
    return mine->result;
}

/* Refused, each for another reason. */
static struct answer answers[] = {
    {.given = {.fd = -1, .format = "no text: \xff"}}, {.given = {.fd = -1, .format = "vmdk"}},
    {.given = {.fd = -1, .format = "qcow2"}}, /* which is not in there */
    {.given = {.fd = -1, .path = "/dev/null"}},       {.given = {.fd = 5}},
    {.given = {.fd = -1}, .result = -EACCES},
};

int main(void)
{
    const char *overlay = test_create("overlay", MIB, "backing_file=base", "backing_fmt=raw", NULL);
    struct test_memory memory = TEST_MEMORY_INIT, other = TEST_MEMORY_INIT;
    qcow2_create_params create = QCOW2_CREATE_PARAMS_INIT;
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    qcow2_image *image;

    CHECK_OK(qcow2_create_io(&test_memory_ops, &memory, MIB, NULL));
    CHECK_EQ(memory.closes, 1);
    CHECK_ERROR(qcow2_create_io(&test_memory_ops, &memory, MIB, bad_option), EINVAL);
    CHECK_EQ(memory.closes, 2);
    CHECK_ERROR(qcow2_create_io(&test_memory_ops, &memory, UINT64_MAX, NULL), EINVAL);
    CHECK_EQ(memory.closes, 3);

    /* Opened and closed. */
    CHECK_OK(test_memory_open(&test_memory_ops, &memory, 0, &image));
    CHECK_EQ(memory.closes, 3);
    CHECK_OK(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL));
    CHECK_EQ(memory.closes, 3);
    test_close(image);
    CHECK_EQ(memory.closes, 4);

    /* Refused: options, flags, an image that is none, a length that fails, a read that fails. */
    params.io = &test_memory_ops;
    params.io_opaque = &memory;
    params.options = bad_option;
    CHECK_ERROR(qcow2_open_with(&params, &image), EINVAL);
    CHECK_EQ(memory.closes, 5);
    params.options = NULL;
    params.flags = 1ull << 50;
    CHECK_ERROR(qcow2_open_with(&params, &image), EINVAL);
    CHECK_EQ(memory.closes, 6);
    memory.fail_length = ENODEV;
    CHECK_ERROR(test_memory_open(&test_memory_ops, &memory, 0, &image), ENODEV);
    CHECK_EQ(memory.closes, 7);
    memory.fail_length = 0;
    memory.fail_read = ENXIO;
    CHECK_ERROR(test_memory_open(&test_memory_ops, &memory, 0, &image), ENXIO);
    CHECK_EQ(memory.closes, 8);
    memory.fail_read = 0;
    memory.bytes[0] ^= 1;
    CHECK_ERROR(test_memory_open(&test_memory_ops, &memory, 0, &image), EMEDIUMTYPE);
    CHECK_EQ(memory.closes, 9);
    memory.bytes[0] ^= 1;

    /* Without the required functions, too, and nothing but close is called. */
    qcow2_io_ops incomplete = test_memory_ops;
    incomplete.length = NULL;
    CHECK_ERROR(test_memory_open(&incomplete, &memory, 0, &image), EINVAL);
    CHECK_EQ(memory.closes, 10);

    /* Nowhere to put the handle, or another place beside it. */
    params.flags = 0;
    CHECK_ERROR(qcow2_open_with(&params, NULL), EINVAL);
    CHECK_EQ(memory.closes, 11);
    params.path = "/dev/null";
    CHECK_ERROR(qcow2_open_with(&params, &image), EINVAL);
    CHECK_EQ(memory.closes, 12);
    create.io = create.data_io = &test_memory_ops;
    create.io_opaque = &memory;
    create.data_io_opaque = &other;
    create.path = create.data_path = "/dev/null";
    CHECK_ERROR(qcow2_create_with(&create), EINVAL);
    CHECK_EQ(memory.closes, 13);
    CHECK_EQ(other.closes, 1);

    /* What a resolver gives. */
    for (unsigned i = 0; i < sizeof answers / sizeof *answers; i++) {
        struct answer *answer = &answers[i];

        answer->given.io_opaque = &other;
        answer->given.io = &test_memory_ops;
        other.closes = 0;
        answer->calls = 0;
        params = (qcow2_open_params)QCOW2_OPEN_PARAMS_INIT;
        params.path = overlay;
        params.resolve = resolve;
        params.resolve_opaque = answer;
        CHECK(qcow2_open_with(&params, &image) < 0);
        CHECK_EQ(answer->calls, 1);
        CHECK_EQ(other.closes, answer->result == 0);
    }

    /* A close that reports an error frees as well. */
    CHECK_OK(test_memory_open(&test_memory_ops, &memory, 0, &image));
    test_fill(image, 0, 4096, 1);
    memory.fail_sync = EIO;
    CHECK_ERROR(qcow2_close(image), EIO);
    CHECK_EQ(memory.closes, 14);
    test_memory_free(&memory);
    return 0;
}
