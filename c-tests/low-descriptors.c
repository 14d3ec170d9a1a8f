/* C20: standard descriptors are closed, and the program prints all the same: by every route an image gets another
   descriptor, and what is printed goes nowhere.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#include <fcntl.h>
#include <sys/stat.h>

struct scene {
    unsigned closed; /* bit N: descriptor N */
    const char *base, *overlay, *data, *named_data;
};

static bool stop;

/* Nothing takes what is printed to a closed one, not even for a moment. */
static void *print(void *opaque)
{
    const struct scene *scene = opaque;

    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        for (int fd = 0; fd < 3; fd++) {
            if (write(fd, "The guest has been started.\n", 28) > 0 && (scene->closed >> fd & 1) != 0) {
                _exit(90);
            }
        }
    }
    return NULL;
}

/* None of the three is anything that was not there. Exits, for there may be nothing to print to. */
static void look(const struct scene *scene, int where)
{
    struct stat found;

    for (int fd = 0; fd < 3; fd++) {
        if ((scene->closed >> fd & 1) != 0 && fstat(fd, &found) == 0) {
            _exit(100 + where);
        }
    }
}

#define GOOD(call)                                                                                                     \
    do {                                                                                                               \
        if ((call) < 0)                                                                                                \
            _exit(__LINE__);                                                                                           \
    } while (0)

static int answer(void *opaque, const qcow2_resolve_request *request, qcow2_resolve_answer *answer)
{
    (void)request;
    answer->fd = *(int *)opaque;
    return 0;
}

static void run(void *opaque)
{
    const struct scene *scene = opaque;
    const char *options[] = {scene->named_data, NULL}, *temporary[] = {"snapshot=on", NULL};
    int fd = open(scene->base, O_RDWR), same = open(scene->base, O_RDONLY);
    qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
    qcow2_image *image;
    pthread_t printer;

    /* What is not closed takes everything. */
    for (int low = 0; low < 3; low++) {
        if (dup2(open("/dev/null", O_RDWR), low) < 0) {
            _exit(1);
        }
    }
    for (int low = 0; low < 3; low++) {
        if ((scene->closed >> low & 1) != 0) {
            close(low);
        }
    }
    for (int extra = 3; extra < 20; extra++) {
        if (extra != fd && extra != same) {
            close(extra);
        }
    }
    look(scene, 0);
    if (pthread_create(&printer, NULL, print, opaque) != 0) {
        _exit(2);
    }
    for (unsigned round = 0; round < 8; round++) {
        GOOD(qcow2_open(scene->overlay, QCOW2_OPEN_ALLOW_RECORDED, NULL, &image));
        look(scene, 1);
        GOOD(qcow2_pwrite(image, "x", 1, round % 16 * 65536));
        GOOD(qcow2_reopen(image, QCOW2_OPEN_READ_ONLY, NULL));
        GOOD(qcow2_reopen(image, 0, NULL));
        look(scene, 2);
        GOOD(qcow2_close(image));
        GOOD(qcow2_open(scene->overlay, QCOW2_OPEN_ALLOW_RECORDED | QCOW2_OPEN_READ_ONLY, NULL, &image));
        GOOD(qcow2_reopen(image, 0, NULL));
        look(scene, 3);
        GOOD(qcow2_commit(image, QCOW2_COMMIT_KEEP, NULL, NULL));
        look(scene, 4);
        GOOD(qcow2_close(image));
        GOOD(qcow2_open_fd(fd, 0, NULL, &image));
        look(scene, 5);
        GOOD(qcow2_close(image));
        params.path = scene->overlay;
        params.resolve = answer;
        params.resolve_opaque = &same;
        GOOD(qcow2_open_with(&params, &image));
        look(scene, 6);
        GOOD(qcow2_close(image));
        GOOD(qcow2_open(scene->data, QCOW2_OPEN_ALLOW_RECORDED, NULL, &image));
        GOOD(qcow2_pwrite(image, "x", 1, round % 16 * 65536));
        look(scene, 7);
        GOOD(qcow2_close(image));
        GOOD(qcow2_create(scene->data, MIB, options));
        look(scene, 8);
        GOOD(qcow2_open(scene->overlay, QCOW2_OPEN_ALLOW_RECORDED, temporary, &image));
        GOOD(qcow2_pwrite(image, "x", 1, round % 16 * 65536));
        look(scene, 9);
        GOOD(qcow2_close(image));
    }
    __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    pthread_join(printer, NULL);
    /* The caller's own may be one of the three. */
    close(0);
    if (dup2(fd, 0) != 0) {
        _exit(3);
    }
    GOOD(qcow2_open_fd(0, 0, NULL, &image));
    close(0);
    if (qcow2_close(image) < 0) {
        _exit(4);
    }
    _exit(0);
}

int main(void)
{
    char data_option[4200];
    struct scene scene = {.base = test_create("base", MIB, NULL)};

    scene.overlay = test_create("overlay", MIB, "backing_file=base", "backing_fmt=qcow2", NULL);
    snprintf(data_option, sizeof data_option, "data_file=%s", test_path("raw"));
    scene.named_data = data_option;
    scene.data = test_create("data", MIB, data_option, NULL);
    for (scene.closed = 0; scene.closed < 8; scene.closed++) {
        pid_t child = fork();

        if (child == 0) {
            run(&scene);
        }
        CHECK_EQ(test_wait(child), 0);
        test_expect_sound(scene.base, false);
        test_expect_sound(scene.overlay, false);
        test_expect_sound(scene.data, false);
    }
    return 0;
}
