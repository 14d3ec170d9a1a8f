#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# version-script.sh HOOKS OUTPUT: what the shim exports.
set -eu
{ echo '{ global:'; grep -v '^#' "$1" | sed 's/$/;/'; echo 'local: *; };'; } >"$2"
