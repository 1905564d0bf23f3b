/* Which private pages of a merged run nobody has pinned, as the kernel says it.
 *
 * UFFDIO_MOVE certifies plain memory (I1), but refuses pages of a file mapping. There fork does: it copies pinned pages at once and
 * shares all others. So a child is forked that runs nothing, the witness, and lives for a moment. While it lives, a page that pagemap
 * calls mapped more than once (bit 56 clear) is shared with it, and
 *   - was not pinned when it was forked, or the child would have a copy;
 *   - was not pinned since: the kernel pins no anonymous page that is not exclusive. It breaks the sharing first (for reading and for
 *     writing alike), and then the page is mapped once;
 *   - was not written since: a write breaks the sharing, too.
 * What the question misses is what UFFDIO_MOVE misses: references taken without pin (FOLL_GET) before the fork.
 *
 * The fork copies what it must: registered plain memory is MADV_DONTFORK meanwhile (the mapping lock is held, so the program cannot
 * fork). The child has no exit signal, so that neither SIGCHLD nor a wait without __WCLONE or __WALL sees it; it cannot be traced
 * (CLONE_UNTRACED), shares the agent's descriptors, and dies with the agent. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/rangeset.h"

struct agent;

struct witness {
        int fd;                /* pidfd; only while there is one */
        enum { WITNESS_NONE, WITNESS_ALIVE, WITNESS_DYING } state;
        uint64_t until_usec;   /* then it is dismissed, unless it is asked before */
        uint64_t end_usec;     /* and then in any case */
        uint64_t next_usec;    /* the next one not before: the cost is bounded */
        struct rangeset kept_out, let_in; /* empty but while it is forked */
        enum { SECCOMP_UNKNOWN, SECCOMP_NONE, SECCOMP_FILTER } seccomp;
};

/* Mapping lock held. 0: there is one now. -EAGAIN: not now, it would cost too much of the program's time (`pressing`: whatever it
 * costs) or no process can be made; -EPERM: never in this process, a system call filter might answer clone by killing. */
int witness_call(struct agent *a, bool pressing);
/* Of present private pages in the block at base: those that are shared with the witness. */
uint64_t witness_shared(struct agent *a, uint64_t base, uint64_t mask);
/* The agent's thread is under a system call filter that it was made with. It gets no more: see agent_retire. */
bool witness_filtered(struct agent *a);
void witness_dismiss(struct agent *a);
/* Dismisses and reaps when it is time. */
void witness_step(struct agent *a, uint64_t now);
uint64_t witness_next_usec(const struct agent *a); /* UINT64_MAX: nothing to do */
