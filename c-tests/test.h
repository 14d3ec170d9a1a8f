/* What the C tests share.  SPDX-License-Identifier: MIT OR Apache-2.0

   A test is a program: it returns from main, or a failed check ends it with a line that says where, what, and
   what was expected. Files live in a directory of its own that is removed at exit. */
#ifndef QCOW2_TEST_H
#define QCOW2_TEST_H

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <qcow2.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)

/* The address sanitizer keeps freed memory for a while. */
#ifdef __SANITIZE_ADDRESS__
#define SANITIZED true
#else
#define SANITIZED false
#endif

/* --- checks --- */

void test_fail(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4), noreturn));
/* Ends the program as "skipped". */
void test_skip(const char *why) __attribute__((noreturn));

/* `condition` holds. */
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            test_fail(__FILE__, __LINE__, "%s does not hold", #condition);                                             \
    } while (0)
/* Two integers are equal. */
#define CHECK_EQ(actual, expected)                                                                                     \
    test_equal(__FILE__, __LINE__, #actual, (int64_t)(actual), #expected, (int64_t)(expected))
/* A library call returns no error. */
#define CHECK_OK(call) test_ok(__FILE__, __LINE__, #call, (int64_t)(call))
/* A library call returns -`number`, and there is a text. */
#define CHECK_ERROR(call, number) test_error(__FILE__, __LINE__, #call, (int64_t)(call), number, #number)
/* The text of the last error contains `part`. */
#define CHECK_TEXT(part) test_text(__FILE__, __LINE__, part)
/* Every byte of a buffer is `value`. */
#define CHECK_FILLED(buffer, bytes, value) test_filled(__FILE__, __LINE__, #buffer, buffer, bytes, value)

void test_equal(const char *file, int line, const char *what, int64_t actual, const char *expected_text,
                int64_t expected);
int64_t test_ok(const char *file, int line, const char *what, int64_t result);
void test_error(const char *file, int line, const char *what, int64_t result, int number, const char *name);
void test_text(const char *file, int line, const char *part);
void test_filled(const char *file, int line, const char *what, const void *buffer, size_t bytes, int value);

/* --- files --- */

/* `name` in this test's directory; static until exit. */
const char *test_path(const char *name);
/* A digest of length and contents; fails the test when the file cannot be read. */
uint64_t test_digest(const char *path);
/* `count` bytes at `offset`, all or failure. */
void test_file_read(const char *path, void *buffer, size_t count, uint64_t offset);
void test_file_write(const char *path, const void *buffer, size_t count, uint64_t offset);
uint64_t test_file_length(const char *path);
void test_file_copy(const char *from, const char *to);

/* --- images --- */

/* Creates; options are string arguments up to NULL. */
const char *test_create(const char *name, uint64_t size, ...) __attribute__((sentinel));
qcow2_image *test_open(const char *path, uint64_t flags, ...) __attribute__((sentinel));
void test_close(qcow2_image *image);
/* Writes or checks a range that is filled with one byte value. */
void test_fill(qcow2_image *image, uint64_t offset, uint64_t length, int value);
void test_expect(qcow2_image *image, uint64_t offset, uint64_t length, int value);
uint32_t test_checksum(qcow2_image *image);
/* What a check of the closed image finds; our own, and qemu-img's where it is installed. No corruptions; no
   leaks either unless `leaks_allowed`. */
void test_expect_sound(const char *path, bool leaks_allowed);
qcow2_info test_info(qcow2_image *image);

/* --- the rest --- */

/* A number from a sequence that only `state` decides. */
uint64_t test_random(uint64_t *state);
/* An environment variable's number, or `otherwise`. */
uint64_t test_setting(const char *name, uint64_t otherwise);
/* Waits for a child; the status of waitpid. */
int test_wait(pid_t child);
/* Runs `body` in a forked child, and fails unless it returns there. */
void test_in_child(void (*body)(void *), void *opaque);
/* Runs a program; its exit status, or -1 when it cannot be started. */
int test_run(const char *const *words);
/* Under valgrind, or an emulator of another machine: a test does less. */
bool test_under_valgrind(void);
bool test_emulated(void);

/* --- storage in memory that counts, and fails when it is told to --- */

struct test_memory {
    pthread_mutex_t lock;
    unsigned char *bytes;
    uint64_t length, limit; /* writes past `limit` are -ENOSPC */
    unsigned reads, writes, syncs, truncates, closes;
    int fail_read, fail_write, fail_sync, fail_truncate, fail_length; /* errno to answer with; 0: none */
    unsigned fail_after; /* calls that still succeed before the failures above begin */
};
extern const qcow2_io_ops test_memory_ops; /* all but discard and write_zeroes */
#define TEST_MEMORY_INIT                                                                                               \
    {                                                                                                                  \
        .lock = PTHREAD_MUTEX_INITIALIZER, .limit = UINT64_MAX                                                         \
    }
void test_memory_free(struct test_memory *memory);
int test_memory_open(const qcow2_io_ops *ops, struct test_memory *memory, uint64_t flags, qcow2_image **image);

#endif
