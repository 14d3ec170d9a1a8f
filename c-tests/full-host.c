/* A file system that is full for a while: what a handle has acknowledged is there once it has room again, in every
   mode, and what changes the whole image goes back or is completed later.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#define BLOCK ((uint64_t)65536)
#define HOST (16 * MIB)
#define WRITES 120

static char directory[4096];

/* Paths on the small file system. */
static const char *on_host(const char *name)
{
    static char paths[8][4200];
    static unsigned next;
    char *path = paths[next++ % 8];

    snprintf(path, sizeof paths[0], "%s/%s", directory, name);
    return path;
}

static void ballast(uint64_t bytes)
{
    const char *path = on_host("ballast");
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);

    CHECK(fd >= 0);
    CHECK_EQ(bytes == 0 ? 0 : posix_fallocate(fd, 0, (off_t)bytes), 0);
    close(fd);
}

static uint64_t room(void)
{
    struct statvfs now;

    CHECK_EQ(statvfs(directory, &now), 0);
    return (uint64_t)now.f_bavail * now.f_bsize;
}

/* Takes all room but `left` bytes. */
static void fill_up(uint64_t left)
{
    ballast(0);
    ballast(room() > left ? room() - left : 0);
}

static const char *create(const char *name, uint64_t size, const char *option, const char *backing)
{
    const char *path = on_host(name);
    const char *options[] = {option, backing, backing ? "backing_fmt=qcow2" : NULL, NULL};

    unlink(path);
    CHECK_OK(qcow2_create(path, size, options));
    return path;
}

/* Until the host refuses; how many blocks of `value` a write has answered for. */
static unsigned write_until_full(qcow2_image *image, unsigned first, unsigned count, char value)
{
    static char block[BLOCK];
    unsigned done = first;

    memset(block, value, sizeof block);
    for (; done < first + count; done++) {
        ssize_t answer = qcow2_pwrite(image, block, sizeof block, done * BLOCK);

        if (answer < 0) {
            CHECK_EQ(answer, -ENOSPC);
            break;
        }
    }
    return done;
}

static void acknowledged_writes_stay(const char *create_option, const char *open_option)
{
    const char *path = create("disk.qcow2", 64 * MIB, create_option, NULL);
    unsigned told = 0;

    ballast(10 * MIB);
    qcow2_image *image = test_open(path, 0, open_option, NULL);
    unsigned done = write_until_full(image, 0, WRITES, 7);
    fill_up(0);
    for (int attempt = 0; attempt < 3; attempt++) {
        if (qcow2_flush(image) < 0) {
            told++;
        }
    }
    ballast(0);
    CHECK_OK(qcow2_flush(image));
    CHECK(done > 40);
    CHECK_EQ(write_until_full(image, done, WRITES / 3, 7), done + WRITES / 3);
    CHECK_OK(qcow2_flush(image));
    test_expect(image, 0, (done + WRITES / 3) * BLOCK, 7);
    CHECK_OK(qcow2_close(image));
    test_expect_sound(path, false);
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    test_expect(image, 0, (done + WRITES / 3) * BLOCK, 7);
    test_close(image);
    printf("%s, %s: %u blocks, %u flushes refused\n", create_option, open_option ? open_option : "-", done, told);
}

/* A disk that cannot be preallocated stays as it was, and the host gets its room back. */
static void a_preallocation_gives_back(int mode, uint64_t size)
{
    const char *path = create("disk.qcow2", 4 * MIB, "lazy_refcounts=off", NULL);

    ballast(0);
    qcow2_image *image = test_open(path, 0, NULL);
    test_fill(image, 0, MIB, 3);
    CHECK_OK(qcow2_flush(image));
    uint64_t before = room();
    CHECK_ERROR(qcow2_truncate(image, size, mode), ENOSPC);
    CHECK_EQ(qcow2_length(image), 4 * MIB);
    /* Refcount blocks stay, as ever. */
    CHECK(room() + (mode == QCOW2_PREALLOC_METADATA ? 4 * MIB : MIB / 2) >= before);
    test_fill(image, MIB, MIB, 4);
    CHECK_OK(qcow2_flush(image));
    test_expect(image, 0, MIB, 3);
    test_expect(image, MIB, MIB, 4);
    CHECK_OK(qcow2_close(image));
    test_expect_sound(path, false);
}

/* Each change of the whole image at every amount of room, until it succeeds. */
static void changes_wait_for_room(const char *what, int (*change)(qcow2_image *), const char *create_option)
{
    unsigned refused = 0;

    for (uint64_t left = 0; left <= 40 * 4096; left += (test_under_valgrind() ? 20 : 1) * 4096) {
        const char *path = create("disk.qcow2", 64 * MIB, create_option, NULL);
        qcow2_image *image;

        ballast(0);
        image = test_open(path, 0, NULL);
        test_fill(image, 0, MIB, 5);
        CHECK_OK(qcow2_flush(image));
        test_fill(image, MIB, BLOCK, 6);
        fill_up(left);
        int answer = change(image);
        if (answer < 0) {
            CHECK_EQ(answer, -ENOSPC);
            refused++;
        }
        ballast(0);
        CHECK_OK(qcow2_flush(image));
        test_expect(image, 0, MIB, 5);
        test_expect(image, MIB, BLOCK, 6);
        test_fill(image, 2 * MIB, MIB, 8);
        CHECK_OK(change(image));
        test_expect(image, 2 * MIB, MIB, 8);
        CHECK_OK(qcow2_close(image));
        test_expect_sound(path, false);
    }
    printf("%s, %s: refused %u times\n", what, create_option, refused);
    CHECK(refused > 0);
}

static int grow(qcow2_image *image)
{
    return qcow2_truncate(image, 4096 * GIB, QCOW2_PREALLOC_OFF);
}

static int take_snapshot(qcow2_image *image)
{
    qcow2_snapshot_options options = QCOW2_SNAPSHOT_OPTIONS_INIT;

    return qcow2_snapshot_create(image, "one more", &options);
}

static void a_commit_waits_for_room(void)
{
    const char *base = create("base.qcow2", 64 * MIB, "lazy_refcounts=off", NULL);
    const char *top = create("top.qcow2", 64 * MIB, "lazy_refcounts=on", "backing_file=base.qcow2");
    qcow2_image *image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED, NULL);

    ballast(0);
    test_fill(image, 0, 2 * MIB, 5);
    CHECK_OK(qcow2_flush(image));
    fill_up(MIB);
    CHECK_ERROR(qcow2_commit(image, 0, NULL, NULL), ENOSPC);
    test_expect(image, 0, 2 * MIB, 5);
    ballast(0);
    test_fill(image, 2 * MIB, BLOCK, 6);
    CHECK_OK(qcow2_commit(image, 0, NULL, NULL));
    test_expect(image, 0, 2 * MIB, 5);
    test_expect(image, 2 * MIB, BLOCK, 6);
    CHECK_OK(qcow2_close(image));
    test_expect_sound(top, false);
    image = test_open(base, QCOW2_OPEN_READ_ONLY, NULL);
    test_expect(image, 0, 2 * MIB, 5);
    test_expect(image, 2 * MIB, BLOCK, 6);
    test_close(image);
    test_expect_sound(base, false);
}

int main(void)
{
    static const char *modes[] = {NULL, "cache=writethrough", "metadata-writethrough=on"};
    char options[64];

    snprintf(directory, sizeof directory, "%s", test_path("host"));
    snprintf(options, sizeof options, "size=%d", (int)HOST);
    CHECK_EQ(mkdir(directory, 0700), 0);
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", directory, "tmpfs", 0, options) != 0) {
        test_skip("no small file system can be mounted here");
    }
    for (unsigned i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        acknowledged_writes_stay("lazy_refcounts=off", modes[i]);
        acknowledged_writes_stay("lazy_refcounts=on", modes[i]);
    }
    a_preallocation_gives_back(QCOW2_PREALLOC_FALLOC, 4 * HOST);
    a_preallocation_gives_back(QCOW2_PREALLOC_FULL, 4 * HOST);
    if (!test_under_valgrind()) {
        a_preallocation_gives_back(QCOW2_PREALLOC_METADATA, 1024 * GIB);
    }
    changes_wait_for_room("grow", grow, "lazy_refcounts=off");
    changes_wait_for_room("grow", grow, "lazy_refcounts=on");
    changes_wait_for_room("snapshot", take_snapshot, "lazy_refcounts=off");
    changes_wait_for_room("snapshot", take_snapshot, "lazy_refcounts=on");
    a_commit_waits_for_room();
    umount(directory);
    return 0;
}
