/* The agent's state: one per process, touched by the agent thread alone (other threads: lib/mailbox.h, lib/notes.h). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "common/counters.h"
#include "lib/book.h"
#include "lib/context.h"
#include "lib/rangeset.h"
#include "lib/segments.h"
#include "lib/watch.h"
#include "lib/witness.h"
#include "proto/channel.h"

#define BLOCK_BYTES ((uint64_t) BLOCK_PAGES << KSM_PAGE_SHIFT)
#define TEXT_BUFFER_BYTES 32768U /* smaps is read in pieces of this */

#define DISCARDS_MAX 1024U /* blocks: a discard of 256 MiB at once */

struct figures {
        uint64_t transitions, busy, waits[WAIT_BUCKETS];
        uint32_t n_vmas, flags; /* enum agent_flags */
};

/* lib/discover.c */
struct discovery {
        uint64_t at_usec;               /* the next question whether a walk is due */
        uint64_t walked_usec, cost_usec; /* the last walk's end (0: none yet) and how long it took */
        uint64_t vm_pages, calls;       /* the process's size and the mapping calls that it had made at that walk */
};

struct agent {
        /* kernel's view of ourselves */
        int maps_fd, smaps_fd, statm_fd, stat_fd, pagemap_fd, mem_fd;
        uint64_t alone_at_usec;
        /* track: write tracking of anonymous ranges. shared: merged runs. guard: armed only in a transition. spare: the
         * destination of moves (scratch), without events. */
        struct context track, shared, guard, spare;
        bool contexts_open;

        uint8_t *scratch;  /* 64 pages, registered in spare, not inherited by fork */
        bool scratch_used; /* pages may lie in it */
        uint8_t *expected; /* 64 pages: the slots' bytes, read before the hole opens */
        char *text;        /* TEXT_BUFFER_BYTES */

        struct rangeset ranges;   /* registered */
        struct rangeset found;    /* those of them that discovery registered (merge-any) */
        struct rangeset excluded; /* never to be merged: stacks, mlocked, ... */
        struct rangeset stacks;   /* look like stacks: discovery passes them over, the program may register them */
        struct rangeset released; /* those of them that the program's own userfaultfd was let in to */
        struct rangeset dontfork; /* VM_DONTCOPY: put back on what replaces pages */
        struct rangeset huge, nohuge; /* MADV_HUGEPAGE, MADV_NOHUGEPAGE: the same, on anonymous memory */
        struct rangeset moved, moved_removed; /* lib/moved.h */
        struct segments segments;

        /* the connection */
        int link_fd;
        bool welcomed;
        uint64_t connect_at_usec, connect_pause_usec;
        uint64_t stats_at_usec;
        bool reporting; /* the daemon asked for our runs, and there are more */
        uint64_t report_at_usec;
        struct book_walk report;
        struct channel_message *message;

        /* blocks with discarded pages that are perhaps empty still; a ring. Full: their accesses are answered one by one */
        uint64_t discards[DISCARDS_MAX];
        uint32_t discards_head, discards_tail;
        bool hurry; /* more work than fitted in a turn */

        /* discovery */
        bool merge_any;
        struct discovery discovery;

        uint64_t exits_before_read; /* of brackets, before events were read: see note_discard */
        bool special_known; /* smaps was read, and the shim tells every change of attributes since */
        bool raw;       /* the program changes mappings without libc: no transition from now on */
        bool retired;   /* no system call any more */
        bool suspended; /* mlockall */
        bool retrack;   /* a range could not be put back under tracking: do it again soon */
        uint32_t flags;      /* hello_flags */

        struct transition *current; /* events of guard belong to it */
        struct watch watch;
        struct witness witness;
        struct figures figures, figures_sent;
};

/* Reads the events of shared and guard and answers them. Never blocks. */
void agent_drain(void *agent);
