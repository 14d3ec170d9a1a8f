/* Secrets that the user gives with --object.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef QCOW2_TOOLS_SECRETS_H
#define QCOW2_TOOLS_SECRETS_H

#include "common.h"

/* "secret,id=...,data=..." or the same as a JSON object, which becomes a secret. The text is overwritten: where it is an
   argument of the program, others could read it as long as that runs. 0; 1: it asks for help, which has been printed;
   or -EINVAL with *error. */
int secret_object(char *text, char **error);
/* Puts a secret into `buffer` (NULL: only looks) and returns its length, or -errno with *error: there is none, it is no
   text in UTF-8, it does not fit. */
int64_t secret_password(const char *id, void *buffer, size_t room, char **error);
/* The same as a qcow2_secret_fn: of the secret that an option names. `opaque` is where the error goes, a char ** to NULL. */
int64_t secret_by_name(void *opaque, const qcow2_secret_request *request, void *buffer, size_t room);

#endif
