/* Node nbd: names and options here, requests in a plugin that is loaded when somebody names it.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "../../plugins/plugin.h"
#include "node.h"

#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct nbd_state {
    qcow2_io_ops ops;
    void *opaque;
};

/* --- names --- */

static int bad_url(char **error)
{
    return refuse(error, -EINVAL, text_copy("No valid URL specified"));
}

/* Takes "%20" and its like apart, in place. */
static char *decode(char *text)
{
    char *out = text;

    for (const char *at = text; *at != '\0'; at++) {
        if (at[0] == '%' && isxdigit((unsigned char)at[1]) && isxdigit((unsigned char)at[2])) {
            char digits[3] = {at[1], at[2], '\0'};

            *out++ = (char)strtoul(digits, NULL, 16);
            at += 2;
        } else {
            *out++ = *at;
        }
    }
    *out = '\0';
    return text;
}

/* "HOST:PORT", "[ADDRESS]:PORT", "HOST". */
static void add_address(struct string_list *items, const char *address, size_t length)
{
    const char *end = address + length, *port = end;

    while (port > address && *port != ':' && *port != ']') {
        port--;
    }
    if (*port != ':' || port == end) {
        port = end;
    }
    if (*address == '[' && port > address && port[-1] == ']') {
        list_addf(items, "host=%.*s", (int)(port - address - 2), address + 1);
    } else {
        list_addf(items, "host=%.*s", (int)(port - address), address);
    }
    list_addf(items, "port=%.*s", port < end ? (int)(end - port - 1) : 5, port < end ? port + 1 : "10809");
}

/* nbd://HOST[:PORT]/EXPORT, nbd+tcp:, nbd+unix:///EXPORT?socket=PATH */
static int parse_url(const char *url, struct string_list *items, char **error)
{
    bool unix_socket = strncmp(url, "nbd+unix:", 9) == 0;
    const char *rest = strstr(url, "://") + 3, *query = strchr(rest, '?');
    size_t authority = strcspn(rest, "/?");
    const char *path = rest + authority;
    char *export;

    path += *path == '/';
    export = decode(text_format("%.*s", query != NULL ? (int)(query - path) : (int)strlen(path), path));
    if (*export != '\0') {
        list_addf(items, "export=%s", export);
    }
    free(export);
    if (!unix_socket) {
        if (authority == 0 || query != NULL) {
            return bad_url(error);
        }
        add_address(items, rest, authority);
        return 0;
    }
    if (authority > 0 || query == NULL || strncmp(query, "?socket=", 8) != 0) {
        return bad_url(error);
    }
    export = decode(text_copy(query + 8));
    list_addf(items, "path=%s", export);
    free(export);
    return 0;
}

/* nbd:HOST:PORT[:exportname=EXPORT], nbd:unix:PATH[:exportname=EXPORT] */
static int parse_old(const char *name, struct string_list *items, char **error)
{
    const char *mark = strstr(name, ":exportname=");
    char *address = text_format("%.*s", mark != NULL ? (int)(mark - name) : (int)strlen(name), name);
    char *colon = strrchr(address, ':');
    int ret = 0;

    if (mark != NULL && mark[12] != '\0') {
        list_addf(items, "export=%s", mark + 12);
    }
    if (strncmp(address, "unix:", 5) == 0) {
        list_addf(items, "path=%s", address + 5);
    } else if (*address == '\0') {
        ret = refuse(error, -EINVAL, text_copy("NBD server address missing"));
    } else if (colon == NULL || colon == address) {
        ret = refuse(error, -EINVAL, text_format("error parsing address '%s'", address));
    } else {
        add_address(items, address, strlen(address));
    }
    free(address);
    return ret;
}

static int parse_name(const char *filename, struct string_list *items, char **error)
{
    if (strncmp(filename, "nbd:", 4) != 0 && strncmp(filename, "nbd+", 4) != 0) {
        return refuse(error, -EINVAL, text_copy("File name string for NBD must start with 'nbd:'"));
    }
    if (list_value(items, "host") != NULL || list_value(items, "port") != NULL || list_value(items, "path") != NULL) {
        return refuse(error, -EINVAL, text_copy("host/port/path and file names may not be specified at the same time"));
    }
    return strstr(filename, "://") != NULL ? parse_url(filename, items, error)
                                           : parse_old(filename + strcspn(filename, ":") + 1, items, error);
}

/* --- options --- */

static int missing(const char *key, char **error)
{
    return refuse(error, -EINVAL, text_format("Parameter '%s' is missing", key));
}

/* "server.*", which says what "path" or "host" and "port" do. */
static int take_server(struct string_list *items, char **error)
{
    struct string_list server = {NULL, 0};
    const char *type, *unexpected = NULL;
    bool local;
    int ret = 0;

    take_group(items, "server", &server);
    if (server.count == 0) {
        return 0;
    }
    type = list_value(&server, "type");
    local = type != NULL && strcmp(type, "unix") == 0;
    if (type == NULL) {
        ret = missing("type", error);
    } else if (!local && strcmp(type, "inet") != 0) {
        ret = refuse(error, -EINVAL, text_format("Parameter 'type' does not accept value '%s'", type));
    } else if (local && list_value(&server, "path") == NULL) {
        ret = missing("path", error);
    } else if (!local && list_value(&server, "host") == NULL) {
        ret = missing("host", error);
    } else if (!local && list_value(&server, "port") == NULL) {
        ret = missing("port", error);
    }
    for (size_t i = 0; i < server.count && ret == 0; i++) {
        const char *item = server.items[i];

        if (strncmp(item, "type=", 5) == 0) {
            continue;
        }
        if (strncmp(item, "path=", 5) == 0 ? !local
                                           : local || (strncmp(item, "host=", 5) && strncmp(item, "port=", 5))) {
            unexpected = item;
            ret = refuse(error, -EINVAL,
                         text_format("Parameter '%.*s' is unexpected", (int)strcspn(unexpected, "="), unexpected));
        } else {
            list_add(items, item);
        }
    }
    list_free(&server);
    return ret;
}

static int check_address(struct string_list *items, char **error)
{
    bool path = list_value(items, "path") != NULL, host = list_value(items, "host") != NULL;

    if (path && host) {
        return refuse(error, -EINVAL, text_copy("path and host may not be used at the same time"));
    }
    if (!path && !host) {
        return refuse(error, -EINVAL,
                      text_copy(list_value(items, "port") != NULL ? "port may not be used without host"
                                                                  : "NBD server address missing"));
    }
    if (host && list_value(items, "port") == NULL) {
        list_add(items, "port=10809");
    }
    return 0;
}

/* As the stock tools show it. */
static char *shown_name(const struct string_list *options)
{
    const char *path = list_value(options, "path"), *export = list_value(options, "export");
    const char *slash = export != NULL ? "/" : "";

    export = export != NULL ? export : "";
    return path != NULL ? text_format("nbd+unix://%s%s?socket=%s", slash, export, path)
                        : text_format("nbd://%s:%s%s%s", list_value(options, "host"), list_value(options, "port"),
                                      slash, export);
}

/* --- requests --- */

static int nbd_read(struct node *node, void *buffer, size_t bytes, uint64_t offset)
{
    const struct nbd_state *state = node->state;
    int64_t length = state->ops.length(state->opaque);
    struct iovec part = {buffer, bytes};

    if (length >= 0 && offset + bytes > (uint64_t)length) {
        part.iov_len = offset < (uint64_t)length ? (size_t)((uint64_t)length - offset) : 0;
        memset((char *)buffer + part.iov_len, 0, bytes - part.iov_len);
    }
    return part.iov_len > 0 ? state->ops.preadv(state->opaque, &part, 1, offset) : 0;
}

static int nbd_write(struct node *node, const void *buffer, size_t bytes, uint64_t offset)
{
    const struct nbd_state *state = node->state;
    struct iovec part = {(void *)(uintptr_t)buffer, bytes};

    if (state->ops.pwritev == NULL) {
        return -EACCES;
    }
    return state->ops.pwritev(state->opaque, &part, 1, offset);
}

static int nbd_zero(struct node *node, uint64_t bytes, uint64_t offset)
{
    const struct nbd_state *state = node->state;

    return state->ops.write_zeroes(state->opaque, offset, bytes);
}

static int nbd_discard(struct node *node, uint64_t bytes, uint64_t offset)
{
    const struct nbd_state *state = node->state;

    return state->ops.discard(state->opaque, offset, bytes);
}

static int nbd_flush(struct node *node)
{
    const struct nbd_state *state = node->state;

    return state->ops.sync(state->opaque);
}

static int64_t nbd_length(struct node *node)
{
    const struct nbd_state *state = node->state;

    return state->ops.length(state->opaque);
}

static int nbd_status(struct node *node, uint64_t offset, uint64_t length, uint64_t *run, uint32_t *flags)
{
    const struct nbd_state *state = node->state;

    return state->ops.block_status(state->opaque, offset, length, run, flags);
}

/* --- opening --- */

static const struct qcow2_storage_driver *load(char **error)
{
    static void *library;
    qcow2_storage_driver_fn find;

    if (library == NULL) {
        library = dlopen("libqcow2-nbd.so", RTLD_NOW | RTLD_LOCAL);
    }
    find = library != NULL ? (qcow2_storage_driver_fn)(uintptr_t)dlsym(library, QCOW2_STORAGE_DRIVER) : NULL;
    if (find == NULL) {
        const char *why = dlerror();

        *error = text_format("The driver 'nbd' cannot be loaded: %s", why != NULL ? why : "no entry");
        return NULL;
    }
    return find();
}

static int open_nbd(struct node *node, struct string_list *items, char **error)
{
    static const char *const keys[] = {"path", "host", "port", "export", "open-timeout", "reconnect-delay"};
    struct nbd_state *state = memory_or_exit(calloc(1, sizeof(*state)));
    bool read_only = (node->tree->flags & QCOW2_OPEN_READ_ONLY) != 0 || node->ask_read_only;
    const struct qcow2_storage_driver *driver;
    struct qcow2_storage_limits limits = {1, 0};
    struct string_list options = {NULL, 0};
    char *message = NULL;
    int ret = take_server(items, error);

    node->state = state;
    if (ret == 0 && node->tree->recorded) {
        ret = refuse(error, -EPERM, text_copy("The driver 'nbd' is for the user to name, not for an image"));
    }
    ret = ret == 0 ? check_address(items, error) : ret;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        char *value = list_take(items, keys[i]);

        if (value != NULL) {
            list_addf(&options, "%s=%s", keys[i], value);
            free(value);
        }
    }
    driver = ret == 0 ? load(error) : NULL;
    if (ret == 0 && driver == NULL) {
        ret = -ENOENT;
    } else if (ret == 0) {
        ret = driver->open(list_options(&options), read_only, &state->ops, &state->opaque, &limits, &message);
        if (ret < 0) {
            *error = text_copy(message != NULL ? message : strerror(-ret));
        }
        free(message);
    }
    if (ret == 0) {
        node->filename = shown_name(&options);
        node->limits = (struct node_limits){.align = limits.align,
                                            .max_transfer = limits.max_transfer,
                                            .opt_zero = limits.align,
                                            .max_zero = limits.max_transfer,
                                            .opt_discard = limits.align,
                                            .max_discard = limits.max_transfer};
    }
    list_free(&options);
    return ret;
}

static void free_nbd(struct node *node)
{
    struct nbd_state *state = node->state;

    if (state != NULL && state->ops.close != NULL) {
        state->ops.close(state->opaque);
    }
    free(state);
}

const struct node_driver node_nbd = {
    .name = "nbd",
    .protocol = true,
    .parse_filename = parse_name,
    .open = open_nbd,
    .free_state = free_nbd,
    .read = nbd_read,
    .write = nbd_write,
    .zero = nbd_zero,
    .discard = nbd_discard,
    .flush = nbd_flush,
    .length = nbd_length,
    .status = nbd_status,
};
