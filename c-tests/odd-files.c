/* What is no image file is refused at once and said so, by every route: a FIFO would wait for its other end. Hosts without
   fallocate are written to instead.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#undef _FILE_OFFSET_BITS
#include "host-calls.h"
#include "test.h"

#include <fcntl.h>
#include <sys/stat.h>

static const char *fifo;

static int answer(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    (void)opaque, (void)request;
    answer->path = fifo;
    return 0;
}

static void fifos(void)
{
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    char option[4200], backing[4200];
    const char *data_file[] = {option, NULL};
    qcow2_image *image;
    int ends[2];

    fifo = strdup(test_path("fifo"));
    CHECK_EQ(mkfifo(fifo, 0600), 0);
    snprintf(option, sizeof option, "data_file=%s", fifo);
    snprintf(backing, sizeof backing, "backing_file=%s", fifo);
    for (unsigned flags = 0; flags < 2; flags++) {
        uint64_t mode = flags == 0 ? 0 : QCOW2_OPEN_READ_ONLY;

        CHECK_ERROR(qcow2_open(fifo, mode, NULL, &image), EINVAL);
        CHECK_TEXT("FIFO");
        CHECK_ERROR(qcow2_open(fifo, mode | QCOW2_OPEN_RAW, NULL, &image), EINVAL);
        params.path = test_create("overlay", MIB, backing, "backing_fmt=raw", NULL);
        params.flags = mode | QCOW2_OPEN_ALLOW_RECORDED;
        CHECK_ERROR(qcow2_open_with(&params, &image), EINVAL);
        CHECK_TEXT("FIFO");
        params.resolve = answer;
        CHECK_ERROR(qcow2_open_with(&params, &image), EINVAL);
        CHECK_TEXT("FIFO");
        params.resolve = NULL;
    }
    CHECK_ERROR(qcow2_create(fifo, MIB, NULL), EINVAL);
    CHECK_TEXT("FIFO");
    CHECK_ERROR(qcow2_create(test_path("new"), MIB, data_file), EINVAL);
    CHECK_TEXT("FIFO");
    CHECK_EQ(access(test_path("new"), F_OK), -1);
    CHECK_EQ(pipe(ends), 0);
    CHECK_ERROR(qcow2_open_fd(ends[0], QCOW2_OPEN_READ_ONLY, NULL, &image), EINVAL);
    CHECK_TEXT("FIFO or pipe");
    CHECK_ERROR(qcow2_open("/dev/null", 0, NULL, &image), EINVAL);
    CHECK_TEXT("character device");
    CHECK_ERROR(qcow2_open("/", QCOW2_OPEN_READ_ONLY, NULL, &image), EISDIR);
}

/* As good as where it is there: the space is taken, and what was there before stays. */
static void without_fallocate(void)
{
    char option[4200];
    const char *path;
    qcow2_image *image;
    struct stat found;

    host.on = true;
    host.fallocate_errno = EOPNOTSUPP;
    path = test_create("falloc", 8 * MIB, "preallocation=falloc", NULL);
    CHECK_EQ(stat(path, &found), 0);
    CHECK(found.st_blocks * 512 >= 8 * (off_t)MIB);
    image = test_open(path, 0, NULL);
    test_expect(image, 0, 8 * MIB, 0);
    test_fill(image, 0, 8 * MIB, 1);
    CHECK_OK(qcow2_truncate(image, 16 * MIB, QCOW2_PREALLOC_FALLOC));
    test_expect(image, 0, 8 * MIB, 1);
    test_expect(image, 8 * MIB, 8 * MIB, 0);
    test_close(image);
    CHECK_EQ(stat(path, &found), 0);
    CHECK(found.st_blocks * 512 >= 16 * (off_t)MIB);
    test_expect_sound(path, false);

    image = test_open(path, QCOW2_OPEN_RAW, NULL);
    uint64_t length = (uint64_t)qcow2_length(image);
    CHECK_OK(qcow2_truncate(image, length + 4 * MIB, QCOW2_PREALLOC_FALLOC));
    test_close(image);
    CHECK_EQ(stat(path, &found), 0);
    CHECK(found.st_blocks * 512 >= 20 * (off_t)MIB);

    snprintf(option, sizeof option, "data_file=%s", test_path("data.raw"));
    path = test_create("data", 8 * MIB, option, "preallocation=falloc", NULL);
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    test_fill(image, 0, 8 * MIB, 1);
    CHECK_OK(qcow2_truncate(image, 16 * MIB, QCOW2_PREALLOC_FALLOC));
    test_expect(image, 0, 8 * MIB, 1);
    test_expect(image, 8 * MIB, 8 * MIB, 0);
    test_close(image);
    CHECK_EQ(stat(test_path("data.raw"), &found), 0);
    CHECK(found.st_blocks * 512 >= 16 * (off_t)MIB);
    CHECK(host.calls[HOST_FALLOCATE] > 3);

    /* A host that is full is an error, and no reason to write. */
    host.fallocate_errno = ENOSPC;
    static const char *const falloc[] = {"preallocation=falloc", NULL};
    CHECK_ERROR(qcow2_create(test_path("full"), 8 * MIB, falloc), ENOSPC);
    host.on = false;
}

static void in_memory(void)
{
    struct test_memory memory = TEST_MEMORY_INIT;
    static const char *const falloc[] = {"preallocation=falloc", NULL};
    qcow2_image *image;

    CHECK_OK(qcow2_create_io(&test_memory_ops, &memory, MIB, falloc));
    CHECK_OK(test_memory_open(&test_memory_ops, &memory, 0, &image));
    test_fill(image, 0, MIB, 1);
    CHECK_OK(qcow2_truncate(image, 2 * MIB, QCOW2_PREALLOC_FALLOC));
    test_expect(image, 0, MIB, 1);
    test_expect(image, MIB, MIB, 0);
    test_close(image);
    test_memory_free(&memory);
}

int main(void)
{
    alarm(60);
    fifos();
    without_fallocate();
    in_memory();
    return 0;
}
