/* The header's version, the library's and the package's are one.
   SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "test.h"

#if !QCOW2_VERSION_CHECK(0, 1, 0) || QCOW2_VERSION_CHECK(99, 0, 0)
#error "the check does not compare"
#endif

int main(void)
{
    char parts[64];
    const int major = QCOW2_VERSION_MAJOR, minor = QCOW2_VERSION_MINOR, patch = QCOW2_VERSION_PATCH;

    CHECK(strcmp(QCOW2_VERSION, qcow2_version()) == 0);
    CHECK(strcmp(QCOW2_VERSION, PACKAGE_VERSION) == 0);
    snprintf(parts, sizeof parts, "%d.%d.%d", major, minor, patch);
    CHECK(strcmp(QCOW2_VERSION, parts) == 0);

    CHECK(QCOW2_VERSION_CHECK(major, minor, patch));
    CHECK(!QCOW2_VERSION_CHECK(major, minor, patch + 1));
    CHECK(!QCOW2_VERSION_CHECK(major, minor + 1, 0) && !QCOW2_VERSION_CHECK(major + 1, 0, 0));
    CHECK(QCOW2_VERSION_CHECK(major, minor - 1, patch + 1) && QCOW2_VERSION_CHECK(major - 1, minor + 1, patch + 1));
    return 0;
}
