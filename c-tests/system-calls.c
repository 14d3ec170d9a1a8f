/* C23: a program opens its images, forbids itself all system calls but a few, and goes on. The list is that of
   docs/features.md, "System calls after open"; whatever else the library asks for ends the test with its number.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static const int allowed[] = {
    /* The files; the locks of reopen and close; close. */
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_fdatasync,
    SYS_fallocate,
    SYS_close,
#ifdef SYS__llseek /* a machine of 32 bits */
    SYS_ftruncate64,
    SYS__llseek,
    SYS_fcntl64,
    SYS_mmap2,
#else
    SYS_ftruncate,
    SYS_lseek,
    SYS_fcntl,
    SYS_mmap,
#endif
#ifdef SYS_futex_time64
    SYS_futex_time64,
#endif
#ifdef SYS_futex
    SYS_futex,
#endif
    /* Memory. */
    SYS_munmap,
    SYS_mremap,
    SYS_brk,
    SYS_madvise,
    SYS_mprotect,
    /* This test's own: it writes a line and ends. */
    SYS_write,
    SYS_exit_group,
    SYS_rt_sigreturn,
};

static void refused(int signal, siginfo_t *info, void *context)
{
    char text[] = "system call 000 is not on the list\n";

    (void)signal, (void)context;
    for (int at = 14, number = info->si_syscall; at > 11; at--, number /= 10) {
        text[at] = (char)('0' + number % 10);
    }
    if (write(2, text, sizeof text - 1) < 0) {
        _exit(4);
    }
    _exit(3);
}

static void forbid_the_rest(void)
{
    enum { COUNT = sizeof allowed / sizeof *allowed };
    struct sock_filter filter[COUNT + 3];
    struct sock_fprog program = {.len = COUNT + 3, .filter = filter};
    struct sigaction action = {.sa_sigaction = refused, .sa_flags = SA_SIGINFO};

    filter[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < COUNT; i++) {
        filter[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i], COUNT - i, 0);
    }
    filter[COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    filter[COUNT + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    CHECK_EQ(sigaction(SIGSYS, &action, NULL), 0);
    CHECK_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0) {
        _exit(77);
    }
}

/* A disk of 64 MiB whose first MiB is 1 and whose second is `second`. */
static void use(qcow2_image *image, int second, bool is_raw)
{
    struct qcow2_extent extent = {.struct_size = sizeof extent};

    test_expect(image, 0, MIB, 1);
    test_expect(image, MIB, MIB, second);
    for (unsigned i = 0; i < 40; i++) {
        test_fill(image, (4 + i) * MIB + 12345, 70000, 3);
        CHECK_OK(qcow2_flush(image));
    }
    CHECK_OK(qcow2_write_zeroes(image, 5 * MIB, MIB, QCOW2_REQ_UNMAP));
    CHECK_OK(qcow2_write_zeroes(image, 6 * MIB + 77, 300000, 0));
    CHECK_OK(qcow2_discard(image, 7 * MIB, 2 * MIB));
    CHECK_OK(qcow2_block_status(image, 4 * MIB, 8 * MIB, 0, &extent));
    CHECK(qcow2_length(image) == (int64_t)(64 * MIB));
    CHECK_OK(qcow2_truncate(image, 80 * MIB, QCOW2_PREALLOC_OFF));
    test_fill(image, 79 * MIB, MIB, 4);
    CHECK_OK(qcow2_truncate(image, 64 * MIB, QCOW2_PREALLOC_OFF));
    test_expect(image, 5 * MIB, MIB, 0);
    if (!is_raw) {
        CHECK_OK(qcow2_clean_caches(image));
    }
    /* No new descriptor, no /proc, no path, no permission. */
    CHECK_OK(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL));
    CHECK_ERROR(qcow2_pwrite(image, "x", 1, 0), EROFS);
    test_expect(image, 0, MIB, 1);
    CHECK_OK(qcow2_reopen(image, 0, NULL));
    test_fill(image, 60 * MIB, MIB, 5);
    test_close(image);
}

/* Requests of other threads, each in a MiB of its own, while the disk is resized: whoever waits for whom asks for
   nothing either. The threads are there before the list is. */
static qcow2_image *shared;
static pthread_barrier_t listed;

static void *request(void *opaque)
{
    const unsigned own = *(const unsigned *)opaque;

    pthread_barrier_wait(&listed); /* it has started */
    pthread_barrier_wait(&listed);
    for (unsigned i = 0; i < 300; i++) {
        test_fill(shared, (8 + own) * MIB + i % 7 * 4096, 60000, (int)(1 + i % 200));
        test_expect(shared, (8 + own) * MIB + i % 7 * 4096, 60000, (int)(1 + i % 200));
        if (i % 50 == 49) {
            CHECK_OK(qcow2_flush(shared));
        }
    }
    pthread_barrier_wait(&listed);
    pthread_barrier_wait(&listed); /* never: how a thread ends is the C library's */
    return NULL;
}

static void use_beside(qcow2_image *image)
{
    static const unsigned own[] = {0, 1, 2};
    pthread_t thread;

    shared = image;
    CHECK_EQ(pthread_barrier_init(&listed, NULL, 4), 0);
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQ(pthread_create(&thread, NULL, request, (void *)&own[i]), 0);
    }
    pthread_barrier_wait(&listed);
    forbid_the_rest();
    pthread_barrier_wait(&listed);
    for (unsigned i = 0; i < 50; i++) {
        CHECK_OK(qcow2_truncate(image, (i % 2 ? 64 : 66) * MIB, QCOW2_PREALLOC_OFF));
    }
    pthread_barrier_wait(&listed);
}

struct scene {
    const char *name;
    bool by_descriptor, is_raw, threads;
    const char *options[4];
};

static void run(void *opaque)
{
    const struct scene *scene = opaque;
    uint64_t flags = QCOW2_OPEN_ALLOW_RECORDED | (scene->is_raw ? QCOW2_OPEN_RAW : 0);
    const char *path = test_path(scene->name);
    qcow2_image *image;

    if (scene->by_descriptor) {
        int fd = open(path, O_RDWR);

        CHECK(fd >= 0);
        CHECK_OK(qcow2_open_fd(fd, flags, scene->options, &image));
    } else {
        CHECK_OK(qcow2_open(path, flags, scene->options, &image));
    }
    if (scene->threads) {
        use_beside(image);
    } else {
        forbid_the_rest();
    }
    use(image, 2, scene->is_raw);
    _exit(0);
}

int main(void)
{
    static struct scene scenes[] = {
        {.name = "eager"},
        {.name = "eager", .by_descriptor = true},
        {.name = "lazy", .options = {"lazy-refcounts=on"}},
        {.name = "through", .options = {"cache=writethrough", "discard=unmap"}},
        {.name = "direct", .options = {"cache=none"}},
        {.name = "small", .by_descriptor = true},
        {.name = "beside", .threads = true},
        {.name = "data", .options = {"discard=unmap"}},
        {.name = "raw", .is_raw = true},
        {.name = "raw", .is_raw = true, .by_descriptor = true},
        {.name = "raw", .is_raw = true, .threads = true},
    };

#ifdef __SANITIZE_ADDRESS__
    test_skip("a sanitizer makes system calls of its own");
#endif
    const char *base = test_create("base", 64 * MIB, NULL);
    qcow2_image *image = test_open(base, 0, NULL);

    test_fill(image, 0, MIB, 1);
    test_close(image);
#ifdef M_ARENA_MAX
    /* Otherwise glibc asks how many processors there are, in the third thread (of 32 bits) or the ninth. */
    CHECK_EQ(mallopt(M_ARENA_MAX, 8), 1);
#endif
    for (unsigned i = 0; i < sizeof scenes / sizeof *scenes; i++) {
        struct scene *scene = &scenes[i];
        pid_t child;
        int status;

        if (scene->is_raw) {
            int fd = open(test_path(scene->name), O_RDWR | O_CREAT | O_TRUNC, 0600);

            CHECK(fd >= 0);
            CHECK_EQ(ftruncate(fd, 64 * MIB), 0);
            close(fd);
            image = test_open(test_path(scene->name), QCOW2_OPEN_RAW, NULL);
            test_fill(image, 0, MIB, 1);
        } else if (strcmp(scene->name, "data") == 0) {
            char option[4200];

            snprintf(option, sizeof option, "data_file=%s", test_path("data.raw"));
            image = test_open(test_create("data", 64 * MIB, option, NULL), QCOW2_OPEN_ALLOW_RECORDED, NULL);
            test_fill(image, 0, MIB, 1);
        } else if (scene->by_descriptor) {
            image = test_open(
                test_create(scene->name, 64 * MIB, strcmp(scene->name, "small") ? NULL : "cluster_size=512", NULL), 0,
                NULL);
            test_fill(image, 0, MIB, 1);
        } else {
            image = test_open(test_create(scene->name, 64 * MIB, "backing_file=base", "backing_fmt=qcow2", NULL),
                              QCOW2_OPEN_ALLOW_RECORDED, NULL);
        }
        test_fill(image, MIB, MIB, 2);
        test_close(image);
        child = fork();
        if (child == 0) {
            run(scene);
        }
        status = test_wait(child);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
            test_skip("no seccomp filters here");
        }
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            fprintf(stderr, "scene %u, %s\n", i, scene->name);
        }
        CHECK_EQ(status, 0);
        image =
            test_open(test_path(scene->name), QCOW2_OPEN_ALLOW_RECORDED | (scene->is_raw ? QCOW2_OPEN_RAW : 0), NULL);
        test_expect(image, 60 * MIB, MIB, 5);
        test_expect(image, MIB, MIB, 2);
        test_close(image);
    }
    return 0;
}
