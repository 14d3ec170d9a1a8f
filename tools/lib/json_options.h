/* "json:{...}" image names.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef QCOW2_TOOLS_JSON_OPTIONS_H
#define QCOW2_TOOLS_JSON_OPTIONS_H

#include "common.h"

/* {"driver": "qcow2", "file": {"filename": "x"}} becomes "driver=qcow2", "file.filename=x"; true and false
   become on and off; null is left out, except that "backing" becomes empty. 0 or -EINVAL with *error allocated. */
int json_flatten(const char *text, struct string_list *items, char **error);

#endif
