/* A resolver decides about every file that an image names: refused, as recorded, another path, a descriptor, or
   storage of the caller's.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <fcntl.h>

struct decision {
    int result;
    const char *path, *format;
    int fd;
    const qcow2_io_ops *io;
    void *io_opaque;
    bool as_recorded;
    /* What was asked. */
    unsigned calls;
    int depth, kind;
    char recorded[256], resolved[4200], recorded_format[32];
};

static void copy(char *to, size_t bytes, const char *from)
{
    snprintf(to, bytes, "%s", from != NULL ? from : "(null)");
}

static int decide(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    struct decision *decision = opaque;

    decision->calls++;
    decision->kind = request->kind;
    decision->depth = request->depth;
    copy(decision->recorded, sizeof decision->recorded, request->recorded_name);
    copy(decision->resolved, sizeof decision->resolved, request->resolved_path);
    copy(decision->recorded_format, sizeof decision->recorded_format, request->format);
    CHECK(request->struct_size >= sizeof *request);
    CHECK(answer->struct_size >= sizeof *answer);
    CHECK(answer->path == NULL && answer->fd == -1 && answer->io == NULL && answer->format == NULL);
    if (decision->as_recorded) {
        answer->path = request->resolved_path;
    } else {
        answer->path = decision->path;
    }
    answer->format = decision->format;
    answer->fd = decision->fd;
    answer->io = decision->io;
    answer->io_opaque = decision->io_opaque;
    return decision->result;
}

static int open_deciding(const char *path, uint64_t flags, struct decision *decision, qcow2_image **image)
{
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;

    params.path = path;
    params.flags = flags;
    params.resolve = decide;
    params.resolve_opaque = decision;
    decision->calls = 0;
    return qcow2_open_with(&params, image);
}

static void write_base(const char *path, int value)
{
    qcow2_image *image = test_open(path, 0, NULL);

    test_fill(image, 0, MIB, value);
    test_close(image);
}

int main(void)
{
    const char *base = test_create("base.qcow2", MIB, NULL), *other = test_create("other.qcow2", MIB, NULL);
    const char *top = test_create("top.qcow2", MIB, "backing_file=base.qcow2", "backing_fmt=qcow2", NULL);
    struct decision decision = {.fd = -1};
    qcow2_image *image;
    uint64_t before;

    write_base(base, 1);
    write_base(other, 2);
    before = test_digest(base);

    /* As recorded. */
    decision.as_recorded = true;
    CHECK_OK(open_deciding(top, 0, &decision, &image));
    CHECK_EQ(decision.calls, 1);
    CHECK_EQ(decision.kind, QCOW2_NODE_BACKING);
    CHECK_EQ(decision.depth, 1);
    CHECK(strcmp(decision.recorded, "base.qcow2") == 0);
    CHECK(strcmp(decision.resolved, base) == 0);
    CHECK(strcmp(decision.recorded_format, "qcow2") == 0);
    CHECK_EQ(test_info(image).backing_depth, 1);
    test_expect(image, 0, MIB, 1);
    test_fill(image, 4096, 512, 9);
    test_expect(image, 4096 + 512, 4096, 1);
    test_close(image);
    CHECK_EQ(test_digest(base), before);
    test_expect_sound(top, false);

    /* Refused, with the resolver's errno; with nonsense: still refused. */
    decision.as_recorded = false;
    decision.result = -EACCES;
    CHECK_ERROR(open_deciding(top, 0, &decision, &image), EACCES);
    CHECK(image == NULL);
    CHECK_TEXT("base.qcow2");
    decision.result = 17;
    CHECK_ERROR(open_deciding(top, 0, &decision, &image), EPERM);
    decision.result = 0;
    CHECK_ERROR(open_deciding(top, 0, &decision, &image), EINVAL); /* said yes, named nothing */
    /* The resolver wins over the flag. */
    decision.result = -EPERM;
    CHECK_ERROR(open_deciding(top, QCOW2_OPEN_ALLOW_RECORDED, &decision, &image), EPERM);
    decision.result = 0;

    /* Something else instead. */
    decision.path = other;
    CHECK_OK(open_deciding(top, QCOW2_OPEN_READ_ONLY, &decision, &image));
    test_expect(image, 8192, 4096, 1); /* copied up before */
    test_expect(image, 65536, MIB - 65536, 2);
    test_close(image);

    /* The same bytes as a raw disk. */
    decision.path = base;
    decision.format = "raw";
    CHECK_OK(open_deciding(top, QCOW2_OPEN_READ_ONLY, &decision, &image));
    char guest[4], file[4];
    uint64_t at = 65536;
    CHECK_OK(qcow2_pread(image, guest, sizeof guest, at));
    test_file_read(base, file, sizeof file, at);
    CHECK(memcmp(guest, file, sizeof guest) == 0);
    test_close(image);
    decision.format = "vmdk";
    CHECK(open_deciding(top, QCOW2_OPEN_READ_ONLY, &decision, &image) < 0);
    decision.format = NULL;
    decision.path = NULL;

    /* By descriptor; it stays the caller's. */
    decision.fd = open(other, O_RDONLY);
    CHECK(decision.fd >= 0);
    CHECK_OK(open_deciding(top, 0, &decision, &image));
    test_expect(image, 65536, MIB - 65536, 2);
    test_close(image);
    CHECK_EQ(close(decision.fd), 0);
    decision.fd = -1;

    /* By callbacks; closed once. */
    struct test_memory memory = TEST_MEMORY_INIT;
    CHECK_OK(qcow2_create_io(&test_memory_ops, &memory, MIB, NULL));
    CHECK_OK(test_memory_open(&test_memory_ops, &memory, 0, &image));
    test_fill(image, 0, MIB, 3);
    test_close(image);
    unsigned closes = memory.closes;
    decision.io = &test_memory_ops;
    decision.io_opaque = &memory;
    CHECK_OK(open_deciding(top, 0, &decision, &image));
    test_expect(image, 65536, MIB - 65536, 3);
    test_close(image);
    CHECK_EQ(memory.closes, closes + 1);
    test_memory_free(&memory);

    /* Not asked: METADATA_ONLY and NO_BACKING open nothing. */
    decision = (struct decision){.fd = -1, .result = -EPERM};
    CHECK_OK(open_deciding(top, QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_READ_ONLY, &decision, &image));
    CHECK_EQ(decision.calls, 0);
    CHECK(strcmp(test_info(image).backing_file, "base.qcow2") == 0);
    test_close(image);
    CHECK_OK(open_deciding(top, QCOW2_OPEN_NO_BACKING | QCOW2_OPEN_READ_ONLY, &decision, &image));
    CHECK_EQ(decision.calls, 0);
    test_expect(image, 65536, MIB - 65536, 0);
    test_close(image);
    return 0;
}
