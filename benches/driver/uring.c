/* Random reads through io_uring: what a raw file gives at a queue depth.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "bench.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct ring {
    int fd;
    char *sq, *cq;
    struct io_uring_sqe *sqes;
    struct io_uring_params p;
    uint64_t random, blocks;
};

static _Atomic uint32_t *field(char *base, uint32_t offset)
{
    return (_Atomic uint32_t *)(void *)(base + offset);
}

static bool set_up(struct ring *ring, unsigned depth)
{
    ring->fd = (int)syscall(SYS_io_uring_setup, depth, &ring->p);
    if (ring->fd < 0)
        return false;
    ring->sq = mmap(NULL, ring->p.sq_off.array + ring->p.sq_entries * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
    ring->cq = mmap(NULL, ring->p.cq_off.cqes + ring->p.cq_entries * sizeof(struct io_uring_cqe),
                    PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_CQ_RING);
    ring->sqes = mmap(NULL, ring->p.sq_entries * sizeof *ring->sqes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
    return ring->sq != MAP_FAILED && ring->cq != MAP_FAILED && ring->sqes != MAP_FAILED;
}

static void submit_read(struct ring *ring, int fd, const struct workload *w, unsigned slot, char *buffers)
{
    uint32_t tail = *field(ring->sq, ring->p.sq_off.tail);
    uint32_t index = tail & *field(ring->sq, ring->p.sq_off.ring_mask);
    struct io_uring_sqe *sqe = &ring->sqes[index];

    ring->random ^= ring->random << 13;
    ring->random ^= ring->random >> 7;
    ring->random ^= ring->random << 17;
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_READ;
    sqe->fd = fd;
    sqe->addr = (uintptr_t)(buffers + slot * w->block);
    sqe->len = (uint32_t)w->block;
    sqe->off = (uint64_t)((unsigned __int128)ring->random * ring->blocks >> 64) * w->block;
    sqe->user_data = slot;
    *field(ring->sq, ring->p.sq_off.array + index * (uint32_t)sizeof(uint32_t)) = index;
    atomic_store_explicit(field(ring->sq, ring->p.sq_off.tail), tail + 1, memory_order_release);
}

bool uring_reads(int fd, const struct workload *w)
{
    struct ring ring = {.random = mix(w->seed) | 1, .blocks = w->span / w->block};
    uint64_t submitted = 0, finished = 0;
    unsigned fresh = 0;
    char *buffers;

    if (!set_up(&ring, w->depth))
        return false;
    if (posix_memalign((void **)&buffers, 4096, w->block * w->depth) != 0)
        fail("no memory");
    for (; submitted < w->depth && submitted < w->count; submitted++, fresh++)
        submit_read(&ring, fd, w, (unsigned)submitted, buffers);
    while (finished < w->count) {
        uint32_t head = *field(ring.cq, ring.p.cq_off.head);

        if (syscall(SYS_io_uring_enter, ring.fd, fresh, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 && errno != EINTR)
            fail("io_uring_enter: %s", strerror(errno));
        fresh = 0;
        for (; head != atomic_load_explicit(field(ring.cq, ring.p.cq_off.tail), memory_order_acquire); head++) {
            struct io_uring_cqe *cqe = (struct io_uring_cqe *)(void *)(ring.cq + ring.p.cq_off.cqes) +
                                       (head & *field(ring.cq, ring.p.cq_off.ring_mask));

            if (cqe->res != (int)w->block)
                fail("io_uring: a read gave %d", cqe->res);
            finished++;
            if (submitted < w->count) {
                submit_read(&ring, fd, w, (unsigned)cqe->user_data, buffers);
                submitted++;
                fresh++;
            }
        }
        atomic_store_explicit(field(ring.cq, ring.p.cq_off.head), head, memory_order_release);
    }
    free(buffers);
    close(ring.fd);
    return true;
}
