/* The list of options is complete: every option that an open or a creation takes is in it, every default is taken,
   the keys are known by their stock names, and the list ends.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

static bool listed(int scope, const char *name)
{
    qcow2_option_info info = {.struct_size = sizeof info};

    for (size_t i = 0; qcow2_option_list(scope, i, &info) == 0; i++) {
        if (strcmp(info.name, name) == 0) {
            return true;
        }
    }
    return false;
}

static size_t walk(int scope)
{
    qcow2_option_info info = {.struct_size = sizeof info};
    size_t count = 0;
    int result;

    while ((result = qcow2_option_list(scope, count, &info)) == 0) {
        CHECK(info.name != NULL && info.name[0] != '\0');
        CHECK(info.help != NULL && info.help[0] != '\0' && strchr(info.help, '\n') == NULL);
        CHECK(strcmp(info.type, "size") == 0 || strcmp(info.type, "bool (on/off)") == 0 ||
              strcmp(info.type, "str") == 0 || strcmp(info.type, "num") == 0);
        CHECK_EQ(info.scope, (uint32_t)scope);
        CHECK(info.runtime <= 1);
        if (scope == QCOW2_SCOPE_OPEN && info.default_value != NULL) {
            char option[512];

            snprintf(option, sizeof option, "%s=%s", info.name, info.default_value);
            CHECK_OK(qcow2_check_open_option(option));
        }
        /* Strings are static: the same pointer every time. */
        const char *name = info.name;
        CHECK_OK(qcow2_option_list(scope, count, &info));
        CHECK(info.name == name);
        count++;
        CHECK(count < 1000);
    }
    CHECK_EQ(result, -ENOENT);
    CHECK_ERROR(qcow2_option_list(scope, SIZE_MAX, &info), ENOENT);
    return count;
}

int main(void)
{
    static const char *const of_create[] = {"size",         "compat",        "backing_file",   "backing_fmt",
                                            "cluster_size", "preallocation", "lazy_refcounts", "refcount_bits"};
    static const char *const of_open[] = {"lazy-refcounts",
                                          "l2-cache-size",
                                          "l2-cache-entry-size",
                                          "refcount-cache-size",
                                          "cache-size",
                                          "cache-clean-interval",
                                          "overlap-check",
                                          "overlap-check.template",
                                          "overlap-check.main-header",
                                          "overlap-check.active-l2",
                                          "pass-discard-request",
                                          "pass-discard-snapshot",
                                          "pass-discard-other",
                                          "discard-no-unref",
                                          "cache",
                                          "metadata-writethrough",
                                          "discard",
                                          "detect-zeroes"};

    CHECK(walk(QCOW2_SCOPE_CREATE_LUKS) > 0 && walk(QCOW2_SCOPE_AMEND_LUKS) > 0);
    printf("%zu create options, %zu open options, %zu amend options\n", walk(QCOW2_SCOPE_CREATE),
           walk(QCOW2_SCOPE_OPEN), walk(QCOW2_SCOPE_AMEND));
    for (unsigned i = 0; i < sizeof of_create / sizeof of_create[0]; i++) {
        if (!listed(QCOW2_SCOPE_CREATE, of_create[i])) {
            test_fail(__FILE__, __LINE__, "the create option %s is not listed", of_create[i]);
        }
    }
    for (unsigned i = 0; i < sizeof of_open / sizeof of_open[0]; i++) {
        if (!listed(QCOW2_SCOPE_OPEN, of_open[i])) {
            test_fail(__FILE__, __LINE__, "the open option %s is not listed", of_open[i]);
        }
    }
    CHECK_ERROR(qcow2_check_open_option("no-such-option=1"), EINVAL);
    CHECK_ERROR(qcow2_check_open_option("lazy-refcounts=perhaps"), EINVAL);
    CHECK_ERROR(qcow2_check_open_option(""), EINVAL);
    CHECK_ERROR(qcow2_check_open_option("=on"), EINVAL);
    return 0;
}
