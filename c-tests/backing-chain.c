/* A deep chain of images with clusters of several sizes: what a read finds in the layers below is what is there,
   however often it was read before, and after a commit has moved it.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

enum { LAYERS = 6, PAGE = 4096, PAGES = 2048, FULL_PAGES = PAGES + 3 };

static unsigned char shown[FULL_PAGES];
static uint64_t state = 5;

static unsigned any(unsigned below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(state >> 33) % below;
}

static void expect_shown(qcow2_image *image)
{
    for (unsigned i = 0; i < 3 * FULL_PAGES; i++) {
        unsigned page = i < FULL_PAGES ? i : any(FULL_PAGES), first = any(PAGE - 512);

        test_expect(image, (uint64_t)page * PAGE + first, 512, shown[page]);
    }
}

static void fill_pages(qcow2_image *image, unsigned count, unsigned pages, int value)
{
    while (count-- > 0) {
        unsigned page = any(pages);

        test_fill(image, (uint64_t)page * PAGE, PAGE, value);
        shown[page] = (unsigned char)value;
    }
}

static const char *name_of(unsigned layer)
{
    static char name[32];

    snprintf(name, sizeof name, "layer-%u.qcow2", layer);
    return name;
}

/* Layer 0 is the base, which is shorter than the others. */
static void make_layer(unsigned layer, unsigned cluster_bits)
{
    uint64_t pages = layer == 0 ? PAGES - 100 : FULL_PAGES;
    char backing[64], size[32];
    qcow2_image *image;

    snprintf(backing, sizeof backing, "backing_file=layer-%u.qcow2", layer - 1);
    snprintf(size, sizeof size, "cluster_size=%u", 1u << cluster_bits);
    if (layer == 0) {
        test_create(name_of(layer), pages * PAGE, size, NULL);
    } else {
        test_create(name_of(layer), pages * PAGE, size, backing, "backing_fmt=qcow2", NULL);
    }
    image = test_open(test_path(name_of(layer)), QCOW2_OPEN_ALLOW_RECORDED, NULL);
    fill_pages(image, PAGES / 4, (unsigned)pages, (int)layer + 1);
    test_close(image);
}

/* What the image and the layers between show goes into the layer `depth` below it, and nothing else changes. */
static void commit_over_layers(qcow2_image *top, uint32_t depth)
{
    qcow2_image *layer;

    CHECK_OK(qcow2_commit_to(top, depth, 0, NULL, NULL));
    expect_shown(top);
    layer = test_open(test_path(name_of(LAYERS - 1 - depth)),
                      QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_FORCE_SHARE | QCOW2_OPEN_ALLOW_RECORDED, NULL);
    CHECK_EQ(qcow2_length(layer), (int64_t)FULL_PAGES * PAGE);
    expect_shown(layer);
    test_close(layer);
}

/* `bits` of the clusters of each layer. */
static void a_chain_of(const unsigned *bits)
{
    qcow2_image *top;

    memset(shown, 0, sizeof shown);
    for (unsigned layer = 0; layer < LAYERS; layer++) {
        make_layer(layer, bits[layer]);
    }
    top = test_open(test_path(name_of(LAYERS - 1)), QCOW2_OPEN_ALLOW_RECORDED, NULL);
    expect_shown(top);
    /* What is in the image itself comes before what was found below. */
    fill_pages(top, PAGES / 8, FULL_PAGES, 100);
    expect_shown(top);
    CHECK_ERROR(qcow2_commit_to(top, 0, 0, NULL, NULL), EINVAL);
    CHECK_ERROR(qcow2_commit_to(top, LAYERS, 0, NULL, NULL), EINVAL);
    for (uint32_t depth = LAYERS - 1; depth > 1; depth--) {
        commit_over_layers(top, depth);
    }
    /* What was found in a layer far below is now in the nearest one. */
    CHECK_OK(qcow2_commit(top, 0, NULL, NULL));
    expect_shown(top);
    CHECK_OK(qcow2_truncate(top, (uint64_t)(FULL_PAGES - 1) * PAGE, QCOW2_PREALLOC_OFF));
    CHECK_OK(qcow2_truncate(top, (uint64_t)FULL_PAGES * PAGE, QCOW2_PREALLOC_OFF));
    shown[FULL_PAGES - 1] = 0;
    fill_pages(top, 10, FULL_PAGES, 101);
    CHECK_OK(qcow2_commit(top, QCOW2_COMMIT_KEEP, NULL, NULL));
    expect_shown(top);
    test_close(top);
    test_expect_sound(test_path(name_of(LAYERS - 1)), false);
    test_expect_sound(test_path(name_of(LAYERS - 2)), false);
}

/* More clusters than are remembered one by one: those of one half of the disk never answer for the other half. */
static void a_long_chain_of_small_clusters(void)
{
    static const char *const names[] = {"far-0.qcow2", "far-1.qcow2", "far-2.qcow2"};
    const uint64_t half = 32 * MIB;
    qcow2_image *image;

    for (unsigned layer = 0; layer < 3; layer++) {
        char backing[64];

        snprintf(backing, sizeof backing, "backing_file=%s", names[layer == 0 ? 0 : layer - 1]);
        test_create(names[layer], 2 * half, "cluster_size=512", layer ? backing : NULL, "backing_fmt=qcow2", NULL);
        image = test_open(test_path(names[layer]), QCOW2_OPEN_ALLOW_RECORDED, NULL);
        if (layer < 2) {
            test_fill(image, layer * half, MIB / 4, (int)layer + 1);
        }
        test_close(image);
    }
    image = test_open(test_path(names[2]), QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_READ_ONLY, NULL);
    for (unsigned round = 0; round < 2000; round++) {
        uint64_t at = any(MIB / 4 / 512) * 512ull;
        bool far = any(2);

        test_expect(image, at + (far ? half : 0), 512, far ? 2 : 1);
    }
    test_close(image);
}

int main(void)
{
    a_long_chain_of_small_clusters();
    a_chain_of((const unsigned[LAYERS]){16, 16, 16, 16, 16, 16});
    a_chain_of((const unsigned[LAYERS]){12, 12, 12, 12, 12, 12});
    a_chain_of((const unsigned[LAYERS]){14, 16, 12, 13, 16, 12});
    a_chain_of((const unsigned[LAYERS]){9, 21, 16, 12, 14, 16});
    return 0;
}
