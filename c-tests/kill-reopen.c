/* A writer with lazy refcounts dies: the next reader reads, the next "no repair" open is refused, the next writable
   open repairs and says so, the one after has nothing to do.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <signal.h>
#include <sys/wait.h>

static unsigned repairs_said;

static void count_message(void *opaque, int kind, const char *text)
{
    CHECK(opaque == &repairs_said);
    CHECK(text != NULL && strchr(text, '\n') == NULL);
    repairs_said += kind == QCOW2_MSG_REPAIR || kind == QCOW2_MSG_ERROR || kind == QCOW2_MSG_LEAK;
}

int main(void)
{
    const char *path = test_create("disk.qcow2", 16 * MIB, "lazy_refcounts=on", NULL);
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    qcow2_check_result result = {.struct_size = sizeof result};
    qcow2_image *image;
    uint64_t before;
    uint32_t crc;
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        image = test_open(path, 0, NULL);
        test_fill(image, 0, 4 * MIB, 1);
        CHECK_OK(qcow2_flush(image));
        kill(getpid(), SIGKILL);
    }
    CHECK(WIFSIGNALED(test_wait(child)));
    before = test_digest(path);

    /* Read-only: nothing changes, and everything is there. */
    image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    CHECK_EQ(test_info(image).dirty, 1);
    CHECK_EQ(test_info(image).open_repaired, 0);
    test_expect(image, 0, 4 * MIB, 1);
    test_expect(image, 4 * MIB, MIB, 0);
    crc = test_checksum(image);
    test_close(image);
    CHECK_EQ(test_digest(path), before);

    CHECK_ERROR(qcow2_open(path, QCOW2_OPEN_NO_REPAIR, NULL, &image), EUCLEAN);
    CHECK_EQ(test_digest(path), before);

    /* For metadata, writable: no repair by the open either; a check finds what is wrong and can mend it. */
    const char *copy = test_path("copy.qcow2");
    test_file_copy(path, copy);
    image = test_open(copy, QCOW2_OPEN_METADATA_ONLY, NULL);
    CHECK_EQ(test_info(image).dirty, 1);
    CHECK_OK(qcow2_check(image, QCOW2_CHECK_REPAIR_LEAKS | QCOW2_CHECK_REPAIR_ERRORS, &result, NULL, NULL, NULL, NULL));
    CHECK(result.corruptions_fixed > 0);
    CHECK_OK(qcow2_check(image, 0, &result, NULL, NULL, NULL, NULL));
    CHECK_EQ(result.corruptions, 0);
    CHECK_EQ(result.leaks, 0);
    test_close(image);
    test_expect_sound(copy, false);
    image = test_open(copy, QCOW2_OPEN_NO_REPAIR, NULL);
    CHECK_EQ(test_info(image).dirty, 0);
    test_close(image);

    /* The repair. */
    params.path = path;
    params.message = count_message;
    params.message_opaque = &repairs_said;
    CHECK_OK(qcow2_open_with(&params, &image));
    CHECK_EQ(test_info(image).open_repaired, 1);
    CHECK(test_info(image).open_corruptions_fixed > 0);
    CHECK(repairs_said > 0);
    CHECK_EQ(test_checksum(image), crc);
    test_close(image);
    test_expect_sound(path, false);

    repairs_said = 0;
    CHECK_OK(qcow2_open_with(&params, &image));
    CHECK_EQ(test_info(image).open_repaired, 0);
    CHECK_EQ(test_info(image).dirty, 0);
    CHECK_EQ(repairs_said, 0);
    test_close(image);
    return 0;
}
