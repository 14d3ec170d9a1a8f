/* An image changes hands as in a migration: whoever gives it away caches nothing and refuses requests, whoever takes
   it over sees all that the other has done.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include "test.h"

static const char *const lazy_on[] = {"lazy-refcounts=on", NULL};

static void expect_refused(qcow2_image *image)
{
    qcow2_extent extent = {.struct_size = sizeof extent};
    qcow2_check_result result = {.struct_size = sizeof result};
    qcow2_snapshot_info snapshot = {.struct_size = sizeof snapshot};
    char byte = 0;

    CHECK_ERROR(qcow2_pread(image, &byte, 1, 0), EPERM);
    CHECK_TEXT("inactive");
    CHECK_ERROR(qcow2_pwrite(image, &byte, 1, 0), EPERM);
    CHECK_ERROR(qcow2_write_zeroes(image, 0, 65536, 0), EPERM);
    CHECK_ERROR(qcow2_discard(image, 0, 65536), EPERM);
    CHECK_ERROR(qcow2_flush(image), EPERM);
    CHECK_ERROR(qcow2_truncate(image, MIB, QCOW2_PREALLOC_OFF), EPERM);
    CHECK_ERROR(qcow2_block_status(image, 0, 1, 0, &extent), EPERM);
    CHECK_ERROR(qcow2_vmstate_write(image, &byte, 1, 0), EPERM);
    CHECK_ERROR(qcow2_snapshot_create(image, "no", NULL), EPERM);
    CHECK_ERROR(qcow2_snapshot_apply(image, NULL, "no"), EPERM);
    CHECK_ERROR(qcow2_get_snapshot(image, 0, &snapshot), EPERM);
    CHECK_ERROR(qcow2_make_empty(image), EPERM);
    CHECK_ERROR(qcow2_change_backing_file(image, NULL, NULL), EPERM);
    CHECK_ERROR(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL), EPERM);
    CHECK_ERROR(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL), EPERM);
    /* What would change nothing, too: what the handle remembers may be old. */
    CHECK_ERROR(qcow2_truncate(image, (uint64_t)qcow2_length(image), QCOW2_PREALLOC_OFF), EPERM);
    CHECK_ERROR(qcow2_amend(image, (const char *const[]){"lazy_refcounts=off", NULL}, 0, NULL, NULL), EPERM);
    CHECK_ERROR(qcow2_rebase(image, NULL, NULL, NULL, 0, NULL, NULL), EPERM);
    CHECK_ERROR(qcow2_stream(image, 0, 65536, 0, 0, NULL, NULL), EPERM);
    CHECK_OK(qcow2_clean_caches(image));
}

/* Two handles, each with caches of its own. */
static void back_and_forth(uint64_t flags)
{
    const char *path = test_create("disk.qcow2", 4 * MIB, "cluster_size=4096", NULL);
    qcow2_image *source = test_open(path, flags, NULL), *target;
    qcow2_snapshot_info snapshot = {.struct_size = sizeof snapshot};

    CHECK_OK(qcow2_reopen(source, 0, lazy_on));
    test_fill(source, 0, MIB, 1);
    CHECK_ERROR(qcow2_open(path, flags, NULL, &target), EAGAIN);
    CHECK_OK(qcow2_open(path, flags | QCOW2_OPEN_INACTIVE, NULL, &target));
    CHECK_EQ(test_info(target).dirty, 1); /* and not repaired under its writer */
    expect_refused(target);
    CHECK_ERROR(qcow2_invalidate(target, NULL), EAGAIN);
    expect_refused(target);
    test_expect(source, 0, MIB, 1);

    CHECK_OK(qcow2_inactivate(source));
    CHECK_OK(qcow2_inactivate(source));
    expect_refused(source);
    test_expect_sound(path, false);
    CHECK_OK(qcow2_invalidate(target, NULL));
    CHECK_OK(qcow2_invalidate(target, NULL));
    CHECK_ERROR(qcow2_invalidate(source, NULL), EAGAIN);
    test_expect(target, 0, MIB, 1);
    test_fill(target, MIB / 2, MIB, 2);
    CHECK_OK(qcow2_snapshot_create(target, "by the target", NULL));
    CHECK_OK(qcow2_truncate(target, 40 * MIB, QCOW2_PREALLOC_OFF));
    test_fill(target, 39 * MIB, MIB, 3);

    CHECK_OK(qcow2_inactivate(target));
    CHECK_OK(qcow2_invalidate(source, NULL));
    CHECK_EQ(qcow2_length(source), 40 * MIB);
    CHECK_EQ(test_info(source).lazy_refcounts, 1);
    test_expect(source, 0, MIB / 2, 1);
    test_expect(source, MIB / 2, MIB, 2);
    test_expect(source, 39 * MIB, MIB, 3);
    CHECK_OK(qcow2_get_snapshot(source, 0, &snapshot));
    CHECK(strcmp(snapshot.name, "by the target") == 0);
    test_fill(source, 2 * MIB, MIB, 4);
    test_close(target); /* writes nothing */
    test_expect(source, 2 * MIB, MIB, 4);
    test_close(source);
    test_expect_sound(path, false);
}

/* The other side commits, and gives the image another backing file. */
static void the_chain_goes_along(void)
{
    static const char *const names[] = {"base.qcow2", "other.qcow2"};
    uint64_t flags = QCOW2_OPEN_ALLOW_RECORDED;
    qcow2_image *source, *target, *base;
    const char *path;

    for (int i = 0; i < 2; i++) {
        base = test_open(test_create(names[i], 2 * MIB, NULL), 0, NULL);
        test_fill(base, 0, 2 * MIB, 10 + i);
        test_close(base);
    }
    path = test_create("top.qcow2", 2 * MIB, "backing_file=base.qcow2", "backing_fmt=qcow2", NULL);
    source = test_open(path, flags, NULL);
    test_fill(source, 0, MIB, 1);
    test_expect(source, MIB, MIB, 10);
    CHECK_OK(qcow2_inactivate(source));

    target = test_open(path, flags, NULL);
    CHECK_OK(qcow2_commit(target, 0, NULL, NULL));
    test_fill(target, MIB / 2, MIB / 4, 2);
    test_close(target);
    CHECK_OK(qcow2_invalidate(source, NULL));
    test_expect(source, 0, MIB / 2, 1);
    test_expect(source, MIB / 2, MIB / 4, 2);
    test_expect(source, MIB, MIB, 10);

    CHECK_OK(qcow2_inactivate(source));
    target = test_open(path, flags, NULL);
    CHECK_OK(qcow2_change_backing_file(target, "other.qcow2", "qcow2"));
    test_close(target);
    base = test_open(test_path("base.qcow2"), 0, NULL); /* nobody else has it */
    test_close(base);
    CHECK_OK(qcow2_invalidate(source, NULL));
    test_expect(source, 0, MIB / 2, 11);
    test_expect(source, MIB / 2, MIB / 4, 2);
    test_fill(source, MIB, MIB, 3);
    CHECK_OK(qcow2_discard(source, MIB, MIB)); /* the chain is the header's */

    /* A backing file that is gone: inactive as before, and again once it is there. */
    CHECK_OK(qcow2_inactivate(source));
    target = test_open(path, flags, NULL);
    CHECK_OK(qcow2_change_backing_file(target, "nowhere.qcow2", "qcow2"));
    test_close(target);
    CHECK_ERROR(qcow2_invalidate(source, NULL), ENOENT);
    expect_refused(source);
    target = test_open(path, QCOW2_OPEN_NO_BACKING, NULL);
    CHECK_OK(qcow2_change_backing_file(target, "base.qcow2", "qcow2"));
    test_close(target);
    CHECK_OK(qcow2_invalidate(source, NULL));
    test_expect(source, 0, MIB / 2, 1);
    test_close(source);
    test_expect_sound(path, false);
}

static void raw_and_read_only(void)
{
    const char *path = test_create("raw.qcow2", MIB, NULL);
    qcow2_image *raw = test_open(path, QCOW2_OPEN_RAW, NULL), *image = NULL;
    uint64_t length = test_file_length(path);
    char byte;

    CHECK_OK(qcow2_inactivate(raw));
    CHECK_ERROR(qcow2_pread(raw, &byte, 1, 0), EPERM);
    CHECK_ERROR(qcow2_pwrite(raw, &byte, 1, 0), EPERM);
    image = test_open(path, 0, NULL);
    test_fill(image, 0, MIB, 1);
    test_close(image);
    CHECK_OK(qcow2_invalidate(raw, NULL));
    CHECK(qcow2_length(raw) > (int64_t)length);
    CHECK_EQ(qcow2_pread(raw, &byte, 1, 0), 1);
    CHECK_EQ(byte, 'Q');
    test_close(raw);

    /* A reader lets a writer in, too. */
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    test_expect(image, 0, MIB, 1);
    CHECK_OK(qcow2_inactivate(image));
    raw = test_open(path, 0, NULL);
    test_fill(raw, 0, MIB, 2);
    CHECK_ERROR(qcow2_invalidate(image, NULL), EAGAIN);
    test_close(raw);
    CHECK_OK(qcow2_invalidate(image, NULL));
    test_expect(image, 0, MIB, 2);
    CHECK_ERROR(qcow2_pwrite(image, "x", 1, 0), EROFS);
    test_close(image);
}

/* A writer that died with the image dirty: taking it over repairs it, unless the open was told not to. */
static void dies(void *opaque)
{
    qcow2_image *image = NULL;

    CHECK_OK(qcow2_open(opaque, 0, lazy_on, &image));
    test_fill(image, 0, MIB, 5);
    CHECK_OK(qcow2_flush(image));
}

static void after_a_death(void)
{
    char *path = strdup(test_create("dies.qcow2", MIB, NULL));
    qcow2_image *image = test_open(path, QCOW2_OPEN_INACTIVE, NULL);
    qcow2_image *strict = test_open(path, QCOW2_OPEN_INACTIVE | QCOW2_OPEN_NO_REPAIR, NULL);

    test_in_child(dies, path);
    CHECK_ERROR(qcow2_invalidate(strict, NULL), EUCLEAN);
    CHECK_OK(qcow2_invalidate(image, NULL));
    CHECK_EQ(test_info(image).open_repaired, 1);
    test_expect(image, 0, MIB, 5);
    test_close(image);
    CHECK_OK(qcow2_invalidate(strict, NULL));
    test_close(strict);
    test_expect_sound(path, false);
    free(path);
}

/* Two processes, many turns; each adds to what the other has left. */
#define TURNS 40

struct side {
    const char *path;
    int in, out, number;
};

static void take_turns(void *opaque)
{
    struct side *side = opaque;
    qcow2_image *image = test_open(side->path, QCOW2_OPEN_INACTIVE, NULL);
    unsigned char turn;

    while (read(side->in, &turn, 1) == 1 && turn < TURNS) {
        CHECK_OK(qcow2_invalidate(image, NULL));
        for (int before = 0; before < turn; before++) {
            test_expect(image, (uint64_t)before * 100 * 1024, 100 * 1024, 1 + before);
        }
        test_fill(image, (uint64_t)turn * 100 * 1024, 100 * 1024, 1 + turn);
        if (turn % 5 == 4) {
            CHECK_OK(qcow2_snapshot_create(image, "turn", NULL));
        }
        if (turn % 7 == 6) {
            CHECK_OK(qcow2_truncate(image, (uint64_t)qcow2_length(image) + MIB, QCOW2_PREALLOC_OFF));
        }
        CHECK_OK(qcow2_inactivate(image));
        turn++;
        CHECK_EQ(write(side->out, &turn, 1), 1);
    }
    turn = TURNS;
    CHECK(write(side->out, &turn, 1) == 1 || errno == EPIPE);
    test_close(image);
}

static void processes_take_turns(void)
{
    char *path = strdup(test_create("turns.qcow2", 8 * MIB, "cluster_size=512", "lazy_refcounts=on", NULL));
    int there[2], back[2];
    pid_t child;
    unsigned char first = 0;

    signal(SIGPIPE, SIG_IGN);
    CHECK_EQ(pipe(there), 0);
    CHECK_EQ(pipe(back), 0);
    CHECK_EQ(write(back[1], &first, 1), 1);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct side side = {.path = path, .in = there[0], .out = back[1]};

        close(there[1]);
        take_turns(&side);
        _exit(0);
    }
    close(there[0]);
    close(back[1]);
    take_turns(&(struct side){.path = path, .in = back[0], .out = there[1]});
    close(there[1]);
    CHECK_EQ(test_wait(child), 0);
    CHECK_EQ(test_file_length(path) > TURNS * 100 * 1024, 1);
    test_expect_sound(path, false);
    free(path);
}

/* The other side is QEMU, which goes by the same locks. */
static void the_stock_tool_takes_over(void)
{
    const char *path = test_create("stock.qcow2", MIB, NULL);
    const char *const there[] = {"sh", "-c", "command -v qemu-io >/dev/null", NULL};
    const char *const write[] = {"sh", "-c", "qemu-io -c 'write -P 7 64k 64k' \"$0\" >/dev/null 2>&1", path, NULL};
    qcow2_image *image;

    if (test_run(there) != 0) {
        return;
    }
    image = test_open(path, 0, NULL);
    test_fill(image, 0, 64 * 1024, 1);
    CHECK(test_run(write) != 0);
    CHECK_OK(qcow2_inactivate(image));
    CHECK_EQ(test_run(write), 0);
    CHECK_OK(qcow2_invalidate(image, NULL));
    test_expect(image, 0, 64 * 1024, 1);
    test_expect(image, 64 * 1024, 64 * 1024, 7);
    CHECK(test_run(write) != 0);
    test_close(image);
    test_expect_sound(path, false);
}

/* An image that has left its chain does not come back with it. */
static void without_a_backing_file_any_more(void)
{
    qcow2_image *image = test_open(test_create("left-base.qcow2", MIB, NULL), 0, NULL);

    test_fill(image, 0, MIB, 7);
    test_close(image);
    test_create("left.qcow2", MIB, "backing_file=left-base.qcow2", "backing_fmt=qcow2", NULL);
    image = test_open(test_path("left.qcow2"), QCOW2_OPEN_ALLOW_RECORDED, NULL);
    CHECK_OK(qcow2_change_backing_file(image, NULL, NULL));
    CHECK_ERROR(qcow2_commit(image, 0, NULL, NULL), ENOTSUP);
    test_expect(image, 0, MIB, 0);
    CHECK_OK(qcow2_inactivate(image));
    CHECK_OK(qcow2_invalidate(image, NULL));
    test_expect(image, 0, MIB, 0);
    test_fill(image, 0, 1, 1);
    test_expect(image, 1, MIB - 1, 0);
    test_close(image);
}

/* A descriptor of the caller's and no lock: the length that the file had when it was opened is not believed, and what
   the other side has written past it is not cut off. */
static void by_descriptor_without_a_lock(void)
{
    const uint64_t flags = QCOW2_OPEN_RAW | QCOW2_OPEN_NO_LOCK;
    const char *path = test_path("handed.raw");
    const unsigned char first = 1;
    qcow2_image *source, *target, *reader;
    qcow2_info info = {.struct_size = sizeof info};
    unsigned char last[4096];

    test_file_write(path, &first, 1, MIB - 1);
    source = test_open(path, flags, NULL);
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0);
    CHECK_OK(qcow2_open_fd(fd, flags | QCOW2_OPEN_INACTIVE, NULL, &target));
    CHECK_OK(qcow2_open_fd(fd, flags | QCOW2_OPEN_READ_ONLY, NULL, &reader));
    CHECK_OK(qcow2_truncate(source, 4 * MIB, QCOW2_PREALLOC_OFF));
    test_fill(source, 3 * MIB, MIB, 3);
    CHECK_OK(qcow2_inactivate(source));
    CHECK_OK(qcow2_invalidate(target, NULL));
    CHECK_EQ(qcow2_length(target), 4 * (int64_t)MIB);
    CHECK_OK(qcow2_write_zeroes(target, 2 * MIB, 4096, 0));
    test_expect(target, 3 * MIB, MIB, 3);
    CHECK_OK(qcow2_reopen(reader, 0, NULL));
    CHECK_OK(qcow2_get_info(reader, &info));
    CHECK_EQ(info.file_length, 4 * MIB);
    test_close(reader);
    test_close(target);
    test_close(source);
    close(fd);
    test_file_read(path, last, sizeof last, 4 * MIB - sizeof last);
    CHECK_FILLED(last, sizeof last, 3);
}

int main(void)
{
    by_descriptor_without_a_lock();
    without_a_backing_file_any_more();
    the_stock_tool_takes_over();
    back_and_forth(0);
    back_and_forth(QCOW2_OPEN_ALLOW_RECORDED);
    the_chain_goes_along();
    raw_and_read_only();
    after_a_death();
    processes_take_turns();
    return 0;
}
