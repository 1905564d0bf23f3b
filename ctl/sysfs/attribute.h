/* The files of /sys/kernel/mm/ksm: one table, from which come names, modes, formats and errors.
 *
 * Values are userksm's tunables of the same name and the counters named (common/counters.h, common/tunables.h); the table says only
 * how the kernel writes and reads each as text. Pure: no I/O, no state. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/counters.h"
#include "common/tunables.h"

/* What the kernel's store function calls, and which of its errors it hands on. */
enum attribute_format {
        ATTRIBUTE_COUNTER, /* read-only */
        ATTRIBUTE_UINT,    /* kstrtouint, any error is EINVAL */
        ATTRIBUTE_ULONG,   /* kstrtoul, any error is EINVAL */
        ATTRIBUTE_INT,     /* kstrtoint, ERANGE is told */
        ATTRIBUTE_KNOB,    /* kstrtoul, ERANGE is told, but EINVAL above 1 */
        ATTRIBUTE_BOOL,    /* kstrtobool: 1, y, on, true, ... */
        ATTRIBUTE_ADVISOR, /* "[none] scan-time" */
};

/* T(name, format): a tunable. C(name, counter). The order of mm/ksm.c. */
#define ATTRIBUTES(T, C)\
        T(sleep_millisecs, ATTRIBUTE_UINT)                    \
        T(pages_to_scan, ATTRIBUTE_UINT)                      \
        T(run, ATTRIBUTE_UINT)                                \
        C(pages_scanned, pages_scanned)                       \
        C(pages_shared, pages_shared)                         \
        C(pages_sharing, pages_sharing)                       \
        C(pages_unshared, pages_unshared)                     \
        C(pages_volatile, pages_volatile)                     \
        C(pages_skipped, pages_skipped)                       \
        C(ksm_zero_pages, ksm_zero_pages)                     \
        C(full_scans, settled_scans)                          \
        T(merge_across_nodes, ATTRIBUTE_KNOB)                 \
        T(max_page_sharing, ATTRIBUTE_INT)                    \
        C(stable_node_chains, stable_node_chains)             \
        C(stable_node_dups, stable_node_dups)                 \
        T(stable_node_chains_prune_millisecs, ATTRIBUTE_UINT) \
        T(use_zero_pages, ATTRIBUTE_BOOL)                     \
        C(general_profit, general_profit)                     \
        T(smart_scan, ATTRIBUTE_BOOL)                         \
        T(advisor_mode, ATTRIBUTE_ADVISOR)                    \
        T(advisor_max_cpu, ATTRIBUTE_ULONG)                   \
        T(advisor_min_pages_to_scan, ATTRIBUTE_ULONG)         \
        T(advisor_max_pages_to_scan, ATTRIBUTE_ULONG)         \
        T(advisor_target_scan_time, ATTRIBUTE_ULONG)

enum attribute_id {
#define T(name, format) ATTRIBUTE_##name,
#define C(name, counter) ATTRIBUTE_##name,
        ATTRIBUTES(T, C)
#undef T
#undef C
                ATTRIBUTE_MAX_
};

struct attribute {
        const char *name;
        enum attribute_format format;
        int value; /* enum counter_id or enum tunable_id */
};
extern const struct attribute attribute_table[ATTRIBUTE_MAX_];
int attribute_find(const char *name); /* id, or -ENOENT */

/* Room for every value: the longest is a 64-bit number, or the advisor's two words. */
#define ATTRIBUTE_TEXT_BYTES 32
/* As the kernel's show function, newline included. Returns the length. */
size_t attribute_show(const struct attribute *a, int64_t value, char text[ATTRIBUTE_TEXT_BYTES]);
/* As the kernel's store function, up to where it looks at its own state: 0, -EINVAL or -ERANGE. text ends with NUL; what
 * stands behind one that was written is ignored, as there. */
int attribute_parse(const struct attribute *a, const char *text, int64_t *ret_value);
