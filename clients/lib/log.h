/* What a client says.  SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef CLIENTS_LOG_H
#define CLIENTS_LOG_H

/* qcow2_last_error() of this thread in one line. Valid until the next call on this thread. */
const char *last_failure(void);

/* "program: text" on standard error, or in the system's log once log_to_syslog has been called. `program` is kept. */
void log_begin(const char *program);
void log_to_syslog(void);
__attribute__((format(printf, 1, 2))) void log_error(const char *format, ...);

#endif
