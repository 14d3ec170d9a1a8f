/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* --- checks --- */

void test_fail(const char *file, int line, const char *format, ...)
{
    va_list arguments;

    fprintf(stderr, "%s:%d: ", file, line);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

void test_skip(const char *why)
{
    printf("skipped: %s\n", why);
    exit(77);
}

void test_equal(const char *file, int line, const char *what, int64_t actual, const char *expected_text,
                int64_t expected)
{
    if (actual != expected) {
        test_fail(file, line, "%s is %" PRId64 ", expected %s (%" PRId64 ")", what, actual, expected_text, expected);
    }
}

int64_t test_ok(const char *file, int line, const char *what, int64_t result)
{
    if (result < 0) {
        test_fail(file, line, "%s: %s: %s", what, strerror((int)-result), qcow2_last_error());
    }
    return result;
}

void test_error(const char *file, int line, const char *what, int64_t result, int number, const char *name)
{
    if (result >= 0) {
        test_fail(file, line, "%s succeeded, expected %s", what, name);
    }
    if (result != -number) {
        test_fail(file, line, "%s: %s (%s), expected %s", what, strerror((int)-result), qcow2_last_error(), name);
    }
    if (qcow2_last_error()[0] == '\0') {
        test_fail(file, line, "%s failed without a text", what);
    }
}

void test_text(const char *file, int line, const char *part)
{
    const char *text = qcow2_last_error();

    if (strstr(text, part) == NULL) {
        test_fail(file, line, "the error text is '%s', expected it to contain '%s'", text, part);
    }
}

void test_filled(const char *file, int line, const char *what, const void *buffer, size_t bytes, int value)
{
    const unsigned char *at = buffer;

    for (size_t i = 0; i < bytes; i++) {
        if (at[i] != (unsigned char)value) {
            test_fail(file, line, "%s[%zu] is %#x, expected %#x", what, i, at[i], (unsigned)value);
        }
    }
}

/* --- files --- */

static char directory[4096];
static pid_t owner;

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *position)
{
    (void)status;
    (void)kind;
    (void)position;
    return remove(path);
}

static void remove_directory(void)
{
    if (owner == getpid()) {
        nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    }
}

const char *test_path(const char *name)
{
    static char paths[64][4200];
    static unsigned used;
    char wanted[4200];

    if (owner == 0) {
        const char *base = getenv("TMPDIR");

        snprintf(directory, sizeof directory, "%s/qcow2-test.XXXXXX", base != NULL ? base : "/tmp");
        if (mkdtemp(directory) == NULL) {
            test_fail(__FILE__, __LINE__, "%s: %s", directory, strerror(errno));
        }
        owner = getpid();
        atexit(remove_directory);
    }
    snprintf(wanted, sizeof wanted, "%s/%s", directory, name);
    for (unsigned i = 0; i < used; i++) {
        if (strcmp(paths[i], wanted) == 0) {
            return paths[i];
        }
    }
    CHECK(used < 64);
    return strcpy(paths[used++], wanted);
}

static int open_file(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);

    if (fd < 0) {
        test_fail(__FILE__, __LINE__, "%s: %s", path, strerror(errno));
    }
    return fd;
}

uint64_t test_file_length(const char *path)
{
    struct stat status;

    if (stat(path, &status) != 0) {
        test_fail(__FILE__, __LINE__, "%s: %s", path, strerror(errno));
    }
    return (uint64_t)status.st_size;
}

uint64_t test_digest(const char *path)
{
    static char block[1 << 16];
    uint64_t digest = 0xcbf29ce484222325u ^ test_file_length(path);
    int fd = open_file(path, O_RDONLY);
    ssize_t count;

    while ((count = read(fd, block, sizeof block)) > 0) {
        for (ssize_t i = 0; i < count; i++) {
            digest = (digest ^ (unsigned char)block[i]) * 0x100000001b3u;
        }
    }
    CHECK_EQ(count, 0);
    close(fd);
    return digest;
}

void test_file_read(const char *path, void *buffer, size_t count, uint64_t offset)
{
    int fd = open_file(path, O_RDONLY);

    CHECK_EQ(pread(fd, buffer, count, (off_t)offset), count);
    close(fd);
}

void test_file_write(const char *path, const void *buffer, size_t count, uint64_t offset)
{
    int fd = open_file(path, O_WRONLY | O_CREAT);

    CHECK_EQ(pwrite(fd, buffer, count, (off_t)offset), count);
    close(fd);
}

void test_file_copy(const char *from, const char *to)
{
    static char block[1 << 16];
    int source = open_file(from, O_RDONLY), target = open_file(to, O_WRONLY | O_CREAT | O_TRUNC);
    ssize_t count;

    while ((count = read(source, block, sizeof block)) > 0) {
        CHECK_EQ(write(target, block, (size_t)count), count);
    }
    CHECK_EQ(count, 0);
    close(source);
    close(target);
}

/* --- images --- */

#define MAX_OPTIONS 16

static void collect(const char *options[MAX_OPTIONS + 1], va_list arguments)
{
    unsigned count = 0;
    const char *option;

    while ((option = va_arg(arguments, const char *)) != NULL && count < MAX_OPTIONS) {
        options[count++] = option;
    }
    options[count] = NULL;
}

const char *test_create(const char *name, uint64_t size, ...)
{
    const char *options[MAX_OPTIONS + 1], *path = test_path(name);
    va_list arguments;

    va_start(arguments, size);
    collect(options, arguments);
    va_end(arguments);
    CHECK_OK(qcow2_create(path, size, options));
    return path;
}

qcow2_image *test_open(const char *path, uint64_t flags, ...)
{
    const char *options[MAX_OPTIONS + 1];
    qcow2_image *image;
    va_list arguments;

    va_start(arguments, flags);
    collect(options, arguments);
    va_end(arguments);
    CHECK_OK(qcow2_open(path, flags, options, &image));
    return image;
}

void test_close(qcow2_image *image)
{
    CHECK_OK(qcow2_close(image));
}

#define FILL_BYTES (1 << 16)

void test_fill(qcow2_image *image, uint64_t offset, uint64_t length, int value)
{
    unsigned char block[FILL_BYTES];

    memset(block, value, sizeof block);
    while (length > 0) {
        size_t count = length < sizeof block ? (size_t)length : sizeof block;

        CHECK_EQ(CHECK_OK(qcow2_pwrite(image, block, count, offset)), count);
        offset += count;
        length -= count;
    }
}

void test_expect(qcow2_image *image, uint64_t offset, uint64_t length, int value)
{
    unsigned char block[FILL_BYTES];

    while (length > 0) {
        size_t count = length < sizeof block ? (size_t)length : sizeof block;

        memset(block, ~value, sizeof block);
        CHECK_EQ(CHECK_OK(qcow2_pread(image, block, count, offset)), count);
        for (size_t i = 0; i < count; i++) {
            if (block[i] != (unsigned char)value) {
                test_fail(__FILE__, __LINE__, "guest byte %" PRIu64 " is %#x, expected %#x", offset + i, block[i],
                          (unsigned)value);
            }
        }
        offset += count;
        length -= count;
    }
}

uint32_t test_checksum(qcow2_image *image)
{
    uint32_t crc = 0;

    CHECK_OK(qcow2_checksum(image, &crc, NULL, NULL));
    return crc;
}

qcow2_info test_info(qcow2_image *image)
{
    qcow2_info info = {.struct_size = sizeof info};

    CHECK_OK(qcow2_get_info(image, &info));
    return info;
}

/* Leaks only where they are not allowed. */
static void show_finding(void *opaque, int kind, const char *text)
{
    const bool *leaks_allowed = opaque;

    if (kind != QCOW2_MSG_LEAK || !*leaks_allowed) {
        fprintf(stderr, "check: %s\n", text);
    }
}

void test_expect_sound(const char *path, bool leaks_allowed)
{
    const char *const stock[] = {"sh", "-c", "qemu-img check -f qcow2 \"$0\" >/dev/null 2>&1", path, NULL};
    qcow2_check_result result = {.struct_size = sizeof result};
    qcow2_image *image = test_open(path, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_METADATA_ONLY, NULL);
    int status;

    CHECK_OK(qcow2_check(image, 0, &result, show_finding, &leaks_allowed, NULL, NULL));
    test_close(image);
    CHECK_EQ(result.corruptions, 0);
    CHECK_EQ(result.check_errors, 0);
    if (!leaks_allowed) {
        CHECK_EQ(result.leaks, 0);
    }
    status = test_run(stock); /* 3: leaks; 127 or -1: not installed */
    if (status != 0 && status != -1 && status != 127 && !(status == 3 && leaks_allowed)) {
        test_fail(__FILE__, __LINE__, "qemu-img check %s: exit status %d", path, status);
    }
}

/* --- the rest --- */

uint64_t test_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t test_setting(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text != NULL && *text != '\0' ? strtoull(text, NULL, 10) : otherwise;
}

int test_wait(pid_t child)
{
    int status = 0;

    while (waitpid(child, &status, 0) < 0) {
        CHECK_EQ(errno, EINTR);
    }
    return status;
}

void test_in_child(void (*body)(void *), void *opaque)
{
    int pipes[2], status;
    char done = 0;
    pid_t child;

    CHECK_EQ(pipe(pipes), 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        body(opaque);
        /* Not by exit: a leak check would count what belongs to the parent's other threads. */
        if (write(pipes[1], "d", 1) == 1) {
            kill(getpid(), SIGKILL);
        }
        _exit(1);
    }
    close(pipes[1]);
    if (read(pipes[0], &done, 1) < 0) {
        done = 0;
    }
    close(pipes[0]);
    status = test_wait(child);
    if (done != 'd') {
        test_fail(__FILE__, __LINE__, "the child ended early with wait status %#x", (unsigned)status);
    }
}

int test_run(const char *const *words)
{
    pid_t child = fork();
    int status;

    CHECK(child >= 0);
    if (child == 0) {
        union {
            const char *const *in;
            char *const *out;
        } arguments = {.in = words};

        execvp(words[0], arguments.out);
        _exit(127);
    }
    status = test_wait(child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool test_under_valgrind(void)
{
    return test_setting("QCOW2_TEST_SLOW", 0) != 0;
}

bool test_emulated(void)
{
    const char *runner = getenv("QCOW2_TEST_RUNNER");

    return runner && *runner;
}
