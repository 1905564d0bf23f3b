#include <stdarg.h>

#include "tests/support/fact.h"

void fact_fail(const char *file, int line, const char *format, ...) {
        va_list ap;

        fflush(stdout);
        fprintf(stderr, "%s:%d: ", file, line);
        va_start(ap, format);
        vfprintf(stderr, format, ap);
        va_end(ap);
        fputc('\n', stderr);
        _exit(1); /* other threads may be blocked on a fault: no destructors */
}

void fact_skip(const char *format, ...) {
        va_list ap;

        printf("SKIP: ");
        va_start(ap, format);
        vprintf(format, ap);
        va_end(ap);
        putchar('\n');
        fflush(stdout);
        _exit(FACT_SKIP_STATUS);
}

int fact_main(int argc, char **argv, const struct fact *facts, size_t n_facts) {
        for (size_t i = 0; i < n_facts; i++) {
                if (argc < 2) {
                        puts(facts[i].name);
                        continue;
                }
                if (strcmp(argv[1], facts[i].name) != 0)
                        continue;
                alarm(FACT_WATCHDOG_SEC);
                facts[i].run();
                fflush(stdout);
                _exit(0);
        }
        if (argc < 2)
                return 0;
        fprintf(stderr, "no fact named %s\n", argv[1]);
        return 2;
}
