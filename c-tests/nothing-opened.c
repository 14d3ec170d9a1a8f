/* A file that an image names is not opened, not even looked into, unless the caller allowed it. A FIFO would block
   or wake its writer, inotify sees every open.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <sys/inotify.h>

static int watcher;

static bool secret_was_opened(void)
{
    char events[4096];

    return read(watcher, events, sizeof events) > 0;
}

static void refused(const char *path, uint64_t flags)
{
    qcow2_image *image;
    int result = qcow2_open(path, flags, NULL, &image);

    if (secret_was_opened()) {
        test_fail(__FILE__, __LINE__, "%s with flags %#" PRIx64 ": the named file was opened", path, flags);
    }
    if (result == 0) {
        test_close(image);
        CHECK((flags & (QCOW2_OPEN_NO_BACKING | QCOW2_OPEN_METADATA_ONLY)) != 0);
    } else {
        CHECK_ERROR(result, EPERM);
    }
    CHECK(!secret_was_opened());
}

static void put_be32(unsigned char *at, uint32_t value)
{
    for (int i = 0; i < 4; i++) {
        at[i] = (unsigned char)(value >> (24 - 8 * i));
    }
}

int main(void)
{
    static const uint64_t flags[] = {0,
                                     QCOW2_OPEN_READ_ONLY,
                                     QCOW2_OPEN_METADATA_ONLY,
                                     QCOW2_OPEN_NO_BACKING,
                                     QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_READ_ONLY,
                                     QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_FORCE_SHARE};
    static const char *const formats[] = {"backing_fmt=raw", "backing_fmt=qcow2"};
    const char *secret = test_path("secret");
    char backing[4300];
    unsigned char sector[512];

    memset(sector, 0x5e, sizeof sector);
    test_file_write(secret, sector, sizeof sector, 0);
    watcher = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (watcher < 0 || inotify_add_watch(watcher, secret, IN_OPEN | IN_ACCESS) < 0) {
        test_skip("no inotify");
    }
    test_digest(secret);
    CHECK(secret_was_opened()); /* the watcher works */

    snprintf(backing, sizeof backing, "backing_file=%s", secret);
    for (unsigned v = 0; v < 2; v++) {
        for (unsigned f = 0; f < 2; f++) {
            const char *path =
                test_create("names-it.qcow2", MIB, v ? "compat=1.1" : "compat=0.10", backing, formats[f], NULL);

            CHECK(!secret_was_opened()); /* creation records only */
            for (unsigned i = 0; i < sizeof flags / sizeof flags[0]; i++) {
                refused(path, flags[i]);
            }
        }
    }

    /* A raw base whose guest has written a header: with a recorded format of "raw" it is never looked at as qcow2,
       and without a recorded format nothing is guessed. */
    const char *hostile = test_create("hostile.raw", MIB, backing, "backing_fmt=raw", NULL);
    const char *top = test_create("top.qcow2", MIB, "backing_file=hostile.raw", "backing_fmt=raw", NULL);
    qcow2_image *image = test_open(top, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    char magic[4];
    CHECK_OK(qcow2_pread(image, magic, sizeof magic, 0));
    CHECK(memcmp(magic, "QFI\xfb", 4) == 0);
    test_close(image);
    CHECK(!secret_was_opened());
    CHECK(test_digest(hostile) != 0);

    /* A chain is followed only as far as each link says so; the data file bit is refused. */
    test_create("deep.qcow2", MIB, "backing_file=names-it.qcow2", "backing_fmt=qcow2", NULL);
    refused(test_path("deep.qcow2"), QCOW2_OPEN_READ_ONLY);

    unsigned char bits[8] = {0};
    put_be32(bits + 4, 4); /* incompatible bit 2: external data file */
    const char *data = test_create("data.qcow2", MIB, NULL);
    test_file_write(data, bits, sizeof bits, 72);
    unsigned char extension[8 + 4200] = {0};
    size_t name = strlen(secret);
    put_be32(extension, 0x44415441);
    put_be32(extension + 4, (uint32_t)name);
    memcpy(extension + 8, secret, name);
    test_file_write(data, extension, 8 + (name + 7) / 8 * 8 + 8, 112);
    CHECK(qcow2_open(data, 0, NULL, &image) < 0);
    CHECK(qcow2_open(data, QCOW2_OPEN_ALLOW_RECORDED, NULL, &image) < 0 || (test_close(image), true));
    image = test_open(data, QCOW2_OPEN_METADATA_ONLY | QCOW2_OPEN_READ_ONLY, NULL);
    CHECK(strcmp(test_info(image).data_file, secret) == 0);
    test_close(image);
    CHECK(qcow2_open(data, QCOW2_OPEN_READ_ONLY, NULL, &image) < 0);
    return 0;
}
