/* Each system call of a script fails once, or from then on: the request that met it says so, with the host's errno;
   what was flushed before is there; nothing is corrupt; a new open works; a failed fdatasync is final.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "host-calls.h"
#include "test.h"

#include <signal.h>
#include <sys/wait.h>

#define BLOCK 512u
#define BLOCKS 4096u /* most of any disk here */

enum act { WRITE, WRITE_FUA, ZERO, UNMAP, DISCARD, FLUSH, RESIZE, REOPEN, CLOSE, COMMIT, CHECK_AND_REPAIR };

struct op {
    enum act act;
    unsigned first, count; /* blocks; RESIZE: the new size in `first` */
};

/* Every kind of request, on clusters with data, without, shared and new; several L2 tables and refcount blocks. */
static const struct op script[] = {
    {WRITE, 3, 2},     {WRITE, 10, 150},  {FLUSH, 0, 0},     {WRITE_FUA, 700, 20}, {ZERO, 12, 60},
    {UNMAP, 20, 30},   {DISCARD, 64, 64}, {WRITE, 60, 90},   {REOPEN, 0, 0},       {WRITE, 900, 64},
    {RESIZE, 1000, 0}, {RESIZE, 3000, 0}, {WRITE, 2900, 40}, {FLUSH, 0, 0},        {WRITE, 100, 10},
    {CLOSE, 0, 0},     {WRITE, 1500, 30}, {COMMIT, 0, 0},    {WRITE, 5, 40},       {CHECK_AND_REPAIR, 0, 0},
    {DISCARD, 0, 40},
};
#define SCRIPT (sizeof script / sizeof script[0])

/* Bit v: the block may be full of bytes v. `now` while the handle lives, `since` after it has failed. */
static struct {
    unsigned now[BLOCKS], since[BLOCKS];
    unsigned size, other_size; /* blocks; `other_size` while a resize runs or after it has failed */
} model;

static unsigned cases;
static const char *path, *base;
static const char *const *create_options;
static uint64_t open_flags;

static void may(unsigned first, unsigned count, unsigned value)
{
    for (unsigned i = first; i < first + count; i++) {
        model.now[i] |= 1u << value;
        model.since[i] |= 1u << value;
    }
}

static void is(unsigned first, unsigned count, unsigned value)
{
    for (unsigned i = first; i < first + count; i++) {
        model.now[i] = 1u << value;
    }
}

static void all_durable(void)
{
    memcpy(model.since, model.now, sizeof model.since);
}

/* What a request may do, before it runs. */
static void begin(const struct op *op, unsigned value)
{
    if (op->act == WRITE || op->act == WRITE_FUA) {
        may(op->first, op->count, value);
    } else if (op->act == ZERO || op->act == UNMAP || op->act == DISCARD) {
        may(op->first, op->count, 0);
    } else if (op->act == RESIZE) {
        model.other_size = op->first;
        for (unsigned i = op->first; i < model.size; i++) {
            may(i, 1, 0), may(i, 1, 1);
        }
        for (unsigned i = model.size; i < op->first; i++) {
            model.now[i] = model.since[i] = 1;
        }
    }
}

static void done(const struct op *op, unsigned value)
{
    if (op->act == WRITE || op->act == WRITE_FUA) {
        is(op->first, op->count, value);
    } else if (op->act == ZERO || op->act == UNMAP) {
        is(op->first, op->count, 0);
    } else if (op->act == RESIZE) {
        model.size = model.other_size = op->first;
    }
    if (op->act == WRITE_FUA || op->act == FLUSH || op->act == RESIZE || op->act == CLOSE || op->act == COMMIT ||
        op->act == REOPEN) {
        all_durable();
    }
}

static int perform(qcow2_image **image, const struct op *op, unsigned value)
{
    static unsigned char block[200 * BLOCK];
    struct iovec iov = {block, (size_t)op->count * BLOCK};
    uint64_t offset = (uint64_t)op->first * BLOCK, length = iov.iov_len;
    qcow2_check_result result = {.struct_size = sizeof result};
    int error;

    switch (op->act) {
    case WRITE:
    case WRITE_FUA:
        memset(block, (int)value, sizeof block);
        return (int)qcow2_pwritev2(*image, &iov, 1, offset, op->act == WRITE_FUA ? QCOW2_REQ_FUA : 0);
    case ZERO: return qcow2_write_zeroes(*image, offset, length, 0);
    case UNMAP: return qcow2_write_zeroes(*image, offset, length, QCOW2_REQ_UNMAP);
    case DISCARD: return qcow2_discard(*image, offset, length);
    case FLUSH: return qcow2_flush(*image);
    case RESIZE: return qcow2_truncate(*image, offset, QCOW2_PREALLOC_OFF);
    case REOPEN:
        error = qcow2_reopen(*image, QCOW2_OPEN_READ_ONLY, NULL);
        return error == 0 ? qcow2_reopen(*image, 0, NULL) : error;
    case CLOSE:
        error = qcow2_close(*image);
        *image = NULL;
        return error == 0 ? qcow2_open(path, open_flags, NULL, image) : error;
    case COMMIT: return qcow2_commit(*image, 0, NULL, NULL);
    case CHECK_AND_REPAIR:
        error =
            qcow2_check(*image, QCOW2_CHECK_REPAIR_LEAKS | QCOW2_CHECK_REPAIR_ERRORS, &result, NULL, NULL, NULL, NULL);
        CHECK(error != 0 || (result.corruptions == 0 && result.corruptions_fixed == 0));
        return error;
    }
    return -EINVAL;
}

static const char *describe(const struct op *op)
{
    static const char *const names[] = {"write",  "FUA write", "zero",  "unmap",  "discard", "flush",
                                        "resize", "reopen",    "close", "commit", "repair"};
    static char text[200];

    snprintf(text, sizeof text, "%s of blocks %u+%u, call %" PRIu64 " of kind %d failing with %s%s%s", names[op->act],
             op->first, op->count, host.fail_at, host.fail_kind, strerror(host.fail_errno),
             host.fail_on ? " for ever" : "", host.torn ? ", torn" : "");
    return text;
}

/* Runs the script up to its first failure; which operation that was, SCRIPT if none. */
static unsigned play(qcow2_image **image)
{
    for (unsigned i = 0; i < SCRIPT; i++) {
        const struct op *op = &script[i];
        int error;

        if (base == NULL && op->act == COMMIT) {
            continue;
        }
        begin(op, i % 29 + 2);
        errno = 0;
        error = perform(image, op, i % 29 + 2);
        if (error >= 0) {
            done(op, i % 29 + 2);
            continue;
        }
        if (host.failed == 0) {
            test_fail(__FILE__, __LINE__, "%s: %s without a fault", describe(op), qcow2_last_error());
        }
        /* The first one is the caller's to see, unless a request before it could do without that call. */
        if (error != -host.fail_errno && error != -ENOTRECOVERABLE) {
            test_fail(__FILE__, __LINE__, "%s: answered %d, %s", describe(op), error, qcow2_last_error());
        }
        if (qcow2_last_error()[0] == '\0') {
            test_fail(__FILE__, __LINE__, "%s: no text", describe(op));
        }
        return i;
    }
    return SCRIPT;
}

static void expect_contents(qcow2_image *image, const unsigned *masks)
{
    static unsigned char bytes[BLOCKS * BLOCK];
    int64_t length = qcow2_length(image);

    if (length != (int64_t)model.size * BLOCK && length != (int64_t)model.other_size * BLOCK) {
        test_fail(__FILE__, __LINE__, "%s: the disk has %" PRId64 " bytes", describe(&script[0]), length);
    }
    CHECK_EQ(CHECK_OK(qcow2_pread(image, bytes, (size_t)length, 0)), length);
    for (unsigned i = 0; i < length / BLOCK; i++) {
        const unsigned char *block = bytes + (size_t)i * BLOCK;
        bool uniform = memcmp(block, block + 1, BLOCK - 1) == 0;

        if (!uniform || block[0] > 31 || (masks[i] >> block[0] & 1) == 0) {
            test_fail(__FILE__, __LINE__, "%s: block %u is %#x%s, may be %#x", describe(&script[0]), i, block[0],
                      uniform ? "" : " and more", masks[i]);
        }
    }
}

/* The sync that failed was the base's, or of a reopen of a handle that could not write until then. */
static bool went_on(qcow2_image *image, enum act act)
{
    return act == COMMIT || (act == REOPEN && test_info(image).read_only);
}

/* After the failure: the handle and the file. */
static void judge(qcow2_image *image, unsigned stopped)
{
    qcow2_check_result result = {.struct_size = sizeof result};
    bool closed_well = false, final;

    if (image != NULL) {
        final = stopped < SCRIPT && host.failed_kind == HOST_SYNC && !went_on(image, script[stopped].act);
        if (final) {
            /* What the host has dropped cannot be written again: the next sync is not believed. */
            char byte = 0;

            if (qcow2_flush(image) == 0) {
                test_fail(__FILE__, __LINE__, "%s: a flush succeeds after a failed sync", describe(&script[stopped]));
            }
            CHECK_ERROR(qcow2_flush(image), ENOTRECOVERABLE);
            CHECK_ERROR(qcow2_pwrite(image, &byte, 1, 0), ENOTRECOVERABLE);
            CHECK_ERROR(qcow2_discard(image, 0, 128 * BLOCK), ENOTRECOVERABLE);
        }
        closed_well = qcow2_close(image) == 0;
        if (closed_well && final) {
            test_fail(__FILE__, __LINE__, "%s: closed without an error", describe(&script[stopped]));
        }
    }
    host.fail_errno = 0;
    CHECK_OK(qcow2_open(path, open_flags, NULL, &image));
    expect_contents(image, closed_well ? model.now : model.since);
    CHECK_OK(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL));
    if (result.corruptions + result.check_errors > 0) {
        test_fail(__FILE__, __LINE__, "%s: %" PRIu64 " corruptions", describe(&script[0]), result.corruptions);
    }
    /* And it goes on. */
    test_fill(image, 0, 64 * BLOCK, 30);
    test_expect(image, 0, 64 * BLOCK, 30);
    test_close(image);
    if (++cases % 97 == 0) {
        test_expect_sound(path, true);
    }
}

/* One run with the fault that `host` describes; false when the script ended before it. */
static bool run(const struct host *fault)
{
    qcow2_image *image;
    unsigned stopped;

    host = (struct host){.on = true}; /* nothing fails yet; nothing waits for the disk either */
    if (base != NULL) {
        static unsigned char ones[600 * BLOCK];

        memset(ones, 1, sizeof ones);
        unlink(base);
        test_file_write(base, ones, sizeof ones, 0);
    }
    unlink(path);
    CHECK_OK(qcow2_create(path, 2000 * BLOCK, create_options));
    memset(&model, 0, sizeof model);
    model.size = model.other_size = 2000;
    for (unsigned i = 0; i < 2000; i++) {
        model.now[i] = base != NULL && i < 600 ? 2u : 1u;
    }
    CHECK_OK(qcow2_open(path, open_flags, NULL, &image));
    test_fill(image, 0, 128 * BLOCK, 31);
    is(0, 128, 31);
    CHECK_OK(qcow2_flush(image));
    all_durable();
    host = *fault;
    host.on = true;
    stopped = play(&image);
    judge(image, stopped);
    return host.failed > 0;
}

static void sweep(const char *name, const char *const *options, bool overlay)
{
    static const struct {
        int kind, error;
        bool for_ever, torn;
    } ways[] = {
        {HOST_WRITE, ENOSPC, false, true},   {HOST_WRITE, EIO, true, false},       {HOST_READ, EIO, false, false},
        {HOST_SYNC, EIO, false, false},      {HOST_TRUNCATE, ENOSPC, true, false}, {HOST_TRUNCATE, EIO, false, false},
        {HOST_FALLOCATE, EIO, false, false},
    };

    unsigned step = test_under_valgrind() ? 25 : 1;

    create_options = options;
    open_flags = overlay ? QCOW2_OPEN_ALLOW_RECORDED : 0;
    path = test_path("disk.qcow2");
    base = overlay ? test_path("base.raw") : NULL;
    for (unsigned i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        struct host fault = {
            .fail_kind = ways[i].kind, .fail_errno = ways[i].error, .fail_on = ways[i].for_ever, .torn = ways[i].torn};

        while (run(&fault)) {
            fault.fail_at += step;
        }
        printf("%s: %" PRIu64 " calls of kind %d failed one by one with %s\n", name, fault.fail_at, ways[i].kind,
               strerror(ways[i].error));
        CHECK(fault.fail_at > 1 || ways[i].kind == HOST_FALLOCATE);
    }
}

/* A repair at open that is cut short by an error: the open fails, and the next one repairs. */
static void repairs(void)
{
    const char *dirty = test_create("dirty.qcow2", 4 * MIB, "lazy_refcounts=on", "cluster_size=512", NULL);
    const char *copy = test_path("copy.qcow2");
    pid_t child = fork();
    qcow2_image *image;
    unsigned failures = 0;

    CHECK(child >= 0);
    if (child == 0) {
        image = test_open(dirty, 0, NULL);
        test_fill(image, 0, MIB, 5);
        CHECK_OK(qcow2_flush(image));
        kill(getpid(), SIGKILL);
    }
    CHECK(WIFSIGNALED(test_wait(child)));
    for (int kind = HOST_READ; kind <= HOST_FALLOCATE; kind++) {
        for (uint64_t at = 0;; at += test_under_valgrind() ? 9 : 1) {
            unlink(copy);
            test_file_copy(dirty, copy);
            host = (struct host){.on = true, .fail_kind = kind, .fail_at = at, .fail_errno = EIO, .torn = true};
            int error = qcow2_open(copy, 0, NULL, &image);
            bool reached = host.failed > 0;
            host.on = false;
            if (error == 0) {
                test_close(image);
            } else {
                failures++;
                CHECK(reached);
                if (error != -EIO) {
                    test_fail(__FILE__, __LINE__, "%s: answered %d, %s", describe(&script[0]), error,
                              qcow2_last_error());
                }
            }
            image = test_open(copy, 0, NULL);
            CHECK(error == 0 || test_info(image).open_repaired == 1 || test_info(image).dirty == 0);
            test_expect(image, 0, MIB, 5);
            test_close(image);
            if (++cases % 97 == 0) {
                test_expect_sound(copy, false);
            }
            if (!reached) {
                break;
            }
        }
    }
    printf("%u repairs failed in the middle\n", failures);
    CHECK(failures > 10);
}

/* A creation that fails leaves nothing that opens, and what was not created anew is not there. */
static void creations(void)
{
    static const char *const options[] = {"cluster_size=512", "refcount_bits=64", "preallocation=falloc", NULL};
    const char *file = test_path("new.qcow2");
    qcow2_image *image;
    unsigned failures = 0;

    for (int old = 0; old < 2; old++) {
        for (int kind = HOST_READ; kind <= HOST_FALLOCATE; kind++) {
            for (uint64_t at = 0;; at++) {
                unlink(file);
                if (old) {
                    test_close(test_open(test_create("new.qcow2", 2 * MIB, NULL), 0, NULL));
                }
                host = (struct host){.on = true, .fail_kind = kind, .fail_at = at, .fail_errno = ENOSPC, .torn = true};
                int error = qcow2_create(file, MIB, options);
                bool reached = host.failed > 0;
                host.on = false;
                if (error == 0) {
                    test_expect_sound(file, false);
                } else {
                    failures++;
                    CHECK_EQ(error, -ENOSPC);
                    CHECK(qcow2_last_error()[0] != '\0');
                    if (qcow2_open(file, 0, NULL, &image) == 0) {
                        /* Only before anything was touched, or when the sync of the finished image failed. */
                        bool untouched = qcow2_length(image) == 2 * MIB, finished = kind == HOST_SYNC;

                        CHECK(old && (untouched || finished));
                        test_close(image);
                        test_expect_sound(file, false);
                    }
                }
                cases++;
                if (!reached) {
                    break;
                }
            }
        }
    }
    printf("%u creations failed in the middle\n", failures);
    CHECK(failures > 10);
}

int main(void)
{
    static const char *const eager[] = {"cluster_size=512", "refcount_bits=64", NULL};
    static const char *const lazy[] = {"cluster_size=1k", "lazy_refcounts=on", "backing_file=base.raw",
                                       "backing_fmt=raw", NULL};
    static const char *const old[] = {"cluster_size=512", "compat=0.10", "backing_file=base.raw", "backing_fmt=raw",
                                      NULL};

    sweep("eager", eager, false);
    sweep("lazy overlay", lazy, true);
    sweep("version 2 overlay", old, true);
    repairs();
    creations();
    printf("%u faults injected below the file\n", cases);
    return 0;
}
