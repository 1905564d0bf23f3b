/* Any text in place of /proc/PID/cgroup and status: the parts of the domain key lie within the text, and two paths in one
 * container share its scope. Input: two bytes (capacity for the unit, where the path is cut), then the text. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/sys/peer.h"
#include "tests/fuzz/fuzz.h"

#define MUST(condition)          \
        do {                     \
                if (!(condition)) \
                        abort(); \
        } while (0)

static void check_unit(const char *path, size_t length, size_t capacity) {
        char *unit = malloc(capacity); /* its exact size: ASan sees one byte too far */
        int n;

        MUST(unit);
        n = cgroup_unit_template(path, length, unit, capacity);
        MUST(n == -ENAMETOOLONG || (n >= 0 && (size_t) n < capacity && (size_t) n <= length && unit[n] == 0));
        free(unit);
}

/* The scope is a beginning of the path that ends with a component, and its own scope. */
static void check_path(const char *path, size_t length) {
        const char *scope, *again;
        size_t n, n_again;

        cgroup_scope(path, length, &scope, &n);
        MUST(scope == path && n <= length && (n == 0 || n == length || path[n] == '/'));
        cgroup_scope(scope, n, &again, &n_again);
        MUST(again == scope && n_again == n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        const char *path;
        size_t length;
        char *text;

        if (size < 2)
                return 0;
        text = malloc(size - 1);
        MUST(text);
        memcpy(text, data + 2, size - 2);
        text[size - 2] = 0;
        if (cgroup_find_path(text, &path, &length)) {
                MUST(path >= text && path + length <= text + strlen(text) && length >= 1 && path[0] == '/');
                check_path(path, length);
                check_path(path, data[1] % (length + 1));
                check_unit(path, length, 1u + data[0]);
        }
        check_path(text, strlen(text));
        check_unit(text, strlen(text), 1u + data[0]);
        (void) status_has_other_ids(text);
        free(text);
        return 0;
}
