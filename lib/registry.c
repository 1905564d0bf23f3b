/* Which ranges are registered: requests of the program, and the tracking that goes with them. */
#include <errno.h>

#include "common/fault.h"
#include "lib/agent_loop.h"
#include "lib/book.h"
#include "lib/sys.h"
#include "lib/transition.h"
#include "lib/vma.h"

static void on_special(void *userdata, uint64_t start, uint64_t end, unsigned special) {
        struct agent *a = userdata;
        if (special & VMA_FORBIDDEN)
                (void) rangeset_add(&a->excluded, start, end);
        if (special & VMA_DONTFORK)
                (void) rangeset_add(&a->dontfork, start, end);
        if (special & VMA_HUGEPAGE)
                (void) rangeset_add(&a->huge, start, end);
        if (special & VMA_NOHUGEPAGE)
                (void) rangeset_add(&a->nohuge, start, end);
}

/* Attributes that only smaps shows: what forbids merging becomes excluded. Under the shim this is read once: every later change
 * passes through its wrappers. The price is a walk of all page tables. */
int registry_read_special(struct agent *a) {
        if (a->special_known)
                return 0;
        int r = vma_each_special(a->smaps_fd, a->text, TEXT_BUFFER_BYTES, on_special, a);
        if (r == 0 && a->flags & HELLO_SHIM)
                a->special_known = true;
        return r;
}

/* A memory policy of its own (mbind) would be lost. The task's policy, which VMAs without one report, is fine. */
static bool has_own_policy(uint64_t address) {
        int of_task = 0, of_vma = 0;
        (void) sys_call(SYS_get_mempolicy, (long) &of_task, 0, 0, 0, 0, 0);
        long r = sys_call(SYS_get_mempolicy, (long) &of_vma, 0, 0, (long) address, 2 /* MPOL_F_ADDR */, 0);
        return r == 0 && of_vma != of_task;
}

int agent_track(struct agent *a, uint64_t start, uint64_t end) {
        struct vma v;
        for (uint64_t at = start; at < end && vma_query(a->maps_fd, at, true, &v) == 0 && v.start < end; at = v.end) {
                if (!vma_is_candidate(&v))
                        continue;
                int r = context_register(&a->track, MAX(v.start, start), MIN(v.end, end), UFFDIO_REGISTER_MODE_WP);
                if (r < 0)
                        return r;
        }
        return 0;
}

int registry_retrack(struct agent *a) {
        int result = 0;
        for (uint32_t i = 0; i < a->ranges.n; i++)
                for (uint64_t at = a->ranges.v[i].start; at < a->ranges.v[i].end;) {
                        struct vma v;
                        if (vma_query(a->maps_fd, at, true, &v) < 0 || v.start >= a->ranges.v[i].end)
                                break;
                        /* A VMA of somebody else's userfaultfd must not keep the others from being tracked. */
                        int r = agent_track(a, MAX(v.start, at), MIN(v.end, a->ranges.v[i].end));
                        if (r < 0)
                                result = r;
                        at = v.end;
                }
        return result;
}

/* -- register ------------------------------------------------------------------------------------------------------ */

static int check_strict(struct agent *a, uint64_t start, uint64_t end) {
        if (rangeset_contains(&a->ranges, start, end))
                return -EEXIST;
        if (rangeset_overlaps(&a->ranges, start, end))
                return -EINVAL;
        uint64_t at = start;
        while (at < end) {
                struct vma v;
                if (vma_query(a->maps_fd, at, false, &v) < 0)
                        return -ENOMEM;
                if (!vma_is_candidate(&v))
                        return -EINVAL;
                if (has_own_policy(at))
                        return -EPERM;
                at = v.end;
        }
        int r = registry_read_special(a);
        return r < 0 ? r : rangeset_overlaps(&a->excluded, start, end) ? -EPERM : 0;
}

static int add_piece(struct agent *a, uint64_t start, uint64_t end) {
        int r = rangeset_add(&a->ranges, start, end);
        if (r < 0)
                return r;
        fault_point(FAULT_range_noted);
        if (a->contexts_open && (r = agent_track(a, start, end)) < 0) {
                (void) context_unregister(&a->track, start, end);
                (void) rangeset_remove(&a->ranges, start, end);
                return r;
        }
        fault_point(FAULT_range_tracked);
        const struct interval piece = { start, end };
        link_send_ranges(a, MSG_RANGE_ADD, &piece, 1);
        return 0;
}

/* Registers what is eligible of one VMA's part; the rest is skipped. */
static int add_eligible(struct agent *a, uint64_t start, uint64_t end) {
        int result = 0;
        for (uint64_t at = start; at < end;) {
                uint64_t stop = end;
                const struct rangeset *sets[] = { &a->excluded, &a->ranges };
                for (unsigned i = 0; i < ARRAY_SIZE(sets); i++) {
                        const struct interval *x = rangeset_from(sets[i], at);
                        if (!x || x->start >= end)
                                continue;
                        if (x->start <= at) {
                                at = x->end;
                                stop = 0;
                                break;
                        }
                        stop = MIN(stop, x->start);
                }
                if (!stop)
                        continue;
                int r = add_piece(a, at, stop);
                if (r == -ENOMEM)
                        result = -EAGAIN;
                at = stop;
        }
        return result;
}

int registry_add_vma(struct agent *a, const struct vma *v, uint64_t start, uint64_t end) {
        if (!vma_is_candidate(v) || own_holds(v->start) || has_own_policy(v->start))
                return 0;
        return add_eligible(a, MAX(start, v->start), MIN(end, v->end));
}

/* libc frees and allocates large blocks by itself: a mapping may be new at an address that is registered already. Registering what
 * is registered changes nothing. */
void registry_track_again(struct agent *a, const struct vma *v) {
        const struct interval *x = rangeset_from(&a->ranges, v->start);
        for (; x && x < a->ranges.v + a->ranges.n && x->start < v->end; x++)
                if (context_register(&a->track, MAX(x->start, v->start), MIN(x->end, v->end), UFFDIO_REGISTER_MODE_WP) < 0)
                        return; /* somebody else's userfaultfd: left alone */
}

/* The part of one mapping that the program names. */
static int advise_vma(struct agent *a, const struct vma *v, uint64_t start, uint64_t end) {
        if (a->contexts_open && vma_is_candidate(v) && !own_holds(v->start))
                registry_track_again(a, v);
        return registry_add_vma(a, v, start, end);
}

int registry_register(struct agent *a, uint64_t start, uint64_t end, bool strict) {
        if (strict) {
                int r = check_strict(a, start, end);
                return r < 0 ? r : add_piece(a, start, end);
        }
        int r = registry_read_special(a);
        struct vma v;
        for (uint64_t at = start; r == 0 && at < end && vma_query(a->maps_fd, at, true, &v) == 0 && v.start < end;
             at = v.end)
                r = advise_vma(a, &v, start, end);
        return r;
}

/* -- unregister ---------------------------------------------------------------------------------------------------- */

static void forget_range(struct agent *a, uint64_t start, uint64_t end) {
        if (!rangeset_overlaps(&a->ranges, start, end))
                return;
        (void) rangeset_remove(&a->ranges, start, end);
        (void) rangeset_remove(&a->found, start, end);
        const struct interval piece = { start, end };
        link_send_ranges(a, MSG_RANGE_DEL, &piece, 1);
}

static void untrack(struct agent *a, uint64_t start, uint64_t end) {
        struct vma v;
        if (!a->contexts_open)
                return;
        for (uint64_t at = start; at < end && vma_query(a->maps_fd, at, true, &v) == 0 && v.start < end; at = v.end)
                if (vma_is_candidate(&v))
                        (void) context_unregister(&a->track, MAX(v.start, start), MIN(v.end, end));
}

int registry_unregister(struct agent *a, uint64_t start, uint64_t end, bool strict) {
        if (!rangeset_overlaps(&a->ranges, start, end))
                return strict ? -ENOENT : 0;
        int r = transition_restore_range(a, start, end);
        if (r < 0)
                return r;
        fault_point(FAULT_range_restored);
        for (const struct interval *x; (x = rangeset_from(&a->ranges, start)) && x->start < end;) {
                uint64_t from = MAX(x->start, start), to = MIN(x->end, end);
                untrack(a, from, to);
                fault_point(FAULT_range_untracked);
                forget_range(a, from, to);
        }
        return 0;
}

int registry_exclude(struct agent *a, uint64_t start, uint64_t end) {
        int r = rangeset_add(&a->excluded, start, end);
        if (r == 0)
                r = registry_unregister(a, start, end, false);
        return r < 0 ? r : 0;
}

/* Out of every context of ours, registered or not: runs that could not be restored (copied on write), and memory that was mapped
 * anew where notes of the program said that something had moved to. Never out of the program's own: where it had been let in
 * before, nothing of ours is. */
static void leave_contexts(struct agent *a, uint64_t start, uint64_t end) {
        struct vma v;
        for (uint64_t at = start; at < end && vma_query(a->maps_fd, at, true, &v) == 0 && v.start < end; at = v.end) {
                uint64_t from = MAX(v.start, start), to = MIN(v.end, end);
                if (v.flags & PROCMAP_QUERY_VMA_SHARED || rangeset_overlaps(&a->released, from, to))
                        continue;
                (void) context_unregister(v.segment ? &a->shared : &a->track, from, to);
        }
}

int registry_release(struct agent *a, uint64_t start, uint64_t end) {
        int r = registry_exclude(a, start, end);
        if (a->contexts_open)
                leave_contexts(a, start, end);
        (void) rangeset_add(&a->released, start, end);
        return r;
}

void registry_forget(struct agent *a, uint64_t start, uint64_t end) {
        book_forget(start, end);
        (void) rangeset_remove(&a->excluded, start, end);
        (void) rangeset_remove(&a->stacks, start, end);
        (void) rangeset_remove(&a->dontfork, start, end);
        (void) rangeset_remove(&a->huge, start, end);
        (void) rangeset_remove(&a->nohuge, start, end);
        (void) rangeset_remove(&a->released, start, end);
        forget_range(a, start, end);
}

/* The pieces of [start, end) in a set, at the same distance from `to`; growth of a piece at the end belongs to it. */
static void pieces_moved(const struct rangeset *s, uint64_t start, uint64_t end, uint64_t to, uint64_t to_end, struct rangeset *ret) {
        const struct interval *x;
        for (uint64_t at = start; (x = rangeset_from(s, at)) && x->start < end; at = x->end) {
                uint64_t from = MAX(x->start, start), until = MIN(x->end, end);
                uint64_t new_end = until == end ? to_end : to + (until - start);
                if (to + (from - start) < to_end)
                        (void) rangeset_add(ret, to + (from - start), MIN(new_end, to_end));
        }
}

static void add_all(struct rangeset *s, struct rangeset *pieces) {
        for (uint32_t i = 0; i < pieces->n; i++)
                (void) rangeset_add(s, pieces->v[i].start, pieces->v[i].end);
        rangeset_clear(pieces);
}

/* What travels: registration and the attributes that forbid merging or come back after it. keep: MREMAP_DONTUNMAP. */
void registry_move(struct agent *a, uint64_t start, uint64_t end, uint64_t to, uint64_t to_end, bool keep) {
        struct rangeset ranges = { 0 }, dontfork = { 0 }, huge = { 0 }, nohuge = { 0 }, excluded = { 0 }, released = { 0 };
        pieces_moved(&a->ranges, start, end, to, to_end, &ranges);
        pieces_moved(&a->dontfork, start, end, to, to_end, &dontfork);
        pieces_moved(&a->huge, start, end, to, to_end, &huge);
        pieces_moved(&a->nohuge, start, end, to, to_end, &nohuge);
        pieces_moved(&a->excluded, start, end, to, to_end, &excluded);
        pieces_moved(&a->released, start, end, to, to_end, &released);
        if (keep)
                book_forget(start, end);
        else
                registry_forget(a, start, end);
        add_all(&a->dontfork, &dontfork);
        add_all(&a->huge, &huge);
        add_all(&a->nohuge, &nohuge);
        add_all(&a->excluded, &excluded);
        add_all(&a->released, &released);
        for (uint32_t i = 0; i < ranges.n; i++)
                (void) add_piece(a, ranges.v[i].start, ranges.v[i].end);
        rangeset_clear(&ranges);
}
