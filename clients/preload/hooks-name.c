/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A file may not come under an image's name, nor an image under another, by a change of its name: the one would be no
 * image, of the other the program would see the container. EXDEV has programs copy.
 */
#include "hooks.h"

#include <stdlib.h>
#include <string.h>

static bool changes_kind(int directory, const char *old, const char *new)
{
    struct stat64 status;

    return (config_maybe(old) || config_maybe(new)) && old != NULL && new != NULL &&
           (config_match(old) != NULL) != (config_match(new) != NULL) &&
           REAL(fstatat64)(directory, old, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(status.st_mode);
}

static int refuse(const char *call)
{
    NOT_SERVED(call, "answered with EXDEV, for only one of the names is an image's");
    return (int)answer(-EXDEV);
}

HOOK int rename(const char *old, const char *new)
{
    return changes_kind(AT_FDCWD, old, new) ? refuse("rename") : REAL(rename)(old, new);
}

HOOK int renameat(int old_directory, const char *old, int new_directory, const char *new)
{
    return changes_kind(old_directory, old, new) ? refuse("renameat")
                                                 : REAL(renameat)(old_directory, old, new_directory, new);
}

HOOK int renameat2(int old_directory, const char *old, int new_directory, const char *new, unsigned flags)
{
    return changes_kind(old_directory, old, new) ? refuse("renameat2")
                                                 : REAL(renameat2)(old_directory, old, new_directory, new, flags);
}

HOOK int link(const char *old, const char *new)
{
    return changes_kind(AT_FDCWD, old, new) ? refuse("link") : REAL(link)(old, new);
}

HOOK int linkat(int old_directory, const char *old, int new_directory, const char *new, int flags)
{
    return changes_kind(old_directory, old, new) ? refuse("linkat")
                                                 : REAL(linkat)(old_directory, old, new_directory, new, flags);
}
