/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* qcow2-run: runs a program to which images are plain files, by FUSE where that can be and by the shim otherwise. */
#include "run.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qcow2.h"

enum route { ANY, FUSE, PRELOAD };

static const char usage[] =
    "usage: qcow2-run [--read-only] [--via fuse|preload] [--image FILE]... [--quiet] PROGRAM [ARGUMENT]...\n"
    "       qcow2-run --check PROGRAM\n"
    "\n"
    "Runs PROGRAM so that qcow2 images are plain files to it, as long as their disks.\n"
    "\n"
    "  --via fuse     images among the arguments, and those of --image, are mounted over themselves where only\n"
    "                 PROGRAM sees it: every program is served\n"
    "  --via preload  these images, and every file whose name ends in .qcow2, are served inside of PROGRAM, by\n"
    "                 LD_PRELOAD\n"
    "  --image        a file that is an image, whatever it is called\n"
    "  --read-only    nothing is written\n"
    "  --check        says what in PROGRAM the preload library cannot serve; status 1: only FUSE can\n";

static bool quiet;

static void print(const char *format, va_list arguments)
{
    fputs("qcow2-run: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

void say(const char *format, ...)
{
    va_list arguments;

    if (!quiet) {
        va_start(arguments, format);
        print(format, arguments);
        va_end(arguments);
    }
}

void complain(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    print(format, arguments);
    va_end(arguments);
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

/* One line for each: which files are disks to the program. */
static void say_served(const struct images *images, bool read_only)
{
    for (int i = 0; i < images->count; i++) {
        const struct image *image = &images->list[i];

        say("%s%s%s%s%s", image->name, strcmp(image->name, image->path) != 0 ? ", that is " : "",
            strcmp(image->name, image->path) != 0 ? image->path : "", read_only ? ", read-only" : "",
            image->guessed ? ", an image by its contents: files that it names are not opened (--image: they are)" : "");
    }
}

static int run_by_preload(const char *library, bool read_only, const struct images *images, char *const command[])
{
    const char *before = getenv("LD_PRELOAD");
    char *value, *rules;

    if (library == NULL) {
        complain("libqcow2-preload.so is not found");
        return 126;
    }
    rules = preload_rules(images, getenv("LIBQCOW2_PRELOAD"), read_only);
    if (rules == NULL ||
        asprintf(&value, "%s%s%s", library, before != NULL ? ":" : "", before != NULL ? before : "") < 0) {
        return 126;
    }
    say_served(images, read_only);
    say("and what is opened as one of %s", rules);
    setenv("LD_PRELOAD", value, 1);
    setenv("LIBQCOW2_PRELOAD", rules, 1);
    execvp(command[0], command);
    complain("%s: %s", command[0], strerror(errno));
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
static const char *why_not_fuse(const char *server, const struct images *images, enum route route)
{
    const char *why = fuse_unavailable(server);

    if (why == NULL && images->missing && route == ANY) {
        why = "an image is yet to be made";
    }
    if (why == NULL && images->inherited) {
        why = "the program is started with a descriptor of an image";
    }
    if (why == NULL && images->count == 0) {
        why = "no image is among the arguments";
    }
    return why;
}

static int run(enum route route, bool read_only, struct images *images, char *const command[])
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
        why = why_not_fuse(server, images, route);
        if (route == FUSE && why != NULL) {
            complain("FUSE cannot be: %s", why);
            return 126;
        }
        route = why == NULL ? FUSE : PRELOAD;
    }
    if (route == FUSE) {
        images_merge(images);
        say("by FUSE, where only %s sees it:", command[0]);
        say_served(images, read_only);
        return run_by_fuse(server, read_only, images, command);
    }
    say("by the preload library%s%s:", why != NULL ? ", because " : "", why != NULL ? why : "");
    if (program != NULL && (finding.is_static || finding.is_setuid)) {
        complain("%s %s: it would see the images' own bytes", command[0],
                 finding.is_static ? "is linked statically" : "runs with rights of its own");
        return 126;
    }
    return run_by_preload(library, read_only, images, command);
}

static bool set_route(const char *name, enum route *route)
{
    *route = strcmp(name, "fuse") == 0 ? FUSE : strcmp(name, "preload") == 0 ? PRELOAD : ANY;
    return *route != ANY;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"check", no_argument, NULL, 'c'},     {"read-only", no_argument, NULL, 'r'},
        {"via", required_argument, NULL, 'v'}, {"image", required_argument, NULL, 'i'},
        {"quiet", no_argument, NULL, 'q'},     {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},   {NULL, 0, NULL, 0},
    };
    bool only_check = false, read_only = false, wrong = false;
    struct images images = {NULL, 0, false, false};
    enum route route = ANY;
    int option, result = 0;

    /* Ignored, it would have the kernel forget how children end. */
    signal(SIGCHLD, SIG_DFL);
    while (!wrong && result == 0 && (option = getopt_long(argc, argv, "+qh", options, NULL)) != -1) {
        switch (option) {
        case 'c': only_check = true; break;
        case 'r': read_only = true; break;
        case 'q': quiet = true; break;
        case 'i': result = images_add_named(&images, optarg); break;
        case 'v': wrong = !set_route(optarg, &route); break;
        case 'h': fputs(usage, stdout); return 0;
        case 'V': printf("qcow2-run %s\n", qcow2_version()); return 0;
        default: wrong = true; break;
        }
    }
    if (result == 0 && (wrong || optind == argc)) {
        fputs(usage, stderr);
        return 2;
    }
    if (result == 0 && only_check) {
        return check(argv[optind]);
    }
    if (result == 0) {
        result = images_add_arguments(&images, argv + optind + 1);
    }
    if (result == 0) {
        result = images_add_descriptors(&images);
    }
    return result != 0 ? result : run(route, read_only, &images, argv + optind);
}
