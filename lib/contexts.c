/* Opening the agent's four userfaultfds, once a daemon has passed the device; and what must be in them from the start. */
#include <errno.h>

#include "common/fault.h"
#include "lib/agent_loop.h"
#include "lib/agent_start.h"
#include "lib/book.h"
#include "lib/maplock.h"
#include "lib/sys.h"
#include "lib/transition.h"

/* Runs inherited by a forked child, or kept over a lost device: their discards must be heard again. */
static int share_again(struct agent *a) {
        struct book_walk w = { .start = 0, .end = UINT64_MAX };
        uint64_t block, mask;
        while (book_walk_next(&w, &block, &mask)) {
                uint64_t base = block << (BLOCK_SHIFT + KSM_PAGE_SHIFT);
                for (unsigned i = 0, n; next_run(mask, &i, &n); i += n) {
                        struct vma v;
                        uint64_t at = page_address(base, i), end = page_address(base, i + n);
                        for (; at < end && vma_query(a->maps_fd, at, true, &v) == 0 && v.start < end; at = v.end) {
                                if (!v.segment)
                                        continue;
                                int r = context_register(&a->shared, MAX(v.start, at), MIN(v.end, end),
                                                         UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR);
                                if (r < 0)
                                        return r;
                        }
                }
        }
        return 0;
}

static int open_scratch(struct agent *a) {
        a->scratch = own_alloc(BLOCK_BYTES);
        if (!a->scratch)
                return -ENOMEM;
        uint64_t start = (uint64_t) a->scratch;
        /* DONTFORK: a forked child must not share pages that are on their way. */
        (void) sys_madvise(start, BLOCK_BYTES, MADV_DONTFORK);
        (void) sys_madvise(start, BLOCK_BYTES, MADV_NOHUGEPAGE);
        return context_register(&a->spare, start, start + BLOCK_BYTES, UFFDIO_REGISTER_MODE_MISSING);
}

void agent_close_contexts(struct agent *a) {
        a->contexts_open = false;
        mailbox_close();
        context_close(&a->track);
        context_close(&a->shared);
        context_close(&a->guard);
        context_close(&a->spare);
        own_free(a->scratch, BLOCK_BYTES);
        a->scratch = NULL;
        a->scratch_used = false;
}

int agent_open_contexts(struct agent *a, int device_fd) {
        if (a->contexts_open)
                return 0;
        const uint64_t track = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
        int r = context_open(&a->track, device_fd, track);
        if (r == 0)
                r = context_open(&a->shared, device_fd,
                                 track | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_REMAP);
        if (r == 0)
                r = context_open(&a->guard, device_fd,
                                 UFFD_FEATURE_MOVE | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EVENT_REMOVE |
                                         UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
        if (r == 0)
                r = context_open(&a->spare, device_fd, UFFD_FEATURE_MOVE);
        if (r == 0)
                r = open_scratch(a);
        if (r == 0)
                r = mailbox_open(device_fd);
        if (r == 0)
                r = map_lock_init();
        if (r < 0) {
                agent_close_contexts(a);
                return r;
        }
        watch_aim(&a->watch, &a->spare, (uint64_t) a->scratch);
        a->contexts_open = true;
        fault_point(FAULT_contexts_opened);
        if (share_again(a) < 0)
                a->raw = true; /* discards there would not be heard: nothing more is merged */
        control_ready(agent_control());
        fault_point(FAULT_contexts_shared);
        return 0;
}
