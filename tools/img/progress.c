/* How far the work is: on stdout with -p, and on stderr when a SIGUSR1 asks.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <signal.h>
#include <string.h>

#include "img.h"

/* Steps of two percent, as in the stock tool. */
#define STEP_PERCENT 2.0

static struct {
    bool shown;
    double last;
    /* Of the work, where one call of the library is a part of it. */
    uint64_t before, total;
} progress;
static volatile sig_atomic_t asked;

static void take_signal(int number)
{
    (void)number;
    asked = 1;
}

void progress_init(bool shown)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    sigemptyset(&action.sa_mask);
    action.sa_handler = take_signal;
    action.sa_flags = SA_RESTART;
    sigaction(SIGUSR1, &action, NULL);
    progress.shown = shown;
    progress.last = -1.0;
}

static void show(double percent)
{
    progress.last = percent;
    if (progress.shown) {
        asked = 0;
        printf("    (%3.2f/100%%)\r", percent);
        fflush(stdout);
    } else if (asked) {
        asked = 0;
        fprintf(stderr, "    (%3.2f/100%%)\n", percent);
    }
}

void progress_part(uint64_t before, uint64_t total)
{
    progress.before = before;
    progress.total = total;
}

int progress_update(void *opaque, uint64_t done, uint64_t total)
{
    double percent;

    (void)opaque;
    if (progress.total) {
        done += progress.before;
        total = progress.total;
    }
    percent = total ? (double)done / (double)total * 100.0 : 100.0;
    if (asked || (percent > progress.last && (percent >= 100.0 || percent - progress.last >= STEP_PERCENT))) {
        show(percent);
    }
    return 0;
}

void progress_print(double percent)
{
    show(percent);
}

void progress_end(void)
{
    if (progress.shown) {
        putchar('\n');
    }
}
