/* Which merged runs are not worth their mapping any more, and what becomes of a restore that the agent refuses.
 *
 * An extent is ragged when less than a quarter of it shares or is about to, or, when the client's VMAs are nearly used up,
 * when it takes more than one VMA for four pages that it saves. What was written only just is on its way back into sharing, or
 * is hot; nobody can tell yet. So an extent is restored when it is ragged at two looks in a row (16 passes apart, unless
 * something called for a look in between); at the first, when nothing of it waits for anything and its segment is being cleaned.
 * Its pages lie in anonymous memory then, and are candidates like any others.
 *
 * Also restored is what lies in a segment that is being cleaned because nodes matter now (node.c).
 *
 * A page that was copied on write and may be pinned is refused. Its block is marked, and all marked blocks of the client are
 * tried again together, after 1 s at first and up to 64 s. */
#include "daemon/core/internal.h"

#define RETRY_FIRST_USEC (1000 * 1000)
#define RETRY_MAX_DOUBLINGS 6

static bool is_on_its_way(uint64_t r) {
        switch (record_state(r)) {
        case PAGE_FRESH:
                return record_payload(r) == NOT_WRITTEN_USEC; /* the next pass reads it */
        case PAGE_READING:
        case PAGE_HASHED:
        case PAGE_PARTNER:
        case PAGE_SOURCE:
        case PAGE_MATCHED:
        case PAGE_MERGING:
        case PAGE_ZEROABLE:
        case PAGE_ZEROING:
                return true;
        default:
                return false;
        }
}

/* VMAs that the extent's mapping takes. */
static int extent_vmas(const struct core *c, const struct block *b, const struct extent *e) {
        int vmas = 0;

        for (unsigned i = 0, n; i < BLOCK_PAGES; i += n) {
                for (n = 0; i + n < BLOCK_PAGES && e->mapped >> (i + n) & 1; n++)
                        ;
                if (n > 0)
                        vmas -= extent_vma_cost(c, b, i, n, NIL);
                n = MAX(n, 1U);
        }
        return vmas;
}

static bool is_ragged(const struct core *c, const struct block *b, const struct extent *e) {
        int mapped = __builtin_popcountll(e->mapped), kept = 0;

        for (uint64_t m = e->mapped; m; m &= m - 1) {
                uint64_t r = b->page[__builtin_ctzll(m)];

                kept += record_state(r) == PAGE_MERGED || is_on_its_way(r);
        }
        return kept * 4 < mapped ||
               (!client_has_vmas(c, block_client(c, b), 0, false) && extent_vmas(c, b, e) * 4 > kept);
}

/* Keeps a segment that has been cleaned, for nothing. */
static bool is_left_over(const struct core *c, const struct block *b, const struct extent *e) {
        if (!(segment_of(client_domain(c, block_client(c, b)), e->slot)->events & SEGMENT_CLEANING))
                return false;
        for (uint64_t m = e->mapped; m; m &= m - 1) {
                enum page_state s = record_state(b->page[__builtin_ctzll(m)]);

                if (s == PAGE_MERGED || s == PAGE_FRESH || is_on_its_way(b->page[__builtin_ctzll(m)]))
                        return false;
        }
        return true;
}

/* Pages that lie where they could share, but for the cap, one too many for it when it was lowered; or but for the node, when the kernel
 * migrated a shared page to where nobody else has it. Lest they map the slot for ever, they are cut out of their runs, for two VMAs. */
static uint64_t surplus_pages(const struct core *c, const struct block *b) {
        const struct domain *d = client_domain(c, block_client(c, b));
        uint64_t mask = 0;

        if (!client_has_vmas(c, block_client(c, b), 2, false))
                return 0;
        for (uint32_t id = b->extents; id != NIL; id = extent_at(c, id)->block_next)
                for (uint64_t m = extent_at(c, id)->mapped; m; m &= m - 1) {
                        unsigned i = (unsigned) __builtin_ctzll(m);
                        uint32_t slot = page_file_slot(c, b, i);

                        if (record_state(b->page[i]) == PAGE_UNSHARED &&
                            slot_hash(d, slot) == content_on(record_hash(b->page[i]), segment_of(d, slot)->nid))
                                mask |= UINT64_C(1) << i;
                }
        return mask;
}

static bool is_unmerged(const struct core *c, const struct block *b, unsigned i) {
        return c->is_unmerging || scan_is_unmerged(block_client(c, b), (b->number << BLOCK_SHIFT) + i);
}

bool restore_is_due(const struct core *c, const struct block *b, const struct extent *e) {
        const struct segment *s = segment_of(client_domain(c, block_client(c, b)), e->slot);

        return s->events & SEGMENT_CLEANING && s->nid == 0 && nodes_matter(c);
}

uint64_t restore_pages(const struct core *c, const struct block *b) {
        uint64_t mask = 0;

        for (uint32_t id = b->extents; id != NIL; id = extent_at(c, id)->block_next)
                if ((b->flags & BLOCK_RAGGED && is_ragged(c, b, extent_at(c, id))) ||
                    (b->flags & BLOCK_RESTORE && restore_is_due(c, b, extent_at(c, id))))
                        mask |= extent_at(c, id)->mapped;
        if (b->flags & BLOCK_RAGGED)
                mask |= surplus_pages(c, b);
        if (b->flags & BLOCK_RESTORE)
                for (uint64_t m = block_in_file(c, b) & ~mask; m; m &= m - 1)
                        if (is_unmerged(c, b, (unsigned) __builtin_ctzll(m)))
                                mask |= m & -m;
        return mask;
}

void restore_judge(struct core *c, uint32_t block) {
        struct block *b = block_at(c, block);
        bool ragged, left_over = false;

        if (b->extents == NIL || b->flags & BLOCK_REFUSED)
                return;
        ragged = surplus_pages(c, b);
        for (uint32_t id = b->extents; id != NIL; id = extent_at(c, id)->block_next) {
                ragged |= is_ragged(c, b, extent_at(c, id));
                left_over |= is_left_over(c, b, extent_at(c, id));
        }
        if (!ragged)
                b->flags &= (uint16_t) ~BLOCK_DOUBTFUL;
        else if (b->flags & BLOCK_DOUBTFUL || left_over)
                b->flags |= BLOCK_RAGGED;
        else
                b->flags |= BLOCK_DOUBTFUL;
        /* Merged after the unmerge, by a request that was on its way. */
        for (uint64_t m = block_in_file(c, b); m; m &= m - 1)
                if (is_unmerged(c, b, (unsigned) __builtin_ctzll(m)))
                        b->flags |= BLOCK_RESTORE;
        if (b->flags & (BLOCK_RAGGED | BLOCK_RESTORE))
                block_queue_apply(c, block);
}

/* -- refused ------------------------------------------------------------------------------------------------------------ */

void restore_refused(struct core *c, uint32_t block, uint64_t now_usec) {
        struct client *cl = block_client(c, block_at(c, block));

        block_at(c, block)->flags |= BLOCK_REFUSED;
        if (cl->retry_usec == 0)
                cl->retry_usec = now_usec + ((uint64_t) RETRY_FIRST_USEC << cl->retry_tries);
        timer_set(c, cl, TIMER_WAKE, cl->retry_usec);
}

void restore_wake(struct core *c, struct client *cl, uint64_t now_usec) {
        if (cl->retry_usec == 0)
                return;
        if (cl->retry_usec > now_usec) {
                timer_set(c, cl, TIMER_WAKE, cl->retry_usec);
                return;
        }
        cl->retry_usec = 0;
        cl->has_refused = false;
        walk_begin(cl, &cl->retry, 0, UINT64_MAX);
        job_add(c, cl);
}

void restore_retry_step(struct core *c, struct client *cl, unsigned *budget) {
        uint32_t block;

        if (!cl->retry.is_active)
                return;
        while ((block = walk_next(c, cl, &cl->retry, budget)) != NIL) {
                struct block *b = block_at(c, block);

                if (!(b->flags & BLOCK_REFUSED))
                        continue;
                cl->has_refused = true;
                b->flags &= (uint16_t) ~BLOCK_REFUSED;
                b->flags |= BLOCK_RAGGED | BLOCK_RESTORE;
                block_queue_apply(c, block);
        }
        if (cl->retry.is_active)
                job_add(c, cl);
        else
                cl->retry_tries = cl->has_refused ? MIN(cl->retry_tries + 1, (unsigned) RETRY_MAX_DOUBLINGS) : 0;
}
