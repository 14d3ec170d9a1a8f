/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "real.h"

#include <dlfcn.h>
#include <errno.h>

struct real_functions real_functions;
bool real_ready;

static long missing(void)
{
    errno = ENOSYS;
    return -1;
}

static void resolve(void **slot, const char *name)
{
    *slot = dlsym(RTLD_NEXT, name);
    if (*slot == NULL) {
        *slot = __extension__(void *) missing;
    }
}

/* Two threads that come here at once write the same values. */
void real_resolve(void)
{
#define RESOLVE(type, name, arguments) resolve(__extension__(void **) & real_functions.name, #name);
    REAL_FUNCTIONS(RESOLVE)
#undef RESOLVE
    __atomic_store_n(&real_ready, true, __ATOMIC_RELEASE);
}
