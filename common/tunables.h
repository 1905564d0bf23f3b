/* Tunables: one table, from which come the daemon's struct, config keys, command line options, admin frames, `ksmctl get/set`, their
 * help and the manual pages. Rows: X(name, minimum, maximum, default, unit, text) for numbers, N(name, last, default, names, text) for a
 * choice among names, which stand in the order of their values 0 to last.
 *
 * Append only: the index is the wire id, and a name's value is its place. Names that kernel KSM has keep its meaning, range and default
 * unless the text says otherwise; what the kernel takes as an unsigned long ends here at 2^32 - 1. A value outside [minimum, maximum]
 * is -EINVAL and changes nothing. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define TUNABLES(X, N)                                                                                                \
        X(run, 0, 2, 1, "", "0 stop, 1 merge, 2 stop and unmerge everything (kernel: 0)")                             \
        X(pages_to_scan, 0, 4294967295, 65536, "pages", "pages read and hashed per sleep_millisecs, all clients together; the advisor's while there is one (kernel: 100, for it reads every page in every pass)") \
        X(sleep_millisecs, 0, 4294967295, 20, "ms", "pause between batches of pages_to_scan")                         \
        X(max_page_sharing, 2, 2147483647, 256, "", "sharers of one shared page before another copy of it is made")   \
        X(use_zero_pages, 0, 1, 1, "", "give pages of zeros back to the kernel's zero page (kernel: 0)")              \
        X(stable_node_chains_prune_millisecs, 0, 4294967295, 2000, "ms", "pause between prunings of the chains")      \
        X(pass_millisecs, 10, 3600000, 1000, "ms", "shortest time between two looks at a block of pages; a quarter of it after one that found much that is new")             \
        X(settle_millisecs, 0, 3600000, 1000, "ms", "a page is read only after staying unwritten this long")          \
        X(merge_now_settle_millisecs, 0, 3600000, 10, "ms", "the same for a merge on demand")                         \
        X(vma_share_permille, 0, 500, 500, "", "share of vm.max_map_count that merged runs of a process may take")    \
        X(segment_share_permille, 1, 1000, 500, "", "shared bytes per domain and uid, as a share of what they registered") \
        X(segment_max_mbytes, 1, 1073741824, 65536, "MiB", "hard cap of shared bytes per domain and uid")             \
        X(max_cpu_permille, 1, 1000, 1000, "", "CPU time of the daemon's scanning, of one core") \
        X(adopt_grace_millisecs, 0, 3600000, 60000, "ms", "segments of an earlier daemon are kept this long for processes that map them to come back") \
        X(merge_across_nodes, 0, 1, 1, "", "0: only pages of one NUMA node share; may be changed at any time (kernel: only while nothing is shared)") \
        X(smart_scan, 0, 1, 1, "", "0: every block is looked at in every pass; 1: one that is written all the time in every 2nd to 64th") \
        N(advisor_mode, 1, 0, "none scan-time", "scan-time: pages_to_scan is set after each full scan so that one takes advisor_target_scan_time") \
        X(advisor_max_cpu, 0, 4294967295, 70, "%", "CPU time of the daemon's scanning that the advisor aims below, of one core") \
        X(advisor_target_scan_time, 1, 4294967295, 200, "s", "time for one full scan that the advisor aims at")       \
        X(advisor_min_pages_to_scan, 0, 4294967295, 500, "pages", "the advisor's least pages_to_scan, whatever else it finds (kernel: where it begins)") \
        X(advisor_max_pages_to_scan, 0, 4294967295, 30000, "pages", "the advisor's greatest pages_to_scan")           \
        X(idle_cpu_permille, 1, 1000, 50, "", "the same as max_cpu_permille while scanning finds next to nothing and memory is not short") \
        X(pressure_permille, 0, 1000, 50, "", "memory is short when processes waited for it so much of the last 10 s (pressure_file, some avg10); 0: never by this") \
        X(low_memory_permille, 0, 1000, 100, "", "memory is short when less of the machine's is available (MemAvailable); 0: never by this") \
        X(only_under_pressure, 0, 1, 0, "", "1: look for pages to merge only while memory is short")

enum tunable_id {
#define X(name, ...) TUNABLE_##name,
        TUNABLES(X, X)
#undef X
                TUNABLE_MAX_
};

struct tunables {
#define X(name, ...) int64_t name;
        TUNABLES(X, X)
#undef X
};
_Static_assert(sizeof(struct tunables) == TUNABLE_MAX_ * sizeof(int64_t), "tunables is an array by name");

/* Values of advisor_mode. */
enum advisor_mode { ADVISOR_NONE, ADVISOR_SCAN_TIME };

struct tunable_info {
        const char *name;
        int64_t min, max, def;
        const char *unit;
        const char *names; /* of the values, a space between them; NULL: a number */
        const char *text;
};
extern const struct tunable_info tunable_table[TUNABLE_MAX_];

void tunables_init(struct tunables *t);                                /* all defaults */
int tunable_find(const char *name);                                    /* id, or -ENOENT */
int64_t tunable_get(const struct tunables *t, enum tunable_id id);
int tunable_set(struct tunables *t, enum tunable_id id, int64_t value); /* 0, or -EINVAL outside the range */

/* -- as text --------------------------------------------------------------------------------------------------------------- */

#define TUNABLE_TEXT_BYTES 64 /* enough for each of the below */

/* A whole number in [min, max]; where they are 0 and 1 also no/yes, off/on, false/true. 0 or -EINVAL. */
int tunable_parse_number(const char *text, int64_t min, int64_t max, int64_t *ret);
/* The value that the text says: as above, or one of the names; of several names the one in brackets, as tunable_format prints them.
 * 0 or -EINVAL. */
int tunable_parse(enum tunable_id id, const char *text, int64_t *ret);
/* All three return `text`. A choice as the kernel's sysfs files show it: "[none] scan-time". */
const char *tunable_format(enum tunable_id id, int64_t value, char text[TUNABLE_TEXT_BYTES]);
/* What sets it: "123", "none". */
const char *tunable_format_value(enum tunable_id id, int64_t value, char text[TUNABLE_TEXT_BYTES]);
/* What may be set: "0 to 2", "none or scan-time". */
const char *tunable_format_range(enum tunable_id id, char text[TUNABLE_TEXT_BYTES]);
/* For --help: name, range, default, and what it means. */
void tunables_print_help(FILE *f);
