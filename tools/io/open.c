/* qcow2-io: open, close, reopen.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "io.h"
#include "node.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

static int fail(char **error, int code, const char *text)
{
    *error = text_copy(text);
    return code;
}

/* Fills io.spec: 0 or -errno with *error. */
static int specify(const struct io_open_request *request, char **error)
{
    struct cache_mode cache = {false, false, true};
    int ret = 0;

    if (request->name != NULL) {
        ret = image_from_name(&io.spec, request->name, request->format, request->image_opts, error);
    }
    if (request->cache != NULL) {
        cache_parse(request->cache, &cache);
    }
    image_cache(&io.spec, cache); /* a default; cache.* among the options overrides its parts */
    image_items(&io.spec, &request->options);
    if (ret == 0 && request->discard != NULL && list_value(&io.spec.items, "discard") == NULL) {
        image_discard(&io.spec, request->discard);
    }
    return ret;
}

static bool wants_direct(void)
{
    const char *given = list_value(&io.spec.items, "file.cache.direct");
    bool direct = io.spec.cache.direct;

    given = given != NULL ? given : list_value(&io.spec.items, "cache.direct");
    if (given != NULL) {
        parse_bool(given, &direct);
    }
    return direct;
}

static int refuse_unsupported(const struct io_open_request *request, char **error)
{
    if (request->copy_on_read && request->read_only) {
        return fail(error, -EINVAL, "Can't use copy-on-read on read-only device");
    }
    if (request->aio != NULL && strcmp(request->aio, "native") == 0 && !wants_direct()) {
        return fail(error, -EINVAL,
                    "aio=native was specified, but it requires cache.direct=on, which was not specified.");
    }
    return 0;
}

int io_open(const struct io_open_request *request)
{
    uint64_t flags = 0;
    char *error = NULL;
    int ret;

    if (io.image != NULL) {
        error_report("file open already, try 'help close'");
        return -EBUSY;
    }
    if (request->force_share && list_value(&request->options, "force-share") != NULL) {
        error_report("-U conflicts with image options");
        return -EINVAL;
    }
    flags |= request->read_only ? QCOW2_OPEN_READ_ONLY : 0;
    flags |= request->force_share ? QCOW2_OPEN_FORCE_SHARE : 0;
    ret = specify(request, &error);
    if (ret == 0) {
        ret = refuse_unsupported(request, &error);
    }
    if (request->snapshot && !request->read_only) {
        list_add(&io.spec.options, "snapshot=on");
    }
    if (request->copy_on_read) {
        list_add(&io.spec.options, "copy-on-read=on");
    }
    if (ret == 0) {
        ret = image_open(&io.spec, flags, &io.image, &error);
    }
    if (ret == 0) {
        io.read_only = request->read_only;
        return 0;
    }
    if (request->name != NULL && !request->image_opts) {
        error_report("can't open device %s: %s", request->name, error);
    } else {
        error_report("can't open: %s", error);
    }
    free(error);
    image_spec_free(&io.spec);
    return ret;
}

/* What the host refused to take at the close, as the stock engine puts it. */
static void report_close(int ret)
{
    qcow2_error_detail parts;

    failure_parts(&parts);
    if (io.spec.tree != NULL && strcmp(io.spec.tree->root->driver->name, "qcow2") == 0 &&
        parts.kind != QCOW2_ERROR_MARKED_CORRUPT && parts.kind != QCOW2_ERROR_CORRUPT) {
        error_report("Failed to flush the L2 table cache: %s", strerror(-ret));
        error_report("Failed to flush the refcount block cache: %s", strerror(-ret));
    } else {
        error_report("%s", failure_text());
    }
}

int io_close(void)
{
    int ret;

    io_let_go();
    if (io.image == NULL) {
        return 0;
    }
    ret = qcow2_close(io.image);
    if (ret < 0 && !io.ejected && tell_corruption() == CORRUPTION_NONE) {
        report_close(ret);
    }
    io.image = NULL;
    io.ejected = false;
    forget_corruption();
    image_spec_free(&io.spec);
    return ret;
}

int cmd_close(const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    return io_close();
}

static bool known_mode(const struct io_open_request *request)
{
    static const char *const aio[] = {"threads", "native", "io_uring"};
    struct image_spec scratch = {.name = NULL};
    struct cache_mode cache;
    bool known = true;

    if (request->cache != NULL && !cache_parse(request->cache, &cache)) {
        error_report("Invalid cache option: %s", request->cache);
        return false;
    }
    if (request->discard != NULL) {
        known = image_discard(&scratch, request->discard);
        image_spec_free(&scratch);
        if (!known) {
            error_report("Invalid discard option: %s", request->discard);
            return false;
        }
    }
    for (size_t i = 0; request->aio != NULL && i < 3; i++) {
        known = strcmp(request->aio, aio[i]) == 0;
        if (known) {
            break;
        }
    }
    if (!known) {
        error_report("Invalid aio option: %s", request->aio);
    }
    return known;
}

static bool is_native(const struct io_open_request *request)
{
    return request->aio != NULL && strcmp(request->aio, "native") == 0;
}

bool io_open_option(struct io_open_request *request, int code, const char *argument)
{
    switch (code) {
    case 'C': request->copy_on_read = true; break;
    case 'd': request->discard = argument; break;
    case 'i': request->aio = is_native(request) && strcmp(argument, "threads") == 0 ? "native" : argument; break;
    case 'k': request->aio = "native"; break;
    case 'n': request->cache = "none"; break;
    case 'r': request->read_only = true; break;
    case 's': request->snapshot = true; break;
    case 't': request->cache = argument; break;
    case 'U': request->force_share = true; break;
    default: break;
    }
    return known_mode(request);
}

static int open_arguments(struct io_open_request *request, const struct io_command *command, int argc, char **argv)
{
    int code;

    while ((code = getopt(argc, argv, command->options)) != -1) {
        if (code == '?') {
            return io_usage(command);
        }
        if (code == 'o') {
            split_options(&request->options, optarg, true);
        } else if (!io_open_option(request, code, optarg)) {
            return -EINVAL;
        }
    }
    if (optind < argc - 1) {
        return io_usage(command);
    }
    request->name = argv[optind]; /* NULL at the end */
    return 0;
}

int cmd_open(const struct io_command *command, int argc, char **argv)
{
    struct io_open_request request = {.name = NULL};
    int ret = open_arguments(&request, command, argc, argv);

    if (ret == 0) {
        ret = io_open(&request);
    }
    list_free(&request.options);
    return ret;
}

struct reopen_request {
    int access; /* 'r', 'w' or 0 */
    const char *cache;
    struct string_list options;
};

static int reopen_arguments(struct reopen_request *request, const struct io_command *command, int argc, char **argv)
{
    struct cache_mode cache;
    int code;

    while ((code = getopt(argc, argv, command->options)) != -1) {
        switch (code) {
        case 'c':
            if (!cache_parse(optarg, &cache)) {
                error_report("Invalid cache option: %s", optarg);
                return -EINVAL;
            }
            request->cache = optarg;
            break;
        case 'o': split_options(&request->options, optarg, true); break;
        case 'r':
        case 'w':
            if (request->access != 0) {
                error_report("Only one -r/-w option may be given");
                return -EINVAL;
            }
            request->access = code;
            break;
        default: return io_usage(command);
        }
    }
    if (optind != argc) {
        return io_usage(command);
    }
    if (request->access != 0 && list_value(&request->options, "read-only") != NULL) {
        error_report("Cannot set both -r/-w and 'read-only'");
        return -EINVAL;
    }
    if (request->cache != NULL && (list_value(&request->options, "cache.direct") != NULL ||
                                   list_value(&request->options, "cache.no-flush") != NULL)) {
        error_report("Cannot set both -c and the cache options");
        return -EINVAL;
    }
    return 0;
}

static int reopen(struct reopen_request *request, char **error)
{
    struct reopen_change change = {.cache = io.spec.cache};
    bool read_only = request->access != 0 ? request->access == 'r' : io.read_only;
    int ret = image_reopen_options(&io.spec, io.image, &request->options, &change, error);

    if (ret == 0 && change.read_only && !io.read_only) {
        ret = refuse(error, -EACCES, text_copy("Read-only block node '#block0' cannot support read-write users"));
    }
    if (list_value(&request->options, "read-only") != NULL) {
        read_only = change.read_only;
    }
    if (request->cache != NULL) {
        cache_parse(request->cache, &change.cache);
    }
    if (ret == 0) {
        list_add(&change.options, cache_option(change.cache));
        ret = qcow2_reopen(io.image, read_only ? QCOW2_OPEN_READ_ONLY : 0, list_options(&change.options));
        if (ret < 0) {
            *error = read_only && list_value(&io.spec.options, "copy-on-read") != NULL
                         ? text_copy("Can't set node '#block144' to r/o with copy-on-read enabled")
                         : text_copy(failure_text());
        }
    }
    if (ret == 0) {
        io.read_only = read_only;
        io.spec.cache = change.cache;
    }
    list_free(&change.options);
    return ret;
}

int cmd_reopen(const struct io_command *command, int argc, char **argv)
{
    struct reopen_request request = {.access = 0};
    char *error = NULL;
    int ret = reopen_arguments(&request, command, argc, argv);

    if (ret == 0) {
        ret = reopen(&request, &error);
        if (ret < 0) {
            error_report("%s", error);
        }
    }
    free(error);
    list_free(&request.options);
    return ret;
}
