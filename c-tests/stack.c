/* The stack that calls need is what the header says, with a chain of any length that is opened.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB 1024u
/* Stated in the header. */
#ifdef __s390x__
#define STACK_BYTES (512 * KIB)
#define LAYER_BYTES (2 * KIB)
#else
#define STACK_BYTES (256 * KIB)
#define LAYER_BYTES (1 * KIB)
#endif
/* The longest chain: an image and 200 below it. */
#define LAYERS 201u
#define PAINT 0xa5

/* The other stated needs, and what the thread itself takes. */
#define OPEN_BYTES (64 * KIB)
#define REQUEST_BYTES (32 * KIB)
#define THREAD_BYTES (4 * KIB)

static qcow2_image *image;
static unsigned char buffer[MIB];

static char path[300];

/* The path of a layer, in `path`. */
static const char *layer(unsigned number)
{
    snprintf(path, sizeof path, "%s.%u", test_path("layer"), number);
    return path;
}

static void compressed(uint64_t offset)
{
    struct iovec all = {buffer, 64 * KIB};

    CHECK_EQ(qcow2_pwritev2(image, &all, 1, offset, QCOW2_REQ_COMPRESSED), 64 * KIB);
}

/* Leaves the top's path in `path`. */
static void make_chain(unsigned layers)
{
    char backing[340];
    const char *options[] = {backing, "backing_fmt=qcow2", NULL};

    CHECK_OK(qcow2_create(layer(0), 2 * MIB, NULL));
    image = test_open(path, 0, NULL);
    memset(buffer, 7, sizeof buffer);
    compressed(0);
    test_fill(image, 64 * KIB, 64 * KIB, 7);
    test_close(image);
    for (unsigned i = 1; i < layers; i++) {
        snprintf(backing, sizeof backing, "backing_file=%s", layer(i - 1));
        CHECK_OK(qcow2_create(layer(i), 2 * MIB, options));
    }
}

static void do_open(void)
{
    image = test_open(path, QCOW2_OPEN_ALLOW_RECORDED, NULL);
}
static void do_read(void)
{
    CHECK_EQ(qcow2_pread(image, buffer, 128 * KIB, 0), 128 * KIB);
    CHECK_FILLED(buffer, 128 * KIB, 7);
    CHECK_EQ(qcow2_pread(image, buffer, MIB, MIB), MIB);
}
static void do_status(void)
{
    qcow2_extent extent = {.struct_size = sizeof extent};

    CHECK_OK(qcow2_block_status(image, 0, 2 * MIB, 0, &extent));
}
static void do_write(void)
{
    CHECK_EQ(qcow2_pwrite(image, buffer, 4096, 70000), 4096);
}
static void do_compressed(void)
{
    compressed(512 * KIB);
}
static void do_zeroes(void)
{
    CHECK_OK(qcow2_write_zeroes(image, 300000, 5000, 0));
}
static void do_discard(void)
{
    CHECK_OK(qcow2_discard(image, 70000, 100000));
}
static void do_stream(void)
{
    CHECK_OK(qcow2_stream(image, 0, 128 * KIB, 0, 0, NULL, NULL));
}
static void do_flush(void)
{
    CHECK_OK(qcow2_flush(image));
}
static void do_snapshot(void)
{
    CHECK_OK(qcow2_snapshot_create(image, "one", NULL));
}
static void do_inactivate(void)
{
    CHECK_OK(qcow2_inactivate(image));
}
static void do_invalidate(void)
{
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;

    CHECK_OK(qcow2_invalidate(image, &params));
}
static void do_reopen(void)
{
    CHECK_OK(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL));
}
static void do_close(void)
{
    CHECK_OK(qcow2_close(image));
}

static const struct step {
    const char *name;
    void (*run)(void);
    unsigned bytes;
} steps[] = {
    {"open", do_open, OPEN_BYTES},
    {"read", do_read, REQUEST_BYTES},
    {"status", do_status, REQUEST_BYTES},
    {"write", do_write, REQUEST_BYTES},
    {"compressed", do_compressed, REQUEST_BYTES},
    {"zeroes", do_zeroes, REQUEST_BYTES},
    {"discard", do_discard, REQUEST_BYTES},
    {"stream", do_stream, REQUEST_BYTES},
    {"flush", do_flush, REQUEST_BYTES},
    {"snapshot", do_snapshot, OPEN_BYTES},
    {"inactivate", do_inactivate, OPEN_BYTES},
    {"invalidate", do_invalidate, OPEN_BYTES},
    {"reopen", do_reopen, OPEN_BYTES},
    {"close", do_close, OPEN_BYTES},
};

static void *run(void *step)
{
    ((const struct step *)step)->run();
    return NULL;
}

/* Bytes of a painted stack that the step has touched. */
static size_t measured(const struct step *step)
{
    unsigned char *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_attr_t attributes;
    pthread_t thread;
    size_t untouched = 0;

    CHECK(stack != MAP_FAILED);
    memset(stack, PAINT, STACK_BYTES);
    CHECK_EQ(pthread_attr_init(&attributes), 0);
    CHECK_EQ(pthread_attr_setstack(&attributes, stack, STACK_BYTES), 0);
    CHECK_EQ(pthread_create(&thread, &attributes, run, (void *)step), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    while (untouched < STACK_BYTES && stack[untouched] == PAINT) {
        untouched++;
    }
    pthread_attr_destroy(&attributes);
    munmap(stack, STACK_BYTES);
    return STACK_BYTES - untouched;
}

static void with_layers(unsigned layers)
{
    make_chain(layers);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        size_t bytes = measured(&steps[i]);

        printf("%u layers, %s: %zu KiB\n", layers, steps[i].name, bytes / KIB);
        CHECK(bytes <= steps[i].bytes + (layers - 1) * LAYER_BYTES + THREAD_BYTES);
        CHECK(steps[i].run != do_open || bytes <= OPEN_BYTES + THREAD_BYTES);
    }
    test_expect_sound(path, true);
    for (unsigned i = 0; i < layers; i++) {
        unlink(layer(i));
    }
}

int main(void)
{
#if defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
    puts("skipped: frames of this build are larger than those of a release");
    return 77;
#endif
    if (test_under_valgrind() && !test_emulated()) {
        test_skip("valgrind has frames and views of its own");
    }
    with_layers(1);
    with_layers(2);
    with_layers(40);
    with_layers(LAYERS);
    return 0;
}
