/* Each disk of a chain by its depth; whether a file is an image; and a discard that is durable when it returns.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <fcntl.h>
#include <unistd.h>

static void nodes(const char *top)
{
    qcow2_image *image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    qcow2_info info[4] = {{.struct_size = sizeof *info},
                          {.struct_size = sizeof *info},
                          {.struct_size = sizeof *info},
                          {.struct_size = sizeof *info}};

    CHECK_OK(qcow2_get_node_info(image, 0, &info[0]));
    CHECK(strcmp(info[0].path, top) == 0);
    CHECK_EQ(info[0].backing_depth, 2);
    CHECK_EQ(info[0].read_only, 0);
    CHECK_OK(qcow2_get_node_info(image, 1, &info[1]));
    CHECK(strcmp(info[1].path, test_path("middle.qcow2")) == 0);
    CHECK(strcmp(info[1].backing_file, "low.raw") == 0);
    CHECK_EQ(info[1].virtual_size, 2 * MIB);
    CHECK_EQ(info[1].backing_depth, 1);
    CHECK_EQ(info[1].read_only, 1);
    CHECK_OK(qcow2_get_node_info(image, 2, &info[2]));
    CHECK_EQ(info[2].version, 0);
    CHECK_EQ(info[2].virtual_size, MIB);
    CHECK(info[2].descriptor > 2 && info[2].descriptor != info[1].descriptor);
    CHECK_ERROR(qcow2_get_node_info(image, 3, &info[3]), ENOENT);
    CHECK_ERROR(qcow2_get_node_info(image, UINT32_MAX, &info[3]), ENOENT);
    CHECK_ERROR(qcow2_get_node_info(image, 1, NULL), EINVAL);
    CHECK_ERROR(qcow2_get_node_info(NULL, 1, &info[3]), EINVAL);
    /* Both calls' strings live beside each other. */
    CHECK_OK(qcow2_get_info(image, &info[3]));
    CHECK_OK(qcow2_get_node_info(image, 1, &info[1]));
    CHECK(strcmp(info[3].path, top) == 0 && strcmp(info[1].path, test_path("middle.qcow2")) == 0);
    test_close(image);
}

static void probes(const char *top)
{
    static const unsigned char old[8] = {'Q', 'F', 'I', 0xfb, 0, 0, 0, 1}, future[8] = {'Q', 'F', 'I', 0xfb, 1};
    char byte;
    int fd;
    qcow2_image *image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED, NULL);

    CHECK_EQ(qcow2_probe(top), 1); /* locked by a writer */
    test_close(image);
    CHECK_EQ(qcow2_probe(test_path("low.raw")), 0);
    test_file_write(test_path("old"), old, sizeof old, 0);
    CHECK_EQ(qcow2_probe(test_path("old")), 0);
    test_file_write(test_path("future"), future, sizeof future, 0);
    CHECK_EQ(qcow2_probe(test_path("future")), 1);
    test_file_write(test_path("short"), future, 5, 0);
    CHECK_EQ(qcow2_probe(test_path("short")), 0);
    test_file_write(test_path("empty"), "", 0, 0);
    CHECK_EQ(qcow2_probe(test_path("empty")), 0);
    CHECK_ERROR(qcow2_probe(test_path("absent")), ENOENT);
    CHECK_TEXT("absent");
    CHECK_ERROR(qcow2_probe(NULL), EINVAL);
    CHECK_ERROR(qcow2_probe_fd(-1), EBADF);
    fd = open(top, O_RDONLY | O_CLOEXEC);
    CHECK_EQ(read(fd, &byte, 1), 1);
    CHECK_EQ(qcow2_probe_fd(fd), 1);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 1);
    close(fd);
}

static void discards(void)
{
    struct test_memory memory = TEST_MEMORY_INIT;
    qcow2_image *image;
    unsigned syncs;

    CHECK_OK(qcow2_create_io(&test_memory_ops, &memory, MIB, NULL));
    CHECK_OK(test_memory_open(&test_memory_ops, &memory, 0, &image));
    test_fill(image, 0, MIB, 7);
    CHECK_OK(qcow2_flush(image));
    syncs = memory.syncs;
    CHECK_OK(qcow2_discard2(image, 0, 65536, 0));
    CHECK_EQ(memory.syncs, syncs);
    CHECK_OK(qcow2_discard2(image, 65536, 65536, QCOW2_REQ_FUA));
    CHECK(memory.syncs > syncs);
    test_expect(image, 0, 131072, 0);
    test_expect(image, 131072, MIB - 131072, 7);
    for (unsigned bit = 1; bit < 64; bit++) {
        CHECK_ERROR(qcow2_discard2(image, 0, 65536, 1ull << bit), EINVAL);
    }
    CHECK_ERROR(qcow2_discard2(image, MIB, 512, QCOW2_REQ_FUA), EIO);
    CHECK_ERROR(qcow2_discard2(NULL, 0, 512, QCOW2_REQ_FUA), EINVAL);
    memory.fail_sync = EIO;
    CHECK_ERROR(qcow2_discard2(image, 262144, 65536, QCOW2_REQ_FUA), EIO);
    memory.fail_sync = 0;
    qcow2_close(image);
    test_memory_free(&memory);
}

int main(void)
{
    static const char zeroes[MIB];
    const char *top;
    qcow2_image *image;

    test_file_write(test_path("low.raw"), zeroes, sizeof zeroes, 0);
    test_create("middle.qcow2", 2 * MIB, "backing_file=low.raw", "backing_fmt=raw", NULL);
    /* No size: the backing file's. */
    top = test_create("top.qcow2", UINT64_MAX, "backing_file=middle.qcow2", "backing_fmt=qcow2", NULL);
    image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_EQ(test_info(image).virtual_size, 2 * MIB);
    test_close(image);
    nodes(test_create("top.qcow2", 3 * MIB, "backing_file=middle.qcow2", "backing_fmt=qcow2", NULL));
    probes(top);
    discards();
    return 0;
}
