/* What was there before us: segments of an earlier daemon, and runs that processes map already.
 *
 * Segments. The shell has the files and hashes their slots with this daemon's secrets; here they become slots like any other, of
 * a segment that is full: what was not written before, nobody can write any more (F_SEAL_FUTURE_WRITE). Their sharers are still to
 * report, so each slot is held: its pending count is one higher than pages account for, for adopt_grace_millisecs. Held or not, new
 * pages are merged into them.
 *
 * Runs. An agent that (re)connects says which of its pages map which slots; it read that from the kernel. The books believe it, as they
 * believe its answers to transitions: a lie makes the liar's own domain save less, and changes no byte, since agents compare
 * before they replace. What can be checked is: the slot is a live one of the client's own domain (I4), the page is registered; and the
 * next look asks the kernel: what is not there, or not of a file, is forgotten (sweep_block, page_seen). Only pages of which the
 * books know nothing are taken: what a scan or a transition has said is newer.
 *
 * Nobody knows whether an adopted slot is on the node that its segment is bound to. It counts as misplaced, and takes no new sharers, until
 * a look at one that it has finds it there.
 *
 * The cap (I5) does not bind here: the sharers are there, refusing to count them would not unmap them. Such a slot is full. */
#include "daemon/core/internal.h"

#include <errno.h>

int core_segment_adopt(struct core *c, uint32_t domain, uint32_t n_slots, int32_t node, uint32_t *ret_segment) {
        struct domain *d = domain_get(c, domain);
        struct segment *s;
        int r;

        if (!d)
                return -ENOENT;
        if (n_slots == 0 || n_slots % SEGMENT_UNIT != 0 || node > CORE_NODE_MAX)
                return -EINVAL;
        r = segment_new(c, d, n_slots, node < 0 ? 0 : (unsigned) node + 1, &s);
        if (r < 0) {
                domain_free_if_unused(c, id_index(domain));
                return r;
        }
        s->events = SEGMENT_SEALED | SEGMENT_HELD;
        s->next_slot = s->n_lost = n_slots;
        for (uint32_t i = 0; i < n_slots; i++)
                s->slots[i].state = SLOT_DEAD;
        c->n_held++;
        c->counters.segments_adopted++;
        *ret_segment = s->id;
        return 0;
}

/* From a segment's id to the segment. Reports come run by run along a segment: the one asked for last is tried first. */
static struct segment *segment_find(struct domain *d, uint32_t id) {
        if (d->found_unit < d->n_units && d->units[d->found_unit] && d->units[d->found_unit]->id == id)
                return d->units[d->found_unit];
        for (uint32_t u = 0; u < d->n_units; u++)
                if (d->units[u] && d->units[u]->id == id) {
                        d->found_unit = u;
                        return d->units[u];
                }
        return NULL;
}

int core_slot_adopt(struct core *c, uint32_t domain, uint32_t segment, uint32_t slot, uint64_t hash) {
        struct domain *d = domain_get(c, domain);
        struct segment *s = d ? segment_find(d, segment) : NULL;
        struct match m;
        int r;

        if (!s || !(s->events & SEGMENT_HELD) || slot >= s->n_slots || s->slots[slot].state != SLOT_DEAD)
                return -EINVAL;
        hash = content_hash(hash, s->nid);
        match_find(c, d, hash, &m);
        if (m.slot == NIL) {
                r = index_insert(&d->index, hash, SLOT_ID | (s->base + slot));
                if (r < 0)
                        return r;
        }
        slot_revive(c, d, s->base + slot, hash);
        slot_placed(c, d, s->base + slot, s->nid != 0);
        if (m.slot != NIL)
                slot_join(c, d, s->base + slot, m.slot);
        return 0;
}

void core_adopted(struct core *c, uint64_t now_usec) {
        c->adopted_usec = now_usec;
}

/* Lets go of the holds. False: out of budget. */
static bool segment_release(struct core *c, struct domain *d, struct segment *s, unsigned *budget) {
        for (; s->held_next < s->n_slots; s->held_next++) {
                if (*budget == 0)
                        return false;
                if (s->held_next % BLOCK_PAGES == 0)
                        (*budget)--;
                if (s->slots[s->held_next].state == SLOT_LIVE)
                        slot_unpend(c, d, s->base + s->held_next);
        }
        s->events &= ~(uint32_t) SEGMENT_HELD;
        c->n_held--;
        segment_check(c, s); /* one that held nothing at all */
        return true;
}

uint64_t adopt_step(struct core *c, uint64_t now_usec, unsigned *budget) {
        if (c->n_held == 0)
                return UINT64_MAX;
        if (now_usec < c->adopted_usec + usec_of_ms(c->tunables.adopt_grace_millisecs))
                return c->adopted_usec + usec_of_ms(c->tunables.adopt_grace_millisecs);
        for (uint32_t i = pool_next(&c->domains, 0); i != NIL; i = pool_next(&c->domains, i + 1)) {
                struct domain *d = domain_at(c, i);

                for (uint32_t u = 0; u < d->n_units; u++)
                        if (d->units[u] && d->units[u]->events & SEGMENT_HELD && !segment_release(c, d, d->units[u], budget))
                                return now_usec;
        }
        return UINT64_MAX;
}

static bool page_adopt(struct core *c, struct client *cl, uint64_t page, uint32_t slot) {
        struct domain *d = client_domain(c, cl);
        const struct range *range = range_find(cl, page);
        const struct slot *s = slot_at(d, slot);
        uint32_t block;
        unsigned i = (unsigned) (page & (BLOCK_PAGES - 1));
        enum page_state state;

        if (!range || page < range->start || range->is_unmerged || client_is_forgetting(cl, page, page + 1))
                return false;
        if (s->state != SLOT_LIVE || s->pending == SLOT_PENDING_MAX || s->sharers + s->pending >= SLOT_SHARERS_MAX)
                return false;
        block = block_ensure(c, cl, page >> BLOCK_SHIFT);
        if (block == NIL)
                return false;
        state = record_state(block_at(c, block)->page[i]);
        if (state == PAGE_NONE || state == PAGE_FOREIGN) {
                slot_pend(d, slot);
                if (extent_add(c, block, i, slot, 0) == 0) {
                        block_at(c, block)->flags |= BLOCK_CLAIMED;
                        return true;
                }
                slot_unpend(c, d, slot);
        }
        block_free_if_idle(c, block);
        return false;
}

uint32_t core_run_adopt(struct core *c, uint32_t client, uint64_t page, uint32_t n_pages, uint32_t segment, uint32_t slot) {
        struct client *cl = client_get(c, client);
        struct segment *s = cl ? segment_find(client_domain(c, cl), segment) : NULL;
        uint32_t n = 0;

        if (!s || n_pages > s->n_slots || slot > s->n_slots - n_pages || page > UINT64_MAX - n_pages)
                return 0;
        for (uint32_t k = 0; k < n_pages; k++)
                n += page_adopt(c, cl, page + k, s->base + slot + k);
        if (n > 0) {
                cl->claim_look = cl->look;
                cl->wants_look = true;
                node_look_failed(c, cl);
        }
        c->counters.pages_adopted += n;
        return n;
}
