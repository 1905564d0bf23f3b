#include "ctl/sysfs/process.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[PROCESS_FILE_MAX_] = { "ksm_merging_pages", "ksm_stat" };

int process_file_find(const char *name) {
        for (int i = 0; i < PROCESS_FILE_MAX_; i++)
                if (strcmp(names[i], name) == 0)
                        return i;
        return -ENOENT;
}

int process_parse(const char *name, uint32_t *ret_pid) {
        unsigned long pid = strtoul(name, NULL, 10);
        char again[16], path[32];

        snprintf(again, sizeof(again), "%" PRIu32, (uint32_t) pid);
        snprintf(path, sizeof(path), "/proc/%s", again);
        if (strcmp(name, again) != 0 || access(path, F_OK) < 0)
                return -ENOENT;
        *ret_pid = (uint32_t) pid;
        return 0;
}

size_t process_show(enum process_file file, const struct client_element *client, char text[PROCESS_TEXT_BYTES]) {
        static const struct client_element none;
        const struct client_element *c = client ? client : &none;
        int n;

        if (file == PROCESS_FILE_ksm_merging_pages)
                n = snprintf(text, PROCESS_TEXT_BYTES, "%" PRIu64 "\n", c->merged_pages);
        else
                n = snprintf(text, PROCESS_TEXT_BYTES,
                             "ksm_rmap_items %" PRIu64 "\nksm_zero_pages %" PRIu64 "\nksm_merging_pages %" PRIu64
                             "\nksm_process_profit %" PRId64 "\nksm_merge_any: %s\nksm_mergeable: %s\n",
                             c->tracked_pages, c->zero_pages, c->merged_pages, c->profit_bytes,
                             c->flags & HELLO_MERGE_ANY ? "yes" : "no", c->n_ranges > 0 ? "yes" : "no");
        return (size_t) n;
}
