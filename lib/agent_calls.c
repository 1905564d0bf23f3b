/* The calls of program threads: each a request to the agent, or a note. */
#include <errno.h>
#include <fcntl.h>

#include "lib/agent.h"
#include "lib/agent_start.h"
#include "lib/book.h"
#include "lib/mailbox.h"
#include "lib/notes.h"
#include "lib/sys.h"
#include "lib/transition.h"
#include "lib/vma.h"
#include "common/cleanup.h"

/* The daemon answers a merge on demand within seconds; one that hangs must not hang the program. */
#define MERGE_TIMEOUT_USEC 30000000U

/* What the kernel's calls touch: whole pages. The agent's sets hold nothing else. */
static uint64_t page_floor(uint64_t address) {
        return address & ~(KSM_PAGE_SIZE - 1);
}

static uint64_t page_ceil(uint64_t address) {
        return page_floor(address + KSM_PAGE_SIZE - 1);
}

static int ask(enum request_kind kind, uint64_t start, uint64_t length) {
        struct request r = { .kind = kind, .start = start, .length = length };
        agent_ensure_after_fork();
        return agent_running() ? mailbox_call(&r, 0) : -ENOTCONN;
}

static int call(enum request_kind kind, uint64_t start, uint64_t length) {
        uint64_t from = page_floor(start);
        return ask(kind, from, page_ceil(start + length) - from);
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
        int r = ask(REQUEST_MERGE_ANY, 0, 0);
        return r == -ENOTCONN ? 0 : r;
}

int agent_retire(void) {
        return call_if_merged(REQUEST_RETIRE, 0, 0);
}

void agent_suspend(bool suspended) {
        (void) ask(REQUEST_SUSPEND, suspended, 0);
}

static void note(enum note_kind kind, uint64_t start, uint64_t length) {
        notes_put((struct note) { .kind = kind, .start = page_floor(start), .end = page_ceil(start + length) });
        if (notes_crowded())
                atomic_store(agent_calm, 0);
}

void agent_note_moved(uint64_t old_start, uint64_t old_length, uint64_t new_start, uint64_t new_length, bool keep) {
        if (agent_running())
                notes_put((struct note) { .kind = keep ? NOTE_MOVED_KEEPING : NOTE_MOVED,
                                          .start = old_start,
                                          .end = page_ceil(old_start + old_length),
                                          .to = new_start,
                                          .to_end = page_ceil(new_start + new_length) });
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

void agent_note_advice(uint64_t start, uint64_t length, int advice) {
        note(advice == MADV_DONTFORK ? NOTE_DONTFORK
             : advice == MADV_DOFORK ? NOTE_DOFORK
             : advice == MADV_HUGEPAGE ? NOTE_HUGEPAGE : NOTE_NOHUGEPAGE, start, length);
}

/* Until its agent has contexts nobody hears a discard in a forked child. */
int agent_discard_local(uint64_t start, uint64_t length) {
        if (agent_running() && agent_has_contexts())
                return 0;
        if (!book_any_merged(start, start + length))
                return 0;
        int r = 0, maps_fd = (int) sys_open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
        if (maps_fd < 0)
                return maps_fd;
        struct book_walk w = { .start = start, .end = start + length };
        uint64_t block, mask;
        while (r == 0 && book_walk_next(&w, &block, &mask)) {
                uint64_t base = block << (BLOCK_SHIFT + KSM_PAGE_SHIFT);
                for (unsigned i = 0, n; r == 0 && next_run(mask, &i, &n); i += n)
                        r = fork_child_discard(maps_fd, page_address(base, i), page_address(base, i + n));
        }
        sys_close(maps_fd);
        return r;
}
