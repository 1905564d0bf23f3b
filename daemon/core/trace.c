/* What probes say of pages and slots, from the ids that the books have. */
#include <errno.h>

#include "common/probes.h"
#include "daemon/core/internal.h"

/* Segments have ids of their own that are never used again; slot ids are. */
static uint64_t shared_page(const struct domain *d, uint32_t slot) {
        const struct segment *s = segment_of(d, slot);

        return (uint64_t) s->id << 32 | (slot - s->base);
}

static int probe_err(enum core_apply_status status) {
        static const int errs[] = {
                [CORE_OK] = 0,
                [CORE_CHANGED] = PROBE_ERR_CHANGED,
                [CORE_PINNED_OR_FORKED] = PROBE_ERR_PINNED_OR_FORKED,
                [CORE_VMA_GONE] = PROBE_ERR_VMA_GONE,
                [CORE_BUDGET] = PROBE_ERR_BUDGET,
                [CORE_BUSY] = PROBE_ERR_AGAIN,
                [CORE_LATER] = PROBE_ERR_AGAIN,
        };

        return status < ARRAY_SIZE(errs) && (errs[status] || status == CORE_OK) ? errs[status] : PROBE_ERR_OTHER;
}

void trace_answer(const struct core *c, uint32_t block, unsigned i, enum core_apply_status status) {
        const struct block *b = block_at(c, block);
        const struct client *cl = block_client(c, b);
        uint64_t page = (b->number << BLOCK_SHIFT) + i;

        if (record_state(b->page[i]) == PAGE_ZEROING)
                probe_ksm_merge_one_page(page, page_id(block, i), cl->id, probe_err(status));
        else
                probe_ksm_merge_with_ksm_page(shared_page(client_domain(c, cl), (uint32_t) record_payload(b->page[i])), page,
                                              page_id(block, i), cl->id, probe_err(status));
}

void trace_unshare(const struct core *c, uint32_t block, unsigned i, uint32_t slot) {
        const struct client *cl = block_client(c, block_at(c, block));

        probe_ksm_remove_rmap_item(shared_page(client_domain(c, cl), slot), page_id(block, i), cl->id);
}

void trace_slot_dead(const struct domain *d, uint32_t slot) {
        probe_ksm_remove_ksm_page(shared_page(d, slot));
}
