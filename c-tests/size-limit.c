/* RLIMIT_FSIZE: what fits under it is written and closed without a signal, though the file grows ahead of what it holds;
   what does not is EFBIG.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>

struct scene {
    const char *path;
    uint64_t limit;
    uint64_t flags;
    bool by_descriptor;
    const char *options[2];
};

/* The signal ends this process, as by default. */
static void fill_up(void *opaque)
{
    const struct scene *scene = opaque;
    struct rlimit limit = {.rlim_cur = scene->limit, .rlim_max = RLIM_INFINITY};
    int fd = open(scene->path, O_RDWR);
    int64_t ret = 0;
    static char bytes[65536];
    uint64_t at = 0;
    qcow2_image *image;

    CHECK_EQ(signal(SIGXFSZ, SIG_DFL) == SIG_ERR, 0);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    if (scene->by_descriptor) {
        CHECK_OK(qcow2_open_fd(fd, scene->flags, scene->options, &image));
    } else {
        CHECK_OK(qcow2_open(scene->path, scene->flags, scene->options, &image));
    }
    memset(bytes, 7, sizeof bytes);
    for (; ret >= 0 && at < 64 * MIB; at += sizeof bytes) {
        ret = qcow2_pwrite(image, bytes, sizeof bytes, at);
        if (ret >= 0 && at % MIB == 0) {
            CHECK_OK(qcow2_flush(image));
        }
    }
    CHECK_EQ(ret, -EFBIG);
    /* Most of the room was used. */
    CHECK(at > scene->limit - scene->limit / 4 || (scene->flags & QCOW2_OPEN_RAW) != 0);
    test_expect(image, 0, at - sizeof bytes, 7);
    CHECK_OK(qcow2_flush(image));
    if ((scene->flags & QCOW2_OPEN_RAW) != 0) {
        CHECK_ERROR(qcow2_write_zeroes(image, 32 * MIB, 40 * MIB, 0), EIO); /* past the end of the disk */
    }
    CHECK_OK(qcow2_close(image));
}

static void small(void *opaque)
{
    const struct scene *scene = opaque;
    struct rlimit limit = {.rlim_cur = scene->limit, .rlim_max = RLIM_INFINITY};
    qcow2_image *image;

    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    CHECK_OK(qcow2_open(scene->path, scene->flags, scene->options, &image));
    test_fill(image, 0, 65536, 1);
    CHECK_OK(qcow2_flush(image));
    test_fill(image, 65536, 65536, 1);
    CHECK_OK(qcow2_close(image));
}

int main(void)
{
    struct scene scenes[] = {
        {.limit = 9 * MIB + 1000},
        {.limit = 9 * MIB, .by_descriptor = true},
        {.limit = 5 * MIB, .options = {"lazy-refcounts=on"}},
        {.limit = 5 * MIB, .options = {"cache=none"}},
        {.limit = 3 * MIB, .options = {"cache=writethrough"}},
    };
    char option[4200];

    for (unsigned i = 0; i < sizeof scenes / sizeof *scenes; i++) {
        scenes[i].path = test_create("disk", 64 * MIB, NULL);
        test_in_child(fill_up, &scenes[i]);
        test_expect_sound(scenes[i].path, false);
    }
    /* No more than this holds: header, tables, two clusters. */
    struct scene few = {.path = test_create("disk", 64 * MIB, NULL)};
    qcow2_image *image = test_open(few.path, 0, NULL);
    test_fill(image, 0, 131072, 1);
    test_close(image);
    few.limit = test_file_length(few.path);
    few.path = test_create("disk", 64 * MIB, NULL);
    test_in_child(small, &few);
    CHECK_EQ(test_file_length(few.path), few.limit);
    test_expect_sound(few.path, false);

    /* A data file. */
    snprintf(option, sizeof option, "data_file=%s", test_path("data.raw"));
    struct scene data = {
        .path = test_create("data", 64 * MIB, option, NULL), .limit = 2 * MIB, .flags = QCOW2_OPEN_ALLOW_RECORDED};
    test_in_child(fill_up, &data);
    test_expect_sound(data.path, true);
    return 0;
}
