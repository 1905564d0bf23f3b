/* Kernel facts as tests: one executable holds the facts of one subject, each run by its name as a test of its own.
 *
 * A fact either returns (holds), fails a CHECK (exit 1, naming file, line and expression) or SKIPs (exit 77 with the
 * reason). Each run has its own process and a watchdog: a fact that hangs is killed and fails. */
#pragma once

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct fact {
        const char *name;
        void (*run)(void);
};

#define FACT_SKIP_STATUS 77
#define FACT_WATCHDOG_SEC 20

/* argv[1] names the fact; without it all names are listed. */
int fact_main(int argc, char **argv, const struct fact *facts, size_t n_facts);
#define FACTS(...)                                                                               \
        int main(int argc, char **argv) {                                                        \
                static const struct fact facts[] = { __VA_ARGS__ };                              \
                return fact_main(argc, argv, facts, sizeof(facts) / sizeof(facts[0]));           \
        }
#define FACT(function) { #function, function }

__attribute__((noreturn, format(printf, 3, 4))) void fact_fail(const char *file, int line, const char *format, ...);
__attribute__((noreturn, format(printf, 1, 2))) void fact_skip(const char *format, ...);

/* Active in release builds too; errno is shown because most checks follow a system call. */
#define CHECK(cond)                                                                                      \
        do {                                                                                             \
                if (!(cond))                                                                             \
                        fact_fail(__FILE__, __LINE__, "%s (errno: %s)", #cond, strerror(errno));         \
        } while (0)
#define CHECK_EQ(got, want)                                                                              \
        do {                                                                                             \
                long long _got = (long long) (got), _want = (long long) (want);                          \
                if (_got != _want)                                                                       \
                        fact_fail(__FILE__, __LINE__, "%s is %lld (%s), not %lld", #got, _got,           \
                                  _got < 0 ? strerror((int) -_got) : "", _want);                         \
        } while (0)
