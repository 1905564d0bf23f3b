/* Follows what the daemon says about the processes of a run, beside the run: requests are sent on a tick, replies taken
 * as they come, so that signals for the command are never held up by a slow daemon. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "ctl/admin.h"

struct watch_sample {
        unsigned n_processes; /* connected now */
        int64_t saved_bytes, merged_bytes, zero_bytes, profit_bytes;
        uint64_t agents_cpu_usec, taken_usec;
};

struct watch {
        struct admin *admin;
        pid_t root;     /* the command */
        bool all;       /* a private daemon: every client is of this run */
        bool lost;      /* the daemon is gone */
        bool seen;      /* some process of the run has connected */
        bool raw;       /* one of them changes mappings without libc */
        struct watch_sample peak, last; /* of those with any process connected; valid when seen */
        /* Private: */
        bool pending; /* a sample is on its way */
        uint32_t *known; /* ids of our clients: a process whose parent ended no longer shows whose it is */
        size_t n_known, n_known_allocated;
        struct counters counters;
        struct client_list clients;
};

/* admin is connected; it is used by the watch alone until watch_done. */
void watch_init(struct watch *w, struct admin *admin, pid_t root, bool all);
/* Asks for a new sample, unless the last one is still on its way. */
void watch_tick(struct watch *w);
/* To be called when admin->fd is readable. */
void watch_input(struct watch *w, uint64_t now_usec);
void watch_done(struct watch *w);
