/* Logging of the daemon and the CLI (never of the agent, which has no stdio).
 *
 * Doctrine (docs/architecture.md, "Errors"): functions return 0 or a negative errno, a condition that the
 * caller must handle is a documented positive code; library layers return, entry layers log, once.
 *
 * Lines go to stderr with an sd-daemon "<N>" priority prefix when stderr is the journal
 * (JOURNAL_STREAM matches), plain otherwise. Thread-safe: one write(2) per line. */
#pragma once

#include <syslog.h>

void log_set_max_level(int level); /* LOG_ERR .. LOG_DEBUG; default LOG_INFO */
int log_get_max_level(void);

__attribute__((format(printf, 2, 3))) void log_line(int level, const char *format, ...);
/* Logs "message: strerror" and returns -error, for `return log_errno(r, "...")`. error may have either sign. */
__attribute__((format(printf, 3, 4))) int log_full_errno(int level, int error, const char *format, ...);

#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_notice(...) log_line(LOG_NOTICE, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERR, __VA_ARGS__)
#define log_errno(error, ...) log_full_errno(LOG_ERR, (error), __VA_ARGS__)
#define log_warning_errno(error, ...) log_full_errno(LOG_WARNING, (error), __VA_ARGS__)
