/* Where a process runs: its control group and unit, by /proc/PID/cgroup as it is now. For display: what the daemon decides by it asked
 * itself, bracketed by a pidfd. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct placement {
        char cgroup[256]; /* its path (common/rules.h); "": unknown. Cut off at the end, made printable */
        char unit[64];    /* innermost unit of it: *.service, *.scope; "": none */
};

void placement_of(uint32_t pid, struct placement *ret);
/* From the text of /proc/PID/cgroup. */
void placement_parse(const char *text, struct placement *ret);
