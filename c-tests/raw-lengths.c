/* A raw disk, and a raw data file, that are zeroed past the end of their file beside a write further on, on a host that
   takes its time to change a length.  SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The name below is the one that the library was linked with. */
#undef _FILE_OFFSET_BITS
#undef _TIME_BITS
#define _LARGEFILE64_SOURCE
#include "test.h"

#include <dlfcn.h>
#include <sys/types.h>

#define BLOCK 4096u

static bool slow;
static unsigned truncates;

static void pause_a_little(void)
{
    if (slow) {
        usleep(300);
    }
}

int ftruncate64(int fd, off64_t length)
{
    static int (*real)(int, off64_t);

    if (real == NULL) {
        void *found = dlsym(RTLD_NEXT, "ftruncate64");

        memcpy(&real, &found, sizeof real);
    }
    truncates += slow;
    pause_a_little();
    return real(fd, length);
}

static qcow2_image *image;
static uint64_t zero_at, write_at;

static void *zero(void *opaque)
{
    (void)opaque;
    CHECK_OK(qcow2_write_zeroes(image, zero_at, BLOCK, 0));
    return NULL;
}

/* What was acknowledged and flushed is there, on the disk and in the file. */
static void beside(const char *file)
{
    pthread_t thread;
    unsigned char buffer[BLOCK];

    CHECK_EQ(pthread_create(&thread, NULL, zero, NULL), 0);
    usleep((unsigned)(zero_at / BLOCK % 5 * 100));
    test_fill(image, write_at, BLOCK, 0x5a);
    CHECK_OK(qcow2_flush(image));
    CHECK_EQ(pthread_join(thread, NULL), 0);
    test_expect(image, zero_at, BLOCK, 0);
    test_expect(image, write_at, BLOCK, 0x5a);
    test_file_read(file, buffer, BLOCK, write_at);
    CHECK_FILLED(buffer, BLOCK, 0x5a);
}

static void rounds(const char *file, uint64_t length)
{
    slow = true;
    for (unsigned i = 0; i < test_setting("QCOW2_TEST_ROUNDS", 100); i++) {
        zero_at = length + 2 * i * BLOCK;
        write_at = zero_at + BLOCK;
        beside(file);
    }
    slow = false;
}

int main(void)
{
    const char *file = test_path("disk.raw"), *path;
    const unsigned char last = 1;
    char option[512];

    /* The file ends long before the disk: somebody has cut it since it was opened. */
    test_file_write(file, &last, 1, 4 * MIB - 1);
    image = test_open(file, QCOW2_OPEN_RAW, NULL);
    CHECK_EQ(truncate(file, BLOCK), 0);
    rounds(file, BLOCK);
    test_close(image);

    /* A data file that another program has made shorter. */
    file = test_path("data.raw");
    snprintf(option, sizeof option, "data_file=%s", file);
    path = test_create("image.qcow2", 4 * MIB, "data_file_raw=on", "preallocation=metadata", "cluster_size=4k", option,
                       NULL);
    CHECK_EQ(truncate(file, BLOCK), 0);
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
    truncates = 0;
    rounds(file, BLOCK);
    CHECK(truncates > 0);
    test_close(image);
    return 0;
}
