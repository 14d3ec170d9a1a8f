/* Shrink, amend and commit, killed instead of each call that changes a file: after the repair at the next open nothing
   is corrupt, guest data is old or new as documented, and the operation can be done again.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "host-calls.h"
#include "test.h"

#include <sys/wait.h>

#define BLOCK 4096u
#define BLOCKS 128u
#define SIZE ((uint64_t)BLOCKS * BLOCK)
#define SHRUNK (SIZE / 4)
#define GROWN (SIZE * 3)

/* Blocks of one byte value each; 256: not of one value. */
struct contents {
    unsigned count;
    unsigned value[BLOCKS * 3];
};

struct job {
    const char *name;
    int (*run)(qcow2_image *image, const struct job *job);
    const char *amends[3]; /* options of qcow2_amend */
    const char *create[3]; /* options of the image */
    bool backed;
    uint64_t new_size; /* 0: the size stays */
};

static const char *path, *base, *old_path, *old_base;
static unsigned deaths, dirty;

static void read_contents(const char *file, uint64_t flags, const char *option, struct contents *contents)
{
    qcow2_image *image = option ? test_open(file, flags, option, NULL) : test_open(file, flags, NULL);
    static unsigned char block[BLOCK];

    contents->count = (unsigned)(qcow2_length(image) / BLOCK);
    CHECK(contents->count <= BLOCKS * 3);
    for (unsigned i = 0; i < contents->count; i++) {
        CHECK_OK(qcow2_pread(image, block, BLOCK, (uint64_t)i * BLOCK));
        contents->value[i] = memcmp(block, block + 1, BLOCK - 1) == 0 ? block[0] : 256;
    }
    test_close(image);
}

static int resize(qcow2_image *image, const struct job *job)
{
    return qcow2_truncate(image, job->new_size, QCOW2_PREALLOC_OFF);
}

static int amend(qcow2_image *image, const struct job *job)
{
    return qcow2_amend(image, job->amends, 0, NULL, NULL);
}

static int commit(qcow2_image *image, const struct job *job)
{
    (void)job;
    return qcow2_commit(image, 0, NULL, NULL);
}

static const struct job jobs[] = {
    {"shrink", resize, {NULL}, {"cluster_size=512"}, false, SHRUNK},
    {"shrink, lazy", resize, {NULL}, {"cluster_size=4k", "lazy_refcounts=on"}, true, SHRUNK},
    {"grow", resize, {NULL}, {"cluster_size=512"}, true, GROWN},
    {"commit", commit, {NULL}, {"cluster_size=4k"}, true, 0},
    {"commit, lazy", commit, {NULL}, {"cluster_size=512", "lazy_refcounts=on"}, true, 0},
    {"version 2", amend, {"compat=0.10"}, {"cluster_size=4k"}, false, 0},
    {"version 2, lazy", amend, {"compat=0.10"}, {"cluster_size=512", "lazy_refcounts=on"}, true, 0},
    {"version 3", amend, {"compat=1.1"}, {"cluster_size=4k", "compat=0.10"}, true, 0},
    {"wide counts", amend, {"refcount_bits=64"}, {"cluster_size=512"}, false, 0},
    {"narrow counts", amend, {"refcount_bits=2"}, {"cluster_size=512", "lazy_refcounts=on"}, true, 0},
    {"lazy on", amend, {"lazy_refcounts=on"}, {"cluster_size=4k"}, true, 0},
    {"lazy off", amend, {"lazy_refcounts=off"}, {"cluster_size=4k", "lazy_refcounts=on"}, false, 0},
    {"amended size", amend, {"size=128k"}, {"cluster_size=4k"}, false, SHRUNK},
    {"all at once", amend, {"refcount_bits=16", "size=128k"}, {"cluster_size=4k", "refcount_bits=8"}, false, SHRUNK},
};

static bool has_snapshot(const struct job *job)
{
    return job->run == amend && job->new_size == 0;
}

/* Data over a base, zero clusters with a host cluster and without, a snapshot of some of it. */
static void prepare(const struct job *job)
{
    char *name = NULL;
    qcow2_image *image;

    old_base = test_create("old-base.qcow2", SIZE, "cluster_size=4k", NULL);
    image = test_open(old_base, 0, NULL);
    test_fill(image, 0, SIZE, 9);
    test_close(image);
    base = test_path("base.qcow2");
    test_file_copy(old_base, base);
    CHECK(asprintf(&name, "backing_file=%s", base) > 0);
    old_path = job->backed
                   ? test_create("old.qcow2", SIZE, name, "backing_fmt=qcow2", job->create[0], job->create[1], NULL)
                   : test_create("old.qcow2", SIZE, job->create[0], job->create[1], NULL);
    free(name);
    path = test_path("disk.qcow2");
    image = test_open(old_path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    test_fill(image, 0, 40 * BLOCK, 1);
    CHECK_OK(qcow2_write_zeroes(image, 8 * BLOCK, 4 * BLOCK, 0));
    CHECK_OK(qcow2_write_zeroes(image, 60 * BLOCK, 4 * BLOCK, QCOW2_REQ_UNMAP));
    if (has_snapshot(job)) {
        CHECK_OK(qcow2_snapshot_create(image, "first", NULL));
    }
    test_fill(image, 4 * BLOCK, 5 * BLOCK, 2);
    test_fill(image, 100 * BLOCK, 5 * BLOCK, 3);
    CHECK_OK(qcow2_write_zeroes(image, 20 * BLOCK, 2 * BLOCK, 0));
    test_close(image);
}

/* Runs the job in a child that dies instead of its `kill_at`th change of a file. False: it has completed. */
static bool run_killed(const struct job *job, uint64_t kill_at)
{
    pid_t child;
    int status;

    test_file_copy(old_path, path);
    test_file_copy(old_base, base);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        qcow2_image *image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);

        host.on = true;
        host.kill_at = kill_at;
        CHECK_OK(job->run(image, job));
        CHECK_OK(qcow2_close(image));
        _exit(0);
    }
    status = test_wait(child);
    if (WIFSIGNALED(status)) {
        CHECK_EQ(WTERMSIG(status), SIGKILL);
        return true;
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return false;
}

static void compare(const struct job *job, const struct contents *old, const struct contents *now)
{
    unsigned resized = job->new_size != 0 ? (unsigned)(job->new_size / BLOCK) : old->count;

    CHECK(now->count == old->count || now->count == resized);
    for (unsigned i = 0; i < now->count; i++) {
        unsigned was = i < old->count ? old->value[i] : 0, below = job->backed && i < BLOCKS ? 9 : 0;
        /* What a shrink drops may show what is below while the size is the old one. */
        bool dropped = i >= resized && (now->value[i] == below || now->value[i] == 0);

        if (now->value[i] != was && !dropped) {
            test_fail(__FILE__, __LINE__, "%s: block %u holds %u, was %u", job->name, i, now->value[i], was);
        }
    }
}

static void judge(const struct job *job, const struct contents *old, const struct contents *snapshot, bool with_stock)
{
    static struct contents now;
    qcow2_check_result result = {.struct_size = sizeof result};
    qcow2_image *image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL); /* repairs */

    dirty += test_info(image).open_repaired != 0;
    CHECK_OK(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL));
    CHECK_EQ(result.corruptions, 0);
    test_close(image);
    read_contents(path, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, NULL, &now);
    compare(job, old, &now);
    if (has_snapshot(job)) {
        read_contents(path, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, "snapshot.name=first", &now);
        compare(job, snapshot, &now);
    }
    if (job->backed) {
        /* Only a commit changes the base, to what the disk shows. */
        read_contents(base, 0, NULL, &now); /* repairs it */
        for (unsigned i = 0; i < now.count; i++) {
            CHECK(now.value[i] == 9 || (job->run == commit && now.value[i] == old->value[i]));
        }
    }
    if (with_stock) {
        test_expect_sound(path, true);
    }
    /* Once more, to the end. */
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    CHECK_OK(job->run(image, job));
    CHECK_EQ((uint64_t)qcow2_length(image), job->new_size != 0 ? job->new_size : SIZE);
    CHECK_OK(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL));
    CHECK_EQ(result.corruptions, 0);
    test_close(image);
}

static void sweep(const struct job *job)
{
    static struct contents old, snapshot;
    uint64_t kill_at = 1;

    prepare(job);
    read_contents(old_path, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, NULL, &old);
    if (has_snapshot(job)) {
        read_contents(old_path, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_ALLOW_RECORDED, "snapshot.name=first", &snapshot);
    }
    for (; run_killed(job, kill_at); kill_at++) {
        judge(job, &old, &snapshot, kill_at % 16 == 0);
    }
    judge(job, &old, &snapshot, true);
    printf("%s: killed at each of %llu changes of a file\n", job->name, (unsigned long long)kill_at - 1);
    CHECK(kill_at > 1);
    deaths += (unsigned)kill_at - 1;
}

int main(void)
{
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
        sweep(&jobs[i]);
    }
    printf("%u deaths, %u of them left a dirty image\n", deaths, dirty);
    CHECK(deaths > 80 && dirty > 0);
    return 0;
}
