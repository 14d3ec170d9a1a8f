/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Walks through directories, whose lengths of files the C library asks for past the hooks. */
#include "hooks.h"

#define WALK(type, name, parameters, ...)                                                                              \
    HOOK type name parameters                                                                                          \
    {                                                                                                                  \
        NOT_SERVED(#name, "an image is as long there as its file");                                                    \
        return REAL(name)(__VA_ARGS__);                                                                                \
    }

WALK(int, ftw, (const char *path, __ftw_func_t visit, int most), path, visit, most)
WALK(int, ftw64, (const char *path, __ftw64_func_t visit, int most), path, visit, most)
WALK(int, nftw, (const char *path, __nftw_func_t visit, int most, int flags), path, visit, most, flags)
WALK(int, nftw64, (const char *path, __nftw64_func_t visit, int most, int flags), path, visit, most, flags)
WALK(FTS *, fts_open, (char *const *paths, int options, int (*order)(const FTSENT **, const FTSENT **)), paths, options,
     order)
WALK(FTS64 *, fts64_open, (char *const *paths, int options, int (*order)(const FTSENT64 **, const FTSENT64 **)), paths,
     options, order)
