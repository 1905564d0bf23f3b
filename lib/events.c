/* What the contexts tell the agent, and its answers.
 *
 * shared, fault: an access met an empty page table entry of a merged run. Either the page was discarded (MADV_DONTNEED:
 *   must read as zeros) or the kernel took the entry away by reclaim or migration (must read as the segment). The fault does not
 *   say which; the record of REMOVE events does (book.removed).
 * shared or guard, remove: a discard is about to happen; its caller waits until the event is read. It must be recorded before
 *   anybody can fault on the page: reading it is what lets the zap begin.
 * shared, remap: merged memory was moved around libc (lib/moved.h); its caller waits until the event is read.
 * spare, fault: nobody has business in scratch, but mlockall fills all memory there is, and a debugger may look: gets zeros, between
 *   transitions. What they become when they are written is dropped before the next one.
 * guard, fault: an access waits for the transition; it is counted, and woken when the transition ends. One that comes after
 *   (its message was still in the queue) is woken at once. */
#include <errno.h>

#include "common/fault.h"
#include "lib/agent_loop.h"
#include "lib/agent_start.h"
#include "lib/book.h"
#include "lib/fork_log.h"
#include "lib/maplock.h"
#include "lib/moved.h"
#include "lib/sys.h"
#include "lib/transition.h"

/* A discard under way needs the processor once more before the context answers again. */
#define ZERO_WAIT_USEC 10000U
/* Each holds the mapping lock for some 50 us. */
#define SETTLE_BLOCKS_A_TURN 8U

/* False: an unread event of the context stands in the way (EAGAIN). */
static bool zero_page(struct agent *a, uint64_t address) {
        /* A discard of a write-protected page leaves a marker; ZEROPAGE wants an empty entry. EEXIST: somebody was first. */
        int r = context_writeprotect(&a->shared, address, address + KSM_PAGE_SIZE, false);
        if (r != -EAGAIN)
                r = context_zeropage(&a->shared, address);
        fault_point(FAULT_event_zero);
        return r != -EAGAIN;
}

static bool is_removed(const struct agent *a, uint64_t address) {
        if (moved_contains(a, address))
                return moved_is_removed(a, address);
        struct book_block *b = book_find(address >> (BLOCK_SHIFT + KSM_PAGE_SHIFT));
        return b && b->removed >> ((address >> KSM_PAGE_SHIFT) & (BLOCK_PAGES - 1)) & 1;
}

static void on_shared_fault(void *userdata, uint64_t address, uint64_t flags) {
        struct agent *a = userdata;
        (void) flags;
        /* A message from before the block went into the guard: the kernel lets one context fill pages of another, so an answer
         * would put a page into the hole, or lift the protection of a freeze. Woken, the access waits in the guard. */
        if (a->current && address - a->current->base < BLOCK_BYTES)
                ;
        else if (is_removed(a, address))
                (void) zero_page(a, address);
        else {
                uint64_t done;
                (void) context_continue(&a->shared, address, address + KSM_PAGE_SIZE, &done);
        }
        /* Whatever came of it (EAGAIN: an event further back in the queue), the access is tried again and faults again. */
        context_wake(&a->shared, address, address + KSM_PAGE_SIZE);
        fault_point(FAULT_event_fault);
}

void events_note_empty(struct agent *a, uint64_t start, uint64_t end) {
        struct book_walk w = { .start = start, .end = end };
        uint64_t block, mask;
        while (a->discards_head - a->discards_tail < DISCARDS_MAX && book_walk_next(&w, &block, &mask))
                a->discards[a->discards_head++ % DISCARDS_MAX] = block;
}

/* Whichever context says so: the event may be from before the block went into the guard, and the zap still to come. What is mapped
 * there meanwhile would be taken for what comes after the discard. */
static void note_in_transition(struct transition *t, uint64_t start, uint64_t end) {
        for (unsigned i = 0; t && i < BLOCK_PAGES; i++) {
                uint64_t page = page_address(t->base, i);
                if (page >= start && page < end)
                        t->removed |= 1ULL << i;
        }
}

static void on_remove(void *userdata, uint64_t start, uint64_t end) {
        struct agent *a = userdata;
        fault_point(FAULT_event_read);
        /* The caller of a wrapped madvise, or of a free that trims, was inside the mapping lock while it waited for our read.
         * Nobody inside and nobody gone since: the program discards without libc, and other calls of that kind could
         * overlap a transition. (Another thread leaving a bracket in this microsecond hides it until the next time.) */
        if (!map_lock_any_inside() && map_lock_exits() == a->exits_before_read)
                a->raw = true;
        book_mark_removed(start, end);
        moved_mark_removed(a, start, end);
        events_note_empty(a, start, end);
        fork_log_note(agent_control(), start, end);
        note_in_transition(a->current, start, end);
        fault_point(FAULT_event_discard);
}

static void on_shared_remap(void *userdata, uint64_t from, uint64_t to, uint64_t length) {
        moved_note(userdata, from, to, length);
}

static void on_guard_fault(void *userdata, uint64_t address, uint64_t flags) {
        struct agent *a = userdata;
        (void) flags;
        if (a->current) {
                a->current->n_waited++;
                fault_point(FAULT_event_waits);
        } else
                context_wake(&a->guard, address, address + KSM_PAGE_SIZE);
}

static void on_spare_fault(void *userdata, uint64_t address, uint64_t flags) {
        struct agent *a = userdata;
        (void) flags;
        /* Elsewhere it was in staging, which is gone by now: something else may be there. */
        if (address - (uint64_t) a->scratch < BLOCK_BYTES) {
                a->scratch_used = true;
                (void) context_zeropage(&a->spare, address);
        }
        context_wake(&a->spare, address, address + KSM_PAGE_SIZE);
}

void agent_drain(void *agent) {
        struct agent *a = agent;
        if (!a->contexts_open)
                return;
        const struct context_events guard = { on_guard_fault, on_remove, NULL, a };
        const struct context_events shared = { on_shared_fault, on_remove, on_shared_remap, a };
        const struct context_events spare = { on_spare_fault, NULL, NULL, a };
        struct agent_control *c = agent_control();
        bool outermost = !(atomic_load(&c->readings) & 1); /* handlers drain, too */
        if (outermost)
                fork_log_begin(c);
        a->exits_before_read = map_lock_exits();
        (void) context_drain(&a->guard, &guard);
        (void) context_drain(&a->shared, &shared);
        if (!a->current)
                (void) context_drain(&a->spare, &spare);
        if (outermost)
                fork_log_end(c);
}

/* Pages of [base, base + 64) that were discarded and not touched since: their entries are empty, or hold a marker of the write
 * protection, which the scan calls swapped. */
static uint64_t empty_removed(struct agent *a, uint64_t base, uint64_t mask) {
        const struct book_block *b = book_find(base >> (BLOCK_SHIFT + KSM_PAGE_SHIFT));
        struct look look;
        uint64_t removed = b ? b->removed & mask : 0;
        if (!removed)
                return 0;
        return look_at(a->pagemap_fd, base, BLOCK_PAGES, &look) < 0 ? removed : removed & ~look.present;
}

bool events_zero_removed(struct agent *a, uint64_t base, uint64_t mask) {
        uint64_t deadline = 0;
        for (uint64_t m = empty_removed(a, base, mask); m; m &= m - 1)
                while (!zero_page(a, page_address(base, (unsigned) __builtin_ctzll(m)))) {
                        uint64_t now = now_usec();
                        deadline = deadline ? deadline : now + ZERO_WAIT_USEC;
                        if (now > deadline)
                                return false;
                        agent_drain(a);
                        sys_yield();
                }
        return true;
}

/* Discarded pages get their zeros without waiting for an access: one that the program makes would cost a round trip to the agent,
 * one that cannot wait (/proc/PID/mem, a debugger) would fail. With the mapping lock held every wrapped discard has done its zap. */
bool events_settle_discards(struct agent *a) {
        for (unsigned n = 0; a->discards_tail != a->discards_head && n < SETTLE_BLOCKS_A_TURN; n++) {
                uint64_t block = a->discards[a->discards_tail % DISCARDS_MAX];
                struct transition t = { .a = a, .base = block << (BLOCK_SHIFT + KSM_PAGE_SHIFT) };
                struct book_block *b = book_find(block);
                if (b && b->merged & b->removed) {
                        if (!transition_begin(&t))
                                return false;
                        (void) events_zero_removed(a, t.base, b->merged);
                        transition_end(&t);
                }
                a->discards_tail++;
        }
        return a->discards_tail == a->discards_head;
}

/* The child of a fork gets the page tables but no context: a discarded page without its zeros would read as the segment. A
 * page whose zap is still to come is not empty yet. What is left, or comes until the fork, the child does (fork.c). */
void events_prepare_fork(struct agent *a) {
        agent_drain(a);
        if (!a->contexts_open || !book_take_any_removed())
                return;
        /* Noted, and its zap still to come: that page looks as if it had been written since. The child must look at all of them. */
        if (map_lock_any_inside())
                book_leave_removed();
        struct book_walk w = { .start = 0, .end = UINT64_MAX };
        uint64_t block, mask;
        while (book_walk_next(&w, &block, &mask))
                if (!events_zero_removed(a, block << (BLOCK_SHIFT + KSM_PAGE_SHIFT), mask)) {
                        book_leave_removed();
                        return;
                }
}
