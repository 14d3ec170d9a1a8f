/* Several threads on one handle, without a lock of their own.
   SPDX-License-Identifier: MIT OR Apache-2.0
   cc threads.c $(pkg-config --cflags --libs qcow2) -pthread -o threads && ./threads disk.qcow2 */
#include <pthread.h>
#include <qcow2.h>
#include <stdio.h>
#include <string.h>

enum { THREADS = 4, BLOCKS = 256, BLOCK_BYTES = 4096 };

struct job {
    qcow2_image *image;
    int number;
    int result; /* 0 or -errno */
    char error[256];
};

static void *run(void *opaque)
{
    struct job *job = opaque;
    char block[BLOCK_BYTES];

    memset(block, 'a' + job->number, sizeof block);
    for (int i = 0; i < BLOCKS && job->result == 0; i++) {
        uint64_t offset = ((uint64_t)i * THREADS + (uint64_t)job->number) * BLOCK_BYTES;
        ssize_t done = qcow2_pwrite(job->image, block, sizeof block, offset);

        if (done < 0) {
            job->result = (int)done;
            /* The text belongs to this thread: take it before the thread ends. */
            snprintf(job->error, sizeof job->error, "%s", qcow2_last_error());
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "disk.qcow2";
    pthread_t threads[THREADS];
    struct job jobs[THREADS];
    qcow2_image *image;
    uint32_t crc = 0;

    if (qcow2_create(path, 64 << 20, NULL) < 0 || qcow2_open(path, 0, NULL, &image) < 0) {
        fprintf(stderr, "%s\n", qcow2_last_error());
        return 1;
    }
    for (int i = 0; i < THREADS; i++) {
        jobs[i] = (struct job){.image = image, .number = i};
        if (pthread_create(&threads[i], NULL, run, &jobs[i]) != 0) {
            return 1;
        }
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        if (jobs[i].result < 0) {
            fprintf(stderr, "thread %d: %s\n", i, jobs[i].error);
        }
    }
    if (qcow2_checksum(image, &crc, NULL, NULL) == 0) {
        printf("contents: %08x\n", crc);
    }
    return qcow2_close(image) < 0;
}
