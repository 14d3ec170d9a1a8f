/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* qcow2-run: runs a program to which images are plain files, by FUSE where that can be and by the shim otherwise. */
#include "run.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qcow2.h"

enum { IMAGES_MAX = 64 };
enum route { ANY, FUSE, PRELOAD };

static const char usage[] =
    "usage: qcow2-run [--read-only] [--via fuse|preload] [--image FILE]... [--quiet] PROGRAM [ARGUMENT]...\n"
    "       qcow2-run --check PROGRAM\n"
    "\n"
    "Runs PROGRAM so that qcow2 images are plain files to it, as long as their disks.\n"
    "\n"
    "  --via fuse     images among the arguments, and those of --image, are mounted over themselves where only\n"
    "                 PROGRAM sees it: every program is served\n"
    "  --via preload  every file whose name ends in .qcow2 is served inside of PROGRAM, by LD_PRELOAD\n"
    "  --read-only    nothing is written\n"
    "  --check        says what in PROGRAM the preload library cannot serve; status 1: only FUSE can\n";

static bool quiet;

void say(const char *format, ...)
{
    va_list arguments;

    if (!quiet) {
        fputs("qcow2-run: ", stderr);
        va_start(arguments, format);
        vfprintf(stderr, format, arguments);
        va_end(arguments);
        fputc('\n', stderr);
    }
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), end_length = strlen(end);

    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

char *find_program(const char *name)
{
    const char *path = getenv("PATH");
    char *copy, *next = NULL, *found = NULL;

    if (strchr(name, '/') != NULL) {
        return access(name, X_OK) == 0 ? strdup(name) : NULL;
    }
    copy = strdup(path != NULL ? path : "/usr/local/bin:/usr/bin:/bin");
    for (char *part = copy != NULL ? strtok_r(copy, ":", &next) : NULL; part != NULL && found == NULL;
         part = strtok_r(NULL, ":", &next)) {
        char candidate[PATH_MAX];
        struct stat status;

        if (snprintf(candidate, sizeof candidate, "%s/%s", part, name) < (int)sizeof candidate &&
            access(candidate, X_OK) == 0 && stat(candidate, &status) == 0 && S_ISREG(status.st_mode)) {
            found = strdup(candidate);
        }
    }
    free(copy);
    return found;
}

/* A file of the same installation, or of the same build. NULL: there is none. */
static char *beside(const char *const places[])
{
    char self[PATH_MAX], path[PATH_MAX + 256];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash;

    if (length <= 0) {
        return NULL;
    }
    self[length] = '\0';
    slash = strrchr(self, '/');
    *(slash != NULL ? slash : self) = '\0';
    for (int i = 0; places[i] != NULL; i++) {
        snprintf(path, sizeof path, places[i][0] == '/' ? "%.0s%s" : "%s/%s", self, places[i]);
        if (access(path, R_OK) == 0) {
            return realpath(path, NULL);
        }
    }
    return NULL;
}

/* FILE, or KEY=FILE as dd has it. */
static const char *file_of(const char *argument)
{
    const char *equals = strchr(argument, '=');

    return access(argument, F_OK) != 0 && equals != NULL ? equals + 1 : argument;
}

/* Adds an image once; false: it is none that is there. */
static bool add_image(char **images, int *count, const char *name)
{
    char *path = realpath(name, NULL);

    if (path == NULL || *count == IMAGES_MAX || qcow2_probe(path) != 1) {
        free(path);
        return false;
    }
    for (int i = 0; i < *count; i++) {
        if (strcmp(images[i], path) == 0) {
            free(path);
            return true;
        }
    }
    images[(*count)++] = path;
    return true;
}

static int run_by_preload(const char *library, bool read_only, char *const command[])
{
    const char *before = getenv("LD_PRELOAD");
    char *value;

    if (library == NULL) {
        say("libqcow2-preload.so is not found");
        return 126;
    }
    if (asprintf(&value, "%s%s%s", library, before != NULL ? ":" : "", before != NULL ? before : "") < 0) {
        return 126;
    }
    setenv("LD_PRELOAD", value, 1);
    if (read_only) {
        setenv("LIBQCOW2_PRELOAD", "*.qcow2,ro", 1);
    }
    execvp(command[0], command);
    say("%s: %s", command[0], strerror(errno));
    return errno == ENOENT ? 127 : 126;
}

static int check(const char *name)
{
    struct finding finding = {.uncovered = 0};
    char *path = find_program(name);
    int result = path != NULL ? check_program(path, true, &finding) : -ENOENT;

    free(path);
    if (result < 0) {
        fprintf(stderr, "qcow2-run: %s: %s\n", name, strerror(-result));
        return 2;
    }
    if (finding.is_static) {
        printf("%s is linked statically, or not for this machine's 64 bits: only FUSE serves it\n", name);
    } else if (finding.is_setuid) {
        printf("%s runs with rights of its own: the dynamic linker loads no preload library into it\n", name);
    } else if (finding.uncovered > 0) {
        printf("%s: the preload library serves it but for what is said above\n", name);
    } else {
        printf("%s: the preload library serves it\n", name);
    }
    return finding.is_static || finding.is_setuid;
}

/* Why the shim is taken; NULL: FUSE is. */
static const char *why_not_fuse(const char *server, char **images, int count, bool missing)
{
    const char *why = fuse_unavailable(server);

    if (why == NULL && missing) {
        why = "an image is yet to be made";
    }
    if (why == NULL && (count == 0 || images[0] == NULL)) {
        why = "no image is among the arguments";
    }
    return why;
}

static int run(enum route route, bool read_only, char **images, int count, bool missing, char *const command[])
{
    char *program = find_program(command[0]);
    struct finding finding = {.uncovered = 0};
    char *server = beside((const char *const[]){"qcow2-fuse", "../fuse/qcow2-fuse", NULL});
    char *library =
        beside((const char *const[]){"../preload/libqcow2-preload.so", PRELOAD_BESIDE, PRELOAD_LIBRARY, NULL});
    const char *why = NULL;

    if (program != NULL) {
        check_program(program, false, &finding);
    }
    if (server == NULL) {
        server = find_program("qcow2-fuse");
    }
    if (route != PRELOAD) {
        why = why_not_fuse(server, images, count, missing && route == ANY);
        if (route == FUSE && why != NULL) {
            say("FUSE cannot be: %s", why);
            return 126;
        }
        route = why == NULL ? FUSE : PRELOAD;
    }
    if (route == FUSE) {
        say("by FUSE, %d image%s mounted where only %s sees it", count, count == 1 ? "" : "s", command[0]);
        return run_by_fuse(server, read_only, images, command);
    }
    say("by the preload library%s%s", why != NULL ? ", because " : "", why != NULL ? why : "");
    if (program != NULL && (finding.is_static || finding.is_setuid)) {
        say("%s %s: it would see the images' own bytes", command[0],
            finding.is_static ? "is linked statically" : "runs with rights of its own");
        return 126;
    }
    return run_by_preload(library, read_only, command);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"check", no_argument, NULL, 'c'},     {"read-only", no_argument, NULL, 'r'},
        {"via", required_argument, NULL, 'v'}, {"image", required_argument, NULL, 'i'},
        {"quiet", no_argument, NULL, 'q'},     {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},   {NULL, 0, NULL, 0},
    };
    bool only_check = false, read_only = false, missing = false;
    char *images[IMAGES_MAX + 1] = {NULL};
    enum route route = ANY;
    int option, count = 0;

    while ((option = getopt_long(argc, argv, "+qh", options, NULL)) != -1) {
        switch (option) {
        case 'c': only_check = true; break;
        case 'r': read_only = true; break;
        case 'q': quiet = true; break;
        case 'i':
            if (!add_image(images, &count, optarg)) {
                say("%s is no qcow2 image", optarg);
                return 126;
            }
            break;
        case 'v':
            route = strcmp(optarg, "fuse") == 0 ? FUSE : strcmp(optarg, "preload") == 0 ? PRELOAD : ANY;
            if (route != ANY) {
                break;
            }
            fputs(usage, stderr);
            return 2;
        case 'h': fputs(usage, stdout); return 0;
        case 'V': printf("qcow2-run %s\n", qcow2_version()); return 0;
        default: fputs(usage, stderr); return 2;
        }
    }
    if (optind == argc) {
        fputs(usage, stderr);
        return 2;
    }
    if (only_check) {
        return check(argv[optind]);
    }
    for (int i = optind + 1; i < argc; i++) {
        const char *name = file_of(argv[i]);

        if (ends_with(name, ".qcow2") && !add_image(images, &count, name) && access(name, F_OK) != 0) {
            missing = true;
        }
    }
    return run(route, read_only, images, count, missing, argv + optind);
}
