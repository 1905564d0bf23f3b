/* Tunables: one table, from which come the daemon's struct, config keys, command line options, admin
 * frames, `ksmctl get/set` and the manual page. X(name, minimum, maximum, default, unit, text).
 * Append only: the index is the wire id. Names that kernel KSM has keep its meaning, range and default
 * unless the text says otherwise. A value outside [minimum, maximum] is -EINVAL and changes nothing. */
#pragma once

#include <stdint.h>

#define TUNABLES(X)                                                                                                   \
        X(run, 0, 2, 1, "", "0 stop, 1 merge, 2 stop and unmerge everything")                                         \
        X(pages_to_scan, 1, 4294967295, 65536, "pages", "pages read and hashed per sleep_millisecs, all clients together") \
        X(sleep_millisecs, 1, 4294967295, 20, "ms", "pause between batches of pages_to_scan")                         \
        X(max_page_sharing, 2, 4294967295, 256, "", "sharers of one shared page before another copy of it is made")   \
        X(use_zero_pages, 0, 1, 1, "", "give pages of zeros back to the kernel's zero page")                          \
        X(stable_node_chains_prune_millisecs, 1, 4294967295, 2000, "ms", "pause between prunings of the chains")      \
        X(pass_millisecs, 10, 3600000, 1000, "ms", "shortest time between two looks at a block of pages")             \
        X(settle_millisecs, 0, 3600000, 1000, "ms", "a page is read only after staying unwritten this long")          \
        X(merge_now_settle_millisecs, 0, 3600000, 10, "ms", "the same for a merge on demand")                         \
        X(vma_share_permille, 0, 500, 500, "", "share of vm.max_map_count that merged runs of a process may take")    \
        X(segment_share_permille, 1, 1000, 500, "", "shared bytes per domain and uid, as a share of what they registered") \
        X(segment_max_mbytes, 1, 1073741824, 65536, "MiB", "hard cap of shared bytes per domain and uid")             \
        X(max_cpu_permille, 1, 1000, 1000, "", "CPU time of the daemon's scanning, of one core") \
        X(adopt_grace_millisecs, 0, 3600000, 60000, "ms", "segments of an earlier daemon are kept this long for processes that map them to come back")

enum tunable_id {
#define X(name, min, max, def, unit, text) TUNABLE_##name,
        TUNABLES(X)
#undef X
                TUNABLE_MAX_
};

struct tunables {
#define X(name, min, max, def, unit, text) int64_t name;
        TUNABLES(X)
#undef X
};
_Static_assert(sizeof(struct tunables) == TUNABLE_MAX_ * sizeof(int64_t), "tunables is an array by name");

struct tunable_info {
        const char *name;
        int64_t min, max, def;
        const char *unit;
        const char *text;
};
extern const struct tunable_info tunable_table[TUNABLE_MAX_];

void tunables_init(struct tunables *t);                                /* all defaults */
int tunable_find(const char *name);                                    /* id, or -ENOENT */
int64_t tunable_get(const struct tunables *t, enum tunable_id id);
int tunable_set(struct tunables *t, enum tunable_id id, int64_t value); /* 0, or -EINVAL outside the range */
