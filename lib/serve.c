/* What program threads ask of the agent: notes and requests (lib/notes.h, lib/mailbox.h). */
#include <errno.h>

#include "common/fault.h"
#include "lib/agent_loop.h"
#include "lib/agent_start.h"
#include "lib/book.h"
#include "lib/notes.h"
#include "lib/sys.h"
#include "lib/transition.h"

void agent_consume_notes(struct agent *a) {
        struct note n;
        while (notes_get(&n)) {
                switch (n.kind) {
                case NOTE_NOTHING:
                        break;
                case NOTE_UNMAPPED:
                        registry_forget(a, n.start, n.end);
                        break;
                case NOTE_EXCLUDE:
                        (void) rangeset_add(&a->excluded, n.start, n.end);
                        break;
                case NOTE_MOVED:
                case NOTE_MOVED_KEEPING:
                        registry_move(a, n.start, n.end, n.to, n.to_end, n.kind == NOTE_MOVED_KEEPING);
                        break;
                case NOTE_DONTFORK:
                        (void) rangeset_add(&a->dontfork, n.start, n.end);
                        break;
                case NOTE_DOFORK:
                        (void) rangeset_remove(&a->dontfork, n.start, n.end);
                        break;
                case NOTE_HUGEPAGE:
                        (void) rangeset_remove(&a->nohuge, n.start, n.end);
                        (void) rangeset_add(&a->huge, n.start, n.end);
                        break;
                case NOTE_NOHUGEPAGE:
                        (void) rangeset_remove(&a->huge, n.start, n.end);
                        (void) rangeset_add(&a->nohuge, n.start, n.end);
                        break;
                }
        }
}

/* For a program that is about to put a seccomp filter on all its threads: from then on a system call of ours could end it. What
 * cannot be restored (copied on write, perhaps pinned) stays, as private memory of a file mapping. */
static int retire(struct agent *a) {
        a->merge_any = false;
        int r = transition_restore_range(a, 0, UINT64_MAX & ~(KSM_PAGE_SIZE - 1));
        if (r < 0)
                return r;
        link_close(a);
        watch_retire(&a->watch);
        witness_dismiss(a);
        agent_close_contexts(a);
        book_forget(0, UINT64_MAX);
        a->retired = true;
        control_set_state(agent_control(), AGENT_RETIRED);
        return 0;
}

static int serve(struct agent *a, struct request *r) {
        uint64_t end = r->start + r->length;
        switch (r->kind) {
        case REQUEST_REGISTER:
                return registry_register(a, r->start, end, true);
        case REQUEST_ADVISE_MERGEABLE:
                return registry_register(a, r->start, end, false);
        case REQUEST_UNREGISTER:
                return registry_unregister(a, r->start, end, true);
        case REQUEST_ADVISE_UNMERGEABLE:
                return registry_unregister(a, r->start, end, false);
        case REQUEST_RESTORE:
                return transition_restore_range(a, r->start, end);
        case REQUEST_EXCLUDE:
                return registry_exclude(a, r->start, end);
        case REQUEST_RELEASE:
                return registry_release(a, r->start, end);
        case REQUEST_STATS:
                r->stats.registered_bytes = rangeset_bytes(&a->ranges);
                r->stats.merged_bytes = book_merged_pages() << KSM_PAGE_SHIFT;
                r->stats.agent_cpu_usec = thread_cpu_usec();
                r->stats.transitions = a->figures.transitions;
                r->stats.busy = a->figures.busy;
                r->stats.connected = a->welcomed;
                r->stats.raw_syscalls = a->raw;
                return 0;
        case REQUEST_MERGE_ANY:
                if (!r->start)
                        discover_stop(a);
                a->merge_any = r->start;
                a->flags = agent_control()->flags = r->start ? a->flags | HELLO_MERGE_ANY : a->flags & ~(uint32_t) HELLO_MERGE_ANY;
                discover_anew(a);
                return 0;
        case REQUEST_SUSPEND:
                a->suspended = r->start;
                return 0;
        case REQUEST_UNSHARE:
                freeze_unshare_plain(a);
                return 0;
        case REQUEST_NOTES:
                return 0;
        case REQUEST_RETIRE:
                return retire(a);
        case REQUEST_FORK:
                events_prepare_fork(a);
                return 0;
        case REQUEST_MERGE:
                if (!rangeset_overlaps(&a->ranges, r->start, end))
                        return -ENOENT;
                return link_request_merge(a, mailbox_cookie(r), r->start, r->length);
        }
        return -EINVAL;
}

void serve_mailbox(struct agent *a) {
        for (struct request *r; (r = mailbox_next());) {
                fault_point(FAULT_request_taken);
                agent_drain(a);
                agent_consume_notes(a); /* what the caller did before it called */
                int result = serve(a, r);
                if (r->kind == REQUEST_MERGE && result == 0)
                        mailbox_park(r); /* MERGE_DONE ends it */
                else
                        mailbox_finish(r, result);
        }
}
