/* Telling the daemon on which NUMA nodes our pages are. It may not ask the kernel about processes of other users (move_pages(2) wants the
 * rights of a debugger); of itself every process may.
 *
 * A question moves nothing and faults nothing in: absent pages stay so, and a discard that was not answered yet is an absent page. */
#include <errno.h>

#include "lib/agent_loop.h"
#include "lib/sys.h"
#include "lib/witness.h"

/* Service managers' filters like to count move_pages among what a service needs not, and may answer it by killing. A kernel without
 * NUMA says so to the first question. */
bool nodes_can_be_told(struct agent *a) {
        return !witness_filtered(a) && sys_call(SYS_move_pages, 0, 0, 0, 0, 0, 0) == 0;
}

static void ask(const struct nodes_wanted_element *block, struct nodes_element *ret) {
        uint64_t addresses[BLOCK_PAGES];
        unsigned at[BLOCK_PAGES];
        int status[BLOCK_PAGES];
        long n = 0;
        for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                ret->node[i] = -ENOENT;
                if (!(block->wanted >> i & 1))
                        continue;
                at[n] = i;
                addresses[n++] = (block->page + i) << KSM_PAGE_SHIFT;
        }
        if (n == 0 || sys_call(SYS_move_pages, 0, n, (long) addresses, 0, (long) status, 0) < 0)
                return;
        for (long k = 0; k < n; k++)
                ret->node[at[k]] = (int16_t) status[k];
}

bool nodes_answer(struct agent *a, const struct frame *f) {
        const struct msg_nodes body = { .op = ((const struct msg_nodes_request *) f->body)->op };
        const struct nodes_wanted_element *wanted = f->elements;
        struct nodes_element nodes[NODES_BLOCKS_MAX];
        for (uint32_t i = 0; i < f->count; i++)
                ask(&wanted[i], &nodes[i]);
        return link_send(a, MSG_NODES, &body, nodes, f->count);
}
