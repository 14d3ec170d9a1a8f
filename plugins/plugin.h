/* Storage of another engine, in a library that is loaded.  SPDX-License-Identifier: MIT OR Apache-2.0

   A plugin gives functions for qcow2_open_with. It is loaded because the caller names its driver, never because an image
   names something. It exports one function, by the name QCOW2_STORAGE_DRIVER. */
#ifndef QCOW2_PLUGIN_H
#define QCOW2_PLUGIN_H

#include <qcow2.h>

#define QCOW2_STORAGE_DRIVER "qcow2_storage_driver_1"

struct qcow2_storage_limits {
    uint64_t align;        /* bytes; requests are multiples of it */
    uint64_t max_transfer; /* bytes of a read or a write, of a discard or of zeroes */
};

struct qcow2_storage_driver {
    const char *name;
    /* Opens what "key=value" options say, a NULL behind them. Fills *ops, *opaque and *limits: 0, or -errno with
       *message, which the caller frees by free(). */
    int (*open)(const char *const *options, int read_only, qcow2_io_ops *ops, void **opaque,
                struct qcow2_storage_limits *limits, char **message);
};

typedef const struct qcow2_storage_driver *(*qcow2_storage_driver_fn)(void);

#endif
