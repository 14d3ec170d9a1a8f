/* Which file a descriptor of an image is when names, owners and users of it change, and how long that file is.
   Arguments: the shim.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "../test.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>

static int open_new(const char *name)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0640);

    CHECK(fd >= 0);
    return fd;
}

static void put(int fd, const char *text)
{
    CHECK_EQ(pwrite(fd, text, strlen(text), 0), (ssize_t)strlen(text));
}

static void expect(int fd, const char *text)
{
    char found[64] = "";

    CHECK_EQ(pread(fd, found, strlen(text), 0), (ssize_t)strlen(text));
    CHECK_EQ(memcmp(found, text, strlen(text)), 0);
}

static void expect_file(const char *name, const char *text)
{
    int fd = open(name, O_RDONLY);

    CHECK(fd >= 0);
    expect(fd, text);
    CHECK_EQ(close(fd), 0);
}

static mode_t mode_of(const char *name)
{
    struct stat status;

    CHECK_EQ(stat(name, &status), 0);
    return status.st_mode & 07777;
}

static void a_fork(void)
{
    pid_t child = fork();

    if (child == 0) {
        _exit(0);
    }
    CHECK_EQ(test_wait(child), 0);
}

/* Opened anew after a fork it is the same file, under whatever name, and under none. */
static void renamed(void)
{
    int fd = open_new("old.qcow2"), other;
    struct stat status;
    char shell[128];

    put(fd, "first");
    CHECK_EQ(rename("old.qcow2", "moved.qcow2"), 0);
    other = open_new("old.qcow2");
    put(other, "another");
    CHECK_EQ(close(other), 0);
    a_fork();
    put(fd, "FIRST");
    expect_file("old.qcow2", "another");
    expect_file("moved.qcow2", "FIRST");
    /* A program that is started finds it by name alone, and takes no other file for it. */
    snprintf(shell, sizeof shell, "cat <&%d >/dev/null 2>&1", fd);
    CHECK(system(shell) != 0);
    snprintf(shell, sizeof shell, "/dev/fd/%d", fd);
    other = open(shell, O_RDONLY);
    CHECK(other >= 0);
    expect(other, "FIRST");
    CHECK_EQ(close(other), 0);
    CHECK_EQ(unlink("moved.qcow2"), 0);
    a_fork();
    put(fd, "still");
    expect(fd, "still");
    CHECK_EQ(fstat(fd, &status), 0);
    CHECK_EQ(status.st_nlink, 0);
    CHECK_EQ(close(fd), 0);
}

/* What changes a descriptor's file changes no other one that has the name now, nor what a link there leads to. */
static void changed(void)
{
    int fd = open_new("a.qcow2"), victim = open("victim", O_WRONLY | O_CREAT, 0640);
    struct stat status;
    char value[8];

    CHECK(victim >= 0);
    CHECK_EQ(write(fd, "0123456789", 10), 10);
    CHECK_EQ(rename("a.qcow2", "b.qcow2"), 0);
    CHECK_EQ(symlink("victim", "a.qcow2"), 0);
    CHECK_EQ(fchmod(fd, 0604), 0);
    CHECK_EQ(futimens(fd, (struct timespec[2]){{.tv_sec = 1000}, {.tv_sec = 2000}}), 0);
    if (fsetxattr(fd, "user.test", "it", 2, 0) == 0) {
        CHECK_EQ(getxattr("b.qcow2", "user.test", value, sizeof value), 2);
        CHECK_EQ(getxattr("victim", "user.test", value, sizeof value), -1);
    }
    if (geteuid() == 0) {
        CHECK_EQ(fchown(fd, 65534, 65534), 0);
        CHECK_EQ(stat("b.qcow2", &status), 0);
        CHECK_EQ(status.st_uid, 65534);
    }
    CHECK_EQ(fstat(victim, &status), 0);
    CHECK_EQ(status.st_uid, geteuid());
    CHECK_EQ(status.st_mode & 07777, 0640);
    CHECK(status.st_mtime > 2000);
    CHECK_EQ(mode_of("b.qcow2"), 0604);
    CHECK_EQ(close(fd), 0);
    CHECK_EQ(stat("b.qcow2", &status), 0);
    CHECK_EQ(status.st_mtime, 2000);
    /* The length went with the file, where the file system keeps it. */
    CHECK(status.st_size == 10 || getxattr("b.qcow2", "user.libqcow2.length", NULL, 0) < 0);
    CHECK_EQ(close(victim), 0);
}

/* The host takes no more: the file is as long as what was written. */
static void full(int flags)
{
    struct rlimit before, limit;
    off_t written = 0, at;
    struct stat status;
    char bytes[50000];
    int fd = open_new("full.qcow2");

    CHECK_EQ(close(fd), 0);
    fd = open("full.qcow2", O_RDWR | flags);
    signal(SIGXFSZ, SIG_IGN);
    CHECK_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = (struct rlimit){1000000, before.rlim_max};
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    memset(bytes, 'x', sizeof bytes);
    while (write(fd, bytes, sizeof bytes) == (ssize_t)sizeof bytes) {
        written += (ssize_t)sizeof bytes;
    }
    CHECK_EQ(errno, EFBIG);
    CHECK(written > 300000);
    CHECK_EQ(fstat(fd, &status), 0);
    CHECK_EQ(status.st_size, written);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    /* What it wrote of the rest does not show when the end moves on. */
    CHECK_EQ(ftruncate(fd, written + 100000), 0);
    for (at = 0; at < written + 100000; at += 50000) {
        CHECK_EQ(pread(fd, bytes, sizeof bytes, at), (ssize_t)sizeof bytes);
        CHECK_FILLED(bytes, sizeof bytes, at < written ? 'x' : 0);
    }
    CHECK_EQ(close(fd), 0);
}

static const off_t FAR = 8 << 20;
static const size_t FAR_BYTES = 16 << 20;
static atomic_bool far_ends;

/* Writes that the host has no room for, past what the others write. */
static void *write_far(void *fd)
{
    char *bytes = calloc(1, FAR_BYTES);
    long failed = 0;

    while (!atomic_load(&far_ends)) {
        failed += pwrite(*(int *)fd, bytes, FAR_BYTES, FAR) < 0;
    }
    free(bytes);
    return (void *)failed;
}

/* What another write has made longer, and fails: what was written in between stays. */
static void full_beside_others(void)
{
    struct rlimit before, limit;
    char bytes[4096], found[4096];
    int fd = open_new("beside.qcow2"), written[500], count = 0;
    pthread_t thread;
    void *failed;

    CHECK_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = (struct rlimit){8 << 20, before.rlim_max};
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    CHECK_EQ(pthread_create(&thread, NULL, write_far, &fd), 0);
    memset(bytes, 'b', sizeof bytes);
    for (int i = 0; i < 500; i++) {
        usleep(300);
        if (pwrite(fd, bytes, sizeof bytes, (off_t)i * (off_t)sizeof bytes) == (ssize_t)sizeof bytes) {
            written[count++] = i;
        }
    }
    atomic_store(&far_ends, true);
    CHECK_EQ(pthread_join(thread, &failed), 0);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    CHECK((long)failed > 2 && count > 100);
    for (int i = 0; i < count; i++) {
        CHECK_EQ(pread(fd, found, sizeof found, (off_t)written[i] * (off_t)sizeof found), (ssize_t)sizeof found);
        CHECK_FILLED(found, sizeof found, 'b');
    }
    CHECK_EQ(close(fd), 0);
}

/* When nobody writes any more, others may read. */
static void last_writer(void)
{
    int writer = open_new("shared.qcow2"), reader, go[2];
    pid_t child;
    char byte;

    put(writer, "text");
    reader = open("shared.qcow2", O_RDONLY);
    CHECK(reader >= 0);
    CHECK_EQ(close(writer), 0);
    CHECK_EQ(pipe(go), 0);
    child = fork();
    if (child == 0) {
        /* Its own copy would be this process's lock again. */
        close(reader);
        if (read(go[0], &byte, 1) != 1) {
            _exit(9);
        }
        expect_file("shared.qcow2", "text");
        _exit(0);
    }
    expect(reader, "text");
    CHECK_EQ(write(go[1], "", 1), 1);
    CHECK_EQ(test_wait(child), 0);
    /* And one of them may write again. */
    writer = open("shared.qcow2", O_RDWR);
    put(writer, "TEXT");
    expect(reader, "TEXT");
    CHECK_EQ(close(writer), 0);
    CHECK_EQ(close(reader), 0);
}

/* The last close makes the virtual size what it is, although fork had closed the image before. */
static void settled(void)
{
    int fd = open_new("settled.qcow2");
    char bytes[1024] = "x";

    CHECK_EQ(write(fd, bytes, sizeof bytes), (ssize_t)sizeof bytes);
    a_fork();
    CHECK_EQ(close(fd), 0);
    CHECK_EQ(getxattr("settled.qcow2", "user.libqcow2.length", NULL, 0), -1);
    CHECK_EQ(mode_of("settled.qcow2"), 0640);
}

static void *open_held(void *unused)
{
    (void)unused;
    open("held.qcow2", O_RDWR);
    while (pause() != 0) {
    }
    return NULL;
}

/* A thread that is cancelled while it waits for an image keeps nobody from opening others. */
static void cancelled(void)
{
    int ready[2];
    pthread_t thread;
    pid_t child;
    char byte;

    CHECK_EQ(close(open_new("held.qcow2")), 0);
    CHECK_EQ(pipe(ready), 0);
    child = fork();
    if (child == 0) {
        int fd = open("held.qcow2", O_RDWR);

        alarm(30);
        _exit(fd < 0 || write(ready[1], "", 1) != 1 || pause() == 0);
    }
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    CHECK_EQ(pthread_create(&thread, NULL, open_held, NULL), 0);
    usleep(200000);
    CHECK_EQ(pthread_cancel(thread), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    alarm(20);
    expect_file("shared.qcow2", "TEXT");
    alarm(0);
    CHECK_EQ(kill(child, SIGKILL), 0);
    test_wait(child);
}

/* A new file may be asked for without the permissions that its writer has by its descriptor. */
static void not_for_writing(void)
{
    pid_t child = fork();

    if (child == 0) {
        int fd;

        CHECK(geteuid() != 0 || setresuid(65534, 65534, 65534) == 0);
        fd = open("fixed.qcow2", O_RDWR | O_CREAT | O_EXCL, 0444);
        CHECK(fd >= 0);
        put(fd, "text");
        CHECK_EQ(close(fd), 0);
        CHECK_EQ(mode_of("fixed.qcow2"), 0444);
        expect_file("fixed.qcow2", "text");
        umask(0266);
        fd = open("masked.qcow2", O_RDWR | O_CREAT | O_EXCL, 0666);
        CHECK(fd >= 0);
        CHECK_EQ(close(fd), 0);
        CHECK_EQ(mode_of("masked.qcow2"), 0400);
        _exit(0);
    }
    CHECK_EQ(test_wait(child), 0);
}

int main(int argc, char **argv)
{
    if (argc > 1 && getenv("LD_PRELOAD") == NULL) {
        setenv("LD_PRELOAD", argv[1], 1);
        execv("/proc/self/exe", argv);
        return 1;
    }
    umask(022);
    /* For every user; names are relative, for the directories above may not be. */
    CHECK_EQ(mkdir(test_path("all"), 0777), 0);
    CHECK_EQ(chmod(test_path("all"), 0777), 0);
    CHECK_EQ(chdir(test_path("all")), 0);
    renamed();
    changed();
    full(0);
    full(O_APPEND);
    full_beside_others();
    last_writer();
    settled();
    cancelled();
    not_for_writing();
    return 0;
}
