/* Whether the memory is there that an unmerge takes. What is shared becomes private copies, charged to the processes; where they do not fit
 * the kernel would kill somebody half-way. So it is asked before, of the machine (MemAvailable) and of each process's control groups.
 * An estimate: others may take the memory meanwhile, and shared pages that go when their last sharer has a copy are not counted as
 * free. Loop's thread only. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "daemon/manager.h"

/* So much is to be left afterwards, of the machine and of a group. */
#define HEADROOM_SPARE_BYTES (UINT64_C(16) << 20)

struct headroom {
        uint64_t needed_pages, left_pages;
        pid_t pid; /* whose control group; 0: the machine */
};
/* Of the clients of one process, or of all (pid 0); n_pages: no more than so many of each, 0: all. 0: it fits, or nothing is known of
 * memory here; -ENOMEM with *ret filled. */
int headroom_check(const struct manager *m, uint32_t pid, uint64_t n_pages, struct headroom *ret);
