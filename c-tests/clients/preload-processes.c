/* Images under the shim across fork, exec, spawn and threads; what a program can reach by guessing descriptors.
   Arguments: the shim.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "../test.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

enum { THREADS = 4, ROUNDS = 150, UNIT = 5000 };

static int open_new(const char *name)
{
    int fd = open(test_path(name), O_RDWR | O_CREAT | O_TRUNC, 0600);

    CHECK(fd >= 0);
    return fd;
}

static void put(int fd, const char *text, off_t at)
{
    CHECK_EQ(pwrite(fd, text, strlen(text), at), (ssize_t)strlen(text));
}

static void expect(int fd, const char *text, off_t at)
{
    char found[256] = "";

    CHECK_EQ(pread(fd, found, strlen(text), at), (ssize_t)strlen(text));
    CHECK_EQ(memcmp(found, text, strlen(text)), 0);
}

/* The child may have the image when the parent does not use it; while the parent does, it is told so. */
static void forked_child(void)
{
    int fd = open_new("fork.qcow2"), go[2], status;
    pid_t child;
    char byte;

    put(fd, "of the parent", 0);
    CHECK_EQ(pipe(go), 0);
    child = fork();
    if (child == 0) {
        CHECK_EQ(read(go[0], &byte, 1), 1);
        CHECK_EQ(pwrite(fd, "x", 1, 0), -1);
        CHECK_EQ(errno, EOWNERDEAD);
        _exit(0);
    }
    put(fd, "and again", 100);
    CHECK_EQ(write(go[1], "g", 1), 1);
    status = test_wait(child);
    CHECK_EQ(status, 0);
    child = fork();
    if (child == 0) {
        expect(fd, "and again", 100);
        put(fd, "of the child", 200);
        _exit(0);
    }
    CHECK_EQ(test_wait(child), 0);
    expect(fd, "of the child", 200);
    expect(fd, "of the parent", 0);
    CHECK_EQ(close(fd), 0);
}

/* One offset for both, as the kernel has it. */
static void shared_offset(void)
{
    int fd = open_new("offset.qcow2");
    pid_t child;
    char two[3] = "";

    put(fd, "abcdefgh", 0);
    CHECK_EQ(read(fd, two, 2), 2);
    child = fork();
    if (child == 0) {
        CHECK_EQ(read(fd, two, 2), 2);
        _exit(memcmp(two, "cd", 2) != 0);
    }
    CHECK_EQ(test_wait(child), 0);
    CHECK_EQ(read(fd, two, 2), 2);
    CHECK_EQ(memcmp(two, "ef", 2), 0);
    close(fd);
}

/* Programs that are started have the image as a descriptor. */
static void started(void)
{
    posix_spawn_file_actions_t actions;
    char sh[] = "sh", c[] = "-c", script[] = "read a; test \"$a\" = 'first line' && echo 'last line' >&9";
    char *const command[] = {sh, c, script, NULL};
    int fd = open_new("started.qcow2"), status;
    char shell[256];
    pid_t child;

    put(fd, "first line\n", 0);
    CHECK_EQ(lseek(fd, 0, SEEK_SET), 0);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, 0);
    posix_spawn_file_actions_adddup2(&actions, fd, 9);
    CHECK_EQ(posix_spawn(&child, "/bin/sh", &actions, NULL, command, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    CHECK_EQ(test_wait(child), 0);
    expect(fd, "first line\nlast line\n", 0);
    snprintf(shell, sizeof shell, "echo 'by system' >&%d", fd);
    CHECK_EQ(system(shell), 0);
    expect(fd, "by system\n", 21);
    child = vfork();
    if (child == 0) {
        dup2(fd, 1);
        execlp("echo", "echo", "by vfork", (char *)NULL);
        _exit(127);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    expect(fd, "by vfork\n", 31);
    close(fd);
}

static void raw_bytes_are_out_of_reach(void)
{
    int fd = open_new("reach.qcow2"), other;
    char magic[4], link[64], name[4096] = "";
    ssize_t length;

    put(fd, "guest", 0);
    /* Past every hook: the descriptor is no file of the image's. */
    CHECK_EQ(syscall(SYS_lseek, fd, 0, SEEK_SET), 0);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, name, sizeof name - 1);
    CHECK(length > 0 && strncmp(name, "/memfd:", 7) == 0);
    for (int guess = 0; guess < 65536; guess++) {
        if (guess != fd && guess > 2) {
            CHECK(pread(guess, magic, 4, 0) != 4 || memcmp(magic, "QFI\xfb", 4) != 0);
            CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, guess, 0) == MAP_FAILED || guess > 2);
        }
    }
    /* By its name in /proc, too, it is the disk. */
    other = open(link, O_RDONLY);
    CHECK(other >= 0);
    expect(other, "guest", 0);
    close(other);
    /* Descriptors that the program never opened are not closed and not replaced by it. */
    CHECK_EQ(close_range((unsigned)fd + 1, ~0u, 0), 0);
    closefrom(fd + 1);
    for (int guess = fd + 1; guess < 65536; guess++) {
        if (guess != fd && close(guess) == 0) {
            test_fail(__FILE__, __LINE__, "descriptor %d could be closed", guess);
        }
        if (dup2(fd, guess) == guess) {
            close(guess);
        }
    }
    put(fd, "still there", 7000);
    CHECK_EQ(fsync(fd), 0);
    expect(fd, "still there", 7000);
    CHECK_EQ(close(fd), 0);
}

/* The number that open returns is the lowest free one, as programs expect that close and open again. */
static void lowest_number(void)
{
    int fd = open_new("lowest.qcow2"), next = open("/dev/null", O_RDONLY);

    CHECK_EQ(next, fd + 1);
    close(fd);
    CHECK_EQ(open(test_path("lowest.qcow2"), O_RDONLY), fd);
    close(fd);
    close(next);
}

/* Programs ask so whether the kernel has a call. */
static void null_paths(void)
{
    const char *volatile none = NULL;
    struct statx extended;
    struct stat status;

    CHECK_EQ(open(none, O_RDONLY), -1);
    CHECK_EQ(errno, EFAULT);
    CHECK_EQ(statx(0, none, 0, STATX_BASIC_STATS, &extended), -1);
    CHECK_EQ(errno, EFAULT);
    CHECK_EQ(stat(none, &status), -1);
    CHECK_EQ(errno, EFAULT);
    CHECK(fopen("", "r") == NULL);
    CHECK_EQ(errno, ENOENT);
}

static void end_here(int signal)
{
    (void)signal;
    _exit(3);
}

/* A signal handler ends the process in the middle of a request: it must not wait for that request. */
static void ended_by_handler(void)
{
    for (int i = 0; i < 10; i++) {
        int fd = open_new("handler.qcow2"), status;
        pid_t child = fork();

        CHECK_EQ(ftruncate(fd, 1 << 20), 0);
        if (child == 0) {
            struct itimerval soon = {.it_value = {.tv_usec = 20000 + i * 777}};
            char bytes[4096] = "x";

            close(fd);
            fd = open(test_path("handler.qcow2"), O_RDWR);
            signal(SIGALRM, end_here);
            setitimer(ITIMER_REAL, &soon, NULL);
            for (off_t at = 0;; at = (at + 4096) % (1 << 20)) {
                if (pwrite(fd, bytes, sizeof bytes, at) < 0 || pread(fd, bytes, sizeof bytes, at) < 0) {
                    pause();
                }
            }
        }
        close(fd);
        status = test_wait(child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);
    }
    /* As after a kill: the next open for writing repairs it. */
    CHECK_EQ(close(open(test_path("handler.qcow2"), O_RDWR)), 0);
}

static atomic_int failures;
static atomic_bool stop;

static void *write_and_read(void *opaque)
{
    int number = (int)(intptr_t)opaque, fd = open(test_path("threads.qcow2"), O_RDWR);
    char out[UNIT], in[UNIT];

    for (int round = 0; round < ROUNDS; round++) {
        off_t at = (off_t)(number * ROUNDS + round) * UNIT;

        memset(out, number * 50 + round % 50 + 1, UNIT);
        if (pwrite(fd, out, UNIT, at) != UNIT || pread(fd, in, UNIT, at) != UNIT || memcmp(in, out, UNIT) != 0) {
            atomic_fetch_add(&failures, 1);
        }
        if (round % 10 == number) {
            close(fd);
            fd = open(test_path("threads.qcow2"), O_RDWR);
        }
    }
    close(fd);
    return NULL;
}

static void *append(void *opaque)
{
    int number = (int)(intptr_t)opaque, fd = open(test_path("append.qcow2"), O_WRONLY | O_APPEND);
    char record[100];

    memset(record, 'a' + number, sizeof record);
    for (int round = 0; round < ROUNDS; round++) {
        if (write(fd, record, sizeof record) != (ssize_t)sizeof record) {
            atomic_fetch_add(&failures, 1);
        }
    }
    close(fd);
    return NULL;
}

/* Writes at the end do not meet, whoever makes them. */
static void appenders(void)
{
    int fd = open_new("append.qcow2"), counts[THREADS] = {0};
    pthread_t threads[THREADS];
    char record[100];

    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, append, (void *)(intptr_t)i), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    while (read(fd, record, sizeof record) == (ssize_t)sizeof record) {
        CHECK(record[0] >= 'a' && record[0] < 'a' + THREADS);
        CHECK_FILLED(record, sizeof record, record[0]);
        counts[record[0] - 'a']++;
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(counts[i], ROUNDS);
    }
    CHECK_EQ(close(fd), 0);
}

static void *open_and_close(void *opaque)
{
    (void)opaque;
    while (!atomic_load(&stop)) {
        int fd = open(test_path("threads.qcow2"), O_RDONLY), copy = dup(fd);

        close(fd);
        if (pread(copy, &(char){0}, 1, 0) < 0) {
            atomic_fetch_add(&failures, 1);
        }
        close(copy);
    }
    return NULL;
}

static void threads(void)
{
    int fd = open_new("threads.qcow2");
    pthread_t writers[THREADS], opener;

    CHECK_EQ(ftruncate(fd, (off_t)THREADS * ROUNDS * UNIT), 0);
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_create(&writers[i], NULL, write_and_read, (void *)(intptr_t)i), 0);
    }
    CHECK_EQ(pthread_create(&opener, NULL, open_and_close, NULL), 0);
    /* Children come and go meanwhile; each time the image is let go and opened again. */
    for (int i = 0; i < 10; i++) {
        pid_t child = fork();

        if (child == 0) {
            _exit(0);
        }
        CHECK_EQ(test_wait(child), 0);
        usleep(5000);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(writers[i], NULL);
    }
    atomic_store(&stop, true);
    pthread_join(opener, NULL);
    CHECK_EQ(atomic_load(&failures), 0);
    for (int i = 0; i < THREADS * ROUNDS; i++) {
        char byte;

        CHECK_EQ(pread(fd, &byte, 1, (off_t)i * UNIT + UNIT - 1), 1);
        CHECK_EQ(byte, (char)(i / ROUNDS * 50 + i % ROUNDS % 50 + 1));
    }
    CHECK_EQ(close(fd), 0);
}

enum { CREATORS = 6, FILES = 25 };

/* Each part is there, whoever has made the file; a process waits for the one that has it. */
static void create_together(int file, int creator, atomic_int *arrived)
{
    char name[64], bytes[UNIT];
    int fd;

    atomic_fetch_add(arrived, 1);
    while (atomic_load(arrived) < (file + 1) * CREATORS) {
        sched_yield();
    }
    snprintf(name, sizeof name, "created-%d.qcow2", file);
    fd = open(test_path(name), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0);
    memset(bytes, 'a' + creator, UNIT);
    CHECK_EQ(pwrite(fd, bytes, UNIT, (off_t)creator * UNIT), UNIT);
    CHECK_EQ(close(fd), 0);
}

static void creators(void)
{
    atomic_int *arrived = mmap(NULL, sizeof *arrived, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t children[CREATORS];
    char name[64], byte;

    for (int i = 0; i < CREATORS; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            /* One that fails is waited for by the others. */
            alarm(20);
            for (int file = 0; file < FILES; file++) {
                create_together(file, i, arrived);
            }
            _exit(0);
        }
    }
    for (int i = 0; i < CREATORS; i++) {
        CHECK_EQ(test_wait(children[i]), 0);
    }
    for (int file = 0; file < FILES; file++) {
        int fd;

        snprintf(name, sizeof name, "created-%d.qcow2", file);
        fd = open(test_path(name), O_RDONLY);
        CHECK(fd >= 0);
        for (int i = 0; i < CREATORS; i++) {
            CHECK_EQ(pread(fd, &byte, 1, (off_t)i * UNIT + UNIT - 1), 1);
            CHECK_EQ(byte, 'a' + i);
        }
        CHECK_EQ(close(fd), 0);
    }
}

int main(int argc, char **argv)
{
    const char *const names[] = {"fork",    "offset", "started", "reach",    "lowest",
                                 "handler", "append", "threads", "created-0"};

    if (argc > 1 && getenv("LD_PRELOAD") == NULL) {
        setenv("LD_PRELOAD", argv[1], 1);
        execv("/proc/self/exe", argv);
        return 1;
    }
    forked_child();
    shared_offset();
    started();
    raw_bytes_are_out_of_reach();
    lowest_number();
    null_paths();
    ended_by_handler();
    appenders();
    threads();
    creators();
    /* What is left are sound images. */
    unsetenv("LD_PRELOAD");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[4096];
        const char *const check[] = {"qemu-img", "check", "-q", "-f", "qcow2", path, NULL};
        int result;

        snprintf(path, sizeof path, "%s.qcow2", test_path(names[i]));
        result = test_run(check);
        CHECK(result == 0 || result == -1 || result == 127);
    }
    return 0;
}
