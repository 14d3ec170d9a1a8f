/* Copy an image into a new, compressed one with a bar that says how long it still takes; Ctrl-C stops it.
   SPDX-License-Identifier: MIT OR Apache-2.0
   cc progress.c $(pkg-config --cflags --libs qcow2) -o progress && ./progress disk.qcow2 copy.qcow2 */
#include <errno.h>
#include <qcow2.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WIDTH = 40 };

static volatile sig_atomic_t stopped;

static void on_interrupt(int number)
{
    (void)number;
    stopped = 1;
}

struct bar {
    const char *what;
    time_t began;
    int shown; /* per cent */
};

/* Called on this thread, often: it draws when there is something new. Not 0: the call ends with -ECANCELED. */
static int draw(void *opaque, uint64_t done, uint64_t total)
{
    struct bar *bar = opaque;
    int percent = total > 0 ? (int)((double)done / (double)total * 100) : 100;
    double spent = difftime(time(NULL), bar->began);

    if (percent != bar->shown) {
        bar->shown = percent;
        fprintf(stderr, "\r%s [%.*s%*s] %3d%%", bar->what, percent * WIDTH / 100,
                "########################################", WIDTH - percent * WIDTH / 100, "", percent);
        if (percent > 0 && percent < 100 && spent >= 2) {
            fprintf(stderr, " %4.0f s left", spent / percent * (100 - percent));
        }
        fputs(percent == 100 ? "\n" : "", stderr);
    }
    return stopped;
}

static int copy(qcow2_image *source, qcow2_image *target)
{
    qcow2_convert_params params = {.struct_size = sizeof params, .workers = 4};
    qcow2_check_result found = {.struct_size = sizeof found};
    struct bar copying = {"copy ", time(NULL), -1}, checking = {"check", 0, -1};
    int result;

    params.flags = QCOW2_CONVERT_COMPRESSED | QCOW2_CONVERT_TARGET_ZERO;
    result = qcow2_convert(source, target, &params, draw, &copying);
    if (result < 0) {
        return result;
    }
    checking.began = time(NULL);
    result = qcow2_check(target, 0, &found, NULL, NULL, draw, &checking);
    if (result == 0) {
        printf("%llu of %llu clusters allocated, %llu compressed, %llu errors\n",
               (unsigned long long)found.allocated_clusters, (unsigned long long)found.total_clusters,
               (unsigned long long)found.compressed_clusters, (unsigned long long)found.corruptions);
    }
    return result;
}

int main(int argc, char **argv)
{
    qcow2_image *source, *target;
    int result;

    if (argc != 3) {
        fprintf(stderr, "usage: progress SOURCE NEW-IMAGE\n");
        return 2;
    }
    signal(SIGINT, on_interrupt);
    result = qcow2_open(argv[1], QCOW2_OPEN_READ_ONLY, NULL, &source);
    if (result == 0) {
        result = qcow2_create(argv[2], (uint64_t)qcow2_length(source), NULL);
        if (result == 0 && (result = qcow2_open(argv[2], 0, NULL, &target)) == 0) {
            int closed;

            result = copy(source, target);
            closed = qcow2_close(target);
            result = result < 0 ? result : closed;
        }
        qcow2_close(source);
    }
    if (result < 0) {
        fprintf(stderr, "\n%s\n", result == -ECANCELED ? "stopped" : qcow2_last_error());
        if (result == -ECANCELED) {
            unlink(argv[2]);
        }
    }
    return result < 0;
}
