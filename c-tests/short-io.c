/* A host whose transfers end early, whose calls are interrupted and which has no fallocate is slower, not wrong: no
   request fails, a random workload behaves as an array of bytes, and the image is clean.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "host-calls.h"
#include "test.h"

#define DISK (3 * MIB)

static unsigned char model[2 * DISK], seen[2 * DISK];
static uint64_t size, state;

static uint64_t below(uint64_t n)
{
    return test_random(&state) % n;
}

/* Places and lengths that cross clusters, and mostly are aligned to nothing. */
static void place(uint64_t *offset, uint64_t *length)
{
    uint64_t unit = below(3) == 0 ? 512 : 1;

    *offset = below(size / unit) * unit;
    *length = (1 + below((below(8) == 0 ? 300000 : 20000) / unit + 1)) * unit;
    if (*length > size - *offset) {
        *length = size - *offset;
    }
}

/* `bytes` in up to seven pieces. */
static int split(struct iovec *iov, unsigned char *bytes, uint64_t length)
{
    int count = 0;

    while (length > 0) {
        uint64_t part = count == 6 ? length : 1 + below(length);

        iov[count++] = (struct iovec){bytes, part};
        bytes += part;
        length -= part;
    }
    return count;
}

static void compare(qcow2_image *image, uint64_t offset, uint64_t length)
{
    struct iovec iov[7] = {0};

    memset(seen, 0xa5, length);
    CHECK_EQ(CHECK_OK(qcow2_preadv(image, iov, split(iov, seen, length), offset)), length);
    for (uint64_t i = 0; i < length; i++) {
        if (seen[i] != model[offset + i]) {
            test_fail(__FILE__, __LINE__, "byte %" PRIu64 " is %#x, expected %#x", offset + i, seen[i],
                      model[offset + i]);
        }
    }
}

static void discarded(qcow2_image *image, uint64_t offset, uint64_t length)
{
    CHECK_OK(qcow2_discard(image, offset, length));
    CHECK_EQ(CHECK_OK(qcow2_pread(image, seen, length, offset)), length);
    for (uint64_t i = 0; i < length; i++) {
        CHECK(seen[i] == 0 || seen[i] == model[offset + i]);
        model[offset + i] = seen[i];
    }
}

static void step(qcow2_image *image)
{
    uint64_t offset, length;
    struct iovec iov[7] = {0};

    place(&offset, &length);
    switch (below(16)) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4:
    case 5:
        for (uint64_t i = 0; i < length; i++) {
            model[offset + i] = (unsigned char)test_random(&state);
        }
        CHECK_EQ(CHECK_OK(qcow2_pwritev2(image, iov, split(iov, model + offset, length), offset,
                                         below(6) == 0 ? QCOW2_REQ_FUA : 0)),
                 length);
        break;
    case 6:
    case 7:
        memset(model + offset, 0, length);
        CHECK_OK(qcow2_write_zeroes(image, offset, length, below(2) ? QCOW2_REQ_UNMAP : 0));
        break;
    case 8: discarded(image, offset, length); break;
    case 9: CHECK_OK(qcow2_flush(image)); break;
    case 10:
        length = (DISK / 2 + below(DISK)) / 512 * 512;
        CHECK_OK(qcow2_truncate(image, length,
                                length > size && below(4) == 0 ? QCOW2_PREALLOC_METADATA : QCOW2_PREALLOC_OFF));
        if (length > size) {
            memset(model + size, 0, length - size);
        }
        size = length;
        break;
    case 11:
        CHECK_OK(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL));
        CHECK_OK(qcow2_reopen(image, 0, NULL));
        break;
    default: compare(image, offset, length);
    }
}

static void workload(const char *const *create, const char *open_option, unsigned steps)
{
    const char *path = test_path("disk.qcow2"), *base = test_path("base.raw");
    const char *const options[] = {open_option, NULL};
    uint64_t flags = QCOW2_OPEN_ALLOW_RECORDED;
    qcow2_image *image;

    for (uint64_t i = 0; i < DISK / 3; i++) {
        model[i] = (unsigned char)(i * 7 / 512 + 1);
    }
    unlink(base); /* a commit has made it longer */
    test_file_write(base, model, DISK / 3, 0);
    memset(model + DISK / 3, 0, sizeof model - DISK / 3);
    size = DISK;
    unlink(path);
    host.on = true;
    CHECK_OK(qcow2_create(path, size, create));
    CHECK_OK(qcow2_open(path, flags, options, &image));
    for (unsigned i = 0; i < steps; i++) {
        step(image);
        if (below(40) == 0) {
            test_close(image);
            CHECK_OK(qcow2_open(path, flags, options, &image));
        }
    }
    compare(image, 0, size);
    /* All of it into the base, through the same calls. */
    CHECK_OK(qcow2_commit(image, 0, NULL, NULL));
    compare(image, 0, size);
    test_close(image);
    host.on = false;
    test_expect_sound(path, false);
    CHECK_OK(qcow2_open(path, flags | QCOW2_OPEN_READ_ONLY, options, &image));
    compare(image, 0, size);
    test_close(image);
}

#define OVERLAY "backing_file=base.raw", "backing_fmt=raw"

/* A host file system may not have O_DIRECT. */
static bool opens_directly(void)
{
    const char *path = test_create("direct.qcow2", MIB, NULL);
    static const char *const options[] = {"cache=none", NULL};
    qcow2_image *image;
    int result = qcow2_open(path, 0, options, &image);

    if (result < 0) {
        printf("cache=none is left out: %s\n", qcow2_last_error());
    } else {
        test_close(image);
    }
    return result == 0;
}

int main(void)
{
    static const char *const images[][6] = {
        {"cluster_size=512", "refcount_bits=64", OVERLAY},
        {"cluster_size=4k", "lazy_refcounts=on", OVERLAY},
        {"cluster_size=64k", OVERLAY},
        {"cluster_size=2k", "compat=0.10", OVERLAY},
        {"cluster_size=4k", OVERLAY},
    };
    static const char *const modes[] = {"cache=writeback", "cache=writethrough", "cache=writeback",
                                        "metadata-writethrough=on", "cache=none"};
    uint64_t seed = test_setting("QCOW2_TEST_SEED", 1);
    unsigned steps = test_under_valgrind() ? 40 : (unsigned)test_setting("QCOW2_TEST_STEPS", 1500);

    printf("replay: QCOW2_TEST_SEED=%" PRIu64 "\n", seed);
    for (unsigned i = 0; i < sizeof images / sizeof images[0]; i++) {
        static const int refusals[] = {0, EOPNOTSUPP, ENOSYS, EINVAL, 0};
        bool direct = strcmp(modes[i], "cache=none") == 0;

        if (direct && !opens_directly()) {
            continue;
        }
        state = seed * 1000 + i;
        host = (struct host){.random = state,
                             .short_one_in = 2,
                             .eintr_one_in = 3,
                             .fallocate_errno = refusals[i],
                             .short_unit = direct ? 4096 : 1};
        workload(images[i], modes[i], steps);
        CHECK(host.shortened[HOST_READ] > 10 && host.shortened[HOST_WRITE] > 10);
        CHECK(host.interrupted[HOST_READ] > 10 && host.interrupted[HOST_WRITE] > 10);
        CHECK(host.interrupted[HOST_SYNC] > 0 && host.interrupted[HOST_TRUNCATE] > 0);
        CHECK(host.interrupted[HOST_SEEK] > 0);
        CHECK(host.interrupted[HOST_LOCK] > 0 && host.calls[HOST_FALLOCATE] > 0);
        printf("%" PRIu64 " transfers of %" PRIu64 " were short, %" PRIu64 " calls interrupted\n",
               host.shortened[HOST_READ] + host.shortened[HOST_WRITE], host.calls[HOST_READ] + host.calls[HOST_WRITE],
               host.interrupted[HOST_READ] + host.interrupted[HOST_WRITE] + host.interrupted[HOST_SYNC] +
                   host.interrupted[HOST_TRUNCATE] + host.interrupted[HOST_FALLOCATE] + host.interrupted[HOST_LOCK] +
                   host.interrupted[HOST_SEEK]);
    }
    return 0;
}
