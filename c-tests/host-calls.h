/* System calls of the library, answered by the test: short, interrupted, refused or failing. A program that links
   host-calls.c has its own pwrite, fdatasync and so on, which the library finds before the C library's.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef QCOW2_HOST_CALLS_H
#define QCOW2_HOST_CALLS_H

#include <stdbool.h>
#include <stdint.h>

enum host_call {
    HOST_READ,
    HOST_WRITE,
    HOST_COPY,
    HOST_SYNC,
    HOST_TRUNCATE,
    HOST_FALLOCATE,
    HOST_LOCK,
    HOST_SEEK,
    HOST_CALLS
};

struct host {
    bool on;               /* otherwise every call goes through as it is */
    uint64_t random;       /* state of the sequence that decides */
    unsigned short_one_in; /* transfers that end early; 0: none */
    unsigned eintr_one_in; /* calls that are interrupted; 0: none */
    unsigned short_unit;   /* a short transfer is a multiple of this many bytes */
    int fallocate_errno;   /* what every fallocate answers; 0: it works */
    int fail_kind;         /* calls of this kind are counted; -1: of every kind */
    uint64_t fail_at;      /* the counted call that fails, from 0 */
    int fail_errno;        /* with this; 0: none fails */
    bool fail_on;          /* and all after it */
    bool torn;             /* a failing write leaves its first half behind */
    uint64_t kill_at; /* the process ends instead of the call of this number, from 1, that changes a file; 0: none */
    /* What happened. */
    uint64_t calls[HOST_CALLS], shortened[HOST_CALLS], interrupted[HOST_CALLS];
    uint64_t counted, failed, changes;
    int failed_kind; /* of the first failure */
};

extern struct host host;

#endif
