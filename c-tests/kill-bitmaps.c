/* SIGKILL at a random moment of writers of an image with dirty bitmaps, while bitmaps are handed over, merged and
   stored. Whatever bitmap is believed afterwards calls no granule clean that has changed: by us, and by the stock
   tools where they are installed. A disabled bitmap keeps every byte.

   QCOW2_TEST_KILLS sets how often (10); QCOW2_TEST_SEED the first seed.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

enum { WRITERS = 3, SECTOR = 512, MAX_RUN = 24, SECTORS_EACH = 1024, SECTORS = WRITERS * SECTORS_EACH };
#define DISK_BYTES ((uint64_t)SECTORS * SECTOR)
/* What the disk holds before anybody tracks it. */
#define FIRST_ROUND 1u

/* What the child has done, in memory that survives it. A sector holds the round of the last write to it; rounds only
   grow. */
struct ledger {
    _Atomic uint32_t begun[SECTORS];           /* set before a write */
    _Atomic uint32_t at_rotation[2][SECTORS]; /* `begun` after the rotation of an even or odd number had returned */
    _Atomic uint32_t round[WRITERS];
    _Atomic unsigned rotations, writes, failures;
};

struct session {
    qcow2_image *image;
    struct ledger *ledger;
    pthread_rwlock_t pause; /* held by a writer for a write */
    _Atomic unsigned running;
    unsigned budget;
};

struct writer {
    struct session *session;
    unsigned number;
    uint64_t seed;
};

static void sleep_microseconds(uint64_t count)
{
    struct timespec time = {(time_t)(count / 1000000), (long)(count % 1000000) * 1000};

    nanosleep(&time, NULL);
}

static void stamp(unsigned char *sector, uint32_t value, uint64_t number)
{
    uint64_t words[2] = {value, value == 0 ? 0 : number + 1};

    for (unsigned at = 0; at < SECTOR; at += sizeof words) {
        memcpy(sector + at, words, sizeof words);
    }
}

static int change(qcow2_image *image, uint64_t kind, unsigned char *buffer, unsigned first, unsigned count)
{
    switch (kind) {
    case 0:
        return qcow2_write_zeroes(image, (uint64_t)first * SECTOR, count * SECTOR, 0);
    case 1:
        return qcow2_write_zeroes(image, (uint64_t)first * SECTOR, count * SECTOR, QCOW2_REQ_UNMAP);
    case 2:
        return qcow2_discard(image, (uint64_t)first * SECTOR, count * SECTOR);
    default:
        return qcow2_pwrite(image, buffer, count * SECTOR, (uint64_t)first * SECTOR) < 0 ? -1 : 0;
    }
}

static void *write_some(void *opaque)
{
    struct writer *writer = opaque;
    struct session *session = writer->session;
    struct ledger *ledger = session->ledger;
    unsigned char buffer[MAX_RUN * SECTOR];

    for (unsigned done = 0; done < session->budget; done++) {
        uint32_t round = 1 + atomic_fetch_add(&ledger->round[writer->number], 1);
        unsigned count = 1 + (unsigned)(test_random(&writer->seed) % MAX_RUN);
        unsigned first = writer->number * SECTORS_EACH +
                         (unsigned)(test_random(&writer->seed) % (SECTORS_EACH - count + 1));

        pthread_rwlock_rdlock(&session->pause);
        for (unsigned i = 0; i < count; i++) {
            atomic_store(&ledger->begun[first + i], round);
            stamp(buffer + i * SECTOR, round, first + i);
        }
        if (change(session->image, test_random(&writer->seed) % 16, buffer, first, count) < 0) {
            atomic_fetch_add(&ledger->failures, 1);
        }
        atomic_fetch_add(&ledger->writes, 1);
        pthread_rwlock_unlock(&session->pause);
        if (test_random(&writer->seed) % 4 == 0) {
            sleep_microseconds(test_random(&writer->seed) % 3000);
        }
    }
    atomic_fetch_sub(&session->running, 1);
    return NULL;
}

/* "live" begins anew; what it was before the last time goes into "rest". */
static void rotate(struct session *session)
{
    struct ledger *ledger = session->ledger;
    unsigned number = 1 + atomic_load(&ledger->rotations);
    char name[32], old[32];

    snprintf(name, sizeof name, "part %u", number);
    snprintf(old, sizeof old, "part %u", number - 1);
    CHECK_OK(qcow2_bitmap_rotate(session->image, "live", name));
    for (unsigned i = 0; i < SECTORS; i++) {
        atomic_store(&ledger->at_rotation[number % 2][i], atomic_load(&ledger->begun[i]));
    }
    atomic_store(&ledger->rotations, number);
    if (number > 1) {
        CHECK_OK(qcow2_bitmap_merge(session->image, "rest", NULL, old));
        CHECK_OK(qcow2_bitmap_remove(session->image, old));
    }
}

/* Opens, has writers write beside work on the bitmaps, closes. */
static void one_session(const char *path, const char *option, struct ledger *ledger, uint64_t *state)
{
    struct session session = {.ledger = ledger, .budget = (unsigned)(test_random(state) % 60)};
    struct writer writers[WRITERS];
    pthread_t threads[WRITERS];

    session.image = test_open(path, 0, option, NULL);
    pthread_rwlock_init(&session.pause, NULL);
    atomic_store(&session.running, WRITERS);
    for (unsigned t = 0; t < WRITERS; t++) {
        writers[t] = (struct writer){&session, t, test_random(state)};
        CHECK_EQ(pthread_create(&threads[t], NULL, write_some, &writers[t]), 0);
    }
    while (atomic_load(&session.running) > 0) {
        switch (test_random(state) % 5) {
        case 0:
            rotate(&session);
            break;
        case 1: /* a time in which they are to be believed */
            pthread_rwlock_wrlock(&session.pause);
            CHECK_OK(qcow2_bitmap_sync(session.image));
            sleep_microseconds(test_random(state) % 20000);
            pthread_rwlock_unlock(&session.pause);
            break;
        case 2:
            CHECK_OK(qcow2_bitmap_sync(session.image));
            break;
        case 3:
            CHECK_OK(qcow2_flush(session.image));
            break;
        default:
            sleep_microseconds(test_random(state) % 8000);
        }
    }
    for (unsigned t = 0; t < WRITERS; t++) {
        pthread_join(threads[t], NULL);
    }
    pthread_rwlock_destroy(&session.pause);
    if (test_random(state) % 4 == 0) {
        CHECK_OK(qcow2_inactivate(session.image));
        sleep_microseconds(test_random(state) % 4000);
        CHECK_OK(qcow2_invalidate(session.image, NULL));
    }
    test_close(session.image);
    sleep_microseconds(test_random(state) % 4000);
}

/* Sets in `dirty` the sectors of what a bitmap calls dirty. */
static void add_dirty(qcow2_image *image, const char *name, bool *dirty)
{
    uint64_t at = 0, length;
    int found;

    while ((found = qcow2_bitmap_next_dirty(image, name, at, &at, &length)) == 1) {
        memset(dirty + at / SECTOR, true, length / SECTOR);
        at += length;
    }
    CHECK_EQ(found, 0);
}

/* As `add_dirty`, by what the stock server tells of the file; false: there is no such program. */
static bool add_shown(const char *path, const char *name, bool *dirty)
{
    char command[3000], line[300], words[20];
    const char *socket = test_path("socket");
    unsigned long long at, length;
    int number, lines = 0;
    FILE *answer;

    if (system("qemu-nbd --version >/dev/null 2>&1 && nbdinfo --version >/dev/null 2>&1") != 0) {
        return false;
    }
    remove(socket);
    snprintf(command, sizeof command,
             "qemu-nbd -r -f qcow2 -A -B '%s' -k '%s' '%s' & i=0; while [ ! -S '%s' ] && [ $i -lt 400 ]; do sleep "
             "0.05; i=$((i+1)); done; timeout 60 nbdinfo --map='qemu:dirty-bitmap:%s' 'nbd+unix:///?socket=%s'; wait",
             name, socket, path, socket, name, socket);
    answer = popen(command, "r");
    CHECK(answer != NULL);
    while (fgets(line, sizeof line, answer)) {
        if (sscanf(line, "%llu %llu %d %19s", &at, &length, &number, words) == 4) {
            lines++;
            memset(dirty + at / SECTOR, strcmp(words, "dirty") == 0, (length + SECTOR - 1) / SECTOR);
        }
    }
    CHECK_EQ(pclose(answer), 0);
    CHECK(lines > 0);
    return true;
}

static void expect_covered(const bool *dirty, const bool *changed, const char *what, uint64_t seed)
{
    for (unsigned i = 0; i < SECTORS; i++) {
        if (changed[i] && !dirty[i]) {
            test_fail(__FILE__, __LINE__, "seed %" PRIu64 ": sector %u has changed, and %s calls it clean", seed, i,
                      what);
        }
    }
}

/* The sectors that hold something else than before all bitmaps; and those that hold what was written after the last
   rotation had returned. */
static void find_changed(qcow2_image *image, struct ledger *ledger, bool *ever, bool *lately)
{
    unsigned char *disk = malloc(DISK_BYTES), expected[SECTOR];
    unsigned rotations = atomic_load(&ledger->rotations);

    CHECK(disk != NULL);
    CHECK_OK(qcow2_pread(image, disk, DISK_BYTES, 0));
    for (unsigned i = 0; i < SECTORS; i++) {
        uint64_t round;

        memcpy(&round, disk + (size_t)i * SECTOR, sizeof round);
        stamp(expected, (uint32_t)round, i);
        CHECK(memcmp(disk + (size_t)i * SECTOR, expected, SECTOR) == 0);
        ever[i] = round != FIRST_ROUND;
        lately[i] = round > atomic_load(&ledger->at_rotation[rotations % 2][i]);
    }
    free(disk);
}

/* What is believed covers what has changed. Answers whether anything was. */
static bool verify(const char *path, struct ledger *ledger, bool ask_stock, uint64_t seed)
{
    static bool ever[SECTORS], lately[SECTORS], all[SECTORS], parts[SECTORS], steady[SECTORS], shown[SECTORS];
    qcow2_image *image = test_open(path, QCOW2_OPEN_READ_ONLY, NULL);
    qcow2_bitmap_info bitmap = {.struct_size = sizeof bitmap};
    bool live = false, steadily = false;
    unsigned number;

    memset(all, 0, sizeof all);
    memset(parts, 0, sizeof parts);
    memset(steady, 0, sizeof steady);
    memset(shown, 0, sizeof shown);
    find_changed(image, ledger, ever, lately);
    for (size_t index = 0; qcow2_bitmap_list(image, index, &bitmap) == 0; index++) {
        if (bitmap.flags & QCOW2_BITMAP_IN_USE) {
            CHECK(strcmp(bitmap.name, "live") == 0 || strcmp(bitmap.name, "steady") == 0);
        } else if (strcmp(bitmap.name, "steady") == 0) {
            steadily = true;
            add_dirty(image, "steady", steady);
        } else if (strcmp(bitmap.name, "disabled") == 0) {
            CHECK_EQ(bitmap.dirty_bytes, (uint64_t)5 * SECTOR);
        } else {
            live |= strcmp(bitmap.name, "live") == 0;
            add_dirty(image, bitmap.name, all);
            if (strcmp(bitmap.name, "live") == 0 ||
                (sscanf(bitmap.name, "part %u", &number) == 1 && number > atomic_load(&ledger->rotations))) {
                add_dirty(image, bitmap.name, parts);
            }
        }
    }
    test_close(image);
    CHECK_EQ(live, steadily);
    if (live) {
        expect_covered(all, ever, "the union of all parts", seed);
        expect_covered(parts, lately, "what came after the last rotation", seed);
        expect_covered(steady, ever, "'steady'", seed);
        if (ask_stock && add_shown(path, "steady", shown)) {
            CHECK(memcmp(shown, steady, sizeof shown) == 0);
        }
    }
    return live;
}

static const char *new_disk(uint64_t seed, struct ledger *ledger)
{
    static const char *const clusters[] = {"cluster_size=64k", "cluster_size=4k", "cluster_size=512"};
    const char *path = test_create("disk.qcow2", DISK_BYTES, seed % 2 == 0 ? "lazy_refcounts=on" : "lazy_refcounts=off",
                                   clusters[seed / 4 % 3], NULL);
    qcow2_image *image = test_open(path, 0, NULL);
    unsigned char sector[SECTOR];

    CHECK_OK(qcow2_bitmap_add(image, "disabled", SECTOR, 0));
    CHECK_OK(qcow2_write_zeroes(image, SECTOR, 5 * SECTOR, 0));
    CHECK_OK(qcow2_bitmap_disable(image, "disabled"));
    for (unsigned i = 0; i < SECTORS; i++) {
        stamp(sector, FIRST_ROUND, i);
        CHECK_OK(qcow2_pwrite(image, sector, SECTOR, (uint64_t)i * SECTOR));
    }
    CHECK_OK(qcow2_bitmap_add(image, "live", SECTOR, 0));
    CHECK_OK(qcow2_bitmap_add(image, "steady", 4096, 0));
    CHECK_OK(qcow2_bitmap_add(image, "rest", 1024, QCOW2_BITMAP_DISABLED));
    test_close(image);
    for (unsigned t = 0; t < WRITERS; t++) {
        atomic_store(&ledger->round[t], FIRST_ROUND);
    }
    for (unsigned i = 0; i < SECTORS; i++) {
        atomic_store(&ledger->begun[i], FIRST_ROUND);
        atomic_store(&ledger->at_rotation[0][i], FIRST_ROUND);
    }
    return path;
}

/* It goes on: what nobody may believe is recovered, and then stored with all that comes after. */
static void go_on(const char *path, struct ledger *ledger, uint64_t seed)
{
    qcow2_image *image = test_open(path, 0, NULL);
    qcow2_bitmap_info bitmap = {.struct_size = sizeof bitmap};

    for (size_t index = 0; qcow2_bitmap_list(image, index, &bitmap) == 0; index++) {
        if (bitmap.flags & QCOW2_BITMAP_IN_USE) {
            char name[64];

            snprintf(name, sizeof name, "%s", bitmap.name);
            CHECK_OK(qcow2_bitmap_recover(image, name));
        }
    }
    test_fill(image, DISK_BYTES / 2, SECTOR, 0);
    test_close(image);
    CHECK(verify(path, ledger, false, seed));
    test_expect_sound(path, true);
}

/* Answers whether the bitmaps were to be believed. */
static bool one_kill(uint64_t seed, uint64_t *writes)
{
    struct ledger *ledger = mmap(NULL, sizeof *ledger, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    bool through = seed / 2 % 2 == 0, believed;
    uint64_t state = seed;
    const char *path;
    pid_t child;

    CHECK(ledger != MAP_FAILED);
    path = new_disk(seed, ledger);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(120);
        for (;;) {
            one_session(path, through ? "metadata-writethrough=on" : "metadata-writethrough=off", ledger, &state);
        }
    }
    while (atomic_load(&ledger->writes) < 8 && waitpid(child, NULL, WNOHANG) == 0) {
        sleep_microseconds(1000);
    }
    sleep_microseconds(test_random(&state) % 200000);
    CHECK_EQ(kill(child, SIGKILL), 0);
    CHECK(WIFSIGNALED(test_wait(child)));
    CHECK_EQ(atomic_load(&ledger->failures), 0);
    *writes += atomic_load(&ledger->writes);
    believed = verify(path, ledger, seed % 4 == 0, seed);
    go_on(path, ledger, seed);
    munmap(ledger, sizeof *ledger);
    return believed;
}

/* Opened for writing, and killed before it has written: every byte of the file stays. */
static void nothing_written(void)
{
    struct ledger *ledger = mmap(NULL, sizeof *ledger, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const char *path;
    uint64_t digest;
    pid_t child;

    CHECK(ledger != MAP_FAILED);
    path = new_disk(1, ledger);
    digest = test_digest(path);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        qcow2_image *image = test_open(path, 0, NULL);
        qcow2_bitmap_info bitmap = {.struct_size = sizeof bitmap};
        unsigned char sector[SECTOR];

        CHECK_OK(qcow2_pread(image, sector, SECTOR, 0));
        CHECK_OK(qcow2_bitmap_list(image, 0, &bitmap));
        CHECK_OK(qcow2_bitmap_sync(image));
        CHECK_OK(qcow2_flush(image));
        raise(SIGKILL);
    }
    CHECK(WIFSIGNALED(test_wait(child)));
    CHECK_EQ(test_digest(path), digest);
    munmap(ledger, sizeof *ledger);
}

int main(void)
{
    uint64_t kills = test_setting("QCOW2_TEST_KILLS", test_under_valgrind() ? 1 : 10), writes = 0;
    uint64_t seed = test_setting("QCOW2_TEST_SEED", 1), believed = 0;

    nothing_written();
    for (uint64_t i = 0; i < kills; i++) {
        believed += one_kill(seed + i, &writes);
    }
    printf("%" PRIu64 " kills, %" PRIu64 " with bitmaps to be believed, %" PRIu64 " completed writes\n", kills, believed,
           writes);
    /* A test that never finds any believes anything. */
    CHECK(kills < 30 || (believed > 0 && believed < kills));
    return 0;
}
