/* A program that never closes: the image is whole, with everything that was flushed, and with metadata write-through
   everything that was written.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <sys/wait.h>

static void exits(const char *path, const char *option, void (*how)(void))
{
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        qcow2_image *image = test_open(path, 0, option, NULL);

        test_fill(image, 0, MIB, 1);
        CHECK_OK(qcow2_flush(image));
        test_fill(image, 2 * MIB, MIB, 2);
        how();
        _exit(9);
    }
    test_wait(child);
}

static void by_exit(void)
{
    exit(0);
}
static void by_abort(void)
{
    abort();
}
static void by_underscore(void)
{
    _exit(0);
}

int main(void)
{
    static const char *const lazy[] = {"lazy_refcounts=on", "lazy_refcounts=off"};
    static const char *const options[] = {"metadata-writethrough=off", "metadata-writethrough=on"};
    static void (*const ways[])(void) = {by_exit, by_abort, by_underscore};

    for (unsigned l = 0; l < 2; l++) {
        for (unsigned o = 0; o < 2; o++) {
            for (unsigned w = 0; w < 3; w++) {
                const char *path = test_create("disk.qcow2", 8 * MIB, lazy[l], NULL);
                qcow2_image *image;

                exits(path, options[o], ways[w]);
                image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
                test_expect(image, 0, MIB, 1);
                if (o == 1) {
                    test_expect(image, 2 * MIB, MIB, 2);
                }
                test_close(image);
                if (l == 1) {
                    test_expect_sound(path, true);
                }
                image = test_open(path, 0, NULL);
                CHECK_EQ(test_info(image).dirty, 0);
                test_expect(image, 0, MIB, 1);
                test_close(image);
                test_expect_sound(path, l == 1);
            }
        }
    }
    return 0;
}
