/* Open an image and its backing file in a process that can open nothing: a supervisor opens the files, the process
   allows itself a few system calls, and only then the library sees the images, which may be anybody's.
   SPDX-License-Identifier: MIT OR Apache-2.0
   cc sandbox.c $(pkg-config --cflags --libs qcow2) -o sandbox && ./sandbox overlay.qcow2 base.qcow2 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <qcow2.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What an open by descriptor and the requests ask of the host ("System calls after open" in docs/features.md), and what
   this program prints and ends with. A block device takes SYS_ioctl, too. */
static const int allowed[] = {
    SYS_pread64,     SYS_pwrite64, SYS_preadv,     SYS_pwritev,   SYS_fdatasync, SYS_fallocate,
    SYS_close,       SYS_statx,    SYS_prlimit64,  SYS_getrandom, SYS_futex,     SYS_brk,
    SYS_munmap,      SYS_mremap,   SYS_madvise,    SYS_mprotect,
#ifdef SYS__llseek /* a machine of 32 bits */
    SYS_ftruncate64, SYS__llseek,  SYS_fcntl64,    SYS_mmap2,
#else
    SYS_ftruncate, SYS_lseek,     SYS_fcntl,      SYS_mmap,
#endif
    SYS_write,       SYS_fstat,    SYS_exit_group,
#ifdef SYS_newfstatat
    SYS_newfstatat,
#endif
};

static int close_the_door(void)
{
    enum { COUNT = sizeof allowed / sizeof *allowed };
    struct sock_filter filter[COUNT + 3];
    struct sock_fprog program = {.len = COUNT + 3, .filter = filter};

    /* A filter for others' use compares seccomp_data.arch first: a system call's number means another one there. */
    filter[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < COUNT; i++) {
        filter[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i], COUNT - i, 0);
    }
    filter[COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    filter[COUNT + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return -1;
    }
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

/* Whatever name the image records: its backing file is the one that was given. It has none of its own. */
static int resolve(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    const int *base = opaque;

    if (request->kind != QCOW2_NODE_BACKING || request->depth != 1 || *base < 0) {
        return -EPERM;
    }
    answer->fd = *base;
    return 0;
}

int main(int argc, char **argv)
{
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    char sector[512];
    qcow2_image *image;
    int base;

    if (argc < 2) {
        fprintf(stderr, "usage: sandbox IMAGE [BACKING-FILE]\n");
        return 2;
    }
    params.fd = open(argv[1], O_RDWR | O_CLOEXEC);
    base = argc > 2 ? open(argv[2], O_RDONLY | O_CLOEXEC) : -1;
    if (params.fd < 0 || (argc > 2 && base < 0)) {
        perror("open");
        return 1;
    }
    params.flags = QCOW2_OPEN_FD;
    params.resolve = resolve;
    params.resolve_opaque = &base;
    if (close_the_door() != 0) {
        perror("seccomp");
        return 77;
    }
    if (open("/dev/null", O_RDONLY) >= 0) {
        fprintf(stderr, "the door is open\n");
        return 1;
    }
    if (qcow2_open_with(&params, &image) < 0 || qcow2_pread(image, sector, sizeof sector, 0) < 0) {
        fprintf(stderr, "%s\n", qcow2_last_error());
        return 1;
    }
    printf("first byte %02x, of %lld\n", (unsigned char)sector[0], (long long)qcow2_length(image));
    memset(sector, 0x5a, sizeof sector);
    if (qcow2_pwrite(image, sector, sizeof sector, 1 << 20) < 0 || qcow2_close(image) < 0) {
        fprintf(stderr, "%s\n", qcow2_last_error());
        return 1;
    }
    return 0;
}
