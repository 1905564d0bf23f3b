/* The calls of program threads: each a request to the agent, or a note. */
#include <errno.h>

#include "lib/agent.h"
#include "lib/book.h"
#include "lib/mailbox.h"
#include "lib/notes.h"
#include "lib/sys.h"
#include "lib/vma.h"
#include "common/cleanup.h"

/* The daemon answers a merge on demand within seconds; one that hangs must not hang the program. */
#define MERGE_TIMEOUT_USEC 30000000U

static int call(enum request_kind kind, uint64_t start, uint64_t length) {
        struct request r = { .kind = kind, .start = start, .length = length };
        agent_ensure_after_fork();
        return agent_running() ? mailbox_call(&r, 0) : -ENOTCONN;
}

int agent_register(uint64_t start, uint64_t length) {
        return call(REQUEST_REGISTER, start, length);
}

int agent_unregister(uint64_t start, uint64_t length) {
        return call(REQUEST_UNREGISTER, start, length);
}

int agent_advise_mergeable(uint64_t start, uint64_t length) {
        int r = call(REQUEST_ADVISE_MERGEABLE, start, length);
        return r == -ENOTCONN ? 0 : r;
}

int agent_advise_unmergeable(uint64_t start, uint64_t length) {
        int r = call(REQUEST_ADVISE_UNMERGEABLE, start, length);
        return r == -ENOTCONN ? 0 : r;
}

int agent_merge(uint64_t start, uint64_t length, uint64_t *saved_bytes) {
        struct request r = { .kind = REQUEST_MERGE, .start = start, .length = length };
        agent_ensure_after_fork();
        int result = agent_running() ? mailbox_call(&r, MERGE_TIMEOUT_USEC) : -ENOTCONN;
        if (saved_bytes)
                *saved_bytes = result == 0 ? r.saved_bytes : 0;
        return result;
}

int agent_stats(struct userksm_stats *stats) {
        struct request r = { .kind = REQUEST_STATS };
        agent_ensure_after_fork();
        size_t size = stats->size;
        int result = agent_running() ? mailbox_call(&r, 0) : 0;
        r.stats.size = size;
        /* An older caller's struct is shorter; a newer one's further fields stay as they are. */
        for (size_t i = 0; i < MIN(size, sizeof(r.stats)); i++)
                ((char *) stats)[i] = ((const char *) &r.stats)[i];
        return result;
}

/* Asking the agent is only worth it where something is merged. */
static int call_if_merged(enum request_kind kind, uint64_t start, uint64_t length) {
        agent_ensure_after_fork();
        if (!agent_running())
                return 0;
        return call(kind, start, length);
}

int agent_restore(uint64_t start, uint64_t length) {
        return call_if_merged(REQUEST_RESTORE, start, length);
}

int agent_exclude(uint64_t start, uint64_t length) {
        return call_if_merged(REQUEST_EXCLUDE, start, length);
}

int agent_release(uint64_t start, uint64_t length) {
        return call_if_merged(REQUEST_RELEASE, start, length);
}

int agent_merge_any_stop(void) {
        return call_if_merged(REQUEST_MERGE_ANY, 0, 0);
}

void agent_suspend(bool suspended) {
        (void) call_if_merged(REQUEST_SUSPEND, suspended, 0);
}

static void note(enum note_kind kind, uint64_t start, uint64_t length) {
        notes_put((struct note) { .kind = kind, .start = start, .end = start + length });
}

void agent_note_moved(uint64_t old_start, uint64_t old_length, uint64_t new_start, uint64_t new_length) {
        if (agent_running())
                notes_put((struct note) { .kind = NOTE_MOVED,
                                          .start = old_start,
                                          .end = old_start + old_length,
                                          .to = new_start,
                                          .to_end = new_start + new_length });
        else
                book_forget(old_start, old_start + old_length);
}

void agent_note_unmapped(uint64_t start, uint64_t length) {
        if (agent_running())
                note(NOTE_UNMAPPED, start, length);
        else
                book_forget(start, start + length); /* a forked child without an agent yet */
}

void agent_note_stack(uint64_t start, uint64_t length) {
        note(NOTE_EXCLUDE, start, length);
}

void agent_note_dontfork(uint64_t start, uint64_t length, bool dontfork) {
        note(dontfork ? NOTE_DONTFORK : NOTE_DOFORK, start, length);
}

/* Until its agent has contexts nobody hears a discard in a forked child. There is no fd to ask the kernel through, but books
 * inherited over a fork are right: the parent's agent was at rest, and what the child unmapped since went through
 * agent_note_unmapped. */
int agent_discard_local(uint64_t start, uint64_t length) {
        struct book_walk w = { .start = start, .end = start + length };
        uint64_t block, mask;
        if (agent_running() && agent_has_contexts())
                return 0;
        while (book_walk_next(&w, &block, &mask)) {
                for (uint64_t m = mask; m; m &= m - 1) {
                        uint64_t page = (block << BLOCK_SHIFT | (uint64_t) __builtin_ctzll(m)) << KSM_PAGE_SHIFT;
                        long r = sys_mmap(page, KSM_PAGE_SIZE, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
                        if (sys_is_error(r))
                                return (int) r;
                        book_forget(page, page + KSM_PAGE_SIZE);
                }
        }
        return 0;
}
