/* The disk as a file of a FUSE file system.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "view.h"

#include "growth.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Seconds that the kernel believes what it was told. Nobody else changes the disk, but the room that it takes changes. */
#define NAME_TIMEOUT 3600.0
#define ATTRIBUTE_TIMEOUT 1.0

int view_begin(struct view *view, const char *path)
{
    int ret = stat(path, &view->original) < 0 ? -errno : growth_begin(view);

    if (ret < 0) {
        return ret;
    }
    view->modified = view->original.st_mtim;
    view->accessed = view->original.st_atim;
    pthread_mutex_init(&view->size_lock, NULL);
    pthread_mutex_init(&view->time_lock, NULL);
    return 0;
}

static struct view *view_of(fuse_req_t request)
{
    return fuse_req_userdata(request);
}

static bool is_file(const struct view *view, fuse_ino_t inode)
{
    return view->name == NULL || inode != FUSE_ROOT_ID;
}

/* The program sees an errno only. The sentence is for the log, one in a second. */
static void reply_failure(fuse_req_t request, int64_t result)
{
    static atomic_llong last;
    long long now = time(NULL);

    if (atomic_exchange(&last, now) != now) {
        log_error("%s", last_failure());
    }
    fuse_reply_err(request, (int)-result);
}

static void reply_result(fuse_req_t request, int result)
{
    if (result < 0) {
        reply_failure(request, result);
    } else {
        fuse_reply_err(request, 0);
    }
}

static void touch(struct view *view)
{
    pthread_mutex_lock(&view->time_lock);
    clock_gettime(CLOCK_REALTIME_COARSE, &view->modified);
    pthread_mutex_unlock(&view->time_lock);
}

/* 0 or -errno. */
static int get_attributes(struct view *view, fuse_ino_t inode, struct stat *to)
{
    qcow2_info info = {.struct_size = sizeof(info)};
    mode_t permissions = view->original.st_mode & 0777;
    int ret = qcow2_get_info(view->image, &info);

    memset(to, 0, sizeof(*to));
    to->st_ino = inode;
    to->st_uid = view->original.st_uid;
    to->st_gid = view->original.st_gid;
    to->st_nlink = 1;
    to->st_blksize = 1 << 16;
    if (is_file(view, inode)) {
        to->st_mode = S_IFREG | (permissions & (view->read_only ? 0444 : 0666));
        to->st_size = (off_t)view->length;
        to->st_blocks = (blkcnt_t)(info.allocated_bytes / 512);
    } else {
        /* Who may read the file may list the directory. */
        to->st_mode = S_IFDIR | (permissions & 0444) | (permissions & 0444) >> 2;
        to->st_nlink = 2;
    }
    pthread_mutex_lock(&view->time_lock);
    to->st_mtim = to->st_ctim = view->modified;
    to->st_atim = view->accessed;
    pthread_mutex_unlock(&view->time_lock);
    return ret;
}

static void reply_attributes(fuse_req_t request, fuse_ino_t inode)
{
    struct stat attributes;
    int ret = get_attributes(view_of(request), inode, &attributes);

    if (ret < 0) {
        reply_failure(request, ret);
    } else {
        fuse_reply_attr(request, &attributes, ATTRIBUTE_TIMEOUT);
    }
}

static void on_init(void *opaque, struct fuse_conn_info *connection)
{
    (void)opaque;
    connection->max_write = VIEW_LONGEST_REQUEST;
    connection->max_read = VIEW_LONGEST_REQUEST;
    connection->max_background = 64;
    connection->congestion_threshold = 48;
    /* All changes come through the kernel: what it has cached stays right when the time of change moves on. */
    connection->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
    /* The kernel would answer for writes that nobody has taken yet: they would be lost with this process. */
    connection->want &= ~(unsigned)FUSE_CAP_WRITEBACK_CACHE;
    /* An open that truncates is a truncation first. */
    connection->want &= ~(unsigned)FUSE_CAP_ATOMIC_O_TRUNC;
    /* Data goes between the engine's files and memory; a pipe in between only adds calls. */
    connection->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct view *view = view_of(request);
    struct fuse_entry_param entry = {.attr_timeout = ATTRIBUTE_TIMEOUT, .entry_timeout = NAME_TIMEOUT};
    int ret;

    if (is_file(view, parent)) {
        fuse_reply_err(request, ENOTDIR);
        return;
    }
    if (strcmp(name, view->name) == 0) {
        entry.ino = FUSE_ROOT_ID + 1;
        ret = get_attributes(view, entry.ino, &entry.attr);
        if (ret < 0) {
            reply_failure(request, ret);
            return;
        }
    }
    fuse_reply_entry(request, &entry); /* inode 0: there is no such file */
}

static void on_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    (void)file;
    reply_attributes(request, inode);
}

static void set_times(struct view *view, const struct stat *to, int which)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    pthread_mutex_lock(&view->time_lock);
    if ((which & FUSE_SET_ATTR_ATIME) != 0) {
        view->accessed = (which & FUSE_SET_ATTR_ATIME_NOW) != 0 ? now : to->st_atim;
    }
    if ((which & FUSE_SET_ATTR_MTIME) != 0) {
        view->modified = (which & FUSE_SET_ATTR_MTIME_NOW) != 0 ? now : to->st_mtim;
    }
    pthread_mutex_unlock(&view->time_lock);
}

static void on_setattr(fuse_req_t request, fuse_ino_t inode, struct stat *to, int which, struct fuse_file_info *file)
{
    struct view *view = view_of(request);
    int ret = 0;

    (void)file;
    if ((which & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) != 0) {
        fuse_reply_err(request, EPERM);
        return;
    }
    if ((which & FUSE_SET_ATTR_SIZE) != 0) {
        pthread_mutex_lock(&view->size_lock);
        ret = growth_set(view, (uint64_t)to->st_size, QCOW2_PREALLOC_OFF);
        pthread_mutex_unlock(&view->size_lock);
        touch(view);
    }
    if (ret < 0) {
        reply_failure(request, ret);
        return;
    }
    set_times(view, to, which);
    reply_attributes(request, inode);
}

static void on_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    struct view *view = view_of(request);

    if (!is_file(view, inode)) {
        fuse_reply_err(request, EISDIR);
    } else if (view->read_only && (file->flags & O_ACCMODE) != O_RDONLY) {
        fuse_reply_err(request, EROFS);
    } else {
        file->keep_cache = 1;
        fuse_reply_open(request, file);
    }
}

static void on_readdir(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
    struct view *view = view_of(request);
    const char *names[] = {".", "..", view->name};
    char buffer[4096];
    size_t used = 0;

    (void)file;
    if (is_file(view, inode)) {
        fuse_reply_err(request, ENOTDIR);
        return;
    }
    size = size < sizeof(buffer) ? size : sizeof(buffer);
    for (off_t i = offset; i < 3; i++) {
        struct stat entry = {.st_ino = i == 2 ? FUSE_ROOT_ID + 1 : FUSE_ROOT_ID, .st_mode = i == 2 ? S_IFREG : S_IFDIR};
        size_t length = fuse_add_direntry(request, buffer + used, size - used, names[i], &entry, i + 1);

        if (length > size - used) {
            break;
        }
        used += length;
    }
    fuse_reply_buf(request, buffer, used);
}

static pthread_key_t buffer_key;
static pthread_once_t buffer_once = PTHREAD_ONCE_INIT;

static void make_buffer_key(void)
{
    pthread_key_create(&buffer_key, free);
}

/* This thread's buffer for the longest read; NULL: no memory. Pages that no read has needed take none. */
static void *read_buffer(void)
{
    void *buffer;

    pthread_once(&buffer_once, make_buffer_key);
    buffer = pthread_getspecific(buffer_key);
    if (buffer == NULL && posix_memalign(&buffer, 4096, VIEW_LONGEST_REQUEST) == 0) {
        pthread_setspecific(buffer_key, buffer);
    }
    return buffer;
}

static void on_read(fuse_req_t request, fuse_ino_t inode, size_t count, off_t offset, struct fuse_file_info *file)
{
    struct view *view = view_of(request);
    void *buffer = read_buffer();
    int64_t size = (int64_t)view->length;
    ssize_t ret;

    (void)inode;
    (void)file;
    if (buffer == NULL) {
        fuse_reply_err(request, ENOMEM);
    } else if (offset >= size) {
        fuse_reply_buf(request, NULL, 0);
    } else {
        count = count < VIEW_LONGEST_REQUEST ? count : VIEW_LONGEST_REQUEST;
        count = (uint64_t)(size - offset) < count ? (size_t)(size - offset) : count;
        ret = qcow2_pread(view->image, buffer, count, (uint64_t)offset);
        if (ret < 0) {
            reply_failure(request, ret);
        } else {
            fuse_reply_buf(request, buffer, (size_t)ret);
        }
    }
}

/* Makes the file as long as `end`, if it is shorter. 0 or -errno. */
static int grow_to(struct view *view, uint64_t end, int preallocation)
{
    int ret = 0;

    if (end > view->length) {
        pthread_mutex_lock(&view->size_lock);
        if (end > view->length) {
            ret = growth_set(view, end, preallocation);
        }
        pthread_mutex_unlock(&view->size_lock);
    }
    return ret;
}

static void on_write(fuse_req_t request, fuse_ino_t inode, const char *data, size_t count, off_t offset,
                     struct fuse_file_info *file)
{
    struct view *view = view_of(request);
    ssize_t ret = grow_to(view, (uint64_t)offset + count, QCOW2_PREALLOC_OFF);

    (void)inode;
    (void)file;
    if (ret == 0) {
        ret = qcow2_pwrite(view->image, data, count, (uint64_t)offset);
    }
    if (ret < 0) {
        reply_failure(request, ret);
        return;
    }
    touch(view);
    fuse_reply_write(request, (size_t)ret);
}

static void on_fsync(fuse_req_t request, fuse_ino_t inode, int data_only, struct fuse_file_info *file)
{
    (void)inode;
    (void)data_only;
    (void)file;
    reply_result(request, qcow2_flush(view_of(request)->image));
}

/* Space can be promised only for what a growing disk gets. */
static int preallocate(struct view *view, int mode, uint64_t offset, uint64_t length)
{
    return mode != 0 || offset < view->length ? -EOPNOTSUPP : grow_to(view, offset + length, QCOW2_PREALLOC_FALLOC);
}

/* What a discard says may be ignored or rounded; these must read as zeroes. */
static int zero(struct view *view, int mode, uint64_t offset, uint64_t length)
{
    uint64_t size = view->length, end = offset + length;

    if (offset < size) {
        int ret = qcow2_write_zeroes(view->image, offset, (end < size ? end : size) - offset,
                                     (mode & FALLOC_FL_PUNCH_HOLE) != 0 ? QCOW2_REQ_UNMAP : 0);

        if (ret < 0) {
            return ret;
        }
    }
    return (mode & FALLOC_FL_KEEP_SIZE) != 0 ? 0 : grow_to(view, end, QCOW2_PREALLOC_OFF);
}

static void on_fallocate(fuse_req_t request, fuse_ino_t inode, int mode, off_t offset, off_t length,
                         struct fuse_file_info *file)
{
    struct view *view = view_of(request);
    int ret;

    (void)inode;
    (void)file;
    if ((mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0) {
        ret = -EOPNOTSUPP;
    } else if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0) {
        ret = zero(view, mode, (uint64_t)offset, (uint64_t)length);
    } else {
        ret = preallocate(view, mode, (uint64_t)offset, (uint64_t)length);
    }
    if (ret == -EOPNOTSUPP) {
        fuse_reply_err(request, EOPNOTSUPP);
        return;
    }
    touch(view);
    reply_result(request, ret);
}

static void on_lseek(fuse_req_t request, fuse_ino_t inode, off_t offset, int whence, struct fuse_file_info *file)
{
    struct view *view = view_of(request);
    off_t size = (off_t)view->length, start = offset;

    (void)inode;
    (void)file;
    while (offset < size) {
        qcow2_extent extent = {.struct_size = sizeof(extent)};
        int ret = qcow2_block_status(view->image, (uint64_t)offset, (uint64_t)(size - offset), 0, &extent);

        if (ret < 0) {
            reply_failure(request, ret);
            return;
        }
        if (((extent.flags & QCOW2_EXTENT_ZERO) != 0) == (whence == SEEK_HOLE)) {
            fuse_reply_lseek(request, offset);
            return;
        }
        offset += (off_t)extent.length;
    }
    if (whence == SEEK_HOLE && start < size) {
        fuse_reply_lseek(request, size);
    } else {
        fuse_reply_err(request, ENXIO);
    }
}

/* Of the file system that the image is in. */
static void on_statfs(fuse_req_t request, fuse_ino_t inode)
{
    qcow2_info info = {.struct_size = sizeof(info)};
    struct statvfs host;
    int ret = qcow2_get_info(view_of(request)->image, &info);

    (void)inode;
    if (ret < 0) {
        reply_failure(request, ret);
    } else if (fstatvfs(info.descriptor, &host) < 0) {
        fuse_reply_err(request, errno);
    } else {
        fuse_reply_statfs(request, &host);
    }
}

/* Not here: flush, for a write that has returned waits for nothing; copy_file_range, for which the kernel has its own. */
const struct fuse_lowlevel_ops view_operations = {
    .init = on_init,
    .lookup = on_lookup,
    .getattr = on_getattr,
    .setattr = on_setattr,
    .open = on_open,
    .read = on_read,
    .write = on_write,
    .fsync = on_fsync,
    .readdir = on_readdir,
    .statfs = on_statfs,
    .fallocate = on_fallocate,
    .lseek = on_lseek,
};
