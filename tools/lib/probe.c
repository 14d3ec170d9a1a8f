/* What format a file looks like.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "node.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define PROBE_BYTES 2048

struct mark {
    const char *format;
    size_t offset;
    const char *bytes;
    size_t count;
};

#define MARK(format, offset, text)                                                                                     \
    {                                                                                                                  \
        format, offset, text, sizeof(text) - 1                                                                         \
    }

static const struct mark marks[] = {
    MARK("qcow", 0, "QFI\xfb\0\0\0\1"),
    MARK("qed", 0, "QED\0"),
    MARK("vmdk", 0, "KDMV"),
    MARK("vmdk", 0, "COWD"),
    MARK("vdi", 0x40, "\x7f\x10\xda\xbe"),
    MARK("vpc", 0, "conectix"),
    MARK("vhdx", 0, "vhdxfile"),
    MARK("parallels", 0, "WithoutFreeSpace\2\0\0\0"),
    MARK("parallels", 0, "WithouFreSpacExt\2\0\0\0"),
    MARK("luks", 0, "LUKS\xba\xbe\0\1"),
    MARK("bochs", 0, "Bochs Virtual HD Image"),
    MARK("cloop", 0, "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"),
};

/* Comments and empty lines, then "version=1". The text ends in a 0. */
static bool is_vmdk_text(const char *text, size_t count)
{
    size_t at = 0;

    while (at < count) {
        const char *end = memchr(text + at, '\n', count - at);
        size_t length = end != NULL ? (size_t)(end - (text + at)) : count - at;

        if (length > 0 && text[at + length - 1] == '\r') {
            length--;
        }
        if (text[at] != '#' && strspn(text + at, " ") < length) {
            return length == 9 && memcmp(text + at, "version=", 8) == 0 && text[at + 8] >= '1' && text[at + 8] <= '3';
        }
        if (end == NULL) {
            break;
        }
        at = (size_t)(end - text) + 1;
    }
    return false;
}

const char *probe_bytes(const void *bytes, size_t count)
{
    const char *at = bytes;
    char text[PROBE_BYTES + 1];
    size_t text_bytes;

    if (count >= 8 && memcmp(at, "QFI\xfb", 4) == 0 && memcmp(at + 4, "\0\0\0\2", 4) >= 0) {
        return "qcow2";
    }
    for (size_t i = 0; i < sizeof(marks) / sizeof(marks[0]); i++) {
        if (count >= marks[i].offset + marks[i].count &&
            memcmp(at + marks[i].offset, marks[i].bytes, marks[i].count) == 0) {
            return marks[i].format;
        }
    }
    text_bytes = count < PROBE_BYTES ? count : PROBE_BYTES;
    memcpy(text, bytes, text_bytes);
    text[text_bytes] = '\0';
    return is_vmdk_text(text, strlen(text)) ? "vmdk" : "raw";
}

static ssize_t first_bytes(const char *path, char *bytes)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    ssize_t count = fd >= 0 ? pread(fd, bytes, PROBE_BYTES, 0) : -1;

    if (fd >= 0) {
        close(fd);
    }
    return count;
}

const char *image_probe(const char *path)
{
    char bytes[PROBE_BYTES];
    ssize_t count = first_bytes(path, bytes);

    return count < 0 ? NULL : probe_bytes(bytes, (size_t)count);
}

const char *node_probe(struct node *node, char **error)
{
    char bytes[PROBE_BYTES];
    struct iovec part = {bytes, sizeof(bytes)};
    const qcow2_io_ops *ops;
    int64_t length;
    const char *found;
    int ret;

    if (node_is_file(node)) {
        found = image_probe(node->filename);
        return found != NULL ? found : "raw"; /* the open will say what is wrong */
    }
    if (node->driver->read == NULL) {
        ret = node_open_child(node, error);
        if (ret < 0) {
            return NULL;
        }
        length = qcow2_length(node->image);
        part.iov_len = length < PROBE_BYTES ? (size_t)length : PROBE_BYTES;
        ret = (int)qcow2_preadv(node->image, &part, 1, 0);
        if (node_is_file(node->children[0])) {
            /* Otherwise it stays open, for what is above: what is below can be opened but once. */
            qcow2_close(node->image);
            node->image = NULL;
            node->image_is_child = false;
        }
    } else {
        ops = node_ops(node, node->driver);
        length = ops->length(node);
        part.iov_len = length < PROBE_BYTES ? (size_t)length : PROBE_BYTES;
        ret = ops->preadv(node, &part, 1, 0);
    }
    if (ret < 0) {
        *error = text_format("Could not read image for determining its format: %s", strerror(-ret));
        return NULL;
    }
    return probe_bytes(bytes, part.iov_len);
}
