/* Any configuration file and command line: what is accepted is within the tables' bounds, and says the same when it is written out
 * and read again; what is not accepted is explained. Input: the file, then the arguments, each after a NUL. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "daemon/config.h"
#include "tests/fuzz/fuzz.h"

#define ARGUMENTS_MAX 16

static void put_file(int fd, const void *text, size_t size) {
        if (ftruncate(fd, 0) < 0 || pwrite(fd, text, size, 0) != (ssize_t) size)
                abort();
}

static void check_bounds(const struct config *c) {
#define MAX_STRING(field, max) (strnlen((const char *) &c->field, sizeof(c->field)) > (size_t) (max))
#define X(name, kind, min, max, def, ...) \
        if (#kind[0] == 'S' ? MAX_STRING(name, max) : *(const int64_t *) &c->name < (min) || *(const int64_t *) &c->name > (max)) \
                abort();
        OPTIONS(X)
#undef X
        for (int i = 0; i < TUNABLE_MAX_; i++) {
                int64_t v = tunable_get(&c->tunables, (enum tunable_id) i);

                if (v < tunable_table[i].min || v > tunable_table[i].max)
                        abort();
        }
}

static void check_again(const struct config *c, int fd, const char *path) {
        struct config again;
        struct config_error error;
        char text[8192], value[TUNABLE_TEXT_BYTES];
        int n = snprintf(text, sizeof(text), "[daemon]\nworkers = %lld\nmax_clients=%lld\n[tunables]\n", (long long) c->workers,
                         (long long) c->max_clients);

        for (int i = 0; i < TUNABLE_MAX_; i++)
                n += snprintf(text + n, sizeof(text) - (size_t) n, "%s = %s ; comment\n", tunable_table[i].name,
                              tunable_format_value((enum tunable_id) i, tunable_get(&c->tunables, (enum tunable_id) i), value));
        put_file(fd, text, (size_t) n);
        config_init(&again);
        if (config_read_file(&again, path, &error) < 0 || again.workers != c->workers || again.max_clients != c->max_clients ||
            memcmp(&again.tunables, &c->tunables, sizeof(again.tunables)) != 0)
                abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static int fd = -1;
        static char path[32];
        char option[48], *text = malloc(size + 1), *argv[ARGUMENTS_MAX + 2] = { "userksmd", option };
        struct config_error error = { "" };
        struct config c;
        int argc = 2;
        size_t file;

        if (!text)
                abort();
        if (fd < 0) {
                fd = memfd_create("config", MFD_CLOEXEC);
                (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        }
        (void) snprintf(option, sizeof(option), "--config=%s", path);
        memcpy(text, data, size);
        text[size] = 0;
        file = strlen(text);
        put_file(fd, text, file);
        for (size_t at = file + 1; at < size && argc < ARGUMENTS_MAX + 2; at += strlen(text + at) + 1) {
                if (strncmp(text + at, "--config", 8) == 0)
                        break; /* another file: not ours to read */
                argv[argc++] = text + at;
        }
        if (config_load(&c, argc, argv, &error) == 0) {
                if (!c.show_help && !c.show_version) {
                        check_bounds(&c);
                        check_again(&c, fd, path);
                }
        } else if (!error.text[0] || !memchr(error.text, 0, sizeof(error.text))) {
                abort();
        }
        free(text);
        return 0;
}
